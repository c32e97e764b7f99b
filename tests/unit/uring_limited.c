/* SPDX-License-Identifier: MIT */
/* Receives that bring no more than they are to: what the kernel is asked for, what is left when it ends early, and how it
 * goes without its limits. */
#include "unit/rig.h"

static owner o[4];

static void open_rig(bool has_limits) {
    owners_init(o, 4);
    script_answer_cancels(false);
    rig_open(&(rig_options){ .tuning = { .no_receive_limits = !has_limits } });
}

static void start(owner *it, int fd, uint64_t limit) {
    r.backend->verbs->receive(r.backend, &it->op, fd, limit, false);
    rig_submit();
}

static script_entry *expect_limited(int fd, uint32_t len, uint32_t optlen) {
    script_entry *entry = script_expect(IORING_OP_RECV, fd);
    assert_int_equal(entry->sqe.ioprio & IORING_RECV_MULTISHOT, IORING_RECV_MULTISHOT);
    assert_int_equal(entry->sqe.flags & IOSQE_BUFFER_SELECT, IOSQE_BUFFER_SELECT);
    assert_int_equal(entry->sqe.len, len);
    assert_int_equal(entry->sqe.optlen, optlen);
    return entry;
}

static script_entry *expect_poll(int fd) {
    script_entry *entry = script_expect(IORING_OP_POLL_ADD, fd);
    assert_int_equal(entry->sqe.poll32_events, POLLIN | POLLRDHUP);
    assert_int_equal(entry->sqe.len, 0); /* once */
    assert_int_equal(entry->sqe.flags & IOSQE_BUFFER_SELECT, 0);
    return entry;
}

/* A poll says that there is something. */
static void is_readable(script_entry *entry, const char *bytes, int result) {
    script_set_receive(bytes, result);
    script_complete(entry, POLLIN, 0);
    rig_dispatch();
}

static void cancel(owner *it) {
    r.backend->verbs->cancel(r.backend, &it->op);
}

/* ---- with limits ---------------------------------------------------------------------------------------- */

static void limit_is_the_kernels_too(void **state) {
    (void)state;
    static const struct {
        uint64_t limit;
        uint32_t len, optlen;
    } cases[] = { { 1, 1, 1 },
                  { 65536, 65536, 65536 },
                  { 65537, 65536, 65537 },
                  { INT32_MAX, 65536, INT32_MAX },
                  { UINT64_C(1) << 40, 65536, INT32_MAX },
                  { UINT64_MAX - 1, 65536, INT32_MAX } };
    open_rig(true);
    script_answer_cancels(true);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        start(&o[0], 100, cases[i].limit);
        expect_limited(100, cases[i].len, cases[i].optlen);
        cancel(&o[0]);
        rig_turn();
        told_final(&o[0], -ECANCELED);
    }
    start(&o[0], 100, 0);
    expect_limited(100, 0, 0);
    rig_cancel_and_close(o, 1);
}

static void limited_receive_is_over_when_it_has_brought_its_bytes(void **state) {
    (void)state;
    open_rig(true);
    start(&o[0], 100, 5);
    script_entry *entry = expect_limited(100, 5, 5);
    script_receive(entry, "abc", 3, true);
    rig_dispatch();
    told_bytes(&o[0], "abc");
    told_nothing_more(&o[0]);
    script_receive(entry, "de", 2, false);
    rig_dispatch();
    told_bytes(&o[0], "de");
    told_final(&o[0], -ECANCELED);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void limited_receive_that_ends_early_goes_on_with_the_rest(void **state) {
    (void)state;
    open_rig(true);
    start(&o[0], 100, 10);
    script_receive(expect_limited(100, 10, 10), "abc", 3, false);
    rig_turn();
    told_bytes(&o[0], "abc");
    rig_submit();
    script_entry *entry = expect_limited(100, 7, 7);
    script_complete(entry, -EINTR, 0);
    rig_dispatch();
    rig_submit();
    script_receive(expect_limited(100, 7, 7), "defghij", 7, false);
    rig_dispatch();
    told_bytes(&o[0], "defghij");
    told_final(&o[0], -ECANCELED);
    rig_close();
}

/* The kernel should have stopped by itself. What it brings besides is the owner's to keep. */
static void limited_receive_that_goes_on_is_taken_back(void **state) {
    (void)state;
    open_rig(true);
    start(&o[0], 100, 3);
    script_entry *entry = expect_limited(100, 3, 3);
    script_receive(entry, "abc", 3, true);
    script_receive(entry, "de", 2, true);
    rig_dispatch();
    told_bytes(&o[0], "abc");
    told_bytes(&o[0], "de");
    rig_submit();
    script_entry *taken_back = script_expect_cancel(entry);
    script_receive(entry, "f", 1, true);
    script_complete(entry, -ECANCELED, 0);
    script_complete(taken_back, 0, 0);
    rig_dispatch();
    told_bytes(&o[0], "f");
    told_final(&o[0], -ECANCELED);
    rig_close();
}

static void limited_receive_without_a_buffer_keeps_what_is_left(void **state) {
    (void)state;
    open_rig(true);
    start(&o[0], 100, 10);
    script_entry *entry = expect_limited(100, 10, 10);
    script_receive(entry, "abcd", 4, true);
    script_complete(entry, -ENOBUFS, 0);
    rig_dispatch();
    told_bytes(&o[0], "abcd");
    assert_int_equal(rig_pool_stats().parked_streams, 1);
    rig_submit();
    script_receive(expect_limited(100, 6, 6), "efghij", 6, false);
    rig_dispatch();
    told_bytes(&o[0], "efghij");
    told_final(&o[0], -ECANCELED);
    rig_close();
}

static void limited_receive_tells_the_end_and_errors(void **state) {
    (void)state;
    static const int results[] = { 0, -ECONNRESET, -ENOTCONN };
    open_rig(true);
    for (int i = 0; i < 3; i++) {
        start(&o[0], 100, 10);
        script_complete(expect_limited(100, 10, 10), results[i], 0);
        rig_dispatch();
        told_final(&o[0], results[i]);
    }
    rig_close();
}

/* ---- without -------------------------------------------------------------------------------------------- */

static void kernel_without_limits_is_found_out_and_remembered(void **state) {
    (void)state;
    int fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    open_rig(true);
    start(&o[0], fd, 5);
    start(&o[1], 101, 9); /* two at a time */
    script_complete(expect_limited(fd, 5, 5), -EINVAL, 0);
    script_complete(expect_limited(101, 9, 9), -EINVAL, 0);
    rig_dispatch();
    told_nothing_more(&o[0]);
    rig_submit();
    script_entry *entry = expect_poll(fd);
    expect_poll(101);
    is_readable(entry, "abc", 3);
    told_bytes(&o[0], "abc");
    rig_submit();
    is_readable(expect_poll(fd), "defgh", 5); /* there is more, and it is not asked for */
    told_bytes(&o[0], "de");
    rig_dispatch();
    told_final(&o[0], -ECANCELED);
    start(&o[2], 102, 1);
    expect_poll(102);
    start(&o[3], 103, 0); /* without a limit it is as ever */
    expect_limited(103, 0, 0);
    rig_cancel_and_close(o, 4);
    weir__sys_close(fd);
}

static void polled_receive_waits_again_or_is_over(void **state) {
    (void)state;
    static const struct {
        int receive, final;
    } cases[] = { { -EAGAIN, 1 }, { -EINTR, 1 }, { 0, 1 }, { -ECONNRESET, -ECONNRESET } };
    int fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    open_rig(false);
    for (int i = 0; i < 4; i++) {
        start(&o[0], fd, 10);
        is_readable(expect_poll(fd), NULL, cases[i].receive);
        if (cases[i].final == 1) {
            told_nothing_more(&o[0]);
            rig_submit();
            is_readable(expect_poll(fd), NULL, 0);
            if (cases[i].receive != 0) { /* an end is believed the second time */
                told_nothing_more(&o[0]);
                rig_submit();
                is_readable(expect_poll(fd), NULL, 0);
            }
            told_final(&o[0], 0);
        } else {
            told_final(&o[0], cases[i].final);
        }
        assert_int_equal(rig_pool_stats().private_bytes, 0); /* nothing came, nothing is held */
    }
    start(&o[0], fd, 10);
    script_complete(expect_poll(fd), -EBADF, 0);
    rig_dispatch();
    told_final(&o[0], -EBADF);
    rig_close();
    weir__sys_close(fd);
}

static weir_slice kept;

static void keep(owner *it, const told *last) {
    if (last->size > 0)
        weir_slice_ref(&it->slice, &kept);
}

static void polled_bytes_can_be_kept_and_are_counted(void **state) {
    (void)state;
    static char many[5000];
    int fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    open_rig(false);
    memset(many, 'm', sizeof many);
    o[0].then = keep;
    start(&o[0], fd, 100000);
    is_readable(expect_poll(fd), many, sizeof many);
    const told *t = next_told(&o[0]);
    assert_in_range(t->size, 3900, WEIR__PRIVATE_BYTES); /* a block, however much there is */
    assert_int_equal(rig_pool_stats().private_bytes, WEIR__PRIVATE_BYTES);
    assert_int_equal(rig_pool_stats().used_bytes, WEIR__PRIVATE_BYTES + 4 * BUFFER);
    assert_memory_equal(kept.data, many, kept.size);
    weir_slice_unref(&kept);
    assert_int_equal(rig_pool_stats().private_bytes, 0);
    rig_cancel_and_close(o, 1);
    weir__sys_close(fd);
}

static weir_slice several[4];
static unsigned several_count;

static void keep_several(owner *it, const told *last) {
    if (last->size > 0)
        weir_slice_ref(&it->slice, &several[several_count++]);
}

/* Half of the budget lay idle, in buffers, and a receive that needs a block waited for a second, or for ever. */
static void idle_buffers_make_room_for_a_block(void **state) {
    (void)state;
    static const char full[BUFFER] = "full";
    int fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    owners_init(o, 2);
    several_count = 0;
    o[0].then = keep_several;
    rig_open(&(rig_options){ .budget = 4, .window = 1, .tuning = { .no_receive_limits = true } });
    start(&o[0], 100, 0);
    script_entry *entry = expect_limited(100, 0, 0);
    for (int i = 0; i < 4; i++) {
        script_receive(entry, full, BUFFER, true);
        rig_dispatch();
        rig_submit();
    }
    while (several_count > 0)
        weir_slice_unref(&several[--several_count]);
    rig_turn();
    assert_int_equal(rig_pool_stats().buffers_idle, 3);
    start(&o[1], fd, 10);
    is_readable(expect_poll(fd), "abc", 3); /* there is no room */
    told_nothing_more(&o[1]);
    rig_submit();
    assert_int_equal(rig_pool_stats().buffers_idle, 0);
    is_readable(expect_poll(fd), "abc", 3);
    told_bytes(&o[1], "abc");
    o[0].read = o[0].count;
    rig_cancel_and_close(o, 2);
    weir__sys_close(fd);
}

static int limited; /* the socket of o[1] */

/* A small budget of which all is posted; o[0] receives from the ring, o[1] can only receive into a block. Return: what o[0] has
 * in the kernel. */
static script_entry *open_small(unsigned budget) {
    limited = weir__sys_socket(AF_INET, SOCK_STREAM);
    owners_init(o, 2);
    rig_open(&(rig_options){ .budget = budget, .window = budget, .tuning = { .no_receive_limits = true } });
    assert_int_equal(rig_pool_stats().buffers_posted, budget);
    start(&o[0], 100, 0);
    return expect_limited(100, 0, 0);
}

static void close_small(void) {
    rig_cancel_and_close(o, 2);
    weir__sys_close(limited);
}

/*
 * All of a small budget was posted, and all that came was for a stream that needs a block: no buffer would ever have come
 * back to make room for one, and the stream waited for ever. The buffers are taken back now. What is armed on the ring
 * goes on with the one that takes its place, and the room stays.
 */
static void posted_buffers_make_room_for_a_block(void **state) {
    (void)state;
    static const char full[BUFFER] = "full";
    for (unsigned budget = 1; budget <= 4; budget++) {
        script_entry *entry = open_small(budget);
        script_receive(entry, "before", 6, true);
        rig_dispatch();
        told_bytes(&o[0], "before");
        start(&o[1], limited, 1000);
        is_readable(expect_poll(limited), "abc", 3); /* there is no room */
        told_nothing_more(&o[1]);
        assert_true(weir__pool_look_at_pressure(r.pool) < WEIR_PRESSURE_STUCK);
        for (int i = 0; i < 3; i++) {
            rig_submit();
            is_readable(expect_poll(limited), "abc", 3);
            told_bytes(&o[1], "abc");
            assert_int_equal(rig_pool_stats().buffers_posted, budget - 1);
        }
        assert_int_equal(script_groups_registered(), 1);
        for (unsigned i = 1; i < budget; i++) {
            script_receive(entry, full, BUFFER, true);
            rig_dispatch();
            assert_int_equal(next_told(&o[0])->size, BUFFER);
        }
        rig_submit();
        assert_int_equal(rig_pool_stats().buffers_posted, budget - 1);
        (void)expect_poll(limited);
        close_small();
    }
}

static weir_slice first_half;

static void keep_the_first_half(owner *it, const told *last) {
    if (last->size > 0 && first_half.owner == NULL)
        weir_slice_ref(&it->slice, &first_half);
}

/*
 * The only buffer was half full, and somebody kept what was in it to wait for the rest. Taken back it made no room, since it stayed
 * where it was; but there was none to receive the rest into any more.
 */
static void buffer_that_is_referred_to_is_not_taken_back(void **state) {
    (void)state;
    script_entry *entry = open_small(1);
    first_half = (weir_slice){ 0 };
    o[0].then = keep_the_first_half;
    script_receive(entry, "half", 4, true);
    rig_dispatch();
    told_bytes(&o[0], "half");
    start(&o[1], limited, 1000);
    is_readable(expect_poll(limited), "abc", 3);
    told_nothing_more(&o[1]);
    assert_int_equal(weir__pool_look_at_pressure(r.pool),
                     WEIR_PRESSURE_STUCK); /* an unref helps, and nothing else */
    rig_submit();
    assert_int_equal(rig_pool_stats().buffers_filling, 1);
    script_receive(entry, "rest", 4, true);
    rig_dispatch();
    told_bytes(&o[0], "rest");
    weir_slice_unref(&first_half);
    rig_turn();
    rig_submit();
    is_readable(expect_poll(limited), "abc", 3);
    told_bytes(&o[1], "abc");
    close_small();
}

/* A dispatch that stops early makes no room yet: that is no reason to say that nothing goes on. */
static void room_that_is_about_to_be_made_is_no_pressure(void **state) {
    (void)state;
    script_entry *entry = open_small(2);
    start(&o[1], limited, 1000);
    script_set_receive("abc", 3);
    script_complete(expect_poll(limited), POLLIN, 0);
    script_receive(entry, "next", 4, true);
    assert_int_equal(r.backend->verbs->dispatch(r.backend, 1), 1);
    assert_int_equal(rig_pool_stats().parked_streams, 1);
    assert_int_equal(weir__pool_look_at_pressure(r.pool), WEIR_PRESSURE_HIGH);
    rig_dispatch();
    told_bytes(&o[0], "next");
    assert_int_equal(weir__pool_look_at_pressure(r.pool), WEIR_PRESSURE_NONE);
    close_small();
}

/* The kernel had taken from a buffer before it gave up its ring, and the completion had no room in the queue: it is
 * looked at before buffers go round again. */
static void completions_of_the_ring_that_was_taken_back_come_first(void **state) {
    (void)state;
    script_entry *entry = open_small(2);
    uint32_t first = script_published(0).id;
    start(&o[1], limited, 1000);
    script_overflow(true);
    is_readable(expect_poll(limited), "abc", 3);
    told_nothing_more(&o[1]);
    assert_int_equal(script_groups_registered(), 0);
    rig_submit();
    assert_int_equal(script_groups_registered(), 0);
    script_overflow(false);
    script_complete(entry, 4,
                    IORING_CQE_F_MORE | IORING_CQE_F_BUFFER | IORING_CQE_F_BUF_MORE |
                        first << IORING_CQE_BUFFER_SHIFT);
    rig_dispatch();
    assert_int_equal(next_told(&o[0])->result, 4);
    assert_int_equal(script_groups_registered(), 1);
    rig_submit();
    is_readable(expect_poll(limited), "abc", 3);
    told_bytes(&o[1], "abc");
    script_receive(entry, "after", 5, true);
    rig_dispatch();
    told_bytes(&o[0], "after");
    close_small();
}

/* Without memory for a ring blocks carry everything, and it is tried again. */
static void ring_that_cannot_be_had_again_is_tried_again(void **state) {
    (void)state;
    script_entry *entry = open_small(2);
    start(&o[1], limited, 1000);
    script_fail(SCRIPT_BUFFERS_OPEN, -ENOMEM, 2);
    is_readable(expect_poll(limited), "abc", 3);
    assert_int_equal(script_groups_registered(), 0);
    rig_submit();
    is_readable(expect_poll(limited), "abc", 3);
    told_bytes(&o[1], "abc");
    assert_int_equal(script_groups_registered(), 0);
    rig_turn();
    assert_int_equal(script_groups_registered(), 1);
    rig_submit();
    script_receive(entry, "after", 5, true);
    rig_dispatch();
    told_bytes(&o[0], "after");
    close_small();
}

/* ---- cancelled ------------------------------------------------------------------------------------------ */

static void cancelled_before_it_was_submitted_it_is_over(void **state) {
    (void)state;
    for (int has_limits = 0; has_limits < 2; has_limits++) {
        open_rig(has_limits);
        r.backend->verbs->receive(r.backend, &o[0].op, 100, 10, false);
        cancel(&o[0]);
        rig_turn();
        told_final(&o[0], -ECANCELED);
        assert_int_equal(script_unseen(), 0);
        rig_close();
    }
}

static void cancelled_in_the_kernel_it_is_over_with_both_answers(void **state) {
    (void)state;
    for (int has_limits = 0; has_limits < 2; has_limits++)
        for (int is_answered_first = 0; is_answered_first < 2; is_answered_first++) {
            open_rig(has_limits);
            start(&o[0], 100, 10);
            script_entry *entry = has_limits ? expect_limited(100, 10, 10) : expect_poll(100);
            cancel(&o[0]);
            rig_submit();
            script_entry *answer = script_expect_cancel(entry);
            script_complete(is_answered_first ? answer : entry, is_answered_first ? 0 : -ECANCELED, 0);
            rig_dispatch();
            told_nothing_more(&o[0]);
            script_complete(is_answered_first ? entry : answer, is_answered_first ? -ECANCELED : 0, 0);
            rig_dispatch();
            told_final(&o[0], -ECANCELED);
            rig_close();
        }
}

/* The poll was answered before the cancellation: what came stays in the socket. */
static void cancelled_poll_that_fired_receives_nothing(void **state) {
    (void)state;
    open_rig(false);
    start(&o[0], 100, 10);
    script_entry *entry = expect_poll(100);
    cancel(&o[0]);
    rig_submit();
    script_entry *answer = script_expect_cancel(entry);
    script_complete(entry, POLLIN, 0);
    script_complete(answer, -ENOENT, 0);
    rig_dispatch();
    told_final(&o[0], -ECANCELED);
    assert_int_equal(script_receives(), 0);
    rig_close();
}

static void cancelled_while_the_kernel_refuses_the_limit_it_is_over(void **state) {
    (void)state;
    open_rig(true);
    start(&o[0], 100, 10);
    script_entry *entry = expect_limited(100, 10, 10);
    script_complete(entry, -EINVAL, 0);
    cancel(&o[0]);
    rig_turn();
    script_entry *answer = script_find(IORING_OP_ASYNC_CANCEL, -1);
    if (answer != NULL) {
        script_complete(answer, -ENOENT, 0);
        rig_dispatch();
    }
    told_final(&o[0], -ECANCELED);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void cancel_in_the_callback(owner *it, const told *last) {
    if (!last->is_final)
        cancel(it);
}

static void cancelled_in_its_callback_it_is_over(void **state) {
    (void)state;
    int fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    for (int limit = 3; limit < 11; limit += 7) { /* spent at once, or not */
        open_rig(false);
        o[0].then = cancel_in_the_callback;
        start(&o[0], fd, (uint64_t)limit);
        is_readable(expect_poll(fd), "abc", 3);
        told_bytes(&o[0], "abc");
        rig_turn();
        told_final(&o[0], -ECANCELED);
        assert_int_equal(script_unseen(), 0);
        rig_close();
    }
    weir__sys_close(fd);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(limit_is_the_kernels_too),
        rig_test(limited_receive_is_over_when_it_has_brought_its_bytes),
        rig_test(limited_receive_that_ends_early_goes_on_with_the_rest),
        rig_test(limited_receive_that_goes_on_is_taken_back),
        rig_test(limited_receive_without_a_buffer_keeps_what_is_left),
        rig_test(limited_receive_tells_the_end_and_errors),
        rig_test(kernel_without_limits_is_found_out_and_remembered),
        rig_test(polled_receive_waits_again_or_is_over),
        rig_test(polled_bytes_can_be_kept_and_are_counted),
        rig_test(idle_buffers_make_room_for_a_block),
        rig_test(posted_buffers_make_room_for_a_block),
        rig_test(buffer_that_is_referred_to_is_not_taken_back),
        rig_test(room_that_is_about_to_be_made_is_no_pressure),
        rig_test(completions_of_the_ring_that_was_taken_back_come_first),
        rig_test(ring_that_cannot_be_had_again_is_tried_again),
        rig_test(cancelled_before_it_was_submitted_it_is_over),
        rig_test(cancelled_in_the_kernel_it_is_over_with_both_answers),
        rig_test(cancelled_poll_that_fired_receives_nothing),
        rig_test(cancelled_while_the_kernel_refuses_the_limit_it_is_over),
        rig_test(cancelled_in_its_callback_it_is_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
