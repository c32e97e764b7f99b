/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "sim/program.h"

/* The application above the library: what it does to its streams, and what it is told. */

const char *const role_names[ROLES] = { "echo", "source", "sink", "pipe", "forward" };

/* ---- acting ----------------------------------------------------------------------------------------- */

static void abort_connection(connection *c) {
    sim_note("connection %llu: abort", (unsigned long long)c->number);
    note_all_piped(c);
    c->was_aborted = c->is_closing = true;
    forget_starved(c);
    sim_require(weir_stream_abort(c->stream) == 0, "abort failed");
}

static void pause_connection(connection *c) {
    note_all_piped(c);
    c->is_paused = true;
    note_held_back(c);
    forget_starved(c);
    sim_require(weir_stream_pause(c->stream) == 0, "pause failed");
}

void resume_connection(connection *c) {
    note_all_piped(c);
    c->is_paused = false;
    note_held_back(c);
    forget_starved(c); /* it may have starved since the pause */
    sim_require(weir_stream_resume(c->stream) == 0, "resume failed");
}

void close_connection(connection *c) {
    sim_note("connection %llu: close", (unsigned long long)c->number);
    note_all_piped(c);
    bool is_first = !c->is_closing && !c->stream->wants_close;
    c->is_closing = true;
    c->closed_after_end = c->end_told;
    c->closed_in_calm = app.is_time_honest;
    c->closing_at = is_first ? sim.now_ns : c->closing_at;
    c->lingers_ns = !is_first ? c->lingers_ns : c->options[WEIR_OPTION_LINGER_TIMEOUT_NS];
    forget_starved(c);
    sim_require(weir_stream_close(c->stream) == 0, "close failed");
}

static bool tells_of_drains(const connection *c) {
    return c->is_held || c->callbacks == NULL || c->callbacks->on_drain != NULL;
}

static void owe_drain(connection *c) {
    c->is_full = tells_of_drains(c);
    c->sent_before = c->stream->bytes_out;
}

/* What a write of these bytes said. Return: it was taken. */
static bool took_these(connection *to, int r, uint64_t seed, uint64_t position, size_t size) {
    uint64_t queued = to->stream != NULL ? weir_stream_get_queued(to->stream) : 0;
    if (r >= 0) {
        note_piped(to);
        has_to_send(to, seed, position, size);
        sim_require(!to->is_shut && !to->is_closing, "a write was taken after shutdown or close");
        sim_require(queued <= (uint64_t)to->options[WEIR_OPTION_QUEUE_LIMIT_BYTES],
                    "the queue is longer than its limit");
        sim_require((r == WEIR_WRITE_FULL) == (queued > (uint64_t)to->options[WEIR_OPTION_QUEUE_HIGH_BYTES]) ||
                        to->stream->queue.count > 512,
                    "a write said %d, and the queue has %llu bytes", r, (unsigned long long)queued);
        if (r == WEIR_WRITE_FULL)
            owe_drain(to);
        to->is_cork_lifted = to->is_cork_lifted || r == WEIR_WRITE_FULL;
        return true;
    }
    sim_require(r == -ENOBUFS || r == -ENOMEM || r == -EPIPE || r == -EMSGSIZE, "a write said %s",
                weir_error_name(r));
    sim_require(r == -EPIPE || (r == -EMSGSIZE) == (size > (uint64_t)to->options[WEIR_OPTION_QUEUE_LIMIT_BYTES]),
                "a write of %zu bytes said %s", size, weir_error_name(r));
    if (r == -ENOBUFS && queued > 0) {
        owe_drain(to);
        to->is_cork_lifted = true;
    }
    return false;
}

/* Likewise, of the application's own bytes. */
static bool took(connection *to, int r, size_t size) {
    uint64_t position = to->own_wrote;
    to->own_wrote += r >= 0 ? size : 0;
    return took_these(to, r, to->out_seed, position, size);
}

/* Memory of the application's, and where it is noted; NULL: there is no place. */
static uint8_t *lend(connection *c, const uint8_t *bytes, size_t size, void **ret_userdata) {
    uint64_t index = app.external_given % MOST_EXTERNAL;
    lent *it = &app.external[index];
    if (it->memory != NULL)
        return NULL;
    *it = (lent){ .memory = malloc(size), .by = c };
    memcpy(it->memory, bytes, size);
    *ret_userdata = (void *)(uintptr_t)index;
    return it->memory;
}

static void lent_it(connection *c) {
    c->lent++;
    app.external_given++;
}

static void take_back(void *userdata) {
    lent *it = &app.external[(uintptr_t)userdata];
    free(it->memory);
    *it = (lent){ 0 };
}

/* In one piece, or in two parts of a slice. */
static void write_wrapped(connection *c, const uint8_t *bytes, size_t size) {
    weir_slice slice, part;
    void *userdata;
    uint8_t *memory = lend(c, bytes, size, &userdata);
    if (memory == NULL)
        return;
    if (weir_slice_wrap(weir_loop_get_pool(app.loop), memory, size, released_anywhere, userdata, &slice) < 0) {
        take_back(userdata);
        return;
    }
    lent_it(c);
    size_t first = sim_random(2) == 0 ? size : 1 + (size_t)sim_random(size);
    sim_require(weir_slice_sub(&slice, 0, first, &part) == 0, "no part of a slice");
    bool goes_on = took(c, weir_stream_write_slice(c->stream, &part), first);
    weir_slice_unref(&part);
    if (goes_on && first < size) {
        sim_require(weir_slice_sub(&slice, first, size - first, &part) == 0, "no part of a slice");
        (void)took(c, weir_stream_write_slice(c->stream, &part), size - first);
        weir_slice_unref(&part);
    }
    weir_slice_unref(&slice);
}

/* In a few slices, counted or not; all of them or none. */
static void write_several(connection *c, const uint8_t *bytes, size_t size) {
    enum { MOST = 6 };
    weir_slice slices[MOST];
    size_t count = 1 + (size_t)sim_random(MOST), at = 0;
    for (size_t i = 0; i < count; i++) {
        size_t part = i + 1 < count ? (size_t)sim_random(size - at + 1) : size - at;
        slices[i] = (weir_slice){ bytes + at, part, NULL };
        bool is_copied = part > 0 && sim_random(2) == 0;
        if (is_copied && weir_slice_copy(weir_loop_get_pool(app.loop), bytes + at, part, &slices[i]) < 0)
            slices[i] = (weir_slice){ bytes + at, part, NULL };
        at += part;
    }
    uint64_t before = weir_stream_get_queued(c->stream);
    int r = weir_stream_writev(c->stream, slices, count);
    sim_require(weir_stream_get_queued(c->stream) == before + (r >= 0 ? size : 0), "writev queued a part");
    (void)took(c, r, size);
    for (size_t i = 0; i < count; i++)
        weir_slice_unref(&slices[i]);
}

/* Often what brings the queue to its limit or its high mark, or a byte off: that is where a mistake by one shows. */
static size_t choose_size(const connection *c, size_t most) {
    size_t size = (size_t)1 + sim_random((uint64_t)1 << (1 + sim_random(15)));
    if (sim_random(4) == 0) {
        int which = sim_random(2) == 0 ? WEIR_OPTION_QUEUE_LIMIT_BYTES : WEIR_OPTION_QUEUE_HIGH_BYTES;
        uint64_t mark = (uint64_t)c->options[which] + sim_random(3), queued = weir_stream_get_queued(c->stream);
        if (mark > queued + 1 && mark - queued - 1 <= most)
            size = (size_t)(mark - queued - 1);
    }
    return size < most ? size : most;
}

/* The application's own bytes, by one of its ways to write. */
static void write_some(connection *c) {
    static uint8_t bytes[1 << 15];
    if (sim.is_calm) /* who writes at each drain, and has marks that each write is above, would never end */
        return;
    if ((c->role != SOURCE && c->role != PIPE) || c->is_closing || c->is_shut || c->is_full ||
        (!c->is_started && !c->is_held) || c->closes > 0)
        return;
    size_t size = choose_size(c, sizeof bytes);
    note_piped(c);
    test_fill(c->out_seed, c->own_wrote, bytes, size);
    weir_slice slice;
    switch (sim_random(6)) {
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
        void *userdata;
        uint8_t *memory = lend(c, bytes, size, &userdata);
        if (memory == NULL)
            break;
        if (took(c, weir_stream_write_external(c->stream, memory, size, released, userdata), size))
            lent_it(c);
        else
            take_back(userdata);
        break;
    }
    case 3:
        write_wrapped(c, bytes, size);
        break;
    case 4:
        write_several(c, bytes, size);
        break;
    default:
        slice = (weir_slice){ bytes, size, NULL };
        (void)took(c, weir_stream_write_slice(c->stream, &slice), size);
    }
    memset(bytes, 0xEE, size);
}

static void cork_or_uncork(connection *c) {
    note_piped(c);
    c->is_corked = !c->is_corked && !sim.is_calm;
    c->is_cork_lifted = c->stream->is_full_told || c->stream->is_pipe_full; /* a drain is owed */
    c->cork_position = c->app_wrote;
    if (!c->is_corked)
        c->uncorked_at = sim.now_ns;
    sim_require((c->is_corked ? weir_stream_cork : weir_stream_uncork)(c->stream) == 0, "cork, uncork");
}

void uncork(connection *c) {
    if (c->is_corked)
        cork_or_uncork(c);
}

/* What was added to streams since. */
static void do_more(connection *c) {
    switch (sim_random(8)) {
    case 0:
    case 1:
        if (c->role == PIPE && c->pipe_to == NULL)
            pipe_some(c);
        break;
    case 2:
        if (c->role == PIPE && sim_random(4) == 0)
            unpipe_some(c);
        break;
    case 3:
    case 4:
        grant_some(c);
        break;
    case 5:
        if (c->is_corked || sim_random(4) == 0)
            cork_or_uncork(c);
        break;
    default:
        flush_some(c);
    }
}

static void do_anything(connection *c) {
    if (c->is_held) { /* nothing but writing is possible, which waits; granting, and joining to another */
        if (sim_random(4) == 0)
            grant_some(c);
        else if (c->role == PIPE && sim_random(2) == 0)
            pipe_some(c);
        else
            write_some(c);
        return;
    }
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
            note_all_piped(c);
            int r = weir_stream_shutdown(c->stream);
            bool is_piped_into = c->pipe_from != NULL;
            sim_require(r == (is_piped_into ? -EBUSY : 0) || r == -EPIPE, "shutdown said %s", weir_error_name(r));
            c->is_shut = c->is_shut || r != -EBUSY;
        }
        break;
    case 9:
    case 10:
    case 11:
        do_more(c);
        break;
    default:
        break;
    }
}

/* Anything an application may do to a stream, in a callback or out of it. */
void act(connection *c) {
    uint64_t random;
    sim_require(!app.is_outside, "the application does something while its thread sleeps");
    notice_silent_ends();
    if (c == NULL || !sim_begin_action(&random))
        return;
    do_anything(c);
    sim_end_action(random);
}

/* ---- callbacks -------------------------------------------------------------------------------------- */

/* A callback may do anything to any stream. */
static void act_on_another(void) {
    if (sim_random(8) == 0)
        act(any_connection());
}

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
    c->opened_at = sim.now_ns;
    act(c);
    act_on_another();
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
    note_all_piped(c);
    sim_require(c->pipe_to == NULL && !c->is_pipe_broken, "connection %llu: data although it is piped",
                (unsigned long long)c->number);
    spend(c, slice->size);
    int64_t at = test_differs(c->in_seed, c->app_read, slice->data, slice->size);
    sim_require(at < 0, "connection %llu (%s): byte %lld is not what the peer wrote",
                (unsigned long long)c->number, role_names[c->role], (long long)at);
    sim_require(c->app_read + slice->size <= c->peer_wrote, "more bytes than the peer wrote");
    if (sim_random(6) == 0 && !sim.is_calm)
        hold(c, slice, sim_random(2) == 0);
    c->app_read += slice->size;
    if (c->chain != NULL)
        parse(c, slice);
    connection *to = c->role == ECHO ? c : c->role == FORWARD ? c->partner : NULL;
    if (to != NULL) {
        int r = to->stream != NULL && (to->is_started || to->is_held) ? weir_stream_write_slice(to->stream, slice)
                                                                      : -EPIPE;
        if (!took_these(to, r, c->in_seed, c->app_read - slice->size, slice->size))
            abort_connection(c); /* a gap is not allowed */
        else if (r == WEIR_WRITE_FULL && !c->is_closing)
            pause_connection(c);
    }
    act(c);
    act_on_another();
}

static void on_end(weir_stream *stream, void *userdata) {
    connection *c = userdata;
    (void)stream;
    check_alive(c, "on_end");
    note_all_piped(c);
    sim_require(!c->is_metered || c->credit > 0, "connection %llu: an end, and nothing is granted",
                (unsigned long long)c->number);
    sim_require(!c->end_told, "on_end twice");
    sim_require(!c->is_paused && !c->is_closing, "on_end while paused, or after close");
    sim_require(c->peer_shut || (c->peer_gone && !c->peer_was_reset), "an end that the peer did not send");
    sim_require(!c->is_dialled || c->open_told, "an end before it is open");
    sim_require(c->app_read == c->peer_wrote, "connection %llu: the end came after %llu of %llu bytes",
                (unsigned long long)c->number, (unsigned long long)c->app_read, (unsigned long long)c->peer_wrote);
    c->end_told = true;
    note_held_back(c);
    bool is_pair = c->pipe_to != NULL && c->pipe_to->pipe_to == c;
    pass_end(c);
    if (is_pair)
        act_on_another();
    else if (c->role == FORWARD && c->partner->is_used && c->partner->stream != NULL && c->partner->closes == 0 &&
             !c->partner->is_closing) {
        (void)weir_stream_shutdown(c->partner->stream);
        c->partner->is_shut = true;
    } else if (sim_random(4) != 0) {
        close_connection(c);
    }
    act_on_another();
}

static void on_drain(weir_stream *stream, void *userdata) {
    connection *c = userdata;
    check_alive(c, "on_drain");
    sim_require(c->is_full, "a drain that nobody waits for");
    sim_require(weir_stream_get_queued(stream) <= (uint64_t)c->options[WEIR_OPTION_QUEUE_LOW_BYTES],
                "a drain above the low mark");
    c->is_full = false;
    c->turns_without_drain = 0;
    connection *from = c->role == ECHO ? c : c->role == FORWARD ? c->partner : NULL;
    if (from != NULL && from->is_used && from->is_started && from->closes == 0 && !from->is_closing)
        resume_connection(from);
    act(c);
    act_on_another();
}

/* Without on_end the library closes a stream whose peer has ended. */
static void notice_end(connection *c) {
    if (c->callbacks->on_end != NULL || c->is_closing || !c->stream->wants_close)
        return;
    sim_require(c->app_read == c->peer_wrote, "it closed by itself before all had come");
    sim_require(c->peer_shut || (c->peer_gone && !c->peer_was_reset), "an end that the peer did not send");
    c->is_closing = c->closed_after_end = true;
    c->closed_in_calm = app.is_time_honest;
    forget_starved(c);
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    connection *c = userdata;
    sim_require(c->is_used && c->is_started, "on_close of a stream that was not started");
    notice_end(c);
    notice_pair(c);
    sim_require(c->closes++ == 0, "on_close twice");
    note_all_piped(c);
    sim_require(weir_stream_get_state(stream) == WEIR_STREAM_CLOSED, "on_close before it is closed");
    sim_require(weir_stream_set_option(stream, WEIR_OPTION_IDLE_TIMEOUT_NS, 1) == -EBADF,
                "an option of a closed stream was set");
    sim_require(stream->queue.bytes == 0 && stream->staged.bytes == 0, "on_close with bytes queued");
    check_flushes(c, error);
    c->chain = weir_chain_unref(c->chain);
    sim_require(c->lent == 0, "on_close before external memory was released");
    sim_require(error != -ECANCELED, "a cancellation was told as an error");
    sim_require(error != -EILSEQ, "the library does not trust the kernel's order");
    check_reason(c, reason, error);
    end_pipes(c, reason, error);
    app.accepted_open -= c->is_counted;
    c->is_counted = false;
    c->reason = reason;
    c->error = error;
    app.streams_closed++;
    forget_starved(c);
    sim_note("connection %llu (%s): closed, reason %d, %s", (unsigned long long)c->number, role_names[c->role],
             reason, weir_error_name(error));
    if (c->partner != NULL && c->partner->is_used && c->partner->stream != NULL && c->partner->closes == 0 &&
        c->partner->is_started && !c->partner->is_closing)
        close_connection(c->partner);
    c->stream = weir_stream_unref(c->stream);
    act_on_another();
}

/* All of them, and those who leave one out. A forwarder needs them all, an echo those that say when to go on. */
enum { COMPLETE, WITHOUT_DRAIN, WITHOUT_DATA, WITHOUT_END, WITHOUT_CLOSE, WITHOUT_OPEN, TABLES };
#define TABLE(open, data, end, drain, close) \
    { sizeof(weir_stream_callbacks), open, data, end, drain, close }
static const weir_stream_callbacks tables[TABLES] = {
    [COMPLETE] = TABLE(on_open, on_data, on_end, on_drain, on_close),
    [WITHOUT_DRAIN] = TABLE(on_open, on_data, on_end, NULL, on_close),
    [WITHOUT_DATA] = TABLE(on_open, NULL, on_end, on_drain, on_close),
    [WITHOUT_END] = TABLE(on_open, on_data, NULL, on_drain, on_close),
    [WITHOUT_CLOSE] = TABLE(on_open, on_data, on_end, on_drain, NULL),
    [WITHOUT_OPEN] = TABLE(NULL, on_data, on_end, on_drain, on_close),
};

static const weir_stream_callbacks *choose_callbacks(const connection *c) {
    size_t table = sim_random(3) == 0 ? (size_t)sim_random(TABLES) : COMPLETE;
    bool needs_drain = c->role == ECHO || c->is_full;
    if (c->role == PIPE && table != WITHOUT_DATA && table != WITHOUT_DRAIN)
        table = COMPLETE;
    if (c->role == FORWARD || (table == WITHOUT_DRAIN && needs_drain) ||
        (table == WITHOUT_DATA && c->role == ECHO) || (table == WITHOUT_OPEN && c->is_dialled))
        table = COMPLETE;
    return &tables[table];
}

static bool may_end_silently(const connection *c) {
    return c->is_started && c->closes == 0 && c->stream != NULL;
}

void notice_ends(void) {
    for (size_t i = 0; i < app.used_count; i++) {
        connection *c = app.used[i];
        if (!may_end_silently(c))
            continue;
        notice_end(c);
        notice_pair(c);
    }
}

void notice_silent_ends(void) {
    for (size_t i = app.used_count; i-- > 0;) {
        connection *c = i < app.used_count ? app.used[i] : NULL;
        if (c == NULL || !may_end_silently(c))
            continue;
        weir_stream *stream = c->stream;
        notice_end(c);
        notice_pair(c);
        if (c->callbacks->on_close == NULL && weir_stream_get_state(stream) == WEIR_STREAM_CLOSED)
            on_close(stream, stream->reason, stream->error, c);
    }
}

void start_connection(connection *c, weir_stream *stream) {
    use(c, true); /* also if its peer has gone meanwhile */
    c->stream = weir_stream_ref(stream);
    c->is_started = true;
    c->opened_at = sim.now_ns;
    c->callbacks = choose_callbacks(c);
    if (c->role == SINK && !sim.is_calm && sim_random(2) == 0)
        open_chain(c);
    sim_require(weir_stream_start(stream, c->callbacks, c) == 0, "start failed");
}
