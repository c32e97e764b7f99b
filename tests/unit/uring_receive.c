/* SPDX-License-Identifier: MIT */
/* Receiving: how receives are armed, what ends them, and what starts them again. */
#include "unit/rig.h"

static owner o[16];

static const char *full(void) {
    static char bytes[BUFFER + 1];
    memset(bytes, 'f', BUFFER);
    return bytes;
}

/* ---- arming ----------------------------------------------------------------------------------------- */

static void receive_is_a_multishot_on_the_group(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    const script_entry *entry = rig_receive(o, 7);
    assert_int_equal(entry->sqe.fd, 7);
    assert_int_equal(entry->sqe.flags, IOSQE_BUFFER_SELECT);
    assert_int_equal(entry->sqe.buf_group, script_last_group().id);
    assert_int_equal(entry->sqe.ioprio, IORING_RECV_MULTISHOT);
    assert_int_equal(entry->sqe.len, 0);
    assert_int_equal(entry->sqe.addr, 0);
    assert_int_equal(entry->sqe.msg_flags, 0); /* MSG_WAITALL corrupts a shared incremental group */
    told_nothing_more(o);
    rig_cancel_and_close(o, 1);
}

static void start_asks_nothing_of_the_kernel(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    unsigned enters = script_last_enter().count;
    r.backend->verbs->receive(r.backend, &o->op, 7, 0, false);
    assert_int_equal(script_last_enter().count, enters);
    assert_int_equal(script_unseen(), 0);
    assert_false(weir__op_is_idle(&o->op));
    rig_submit();
    script_expect(IORING_OP_RECV, 7);
    rig_cancel_and_close(o, 1);
}

static void group_is_registered_as_the_mode_says(void **state) {
    (void)state;
    rig_open_default();
    assert_int_equal(script_last_group().flags, IOU_PBUF_RING_INC);
    assert_int_equal(script_last_group().entries, 16);
    assert_int_equal(script_last_group().published, 4);
    rig_close();
    rig_open(&(rig_options){ .is_classic = true });
    assert_int_equal(script_last_group().flags, 0);
    rig_close();
}

/* Where one completion could bring a megabyte, others would wait for it. */
static void completion_brings_a_fair_share_of_a_large_buffer(void **state) {
    (void)state;
    owner_init(o);
    rig_open(&(rig_options){ .buffer_bytes = 1 << 20 });
    script_entry *entry = rig_receive(o, 7);
    assert_int_equal(entry->sqe.len, 256 << 10);
    assert_int_equal(entry->sqe.optlen, 0);
    script_complete(entry, -EINVAL, 0); /* Linux before 6.17 */
    rig_turn();
    told_nothing_more(o);
    rig_submit();
    entry = script_expect(IORING_OP_RECV, 7);
    assert_int_equal(entry->sqe.len, 0);
    script_complete(entry, -EINVAL, 0); /* that is another matter */
    rig_turn();
    told_final(o, -EINVAL);
    rig_close();
}

/* ---- data ------------------------------------------------------------------------------------------- */

static void bytes_of_several_streams_come_from_one_buffer(void **state) {
    (void)state;
    owners_init(o, 2);
    rig_open_default();
    script_entry *one = rig_receive(&o[0], 7), *two = rig_receive(&o[1], 8);
    script_receive(one, "hello", 5, true);
    script_receive(two, "other", 5, true);
    script_receive(one, "world", 5, true);
    rig_turn();
    told_bytes(&o[0], "hello");
    told_bytes(&o[0], "world");
    told_bytes(&o[1], "other");
    assert_ptr_equal(o[0].told[1].data, o[0].told[0].data + 10);
    assert_int_equal(r.backend->stats.slices, 3);
    assert_int_equal(r.backend->stats.bytes_in, 15);
    assert_int_equal(r.backend->stats.rearms, 0);
    told_nothing_more(&o[0]);
    told_nothing_more(&o[1]);
    rig_cancel_and_close(o, 2);
}

static void bytes_go_on_in_the_next_buffer(void **state) {
    (void)state;
    static char bytes[BUFFER + 100];
    owner_init(o);
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    test_fill(1, 0, bytes, sizeof bytes);
    script_receive(entry, bytes, sizeof bytes, true);
    rig_turn();
    assert_int_equal(next_told(o)->size, BUFFER);
    assert_int_equal(next_told(o)->size, 100);
    assert_int_equal(test_differs(1, BUFFER, o->told[1].bytes, 32), -1);
    told_nothing_more(o);
    rig_cancel_and_close(o, 1);
}

static void buffers_that_came_back_are_published_by_the_next_wait(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    script_receive(entry, full(), BUFFER, true);
    rig_turn();
    assert_int_equal(script_last_group().published, 4);
    rig_submit();
    assert_int_equal(script_last_group().published, 5);
    assert_int_equal(script_published(4).id, script_published(0).id); /* the hottest one */
    assert_ptr_equal(script_published(4).data, script_published(0).data);
    assert_int_equal(script_published(4).size, BUFFER);
    rig_cancel_and_close(o, 1);
}

/* The kernel ends a multishot when its queue of completions is full; the bytes are good. */
static void receive_ended_with_data_is_armed_again_after_the_data(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    script_receive(entry, "hello", 5, false);
    rig_turn();
    told_bytes(o, "hello");
    told_nothing_more(o);
    assert_int_equal(r.backend->stats.rearms, 1);
    rig_submit();
    entry = script_expect(IORING_OP_RECV, 7);
    script_receive(entry, "world", 5, true);
    rig_turn();
    told_bytes(o, "world");
    rig_cancel_and_close(o, 1);
}

static void receive_ended_for_no_reason_is_armed_again(void **state) {
    (void)state;
    static const int errors[] = { -ECANCELED, -EINTR, -EAGAIN };
    owner_init(o);
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_complete(entry, errors[i], 0);
        rig_turn();
        told_nothing_more(o);
        rig_submit();
        entry = script_expect(IORING_OP_RECV, 7);
    }
    assert_int_equal(r.backend->stats.rearms, 3);
    rig_cancel_and_close(o, 1);
}

static void end_of_the_stream_is_final(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    script_receive(entry, "bye", 3, true);
    script_complete(entry, 0, IORING_CQE_F_SOCK_NONEMPTY);
    rig_turn();
    told_bytes(o, "bye");
    told_final(o, 0);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void error_of_the_stream_is_final(void **state) {
    (void)state;
    static const int errors[] = { -ECONNRESET, -ETIMEDOUT, -ENOTCONN, -EBADF, -ENOMEM };
    owner_init(o);
    rig_open_default();
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_complete(rig_receive(o, 7), errors[i], 0);
        rig_turn();
        told_final(o, errors[i]);
    }
    rig_close();
}

/*
 * A soak hung: a peer on a Unix socket had written a few bytes and ended, the bytes had come, and the end never did.
 * The kernel (6.18) had taken both wake-ups for one, found that the socket held nothing more and went to sleep over it.
 * A reset over TCP can be lost likewise. So a socket that said with its bytes that it is empty, and was silent for a
 * while, is looked at.
 */
static void tick(void) {
    r.backend->verbs->tick(r.backend, false);
}

static script_entry *silent_receive(void) {
    owner_init(o);
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    script_receive(entry, "bye", 3, true);
    rig_turn();
    told_bytes(o, "bye");
    tick();
    rig_turn();
    assert_int_equal(script_peeks(), 0); /* it was not silent for long */
    return entry;
}

/*
 * An end that a look finds may be what is left of a reset that a send has got, whose completion is in the queue still. The
 * look was believed once, and the stream was told of a good end. Now the receive is taken back, and started again it
 * finds the end in order.
 */
static void receive_whose_end_the_kernel_forgot_is_taken_back(void **state) {
    (void)state;
    script_entry *entry = silent_receive();
    script_set_peek(0);
    tick();
    told_nothing_more(o);
    rig_submit();
    script_entry *cancellation = script_expect_cancel(entry);
    script_complete(entry, -ECANCELED, 0);
    script_complete(cancellation, 0, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    assert_int_equal(script_peeks(), 1);
    rig_close();
}

static void end_that_the_kernel_told_after_all_is_told_once(void **state) {
    (void)state;
    script_entry *entry = silent_receive();
    script_set_peek(0);
    script_complete(entry, 0, 0); /* it lies in the queue already */
    tick();
    rig_dispatch();
    told_final(o, 0);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void error_found_by_looking_is_told(void **state) {
    (void)state;
    script_entry *entry = silent_receive();
    script_set_peek(-ECONNRESET); /* which the socket tells once */
    tick();
    rig_submit();
    script_entry *cancellation = script_expect_cancel(entry);
    script_complete(cancellation, 0, 0);
    script_complete(entry, -ECANCELED, 0);
    rig_turn();
    told_final(o, -ECONNRESET);
    rig_close();
}

/* The look had taken the error out of the socket, and the receive, on its way before it could be cancelled, found an end
 * there. The stream was told of a good end, watched a socket that had nothing more to tell, and stayed for ever. */
static void error_found_by_looking_is_told_although_the_receive_then_finds_an_end(void **state) {
    (void)state;
    script_entry *entry = silent_receive();
    script_set_peek(-ECONNRESET);
    tick();
    rig_submit();
    script_complete(script_expect_cancel(entry), -ENOENT, 0);
    script_complete(entry, 0, 0);
    rig_turn();
    told_final(o, -ECONNRESET);
    rig_close();
}

static void forgotten_end_is_left_to_the_receive_after_a_cancellation(void **state) {
    (void)state;
    script_entry *entry = silent_receive();
    script_set_peek(0);
    tick();
    r.backend->verbs->cancel(r.backend, &o->op); /* a pause, say: the receive after it finds the end */
    rig_submit();
    script_complete(script_expect_cancel(entry), 0, 0);
    script_complete(entry, -ECANCELED, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    rig_close();
}

static void silent_receive_is_looked_at_once_and_again_when_it_was_heard_of(void **state) {
    (void)state;
    script_entry *entry = silent_receive();
    tick();
    assert_int_equal(script_peeks(), 1); /* nothing there: it goes on */
    for (int i = 0; i < 3; i++)
        tick();
    assert_int_equal(script_peeks(), 1);
    for (int i = 0; i < 3; i++) { /* never silent for long */
        script_receive(entry, "more", 4, true);
        rig_turn();
        told_bytes(o, "more");
        tick();
    }
    assert_int_equal(script_peeks(), 1);
    tick();
    assert_int_equal(script_peeks(), 2);
    rig_cancel_and_close(o, 1);
}

static void receive_that_the_kernel_goes_on_with_is_not_looked_at(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    script_consume(entry, 4);
    script_complete(entry, 4,
                    IORING_CQE_F_BUFFER | (uint32_t)script_published(0).id << IORING_CQE_BUFFER_SHIFT |
                        IORING_CQE_F_BUF_MORE | IORING_CQE_F_MORE | IORING_CQE_F_SOCK_NONEMPTY);
    rig_turn();
    tick();
    tick();
    assert_int_equal(script_peeks(), 0); /* the socket holds more, which the kernel takes by itself */
    script_receive(entry, "last", 4, false);
    rig_turn();
    tick();
    tick();
    assert_int_equal(script_peeks(), 0); /* it is armed again, which looks */
    rig_cancel_and_close(o, 1);
}

static void doubtful_receive_can_be_cancelled(void **state) {
    (void)state;
    script_entry *entry = silent_receive();
    r.backend->verbs->cancel(r.backend, &o->op);
    tick();
    rig_submit();
    script_complete(script_expect_cancel(entry), 0, 0);
    script_complete(entry, -ECANCELED, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    tick();
    assert_int_equal(script_peeks(), 0);
    rig_close();
}

static void end_may_carry_the_last_word_on_a_buffer(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    script_complete(entry, 0, IORING_CQE_F_BUFFER | (uint32_t)script_published(0).id << IORING_CQE_BUFFER_SHIFT);
    rig_turn();
    told_final(o, 0);
    assert_int_equal(rig_pool_stats().buffers_idle, 1);
    rig_close();
}

/* An owner may end, and free, what it is told about. */
static void restart(owner *it, const told *last) {
    if (last->is_final && it->count == 2)
        r.backend->verbs->receive(r.backend, &it->op, 9, 0, false);
    if (last->is_final)
        it->finals = 0;
}

static void final_may_start_the_operation_again(void **state) {
    (void)state;
    owner_init(o);
    o->then = restart;
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    script_receive(entry, "bye", 3, true);
    script_complete(entry, 0, 0);
    rig_turn();
    assert_int_equal(o->count, 2);
    rig_submit();
    script_complete(script_expect(IORING_OP_RECV, 9), -ECONNRESET, 0);
    rig_turn();
    assert_int_equal(o->count, 3);
    assert_int_equal(o->told[2].result, -ECONNRESET);
    rig_close();
}

static void dispatch_stops_at_its_limit_and_goes_on(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    script_entry *entry = rig_receive(o, 7);
    for (int i = 0; i < 5; i++)
        script_receive(entry, "data!", 5, true);
    rig_submit();
    assert_int_equal(r.backend->verbs->dispatch(r.backend, 2), 2);
    assert_int_equal(o->count, 2);
    assert_true(r.backend->verbs->is_ready(r.backend));
    assert_int_equal(r.backend->verbs->dispatch(r.backend, 2), 2);
    assert_int_equal(r.backend->verbs->dispatch(r.backend, 2), 1);
    assert_int_equal(o->count, 5);
    assert_false(r.backend->verbs->is_ready(r.backend));
    rig_cancel_and_close(o, 1);
}

/* ---- overflow --------------------------------------------------------------------------------------- */

/* While completions wait outside of a full queue the kernel ends each multishot that has one more. More watches of ended
 * peers than the queue has entries kept it that way: all were started again, were told of the end again, and so for ever. */
static void nothing_is_started_while_completions_are_in_overflow(void **state) {
    (void)state;
    owners_init(o, 2);
    rig_open_default();
    script_entry *entry = rig_receive(&o[0], 7);
    script_receive(entry, "last", 4, false);
    script_overflow(true);
    rig_dispatch();
    told_bytes(&o[0], "last");
    r.backend->verbs->watch(r.backend, &o[1].op, 8);
    for (int i = 0; i < 3; i++) {
        r.backend->verbs->wait(r.backend, 1000);
        assert_int_equal(script_unseen(), 0);
        assert_int_equal(script_last_enter().timeout_ns, 0); /* there is something to do */
        rig_dispatch();
    }
    script_overflow(false);
    rig_submit();
    (void)script_expect(IORING_OP_RECV, 7);
    (void)script_expect(IORING_OP_POLL_ADD, 8);
    rig_cancel_and_close(o, 2);
}

static void overflow_is_counted_once_and_loses_nothing(void **state) {
    (void)state;
    owner_init(o);
    rig_open(&(rig_options){ .tuning = { .sq_entries = 4, .cq_entries = 8 } });
    script_entry *entry = rig_receive(o, 7);
    for (int i = 0; i < 20; i++)
        script_receive(entry, "data!", 5, i < 19);
    rig_dispatch();
    assert_int_equal(o->count, 8);
    assert_int_equal(r.backend->stats.overflows, 1);
    rig_dispatch();
    assert_int_equal(r.backend->stats.overflows, 1);
    rig_turn();
    assert_int_equal(o->count, 16);
    assert_int_equal(r.backend->stats.overflows, 1); /* the same one goes on */
    rig_turn();
    assert_int_equal(o->count, 20);
    for (int i = 0; i < 20; i++)
        told_bytes(o, "data!");
    rig_submit();
    entry = script_expect(IORING_OP_RECV, 7);
    for (int i = 0; i < 9; i++)
        script_receive(entry, "data!", 5, true);
    rig_dispatch();
    assert_int_equal(r.backend->stats.overflows, 2); /* another one */
    rig_turn();
    rig_turn();
    assert_int_equal(o->count, 29);
    assert_int_equal(r.backend->mode, WEIR_BACKEND_URING_INCREMENTAL);
    rig_cancel_and_close(o, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(receive_is_a_multishot_on_the_group),
        rig_test(start_asks_nothing_of_the_kernel),
        rig_test(group_is_registered_as_the_mode_says),
        rig_test(completion_brings_a_fair_share_of_a_large_buffer),
        rig_test(bytes_of_several_streams_come_from_one_buffer),
        rig_test(bytes_go_on_in_the_next_buffer),
        rig_test(buffers_that_came_back_are_published_by_the_next_wait),
        rig_test(receive_ended_with_data_is_armed_again_after_the_data),
        rig_test(receive_ended_for_no_reason_is_armed_again),
        rig_test(end_of_the_stream_is_final),
        rig_test(receive_whose_end_the_kernel_forgot_is_taken_back),
        rig_test(end_that_the_kernel_told_after_all_is_told_once),
        rig_test(error_found_by_looking_is_told),
        rig_test(error_found_by_looking_is_told_although_the_receive_then_finds_an_end),
        rig_test(forgotten_end_is_left_to_the_receive_after_a_cancellation),
        rig_test(silent_receive_is_looked_at_once_and_again_when_it_was_heard_of),
        rig_test(receive_that_the_kernel_goes_on_with_is_not_looked_at),
        rig_test(doubtful_receive_can_be_cancelled),
        rig_test(error_of_the_stream_is_final),
        rig_test(end_may_carry_the_last_word_on_a_buffer),
        rig_test(final_may_start_the_operation_again),
        rig_test(dispatch_stops_at_its_limit_and_goes_on),
        rig_test(nothing_is_started_while_completions_are_in_overflow),
        rig_test(overflow_is_counted_once_and_loses_nothing),
    };
    return cmocka_run_group_tests_name("uring-receive", tests, NULL, NULL);
}
