/* SPDX-License-Identifier: MIT */

/*
 * Watches and signals after a fork: dead in the child, undisturbed in the parent, whose descriptors and signals stay its
 * own. The child says by its exit status which line it did not like.
 */

#include <signal.h>
#include <sys/eventfd.h>
#include <sys/wait.h>

#include "kernel/scribe.h"

typedef struct household {
    test_fixture f;
    weir_watch *watch, *other; /* of one descriptor, which is ready */
    weir_signal *signal;
    int fd;
    unsigned events, signals, others;
    bool forks_in_watch, forks_in_signal, drops_first;
    pid_t child; /* 0: this is the child */
} household;

static household h;

#define CHECK(expression)    \
    do {                     \
        if (!(expression))   \
            _exit(__LINE__); \
    } while (0)

static void fork_here(void) {
    fflush(NULL);
    h.child = fork();
    assert_true(h.child >= 0);
}

static void on_event(weir_watch *watch, int events, void *userdata) {
    (void)watch, (void)userdata;
    CHECK(h.child != 0); /* what is called after the fork is called in the parent only */
    assert_int_equal(events, WEIR_WATCH_READ);
    h.events++;
    if (h.forks_in_watch) {
        h.forks_in_watch = false;
        fork_here();
    }
}

static void on_other(weir_watch *watch, int events, void *userdata) {
    (void)watch, (void)events, (void)userdata;
    CHECK(h.child != 0);
    h.others++;
}

static void on_signal(weir_signal *signal, int number, void *userdata) {
    (void)signal, (void)number, (void)userdata;
    CHECK(h.child != 0);
    h.signals++;
    if (h.forks_in_signal) {
        h.forks_in_signal = false;
        if (h.drops_first)
            h.signal = weir_signal_unref(h.signal);
        fork_here();
    }
}

static bool is_blocked(void) {
    sigset_t set;
    pthread_sigmask(SIG_SETMASK, NULL, &set);
    return sigismember(&set, SIGUSR1) == 1;
}

static void move_in(void) {
    memset(&h, 0, sizeof h);
    h.child = -1;
    test_open(&h.f, NULL, NULL);
    h.fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    test_ok(weir_watch_new(h.f.loop, h.fd, on_event, NULL, &h.watch));
    test_ok(weir_watch_new(h.f.loop, h.fd, on_other, NULL, &h.other));
    test_ok(weir_watch_start(h.watch, WEIR_WATCH_READ));
    test_ok(weir_watch_start(h.other, WEIR_WATCH_READ));
    test_ok(weir_signal_new(h.f.loop, SIGUSR1, on_signal, NULL, &h.signal));
    test_ok(weir_signal_start(h.signal));
}

static void child_tries_every_call(void) {
    weir_watch *watch = NULL;
    weir_signal *signal = NULL;
    uint64_t live = atomic_load(&h.f.memory.live_blocks);
    CHECK(weir_watch_new(h.f.loop, h.fd, on_event, NULL, &watch) == -ECHILD && watch == NULL);
    CHECK(weir_watch_start(h.watch, WEIR_WATCH_WRITE) == -ECHILD);
    CHECK(weir_watch_stop(h.watch) == -ECHILD);
    CHECK(weir_watch_ref(h.watch) == h.watch);
    CHECK(weir_signal_new(h.f.loop, SIGUSR1, on_signal, NULL, &signal) == -ECHILD && signal == NULL);
    CHECK(weir_signal_start(h.signal) == -ECHILD);
    CHECK(weir_signal_stop(h.signal) == -ECHILD);
    CHECK(weir_signal_ref(h.signal) == h.signal);
    for (int i = 0; i < 5; i++) {
        CHECK(weir_watch_unref(h.watch) == NULL);
        CHECK(weir_signal_unref(h.signal) == NULL);
    }
    CHECK(atomic_load(&h.f.memory.live_blocks) == live);
    CHECK(is_blocked()); /* inherited, and nobody's business but the child's */
    CHECK(weir_loop_run_once(h.f.loop, 0) == -ECHILD);
    CHECK(weir_loop_close(h.f.loop) == -ECHILD);
    _exit(0);
}

static void expect_parent_goes_on(void) {
    int status;
    unsigned events = h.events, others = h.others, signals = h.signals;
    assert_int_equal(waitpid(h.child, &status, 0), h.child);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 0)
        fail_msg("the child did not like line %d", WEXITSTATUS(status));
    RUN_UNTIL(&h.f, h.events > events + 2 && h.others > others + 2);
    if (h.signal != NULL) {
        kill(getpid(), SIGUSR1);
        RUN_UNTIL(&h.f, h.signals > signals);
    }
    weir_signal_unref(h.signal);
    assert_false(is_blocked());
    weir_watch_unref(h.watch);
    weir_watch_unref(h.other);
    close(h.fd);
    test_close(&h.f);
}

static void every_call_in_the_child_fails_and_changes_nothing(void **state) {
    (void)state;
    move_in();
    scribe_turns(&h.f, 3);
    fork_here();
    if (h.child == 0)
        child_tries_every_call();
    expect_parent_goes_on();
}

/* The child comes back from the callback that it was forked in. */
static void turn_and_come_back(void) {
    int r = 0;
    for (int i = 0; i < 1000 && h.child < 0 && r >= 0; i++)
        r = weir_loop_run_once(h.f.loop, 10 * MS);
    if (h.child == 0) {
        CHECK(r == -ECHILD);
        CHECK(is_blocked());
        if (h.drops_first)
            _exit(0);
        child_tries_every_call();
    }
    assert_true(h.child > 0);
    expect_parent_goes_on();
}

static void a_child_that_comes_back_from_a_watch_is_told(void **state) {
    (void)state;
    move_in();
    h.forks_in_watch = true;
    turn_and_come_back();
}

static void a_child_that_comes_back_from_a_signal_is_told(void **state) {
    (void)state;
    move_in();
    h.forks_in_signal = true;
    kill(getpid(), SIGUSR1);
    turn_and_come_back();
}

/* The callback's own reference is the last one then: dropped in the child, it stopped the signal there. */
static void a_child_whose_callback_dropped_the_signal_stops_nothing(void **state) {
    (void)state;
    move_in();
    h.forks_in_signal = h.drops_first = true;
    kill(getpid(), SIGUSR1);
    turn_and_come_back();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_in_the_child_fails_and_changes_nothing),
        cmocka_unit_test(a_child_that_comes_back_from_a_watch_is_told),
        cmocka_unit_test(a_child_that_comes_back_from_a_signal_is_told),
        cmocka_unit_test(a_child_whose_callback_dropped_the_signal_stops_nothing),
    };
    return cmocka_run_group_tests_name("fork-watch", tests, NULL, NULL);
}
