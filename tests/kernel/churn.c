/* SPDX-License-Identifier: MIT */

/* Ten thousand connections come and go, ended by either side in every way, and nothing is left of them: no descriptor,
 * no buffer, no byte, and no memory that grows with how many there were. */

#include "kernel/scribe.h"

enum { CONNECTIONS = TIMES(10000, 2000), BATCH = 100, BYTES = 700 };

typedef struct turnstile {
    test_fixture f;
    weir_listener *listeners[3];
    scribe s[BATCH];
    unsigned accepted, closed;
    uint64_t connections;
} turnstile;

/* What our side does once it has echoed all. */
enum { WAIT_FOR_END, CLOSE, ABORT, ENDINGS };

static void serve(scribe *s, char event, const weir_slice *slice) {
    turnstile *t = s->userdata;
    unsigned index = (unsigned)(s - t->s);
    if (event == 'c')
        t->closed++;
    if (event == 'e')
        test_ok(weir_stream_close(s->stream));
    if (event != 'd')
        return;
    assert_true(weir_stream_write_slice(s->stream, slice) >= 0);
    if (s->received < BYTES)
        return;
    if (index % ENDINGS == CLOSE)
        test_ok(weir_stream_close(s->stream));
    if (index % ENDINGS == ABORT)
        test_ok(weir_stream_abort(s->stream));
}

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    turnstile *t = userdata;
    (void)listener;
    assert_true(t->accepted < BATCH);
    scribe *s = &t->s[t->accepted++];
    s->hook = serve;
    s->userdata = t;
    scribe_init(s, 0);
    scribe_start(s, stream);
}

static const weir_listener_callbacks callbacks = { .size = sizeof callbacks, .on_accept = on_accept };

/* The peer's side: it sends, reads or not, and goes by an end or by a reset. */
static void run_batch(turnstile *t) {
    peer peers[BATCH];
    t->accepted = t->closed = 0;
    for (unsigned i = 0; i < BATCH; i++) {
        peer_init(&peers[i], test_connect(t->listeners[t->connections++ % 3]), 0);
        assert_int_equal(peer_send(peers[i].fd, 0, 0, BYTES), 0);
        if (i % 4 == 1)
            shutdown(peers[i].fd, SHUT_WR);
        if (i % 4 == 2)
            peer_reset(peers[i].fd);
    }
    for (unsigned i = 0; i < BATCH; i++) {
        if (i % 4 == 2)
            continue;
        int64_t deadline = test_now_ns() + PATIENCE_S * INT64_C(1000000000);
        while (!peer_is_over(&peers[i]) && peers[i].received < BYTES) {
            assert_true(weir_loop_run_once(t->f.loop, 1 * MS) >= 0);
            assert_true(test_now_ns() < deadline);
        }
        assert_int_equal(peers[i].wrong, -1);
        close(peers[i].fd);
    }
    RUN_UNTIL(&t->f, t->accepted == BATCH && t->closed == BATCH);
    for (unsigned i = 0; i < BATCH; i++)
        assert_int_equal(t->s[i].wrong, -1);
}

static void ten_thousand_connections_leave_nothing(void **state) {
    (void)state;
    static turnstile t;
    char name[64];
    const char *const addresses[3] = { "127.0.0.1:0", "[::1]:0", name };
    snprintf(name, sizeof name, "unix:@weir-test-churn-%d", (int)getpid());
    uint64_t bytes = 0, blocks = 0;
    unsigned fds = 0;
    memset(&t, 0, sizeof t);
    test_open(&t.f, NULL, NULL);
    for (int i = 0; i < 3; i++) {
        test_ok(weir_listener_open(t.f.loop, addresses[i], NULL, &t.listeners[i]));
        test_ok(weir_listener_start(t.listeners[i], &callbacks, &t));
    }
    while (t.connections < CONNECTIONS) {
        run_batch(&t);
        assert_int_equal(test_loop_stats(&t.f).streams_open, 0);
        assert_int_equal(test_pool_stats(&t.f).block_bytes, 0);
        assert_int_equal(test_pool_stats(&t.f).buffers_retired, 0);
        if (t.connections == 10 * BATCH) { /* by now all that is kept for reuse is there */
            fds = test_count_fds();
            bytes = atomic_load(&t.f.memory.live_bytes);
            blocks = atomic_load(&t.f.memory.live_blocks);
        }
    }
    assert_int_equal(test_loop_stats(&t.f).accepted, CONNECTIONS);
    assert_int_equal(test_count_fds(), fds);
    assert_true(atomic_load(&t.f.memory.live_bytes) <= bytes + bytes / 4);
    assert_true(atomic_load(&t.f.memory.live_blocks) <= blocks + 64);
    test_close(&t.f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ten_thousand_connections_leave_nothing),
    };
    return cmocka_run_group_tests_name("churn", tests, NULL, NULL);
}
