/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_SIM_PROGRAM_H
#define WEIR_TESTS_SIM_PROGRAM_H

/*
 * The application above the library and the peers beyond the sockets, and what must be true of both at any time.
 *
 * A connection has two directions, each a pattern of known bytes. The application checks each slice against what the
 * peer wrote, the peer checks each byte against what the application wrote; an echo's pattern is the peer's own, a
 * forwarder's is its other side's.
 */

#include <errno.h>
#include <string.h>

#include "loop/loop.h"
#include "sim/world.h"
#include "socket/stream.h"
#include "support/bytes.h"
#include "weir/chain.h"
#include "weir/timer.h"

enum {
    MOST_EVER = 65536,
    MOST_HELD = 64,
    TIMERS = 3,
    MOST_EXTERNAL = 4096,
    MOST_POSTS = 1024,
    TIMER_SLACK = 1000000,
    STILL_NS = 2000000000, /* so long nothing moved: then the library looks for resets */
    LEAP_NS = 10000000,    /* in the calm, between two turns */
    MOST_FLUSHES = 4
};

enum role { ECHO, SOURCE, SINK, PIPE, FORWARD, ROLES };

/* Bytes that were queued: so many of that pattern, from there on. */
typedef struct segment {
    uint64_t seed, position, size;
} segment;

typedef struct flush {
    struct connection *by;
    uint64_t number, position;
} flush;

typedef struct connection {
    bool is_used;
    size_t place; /* in app.used */
    uint64_t number;
    enum role role;
    struct connection *partner; /* FORWARD: what comes in here goes out there */
    /* the peer */
    sim_socket *socket;
    uint64_t peer_wrote, peer_read, peer_limit;
    uint64_t peer_took; /* read before our end was shut or cut off */
    bool peer_shut, peer_gone, peer_saw_end, peer_was_reset, peer_is_slow;
    bool peer_waits;   /* for our end before it ends */
    bool peer_is_dead; /* after half of what it has to say it never does anything again */
    /* the application */
    weir_stream *stream; /* referenced */
    uint64_t app_read, app_wrote, in_seed, out_seed;
    sim_socket *ours;  /* the library's end, from when there is one */
    segment *segments; /* what it was given to send, and its peer has not read yet */
    size_t segment_first, segment_count, segment_capacity;
    uint64_t own_wrote; /* by the application itself: the pattern out_seed */
    /* joined to others */
    struct connection *pipe_to, *pipe_from;
    uint64_t starved_in; /* the look that found it to be; 0: it is not */
    uint64_t piped;      /* passed on, of the library's count, that is in segments */
    bool is_full_for_pipe, is_pipe_broken;
    uint64_t full_queue, full_at_out, came_before;
    uint64_t piped_before;
    unsigned turns_full, turns_resting;
    int pipe_error;
    unsigned turns_since_broken;
    /* limits */
    bool is_metered, forgets_grants, is_held_back, is_corked, is_cork_lifted;
    uint64_t credit, granted, cork_position;
    int64_t options[WEIR_OPTION_LINGER_TIMEOUT_NS + 1]; /* as they should be, by name */
    uint64_t highest_mark;                              /* that its queue ever had */
    uint64_t sent_before;                               /* when a drain began to be owed, or a mark was changed */
    int64_t closing_at, lingers_ns; /* closed by the application, and its linger timeout then */
    int64_t idle_ns, write_ns;      /* 0: none */
    int64_t opened_at, peer_took_at, queue_began, held_from, held_until, piped_at, rested_at, waited_at,
        uncorked_at;
    int64_t failed_at, active_before, progress_before,
        taken_before; /* when that was seen, and what had been until then */
    unsigned overdue;
    weir_chain *chain; /* SINK: what has come and is no frame yet; or NULL */
    uint64_t parsed;
    flush flushes[MOST_FLUSHES];
    uint64_t flushes_asked, flushes_told;
    int flush_error;
    bool is_started, is_paused, is_closing, is_shut, was_aborted, is_dialled, open_told, end_told, is_full;
    bool closed_after_end, closed_in_calm;
    bool is_held;                           /* the application has the stream, and has not started it */
    bool is_counted;                        /* among those that the listener may have open */
    unsigned start_in;                      /* turns */
    uint64_t lent;                          /* pieces of the application's memory in its queue */
    const weir_stream_callbacks *callbacks; /* some of which may be NULL */
    unsigned closes, turns_without_drain, turns_since_reset;
    int reason, error;
} connection;

typedef struct held {
    weir_slice slice;
    uint64_t seed, position;
    size_t size;
} held;

/* Memory of the application's that the library has, and in whose queue. */
typedef struct lent {
    uint8_t *memory;
    connection *by;
} lent;

typedef struct application {
    weir_loop *loop;
    weir_listener *listener;
    sim_socket *upstream; /* where the application dials to: a peer's listener */
    weir__address address, upstream_address;
    connection *all[MOST_EVER]; /* a socket may refer to one long after it is over */
    size_t all_count;
    connection *used[MOST_EVER]; /* those that are not over, in any order */
    size_t used_count;
    uint64_t numbers;
    held held[MOST_HELD];
    size_t held_count;
    uint64_t posted, ran, post_started, post_ran; /* numbers of posts, in order */
    weir_timer *timers[TIMERS];
    int64_t due[TIMERS]; /* -1: stopped */
    int64_t repeat[TIMERS];
    uint64_t queue_limit, queue_high, queue_low;
    uint32_t buffer_bytes;
    int level;                                            /* of pressure, as last told */
    weir_stream_options each[2];                          /* of what the first and the second listener accept */
    uint32_t max_turn_events, max_streams, accepted_open; /* of the loop; of the listener */
    weir_listener *extra;                                 /* the second one, while there is one */
    weir__address extra_address;
    unsigned extras; /* opened so far */
    bool is_listener_paused, is_extra_closing, is_loop_closing, is_draining;
    int64_t drain_until;
    bool is_time_honest; /* faults have stopped, and peers have time enough to act */
    bool was_dry;        /* since faults stopped: a close that cannot take in the peer's end may be cut short */
    uint64_t external_given, external_released;
    lent external[MOST_EXTERNAL];
    uint64_t live_blocks, live_bytes; /* of the allocator: what the budget's sum is compared with */
    int64_t posted_at[MOST_POSTS];    /* by number */
    bool is_in_thread, is_outside, is_unix, no_new, may_fail; /* is_outside: it is a peer that does something */
    bool runs_often; /* by weir_loop_run, which does more than single turns may */
    uint64_t streams_closed, checks, looks;
} application;

extern application app;

extern const char *const role_names[ROLES];

/* ---- memory.c --------------------------------------------------------------------------------------- */

extern const weir_allocator counting_allocator;
/* Keep @slice of @c's input beyond its callback, by reference or by weir_slice_keep. */
void hold(const connection *c, const weir_slice *slice, bool keep);
void check_held(const held *h);
void drop_held(size_t index);
/* Give @c a chain; take the frames out of what came. */
void open_chain(connection *c);
void parse(connection *c, const weir_slice *slice);
/* A weir_release_fn; @userdata is the index of what it releases. */
void released(const void *data, size_t size, void *userdata);
/* Likewise, for memory that any thread may release. */
void released_anywhere(const void *data, size_t size, void *userdata);

/* ---- application.c ---------------------------------------------------------------------------------- */

void resume_connection(connection *c);
void close_connection(connection *c);
void uncork(connection *c);
/* Anything an application may do to a stream, in a callback or out of it. */
void act(connection *c);
void start_connection(connection *c, weir_stream *stream);
/* What was not told, because nobody asked to be told, is looked at: ends that close a stream, and closes. Of these the
 * application hears now, and may do something. */
void notice_silent_ends(void);
/* Likewise, where the application cannot do anything, since its thread sleeps or is in a call: the ends alone. */
void notice_ends(void);

/* ---- pipes.c ---------------------------------------------------------------------------------------- */

/* @to has got something to send. */
void has_to_send(connection *to, uint64_t seed, uint64_t position, uint64_t size);
/* @c's peer has read this. */
void check_sent(connection *c, const uint8_t *bytes, size_t size);
/* Take note of what has come to @to by pipe; of that, and of what @c has passed on. */
void note_piped(connection *to);
void note_all_piped(connection *c);
void check_held_pipe(connection *to);
void check_resumed(connection *to, bool is_memory_short);
void pipe_some(connection *c);
void unpipe_some(connection *c);
bool is_anew(uint64_t user_data);
/* @from's end has been told. */
void pass_end(connection *from);
void notice_pair(connection *c);
void end_pipes(connection *c, int reason, int error);
void flush_some(connection *c);
void check_flushes(const connection *c, int error);

/* ---- waiting.c -------------------------------------------------------------------------------------- */

/* It has been changed what @c is to receive: its place among the starved ones means nothing now. */
void forget_starved(connection *c);
/* The loop would sleep, and there is no change that it has not been told of: is there something that it has forgotten? */
void check_forgotten(void);
/* Look who is starved now. */
void note_starved(void);

/* ---- limits.c --------------------------------------------------------------------------------------- */

void note_held_back(connection *c);
/* So much was delivered. */
void spend(connection *c, uint64_t bytes);
void grant(connection *c, uint64_t bytes);
void grant_some(connection *c);
void tend_metered(void);
/* A timeout has ended it: was it time? */
void check_idle(const connection *c);
void check_write_timeout(const connection *c);
void on_pressure(weir_loop *loop, weir_pool *pool, int level, void *userdata);
void check_limits(const weir_pool_stats *stats);
void check_reserve(const weir_pool_stats *stats);

/* ---- options.c -------------------------------------------------------------------------------------- */

/* @c has got its stream, of these options. */
void begin_options(connection *c, const weir_stream_options *options);
/* Set one, or try to, and look at all of them. */
void change_option(connection *c);
void calm_option(connection *c);

/* ---- watches.c -------------------------------------------------------------------------------------- */

void open_watches(void);
void act_on_watch(void);
void check_watches(void);
void stop_watches(void);
void close_watches(void); /* after the loop */

/* ---- signals.c -------------------------------------------------------------------------------------- */

void open_signals(void);
void act_on_signal(void);
void check_signals(void);
void close_signals(void); /* after the loop */

/* ---- arrivals.c ------------------------------------------------------------------------------------- */

void open_listener(void);
void open_or_close_extra(void);
connection *dial(enum role role);
void dial_pair(void);
void adopt(void);
/* Start those that have waited long enough, or do something else with them. */
void tend_held(void);

/* ---- peers.c ---------------------------------------------------------------------------------------- */

connection *connection_new(enum role role);
/* It is going on, or over. */
void use(connection *c, bool is_used);
/* One of those that are going on, or NULL. */
connection *any_connection(void);

/* ---- oracle.c --------------------------------------------------------------------------------------- */

/* What must be true after each turn. */
void check_world(void);
/* drain's grace is over. */
bool is_grace_over(void);
/* Why it ended must be something that happened. */
void check_reason(const connection *c, int reason, int error);
void check_timers(int64_t until, const char *what);
/* A Unix socket that ends without grace looks to its peer like one that ended well. */
bool is_end_honest(const connection *c);

#endif
