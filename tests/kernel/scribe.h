/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_SCRIBE_H
#define WEIR_TESTS_SCRIBE_H

/*
 * What the tests on the real kernel share: streams that write down what they are told and check each byte, peers that
 * do the same on the other side without ever blocking, and threads that are started and joined.
 */

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "loop/loop.h"
#include "support/support.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

/* As often as is worth the time: fewer under a sanitizer. */
#define TIMES(plain, sanitized) (SANITIZED ? (sanitized) : (plain))

/* Then a test that hangs is a test that failed. WEIR_TEST_PATIENCE_S in the environment, or 30. */
#define PATIENCE_S patience_s()
unsigned patience_s(void);
#define MS INT64_C(1000000)

/* ---- a stream that writes down ------------------------------------------------------------------------ */

typedef struct scribe scribe;
struct scribe {
    weir_stream *stream; /* NULL until it has one, and from on_close on */
    uint64_t seed;       /* its peer sends test_byte(seed, 0), test_byte(seed, 1), ... */
    uint64_t received;
    int64_t wrong;     /* the first position that differed; -1: none */
    char events[24];   /* o open, d data (once for many in a row), e end, r drain ("room"), c close */
    int reason, error; /* on_close's */
    void (*hook)(scribe *s, char event, const weir_slice *slice); /* inside each callback, last; may be NULL */
    void *userdata;
};

extern const weir_stream_callbacks scribe_callbacks, scribe_callbacks_without_end;

/* All but hook and userdata, which stay. */
void scribe_init(scribe *s, uint64_t seed);
void scribe_start(scribe *s, weir_stream *stream);
/* A stream of a connected socket, started; options may be NULL. */
void scribe_adopt(const test_fixture *fixture, scribe *s, int fd, const weir_stream_options *options);
bool scribe_is_closed(void *s);
/* Exactly these events, this reason, this error, and no byte was wrong. Fails at the caller's line. */
#define scribe_expect(s, events, reason, error) \
    scribe_expect_at((s), (events), (reason), (error), __FILE__, __LINE__)
void scribe_expect_at(const scribe *s, const char *events, int reason, int error, const char *file, int line);

/* ---- the other side ------------------------------------------------------------------------------------- */

typedef struct peer {
    int fd;
    uint64_t seed; /* what the stream sends */
    uint64_t received;
    int64_t wrong;
    bool has_ended;
    int error;   /* errno of the read that failed */
    size_t most; /* reads no more than so much at a time; 0: all there is */
} peer;

void peer_init(peer *p, int fd, uint64_t seed);
/* Take what is there, without waiting. */
void peer_read(peer *p);
/* Reads, then: has the stream ended or reset? */
bool peer_is_over(void *p);
/* Exactly so many bytes, all right, and then the end. */
#define peer_expect_end(p, bytes) peer_expect_at((p), (bytes), true, 0, __FILE__, __LINE__)
/* So many right bytes, and then this error. */
#define peer_expect_error(p, bytes, error) peer_expect_at((p), (bytes), false, (error), __FILE__, __LINE__)
/* So many right bytes, and neither end nor error. */
#define peer_expect_open(p, bytes) peer_expect_at((p), (bytes), false, 0, __FILE__, __LINE__)
void peer_expect_at(const peer *p, uint64_t bytes, bool has_ended, int error, const char *file, int line);
/* Send test_byte(seed, position...), all of it; the socket has room or the other side reads. -errno if it failed. */
int peer_send(int fd, uint64_t seed, uint64_t position, size_t size);
/* Close with a reset, whatever is unread or unsent. */
void peer_reset(int fd);
/* How much the kernel may hold of what one of the two sent and the other did not read: about four times this. */
void set_room(const int fds[2], int bytes);
/* As test_pair(), with that from the beginning: a TCP window that shrinks later moves by the kernel's timers only. */
void pair_with_room(bool is_tcp, int bytes, int ret_fds[2]);

/* ---- the loop ------------------------------------------------------------------------------------------- */

/* Until a condition holds: an expression, looked at between turns. */
#define RUN_UNTIL(fixture, condition)                                                  \
    do {                                                                               \
        int64_t run_until_deadline = test_now_ns() + PATIENCE_S * INT64_C(1000000000); \
        while (!(condition)) {                                                         \
            if (test_now_ns() > run_until_deadline)                                    \
                fail_msg("in %u s it never became true: %s", PATIENCE_S, #condition);  \
            scribe_turn(fixture, 10 * MS);                                             \
        }                                                                              \
    } while (0)

/* One turn, and a look at the pool's equations. */
void scribe_turn(const test_fixture *fixture, int64_t timeout_ns);
/* As many turns as anything that hangs about can need. */
void scribe_turns(const test_fixture *fixture, int turns);

/* A sanitizer makes a thread of its own when a program makes its first: make that one, before threads are counted.
 * A group's setup. */
int first_thread(void **state);

/* ---- memory that is lent to a stream ---------------------------------------------------------------------- */

typedef struct loan {
    const uint8_t *data;
    size_t size;
    unsigned releases;
} loan;

/* A weir_release_fn; userdata is the loan, which looks whether what comes back is what was lent. */
void loan_release(const void *data, size_t size, void *userdata);
/* Bytes of a pattern, to lend: free() them. */
uint8_t *pattern_new(uint64_t seed, size_t size);

#endif
