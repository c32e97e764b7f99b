/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_H
#define WEIR_BASE_H

/*
 * weir: what every header shares, and the rules that hold for all of them.
 *
 * Results.    0 or more is success, a negative errno is failure, and on failure nothing has changed.
 *             Outputs (ret_) come last and are written on success only.
 * Ownership.  `const weir_slice *` is borrowed; a `weir_slice` that you have is yours to unref. No call ever
 *             consumes a reference of yours: what weir wants to hold, it references itself.
 * Lifetime.   Streams and listeners end by close and keep themselves alive until then, so a pointer to one is
 *             good until its on_close returns; ref it to have it for longer. A stream that was not started has no
 *             on_close: the pointer is good until you close or detach it, or until weir_loop_close() returns.
 *             Loops are yours: close, then unref. Timers, watches, signals, chains and pools are yours: the last
 *             unref ends them.
 * Threads.    Every ref and unref, weir_loop_post, weir_loop_stop, weir_pool_*, weir_slice_* : any thread.
 *             Everything else: the loop's thread, or -EPERM. (Until the first run, run_once or close, a loop
 *             belongs to whoever holds it, one thread at a time.)
 * Fork.       In the child of a fork every object made before it is dead: each call, unref included, gives
 *             -ECHILD (or does nothing), frees nothing and disturbs nothing of the parent. The payload is not
 *             there: a slice's bytes must not be looked at. A loop made in the child is as good as any. A child
 *             that was forked in a callback should _exit or exec there; if it returns from it, no other callback runs,
 *             and run, run_once and weir_loop_close return -ECHILD.
 * Callbacks.  None runs inside any call but run, run_once and weir_loop_close (and the release of wrapped memory,
 *             which runs inside its last weir_slice_unref()); a callback may call anything
 *             but those three (-EBUSY).
 * Options.    Structures begin with their size, are read during the call and not kept. Zero is the default of
 *             every field. A structure smaller than yours is an older caller and is fine; bytes that this
 *             library does not know must be zero (-E2BIG); smaller than version 0.1's is -EINVAL.
 * Tables.     Callback tables begin with their size, are kept by pointer and never copied: make them static const.
 * NULL        where an object is needed is -EINVAL; close, abort and unref take it as nothing to do.
 * Mistakes.   Wrong thread, wrong size, NULL for an object, started twice: they return the error and change
 *             nothing; a library built with -Dmisuse=abort stops there and says so. Results that must be
 *             looked at are marked; a refused write is the usual one.
 * errno       is never touched, nothing is logged, no signal handler is installed, no thread is made.
 * Times.      Nanoseconds, int64_t. In options 0 is the default and WEIR_NEVER is none.
 *
 * For a machine that reads the headers: cpp -P -DWEIR_PARSE leaves plain C without includes or attributes.
 */

#ifndef WEIR_PARSE
#include <stddef.h>
#include <stdint.h>
#endif

#if defined(__GNUC__) && !defined(WEIR_PARSE)
#define WEIR_MUST_CHECK __attribute__((warn_unused_result))
#else
#define WEIR_MUST_CHECK
#endif
#ifndef WEIR_API /* the library's own build defines it; a user needs nothing */
#define WEIR_API
#endif

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

typedef struct weir_loop weir_loop;
typedef struct weir_pool weir_pool;
typedef struct weir_stream weir_stream;
typedef struct weir_listener weir_listener;
typedef struct weir_timer weir_timer;
typedef struct weir_chain weir_chain;
typedef struct weir_watch weir_watch;
typedef struct weir_signal weir_signal;
typedef struct weir_block weir_block; /* memory that slices count; never touched by name */

enum weir_limits {
    WEIR_NEVER = -1,         /* a timeout that does not come */
    WEIR_ADDRESS_SIZE = 128, /* room for any address as text, with its zero */
    WEIR_REASON_SIZE = 256   /* room for any sentence of weir_loop_new and get_info */
};

/** weir_version() - the running library's version, major << 16 | minor << 8 | patch. Any thread. */
WEIR_API uint32_t weir_version(void);

/** weir_error_name() - "ECONNRESET" for -ECONNRESET (either sign); static text, never NULL. Any thread. */
WEIR_API const char *weir_error_name(int error);

/** weir_error_text() - "connection reset by peer" for -ECONNRESET; static text, not localized. Any thread. */
WEIR_API const char *weir_error_text(int error);

#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
