/* SPDX-License-Identifier: MIT */
/*
 * A slow reader behind a proxy: one end sends as fast as it can, the other reads so many bytes a second. What the
 * proxy keeps in between is what whoever measures wants to know; how much was sent and received is told ten times a
 * second. The load costs nearly nothing here, so that poll is good enough.
 */
#include "load.h"
#include "support/bytes.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { CHUNK = 64 * 1024 };
#define TICK_NS UINT64_C(10000000)
#define SAMPLE_NS UINT64_C(100000000)

struct slow {
    const struct load_options *options;
    const struct load_server *server;
    int out; /* to the proxy */
    int in;  /* from it */
    uint64_t sent;
    uint64_t received;
    uint64_t verified;
    uint8_t data[CHUNK];
};

static int listen_at(uint16_t port) {
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    const int on = 1;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) < 0 ||
        bind(fd, (const struct sockaddr *)&address, sizeof address) < 0 || listen(fd, 1) < 0)
        load_fail(NULL, "listening on port %u: %s", port, strerror(errno));
    return fd;
}

static void connect_through(struct slow *slow, int listener) {
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(slow->server->port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    slow->out = load_socket(0);
    if (connect(slow->out, (const struct sockaddr *)&address, sizeof address) < 0)
        load_fail(slow->server, "no connection: %s", strerror(errno));
    struct pollfd wanted = { .fd = listener, .events = POLLIN };
    if (poll(&wanted, 1, 10000) != 1)
        load_fail(slow->server, "has not connected to its upstream for 10 s");
    slow->in = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    if (slow->in < 0)
        load_fail(slow->server, "accept: %s", strerror(errno));
}

static void write_some(struct slow *slow) {
    test_fill(slow->options->seed, slow->sent, slow->data, sizeof slow->data);
    ssize_t size = send(slow->out, slow->data, sizeof slow->data, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (size >= 0)
        slow->sent += (uint64_t)size;
    else if (errno != EAGAIN)
        load_fail(slow->server, "a send: %s", strerror(errno));
}

/* No more than is due by now: all of it at most. */
static void read_some(struct slow *slow, uint64_t allowed) {
    while (slow->received < allowed) {
        uint64_t left = allowed - slow->received;
        size_t limit = left < sizeof slow->data ? (size_t)left : sizeof slow->data;
        ssize_t size = recv(slow->in, slow->data, limit, MSG_DONTWAIT);
        if (size < 0 && errno == EAGAIN)
            return;
        if (size <= 0)
            load_fail(slow->server, "its upstream connection: %s", size < 0 ? strerror(errno) : "closed");
        if (slow->options->verify) {
            int64_t at = test_differs(slow->options->seed, slow->received, slow->data, (size_t)size);
            if (at >= 0)
                load_fail(slow->server, "wrong data: byte %lld", (long long)at);
            slow->verified += (uint64_t)size;
        }
        slow->received += (uint64_t)size;
    }
}

static void tell(const struct slow *slow, const char *what, double seconds) {
    printf("{\"%s\": {\"seconds\": %.3f, \"sent\": %llu, \"received\": %llu", what, seconds,
           (unsigned long long)slow->sent, (unsigned long long)slow->received);
    if (strcmp(what, "done") == 0)
        printf(", \"verified_bytes\": %llu", (unsigned long long)slow->verified);
    printf("}}\n");
    fflush(stdout);
}

static void run(struct slow *slow) {
    const uint64_t start_ns = load_now_ns(CLOCK_MONOTONIC);
    const uint64_t end_ns = slow->options->seconds * UINT64_C(1000000000);
    uint64_t spent_ns = 0;
    uint64_t tick_ns = 0;
    uint64_t sample_ns = SAMPLE_NS;
    while (spent_ns < end_ns) {
        uint64_t left_ns = tick_ns > spent_ns ? tick_ns - spent_ns : 0;
        struct timespec timeout = { .tv_nsec = (long)left_ns };
        struct pollfd wanted = { .fd = slow->out, .events = POLLOUT };
        if (ppoll(&wanted, 1, &timeout, NULL) > 0)
            write_some(slow);
        spent_ns = load_now_ns(CLOCK_MONOTONIC) - start_ns;
        if (spent_ns < tick_ns)
            continue;
        read_some(slow, (uint64_t)((double)slow->options->rate_bytes * (double)spent_ns / 1e9));
        tick_ns += TICK_NS;
        if (spent_ns >= sample_ns) {
            tell(slow, "sample", (double)spent_ns / 1e9);
            sample_ns += SAMPLE_NS;
        }
    }
    tell(slow, "done", (double)spent_ns / 1e9);
}

void load_slow(const struct load_options *options) {
    static struct slow slow;
    slow.options = options;
    slow.server = &options->servers[0];
    int listener = listen_at(options->upstream_port);
    printf("{\"state\": \"listening\"}\n");
    fflush(stdout);
    char line[64];
    if (fgets(line, sizeof line, stdin) == NULL || strcmp(line, "go\n") != 0)
        load_fail(NULL, "'go' was expected on stdin");
    connect_through(&slow, listener);
    run(&slow);
    close(slow.out);
    close(slow.in);
    close(listener);
}
