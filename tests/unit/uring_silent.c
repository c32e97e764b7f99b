/* SPDX-License-Identifier: MIT */
/* Sends whose success nobody waits for: the kernel is asked to say nothing of it, and it is known all the same. */
#include <poll.h>
#include <sys/wait.h>
#include <unistd.h>

#include "unit/rig.h"

static owner o[4];
static weir__range_cache cache;
static weir__sendq queue;

static void open_queue(uint32_t features) {
    owners_init(o, 4);
    script_set_features(features);
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

static void start(bool is_quiet) {
    r.backend->verbs->send(r.backend, &o->op, 7, &queue, is_quiet);
}

static bool is_silent(const script_entry *entry) {
    return (entry->sqe.flags & IOSQE_CQE_SKIP_SUCCESS) != 0;
}

static void told_late(int32_t result) {
    assert_true(o->read < o->count && o->told[o->read].is_late);
    told_final(o, result);
}

static void told_in_time(int32_t result) {
    assert_true(o->read < o->count && !o->told[o->read].is_late);
    told_final(o, result);
}

static void what_is_taken_whole_is_told_without_a_completion(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    start(true);
    rig_submit();
    const script_entry *entry = script_expect(IORING_OP_SEND, 7);
    assert_true(is_silent(entry));
    assert_int_equal(script_completions(), 0);
    told_nothing_more(o);
    assert_int_equal(rig_dispatch(), 1);
    told_late(5);
    close_queue();
}

static void with_somebody_who_waits_it_is_a_send_like_others(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    start(false);
    rig_submit();
    script_entry *entry = script_expect(IORING_OP_SEND, 7);
    assert_false(is_silent(entry));
    script_complete(entry, 5, 0);
    rig_turn();
    told_in_time(5);
    close_queue();
}

static void a_kernel_that_cannot_be_silent_is_not_asked(void **state) {
    (void)state;
    open_queue(0);
    push("hello", 5);
    start(true);
    rig_submit();
    script_entry *entry = script_expect(IORING_OP_SEND, 7);
    assert_false(is_silent(entry));
    assert_int_equal(entry->sqe.msg_flags & MSG_WAITALL, 0);
    script_complete(entry, 5, 0);
    rig_turn();
    told_in_time(5);
    close_queue();
}

/* More would have to be sent after it, so somebody waits. */
static void what_is_not_the_whole_queue_is_not_silent(void **state) {
    static uint8_t bytes[300 << 10];
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push(bytes, sizeof bytes);
    start(true);
    rig_submit();
    script_entry *entry = script_expect(IORING_OP_SEND, 7);
    assert_in_range(entry->sqe.len, 1, sizeof bytes - 1);
    assert_false(is_silent(entry));
    script_complete(entry, (int32_t)entry->sqe.len, 0);
    rig_turn();
    told_in_time((int32_t)entry->sqe.len);
    close_queue();
}

static void what_is_taken_in_part_is_told_at_once(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    script_set_room(3);
    start(true);
    rig_submit();
    assert_true(is_silent(script_expect(IORING_OP_SEND, 7)));
    rig_dispatch();
    told_in_time(3);
    close_queue();
}

static void without_room_it_waits_like_others(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    script_set_room(0);
    start(true);
    rig_submit();
    assert_true(is_silent(script_expect(IORING_OP_SEND, 7)));
    rig_dispatch();
    told_nothing_more(o);
    rig_submit();
    script_complete(script_expect(IORING_OP_POLL_ADD, 7), POLLOUT, 0);
    rig_turn();
    rig_submit();
    script_entry *again = script_expect(IORING_OP_SEND, 7);
    assert_false(is_silent(again)); /* it has been waited for long enough */
    script_complete(again, 5, 0);
    rig_turn();
    told_in_time(5);
    close_queue();
}

/* The kernel had no memory for requests, and took none: nothing is known of them. */
static void what_the_kernel_has_not_taken_has_not_succeeded(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    start(true);
    script_fail(SCRIPT_ENTER, -EAGAIN, 1);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    assert_int_equal(rig_dispatch(), 0);
    told_nothing_more(o);
    rig_submit();
    assert_true(is_silent(script_expect(IORING_OP_SEND, 7)));
    rig_dispatch();
    told_late(5);
    close_queue();
}

/* Its failure may be the last of many completions. */
static void nothing_is_known_before_each_completion_was_looked_at(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    script_entry *receive = rig_receive(&o[1], 8);
    script_receive(receive, "one", 3, true);
    script_receive(receive, "two", 3, true);
    push("hello", 5);
    script_set_room(2);
    start(true);
    rig_submit();
    assert_true(is_silent(script_expect(IORING_OP_SEND, 7)));
    assert_int_equal(r.backend->verbs->dispatch(r.backend, 2), 2);
    told_nothing_more(o);
    assert_true(r.backend->verbs->is_ready(r.backend));
    assert_int_equal(r.backend->verbs->dispatch(r.backend, 2), 1);
    told_in_time(2);
    weir__sendq_clear(&queue, &cache);
    weir__range_cache_deinit(&cache);
    rig_cancel_and_close(o, 2);
}

/* Nor while some lie outside of the queue. */
static void nothing_is_known_while_completions_have_overflown(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    start(true);
    rig_submit();
    assert_true(is_silent(script_expect(IORING_OP_SEND, 7)));
    script_overflow(true);
    rig_dispatch();
    told_nothing_more(o);
    script_overflow(false);
    rig_turn();
    told_late(5);
    close_queue();
}

/* ---- while each dispatch reaches its limit ---------------------------------------------------------------------- */

enum { AT_ONCE = 2 };

static script_entry *busy; /* a receive on which more comes than a dispatch takes */

static void come(unsigned count) {
    while (count-- > 0)
        script_receive(busy, "x", 1, true);
}

/* As much comes as it takes. */
static void busy_turn(void) {
    come(AT_ONCE);
    rig_submit();
    assert_true(r.backend->verbs->dispatch(r.backend, AT_ONCE) >= AT_ONCE);
    assert_true(r.backend->verbs->is_ready(r.backend));
}

static void send_silently(owner *it, int fd) {
    r.backend->verbs->send(r.backend, &it->op, fd, &queue, true);
    rig_submit();
    assert_true(is_silent(script_expect(IORING_OP_SEND, fd)));
}

/* Five completions lie before it. */
static void open_busy(void) {
    open_queue(IORING_FEAT_CQE_SKIP);
    busy = rig_receive(&o[1], 8);
    come(5);
    push("hello", 5);
}

static void close_busy(void) {
    rig_dispatch();
    weir__sendq_clear(&queue, &cache);
    weir__range_cache_deinit(&cache);
    rig_cancel_and_close(o, 4);
}

/*
 * Where each turn brings more completions than a dispatch takes the queue is never found empty. A stream whose last reply was
 * sent silently sent nothing more, until its write timeout. Its failure lies behind what lay there, but not behind what came
 * since: that need not be waited for.
 */
static void what_lay_there_has_been_taken_is_enough_to_know(void **state) {
    (void)state;
    open_busy();
    send_silently(&o[0], 7);
    busy_turn(); /* five are left, of those that lay there when it was looked */
    busy_turn();
    busy_turn(); /* one */
    told_nothing_more(o);
    busy_turn();
    told_late(5);
    busy_turn();
    told_nothing_more(o);
    close_busy();
}

/* One that was sent while another is waited for has a wait of its own. */
static void each_has_its_own_completions_to_wait_for(void **state) {
    (void)state;
    open_busy();
    send_silently(&o[0], 7);
    busy_turn();
    send_silently(&o[2], 9);
    busy_turn();
    busy_turn();
    told_nothing_more(&o[0]);
    busy_turn(); /* five are left again, and are the other's */
    told_late(5);
    busy_turn();
    busy_turn();
    assert_int_equal(o[2].count, 0);
    busy_turn();
    assert_int_equal(o[2].count, 1);
    assert_true(o[2].told[0].is_late);
    close_busy();
}

/* It lies behind the others, with more behind it, and is found while it is waited for. */
static void a_failure_among_them_is_told_at_once(void **state) {
    (void)state;
    open_busy();
    script_set_room(2);
    send_silently(&o[0], 7);
    busy_turn();
    busy_turn();
    told_nothing_more(o);
    busy_turn(); /* the sixth */
    told_in_time(2);
    busy_turn();
    busy_turn();
    told_nothing_more(o);
    close_busy();
}

/* It has no room, waits for it, and is not taken for what it was meanwhile. */
static void one_without_room_is_not_waited_for_with_the_others(void **state) {
    (void)state;
    open_busy();
    script_set_room(0);
    send_silently(&o[0], 7);
    for (int i = 0; i < 6; i++)
        busy_turn();
    told_nothing_more(o);
    script_complete(script_expect(IORING_OP_POLL_ADD, 7), POLLOUT, 0);
    for (int i = 0; i < 5; i++)
        busy_turn();
    script_complete(script_expect(IORING_OP_SEND, 7), 5, 0);
    for (int i = 0; i < 5; i++)
        busy_turn();
    told_in_time(5);
    close_busy();
}

/* Its failure may be among those that had no room: nobody counts before they are in the queue. */
static void nothing_is_counted_while_completions_have_overflown(void **state) {
    (void)state;
    open_busy();
    send_silently(&o[0], 7);
    script_overflow(true);
    for (int i = 0; i < 6; i++)
        busy_turn();
    told_nothing_more(o);
    script_overflow(false);
    busy_turn();
    busy_turn();
    busy_turn();
    told_nothing_more(o);
    busy_turn();
    told_late(5);
    close_busy();
}

static pid_t child;

static void fork_here(owner *it, const told *last) {
    (void)it, (void)last;
    child = fork();
}

/* Somebody waits for its end by now, in a flush, say, and forks there. The child looked whether more could be settled, into a
 * ring that it does not have, and was killed. */
static void the_child_that_its_end_made_does_not_look_into_the_ring(void **state) {
    (void)state;
    int status = -1;
    open_busy();
    send_silently(&o[0], 7);
    o[0].then = fork_here;
    for (int i = 0; i < 4; i++) {
        come(AT_ONCE);
        rig_submit();
        child = -1;
        (void)r.backend->verbs->dispatch(r.backend, AT_ONCE);
        if (child == 0)
            _exit(0);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    told_late(5);
    close_busy();
}

/* ---- others who come ------------------------------------------------------------------------------------------- */

static void a_cancelled_one_has_been_sent_and_is_told_once(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    start(true);
    rig_submit();
    assert_true(is_silent(script_expect(IORING_OP_SEND, 7)));
    r.backend->verbs->cancel(r.backend, &o->op);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_turn();
    told_late(5);
    assert_int_equal(script_unseen(), 0);
    close_queue();
}

/* Between its start and its entry others were called back, and one of them has written behind it, or closed. */
static void somebody_who_comes_before_it_is_handed_over_is_told(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    start(true);
    r.backend->verbs->hurry(&o->op);
    rig_submit();
    script_entry *entry = script_expect(IORING_OP_SEND, 7);
    assert_false(is_silent(entry));
    r.backend->verbs->hurry(&o->op); /* it is late, and does no harm */
    script_complete(entry, 5, 0);
    rig_turn();
    told_in_time(5);
    close_queue();
}

/* The kernel could not take it; whoever came meanwhile would have waited through a sleep. */
static void one_of_an_earlier_turn_is_not_slept_on(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    start(true);
    script_fail(SCRIPT_ENTER, -EAGAIN, 1);
    test_ok(r.backend->verbs->wait(r.backend, 1000000));
    assert_int_equal(rig_dispatch(), 0);
    test_ok(r.backend->verbs->wait(r.backend, 1000000));
    assert_int_equal(script_last_enter().wait, 0);
    (void)script_expect(IORING_OP_SEND, 7);
    assert_int_equal(rig_dispatch(), 1);
    told_late(5);
    close_queue();
}

/* Who spins looks again and again, and has nobody to wait for: each send cost an enter and a turn more. */
static void one_of_this_turn_is_not_asked_after(void **state) {
    (void)state;
    open_queue(IORING_FEAT_CQE_SKIP);
    push("hello", 5);
    start(true);
    assert_int_equal(r.backend->verbs->look(r.backend), 0);
    uint64_t enters = r.backend->stats.enters;
    assert_true(is_silent(script_expect(IORING_OP_SEND, 7)));
    assert_int_equal(r.backend->verbs->look(r.backend), 0);
    assert_int_equal(r.backend->stats.enters, enters);
    assert_int_equal(rig_dispatch(), 1);
    told_late(5);
    close_queue();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(what_is_taken_whole_is_told_without_a_completion),
        rig_test(with_somebody_who_waits_it_is_a_send_like_others),
        rig_test(a_kernel_that_cannot_be_silent_is_not_asked),
        rig_test(what_is_not_the_whole_queue_is_not_silent),
        rig_test(what_is_taken_in_part_is_told_at_once),
        rig_test(without_room_it_waits_like_others),
        rig_test(what_the_kernel_has_not_taken_has_not_succeeded),
        rig_test(nothing_is_known_before_each_completion_was_looked_at),
        rig_test(nothing_is_known_while_completions_have_overflown),
        rig_test(what_lay_there_has_been_taken_is_enough_to_know),
        rig_test(each_has_its_own_completions_to_wait_for),
        rig_test(a_failure_among_them_is_told_at_once),
        rig_test(one_without_room_is_not_waited_for_with_the_others),
        rig_test(nothing_is_counted_while_completions_have_overflown),
        rig_test(the_child_that_its_end_made_does_not_look_into_the_ring),
        rig_test(a_cancelled_one_has_been_sent_and_is_told_once),
        rig_test(somebody_who_comes_before_it_is_handed_over_is_told),
        rig_test(one_of_an_earlier_turn_is_not_slept_on),
        rig_test(one_of_this_turn_is_not_asked_after),
    };
    return cmocka_run_group_tests_name("uring_silent", tests, NULL, NULL);
}
