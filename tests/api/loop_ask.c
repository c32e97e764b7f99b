/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <stdio.h>

/* What a loop and its pool tell about themselves, and handles that are kept. */

static const int64_t ms = 1000000;

static void nothing(weir_timer *timer, void *userdata) {
    (void)timer, (void)userdata;
}

/* ---- the library ------------------------------------------------------------------------------------- */

static void the_version_is_0_1(void **state) {
    (void)state;
    assert_int_equal(weir_version() >> 16, 0);
    assert_int_equal(weir_version() >> 8 & 0xFF, 1);
}

static void errors_have_names_and_texts_of_either_sign(void **state) {
    (void)state;
    static const struct {
        int number;
        const char *name;
    } known[] = {
        { EPERM, "EPERM" },           { EINVAL, "EINVAL" },       { E2BIG, "E2BIG" },
        { EBUSY, "EBUSY" },           { EPIPE, "EPIPE" },         { ENOBUFS, "ENOBUFS" },
        { ENOMEM, "ENOMEM" },         { EALREADY, "EALREADY" },   { ESHUTDOWN, "ESHUTDOWN" },
        { ECHILD, "ECHILD" },         { EUSERS, "EUSERS" },       { EBADF, "EBADF" },
        { ENOTSOCK, "ENOTSOCK" },     { ENOTCONN, "ENOTCONN" },   { EPROTOTYPE, "EPROTOTYPE" },
        { EADDRINUSE, "EADDRINUSE" }, { EMFILE, "EMFILE" },       { ENFILE, "ENFILE" },
        { ENOSYS, "ENOSYS" },         { ETIMEDOUT, "ETIMEDOUT" }, { ECONNREFUSED, "ECONNREFUSED" },
        { ECONNRESET, "ECONNRESET" }, { ERANGE, "ERANGE" },       { EADDRNOTAVAIL, "EADDRNOTAVAIL" },
        { EACCES, "EACCES" },         { EILSEQ, "EILSEQ" },       { EAFNOSUPPORT, "EAFNOSUPPORT" },
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        assert_string_equal(weir_error_name(known[i].number), known[i].name);
        assert_string_equal(weir_error_name(-known[i].number), known[i].name);
        assert_true(strlen(weir_error_text(-known[i].number)) > 4);
        assert_ptr_equal(weir_error_text(known[i].number), weir_error_text(-known[i].number));
    }
    assert_string_equal(weir_error_text(-ECONNRESET), "connection reset by peer");
    const int odd[] = { 0, 4711, -4711, INT32_MAX, INT32_MIN };
    for (size_t i = 0; i < sizeof odd / sizeof *odd; i++) {
        assert_non_null(weir_error_name(odd[i]));
        assert_non_null(weir_error_text(odd[i]));
    }
}

/* ---- the loop ---------------------------------------------------------------------------------------- */

static void *ask_for_thread(void *loop) {
    return (void *)(intptr_t)weir_loop_is_own_thread(loop);
}

static int is_own_elsewhere(weir_loop *loop) {
    pthread_t thread;
    void *answer;
    assert_int_equal(pthread_create(&thread, NULL, ask_for_thread, loop), 0);
    assert_int_equal(pthread_join(thread, &answer), 0);
    return (int)(intptr_t)answer;
}

static void a_loop_is_anyones_until_it_runs(void **state) {
    test_fixture *f = *state;
    assert_int_equal(weir_loop_is_own_thread(f->loop), 1);
    assert_int_equal(is_own_elsewhere(f->loop), 1);
    run_turns(f, 1);
    assert_int_equal(weir_loop_is_own_thread(f->loop), 1);
    assert_int_equal(is_own_elsewhere(f->loop), 0);
}

static void *use_unbound(void *userdata) {
    test_fixture *f = userdata;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    close(peer);
    return (void *)(intptr_t)weir_loop_close(f->loop);
}

static void an_unbound_loop_can_be_used_and_closed_on_another_thread(void **state) {
    (void)state;
    test_fixture f;
    pthread_t thread;
    void *answer;
    test_open(&f, NULL, NULL);
    assert_int_equal(pthread_create(&thread, NULL, use_unbound, &f), 0);
    assert_int_equal(pthread_join(thread, &answer), 0);
    assert_int_equal((int)(intptr_t)answer, 0);
    weir_loop_unref(f.loop);
    assert_int_equal(atomic_load(&f.memory.live_blocks), 0);
    assert_int_equal(test_count_fds(), f.fds);
}

static void *use_wrongly(void *loop) {
    return (void *)(intptr_t)weir_loop_close(loop);
}

/* Closing binds as running does: so the thread that ran it and is gone still owns it. */
static void close_by_another_than_the_running_thread_is_refused(void **state) {
    test_fixture *f = *state;
    pthread_t thread;
    void *answer;
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(pthread_create(&thread, NULL, use_wrongly, f->loop), 0);
    assert_int_equal(pthread_join(thread, &answer), 0);
    assert_int_equal((int)(intptr_t)answer, -EPERM);
}

static void now_is_the_turns_monotonic_time(void **state) {
    test_fixture *f = *state;
    static witness w;
    int64_t before = test_now_ns(), now = weir_loop_get_now(f->loop);
    assert_true(now >= before && now <= test_now_ns());
    int peer = witness_pair(f, &w, false, NULL);
    run_turns(f, 3);
    now = weir_loop_get_now(f->loop);
    assert_int_equal(weir_loop_run_once(f->loop, 5 * ms), 1);
    assert_true(weir_loop_get_now(f->loop) >= now + 5 * ms);
    close(peer);
}

static int64_t times_in_turn[2];

static void look_twice(weir_loop *loop, void *userdata) {
    (void)userdata;
    times_in_turn[0] = weir_loop_get_now(loop);
    test_sleep_ms(3);
    times_in_turn[1] = weir_loop_get_now(loop);
}

static void now_does_not_change_within_a_turn(void **state) {
    test_fixture *f = *state;
    test_ok(weir_loop_post(f->loop, look_twice, NULL));
    test_ok(weir_loop_run(f->loop));
    assert_true(times_in_turn[0] > 0);
    assert_int_equal(times_in_turn[0], times_in_turn[1]);
}

static void info_says_what_runs_and_what_was_asked_for(void **state) {
    (void)state;
    for (uint32_t mode = WEIR_BACKEND_AUTO; mode <= WEIR_BACKEND_EPOLL; mode++) {
        char reason[WEIR_REASON_SIZE] = "unset";
        weir_loop_options options = {
            .size = sizeof options, .backend = mode, .reason = reason, .reason_size = sizeof reason
        };
        weir_loop_info info = { .size = sizeof info };
        weir_loop *loop;
        int r = weir_loop_new(&options, &loop);
        if (r < 0) {
            assert_true(mode == WEIR_BACKEND_URING_INCREMENTAL || mode == WEIR_BACKEND_URING_CLASSIC);
            assert_true(r == -ENOSYS || r == -EPERM); /* an older kernel; one where it is forbidden */
            assert_true(strlen(reason) > 10 && strcmp(reason, "unset") != 0);
            continue;
        }
        test_ok(weir_loop_get_info(loop, &info));
        assert_int_equal(info.size, sizeof info);
        assert_int_equal(info.asked, mode);
        if (mode != WEIR_BACKEND_AUTO)
            assert_int_equal(info.backend, mode);
        assert_in_range(info.backend, WEIR_BACKEND_URING_INCREMENTAL, WEIR_BACKEND_EPOLL);
        assert_true((info.reason[0] == '\0') == (info.backend == WEIR_BACKEND_URING_INCREMENTAL));
        assert_int_equal(info.features & ~(uint64_t)(WEIR_FEATURE_DEFER_TASKRUN | WEIR_FEATURE_NO_IOWAIT), 0);
        test_ok(weir_loop_close(loop));
        weir_loop_unref(loop);
    }
}

/* Is there io_uring? Return: 0; -EPERM; -ENOSYS. */
static int try_classic(void) {
    weir_loop_options options = { .size = sizeof options, .backend = WEIR_BACKEND_URING_CLASSIC };
    weir_loop *loop;
    int r = weir_loop_new(&options, &loop);
    if (r < 0)
        return r;
    test_ok(weir_loop_close(loop));
    weir_loop_unref(loop);
    return 0;
}

/* On failure the reason is a sentence, whatever failed. */
static void every_failure_of_loop_new_gives_its_reason(void **state) {
    (void)state;
    char reason[WEIR_REASON_SIZE];
    weir_loop *loop = NULL;
    weir_pool_options pool = { .size = sizeof pool, .buffer_bytes = 5 };
    weir_allocator broken = { .size = sizeof broken };
    weir_loop_options bad[] = {
        { .size = sizeof *bad, .backend = 77 },
        { .size = sizeof *bad, .flags = 1U << 31 },
        { .size = sizeof *bad, .allocator = &broken },
        { .size = sizeof *bad, .pool = &pool },
        { .size = sizeof *bad, .pool = &pool, .backend = WEIR_BACKEND_URING_CLASSIC },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        reason[0] = '\0';
        bad[i].reason = reason;
        bad[i].reason_size = sizeof reason;
        int r = weir_loop_new(&bad[i], &loop);
        if (bad[i].backend == WEIR_BACKEND_URING_CLASSIC && try_classic() < 0)
            assert_true(r == try_classic() || r == -EINVAL); /* whichever is found out first */
        else
            assert_int_equal(r, -EINVAL);
        assert_null(loop);
        assert_true(strlen(reason) > 4);
        assert_null(strstr(reason, "classic rings were asked for")); /* that is no reason to fail */
    }
}

static void a_reason_is_cut_to_its_room(void **state) {
    (void)state;
    char reason[8];
    weir_loop *loop = NULL;
    weir_pool_options pool = { .size = sizeof pool, .buffer_bytes = 5 };
    weir_loop_options options = { .size = sizeof options, .pool = &pool, .reason = reason, .reason_size = 5 };
    memset(reason, '#', sizeof reason);
    assert_int_equal(weir_loop_new(&options, &loop), -EINVAL);
    assert_int_equal(strnlen(reason, sizeof reason), 4);
    assert_memory_equal(reason + 5, "###", 3);
}

static void statistics_follow_what_happens(void **state) {
    test_fixture *f = *state;
    static witness w;
    static witness_gate gate;
    weir_timer *timer;
    char answer[3];
    weir_loop_stats stats = test_loop_stats(f);
    assert_int_equal(stats.turns + stats.slices + stats.bytes_in + stats.bytes_out + stats.accepted + stats.posts,
                     0);
    assert_int_equal(stats.streams_open + stats.listeners_open + stats.timers_started, 0);
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    assert_int_equal(test_loop_stats(f).listeners_open, 1);
    int peer = test_connect(gate.listener);
    run_until(f, gate.count == 1);
    stats = test_loop_stats(f);
    assert_int_equal(stats.accepted, 1);
    assert_int_equal(stats.streams_open, 1);
    assert_int_equal(stats.streams_unstarted, 1);
    memset(&w, 0, sizeof w);
    w.stream = gate.streams[0];
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    assert_int_equal(test_loop_stats(f).streams_unstarted, 0);
    peer_send(peer, "hello", 5);
    run_until(f, w.size == 5);
    assert_int_equal(weir_stream_write(w.stream, "abc", 3), WEIR_WRITE_OK);
    run_until(f, weir_stream_get_queued(w.stream) == 0);
    peer_receive(peer, answer, 3);
    test_ok(weir_timer_new(f->loop, nothing, NULL, &timer));
    test_ok(weir_timer_start(timer, 1000 * ms, 0));
    stats = test_loop_stats(f);
    assert_int_equal(stats.bytes_in, 5);
    assert_int_equal(stats.bytes_out, 3);
    assert_int_equal(stats.bytes_copied, 3);
    assert_int_equal(stats.slices, w.slices);
    assert_int_equal(stats.timers_started, 1);
    assert_int_equal(stats.overflows, 0);
    assert_int_equal(stats.accept_stalls, 0);
    assert_true(stats.turns > 0 && stats.enters > 0 && stats.completions >= 3);
    assert_true(stats.enters >= stats.turns || test_is_epoll(f)); /* which has turns without a call */
    weir_timer_unref(timer);
    test_ok(weir_stream_abort(w.stream));
    test_ok(weir_listener_close(gate.listener));
    run_until(f, w.closes + gate.closes == 2);
    stats = test_loop_stats(f);
    assert_int_equal(stats.streams_open + stats.listeners_open + stats.timers_started, 0);
    close(peer);
}

/* ---- structures of another size ---------------------------------------------------------------------- */

#define LARGER(type, name)                         \
    struct {                                       \
        type known;                                \
        uint8_t later[24];                         \
    } name = { .known = { .size = sizeof name } }; \
    memset(name.later, 0xEE, sizeof name.later)

static void what_a_newer_caller_has_more_is_zeroed(void **state) {
    test_fixture *f = *state;
    static const uint8_t zeros[24];
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    LARGER(weir_loop_info, info);
    LARGER(weir_loop_stats, stats);
    LARGER(weir_pool_stats, pool);
    LARGER(weir_stream_stats, stream);
    test_ok(weir_loop_get_info(f->loop, &info.known));
    test_ok(weir_loop_get_stats(f->loop, &stats.known));
    test_ok(weir_pool_get_stats(weir_loop_get_pool(f->loop), &pool.known));
    test_ok(weir_stream_get_stats(w.stream, &stream.known));
    assert_memory_equal(info.later, zeros, sizeof zeros);
    assert_memory_equal(stats.later, zeros, sizeof zeros);
    assert_memory_equal(pool.later, zeros, sizeof zeros);
    assert_memory_equal(stream.later, zeros, sizeof zeros);
    assert_int_equal(stats.known.size, sizeof stats);
    assert_int_equal(stats.known.streams_open, 1);
    assert_true(info.known.backend != WEIR_BACKEND_AUTO);
    assert_true(pool.known.budget_bytes > 0);
    close(peer);
}

/* ---- the pool ---------------------------------------------------------------------------------------- */

static void pool_statistics_are_consistent(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    weir_pool_options options = {
        .size = sizeof options, .budget_bytes = 1 << 20, .buffer_bytes = 16384, .window_bytes = 65536
    };
    test_open(&f, NULL, &options);
    int peer = witness_pair(&f, &w, false, NULL);
    run_turns(&f, 2);
    weir_pool_stats stats = test_pool_stats(&f);
    assert_int_equal(stats.budget_bytes, 1 << 20);
    assert_int_equal(stats.buffer_bytes, 16384);
    unsigned window = test_is_epoll(&f) ? 1 : 4;
    assert_int_equal(stats.window_buffers, window);
    assert_int_equal(stats.buffers_posted + stats.buffers_filling, window);
    assert_int_equal(stats.used_bytes, window * 16384);
    assert_int_equal(stats.peak_bytes, stats.used_bytes);
    assert_int_equal(stats.level, WEIR_PRESSURE_NONE);
    weir_slice slice;
    test_ok(weir_slice_copy(weir_loop_get_pool(f.loop), "abc", 3, &slice));
    stats = test_pool_stats(&f);
    assert_true(stats.block_bytes >= 3);
    assert_int_equal(stats.used_bytes, window * 16384 + stats.block_bytes);
    weir_slice_unref(&slice);
    assert_int_equal(test_pool_stats(&f).block_bytes, 0);
    assert_true(test_pool_stats(&f).peak_bytes > window * 16384);
    close(peer);
    test_close(&f);
}

typedef struct onlooker {
    weir_pool *pool;
    atomic_bool end;
    atomic_uint looks;
    unsigned wrong;
} onlooker;

static void *look(void *userdata) {
    onlooker *it = userdata;
    while (!atomic_load(&it->end)) {
        weir_pool_stats stats = { .size = sizeof stats };
        it->wrong += weir_pool_get_stats(it->pool, &stats) != 0;
        it->wrong += stats.used_bytes > stats.budget_bytes || stats.peak_bytes > stats.budget_bytes;
        atomic_fetch_add(&it->looks, 1);
    }
    weir_pool_unref(it->pool);
    return NULL;
}

static void another_thread_may_look_at_the_pool(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t data[4096];
    onlooker it = { .pool = weir_pool_ref(weir_loop_get_pool(f->loop)) };
    pthread_t thread;
    int peer = witness_pair(f, &w, false, NULL);
    assert_int_equal(pthread_create(&thread, NULL, look, &it), 0);
    for (unsigned i = 0; i < 500 || atomic_load(&it.looks) < 100; i++) {
        peer_send(peer, data, sizeof data);
        run_until(f, w.size == (i + 1) * sizeof data);
    }
    atomic_store(&it.end, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(it.wrong, 0);
    close(peer);
}

/* ---- handles that are kept --------------------------------------------------------------------------- */

static void handles_may_be_kept_beyond_the_loops_close(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    static witness_gate gate;
    char text[WEIR_ADDRESS_SIZE];
    weir_loop_stats stats = { .size = sizeof stats };
    weir_loop_info info = { .size = sizeof info };
    weir_stream_stats stream_stats = { .size = sizeof stream_stats };
    test_open(&f, NULL, NULL);
    int peer = witness_pair(&f, &w, false, NULL);
    witness_listen(&f, &gate, "127.0.0.1:0", NULL);
    peer_send(peer, "hello", 5);
    run_until(&f, w.size == 5);
    weir_stream *stream = weir_stream_ref(w.stream);
    weir_listener *listener = weir_listener_ref(gate.listener);
    weir_pool *pool = weir_pool_ref(weir_loop_get_pool(f.loop));
    weir_timer *timer;
    test_ok(weir_timer_new(f.loop, nothing, NULL, &timer));
    test_ok(weir_loop_close(f.loop));
    weir_loop *loop = weir_loop_ref(f.loop);
    assert_ptr_equal(loop, f.loop);
    weir_loop_unref(f.loop);

    assert_ptr_equal(weir_stream_get_loop(stream), loop);
    assert_ptr_equal(weir_stream_get_userdata(stream), &w);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_CLOSED);
    assert_int_equal(weir_stream_get_fd(stream), -EBADF);
    assert_int_equal(weir_stream_get_queued(stream), 0);
    assert_true(weir_stream_get_local(stream, text, sizeof text) < 0);
    test_ok(weir_stream_get_stats(stream, &stream_stats));
    assert_int_equal(stream_stats.bytes_in, 5);
    assert_ptr_equal(weir_listener_get_loop(listener), loop);
    assert_true(weir_listener_get_address(listener, text, sizeof text) < 0);
    test_ok(weir_loop_get_stats(loop, &stats));
    assert_int_equal(stats.bytes_in, 5);
    assert_int_equal(stats.streams_open + stats.listeners_open, 0);
    test_ok(weir_loop_get_info(loop, &info));
    assert_int_equal(weir_loop_is_idle(loop), 1);
    assert_true(weir_loop_get_now(loop) > 0);
    assert_ptr_equal(weir_loop_get_pool(loop), pool);
    weir_loop_stop(loop); /* does nothing */

    weir_loop_unref(loop); /* the other handles hold what they need */
    assert_null(weir_timer_unref(timer));
    assert_null(weir_listener_unref(listener));
    assert_null(weir_stream_unref(stream));
    weir_pool_stats pool_stats = { .size = sizeof pool_stats };
    test_ok(weir_pool_get_stats(pool, &pool_stats));
    assert_int_equal(pool_stats.used_bytes, 0);
    assert_null(weir_pool_unref(pool));
    assert_int_equal(atomic_load(&f.memory.live_blocks), 0);
    close(peer);
}

static void *unref_there(void *loop) {
    return weir_loop_unref(loop);
}

static void the_last_unref_of_a_closed_loop_may_be_anybodys(void **state) {
    (void)state;
    test_memory memory;
    pthread_t thread;
    void *answer;
    weir_loop *loop;
    test_memory_init(&memory);
    weir_loop_options options = { .size = sizeof options, .allocator = &memory.allocator };
    test_ok(weir_loop_new(&options, &loop));
    test_ok(weir_loop_close(loop));
    assert_true(atomic_load(&memory.live_blocks) > 0);
    assert_int_equal(pthread_create(&thread, NULL, unref_there, loop), 0);
    assert_int_equal(pthread_join(thread, &answer), 0);
    assert_null(answer);
    assert_int_equal(atomic_load(&memory.live_blocks), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_version_is_0_1),
        cmocka_unit_test(errors_have_names_and_texts_of_either_sign),
        loop_test(a_loop_is_anyones_until_it_runs),
        cmocka_unit_test(an_unbound_loop_can_be_used_and_closed_on_another_thread),
        loop_test(close_by_another_than_the_running_thread_is_refused),
        loop_test(now_is_the_turns_monotonic_time),
        loop_test(now_does_not_change_within_a_turn),
        cmocka_unit_test(info_says_what_runs_and_what_was_asked_for),
        cmocka_unit_test(every_failure_of_loop_new_gives_its_reason),
        cmocka_unit_test(a_reason_is_cut_to_its_room),
        loop_test(statistics_follow_what_happens),
        loop_test(what_a_newer_caller_has_more_is_zeroed),
        cmocka_unit_test(pool_statistics_are_consistent),
        loop_test(another_thread_may_look_at_the_pool),
        cmocka_unit_test(handles_may_be_kept_beyond_the_loops_close),
        cmocka_unit_test(the_last_unref_of_a_closed_loop_may_be_anybodys),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
