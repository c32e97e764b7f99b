/* SPDX-License-Identifier: MIT */
#include <poll.h>

#include "backend/uring.h"

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
 *
 * A send that nobody waits for is SILENT instead of ARMED: the kernel, which never waits in it (MSG_DONTWAIT), completes it
 * only if it was not taken whole. So when the kernel has consumed its entry and each completion has been looked at, and
 * there was none of it, it has succeeded. That saves a completion, and where little happens the enter that would wake for
 * it alone. It cannot be cancelled, and need not be: it lasts no longer than a turn.
 */

/* user_data is an operation's address; the lowest bit tells its cancellation's completion from its own. */
enum { TAG_CANCEL = 1 };

enum {
    /* One send in flight a stream, so this much is what a slow reader holds back in the kernel at most. */
    SEND_BYTES = 256 << 10,
    /* The kernel looks at a receive's limit after each completion, so it may overrun it by one less than a completion
     * may bring. */
    LIMITED_BYTES = 64 << 10,
    /* What one socket's completion may bring where buffers are larger: its share, for the others wait meanwhile. */
    FAIR_BYTES = 256 << 10
};

/* What polls tell of unasked, and their owners want to hear. (The kernel tells of POLLRDHUP, too.) */
enum { POLL_ERRORS = POLLERR | POLLHUP | POLLNVAL };

/* ---- states ----------------------------------------------------------------------------------------- */

static void wait_for_entry(weir__uring *u, weir__op *op) {
    op->state = WAITING;
    weir__list_append(&u->waiting, &op->link);
}

static inline void start(weir__uring *u, weir__op *op, enum weir__op_kind kind, int fd, const void *data,
                         uint32_t size) {
    WEIR__ASSERT(weir__op_is_idle(op) && op->state == IDLE);
    op->kind = (uint8_t)kind;
    op->fd = fd;
    op->data = data;
    op->size = size;
    op->cancel = CANCEL_NONE;
    op->group = 0;
    u->under_way++;
    wait_for_entry(u, op);
}

void weir__uring_start(weir__uring *u, weir__op *op, enum weir__op_kind kind, int fd, const void *data,
                       uint32_t size) {
    start(u, op, kind, fd, data, size);
}

static void frame_free(weir__uring *u, weir__op *op) {
    bool is_send =
        op->kind == WEIR__OP_SEND || op->kind == WEIR__OP_SEND_ROOM || op->kind == WEIR__OP_SEND_ROOM_CHANGES;
    if (is_send && op->size == 0) {
        weir__uring_frame *f = (weir__uring_frame *)(uintptr_t)op->data;
        f->header.msg_name = u->frames;
        u->frames = f;
    }
}

void weir__uring_deliver_final(weir__uring *u, weir__op *op, int32_t result) {
    frame_free(u, op);
    op->state = IDLE;
    op->kind = WEIR__OP_NONE;
    u->under_way--;
    op->complete(op, &(weir__completion){ .result = result, .final = true });
}

void weir__uring_finish_later(weir__uring *u, weir__op *op, int32_t result) {
    op->state = FINISHED;
    op->result = result;
    weir__list_append(&u->finished, &op->link);
}

/* The kernel has ended it, and it is not to be started again. */
void weir__uring_finish(weir__uring *u, weir__op *op, int32_t result) {
    /* An error that the look found is told by the socket no more: a receive after it finds a mere end. */
    if (op->kind == WEIR__OP_RECEIVE && (op->size & WEIR__RECEIVE_FAILED) != 0 &&
        (result == -ECANCELED || result == 0))
        result = op->result;
    if (op->cancel == CANCEL_WANTED) {
        weir__list_remove(&op->link);
        op->cancel = CANCEL_NONE;
    }
    if (op->cancel == CANCEL_ARMED) {
        op->state = HELD;
        op->result = result;
        return;
    }
    weir__uring_deliver_final(u, op, result);
}

/* ---- submissions ------------------------------------------------------------------------------------ */

static void prepare(weir__uring *u, weir__op *op, struct io_uring_sqe *sqe) {
    sqe->fd = op->fd;
    sqe->user_data = (uint64_t)(uintptr_t)op;
    switch ((enum weir__op_kind)op->kind) {
    case WEIR__OP_RECEIVE:
        op->size &= WEIR__RECEIVE_LIMITED | WEIR__RECEIVE_WISHED | WEIR__RECEIVE_BY_POLL | WEIR__RECEIVE_SAW_END |
                    WEIR__RECEIVE_KEEPS_PLACE;
        if ((op->size & WEIR__RECEIVE_BY_POLL) != 0) {
            sqe->opcode = IORING_OP_POLL_ADD;
            sqe->poll32_events = POLLIN | POLLRDHUP;
            break;
        }
        sqe->opcode = IORING_OP_RECV;
        sqe->flags = IOSQE_BUFFER_SELECT;
        sqe->buf_group = u->group.id;
        sqe->ioprio = IORING_RECV_MULTISHOT;
        /* On an empty ring a receive answers -ENOBUFS at once, with nothing pending. This way it answers when
         * something is pending and there is no buffer for it. Who has waited for a buffer that is there takes it at once,
         * and whoever comes meanwhile, behind it. */
        if ((op->size & WEIR__RECEIVE_LIMITED) != 0) {
            sqe->len = (uint32_t)weir__min_u64(op->limit, LIMITED_BYTES);
            sqe->optlen = (uint32_t)weir__min_u64(op->limit, INT32_MAX);
        } else if (weir__pool_buffer_bytes(u->group.pool) > FAIR_BYTES && !u->has_no_limits) {
            sqe->len = FAIR_BYTES;
        }
        op->size |= sqe->len > 0 ? WEIR__RECEIVE_CAPPED : 0;
        if (weir__pool_available(u->group.pool) == 0 ||
            (u->group.parked_count > 0 && (op->size & WEIR__RECEIVE_KEEPS_PLACE) == 0)) {
            sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
            op->size |= WEIR__RECEIVE_POLLED_FIRST;
        }
        break;
    case WEIR__OP_SEND:
        /*
         * The kernel is never to wait for room, neither for the first byte nor, with MSG_WAITALL, for the last: a
         * request that was woken often enough is moved to a worker thread, where a slow reader blocks it, a thread
         * a stream. An unread urgent byte is enough for that, since it keeps the kernel's own poll awake. So we
         * take what there is room for, and wait for more by a poll for nothing else.
         */
        sqe->msg_flags = MSG_NOSIGNAL | MSG_DONTWAIT;
        /* Those who wait for a buffer would wait for it, too. */
        if (op->result != 0 && u->group.parked_count == 0 && weir__pool_available(u->group.pool) > 0) {
            sqe->msg_flags |= MSG_WAITALL; /* what is not whole is no success */
            sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
            op->state = SILENT;
            weir__list_append(&u->silent, &op->link);
        }
        op->result = 0; /* who is tried again may be waited for by then */
        sqe->addr = (uint64_t)(uintptr_t)op->data;
        sqe->opcode = op->size > 0 ? IORING_OP_SEND : IORING_OP_SENDMSG;
        sqe->len = op->size > 0 ? op->size : 1;
        break;
    case WEIR__OP_SEND_ROOM:
    case WEIR__OP_SEND_ROOM_CHANGES:
        sqe->opcode = IORING_OP_POLL_ADD;
        sqe->len = op->kind == WEIR__OP_SEND_ROOM_CHANGES ? IORING_POLL_ADD_MULTI : 0;
        sqe->poll32_events = POLLOUT;
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
    case WEIR__OP_POLL:
        sqe->opcode = IORING_OP_POLL_ADD;
        sqe->poll32_events = op->size;
        break;
    case WEIR__OP_POLL_CHANGES:
        sqe->opcode = IORING_OP_POLL_ADD;
        sqe->len = IORING_POLL_ADD_MULTI;
        sqe->poll32_events = op->size;
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

void weir__uring_submit_waiting(weir__uring *u) {
    while (!weir__list_is_empty(&u->waiting)) {
        weir__op *first = WEIR__CONTAINER(u->waiting.next, weir__op, link);
        if (first->state == WAITING && first->group != 0 && first->group != u->group.id) {
            weir__list_remove(&first->link); /* it was to go on, on a group that has been condemned meanwhile */
            weir__uring_finish_later(u, first, -EILSEQ);
            continue;
        }
        struct io_uring_sqe *sqe = weir__ring_sqe(u->ring);
        if (sqe == NULL)
            return;
        weir__op *op = WEIR__CONTAINER(weir__list_take_first(&u->waiting), weir__op, link);
        if (op->state == WAITING) {
            op->state = ARMED;
            bool has_buffers = op->kind == WEIR__OP_RECEIVE && (op->size & WEIR__RECEIVE_BY_POLL) == 0;
            op->group = has_buffers ? u->group.id : 0;
            prepare(u, op, sqe);
        } else {
            prepare_cancel(op, sqe);
            op->cancel = CANCEL_ARMED;
        }
    }
}

/* ---- the verbs that start --------------------------------------------------------------------------- */

static weir__uring_frame *frame_take(weir__uring *u) {
    weir__uring_frame *f = u->frames;
    if (f != NULL)
        u->frames = f->header.msg_name;
    else
        f = weir__alloc(u->allocator, sizeof *f);
    u->frames_were_used = true;
    return f;
}

/* false: no memory, and the first range alone is a send as well. */
static WEIR__NOINLINE bool send_gathered(weir__uring *u, weir__op *op, int fd, const weir__sendq *queue) {
    weir__uring_frame *f = frame_take(u);
    if (f == NULL)
        return false;
    unsigned count = weir__sendq_gather(queue, f->vectors, WEIR__FRAME_VECTORS, SEND_BYTES);
    f->header = (struct msghdr){ .msg_iov = f->vectors, .msg_iovlen = count };
    start(u, op, WEIR__OP_SEND, fd, f, 0);
    op->result = 0;
    return true;
}

void weir__uring_send(weir__backend *backend, weir__op *op, int fd, const weir__sendq *queue, bool is_quiet) {
    weir__uring *u = weir__uring_of(backend);
    const weir__range *first = queue->first;
    uint32_t size = (uint32_t)weir__min_u64(first->size, SEND_BYTES);
    if (queue->count > 1 && size < SEND_BYTES && send_gathered(u, op, fd, queue))
        return;
    start(u, op, WEIR__OP_SEND, fd, first->data, size);
    op->result = is_quiet && u->has_silence && size == queue->bytes;
}

void weir__uring_hurry(weir__op *op) {
    if (op->state == WAITING && op->kind == WEIR__OP_SEND)
        op->result = 0;
}

void weir__uring_accept(weir__backend *backend, weir__op *op, int fd, bool one) {
    weir__uring_start(weir__uring_of(backend), op, one ? WEIR__OP_ACCEPT_ONE : WEIR__OP_ACCEPT, fd, NULL, 0);
}

void weir__uring_connect(weir__backend *backend, weir__op *op, int fd, const struct sockaddr *address,
                         socklen_t length) {
    weir__uring_start(weir__uring_of(backend), op, WEIR__OP_CONNECT, fd, address, length);
}

void weir__uring_watch(weir__backend *backend, weir__op *op, int fd) {
    weir__uring_start(weir__uring_of(backend), op, WEIR__OP_WATCH, fd, NULL, 0);
}

void weir__uring_poll(weir__backend *backend, weir__op *op, int fd, unsigned events) {
    weir__uring_start(weir__uring_of(backend), op, WEIR__OP_POLL, fd, NULL, events);
}

void weir__uring_cancel(weir__backend *backend, weir__op *op) {
    weir__uring *u = weir__uring_of(backend);
    if (op->kind == WEIR__OP_RECEIVE)
        op->size &= ~(uint32_t)WEIR__RECEIVE_RETAKEN; /* it is the owner's wish now */
    switch ((enum weir__uring_state)op->state) {
    case WAITING:
        weir__list_remove(&op->link);
        weir__uring_finish_later(u, op, -ECANCELED);
        break;
    case PARKED:
        weir__uring_group_unpark(&u->group, op);
        weir__uring_finish_later(u, op, -ECANCELED);
        break;
    case ARMED:
        if (op->cancel == CANCEL_NONE) {
            op->cancel = CANCEL_WANTED;
            weir__list_remove(&op->link); /* of the doubtful ones */
            weir__list_append(&u->waiting, &op->link);
        }
        break;
    case IDLE:
    case SILENT:
    case FINISHED:
    case HELD:
        break;
    }
}

/* ---- completions ------------------------------------------------------------------------------------ */

void weir__uring_rearm(weir__uring *u, weir__op *op) {
    u->base.stats.rearms++;
    wait_for_entry(u, op);
}

void weir__uring_park(weir__uring *u, weir__op *op) {
    op->state = PARKED;
    weir__uring_group_park(&u->group, op);
}

/* A send, or its wait for room, which is no answer but a reason to try again. */
static WEIR__NOINLINE void sent(weir__uring *u, weir__op *op, int32_t result) {
    bool is_wait = op->kind == WEIR__OP_SEND_ROOM;
    if (op->state == SILENT) { /* not taken whole */
        weir__list_remove(&op->link);
        op->state = ARMED;
        op->result = 0;
    }
    bool goes_on = (is_wait && result >= 0) || result == -EAGAIN || result == -EINTR || result == -ECANCELED;
    if (goes_on && op->cancel == CANCEL_NONE) {
        if (is_wait && result > 0 && (result & (POLLOUT | POLL_ERRORS)) == 0) {
            op->kind = WEIR__OP_SEND_ROOM_CHANGES; /* see below */
            op->result = 0;
        } else {
            op->kind = !is_wait && result == -EAGAIN ? WEIR__OP_SEND_ROOM : WEIR__OP_SEND;
        }
        wait_for_entry(u, op);
    } else {
        weir__uring_finish(u, op, is_wait && result >= 0 ? -ECANCELED : result);
    }
}

unsigned weir__uring_settle_silent(weir__uring *u, weir__link *list) {
    unsigned count = 0;
    uint32_t generation = weir__pool_generation(u->group.pool);
    weir__link silent, *link;
    weir__list_move(list, &silent);
    while (!weir__fork_is_child(generation) && (link = weir__list_take_first(&silent)) != NULL) {
        weir__op *op = WEIR__CONTAINER(link, weir__op, link);
        op->state = IDLE;
        op->kind = WEIR__OP_NONE;
        u->under_way--;
        op->complete(op, &(weir__completion){ .result = (int32_t)op->size, .final = true, .is_late = true });
        count++;
    }
    return count;
}

static WEIR__NOINLINE void accepted(weir__uring *u, weir__op *op, const weir__cqe *cqe) {
    bool is_over = (cqe->flags & IORING_CQE_F_MORE) == 0;
    bool is_one = op->kind == WEIR__OP_ACCEPT_ONE;
    if (is_over && op->cancel == CANCEL_NONE && !(is_one && cqe->res >= 0) &&
        (cqe->res >= 0 || cqe->res == -ECANCELED || cqe->res == -EINTR || cqe->res == -EAGAIN ||
         cqe->res == -ECONNABORTED)) {
        weir__uring_rearm(u, op);
        is_over = false;
    }
    if (cqe->res >= 0)
        op->complete(op, &(weir__completion){ .result = cqe->res });
    if (is_over)
        weir__uring_finish(u, op, cqe->res >= 0 ? -ECANCELED : cqe->res);
}

static WEIR__NOINLINE void watched(weir__uring *u, weir__op *op, const weir__cqe *cqe) {
    bool is_over = (cqe->flags & IORING_CQE_F_MORE) == 0;
    if (is_over && op->cancel == CANCEL_NONE && (cqe->res >= 0 || cqe->res == -ECANCELED)) {
        weir__uring_rearm(u, op);
        is_over = false;
    }
    if (cqe->res > 0)
        op->complete(op, &(weir__completion){ .result = cqe->res });
    if (is_over)
        weir__uring_finish(u, op, cqe->res >= 0 ? -ECANCELED : cqe->res);
}

/*
 * The kernel adds POLLRDHUP to what is polled for, and there is no way not to hear of it: where the peer has ended, a poll
 * for room alone would complete at once, and again each time that it is started. So from then on the poll is a multishot
 * one, which completes at changes only; what it finds that was asked for ends it.
 */
static WEIR__NOINLINE void polled(weir__uring *u, weir__op *op, const weir__cqe *cqe) {
    bool is_over = (cqe->flags & IORING_CQE_F_MORE) == 0;
    bool is_send = op->kind == WEIR__OP_SEND_ROOM_CHANGES;
    int32_t asked = POLL_ERRORS | (is_send ? POLLOUT : (int32_t)op->size);
    int32_t events = cqe->res > 0 ? cqe->res & asked : 0;
    if (op->kind != WEIR__OP_POLL) {
        op->result |= events;
        events = op->result;
    }
    if (!is_over) {
        if (events > 0)
            weir__uring_cancel(&u->base, op);
    } else if (events > 0) {
        weir__uring_finish(u, op, is_send ? 0 : events); /* nothing was sent yet, and now there is room */
    } else if (op->cancel == CANCEL_NONE && (cqe->res >= 0 || cqe->res == -ECANCELED)) {
        if (op->kind == WEIR__OP_POLL && cqe->res > 0)
            op->kind = WEIR__OP_POLL_CHANGES;
        op->result = 0;
        weir__uring_rearm(u, op);
    } else {
        weir__uring_finish(u, op, cqe->res >= 0 ? -ECANCELED : cqe->res);
    }
}

/* The answer to a cancellation, which may come before the target's completion, after it, or instead of success. */
static WEIR__NOINLINE void cancelled(weir__uring *u, weir__op *op, int32_t result) {
    if (op->cancel != CANCEL_ARMED)
        return;
    op->cancel = CANCEL_ANSWERED;
    if (op->state == HELD) {
        weir__uring_deliver_final(u, op, op->result);
    } else if (result < 0) {
        /* Not found, or just running, but it has not completed: -ENOENT has been seen for a live request. Ask again;
         * if its completion lies in the queue behind this one, that comes first. */
        op->cancel = CANCEL_WANTED;
        weir__list_append(&u->waiting, &op->link);
    }
}

void weir__uring_complete(weir__uring *u, const weir__cqe *cqe) {
    weir__op *op = (weir__op *)(uintptr_t)(cqe->user_data & ~(uint64_t)TAG_CANCEL);
    u->base.stats.completions++;
    if ((cqe->user_data & TAG_CANCEL) != 0) {
        cancelled(u, op, cqe->res);
        return;
    }
    if (op->state != ARMED && op->state != SILENT)
        return;
    switch ((enum weir__op_kind)op->kind) {
    case WEIR__OP_RECEIVE:
        if (WEIR__UNLIKELY((op->size & WEIR__RECEIVE_BY_POLL) != 0))
            weir__uring_readable(u, op, cqe->res);
        else
            weir__uring_received(u, op, cqe);
        break;
    case WEIR__OP_SEND:
    case WEIR__OP_SEND_ROOM:
        sent(u, op, cqe->res);
        break;
    case WEIR__OP_ACCEPT:
    case WEIR__OP_ACCEPT_ONE:
        accepted(u, op, cqe);
        break;
    case WEIR__OP_CONNECT:
        weir__uring_finish(u, op, cqe->res);
        break;
    case WEIR__OP_WATCH:
    case WEIR__OP_WAKE:
        watched(u, op, cqe);
        break;
    case WEIR__OP_POLL:
    case WEIR__OP_POLL_CHANGES:
    case WEIR__OP_SEND_ROOM_CHANGES:
        polled(u, op, cqe);
        break;
    case WEIR__OP_NONE:
        break;
    }
}
