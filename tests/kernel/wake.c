/* SPDX-License-Identifier: MIT */

/* A loop that sleeps: what wakes it, what does not, what it costs meanwhile, and what it leaves behind. */

#include <netinet/in.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <sys/resource.h>

#include "edge/ring.h"
#include "kernel/scribe.h"

/* ---- posts -------------------------------------------------------------------------------------------------- */

enum { POSTERS = 4, POSTS = TIMES(50000, 5000) }; /* each */

typedef struct poster {
    test_fixture *f;
    pthread_t thread;
    unsigned sent, received; /* received: the loop's thread */
    unsigned failed, disorder;
} poster;

static _Atomic(unsigned) posts_run;

typedef struct parcel {
    poster *from;
    unsigned number;
} parcel;

static void receive_parcel(weir_loop *loop, void *userdata) {
    parcel *p = userdata;
    p->from->disorder += p->number != p->from->received++;
    free(p);
    if (atomic_fetch_add(&posts_run, 1) + 1 == POSTERS * POSTS)
        weir_loop_stop(loop);
}

/* It begins when the loop sleeps, and now and then waits, so that the loop may fall asleep in between. */
static void *post_many(void *userdata) {
    poster *it = userdata;
    uint64_t random = (uint64_t)(uintptr_t)it;
    while (atomic_load(&it->f->loop->waker->sleeping) == 0 && atomic_load(&posts_run) == 0)
        sched_yield();
    for (; it->sent < POSTS; it->sent++) {
        parcel *p = malloc(sizeof *p);
        if (p == NULL)
            return NULL;
        *p = (parcel){ .from = it, .number = it->sent };
        it->failed += weir_loop_post(it->f->loop, receive_parcel, p) < 0;
        if (test_random(&random) % TIMES(512, 32) == 0)
            test_sleep_ms(1);
    }
    return NULL;
}

static void posts_from_several_threads_all_run_each_threads_in_order(void **state) {
    (void)state;
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    test_fixture f;
    static poster posters[POSTERS];
    memset(posters, 0, sizeof posters);
    atomic_store(&posts_run, 0);
    test_open_options(&f, NULL, &options);
    for (int i = 0; i < POSTERS; i++) {
        posters[i].f = &f;
        test_ok(pthread_create(&posters[i].thread, NULL, post_many, &posters[i]));
    }
    test_ok(weir_loop_run(f.loop));
    for (int i = 0; i < POSTERS; i++) {
        test_ok(pthread_join(posters[i].thread, NULL));
        assert_int_equal(posters[i].received, POSTS);
        assert_int_equal(posters[i].failed, 0);
        assert_int_equal(posters[i].disorder, 0);
    }
    weir_loop_stats stats = test_loop_stats(&f);
    assert_int_equal(stats.posts, POSTERS * POSTS);
    assert_true(stats.wakes > 0);
    assert_true(stats.wakes < POSTERS * POSTS / 2); /* a running loop is not disturbed */
    test_close(&f);
}

static void count_post(weir_loop *loop, void *userdata) {
    (void)loop;
    ++*(_Atomic(unsigned) *)userdata;
}

typedef struct knocker {
    weir_loop *loop;
    _Atomic(unsigned) *heard;
    unsigned knocks, unanswered;
} knocker;

/* One at a time: each must wake the loop by itself. It would sleep for a second. */
static void *knock(void *userdata) {
    knocker *k = userdata;
    for (unsigned i = 0; i < k->knocks && k->unanswered <= 2; i++) {
        int64_t start = test_now_ns();
        if (weir_loop_post(k->loop, count_post, k->heard) < 0)
            break;
        while (atomic_load(k->heard) != i + 1 && test_now_ns() - start < PATIENCE_S * INT64_C(1000000000))
            ;
        k->unanswered += test_now_ns() - start > 900 * MS;
        if (i % 16 == 0)
            test_sleep_ms(1); /* it is asleep for certain */
    }
    weir_loop_stop(k->loop);
    return NULL;
}

/* The eventfd is polled by a multishot that the kernel may end when the completion queue overflows: it is armed again,
 * however often that happens. A sleep is cut to a second, so a lost wake-up shows as a slow one. */
static void every_wake_wakes_also_when_the_completion_queue_overflows(void **state) {
    (void)state;
    enum { STREAMS = 60, ROUNDS = 20 };
    const weir__tuning tuning = { .sq_entries = 16, .cq_entries = 16 };
    test_fixture f;
    static scribe s[STREAMS];
    int peers[STREAMS];
    _Atomic(unsigned) heard = 0;
    pthread_t thread;
    test_open(&f, &tuning, NULL);
    for (unsigned i = 0; i < STREAMS; i++) {
        int fds[2];
        test_pair(false, fds);
        peers[i] = fds[0];
        scribe_init(&s[i], i);
        scribe_adopt(&f, &s[i], fds[1], NULL);
    }
    scribe_turns(&f, 10);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (unsigned i = 0; i < STREAMS; i++)
            assert_int_equal(peer_send(peers[i], i, round * 10, 10), 0);
        f.loop->waker->sleeping = 1; /* as if it slept: the wake is among what overflows */
        test_ok(weir_loop_post(f.loop, count_post, &heard));
        for (unsigned i = 0; i < STREAMS; i++)
            RUN_UNTIL(&f, s[i].received == (round + 1) * 10);
        assert_int_equal(atomic_load(&heard), round + 1);
    }
    assert_true(test_loop_stats(&f).overflows > 0 || test_is_epoll(&f));
    atomic_store(&heard, 0);
    knocker k = { .loop = f.loop, .heard = &heard, .knocks = 500 };
    test_ok(pthread_create(&thread, NULL, knock, &k));
    test_ok(weir_loop_run(f.loop));
    test_ok(pthread_join(thread, NULL));
    assert_true(k.unanswered <= 2); /* a machine may be that slow, a lost wake-up shows each time */
    assert_int_equal(atomic_load(&heard), 500);
    for (unsigned i = 0; i < STREAMS; i++)
        close(peers[i]);
    test_close(&f);
}

/* ---- stopping ------------------------------------------------------------------------------------------------- */

static weir_loop *signalled;
static _Atomic(unsigned) signals;

static void on_signal(int number) {
    (void)number;
    int saved = errno;
    weir_loop_stop(signalled);
    atomic_fetch_add(&signals, 1);
    errno = saved;
}

static void *send_signal(void *userdata) {
    test_sleep_ms(50);
    pthread_kill(*(pthread_t *)userdata, SIGUSR1);
    return NULL;
}

static void stop_from_a_signal_handler_ends_the_run(void **state) {
    (void)state;
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    const struct sigaction action = { .sa_handler = on_signal };
    struct sigaction before;
    test_fixture f;
    test_open_options(&f, NULL, &options);
    signalled = f.loop;
    assert_int_equal(sigaction(SIGUSR1, &action, &before), 0);
    for (unsigned i = 0; i < 10; i++) {
        pthread_t self = pthread_self(), thread;
        test_ok(pthread_create(&thread, NULL, send_signal, &self));
        test_ok(weir_loop_run(f.loop));
        test_ok(pthread_join(thread, NULL));
        assert_int_equal(atomic_load(&signals), i + 1);
    }
    assert_int_equal(sigaction(SIGUSR1, &before, NULL), 0);
    test_close(&f);
}

static void *stop_from_here(void *userdata) {
    test_sleep_ms(50);
    weir_loop_stop(userdata);
    return NULL;
}

static void stop_from_another_thread_ends_the_run(void **state) {
    (void)state;
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    test_fixture f;
    pthread_t thread;
    test_open_options(&f, NULL, &options);
    test_ok(pthread_create(&thread, NULL, stop_from_here, f.loop));
    test_ok(weir_loop_run(f.loop));
    test_ok(pthread_join(thread, NULL));
    assert_true(test_loop_stats(&f).wakes > 0);
    test_close(&f);
}

/* ---- idling --------------------------------------------------------------------------------------------------- */

static int64_t cpu_time_ns(void) {
    struct rusage usage;
    assert_int_equal(getrusage(RUSAGE_THREAD, &usage), 0);
    return (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * INT64_C(1000000000) +
           (usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) * INT64_C(1000);
}

static void an_idle_loop_uses_no_processor(void **state) {
    (void)state;
    test_fixture f;
    scribe s = { 0 };
    int fds[2];
    test_open(&f, NULL, NULL);
    test_pair(true, fds);
    scribe_init(&s, 0);
    scribe_adopt(&f, &s, fds[1], NULL);
    scribe_turns(&f, 5);
    int64_t before = cpu_time_ns();
    uint64_t turns = test_loop_stats(&f).turns;
    test_run_for_ms(&f, 1500);
    assert_true(cpu_time_ns() - before < 300 * MS);
    assert_true(test_loop_stats(&f).turns - turns < 100);
    close(fds[0]);
    test_close(&f);
}

/* Seconds/100 that processors had nothing to do but wait for i/o. */
static unsigned long long iowait_ticks(void) {
    unsigned long long user = 0, nice = 0, system = 0, idle = 0, iowait = 0;
    FILE *file = fopen("/proc/stat", "re");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "cpu %llu %llu %llu %llu %llu", &user, &nice, &system, &idle, &iowait), 5);
    fclose(file);
    return iowait;
}

/* How it would be without the flag: what a sleep of 600 ms counts for on this machine. */
static unsigned long long iowait_of_a_plain_sleep(int fd) {
    weir__ring *ring;
    const uint32_t flags = IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    if (weir__ring_open(&weir__default_allocator, 8, 16, flags, &ring) < 0)
        return 0; /* there is none, and no sleep in it */
    test_ok(weir__ring_enable(ring));
    struct io_uring_sqe *sqe = weir__ring_sqe(ring);
    sqe->opcode = IORING_OP_POLL_ADD;
    sqe->fd = fd;
    sqe->poll32_events = POLLIN;
    unsigned long long before = iowait_ticks();
    (void)weir__ring_enter(ring, 1, IORING_ENTER_GETEVENTS, 600 * MS);
    unsigned long long ticks = iowait_ticks() - before;
    weir__ring_close(ring);
    return ticks;
}

/* A sleep in io_uring counts as one for i/o unless it is told not to, and operators see a machine that is waiting for
 * its disk. Others may really wait for theirs, so the best of several tries counts. */
static void an_idle_loop_does_not_show_as_iowait(void **state) {
    (void)state;
    test_fixture f;
    scribe s = { 0 };
    int fds[2];
    weir_loop_info info = { .size = sizeof info };
    test_open(&f, NULL, NULL);
    test_ok(weir_loop_get_info(f.loop, &info));
    if ((info.features & WEIR_FEATURE_NO_IOWAIT) == 0) {
        test_close(&f);
        print_message("this kernel cannot be told (Linux 6.15)\n");
        skip();
    }
    test_pair(true, fds);
    if (iowait_of_a_plain_sleep(fds[0]) < 40) {
        close(fds[0]);
        close(fds[1]);
        test_close(&f);
        print_message("this machine does not count iowait, so nothing can be seen\n");
        skip();
    }
    scribe_init(&s, 0);
    scribe_adopt(&f, &s, fds[1], NULL);
    scribe_turns(&f, 5);
    unsigned long long least = 1000;
    for (int i = 0; i < 5 && least >= 20; i++) {
        unsigned long long before = iowait_ticks();
        test_run_for_ms(&f, 600);
        unsigned long long ticks = iowait_ticks() - before;
        least = ticks < least ? ticks : least;
    }
    assert_true(least < 20); /* of 60 */
    close(fds[0]);
    test_close(&f);
}

/* ---- what it leaves behind --------------------------------------------------------------------------------------- */

static void ignore_stream(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener, (void)stream, (void)userdata;
}

/* Exiting with an accept armed leaves the port busy for a while, so a loop takes its operations back first. Without
 * SO_REUSEADDR a bind shows whether it did. */
static void the_port_is_free_right_after_the_loops_close(void **state) {
    (void)state;
    static const weir_listener_callbacks callbacks = { .size = sizeof callbacks, .on_accept = ignore_stream };
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    for (int i = 0; i < 50; i++) {
        test_fixture f;
        weir_listener *listener;
        char address[WEIR_ADDRESS_SIZE];
        test_open(&f, NULL, NULL);
        test_ok(weir_listener_open(f.loop, "127.0.0.1:0", NULL, &listener));
        assert_true(weir_listener_get_address(listener, address, sizeof address) > 0);
        test_ok(weir_listener_start(listener, &callbacks, NULL));
        scribe_turns(&f, 2);
        test_close(&f);
        in.sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1));
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
        assert_int_equal(listen(fd, 1), 0);
        close(fd);
    }
}

static void many_loops_come_and_go(void **state) {
    (void)state;
    for (int i = 0; i < TIMES(200, 50); i++) {
        test_fixture f;
        scribe s = { 0 };
        int fds[2];
        test_open(&f, NULL, NULL);
        test_pair(false, fds);
        scribe_init(&s, 0);
        scribe_adopt(&f, &s, fds[1], NULL);
        if (i % 3 > 0)
            assert_int_equal(peer_send(fds[0], 0, 0, 100), 0);
        if (i % 3 > 1)
            scribe_turns(&f, 2);
        test_ok(weir_loop_close(f.loop));
        close(fds[0]);
        test_close(&f);
    }
}

/* ---- timers at the close -------------------------------------------------------------------------------------------- */

static void count_timer(weir_timer *timer, void *userdata) {
    (void)timer;
    ++*(unsigned *)userdata;
}

/*
 * At its close a loop took the application's timers out of its heap from the end, while timeouts of its own stayed in:
 * one of those took the place of a timer and moved up, and what it changed places with was passed over. That timer was
 * due during the close, and fired.
 */
static void no_timer_fires_in_the_loops_close(void **state) {
    (void)state;
    enum { DIALS = 4, TIMERS = 3 };
    test_fixture f;
    weir_timer *timers[TIMERS];
    weir_stream *streams[DIALS];
    unsigned fired = 0, timer = 0, dial = 0;
    char address[WEIR_ADDRESS_SIZE];
    test_free_address(address, sizeof address);
    test_open(&f, NULL, NULL);
    static const char order[] = "dtdttdd"; /* so the heap has them: deadlines 1, 10, 2, 11, 12, 3, 4 ms */
    static const unsigned deadlines[] = { 1, 10, 2, 11, 12, 3, 4 };
    for (size_t i = 0; i < sizeof order - 1; i++) {
        const weir_stream_options options = { .size = sizeof options,
                                              .connect_timeout_ns = (1000 + deadlines[i]) * MS };
        if (order[i] == 'd') {
            test_ok(weir_stream_dial(f.loop, address, &options, &streams[dial++]));
            continue;
        }
        test_ok(weir_timer_new(f.loop, count_timer, &fired, &timers[timer]));
        test_ok(weir_timer_start(timers[timer++], (1000 + deadlines[i]) * MS, 0));
    }
    test_sleep_ms(1100); /* all are due */
    test_ok(weir_loop_close(f.loop));
    assert_int_equal(fired, 0);
    assert_int_equal(test_loop_stats(&f).timers_started, 0);
    while (timer > 0)
        weir_timer_unref(timers[--timer]);
    test_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(posts_from_several_threads_all_run_each_threads_in_order),
        cmocka_unit_test(every_wake_wakes_also_when_the_completion_queue_overflows),
        cmocka_unit_test(stop_from_a_signal_handler_ends_the_run),
        cmocka_unit_test(stop_from_another_thread_ends_the_run),
        cmocka_unit_test(an_idle_loop_uses_no_processor),
        cmocka_unit_test(an_idle_loop_does_not_show_as_iowait),
        cmocka_unit_test(the_port_is_free_right_after_the_loops_close),
        cmocka_unit_test(many_loops_come_and_go),
        cmocka_unit_test(no_timer_fires_in_the_loops_close),
    };
    return cmocka_run_group_tests_name("wake", tests, first_thread, NULL);
}
