/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_HOSTILE_H
#define WEIR_TESTS_HOSTILE_H

/*
 * What the tests of hostile surroundings share. A filter of system calls cannot be taken back, and a limit is easily
 * forgotten, so each ordeal runs in a child of its own, which has never made a loop before: what the library has found
 * out about its kernel it found out there.
 *
 * A child has no cmocka to fall back on. What it finds wrong it writes to a pipe, and ends; the parent fails with it.
 */

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "support/support.h"

#define MS INT64_C(1000000)

typedef void (*ordeal)(const void *argument);

/* Runs it in a child; fails the test when the child found something wrong or did not come to its end, and skips it when
 * the child says that this cannot be had here. */
void in_a_child(ordeal function, const void *argument);
/* The signal that ended the child; 0: none did. */
int signal_that_ends(ordeal function, const void *argument);
/* What AUTO chooses where nothing is in its way: enum weir_backend. */
uint32_t undisturbed_backend(void);
/* WEIR_TEST_MODE's. */
uint32_t backend_under_test(void);

/* ---- in the child --------------------------------------------------------------------------------------- */

/* Ends the child. */
#define CHECK(condition)                             \
    do {                                             \
        if (!(condition))                            \
            child_found(#condition, 0, 0, __LINE__); \
    } while (0)
#define CHECK_INT(expression, wanted)                                      \
    do {                                                                   \
        long check_int = (long)(expression);                               \
        if (check_int != (long)(wanted))                                   \
            child_found(#expression, check_int, (long)(wanted), __LINE__); \
    } while (0)
_Noreturn void child_found(const char *expression, long value, long wanted, int line);
/* Ends the child, and the parent skips the test. */
_Noreturn void child_skips(const char *why);

/* ---- filters of system calls ------------------------------------------------------------------------------ */

typedef struct denial {
    int number;      /* SYS_* */
    uint32_t answer; /* DENY(errno) or KILL */
    bool has_first;  /* only where the first argument is this */
    uint32_t first;
} denial;

#define DENY(error) (UINT32_C(0x00050000) | (uint32_t)(error)) /* SECCOMP_RET_ERRNO */
#define KILL UINT32_C(0x80000000)                              /* SECCOMP_RET_KILL_PROCESS */
#define COUNT(array) (sizeof(array) / sizeof *(array))

/* For the rest of the child's life. A later filter counts where it is harder. */
void deny(const denial *denials, size_t count);
/* All three of io_uring's. */
void deny_io_uring(uint32_t answer);

/* ---- limits ------------------------------------------------------------------------------------------------- */

/* No more than @spare descriptors are to be had from now on; -1: as many as before. */
void leave_descriptors(int spare);

/* ---- loops ---------------------------------------------------------------------------------------------- */

typedef struct place {
    test_memory memory;
    weir_loop *loop;
    unsigned fds, threads; /* before the loop */
    char reason[WEIR_REASON_SIZE];
} place;

/* weir_loop_new(), with a reason asked for and memory that is counted. */
int place_try(place *p, uint32_t backend);
/* Asserts success, and that @runs is what runs. */
void place_open(place *p, uint32_t asked, uint32_t runs);
/* Nothing is left: descriptor, thread, block. Also after place_try() failed. */
void place_close(place *p);
/* That loop is not to be had, the reason says so with this word in it, and nothing is left. */
void expect_no_loop(uint32_t asked, int error, const char *word);
/* That loop is to be had, runs in this mode, and does all that a loop does: it listens, dials, echoes every byte, its
 * timers fire, its posts run, its watches are heard; and it leaves nothing. */
void expect_a_good_loop(uint32_t asked, uint32_t runs);
/* Bytes through a listener of the loop's at @address and back to a stream that it has dialled. */
void expect_an_echo(place *p, const char *address);

/* Turns until the condition holds. */
#define TURN_UNTIL(p, condition)                                   \
    do {                                                           \
        int64_t turn_until = test_now_ns() + INT64_C(30000) * MS;  \
        while (!(condition)) {                                     \
            if (test_now_ns() > turn_until)                        \
                child_found("never: " #condition, 0, 0, __LINE__); \
            CHECK(weir_loop_run_once((p)->loop, 10 * MS) >= 0);    \
        }                                                          \
    } while (0)

#endif
