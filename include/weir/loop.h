/* SPDX-License-Identifier: MIT */
#ifndef WEIR_LOOP_H
#define WEIR_LOOP_H

#include "base.h"
#include "pool.h"
#include "slice.h"

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

/* AUTO is the first of the others that is to be had, or what WEIR_BACKEND in the environment says, for debugging: auto,
 * uring-incremental, uring-classic or epoll. (Not in a program that has more rights than its user.) */
enum weir_backend {
    WEIR_BACKEND_AUTO = 0,
    WEIR_BACKEND_URING_INCREMENTAL = 1, /* a receive buffer serves many receives: Linux 6.12.31, 6.15 */
    WEIR_BACKEND_URING_CLASSIC = 2,     /* a buffer a receive: Linux 6.0 */
    WEIR_BACKEND_EPOLL = 3              /* no io_uring call is made */
};

/* Before it sleeps, a loop may look out for what comes next: what comes then is answered some microseconds sooner, and the
 * core is busy meanwhile. Only at the beginning of a silence: a loop that is idle sleeps. */
enum weir_busy_poll {
    WEIR_BUSY_POLL_OFF = 0,
    WEIR_BUSY_POLL_ADAPTIVE = 1, /* while gaps have lately been short enough for it to pay */
    WEIR_BUSY_POLL_FIXED = 2     /* each time, whatever comes */
};

enum weir_loop_flags {
    WEIR_LOOP_KEEP_RUNNING = 1 /* run returns only on stop, not when nothing is open (workers fed by post) */
};

/* Memory for one loop: handles, queues, blocks; receive buffers are mapped from the system. Kept by pointer, like
 * every table; callable from any thread until the last handle and the last slice of the loop are gone, which may be
 * after the loop. */
typedef struct weir_allocator {
    size_t size; /* sizeof(weir_allocator) */
    void *(*alloc)(size_t size, size_t alignment, void *userdata);
    void (*free)(void *memory, size_t size, size_t alignment, void *userdata);
    void *userdata;
} weir_allocator;

typedef struct weir_loop_options {
    size_t size;                      /* sizeof(weir_loop_options) */
    uint32_t backend;                 /* enum weir_backend; not AUTO: exactly that, or the error */
    uint32_t flags;                   /* WEIR_LOOP_* */
    const weir_pool_options *pool;    /* of the loop's own pool */
    const weir_allocator *allocator;  /* default: mimalloc or libc, as built */
    uint32_t max_streams;             /* at this number listeners rest and dial says -EUSERS; default 1,000,000 */
    uint32_t max_turn_events;         /* events between two looks at the kernel; default 1024 */
    uint32_t busy_poll;               /* enum weir_busy_poll; default off */
    uint32_t busy_poll_share_percent; /* of a core, in any 100 ms, is spun at most; default 50; FIXED: 100 */
    int64_t busy_poll_ns;             /* to spin once there is nothing to do, 10 ms at most; default 50 us */
    char *reason;                     /* out: on failure a sentence that says why */
    size_t reason_size;               /* WEIR_REASON_SIZE is enough */
} weir_loop_options;

typedef struct weir_loop_info {
    size_t size;                   /* in: sizeof(weir_loop_info) */
    uint32_t backend;              /* what runs */
    uint32_t asked;                /* what was asked for */
    uint64_t features;             /* WEIR_FEATURE_* */
    char reason[WEIR_REASON_SIZE]; /* why not a better one, for a log line; "" if there is none */
} weir_loop_info;

enum weir_feature {
    WEIR_FEATURE_DEFER_TASKRUN = 1, /* completions are produced only when the loop asks for them */
    WEIR_FEATURE_NO_IOWAIT = 16     /* an idle loop does not show as iowait */
};

typedef struct weir_loop_stats {
    size_t size; /* in: sizeof(weir_loop_stats) */
    uint64_t turns;
    uint64_t enters;      /* io_uring_enter calls; epoll: epoll_wait calls */
    uint64_t completions; /* that the kernel posted; epoll: calls tried because something was ready */
    uint64_t overflows;   /* times the completion queue was found overflown */
    uint64_t rearms;      /* multishot operations started again after the kernel ended them */
    uint64_t slices;      /* received */
    uint64_t bytes_in, bytes_out;
    uint64_t bytes_copied;  /* by weir: copied writes, keep, small slices queued while memory is short */
    uint64_t accepted;      /* connections */
    uint64_t accept_stalls; /* times accepting rested for want of descriptors */
    uint64_t posts;         /* run */
    uint64_t wakes;         /* system calls made to wake this loop */
    uint64_t spins;         /* times it looked out before it would have slept */
    uint64_t spins_paid;    /* and something came */
    uint64_t spun_ns;       /* in all */
    uint32_t streams_open;  /* also unstarted and closing ones */
    uint32_t streams_unstarted;
    uint32_t listeners_open;
    uint32_t timers_started;
    uint32_t watches_started;
    uint32_t signals_started;
} weir_loop_stats;

typedef void (*weir_post_fn)(weir_loop *loop, void *userdata);

/* ---- life ------------------------------------------------------------------------------------------- */

/**
 * weir_loop_new() - a loop, its kernel objects and its pool
 * @options:  NULL for the defaults
 * @ret_loop: the loop
 *
 * Probes the kernel and picks how to run; weir_loop_get_info() says what and why.
 *
 * Ownership: on success yours, to be closed and then unref'ed. A loop that is only unref'ed leaks: nobody
 *            would have been there to hear its on_close.
 * Context:   any thread; not yet bound to one. No callback.
 * Return:    0; -ENOSYS, -EPERM: the mode asked for is not to be had (@options->reason says why); -ENOMEM;
 *            -EMFILE, -ENFILE; -EINVAL, -E2BIG: @options; -EINVAL: WEIR_BACKEND in the environment names no mode.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_loop_new(const weir_loop_options *options, weir_loop **ret_loop);

/** weir_loop_ref() - any thread; returns @loop. Threads that post hold one. */
WEIR_API weir_loop *weir_loop_ref(weir_loop *loop);

/** weir_loop_unref() - any thread; NULL is fine; returns NULL. Frees a closed loop. */
WEIR_API weir_loop *weir_loop_unref(weir_loop *loop);

/**
 * weir_loop_close() - end everything, hear every on_close, leave the kernel clean
 * @loop: NULL is fine
 *
 * Listeners close, streams abort (reason WEIR_CLOSE_LOOP), posts already taken run, on_close comes for each,
 * descriptors close, the kernel gives up the buffers. Slices you hold stay good. From then on every call but
 * ref, unref and get answers -ESHUTDOWN. For a gentle end: weir_loop_drain(), run, then this.
 *
 * Ownership: the loop's own reference is dropped; yours stays. Streams that were not started end without a word; the
 *            callbacks in here may still use their handles, which are gone when it returns, unless ref'ed.
 * Context:   the loop's thread, outside callbacks; callbacks run inside it. Binds an unbound loop.
 * Return:    0, also when it is closed already; -EPERM: wrong thread; -EBUSY: in a callback (stop instead);
 *            -ECHILD; -ETIMEDOUT: the kernel held on to something for many seconds: the loop is closed, and what
 *            was not given up is leaked, not freed under it.
 * Since:     0.1
 */
WEIR_API int weir_loop_close(weir_loop *loop);

/* ---- running ---------------------------------------------------------------------------------------- */

/**
 * weir_loop_run() - run until stopped, drained, or nothing is left open
 * @loop: the loop
 *
 * Streams, listeners, started timers, started watches and posts keep it running.
 *
 * Context:   binds the loop to this thread. Callbacks run inside it.
 * Return:    0; -EPERM: another thread's loop; -EBUSY: already running; -ESHUTDOWN; -ECHILD; -EINVAL: NULL; or
 *            what the kernel said (-ENOMEM), after which it may be called again.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_loop_run(weir_loop *loop);

/** weir_loop_run_once() - one turn, asleep for at most @timeout_ns (0 not at all, WEIR_NEVER). A timeout is slept
 * for even if nothing is open, for another thread may post; with WEIR_NEVER it returns at once then, as run does,
 * unless WEIR_LOOP_KEEP_RUNNING is set. Return: 1 if something is still open, else 0; errors as weir_loop_run(). */
WEIR_API WEIR_MUST_CHECK int weir_loop_run_once(weir_loop *loop, int64_t timeout_ns);

/** weir_loop_stop() - make run (or run_once) return after this turn; if none runs, the next one
 * returns at once. Any thread that holds @loop, and signal handlers. */
WEIR_API void weir_loop_stop(weir_loop *loop);

/**
 * weir_loop_drain() - let what is open finish, but not for ever
 * @loop:     the loop
 * @grace_ns: then what is still open is aborted; WEIR_NEVER
 *
 * Listeners close at once and none can be opened (-ESHUTDOWN); streams go on until they end by themselves, and
 * dial and adopt still work, for what is open may need them. Run returns when the last stream is closed (also
 * one that was not started), whatever timers and watches are left. When the grace is over nothing new can be made, and unstarted
 * streams are not waited for. What a server does on SIGTERM; a second call may shorten the grace, not lengthen it.
 *
 * Context:   the loop's thread; callbacks come later.
 * Return:    0; -EINVAL: NULL, or a negative time; -EPERM; -ESHUTDOWN; -ECHILD.
 * Since:     0.1
 */
WEIR_API int weir_loop_drain(weir_loop *loop, int64_t grace_ns);

/**
 * weir_loop_post() - run a function on the loop's thread
 * @loop:     a loop that the caller holds a reference on
 * @function: needed
 *
 * Posts of one thread run in their order. A sleeping loop is woken, a running one is not disturbed.
 *
 * Ownership: 0 is a promise that @function runs exactly once, at the latest inside weir_loop_close(); so
 *            @userdata may be handed over with it. On failure it never runs.
 * Context:   any thread, also the loop's own (it runs later in this turn or in the next one, never inside).
 *            Allocates a little.
 * Return:    0; -ESHUTDOWN: closed or closing; -ENOMEM; -EINVAL; -ECHILD.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_loop_post(weir_loop *loop, weir_post_fn function, void *userdata);

/* ---- asking ----------------------------------------------------------------------------------------- */

/** weir_loop_is_idle() - 1 when nothing is open that would keep run going, else 0. -EINVAL; -EPERM; -ECHILD. */
WEIR_API int weir_loop_is_idle(const weir_loop *loop);
/** weir_loop_is_own_thread() - 1 on the loop's thread, or while it has none. Any thread. */
WEIR_API int weir_loop_is_own_thread(const weir_loop *loop);
/** weir_loop_get_now() - monotonic ns as of this turn. -EINVAL; -EPERM; -ECHILD. */
WEIR_API int64_t weir_loop_get_now(const weir_loop *loop);
/** weir_loop_get_pool() - borrowed; ref it for another thread. */
WEIR_API weir_pool *weir_loop_get_pool(weir_loop *loop);
/** weir_loop_get_info() - what runs and why. Fills @info up to the size in it. 0; -EINVAL; -EPERM; -ECHILD. */
WEIR_API int weir_loop_get_info(const weir_loop *loop, weir_loop_info *info);
/** weir_loop_get_stats() - 0; -EINVAL; -EPERM. */
WEIR_API int weir_loop_get_stats(const weir_loop *loop, weir_loop_stats *stats);

/* level: enum weir_pressure_level. */
typedef void (*weir_pressure_fn)(weir_loop *loop, weir_pool *pool, int level, void *userdata);

/**
 * weir_loop_set_pressure() - hear when memory becomes scarce, and when that is over
 * @function: called at the end of a turn whose level differs from the last one told, at first WEIR_PRESSURE_NONE; NULL:
 *            nobody any more
 *
 * The numbers are weir_pool_get_stats()'s. What helps is to drop slices that are held, to close streams that hold many,
 * or to stop accepting. At WEIR_PRESSURE_STUCK streams wait for what they, or others, hold themselves, half messages in
 * chains, say: who ends the one that holds most lets all the others go on. weir does none of that by itself. But once nothing
 * has moved for two seconds it notices resets also of streams that wait for memory (what lay unread before one is lost), and
 * their idle timeouts run.
 *
 * Context:   loop's thread; @function is called in a turn and may do what a callback may.
 * Return:    0; -EINVAL: no loop; -EPERM; -ECHILD.
 * Since:     0.1
 */
WEIR_API int weir_loop_set_pressure(weir_loop *loop, weir_pressure_fn function, void *userdata);
#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
