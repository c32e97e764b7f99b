/* SPDX-License-Identifier: MIT */
#include "socket/stream.h"

/*
 * Two streams joined: what one receives is queued on the other, slice by slice and uncopied, without a callback.
 *
 * The queue of the other end is what holds back: above its high mark nothing is taken from the first one, whose peer
 * then fills the socket and stops; at the low mark it goes on. So a pipe holds no more than the high mark and one buffer,
 * however long the one side is fast and the other slow. Like other wishes a pipe is settled, not carried out, by the
 * call that makes it.
 */

static void link_up(weir_stream *from, weir_stream *to) {
    from->pipe_to = weir_stream_ref(to);
    to->pipe_from = weir_stream_ref(from);
    to->is_pipe_full = weir__stream_is_full(to);
    weir__stream_mark(from);
    weir__stream_mark(to);
}

static void take_apart(weir_stream *from) {
    weir_stream *to = from->pipe_to;
    from->pipe_to = NULL;
    to->pipe_from = NULL;
    to->is_pipe_full = false;
    weir__stream_mark(from);
    weir__stream_reschedule(from); /* each is idle by itself now, and so sooner */
    weir__stream_reschedule(to);
    weir_stream_unref(to);
    weir_stream_unref(from);
}

bool weir__pipe_is_open(const weir_stream *from) {
    const weir_stream *to = from->pipe_to;
    return to->state == WEIR_STREAM_OPEN && !to->is_pipe_full && !to->wants_shutdown && !to->has_failed &&
           to->output_error == 0;
}

uint64_t weir__pipe_room(const weir_stream *from) {
    enum { LEAST_BYTES = 64 << 10 }; /* less at a time costs more than it saves */
    const weir_stream *to = from->pipe_to;
    uint64_t high = to->settings->queue_high_bytes, queued = to->queue.bytes;
    return weir__max_u64(high > queued ? high - queued : 0, LEAST_BYTES);
}

void weir__pipe_forward(weir_stream *from, const weir_slice *slice) {
    weir_stream *to = from->pipe_to;
    int r = weir__sendq_add(&to->queue, &to->loop->ranges, to->loop->pool, slice);
    if (r < 0) {
        weir__stream_fail(from, WEIR_CLOSE_ERROR, r); /* a gap would be worse than an end */
        return;
    }
    from->bytes_piped += slice->size;
    to->bytes_copied += (uint64_t)r;
    weir__stream_wrote(to);
}

void weir__pipe_filled(weir_stream *to) {
    to->is_pipe_full = true;
    weir__stream_mark(to->pipe_from); /* its receive is to be taken back */
}

void weir__pipe_drained(weir_stream *to) {
    to->is_pipe_full = false;
    if (to->pipe_from != NULL)
        weir__stream_mark(to->pipe_from);
}

bool weir__pipe_end(weir_stream *from) {
    weir_stream *to = from->pipe_to;
    from->is_end_passed = true;
    to->wants_shutdown = true;
    weir__stream_mark(to);
    if (to->pipe_to == from)
        return to->is_end_passed;
    take_apart(from); /* one way, and that is over: what becomes of either does not concern the other any more */
    return false;
}

void weir__pipe_close_pair(weir_stream *from) {
    weir_stream *to = from->pipe_to;
    if (to == NULL || to->pipe_to != from || from->has_failed || to->has_failed)
        return; /* on_end has thought otherwise: unpiped, or aborted one, which ends the other in its way */
    (void)weir_stream_close(from);
    (void)weir_stream_close(to);
}

/* @stream ended, and @other lived of it, or for it. One that ends already does so at its own pace. */
static void end_with(weir_stream *other, const weir_stream *stream) {
    bool is_well = stream->reason == WEIR_CLOSE_LOCAL || stream->reason == WEIR_CLOSE_PEER;
    if (other->wants_close)
        return;
    if (is_well && other->state != WEIR_STREAM_UNSTARTED)
        (void)weir_stream_close(other);
    else /* one that was not started is its owner's to close, and hears of it when it is started */
        weir__stream_fail(other, WEIR_CLOSE_PIPE, stream->error);
}

void weir__pipe_ended(weir_stream *stream) {
    weir_stream *to = stream->pipe_to, *from = stream->pipe_from;
    if (to != NULL && to != stream)
        end_with(to, stream);
    if (from != NULL && from != stream && from != to)
        end_with(from, stream);
    if (to != NULL)
        take_apart(stream);
    if (from != NULL && from->pipe_to == stream)
        take_apart(from);
}

/* ---- the application -------------------------------------------------------------------------------- */

/* 0: they may be joined; -errno. */
static int check(const weir_stream *from, const weir_stream *to) {
    int r = weir__stream_check(from);
    if (r >= 0)
        r = to == NULL ? WEIR__MISTAKE(-EINVAL, "no stream") : 0;
    if (r >= 0 && from->loop != to->loop)
        return -EXDEV;
    if (r < 0)
        return r;
    if (from->pipe_to != NULL || to->pipe_from != NULL)
        return -EALREADY;
    bool has_ended = from->state >= WEIR_STREAM_CLOSING || from->has_failed || from->is_end_told;
    bool is_ending =
        to->state >= WEIR_STREAM_CLOSING || to->has_failed || to->wants_shutdown || to->output_error != 0;
    return has_ended || is_ending ? -EPIPE : 0;
}

WEIR_API int weir_stream_pipe(weir_stream *from, weir_stream *to) {
    int r = check(from, to);
    if (r >= 0)
        link_up(from, to);
    return r;
}

WEIR_API int weir_stream_pipe_both(weir_stream *a, weir_stream *b) {
    int r = check(a, b);
    if (r >= 0)
        r = a == b ? WEIR__MISTAKE(-EINVAL, "a stream has no other end than its peer") : check(b, a);
    if (r < 0)
        return r;
    link_up(a, b);
    link_up(b, a);
    return 0;
}

WEIR_API int weir_stream_unpipe(weir_stream *from) {
    int r = weir__stream_check(from);
    if (r < 0)
        return r;
    if (from->pipe_to == NULL)
        return -EINVAL;
    take_apart(from);
    return 0;
}
