/* SPDX-License-Identifier: MIT */
#include "socket/stream.h"

/*
 * What goes out: connecting, then one send at a time of what is at the front of the queue. A send's bytes keep their
 * references until its completion says how many the kernel has taken.
 */

enum { UNIX_RETRY_NS = 10 * 1000 * 1000 };

/* Ranges cost memory that their bytes do not show: a queue has at most this many, and more if it may be long. */
static uint32_t most_ranges(const weir_stream *stream) {
    return (uint32_t)weir__min_u64(1024 + stream->settings.queue_limit_bytes / 256, UINT32_MAX);
}

static void connected(weir_stream *stream, int32_t result) {
    weir_loop *loop = stream->loop;
    if (result < 0) {
        weir__stream_fail(stream, WEIR_CLOSE_CONNECT, result);
        return;
    }
    stream->is_connected = true;
    weir__timeout_set(loop, &stream->timeout, WEIR_NEVER);
    if (stream->wants_close)
        weir__stream_linger(stream);
    weir__free(loop->allocator, stream->dialling, sizeof *stream->dialling);
    stream->dialling = NULL;
}

/* The kernel would retry a Unix socket's connect on a poll that is always ready, until it gives up or has a thread of
 * its own for it. connect(2) on a non-blocking one never waits: its backlog is full, or it is done. */
static void connect_unix(weir_stream *stream) {
    const weir__address *address = &stream->dialling->address;
    int r = weir__sys_connect(stream->fd, (const struct sockaddr *)&address->storage, address->length);
    if (r != -EAGAIN) {
        connected(stream, r);
        return;
    }
    int64_t left = stream->dialling->deadline - weir__loop_now(stream->loop);
    weir__timeout_set(stream->loop, &stream->timeout, left < UNIX_RETRY_NS ? left > 0 ? left : 0 : UNIX_RETRY_NS);
}

static void taken(weir_stream *stream, uint32_t bytes) {
    weir_loop *loop = stream->loop;
    stream->bytes_out += bytes;
    loop->bytes_out += bytes;
    weir__sendq_advance(&stream->queue, &loop->ranges, bytes);
    if (stream->wants_close && !stream->has_failed) /* the peer is alive: let it take the rest */
        weir__stream_linger(stream);
    if (!stream->is_full_told || stream->queue.bytes > stream->settings.queue_low_bytes ||
        stream->queue.count > most_ranges(stream) / 8)
        return;
    stream->is_full_told = false;
    if (stream->state == WEIR_STREAM_OPEN && !stream->has_failed && stream->callbacks->on_drain != NULL)
        stream->callbacks->on_drain(stream, stream->userdata);
}

/* Nothing can be sent any more. If the connection has gone, what the peer sent before (an early answer, say) is in the
 * socket still and is the receive's to deliver; with its end the stream fails, or when it takes too long: a peer may have
 * stopped to read and go on to write for ever. */
static void broken(weir_stream *stream, int error) {
    bool is_gone = error == -EPIPE || error == -ECONNRESET || error == -ENOTCONN || error == -ETIMEDOUT;
    if (is_gone && weir__stream_is_reading(stream)) {
        stream->output_error = error;
        weir__timeout_set(stream->loop, &stream->timeout, stream->settings.linger_timeout_ns);
    } else {
        weir__stream_fail(stream, WEIR_CLOSE_ERROR, error);
    }
    weir__sendq_clear(&stream->queue, &stream->loop->ranges);
}

void weir__stream_output_done(weir__op *op, const weir__completion *completion) {
    weir_stream *stream = WEIR__CONTAINER(op, weir_stream, out);
    if (!stream->is_connected)
        connected(stream, completion->result);
    else if (completion->result >= 0)
        taken(stream, (uint32_t)completion->result);
    else
        broken(stream, completion->result);
    if (stream->queue.bytes > 0 || stream->wants_shutdown || stream->has_failed || !stream->is_open_told ||
        stream->output_error != 0)
        weir__stream_mark(stream); /* else there is nothing to do: the usual case of an echo */
}

static void tell_open(weir_stream *stream) {
    if (stream->state == WEIR_STREAM_CONNECTING)
        weir__stream_opened(stream);
    if (stream->state != WEIR_STREAM_OPEN || stream->is_open_told)
        return;
    stream->is_open_told = true;
    if (stream->callbacks->on_open != NULL)
        stream->callbacks->on_open(stream, stream->userdata);
}

void weir__stream_settle_output(weir_stream *stream) {
    weir__backend *backend = stream->loop->backend;
    if (!weir__op_is_idle(&stream->out))
        return;
    if (!stream->is_connected && stream->is_tcp) {
        const weir__address *address = &stream->dialling->address;
        backend->verbs->connect(backend, &stream->out, stream->fd, (const struct sockaddr *)&address->storage,
                                address->length);
        return;
    }
    if (!stream->is_connected)
        connect_unix(stream);
    if (!stream->is_connected)
        return;
    tell_open(stream);
    if (stream->has_failed || stream->state == WEIR_STREAM_UNSTARTED)
        return;
    if (stream->queue.bytes > 0) {
        backend->verbs->send(backend, &stream->out, stream->fd, &stream->queue);
    } else if (stream->wants_shutdown && !stream->is_shut && stream->output_error == 0) {
        stream->is_shut = true;
        (void)weir__sys_shutdown(stream->fd, SHUT_WR); /* of a connection that is gone: the receive tells */
    }
}

/* ---- the application -------------------------------------------------------------------------------- */

/* Too much for now. What is queued will be sent, and then it is told that there is room. */
static int refused(weir_stream *stream, int error) {
    if (error == -ENOBUFS && stream->queue.bytes > 0)
        stream->is_full_told = true;
    return error;
}

/* May so much be queued? 0; -EPIPE; -ENOBUFS; as weir__stream_check(). */
static int check_write(weir_stream *stream, const void *data, size_t size) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    if (data == NULL && size > 0)
        return WEIR__MISTAKE(-EINVAL, "no data");
    if (stream->wants_shutdown || stream->has_failed || stream->output_error != 0 ||
        stream->state >= WEIR_STREAM_CLOSING)
        return -EPIPE;
    uint64_t limit = stream->settings.queue_limit_bytes;
    if (size > limit || stream->queue.bytes > limit - size || stream->queue.count >= most_ranges(stream))
        return refused(stream, -ENOBUFS);
    return 0;
}

/* Something was queued. */
static int written(weir_stream *stream) {
    if (stream->queue.bytes > stream->queue_peak_bytes)
        stream->queue_peak_bytes = stream->queue.bytes;
    weir__stream_mark(stream);
    if (stream->queue.bytes <= stream->settings.queue_high_bytes && stream->queue.count <= most_ranges(stream) / 2)
        return WEIR_WRITE_OK;
    stream->is_full_told = true;
    return WEIR_WRITE_FULL;
}

WEIR_API int weir_stream_write(weir_stream *stream, const void *data, size_t size) {
    int r = check_write(stream, data, size);
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
    int r = check_write(stream, slice->data, slice->size);
    if (r < 0 || slice->size == 0)
        return r;
    r = weir__sendq_add(&stream->queue, &stream->loop->ranges, stream->loop->pool, slice);
    if (r < 0)
        return r;
    stream->bytes_copied += (uint64_t)r;
    return written(stream);
}

WEIR_API int weir_stream_write_external(weir_stream *stream, const void *data, size_t size,
                                        weir_release_fn release, void *userdata) {
    weir_slice slice;
    int r = check_write(stream, data, size);
    if (r < 0)
        return r;
    if (size == 0)
        return WEIR__MISTAKE(-EINVAL, "no data");
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
    stream->wants_shutdown = true;
    weir__stream_mark(stream);
    return 0;
}
