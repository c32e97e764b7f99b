/* SPDX-License-Identifier: MIT */
/*
 * Slices: in each round every server has one, in an order of its own. A slice is a warm-up, two snapshots around what
 * is measured, an end in which what is in flight comes back, and a while in which the server works off what its
 * sockets still hold: it must not do so at the next one's cost.
 */
#include "load.h"
#include "support/bytes.h"

#include <stdio.h>
#include <unistd.h>

#define WARM_UP_NS UINT64_C(15000000)
#define QUIET_NS UINT64_C(2000000)
#define SETTLE_MAX_NS UINT64_C(2000000000)

struct snapshot {
    uint64_t ns;
    uint64_t operations;
    uint64_t bytes;
    uint64_t server_cpu_ns;
    uint64_t load_cpu_ns;
};

double load_settle(const struct load_server *server) {
    uint64_t start_ns = load_now_ns(CLOCK_MONOTONIC);
    uint64_t now_ns = start_ns;
    uint64_t busy_ns = start_ns; /* when it last was seen to have worked */
    uint64_t cpu_ns = load_server_cpu_ns(server);
    while (now_ns - busy_ns < QUIET_NS && now_ns - start_ns < SETTLE_MAX_NS) {
        usleep(250);
        now_ns = load_now_ns(CLOCK_MONOTONIC);
        uint64_t seen_ns = load_server_cpu_ns(server);
        if (seen_ns != cpu_ns)
            busy_ns = now_ns;
        cpu_ns = seen_ns;
    }
    return (double)(busy_ns - start_ns) / 1e9;
}

static bool is_counted_by_the_kernel(const struct load_options *options) {
    return options->workload == LOAD_SINK || options->workload == LOAD_SOURCE;
}

static struct snapshot look(struct load *load) {
    const struct load_options *options = load->options;
    struct snapshot snapshot = { .operations = load->operations, .bytes = load->bytes };
    if (is_counted_by_the_kernel(options)) {
        struct load_passed passed = load_ask_passed(load);
        snapshot.bytes = options->workload == LOAD_SINK ? passed.read_bytes : passed.written_bytes;
    }
    snapshot.server_cpu_ns = load_server_cpu_ns(load->server);
    snapshot.load_cpu_ns = load_now_ns(CLOCK_PROCESS_CPUTIME_ID);
    snapshot.ns = load_now_ns(CLOCK_MONOTONIC);
    return snapshot;
}

static void turn_until(struct load *load, uint64_t until_ns) {
    while (load->now_ns < until_ns) {
        load_turn(load, until_ns);
        load_watch_silence(load);
    }
}

static void print_latency(const struct load *load) {
    static const struct {
        const char *name;
        double share;
    } points[] = { { "p50_us", 0.5 }, { "p90_us", 0.9 }, { "p99_us", 0.99 }, { "p999_us", 0.999 } };
    const struct load_histogram *latency = &load->latency_ns;
    for (unsigned i = 0; i < sizeof points / sizeof points[0]; i++)
        if (latency->count > 0)
            printf(", \"%s\": %.1f", points[i].name, (double)load_histogram_at(latency, points[i].share) / 1e3);
        else
            printf(", \"%s\": null", points[i].name);
    if (latency->count > 0)
        printf(", \"max_us\": %.1f", (double)latency->max / 1e3);
    else
        printf(", \"max_us\": null");
}

static void print(const struct load *load, unsigned round, const struct snapshot *from, const struct snapshot *to,
                  double settle_s) {
    const struct load_options *options = load->options;
    uint64_t bytes = to->bytes - from->bytes;
    uint64_t operations = to->operations - from->operations;
    if (is_counted_by_the_kernel(options))
        operations = bytes / options->size;
    printf("{\"slice\": {\"round\": %u, \"server\": \"%s\", \"seconds\": %.6f, \"operations\": %llu, \"bytes\": "
           "%llu, "
           "\"server_cpu_s\": %.6f, \"load_cpu_s\": %.6f",
           round, load->server->name, (double)(to->ns - from->ns) / 1e9, (unsigned long long)operations,
           (unsigned long long)bytes, (double)(to->server_cpu_ns - from->server_cpu_ns) / 1e9,
           (double)(to->load_cpu_ns - from->load_cpu_ns) / 1e9);
    print_latency(load);
    printf(", \"settle_s\": %.4f}}\n", settle_s);
    fflush(stdout);
}

static void slice(struct load *load, unsigned round, const struct load_server *server) {
    load->now_ns = load->progress_ns = load_now_ns(CLOCK_MONOTONIC);
    load->engine->start(load, server);
    turn_until(load, load->now_ns + WARM_UP_NS);

    load_histogram_clear(&load->latency_ns);
    load->recording = true;
    struct snapshot from = look(load);
    turn_until(load, from.ns + load->options->slice_ms * UINT64_C(1000000));
    struct snapshot to = look(load);
    load->recording = false;

    load->engine->stop(load);
    load_drain(load);
    print(load, round, &from, &to, load_settle(server));
}

void load_slices(struct load *load) {
    const struct load_options *options = load->options;
    unsigned order[LOAD_SERVERS_MAX] = { 0 };
    uint64_t random = options->seed;
    for (unsigned i = 0; i < options->server_count; i++) {
        order[i] = i;
        load_settle(&options->servers[i]);
    }
    for (unsigned round = 0; round < options->rounds; round++) {
        for (unsigned i = options->server_count; i > 1; i--) {
            unsigned other = (unsigned)(test_random(&random) % i);
            unsigned kept = order[i - 1];
            order[i - 1] = order[other];
            order[other] = kept;
        }
        for (unsigned i = 0; i < options->server_count; i++)
            slice(load, round, &options->servers[order[i]]);
    }
    if (load->connections != NULL)
        load_flow_close(load);
    printf("{\"done\": {\"rounds\": %u, \"verified_bytes\": %llu}}\n", options->rounds,
           (unsigned long long)load->verified_bytes);
    fflush(stdout);
}
