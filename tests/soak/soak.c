/* SPDX-License-Identifier: MIT */

/*
 * A server's long day, on the machine's kernel: connections come and go in every way for minutes, and what they leave
 * behind is measured.
 *
 *   soak --minutes M | --seconds S [--seed N]
 *
 * Now and then the peers rest. Then nothing may be open but what was at the beginning: no descriptor, no thread, no
 * buffer that is referred to, no block. What the loops have allocated varies between these quiet points, by what they keep
 * for the next burst and give back when it does not come: the least of the last quarter may be LIVE_DRIFT_KIB above the
 * least of the second. Resident memory is the allocator's business, too: the straight line through the points of the second
 * half may rise by no more than DRIFT_KIB and two of its standard errors over it. Under AddressSanitizer it is not judged:
 * what its heap keeps of freed memory swings by ten megabytes, and creeps.
 */

#include "soak/soak.h"

#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* What a short run shows of drift is warming up. */
enum {
    LEAST_FOR_DRIFT_S = 120,
    DRIFT_KIB = 1024,
    LIVE_DRIFT_KIB = 32,
    MOST_POINTS = 4096,
    QUIET_PATIENCE_S = 90,
    REST_MS = 150
};

#if defined(__SANITIZE_ADDRESS__)
static const bool judges_resident = false;
#else
static const bool judges_resident = true;
#endif

/* What AddressSanitizer keeps of freed memory looks like a leak until it is full: let it be full soon. */
const char *__asan_default_options(void);
const char *__asan_default_options(void) {
    return "quarantine_size_mb=8";
}

soak_shared *soak;

void soak_fail(const char *format, ...) {
    va_list arguments;
    uint32_t expected = 0;
    if (!atomic_compare_exchange_strong(&soak->has_failed, &expected, 1))
        return;
    va_start(arguments, format);
    vsnprintf(soak->failure, sizeof soak->failure, format, arguments);
    va_end(arguments);
    fprintf(stderr, "soak: FAILED: %s\n", soak->failure);
}

void soak_count(enum count count, uint64_t more) {
    atomic_fetch_add_explicit(&soak->counts[count], more, memory_order_relaxed);
}

int64_t soak_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * SECOND + now.tv_nsec;
}

void soak_sleep(int64_t ns) {
    struct timespec time = { .tv_sec = ns / SECOND, .tv_nsec = ns % SECOND };
    while (nanosleep(&time, &time) < 0)
        ;
}

static unsigned long long count_of(enum count count) {
    return atomic_load(&soak->counts[count]);
}

static bool has_failed(void) {
    return atomic_load(&soak->has_failed) != 0;
}

/* ---- the process -------------------------------------------------------------------------------------- */

static unsigned count_entries(const char *path) {
    DIR *directory = opendir(path);
    unsigned count = 0;
    if (directory == NULL) {
        soak_fail("%s: %s", path, strerror(errno));
        return 0;
    }
    for (const struct dirent *entry; (entry = readdir(directory)) != NULL;)
        count += entry->d_name[0] != '.';
    closedir(directory);
    return count;
}

static unsigned count_fds(void) {
    return count_entries("/proc/self/fd") - 1; /* the directory's own */
}

static unsigned count_threads(void) {
    return count_entries("/proc/self/task");
}

/* Page by page: what /proc/self/status says may be some hundred KiB old. */
static long rss_kib(void) {
    char line[256];
    long kib = -1;
    FILE *file = fopen("/proc/self/smaps_rollup", "r");
    while (file != NULL && kib < 0 && fgets(line, sizeof line, file) != NULL)
        (void)sscanf(line, "Rss: %ld", &kib);
    if (file != NULL)
        fclose(file);
    if (kib < 0)
        soak_fail("the resident size is not to be had");
    return kib;
}

/* ---- quiet points ---------------------------------------------------------------------------------------- */

static struct {
    int64_t begin, end;
    unsigned fds, threads; /* at rest */
    unsigned most_fds, most_threads, points;
    unsigned emfile, pauses, holds;
    double at[MOST_POINTS], kib[MOST_POINTS], live_kib[MOST_POINTS]; /* seconds; resident; the loops' own */
} run;

static bool is_at_rest(void) {
    if (atomic_load(&soak->resting) != PEER_THREADS || servers_held() > 0)
        return false;
    for (unsigned i = 0; i < LOOPS; i++) {
        server_figures f = server_get_figures(i);
        if (f.loop.streams_open > 0 || f.pool.buffers_retired > 0 || f.pool.block_bytes > 0 ||
            f.pool.parked_streams > 0)
            return false;
    }
    return count_fds() == run.fds && count_threads() == run.threads;
}

static void tell_unrest(void) {
    char text[400];
    int length = snprintf(text, sizeof text, "%u of %u peers rest, %u of %u fds, %u of %u threads, %llu held",
                          atomic_load(&soak->resting), PEER_THREADS, count_fds(), run.fds, count_threads(),
                          run.threads, (unsigned long long)servers_held());
    for (unsigned i = 0; i < LOOPS; i++) {
        server_figures f = server_get_figures(i);
        length += snprintf(text + length, sizeof text - (size_t)length,
                           "; loop %u: %u streams, %u retired, %u parked, %llu of blocks", i, f.loop.streams_open,
                           f.pool.buffers_retired, f.pool.parked_streams, (unsigned long long)f.pool.block_bytes);
    }
    soak_fail("it does not come to rest: %s", text);
}

static void quiet_point(void) {
    int64_t now = soak_now(), since = now, deadline = now + QUIET_PATIENCE_S * SECOND;
    atomic_store(&soak->is_quiet, 1);
    /* For a while: connections that their peers have left already may still wait to be accepted. */
    for (; now - since < REST_MS * MS && !has_failed(); now = soak_now()) {
        if (!is_at_rest())
            since = now;
        if (now > deadline)
            tell_unrest();
        soak_sleep(5 * MS);
    }
    if (run.points < MOST_POINTS) {
        run.at[run.points] = (double)(soak_now() - run.begin) / 1e9;
        run.live_kib[run.points] = (double)servers_live() / 1024;
        run.kib[run.points++] = (double)rss_kib();
    }
    atomic_store(&soak->is_quiet, 0);
}

typedef struct trend {
    double first, last, rise, error; /* KiB, over the second half; the rise's standard error */
} trend;

/* The straight line through what was found at the quiet points of the second half. */
static trend find_trend(void) {
    double n = 0, x = 0, y = 0, xx = 0, xy = 0, yy = 0, half = (double)(run.end - run.begin) / 2e9;
    trend t = { .last = run.points > 0 ? run.kib[run.points - 1] : 0 };
    for (unsigned i = 0; i < run.points; i++) {
        if (run.at[i] < half)
            continue;
        t.first = n == 0 ? run.kib[i] : t.first;
        n++;
        x += run.at[i], y += run.kib[i];
        xx += run.at[i] * run.at[i], xy += run.at[i] * run.kib[i], yy += run.kib[i] * run.kib[i];
    }
    double sxx = xx - x * x / n, sxy = xy - x * y / n, syy = yy - y * y / n;
    if (n < 3 || sxx <= 0) {
        if (run.end - run.begin >= LEAST_FOR_DRIFT_S * SECOND)
            soak_fail("too few quiet points for a judgement");
        return t;
    }
    double rest = syy - sxy * sxy / sxx;
    t.rise = sxy / sxx * half;
    t.error = rest > 0 ? sqrt(rest / (n - 2) / sxx) * half : 0;
    return t;
}

/* The least that the loops had at a quiet point of that quarter, from 0, in KiB. */
static double least_live(unsigned quarter) {
    double length = (double)(run.end - run.begin) / 4e9, least = INFINITY;
    for (unsigned i = 0; i < run.points; i++)
        if (run.at[i] >= length * quarter && (run.at[i] < length * (quarter + 1) || quarter == 3))
            least = run.live_kib[i] < least ? run.live_kib[i] : least;
    return least;
}

static void tell_memory(const trend *resident, double live_second, double live_last) {
    printf("soak: resident memory of the second half: %.0f to %.0f KiB, a rise of %.0f, give or take %.0f "
           "(%d more is too much%s)\n",
           resident->first, resident->last, resident->rise, 2 * resident->error, DRIFT_KIB,
           judges_resident ? "" : ", but not with AddressSanitizer");
    printf(
        "soak: the loops' own: %.1f KiB at least in the second quarter, %.1f in the last (%d more is too much)\n",
        live_second, live_last, LIVE_DRIFT_KIB);
}

/* ---- hard times ------------------------------------------------------------------------------------------- */

static void no_descriptors(void) {
    struct rlimit usual, little;
    if (getrlimit(RLIMIT_NOFILE, &usual) < 0)
        return;
    little = usual;
    little.rlim_cur = run.fds + 6;
    (void)setrlimit(RLIMIT_NOFILE, &little);
    soak_sleep(150 * MS);
    (void)setrlimit(RLIMIT_NOFILE, &usual);
    run.emfile++;
}

static void hard_time(uint64_t number) {
    switch (number % 3) {
    case 0:
        no_descriptors();
        break;
    case 1:
        servers_pause(number / 3 % LOOPS);
        run.pauses++;
        break;
    default:
        servers_hold(300 * MS);
        run.holds++;
        break;
    }
}

/* ---- the run ------------------------------------------------------------------------------------------------ */

static void look_around(bool is_told) {
    unsigned fds = count_fds(), threads = count_threads();
    run.most_fds = fds > run.most_fds ? fds : run.most_fds;
    run.most_threads = threads > run.most_threads ? threads : run.most_threads;
    if (!is_told)
        return;
    server_figures a = server_get_figures(0), b = server_get_figures(1);
    printf(
        "soak: %4lld s  connections %llu  MiB %llu  rss %ld KiB (quiet %.0f)  fds %u  threads %u  streams %u+%u  "
        "used KiB %llu+%llu  starved %llu+%llu\n",
        (long long)((soak_now() - run.begin) / SECOND), count_of(CONNECTIONS), count_of(BYTES) >> 20, rss_kib(),
        run.points > 0 ? run.kib[run.points - 1] : 0.0, fds, threads, a.loop.streams_open, b.loop.streams_open,
        (unsigned long long)a.pool.used_bytes >> 10, (unsigned long long)b.pool.used_bytes >> 10,
        (unsigned long long)a.pool.starved, (unsigned long long)b.pool.starved);
    fflush(stdout);
}

static void watch(pid_t peers) {
    int64_t length = run.end - run.begin, now;
    int64_t between_points = length / 16 < 10 * SECOND ? length / 16 : 10 * SECOND;
    int64_t between_lines = length / 4 < 5 * SECOND ? length / 4 : 5 * SECOND;
    int64_t between_times = length / 30 < SECOND ? length / 30 : SECOND;
    int64_t point = run.begin + between_points, line = run.begin + between_lines, time = run.begin + between_times;
    uint64_t number = 0;
    while ((now = soak_now()) < run.end && !has_failed()) {
        if (waitpid(peers, NULL, WNOHANG) == peers)
            soak_fail("the peers are gone");
        if (now >= point) {
            quiet_point();
            point = soak_now() + between_points;
        }
        if (now >= time) {
            hard_time(number++);
            time = soak_now() + between_times;
        }
        servers_post((unsigned)(number++ % LOOPS));
        look_around(now >= line);
        if (now >= line)
            line = now + between_lines;
        soak_sleep(10 * MS);
    }
    if (!has_failed())
        quiet_point();
}

static void check_variety(void) {
    static const char *const names[COUNTS] = { "connections", "bytes",       "resets",  "abrupt",
                                               "half-closes", "slow",        "urgent",  "kept",
                                               "thrown-out",  "handed-over", "proxied", "retries" };
    printf("soak: figures:");
    for (int i = 0; i < COUNTS; i++)
        printf(" %s=%llu", names[i], count_of((enum count)i));
    printf(" no-descriptors=%u pauses=%u holds=%u most-fds=%u most-threads=%u quiet-points=%u\n", run.emfile,
           run.pauses, run.holds, run.most_fds, run.most_threads, run.points);
    for (unsigned i = 0; i < LOOPS; i++) {
        server_figures f = server_get_figures(i);
        printf("soak: loop %u: turns=%llu enters=%llu completions=%llu overflows=%llu rearms=%llu slices=%llu "
               "in=%llu "
               "out=%llu copied=%llu accepted=%llu stalls=%llu posts=%llu wakes=%llu starved=%llu recycled=%llu "
               "peak=%llu budget=%llu\n",
               i, (unsigned long long)f.loop.turns, (unsigned long long)f.loop.enters,
               (unsigned long long)f.loop.completions, (unsigned long long)f.loop.overflows,
               (unsigned long long)f.loop.rearms, (unsigned long long)f.loop.slices,
               (unsigned long long)f.loop.bytes_in, (unsigned long long)f.loop.bytes_out,
               (unsigned long long)f.loop.bytes_copied, (unsigned long long)f.loop.accepted,
               (unsigned long long)f.loop.accept_stalls, (unsigned long long)f.loop.posts,
               (unsigned long long)f.loop.wakes, (unsigned long long)f.pool.starved,
               (unsigned long long)f.pool.recycled, (unsigned long long)f.pool.peak_bytes,
               (unsigned long long)f.pool.budget_bytes);
        if (run.end - run.begin >= 30 * SECOND && (f.pool.starved == 0 || f.loop.accept_stalls == 0))
            soak_fail("loop %u had an easy life", i);
    }
    for (int i = 0; i < COUNTS; i++)
        if (run.end - run.begin >= 30 * SECOND && count_of((enum count)i) == 0)
            soak_fail("there was nothing of this: %s", names[i]);
}

static int usage(FILE *to) {
    fprintf(
        to,
        "usage: soak [--minutes M | --seconds S] [--seed N]\n"
        "\n"
        "Two loops serve peers that come and go in every way, for ten minutes unless told otherwise. Ends with 1\n"
        "if bytes are wrong, a stream hangs, or memory, descriptors or threads drift.\n");
    return to == stdout ? 0 : 2;
}

static void *do_nothing(void *userdata) {
    return userdata;
}

/* With the first one ThreadSanitizer has one of its own, which stays. */
static void first_thread(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, do_nothing, NULL) == 0)
        pthread_join(thread, NULL);
}

int main(int argc, char **argv) {
    double seconds = 600;
    uint64_t seed = (uint64_t)time(NULL);
    for (int i = 1; i < argc; i += 2) {
        if (strcmp(argv[i], "--help") == 0)
            return usage(stdout);
        if (i + 1 == argc)
            return usage(stderr);
        if (strcmp(argv[i], "--minutes") == 0)
            seconds = atof(argv[i + 1]) * 60;
        else if (strcmp(argv[i], "--seconds") == 0)
            seconds = atof(argv[i + 1]);
        else if (strcmp(argv[i], "--seed") == 0)
            seed = strtoull(argv[i + 1], NULL, 10);
        else
            return usage(stderr);
    }
    if (!(seconds >= 2 && seconds < 1e6))
        return usage(stderr);
    signal(SIGPIPE, SIG_IGN);
    soak = mmap(NULL, sizeof *soak, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (soak == MAP_FAILED)
        return 1;
    printf("soak: seed %llu\n", (unsigned long long)seed);
    fflush(stdout);
    atomic_store(&soak->is_quiet, 1);
    pid_t peers = fork(); /* before any thread; they rest until there is something to connect to */
    if (peers == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        exit(peers_main(seed));
    }
    first_thread();
    unsigned fds = count_fds(), threads = count_threads();
    servers_start();
    soak_sleep(100 * MS);
    run.fds = count_fds();
    run.threads = count_threads();
    run.begin = soak_now();
    run.end = run.begin + (int64_t)(seconds * 1e9);
    atomic_store(&soak->is_quiet, 0);
    watch(peers);
    atomic_store(&soak->is_over, 1);
    int status = 0;
    if (waitpid(peers, &status, 0) == peers && status != 0)
        soak_fail("the peers ended with %#x", (unsigned)status);
    check_variety();
    trend resident = find_trend();
    double live_second = least_live(1), live_last = least_live(3);
    servers_stop();
    if (judges_resident && resident.rise - 2 * resident.error > DRIFT_KIB && seconds >= LEAST_FOR_DRIFT_S)
        soak_fail("resident memory rises: %.0f KiB over the second half", resident.rise);
    if (!(live_last - live_second <= LIVE_DRIFT_KIB) && seconds >= LEAST_FOR_DRIFT_S)
        soak_fail("the loops' memory rises from %.1f to %.1f KiB", live_second, live_last);
    for (int ms = 0; ms < 5000 && (count_fds() != fds || count_threads() != threads); ms++)
        soak_sleep(1 * MS); /* a thread that was joined is not gone yet */
    if (count_fds() != fds || count_threads() != threads)
        soak_fail("the loops left %u descriptors and %u threads, before them there were %u and %u", count_fds(),
                  count_threads(), fds, threads);
    if (seconds >= LEAST_FOR_DRIFT_S)
        tell_memory(&resident, live_second, live_last);
    if (has_failed()) {
        printf("soak: FAILED: %s (seed %llu)\n", soak->failure, (unsigned long long)seed);
        return 1;
    }
    printf("soak: ok minutes=%.2g connections=%llu bytes=%llu rss_first_kib=%.0f rss_last_kib=%.0f fds=%u "
           "threads=%u\n",
           seconds / 60, count_of(CONNECTIONS), count_of(BYTES), resident.first, resident.last, run.fds,
           run.threads);
    return 0;
}
