/* SPDX-License-Identifier: MIT */
#include "socket/stream.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "base/options.h"
#include "socket/listener.h"

/*
 * The life of a stream:
 *
 *                          ┌── connected already ──┐
 *   UNSTARTED ──start──▶ CONNECTING ──▶ OPEN ◀──────┘
 *       │                    │            │
 *       │ close, abort       │            │ close, abort, failure, the peer's end without on_end
 *       ▼                    ▼            ▼
 *    CLOSING ◀───────────────┴────────────┘
 *       │   graceful: send the queue, shut down, discard input until the peer ends, or the linger timeout
 *       │   failed:   reset, cancel, drop the queue
 *       ▼   and in either case not before both operations have had their last completion
 *    CLOSED ── on_close ──▶ the loop drops its reference
 *
 * A stream that fails before it is started waits for its start, to tell then.
 */
static void set_state(weir_stream *stream, enum weir_stream_state state) {
    static const uint8_t allowed[] = {
        [WEIR_STREAM_UNSTARTED] = 1 << WEIR_STREAM_CONNECTING | 1 << WEIR_STREAM_OPEN | 1 << WEIR_STREAM_CLOSING,
        [WEIR_STREAM_CONNECTING] = 1 << WEIR_STREAM_OPEN | 1 << WEIR_STREAM_CLOSING,
        [WEIR_STREAM_OPEN] = 1 << WEIR_STREAM_CLOSING,
        [WEIR_STREAM_CLOSING] = 1 << WEIR_STREAM_CLOSING | 1 << WEIR_STREAM_CLOSED,
        [WEIR_STREAM_CLOSED] = 0,
    };
    (void)allowed;
    WEIR__ASSERT((allowed[stream->state] >> state & 1) != 0);
    if (stream->state == WEIR_STREAM_UNSTARTED)
        stream->loop->streams_unstarted--;
    stream->state = (uint8_t)state;
}

void weir__stream_opened(weir_stream *stream) {
    set_state(stream, WEIR_STREAM_OPEN);
    weir__stream_time_open(stream);
    if (stream->pipe_from != NULL)
        weir__stream_mark(stream->pipe_from); /* it has waited for that */
}

static weir_stream *to_stream(weir__actor *actor) {
    return WEIR__CONTAINER(actor, weir_stream, actor);
}

/* ---- making ----------------------------------------------------------------------------------------- */

void weir__stream_apply(int fd, bool is_tcp, const weir__stream_settings *settings) {
    /* Neither can make a connection useless, so neither may end it. */
    if (is_tcp && (settings->flags & WEIR_STREAM_NAGLE) == 0)
        (void)weir__sys_setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (is_tcp && (settings->flags & WEIR_STREAM_KEEPALIVE) != 0)
        (void)weir__sys_setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
}

static void settle(weir__actor *actor);
static void end(weir__actor *actor, int reason);
static void drain(weir__actor *actor);
static void release(weir__actor *actor);
static const weir__actor_verbs verbs = { .settle = settle, .end = end, .drain = drain, .release = release };

int weir__stream_new(weir_loop *loop, int fd, bool is_tcp, const weir__stream_settings *settings,
                     weir_stream **ret_stream) {
    if (loop->streams_open >= loop->max_streams)
        return -EUSERS;
    weir_stream *stream = weir__alloc_zeroed(loop->allocator, sizeof *stream);
    if (stream == NULL)
        return -ENOMEM;
    int r = loop->backend->verbs->admit(loop->backend, fd);
    if (r >= 0)
        r = weir__timeout_init(loop, &stream->timeout, weir__stream_timed_out);
    if (r < 0) {
        weir__free(loop->allocator, stream, sizeof *stream);
        return r;
    }
    atomic_init(&stream->refs, 1);
    stream->loop = weir_loop_ref(loop);
    stream->fd = fd;
    stream->is_tcp = is_tcp;
    stream->settings = weir__stream_settings_ref(settings);
    stream->deadline = INT64_MAX;
    stream->credit = (settings->flags & WEIR_STREAM_METERED) != 0 ? 0 : UINT64_MAX;
    stream->last_flush = &stream->flushes;
    weir__op_init(&stream->in, weir__stream_input_done);
    weir__op_init(&stream->out, weir__stream_output_done);
    weir__loop_add(loop, &stream->actor, &verbs);
    loop->streams_open++;
    loop->streams_unstarted++;
    *ret_stream = stream;
    return 0;
}

/* ---- ending ----------------------------------------------------------------------------------------- */

void weir__stream_fail(weir_stream *stream, int reason, int error) {
    if (stream->has_failed || stream->state == WEIR_STREAM_CLOSED)
        return;
    stream->has_failed = true;
    stream->reason = (uint8_t)reason;
    stream->error = error;
    weir__stream_mark(stream);
    if (stream->pipe_from != NULL)
        weir__stream_mark(stream->pipe_from); /* its receive is to be taken back */
}

static bool is_quiet(const weir_stream *stream) {
    return weir__op_is_idle(&stream->in) && weir__op_is_idle(&stream->out);
}

/* The last of it: nothing of the kernel's refers to the stream any more. */
static void finish(weir_stream *stream) {
    weir_loop *loop = stream->loop;
    if (stream->state != WEIR_STREAM_CLOSING)
        set_state(stream, WEIR_STREAM_CLOSING); /* releases may call us: they can start nothing any more */
    weir__sendq_clear(&stream->staged, &loop->ranges);
    weir__sendq_clear(&stream->queue, &loop->ranges); /* releases external memory before on_close */
    weir__stream_end_flushes(stream);
    if (weir__loop_is_lost(loop))
        return; /* one of these forked, and this is the child */
    weir__timeout_deinit(loop, &stream->timeout);
    if (stream->fd >= 0)
        weir__loop_close_fd(loop, stream->fd);
    else
        weir__loop_unstall(loop); /* detached: its place among the streams is free all the same */
    stream->fd = -1;
    set_state(stream, WEIR_STREAM_CLOSED);
    weir__loop_remove(loop, &stream->actor);
    loop->streams_open--;
    if (stream->listener != NULL)
        weir__listener_stream_ended(stream->listener);
    weir__pipe_ended(stream);
    if (stream->callbacks != NULL && stream->callbacks->on_close != NULL)
        stream->callbacks->on_close(stream, stream->reason, stream->error, stream->userdata);
    if (stream->callbacks == NULL && loop->phase == WEIR__PHASE_CLOSING)
        weir__loop_keep(loop, &stream->actor); /* its owner has not heard of it, and may still close it, say */
    else
        weir_stream_unref(stream);
}

/* Closing a TCP socket resets it only when nothing is under way in it, so it is disconnected, which resets at once and
 * ends both operations. For Unix sockets shutting down does that. */
static void cut_off(weir_stream *stream) {
    const struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
    if (stream->is_tcp)
        (void)weir__sys_connect(stream->fd, &nowhere, sizeof nowhere);
    else
        (void)weir__sys_shutdown(stream->fd, SHUT_RDWR);
    stream->is_cut = true;
}

/* Without grace: make the peer know, end what is under way, and wait until it has ended. */
static void settle_failed(weir_stream *stream) {
    if (!stream->is_reset) {
        stream->is_reset = true;
        if (stream->is_connected)
            cut_off(stream);
        stream->loop->backend->verbs->cancel(stream->loop->backend, &stream->in);
        stream->loop->backend->verbs->cancel(stream->loop->backend, &stream->out);
        stream->deadline = INT64_MAX;
        weir__timeout_set(stream->loop, &stream->timeout, WEIR_NEVER);
    }
    if (!is_quiet(stream))
        return;
    if (stream->callbacks == NULL && !stream->is_disowned)
        return; /* its owner has still to hear of it */
    if (!stream->is_cut)
        cut_off(stream); /* connecting, and given up: the kernel may have been quicker */
    finish(stream);
}

/* With grace: the queue is sent, then we end, then the peer does. Closing over input that nobody read would reset, and
 * the peer would lose the tail of what we sent. */
static void settle_closing(weir_stream *stream) {
    if (stream->queue.bytes > 0 || !stream->is_shut || !stream->has_ended || !is_quiet(stream))
        return;
    if (stream->reason == 0)
        stream->reason = WEIR_CLOSE_LOCAL;
    finish(stream);
}

static void settle(weir__actor *actor) {
    weir_stream *stream = to_stream(actor);
    bool is_due = stream->in.is_stale;
    stream->in.is_stale = false; /* what callbacks wish marks it anew */
    /* Callbacks may end the stream, which marks it: only what comes last here frees it. (Of an unstarted one a callback
     * could detach or close: those have none.) */
    if (!stream->has_failed)
        weir__stream_settle_output(stream);
    if (weir__loop_is_lost(stream->loop) || (!is_due && !stream->has_failed))
        return;
    if (!stream->has_failed)
        weir__stream_settle_input(stream);
    if (weir__loop_is_lost(stream->loop))
        return;
    if (stream->has_failed)
        settle_failed(stream);
    else if (stream->wants_close)
        settle_closing(stream);
}

/* Its owner has given up an unstarted stream: nobody is owed an on_close. */
static void disown(weir_stream *stream) {
    if (stream->callbacks == NULL)
        stream->is_disowned = true;
}

static void end(weir__actor *actor, int reason) {
    weir_stream *stream = to_stream(actor);
    weir__stream_fail(stream, reason, 0);
    if (reason == WEIR_CLOSE_LOOP)
        disown(stream);
    weir__stream_mark(stream);
}

static void drain(weir__actor *actor) {
    (void)actor;
}

static void release(weir__actor *actor) {
    weir_stream_unref(to_stream(actor));
}

/* ---- the application -------------------------------------------------------------------------------- */

WEIR_API weir_stream *weir_stream_ref(weir_stream *stream) {
    if (stream != NULL && !weir__fork_is_child(stream->loop->generation))
        atomic_fetch_add_explicit(&stream->refs, 1, memory_order_relaxed);
    return stream;
}

WEIR_API weir_stream *weir_stream_unref(weir_stream *stream) {
    if (stream == NULL || weir__fork_is_child(stream->loop->generation) ||
        atomic_fetch_sub_explicit(&stream->refs, 1, memory_order_acq_rel) != 1)
        return NULL;
    weir_loop *loop = stream->loop;
    if (!stream->is_connected)
        weir__free(loop->allocator, stream->dialling, sizeof *stream->dialling);
    weir__stream_settings_unref(loop->allocator, stream->settings);
    weir__free(loop->allocator, stream, sizeof *stream);
    weir_loop_unref(loop);
    return NULL;
}

WEIR_API int weir_stream_start(weir_stream *stream, const weir_stream_callbacks *callbacks, void *userdata) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    if (callbacks == NULL || callbacks->size < sizeof *callbacks)
        return WEIR__MISTAKE(-EINVAL, "no callbacks, or their size is not set");
    if (stream->state != WEIR_STREAM_UNSTARTED)
        return stream->callbacks == NULL ? -ESHUTDOWN : WEIR__MISTAKE(-EALREADY, "started twice");
    stream->callbacks = callbacks;
    stream->userdata = userdata;
    if (stream->is_connected)
        weir__stream_opened(stream);
    else
        set_state(stream, WEIR_STREAM_CONNECTING);
    weir__stream_mark(stream);
    return 0;
}

WEIR_API int weir_stream_detach(weir_stream *stream, int *ret_fd) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    if (ret_fd == NULL)
        return WEIR__MISTAKE(-EINVAL, "nowhere to put the descriptor");
    if (stream->state != WEIR_STREAM_UNSTARTED)
        return -EALREADY;
    if (stream->has_failed)
        return -ENOTCONN;
    bool is_piped = stream->pipe_to != NULL || stream->pipe_from != NULL;
    if (!stream->is_connected || stream->queue.bytes > 0 || stream->wants_shutdown || is_piped ||
        !is_quiet(stream))
        return -EBUSY;
    stream->loop->backend->verbs->forget(stream->loop->backend, stream->fd);
    *ret_fd = stream->fd;
    stream->fd = -1;
    disown(stream);
    finish(stream);
    return 0;
}

/* Is there nothing that its peer would have to take, or to send? Then nobody waits for it. */
static bool is_told_all(const weir_stream *stream) {
    return stream->has_ended && stream->queue.bytes == 0 && weir__op_is_idle(&stream->out);
}

WEIR_API int weir_stream_close(weir_stream *stream) {
    if (stream == NULL)
        return 0;
    int r = weir__stream_check(stream);
    if (r < 0 || stream->state == WEIR_STREAM_CLOSED || stream->wants_close)
        return r;
    disown(stream);
    stream->wants_close = stream->wants_shutdown = true;
    if (stream->has_failed) {
        weir__stream_mark(stream); /* it has waited for somebody to hear of it */
        return 0;
    }
    if (stream->has_ended)
        stream->reason = WEIR_CLOSE_PEER;
    set_state(stream, WEIR_STREAM_CLOSING);
    if (stream->pipe_from != NULL)
        weir__stream_mark(stream->pipe_from); /* its receive is to be taken back */
    if (!stream->is_connected && stream->queue.bytes == 0)
        weir__stream_fail(stream, WEIR_CLOSE_LOCAL, 0); /* nothing to send, so nobody to wait for */
    else if (stream->is_connected && !is_told_all(stream))
        weir__stream_linger(stream);
    weir__stream_mark(stream);
    return 0;
}

WEIR_API int weir_stream_abort(weir_stream *stream) {
    if (stream == NULL)
        return 0;
    int r = weir__stream_check(stream);
    if (r < 0 || stream->state == WEIR_STREAM_CLOSED)
        return r;
    disown(stream);
    weir__stream_fail(stream, WEIR_CLOSE_ABORT, 0);
    if (stream->state != WEIR_STREAM_CLOSING)
        set_state(stream, WEIR_STREAM_CLOSING);
    weir__stream_mark(stream);
    return 0;
}

WEIR_API weir_loop *weir_stream_get_loop(const weir_stream *stream) {
    return stream != NULL ? stream->loop : NULL;
}

WEIR_API void *weir_stream_get_userdata(const weir_stream *stream) {
    return stream != NULL ? stream->userdata : NULL;
}

WEIR_API int weir_stream_get_state(const weir_stream *stream) {
    int r = weir__stream_check(stream);
    return r < 0 ? r : stream->state;
}

WEIR_API uint64_t weir_stream_get_queued(const weir_stream *stream) {
    return weir__stream_check(stream) < 0 ? 0 : stream->queue.bytes;
}

WEIR_API int weir_stream_get_fd(const weir_stream *stream) {
    int r = weir__stream_check(stream);
    return r < 0 ? r : stream->fd < 0 ? -EBADF : stream->fd;
}

static int get_address(const weir_stream *stream, char *text, size_t size,
                       int (*get)(int fd, struct sockaddr_storage *address, socklen_t *length)) {
    weir__address address;
    int r = weir__stream_check(stream);
    if (r >= 0 && text == NULL)
        r = WEIR__MISTAKE(-EINVAL, "nowhere to put the address");
    if (r >= 0)
        r = stream->fd < 0 ? -EBADF : get(stream->fd, &address.storage, &address.length);
    return r < 0 ? r : weir__address_format(&address, text, size);
}

WEIR_API int weir_stream_get_local(const weir_stream *stream, char *text, size_t size) {
    return get_address(stream, text, size, weir__sys_getsockname);
}

WEIR_API int weir_stream_get_peer(const weir_stream *stream, char *text, size_t size) {
    return get_address(stream, text, size, weir__sys_getpeername);
}

WEIR_API int weir_stream_get_stats(const weir_stream *stream, weir_stream_stats *stats) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    size_t size = stats != NULL ? stats->size : 0;
    if (size < sizeof *stats)
        return WEIR__MISTAKE(-EINVAL, "no statistics, or a wrong size");
    memset(stats, 0, size);
    stats->size = size;
    stats->bytes_in = stream->bytes_in;
    stats->bytes_out = stream->bytes_out;
    stats->bytes_copied = stream->bytes_copied;
    stats->slices = stream->slices;
    stats->queued_bytes = stream->queue.bytes;
    stats->queue_peak_bytes = stream->queue_peak_bytes;
    stats->staged_bytes = stream->staged.bytes;
    stats->bytes_piped = stream->bytes_piped;
    return 0;
}
