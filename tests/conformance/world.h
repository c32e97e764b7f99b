/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_WORLD_H
#define WEIR_TESTS_WORLD_H

/*
 * What the conformance tests share. They know the public interface alone, and run once in each mode of a loop: whatever
 * stands below it, the same program hears the same things in the same order.
 *
 * So each scenario has a story: a line for each callback (who, what, how much, which error) and for what a peer sees. How
 * bytes are cut into slices is the kernel's business: what one stream gets in a row is one line. The story is compared with
 * the text that the scenario expects, which is one for all modes.
 */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmocka.h>
#include <weir.h>

#include "support/bytes.h"

typedef struct world world;
typedef struct voice voice;

/* ---- a world: a loop of the mode under test, and its story ---------------------------------------------- */

/* Who tells of bytes: a stream, or the peer of one. */
struct voice {
    world *world;
    const char *name;
    uint64_t
        seed; /* of the bytes that are to come (support/bytes.h); 0: a text of at most 63 bytes, which is told */
    uint64_t size; /* came so far */
    bool is_quiet; /* bytes are looked at, but no line tells of this stream: one of many, in any order */
    /* Of that, what no line tells of yet. */
    uint64_t said;
    bool is_wrong;
    char text[64];
};

struct world {
    weir_loop *loop;
    weir_allocator allocator;
    _Atomic(uint64_t) live_blocks, live_bytes;
    unsigned fds, threads; /* before the loop */
    char story[16384];
    size_t length;
    voice *talking; /* whose line is not finished yet */
};

/* Run the scenarios; a mode that this kernel does not have is skipped (77). */
int world_main(const struct CMUnitTest *tests, size_t count);
#define run_world(tests) world_main(tests, sizeof(tests) / sizeof *(tests))

/* enum weir_backend of WEIR_TEST_MODE in the environment: auto, incremental, classic, epoll. */
uint32_t world_mode(void);
int world_setup(void **state);
/* Asserts that no stream is open or parked and the budget was kept, closes, and then that nothing is left. */
int world_teardown(void **state);
#define scenario(function) cmocka_unit_test_setup_teardown(function, world_setup, world_teardown)

/* A loop instead of the one there is: other options. Mode, allocator and size are set here. */
void world_reopen(world *w, weir_loop_options *options);
/* A second world, by hand: for another thread. */
void world_open(world *w, weir_loop_options *options);
void world_close(world *w);
/* Its loop is closed early; the rest of world_close() comes at the scenario's end. */
void world_close_loop(world *w);

/* A line of the story. */
void say(world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
void say_data(voice *v, const void *data, size_t size);
/* The story so far must be this; it begins anew. */
#define told(w, expected) world_told(w, expected, __FILE__, __LINE__)
void world_told(world *w, const char *expected, const char *file, int line);
/* What was told so far is in no certain order, or too much: it was looked at in another way. */
void forget_story(world *w);
/* What the loop has counted: bytes, of them copied by writes, connections accepted. */
void counted(world *w, uint64_t in, uint64_t out, uint64_t copied, uint64_t accepted);
weir_loop_stats loop_stats(const world *w);
weir_pool_stats pool_stats(const world *w);
weir_stream_stats stream_stats(const weir_stream *stream);

/* "0", "ECONNRESET", ... */
const char *error_text(int error);

#define ok(expression) assert_int_equal((expression), 0)

/* Turns until the condition holds; fails the test when it does not come to hold. */
#define until(w, condition)                                           \
    do {                                                              \
        int64_t until_deadline = now_ns() + INT64_C(30000000000);     \
        while (!(condition)) {                                        \
            if (now_ns() > until_deadline)                            \
                world_gave_up(w, #condition);                         \
            assert_true(weir_loop_run_once((w)->loop, 1000000) >= 0); \
        }                                                             \
    } while (0)
void world_gave_up(world *w, const char *condition);
/* Some turns that do not sleep: what must not happen could. */
void turns(world *w, unsigned count);
int64_t now_ns(void);
void sleep_ms(unsigned ms);

/* ---- streams that tell ---------------------------------------------------------------------------------- */

typedef struct teller teller;
struct teller {
    voice voice;
    weir_stream *stream; /* borrowed; NULL once on_close was called */
    unsigned opens, ends, drains, closes;
    int reason, error;
    /* Called last in each: o open, d data, e end, r drain, c close. May be NULL. */
    void (*hook)(teller *t, char event, const weir_slice *slice);
    void *userdata;
};

extern const weir_stream_callbacks teller_callbacks;
/* Without on_data; without on_end. */
extern const weir_stream_callbacks deaf_callbacks, endless_callbacks;

void teller_start(world *w, teller *t, const char *name, weir_stream *stream);
void teller_adopt(world *w, teller *t, const char *name, int fd, const weir_stream_options *options);
void teller_dial(world *w, teller *t, const char *name, const char *address, const weir_stream_options *options);
/* A started stream and its peer, a blocking socket. */
int teller_pair(world *w, teller *t, const char *name, bool tcp, const weir_stream_options *options);

/* ---- accepting ------------------------------------------------------------------------------------------ */

typedef struct gate gate;
struct gate {
    world *world;
    weir_listener *listener; /* NULL once on_close was called */
    teller *tellers;         /* started with these, in order of coming; NULL: they are left unstarted */
    weir_stream *streams[8]; /* the first of them */
    unsigned count, closes;
    void (*hook)(gate *g, weir_stream *stream);
};

extern const weir_listener_callbacks gate_callbacks;
void gate_open(world *w, gate *g, const char *address, const weir_listener_options *options, teller *tellers);

/* ---- peers: plain blocking sockets ---------------------------------------------------------------------- */

/* A connected pair: TCP over loopback if @tcp, else Unix. */
void peer_pair(bool tcp, int ret_fds[2]);
/* Connected to where @listener listens; the backlog answers, so the loop need not run. */
int peer_connect(const weir_listener *listener);
void peer_send(int fd, const void *data, size_t size);
void peer_send_text(int fd, const char *text);
/* A reset instead of an end. */
void peer_reset(int fd);
/* Turns until so much has come, or an end, or an error, which is told. What came is told in one line, after whatever
 * happened meanwhile. Returns how much. */
uint64_t peer_hear(world *w, voice *v, int fd, uint64_t size);
/* The same, to the end. */
uint64_t peer_hear_all(world *w, voice *v, int fd);
/* What is written to it stays in the queue until the peer reads. (With a small receive buffer as well TCP would crawl.) */
void small_send_buffer(int fd);
/* "127.0.0.1:N", where nobody listens. */
void free_address(char *text, size_t size);

#endif
