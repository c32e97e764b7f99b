/* SPDX-License-Identifier: MIT */
/* Echo: what comes in goes out again, uncopied, and a peer that does not read is not read from.
 * Try it: build/examples/echo 127.0.0.1:7000 (or unix:/tmp/echo), and elsewhere: socat - TCP:127.0.0.1:7000 */
#include <stdio.h>
#include <weir.h>

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)userdata;
    int r = weir_stream_write_slice(stream, slice);
    if (r < 0)
        weir_stream_abort(stream);
    else if (r == WEIR_WRITE_FULL)
        weir_stream_pause(stream);
}
static void on_drain(weir_stream *stream, void *userdata) {
    (void)userdata;
    weir_stream_resume(stream);
}
static const weir_stream_callbacks echo = { .size = sizeof echo, .on_data = on_data, .on_drain = on_drain };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener, (void)userdata;
    weir_stream_start(stream, &echo, NULL);
}
static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

int main(int argc, char **argv) {
    weir_loop *loop = NULL;
    weir_listener *listener = NULL;
    int r = weir_loop_new(NULL, &loop);
    r = r < 0 ? r : weir_listener_open(loop, argc > 1 ? argv[1] : "127.0.0.1:7000", NULL, &listener);
    r = r < 0 ? r : weir_listener_start(listener, &accepting, NULL);
    r = r < 0 ? r : weir_loop_run(loop);
    if (r < 0)
        fprintf(stderr, "echo: %s\n", weir_error_text(r));
    weir_loop_close(loop);
    weir_loop_unref(loop);
    return r < 0;
}
