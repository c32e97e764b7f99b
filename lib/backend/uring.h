/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BACKEND_URING_H
#define WEIR_BACKEND_URING_H

/* The io_uring backend: uring.c turns and closes, uring_op.c carries out operations, uring_receive.c takes what receives
 * bring, uring_private.c receives without the buffer ring, uring_group.c keeps that, uring_setup.c finds out what this
 * kernel can do. */

#include "backend/backend.h"
#include "backend/waker.h"
#include "edge/ring.h"

/* ---- what choose.c calls ---------------------------------------------------------------------------- */

/*
 * Find the best mode that this kernel has (or the one asked for). 0 and *ret_mode; else -ENOSYS, -EPERM and so on.
 * In either case @reason says why it is not a better one, "" if it is the best.
 */
int weir__uring_choose(const weir_allocator *allocator, uint32_t asked, const weir__tuning *tuning,
                       uint32_t *ret_mode, char *reason, size_t reason_size);
/* Why a ring could not be had. */
const char *weir__uring_error_text(int error);
/* A backend over @pool, disabled until enable. On failure the pool is good for nothing but to be closed. */
int weir__uring_new(const weir_allocator *allocator, uint32_t mode, const weir__tuning *tuning, weir_pool *pool,
                    weir__waker *waker, weir__backend **ret_backend);

/* ---- between the files ------------------------------------------------------------------------ */

/* A registered buffer ring, the pool behind it, and those who wait for a buffer. */
typedef struct weir__uring_group {
    weir_pool *pool;
    weir__buffer_ring *ring;
    weir__link parked;    /* weir__op.link, in the order in which they found no buffer */
    weir__link *returned; /* the last of those at its front that came back in this turn; or the list itself */
    uint32_t parked_count;
    uint32_t parked_for_blocks; /* of them, those that no buffer helps */
    uint8_t id;                 /* the kernel's number of it, from 1; a condemned group's successor has another */
} weir__uring_group;

/* Open a ring with the best flags that this kernel takes, smaller than @tuning says if that is too large. */
int weir__uring_open_ring(const weir_allocator *allocator, weir__tuning *tuning, weir__ring **ret_ring,
                          uint32_t *ret_setup_flags);

/* Ask for a ring of a quarter of the size; false: it is as small as it may be. */
bool weir__uring_shrink(weir__tuning *tuning);

int weir__uring_group_open(weir__uring_group *group, weir__ring *ring, const weir_allocator *allocator);
/* Publish buffers up to the window. */
void weir__uring_group_refill(weir__uring_group *group);
/* Does the kernel agree where the next byte goes? Ask only when every completion has been taken. */
bool weir__uring_group_agrees(const weir__uring_group *group);
/* It cannot be trusted: unregister it, and put a classic ring in its place. 0; -errno: there is none now. */
int weir__uring_group_condemn(weir__uring_group *group, weir__ring *ring, const weir_allocator *allocator);
/* Buffers that are posted are in the way of private blocks. They are taken back, the ring with them; receives that are armed
 * on it starve, or go on with the one that renew opens under the same number, when each completion has been taken. */
void weir__uring_group_take_back(weir__uring_group *group, weir__ring *ring);
void weir__uring_group_renew(weir__uring_group *group, weir__ring *ring, const weir_allocator *allocator);
void weir__uring_group_park(weir__uring_group *group, weir__op *op);
void weir__uring_group_unpark(weir__uring_group *group, weir__op *op);

/* An operation's state and cancel; uring_op.c draws them. */
enum weir__uring_state { IDLE, WAITING, ARMED, SILENT, PARKED, FINISHED, HELD };
/* How far a cancellation is: wanted but without a submission entry yet, in the kernel, or answered by it with success,
 * so that the target's completion is on its way. */
enum weir__uring_cancel_state { CANCEL_NONE, CANCEL_WANTED, CANCEL_ARMED, CANCEL_ANSWERED };

enum { WEIR__FRAME_VECTORS = 64 };

/* A gathered send: the kernel looks at it until its completion. */
typedef struct weir__uring_frame {
    struct msghdr header; /* header.msg_name links free frames */
    struct iovec vectors[WEIR__FRAME_VECTORS];
} weir__uring_frame;

typedef struct weir__uring {
    weir__backend base;
    const weir_allocator *allocator;
    weir__ring *ring;
    weir__waker *waker;
    weir__uring_group group;
    weir__link waiting;  /* weir__op.link: WAITING, or ARMED with CANCEL_WANTED; in order */
    weir__link finished; /* weir__op.link: FINISHED */
    weir__link doubtful; /* weir__op.link: receives, ARMED and not cancelled, that may have missed their end */
    weir__link silent;   /* weir__op.link: SILENT, in order */
    weir__link
        settling; /* likewise, and what the kernel has to say of them is in the next settling_left completions */
    unsigned settling_left;
    weir__op wake;             /* a poll of the waker's eventfd */
    weir__uring_frame *frames; /* free ones */
    bool frames_were_used;     /* since the last tick */
    uint32_t under_way;        /* operations that are not IDLE, wake included */
    uint32_t enter_flags;
    uint32_t dry_turns; /* in which a parked stream might have been served */
    int64_t close_timeout_ns;
    bool is_enabled;
    bool is_closing;
    bool has_more; /* the last dispatch stopped at its limit */
    bool
        has_unsettled; /* it left silent sends of which it could not know the end: somebody may wait for them by now */
    bool has_silence;   /* the kernel can be told not to complete what succeeds */
    bool has_no_limits; /* the kernel's receives cannot be limited */
    bool has_no_memory; /* for a private block; tried again at the next tick */
    bool is_overflown;  /* seen, and counted, since the queue was last found in order */
    bool is_mistrusted; /* the group is to be condemned before the next entry is made */
} weir__uring;

static inline weir__uring *weir__uring_of(weir__backend *backend) {
    return WEIR__CONTAINER(backend, weir__uring, base);
}

/* The verbs of backend.h that uring_op.c and uring_receive.c have. */
void weir__uring_receive(weir__backend *backend, weir__op *op, int fd, uint64_t limit_bytes, bool is_wish);
bool weir__uring_is_starved(const weir__op *op);
void weir__uring_send(weir__backend *backend, weir__op *op, int fd, const weir__sendq *queue, bool is_quiet);
void weir__uring_hurry(weir__op *op);
void weir__uring_accept(weir__backend *backend, weir__op *op, int fd, bool one);
void weir__uring_connect(weir__backend *backend, weir__op *op, int fd, const struct sockaddr *address,
                         socklen_t length);
void weir__uring_watch(weir__backend *backend, weir__op *op, int fd);
void weir__uring_poll(weir__backend *backend, weir__op *op, int fd, unsigned events);
void weir__uring_cancel(weir__backend *backend, weir__op *op);

void weir__uring_start(weir__uring *u, weir__op *op, enum weir__op_kind kind, int fd, const void *data,
                       uint32_t size);
/* The kernel ended a multishot that we want to go on. */
void weir__uring_rearm(weir__uring *u, weir__op *op);
/* Give waiting operations to the ring while it has entries. */
void weir__uring_submit_waiting(weir__uring *u);
void weir__uring_complete(weir__uring *u, const weir__cqe *cqe);
/* Every completion that the silent sends of @list can have was looked at: those that had none have been taken whole.
 * Return: how many. */
unsigned weir__uring_settle_silent(weir__uring *u, weir__link *list);
/* About a second has passed: look at receives that have been silent in it. */
void weir__uring_look_again(weir__uring *u);
/* And nothing has moved: look at those that wait for memory, if there is none. Their peers may be gone. */
void weir__uring_look_at_parked(weir__uring *u);
/* The kernel has ended it, and it is not to be started again. */
void weir__uring_finish(weir__uring *u, weir__op *op, int32_t result);
/* A receive's completion; or that of the poll that it waits with. */
void weir__uring_received(weir__uring *u, weir__op *op, const weir__cqe *cqe);
void weir__uring_readable(weir__uring *u, weir__op *op, int32_t result);
/* The last of an operation. Its owner may start it again, or free it, inside. */
void weir__uring_deliver_final(weir__uring *u, weir__op *op, int32_t result);
/* Likewise, but in the next dispatch. */
void weir__uring_finish_later(weir__uring *u, weir__op *op, int32_t result);
/* A receive has nothing in the kernel, and waits for memory. */
void weir__uring_park(weir__uring *u, weir__op *op);

/* How an operation receives: its size. */
enum {
    WEIR__RECEIVE_POLLED_FIRST = 1,  /* and has not been looked at since */
    WEIR__RECEIVE_FRESH = 2,         /* something came since the last look around */
    WEIR__RECEIVE_FAILED = 4,        /* result says how; it is being cancelled for that */
    WEIR__RECEIVE_LIMITED = 8,       /* limit counts */
    WEIR__RECEIVE_BY_POLL = 16,      /* when it is readable, and into a private block */
    WEIR__RECEIVE_RETAKEN = 32,      /* is being cancelled to be started again */
    WEIR__RECEIVE_CAPPED = 64,       /* its completions are, at least */
    WEIR__RECEIVE_WISHED = 128,      /* the limit is one that may be ignored */
    WEIR__RECEIVE_KEEPS_PLACE = 512, /* it was parked, and has got nothing since */
    WEIR__RECEIVE_SAW_END = 256      /* by a call of our own, which may have been ahead of the queue */
};

/* ---- uring_private.c -------------------------------------------------------------------------------- */

/* There is no buffer, and nothing happens that would bring one: receive for those who are parked, a private block each.
 * Return: for how many. */
unsigned weir__uring_serve_parked(weir__uring *u);
/* Is there room for one? */
bool weir__uring_has_private(const weir__uring *u);
/* Receive now, for an operation that has nothing in the kernel; without a block it is parked. */
void weir__uring_receive_private(weir__uring *u, weir__op *op);

#endif
