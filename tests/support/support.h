/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_SUPPORT_H
#define WEIR_TESTS_SUPPORT_H

/*
 * What tests share: an allocator that counts and can fail, a look at the process's descriptors and threads, peers that
 * are plain blocking sockets, bytes whose every position is known, and loops that are closed and checked.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <weir.h>

#include "support/bytes.h"

/* ---- an allocator ----------------------------------------------------------------------------------- */

typedef struct test_memory {
    weir_allocator allocator;      /* give its address to a loop */
    _Atomic(uint64_t) allocations; /* made so far */
    _Atomic(uint64_t) live_blocks, live_bytes;
    _Atomic(uint64_t) fail_at;    /* the allocation of this number (from 1) fails; 0: none */
    _Atomic(uint64_t) fail_every; /* and each one of this many; 0: none */
    _Atomic(uint64_t) failed;
} test_memory;

void test_memory_init(test_memory *memory);

/* ---- the process ------------------------------------------------------------------------------------ */

unsigned test_count_fds(void);
unsigned test_count_threads(void);
int64_t test_now_ns(void);
void test_sleep_ms(unsigned ms);

/* ---- a fixture: one loop, and nothing left of it ----------------------------------------------------- */

typedef struct test_fixture {
    test_memory memory;
    weir_loop *loop;
    unsigned fds, threads; /* before the loop */
} test_fixture;

/* A loop of the mode under test (WEIR_TEST_MODE in the environment: incremental, classic, epoll; default AUTO). @tuning and
 * @pool may be NULL. Asserts success. */
struct weir__tuning;
void test_open(test_fixture *fixture, const struct weir__tuning *tuning, const weir_pool_options *pool);
void test_open_options(test_fixture *fixture, const struct weir__tuning *tuning, weir_loop_options *options);
/* Does it run on epoll? Then nothing is received before it is wanted, and the kernel holds no buffers. */
bool test_is_epoll(const test_fixture *fixture);
/* For what is about io_uring alone: skips the test if the mode under test is AUTO, and that is epoll here. */
void test_needs_io_uring(void);
/* Close and unref the loop, then assert that no descriptor, thread or byte of memory is left. */
void test_close(test_fixture *fixture);
/* Turns until @done says true; fails the test after @seconds. */
void test_run_until(test_fixture *fixture, bool (*done)(void *userdata), void *userdata, unsigned seconds);
/* Turns for a time, whatever happens. */
void test_run_for_ms(test_fixture *fixture, unsigned ms);
weir_loop_stats test_loop_stats(const test_fixture *fixture);
weir_pool_stats test_pool_stats(const test_fixture *fixture);

/* ---- peers ------------------------------------------------------------------------------------------ */

/* A blocking socket connected to where @listener listens. Asserts success. The kernel's backlog answers, so the loop need
 * not run. */
int test_connect(const weir_listener *listener);
/* A connected pair of sockets, both blocking: TCP over loopback if @tcp, else Unix. */
void test_pair(bool tcp, int ret_fds[2]);
/* A free port's address on loopback, "127.0.0.1:N", where nobody listens. */
void test_free_address(char *text, size_t size);

/* Keep what MUST_CHECK wants looked at, and look at it. */
#define test_ok(expression) assert_int_equal((expression), 0)

#endif
