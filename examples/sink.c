/* SPDX-License-Identifier: MIT */
/*
 * Sink: drops what it gets, and tells once a second how much that was. It shows a timer, the statistics and how a
 * signal ends a loop.
 * Try it: build/examples/sink, and elsewhere: head -c 1G /dev/zero | socat -u - TCP:127.0.0.1:7002
 */
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <weir.h>

static weir_loop *loop; /* for the signal handler */

static void on_signal(int number) {
    (void)number;
    weir_loop_stop(loop);
}

/* The slice is borrowed: to drop it takes nothing. Without an on_data nothing would be read; without an on_end, as
 * here, the peer's end closes the stream. */
static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)stream, (void)slice, (void)userdata;
}
static const weir_stream_callbacks dropping = { .size = sizeof dropping, .on_data = on_data };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener, (void)userdata;
    weir_stream_start(stream, &dropping, NULL);
}
static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

static void on_second(weir_timer *timer, void *userdata) {
    (void)timer;
    uint64_t *told = userdata;
    weir_loop_stats stats = { .size = sizeof stats };
    weir_pool_stats memory = { .size = sizeof memory };
    if (weir_loop_get_stats(loop, &stats) < 0 || weir_pool_get_stats(weir_loop_get_pool(loop), &memory) < 0)
        return;
    if (stats.bytes_in == *told)
        return; /* nothing came */
    const double mib = 1 << 20;
    printf("%8.1f MiB/s %10.1f MiB %10" PRIu64 " slices %6" PRIu32 " streams %6.1f MiB of buffers\n",
           (double)(stats.bytes_in - *told) / mib, (double)stats.bytes_in / mib, stats.slices, stats.streams_open,
           (double)memory.used_bytes / mib);
    *told = stats.bytes_in;
}

static int run(const char *address) {
    char text[WEIR_ADDRESS_SIZE];
    uint64_t told = 0;
    weir_listener *listener = NULL;
    weir_timer *timer = NULL;
    int r = weir_listener_open(loop, address, NULL, &listener);
    if (r >= 0)
        r = weir_listener_start(listener, &accepting, NULL);
    if (r >= 0)
        r = weir_listener_get_address(listener, text, sizeof text);
    if (r >= 0)
        printf("listening on %s\n", text);
    if (r >= 0)
        r = weir_timer_new(loop, on_second, &told, &timer);
    if (r >= 0)
        r = weir_timer_start(timer, INT64_C(1000000000), INT64_C(1000000000));
    if (r >= 0)
        r = weir_loop_run(loop);
    weir_timer_unref(timer);

    weir_loop_stats stats = { .size = sizeof stats };
    if (r >= 0)
        r = weir_loop_get_stats(loop, &stats);
    if (r >= 0)
        printf("sink: %" PRIu64 " bytes in %" PRIu64 " slices from %" PRIu64 " streams\n", stats.bytes_in,
               stats.slices, stats.accepted);
    else
        fprintf(stderr, "sink: %s: %s\n", address, weir_error_text(r));
    return r;
}

int main(int argc, char **argv) {
    char reason[WEIR_REASON_SIZE];
    weir_loop_options options = { .size = sizeof options, .reason = reason, .reason_size = sizeof reason };
    if (weir_loop_new(&options, &loop) < 0) {
        fprintf(stderr, "sink: %s\n", reason);
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0); /* a line at once, also into a pipe */
    const struct sigaction stopping = { .sa_handler = on_signal,
                                        .sa_flags = SA_RESETHAND }; /* the second one kills */
    sigaction(SIGINT, &stopping, NULL);
    sigaction(SIGTERM, &stopping, NULL);

    int r = run(argc > 1 ? argv[1] : "127.0.0.1:7002");
    weir_loop_close(loop);
    weir_loop_unref(loop);
    return r < 0;
}
