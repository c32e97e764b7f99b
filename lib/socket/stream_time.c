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

static int64_t idle_due(const weir_stream *stream) {
    if (stream->state != WEIR_STREAM_OPEN || stream->held_at != 0)
        return INT64_MAX;
    return later(stream->active_at, stream->settings->idle_timeout_ns);
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

void weir__stream_timed_out(weir__timeout *timeout) {
    weir_stream *stream = WEIR__CONTAINER(timeout, weir_stream, timeout);
    int64_t now = weir__loop_now(stream->loop);
    if (stream->deadline <= now)
        deadline_passed(stream);
    if (write_due(stream) <= now)
        write_passed(stream);
    if (idle_due(stream) <= now) {
        if (stream->loop->backend->verbs->is_starved(&stream->in))
            stream->active_at = now; /* it has waited for us */
        else
            weir__stream_fail(stream, WEIR_CLOSE_IDLE, -ETIMEDOUT);
    }
    if (!stream->has_failed)
        weir__stream_schedule(stream);
}
