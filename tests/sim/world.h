/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_SIM_WORLD_H
#define WEIR_TESTS_SIM_WORLD_H

/*
 * A kernel made of memory. ring.c, requests.c, epoll.c and net.c implement lib/edge's functions over it, so that the library
 * runs on it unmodified; program.h has the application above and the peers on the far side of the sockets. Everything
 * random comes from one seed, time is a number, and there is one thread, which sometimes says that it is another: so a
 * run can be repeated from its seed.
 *
 *      application.c, run.c   an application               peers.c: sockets without a descriptor
 *   ───────────────────────────────────────────────            │
 *      the library                                             │
 *   ─────────────────────────────────────────────── edge       │
 *      ring.c      submissions, completions, buffers           │
 *      epoll.c     readiness                                   │
 *      net.c       sockets, descriptors, time  ◀────────────────┘
 */

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include "edge/ring.h"

/* ---- faults: what a kernel may do and seldom does --------------------------------------------------- */

#define SIM_FAULTS(X)                                                             \
    X(SPLIT, "a receive brings less than there is")                               \
    X(FORGET_END, "an end or a reset is not told after data")                     \
    X(URGENT, "a peer sends an urgent byte, which nobody reads")                  \
    X(RETIRE_EARLY, "a buffer is given up with room left")                        \
    X(END_WITH_DATA, "a multishot receive ends with data")                        \
    X(NO_BUFFERS, "no buffer for a receive although some are published")          \
    X(UNASKED_CANCEL, "-ECANCELED, -EINTR or -EAGAIN for nothing")                \
    X(END_WITH_BUFFER, "an end that takes a buffer (before 6.12.78)")             \
    X(SHORT_SEND, "a send takes less than there is room for")                     \
    X(SMALL_WORK, "an enter runs only some of the deferred work")                 \
    X(TINY_CQ, "a completion queue of a few entries")                             \
    X(TINY_SQ, "a submission queue of a few entries")                             \
    X(ENTER_EINTR, "a signal ends a wait")                                        \
    X(ENTER_EAGAIN, "no memory for a submission")                                 \
    X(ENTER_EBUSY, "overflown completions first")                                 \
    X(CANCEL_ENOENT, "a cancellation does not find a live request")               \
    X(CANCEL_EALREADY, "a cancellation comes while its target runs")              \
    X(CANCEL_LATE, "a cancellation answers after its target")                     \
    X(CANCEL_TOO_LATE, "its target completes as if nobody had cancelled")         \
    X(RESET, "the peer resets")                                                   \
    X(RESET_BETWEEN, "it resets between two completions of one enter")            \
    X(REFUSE, "nobody listens any more")                                          \
    X(BLACKHOLE, "a connection attempt is never answered")                        \
    X(NO_DESCRIPTOR, "no descriptor for a new connection")                        \
    X(ACCEPT_ERROR, "a connection is gone before it is accepted")                 \
    X(ACCEPT_END, "a multishot accept ends")                                      \
    X(WATCH_END, "a multishot poll ends")                                         \
    X(REQUEST_ENOMEM, "no memory for a request")                                  \
    X(POLL_ENOMEM, "no memory for a poll")                                        \
    X(ENTER_ENOMEM, "an enter has no memory")                                     \
    X(RING_ENOMEM, "no memory for a ring, or one of buffers")                     \
    X(SOCKET_ENOMEM, "no memory for a socket")                                    \
    X(NO_MEMORY, "an allocation fails")                                           \
    X(SPURIOUS_WAKE, "a wait ends without a reason")                              \
    X(LOST_WAKE, "a wait goes on although something is there")                    \
    X(OTHER_THREAD, "another thread does something in between")                   \
    X(REORDER, "completions overtake each other (before 6.12.29, classic rings)") \
    X(SPURIOUS_EVENT, "epoll tells of what was told already")                     \
    X(FEW_EVENTS, "epoll tells of some now, and of the others later")             \
    X(TOO_EARLY, "-EAGAIN after readiness, which is told again")                  \
    X(SIGNAL_AT_MARK, "-EAGAIN at the urgent mark although bytes lie behind it")  \
    X(ACT_BETWEEN, "a peer writes or ends between two calls")

enum sim_fault {
#define X(name, text) SIM_##name,
    SIM_FAULTS(X)
#undef X
        SIM_FAULT_COUNT
};

/* ---- events: the rows of the table in docs/kernel.md that a run has met ------------------------------ */

#define SIM_EVENTS(X)                                                                       \
    X(PARTIAL_FILL, "partial fill: F_BUFFER and F_BUF_MORE")                                \
    X(EXACT_FILL, "exactly full: F_BUF_MORE clear")                                         \
    X(SPILL, "more data than room: the next buffer starts")                                 \
    X(RETIRED_EARLY, "F_BUF_MORE clear with room left")                                     \
    X(CLASSIC, "one completion, one buffer")                                                \
    X(INTERLEAVED, "two streams in one buffer")                                             \
    X(END, "end of stream: 0 without a buffer")                                             \
    X(END_FORGOTTEN, "a receive does not tell of an end or a reset behind data")            \
    X(RESET_SEEN, "a receive ends with an error")                                           \
    X(CANCELLED, "a receive ends with -ECANCELED")                                          \
    X(DISCONNECT_ENDED, "a disconnect ended a request")                                     \
    X(CANCELLED_WITH_DATA, "cancelled with data queued: it stays in the socket")            \
    X(EMPTY_AT_ONCE, "-ENOBUFS at once, nothing pending")                                   \
    X(EMPTY_WITH_DATA, "-ENOBUFS with data pending")                                        \
    X(EMPTY_WITH_END, "-ENOBUFS with an end or an error pending")                           \
    X(POLL_FIRST_WAITS, "armed by POLL_FIRST on an empty ring")                             \
    X(BUFFER_ADDED, "a buffer that was added after arming on an empty ring is used")        \
    X(WAKES_NOBODY, "buffers come back, and no receive that had found none goes on")        \
    X(MORE_THAN_BUFFERS, "more receives are armed than there are buffers")                  \
    X(GOES_ON, "a receive that brought nothing ended: the next goes on at its offset")      \
    X(FULL_QUEUE, "a full completion queue ends a multishot")                               \
    X(OVERFLOW, "a completion overflows")                                                   \
    X(FLUSH, "overflown completions are flushed")                                           \
    X(CAPPED, "a receive ends, for it has brought as much as it was asked for")             \
    X(OVERRUN, "a receive ends, and has brought more than it was asked for")                \
    X(NO_CAPS, "a kernel that cannot limit receives refuses one")                           \
    X(RENEWED, "a buffer ring was registered anew under its old number")                    \
    X(RECEIVE_POLLED, "a poll told that there is something to receive")                     \
    X(RECEIVED_BY_CALL, "recv(2) received what was granted")                                \
    X(RECEIVED_WHILE_STARVED, "recv(2) received for a stream that found no buffer")         \
    X(POLLED_UNASKED, "a poll told of an end that it was not asked for")                    \
    X(PIPED, "streams were joined")                                                         \
    X(END_PASSED, "an end was passed on by a pipe")                                         \
    X(PIPE_BROKEN, "the other end of a pipe failed")                                        \
    X(WATCH_FIRED, "a descriptor of the application's was ready")                           \
    X(OPTION_CHANGED, "an option of a stream was changed")                                  \
    X(OPTION_REFUSED, "an option of a stream was not changed")                              \
    X(SIGNAL_HEARD, "a signal was heard")                                                   \
    X(FRAME, "a frame was taken off a chain")                                               \
    X(FLUSHED, "a flush was told")                                                          \
    X(IDLE_TIMEOUT, "an idle timeout")                                                      \
    X(WRITE_TIMEOUT, "a write timeout")                                                     \
    X(PARKED, "streams wait, and the reserve carries them")                                 \
    X(STUCK, "the reserve is spent, too")                                                   \
    X(MANY_RETRIES, "one socket gets 32 receives and goes to the back of the queue")        \
    X(SHORT, "a short send")                                                                \
    X(SILENT, "a send taken whole, of which nothing is said")                               \
    X(SLEPT_IN_SILENCE, "the loop slept on such a send")                                    \
    X(SEND_WAITED, "a send found no room, and a poll told of some")                         \
    X(SEND_FAILED, "a send failed")                                                         \
    X(CANCEL_FIRST, "a cancellation answered before its target")                            \
    X(CANCEL_SECOND, "a cancellation answered after its target")                            \
    X(CANCEL_MISSED, "a cancellation found nothing")                                        \
    X(CANCEL_OWN_RESULT, "what was cancelled completed with a result of its own")           \
    X(ACCEPTED, "a connection was accepted")                                                \
    X(OUT_OF_DESCRIPTORS, "an accept ended for want of a descriptor")                       \
    X(CONNECTED, "a connect succeeded")                                                     \
    X(CONNECT_FAILED, "a connect failed")                                                   \
    X(DISCONNECTED, "a socket was disconnected with requests under way")                    \
    X(WATCHED_END, "a watch told of an end")                                                \
    X(WATCHED_RESET, "a watch told of a reset")                                             \
    X(WOKEN, "an eventfd woke a sleeping loop")                                             \
    X(TOLD, "epoll told of a change")                                                       \
    X(TOLD_AGAIN, "epoll told of what was told already")                                    \
    X(TOLD_LATER, "epoll had more to tell than it told at once")                            \
    X(TOLD_OF_A_MARK, "epoll told of an urgent byte and of nothing to receive")             \
    X(STOPPED_AT_MARK, "a receive stopped at the urgent mark, and bytes lie behind it")     \
    X(HIDDEN_BY_MARK, "a receive said -EAGAIN at the urgent mark, and bytes lie behind it") \
    X(TOO_EARLY, "-EAGAIN after readiness")                                                 \
    X(CONNECTING, "a connect was under way")                                                \
    X(RECEIVED_PART, "a receive brought less than there is")                                \
    X(BROUGHT_END, "recv(2) told of an end")                                                \
    X(BROUGHT_ERROR, "recv(2) told of an error")                                            \
    X(NO_ROOM, "sendmsg(2) found no room")                                                  \
    X(ROOM_TOLD, "room was told of where there had been too little")                        \
    X(REGISTERED_ANEW, "epoll was asked again for what was registered")                     \
    X(DEREGISTERED, "epoll was told to forget a descriptor")

enum sim_event {
#define X(name, text) SIM_EVENT_##name,
    SIM_EVENTS(X)
#undef X
        SIM_EVENT_COUNT
};

/* ---- sockets ---------------------------------------------------------------------------------------- */

typedef struct sim_bytes {
    uint8_t *data;
    size_t head, size, capacity;
} sim_bytes;

enum { SIM_OPTIONS = 9 };

enum sim_socket_kind { SIM_STREAM, SIM_LISTENER, SIM_EVENTFD, SIM_SIGNALFD, SIM_EPOLL };

typedef struct sim_socket sim_socket;
struct sim_socket {
    enum sim_socket_kind kind;
    int fd;            /* the library's descriptor, or -1: a peer's, or closed */
    unsigned requests; /* under way in the ring */
    bool is_freed;
    bool is_tcp;
    struct sockaddr_storage address;
    socklen_t address_length;
    /* stream */
    sim_socket *other;                                          /* the far end; NULL: none yet, or gone */
    bool is_connected, is_reset, has_error, has_ended, is_shut; /* has_ended: the far end sends no more */
    bool is_urgent;                                             /* which keeps the kernel's own polls awake */
    size_t urgent_after;                                        /* so many bytes */
    bool ended_first, is_disconnected; /* before it was reset; by connect(2) with AF_UNSPEC */
    sim_bytes received;
    size_t room;                 /* for received */
    uint64_t sent;               /* taken from it by the kernel */
    int64_t poll_ended_at;       /* a poll for changes, although it could have gone on */
    int64_t sent_at, brought_at; /* when something last was, and when something was given to it */
    void *peer;                  /* peers.c's: the connection that it is an end of */
    /* listener */
    sim_socket *pending[64];
    unsigned pending_count;
    /* eventfd */
    uint64_t signals;
    /* under a connect(2) that has not come to its end */
    bool is_connecting, is_refused;
    int64_t connects_at;
    struct sockaddr_storage target;
    socklen_t target_length;
    /* readiness */
    uint64_t changes;         /* so far */
    unsigned registrations;   /* of this one, with any epoll */
    bool wants_room;          /* a send found too little */
    int options[SIM_OPTIONS]; /* by enum weir_stream_option */
    /* epoll */
    struct sim_registration *registered;
    size_t registered_count;
};

/* ---- the world -------------------------------------------------------------------------------------- */

/* Actions of the application that are left out, to see whether it fails all the same: from first to last. */
enum { SIM_MOST_SKIPS = 48 };
typedef struct sim_range {
    uint64_t first, last;
} sim_range;

typedef struct sim_config {
    uint64_t seed;
    uint64_t steps;       /* actions of the world before faults stop */
    uint32_t connections; /* at most at a time */
    uint64_t faults;      /* 1 << enum sim_fault: those that may happen */
    bool classic;
    bool no_caps; /* a kernel before 6.17: receives cannot be limited */
    bool epoll;   /* and no rings */
    bool trace;
    sim_range skips[SIM_MOST_SKIPS];
    unsigned skip_count;
} sim_config;

typedef struct sim_world {
    sim_config config;
    uint64_t random;
    int64_t now_ns;
    uint64_t steps;                  /* done */
    uint64_t operations;             /* requests submitted */
    uint64_t actions;                /* of the application, begun or left out */
    bool is_polling;                 /* the loop polls busily: it may look before it sleeps */
    bool has_paused;                 /* the loop looks out before it sleeps */
    unsigned pauses;                 /* since something came, or it slept */
    bool was_stopped;                /* by another thread, since the last enter: it does not sleep */
    bool is_calm;                    /* faults have stopped */
    bool is_other_thread;            /* who says it is calling? */
    uint8_t chance[SIM_FAULT_COUNT]; /* in 256, of this run */
    uint64_t faults[SIM_FAULT_COUNT], events[SIM_EVENT_COUNT];
    sim_socket **sockets; /* all there ever were */
    size_t socket_count, socket_capacity;
    unsigned connecting; /* sockets under a connect(2) */
    int descriptors;     /* open ones of the library */
    int mappings;        /* pages of the library's */
    uint64_t mapped_bytes;
} sim_world;

extern sim_world sim;

/* Begin and end a run. */
void sim_begin(const sim_config *config);
void sim_end(void);

uint64_t sim_random(uint64_t below);
/* An action of the application begins, which draws from a seed of its own, so that one that is left out changes nothing
 * for the others. false: it is left out. Give what @ret_random got to sim_end_action(). */
bool sim_begin_action(uint64_t *ret_random);
void sim_end_action(uint64_t random);
/* Does this fault happen here and now? Counts it if so. */
bool sim_fault(enum sim_fault fault);
/* Likewise, of how this run's kernel is made: also while the world is calm. */
bool sim_chance(enum sim_fault fault);
void sim_event(enum sim_event event);
/* Write as the kernel does: memory that the library has poisoned is fine. */
void sim_kernel_write(void *to, const void *from, size_t size);

/* A line of the story; kept for the failure, printed if traced. */
void sim_note(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* An invariant does not hold: tell the story and end the process with 1. */
void sim_fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
#define sim_require(condition, ...) \
    do {                            \
        if (!(condition))           \
            sim_fail(__VA_ARGS__);  \
    } while (0)

extern const char *const sim_fault_texts[SIM_FAULT_COUNT], *const sim_fault_names[SIM_FAULT_COUNT];
extern const char *const sim_event_texts[SIM_EVENT_COUNT];

/* ---- net.c, for the others -------------------------------------------------------------------------- */

sim_socket *sim_socket_of(int fd); /* NULL: not an open descriptor */
sim_socket *sim_stream_new(bool is_tcp);
sim_socket *sim_epoll_new(void);
void sim_begin_options(sim_socket *socket); /* sockopt.c */
sim_socket *sim_listener_new(const struct sockaddr *address, socklen_t length);
bool sim_lacks_descriptors(void);
int sim_descriptor(sim_socket *socket); /* give it one; -EMFILE */
sim_socket *sim_signalfd_new(void);
void sim_signalfds_changed(void);
/* ---- signalfd.c */
enum { SIM_SIGNAL = 10 };
void sim_signals_begin(void);
bool sim_signal_is_pending(void);
bool sim_signal_is_blocked(void);
void sim_raise(void);
/* Connect @from to the listener at @address. 0; -ECONNREFUSED; -EAGAIN: its queue is full. */
int sim_connect(sim_socket *from, const struct sockaddr *address, socklen_t length);
/* A connection waiting at @listener, or NULL. */
sim_socket *sim_accept(sim_socket *listener);
/* Put bytes into the far end's queue. The number taken; -EPIPE, -ECONNRESET; -EAGAIN: no room. */
int sim_transmit(sim_socket *from, const void *data, size_t size);
/* The error that it will tell once: 0, -ECONNRESET, -EPIPE. */
int sim_take_error(sim_socket *socket);
size_t sim_readable(const sim_socket *socket);
void sim_take(sim_socket *socket, void *data, size_t size);
/* A byte that is not among the others has come. */
void sim_urge(sim_socket *socket);
void sim_shut(sim_socket *socket);
void sim_reset(sim_socket *socket);
void sim_close_socket(sim_socket *socket);
/* poll(2) events now. */
int sim_poll(const sim_socket *socket);

/* ---- epoll.c, for the others ------------------------------------------------------------------------ */

/* Something has changed that the kernel wakes for. NULL: nothing has. */
void sim_changed(sim_socket *socket);
/* Something was read from @reader: its far end may be told of room. */
void sim_made_room(sim_socket *reader);
/* So much that @writer's waiters are told. */
bool sim_has_much_room(const sim_socket *writer);
/* It may be connected by now, or refused. */
void sim_settle(sim_socket *socket);
void sim_give_up_connecting(sim_socket *socket);
/* It is closed: nothing registers it, nor does it register anything. */
void sim_epoll_forget(sim_socket *socket);
/* A call did something: the loop does not spin. */
void sim_epoll_useful(void);
/* A call finds nothing although there is something. */
bool sim_is_too_early(sim_socket *socket);

/* ---- ring.c, for the others ------------------------------------------------------------------------- */

/* Requests of a socket end because of a disconnect: -ENOTCONN and the like. */
void sim_ring_disconnected(sim_socket *socket);
/* The application stopped wanting this receive: its place among the starved ones does not count. */
void sim_ring_forget(uint64_t user_data);
/* recv(2) was called: in the place of a receive that found no buffer, if it is one of a starved stream. */
void sim_ring_received(const sim_socket *socket);
/* Set by the program: this receive is started anew as other things go, so its place among the starved ones means nothing. */
extern bool (*sim_is_out_of_order)(uint64_t user_data);
/* A descriptor was closed. */
void sim_ring_closed(const sim_socket *socket);
/* Requests under way in all rings, the poll of an eventfd not counted. */
unsigned sim_ring_requests(void);

/* ---- the program above and around -------------------------------------------------------------------- */

/* Something happens outside: a peer reads, writes, comes or goes; time passes. false: nothing can. */
bool sim_world_step(void);
/* Another thread gets in between. */
void sim_other_thread(void);
/* A request that was woken in vain, again and again, has got a worker thread. */
void sim_worker(const sim_socket *socket);
/* Between two completions of one enter, or two calls: @socket's peer may reset it, and so may any other. */
void sim_between(sim_socket *socket);
/* recv(2) is called, over epoll. */
void sim_received(const sim_socket *socket);
/* The loop would sleep now, until then at most: may it? */
void sim_check_sleep(int64_t until);
/* One whole run; returns when it is over and well. */
void sim_run(const sim_config *config);
const char *sim_describe(void); /* counters, one line */

#endif
