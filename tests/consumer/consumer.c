/* SPDX-License-Identifier: MIT */
/* A program of somebody else's: it echoes over loopback through weir and ends with 0 if every byte came back. */
#include <stdio.h>
#include <string.h>
#include <weir.h>

enum { SIZE = 1 << 20 };

static unsigned char sent[SIZE], received[SIZE];
static size_t received_size;
static int failures;

static void check(int r, const char *what) {
    if (r < 0) {
        fprintf(stderr, "%s: %s\n", what, weir_error_text(r));
        failures++;
    }
}

static void on_server_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)userdata;
    check(weir_stream_write_slice(stream, slice), "write_slice");
}

static const weir_stream_callbacks server = { .size = sizeof server, .on_data = on_server_data };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)userdata;
    check(weir_stream_start(stream, &server, NULL), "start");
    check(weir_listener_close(listener), "listener_close");
}

static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

static void on_client_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)stream, (void)userdata;
    if (slice->size > SIZE - received_size) {
        fprintf(stderr, "more came back than was sent\n");
        failures++;
        return;
    }
    memcpy(received + received_size, slice->data, slice->size);
    received_size += slice->size;
    if (received_size == SIZE)
        check(weir_stream_shutdown(stream), "shutdown");
}

static void on_client_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)reason, (void)userdata;
    check(error, "client");
}

static const weir_stream_callbacks client = { .size = sizeof client,
                                              .on_data = on_client_data,
                                              .on_close = on_client_close };

int main(void) {
    weir_loop *loop = NULL;
    weir_listener *listener = NULL;
    weir_stream *stream = NULL;
    char address[WEIR_ADDRESS_SIZE], reason[WEIR_REASON_SIZE] = "";
    weir_loop_options options = { .size = sizeof options, .reason = reason, .reason_size = sizeof reason };

    for (size_t i = 0; i < SIZE; i++)
        sent[i] = (unsigned char)(i * 31 + i / 251);

    int r = weir_loop_new(&options, &loop);
    if (r < 0)
        fprintf(stderr, "%s\n", reason);
    if (r >= 0)
        r = weir_listener_open(loop, "127.0.0.1:0", NULL, &listener);
    if (r >= 0)
        r = weir_listener_start(listener, &accepting, NULL);
    if (r >= 0)
        r = weir_listener_get_address(listener, address, sizeof address);
    if (r >= 0)
        r = weir_stream_dial(loop, address, NULL, &stream);
    if (r >= 0)
        r = weir_stream_start(stream, &client, NULL);
    if (r >= 0)
        r = weir_stream_write(stream, sent, SIZE);
    if (r >= 0)
        r = weir_loop_run(loop);
    check(r, "weir");
    weir_loop_close(loop);
    weir_loop_unref(loop);

    if (received_size != SIZE || memcmp(sent, received, SIZE) != 0) {
        fprintf(stderr, "%zu of %d bytes came back, or other ones\n", received_size, (int)SIZE);
        failures++;
    }
    return failures > 0;
}
