/* SPDX-License-Identifier: MIT */
/* Sending over epoll: what of a queue goes into one call, when it is tried, and when it waits for room. */
#include "unit/epoll_rig.h"

static owner o[2];
static int fd;
static weir__range_cache cache;
static weir__sendq queue;

static void open_queue(void) {
    owners_init(o, 2);
    epoll_open(&(rig_options){ .budget = 512, .window = 4 });
    cache = (weir__range_cache){ .allocator = &r.memory.allocator, .owner = &r };
    queue = (weir__sendq){ 0 };
    fd = epoll_socket();
}

static void close_queue(void) {
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    weir__sendq_clear(&queue, &cache);
    weir__range_cache_deinit(&cache);
    epoll_close_socket(fd);
    rig_close();
}

static void push(const void *bytes, size_t size) {
    weir_slice slice;
    test_ok(weir_slice_copy(r.pool, bytes, size, &slice));
    test_ok(weir__sendq_push(&queue, &cache, &slice));
    weir_slice_unref(&slice);
}

static void push_three(void) {
    push("one", 3);
    push("two", 3);
    push("three", 5);
}

static void start(void) {
    r.backend->verbs->send(r.backend, &o->op, fd, &queue, false);
    told_nothing_more(o);
}

static void told_sent(int32_t result) {
    told_final(o, result);
    if (result > 0)
        weir__sendq_advance(&queue, &cache, (uint64_t)result);
}

static void expect_sent(const char *expected) {
    const void *bytes;
    assert_int_equal(script_sent(&bytes), strlen(expected));
    assert_memory_equal(bytes, expected, strlen(expected));
}

/* ---- what is sent ------------------------------------------------------------------------------------ */

static void one_range_is_sent_alone(void **state) {
    (void)state;
    open_queue();
    push("hello", 5);
    start();
    rig_turn();
    told_sent(5);
    assert_int_equal(script_sends(), 0); /* not by vectors */
    close_queue();
}

static void several_ranges_are_gathered_in_order(void **state) {
    (void)state;
    open_queue();
    push_three();
    start();
    rig_turn();
    told_sent(11);
    assert_int_equal(script_sends(), 1);
    assert_int_equal(script_last_vectors(), 3);
    expect_sent("onetwothree");
    close_queue();
}

static void one_send_takes_no_more_than_its_cap(void **state) {
    (void)state;
    static uint8_t bytes[300 << 10];
    open_queue();
    push(bytes, sizeof bytes);
    start();
    epoll_settle();
    told_sent(256 << 10);
    push(bytes, sizeof bytes);
    start();
    epoll_settle();
    told_sent(256 << 10);
    assert_int_equal(script_last_vectors(), 2);
    close_queue();
}

static void one_send_takes_no_more_ranges_than_there_is_room_for(void **state) {
    (void)state;
    open_queue();
    for (int i = 0; i < 100; i++)
        push("x", 1);
    start();
    epoll_settle();
    told_sent(64);
    assert_int_equal(script_last_vectors(), 64);
    start();
    epoll_settle();
    told_sent(36);
    close_queue();
}

/* The stream may have been corked in between: so what comes later is the next one's, as if it were the kernel's already. */
static void what_is_written_after_the_start_is_the_next_ones(void **state) {
    (void)state;
    open_queue();
    push_three();
    start();
    push("four", 4);
    rig_turn();
    told_sent(11);
    expect_sent("onetwothree");
    push("five", 4);
    start();
    script_set_room(0);
    epoll_settle();
    push("six", 3); /* nor while it waits for room */
    script_set_room(SIZE_MAX);
    epoll_tell(fd, EPOLLOUT);
    told_sent(8);
    expect_sent("onetwothreefourfive");
    close_queue();
}

static void short_send_is_told_as_it_is(void **state) {
    (void)state;
    open_queue();
    push_three();
    script_set_room(4);
    start();
    rig_turn();
    told_sent(4);
    assert_int_equal(queue.bytes, 7);
    script_set_room(SIZE_MAX);
    start();
    epoll_settle();
    told_sent(7);
    expect_sent("onetwothree");
    close_queue();
}

/* ---- when -------------------------------------------------------------------------------------------- */

/* A socket has room, as a rule: neither epoll_ctl(2) nor epoll_wait(2) is needed to find out. */
static void send_needs_no_other_call(void **state) {
    (void)state;
    open_queue();
    unsigned waits = script_last_wait().count;
    push_three();
    start();
    assert_int_equal(script_sends(), 0);
    assert_true(r.backend->verbs->is_ready(r.backend));
    rig_turn();
    told_sent(11);
    assert_int_equal(script_last_wait().count, waits);
    epoll_expect_no_set();
    close_queue();
}

static void send_without_room_waits_until_there_is(void **state) {
    (void)state;
    open_queue();
    push_three();
    script_set_room(0);
    start();
    epoll_settle();
    told_nothing_more(o);
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLOUT);
    unsigned sends = script_sends();
    assert_int_equal(sends, 1);
    epoll_settle();
    assert_int_equal(script_sends(), sends);
    epoll_tell(fd, EPOLLOUT); /* for nothing */
    assert_int_equal(script_sends(), sends + 1);
    told_nothing_more(o);
    script_set_room(5);
    epoll_tell(fd, EPOLLOUT);
    told_sent(5);
    script_set_room(0);
    start(); /* no call has said that there is no room */
    epoll_settle();
    told_nothing_more(o);
    script_set_room(SIZE_MAX);
    epoll_tell(fd, EPOLLOUT);
    told_sent(6);
    expect_sent("onetwothree");
    epoll_expect_no_set(); /* once registered is for ever */
    close_queue();
}

/* A send that was cancelled while there was no room: the next one knows that already. */
static void lack_of_room_is_remembered(void **state) {
    (void)state;
    open_queue();
    push_three();
    script_set_room(0);
    start();
    epoll_settle();
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_sent(-ECANCELED);
    unsigned sends = script_sends();
    start();
    epoll_settle();
    assert_int_equal(script_sends(), sends);
    script_set_room(SIZE_MAX);
    epoll_tell(fd, EPOLLOUT);
    told_sent(11);
    close_queue();
}

/* Where the peer is gone, the send is tried, and says so. */
static void send_hears_of_a_peer_that_is_gone(void **state) {
    (void)state;
    open_queue();
    push_three();
    script_set_room(0);
    start();
    epoll_settle();
    epoll_tell(fd, EPOLLRDHUP); /* it may still read */
    assert_int_equal(script_sends(), 1);
    script_fail(SCRIPT_SEND_VECTORS, -EPIPE, 1);
    epoll_tell(fd, EPOLLERR | EPOLLHUP);
    told_sent(-EPIPE);
    assert_int_equal(queue.bytes, 11);
    close_queue();
}

static void registration_that_fails_is_the_sends_failure(void **state) {
    (void)state;
    open_queue();
    push_three();
    script_set_room(0);
    script_fail(SCRIPT_EPOLL_SET, -ENOMEM, 1);
    start();
    epoll_settle();
    told_sent(-ENOMEM);
    assert_int_equal(queue.bytes, 11);
    close_queue();
}

static void interrupted_send_is_tried_again(void **state) {
    (void)state;
    open_queue();
    push_three();
    script_fail(SCRIPT_SEND_VECTORS, -EINTR, 2);
    start();
    epoll_settle();
    told_sent(11);
    assert_int_equal(script_sends(), 3);
    close_queue();
}

static void failed_send_is_final(void **state) {
    (void)state;
    static const int errors[] = { -EPIPE, -ECONNRESET, -ENOBUFS, -ENOMEM };
    open_queue();
    push_three();
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_fail(SCRIPT_SEND_VECTORS, errors[i], 1);
        start();
        epoll_settle();
        told_sent(errors[i]);
    }
    assert_int_equal(queue.bytes, 11);
    close_queue();
}

static void send_can_be_cancelled_before_it_is_tried(void **state) {
    (void)state;
    open_queue();
    push_three();
    start();
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_sent(-ECANCELED);
    assert_int_equal(script_sends(), 0);
    start();
    epoll_settle();
    told_sent(11);
    close_queue();
}

/* ---- room that nobody wants -------------------------------------------------------------------------- */

/*
 * A Unix socket tells of room each time that its peer has read, if anybody ever asked: a loop that sends now and then would be
 * woken by all of it.
 */
static void unwanted_room_is_deregistered_and_registered_again(void **state) {
    (void)state;
    open_queue();
    r.backend->verbs->receive(r.backend, &o[1].op, fd, 0, false);
    epoll_expect_set(EPOLL_CTL_ADD, fd, input);
    push_three();
    script_set_room(0);
    start();
    epoll_settle();
    epoll_expect_set(EPOLL_CTL_MOD, fd, input | EPOLLOUT);
    script_set_room(SIZE_MAX);
    epoll_tell(fd, EPOLLOUT);
    told_sent(11);
    epoll_expect_no_set(); /* most need it again soon */
    epoll_tell(fd, EPOLLOUT);
    epoll_expect_set(EPOLL_CTL_MOD, fd, input);
    push_three();
    script_set_room(0);
    start();
    epoll_settle();
    epoll_expect_set(EPOLL_CTL_MOD, fd, input | EPOLLOUT);
    script_set_room(SIZE_MAX);
    epoll_tell(fd, EPOLLOUT);
    told_sent(11);
    epoll_expect_no_set();
    r.backend->verbs->cancel(r.backend, &o[1].op);
    epoll_settle();
    close_queue();
}

/* Registered for nothing, it would still tell of errors, and nobody would remember to deregister it. */
static void what_nobody_wants_anything_of_is_deregistered(void **state) {
    (void)state;
    open_queue();
    push_three();
    script_set_room(0);
    start();
    epoll_settle();
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLOUT);
    script_set_room(SIZE_MAX);
    epoll_tell(fd, EPOLLOUT);
    told_sent(11);
    epoll_tell(fd, EPOLLOUT);
    epoll_expect_set(EPOLL_CTL_DEL, fd, 0);
    assert_false(script_is_registered(fd));
    push_three();
    script_set_room(0);
    start();
    epoll_settle();
    epoll_expect_set(EPOLL_CTL_ADD, fd, EPOLLOUT);
    script_set_room(SIZE_MAX);
    epoll_tell(fd, EPOLLOUT);
    told_sent(11);
    close_queue();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        epoll_test(one_range_is_sent_alone),
        epoll_test(several_ranges_are_gathered_in_order),
        epoll_test(one_send_takes_no_more_than_its_cap),
        epoll_test(one_send_takes_no_more_ranges_than_there_is_room_for),
        epoll_test(what_is_written_after_the_start_is_the_next_ones),
        epoll_test(short_send_is_told_as_it_is),
        epoll_test(send_needs_no_other_call),
        epoll_test(send_without_room_waits_until_there_is),
        epoll_test(lack_of_room_is_remembered),
        epoll_test(send_hears_of_a_peer_that_is_gone),
        epoll_test(registration_that_fails_is_the_sends_failure),
        epoll_test(interrupted_send_is_tried_again),
        epoll_test(failed_send_is_final),
        epoll_test(send_can_be_cancelled_before_it_is_tried),
        epoll_test(unwanted_room_is_deregistered_and_registered_again),
        epoll_test(what_nobody_wants_anything_of_is_deregistered),
    };
    return cmocka_run_group_tests_name("epoll-send", tests, NULL, NULL);
}
