/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SOCKET_STREAM_H
#define WEIR_SOCKET_STREAM_H

/*
 * A stream inside: stream.c is its life, stream_input.c and stream_output.c its two directions, dial.c how it comes
 * to be.
 */

#include "loop/loop.h"
#include "socket/address.h"
#include "weir/listener.h"
#include "weir/stream.h"

typedef struct weir__stream_settings {
    uint64_t queue_limit_bytes, queue_high_bytes, queue_low_bytes;
    int64_t connect_timeout_ns, linger_timeout_ns;
    uint32_t flags; /* WEIR_STREAM_* */
} weir__stream_settings;

typedef struct weir__dialling {
    weir__address address; /* the kernel's to look at until the connect completes */
    int64_t deadline;
} weir__dialling;

struct weir_stream {
    weir__actor actor;
    _Atomic(uint32_t) refs;                 /* the loop's until it has ended, and the application's */
    int fd;                                 /* -1 once closed */
    weir_loop *loop;                        /* referenced */
    weir__op in, out;                       /* receive or watch; connect or send */
    weir__sendq queue;                      /* written, not yet taken by the kernel */
    weir__sendq staged;                     /* received, not yet delivered */
    weir__timeout timeout;                  /* connect, then linger */
    const weir_stream_callbacks *callbacks; /* NULL until start */
    void *userdata;
    weir__dialling *dialling; /* while it connects */
    weir_listener *listener;  /* that accepted it, if it counts its streams; referenced */
    weir__stream_settings settings;

    uint8_t state;  /* enum weir_stream_state; changed by set_state() */
    uint8_t reason; /* enum weir_close_reason, once it has one */
    int error;
    int output_error; /* the send failed; what has come in is still delivered before the stream fails */
    int unsent_bytes; /* while it lingers: what the kernel held of ours when the timeout was set */

    bool is_tcp : 1;
    bool is_connected : 1;
    bool is_open_told : 1; /* on_open was called, or is not due */
    bool is_paused : 1;
    bool has_ended : 1; /* the peer sends no more */
    bool is_end_told : 1;
    bool is_full_told : 1; /* a write said WEIR_WRITE_FULL: a drain is owed */
    bool wants_shutdown : 1;
    bool is_shut : 1;     /* our half is ended */
    bool wants_close : 1; /* weir_stream_close: graceful */
    bool has_failed : 1;  /* to be ended without grace; reason and error say why */
    bool is_reset : 1;    /* and what is under way is being taken back */
    bool is_cut : 1;      /* and the connection is cut off, so that closing does not look like an end */
    bool is_disowned : 1; /* unstarted, and its owner will not start it: no on_close is owed */

    uint64_t bytes_in, bytes_out, bytes_copied, slices, queue_peak_bytes;
};

/* Read options. 0; -EINVAL; -E2BIG. */
int weir__stream_settings_read(const weir_stream_options *options, weir__stream_settings *ret_settings);
/* A stream of a socket; on failure the descriptor stays the caller's. 0; -ENOMEM; -EUSERS. */
int weir__stream_new(weir_loop *loop, int fd, bool is_tcp, const weir__stream_settings *settings,
                     weir_stream **ret_stream);
/* Socket options as the settings have them, of a stream or of a listener, whose streams inherit them. */
void weir__stream_apply(int fd, bool is_tcp, const weir__stream_settings *settings);

/* End it without grace, unless that has been said already; the first reason counts. */
void weir__stream_fail(weir_stream *stream, int reason, int error);
void weir__stream_mark(weir_stream *stream);

/* The peer gets the linger timeout, from now on, for what it has not taken yet. */
void weir__stream_linger(weir_stream *stream);

/* The connection is there: CONNECTING becomes OPEN. */
void weir__stream_opened(weir_stream *stream);

/* The two directions: what stream.c settles, in this order. */
void weir__stream_settle_output(weir_stream *stream);
void weir__stream_settle_input(weir_stream *stream);
/* Somebody listens, and more may come. */
bool weir__stream_is_reading(const weir_stream *stream);
void weir__stream_input_done(weir__op *op, const weir__completion *completion);
void weir__stream_output_done(weir__op *op, const weir__completion *completion);

/* A call of the application: does the stream exist here, on this thread? 0; -EINVAL; -ECHILD; -EPERM. */
int weir__stream_check(const weir_stream *stream);

#endif
