/* SPDX-License-Identifier: MIT */
/*
 * Chat: what a member says goes to all others, and who comes late hears the last of it. One slice is queued on any
 * number of streams without being copied, and the history holds slices for longer than their callback.
 * Try it: build/examples/chat, and elsewhere, twice or more: socat - TCP:127.0.0.1:7001
 */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <weir.h>

enum { HISTORY = 20 };

typedef struct member {
    struct member *next, **at; /* who points here */
    weir_stream *stream;
} member;

static weir_loop *loop;
static member *members;
static weir_slice history[HISTORY]; /* ours, to be unref'ed; the empty slice where there is none yet */
static unsigned said;               /* the oldest is at history[said % HISTORY] */

static void remember(const weir_slice *slice) {
    weir_slice kept;
    /* Keep, not ref: a short line must not hold a whole buffer for hours. */
    if (weir_slice_keep(slice, &kept) < 0)
        return; /* no memory to spare: chatting goes on, this line will be missing */
    weir_slice *oldest = &history[said++ % HISTORY];
    weir_slice_unref(oldest);
    *oldest = kept;
}

/* Nobody who reads slowly holds up the others, or memory without bound: above its queue's limit a write fails. */
static void tell(const member *to, const weir_slice *slice) {
    if (weir_stream_write_slice(to->stream, slice) < 0)
        weir_stream_abort(to->stream); /* its on_close comes later: the list of members stays as it is */
}

static void tell_all_but(const weir_stream *from, const weir_slice *slice) {
    for (const member *m = members; m != NULL; m = m->next)
        if (m->stream != from)
            tell(m, slice);
    remember(slice);
}

static void announce(const weir_stream *of, const char *text, size_t size) {
    weir_slice note; /* composed once, sent to all */
    if (weir_slice_copy(weir_loop_get_pool(loop), text, size, &note) < 0)
        return;
    tell_all_but(of, &note);
    weir_slice_unref(&note);
}

/* A message is what arrives in one piece, which is a line if somebody types it. */
static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)userdata;
    tell_all_but(stream, slice);
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    static const char text[] = "* someone left\n";
    (void)error;
    member *m = userdata;
    if ((*m->at = m->next) != NULL)
        m->next->at = m->at;
    free(m);
    if (reason != WEIR_CLOSE_LOOP)
        announce(stream, text, sizeof text - 1);
}
static const weir_stream_callbacks chatting = { .size = sizeof chatting,
                                                .on_data = on_data,
                                                .on_close = on_close };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    static const char text[] = "* someone came\n";
    (void)listener, (void)userdata;
    member *m = malloc(sizeof *m);
    if (m == NULL) {
        weir_stream_close(stream);
        return;
    }
    *m = (member){ .next = members, .at = &members, .stream = stream };
    if (m->next != NULL)
        m->next->at = &m->next;
    members = m;
    weir_stream_start(stream, &chatting, m);
    for (unsigned i = 0; i < HISTORY; i++) /* writing the empty slice does nothing */
        tell(m, &history[(said + i) % HISTORY]);
    announce(stream, text, sizeof text - 1);
}
static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

static void on_signal(int number) {
    (void)number;
    weir_loop_stop(loop);
}

int main(int argc, char **argv) {
    const char *address = argc > 1 ? argv[1] : "127.0.0.1:7001";
    const weir_stream_options each = { .size = sizeof each, .queue_limit_bytes = 4 << 20 };
    const weir_listener_options options = { .size = sizeof options, .max_streams = 10000, .stream = &each };
    const struct sigaction stopping = { .sa_handler = on_signal,
                                        .sa_flags = SA_RESETHAND }; /* the second one kills */
    weir_listener *listener = NULL;
    int r = weir_loop_new(NULL, &loop);
    if (r >= 0) {
        sigaction(SIGINT, &stopping, NULL);
        sigaction(SIGTERM, &stopping, NULL);
        r = weir_listener_open(loop, address, &options, &listener);
    }
    if (r >= 0)
        r = weir_listener_start(listener, &accepting, NULL);
    if (r >= 0)
        r = weir_loop_run(loop);
    if (r < 0)
        fprintf(stderr, "chat: %s: %s\n", address, weir_error_text(r));
    weir_loop_close(loop); /* every on_close comes in here: the members are gone afterwards */
    for (unsigned i = 0; i < HISTORY; i++)
        weir_slice_unref(&history[i]);
    weir_loop_unref(loop);
    return r < 0;
}
