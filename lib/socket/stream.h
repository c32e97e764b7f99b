/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SOCKET_STREAM_H
#define WEIR_SOCKET_STREAM_H

/*
 * A stream inside: stream.c is its life, stream_input.c and stream_output.c its two directions, stream_write.c what the
 * application queues, stream_time.c its deadlines, stream_option.c what may be changed, settings.c what options say, pipe.c
 * two streams joined, dial.c how one comes to be.
 */

#include "loop/loop.h"
#include "socket/address.h"
#include "socket/settings.h"
#include "weir/listener.h"
#include "weir/stream.h"

typedef struct weir__dialling {
    weir__address address; /* the kernel's to look at until the connect completes */
    int64_t deadline;
} weir__dialling;

/* Somebody waits for all that was queued by then to be taken. */
typedef struct weir__flush {
    struct weir__flush *next;
    uint64_t position; /* of bytes_out */
    weir_flush_fn function;
    void *userdata;
} weir__flush;

struct weir_stream {
    weir__actor actor;
    _Atomic(uint32_t) refs;                 /* the loop's until it has ended, and the application's */
    int fd;                                 /* -1 once closed */
    weir_loop *loop;                        /* referenced */
    weir__op in;                            /* receive or watch; stale: marked for more than its output */
    weir__op out;                           /* connect or send */
    weir__sendq queue;                      /* written, not yet taken by the kernel */
    weir__sendq staged;                     /* received, not yet delivered */
    weir__timeout timeout;                  /* set by weir__stream_schedule() alone */
    int64_t deadline;                       /* connecting, lingering, or INT64_MAX */
    int64_t active_at;                      /* something came in or went out */
    int64_t held_at;                        /* since when reading is held back; 0: it is not */
    int64_t progress_at;                    /* something of the queue was taken, or it began to fill */
    int64_t sampled_at;                     /* when unsent_bytes was asked for */
    const weir_stream_callbacks *callbacks; /* NULL until start */
    void *userdata;
    union {
        weir__dialling *dialling; /* until it is connected */
        int64_t looked_at;        /* from then on: when looked_unsent was asked for */
    };
    weir_listener *listener; /* that accepted it, if it counts its streams; referenced */
    weir_stream *pipe_to;    /* where its input goes; referenced */
    weir_stream *pipe_from;  /* whose input comes here; referenced */
    weir__flush *flushes, **last_flush;
    uint32_t flush_count;
    int looked_unsent;                     /* what the kernel held of ours at looked_at, for the idle timeout */
    const weir__stream_settings *settings; /* shared */

    uint8_t state;  /* enum weir_stream_state; changed by set_state() */
    uint8_t reason; /* enum weir_close_reason, once it has one */
    int error;
    int output_error; /* the send failed; what has come in is still delivered before the stream fails */
    int unsent_bytes; /* what the kernel held of ours at sampled_at, for the other timeouts */

    /* One byte: none of these is so of a stream on which nothing but bytes goes back and forth. */
    bool is_paused : 1;
    bool has_failed : 1;     /* to be ended without grace; reason and error say why */
    bool wants_shutdown : 1; /* our half is to end behind the queue */
    bool wants_close : 1;    /* weir_stream_close: graceful */
    bool is_full_told : 1;   /* a write said WEIR_WRITE_FULL: a drain is owed */
    bool is_pipe_full : 1;   /* what comes by pipe rests until the queue has fallen to its low mark */
    bool is_corked : 1;      /* sends wait */

    bool is_tcp : 1;
    bool is_connected : 1;
    bool is_open_told : 1; /* on_open was called, or is not due */
    bool has_ended : 1;    /* the peer sends no more */
    bool is_end_told : 1;
    bool is_shut : 1;        /* our half is ended */
    bool is_reset : 1;       /* what is under way is being taken back, since it failed */
    bool is_cut : 1;         /* and the connection is cut off, so that closing does not look like an end */
    bool is_disowned : 1;    /* unstarted, and its owner will not start it: no on_close is owed */
    bool is_write_timed : 1; /* the timeout looks at progress_at */
    bool is_limited : 1;     /* the receive under way ends by itself when it has brought so much */
    bool is_end_passed : 1;  /* its peer's end was passed on by the pipe */

    uint64_t credit; /* bytes that may still be delivered; UINT64_MAX: any number */
    uint64_t bytes_in, bytes_out, bytes_copied, bytes_piped, slices, queue_peak_bytes;
};

/* A stream of a socket, with shared settings; on failure the descriptor stays the caller's. 0; -ENOMEM; -EUSERS. */
int weir__stream_new(weir_loop *loop, int fd, bool is_tcp, const weir__stream_settings *settings,
                     weir_stream **ret_stream);
/* Socket options as the settings have them, of a stream or of a listener, whose streams inherit them. */
void weir__stream_apply(int fd, bool is_tcp, const weir__stream_settings *settings);

/* End it without grace, unless that has been said already; the first reason counts. */
void weir__stream_fail(weir_stream *stream, int reason, int error);
/* Settle it, all of it. */
static inline void weir__stream_mark(weir_stream *stream) {
    stream->in.is_stale = true;
    weir__loop_mark(stream->loop, &stream->actor);
}

/* Only bytes were queued: there is nothing else to settle. */
static inline void weir__stream_mark_output(weir_stream *stream) {
    weir__loop_mark(stream->loop, &stream->actor);
}

/* ---- stream_time.c ---------------------------------------------------------------------------------- */

void weir__stream_timed_out(weir__timeout *timeout);
/* Find the next of its deadlines; to be called when one may have come nearer. */
void weir__stream_schedule(weir_stream *stream);
/* A timeout was changed. */
void weir__stream_reschedule(weir_stream *stream);
/* Connecting or ending must be over by then; WEIR_NEVER: no more. */
void weir__stream_set_deadline(weir_stream *stream, int64_t delay_ns);
/* The peer gets the linger timeout, from now on, for what it has not taken yet. */
void weir__stream_linger(weir_stream *stream);
/* It is open: idle time and the time of what is queued already begin. */
void weir__stream_time_open(weir_stream *stream);
/* The queue has begun to fill. */
void weir__stream_time_write(weir_stream *stream);
/* Is reading held back by us? Then the idle time stands still. */
void weir__stream_hold_idle(weir_stream *stream, bool is_held);

/* ---- the two directions ----------------------------------------------------------------------------- */

/* The connection is there: CONNECTING becomes OPEN. */
void weir__stream_opened(weir_stream *stream);

/* What stream.c settles, in this order. */
void weir__stream_settle_output(weir_stream *stream);
void weir__stream_settle_input(weir_stream *stream);
/* Somebody listens, and more may come. */
bool weir__stream_is_reading(const weir_stream *stream);
void weir__stream_input_done(weir__op *op, const weir__completion *completion);
void weir__stream_output_done(weir__op *op, const weir__completion *completion);
/* Tell those who wait for what has been taken by now; all of them, if it ends, and why. */
void weir__stream_tell_flushed(weir_stream *stream);
void weir__stream_end_flushes(weir_stream *stream);
/* Is the queue above its high mark? */
bool weir__stream_is_full(const weir_stream *stream);
/* Something was queued. */
void weir__stream_wrote(weir_stream *stream);
/* Queue the first @bytes of ranges that are another's, all or nothing; returns as weir_stream_write_slice(). */
int weir__stream_write_ranges(weir_stream *stream, const weir__range *ranges, uint64_t bytes);

/* ---- pipe.c ----------------------------------------------------------------------------------------- */

/* May what @from receives go on to its pipe's other end now? */
bool weir__pipe_is_open(const weir_stream *from);
/* Pass a slice on. */
void weir__pipe_forward(weir_stream *from, const weir_slice *slice);
/* How much fits into the other end's queue, about. */
uint64_t weir__pipe_room(const weir_stream *from);
/* Pass @from's end on. Return: both directions of a pair are over, and to be closed. */
bool weir__pipe_end(weir_stream *from);
void weir__pipe_close_pair(weir_stream *from);
/* The queue of @to is above its high mark, or has fallen to the low one. */
void weir__pipe_filled(weir_stream *to);
void weir__pipe_drained(weir_stream *to);
/* @stream is over: so are its pipes, and who is at their other ends. */
void weir__pipe_ended(weir_stream *stream);

/* A call of the application: does the stream exist here, on this thread? 0; -EINVAL; -ECHILD; -EPERM. */
static inline int weir__stream_check(const weir_stream *stream) {
    if (WEIR__UNLIKELY(stream == NULL))
        return WEIR__MISTAKE(-EINVAL, "no stream");
    return weir__loop_check(stream->loop);
}

#endif
