/* SPDX-License-Identifier: MIT */
/* When completions come, what a full queue does to them, and what a cancellation means. */
#include "facts/facts.h"

static int ends[2], others[2];

static void begin(unsigned cq_entries) {
    open_ring(4, cq_entries);
    open_group(0, INCREMENTAL);
    pair(ends);
}

/* ---- entering --------------------------------------------------------------------------------------- */

static void ring_cannot_be_entered_before_it_is_enabled(void) {
    open_disabled_ring(4, 8);
    assert_int_equal(enter(), -EBADFD);
    open_group(0, INCREMENTAL); /* this can be done */
    cancel(77, 1);
    assert_int_equal(enter(), -EBADFD);
    test_ok(weir__ring_enable(ring()));
    assert_int_equal(enter(), 1); /* it was kept */
    is(next(), 1, -ENOENT, 0);
}

static void wait_in_vain_says_so(void) {
    begin(16);
    publish(0, 4096, 1);
    assert_int_equal(weir__ring_enter(ring(), 1, IORING_ENTER_GETEVENTS, 1000000), -ETIME);
    receive(ends[0], 1, 0, 0);
    /* What was submitted is the more important news. */
    assert_int_equal(weir__ring_enter(ring(), 1, IORING_ENTER_GETEVENTS, 1000000), 1);
    assert_int_equal(weir__ring_enter(ring(), 1, IORING_ENTER_GETEVENTS, 1000000), -ETIME);
    assert_int_equal(enter(), 0);
}

static void wait_returns_at_once_if_a_completion_lies_there(void) {
    begin(16);
    cancel(77, 1);
    assert_int_equal(enter(), 1);
    assert_int_equal(weir__ring_enter(ring(), 1, IORING_ENTER_GETEVENTS, INT64_C(3600) * 1000000000), 0);
    is(next(), 1, -ENOENT, 0);
}

static void submission_queue_is_full_until_the_next_enter(void) {
    open_ring(4, 16);
    for (unsigned i = 0; i < 4; i++)
        cancel(77, i);
    assert_null(weir__ring_sqe(ring()));
    assert_null(weir__ring_sqe(ring()));
    assert_int_equal(enter(), 4);
    for (unsigned i = 0; i < 4; i++)
        is(next(), i, -ENOENT, 0);
    cancel(77, 5);
    is(next(), 5, -ENOENT, 0);
}

static void deferred_work_runs_in_enter_alone(void) {
    weir__cqe cqe;
    begin(16);
    publish(0, 4096, 1);
    receive(ends[0], 1, 0, 0);
    nothing_comes();
    assert_int_equal(weir__ring_flags(ring()) & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW), 0);
    write_bytes(ends[1], 10);
    for (int i = 0; i < 1000000 && (weir__ring_flags(ring()) & IORING_SQ_TASKRUN) == 0; i++)
        weir__sys_yield(); /* over TCP it takes its time */
    assert_true((weir__ring_flags(ring()) & IORING_SQ_TASKRUN) != 0);
    assert_false(weir__ring_cqe(ring(), &cqe));
    assert_int_equal(enter(), 0);
    assert_true(weir__ring_cqe(ring(), &cqe));
    is_data(cqe, 1, 10, 0, F_MORE | F_BUF_MORE);
    assert_int_equal(weir__ring_flags(ring()) & IORING_SQ_TASKRUN, 0);
}

/* Since Linux 6.13 some twenty are run by one enter. While more are left, the ring's flags say so. */
static void enter_need_not_run_all_deferred_work_and_tells(void) {
    enum { COUNT = 60 };
    int fds[COUNT][2];
    open_ring(COUNT, 256);
    open_group(0, INCREMENTAL);
    publish(0, 4096, 1);
    for (unsigned i = 0; i < COUNT; i++) {
        pair(fds[i]);
        receive(fds[i][0], 1 + i, 0, 0);
    }
    nothing_comes();
    for (unsigned i = 0; i < COUNT; i++)
        write_bytes(fds[i][1], 8);
    unsigned count = 0, enters = 0;
    weir__cqe cqe;
    do {
        assert_int_equal(enter(), 0);
        enters++;
        while (weir__ring_cqe(ring(), &cqe)) {
            count++;
            read_bytes(cqe, 0, fds[cqe.user_data - 1][1]);
        }
    } while ((weir__ring_flags(ring()) & IORING_SQ_TASKRUN) != 0);
    assert_in_range(enters, is_before(6, 13) ? 1 : 2, COUNT);
    if (!is_tcp())
        assert_int_equal(count, COUNT);
    for (; count < COUNT; count++) {
        cqe = next();
        read_bytes(cqe, 0, fds[cqe.user_data - 1][1]);
    }
    nothing_comes();
}

/* ---- a full completion queue ------------------------------------------------------------------------- */

static void full_queue_ends_a_multishot_whose_data_is_intact(void) {
    begin(4);
    publish(0, 16, 16);
    write_bytes(ends[1], 10 * 16);
    until(ends[0], POLLIN);
    receive(ends[0], 1, 0, 0);
    assert_int_equal(enter(), 1);
    while ((weir__ring_flags(ring()) & IORING_SQ_TASKRUN) != 0)
        assert_int_equal(enter(), 0);
    assert_true((weir__ring_flags(ring()) & IORING_SQ_CQ_OVERFLOW) != 0);
    weir__cqe cqe;
    for (unsigned i = 0; i < 4; i++) {
        assert_true(weir__ring_cqe(ring(), &cqe));
        is_data(cqe, 1, 16, i, F_MORE);
        read_bytes(cqe, 0, ends[1]);
    }
    assert_false(weir__ring_cqe(ring(), &cqe)); /* the fifth is not in the queue */
    assert_int_equal(enter(), 0);
    assert_int_equal(weir__ring_flags(ring()) & IORING_SQ_CQ_OVERFLOW, 0);
    assert_true(weir__ring_cqe(ring(), &cqe));
    is_data(cqe, 1, 16, 4, 0);
    read_bytes(cqe, 0, ends[1]);
    nothing_comes();
    receive(ends[0], 1, 0, 0);
    while (bytes_read(ends[1]) < 10 * 16) {
        cqe = next();
        read_bytes(cqe, 0, ends[1]);
        if ((cqe.flags & F_MORE) == 0)
            receive(ends[0], 1, 0, 0);
    }
}

static void overflown_completions_are_flushed_in_their_order(void) {
    begin(4);
    pair(others);
    publish(0, 16, 64);
    write_bytes(ends[1], 10 * 16);
    write_bytes(others[1], 10 * 16);
    until(ends[0], POLLIN);
    until(others[0], POLLIN);
    receive(ends[0], 1, 0, 0);
    receive(others[0], 2, 0, 0);
    cancel(77, 3);
    cancel(77, 4);
    assert_int_equal(enter(), 4);
    /* Bytes are told apart by the order alone, so this fails at the first that is out of it. */
    unsigned answers = 0;
    while (bytes_read(ends[1]) + bytes_read(others[1]) < 20 * 16) {
        weir__cqe cqe = next();
        if (cqe.user_data > 2) {
            assert_int_equal(cqe.res, -ENOENT);
            assert_int_equal(cqe.user_data, 3 + answers++);
            continue;
        }
        bool is_first = cqe.user_data == 1;
        read_bytes(cqe, 0, is_first ? ends[1] : others[1]);
        if ((cqe.flags & F_MORE) == 0)
            receive(is_first ? ends[0] : others[0], cqe.user_data, 0, 0);
    }
    assert_int_equal(answers, 2);
    assert_int_equal(weir__ring_flags(ring()) & IORING_SQ_CQ_OVERFLOW, 0);
}

static void overflow_loses_nothing_that_is_no_multishot(void) {
    open_ring(16, 16);
    for (unsigned i = 0; i < 64; i += 16) {
        for (unsigned j = 0; j < 16; j++)
            cancel(77, i + j);
        int r = enter();
        assert_int_equal(r, 16);
    }
    for (unsigned i = 0; i < 64; i++)
        is(next(), i, -ENOENT, 0);
    nothing_comes();
}

/* ---- cancelling ------------------------------------------------------------------------------------- */

/* Both complete, in any order. */
static void both_complete(uint64_t target, uint64_t user) {
    is(next_of(user), user, 0, 0);
    is(next_of(target), target, -ECANCELED, 0);
    nothing_comes();
}

static void cancellation_and_its_target_both_complete(void) {
    begin(16);
    publish(0, 4096, 1);
    receive(ends[0], 1, 0, 0);
    nothing_comes();
    cancel(1, 2);
    both_complete(1, 2);
    receive(ends[0], 1, 0, POLL_FIRST);
    cancel(1, 2); /* in one batch */
    both_complete(1, 2);
}

static void cancellation_of_what_is_not_there_says_so(void) {
    begin(16);
    publish(0, 4096, 1);
    cancel(1, 2);
    is(next(), 2, -ENOENT, 0);
    receive(ends[0], 1, 0, 0);
    close_now(ends[1]);
    is(next(), 1, 0, 0);
    cancel(1, 2);
    is(next(), 2, -ENOENT, 0);
}

static void cancellation_may_be_asked_for_twice(void) {
    begin(16);
    publish(0, 4096, 1);
    receive(ends[0], 1, 0, 0);
    nothing_comes();
    cancel(1, 2);
    cancel(1, 3);
    is(next_of(1), 1, -ECANCELED, 0);
    is(next_of(2), 2, 0, 0);
    weir__cqe cqe = next_of(3);
    assert_true(cqe.res == 0 || cqe.res == -ENOENT || cqe.res == -EALREADY);
    nothing_comes();
}

static void cancelled_receive_leaves_its_data_in_the_socket(void) {
    begin(16);
    pair(others);
    publish(0, 4096, 1);
    receive(ends[0], 1, 0, 0);
    receive(others[0], 5, 0, 0);
    write_bytes(others[1], 50);
    weir__cqe cqe = next();
    is_data(cqe, 5, 50, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, others[1]);
    write_bytes(ends[1], 100); /* the cancellation is first: nobody has entered since */
    cancel(1, 2);
    both_complete(1, 2);
    receive(ends[0], 1, 0, 0);
    cqe = next();
    is_data(cqe, 1, 100, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
}

static void cancelled_poll_completes(void) {
    begin(16);
    poll_at(ends[0], 1, POLLRDHUP, true);
    nothing_comes();
    cancel(1, 2);
    both_complete(1, 2);
}

static void cancelled_send_completes(void) {
    static uint8_t bytes[64];
    begin(16);
    test_ok(weir__sys_setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, 16384));
    send_that_waits(ends[0], 1, bytes, sizeof bytes);
    cancel(1, 2);
    both_complete(1, 2);
    drain(ends[1], ends[0]); /* and not a byte of it was sent */
    assert_int_equal(weir__sys_send(ends[0], "x", 1), 1);
}

static void cancelled_accept_completes(void) {
    open_ring(4, 16);
    int listener = listen_somewhere(8);
    accept_at(listener, 1, true);
    nothing_comes();
    cancel(1, 2);
    both_complete(1, 2);
}

const fact facts_of_completions[] = {
    FACT(ring_cannot_be_entered_before_it_is_enabled, UNIX),
    FACT(wait_in_vain_says_so, UNIX),
    FACT(wait_returns_at_once_if_a_completion_lies_there, UNIX),
    FACT(submission_queue_is_full_until_the_next_enter, UNIX),
    FACT(deferred_work_runs_in_enter_alone, ANY),
    FACT(enter_need_not_run_all_deferred_work_and_tells, ANY),
    FACT(full_queue_ends_a_multishot_whose_data_is_intact, ANY),
    FACT(overflown_completions_are_flushed_in_their_order, ANY),
    FACT(overflow_loses_nothing_that_is_no_multishot, UNIX),
    FACT(cancellation_and_its_target_both_complete, ANY),
    FACT(cancellation_of_what_is_not_there_says_so, ANY),
    FACT(cancellation_may_be_asked_for_twice, ANY),
    FACT(cancelled_receive_leaves_its_data_in_the_socket, ANY),
    FACT(cancelled_poll_completes, ANY),
    FACT(cancelled_send_completes, ANY),
    FACT(cancelled_accept_completes, TCP),
    { 0 },
};
