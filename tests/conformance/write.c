/* SPDX-License-Identifier: MIT */
#include "conformance/world.h"

/* Writing: what is taken, when there is room again, who hears that it was sent, and when lent memory comes back. */

enum { LARGE = 4 << 20 };

static uint8_t data[LARGE];

/* A stream over a small send buffer: what is written to it stays in its queue until the peer reads. */
static int narrow_pair(world *w, teller *a, bool tcp, const weir_stream_options *options) {
    int fds[2];
    peer_pair(tcp, fds);
    small_send_buffer(fds[0]);
    teller_adopt(w, a, "a", fds[0], options);
    return fds[1];
}

static void end_it(world *w, teller *a, int peer) {
    shutdown(peer, SHUT_WR);
    until(w, a->ends == 1 || a->closes == 1);
    if (a->closes == 0)
        ok(weir_stream_close(a->stream));
    until(w, a->closes == 1);
    close(peer);
}

/* ---- marks and limits ----------------------------------------------------------------------------------- */

static void a_full_queue_drains_once(void **state) {
    world *w = *state;
    const weir_stream_options options = {
        .size = sizeof options, .queue_limit_bytes = LARGE, .queue_high_bytes = 1 << 20, .queue_low_bytes = 1 << 18
    };
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        voice p = { .name = "p", .seed = 2 };
        test_fill(2, 0, data, 2 << 20);
        int peer = narrow_pair(w, &a, tcp, &options);
        assert_int_equal(weir_stream_write(a.stream, data, 1 << 20), WEIR_WRITE_OK);
        assert_int_equal(weir_stream_write(a.stream, data + (1 << 20), 1), WEIR_WRITE_FULL);
        assert_int_equal(weir_stream_write(a.stream, data + (1 << 20) + 1, (1 << 20) - 1), WEIR_WRITE_FULL);
        turns(w, 5);
        told(w, ""); /* nobody reads */
        peer_hear(w, &p, peer, 100000);
        told(w, "p: data 100000\n"); /* the rest, less what the sockets hold, is above the low mark */
        peer_hear(w, &p, peer, (2 << 20) - 101000);
        until(w, a.drains == 1);
        peer_hear(w, &p, peer, 1000);
        turns(w, 5);
        weir_stream_stats stats = stream_stats(a.stream);
        assert_int_equal(stats.bytes_out, 2 << 20);
        assert_int_equal(stats.bytes_copied, 2 << 20);
        assert_int_equal(stats.queued_bytes, 0);
        assert_int_equal(stats.queue_peak_bytes, 2 << 20);
        end_it(w, &a, peer);
        told(w, "a: drain\n"
                "p: data 1996152\n"
                "p: data 1000\n"
                "a: end\n"
                "a: close PEER 0\n");
    }
    counted(w, 0, 4 << 20, 4 << 20, 0);
}

static void a_write_beyond_the_limit_is_refused_and_owed_a_drain(void **state) {
    world *w = *state;
    const weir_stream_options options = {
        .size = sizeof options, .queue_limit_bytes = 1 << 20, .queue_high_bytes = 1 << 20, .queue_low_bytes = 1000
    };
    teller a = { .hook = NULL };
    voice p = { .name = "p", .seed = 2 };
    test_fill(2, 0, data, LARGE);
    int peer = narrow_pair(w, &a, true, &options);
    assert_int_equal(weir_stream_write(a.stream, data, (1 << 20) + 1), -EMSGSIZE);
    turns(w, 3);
    told(w, ""); /* nothing is queued: no drain is owed */
    assert_int_equal(weir_stream_write(a.stream, data, 1 << 20), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_write(a.stream, data + (1 << 20), 1), -ENOBUFS);
    assert_int_equal(weir_stream_get_queued(a.stream), 1 << 20);
    peer_hear(w, &p, peer, 1 << 20);
    until(w, a.drains == 1);
    assert_int_equal(weir_stream_write(a.stream, data + (1 << 20), 1 << 20), WEIR_WRITE_OK);
    peer_hear(w, &p, peer, 1 << 20);
    told(w, "a: drain\n"
            "p: data 1048576\n"
            "p: data 1048576\n");
    end_it(w, &a, peer);
    told(w, "a: end\n"
            "a: close PEER 0\n");
}

static void write_more(teller *t, char event, const weir_slice *slice) {
    (void)slice;
    unsigned *left = t->userdata;
    if (event == 'r' && *left > 0)
        assert_int_equal(weir_stream_write(t->stream, data + 20000 * (5 - (*left)--), 20000), WEIR_WRITE_FULL);
}

static void each_drain_may_fill_it_again(void **state) {
    world *w = *state;
    const weir_stream_options options = { .size = sizeof options,
                                          .queue_high_bytes = 10000,
                                          .queue_low_bytes = 1000 };
    unsigned left = 4;
    teller a = { .hook = write_more, .userdata = &left };
    voice p = { .name = "p", .seed = 1 };
    test_fill(1, 0, data, 100000);
    int peer = narrow_pair(w, &a, true, &options);
    assert_int_equal(weir_stream_write(a.stream, data, 20000), WEIR_WRITE_FULL);
    peer_hear(w, &p, peer, 99500); /* what the fifth waits for is taken by then */
    until(w, a.drains == 5);
    peer_hear(w, &p, peer, 500);
    turns(w, 5);
    told(w, "a: drain\na: drain\na: drain\na: drain\na: drain\n"
            "p: data 99500\n"
            "p: data 500\n");
    end_it(w, &a, peer);
    told(w, "a: end\n"
            "a: close PEER 0\n");
}

/* ---- corks ---------------------------------------------------------------------------------------------- */

static void a_cork_holds_back(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        voice p = { .name = "p" };
        char byte;
        int peer = teller_pair(w, &a, "a", tcp, NULL);
        ok(weir_stream_cork(a.stream));
        ok(weir_stream_write(a.stream, "one ", 4));
        turns(w, 3);
        ok(weir_stream_write(a.stream, "two ", 4));
        turns(w, 3);
        assert_int_equal(recv(peer, &byte, 1, MSG_DONTWAIT), -1);
        assert_int_equal(weir_stream_get_queued(a.stream), 8);
        ok(weir_stream_uncork(a.stream));
        ok(weir_stream_write(a.stream, "three", 5));
        peer_hear(w, &p, peer, 13);
        ok(weir_stream_cork(a.stream));
        ok(weir_stream_write(a.stream, "end", 3));
        ok(weir_stream_shutdown(a.stream)); /* uncorks */
        peer_hear_all(w, &p, peer);
        end_it(w, &a, peer);
        told(w, "p: data 'one two three'\n"
                "p: data 'end'\n"
                "p: end\n"
                "a: end\n"
                "a: close PEER 0\n");
    }
}

/* ---- flushes and lent memory ---------------------------------------------------------------------------- */

static void on_flush(weir_stream *stream, int error, void *userdata) {
    voice *v = userdata;
    assert_non_null(stream);
    say(v->world, "%s: flushed %s", v->name, error_text(error));
}

static void on_release(const void *lent, size_t size, void *userdata) {
    voice *v = userdata;
    assert_non_null(lent);
    say(v->world, "%s: released %zu", v->name, size);
}

static void flushes_and_releases_come_in_order(void **state) {
    world *w = *state;
    const weir_stream_options options = { .size = sizeof options, .queue_limit_bytes = LARGE };
    voice one = { .world = w, .name = "one" }, two = { .world = w, .name = "two" },
          three = { .world = w, .name = "three" };
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        voice p = { .name = "p", .seed = 4 };
        test_fill(4, 0, data, 1 << 20);
        int peer = narrow_pair(w, &a, tcp, &options);
        ok(weir_stream_flush(a.stream, on_flush, &one));
        told(w, ""); /* never inside, also when nothing is queued */
        turns(w, 1);
        told(w, "one: flushed 0\n");
        ok(weir_stream_write_external(a.stream, data, 400000, on_release, &one));
        ok(weir_stream_flush(a.stream, on_flush, &one));
        ok(weir_stream_write_external(a.stream, data + 400000, 400000, on_release, &two));
        ok(weir_stream_flush(a.stream, on_flush, &two));
        ok(weir_stream_flush(a.stream, on_flush, &three));
        ok(weir_stream_write(a.stream, data + 800000, (1 << 20) - 800000));
        turns(w, 5); /* the peer's buffer has room for less than the first of them */
        told(w, "");
        peer_hear(w, &p, peer, 1 << 20);
        turns(w, 5);
        told(w, "one: released 400000\n"
                "one: flushed 0\n"
                "two: released 400000\n"
                "two: flushed 0\n"
                "three: flushed 0\n"
                "p: data 1048576\n");
        end_it(w, &a, peer);
        told(w, "a: end\n"
                "a: close PEER 0\n");
    }
    assert_int_equal(loop_stats(w).bytes_copied, 2 * ((1 << 20) - 800000));
}

static void what_is_never_sent_is_released_before_on_close(void **state) {
    world *w = *state;
    voice one = { .world = w, .name = "one" }, two = { .world = w, .name = "two" };
    for (int i = 0; i < 3; i++) {
        teller a = { .hook = NULL };
        int peer = narrow_pair(w, &a, true, NULL);
        ok(weir_stream_write_external(a.stream, data, 1 << 20, on_release, &one));
        ok(weir_stream_flush(a.stream, on_flush, &one));
        assert_int_equal(weir_stream_write_external(a.stream, data, 1000, on_release, &two), WEIR_WRITE_FULL);
        ok(weir_stream_flush(a.stream, on_flush, &two));
        turns(w, 5);
        told(w, "");
        if (i == 0) {
            ok(weir_stream_abort(a.stream));
            told(w, "");
        } else if (i == 1) {
            peer_reset(peer);
        } else {
            world_close_loop(w);
        }
        if (i < 2)
            until(w, a.closes == 1);
        const char *error = i == 1 ? "ECONNRESET" : "ECANCELED";
        const char *reason = i == 0 ? "ABORT 0" : i == 1 ? "ERROR ECONNRESET" : "LOOP 0";
        char expected[256];
        snprintf(expected, sizeof expected,
                 "one: released 1048576\ntwo: released 1000\none: flushed %s\ntwo: flushed %s\na: close %s\n",
                 error, error, reason);
        told(w, expected);
        if (i != 1)
            close(peer);
    }
}

/* ---- several at once ------------------------------------------------------------------------------------ */

static void a_writev_is_all_or_nothing(void **state) {
    world *w = *state;
    weir_slice block;
    const weir_stream_options options = {
        .size = sizeof options, .queue_limit_bytes = 20, .queue_high_bytes = 20, .queue_low_bytes = 1
    };
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        voice p = { .name = "p" };
        int peer = teller_pair(w, &a, "a", tcp, &options);
        ok(weir_slice_copy(weir_loop_get_pool(w->loop), "counted", 7, &block));
        const weir_slice three[] = { { (const uint8_t *)"head ", 5, NULL },
                                     block,
                                     { (const uint8_t *)" tail", 5, NULL } };
        ok(weir_stream_writev(a.stream, three, 3));
        assert_int_equal(weir_stream_writev(a.stream, three, 3), -ENOBUFS);
        assert_int_equal(weir_stream_get_queued(a.stream), 17);
        weir_slice_unref(&block);
        peer_hear(w, &p, peer, 17);
        until(w, a.drains == 1);
        assert_int_equal(stream_stats(a.stream).bytes_copied, 10);
        end_it(w, &a, peer);
        told(w, "a: drain\n"
                "p: data 'head counted tail'\n"
                "a: end\n"
                "a: close PEER 0\n");
    }
    counted(w, 0, 34, 34, 0); /* two blocks were filled by copying as well */
}

static void one_slice_goes_to_many(void **state) {
    world *w = *state;
    enum { MANY = 16, BYTES = 300000 };
    static teller a[MANY];
    static int peers[MANY];
    weir_slice block;
    uint8_t *memory;
    memset(a, 0, sizeof a);
    ok(weir_slice_new(weir_loop_get_pool(w->loop), BYTES, &memory, &block));
    test_fill(7, 0, memory, BYTES);
    for (int i = 0; i < MANY; i++) {
        peers[i] = narrow_pair(w, &a[i], i % 2, NULL);
        ok(weir_stream_write_slice(a[i].stream, &block));
    }
    weir_slice_unref(&block);
    assert_true(pool_stats(w).block_bytes >= BYTES);
    for (int i = MANY - 1; i >= 0; i--) {
        voice p = { .name = "p", .seed = 7 };
        peer_hear(w, &p, peers[i], BYTES);
        told(w, "p: data 300000\n");
        end_it(w, &a[i], peers[i]);
        told(w, "a: end\n"
                "a: close PEER 0\n");
    }
    assert_int_equal(pool_stats(w).block_bytes, 0);
    counted(w, 0, MANY * BYTES, 0, 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scenario(a_full_queue_drains_once),
        scenario(a_write_beyond_the_limit_is_refused_and_owed_a_drain),
        scenario(each_drain_may_fill_it_again),
        scenario(a_cork_holds_back),
        scenario(flushes_and_releases_come_in_order),
        scenario(what_is_never_sent_is_released_before_on_close),
        scenario(a_writev_is_all_or_nothing),
        scenario(one_slice_goes_to_many),
    };
    return run_world(tests);
}
