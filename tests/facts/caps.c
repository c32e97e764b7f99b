/* SPDX-License-Identifier: MIT */
/*
 * A multishot receive with limits (Linux 6.17): `len` caps each completion, `optlen` what it brings in all. The second
 * is looked at after a completion, never before: so the last one may go beyond it, by less than one completion.
 */
#include "facts/facts.h"

static int ends[2];

static void begin_with(uint16_t flags) {
    if (is_before(6, 17)) {
        print_message("a receive has no limits before Linux 6.17\n");
        skip();
    }
    open_ring(16, 256);
    open_group(0, flags);
    pair(ends);
}

static void begin(void) {
    begin_with(INCREMENTAL);
}

/* A multishot receive that brings @each bytes a completion at most, and stops when it has brought @all; 0: no limit. */
static void receive_capped(uint64_t user, uint32_t each, uint32_t all) {
    struct io_uring_sqe *sqe = entry(IORING_OP_RECV, ends[0], user);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->len = each;
    sqe->optlen = all;
}

static void brings(uint64_t user, int32_t size, unsigned id, uint32_t flags) {
    weir__cqe cqe = next();
    is_data(cqe, user, size, id, flags);
    read_bytes(cqe, 0, ends[1]);
}

static void write_and_wait(size_t size) {
    write_bytes(ends[1], size);
    until(ends[0], POLLIN);
}

static void length_of_a_multishot_caps_each_completion(void) {
    begin();
    publish(0, 4096, 1);
    receive_capped(1, 16, 0);
    nothing_comes();
    write_bytes(ends[1], 50);
    for (int i = 0; i < 3; i++)
        brings(1, 16, 0, F_MORE | F_BUF_MORE);
    brings(1, 2, 0, F_MORE | F_BUF_MORE);
    nothing_comes();
}

static void capped_completion_uses_up_a_classic_buffer(void) {
    begin_with(CLASSIC);
    publish(0, 64, 8);
    write_and_wait(40);
    receive_capped(1, 16, 0);
    brings(1, 16, 0, F_MORE);
    brings(1, 16, 1, F_MORE);
    brings(1, 8, 2, F_MORE);
}

static void capped_completion_goes_to_the_end_of_its_buffer_at_most(void) {
    begin();
    publish(0, 20, 4);
    write_and_wait(36);
    receive_capped(1, 16, 0);
    brings(1, 16, 0, F_MORE | F_BUF_MORE);
    brings(1, 4, 0, F_MORE);
    brings(1, 16, 1, F_MORE | F_BUF_MORE);
    nothing_comes();
}

static void total_ends_it_with_the_completion_that_reaches_it(void) {
    begin();
    publish(0, 4096, 1);
    receive_capped(1, 0, 100);
    nothing_comes();
    write_bytes(ends[1], 30);
    brings(1, 30, 0, F_MORE | F_BUF_MORE);
    write_bytes(ends[1], 30);
    brings(1, 30, 0, F_MORE | F_BUF_MORE);
    write_bytes(ends[1], 40);
    brings(1, 40, 0, F_BUF_MORE);
}

static void total_may_be_overrun_by_less_than_a_completion(void) {
    begin();
    publish(0, 4096, 1);
    receive_capped(1, 16, 40);
    nothing_comes();
    write_bytes(ends[1], 39);
    brings(1, 16, 0, F_MORE | F_BUF_MORE);
    brings(1, 16, 0, F_MORE | F_BUF_MORE);
    brings(1, 7, 0, F_MORE | F_BUF_MORE);
    write_bytes(ends[1], 100);
    brings(1, 16, 0, F_BUF_MORE); /* 55 = 40 + 16 - 1 */
    nothing_comes();
}

static void total_alone_may_be_overrun_by_a_buffer(void) {
    begin();
    publish(0, 4096, 1);
    write_and_wait(800);
    receive_capped(1, 0, 40);
    brings(1, 800, 0, F_BUF_MORE);
    nothing_comes();
}

static void total_is_of_one_submission(void) {
    begin();
    publish(0, 4096, 1);
    write_and_wait(100);
    for (int i = 0; i < 3; i++) {
        receive_capped(1, 16, 32);
        brings(1, 16, 0, F_MORE | F_BUF_MORE);
        brings(1, 16, 0, F_BUF_MORE);
        nothing_comes();
    }
    receive_capped(1, 16, 32);
    brings(1, 4, 0, F_MORE | F_BUF_MORE);
    write_bytes(ends[1], 28);
    brings(1, 16, 0, F_MORE | F_BUF_MORE);
    brings(1, 12, 0, F_BUF_MORE); /* 32 since it was armed */
}

static void after_its_total_neither_data_nor_an_end_is_told(void) {
    begin();
    publish(0, 4096, 1);
    write_and_wait(40);
    receive_capped(1, 16, 32);
    brings(1, 16, 0, F_MORE | F_BUF_MORE);
    brings(1, 16, 0, F_BUF_MORE);
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    nothing_comes();
    receive_capped(1, 16, 32);
    brings(1, 8, 0, F_MORE | F_BUF_MORE);
    weir__cqe cqe = next();
    is(cqe, 1, 0, 0);
}

static void total_that_is_reached_as_a_buffer_fills_gives_that_up(void) {
    begin();
    publish(0, 32, 2);
    write_and_wait(50);
    receive_capped(1, 0, 32);
    brings(1, 32, 0, 0);
    nothing_comes();
    receive_capped(1, 0, 32);
    brings(1, 18, 1, F_MORE | F_BUF_MORE);
}

static void total_does_not_stand_for_a_buffer(void) {
    begin();
    publish(0, 20, 1);
    write_and_wait(50);
    receive_capped(1, 16, 40);
    brings(1, 16, 0, F_MORE | F_BUF_MORE);
    brings(1, 4, 0, F_MORE);
    is(next(), 1, -ENOBUFS, 0);
}

/* The flood of one socket, which goes to the back of the queue after 32 receives, is counted through all of it. */
static void total_is_counted_over_many_completions(void) {
    begin();
    publish(0, 4096, 1);
    write_and_wait(120 * 8);
    receive_capped(1, 8, 100 * 8);
    for (int i = 1; i < 100; i++)
        brings(1, 8, 0, F_MORE | F_BUF_MORE);
    brings(1, 8, 0, F_BUF_MORE);
    nothing_comes();
}

static void single_shot_receive_has_no_total(void) {
    begin();
    publish(0, 4096, 1);
    receive_capped(1, 16, 40);
    cancel(1, 2);
    is(next_of(2), 2, 0, 0);
    is(next_of(1), 1, -ECANCELED, 0);
    struct io_uring_sqe *sqe = entry(IORING_OP_RECV, ends[0], 1);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->optlen = 40;
    is(next(), 1, -EINVAL, 0);
}

const fact facts_of_caps[] = {
    FACT(length_of_a_multishot_caps_each_completion, ANY),
    FACT(capped_completion_uses_up_a_classic_buffer, ANY),
    FACT(capped_completion_goes_to_the_end_of_its_buffer_at_most, ANY),
    FACT(total_ends_it_with_the_completion_that_reaches_it, ANY),
    FACT(total_may_be_overrun_by_less_than_a_completion, ANY),
    FACT(total_alone_may_be_overrun_by_a_buffer, ANY),
    FACT(total_is_of_one_submission, ANY),
    FACT(after_its_total_neither_data_nor_an_end_is_told, ANY),
    FACT(total_that_is_reached_as_a_buffer_fills_gives_that_up, ANY),
    FACT(total_does_not_stand_for_a_buffer, ANY),
    FACT(total_is_counted_over_many_completions, ANY),
    FACT(single_shot_receive_has_no_total, ANY),
    { 0 },
};
