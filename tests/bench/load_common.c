/* SPDX-License-Identifier: MIT */
/* What all ways to put load have in common: the turn, the clock, sockets, and the end if something goes wrong. */
#include "load.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define SILENCE_NS UINT64_C(10000000000)

uint64_t load_now_ns(clockid_t clock) {
    struct timespec now = { 0 };
    clock_gettime(clock, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* A process that has ended has no clock. */
uint64_t load_server_cpu_ns(const struct load_server *server) {
    struct timespec now = { 0 };
    if (clock_gettime(server->clock, &now) < 0)
        load_fail(server, "process %d has ended", (int)server->pid);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

void load_fail(const struct load_server *server, const char *format, ...) {
    fflush(stdout);
    fprintf(stderr, "load: %s%s", server != NULL ? server->name : "", server != NULL ? ": " : "");
    va_list arguments;
    va_start(arguments, format);
    vfprintf(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
    exit(1);
}

void *load_allocate(size_t count, size_t size) {
    void *memory = calloc(count > 0 ? count : 1, size);
    if (memory == NULL)
        load_fail(NULL, "no memory for %zu times %zu bytes", count, size);
    return memory;
}

int load_socket(uint64_t number) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        load_fail(NULL, "socket: %s", strerror(errno));
    /* 127.0.1.1 to 127.0.1.250; the port is chosen by connect, which knows the peer and so has them all. */
    struct sockaddr_in local = {
        .sin_family = AF_INET,
        .sin_addr.s_addr = htonl(UINT32_C(0x7F000101) + (uint32_t)(number % 250)),
    };
    const int on = 1;
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) < 0 ||
        setsockopt(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on) < 0 ||
        bind(fd, (const struct sockaddr *)&local, sizeof local) < 0)
        load_fail(NULL, "a socket's address: %s", strerror(errno));
    return fd;
}

/* The clock is read when a wait ends and when messages are handed over, not for each message: a reading a message
 * would be a tenth of what the load costs. */
void load_turn(struct load *load, uint64_t until_ns) {
    load->engine->flush(load);
    load->now_ns = load_now_ns(CLOCK_MONOTONIC);
    if (load->options->spin)
        while (!load_ring_look(&load->ring) && load->now_ns < until_ns)
            load->now_ns = load_now_ns(CLOCK_MONOTONIC);
    else
        load_ring_wait(&load->ring, load->now_ns, until_ns);
    load->now_ns = load_now_ns(CLOCK_MONOTONIC);
    struct io_uring_cqe *cqe;
    unsigned head;
    unsigned count = 0;
    io_uring_for_each_cqe(&load->ring.uring, head, cqe) {
        load->engine->complete(load, cqe);
        count++;
    }
    io_uring_cq_advance(&load->ring.uring, count);
}

void load_watch_silence(struct load *load) {
    if (load->now_ns > load->progress_ns + SILENCE_NS)
        load_fail(load->server, "has not answered for 10 s (%u connections wait)", load->busy);
}

void load_drain(struct load *load) {
    while (load->busy > 0) {
        load_turn(load, load_now_ns(CLOCK_MONOTONIC) + 500 * UINT64_C(1000000));
        load_watch_silence(load);
    }
}
