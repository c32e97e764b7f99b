/* SPDX-License-Identifier: MIT */
/*
 * weir, as an application uses it: the public interface alone, and of its options only those that the workloads
 * ask for. The variants are its backends.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <weir.h>

#include "../server.h"

typedef struct server {
    server_options options;
    weir_loop *loop;
    char upstream[WEIR_ADDRESS_SIZE];
} server;

/* ---- echo ------------------------------------------------------------------------------------------- */

static void echo_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)userdata;
    int r = weir_stream_write_slice(stream, slice);
    if (r < 0)
        weir_stream_abort(stream);
    else if (r == WEIR_WRITE_FULL)
        weir_stream_pause(stream);
}
static void echo_drain(weir_stream *stream, void *userdata) {
    (void)userdata;
    weir_stream_resume(stream);
}
static const weir_stream_callbacks echo = { .size = sizeof echo, .on_data = echo_data, .on_drain = echo_drain };

/* ---- sink ------------------------------------------------------------------------------------------- */

static void sink_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)stream, (void)slice, (void)userdata;
}
static const weir_stream_callbacks sink = { .size = sizeof sink, .on_data = sink_data };

/* ---- source ----------------------------------------------------------------------------------------- */

static void source_sent(const void *data, size_t size, void *userdata) {
    (void)data, (void)size, (void)userdata; /* the block stays */
}
static void source_fill(weir_stream *stream, void *userdata) {
    int r = WEIR_WRITE_OK;
    while (r == WEIR_WRITE_OK)
        r = weir_stream_write_external(stream, server_block, sizeof server_block, source_sent, userdata);
    if (r < 0)
        weir_stream_abort(stream);
}
static void source_end(weir_stream *stream, void *userdata) {
    (void)userdata;
    weir_stream_abort(stream);
}
static const weir_stream_callbacks source = {
    .size = sizeof source, .on_data = sink_data, .on_end = source_end, .on_drain = source_fill
};

/* ---- proxy ------------------------------------------------------------------------------------------ */

static const weir_stream_callbacks proxied = { .size = sizeof proxied };

/* Bytes flow when both are there; if one of them fails, so does the other. */
static void proxy_start(weir_stream *client, const server *s) {
    weir_stream *upstream;
    if (weir_stream_dial(s->loop, s->upstream, NULL, &upstream) < 0) {
        weir_stream_abort(client);
        return;
    }
    if (weir_stream_pipe_both(client, upstream) < 0) {
        weir_stream_abort(client);
        weir_stream_abort(upstream);
        return;
    }
    weir_stream_start(client, &proxied, NULL);
    weir_stream_start(upstream, &proxied, NULL);
}

/* ---- hold ------------------------------------------------------------------------------------------- */

static void hold_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    weir_chain *chain = userdata;
    const weir_slice *message;
    int r = weir_chain_push(chain, slice);
    while (r >= 0 && weir_chain_peek(chain, 0, SERVER_HOLD_SIZE, &message) == 0) {
        r = weir_stream_write(stream, message->data, 1);
        if (r >= 0 && weir_chain_drop(chain, SERVER_HOLD_SIZE) < 0)
            r = -1;
    }
    if (r < 0)
        weir_stream_abort(stream);
}
static void hold_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)reason, (void)error;
    weir_chain_unref(userdata);
}
static const weir_stream_callbacks holding = { .size = sizeof holding,
                                               .on_data = hold_data,
                                               .on_close = hold_close };

static void hold_start(weir_stream *stream, const server *s) {
    enum { LIMIT = SERVER_HOLD_SIZE + 65536 }; /* a message, and a buffer that begins with its end */
    weir_chain *chain;
    if (weir_chain_new(s->loop, LIMIT, &chain) < 0)
        weir_stream_abort(stream);
    else
        weir_stream_start(stream, &holding, chain);
}

/* ---- serving ---------------------------------------------------------------------------------------- */

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    const server *s = userdata;
    (void)listener;
    switch (s->options.work) {
    case SERVER_ECHO:
        weir_stream_start(stream, &echo, NULL);
        break;
    case SERVER_SINK:
        weir_stream_start(stream, &sink, NULL);
        break;
    case SERVER_SOURCE:
        weir_stream_start(stream, &source, NULL);
        source_fill(stream, NULL);
        break;
    case SERVER_PROXY:
        proxy_start(stream, s);
        break;
    case SERVER_HOLD:
        hold_start(stream, s);
        break;
    }
}
static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

static uint32_t backend(const server_options *o) {
    if (server_is_variant(o, "classic"))
        return WEIR_BACKEND_URING_CLASSIC;
    return server_is_variant(o, "epoll") ? WEIR_BACKEND_EPOLL : WEIR_BACKEND_URING_INCREMENTAL;
}

static const char *running(const weir_loop *loop) {
    static const char *const names[] = { "auto", "uring-incremental", "uring-classic", "epoll" };
    weir_loop_info info = { .size = sizeof info };
    if (weir_loop_get_info(loop, &info) < 0 || info.backend >= sizeof names / sizeof *names)
        return "unknown";
    return names[info.backend];
}

static int serve(server *s) {
    /* The source has four writes queued: with the fourth the queue is above this mark. */
    const weir_stream_options sourcing = { .size = sizeof sourcing, .queue_high_bytes = SERVER_QUEUE - 1 };
    const weir_listener_options options = { .size = sizeof options,
                                            .backlog = SERVER_BACKLOG,
                                            .stream = s->options.work == SERVER_SOURCE ? &sourcing : NULL };
    weir_listener *listener;
    int r = weir_listener_adopt(s->loop, server_listen(&s->options), &options, &listener);
    r = r < 0 ? r : weir_listener_start(listener, &accepting, s);
    if (r < 0)
        return r;
    server_ready(running(s->loop));
    return weir_loop_run(s->loop);
}

int main(int argc, char **argv) {
    static const char *const variants[] = { "incremental", "classic", "epoll", "spin", "large", NULL };
    char reason[WEIR_REASON_SIZE] = "";
    server s = { .loop = NULL };
    server_arguments(argc, argv, variants, &s.options);
    snprintf(s.upstream, sizeof s.upstream, "127.0.0.1:%u", s.options.upstream);
    const bool spins = server_is_variant(&s.options, "spin");
    const weir_pool_options large = { .size = sizeof large, .buffer_bytes = 256 << 10 };
    const weir_loop_options options = { .size = sizeof options,
                                        .backend = backend(&s.options),
                                        .pool = server_is_variant(&s.options, "large") ? &large : NULL,
                                        .busy_poll = spins ? WEIR_BUSY_POLL_ADAPTIVE : WEIR_BUSY_POLL_OFF,
                                        .reason = reason,
                                        .reason_size = sizeof reason };
    int r = weir_loop_new(&options, &s.loop);
    if (r == -ENOSYS || r == -EPERM)
        server_unsupported("%s", reason);
    r = r < 0 ? r : serve(&s);
    server_die("%s %s", weir_error_text(r), reason);
}
