/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TIMER_H
#define WEIR_TIMER_H

/* Timers are yours: new gives one reference, the last unref stops it. On the loop's thread no callback comes
 * after that; from another thread one may still be running, and a post made after the unref runs after the last
 * one (free the userdata there). After the loop's close they never fire; unref stays allowed. */

#include "base.h"

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

typedef void (*weir_timer_fn)(weir_timer *timer, void *userdata);

/** weir_timer_new() - not started; @function is needed. Loop's thread. 0; -EINVAL; -ENOMEM; -EPERM; -ESHUTDOWN;
 * -ECHILD. */
WEIR_API WEIR_MUST_CHECK int weir_timer_new(weir_loop *loop, weir_timer_fn function, void *userdata,
                                            weir_timer **ret_timer);
/** weir_timer_ref() - any thread. */
WEIR_API weir_timer *weir_timer_ref(weir_timer *timer);
/** weir_timer_unref() - any thread; NULL is fine; returns NULL. */
WEIR_API weir_timer *weir_timer_unref(weir_timer *timer);
/**
 * weir_timer_start() - fire after a time, once or again and again
 * @timer:     yours
 * @delay_ns:  from now; 0 or more
 * @repeat_ns: then every so often; 0: once
 *
 * Started already: moved. Pushing a timer forward (an idle timeout at every read) costs a store. It never fires
 * before the next turn, and a timer that is late fires once, not once for each period missed.
 *
 * Context:   the loop's thread; no callback.
 * Return:    0; -EINVAL: NULL, or a negative time; -ENOMEM; -EPERM; -ESHUTDOWN: the loop is closed; -ECHILD.
 * Since:     0.1
 */
WEIR_API int weir_timer_start(weir_timer *timer, int64_t delay_ns, int64_t repeat_ns);
/** weir_timer_stop() - it does not fire after this. 0, also when it was not started; -EINVAL; -EPERM; -ECHILD. */
WEIR_API int weir_timer_stop(weir_timer *timer);

#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
