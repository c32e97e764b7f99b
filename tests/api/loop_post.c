/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* Posts: functions from any thread for the loop's. */

static const int64_t ms = 1000000;

/* ---- one thread -------------------------------------------------------------------------------------- */

typedef struct post_log {
    unsigned count;
    int order[16];
    uint64_t turns[16];
    weir_loop *loop;
} post_log;

static post_log seen;

static uint64_t turn_of(weir_loop *loop) {
    weir_loop_stats stats = { .size = sizeof stats };
    test_ok(weir_loop_get_stats(loop, &stats));
    return stats.turns;
}

static void note_post(weir_loop *loop, void *userdata) {
    assert_ptr_equal(loop, seen.loop);
    seen.turns[seen.count] = turn_of(loop);
    seen.order[seen.count++] = (int)(intptr_t)userdata;
}

static void begin(test_fixture *f) {
    seen = (post_log){ .loop = f->loop };
}

static void post(test_fixture *f, int number) {
    test_ok(weir_loop_post(f->loop, note_post, (void *)(intptr_t)number));
}

static void posts_of_a_thread_run_in_their_order(void **state) {
    test_fixture *f = *state;
    begin(f);
    for (int i = 0; i < 10; i++)
        post(f, i);
    assert_int_equal(seen.count, 0); /* never inside */
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(seen.count, 10);
    for (int i = 0; i < 10; i++)
        assert_int_equal(seen.order[i], i);
    assert_int_equal(test_loop_stats(f).posts, 10);
}

/* ---- from callbacks: never inside -------------------------------------------------------------------- */

static uint64_t posted_in_turn;

static void post_in_post(weir_loop *loop, void *userdata) {
    posted_in_turn = turn_of(loop);
    test_ok(weir_loop_post(loop, note_post, userdata));
    assert_int_equal(seen.count, 0); /* not inside */
}

static void post_in_timer(weir_timer *timer, void *userdata) {
    (void)timer;
    post_in_post(userdata, NULL);
}

static void post_in_stream(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'd')
        post_in_post(weir_stream_get_loop(w->stream), NULL);
}

static void a_post_of_a_post_runs_in_the_next_turn(void **state) {
    test_fixture *f = *state;
    begin(f);
    test_ok(weir_loop_post(f->loop, post_in_post, NULL));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(seen.count, 1);
    assert_int_equal(seen.turns[0], posted_in_turn + 1);
}

static void a_post_of_a_timer_runs_later(void **state) {
    test_fixture *f = *state;
    weir_timer *timer;
    begin(f);
    test_ok(weir_timer_new(f->loop, post_in_timer, f->loop, &timer));
    test_ok(weir_timer_start(timer, 0, 0));
    test_ok(weir_loop_run(f->loop));
    weir_timer_unref(timer);
    assert_int_equal(seen.count, 1);
    assert_true(seen.turns[0] <= posted_in_turn + 1);
}

static void a_post_of_a_data_callback_runs_later(void **state) {
    test_fixture *f = *state;
    static witness w;
    begin(f);
    int peer = witness_pair(f, &w, false, NULL);
    w.hook = post_in_stream;
    peer_send(peer, "x", 1);
    run_until(f, seen.count == 1);
    close(peer);
    assert_true(seen.turns[0] <= posted_in_turn + 1);
}

/* A post that posts itself again lets the rest of the loop live. */
static unsigned rounds;

static void post_again(weir_loop *loop, void *userdata) {
    if (rounds++ < 100)
        test_ok(weir_loop_post(loop, post_again, userdata));
}

static void endless_posts_do_not_starve_streams(void **state) {
    test_fixture *f = *state;
    static witness w;
    rounds = 0;
    int peer = witness_pair(f, &w, false, NULL);
    run_turns(f, 2);
    peer_send(peer, "x", 1);
    test_ok(weir_loop_post(f->loop, post_again, NULL));
    while (w.size == 0)
        run_turns(f, 1);
    assert_true(rounds < 50);
    run_until(f, rounds > 100);
    close(peer);
}

/* ---- many threads ------------------------------------------------------------------------------------ */

enum { THREADS = 4, POSTS = 5000 };

typedef struct poster {
    weir_loop *loop; /* a reference */
    pthread_t thread;
    unsigned next; /* the number that is to come */
    unsigned wrong;
} poster;

typedef struct parcel {
    poster *from;
    unsigned number;
} parcel;

static unsigned received;

static void receive_parcel(weir_loop *loop, void *userdata) {
    parcel *it = userdata;
    it->from->wrong += it->number != it->from->next;
    it->from->next = it->number + 1;
    received++;
    free(it);
    if (received == THREADS * POSTS)
        weir_loop_stop(loop);
}

static void *send_parcels(void *userdata) {
    poster *self = userdata;
    for (unsigned i = 0; i < POSTS; i++) {
        parcel *it = malloc(sizeof *it);
        *it = (parcel){ .from = self, .number = i };
        if (weir_loop_post(self->loop, receive_parcel, it) != 0)
            abort();
        if (i % 512 == 0)
            test_sleep_ms(1); /* so that the loop sleeps now and then */
    }
    weir_loop_unref(self->loop);
    return NULL;
}

static void posts_of_many_threads_arrive_once_and_in_order(void **state) {
    (void)state;
    test_fixture f;
    static poster posters[THREADS];
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    test_open_options(&f, NULL, &options);
    received = 0;
    for (int i = 0; i < THREADS; i++) {
        posters[i] = (poster){ .loop = weir_loop_ref(f.loop) };
        assert_int_equal(pthread_create(&posters[i].thread, NULL, send_parcels, &posters[i]), 0);
    }
    test_ok(weir_loop_run(f.loop));
    for (int i = 0; i < THREADS; i++) {
        assert_int_equal(pthread_join(posters[i].thread, NULL), 0);
        assert_int_equal(posters[i].next, POSTS);
        assert_int_equal(posters[i].wrong, 0);
    }
    assert_int_equal(test_loop_stats(&f).posts, THREADS * POSTS);
    test_close(&f);
}

/* ---- waking ------------------------------------------------------------------------------------------ */

static void *post_to_a_sleeper(void *loop) {
    test_sleep_ms(50);
    if (weir_loop_post(loop, note_post, NULL) != 0)
        abort();
    return NULL;
}

static void a_post_wakes_a_sleeping_loop_and_only_that(void **state) {
    test_fixture *f = *state;
    static witness w;
    pthread_t thread;
    begin(f);
    int peer = witness_pair(f, &w, false, NULL);
    run_turns(f, 3);
    post(f, 1);
    run_turns(f, 1);
    assert_int_equal(test_loop_stats(f).wakes, 0); /* it was awake */
    int64_t start = test_now_ns();
    assert_int_equal(pthread_create(&thread, NULL, post_to_a_sleeper, f->loop), 0);
    while (seen.count < 2)
        assert_int_equal(weir_loop_run_once(f->loop, WEIR_NEVER), 1);
    assert_true(test_now_ns() - start < 900 * ms); /* not by the loop's own second */
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(test_loop_stats(f).wakes, 1);
    close(peer);
}

/* ---- the loop's end ---------------------------------------------------------------------------------- */

static int answer_while_closing;

static void post_while_closing(weir_loop *loop, void *userdata) {
    note_post(loop, userdata);
    answer_while_closing = weir_loop_post(loop, note_post, userdata);
}

static void posts_taken_before_close_run_inside_it(void **state) {
    test_fixture *f = *state;
    begin(f);
    post(f, 1);
    test_ok(weir_loop_post(f->loop, post_while_closing, (void *)(intptr_t)2));
    post(f, 3);
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(seen.count, 3);
    assert_int_equal(seen.order[0], 1);
    assert_int_equal(seen.order[1], 2);
    assert_int_equal(seen.order[2], 3);
    assert_int_equal(answer_while_closing, -ESHUTDOWN); /* refused, and so it never ran */
}

static void posts_are_refused_after_close(void **state) {
    test_fixture *f = *state;
    begin(f);
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(weir_loop_post(f->loop, note_post, NULL), -ESHUTDOWN);
    assert_int_equal(seen.count, 0);
}

typedef struct racer {
    weir_loop *loop;
    unsigned accepted;
    atomic_uint ran;
    atomic_bool started;
} racer;

static void count_run(weir_loop *loop, void *userdata) {
    (void)loop;
    atomic_fetch_add(&((racer *)userdata)->ran, 1);
}

static void *post_until_refused(void *userdata) {
    racer *it = userdata;
    int r;
    while ((r = weir_loop_post(it->loop, count_run, it)) == 0) {
        it->accepted++;
        atomic_store(&it->started, true);
    }
    if (r != -ESHUTDOWN)
        abort();
    return NULL;
}

/* 0 is a promise that the function runs, whatever another thread does to the loop meanwhile. */
static void every_post_that_was_taken_runs_although_the_loop_closes_meanwhile(void **state) {
    (void)state;
    for (int round = 0; round < 20; round++) {
        test_fixture f;
        racer it = { 0 };
        pthread_t thread;
        test_open(&f, NULL, NULL);
        it.loop = f.loop;
        assert_int_equal(pthread_create(&thread, NULL, post_until_refused, &it), 0);
        while (!atomic_load(&it.started))
            assert_true(weir_loop_run_once(f.loop, 0) >= 0);
        test_ok(weir_loop_close(f.loop));
        assert_int_equal(pthread_join(thread, NULL), 0);
        assert_int_equal(atomic_load(&it.ran), it.accepted);
        test_close(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(posts_of_a_thread_run_in_their_order),
        loop_test(a_post_of_a_post_runs_in_the_next_turn),
        loop_test(a_post_of_a_timer_runs_later),
        loop_test(a_post_of_a_data_callback_runs_later),
        loop_test(endless_posts_do_not_starve_streams),
        cmocka_unit_test(posts_of_many_threads_arrive_once_and_in_order),
        loop_test(a_post_wakes_a_sleeping_loop_and_only_that),
        loop_test(posts_taken_before_close_run_inside_it),
        loop_test(posts_are_refused_after_close),
        cmocka_unit_test(every_post_that_was_taken_runs_although_the_loop_closes_meanwhile),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
