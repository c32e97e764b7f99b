/* SPDX-License-Identifier: MIT */
/* Which backend runs: what was asked for, what the environment says, and what the kernel refuses. */
#include "backend/choose.h"
#include "unit/rig.h"

static const weir__tuning believing = { .no_self_test = true }, testing = { 0 };
static weir__choice choice;
static char reason[WEIR_REASON_SIZE];

static int choose(uint32_t asked, const weir__tuning *tuning) {
    test_memory_init(&r.memory);
    choice = (weir__choice){ .mode = 77 };
    strcpy(reason, "unchanged");
    int result = weir__backend_choose(&r.memory.allocator, asked, tuning, &choice, reason, sizeof reason);
    assert_int_equal(atomic_load(&r.memory.live_blocks), 0);
    return result;
}

static void set_variable(const char *value) {
    script_set_environment("WEIR_BACKEND", value);
}

static const struct {
    const char *name;
    uint32_t mode;
} named[] = { { "uring-incremental", WEIR_BACKEND_URING_INCREMENTAL },
              { "uring-classic", WEIR_BACKEND_URING_CLASSIC },
              { "epoll", WEIR_BACKEND_EPOLL } };
enum { NAMED = sizeof named / sizeof *named };

static void best_mode_is_chosen_where_all_are_to_be_had(void **state) {
    (void)state;
    test_ok(choose(WEIR_BACKEND_AUTO, &believing));
    assert_int_equal(choice.mode, WEIR_BACKEND_URING_INCREMENTAL);
    assert_true(choice.is_free);
    assert_string_equal(reason, "");
}

static void mode_that_was_asked_for_is_chosen(void **state) {
    (void)state;
    for (size_t i = 0; i < NAMED; i++) {
        test_ok(choose(named[i].mode, &believing));
        assert_int_equal(choice.mode, named[i].mode);
        assert_false(choice.is_free);
    }
    assert_non_null(strstr(reason, "epoll was asked for"));
}

/* ---- the environment --------------------------------------------------------------------------------- */

static void environment_chooses_where_nothing_was_asked_for(void **state) {
    (void)state;
    for (size_t i = 0; i < NAMED; i++) {
        set_variable(named[i].name);
        test_ok(choose(WEIR_BACKEND_AUTO, &believing));
        assert_int_equal(choice.mode, named[i].mode);
        assert_false(choice.is_free);
    }
    assert_non_null(strstr(reason, "WEIR_BACKEND"));
}

static void option_wins_over_the_environment(void **state) {
    (void)state;
    for (size_t i = 0; i < NAMED; i++) {
        for (size_t j = 0; j < NAMED; j++) {
            set_variable(named[j].name);
            test_ok(choose(named[i].mode, &believing));
            assert_int_equal(choice.mode, named[i].mode);
            assert_null(strstr(reason, "WEIR_BACKEND"));
        }
    }
    set_variable("nonsense");
    test_ok(choose(WEIR_BACKEND_URING_CLASSIC, &believing));
    assert_int_equal(choice.mode, WEIR_BACKEND_URING_CLASSIC);
}

static void environment_may_say_nothing(void **state) {
    (void)state;
    static const char *const values[] = { NULL, "", "auto" };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        set_variable(values[i]);
        test_ok(choose(WEIR_BACKEND_AUTO, &believing));
        assert_int_equal(choice.mode, WEIR_BACKEND_URING_INCREMENTAL);
        assert_true(choice.is_free);
    }
}

/* A word that was misspelt must not be taken for what it is not. */
static void environment_that_names_no_mode_is_an_error(void **state) {
    (void)state;
    static const char *const values[] = { "Epoll", "epoll ", "epol", "uring", "3" };
    for (size_t i = 0; i < sizeof values / sizeof *values; i++) {
        set_variable(values[i]);
        assert_int_equal(choose(WEIR_BACKEND_AUTO, &believing), -EINVAL);
        assert_non_null(strstr(reason, "WEIR_BACKEND"));
        assert_non_null(strstr(reason, "uring-classic"));
    }
}

/* ---- refusals ---------------------------------------------------------------------------------------- */

static const int missing[] = { -EPERM, -EACCES, -ENOSYS, -EINVAL };
static const int scarce[] = { -ENOMEM, -EMFILE, -ENFILE, -EAGAIN };
enum { ERRORS = 4 };

static void any_mode_goes_on_to_epoll_where_a_ring_is_not_to_be_had(void **state) {
    (void)state;
    for (size_t i = 0; i < ERRORS; i++) {
        script_fail(SCRIPT_OPEN, missing[i], 100);
        test_ok(choose(WEIR_BACKEND_AUTO, &testing));
        assert_int_equal(choice.mode, WEIR_BACKEND_EPOLL);
        assert_string_not_equal(reason, "");
        assert_null(strstr(reason, "asked"));
    }
    script_fail(SCRIPT_OPEN, 0, 0);
    script_set_kernel(5, 15, 0);
    test_ok(choose(WEIR_BACKEND_AUTO, &testing));
    assert_int_equal(choice.mode, WEIR_BACKEND_EPOLL);
    assert_non_null(strstr(reason, "6.0"));
}

/* To go on with something slower for what will be otherwise in a moment would be for the life of the loop. */
static void want_of_memory_or_descriptors_is_an_error(void **state) {
    (void)state;
    for (size_t i = 0; i < ERRORS; i++) {
        script_fail(SCRIPT_OPEN, scarce[i], 100);
        assert_int_equal(choose(WEIR_BACKEND_AUTO, &testing), scarce[i]);
        assert_string_not_equal(reason, "");
    }
}

static void mode_that_was_asked_for_is_not_replaced(void **state) {
    (void)state;
    script_fail(SCRIPT_OPEN, -EPERM, 100);
    assert_int_equal(choose(WEIR_BACKEND_URING_INCREMENTAL, &testing), -EPERM);
    set_variable("uring-incremental");
    assert_int_equal(choose(WEIR_BACKEND_AUTO, &testing), -EPERM);
    script_set_kernel(5, 15, 0);
    assert_int_equal(choose(WEIR_BACKEND_URING_CLASSIC, &testing), -ENOSYS);
}

static void epoll_that_was_asked_for_makes_no_ring(void **state) {
    (void)state;
    test_ok(choose(WEIR_BACKEND_EPOLL, &testing));
    set_variable("epoll");
    test_ok(choose(WEIR_BACKEND_AUTO, &testing));
    script_set_kernel(4, 0, 0);
    test_ok(choose(WEIR_BACKEND_EPOLL, &testing));
    assert_int_equal(script_attempts(), 0);
}

/* ---- a backend that fails later ---------------------------------------------------------------------- */

static bool goes_on(uint32_t mode, bool is_free, int error) {
    weir__choice next = { .mode = mode, .is_free = is_free };
    strcpy(reason, "unchanged");
    bool goes = weir__backend_choose_next(&next, error, reason, sizeof reason);
    assert_int_equal(next.mode, goes ? WEIR_BACKEND_EPOLL : mode);
    assert_int_equal(strcmp(reason, "unchanged") == 0, !goes);
    return goes;
}

static void backend_that_fails_is_followed_by_epoll_if_any_would_do(void **state) {
    (void)state;
    for (size_t i = 0; i < ERRORS; i++) {
        assert_true(goes_on(WEIR_BACKEND_URING_INCREMENTAL, true, missing[i]));
        assert_true(goes_on(WEIR_BACKEND_URING_CLASSIC, true, missing[i]));
        assert_false(goes_on(WEIR_BACKEND_URING_INCREMENTAL, false, missing[i]));
        assert_false(goes_on(WEIR_BACKEND_URING_INCREMENTAL, true, scarce[i]));
        assert_false(goes_on(WEIR_BACKEND_EPOLL, true, missing[i])); /* there is no other */
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(best_mode_is_chosen_where_all_are_to_be_had),
        rig_test(mode_that_was_asked_for_is_chosen),
        rig_test(environment_chooses_where_nothing_was_asked_for),
        rig_test(option_wins_over_the_environment),
        rig_test(environment_may_say_nothing),
        rig_test(environment_that_names_no_mode_is_an_error),
        rig_test(any_mode_goes_on_to_epoll_where_a_ring_is_not_to_be_had),
        rig_test(want_of_memory_or_descriptors_is_an_error),
        rig_test(mode_that_was_asked_for_is_not_replaced),
        rig_test(epoll_that_was_asked_for_makes_no_ring),
        rig_test(backend_that_fails_is_followed_by_epoll_if_any_would_do),
    };
    return cmocka_run_group_tests_name("epoll-choose", tests, NULL, NULL);
}
