/* SPDX-License-Identifier: MIT */
/*
 * epoll, written by hand: what a program does that needs neither a library nor io_uring. One receive buffer serves
 * all connections and stays in the cache; what has been received is sent at once, and only what the socket
 * does not take is copied, into a queue of that connection, which is gone when it is empty.
 *
 *   level   reading waits for EPOLLIN, writing, where something is queued, for EPOLLOUT; a receive an event
 *   edge    both are registered once; it is read until there is nothing left, as is told by a receive that brings
 *           less than there was room for (after an end has been told: by the end)
 *
 * In a proxy each connection's peer is the other one, in an echo itself, so both are the same program.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../server.h"

enum {
    EVENTS = 512,
    AT_ONCE = 16, /* receives or sends of one connection before it is the others' turn */
    QUEUE_LOW = SERVER_PROXY_QUEUE / 4
};

typedef struct connection {
    int fd;
    uint32_t events;         /* registered */
    struct connection *peer; /* whom its bytes go to, or NULL */
    struct connection *next_dead;
    uint8_t *queue; /* bytes from sent to queued, of capacity */
    size_t sent, queued, capacity;
    uint8_t *held; /* of a message that is not whole */
    uint32_t held_size;
    bool is_paused; /* its peer's queue is long */
    bool has_ended; /* no more will be received */
    bool has_shut;  /* and none sent */
    bool is_dead;   /* freed when the events at hand have been looked at */
} connection;

static server_options options;
static bool is_edge;
static int epoll, listener;
static uint8_t buffer[SERVER_RECEIVE_SIZE];
static connection *dead;

/* ---- connections ------------------------------------------------------------------------------------ */

static void control(int operation, connection *c, uint32_t events) {
    struct epoll_event event = { .events = events, .data.ptr = c };
    c->events = events;
    if (epoll_ctl(epoll, operation, c->fd, &event) < 0)
        server_die("epoll_ctl: %s", strerror(errno));
}

static connection *connection_new(int fd) {
    connection *c = calloc(1, sizeof *c);
    if (c == NULL)
        server_die("no memory");
    c->fd = fd;
    if (is_edge)
        control(EPOLL_CTL_ADD, c, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET);
    else
        control(EPOLL_CTL_ADD, c, options.work == SERVER_SOURCE ? EPOLLIN | EPOLLOUT : EPOLLIN);
    return c;
}

static void end(connection *c) {
    if (c == NULL || c->is_dead)
        return;
    c->is_dead = true;
    c->next_dead = dead;
    dead = c;
    end(c->peer);
}

static void bury(void) {
    while (dead != NULL) {
        connection *c = dead;
        dead = c->next_dead;
        close(c->fd);
        free(c->queue);
        free(c->held);
        free(c);
    }
}

/* What a level-triggered connection waits for, as it is now. */
static void update(connection *c) {
    if (is_edge || c->is_dead)
        return;
    uint32_t events = (c->is_paused || c->has_ended ? 0 : EPOLLIN) |
                      (c->queued > 0 || options.work == SERVER_SOURCE ? EPOLLOUT : 0);
    if (events == c->events)
        return;
    /* Of 0 a hang-up would be told again and again. */
    control(events == 0 ? EPOLL_CTL_DEL : c->events == 0 ? EPOLL_CTL_ADD : EPOLL_CTL_MOD, c, events);
}

/* There is more to do for it, after the others: an edge has to be told once more. */
static void go_on_later(connection *c) {
    if (is_edge && !c->is_dead)
        control(EPOLL_CTL_MOD, c, c->events);
}

/* ---- writing ---------------------------------------------------------------------------------------- */

static void enqueue(connection *c, const uint8_t *data, size_t size) {
    if (c->queued + size > c->capacity) {
        size_t left = c->queued - c->sent, capacity = 4096;
        while (capacity < left + size)
            capacity *= 2;
        uint8_t *queue = malloc(capacity);
        if (queue == NULL)
            server_die("no memory");
        if (left > 0)
            memcpy(queue, c->queue + c->sent, left);
        free(c->queue);
        c->queue = queue;
        c->capacity = capacity;
        c->sent = 0;
        c->queued = left;
    }
    memcpy(c->queue + c->queued, data, size);
    c->queued += size;
}

/* How much the socket took; it has failed if the connection is dead then. */
static size_t try_send(connection *c, const uint8_t *data, size_t size) {
    ssize_t sent = send(c->fd, data, size, MSG_NOSIGNAL);
    if (sent < 0 && errno != EAGAIN && errno != EINTR)
        end(c);
    return sent > 0 ? (size_t)sent : 0;
}

static void reply(connection *c, const uint8_t *data, size_t size) {
    size_t sent = c->queued == 0 ? try_send(c, data, size) : 0;
    if (sent == size || c->is_dead)
        return;
    enqueue(c, data + sent, size - sent);
    update(c);
}

static void flush(connection *c) {
    if (c->queued == 0)
        return;
    c->sent += try_send(c, c->queue + c->sent, c->queued - c->sent);
    if (c->sent < c->queued)
        return;
    free(c->queue);
    c->queue = NULL;
    c->sent = c->queued = c->capacity = 0;
}

/* The source sends until the socket is full. */
static void pour(connection *c) {
    for (int i = 0; i < AT_ONCE; i++)
        if (try_send(c, server_block, sizeof server_block) < sizeof server_block)
            return;
    go_on_later(c);
}

/* c has nothing left to send: is that all that there ever will be? */
static void settle_end(connection *c) {
    const connection *from = c->peer != NULL ? c->peer : c;
    if (c->has_shut || c->queued > 0 || !from->has_ended)
        return;
    c->has_shut = true;
    if (c->peer == NULL || c->peer->has_shut)
        end(c);
    else
        shutdown(c->fd, SHUT_WR);
}

/* ---- reading ---------------------------------------------------------------------------------------- */

static void hold(connection *c, const uint8_t *data, uint32_t size) {
    for (; c->held_size + size >= SERVER_HOLD_SIZE; c->held_size = 0) {
        uint32_t used = SERVER_HOLD_SIZE - c->held_size;
        data += used;
        size -= used;
        free(c->held);
        c->held = NULL;
        reply(c, server_block, 1);
    }
    if (size == 0)
        return;
    c->held = realloc(c->held, c->held_size + size);
    if (c->held == NULL)
        server_die("no memory");
    memcpy(c->held + c->held_size, data, size);
    c->held_size += size;
}

static void on_data(connection *c, size_t size) {
    if (c->peer == NULL) {
        if (options.work == SERVER_HOLD)
            hold(c, buffer, (uint32_t)size);
        return;
    }
    reply(c->peer, buffer, size);
    c->is_paused = c->peer->queued - c->peer->sent > SERVER_PROXY_QUEUE;
}

static void on_end(connection *c) {
    c->has_ended = true;
    if (options.work == SERVER_SOURCE)
        end(c);
    else
        settle_end(c->peer != NULL ? c->peer : c);
}

/* One receive: what it brought, 0 or less if nothing. */
static ssize_t receive(connection *c) {
    ssize_t size = recv(c->fd, buffer, sizeof buffer, 0);
    while (size < 0 && errno == EINTR)
        size = recv(c->fd, buffer, sizeof buffer, 0);
    if (size > 0)
        on_data(c, (size_t)size);
    else if (size == 0)
        on_end(c);
    else if (errno != EAGAIN)
        end(c);
    return size;
}

static bool is_readable(const connection *c) {
    return !c->is_paused && !c->has_ended && !c->is_dead;
}

static void read_on(connection *c, bool is_to_the_end) {
    int most = is_edge ? AT_ONCE : 1;
    ssize_t least = is_to_the_end ? 1 : (ssize_t)sizeof buffer, size = least;
    for (int i = 0; i < most && size >= least && is_readable(c); i++)
        size = receive(c);
    if (size >= least && is_readable(c))
        go_on_later(c);
    update(c);
}

/* The queue of whom c's bytes go to has become shorter. */
static void resume(connection *c) {
    if (!c->is_paused || c->peer->queued - c->peer->sent > QUEUE_LOW)
        return;
    c->is_paused = false;
    if (is_edge)
        read_on(c, true); /* what has been told meanwhile is not known any more */
    update(c);
}

/* ---- events ----------------------------------------------------------------------------------------- */

static void on_connection(int fd) {
    connection *c = connection_new(server_accepted(fd));
    if (options.work == SERVER_ECHO)
        c->peer = c;
    if (options.work != SERVER_PROXY)
        return;
    int upstream = server_connect(options.upstream);
    if (upstream < 0) {
        end(c);
        return;
    }
    c->peer = connection_new(upstream);
    c->peer->peer = c;
}

static void accept_all(void) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0)
            on_connection(fd);
        else if (errno == EAGAIN)
            return;
        else if (errno != ECONNABORTED && errno != EINTR)
            server_die("accept: %s", strerror(errno));
    }
}

static void on_writable(connection *c) {
    if (options.work == SERVER_SOURCE) {
        pour(c);
        return;
    }
    flush(c);
    if (c->is_dead)
        return;
    if (c->peer != NULL)
        resume(c->peer);
    if (!c->is_dead)
        settle_end(c);
    update(c);
}

static void on_events(connection *c, uint32_t events) {
    if ((events & EPOLLERR) != 0)
        end(c);
    if (!c->is_dead && (events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP)) != 0)
        read_on(c, (events & (EPOLLRDHUP | EPOLLHUP)) != 0);
    if (!c->is_dead && (events & EPOLLOUT) != 0)
        on_writable(c);
}

static void turn(void) {
    static struct epoll_event events[EVENTS];
    int count = epoll_wait(epoll, events, EVENTS, -1);
    if (count < 0 && errno != EINTR)
        server_die("epoll_wait: %s", strerror(errno));
    for (int i = 0; i < count; i++) {
        connection *c = events[i].data.ptr;
        if (c == NULL)
            accept_all();
        else if (!c->is_dead)
            on_events(c, events[i].events);
    }
    bury();
}

int main(int argc, char **argv) {
    static const char *const variants[] = { "level", "edge", NULL };
    struct epoll_event listening = { .events = EPOLLIN };
    server_arguments(argc, argv, variants, &options);
    is_edge = server_is_variant(&options, "edge");
    epoll = epoll_create1(EPOLL_CLOEXEC);
    listener = server_listen(&options);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &listening) < 0)
        server_die("epoll: %s", strerror(errno));
    server_ready(is_edge ? "epoll-edge" : "epoll-level");
    for (;;)
        turn();
}
