/* SPDX-License-Identifier: MIT */
/* What the library does with old kernels, forbidden ones, small ones, and those that only look as if they were
 * good. */
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/choose.h"
#include "unit/rig.h"

static const weir__tuning no_tuning;

/* ---- flags ------------------------------------------------------------------------------------------ */

static const uint32_t base_flags = IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP;
static const uint32_t submit_all = IORING_SETUP_SUBMIT_ALL;
static const uint32_t single = IORING_SETUP_SINGLE_ISSUER;
static const uint32_t coop = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
static const uint32_t defer = IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
static const uint32_t no_sqarray = IORING_SETUP_NO_SQARRAY;

static int open_ring(uint32_t *flags, weir__ring **ring) {
    test_memory_init(&r.memory);
    weir__tuning tuning = no_tuning;
    return weir__uring_open_ring(&r.memory.allocator, &tuning, ring, flags);
}

static void flags_degrade_one_by_one(void **state) {
    (void)state;
    const uint32_t expected[] = {
        base_flags | submit_all | single | defer | no_sqarray,
        base_flags | submit_all | single | defer,
        base_flags | submit_all | single | coop,
        base_flags | submit_all | coop,
        base_flags | submit_all,
        base_flags,
    };
    const uint32_t unknown[] = { 0,
                                 no_sqarray,
                                 no_sqarray | IORING_SETUP_DEFER_TASKRUN,
                                 no_sqarray | IORING_SETUP_DEFER_TASKRUN | single,
                                 no_sqarray | defer | coop | single,
                                 no_sqarray | defer | coop | single | submit_all };
    for (unsigned kernel = 0; kernel < 6; kernel++) {
        weir__ring *ring;
        uint32_t flags;
        unsigned before = script_attempts();
        script_refuse_setup(unknown[kernel]);
        test_ok(open_ring(&flags, &ring));
        assert_int_equal(flags, expected[kernel]);
        assert_int_equal(script_attempts() - before, kernel + 1);
        for (unsigned i = 0; i <= kernel; i++) {
            script_attempt attempt = script_attempt_at(before + i);
            assert_int_equal(attempt.flags, expected[i]);
            assert_int_equal(attempt.sq_entries, script_attempt_at(before).sq_entries);
            /* The kernel takes the one only with one of the others. */
            if ((attempt.flags & IORING_SETUP_TASKRUN_FLAG) != 0)
                assert_true((attempt.flags & (IORING_SETUP_COOP_TASKRUN | IORING_SETUP_DEFER_TASKRUN)) != 0);
            if ((attempt.flags & IORING_SETUP_DEFER_TASKRUN) != 0)
                assert_true((attempt.flags & single) != 0);
        }
        weir__ring_close(ring);
    }
}

static void kernel_that_refuses_everything_is_given_up(void **state) {
    (void)state;
    weir__ring *ring;
    uint32_t flags;
    script_refuse_setup(UINT32_MAX);
    assert_int_equal(open_ring(&flags, &ring), -EINVAL);
    assert_int_equal(script_attempts(), 6);
    assert_int_equal(atomic_load(&r.memory.live_blocks), 0);
}

static void completion_queue_is_well_above_the_submission_queue(void **state) {
    (void)state;
    weir__ring *ring;
    uint32_t flags;
    test_ok(open_ring(&flags, &ring));
    script_attempt attempt = script_attempt_at(0);
    assert_true(attempt.cq_entries >= 8 * attempt.sq_entries);
    weir__ring_close(ring);
}

static void ring_without_memory_is_tried_smaller(void **state) {
    (void)state;
    weir__ring *ring;
    uint32_t flags;
    script_refuse_entries(40);
    test_ok(open_ring(&flags, &ring));
    assert_int_equal(script_attempts(), 3);
    for (unsigned i = 0; i < 3; i++) {
        script_attempt attempt = script_attempt_at(i);
        assert_int_equal(attempt.sq_entries, 256 >> 2 * i);
        assert_int_equal(attempt.cq_entries, 4096 >> 2 * i);
        assert_int_equal(attempt.flags, script_attempt_at(0).flags); /* memory is not a question of age */
    }
    weir__ring_close(ring);
}

static void ring_without_any_memory_is_given_up(void **state) {
    (void)state;
    weir__ring *ring;
    uint32_t flags;
    script_refuse_entries(0);
    assert_int_equal(open_ring(&flags, &ring), -ENOMEM);
    assert_true(script_attempt_at(script_attempts() - 1).sq_entries <= 16);
    assert_int_equal(script_rings_open(), 0);
}

static void flags_and_size_degrade_together(void **state) {
    (void)state;
    weir__ring *ring;
    uint32_t flags;
    script_refuse_setup(no_sqarray);
    script_refuse_entries(64);
    test_ok(open_ring(&flags, &ring));
    assert_int_equal(flags, base_flags | submit_all | single | defer);
    assert_int_equal(script_attempt_at(script_attempts() - 1).sq_entries, 64);
    weir__ring_close(ring);
}

/* ---- what is not to be had -------------------------------------------------------------------------- */

static int choose(uint32_t asked, const weir__tuning *tuning, uint32_t *mode, char *reason) {
    test_memory_init(&r.memory);
    memset(reason, 'x', WEIR_REASON_SIZE);
    *mode = 77;
    int result = weir__uring_choose(&r.memory.allocator, asked, tuning, mode, reason, WEIR_REASON_SIZE);
    assert_true(strlen(reason) < WEIR_REASON_SIZE);
    assert_int_equal(script_rings_open(), 0);
    assert_int_equal(script_fds_open(), 0);
    assert_int_equal(atomic_load(&r.memory.live_blocks), 0);
    return result;
}

static void refused_set_up_comes_back_with_a_reason(void **state) {
    (void)state;
    static const struct {
        int said, returned;
        const char *word;
    } cases[] = {
        { -ENOSYS, -ENOSYS, "not available" }, { -EPERM, -EPERM, "not permitted" },
        { -EACCES, -EPERM, "not permitted" },  { -EMFILE, -EMFILE, "descriptor" },
        { -ENFILE, -ENFILE, "descriptor" },    { -EFAULT, -EFAULT, "io_uring_setup" },
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char reason[WEIR_REASON_SIZE];
        uint32_t mode;
        script_fail(SCRIPT_OPEN, cases[i].said, 1);
        assert_int_equal(choose(WEIR_BACKEND_AUTO, &no_tuning, &mode, reason), cases[i].returned);
        assert_int_equal(mode, 77);
        assert_non_null(strstr(reason, cases[i].word));
    }
}

static void lack_of_memory_is_said_in_words(void **state) {
    (void)state;
    char reason[WEIR_REASON_SIZE];
    uint32_t mode;
    script_refuse_entries(0);
    assert_int_equal(choose(WEIR_BACKEND_AUTO, &no_tuning, &mode, reason), -ENOMEM);
    assert_non_null(strstr(reason, "memory"));
}

static void kernel_before_multishot_receive_is_not_enough(void **state) {
    (void)state;
    char reason[WEIR_REASON_SIZE];
    uint32_t mode;
    script_set_kernel(5, 19, 255);
    for (uint32_t asked = WEIR_BACKEND_AUTO; asked <= WEIR_BACKEND_URING_CLASSIC; asked++) {
        assert_int_equal(choose(asked, &no_tuning, &mode, reason), -ENOSYS);
        assert_non_null(strstr(reason, "6.0"));
    }
}

static void classic_rings_that_were_asked_for_need_no_test(void **state) {
    (void)state;
    char reason[WEIR_REASON_SIZE];
    uint32_t mode;
    test_ok(choose(WEIR_BACKEND_URING_CLASSIC, &no_tuning, &mode, reason));
    assert_int_equal(mode, WEIR_BACKEND_URING_CLASSIC);
    assert_non_null(strstr(reason, "asked"));
    assert_int_equal(script_attempts(), 0);
}

static void reason_is_cut_to_its_room(void **state) {
    (void)state;
    char reason[8] = "xxxxxxx";
    uint32_t mode;
    test_memory_init(&r.memory);
    script_fail(SCRIPT_OPEN, -ENOSYS, 1);
    assert_int_equal(weir__uring_choose(&r.memory.allocator, WEIR_BACKEND_AUTO, &no_tuning, &mode, reason, 5),
                     -ENOSYS);
    assert_int_equal(strlen(reason), 4);
}

static void buffers_of_the_modes_differ(void **state) {
    (void)state;
    assert_int_equal(weir__backend_buffer_bytes(WEIR_BACKEND_URING_INCREMENTAL), 64 << 10);
    assert_int_equal(weir__backend_buffer_bytes(WEIR_BACKEND_URING_CLASSIC), 16 << 10);
}

/* ---- the self-test ---------------------------------------------------------------------------------- */

/*
 * How a kernel behaves in the self-test. The verdict is kept for the life of a process, so each of these runs in a
 * child, which hands back what it saw.
 */
typedef enum conduct { GOOD, REVERSED, CLASSIC, RETIRES, GARBLES, SHORT, STARVES, MUTE } conduct;

static conduct played;

static void play(void *userdata) {
    (void)userdata;
    script_entry *single_shot = script_live(0), *multishot = script_live(1);
    if (single_shot == NULL || multishot == NULL)
        return;
    const uint32_t more = IORING_CQE_F_MORE, buffer = IORING_CQE_F_BUFFER, rest = IORING_CQE_F_BUF_MORE;
    const uint32_t second = 1U << IORING_CQE_BUFFER_SHIFT;
    script_write_into_buffer(0, 0, "aaaabbbb", 8);
    switch (played) {
    case GOOD:
        script_complete(single_shot, 4, buffer | rest);
        script_complete(multishot, 4, buffer | rest | more);
        break;
    case REVERSED:
        script_complete(multishot, 4, buffer | rest | more);
        script_complete(single_shot, 4, buffer | rest);
        break;
    case CLASSIC:
        script_complete(single_shot, 4, buffer);
        script_complete(multishot, 4, buffer | second | more);
        break;
    case RETIRES:
        script_complete(single_shot, 4, buffer | rest);
        script_complete(multishot, 4, buffer | more);
        break;
    case GARBLES:
        script_write_into_buffer(0, 0, "bbbbaaaa", 8);
        script_complete(single_shot, 4, buffer | rest);
        script_complete(multishot, 4, buffer | rest | more);
        break;
    case SHORT:
        script_complete(single_shot, 3, buffer | rest);
        script_complete(multishot, 4, buffer | rest | more);
        break;
    case STARVES:
        script_complete(single_shot, -ENOBUFS, 0);
        script_complete(multishot, -ENOBUFS, 0);
        break;
    case MUTE:
        break;
    }
}

typedef struct verdict {
    int result;
    uint32_t mode;
    char reason[WEIR_REASON_SIZE];
    unsigned attempts, groups;
    int again; /* the result of a second choice, on a kernel that would fail the test */
    uint32_t mode_again;
    unsigned attempts_again;
} verdict;

static void (*prepare)(void); /* in the child, before */

static void judge(int fd, conduct how, uint32_t asked) {
    verdict v = { 0 };
    char reason[WEIR_REASON_SIZE];
    played = how;
    script_on_enter(play, NULL);
    if (prepare != NULL)
        prepare();
    v.result = choose(asked, &no_tuning, &v.mode, v.reason);
    v.attempts = script_attempts();
    v.groups = script_groups_registered();
    played = how == GOOD ? REVERSED : GOOD;
    v.again = choose(asked, &no_tuning, &v.mode_again, reason);
    v.attempts_again = script_attempts() - v.attempts;
    (void)!write(fd, &v, sizeof v);
    _exit(0);
}

static verdict in_a_new_process(conduct how, uint32_t asked) {
    verdict v;
    int fds[2], status;
    assert_int_equal(pipe(fds), 0);
    pid_t child = fork();
    if (child == 0)
        judge(fds[1], how, asked);
    close(fds[1]);
    assert_int_equal(read(fds[0], &v, sizeof v), sizeof v);
    close(fds[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(v.groups, 0);
    return v;
}

static void good_kernel_is_incremental_without_a_reason(void **state) {
    (void)state;
    verdict v = in_a_new_process(GOOD, WEIR_BACKEND_AUTO);
    test_ok(v.result);
    assert_int_equal(v.mode, WEIR_BACKEND_URING_INCREMENTAL);
    assert_string_equal(v.reason, "");
    assert_int_equal(v.attempts, 1); /* the test's */
}

static void verdict_is_kept_for_the_process(void **state) {
    (void)state;
    verdict v = in_a_new_process(GOOD, WEIR_BACKEND_AUTO);
    test_ok(v.again);
    assert_int_equal(v.mode_again, WEIR_BACKEND_URING_INCREMENTAL);
    assert_int_equal(v.attempts_again, 0);
    v = in_a_new_process(REVERSED, WEIR_BACKEND_AUTO);
    assert_int_equal(v.mode_again, WEIR_BACKEND_URING_CLASSIC);
    assert_int_equal(v.attempts_again, 0);
}

static void bad_kernel_runs_classic_and_says_why(void **state) {
    (void)state;
    static const struct {
        conduct how;
        const char *word;
    } cases[] = { { REVERSED, "order" },        { CLASSIC, "incrementally" }, { RETIRES, "incrementally" },
                  { GARBLES, "incrementally" }, { SHORT, "order" },           { STARVES, "order" },
                  { MUTE, "does not answer" } };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        verdict v = in_a_new_process(cases[i].how, WEIR_BACKEND_AUTO);
        test_ok(v.result);
        assert_int_equal(v.mode, WEIR_BACKEND_URING_CLASSIC);
        assert_non_null(strstr(v.reason, cases[i].word));
    }
}

static void bad_kernel_cannot_be_asked_for_incremental_rings(void **state) {
    (void)state;
    verdict v = in_a_new_process(REVERSED, WEIR_BACKEND_URING_INCREMENTAL);
    assert_int_equal(v.result, -ENOSYS);
    assert_int_equal(v.mode, 77);
    assert_non_null(strstr(v.reason, "order"));
}

static void good_kernel_can_be_asked_for_incremental_rings(void **state) {
    (void)state;
    verdict v = in_a_new_process(GOOD, WEIR_BACKEND_URING_INCREMENTAL);
    test_ok(v.result);
    assert_int_equal(v.mode, WEIR_BACKEND_URING_INCREMENTAL);
    assert_string_equal(v.reason, "");
}

static void refuse_incremental(void) {
    script_refuse_buffer_rings(IOU_PBUF_RING_INC);
}

static void kernel_that_refuses_the_flag_runs_classic(void **state) {
    (void)state;
    prepare = refuse_incremental;
    verdict v = in_a_new_process(GOOD, WEIR_BACKEND_AUTO);
    prepare = NULL;
    test_ok(v.result);
    assert_int_equal(v.mode, WEIR_BACKEND_URING_CLASSIC);
    assert_non_null(strstr(v.reason, "6.12"));
}

static struct kernel { unsigned major, minor, patch; } kernel;

static void set_kernel(void) {
    script_set_kernel(kernel.major, kernel.minor, kernel.patch);
}

static verdict on_kernel(struct kernel version, uint32_t asked) {
    kernel = version;
    prepare = set_kernel;
    verdict v = in_a_new_process(GOOD, asked);
    prepare = NULL;
    return v;
}

/*
 * The last of the reorderings cannot be tried, so a good test is not enough. It was repaired in 6.15 and then in 6.12.31, the
 * only long-term kernel in between: 6.13 and 6.14 had a higher number and passed, with the bug.
 */
static void kernels_without_the_last_repair_run_classic_untested(void **state) {
    (void)state;
    static const struct kernel bad[] = { { 6, 11, 99 }, { 6, 12, 0 },  { 6, 12, 30 }, { 6, 13, 0 },
                                         { 6, 13, 31 }, { 6, 14, 11 }, { 6, 14, 255 } };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        verdict v = on_kernel(bad[i], WEIR_BACKEND_AUTO);
        test_ok(v.result);
        assert_int_equal(v.mode, WEIR_BACKEND_URING_CLASSIC);
        assert_non_null(strstr(v.reason, "6.12.31"));
        assert_non_null(strstr(v.reason, "6.13 and 6.14"));
        assert_int_equal(v.attempts, 0);
        assert_int_equal(on_kernel(bad[i], WEIR_BACKEND_URING_INCREMENTAL).result, -ENOSYS);
    }
}

static void kernels_with_the_last_repair_are_incremental(void **state) {
    (void)state;
    static const struct kernel good[] = { { 6, 12, 31 }, { 6, 12, 99 }, { 6, 15, 0 }, { 6, 18, 0 }, { 7, 0, 0 } };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        verdict v = on_kernel(good[i], WEIR_BACKEND_AUTO);
        test_ok(v.result);
        assert_int_equal(v.mode, WEIR_BACKEND_URING_INCREMENTAL);
        assert_string_equal(v.reason, "");
    }
}

static void lack_descriptors(void) {
    script_fail(SCRIPT_SOCKETPAIR, -EMFILE, 1);
}

static void lack_memory(void) {
    script_fail(SCRIPT_BUFFERS_OPEN, -ENOMEM, 1);
}

/* Not the kernel's nature: it is an error now, and no verdict for ever. */
static void passing_trouble_is_no_verdict(void **state) {
    (void)state;
    static void (*const troubles[])(void) = { lack_descriptors, lack_memory };
    static const int errors[] = { -EMFILE, -ENOMEM };
    for (int i = 0; i < 2; i++) {
        prepare = troubles[i];
        verdict v = in_a_new_process(REVERSED, WEIR_BACKEND_AUTO); /* the second choice meets a good kernel */
        prepare = NULL;
        assert_int_equal(v.result, errors[i]);
        assert_true(strlen(v.reason) > 10);
        test_ok(v.again);
        assert_int_equal(v.mode_again, WEIR_BACKEND_URING_INCREMENTAL);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(flags_degrade_one_by_one),
        rig_test(kernel_that_refuses_everything_is_given_up),
        rig_test(completion_queue_is_well_above_the_submission_queue),
        rig_test(ring_without_memory_is_tried_smaller),
        rig_test(ring_without_any_memory_is_given_up),
        rig_test(flags_and_size_degrade_together),
        rig_test(refused_set_up_comes_back_with_a_reason),
        rig_test(lack_of_memory_is_said_in_words),
        rig_test(kernel_before_multishot_receive_is_not_enough),
        rig_test(classic_rings_that_were_asked_for_need_no_test),
        rig_test(reason_is_cut_to_its_room),
        rig_test(buffers_of_the_modes_differ),
        rig_test(good_kernel_is_incremental_without_a_reason),
        rig_test(verdict_is_kept_for_the_process),
        rig_test(bad_kernel_runs_classic_and_says_why),
        rig_test(bad_kernel_cannot_be_asked_for_incremental_rings),
        rig_test(good_kernel_can_be_asked_for_incremental_rings),
        rig_test(kernel_that_refuses_the_flag_runs_classic),
        rig_test(kernels_without_the_last_repair_run_classic_untested),
        rig_test(kernels_with_the_last_repair_are_incremental),
        rig_test(passing_trouble_is_no_verdict),
    };
    return cmocka_run_group_tests_name("uring-setup", tests, NULL, NULL);
}
