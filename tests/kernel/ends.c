/* SPDX-License-Identifier: MIT */

/* How connections end: who says so first, what still arrives, what each side is told, and that on_close is the last
 * word. Where TCP and Unix sockets end alike, both are tried. */

#include "kernel/scribe.h"

enum { OURS = 1, THEIRS = 2 }; /* seeds: what the stream sends, what the peer does */
enum { ROOM = 128 << 10 };     /* what the kernel's buffers may hold, so that a long queue stays one */

static bool on_tcp = true, on_unix = false;
#define ON(socket, function) \
    { #function "_" #socket, function, NULL, NULL, &socket }
#define BOTH(function) ON(on_tcp, function), ON(on_unix, function)
#define ONCE(function) cmocka_unit_test(function)

/* A connection with a stream on one side. */
typedef struct line {
    test_fixture f;
    scribe s;
    peer p;
} line;

static void line_open(line *l, bool is_tcp, const weir_stream_options *options) {
    const weir_pool_options pool = {
        .size = sizeof pool, .buffer_bytes = 4096, .budget_bytes = 4 << 20, .window_bytes = 64 << 10
    };
    int fds[2];
    test_open(&l->f, NULL, &pool);
    test_pair(is_tcp, fds);
    set_room(fds, ROOM);
    peer_init(&l->p, fds[0], OURS);
    scribe_init(&l->s, THEIRS);
    scribe_adopt(&l->f, &l->s, fds[1], options);
}

static void line_close(line *l) {
    if (l->p.fd >= 0)
        close(l->p.fd);
    test_close(&l->f);
}

static void hang_up(line *l) {
    close(l->p.fd);
    l->p.fd = -1;
}

static void write_pattern(weir_stream *stream, size_t size) {
    uint8_t *bytes = pattern_new(OURS, size);
    assert_true(weir_stream_write(stream, bytes, size) >= 0);
    free(bytes);
}

/* ---- halves ------------------------------------------------------------------------------------------- */

static void the_peer_ends_first_and_we_go_on_writing(void **state) {
    line l = { 0 };
    line_open(&l, *(bool *)*state, NULL);
    assert_int_equal(peer_send(l.p.fd, THEIRS, 0, 5000), 0);
    shutdown(l.p.fd, SHUT_WR);
    RUN_UNTIL(&l.f, strchr(l.s.events, 'e') != NULL);
    assert_string_equal(l.s.events, "de");
    assert_int_equal(l.s.received, 5000);
    write_pattern(l.s.stream, 100000);
    RUN_UNTIL(&l.f, (peer_read(&l.p), l.p.received >= 100000));
    scribe_turns(&l.f, 10);
    peer_read(&l.p);
    peer_expect_open(&l.p, 100000);
    test_ok(weir_stream_close(l.s.stream));
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "dec", WEIR_CLOSE_PEER, 0);
    peer_read(&l.p);
    peer_expect_end(&l.p, 100000);
    line_close(&l);
}

static void we_end_first_and_the_peer_goes_on_writing(void **state) {
    line l = { 0 };
    line_open(&l, *(bool *)*state, NULL);
    write_pattern(l.s.stream, 3000);
    test_ok(weir_stream_shutdown(l.s.stream));
    assert_int_equal(weir_stream_write(l.s.stream, "x", 1), -EPIPE);
    RUN_UNTIL(&l.f, peer_is_over(&l.p));
    peer_expect_end(&l.p, 3000);
    for (int i = 0; i < 20; i++) {
        assert_int_equal(peer_send(l.p.fd, THEIRS, (uint64_t)i * 5000, 5000), 0);
        scribe_turns(&l.f, 3);
    }
    RUN_UNTIL(&l.f, l.s.received == 100000);
    assert_string_equal(l.s.events, "d");
    shutdown(l.p.fd, SHUT_WR);
    RUN_UNTIL(&l.f, strchr(l.s.events, 'e') != NULL);
    test_ok(weir_stream_close(l.s.stream));
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "dec", WEIR_CLOSE_PEER, 0);
    line_close(&l);
}

static void without_on_end_the_peers_end_closes_once_the_queue_is_sent(void **state) {
    line l = { 0 };
    int fds[2];
    test_open(&l.f, NULL, NULL);
    test_pair(*(bool *)*state, fds);
    peer_init(&l.p, fds[0], OURS);
    scribe_init(&l.s, THEIRS);
    test_ok(weir_stream_adopt(l.f.loop, fds[1], NULL, &l.s.stream));
    test_ok(weir_stream_start(l.s.stream, &scribe_callbacks_without_end, &l.s));
    write_pattern(l.s.stream, 4 << 20);
    assert_int_equal(peer_send(l.p.fd, THEIRS, 0, 10), 0);
    shutdown(l.p.fd, SHUT_WR);
    RUN_UNTIL(&l.f, peer_is_over(&l.p));
    peer_expect_end(&l.p, 4 << 20);
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "dc", WEIR_CLOSE_PEER, 0);
    line_close(&l);
}

/* Data and end at once, for sizes around those of the buffers: neither may hide the other. */
static void data_and_end_together_both_arrive(void **state) {
    static const size_t sizes[] = { 0, 1, 4095, 4096, 4097, 8191, 8192, 8193, 40000, 65536 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        for (int started_first = 0; started_first < 2; started_first++) {
            line l = { 0 };
            weir_stream *stream;
            int fds[2];
            const weir_pool_options pool = {
                .size = sizeof pool, .buffer_bytes = 4096, .budget_bytes = 64 << 10, .window_bytes = 4096
            };
            test_open(&l.f, NULL, &pool);
            test_pair(*(bool *)*state, fds);
            peer_init(&l.p, fds[0], OURS);
            scribe_init(&l.s, THEIRS);
            test_ok(weir_stream_adopt(l.f.loop, fds[1], NULL, &stream));
            if (started_first != 0) {
                scribe_start(&l.s, stream);
                scribe_turns(&l.f, 3); /* a receive is armed and waits */
            }
            assert_int_equal(peer_send(l.p.fd, THEIRS, 0, sizes[i]), 0);
            shutdown(l.p.fd, SHUT_WR);
            if (started_first == 0)
                scribe_start(&l.s, stream);
            RUN_UNTIL(&l.f, strchr(l.s.events, 'e') != NULL);
            assert_string_equal(l.s.events, sizes[i] > 0 ? "de" : "e");
            assert_int_equal(l.s.received, sizes[i]);
            test_ok(weir_stream_close(l.s.stream));
            RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
            assert_int_equal(l.s.wrong, -1);
            line_close(&l);
        }
    }
}

static void an_end_while_paused_waits_for_the_resume(void **state) {
    line l = { 0 };
    line_open(&l, *(bool *)*state, NULL);
    scribe_turns(&l.f, 3);
    test_ok(weir_stream_pause(l.s.stream));
    assert_int_equal(peer_send(l.p.fd, THEIRS, 0, 9000), 0);
    shutdown(l.p.fd, SHUT_WR);
    scribe_turns(&l.f, 20);
    assert_string_equal(l.s.events, "");
    test_ok(weir_stream_resume(l.s.stream));
    RUN_UNTIL(&l.f, strchr(l.s.events, 'e') != NULL);
    assert_int_equal(l.s.received, 9000);
    test_ok(weir_stream_close(l.s.stream));
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "dec", WEIR_CLOSE_PEER, 0);
    line_close(&l);
}

/* ---- resets ------------------------------------------------------------------------------------------- */

static void a_reset_closes_with_its_error(void **state) {
    (void)state;
    line l = { 0 };
    line_open(&l, true, NULL);
    scribe_turns(&l.f, 3);
    peer_reset(l.p.fd);
    l.p.fd = -1;
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_ERROR, -ECONNRESET);
    line_close(&l);
}

static void data_before_a_reset_is_delivered_first(void **state) {
    (void)state;
    line l = { 0 };
    line_open(&l, true, NULL);
    scribe_turns(&l.f, 3);
    assert_int_equal(peer_send(l.p.fd, THEIRS, 0, 10000), 0);
    peer_reset(l.p.fd);
    l.p.fd = -1;
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "dc", WEIR_CLOSE_ERROR, -ECONNRESET);
    assert_int_equal(l.s.received, 10000);
    line_close(&l);
}

static void a_reset_is_noticed_while_paused(void **state) {
    (void)state;
    line l = { 0 };
    line_open(&l, true, NULL);
    test_ok(weir_stream_pause(l.s.stream));
    scribe_turns(&l.f, 3);
    assert_int_equal(peer_send(l.p.fd, THEIRS, 0, 10000), 0);
    scribe_turns(&l.f, 3);
    assert_string_equal(l.s.events, "");
    peer_reset(l.p.fd);
    l.p.fd = -1;
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_ERROR, -ECONNRESET);
    line_close(&l);
}

/* The watch of a paused stream fires once for the peer's end, and has to stay for what may come after it. */
static void a_reset_after_the_end_is_noticed_while_paused(void **state) {
    (void)state;
    line l = { 0 };
    line_open(&l, true, NULL);
    test_ok(weir_stream_pause(l.s.stream));
    scribe_turns(&l.f, 3);
    shutdown(l.p.fd, SHUT_WR);
    scribe_turns(&l.f, 10);
    assert_string_equal(l.s.events, "");
    /* The peer's socket is gone: what we send now is answered by a reset. */
    hang_up(&l);
    write_pattern(l.s.stream, 10);
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    assert_string_equal(l.s.events, "c");
    assert_int_equal(l.s.reason, WEIR_CLOSE_ERROR);
    assert_true(l.s.error == -EPIPE || l.s.error == -ECONNRESET);
    line_close(&l);
}

static void a_unix_peer_that_closes_over_our_unread_bytes_resets(void **state) {
    (void)state;
    line l = { 0 };
    line_open(&l, false, NULL);
    write_pattern(l.s.stream, 100);
    scribe_turns(&l.f, 5);
    hang_up(&l);
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_ERROR, -ECONNRESET);
    line_close(&l);
}

/* ---- a peer that goes while a gathered send is under way ------------------------------------------------ */

enum { LOANS = 40, LOAN_BYTES = 64 << 10 };

typedef struct loans {
    loan loans[LOANS];
    unsigned before_close; /* releases that had run when on_close came */
} loans;

static void count_releases(scribe *s, char event, const weir_slice *slice) {
    loans *it = s->userdata;
    (void)slice;
    if (event != 'c')
        return;
    for (int i = 0; i < LOANS; i++)
        it->before_close += it->loans[i].releases;
}

static void a_peer_that_goes_during_a_gathered_send_frees_what_was_lent(void **state) {
    line l = { 0 };
    static loans it;
    it = (loans){ 0 };
    uint8_t *bytes = pattern_new(OURS, LOANS * LOAN_BYTES);
    l.s.hook = count_releases;
    l.s.userdata = &it;
    line_open(&l, *(bool *)*state, NULL);
    for (int i = 0; i < LOANS; i++) {
        it.loans[i] = (loan){ .data = bytes + (size_t)i * LOAN_BYTES, .size = LOAN_BYTES };
        assert_true(
            weir_stream_write_external(l.s.stream, it.loans[i].data, LOAN_BYTES, loan_release, &it.loans[i]) >= 0);
    }
    RUN_UNTIL(&l.f, (peer_read(&l.p), l.p.received > 3 * LOAN_BYTES));
    scribe_turns(&l.f, 10);
    assert_true(weir_stream_get_queued(l.s.stream) > 0); /* a send waits for room */
    assert_int_equal(l.p.wrong, -1);
    hang_up(&l); /* over unread bytes: a reset */
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    assert_int_equal(l.s.reason, WEIR_CLOSE_ERROR);
    assert_true(l.s.error == -EPIPE || l.s.error == -ECONNRESET);
    for (int i = 0; i < LOANS; i++)
        assert_int_equal(it.loans[i].releases, 1);
    assert_int_equal(it.before_close, LOANS);
    line_close(&l);
    free(bytes);
}

/* A server answers early and closes; our send fails, and its answer is in the socket still. */
static void an_early_answer_is_delivered_although_our_send_fails(void **state) {
    line l = { 0 };
    uint8_t *bytes = pattern_new(OURS, 8 << 20);
    loan it = { .data = bytes, .size = 8 << 20 };
    line_open(&l, *(bool *)*state, NULL);
    assert_true(weir_stream_write_external(l.s.stream, bytes, it.size, loan_release, &it) >= 0);
    scribe_turns(&l.f, 10);
    assert_true(weir_stream_get_queued(l.s.stream) > 0);
    assert_int_equal(peer_send(l.p.fd, THEIRS, 0, 6000), 0);
    hang_up(&l);
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    assert_string_equal(l.s.events, "dc");
    assert_int_equal(l.s.received, 6000);
    assert_int_equal(l.s.wrong, -1);
    assert_int_equal(l.s.reason, WEIR_CLOSE_ERROR);
    assert_int_equal(it.releases, 1);
    line_close(&l);
    free(bytes);
}

/*
 * The peer sends, and is gone; our stream was paused, resumes and writes in one go. The send fails before the receive has
 * taken the watch's place, and all that lay in the socket was lost with the stream.
 */
static void a_write_just_after_a_resume_that_fails_loses_no_input(void **state) {
    (void)state;
    line l = { 0 };
    line_open(&l, false, NULL);
    test_ok(weir_stream_pause(l.s.stream));
    scribe_turns(&l.f, 3);
    assert_int_equal(peer_send(l.p.fd, THEIRS, 0, 9000), 0);
    hang_up(&l);
    scribe_turns(&l.f, 5);
    assert_string_equal(l.s.events, "");
    test_ok(weir_stream_resume(l.s.stream));
    write_pattern(l.s.stream, 10);
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "dc", WEIR_CLOSE_ERROR, -EPIPE);
    assert_int_equal(l.s.received, 9000);
    line_close(&l);
}

static void say_a_byte(line *l, uint64_t *position) {
    if (peer_send(l->p.fd, THEIRS, *position, 1) == 0)
        ++*position;
}

/*
 * A peer that reads no more (SHUT_RD) and goes on to write: our send failed, its queue was gone, and the stream waited for
 * the peer's end to say so, for as long as that kept talking.
 */
static void a_send_that_fails_ends_the_stream_although_the_peer_goes_on_writing(void **state) {
    (void)state;
    const weir_stream_options options = { .size = sizeof options, .linger_timeout_ns = 200 * MS };
    line l = { 0 };
    uint64_t said = 0;
    line_open(&l, false, &options);
    scribe_turns(&l.f, 3);
    shutdown(l.p.fd, SHUT_RD);
    write_pattern(l.s.stream, 100);
    RUN_UNTIL(&l.f, (say_a_byte(&l, &said), scribe_is_closed(&l.s)));
    scribe_expect(&l.s, "dc", WEIR_CLOSE_ERROR, -EPIPE);
    assert_true(l.s.received > 0);
    line_close(&l);
}

/* ---- ending well ---------------------------------------------------------------------------------------- */

/* Closing a socket over input that nobody read resets it, and the peer loses the tail of what we sent. So a graceful
 * close reads on, and throws away. */
static void close_delivers_a_large_queue_although_there_is_unread_input(void **state) {
    enum { SIZE = 8 << 20 };
    line l = { 0 };
    uint8_t *bytes = pattern_new(OURS, SIZE);
    loan it = { .data = bytes, .size = SIZE };
    line_open(&l, *(bool *)*state, NULL);
    test_ok(weir_stream_pause(l.s.stream)); /* so that the input stays unread */
    assert_int_equal(peer_send(l.p.fd, THEIRS, 0, 100000), 0);
    assert_true(weir_stream_write_external(l.s.stream, bytes, SIZE, loan_release, &it) >= 0);
    scribe_turns(&l.f, 5);
    test_ok(weir_stream_close(l.s.stream));
    assert_int_equal(weir_stream_write(l.s.stream, "x", 1), -EPIPE);
    l.p.most = 30000; /* a slow reader: a little each turn */
    while (!peer_is_over(&l.p)) {
        scribe_turns(&l.f, 1);
        if (l.p.received == SIZE / 3 / 30000 * 30000)
            assert_int_equal(peer_send(l.p.fd, THEIRS, 100000, 50000), 0);
    }
    peer_expect_end(&l.p, SIZE);
    assert_int_equal(it.releases, 1);
    scribe_turns(&l.f, 10);
    assert_string_equal(l.s.events, ""); /* the peer has not ended yet */
    hang_up(&l);
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_LOCAL, 0);
    line_close(&l);
    free(bytes);
}

static void close_of_an_idle_stream_waits_for_the_peers_end(void **state) {
    line l = { 0 };
    line_open(&l, *(bool *)*state, NULL);
    test_ok(weir_stream_close(l.s.stream));
    assert_int_equal(weir_stream_get_state(l.s.stream), WEIR_STREAM_CLOSING);
    RUN_UNTIL(&l.f, peer_is_over(&l.p));
    peer_expect_end(&l.p, 0);
    scribe_turns(&l.f, 10);
    assert_string_equal(l.s.events, "");
    hang_up(&l);
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_LOCAL, 0);
    line_close(&l);
}

/*
 * The linger timeout began when the kernel had taken the last byte, and ended in a reset however well the peer read what
 * the kernel had of it. It is for a peer that takes nothing.
 */
static void close_waits_for_a_slow_reader_of_what_the_kernel_holds(void **state) {
    enum { SIZE = 400 << 10, SENDER = 128 << 10 };
    const weir_stream_options options = { .size = sizeof options, .linger_timeout_ns = 400 * MS };
    line l = { 0 };
    int fds[2];
    test_open(&l.f, NULL, NULL);
    pair_with_room(*(bool *)*state, 16 << 10,
                   fds); /* what the peer's socket has taken is the peer's, and not ours to wait for */
    assert_int_equal(setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &(int){ SENDER }, sizeof(int)), 0);
    peer_init(&l.p, fds[0], OURS);
    scribe_init(&l.s, THEIRS);
    scribe_adopt(&l.f, &l.s, fds[1], &options);
    write_pattern(l.s.stream, SIZE);
    test_ok(weir_stream_close(l.s.stream));
    l.p.most = 4096;
    while (!peer_is_over(&l.p)) { /* for several timeouts */
        test_sleep_ms(20);
        scribe_turns(&l.f, 1);
    }
    peer_expect_end(&l.p, SIZE);
    hang_up(&l);
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_LOCAL, 0);
    line_close(&l);
}

static void close_gives_up_on_a_peer_that_reads_but_never_ends(void **state) {
    const weir_stream_options options = { .size = sizeof options, .linger_timeout_ns = 30 * MS };
    line l = { 0 };
    line_open(&l, *(bool *)*state, &options);
    write_pattern(l.s.stream, 1000);
    test_ok(weir_stream_close(l.s.stream));
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_LINGER, -ETIMEDOUT);
    line_close(&l);
}

static void close_gives_up_on_a_peer_that_never_reads_and_resets_it(void **state) {
    (void)state;
    const weir_stream_options options = { .size = sizeof options, .linger_timeout_ns = 30 * MS };
    line l = { 0 };
    uint8_t *bytes = pattern_new(OURS, 8 << 20);
    loan it = { .data = bytes, .size = 8 << 20 };
    line_open(&l, true, &options);
    assert_true(weir_stream_write_external(l.s.stream, bytes, it.size, loan_release, &it) >= 0);
    test_ok(weir_stream_close(l.s.stream));
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_LINGER, -ETIMEDOUT);
    assert_int_equal(it.releases, 1);
    RUN_UNTIL(&l.f, peer_is_over(&l.p));
    assert_int_equal(l.p.error, ECONNRESET);
    assert_true(l.p.received < it.size);
    line_close(&l);
    free(bytes);
}

static void a_reset_cuts_a_graceful_close_short(void **state) {
    (void)state;
    line l = { 0 };
    uint8_t *bytes = pattern_new(OURS, 8 << 20);
    loan it = { .data = bytes, .size = 8 << 20 };
    line_open(&l, true, NULL);
    assert_true(weir_stream_write_external(l.s.stream, bytes, it.size, loan_release, &it) >= 0);
    test_ok(weir_stream_close(l.s.stream));
    scribe_turns(&l.f, 5);
    assert_true(weir_stream_get_queued(l.s.stream) > 0);
    peer_reset(l.p.fd);
    l.p.fd = -1;
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    assert_string_equal(l.s.events, "c");
    assert_int_equal(l.s.reason, WEIR_CLOSE_ERROR);
    assert_true(l.s.error == -EPIPE || l.s.error == -ECONNRESET);
    assert_int_equal(it.releases, 1);
    line_close(&l);
    free(bytes);
}

/* ---- ending without grace ------------------------------------------------------------------------------- */

static void abort_resets_a_tcp_peer_and_drops_the_queue(void **state) {
    (void)state;
    line l = { 0 };
    uint8_t *bytes = pattern_new(OURS, 8 << 20);
    loan it = { .data = bytes, .size = 8 << 20 };
    line_open(&l, true, NULL);
    assert_true(weir_stream_write_external(l.s.stream, bytes, it.size, loan_release, &it) >= 0);
    scribe_turns(&l.f, 5);
    test_ok(weir_stream_abort(l.s.stream));
    assert_int_equal(it.releases, 0); /* nothing happens inside the call */
    assert_string_equal(l.s.events, "");
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_ABORT, 0);
    assert_int_equal(it.releases, 1);
    RUN_UNTIL(&l.f, peer_is_over(&l.p));
    assert_int_equal(l.p.error, ECONNRESET);
    assert_true(l.p.received < it.size);
    line_close(&l);
    free(bytes);
}

static void abort_of_an_idle_stream_is_seen_by_the_peer_at_once(void **state) {
    line l = { 0 };
    line_open(&l, *(bool *)*state, NULL);
    scribe_turns(&l.f, 3);
    test_ok(weir_stream_abort(l.s.stream));
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_ABORT, 0);
    assert_true(peer_is_over(&l.p));
    if (*(bool *)*state)
        peer_expect_error(&l.p, 0, ECONNRESET);
    else
        peer_expect_end(&l.p, 0); /* Unix sockets have no reset but for unread bytes */
    line_close(&l);
}

static void abort_cuts_a_graceful_close_short(void **state) {
    line l = { 0 };
    line_open(&l, *(bool *)*state, NULL);
    write_pattern(l.s.stream, 1 << 20);
    test_ok(weir_stream_close(l.s.stream));
    scribe_turns(&l.f, 3);
    assert_true(weir_stream_get_queued(l.s.stream) > 0);
    test_ok(weir_stream_abort(l.s.stream));
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_ABORT, 0);
    line_close(&l);
}

static void aborting_and_closing_again_changes_nothing(void **state) {
    line l = { 0 };
    line_open(&l, *(bool *)*state, NULL);
    weir_stream *stream = weir_stream_ref(l.s.stream);
    test_ok(weir_stream_abort(stream));
    test_ok(weir_stream_close(stream));
    test_ok(weir_stream_abort(stream));
    RUN_UNTIL(&l.f, scribe_is_closed(&l.s));
    test_ok(weir_stream_abort(stream));
    test_ok(weir_stream_close(stream));
    scribe_turns(&l.f, 5);
    scribe_expect(&l.s, "c", WEIR_CLOSE_ABORT, 0);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_CLOSED);
    assert_int_equal(weir_stream_get_fd(stream), -EBADF);
    weir_stream_unref(stream);
    line_close(&l);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        BOTH(the_peer_ends_first_and_we_go_on_writing),
        BOTH(we_end_first_and_the_peer_goes_on_writing),
        BOTH(without_on_end_the_peers_end_closes_once_the_queue_is_sent),
        BOTH(data_and_end_together_both_arrive),
        BOTH(an_end_while_paused_waits_for_the_resume),
        ONCE(a_reset_closes_with_its_error),
        ONCE(data_before_a_reset_is_delivered_first),
        ONCE(a_reset_is_noticed_while_paused),
        ONCE(a_reset_after_the_end_is_noticed_while_paused),
        ONCE(a_unix_peer_that_closes_over_our_unread_bytes_resets),
        BOTH(a_peer_that_goes_during_a_gathered_send_frees_what_was_lent),
        BOTH(an_early_answer_is_delivered_although_our_send_fails),
        ONCE(a_write_just_after_a_resume_that_fails_loses_no_input),
        ONCE(a_send_that_fails_ends_the_stream_although_the_peer_goes_on_writing),
        BOTH(close_delivers_a_large_queue_although_there_is_unread_input),
        BOTH(close_of_an_idle_stream_waits_for_the_peers_end),
        BOTH(close_waits_for_a_slow_reader_of_what_the_kernel_holds),
        BOTH(close_gives_up_on_a_peer_that_reads_but_never_ends),
        ONCE(close_gives_up_on_a_peer_that_never_reads_and_resets_it),
        ONCE(a_reset_cuts_a_graceful_close_short),
        ONCE(abort_resets_a_tcp_peer_and_drops_the_queue),
        BOTH(abort_of_an_idle_stream_is_seen_by_the_peer_at_once),
        BOTH(abort_cuts_a_graceful_close_short),
        BOTH(aborting_and_closing_again_changes_nothing),
    };
    return cmocka_run_group_tests_name("ends", tests, NULL, NULL);
}
