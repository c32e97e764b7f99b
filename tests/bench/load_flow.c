/* SPDX-License-Identifier: MIT */
/*
 * Load on connections that stay: echo and proxy (each connection keeps so many messages in flight), sink (endless
 * sends), source (endless receives), hold and idle (messages when load_held.c says so).
 *
 * Where answers are compared, a connection has one send on its way at a time, from a copy of its own. Where they are
 * not, all connections send the same bytes from one place, so that it does not matter which of two sends that wait
 * for room goes on first, and nobody needs to hear of a send that went well.
 */
#include "load.h"
#include "support/bytes.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { OPENING_MAX = 128, COPY_MAX = 256 * 1024 };

struct load_connection {
    const struct load_server *server;
    unsigned index; /* also of its registered file */
    int fd;
    struct sockaddr_in local;
    uint64_t sent;
    uint64_t received;
    size_t message;     /* the size of those that are in flight */
    size_t partial;     /* of the message that comes back */
    unsigned in_flight; /* messages */
    unsigned due;       /* messages that are handed over at the end of the turn */
    uint64_t unsent;    /* bytes that were handed over and given to no send yet */
    bool listed;        /* in the list of those to which something is to be sent */
    bool sending;       /* (verify, sink, hold) */
    bool reading;
    bool waiting; /* counted in busy */
    unsigned oldest;
    uint64_t *handed_ns; /* of each message in flight, a ring */
    uint8_t *copy;       /* (verify) */
};

static bool answered(const struct load *load) {
    enum load_workload workload = load->options->workload;
    return workload == LOAD_ECHO || workload == LOAD_PROXY || workload == LOAD_IDLE;
}

/* ---- opening ---------------------------------------------------------------------------------------------- */

static void receive(struct load *load, struct load_connection *connection) {
    struct io_uring_sqe *sqe = load_ring_sqe(&load->ring, 1);
    io_uring_prep_recv_multishot(sqe, (int)connection->index, NULL, 0, 0);
    sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
    sqe->flags |= IOSQE_FIXED_FILE | IOSQE_BUFFER_SELECT;
    sqe->buf_group = LOAD_GROUP;
    io_uring_sqe_set_data64(sqe, load_tag(connection->index, LOAD_RECEIVE));
    connection->reading = true;
}

static void begin_connect(struct load *load, struct load_connection *connection) {
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(connection->server->port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    connection->fd = load_socket(connection->index);
    int r = io_uring_register_files_update(&load->ring.uring, connection->index, &connection->fd, 1);
    if (r < 0)
        load_fail(NULL, "registering a file: %s", strerror(-r));
    struct io_uring_sqe *sqe = load_ring_sqe(&load->ring, 1);
    io_uring_prep_connect(sqe, connection->fd, (const struct sockaddr *)&address, sizeof address);
    io_uring_sqe_set_data64(sqe, load_tag(connection->index, LOAD_CONNECT));
    load_ring_submit(&load->ring); /* which has copied the address */
    load->busy++;
}

static void on_connected(struct load *load, struct load_connection *connection, int result) {
    if (result < 0)
        load_fail(connection->server, "no connection: %s", strerror(-result));
    load->busy--;
    load->connected++;
    socklen_t size = sizeof connection->local;
    if (getsockname(connection->fd, (struct sockaddr *)&connection->local, &size) < 0)
        load_fail(NULL, "a socket's address: %s", strerror(errno));
    load->progress_ns = load->now_ns;
    if (load->options->workload != LOAD_SOURCE)
        receive(load, connection);
}

static void prepare(struct load *load, unsigned index) {
    const struct load_options *options = load->options;
    struct load_connection *connection = &load->connections[index];
    connection->index = index;
    connection->fd = -1;
    connection->message = options->size;
    if (answered(load))
        connection->handed_ns = load_allocate(options->depth, sizeof *connection->handed_ns);
    if (options->verify && answered(load))
        connection->copy = load_allocate(1, COPY_MAX);
}

void load_flow_open(struct load *load) {
    const struct load_options *options = load->options;
    load->connection_count = options->connections * options->server_count;
    load->connections = load_allocate(load->connection_count, sizeof *load->connections);
    load->due = load_allocate(load->connection_count, sizeof(struct load_connection *));
    load->progress_ns = load_now_ns(CLOCK_MONOTONIC);
    unsigned next = 0;
    while (load->connected < load->connection_count) {
        for (; load->busy < OPENING_MAX && next < load->connection_count; next++) {
            prepare(load, next);
            load->server = load->connections[next].server = &options->servers[next / options->connections];
            begin_connect(load, &load->connections[next]);
        }
        load_turn(load, load->now_ns + UINT64_C(500000000));
        load_watch_silence(load);
    }
}

const struct sockaddr_in *load_flow_local(const struct load *load, unsigned index) {
    return &load->connections[index].local;
}

/* ---- sending ---------------------------------------------------------------------------------------------- */

static void list(struct load *load, struct load_connection *connection) {
    if (connection->listed)
        return;
    connection->listed = true;
    load->due[load->due_count++] = connection;
}

static void wait_for(struct load *load, struct load_connection *connection, bool waiting) {
    if (connection->waiting == waiting)
        return;
    connection->waiting = waiting;
    load->busy += waiting ? 1 : -1U;
}

static void send_bytes(struct load *load, struct load_connection *connection, const void *data, size_t size) {
    struct io_uring_sqe *sqe = load_ring_sqe(&load->ring, 1);
    io_uring_prep_send(sqe, (int)connection->index, data, size, MSG_WAITALL | MSG_NOSIGNAL);
    sqe->flags |= IOSQE_FIXED_FILE;
    if (!connection->sending)
        sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    io_uring_sqe_set_data64(sqe, load_tag(connection->index, LOAD_SEND));
    connection->unsent -= size;
    connection->sent += size;
}

static void send_what_is_due(struct load *load, struct load_connection *connection) {
    bool one_at_a_time = load->options->verify || !answered(load);
    while (connection->unsent > 0 && !connection->sending) {
        size_t limit = connection->copy != NULL ? COPY_MAX : load->pattern_size;
        size_t size = connection->unsent < limit ? (size_t)connection->unsent : limit;
        const uint8_t *data = load->pattern;
        if (connection->copy != NULL) {
            test_fill(load->options->seed + connection->index, connection->sent, connection->copy, size);
            data = connection->copy;
        }
        connection->sending = one_at_a_time;
        send_bytes(load, connection, data, size);
    }
}

/* All that became due in the turn goes out as one. */
static void flush(struct load *load) {
    if (load->due_count == 0)
        return;
    const unsigned depth = load->options->depth;
    uint64_t now_ns = load_now_ns(CLOCK_MONOTONIC);
    for (unsigned i = 0; i < load->due_count; i++) {
        struct load_connection *connection = load->due[i];
        connection->listed = false;
        connection->unsent += (uint64_t)connection->due * connection->message;
        for (; connection->due > 0; connection->due--) {
            unsigned place = connection->oldest + connection->in_flight++;
            connection->handed_ns[place < depth ? place : place - depth] = now_ns;
        }
        send_what_is_due(load, connection);
    }
    load->due_count = 0;
}

/* One message on one connection: whose answer is awaited, if the server answers. */
void load_flow_send(struct load *load, unsigned index, size_t bytes) {
    struct load_connection *connection = &load->connections[index];
    wait_for(load, connection, true);
    connection->message = bytes;
    if (answered(load))
        connection->due = 1;
    else
        connection->unsent += bytes;
    list(load, connection);
}

static void on_sent(struct load *load, struct load_connection *connection, int result) {
    if (result < 0)
        load_fail(connection->server, "a send: %s", strerror(-result));
    if (!connection->sending) /* only of what failed there is word */
        load_fail(connection->server, "a send came to an end after %d bytes", result);
    load->progress_ns = load->now_ns;
    connection->sending = false;
    if (load->options->workload == LOAD_SINK) {
        load->bytes += (uint64_t)result;
        if (!load->stopping)
            connection->unsent = load->options->size;
    }
    if (connection->unsent > 0)
        list(load, connection);
    else if (!answered(load))
        wait_for(load, connection, false);
}

/* ---- receiving -------------------------------------------------------------------------------------------- */

static void compare(struct load *load, struct load_connection *connection, const void *data, size_t size) {
    int64_t at = test_differs(load->options->seed + connection->index, connection->received, data, size);
    if (at >= 0)
        load_fail(connection->server, "wrong data: byte %lld of connection %u", (long long)at, connection->index);
    load->verified_bytes += size;
}

static void on_messages(struct load *load, struct load_connection *connection, size_t size) {
    const unsigned depth = load->options->depth;
    if (connection->partial + size > (uint64_t)connection->in_flight * connection->message)
        load_fail(connection->server, "more came back than was sent, on connection %u", connection->index);
    connection->partial += size;
    while (connection->partial >= connection->message && connection->in_flight > 0) {
        connection->partial -= connection->message;
        if (load->recording)
            load_histogram_add(&load->latency_ns, load->now_ns - connection->handed_ns[connection->oldest]);
        if (++connection->oldest == depth)
            connection->oldest = 0;
        connection->in_flight--;
        load->operations++;
        if (!load->stopping)
            connection->due++;
    }
    if (connection->due > 0)
        list(load, connection);
    else if (connection->in_flight == 0)
        wait_for(load, connection, false);
}

static void on_bytes(struct load *load, struct load_connection *connection, const uint8_t *data, size_t size) {
    load->progress_ns = load->now_ns;
    switch (load->options->workload) {
    case LOAD_ECHO:
    case LOAD_PROXY:
    case LOAD_IDLE:
        if (load->options->verify)
            compare(load, connection, data, size);
        load->bytes += size;
        on_messages(load, connection, size);
        break;
    case LOAD_SOURCE:
        load->bytes += size;
        load->operations = load->bytes / load->options->size;
        break;
    case LOAD_SINK:
        load_fail(connection->server, "answers, as a sink");
    case LOAD_HOLD:
    case LOAD_CHURN:
    case LOAD_SLOW:
        break;
    }
    connection->received += size;
}

static void on_received(struct load *load, struct load_connection *connection, const struct io_uring_cqe *cqe) {
    bool more = (cqe->flags & IORING_CQE_F_MORE) != 0;
    connection->reading = more;
    if (cqe->res > 0)
        on_bytes(load, connection, load_ring_data(&load->ring, cqe), (size_t)cqe->res);
    else if (cqe->res == 0)
        load_fail(connection->server, "has closed connection %u", connection->index);
    else if (cqe->res != -ENOBUFS && cqe->res != -ECANCELED)
        load_fail(connection->server, "connection %u is lost: %s", connection->index, strerror(-cqe->res));
    load_ring_recycle(&load->ring, cqe);
    if (more)
        return;
    bool wanted = load->options->workload != LOAD_SOURCE || !load->stopping;
    if (wanted && cqe->res != -ECANCELED)
        receive(load, connection);
    else
        wait_for(load, connection, false);
}

/* ---- slices ----------------------------------------------------------------------------------------------- */

static void cancel(struct load *load, struct load_connection *connection) {
    struct io_uring_sqe *sqe = load_ring_sqe(&load->ring, 1);
    io_uring_prep_cancel64(sqe, load_tag(connection->index, LOAD_RECEIVE), 0);
    io_uring_sqe_set_data64(sqe, load_tag(connection->index, LOAD_CANCEL));
}

static void start(struct load *load, const struct load_server *server) {
    load->server = server;
    load->stopping = false;
    for (unsigned i = 0; i < load->options->connections; i++) {
        struct load_connection *connection = &load->connections[server->first + i];
        wait_for(load, connection, true);
        if (load->options->workload == LOAD_SOURCE) {
            receive(load, connection);
            continue;
        }
        if (load->options->workload == LOAD_SINK)
            connection->unsent = load->options->size;
        else
            connection->due = load->options->depth;
        list(load, connection);
    }
}

/* What was to begin at the turn's end does not begin; of what has begun the rest is sent. */
static void stop(struct load *load) {
    load->stopping = true;
    for (unsigned i = 0; i < load->due_count; i++) {
        struct load_connection *connection = load->due[i];
        connection->due = 0;
        if (load->options->workload == LOAD_SINK)
            connection->unsent = 0;
        if (connection->in_flight == 0 && connection->unsent == 0)
            wait_for(load, connection, false);
    }
    if (load->options->workload != LOAD_SOURCE)
        return;
    for (unsigned i = 0; i < load->options->connections; i++)
        cancel(load, &load->connections[load->server->first + i]);
}

static void complete(struct load *load, struct io_uring_cqe *cqe) {
    struct load_connection *connection = &load->connections[cqe->user_data >> 8];
    switch ((enum load_kind)(cqe->user_data & 0xFF)) {
    case LOAD_CONNECT:
        on_connected(load, connection, cqe->res);
        break;
    case LOAD_RECEIVE:
        on_received(load, connection, cqe);
        break;
    case LOAD_SEND:
        on_sent(load, connection, cqe->res);
        break;
    case LOAD_CANCEL:
        if (cqe->res == -EALREADY && connection->reading)
            cancel(load, connection);
        break;
    case LOAD_CLOSE:
        break;
    }
}

const struct load_engine load_flow = { .start = start, .complete = complete, .flush = flush, .stop = stop };

/* The ends are said while the ring still receives; the ring holds the files, too, and goes first. */
void load_flow_close(struct load *load) {
    for (unsigned i = 0; i < load->connection_count; i++)
        shutdown(load->connections[i].fd, SHUT_RDWR);
    load_ring_close(&load->ring);
    for (unsigned i = 0; i < load->connection_count; i++)
        close(load->connections[i].fd);
}
