/* SPDX-License-Identifier: MIT */
#include "backend/uring.h"

#include <poll.h>

#include "edge/sys.h"

/*
 * Operations over io_uring. The life of one:
 *
 *            start                     an entry was free           final completion
 *   IDLE ───────────▶ WAITING ─────────────────────────▶ ARMED ─────────────────────▶ IDLE
 *                      ▲   │ cancel                        │  │ no buffer              ▲
 *                      │   └────────────▶ FINISHED ────────┼──┼────────────────────────┤ delivered by dispatch
 *                      │ multishot ended     ▲ cancel      │  ▼                        │
 *                      ├─────────────────────┼─────────────┘ PARKED                    │
 *                      └─────────────────────┴────────────────┘                        │
 *                                                          ARMED ─▶ HELD ──────────────┘ cancel's own completion
 *
 * A cancellation has a completion of its own, whose order with the target's is not defined; the operation is not
 * idle before both have come, so that neither finds freed memory. That is what HELD is for.
 */

enum op_state { IDLE, WAITING, ARMED, PARKED, FINISHED, HELD };
/* How far a cancellation is: wanted but without a submission entry yet, in the kernel, or answered by it with success,
 * so that the target's completion is on its way. */
enum cancel_state { CANCEL_NONE, CANCEL_WANTED, CANCEL_ARMED, CANCEL_ANSWERED };

/* user_data is an operation's address; the lowest bit tells its cancellation's completion from its own. */
enum { TAG_CANCEL = 1 };

enum {
    /* One send in flight a stream, so this much is what a slow reader holds back in the kernel at most. */
    SEND_BYTES = 256 << 10,
    FRAME_VECTORS = 64
};

static const int64_t close_timeout_ns = 5 * INT64_C(1000000000);

/* A gathered send: the kernel looks at it until its completion. */
typedef struct frame {
    struct msghdr header; /* header.msg_name links free frames */
    struct iovec vectors[FRAME_VECTORS];
} frame;

typedef struct uring {
    weir__backend base;
    const weir_allocator *allocator;
    weir__ring *ring;
    weir__waker *waker;
    weir__uring_group group;
    weir__link waiting;  /* weir__op.link: WAITING, or ARMED with CANCEL_WANTED; in order */
    weir__link finished; /* weir__op.link: FINISHED */
    weir__op wake;       /* a poll of the waker's eventfd */
    frame *frames;       /* free ones */
    uint32_t under_way;  /* operations that are not IDLE, wake included */
    uint32_t enter_flags;
    int64_t close_timeout_ns;
    bool is_enabled;
    bool is_closing;
    bool has_more;      /* the last dispatch stopped at its limit */
    bool is_overflown;  /* seen, and counted, since the queue was last found in order */
    bool is_mistrusted; /* the group is to be condemned before the next entry is made */
} uring;

static uring *to_uring(weir__backend *backend) {
    return WEIR__CONTAINER(backend, uring, base);
}

/* ---- states ----------------------------------------------------------------------------------------- */

static void wait_for_entry(uring *u, weir__op *op) {
    op->state = WAITING;
    weir__list_append(&u->waiting, &op->link);
}

static void start(uring *u, weir__op *op, enum weir__op_kind kind, int fd, const void *data, uint32_t size) {
    WEIR__ASSERT(weir__op_is_idle(op) && op->state == IDLE);
    op->kind = (uint8_t)kind;
    op->fd = fd;
    op->data = data;
    op->size = size;
    op->cancel = CANCEL_NONE;
    u->under_way++;
    wait_for_entry(u, op);
}

static void frame_free(uring *u, weir__op *op) {
    if (op->kind == WEIR__OP_SEND && op->size == 0) {
        frame *f = (frame *)(uintptr_t)op->data;
        f->header.msg_name = u->frames;
        u->frames = f;
    }
}

/* The last of an operation. Its owner may start it again, or free it, inside. */
static void deliver_final(uring *u, weir__op *op, int32_t result) {
    frame_free(u, op);
    op->state = IDLE;
    op->kind = WEIR__OP_NONE;
    u->under_way--;
    op->complete(op, &(weir__completion){ .result = result, .final = true });
}

static void finish_later(uring *u, weir__op *op, int32_t result) {
    op->state = FINISHED;
    op->result = result;
    weir__list_append(&u->finished, &op->link);
}

/* The kernel has ended it, and it is not to be started again. */
static void finish(uring *u, weir__op *op, int32_t result) {
    if (op->cancel == CANCEL_WANTED) {
        weir__list_remove(&op->link);
        op->cancel = CANCEL_NONE;
    }
    if (op->cancel == CANCEL_ARMED) {
        op->state = HELD;
        op->result = result;
        return;
    }
    deliver_final(u, op, result);
}

/* ---- submissions ------------------------------------------------------------------------------------ */

static void prepare(const uring *u, const weir__op *op, struct io_uring_sqe *sqe) {
    sqe->fd = op->fd;
    sqe->user_data = (uint64_t)(uintptr_t)op;
    switch ((enum weir__op_kind)op->kind) {
    case WEIR__OP_RECEIVE:
        sqe->opcode = IORING_OP_RECV;
        sqe->flags = IOSQE_BUFFER_SELECT;
        sqe->buf_group = u->group.id;
        sqe->ioprio = IORING_RECV_MULTISHOT;
        /* On an empty ring a receive answers -ENOBUFS at once, with nothing pending. This way it answers when
         * something is pending and there is no buffer for it. */
        if (weir__pool_available(u->group.pool) == 0 || u->group.parked_count > 0)
            sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
        break;
    case WEIR__OP_SEND:
        /*
         * Without MSG_WAITALL: the kernel would go on by itself after a short send, and a request that is woken
         * often enough is moved to a worker thread, where a slow reader blocks it: a thread a stream. Taking the
         * short count and sending the rest costs an entry for each time the socket's buffer ran full.
         */
        sqe->msg_flags = MSG_NOSIGNAL;
        sqe->addr = (uint64_t)(uintptr_t)op->data;
        sqe->opcode = op->size > 0 ? IORING_OP_SEND : IORING_OP_SENDMSG;
        sqe->len = op->size > 0 ? op->size : 1;
        break;
    case WEIR__OP_ACCEPT:
    case WEIR__OP_ACCEPT_ONE:
        sqe->opcode = IORING_OP_ACCEPT;
        sqe->ioprio = op->kind == WEIR__OP_ACCEPT ? IORING_ACCEPT_MULTISHOT : 0;
        sqe->accept_flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
        break;
    case WEIR__OP_CONNECT:
        sqe->opcode = IORING_OP_CONNECT;
        sqe->addr = (uint64_t)(uintptr_t)op->data;
        sqe->off = op->size;
        break;
    case WEIR__OP_WATCH:
        sqe->opcode = IORING_OP_POLL_ADD;
        sqe->len = IORING_POLL_ADD_MULTI; /* edge-triggered: after the end it still tells of a reset */
        sqe->poll32_events = POLLRDHUP;
        break;
    case WEIR__OP_WAKE:
        sqe->opcode = IORING_OP_POLL_ADD;
        sqe->len = IORING_POLL_ADD_MULTI; /* edge-triggered: each write wakes, and nothing need be read */
        sqe->poll32_events = POLLIN;
        break;
    case WEIR__OP_NONE:
        break;
    }
}

static void prepare_cancel(const weir__op *op, struct io_uring_sqe *sqe) {
    sqe->opcode = IORING_OP_ASYNC_CANCEL;
    sqe->fd = -1;
    sqe->addr = (uint64_t)(uintptr_t)op;
    sqe->user_data = (uint64_t)(uintptr_t)op | TAG_CANCEL;
}

/* Give waiting operations to the ring while it has entries. */
static void submit_waiting(uring *u) {
    while (!weir__list_is_empty(&u->waiting)) {
        struct io_uring_sqe *sqe = weir__ring_sqe(u->ring);
        if (sqe == NULL)
            return;
        weir__op *op = WEIR__CONTAINER(weir__list_take_first(&u->waiting), weir__op, link);
        if (op->state == WAITING) {
            op->group = u->group.id;
            op->state = ARMED;
            prepare(u, op, sqe);
        } else {
            prepare_cancel(op, sqe);
            op->cancel = CANCEL_ARMED;
        }
    }
}

/* ---- the verbs that start --------------------------------------------------------------------------- */

static void receive(weir__backend *backend, weir__op *op, int fd) {
    start(to_uring(backend), op, WEIR__OP_RECEIVE, fd, NULL, 0);
}

static frame *frame_take(uring *u) {
    frame *f = u->frames;
    if (f != NULL)
        u->frames = f->header.msg_name;
    else
        f = weir__alloc(u->allocator, sizeof *f);
    return f;
}

static void send_queue(weir__backend *backend, weir__op *op, int fd, const weir__sendq *queue) {
    uring *u = to_uring(backend);
    struct iovec first;
    frame *f = NULL;
    (void)weir__sendq_gather(queue, &first, 1, SEND_BYTES);
    if (queue->count > 1 && first.iov_len < SEND_BYTES)
        f = frame_take(u); /* none to be had: the first range alone is a send as well */
    if (f == NULL) {
        start(u, op, WEIR__OP_SEND, fd, first.iov_base, (uint32_t)first.iov_len);
        return;
    }
    unsigned count = weir__sendq_gather(queue, f->vectors, FRAME_VECTORS, SEND_BYTES);
    f->header = (struct msghdr){ .msg_iov = f->vectors, .msg_iovlen = count };
    start(u, op, WEIR__OP_SEND, fd, f, 0);
}

static void accept_connections(weir__backend *backend, weir__op *op, int fd, bool one) {
    start(to_uring(backend), op, one ? WEIR__OP_ACCEPT_ONE : WEIR__OP_ACCEPT, fd, NULL, 0);
}

static void connect_to(weir__backend *backend, weir__op *op, int fd, const struct sockaddr *address,
                       socklen_t length) {
    start(to_uring(backend), op, WEIR__OP_CONNECT, fd, address, length);
}

static void watch(weir__backend *backend, weir__op *op, int fd) {
    start(to_uring(backend), op, WEIR__OP_WATCH, fd, NULL, 0);
}

static void cancel(weir__backend *backend, weir__op *op) {
    uring *u = to_uring(backend);
    switch ((enum op_state)op->state) {
    case WAITING:
        weir__list_remove(&op->link);
        finish_later(u, op, -ECANCELED);
        break;
    case PARKED:
        weir__uring_group_unpark(&u->group, op);
        finish_later(u, op, -ECANCELED);
        break;
    case ARMED:
        if (op->cancel == CANCEL_NONE) {
            op->cancel = CANCEL_WANTED;
            weir__list_append(&u->waiting, &op->link);
        }
        break;
    case IDLE:
    case FINISHED:
    case HELD:
        break;
    }
}

/* ---- completions ------------------------------------------------------------------------------------ */

/* The kernel ended a multishot that we want to go on. */
static void rearm(uring *u, weir__op *op) {
    u->base.stats.rearms++;
    wait_for_entry(u, op);
}

static void mistrust(uring *u) {
    u->is_mistrusted = true;
}

static void received(uring *u, weir__op *op, const weir__cqe *cqe) {
    weir__completion completion = { .result = cqe->res };
    bool is_over = (cqe->flags & IORING_CQE_F_MORE) == 0, is_lost = false;
    if (op->group != u->group.id || u->is_mistrusted) {
        is_lost = true; /* whose bytes these are cannot be known */
    } else if ((cqe->flags & IORING_CQE_F_BUFFER) != 0) {
        size_t bytes = cqe->res > 0 ? (size_t)cqe->res : 0;
        if (weir__pool_commit(u->group.pool, cqe->flags >> IORING_CQE_BUFFER_SHIFT, bytes,
                              (cqe->flags & IORING_CQE_F_BUF_MORE) != 0, &completion.slice) < 0) {
            mistrust(u);
            is_lost = true;
        }
    } else if (cqe->res > 0) {
        mistrust(u); /* bytes without a buffer cannot be */
        is_lost = true;
    }
    if (is_lost) {
        if (is_over)
            finish(u, op, -EILSEQ);
        else
            cancel(&u->base, op);
        return;
    }
    bool has_data = cqe->res > 0;
    if (is_over) {
        if (op->cancel != CANCEL_NONE || (cqe->res <= 0 && cqe->res != -ENOBUFS && cqe->res != -ECANCELED &&
                                          cqe->res != -EINTR && cqe->res != -EAGAIN)) {
            /* Over for good. Data goes first; the operation is still the backend's while it is looked at. */
        } else if (cqe->res == -ENOBUFS) {
            weir__pool_starve(u->group.pool);
            op->state = PARKED;
            weir__uring_group_park(&u->group, op);
            return;
        } else {
            rearm(u, op);
            is_over = false;
        }
    }
    if (has_data) {
        u->base.stats.slices++;
        u->base.stats.bytes_in += (uint64_t)cqe->res;
        op->complete(op, &completion);
    }
    if (is_over)
        finish(u, op, has_data || cqe->res == -ENOBUFS ? -ECANCELED : cqe->res);
}

static void accepted(uring *u, weir__op *op, const weir__cqe *cqe) {
    bool is_over = (cqe->flags & IORING_CQE_F_MORE) == 0;
    bool is_one = op->kind == WEIR__OP_ACCEPT_ONE;
    if (is_over && op->cancel == CANCEL_NONE && !(is_one && cqe->res >= 0) &&
        (cqe->res >= 0 || cqe->res == -ECANCELED || cqe->res == -EINTR || cqe->res == -EAGAIN ||
         cqe->res == -ECONNABORTED)) {
        rearm(u, op);
        is_over = false;
    }
    if (cqe->res >= 0)
        op->complete(op, &(weir__completion){ .result = cqe->res });
    if (is_over)
        finish(u, op, cqe->res >= 0 ? -ECANCELED : cqe->res);
}

static void watched(uring *u, weir__op *op, const weir__cqe *cqe) {
    bool is_over = (cqe->flags & IORING_CQE_F_MORE) == 0;
    if (is_over && op->cancel == CANCEL_NONE && (cqe->res >= 0 || cqe->res == -ECANCELED)) {
        rearm(u, op);
        is_over = false;
    }
    if (cqe->res > 0)
        op->complete(op, &(weir__completion){ .result = cqe->res });
    if (is_over)
        finish(u, op, cqe->res >= 0 ? -ECANCELED : cqe->res);
}

/* The answer to a cancellation, which may come before the target's completion, after it, or instead of success. */
static void cancelled(uring *u, weir__op *op, int32_t result) {
    if (op->cancel != CANCEL_ARMED)
        return;
    op->cancel = CANCEL_ANSWERED;
    if (op->state == HELD) {
        deliver_final(u, op, op->result);
    } else if (result < 0) {
        /* Not found, or just running, but it has not completed: -ENOENT has been seen for a live request. Ask again;
         * if its completion lies in the queue behind this one, that comes first. */
        op->cancel = CANCEL_WANTED;
        weir__list_append(&u->waiting, &op->link);
    }
}

static void complete(uring *u, const weir__cqe *cqe) {
    weir__op *op = (weir__op *)(uintptr_t)(cqe->user_data & ~(uint64_t)TAG_CANCEL);
    u->base.stats.completions++;
    if ((cqe->user_data & TAG_CANCEL) != 0) {
        cancelled(u, op, cqe->res);
        return;
    }
    if (op->state != ARMED)
        return;
    switch ((enum weir__op_kind)op->kind) {
    case WEIR__OP_RECEIVE:
        received(u, op, cqe);
        break;
    case WEIR__OP_SEND:
        if ((cqe->res == -EAGAIN || cqe->res == -EINTR || cqe->res == -ECANCELED) && op->cancel == CANCEL_NONE)
            rearm(u, op);
        else
            finish(u, op, cqe->res);
        break;
    case WEIR__OP_ACCEPT:
    case WEIR__OP_ACCEPT_ONE:
        accepted(u, op, cqe);
        break;
    case WEIR__OP_CONNECT:
        finish(u, op, cqe->res);
        break;
    case WEIR__OP_WATCH:
    case WEIR__OP_WAKE:
        watched(u, op, cqe);
        break;
    case WEIR__OP_NONE:
        break;
    }
}

/* ---- turns ------------------------------------------------------------------------------------------ */

static int enter(uring *u, unsigned wait, int64_t timeout_ns) {
    u->base.stats.enters++;
    int r = weir__ring_enter(u->ring, wait, u->enter_flags | IORING_ENTER_GETEVENTS, timeout_ns);
    switch (r) {
    case -ETIME:  /* nothing came */
    case -EINTR:  /* a signal did */
    case -EBUSY:  /* overflown completions must be taken first: the coming dispatch does */
    case -EAGAIN: /* no memory for a request just now: it is in the queue still, for the next turn */
        return 0;
    case -EEXIST: /* the ring is another thread's */
        return -EPERM;
    default:
        return r;
    }
}

/* Start parked receives, oldest first, one for each buffer there is. */
static void unpark(uring *u) {
    uint32_t count = weir__pool_available(u->group.pool);
    while (count-- > 0 && u->group.parked_count > 0) {
        weir__op *op = WEIR__CONTAINER(u->group.parked.next, weir__op, link);
        weir__uring_group_unpark(&u->group, op);
        rearm(u, op);
    }
}

static int wait_for(weir__backend *backend, int64_t timeout_ns) {
    uring *u = to_uring(backend);
    int r = 0;
    if (WEIR__UNLIKELY(u->is_mistrusted)) {
        r = weir__uring_group_condemn(&u->group, u->ring, u->allocator);
        if (r < 0)
            return r; /* tried again by the next wait */
        u->is_mistrusted = false;
        backend->mode = WEIR_BACKEND_URING_CLASSIC;
        backend->demoted = "completions and buffers disagreed, so classic rings took the incremental ones' place";
    }
    weir__pool_collect(u->group.pool);
    weir__uring_group_refill(&u->group);
    if (u->group.parked_count > 0)
        unpark(u);
    submit_waiting(u);
    while (!weir__list_is_empty(&u->waiting)) { /* more than the queue has entries */
        r = enter(u, 0, 0);
        if (r <= 0)
            return r;
        submit_waiting(u);
    }
    r = enter(u, timeout_ns != 0, timeout_ns);
    return r < 0 ? r : 0;
}

/* Every completion has been taken: is the kernel where we think it is? */
static void cross_check(uring *u) {
    if ((weir__ring_flags(u->ring) & IORING_SQ_CQ_OVERFLOW) != 0) {
        u->base.stats.overflows += !u->is_overflown;
        u->is_overflown = true;
        return;
    }
    u->is_overflown = false;
    /* Without deferred work the kernel may consume at any time, also between the queue and the look. */
    if ((u->base.features & WEIR_FEATURE_DEFER_TASKRUN) != 0 && !weir__uring_group_agrees(&u->group))
        mistrust(u);
}

static unsigned dispatch(weir__backend *backend, unsigned max) {
    uring *u = to_uring(backend);
    weir__link finished, *link;
    weir__cqe cqe;
    unsigned count = 0;
    weir__list_move(&u->finished, &finished);
    while ((link = weir__list_take_first(&finished)) != NULL) {
        weir__op *op = WEIR__CONTAINER(link, weir__op, link);
        deliver_final(u, op, op->result);
        count++;
    }
    while (count < max && weir__ring_cqe(u->ring, &cqe)) {
        complete(u, &cqe);
        count++;
    }
    u->has_more = count >= max;
    if (!u->has_more)
        cross_check(u);
    weir__pool_end_dispatch(u->group.pool);
    return count;
}

static bool is_ready(const weir__backend *backend) {
    const uring *u = WEIR__CONTAINER(backend, const uring, base);
    return u->has_more || !weir__list_is_empty(&u->finished);
}

static bool is_quiet(const weir__backend *backend) {
    const uring *u = WEIR__CONTAINER(backend, const uring, base);
    return u->under_way == !weir__op_is_idle(&u->wake);
}

static void tick(weir__backend *backend) {
    weir__pool_trim(to_uring(backend)->group.pool);
}

/* ---- life ------------------------------------------------------------------------------------------- */

static void poll_waker(uring *u) {
    start(u, &u->wake, WEIR__OP_WAKE, atomic_load(&u->waker->fd), NULL, 0);
}

/* That the loop is awake is all it was for. A loop that cannot be woken would be lost, so the poll never ends. */
static void woken(weir__op *op, const weir__completion *completion) {
    uring *u = WEIR__CONTAINER(op, uring, wake);
    if (completion->final && !u->is_closing)
        poll_waker(u);
}

static int enable(weir__backend *backend) {
    uring *u = to_uring(backend);
    int r = weir__ring_enable(u->ring);
    if (r < 0)
        return r == -EEXIST ? -EPERM : r;
    u->is_enabled = true;
    poll_waker(u);
    return 0;
}

static int close_uring(weir__backend *backend) {
    uring *u = to_uring(backend);
    int64_t deadline = weir__sys_now() + u->close_timeout_ns;
    u->is_closing = true;
    cancel(backend, &u->wake);
    while (u->is_enabled && u->under_way > 0 && weir__sys_now() < deadline) {
        if (wait_for(backend, 10 * 1000 * 1000) < 0)
            break;
        (void)dispatch(backend, UINT32_MAX);
    }
    bool is_drained = u->under_way == 0 || !u->is_enabled;
    if (is_drained && u->group.ring != NULL)
        (void)weir__buffer_ring_unregister(u->ring, u->group.ring);
    weir__ring_close(u->ring);
    if (!is_drained) { /* what the kernel may still write to stays mapped */
        weir__pool_abandon(u->group.pool);
        return -ETIMEDOUT;
    }
    if (u->group.ring != NULL)
        weir__buffer_ring_close(u->group.ring);
    weir__pool_close(u->group.pool);
    return 0;
}

static void free_uring(weir__backend *backend) {
    uring *u = to_uring(backend);
    while (u->frames != NULL) {
        frame *f = u->frames;
        u->frames = f->header.msg_name;
        weir__free(u->allocator, f, sizeof *f);
    }
    weir__free(u->allocator, u, sizeof *u);
}

static const weir__backend_verbs verbs = {
    .enable = enable,
    .receive = receive,
    .send = send_queue,
    .accept = accept_connections,
    .connect = connect_to,
    .watch = watch,
    .cancel = cancel,
    .wait = wait_for,
    .dispatch = dispatch,
    .is_ready = is_ready,
    .is_quiet = is_quiet,
    .tick = tick,
    .close = close_uring,
    .free = free_uring,
};

int weir__uring_new(const weir_allocator *allocator, uint32_t mode, const weir__tuning *tuning, weir_pool *pool,
                    weir__waker *waker, weir__backend **ret_backend) {
    uint32_t setup_flags = 0;
    uring *u = weir__alloc_zeroed(allocator, sizeof *u);
    if (u == NULL)
        return -ENOMEM;
    int r = weir__uring_open_ring(allocator, tuning, &u->ring, &setup_flags);
    if (r >= 0) {
        u->group.pool = pool;
        r = weir__uring_group_open(&u->group, u->ring, allocator);
        if (r < 0)
            weir__ring_close(u->ring);
    }
    if (r >= 0) {
        weir__uring_group_refill(&u->group);
        if (weir__pool_available(pool) == 0) { /* it could receive nothing: better said now */
            weir__ring_close(u->ring);
            weir__buffer_ring_close(u->group.ring);
            weir__pool_withdraw(pool);
            r = -ENOMEM;
        }
    }
    if (r < 0) {
        weir__free(allocator, u, sizeof *u);
        return r;
    }
    u->base = (weir__backend){ .verbs = &verbs, .mode = mode };
    u->allocator = allocator;
    u->waker = waker;
    u->close_timeout_ns = tuning->close_timeout_ns > 0 ? tuning->close_timeout_ns : close_timeout_ns;
    weir__list_init(&u->waiting);
    weir__list_init(&u->finished);
    weir__op_init(&u->wake, woken);
    if ((setup_flags & IORING_SETUP_DEFER_TASKRUN) != 0)
        u->base.features |= WEIR_FEATURE_DEFER_TASKRUN;
    if ((weir__ring_features(u->ring) & IORING_FEAT_NO_IOWAIT) != 0) {
        u->base.features |= WEIR_FEATURE_NO_IOWAIT;
        u->enter_flags = IORING_ENTER_NO_IOWAIT;
    }
    *ret_backend = &u->base;
    return 0;
}
