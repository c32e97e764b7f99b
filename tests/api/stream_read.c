/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* Reading: start, pause and resume, the peer's end. */

enum { STREAMS = 3 };

/* ---- start ------------------------------------------------------------------------------------------- */

static void nothing_is_told_before_start(void **state) {
    test_fixture *f = *state;
    static witness w;
    int fds[2];
    memset(&w, 0, sizeof w);
    test_pair(true, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &w.stream));
    assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_UNSTARTED);
    assert_null(weir_stream_get_userdata(w.stream));
    peer_send(fds[1], "hello", 5);
    run_turns(f, 5);
    assert_int_equal(test_loop_stats(f).bytes_in, 0); /* nor is anything read */
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    assert_string_equal(w.order, ""); /* no callback before it returns */
    assert_ptr_equal(weir_stream_get_userdata(w.stream), &w);
    assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_OPEN);
    run_until(f, w.size == 5);
    assert_int_equal(w.opens, 0); /* an adopted one is open from the start */
    close(fds[1]);
}

static void a_second_start_is_refused_and_changes_nothing(void **state) {
    test_fixture *f = *state;
    static witness w, other;
    int peer = witness_pair(f, &w, false, NULL);
    memset(&other, 0, sizeof other);
    assert_int_equal(weir_stream_start(w.stream, &witness_deaf_callbacks, &other), -EALREADY);
    peer_send(peer, "x", 1);
    run_until(f, w.size == 1);
    assert_string_equal(other.order, "");
    close(peer);
}

static void a_started_stream_needs_no_callback_at_all(void **state) {
    test_fixture *f = *state;
    static const weir_stream_callbacks none = { .size = sizeof none };
    weir_stream *stream;
    char got[5];
    int fds[2];
    test_pair(true, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &stream));
    test_ok(weir_stream_start(stream, &none, NULL));
    assert_int_equal(weir_stream_write(stream, "hello", 5), WEIR_WRITE_OK);
    run_turns(f, 5);
    peer_receive(fds[1], got, 5);
    peer_reset(fds[1]);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(test_loop_stats(f).streams_open, 0);
}

/* ---- data -------------------------------------------------------------------------------------------- */

static void bytes_come_exact_and_in_order(void **state) {
    test_fixture *f = *state;
    static uint8_t data[60000];
    static witness w[STREAMS];
    int peers[STREAMS];
    uint64_t random = 5;
    for (int i = 0; i < STREAMS; i++)
        peers[i] = witness_pair(f, &w[i], i != 0, NULL);
    for (size_t sent = 0; sent < sizeof data;) {
        size_t piece = 1 + test_random(&random) % 4000;
        piece = piece < sizeof data - sent ? piece : sizeof data - sent;
        for (int i = 0; i < STREAMS; i++) {
            test_fill((uint64_t)i, sent, data, piece);
            peer_send(peers[i], data, piece);
        }
        sent += piece;
        run_turns(f, 1);
    }
    for (int i = 0; i < STREAMS; i++) {
        run_until(f, w[i].size == sizeof data);
        assert_int_equal(test_differs((uint64_t)i, 0, w[i].bytes, sizeof data), -1);
        weir_stream_stats stats = { .size = sizeof stats };
        test_ok(weir_stream_get_stats(w[i].stream, &stats));
        assert_int_equal(stats.bytes_in, sizeof data);
        assert_int_equal(stats.slices, w[i].slices);
        assert_int_equal(stats.bytes_out + stats.queued_bytes + stats.staged_bytes, 0);
        close(peers[i]);
    }
    assert_int_equal(test_loop_stats(f).bytes_copied, 0);
}

static void without_on_data_nothing_is_read_and_no_end_noticed(void **state) {
    test_fixture *f = *state;
    static witness w;
    int fds[2];
    memset(&w, 0, sizeof w);
    test_pair(true, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &w.stream));
    test_ok(weir_stream_start(w.stream, &witness_deaf_callbacks, &w));
    peer_send(fds[1], "hello", 5);
    shutdown(fds[1], SHUT_WR);
    run_turns(f, 10);
    assert_int_equal(test_loop_stats(f).bytes_in, 0);
    assert_string_equal(w.order, "");
    assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_OPEN);
    char got[2];
    assert_int_equal(weir_stream_write(w.stream, "hi", 2), WEIR_WRITE_OK); /* writing is as ever */
    run_turns(f, 3);
    peer_receive(fds[1], got, 2);
    close(fds[1]);
}

/* ---- the peer's end ---------------------------------------------------------------------------------- */

static void the_peers_end_is_told_once_and_writing_goes_on(void **state) {
    test_fixture *f = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        static witness w;
        char got[5];
        int peer = witness_pair(f, &w, tcp, NULL);
        peer_send(peer, "bye", 3);
        shutdown(peer, SHUT_WR);
        run_until(f, w.ends == 1);
        assert_string_equal(w.order, "de");
        assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_OPEN);
        assert_int_equal(weir_stream_write(w.stream, "hello", 5), WEIR_WRITE_OK);
        run_turns(f, 5);
        peer_receive(peer, got, 5);
        assert_int_equal(w.ends, 1);
        test_ok(weir_stream_close(w.stream));
        run_until(f, w.closes == 1);
        assert_int_equal(w.reason, WEIR_CLOSE_PEER);
        assert_int_equal(w.error, 0);
        peer_expect_end(peer);
        close(peer);
    }
}

static void without_on_end_the_peers_end_closes(void **state) {
    test_fixture *f = *state;
    static witness w;
    char got[5];
    int fds[2];
    memset(&w, 0, sizeof w);
    test_pair(true, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &w.stream));
    test_ok(weir_stream_start(w.stream, &witness_endless_callbacks, &w));
    peer_send(fds[1], "bye", 3);
    assert_int_equal(weir_stream_write(w.stream, "hello", 5), WEIR_WRITE_OK);
    shutdown(fds[1], SHUT_WR);
    run_until(f, w.closes == 1);
    assert_string_equal(w.order, "dc");
    assert_int_equal(w.reason, WEIR_CLOSE_PEER);
    assert_int_equal(w.error, 0);
    peer_receive(fds[1], got, 5); /* its queue was sent first */
    peer_expect_end(fds[1]);
    close(fds[1]);
}

/* ---- pause and resume -------------------------------------------------------------------------------- */

static void a_paused_stream_is_told_nothing(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    run_turns(f, 3);
    peer_send(peer, "hello", 5); /* there already when pause is called */
    test_ok(weir_stream_pause(w.stream));
    test_ok(weir_stream_pause(w.stream)); /* does not nest */
    shutdown(peer, SHUT_WR);
    run_turns(f, 10);
    assert_string_equal(w.order, "");
    test_ok(weir_stream_resume(w.stream));
    assert_string_equal(w.order, ""); /* later, not inside */
    run_until(f, w.ends == 1);
    assert_string_equal(w.order, "de");
    assert_memory_equal(w.bytes, "hello", 5);
    close(peer);
}

static void a_stream_may_be_paused_before_its_start(void **state) {
    test_fixture *f = *state;
    static witness w;
    int fds[2];
    memset(&w, 0, sizeof w);
    test_pair(true, fds);
    peer_send(fds[1], "hello", 5);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &w.stream));
    test_ok(weir_stream_pause(w.stream));
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    run_turns(f, 10);
    assert_string_equal(w.order, "");
    test_ok(weir_stream_resume(w.stream));
    run_until(f, w.size == 5);
    close(fds[1]);
}

static bool pausing;

static void pause_at_data(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'd' && pausing)
        test_ok(weir_stream_pause(w->stream));
}

static uint64_t staged(const witness *w) {
    weir_stream_stats stats = { .size = sizeof stats };
    test_ok(weir_stream_get_stats(w->stream, &stats));
    return stats.staged_bytes;
}

/* Buffers of 4 KiB, so that what is pending comes as several slices of one dispatch. */
static void what_was_received_already_is_staged_and_comes_first(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    static uint8_t data[40000];
    const weir_pool_options pool = { .size = sizeof pool, .buffer_bytes = 4096 };
    test_open(&f, NULL, &pool);
    int peer = witness_pair(&f, &w, true, NULL);
    w.hook = pause_at_data;
    pausing = true;
    test_fill(9, 0, data, sizeof data);
    peer_send(peer, data, 20000);
    run_until(&f, w.slices == 1);
    size_t first = w.size;
    run_turns(&f, 10);
    assert_int_equal(w.slices, 1); /* inside on_data is after it as well */
    assert_true(staged(&w) > 0 || test_is_epoll(&f));
    assert_true(staged(&w) + first <= 20000);
    peer_send(peer, data + 20000, 20000);
    run_turns(&f, 5);
    assert_int_equal(w.slices, 1);
    /* One slice at each resume, while there are staged ones. */
    test_ok(weir_stream_resume(w.stream));
    run_until(&f, w.slices == 2);
    run_turns(&f, 5);
    assert_int_equal(w.slices, 2);
    pausing = false;
    test_ok(weir_stream_resume(w.stream));
    run_until(&f, w.size == sizeof data);
    assert_int_equal(test_differs(9, 0, w.bytes, sizeof data), -1);
    assert_int_equal(staged(&w), 0);
    close(peer);
    test_close(&f);
}

static witness flooded;
static bool is_out_of_order;

static void pause_the_first(witness *w, char event, const weir_slice *slice) {
    if (event != 'd')
        return;
    is_out_of_order |= test_differs(12, w->size - slice->size, slice->data, slice->size) >= 0;
    if (w->slices == 1)
        test_ok(weir_stream_pause(w->stream));
}

static void resume_the_flooded(witness *w, char event, const weir_slice *slice) {
    (void)w, (void)slice;
    if (event == 'd')
        test_ok(weir_stream_resume(flooded.stream));
}

/* Thirty buffers and more are staged when another stream's callback, of the same dispatch, resumes this one; the rest of
 * what it sent is still to come, from the same buffer as the other's. Before Linux 6.3 the kernel turns the order of wakes
 * around: so there are two others, and one of them is told after this one. */
static void a_resume_in_another_streams_callback_keeps_the_order(void **state) {
    (void)state;
    test_fixture f;
    static witness others[2];
    static uint8_t data[45 * 4096];
    const weir_pool_options pool = { .size = sizeof pool, .buffer_bytes = 4096, .window_bytes = 1 << 20 };
    int fds[2], peers[2], size = 1 << 20;
    test_open(&f, NULL, &pool);
    memset(&flooded, 0, sizeof flooded);
    test_pair(false, fds);
    assert_int_equal(setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &size, sizeof size), 0);
    witness_adopt(&f, &flooded, fds[0], NULL);
    flooded.hook = pause_the_first;
    for (int i = 0; i < 2; i++) {
        peers[i] = witness_pair(&f, &others[i], false, NULL);
        others[i].hook = resume_the_flooded;
    }
    is_out_of_order = false;
    run_turns(&f, 3);
    test_fill(12, 0, data, sizeof data);
    peer_send(peers[0], "x", 1);
    peer_send(fds[1], data, sizeof data);
    peer_send(peers[1], "x", 1);
    run_until(&f, flooded.size == sizeof data);
    assert_false(is_out_of_order);
    close(fds[1]);
    close(peers[0]);
    close(peers[1]);
    test_close(&f);
}

static void pause_again_resume(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event != 'd')
        return;
    test_ok(weir_stream_pause(w->stream));
    test_ok(weir_stream_resume(w->stream));
}

static void pause_and_resume_in_on_data_lose_nothing(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t data[60000];
    int peer = witness_pair(f, &w, true, NULL);
    w.hook = pause_again_resume;
    test_fill(4, 0, data, sizeof data);
    for (size_t sent = 0; sent < sizeof data; sent += 1000) {
        peer_send(peer, data + sent, 1000);
        run_turns(f, 1);
        if (sent % 3000 == 0) { /* and from outside, at any moment */
            test_ok(weir_stream_pause(w.stream));
            run_turns(f, sent % 2000 == 0 ? 0 : 2);
            test_ok(weir_stream_resume(w.stream));
        }
    }
    run_until(f, w.size == sizeof data);
    assert_int_equal(test_differs(4, 0, w.bytes, sizeof data), -1);
    close(peer);
}

static void a_reset_is_noticed_while_paused(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, true, NULL);
    test_ok(weir_stream_pause(w.stream));
    run_turns(f, 3);
    peer_send(peer, "unread", 6);
    peer_reset(peer);
    run_until(f, w.closes == 1);
    assert_string_equal(w.order, "c");
    assert_int_equal(w.reason, WEIR_CLOSE_ERROR);
    assert_int_equal(w.error, -ECONNRESET);
}

static void a_paused_stream_can_write_and_be_closed(void **state) {
    test_fixture *f = *state;
    static witness w;
    char got[5];
    int peer = witness_pair(f, &w, true, NULL);
    test_ok(weir_stream_pause(w.stream));
    assert_int_equal(weir_stream_write(w.stream, "hello", 5), WEIR_WRITE_OK);
    run_turns(f, 3);
    peer_receive(peer, got, 5);
    peer_send(peer, "thrown away", 11);
    test_ok(weir_stream_close(w.stream));
    shutdown(peer, SHUT_WR);
    run_until(f, w.closes == 1);
    assert_string_equal(w.order, "c");
    assert_int_equal(w.reason, WEIR_CLOSE_LOCAL);
    peer_expect_end(peer); /* an end, not a reset: what was unread was read and thrown away */
    close(peer);
}

static void staged_bytes_are_dropped_by_abort(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    static uint8_t data[20000];
    const weir_pool_options pool = { .size = sizeof pool, .buffer_bytes = 4096 };
    test_open(&f, NULL, &pool);
    int peer = witness_pair(&f, &w, false, NULL);
    w.hook = pause_at_data;
    pausing = true;
    peer_send(peer, data, sizeof data);
    run_until(&f, w.slices == 1);
    run_turns(&f, 3);
    assert_true(staged(&w) > 0 || test_is_epoll(&f));
    test_ok(weir_stream_abort(w.stream));
    run_until(&f, w.closes == 1);
    assert_string_equal(w.order, "dc");
    run_turns(&f, 3);
    assert_int_equal(test_pool_stats(&f).buffers_retired, 0);
    close(peer);
    test_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(nothing_is_told_before_start),
        loop_test(a_second_start_is_refused_and_changes_nothing),
        loop_test(a_started_stream_needs_no_callback_at_all),
        loop_test(bytes_come_exact_and_in_order),
        loop_test(without_on_data_nothing_is_read_and_no_end_noticed),
        loop_test(the_peers_end_is_told_once_and_writing_goes_on),
        loop_test(without_on_end_the_peers_end_closes),
        loop_test(a_paused_stream_is_told_nothing),
        loop_test(a_stream_may_be_paused_before_its_start),
        cmocka_unit_test(what_was_received_already_is_staged_and_comes_first),
        cmocka_unit_test(a_resume_in_another_streams_callback_keeps_the_order),
        loop_test(pause_and_resume_in_on_data_lose_nothing),
        loop_test(a_reset_is_noticed_while_paused),
        loop_test(a_paused_stream_can_write_and_be_closed),
        cmocka_unit_test(staged_bytes_are_dropped_by_abort),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
