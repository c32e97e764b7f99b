/* SPDX-License-Identifier: MIT */
/* Parked receives that go on in private blocks: who is served, when, and when not. */
#include "unit/rig.h"

static owner o[100];
static int fds[100];
static weir_slice kept[100];
static unsigned kept_count;

static void keep(owner *it, const told *last) {
    if (last->size > 0)
        weir_slice_ref(&it->slice, &kept[kept_count++]);
}

/* @buffers, all of them filled and kept, and a reserve; then @count receives that found none. */
static void open_parked(unsigned buffers, unsigned reserve, unsigned count, uint64_t limit) {
    static const char full[BUFFER] = "full";
    owners_init(o, 100);
    kept_count = 0;
    o[0].then = keep;
    rig_open(&(rig_options){ .budget = buffers, .window = buffers, .reserve = reserve });
    script_entry *entry = rig_receive(&o[0], 100);
    for (unsigned i = 0; i < buffers; i++)
        script_receive(entry, full, BUFFER, true);
    script_complete(entry, 0, 0);
    rig_turn();
    o[0].finals = 0;
    assert_int_equal(kept_count, buffers);
    for (unsigned i = 1; i <= count; i++) {
        fds[i] = weir__sys_socket(AF_INET, SOCK_STREAM);
        o[i].then = keep;
        r.backend->verbs->receive(r.backend, &o[i].op, fds[i], limit, false);
        rig_submit();
        script_complete(script_expect(IORING_OP_RECV, fds[i]), -ENOBUFS, 0);
    }
    rig_dispatch(); /* others have just said something: not yet */
    assert_int_equal(rig_pool_stats().parked_streams, count);
    assert_int_equal(script_receives(), 0);
}

static void drop_kept(unsigned count) {
    while (count-- > 0)
        weir_slice_unref(&kept[--kept_count]);
}

static void close_parked(unsigned count) {
    drop_kept(kept_count);
    rig_cancel_and_close(o, count + 1);
    for (unsigned i = 1; i <= count; i++)
        weir__sys_close(fds[i]);
}

static void parked_receives_go_on_in_private_blocks(void **state) {
    (void)state;
    open_parked(2, 4, 2, 0);
    rig_submit();
    assert_int_equal(script_last_enter().timeout_ns, 0); /* it does not sleep over them */
    script_set_receive("abcde", 5);
    rig_dispatch();
    told_bytes(&o[1], "abcde"); /* the first of them; for the second there is nothing now */
    told_nothing_more(&o[2]);
    assert_int_equal(script_receives(), 2);
    assert_int_equal(rig_pool_stats().private_bytes, WEIR__PRIVATE_BYTES);
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    rig_submit(); /* both are the kernel's again, and wait for more before a buffer */
    for (int i = 1; i <= 2; i++) {
        const script_entry *entry = script_expect(IORING_OP_RECV, fds[i]);
        assert_true((entry->sqe.ioprio & IORING_RECVSEND_POLL_FIRST) != 0);
    }
    r.backend->verbs->wait(r.backend, 1000);
    assert_int_equal(script_last_enter().timeout_ns, 1000); /* nobody waits: now it may sleep */
    close_parked(2);
}

/*
 * A reset is told once. A send had it, whose completion was in the queue still: and the receive from the reserve, which is
 * ahead of the queue, found nothing but an end. The stream said that its peer had ended, of a connection that was reset.
 * So an end is believed the second time, behind a completion of its own.
 */
static void end_found_in_the_reserve_is_believed_the_second_time(void **state) {
    (void)state;
    open_parked(2, 4, 1, 0);
    script_set_receive(NULL, 0);
    rig_turn();
    assert_int_equal(script_receives(), 1);
    told_nothing_more(&o[1]);
    rig_submit();
    script_complete(script_expect(IORING_OP_RECV, fds[1]), -ENOBUFS, 0); /* there is something: the end */
    rig_turn();
    told_nothing_more(&o[1]);
    rig_turn();
    assert_int_equal(script_receives(), 2);
    told_final(&o[1], 0);
    assert_int_equal(rig_pool_stats().private_bytes, 0);
    close_parked(1);
}

/* What else moves may bring a buffer back, but it must not keep them waiting for ever. */
static void reserve_is_used_at_last_while_others_move(void **state) {
    (void)state;
    open_parked(2, 4, 1, 0);
    script_set_receive("abc", 3);
    unsigned turns = 0;
    while (script_receives() == 0) {
        rig_submit();
        script_complete(r.wake, POLLIN, IORING_CQE_F_MORE);
        rig_dispatch();
        assert_true(++turns < 20);
    }
    assert_true(turns > 2);
    told_bytes(&o[1], "abc");
    close_parked(1);
}

static void reserve_serves_no_more_than_it_has_room_for(void **state) {
    (void)state;
    open_parked(2, 2, 3, 2);
    script_set_receive("abcdef", 6);
    rig_turn();
    told_bytes(&o[1], "ab");
    told_bytes(&o[2], "cd");
    told_nothing_more(&o[3]);
    rig_dispatch();
    told_final(&o[1], -ECANCELED);
    told_final(&o[2], -ECANCELED);
    assert_int_equal(rig_pool_stats().private_bytes, 2 * WEIR__PRIVATE_BYTES);
    assert_int_equal(rig_pool_stats().used_bytes, rig_pool_stats().budget_bytes);
    assert_int_equal(rig_pool_stats().parked_streams, 1);
    unsigned receives = script_receives();
    for (int i = 0; i < 5; i++) { /* stuck: it sleeps, and asks nobody */
        r.backend->verbs->wait(r.backend, 1000);
        assert_int_equal(script_last_enter().timeout_ns, 1000);
        rig_dispatch();
    }
    assert_int_equal(script_receives(), receives);
    assert_int_equal(weir__pool_look_at_pressure(r.pool), WEIR_PRESSURE_STUCK);
    drop_kept(1); /* one block comes back */
    rig_turn();
    told_bytes(&o[3], "ef");
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    close_parked(3);
}

static void served_receive_counts_its_limit(void **state) {
    (void)state;
    open_parked(2, 4, 1, 10);
    script_set_receive("abcd", 4);
    rig_turn();
    told_bytes(&o[1], "abcd");
    rig_submit();
    script_entry *entry = script_expect(IORING_OP_RECV, fds[1]);
    assert_int_equal(entry->sqe.len, 6);
    assert_int_equal(entry->sqe.optlen, 6);
    script_complete(entry, -ENOBUFS, 0);
    rig_dispatch();
    script_set_receive("efghijkl", 8); /* more than it is to bring */
    rig_turn();
    told_bytes(&o[1], "efghij");
    rig_dispatch();
    told_final(&o[1], -ECANCELED);
    close_parked(1);
}

static void one_dispatch_serves_a_bounded_number(void **state) {
    (void)state;
    open_parked(2, 99, 90, 0);
    rig_turn();
    assert_in_range(script_receives(), 32, 64);
    assert_int_equal(rig_pool_stats().parked_streams, 90 - script_receives());
    rig_turn();
    rig_turn();
    assert_true(script_receives() >= 90);
    close_parked(90);
}

/* The budget has room and the system has no memory: nothing tells when it has, and the loop span until then. */
static void reserve_without_memory_is_tried_again_at_the_tick(void **state) {
    (void)state;
    open_parked(2, 4, 1, 0);
    script_set_receive("abc", 3);
    atomic_store(&r.memory.fail_every, 1);
    rig_turn();
    uint64_t failed = atomic_load(&r.memory.failed);
    assert_true(failed > 0);
    for (int i = 0; i < 5; i++) {
        r.backend->verbs->wait(r.backend, 1000);
        assert_int_equal(script_last_enter().timeout_ns, 1000);
        rig_dispatch();
    }
    assert_int_equal(atomic_load(&r.memory.failed), failed);
    assert_int_equal(script_receives(), 0);
    atomic_store(&r.memory.fail_every, 0);
    r.backend->verbs->tick(r.backend, false);
    rig_turn();
    told_bytes(&o[1], "abc");
    close_parked(1);
}

static void buffer_that_comes_back_goes_before_the_reserve(void **state) {
    (void)state;
    open_parked(2, 4, 1, 0);
    weir_slice_unref(&kept[--kept_count]);
    rig_submit();
    script_entry *entry = script_expect(IORING_OP_RECV, fds[1]);
    script_receive(entry, "abc", 3, true);
    rig_dispatch();
    told_bytes(&o[1], "abc");
    assert_int_equal(script_receives(), 0);
    assert_int_equal(rig_pool_stats().private_bytes, 0);
    close_parked(1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(parked_receives_go_on_in_private_blocks),
        rig_test(end_found_in_the_reserve_is_believed_the_second_time),
        rig_test(reserve_is_used_at_last_while_others_move),
        rig_test(reserve_serves_no_more_than_it_has_room_for),
        rig_test(served_receive_counts_its_limit),
        rig_test(one_dispatch_serves_a_bounded_number),
        rig_test(reserve_without_memory_is_tried_again_at_the_tick),
        rig_test(buffer_that_comes_back_goes_before_the_reserve),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
