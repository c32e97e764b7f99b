/* SPDX-License-Identifier: MIT */
/*
 * The benchmark's servers over libevent, in two variants:
 *
 *   bufferevent   as libevent's book and samples do it: what is read moves from an input evbuffer to an output
 *                 evbuffer, uncopied; while too much is in one, a low-water mark tells when there is room (as in
 *                 le-proxy). It reads at most 4096 bytes at once: 2.1 has no call to change that.
 *   raw           libevent as an event loop alone: an event for each direction of each descriptor,
 *                 level-triggered, recv into one buffer for all connections, so that it stays in the cache, send
 *                 at once, and only what the socket did not take is copied. While any of it waits, nothing is
 *                 read.
 *
 * Echo is a proxy whose other side is the same connection. The raw variant has no proxy.
 */
#include "../server.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/listener.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    SOURCE_WRITES = SERVER_QUEUE / SERVER_WRITE_SIZE,
    HOLD_LEAST = 64,                                      /* what is allocated for a message's first bytes */
    HOLD_ANSWERS = SERVER_RECEIVE_SIZE / SERVER_HOLD_SIZE /* at most, to one read */
};

static server_options options;
static struct event_base *base;

static void *allocated(void *memory) {
    if (memory == NULL)
        server_die("no memory");
    return memory;
}

/* ==== bufferevent ====================================================================================== */

/* Where a proxy has two of these, they are freed together. */
typedef struct peer {
    struct bufferevent *events;
    struct peer *other; /* where what is read from this one is written to */
    bool shut;          /* nothing more is written to it */
} peer;

static void forward(struct bufferevent *events, void *userdata);
static void on_event(struct bufferevent *events, short what, void *userdata);

static peer *peer_new(int fd) {
    peer *p = allocated(calloc(1, sizeof *p));
    p->events = allocated(bufferevent_socket_new(base, fd, BEV_OPT_CLOSE_ON_FREE));
    p->other = p;
    return p;
}

static void peer_free(peer *p) {
    bufferevent_free(p->events);
    free(p);
}

static void drop(peer *p) {
    if (p->other != p)
        peer_free(p->other);
    peer_free(p);
}

static size_t waiting_for(const peer *p) {
    return evbuffer_get_length(bufferevent_get_output(p->events));
}

/* Nothing more is to be written to p. */
static void shut(peer *p) {
    (void)shutdown(bufferevent_getfd(p->events), SHUT_WR);
    p->shut = true;
    if (p->other->shut)
        drop(p);
}

static void on_all_written(struct bufferevent *events, void *userdata) {
    (void)events;
    peer *p = userdata;
    if (waiting_for(p) == 0)
        shut(p);
}

/* There is room again for what p's other sends. */
static void on_room(struct bufferevent *events, void *userdata) {
    peer *p = userdata;
    if (waiting_for(p) > SERVER_PROXY_QUEUE / 2)
        return;
    bufferevent_setwatermark(events, EV_WRITE, 0, 0);
    bufferevent_setcb(events, forward, NULL, on_event, p);
    bufferevent_enable(p->other->events, EV_READ);
}

static void forward(struct bufferevent *events, void *userdata) {
    peer *p = userdata, *other = p->other;
    evbuffer_add_buffer(bufferevent_get_output(other->events), bufferevent_get_input(events));
    if (waiting_for(other) <= SERVER_PROXY_QUEUE)
        return;
    bufferevent_disable(events, EV_READ);
    bufferevent_setwatermark(other->events, EV_WRITE, SERVER_PROXY_QUEUE / 2, 0);
    bufferevent_setcb(other->events, forward, on_room, on_event, other);
}

static void on_event(struct bufferevent *events, short what, void *userdata) {
    (void)events;
    peer *p = userdata, *other = p->other;
    if ((what & BEV_EVENT_CONNECTED) != 0) {
        bufferevent_enable(p->events, EV_READ);
        bufferevent_enable(other->events, EV_READ);
    } else if ((what & BEV_EVENT_EOF) == 0 || (what & BEV_EVENT_WRITING) != 0) {
        drop(p);
    } else if (waiting_for(other) == 0) {
        shut(other);
    } else {
        bufferevent_setwatermark(other->events, EV_WRITE, 0, 0);
        bufferevent_setcb(other->events, forward, on_all_written, on_event, other);
    }
}

static void start_proxy(peer *p) {
    int fd = server_connect(options.upstream);
    if (fd < 0)
        server_die("upstream: %s", strerror(errno));
    peer *upstream = peer_new(fd);
    upstream->other = p;
    p->other = upstream;
    bufferevent_setcb(p->events, forward, NULL, on_event, p);
    bufferevent_setcb(upstream->events, forward, NULL, on_event, upstream);
    /* Without an address: the socket is connecting already. */
    if (bufferevent_socket_connect(upstream->events, NULL, 0) < 0)
        drop(p);
}

static void on_sink(struct bufferevent *events, void *userdata) {
    (void)userdata;
    struct evbuffer *input = bufferevent_get_input(events);
    evbuffer_drain(input, evbuffer_get_length(input));
}

static void on_source_low(struct bufferevent *events, void *userdata) {
    peer *p = userdata;
    struct evbuffer *output = bufferevent_get_output(events);
    while (waiting_for(p) + sizeof server_block <= SERVER_QUEUE)
        if (evbuffer_add_reference(output, server_block, sizeof server_block, NULL, NULL) < 0)
            server_die("no memory");
}

/* The read low-water mark lets incomplete messages wait in the input. */
static void on_hold(struct bufferevent *events, void *userdata) {
    (void)userdata;
    struct evbuffer *input = bufferevent_get_input(events);
    while (evbuffer_get_length(input) >= SERVER_HOLD_SIZE) {
        evbuffer_drain(input, SERVER_HOLD_SIZE);
        bufferevent_write(events, "", 1);
    }
}

static void on_accept_buffered(struct evconnlistener *listener, evutil_socket_t fd, struct sockaddr *address,
                               int length, void *userdata) {
    (void)listener, (void)address, (void)length, (void)userdata;
    peer *p = peer_new(server_accepted(fd));
    switch (options.work) {
    case SERVER_PROXY:
        start_proxy(p);
        return;
    case SERVER_SOURCE:
        bufferevent_setwatermark(p->events, EV_WRITE, SERVER_QUEUE - SERVER_WRITE_SIZE, 0);
        bufferevent_setcb(p->events, NULL, on_source_low, on_event, p);
        on_source_low(p->events, p);
        return;
    case SERVER_SINK:
        bufferevent_setcb(p->events, on_sink, NULL, on_event, p);
        break;
    case SERVER_HOLD:
        bufferevent_setwatermark(p->events, EV_READ, SERVER_HOLD_SIZE, 0);
        bufferevent_setcb(p->events, on_hold, NULL, on_event, p);
        break;
    case SERVER_ECHO:
        bufferevent_setcb(p->events, forward, NULL, on_event, p);
        break;
    }
    bufferevent_enable(p->events, EV_READ);
}

static void on_accept_error(struct evconnlistener *listener, void *userdata) {
    (void)listener, (void)userdata;
    server_die("accept: %s", evutil_socket_error_to_string(EVUTIL_SOCKET_ERROR()));
}

static void listen_buffered(void) {
    /* A backlog of 0: it listens already. */
    struct evconnlistener *listener =
        evconnlistener_new(base, on_accept_buffered, NULL, LEV_OPT_CLOSE_ON_FREE, 0, server_listen(&options));
    evconnlistener_set_error_cb(allocated(listener), on_accept_error);
}

/* ==== raw ============================================================================================== */

typedef struct connection {
    int fd;
    struct event *readable;
    struct event *writable;
    char *rest; /* what the socket did not take, and nothing is read meanwhile */
    size_t rest_size;
    size_t sent; /* of it; or of the source's block */
    char *held;
    size_t held_size;
    size_t held_capacity;
} connection;

static char hot[SERVER_RECEIVE_SIZE];

static void connection_free(connection *c) {
    event_free(c->readable);
    event_free(c->writable);
    close(c->fd);
    free(c->rest);
    free(c->held);
    free(c);
}

static bool would_block(void) {
    return errno == EAGAIN || errno == EINTR;
}

/* Returns how much the socket took, or frees c and returns -1. */
static ssize_t send_now(connection *c, const void *bytes, size_t size) {
    ssize_t sent = send(c->fd, bytes, size, MSG_NOSIGNAL);
    if (sent >= 0)
        return sent;
    if (would_block())
        return 0;
    connection_free(c);
    return -1;
}

static void send_all(connection *c, const char *bytes, size_t size) {
    ssize_t sent = send_now(c, bytes, size);
    if (sent < 0 || (size_t)sent == size)
        return;
    c->rest_size = size - (size_t)sent;
    c->rest = allocated(malloc(c->rest_size));
    memcpy(c->rest, bytes + sent, c->rest_size);
    c->sent = 0;
    event_del(c->readable);
    event_add(c->writable, NULL);
}

static void send_rest(connection *c) {
    ssize_t sent = send_now(c, c->rest + c->sent, c->rest_size - c->sent);
    if (sent < 0)
        return;
    c->sent += (size_t)sent;
    if (c->sent < c->rest_size)
        return;
    free(c->rest);
    c->rest = NULL;
    event_del(c->writable);
    event_add(c->readable, NULL);
}

/* So much of a turn is one connection's, also if its socket would take more. */
static void send_blocks(connection *c) {
    for (int i = 0; i < SOURCE_WRITES; i++) {
        size_t size = sizeof server_block - c->sent;
        ssize_t sent = send_now(c, server_block + c->sent, size);
        if (sent < 0)
            return;
        c->sent = (c->sent + (size_t)sent) % sizeof server_block;
        if ((size_t)sent < size)
            return;
    }
}

static void keep(connection *c, const char *bytes, size_t size) {
    size_t capacity = c->held_capacity > 0 ? c->held_capacity : HOLD_LEAST;
    while (capacity < c->held_size + size)
        capacity *= 2;
    if (capacity > c->held_capacity) {
        c->held = allocated(realloc(c->held, capacity));
        c->held_capacity = capacity;
    }
    memcpy(c->held + c->held_size, bytes, size);
    c->held_size += size;
}

static void hold(connection *c, const char *bytes, size_t size) {
    static const char answers[HOLD_ANSWERS + 1];
    unsigned complete = 0;
    while (c->held_size + size >= SERVER_HOLD_SIZE) {
        size_t lacking = SERVER_HOLD_SIZE - c->held_size;
        bytes += lacking;
        size -= lacking;
        free(c->held);
        c->held = NULL;
        c->held_size = c->held_capacity = 0;
        complete++;
    }
    if (size > 0)
        keep(c, bytes, size);
    if (complete > 0)
        send_all(c, answers, complete);
}

static void on_readable(evutil_socket_t fd, short what, void *userdata) {
    (void)what;
    connection *c = userdata;
    ssize_t size = recv(fd, hot, sizeof hot, 0);
    if (size == 0 || (size < 0 && !would_block()))
        connection_free(c);
    else if (size < 0 || options.work == SERVER_SINK)
        return;
    else if (options.work == SERVER_HOLD)
        hold(c, hot, (size_t)size);
    else
        send_all(c, hot, (size_t)size);
}

static void on_writable(evutil_socket_t fd, short what, void *userdata) {
    (void)fd, (void)what;
    if (options.work == SERVER_SOURCE)
        send_blocks(userdata);
    else
        send_rest(userdata);
}

static void start_raw(int fd) {
    connection *c = allocated(calloc(1, sizeof *c));
    c->fd = server_accepted(fd);
    c->readable = allocated(event_new(base, fd, EV_READ | EV_PERSIST, on_readable, c));
    c->writable = allocated(event_new(base, fd, EV_WRITE | EV_PERSIST, on_writable, c));
    event_add(options.work == SERVER_SOURCE ? c->writable : c->readable, NULL);
}

static void on_acceptable(evutil_socket_t listener, short what, void *userdata) {
    (void)what, (void)userdata;
    int fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0)
        start_raw(fd);
    if (!would_block() && errno != ECONNABORTED)
        server_die("accept: %s", strerror(errno));
}

static void listen_raw(void) {
    if (options.work == SERVER_PROXY)
        server_unsupported("no proxy in variant raw");
    struct event *listener =
        allocated(event_new(base, server_listen(&options), EV_READ | EV_PERSIST, on_acceptable, NULL));
    event_add(listener, NULL);
}

/* ======================================================================================================= */

int main(int argc, char **argv) {
    static const char *const variants[] = { "bufferevent", "raw", NULL };
    server_arguments(argc, argv, variants, &options);
    bool raw = server_is_variant(&options, "raw");
    struct event_config *config = allocated(event_config_new());
    /* One thread: no locks. What changes twice in a turn is told to the kernel once. */
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    if (raw)
        event_config_set_flag(config, EVENT_BASE_FLAG_EPOLL_USE_CHANGELIST);
    base = event_base_new_with_config(config);
    event_config_free(config);
    if (base == NULL)
        server_die("no event base");
    if (raw)
        listen_raw();
    else
        listen_buffered();
    /* "epoll (with changelist)" says no more than "epoll" here. */
    server_ready(strncmp(event_base_get_method(base), "epoll", 5) == 0 ? "epoll" : event_base_get_method(base));
    return event_base_dispatch(base);
}
