/* SPDX-License-Identifier: MIT */
/*
 * Connections that come and go: each slot connects, sends, receives the echo, closes, and begins anew. The close is
 * the load's, and so is TIME_WAIT: local addresses rotate, that ports do not run out.
 */
#include "load.h"
#include "support/bytes.h"

#include <errno.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

struct load_slot {
    int fd;
    size_t received;
    uint64_t began_ns;
    uint64_t sequence;
    uint8_t *copy; /* (verify) */
};

static void receive(struct load *load, unsigned index, struct io_uring_sqe *sqe) {
    io_uring_prep_recv(sqe, load->slots[index].fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = LOAD_GROUP;
    io_uring_sqe_set_data64(sqe, load_tag(index, LOAD_RECEIVE));
}

/* The three steps are linked: the load hears of the last one only, or of what failed. */
static void begin(struct load *load, unsigned index, const struct sockaddr_in *address) {
    struct load_slot *slot = &load->slots[index];
    slot->sequence = load->sequence++;
    slot->fd = load_socket(slot->sequence);
    slot->received = 0;
    const uint8_t *data = load->pattern;
    if (slot->copy != NULL) {
        test_fill(load->options->seed + slot->sequence, 0, slot->copy, load->options->size);
        data = slot->copy;
    }
    struct io_uring_sqe *sqe = load_ring_sqe(&load->ring, 3);
    io_uring_prep_connect(sqe, slot->fd, (const struct sockaddr *)address, sizeof *address);
    sqe->flags |= IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS;
    io_uring_sqe_set_data64(sqe, load_tag(index, LOAD_CONNECT));
    sqe = io_uring_get_sqe(&load->ring.uring);
    io_uring_prep_send(sqe, slot->fd, data, load->options->size, MSG_WAITALL | MSG_NOSIGNAL);
    sqe->flags |= IOSQE_IO_LINK | IOSQE_CQE_SKIP_SUCCESS;
    io_uring_sqe_set_data64(sqe, load_tag(index, LOAD_SEND));
    sqe = io_uring_get_sqe(&load->ring.uring);
    receive(load, index, sqe);
    slot->began_ns = load_now_ns(CLOCK_MONOTONIC);
}

static void end(struct load *load, unsigned index) {
    struct load_slot *slot = &load->slots[index];
    struct io_uring_sqe *sqe = load_ring_sqe(&load->ring, 1);
    io_uring_prep_close(sqe, slot->fd);
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    io_uring_sqe_set_data64(sqe, load_tag(index, LOAD_CLOSE));
    if (load->recording)
        load_histogram_add(&load->latency_ns, load->now_ns - slot->began_ns);
    load->operations++;
    load->idle[load->idle_count++] = index;
    load->busy--;
}

static void on_bytes(struct load *load, unsigned index, const uint8_t *data, size_t size) {
    struct load_slot *slot = &load->slots[index];
    if (slot->received + size > load->options->size)
        load_fail(load->server, "more came back than was sent");
    if (load->options->verify) {
        int64_t at = test_differs(load->options->seed + slot->sequence, slot->received, data, size);
        if (at >= 0)
            load_fail(load->server, "wrong data: byte %lld of a new connection", (long long)at);
        load->verified_bytes += size;
    }
    load->progress_ns = load->now_ns;
    load->bytes += size;
    slot->received += size;
}

static void complete(struct load *load, struct io_uring_cqe *cqe) {
    unsigned index = (unsigned)(cqe->user_data >> 8);
    enum load_kind kind = (enum load_kind)(cqe->user_data & 0xFF);
    if (kind != LOAD_RECEIVE)
        load_fail(load->server, "%s: %s (%d)", kind == LOAD_CONNECT ? "no connection" : "a send or close",
                  cqe->res < 0 ? strerror(-cqe->res) : "incomplete", cqe->res);
    if (cqe->res > 0)
        on_bytes(load, index, load_ring_data(&load->ring, cqe), (size_t)cqe->res);
    else if (cqe->res == 0)
        load_fail(load->server, "has closed a connection before its answer");
    else if (cqe->res != -ENOBUFS)
        load_fail(load->server, "a new connection is lost: %s", strerror(-cqe->res));
    load_ring_recycle(&load->ring, cqe);
    if (load->slots[index].received < load->options->size)
        receive(load, index, load_ring_sqe(&load->ring, 1));
    else
        end(load, index);
}

/* Slots that ended in the turn begin anew. */
static void flush(struct load *load) {
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(load->server->port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    while (load->idle_count > 0 && !load->stopping) {
        begin(load, load->idle[--load->idle_count], &address);
        load->busy++;
    }
    load_ring_submit(&load->ring); /* which has copied the address */
}

static void start(struct load *load, const struct load_server *server) {
    load->server = server;
    load->stopping = false;
}

static void stop(struct load *load) {
    load->stopping = true;
}

void load_churn_open(struct load *load) {
    load->slots = load_allocate(load->options->connections, sizeof *load->slots);
    load->idle = load_allocate(load->options->connections, sizeof *load->idle);
    load->idle_count = load->options->connections;
    for (unsigned i = 0; i < load->options->connections; i++) {
        load->idle[i] = i;
        if (load->options->verify)
            load->slots[i].copy = load_allocate(1, load->options->size);
    }
}

const struct load_engine load_churn = { .start = start, .complete = complete, .flush = flush, .stop = stop };
