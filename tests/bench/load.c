/* SPDX-License-Identifier: MIT */
/*
 * The benchmark's load generator: one thread that puts load on several servers in turn, and tells what each did in
 * its slices as a line of JSON each. Servers stand on one processor and this on another, all connections are open
 * all the time, and slices are short and in random order: what the machine does meanwhile it does to all of them.
 *
 * It works with io_uring itself, to cost less than who it measures; each slice says what it cost (load_cpu_s). Where
 * that comes near to the slice's seconds and the server's does not, the load is what was measured.
 */
#include "load.h"
#include "support/bytes.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>

enum { SOURCE_SIZE = 65536, CHURN_SIZE_MAX = 65536, SIZE_MAX_BYTES = 16 << 20, PATTERN_MIN = 65536 };

static const char *const workloads[] = { "echo", "proxy", "sink", "source", "churn", "hold", "idle", "slow" };

static _Noreturn void usage(const char *wrong) {
    fprintf(stderr, "load: %s\n", wrong);
    fputs(
        "usage: load --workload echo|proxy|sink|source|churn --server NAME:PORT:PID [--server ...]\n"
        "            [--connections 50] [--size 64] [--depth 1] [--rounds 1] [--slice-ms 120] [--seed 1] "
        "[--verify] [--spin]\n"
        "       load --workload hold|idle --connections N --server NAME:PORT:PID    orders on stdin:\n"
        "            burst SIZE (idle) | send BYTES (hold) | quit\n"
        "       load --workload slow --upstream-port PORT --rate BYTES_PER_S --seconds S --server NAME:PORT:PID\n"
        "            'go' on stdin starts it\n"
        "--spin never sleeps: how long an answer takes is then the server's doing alone.\n"
        "--verify compares what comes back byte for byte; of a sink nothing does, and a source's is not known.\n",
        stderr);
    exit(2);
}

static uint64_t number(const char *text, const char *name, uint64_t min, uint64_t max) {
    char *end = NULL;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (*text < '0' || *text > '9' || *end != '\0' || errno != 0 || value < min || value > max) {
        char wrong[128];
        snprintf(wrong, sizeof wrong, "--%s: a number from %llu to %llu", name, (unsigned long long)min,
                 (unsigned long long)max);
        usage(wrong);
    }
    return value;
}

/* NAME:PORT:PID; the name goes into JSON as it is. */
static void add_server(struct load_options *options, char *text) {
    if (options->server_count == LOAD_SERVERS_MAX)
        usage("too many servers");
    char *port = strchr(text, ':');
    char *pid = port != NULL ? strchr(port + 1, ':') : NULL;
    if (pid == NULL || port == text)
        usage("--server: NAME:PORT:PID");
    *port++ = '\0', *pid++ = '\0';
    for (const char *c = text; *c != '\0'; c++)
        if (*c < ' ' || *c > '~' || *c == '"' || *c == '\\')
            usage("--server: a name in ASCII, without quotes");
    options->servers[options->server_count++] = (struct load_server){
        .name = text,
        .port = (uint16_t)number(port, "server's port", 1, 65535),
        .pid = (pid_t)number(pid, "server's process", 1, 1 << 22),
    };
}

static enum load_workload workload_of(const char *text) {
    for (unsigned i = 0; i < sizeof workloads / sizeof workloads[0]; i++)
        if (strcmp(text, workloads[i]) == 0)
            return (enum load_workload)i;
    usage("--workload: no such one");
}

enum {
    O_WORKLOAD,
    O_CONNECTIONS,
    O_SIZE,
    O_DEPTH,
    O_ROUNDS,
    O_SLICE,
    O_SEED,
    O_VERIFY,
    O_SPIN,
    O_UPSTREAM,
    O_RATE,
    O_SECONDS,
    O_SERVER
};
static const struct option names[] = {
    { "workload", required_argument, NULL, O_WORKLOAD },
    { "connections", required_argument, NULL, O_CONNECTIONS },
    { "size", required_argument, NULL, O_SIZE },
    { "depth", required_argument, NULL, O_DEPTH },
    { "rounds", required_argument, NULL, O_ROUNDS },
    { "slice-ms", required_argument, NULL, O_SLICE },
    { "seed", required_argument, NULL, O_SEED },
    { "verify", no_argument, NULL, O_VERIFY },
    { "spin", no_argument, NULL, O_SPIN },
    { "upstream-port", required_argument, NULL, O_UPSTREAM },
    { "rate", required_argument, NULL, O_RATE },
    { "seconds", required_argument, NULL, O_SECONDS },
    { "server", required_argument, NULL, O_SERVER },
    { NULL, 0, NULL, 0 },
};

static void take(struct load_options *options, int option, char *value) {
    switch (option) {
    case O_WORKLOAD:
        options->workload = workload_of(value);
        break;
    case O_CONNECTIONS:
        options->connections = (unsigned)number(value, "connections", 1, 1000000);
        break;
    case O_SIZE:
        options->size = number(value, "size", 1, SIZE_MAX_BYTES);
        break;
    case O_DEPTH:
        options->depth = (unsigned)number(value, "depth", 1, 65536);
        break;
    case O_ROUNDS:
        options->rounds = (unsigned)number(value, "rounds", 1, 1000000);
        break;
    case O_SLICE:
        options->slice_ms = (unsigned)number(value, "slice-ms", 1, 600000);
        break;
    case O_SEED:
        options->seed = number(value, "seed", 0, UINT64_MAX);
        break;
    case O_VERIFY:
        options->verify = true;
        break;
    case O_SPIN:
        options->spin = true;
        break;
    case O_UPSTREAM:
        options->upstream_port = (uint16_t)number(value, "upstream-port", 1, 65535);
        break;
    case O_RATE:
        options->rate_bytes = number(value, "rate", 1, UINT64_C(1) << 40);
        break;
    case O_SECONDS:
        options->seconds = (unsigned)number(value, "seconds", 1, 86400);
        break;
    case O_SERVER:
        add_server(options, value);
        break;
    default:
        usage("no such option, or its value is missing");
    }
}

static void check(struct load_options *options, bool has_workload) {
    if (!has_workload)
        usage("--workload is missing");
    if (options->server_count == 0)
        usage("--server is missing");
    if (options->workload >= LOAD_HOLD && options->server_count > 1)
        usage("this workload is for one server");
    if (options->workload == LOAD_CHURN && options->size > CHURN_SIZE_MAX)
        usage("--size: churn sends all before it reads, and no more than 65536 bytes");
    if (options->workload == LOAD_SLOW && (options->upstream_port == 0 || options->rate_bytes == 0))
        usage("slow takes --upstream-port and --rate");
    if (options->workload == LOAD_SOURCE)
        options->size = SOURCE_SIZE;
    if (options->workload == LOAD_IDLE)
        options->depth = 1;
    for (unsigned i = 0; i < options->server_count; i++) {
        struct load_server *server = &options->servers[i];
        server->first = i * options->connections;
        int error = clock_getcpuclockid(server->pid, &server->clock);
        if (error != 0)
            load_fail(server, "process %d: %s", (int)server->pid, strerror(error));
    }
}

static void raise_files(uint64_t files) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    if (limit.rlim_cur >= files)
        return;
    limit.rlim_cur = files;
    limit.rlim_max = limit.rlim_max > files ? limit.rlim_max : files;
    if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
        load_fail(NULL, "%llu open files: %s", (unsigned long long)files, strerror(errno));
}

static void prepare(struct load *load, const struct load_options *options) {
    /* Of churn's connections each may be closing while its successor opens, and they are to one server at a time. */
    uint64_t files =
        (uint64_t)options->connections * (options->workload == LOAD_CHURN ? 2 : options->server_count);
    raise_files(files + 64);
    load->options = options;
    uint64_t sent = (uint64_t)options->size * options->depth;
    load->pattern_size = sent < PATTERN_MIN ? PATTERN_MIN : sent > SIZE_MAX_BYTES ? SIZE_MAX_BYTES : (size_t)sent;
    uint8_t *pattern = load_allocate(1, load->pattern_size);
    test_fill(options->seed, 0, pattern, load->pattern_size);
    load->pattern = pattern;
    if (options->workload == LOAD_SINK)
        load->pattern_size = options->size;
    load_ring_open(&load->ring, options->workload == LOAD_CHURN ? 0 : (unsigned)files);
    load->engine = options->workload == LOAD_CHURN ? &load_churn : &load_flow;
    if (options->workload == LOAD_CHURN)
        load_churn_open(load);
    else
        load_flow_open(load);
}

int main(int argc, char **argv) {
    static struct load_options options = {
        .connections = 50,
        .depth = 1,
        .rounds = 1,
        .slice_ms = 120,
        .size = 64,
        .seed = 1,
        .seconds = 1,
    };
    static struct load load;
    bool has_workload = false;
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) >= 0;) {
        take(&options, option, optarg);
        has_workload = has_workload || option == O_WORKLOAD;
    }
    if (optind < argc)
        usage("an argument without an option");
    check(&options, has_workload);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (options.workload == LOAD_SLOW) {
        load_slow(&options);
        return 0;
    }
    prepare(&load, &options);
    if (options.workload == LOAD_HOLD || options.workload == LOAD_IDLE)
        load_held(&load);
    else
        load_slices(&load);
    return 0;
}
