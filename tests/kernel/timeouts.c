/* SPDX-License-Identifier: MIT */

/* What a stream's deadlines come to on a real kernel, whose sockets take much before they take nothing: who is given up,
 * and who is not. When exactly is for tests/unit/stream_time.c, where the clock stands still. */

#include "kernel/scribe.h"

enum { OURS = 1, THEIRS = 2, ROOM = 64 << 10, SIZE = 4 << 20 };

typedef struct line {
    scribe s;
    peer p;
} line;

static test_fixture f;

static int setup(void **state) {
    (void)state;
    test_open(&f, NULL, NULL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    test_close(&f);
    return 0;
}

/* A stream with a long queue, and its peer, which has not read. */
static void line_open(line *l, bool is_tcp, const weir_stream_options *options) {
    int fds[2];
    uint8_t *bytes = pattern_new(OURS, SIZE);
    memset(l, 0, sizeof *l);
    pair_with_room(is_tcp, ROOM, fds);
    peer_init(&l->p, fds[0], OURS);
    scribe_init(&l->s, THEIRS);
    scribe_adopt(&f, &l->s, fds[1], options);
    assert_int_equal(weir_stream_write(l->s.stream, bytes, SIZE), WEIR_WRITE_FULL);
    free(bytes);
}

static void a_peer_that_never_reads_is_given_up(void **state) {
    (void)state;
    const weir_stream_options options = { .size = sizeof options, .write_timeout_ns = 200 * MS };
    for (int is_tcp = 0; is_tcp <= 1; is_tcp++) {
        static line l;
        line_open(&l, is_tcp, &options);
        RUN_UNTIL(&f, scribe_is_closed(&l.s));
        scribe_expect(&l.s, "c", WEIR_CLOSE_WRITE, -ETIMEDOUT);
        close(l.p.fd);
    }
}

/* Also one that writes on all the time: what comes in is no sign that what goes out is taken. */
static void a_peer_that_only_writes_is_given_up(void **state) {
    (void)state;
    const weir_stream_options options = { .size = sizeof options, .write_timeout_ns = 200 * MS };
    static line l;
    uint64_t sent = 0;
    line_open(&l, true, &options);
    for (int64_t until = test_now_ns() + PATIENCE_S * 1000 * MS;
         !scribe_is_closed(&l.s) && test_now_ns() < until;) {
        if (sent - l.s.received < 1000 && peer_send(l.p.fd, THEIRS, sent, 100) == 0)
            sent += 100;
        scribe_turn(&f, MS);
    }
    scribe_expect(&l.s, "dc", WEIR_CLOSE_WRITE, -ETIMEDOUT);
    close(l.p.fd);
}

/* Both at once, for more than twice the timeout: slow is not dead. */
static void peers_that_read_slowly_but_steadily_are_not(void **state) {
    (void)state;
    const weir_stream_options options = { .size = sizeof options, .write_timeout_ns = 1000 * MS };
    static line lines[2];
    for (int i = 0; i < 2; i++) {
        line_open(&lines[i], i == 1, &options);
        lines[i].p.most = 16 << 10;
    }
    while (lines[0].p.received < SIZE || lines[1].p.received < SIZE) {
        for (int i = 0; i < 2; i++) {
            assert_string_equal(lines[i].s.events, lines[i].s.events[0] == 'r' ? "r" : "");
            peer_read(&lines[i].p);
            peer_expect_open(&lines[i].p, lines[i].p.received);
        }
        for (int64_t until = test_now_ns() + 10 * MS; test_now_ns() < until;)
            scribe_turn(&f, MS);
    }
    for (int i = 0; i < 2; i++) {
        test_ok(weir_stream_abort(lines[i].s.stream));
        RUN_UNTIL(&f, scribe_is_closed(&lines[i].s));
        scribe_expect(&lines[i].s, "rc", WEIR_CLOSE_ABORT, 0);
        close(lines[i].p.fd);
    }
}

/*
 * A Unix peer that reads no more, and says so while our queue is full. The kernel tells nobody who waits for room: only the
 * next send would hear of it (-EPIPE), and there is none. The write timeout is what ends it.
 */
static void a_unix_peer_that_has_shut_its_reading_down_is_given_up(void **state) {
    (void)state;
    const weir_stream_options options = { .size = sizeof options, .write_timeout_ns = 200 * MS };
    static line l;
    line_open(&l, false, &options);
    scribe_turns(&f, 10);
    assert_int_equal(shutdown(l.p.fd, SHUT_RD), 0);
    RUN_UNTIL(&f, scribe_is_closed(&l.s));
    scribe_expect(&l.s, "c", WEIR_CLOSE_WRITE, -ETIMEDOUT);
    close(l.p.fd);
}

static void a_silent_peer_is_idle_and_a_talking_one_is_not(void **state) {
    (void)state;
    const weir_stream_options options = { .size = sizeof options, .idle_timeout_ns = 500 * MS };
    static line lines[2];
    uint64_t sent = 0;
    for (int i = 0; i < 2; i++) {
        int fds[2];
        test_pair(i == 1, fds);
        peer_init(&lines[i].p, fds[0], OURS);
        scribe_init(&lines[i].s, THEIRS);
        scribe_adopt(&f, &lines[i].s, fds[1], &options);
    }
    RUN_UNTIL(&f,
              (sent += peer_send(lines[1].p.fd, THEIRS, sent, 10) == 0 ? 10 : 0, scribe_is_closed(&lines[0].s)));
    scribe_expect(&lines[0].s, "c", WEIR_CLOSE_IDLE, -ETIMEDOUT);
    assert_string_equal(lines[1].s.events, "d");
    RUN_UNTIL(&f, scribe_is_closed(&lines[1].s));
    scribe_expect(&lines[1].s, "dc", WEIR_CLOSE_IDLE, -ETIMEDOUT);
    close(lines[0].p.fd);
    close(lines[1].p.fd);
}

#define timeout_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        timeout_test(a_peer_that_never_reads_is_given_up),
        timeout_test(a_peer_that_only_writes_is_given_up),
        timeout_test(peers_that_read_slowly_but_steadily_are_not),
        timeout_test(a_unix_peer_that_has_shut_its_reading_down_is_given_up),
        timeout_test(a_silent_peer_is_idle_and_a_talking_one_is_not),
    };
    return cmocka_run_group_tests_name("timeouts", tests, first_thread, NULL);
}
