/* SPDX-License-Identifier: MIT */
#include <poll.h>

#include "socket/stream.h"

/*
 * What comes in. While somebody listens a receive is armed; while nobody does, because the stream is paused, has no
 * on_data or its peer has ended, a watch is, so that a reset is noticed. What the kernel completed before it heard of a pause is staged, and
 * comes first when the pause is over.
 */

/* Does the application want data now? */
static bool is_listening(const weir_stream *stream) {
    return stream->state == WEIR_STREAM_OPEN && stream->callbacks->on_data != NULL && !stream->is_paused &&
           !stream->has_failed;
}

bool weir__stream_is_reading(const weir_stream *stream) {
    return is_listening(stream) && !stream->has_ended;
}

static void received(weir_stream *stream, const weir_slice *slice) {
    stream->slices++;
    stream->bytes_in += slice->size;
    if (stream->has_failed || stream->wants_close)
        return; /* dropped: nobody will hear of it */
    if (WEIR__LIKELY(is_listening(stream) && stream->staged.first == NULL))
        stream->callbacks->on_data(stream, slice, stream->userdata);
    else if (weir__sendq_add(&stream->staged, &stream->loop->ranges, stream->loop->pool, slice) < 0)
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, -ENOMEM); /* a gap would be worse than an end */
}

/* A watch fired: the peer ended, which waits until somebody reads, or reset. */
static void watched(weir_stream *stream, int events) {
    int error = 0;
    if ((events & (POLLERR | POLLHUP)) != 0 &&
        weir__sys_getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error) >= 0 && error != 0)
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, -error);
}

void weir__stream_input_done(weir__op *op, const weir__completion *completion) {
    weir_stream *stream = WEIR__CONTAINER(op, weir_stream, in);
    if (!completion->final) {
        if (completion->slice.owner != NULL)
            received(stream, &completion->slice);
        else
            watched(stream, completion->result);
        return;
    }
    if (completion->result != -ECANCELED && stream->output_error != 0)
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, stream->output_error);
    else if (completion->result == 0)
        stream->has_ended = true;
    else if (completion->result != -ECANCELED)
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, completion->result);
    weir__stream_mark(stream);
}

static void deliver_staged(weir_stream *stream) {
    weir__range_cache *cache = &stream->loop->ranges;
    weir_slice slice;
    while (is_listening(stream) && weir__sendq_take(&stream->staged, cache, &slice)) {
        stream->callbacks->on_data(stream, &slice, stream->userdata);
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
    if (stream->callbacks->on_end != NULL)
        stream->callbacks->on_end(stream, stream->userdata);
    else
        (void)weir_stream_close(stream);
}

void weir__stream_settle_input(weir_stream *stream) {
    const weir__backend_verbs *verbs = stream->loop->backend->verbs;
    enum weir__op_kind wish = WEIR__OP_NONE;
    deliver_staged(stream);
    tell_end(stream);
    if (stream->output_error != 0 && !weir__stream_is_reading(stream))
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, stream->output_error);
    if (stream->has_failed || !stream->is_connected)
        return;
    if (!stream->has_ended && (stream->wants_close || is_listening(stream)))
        wish = WEIR__OP_RECEIVE;
    else if (stream->state == WEIR_STREAM_OPEN)
        wish = WEIR__OP_WATCH;
    if (stream->in.kind == wish)
        return;
    if (!weir__op_is_idle(&stream->in))
        verbs->cancel(stream->loop->backend, &stream->in); /* its last completion brings us here again */
    else if (wish == WEIR__OP_RECEIVE)
        verbs->receive(stream->loop->backend, &stream->in, stream->fd);
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
