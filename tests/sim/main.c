/* SPDX-License-Identifier: MIT */
#include "sim/world.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Runs of the simulated kernel from the command line: seeds, traces, counts, and making a failing run smaller. */

enum { LONGEST_S = 30 }; /* for a run */

sim_world sim;

#define X(name, text) text,
const char *const sim_fault_texts[SIM_FAULT_COUNT] = { SIM_FAULTS(X) };
const char *const sim_event_texts[SIM_EVENT_COUNT] = { SIM_EVENTS(X) };
#undef X
#define X(name, text) #name,
const char *const sim_fault_names[SIM_FAULT_COUNT] = { SIM_FAULTS(X) };
#undef X

/* ---- chance ----------------------------------------------------------------------------------------- */

static uint64_t next_random(uint64_t *state) {
    uint64_t x = *state += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}

uint64_t sim_random(uint64_t below) {
    return below > 0 ? next_random(&sim.random) % below : 0;
}

bool sim_chance(enum sim_fault fault) {
    if (sim.chance[fault] == 0 || sim_random(256) >= sim.chance[fault])
        return false;
    sim.faults[fault]++;
    return true;
}

bool sim_fault(enum sim_fault fault) {
    return !sim.is_calm && sim_chance(fault);
}

void sim_event(enum sim_event event) {
    sim.events[event]++;
}

bool sim_begin_action(uint64_t *ret_random) {
    uint64_t own = sim_random(UINT64_MAX), number = sim.actions++;
    for (unsigned i = 0; i < sim.config.skip_count; i++)
        if (number >= sim.config.skips[i].first && number <= sim.config.skips[i].last)
            return false;
    *ret_random = sim.random;
    sim.random = own;
    return true;
}

void sim_end_action(uint64_t random) {
    sim.random = random;
}

/* ---- the story -------------------------------------------------------------------------------------- */

enum { STORY_LINES = 40, STORY_LINE = 200 };
static char story[STORY_LINES][STORY_LINE];
static unsigned story_count;

void sim_note(const char *format, ...) {
    va_list arguments;
    char *line = story[story_count++ % STORY_LINES];
    int length = snprintf(line, STORY_LINE, "%8" PRIu64 " %10.3f ms  ", sim.steps, (double)sim.now_ns / 1e6);
    va_start(arguments, format);
    vsnprintf(line + length, (size_t)(STORY_LINE - length), format, arguments);
    va_end(arguments);
    if (sim.config.trace)
        printf("%s\n", line);
}

static void tell_story(void) {
    unsigned first = story_count > STORY_LINES ? story_count - STORY_LINES : 0;
    fprintf(stderr, "the last of what happened (step, time):\n");
    for (unsigned i = first; i < story_count; i++)
        fprintf(stderr, "%s\n", story[i % STORY_LINES]);
    fprintf(stderr, "state: %s\n", sim_describe());
}

/* The options that bring this run about again. */
static void print_options(FILE *to, const sim_config *config) {
    fprintf(to, "--seed %" PRIu64 " --steps %" PRIu64 " --connections %u --faults %#" PRIx64 "%s%s%s",
            config->seed, config->steps, config->connections, config->faults, config->classic ? " --classic" : "",
            config->no_caps ? " --no-caps" : "", config->epoll ? " --epoll" : "");
    for (unsigned i = 0; i < config->skip_count; i++)
        fprintf(to, " --skip %" PRIu64 "..%" PRIu64, config->skips[i].first, config->skips[i].last);
    fprintf(to, "\n");
}

static int failure_fd = -1; /* who shrinks this run listens there */

/* Tell everything there is to tell, and in what words it failed to who asked for that alone. */
static void tell_failure(const char *text) {
    if (failure_fd >= 0) {
        char line[600];
        int length = snprintf(line, sizeof line, "%" PRIu64 " %s", sim.actions, text);
        size_t size = (size_t)length < sizeof line ? (size_t)length : sizeof line - 1;
        _exit(write(failure_fd, line, size) == (ssize_t)size ? 1 : 2);
    }
    fflush(stdout);
    fprintf(stderr, "\nsim: seed %" PRIu64 " FAILED: %s\n", sim.config.seed, text);
    tell_story();
    fprintf(stderr, "replay: sim ");
    print_options(stderr, &sim.config);
}

void sim_fail(const char *format, ...) {
    static char text[6000];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    tell_failure(text);
    _exit(1);
}

/* A run takes some milliseconds: one that takes seconds of the processor, whoever else has it meanwhile, does not end. */
static void limit_time(long limit_s) {
    const struct itimerval limit = { .it_value.tv_sec = limit_s };
    (void)setitimer(ITIMER_VIRTUAL, &limit, NULL);
}

static void on_crash(int number) {
    tell_failure(number == SIGVTALRM ? "it does not end" : strsignal(number));
    signal(number, SIG_DFL);
    raise(number);
}

/* ---- runs ------------------------------------------------------------------------------------------- */

__attribute__((no_sanitize("address", "thread"))) void sim_kernel_write(void *to, const void *from, size_t size) {
#ifndef WEIR__ASAN
    if (from != NULL)
        memcpy(to, from, size);
    else
        memset(to, 0xDB, size);
    return;
#endif
    volatile uint8_t *target = to;
    const uint8_t *source = from;
    for (size_t i = 0; i < size; i++)
        target[i] = source != NULL ? source[i] : 0xDB;
}

void sim_begin(const sim_config *config) {
    memset(&sim, 0, sizeof sim);
    sim.config = *config;
    sim.random = config->seed * UINT64_C(0x2545F4914F6CDD1D) + 1;
    sim.now_ns = 1000000000;
    story_count = 0;
    /* Each run has faults of its own: most of them off or rare, some of them all the time. */
    for (int i = 0; i < SIM_FAULT_COUNT; i++) {
        static const uint8_t chances[] = { 0, 0, 1, 2, 8, 32 };
        uint8_t chance = chances[sim_random(sizeof chances)];
        if (i == SIM_NO_MEMORY || i == SIM_REQUEST_ENOMEM || i == SIM_POLL_ENOMEM)
            chance = chance > 1 ? 1 : chance;
        if (i == SIM_RESET_BETWEEN)
            chance = chance > 8 ? 8 : chance;
        if (i == SIM_CANCEL_TOO_LATE)
            chance = (uint8_t)(chance * 7); /* few cancellations meet a target that has something to say */
        if (i == SIM_BLACKHOLE || i == SIM_TINY_CQ || i == SIM_TINY_SQ)
            chance = chance > 0 ? 64 : 0;
        if (i == SIM_SPLIT && chance == 32)
            chance = 250; /* nearly each receive, so that one socket gets many in a row */
        if (i == SIM_RESET)
            chance = chance > 0 ? 255 : 0;
        sim.chance[i] = (config->faults >> i & 1) != 0 ? chance : 0;
    }
}

void sim_end(void) {
    for (size_t i = 0; i < sim.socket_count; i++) {
        free(sim.sockets[i]->received.data);
        free(sim.sockets[i]->registered);
        free(sim.sockets[i]);
    }
    free(sim.sockets);
    sim.sockets = NULL;
    sim.socket_count = sim.socket_capacity = 0;
}

static struct { uint64_t seeds, operations, faults[SIM_FAULT_COUNT], events[SIM_EVENT_COUNT]; } total;

static void add_up(void) {
    total.seeds++;
    total.operations += sim.operations;
    for (int i = 0; i < SIM_FAULT_COUNT; i++)
        total.faults[i] += sim.faults[i];
    for (int i = 0; i < SIM_EVENT_COUNT; i++)
        total.events[i] += sim.events[i];
}

static uint64_t all_faults(void) {
    uint64_t sum = 0;
    for (int i = 0; i < SIM_FAULT_COUNT; i++)
        sum += total.faults[i];
    return sum;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

/* 999, 12k, 3M: at most four characters. */
static void print_count(FILE *to, uint64_t count) {
    static const char units[] = { ' ', 'k', 'M', 'G', 'T', 'P' };
    size_t unit = 0;
    for (; count >= 1000 && unit + 1 < sizeof units; unit++)
        count /= 1000;
    if (unit == 0)
        fprintf(to, "%" PRIu64, count);
    else
        fprintf(to, "%" PRIu64 "%c", count, units[unit]);
}

/* On a terminal in the same place, again and again; else one line. What is rarest says how much the rest has been tried. */
static void progress(double began) {
    enum { WIDTH = 100 };
    static unsigned lines; /* printed the last time */
    bool is_terminal = isatty(2) != 0;
    int met = 0, rarest = 0;
    for (int i = 0; i < SIM_EVENT_COUNT; i++) {
        met += total.events[i] > 0;
        rarest = total.events[i] < total.events[rarest] ? i : rarest;
    }
    double passed = seconds() - began;
    if (is_terminal && lines > 0)
        fprintf(stderr, "\r\033[%uA\033[J", lines);
    lines = 2;
    fprintf(stderr,
            "sim: %" PRIu64 " seeds, %.0f a second, %" PRIu64 " operations, %" PRIu64 " faults%s%d of %d events, "
            "the rarest %" PRIu64 " times (%s)%s",
            total.seeds, (double)total.seeds / (passed > 0 ? passed : 1), total.operations, all_faults(),
            is_terminal ? "\n " : ", ", met, SIM_EVENT_COUNT, total.events[rarest], sim_event_texts[rarest],
            is_terminal ? "\n" : "; faults:");
    size_t column = 0;
    for (int i = 0; i < SIM_FAULT_COUNT; i++) {
        size_t width = strlen(sim_fault_names[i]) + 6;
        if (is_terminal && column + width > WIDTH) {
            fprintf(stderr, "\n");
            lines++;
            column = 0;
        }
        column += width;
        fprintf(stderr, " %s ", sim_fault_names[i]);
        print_count(stderr, total.faults[i]);
    }
    lines++;
    fprintf(stderr, "\n");
}

static void report(void) {
    for (int i = 0; i < SIM_FAULT_COUNT; i++)
        printf("fault %-16s %12" PRIu64 "  %s\n", sim_fault_names[i], total.faults[i], sim_fault_texts[i]);
    for (int i = 0; i < SIM_EVENT_COUNT; i++)
        printf("event %12" PRIu64 "  %s\n", total.events[i], sim_event_texts[i]);
}

/* Seeds that do not meet an event prove nothing of it. */
static bool all_came(void) {
    bool has_all = true;
    for (int i = 0; i < SIM_EVENT_COUNT; i++) {
        if (total.events[i] > 0)
            continue;
        fprintf(stderr, "sim: it never came: %s\n", sim_event_texts[i]);
        has_all = false;
    }
    return has_all;
}

/* ---- shrinking -------------------------------------------------------------------------------------- */

typedef struct failure {
    char text[600]; /* empty: it did not fail. Without numbers, which are others in a smaller run */
    uint64_t actions;
} failure;

/* "connection 12 (echo): byte 7 ..." and "connection 3 (sink): byte 0 ..." are the same failure. */
static void normalise(char *text) {
    char *to = text;
    for (const char *from = text; *from != '\0' && *from != '\n' && strncmp(from, ": idle ", 7) != 0; from++) {
        bool is_digit = *from >= '0' && *from <= '9';
        if (*from == '(') /* a role */
            from = strchr(from, ')') != NULL ? strchr(from, ')') : from;
        else if (!is_digit)
            *to++ = *from;
        else if (to == text || to[-1] != '0')
            *to++ = '0';
    }
    *to = '\0';
}

static failure try_run(const sim_config *config) {
    failure f = { 0 };
    int fds[2], status = 0;
    if (pipe(fds) < 0)
        return f;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        close(fds[0]);
        failure_fd = fds[1];
        if (freopen("/dev/null", "w", stderr) == NULL || freopen("/dev/null", "w", stdout) == NULL)
            _exit(2);
        limit_time(LONGEST_S);
        sim_run(config);
        _exit(0);
    }
    close(fds[1]);
    char line[sizeof f.text] = "";
    for (ssize_t size = 0, r; (r = read(fds[0], line + size, sizeof line - 1 - (size_t)size)) > 0;)
        size += r;
    close(fds[0]);
    waitpid(child, &status, 0);
    char *text = line;
    f.actions = strtoull(line, &text, 10);
    if (*text != '\0')
        memcpy(f.text, text + 1, strlen(text));
    else if (status != 0) /* it was killed, or a sanitizer's exit */
        snprintf(f.text, sizeof f.text, "status %x", (unsigned)status);
    normalise(f.text);
    return f;
}

/* Keep @smaller if it fails in the same way. */
static bool keeps_failing(sim_config *config, const sim_config *smaller, failure *f) {
    failure now = try_run(smaller);
    if (strcmp(now.text, f->text) != 0)
        return false;
    *config = *smaller;
    f->actions = now.actions;
    return true;
}

static void skip_more(sim_config *config, uint64_t first, uint64_t last) {
    if (config->skip_count > 0 && config->skips[config->skip_count - 1].last + 1 == first)
        config->skips[config->skip_count - 1].last = last;
    else if (config->skip_count < SIM_MOST_SKIPS)
        config->skips[config->skip_count++] = (sim_range){ first, last };
}

static uint64_t skipped(const sim_config *config) {
    uint64_t count = 0;
    for (unsigned i = 0; i < config->skip_count; i++)
        count += config->skips[i].last - config->skips[i].first + 1;
    return count;
}

/* Leave out actions of the application: halves of them at first, at last single ones. Each round starts afresh with what
 * it leaves out, so that the ranges stay in order. */
static void shrink_actions(sim_config *config, failure *f) {
    enum { MOST_PARTS = 64 };
    for (uint64_t parts = 2; parts <= MOST_PARTS && parts <= f->actions; parts *= 2) {
        uint64_t count = f->actions, size = (count + parts - 1) / parts;
        sim_config best = *config;
        best.skip_count = 0;
        bool is_ordered = true;
        for (uint64_t first = 0; first < count; first += size) {
            sim_config smaller = best;
            skip_more(&smaller, first, first + size - 1);
            if (!keeps_failing(&best, &smaller, f))
                is_ordered = false;
        }
        if (skipped(&best) > skipped(config))
            *config = best;
        if (is_ordered)
            break; /* nothing that the application does is needed */
    }
}

/* Fewer kinds of fault, fewer connections, fewer steps and actions, as long as it fails in the same way. */
static void shrink(sim_config config) {
    failure f = try_run(&config);
    if (f.text[0] == '\0') {
        printf("sim: seed %" PRIu64 " does not fail\n", config.seed);
        return;
    }
    printf("sim: seed %" PRIu64 " fails: %s\n", config.seed, f.text);
    config.faults &= (UINT64_C(1) << SIM_FAULT_COUNT) - 1;
    for (int i = 0; i < SIM_FAULT_COUNT; i++) {
        sim_config smaller = config;
        smaller.faults &= ~(UINT64_C(1) << i);
        if (smaller.faults != config.faults)
            (void)keeps_failing(&config, &smaller, &f);
    }
    while (config.connections > 1) {
        sim_config smaller = config;
        smaller.connections--;
        if (!keeps_failing(&config, &smaller, &f))
            break;
    }
    for (uint64_t cut = config.steps / 2; cut > 0; cut /= 2) {
        sim_config smaller = config;
        while (smaller.steps > cut) {
            smaller.steps -= cut;
            if (!keeps_failing(&config, &smaller, &f))
                break;
        }
    }
    shrink_actions(&config, &f);
    printf("sim: smaller: ");
    print_options(stdout, &config);
    sim_run(&config);
}

/* ---- the command ------------------------------------------------------------------------------------ */

static void usage(FILE *to) {
    fprintf(to,
            "usage: sim [--seed N | --seeds A..B | --minutes M [--from N]] [--classic] [--no-caps] [--epoll] "
            "[--trace]\n"
            "           [--shrink] [--report] [--all-events] [--steps N] [--connections N] [--faults MASK]\n"
            "           [--skip A..B]...\n"
            "\n"
            "Runs the library on a simulated kernel, one random program a seed. One seed in four uses classic "
            "rings,\none in four epoll, and one in three a kernel that cannot limit receives. --report tells how "
            "often each fault\nand each event of the kernel came; with --all-events it fails if one never did.\n");
}

typedef struct command {
    uint64_t first, last;
    double minutes;
    uint64_t from;
    bool is_shrinking, wants_report, wants_all, is_classic, is_without_caps, is_epoll, is_tap;
    sim_config config;
} command;

/* -1: go on; else the exit status. */
static int parse_options(int argc, char **argv, command *c) {
    for (int i = 1; i < argc; i++) {
        const char *option = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        char *end = NULL;
        if (strcmp(option, "--seed") == 0) {
            c->first = c->last = strtoull(value, &end, 10), i++;
        } else if (strcmp(option, "--seeds") == 0) {
            c->first = strtoull(value, &end, 10);
            c->last = strncmp(end, "..", 2) == 0 ? strtoull(end + 2, &end, 10) : 0;
            if (c->last < c->first) {
                fprintf(stderr, "sim: --seeds wants A..B, A no more than B, not '%s'\n", value);
                return 2;
            }
            i++;
        } else if (strcmp(option, "--minutes") == 0) {
            c->minutes = strtod(value, &end), c->last = UINT64_MAX, i++;
            if (!(c->minutes > 0)) {
                fprintf(stderr, "sim: --minutes wants more than none, not '%s'\n", value);
                return 2;
            }
            c->first = c->from > 0 ? c->from : (uint64_t)time(NULL) * 1000000;
        } else if (strcmp(option, "--from") == 0) { /* for --minutes: not seeds of this moment, but these */
            c->first = c->from = strtoull(value, &end, 10), i++;
        } else if (strcmp(option, "--steps") == 0) {
            c->config.steps = strtoull(value, &end, 10), i++;
        } else if (strcmp(option, "--connections") == 0) {
            c->config.connections = (uint32_t)strtoul(value, &end, 10), i++;
        } else if (strcmp(option, "--faults") == 0) {
            c->config.faults = strtoull(value, &end, 0), i++;
        } else if (strcmp(option, "--skip") == 0) {
            sim_range skip = { .first = strtoull(value, &end, 10) };
            if (strncmp(end, "..", 2) == 0 && c->config.skip_count < SIM_MOST_SKIPS) {
                skip.last = strtoull(end + 2, &end, 10);
                c->config.skips[c->config.skip_count++] = skip;
            }
            i++;
        } else if (strcmp(option, "--classic") == 0) {
            c->is_classic = true;
        } else if (strcmp(option, "--no-caps") == 0) {
            c->is_without_caps = true;
        } else if (strcmp(option, "--epoll") == 0) {
            c->is_epoll = true;
        } else if (strcmp(option, "--trace") == 0) {
            c->config.trace = true;
        } else if (strcmp(option, "--shrink") == 0) {
            c->is_shrinking = true;
        } else if (strcmp(option, "--report") == 0) {
            c->wants_report = true;
        } else if (strcmp(option, "--all-events") == 0) {
            c->wants_all = true;
        } else if (strcmp(option, "--tap") == 0) {
            c->is_tap = true; /* for the test runner: a case or two */
        } else {
            usage(strcmp(option, "--help") == 0 ? stdout : stderr);
            return strcmp(option, "--help") == 0 ? 0 : 2;
        }
        if (end != NULL && (end == value || *end != '\0')) {
            fprintf(stderr, "sim: %s wants a number, not '%s'\n", option, value);
            return 2;
        }
    }
    return -1;
}

int main(int argc, char **argv) {
    command c = { .first = 1, .last = 100, .config = { .steps = 3400, .connections = 12, .faults = UINT64_MAX } };
    int status = parse_options(argc, argv, &c);
    if (status >= 0)
        return status;
    signal(SIGABRT, on_crash);
    signal(SIGSEGV, on_crash);
    signal(SIGVTALRM, on_crash); /* it hangs in the library */
    double began = seconds(), told = began;
    for (uint64_t seed = c.first; seed <= c.last; seed++) {
        c.config.seed = seed;
        bool is_uring = c.is_classic || c.is_without_caps;
        c.config.epoll = c.is_epoll || (seed % 4 == 3 && !is_uring);
        c.config.classic = !c.config.epoll && (c.is_classic || seed % 4 == 1);
        c.config.no_caps = !c.config.epoll && (c.is_without_caps || seed % 3 == 2);
        if (c.is_shrinking) {
            shrink(c.config);
            continue;
        }
        limit_time(LONGEST_S);
        sim_run(&c.config);
        limit_time(0);
        add_up();
        double now = seconds();
        if (isatty(2) ? now - told > 0.5 : now - told > 30) {
            progress(began);
            told = now;
        }
        if (c.minutes > 0 && now - began > c.minutes * 60)
            break;
    }
    if (c.wants_report)
        report();
    if (c.is_tap)
        printf("1..%d\nok 1 - seeds_from_%" PRIu64 "_hold\n", c.wants_all ? 2 : 1, c.first);
    bool has_all = !c.wants_all || all_came();
    if (c.is_tap && c.wants_all)
        printf("%s 2 - each_event_comes\n", has_all ? "ok" : "not ok");
    if (!has_all)
        return 1;
    printf("sim: ok seeds=%" PRIu64 " operations=%" PRIu64 " faults=%" PRIu64 "\n", total.seeds, total.operations,
           all_faults());
    return 0;
}
