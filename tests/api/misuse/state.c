/* SPDX-License-Identifier: MIT */
#include "api/misuse/world.h"

#include <signal.h>

/* Every function at the wrong time: twice, inside callbacks, after the end of its object, after the loop's close. */

/* ---- twice ------------------------------------------------------------------------------------------- */

static void what_was_started_is_not_started_again(void **state) {
    world *w = *state;
    mistake(weir_stream_start, weir_stream_start(w->stream, &world_stream_callbacks, NULL), -EALREADY);
    mistake(weir_listener_start, weir_listener_start(w->listener, &world_listener_callbacks, NULL), -EALREADY);
    refused(weir_stream_detach(w->stream, &w->out.fd), -EALREADY);
    assert_ptr_equal(weir_stream_get_userdata(w->stream), w);
}

static void what_may_be_said_twice(void **state) {
    world *w = *state;
    fine(weir_stream_pause(w->stream), 0);
    fine(weir_stream_pause(w->stream), 0);
    fine(weir_stream_resume(w->stream), 0);
    fine(weir_stream_resume(w->stream), 0);
    fine(weir_listener_pause(w->listener), 0);
    fine(weir_listener_pause(w->listener), 0);
    fine(weir_listener_resume(w->listener), 0);
    fine(weir_listener_resume(w->listener), 0);
    fine(weir_timer_stop(w->timer), 0);
    fine(weir_timer_start(w->timer, INT64_MAX, 0), 0);
    fine(weir_timer_start(w->timer, INT64_MAX, INT64_MAX), 0);
    fine(weir_timer_stop(w->timer), 0);
    fine(weir_timer_stop(w->timer), 0);
    fine(weir_watch_stop(w->watch), 0);
    fine(weir_watch_start(w->watch, WEIR_WATCH_READ), 0);
    fine(weir_watch_start(w->watch, WEIR_WATCH_READ), 0);
    fine(weir_watch_start(w->watch, 0), 0);
    fine(weir_watch_stop(w->watch), 0);
    fine(weir_watch_stop(w->watch), 0);
    fine(weir_signal_stop(w->signal), 0);
    fine(weir_signal_start(w->signal), 0);
    fine(weir_signal_start(w->signal), 0);
    fine(weir_signal_stop(w->signal), 0);
    fine(weir_signal_stop(w->signal), 0);
}

static void what_was_not_asked_for_is_not_given(void **state) {
    world *w = *state;
    mistake(weir_stream_flush, weir_stream_flush(w->fresh, world_never_flush, w), -EINVAL); /* not started */
    mistake(weir_stream_grant, weir_stream_grant(w->stream, 1), -EINVAL);                   /* not metered */
    mistake(weir_stream_grant, weir_stream_grant(w->fresh, UINT64_MAX), -EINVAL);
}

/* Each of these is undone again, the second time as the first. */
static void what_is_undone_leaves_nothing(void **state) {
    world *w = *state;
    for (int i = 0; i < 2; i++) {
        fine(weir_stream_cork(w->stream), 0);
        fine(weir_stream_cork(w->stream), 0);
        fine(weir_stream_uncork(w->stream), 0);
        fine(weir_stream_uncork(w->stream), 0);
        fine(weir_stream_cork(w->fresh), 0);
        fine(weir_stream_uncork(w->fresh), 0);
        fine(weir_loop_set_pressure(w->loop, NULL, w), 0);
        fine(weir_stream_pipe(w->stream, w->fresh), 0);
        refused(weir_stream_pipe(w->stream, w->fresh), -EALREADY);
        refused(weir_stream_pipe_both(w->stream, w->fresh), -EALREADY);
        refused(weir_stream_pipe_both(w->fresh, w->stream),
                -EALREADY); /* and the other half is not piped either */
        refused(weir_stream_unpipe(w->fresh), -EINVAL);
        refused(weir_stream_shutdown(w->fresh), -EBUSY);
        refused(weir_stream_detach(w->fresh, &w->out.fd), -EBUSY);
        fine(weir_stream_unpipe(w->stream), 0);
        refused(weir_stream_unpipe(w->stream), -EINVAL);
        run_turns(&w->fixture, 3);
    }
}

/* ---- on its way -------------------------------------------------------------------------------------- */

static void a_stream_on_its_way_is_not_detached(void **state) {
    world *w = *state;
    weir_stream *stream;
    char address[WEIR_ADDRESS_SIZE];
    fine(weir_listener_get_address(w->listener, address, sizeof address) > 0, 1);
    fine(weir_stream_dial(w->loop, address, NULL, &stream), 0);
    refused(weir_stream_detach(stream, &w->out.fd), -EBUSY);
    refused(weir_stream_get_peer(stream, w->out.text, 100), -ENOTCONN);
    fine(weir_stream_abort(stream), 0);
    run_until(&w->fixture, test_loop_stats(&w->fixture).streams_open == 2);
    w->accepts = 0;
}

/* ---- inside a callback ------------------------------------------------------------------------------- */

static int (*to_nest)(weir_loop *loop);

static int weir_loop_run_once_now(weir_loop *loop) {
    return weir_loop_run_once(loop, 0);
}

static int nested_result;

static void nest(weir_loop *loop, void *userdata) {
    (void)userdata;
    nested_result = to_nest(loop);
}

static int run_with(world *w, int (*call)(weir_loop *loop)) {
    to_nest = call;
    if (weir_loop_post(w->loop, nest, NULL) != 0 || weir_loop_run_once(w->loop, 0) < 0)
        return 1;
    return nested_result;
}

static void the_loop_is_not_run_or_closed_in_its_callbacks(void **state) {
    world *w = *state;
    mistake(weir_loop_run, run_with(w, weir_loop_run), -EBUSY);
    mistake(weir_loop_run_once, run_with(w, weir_loop_run_once_now), -EBUSY);
    mistake(weir_loop_close, run_with(w, weir_loop_close), -EBUSY);
}

/* ---- after an object's end --------------------------------------------------------------------------- */

static void a_closed_stream_takes_nothing_and_says_so(void **state) {
    world *w = *state;
    weir_stream *stream;
    weir_stream_stats stats = { .size = sizeof stats };
    int fds[2];
    test_pair(false, fds);
    fine(weir_stream_adopt(w->loop, fds[0], NULL, &stream), 0);
    weir_stream_ref(stream);
    fine(weir_stream_start(stream, &world_stream_callbacks, w), 0);
    fine(weir_stream_abort(stream), 0);
    for (int closed = 0; closed <= 1; closed++) { /* ending, then ended */
        fine(weir_stream_get_state(stream), closed ? WEIR_STREAM_CLOSED : WEIR_STREAM_CLOSING);
        refused(weir_stream_write(stream, "x", 1), -EPIPE);
        refused(weir_stream_write(stream, "x", 0), -EPIPE);
        refused(weir_stream_write_slice(stream, &w->slice), -EPIPE);
        refused(weir_stream_write_external(stream, "x", 1, world_never_release, w), -EPIPE);
        refused(weir_stream_writev(stream, &w->slice, 1), -EPIPE);
        refused(weir_stream_writev(stream, NULL, 0), -EPIPE);
        refused(weir_stream_flush(stream, world_never_flush, w), -EPIPE);
        refused(weir_stream_shutdown(stream), -EPIPE);
        refused(weir_stream_pipe(stream, w->stream), -EPIPE);
        refused(weir_stream_pipe(w->stream, stream), -EPIPE);
        refused(weir_stream_pipe_both(stream, w->stream), -EPIPE);
        refused(weir_stream_pipe_both(w->stream, stream), -EPIPE);
        refused(weir_stream_unpipe(stream), -EINVAL);
        refused(weir_stream_detach(stream, &w->out.fd), -EALREADY);
        fine(weir_stream_cork(stream), 0);
        fine(weir_stream_uncork(stream), 0);
        fine(weir_stream_pause(stream), 0);
        fine(weir_stream_resume(stream), 0);
        fine(weir_stream_close(stream), 0);
        fine(weir_stream_abort(stream), 0);
        fine(weir_stream_get_queued(stream), 0);
        fine(weir_stream_get_stats(stream, &stats), 0);
        run_until(&w->fixture, w->closes == 1);
    }
    mistake(weir_stream_start, weir_stream_start(w->stream, &world_stream_callbacks, w), -EALREADY);
    refused(weir_stream_get_fd(stream), -EBADF);
    refused(weir_stream_get_local(stream, w->out.text, 100), -EBADF);
    refused(weir_stream_get_peer(stream, w->out.text, 100), -EBADF);
    w->closes = 0;
    weir_stream_unref(stream);
    close(fds[1]);
}

static void a_stream_that_is_shut_down_writes_nothing_more(void **state) {
    world *w = *state;
    weir_stream *stream;
    int fds[2];
    test_pair(false, fds);
    fine(weir_stream_adopt(w->loop, fds[0], NULL, &stream), 0);
    fine(weir_stream_shutdown(stream), 0);
    fine(weir_stream_shutdown(stream), 0);
    refused(weir_stream_write(stream, "x", 1), -EPIPE);
    refused(weir_stream_write_slice(stream, &w->slice), -EPIPE);
    refused(weir_stream_write_external(stream, "x", 1, world_never_release, w), -EPIPE);
    refused(weir_stream_writev(stream, &w->slice, 1), -EPIPE);
    refused(weir_stream_pipe(w->stream, stream), -EPIPE);
    fine(weir_stream_abort(stream), 0);
    run_until(&w->fixture, test_loop_stats(&w->fixture).streams_open == 2);
    close(fds[1]);
}

static void a_closed_listener_does_nothing_more(void **state) {
    world *w = *state;
    weir_listener *listener;
    fine(weir_listener_open(w->loop, "127.0.0.1:0", NULL, &listener), 0);
    weir_listener_ref(listener);
    fine(weir_listener_close(listener), 0);
    refused(weir_listener_start(listener, &world_listener_callbacks, w), -ESHUTDOWN);
    run_turns(&w->fixture, 3);
    refused(weir_listener_start(listener, &world_listener_callbacks, w), -ESHUTDOWN);
    refused(weir_listener_get_address(listener, w->out.text, 100), -EBADF);
    fine(weir_listener_close(listener), 0);
    fine(weir_listener_pause(listener), 0);
    fine(weir_listener_resume(listener), 0);
    assert_ptr_equal(weir_listener_get_loop(listener), w->loop);
    weir_listener_unref(listener);
}

/* ---- after the loop's close -------------------------------------------------------------------------- */

static void a_closed_loop_makes_and_runs_nothing(void **state) {
    world *w = *state;
    refused(weir_loop_run(w->loop), -ESHUTDOWN);
    refused(weir_loop_run_once(w->loop, 0), -ESHUTDOWN);
    refused(weir_loop_drain(w->loop, 0), -ESHUTDOWN);
    refused(weir_loop_post(w->loop, world_count_post, w), -ESHUTDOWN);
    refused(weir_timer_new(w->loop, world_count_fire, w, &w->out.timer), -ESHUTDOWN);
    refused(weir_timer_start(w->timer, 0, 0), -ESHUTDOWN);
    refused(weir_watch_new(w->loop, w->spare, world_count_event, w, &w->out.watch), -ESHUTDOWN);
    refused(weir_watch_start(w->watch, WEIR_WATCH_READ), -ESHUTDOWN);
    refused(weir_signal_new(w->loop, SIGURG, world_count_signal, w, &w->out.signal), -ESHUTDOWN);
    refused(weir_signal_start(w->signal), -ESHUTDOWN);
    refused(weir_listener_open(w->loop, "127.0.0.1:0", NULL, &w->out.listener), -ESHUTDOWN);
    refused(weir_listener_adopt(w->loop, w->spare, NULL, &w->out.listener), -ESHUTDOWN);
    refused(weir_stream_dial(w->loop, "127.0.0.1:1", NULL, &w->out.stream), -ESHUTDOWN);
    refused(weir_stream_adopt(w->loop, w->spare, NULL, &w->out.stream), -ESHUTDOWN);
    fine(weir_loop_close(w->loop), 0);
    weir_loop_stop(w->loop);
    fine(weir_timer_stop(w->timer), 0);
    fine(weir_watch_stop(w->watch), 0);
    fine(weir_signal_stop(w->signal), 0);
}

static void a_closed_loop_can_still_be_asked(void **state) {
    world *w = *state;
    weir_loop_info info = { .size = sizeof info };
    weir_loop_stats stats = { .size = sizeof stats };
    weir_pool_stats pool = { .size = sizeof pool };
    fine(weir_loop_is_idle(w->loop), 1);
    fine(weir_loop_is_own_thread(w->loop), 1);
    fine(weir_loop_get_now(w->loop) > 0, 1);
    fine(weir_loop_set_pressure(w->loop, NULL, NULL), 0);
    fine(weir_loop_get_info(w->loop, &info), 0);
    fine(weir_loop_get_stats(w->loop, &stats), 0);
    fine(weir_pool_get_stats(w->pool, &pool), 0);
    fine(stats.streams_open + stats.listeners_open + stats.timers_started, 0);
    fine(stats.watches_started + stats.signals_started, 0);
    fine(pool.buffers_posted + pool.buffers_filling, 0);
    assert_ptr_equal(weir_loop_get_pool(w->loop), w->pool);
    assert_ptr_equal(weir_pool_ref(w->pool), w->pool);
    assert_null(weir_pool_unref(w->pool));
    assert_ptr_equal(weir_loop_ref(w->loop), w->loop);
    assert_null(weir_loop_unref(w->loop));
    assert_ptr_equal(weir_timer_ref(w->timer), w->timer);
    assert_null(weir_timer_unref(w->timer));
    assert_ptr_equal(weir_watch_ref(w->watch), w->watch);
    assert_null(weir_watch_unref(w->watch));
    assert_ptr_equal(weir_signal_ref(w->signal), w->signal);
    assert_null(weir_signal_unref(w->signal));
    assert_true(weir_version() > 0 && weir_error_name(-ESHUTDOWN) != NULL && weir_error_text(-ESHUTDOWN) != NULL);
}

static void streams_and_listeners_of_a_closed_loop_are_closed(void **state) {
    world *w = *state;
    weir_stream_stats stats = { .size = sizeof stats };
    weir_stream *const streams[] = { w->stream, w->fresh };
    for (int i = 0; i < 2; i++) {
        weir_stream *stream = streams[i];
        fine(weir_stream_get_state(stream), WEIR_STREAM_CLOSED);
        refused(weir_stream_write(stream, "x", 1), -EPIPE);
        refused(weir_stream_write_slice(stream, &w->slice), -EPIPE);
        refused(weir_stream_write_external(stream, "x", 1, world_never_release, w), -EPIPE);
        refused(weir_stream_writev(stream, &w->slice, 1), -EPIPE);
        refused(weir_stream_writev(stream, NULL, 0), -EPIPE);
        if (i == 0)
            refused(weir_stream_flush(stream, world_never_flush, w), -EPIPE);
        refused(weir_stream_shutdown(stream), -EPIPE);
        refused(weir_stream_pipe(stream, streams[1 - i]), -EPIPE);
        refused(weir_stream_pipe_both(stream, streams[1 - i]), -EPIPE);
        refused(weir_stream_unpipe(stream), -EINVAL);
        refused(weir_stream_detach(stream, &w->out.fd), -EALREADY);
        fine(weir_stream_cork(stream), 0);
        fine(weir_stream_uncork(stream), 0);
        refused(weir_stream_get_fd(stream), -EBADF);
        refused(weir_stream_get_local(stream, w->out.text, 100), -EBADF);
        refused(weir_stream_get_peer(stream, w->out.text, 100), -EBADF);
        fine(weir_stream_pause(stream), 0);
        fine(weir_stream_resume(stream), 0);
        fine(weir_stream_close(stream), 0);
        fine(weir_stream_abort(stream), 0);
        fine(weir_stream_get_queued(stream), 0);
        fine(weir_stream_get_stats(stream, &stats), 0);
        assert_ptr_equal(weir_stream_get_loop(stream), w->loop);
        assert_ptr_equal(weir_stream_get_userdata(stream), i == 0 ? w : NULL);
        assert_ptr_equal(weir_stream_ref(stream), stream);
        assert_null(weir_stream_unref(stream));
    }
    refused(weir_stream_start(w->fresh, &world_stream_callbacks, w), -ESHUTDOWN);
    refused(weir_listener_get_address(w->listener, w->out.text, 100), -EBADF);
    fine(weir_listener_pause(w->listener), 0);
    fine(weir_listener_resume(w->listener), 0);
    fine(weir_listener_close(w->listener), 0);
    assert_ptr_equal(weir_listener_get_loop(w->listener), w->loop);
    assert_ptr_equal(weir_listener_ref(w->listener), w->listener);
    assert_null(weir_listener_unref(w->listener));
}

static void streams_of_a_closed_loop_have_no_options(void **state) {
    world *w = *state;
    weir_stream *const streams[] = { w->stream, w->fresh };
    for (int i = 0; i < 2; i++) {
        refused(weir_stream_set_option(streams[i], WEIR_OPTION_NODELAY, 1), -EBADF);
        refused(weir_stream_set_option(streams[i], WEIR_OPTION_IDLE_TIMEOUT_NS, 1), -EBADF);
        refused(weir_stream_get_option(streams[i], WEIR_OPTION_NODELAY, &w->out.value), -EBADF);
        refused(weir_stream_get_option(streams[i], WEIR_OPTION_IDLE_TIMEOUT_NS, &w->out.value), -EBADF);
    }
}

static void slices_of_a_closed_loop_are_as_good_as_ever(void **state) {
    world *w = *state;
    weir_slice slice, other;
    uint8_t *data;
    assert_memory_equal(w->slice.data, "hello", 5);
    weir_slice_ref(&w->slice, &slice);
    weir_slice_unref(&slice);
    fine(weir_slice_sub(&w->slice, 1, 3, &slice), 0);
    fine(weir_slice_keep(&slice, &other), 0);
    weir_slice_unref(&slice);
    assert_memory_equal(other.data, "ell", 3);
    weir_slice_unref(&other);
    fine(weir_slice_new(w->pool, 10, &data, &slice), 0); /* its pool is there as long as its slices */
    weir_slice_unref(&slice);
    fine(weir_slice_copy(w->pool, "x", 1, &slice), 0);
    weir_slice_unref(&slice);
    fine(weir_slice_wrap(w->pool, "x", 1, NULL, NULL, &slice), 0);
    weir_slice_unref(&slice);
}

static void the_chain_of_a_closed_loop_can_be_emptied(void **state) {
    world *w = *state;
    const weir_slice *shown, empty = { NULL, 0, NULL };
    weir_slice slice;
    refused(weir_chain_new(w->loop, 8, &w->out.chain), -ESHUTDOWN);
    refused(weir_chain_push(w->chain, &w->slice), -ESHUTDOWN);
    refused(weir_chain_push(w->chain, &empty), -ESHUTDOWN);
    refused(weir_chain_write(w->chain, 5, w->stream), -EPIPE);
    refused(weir_chain_write(w->chain, 0, w->stream), -EPIPE);
    refused(weir_chain_take(w->chain, 6, &w->out.slice), -EAGAIN);
    fine(weir_chain_get_size(w->chain), 5);
    fine(weir_chain_find(w->chain, 1, "l", 1), 2);
    fine(weir_chain_peek(w->chain, 1, 4, &shown), 0);
    assert_memory_equal(shown->data, "ello", 4);
    fine(weir_chain_take(w->chain, 2, &slice), 0);
    assert_memory_equal(slice.data, "he", 2);
    weir_slice_unref(&slice);
    fine(weir_chain_drop(w->chain, 3), 0);
    fine(weir_chain_drop(w->chain, 0), 0);
    fine(weir_chain_get_size(w->chain), 0);
    assert_ptr_equal(weir_chain_ref(w->chain), w->chain);
    assert_null(weir_chain_unref(w->chain));
}

static void a_loop_may_be_made_when_another_is_closed(void **state) {
    world *w = *state;
    weir_loop *loop;
    fine(weir_loop_new(NULL, &loop), 0);
    fine(weir_stream_write_slice(w->stream, &w->slice), -EPIPE);
    fine(weir_loop_run(loop), 0);
    fine(weir_loop_close(loop), 0);
    weir_loop_unref(loop);
}

#define world_test(function) cmocka_unit_test_setup_teardown(function, world_setup, world_teardown)
#define closed_test(function) cmocka_unit_test_setup_teardown(function, world_setup_closed, world_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        world_test(what_was_started_is_not_started_again),
        world_test(what_may_be_said_twice),
        world_test(what_was_not_asked_for_is_not_given),
        world_test(what_is_undone_leaves_nothing),
        world_test(a_stream_on_its_way_is_not_detached),
        world_test(the_loop_is_not_run_or_closed_in_its_callbacks),
        world_test(a_closed_stream_takes_nothing_and_says_so),
        world_test(a_stream_that_is_shut_down_writes_nothing_more),
        world_test(a_closed_listener_does_nothing_more),
        closed_test(a_closed_loop_makes_and_runs_nothing),
        closed_test(a_closed_loop_can_still_be_asked),
        closed_test(streams_and_listeners_of_a_closed_loop_are_closed),
        closed_test(streams_of_a_closed_loop_have_no_options),
        closed_test(slices_of_a_closed_loop_are_as_good_as_ever),
        closed_test(the_chain_of_a_closed_loop_can_be_emptied),
        closed_test(a_loop_may_be_made_when_another_is_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
