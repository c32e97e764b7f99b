/* SPDX-License-Identifier: MIT */
/* When a stream counts as idle: when nothing is read and nothing is taken, unless reading is held back. */
#include "unit/deadline.h"

static const weir_stream_options idles = { .size = sizeof idles,
                                           .idle_timeout_ns = timeout_ns,
                                           .write_timeout_ns = WEIR_NEVER };

static int setup_small(void **state) {
    (void)state;
    const weir_pool_options pool = {
        .size = sizeof pool, .budget_bytes = 8 * 4096, .buffer_bytes = 4096, .window_bytes = 4096
    };
    return set_up(&pool);
}

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

/* With what was granted last its reading is held back, at once: that was noted when the receive had been taken back, a turn
 * later, and the time until then, in which the application did other things, made it idle. */
static void a_stream_is_held_back_from_the_byte_on_that_used_its_grant_up(void **state) {
    (void)state;
    int fd;
    weir_stream_options options = idles;
    options.flags = WEIR_STREAM_METERED;
    weir_stream *stream = adopt(&options, &fd);
    test_ok(weir_stream_grant(stream, 1));
    turns();
    script_receive(live_receive(fd), "a", 1, true); /* its last completion is on its way */
    assert_true(weir_loop_run_once(f.loop, 0) >= 0);
    assert_int_equal(told.datas, 1);
    script_advance_ns(5 * timeout_ns);
    test_ok(weir_stream_grant(stream, 1));
    begin = weir__sys_now();
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
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
    f.loop->bytes_out++; /* others go on, so there will be memory */
    weir__stream_timed_out(&stream->timeout);
    assert_false(stream->has_failed);
    begin = weir__sys_now();
    turns();
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

static struct {
    weir_slice slices[64];
    unsigned count;
} held;

static void hoard(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)stream, (void)userdata;
    weir_slice_ref(slice, &held.slices[held.count++]);
}

/* All the memory that there is: what another stream has received, and blocks. */
static void hold_all(void) {
    static const weir_stream_options never = { .size = sizeof never };
    static const weir_stream_callbacks hoards = { .size = sizeof hoards, .on_data = hoard };
    static const char page[4096];
    weir_pool *pool = weir_loop_get_pool(f.loop);
    uint8_t *data;
    int fd;
    test_ok(weir_stream_start(adopt_unstarted(&never, &fd), &hoards, NULL));
    turns();
    while (weir__pool_available(pool) > 0) {
        script_receive(live_receive(fd), page, sizeof page, true);
        turns();
    }
    for (size_t size = 3000; size > 0; size /= 2)
        while (weir_slice_new(pool, size, &data, &held.slices[held.count]) == 0)
            held.count++;
}

static void let_go(void) {
    while (held.count > 0)
        weir_slice_unref(&held.slices[--held.count]);
}

/* When nothing moves in all of the loop, its streams hold all the memory that there is, half messages in chains, say, and
 * wait for more of it. They counted as not idle, whoever they were, and the loop stood still for ever. */
static void who_waits_for_memory_is_idle_when_nothing_moves_at_all(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    hold_all();
    go_to(40 * ms);
    script_complete(live_receive(fd), -ENOBUFS, 0);
    turns();
    assert_true(f.loop->backend->verbs->is_starved(&stream->in));
    go_to(60 * ms);
    f.loop->bytes_out++;
    ends_at(2 * timeout_ns,
            WEIR_CLOSE_IDLE); /* looked at when it was due: something had moved since it was last */
    let_go();
}

/* A reset lies behind what it has no memory to read, and what it holds may be what all wait for. */
static void a_reset_of_who_waits_for_memory_is_noticed_when_there_is_none(void **state) {
    (void)state;
    const weir_stream_options never = { .size = sizeof never };
    int fd;
    weir_stream *stream = adopt(&never, &fd);
    hold_all();
    script_complete(live_receive(fd), -ENOBUFS, 0);
    turns();
    assert_true(f.loop->backend->verbs->is_starved(&stream->in));
    go_to(5000 * ms);
    assert_int_equal(told.closes, 0);
    script_set_lost(-ECONNRESET);
    go_to(6500 * ms);
    assert_int_equal(told.closes, 1);
    assert_int_equal(told.reason, WEIR_CLOSE_ERROR);
    assert_int_equal(told.error, -ECONNRESET);
    let_go();
}

/* The kernel has taken all that was written, and the peer so much less. */
static void adopt_with_unsent(int bytes) {
    int fd;
    weir_stream *stream = adopt(&idles, &fd);
    script_set_unsent(bytes);
    write_some(stream, 100);
    take(fd, 100);
}

/* The kernel may have megabytes left when it has taken all of a queue, and the peer may read them all the time. */
static void a_peer_that_takes_what_the_kernel_has_is_not_idle(void **state) {
    (void)state;
    adopt_with_unsent(5000);
    for (int i = 1; i <= 5; i++) { /* looked at half way, and at the end */
        go_to(i * 100 * ms - 1);
        script_set_unsent(5000 - i);
        go_to(i * 100 * ms);
        assert_int_equal(told.closes, 0);
    }
    ends_at(600 * ms, WEIR_CLOSE_IDLE);
}

/* It had the last of it a moment ago. */
static void a_peer_that_has_taken_all_since_somebody_looked_is_not_idle(void **state) {
    (void)state;
    adopt_with_unsent(5000);
    go_to(99 * ms);
    script_set_unsent(0);
    ends_at(200 * ms, WEIR_CLOSE_IDLE);
}

static void a_peer_that_takes_nothing_of_the_kernels_is_idle(void **state) {
    (void)state;
    adopt_with_unsent(5000);
    ends_at(timeout_ns, WEIR_CLOSE_IDLE);
}

/* The looks of the idle timeout were noted where those of the write timeout are, and moved that one on and on: a peer that
 * read nothing, and sent a byte now and then, had its queue kept for ever. */
static void looks_for_the_idle_timeout_leave_the_write_timeout_alone(void **state) {
    (void)state;
    int fd;
    const weir_stream_options both = { .size = sizeof both,
                                       .idle_timeout_ns = timeout_ns,
                                       .write_timeout_ns = 6 * timeout_ns };
    weir_stream *stream = adopt(&both, &fd);
    script_set_unsent(5000);
    write_some(stream, 100);
    for (int i = 1; i <= 6; i++) {
        go_to(i * 90 * ms);
        receive(fd, "a");
    }
    ends_at(6 * timeout_ns, WEIR_CLOSE_WRITE);
}

/* Likewise of a stream that lingers, by the other end of a pipe. */
static void looks_for_the_idle_timeout_leave_the_linger_timeout_alone(void **state) {
    (void)state;
    int closing_fd, idle_fd;
    const weir_stream_options lingers = { .size = sizeof lingers, .linger_timeout_ns = 3 * timeout_ns };
    weir_stream *closing = adopt(&lingers, &closing_fd), *idle = adopt(&idles, &idle_fd);
    test_ok(weir_stream_pipe(closing, idle));
    (void)weir_stream_ref(closing);
    turns();
    go_to(10 * ms);
    script_set_unsent(5000);
    test_ok(weir_stream_close(closing));
    turns();
    go_to(40 * ms);
    script_set_unsent(4000);
    go_to(310 * ms);
    assert_int_equal(weir_stream_get_state(closing),
                     WEIR_STREAM_CLOSING); /* its peer has taken some since the close */
    go_to(610 * ms);
    assert_int_equal(weir_stream_get_state(closing), WEIR_STREAM_CLOSED);
    weir_stream_unref(closing);
}

/* It has said all that it has to say, and the other end's peer takes it slowly: the pipe was cut, and the rest lost. */
static void the_end_of_a_pipe_is_as_busy_as_the_other(void **state) {
    (void)state;
    const weir_stream_options never = { .size = sizeof never };
    for (int is_source = 0; is_source <= 1; is_source++) {
        int idle_fd, other_fd;
        memset(&told, 0, sizeof told);
        weir_stream *other = adopt(&never, &other_fd), *idle = adopt(&idles, &idle_fd);
        test_ok(is_source ? weir_stream_pipe(idle, other) : weir_stream_pipe(other, idle));
        turns();
        write_some(other, 1000);
        for (int i = 1; i <= 5; i++) {
            go_to(i * 90 * ms);
            take(other_fd, 100);
        }
        assert_int_equal(told.closes, 0);
        script_set_unsent(5000); /* now the kernel alone has something for either peer */
        go_to((450 + 60) * ms);
        script_set_unsent(4000);
        go_to((450 + 110) * ms);
        assert_int_equal(told.closes, 0);
        script_set_unsent(0);
        go_to(2000 * ms);
        assert_int_equal(told.reason, WEIR_CLOSE_PIPE);
        assert_int_equal(told.error, -ETIMEDOUT);
        assert_int_equal(told.closes, 2);
    }
}

/* Its own time was over before, and it had been as busy as the other. */
static void the_end_of_a_pipe_that_is_taken_apart_is_idle_by_itself(void **state) {
    (void)state;
    const weir_stream_options never = { .size = sizeof never };
    int other_fd, idle_fd;
    weir_stream *other = adopt(&never, &other_fd), *idle = adopt(&idles, &idle_fd);
    test_ok(weir_stream_pipe(idle, other));
    turns();
    go_to(90 * ms);
    receive(other_fd, "a");
    go_to(110 * ms);
    assert_int_equal(told.closes, 0);
    test_ok(weir_stream_unpipe(idle));
    turns();
    go_to(112 * ms);
    assert_int_equal(told.closes, 1);
    assert_int_equal(told.reason, WEIR_CLOSE_IDLE);
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
        time_test(a_stream_is_held_back_from_the_byte_on_that_used_its_grant_up),
        time_test(a_stream_that_nobody_listens_to_is_not_idle),
        cmocka_unit_test_setup_teardown(a_stream_that_waits_for_memory_is_not_idle, setup_small, teardown),
        cmocka_unit_test_setup_teardown(who_waits_for_memory_is_idle_when_nothing_moves_at_all, setup_small,
                                        teardown),
        cmocka_unit_test_setup_teardown(a_reset_of_who_waits_for_memory_is_noticed_when_there_is_none, setup_small,
                                        teardown),
        time_test(a_peer_that_takes_what_the_kernel_has_is_not_idle),
        time_test(a_peer_that_has_taken_all_since_somebody_looked_is_not_idle),
        time_test(a_peer_that_takes_nothing_of_the_kernels_is_idle),
        time_test(looks_for_the_idle_timeout_leave_the_write_timeout_alone),
        time_test(looks_for_the_idle_timeout_leave_the_linger_timeout_alone),
        time_test(the_end_of_a_pipe_is_as_busy_as_the_other),
        time_test(the_end_of_a_pipe_that_is_taken_apart_is_idle_by_itself),
        time_test(the_idle_time_begins_with_the_start),
        time_test(a_stream_that_connects_is_not_idle),
        time_test(a_stream_that_closes_has_the_linger_timeout_alone),
    };
    return cmocka_run_group_tests_name("stream-idle", tests, NULL, NULL);
}
