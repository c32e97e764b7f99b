/* SPDX-License-Identifier: MIT */
/* Waking a sleeper, exactly when it sleeps, on real threads and a real eventfd. */
#include "backend/waker.h"

#include <poll.h>
#include <pthread.h>
#include <unistd.h>

#include "edge/sys.h"
#include "support/support.h"

static test_memory memory;
static weir__waker *waker;

static int setup(void **state) {
    (void)state;
    test_memory_init(&memory);
    test_ok(weir__waker_new(&memory.allocator, &waker));
    return 0;
}

static int teardown(void **state) {
    (void)state;
    weir__waker_unref(waker);
    assert_int_equal(atomic_load(&memory.live_blocks), 0);
    return 0;
}

static uint64_t written(void) {
    uint64_t count = 0;
    ssize_t size = read(atomic_load(&waker->fd), &count, sizeof count);
    assert_true(size == sizeof count || (size < 0 && errno == EAGAIN));
    return count;
}

static void waking_who_is_awake_writes_nothing(void **state) {
    (void)state;
    weir__waker_wake(waker);
    weir__waker_sleep(waker);
    weir__waker_rise(waker);
    weir__waker_wake(waker);
    assert_int_equal(written(), 0);
    assert_int_equal(atomic_load(&waker->wakes), 0);
}

static void sleeper_is_woken_once(void **state) {
    (void)state;
    weir__waker_sleep(waker);
    weir__waker_wake(waker);
    weir__waker_wake(waker);
    weir__waker_wake(waker);
    assert_int_equal(written(), 1);
    assert_int_equal(atomic_load(&waker->wakes), 1);
    weir__waker_rise(waker);
    weir__waker_sleep(waker);
    weir__waker_wake(waker);
    assert_int_equal(written(), 1);
}

static void wake_after_the_close_does_nothing(void **state) {
    (void)state;
    weir__waker_sleep(waker);
    unsigned fds = test_count_fds();
    weir__waker_close(waker);
    assert_int_equal(test_count_fds(), fds - 1);
    weir__waker_wake(waker);
    assert_int_equal(atomic_load(&waker->wakes), 0);
    weir__waker_close(waker);
}

static void waker_outlives_the_one_who_made_it(void **state) {
    (void)state;
    weir__waker_ref(waker);
    weir__waker_unref(waker);
    weir__waker_sleep(waker);
    weir__waker_wake(waker);
    assert_int_equal(written(), 1);
}

static void waker_without_memory_opens_nothing(void **state) {
    (void)state;
    weir__waker *none = NULL;
    unsigned fds = test_count_fds();
    atomic_store(&memory.fail_at, atomic_load(&memory.allocations) + 1);
    assert_int_equal(weir__waker_new(&memory.allocator, &none), -ENOMEM);
    assert_null(none);
    assert_int_equal(test_count_fds(), fds);
}

/* ---- races ------------------------------------------------------------------------------------------ */

enum { ROUNDS = 10000 };

static _Atomic(unsigned) rounds, posted;

/* A short time, another one each time. */
static void dawdle(uint64_t *random) {
    for (volatile uint64_t spin = test_random(random) % 128; spin > 0; spin--)
        ;
}

/* One post a round, at any moment of the other's round: no later post covers up for a wake that was lost. */
static void *post_each_round(void *userdata) {
    uint64_t random = 1;
    (void)userdata;
    for (unsigned round = 1; round <= ROUNDS; round++) {
        for (unsigned tries = 0; atomic_load_explicit(&rounds, memory_order_relaxed) != round; tries++)
            if (tries % 1000 == 999)
                weir__sys_yield(); /* the other may need this processor */
        dawdle(&random);
        atomic_store_explicit(&posted, round, memory_order_relaxed);
        weir__waker_wake(waker);
    }
    return NULL;
}

/* As the loop does: flag, look again, sleep. Were a wake lost, a sleep would last to its end with something
 * posted. */
static void no_wake_is_lost(void **state) {
    (void)state;
    pthread_t thread;
    uint64_t random = 2;
    atomic_store(&rounds, 0);
    atomic_store(&posted, 0);
    assert_int_equal(pthread_create(&thread, NULL, post_each_round, NULL), 0);
    for (unsigned round = 1; round <= ROUNDS; round++) {
        atomic_store(&rounds, round);
        dawdle(&random);
        while (atomic_load_explicit(&posted, memory_order_relaxed) != round) {
            weir__waker_sleep(waker);
            if (atomic_load_explicit(&posted, memory_order_relaxed) != round) {
                struct pollfd fd = { .fd = atomic_load(&waker->fd), .events = POLLIN };
                if (poll(&fd, 1, 5000) == 0)
                    fail_msg("asleep in round %u, for which a post is there", round);
                (void)written();
            }
            weir__waker_rise(waker);
        }
    }
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(atomic_load(&waker->wakes) <= ROUNDS);
}

static void *wake_until_closed(void *userdata) {
    _Atomic(bool) *is_over = userdata;
    while (!atomic_load(is_over)) {
        atomic_store(&waker->sleeping, 1); /* so that each wake goes all the way */
        weir__waker_wake(waker);
    }
    return NULL;
}

/* While others wake, the descriptor is closed and its number becomes another file's: nothing may be written to
 * that. */
static void closing_waits_for_those_who_write(void **state) {
    (void)state;
    for (int round = 0; round < 50; round++) {
        static _Atomic(bool) is_over;
        pthread_t threads[2];
        int pipe_fds[2];
        atomic_store(&is_over, false);
        for (int i = 0; i < 2; i++)
            assert_int_equal(pthread_create(&threads[i], NULL, wake_until_closed, (void *)&is_over), 0);
        assert_int_equal(pipe(pipe_fds), 0);
        int fd = atomic_load(&waker->fd);
        while (atomic_load(&waker->wakes) == 0) /* they have begun */
            weir__sys_yield();
        weir__waker_close(waker);
        assert_int_equal(dup2(pipe_fds[1], fd), fd);
        atomic_store(&is_over, true);
        for (int i = 0; i < 2; i++)
            assert_int_equal(pthread_join(threads[i], NULL), 0);
        struct pollfd readable = { .fd = pipe_fds[0], .events = POLLIN };
        assert_int_equal(poll(&readable, 1, 0), 0);
        close(pipe_fds[0]);
        close(pipe_fds[1]);
        close(fd);
        weir__waker_unref(waker);
        test_ok(weir__waker_new(&memory.allocator, &waker));
    }
}

#define waker_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        waker_test(waking_who_is_awake_writes_nothing), waker_test(sleeper_is_woken_once),
        waker_test(wake_after_the_close_does_nothing),  waker_test(waker_outlives_the_one_who_made_it),
        waker_test(waker_without_memory_opens_nothing), waker_test(no_wake_is_lost),
        waker_test(closing_waits_for_those_who_write),
    };
    return cmocka_run_group_tests_name("waker", tests, NULL, NULL);
}
