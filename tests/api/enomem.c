/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <signal.h>

/*
 * Without memory: each allocation of a run that connects, accepts, echoes and closes fails once, then each one of
 * several. Every call then does its work or says -ENOMEM, what was begun still ends exactly once, nothing leaks, and the
 * same loop goes on as if nothing had been when there is memory again.
 */

enum { SMALL = 100, MIDDLE = 3000, LENT = 60000, ALL = 5 * SMALL + MIDDLE + LENT, SERVERS = 8 };

typedef struct end_of_stream {
    weir_stream *stream; /* NULL once closed */
    unsigned starts, closes;
    size_t size;
    bool is_wrong;
    weir_slice kept[64]; /* server: held until its close */
    unsigned kept_count;
} end_of_stream;

static struct {
    test_fixture f;
    weir_listener *listener;
    end_of_stream client, servers[SERVERS];
    unsigned server_count;
    unsigned listener_starts, listener_closes;
    unsigned posts, posted, fires, events, signals, flushes, flush_count;
    unsigned watches, ears;
    lent lends;
    unsigned lent_count;
    bool has_failed; /* some call said -ENOMEM */
} run;

static uint8_t payload[ALL];

/* 0 or more, or -ENOMEM: nothing else can be the matter. */
static bool good(int r) {
    if (r < 0) {
        assert_int_equal(r, -ENOMEM);
        run.has_failed = true;
    }
    return r >= 0;
}

/* ---- the server: keeps every slice until the stream ends, and echoes it ------------------------------ */

static void server_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    end_of_stream *it = userdata;
    if (it->kept_count < 64) {
        weir_slice *kept = &it->kept[it->kept_count];
        if (!good(weir_slice_keep(slice, kept))) {
            test_ok(weir_stream_abort(stream));
            return;
        }
        it->kept_count++;
        if (!good(weir_stream_write_slice(stream, kept)))
            test_ok(weir_stream_abort(stream));
    } else if (!good(weir_stream_write_slice(stream, slice))) {
        test_ok(weir_stream_abort(stream));
    }
}

static void server_end(weir_stream *stream, void *userdata) {
    (void)userdata;
    test_ok(weir_stream_close(stream));
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    end_of_stream *it = userdata;
    assert_ptr_equal(stream, it->stream);
    assert_true(reason == WEIR_CLOSE_ERROR || reason == WEIR_CLOSE_CONNECT ||
                error == 0); /* an error has a reason that says so */
    if (it == &run.client)
        assert_true(run.lends.releases == run.lent_count && run.flushes == run.flush_count); /* before on_close */
    while (it->kept_count > 0)
        weir_slice_unref(&it->kept[--it->kept_count]);
    it->stream = NULL;
    it->closes++;
}

static const weir_stream_callbacks serving = {
    .size = sizeof serving, .on_data = server_data, .on_end = server_end, .on_close = on_close
};

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener, (void)userdata;
    assert_true(run.server_count < SERVERS);
    end_of_stream *it = &run.servers[run.server_count++];
    *it = (end_of_stream){ .stream = stream, .starts = 1 };
    test_ok(weir_stream_start(stream, &serving, it));
}

static void on_listener_close(weir_listener *listener, int error, void *userdata) {
    (void)userdata;
    assert_ptr_equal(listener, run.listener);
    assert_int_equal(error, 0); /* no memory is no reason to end one */
    run.listener = NULL;
    run.listener_closes++;
}

static const weir_listener_callbacks accepting = { .size = sizeof accepting,
                                                   .on_accept = on_accept,
                                                   .on_close = on_listener_close };

/* ---- the client -------------------------------------------------------------------------------------- */

static void client_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    end_of_stream *it = userdata;
    it->is_wrong |= slice->size > ALL - it->size || memcmp(slice->data, payload + it->size, slice->size) != 0;
    it->size += slice->size;
    if (it->size >= ALL)
        test_ok(weir_stream_close(stream));
}

static const weir_stream_callbacks asking = {
    .size = sizeof asking, .on_data = client_data, .on_end = server_end, .on_close = on_close
};

static void count_run_flush(weir_stream *stream, int error, void *userdata) {
    (void)error, (void)userdata;
    assert_ptr_equal(stream, run.client.stream);
    run.flushes++;
}

/* Small writes that coalesce, a slice and a few bytes before it, lent memory: a gathered send. false: one was refused, and nothing of it was
 * queued. */
static bool send_payload(weir_stream *stream) {
    size_t at = 0;
    weir_slice slice;
    for (int i = 0; i < 5; i++, at += SMALL)
        if (!good(weir_stream_write(stream, payload + at, SMALL)))
            return false;
    if (!good(weir_slice_copy(weir_loop_get_pool(run.f.loop), payload + at, MIDDLE, &slice)))
        return false;
    at += MIDDLE;
    const weir_slice parts[] = { { payload + at - MIDDLE, 10, NULL },
                                 { slice.data + 10, MIDDLE - 10, slice.owner } };
    int r = weir_stream_writev(stream, parts, 2);
    weir_slice_unref(&slice);
    if (!good(r))
        return false;
    uint64_t queued = weir_stream_get_queued(stream);
    if (!good(weir_stream_write_external(stream, payload + at, LENT, lent_release, &run.lends))) {
        assert_int_equal(weir_stream_get_queued(stream), queued);
        return false;
    }
    run.lent_count++;
    run.flush_count += good(weir_stream_flush(stream, count_run_flush, NULL));
    return true;
}

static void count_post(weir_loop *loop, void *userdata) {
    (void)loop, (void)userdata;
    run.posts++;
}

static void count_fire(weir_timer *timer, void *userdata) {
    (void)timer, (void)userdata;
    run.fires++;
}

static void count_event(weir_watch *watch, int events, void *userdata) {
    (void)userdata;
    assert_int_equal(events, WEIR_WATCH_WRITE);
    run.events++;
    test_ok(weir_watch_stop(watch));
}

static void count_signal(weir_signal *signal, int number, void *userdata) {
    (void)signal, (void)number, (void)userdata;
    run.signals++;
}

/* A descriptor that is ready, and a signal. */
static void watch_and_hear(weir_watch **watch, weir_signal **signal, int fd) {
    if (good(weir_watch_new(run.f.loop, fd, count_event, NULL, watch)))
        test_ok(weir_watch_start(*watch, WEIR_WATCH_WRITE));
    if (good(weir_signal_new(run.f.loop, SIGURG, count_signal, NULL, signal))) {
        test_ok(weir_signal_start(*signal));
        pthread_kill(pthread_self(), SIGURG);
    }
}

/* ---- a run ------------------------------------------------------------------------------------------- */

static bool all_is_closed(void) {
    for (unsigned i = 0; i < run.server_count; i++)
        if (run.servers[i].closes < run.servers[i].starts)
            return false;
    return run.client.closes == run.client.starts && run.posts == run.posted && run.events == run.watches &&
           run.signals == run.ears;
}

static void listen_if_not_yet(void) {
    if (run.listener == NULL && good(weir_listener_open(run.f.loop, "127.0.0.1:0", NULL, &run.listener))) {
        test_ok(weir_listener_start(run.listener, &accepting, NULL));
        run.listener_starts++;
    }
}

/* One echo, as far as it comes. */
static void echo_once(void) {
    char address[WEIR_ADDRESS_SIZE];
    weir_timer *timer = NULL;
    weir_watch *watch = NULL;
    weir_signal *signal = NULL;
    weir_stream *stream;
    int fds[2];
    memset(&run.client, 0, sizeof run.client);
    memset(&run.lends, 0, sizeof run.lends);
    run.server_count = run.lent_count = run.flushes = run.flush_count = 0;
    listen_if_not_yet();
    if (run.listener == NULL)
        return;
    assert_true(weir_listener_get_address(run.listener, address, sizeof address) > 0);
    if (good(weir_timer_new(run.f.loop, count_fire, NULL, &timer)))
        test_ok(weir_timer_start(timer, 1000, 1000));
    run.posted += good(weir_loop_post(run.f.loop, count_post, NULL));
    test_pair(false, fds);
    watch_and_hear(&watch, &signal, fds[0]);
    run.watches += watch != NULL;
    run.ears += signal != NULL;
    const weir_stream_options options = { .size = sizeof options, .idle_timeout_ns = INT64_C(1000000000000) };
    if (good(weir_stream_dial(run.f.loop, address, &options, &stream))) {
        run.client.stream = stream;
        run.client.starts = 1;
        test_ok(weir_stream_start(stream, &asking, &run.client));
        (void)good(weir_stream_set_option(stream, WEIR_OPTION_QUEUE_LIMIT_BYTES, 2 << 20));
        if (!send_payload(stream))
            test_ok(weir_stream_abort(stream));
    }
    int64_t deadline = test_now_ns() + INT64_C(20000000000);
    while (!all_is_closed()) {
        if (test_now_ns() > deadline)
            fail_msg("a run hangs: allocation %llu failed last", (unsigned long long)run.f.memory.fail_at);
        int r = weir_loop_run_once(run.f.loop, 1000 * 1000);
        assert_true(r >= 0 || r == -ENOMEM);
    }
    weir_timer_unref(timer);
    weir_watch_unref(watch);
    weir_signal_unref(signal);
    close(fds[0]);
    close(fds[1]);
    assert_true(!run.client.is_wrong);
    assert_int_equal(run.lends.releases, run.lent_count);
}

static void assert_went_well(void) {
    assert_false(run.has_failed);
    assert_int_equal(run.client.closes, 1);
    assert_int_equal(run.client.size, ALL);
    assert_int_equal(run.lends.releases, 1);
    assert_int_equal(run.flushes, 1);
}

/* true: there was a loop, and it has been closed. */
static bool begin(uint64_t fail_at, uint64_t fail_every, uint64_t skip) {
    memset(&run, 0, sizeof run);
    test_memory_init(&run.f.memory);
    weir_loop_options options = { .size = sizeof options, .allocator = &run.f.memory.allocator };
    run.f.fds = test_count_fds();
    run.f.threads = test_count_threads();
    atomic_store(&run.f.memory.fail_at, fail_at);
    atomic_store(&run.f.memory.fail_every, skip > 0 ? 0 : fail_every);
    if (good(weir_loop_new(&options, &run.f.loop))) {
        atomic_store(&run.f.memory.fail_every, fail_every);
        return true;
    }
    assert_null(run.f.loop);
    assert_int_equal(atomic_load(&run.f.memory.live_blocks), 0);
    assert_int_equal(test_count_fds(), run.f.fds);
    return false;
}

/* With memory again: the same loop, and a whole echo. */
static void recover_and_close(void) {
    atomic_store(&run.f.memory.fail_at, 0);
    atomic_store(&run.f.memory.fail_every, 0);
    run.has_failed = false;
    echo_once();
    assert_went_well();
    test_close(&run.f);
    assert_int_equal(run.listener_closes, run.listener_starts);
}

static void each_allocation_of_a_run_fails_once(void **state) {
    (void)state;
    uint64_t number = 1;
    bool all_was_well = false;
    test_fill(1, 0, payload, sizeof payload);
    for (; !all_was_well; number++) {
        assert_true(number < 2000);
        if (!begin(number, 0, 0))
            continue;
        echo_once();
        all_was_well = atomic_load(&run.f.memory.failed) == 0;
        if (all_was_well)
            assert_went_well();
        recover_and_close();
    }
    assert_true(number > 20); /* it is many that were tried */
}

static void every_few_allocations_of_a_run_fail(void **state) {
    (void)state;
    test_fill(1, 0, payload, sizeof payload);
    for (uint64_t every = 2; every <= 40; every += every < 14 ? 1 : 13) {
        for (uint64_t skip = 0; skip <= 1; skip++) { /* the loop's own too, or only what comes after */
            if (!begin(0, every, skip))
                continue;
            echo_once();
            assert_true(atomic_load(&run.f.memory.failed) > 0 || every > 8);
            recover_and_close();
        }
    }
}

/* Every way in which queueing can fail leaves the memory with its owner. */
static void lent_memory_that_is_refused_is_not_released(void **state) {
    (void)state;
    int r = -ENOMEM;
    for (uint64_t number = 1; r == -ENOMEM; number++) {
        test_fixture f;
        static witness w;
        lent it = { 0 };
        test_open(&f, NULL, NULL);
        int peer = witness_pair(&f, &w, false, NULL);
        atomic_store(&f.memory.fail_at, atomic_load(&f.memory.allocations) + number);
        r = weir_stream_write_external(w.stream, payload, 100, lent_release, &it);
        assert_true(r == 0 || r == -ENOMEM);
        assert_int_equal(it.releases, 0);
        assert_int_equal(weir_stream_get_queued(w.stream), r == 0 ? 100 : 0);
        assert_true(r == -ENOMEM || number >= 3);
        close(peer);
        test_ok(weir_loop_close(f.loop));
        assert_int_equal(it.releases, r == 0);
        test_close(&f);
    }
}

/*
 * Several slices at once: whichever allocation fails, of a block for a copy, of ranges, none of them is queued, and what is
 * queued before and afterwards is one row of bytes. Full of ranges, so that more of these must be allocated.
 */
static void slices_that_are_refused_together_are_not_queued_in_part(void **state) {
    (void)state;
    enum { BEFORE = 100, PARTS = 300, EACH = 20, AFTER = 50 };
    int r = -ENOMEM;
    unsigned refusals = 0;
    test_fill(1, 0, payload, sizeof payload);
    for (uint64_t number = 1; r == -ENOMEM; number++) {
        test_fixture f;
        static witness w;
        static weir_slice parts[PARTS];
        static uint8_t got[BEFORE + PARTS * EACH + AFTER];
        weir_stream_stats stats = { .size = sizeof stats };
        size_t at = BEFORE;
        test_open(&f, NULL, NULL);
        int peer = witness_pair(&f, &w, false, NULL);
        test_ok(weir_stream_write(w.stream, payload, BEFORE));
        for (unsigned i = 0; i < PARTS;
             i++, at += EACH) { /* every other one is copied, so that none are neighbours */
            parts[i] = (weir_slice){ payload + at, EACH, NULL };
            if (i % 2 == 1)
                test_ok(weir_slice_copy(weir_loop_get_pool(f.loop), payload + at, EACH, &parts[i]));
        }
        uint64_t block_bytes = test_pool_stats(&f).block_bytes;
        atomic_store(&f.memory.fail_at, atomic_load(&f.memory.allocations) + number);
        r = weir_stream_writev(w.stream, parts, PARTS);
        atomic_store(&f.memory.fail_at, 0);
        assert_true(r == WEIR_WRITE_OK || r == -ENOMEM);
        refusals += r == -ENOMEM;
        if (r == -ENOMEM) {
            assert_int_equal(weir_stream_get_queued(w.stream), BEFORE);
            assert_int_equal(test_pool_stats(&f).block_bytes, block_bytes);
            test_ok(weir_stream_get_stats(w.stream, &stats));
            assert_int_equal(stats.bytes_copied, BEFORE);
            test_ok(weir_stream_writev(w.stream, parts, PARTS)); /* there is memory again */
        }
        for (unsigned i = 1; i < PARTS; i += 2)
            weir_slice_unref(&parts[i]);
        test_ok(weir_stream_write(w.stream, payload + at, AFTER));
        run_until(&f, weir_stream_get_queued(w.stream) == 0);
        peer_receive(peer, got, sizeof got);
        assert_memory_equal(got, payload, sizeof got);
        close(peer);
        test_close(&f);
    }
    assert_true(refusals > 100); /* the blocks, and the ranges */
}

static unsigned flushes;

static void count_flush(weir_stream *stream, int error, void *userdata) {
    (void)stream, (void)userdata;
    assert_int_equal(error, 0);
    flushes++;
}

static void never_flush(weir_stream *stream, int error, void *userdata) {
    (void)stream, (void)error, (void)userdata;
    fail_msg("a flush that was refused was told");
}

static void a_flush_that_is_refused_is_never_told_and_a_cork_needs_no_memory(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    flushes = 0;
    test_open(&f, NULL, NULL);
    int peer = witness_pair(&f, &w, false, NULL);
    test_ok(weir_stream_write(w.stream, payload, 100));
    test_ok(weir_stream_flush(w.stream, count_flush, NULL));
    atomic_store(&f.memory.fail_every, 1);
    test_ok(weir_stream_cork(w.stream));
    assert_int_equal(weir_stream_flush(w.stream, never_flush, NULL), -ENOMEM);
    run_turns(&f, 3);
    assert_int_equal(flushes, 0);
    assert_int_equal(weir_stream_get_queued(w.stream), 100);
    test_ok(weir_stream_uncork(w.stream));
    run_until(&f, flushes == 1);
    assert_int_equal(weir_stream_flush(w.stream, never_flush, NULL), -ENOMEM);
    atomic_store(&f.memory.fail_every, 0);
    test_ok(weir_stream_flush(w.stream, count_flush, NULL)); /* it goes on */
    run_until(&f, flushes == 2);
    close(peer);
    test_close(&f);
}

static weir_slice held;

static void hold_the_first(witness *w, char event, const weir_slice *slice) {
    if (event == 'd' && w->slices == 1)
        weir_slice_ref(slice, &held);
}

/* A stream that cannot get a buffer waits for one, and is not ended. */
static void a_stream_without_memory_for_buffers_waits(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    static uint8_t data[4096];
    const weir_pool_options pool = { .size = sizeof pool, .buffer_bytes = 4096, .window_bytes = 4096 };
    test_open(&f, NULL, &pool);
    int peer = witness_pair(&f, &w, true, NULL);
    w.hook = hold_the_first;
    run_turns(&f, 1);
    atomic_store(&f.memory.fail_every, 1);
    peer_send(peer, data, sizeof data); /* all of the only buffer there is */
    run_until(&f, w.size == sizeof data);
    peer_send(peer, "hello", 5);
    run_turns(&f, 20);
    assert_int_equal(w.size, sizeof data);
    assert_int_equal(w.closes, 0);
    assert_true(atomic_load(&f.memory.failed) > 0);
    atomic_store(&f.memory.fail_every, 0);
    run_until(&f, w.size == sizeof data + 5);
    assert_memory_equal(w.bytes + sizeof data, "hello", 5);
    weir_slice_unref(&held);
    close(peer);
    test_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_allocation_of_a_run_fails_once),
        cmocka_unit_test(every_few_allocations_of_a_run_fail),
        cmocka_unit_test(lent_memory_that_is_refused_is_not_released),
        cmocka_unit_test(slices_that_are_refused_together_are_not_queued_in_part),
        cmocka_unit_test(a_flush_that_is_refused_is_never_told_and_a_cork_needs_no_memory),
        cmocka_unit_test(a_stream_without_memory_for_buffers_waits),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
