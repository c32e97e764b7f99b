/* SPDX-License-Identifier: MIT */
#include <poll.h>

#include "socket/stream.h"

/*
 * What comes in. While somebody listens a receive is armed; while nobody does, because the stream is paused, has nobody
 * to tell, nothing more was granted or its peer has ended, a watch is, so that a reset is noticed. What the kernel
 * completed before it heard of a pause, and what it brought beyond a grant, is staged, and comes first when somebody
 * listens again.
 */

/* Does somebody want data now? */
static bool is_listening(const weir_stream *stream) {
    if (stream->state != WEIR_STREAM_OPEN || stream->is_paused || stream->has_failed || stream->credit == 0)
        return false;
    return stream->pipe_to != NULL ? weir__pipe_is_open(stream) : stream->callbacks->on_data != NULL;
}

bool weir__stream_is_reading(const weir_stream *stream) {
    return is_listening(stream) && !stream->has_ended;
}

/* Hand out no more than was granted. */
static void deliver(weir_stream *stream, const weir_slice *slice) {
    WEIR__ASSERT(slice->size <= stream->credit);
    if (stream->credit != UINT64_MAX) {
        stream->credit -= slice->size;
        if (stream->credit == 0)
            weir__stream_mark(stream); /* from now on reading is held back */
    }
    if (stream->pipe_to != NULL)
        weir__pipe_forward(stream, slice);
    else
        stream->callbacks->on_data(stream, slice, stream->userdata);
}

static WEIR__NOINLINE void stage(weir_stream *stream, const weir_slice *slice) {
    if (weir__sendq_add(&stream->staged, &stream->loop->ranges, stream->loop->pool, slice) < 0)
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, -ENOMEM); /* a gap would be worse than an end */
}

/* The rest is staged first: the callback may grant more, and then it is the next. */
static WEIR__NOINLINE void deliver_granted(weir_stream *stream, const weir_slice *slice) {
    size_t granted = (size_t)stream->credit;
    stage(stream, &(weir_slice){ slice->data + granted, slice->size - granted, slice->owner });
    if (!stream->has_failed)
        deliver(stream, &(weir_slice){ slice->data, granted, slice->owner });
    weir__stream_mark(stream);
}

static void received(weir_stream *stream, const weir_slice *slice) {
    stream->slices++;
    stream->bytes_in += slice->size;
    stream->active_at = stream->loop->now;
    if (stream->has_failed || stream->wants_close)
        return; /* dropped: nobody will hear of it */
    if (WEIR__UNLIKELY(!is_listening(stream) || stream->staged.first != NULL)) {
        stage(stream, slice);
    } else if (WEIR__LIKELY(slice->size <= stream->credit)) {
        deliver(stream, slice);
    } else {
        deliver_granted(stream, slice);
    }
}

/* A watch fired: the peer ended, which waits until somebody reads, or reset. */
static WEIR__NOINLINE void watched(weir_stream *stream, int events) {
    int error = 0;
    if ((events & (POLLERR | POLLHUP)) != 0 &&
        weir__sys_getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error) >= 0 && error != 0)
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, -error);
}

/* The receive or the watch is over. */
static WEIR__NOINLINE void over(weir_stream *stream, int32_t result) {
    bool goes_on = result == -ECANCELED || result == -EDQUOT;
    if (!goes_on && stream->output_error != 0)
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, stream->output_error);
    else if (result == 0)
        stream->has_ended = true;
    else if (!goes_on)
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, result);
    weir__stream_mark(stream);
}

void weir__stream_input_done(weir__op *op, const weir__completion *completion) {
    weir_stream *stream = WEIR__CONTAINER(op, weir_stream, in);
    if (WEIR__UNLIKELY(completion->final))
        over(stream, completion->result);
    else if (WEIR__LIKELY(completion->slice.owner != NULL))
        received(stream, &completion->slice);
    else
        watched(stream, completion->result);
}

static void deliver_staged(weir_stream *stream) {
    weir__range_cache *cache = &stream->loop->ranges;
    weir_slice slice;
    while (is_listening(stream) && weir__sendq_take_part(&stream->staged, cache, stream->credit, &slice)) {
        deliver(stream, &slice);
        if (weir__loop_is_lost(stream->loop))
            return;
        weir__block_unref_by(slice.owner, cache->owner);
    }
    if (stream->wants_close)
        weir__sendq_clear(&stream->staged, cache);
}

static void tell_end(weir_stream *stream) {
    if (!stream->has_ended || stream->is_end_told || !is_listening(stream) || stream->staged.first != NULL)
        return;
    stream->is_end_told = true;
    bool is_pair = stream->pipe_to != NULL && stream->pipe_to->pipe_to == stream;
    bool is_over = stream->pipe_to != NULL && weir__pipe_end(stream);
    if (stream->callbacks->on_end != NULL)
        stream->callbacks->on_end(stream, stream->userdata);
    else if (!is_pair)
        (void)weir_stream_close(stream);
    if (is_over && !weir__loop_is_lost(stream->loop))
        weir__pipe_close_pair(stream);
}

/*
 * Receive as much as was granted; for a pipe, as much as fits into the other end's queue, or a receive would go on to bring
 * a window full of buffers before anybody could stop it. Nobody minds that where the kernel has no limits.
 */
static void receive(weir_stream *stream) {
    bool is_metered = stream->credit != UINT64_MAX;
    uint64_t limit = is_metered ? stream->credit : 0;
    if (stream->pipe_to != NULL)
        limit = is_metered ? weir__min_u64(limit, weir__pipe_room(stream)) : weir__pipe_room(stream);
    if (stream->wants_close)
        limit = 0; /* it is thrown away */
    stream->is_limited = limit > 0;
    stream->loop->backend->verbs->receive(stream->loop->backend, &stream->in, stream->fd, limit, !is_metered);
}

void weir__stream_settle_input(weir_stream *stream) {
    const weir__backend_verbs *verbs = stream->loop->backend->verbs;
    enum weir__op_kind wish = WEIR__OP_NONE;
    deliver_staged(stream);
    if (weir__loop_is_lost(stream->loop))
        return;
    tell_end(stream);
    if (weir__loop_is_lost(stream->loop))
        return;
    if (stream->output_error != 0 && !weir__stream_is_reading(stream))
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, stream->output_error);
    if (stream->has_failed || !stream->is_connected)
        return;
    bool is_wanted = is_listening(stream);
    weir__stream_hold_idle(stream, !is_wanted && !stream->is_end_told);
    if (!stream->has_ended && (stream->wants_close || is_wanted))
        wish = WEIR__OP_RECEIVE;
    else if (stream->state == WEIR_STREAM_OPEN)
        wish = WEIR__OP_WATCH;
    bool is_outdated = stream->wants_close && stream->is_limited; /* what is thrown away waits for no memory */
    if (stream->in.kind == wish && !(wish == WEIR__OP_RECEIVE && is_outdated))
        return;
    if (!weir__op_is_idle(&stream->in))
        verbs->cancel(stream->loop->backend, &stream->in); /* its last completion brings us here again */
    else if (wish == WEIR__OP_RECEIVE)
        receive(stream);
    else if (wish == WEIR__OP_WATCH)
        verbs->watch(stream->loop->backend, &stream->in, stream->fd);
}

static int set_paused(weir_stream *stream, bool is_paused) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    stream->is_paused = is_paused;
    weir__stream_mark(stream);
    return 0;
}

WEIR_API int weir_stream_pause(weir_stream *stream) {
    return set_paused(stream, true);
}

WEIR_API int weir_stream_resume(weir_stream *stream) {
    return set_paused(stream, false);
}

WEIR_API int weir_stream_grant(weir_stream *stream, uint64_t bytes) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    if ((stream->settings->flags & WEIR_STREAM_METERED) == 0)
        return WEIR__MISTAKE(-EINVAL, "the stream is not metered");
    uint64_t most = UINT64_MAX - 1;
    stream->credit = bytes < most - stream->credit ? stream->credit + bytes : most;
    weir__stream_mark(stream);
    return 0;
}
