/* SPDX-License-Identifier: MIT */
#include <poll.h>

#include "backend/uring.h"
#include "edge/sys.h"

/*
 * Receives over the buffer ring: what their completions bring, whether a stream goes on, waits for a buffer or has ended,
 * and the ends that the kernel does not tell. What they are submitted with is in uring_op.c, as for other operations.
 */

/* A receive is to have a limit, and the kernel has none. */
static uint32_t without_limits(uint32_t how) {
    return (how & WEIR__RECEIVE_WISHED) != 0 ? 0 : how | WEIR__RECEIVE_BY_POLL;
}

void weir__uring_receive(weir__backend *backend, weir__op *op, int fd, uint64_t limit_bytes, bool is_wish) {
    weir__uring *u = weir__uring_of(backend);
    uint32_t how = limit_bytes > 0 ? WEIR__RECEIVE_LIMITED | (is_wish ? WEIR__RECEIVE_WISHED : 0) : 0;
    if (how != 0 && u->has_no_limits)
        how = without_limits(how);
    weir__uring_start(u, op, WEIR__OP_RECEIVE, fd, NULL, how);
    op->limit = limit_bytes;
}

bool weir__uring_is_starved(const weir__op *op) {
    return op->state == PARKED;
}

static void mistrust(weir__uring *u) {
    u->is_mistrusted = true;
}

/*
 * The end that is never told. A multishot receive stops when its socket says that it holds nothing more, and goes back
 * to its poll, which tells of changes. If the peer wrote and ended (a Unix socket) or reset (TCP, too), both wake-ups may
 * have been taken for one; and a receive that polled first may have found both there already. Then no change is left to
 * tell of, and the stream would hang for ever (seen on 6.18).
 *
 * So after bytes with which a socket says that it is empty its receive is doubtful: it is looked at as soon as it has
 * been silent from one look around to the next, at once if it polled first. If that finds an end or an error, the receive
 * is taken back. An error is its result then, since it is told once and a receive would not hear of it again. An end is
 * not, since a send may have the error, and its completion be in the queue still: a new receive finds the end in order.
 */
static WEIR__NOINLINE void look_for_end(weir__uring *u, weir__op *op) {
    int r = weir__sys_peek(op->fd);
    if (r > 0 || r == -EAGAIN || r == -EINTR)
        return;
    op->result = r;
    weir__uring_cancel(&u->base, op);
    op->size |= r < 0 ? WEIR__RECEIVE_FAILED : WEIR__RECEIVE_RETAKEN;
}

static void doubt(weir__uring *u, weir__op *op) {
    if ((op->size & WEIR__RECEIVE_POLLED_FIRST) != 0) {
        op->size &= ~(uint32_t)WEIR__RECEIVE_POLLED_FIRST;
        look_for_end(u, op);
        return;
    }
    op->size |= WEIR__RECEIVE_FRESH;
    if (!weir__link_is_listed(&op->link))
        weir__list_append(&u->doubtful, &op->link);
}

void weir__uring_look_again(weir__uring *u) {
    enum { MOST_LOOKS = 1024 }; /* a system call each; the others have their turn at the next tick */
    weir__link doubtful, *link;
    unsigned looks = 0;
    weir__list_move(&u->doubtful, &doubtful);
    while ((link = weir__list_take_first(&doubtful)) != NULL) {
        weir__op *op = WEIR__CONTAINER(link, weir__op, link);
        bool is_fresh = (op->size & WEIR__RECEIVE_FRESH) != 0;
        op->size &= ~(uint32_t)WEIR__RECEIVE_FRESH;
        if (!is_fresh && looks++ < MOST_LOOKS)
            look_for_end(u, op);
        else
            weir__list_append(&u->doubtful, &op->link);
    }
}

/*
 * A stream that waits for memory is not read from, nor is the reset behind what it has not read; and what it holds may be
 * what all wait for. So while nobody can be received for, their sockets are asked. (What lies before a reset is lost then.)
 */
void weir__uring_look_at_parked(weir__uring *u) {
    bool is_dry = weir__pool_available(u->group.pool) == 0 || u->group.parked_for_blocks > 0;
    weir__link *link = u->group.parked.next;
    if (!is_dry || weir__uring_has_private(u))
        return;
    while (link != &u->group.parked) {
        weir__op *op = WEIR__CONTAINER(link, weir__op, link);
        link = link->next;
        int r = weir__sys_lost(op->fd);
        if (r < 0) {
            weir__uring_group_unpark(&u->group, op);
            weir__uring_finish_later(u, op, r);
        }
    }
}

static void bring(weir__uring *u, weir__op *op, const weir__completion *completion) {
    u->base.stats.slices++;
    u->base.stats.bytes_in += (uint64_t)completion->result;
    op->size &= ~(uint32_t)WEIR__RECEIVE_KEEPS_PLACE;
    op->complete(op, completion);
}

static bool may_have_missed_its_end(const weir__op *op, const weir__cqe *cqe) {
    return (cqe->flags & IORING_CQE_F_SOCK_NONEMPTY) == 0 && op->state == ARMED && op->cancel == CANCEL_NONE;
}

/* What nearly always comes: bytes in a buffer of the group's, and more may follow. */
static bool is_plain(const weir__uring *u, const weir__op *op, const weir__cqe *cqe) {
    const uint32_t plain = IORING_CQE_F_MORE | IORING_CQE_F_BUFFER;
    return cqe->res > 0 && (cqe->flags & plain) == plain && op->group == u->group.id &&
           (op->size & WEIR__RECEIVE_LIMITED) == 0 && !u->is_mistrusted;
}

static WEIR__NOINLINE void received_otherwise(weir__uring *u, weir__op *op, const weir__cqe *cqe) {
    weir__completion completion = { .result = cqe->res };
    bool is_over = (cqe->flags & IORING_CQE_F_MORE) == 0, is_lost = false;
    if (is_over)
        weir__list_remove(&op->link); /* of the doubtful ones, or of those that wait for a cancellation */
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
            weir__uring_finish(u, op, -EILSEQ);
        else
            weir__uring_cancel(&u->base, op);
        return;
    }
    if (is_over && (op->size & WEIR__RECEIVE_RETAKEN) != 0 && op->cancel == CANCEL_WANTED)
        op->cancel = CANCEL_NONE; /* it is over by itself, and need not be taken back to go on */
    bool has_data = cqe->res > 0, is_limited = (op->size & WEIR__RECEIVE_LIMITED) != 0;
    if (is_limited && has_data)
        op->limit -= weir__min_u64(op->limit, (uint64_t)cqe->res);
    bool is_spent = is_limited && op->limit == 0;
    bool is_refused = cqe->res == -EINVAL && (op->size & WEIR__RECEIVE_CAPPED) != 0;
    if (is_over) {
        if (is_refused && op->cancel == CANCEL_NONE) { /* before 6.17 */
            u->has_no_limits = true;
            op->size = is_limited ? without_limits(op->size) : op->size;
            weir__uring_rearm(u, op);
            return;
        }
        if (is_spent || op->cancel != CANCEL_NONE ||
            (cqe->res <= 0 && cqe->res != -ENOBUFS && cqe->res != -ECANCELED && cqe->res != -EINTR &&
             cqe->res != -EAGAIN)) {
            /* Over for good. Data goes first; the operation is still the backend's while it is looked at. */
        } else if (cqe->res == -ENOBUFS) {
            weir__pool_starve(u->group.pool);
            weir__uring_park(u, op);
            return;
        } else {
            weir__uring_rearm(u, op);
            is_over = false;
        }
    }
    if (has_data)
        bring(u, op, &completion);
    bool is_reason =
        cqe->res != -ENOBUFS && cqe->res != -EINTR && cqe->res != -EAGAIN && !is_refused; /* or it was cancelled */
    if (is_over)
        weir__uring_finish(u, op, has_data || !is_reason ? -ECANCELED : cqe->res);
    else if (is_spent)
        weir__uring_cancel(&u->base, op); /* the kernel should have stopped */
    else if (may_have_missed_its_end(op, cqe))
        doubt(u, op);
}

void weir__uring_received(weir__uring *u, weir__op *op, const weir__cqe *cqe) {
    weir__completion completion = { .result = cqe->res };
    if (WEIR__UNLIKELY(!is_plain(u, op, cqe))) {
        received_otherwise(u, op, cqe);
    } else if (WEIR__LIKELY(weir__pool_commit(u->group.pool, cqe->flags >> IORING_CQE_BUFFER_SHIFT,
                                              (size_t)cqe->res, (cqe->flags & IORING_CQE_F_BUF_MORE) != 0,
                                              &completion.slice) >= 0)) {
        bring(u, op, &completion);
        if (may_have_missed_its_end(op, cqe))
            doubt(u, op);
    } else {
        mistrust(u);
        weir__uring_cancel(&u->base, op);
    }
}

/* A receive by poll: something has come, or the end. */
void weir__uring_readable(weir__uring *u, weir__op *op, int32_t result) {
    bool is_wait = result >= 0 || result == -ECANCELED || result == -EINTR || result == -EAGAIN;
    if (op->cancel != CANCEL_NONE)
        weir__uring_finish(u, op, -ECANCELED);
    else if (!is_wait)
        weir__uring_finish(u, op, result);
    else if (result < 0)
        weir__uring_rearm(u, op);
    else
        weir__uring_receive_private(u, op);
}
