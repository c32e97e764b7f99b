/* SPDX-License-Identifier: MIT */
#include "socket/stream.h"

/*
 * What goes out: connecting, then one send at a time of what is at the front of the queue. A send's bytes keep their
 * references until its completion says how many the kernel has taken.
 */

enum { UNIX_RETRY_NS = 10 * 1000 * 1000 };

static WEIR__NOINLINE void connected(weir_stream *stream, int32_t result) {
    weir_loop *loop = stream->loop;
    if (result < 0) {
        weir__stream_fail(stream, WEIR_CLOSE_CONNECT, result);
        return;
    }
    weir__free(loop->allocator, stream->dialling, sizeof *stream->dialling);
    stream->looked_at = 0;
    stream->is_connected = true;
    weir__stream_set_deadline(stream, WEIR_NEVER);
    if (stream->wants_close)
        weir__stream_linger(stream);
}

/* The kernel would retry a Unix socket's connect on a poll that is always ready, until it gives up or has a thread of
 * its own for it. connect(2) on a non-blocking one never waits: its backlog is full, or it is done. */
static WEIR__NOINLINE void connect_unix(weir_stream *stream) {
    const weir__address *address = &stream->dialling->address;
    int r = weir__sys_connect(stream->fd, (const struct sockaddr *)&address->storage, address->length);
    if (r != -EAGAIN) {
        connected(stream, r);
        return;
    }
    int64_t left = stream->dialling->deadline - weir__loop_now(stream->loop);
    weir__stream_set_deadline(stream, left < UNIX_RETRY_NS ? left > 0 ? left : 0 : UNIX_RETRY_NS);
}

static WEIR__NOINLINE void begin_connect(weir_stream *stream) {
    weir__backend *backend = stream->loop->backend;
    const weir__address *address = &stream->dialling->address;
    if (stream->is_tcp)
        backend->verbs->connect(backend, &stream->out, stream->fd, (const struct sockaddr *)&address->storage,
                                address->length);
    else
        connect_unix(stream);
}

/* Anything but bytes: an end, a drain, room for a pipe? */
static bool is_anything_wanted(const weir_stream *stream) {
    return stream->wants_shutdown || stream->wants_close || stream->has_failed || stream->is_full_told ||
           stream->is_pipe_full;
}

static void account(weir_stream *stream, uint32_t bytes, int64_t at) {
    weir_loop *loop = stream->loop;
    stream->bytes_out += bytes;
    loop->bytes_out += bytes;
    stream->progress_at = at;
    if (stream->active_at < at)
        stream->active_at = at;
    weir__sendq_advance(&stream->queue, &loop->ranges, bytes);
}

/* @at: when. */
static void taken(weir_stream *stream, uint32_t bytes, int64_t at) {
    weir_loop *loop = stream->loop;
    if (bytes == 0)
        return; /* its wait for room was over too early: that is no progress */
    account(stream, bytes, at);
    if (stream->wants_close && !stream->has_failed) /* the peer is alive: let it take the rest */
        weir__stream_linger(stream);
    if (stream->flushes != NULL && !weir__loop_is_lost(loop))
        weir__stream_tell_flushed(stream);
    if (weir__loop_is_lost(loop))
        return; /* a release or a flush function forked, and this is the child */
    if (!(stream->is_full_told || stream->is_pipe_full) ||
        stream->queue.bytes > stream->settings->queue_low_bytes ||
        stream->queue.count > stream->settings->most_ranges / 8)
        return;
    if (stream->is_pipe_full)
        weir__pipe_drained(stream);
    bool is_owed = stream->is_full_told;
    stream->is_full_told = false;
    if (is_owed && stream->state == WEIR_STREAM_OPEN && !stream->has_failed && stream->callbacks->on_drain != NULL)
        stream->callbacks->on_drain(stream, stream->userdata);
}

/* Nothing can be sent any more. If the connection has gone, what the peer sent before (an early answer, say) is in the
 * socket still and is the receive's to deliver; with its end the stream fails, or when it takes too long: a peer may have
 * stopped to read and go on to write for ever. */
static WEIR__NOINLINE void broken(weir_stream *stream, int error) {
    bool is_gone = error == -EPIPE || error == -ECONNRESET || error == -ENOTCONN || error == -ETIMEDOUT;
    if (is_gone && weir__stream_is_reading(stream)) {
        stream->output_error = error;
        if (stream->pipe_from != NULL)
            weir__stream_mark(stream->pipe_from); /* its receive is to be taken back */
        weir__stream_set_deadline(stream, stream->settings->linger_timeout_ns);
    } else {
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, error);
    }
    weir__sendq_clear(&stream->queue, &stream->loop->ranges);
}

/* Was it a send that nobody waited for, and does nobody wait for it now either? */
static bool is_quietly_over(const weir_stream *stream, const weir__completion *completion) {
    return completion->is_late && !is_anything_wanted(stream) && stream->flushes == NULL;
}

void weir__stream_output_done(weir__op *op, const weir__completion *completion) {
    weir_stream *stream = WEIR__CONTAINER(op, weir_stream, out);
    if (WEIR__LIKELY(is_quietly_over(stream, completion))) {
        account(stream, (uint32_t)completion->result, stream->progress_at);
        if (stream->queue.bytes > 0) /* what was written meanwhile */
            weir__stream_mark_output(stream);
        return;
    }
    if (!stream->is_connected)
        connected(stream, completion->result);
    else if (completion->result >= 0)
        taken(stream, (uint32_t)completion->result, completion->is_late ? stream->progress_at : stream->loop->now);
    else
        broken(stream, completion->result);
    if (stream->wants_shutdown || stream->has_failed || stream->queue.bytes > 0 || !stream->is_open_told ||
        stream->output_error != 0)
        weir__stream_mark(stream); /* else there is nothing to do: the usual case of an echo */
}

static WEIR__NOINLINE void tell_open(weir_stream *stream) {
    if (stream->state == WEIR_STREAM_CONNECTING)
        weir__stream_opened(stream);
    if (stream->state != WEIR_STREAM_OPEN || stream->is_open_told)
        return;
    stream->is_open_told = true;
    if (stream->callbacks->on_open != NULL)
        stream->callbacks->on_open(stream, stream->userdata);
}

/* Would anything come of it if all that is queued were taken, but references of our own loop's memory, which is not short?
 * Another loop may wait for its buffers. And who runs single turns may look at the queue after each. */
static bool is_quiet(const weir_stream *stream) {
    const weir_loop *loop = stream->loop;
    if (is_anything_wanted(stream) || stream->state != WEIR_STREAM_OPEN || !loop->is_unwatched ||
        stream->flushes != NULL || stream->queue.count != 1)
        return false;
    const weir_block *block = stream->queue.first->owner;
    return block->pool == loop->pool && block->kind != WEIR__BLOCK_EXTERNAL && !weir__pool_is_short(loop->pool);
}

/* Is it better to wait for more to be written? Not while somebody waits for the low mark. */
static bool is_held(const weir_stream *stream) {
    bool is_draining = stream->is_full_told || stream->is_pipe_full;
    return stream->is_corked && !stream->wants_shutdown && !is_draining && !weir__stream_is_full(stream);
}

void weir__stream_settle_output(weir_stream *stream) {
    if (WEIR__UNLIKELY(stream->flushes != NULL)) {
        weir__stream_tell_flushed(stream);
        if (weir__loop_is_lost(stream->loop))
            return;
    }
    if (!weir__op_is_idle(&stream->out)) {
        stream->loop->backend->verbs->hurry(&stream->out); /* there is more to do after it */
        return;
    }
    if (stream->has_failed)
        return;
    if (WEIR__UNLIKELY(!stream->is_connected)) {
        begin_connect(stream);
        if (!stream->is_connected)
            return;
    }
    if (WEIR__UNLIKELY(!stream->is_open_told || stream->state == WEIR_STREAM_CONNECTING)) {
        tell_open(stream);
        if (stream->has_failed || weir__loop_is_lost(stream->loop))
            return;
    }
    if (stream->state == WEIR_STREAM_UNSTARTED)
        return;
    if (stream->queue.bytes > 0 && !is_held(stream)) {
        stream->progress_at = stream->loop->now; /* from here on it is the peer that we wait for */
        weir__backend *backend = stream->loop->backend;
        backend->verbs->send(backend, &stream->out, stream->fd, &stream->queue, is_quiet(stream));
    } else if (stream->queue.bytes == 0 && stream->wants_shutdown && !stream->is_shut &&
               stream->output_error == 0) {
        stream->is_shut = true;
        (void)weir__sys_shutdown(stream->fd, SHUT_WR); /* of a connection that is gone: the receive tells */
    }
}
