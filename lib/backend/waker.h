/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BACKEND_WAKER_H
#define WEIR_BACKEND_WAKER_H

/*
 * Waking a loop that sleeps, from any thread or signal handler, and only if it sleeps.
 *
 *   loop    sleeping = 1; look at every queue again; sleep; sleeping = 0
 *   others  put into a queue; if sleeping was 1, make it 0 and write to the eventfd
 *
 * All of these are sequentially consistent, so either the loop sees the queue or the other sees it sleeping. The
 * waker outlives its loop: slices hold the pool and the pool holds the waker.
 */

#include "base/alloc.h"
#include "base/base.h"

typedef struct weir__waker {
    const weir_allocator *allocator;
    _Atomic(uint32_t) refs;
    _Atomic(int) fd;         /* an eventfd that is never read; -1 once the loop is closed */
    _Atomic(uint32_t) users; /* threads between looking at fd and being done with it */
    _Atomic(uint32_t) sleeping;
    _Atomic(uint64_t) wakes;
} weir__waker;

int weir__waker_new(const weir_allocator *allocator, weir__waker **ret_waker);
void weir__waker_ref(weir__waker *waker);
void weir__waker_unref(void *waker);
/* Close the eventfd; later wakes do nothing. */
void weir__waker_close(weir__waker *waker);

/* The loop's thread: say that it is about to sleep, and that it is back. */
void weir__waker_sleep(weir__waker *waker);
void weir__waker_rise(weir__waker *waker);
/* Any thread, also a signal handler: takes no lock. */
void weir__waker_wake(void *waker);

#endif
