/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <netinet/in.h>
#include <netinet/tcp.h>

/* What is changed of a stream by name: that it is so afterwards, and that it makes a difference. */

static const int64_t ms = 1000000, hour = INT64_C(3600000000000);
static uint8_t many[256 << 10];

enum { FIRST = WEIR_OPTION_NODELAY, LAST = WEIR_OPTION_LINGER_TIMEOUT_NS };

static int64_t get(const witness *w, int option) {
    int64_t value = -77;
    test_ok(weir_stream_get_option(w->stream, option, &value));
    return value;
}

static void set(const witness *w, int option, int64_t value) {
    test_ok(weir_stream_set_option(w->stream, option, value));
}

static void get_all(const witness *w, int64_t values[LAST + 1]) {
    for (int option = FIRST; option <= LAST; option++)
        values[option] = get(w, option);
}

/* ---- set and read back ------------------------------------------------------------------------------- */

static void a_stream_begins_with_what_its_options_and_the_kernel_say(void **state) {
    test_fixture *f = *state;
    const weir_stream_options options = { .size = sizeof options,
                                          .flags = WEIR_STREAM_NAGLE | WEIR_STREAM_KEEPALIVE,
                                          .queue_limit_bytes = 5000,
                                          .queue_high_bytes = 4000,
                                          .queue_low_bytes = 3000,
                                          .idle_timeout_ns = hour,
                                          .write_timeout_ns = 2 * hour,
                                          .linger_timeout_ns = 3 * hour };
    static witness plain, told;
    int peer = witness_pair(f, &plain, true, NULL), other = witness_pair(f, &told, true, &options);
    assert_int_equal(get(&plain, WEIR_OPTION_NODELAY), 1);
    assert_int_equal(get(&plain, WEIR_OPTION_KEEPALIVE), 0);
    assert_int_equal(get(&plain, WEIR_OPTION_QUEUE_LIMIT_BYTES), 16 << 20);
    assert_int_equal(get(&plain, WEIR_OPTION_QUEUE_HIGH_BYTES), 1 << 20);
    assert_int_equal(get(&plain, WEIR_OPTION_QUEUE_LOW_BYTES), 256 << 10);
    assert_int_equal(get(&plain, WEIR_OPTION_IDLE_TIMEOUT_NS), WEIR_NEVER);
    assert_int_equal(get(&plain, WEIR_OPTION_WRITE_TIMEOUT_NS), 60000 * ms);
    assert_int_equal(get(&plain, WEIR_OPTION_LINGER_TIMEOUT_NS), 10000 * ms);
    assert_int_equal(get(&told, WEIR_OPTION_NODELAY), 0);
    assert_int_equal(get(&told, WEIR_OPTION_KEEPALIVE), 1);
    assert_int_equal(get(&told, WEIR_OPTION_QUEUE_LIMIT_BYTES), 5000);
    assert_int_equal(get(&told, WEIR_OPTION_QUEUE_HIGH_BYTES), 4000);
    assert_int_equal(get(&told, WEIR_OPTION_QUEUE_LOW_BYTES), 3000);
    assert_int_equal(get(&told, WEIR_OPTION_IDLE_TIMEOUT_NS), hour);
    assert_int_equal(get(&told, WEIR_OPTION_WRITE_TIMEOUT_NS), 2 * hour);
    assert_int_equal(get(&told, WEIR_OPTION_LINGER_TIMEOUT_NS), 3 * hour);
    close(peer);
    close(other);
}

/* A limit that no value can say was read as -1. */
static void a_limit_beyond_any_value_reads_as_the_largest(void **state) {
    test_fixture *f = *state;
    const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = UINT64_MAX };
    static witness w;
    int peer = witness_pair(f, &w, false, &options);
    assert_true(get(&w, WEIR_OPTION_QUEUE_LIMIT_BYTES) == INT64_MAX);
    close(peer);
}

/* The default mark is half of the limit, rounded up; of the largest limit there is, that came to nothing: all was full. */
static void a_limit_beyond_any_value_has_the_same_mark_as_other_large_ones(void **state) {
    test_fixture *f = *state;
    const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = UINT64_MAX };
    static witness w;
    int peer = witness_pair(f, &w, false, &options);
    assert_int_equal(weir_stream_write(w.stream, "a", 1), WEIR_WRITE_OK);
    assert_true(get(&w, WEIR_OPTION_QUEUE_HIGH_BYTES) == 1 << 20);
    close(peer);
}

typedef struct change {
    int option;
    int64_t value;
    int level, name; /* the socket's, as another would ask; 0: a setting */
} change;

static const change wishes[] = {
    { WEIR_OPTION_NODELAY, 0, IPPROTO_TCP, TCP_NODELAY },
    { WEIR_OPTION_NODELAY, 1, IPPROTO_TCP, TCP_NODELAY },
    { WEIR_OPTION_KEEPALIVE, 1, SOL_SOCKET, SO_KEEPALIVE },
    { WEIR_OPTION_KEEPALIVE, 0, SOL_SOCKET, SO_KEEPALIVE },
    { WEIR_OPTION_KEEPALIVE_IDLE_S, 11, IPPROTO_TCP, TCP_KEEPIDLE },
    { WEIR_OPTION_KEEPALIVE_INTERVAL_S, 12, IPPROTO_TCP, TCP_KEEPINTVL },
    { WEIR_OPTION_KEEPALIVE_PROBES, 13, IPPROTO_TCP, TCP_KEEPCNT },
    { WEIR_OPTION_USER_TIMEOUT_MS, 14000, IPPROTO_TCP, TCP_USER_TIMEOUT },
    { WEIR_OPTION_USER_TIMEOUT_MS, 0, IPPROTO_TCP, TCP_USER_TIMEOUT },
    { WEIR_OPTION_SEND_BUFFER_BYTES, 20000, SOL_SOCKET, SO_SNDBUF },
    { WEIR_OPTION_RECEIVE_BUFFER_BYTES, 30000, SOL_SOCKET, SO_RCVBUF },
    { WEIR_OPTION_QUEUE_LOW_BYTES, 0, 0, 0 },
    { WEIR_OPTION_QUEUE_HIGH_BYTES, 0, 0, 0 },
    { WEIR_OPTION_QUEUE_LIMIT_BYTES, 1, 0, 0 },
    { WEIR_OPTION_QUEUE_LIMIT_BYTES, INT64_MAX, 0, 0 },
    { WEIR_OPTION_QUEUE_HIGH_BYTES, 7000, 0, 0 },
    { WEIR_OPTION_QUEUE_LOW_BYTES, 7000, 0, 0 },
    { WEIR_OPTION_QUEUE_LIMIT_BYTES, 7000, 0, 0 },
    { WEIR_OPTION_IDLE_TIMEOUT_NS, INT64_MAX, 0, 0 },
    { WEIR_OPTION_IDLE_TIMEOUT_NS, WEIR_NEVER, 0, 0 },
    { WEIR_OPTION_WRITE_TIMEOUT_NS, 1, 0, 0 },
    { WEIR_OPTION_WRITE_TIMEOUT_NS, WEIR_NEVER, 0, 0 },
    { WEIR_OPTION_LINGER_TIMEOUT_NS, 1, 0, 0 },
    { WEIR_OPTION_LINGER_TIMEOUT_NS, WEIR_NEVER, 0, 0 },
};

static void every_option_is_as_it_was_set_and_the_others_stay(void **state) {
    test_fixture *f = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        static witness each[2];
        witness *w = &each[tcp];
        int64_t before[LAST + 1], after[LAST + 1];
        int peer = witness_pair(f, w, tcp, NULL), tried = 0;
        for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++) {
            const change *wish = &wishes[i];
            bool is_buffer = wish->name == SO_SNDBUF || wish->name == SO_RCVBUF;
            is_buffer = is_buffer && wish->level == SOL_SOCKET;
            get_all(w, before);
            set(w, wish->option, wish->value);
            get_all(w, after);
            before[wish->option] = is_buffer                 ? 2 * wish->value /* the kernel's way */
                                   : !tcp && wish->level > 0 ? 0               /* a Unix socket has none */
                                                             : wish->value;
            for (int option = FIRST; option <= LAST; option++)
                if (after[option] != before[option])
                    fail_msg("wish %zu: option %d is %lld, not %lld", i, option, (long long)after[option],
                             (long long)before[option]);
            tried |= 1 << wish->option;
            if (wish->name == 0 || (!tcp && !is_buffer))
                continue;
            int value = -77;
            socklen_t size = sizeof value;
            test_ok(getsockopt(weir_stream_get_fd(w->stream), wish->level, wish->name, &value, &size));
            assert_int_equal(value, after[wish->option]);
        }
        assert_int_equal(tried, (1 << (LAST + 1)) - 2); /* each was */
        run_turns(f, 3);
        assert_int_equal(w->closes, 0);
        close(peer);
    }
}

/* ---- refused ----------------------------------------------------------------------------------------- */

static void a_bad_value_is_refused_and_nothing_changes(void **state) {
    test_fixture *f = *state;
    static const struct {
        int option;
        int64_t values[5];
    } bad[] = {
        { WEIR_OPTION_NODELAY, { -1, 2, INT64_MIN, INT64_MAX, INT64_C(1) << 32 } },
        { WEIR_OPTION_KEEPALIVE, { -1, 2, INT64_MIN, INT64_MAX, (INT64_C(1) << 32) + 1 } },
        { WEIR_OPTION_KEEPALIVE_IDLE_S, { 0, -1, INT64_MIN, INT64_MAX, (INT64_C(1) << 32) + 1 } },
        { WEIR_OPTION_KEEPALIVE_INTERVAL_S, { 0, -1, INT64_MIN, INT64_MAX, (INT64_C(1) << 32) + 1 } },
        { WEIR_OPTION_KEEPALIVE_PROBES, { 0, -1, INT64_MIN, INT64_MAX, (INT64_C(1) << 32) + 1 } },
        { WEIR_OPTION_USER_TIMEOUT_MS, { -1, -2, INT64_MIN, INT64_MAX, INT64_C(1) << 32 } },
        { WEIR_OPTION_SEND_BUFFER_BYTES, { 0, -1, INT64_MIN, INT64_MAX, (INT64_C(1) << 32) + 20000 } },
        { WEIR_OPTION_RECEIVE_BUFFER_BYTES, { 0, -1, INT64_MIN, INT64_MAX, (INT64_C(1) << 32) + 20000 } },
        { WEIR_OPTION_QUEUE_LIMIT_BYTES, { 0, -1, INT64_MIN, 1999, 1 } },
        { WEIR_OPTION_QUEUE_HIGH_BYTES, { 0, -1, INT64_MIN, 999, 3001 } },
        { WEIR_OPTION_QUEUE_LOW_BYTES, { -1, INT64_MIN, 2001, 3000, INT64_MAX } },
        { WEIR_OPTION_IDLE_TIMEOUT_NS, { 0, -2, -1000, INT64_MIN, INT32_MIN } },
        { WEIR_OPTION_WRITE_TIMEOUT_NS, { 0, -2, -1000, INT64_MIN, INT32_MIN } },
        { WEIR_OPTION_LINGER_TIMEOUT_NS, { 0, -2, -1000, INT64_MIN, INT32_MIN } },
    };
    const weir_stream_options options = {
        .size = sizeof options, .queue_limit_bytes = 3000, .queue_high_bytes = 2000, .queue_low_bytes = 1000
    };
    assert_int_equal(sizeof bad / sizeof *bad, LAST);
    for (int tcp = 0; tcp <= 1; tcp++) {
        static witness each[2];
        witness *w = &each[tcp];
        int64_t before[LAST + 1] = { 0 }, after[LAST + 1] = { 0 };
        int peer = witness_pair(f, w, tcp, &options);
        get_all(w, before);
        for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
            for (int j = 0; j < 5; j++)
                if (weir_stream_set_option(w->stream, bad[i].option, bad[i].values[j]) != -EINVAL)
                    fail_msg("option %d takes %lld", bad[i].option, (long long)bad[i].values[j]);
        get_all(w, after);
        assert_memory_equal(before, after, sizeof before);
        close(peer);
    }
}

/* What the kernel alone knows to be too much. */
static void what_the_kernel_refuses_is_its_error(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    int64_t before = get(&w, WEIR_OPTION_KEEPALIVE_PROBES);
    assert_int_equal(weir_stream_set_option(w.stream, WEIR_OPTION_KEEPALIVE_PROBES, 100000), -EINVAL);
    assert_int_equal(get(&w, WEIR_OPTION_KEEPALIVE_PROBES), before);
    close(peer);
}

/* What a listener accepts has its settings, all of it the same ones. */
static void what_is_changed_of_one_stream_is_not_of_its_siblings(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    static witness w[2];
    const weir_stream_options options = { .size = sizeof options, .idle_timeout_ns = hour };
    const weir_listener_options listening = { .size = sizeof listening, .stream = &options };
    int peers[2];
    witness_listen(f, &gate, "127.0.0.1:0", &listening);
    for (int i = 0; i < 2; i++) {
        peers[i] = test_connect(gate.listener);
        run_until(f, gate.count == (unsigned)i + 1);
        w[i].stream = gate.streams[i];
        test_ok(weir_stream_start(w[i].stream, &witness_callbacks, &w[i]));
    }
    test_ok(weir_listener_close(gate.listener));
    for (int option = WEIR_OPTION_QUEUE_LIMIT_BYTES; option <= LAST; option++) {
        int64_t before = get(&w[1], option);
        set(&w[0], option, option >= WEIR_OPTION_IDLE_TIMEOUT_NS ? 2 * hour : before / 2 * 2 + 2);
        assert_int_equal(get(&w[1], option), before);
        assert_true(get(&w[0], option) != before);
    }
    test_ok(weir_stream_abort(w[0].stream));
    run_until(f, w[0].closes == 1);
    close(peers[0]);
    assert_int_equal(get(&w[1], WEIR_OPTION_IDLE_TIMEOUT_NS), hour);
    close(peers[1]);
}

static void without_memory_nothing_changes(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    int64_t before[LAST + 1] = { 0 }, after[LAST + 1] = { 0 };
    get_all(&w, before);
    for (int option = WEIR_OPTION_QUEUE_LIMIT_BYTES; option <= LAST; option++) {
        int64_t value = option >= WEIR_OPTION_IDLE_TIMEOUT_NS ? 2 * hour : before[option] + 1;
        atomic_store(&f->memory.fail_at, atomic_load(&f->memory.allocations) + 1);
        assert_int_equal(weir_stream_set_option(w.stream, option, value), -ENOMEM);
        get_all(&w, after);
        assert_memory_equal(before, after, sizeof before);
    }
    atomic_store(&f->memory.fail_at, 0);
    close(peer);
}

static void an_unknown_option_is_refused(void **state) {
    test_fixture *f = *state;
    static const int unknown[] = { 0, -1, LAST + 1, INT32_MIN, INT32_MAX };
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    for (int i = 0; i < 5; i++) {
        int64_t value = -77;
        assert_int_equal(weir_stream_set_option(w.stream, unknown[i], 1), -ENOPROTOOPT);
        assert_int_equal(weir_stream_get_option(w.stream, unknown[i], &value), -ENOPROTOOPT);
        assert_int_equal(value, -77);
    }
    close(peer);
}

static void in_any_state_but_closed(void **state) {
    test_fixture *f = *state;
    static witness w;
    int fds[2];
    int64_t value = -77;
    test_pair(true, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &w.stream));
    weir_stream *stream = weir_stream_ref(w.stream);
    set(&w, WEIR_OPTION_KEEPALIVE_IDLE_S, 21); /* unstarted */
    set(&w, WEIR_OPTION_IDLE_TIMEOUT_NS, hour);
    test_ok(weir_stream_start(stream, &witness_callbacks, &w));
    assert_int_equal(get(&w, WEIR_OPTION_IDLE_TIMEOUT_NS), hour);
    test_ok(weir_stream_close(stream));
    run_turns(f, 3);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_CLOSING);
    assert_int_equal(get(&w, WEIR_OPTION_KEEPALIVE_IDLE_S), 21);
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++)
        set(&w, wishes[i].option, wishes[i].value);
    close(fds[1]);
    run_until(f, w.closes == 1);
    assert_int_equal(w.error, 0);
    for (int option = FIRST; option <= LAST; option++) {
        assert_int_equal(weir_stream_set_option(stream, option, 1), -EBADF);
        assert_int_equal(weir_stream_get_option(stream, option, &value), -EBADF);
    }
    assert_int_equal(value, -77);
    weir_stream_unref(stream);
}

/* A dialled stream has its socket before it has its peer. */
static void while_it_connects(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    static witness w;
    char address[WEIR_ADDRESS_SIZE];
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    assert_true(weir_listener_get_address(gate.listener, address, sizeof address) > 0);
    test_ok(weir_stream_dial(f->loop, address, NULL, &w.stream));
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_CONNECTING);
    set(&w, WEIR_OPTION_KEEPALIVE, 1);
    set(&w, WEIR_OPTION_IDLE_TIMEOUT_NS, 30 * ms); /* which begins when it is open */
    run_until(f, w.closes == 1);
    assert_string_equal(w.order, "oc");
    assert_int_equal(w.reason, WEIR_CLOSE_IDLE);
    run_until(f, gate.count == 1);
    test_ok(weir_stream_abort(gate.streams[0]));
    test_ok(weir_listener_close(gate.listener));
    run_until(f, gate.closes == 1);
}

/* ---- the queue --------------------------------------------------------------------------------------- */

static void a_smaller_limit_refuses_at_once(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    assert_int_equal(weir_stream_write(w.stream, many, 3000), WEIR_WRITE_OK);
    set(&w, WEIR_OPTION_QUEUE_LOW_BYTES, 0);
    set(&w, WEIR_OPTION_QUEUE_HIGH_BYTES, 2000);
    set(&w, WEIR_OPTION_QUEUE_LIMIT_BYTES, 2000); /* below what is queued, which stays */
    assert_int_equal(weir_stream_get_queued(w.stream), 3000);
    assert_int_equal(weir_stream_write(w.stream, many, 1), -ENOBUFS);
    run_until(f, w.drains == 1); /* a peer's socket has room for so much */
    peer_receive(peer, many, 3000);
    assert_int_equal(weir_stream_write(w.stream, many, 2001), -EMSGSIZE);
    assert_int_equal(weir_stream_write(w.stream, many, 2000), WEIR_WRITE_OK);
    set(&w, WEIR_OPTION_QUEUE_LIMIT_BYTES, 5000);
    assert_int_equal(weir_stream_write(w.stream, many, 3000), WEIR_WRITE_FULL);
    assert_int_equal(weir_stream_write(w.stream, many, 1), -ENOBUFS);
    run_until(f, weir_stream_get_queued(w.stream) == 0);
    peer_receive(peer, many, 5000);
    close(peer);
}

static void a_high_mark_says_from_then_on_when_it_is_full(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    assert_int_equal(weir_stream_write(w.stream, many, 3000), WEIR_WRITE_OK);
    set(&w, WEIR_OPTION_QUEUE_LOW_BYTES, 500);
    set(&w, WEIR_OPTION_QUEUE_HIGH_BYTES, 3000);
    assert_int_equal(weir_stream_write(w.stream, many, 1), WEIR_WRITE_FULL);
    set(&w, WEIR_OPTION_QUEUE_HIGH_BYTES, 10000);
    assert_int_equal(weir_stream_write(w.stream, many, 1), WEIR_WRITE_OK);
    run_until(f, weir_stream_get_queued(w.stream) == 0);
    run_turns(f, 3);
    assert_int_equal(w.drains, 1); /* it was said once, and is owed */
    close(peer);
}

static void drink_all(test_fixture *f, int peer) {
    while (peer_poll(peer, many, sizeof many) > 0)
        run_turns(f, 3);
}

/* With a low mark of 0 the drain would come when the last byte is taken; here some are left. */
static void a_low_mark_says_from_then_on_when_there_is_room(void **state) {
    test_fixture *f = *state;
    for (int is_raised = 0; is_raised <= 1; is_raised++) {
        static witness each[2];
        static uint8_t much[4 << 20];
        const weir_stream_options options = { .size = sizeof options, .queue_high_bytes = 2 << 20 };
        witness *w = &each[is_raised];
        int peer = witness_pair(f, w, false, &options);
        set(w, WEIR_OPTION_QUEUE_LOW_BYTES, 0);
        assert_int_equal(weir_stream_write_external(w->stream, much, sizeof much, NULL, NULL), WEIR_WRITE_FULL);
        if (is_raised)
            set(w, WEIR_OPTION_QUEUE_LOW_BYTES, 2 << 20);
        uint64_t at_drain = UINT64_MAX;
        while (weir_stream_get_queued(w->stream) > 0) {
            assert_true(peer_poll(peer, many, sizeof many) != 0);
            run_turns(f, 2);
            if (w->drains == 1 && at_drain == UINT64_MAX)
                at_drain = weir_stream_get_queued(w->stream);
        }
        assert_int_equal(w->drains, 1);
        assert_true(is_raised ? at_drain > 0 && at_drain <= 2 << 20 : at_drain == 0);
        drink_all(f, peer);
        close(peer);
    }
}

/* ---- time -------------------------------------------------------------------------------------------- */

static void an_idle_timeout_ends_a_stream_that_is_idle(void **state) {
    test_fixture *f = *state;
    static witness w, spared;
    int peer = witness_pair(f, &w, true, NULL), other = witness_pair(f, &spared, true, NULL);
    run_turns(f, 3);
    test_sleep_ms(30);
    run_turns(f, 3);
    assert_int_equal(w.closes + spared.closes, 0);
    set(&w, WEIR_OPTION_IDLE_TIMEOUT_NS, 20 * ms); /* that long it was idle already */
    set(&spared, WEIR_OPTION_IDLE_TIMEOUT_NS, 20 * ms);
    set(&spared, WEIR_OPTION_IDLE_TIMEOUT_NS, WEIR_NEVER);
    test_sleep_ms(1);
    run_turns(f, 3);
    assert_int_equal(w.closes, 1);
    assert_int_equal(w.reason, WEIR_CLOSE_IDLE);
    assert_int_equal(w.error, -ETIMEDOUT);
    test_run_for_ms(f, 50);
    assert_int_equal(spared.closes, 0);
    close(peer);
    close(other);
}

/* A stream that had been paused without a timeout, and then got one, ended in the turn in which it was resumed: its pause
 * had not been counted. */
static void time_for_which_reading_was_held_back_before_does_not_count(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    test_ok(weir_stream_pause(w.stream));
    run_turns(f, 3);
    test_sleep_ms(3000);
    set(&w, WEIR_OPTION_IDLE_TIMEOUT_NS, 2000 * ms);
    test_sleep_ms(1);
    run_turns(f, 5);
    assert_int_equal(w.closes, 0);
    test_ok(weir_stream_resume(w.stream));
    run_turns(f, 2);
    test_sleep_ms(1);
    run_turns(f, 5);
    assert_int_equal(w.closes, 0);
    run_until(f, w.closes == 1); /* but from now on it does */
    assert_int_equal(w.reason, WEIR_CLOSE_IDLE);
    close(peer);
}

/* Until the kernel has as much as it takes. */
static void fill(test_fixture *f, witness *w) {
    static uint8_t much[8 << 20];
    uint64_t queued;
    assert_true(weir_stream_write_external(w->stream, much, sizeof much, NULL, NULL) >= 0);
    do {
        queued = weir_stream_get_queued(w->stream);
        test_run_for_ms(f, 30);
    } while (weir_stream_get_queued(w->stream) != queued);
    assert_true(queued > 0);
}

static void a_write_timeout_ends_a_stream_whose_peer_takes_nothing(void **state) {
    test_fixture *f = *state;
    for (int was_off = 0; was_off <= 1; was_off++) {
        static witness each[2];
        const weir_stream_options options = { .size = sizeof options,
                                              .write_timeout_ns = was_off ? WEIR_NEVER : hour };
        witness *w = &each[was_off];
        int peer = witness_pair(f, w, true, &options);
        fill(f, w);
        assert_int_equal(w->closes, 0);
        set(w, WEIR_OPTION_WRITE_TIMEOUT_NS, 20 * ms);
        run_until(f, w->closes == 1);
        assert_int_equal(w->reason, WEIR_CLOSE_WRITE);
        assert_int_equal(w->error, -ETIMEDOUT);
        close(peer);
    }
}

static void a_write_timeout_that_is_switched_off_ends_nothing(void **state) {
    test_fixture *f = *state;
    const weir_stream_options options = { .size = sizeof options, .write_timeout_ns = 2000 * ms };
    static witness w;
    int peer = witness_pair(f, &w, true, &options);
    fill(f, &w);
    assert_int_equal(w.closes, 0);
    set(&w, WEIR_OPTION_WRITE_TIMEOUT_NS, WEIR_NEVER);
    test_run_for_ms(f, 2200);
    assert_int_equal(w.closes, 0);
    drink_all(f, peer);
    close(peer);
}

static void a_linger_timeout_is_that_of_a_close_to_come(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    set(&w, WEIR_OPTION_LINGER_TIMEOUT_NS, 20 * ms);
    test_ok(weir_stream_close(w.stream));
    run_until(f, w.closes == 1); /* its peer does not end */
    assert_int_equal(w.reason, WEIR_CLOSE_LINGER);
    close(peer);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(a_stream_begins_with_what_its_options_and_the_kernel_say),
        loop_test(a_limit_beyond_any_value_reads_as_the_largest),
        loop_test(a_limit_beyond_any_value_has_the_same_mark_as_other_large_ones),
        loop_test(every_option_is_as_it_was_set_and_the_others_stay),
        loop_test(a_bad_value_is_refused_and_nothing_changes),
        loop_test(what_the_kernel_refuses_is_its_error),
        loop_test(what_is_changed_of_one_stream_is_not_of_its_siblings),
        loop_test(without_memory_nothing_changes),
        loop_test(an_unknown_option_is_refused),
        loop_test(in_any_state_but_closed),
        loop_test(while_it_connects),
        loop_test(a_smaller_limit_refuses_at_once),
        loop_test(a_high_mark_says_from_then_on_when_it_is_full),
        loop_test(a_low_mark_says_from_then_on_when_there_is_room),
        loop_test(an_idle_timeout_ends_a_stream_that_is_idle),
        loop_test(time_for_which_reading_was_held_back_before_does_not_count),
        loop_test(a_write_timeout_ends_a_stream_whose_peer_takes_nothing),
        loop_test(a_write_timeout_that_is_switched_off_ends_nothing),
        loop_test(a_linger_timeout_is_that_of_a_close_to_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
