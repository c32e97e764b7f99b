/* SPDX-License-Identifier: MIT */
/*
 * Lines: "echo TEXT" is answered by TEXT, "length TEXT" by how many bytes that is. Lines end with \n or \r\n, come in any
 * pieces, and are answered in order; one that is too long is answered by an error and the end. Echoed text is not copied.
 * Try it: build/examples/lines, and elsewhere: socat - TCP:127.0.0.1:7003
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <weir.h>

enum {
    LINE_LIMIT = 4096,
    CHAIN_LIMIT = LINE_LIMIT + (64 << 10) /* a line, and a buffer that begins with its end */
};

static int say(weir_stream *stream, const char *text) {
    return weir_stream_write(stream, text, strlen(text));
}

static size_t length_without_end(const weir_slice *line) {
    size_t length = line->size;
    if (length > 0 && line->data[length - 1] == '\n')
        length--;
    if (length > 0 && line->data[length - 1] == '\r')
        length--;
    return length;
}

static int is_command(const weir_slice *line, const char *command) {
    size_t size = strlen(command);
    return line->size >= size && memcmp(line->data, command, size) == 0;
}

/* The chain begins with a line of @size bytes. */
static int answer(weir_stream *stream, weir_chain *chain, size_t size) {
    const weir_slice *line; /* good until the next call on the chain */
    char text[32];
    int r = weir_chain_peek(chain, 0, size, &line);
    if (r < 0)
        return r;
    if (is_command(line, "echo ")) { /* the rest of it, with its end */
        r = weir_chain_drop(chain, 5);
        return r < 0 ? r : weir_chain_write(chain, size - 5, stream);
    }
    if (is_command(line, "length "))
        snprintf(text, sizeof text, "%zu\n", length_without_end(line) - 7);
    else
        snprintf(text, sizeof text, "error: echo or length?\n");
    r = weir_chain_drop(chain, size);
    return r < 0 ? r : say(stream, text);
}

/* Every whole line, until the queue is full: then the others wait for on_drain. */
static int answer_all(weir_stream *stream, weir_chain *chain) {
    int r = WEIR_WRITE_OK;
    while (r == WEIR_WRITE_OK) {
        int64_t end = weir_chain_find(chain, 0, "\n", 1);
        size_t size = end >= 0 ? (size_t)end + 1 : weir_chain_get_size(chain);
        if (size > LINE_LIMIT)
            return -EMSGSIZE;
        if (end < 0)
            return WEIR_WRITE_OK;
        r = answer(stream, chain, size);
    }
    return r;
}

static void go_on(weir_stream *stream, int r) {
    if (r == WEIR_WRITE_FULL)
        weir_stream_pause(stream);
    else if (r == -EMSGSIZE && say(stream, "error: the line is too long\n") >= 0)
        weir_stream_close(stream);
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
static void on_end(weir_stream *stream, void *userdata) {
    size_t rest = weir_chain_get_size(userdata); /* a last line without an end */
    int r = rest > 0 ? answer(stream, userdata, rest) : 0;
    if (r < 0 || (rest > 0 && say(stream, "\n") < 0))
        weir_stream_abort(stream);
    else
        weir_stream_close(stream);
}
static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)reason, (void)error;
    weir_chain_unref(userdata);
}
static const weir_stream_callbacks answering = {
    .size = sizeof answering, .on_data = on_data, .on_end = on_end, .on_drain = on_drain, .on_close = on_close
};

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)userdata;
    weir_chain *chain;
    if (weir_chain_new(weir_listener_get_loop(listener), CHAIN_LIMIT, &chain) < 0)
        weir_stream_abort(stream);
    else
        weir_stream_start(stream, &answering, chain);
}
static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

int main(int argc, char **argv) {
    /* Who sends half a message and no more holds memory that others wait for. */
    const weir_stream_options each = { .size = sizeof each, .idle_timeout_ns = INT64_C(60000000000) };
    const weir_listener_options options = { .size = sizeof options, .stream = &each };
    weir_loop *loop = NULL;
    weir_listener *listener = NULL;
    int r = weir_loop_new(NULL, &loop);
    r = r < 0 ? r : weir_listener_open(loop, argc > 1 ? argv[1] : "127.0.0.1:7003", &options, &listener);
    r = r < 0 ? r : weir_listener_start(listener, &accepting, NULL);
    r = r < 0 ? r : weir_loop_run(loop);
    if (r < 0)
        fprintf(stderr, "lines: %s\n", weir_error_text(r));
    weir_loop_close(loop);
    weir_loop_unref(loop);
    return r < 0;
}
