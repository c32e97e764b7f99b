/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_UNIT_EPOLL_RIG_H
#define WEIR_TESTS_UNIT_EPOLL_RIG_H

/*
 * The epoll backend in the rig. A wait that has something to do anyway leaves the kernel out, every second time: so a test
 * that wants to be told what it has scripted asks for as many turns as it takes.
 */

#include "unit/rig.h"

static const uint32_t input = EPOLLIN | EPOLLRDHUP | EPOLLPRI;

static inline void epoll_open(const rig_options *options) {
    rig_options with_epoll = *options;
    with_epoll.is_epoll = true;
    rig_make(&with_epoll);
    test_ok(r.backend->verbs->enable(r.backend));
}

static inline void epoll_open_default(void) {
    epoll_open(&(rig_options){ 0 });
}

/* A descriptor of which the library is told as a stream's is. */
static inline int epoll_socket(void) {
    int fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    test_ok(r.backend->verbs->admit(r.backend, fd));
    return fd;
}

/* As a stream does it. */
static inline void epoll_close_socket(int fd) {
    r.backend->verbs->forget(r.backend, fd);
    assert_false(script_is_registered(fd));
    weir__sys_close(fd);
}

/* Turns until the kernel has been asked and nothing is left to do. */
static inline void epoll_settle(void) {
    unsigned waits = script_last_wait().count, turns = 0;
    do {
        rig_turn();
        assert_true(++turns < 100);
    } while (r.backend->verbs->is_ready(r.backend) || script_last_wait().count == waits);
}

/* The kernel says it, and the library does what there is to do. */
static inline void epoll_tell(int fd, uint32_t events) {
    script_ready(fd, events);
    epoll_settle();
}

/* Look at the next call of epoll_ctl(2) that the test has not seen. */
static unsigned epoll_sets_seen;

static inline void epoll_expect_set(int operation, int fd, uint32_t events) {
    script_set set = script_set_at(epoll_sets_seen++);
    assert_int_equal(set.operation, operation);
    assert_int_equal(set.fd, fd);
    if (operation != EPOLL_CTL_DEL)
        assert_int_equal(set.events, events | EPOLLET);
}

static inline void epoll_expect_no_set(void) {
    assert_int_equal(script_sets(), epoll_sets_seen);
}

static inline int epoll_setup(void **state) {
    epoll_sets_seen = 1; /* the waker's */
    return rig_setup(state);
}

#define epoll_test(function) cmocka_unit_test_setup_teardown(function, epoll_setup, rig_teardown)

#endif
