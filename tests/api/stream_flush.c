/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* Flushing: told once, in order, never inside the call, at the latest before on_close, and with the truth. */

/* What is told, in its order: a letter each flush has been given, or a witness's event. */
static char told[64];
static int errors[128]; /* by letter */
static bool is_inside;  /* a call of ours */
static uint8_t many[1 << 20];

typedef struct flush {
    witness *w;
    char letter;
    void (*then)(witness *w); /* what the function does besides */
} flush;

static void tell(char letter) {
    size_t length = strlen(told);
    assert_true(length + 1 < sizeof told);
    told[length] = letter;
}

static void flushed(weir_stream *stream, int error, void *userdata) {
    const flush *it = userdata;
    assert_false(is_inside);
    assert_ptr_equal(stream, it->w->stream);
    tell(it->letter);
    errors[(int)it->letter] = error;
    if (it->then != NULL)
        it->then(it->w);
}

static void tell_close(witness *w, char event, const weir_slice *slice) {
    (void)w, (void)slice;
    if (event == 'c' || event == 'r')
        tell(event);
}

static int flush_of(const flush *it) {
    bool was_inside = is_inside;
    is_inside = true;
    int r = weir_stream_flush(it->w->stream, flushed, (void *)(uintptr_t)it);
    is_inside = was_inside;
    return r;
}

static uint64_t queued(const witness *w) {
    return weir_stream_get_queued(w->stream);
}

static int setup(void **state) {
    memset(told, 0, sizeof told);
    memset(errors, 0x55, sizeof errors);
    is_inside = false;
    return witness_setup(state);
}

/* A stream whose socket takes a few thousand bytes, and its peer that reads when it is told to. */
static int narrow_pair(test_fixture *f, witness *w, bool tcp, const weir_stream_options *options) {
    int fds[2];
    memset(w, 0, sizeof *w);
    test_pair(tcp, fds);
    set_buffer_sizes(fds[0], 8192);
    set_buffer_sizes(fds[1], 8192);
    witness_adopt(f, w, fds[0], options);
    w->hook = tell_close;
    return fds[1];
}

static void drain_peer(test_fixture *f, int peer, witness *w) {
    static uint8_t got[65536];
    while (w->stream != NULL && queued(w) > 0) {
        (void)peer_poll(peer, got, sizeof got);
        assert_true(weir_loop_run_once(f->loop, 1000000) >= 0);
    }
}

static void flushes_are_told_in_order_when_their_bytes_are_taken(void **state) {
    test_fixture *f = *state;
    static witness w;
    const flush all[] = { { &w, 'A', NULL }, { &w, 'B', NULL }, { &w, 'C', NULL }, { &w, 'D', NULL } };
    const weir_stream_options options = { .size = sizeof options, .queue_high_bytes = 2 << 20 };
    int peer = narrow_pair(f, &w, false, &options);
    test_ok(flush_of(&all[0])); /* nothing is queued: that is told all the same, and later */
    assert_string_equal(told, "");
    run_turns(f, 3);
    assert_string_equal(told, "A");
    assert_int_equal(weir_stream_write(w.stream, many, 1), WEIR_WRITE_OK);
    test_ok(flush_of(&all[1]));
    assert_true(weir_stream_write(w.stream, many, sizeof many) >= 0);
    test_ok(flush_of(&all[2]));
    test_ok(flush_of(&all[3]));
    run_turns(f, 10);
    assert_string_equal(told, "AB"); /* the socket is full, and some of it was taken */
    assert_true(queued(&w) > 0 && queued(&w) < sizeof many);
    drain_peer(f, peer, &w);
    run_turns(f, 3);
    assert_string_equal(told, "ABCD");
    for (int i = 0; i < 4; i++)
        assert_int_equal(errors[(int)all[i].letter], 0);
    close(peer);
}

static void a_flush_waits_for_its_last_byte_and_no_other(void **state) {
    test_fixture *f = *state;
    static witness w;
    static uint8_t pieces[66][100]; /* a gathered send takes 64 */
    const flush all[] = { { &w, 'A', NULL }, { &w, 'B', NULL }, { &w, 'C', NULL } };
    static const char *const expected = "AB";
    int peer = narrow_pair(f, &w, false, NULL);
    run_turns(f, 2);
    for (int i = 0; i < 66; i++) {
        assert_int_equal(weir_stream_write_external(w.stream, pieces[i], 100, NULL, NULL), WEIR_WRITE_OK);
        if (i >= 62 && i <= 64)
            test_ok(flush_of(&all[i - 62]));
    }
    while (told[0] == '\0')
        assert_true(weir_loop_run_once(f->loop, 1000000) >= 0);
    assert_string_equal(told, expected); /* C's last byte is in the second send */
    run_until(f, queued(&w) == 0);
    run_turns(f, 2);
    assert_string_equal(told, "ABC");
    close(peer);
}

static void a_corked_flush_is_told_after_the_uncork(void **state) {
    test_fixture *f = *state;
    static witness w;
    const flush all[] = { { &w, 'A', NULL } };
    int peer = narrow_pair(f, &w, false, NULL);
    test_ok(weir_stream_cork(w.stream));
    assert_int_equal(weir_stream_write(w.stream, many, 10), WEIR_WRITE_OK);
    test_ok(flush_of(&all[0]));
    run_turns(f, 5);
    assert_string_equal(told, "");
    test_ok(weir_stream_uncork(w.stream));
    run_turns(f, 5);
    assert_string_equal(told, "A");
    close(peer);
}

static void a_flush_comes_before_the_drain_that_it_may_make_needless(void **state) {
    test_fixture *f = *state;
    static witness w;
    const flush all[] = { { &w, 'A', NULL } };
    const weir_stream_options options = { .size = sizeof options, .queue_high_bytes = 10 };
    int peer = narrow_pair(f, &w, false, &options);
    assert_int_equal(weir_stream_write(w.stream, many, 11), WEIR_WRITE_FULL);
    test_ok(flush_of(&all[0]));
    run_until(f, w.drains == 1);
    assert_string_equal(told, "Ar");
    close(peer);
}

/* ---- what a flush function does ---------------------------------------------------------------------- */

static unsigned again;

static void flush_again(witness *w) {
    static flush next;
    next = (flush){ .w = w, .letter = (char)('1' + again), .then = flush_again };
    if (again++ < 3)
        test_ok(flush_of(&next));
}

static void a_flush_function_may_flush_again(void **state) {
    test_fixture *f = *state;
    static witness w;
    const flush all[] = { { &w, 'A', flush_again }, { &w, 'B', NULL } };
    again = 0;
    int peer = narrow_pair(f, &w, false, NULL);
    assert_int_equal(weir_stream_write(w.stream, many, 10), WEIR_WRITE_OK);
    test_ok(flush_of(&all[0]));
    test_ok(flush_of(&all[1]));
    run_turns(f, 10);
    assert_string_equal(told, "AB123");
    close(peer);
}

static unsigned counted;

static void count_it(weir_stream *stream, int error, void *userdata) {
    (void)stream, (void)userdata;
    assert_int_equal(error, 0);
    counted++;
}

/* Who asks with each small write, and never waits, has a list without end. */
static void no_more_than_1024_flushes_wait(void **state) {
    test_fixture *f = *state;
    static witness w;
    counted = 0;
    int peer = narrow_pair(f, &w, false, NULL);
    assert_int_equal(weir_stream_write(w.stream, many, 10), WEIR_WRITE_OK);
    for (int round = 1; round <= 2; round++) {
        for (int i = 0; i < 1024; i++)
            test_ok(weir_stream_flush(w.stream, count_it, NULL));
        assert_int_equal(weir_stream_flush(w.stream, count_it, NULL), -ENOBUFS);
        run_turns(f, 10);
        assert_int_equal(counted, round * 1024); /* and then there is room again */
    }
    close(peer);
}

static void close_it(witness *w) {
    test_ok(weir_stream_close(w->stream));
    assert_int_equal(weir_stream_flush(w->stream, flushed, NULL), -EPIPE);
}

static void abort_it(witness *w) {
    test_ok(weir_stream_abort(w->stream));
    assert_int_equal(weir_stream_flush(w->stream, flushed, NULL), -EPIPE);
}

static void write_more(witness *w) {
    assert_true(weir_stream_write(w->stream, many, sizeof many) >= 0);
}

static void a_flush_function_may_close_and_the_others_are_told_the_truth(void **state) {
    test_fixture *f = *state;
    static witness w;
    const flush all[] = { { &w, 'A', close_it }, { &w, 'B', NULL }, { &w, 'C', NULL } };
    int peer = narrow_pair(f, &w, false, NULL);
    assert_int_equal(weir_stream_write(w.stream, many, 10), WEIR_WRITE_OK);
    test_ok(flush_of(&all[0]));
    test_ok(flush_of(&all[1]));
    assert_int_equal(weir_stream_write(w.stream, many, 100000), WEIR_WRITE_OK);
    test_ok(flush_of(&all[2]));
    drain_peer(f, peer, &w);
    close(peer);
    run_until(f, w.closes == 1);
    assert_string_equal(told, "ABCc");
    assert_int_equal(errors['A'] | errors['B'] | errors['C'], 0); /* closing sends the queue */
}

static void a_flush_function_may_abort_and_the_others_are_told_the_truth(void **state) {
    test_fixture *f = *state;
    static witness w;
    const flush all[] = { { &w, 'A', abort_it }, { &w, 'B', NULL }, { &w, 'C', NULL } };
    int peer = narrow_pair(f, &w, false, NULL);
    assert_int_equal(weir_stream_write(w.stream, many, 10), WEIR_WRITE_OK);
    test_ok(flush_of(&all[0]));
    test_ok(flush_of(&all[1]));
    assert_true(weir_stream_write(w.stream, many, sizeof many) >= 0);
    test_ok(flush_of(&all[2]));
    run_until(f, w.closes == 1);
    assert_string_equal(told, "ABCc");
    assert_int_equal(errors['A'] | errors['B'], 0);
    assert_int_equal(errors['C'], -ECANCELED);
    assert_int_equal(w.reason, WEIR_CLOSE_ABORT);
    close(peer);
}

static void what_a_flush_function_writes_is_not_its_own(void **state) {
    test_fixture *f = *state;
    static witness w;
    const flush all[] = { { &w, 'A', write_more }, { &w, 'B', NULL } };
    int peer = narrow_pair(f, &w, false, NULL);
    test_ok(flush_of(&all[0]));
    test_ok(flush_of(&all[1]));
    run_turns(f, 5);
    assert_string_equal(told, "AB");
    assert_true(queued(&w) > 0);
    close(peer);
}

/* ---- at the end -------------------------------------------------------------------------------------- */

static void flushes_of_an_aborted_stream_say_that_it_is_over(void **state) {
    test_fixture *f = *state;
    static witness w;
    const flush all[] = { { &w, 'A', NULL }, { &w, 'B', NULL } };
    int peer = narrow_pair(f, &w, true, NULL);
    test_ok(flush_of(&all[0])); /* this one's bytes are all taken: there are none */
    assert_true(weir_stream_write(w.stream, many, sizeof many) >= 0);
    test_ok(flush_of(&all[1]));
    test_ok(weir_stream_abort(w.stream));
    run_until(f, w.closes == 1);
    assert_string_equal(told, "ABc");
    assert_int_equal(errors['A'], 0);
    assert_int_equal(errors['B'], -ECANCELED);
    close(peer);
}

static void flushes_of_a_stream_that_was_reset_have_its_error(void **state) {
    test_fixture *f = *state;
    static witness w;
    const flush all[] = { { &w, 'A', NULL }, { &w, 'B', NULL } };
    int peer = narrow_pair(f, &w, true, NULL);
    assert_true(weir_stream_write(w.stream, many, sizeof many) >= 0);
    test_ok(flush_of(&all[0]));
    run_turns(f, 5);
    peer_reset(peer);
    run_until(f, w.closes == 1 || flush_of(&all[1]) == -EPIPE);
    run_until(f, w.closes == 1);
    assert_int_equal(told[0], 'A');
    assert_int_equal(told[strlen(told) - 1], 'c');
    assert_int_equal(w.reason, WEIR_CLOSE_ERROR);
    assert_int_equal(errors['A'], w.error);
    assert_true(w.error < 0);
}

static void flushes_end_with_the_loop(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    const flush all[] = { { &w, 'A', flush_again }, { &w, 'B', NULL } };
    test_open(&f, NULL, NULL);
    int peer = narrow_pair(&f, &w, true, NULL);
    assert_true(weir_stream_write(w.stream, many, sizeof many) >= 0);
    test_ok(flush_of(&all[1]));
    test_ok(weir_loop_close(f.loop));
    assert_string_equal(told, "Bc");
    assert_int_equal(errors['B'], -ECANCELED);
    assert_int_equal(w.reason, WEIR_CLOSE_LOOP);
    close(peer);
    test_close(&f);
}

/* A stream may be flushed from its start on, connected or not. */
static void flushes_wait_for_the_connection_or_learn_that_there_is_none(void **state) {
    test_fixture *f = *state;
    for (int listens = 0; listens <= 1; listens++) {
        static witness w;
        static witness_gate gate;
        char address[WEIR_ADDRESS_SIZE];
        const flush all[] = { { &w, 'A', NULL }, { &w, 'B', NULL } };
        memset(&w, 0, sizeof w);
        memset(told, 0, sizeof told);
        w.hook = tell_close;
        if (listens) {
            witness_listen(f, &gate, "127.0.0.1:0", NULL);
            assert_true(weir_listener_get_address(gate.listener, address, sizeof address) > 0);
        } else {
            test_free_address(address, sizeof address);
        }
        test_ok(weir_stream_dial(f->loop, address, NULL, &w.stream));
        test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
        assert_int_equal(weir_stream_write(w.stream, many, 10), WEIR_WRITE_OK);
        test_ok(flush_of(&all[0]));
        run_until(f, told[0] != '\0');
        assert_int_equal(errors['A'], listens ? 0 : -ECONNREFUSED);
        if (listens)
            test_ok(weir_stream_abort(w.stream));
        run_until(f, w.closes == 1);
        assert_string_equal(told, "Ac");
    }
}

#define flush_test(function) cmocka_unit_test_setup_teardown(function, setup, witness_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        flush_test(flushes_are_told_in_order_when_their_bytes_are_taken),
        flush_test(a_flush_waits_for_its_last_byte_and_no_other),
        flush_test(a_corked_flush_is_told_after_the_uncork),
        flush_test(a_flush_comes_before_the_drain_that_it_may_make_needless),
        flush_test(a_flush_function_may_flush_again),
        flush_test(no_more_than_1024_flushes_wait),
        flush_test(a_flush_function_may_close_and_the_others_are_told_the_truth),
        flush_test(a_flush_function_may_abort_and_the_others_are_told_the_truth),
        flush_test(what_a_flush_function_writes_is_not_its_own),
        flush_test(flushes_of_an_aborted_stream_say_that_it_is_over),
        flush_test(flushes_of_a_stream_that_was_reset_have_its_error),
        flush_test(flushes_end_with_the_loop),
        flush_test(flushes_wait_for_the_connection_or_learn_that_there_is_none),
    };
    return cmocka_run_group_tests_name("stream-flush", tests, NULL, NULL);
}
