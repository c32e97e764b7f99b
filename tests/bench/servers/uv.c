/* SPDX-License-Identifier: MIT */
/*
 * The benchmark's servers over libuv, in two variants:
 *
 *   plain   as libuv's guide does it: alloc_cb allocates the size that libuv suggests, the write request is
 *           allocated with it, and the write's callback frees both. The one thing added is that reading stops
 *           while too much waits to be written.
 *   tuned   what is left when each allocation and each turn that can be avoided is: one receive buffer for all
 *           connections, so that it stays in the cache; uv_try_write first; and only what the socket did not take
 *           is copied and left to uv_write.
 *
 * Echo is a proxy whose other side is the same connection.
 */
#include "../server.h"

#include <stdlib.h>
#include <string.h>
#include <uv.h>

enum {
    SOURCE_WRITES = SERVER_QUEUE / SERVER_WRITE_SIZE,
    HOLD_LEAST = 64,                                      /* what is allocated for a message's first bytes */
    HOLD_ANSWERS = SERVER_RECEIVE_SIZE / SERVER_HOLD_SIZE /* at most, to one read */
};

/* Where a proxy has two of these, they are closed together: while one is open, so is the other. */
typedef struct peer {
    uv_tcp_t tcp;
    uv_connect_t connect;
    uv_shutdown_t shutdown;
    uv_write_t write;   /* tuned source: its one request */
    struct peer *other; /* where what is read from this one is written to */
    bool paused;        /* not read from, as too much waits for the other */
    bool shut;          /* nothing more is written to it */
    char *held;
    size_t held_size;
    size_t held_capacity;
} peer;

typedef struct write_request {
    uv_write_t request;
    uv_buf_t buffer;
    char *owned; /* freed with the request */
    char copied[];
} write_request;

static server_options options;
static bool tuned;
static size_t most_waiting; /* with more than this to be written to one side, the other is not read from */
static uv_loop_t *loop;
static char hot[SERVER_RECEIVE_SIZE];

static void *allocated(void *memory) {
    if (memory == NULL)
        server_die("no memory");
    return memory;
}

static uv_stream_t *stream_of(peer *p) {
    return (uv_stream_t *)&p->tcp;
}

/* ---- connections ------------------------------------------------------------------------------------- */

static peer *peer_new(void) {
    peer *p = allocated(calloc(1, sizeof *p));
    int r = uv_tcp_init(loop, &p->tcp);
    if (r < 0)
        server_die("uv_tcp_init: %s", uv_strerror(r));
    p->tcp.data = p;
    p->other = p;
    return p;
}

static void on_close(uv_handle_t *handle) {
    peer *p = handle->data;
    free(p->held);
    free(p);
}

static void drop(peer *p) {
    peer *other = p->other;
    if (!uv_is_closing((uv_handle_t *)&p->tcp))
        uv_close((uv_handle_t *)&p->tcp, on_close);
    if (other != p && !uv_is_closing((uv_handle_t *)&other->tcp))
        uv_close((uv_handle_t *)&other->tcp, on_close);
}

static void on_shutdown(uv_shutdown_t *request, int status) {
    peer *p = request->handle->data;
    if (uv_is_closing((uv_handle_t *)&p->tcp))
        return;
    p->shut = true;
    if (status < 0 || p->other->shut)
        drop(p);
}

/* Nothing more comes from p: neither will to the other, after what still waits. */
static void ended(peer *p, ssize_t status) {
    peer *other = p->other;
    if (status != UV_EOF || uv_shutdown(&other->shutdown, stream_of(other), on_shutdown) < 0)
        drop(p);
}

/* ---- receiving --------------------------------------------------------------------------------------- */

static void allocate(uv_handle_t *handle, size_t suggested, uv_buf_t *ret) {
    (void)handle;
    *ret = uv_buf_init(allocated(malloc(suggested)), (unsigned)suggested);
}

static void lend_hot(uv_handle_t *handle, size_t suggested, uv_buf_t *ret) {
    (void)handle, (void)suggested;
    *ret = uv_buf_init(hot, sizeof hot);
}

static uv_read_cb read_callback; /* the workload's */

static void start_reading(peer *p) {
    int r = uv_read_start(stream_of(p), tuned ? lend_hot : allocate, read_callback);
    if (r < 0)
        drop(p);
}

static void pause_if_full(peer *p) {
    if (p->paused || uv_stream_get_write_queue_size(stream_of(p->other)) <= most_waiting)
        return;
    p->paused = true;
    uv_read_stop(stream_of(p));
}

static void on_written(uv_write_t *request, int status) {
    write_request *w = (write_request *)request;
    peer *p = request->handle->data;
    free(w->owned);
    free(w);
    if (uv_is_closing((uv_handle_t *)&p->tcp))
        return;
    if (status < 0) {
        drop(p);
    } else if (p->other->paused && uv_stream_get_write_queue_size(stream_of(p)) <= most_waiting / 2) {
        p->other->paused = false;
        start_reading(p->other);
    }
}

/* Takes w over. */
static void submit(peer *to, write_request *w) {
    int r = uv_write(&w->request, stream_of(to), &w->buffer, 1, on_written);
    if (r >= 0)
        return;
    free(w->owned);
    free(w);
    drop(to);
}

/* ---- echo, proxy ------------------------------------------------------------------------------------- */

static void forward_plain(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer) {
    peer *p = stream->data;
    if (size > 0) {
        write_request *w = allocated(malloc(sizeof *w));
        w->owned = buffer->base;
        w->buffer = uv_buf_init(buffer->base, (unsigned)size);
        submit(p->other, w);
        pause_if_full(p);
        return;
    }
    free(buffer->base);
    if (size < 0)
        ended(p, size);
}

/* What the socket takes goes at once, a copy of the rest later. */
static void send_tuned(peer *to, const char *bytes, size_t size) {
    uv_buf_t all = uv_buf_init((char *)bytes, (unsigned)size);
    int r = uv_try_write(stream_of(to), &all, 1);
    if (r < 0 && r != UV_EAGAIN) {
        drop(to);
        return;
    }
    size_t sent = r < 0 ? 0 : (size_t)r;
    if (sent == size)
        return;
    write_request *w = allocated(malloc(sizeof *w + size - sent));
    memcpy(w->copied, bytes + sent, size - sent);
    w->owned = NULL;
    w->buffer = uv_buf_init(w->copied, (unsigned)(size - sent));
    submit(to, w);
}

static void forward_tuned(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer) {
    peer *p = stream->data;
    if (size > 0) {
        send_tuned(p->other, buffer->base, (size_t)size);
        pause_if_full(p);
    } else if (size < 0) {
        ended(p, size);
    }
}

static void on_connect(uv_connect_t *request, int status) {
    peer *p = request->handle->data;
    if (uv_is_closing((uv_handle_t *)&p->tcp))
        return;
    if (status < 0) {
        drop(p);
        return;
    }
    start_reading(p);
    if (!uv_is_closing((uv_handle_t *)&p->tcp))
        start_reading(p->other);
}

static void start_proxy(peer *p) {
    struct sockaddr_in address;
    peer *upstream = peer_new();
    upstream->other = p;
    p->other = upstream;
    int r = uv_ip4_addr("127.0.0.1", options.upstream, &address);
    r = r < 0 ? r : uv_tcp_connect(&upstream->connect, &upstream->tcp, (struct sockaddr *)&address, on_connect);
    r = r < 0 ? r : uv_tcp_nodelay(&upstream->tcp, 1);
    if (r < 0)
        drop(p);
}

/* ---- sink -------------------------------------------------------------------------------------------- */

static void on_sink(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer) {
    if (!tuned)
        free(buffer->base);
    if (size < 0)
        drop(stream->data);
}

/* ---- source ------------------------------------------------------------------------------------------ */

static void on_block_written(uv_write_t *request, int status);

static void write_block(peer *p) {
    uv_buf_t block = uv_buf_init((char *)server_block, sizeof server_block);
    uv_write_t *request = allocated(malloc(sizeof *request));
    int r = uv_write(request, stream_of(p), &block, 1, on_block_written);
    if (r < 0) {
        free(request);
        drop(p);
    }
}

static void on_block_written(uv_write_t *request, int status) {
    peer *p = request->handle->data;
    free(request);
    if (uv_is_closing((uv_handle_t *)&p->tcp))
        return;
    if (status < 0)
        drop(p);
    else
        write_block(p);
}

static void write_tuned(peer *p);

static void on_rest_written(uv_write_t *request, int status) {
    peer *p = request->handle->data;
    if (uv_is_closing((uv_handle_t *)&p->tcp))
        return;
    if (status < 0)
        drop(p);
    else
        write_tuned(p);
}

/* The last write of a turn is uv_write's also if the socket would take more: its callback comes in the next one,
 * after everybody else's turn. */
static void write_tuned(peer *p) {
    uv_buf_t block = uv_buf_init((char *)server_block, sizeof server_block);
    size_t sent = 0;
    for (int i = 1; i < SOURCE_WRITES; i++) {
        int r = uv_try_write(stream_of(p), &block, 1);
        if (r < 0 && r != UV_EAGAIN) {
            drop(p);
            return;
        }
        sent = r < 0 ? 0 : (size_t)r;
        if (sent < sizeof server_block)
            break;
        sent = 0;
    }
    uv_buf_t rest = uv_buf_init((char *)server_block + sent, (unsigned)(sizeof server_block - sent));
    if (uv_write(&p->write, stream_of(p), &rest, 1, on_rest_written) < 0)
        drop(p);
}

static void start_source(peer *p) {
    if (tuned) {
        write_tuned(p);
        return;
    }
    for (int i = 0; i < SOURCE_WRITES && !uv_is_closing((uv_handle_t *)&p->tcp); i++)
        write_block(p);
}

/* ---- hold -------------------------------------------------------------------------------------------- */

static void keep(peer *p, const char *bytes, size_t size) {
    size_t capacity = p->held_capacity > 0 ? p->held_capacity : HOLD_LEAST;
    while (capacity < p->held_size + size)
        capacity *= 2;
    if (capacity > p->held_capacity) {
        p->held = allocated(realloc(p->held, capacity));
        p->held_capacity = capacity;
    }
    memcpy(p->held + p->held_size, bytes, size);
    p->held_size += size;
}

/* Returns how many messages have become complete. */
static unsigned hold(peer *p, const char *bytes, size_t size) {
    unsigned complete = 0;
    while (p->held_size + size >= SERVER_HOLD_SIZE) {
        size_t lacking = SERVER_HOLD_SIZE - p->held_size;
        bytes += lacking;
        size -= lacking;
        free(p->held);
        p->held = NULL;
        p->held_size = p->held_capacity = 0;
        complete++;
    }
    if (size > 0)
        keep(p, bytes, size);
    return complete;
}

static void on_hold(uv_stream_t *stream, ssize_t size, const uv_buf_t *buffer) {
    static char answers[HOLD_ANSWERS + 1];
    peer *p = stream->data;
    unsigned complete = size > 0 ? hold(p, buffer->base, (size_t)size) : 0;
    if (!tuned)
        free(buffer->base);
    if (size < 0) {
        ended(p, size);
    } else if (complete > 0 && tuned) {
        send_tuned(p, answers, complete);
    } else if (complete > 0) {
        write_request *w = allocated(malloc(sizeof *w));
        w->owned = NULL;
        w->buffer = uv_buf_init(answers, complete);
        submit(p, w);
    }
}

/* ---- the server -------------------------------------------------------------------------------------- */

static void on_connection(uv_stream_t *listener, int status) {
    if (status < 0)
        server_die("accept: %s", uv_strerror(status));
    peer *p = peer_new();
    int r = uv_accept(listener, stream_of(p));
    r = r < 0 ? r : uv_tcp_nodelay(&p->tcp, 1);
    if (r < 0)
        drop(p);
    else if (options.work == SERVER_SOURCE)
        start_source(p);
    else if (options.work == SERVER_PROXY)
        start_proxy(p);
    else
        start_reading(p);
}

static void choose(void) {
    uv_read_cb forward = tuned ? forward_tuned : forward_plain;
    read_callback = options.work == SERVER_SINK ? on_sink : options.work == SERVER_HOLD ? on_hold : forward;
    /* The tuned echo reads no more while anything waits: what it then reads would have to be copied. */
    most_waiting = tuned && options.work == SERVER_ECHO ? 0 : SERVER_PROXY_QUEUE;
}

int main(int argc, char **argv) {
    static const char *const variants[] = { "plain", "tuned", NULL };
    static uv_tcp_t listener;
    server_arguments(argc, argv, variants, &options);
    tuned = server_is_variant(&options, "tuned");
    choose();
    loop = uv_default_loop();
    int r = uv_tcp_init(loop, &listener);
    r = r < 0 ? r : uv_tcp_open(&listener, server_listen(&options));
    r = r < 0 ? r : uv_listen((uv_stream_t *)&listener, SERVER_BACKLOG, on_connection);
    if (r < 0)
        server_die("listening: %s", uv_strerror(r));
    server_ready("epoll"); /* libuv has no other for sockets */
    return uv_run(loop, UV_RUN_DEFAULT);
}
