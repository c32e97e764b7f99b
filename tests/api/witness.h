/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_WITNESS_H
#define WEIR_TESTS_WITNESS_H

/* What the tests of the public functions share: a fixture as cmocka's state, streams that write down what they are
 * told, and blocking peers that read and write exactly. */

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "support/support.h"

/* ---- a fixture for each test: a loop, and nothing left of it ---------------------------------------- */

int witness_setup(void **state);
int witness_teardown(void **state);

#define loop_test(function) cmocka_unit_test_setup_teardown(function, witness_setup, witness_teardown)

/* Turns until the condition holds; fails the test when it does not come to hold. */
#define run_until(fixture, condition)                                       \
    do {                                                                    \
        int64_t run_until_deadline = test_now_ns() + INT64_C(20000000000);  \
        while (!(condition)) {                                              \
            if (test_now_ns() > run_until_deadline)                         \
                fail_msg("never came true: %s", #condition);                \
            assert_true(weir_loop_run_once((fixture)->loop, 1000000) >= 0); \
        }                                                                   \
    } while (0)

/* Some turns that do not sleep: what is only to be carried out is, and what must not happen could. */
void run_turns(test_fixture *fixture, unsigned turns);

/* ---- streams that tell ------------------------------------------------------------------------------- */

typedef struct witness witness;
struct witness {
    weir_stream *stream; /* borrowed; NULL once on_close was called */
    unsigned opens, slices, ends, drains, closes;
    int reason, error;       /* on_close's */
    size_t size;             /* bytes that came */
    uint8_t bytes[64 << 10]; /* the first of them */
    char order[32]; /* the first events: o open, d data (several in a row: one), e end, r drain, c close */
    void (*hook)(witness *w, char event, const weir_slice *slice); /* called last in each; may be NULL */
    void *userdata;
};

extern const weir_stream_callbacks witness_callbacks;
/* The same, but without on_data; without on_end. */
extern const weir_stream_callbacks witness_deaf_callbacks, witness_endless_callbacks;

/* Adopt a socket and start it. Asserts success. */
void witness_adopt(test_fixture *fixture, witness *w, int fd, const weir_stream_options *options);
/* A started stream and its peer, a blocking socket. */
int witness_pair(test_fixture *fixture, witness *w, bool tcp, const weir_stream_options *options);

/* ---- accepting --------------------------------------------------------------------------------------- */

typedef struct witness_gate {
    weir_listener *listener;
    weir_stream *streams[64]; /* accepted, not started */
    unsigned count, closes;
    int error;
    bool closes_them;
} witness_gate;

extern const weir_listener_callbacks witness_gate_callbacks;

/* A started listener; options may be NULL. */
void witness_listen(test_fixture *fixture, witness_gate *gate, const char *address,
                    const weir_listener_options *options);

/* ---- peers ------------------------------------------------------------------------------------------- */

/* All of it, or the test fails. The sockets block, so the kernel must have room, or another thread run the loop. */
void peer_send(int fd, const void *data, size_t size);
/* Exactly so much. */
void peer_receive(int fd, void *data, size_t size);
/* Is it at its end? Fails the test when bytes come. */
void peer_expect_end(int fd);
/* A reset instead of an end. */
void peer_reset(int fd);
/* What is there to be read now, without waiting: bytes; 0 at the end; -errno. */
int peer_poll(int fd, void *data, size_t size);
void set_buffer_sizes(int fd, int bytes);

/* ---- memory that is lent ----------------------------------------------------------------------------- */

typedef struct lent {
    unsigned releases;
    const void *data;
    size_t size;
    pthread_t thread;
} lent;

/* A weir_release_fn whose userdata is a lent. */
void lent_release(const void *data, size_t size, void *userdata);

#endif
