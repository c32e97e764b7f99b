/* SPDX-License-Identifier: MIT */
/* A stream's deadlines, to the nanosecond, over a clock that the test moves: when it counts as idle, when its peer takes
 * nothing, and what this costs while all is well. */
#include "loop/loop.h"
#include "scripted/scripted.h"
#include "socket/stream.h"
#include "support/support.h"

static test_fixture f;
static const weir__tuning tuning = { .no_self_test = true };
static const int64_t ms = 1000000, timeout_ns = 100000000;

static struct {
    unsigned datas, ends, closes;
    int reason, error;
    int64_t at; /* when it closed */
} told;

static int64_t begin;      /* when the stream was started */
static unsigned heap_sets; /* calls of weir__heap_set() */

void __real_weir__heap_set(weir__heap *heap, weir__heap_node *node, int64_t deadline);
void __wrap_weir__heap_set(weir__heap *heap, weir__heap_node *node, int64_t deadline);
void __wrap_weir__heap_set(weir__heap *heap, weir__heap_node *node, int64_t deadline) {
    heap_sets++;
    __real_weir__heap_set(heap, node, deadline);
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)stream, (void)slice, (void)userdata;
    told.datas++;
}

static void on_end(weir_stream *stream, void *userdata) {
    (void)stream, (void)userdata;
    told.ends++;
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)userdata;
    told.closes++;
    told.reason = reason;
    told.error = error;
    told.at = weir__sys_now();
}

static const weir_stream_callbacks callbacks = {
    .size = sizeof callbacks, .on_data = on_data, .on_end = on_end, .on_close = on_close
};

static int set_up(const weir_pool_options *pool) {
    script_begin();
    script_answer_cancels(true);
    memset(&told, 0, sizeof told);
    test_open(&f, &tuning, pool);
    return 0;
}

static int setup(void **state) {
    (void)state;
    return set_up(NULL);
}

static int setup_small(void **state) {
    (void)state;
    const weir_pool_options pool = {
        .size = sizeof pool, .budget_bytes = 8 * 4096, .buffer_bytes = 4096, .window_bytes = 4096
    };
    return set_up(&pool);
}

static int teardown(void **state) {
    (void)state;
    test_close(&f);
    script_end();
    return 0;
}

static void turns(void) {
    for (int i = 0; i < 4; i++)
        assert_true(weir_loop_run_once(f.loop, 0) >= 0);
}

/* The loop sleeps until then, and does on the way what is due. */
static void sleep_until(int64_t then) {
    while (weir__sys_now() < then)
        assert_true(weir_loop_run_once(f.loop, then - weir__sys_now()) >= 0);
    assert_int_equal(weir__sys_now(), then);
    turns();
}

/* Let the time be @at, counted from the stream's start. */
static void go_to(int64_t at) {
    sleep_until(begin + at);
}

static weir_stream *adopt_unstarted(const weir_stream_options *options, int *ret_fd) {
    weir_stream *stream;
    *ret_fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    test_ok(weir_stream_adopt(f.loop, *ret_fd, options, &stream));
    turns();
    return stream;
}

static void start(weir_stream *stream) {
    test_ok(weir_stream_start(stream, &callbacks, NULL));
    begin = weir__sys_now();
    turns();
}

static weir_stream *adopt(const weir_stream_options *options, int *ret_fd) {
    weir_stream *stream = adopt_unstarted(options, ret_fd);
    start(stream);
    return stream;
}

static const weir_stream_options idles = { .size = sizeof idles,
                                           .idle_timeout_ns = timeout_ns,
                                           .write_timeout_ns = WEIR_NEVER };
static const weir_stream_options writes = { .size = sizeof writes, .write_timeout_ns = timeout_ns };

/* It lives until @at, counted from its start, and not a nanosecond longer. */
static void ends_at(int64_t at, int reason) {
    sleep_until(begin + at - 1);
    assert_int_equal(told.closes, 0);
    sleep_until(begin + at);
    assert_int_equal(told.closes, 1);
    assert_int_equal(told.at, begin + at);
    assert_int_equal(told.reason, reason);
    assert_int_equal(told.error, -ETIMEDOUT);
}

/* Nothing is due, however long it is waited for. */
static void never_ends(void) {
    sleep_until(weir__sys_now() + 20 * timeout_ns);
    script_advance_ns(100 * timeout_ns);
    turns();
    assert_int_equal(told.closes, 0);
}

static script_entry *live_receive(int fd) {
    for (unsigned i = 0;; i++) {
        script_entry *entry = script_live(i);
        assert_non_null(entry);
        if (entry->sqe.opcode == IORING_OP_RECV && entry->sqe.fd == fd)
            return entry;
    }
}

static void receive(int fd, const char *text) {
    script_receive(live_receive(fd), text, strlen(text), true);
    turns();
}

static void take(int fd, int32_t bytes) {
    script_entry *entry = script_find(IORING_OP_SEND, fd);
    assert_non_null(entry);
    script_complete(entry, bytes, 0);
    turns();
}

static void write_some(weir_stream *stream, size_t size) {
    static const uint8_t bytes[1000];
    assert_int_equal(weir_stream_write(stream, bytes, size), WEIR_WRITE_OK);
    turns();
}

/* ---- idle ---------------------------------------------------------------------------------------------- */

static void a_stream_where_nothing_happens_is_idle_from_its_start_on(void **state) {
    (void)state;
    int fd;
    (void)adopt(&idles, &fd);
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void reading_pushes_the_idle_timeout(void **state) {
    (void)state;
    int fd;
    (void)adopt(&idles, &fd);
    go_to(60 * ms);
    receive(fd, "a");
    go_to(159 * ms);
    receive(fd, "b");
    assert_int_equal(told.datas, 2);
    ends_at(259 * ms, WEIR_CLOSE_IDLE);
}

static void only_what_is_taken_of_a_write_pushes_the_idle_timeout(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    go_to(60 * ms);
    write_some(stream, 300);
    go_to(90 * ms);
    take(fd, 100);
    go_to(150 * ms);
    write_some(stream, 100); /* writing alone is no activity */
    ends_at(190 * ms, WEIR_CLOSE_IDLE);
}

static void the_idle_time_stands_still_while_paused(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    go_to(30 * ms);
    test_ok(weir_stream_pause(stream));
    turns();
    go_to(500 * ms); /* 70 ms are left */
    test_ok(weir_stream_resume(stream));
    turns();
    go_to(520 * ms);
    test_ok(weir_stream_pause(stream)); /* and then 50 */
    turns();
    go_to(900 * ms);
    assert_int_equal(told.closes, 0);
    test_ok(weir_stream_resume(stream));
    turns();
    ends_at(950 * ms, WEIR_CLOSE_IDLE);
}

static void a_paused_stream_is_never_idle(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    go_to(30 * ms);
    test_ok(weir_stream_pause(stream));
    turns();
    never_ends();
}

/* Writing goes on while reading is held back. What was taken then was added to what had been left before, and the stream
 * was idle too late by as long as it had been paused until then. */
static void what_is_taken_while_paused_begins_the_idle_time_anew(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    go_to(30 * ms);
    test_ok(weir_stream_pause(stream));
    write_some(stream, 100);
    go_to(400 * ms);
    take(fd, 100);
    go_to(500 * ms);
    test_ok(weir_stream_resume(stream));
    turns();
    ends_at(600 * ms, WEIR_CLOSE_IDLE);
}

/* The end that came with the last bytes is told behind them, so it is held back as they are. */
static void a_paused_stream_that_has_ended_is_not_idle_before_that_is_told(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    script_entry *entry = live_receive(fd);
    script_receive(entry, "last", 4, true);
    script_complete(entry, 0, 0);
    test_ok(weir_stream_pause(stream));
    turns();
    never_ends();
    assert_int_equal(told.datas + told.ends, 0);
    test_ok(weir_stream_resume(stream));
    turns();
    assert_int_equal(told.datas, 1);
    assert_int_equal(told.ends, 1);
    begin = weir__sys_now();
    test_ok(weir_stream_pause(stream)); /* now there is nothing to be held back any more */
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void a_metered_stream_without_credit_is_not_idle(void **state) {
    (void)state;
    int fd;
    weir_stream_options options = idles;
    options.flags = WEIR_STREAM_METERED;
    weir_stream *stream = adopt(&options, &fd);
    never_ends();
    test_ok(weir_stream_grant(stream, 2));
    begin = weir__sys_now();
    turns();
    go_to(40 * ms);
    receive(fd, "a");
    ends_at(140 * ms, WEIR_CLOSE_IDLE);
}

static void a_stream_that_nobody_listens_to_is_not_idle(void **state) {
    (void)state;
    static const weir_stream_callbacks deaf = { .size = sizeof deaf, .on_close = on_close };
    int fd;
    weir_stream *stream = adopt_unstarted(&idles, &fd);
    test_ok(weir_stream_start(stream, &deaf, NULL));
    begin = weir__sys_now();
    turns();
    never_ends();
}

/* It could not read, and that is our fault: there was no buffer. */
static void a_stream_that_waits_for_memory_is_not_idle(void **state) {
    (void)state;
    int fd;
    weir_slice held[8];
    unsigned count = 0;
    uint8_t *data;
    (void)adopt(&idles, &fd);
    while (count < 8 && weir_slice_new(weir_loop_get_pool(f.loop), 3000, &data, &held[count]) == 0)
        count++;
    script_complete(live_receive(fd), -ENOBUFS, 0);
    assert_true(weir_loop_run_once(f.loop, 0) >= 0);
    weir__actor *actor = WEIR__CONTAINER(f.loop->actors.next, weir__actor, member);
    weir_stream *stream = WEIR__CONTAINER(actor, weir_stream, actor);
    while (count > 0)
        weir_slice_unref(&held[--count]);
    /* With memory it is served in the next turn. Before that, it is due while it is starved. */
    assert_true(f.loop->backend->verbs->is_starved(&stream->in));
    script_advance_ns(timeout_ns - 1);
    stream->timeout.node.deadline = begin;
    weir__stream_timed_out(&stream->timeout);
    assert_false(stream->has_failed);
    script_advance_ns(1);
    f.loop->now = weir__sys_now();
    weir__stream_timed_out(&stream->timeout);
    assert_false(stream->has_failed);
    begin = weir__sys_now();
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void the_idle_time_begins_with_the_start(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt_unstarted(&idles, &fd);
    test_ok(weir_stream_resume(stream)); /* which has it settled: it counts as held back from then on */
    turns();
    sleep_until(weir__sys_now() + 5 * timeout_ns);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_UNSTARTED);
    start(stream);
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void a_stream_that_connects_is_not_idle(void **state) {
    (void)state;
    weir_stream_options options = idles;
    weir_stream *stream;
    options.connect_timeout_ns = WEIR_NEVER;
    test_ok(weir_stream_dial(f.loop, "127.0.0.1:9", &options, &stream));
    start(stream);
    never_ends();
    script_entry *connect = script_live(1); /* behind the waker's poll */
    assert_int_equal(connect->sqe.opcode, IORING_OP_CONNECT);
    script_complete(connect, 0, 0);
    begin = weir__sys_now();
    turns();
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_OPEN);
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static void a_stream_that_closes_has_the_linger_timeout_alone(void **state) {
    (void)state;
    int fd;
    weir_stream_options options = idles;
    options.write_timeout_ns = timeout_ns;
    options.linger_timeout_ns = 3 * timeout_ns;
    weir_stream *stream = adopt(&options, &fd);
    write_some(stream, 100);
    test_ok(weir_stream_close(stream));
    turns();
    ends_at(3 * timeout_ns, WEIR_CLOSE_LINGER);
}

/* ---- writing ------------------------------------------------------------------------------------------- */

static void a_queue_that_is_not_taken_ends_the_stream(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    go_to(300 * ms); /* nothing is queued, and nothing is due */
    write_some(stream, 100);
    go_to(330 * ms);
    write_some(stream, 100); /* more of it is no progress */
    ends_at(400 * ms, WEIR_CLOSE_WRITE);
}

static void what_is_taken_begins_the_write_time_anew(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    write_some(stream, 300);
    for (int i = 1; i <= 2; i++) {
        go_to(i * 99 * ms);
        take(fd, 100);
    }
    ends_at(298 * ms, WEIR_CLOSE_WRITE);
}

/* Also where the time was not half over: then the kernel has not been asked yet. */
static void progress_before_the_first_look_counts(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    write_some(stream, 200);
    go_to(20 * ms);
    take(fd, 100);
    ends_at(120 * ms, WEIR_CLOSE_WRITE);
}

static void an_empty_queue_is_not_timed(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    write_some(stream, 100);
    go_to(10 * ms);
    take(fd, 100);
    never_ends();
    begin = weir__sys_now();
    write_some(stream, 100);
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

/* The kernel has much of ours and takes nothing more before that has shrunk, though the peer takes byte after byte. */
static void what_the_peer_takes_of_the_kernels_is_progress(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    script_set_unsent(5000);
    write_some(stream, 100);
    for (int i = 1; i <= 5; i++) {
        go_to(i * 100 * ms - 1);
        script_set_unsent(5000 - i);
        go_to(i * 100 * ms);
        assert_int_equal(told.closes, 0);
    }
    ends_at(600 * ms, WEIR_CLOSE_WRITE);
}

/* More than before is none: another byte was sent, none was taken. */
static void only_less_than_before_is_progress(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    script_set_unsent(5000);
    write_some(stream, 100);
    go_to(70 * ms);
    script_set_unsent(5001);
    ends_at(100 * ms, WEIR_CLOSE_WRITE);
}

static void a_corked_stream_is_not_timed_before_its_uncork(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    test_ok(weir_stream_cork(stream));
    write_some(stream, 100);
    never_ends();
    begin = weir__sys_now();
    test_ok(weir_stream_uncork(stream));
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

/* What lay corked had used up half of the time, or nearly all of it, when the peer first had something to take. */
static void an_uncorked_queue_has_the_whole_time(void **state) {
    (void)state;
    static const int64_t corked[] = { 1, 49, 51, 99, 101, 149 };
    for (size_t i = 0; i < sizeof corked / sizeof *corked; i++) {
        int fd;
        memset(&told, 0, sizeof told);
        weir_stream *stream = adopt(&writes, &fd);
        test_ok(weir_stream_cork(stream));
        write_some(stream, 100);
        go_to(corked[i] * ms);
        test_ok(i % 2 == 0 ? weir_stream_uncork(stream) : weir_stream_shutdown(stream));
        turns();
        assert_non_null(script_find(IORING_OP_SEND, fd));
        ends_at(corked[i] * ms + timeout_ns, WEIR_CLOSE_WRITE);
    }
}

/* A cork that came when a send was under way does not keep the peer from taking it. */
static void what_was_sent_before_the_cork_is_timed(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    write_some(stream, 100);
    test_ok(weir_stream_cork(stream));
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

static void an_unstarted_stream_is_not_timed_before_its_start(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt_unstarted(&writes, &fd);
    write_some(stream, 100);
    sleep_until(weir__sys_now() + 5 * timeout_ns);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_UNSTARTED);
    start(stream);
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

static void a_stream_that_connects_is_not_timed_before_it_is_open(void **state) {
    (void)state;
    weir_stream_options options = writes;
    weir_stream *stream;
    options.connect_timeout_ns = WEIR_NEVER;
    test_ok(weir_stream_dial(f.loop, "127.0.0.1:9", &options, &stream));
    start(stream);
    write_some(stream, 100);
    never_ends();
    script_complete(script_live(1), 0, 0);
    begin = weir__sys_now();
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

/*
 * A Unix peer that shut its reading down while our queue was full: the kernel wakes nobody for that, so that the wait for
 * room is never over. The write timeout is what ends it.
 */
static void a_wait_for_room_that_never_ends_ends_by_the_timeout(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    script_set_unsent(200000);
    write_some(stream, 100);
    script_complete(script_find(IORING_OP_SEND, fd), -EAGAIN, 0);
    turns();
    assert_non_null(script_find(IORING_OP_POLL_ADD, fd));
    ends_at(timeout_ns, WEIR_CLOSE_WRITE);
}

/*
 * The loop itself was late, by a callback that took long: the first look came after the whole time, and the second one at
 * once behind it, before a peer that reads could have taken anything.
 */
static void two_looks_are_half_the_time_apart_also_when_the_loop_is_late(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&writes, &fd);
    script_set_unsent(5000);
    write_some(stream, 100);
    script_advance_ns(400 * ms);
    turns();
    assert_int_equal(told.closes, 0);
    go_to(430 * ms);
    script_set_unsent(4000);
    go_to(450 * ms);
    ends_at(550 * ms, WEIR_CLOSE_WRITE);
}

static void both_timeouts_share_one_place_and_the_nearer_one_counts(void **state) {
    (void)state;
    for (int is_write_nearer = 0; is_write_nearer <= 1; is_write_nearer++) {
        int fd;
        memset(&told, 0, sizeof told);
        const weir_stream_options both = { .size = sizeof both,
                                           .idle_timeout_ns = is_write_nearer ? 150 * ms : 70 * ms,
                                           .write_timeout_ns = timeout_ns };
        size_t before = f.loop->timers.count;
        weir_stream *stream = adopt(&both, &fd);
        write_some(stream, 100);
        assert_int_equal(f.loop->timers.count, before + 1);
        ends_at(is_write_nearer ? timeout_ns : 70 * ms, is_write_nearer ? WEIR_CLOSE_WRITE : WEIR_CLOSE_IDLE);
        assert_int_equal(f.loop->timers.count, before);
    }
}

static void timeouts_that_are_never_are_not_set(void **state) {
    (void)state;
    const weir_stream_options none = { .size = sizeof none,
                                       .idle_timeout_ns = WEIR_NEVER,
                                       .write_timeout_ns = WEIR_NEVER };
    int fd;
    size_t before = f.loop->timers.count;
    weir_stream *stream = adopt(&none, &fd);
    write_some(stream, 100);
    assert_int_equal(f.loop->timers.count, before);
    never_ends();
}

/* ---- what it costs ------------------------------------------------------------------------------------- */

/* An echo: what came in is written, and taken. The heap is looked at when something is due, not when something happens. */
static void reading_and_writing_only_store(void **state) {
    (void)state;
    const weir_stream_options both = { .size = sizeof both,
                                       .idle_timeout_ns = timeout_ns,
                                       .write_timeout_ns = timeout_ns };
    int fd;
    weir_stream *stream = adopt(&both, &fd);
    write_some(stream, 10);
    take(fd, 10);
    heap_sets = 0;
    for (int i = 0; i < 400; i++) {
        script_advance_ns(ms / 10);
        receive(fd, "hello");
        write_some(stream, 5);
        take(fd, 5);
    }
    assert_int_equal(told.datas, 400);
    assert_int_equal(heap_sets, 0); /* 40 ms have passed: nothing was due */
    for (int i = 0; i < 400; i++) {
        script_advance_ns(ms);
        receive(fd, "hello");
        write_some(stream, 5);
        take(fd, 5);
    }
    assert_int_equal(told.closes, 0);
    assert_true(heap_sets <= 2 * 8 + 2); /* 400 ms more: it fired each half of the time, and was set again */
}

#define time_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        time_test(a_stream_where_nothing_happens_is_idle_from_its_start_on),
        time_test(reading_pushes_the_idle_timeout),
        time_test(only_what_is_taken_of_a_write_pushes_the_idle_timeout),
        time_test(the_idle_time_stands_still_while_paused),
        time_test(a_paused_stream_is_never_idle),
        time_test(what_is_taken_while_paused_begins_the_idle_time_anew),
        time_test(a_paused_stream_that_has_ended_is_not_idle_before_that_is_told),
        time_test(a_metered_stream_without_credit_is_not_idle),
        time_test(a_stream_that_nobody_listens_to_is_not_idle),
        cmocka_unit_test_setup_teardown(a_stream_that_waits_for_memory_is_not_idle, setup_small, teardown),
        time_test(the_idle_time_begins_with_the_start),
        time_test(a_stream_that_connects_is_not_idle),
        time_test(a_stream_that_closes_has_the_linger_timeout_alone),
        time_test(a_queue_that_is_not_taken_ends_the_stream),
        time_test(what_is_taken_begins_the_write_time_anew),
        time_test(progress_before_the_first_look_counts),
        time_test(an_empty_queue_is_not_timed),
        time_test(what_the_peer_takes_of_the_kernels_is_progress),
        time_test(only_less_than_before_is_progress),
        time_test(a_corked_stream_is_not_timed_before_its_uncork),
        time_test(an_uncorked_queue_has_the_whole_time),
        time_test(what_was_sent_before_the_cork_is_timed),
        time_test(an_unstarted_stream_is_not_timed_before_its_start),
        time_test(a_stream_that_connects_is_not_timed_before_it_is_open),
        time_test(a_wait_for_room_that_never_ends_ends_by_the_timeout),
        time_test(two_looks_are_half_the_time_apart_also_when_the_loop_is_late),
        time_test(both_timeouts_share_one_place_and_the_nearer_one_counts),
        time_test(timeouts_that_are_never_are_not_set),
        time_test(reading_and_writing_only_store),
    };
    return cmocka_run_group_tests_name("stream-time", tests, NULL, NULL);
}
