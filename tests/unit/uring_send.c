/* SPDX-License-Identifier: MIT */
/* Sending: what of a queue goes into one submission, what a short or interrupted one means, and whose frame it
 * is. */
#include <poll.h>

#include "unit/rig.h"

static owner o[8];
static weir__range_cache cache;
static weir__sendq queue;

static void open_queue(void) {
    owners_init(o, 8);
    rig_open(&(rig_options){ .budget = 512, .window = 4 });
    cache = (weir__range_cache){ .allocator = &r.memory.allocator, .owner = &r };
    queue = (weir__sendq){ 0 };
}

static void close_queue(void) {
    weir__sendq_clear(&queue, &cache);
    weir__range_cache_deinit(&cache);
    rig_close();
}

static void push(const void *bytes, size_t size) {
    weir_slice slice;
    test_ok(weir_slice_copy(r.pool, bytes, size, &slice));
    test_ok(weir__sendq_push(&queue, &cache, &slice));
    weir_slice_unref(&slice);
}

static script_entry *send_queue(uint8_t opcode) {
    r.backend->verbs->send(r.backend, &o->op, 7, &queue, false);
    rig_submit();
    return script_expect(opcode, 7);
}

static const struct msghdr *header_of(const script_entry *entry) {
    return (const struct msghdr *)(uintptr_t)entry->sqe.addr;
}

static void sent(script_entry *entry, int32_t res) {
    script_complete(entry, res, 0);
    rig_turn();
    told_final(o, res);
    if (res > 0)
        weir__sendq_advance(&queue, &cache, (uint64_t)res);
}

static void one_range_is_sent_from_where_it_lies(void **state) {
    (void)state;
    open_queue();
    push("hello", 5);
    script_entry *entry = send_queue(IORING_OP_SEND);
    assert_true(entry->sqe.addr == (uintptr_t)queue.first->data);
    assert_int_equal(entry->sqe.len, 5);
    /* A signal would be the application's end, and a wait for room may be in a worker thread. */
    assert_int_equal(entry->sqe.msg_flags, MSG_NOSIGNAL | MSG_DONTWAIT);
    sent(entry, 5);
    assert_null(queue.first);
    close_queue();
}

static void several_ranges_are_gathered_in_order(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    push("two", 3);
    push("three", 5);
    script_entry *entry = send_queue(IORING_OP_SENDMSG);
    const struct msghdr *header = header_of(entry);
    assert_int_equal(header->msg_iovlen, 3);
    assert_memory_equal(header->msg_iov[0].iov_base, "one", 3);
    assert_memory_equal(header->msg_iov[1].iov_base, "two", 3);
    assert_memory_equal(header->msg_iov[2].iov_base, "three", 5);
    assert_ptr_equal(header->msg_iov[2].iov_base, queue.last->data); /* no copy */
    assert_null(header->msg_name);
    assert_null(header->msg_control);
    assert_int_equal(header->msg_controllen, 0);
    assert_int_equal(entry->sqe.msg_flags, MSG_NOSIGNAL | MSG_DONTWAIT);
    sent(entry, 11);
    close_queue();
}

static size_t gathered(const struct msghdr *header) {
    size_t bytes = 0;
    for (size_t i = 0; i < header->msg_iovlen; i++)
        bytes += header->msg_iov[i].iov_len;
    return bytes;
}

static void one_send_takes_no_more_than_its_cap(void **state) {
    (void)state;
    static uint8_t bytes[300 << 10];
    open_queue();
    push(bytes, sizeof bytes);
    script_entry *entry = send_queue(IORING_OP_SEND); /* the first range alone is as much as may be */
    assert_int_equal(entry->sqe.len, 256 << 10);
    sent(entry, 200 << 10);
    push(bytes, sizeof bytes);
    entry = send_queue(IORING_OP_SENDMSG);
    assert_int_equal(gathered(header_of(entry)), 256 << 10);
    assert_int_equal(header_of(entry)->msg_iovlen, 2);
    sent(entry, 256 << 10);
    close_queue();
}

static void one_send_takes_no_more_ranges_than_its_frame_has(void **state) {
    (void)state;
    open_queue();
    for (int i = 0; i < 100; i++)
        push("x", 1);
    script_entry *entry = send_queue(IORING_OP_SENDMSG);
    assert_int_equal(header_of(entry)->msg_iovlen, 64);
    sent(entry, 64);
    entry = send_queue(IORING_OP_SENDMSG);
    assert_int_equal(header_of(entry)->msg_iovlen, 36);
    sent(entry, 36);
    close_queue();
}

static void short_send_is_told_as_it_is(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    push("two", 3);
    sent(send_queue(IORING_OP_SENDMSG), 4);
    assert_int_equal(queue.bytes, 2);
    script_entry *entry = send_queue(IORING_OP_SEND);
    assert_memory_equal((const char *)(uintptr_t)entry->sqe.addr, "wo", 2);
    sent(entry, 2);
    close_queue();
}

static void interrupted_send_is_started_again_with_the_same_bytes(void **state) {
    (void)state;
    static const int errors[] = { -EINTR, -ECANCELED };
    open_queue();
    push("one", 3);
    push("two", 3);
    script_entry *entry = send_queue(IORING_OP_SENDMSG);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        const struct msghdr *header = header_of(entry);
        script_complete(entry, errors[i], 0);
        rig_turn();
        told_nothing_more(o);
        rig_submit();
        entry = script_expect(IORING_OP_SENDMSG, 7);
        assert_ptr_equal(header_of(entry), header);
        assert_int_equal(header->msg_iovlen, 2);
        assert_memory_equal(header->msg_iov[1].iov_base, "two", 3);
    }
    sent(entry, 6);
    close_queue();
}

/*
 * A soak showed worker threads: of sends to peers that had sent an urgent byte and did not read. The kernel's own poll
 * asks for urgent data too, so it was ready at once, again and again, although there was no room; after 128 times the
 * send went to a thread. The kernel is asked not to wait, and we wait by a poll for room alone.
 */
static script_entry *wait_for_room(script_entry *entry) {
    script_complete(entry, -EAGAIN, 0);
    rig_turn();
    told_nothing_more(o);
    rig_submit();
    script_entry *poll = script_expect(IORING_OP_POLL_ADD, 7);
    assert_int_equal(poll->sqe.poll32_events, POLLOUT);
    assert_int_equal(poll->sqe.len, 0); /* once */
    return poll;
}

static void send_without_room_waits_for_room_and_nothing_else(void **state) {
    (void)state;
    static const int answers[] = { POLLOUT, POLLERR | POLLHUP, -ECANCELED, -EINTR };
    open_queue();
    push("one", 3);
    push("two", 3);
    script_entry *entry = send_queue(IORING_OP_SENDMSG);
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        const struct msghdr *header = header_of(entry);
        script_complete(wait_for_room(entry), answers[i], 0);
        rig_turn();
        told_nothing_more(o);
        rig_submit();
        entry = script_expect(IORING_OP_SENDMSG, 7);
        assert_ptr_equal(header_of(entry), header);
    }
    sent(entry, 6);
    close_queue();
}

static void send_that_waits_for_room_can_be_cancelled(void **state) {
    (void)state;
    static const int answers[] = { -ECANCELED, POLLOUT };
    open_queue();
    push("one", 3);
    push("two", 3);
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        script_entry *poll = wait_for_room(send_queue(IORING_OP_SENDMSG));
        r.backend->verbs->cancel(r.backend, &o->op);
        rig_submit();
        script_complete(script_expect_cancel(poll), 0, 0);
        script_complete(poll, answers[i], 0);
        rig_turn();
        told_final(o, -ECANCELED);
        assert_int_equal(queue.bytes, 6);
    }
    uint64_t allocations = atomic_load(&r.memory.allocations);
    script_complete(send_queue(IORING_OP_SENDMSG), -EAGAIN, 0); /* it is to poll, and has no entry yet */
    rig_dispatch();
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_turn();
    told_final(o, -ECANCELED);
    sent(send_queue(IORING_OP_SENDMSG), 6);
    assert_int_equal(atomic_load(&r.memory.allocations), allocations); /* frames came back each time */
    close_queue();
}

/*
 * The kernel tells of POLLRDHUP unasked. To a peer that had shut down its side and did not read, the wait for room was
 * over at once, the send found none, and the loop span. Then it is to wait for a change.
 */
static script_entry *wait_for_a_change(script_entry *poll) {
    script_complete(poll, POLLRDHUP, 0);
    rig_turn();
    rig_submit();
    poll = script_expect(IORING_OP_POLL_ADD, 7);
    assert_int_equal(poll->sqe.poll32_events, POLLOUT);
    assert_int_equal(poll->sqe.len, IORING_POLL_ADD_MULTI);
    for (int i = 0; i < 3; i++) {
        script_complete(poll, POLLRDHUP, IORING_CQE_F_MORE);
        rig_turn();
        assert_int_equal(script_unseen(), 0);
    }
    told_nothing_more(o);
    return poll;
}

static void send_to_a_peer_that_has_ended_waits_for_room(void **state) {
    (void)state;
    static const int answers[] = { POLLOUT | POLLRDHUP, POLLERR | POLLHUP };
    open_queue();
    push("one", 3);
    push("two", 3);
    for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
        script_entry *poll = wait_for_a_change(wait_for_room(send_queue(IORING_OP_SENDMSG)));
        script_complete(poll, answers[i], IORING_CQE_F_MORE);
        rig_turn();
        told_nothing_more(o);
        rig_submit();
        script_complete(script_expect_cancel(poll), 0, 0);
        script_complete(poll, -ECANCELED, 0);
        rig_turn();
        told_final(o, 0); /* nothing was sent, and its owner tries again */
        assert_int_equal(queue.bytes, 6);
    }
    uint64_t allocations = atomic_load(&r.memory.allocations);
    sent(send_queue(IORING_OP_SENDMSG), 6);
    assert_int_equal(atomic_load(&r.memory.allocations), allocations);
    close_queue();
}

static void send_that_waits_for_a_change_can_be_cancelled(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    push("two", 3);
    script_entry *poll = wait_for_a_change(wait_for_room(send_queue(IORING_OP_SENDMSG)));
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_submit();
    script_complete(poll, POLLRDHUP, IORING_CQE_F_MORE);
    script_complete(script_expect_cancel(poll), 0, 0);
    script_complete(poll, -ECANCELED, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    assert_int_equal(queue.bytes, 6);
    uint64_t allocations = atomic_load(&r.memory.allocations);
    sent(send_queue(IORING_OP_SENDMSG), 6);
    assert_int_equal(atomic_load(&r.memory.allocations), allocations);
    close_queue();
}

static void failed_wait_for_room_is_the_sends_failure(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    sent(wait_for_room(send_queue(IORING_OP_SEND)), -ENOMEM);
    assert_int_equal(queue.bytes, 3);
    close_queue();
}

static void interrupted_send_that_was_cancelled_ends(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    script_entry *entry = send_queue(IORING_OP_SEND);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_submit();
    script_entry *cancellation = script_expect_cancel(entry);
    script_complete(entry, -EINTR, 0);
    script_complete(cancellation, 0, 0);
    rig_turn();
    told_final(o, -EINTR);
    close_queue();
}

static void partial_count_of_a_cancelled_send_is_told(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    push("two", 3);
    script_entry *entry = send_queue(IORING_OP_SENDMSG);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_submit();
    script_complete(script_expect_cancel(entry), 0, 0);
    script_complete(entry, 4, 0);
    rig_turn();
    told_final(o, 4);
    close_queue();
}

static void failed_send_is_final(void **state) {
    (void)state;
    static const int errors[] = { -EPIPE, -ECONNRESET, -ENOBUFS, -ENOMEM };
    open_queue();
    push("one", 3);
    push("two", 3);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        sent(send_queue(IORING_OP_SENDMSG), errors[i]);
    assert_int_equal(queue.bytes, 6);
    close_queue();
}

static void frames_are_used_again_without_allocating(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    push("two", 3);
    sent(send_queue(IORING_OP_SENDMSG), 0);
    uint64_t allocations = atomic_load(&r.memory.allocations);
    const struct msghdr *frame = NULL;
    for (int i = 0; i < 50; i++) {
        script_entry *entry = send_queue(IORING_OP_SENDMSG);
        assert_true(frame == NULL || header_of(entry) == frame);
        frame = header_of(entry);
        assert_int_equal(frame->msg_iovlen, 2);
        sent(entry, 0);
    }
    assert_int_equal(atomic_load(&r.memory.allocations), allocations);
    close_queue();
}

/* What a burst needed is not held for ever. */
static void frames_go_when_none_was_used_from_one_tick_to_the_next(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    push("two", 3);
    sent(send_queue(IORING_OP_SENDMSG), 0);
    uint64_t blocks = atomic_load(&r.memory.live_blocks);
    r.backend->verbs->tick(r.backend, false); /* one was used before it */
    assert_int_equal(atomic_load(&r.memory.live_blocks), blocks);
    script_entry *entry = send_queue(IORING_OP_SENDMSG);
    r.backend->verbs->tick(r.backend, false);
    r.backend->verbs->tick(r.backend, false); /* it is under way */
    sent(entry, 0);
    assert_int_equal(atomic_load(&r.memory.live_blocks), blocks);
    r.backend->verbs->tick(r.backend, false);
    assert_int_equal(atomic_load(&r.memory.live_blocks), blocks - 1);
    sent(send_queue(IORING_OP_SENDMSG), 6);
    close_queue();
}

static void sends_at_a_time_have_a_frame_each(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    push("two", 3);
    for (int i = 0; i < 3; i++)
        r.backend->verbs->send(r.backend, &o[i].op, 7 + i, &queue, false);
    rig_submit();
    script_entry *entries[3];
    for (int i = 0; i < 3; i++)
        entries[i] = script_expect(IORING_OP_SENDMSG, 7 + i);
    assert_ptr_not_equal(header_of(entries[0]), header_of(entries[1]));
    assert_ptr_not_equal(header_of(entries[1]), header_of(entries[2]));
    assert_ptr_not_equal(header_of(entries[0]), header_of(entries[2]));
    for (int i = 0; i < 3; i++)
        script_complete(entries[i], 0, 0);
    rig_turn();
    for (int i = 0; i < 3; i++)
        told_final(&o[i], 0);
    close_queue();
}

static void send_without_memory_for_a_frame_sends_the_first_range(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    push("two", 3);
    atomic_store(&r.memory.fail_at, atomic_load(&r.memory.allocations) + 1);
    script_entry *entry = send_queue(IORING_OP_SEND);
    assert_int_equal(entry->sqe.len, 3);
    assert_int_equal(atomic_load(&r.memory.failed), 1);
    sent(entry, 3);
    assert_int_equal(queue.bytes, 3);
    close_queue();
}

static void send_cancelled_before_it_was_submitted_gives_its_frame_back(void **state) {
    (void)state;
    open_queue();
    push("one", 3);
    push("two", 3);
    r.backend->verbs->send(r.backend, &o->op, 7, &queue, false);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_turn();
    told_final(o, -ECANCELED);
    uint64_t allocations = atomic_load(&r.memory.allocations);
    sent(send_queue(IORING_OP_SENDMSG), 6);
    assert_int_equal(atomic_load(&r.memory.allocations), allocations);
    close_queue();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(one_range_is_sent_from_where_it_lies),
        rig_test(several_ranges_are_gathered_in_order),
        rig_test(one_send_takes_no_more_than_its_cap),
        rig_test(one_send_takes_no_more_ranges_than_its_frame_has),
        rig_test(short_send_is_told_as_it_is),
        rig_test(interrupted_send_is_started_again_with_the_same_bytes),
        rig_test(send_without_room_waits_for_room_and_nothing_else),
        rig_test(send_that_waits_for_room_can_be_cancelled),
        rig_test(send_to_a_peer_that_has_ended_waits_for_room),
        rig_test(send_that_waits_for_a_change_can_be_cancelled),
        rig_test(failed_wait_for_room_is_the_sends_failure),
        rig_test(interrupted_send_that_was_cancelled_ends),
        rig_test(partial_count_of_a_cancelled_send_is_told),
        rig_test(failed_send_is_final),
        rig_test(frames_are_used_again_without_allocating),
        rig_test(frames_go_when_none_was_used_from_one_tick_to_the_next),
        rig_test(sends_at_a_time_have_a_frame_each),
        rig_test(send_without_memory_for_a_frame_sends_the_first_range),
        rig_test(send_cancelled_before_it_was_submitted_gives_its_frame_back),
    };
    return cmocka_run_group_tests_name("uring-send", tests, NULL, NULL);
}
