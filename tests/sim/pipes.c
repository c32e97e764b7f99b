/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "sim/program.h"

/*
 * Streams that are joined: what the library passes on without a callback, and what must be true of it.
 *
 * What a stream has to send is kept as segments: so many bytes of that pattern, from there on. The application's own writes
 * are known as they are made; what came by pipe is read off the library's count, at the latest before something else is
 * queued behind it, and then it must be the source's bytes, from the one after the last.
 */

/* ---- what is to be sent ----------------------------------------------------------------------------- */

void has_to_send(connection *to, uint64_t seed, uint64_t position, uint64_t size) {
    segment *last = to->segment_count > 0 ? &to->segments[to->segment_first + to->segment_count - 1] : NULL;
    if (to->ours != NULL && to->ours->sent >= to->app_wrote)
        to->queue_began = sim.now_ns;
    to->app_wrote += size;
    if (last != NULL && last->seed == seed && last->position + last->size == position) {
        last->size += size;
        return;
    }
    if (to->segment_first + to->segment_count == to->segment_capacity) {
        if (to->segment_count > 0)
            memmove(to->segments, to->segments + to->segment_first, to->segment_count * sizeof *to->segments);
        to->segment_first = 0;
        if (to->segment_count * 2 >= to->segment_capacity) {
            to->segment_capacity = to->segment_capacity > 0 ? to->segment_capacity * 2 : 8;
            to->segments = realloc(to->segments, to->segment_capacity * sizeof *to->segments);
        }
    }
    to->segments[to->segment_first + to->segment_count++] = (segment){ seed, position, size };
}

void check_sent(connection *c, const uint8_t *bytes, size_t size) {
    note_piped(c);
    c->peer_read += size;
    while (size > 0) {
        sim_require(c->segment_count > 0, "connection %llu (%s): more bytes than the application wrote",
                    (unsigned long long)c->number, role_names[c->role]);
        segment *first = &c->segments[c->segment_first];
        size_t part = first->size < size ? (size_t)first->size : size;
        int64_t at = test_differs(first->seed, first->position, bytes, part);
        sim_require(at < 0, "connection %llu (%s): byte %lld is not what the application wrote",
                    (unsigned long long)c->number, role_names[c->role], (long long)at);
        first->position += part;
        first->size -= part;
        bytes += part;
        size -= part;
        if (first->size == 0) {
            c->segment_first++;
            c->segment_count--;
        }
    }
}

/* ---- what has been passed on ------------------------------------------------------------------------ */

/* Above its high mark a queue takes nothing by pipe before it has fallen to the low one. */
static void check_mark(connection *to, bool has_grown) {
    const weir_stream *stream = to->stream;
    uint64_t low = (uint64_t)to->options[WEIR_OPTION_QUEUE_LOW_BYTES];
    if (has_grown && to->is_full_for_pipe)
        sim_require(stream->bytes_out - to->full_at_out + low >= to->full_queue,
                    "connection %llu: bytes came by pipe, and the queue has not fallen to its low mark",
                    (unsigned long long)to->number);
    if (has_grown || stream->queue.bytes <= low) {
        to->is_full_for_pipe = false;
        to->turns_full = 0;
    }
    if (!to->is_full_for_pipe && stream->queue.bytes > (uint64_t)to->options[WEIR_OPTION_QUEUE_HIGH_BYTES]) {
        to->is_full_for_pipe = true;
        to->full_queue = stream->queue.bytes;
        to->full_at_out = stream->bytes_out;
    }
    sim_require(to->own_wrote > 0 || stream->queue_peak_bytes <= to->highest_mark + app.buffer_bytes,
                "connection %llu: a pipe has queued %llu bytes, more than the high mark and a buffer",
                (unsigned long long)to->number, (unsigned long long)stream->queue_peak_bytes);
}

void note_piped(connection *to) {
    connection *from = to->pipe_from;
    if (from == NULL || from->stream == NULL || to->stream == NULL)
        return;
    uint64_t more = from->stream->bytes_piped - from->piped;
    from->piped += more;
    if (more > 0) {
        sim_require(!from->is_paused && !from->is_closing && !from->end_told,
                    "connection %llu: passed on while paused, or after a close or its end",
                    (unsigned long long)from->number);
        sim_require(!to->is_shut && !to->is_closing, "connection %llu: bytes came by pipe after shutdown or close",
                    (unsigned long long)to->number);
        sim_require(from->app_read + more <= from->peer_wrote, "more bytes passed on than the peer wrote");
        spend(from, more);
        to->is_cork_lifted = true;       /* it may have been above the high mark */
        int64_t began = to->queue_began; /* when they came is not known */
        has_to_send(to, from->in_seed, from->app_read, more);
        to->queue_began = began;
        to->piped_at = sim.now_ns;
        from->app_read += more;
    }
    check_mark(to, more > 0);
    if (more > 0 || to->is_full_for_pipe) /* what was taken back for that is armed anew, not again */
        forget_starved(from);
}

/* While it is full nothing is received for it: what is under way is taken back, soon. */
void check_held_pipe(connection *to) {
    enum { PATIENCE = 60 };
    const connection *from = to->pipe_from;
    if (from == NULL || !to->is_full_for_pipe || from->is_closing || app.max_turn_events > 0 ||
        from->stream == NULL)
        return;
    if (++to->turns_full == PATIENCE)
        to->came_before = from->stream->bytes_in;
    sim_require(to->turns_full <= PATIENCE || from->stream->bytes_in == to->came_before,
                "connection %llu: the queue behind its pipe is full, and it goes on to receive",
                (unsigned long long)from->number);
}

/* What could go on does, soon. */
void check_resumed(connection *to, bool is_memory_short) {
    enum { PATIENCE = 400 };
    const connection *from = to->pipe_from;
    if (from == NULL || from->stream == NULL || app.max_turn_events > 0)
        return;
    bool has_more = sim_readable(from->ours) > 0 || from->stream->staged.bytes > 0;
    bool may_go = !from->is_paused && !from->is_closing && !from->end_told && !to->is_closing && !to->is_shut &&
                  !is_memory_short && (!from->is_metered || from->credit > 0) &&
                  to->stream->queue.bytes <= (uint64_t)to->options[WEIR_OPTION_QUEUE_LOW_BYTES] &&
                  to->stream->queue.count < 64 && from->stream->state == WEIR_STREAM_OPEN &&
                  to->stream->state == WEIR_STREAM_OPEN &&
                  to->stream->output_error ==
                      0; /* else it is read to its end, and closed after that or its linger timeout */
    bool rests = has_more && may_go && from->piped == to->piped_before;
    to->piped_before = from->piped;
    to->turns_resting = rests ? to->turns_resting + 1 : 0;
    sim_require(to->turns_resting < PATIENCE, "connection %llu: its pipe does not go on",
                (unsigned long long)from->number);
}

void note_all_piped(connection *c) {
    note_piped(c);
    if (c->pipe_to != NULL)
        note_piped(c->pipe_to);
}

/* ---- joining ---------------------------------------------------------------------------------------- */

static bool is_pair(const connection *from) {
    return from->pipe_to != NULL && from->pipe_to->pipe_to == from;
}

static void join(connection *from, connection *to) {
    from->pipe_to = to;
    to->pipe_from = from;
    from->piped = from->stream->bytes_piped;
    to->is_full_for_pipe = false;
    to->turns_full = 0; /* another's */
    note_piped(to);
}

static void part(connection *from) {
    connection *to = from->pipe_to;
    note_piped(to);
    from->pipe_to = to->pipe_from = NULL;
}

static bool may_be_joined(const connection *c) {
    return c->is_used && c->role == PIPE && c->stream != NULL && c->closes == 0 && (c->is_started || c->is_held);
}

static bool has_failed(const connection *c) {
    return c->stream->has_failed || c->stream->output_error != 0;
}

/* Join @c to another, or to itself. */
void pipe_some(connection *c) {
    connection *to = sim_random(6) == 0 ? c : any_connection();
    if (!may_be_joined(c) || !may_be_joined(to))
        return;
    bool is_both = to != c && sim_random(3) != 0;
    int r = is_both ? weir_stream_pipe_both(c->stream, to->stream) : weir_stream_pipe(c->stream, to->stream);
    bool is_piped =
        c->pipe_to != NULL || to->pipe_from != NULL || (is_both && (to->pipe_to != NULL || c->pipe_from != NULL));
    bool is_ending =
        c->is_closing || c->end_told || to->is_closing || to->is_shut || (is_both && (to->end_told || c->is_shut));
    sim_require(r == 0           ? !is_piped && !is_ending
                : r == -EALREADY ? is_piped
                                 : r == -EPIPE && (is_ending || has_failed(c) || has_failed(to)),
                "pipe said %s", weir_error_name(r));
    if (r < 0)
        return;
    sim_note("connection %llu: piped to %llu%s", (unsigned long long)c->number, (unsigned long long)to->number,
             is_both ? ", and back" : "");
    sim_event(SIM_EVENT_PIPED);
    forget_starved(c);
    forget_starved(to);
    join(c, to);
    if (is_both)
        join(to, c);
}

/* A pipe takes its receive back whenever the other end is full; a limited one ends by itself, and with a close. */
bool is_anew(uint64_t user_data) {
    const weir__op *in = (const weir__op *)(uintptr_t)user_data;
    const weir_stream *stream = WEIR__CONTAINER(in, const weir_stream, in);
    return stream->pipe_to != NULL || stream->is_limited;
}

void unpipe_some(connection *c) {
    note_all_piped(c);
    int r = weir_stream_unpipe(c->stream);
    sim_require(r == (c->pipe_to != NULL ? 0 : -EINVAL), "unpipe said %s", weir_error_name(r));
    if (r == 0) {
        sim_note("connection %llu: unpiped", (unsigned long long)c->number);
        part(c);
    }
}

/* ---- ends ------------------------------------------------------------------------------------------- */

static bool has_passed_all(const connection *c) {
    return (c->peer_shut || (c->peer_gone && !c->peer_was_reset)) && c->app_read == c->peer_wrote;
}

void pass_end(connection *from) {
    connection *to = from->pipe_to;
    if (to == NULL)
        return;
    to->is_shut = true;
    sim_event(SIM_EVENT_END_PASSED);
    if (!is_pair(from))
        part(from);
}

static void begin_to_close(connection *c, bool is_after_end) {
    note_all_piped(c);
    c->is_closing = true;
    c->closed_after_end = is_after_end;
    c->closed_in_calm = app.is_time_honest;
    forget_starved(c);
}

/* A pair closes by itself, when both have ended. */
void notice_pair(connection *c) {
    connection *other = c->pipe_to;
    if (other == NULL || c->is_closing || !c->stream->wants_close)
        return;
    note_all_piped(c);
    sim_require(is_pair(c) && has_passed_all(c) && has_passed_all(other),
                "connection %llu: closed by its pipe before both had ended", (unsigned long long)c->number);
    begin_to_close(c, true);
    if (other != c && !other->is_closing)
        begin_to_close(other, true);
}

static void end_other(connection *other, int reason, int error) {
    bool is_well = reason == WEIR_CLOSE_LOCAL || reason == WEIR_CLOSE_PEER;
    if (other->closes > 0 || other->is_closing || other->is_pipe_broken)
        return;
    if (is_well && other->is_started) {
        begin_to_close(other, other->end_told);
        return;
    }
    sim_event(SIM_EVENT_PIPE_BROKEN);
    other->is_pipe_broken = true;
    other->pipe_error = error;
}

/* @c is closed, and who is at the other ends of its pipes closes, too. */
void end_pipes(connection *c, int reason, int error) {
    connection *to = c->pipe_to, *from = c->pipe_from;
    note_all_piped(c);
    if (to != NULL)
        part(c);
    if (from != NULL && from != c)
        part(from);
    if (to != NULL && to != c)
        end_other(to, reason, error);
    if (from != NULL && from != c && from != to)
        end_other(from, reason, error);
}

/* ---- flushes ---------------------------------------------------------------------------------------- */

static void on_flush(weir_stream *stream, int error, void *userdata) {
    flush *f = userdata;
    connection *c = f->by;
    sim_require(c->is_used && c->closes == 0 && stream == c->stream, "a flush after on_close");
    sim_require(f->number == c->flushes_told + 1, "flushes out of order, or one twice");
    sim_require((error == 0) == (c->ours->sent >= f->position) &&
                    (error == 0 || error == c->flush_error || c->flush_error == 0),
                "connection %llu: a flush of %llu bytes said %s, and the kernel has taken %llu",
                (unsigned long long)c->number, (unsigned long long)f->position, weir_error_name(error),
                (unsigned long long)c->ours->sent);
    c->flushes_told++;
    c->flush_error = error;
    sim_event(SIM_EVENT_FLUSHED);
    act(c);
}

void flush_some(connection *c) {
    if (c->flushes_asked - c->flushes_told == MOST_FLUSHES)
        return;
    note_piped(c);
    flush *f = &c->flushes[c->flushes_asked % MOST_FLUSHES];
    *f = (flush){ .by = c, .number = c->flushes_asked + 1, .position = c->app_wrote };
    int r = weir_stream_flush(c->stream, on_flush, f);
    sim_require(r == 0 || r == -ENOMEM || (r == -EPIPE && has_failed(c)), "flush said %s", weir_error_name(r));
    c->flushes_asked += r == 0;
}

void check_flushes(const connection *c, int error) {
    sim_require(c->flushes_told == c->flushes_asked, "connection %llu: on_close before all flushes were told",
                (unsigned long long)c->number);
    sim_require(c->flush_error == 0 || c->flush_error == error || c->flush_error == -ECANCELED,
                "a flush said %s, and on_close %s", weir_error_name(c->flush_error), weir_error_name(error));
}
