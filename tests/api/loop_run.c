/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <signal.h>
#include <sys/mman.h>
#include <malloc.h>

/* Running a loop: when run and run_once return, stop from everywhere, close. */

static const int64_t ms = 1000000;

static void count_post(weir_loop *loop, void *userdata) {
    (void)loop;
    ++*(unsigned *)userdata;
}

static void count_timer(weir_timer *timer, void *userdata) {
    (void)timer;
    ++*(unsigned *)userdata;
}

/* ---- when run returns -------------------------------------------------------------------------------- */

static void run_returns_when_nothing_is_open(void **state) {
    test_fixture *f = *state;
    test_ok(weir_loop_run(f->loop));
    test_ok(weir_loop_run(f->loop)); /* and again */
}

static void run_goes_on_until_the_last_stream_is_closed(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    assert_int_equal(weir_loop_is_idle(f->loop), 0);
    close(peer);
    test_ok(weir_stream_close(w.stream));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(w.closes, 1);
    assert_int_equal(weir_loop_is_idle(f->loop), 1);
}

static void close_the_listener(weir_timer *timer, void *userdata) {
    (void)timer;
    test_ok(weir_listener_close(userdata));
}

static void run_goes_on_until_the_last_listener_is_closed(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    weir_timer *timer;
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    test_ok(weir_timer_new(f->loop, close_the_listener, gate.listener, &timer));
    test_ok(weir_timer_start(timer, 10 * ms, 0));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(gate.closes, 1);
    assert_int_equal(gate.error, 0);
    weir_timer_unref(timer);
}

static void run_goes_on_until_the_last_timer_has_fired(void **state) {
    test_fixture *f = *state;
    weir_timer *timer;
    unsigned fired = 0;
    test_ok(weir_timer_new(f->loop, count_timer, &fired, &timer));
    test_ok(weir_loop_run(f->loop)); /* one that is not started keeps nothing going */
    test_ok(weir_timer_start(timer, 20 * ms, 0));
    assert_int_equal(weir_loop_is_idle(f->loop), 0);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(fired, 1);
    weir_timer_unref(timer);
}

static void run_runs_posts_before_it_returns(void **state) {
    test_fixture *f = *state;
    unsigned ran = 0;
    test_ok(weir_loop_post(f->loop, count_post, &ran));
    assert_int_equal(weir_loop_is_idle(f->loop), 0);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(ran, 1);
}

static void an_unstarted_stream_keeps_run_going(void **state) {
    test_fixture *f = *state;
    weir_stream *stream;
    int fds[2];
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &stream));
    assert_int_equal(weir_loop_run_once(f->loop, 0), 1);
    close(fds[1]); /* or it would linger */
    test_ok(weir_stream_close(stream));
    test_ok(weir_loop_run(f->loop));
}

/* Once run slept for its longest time, a second, after the last of it had been closed: what was closed outside of
 * callbacks was settled at the beginning of the turn, and nothing looked whether there was still a reason to sleep. */
static void run_returns_at_once_when_the_last_of_it_is_closed(void **state) {
    test_fixture *f = *state;
    weir_listener *listener;
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listener));
    test_ok(weir_listener_close(listener));
    int64_t start = test_now_ns();
    test_ok(weir_loop_run(f->loop));
    assert_true(test_now_ns() - start < 900 * ms);
}

/* The same of run_once, which slept for all of its timeout. */
static void run_once_returns_at_once_when_the_last_of_it_is_closed(void **state) {
    test_fixture *f = *state;
    weir_listener *listener;
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listener));
    test_ok(weir_listener_close(listener));
    int64_t start = test_now_ns();
    assert_int_equal(weir_loop_run_once(f->loop, 900 * ms), 0);
    assert_true(test_now_ns() - start < 800 * ms);
}

/* And of a loop that drains, which returns whatever timers are left. */
static void run_of_a_draining_loop_returns_at_once_when_the_last_of_it_is_closed(void **state) {
    test_fixture *f = *state;
    weir_listener *listener;
    weir_timer *timer;
    unsigned fired = 0;
    test_ok(weir_timer_new(f->loop, count_timer, &fired, &timer));
    test_ok(weir_timer_start(timer, 3600 * 1000 * ms, 0));
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listener));
    test_ok(weir_loop_drain(f->loop, WEIR_NEVER)); /* closes it */
    int64_t start = test_now_ns();
    test_ok(weir_loop_run(f->loop));
    assert_true(test_now_ns() - start < 900 * ms);
    weir_timer_unref(timer);
}

/* ---- stop -------------------------------------------------------------------------------------------- */

static void *stop_soon(void *loop) {
    test_sleep_ms(30);
    weir_loop_stop(loop);
    return NULL;
}

static void keep_running_runs_until_stopped_from_another_thread(void **state) {
    (void)state;
    test_fixture fixture;
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    pthread_t thread;
    test_open_options(&fixture, NULL, &options);
    int64_t start = test_now_ns();
    assert_int_equal(pthread_create(&thread, NULL, stop_soon, fixture.loop), 0);
    test_ok(weir_loop_run(fixture.loop));
    assert_true(test_now_ns() - start >= 25 * ms);
    assert_int_equal(pthread_join(thread, NULL), 0);
    test_close(&fixture);
}

static void stop_before_run_makes_it_return_at_once(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    weir_loop_stop(f->loop);
    test_ok(weir_loop_run(f->loop)); /* would wait for the stream for ever */
    weir_loop_stop(f->loop);
    weir_loop_stop(f->loop); /* twice is once */
    assert_int_equal(weir_loop_run_once(f->loop, WEIR_NEVER), 1);
    int64_t start = test_now_ns();
    assert_int_equal(weir_loop_run_once(f->loop, 20 * ms), 1); /* and it is used up */
    assert_true(test_now_ns() - start >= 15 * ms);
    close(peer);
}

static void stop_in_post(weir_loop *loop, void *userdata) {
    ++*(unsigned *)userdata;
    weir_loop_stop(loop);
}

static void stop_in_a_callback_ends_run_after_the_turn(void **state) {
    test_fixture *f = *state;
    static witness w;
    unsigned ran = 0, others = 0;
    int peer = witness_pair(f, &w, false, NULL);
    test_ok(weir_loop_post(f->loop, stop_in_post, &ran));
    test_ok(weir_loop_post(f->loop, count_post, &others)); /* of the same turn: it still runs */
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(ran, 1);
    assert_int_equal(others, 1);
    assert_non_null(w.stream);
    close(peer);
}

static weir_loop *loop_of_signal;

static void stop_on_signal(int number) {
    (void)number;
    weir_loop_stop(loop_of_signal);
}

static void *signal_soon(void *thread) {
    test_sleep_ms(30);
    pthread_kill(*(pthread_t *)thread, SIGUSR1);
    return NULL;
}

static void raise_in_post(weir_loop *loop, void *userdata) {
    (void)loop, (void)userdata;
    raise(SIGUSR1);
}

static void stop_works_in_a_signal_handler(void **state) {
    test_fixture *f = *state;
    static witness w;
    pthread_t thread, self = pthread_self();
    struct sigaction action = { .sa_handler = stop_on_signal }, old;
    int peer = witness_pair(f, &w, false, NULL);
    loop_of_signal = f->loop;
    assert_int_equal(sigaction(SIGUSR1, &action, &old), 0);
    test_ok(weir_loop_post(f->loop, raise_in_post, NULL));
    test_ok(weir_loop_run(f->loop));
    /* And while it sleeps. */
    assert_int_equal(pthread_create(&thread, NULL, signal_soon, &self), 0);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(sigaction(SIGUSR1, &old, NULL), 0);
    close(peer);
}

/* ---- run_once ---------------------------------------------------------------------------------------- */

static void run_once_sleeps_for_at_most_its_timeout(void **state) {
    test_fixture *f = *state;
    static witness w;
    int peer = witness_pair(f, &w, false, NULL);
    run_turns(f, 3);
    uint64_t turns = test_loop_stats(f).turns;
    int64_t start = test_now_ns();
    assert_int_equal(weir_loop_run_once(f->loop, 50 * ms), 1);
    int64_t took = test_now_ns() - start;
    assert_true(took >= 45 * ms && took < 10000 * ms);
    assert_true(test_loop_stats(f).turns - turns < 10); /* asleep, not going round */
    start = test_now_ns();
    assert_int_equal(weir_loop_run_once(f->loop, 0), 1);
    assert_true(test_now_ns() - start < 40 * ms);
    close(peer);
}

static void *write_soon(void *fd) {
    test_sleep_ms(30);
    assert_int_equal(send(*(int *)fd, "x", 1, 0), 1);
    return NULL;
}

static void run_once_without_a_timeout_waits_for_something_to_happen(void **state) {
    test_fixture *f = *state;
    static witness w;
    pthread_t thread;
    int peer = witness_pair(f, &w, false, NULL);
    run_turns(f, 3);
    assert_int_equal(pthread_create(&thread, NULL, write_soon, &peer), 0);
    while (w.size == 0)
        assert_int_equal(weir_loop_run_once(f->loop, WEIR_NEVER), 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    close(peer);
}

static void run_once_says_whether_something_is_open(void **state) {
    test_fixture *f = *state;
    weir_timer *timer;
    unsigned fired = 0;
    assert_int_equal(weir_loop_run_once(f->loop, 0), 0);
    test_ok(weir_timer_new(f->loop, count_timer, &fired, &timer));
    assert_int_equal(weir_loop_run_once(f->loop, 0), 0);
    test_ok(weir_timer_start(timer, 3600 * 1000 * ms, 0));
    assert_int_equal(weir_loop_run_once(f->loop, 0), 1);
    test_ok(weir_timer_stop(timer));
    assert_int_equal(weir_loop_run_once(f->loop, 0), 0);
    weir_timer_unref(timer);
}

static void *stop_late(void *loop) {
    test_sleep_ms(1500);
    weir_loop_stop(loop);
    return NULL;
}

/* Once run_once(WEIR_NEVER) never returned on a loop where nothing was open: it turned until something happened, and
 * nothing could. Its header promises a turn, and to say whether something is open. */
static void run_once_without_a_timeout_returns_when_nothing_is_open(void **state) {
    test_fixture *f = *state;
    pthread_t thread;
    weir_timer *timer;
    unsigned count = 0;
    assert_int_equal(pthread_create(&thread, NULL, stop_late, f->loop), 0); /* or the test would hang */
    int64_t start = test_now_ns();
    assert_int_equal(weir_loop_run_once(f->loop, WEIR_NEVER), 0);
    assert_true(test_now_ns() - start < 1200 * ms);
    test_ok(weir_timer_new(f->loop, count_timer, &count, &timer)); /* not started: as if it were not there */
    assert_int_equal(weir_loop_run_once(f->loop, WEIR_NEVER), 0);
    weir_timer_unref(timer);
    test_ok(weir_loop_post(f->loop, count_post, &count)); /* that is something */
    assert_int_equal(weir_loop_run_once(f->loop, WEIR_NEVER), 0);
    assert_int_equal(count, 1);
    assert_int_equal(weir_loop_run_once(f->loop, WEIR_NEVER), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
}

/* A finite timeout is slept for, and a loop that is to keep running waits: another thread may post. */
static void run_once_waits_for_other_threads_when_it_is_asked_to(void **state) {
    test_fixture *f = *state;
    test_fixture keeps;
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    pthread_t thread;
    int64_t start = test_now_ns();
    assert_int_equal(weir_loop_run_once(f->loop, 30 * ms), 0);
    assert_true(test_now_ns() - start >= 25 * ms);
    test_open_options(&keeps, NULL, &options);
    start = test_now_ns();
    assert_int_equal(pthread_create(&thread, NULL, stop_soon, keeps.loop), 0);
    assert_int_equal(weir_loop_run_once(keeps.loop, WEIR_NEVER), 0);
    assert_true(test_now_ns() - start >= 25 * ms);
    assert_int_equal(pthread_join(thread, NULL), 0);
    test_close(&keeps);
}

static void run_once_wakes_for_a_timer(void **state) {
    test_fixture *f = *state;
    weir_timer *timer;
    unsigned fired = 0;
    test_ok(weir_timer_new(f->loop, count_timer, &fired, &timer));
    test_ok(weir_timer_start(timer, 20 * ms, 0));
    assert_int_equal(weir_loop_run_once(f->loop, 20000 * ms), 0);
    assert_int_equal(fired, 1);
    weir_timer_unref(timer);
}

/* ---- close ------------------------------------------------------------------------------------------- */

static int in_callback[3];

static void run_inside(weir_loop *loop, void *userdata) {
    (void)userdata;
    in_callback[0] = weir_loop_run(loop);
    in_callback[1] = weir_loop_run_once(loop, 0);
    in_callback[2] = weir_loop_close(loop);
}

static void run_inside_timer(weir_timer *timer, void *userdata) {
    (void)timer;
    run_inside(userdata, NULL);
}

static void run_inside_stream(witness *w, char event, const weir_slice *slice) {
    (void)event, (void)slice;
    run_inside(w->userdata, NULL);
}

#define assert_busy()                                 \
    do {                                              \
        for (int i = 0; i < 3; i++)                   \
            assert_int_equal(in_callback[i], -EBUSY); \
        memset(in_callback, 0, sizeof in_callback);   \
    } while (0)

static void run_and_close_are_refused_in_every_callback(void **state) {
    test_fixture *f = *state;
    static witness w;
    weir_timer *timer;
    test_ok(weir_loop_post(f->loop, run_inside, NULL));
    test_ok(weir_loop_run(f->loop));
    assert_busy();
    test_ok(weir_timer_new(f->loop, run_inside_timer, f->loop, &timer));
    test_ok(weir_timer_start(timer, 0, 0));
    test_ok(weir_loop_run(f->loop));
    assert_busy();
    weir_timer_unref(timer);
    int peer = witness_pair(f, &w, false, NULL);
    w.hook = run_inside_stream;
    w.userdata = f->loop;
    peer_send(peer, "x", 1);
    run_until(f, w.slices == 1);
    assert_busy();
    close(peer);
    run_until(f, w.ends == 1);
    assert_busy();
    test_ok(weir_loop_post(f->loop, run_inside, NULL)); /* and in those that the loop's close calls */
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(w.closes, 1);
    assert_busy();
}

static void close_tells_every_stream_and_listener(void **state) {
    test_fixture *f = *state;
    static witness first, second;
    static witness_gate gate;
    int peers[2] = { witness_pair(f, &first, true, NULL), witness_pair(f, &second, false, NULL) };
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    run_turns(f, 3);
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(first.closes, 1);
    assert_int_equal(first.reason, WEIR_CLOSE_LOOP);
    assert_int_equal(first.error, 0);
    assert_int_equal(second.closes, 1);
    assert_int_equal(second.reason, WEIR_CLOSE_LOOP);
    assert_int_equal(gate.closes, 1);
    test_ok(weir_loop_close(f->loop)); /* again */
    assert_int_equal(first.closes + second.closes + gate.closes, 3);
    close(peers[0]);
    close(peers[1]);
}

static void a_loop_that_never_ran_can_be_closed(void **state) {
    (void)state; /* the teardown does it */
}

static weir_stream *partner;

static void close_the_partner(witness *w, char event, const weir_slice *slice) {
    (void)w, (void)slice;
    if (event == 'c')
        test_ok(weir_stream_close(partner));
}

/*
 * A proxy has a stream that waits, unstarted, for another one, and closes it when the other closes. When the loop closes,
 * the one that waited had ended first, and its owner had not been told: the close used freed memory. (AddressSanitizer
 * sees it.)
 */
static void an_unstarted_stream_is_its_owners_until_the_loop_is_closed(void **state) {
    test_fixture *f = *state;
    static witness w;
    int fds[2];
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &partner));
    int peer = witness_pair(f, &w, false, NULL);
    w.hook = close_the_partner;
    run_turns(f, 2);
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(w.closes, 1);
    close(peer);
    close(fds[1]);
}

static void (*free_really)(void *memory, size_t size, size_t alignment, void *userdata);
static weir_stream *watched[2];
static unsigned watched_frees;

static void free_watching(void *memory, size_t size, size_t alignment, void *userdata) {
    watched_frees += memory == watched[0] || memory == watched[1];
    free_really(memory, size, alignment, userdata);
}

/* What an owner might do who has not been told. */
static void use_the_watched(void) {
    int fd = -1;
    for (int i = 0; i < 2; i++) {
        assert_true(weir_stream_get_state(watched[i]) >= 0);
        assert_int_equal(weir_stream_write(watched[i], "x", 1), -EPIPE);
        test_ok(weir_stream_pause(watched[i]));
        test_ok(weir_stream_resume(watched[i]));
        assert_true(weir_stream_detach(watched[i], &fd) < 0);
    }
    assert_int_equal(watched_frees, 0);
}

static void use_the_watched_at_release(const void *data, size_t size, void *userdata) {
    (void)data, (void)size;
    ++*(unsigned *)userdata;
    use_the_watched();
}

static void use_the_watched_at_close(witness *w, char event, const weir_slice *slice) {
    (void)w, (void)slice;
    if (event != 'c')
        return;
    use_the_watched();
    test_ok(weir_stream_close(watched[0]));
}

/* Nor is there another callback that comes too late for them: the memory goes when the last one is over, and it does go.
 * One of them is closed by its owner in the middle of it, the other has failed long before. */
static void handles_of_unstarted_streams_are_freed_when_the_close_has_called_everybody(void **state) {
    test_fixture *f = *state;
    static witness w[2];
    int fds[2], peers[2];
    unsigned releases = 0;
    char address[WEIR_ADDRESS_SIZE];
    test_free_address(address, sizeof address);
    peers[0] = witness_pair(f, &w[0], true, NULL);
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &watched[0]));
    test_ok(weir_stream_dial(f->loop, address, NULL, &watched[1])); /* refused */
    test_ok(weir_stream_write_external(watched[1], "lent", 4, use_the_watched_at_release, &releases));
    run_turns(f, 5);
    test_ok(weir_stream_write_external(watched[0], "lent", 4, use_the_watched_at_release, &releases));
    peers[1] = witness_pair(f, &w[1], false, NULL);
    w[0].hook = use_the_watched_at_close;
    w[1].hook = use_the_watched_at_close;
    free_really = f->memory.allocator.free;
    f->memory.allocator.free = free_watching;
    watched_frees = 0;
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(w[0].closes + w[1].closes, 2);
    assert_int_equal(releases, 2);
    assert_int_equal(watched_frees, 2);
    f->memory.allocator.free = free_really;
    close(peers[0]);
    close(peers[1]);
    close(fds[1]);
}

/* ---- a loop's memory --------------------------------------------------------------------------------- */

/* An allocator that never asks libc. */
static uint8_t *arena;
static size_t arena_used;
enum { ARENA_BYTES = 256 << 20 };

static void *arena_alloc(size_t size, size_t alignment, void *userdata) {
    (void)userdata;
    size_t start = (arena_used + alignment - 1) & ~(alignment - 1);
    if (size > ARENA_BYTES - start)
        return NULL;
    arena_used = start + size;
    return arena + start;
}

static void arena_free(void *memory, size_t size, size_t alignment, void *userdata) {
    (void)memory, (void)size, (void)alignment, (void)userdata;
}

static const weir_allocator arena_allocator = { .size = sizeof arena_allocator,
                                                .alloc = arena_alloc,
                                                .free = arena_free };

static void echo_back(witness *w, char event, const weir_slice *slice) {
    weir_slice kept, small;
    if (event != 'd')
        return;
    test_ok(weir_slice_keep(slice, &kept));
    test_ok(weir_slice_copy(weir_loop_get_pool(weir_stream_get_loop(w->stream)), "!", 1, &small));
    assert_int_equal(weir_stream_write_slice(w->stream, &kept), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_write_slice(w->stream, &small), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_write(w->stream, "?", 1), WEIR_WRITE_OK);
    weir_slice_unref(&kept);
    weir_slice_unref(&small);
}

static void a_loop_takes_no_memory_from_libc_but_through_its_allocator(void **state) {
    (void)state;
    test_fixture f = { 0 };
    static witness w;
    weir_loop_options options = { .size = sizeof options, .allocator = &arena_allocator };
    weir_timer *timer;
    unsigned count = 0;
    char answer[7];
    size_t before = mallinfo2().uordblks;
    void *volatile probe = malloc(4000);
    bool can_see = mallinfo2().uordblks >= before + 4000;
    free(probe);
    if (!can_see)
        skip(); /* malloc is not glibc's here: a sanitizer's, mimalloc's */
    arena = mmap(NULL, ARENA_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(arena != MAP_FAILED);
    before = mallinfo2().uordblks;
    test_ok(weir_loop_new(&options, &f.loop));
    int peer = witness_pair(&f, &w, true, NULL);
    w.hook = echo_back;
    test_ok(weir_timer_new(f.loop, count_timer, &count, &timer));
    test_ok(weir_timer_start(timer, 0, 0));
    test_ok(weir_loop_post(f.loop, count_post, &count));
    peer_send(peer, "hello", 5);
    run_until(&f, w.size == 5 && count == 2 && weir_stream_get_queued(w.stream) == 0);
    peer_receive(peer, answer, sizeof answer);
    assert_memory_equal(answer, "hello!?", sizeof answer);
    assert_int_equal(mallinfo2().uordblks, before);
    assert_true(arena_used > 10000);
    weir_timer_unref(timer);
    test_ok(weir_loop_close(f.loop));
    weir_loop_unref(f.loop);
    assert_int_equal(mallinfo2().uordblks, before);
    close(peer);
    munmap(arena, ARENA_BYTES);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(run_returns_when_nothing_is_open),
        loop_test(run_goes_on_until_the_last_stream_is_closed),
        loop_test(run_goes_on_until_the_last_listener_is_closed),
        loop_test(run_goes_on_until_the_last_timer_has_fired),
        loop_test(run_runs_posts_before_it_returns),
        loop_test(an_unstarted_stream_keeps_run_going),
        loop_test(run_returns_at_once_when_the_last_of_it_is_closed),
        loop_test(run_once_returns_at_once_when_the_last_of_it_is_closed),
        loop_test(run_of_a_draining_loop_returns_at_once_when_the_last_of_it_is_closed),
        cmocka_unit_test(keep_running_runs_until_stopped_from_another_thread),
        loop_test(stop_before_run_makes_it_return_at_once),
        loop_test(stop_in_a_callback_ends_run_after_the_turn),
        loop_test(stop_works_in_a_signal_handler),
        loop_test(run_once_sleeps_for_at_most_its_timeout),
        loop_test(run_once_without_a_timeout_waits_for_something_to_happen),
        loop_test(run_once_says_whether_something_is_open),
        loop_test(run_once_without_a_timeout_returns_when_nothing_is_open),
        loop_test(run_once_waits_for_other_threads_when_it_is_asked_to),
        loop_test(run_once_wakes_for_a_timer),
        loop_test(run_and_close_are_refused_in_every_callback),
        loop_test(close_tells_every_stream_and_listener),
        loop_test(a_loop_that_never_ran_can_be_closed),
        loop_test(an_unstarted_stream_is_its_owners_until_the_loop_is_closed),
        loop_test(handles_of_unstarted_streams_are_freed_when_the_close_has_called_everybody),
        cmocka_unit_test(a_loop_takes_no_memory_from_libc_but_through_its_allocator),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
