/* SPDX-License-Identifier: MIT */
#include <weir/signal.h>

#include "api/witness.h"

#include <signal.h>
#include <spawn.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* Signals as events, with the kernel's own: masks, threads, children. Each test leaves the mask as it was. */

typedef struct ear {
    test_fixture *fixture;
    weir_signal *signal;
    int number;
    unsigned count;
    void (*then)(struct ear *ear);
} ear;

static void hear(weir_signal *signal, int number, void *userdata) {
    ear *e = userdata;
    assert_true(e->signal == NULL || signal == e->signal);
    assert_int_equal(number, e->number);
    e->count++;
    if (e->then != NULL)
        e->then(e);
}

static void make(test_fixture *f, ear *e, int number) {
    *e = (ear){ .fixture = f, .number = number };
    test_ok(weir_signal_new(f->loop, number, hear, e, &e->signal));
}

static void begin(test_fixture *f, ear *e, int number) {
    make(f, e, number);
    test_ok(weir_signal_start(e->signal));
}

static void end(ear *e) {
    e->signal = weir_signal_unref(e->signal);
}

static bool is_blocked(int number) {
    sigset_t set;
    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &set), 0);
    return sigismember(&set, number) == 1;
}

static void set_blocked(int number, bool blocked) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    assert_int_equal(pthread_sigmask(blocked ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL), 0);
}

static bool is_pending(int number) {
    sigset_t set;
    assert_int_equal(sigpending(&set), 0);
    return sigismember(&set, number) == 1;
}

static sigset_t mask_before;

static int setup(void **state) {
    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &mask_before), 0);
    return witness_setup(state);
}

static int teardown(void **state) {
    sigset_t mask;
    int r = witness_teardown(state);
    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &mask), 0);
    for (int number = 1; number < 32; number++)
        assert_int_equal(sigismember(&mask, number), sigismember(&mask_before, number));
    return r;
}

/* ---- hearing ----------------------------------------------------------------------------------------- */

static void a_signal_is_heard(void **state) {
    test_fixture *f = *state;
    ear e;
    begin(f, &e, SIGTERM); /* by default the end of this process */
    assert_true(is_blocked(SIGTERM));
    run_turns(f, 3);
    for (unsigned i = 1; i <= 3; i++) {
        kill(getpid(), SIGTERM);
        run_until(f, e.count == i);
        run_turns(f, 3);
        assert_int_equal(e.count, i);
    }
    assert_false(is_pending(SIGTERM));
    end(&e);
}

static void signals_in_a_row_are_one(void **state) {
    test_fixture *f = *state;
    ear e, r;
    begin(f, &e, SIGUSR1);
    begin(f, &r, SIGRTMIN);
    kill(getpid(), SIGUSR1);
    kill(getpid(), SIGUSR1);
    for (int i = 0; i < 3; i++)
        kill(getpid(), SIGRTMIN); /* these are counted */
    run_until(f, r.count == 3);
    run_turns(f, 5);
    assert_int_equal(e.count, 1);
    assert_int_equal(r.count, 3);
    end(&e);
    end(&r);
}

static void a_signal_that_was_pending_before_start_is_heard(void **state) {
    test_fixture *f = *state;
    ear e;
    set_blocked(SIGUSR1, true);
    kill(getpid(), SIGUSR1);
    begin(f, &e, SIGUSR1);
    run_until(f, e.count == 1);
    end(&e);
    assert_true(is_blocked(SIGUSR1)); /* not by us */
    set_blocked(SIGUSR1, false);
}

typedef struct sender {
    pthread_t to;
    int number;
    bool directed;
} sender;

static void *send_later(void *userdata) {
    const sender *s = userdata;
    test_sleep_ms(20);
    if (s->directed)
        pthread_kill(s->to, s->number);
    else
        kill(getpid(), s->number);
    return NULL;
}

static void stop_loop(ear *e) {
    weir_loop_stop(e->fixture->loop);
}

static void a_signal_wakes_a_sleeping_loop(void **state) {
    test_fixture *f = *state;
    for (int directed = 0; directed <= 1; directed++) { /* of the process, and of this thread alone */
        sender s = { pthread_self(), SIGUSR2, directed };
        pthread_t thread;
        ear e;
        weir_loop_options options = { .size = sizeof options, .flags = WEIR_LOOP_KEEP_RUNNING };
        test_fixture own;
        test_open_options(&own, NULL, &options);
        begin(&own, &e, SIGUSR2);
        e.then = stop_loop;
        assert_int_equal(pthread_create(&thread, NULL, send_later, &s), 0); /* inherits the mask */
        test_ok(weir_loop_run(own.loop));
        assert_int_equal(e.count, 1);
        assert_int_equal(pthread_join(thread, NULL), 0);
        end(&e);
        test_close(&own);
    }
    run_turns(f, 1);
}

static void a_signal_does_not_keep_run_going(void **state) {
    test_fixture *f = *state;
    ear e;
    begin(f, &e, SIGUSR1);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(test_loop_stats(f).signals_started, 1);
    kill(getpid(), SIGUSR1);
    run_until(f, e.count == 1);
    end(&e);
    assert_int_equal(test_loop_stats(f).signals_started, 0);
}

/* ---- children ---------------------------------------------------------------------------------------- */

static unsigned reaped;

static void reap(ear *e) {
    (void)e;
    while (waitpid(-1, NULL, WNOHANG) > 0)
        reaped++;
}

static void the_end_of_every_child_is_noticed(void **state) {
    test_fixture *f = *state;
    enum { CHILDREN = 5 };
    ear e;
    begin(f, &e, SIGCHLD);
    e.then = reap;
    reaped = 0;
    run_turns(f, 2);
    for (int i = 0; i < CHILDREN; i++) {
        pid_t child = fork();
        assert_true(child >= 0);
        if (child == 0)
            _exit(0);
    }
    run_until(f, reaped == CHILDREN);
    assert_in_range(e.count, 1, CHILDREN);
    end(&e);
}

/* What the header warns of, and what it advises. */
static void a_child_inherits_the_mask_unless_told_otherwise(void **state) {
    test_fixture *f = *state;
    extern char **environ;
    static char *const arguments[] = { (char *)"sh", (char *)"-c", (char *)"kill -TERM $$; exit 7", NULL };
    ear e;
    begin(f, &e, SIGTERM);
    for (int unblocks = 0; unblocks <= 1; unblocks++) {
        posix_spawnattr_t attributes;
        sigset_t none;
        pid_t child;
        int status;
        sigemptyset(&none);
        posix_spawnattr_init(&attributes);
        if (unblocks) {
            posix_spawnattr_setsigmask(&attributes, &none);
            posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSIGMASK);
        }
        assert_int_equal(posix_spawn(&child, "/bin/sh", NULL, &attributes, arguments, environ), 0);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_int_equal(WIFSIGNALED(status), unblocks);
        if (!unblocks)
            assert_int_equal(WEXITSTATUS(status), 7);
        posix_spawnattr_destroy(&attributes);
    }
    end(&e);
}

/* ---- the mask ---------------------------------------------------------------------------------------- */

static void only_what_start_blocked_is_unblocked(void **state) {
    test_fixture *f = *state;
    ear e;
    make(f, &e, SIGUSR1);
    for (int was_blocked = 0; was_blocked <= 1; was_blocked++) {
        set_blocked(SIGUSR1, was_blocked);
        set_blocked(SIGUSR2, was_blocked);
        assert_int_equal(is_blocked(SIGUSR1), was_blocked); /* new alone does nothing */
        test_ok(weir_signal_start(e.signal));
        test_ok(weir_signal_start(e.signal));
        assert_true(is_blocked(SIGUSR1));
        assert_int_equal(is_blocked(SIGUSR2), was_blocked);
        run_turns(f, 2);
        test_ok(weir_signal_stop(e.signal));
        test_ok(weir_signal_stop(e.signal));
        assert_int_equal(is_blocked(SIGUSR1), was_blocked);
        assert_int_equal(is_blocked(SIGUSR2), was_blocked);
    }
    set_blocked(SIGUSR1, false);
    set_blocked(SIGUSR2, false);
    end(&e);
}

static unsigned handled;

static void handle(int number) {
    (void)number;
    handled++;
}

static void stop_it(ear *e) {
    test_ok(weir_signal_stop(e->signal));
}

/* The handler stands for the default action. */
static void what_is_pending_at_stop_has_its_action_at_once(void **state) {
    test_fixture *f = *state;
    struct sigaction action = { .sa_handler = handle }, old;
    ear e;
    assert_int_equal(sigaction(SIGUSR1, &action, &old), 0);
    handled = 0;
    begin(f, &e, SIGUSR1);
    run_turns(f, 2);
    kill(getpid(), SIGUSR1);
    assert_int_equal(handled, 0);
    test_ok(weir_signal_stop(e.signal));
    assert_int_equal(handled, 1);
    run_turns(f, 5);
    assert_int_equal(e.count, 0);
    test_ok(weir_signal_start(e.signal));
    e.then = stop_it;
    kill(getpid(), SIGUSR1);
    run_until(f, e.count == 1);
    kill(getpid(), SIGUSR1); /* not weir's any more */
    assert_int_equal(handled, 2);
    end(&e);
    assert_int_equal(sigaction(SIGUSR1, &old, NULL), 0);
}

/* The first one had blocked it, and took the block with it: the next SIGTERM killed whoever still heard. */
static void of_two_that_hear_the_last_one_unblocks(void **state) {
    test_fixture *f = *state;
    ear first, second;
    begin(f, &first, SIGTERM);
    begin(f, &second, SIGTERM);
    for (unsigned i = 1; i <= 10; i++) {
        kill(getpid(), SIGTERM);
        run_until(f, first.count + second.count == i); /* one of them */
        run_turns(f, 2);
        assert_int_equal(first.count + second.count, i);
    }
    end(&first);
    assert_true(is_blocked(SIGTERM));
    unsigned count = second.count;
    kill(getpid(), SIGTERM);
    run_until(f, second.count == count + 1);
    end(&second);
    assert_false(is_blocked(SIGTERM));
}

typedef struct other_loop {
    ear ear; /* first: what is heard comes with it */
    test_fixture fixture;
    _Atomic(unsigned) count;
    pthread_barrier_t ready;
    atomic_bool end;
} other_loop;

static void count_it(ear *e) {
    atomic_fetch_add(&((other_loop *)(void *)e)->count, 1);
}

static void *run_another_loop(void *userdata) {
    other_loop *o = userdata;
    weir_loop *loop;
    test_ok(weir_loop_new(NULL, &loop));
    o->fixture.loop = loop;
    begin(&o->fixture, &o->ear, SIGUSR1);
    o->ear.then = count_it;
    assert_true(weir_loop_run_once(loop, 0) >= 0);
    pthread_barrier_wait(&o->ready);
    while (!atomic_load(&o->end))
        assert_true(weir_loop_run_once(loop, 1000000) >= 0);
    assert_true(is_blocked(SIGUSR1)); /* before and after: it was inherited */
    end(&o->ear);
    assert_true(is_blocked(SIGUSR1));
    test_ok(weir_loop_close(loop));
    weir_loop_unref(loop);
    return NULL;
}

static void of_two_loops_one_hears(void **state) {
    test_fixture *f = *state;
    static other_loop o;
    pthread_t thread;
    ear e;
    begin(f, &e, SIGUSR1);
    run_turns(f, 2);
    pthread_barrier_init(&o.ready, NULL, 2);
    assert_int_equal(pthread_create(&thread, NULL, run_another_loop, &o), 0);
    pthread_barrier_wait(&o.ready);
    for (unsigned i = 1; i <= 20; i++) {
        kill(getpid(), SIGUSR1);
        run_until(f, e.count + atomic_load(&o.count) >= i);
        assert_int_equal(e.count + atomic_load(&o.count), i);
    }
    atomic_store(&o.end, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    pthread_barrier_destroy(&o.ready);
    kill(getpid(), SIGUSR1);
    unsigned count = e.count;
    run_until(f, e.count == count + 1); /* and now there is only one */
    end(&e);
}

/* ---- life --------------------------------------------------------------------------------------------- */

static void drop_it(ear *e) {
    end(e);
}

static void a_signal_may_be_dropped_in_its_callback(void **state) {
    test_fixture *f = *state;
    unsigned fds = test_count_fds();
    ear e;
    begin(f, &e, SIGUSR1);
    e.then = drop_it;
    assert_int_equal(test_count_fds(), fds + 1);
    kill(getpid(), SIGUSR1);
    run_until(f, e.count == 1);
    assert_int_equal(test_count_fds(), fds);
    assert_false(is_blocked(SIGUSR1));
}

static void *unref_elsewhere(void *signal) {
    return weir_signal_unref(signal);
}

static void a_signal_dropped_on_another_thread_is_unblocked_on_its_own(void **state) {
    test_fixture *f = *state;
    pthread_t thread;
    ear e;
    begin(f, &e, SIGUSR1);
    run_turns(f, 2);
    assert_int_equal(pthread_create(&thread, NULL, unref_elsewhere, e.signal), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(is_blocked(SIGUSR1));
    run_until(f, !is_blocked(SIGUSR1));
    assert_int_equal(e.count, 0);
}

static void a_loop_closes_with_signals_started(void **state) {
    test_fixture *f = *state;
    ear kept, dropped, pending;
    begin(f, &kept, SIGUSR1);
    begin(f, &dropped, SIGUSR2);
    begin(f, &pending, SIGCHLD); /* ignored by default, so that it may be pending when it is unblocked */
    run_turns(f, 3);
    kill(getpid(), SIGCHLD);
    end(&dropped);
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(pending.count, 0);
    assert_false(is_blocked(SIGUSR1) || is_blocked(SIGUSR2) || is_blocked(SIGCHLD));
    assert_int_equal(weir_signal_start(kept.signal), -ESHUTDOWN);
    assert_false(is_blocked(SIGUSR1));
    test_ok(weir_signal_stop(kept.signal));
    end(&kept);
    end(&pending);
}

static void without_a_descriptor_nothing_is_blocked(void **state) {
    test_fixture *f = *state;
    struct rlimit old, none;
    ear e;
    make(f, &e, SIGUSR1);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    none = old;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    int r = weir_signal_start(e.signal);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    assert_int_equal(r, -EMFILE);
    assert_false(is_blocked(SIGUSR1));
    test_ok(weir_signal_start(e.signal));
    kill(getpid(), SIGUSR1);
    run_until(f, e.count == 1);
    end(&e);
}

static unsigned closes;

static void shorten(ear *e) {
    test_ok(weir_loop_drain(e->fixture->loop, e->count == 1 ? WEIR_NEVER : 0));
}

static void count_close(witness *w, char event, const weir_slice *slice) {
    (void)w, (void)slice;
    closes += event == 'c';
}

/* What a server does: drain at the first SIGTERM, and not wait any more at the second. */
static void signals_are_heard_while_a_loop_drains(void **state) {
    test_fixture *f = *state;
    static witness w;
    ear e;
    int peer = witness_pair(f, &w, false, NULL);
    closes = 0;
    w.hook = count_close;
    begin(f, &e, SIGTERM);
    e.then = shorten;
    kill(getpid(), SIGTERM);
    run_until(f, e.count == 1);
    run_turns(f, 5);
    assert_int_equal(closes, 0);
    kill(getpid(), SIGTERM);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(e.count, 2);
    assert_int_equal(closes, 1);
    assert_int_equal(w.reason, WEIR_CLOSE_DRAIN);
    end(&e);
    close(peer);
}

#define signal_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        signal_test(a_signal_is_heard),
        signal_test(signals_in_a_row_are_one),
        signal_test(a_signal_that_was_pending_before_start_is_heard),
        signal_test(a_signal_wakes_a_sleeping_loop),
        signal_test(a_signal_does_not_keep_run_going),
        signal_test(the_end_of_every_child_is_noticed),
        signal_test(a_child_inherits_the_mask_unless_told_otherwise),
        signal_test(only_what_start_blocked_is_unblocked),
        signal_test(what_is_pending_at_stop_has_its_action_at_once),
        signal_test(of_two_that_hear_the_last_one_unblocks),
        signal_test(of_two_loops_one_hears),
        signal_test(a_signal_may_be_dropped_in_its_callback),
        signal_test(a_signal_dropped_on_another_thread_is_unblocked_on_its_own),
        signal_test(a_loop_closes_with_signals_started),
        signal_test(without_a_descriptor_nothing_is_blocked),
        signal_test(signals_are_heard_while_a_loop_drains),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
