/* SPDX-License-Identifier: MIT */
#include "api/witness.h"
#include "backend/backend.h"

/* METERED streams deliver what was granted and not a byte more: with the kernel's receive limits, where it has them, and
 * without, as before Linux 6.17. Each test is run both ways. */

enum { MOST_STAGED = 64 << 10 };

static const weir_stream_options metered = { .size = sizeof metered, .flags = WEIR_STREAM_METERED };

/* Peers are open until the fixture was closed. */
static int peers[4];
static unsigned peer_count;

static void open_fixture(test_fixture *f, bool has_limits) {
    const weir__tuning tuning = { .no_receive_limits = !has_limits };
    test_open(f, &tuning, NULL);
    peer_count = 0;
}

static int metered_pair(test_fixture *f, witness *w, bool tcp) {
    int fd = peers[peer_count++] = witness_pair(f, w, tcp, &metered);
    f->fds++;
    return fd;
}

static void close_fixture(test_fixture *f) {
    test_close(f);
    while (peer_count > 0)
        close(peers[--peer_count]);
}

#define EACH_WAY(is_limited) for (int is_limited = 0; is_limited < 2; is_limited++)

static weir_stream_stats stats_of(const weir_stream *stream) {
    weir_stream_stats stats = { .size = sizeof stats };
    test_ok(weir_stream_get_stats(stream, &stats));
    return stats;
}

/* ---- no more than that ---------------------------------------------------------------------------------- */

/* What a stream may have had, and what it got; as its witness's userdata. */
typedef struct purse {
    uint64_t granted, got, seed;
    uint64_t again; /* granted in each callback, while there is some left */
    uint64_t left;
} purse;

static void spend(witness *w, char event, const weir_slice *slice) {
    purse *p = w->userdata;
    if (event != 'd')
        return;
    assert_int_equal(test_differs(p->seed, p->got, slice->data, slice->size), -1);
    p->got += slice->size;
    assert_true(p->got <= p->granted);
    uint64_t more = p->again < p->left ? p->again : p->left;
    if (more > 0) {
        p->granted += more;
        p->left -= more;
        test_ok(weir_stream_grant(w->stream, more));
    }
}

static void flood(int fd, uint64_t seed, uint64_t *sent) {
    static uint8_t bytes[256 << 10];
    test_fill(seed, *sent, bytes, sizeof bytes);
    ssize_t n = send(fd, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
    *sent += n > 0 ? (uint64_t)n : 0;
}

static void what_was_granted_comes_and_nothing_else(void **state) {
    (void)state;
    static const uint64_t grants[] = { 1,     10, 4096,   1,    100,  65535, 65536,
                                       65537, 7,  300000, 4031, 4032, 4033,  1000000 };
    EACH_WAY(is_limited)
    for (int tcp = 0; tcp < 2; tcp++) {
        test_fixture f;
        static witness w;
        purse p = { .seed = 5 };
        uint64_t sent = 0;
        open_fixture(&f, is_limited);
        int peer = metered_pair(&f, &w, tcp);
        w.hook = spend;
        w.userdata = &p;
        for (size_t i = 0; i < sizeof grants / sizeof *grants; i++) {
            flood(peer, p.seed, &sent);
            run_turns(&f, 3);
            assert_int_equal(p.got, p.granted);
            p.granted += grants[i];
            test_ok(weir_stream_grant(w.stream, grants[i]));
            run_until(&f, (flood(peer, p.seed, &sent), p.got == p.granted));
            run_turns(&f, 5);
            weir_stream_stats stats = stats_of(w.stream);
            assert_true(stats.staged_bytes <= MOST_STAGED);
            assert_int_equal(stats.bytes_in, p.got + stats.staged_bytes);
            if (!is_limited)
                assert_int_equal(stats.staged_bytes, 0);
            assert_int_equal(p.got, p.granted);
        }
        close_fixture(&f);
    }
}

/* A slice that is cut in two, and its second half before what came later. */
static void grants_in_the_callback_go_on_from_the_next_byte(void **state) {
    (void)state;
    static const uint64_t pieces[] = { 1, 1000, 70000 };
    EACH_WAY(is_limited)
    for (int i = 0; i < 3; i++) {
        test_fixture f;
        static witness w;
        purse p = { .seed = 6,
                    .again = pieces[i],
                    .left = 3000 * pieces[i] < 3000000 ? 3000 * pieces[i] : 3000000 };
        uint64_t sent = 0, total = p.left + pieces[i];
        open_fixture(&f, is_limited);
        int peer = metered_pair(&f, &w, true);
        w.hook = spend;
        w.userdata = &p;
        p.granted = pieces[i];
        test_ok(weir_stream_grant(w.stream, pieces[i]));
        run_until(&f, (flood(peer, p.seed, &sent), p.got == total));
        run_turns(&f, 5);
        assert_int_equal(p.got, total);
        close_fixture(&f);
    }
}

static void one_slice_is_handed_out_in_parts(void **state) {
    (void)state;
    EACH_WAY(is_limited) {
        test_fixture f;
        static witness w;
        open_fixture(&f, is_limited);
        int peer = metered_pair(&f, &w, false);
        peer_send(peer, "abcdefgh", 8);
        run_turns(&f, 5);
        assert_int_equal(w.size, 0);
        static const size_t parts[] = { 3, 1, 4 };
        for (size_t i = 0, all = 0; i < 3; i++) {
            test_ok(weir_stream_grant(w.stream, parts[i]));
            assert_int_equal(w.size, all); /* never inside */
            all += parts[i];
            run_until(&f, w.size == all);
            run_turns(&f, 3);
            assert_int_equal(w.size, all);
        }
        assert_memory_equal(w.bytes, "abcdefgh", 8);
        close_fixture(&f);
    }
}

/* ---- when it is granted --------------------------------------------------------------------------------- */

static void a_grant_before_the_start_counts(void **state) {
    (void)state;
    EACH_WAY(is_limited) {
        test_fixture f;
        static witness w;
        int fds[2];
        open_fixture(&f, is_limited);
        memset(&w, 0, sizeof w);
        test_pair(true, fds);
        f.fds++;
        test_ok(weir_stream_adopt(f.loop, fds[0], &metered, &w.stream));
        test_ok(weir_stream_grant(w.stream, 2));
        test_ok(weir_stream_grant(w.stream, 3));
        peer_send(fds[1], "abcdefgh", 8);
        run_turns(&f, 3);
        test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
        run_until(&f, w.size == 5);
        run_turns(&f, 5);
        assert_int_equal(w.size, 5);
        test_close(&f);
        close(fds[1]);
    }
}

static void grants_saturate(void **state) {
    (void)state;
    EACH_WAY(is_limited) {
        test_fixture f;
        static witness w;
        purse p = { .seed = 7, .granted = UINT64_MAX };
        uint64_t sent = 0;
        open_fixture(&f, is_limited);
        int peer = metered_pair(&f, &w, true);
        w.hook = spend;
        w.userdata = &p;
        test_ok(weir_stream_grant(w.stream, 0));
        run_turns(&f, 3);
        test_ok(weir_stream_grant(w.stream, 1));
        test_ok(weir_stream_grant(w.stream, UINT64_MAX));
        test_ok(weir_stream_grant(w.stream, UINT64_MAX - 1));
        test_ok(weir_stream_grant(w.stream, UINT64_MAX));
        run_until(&f, (flood(peer, p.seed, &sent), p.got > 3000000));
        close_fixture(&f);
    }
}

static void a_grant_while_paused_waits_for_the_resume(void **state) {
    (void)state;
    EACH_WAY(is_limited) {
        test_fixture f;
        static witness w;
        open_fixture(&f, is_limited);
        int peer = metered_pair(&f, &w, true);
        test_ok(weir_stream_pause(w.stream));
        test_ok(weir_stream_grant(w.stream, 4));
        peer_send(peer, "abcdefgh", 8);
        run_turns(&f, 10);
        assert_int_equal(w.size, 0);
        test_ok(weir_stream_resume(w.stream));
        run_until(&f, w.size == 4);
        test_ok(weir_stream_pause(w.stream)); /* and again with a receive under way */
        test_ok(weir_stream_resume(w.stream));
        test_ok(weir_stream_grant(w.stream, 100));
        run_until(&f, w.size == 8);
        test_ok(weir_stream_pause(w.stream));
        peer_send(peer, "ij", 2);
        run_turns(&f, 10);
        assert_int_equal(w.size, 8);
        test_ok(weir_stream_resume(w.stream));
        run_until(&f, w.size == 10);
        assert_memory_equal(w.bytes, "abcdefghij", 10);
        close_fixture(&f);
    }
}

static void credit_is_for_metered_streams(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    open_fixture(&f, true);
    int peer = witness_pair(&f, &w, false, NULL);
    f.fds++;
    assert_int_equal(weir_stream_grant(w.stream, 1), -EINVAL);
    peer_send(peer, "all", 3);
    run_until(&f, w.size == 3);
    test_close(&f);
    close(peer);
}

/* ---- ends ----------------------------------------------------------------------------------------------- */

static void the_end_is_told_only_with_credit_left(void **state) {
    (void)state;
    EACH_WAY(is_limited)
    for (int tcp = 0; tcp < 2; tcp++) {
        test_fixture f;
        static witness w;
        open_fixture(&f, is_limited);
        int peer = metered_pair(&f, &w, tcp);
        peer_send(peer, "abcde", 5);
        shutdown(peer, SHUT_WR);
        run_turns(&f, 10);
        assert_int_equal(w.ends + w.slices, 0);
        test_ok(weir_stream_grant(w.stream, 5));
        run_until(&f, w.size == 5);
        run_turns(&f, 10);
        assert_int_equal(w.ends, 0);
        test_ok(weir_stream_grant(w.stream, 1));
        run_until(&f, w.ends == 1);
        assert_string_equal(w.order, "de");
        close_fixture(&f);
    }
}

static void a_reset_is_noticed_without_credit(void **state) {
    (void)state;
    EACH_WAY(is_limited)
    for (int has_spent = 0; has_spent < 2; has_spent++) {
        test_fixture f;
        static witness w;
        open_fixture(&f, is_limited);
        int peer = witness_pair(&f, &w, true, &metered);
        peer_send(peer, "abcde", 5);
        if (has_spent) {
            test_ok(weir_stream_grant(w.stream, 3));
            run_until(&f, w.size == 3);
        }
        run_turns(&f, 5);
        peer_reset(peer);
        run_until(&f, w.closes == 1);
        assert_int_equal(w.reason, WEIR_CLOSE_ERROR);
        assert_int_equal(w.error, -ECONNRESET);
        assert_int_equal(w.size, has_spent ? 3 : 0);
        close_fixture(&f);
    }
}

/* Closing reads on, and throws away, what nobody granted. */
static void a_close_does_not_wait_for_credit(void **state) {
    (void)state;
    EACH_WAY(is_limited)
    for (int credit = 0; credit < 2; credit++) {
        test_fixture f;
        static witness w;
        static uint8_t many[300000];
        open_fixture(&f, is_limited);
        int peer = metered_pair(&f, &w, true);
        if (credit > 0) {
            test_ok(weir_stream_grant(w.stream, 1));
            run_turns(&f, 3);
        }
        test_ok(weir_stream_close(w.stream));
        uint64_t sent = 0;
        run_until(&f, (flood(peer, 1, &sent), sent > 3000000));
        shutdown(peer, SHUT_WR);
        run_until(&f, w.closes == 1);
        assert_int_equal(w.reason, WEIR_CLOSE_LOCAL);
        assert_int_equal(w.slices, 0);
        assert_int_equal(peer_poll(peer, many, sizeof many), 0);
        close_fixture(&f);
    }
}

/* ---- without memory ------------------------------------------------------------------------------------- */

static weir_slice kept[100];
static unsigned kept_count;
static int level;

static void keep(witness *w, char event, const weir_slice *slice) {
    (void)w;
    if (event == 'd')
        weir_slice_ref(slice, &kept[kept_count++]);
}

static void on_pressure(weir_loop *loop, weir_pool *pool, int now, void *userdata) {
    (void)loop, (void)pool, (void)userdata;
    level = now;
}

/* Without limits it is blocks that it waits for. Buffers lay there, which are no help, and so it was not said that nothing
 * went on any more. */
static void a_stream_that_waits_for_a_block_is_stuck_whatever_buffers_there_are(void **state) {
    (void)state;
    const weir__tuning tuning = { .no_receive_limits = true };
    const weir_pool_options pool = { .size = sizeof pool,
                                     .budget_bytes = 64 * 4096,
                                     .reserve_bytes = 8 * 4096,
                                     .buffer_bytes = 4096,
                                     .window_bytes = 4096 };
    static uint8_t many[400000];
    test_fixture f;
    static witness w;
    level = kept_count = 0;
    test_open(&f, &tuning, &pool);
    if (test_is_epoll(&f)) { /* receives into buffers, metered or not */
        test_close(&f);
        skip();
    }
    test_ok(weir_loop_set_pressure(f.loop, on_pressure, NULL));
    int peer = witness_pair(&f, &w, true, &metered);
    f.fds++;
    w.hook = keep;
    test_ok(weir_stream_grant(w.stream, sizeof many));
    peer_send(peer, many, sizeof many);
    run_until(&f, level == WEIR_PRESSURE_STUCK);
    assert_true(test_pool_stats(&f).buffers_posted > 0);
    assert_true(w.size < sizeof many);
    w.hook = NULL;
    while (kept_count > 0)
        weir_slice_unref(&kept[--kept_count]);
    run_until(&f, w.size == sizeof many);
    run_until(&f, level == WEIR_PRESSURE_NONE);
    test_close(&f);
    close(peer);
}

/* All of a small budget is posted, with an unmetered stream armed on it, and only the metered one's peer has something to
 * say at first: that came never, without limits. Both get on, on the kernel's rings as well. */
static void a_metered_stream_gets_on_where_all_of_the_budget_was_posted(void **state) {
    (void)state;
    static uint8_t many[100000];
    test_fill(3, 0, many, sizeof many);
    for (unsigned buffers = 1; buffers <= 4; buffers++) {
        const weir__tuning tuning = { .no_receive_limits = true };
        const weir_pool_options pool = { .size = sizeof pool,
                                         .budget_bytes = (uint64_t)buffers * 4096,
                                         .buffer_bytes = 4096,
                                         .window_bytes = buffers * 4096 };
        test_fixture f;
        static witness plain, w;
        purse p = { .granted = 1000, .again = 1000, .left = sizeof many - 1000, .seed = 3 };
        test_open(&f, &tuning, &pool);
        int other = witness_pair(&f, &plain, true, NULL), peer = witness_pair(&f, &w, true, &metered);
        f.fds += 2;
        peer_send(other, many, 100);
        run_until(&f, plain.size == 100);
        w.hook = spend;
        w.userdata = &p;
        test_ok(weir_stream_grant(w.stream, p.granted));
        peer_send(peer, many, sizeof many);
        run_until(&f, p.got == sizeof many);
        peer_send(other, many, sizeof many);
        run_until(&f, plain.size == 100 + sizeof many);
        test_close(&f);
        close(other);
        close(peer);
    }
}

/* ---- with a pipe ---------------------------------------------------------------------------------------- */

static void a_pipe_passes_on_what_was_granted(void **state) {
    (void)state;
    EACH_WAY(is_limited) {
        test_fixture f;
        static witness a, b;
        static uint8_t got[300000];
        uint64_t sent = 0, have = 0, granted = 0;
        open_fixture(&f, is_limited);
        int pa = metered_pair(&f, &a, true), pb = metered_pair(&f, &b, true), n = 0;
        test_ok(weir_stream_pipe(a.stream, b.stream)); /* into one that has nothing granted itself */
        for (int i = 0; i < 5; i++) {
            flood(pa, 9, &sent);
            run_turns(&f, 5);
            assert_int_equal(stats_of(a.stream).bytes_piped, granted);
            test_ok(weir_stream_grant(a.stream, 50001));
            granted += 50001;
            while (have < granted) {
                run_until(&f, (n = peer_poll(pb, got, sizeof got)) > 0);
                assert_int_equal(test_differs(9, have, got, (size_t)n), -1);
                have += (uint64_t)n;
            }
        }
        assert_int_equal(have, granted);
        assert_int_equal(stats_of(a.stream).bytes_piped, granted);
        assert_true(stats_of(a.stream).staged_bytes <= MOST_STAGED);
        assert_int_equal(a.slices + b.slices, 0);
        assert_int_equal(test_loop_stats(&f).bytes_copied, 0);
        close_fixture(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_granted_comes_and_nothing_else),
        cmocka_unit_test(grants_in_the_callback_go_on_from_the_next_byte),
        cmocka_unit_test(one_slice_is_handed_out_in_parts),
        cmocka_unit_test(a_grant_before_the_start_counts),
        cmocka_unit_test(grants_saturate),
        cmocka_unit_test(a_grant_while_paused_waits_for_the_resume),
        cmocka_unit_test(credit_is_for_metered_streams),
        cmocka_unit_test(the_end_is_told_only_with_credit_left),
        cmocka_unit_test(a_reset_is_noticed_without_credit),
        cmocka_unit_test(a_close_does_not_wait_for_credit),
        cmocka_unit_test(a_stream_that_waits_for_a_block_is_stuck_whatever_buffers_there_are),
        cmocka_unit_test(a_metered_stream_gets_on_where_all_of_the_budget_was_posted),
        cmocka_unit_test(a_pipe_passes_on_what_was_granted),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
