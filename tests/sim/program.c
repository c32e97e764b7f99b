/* SPDX-License-Identifier: MIT */
#include "sim/world.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "loop/loop.h"
#include "socket/stream.h"
#include "support/bytes.h"
#include "weir/timer.h"

/*
 * The application above the library and the peers beyond the sockets, and what must be true of both at any time.
 *
 * A connection has two directions, each a pattern of known bytes. The application checks each slice against what the
 * peer wrote, the peer checks each byte against what the application wrote; an echo's pattern is the peer's own, a
 * forwarder's is its other side's.
 */

enum { MOST_EVER = 65536, MOST_HELD = 64, TIMERS = 3, MOST_EXTERNAL = 4096, TIMER_SLACK = 1000000 };

enum role { ECHO, SOURCE, SINK, FORWARD, ROLES };

typedef struct connection {
    bool is_used;
    size_t place; /* in app.used */
    uint64_t number;
    enum role role;
    struct connection *partner; /* FORWARD: what comes in here goes out there */
    /* the peer */
    sim_socket *socket;
    uint64_t peer_wrote, peer_read, peer_limit;
    bool peer_shut, peer_gone, peer_saw_end, peer_was_reset, peer_is_slow;
    bool peer_waits;   /* for our end before it ends */
    bool peer_is_dead; /* after half of what it has to say it never does anything again */
    /* the application */
    weir_stream *stream; /* referenced */
    uint64_t app_read, app_wrote, in_seed, out_seed;
    bool is_started, is_paused, is_closing, is_shut, was_aborted, is_dialled, open_told, end_told, is_full;
    bool closed_after_end, closed_in_calm;
    unsigned closes, turns_without_drain, turns_since_reset;
    int reason, error;
} connection;

typedef struct held {
    weir_slice slice;
    uint64_t seed, position;
    size_t size;
} held;

static struct {
    weir_loop *loop;
    weir_listener *listener;
    sim_socket *upstream; /* where the application dials to: a peer's listener */
    weir__address address, upstream_address;
    connection *all[MOST_EVER]; /* a socket may refer to one long after it is over */
    size_t all_count;
    connection *used[MOST_EVER]; /* those that are not over, in any order */
    size_t used_count;
    uint64_t numbers;
    held held[MOST_HELD];
    size_t held_count;
    uint64_t posted, ran, post_started, post_ran; /* numbers of posts, in order */
    weir_timer *timers[TIMERS];
    int64_t due[TIMERS]; /* -1: stopped */
    int64_t repeat[TIMERS];
    uint64_t queue_limit, queue_high, queue_low;
    uint32_t max_turn_events, max_streams, accepted_open; /* of the loop; of the listener */
    bool is_listener_paused, is_loop_closing;
    bool is_time_honest; /* faults have stopped, and peers have time enough to act */
    bool was_dry;        /* since faults stopped: a close that cannot take in the peer's end may be cut short */
    uint64_t external_given, external_released;
    uint8_t *external[MOST_EXTERNAL];
    uint64_t live_blocks;
    bool is_in_thread, is_unix, no_new, may_fail;
    uint64_t streams_closed, checks;
} app;

static const char *const role_names[ROLES] = { "echo", "source", "sink", "forward" };

/* ---- memory ----------------------------------------------------------------------------------------- */

static void *app_alloc(size_t size, size_t alignment, void *userdata) {
    (void)userdata;
    if (app.may_fail && sim_fault(SIM_NO_MEMORY))
        return NULL;
    void *memory = aligned_alloc(alignment, (size + alignment - 1) & ~(alignment - 1));
    memset(memory, 0xA5, size);
    app.live_blocks++;
    return memory;
}

static void app_free(void *memory, size_t size, size_t alignment, void *userdata) {
    (void)alignment, (void)userdata;
    memset(memory, 0x5A, size);
    free(memory);
    app.live_blocks--;
}

static const weir_allocator allocator = { .size = sizeof allocator, .alloc = app_alloc, .free = app_free };

/* ---- held slices ------------------------------------------------------------------------------------ */

static void check_held(const held *h) {
    int64_t at = test_differs(h->seed, h->position, h->slice.data, h->size);
    sim_require(at < 0, "a held slice of connection %llu changed at byte %lld", (unsigned long long)h->seed,
                (long long)at);
}

static void drop_held(size_t index) {
    check_held(&app.held[index]);
    weir_slice slice = app.held[index].slice;
    app.held[index] = app.held[--app.held_count];
    weir_slice_unref(&slice);
}

static void hold(const connection *c, const weir_slice *slice, bool keep) {
    if (app.held_count == MOST_HELD)
        drop_held((size_t)sim_random(app.held_count));
    held *h = &app.held[app.held_count];
    *h = (held){ .seed = c->in_seed, .position = c->app_read, .size = slice->size };
    if (!keep)
        weir_slice_ref(slice, &h->slice);
    else if (weir_slice_keep(slice, &h->slice) < 0)
        return;
    if (keep && slice->size > 0)
        sim_require((h->slice.data != slice->data) == (slice->size < (slice->owner->capacity + 7) / 8),
                    "what was kept pins more than eight times its size, or was copied for nothing");
    app.held_count++;
}

/* ---- writing ---------------------------------------------------------------------------------------- */

static void abort_connection(connection *c) {
    sim_note("connection %llu: abort", (unsigned long long)c->number);
    c->was_aborted = c->is_closing = true;
    sim_ring_forget((uint64_t)(uintptr_t)&c->stream->in);
    sim_require(weir_stream_abort(c->stream) == 0, "abort failed");
}

static void pause_connection(connection *c) {
    c->is_paused = true;
    sim_ring_forget((uint64_t)(uintptr_t)&c->stream->in);
    sim_require(weir_stream_pause(c->stream) == 0, "pause failed");
}

static void resume_connection(connection *c) {
    c->is_paused = false;
    sim_ring_forget((uint64_t)(uintptr_t)&c->stream->in); /* it may have starved since the pause */
    sim_require(weir_stream_resume(c->stream) == 0, "resume failed");
}

static void close_connection(connection *c) {
    sim_note("connection %llu: close", (unsigned long long)c->number);
    c->is_closing = true;
    c->closed_after_end = c->end_told;
    c->closed_in_calm = app.is_time_honest;
    sim_ring_forget((uint64_t)(uintptr_t)&c->stream->in);
    sim_require(weir_stream_close(c->stream) == 0, "close failed");
}

/* What a write said. Return: it was taken. */
static bool took(connection *to, int r, size_t size) {
    uint64_t queued = to->stream != NULL ? weir_stream_get_queued(to->stream) : 0;
    if (r >= 0) {
        to->app_wrote += size;
        sim_require(!to->is_shut && !to->is_closing, "a write was taken after shutdown or close");
        sim_require(queued <= app.queue_limit, "the queue is longer than its limit");
        sim_require((r == WEIR_WRITE_FULL) == (queued > app.queue_high) || to->stream->queue.count > 512,
                    "a write said %d, and the queue has %llu bytes", r, (unsigned long long)queued);
        if (r == WEIR_WRITE_FULL)
            to->is_full = true;
        return true;
    }
    sim_require(r == -ENOBUFS || r == -ENOMEM || r == -EPIPE, "a write said %s", weir_error_name(r));
    if (r == -ENOBUFS && queued > 0)
        to->is_full = true; /* a drain is owed */
    return false;
}

static void released(const void *data, size_t size, void *userdata) {
    (void)size;
    uintptr_t index = (uintptr_t)userdata;
    sim_require(!sim.is_other_thread, "external memory was released on another thread");
    sim_require(app.external[index] == data, "external memory was released twice");
    free(app.external[index]);
    app.external[index] = NULL;
    app.external_released++;
}

/* The application's own bytes, by one of its ways to write. */
static void write_some(connection *c) {
    static uint8_t bytes[1 << 15];
    if (c->role != SOURCE || c->is_closing || c->is_shut || c->is_full || !c->is_started || c->closes > 0)
        return;
    size_t size = (size_t)1 + sim_random((uint64_t)1 << (1 + sim_random(15)));
    size = size < sizeof bytes ? size : sizeof bytes;
    test_fill(c->out_seed, c->app_wrote, bytes, size);
    weir_slice slice;
    switch (sim_random(4)) {
    case 0:
        (void)took(c, weir_stream_write(c->stream, bytes, size), size);
        break;
    case 1:
        if (weir_slice_copy(weir_loop_get_pool(app.loop), bytes, size, &slice) < 0)
            break;
        (void)took(c, weir_stream_write_slice(c->stream, &slice), size);
        weir_slice_unref(&slice);
        break;
    case 2: {
        uint64_t index = app.external_given % MOST_EXTERNAL;
        if (app.external[index] != NULL)
            break;
        uint8_t *memory = malloc(size);
        memcpy(memory, bytes, size);
        app.external[index] = memory;
        int r = weir_stream_write_external(c->stream, memory, size, released, (void *)(uintptr_t)index);
        if (took(c, r, size)) {
            app.external_given++;
        } else {
            free(memory);
            app.external[index] = NULL;
        }
        break;
    }
    default:
        slice = (weir_slice){ bytes, size, NULL };
        (void)took(c, weir_stream_write_slice(c->stream, &slice), size);
    }
    memset(bytes, 0xEE, size);
}

/* Anything an application may do to a stream, in a callback or out of it. */
static void act(connection *c) {
    if (c->stream != NULL && c->is_started && c->closes == 0 && (c->is_shut || c->is_closing) &&
        sim_random(8) == 0)
        sim_require(weir_stream_write(c->stream, "x", 1) == -EPIPE, "a write was taken after shutdown or close");
    if (c->stream == NULL || !c->is_started || c->closes > 0 || c->is_closing)
        return;
    switch (sim_random(sim.is_calm ? 1 : 24)) {
    case 0:
    case 1:
    case 2:
        write_some(c);
        break;
    case 3:
        if (c->is_paused)
            resume_connection(c);
        break;
    case 4:
        if (!c->is_paused)
            pause_connection(c);
        break;
    case 5:
        if (c->is_paused) { /* and back at once */
            resume_connection(c);
            pause_connection(c);
        } else {
            pause_connection(c);
            resume_connection(c);
        }
        break;
    case 6:
        if (sim_random(8) == 0)
            close_connection(c);
        break;
    case 7:
        if (sim_random(8) == 0)
            abort_connection(c);
        break;
    case 8:
        if (sim_random(4) == 0 && c->role != ECHO && c->role != FORWARD) {
            int r = weir_stream_shutdown(c->stream);
            sim_require(r == 0 || r == -EPIPE, "shutdown said %s", weir_error_name(r));
            c->is_shut = true;
        }
        break;
    default:
        break;
    }
}

/* ---- callbacks -------------------------------------------------------------------------------------- */

static void check_alive(const connection *c, const char *what) {
    sim_require(c->is_used && c->closes == 0, "%s after on_close", what);
    sim_require(c->is_started, "%s before start", what);
}

static void on_open(weir_stream *stream, void *userdata) {
    connection *c = userdata;
    (void)stream;
    check_alive(c, "on_open");
    sim_require(c->is_dialled && !c->is_closing, "on_open of a stream that was not dialled, or is closing");
    sim_require(!c->open_told, "on_open twice");
    c->open_told = true;
    act(c);
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    connection *c = userdata;
    (void)stream;
    check_alive(c, "on_data");
    sim_require(!c->is_paused, "connection %llu: data while paused", (unsigned long long)c->number);
    sim_require(!c->is_closing, "connection %llu: data after close", (unsigned long long)c->number);
    sim_require(!c->end_told, "connection %llu: data after its end", (unsigned long long)c->number);
    sim_require(!c->is_dialled || c->open_told, "connection %llu: data before it is open",
                (unsigned long long)c->number);
    sim_require(slice->size > 0, "an empty slice");
    int64_t at = test_differs(c->in_seed, c->app_read, slice->data, slice->size);
    sim_require(at < 0, "connection %llu (%s): byte %lld is not what the peer wrote",
                (unsigned long long)c->number, role_names[c->role], (long long)at);
    sim_require(c->app_read + slice->size <= c->peer_wrote, "more bytes than the peer wrote");
    if (sim_random(6) == 0 && !sim.is_calm)
        hold(c, slice, sim_random(2) == 0);
    c->app_read += slice->size;
    connection *to = c->role == ECHO ? c : c->role == FORWARD ? c->partner : NULL;
    if (to != NULL) {
        int r = to->stream != NULL && to->is_started ? weir_stream_write_slice(to->stream, slice) : -EPIPE;
        if (!took(to, r, slice->size))
            abort_connection(c); /* a gap is not allowed */
        else if (r == WEIR_WRITE_FULL && !c->is_closing)
            pause_connection(c);
    }
    act(c);
}

static void on_end(weir_stream *stream, void *userdata) {
    connection *c = userdata;
    (void)stream;
    check_alive(c, "on_end");
    sim_require(!c->end_told, "on_end twice");
    sim_require(!c->is_paused && !c->is_closing, "on_end while paused, or after close");
    sim_require(c->peer_shut || (c->peer_gone && !c->peer_was_reset),
                "connection %llu: an end that the peer did not send", (unsigned long long)c->number);
    sim_require(!c->is_dialled || c->open_told, "an end before it is open");
    sim_require(c->app_read == c->peer_wrote, "connection %llu: the end came after %llu of %llu bytes",
                (unsigned long long)c->number, (unsigned long long)c->app_read, (unsigned long long)c->peer_wrote);
    c->end_told = true;
    if (c->role == FORWARD && c->partner->is_used && c->partner->stream != NULL && c->partner->closes == 0 &&
        !c->partner->is_closing) {
        (void)weir_stream_shutdown(c->partner->stream);
        c->partner->is_shut = true;
    } else if (sim_random(4) != 0) {
        close_connection(c);
    }
}

static void on_drain(weir_stream *stream, void *userdata) {
    connection *c = userdata;
    check_alive(c, "on_drain");
    sim_require(c->is_full, "a drain that nobody waits for");
    sim_require(weir_stream_get_queued(stream) <= app.queue_low, "a drain above the low mark");
    c->is_full = false;
    c->turns_without_drain = 0;
    connection *from = c->role == ECHO ? c : c->role == FORWARD ? c->partner : NULL;
    if (from != NULL && from->is_used && from->is_started && from->closes == 0 && !from->is_closing)
        resume_connection(from);
    act(c);
}

/* Why it ended must be something that happened. */
static void check_reason(const connection *c, int reason, int error) {
    bool has_gone = c->peer_gone || c->peer_was_reset;
    bool lacked_memory =
        sim.faults[SIM_NO_MEMORY] + sim.faults[SIM_REQUEST_ENOMEM] + sim.faults[SIM_POLL_ENOMEM] > 0;
    switch (reason) {
    case WEIR_CLOSE_LOCAL:
    case WEIR_CLOSE_PEER:
        sim_require(error == 0 && !c->was_aborted, "a good end with an error");
        sim_require(c->is_closing, "a stream closed itself");
        sim_require(reason == WEIR_CLOSE_LOCAL || c->peer_shut || has_gone, "an end by a peer that did not end");
        sim_require(reason == WEIR_CLOSE_PEER || !c->closed_after_end,
                    "the peer ended first, and it is not told so");
        break;
    case WEIR_CLOSE_ABORT:
        sim_require(error == 0 && c->was_aborted, "an abort that nobody asked for");
        break;
    case WEIR_CLOSE_CONNECT:
        sim_require(error < 0 && c->is_dialled && !c->open_told, "a failed connect of what was connected");
        break;
    case WEIR_CLOSE_LINGER:
        sim_require(error == -ETIMEDOUT && c->is_closing, "a linger timeout of a stream that does not close");
        sim_require(!c->closed_in_calm || c->peer_is_dead || app.was_dry ||
                        sim.events[SIM_EVENT_END_FORGOTTEN] > 0,
                    "a linger timeout although the peer reads and ends");
        sim_require(c->socket == NULL || has_gone || c->socket->has_ended ||
                        c->peer_read + sim_readable(c->socket) < c->app_wrote,
                    "the peer has all, and was not told the end");
        break;
    case WEIR_CLOSE_LOOP:
        sim_require(error == 0 && app.is_loop_closing, "the loop is not closing");
        break;
    default:
        sim_require(reason == WEIR_CLOSE_ERROR, "reason %d", reason);
        sim_require((error == -ENOMEM && lacked_memory) ||
                        ((error == -ECONNRESET || error == -EPIPE || error == -ENOTCONN) && has_gone),
                    "connection %llu: closed with %s, for no reason", (unsigned long long)c->number,
                    weir_error_name(error));
    }
    sim_require(!c->is_dialled || c->open_told || c->is_closing || reason == WEIR_CLOSE_CONNECT ||
                    reason == WEIR_CLOSE_LOOP || reason == WEIR_CLOSE_ERROR,
                "connection %llu was never said to be open", (unsigned long long)c->number);
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    connection *c = userdata;
    sim_require(c->is_used && c->is_started, "on_close of a stream that was not started");
    sim_require(c->closes++ == 0, "on_close twice");
    sim_require(weir_stream_get_state(stream) == WEIR_STREAM_CLOSED, "on_close before it is closed");
    sim_require(stream->queue.bytes == 0 && stream->staged.bytes == 0, "on_close with bytes queued");
    sim_require(error != -ECANCELED, "a cancellation was told as an error");
    sim_require(error != -EILSEQ, "the library does not trust the kernel's order");
    check_reason(c, reason, error);
    app.accepted_open -= !c->is_dialled;
    c->reason = reason;
    c->error = error;
    app.streams_closed++;
    sim_ring_forget((uint64_t)(uintptr_t)&stream->in);
    sim_note("connection %llu (%s): closed, reason %d, %s", (unsigned long long)c->number, role_names[c->role],
             reason, weir_error_name(error));
    if (c->partner != NULL && c->partner->is_used && c->partner->stream != NULL && c->partner->closes == 0 &&
        c->partner->is_started && !c->partner->is_closing)
        close_connection(c->partner);
    c->stream = weir_stream_unref(c->stream);
}

static const weir_stream_callbacks callbacks = { .size = sizeof callbacks,
                                                 .on_open = on_open,
                                                 .on_data = on_data,
                                                 .on_end = on_end,
                                                 .on_drain = on_drain,
                                                 .on_close = on_close };

static void use(connection *c, bool is_used) {
    if (is_used == c->is_used)
        return;
    c->is_used = is_used;
    if (is_used) {
        c->place = app.used_count++;
        app.used[c->place] = c;
    } else {
        connection *last = app.used[--app.used_count];
        app.used[c->place] = last;
        last->place = c->place;
    }
}

static void start_connection(connection *c, weir_stream *stream) {
    use(c, true); /* also if its peer has gone meanwhile */
    c->stream = weir_stream_ref(stream);
    c->is_started = true;
    sim_require(weir_stream_start(stream, &callbacks, c) == 0, "start failed");
}

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener, (void)userdata;
    sim_socket *socket = sim_socket_of(weir_stream_get_fd(stream));
    sim_require(socket != NULL && socket->peer != NULL, "a connection that nobody made");
    connection *c = socket->peer;
    sim_require(!c->is_started, "a connection was accepted twice");
    sim_require(!app.is_listener_paused, "a paused listener hands out");
    sim_require(app.max_streams == 0 || app.accepted_open < app.max_streams,
                "more streams than the listener may have");
    if (sim_random(32) == 0) {
        weir_stream_close(stream);
        c->was_aborted = true;
        return;
    }
    app.accepted_open++;
    start_connection(c, stream);
    act(c);
}

static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

static void on_timer(weir_timer *timer, void *userdata) {
    size_t i = (size_t)(uintptr_t)userdata;
    sim_require(app.timers[i] == timer && app.due[i] >= 0, "timer %zu fired after it was stopped", i);
    sim_require(sim.now_ns + TIMER_SLACK >= app.due[i], "timer %zu fired too early", i);
    int64_t next = app.due[i] + app.repeat[i], now = app.loop->now;
    app.due[i] = app.repeat[i] == 0 ? -1 : next > now ? next : now + app.repeat[i];
}

static void check_timers(int64_t until, const char *what) {
    for (size_t i = 0; i < TIMERS; i++)
        sim_require(app.due[i] < 0 || app.due[i] + TIMER_SLACK >= until, "timer %zu: %s", i, what);
}

static void on_post_to_stop(weir_loop *loop, void *userdata) {
    (void)userdata;
    app.ran++;
    weir_loop_stop(loop);
}

static void on_post(weir_loop *loop, void *userdata) {
    sim_require(loop == app.loop && !sim.is_other_thread, "a post ran elsewhere");
    sim_require((uint64_t)(uintptr_t)userdata == ++app.post_ran, "posts ran out of order");
    app.ran++;
}

/* ---- connections ------------------------------------------------------------------------------------ */

static connection *connection_new(enum role role) {
    if (app.used_count >= sim.config.connections || app.all_count == MOST_EVER)
        return NULL;
    connection *c = app.all[app.all_count++] = calloc(1, sizeof *c);
    *c = (connection){ .number = ++app.numbers, .role = role };
    use(c, true);
    c->in_seed = c->number * 2;
    c->out_seed = role == ECHO ? c->in_seed : c->in_seed + 1;
    c->peer_limit = sim_random((uint64_t)1 << (4 + sim_random(16)));
    c->peer_is_slow = sim_random(4) == 0;
    c->peer_is_dead = sim_random(24) == 0;
    c->peer_waits = (role == SOURCE || role == SINK) && sim_random(4) == 0;
    return c;
}

/* One of those that are going on, or NULL. */
static connection *any_connection(void) {
    return app.used_count > 0 ? app.used[sim_random(app.used_count)] : NULL;
}

/* A peer comes. */
static void come(void) {
    connection *c = connection_new((enum role)sim_random(3));
    if (c == NULL)
        return;
    c->socket = sim_stream_new(true);
    c->socket->peer = c;
    int r = sim_connect(c->socket, (const struct sockaddr *)&app.address.storage, app.address.length);
    if (r < 0) {
        sim_close_socket(c->socket);
        use(c, false);
        return;
    }
    sim_note("connection %llu (%s): came", (unsigned long long)c->number, role_names[c->role]);
}

/* The application dials a peer's listener. */
static connection *dial(enum role role) {
    weir_stream_options options = { .size = sizeof options,
                                    .connect_timeout_ns = 50000000,
                                    .linger_timeout_ns = 1000000000,
                                    .queue_limit_bytes = app.queue_limit };
    connection *c = connection_new(role);
    if (c == NULL)
        return NULL;
    weir_stream *stream;
    int r = weir_stream_dial(app.loop, app.is_unix ? "unix:@upstream" : "127.0.0.1:9", &options, &stream);
    if (r < 0) {
        sim_require(r == -ENOMEM || r == -EMFILE, "dial said %s", weir_error_name(r));
        use(c, false);
        return NULL;
    }
    c->is_dialled = true;
    sim_socket *socket = sim_socket_of(weir_stream_get_fd(stream));
    socket->peer = c;
    start_connection(c, stream);
    sim_note("connection %llu (%s): dialled", (unsigned long long)c->number, role_names[role]);
    return c;
}

static void dial_pair(void) {
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

/* ---- the peers' side -------------------------------------------------------------------------------- */

static void peer_reset(connection *c) {
    sim_note("connection %llu: the peer resets", (unsigned long long)c->number);
    sim_reset(c->socket);
    sim_take(c->socket, NULL, sim_readable(c->socket));
    c->peer_gone = c->peer_was_reset = true;
}

/* A Unix socket that ends without grace looks to its peer like one that ended well. */
static bool is_end_honest(const connection *c) {
    if (!app.is_unix)
        return true;
    if (c->was_aborted || !c->is_started)
        return false;
    return c->closes == 0 ? !c->stream->has_failed && c->stream->output_error == 0
                          : c->reason == WEIR_CLOSE_LOCAL || c->reason == WEIR_CLOSE_PEER;
}

static bool peer_read(connection *c) {
    static uint8_t bytes[1 << 16];
    size_t size = sim_readable(c->socket);
    if (size > 0) {
        size = size > sizeof bytes ? sizeof bytes : size;
        if (!sim.is_calm)
            size = 1 + (size_t)sim_random(size);
        sim_take(c->socket, bytes, size);
        int64_t at = test_differs(c->out_seed, c->peer_read, bytes, size);
        sim_require(at < 0, "connection %llu (%s): byte %lld is not what the application wrote",
                    (unsigned long long)c->number, role_names[c->role], (long long)at);
        c->peer_read += size;
        sim_require(c->peer_read <= c->app_wrote, "connection %llu (%s): more bytes than the application wrote",
                    (unsigned long long)c->number, role_names[c->role]);
        return true;
    }
    if (c->socket->is_reset) {
        c->peer_gone = c->peer_was_reset = true;
        return true;
    }
    if (c->socket->has_ended && !c->peer_saw_end) {
        c->peer_saw_end = true;
        /* The application ended its half: nothing that it wrote may be missing. */
        sim_require(c->peer_read == c->app_wrote || !is_end_honest(c),
                    "connection %llu (%s): the end came after %llu of %llu bytes", (unsigned long long)c->number,
                    role_names[c->role], (unsigned long long)c->peer_read, (unsigned long long)c->app_wrote);
        return true;
    }
    return false;
}

static bool peer_write(connection *c) {
    static uint8_t bytes[1 << 14];
    if (c->peer_shut || !c->socket->is_connected)
        return false;
    if (c->peer_wrote >= c->peer_limit && c->peer_waits && c->is_closing && !c->peer_saw_end)
        return false;
    if (c->peer_wrote >= c->peer_limit || c->peer_saw_end) {
        sim_shut(c->socket);
        c->peer_shut = true;
        return true;
    }
    const sim_socket *far = c->socket->other;
    if (far != NULL && !c->socket->has_error && sim_readable(far) >= far->room)
        return false;
    size_t size = 1 + (size_t)sim_random((uint64_t)1 << sim_random(15));
    if (size > c->peer_limit - c->peer_wrote)
        size = (size_t)(c->peer_limit - c->peer_wrote);
    test_fill(c->in_seed, c->peer_wrote, bytes, size);
    int r = sim_transmit(c->socket, bytes, size);
    if (r > 0)
        c->peer_wrote += (uint64_t)r;
    if (r > 0 && c->socket->is_tcp && c->socket->other != NULL && sim_fault(SIM_URGENT))
        c->socket->other->is_urgent = true;
    if (r == -EPIPE || r == -ECONNRESET)
        c->peer_gone = c->peer_was_reset = true;
    return r != -EAGAIN;
}

static bool peer_act(connection *c) {
    if (c->socket == NULL) { /* dialled: is it there yet? */
        for (unsigned i = 0; i < app.upstream->pending_count; i++)
            if (app.upstream->pending[i]->peer == c) {
                c->socket = sim_accept(app.upstream);
                connection *first = c->socket->peer;
                if (first != c) { /* they come in order; give it to its own */
                    first->socket = c->socket;
                    c->socket = NULL;
                }
                return true;
            }
        return false;
    }
    if (c->peer_gone || (c->peer_is_dead && c->peer_wrote >= c->peer_limit / 2))
        return false;
    if (sim_random(200) == 0 && sim_fault(SIM_RESET)) {
        peer_reset(c);
        return true;
    }
    if (c->peer_is_slow && !sim.is_calm && sim_random(4) != 0)
        return false;
    bool did = sim_random(2) == 0 ? peer_read(c) || peer_write(c) : peer_write(c) || peer_read(c);
    if (!c->peer_gone && c->peer_shut && c->peer_saw_end && sim_readable(c->socket) == 0) {
        sim_close_socket(c->socket);
        c->peer_gone = true;
        did = true;
    }
    return did;
}

/* A connection that both sides are done with makes place for another. */
static void reap(connection *c) {
    bool never_came = !c->is_started && !c->is_dialled;
    if (c->is_started && c->closes == 0)
        return;
    bool is_left = c->peer_is_dead && c->socket != NULL && c->socket->other == NULL;
    if (never_came && !c->peer_gone && !is_left)
        return;
    if (c->socket != NULL && !c->peer_gone && !c->peer_is_dead)
        return;
    if (c->is_started && !c->was_aborted && !c->peer_was_reset && c->socket != NULL &&
        (c->reason == WEIR_CLOSE_LOCAL || c->reason == WEIR_CLOSE_PEER))
        sim_require(c->peer_read == c->app_wrote, "connection %llu: it ended well, and %llu of %llu bytes came",
                    (unsigned long long)c->number, (unsigned long long)c->peer_read,
                    (unsigned long long)c->app_wrote);
    if (c->socket != NULL && !c->socket->is_freed)
        sim_close_socket(c->socket);
    if (c->partner != NULL)
        c->partner->partner = NULL, c->partner->role = c->partner->role == FORWARD ? SINK : c->partner->role;
    use(c, false);
}

bool sim_world_step(void) {
    if (app.loop == NULL)
        return false;
    sim.steps++;
    if (!app.no_new && sim_random(12) == 0)
        come();
    bool did = false;
    size_t count = app.used_count, first = count > 0 ? (size_t)sim_random(count) : 0;
    for (size_t i = 0; i < count && app.used_count > 0 && !did; i++) {
        connection *c = app.used[(first + i) % app.used_count];
        did = peer_act(c);
        reap(c);
    }
    sim.now_ns += (int64_t)sim_random(20000);
    return did;
}

void sim_between(sim_socket *socket) {
    if (app.loop == NULL || !sim_fault(SIM_RESET_BETWEEN))
        return;
    connection *c = sim_random(2) == 0 ? socket->peer : any_connection();
    if (c != NULL && c->is_used && c->socket != NULL && !c->peer_gone)
        peer_reset(c);
}

void sim_worker(const sim_socket *socket) {
    sim_fail("descriptor %d: a send that waits in the kernel has got a worker thread", socket->fd);
}

/* ---- other threads ---------------------------------------------------------------------------------- */

static void post_one(void) {
    uint64_t number = app.post_started + 1;
    int r = weir_loop_post(app.loop, on_post, (void *)(uintptr_t)number);
    if (r < 0) {
        sim_require(r == -ENOMEM || r == -ESHUTDOWN, "post said %s", weir_error_name(r));
        return;
    }
    app.post_started++;
    app.posted++;
}

void sim_other_thread(void) {
    if (app.loop == NULL || app.is_in_thread || sim.is_other_thread || sim.is_calm || !sim_fault(SIM_OTHER_THREAD))
        return;
    app.is_in_thread = sim.is_other_thread = true;
    switch (sim_random(3)) {
    case 0:
        if (app.held_count > 0)
            drop_held((size_t)sim_random(app.held_count));
        break;
    case 1:
        post_one();
        break;
    default:
        weir_loop_stop(app.loop);
    }
    app.is_in_thread = sim.is_other_thread = false;
}

void __real_weir__waker_sleep(weir__waker *waker);
void __wrap_weir__waker_sleep(weir__waker *waker);

/* The loop has found nothing to do and is about to say that it sleeps. */
void __wrap_weir__waker_sleep(weir__waker *waker) {
    sim_other_thread();
    __real_weir__waker_sleep(waker);
}

/* ---- what must be true at any time ------------------------------------------------------------------- */

static void check_world(void) {
    weir_pool *pool = weir_loop_get_pool(app.loop);
    weir_pool_stats stats = { .size = sizeof stats };
    sim_require(weir_pool_get_stats(pool, &stats) == 0, "no statistics");
    if (app.checks++ % 8 == 0) /* it looks at every buffer */
        sim_require(weir__pool_is_consistent(pool), "the pool's account is not right");
    sim_require(stats.used_bytes <= stats.budget_bytes, "the budget is exceeded");
    app.was_dry = app.was_dry || (sim.is_calm && stats.buffers_posted + stats.buffers_filling == 0);
    if (app.max_turn_events == 0 || app.max_turn_events >= TIMERS)
        check_timers(app.loop->now, "it is overdue");
    for (size_t i = 0; i < app.used_count; i++) {
        connection *c = app.used[i];
        if (c->is_full && c->stream != NULL && c->closes == 0 && !c->is_closing && c->stream->queue.bytes == 0 &&
            weir__op_is_idle(&c->stream->out) && c->stream->output_error == 0 && !c->stream->has_failed)
            sim_require(++c->turns_without_drain < 8, "connection %llu: nothing is queued, and no drain comes",
                        (unsigned long long)c->number);
    }
    if (app.held_count > 0)
        check_held(&app.held[sim_random(app.held_count)]);
    sim_require(app.external_released <= app.external_given, "external memory was released too often");
}

void sim_check_sleep(int64_t until) {
    if (app.loop == NULL)
        return;
    sim_require(until - sim.now_ns <= 1000000000, "a sleep that a lost wake-up would make last");
    check_timers(until, "the loop sleeps past it");
    weir_pool *pool = weir_loop_get_pool(app.loop);
    weir_pool_stats stats = { .size = sizeof stats };
    (void)weir_pool_get_stats(pool, &stats);
    sim_require(app.posted == app.ran, "the loop sleeps while a post waits");
    sim_require(stats.parked_streams == 0 || !weir__pool_has_returned(pool),
                "the loop sleeps while streams wait and a buffer has come back");
    sim_require(atomic_load(&app.loop->is_stopping) == 0 || app.loop->phase != WEIR__PHASE_RUNNING,
                "the loop sleeps although it was stopped");
}

/* ---- a run ------------------------------------------------------------------------------------------ */

static void act_outside(void) {
    switch (sim_random(12)) {
    case 0:
        if (!app.no_new)
            (void)dial((enum role)sim_random(3));
        break;
    case 1:
        if (!app.no_new)
            dial_pair();
        break;
    case 2: {
        size_t i = (size_t)sim_random(TIMERS);
        int64_t delay = (int64_t)sim_random(50000000),
                repeat = sim_random(3) == 0 ? 1 + (int64_t)sim_random(9000000) : 0;
        app.due[i] = sim.now_ns + delay;
        app.repeat[i] = repeat;
        sim_require(weir_timer_start(app.timers[i], delay, repeat) == 0, "a timer did not start");
        break;
    }
    case 3: {
        size_t i = (size_t)sim_random(TIMERS);
        sim_require(weir_timer_stop(app.timers[i]) == 0, "a timer did not stop");
        app.due[i] = -1;
        break;
    }
    case 4:
        post_one();
        break;
    case 5:
        if (app.held_count > 0)
            drop_held((size_t)sim_random(app.held_count));
        break;
    case 6:
        app.is_listener_paused = sim_random(2) == 0;
        sim_require((app.is_listener_paused ? weir_listener_pause : weir_listener_resume)(app.listener) == 0,
                    "pause, resume");
        break;
    default: {
        connection *c = any_connection();
        if (c != NULL)
            act(c);
    }
    }
}

static void turn(void) {
    int r = 0;
    bool runs = sim_random(32) == 0 && weir_loop_post(app.loop, on_post_to_stop, NULL) == 0;
    if (runs) { /* until it is stopped, or it hangs */
        app.posted++;
        r = weir_loop_run(app.loop);
    } else {
        r = weir_loop_run_once(app.loop, (int64_t)sim_random(4) * 2000000);
    }
    sim_require(r >= 0 || r == -ENOMEM, "run_once said %s", weir_error_name(r));
    check_world();
}

static bool is_everything_over(void) {
    return app.used_count == 0;
}

/* A peer that reset is noticed soon, whatever the stream is doing or not doing. */
static void expect_resets_noticed(void) {
    bool is_one_left = true;
    while (is_one_left) {
        turn();
        sim.now_ns += 10000000;
        weir_pool_stats stats = { .size = sizeof stats };
        sim_require(weir_pool_get_stats(weir_loop_get_pool(app.loop), &stats) == 0, "no statistics");
        if (stats.buffers_posted + stats.buffers_filling == 0)
            return; /* what waits for a peer that does not read holds them all: nothing can be received */
        is_one_left = false;
        for (size_t i = 0; i < app.used_count; i++) {
            connection *c = app.used[i];
            if (!c->is_started || c->closes > 0 || !c->peer_was_reset || c->is_closing)
                continue;
            is_one_left = true;
            /* Where a turn looks at a few completions only, hundreds may wait in the queue. */
            sim_require(++c->turns_since_reset < (app.max_turn_events > 0 ? 10000 : 400),
                        "connection %llu: its peer reset it, and nobody noticed: %s",
                        (unsigned long long)c->number, sim_describe());
        }
    }
}

/* Faults stop: everything must come to its end, soon. */
static void calm_down(void) {
    sim.is_calm = app.no_new = true;
    app.may_fail = false;
    while (app.held_count > 0)
        drop_held(app.held_count - 1);
    for (size_t i = 0; i < TIMERS; i++) {
        (void)weir_timer_stop(app.timers[i]);
        app.due[i] = -1;
    }
    expect_resets_noticed(); /* in which time flies */
    app.is_time_honest = true;
    for (size_t i = 0; i < app.all_count; i++) {
        connection *c = app.all[i];
        c->peer_is_slow = false;
        c->peer_limit = c->peer_wrote;
        if (c->is_used && c->is_started && c->closes == 0 && !c->is_closing) {
            resume_connection(c);
            if ((c->role != ECHO && c->role != FORWARD) || c->peer_is_dead)
                close_connection(c);
        }
    }
    app.is_listener_paused = false;
    (void)weir_listener_resume(app.listener);
    int turns = 0;
    while (!is_everything_over()) {
        sim_require(++turns < 20000, "it does not come to its end: %s", sim_describe());
        turn();
        (void)sim_world_step();
        for (size_t i = 0; i < app.all_count; i++) {
            connection *c = app.all[i];
            if (c->is_used && c->is_started && c->closes == 0 && !c->is_closing &&
                (c->end_told || c->peer_is_dead))
                close_connection(c);
        }
        if (turns % 64 == 0)
            sim.now_ns += 10000000;
    }
}

const char *sim_describe(void) {
    static char text[4096];
    size_t at = 0;
    weir_pool_stats stats = { .size = sizeof stats };
    if (app.loop == NULL)
        return "";
    (void)weir_pool_get_stats(weir_loop_get_pool(app.loop), &stats);
    at += (size_t)snprintf(text + at, sizeof text - at,
                           "idle %u, posted %u, filling %u, retired %u, parked %u, used %llu of %llu, %u requests",
                           stats.buffers_idle, stats.buffers_posted, stats.buffers_filling, stats.buffers_retired,
                           stats.parked_streams, (unsigned long long)stats.used_bytes,
                           (unsigned long long)stats.budget_bytes, sim_ring_requests());
    for (size_t i = 0; i < app.all_count && at + 400 < sizeof text; i++) {
        const connection *c = app.all[i];
        if (!c->is_used)
            continue;
        at += (size_t)snprintf(
            text + at, sizeof text - at,
            "\n  connection %llu (%s)%s%s%s%s%s%s%s%s: peer wrote %llu read %llu of %llu, app read %llu; readable "
            "%zu, in %d/%d "
            "out %d/%d queue %llu staged %llu state %d",
            (unsigned long long)c->number, role_names[c->role], c->is_started ? " started" : "",
            c->is_paused ? " paused" : "", c->is_closing ? " closing" : "", c->peer_shut ? " peer-shut" : "",
            c->peer_gone ? " peer-gone" : "", c->peer_saw_end ? " peer-saw-end" : "",
            c->end_told ? " end-told" : "", c->is_full ? " full" : "", (unsigned long long)c->peer_wrote,
            (unsigned long long)c->peer_read, (unsigned long long)c->app_wrote, (unsigned long long)c->app_read,
            c->socket != NULL ? sim_readable(c->socket) : 0, c->stream ? c->stream->in.kind : -1,
            c->stream ? c->stream->in.state : -1, c->stream ? c->stream->out.kind : -1,
            c->stream ? c->stream->out.state : -1, c->stream ? (unsigned long long)c->stream->queue.bytes : 0,
            c->stream ? (unsigned long long)c->stream->staged.bytes : 0, c->stream ? c->stream->state : -1);
    }
    return text;
}

/* What fails leaves nothing behind; after that it succeeds. */
static weir_loop *open_loop(const weir_loop_options *options) {
    const weir__tuning tuning = { .no_self_test = true };
    weir_loop *loop = NULL;
    app.may_fail = true;
    int r = weir__loop_new(options, &tuning, &loop);
    app.may_fail = false;
    sim.is_calm = true; /* what else is opened now is not tested here */
    if (r == 0)
        return loop;
    sim_require(r == -ENOMEM || r == -EMFILE, "a loop could not be made: %s", weir_error_name(r));
    sim_require(loop == NULL && app.live_blocks == 0 && sim.mappings == 0 && sim.descriptors == 0,
                "a loop that could not be made left something behind");
    sim_require(weir__loop_new(options, &tuning, &loop) == 0, "no loop");
    return loop;
}

static void open_all(void) {
    app.max_turn_events = sim_random(3) == 0 ? 1 + (uint32_t)sim_random(8) : 0;
    uint32_t buffer = 4096U << sim_random(3);
    uint64_t buffers = 1 + sim_random(24);
    weir_pool_options pool = { .size = sizeof pool,
                               .buffer_bytes = buffer,
                               .budget_bytes = buffer * buffers + (sim_random(2) == 0 ? 1 << 20 : 0),
                               .window_bytes = buffer * (uint32_t)(1 + sim_random(buffers)) };
    weir_loop_options options = { .size = sizeof options,
                                  .backend = sim.config.classic ? WEIR_BACKEND_URING_CLASSIC
                                                                : WEIR_BACKEND_URING_INCREMENTAL,
                                  .flags = WEIR_LOOP_KEEP_RUNNING,
                                  .pool = &pool,
                                  .allocator = &allocator,
                                  .max_turn_events = app.max_turn_events };
    weir_loop *loop = open_loop(&options);
    app.max_streams = sim_random(3) == 0 ? 1 + (uint32_t)sim_random(8) : 0;
    app.queue_limit = sim_random(2) == 0 ? (uint64_t)1 << (12 + sim_random(9)) : 16 << 20;
    app.queue_high = app.queue_limit / 2 < 1 << 20 ? app.queue_limit / 2 : 1 << 20;
    app.queue_low = app.queue_high / 4;
    weir_listener_options listening = { .size = sizeof listening, .max_streams = app.max_streams };
    weir_stream_options each = { .size = sizeof each,
                                 .linger_timeout_ns = 1000000000,
                                 .queue_limit_bytes = app.queue_limit };
    listening.stream = &each;
    app.is_unix = sim_random(4) == 0;
    const char *address = app.is_unix ? "unix:@listener" : "127.0.0.1:7";
    sim_require(weir_listener_open(loop, address, &listening, &app.listener) == 0, "no listener");
    sim_require(weir_listener_start(app.listener, &accepting, NULL) == 0, "the listener did not start");
    sim_require(weir__address_parse(address, &app.address) == 0, "address");
    sim_require(weir__address_parse(app.is_unix ? "unix:@upstream" : "127.0.0.1:9", &app.upstream_address) == 0,
                "address");
    app.upstream =
        sim_listener_new((const struct sockaddr *)&app.upstream_address.storage, app.upstream_address.length);
    for (size_t i = 0; i < TIMERS; i++) {
        app.due[i] = -1;
        sim_require(weir_timer_new(loop, on_timer, (void *)(uintptr_t)i, &app.timers[i]) == 0, "no timer");
    }
    app.loop = loop;
    sim.is_calm = false;
    app.may_fail = true;
}

void sim_run(const sim_config *config) {
    sim_begin(config);
    memset(&app, 0, sizeof app);
    open_all();
    bool ends_abruptly = sim_random(4) == 0;
    while (sim.steps < config->steps) {
        if (sim_random(3) == 0)
            act_outside();
        turn();
        (void)sim_world_step(); /* also when the loop does not sleep */
    }
    if (!ends_abruptly)
        calm_down();
    else
        sim_note("the loop is closed in the middle");
    app.no_new = true;
    app.may_fail = false;
    app.is_loop_closing = true;
    weir_loop *loop = app.loop;
    for (size_t i = 0; i < TIMERS; i++) {
        weir_timer_unref(app.timers[i]);
        app.due[i] = -1;
    }
    int r = weir_loop_close(loop);
    sim_require(r == 0, "close said %s", weir_error_name(r));
    sim_require(app.posted == app.ran, "a post that was taken did not run");
    app.loop = NULL;
    for (size_t i = 0; i < app.all_count; i++)
        sim_require(!app.all[i]->is_started || app.all[i]->closes == 1, "a started stream without on_close");
    sim_require(app.external_given == app.external_released, "external memory was not released");
    weir_loop_unref(loop);
    while (app.held_count > 0) /* slices outlive the loop */
        drop_held(app.held_count - 1);
    sim_require(app.live_blocks == 0, "%llu blocks of memory are left", (unsigned long long)app.live_blocks);
    sim_require(sim.mappings == 0, "%d mappings are left", sim.mappings);
    sim_require(sim.descriptors == 0, "%d descriptors are left", sim.descriptors);
    for (size_t i = 0; i < app.all_count; i++)
        free(app.all[i]);
    sim_end();
}
