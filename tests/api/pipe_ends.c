/* SPDX-License-Identifier: MIT */
#include <stdio.h>
#include <sys/un.h>

#include "api/witness.h"

/* How a pipe ends: by the end of what goes through it, or with one of its two streams, whatever the other is doing. */

static const int64_t ms = 1000000;

/* ---- by the end of what goes through it ----------------------------------------------------------------- */

static void the_end_is_passed_on_after_the_last_byte_and_that_was_it(void **state) {
    test_fixture *f = *state;
    for (int closes_to = 0; closes_to < 2; closes_to++) {
        static witness a, b;
        char got[8];
        int pa = witness_pair(f, &a, true, NULL), pb = witness_pair(f, &b, true, NULL);
        test_ok(weir_stream_pipe(a.stream, b.stream));
        assert_int_equal(weir_stream_shutdown(b.stream), -EBUSY); /* the pipe does that */
        peer_send(pa, "last", 4);
        shutdown(pa, SHUT_WR);
        run_until(f, a.ends == 1);
        run_turns(f, 5);
        peer_receive(pb, got, 4);
        assert_memory_equal(got, "last", 4);
        peer_expect_end(pb);
        assert_int_equal(weir_stream_get_state(a.stream), WEIR_STREAM_OPEN);
        assert_int_equal(weir_stream_get_state(b.stream), WEIR_STREAM_OPEN);
        assert_int_equal(weir_stream_unpipe(a.stream), -EINVAL); /* it is over with the end */
        assert_int_equal(weir_stream_write(b.stream, "?", 1), -EPIPE);
        test_ok(weir_stream_shutdown(b.stream)); /* it was, and nothing is piped into it */
        assert_int_equal(weir_stream_write(a.stream, "!", 1),
                         WEIR_WRITE_OK); /* the other half is nobody's business */
        run_turns(f, 5);
        witness *first = closes_to ? &b : &a, *second = closes_to ? &a : &b;
        test_ok(weir_stream_abort(first->stream));
        run_until(f, first->closes == 1);
        run_turns(f, 10);
        assert_int_equal(second->closes, 0);
        assert_int_equal(weir_stream_get_state(second->stream), WEIR_STREAM_OPEN);
        test_ok(weir_stream_abort(second->stream));
        run_until(f, second->closes == 1);
        close(pa);
        close(pb);
    }
}

/* All of it came at once, the end as well, and the pipe is full: the end has its place behind what waits. */
static void the_end_waits_for_what_a_full_pipe_holds_back(void **state) {
    test_fixture *f = *state;
    const weir_stream_options narrow = { .size = sizeof narrow, .queue_high_bytes = 4096 };
    static witness a, b;
    static uint8_t many[150000], got[150000];
    int pa = witness_pair(f, &a, false, NULL), pb = witness_pair(f, &b, false, &narrow), n = 0;
    size_t have = 0;
    set_buffer_sizes(weir_stream_get_fd(b.stream), 4096);
    test_ok(weir_stream_pipe(a.stream, b.stream));
    test_fill(1, 0, many, sizeof many);
    peer_send(pa, many, sizeof many);
    shutdown(pa, SHUT_WR);
    run_turns(f, 10);
    assert_int_equal(a.ends, 0);
    for (;; have += (size_t)n) {
        run_until(f, (n = peer_poll(pb, got, sizeof got)) >= 0);
        if (n == 0)
            break;
        assert_int_equal(test_differs(1, have, got, (size_t)n), -1);
    }
    assert_int_equal(have, sizeof many);
    assert_int_equal(a.ends, 1);
    close(pa);
    close(pb);
}

static void without_on_end_only_the_stream_that_ended_closes(void **state) {
    test_fixture *f = *state;
    static witness a, b;
    int fds[2], pb = witness_pair(f, &b, false, NULL);
    memset(&a, 0, sizeof a);
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &a.stream));
    test_ok(weir_stream_start(a.stream, &witness_endless_callbacks, &a));
    test_ok(weir_stream_pipe(a.stream, b.stream));
    close(fds[1]);
    run_until(f, a.closes == 1);
    assert_int_equal(a.reason, WEIR_CLOSE_PEER);
    run_turns(f, 10);
    peer_expect_end(pb);
    assert_int_equal(weir_stream_get_state(b.stream), WEIR_STREAM_OPEN);
    close(pb);
}

static void a_pair_closes_when_both_directions_have_ended(void **state) {
    test_fixture *f = *state;
    for (int with_on_end = 0; with_on_end < 2; with_on_end++) {
        static witness w[2];
        int peers[2];
        memset(w, 0, sizeof w);
        for (int i = 0; i < 2; i++) {
            int fds[2];
            test_pair(true, fds);
            peers[i] = fds[1];
            test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &w[i].stream));
            test_ok(weir_stream_start(w[i].stream, with_on_end ? &witness_callbacks : &witness_endless_callbacks,
                                      &w[i]));
        }
        test_ok(weir_stream_pipe_both(w[0].stream, w[1].stream));
        shutdown(peers[0], SHUT_WR);
        run_until(f, peer_poll(peers[1], &(char){ 0 }, 1) == 0);
        run_turns(f, 10);
        assert_int_equal(w[0].closes + w[1].closes, 0);
        assert_int_equal(w[0].ends, with_on_end);
        char got[6];
        peer_send(peers[1], "answer", 6); /* the other direction is as it was */
        run_until(f, peer_poll(peers[0], got, 0) == 0 && w[0].stream != NULL &&
                         weir_stream_get_queued(w[0].stream) == 0);
        peer_receive(peers[0], got, 6);
        assert_memory_equal(got, "answer", 6);
        shutdown(peers[1], SHUT_WR);
        run_until(f, w[0].closes + w[1].closes == 2);
        for (int i = 0; i < 2; i++) {
            assert_int_equal(w[i].reason, WEIR_CLOSE_PEER);
            assert_int_equal(w[i].error, 0);
            peer_expect_end(peers[i]);
            close(peers[i]);
        }
    }
}

/* ---- with one of its streams ---------------------------------------------------------------------------- */

enum shape { FROM, TO, PAIR, SHAPES };
enum condition { UNSTARTED, CONNECTING, FULL, PAUSED, CONDITIONS };
enum cause { CLOSED, ABORTED, RESET, CAUSES };

/* A Unix address where nobody is let in any more. */
typedef struct crowd {
    int listener, waiting[8];
    unsigned count;
} crowd;

static char crowded[64];

static void crowd_open(crowd *c) {
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    snprintf(crowded, sizeof crowded, "unix:@weir-test-crowd-%d", (int)getpid());
    size_t length = strlen(crowded) - 5;
    memcpy(un.sun_path, crowded + 5, length);
    un.sun_path[0] = '\0';
    socklen_t size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length);
    c->listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(c->listener, (struct sockaddr *)&un, size), 0);
    assert_int_equal(listen(c->listener, 0), 0);
    for (c->count = 0; c->count < 8; c->count++) {
        int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
        if (connect(fd, (struct sockaddr *)&un, size) < 0) {
            close(fd);
            return;
        }
        c->waiting[c->count] = fd;
    }
    fail_msg("there is always room");
}

static void crowd_close(crowd *c) {
    while (c->count > 0)
        close(c->waiting[--c->count]);
    close(c->listener);
}

static const weir_stream_options small = { .size = sizeof small, .queue_high_bytes = 64 << 10 };

/* The other end, in its condition; *ret_peer is -1 if it has none. */
static void other_open(test_fixture *f, witness *w, enum condition condition, int *ret_peer) {
    memset(w, 0, sizeof *w);
    if (condition == CONNECTING) {
        *ret_peer = -1;
        test_ok(weir_stream_dial(f->loop, crowded, NULL, &w->stream));
        test_ok(weir_stream_start(w->stream, &witness_callbacks, w));
        return;
    }
    int fds[2];
    test_pair(true, fds);
    *ret_peer = fds[1];
    test_ok(weir_stream_adopt(f->loop, fds[0], &small, &w->stream));
    if (condition != UNSTARTED)
        test_ok(weir_stream_start(w->stream, &witness_callbacks, w));
    if (condition == PAUSED)
        test_ok(weir_stream_pause(w->stream));
}

static void join(enum shape shape, witness *x, witness *y) {
    if (shape == FROM)
        test_ok(weir_stream_pipe(x->stream, y->stream));
    else if (shape == TO)
        test_ok(weir_stream_pipe(y->stream, x->stream));
    else
        test_ok(weir_stream_pipe_both(x->stream, y->stream));
}

static void end_of(test_fixture *f, witness *x, int peer, enum cause cause) {
    if (cause == CLOSED) {
        test_ok(weir_stream_close(x->stream));
        shutdown(peer, SHUT_WR);
    } else if (cause == ABORTED) {
        test_ok(weir_stream_abort(x->stream));
    } else {
        peer_reset(peer);
    }
    run_until(f, x->closes == 1);
    if (cause == CLOSED)
        assert_true(x->reason == WEIR_CLOSE_LOCAL || x->reason == WEIR_CLOSE_PEER);
    else
        assert_int_equal(x->reason, cause == ABORTED ? WEIR_CLOSE_ABORT : WEIR_CLOSE_ERROR);
    assert_int_equal(x->error, cause == RESET ? -ECONNRESET : 0);
    if (cause != RESET)
        close(peer);
}

/* It was told by now what becomes of it. */
static void other_ends(test_fixture *f, witness *y, int peer, enum condition condition, enum cause cause,
                       uint64_t queued) {
    static uint8_t got[1 << 20];
    uint64_t have = 0;
    bool is_well = cause == CLOSED && condition != UNSTARTED;
    if (condition == UNSTARTED) { /* it is its owner's, who hears of it when he starts it */
        run_turns(f, 10);
        assert_int_equal(weir_stream_get_state(y->stream), WEIR_STREAM_UNSTARTED);
        test_ok(weir_stream_start(y->stream, &witness_callbacks, y));
    }
    if (is_well && peer >= 0) { /* it sends its queue, and ends, and waits for its peer's end */
        int n = 0;
        run_until(f, (n = peer_poll(peer, got, sizeof got)) == 0 || (have += n > 0 ? (uint64_t)n : 0, false));
        assert_true(have >= queued);
        assert_int_equal(y->closes, 0);
        shutdown(peer, SHUT_WR);
    }
    run_until(f, y->closes == 1);
    assert_int_equal(y->reason, is_well ? WEIR_CLOSE_LOCAL : WEIR_CLOSE_PIPE);
    assert_int_equal(y->error, cause == RESET ? -ECONNRESET : 0);
    assert_int_equal(y->ends + y->drains, 0);
    if (peer >= 0)
        close(peer);
}

static void one_case(test_fixture *f, enum shape shape, enum condition condition, enum cause cause) {
    static witness x, y;
    static uint8_t many[12 << 20];
    int px = witness_pair(f, &x, true, &small), py;
    uint64_t queued = 0;
    other_open(f, &y, condition, &py);
    if (condition == FULL) {
        assert_true(weir_stream_write(y.stream, many, sizeof many) >= 0);
        run_turns(f, 10);
        queued = weir_stream_get_queued(y.stream);
        assert_true(queued > small.queue_high_bytes);
    }
    join(shape, &x, &y);
    run_turns(f, 10);
    end_of(f, &x, px, cause);
    other_ends(f, &y, py, condition, cause, queued);
}

static void one_end_ends_the_other_whatever_it_does(void **state) {
    crowd c;
    crowd_open(&c);
    for (int condition = 0; condition < CONDITIONS; condition++)
        for (int shape = 0; shape < SHAPES; shape++)
            for (int cause = 0; cause < CAUSES; cause++)
                one_case(*state, (enum shape)shape, (enum condition)condition, (enum cause)cause);
    crowd_close(&c);
}

static void an_unstarted_end_that_is_given_up_ends_the_other(void **state) {
    test_fixture *f = *state;
    for (int aborts = 0; aborts < 2; aborts++) {
        static witness x, y;
        int px = witness_pair(f, &x, true, NULL), py;
        other_open(f, &y, UNSTARTED, &py);
        join(PAIR, &x, &y);
        int fd = -1;
        assert_int_equal(weir_stream_detach(y.stream, &fd), -EBUSY);
        run_turns(f, 3);
        test_ok(aborts ? weir_stream_abort(y.stream) : weir_stream_close(y.stream));
        shutdown(px, SHUT_WR);
        shutdown(py, SHUT_WR);
        run_until(f, x.closes == 1);
        if (aborts)
            assert_int_equal(x.reason, WEIR_CLOSE_PIPE);
        else
            assert_true(x.reason == WEIR_CLOSE_LOCAL || x.reason == WEIR_CLOSE_PEER);
        assert_int_equal(x.error, 0);
        assert_int_equal(y.closes, 0);
        close(px);
        close(py);
    }
}

static void a_connection_that_fails_ends_the_other_with_its_error(void **state) {
    test_fixture *f = *state;
    static witness x, y;
    char address[WEIR_ADDRESS_SIZE];
    int px = witness_pair(f, &x, true, NULL);
    memset(&y, 0, sizeof y);
    test_free_address(address, sizeof address);
    test_ok(weir_stream_dial(f->loop, address, NULL, &y.stream));
    test_ok(weir_stream_start(y.stream, &witness_callbacks, &y));
    join(PAIR, &x, &y);
    peer_send(px, "hello", 5);
    run_until(f, x.closes == 1);
    assert_int_equal(y.reason, WEIR_CLOSE_CONNECT);
    assert_int_equal(x.reason, WEIR_CLOSE_PIPE);
    assert_int_equal(x.error, -ECONNREFUSED);
    close(px);
}

static void timeouts_of_one_end_the_other(void **state) {
    test_fixture *f = *state;
    for (int writes = 0; writes < 2; writes++) {
        const weir_stream_options hurried = { .size = sizeof hurried,
                                              .queue_high_bytes = 64 << 10,
                                              .idle_timeout_ns = writes ? 0 : 30 * ms,
                                              .write_timeout_ns = writes ? 30 * ms : 0 };
        static witness x, y;
        static uint8_t many[12 << 20];
        int px = witness_pair(f, &x, true, &hurried), py = witness_pair(f, &y, true, NULL);
        join(PAIR, &x, &y);
        if (writes)
            assert_true(weir_stream_write(x.stream, many, sizeof many) >= 0);
        run_until(f, x.closes + y.closes == 2);
        assert_int_equal(x.reason, writes ? WEIR_CLOSE_WRITE : WEIR_CLOSE_IDLE);
        assert_int_equal(x.error, -ETIMEDOUT);
        assert_int_equal(y.reason, WEIR_CLOSE_PIPE);
        assert_int_equal(y.error, -ETIMEDOUT);
        close(px);
        close(py);
    }
}

/* A full pipe holds reading back, and that is not the peer's fault. */
static void the_idle_time_stands_still_while_the_pipe_is_full(void **state) {
    test_fixture *f = *state;
    const weir_stream_options hurried = { .size = sizeof hurried, .idle_timeout_ns = 200 * ms };
    static witness x, y;
    static uint8_t many[12 << 20]; /* more than the kernel takes */
    int px = witness_pair(f, &x, true, &hurried), py = witness_pair(f, &y, true, &small);
    join(FROM, &x, &y);
    assert_true(weir_stream_write(y.stream, many, sizeof many) >= 0);
    test_run_for_ms(f, 500);
    assert_int_equal(x.closes, 0);
    static uint8_t got[1 << 20];
    size_t have = 0;
    int n = 0;
    run_until(f, (have += (n = peer_poll(py, got, sizeof got)) > 0 ? (size_t)n : 0) == sizeof many);
    run_until(f, x.closes == 1); /* now it is */
    assert_int_equal(x.reason, WEIR_CLOSE_IDLE);
    close(px);
    close(py);
}

/* ---- refused -------------------------------------------------------------------------------------------- */

static void what_cannot_be_piped_is_refused_and_unchanged(void **state) {
    test_fixture *f = *state, other;
    static witness a, b, c, d;
    int fd = -1, fds[4] = { witness_pair(f, &a, false, NULL), witness_pair(f, &b, false, NULL),
                            witness_pair(f, &c, false, NULL), -1 };
    test_open(&other, NULL, NULL);
    fds[3] = witness_pair(&other, &d, false, NULL);
    assert_int_equal(weir_stream_pipe(a.stream, d.stream), -EXDEV);
    assert_int_equal(weir_stream_pipe_both(a.stream, d.stream), -EXDEV);
    assert_int_equal(weir_stream_unpipe(a.stream), -EINVAL);
    close(fds[3]);
    test_close(&other);

    test_ok(weir_stream_pipe(a.stream, b.stream));
    assert_int_equal(weir_stream_pipe(a.stream, c.stream), -EALREADY);
    assert_int_equal(weir_stream_pipe(c.stream, b.stream), -EALREADY);
    assert_int_equal(weir_stream_pipe_both(b.stream, a.stream), -EALREADY);
    assert_int_equal(weir_stream_unpipe(b.stream), -EINVAL);
    assert_int_equal(weir_stream_shutdown(b.stream), -EBUSY);
    test_ok(weir_stream_unpipe(a.stream));
    test_ok(weir_stream_shutdown(b.stream));
    assert_int_equal(weir_stream_pipe(a.stream, b.stream), -EPIPE); /* its half is ended */
    assert_int_equal(weir_stream_pipe_both(b.stream, a.stream), -EPIPE);
    assert_int_equal(weir_stream_unpipe(b.stream), -EINVAL); /* neither direction was made */
    assert_int_equal(weir_stream_detach(b.stream, &fd), -EALREADY);
    test_ok(weir_stream_pipe(b.stream, a.stream)); /* the other half is not */
    test_ok(weir_stream_unpipe(b.stream));

    shutdown(fds[2], SHUT_WR);
    run_until(f, c.ends == 1);
    assert_int_equal(weir_stream_pipe(c.stream, a.stream), -EPIPE);
    test_ok(weir_stream_pipe(a.stream, c.stream));
    test_ok(weir_stream_unpipe(a.stream));
    weir_stream *gone = weir_stream_ref(c.stream);
    test_ok(weir_stream_abort(c.stream));
    assert_int_equal(weir_stream_pipe(a.stream, gone), -EPIPE);
    run_until(f, c.closes == 1);
    assert_int_equal(weir_stream_pipe(a.stream, gone), -EPIPE);
    assert_int_equal(weir_stream_pipe(gone, a.stream), -EPIPE);
    assert_int_equal(weir_stream_unpipe(gone), -EINVAL);
    weir_stream_unref(gone);
    for (int i = 0; i < 3; i++)
        close(fds[i]);
}

/* ---- in callbacks, and at the loop's end ---------------------------------------------------------------- */

static witness *partner;

static void end_the_partner(witness *w, char event, const weir_slice *slice) {
    (void)w, (void)slice;
    if (event == 'c' && partner->stream != NULL)
        test_ok(weir_stream_abort(partner->stream));
}

/* Which has heard of it already: what it is told is the pipe's reason, once. */
static void an_on_close_may_abort_the_other_end(void **state) {
    test_fixture *f = *state;
    static witness x, y;
    int px = witness_pair(f, &x, true, NULL), py = witness_pair(f, &y, true, NULL);
    join(PAIR, &x, &y);
    partner = &y;
    x.hook = end_the_partner;
    run_turns(f, 3);
    peer_reset(px);
    run_until(f, x.closes + y.closes == 2);
    assert_int_equal(y.reason, WEIR_CLOSE_PIPE);
    assert_int_equal(y.error, -ECONNRESET);
    close(py);
}

static void a_loop_closes_over_full_pipes(void **state) {
    (void)state;
    enum { PAIRS = 4 };
    static witness x[PAIRS], y[PAIRS];
    static uint8_t many[256 << 10];
    int px[PAIRS], py[PAIRS];
    test_fixture f;
    test_open(&f, NULL, NULL);
    for (int i = 0; i < PAIRS; i++) {
        px[i] = witness_pair(&f, &x[i], i % 2, &small);
        py[i] = witness_pair(&f, &y[i], i % 2, &small);
        join(i == 3 ? FROM : PAIR, &x[i], &y[i]);
    }
    for (int full = 0, turn = 0; full < PAIRS; turn++) {
        assert_true(turn < 1000);
        full = 0;
        for (int i = 0; i < PAIRS; i++) {
            (void)send(px[i], many, sizeof many, MSG_DONTWAIT | MSG_NOSIGNAL);
            full += weir_stream_get_queued(y[i].stream) > 0;
        }
        run_turns(&f, 2);
    }
    int fds[2];
    weir_stream *half; /* and one that is not even started */
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f.loop, fds[0], NULL, &half));
    test_ok(weir_stream_pipe(half, x[3].stream));
    f.fds += 2 * PAIRS + 1; /* the peers' */
    test_close(&f);
    close(fds[1]);
    for (int i = 0; i < PAIRS; i++) {
        assert_int_equal(x[i].reason, WEIR_CLOSE_LOOP);
        assert_int_equal(y[i].reason, WEIR_CLOSE_LOOP);
        close(px[i]);
        close(py[i]);
    }
}

static uint64_t staged(const weir_stream *stream) {
    weir_stream_stats stats = { .size = sizeof stats };
    test_ok(weir_stream_get_stats(stream, &stats));
    return stats.staged_bytes;
}

/* A pipe's other end is there until its own peer has ended, or has said what it had to say, and takes nothing any more. What
 * came meanwhile was received, for nobody, instead of making its sender wait. */
static void nothing_is_received_for_an_end_that_takes_nothing_more(void **state) {
    test_fixture *f = *state;
    for (int breaks = 0; breaks < 2; breaks++) {
        static witness a, b;
        static uint8_t some[30000];
        int pa = witness_pair(f, &a, false, NULL), pb = witness_pair(f, &b, false, NULL);
        test_ok(weir_stream_pipe(a.stream, b.stream));
        run_turns(f, 5);
        if (breaks) {
            shutdown(pb, SHUT_RD);
            peer_send(pa, "lost", 4);
        } else {
            test_ok(weir_stream_close(b.stream));
        }
        run_turns(f, 10);
        peer_send(pa, some, sizeof some);
        run_turns(f, 10);
        assert_int_equal(b.closes, 0);
        assert_int_equal(staged(a.stream), 0);
        shutdown(pb, SHUT_WR);
        run_until(f, a.closes + b.closes == 2);
        close(pa);
        close(pb);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(the_end_is_passed_on_after_the_last_byte_and_that_was_it),
        loop_test(the_end_waits_for_what_a_full_pipe_holds_back),
        loop_test(without_on_end_only_the_stream_that_ended_closes),
        loop_test(a_pair_closes_when_both_directions_have_ended),
        loop_test(one_end_ends_the_other_whatever_it_does),
        loop_test(an_unstarted_end_that_is_given_up_ends_the_other),
        loop_test(a_connection_that_fails_ends_the_other_with_its_error),
        loop_test(timeouts_of_one_end_the_other),
        loop_test(the_idle_time_stands_still_while_the_pipe_is_full),
        loop_test(what_cannot_be_piped_is_refused_and_unchanged),
        loop_test(an_on_close_may_abort_the_other_end),
        loop_test(nothing_is_received_for_an_end_that_takes_nothing_more),
        cmocka_unit_test(a_loop_closes_over_full_pipes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
