/* SPDX-License-Identifier: MIT */
#include <sys/resource.h>

#include "api/witness.h"

/*
 * An application that keeps the beginning of each message by reference until the rest has come pins a buffer with each of
 * them, and when it has them all, nothing comes back by itself. Then the reserve carries on; and when that is spent as
 * well, the application is told, and one thing that it lets go sets everything going again.
 */

enum { MOST = 1000, HALF = 500, MESSAGE = 2 * HALF, PAGE = 4096, PARTS = 8 };

typedef struct connection {
    weir_stream *stream;
    int peer;
    unsigned number, parts;
    weir_slice held[PARTS];
    size_t got;
    bool is_done;
} connection;

typedef struct crowd {
    test_fixture f;
    unsigned count, done, closed;
    connection *last; /* who received last */
    connection each[MOST];
    int levels[64];
    unsigned level_count;
    void (*on_level)(struct crowd *c, int level);
} crowd;

static crowd c;

static void let_go(connection *it) {
    while (it->parts > 0)
        weir_slice_unref(&it->held[--it->parts]);
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)stream;
    connection *it = userdata;
    assert_int_equal(test_differs(it->number, it->got, slice->data, slice->size), -1);
    assert_true(it->parts < PARTS);
    weir_slice_ref(slice, &it->held[it->parts++]);
    it->got += slice->size;
    c.last = it;
    assert_true(it->got <= MESSAGE);
    if (it->got < MESSAGE)
        return;
    it->is_done = true;
    c.done++;
    let_go(it);
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)reason, (void)error;
    connection *it = userdata;
    let_go(it);
    it->stream = NULL;
    c.closed++;
}

static const weir_stream_callbacks callbacks = { .size = sizeof callbacks,
                                                 .on_data = on_data,
                                                 .on_close = on_close };

static void on_pressure(weir_loop *loop, weir_pool *pool, int level, void *userdata) {
    assert_ptr_equal(loop, c.f.loop);
    assert_ptr_equal(userdata, &c);
    weir_pool_stats stats = { .size = sizeof stats };
    test_ok(weir_pool_get_stats(pool, &stats));
    assert_int_equal(stats.level, level);
    assert_int_not_equal(level, c.level_count > 0 ? c.levels[c.level_count - 1] : WEIR_PRESSURE_NONE);
    assert_true(c.level_count < 64);
    c.levels[c.level_count++] = level;
    if (c.on_level != NULL)
        c.on_level(&c, level);
}

/* @count connections over a pool of so many buffers and private blocks. */
static void crowd_open(unsigned count, unsigned buffers, unsigned reserve) {
    const weir_pool_options pool = { .size = sizeof pool,
                                     .budget_bytes = (uint64_t)(buffers + reserve) * PAGE,
                                     .reserve_bytes = (uint64_t)reserve * PAGE,
                                     .buffer_bytes = PAGE,
                                     .window_bytes = buffers / 2 * PAGE };
    memset(&c, 0, sizeof c);
    test_open(&c.f, NULL, &pool);
    test_ok(weir_loop_set_pressure(c.f.loop, on_pressure, &c));
    for (c.count = 0; c.count < count; c.count++) {
        connection *it = &c.each[c.count];
        int fds[2];
        test_pair(false, fds);
        it->number = c.count;
        it->peer = fds[1];
        test_ok(weir_stream_adopt(c.f.loop, fds[0], NULL, &it->stream));
        test_ok(weir_stream_start(it->stream, &callbacks, it));
    }
    run_turns(&c.f, 5);
}

static void crowd_close(void) {
    for (unsigned i = 0; i < c.count; i++)
        if (c.each[i].stream != NULL)
            test_ok(weir_stream_abort(c.each[i].stream));
    c.on_level = NULL;
    run_until(&c.f, c.closed == c.count);
    for (unsigned i = 0; i < c.count; i++)
        close(c.each[i].peer);
    test_close(&c.f);
}

static void send_halves(unsigned which) {
    uint8_t bytes[HALF];
    for (unsigned i = 0; i < c.count; i++) {
        test_fill(i, (uint64_t)which * HALF, bytes, sizeof bytes);
        if (c.each[i].stream != NULL)
            peer_send(c.each[i].peer, bytes, sizeof bytes);
    }
}

static unsigned halves(void) {
    unsigned count = 0;
    for (unsigned i = 0; i < c.count; i++)
        count += c.each[i].got >= HALF;
    return count;
}

static weir_pool_stats look(void) {
    weir_pool_stats stats = test_pool_stats(&c.f);
    assert_true(stats.used_bytes <= stats.budget_bytes);
    assert_true(stats.peak_bytes <= stats.budget_bytes);
    return stats;
}

static void beyond_the_reserve_open(void) {
    crowd_open(MOST, 16, 300);
    send_halves(0);
    run_until(&c.f, look().level == WEIR_PRESSURE_STUCK);
    run_turns(&c.f, 5);
}

/* ---- within the reserve --------------------------------------------------------------------------------- */

static void messages_held_by_halves_complete_within_the_reserve(void **state) {
    (void)state;
    bool was_parked = false;
    crowd_open(MOST, 64, MOST + 8);
    send_halves(0);
    run_until(&c.f, look().level != WEIR_PRESSURE_STUCK && halves() == MOST);
    weir_pool_stats stats = look();
    assert_true(stats.private_bytes > 0);
    assert_int_equal(stats.reserve_bytes, (MOST + 8) * PAGE);
    assert_int_equal(c.done, 0);
    send_halves(1);
    run_until(&c.f, look().used_bytes > 0 && c.done == MOST);
    for (unsigned i = 0; i < c.level_count; i++) {
        was_parked |= c.levels[i] == WEIR_PRESSURE_PARKED;
        assert_int_not_equal(c.levels[i], WEIR_PRESSURE_STUCK);
    }
    assert_true(was_parked);
    run_turns(&c.f, 5);
    stats = look();
    assert_int_equal(stats.private_bytes, 0);
    assert_int_equal(stats.level, WEIR_PRESSURE_NONE);
    assert_int_equal(c.levels[c.level_count - 1], WEIR_PRESSURE_NONE);
    crowd_close();
}

/* ---- beyond it ------------------------------------------------------------------------------------------ */

static void beyond_the_reserve_it_is_stuck_and_sleeps_until_one_is_let_go(void **state) {
    (void)state;
    beyond_the_reserve_open();
    assert_int_equal(c.levels[c.level_count - 1], WEIR_PRESSURE_STUCK);
    send_halves(1);
    run_turns(&c.f, 20);
    unsigned had = halves();
    assert_true(had < MOST);
    weir_pool_stats stats = look();
    assert_true(stats.parked_streams > 0);
    assert_true(stats.budget_bytes - stats.used_bytes < PAGE);
    weir_loop_stats before = test_loop_stats(&c.f);
    test_run_for_ms(&c.f, 300);
    weir_loop_stats after = test_loop_stats(&c.f);
    assert_true(after.enters - before.enters <= 10); /* it does not spin */
    assert_int_equal(halves(), had);
    assert_int_equal(c.levels[c.level_count - 1], WEIR_PRESSURE_STUCK);
    let_go(c.last);
    run_until(&c.f, look().used_bytes > 0 && c.done == MOST);
    run_turns(&c.f, 5);
    assert_int_equal(look().level, WEIR_PRESSURE_NONE);
    assert_int_equal(c.levels[c.level_count - 1], WEIR_PRESSURE_NONE);
    crowd_close();
}

static void *let_go_later(void *userdata) {
    test_sleep_ms(100);
    let_go(userdata);
    return NULL;
}

static void a_release_on_another_thread_wakes_a_loop_that_is_stuck(void **state) {
    (void)state;
    pthread_t thread;
    beyond_the_reserve_open();
    send_halves(1);
    run_turns(&c.f, 20);
    uint64_t wakes = test_loop_stats(&c.f).wakes;
    connection handed = *c.last; /* what is the thread's from now on */
    c.last->parts = 0;
    assert_int_equal(pthread_create(&thread, NULL, let_go_later, &handed), 0);
    int64_t begin = test_now_ns();
    while (test_loop_stats(&c.f).wakes == wakes && test_now_ns() - begin < INT64_C(20000000000))
        assert_true(weir_loop_run_once(c.f.loop, 500000000) >= 0);
    assert_true(test_loop_stats(&c.f).wakes > wakes);
    assert_int_equal(pthread_join(thread, NULL), 0);
    run_until(&c.f, c.done == MOST);
    crowd_close();
}

/* ---- a callback that does something about it ------------------------------------------------------------- */

static void let_one_go(crowd *it, int level) {
    if (level != WEIR_PRESSURE_STUCK)
        return;
    it->on_level = NULL;
    send_halves(1);
    let_go(it->last);
}

static void the_callback_may_let_go(void **state) {
    (void)state;
    crowd_open(MOST, 16, 300);
    c.on_level = let_one_go;
    send_halves(0);
    run_until(&c.f, look().used_bytes > 0 && c.done == MOST);
    assert_null(c.on_level); /* it was called */
    crowd_close();
}

static unsigned halves_when_stuck;

static void close_some(crowd *it, int level) {
    if (level != WEIR_PRESSURE_STUCK)
        return;
    halves_when_stuck = halves();
    for (unsigned i = 0, closed = 0; i < it->count && closed < 200; i++)
        if (it->each[i].stream != NULL && it->each[i].parts > 0) {
            test_ok(weir_stream_abort(it->each[i].stream));
            closed++;
        }
}

static void the_callback_may_close_streams(void **state) {
    (void)state;
    crowd_open(MOST, 16, 300);
    c.on_level = close_some;
    send_halves(0);
    run_until(&c.f, look().used_bytes > 0 && c.closed == 200);
    run_until(&c.f, halves() >= halves_when_stuck + 50); /* what they held is the others' */
    crowd_close();
}

static void unset(crowd *it, int level) {
    (void)level;
    test_ok(weir_loop_set_pressure(it->f.loop, NULL, NULL));
}

static void the_callback_may_unset_itself(void **state) {
    (void)state;
    crowd_open(MOST, 16, 300);
    c.on_level = unset;
    send_halves(0);
    run_until(&c.f, look().level == WEIR_PRESSURE_STUCK);
    let_go(c.last);
    run_turns(&c.f, 10);
    assert_int_equal(c.level_count, 1);
    crowd_close();
}

/* ---- levels --------------------------------------------------------------------------------------------- */

static void use(weir_slice *slice, uint64_t bytes) {
    uint8_t *data;
    test_ok(weir_slice_new(weir_loop_get_pool(c.f.loop), bytes, &data, slice));
}

static void levels_are_told_once_each_and_high_has_two_edges(void **state) {
    (void)state;
    weir_slice most, some, few;
    crowd_open(0, 56, 8);      /* of 64: high above 48, and until 40 */
    if (test_is_epoll(&c.f)) { /* next to no buffers, and blocks alone, which have a share, do not come so far */
        crowd_close();
        skip();
    }
    uint64_t used = look().used_bytes;
    assert_true(used <= 28 * PAGE);
    use(&most, 39 * PAGE - used);
    run_turns(&c.f, 3);
    assert_int_equal(c.level_count, 0);
    use(&some, 8 * PAGE);
    run_turns(&c.f, 3);
    assert_int_equal(c.level_count, 0); /* 47 */
    use(&few, 2 * PAGE);
    assert_int_equal(c.level_count, 0); /* never inside */
    run_turns(&c.f, 3);
    assert_int_equal(c.level_count, 1);
    assert_int_equal(c.levels[0], WEIR_PRESSURE_HIGH);
    for (int i = 0; i < 5; i++) { /* to and fro between the edges: nothing new */
        weir_slice_unref(&few);
        run_turns(&c.f, 3);
        use(&few, 2 * PAGE);
        run_turns(&c.f, 3);
    }
    assert_int_equal(c.level_count, 1);
    weir_slice_unref(&few);
    weir_slice_unref(&some);
    run_turns(&c.f, 3);
    assert_int_equal(c.level_count, 2);
    assert_int_equal(c.levels[1], WEIR_PRESSURE_NONE);
    weir_slice_unref(&most);
    crowd_close();
}

/* ---- options -------------------------------------------------------------------------------------------- */

static int try_reserve(uint64_t budget, uint64_t reserve, uint64_t *ret_reserve) {
    const weir_pool_options pool = {
        .size = sizeof pool, .budget_bytes = budget, .reserve_bytes = reserve, .buffer_bytes = 16 * PAGE
    };
    const weir_loop_options options = { .size = sizeof options, .pool = &pool };
    weir_loop *loop = NULL;
    int r = weir_loop_new(&options, &loop);
    if (r < 0)
        return r;
    weir_pool_stats stats = { .size = sizeof stats };
    test_ok(weir_pool_get_stats(weir_loop_get_pool(loop), &stats));
    *ret_reserve = stats.reserve_bytes;
    assert_int_equal(stats.level, WEIR_PRESSURE_NONE);
    test_ok(weir_loop_close(loop));
    weir_loop_unref(loop);
    return 0;
}

static void reserve_is_an_option(void **state) {
    (void)state;
    const uint64_t buffer = 16 * PAGE;
    uint64_t reserve = 1;
    test_ok(try_reserve(16 * buffer, 0, &reserve));
    assert_int_equal(reserve, 2 * buffer);
    test_ok(try_reserve(15 * buffer, 0, &reserve));
    assert_int_equal(reserve, 0);
    test_ok(try_reserve(4 * buffer, buffer, &reserve));
    assert_int_equal(reserve, buffer);
    test_ok(try_reserve(4 * buffer, 3 * buffer, &reserve));
    assert_int_equal(try_reserve(4 * buffer, 3 * buffer + 1, &reserve), -EINVAL);
    assert_int_equal(try_reserve(4 * buffer, UINT64_MAX, &reserve), -EINVAL);
}

static int allow_descriptors(void **state) {
    (void)state;
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
        return -1;
    limit.rlim_cur = limit.rlim_max < 4096 ? limit.rlim_max : 4096;
    return setrlimit(RLIMIT_NOFILE, &limit);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(messages_held_by_halves_complete_within_the_reserve),
        cmocka_unit_test(beyond_the_reserve_it_is_stuck_and_sleeps_until_one_is_let_go),
        cmocka_unit_test(a_release_on_another_thread_wakes_a_loop_that_is_stuck),
        cmocka_unit_test(the_callback_may_let_go),
        cmocka_unit_test(the_callback_may_close_streams),
        cmocka_unit_test(the_callback_may_unset_itself),
        cmocka_unit_test(levels_are_told_once_each_and_high_has_two_edges),
        cmocka_unit_test(reserve_is_an_option),
    };
    return cmocka_run_group_tests(tests, allow_descriptors, NULL);
}
