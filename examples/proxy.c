/* SPDX-License-Identifier: MIT */
/*
 * A TCP proxy: several upstreams in turn, the next one when one does not answer, both directions piped, so that a slow
 * reader on one side holds back a fast writer on the other and nothing is copied. A client that no upstream can be found
 * for is reset. SIGUSR1 tells what it has done (bytes: of connections that have ended), SIGTERM or SIGINT lets the
 * connections end (30 s) and then it ends, a second one ends at once. With --proxy-header each upstream is told first who
 * its client is (the PROXY protocol's version 2; of a client that came over a Unix socket there is nothing to tell).
 * Try it: build/examples/proxy 127.0.0.1:7004 127.0.0.1:80 127.0.0.1:81
 */
#include <arpa/inet.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <weir.h>

static const int64_t second = 1000000000;

typedef struct proxy {
    const char *const *upstreams;
    unsigned upstream_count, next;
    int tells_address; /* by a PROXY protocol header, version 2 */
    const char *wrong; /* the address that could not be used */
    weir_loop *loop;
    unsigned open; /* sessions */
    uint64_t sessions, failed, to_upstream, to_client, queue_peak;
} proxy;

/* A client, and the upstream that it has got or is to get. */
typedef struct session {
    proxy *of;
    weir_stream *client; /* ours until an upstream is there */
    const char *address; /* of the upstream tried last */
    unsigned first, tries;
    unsigned running; /* streams that owe an on_close */
} session;

/* ---- the PROXY protocol ----------------------------------------------------------------------------- */

/* "1.2.3.4:80", "[::1]:80" into an address and a port, both as they travel. The address's size, or 0. */
static size_t parse(const char *text, uint8_t address[16], uint8_t port[2]) {
    char host[WEIR_ADDRESS_SIZE];
    const char *colon = strrchr(text, ':'), *start = text + (*text == '[');
    if (colon == NULL || colon <= start)
        return 0;
    size_t length = (size_t)(colon - start) - (*text == '[');
    memcpy(host, start, length);
    host[length] = '\0';
    host[strcspn(host, "%")] = '\0'; /* an interface is not part of it */
    unsigned long number = strtoul(colon + 1, NULL, 10);
    port[0] = (uint8_t)(number >> 8);
    port[1] = (uint8_t)number;
    return inet_pton(AF_INET, host, address) == 1 ? 4 : inet_pton(AF_INET6, host, address) == 1 ? 16 : 0;
}

/* Who the client is, for an upstream that would see only us. The header's size. */
static size_t proxy_header(const weir_stream *client, uint8_t header[52]) {
    static const uint8_t signature[12] = {
        0x0D, 0x0A, 0x0D, 0x0A, 0x00, 0x0D, 0x0A, 0x51, 0x55, 0x49, 0x54, 0x0A
    };
    char peer[WEIR_ADDRESS_SIZE] = "", local[WEIR_ADDRESS_SIZE] = "";
    uint8_t from[16], to[16], from_port[2], to_port[2];
    (void)weir_stream_get_peer(client, peer, sizeof peer);
    (void)weir_stream_get_local(client, local, sizeof local);
    size_t size = parse(peer, from, from_port), at = 16;
    if (size != parse(local, to, to_port))
        size = 0;
    memcpy(header, signature, sizeof signature);
    header[12] = 0x21;                                        /* version 2, on behalf of a client */
    header[13] = size == 4 ? 0x11 : size == 16 ? 0x21 : 0x00; /* TCP over IPv4, over IPv6, or not said */
    header[14] = 0;
    header[15] = (uint8_t)(size > 0 ? 2 * size + 4 : 0);
    if (size > 0) {
        memcpy(header + at, from, size);
        memcpy(header + at + size, to, size);
        memcpy(header + at + 2 * size, from_port, 2);
        memcpy(header + at + 2 * size + 2, to_port, 2);
        at += 2 * size + 4;
    }
    return at;
}

/* ---- sessions --------------------------------------------------------------------------------------- */

static void dial(session *s);

static void end(session *s) {
    s->of->open--;
    free(s);
}

static void count(session *s, const weir_stream *stream, uint64_t *bytes) {
    weir_stream_stats stats = { .size = sizeof stats };
    if (weir_stream_get_stats(stream, &stats) < 0)
        return;
    *bytes += stats.bytes_piped;
    if (stats.queue_peak_bytes > s->of->queue_peak)
        s->of->queue_peak = stats.queue_peak_bytes;
}

static void client_closed(weir_stream *stream, int reason, int error, void *userdata) {
    (void)reason, (void)error;
    session *s = userdata;
    count(s, stream, &s->of->to_upstream);
    if (--s->running == 0)
        end(s);
}
static const weir_stream_callbacks client_side = { .size = sizeof client_side, .on_close = client_closed };

static void upstream_open(weir_stream *stream, void *userdata) {
    session *s = userdata;
    weir_stream *client = s->client;
    uint8_t header[52];
    int r = 0;
    if (s->of->tells_address)
        r = weir_stream_write(stream, header, proxy_header(client, header));
    s->client = NULL;
    s->running++;
    weir_stream_start(client, &client_side, s);
    if (r < 0 || weir_stream_pipe_both(client, stream) < 0) {
        weir_stream_abort(client);
        weir_stream_abort(stream);
    }
}

static void upstream_closed(weir_stream *stream, int reason, int error, void *userdata) {
    session *s = userdata;
    count(s, stream, &s->of->to_client);
    s->running--;
    if (reason == WEIR_CLOSE_CONNECT) {
        fprintf(stderr, "proxy: %s: %s\n", s->address, weir_error_text(error));
        dial(s);
        return;
    }
    weir_stream_abort(s->client); /* if it is ours still: it ended before an upstream was there */
    if (s->running == 0)
        end(s);
}
static const weir_stream_callbacks upstream_side = { .size = sizeof upstream_side,
                                                     .on_open = upstream_open,
                                                     .on_close = upstream_closed };

static void dial(session *s) {
    const weir_stream_options options = { .size = sizeof options,
                                          .connect_timeout_ns = 2 * second,
                                          .idle_timeout_ns = 600 * second };
    proxy *of = s->of;
    while (s->tries < of->upstream_count) {
        s->address = of->upstreams[(s->first + s->tries++) % of->upstream_count];
        weir_stream *upstream;
        int r = weir_stream_dial(of->loop, s->address, &options, &upstream);
        if (r >= 0) {
            s->running++;
            weir_stream_start(upstream, &upstream_side, s);
            return;
        }
        fprintf(stderr, "proxy: %s: %s\n", s->address, weir_error_text(r));
    }
    of->failed++;
    weir_stream_abort(s->client); /* a reset: nothing was read, and nobody will answer */
    end(s);
}

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener;
    proxy *of = userdata;
    session *s = calloc(1, sizeof *s);
    if (s == NULL) {
        weir_stream_abort(stream);
        return;
    }
    *s = (session){ .of = of, .client = stream, .first = of->next };
    of->next = (of->next + 1) % of->upstream_count;
    of->sessions++;
    of->open++;
    dial(s);
}
static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

/* ---- signals ---------------------------------------------------------------------------------------- */

static void tell(const proxy *of) {
    weir_loop_stats stats = { .size = sizeof stats };
    weir_pool_stats memory = { .size = sizeof memory };
    if (weir_loop_get_stats(of->loop, &stats) < 0 ||
        weir_pool_get_stats(weir_loop_get_pool(of->loop), &memory) < 0)
        return;
    printf("sessions=%" PRIu64 " open=%u failed=%" PRIu64 " to-upstream=%" PRIu64 " to-client=%" PRIu64
           " copied=%" PRIu64 " queue-peak=%" PRIu64 " memory-peak=%" PRIu64 " budget=%" PRIu64 "\n",
           of->sessions, of->open, of->failed, of->to_upstream, of->to_client, stats.bytes_copied, of->queue_peak,
           memory.peak_bytes, memory.budget_bytes);
    fflush(stdout);
}

static void on_signal(weir_signal *signal, int number, void *userdata) {
    static int terms;
    proxy *of = userdata;
    (void)signal;
    if (number == SIGUSR1)
        tell(of);
    else if (weir_loop_drain(of->loop, terms++ == 0 ? 30 * second : 0) < 0)
        weir_loop_stop(of->loop);
}

/* Better to hear of a bad address now than when the first client comes. Nothing connects before the loop runs. */
static int check_upstreams(proxy *of) {
    for (unsigned i = 0; i < of->upstream_count; i++) {
        weir_stream *stream;
        int r = weir_stream_dial(of->loop, of->upstreams[i], NULL, &stream);
        if (r < 0) {
            of->wrong = of->upstreams[i];
            return r;
        }
        weir_stream_abort(stream);
    }
    return 0;
}

static int serve(proxy *of, const char *address) {
    static const int numbers[] = { SIGUSR1, SIGTERM, SIGINT };
    enum { SIGNALS = sizeof numbers / sizeof *numbers };
    const weir_stream_options each = { .size = sizeof each, .idle_timeout_ns = 600 * second };
    const weir_listener_options options = { .size = sizeof options, .stream = &each };
    weir_signal *signals[SIGNALS] = { NULL };
    weir_listener *listener = NULL;
    char text[WEIR_ADDRESS_SIZE];
    int r = check_upstreams(of);
    if (r >= 0) {
        r = weir_listener_open(of->loop, address, &options, &listener);
        of->wrong = r < 0 ? address : NULL;
    }
    for (int i = 0; r >= 0 && i < SIGNALS; i++) {
        r = weir_signal_new(of->loop, numbers[i], on_signal, of, &signals[i]);
        r = r < 0 ? r : weir_signal_start(signals[i]);
    }
    r = r < 0 ? r : weir_listener_start(listener, &accepting, of);
    r = r < 0 ? r : weir_listener_get_address(listener, text, sizeof text);
    if (r >= 0) {
        printf("listening %s\n", text);
        fflush(stdout);
        r = weir_loop_run(of->loop);
        tell(of);
    }
    for (int i = 0; i < SIGNALS; i++)
        weir_signal_unref(signals[i]);
    return r;
}

int main(int argc, char **argv) {
    char reason[WEIR_REASON_SIZE] = "";
    const weir_loop_options options = { .size = sizeof options, .reason = reason, .reason_size = sizeof reason };
    int first = argc > 1 && strcmp(argv[1], "--proxy-header") == 0 ? 2 : 1;
    if (argc < first + 2 || argv[first][0] == '-') {
        fprintf(stderr, "usage: proxy [--proxy-header] ADDRESS UPSTREAM...\n"
                        "an address: 127.0.0.1:80, [::1]:80 or unix:/path; upstreams are taken in turn\n");
        return 2;
    }
    proxy of = { .upstreams = (const char *const *)argv + first + 1,
                 .upstream_count = (unsigned)(argc - first - 1),
                 .tells_address = first == 2 };
    int r = weir_loop_new(&options, &of.loop);
    if (r >= 0)
        r = serve(&of, argv[first]);
    if (r < 0)
        fprintf(stderr, "proxy: %s%s%s%s%s\n", of.wrong != NULL ? of.wrong : "", of.wrong != NULL ? ": " : "",
                weir_error_text(r), *reason != '\0' ? ": " : "", reason);
    weir_loop_close(of.loop);
    weir_loop_unref(of.loop);
    return r < 0;
}
