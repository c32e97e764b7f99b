/* SPDX-License-Identifier: MIT */
#include "socket/stream.h"

/*
 * What the application queues: bytes copied, referenced or its own, all or nothing; when they go is stream_output.c's
 * business.
 */

enum { MOST_FLUSHES = 1024 }; /* that wait; who asks with each write forgets to wait for room */

/* Too much for now. What is queued will be sent, and then it is told that there is room. */
static int refused(weir_stream *stream, int error) {
    if (error == -ENOBUFS && stream->queue.bytes > 0) {
        stream->is_full_told = true;
        /* What is held back by a cork goes, and a send that nobody has waited for is waited for now. */
        weir__stream_mark_output(stream);
    }
    return error;
}

/* May @size bytes in @count ranges be queued? 0; -EPIPE; -ENOBUFS; as weir__stream_check(). */
static int check_write(weir_stream *stream, uint64_t size, uint32_t count) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    if (stream->wants_shutdown || stream->has_failed || stream->output_error != 0 ||
        stream->state >= WEIR_STREAM_CLOSING)
        return -EPIPE;
    uint64_t limit = stream->settings->queue_limit_bytes;
    if (size > limit)
        return -EMSGSIZE; /* also with an empty queue: who waited for a drain would wait for ever */
    if (stream->queue.bytes > limit - size ||
        (uint64_t)stream->queue.count + count > stream->settings->most_ranges)
        return refused(stream, -ENOBUFS);
    return 0;
}

bool weir__stream_is_full(const weir_stream *stream) {
    return stream->queue.bytes > stream->settings->queue_high_bytes ||
           stream->queue.count > stream->settings->most_ranges / 2;
}

void weir__stream_wrote(weir_stream *stream) {
    if (stream->queue.bytes > stream->queue_peak_bytes)
        stream->queue_peak_bytes = stream->queue.bytes;
    if (stream->pipe_from != NULL && !stream->is_pipe_full && weir__stream_is_full(stream))
        weir__pipe_filled(stream);
    if (weir__op_is_idle(&stream->out)) /* else a send is under way, and so is its time */
        weir__stream_time_write(stream);
    weir__stream_mark_output(stream);
}

static int written(weir_stream *stream) {
    weir__stream_wrote(stream);
    if (!weir__stream_is_full(stream))
        return WEIR_WRITE_OK;
    stream->is_full_told = true;
    return WEIR_WRITE_FULL;
}

/* Append one slice, uncounted bytes as a copy. Return: bytes copied; -ENOMEM; -ENOBUFS. */
static int append(weir_stream *stream, const weir_slice *slice) {
    weir_loop *loop = stream->loop;
    if (slice->size == 0)
        return 0;
    if (slice->owner != NULL)
        return weir__sendq_add(&stream->queue, &loop->ranges, loop->pool, slice);
    int r = weir__sendq_copy(&stream->queue, &loop->ranges, loop->pool, slice->data, slice->size);
    return r < 0 ? r : slice->size < INT32_MAX ? (int)slice->size : INT32_MAX;
}

WEIR_API int weir_stream_write(weir_stream *stream, const void *data, size_t size) {
    int r = data == NULL && size > 0 ? WEIR__MISTAKE(-EINVAL, "no data") : check_write(stream, size, 1);
    if (r < 0 || size == 0)
        return r;
    r = weir__sendq_copy(&stream->queue, &stream->loop->ranges, stream->loop->pool, data, size);
    if (r < 0)
        return refused(stream, r);
    stream->bytes_copied += size;
    return written(stream);
}

WEIR_API int weir_stream_write_slice(weir_stream *stream, const weir_slice *slice) {
    if (slice == NULL)
        return WEIR__MISTAKE(-EINVAL, "no slice");
    if (slice->owner == NULL)
        return weir_stream_write(stream, slice->data, slice->size);
    int r = check_write(stream, slice->size, 1);
    if (r < 0 || slice->size == 0)
        return r;
    r = weir__sendq_add(&stream->queue, &stream->loop->ranges, stream->loop->pool, slice);
    if (r < 0)
        return r;
    stream->bytes_copied += (uint64_t)r;
    return written(stream);
}

WEIR_API int weir_stream_writev(weir_stream *stream, const weir_slice *slices, size_t count) {
    enum { MOST_SLICES = 1024 };
    uint64_t size = 0, copied = 0;
    if (slices == NULL && count > 0)
        return WEIR__MISTAKE(-EINVAL, "no slices");
    if (count > MOST_SLICES)
        return -EINVAL;
    for (size_t i = 0; i < count; i++) {
        if (slices[i].data == NULL && slices[i].size > 0)
            return WEIR__MISTAKE(-EINVAL, "no data");
        size = slices[i].size < UINT64_MAX - size ? size + slices[i].size : UINT64_MAX;
    }
    int r = check_write(stream, size, (uint32_t)count);
    if (r < 0 || size == 0)
        return r;
    weir__sendq_mark mark = weir__sendq_get_mark(&stream->queue);
    for (size_t i = 0; i < count; i++) {
        r = append(stream, &slices[i]);
        if (r < 0) {
            weir__sendq_rewind(&stream->queue, &stream->loop->ranges, &mark);
            return refused(stream, r);
        }
        copied += (uint64_t)r;
    }
    stream->bytes_copied += copied;
    return written(stream);
}

int weir__stream_write_ranges(weir_stream *stream, const weir__range *ranges, uint64_t bytes) {
    uint64_t copied;
    int r = check_write(stream, bytes, 1);
    if (r < 0 || bytes == 0)
        return r;
    r = weir__sendq_join(&stream->queue, &stream->loop->ranges, stream->loop->pool, ranges, bytes, &copied);
    if (r < 0)
        return r;
    stream->bytes_copied += copied;
    return written(stream);
}

WEIR_API int weir_stream_write_external(weir_stream *stream, const void *data, size_t size,
                                        weir_release_fn release, void *userdata) {
    weir_slice slice;
    if (data == NULL || size == 0)
        return WEIR__MISTAKE(-EINVAL, "no data");
    int r = check_write(stream, size, 1);
    if (r < 0)
        return r;
    r = weir_slice_wrap(stream->loop->pool, data, size, NULL, NULL, &slice);
    if (r < 0)
        return r;
    weir__external_block *block = WEIR__CONTAINER(slice.owner, weir__external_block, block);
    r = weir__sendq_push(&stream->queue, &stream->loop->ranges, &slice);
    if (r >= 0) { /* from here on it will run, and not before */
        block->release = release;
        block->userdata = userdata;
    }
    weir_slice_unref(&slice); /* the queue has its own */
    return r < 0 ? r : written(stream);
}

WEIR_API int weir_stream_shutdown(weir_stream *stream) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    if (stream->has_failed || stream->state >= WEIR_STREAM_CLOSING)
        return -EPIPE;
    if (stream->pipe_from != NULL)
        return -EBUSY;
    stream->wants_shutdown = true;
    weir__stream_mark(stream);
    return 0;
}

static int set_corked(weir_stream *stream, bool is_corked) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    stream->is_corked = is_corked;
    weir__stream_mark_output(stream);
    return 0;
}

WEIR_API int weir_stream_cork(weir_stream *stream) {
    return set_corked(stream, true);
}

WEIR_API int weir_stream_uncork(weir_stream *stream) {
    return set_corked(stream, false);
}

/* ---- flushing --------------------------------------------------------------------------------------- */

WEIR_API int weir_stream_flush(weir_stream *stream, weir_flush_fn function, void *userdata) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    if (function == NULL || stream->callbacks == NULL)
        return WEIR__MISTAKE(-EINVAL, "no function, or the stream was not started");
    if (stream->has_failed || stream->output_error != 0 || stream->state >= WEIR_STREAM_CLOSING)
        return -EPIPE;
    if (stream->flush_count >= MOST_FLUSHES)
        return -ENOBUFS;
    weir__flush *flush = weir__alloc(stream->loop->allocator, sizeof *flush);
    if (flush == NULL)
        return -ENOMEM;
    *flush = (weir__flush){ .position = stream->bytes_out + stream->queue.bytes,
                            .function = function,
                            .userdata = userdata };
    *stream->last_flush = flush;
    stream->last_flush = &flush->next;
    stream->flush_count++;
    weir__stream_mark_output(stream);
    return 0;
}

/* The first one goes out of the list, and then is told: it may ask for the next. */
static void tell_first(weir_stream *stream, int error) {
    weir__flush flush = *stream->flushes;
    weir__free(stream->loop->allocator, stream->flushes, sizeof flush);
    stream->flushes = flush.next;
    stream->flush_count--;
    if (flush.next == NULL)
        stream->last_flush = &stream->flushes;
    flush.function(stream, error, flush.userdata);
}

void weir__stream_tell_flushed(weir_stream *stream) {
    weir__flush *const *end = stream->last_flush;
    uint64_t taken = stream->bytes_out;
    bool is_last = stream->flushes == NULL;
    while (!is_last && stream->flushes->position <= taken && !stream->has_failed) {
        is_last = &stream->flushes->next == end; /* who asks now is told next time */
        tell_first(stream, 0);
        if (weir__loop_is_lost(stream->loop))
            return;
    }
}

void weir__stream_end_flushes(weir_stream *stream) {
    while (stream->flushes != NULL && !weir__loop_is_lost(stream->loop)) {
        bool is_taken = stream->flushes->position <= stream->bytes_out;
        tell_first(stream, is_taken ? 0 : stream->error != 0 ? stream->error : -ECANCELED);
    }
}
