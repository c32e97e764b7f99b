/* SPDX-License-Identifier: MIT */
/*
 * Frames: four bytes of length, big-endian, then so many bytes. Each whole frame is answered by itself, uncopied, in
 * however many pieces it came; one that is too long is a reset.
 * Try it: build/examples/frames, and elsewhere: printf '\0\0\0\5hello' | socat - TCP:127.0.0.1:7002
 */
#include <errno.h>
#include <stdio.h>
#include <weir.h>

enum { HEADER = 4, FRAME_LIMIT = 1 << 20, CHAIN_LIMIT = HEADER + FRAME_LIMIT + (64 << 10) };

static size_t read_size(const uint8_t *data) {
    return (size_t)data[0] << 24 | (size_t)data[1] << 16 | (size_t)data[2] << 8 | data[3];
}

/* Every whole frame, until the queue is full: then the others wait for on_drain. */
static int answer_all(weir_stream *stream, weir_chain *chain) {
    const weir_slice *header;
    int r = WEIR_WRITE_OK;
    while (r == WEIR_WRITE_OK) {
        r = weir_chain_peek(chain, 0, HEADER, &header);
        if (r < 0)
            break;
        size_t size = read_size(header->data);
        if (size > FRAME_LIMIT)
            return -EMSGSIZE;
        r = weir_chain_write(chain, HEADER + size, stream);
    }
    return r == -EAGAIN ? WEIR_WRITE_OK : r; /* the next one is not all there */
}

static void go_on(weir_stream *stream, int r) {
    if (r == WEIR_WRITE_FULL)
        weir_stream_pause(stream);
    else if (r < 0)
        weir_stream_abort(stream);
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    int r = weir_chain_push(userdata, slice);
    go_on(stream, r < 0 ? r : answer_all(stream, userdata));
}
static void on_drain(weir_stream *stream, void *userdata) {
    weir_stream_resume(stream); /* its callbacks come later, and not if it is paused again */
    go_on(stream, answer_all(stream, userdata));
}
static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)reason, (void)error;
    weir_chain_unref(userdata);
}
static const weir_stream_callbacks framing = {
    .size = sizeof framing, .on_data = on_data, .on_drain = on_drain, .on_close = on_close
};

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)userdata;
    weir_chain *chain;
    if (weir_chain_new(weir_listener_get_loop(listener), CHAIN_LIMIT, &chain) < 0)
        weir_stream_abort(stream);
    else
        weir_stream_start(stream, &framing, chain);
}
static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

int main(int argc, char **argv) {
    /* Who sends half a message and no more holds memory that others wait for. */
    const weir_stream_options each = { .size = sizeof each, .idle_timeout_ns = INT64_C(60000000000) };
    const weir_listener_options options = { .size = sizeof options, .stream = &each };
    weir_loop *loop = NULL;
    weir_listener *listener = NULL;
    int r = weir_loop_new(NULL, &loop);
    r = r < 0 ? r : weir_listener_open(loop, argc > 1 ? argv[1] : "127.0.0.1:7002", &options, &listener);
    r = r < 0 ? r : weir_listener_start(listener, &accepting, NULL);
    r = r < 0 ? r : weir_loop_run(loop);
    if (r < 0)
        fprintf(stderr, "frames: %s\n", weir_error_text(r));
    weir_loop_close(loop);
    weir_loop_unref(loop);
    return r < 0;
}
