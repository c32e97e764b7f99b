/* SPDX-License-Identifier: MIT */

/* Out of buffers: the application holds them all, streams are parked, and one release sets everything going again, in
 * order and with every byte, on whichever thread it happens; and whatever else may happen to a parked stream. */

#include <netinet/in.h>
#include <netinet/tcp.h>

#include "kernel/scribe.h"

enum { BUFFER = 4096, BUFFERS = 4, MOST_HELD = 64 };

/* Slices that are held, from however many streams, until somebody lets go. */
typedef struct hold {
    bool is_on; /* go on holding */
    weir_slice slices[MOST_HELD];
    uint64_t seeds[MOST_HELD], positions[MOST_HELD];
    unsigned count;
    char order[MOST_HELD + 1]; /* a letter each: whose it was */
} hold;

static void hold_data(scribe *s, char event, const weir_slice *slice) {
    hold *h = s->userdata;
    if (event != 'd' || h == NULL || !h->is_on)
        return;
    assert_true(h->count < MOST_HELD);
    weir_slice_ref(slice, &h->slices[h->count]);
    h->seeds[h->count] = s->seed;
    h->positions[h->count] = s->received - slice->size;
    h->order[h->count++] = (char)('A' + s->seed);
}

static bool is_unchanged(const hold *h, unsigned i) {
    return test_differs(h->seeds[i], h->positions[i], h->slices[i].data, h->slices[i].size) < 0;
}

static void let_go(hold *h) {
    h->is_on = false;
    for (unsigned i = 0; i < h->count; i++) {
        assert_true(is_unchanged(h, i));
        weir_slice_unref(&h->slices[i]);
    }
    h->count = 0;
}

static void pool_of(test_fixture *f, uint32_t buffers) {
    const weir_pool_options pool = { .size = sizeof pool,
                                     .buffer_bytes = BUFFER,
                                     .budget_bytes = (uint64_t)buffers * BUFFER,
                                     .window_bytes = buffers * BUFFER };
    test_open(f, NULL, &pool);
}

enum { STREAMS = 3, SENT = 60000 };

/* Three streams with data, all buffers held, every stream parked. */
typedef struct scene {
    test_fixture f;
    hold h;
    scribe s[STREAMS];
    int peers[STREAMS];
} scene;

static bool is_parked(scene *c, uint32_t streams) {
    return test_pool_stats(&c->f).parked_streams == streams;
}

static void scene_open(scene *c, bool is_tcp) {
    memset(c, 0, sizeof *c);
    pool_of(&c->f, BUFFERS);
    c->h.is_on = true;
    for (unsigned i = 0; i < STREAMS; i++) {
        int fds[2];
        test_pair(is_tcp, fds);
        c->peers[i] = fds[0];
        c->s[i].hook = hold_data;
        c->s[i].userdata = &c->h;
        scribe_init(&c->s[i], i);
        scribe_adopt(&c->f, &c->s[i], fds[1], NULL);
        assert_int_equal(peer_send(c->peers[i], i, 0, 100), 0); /* each has a part in what is held */
        RUN_UNTIL(&c->f, c->s[i].received == 100);
    }
    for (unsigned i = 0; i < STREAMS; i++)
        assert_int_equal(peer_send(c->peers[i], i, 100, SENT - 100), 0);
    RUN_UNTIL(&c->f, is_parked(c, STREAMS));
    weir_pool_stats stats = test_pool_stats(&c->f);
    assert_int_equal(stats.buffers_retired, BUFFERS);
    assert_int_equal(stats.buffers_posted + stats.buffers_filling + stats.buffers_idle, 0);
    assert_int_equal(stats.pinned_bytes, BUFFERS * BUFFER);
    assert_true(stats.starved >= STREAMS);
    assert_int_equal(stats.used_bytes, stats.budget_bytes);
}

static bool has_all(const scene *c) {
    for (unsigned i = 0; i < STREAMS; i++)
        if (c->s[i].received < SENT)
            return false;
    return true;
}

static void scene_close(scene *c) {
    for (unsigned i = 0; i < STREAMS; i++) {
        assert_int_equal(c->s[i].wrong, -1);
        if (c->peers[i] >= 0)
            close(c->peers[i]);
    }
    test_close(&c->f);
}

static bool on_tcp = true, on_unix = false;
#define ON(socket, function) \
    { #function "_" #socket, function, NULL, NULL, &socket }
#define BOTH(function) ON(on_tcp, function), ON(on_unix, function)

/* ---- one release sets everything going -------------------------------------------------------------------- */

static void a_release_on_the_loops_thread_sets_all_going(void **state) {
    static scene c;
    scene_open(&c, *(bool *)*state);
    scribe_turns(&c.f, 20); /* nothing comes by itself, and nothing spins */
    weir_loop_stats before = test_loop_stats(&c.f);
    test_run_for_ms(&c.f, 50);
    assert_int_equal(test_loop_stats(&c.f).completions, before.completions);
    let_go(&c.h);
    RUN_UNTIL(&c.f, has_all(&c));
    RUN_UNTIL(&c.f, is_parked(&c, 0)); /* a kernel may have wanted one more buffer behind the last byte */
    assert_true(test_pool_stats(&c.f).recycled > 0);
    scene_close(&c);
}

static void a_release_of_one_buffer_is_enough(void **state) {
    static scene c;
    scene_open(&c, *(bool *)*state);
    c.h.is_on = false;
    /* Not the oldest one, for what it is worth. In incremental mode other slices may lie in the same buffer. */
    const weir_block *owner = c.h.slices[1].owner;
    for (unsigned i = 0; i < c.h.count; i++)
        if (c.h.slices[i].owner == owner)
            weir_slice_unref(&c.h.slices[i]);
    RUN_UNTIL(&c.f, has_all(&c));
    for (unsigned i = 0; i < c.h.count; i++)
        if (c.h.slices[i].size > 0)
            assert_true(is_unchanged(&c.h, i));
    for (unsigned i = 0; i < c.h.count; i++)
        weir_slice_unref(&c.h.slices[i]);
    scene_close(&c);
}

static void stop_when_all_came(scribe *s, char event, const weir_slice *slice) {
    scene *c = s->userdata;
    (void)event, (void)slice;
    if (has_all(c))
        weir_loop_stop(c->f.loop);
}

static void *let_go_later(void *userdata) {
    hold *h = userdata;
    test_sleep_ms(100); /* by now the loop sleeps */
    for (unsigned i = 0; i < h->count; i++)
        weir_slice_unref(&h->slices[i]);
    return NULL;
}

/* The loop sleeps for a second at most, so that it went on proves nothing: that it was woken does. */
static void a_release_on_another_thread_wakes_the_loop(void **state) {
    static scene c;
    pthread_t thread;
    scene_open(&c, *(bool *)*state);
    for (unsigned i = 0; i < STREAMS; i++) {
        c.s[i].hook = stop_when_all_came;
        c.s[i].userdata = &c;
    }
    uint64_t wakes = test_loop_stats(&c.f).wakes;
    test_ok(pthread_create(&thread, NULL, let_go_later, &c.h));
    test_ok(weir_loop_run(c.f.loop));
    test_ok(pthread_join(thread, NULL));
    assert_true(has_all(&c));
    assert_true(test_loop_stats(&c.f).wakes > wakes);
    scene_close(&c);
}

/* Nobody waits for memory, so nobody need be woken. */
static void a_release_on_another_thread_costs_no_wake_when_nobody_is_parked(void **state) {
    static scene c;
    pthread_t thread;
    (void)state;
    memset(&c, 0, sizeof c);
    pool_of(&c.f, BUFFERS);
    int fds[2];
    test_pair(false, fds);
    c.h.is_on = true;
    c.s[0].hook = hold_data;
    c.s[0].userdata = &c.h;
    scribe_init(&c.s[0], 0);
    scribe_adopt(&c.f, &c.s[0], fds[1], NULL);
    assert_int_equal(peer_send(fds[0], 0, 0, 100), 0);
    RUN_UNTIL(&c.f, c.h.count == 1);
    uint64_t wakes = test_loop_stats(&c.f).wakes;
    test_ok(pthread_create(&thread, NULL, let_go_later, &c.h));
    test_run_for_ms(&c.f, 200);
    test_ok(pthread_join(thread, NULL));
    assert_int_equal(test_loop_stats(&c.f).wakes, wakes);
    close(fds[0]);
    test_close(&c.f);
}

/* ---- in order --------------------------------------------------------------------------------------------- */

/* With one buffer, which is held each time: who waited longest gets it. */
static void parked_streams_go_on_in_the_order_in_which_they_starved(void **state) {
    static scene c;
    memset(&c, 0, sizeof c);
    pool_of(&c.f, 1);
    c.h.is_on = true;
    for (unsigned i = 0; i < STREAMS; i++) {
        int fds[2];
        test_pair(*(bool *)*state, fds);
        c.peers[i] = fds[0];
        c.s[i].hook = hold_data;
        c.s[i].userdata = &c.h;
        scribe_init(&c.s[i], i);
        scribe_adopt(&c.f, &c.s[i], fds[1], NULL);
        scribe_turns(&c.f, 2);
    }
    static const unsigned first[] = { 2, 0, 1 };
    for (unsigned i = 0; i < STREAMS; i++) { /* the first takes the buffer and starves for the next one */
        assert_int_equal(peer_send(c.peers[first[i]], first[i], 0, 3 * BUFFER), 0);
        RUN_UNTIL(&c.f, is_parked(&c, i + 1));
    }
    for (unsigned released = 0; released < 3 * STREAMS; released++) {
        RUN_UNTIL(&c.f, c.h.count == released + 1);
        scribe_turns(&c.f, 5);
        assert_int_equal(c.h.count, released + 1);
        assert_int_equal(c.h.slices[released].size, BUFFER);
        assert_true(is_unchanged(&c.h, released));
        weir_slice_unref(&c.h.slices[released]);
    }
    /* It starved again while C and then A, B were waiting: round and round. */
    assert_string_equal(c.h.order, "CCABCABAB");
    scene_close(&c);
}

/* ---- what may happen to a parked stream --------------------------------------------------------------------- */

static void a_paused_stream_is_not_parked_and_goes_on_after_its_resume(void **state) {
    static scene c;
    scene_open(&c, *(bool *)*state);
    uint64_t before = c.s[1].received;
    test_ok(weir_stream_pause(c.s[1].stream));
    scribe_turns(&c.f, 5);
    assert_true(is_parked(&c, STREAMS - 1));
    let_go(&c.h);
    RUN_UNTIL(&c.f, c.s[0].received == SENT && c.s[2].received == SENT);
    scribe_turns(&c.f, 5);
    assert_int_equal(c.s[1].received, before);
    test_ok(weir_stream_resume(c.s[1].stream));
    RUN_UNTIL(&c.f, has_all(&c));
    scene_close(&c);
}

static void resuming_while_nothing_is_free_parks_again(void **state) {
    static scene c;
    scene_open(&c, *(bool *)*state);
    test_ok(weir_stream_pause(c.s[1].stream));
    scribe_turns(&c.f, 5);
    test_ok(weir_stream_resume(c.s[1].stream));
    RUN_UNTIL(&c.f, is_parked(&c, STREAMS));
    let_go(&c.h);
    RUN_UNTIL(&c.f, has_all(&c));
    scene_close(&c);
}

static void a_parked_stream_can_be_aborted_while_nothing_is_free(void **state) {
    static scene c;
    scene_open(&c, *(bool *)*state);
    test_ok(weir_stream_abort(c.s[1].stream));
    RUN_UNTIL(&c.f, scribe_is_closed(&c.s[1]));
    scribe_expect(&c.s[1], "dc", WEIR_CLOSE_ABORT, 0);
    assert_true(is_parked(&c, STREAMS - 1));
    peer p;
    peer_init(&p, c.peers[1], 0);
    assert_true(peer_is_over(&p));
    assert_int_equal(p.error, ECONNRESET); /* a Unix peer as well: over unread bytes */
    let_go(&c.h);
    RUN_UNTIL(&c.f, c.s[0].received == SENT && c.s[2].received == SENT);
    scene_close(&c);
}

/* It reads on to throw away, which takes a buffer as reading does. */
static void a_parked_stream_that_closes_well_ends_when_buffers_come_back(void **state) {
    static scene c;
    scene_open(&c, *(bool *)*state);
    test_ok(weir_stream_close(c.s[1].stream));
    scribe_turns(&c.f, 5);
    assert_string_equal(c.s[1].events, "d");
    close(c.peers[1]);
    c.peers[1] = -1;
    let_go(&c.h);
    RUN_UNTIL(&c.f, scribe_is_closed(&c.s[1]) && c.s[0].received == SENT && c.s[2].received == SENT);
    scribe_expect(&c.s[1], "dc", WEIR_CLOSE_LOCAL, 0);
    scene_close(&c);
}

static void a_parked_stream_that_closes_well_is_given_up_after_its_linger_timeout(void **state) {
    const weir_stream_options options = { .size = sizeof options, .linger_timeout_ns = 30 * MS };
    static scene c;
    scribe s = { 0 };
    int fds[2];
    scene_open(&c, *(bool *)*state);
    test_pair(*(bool *)*state, fds);
    scribe_init(&s, 9);
    scribe_adopt(&c.f, &s, fds[1], &options);
    assert_int_equal(peer_send(fds[0], 9, 0, 100), 0);
    RUN_UNTIL(&c.f, is_parked(&c, STREAMS + 1));
    test_ok(weir_stream_close(s.stream));
    RUN_UNTIL(&c.f, scribe_is_closed(&s));
    scribe_expect(&s, "c", WEIR_CLOSE_LINGER, -ETIMEDOUT);
    close(fds[0]);
    let_go(&c.h);
    RUN_UNTIL(&c.f, has_all(&c));
    scene_close(&c);
}

static void an_end_reaches_a_parked_stream_behind_its_data(void **state) {
    static scene c;
    scene_open(&c, *(bool *)*state);
    shutdown(c.peers[1], SHUT_WR);
    scribe_turns(&c.f, 5);
    assert_string_equal(c.s[1].events, "d");
    let_go(&c.h);
    RUN_UNTIL(&c.f, has_all(&c) && strchr(c.s[1].events, 'e') != NULL);
    assert_string_equal(c.s[1].events, "de");
    scene_close(&c);
}

static void an_end_alone_finds_no_buffer_and_is_told_all_the_same(void **state) {
    static scene c;
    scribe s = { 0 };
    int fds[2];
    scene_open(&c, *(bool *)*state);
    test_pair(*(bool *)*state, fds);
    scribe_init(&s, 9);
    scribe_adopt(&c.f, &s, fds[1], NULL);
    scribe_turns(&c.f, 5);
    assert_true(is_parked(&c, STREAMS)); /* there is nothing to be read from it, so it does not wait */
    shutdown(fds[0], SHUT_WR);
    scribe_turns(&c.f, 5);
    let_go(&c.h);
    RUN_UNTIL(&c.f, has_all(&c) && strchr(s.events, 'e') != NULL);
    assert_string_equal(s.events, "e");
    close(fds[0]);
    scene_close(&c);
}

static void a_reset_reaches_a_parked_stream_behind_its_data(void **state) {
    static scene c;
    (void)state;
    scene_open(&c, true);
    peer_reset(c.peers[1]);
    c.peers[1] = -1;
    scribe_turns(&c.f, 5);
    let_go(&c.h);
    RUN_UNTIL(&c.f, scribe_is_closed(&c.s[1]) && c.s[0].received == SENT && c.s[2].received == SENT);
    scribe_expect(&c.s[1], "dc", WEIR_CLOSE_ERROR, -ECONNRESET);
    scene_close(&c);
}

/*
 * A multishot receive that was armed to poll first takes the data and goes back to its poll, and that tells of changes
 * only: of an end (Unix) or a reset (TCP) that had been there before the poll was made it never tells. So streams that
 * had found no buffer delivered their data, later, and then hung for ever.
 */
enum { LATE = 100 };

static void late_ones_open(scene *c, scribe *late, bool is_tcp, bool start_first) {
    weir_stream *streams[LATE];
    int fds[2];
    for (unsigned i = 0; i < LATE; i++) {
        test_pair(is_tcp, fds);
        test_ok(weir_stream_adopt(c->f.loop, fds[1], NULL, &streams[i]));
        scribe_init(&late[i], i);
        if (start_first) {
            scribe_start(&late[i], streams[i]);
            scribe_turn(&c->f, 0);
        }
        assert_int_equal(peer_send(fds[0], i, 0, 10), 0);
        if (is_tcp)
            peer_reset(fds[0]);
        else
            close(fds[0]);
        if (!start_first)
            scribe_start(&late[i], streams[i]);
    }
}

static void late_ones_expect(scene *c, scribe *late, bool is_tcp) {
    RUN_UNTIL(&c->f, has_all(c));
    for (unsigned i = 0; i < LATE; i++) {
        RUN_UNTIL(&c->f, strpbrk(late[i].events, "ec") != NULL);
        assert_int_equal(late[i].received, 10);
        assert_int_equal(late[i].wrong, -1);
        assert_string_equal(late[i].events, is_tcp ? "dc" : "de");
    }
}

static void an_end_right_behind_the_data_is_told_to_each_parked_stream(void **state) {
    static scene c;
    static scribe late[LATE];
    scene_open(&c, *(bool *)*state);
    late_ones_open(&c, late, *(bool *)*state, true);
    RUN_UNTIL(&c.f, is_parked(&c, STREAMS + LATE));
    let_go(&c.h);
    late_ones_expect(&c, late, *(bool *)*state);
    scene_close(&c);
}

static void an_end_that_was_there_before_the_start_is_told_to_each_stream(void **state) {
    static scene c;
    static scribe late[LATE];
    scene_open(&c, *(bool *)*state);
    late_ones_open(&c, late, *(bool *)*state, false);
    scribe_turn(&c.f, 0); /* all are under way in the kernel, and not all have been answered */
    let_go(&c.h);
    late_ones_expect(&c, late, *(bool *)*state);
    scene_close(&c);
}

static void a_loop_closes_over_parked_streams_and_held_slices_stay_good(void **state) {
    static scene c;
    scene_open(&c, *(bool *)*state);
    test_ok(weir_loop_close(c.f.loop));
    for (unsigned i = 0; i < STREAMS; i++)
        scribe_expect(&c.s[i], "dc", WEIR_CLOSE_LOOP, 0);
    assert_true(c.h.count > 0);
    let_go(&c.h);
    scene_close(&c);
}

/* ---- who does not read ------------------------------------------------------------------------------------ */

static void echo(scribe *s, char event, const weir_slice *slice) {
    int r = event == 'd' ? weir_stream_write_slice(s->stream, slice) : 0;
    assert_true(r >= 0);
    if (r == WEIR_WRITE_FULL)
        test_ok(weir_stream_pause(s->stream));
    if (event == 'r')
        test_ok(weir_stream_resume(s->stream));
}

static int echoed(test_fixture *f, scribe *s, uint64_t seed, bool is_tcp) {
    int fds[2];
    pair_with_room(is_tcp, 32 << 10, fds);
    if (is_tcp) /* small messages come one by one */
        assert_int_equal(setsockopt(fds[0], IPPROTO_TCP, TCP_NODELAY, &(int){ 1 }, sizeof(int)), 0);
    s->hook = echo;
    scribe_init(s, seed);
    scribe_adopt(f, s, fds[1], NULL);
    return fds[0];
}

/* As much of @size bytes as there is room for now. */
static void say(int fd, uint64_t seed, uint64_t *position, size_t size) {
    uint8_t bytes[1000];
    test_fill(seed, *position, bytes, size);
    ssize_t count = send(fd, bytes, size, MSG_NOSIGNAL | MSG_DONTWAIT);
    assert_true(count >= 0 || errno == EAGAIN);
    *position += count > 0 ? (uint64_t)count : 0;
}

/* Nothing of its echo goes out any more, or it is sent some more to echo. */
static bool is_full(const scribe *still, int silent, uint64_t *filled, unsigned *turns) {
    if (weir_stream_get_queued(still->stream) == 0) {
        say(silent, 1, filled, 1000);
        *turns = 0;
    }
    return ++*turns > 20;
}

/*
 * An echo server, and one client that does not read. Each ten bytes that it sent between the messages of others pinned the
 * buffer that they had filled, behind a queue that never moved: a few hundred bytes of it held the whole budget, far below
 * any mark, and everybody else was parked for as long as it liked.
 */
static void who_does_not_read_and_says_little_starves_nobody(void **state) {
    enum { BUDGET = 64 * BUFFER, PIECE = 4000 };
    const weir_pool_options pool = {
        .size = sizeof pool, .buffer_bytes = BUFFER, .budget_bytes = BUDGET, .window_bytes = 4 * BUFFER
    };
    test_fixture f;
    scribe still = { 0 }, good = { 0 };
    peer p;
    uint64_t filled = 0, sent = 0;
    unsigned turns = 0;
    test_open(&f, NULL, &pool);
    int silent = echoed(&f, &still, 1, *(bool *)*state);
    peer_init(&p, echoed(&f, &good, 2, *(bool *)*state), 2);
    RUN_UNTIL(&f, is_full(&still, silent, &filled, &turns));
    while (sent < 8 * BUDGET) {
        say(silent, 1, &filled, 10);
        scribe_turns(&f, 1);
        assert_int_equal(peer_send(p.fd, 2, sent, PIECE), 0);
        sent += PIECE;
        RUN_UNTIL(&f, (peer_read(&p), p.received == sent));
    }
    RUN_UNTIL(&f, still.received == filled);
    assert_true(weir_stream_get_queued(still.stream) > 0);
    assert_int_equal(p.wrong, -1);
    assert_int_equal(still.wrong, -1);
    close(p.fd);
    peer_init(&p, silent, 1); /* and it has lost nothing */
    RUN_UNTIL(&f, (peer_read(&p), p.received == filled));
    assert_int_equal(p.wrong, -1);
    close(silent);
    test_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        BOTH(a_release_on_the_loops_thread_sets_all_going),
        BOTH(a_release_of_one_buffer_is_enough),
        BOTH(a_release_on_another_thread_wakes_the_loop),
        cmocka_unit_test(a_release_on_another_thread_costs_no_wake_when_nobody_is_parked),
        BOTH(parked_streams_go_on_in_the_order_in_which_they_starved),
        BOTH(a_paused_stream_is_not_parked_and_goes_on_after_its_resume),
        BOTH(resuming_while_nothing_is_free_parks_again),
        BOTH(a_parked_stream_can_be_aborted_while_nothing_is_free),
        BOTH(a_parked_stream_that_closes_well_ends_when_buffers_come_back),
        BOTH(a_parked_stream_that_closes_well_is_given_up_after_its_linger_timeout),
        BOTH(an_end_reaches_a_parked_stream_behind_its_data),
        BOTH(an_end_alone_finds_no_buffer_and_is_told_all_the_same),
        cmocka_unit_test(a_reset_reaches_a_parked_stream_behind_its_data),
        BOTH(an_end_right_behind_the_data_is_told_to_each_parked_stream),
        BOTH(an_end_that_was_there_before_the_start_is_told_to_each_stream),
        BOTH(a_loop_closes_over_parked_streams_and_held_slices_stay_good),
        BOTH(who_does_not_read_and_says_little_starves_nobody),
    };
    return cmocka_run_group_tests_name("exhaustion", tests, first_thread, NULL);
}
