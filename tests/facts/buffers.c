/* SPDX-License-Identifier: MIT */
/* Whose bytes stand where: how receives use up the buffers of a group. */
#include "facts/facts.h"

static int ends[2], others[2];

static void begin(uint16_t flags) {
    open_ring(16, 256);
    open_group(0, flags);
    pair(ends);
}

static void partial_fill_keeps_the_buffer(void) {
    begin(INCREMENTAL);
    publish(0, 4096, 2);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 100);
    weir__cqe cqe = next();
    is_data(cqe, 1, 100, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
    write_bytes(ends[1], 10);
    cqe = next();
    is_data(cqe, 1, 10, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
    nothing_comes();
}

static void exactly_full_buffer_is_given_up_by_the_completion_that_fills_it(void) {
    begin(INCREMENTAL);
    publish(0, 128, 3); /* the last one is for a kernel that looks whether there is more */
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 100);
    weir__cqe cqe = next();
    is_data(cqe, 1, 100, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
    write_bytes(ends[1], 28);
    cqe = next();
    is_data(cqe, 1, 28, 0, F_MORE);
    read_bytes(cqe, 0, ends[1]);
    write_bytes(ends[1], 128);
    cqe = next();
    is_data(cqe, 1, 128, 1, F_MORE);
    read_bytes(cqe, 0, ends[1]);
    nothing_comes();
}

static void more_data_than_room_goes_on_in_the_next_buffer(void) {
    begin(INCREMENTAL);
    publish(0, 64, 1);
    publish(0, 4096, 1);
    write_bytes(ends[1], 100);
    until(ends[0], POLLIN);
    receive(ends[0], 1, 0, 0);
    weir__cqe cqe = next();
    is_data(cqe, 1, 64, 0, F_MORE);
    read_bytes(cqe, 0, ends[1]);
    cqe = next();
    is_data(cqe, 1, 36, 1, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
    nothing_comes();
}

static void classic_completion_uses_up_a_buffer_however_few_its_bytes(void) {
    begin(CLASSIC);
    publish(0, 64, 4);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 3);
    weir__cqe cqe = next();
    is_data(cqe, 1, 3, 0, F_MORE);
    read_bytes(cqe, 0, ends[1]);
    write_bytes(ends[1], 100);
    cqe = next();
    is_data(cqe, 1, 64, 1, F_MORE);
    read_bytes(cqe, 0, ends[1]);
    cqe = next();
    is_data(cqe, 1, 36, 2, F_MORE);
    read_bytes(cqe, 0, ends[1]);
    nothing_comes();
}

static void entry_at_the_head_says_where_the_kernel_goes_on(void) {
    begin(INCREMENTAL);
    publish(0, 128, 2);
    weir__provided it = weir__buffer_ring_entry(buffers_of(0), 0);
    assert_ptr_equal(it.data, buffer(0, 0));
    assert_int_equal(it.size, 128);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 100);
    (void)next();
    it = weir__buffer_ring_entry(buffers_of(0), 0);
    assert_ptr_equal(it.data, buffer(0, 0) + 100);
    assert_int_equal(it.size, 28);
    assert_int_equal(it.id, 0);
    it = weir__buffer_ring_entry(buffers_of(0), 1);
    assert_ptr_equal(it.data, buffer(0, 1));
    assert_int_equal(it.size, 128);
}

static void entry_of_a_used_up_buffer_has_no_length_and_a_stale_address(void) {
    begin(INCREMENTAL);
    publish(0, 128, 2);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 100);
    (void)next();
    write_bytes(ends[1], 28);
    (void)next();
    weir__provided it = weir__buffer_ring_entry(buffers_of(0), 0);
    assert_int_equal(it.size, 0);
    assert_ptr_equal(it.data, buffer(0, 0) + 100);
    assert_int_equal(it.id, 0);
}

static void entry_of_a_classic_ring_stays_as_it_was(void) {
    begin(CLASSIC);
    publish(0, 128, 2);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 100);
    (void)next();
    weir__provided it = weir__buffer_ring_entry(buffers_of(0), 0);
    assert_ptr_equal(it.data, buffer(0, 0));
    assert_int_equal(it.size, 128);
}

/* Positions are counted over all that were ever published, and the ring goes round. */
static void entries_are_used_again_after_a_round(void) {
    begin(INCREMENTAL);
    publish(0, 32, GROUP_ENTRIES);
    receive(ends[0], 1, 0, 0);
    for (unsigned i = 0; i < GROUP_ENTRIES; i++) {
        if (i == GROUP_ENTRIES - 1)
            publish(0, 64, 2);
        write_bytes(ends[1], 32);
        weir__cqe cqe = next();
        is_data(cqe, 1, 32, i, F_MORE);
        read_bytes(cqe, 0, ends[1]);
    }
    write_bytes(ends[1], 5);
    weir__cqe cqe = next();
    is_data(cqe, 1, 5, GROUP_ENTRIES, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
    weir__provided it = weir__buffer_ring_entry(buffers_of(0), GROUP_ENTRIES);
    assert_ptr_equal(it.data, buffer(0, GROUP_ENTRIES) + 5);
    assert_int_equal(it.size, 59);
}

/* No completion says where its bytes stand. Two sockets share each buffer, and what is whose follows from the order. */
static void sockets_that_share_buffers_are_told_apart_by_the_order_of_completions(void) {
    begin(INCREMENTAL);
    pair(others);
    publish(0, 256, 16);
    receive(ends[0], 1, 0, 0);
    receive(others[0], 2, 0, 0);
    for (size_t i = 0; i < 20; i++) {
        write_bytes(ends[1], 10 + i);
        write_bytes(others[1], 50 - i);
        if (i % 3 == 0)
            continue;
        while (bytes_read(ends[1]) + bytes_read(others[1]) < 60 * (i + 1)) {
            weir__cqe cqe = next();
            assert_in_range(cqe.user_data, 1, 2);
            read_bytes(cqe, 0, cqe.user_data == 1 ? ends[1] : others[1]);
        }
    }
    nothing_comes();
}

/* The order that weir's self-test tries: before Linux 6.12.29 the second overtook the first. */
static void single_shot_and_multishot_complete_in_the_order_of_their_bytes(void) {
    begin(INCREMENTAL);
    pair(others);
    publish(0, 4096, 2);
    write_bytes(ends[1], 4);
    write_bytes(others[1], 4);
    until(ends[0], POLLIN);
    until(others[0], POLLIN);
    struct io_uring_sqe *sqe = entry(IORING_OP_RECV, ends[0], 1);
    sqe->flags = IOSQE_BUFFER_SELECT;
    receive(others[0], 2, 0, 0);
    weir__cqe cqe = next();
    is_data(cqe, 1, 4, 0, F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
    cqe = next();
    is_data(cqe, 2, 4, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, others[1]);
    write_bytes(ends[1], 4); /* a single shot it was */
    nothing_comes();
}

static void single_shot_receive_waits_for_its_data(void) {
    begin(INCREMENTAL);
    publish(0, 4096, 2);
    struct io_uring_sqe *sqe = entry(IORING_OP_RECV, ends[0], 1);
    sqe->flags = IOSQE_BUFFER_SELECT;
    nothing_comes();
    write_bytes(ends[1], 4);
    weir__cqe cqe = next();
    is_data(cqe, 1, 4, 0, F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
}

static void idle_receives_hold_no_buffer(void) {
    int fds[30][2];
    open_ring(64, 256);
    open_group(0, INCREMENTAL);
    publish(0, 4096, 1);
    for (unsigned i = 0; i < 30; i++) {
        pair(fds[i]);
        receive(fds[i][0], 1 + i, 0, 0);
    }
    nothing_comes();
    for (unsigned i = 30; i-- > 0;) {
        write_bytes(fds[i][1], 16);
        weir__cqe cqe = next();
        is_data(cqe, 1 + i, 16, 0, F_MORE | F_BUF_MORE);
        read_bytes(cqe, 0, fds[i][1]);
    }
}

/* After 32 receives a socket goes to the back of the queue. */
static void flood_on_one_socket_does_not_keep_others_waiting(void) {
    begin(INCREMENTAL);
    pair(others);
    publish(0, 8, GROUP_ENTRIES);
    write_bytes(ends[1], 64 * 8);
    write_bytes(others[1], 8);
    until(ends[0], POLLIN);
    until(others[0], POLLIN);
    receive(ends[0], 1, 0, 0);
    receive(others[0], 2, 0, 0);
    unsigned before = 0, after = 0;
    for (unsigned i = 0; i < 65; i++) {
        weir__cqe cqe = next();
        read_bytes(cqe, 0, cqe.user_data == 1 ? ends[1] : others[1]);
        if (cqe.user_data == 2)
            before = i;
        else
            after = i;
        assert_true((cqe.flags & F_MORE) != 0);
    }
    assert_in_range(before, 0, 33);
    assert_int_equal(after, 64);
}

const fact facts_of_buffers[] = {
    FACT(partial_fill_keeps_the_buffer, ANY),
    FACT(exactly_full_buffer_is_given_up_by_the_completion_that_fills_it, ANY),
    FACT(more_data_than_room_goes_on_in_the_next_buffer, ANY),
    FACT(classic_completion_uses_up_a_buffer_however_few_its_bytes, ANY),
    FACT(entry_at_the_head_says_where_the_kernel_goes_on, ANY),
    FACT(entry_of_a_used_up_buffer_has_no_length_and_a_stale_address, ANY),
    FACT(entry_of_a_classic_ring_stays_as_it_was, ANY),
    FACT(entries_are_used_again_after_a_round, ANY),
    FACT(sockets_that_share_buffers_are_told_apart_by_the_order_of_completions, ANY),
    FACT(single_shot_and_multishot_complete_in_the_order_of_their_bytes, ANY),
    FACT(single_shot_receive_waits_for_its_data, ANY),
    FACT(idle_receives_hold_no_buffer, ANY),
    FACT(flood_on_one_socket_does_not_keep_others_waiting, ANY),
    { 0 },
};
