/* SPDX-License-Identifier: MIT */
/*
 * The benchmark's servers over libev: two watchers a connection, started and stopped as there is something to wait
 * for; recv into one buffer for all connections, so that it stays in the cache, send at once, and only what the
 * socket did not take is copied. While any of it waits, nothing is read. Echo, sink and source.
 */
#include "../server.h"

#include <errno.h>
#include <ev.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SOURCE_WRITES = SERVER_QUEUE / SERVER_WRITE_SIZE };

typedef struct connection {
    ev_io readable;
    ev_io writable;
    char *rest; /* what the socket did not take, and nothing is read meanwhile */
    size_t rest_size;
    size_t sent; /* of it; or of the source's block */
} connection;

static server_options options;
static char hot[SERVER_RECEIVE_SIZE];

static void *allocated(void *memory) {
    if (memory == NULL)
        server_die("no memory");
    return memory;
}

static void connection_free(struct ev_loop *loop, connection *c) {
    ev_io_stop(loop, &c->readable);
    ev_io_stop(loop, &c->writable);
    close(c->readable.fd);
    free(c->rest);
    free(c);
}

static bool would_block(void) {
    return errno == EAGAIN || errno == EINTR;
}

/* Returns how much the socket took, or frees c and returns -1. */
static ssize_t send_now(struct ev_loop *loop, connection *c, const void *bytes, size_t size) {
    ssize_t sent = send(c->writable.fd, bytes, size, MSG_NOSIGNAL);
    if (sent >= 0)
        return sent;
    if (would_block())
        return 0;
    connection_free(loop, c);
    return -1;
}

static void send_all(struct ev_loop *loop, connection *c, const char *bytes, size_t size) {
    ssize_t sent = send_now(loop, c, bytes, size);
    if (sent < 0 || (size_t)sent == size)
        return;
    c->rest_size = size - (size_t)sent;
    c->rest = allocated(malloc(c->rest_size));
    memcpy(c->rest, bytes + sent, c->rest_size);
    c->sent = 0;
    ev_io_stop(loop, &c->readable);
    ev_io_start(loop, &c->writable);
}

static void send_rest(struct ev_loop *loop, connection *c) {
    ssize_t sent = send_now(loop, c, c->rest + c->sent, c->rest_size - c->sent);
    if (sent < 0)
        return;
    c->sent += (size_t)sent;
    if (c->sent < c->rest_size)
        return;
    free(c->rest);
    c->rest = NULL;
    ev_io_stop(loop, &c->writable);
    ev_io_start(loop, &c->readable);
}

/* So much of a turn is one connection's, also if its socket would take more. */
static void send_blocks(struct ev_loop *loop, connection *c) {
    for (int i = 0; i < SOURCE_WRITES; i++) {
        size_t size = sizeof server_block - c->sent;
        ssize_t sent = send_now(loop, c, server_block + c->sent, size);
        if (sent < 0)
            return;
        c->sent = (c->sent + (size_t)sent) % sizeof server_block;
        if ((size_t)sent < size)
            return;
    }
}

static void on_readable(struct ev_loop *loop, ev_io *watcher, int what) {
    (void)what;
    connection *c = watcher->data;
    ssize_t size = recv(watcher->fd, hot, sizeof hot, 0);
    if (size == 0 || (size < 0 && !would_block()))
        connection_free(loop, c);
    else if (size > 0 && options.work == SERVER_ECHO)
        send_all(loop, c, hot, (size_t)size);
}

static void on_writable(struct ev_loop *loop, ev_io *watcher, int what) {
    (void)what;
    if (options.work == SERVER_SOURCE)
        send_blocks(loop, watcher->data);
    else
        send_rest(loop, watcher->data);
}

static void on_acceptable(struct ev_loop *loop, ev_io *watcher, int what) {
    (void)what;
    int fd;
    while ((fd = accept4(watcher->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        connection *c = allocated(calloc(1, sizeof *c));
        ev_io_init(&c->readable, on_readable, server_accepted(fd), EV_READ);
        ev_io_init(&c->writable, on_writable, fd, EV_WRITE);
        c->readable.data = c;
        c->writable.data = c;
        ev_io_start(loop, options.work == SERVER_SOURCE ? &c->writable : &c->readable);
    }
    if (!would_block() && errno != ECONNABORTED)
        server_die("accept: %s", strerror(errno));
}

static const char *backend_name(struct ev_loop *loop) {
    switch (ev_backend(loop)) {
    case EVBACKEND_EPOLL:
        return "epoll";
    case EVBACKEND_POLL:
        return "poll";
    case EVBACKEND_SELECT:
        return "select";
    default:
        return "other";
    }
}

int main(int argc, char **argv) {
    static const char *const variants[] = { "ev", NULL };
    static ev_io listener;
    server_arguments(argc, argv, variants, &options);
    if (options.work == SERVER_PROXY || options.work == SERVER_HOLD)
        server_unsupported("no workload '%s'", options.workload);
    struct ev_loop *loop = allocated(ev_loop_new(EVFLAG_AUTO | EVFLAG_NOENV));
    ev_io_init(&listener, on_acceptable, server_listen(&options), EV_READ);
    ev_io_start(loop, &listener);
    server_ready(backend_name(loop));
    return ev_run(loop, 0);
}
