/* SPDX-License-Identifier: MIT */
#include "api/misuse/world.h"

#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>

/* ---- what it counts ---------------------------------------------------------------------------------- */

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)stream, (void)slice;
    ((world *)userdata)->datas++;
}

static void on_end(weir_stream *stream, void *userdata) {
    (void)stream;
    ((world *)userdata)->ends++;
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)reason, (void)error;
    ((world *)userdata)->closes++;
}

const weir_stream_callbacks world_stream_callbacks = {
    .size = sizeof world_stream_callbacks, .on_data = on_data, .on_end = on_end, .on_close = on_close
};

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener;
    ((world *)userdata)->accepts++;
    (void)weir_stream_abort(stream);
}

static void on_listener_close(weir_listener *listener, int error, void *userdata) {
    (void)listener, (void)error;
    ((world *)userdata)->listener_closes++;
}

const weir_listener_callbacks world_listener_callbacks = { .size = sizeof world_listener_callbacks,
                                                           .on_accept = on_accept,
                                                           .on_close = on_listener_close };

void world_count_post(weir_loop *loop, void *userdata) {
    (void)loop;
    ((world *)userdata)->posts++;
}

void world_count_fire(weir_timer *timer, void *userdata) {
    (void)timer;
    ((world *)userdata)->fires++;
}

void world_count_event(weir_watch *watch, int events, void *userdata) {
    (void)watch, (void)events;
    ((world *)userdata)->events++;
}

void world_count_signal(weir_signal *signal, int number, void *userdata) {
    (void)signal, (void)number;
    ((world *)userdata)->signals++;
}

void world_never_release(const void *data, size_t size, void *userdata) {
    (void)data, (void)size, (void)userdata;
    abort();
}

void world_never_flush(weir_stream *stream, int error, void *userdata) {
    (void)stream, (void)error, (void)userdata;
    abort();
}

/* ---- making and ending it ---------------------------------------------------------------------------- */

static void build(world *w) {
    int fds[2];
    test_open(&w->fixture, NULL, NULL);
    w->loop = w->fixture.loop;
    w->pool = weir_loop_get_pool(w->loop);
    test_ok(weir_listener_open(w->loop, "127.0.0.1:0", NULL, &w->listener));
    test_ok(weir_listener_start(w->listener, &world_listener_callbacks, w));
    test_pair(false, fds);
    w->peers[0] = fds[1];
    test_ok(weir_stream_adopt(w->loop, fds[0], NULL, &w->stream));
    test_ok(weir_stream_start(w->stream, &world_stream_callbacks, w));
    test_pair(false, fds);
    w->peers[1] = fds[1];
    test_ok(weir_stream_adopt(w->loop, fds[0], NULL, &w->fresh));
    test_pair(false, fds);
    w->peers[2] = fds[1];
    w->spare = fds[0];
    test_ok(weir_timer_new(w->loop, world_count_fire, w, &w->timer));
    test_ok(weir_watch_new(w->loop, w->spare, world_count_event, w, &w->watch));
    test_ok(weir_signal_new(w->loop, SIGURG, world_count_signal, w, &w->signal));
    test_ok(weir_slice_copy(w->pool, "hello", 5, &w->slice));
    test_ok(weir_chain_new(w->loop, 8, &w->chain));
    test_ok(weir_chain_push(w->chain, &w->slice));
    run_turns(&w->fixture, 3);
}

static unsigned count_calls(const world *w) {
    return w->closes + w->ends + w->datas + w->accepts + w->listener_closes + w->fires + w->posts + w->events +
           w->signals;
}

static bool is_blocked(int number) {
    sigset_t set;
    assert_int_equal(pthread_sigmask(SIG_SETMASK, NULL, &set), 0);
    return sigismember(&set, number) == 1;
}

static void verify_watch_and_signal(world *w) {
    test_ok(weir_watch_start(w->watch, WEIR_WATCH_WRITE));
    run_until(&w->fixture, w->events == 2);
    test_ok(weir_watch_stop(w->watch));
    test_ok(weir_signal_start(w->signal));
    pthread_kill(pthread_self(), SIGURG);
    run_until(&w->fixture, w->signals == 1);
    test_ok(weir_signal_stop(w->signal));
    run_turns(&w->fixture, 2);
    assert_int_equal(w->events, 2);
}

/* The loop's thread: is all as it was, and does it work? */
static void verify(world *w) {
    weir_loop_stats stats = test_loop_stats(&w->fixture);
    int fd;
    assert_int_equal(weir_loop_is_own_thread(w->loop), 1);
    assert_int_equal(stats.streams_open, 2);
    assert_int_equal(stats.streams_unstarted, 1);
    assert_int_equal(stats.listeners_open, 1);
    assert_int_equal(stats.timers_started + stats.watches_started + stats.signals_started, 0);
    assert_false(is_blocked(SIGURG));
    assert_int_equal(stats.bytes_out, 0);
    assert_int_equal(count_calls(w), 0);
    assert_int_equal(weir_stream_get_state(w->stream), WEIR_STREAM_OPEN);
    assert_int_equal(weir_stream_get_queued(w->stream), 0);
    assert_int_equal(weir_stream_get_state(w->fresh), WEIR_STREAM_UNSTARTED);
    assert_int_equal(weir_stream_get_queued(w->fresh), 0);
    peer_send(w->peers[0], "x", 1); /* neither paused nor ended */
    int client = test_connect(w->listener);
    run_until(&w->fixture, w->datas == 1 && w->accepts == 1);
    close(client);
    assert_int_equal(weir_stream_write(w->stream, "y", 1), WEIR_WRITE_OK);
    run_until(&w->fixture, weir_stream_get_queued(w->stream) == 0);
    char byte;
    peer_receive(w->peers[0], &byte, 1);
    assert_int_equal(byte, 'y');
    test_ok(weir_stream_detach(w->fresh, &fd));
    close(fd);
    test_ok(weir_timer_start(w->timer, 0, 0));
    run_until(&w->fixture, w->fires == 1);
    verify_watch_and_signal(w);
    assert_memory_equal(w->slice.data, "hello", 5);
    const weir_slice *shown;
    assert_int_equal(weir_chain_get_size(w->chain), 5);
    test_ok(weir_chain_peek(w->chain, 0, 5, &shown));
    assert_memory_equal(shown->data, "hello", 5);
}

static void end(world *w) {
    weir_slice_unref(&w->slice);
    weir_chain_unref(w->chain);
    weir_timer_unref(w->timer);
    weir_watch_unref(w->watch);
    weir_signal_unref(w->signal);
    for (int i = 0; i < 3; i++)
        close(w->peers[i]);
    close(w->spare);
    test_close(&w->fixture);
}

static void *live_elsewhere(void *userdata) {
    world *w = userdata;
    build(w);
    sem_post(&w->built);
    sem_wait(&w->done);
    verify(w);
    end(w);
    return NULL;
}

static void begin(world *w) {
    bool is_foreign = w->is_foreign;
    memset(w, 0, sizeof *w);
    w->is_foreign = is_foreign;
    if (!is_foreign) {
        build(w);
        return;
    }
    sem_init(&w->built, 0, 0);
    sem_init(&w->done, 0, 0);
    assert_int_equal(pthread_create(&w->thread, NULL, live_elsewhere, w), 0);
    sem_wait(&w->built);
}

static int set_up(void **state, bool is_foreign) {
    static world it;
    it.is_foreign = is_foreign;
    begin(&it);
    *state = &it;
    return 0;
}

int world_setup(void **state) {
    return set_up(state, false);
}

int world_setup_foreign(void **state) {
    return set_up(state, true);
}

int world_setup_closed(void **state) {
    set_up(state, false);
    world *w = *state;
    weir_listener_ref(w->listener);
    weir_stream_ref(w->stream);
    weir_stream_ref(w->fresh);
    test_ok(weir_loop_close(w->loop));
    w->closes = w->listener_closes = 0;
    return 0;
}

int world_teardown(void **state) {
    world *w = *state;
    if (w->is_foreign) {
        sem_post(&w->done);
        assert_int_equal(pthread_join(w->thread, NULL), 0);
        return 0;
    }
    if (weir_stream_get_state(w->stream) != WEIR_STREAM_CLOSED) {
        verify(w);
    } else { /* the loop was closed before the test */
        assert_int_equal(count_calls(w), 0);
        weir_stream_unref(w->stream);
        weir_stream_unref(w->fresh);
        weir_listener_unref(w->listener);
    }
    end(w);
    return 0;
}

/* ---- calls ------------------------------------------------------------------------------------------- */

static outputs pattern;

void world_clear_outputs(world *w) {
    memset(&pattern, 0xC3, sizeof pattern);
    pattern.info.size = sizeof pattern.info; /* in, not out */
    pattern.loop_stats.size = sizeof pattern.loop_stats;
    pattern.pool_stats.size = sizeof pattern.pool_stats;
    pattern.stream_stats.size = sizeof pattern.stream_stats;
    w->out = pattern;
}

void world_look(world *w, const char *call, int64_t result, int64_t expected) {
    if (result != expected)
        fail_msg("%s: %lld (%s), not %lld (%s)", call, (long long)result, weir_error_name((int)result),
                 (long long)expected, weir_error_name((int)expected));
    if (memcmp(&w->out, &pattern, sizeof pattern) != 0)
        fail_msg("%s: failed, and wrote an output", call);
}

#ifdef WEIR_MISUSE_ABORTS

/* The sentence that a child has left, and whether it aborted. */
static void judge(pid_t child, int fd, const char *function, const char *call) {
    char text[1024];
    size_t size = 0;
    ssize_t n;
    int status;
    while (size + 1 < sizeof text && (n = read(fd, text + size, sizeof text - 1 - size)) > 0)
        size += (size_t)n;
    text[size] = '\0';
    close(fd);
    assert_int_equal(waitpid(child, &status, 0), child);
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGABRT)
        fail_msg("%s: did not abort, but said: %s", call, text);
    if (strncmp(text, "weir: ", 6) != 0 || strchr(text, '\n') != text + strlen(text) - 1)
        fail_msg("%s: this is no sentence: %s", call, text);
    /* A bug that is known and not mended: many sentences name a function inside the library, that checks for several. */
    if (getenv("WEIR_TEST_KNOWN_BUGS") != NULL && strstr(text, function) == NULL)
        fail_msg("%s: the sentence does not name %s: %s", call, function, text);
}

bool world_enter(world *w, const char *function, const char *call) {
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child > 0) {
        close(fds[1]);
        judge(child, fds[0], function, call);
        return false;
    }
    dup2(fds[1], STDERR_FILENO);
    close(fds[0]);
    close(fds[1]);
    begin(w); /* a world of its own: the parent's is dead here */
    world_clear_outputs(w);
    return true;
}

void world_leave(world *w, const char *call, int64_t result, int64_t expected) {
    (void)w, (void)expected;
    fprintf(stderr, "%s returned %lld\n", call, (long long)result);
    _exit(1);
}

#else

bool world_enter(world *w, const char *function, const char *call) {
    assert_non_null(strstr(call, function));
    world_clear_outputs(w);
    return true;
}

void world_leave(world *w, const char *call, int64_t result, int64_t expected) {
    world_look(w, call, result, expected);
}

#endif
