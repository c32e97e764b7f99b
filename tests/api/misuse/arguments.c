/* SPDX-License-Identifier: MIT */
#include "api/misuse/world.h"

#include <limits.h>
#include <signal.h>

/* Every function with NULL where an object is needed, and with structures and values that are wrong. */

/* ---- NULL -------------------------------------------------------------------------------------------- */

static void the_library_takes_anything(void **state) {
    (void)state;
    assert_true(weir_version() > 0);
    assert_non_null(weir_error_name(INT32_MIN));
    assert_non_null(weir_error_text(INT32_MIN));
}

static void null_where_a_loop_is_needed(void **state) {
    world *w = *state;
    mistake(weir_loop_new, weir_loop_new(NULL, NULL), -EINVAL);
    mistake(weir_loop_run, weir_loop_run(NULL), -EINVAL);
    mistake(weir_loop_run_once, weir_loop_run_once(NULL, 0), -EINVAL);
    mistake(weir_loop_drain, weir_loop_drain(NULL, 0), -EINVAL);
    mistake(weir_loop_post, weir_loop_post(NULL, world_count_post, w), -EINVAL);
    mistake(weir_loop_post, weir_loop_post(w->loop, NULL, w), -EINVAL);
    mistake(weir_loop_is_idle, weir_loop_is_idle(NULL), -EINVAL);
    mistake(weir_loop_is_own_thread, weir_loop_is_own_thread(NULL), -EINVAL);
    mistake(weir_loop_get_now, weir_loop_get_now(NULL), -EINVAL);
    mistake(weir_loop_get_info, weir_loop_get_info(NULL, &w->out.info), -EINVAL);
    mistake(weir_loop_get_info, weir_loop_get_info(w->loop, NULL), -EINVAL);
    mistake(weir_loop_get_stats, weir_loop_get_stats(NULL, &w->out.loop_stats), -EINVAL);
    mistake(weir_loop_get_stats, weir_loop_get_stats(w->loop, NULL), -EINVAL);
    mistake(weir_loop_set_pressure, weir_loop_set_pressure(NULL, NULL, w), -EINVAL);
    fine(weir_loop_close(NULL), 0);
    assert_null(weir_loop_unref(NULL));
    assert_null(weir_loop_ref(NULL));
    assert_null(weir_loop_get_pool(NULL));
    weir_loop_stop(NULL);
}

static void null_where_a_pool_is_needed(void **state) {
    world *w = *state;
    mistake(weir_pool_get_stats, weir_pool_get_stats(NULL, &w->out.pool_stats), -EINVAL);
    mistake(weir_pool_get_stats, weir_pool_get_stats(w->pool, NULL), -EINVAL);
    assert_null(weir_pool_ref(NULL));
    assert_null(weir_pool_unref(NULL));
}

static void null_where_a_slice_is_needed(void **state) {
    world *w = *state;
    weir_slice hand = { (const uint8_t *)"abc", 3, NULL }, out;
    mistake(weir_slice_ref, (weir_slice_ref(NULL, &out), 0), 0);
    mistake(weir_slice_ref, (weir_slice_ref(&hand, &out), 0), 0);
    mistake(weir_slice_ref, (weir_slice_ref(&w->slice, NULL), 0), 0);
    mistake(weir_slice_keep, weir_slice_keep(NULL, &w->out.slice), -EINVAL);
    mistake(weir_slice_keep, weir_slice_keep(&w->slice, NULL), -EINVAL);
    mistake(weir_slice_keep, weir_slice_keep(&hand, &w->out.slice), -EINVAL);
    mistake(weir_slice_sub, weir_slice_sub(NULL, 0, 0, &w->out.slice), -EINVAL);
    mistake(weir_slice_sub, weir_slice_sub(&w->slice, 0, 0, NULL), -EINVAL);
    mistake(weir_slice_sub, weir_slice_sub(&hand, 0, 1, &w->out.slice), -EINVAL);
    refused(weir_slice_sub(&w->slice, 3, 3, &w->out.slice), -ERANGE);
    refused(weir_slice_sub(&w->slice, SIZE_MAX, 2, &w->out.slice), -ERANGE);
    mistake(weir_slice_new, weir_slice_new(NULL, 1, &w->out.data, &w->out.slice), -EINVAL);
    mistake(weir_slice_new, weir_slice_new(w->pool, 0, &w->out.data, &w->out.slice), -EINVAL);
    mistake(weir_slice_new, weir_slice_new(w->pool, 1, NULL, &w->out.slice), -EINVAL);
    mistake(weir_slice_new, weir_slice_new(w->pool, 1, &w->out.data, NULL), -EINVAL);
    mistake(weir_slice_copy, weir_slice_copy(w->pool, NULL, 1, &w->out.slice), -EINVAL);
    mistake(weir_slice_copy, weir_slice_copy(NULL, "x", 1, &w->out.slice), -EINVAL);
    mistake(weir_slice_copy, weir_slice_copy(w->pool, "x", 1, NULL), -EINVAL);
    mistake(weir_slice_copy, weir_slice_copy(w->pool, "x", 0, &w->out.slice), -EINVAL);
    mistake(weir_slice_wrap, weir_slice_wrap(NULL, "x", 1, NULL, NULL, &w->out.slice), -EINVAL);
    mistake(weir_slice_wrap, weir_slice_wrap(w->pool, NULL, 1, NULL, NULL, &w->out.slice), -EINVAL);
    mistake(weir_slice_wrap, weir_slice_wrap(w->pool, "x", 0, NULL, NULL, &w->out.slice), -EINVAL);
    mistake(weir_slice_wrap, weir_slice_wrap(w->pool, "x", 1, world_never_release, NULL, NULL), -EINVAL);
    weir_slice_unref(NULL);
}

static void null_where_a_timer_is_needed(void **state) {
    world *w = *state;
    mistake(weir_timer_new, weir_timer_new(NULL, world_count_fire, w, &w->out.timer), -EINVAL);
    mistake(weir_timer_new, weir_timer_new(w->loop, NULL, w, &w->out.timer), -EINVAL);
    mistake(weir_timer_new, weir_timer_new(w->loop, world_count_fire, w, NULL), -EINVAL);
    mistake(weir_timer_start, weir_timer_start(NULL, 0, 0), -EINVAL);
    mistake(weir_timer_start, weir_timer_start(w->timer, -1, 0), -EINVAL);
    mistake(weir_timer_start, weir_timer_start(w->timer, 0, -1), -EINVAL);
    mistake(weir_timer_start, weir_timer_start(w->timer, INT64_MIN, INT64_MIN), -EINVAL);
    mistake(weir_timer_stop, weir_timer_stop(NULL), -EINVAL);
    assert_null(weir_timer_ref(NULL));
    assert_null(weir_timer_unref(NULL));
}

static void no_descriptor_where_a_watch_needs_one(void **state) {
    world *w = *state;
    mistake(weir_watch_new, weir_watch_new(NULL, w->spare, world_count_event, w, &w->out.watch), -EINVAL);
    mistake(weir_watch_new, weir_watch_new(w->loop, w->spare, NULL, w, &w->out.watch), -EINVAL);
    mistake(weir_watch_new, weir_watch_new(w->loop, w->spare, world_count_event, w, NULL), -EINVAL);
    mistake(weir_watch_new, weir_watch_new(w->loop, -1, world_count_event, w, &w->out.watch), -EBADF);
    mistake(weir_watch_new, weir_watch_new(w->loop, INT_MIN, world_count_event, w, &w->out.watch), -EBADF);
    mistake(weir_watch_start, weir_watch_start(NULL, WEIR_WATCH_READ), -EINVAL);
    mistake(weir_watch_start, weir_watch_start(w->watch, WEIR_WATCH_ERROR), -EINVAL);
    mistake(weir_watch_start, weir_watch_start(w->watch, WEIR_WATCH_READ | WEIR_WATCH_HANGUP), -EINVAL);
    mistake(weir_watch_start, weir_watch_start(w->watch, WEIR_WATCH_FAILED), -EINVAL);
    mistake(weir_watch_start, weir_watch_start(w->watch, 32), -EINVAL);
    mistake(weir_watch_start, weir_watch_start(w->watch, -EBADF), -EINVAL);
    mistake(weir_watch_stop, weir_watch_stop(NULL), -EINVAL);
    assert_null(weir_watch_ref(NULL));
    assert_null(weir_watch_unref(NULL));
}

static void no_number_where_a_signal_needs_one(void **state) {
    world *w = *state;
    static const int numbers[] = { 0, -1, INT_MIN, INT_MAX, 65, 1 << 16, SIGKILL, SIGSTOP, SIGSEGV };
    mistake(weir_signal_new, weir_signal_new(NULL, SIGURG, world_count_signal, w, &w->out.signal), -EINVAL);
    mistake(weir_signal_new, weir_signal_new(w->loop, SIGURG, NULL, w, &w->out.signal), -EINVAL);
    mistake(weir_signal_new, weir_signal_new(w->loop, SIGURG, world_count_signal, w, NULL), -EINVAL);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        mistake(weir_signal_new, weir_signal_new(w->loop, numbers[i], world_count_signal, w, &w->out.signal),
                -EINVAL);
    mistake(weir_signal_start, weir_signal_start(NULL), -EINVAL);
    mistake(weir_signal_stop, weir_signal_stop(NULL), -EINVAL);
    assert_null(weir_signal_ref(NULL));
    assert_null(weir_signal_unref(NULL));
}

static void null_where_a_listener_is_needed(void **state) {
    world *w = *state;
    mistake(weir_listener_open, weir_listener_open(NULL, "127.0.0.1:0", NULL, &w->out.listener), -EINVAL);
    mistake(weir_listener_open, weir_listener_open(w->loop, NULL, NULL, &w->out.listener), -EINVAL);
    mistake(weir_listener_open, weir_listener_open(w->loop, "127.0.0.1:0", NULL, NULL), -EINVAL);
    mistake(weir_listener_adopt, weir_listener_adopt(NULL, 0, NULL, &w->out.listener), -EINVAL);
    mistake(weir_listener_adopt, weir_listener_adopt(w->loop, 0, NULL, NULL), -EINVAL);
    mistake(weir_listener_start, weir_listener_start(NULL, &world_listener_callbacks, w), -EINVAL);
    mistake(weir_listener_start, weir_listener_start(w->listener, NULL, w), -EINVAL);
    mistake(weir_listener_pause, weir_listener_pause(NULL), -EINVAL);
    mistake(weir_listener_resume, weir_listener_resume(NULL), -EINVAL);
    mistake(weir_listener_get_address, weir_listener_get_address(NULL, w->out.text, 100), -EINVAL);
    mistake(weir_listener_get_address, weir_listener_get_address(w->listener, NULL, 100), -EINVAL);
    refused(weir_listener_get_address(w->listener, w->out.text, 3), -ENOBUFS);
    refused(weir_listener_get_address(w->listener, w->out.text, 0), -ENOBUFS);
    fine(weir_listener_close(NULL), 0);
    assert_null(weir_listener_ref(NULL));
    assert_null(weir_listener_unref(NULL));
    assert_null(weir_listener_get_loop(NULL));
}

static void null_where_a_stream_is_needed(void **state) {
    world *w = *state;
    mistake(weir_stream_dial, weir_stream_dial(NULL, "127.0.0.1:1", NULL, &w->out.stream), -EINVAL);
    mistake(weir_stream_dial, weir_stream_dial(w->loop, NULL, NULL, &w->out.stream), -EINVAL);
    mistake(weir_stream_dial, weir_stream_dial(w->loop, "127.0.0.1:1", NULL, NULL), -EINVAL);
    mistake(weir_stream_adopt, weir_stream_adopt(NULL, w->spare, NULL, &w->out.stream), -EINVAL);
    mistake(weir_stream_adopt, weir_stream_adopt(w->loop, w->spare, NULL, NULL), -EINVAL);
    refused(weir_stream_adopt(w->loop, -1, NULL, &w->out.stream), -EBADF);
    mistake(weir_stream_detach, weir_stream_detach(NULL, &w->out.fd), -EINVAL);
    mistake(weir_stream_detach, weir_stream_detach(w->fresh, NULL), -EINVAL);
    mistake(weir_stream_start, weir_stream_start(NULL, &world_stream_callbacks, w), -EINVAL);
    mistake(weir_stream_start, weir_stream_start(w->fresh, NULL, w), -EINVAL);
    mistake(weir_stream_pause, weir_stream_pause(NULL), -EINVAL);
    mistake(weir_stream_resume, weir_stream_resume(NULL), -EINVAL);
    mistake(weir_stream_write, weir_stream_write(NULL, "x", 1), -EINVAL);
    mistake(weir_stream_write, weir_stream_write(w->stream, NULL, 1), -EINVAL);
    mistake(weir_stream_write_slice, weir_stream_write_slice(NULL, &w->slice), -EINVAL);
    mistake(weir_stream_write_slice, weir_stream_write_slice(w->stream, NULL), -EINVAL);
    mistake(weir_stream_write_external, weir_stream_write_external(NULL, "x", 1, world_never_release, w), -EINVAL);
    mistake(weir_stream_write_external, weir_stream_write_external(w->stream, NULL, 1, world_never_release, w),
            -EINVAL);
    mistake(weir_stream_shutdown, weir_stream_shutdown(NULL), -EINVAL);
    mistake(weir_stream_cork, weir_stream_cork(NULL), -EINVAL);
    mistake(weir_stream_uncork, weir_stream_uncork(NULL), -EINVAL);
    mistake(weir_stream_flush, weir_stream_flush(NULL, world_never_flush, w), -EINVAL);
    mistake(weir_stream_flush, weir_stream_flush(w->stream, NULL, w), -EINVAL);
    mistake(weir_stream_grant, weir_stream_grant(NULL, 1), -EINVAL);
    mistake(weir_stream_pipe, weir_stream_pipe(NULL, w->stream), -EINVAL);
    mistake(weir_stream_pipe, weir_stream_pipe(w->stream, NULL), -EINVAL);
    mistake(weir_stream_pipe_both, weir_stream_pipe_both(NULL, w->stream), -EINVAL);
    mistake(weir_stream_pipe_both, weir_stream_pipe_both(w->stream, NULL), -EINVAL);
    mistake(weir_stream_pipe_both, weir_stream_pipe_both(w->stream, w->stream), -EINVAL);
    mistake(weir_stream_unpipe, weir_stream_unpipe(NULL), -EINVAL);
    refused(weir_stream_unpipe(w->stream), -EINVAL);
    mistake(weir_stream_get_state, weir_stream_get_state(NULL), -EINVAL);
    mistake(weir_stream_get_queued, weir_stream_get_queued(NULL), 0);
    mistake(weir_stream_get_fd, weir_stream_get_fd(NULL), -EINVAL);
    mistake(weir_stream_get_local, weir_stream_get_local(NULL, w->out.text, 100), -EINVAL);
    mistake(weir_stream_get_local, weir_stream_get_local(w->stream, NULL, 100), -EINVAL);
    mistake(weir_stream_get_peer, weir_stream_get_peer(NULL, w->out.text, 100), -EINVAL);
    mistake(weir_stream_get_peer, weir_stream_get_peer(w->stream, NULL, 100), -EINVAL);
    refused(weir_stream_get_peer(w->stream, w->out.text, 5), -ENOBUFS);
    mistake(weir_stream_get_stats, weir_stream_get_stats(NULL, &w->out.stream_stats), -EINVAL);
    mistake(weir_stream_get_stats, weir_stream_get_stats(w->stream, NULL), -EINVAL);
    fine(weir_stream_close(NULL), 0);
    fine(weir_stream_abort(NULL), 0);
    assert_null(weir_stream_ref(NULL));
    assert_null(weir_stream_unref(NULL));
    assert_null(weir_stream_get_loop(NULL));
    assert_null(weir_stream_get_userdata(NULL));
}

static void no_stream_no_place_and_no_such_option(void **state) {
    world *w = *state;
    mistake(weir_stream_set_option, weir_stream_set_option(NULL, WEIR_OPTION_NODELAY, 1), -EINVAL);
    mistake(weir_stream_get_option, weir_stream_get_option(NULL, WEIR_OPTION_NODELAY, &w->out.value), -EINVAL);
    mistake(weir_stream_get_option, weir_stream_get_option(w->stream, WEIR_OPTION_NODELAY, NULL), -EINVAL);
    refused(weir_stream_set_option(w->stream, 0, 1), -ENOPROTOOPT);
    refused(weir_stream_get_option(w->stream, INT_MIN, &w->out.value), -ENOPROTOOPT);
    refused(weir_stream_set_option(w->stream, WEIR_OPTION_IDLE_TIMEOUT_NS, 0), -EINVAL);
}

static void null_where_a_chain_is_needed(void **state) {
    world *w = *state;
    const weir_slice none = { NULL, 3, NULL };
    mistake(weir_chain_new, weir_chain_new(NULL, 1, &w->out.chain), -EINVAL);
    mistake(weir_chain_new, weir_chain_new(w->loop, 0, &w->out.chain), -EINVAL);
    mistake(weir_chain_new, weir_chain_new(w->loop, 1, NULL), -EINVAL);
    mistake(weir_chain_push, weir_chain_push(NULL, &w->slice), -EINVAL);
    mistake(weir_chain_push, weir_chain_push(w->chain, NULL), -EINVAL);
    mistake(weir_chain_push, weir_chain_push(w->chain, &none), -EINVAL);
    mistake(weir_chain_get_size, weir_chain_get_size(NULL), 0);
    mistake(weir_chain_peek, weir_chain_peek(NULL, 0, 1, &w->out.shown), -EINVAL);
    mistake(weir_chain_peek, weir_chain_peek(w->chain, 0, 1, NULL), -EINVAL);
    mistake(weir_chain_take, weir_chain_take(NULL, 1, &w->out.slice), -EINVAL);
    mistake(weir_chain_take, weir_chain_take(w->chain, 1, NULL), -EINVAL);
    mistake(weir_chain_drop, weir_chain_drop(NULL, 1), -EINVAL);
    mistake(weir_chain_find, weir_chain_find(NULL, 0, "x", 1), -EINVAL);
    mistake(weir_chain_find, weir_chain_find(w->chain, 0, NULL, 1), -EINVAL);
    mistake(weir_chain_find, weir_chain_find(w->chain, 0, "x", 0), -EINVAL);
    mistake(weir_chain_write, weir_chain_write(NULL, 1, w->stream), -EINVAL);
    mistake(weir_chain_write, weir_chain_write(w->chain, 1, NULL), -EINVAL);
    assert_null(weir_chain_ref(NULL));
    assert_null(weir_chain_unref(NULL));
}

static void more_of_a_chain_than_there_is(void **state) {
    world *w = *state;
    static const size_t sizes[] = { 6, 8, 9, SIZE_MAX };
    refused(weir_chain_push(w->chain, &w->slice), -EMSGSIZE);
    for (int i = 0; i < 4; i++) {
        int expected = sizes[i] > 8 ? -EMSGSIZE : -EAGAIN;
        refused(weir_chain_peek(w->chain, 0, sizes[i], &w->out.shown), expected);
        refused(weir_chain_peek(w->chain, sizes[i], 0, &w->out.shown), expected);
        refused(weir_chain_take(w->chain, sizes[i], &w->out.slice), expected);
        refused(weir_chain_drop(w->chain, sizes[i]), expected);
        refused(weir_chain_write(w->chain, sizes[i], w->stream), expected);
        refused(weir_chain_find(w->chain, sizes[i], "h", 1), -EAGAIN);
    }
    refused(weir_chain_peek(w->chain, 5, SIZE_MAX - 2, &w->out.shown), -EMSGSIZE); /* their sum is small */
    refused(weir_chain_peek(w->chain, SIZE_MAX, 5, &w->out.shown), -EMSGSIZE);
}

static void slices_that_are_no_slices_are_not_written(void **state) {
    world *w = *state;
    static const weir_slice many[1025];
    const weir_slice hole = { NULL, 1, NULL }, whole[] = { { (const uint8_t *)"x", 1, NULL }, hole };
    mistake(weir_stream_writev, weir_stream_writev(NULL, &w->slice, 1), -EINVAL);
    mistake(weir_stream_writev, weir_stream_writev(NULL, NULL, 0), -EINVAL);
    mistake(weir_stream_writev, weir_stream_writev(w->stream, NULL, 1), -EINVAL);
    mistake(weir_stream_writev, weir_stream_writev(w->stream, &hole, 1), -EINVAL);
    mistake(weir_stream_writev, weir_stream_writev(w->stream, whole, 2), -EINVAL); /* nor the first of them */
    refused(weir_stream_writev(w->stream, many, 1025), -EINVAL);
    refused(weir_stream_writev(w->stream, many, SIZE_MAX), -EINVAL);
    fine(weir_stream_get_queued(w->stream), 0);
    fine(weir_stream_writev(w->stream, many, 1024), WEIR_WRITE_OK); /* of nothing, which is fine */
    fine(weir_stream_writev(w->stream, NULL, 0), WEIR_WRITE_OK);
}

/* ---- sizes ------------------------------------------------------------------------------------------- */

static void tables_of_a_wrong_size(void **state) {
    world *w = *state;
    static const size_t sizes[] = { 0, 1, sizeof(size_t), sizeof(weir_listener_callbacks) - 1 };
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        weir_stream_callbacks stream = world_stream_callbacks;
        weir_listener_callbacks listener = world_listener_callbacks;
        stream.size = listener.size = sizes[i];
        mistake(weir_stream_start, weir_stream_start(w->fresh, &stream, w), -EINVAL);
        mistake(weir_listener_start, weir_listener_start(w->listener, &listener, w), -EINVAL);
        listener = world_listener_callbacks;
        listener.on_accept = NULL;
        mistake(weir_listener_start, weir_listener_start(w->listener, &listener, w), -EINVAL);
    }
    weir_stream_callbacks stream = world_stream_callbacks;
    stream.size--;
    mistake(weir_stream_start, weir_stream_start(w->fresh, &stream, w), -EINVAL);
    run_turns(&w->fixture, 3);
}

/* The structure of a caller that is newer: @later is what it has more. */
#define WITH_TAIL(type, name)      \
    struct {                       \
        type known;                \
        uint8_t later[16];         \
    } name;                        \
    memset(&name, 0, sizeof name); \
    name.known.size = sizeof name

static void option_structures_of_a_wrong_size(void **state) {
    world *w = *state;
    static const size_t loop_sizes[] = { 0, 4, sizeof(size_t), sizeof(weir_loop_options) - 1 };
    for (int i = 0; i < 4; i++) {
        weir_loop_options options = { .size = loop_sizes[i] };
        mistake(weir_loop_new, weir_loop_new(&options, &w->out.loop), -EINVAL);
    }
    static const size_t pool_sizes[] = { 0, 4, sizeof(size_t), sizeof(weir_pool_options) - 1 };
    for (int i = 0; i < 4; i++) {
        weir_pool_options pool = { .size = pool_sizes[i] };
        weir_loop_options options = { .size = sizeof options, .pool = &pool };
        mistake(weir_loop_new, weir_loop_new(&options, &w->out.loop), -EINVAL);
    }
    static const size_t stream_sizes[] = { 0, 4, sizeof(size_t), sizeof(weir_stream_options) - 1 };
    for (int i = 0; i < 4; i++) {
        weir_stream_options each = { .size = stream_sizes[i] };
        weir_listener_options options = { .size = sizeof options, .stream = &each };
        mistake(weir_stream_dial, weir_stream_dial(w->loop, "127.0.0.1:1", &each, &w->out.stream), -EINVAL);
        mistake(weir_stream_adopt, weir_stream_adopt(w->loop, w->spare, &each, &w->out.stream), -EINVAL);
        mistake(weir_listener_open, weir_listener_open(w->loop, "127.0.0.1:0", &options, &w->out.listener),
                -EINVAL);
    }
    static const size_t listener_sizes[] = { 0, 4, sizeof(size_t), sizeof(weir_listener_options) - 1 };
    for (int i = 0; i < 4; i++) {
        weir_listener_options options = { .size = listener_sizes[i] };
        mistake(weir_listener_open, weir_listener_open(w->loop, "127.0.0.1:0", &options, &w->out.listener),
                -EINVAL);
        mistake(weir_listener_adopt, weir_listener_adopt(w->loop, w->spare, &options, &w->out.listener), -EINVAL);
    }
}

static void larger_options_are_fine_while_nothing_unknown_is_asked_for(void **state) {
    world *w = *state;
    WITH_TAIL(weir_loop_options, loop);
    WITH_TAIL(weir_pool_options, pool);
    WITH_TAIL(weir_stream_options, stream);
    WITH_TAIL(weir_listener_options, listener);
    WITH_TAIL(weir_allocator, allocator);
    weir_loop *made;
    weir_stream *dialled;
    weir_listener *opened;
    allocator.known = w->fixture.memory.allocator;
    allocator.known.size = sizeof allocator;
    loop.known.pool = &pool.known;
    loop.known.allocator = &allocator.known;
    listener.known.stream = &stream.known;
    fine(weir_loop_new(&loop.known, &made), 0);
    fine(weir_loop_close(made), 0);
    weir_loop_unref(made);
    fine(weir_stream_dial(w->loop, "127.0.0.1:1", &stream.known, &dialled), 0);
    fine(weir_stream_abort(dialled), 0);
    fine(weir_listener_open(w->loop, "127.0.0.1:0", &listener.known, &opened), 0);
    fine(weir_listener_close(opened), 0);
    run_turns(&w->fixture, 5);
    for (size_t i = 0; i < sizeof loop.later;
         i += sizeof loop.later - 1) { /* the first unknown byte, and the last */
        loop.later[i] = 1;
        refused(weir_loop_new(&loop.known, &w->out.loop), -E2BIG);
        loop.later[i] = 0;
        pool.later[i] = 1;
        refused(weir_loop_new(&loop.known, &w->out.loop), -E2BIG);
        pool.later[i] = 0;
        stream.later[i] = 1;
        refused(weir_stream_dial(w->loop, "127.0.0.1:1", &stream.known, &w->out.stream), -E2BIG);
        refused(weir_stream_adopt(w->loop, w->spare, &stream.known, &w->out.stream), -E2BIG);
        refused(weir_listener_open(w->loop, "127.0.0.1:0", &listener.known, &w->out.listener), -E2BIG);
        stream.later[i] = 0;
        listener.later[i] = 1;
        refused(weir_listener_open(w->loop, "127.0.0.1:0", &listener.known, &w->out.listener), -E2BIG);
        refused(weir_listener_adopt(w->loop, w->spare, &listener.known, &w->out.listener), -E2BIG);
        listener.later[i] = 0;
    }
    fine(fcntl(w->spare, F_GETFL) & O_NONBLOCK, 0); /* not adopted, and not touched */
}

static void statistics_of_a_wrong_size(void **state) {
    world *w = *state;
    weir_loop_info info = { .size = 0 };
    weir_loop_stats loop = { .size = 0 };
    weir_pool_stats pool = { .size = 0 };
    weir_stream_stats stream = { .size = 0 };
    for (int i = 0; i < 2; i++) {
        mistake(weir_loop_get_info, weir_loop_get_info(w->loop, &info), -EINVAL);
        mistake(weir_loop_get_stats, weir_loop_get_stats(w->loop, &loop), -EINVAL);
        mistake(weir_pool_get_stats, weir_pool_get_stats(w->pool, &pool), -EINVAL);
        mistake(weir_stream_get_stats, weir_stream_get_stats(w->stream, &stream), -EINVAL);
        assert_true(info.backend == 0 && loop.turns == 0 && pool.budget_bytes == 0 && stream.bytes_in == 0);
        info.size = sizeof info - 1;
        loop.size = sizeof loop - 1;
        pool.size = sizeof pool - 1;
        stream.size = sizeof stream - 1;
    }
}

/* ---- values ------------------------------------------------------------------------------------------ */

static void options_of_a_loop_that_make_no_sense(void **state) {
    world *w = *state;
    const weir_allocator small = { .size = sizeof small - 1,
                                   .alloc = w->fixture.memory.allocator.alloc,
                                   .free = w->fixture.memory.allocator.free };
    const weir_allocator no_alloc = { .size = sizeof no_alloc, .free = small.free };
    const weir_allocator no_free = { .size = sizeof no_free, .alloc = small.alloc };
    const weir_pool_options pools[] = {
        { .size = sizeof *pools, .buffer_bytes = 2048 },
        { .size = sizeof *pools, .buffer_bytes = 5000 },
        { .size = sizeof *pools, .buffer_bytes = 32 << 20 },
        { .size = sizeof *pools, .budget_bytes = 4096 },
        { .size = sizeof *pools, .buffer_bytes = 65536, .window_bytes = 4096 },
        { .size = sizeof *pools, .budget_bytes = 1 << 20, .window_bytes = 2 << 20 },
    };
    const weir_loop_options loops[] = {
        { .size = sizeof *loops, .backend = WEIR_BACKEND_EPOLL + 1 },
        { .size = sizeof *loops, .backend = UINT32_MAX },
        { .size = sizeof *loops, .flags = 2 },
        { .size = sizeof *loops, .busy_poll = WEIR_BUSY_POLL_FIXED + 1 },
        { .size = sizeof *loops, .busy_poll_ns = -1 },
        { .size = sizeof *loops, .busy_poll = WEIR_BUSY_POLL_FIXED, .busy_poll_ns = 10000001 },
        { .size = sizeof *loops, .busy_poll_share_percent = 101 },
        { .size = sizeof *loops, .allocator = &small },
        { .size = sizeof *loops, .allocator = &no_alloc },
        { .size = sizeof *loops, .allocator = &no_free },
    };
    for (size_t i = 0; i < sizeof loops / sizeof *loops; i++)
        refused(weir_loop_new(&loops[i], &w->out.loop), -EINVAL);
    for (size_t i = 0; i < sizeof pools / sizeof *pools; i++) {
        const weir_loop_options options = { .size = sizeof options, .pool = &pools[i] };
        refused(weir_loop_new(&options, &w->out.loop), -EINVAL);
    }
    mistake(weir_loop_drain, weir_loop_drain(w->loop, -2), -EINVAL);
    mistake(weir_loop_drain, weir_loop_drain(w->loop, INT64_MIN), -EINVAL);
}

static void addresses_that_are_names(void **state) {
    world *w = *state;
    refused(weir_listener_open(w->loop, "localhost:80", NULL, &w->out.listener), -EINVAL);
    refused(weir_stream_dial(w->loop, "localhost:80", NULL, &w->out.stream), -EINVAL);
}

#define world_test(function) cmocka_unit_test_setup_teardown(function, world_setup, world_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_library_takes_anything),
        world_test(null_where_a_loop_is_needed),
        world_test(null_where_a_pool_is_needed),
        world_test(null_where_a_slice_is_needed),
        world_test(null_where_a_timer_is_needed),
        world_test(no_descriptor_where_a_watch_needs_one),
        world_test(no_number_where_a_signal_needs_one),
        world_test(null_where_a_listener_is_needed),
        world_test(null_where_a_stream_is_needed),
        world_test(no_stream_no_place_and_no_such_option),
        world_test(null_where_a_chain_is_needed),
        world_test(more_of_a_chain_than_there_is),
        world_test(slices_that_are_no_slices_are_not_written),
        world_test(tables_of_a_wrong_size),
        world_test(option_structures_of_a_wrong_size),
        world_test(larger_options_are_fine_while_nothing_unknown_is_asked_for),
        world_test(statistics_of_a_wrong_size),
        world_test(options_of_a_loop_that_make_no_sense),
        world_test(addresses_that_are_names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
