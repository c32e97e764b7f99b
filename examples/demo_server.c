/* SPDX-License-Identifier: MIT */
/*
 * The server of demo.sh: it echoes as echo.c does, but starts only when so many have connected, so that they are
 * there at once, and when the last of them has gone it tells what they cost.
 * Try it: build/examples/demo_server 127.0.0.1:7003 2, and elsewhere, twice: socat - TCP:127.0.0.1:7003
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/utsname.h>
#include <unistd.h>
#include <weir.h>

enum {
    LONGEST_LIFE_S = 60, /* whatever becomes of those who started it */
    MOST_CONNECTIONS = 10000,
    MOST_UNSENT = 1024,     /* receives a connection whose ends are remembered */
    USUAL_BUFFER = 64 << 10 /* what a program without weir might receive into */
};

/* Besides its stream, where in it the receives end that have not been sent back yet. */
typedef struct connection {
    weir_stream *stream;
    uint64_t received_bytes;
    uint64_t ends[MOST_UNSENT]; /* a ring */
    unsigned first, count;
} connection;

static connection *connections;
static unsigned expected, connected;
static unsigned failed; /* connections that ended otherwise than by their peer's wish */
static int64_t started_ns, ended_ns;

/* The most that ever was received and not sent back yet: */
static uint64_t most_unsent;       /* receives, */
static uint64_t most_unsent_bytes; /* bytes, */
static uint64_t most_held_bytes;   /* and the buffers that held them */

static void raise_to(uint64_t *most, uint64_t now) {
    if (now > *most)
        *most = now;
}

static void measure(const weir_pool *pool) {
    uint64_t unsent = 0, unsent_bytes = 0;
    for (connection *c = connections; c < connections + connected; c++) {
        if (c->count == 0)
            continue;
        uint64_t queued_bytes = weir_stream_get_queued(c->stream), sent_bytes = c->received_bytes - queued_bytes;
        for (; c->count > 0 && c->ends[c->first % MOST_UNSENT] <= sent_bytes; c->count--)
            c->first++;
        unsent += c->count;
        unsent_bytes += queued_bytes;
    }
    weir_pool_stats memory = { .size = sizeof memory };
    if (weir_pool_get_stats(pool, &memory) < 0)
        return;
    raise_to(&most_unsent, unsent);
    raise_to(&most_unsent_bytes, unsent_bytes);
    raise_to(&most_held_bytes, ((uint64_t)memory.buffers_filling + memory.buffers_retired) * memory.buffer_bytes);
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    connection *c = userdata;
    int r = weir_stream_write_slice(stream, slice);
    if (r < 0) {
        weir_stream_abort(stream);
        return;
    }
    if (r == WEIR_WRITE_FULL)
        weir_stream_pause(stream);
    c->received_bytes += slice->size;
    if (c->count < MOST_UNSENT)
        c->ends[(c->first + c->count++) % MOST_UNSENT] = c->received_bytes;
    measure(weir_loop_get_pool(weir_stream_get_loop(stream)));
}

static void on_drain(weir_stream *stream, void *userdata) {
    (void)userdata;
    weir_stream_resume(stream);
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)error;
    connection *c = userdata;
    c->count = 0;
    failed += reason != WEIR_CLOSE_PEER;
    ended_ns = weir_loop_get_now(weir_stream_get_loop(stream));
}

static const weir_stream_callbacks echoing = {
    .size = sizeof echoing, .on_data = on_data, .on_drain = on_drain, .on_close = on_close
};

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)userdata;
    connections[connected++].stream = stream;
    if (connected < expected)
        return;                    /* nothing is read from a stream that was not started: it waits */
    weir_listener_close(listener); /* so that the loop ends with its last stream */
    started_ns = weir_loop_get_now(weir_listener_get_loop(listener));
    for (connection *c = connections; c < connections + connected; c++)
        weir_stream_start(c->stream, &echoing, c);
}
static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

static int serve(weir_loop *loop, const char *address) {
    char text[WEIR_ADDRESS_SIZE];
    weir_listener *listener = NULL;
    int r = weir_listener_open(loop, address, NULL, &listener);
    if (r >= 0)
        r = weir_listener_start(listener, &accepting, NULL);
    if (r >= 0)
        r = weir_listener_get_address(listener, text, sizeof text);
    if (r < 0)
        return r;
    printf("listening %s\n", text);
    fflush(stdout); /* whoever reads it waits for it */
    return weir_loop_run(loop);
}

static const char *backend_name(uint32_t backend) {
    switch (backend) {
    case WEIR_BACKEND_URING_INCREMENTAL:
        return "io_uring-incremental";
    case WEIR_BACKEND_URING_CLASSIC:
        return "io_uring-classic";
    case WEIR_BACKEND_EPOLL:
        return "epoll";
    default:
        return "unknown";
    }
}

static double mib(uint64_t bytes) {
    return (double)bytes / (1 << 20);
}

/* A table for the eye, and what a program wants to know in its last line. */
static int report(weir_loop *loop) {
    weir_loop_info info = { .size = sizeof info };
    weir_loop_stats stats = { .size = sizeof stats };
    weir_pool_stats memory = { .size = sizeof memory };
    struct utsname system;
    int r = weir_loop_get_info(loop, &info);
    if (r >= 0)
        r = weir_loop_get_stats(loop, &stats);
    if (r >= 0)
        r = weir_pool_get_stats(weir_loop_get_pool(loop), &memory);
    if (r < 0)
        return r;
    const char *backend = backend_name(info.backend);
    const double seconds = (double)(ended_ns - started_ns) / 1e9;
    const uint64_t slices = stats.slices > 0 ? stats.slices : 1, bytes = stats.bytes_in > 0 ? stats.bytes_in : 1;
    printf("  mode         %s%s%s, Linux %s\n", backend, info.reason[0] != '\0' ? ": " : "", info.reason,
           uname(&system) == 0 ? system.release : "?");
    printf("  connections  %u at once, %u failed\n", connected, failed);
    printf("  bytes        %" PRIu64 " in, %" PRIu64 " out, %" PRIu64 " copied\n", stats.bytes_in, stats.bytes_out,
           stats.bytes_copied);
    printf("  slices       %" PRIu64 ", %" PRIu64 " bytes on average\n", stats.slices, stats.bytes_in / slices);
    printf("  memory       %.1f MiB in %" PRIu64 " buffers of %u KiB, used again %" PRIu64 " times\n",
           mib(memory.peak_bytes), memory.peak_bytes / memory.buffer_bytes, memory.buffer_bytes >> 10,
           memory.recycled);
    printf("  held         %.1f MiB at most, for %.1f MiB received and not sent back yet\n", mib(most_held_bytes),
           mib(most_unsent_bytes));
    printf("               %.1f MiB if each receive had a buffer of %d KiB\n", mib(most_unsent * USUAL_BUFFER),
           USUAL_BUFFER >> 10);
    printf("               %.1f MiB if each connection had one, and copied what has to wait\n",
           mib((uint64_t)connected * USUAL_BUFFER + most_unsent_bytes));
    printf("  enters       %" PRIu64 ", %.1f per MiB\n", stats.enters, (double)stats.enters / mib(bytes));
    printf("  time         %.2f s\n", seconds);
    printf("backend=%s bytes=%" PRIu64 " copied=%" PRIu64 "\n", backend, stats.bytes_out, stats.bytes_copied);
    return 0;
}

int main(int argc, char **argv) {
    char reason[WEIR_REASON_SIZE];
    weir_loop_options options = { .size = sizeof options, .reason = reason, .reason_size = sizeof reason };
    weir_loop *loop = NULL;
    long count = argc == 3 ? strtol(argv[2], NULL, 10) : 0;
    if (count < 1 || count > MOST_CONNECTIONS) {
        fprintf(stderr, "usage: demo_server ADDRESS CONNECTIONS\n");
        return 2;
    }
    alarm(LONGEST_LIFE_S);
    expected = (unsigned)count;
    connections = calloc(expected, sizeof *connections);
    if (connections == NULL || weir_loop_new(&options, &loop) < 0) {
        fprintf(stderr, "demo_server: %s\n", connections == NULL ? "out of memory" : reason);
        free(connections);
        return 1;
    }
    int r = serve(loop, argv[1]);
    if (r >= 0)
        r = report(loop);
    if (r < 0)
        fprintf(stderr, "demo_server: %s: %s\n", argv[1], weir_error_text(r));
    weir_loop_close(loop);
    weir_loop_unref(loop);
    free(connections);
    return r < 0 || failed > 0;
}
