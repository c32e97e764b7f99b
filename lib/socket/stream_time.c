/* SPDX-License-Identifier: MIT */
#include "socket/stream.h"

/*
 * The deadlines of a stream, all in one timeout: to connect or to end in time, to be busy, and to have its queue taken.
 *
 * What happens all the time, a read or a send, only stores when it happened. The timeout fires at the deadline that was
 * the nearest when it was set, finds out what is so now, and is set again. It is never too late, since what happens
 * pushes deadlines back.
 */

static int64_t later(int64_t from, int64_t delay_ns) {
    return delay_ns < 0 || delay_ns > INT64_MAX - from ? INT64_MAX : from + delay_ns;
}

static int64_t max_time(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* When did something last happen on it, or on a stream that it is piped to, or from? */
static int64_t last_active(const weir_stream *stream) {
    int64_t at = stream->active_at;
    if (stream->pipe_to != NULL)
        at = max_time(at, stream->pipe_to->active_at);
    if (stream->pipe_from != NULL)
        at = max_time(at, stream->pipe_from->active_at);
    return at;
}

/* Half way to the deadline somebody looks at what the kernel has for the peer, and at the deadline again. */
static int64_t idle_due(const weir_stream *stream) {
    int64_t timeout_ns = stream->settings->idle_timeout_ns;
    if (stream->state != WEIR_STREAM_OPEN || stream->held_at != 0 || timeout_ns < 0)
        return INT64_MAX;
    int64_t at = last_active(stream);
    if (stream->looked_at <= at)
        return later(at, timeout_ns < 2 ? timeout_ns : timeout_ns / 2);
    return max_time(later(at, timeout_ns), later(stream->looked_at, timeout_ns - timeout_ns / 2));
}

/*
 * The kernel takes nothing while what it has of ours is more than two thirds of its room, which on a slow line with large
 * buffers lasts long, though the peer takes byte after byte. So half way to the deadline it is asked how much it has, and
 * at the deadline again: less is progress. (What the peer took in the first half alone is not seen: it is given up when it
 * has taken nothing for half of the time at least, and for all of it at most.)
 */
static int64_t write_due(const weir_stream *stream) {
    if (!stream->is_write_timed || stream->wants_close)
        return INT64_MAX;
    int64_t timeout_ns = stream->settings->write_timeout_ns;
    if (stream->sampled_at < stream->progress_at)
        return later(stream->progress_at, timeout_ns < 2 ? timeout_ns : timeout_ns / 2);
    int64_t whole = later(stream->progress_at, timeout_ns);
    int64_t half =
        later(stream->sampled_at, timeout_ns - timeout_ns / 2); /* a late look makes the next one late */
    return half > whole ? half : whole;
}

void weir__stream_schedule(weir_stream *stream) {
    int64_t now = weir__loop_now(stream->loop), next = idle_due(stream), write = write_due(stream);
    next = write < next ? write : next;
    next = stream->deadline < next ? stream->deadline : next;
    weir__timeout_set(stream->loop, &stream->timeout,
                      next == INT64_MAX ? WEIR_NEVER
                      : next > now      ? next - now
                                        : 0);
}

void weir__stream_set_deadline(weir_stream *stream, int64_t delay_ns) {
    stream->deadline = later(weir__loop_now(stream->loop), delay_ns);
    weir__stream_schedule(stream);
}

static void sample(weir_stream *stream) {
    stream->unsent_bytes = weir__sys_unsent(stream->fd);
    stream->sampled_at = weir__loop_now(stream->loop);
}

void weir__stream_linger(weir_stream *stream) {
    sample(stream);
    weir__stream_set_deadline(stream, stream->settings->linger_timeout_ns);
}

void weir__stream_time_write(weir_stream *stream) {
    stream->progress_at = weir__loop_now(stream->loop);
    if (stream->is_write_timed || stream->settings->write_timeout_ns < 0 || stream->state != WEIR_STREAM_OPEN)
        return;
    stream->is_write_timed = true;
    weir__stream_schedule(stream);
}

void weir__stream_time_open(weir_stream *stream) {
    stream->active_at = weir__loop_now(stream->loop);
    if (stream->held_at != 0)
        stream->held_at = stream->active_at; /* while it was not started: that is no time of its own */
    if (stream->queue.bytes > 0)
        weir__stream_time_write(stream);
    weir__stream_schedule(stream);
}

void weir__stream_reschedule(weir_stream *stream) {
    bool is_open = stream->state == WEIR_STREAM_OPEN;
    stream->is_write_timed = is_open && stream->queue.bytes > 0 && stream->settings->write_timeout_ns >= 0;
    if (is_open)
        weir__stream_schedule(stream);
}

void weir__stream_hold_idle(weir_stream *stream, bool is_held) {
    if (is_held == (stream->held_at != 0))
        return;
    int64_t now = weir__loop_now(stream->loop);
    if (!is_held) { /* what went out meanwhile began it anew */
        int64_t active_at = stream->active_at + (now - stream->held_at);
        stream->active_at = active_at < now ? active_at : now;
    }
    stream->held_at = is_held ? now : 0; /* also without a timeout: it may be given one later */
    if (stream->settings->idle_timeout_ns >= 0)
        weir__stream_schedule(stream);
}

/* Connecting takes too long, the peer of a graceful close does nothing, or what came in before a failed send is still
 * not all. */
static void deadline_passed(weir_stream *stream) {
    stream->deadline = INT64_MAX;
    if (!stream->is_connected && weir__loop_now(stream->loop) < stream->dialling->deadline)
        weir__stream_mark(stream); /* it was time to try again, not yet to give up */
    else if (!stream->is_connected)
        weir__stream_fail(stream, WEIR_CLOSE_CONNECT, -ETIMEDOUT);
    else if (stream->output_error != 0)
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, stream->output_error);
    else if (weir__sys_unsent(stream->fd) < stream->unsent_bytes)
        weir__stream_linger(stream); /* our queue is empty, but the peer still takes what the kernel has of it */
    else
        weir__stream_fail(stream, WEIR_CLOSE_LINGER, -ETIMEDOUT);
}

static void write_passed(weir_stream *stream) {
    if (stream->queue.bytes == 0) {
        stream->is_write_timed = false;
        return;
    }
    if (stream->is_corked && weir__op_is_idle(&stream->out)) {
        stream->progress_at = weir__loop_now(stream->loop); /* it is not the peer that we wait for */
        return;
    }
    if (stream->sampled_at < stream->progress_at) {
        sample(stream);
        return;
    }
    int before = stream->unsent_bytes;
    sample(stream);
    if (stream->unsent_bytes < before)
        stream->progress_at = stream->sampled_at;
    else
        weir__stream_fail(stream, WEIR_CLOSE_WRITE, -ETIMEDOUT);
}

static void note_unsent(weir_stream *stream) {
    stream->looked_unsent = weir__sys_unsent(stream->fd);
    stream->looked_at = weir__loop_now(stream->loop);
}

enum look { NOTHING, TAKES, TOO_EARLY };

/* Does the peer take what the kernel has for it? That is known when half of the timeout lies between two looks. */
static enum look look(weir_stream *stream, int64_t timeout_ns) {
    int64_t now = weir__loop_now(stream->loop);
    if (!stream->is_connected || stream->fd < 0)
        return NOTHING;
    int unsent = weir__sys_unsent(stream->fd);
    bool is_known = stream->looked_at > stream->active_at;
    if (is_known && unsent < stream->looked_unsent) {
        stream->active_at = now;
        return TAKES;
    }
    if (unsent <= 0 || (is_known && now - stream->looked_at >= timeout_ns / 2))
        return NOTHING;
    if (!is_known)
        note_unsent(stream);
    return TOO_EARLY;
}

/*
 * Nothing was received, and the kernel has taken nothing: but it may have megabytes left that the peer takes all the time.
 * And on a pipe one end may have said all, and wait while the other's peer takes it. Who waits for our memory is not idle,
 * either, unless nothing moves in all of the loop: then its streams hold all that there is, and may be given up.
 */
static void idle_passed(weir_stream *stream) {
    weir_stream *const ends[] = { stream, stream->pipe_to, stream->pipe_from };
    const weir__backend_verbs *verbs = stream->loop->backend->verbs;
    int64_t timeout_ns = stream->settings->idle_timeout_ns, now = weir__loop_now(stream->loop);
    int64_t active_at = stream->active_at;
    bool is_early = false;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        if (ends[i] == NULL)
            continue;
        if (verbs->is_starved(&ends[i]->in))
            active_at = max_time(active_at, weir__loop_moved_at(stream->loop));
        enum look found = look(ends[i], timeout_ns);
        active_at = found == TAKES ? now : active_at;
        is_early |= found == TOO_EARLY;
    }
    stream->active_at = active_at;
    int64_t half_way = later(last_active(stream), timeout_ns / 2);
    if (is_early) {
        note_unsent(stream); /* and come again */
    } else if (stream->looked_at < half_way && half_way <= now) {
        stream->looked_unsent =
            0; /* at either end: however late this look is, there is nothing to be seen by another */
        stream->looked_at = half_way;
    }
    if (idle_due(stream) <= now)
        weir__stream_fail(stream, WEIR_CLOSE_IDLE, -ETIMEDOUT);
}

void weir__stream_timed_out(weir__timeout *timeout) {
    weir_stream *stream = WEIR__CONTAINER(timeout, weir_stream, timeout);
    int64_t now = weir__loop_now(stream->loop);
    if (stream->deadline <= now)
        deadline_passed(stream);
    if (write_due(stream) <= now)
        write_passed(stream);
    if (idle_due(stream) <= now)
        idle_passed(stream);
    if (!stream->has_failed)
        weir__stream_schedule(stream);
}
