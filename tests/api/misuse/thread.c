/* SPDX-License-Identifier: MIT */
#include "api/misuse/world.h"

#include <signal.h>

/* Every function on a thread that is not the loop's: what any thread may call works, the rest is -EPERM, and nothing
 * of the loop changes. */

static void a_strangers_loop_calls_are_refused(void **state) {
    world *w = *state;
    mistake(weir_loop_run, weir_loop_run(w->loop), -EPERM);
    mistake(weir_loop_run_once, weir_loop_run_once(w->loop, 0), -EPERM);
    mistake(weir_loop_close, weir_loop_close(w->loop), -EPERM);
    mistake(weir_loop_drain, weir_loop_drain(w->loop, 0), -EPERM);
    mistake(weir_loop_is_idle, weir_loop_is_idle(w->loop), -EPERM);
    mistake(weir_loop_get_now, weir_loop_get_now(w->loop), -EPERM);
    mistake(weir_loop_get_info, weir_loop_get_info(w->loop, &w->out.info), -EPERM);
    mistake(weir_loop_get_stats, weir_loop_get_stats(w->loop, &w->out.loop_stats), -EPERM);
    mistake(weir_loop_set_pressure, weir_loop_set_pressure(w->loop, NULL, NULL), -EPERM);
}

static void a_strangers_timer_calls_are_refused(void **state) {
    world *w = *state;
    mistake(weir_timer_new, weir_timer_new(w->loop, world_count_fire, w, &w->out.timer), -EPERM);
    mistake(weir_timer_start, weir_timer_start(w->timer, 0, 0), -EPERM);
    mistake(weir_timer_stop, weir_timer_stop(w->timer), -EPERM);
}

static void a_strangers_watch_and_signal_calls_are_refused(void **state) {
    world *w = *state;
    mistake(weir_watch_new, weir_watch_new(w->loop, w->spare, world_count_event, w, &w->out.watch), -EPERM);
    mistake(weir_watch_start, weir_watch_start(w->watch, WEIR_WATCH_READ), -EPERM);
    mistake(weir_watch_stop, weir_watch_stop(w->watch), -EPERM);
    mistake(weir_signal_new, weir_signal_new(w->loop, SIGURG, world_count_signal, w, &w->out.signal), -EPERM);
    mistake(weir_signal_start, weir_signal_start(w->signal), -EPERM);
    mistake(weir_signal_stop, weir_signal_stop(w->signal), -EPERM);
}

static void a_strangers_listener_calls_are_refused(void **state) {
    world *w = *state;
    mistake(weir_listener_open, weir_listener_open(w->loop, "127.0.0.1:0", NULL, &w->out.listener), -EPERM);
    mistake(weir_listener_adopt, weir_listener_adopt(w->loop, w->spare, NULL, &w->out.listener), -EPERM);
    mistake(weir_listener_start, weir_listener_start(w->listener, &world_listener_callbacks, w), -EPERM);
    mistake(weir_listener_pause, weir_listener_pause(w->listener), -EPERM);
    mistake(weir_listener_resume, weir_listener_resume(w->listener), -EPERM);
    mistake(weir_listener_close, weir_listener_close(w->listener), -EPERM);
    mistake(weir_listener_get_address, weir_listener_get_address(w->listener, w->out.text, 100), -EPERM);
}

static void a_strangers_stream_calls_are_refused(void **state) {
    world *w = *state;
    mistake(weir_stream_dial, weir_stream_dial(w->loop, "127.0.0.1:1", NULL, &w->out.stream), -EPERM);
    mistake(weir_stream_adopt, weir_stream_adopt(w->loop, w->spare, NULL, &w->out.stream), -EPERM);
    mistake(weir_stream_detach, weir_stream_detach(w->fresh, &w->out.fd), -EPERM);
    mistake(weir_stream_start, weir_stream_start(w->fresh, &world_stream_callbacks, w), -EPERM);
    mistake(weir_stream_pause, weir_stream_pause(w->stream), -EPERM);
    mistake(weir_stream_resume, weir_stream_resume(w->stream), -EPERM);
    mistake(weir_stream_write, weir_stream_write(w->stream, "x", 1), -EPERM);
    mistake(weir_stream_write_slice, weir_stream_write_slice(w->stream, &w->slice), -EPERM);
    mistake(weir_stream_write_external, weir_stream_write_external(w->stream, "x", 1, world_never_release, w),
            -EPERM);
    mistake(weir_stream_writev, weir_stream_writev(w->stream, &w->slice, 1), -EPERM);
    mistake(weir_stream_writev, weir_stream_writev(w->stream, NULL, 0), -EPERM);
    mistake(weir_stream_cork, weir_stream_cork(w->stream), -EPERM);
    mistake(weir_stream_uncork, weir_stream_uncork(w->stream), -EPERM);
    mistake(weir_stream_flush, weir_stream_flush(w->stream, world_never_flush, w), -EPERM);
    mistake(weir_stream_shutdown, weir_stream_shutdown(w->stream), -EPERM);
    mistake(weir_stream_grant, weir_stream_grant(w->stream, 1), -EPERM);
    mistake(weir_stream_pipe, weir_stream_pipe(w->stream, w->fresh), -EPERM);
    mistake(weir_stream_pipe_both, weir_stream_pipe_both(w->stream, w->fresh), -EPERM);
    mistake(weir_stream_unpipe, weir_stream_unpipe(w->stream), -EPERM);
    mistake(weir_stream_close, weir_stream_close(w->stream), -EPERM);
    mistake(weir_stream_close, weir_stream_close(w->fresh), -EPERM);
    mistake(weir_stream_abort, weir_stream_abort(w->stream), -EPERM);
    mistake(weir_stream_abort, weir_stream_abort(w->fresh), -EPERM);
    mistake(weir_stream_get_state, weir_stream_get_state(w->stream), -EPERM);
    mistake(weir_stream_get_queued, weir_stream_get_queued(w->stream), 0);
    mistake(weir_stream_get_fd, weir_stream_get_fd(w->stream), -EPERM);
    mistake(weir_stream_get_local, weir_stream_get_local(w->stream, w->out.text, 100), -EPERM);
    mistake(weir_stream_get_peer, weir_stream_get_peer(w->stream, w->out.text, 100), -EPERM);
    mistake(weir_stream_get_stats, weir_stream_get_stats(w->stream, &w->out.stream_stats), -EPERM);
}

static void a_strangers_calls_for_options_are_refused(void **state) {
    world *w = *state;
    mistake(weir_stream_set_option, weir_stream_set_option(w->stream, WEIR_OPTION_NODELAY, 0), -EPERM);
    mistake(weir_stream_get_option, weir_stream_get_option(w->stream, WEIR_OPTION_NODELAY, &w->out.value), -EPERM);
}

static void a_strangers_chain_calls_are_refused(void **state) {
    world *w = *state;
    mistake(weir_chain_new, weir_chain_new(w->loop, 1, &w->out.chain), -EPERM);
    mistake(weir_chain_push, weir_chain_push(w->chain, &w->slice), -EPERM);
    mistake(weir_chain_get_size, weir_chain_get_size(w->chain), 0);
    mistake(weir_chain_peek, weir_chain_peek(w->chain, 0, 1, &w->out.shown), -EPERM);
    mistake(weir_chain_take, weir_chain_take(w->chain, 1, &w->out.slice), -EPERM);
    mistake(weir_chain_drop, weir_chain_drop(w->chain, 1), -EPERM);
    mistake(weir_chain_find, weir_chain_find(w->chain, 0, "h", 1), -EPERM);
    mistake(weir_chain_write, weir_chain_write(w->chain, 1, w->stream), -EPERM);
}

static void any_thread_may_use_references_slices_and_the_pool(void **state) {
    world *w = *state;
    weir_pool_stats stats = { .size = sizeof stats };
    weir_slice slice, other;
    uint8_t *data;
    fine(weir_loop_is_own_thread(w->loop), 0);
    assert_ptr_equal(weir_loop_ref(w->loop), w->loop);
    assert_null(weir_loop_unref(w->loop));
    assert_ptr_equal(weir_stream_ref(w->stream), w->stream);
    assert_null(weir_stream_unref(w->stream));
    assert_ptr_equal(weir_listener_ref(w->listener), w->listener);
    assert_null(weir_listener_unref(w->listener));
    assert_ptr_equal(weir_timer_ref(w->timer), w->timer);
    assert_null(weir_timer_unref(w->timer));
    assert_ptr_equal(weir_chain_ref(w->chain), w->chain);
    assert_null(weir_chain_unref(w->chain));
    assert_ptr_equal(weir_watch_ref(w->watch), w->watch);
    assert_null(weir_watch_unref(w->watch));
    assert_ptr_equal(weir_signal_ref(w->signal), w->signal);
    assert_null(weir_signal_unref(w->signal));
    assert_ptr_equal(weir_stream_get_loop(w->stream), w->loop);
    assert_ptr_equal(weir_stream_get_userdata(w->stream), w);
    assert_ptr_equal(weir_listener_get_loop(w->listener), w->loop);
    assert_ptr_equal(weir_loop_get_pool(w->loop), w->pool);
    assert_ptr_equal(weir_pool_ref(w->pool), w->pool);
    fine(weir_pool_get_stats(w->pool, &stats), 0);
    fine(weir_slice_new(w->pool, 10, &data, &slice), 0);
    memset(data, 'z', 10);
    fine(weir_slice_keep(&slice, &other), 0);
    weir_slice_unref(&other);
    fine(weir_slice_sub(&slice, 1, 2, &other), 0);
    weir_slice_unref(&slice);
    weir_slice_ref(&other, &slice);
    weir_slice_unref(&other);
    weir_slice_unref(&slice);
    fine(weir_slice_copy(w->pool, "hello", 5, &slice), 0);
    weir_slice_unref(&slice);
    fine(weir_slice_wrap(w->pool, "hello", 5, NULL, NULL, &slice), 0);
    weir_slice_unref(&slice);
    weir_slice_ref(&w->slice, &slice);
    weir_slice_unref(&slice);
    assert_null(weir_pool_unref(w->pool));
    assert_true(weir_version() > 0 && weir_error_name(-1) != NULL && weir_error_text(-1) != NULL);
}

static void any_thread_may_make_a_loop_and_use_it_until_it_runs(void **state) {
    world *w = *state;
    weir_loop *loop;
    (void)w;
    fine(weir_loop_new(NULL, &loop), 0);
    fine(weir_loop_run(loop), 0);
    fine(weir_loop_close(loop), 0);
    weir_loop_unref(loop);
}

static void forget_posts(weir_loop *loop, void *userdata) {
    world *w = userdata;
    (void)loop;
    w->posts = 0;
}

/* The loop of the foreign world runs in the teardown: what was posted and stopped happens there, and is undone. */
static void any_thread_may_post_and_stop(void **state) {
    world *w = *state;
    fine(weir_loop_post(w->loop, world_count_post, w), 0);
    fine(weir_loop_post(w->loop, world_count_post, w), 0);
    weir_loop_stop(w->loop);
    fine(weir_loop_post(w->loop, forget_posts, w), 0);
}

#define foreign_test(function) cmocka_unit_test_setup_teardown(function, world_setup_foreign, world_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        foreign_test(a_strangers_loop_calls_are_refused),
        foreign_test(a_strangers_timer_calls_are_refused),
        foreign_test(a_strangers_watch_and_signal_calls_are_refused),
        foreign_test(a_strangers_listener_calls_are_refused),
        foreign_test(a_strangers_stream_calls_are_refused),
        foreign_test(a_strangers_calls_for_options_are_refused),
        foreign_test(a_strangers_chain_calls_are_refused),
        foreign_test(any_thread_may_use_references_slices_and_the_pool),
        foreign_test(any_thread_may_make_a_loop_and_use_it_until_it_runs),
        foreign_test(any_thread_may_post_and_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
