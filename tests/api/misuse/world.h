/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_WORLD_H
#define WEIR_TESTS_WORLD_H

/*
 * One object of each kind, for calls that are wrong on purpose. In a library built with -Dmisuse=abort each mistake is
 * made by a child process, in a world of its own, and must end it with a sentence; elsewhere it must return its error
 * and change nothing. The same tests say both.
 */

#include <semaphore.h>

#include "api/witness.h"

/* What a failed call must not write to; filled with a pattern before each. */
typedef struct outputs {
    weir_loop *loop;
    weir_listener *listener;
    weir_stream *stream;
    weir_timer *timer;
    weir_chain *chain;
    weir_watch *watch;
    weir_signal *signal;
    weir_slice slice;
    const weir_slice *shown;
    uint8_t *data;
    int fd;
    int64_t value;
    char text[WEIR_ADDRESS_SIZE];
    weir_loop_info info;
    weir_loop_stats loop_stats;
    weir_pool_stats pool_stats;
    weir_stream_stats stream_stats;
} outputs;

typedef struct world {
    test_fixture fixture;
    weir_loop *loop;
    weir_pool *pool;         /* the loop's, borrowed */
    weir_listener *listener; /* started */
    weir_stream *stream;     /* started, open */
    weir_stream *fresh;      /* not started */
    weir_timer *timer;       /* not started */
    weir_watch *watch;       /* not started, of spare */
    weir_signal *signal;     /* not started, of SIGURG */
    weir_slice slice;        /* "hello" */
    weir_chain *chain;       /* "hello", of at most 8 bytes */
    int peers[3];            /* stream's, fresh's, one that is to be adopted, with its other end */
    int spare;
    unsigned accepts, datas, ends, closes, listener_closes, fires, posts, events, signals;
    outputs out;
    bool is_foreign; /* another thread's */
    pthread_t thread;
    sem_t built, done;
} world;

/* cmocka's setup and teardown: a world of this thread, of another one, or one that was closed: its objects referenced.
 * The teardown looks whether everything is as it was. */
int world_setup(void **state);
int world_setup_foreign(void **state);
int world_setup_closed(void **state);
int world_teardown(void **state);

bool world_enter(world *w, const char *function, const char *call);
void world_leave(world *w, const char *call, int64_t result, int64_t expected);
void world_look(world *w, const char *call, int64_t result, int64_t expected);
void world_clear_outputs(world *w);

/* A call that no correct program makes. @function: whose name the sentence has. */
#define mistake(function, call, expected)                       \
    do {                                                        \
        if (world_enter(w, #function, #call))                   \
            world_leave(w, #call, (int64_t)(call), (expected)); \
    } while (0)

/* A call that fails, though a correct program may make it; and one that is fine. Neither ever aborts. */
#define refused(call, expected)                            \
    do {                                                   \
        world_clear_outputs(w);                            \
        world_look(w, #call, (int64_t)(call), (expected)); \
    } while (0)

#define fine(call, expected)                                     \
    do {                                                         \
        int64_t fine_result = (int64_t)(call);                   \
        if (fine_result != (expected))                           \
            fail_msg("%s: %lld", #call, (long long)fine_result); \
    } while (0)

/* Tables and functions to be given to calls. */
extern const weir_stream_callbacks world_stream_callbacks;
extern const weir_listener_callbacks world_listener_callbacks;
void world_count_post(weir_loop *loop, void *world);
void world_count_fire(weir_timer *timer, void *world);
void world_count_event(weir_watch *watch, int events, void *world);
void world_count_signal(weir_signal *signal, int number, void *world);
void world_never_release(const void *data, size_t size, void *userdata);
void world_never_flush(weir_stream *stream, int error, void *userdata);

#endif
