/* SPDX-License-Identifier: MIT */

/*
 * Filters of system calls, as containers, browsers and service managers have them. Some know no io_uring and answer
 * EPERM or ENOSYS; some end the process for it; old ones do not know epoll_pwait2 either. A program that leaves the
 * choice to weir shall not notice, and one that insists shall be told why.
 */

#include "edge/sys.h"
#include "hostile/hostile.h"

#include <sys/personality.h>

/* ---- io_uring is refused -------------------------------------------------------------------------------- */

static const int refusals[] = { EPERM, ENOSYS };
#define REFUSED(function, which) \
    { #function "_" #which, function, NULL, NULL, (void *)(uintptr_t)&refusals[which] }
enum { eperm, enosys };

/* On a kernel that is too old for incremental rings it is that which is said. */
static void expect_no_incremental(int error, const char *word) {
    const bool is_old = weir__sys_kernel_version() < (6U << 16 | 12U << 8 | 31);
    expect_no_loop(WEIR_BACKEND_URING_INCREMENTAL, is_old ? -ENOSYS : error, is_old ? "6.12.31" : word);
}

static void child_is_refused_io_uring(const void *argument) {
    const int error = *(const int *)argument;
    const char *word = error == EPERM ? "permitted" : "available";
    weir_loop_info info = { .size = sizeof info };
    place p;
    deny_io_uring(DENY(error));
    place_open(&p, WEIR_BACKEND_AUTO, WEIR_BACKEND_EPOLL);
    CHECK_INT(weir_loop_get_info(p.loop, &info), 0);
    CHECK(strstr(info.reason, "io_uring") != NULL && strstr(info.reason, word) != NULL);
    place_close(&p);
    expect_a_good_loop(WEIR_BACKEND_AUTO, WEIR_BACKEND_EPOLL);
    expect_no_incremental(-error, word);
    expect_no_loop(WEIR_BACKEND_URING_CLASSIC, -error, word);
    expect_a_good_loop(WEIR_BACKEND_EPOLL, WEIR_BACKEND_EPOLL);
}

static void where_io_uring_is_refused_auto_is_epoll(void **state) {
    in_a_child(child_is_refused_io_uring, *state);
}

/* A program that makes a loop, and only then puts its filter up: what was found out about the kernel is no longer so. */
static void child_is_refused_after_its_first_loop(const void *argument) {
    const int error = *(const int *)argument;
    place p;
    CHECK_INT(place_try(&p, WEIR_BACKEND_AUTO), 0);
    expect_an_echo(&p, "127.0.0.1:0");
    place_close(&p);
    deny_io_uring(DENY(error));
    expect_a_good_loop(WEIR_BACKEND_AUTO, WEIR_BACKEND_EPOLL);
    expect_no_incremental(-error, "io_uring");
    expect_no_loop(WEIR_BACKEND_URING_CLASSIC, -error, "io_uring");
}

static void a_filter_that_comes_after_the_first_loop_is_noticed(void **state) {
    in_a_child(child_is_refused_after_its_first_loop, *state);
}

/* ---- a part of io_uring is refused ------------------------------------------------------------------------ */

static void child_is_refused_a_part(const void *argument) {
    const denial *d = argument;
    deny(d, 1);
    expect_a_good_loop(WEIR_BACKEND_AUTO, WEIR_BACKEND_EPOLL);
}

/* A list of calls that was written by hand may have forgotten one of the three. */
static void a_filter_that_knows_two_of_three_calls_is_enough(void **state) {
    static const int calls[] = { SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register };
    for (size_t i = 0; i < COUNT(calls); i++) {
        const denial d = { .number = calls[i], .answer = DENY(*(const int *)*state) };
        in_a_child(child_is_refused_a_part, &d);
    }
}

/* ---- io_uring ends the process ---------------------------------------------------------------------------- */

static void child_calls(const void *argument) {
    deny_io_uring(KILL);
    syscall(*(const int *)argument, 0, 0, 0, 0, 0, 0);
}

/* That the next ones prove something. */
static void each_call_of_io_uring_would_be_noticed(void **state) {
    static const int calls[] = { SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register };
    (void)state;
    for (size_t i = 0; i < COUNT(calls); i++)
        assert_int_equal(signal_that_ends(child_calls, &calls[i]), SIGSYS);
}

static void child_would_die_of_io_uring(const void *argument) {
    (void)argument;
    deny_io_uring(KILL);
    expect_a_good_loop(WEIR_BACKEND_EPOLL, WEIR_BACKEND_EPOLL);
    expect_a_good_loop(WEIR_BACKEND_EPOLL, WEIR_BACKEND_EPOLL);
}

static void epoll_makes_no_call_of_io_uring(void **state) {
    (void)state;
    in_a_child(child_would_die_of_io_uring, NULL);
}

static void child_is_told_by_its_environment(const void *argument) {
    (void)argument;
    CHECK_INT(setenv("WEIR_BACKEND", "epoll", 1), 0);
    deny_io_uring(KILL);
    expect_a_good_loop(WEIR_BACKEND_AUTO, WEIR_BACKEND_EPOLL);
}

static void the_environment_keeps_a_program_from_io_uring(void **state) {
    (void)state;
    in_a_child(child_is_told_by_its_environment, NULL);
}

/* A kernel that io_uring is not good enough on: it is not tried there, either. */
static void child_has_an_old_kernel(const void *argument) {
    (void)argument;
    CHECK(personality(UNAME26) >= 0); /* "2.6.something" */
    deny_io_uring(KILL);
    expect_a_good_loop(WEIR_BACKEND_AUTO, WEIR_BACKEND_EPOLL);
    expect_no_loop(WEIR_BACKEND_URING_INCREMENTAL, -ENOSYS, "Linux 6.0");
    expect_no_loop(WEIR_BACKEND_URING_CLASSIC, -ENOSYS, "Linux 6.0");
}

static void on_an_old_kernel_auto_is_epoll(void **state) {
    (void)state;
    in_a_child(child_has_an_old_kernel, NULL);
}

/* ---- epoll_pwait2 is refused ------------------------------------------------------------------------------ */

static void nothing(weir_timer *timer, void *userdata) {
    (void)timer, (void)userdata;
}

/* Sleeps for a while, on a timer. Return: how many turns that took. */
static uint64_t sleep_by_timer(place *p) {
    weir_timer *timer;
    weir_loop_stats stats = { .size = sizeof stats };
    CHECK_INT(weir_timer_new(p->loop, nothing, NULL, &timer), 0);
    CHECK_INT(weir_loop_get_stats(p->loop, &stats), 0);
    uint64_t before = stats.turns;
    int64_t start = test_now_ns();
    CHECK_INT(weir_timer_start(timer, 30 * MS + 1, 0), 0);
    CHECK_INT(weir_loop_run(p->loop), 0);
    CHECK(test_now_ns() - start >= 30 * MS);
    CHECK_INT(weir_loop_get_stats(p->loop, &stats), 0);
    weir_timer_unref(timer);
    return stats.turns - before;
}

static void child_sleeps(const void *argument) {
    place p;
    (void)argument;
    const denial d = { .number = SYS_epoll_pwait2, .answer = KILL };
    deny(&d, 1);
    CHECK_INT(place_try(&p, WEIR_BACKEND_EPOLL), 0);
    sleep_by_timer(&p);
}

static void an_epoll_loop_sleeps_by_epoll_pwait2(void **state) {
    (void)state;
    assert_int_equal(signal_that_ends(child_sleeps, NULL), SIGSYS);
}

static void child_goes_on_with_epoll_wait(const void *argument) {
    const denial refused = { .number = SYS_epoll_pwait2, .answer = DENY(*(const int *)argument) };
    const denial deadly = { .number = SYS_epoll_pwait2, .answer = KILL };
    place p;
    deny(&refused, 1);
    place_open(&p, WEIR_BACKEND_EPOLL, WEIR_BACKEND_EPOLL);
    /* One turn that sleeps until the timer is due, though epoll_wait counts in milliseconds; a few for what is settled
     * before and after. */
    CHECK(sleep_by_timer(&p) <= 5);
    place_close(&p);
    expect_a_good_loop(WEIR_BACKEND_EPOLL, WEIR_BACKEND_EPOLL);
    /* It was asked once. */
    deny(&deadly, 1);
    expect_a_good_loop(WEIR_BACKEND_EPOLL, WEIR_BACKEND_EPOLL);
}

static void without_epoll_pwait2_it_is_epoll_wait(void **state) {
    in_a_child(child_goes_on_with_epoll_wait, *state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        REFUSED(where_io_uring_is_refused_auto_is_epoll, eperm),
        REFUSED(where_io_uring_is_refused_auto_is_epoll, enosys),
        REFUSED(a_filter_that_comes_after_the_first_loop_is_noticed, eperm),
        REFUSED(a_filter_that_comes_after_the_first_loop_is_noticed, enosys),
        REFUSED(a_filter_that_knows_two_of_three_calls_is_enough, eperm),
        REFUSED(a_filter_that_knows_two_of_three_calls_is_enough, enosys),
        cmocka_unit_test(each_call_of_io_uring_would_be_noticed),
        cmocka_unit_test(epoll_makes_no_call_of_io_uring),
        cmocka_unit_test(the_environment_keeps_a_program_from_io_uring),
        cmocka_unit_test(on_an_old_kernel_auto_is_epoll),
        cmocka_unit_test(an_epoll_loop_sleeps_by_epoll_pwait2),
        REFUSED(without_epoll_pwait2_it_is_epoll_wait, eperm),
        REFUSED(without_epoll_pwait2_it_is_epoll_wait, enosys),
    };
    return cmocka_run_group_tests_name("filters", tests, NULL, NULL);
}
