/* SPDX-License-Identifier: MIT */
/* Accepting, connecting, watching, waking and waiting; and leaving the kernel. */
#include <netinet/in.h>

#include "unit/rig.h"

static owner o[8];

/* ---- accepting -------------------------------------------------------------------------------------- */

static script_entry *start_accept(bool one) {
    owner_init(o);
    rig_open_default();
    r.backend->verbs->accept(r.backend, &o->op, 7, one);
    rig_submit();
    script_entry *entry = script_expect(IORING_OP_ACCEPT, 7);
    assert_int_equal(entry->sqe.ioprio, one ? 0 : IORING_ACCEPT_MULTISHOT);
    assert_int_equal(entry->sqe.accept_flags, SOCK_NONBLOCK | SOCK_CLOEXEC);
    assert_int_equal(entry->sqe.addr, 0); /* a multishot would overwrite it */
    return entry;
}

static void accept_goes_on_until_cancelled(void **state) {
    (void)state;
    script_entry *entry = start_accept(false);
    script_complete(entry, 100, IORING_CQE_F_MORE);
    script_complete(entry, 101, IORING_CQE_F_MORE);
    rig_turn();
    told_result(o, 100);
    told_result(o, 101);
    told_nothing_more(o);
    rig_cancel_and_close(o, 1);
}

static void accept_that_the_kernel_ended_is_armed_again(void **state) {
    (void)state;
    static const int ends[] = { 100, 0, -ECANCELED, -EINTR, -EAGAIN, -ECONNABORTED };
    script_entry *entry = start_accept(false);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        script_complete(entry, ends[i], 0);
        rig_turn();
        if (ends[i] >= 0)
            told_result(o, ends[i]); /* 0 is a descriptor too */
        told_nothing_more(o);
        rig_submit();
        entry = script_expect(IORING_OP_ACCEPT, 7);
        assert_int_equal(entry->sqe.ioprio, IORING_ACCEPT_MULTISHOT);
    }
    assert_int_equal(r.backend->stats.rearms, 6);
    rig_cancel_and_close(o, 1);
}

static void accept_without_descriptors_is_final(void **state) {
    (void)state;
    static const int errors[] = { -EMFILE, -ENFILE }; /* the process's, and the system's */
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_entry *entry = start_accept(false);
        script_complete(entry, errors[i], 0);
        rig_turn();
        told_final(o, errors[i]);
        rig_close();
    }
}

static void connection_that_came_before_the_cancellation_is_handed_over(void **state) {
    (void)state;
    script_entry *entry = start_accept(false);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_submit();
    script_entry *cancellation = script_expect_cancel(entry);
    script_complete(entry, 100, 0);
    script_complete(cancellation, -ENOENT, 0);
    rig_turn();
    told_result(o, 100); /* or it would be open for ever */
    told_final(o, -ECANCELED);
    rig_close();
}

static void accept_of_one_ends_after_one(void **state) {
    (void)state;
    script_entry *entry = start_accept(true);
    script_complete(entry, 100, 0);
    rig_turn();
    told_result(o, 100);
    told_final(o, -ECANCELED);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void accept_of_one_that_was_aborted_waits_for_another(void **state) {
    (void)state;
    script_entry *entry = start_accept(true);
    script_complete(entry, -ECONNABORTED, 0);
    rig_turn();
    told_nothing_more(o);
    rig_submit();
    script_complete(script_expect(IORING_OP_ACCEPT, 7), 100, 0);
    rig_turn();
    told_result(o, 100);
    told_final(o, -ECANCELED);
    rig_close();
}

/* ---- connecting and watching ------------------------------------------------------------------------ */

static void connect_is_told_its_result(void **state) {
    (void)state;
    static const int results[] = { 0, -ECONNREFUSED, -ETIMEDOUT, -EHOSTUNREACH };
    struct sockaddr_in address = { .sin_family = AF_INET };
    owner_init(o);
    rig_open_default();
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        r.backend->verbs->connect(r.backend, &o->op, 7, (struct sockaddr *)&address, sizeof address);
        rig_submit();
        script_entry *entry = script_expect(IORING_OP_CONNECT, 7);
        assert_true(entry->sqe.addr == (uintptr_t)&address);
        assert_int_equal(entry->sqe.off, sizeof address);
        script_complete(entry, results[i], 0);
        rig_turn();
        told_final(o, results[i]);
    }
    rig_close();
}

static void watch_tells_each_event_and_stays(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    r.backend->verbs->watch(r.backend, &o->op, 7);
    rig_submit();
    script_entry *entry = script_expect(IORING_OP_POLL_ADD, 7);
    assert_int_equal(entry->sqe.len, IORING_POLL_ADD_MULTI);
    assert_int_equal(entry->sqe.poll32_events, POLLRDHUP); /* data would wake it for nothing */
    script_complete(entry, POLLRDHUP, IORING_CQE_F_MORE);
    rig_turn();
    told_result(o, POLLRDHUP);
    script_complete(entry, POLLHUP | POLLERR, 0); /* ended by the kernel */
    rig_turn();
    told_result(o, POLLHUP | POLLERR);
    told_nothing_more(o);
    rig_submit();
    entry = script_expect(IORING_OP_POLL_ADD, 7);
    script_complete(entry, -EBADF, 0);
    rig_turn();
    told_final(o, -EBADF);
    rig_close();
}

/* ---- waking and waiting ----------------------------------------------------------------------------- */

static void wake_poll_is_armed_again_when_the_kernel_ends_it(void **state) {
    (void)state;
    static const int ends[] = { POLLIN, 0, -ECANCELED };
    rig_open_default();
    assert_int_equal(r.wake->sqe.len, IORING_POLL_ADD_MULTI);
    assert_int_equal(r.wake->sqe.poll32_events, POLLIN);
    script_complete(r.wake, POLLIN, IORING_CQE_F_MORE);
    rig_turn();
    assert_int_equal(script_unseen(), 0);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        script_complete(r.wake, ends[i], 0);
        rig_turn();
        rig_submit();
        r.wake = script_expect(IORING_OP_POLL_ADD, atomic_load(&r.waker->fd));
    }
    rig_close();
}

/* A loop that cannot be woken is lost: whatever the kernel says, the poll is started again. */
static void wake_poll_survives_an_error(void **state) {
    (void)state;
    rig_open_default();
    script_complete(r.wake, -ENOMEM, 0);
    rig_turn();
    rig_submit();
    r.wake = script_expect(IORING_OP_POLL_ADD, atomic_load(&r.waker->fd));
    rig_close();
}

static void wait_enters_once_and_sleeps_as_long_as_it_is_told(void **state) {
    (void)state;
    rig_open_default();
    script_enter before = script_last_enter();
    test_ok(r.backend->verbs->wait(r.backend, 12345));
    script_enter after = script_last_enter();
    assert_int_equal(after.count, before.count + 1);
    assert_int_equal(after.wait, 1);
    assert_int_equal(after.timeout_ns, 12345);
    assert_true((after.flags & IORING_ENTER_GETEVENTS) != 0);
    assert_int_equal(after.flags & IORING_ENTER_NO_IOWAIT, 0);
    test_ok(r.backend->verbs->wait(r.backend, 0));
    assert_int_equal(script_last_enter().wait, 0); /* deferred work runs all the same */
    assert_true((script_last_enter().flags & IORING_ENTER_GETEVENTS) != 0);
    assert_int_equal(r.backend->stats.enters, after.count + 1);
    rig_close();
}

static void idle_loop_is_not_iowait_where_the_kernel_can_say_so(void **state) {
    (void)state;
    script_set_features(IORING_FEAT_NO_IOWAIT);
    rig_open_default();
    assert_true((r.backend->features & WEIR_FEATURE_NO_IOWAIT) != 0);
    test_ok(r.backend->verbs->wait(r.backend, 1));
    assert_true((script_last_enter().flags & IORING_ENTER_NO_IOWAIT) != 0);
    rig_close();
}

static void wait_that_brings_nothing_is_no_error(void **state) {
    (void)state;
    static const int errors[] = { -ETIME, -EINTR, -EBUSY, -EAGAIN };
    rig_open_default();
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_fail(SCRIPT_ENTER, errors[i], 1);
        test_ok(r.backend->verbs->wait(r.backend, 1000));
    }
    rig_close();
}

static void wait_tells_what_it_cannot_mend(void **state) {
    (void)state;
    rig_open_default();
    script_fail(SCRIPT_ENTER, -EEXIST, 1); /* the ring is another thread's */
    assert_int_equal(r.backend->verbs->wait(r.backend, 1000), -EPERM);
    script_fail(SCRIPT_ENTER, -ENOMEM, 1);
    assert_int_equal(r.backend->verbs->wait(r.backend, 1000), -ENOMEM);
    script_fail(SCRIPT_ENTER, -EBADFD, 1);
    assert_int_equal(r.backend->verbs->wait(r.backend, 1000), -EBADFD);
    rig_close();
}

static void failed_enter_loses_no_submission(void **state) {
    (void)state;
    static const int errors[] = { -EINTR, -EBUSY, -EAGAIN, -ENOMEM };
    owner_init(o);
    rig_open_default();
    r.backend->verbs->receive(r.backend, &o->op, 7, 0, false);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_fail(SCRIPT_ENTER, errors[i], 1);
        (void)r.backend->verbs->wait(r.backend, 0);
        assert_int_equal(script_unseen(), 0);
    }
    rig_submit();
    script_expect(IORING_OP_RECV, 7);
    rig_cancel_and_close(o, 1);
}

static void enabling_another_threads_ring_is_not_permitted(void **state) {
    (void)state;
    rig_make(&(rig_options){ 0 });
    script_fail(SCRIPT_ENABLE, -EEXIST, 1);
    assert_int_equal(r.backend->verbs->enable(r.backend), -EPERM);
    script_fail(SCRIPT_ENABLE, -ENOMEM, 1);
    assert_int_equal(r.backend->verbs->enable(r.backend), -ENOMEM);
    test_ok(r.backend->verbs->enable(r.backend)); /* and then it works */
    rig_submit();
    script_expect(IORING_OP_POLL_ADD, atomic_load(&r.waker->fd));
    rig_close();
}

/* ---- leaving ---------------------------------------------------------------------------------------- */

static void close_of_what_was_never_enabled_asks_nothing(void **state) {
    (void)state;
    rig_make(&(rig_options){ 0 });
    unsigned enters = script_last_enter().count;
    test_ok(r.backend->verbs->close(r.backend));
    assert_int_equal(script_last_enter().count, enters);
    assert_int_equal(script_rings_open(), 0);
    rig_free();
    assert_int_equal(atomic_load(&r.memory.live_blocks), 0);
}

static void close_ends_the_poll_and_then_unregisters(void **state) {
    (void)state;
    rig_open_default();
    script_answer_cancels(true);
    test_ok(r.backend->verbs->close(r.backend));
    assert_false(r.wake->is_live);
    assert_int_equal(script_groups_registered(), 0);
    assert_int_equal(script_rings_open(), 0);
    rig_free();
    assert_int_equal(atomic_load(&r.memory.live_blocks), 0);
}

/* The kernel may still write to what was posted: it stays, and the application hears of it. Whoever waits for ever
 * helps nobody. */
static void close_with_an_operation_that_never_ends_gives_up_in_time(void **state) {
    (void)state;
    static rig abandoned; /* stays reachable: what it holds is lost on purpose */
    owner_init(o);
    rig_open(&(rig_options){ .tuning = { .close_timeout_ns = 70 * 1000 * 1000 } });
    script_entry *entry = rig_receive(o, 7);
    script_receive(entry, "data", 4, true);
    rig_turn();
    int64_t begun = weir__sys_now();
    assert_int_equal(r.backend->verbs->close(r.backend), -ETIMEDOUT);
    assert_in_range(weir__sys_now() - begun, 70 * 1000 * 1000, 81 * 1000 * 1000);
    assert_int_equal(script_rings_open(), 0);
    weir_pool_stats stats = rig_pool_stats();
    assert_int_equal(stats.buffers_posted + stats.buffers_filling, 4);
    script_write_into_buffer(script_published(0).id, 4, "late", 4);
    r.backend->verbs->free(r.backend);
    assert_int_equal(rig_pool_stats().used_bytes, 4 * BUFFER);
    weir__waker_close(r.waker);
    weir__waker_unref(r.waker);
    abandoned = r;
    assert_int_equal(script_end_abandoned(), 1); /* the ring of buffers is not unmapped */
    script_begin();
    (void)abandoned;
}

static void backend_that_cannot_be_made_leaves_the_pool_alone(void **state) {
    (void)state;
    rig_open_default();
    weir__backend *none = NULL;
    uint64_t live = atomic_load(&r.memory.live_blocks);
    static const weir__tuning tuning = { .no_self_test = true };
    static const int errors[] = { -ENOSYS, -EPERM, -EMFILE };
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_fail(SCRIPT_OPEN, errors[i], 1);
        assert_int_equal(
            weir__uring_new(&r.memory.allocator, WEIR_BACKEND_URING_INCREMENTAL, &tuning, r.pool, r.waker, &none),
            errors[i]);
        assert_int_equal(atomic_load(&r.memory.live_blocks), live);
    }
    assert_null(none);
    rig_close();
}

static void backend_without_memory_or_buffers_leaves_nothing(void **state) {
    (void)state;
    static const weir__tuning tuning = { .no_self_test = true };
    weir__backend *none = NULL;
    memset(&r, 0, sizeof r);
    test_memory_init(&r.memory);
    weir__pool_config config = { .allocator = &r.memory.allocator,
                                 .owner = &r,
                                 .generation = weir__fork_generation(),
                                 .incremental = true,
                                 .budget_bytes = 4 * BUFFER,
                                 .buffer_bytes = BUFFER,
                                 .window_bytes = BUFFER,
                                 .page_bytes = weir__sys_page_bytes(),
                                 .map = weir__sys_map_private,
                                 .unmap = weir__sys_unmap,
                                 .wake = weir__waker_wake,
                                 .drop = weir__waker_unref };
    test_ok(weir__waker_new(&r.memory.allocator, &r.waker));
    config.host = r.waker;
    test_ok(weir__pool_new(&config, &r.pool));
    uint64_t live = atomic_load(&r.memory.live_blocks);
    static const unsigned failing[] = { 1, 0 }; /* the next ones are the rings', which are tried again, smaller */
    for (size_t i = 0; i < sizeof failing / sizeof *failing; i++) {
        if (failing[i] > 0)
            atomic_store(&r.memory.fail_at, atomic_load(&r.memory.allocations) + failing[i]);
        else
            script_fail(SCRIPT_BUFFERS_OPEN, -ENOMEM, 100); /* however small the ring is beside it */
        assert_int_equal(
            weir__uring_new(&r.memory.allocator, WEIR_BACKEND_URING_INCREMENTAL, &tuning, r.pool, r.waker, &none),
            -ENOMEM);
        assert_int_equal(atomic_load(&r.memory.live_blocks), live);
        assert_int_equal(script_rings_open(), 0);
    }
    weir__pool_close(r.pool); /* drops the waker */
    assert_int_equal(atomic_load(&r.memory.live_blocks), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(accept_goes_on_until_cancelled),
        rig_test(accept_that_the_kernel_ended_is_armed_again),
        rig_test(accept_without_descriptors_is_final),
        rig_test(connection_that_came_before_the_cancellation_is_handed_over),
        rig_test(accept_of_one_ends_after_one),
        rig_test(accept_of_one_that_was_aborted_waits_for_another),
        rig_test(connect_is_told_its_result),
        rig_test(watch_tells_each_event_and_stays),
        rig_test(wake_poll_is_armed_again_when_the_kernel_ends_it),
        rig_test(wake_poll_survives_an_error),
        rig_test(wait_enters_once_and_sleeps_as_long_as_it_is_told),
        rig_test(idle_loop_is_not_iowait_where_the_kernel_can_say_so),
        rig_test(wait_that_brings_nothing_is_no_error),
        rig_test(wait_tells_what_it_cannot_mend),
        rig_test(failed_enter_loses_no_submission),
        rig_test(enabling_another_threads_ring_is_not_permitted),
        rig_test(close_of_what_was_never_enabled_asks_nothing),
        rig_test(close_ends_the_poll_and_then_unregisters),
        rig_test(close_with_an_operation_that_never_ends_gives_up_in_time),
        rig_test(backend_that_cannot_be_made_leaves_the_pool_alone),
        rig_test(backend_without_memory_or_buffers_leaves_nothing),
    };
    return cmocka_run_group_tests_name("uring-operations", tests, NULL, NULL);
}
