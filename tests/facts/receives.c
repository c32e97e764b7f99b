/* SPDX-License-Identifier: MIT */
/* What ends a receive, what an empty ring does to it, and what it means. */
#include "facts/facts.h"

static int ends[2], others[2];

static void begin(void) {
    open_ring(16, 256);
    open_group(0, INCREMENTAL);
    pair(ends);
}

/* The receive that comes next goes on where the last one stopped. */
static void goes_on_at(unsigned id, size_t offset) {
    pair(others);
    receive(others[0], 77, 0, 0);
    write_bytes(others[1], 20);
    weir__cqe cqe = next_of(77);
    is_data(cqe, 77, 20, id, F_MORE | F_BUF_MORE);
    assert_int_equal(test_differs((uint64_t)others[1], 0, buffer(0, id) + offset, 20), -1);
}

/* ---- how it ends ------------------------------------------------------------------------------------ */

static void end_of_stream_is_zero_without_a_buffer(void) {
    begin();
    publish(0, 4096, 2);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 100);
    is_data(next(), 1, 100, 0, F_MORE | F_BUF_MORE);
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    is(next(), 1, 0, 0);
    goes_on_at(0, 100);
}

static void end_of_stream_is_told_again_to_the_next_receive(void) {
    begin();
    publish(0, 4096, 2);
    close_now(ends[1]);
    receive(ends[0], 1, 0, 0);
    is(next(), 1, 0, 0);
    receive(ends[0], 1, 0, 0);
    is(next(), 1, 0, 0);
}

static void data_comes_before_the_end_behind_it(void) {
    begin();
    publish(0, 4096, 2);
    write_bytes(ends[1], 100);
    close_now(ends[1]);
    until(ends[0], POLLRDHUP);
    receive(ends[0], 1, 0, 0);
    is_data(next(), 1, 100, 0, F_MORE | F_BUF_MORE);
    is(next(), 1, 0, 0);
}

static void reset_ends_it_without_a_buffer(void) {
    begin();
    publish(0, 4096, 2);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 100);
    is_data(next(), 1, 100, 0, F_MORE | F_BUF_MORE);
    disconnect(ends[1]);
    is(next(), 1, -ECONNRESET, 0);
    goes_on_at(0, 100);
}

static void reset_behind_unread_data_comes_after_it_and_once(void) {
    begin();
    publish(0, 4096, 2);
    write_bytes(ends[1], 100);
    disconnect(ends[1]);
    until(ends[0], POLLHUP);
    receive(ends[0], 1, 0, 0);
    is_data(next(), 1, 100, 0, F_MORE | F_BUF_MORE);
    is(next(), 1, -ECONNRESET, 0);
    receive(ends[0], 1, 0, 0);
    is(next(), 1, 0, 0);
}

/* A socket that has heard the end is half closed, and what breaks then is the other half. */
static void reset_behind_an_end_is_told_to_no_receive(void) {
    begin();
    publish(0, 4096, 2);
    write_bytes(ends[1], 100);
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    until(ends[0], POLLRDHUP);
    disconnect(ends[1]);
    until(ends[0], POLLHUP);
    receive(ends[0], 1, 0, 0);
    is_data(next(), 1, 100, 0, F_MORE | F_BUF_MORE);
    is(next(), 1, 0, 0);
    receive(ends[0], 1, 0, 0);
    is(next(), 1, 0, 0);
    assert_int_equal(weir__sys_send(ends[0], "x", 1), -EPIPE);
}

static void unix_peer_that_ends_and_closes_with_bytes_unread_resets(void) {
    begin();
    publish(0, 4096, 2);
    write_bytes(ends[0], 100);
    write_bytes(ends[1], 30);
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    close_now(ends[1]);
    until(ends[0], POLLHUP);
    receive(ends[0], 1, 0, 0);
    is_data(next(), 1, 30, 0, F_MORE | F_BUF_MORE);
    is(next(), 1, -ECONNRESET, 0);
    receive(ends[0], 1, 0, 0);
    is(next(), 1, 0, 0);
}

static void peer_that_closes_with_bytes_unread_resets(void) {
    begin();
    publish(0, 4096, 2);
    write_bytes(ends[1], 30);
    write_bytes(ends[0], 100);
    until(ends[1], POLLIN);
    close_now(ends[1]);
    until(ends[0], POLLHUP);
    receive(ends[0], 1, 0, 0);
    is_data(next(), 1, 30, 0, F_MORE | F_BUF_MORE);
    is(next(), 1, -ECONNRESET, 0);
    receive(ends[0], 1, 0, 0);
    is(next(), 1, 0, 0);
}

static void receive_goes_on_after_we_have_shut_down_our_side(void) {
    begin();
    publish(0, 4096, 2);
    receive(ends[0], 1, 0, 0);
    test_ok(weir__sys_shutdown(ends[0], SHUT_WR));
    nothing_comes();
    write_bytes(ends[1], 100);
    weir__cqe cqe = next();
    is_data(cqe, 1, 100, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
    assert_int_equal(weir__sys_send(ends[0], "x", 1), -EPIPE);
    receive(ends[1], 2, 0, 0);
    is(next(), 2, 0, 0);
    close_now(ends[1]);
    is(next(), 1, 0, 0);
}

/* ---- ends that are never told ------------------------------------------------------------------------ */

/* It polled, and what it was told of were the bytes; the end behind them comes with no other news. A look finds it, and
 * so does another receive. */
static void wait_for_bytes_and(void (*end_it)(void)) {
    begin();
    receive(ends[0], 1, 0, POLL_FIRST); /* the ring is empty */
    publish(0, 4096, 2);
    write_bytes(ends[1], 100);
    end_it();
    until(ends[0], POLLRDHUP);
    is_data(next_of(1), 1, 100, 0, F_MORE | F_BUF_MORE);
}

static void close_far_end(void) {
    close_now(ends[1]);
}

static void reset_far_end(void) {
    disconnect(ends[1]);
}

static void end_behind_bytes_that_were_polled_for_is_forgotten(void) {
    wait_for_bytes_and(close_far_end);
    if (is_before(6, 17)) { /* it cannot ask a Unix socket whether it holds more, and looks */
        is(next(), 1, 0, 0);
        return;
    }
    nothing_comes();
    assert_int_equal(weir__sys_peek(ends[0]), 0);
    receive(ends[0], 2, 0, 0);
    is(next_of(2), 2, 0, 0);
}

static void reset_behind_bytes_that_were_polled_for_is_forgotten(void) {
    wait_for_bytes_and(reset_far_end);
    nothing_comes();
    receive(ends[0], 2, 0, 0);
    is(next_of(2), 2, -ECONNRESET, 0);
}

static void reset_that_was_forgotten_is_told_once_by_a_look(void) {
    wait_for_bytes_and(reset_far_end);
    nothing_comes();
    assert_int_equal(weir__sys_peek(ends[0]), -ECONNRESET);
    assert_int_equal(weir__sys_peek(ends[0]), 0);
}

/* While there is no memory to read the bytes. */
static void reset_is_told_once_though_bytes_wait_before_it(void) {
    begin();
    assert_int_equal(weir__sys_lost(ends[0]), 0);
    assert_int_equal(weir__sys_send(ends[1], "bytes", 5), 5);
    reset_far_end();
    nothing_comes();
    assert_int_equal(weir__sys_peek(ends[0]), 1);
    assert_int_equal(weir__sys_lost(ends[0]), -ECONNRESET);
    assert_int_equal(weir__sys_lost(ends[0]), 0);
}

/* Its peer has closed, and had not read all that it was sent. */
static void close_over_unread_bytes_is_a_reset_though_bytes_wait_before_it(void) {
    begin();
    assert_int_equal(weir__sys_send(ends[0], "unread", 6), 6);
    assert_int_equal(weir__sys_send(ends[1], "bytes", 5), 5);
    close_far_end();
    nothing_comes();
    assert_int_equal(weir__sys_peek(ends[0]), 1);
    assert_int_equal(weir__sys_lost(ends[0]), -ECONNRESET);
}

static void orderly_end_behind_bytes_is_never_forgotten(void) {
    wait_for_bytes_and(close_far_end);
    is(next(), 1, 0, 0);
}

/* ---- an empty ring ---------------------------------------------------------------------------------- */

static void receive_on_an_empty_ring_answers_at_once(void) {
    begin();
    receive(ends[0], 1, 0, 0);
    assert_int_equal(enter(), 1);
    is(next(), 1, -ENOBUFS, 0);
}

static void receive_that_polls_first_waits_on_an_empty_ring(void) {
    begin();
    receive(ends[0], 1, 0, POLL_FIRST);
    nothing_comes();
}

static void want_of_a_buffer_stands_for_data(void) {
    begin();
    receive(ends[0], 1, 0, POLL_FIRST);
    nothing_comes();
    write_bytes(ends[1], 100);
    is(next(), 1, -ENOBUFS, 0);
    publish(0, 4096, 1);
    receive(ends[0], 1, 0, POLL_FIRST);
    weir__cqe cqe = next();
    is_data(cqe, 1, 100, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
}

static void want_of_a_buffer_stands_for_data_that_was_there_before(void) {
    begin();
    write_bytes(ends[1], 100);
    until(ends[0], POLLIN);
    receive(ends[0], 1, 0, POLL_FIRST);
    is(next(), 1, -ENOBUFS, 0);
    receive(ends[0], 1, 0, 0);
    is(next(), 1, -ENOBUFS, 0);
}

static void want_of_a_buffer_stands_for_an_end(void) {
    begin();
    receive(ends[0], 1, 0, POLL_FIRST);
    nothing_comes();
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    is(next(), 1, -ENOBUFS, 0);
    publish(0, 4096, 1);
    receive(ends[0], 1, 0, POLL_FIRST);
    is(next(), 1, 0, 0);
    goes_on_at(0, 0);
}

static void want_of_a_buffer_stands_for_a_reset(void) {
    begin();
    receive(ends[0], 1, 0, POLL_FIRST);
    nothing_comes();
    disconnect(ends[1]);
    is(next(), 1, -ENOBUFS, 0);
    publish(0, 4096, 1);
    receive(ends[0], 1, 0, POLL_FIRST);
    is(next(), 1, -ECONNRESET, 0);
    goes_on_at(0, 0);
}

static void buffer_added_after_arming_is_used(void) {
    begin();
    receive(ends[0], 1, 0, POLL_FIRST);
    nothing_comes();
    publish(0, 4096, 1);
    nothing_comes();
    write_bytes(ends[1], 100);
    weir__cqe cqe = next();
    is_data(cqe, 1, 100, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
}

static void data_beyond_the_last_buffer_ends_it_and_stays_in_the_socket(void) {
    begin();
    publish(0, 64, 1);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 100);
    weir__cqe cqe = next();
    is_data(cqe, 1, 64, 0, F_MORE);
    read_bytes(cqe, 0, ends[1]);
    is(next(), 1, -ENOBUFS, 0);
    publish(0, 64, 1);
    receive(ends[0], 1, 0, 0);
    cqe = next();
    is_data(cqe, 1, 36, 1, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
}

static void last_buffer_filled_exactly_ends_nothing(void) {
    begin();
    publish(0, 64, 1);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 64);
    weir__cqe cqe = next();
    is_data(cqe, 1, 64, 0, F_MORE);
    read_bytes(cqe, 0, ends[1]);
    /* The kernel looks once more: whether a buffer is wanted for that is its own business. */
    if (next_if_any(&cqe)) {
        is(cqe, 1, -ENOBUFS, 0);
        receive(ends[0], 1, 0, POLL_FIRST);
    }
    publish(0, 64, 1);
    write_bytes(ends[1], 5);
    cqe = next();
    is_data(cqe, 1, 5, 1, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
}

static void buffers_added_to_a_starved_group_wake_nobody(void) {
    begin();
    receive(ends[0], 1, 0, POLL_FIRST);
    nothing_comes();
    write_bytes(ends[1], 100);
    is(next(), 1, -ENOBUFS, 0);
    publish(0, 4096, 4);
    nothing_comes();
    write_bytes(ends[1], 100);
    nothing_comes();
    receive(ends[0], 1, 0, 0);
    weir__cqe cqe = next();
    is_data(cqe, 1, 200, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
}

/* ---- groups ----------------------------------------------------------------------------------------- */

static void group_that_is_unregistered_is_missed_at_the_next_data(void) {
    begin();
    publish(0, 4096, 2);
    receive(ends[0], 1, 0, 0);
    nothing_comes();
    test_ok(weir__buffer_ring_unregister(ring(), buffers_of(0)));
    nothing_comes();
    write_bytes(ends[1], 100);
    is(next(), 1, -ENOBUFS, 0);
    until(ends[0], POLLIN);
}

static void group_registered_anew_is_used_by_what_was_armed_on_the_old_one(void) {
    begin();
    publish(0, 4096, 2);
    receive(ends[0], 1, 0, 0);
    write_bytes(ends[1], 10);
    is_data(next(), 1, 10, 0, F_MORE | F_BUF_MORE);
    reopen_group(0, CLASSIC);
    publish(0, 128, 2);
    write_bytes(ends[1], 20);
    is_data(next(), 1, 20, 2, F_MORE);
    assert_int_equal(test_differs((uint64_t)ends[1], 10, buffer(0, 2), 20), -1);
}

static void group_that_was_never_registered_has_no_buffers(void) {
    begin();
    receive(ends[0], 1, 1, 0);
    is(next(), 1, -ENOBUFS, 0);
}

static void groups_do_not_touch_each_other(void) {
    begin();
    pair(others);
    open_group(1, CLASSIC);
    publish(0, 4096, 1);
    publish(1, 128, 2);
    receive(ends[0], 1, 0, 0);
    receive(others[0], 2, 1, 0);
    write_bytes(ends[1], 10);
    weir__cqe cqe = next();
    is_data(cqe, 1, 10, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
    write_bytes(others[1], 10);
    cqe = next();
    is_data(cqe, 2, 10, 0, F_MORE);
    read_bytes(cqe, 1, others[1]);
}

const fact facts_of_receives[] = {
    FACT(end_of_stream_is_zero_without_a_buffer, ANY),
    FACT(end_of_stream_is_told_again_to_the_next_receive, ANY),
    FACT(data_comes_before_the_end_behind_it, ANY),
    FACT(reset_ends_it_without_a_buffer, TCP),
    FACT(reset_behind_unread_data_comes_after_it_and_once, TCP),
    FACT(reset_behind_an_end_is_told_to_no_receive, TCP),
    FACT(unix_peer_that_ends_and_closes_with_bytes_unread_resets, UNIX),
    FACT(peer_that_closes_with_bytes_unread_resets, ANY),
    FACT(receive_goes_on_after_we_have_shut_down_our_side, ANY),
    FACT(end_behind_bytes_that_were_polled_for_is_forgotten, UNIX),
    FACT(reset_behind_bytes_that_were_polled_for_is_forgotten, TCP),
    FACT(reset_that_was_forgotten_is_told_once_by_a_look, TCP),
    FACT(reset_is_told_once_though_bytes_wait_before_it, TCP),
    FACT(close_over_unread_bytes_is_a_reset_though_bytes_wait_before_it, ANY),
    FACT(orderly_end_behind_bytes_is_never_forgotten, TCP),
    FACT(receive_on_an_empty_ring_answers_at_once, ANY),
    FACT(receive_that_polls_first_waits_on_an_empty_ring, ANY),
    FACT(want_of_a_buffer_stands_for_data, ANY),
    FACT(want_of_a_buffer_stands_for_data_that_was_there_before, ANY),
    FACT(want_of_a_buffer_stands_for_an_end, ANY),
    FACT(want_of_a_buffer_stands_for_a_reset, TCP),
    FACT(buffer_added_after_arming_is_used, ANY),
    FACT(data_beyond_the_last_buffer_ends_it_and_stays_in_the_socket, ANY),
    FACT(last_buffer_filled_exactly_ends_nothing, ANY),
    FACT(buffers_added_to_a_starved_group_wake_nobody, ANY),
    FACT(group_that_is_unregistered_is_missed_at_the_next_data, ANY),
    FACT(group_registered_anew_is_used_by_what_was_armed_on_the_old_one, ANY),
    FACT(group_that_was_never_registered_has_no_buffers, ANY),
    FACT(groups_do_not_touch_each_other, ANY),
    { 0 },
};
