/* SPDX-License-Identifier: MIT */
#include <stdio.h>

#include "api/witness.h"

/* Bytes through a pipe: each of them, in order, uncopied, and no faster than the other side takes them. */

enum { BUFFER = 64 << 10, HIGH = 256 << 10, LOW = 64 << 10 };

/* Two streams, and who is at the far end of each. */
typedef struct joint {
    test_fixture *f;
    witness a, b;
    int pa, pb;
} joint;

static void joint_open(joint *j, test_fixture *f, bool tcp, const weir_stream_options *options) {
    j->f = f;
    j->pa = witness_pair(f, &j->a, tcp, options);
    j->pb = witness_pair(f, &j->b, tcp, options);
}

static void joint_close(joint *j) {
    close(j->pa);
    close(j->pb);
}

static weir_stream_stats stats_of(const weir_stream *stream) {
    weir_stream_stats stats = { .size = sizeof stats };
    test_ok(weir_stream_get_stats(stream, &stats));
    return stats;
}

/* A way of known bytes from one peer to another. */
typedef struct way {
    int from, to;
    uint64_t seed, total, sent, got;
} way;

/* Send and receive what is possible now. Return: all is there. */
static bool way_moves(way *w) {
    static uint8_t bytes[100000];
    size_t size = sizeof bytes < w->total - w->sent ? sizeof bytes : (size_t)(w->total - w->sent);
    if (size > 0) {
        test_fill(w->seed, w->sent, bytes, size);
        ssize_t n = send(w->from, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        w->sent += n > 0 ? (size_t)n : 0;
    }
    int n = w->got < w->total ? peer_poll(w->to, bytes, sizeof bytes) : 0;
    if (n > 0) {
        assert_int_equal(test_differs(w->seed, w->got, bytes, (size_t)n), -1);
        w->got += (uint64_t)n;
    }
    return w->got == w->total;
}

/* ---- each byte ----------------------------------------------------------------------------------------- */

static void bytes_go_one_way_in_order_and_uncopied(void **state) {
    for (int tcp = 0; tcp < 2; tcp++) {
        static joint j;
        joint_open(&j, *state, tcp, NULL);
        test_ok(weir_stream_pipe(j.a.stream, j.b.stream));
        way w = { .from = j.pa, .to = j.pb, .seed = 7, .total = 5000001 };
        run_until(j.f, way_moves(&w));
        weir_stream_stats a = stats_of(j.a.stream), b = stats_of(j.b.stream);
        assert_int_equal(a.bytes_in, w.total);
        assert_int_equal(a.bytes_piped, w.total);
        assert_int_equal(b.bytes_piped, 0);
        assert_int_equal(b.bytes_out, w.total);
        assert_int_equal(b.bytes_copied, 0);
        assert_int_equal(j.a.slices, 0); /* its on_data rests */
        assert_int_equal(j.b.slices, 0);
        peer_send(j.pb, "back", 4); /* which nobody asked for to be passed on */
        run_until(j.f, j.b.size == 4);
        assert_int_equal(stats_of(j.b.stream).bytes_piped, 0);
        assert_int_equal(test_loop_stats(j.f).bytes_copied, 0);
        joint_close(&j);
        run_until(j.f, j.a.ends + j.b.ends == 2);
        test_ok(weir_stream_abort(j.a.stream));
        test_ok(weir_stream_abort(j.b.stream));
        run_until(j.f, j.a.closes + j.b.closes == 2);
    }
}

static void bytes_go_both_ways_at_once(void **state) {
    for (int tcp = 0; tcp < 2; tcp++) {
        static joint j;
        joint_open(&j, *state, tcp, NULL);
        test_ok(weir_stream_pipe_both(j.a.stream, j.b.stream));
        way there = { .from = j.pa, .to = j.pb, .seed = 1, .total = 3000000 };
        way back = { .from = j.pb, .to = j.pa, .seed = 2, .total = 3000000 };
        run_until(j.f, way_moves(&there) + way_moves(&back) == 2);
        assert_int_equal(stats_of(j.a.stream).bytes_piped, there.total);
        assert_int_equal(stats_of(j.b.stream).bytes_piped, back.total);
        assert_int_equal(test_loop_stats(j.f).bytes_copied, 0);
        joint_close(&j);
        run_until(j.f, j.a.closes + j.b.closes == 2);
        assert_int_equal(j.a.slices + j.b.slices, 0);
    }
}

static void a_stream_piped_to_itself_is_an_echo(void **state) {
    test_fixture *f = *state;
    for (int tcp = 0; tcp < 2; tcp++) {
        static witness a;
        int peer = witness_pair(f, &a, tcp, NULL);
        test_ok(weir_stream_pipe(a.stream, a.stream));
        way w = { .from = peer, .to = peer, .seed = 3, .total = 4000000 };
        run_until(f, way_moves(&w));
        assert_int_equal(stats_of(a.stream).bytes_piped, w.total);
        assert_int_equal(test_loop_stats(f).bytes_copied, 0);
        assert_int_equal(a.slices, 0);
        shutdown(peer, SHUT_WR); /* the end is an echo, too */
        run_until(f, a.closes == 1);
        assert_int_equal(a.reason, WEIR_CLOSE_PEER);
        peer_expect_end(peer);
        close(peer);
    }
}

/* It had its place in the queue, whoever put it there. */
static void other_writes_keep_their_place(void **state) {
    static joint j;
    char got[16] = "";
    joint_open(&j, *state, false, NULL);
    test_ok(weir_stream_pipe(j.a.stream, j.b.stream));
    test_ok(weir_stream_cork(j.b.stream)); /* all of it stands in one queue */
    test_ok(weir_stream_write(j.b.stream, "1", 1));
    peer_send(j.pa, "two", 3);
    run_until(j.f, weir_stream_get_queued(j.b.stream) == 4);
    test_ok(weir_stream_write(j.b.stream, "3", 1));
    peer_send(j.pa, "four", 4);
    run_until(j.f, weir_stream_get_queued(j.b.stream) == 9);
    test_ok(weir_stream_write(j.b.stream, "5", 1));
    test_ok(weir_stream_uncork(j.b.stream));
    run_until(j.f, weir_stream_get_queued(j.b.stream) == 0);
    peer_receive(j.pb, got, 10);
    assert_memory_equal(got, "1two3four5", 10);
    assert_int_equal(stats_of(j.a.stream).bytes_piped, 7);
    joint_close(&j);
}

/* ---- held back ------------------------------------------------------------------------------------------ */

static const weir_stream_options marked = {
    .size = sizeof marked, .queue_limit_bytes = HIGH, .queue_high_bytes = HIGH, .queue_low_bytes = LOW
};

/* Send until nothing moves any more. */
static void fill(joint *j, way *w) {
    uint64_t sent = 1;
    for (int still = 0; still < 20; still = sent == w->sent ? still + 1 : 0) {
        sent = w->sent;
        static uint8_t bytes[100000];
        test_fill(w->seed, w->sent, bytes, sizeof bytes);
        ssize_t n = send(w->from, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL);
        w->sent += n > 0 ? (size_t)n : 0;
        assert_true(w->sent < 64 << 20);
        assert_true(weir_loop_run_once(j->f->loop, 1000000) >= 0);
    }
}

/*
 * What a pipe held back was the queue; the stream that it came from went on to receive all the same, since nothing told
 * it that its pipe was full, and staged the budget's worth.
 */
static void a_reader_that_rests_holds_its_writer_back(void **state) {
    for (int tcp = 0; tcp < 2; tcp++) {
        static joint j;
        joint_open(&j, *state, tcp, &marked);
        test_ok(weir_stream_pipe(j.a.stream, j.b.stream));
        way w = { .from = j.pa, .to = j.pb, .seed = 4, .total = UINT64_MAX };
        fill(&j, &w);
        weir_stream_stats a = stats_of(j.a.stream), b = stats_of(j.b.stream);
        assert_true(b.queued_bytes > LOW);
        assert_true(b.queue_peak_bytes > HIGH);
        assert_true(b.queue_peak_bytes <= HIGH + BUFFER);
        assert_true(a.staged_bytes <= 1 << 20); /* what was posted when the queue was full */
        assert_int_equal(a.bytes_piped + a.staged_bytes, a.bytes_in);
        run_turns(j.f, 20);
        assert_int_equal(stats_of(j.a.stream).bytes_in, a.bytes_in); /* nothing more */

        uint64_t end = w.total = w.sent; /* and then it is all there */
        while (w.got < end) {
            static uint8_t bytes[10000];
            weir_stream_stats a0 = stats_of(j.a.stream), b0 = stats_of(j.b.stream);
            int n = peer_poll(w.to, bytes, sizeof bytes);
            if (n > 0) {
                assert_int_equal(test_differs(w.seed, w.got, bytes, (size_t)n), -1);
                w.got += (uint64_t)n;
            }
            assert_true(weir_loop_run_once(j.f->loop, n > 0 ? 0 : 1000000) >= 0);
            weir_stream_stats a1 = stats_of(j.a.stream), b1 = stats_of(j.b.stream);
            assert_true(b1.queue_peak_bytes <= HIGH + BUFFER);
            if (b0.queued_bytes > HIGH && a1.bytes_piped > a0.bytes_piped) /* it goes on at the low mark */
                assert_true(b0.queued_bytes - (b1.bytes_out - b0.bytes_out) <= LOW);
        }
        assert_int_equal(stats_of(j.a.stream).bytes_piped, end);
        assert_int_equal(test_loop_stats(j.f).bytes_copied, 0);
        joint_close(&j);
        test_ok(weir_stream_abort(j.a.stream));
        run_until(j.f, j.a.closes + j.b.closes == 2);
    }
}

/* A queue that an application has filled is as full: nothing is taken on top of it. */
static void a_queue_that_others_filled_holds_the_pipe_back(void **state) {
    for (int is_before = 0; is_before < 2; is_before++) {
        static joint j;
        static uint8_t many[HIGH + 1], got[HIGH + 1 + 4];
        joint_open(&j, *state, false, NULL);
        if (!is_before)
            test_ok(weir_stream_pipe(j.a.stream, j.b.stream));
        set_buffer_sizes(weir_stream_get_fd(j.b.stream), 4096);
        for (int i = 0; i < 8; i++)
            assert_true(weir_stream_write(j.b.stream, many, sizeof many) >= 0);
        if (is_before)
            test_ok(weir_stream_pipe(j.a.stream, j.b.stream));
        run_turns(j.f, 5);
        peer_send(j.pa, "late", 4);
        run_turns(j.f, 20);
        assert_int_equal(stats_of(j.a.stream).bytes_piped, 0);
        size_t have = 0;
        int n = 0;
        run_until(j.f,
                  (have += (n = peer_poll(j.pb, got, sizeof got)) > 0 ? (size_t)n : 0) == sizeof many * 8 + 4);
        assert_int_equal(stats_of(j.a.stream).bytes_piped, 4);
        assert_memory_equal(got + n - 4, "late", 4);
        joint_close(&j);
        test_ok(weir_stream_abort(j.a.stream));
        run_until(j.f, j.a.closes + j.b.closes == 2);
    }
}

/* The high mark ends a cork's holding, and then the low mark must be reached: a queue that was corked again in between
 * held the pipe for ever, and an application that waits for its drain. */
static void a_cork_does_not_keep_a_full_pipe_full(void **state) {
    static joint j;
    joint_open(&j, *state, false, &marked);
    test_ok(weir_stream_pipe(j.a.stream, j.b.stream));
    test_ok(weir_stream_cork(j.b.stream));
    way w = { .from = j.pa, .to = j.pb, .seed = 5, .total = 3000000 };
    run_until(j.f, (way_moves(&w), stats_of(j.a.stream).bytes_piped == w.total));
    assert_true(weir_stream_get_queued(j.b.stream) > 0); /* the last of it is held still */
    test_ok(weir_stream_uncork(j.b.stream));
    run_until(j.f, way_moves(&w));
    joint_close(&j);
}

static void a_paused_stream_passes_nothing_on(void **state) {
    static joint j;
    char got[8];
    joint_open(&j, *state, false, NULL);
    test_ok(weir_stream_pipe(j.a.stream, j.b.stream));
    test_ok(weir_stream_pause(j.a.stream));
    peer_send(j.pa, "wait", 4);
    shutdown(j.pa, SHUT_WR);
    run_turns(j.f, 20);
    assert_int_equal(stats_of(j.a.stream).bytes_piped, 0);
    assert_int_equal(peer_poll(j.pb, got, sizeof got), -EAGAIN);
    test_ok(weir_stream_resume(j.a.stream));
    run_until(j.f, j.a.ends == 1 && stats_of(j.b.stream).bytes_out == 4);
    run_turns(j.f, 3);
    peer_receive(j.pb, got, 4);
    peer_expect_end(j.pb);
    joint_close(&j);
}

/* ---- made and unmade ------------------------------------------------------------------------------------ */

static void dial_late(joint *j, const weir_listener *listener) {
    char address[WEIR_ADDRESS_SIZE];
    assert_true(weir_listener_get_address(listener, address, sizeof address) > 0);
    memset(&j->b, 0, sizeof j->b);
    test_ok(weir_stream_dial(j->f->loop, address, NULL, &j->b.stream));
}

/* The first one's bytes wait, and nobody told it when the other end was open: only a word from there did. */
static void bytes_flow_as_soon_as_the_other_end_is_open(void **state) {
    test_fixture *f = *state;
    char abstract[64];
    const char *const addresses[] = { "127.0.0.1:0", abstract };
    snprintf(abstract, sizeof abstract, "unix:@weir-test-pipe-%d", (int)getpid());
    for (int i = 0; i < 2; i++)
        for (int is_pair = 0; is_pair < 2; is_pair++) {
            static joint j;
            static witness_gate gate;
            char got[8];
            j.f = f;
            j.pa = witness_pair(f, &j.a, true, NULL);
            witness_listen(f, &gate, addresses[i], NULL);
            dial_late(&j, gate.listener);
            test_ok(is_pair ? weir_stream_pipe_both(j.a.stream, j.b.stream)
                            : weir_stream_pipe(j.a.stream, j.b.stream));
            peer_send(j.pa, "early", 5);
            run_turns(f, 10); /* all of the first one is settled */
            test_ok(weir_stream_start(j.b.stream, &witness_callbacks, &j.b));
            run_until(f, j.b.opens == 1 && gate.count == 1);
            run_until(f, stats_of(j.a.stream).bytes_piped == 5);
            static witness far;
            memset(&far, 0, sizeof far);
            far.stream = gate.streams[0];
            test_ok(weir_stream_start(far.stream, &witness_callbacks, &far));
            run_until(f, far.size == 5);
            memcpy(got, far.bytes, 5);
            assert_memory_equal(got, "early", 5);
            test_ok(weir_stream_abort(far.stream));
            test_ok(weir_stream_abort(j.a.stream));
            test_ok(weir_listener_close(gate.listener));
            run_until(f, far.closes + j.a.closes + j.b.closes + gate.closes == 4);
            close(j.pa);
        }
}

static void bytes_flow_as_soon_as_an_adopted_other_end_is_started(void **state) {
    test_fixture *f = *state;
    static witness a, b;
    char got[8];
    int pa = witness_pair(f, &a, false, NULL), fds[2];
    memset(&b, 0, sizeof b);
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &b.stream));
    test_ok(weir_stream_pipe(a.stream, b.stream));
    peer_send(pa, "early", 5);
    run_turns(f, 10);
    assert_int_equal(peer_poll(fds[1], got, sizeof got), -EAGAIN);
    test_ok(weir_stream_start(b.stream, &witness_callbacks, &b));
    run_until(f, stats_of(b.stream).bytes_out == 5);
    peer_receive(fds[1], got, 5);
    assert_memory_equal(got, "early", 5);
    close(pa);
    close(fds[1]);
}

static void on_data_takes_over_at_the_next_byte(void **state) {
    static joint j;
    for (int is_full = 0; is_full < 2; is_full++) {
        joint_open(&j, *state, false, &marked);
        test_ok(weir_stream_pipe(j.a.stream, j.b.stream));
        way w = { .from = j.pa, .to = j.pb, .seed = 6, .total = 10000 };
        if (is_full)
            fill(&j, &w);
        else
            run_until(j.f, way_moves(&w));
        uint64_t piped = stats_of(j.a.stream).bytes_piped;
        assert_int_equal(weir_stream_get_state(j.a.stream), WEIR_STREAM_OPEN);
        test_ok(weir_stream_unpipe(j.a.stream));
        assert_int_equal(weir_stream_unpipe(j.a.stream), -EINVAL);
        w.total = w.sent;
        uint8_t next[100];
        test_fill(w.seed, w.sent, next, sizeof next);
        run_until(j.f, is_full == 0 || w.sent == piped + j.a.size);
        peer_send(j.pa, next, sizeof next);
        run_until(j.f, j.a.size == w.sent + sizeof next - piped);
        size_t seen = j.a.size < sizeof j.a.bytes ? j.a.size : sizeof j.a.bytes;
        assert_int_equal(test_differs(w.seed, piped, j.a.bytes, seen), -1);
        assert_int_equal(stats_of(j.a.stream).bytes_piped, piped);
        w.total = piped;
        run_until(j.f, way_moves(&w)); /* what was passed on stays so */
        joint_close(&j);
        test_ok(weir_stream_abort(j.a.stream));
        test_ok(weir_stream_abort(j.b.stream));
        run_until(j.f, j.a.closes + j.b.closes == 2);
    }
}

static joint *of_the_hook;
static char hook_event;

static void pipe_in_the_hook(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    joint *j = of_the_hook;
    if (event != hook_event || w->userdata != NULL)
        return;
    w->userdata = j;
    test_ok(weir_stream_pipe(j->a.stream, j->b.stream));
}

/* What this callback was given is the application's; what follows goes on by the pipe. */
static void a_pipe_made_in_on_data_begins_with_the_next_slice(void **state) {
    static joint j;
    joint_open(&j, *state, false, NULL);
    of_the_hook = &j;
    hook_event = 'd';
    j.a.hook = pipe_in_the_hook;
    peer_send(j.pa, "head", 4);
    run_until(j.f, j.a.size > 0);
    way w = { .from = j.pa, .to = j.pb, .seed = 8, .total = 300000 };
    run_until(j.f, way_moves(&w));
    assert_int_equal(j.a.size, 4);
    joint_close(&j);
}

static void a_pipe_unmade_and_made_in_on_drain_loses_nothing(void **state) {
    static joint j;
    static uint8_t many[HIGH + 1], got[HIGH + 1];
    joint_open(&j, *state, false,
               &(weir_stream_options){
                   .size = sizeof(weir_stream_options), .queue_high_bytes = HIGH, .queue_low_bytes = LOW });
    of_the_hook = &j;
    hook_event = 'r';
    j.b.hook = pipe_in_the_hook;
    assert_int_equal(weir_stream_write(j.b.stream, many, sizeof many), WEIR_WRITE_FULL);
    size_t have = 0;
    int n = 0;
    run_until(j.f, (have += (n = peer_poll(j.pb, got, sizeof got - have)) > 0 ? (size_t)n : 0) == sizeof many);
    run_until(j.f, j.b.drains == 1);
    way w = { .from = j.pa, .to = j.pb, .seed = 9, .total = 300000 };
    run_until(j.f, way_moves(&w));
    joint_close(&j);
}

static const weir_stream_callbacks silent = { .size = sizeof silent };

static void streams_that_tell_nothing_can_be_piped(void **state) {
    test_fixture *f = *state;
    int a[2], b[2];
    weir_stream *sa, *sb;
    test_pair(false, a);
    test_pair(false, b);
    test_ok(weir_stream_adopt(f->loop, a[0], &marked, &sa));
    test_ok(weir_stream_adopt(f->loop, b[0], &marked, &sb));
    test_ok(weir_stream_pipe_both(sa, sb));
    test_ok(weir_stream_start(sa, &silent, NULL));
    test_ok(weir_stream_start(sb, &silent, NULL));
    way there = { .from = a[1], .to = b[1], .seed = 1, .total = 2000000 };
    way back = { .from = b[1], .to = a[1], .seed = 2, .total = 1000 };
    run_until(f, way_moves(&there) + way_moves(&back) == 2);
    shutdown(a[1], SHUT_WR);
    run_until(f, peer_poll(b[1], &(char){ 0 }, 1) == 0);
    back.total += 1000; /* one end is not the end of the other direction */
    run_until(f, way_moves(&back));
    close(b[1]);
    close(a[1]);
    run_until(f, test_loop_stats(f).streams_open == 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(bytes_go_one_way_in_order_and_uncopied),
        loop_test(bytes_go_both_ways_at_once),
        loop_test(a_stream_piped_to_itself_is_an_echo),
        loop_test(other_writes_keep_their_place),
        loop_test(a_reader_that_rests_holds_its_writer_back),
        loop_test(a_queue_that_others_filled_holds_the_pipe_back),
        loop_test(a_cork_does_not_keep_a_full_pipe_full),
        loop_test(a_paused_stream_passes_nothing_on),
        loop_test(bytes_flow_as_soon_as_the_other_end_is_open),
        loop_test(bytes_flow_as_soon_as_an_adopted_other_end_is_started),
        loop_test(on_data_takes_over_at_the_next_byte),
        loop_test(a_pipe_made_in_on_data_begins_with_the_next_slice),
        loop_test(a_pipe_unmade_and_made_in_on_drain_loses_nothing),
        loop_test(streams_that_tell_nothing_can_be_piped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
