/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SIGNAL_H
#define WEIR_SIGNAL_H

/*
 * Signals as events of a loop, through a signalfd: no handler is installed and nothing is interrupted. weir touches a signal
 * only where you start one of these, and only its bit of the calling thread's mask. A weir_signal is yours, as a timer is:
 * new gives one reference, the last unref stops it. On the loop's thread no callback comes after that; from another thread
 * one may still be running, and a post made after the unref runs after the last one (free the userdata there). After the
 * loop's close it never fires; unref stays allowed.
 *
 * What the kernel does with signals stays so:
 *
 *   - A signal of the process (kill, SIGCHLD) goes to any thread that does not block it, with its default action. So
 *     start them before other threads are made, which inherit the mask, or block it in each thread. (SIGCHLD and others
 *     whose default is to be ignored are even lost if the main thread alone does not block them.)
 *   - A signal that comes again before it was heard is heard once: after SIGCHLD, wait for every child there is. (Those
 *     from SIGRTMIN on are queued and come one by one, in different turns.)
 *   - Where several hear the same number, in one loop or in several, each signal is heard by one of them, any one.
 *   - A child inherits the mask over fork and exec, and most programs do not expect a blocked SIGTERM: unblock it there
 *     (posix_spawnattr_setsigmask, or pthread_sigmask between fork and exec).
 */

#include "base.h"

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

typedef void (*weir_signal_fn)(weir_signal *signal, int number, void *userdata);

/** weir_signal_new() - to hear signal @number; not started, nothing is blocked yet; @function is needed. Loop's thread. 0;
 * -EINVAL: NULL, no signal's number, or one that cannot be waited for (SIGKILL, SIGSTOP; SIGSEGV, SIGBUS, SIGFPE, SIGILL,
 * SIGTRAP, SIGSYS); -ENOMEM; -EPERM; -ESHUTDOWN; -ECHILD. */
WEIR_API WEIR_MUST_CHECK int weir_signal_new(weir_loop *loop, int number, weir_signal_fn function, void *userdata,
                                             weir_signal **ret_signal);
/** weir_signal_ref() - any thread. */
WEIR_API weir_signal *weir_signal_ref(weir_signal *signal);
/** weir_signal_unref() - any thread; NULL is fine; returns NULL. The last one stops it, see weir_signal_stop(). */
WEIR_API weir_signal *weir_signal_unref(weir_signal *signal);
/**
 * weir_signal_start() - block the signal in the calling thread, and hear it instead
 * @signal: yours
 *
 * Costs a descriptor. Also heard is what was pending already. A started signal does not keep run going. Started already:
 * nothing changes.
 *
 * Context:   the loop's thread (before the first run: the one that is to run it, or one that it is to inherit its mask
 *            from); no callback inside.
 * Return:    0; -EINVAL: NULL; -EMFILE, -ENFILE, -ENOMEM: the kernel has no signalfd for us; -EPERM; -ESHUTDOWN: the loop is
 *            closed; -ECHILD.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_signal_start(weir_signal *signal);
/**
 * weir_signal_stop() - do not hear it any more, and leave the mask as start found it
 * @signal: yours
 *
 * It is unblocked only if start blocked it, and then by the last one that hears this number in this loop. If it is
 * pending just then, it has its default action at once. On another thread than start was on, the mask stays as it is.
 * (Two loops that take turns on one thread do not know of each other: stop first what was started last.) The loop's close
 * does the same, and so does weir if the kernel should not hear it any more.
 *
 * Context:   the loop's thread, also in the callback; no callback after it.
 * Return:    0, also when it was not started; -EINVAL: NULL; -EPERM; -ECHILD.
 * Since:     0.1
 */
WEIR_API int weir_signal_stop(weir_signal *signal);

#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
