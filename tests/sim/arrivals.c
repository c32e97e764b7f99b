/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <stdlib.h>

#include "sim/program.h"

/*
 * How the application comes by its streams: two listeners, one of them opened and closed in the middle; dialling, and
 * adopting. Each stream is started at once or some turns later, and until then written to, closed, or taken out of its
 * handle and adopted anew.
 */

static weir_stream_options stream_options(void) {
    weir_stream_options options = { .size = sizeof options,
                                    .connect_timeout_ns = 50000000,
                                    .linger_timeout_ns = 1000000000,
                                    .queue_limit_bytes = app.queue_limit };
    options.flags = sim_random(5) == 0 ? WEIR_STREAM_METERED : 0;
    options.flags |= sim_random(4) == 0 ? WEIR_STREAM_NAGLE : 0;
    options.flags |= sim_random(4) == 0 ? WEIR_STREAM_KEEPALIVE : 0;
    options.idle_timeout_ns = sim_random(6) == 0 ? 1 + (int64_t)sim_random(800000000) : 0;
    options.write_timeout_ns = sim_random(4) == 0 ? 1 + (int64_t)sim_random(600000000) : WEIR_NEVER;
    return options;
}

/* ---- streams that are not started yet --------------------------------------------------------------- */

/* Its owner gives it up, and no on_close comes. */
static void give_up(connection *c) {
    sim_note("connection %llu: given up before it was started", (unsigned long long)c->number);
    app.accepted_open -= c->is_counted;
    c->is_counted = c->is_held = false;
    c->stream = NULL;
    c->was_aborted = true;
}

static void start_held(connection *c) {
    c->is_held = false;
    start_connection(c, c->stream);
    act(c);
}

static void has(connection *c, weir_stream *stream, const weir_stream_options *options) {
    c->stream = stream;
    c->ours = sim_socket_of(weir_stream_get_fd(stream));
    c->is_metered = (options->flags & WEIR_STREAM_METERED) != 0;
    c->credit = c->granted = 0;
    c->forgets_grants = sim_random(8) == 0;
    c->idle_ns = options->idle_timeout_ns;
    c->write_ns = options->write_timeout_ns > 0 ? options->write_timeout_ns : 0;
    begin_options(c, options);
    note_held_back(c);
}

/* The application has got @stream. */
static void arrived(connection *c, weir_stream *stream, const weir_stream_options *options) {
    use(c, true); /* also if its peer has gone meanwhile */
    has(c, stream, options);
    c->is_held = true;
    if (c->role == PIPE && sim_random(4) != 0)
        pipe_some(c);
    c->start_in = 1 + (unsigned)sim_random(20);
    if (sim.is_calm || sim_random(4) != 0)
        start_held(c);
}

/* Take the socket out of its handle and make another one of it. Nothing was read, so nothing is lost. */
static void move(connection *c) {
    weir_stream_options options = stream_options();
    weir_stream *stream = c->stream;
    int fd = -1, r = weir_stream_detach(stream, &fd);
    if (r < 0) {
        sim_require(r != -EBUSY || !stream->is_connected || stream->queue.bytes > 0 ||
                        !weir__op_is_idle(&stream->out) || !weir__op_is_idle(&stream->in) || c->pipe_to != NULL ||
                        c->pipe_from != NULL,
                    "connection %llu: detach said EBUSY, and nothing is under way", (unsigned long long)c->number);
        sim_require(r == -EBUSY || (r == -ENOTCONN && stream->has_failed), "detach said %s", weir_error_name(r));
        return;
    }
    sim_note("connection %llu: detached", (unsigned long long)c->number);
    app.accepted_open -= c->is_counted;
    c->is_counted = c->is_dialled = c->is_full = false;
    r = weir_stream_adopt(app.loop, fd, &options, &c->stream);
    if (r < 0) {
        sim_socket *socket = sim_socket_of(fd);
        sim_require(r == -ENOMEM || (r == -ESHUTDOWN && is_grace_over()) ||
                        (r == -ENOTCONN && (socket->is_reset || socket->other == NULL)),
                    "adopt said %s", weir_error_name(r));
        give_up(c);
        sim_require(weir__sys_close(fd) == 0, "the descriptor was not ours to close");
        return;
    }
    has(c, c->stream, &options);
}

void tend_held(void) {
    for (size_t i = 0; i < app.used_count; i++) {
        connection *c = app.used[i];
        if (!c->is_held)
            continue;
        if (sim.is_calm || c->start_in-- == 0)
            start_held(c);
        else if (sim_random(16) == 0 && !c->is_shut) /* a handle's shutdown need not have happened yet */
            move(c);
        else if (sim_random(64) == 0 && c->pipe_to == NULL && c->pipe_from == NULL) {
            weir_stream *stream = c->stream;
            give_up(c);
            sim_require(weir_stream_close(stream) == 0, "close failed");
        } else if (sim_random(4) == 0) {
            act(c);
        }
    }
}

/* ---- listeners -------------------------------------------------------------------------------------- */

static connection *accepted(weir_stream *stream) {
    sim_socket *socket = sim_socket_of(weir_stream_get_fd(stream));
    sim_require(socket != NULL && socket->peer != NULL, "a connection that nobody made");
    connection *c = socket->peer;
    sim_require(!c->is_started && !c->is_held, "a connection was accepted twice");
    sim_require(!app.is_draining, "a connection was accepted after drain");
    notice_silent_ends();
    return c;
}

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)userdata;
    connection *c = accepted(stream);
    sim_require(listener == app.listener, "another listener accepts");
    sim_require(!app.is_listener_paused, "a paused listener hands out");
    sim_require(app.max_streams == 0 || app.accepted_open < app.max_streams,
                "more streams than the listener may have");
    if (sim_random(32) == 0) {
        weir_stream_close(stream);
        c->was_aborted = true;
        return;
    }
    app.accepted_open++;
    c->is_counted = true;
    arrived(c, stream, &app.each[0]);
}

static void on_listener_close(weir_listener *listener, int error, void *userdata) {
    (void)userdata;
    sim_require(listener == app.listener && error == 0, "a listener closed with %s", weir_error_name(error));
    sim_require(app.is_loop_closing || app.is_draining, "a listener closed itself");
    app.listener = NULL;
}

static const weir_listener_callbacks accepting = { .size = sizeof accepting,
                                                   .on_accept = on_accept,
                                                   .on_close = on_listener_close };

static void on_extra_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    connection *c = accepted(stream);
    sim_require(listener == app.extra && userdata == (void *)(uintptr_t)app.extras, "another listener accepts");
    sim_require(!app.is_extra_closing, "a listener hands out after it was closed");
    arrived(c, stream, &app.each[1]);
}

static void on_extra_close(weir_listener *listener, int error, void *userdata) {
    sim_require(listener == app.extra && userdata == (void *)(uintptr_t)app.extras && error == 0,
                "a listener closed twice, or with %s", weir_error_name(error));
    sim_require(app.is_extra_closing || app.is_loop_closing || app.is_draining, "a listener closed itself");
    sim_note("the second listener is closed");
    app.extra = NULL;
}

static const weir_listener_callbacks accepting_more = { .size = sizeof accepting_more,
                                                        .on_accept = on_extra_accept,
                                                        .on_close = on_extra_close };

void open_listener(void) {
    app.each[0] = stream_options();
    weir_listener_options options = { .size = sizeof options,
                                      .max_streams = app.max_streams,
                                      .stream = &app.each[0] };
    const char *address = app.is_unix ? "unix:@listener" : "127.0.0.1:7";
    sim_require(weir_listener_open(app.loop, address, &options, &app.listener) == 0, "no listener");
    sim_require(weir_listener_start(app.listener, &accepting, NULL) == 0, "the listener did not start");
    sim_require(weir__address_parse(address, &app.address) == 0, "address");
}

void open_or_close_extra(void) {
    weir_stream_options each = stream_options();
    weir_listener_options options = { .size = sizeof options, .stream = &each };
    char address[32];
    if (app.extra != NULL) {
        app.is_extra_closing = true; /* it may be closing already */
        sim_require(weir_listener_close(app.extra) == 0, "the second listener did not close");
        return;
    }
    snprintf(address, sizeof address, app.is_unix ? "unix:@extra%u" : "127.0.0.1:%u", 1000 + app.extras % 20000);
    weir_listener *listener = NULL;
    int r = weir_listener_open(app.loop, address, &options, &listener);
    sim_require(r == 0 || r == -ENOMEM || r == -EMFILE || (r == -ESHUTDOWN && app.is_draining),
                "listener_open said %s", weir_error_name(r));
    sim_require(r < 0 || !app.is_draining, "a listener was opened after drain");
    if (r < 0)
        return;
    app.extra = listener;
    app.each[1] = each;
    app.extras++;
    app.is_extra_closing = false;
    sim_note("the second listener is opened");
    sim_require(weir__address_parse(address, &app.extra_address) == 0, "address");
    sim_require(weir_listener_start(listener, &accepting_more, (void *)(uintptr_t)app.extras) == 0,
                "the second listener did not start");
}

/* ---- dialling and adopting -------------------------------------------------------------------------- */

connection *dial(enum role role) {
    weir_stream_options options = stream_options();
    connection *c = connection_new(role);
    if (c == NULL)
        return NULL;
    weir_stream *stream;
    int r = weir_stream_dial(app.loop, app.is_unix ? "unix:@upstream" : "127.0.0.1:9", &options, &stream);
    if (r < 0) {
        sim_require(r == -ENOMEM || r == -EMFILE || (r == -ESHUTDOWN && is_grace_over()), "dial said %s",
                    weir_error_name(r));
        use(c, false);
        return NULL;
    }
    c->is_dialled = true;
    sim_socket *socket = sim_socket_of(weir_stream_get_fd(stream));
    socket->peer = c;
    sim_note("connection %llu (%s): dialled", (unsigned long long)c->number, role_names[role]);
    arrived(c, stream, &options);
    return c;
}

void dial_pair(void) {
    connection *a = dial(FORWARD);
    if (a == NULL)
        return;
    connection *b = dial(FORWARD);
    if (b == NULL) {
        a->role = SINK;
        return;
    }
    a->partner = b;
    b->partner = a;
    a->out_seed = b->in_seed;
    b->out_seed = a->in_seed;
}

/* A connected socket from elsewhere. */
void adopt(void) {
    weir_stream_options options = stream_options();
    connection *c = connection_new((enum role)sim_random(FORWARD));
    if (c == NULL)
        return;
    sim_socket *ours = sim_stream_new(!app.is_unix);
    c->socket = sim_stream_new(!app.is_unix);
    ours->other = c->socket;
    c->socket->other = ours;
    ours->peer = c->socket->peer = c;
    ours->is_connected = c->socket->is_connected = true;
    weir_stream *stream;
    int fd = sim_descriptor(ours);
    int r = fd < 0 ? fd : weir_stream_adopt(app.loop, fd, &options, &stream);
    if (r >= 0) {
        sim_note("connection %llu (%s): adopted", (unsigned long long)c->number, role_names[c->role]);
        arrived(c, stream, &options);
        return;
    }
    sim_require(r == -ENOMEM || r == -EMFILE || (r == -ESHUTDOWN && is_grace_over()), "adopt said %s",
                weir_error_name(r));
    if (fd >= 0)
        sim_require(weir__sys_close(fd) == 0, "a descriptor that was not adopted is ours to close");
    sim_close_socket(c->socket);
    use(c, false);
}
