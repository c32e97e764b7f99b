/* SPDX-License-Identifier: MIT */
/*
 * A kernel that gets the order of its buffers wrong. A completion carries no offset, so from then on nobody
 * knows whose bytes are whose: the group's streams end with an error, and a classic ring, on which no order
 * matters, serves those that come after.
 */
#include "unit/rig.h"

static owner o[8];

static uint32_t buffer_flags(uint16_t id) {
    return IORING_CQE_F_BUFFER | (uint32_t)id << IORING_CQE_BUFFER_SHIFT;
}

/* A completion with a buffer of the kernel's choice. */
static void complete_with(script_entry *entry, int32_t res, uint16_t id, uint32_t flags) {
    script_complete(entry, res, buffer_flags(id) | flags);
}

/* Two receives on an incremental group, which the kernel then gets wrong. */
static void open_two(script_entry *entries[2]) {
    owners_init(o, 8);
    rig_open_default();
    for (int i = 0; i < 2; i++)
        entries[i] = rig_receive(&o[i], 10 + i);
}

static void is_condemned(void) {
    assert_int_equal(r.backend->mode, WEIR_BACKEND_URING_CLASSIC);
    assert_int_equal(script_groups_registered(), 1);
    assert_true(script_last_group().is_registered);
    assert_int_equal(script_last_group().flags, 0);
    assert_false(weir__pool_is_incremental(r.pool));
}

/* ---- what is noticed -------------------------------------------------------------------------------- */

static void buffer_that_was_never_given_condemns_the_group(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    complete_with(entries[0], 10, 77, IORING_CQE_F_BUF_MORE);
    rig_dispatch();
    told_final(&o[0], -EILSEQ);
    rig_submit();
    is_condemned();
    rig_cancel_and_close(o, 2);
}

static void buffer_out_of_order_condemns_the_group(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    complete_with(entries[0], 10, script_published(1).id, IORING_CQE_F_BUF_MORE);
    rig_dispatch();
    told_final(&o[0], -EILSEQ);
    rig_submit();
    is_condemned();
    rig_cancel_and_close(o, 2);
}

static void more_bytes_than_fit_condemn_the_group(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    complete_with(entries[0], BUFFER + 1, script_published(0).id, 0);
    rig_dispatch();
    told_final(&o[0], -EILSEQ);
    rig_submit();
    is_condemned();
    rig_cancel_and_close(o, 2);
}

static void bytes_without_a_buffer_condemn_the_group(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    script_complete(entries[0], 10, 0);
    rig_dispatch();
    told_final(&o[0], -EILSEQ);
    rig_submit();
    is_condemned();
    rig_cancel_and_close(o, 2);
}

/* The kernel consumed bytes that no completion tells of: seen from the entry that it rewrites. */
static void offset_that_differs_from_the_kernels_condemns_the_group(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    script_receive(entries[0], "good", 4, true);
    rig_turn();
    told_bytes(&o[0], "good");
    assert_int_equal(r.backend->mode, WEIR_BACKEND_URING_INCREMENTAL);
    script_consume(entries[0], 3);
    rig_dispatch();
    rig_submit();
    is_condemned();
    rig_cancel_and_close(o, 2);
}

static void offset_is_not_compared_while_completions_are_in_overflow(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    script_consume(entries[0], 3);
    script_overflow(true);
    rig_turn();
    rig_submit();
    assert_int_equal(r.backend->mode, WEIR_BACKEND_URING_INCREMENTAL);
    script_overflow(false);
    rig_turn();
    rig_submit();
    is_condemned();
    rig_cancel_and_close(o, 2);
}

static void offset_is_not_compared_before_all_completions_are_taken(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    script_receive(entries[0], "one", 3, true);
    script_receive(entries[1], "two", 3, true);
    rig_submit();
    assert_int_equal(r.backend->verbs->dispatch(r.backend, 1), 1);
    rig_submit();
    assert_int_equal(r.backend->mode, WEIR_BACKEND_URING_INCREMENTAL);
    rig_dispatch();
    rig_submit();
    assert_int_equal(r.backend->mode, WEIR_BACKEND_URING_INCREMENTAL);
    told_bytes(&o[0], "one");
    told_bytes(&o[1], "two");
    rig_cancel_and_close(o, 2);
}

/* Without deferred work the kernel may have consumed what its completion tells a moment later. */
static void offset_is_not_compared_where_work_is_not_deferred(void **state) {
    (void)state;
    script_refuse_setup(IORING_SETUP_DEFER_TASKRUN);
    script_entry *entries[2];
    open_two(entries);
    assert_int_equal(r.backend->features & WEIR_FEATURE_DEFER_TASKRUN, 0);
    script_consume(entries[0], 3);
    rig_turn();
    rig_submit();
    assert_int_equal(r.backend->mode, WEIR_BACKEND_URING_INCREMENTAL);
    rig_cancel_and_close(o, 2);
}

/* ---- what becomes of the streams --------------------------------------------------------------------- */

static void nothing_is_delivered_after_the_mismatch(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    script_receive(entries[1], "good", 4, true);
    complete_with(entries[0], 10, 77, IORING_CQE_F_MORE | IORING_CQE_F_BUF_MORE);
    script_receive(entries[1], "whose", 5, true);
    script_receive(entries[0], "whose", 5, true);
    rig_dispatch();
    told_bytes(&o[1], "good");
    told_nothing_more(&o[1]);
    told_nothing_more(&o[0]);
    rig_submit();
    is_condemned();
    for (int i = 0; i < 2; i++) { /* both are asked to end */
        script_entry *cancellation = script_find(IORING_OP_ASYNC_CANCEL, -1);
        assert_non_null(cancellation);
        script_entry *target = script_live_target(cancellation);
        script_complete(target, -ECANCELED, 0);
        script_complete(cancellation, 0, 0);
    }
    rig_dispatch();
    told_final(&o[0], -EILSEQ);
    told_final(&o[1], -EILSEQ);
    rig_close();
}

static void idle_stream_of_a_condemned_group_ends_when_it_is_heard_of_again(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    complete_with(entries[0], 10, 77, 0);
    rig_turn();
    told_final(&o[0], -EILSEQ);
    rig_submit();
    told_nothing_more(&o[1]);
    script_receive(entries[1], "late", 4, true); /* finds its group unregistered: -ENOBUFS */
    rig_turn();
    told_final(&o[1], -EILSEQ);
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    rig_close();
}

/* It was to be armed again when its group went. On the new one it would go on as if nothing were missing. */
static void parked_stream_of_a_condemned_group_ends(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    script_complete(entries[1], -ENOBUFS, 0);
    complete_with(entries[0], 10, 77, 0);
    rig_dispatch();
    assert_int_equal(rig_pool_stats().parked_streams, 1);
    told_final(&o[0], -EILSEQ);
    rig_turn();
    is_condemned();
    told_final(&o[1], -EILSEQ);
    assert_null(script_find(IORING_OP_RECV, 11));
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    rig_close();
}

static void waiting_stream_of_a_condemned_group_ends(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    script_complete(entries[1], -EINTR, 0); /* to be armed again at once */
    complete_with(entries[0], 10, 77, 0);
    rig_dispatch();
    told_final(&o[0], -EILSEQ);
    rig_turn();
    rig_turn();
    is_condemned();
    told_final(&o[1], -EILSEQ);
    rig_close();
}

static void classic_ring_has_a_new_number(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    uint16_t before = script_last_group().id;
    complete_with(entries[0], 10, 77, 0);
    rig_turn();
    rig_submit();
    is_condemned();
    assert_int_not_equal(script_last_group().id, before); /* or the idle ones would find it */
    rig_cancel_and_close(o, 2);
}

static void later_receives_work_on_the_classic_ring(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    complete_with(entries[0], 10, 77, 0);
    rig_dispatch();
    told_final(&o[0], -EILSEQ);
    r.backend->verbs->receive(r.backend, &o[2].op, 12, 0, false);
    rig_submit();
    is_condemned();
    script_entry *entry = script_expect(IORING_OP_RECV, 12);
    assert_int_equal(entry->sqe.buf_group, script_last_group().id);
    assert_int_equal(script_last_group().published, 4);
    script_receive(entry, "hello", 5, true);
    script_receive(entry, "world", 5, true);
    rig_dispatch();
    told_bytes(&o[2], "hello");
    told_bytes(&o[2], "world");
    rig_submit();
    assert_int_equal(script_last_group().published, 6); /* a buffer each */
    rig_cancel_and_close(o, 3);
}

static weir_slice kept;

static void keep(owner *it, const told *last) {
    if (last->size > 0)
        weir_slice_ref(&it->slice, &kept);
}

static void slice_from_before_stays_what_it_was(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    o[0].then = keep;
    script_receive(entries[0], "kept", 4, true);
    rig_turn();
    complete_with(entries[1], 10, 77, 0);
    rig_turn();
    rig_submit();
    is_condemned();
    assert_memory_equal(kept.data, "kept", 4);
    assert_int_equal(rig_pool_stats().buffers_retired, 1);
    for (unsigned i = 0; i < script_last_group().published; i++)
        assert_true(kept.data < (uint8_t *)script_published(i).data ||
                    kept.data >= (uint8_t *)script_published(i).data + BUFFER);
    weir_slice_unref(&kept);
    rig_cancel_and_close(o, 2);
}

/* ---- when that fails too ----------------------------------------------------------------------------- */

static void condemning_without_memory_is_tried_again(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    complete_with(entries[0], 10, 77, 0);
    rig_dispatch();
    told_final(&o[0], -EILSEQ);
    script_fail(SCRIPT_BUFFERS_OPEN, -ENOMEM, 2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(r.backend->verbs->wait(r.backend, 0), -ENOMEM);
        rig_dispatch();
        assert_int_equal(script_groups_registered(), 0);
    }
    r.backend->verbs->receive(r.backend, &o[2].op, 12, 0, false);
    rig_submit();
    is_condemned();
    script_receive(script_expect(IORING_OP_RECV, 12), "hello", 5, true);
    rig_dispatch();
    told_bytes(&o[2], "hello");
    rig_cancel_and_close(o, 3);
}

static void classic_ring_that_is_wrong_too_is_replaced(void **state) {
    (void)state;
    owners_init(o, 2);
    rig_open(&(rig_options){ .is_classic = true });
    complete_with(rig_receive(&o[0], 10), 10, 77, 0);
    rig_turn();
    told_final(&o[0], -EILSEQ);
    script_receive(rig_receive(&o[1], 11), "hello", 5, true);
    is_condemned();
    rig_turn();
    told_bytes(&o[1], "hello");
    rig_cancel_and_close(o, 2);
}

static void mismatch_just_before_the_close_leaves_nothing(void **state) {
    (void)state;
    script_entry *entries[2];
    open_two(entries);
    complete_with(entries[0], 10, 77, 0);
    script_complete(entries[1], 0, 0);
    rig_dispatch();
    told_final(&o[0], -EILSEQ);
    told_final(&o[1], -EILSEQ); /* even its end: were all the bytes before it its own? */
    rig_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(buffer_that_was_never_given_condemns_the_group),
        rig_test(buffer_out_of_order_condemns_the_group),
        rig_test(more_bytes_than_fit_condemn_the_group),
        rig_test(bytes_without_a_buffer_condemn_the_group),
        rig_test(offset_that_differs_from_the_kernels_condemns_the_group),
        rig_test(offset_is_not_compared_while_completions_are_in_overflow),
        rig_test(offset_is_not_compared_before_all_completions_are_taken),
        rig_test(offset_is_not_compared_where_work_is_not_deferred),
        rig_test(nothing_is_delivered_after_the_mismatch),
        rig_test(idle_stream_of_a_condemned_group_ends_when_it_is_heard_of_again),
        rig_test(parked_stream_of_a_condemned_group_ends),
        rig_test(waiting_stream_of_a_condemned_group_ends),
        rig_test(classic_ring_has_a_new_number),
        rig_test(later_receives_work_on_the_classic_ring),
        rig_test(slice_from_before_stays_what_it_was),
        rig_test(condemning_without_memory_is_tried_again),
        rig_test(classic_ring_that_is_wrong_too_is_replaced),
        rig_test(mismatch_just_before_the_close_leaves_nothing),
    };
    return cmocka_run_group_tests_name("uring-condemn", tests, NULL, NULL);
}
