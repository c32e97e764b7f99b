/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BACKEND_BACKEND_H
#define WEIR_BACKEND_BACKEND_H

/*
 * What the rest of weir knows of the kernel: operations that are started, and their completions. Nothing above
 * knows whether io_uring or something else carries them out.
 *
 * An operation lies in its owner's memory and is idle, or under way from a start until its FINAL completion:
 *
 *   - a start never fails and never completes inside itself: what cannot be handed to the kernel now is handed
 *     over later, what the kernel refuses comes as a completion;
 *   - there is exactly one FINAL completion for each start, the last one, and when it has come, the kernel and
 *     the backend have forgotten the operation: its owner may start another one with it, or free it;
 *   - cancel asks for that FINAL to come soon: with -ECANCELED, or with what happened first. It is harmless on an
 *     idle operation, and a second time;
 *   - what the kernel ends although it could go on (a multishot on a full completion queue, a receive that found no
 *     buffer) is started again here and not seen above; what it cannot do is an error, and seen.
 *
 * Completions are delivered inside dispatch only. All of it is the loop's thread's.
 */

#include <sys/socket.h>

#include "base/base.h"
#include "base/list.h"
#include "memory/sendq.h"
#include "weir/loop.h"

typedef struct weir__backend weir__backend;
typedef struct weir__op weir__op;

typedef struct weir__completion {
    /*
     * receive  bytes in slice; 0 and FINAL: the peer sends no more; -ECANCELED and FINAL: taken back, or it has
     *          brought as much as it was to, or a little more; -errno and FINAL
     * send     FINAL: bytes taken from the queue, maybe fewer than there were; is_late: they had been taken when it was
     *          handed over; -errno
     * accept   a descriptor, the receiver's to close; -errno and FINAL
     * connect  FINAL: 0; -errno
     * watch    poll events (POLLRDHUP, POLLERR, POLLHUP); -errno and FINAL
     * poll     FINAL: those of the events asked for that are so, POLLERR and POLLHUP besides, never 0; -errno
     */
    int32_t result;
    bool final;
    bool is_late;
    weir_slice slice; /* receive: borrowed for the call */
} weir__completion;

typedef void (*weir__op_fn)(weir__op *op, const weir__completion *completion);

enum weir__op_kind {
    WEIR__OP_NONE = 0,
    WEIR__OP_RECEIVE,
    WEIR__OP_SEND,
    WEIR__OP_SEND_ROOM,         /* a send that waits until there is room; the backend's */
    WEIR__OP_SEND_ROOM_CHANGES, /* and whose peer has ended */
    WEIR__OP_ACCEPT,
    WEIR__OP_ACCEPT_ONE,
    WEIR__OP_CONNECT,
    WEIR__OP_WATCH,
    WEIR__OP_POLL,
    WEIR__OP_POLL_CHANGES, /* a poll whose descriptor is always ready, but not for that; the backend's */
    WEIR__OP_WAKE
};

enum { WEIR__MOST_GROUPS = 127 };

/* The owner sets complete; the rest is the backend's, but where it says otherwise. */
struct weir__op {
    weir__link link; /* the backend's lists; which one follows from the state */
    weir__op_fn complete;
    union {
        const void *data; /* send: bytes or a frame; connect: the address */
        uint64_t limit;   /* receive: bytes that it may still bring, if it has a limit */
    };
    int32_t fd;
    uint32_t size;  /* of data; poll: the events; receive: the backend's */
    int32_t result; /* a FINAL that waits to be delivered, or for a cancellation; a send that waits: it is quiet */
    uint8_t kind;   /* enum weir__op_kind */
    uint8_t state;  /* the backend's */
    uint8_t cancel; /* the backend's */
    uint8_t group : 7; /* receive: the buffer group that it was armed on; 0: none yet */
    bool is_stale : 1; /* the owner's: it may wish for something else by now, so settle it before going on */
};

static inline void weir__op_init(weir__op *op, weir__op_fn complete) {
    *op = (weir__op){ .complete = complete };
    weir__list_init(&op->link);
}

static inline bool weir__op_is_idle(const weir__op *op) {
    return op->kind == WEIR__OP_NONE;
}

typedef struct weir__backend_stats {
    uint64_t enters, completions, overflows, rearms, slices, bytes_in;
} weir__backend_stats;

typedef struct weir__backend_verbs {
    /* The calling thread is the loop's from now on. 0; -errno. */
    int (*enable)(weir__backend *backend);
    /* Receive until the peer ends, or @limit_bytes have come; 0: no limit. @is_wish: it may be ignored where it costs. */
    void (*receive)(weir__backend *backend, weir__op *op, int fd, uint64_t limit_bytes, bool is_wish);
    /* Send what is at the front of @queue, which keeps its references until the FINAL completion and then advances.
     * @is_quiet: if all of @queue is taken, that may be told when the loop wakes for something else. */
    void (*send)(weir__backend *backend, weir__op *op, int fd, const weir__sendq *queue, bool is_quiet);
    /* If it is a quiet send that was not handed over yet: somebody waits for it now. */
    void (*hurry)(weir__op *op);
    /* Accept connections until cancelled, or exactly one. */
    void (*accept)(weir__backend *backend, weir__op *op, int fd, bool one);
    /* @address stays where it is until the FINAL completion. */
    void (*connect)(weir__backend *backend, weir__op *op, int fd, const struct sockaddr *address,
                    socklen_t length);
    /* Notice that the peer ended or reset, and nothing else, while nothing is received. */
    void (*watch)(weir__backend *backend, weir__op *op, int fd);
    /* Say once that @fd is ready, now or later, for one of @events (POLLIN, POLLOUT) or is in error or hung up. The number is
     * looked up when the operation is handed over; from then on it is the file that counts. */
    void (*poll)(weir__backend *backend, weir__op *op, int fd, unsigned events);
    void (*cancel)(weir__backend *backend, weir__op *op);
    /* @fd will have operations, or may have: the memory that it takes to know of it. 0; -ENOMEM. */
    int (*admit)(weir__backend *backend, int fd);
    /* @fd is about to be closed, or to be another's; it has no operation but polls that are being cancelled. */
    void (*forget)(weir__backend *backend, int fd);
    /* Hand over what was started, publish buffers, sleep until something completes, a wake, or @timeout_ns. 0;
     * -errno: the kernel cannot now, and nothing is lost. */
    int (*wait)(weir__backend *backend, int64_t timeout_ns);
    /* As wait, but never sleep, and make no system call unless there is something to hand over or to fetch. 1: dispatch, and
     * do not wait; 0: nothing has come; -errno. */
    int (*look)(weir__backend *backend);
    /* Deliver up to @max completions. Return: how many it looked at. */
    unsigned (*dispatch)(weir__backend *backend, unsigned max);
    /* Completions that need no kernel are waiting: do not sleep. */
    bool (*is_ready)(const weir__backend *backend);
    /* A receive: something has come, and waits for memory? */
    bool (*is_starved)(const weir__op *op);
    /* Nothing is under way but the backend's own. */
    bool (*is_quiet)(const weir__backend *backend);
    /* About a second has passed. @is_still: and no byte was received or sent in the last two. */
    void (*tick)(weir__backend *backend, bool is_still);
    /* Everything is quiet: leave the kernel, then the pool. The memory goes with free. Return: 0; -ETIMEDOUT: the
     * kernel would not let go in time, so the pool's posted buffers are left to it for ever. */
    int (*close)(weir__backend *backend);
    void (*free)(weir__backend *backend);
} weir__backend_verbs;

struct weir__backend {
    const weir__backend_verbs *verbs;
    uint32_t mode;       /* enum weir_backend: what runs */
    uint64_t features;   /* WEIR_FEATURE_* */
    const char *demoted; /* why the mode is not what it was at first; NULL: it is */
    weir__backend_stats stats;
};

/* Sizes and switches that applications do not see: tests do. */
typedef struct weir__tuning {
    unsigned sq_entries, cq_entries; /* 0: the default */
    bool no_self_test;               /* believe what was asked for */
    bool no_receive_limits;          /* as on a kernel before Linux 6.17 */
    int64_t close_timeout_ns;        /* 0: the default */
} weir__tuning;

#endif
