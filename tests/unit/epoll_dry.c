/* SPDX-License-Identifier: MIT */
/* Receiving over epoll without buffers: who has to wait for one, who is served first, and when the reserve is used. */
#include "unit/epoll_rig.h"

enum { MOST = 12 };

static owner o[MOST];
static int fds[MOST];
static weir_slice kept[32];
static unsigned kept_count;
static unsigned order[MOST], order_count; /* who was told, one behind the other */

static void keep(owner *it, const told *last) {
    if (last->size > 0)
        weir_slice_ref(&it->slice, &kept[kept_count++]);
    if (it != o)
        order[order_count++] = (unsigned)(it - o);
}

static void receive(unsigned i) {
    fds[i] = epoll_socket();
    r.backend->verbs->receive(r.backend, &o[i].op, fds[i], 0, false);
}

/* @buffers, all of them filled by stream 0 and kept, and a @reserve. */
static void open_dry(unsigned buffers, unsigned reserve) {
    static const char full[4 * BUFFER];
    assert_true(buffers <= 4);
    owners_init(o, MOST);
    kept_count = order_count = 0;
    for (unsigned i = 0; i < MOST; i++)
        o[i].then = keep;
    epoll_open(&(rig_options){ .budget = buffers, .window = buffers, .reserve = reserve });
    receive(0);
    script_set_receive(full, (int)buffers * BUFFER);
    epoll_tell(fds[0], EPOLLIN);
    assert_int_equal(kept_count, buffers);
    o->read = o->count;
    assert_int_equal(weir__pool_available(r.pool), 0);
}

/* Streams 1 to @count hear of bytes and find no buffer, in this order. */
static void park(unsigned count) {
    for (unsigned i = 1; i <= count; i++)
        receive(i);
    for (unsigned i = 1; i <= count; i++)
        script_ready(fds[i], EPOLLIN);
    script_set_peek(1);
    rig_submit();
    rig_submit(); /* the kernel, which the first one may have left out */
    for (unsigned i = 1; i <= count; i++)
        assert_false(r.backend->verbs->is_starved(&o[i].op));
    rig_dispatch();
    for (unsigned i = 1; i <= count; i++)
        assert_true(r.backend->verbs->is_starved(&o[i].op));
    assert_int_equal(rig_pool_stats().parked_streams, count);
}

static void drop_kept(unsigned count) {
    while (count-- > 0)
        weir_slice_unref(&kept[--kept_count]);
}

static void close_dry(unsigned count) {
    drop_kept(kept_count);
    for (unsigned i = 0; i <= count; i++)
        r.backend->verbs->cancel(r.backend, &o[i].op);
    epoll_settle();
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    for (unsigned i = 0; i <= count; i++)
        epoll_close_socket(fds[i]);
    rig_close();
}

/* ---- who waits --------------------------------------------------------------------------------------- */

static void receive_that_finds_no_buffer_is_parked(void **state) {
    (void)state;
    open_dry(1, 0);
    unsigned before = script_receives();
    park(1);
    assert_int_equal(rig_pool_stats().starved, 1);
    r.backend->verbs->wait(r.backend, 1000);
    assert_int_equal(script_last_wait().timeout_ns, 1000); /* there is nothing to be done about it */
    rig_dispatch();
    assert_int_equal(script_receives(), before);
    told_nothing_more(&o[1]);
    close_dry(1);
}

/* A peer that has ended, or reset, must not be waited with: it would hold what it has. */
static void ends_are_told_without_a_buffer(void **state) {
    (void)state;
    static const int results[] = { 0, -ECONNRESET };
    open_dry(1, 0);
    receive(1);
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        script_set_peek(results[i]);
        epoll_tell(fds[1], EPOLLIN | EPOLLRDHUP);
        told_final(&o[1], results[i]);
        assert_int_equal(rig_pool_stats().parked_streams, 0);
        r.backend->verbs->receive(r.backend, &o[1].op, fds[1], 0, false);
        script_set_peek(-EAGAIN);
        epoll_settle();
    }
    assert_int_equal(rig_pool_stats().starved, 0);
    close_dry(1);
}

static void nothing_to_read_is_no_reason_to_wait(void **state) {
    (void)state;
    open_dry(1, 0);
    receive(1);
    script_set_peek(-EAGAIN);
    unsigned peeks = script_peeks();
    epoll_tell(fds[1], EPOLLIN);
    assert_int_equal(script_peeks(), peeks + 1);
    assert_false(r.backend->verbs->is_starved(&o[1].op));
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    told_nothing_more(&o[1]);
    drop_kept(1);
    script_set_receive("abc", 3); /* it is not served unasked, and hears of the next byte */
    unsigned before = script_receives();
    epoll_settle();
    assert_int_equal(script_receives(), before);
    epoll_tell(fds[1], EPOLLIN);
    told_bytes(&o[1], "abc");
    close_dry(1);
}

static void parked_receive_can_be_cancelled(void **state) {
    (void)state;
    open_dry(1, 0);
    park(3);
    r.backend->verbs->cancel(r.backend, &o[2].op);
    assert_int_equal(rig_pool_stats().parked_streams, 2);
    r.backend->verbs->cancel(r.backend, &o[2].op);
    assert_int_equal(rig_pool_stats().parked_streams, 2);
    epoll_settle();
    told_final(&o[2], -ECANCELED);
    order_count = 0;
    drop_kept(1);
    script_set_receive("abcdef", 6);
    epoll_settle();
    assert_int_equal(order[0], 1);
    told_nothing_more(&o[2]);
    close_dry(3);
}

/* ---- who is served ----------------------------------------------------------------------------------- */

static void parked_receives_are_served_in_order(void **state) {
    (void)state;
    static const char bytes[8 * BUFFER];
    open_dry(3, 0);
    park(4);
    script_set_receive(bytes, sizeof bytes);
    drop_kept(1);
    rig_turn();
    assert_int_equal(order_count, 1); /* a buffer, and so one receive */
    assert_int_equal(order[0], 1);
    rig_turn(); /* it has more, and is last now */
    assert_int_equal(order_count, 1);
    drop_kept(3);
    rig_turn();
    assert_int_equal(order_count, 4);
    for (unsigned i = 1; i < 4; i++)
        assert_int_equal(order[i], i + 1);
    assert_true(r.backend->verbs->is_starved(&o[1].op));
    close_dry(4);
}

/* Who hears of bytes while others wait has to wait behind them, also where a buffer has come back. */
static void who_is_late_is_not_served_first(void **state) {
    (void)state;
    static const char bytes[8 * BUFFER];
    open_dry(1, 0);
    park(2);
    receive(3);
    script_ready(fds[3], EPOLLIN);
    drop_kept(1);
    script_set_receive(bytes, sizeof bytes);
    rig_submit();
    rig_submit();
    rig_dispatch();
    assert_int_equal(order_count, 1);
    assert_int_equal(order[0], 1);
    drop_kept(1);
    rig_turn();
    assert_int_equal(order[1], 2);
    drop_kept(1);
    rig_turn();
    assert_int_equal(order[2], 3);
    close_dry(3);
}

/* A buffer that serves one that has little may serve the next one as well. */
static void one_buffer_serves_several(void **state) {
    (void)state;
    open_dry(1, 0);
    park(2);
    drop_kept(1);
    o[1].then = NULL;
    script_set_receive("abc", 3);
    rig_turn();
    assert_int_equal(o[1].count, 1);
    assert_int_equal(rig_pool_stats().parked_streams, 0); /* the other one was tried, too, and found nothing */
    script_set_receive("def", 3);
    epoll_tell(fds[2], EPOLLIN);
    told_bytes(&o[2], "def");
    assert_int_equal(o[2].told[0].data - o[1].told[0].data, 3);
    close_dry(2);
}

/* The loop does not sleep over a buffer that has come back; and it asks the kernel every second time. */
static void loop_does_not_sleep_over_the_parked(void **state) {
    (void)state;
    open_dry(1, 0);
    park(1);
    epoll_settle();
    unsigned waits = script_last_wait().count;
    drop_kept(1);
    test_ok(r.backend->verbs->wait(r.backend, 1000));
    test_ok(r.backend->verbs->wait(r.backend, 1000));
    assert_int_equal(script_last_wait().count, waits + 1);
    assert_int_equal(script_last_wait().timeout_ns, 0);
    close_dry(1);
}

/* ---- the reserve ------------------------------------------------------------------------------------- */

static void reserve_is_used_where_nothing_else_moves(void **state) {
    (void)state;
    open_dry(2, 4);
    park(2);
    assert_int_equal(rig_pool_stats().private_bytes, 0); /* others have just been told something */
    script_set_receive("abcde", 5);
    rig_turn();
    told_bytes(&o[1], "abcde"); /* the first one; for the second there is nothing */
    told_nothing_more(&o[2]);
    assert_int_equal(rig_pool_stats().private_bytes, WEIR__PRIVATE_BYTES);
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    close_dry(2);
}

/* What else moves may bring a buffer back, but it must not keep them waiting for ever. */
static void reserve_is_used_at_last_while_others_move(void **state) {
    (void)state;
    open_dry(2, 4);
    park(1);
    receive(2);
    script_set_peek(-EAGAIN); /* nothing for it, again and again */
    script_set_receive("abc", 3);
    unsigned turns = 0, before = script_receives();
    while (script_receives() == before) {
        script_ready(fds[2], EPOLLIN);
        rig_submit();
        rig_submit();
        rig_dispatch();
        assert_true(++turns < 20);
    }
    assert_int_equal(turns, 8); /* behind the one that parked it */
    told_bytes(&o[1], "abc");
    told_nothing_more(&o[2]);
    close_dry(2);
}

static void limit_is_exact_in_the_reserve(void **state) {
    (void)state;
    open_dry(1, 4);
    fds[1] = epoll_socket();
    r.backend->verbs->receive(r.backend, &o[1].op, fds[1], 2, false);
    script_ready(fds[1], EPOLLIN);
    script_set_peek(1);
    rig_submit();
    rig_submit();
    rig_dispatch();
    script_set_receive("abc", 3);
    epoll_settle();
    told_bytes(&o[1], "ab");
    told_final(&o[1], -ECANCELED);
    close_dry(1);
}

/* Nobody says when there is memory again: it is tried about once a second, and not in each turn. */
static void private_block_without_memory_waits_for_the_tick(void **state) {
    (void)state;
    open_dry(1, 4);
    park(1);
    script_set_receive("abc", 3);
    atomic_store(&r.memory.fail_at, atomic_load(&r.memory.allocations) + 1);
    rig_turn();
    assert_int_equal(atomic_load(&r.memory.failed), 1);
    uint64_t allocations = atomic_load(&r.memory.allocations);
    epoll_settle();
    r.backend->verbs->wait(r.backend, 1000);
    assert_int_equal(script_last_wait().timeout_ns, 1000);
    rig_dispatch();
    assert_int_equal(atomic_load(&r.memory.allocations), allocations);
    told_nothing_more(&o[1]);
    r.backend->verbs->tick(r.backend, false);
    rig_turn();
    told_bytes(&o[1], "abc");
    close_dry(1);
}

/* They are asked when nothing moves any more: before that, memory may come, and what lies before the reset is read. */
static void reset_of_the_parked_is_told_when_nothing_moves(void **state) {
    (void)state;
    open_dry(1, 0);
    park(2);
    script_set_lost(-ECONNRESET);
    r.backend->verbs->tick(r.backend, false);
    rig_turn();
    told_nothing_more(&o[1]);
    assert_int_equal(rig_pool_stats().parked_streams, 2);
    r.backend->verbs->tick(r.backend, true);
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    epoll_settle();
    told_final(&o[1], -ECONNRESET);
    told_final(&o[2], -ECONNRESET);
    close_dry(2);
}

/* The budget had room, and the system had none: nobody was asked, since one more block was about to be tried. */
static void reset_of_the_parked_is_told_when_there_is_no_memory_for_a_block(void **state) {
    (void)state;
    open_dry(1, 4);
    park(1);
    atomic_store(&r.memory.fail_at, atomic_load(&r.memory.allocations) + 1);
    rig_turn();
    assert_int_equal(atomic_load(&r.memory.failed), 1);
    script_set_lost(-ECONNRESET);
    r.backend->verbs->tick(r.backend, true);
    epoll_settle();
    told_final(&o[1], -ECONNRESET);
    close_dry(1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        epoll_test(receive_that_finds_no_buffer_is_parked),
        epoll_test(ends_are_told_without_a_buffer),
        epoll_test(nothing_to_read_is_no_reason_to_wait),
        epoll_test(parked_receive_can_be_cancelled),
        epoll_test(parked_receives_are_served_in_order),
        epoll_test(who_is_late_is_not_served_first),
        epoll_test(one_buffer_serves_several),
        epoll_test(loop_does_not_sleep_over_the_parked),
        epoll_test(reserve_is_used_where_nothing_else_moves),
        epoll_test(reserve_is_used_at_last_while_others_move),
        epoll_test(limit_is_exact_in_the_reserve),
        epoll_test(private_block_without_memory_waits_for_the_tick),
        epoll_test(reset_of_the_parked_is_told_when_nothing_moves),
        epoll_test(reset_of_the_parked_is_told_when_there_is_no_memory_for_a_block),
    };
    return cmocka_run_group_tests_name("epoll-dry", tests, NULL, NULL);
}
