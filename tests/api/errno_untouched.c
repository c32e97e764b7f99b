/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <sys/resource.h>

/* weir never touches errno: not where a call succeeds, not where it fails, not while a loop runs. */

enum { SENTINEL = 4711 };

/* The call's result, if it left errno alone. */
#define untouched(call)                                              \
    (__extension__({                                                 \
        errno = SENTINEL;                                            \
        int untouched_result = (int)(call);                          \
        int untouched_errno = errno;                                 \
        if (untouched_errno != SENTINEL)                             \
            fail_msg("%s: errno became %d", #call, untouched_errno); \
        untouched_result;                                            \
    }))

#define untouched_void(call) ((void)untouched(((void)(call), 0)))

static void nothing(weir_timer *timer, void *userdata) {
    (void)timer, (void)userdata;
}

static void no_event(weir_watch *watch, int events, void *userdata) {
    (void)events;
    assert_int_equal(errno, SENTINEL);
    if (userdata == NULL)
        test_ok(untouched(weir_watch_stop(watch)));
}

static void no_signal(weir_signal *signal, int number, void *userdata) {
    (void)number, (void)userdata;
    assert_int_equal(errno, SENTINEL);
    test_ok(untouched(weir_signal_stop(signal)));
    weir_loop_stop(userdata);
}

static void no_post(weir_loop *loop, void *userdata) {
    (void)loop, (void)userdata;
}

/* ---- calls ------------------------------------------------------------------------------------------- */

static void a_loops_life_leaves_errno_alone(void **state) {
    (void)state;
    for (uint32_t mode = WEIR_BACKEND_AUTO; mode <= WEIR_BACKEND_URING_CLASSIC; mode += 2) {
        weir_loop_options options = { .size = sizeof options, .backend = mode };
        weir_loop_info info = { .size = sizeof info };
        weir_loop_stats stats = { .size = sizeof stats };
        weir_pool_stats pool = { .size = sizeof pool };
        weir_timer *timer;
        weir_loop *loop;
        int r = untouched(weir_loop_new(&options, &loop)); /* the first one also tries the kernel */
        if (mode != WEIR_BACKEND_AUTO && (r == -EPERM || r == -ENOSYS))
            continue; /* io_uring is forbidden here */
        test_ok(r);
        test_ok(untouched(weir_loop_get_info(loop, &info)));
        test_ok(untouched(weir_loop_get_stats(loop, &stats)));
        test_ok(untouched(weir_pool_get_stats(weir_loop_get_pool(loop), &pool)));
        assert_int_equal(untouched(weir_loop_is_idle(loop)), 1);
        assert_int_equal(untouched(weir_loop_is_own_thread(loop)), 1);
        untouched_void(weir_loop_get_now(loop));
        test_ok(untouched(weir_timer_new(loop, nothing, NULL, &timer)));
        test_ok(untouched(weir_timer_start(timer, 1000, 0)));
        test_ok(untouched(weir_loop_post(loop, no_post, NULL)));
        untouched_void(weir_loop_stop(loop));
        test_ok(untouched(weir_loop_run(loop)));
        test_ok(untouched(weir_loop_run(loop)));
        test_ok(untouched(weir_loop_run_once(loop, 1000000)));
        test_ok(untouched(weir_timer_stop(timer)));
        test_ok(untouched(weir_loop_drain(loop, 0)));
        untouched_void(weir_loop_ref(loop));
        test_ok(untouched(weir_loop_close(loop)));
        assert_int_equal(untouched(weir_loop_post(loop, no_post, NULL)), -ESHUTDOWN);
        untouched_void(weir_timer_unref(timer));
        untouched_void(weir_loop_unref(loop));
        untouched_void(weir_loop_unref(loop));
    }
    untouched_void(weir_version());
    untouched_void(weir_error_name(-ENOMEM));
    untouched_void(weir_error_text(-4712));
}

static void slices_leave_errno_alone(void **state) {
    (void)state;
    weir_loop *loop;
    weir_slice a, b, c;
    uint8_t *data;
    test_ok(weir_loop_new(NULL, &loop)); /* with the allocator that the library is built with */
    weir_pool *pool = weir_loop_get_pool(loop);
    test_ok(untouched(weir_slice_new(pool, 1 << 20, &data, &a)));
    test_ok(untouched(weir_slice_sub(&a, 5, 10, &b)));
    test_ok(untouched(weir_slice_keep(&b, &c)));
    untouched_void(weir_slice_unref(&a));
    untouched_void(weir_slice_unref(&b));
    untouched_void(weir_slice_ref(&c, &a));
    untouched_void(weir_slice_unref(&a));
    untouched_void(weir_slice_unref(&c));
    test_ok(untouched(weir_slice_copy(pool, "x", 1, &a)));
    test_ok(untouched(weir_slice_wrap(pool, "x", 1, NULL, NULL, &b)));
    assert_int_equal(untouched(weir_slice_new(pool, SIZE_MAX / 4, &data, &c)), -ENOBUFS);
    assert_int_equal(untouched(weir_slice_sub(&a, 5, 10, &c)), -ERANGE);
    untouched_void(weir_slice_unref(&b));
    test_ok(weir_loop_close(loop));
    weir_loop_unref(loop);
    untouched_void(weir_slice_unref(&a)); /* frees the pool */
}

static void opening_and_failing_to_open_leave_errno_alone(void **state) {
    test_fixture *f = *state;
    const weir_listener_options unlinks = { .size = sizeof unlinks, .flags = WEIR_LISTENER_UNLINK };
    weir_listener *listener, *second;
    weir_stream *stream;
    char address[WEIR_ADDRESS_SIZE], path[WEIR_ADDRESS_SIZE];
    int fds[2];
    snprintf(path, sizeof path, "unix:/tmp/weir-api-%d-errno", (int)getpid());
    test_ok(untouched(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listener)));
    assert_true(untouched(weir_listener_get_address(listener, address, sizeof address)) > 0);
    assert_int_equal(untouched(weir_listener_get_address(listener, address, 1)), -ENOBUFS);
    assert_true(untouched(weir_listener_get_address(listener, address, sizeof address)) > 0);
    assert_int_equal(untouched(weir_listener_open(f->loop, address, NULL, &second)), -EADDRINUSE);
    assert_int_equal(untouched(weir_listener_open(f->loop, "192.0.2.1:0", NULL, &second)), -EADDRNOTAVAIL);
    assert_int_equal(untouched(weir_listener_open(f->loop, "nonsense", NULL, &second)), -EINVAL);
    assert_int_equal(untouched(weir_listener_open(f->loop, "unix:/nonexistent/x", NULL, &second)), -ENOENT);
    assert_true(untouched(weir_listener_open(f->loop, "[fe80::1%nosuchif]:0", NULL, &second)) < 0);
    test_ok(untouched(weir_listener_open(f->loop, path, NULL, &second)));
    test_ok(untouched(weir_listener_close(second)));
    run_turns(f, 3);
    test_ok(untouched(weir_listener_open(f->loop, path, &unlinks, &second))); /* over the stale one */
    test_ok(weir_listener_close(second));
    assert_int_equal(untouched(weir_listener_adopt(f->loop, -1, NULL, &second)), -EBADF);
    assert_int_equal(untouched(weir_listener_adopt(f->loop, 0, NULL, &second)) < 0, 1);

    assert_int_equal(untouched(weir_stream_dial(f->loop, "nonsense", NULL, &stream)), -EINVAL);
    assert_int_equal(untouched(weir_stream_dial(f->loop, "[::1]:x", NULL, &stream)), -EINVAL);
    assert_int_equal(untouched(weir_stream_adopt(f->loop, -1, NULL, &stream)), -EBADF);
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(untouched(weir_stream_adopt(f->loop, fds[0], NULL, &stream)), -ENOTSOCK);
    close(fds[0]);
    close(fds[1]);
    fds[0] = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(untouched(weir_stream_adopt(f->loop, fds[0], NULL, &stream)), -ENOTCONN);
    close(fds[0]);
    test_pair(true, fds);
    test_ok(untouched(weir_stream_adopt(f->loop, fds[0], NULL, &stream)));
    assert_true(untouched(weir_stream_get_peer(stream, address, sizeof address)) > 0);
    test_ok(untouched(weir_stream_detach(stream, &fds[0])));
    close(fds[0]);
    close(fds[1]);
    test_ok(weir_listener_close(listener));
    run_turns(f, 3);
}

/* No descriptor is left while this is asked. */
static void exhausted_descriptors_leave_errno_alone(void **state) {
    test_fixture *f = *state;
    struct rlimit old, none;
    weir_listener *listener;
    weir_stream *stream;
    weir_loop *loop;
    int results[3], errors[3];
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    none = old;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    errno = SENTINEL;
    results[0] = weir_stream_dial(f->loop, "127.0.0.1:1", NULL, &stream);
    errors[0] = errno;
    errno = SENTINEL;
    results[1] = weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listener);
    errors[1] = errno;
    errno = SENTINEL;
    results[2] = weir_loop_new(NULL, &loop);
    errors[2] = errno;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(results[i], -EMFILE);
        assert_int_equal(errors[i], SENTINEL);
    }
}

static void watches_and_signals_leave_errno_alone(void **state) {
    test_fixture *f = *state;
    struct rlimit old, none;
    weir_watch *watch, *lost;
    weir_signal *signal;
    int fds[2];
    test_pair(false, fds);
    test_ok(untouched(weir_watch_new(f->loop, fds[0], no_event, NULL, &watch)));
    test_ok(untouched(weir_watch_start(watch, WEIR_WATCH_WRITE)));
    test_ok(untouched(weir_watch_new(f->loop, 1000000, no_event, f, &lost)));
    test_ok(untouched(weir_watch_start(lost, WEIR_WATCH_READ)));
    test_ok(untouched(weir_loop_run(f->loop)));
    test_ok(untouched(weir_signal_new(f->loop, SIGURG, no_signal, f->loop, &signal)));
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    none = old;
    none.rlim_cur = 0;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &none), 0);
    int r = untouched(weir_signal_start(signal));
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old), 0);
    assert_int_equal(r, -EMFILE);
    test_ok(untouched(weir_signal_start(signal)));
    pthread_kill(pthread_self(), SIGURG);
    while (test_loop_stats(f).signals_started > 0)
        assert_true(untouched(weir_loop_run_once(f->loop, 1000000)) >= 0);
    untouched_void(weir_signal_unref(signal));
    untouched_void(weir_watch_unref(watch));
    untouched_void(weir_watch_unref(lost));
    close(fds[0]);
    close(fds[1]);
}

/* ---- a loop with traffic ----------------------------------------------------------------------------- */

static void see_errno_in_flush(weir_stream *stream, int error, void *userdata) {
    (void)userdata;
    if (errno != SENTINEL)
        fail_msg("errno is %d in a flush that says %d", errno, error);
    test_ok(untouched(weir_stream_uncork(stream)));
}

static void see_errno(witness *w, char event, const weir_slice *slice) {
    if (errno != SENTINEL)
        fail_msg("errno is %d in the callback '%c'", errno, event);
    if (event == 'o') {
        static const uint8_t much[200000];
        const weir_slice rest[] = { { (const uint8_t *)"l", 1, NULL }, { (const uint8_t *)"o", 1, NULL } };
        test_ok(untouched(weir_stream_cork(w->stream)));
        assert_int_equal(untouched(weir_stream_write(w->stream, "hel", 3)), WEIR_WRITE_OK);
        assert_int_equal(untouched(weir_stream_writev(w->stream, rest, 2)), WEIR_WRITE_OK);
        test_ok(untouched(weir_stream_flush(w->stream, see_errno_in_flush, NULL)));
        test_ok(untouched(weir_stream_uncork(w->stream)));
        assert_int_equal(
            untouched(weir_stream_write_external(w->stream, much, sizeof much, lent_release, w->userdata)),
            WEIR_WRITE_OK);
        test_ok(untouched(weir_stream_shutdown(w->stream)));
    } else if (event == 'd') {
        test_ok(untouched(weir_stream_pause(w->stream)));
        test_ok(untouched(weir_stream_resume(w->stream)));
        if (w->userdata == NULL)
            assert_true(untouched(weir_stream_write_slice(w->stream, slice)) >= 0);
    } else if (event == 'e') {
        test_ok(untouched(weir_stream_close(w->stream)));
    }
}

static witness servers[3];
static unsigned served;

static void serve(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)userdata;
    assert_int_equal(errno, SENTINEL);
    memset(&servers[served], 0, sizeof servers[served]);
    servers[served].stream = stream;
    servers[served].hook = see_errno;
    test_ok(untouched(weir_stream_start(stream, &witness_callbacks, &servers[served])));
    if (++served == 3)
        test_ok(untouched(weir_listener_close(listener)));
}

static void do_nothing(int number) {
    (void)number;
}

static pthread_t main_thread;

static void *disturb(void *end) {
    while (!atomic_load((atomic_bool *)end)) {
        pthread_kill(main_thread, SIGUSR1);
        test_sleep_ms(1);
    }
    return NULL;
}

/* Echoes, a refused dial, one that is reset, timers, posts and signals that interrupt the sleep. */
static void a_run_with_traffic_leaves_errno_alone(void **state) {
    test_fixture *f = *state;
    static const weir_listener_callbacks serving = { .size = sizeof serving, .on_accept = serve };
    static witness clients[3], refused, doomed;
    struct sigaction action = { .sa_handler = do_nothing }, old;
    lent lends[3] = { { 0 } };
    char address[WEIR_ADDRESS_SIZE], nobody[WEIR_ADDRESS_SIZE];
    weir_listener *listener;
    weir_timer *timer;
    pthread_t thread;
    atomic_bool end = false;
    served = 0;
    main_thread = pthread_self();
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listener));
    test_ok(weir_listener_start(listener, &serving, NULL));
    assert_true(weir_listener_get_address(listener, address, sizeof address) > 0);
    test_free_address(nobody, sizeof nobody);
    for (int i = 0; i < 3; i++) {
        memset(&clients[i], 0, sizeof clients[i]);
        clients[i].hook = see_errno;
        clients[i].userdata = &lends[i];
        test_ok(untouched(weir_stream_dial(f->loop, address, NULL, &clients[i].stream)));
        test_ok(untouched(weir_stream_start(clients[i].stream, &witness_callbacks, &clients[i])));
    }
    memset(&refused, 0, sizeof refused);
    test_ok(untouched(weir_stream_dial(f->loop, nobody, NULL, &refused.stream)));
    test_ok(untouched(weir_stream_start(refused.stream, &witness_callbacks, &refused)));
    int peer = witness_pair(f, &doomed, true, NULL);
    assert_int_equal(untouched(weir_stream_write(doomed.stream, "x", 1)), WEIR_WRITE_OK);
    peer_reset(peer);
    test_ok(weir_timer_new(f->loop, nothing, NULL, &timer));
    test_ok(weir_timer_start(timer, 30 * 1000 * 1000, 0));
    test_ok(weir_loop_post(f->loop, no_post, NULL));
    assert_int_equal(sigaction(SIGUSR1, &action, &old), 0);
    assert_int_equal(pthread_create(&thread, NULL, disturb, &end), 0);
    test_ok(untouched(weir_loop_run(f->loop)));
    atomic_store(&end, true);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(sigaction(SIGUSR1, &old, NULL), 0);
    assert_int_equal(served, 3);
    for (int i = 0; i < 3; i++) {
        assert_int_equal(clients[i].closes, 1);
        assert_int_equal(clients[i].size, 200005);
        assert_int_equal(lends[i].releases, 1);
    }
    assert_int_equal(refused.error, -ECONNREFUSED);
    assert_int_equal(doomed.error, -ECONNRESET);
    untouched_void(weir_timer_unref(timer));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_loops_life_leaves_errno_alone),
        cmocka_unit_test(slices_leave_errno_alone),
        loop_test(opening_and_failing_to_open_leave_errno_alone),
        loop_test(exhausted_descriptors_leave_errno_alone),
        loop_test(watches_and_signals_leave_errno_alone),
        loop_test(a_run_with_traffic_leaves_errno_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
