/* SPDX-License-Identifier: MIT */
#ifndef WEIR_WATCH_H
#define WEIR_WATCH_H

/*
 * Watches tell when a descriptor that is not weir's is ready: for libraries that do their own input and output and only
 * want to know when (c-ares, libpq, libcurl). A watch is yours, as a timer is: new gives one reference, the last unref stops
 * it. On the loop's thread no callback comes after that; from another thread one may still be running, and a post made after
 * the unref runs after the last one (free the userdata there). After the loop's close it never fires; unref stays allowed.
 *
 * The descriptor stays yours, flags and all. Stop its watch before you close it. What happens else: as long as a poll of
 * the old file is under way, that file is not closed (its peer sees no end), and it may still be heard of; after that,
 * whatever has its number then is watched, or WEIR_WATCH_FAILED comes. Nothing breaks but your program's sense.
 */

#include "base.h"

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

enum weir_watch_events {
    WEIR_WATCH_READ = 1,
    WEIR_WATCH_WRITE = 2,
    WEIR_WATCH_ERROR = 4,  /* always heard */
    WEIR_WATCH_HANGUP = 8, /* always heard */
    WEIR_WATCH_FAILED =
        16 /* never asked for: the kernel cannot watch it (not open, no memory), and the watch has stopped */
};

/* @events: those of WEIR_WATCH_* that are so, of the ones that are wanted now; never none. */
typedef void (*weir_watch_fn)(weir_watch *watch, int events, void *userdata);

/**
 * weir_watch_new() - a watch of a descriptor, not started
 * @loop:      the loop
 * @fd:        anything that poll(2) takes; what is always ready for poll(2) (a regular file, a directory) is so here
 * @function:  needed
 * @userdata:  its
 * @ret_watch: the watch
 *
 * Any number of watches may have the same descriptor, in the same or in other loops: each hears of it.
 *
 * Ownership: yours, to be unref'ed. @fd stays yours, too.
 * Context:   the loop's thread; no callback. Asks the kernel nothing.
 * Return:    0; -EINVAL: NULL; -EBADF: @fd is negative (one that is not open is told by WEIR_WATCH_FAILED); -ENOMEM; -EPERM;
 *            -ESHUTDOWN; -ECHILD.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_watch_new(weir_loop *loop, int fd, weir_watch_fn function, void *userdata,
                                            weir_watch **ret_watch);
/** weir_watch_ref() - any thread. */
WEIR_API weir_watch *weir_watch_ref(weir_watch *watch);
/** weir_watch_unref() - any thread; NULL is fine; returns NULL. The last one stops it, see weir_watch_stop(). */
WEIR_API weir_watch *weir_watch_unref(weir_watch *watch);
/**
 * weir_watch_start() - hear of its descriptor, or of other events than until now
 * @watch:  yours
 * @events: WEIR_WATCH_READ, WEIR_WATCH_WRITE, both, or 0: errors and hang-ups alone
 *
 * From the next turn on the callback comes once in each turn for as long as the descriptor is ready (level-triggered):
 * who does not read what there is, or does not stop wanting room that there is, keeps the loop from sleeping. Started
 * already: from now on nothing else is heard than the new @events; this costs a cancellation, but in the callback nothing.
 * A started watch keeps run going.
 *
 * Context:   the loop's thread, also in the callback; no callback inside.
 * Return:    0; -EINVAL: NULL, or other bits; -EPERM; -ESHUTDOWN: the loop is closed; -ECHILD.
 * Since:     0.1
 */
WEIR_API int weir_watch_start(weir_watch *watch, int events);
/**
 * weir_watch_stop() - hear no more of it
 * @watch: yours
 *
 * When it returns, you may close the descriptor, and a new one with its number is not mistaken for it. But the kernel
 * may still hold the file, whose other end sees nothing until the loop has taken that back, in its next turn. (Run does not
 * return before; if it does not run, weir_loop_close() does it.)
 *
 * Context:   the loop's thread, also in the callback; no callback after it.
 * Return:    0, also when it was not started; -EINVAL: NULL; -EPERM; -ECHILD.
 * Since:     0.1
 */
WEIR_API int weir_watch_stop(weir_watch *watch);

#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
