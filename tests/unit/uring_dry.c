/* SPDX-License-Identifier: MIT */
/* Receiving without buffers: who waits for one, who gets it, and who is woken for it. */
#include "unit/rig.h"

static owner o[16];

static const char *full(void) {
    static char bytes[BUFFER + 1];
    memset(bytes, 'f', BUFFER);
    return bytes;
}

static bool polls_first(const script_entry *entry) {
    return (entry->sqe.ioprio & IORING_RECVSEND_POLL_FIRST) != 0;
}

enum { KEPT = 32 };
static weir_slice kept[KEPT];
static unsigned kept_count;

static void keep(owner *it, const told *last) {
    if (last->size > 0)
        weir_slice_ref(&it->slice, &kept[kept_count++]);
}

/* A rig of @buffers, all of them filled by stream 0 and kept. */
static void open_dry(unsigned buffers) {
    owners_init(o, 16);
    kept_count = 0;
    o[0].then = keep;
    rig_open(&(rig_options){ .budget = buffers, .window = buffers });
    script_entry *entry = rig_receive(&o[0], 100);
    for (unsigned i = 0; i < buffers; i++)
        script_receive(entry, full(), BUFFER, true);
    rig_turn();
    assert_int_equal(kept_count, buffers);
    rig_submit();
    assert_int_equal(weir__pool_available(r.pool), 0);
    /* It has nothing more to say: out of the way. */
    script_complete(entry, 0, 0);
    rig_dispatch();
    o[0].finals = 0;
}

static void drop_kept(unsigned count) {
    while (count-- > 0)
        weir_slice_unref(&kept[--kept_count]);
}

/* Streams 1 to @count find no buffer, in this order. */
static void park(unsigned count) {
    for (unsigned i = 1; i <= count; i++) {
        script_entry *entry = rig_receive(&o[i], 100 + (int)i);
        assert_true(polls_first(entry));
        script_receive(entry, "?", 1, true);
    }
    rig_turn();
    assert_int_equal(rig_pool_stats().parked_streams, count);
    for (unsigned i = 1; i <= count; i++)
        told_nothing_more(&o[i]);
}

static void close_dry(unsigned count) {
    drop_kept(kept_count);
    rig_cancel_and_close(o, count + 1);
}

static void receive_that_finds_no_buffer_is_parked(void **state) {
    (void)state;
    open_dry(1);
    park(1);
    rig_submit();
    rig_submit();
    assert_int_equal(script_unseen(), 0); /* never while none is there */
    assert_int_equal(rig_pool_stats().starved, 1);
    close_dry(1);
}

static void parked_receives_start_again_in_order_one_a_buffer(void **state) {
    (void)state;
    open_dry(4);
    park(6);
    drop_kept(2);
    rig_submit();
    script_entry *first = script_expect(IORING_OP_RECV, 101), *second = script_expect(IORING_OP_RECV, 102);
    assert_int_equal(script_unseen(), 0);
    assert_int_equal(rig_pool_stats().parked_streams, 4);
    assert_false(polls_first(first) || polls_first(second)); /* what they wait for is there */
    script_receive(first, full(), BUFFER, true);
    script_receive(second, full(), BUFFER, true);
    rig_dispatch(); /* both come back at the end of the dispatch, for nobody kept them */
    rig_submit();
    script_expect(IORING_OP_RECV, 103);
    script_expect(IORING_OP_RECV, 104);
    assert_int_equal(script_unseen(), 0);
    close_dry(6);
}

static void receive_without_a_buffer_polls_first(void **state) {
    (void)state;
    open_dry(1);
    assert_true(polls_first(rig_receive(&o[1], 101)));
    drop_kept(1);
    rig_submit();
    assert_false(polls_first(rig_receive(&o[2], 102)));
    close_dry(2);
}

/* One that polled first finds data and end there, takes the data and goes back to its poll, which tells of changes
 * only. Streams that had found no buffer delivered their data, later, and then hung for ever. */
static void receive_that_polled_first_is_looked_at_with_its_first_bytes(void **state) {
    (void)state;
    open_dry(1);
    script_entry *entry = rig_receive(&o[1], 101);
    assert_true(polls_first(entry));
    drop_kept(1);
    rig_submit();
    script_receive(entry, "a", 1, true);
    rig_turn();
    told_bytes(&o[1], "a");
    assert_int_equal(script_peeks(), 1);
    script_receive(entry, "b", 1, true); /* from here on it is one like the others */
    rig_turn();
    told_bytes(&o[1], "b");
    assert_int_equal(script_peeks(), 1);
    close_dry(2);
}

static void newcomer_polls_first_while_others_are_parked(void **state) {
    (void)state;
    open_dry(2);
    park(3);
    drop_kept(1);
    r.backend->verbs->receive(r.backend, &o[4].op, 104, 0, false);
    rig_submit();
    const script_entry *entry = script_find(IORING_OP_RECV, 104);
    assert_non_null(entry);
    assert_true(polls_first(entry)); /* there is a buffer, and others have waited for it longer */
    script_expect(IORING_OP_RECV, 101);
    close_dry(4);
}

/* Who has more waiting than a buffer takes several, and those who were started with it for the others find nothing. They
 * went to the end of the queue, again and again: of fifty streams with much to say some waited three times as long. */
static void who_finds_nothing_again_keeps_its_place(void **state) {
    (void)state;
    open_dry(3);
    park(5);
    drop_kept(3);
    rig_submit(); /* 1, 2 and 3 are started, and the first takes all three */
    script_entry *entries[6];
    for (int i = 1; i <= 3; i++)
        entries[i] = script_expect(IORING_OP_RECV, 100 + i);
    o[1].then = keep;
    for (int i = 0; i < 3; i++)
        script_receive(entries[1], full(), BUFFER, true);
    script_receive(entries[2], "?", 1, true);
    script_receive(entries[3], "?", 1, true);
    script_complete(entries[1], -ENOBUFS, 0);
    rig_dispatch();
    assert_int_equal(rig_pool_stats().parked_streams, 5);
    static const int order[] = { 2, 3, 4, 5, 1 };
    for (int i = 0; i < 5; i++) {
        drop_kept(1);
        rig_submit();
        script_entry *entry = script_expect(IORING_OP_RECV, 100 + order[i]);
        assert_int_equal(script_unseen(), 0);
        o[order[i]].then = keep;
        script_receive(entry, full(), BUFFER, true);
        script_complete(entry, 0, 0);
        rig_dispatch();
    }
    drop_kept(kept_count);
    for (int i = 0; i <= 5; i++)
        o[i].finals = 0;
    rig_submit();
    rig_close();
}

static void tick_trims_the_pool(void **state) {
    (void)state;
    open_dry(8);
    rig_submit();
    drop_kept(8);
    weir__pool_collect(r.pool);
    uint32_t idle = rig_pool_stats().buffers_idle;
    assert_int_equal(idle, 8);
    r.backend->verbs->tick(r.backend, false);
    r.backend->verbs->tick(r.backend, false);
    assert_in_range(rig_pool_stats().buffers_idle, 0, idle - 1);
    rig_close();
}

static void cancelled_while_parked_it_is_over_at_once(void **state) {
    (void)state;
    open_dry(2);
    park(3);
    r.backend->verbs->cancel(r.backend, &o[2].op);
    assert_true(r.backend->verbs->is_ready(r.backend));
    told_nothing_more(&o[2]); /* not inside the call */
    assert_int_equal(rig_pool_stats().parked_streams, 2);
    rig_dispatch();
    told_final(&o[2], -ECANCELED);
    drop_kept(1);
    rig_submit();
    script_expect(IORING_OP_RECV, 101);
    rig_submit();
    script_expect(IORING_OP_RECV, 103);
    assert_int_equal(script_unseen(), 0);
    close_dry(3);
}

/*
 * Each of several streams that had starved was armed again for the one buffer that there was, in vain if it had nothing to
 * receive: it took its turn and no buffer, and the loop slept, for up to a second, before the next in the row had its own.
 */
static void wait_does_not_sleep_while_receives_are_parked_and_a_buffer_is_free(void **state) {
    (void)state;
    const int64_t second = INT64_C(1000000000);
    open_dry(2);
    park(3);
    test_ok(r.backend->verbs->wait(r.backend, second));
    assert_int_equal(script_last_enter().wait, 1); /* there is nothing that they could be given */
    drop_kept(1);
    for (int fd = 101; fd <= 103; fd++) { /* none of them has anything to say */
        test_ok(r.backend->verbs->wait(r.backend, second));
        script_expect(IORING_OP_RECV, fd);
        assert_int_equal(script_unseen(), 0);
        assert_int_equal(script_last_enter().wait, fd < 103 ? 0 : 1);
        assert_int_equal(rig_dispatch(), 0);
    }
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    close_dry(3);
}

static void buffer_released_wakes_a_sleeper_only_while_streams_are_parked(void **state) {
    (void)state;
    open_dry(2);
    park(1);
    weir__waker_sleep(r.waker);
    drop_kept(1);
    assert_int_equal(script_signals(), 1);
    rig_submit();
    script_expect(IORING_OP_RECV, 101);
    weir__waker_sleep(r.waker);
    drop_kept(1);
    assert_int_equal(script_signals(), 1);
    close_dry(1);
}

/* Who waits for a buffer may wait for the one that is being sent from: its send has to be told of. */
static void no_send_is_silent_where_there_is_no_buffer(void **state) {
    (void)state;
    script_set_features(IORING_FEAT_CQE_SKIP);
    open_dry(2);
    weir__range_cache cache = { .allocator = &r.memory.allocator, .owner = &r };
    weir__sendq queue = { 0 };
    test_ok(weir__sendq_push(&queue, &cache, &kept[0]));
    r.backend->verbs->send(r.backend, &o[0].op, 7, &queue, true);
    rig_submit();
    script_entry *entry = script_expect(IORING_OP_SEND, 7);
    assert_int_equal(entry->sqe.flags & IOSQE_CQE_SKIP_SUCCESS, 0);
    script_complete(entry, BUFFER, 0);
    rig_dispatch();
    o[0].finals = 0;
    drop_kept(2);
    weir__sendq_clear(&queue, &cache); /* now there is one */
    rig_submit();
    test_ok(weir_slice_wrap(r.pool, "hello", 5, NULL, NULL, &kept[kept_count]));
    test_ok(weir__sendq_push(&queue, &cache, &kept[kept_count++]));
    r.backend->verbs->send(r.backend, &o[0].op, 7, &queue, true);
    rig_submit();
    assert_int_not_equal(script_expect(IORING_OP_SEND, 7)->sqe.flags & IOSQE_CQE_SKIP_SUCCESS, 0);
    rig_dispatch();
    o[0].finals = 0;
    weir__sendq_clear(&queue, &cache);
    weir__range_cache_deinit(&cache);
    close_dry(0);
}

/* Nor one that found no room meanwhile, and is tried again when there are buffers: somebody may wait for it by then. */
static void no_send_that_is_tried_again_is_silent(void **state) {
    (void)state;
    script_set_features(IORING_FEAT_CQE_SKIP);
    open_dry(1);
    weir__range_cache cache = { .allocator = &r.memory.allocator, .owner = &r };
    weir__sendq queue = { 0 };
    weir_slice slice;
    test_ok(weir_slice_wrap(r.pool, "hello", 5, NULL, NULL, &slice));
    test_ok(weir__sendq_push(&queue, &cache, &slice));
    weir_slice_unref(&slice);
    r.backend->verbs->send(r.backend, &o[0].op, 7, &queue, true);
    rig_submit();
    script_complete(script_expect(IORING_OP_SEND, 7), -EAGAIN, 0);
    drop_kept(1);
    rig_turn();
    rig_submit();
    script_complete(script_expect(IORING_OP_POLL_ADD, 7), POLLOUT, 0);
    rig_turn();
    rig_submit();
    assert_true(weir__pool_available(r.pool) > 0);
    script_entry *again = script_expect(IORING_OP_SEND, 7);
    assert_int_equal(again->sqe.flags & IOSQE_CQE_SKIP_SUCCESS, 0);
    script_complete(again, 5, 0);
    rig_turn();
    assert_true(o[0].told[o[0].count - 1].is_final && !o[0].told[o[0].count - 1].is_late);
    o[0].finals = 0;
    weir__sendq_clear(&queue, &cache);
    weir__range_cache_deinit(&cache);
    close_dry(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(receive_that_finds_no_buffer_is_parked),
        rig_test(parked_receives_start_again_in_order_one_a_buffer),
        rig_test(receive_without_a_buffer_polls_first),
        rig_test(receive_that_polled_first_is_looked_at_with_its_first_bytes),
        rig_test(newcomer_polls_first_while_others_are_parked),
        rig_test(who_finds_nothing_again_keeps_its_place),
        rig_test(tick_trims_the_pool),
        rig_test(cancelled_while_parked_it_is_over_at_once),
        rig_test(wait_does_not_sleep_while_receives_are_parked_and_a_buffer_is_free),
        rig_test(buffer_released_wakes_a_sleeper_only_while_streams_are_parked),
        rig_test(no_send_is_silent_where_there_is_no_buffer),
        rig_test(no_send_that_is_tried_again_is_silent),
    };
    return cmocka_run_group_tests_name("uring-dry", tests, NULL, NULL);
}
