/* SPDX-License-Identifier: MIT */
/* Polls of foreign descriptors over epoll, whose owners close them without a word; and what is known of a descriptor,
 * and for how long. */
#include <poll.h>

#include "unit/epoll_rig.h"

static owner o[4];
static int fd;

static void open_foreign(void) {
    owners_init(o, 4);
    epoll_open_default();
    fd = weir__sys_socket(AF_INET, SOCK_STREAM);
}

static void start_poll(owner *it, unsigned events) {
    r.backend->verbs->poll(r.backend, &it->op, fd, events);
    told_nothing_more(it);
}

/* The turn's end, when polls that nobody renewed are forgotten. */
static void end_turn(void) {
    rig_turn();
    rig_turn();
}

static void close_foreign(void) {
    for (unsigned i = 0; i < 4; i++)
        r.backend->verbs->cancel(r.backend, &o[i].op);
    epoll_settle();
    end_turn();
    weir__sys_close(fd);
    rig_close();
}

/* ---- answers ----------------------------------------------------------------------------------------- */

static void poll_answers_once(void **state) {
    (void)state;
    open_foreign();
    start_poll(o, POLLIN | POLLOUT);
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLOUT);
    epoll_settle();
    told_nothing_more(o);
    epoll_tell(fd, EPOLLIN);
    told_final(o, POLLIN);
    assert_true(r.backend->verbs->is_quiet(r.backend));
    close_foreign();
}

static void poll_tells_what_was_asked_for_and_errors(void **state) {
    (void)state;
    static const uint32_t polls[][3] = { { POLLIN, EPOLLIN | EPOLLRDHUP, POLLIN },
                                         { POLLOUT, EPOLLIN | EPOLLOUT, POLLOUT },
                                         { POLLIN, EPOLLERR | EPOLLOUT | EPOLLRDHUP, POLLERR },
                                         { POLLIN, EPOLLHUP | EPOLLIN, POLLIN | POLLHUP },
                                         { 0, EPOLLHUP | EPOLLIN, POLLHUP } };
    open_foreign();
    for (size_t i = 0; i < sizeof polls / sizeof *polls; i++) {
        start_poll(o, polls[i][0]);
        epoll_tell(fd, polls[i][1]);
        told_final(o, (int32_t)polls[i][2]);
        end_turn();
    }
    close_foreign();
}

static void poll_is_not_told_of_what_it_did_not_ask_for(void **state) {
    (void)state;
    open_foreign();
    start_poll(o, POLLOUT);
    epoll_tell(fd, EPOLLIN | EPOLLRDHUP | EPOLLPRI);
    told_nothing_more(o);
    epoll_tell(fd, EPOLLOUT);
    told_final(o, POLLOUT);
    close_foreign();
}

static void polls_of_one_descriptor_are_answered_apart(void **state) {
    (void)state;
    open_foreign();
    start_poll(&o[0], POLLIN);
    start_poll(&o[1], POLLOUT);
    start_poll(&o[2], POLLIN);
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLIN);
    epoll_expect_set(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT);
    epoll_expect_set(EPOLL_CTL_MOD, fd, EPOLLIN | EPOLLOUT);
    epoll_tell(fd, EPOLLIN);
    told_final(&o[0], POLLIN);
    told_final(&o[2], POLLIN);
    told_nothing_more(&o[1]);
    end_turn();
    assert_true(script_is_registered(fd)); /* one is still there */
    epoll_tell(fd, EPOLLOUT);
    told_final(&o[1], POLLOUT);
    end_turn();
    assert_false(script_is_registered(fd));
    close_foreign();
}

static void poll_that_fails_is_final(void **state) {
    (void)state;
    static const int errors[] = { -EBADF, -ENOMEM, -ENOSPC };
    open_foreign();
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_fail(SCRIPT_EPOLL_SET, errors[i], 1);
        start_poll(o, POLLIN);
        epoll_settle();
        told_final(o, errors[i]);
    }
    r.backend->verbs->poll(r.backend, &o->op, -1, POLLIN);
    epoll_settle();
    told_final(o, -EBADF);
    close_foreign();
}

/* A regular file is always ready, and epoll does not take it. */
static void regular_file_is_always_ready(void **state) {
    (void)state;
    open_foreign();
    for (int i = 0; i < 3; i++) {
        script_fail(SCRIPT_EPOLL_SET, -EPERM, 1);
        start_poll(o, POLLIN | POLLOUT);
        assert_true(r.backend->verbs->is_ready(r.backend));
        epoll_settle();
        told_final(o, POLLIN | POLLOUT);
    }
    close_foreign();
}

/* ---- registrations ----------------------------------------------------------------------------------- */

/* Only then does the kernel tell of what was so before, and has been told. */
static void poll_that_is_renewed_registers_again(void **state) {
    (void)state;
    open_foreign();
    start_poll(o, POLLIN);
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLIN);
    for (int i = 0; i < 3; i++) {
        script_ready(fd, EPOLLHUP);
        rig_turn();
        told_final(o, POLLHUP);
        start_poll(o, POLLIN); /* before the turn ends */
        epoll_expect_set(EPOLL_CTL_MOD, fd, EPOLLIN);
        epoll_settle();
    }
    epoll_expect_no_set();
    close_foreign();
}

static void poll_that_nobody_renews_is_deregistered(void **state) {
    (void)state;
    open_foreign();
    start_poll(o, POLLIN);
    script_ready(fd, EPOLLHUP);
    rig_turn();
    told_final(o, POLLHUP);
    assert_true(script_is_registered(fd)); /* it may be in this turn */
    end_turn();
    assert_false(script_is_registered(fd));
    start_poll(o, POLLIN);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_turn();
    told_final(o, -ECANCELED);
    end_turn();
    assert_false(script_is_registered(fd));
    close_foreign();
}

/* One that asks for errors alone counted as not registered, as there was nothing in it that it asked for. The kernel kept it,
 * as long as anybody had the file open, and told of it under the number, which was another file's by then. */
static void poll_of_errors_alone_is_deregistered(void **state) {
    (void)state;
    open_foreign();
    start_poll(o, 0);
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLERR);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_turn();
    told_final(o, -ECANCELED);
    end_turn();
    epoll_expect_set(EPOLL_CTL_DEL, fd, 0);
    assert_false(script_is_registered(fd));
    start_poll(o, 0);
    script_ready(fd, EPOLLERR);
    rig_turn();
    told_final(o, POLLERR);
    end_turn();
    assert_false(script_is_registered(fd));
    close_foreign();
}

/* And when another poll of the file had what it wanted, it was the one that was deregistered. */
static void poll_of_errors_alone_stays_when_another_is_told(void **state) {
    (void)state;
    open_foreign();
    start_poll(&o[0], 0);
    start_poll(&o[1], POLLIN);
    epoll_tell(fd, EPOLLIN);
    told_final(&o[1], POLLIN);
    epoll_tell(fd, EPOLLIN); /* which nobody wants any more */
    assert_true(script_is_registered(fd));
    epoll_tell(fd, EPOLLERR);
    told_final(&o[0], POLLERR);
    close_foreign();
}

/* The number was closed, and is another file's. */
static void number_that_is_another_files_is_registered_anew(void **state) {
    (void)state;
    open_foreign();
    start_poll(o, POLLIN);
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLIN);
    script_ready(fd, EPOLLHUP);
    rig_turn();
    told_final(o, POLLHUP);
    weir__epoll *e = weir__epoll_of(r.backend);
    test_ok(weir__sys_epoll_set(e->fd, EPOLL_CTL_DEL, fd, 0, 0)); /* as its close does */
    epoll_expect_set(EPOLL_CTL_DEL, fd, 0);
    start_poll(o, POLLIN);
    epoll_expect_set(EPOLL_CTL_MOD, fd, EPOLLIN);
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLIN);
    epoll_tell(fd, EPOLLIN);
    told_final(o, POLLIN);
    close_foreign();
}

/* And of a number that is new to us, the kernel may know a file that somebody else keeps open. */
static void file_that_the_kernel_knows_is_changed(void **state) {
    (void)state;
    open_foreign();
    test_ok(weir__sys_epoll_set(weir__epoll_of(r.backend)->fd, EPOLL_CTL_ADD, fd, EPOLLIN, (uint64_t)fd));
    epoll_sets_seen++;
    start_poll(o, POLLOUT);
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLOUT);
    epoll_expect_set(EPOLL_CTL_MOD, fd, EPOLLOUT);
    epoll_tell(fd, EPOLLOUT);
    told_final(o, POLLOUT);
    close_foreign();
}

/* A descriptor that was polled and given to a stream afterwards: the kernel may know nothing of it. */
static void stream_on_a_number_that_was_polled_is_registered(void **state) {
    (void)state;
    open_foreign();
    start_poll(o, POLLIN | POLLRDHUP | POLLPRI);
    epoll_expect_set(EPOLL_CTL_ADD, fd, input);
    script_ready(fd, EPOLLPRI | EPOLLRDHUP);
    rig_turn();
    told_final(o, POLLPRI | POLLRDHUP);
    test_ok(r.backend->verbs->admit(r.backend, fd)); /* what was told is of another file */
    r.backend->verbs->receive(r.backend, &o[1].op, fd, 0, false);
    epoll_expect_set(EPOLL_CTL_MOD, fd, input); /* nothing is new in it, but that it is said */
    end_turn();
    assert_true(script_is_registered(fd)); /* it is used */
    assert_int_equal(script_receives(), 0);
    r.backend->verbs->cancel(r.backend, &o[1].op);
    epoll_settle();
    epoll_close_socket(fd);
    fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    close_foreign();
}

static void poll_can_be_cancelled_in_each_state(void **state) {
    (void)state;
    open_foreign();
    start_poll(o, POLLIN);
    r.backend->verbs->cancel(r.backend, &o->op);
    r.backend->verbs->cancel(r.backend, &o->op);
    told_nothing_more(o);
    script_ready(fd, EPOLLIN); /* too late */
    epoll_settle();
    told_final(o, -ECANCELED);
    start_poll(o, POLLIN);
    script_ready(fd, EPOLLIN);
    rig_submit();
    rig_submit();
    r.backend->verbs->cancel(r.backend, &o->op); /* too late, too: it has been told */
    rig_dispatch();
    told_final(o, POLLIN);
    close_foreign();
}

/* ---- what is known of a descriptor ------------------------------------------------------------------- */

/* A child of fork may have it still: closing alone would leave it registered, and told of. */
static void descriptor_is_deregistered_before_it_is_closed(void **state) {
    (void)state;
    open_foreign();
    test_ok(r.backend->verbs->admit(r.backend, fd));
    r.backend->verbs->receive(r.backend, &o->op, fd, 0, false);
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    assert_true(script_is_registered(fd));
    epoll_sets_seen = script_sets();
    r.backend->verbs->forget(r.backend, fd);
    epoll_expect_set(EPOLL_CTL_DEL, fd, 0);
    r.backend->verbs->forget(r.backend, fd); /* once */
    epoll_expect_no_set();
    r.backend->verbs->forget(r.backend, fd + 1000); /* and not what was never seen */
    epoll_expect_no_set();
    close_foreign();
}

/* The table is grown, and then a part of it is made. */
static void descriptor_without_memory_for_its_place_is_refused(void **state) {
    (void)state;
    open_foreign();
    uint64_t before = atomic_load(&r.memory.allocations);
    for (uint64_t nth = 1; nth <= 2; nth++) {
        atomic_store(&r.memory.fail_at, atomic_load(&r.memory.allocations) + (nth == 1 ? 1 : 2));
        if (nth == 2) {
            /* What an operation needs itself, it says when it is over. */
            start_poll(o, POLLIN);
            epoll_settle();
            told_final(o, -ENOMEM);
        } else {
            assert_int_equal(r.backend->verbs->admit(r.backend, fd), -ENOMEM);
        }
        assert_int_equal(atomic_load(&r.memory.failed), nth);
    }
    test_ok(r.backend->verbs->admit(r.backend, fd)); /* of the table there is memory by now */
    assert_int_equal(atomic_load(&r.memory.allocations), before + 4);
    test_ok(r.backend->verbs->admit(r.backend, fd));
    assert_int_equal(atomic_load(&r.memory.allocations), before + 4); /* once */
    epoll_expect_no_set();
    close_foreign();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        epoll_test(poll_answers_once),
        epoll_test(poll_tells_what_was_asked_for_and_errors),
        epoll_test(poll_is_not_told_of_what_it_did_not_ask_for),
        epoll_test(polls_of_one_descriptor_are_answered_apart),
        epoll_test(poll_that_fails_is_final),
        epoll_test(regular_file_is_always_ready),
        epoll_test(poll_that_is_renewed_registers_again),
        epoll_test(poll_that_nobody_renews_is_deregistered),
        epoll_test(poll_of_errors_alone_is_deregistered),
        epoll_test(poll_of_errors_alone_stays_when_another_is_told),
        epoll_test(number_that_is_another_files_is_registered_anew),
        epoll_test(file_that_the_kernel_knows_is_changed),
        epoll_test(stream_on_a_number_that_was_polled_is_registered),
        epoll_test(poll_can_be_cancelled_in_each_state),
        epoll_test(descriptor_is_deregistered_before_it_is_closed),
        epoll_test(descriptor_without_memory_for_its_place_is_refused),
    };
    return cmocka_run_group_tests_name("epoll-poll", tests, NULL, NULL);
}
