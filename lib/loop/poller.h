/* SPDX-License-Identifier: MIT */
#ifndef WEIR_LOOP_POLLER_H
#define WEIR_LOOP_POLLER_H

/*
 * What watches and signals have in common: a handle of the application's that hears again and again, as long as it is so,
 * that a descriptor is ready.
 *
 * Each hearing is one poll, which ends with it; settling starts the next one after the callback is over. So what is
 * still ready is heard in every turn, nothing is heard twice in one, and no call needs the kernel.
 *
 * Two counts. The application's references: when the last one is gone, the poller is stopped and heard of no more.
 * And those who need its memory: the application as long as it has a reference, and the loop from the start until
 * the kernel has given up the last poll. The last of them frees it, on whichever thread.
 */

#include "loop/loop.h"

typedef struct weir__poller weir__poller;

typedef struct weir__poller_verbs {
    /* It is started, and its descriptor is ready. @events: poll(2)'s; or -errno: it has been stopped, since that will not
     * change. The application's callback may run inside, and the poller is there until it is over. */
    void (*ready)(weir__poller *poller, int events);
    /* It was started, and is not any more. Loop's thread. */
    void (*stopped)(weir__poller *poller);
    size_t size; /* of the whole handle, which begins with the poller */
} weir__poller_verbs;

struct weir__poller {
    weir__actor actor; /* a member of the loop from a start until it is stopped and the kernel is done */
    const weir__poller_verbs *verbs;
    _Atomic(uint32_t) refs;   /* the application's */
    _Atomic(uint32_t) needed; /* by the application; by the loop */
    weir_loop *loop;          /* referenced */
    weir__post ending;        /* the last unref, when it is another thread's */
    weir__op op;
    int fd;
    uint32_t events;        /* wanted; poll(2)'s */
    uint32_t polled_events; /* those of the poll that is under way */
    bool is_started;
    bool is_stale; /* the poll that is under way is of an earlier start, and perhaps of another file */
};

/* A handle, not started. 0; -ENOMEM. */
int weir__poller_new(weir_loop *loop, const weir__poller_verbs *verbs, weir__poller **ret_poller);
void weir__poller_ref(weir__poller *poller);
/* Any thread. */
void weir__poller_unref(weir__poller *poller);
/* The loop's thread, and it is not closing. Started already: other events, of the same descriptor. */
void weir__poller_start(weir__poller *poller, int fd, uint32_t events);
/* The loop's thread. */
void weir__poller_stop(weir__poller *poller);

#endif
