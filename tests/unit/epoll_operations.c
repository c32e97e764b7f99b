/* SPDX-License-Identifier: MIT */
/* Connecting, accepting and watching over epoll. */
#include <netinet/in.h>

#include "unit/epoll_rig.h"

static owner o[4];
static int fd;
static const struct sockaddr_in address = { .sin_family = AF_INET };

static void open_socket(void) {
    owners_init(o, 4);
    epoll_open_default();
    fd = epoll_socket();
}

static void close_socket(void) {
    for (unsigned i = 0; i < 4; i++)
        r.backend->verbs->cancel(r.backend, &o[i].op);
    epoll_settle();
    epoll_close_socket(fd);
    rig_close();
}

/* ---- connecting -------------------------------------------------------------------------------------- */

static void start_connect(void) {
    r.backend->verbs->connect(r.backend, &o->op, fd, (const struct sockaddr *)&address, sizeof address);
    assert_int_equal(o->count, o->read);
}

static void start_slow_connect(void) {
    script_fail(SCRIPT_CONNECT, -EINPROGRESS, 1);
    script_set_peer(-ENOTCONN);
    start_connect();
    epoll_settle();
    told_nothing_more(o);
}

static void connect_may_be_over_at_once(void **state) {
    (void)state;
    open_socket();
    start_connect();
    epoll_settle();
    told_final(o, 0);
    assert_int_equal(script_connects(), 1);
    epoll_expect_no_set();
    close_socket();
}

static void connect_that_takes_time_is_waited_for(void **state) {
    (void)state;
    open_socket();
    start_slow_connect();
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLOUT);
    script_set_peer(0);
    epoll_settle();
    told_nothing_more(o); /* nobody has said so */
    epoll_tell(fd, EPOLLOUT);
    told_final(o, 0);
    assert_int_equal(script_connects(), 1); /* a second call would be -EISCONN */
    epoll_expect_no_set();
    close_socket();
}

static void connect_may_be_refused(void **state) {
    (void)state;
    open_socket();
    script_fail(SCRIPT_CONNECT, -ECONNREFUSED, 1);
    start_connect();
    epoll_settle();
    told_final(o, -ECONNREFUSED);
    start_slow_connect();
    script_set_socket_error(EHOSTUNREACH);
    epoll_tell(fd, EPOLLOUT | EPOLLERR | EPOLLHUP);
    told_final(o, -EHOSTUNREACH);
    assert_int_equal(script_connects(), 2);
    close_socket();
}

/* Its connection failed, and only the socket's error says so. */
static void error_counts_and_not_that_it_is_writable(void **state) {
    (void)state;
    open_socket();
    start_slow_connect();
    script_set_peer(0);
    script_set_socket_error(ETIMEDOUT);
    epoll_tell(fd, EPOLLOUT);
    told_final(o, -ETIMEDOUT);
    close_socket();
}

/* A socket that has never been connected is told of as hung up when it is registered. */
static void connect_that_is_told_of_for_nothing_goes_on(void **state) {
    (void)state;
    open_socket();
    start_slow_connect();
    epoll_tell(fd, EPOLLOUT | EPOLLHUP);
    told_nothing_more(o);
    assert_int_equal(script_connects(), 1);
    script_set_peer(0);
    epoll_tell(fd, EPOLLOUT);
    told_final(o, 0);
    close_socket();
}

/* It goes on in the kernel. */
static void interrupted_connect_is_in_progress(void **state) {
    (void)state;
    open_socket();
    script_fail(SCRIPT_CONNECT, -EINTR, 1);
    script_set_peer(-ENOTCONN);
    start_connect();
    epoll_settle();
    told_nothing_more(o);
    script_set_peer(0);
    epoll_tell(fd, EPOLLOUT);
    told_final(o, 0);
    assert_int_equal(script_connects(), 1);
    close_socket();
}

static void connect_can_be_cancelled(void **state) {
    (void)state;
    open_socket();
    start_slow_connect();
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    start_connect();
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    assert_int_equal(script_connects(), 1);
    close_socket();
}

/* ---- accepting --------------------------------------------------------------------------------------- */

static void start_accept(owner *it, bool one) {
    r.backend->verbs->accept(r.backend, &it->op, fd, one);
    assert_int_equal(it->count, it->read);
}

static void told_connection(owner *it) {
    const told *t = next_told(it);
    assert_false(t->is_final);
    assert_true(t->result >= 0);
    weir__sys_close(t->result);
}

static void connections_are_accepted_until_there_are_no_more(void **state) {
    (void)state;
    open_socket();
    start_accept(o, false);
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLIN);
    epoll_settle();
    assert_int_equal(script_accepts(), 0);
    for (unsigned round = 1; round <= 3; round++) {
        script_come(3);
        epoll_tell(fd, EPOLLIN);
        for (int i = 0; i < 3; i++)
            told_connection(o);
        told_nothing_more(o);
        epoll_settle();
        assert_int_equal(script_accepts(), round * 4); /* the last one finds that there are no more */
    }
    epoll_expect_no_set();
    close_socket();
}

/* Others have their turn, too. */
static void crowd_is_accepted_in_several_turns(void **state) {
    (void)state;
    open_socket();
    start_accept(o, false);
    script_come(70);
    script_ready(fd, EPOLLIN);
    rig_turn();
    assert_int_equal(o->count, MAX_TOLD);
    assert_int_equal(MAX_TOLD, 64);
    while (o->read < o->count)
        told_connection(o);
    o->read = o->count = 0;
    assert_true(r.backend->verbs->is_ready(r.backend));
    epoll_settle();
    assert_int_equal(o->count, 6);
    while (o->read < o->count)
        told_connection(o);
    close_socket();
}

static void exactly_one_may_be_accepted(void **state) {
    (void)state;
    open_socket();
    start_accept(o, true);
    script_come(3);
    epoll_tell(fd, EPOLLIN);
    told_connection(o);
    told_final(o, -ECANCELED);
    assert_int_equal(script_accepts(), 1);
    start_accept(o, true); /* the kernel does not tell of the others again */
    epoll_settle();
    told_connection(o);
    told_final(o, -ECANCELED);
    assert_int_equal(script_accepts(), 2);
    close_socket();
}

static void failure_of_one_connection_is_not_the_listeners(void **state) {
    (void)state;
    static const int errors[] = { -ECONNABORTED, -EINTR };
    open_socket();
    start_accept(o, false);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_come(1);
        script_fail(SCRIPT_ACCEPT, errors[i], 2);
        epoll_tell(fd, EPOLLIN);
        told_connection(o);
        told_nothing_more(o);
    }
    close_socket();
}

static void accept_without_descriptors_is_final(void **state) {
    (void)state;
    static const int errors[] = { -EMFILE, -ENFILE, -ENOMEM };
    open_socket();
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        start_accept(o, false);
        script_come(1);
        script_fail(SCRIPT_ACCEPT, errors[i], 1);
        epoll_tell(fd, EPOLLIN);
        told_final(o, errors[i]);
        start_accept(o, false); /* who waits is not forgotten */
        epoll_settle();
        told_connection(o);
        r.backend->verbs->cancel(r.backend, &o->op);
        epoll_settle();
        told_final(o, -ECANCELED);
    }
    close_socket();
}

static void cancel_this(owner *it, const told *last) {
    if (!last->is_final)
        r.backend->verbs->cancel(r.backend, &it->op);
}

/* Each connection that came is told: a descriptor that is not would be open for ever. */
static void accept_can_be_cancelled(void **state) {
    (void)state;
    open_socket();
    start_accept(o, false);
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    start_accept(o, false);
    script_come(1);
    script_ready(fd, EPOLLIN);
    rig_submit();
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    assert_int_equal(script_accepts(), 0);
    close_socket();
}

static void accept_cancelled_inside_its_completion_ends_once(void **state) {
    (void)state;
    open_socket();
    for (int one = 0; one <= 1; one++) {
        o->then = cancel_this;
        start_accept(o, one);
        script_come(1);
        epoll_tell(fd, EPOLLIN);
        told_connection(o);
        told_final(o, -ECANCELED);
        epoll_settle();
        told_nothing_more(o);
        assert_true(r.backend->verbs->is_quiet(r.backend));
    }
    close_socket();
}

/* ---- watching ---------------------------------------------------------------------------------------- */

static void start_watch(void) {
    r.backend->verbs->watch(r.backend, &o->op, fd);
    assert_int_equal(o->count, o->read);
}

static void watch_hears_of_ends_and_of_nothing_else(void **state) {
    (void)state;
    open_socket();
    start_watch();
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLRDHUP);
    epoll_tell(fd, EPOLLPRI);
    epoll_tell(fd, EPOLLOUT);
    told_nothing_more(o);
    epoll_tell(fd, EPOLLIN | EPOLLRDHUP);
    told_result(o, EPOLLRDHUP);
    epoll_tell(fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLERR | EPOLLHUP);
    told_result(o, EPOLLRDHUP | EPOLLERR | EPOLLHUP);
    told_nothing_more(o);
    assert_int_equal(script_receives() + (unsigned)script_peeks(), 0);
    close_socket();
}

/* The kernel tells of an edge, and it was before. */
static void watch_hears_of_what_was_told_before_it(void **state) {
    (void)state;
    open_socket();
    r.backend->verbs->receive(r.backend, &o[1].op, fd, 0, false);
    r.backend->verbs->cancel(r.backend, &o[1].op);
    epoll_settle();
    told_final(&o[1], -ECANCELED);
    epoll_tell(fd, EPOLLRDHUP);
    start_watch();
    epoll_settle();
    told_result(o, EPOLLRDHUP);
    told_nothing_more(o);
    epoll_settle(); /* once */
    told_nothing_more(o);
    close_socket();
}

static void end_of_a_socket_is_not_the_next_ones(void **state) {
    (void)state;
    open_socket();
    start_watch();
    epoll_tell(fd, EPOLLRDHUP);
    told_result(o, EPOLLRDHUP);
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    r.backend->verbs->forget(r.backend, fd);
    test_ok(r.backend->verbs->admit(r.backend, fd)); /* it has the same number */
    start_watch();
    epoll_settle();
    told_nothing_more(o);
    close_socket();
}

/* The result of one that is over is its own: what is told in the same turn would be or-ed into it. */
static void cancelled_watch_says_that_it_was_cancelled(void **state) {
    (void)state;
    open_socket();
    start_watch();
    script_ready(fd, EPOLLRDHUP | EPOLLERR | EPOLLHUP);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_submit(); /* leaves the kernel out */
    rig_submit();
    assert_int_equal(script_last_wait().told, 1);
    rig_dispatch();
    told_final(o, -ECANCELED);
    start_watch();
    epoll_settle();
    told_result(o, EPOLLRDHUP | EPOLLERR | EPOLLHUP);
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    start_watch(); /* ready at once */
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    close_socket();
}

static void watch_cancelled_inside_its_completion_ends_once(void **state) {
    (void)state;
    open_socket();
    o->then = cancel_this;
    start_watch();
    epoll_tell(fd, EPOLLRDHUP);
    told_result(o, EPOLLRDHUP);
    told_final(o, -ECANCELED);
    close_socket();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        epoll_test(connect_may_be_over_at_once),
        epoll_test(connect_that_takes_time_is_waited_for),
        epoll_test(connect_may_be_refused),
        epoll_test(error_counts_and_not_that_it_is_writable),
        epoll_test(connect_that_is_told_of_for_nothing_goes_on),
        epoll_test(interrupted_connect_is_in_progress),
        epoll_test(connect_can_be_cancelled),
        epoll_test(connections_are_accepted_until_there_are_no_more),
        epoll_test(crowd_is_accepted_in_several_turns),
        epoll_test(exactly_one_may_be_accepted),
        epoll_test(failure_of_one_connection_is_not_the_listeners),
        epoll_test(accept_without_descriptors_is_final),
        epoll_test(accept_can_be_cancelled),
        epoll_test(accept_cancelled_inside_its_completion_ends_once),
        epoll_test(watch_hears_of_ends_and_of_nothing_else),
        epoll_test(watch_hears_of_what_was_told_before_it),
        epoll_test(end_of_a_socket_is_not_the_next_ones),
        epoll_test(cancelled_watch_says_that_it_was_cancelled),
        epoll_test(watch_cancelled_inside_its_completion_ends_once),
    };
    return cmocka_run_group_tests_name("epoll-operations", tests, NULL, NULL);
}
