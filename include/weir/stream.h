/* SPDX-License-Identifier: MIT */
#ifndef WEIR_STREAM_H
#define WEIR_STREAM_H

#include "base.h"
#include "slice.h"

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

/*
 * A stream is a TCP or Unix stream socket, or one that is on its way.
 *
 *   dial, adopt, on_accept ─▶ UNSTARTED ─start─▶ [CONNECTING ─▶ on_open] ─▶ OPEN
 *                                 │                                          │ close, abort, error
 *                                 └─detach─▶ fd        CLOSED ◀─ on_close ◀─ CLOSING
 *
 * Until start a stream is yours and says nothing, not even that it failed: start it (its events follow), detach it,
 * or close it (then no on_close comes; do not use the handle after). It may wait as long as you like, for another
 * connection say; only its connect timeout runs, so do not forget it: streams_unstarted counts them.
 * From start until on_close has returned weir keeps it alive; an application that never refs never unrefs.
 */

enum weir_stream_state {
    WEIR_STREAM_UNSTARTED = 0,
    WEIR_STREAM_CONNECTING = 1,
    WEIR_STREAM_OPEN = 2,
    WEIR_STREAM_CLOSING = 3,
    WEIR_STREAM_CLOSED = 4
};

enum weir_close_reason {
    WEIR_CLOSE_LOCAL = 1,   /* weir_stream_close, all of it sent */
    WEIR_CLOSE_PEER = 2,    /* the peer ended and nothing was lost */
    WEIR_CLOSE_ABORT = 3,   /* weir_stream_abort */
    WEIR_CLOSE_ERROR = 4,   /* error says which */
    WEIR_CLOSE_CONNECT = 5, /* never connected; error says why (-ETIMEDOUT, -ECONNREFUSED, ...) */
    WEIR_CLOSE_IDLE = 6,    /* the idle timeout: reset */
    WEIR_CLOSE_WRITE = 7,   /* the write timeout: the peer takes nothing of what is queued; reset */
    WEIR_CLOSE_LINGER = 8,  /* weir_stream_close, and the peer did not end in time: reset */
    WEIR_CLOSE_PIPE = 9,    /* the other end of its pipe failed; error is that one's */
    WEIR_CLOSE_DRAIN = 10,  /* weir_loop_drain's grace is over */
    WEIR_CLOSE_LOOP = 11    /* weir_loop_close */
};

/*
 * What a stream tells. static const, kept by pointer. Any member may be NULL:
 *   on_open   a dialled stream is connected (accepted and adopted ones are from the start)
 *   on_data   one slice, borrowed for the callback. NULL: there is no demand and nothing is read, until piped; its
 *             end is not noticed meanwhile, as if it were paused
 *   on_end    the peer sends no more; writing goes on, and closing is up to you, also when you have shut down
 *             your half. NULL: weir_stream_close()
 *   on_drain  after WEIR_WRITE_FULL, or a refused write with something queued: the queue has fallen to the low mark
 *   on_close  last, once. reason: enum weir_close_reason; error: 0 or -errno. The descriptor is closed already: for
 *             a log, ask for the peer's address before
 */
typedef struct weir_stream_callbacks {
    size_t size; /* sizeof(weir_stream_callbacks) */
    void (*on_open)(weir_stream *stream, void *userdata);
    void (*on_data)(weir_stream *stream, const weir_slice *slice, void *userdata);
    void (*on_end)(weir_stream *stream, void *userdata);
    void (*on_drain)(weir_stream *stream, void *userdata);
    void (*on_close)(weir_stream *stream, int reason, int error, void *userdata);
} weir_stream_callbacks;

enum weir_stream_flags {
    WEIR_STREAM_METERED = 1,  /* delivers only what weir_stream_grant allows, from nothing on */
    WEIR_STREAM_NAGLE = 2,    /* TCP_NODELAY is on by default */
    WEIR_STREAM_KEEPALIVE = 4 /* SO_KEEPALIVE */
};

/* Read by dial and adopt, and by a listener for each stream it accepts. */
typedef struct weir_stream_options {
    size_t size;                /* sizeof(weir_stream_options) */
    uint32_t flags;             /* WEIR_STREAM_* */
    uint32_t reserved;          /* 0 */
    uint64_t queue_limit_bytes; /* a write beyond is refused; default 16 MiB */
    uint64_t queue_high_bytes;  /* writes say WEIR_WRITE_FULL; default 1 MiB, at most half of the limit */
    uint64_t queue_low_bytes;   /* on_drain; default a quarter of high */
    int64_t connect_timeout_ns; /* default 30 s */
    /* Nothing is received, and the peer takes nothing of what is sent, as far as two looks at the kernel's buffer tell, half of
     * the timeout apart; for what is piped, at neither end. It stands still while reading is held back: paused, not granted, a
     * full pipe, no memory though others go on. Then the stream is reset. Default none. */
    int64_t idle_timeout_ns;
    int64_t write_timeout_ns;  /* something is queued, and the peer takes nothing; default 60 s */
    int64_t linger_timeout_ns; /* weir_stream_close waits so long for a peer that takes nothing; default 10 s */
} weir_stream_options;

typedef struct weir_stream_stats {
    size_t size;                  /* in: sizeof(weir_stream_stats) */
    uint64_t bytes_in, bytes_out; /* received from, and taken by, the kernel */
    uint64_t bytes_copied; /* by weir_stream_write, from uncounted bytes, or small slices while memory is short */
    uint64_t slices;       /* received */
    uint64_t queued_bytes; /* written and not yet taken by the kernel */
    uint64_t queue_peak_bytes; /* the most that ever was */
    uint64_t staged_bytes;     /* received while paused or beyond what was granted, not yet delivered */
    uint64_t bytes_piped;      /* received and passed on by weir_stream_pipe() */
} weir_stream_stats;

/* ---- getting one ------------------------------------------------------------------------------------ */

/**
 * weir_stream_dial() - begin to connect
 * @loop:       the loop
 * @address:    numeric, no names: 127.0.0.1:80, [::1]:80, [fe80::1%eth0]:80, unix:/path, unix:@abstract
 * @options:    NULL for the defaults
 * @ret_stream: the stream; start it in this turn or later, on_open or on_close follows the start
 *
 * Writes are queued until it is connected.
 *
 * Ownership: @ret_stream is yours until started, and then weir's (see above).
 * Context:   loop's thread; no callback. Also before the loop first runs.
 * Return:    0; -EINVAL: not an address, or @options; -E2BIG: @options; -ENODEV: no such interface; -EMFILE,
 *            -ENFILE; -ENOMEM; -EUSERS: max_streams; -ESHUTDOWN: the loop is closed, or drained beyond its grace;
 *            -EAFNOSUPPORT; -EPERM; -ECHILD. A refused or unreachable peer comes through on_close.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_stream_dial(weir_loop *loop, const char *address,
                                              const weir_stream_options *options, weir_stream **ret_stream);

/**
 * weir_stream_adopt() - make a stream of a connected socket
 * @fd: connected stream socket, TCP or Unix; made non-blocking and close-on-exec
 *
 * Ownership: on success @fd is weir's and never to be closed by you; on failure it stays yours.
 * Context:   loop's thread; no callback.
 * Return:    0; -EBADF; -ENOTSOCK; -EPROTOTYPE: not a stream socket; -EAFNOSUPPORT: neither TCP nor Unix; -ENOTCONN;
 *            -EUSERS: max_streams; -ENOMEM; -EINVAL, -E2BIG: @options; -ESHUTDOWN; -EPERM; -ECHILD.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_stream_adopt(weir_loop *loop, int fd, const weir_stream_options *options,
                                               weir_stream **ret_stream);

/**
 * weir_stream_detach() - take the socket out of a stream that was not started
 * @stream: yours still
 * @ret_fd: its descriptor, non-blocking, close-on-exec
 *
 * Nothing has been read from it, so another loop (through weir_loop_post), process or library goes on from
 * the first byte.
 *
 * Ownership: @ret_fd is yours to close. The stream ends without on_close; its handle as if it had been closed.
 * Context:   loop's thread; no callback.
 * Return:    0; -EALREADY: it was started; -EBUSY: it is still connecting, it is piped, or writes or a shutdown are
 *            queued; -ENOTCONN: it has failed; -EINVAL; -EPERM; -ECHILD.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_stream_detach(weir_stream *stream, int *ret_fd);

/**
 * weir_stream_start() - say who listens, and begin
 * @stream:    yours: dialled, adopted or accepted
 * @callbacks: static table, kept by pointer
 * @userdata:  given to each of them
 *
 * From here on weir keeps the stream alive, and on_close comes exactly once.
 *
 * Context:   loop's thread; no callback before it returns.
 * Return:    0; -EALREADY: started before; -EINVAL: the table's size; -EPERM: wrong thread; -ESHUTDOWN: it was
 *            closed before, or with its loop. All of them are mistakes in the program: it needs no memory, and a
 *            stream that has failed meanwhile starts all the same and says so in on_close. So nothing need be
 *            checked.
 * Since:     0.1
 */
WEIR_API int weir_stream_start(weir_stream *stream, const weir_stream_callbacks *callbacks, void *userdata);

/** weir_stream_ref() - keep the handle (not the connection) beyond on_close. Any thread. */
WEIR_API weir_stream *weir_stream_ref(weir_stream *stream);
/** weir_stream_unref() - any thread; NULL is fine; returns NULL. Never closes a connection. */
WEIR_API weir_stream *weir_stream_unref(weir_stream *stream);

/* ---- reading ---------------------------------------------------------------------------------------- */

/**
 * weir_stream_pause() - no on_data and no on_end after this returns
 *
 * What had been received already is staged, counted, and comes first after weir_stream_resume(). A
 * reset by the peer is still noticed and closes the stream. pause and resume do not nest.
 *
 * Context:   loop's thread; no callback.
 * Return:    0, also when paused or ending; -EPERM.
 * Since:     0.1
 */
WEIR_API int weir_stream_pause(weir_stream *stream);
/** weir_stream_resume() - the reverse; callbacks come later, not inside. 0; -EPERM. */
WEIR_API int weir_stream_resume(weir_stream *stream);

/**
 * weir_stream_grant() - allow a METERED stream to deliver more
 * @stream: made with WEIR_STREAM_METERED
 * @bytes:  how many; they add up, and saturate
 *
 * No more than was granted is ever handed out. The kernel is asked for no more either, but may bring up to 64 KiB beyond
 * (from Linux 6.17; before, weir reads exactly what was granted, by calls of its own and in small blocks); that is
 * staged, counted, and comes first with the next grant. While nothing is granted the peer's end is not noticed.
 *
 * Context:   loop's thread, also before start; no callback.
 * Return:    0; -EINVAL: not metered; -EPERM; -ECHILD.
 * Since:     0.1
 */
WEIR_API int weir_stream_grant(weir_stream *stream, uint64_t bytes);

/* ---- writing ---------------------------------------------------------------------------------------- */

enum weir_write_result {
    WEIR_WRITE_OK = 0,
    WEIR_WRITE_FULL = 1 /* taken, and the queue is above its high mark: on_drain will say when to go on */
};

/**
 * weir_stream_write() - queue a copy of some bytes
 * @data: copied before it returns
 *
 * One queue, one order, all or nothing, also for write_slice, writev and write_external. Small writes coalesce. Size 0 is
 * fine and does nothing (but write_external's, which would have nothing to release).
 *
 * Context:   loop's thread, from when the stream exists; no callback.
 * Return:    WEIR_WRITE_OK; WEIR_WRITE_FULL; -ENOBUFS: with what is queued it is above the queue's limit, or there is
 *            no room in the pool's budget (if anything is queued here, on_drain will say when to try again; else a
 *            lower level of weir_loop_set_pressure()); -EMSGSIZE: above the queue's limit by itself, so never;
 *            -EPIPE: shut down, closing or closed, or an earlier send has failed (on_close will say how; what the peer
 *            sent before comes first); -EINVAL: no data; -ENOMEM; -EPERM; -ECHILD. On failure nothing was queued, and
 *            the stream goes on.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_stream_write(weir_stream *stream, const void *data, size_t size);

/**
 * weir_stream_write_slice() - queue a slice without copying it
 * @slice: borrowed or yours, from any loop; stays what it was
 *
 * The queue takes a reference of its own and drops it when the kernel has let go of the bytes, so one slice
 * may be queued on any number of streams. Uncounted bytes (owner NULL) are copied; so is, while three quarters of the
 * budget are used, a slice that would wait behind others and is small for its buffer (see weir_slice_keep()).
 *
 * Ownership: yours is yours still: unref it after the call if you are done with it.
 * Context:   as weir_stream_write(). Allocates nothing in the usual case.
 * Return:    as weir_stream_write().
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_stream_write_slice(weir_stream *stream, const weir_slice *slice);

/** weir_stream_write_external() - queue memory of yours, uncopied. On success @release runs once, on the
 * loop's thread, in a turn, before on_close; on failure the memory stays yours and it never runs. It may
 * call what a callback may. Counts against the queue's limit. Return: as weir_stream_write(); -EINVAL: size 0. */
WEIR_API WEIR_MUST_CHECK int weir_stream_write_external(weir_stream *stream, const void *data, size_t size,
                                                        weir_release_fn release, void *userdata);

/**
 * weir_stream_writev() - queue several slices, all or none
 * @slices: each as of weir_stream_write_slice(): a header by hand ({ header, 4, NULL }: copied) and its body, say
 * @count:  at most 1024
 *
 * Ownership: as weir_stream_write_slice().
 * Context:   as weir_stream_write().
 * Return:    as weir_stream_write(); -EINVAL: too many.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_stream_writev(weir_stream *stream, const weir_slice *slices, size_t count);

/** weir_stream_cork() - hold sends back until weir_stream_uncork(), a shutdown or a close, so that what is written meanwhile
 * goes in one. (Writes of one turn do so anyway.) While a drain is owed (the high mark, a refused write, a full pipe) it
 * holds nothing back. Does not nest. 0; -EPERM; -ECHILD. */
WEIR_API int weir_stream_cork(weir_stream *stream);
/** weir_stream_uncork() - 0; -EPERM; -ECHILD. */
WEIR_API int weir_stream_uncork(weir_stream *stream);

/* error: 0, all was taken; or why it never will be, the error of on_close or -ECANCELED. */
typedef void (*weir_flush_fn)(weir_stream *stream, int error, void *userdata);

/**
 * weir_stream_flush() - hear when all that is queued now has been taken by the kernel
 * @function: called once, in order with other flushes, at the latest before on_close; may do what a callback may
 *
 * It is not an answer of the peer's: that it has read what was sent only it can say. Nothing is sent earlier for it, a
 * cork stays in place.
 *
 * Ownership: 0 is a promise that @function runs exactly once. On failure it never does.
 * Context:   loop's thread, from start on; never called inside, also when nothing is queued. Allocates a little.
 * Return:    0; -EPIPE: closing, closed or failed; -EINVAL: no function, or not started; -ENOBUFS: 1024 wait already;
 *            -ENOMEM; -EPERM; -ECHILD.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_stream_flush(weir_stream *stream, weir_flush_fn function, void *userdata);

/** weir_stream_shutdown() - end our half, once the queue is sent. Reading goes on. 0, also again; -EPIPE; -EBUSY: a pipe
 * leads into it, which ends it when the other end does. */
WEIR_API int weir_stream_shutdown(weir_stream *stream);

/* ---- piping ----------------------------------------------------------------------------------------- */

/**
 * weir_stream_pipe() - pass everything that one stream receives on to another
 * @from: its on_data rests from now on; may have none
 * @to:   may be @from: an echo
 *
 * Uncopied, and held back by @to: while its queue is above its high mark nothing is taken from @from, until it has fallen
 * to the low mark. So @to's queue holds at most the high mark and one buffer, whatever its limit. Other writes to @to
 * are fine and keep their place.
 *
 * @from's end shuts down @to, after the last byte, and then on_end is called as ever; a pipe in one direction is
 * over with it. In a pair (each piped to the other) nothing closes before both have ended, and then both do.
 * While a pipe lasts, if one of the two closes, so does the other: as weir_stream_close() if that one ended well, else
 * at once, with WEIR_CLOSE_PIPE.
 *
 * Context:   loop's thread; no callback. Either may be unstarted or connecting: bytes flow when both are open.
 * Return:    0; -EXDEV: two loops; -EALREADY: @from is piped, or something is piped into @to; -EPIPE: either is ending or
 *            has ended in that direction; -EINVAL; -EPERM; -ECHILD. On failure neither has changed.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_stream_pipe(weir_stream *from, weir_stream *to);
/** weir_stream_pipe_both() - pipe each of two streams to the other, or neither. Return: as weir_stream_pipe(). */
WEIR_API WEIR_MUST_CHECK int weir_stream_pipe_both(weir_stream *a, weir_stream *b);
/** weir_stream_unpipe() - @from's on_data takes over again, from the next byte. 0; -EINVAL: it is not piped; -EPERM;
 * -ECHILD. */
WEIR_API int weir_stream_unpipe(weir_stream *from);

/* ---- ending ----------------------------------------------------------------------------------------- */

/**
 * weir_stream_close() - end well: send the queue, shut down, let the peer end, close
 * @stream: NULL is fine
 *
 * No on_data, on_end or on_drain after this returns; input is read and thrown away until the peer ends or the
 * linger timeout, since closing over unread input would reset and lose the tail. Then on_close.
 *
 * Ownership: the pointer is good until on_close has returned; of a stream not started see above.
 * Context:   loop's thread; on_close comes later, never inside.
 * Return:    0, also when ending or closed already; -EPERM.
 * Since:     0.1
 */
WEIR_API int weir_stream_close(weir_stream *stream);

/** weir_stream_abort() - drop the queue and reset the connection; otherwise as weir_stream_close(), and it cuts a
 * close short. */
WEIR_API int weir_stream_abort(weir_stream *stream);

/* ---- asking and setting ----------------------------------------------------------------------------- */

/*
 * What may be changed of a stream that exists; the value's meaning is that of the option of the same name, but here nothing
 * is a default: a timeout is of at least 1 ns, or WEIR_NEVER. 1 to 6 are TCP's: a Unix socket takes them too, does nothing,
 * and reads as 0. Each call must leave low mark <= high mark <= limit: to lower all three begin with the low one. What is
 * queued already stays, also above a new limit.
 */
enum weir_stream_option {
    WEIR_OPTION_NODELAY = 1,              /* 0 or 1; 1 unless WEIR_STREAM_NAGLE */
    WEIR_OPTION_KEEPALIVE = 2,            /* 0 or 1 */
    WEIR_OPTION_KEEPALIVE_IDLE_S = 3,     /* silence before the first probe, in seconds, at least 1 */
    WEIR_OPTION_KEEPALIVE_INTERVAL_S = 4, /* between probes, at least 1 */
    WEIR_OPTION_KEEPALIVE_PROBES = 5,     /* unanswered ones that end the connection, at least 1 */
    WEIR_OPTION_USER_TIMEOUT_MS = 6,      /* sent and not acknowledged for so long ends it; 0: the system's */
    WEIR_OPTION_SEND_BUFFER_BYTES = 7,    /* SO_SNDBUF; the kernel doubles what is set, and says so */
    WEIR_OPTION_RECEIVE_BUFFER_BYTES = 8, /* SO_RCVBUF, likewise */
    WEIR_OPTION_QUEUE_LIMIT_BYTES = 9,    /* at least 1, and no less than the high mark */
    WEIR_OPTION_QUEUE_HIGH_BYTES = 10,    /* between the low mark and the limit */
    WEIR_OPTION_QUEUE_LOW_BYTES = 11,     /* no more than the high mark */
    WEIR_OPTION_IDLE_TIMEOUT_NS = 12,     /* counts from the last activity, so it may be over at once */
    WEIR_OPTION_WRITE_TIMEOUT_NS = 13,    /* likewise, from the last progress */
    WEIR_OPTION_LINGER_TIMEOUT_NS = 14    /* of a close to come, or one whose peer takes something yet */
};

/** weir_stream_set_option() - change one option of a stream, in any state but closed. Context: loop's thread; no callback.
 * Return: 0; -ENOPROTOOPT: no such option; -EINVAL: the value, or no stream; -EBADF: closed; what setsockopt(2) says; -ENOMEM;
 * -EPERM; -ECHILD. On failure nothing has changed. */
WEIR_API WEIR_MUST_CHECK int weir_stream_set_option(weir_stream *stream, int option, int64_t value);
/** weir_stream_get_option() - as it is now; of a socket's, what the kernel says. Return: 0; else as
 * weir_stream_set_option(). */
WEIR_API int weir_stream_get_option(const weir_stream *stream, int option, int64_t *ret_value);
/** weir_stream_get_loop() - borrowed. Any thread that holds @stream. */
WEIR_API weir_loop *weir_stream_get_loop(const weir_stream *stream);
/** weir_stream_get_userdata() - start's; NULL before. */
WEIR_API void *weir_stream_get_userdata(const weir_stream *stream);
/** weir_stream_get_state() - enum weir_stream_state. */
WEIR_API int weir_stream_get_state(const weir_stream *stream);
/** weir_stream_get_queued() - bytes written and not yet taken by the kernel; 0 also where it may not be asked. */
WEIR_API uint64_t weir_stream_get_queued(const weir_stream *stream);
/** weir_stream_get_fd() - to look at, never to read, write or close; -EBADF once closed. */
WEIR_API int weir_stream_get_fd(const weir_stream *stream);
/** weir_stream_get_local() - the address as text that dial understands, with its zero. Return: its length;
 * -ENOBUFS: @size too small (WEIR_ADDRESS_SIZE never is). */
WEIR_API int weir_stream_get_local(const weir_stream *stream, char *text, size_t size);
/** weir_stream_get_peer() - likewise; "unix:" for an unnamed one; -ENOTCONN: it has none yet, or any more. Both:
 * -EBADF: closed; -EINVAL; -EPERM; -ECHILD. */
WEIR_API int weir_stream_get_peer(const weir_stream *stream, char *text, size_t size);
/** weir_stream_get_stats() - 0; -EINVAL; -EPERM. */
WEIR_API int weir_stream_get_stats(const weir_stream *stream, weir_stream_stats *stats);

#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
