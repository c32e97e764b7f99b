/* SPDX-License-Identifier: MIT */
/* The turns of the epoll backend: when the kernel is asked and for how long, and what it takes to begin. */
#include "unit/epoll_rig.h"

static owner o[3];
static int fds[3];

static int wait_for(int64_t timeout_ns) {
    return r.backend->verbs->wait(r.backend, timeout_ns);
}

static void open_receives_of(unsigned count, const rig_options *options) {
    owners_init(o, 3);
    epoll_open(options);
    for (unsigned i = 0; i < count; i++) {
        fds[i] = epoll_socket();
        r.backend->verbs->receive(r.backend, &o[i].op, fds[i], 0, false);
    }
}

static void open_receives(unsigned count) {
    open_receives_of(count, &(rig_options){ 0 });
}

static void close_receives(unsigned count) {
    for (unsigned i = 0; i < count; i++)
        r.backend->verbs->cancel(r.backend, &o[i].op);
    epoll_settle();
    for (unsigned i = 0; i < count; i++)
        epoll_close_socket(fds[i]);
    rig_close();
}

/* ---- turns ------------------------------------------------------------------------------------------- */

static void wait_lasts_as_long_as_it_is_told(void **state) {
    (void)state;
    open_receives(1);
    static const int64_t timeouts[] = { 0, 1, 1500000, INT64_MAX / 4 };
    for (size_t i = 0; i < sizeof timeouts / sizeof *timeouts; i++) {
        test_ok(wait_for(timeouts[i]));
        assert_int_equal(script_last_wait().timeout_ns, timeouts[i]);
        assert_int_equal(script_last_wait().count, i + 1);
        assert_int_equal(r.backend->stats.enters, i + 1);
    }
    script_ready(fds[0], EPOLLIN);
    test_ok(wait_for(-1));
    assert_int_equal(script_last_wait().timeout_ns, -1);
    rig_dispatch();
    close_receives(1);
}

/* Something to do is done first; but a loop that always has something to do hears of the others, too. */
static void turn_without_the_kernel_is_followed_by_one_with_it(void **state) {
    (void)state;
    enum { LARGE = 64 << 10, IN_A_ROW = 4 };
    static const char bytes[12 * IN_A_ROW * LARGE];
    open_receives_of(2, &(rig_options){ .buffer_bytes = LARGE });
    script_set_receive(bytes, sizeof bytes);
    script_ready(fds[0], EPOLLIN);
    test_ok(wait_for(0));
    rig_dispatch();
    assert_int_equal(o[0].count, IN_A_ROW); /* and there is more */
    unsigned waits = script_last_wait().count;
    for (unsigned i = 1; i <= 4; i++) {
        test_ok(wait_for(1000000));
        assert_int_equal(script_last_wait().count, waits + i - 1);
        rig_dispatch();
        test_ok(wait_for(1000000));
        assert_int_equal(script_last_wait().count, waits + i);
        assert_int_equal(script_last_wait().timeout_ns, 0); /* no sleep over work */
        rig_dispatch();
        if (i == 1)
            script_ready(fds[1], EPOLLIN);
        assert_int_equal(o[1].count > 0,
                         i > 2); /* told of at the end of the second one, and behind the other then */
    }
    close_receives(2);
}

/* After a rest, a send is tried before the kernel is asked. */
static void idle_turn_ends_the_alternation(void **state) {
    (void)state;
    open_receives(1);
    for (int i = 0; i < 3; i++) {
        test_ok(wait_for(0));
        unsigned waits = script_last_wait().count;
        r.backend->verbs->cancel(r.backend, &o->op);
        assert_true(r.backend->verbs->is_ready(r.backend));
        test_ok(wait_for(1000));
        assert_int_equal(script_last_wait().count, waits);
        rig_dispatch();
        told_final(o, -ECANCELED);
        assert_false(r.backend->verbs->is_ready(r.backend));
        r.backend->verbs->receive(r.backend, &o->op, fds[0], 0, false);
    }
    close_receives(1);
}

static void interrupted_wait_is_an_empty_turn(void **state) {
    (void)state;
    open_receives(1);
    script_fail(SCRIPT_EPOLL_WAIT, -EINTR, 1);
    test_ok(wait_for(1000));
    assert_int_equal(rig_dispatch(), 0);
    script_fail(SCRIPT_EPOLL_WAIT, -ENOMEM, 1);
    script_ready(fds[0], EPOLLIN);
    script_set_receive("abc", 3);
    assert_int_equal(wait_for(1000), -ENOMEM);
    assert_int_equal(rig_dispatch(), 0);
    test_ok(wait_for(1000)); /* nothing was lost */
    rig_dispatch();
    told_bytes(o, "abc");
    close_receives(1);
}

static void wake_ends_a_sleep_and_is_nothing_else(void **state) {
    (void)state;
    open_receives(1);
    int wake = atomic_load(&r.waker->fd);
    assert_int_equal(script_set_at(0).operation, EPOLL_CTL_ADD);
    assert_int_equal(script_set_at(0).fd, wake);
    assert_int_equal(script_set_at(0).events, EPOLLIN | EPOLLET); /* it is never read */
    script_ready(wake, EPOLLIN);
    test_ok(wait_for(-1));
    assert_int_equal(script_last_wait().told, 1);
    assert_int_equal(rig_dispatch(), 0);
    told_nothing_more(o);
    assert_int_equal(script_sets(), 2);
    close_receives(1);
}

static void many_events_are_taken_in_several_waits(void **state) {
    (void)state;
    open_receives(1);
    script_set_receive("abc", 3);
    for (int i = 0; i < WEIR__EPOLL_EVENTS; i++)
        script_ready(atomic_load(&r.waker->fd), EPOLLIN);
    script_ready(fds[0], EPOLLIN);
    rig_turn();
    assert_int_equal(script_last_wait().told, WEIR__EPOLL_EVENTS);
    told_nothing_more(o);
    rig_turn();
    told_bytes(o, "abc");
    close_receives(1);
}

static void what_is_under_way_is_counted(void **state) {
    (void)state;
    open_receives(2);
    for (unsigned i = 0; i < 2; i++) {
        assert_false(r.backend->verbs->is_quiet(r.backend));
        r.backend->verbs->cancel(r.backend, &o[i].op);
        assert_false(r.backend->verbs->is_quiet(r.backend)); /* until it has been told */
        epoll_settle();
        told_final(&o[i], -ECANCELED);
    }
    assert_true(r.backend->verbs->is_quiet(r.backend));
    close_receives(2);
}

/* ---- the beginning ----------------------------------------------------------------------------------- */

static void backend_makes_no_ring(void **state) {
    (void)state;
    open_receives(1);
    assert_int_equal(r.backend->mode, WEIR_BACKEND_EPOLL);
    epoll_settle();
    close_receives(1);
    assert_int_equal(script_attempts(), 0);
    assert_int_equal(script_last_enter().count, 0);
}

/* A second one, over the pool and with the waker of the first. */
static void begin_without(enum script_call call, int error) {
    epoll_open_default();
    weir__backend *second = NULL;
    unsigned open = script_fds_open();
    uint64_t blocks = atomic_load(&r.memory.live_blocks);
    script_fail(call, error, 1);
    assert_int_equal(weir__epoll_new(&r.memory.allocator, r.pool, r.waker, &second), error);
    assert_null(second);
    assert_int_equal(script_fds_open(), open);
    assert_int_equal(atomic_load(&r.memory.live_blocks), blocks);
    rig_close();
}

static void backend_that_cannot_begin_leaves_nothing(void **state) {
    (void)state;
    begin_without(SCRIPT_EPOLL, -EMFILE);
    begin_without(SCRIPT_EPOLL, -ENOMEM);
    begin_without(SCRIPT_EPOLL_SET, -ENOMEM);
    begin_without(SCRIPT_EPOLL_SET, -ENOSPC);
}

/* A pool that cannot have a single buffer. */
static void backend_without_a_buffer_is_refused(void **state) {
    (void)state;
    epoll_open_default();
    weir__backend *second = NULL;
    weir__pool_buffer taken;
    while (weir__pool_publish(r.pool, &taken))
        ;
    int waker = atomic_load(&r.waker->fd); /* the script knows of one instance only */
    test_ok(weir__sys_epoll_set(weir__epoll_of(r.backend)->fd, EPOLL_CTL_DEL, waker, 0, 0));
    unsigned open = script_fds_open();
    uint64_t blocks = atomic_load(&r.memory.live_blocks);
    assert_int_equal(weir__epoll_new(&r.memory.allocator, r.pool, r.waker, &second), -ENOMEM);
    assert_null(second);
    assert_int_equal(script_fds_open(), open);
    assert_int_equal(atomic_load(&r.memory.live_blocks), blocks);
    rig_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        epoll_test(wait_lasts_as_long_as_it_is_told),
        epoll_test(turn_without_the_kernel_is_followed_by_one_with_it),
        epoll_test(idle_turn_ends_the_alternation),
        epoll_test(interrupted_wait_is_an_empty_turn),
        epoll_test(wake_ends_a_sleep_and_is_nothing_else),
        epoll_test(many_events_are_taken_in_several_waits),
        epoll_test(what_is_under_way_is_counted),
        epoll_test(backend_makes_no_ring),
        epoll_test(backend_that_cannot_begin_leaves_nothing),
        epoll_test(backend_without_a_buffer_is_refused),
    };
    return cmocka_run_group_tests_name("epoll-turn", tests, NULL, NULL);
}
