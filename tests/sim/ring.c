/* SPDX-License-Identifier: MIT */
#include "sim/world.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>

/*
 * io_uring as it behaves: submissions are tried when they are entered and wait for their socket otherwise; deferred
 * work runs in enter only; a full completion queue overflows into a list and ends multishots. What differs from run
 * to run, within what the real one may do, is drawn from the seed.
 */

enum { RETRIES = 32, MOST_IDLE_ENTERS = 500 };

typedef struct request {
    struct request *next;
    struct io_uring_sqe sqe;
    sim_socket *socket;
    int polled;       /* events told already (edge-triggered) */
    uint64_t signals; /* of an eventfd, seen */
    bool has_tried, has_worker;
    uint32_t brought;   /* by a receive */
    unsigned forgotten; /* a receive: an end that it will not notice, as end_of() has it */
    int ended;          /* a result that is to come: -ECANCELED and the like; 0: none */
    int64_t not_before; /* an answer that takes its time */
} request;

struct weir__buffer_ring {
    weir__provided *entries; /* as the kernel rewrites them */
    uint32_t mask, head, tail;
    uint16_t group, flags;
    bool is_registered;
    uint64_t last_user; /* user_data of who filled the head so far */
};

struct weir__ring {
    const weir_allocator *allocator;
    struct io_uring_sqe *sqes;
    unsigned sq_entries, sq_count;
    weir__cqe *cqes;
    unsigned cq_entries, cq_head, cq_tail;
    weir__cqe *overflow;
    size_t overflow_count, overflow_capacity;
    request *requests, **last;
    weir__buffer_ring *groups[256];
    uint32_t setup_flags;
    bool is_enabled;
    unsigned idle_enters; /* in a row */
    unsigned vain_looks;  /* at an empty queue, since the last enter */
};

static weir__ring *the_ring; /* the loop's; there is one */

/* Receives that found no buffer, in order: they are to be armed again in that order. */
static struct {
    uint64_t user_data[1024];
    const sim_socket *socket[1024];
    bool is_overtaken[1024]; /* a later one was armed again before it: wrong, if it ever is */
    size_t count;
} starved;

static void starve(uint64_t user_data, const sim_socket *socket) {
    if (starved.count == sizeof starved.user_data / sizeof *starved.user_data)
        return;
    sim_note("descriptor %d found no buffer", socket->fd);
    starved.is_overtaken[starved.count] = false;
    starved.socket[starved.count] = socket;
    starved.user_data[starved.count++] = user_data;
}

void sim_ring_forget(uint64_t user_data) {
    for (size_t i = 0; i < starved.count; i++)
        if (starved.user_data[i] == user_data) {
            starved.count--;
            memmove(starved.user_data + i, starved.user_data + i + 1,
                    (starved.count - i) * sizeof *starved.user_data);
            memmove(starved.socket + i, starved.socket + i + 1, (starved.count - i) * sizeof *starved.socket);
            memmove(starved.is_overtaken + i, starved.is_overtaken + i + 1, starved.count - i);
            return;
        }
}

void sim_ring_closed(const sim_socket *socket) {
    for (size_t i = starved.count; i-- > 0;)
        if (starved.socket[i] == socket)
            sim_ring_forget(starved.user_data[i]);
}

static void armed_again(uint64_t user_data) {
    for (size_t i = 0; i < starved.count; i++)
        if (starved.user_data[i] == user_data) {
            sim_note("descriptor %d is armed again", starved.socket[i]->fd);
            sim_require(!starved.is_overtaken[i], "a starved stream was armed again after one that starved later");
            for (size_t earlier = 0; earlier < i; earlier++)
                starved.is_overtaken[earlier] = true;
            sim_ring_forget(user_data);
            return;
        }
}

/* ---- completing ------------------------------------------------------------------------------------- */

static bool has_room(const weir__ring *ring) {
    return ring->cq_tail - ring->cq_head < ring->cq_entries && ring->overflow_count == 0;
}

static void post(weir__ring *ring, uint64_t user_data, int res, uint32_t flags) {
    if (sim.config.trace)
        sim_note("completion of %#llx: %d, flags %#x", (unsigned long long)user_data, res, flags);
    weir__cqe cqe = { user_data, res, flags };
    if (has_room(ring)) {
        ring->cqes[ring->cq_tail++ % ring->cq_entries] = cqe;
        unsigned count = ring->cq_tail - ring->cq_head;
        bool is_classic = (flags & (IORING_CQE_F_BUFFER | IORING_CQE_F_BUF_MORE)) == IORING_CQE_F_BUFFER;
        /* Only completions of different requests overtake each other, and with classic rings nobody can tell. */
        if (sim.config.classic && is_classic && count >= 2 && sim_fault(SIM_REORDER)) {
            weir__cqe *last = &ring->cqes[(ring->cq_tail - 1) % ring->cq_entries];
            weir__cqe *before = &ring->cqes[(ring->cq_tail - 2) % ring->cq_entries];
            if ((last->user_data | 1) != (before->user_data | 1)) {
                weir__cqe swapped = *last;
                *last = *before;
                *before = swapped;
            }
        }
        return;
    }
    sim_event(SIM_EVENT_OVERFLOW);
    if (ring->overflow_count == ring->overflow_capacity) {
        ring->overflow_capacity = ring->overflow_capacity > 0 ? ring->overflow_capacity * 2 : 64;
        ring->overflow = realloc(ring->overflow, ring->overflow_capacity * sizeof cqe);
    }
    ring->overflow[ring->overflow_count++] = cqe;
}

static void flush(weir__ring *ring) {
    size_t count = 0;
    while (count < ring->overflow_count && ring->cq_tail - ring->cq_head < ring->cq_entries)
        ring->cqes[ring->cq_tail++ % ring->cq_entries] = ring->overflow[count++];
    if (count > 0)
        sim_event(SIM_EVENT_FLUSH);
    ring->overflow_count -= count;
    if (ring->overflow_count > 0)
        memmove(ring->overflow, ring->overflow + count, ring->overflow_count * sizeof *ring->overflow);
}

/* The last completion of a request. The caller unlinks it. */
static void end_request(weir__ring *ring, request *r, int res, uint32_t flags) {
    post(ring, r->sqe.user_data, res, flags);
    if (r->socket != NULL)
        r->socket->requests--;
}

/* ---- buffers ---------------------------------------------------------------------------------------- */

/* Move up to @size bytes of @r's socket into the buffer at the head, no more than its completion may have. Return: how
 * many; the completion's flags. */
static size_t fill(weir__buffer_ring *group, request *r, size_t size, uint32_t *ret_flags) {
    weir__provided *entry = &group->entries[group->head & group->mask];
    bool is_incremental = (group->flags & IOU_PBUF_RING_INC) != 0;
    if (r->sqe.len > 0 && size > r->sqe.len)
        size = r->sqe.len;
    bool is_spill = size > entry->size;
    size = is_spill ? entry->size : size;
    if (size > 1 && sim_fault(SIM_SPLIT)) {
        size = 1 + (size_t)sim_random(size - 1);
        is_spill = false;
    }
    const sim_bytes *bytes = &r->socket->received;
    sim_kernel_write(entry->data, bytes->data + bytes->head, size);
    sim_take(r->socket, NULL, size);
    *ret_flags = IORING_CQE_F_BUFFER | (uint32_t)entry->id << IORING_CQE_BUFFER_SHIFT;
    if (!is_incremental) {
        group->head++;
        sim_event(SIM_EVENT_CLASSIC);
        return size;
    }
    if (group->last_user != 0 && group->last_user != r->sqe.user_data)
        sim_event(SIM_EVENT_INTERLEAVED);
    group->last_user = r->sqe.user_data;
    if (size == entry->size) {
        sim_event(is_spill ? SIM_EVENT_SPILL : SIM_EVENT_EXACT_FILL);
    } else if (sim_fault(SIM_RETIRE_EARLY)) {
        sim_event(SIM_EVENT_RETIRED_EARLY);
    } else {
        sim_event(SIM_EVENT_PARTIAL_FILL);
        entry->data = (uint8_t *)entry->data + size;
        entry->size -= (uint32_t)size;
        *ret_flags |= IORING_CQE_F_BUF_MORE;
        return size;
    }
    entry->size = 0; /* and a stale address */
    group->head++;
    group->last_user = 0;
    return size;
}

/* ---- requests: each returns true when it is over ------------------------------------------------------ */

/* How it has ended, each way a bit; 0: not. TCP's orderly end the kernel never forgets. */
static unsigned end_of(const sim_socket *socket) {
    bool is_gone = socket->is_connected && socket->other == NULL;
    return (socket->has_ended ? 1U : 0) | (socket->has_error || socket->is_reset ? 2U : 0) | (is_gone ? 4U : 0);
}

/* The far end wrote and ended, and both woke the receive at once, or before it polled: only the bytes are noticed. What
 * the far end does after that is one more wake-up. */
static void may_forget_end(request *r) {
    const sim_socket *socket = r->socket;
    unsigned end = end_of(socket);
    bool has_polled = (r->sqe.ioprio & IORING_RECVSEND_POLL_FIRST) != 0;
    r->sqe.ioprio &= (uint16_t)~IORING_RECVSEND_POLL_FIRST;
    if (end == 0 || (socket->is_tcp && !socket->is_reset) || socket->is_disconnected)
        return;
    if (has_polled || sim_fault(SIM_FORGET_END)) {
        sim_event(SIM_EVENT_END_FORGOTTEN);
        r->forgotten = end;
    }
}

static bool has_something_for(const request *r) {
    const sim_socket *socket = r->socket;
    return sim_readable(socket) > 0 || ((socket->has_ended || socket->has_error) &&
                                        (r->forgotten != end_of(socket) || socket->is_disconnected));
}

static bool run_receive(weir__ring *ring, request *r) {
    sim_socket *socket = r->socket;
    weir__buffer_ring *group = ring->groups[r->sqe.buf_group & 255];
    bool is_multishot = (r->sqe.ioprio & IORING_RECV_MULTISHOT) != 0;
    bool is_empty = group == NULL || group->head == group->tail;
    if (!is_multishot && r->sqe.optlen > 0) {
        end_request(ring, r, -EINVAL, 0);
        return true;
    }
    bool has_something = has_something_for(r);
    if (!r->has_tried && !has_something && is_empty && (r->sqe.ioprio & IORING_RECVSEND_POLL_FIRST) == 0) {
        sim_event(SIM_EVENT_EMPTY_AT_ONCE);
        starve(r->sqe.user_data, socket);
        end_request(ring, r, -ENOBUFS, 0);
        return true;
    }
    if (!r->has_tried && !has_something && is_empty)
        sim_event(SIM_EVENT_POLL_FIRST_WAITS);
    r->has_tried = true;
    for (int retry = 0; retry < RETRIES; retry++) {
        size_t size = sim_readable(socket);
        if (!has_something_for(r))
            return false;
        if (group == NULL || group->head == group->tail || sim_fault(SIM_NO_BUFFERS)) {
            sim_event(size > 0 ? SIM_EVENT_EMPTY_WITH_DATA : SIM_EVENT_EMPTY_WITH_END);
            starve(r->sqe.user_data, socket);
            end_request(ring, r, -ENOBUFS, 0);
            return true;
        }
        if (size == 0) {
            /* An end that was there before the reset is what a receive hears; a send hears of the other. */
            int res = socket->ended_first ? 0 : sim_take_error(socket);
            if (socket->is_disconnected)
                res = sim_random(2) == 0 ? -ENOTCONN : -ECONNRESET;
            sim_event(res < 0 ? SIM_EVENT_RESET_SEEN : SIM_EVENT_END);
            uint32_t end_flags = sim_random(2) == 0 ? IORING_CQE_F_SOCK_NONEMPTY : 0;
            if (res == 0 && (group->flags & IOU_PBUF_RING_INC) != 0 && sim_fault(SIM_END_WITH_BUFFER)) {
                weir__provided *head = &group->entries[group->head++ & group->mask];
                end_flags |= IORING_CQE_F_BUFFER | (uint32_t)head->id << IORING_CQE_BUFFER_SHIFT;
                head->size = 0;
                group->last_user = 0;
            }
            end_request(ring, r, res, end_flags);
            return true;
        }
        uint32_t flags;
        size = fill(group, r, size, &flags);
        r->brought += (uint32_t)size;
        if (r->sqe.optlen > 0 && r->brought >= r->sqe.optlen) { /* looked at now, and not before */
            sim_event(SIM_EVENT_CAPPED);
            end_request(ring, r, (int)size, flags);
            return true;
        }
        if (!has_room(ring)) {
            sim_event(SIM_EVENT_FULL_QUEUE);
            end_request(ring, r, (int)size, flags);
            return true;
        }
        if (!is_multishot || sim_fault(SIM_END_WITH_DATA)) {
            end_request(ring, r, (int)size, flags);
            return true;
        }
        if (sim_readable(socket) > 0)
            flags |= IORING_CQE_F_SOCK_NONEMPTY;
        else
            may_forget_end(r);
        post(ring, r->sqe.user_data, (int)size, flags | IORING_CQE_F_MORE);
        sim_between(socket);
    }
    sim_event(SIM_EVENT_MANY_RETRIES);
    return false;
}

static bool run_send(weir__ring *ring, request *r) {
    struct iovec one = { (void *)(uintptr_t)r->sqe.addr, r->sqe.len }, *vectors = &one;
    size_t count = 1, sent = 0;
    int res = 0;
    if (r->sqe.opcode == IORING_OP_SENDMSG) {
        const struct msghdr *header = (const struct msghdr *)(uintptr_t)r->sqe.addr;
        vectors = header->msg_iov;
        count = header->msg_iovlen;
    }
    for (size_t i = 0; i < count; i++) {
        size_t size = vectors[i].iov_len, part = size;
        if (part > 1 && sim_fault(SIM_SHORT_SEND))
            part = 1 + (size_t)sim_random(part - 1);
        bool is_urgent = (r->sqe.msg_flags & MSG_OOB) != 0 && r->socket->other != NULL;
        if (is_urgent) /* it is not among the others */
            r->socket->other->is_urgent = true;
        res = is_urgent ? (int)part : sim_transmit(r->socket, vectors[i].iov_base, part);
        if (res > 0)
            sent += (size_t)res;
        if (res < 0 || (size_t)res < size)
            break;
    }
    if (sent == 0 && res == -EAGAIN && (r->sqe.msg_flags & MSG_DONTWAIT) == 0) {
        if (r->socket->is_urgent && !r->has_worker) {
            r->has_worker = true;
            sim_worker(r->socket);
        }
        return false;
    }
    size_t all = 0;
    for (size_t i = 0; i < count; i++)
        all += vectors[i].iov_len;
    if (sent == 0 && res != -EAGAIN)
        sim_event(SIM_EVENT_SEND_FAILED);
    else if (sent > 0 && sent < all)
        sim_event(SIM_EVENT_SHORT);
    end_request(ring, r, sent > 0 ? (int)sent : res, 0);
    return true;
}

static bool run_accept(weir__ring *ring, request *r) {
    bool is_multishot = (r->sqe.ioprio & IORING_ACCEPT_MULTISHOT) != 0;
    if (!r->has_tried && sim_lacks_descriptors()) { /* whether somebody waits is looked at later */
        sim_event(SIM_EVENT_OUT_OF_DESCRIPTORS);
        end_request(ring, r, -EMFILE, 0);
        return true;
    }
    r->has_tried = true;
    for (;;) {
        if (r->socket->pending_count == 0)
            return false;
        if (sim_fault(SIM_ACCEPT_ERROR)) {
            sim_reset(sim_accept(r->socket));
            end_request(ring, r, -ECONNABORTED, 0);
            return true;
        }
        int fd = sim_descriptor(r->socket->pending[0]);
        if (fd < 0) {
            sim_event(SIM_EVENT_OUT_OF_DESCRIPTORS);
            end_request(ring, r, fd, 0);
            return true;
        }
        (void)sim_accept(r->socket);
        sim_event(SIM_EVENT_ACCEPTED);
        if (!is_multishot || !has_room(ring) || sim_fault(SIM_ACCEPT_END)) {
            end_request(ring, r, fd, 0);
            return true;
        }
        post(ring, r->sqe.user_data, fd, IORING_CQE_F_MORE);
    }
}

static bool run_connect(weir__ring *ring, request *r) {
    if (!r->has_tried) {
        r->has_tried = true;
        r->not_before =
            sim.now_ns + (sim_fault(SIM_BLACKHOLE) ? INT64_C(1) << 60 : (int64_t)sim_random(3) * 1000000);
    }
    if (sim.now_ns < r->not_before)
        return false;
    int res = sim_fault(SIM_REFUSE)
                  ? -ECONNREFUSED
                  : sim_connect(r->socket, (const struct sockaddr *)(uintptr_t)r->sqe.addr, (socklen_t)r->sqe.off);
    sim_event(res < 0 ? SIM_EVENT_CONNECT_FAILED : SIM_EVENT_CONNECTED);
    end_request(ring, r, res, 0);
    return true;
}

static bool run_poll(weir__ring *ring, request *r) {
    if (r->socket->kind == SIM_EVENTFD) {
        if (r->signals == r->socket->signals)
            return false;
        r->signals = r->socket->signals;
        sim_event(SIM_EVENT_WOKEN);
        bool ends = (r->sqe.len & IORING_POLL_ADD_MULTI) == 0 || !has_room(ring) || sim_fault(SIM_WATCH_END);
        if (ends)
            end_request(ring, r, POLLIN, 0);
        else
            post(ring, r->sqe.user_data, POLLIN, IORING_CQE_F_MORE);
        return ends;
    }
    int events = sim_poll(r->socket) & (int)(r->sqe.poll32_events | POLLERR | POLLHUP);
    if ((events & ~r->polled) == 0)
        return false;
    r->polled = events;
    if ((r->sqe.poll32_events & POLLOUT) != 0)
        sim_event(SIM_EVENT_SEND_WAITED);
    else
        sim_event((events & POLLERR) != 0 ? SIM_EVENT_WATCHED_RESET : SIM_EVENT_WATCHED_END);
    bool ends = (r->sqe.len & IORING_POLL_ADD_MULTI) == 0 || !has_room(ring) || sim_fault(SIM_WATCH_END);
    if (ends)
        end_request(ring, r, events, 0);
    else
        post(ring, r->sqe.user_data, events, IORING_CQE_F_MORE);
    return ends;
}

static bool run(weir__ring *ring, request *r) {
    if (r->ended != 0) {
        if (sim.now_ns < r->not_before)
            return false;
        if (r->sqe.opcode == IORING_OP_RECV)
            sim_event(sim_readable(r->socket) > 0 ? SIM_EVENT_CANCELLED_WITH_DATA : SIM_EVENT_CANCELLED);
        end_request(ring, r, r->ended, 0);
        return true;
    }
    if (r->sqe.opcode != IORING_OP_POLL_ADD && r->sqe.opcode != IORING_OP_ACCEPT &&
        sim_fault(SIM_UNASKED_CANCEL) && r->sqe.opcode != IORING_OP_CONNECT) {
        static const int errors[] = { -ECANCELED, -EINTR, -EAGAIN };
        end_request(ring, r, errors[sim_random(3)], 0);
        return true;
    }
    switch (r->sqe.opcode) {
    case IORING_OP_RECV:
        return run_receive(ring, r);
    case IORING_OP_SEND:
    case IORING_OP_SENDMSG:
        return run_send(ring, r);
    case IORING_OP_ACCEPT:
        return run_accept(ring, r);
    case IORING_OP_CONNECT:
        return run_connect(ring, r);
    case IORING_OP_POLL_ADD:
        return run_poll(ring, r);
    default:
        sim_fail("operation %u is not in the model", r->sqe.opcode);
    }
}

/* Would it complete something if it ran? */
static bool is_ready(const weir__ring *ring, const request *r) {
    const sim_socket *socket = r->socket;
    (void)ring;
    if (r->ended != 0)
        return sim.now_ns >= r->not_before;
    switch (r->sqe.opcode) {
    case IORING_OP_RECV:
        return has_something_for(r);
    case IORING_OP_SEND:
    case IORING_OP_SENDMSG:
        return socket->is_reset || socket->is_shut || socket->other == NULL || socket->has_error ||
               sim_readable(socket->other) < socket->other->room || (socket->is_urgent && !r->has_worker);
    case IORING_OP_ACCEPT:
        return socket->pending_count > 0;
    case IORING_OP_CONNECT:
        return sim.now_ns >= r->not_before;
    case IORING_OP_POLL_ADD:
        return socket->kind == SIM_EVENTFD
                   ? r->signals != socket->signals
                   : (sim_poll(socket) & (int)(r->sqe.poll32_events | POLLERR | POLLHUP) & ~r->polled) != 0;
    default:
        return false;
    }
}

static bool has_ready(const weir__ring *ring) {
    for (const request *r = ring->requests; r != NULL; r = r->next)
        if (is_ready(ring, r))
            return true;
    return false;
}

static void unlink_request(weir__ring *ring, request **at) {
    request *r = *at;
    *at = r->next;
    if (ring->last == &r->next)
        ring->last = at;
    free(r);
}

/* Deferred work: each ready request once, starting anywhere, and not necessarily all of them. */
static void run_work(weir__ring *ring) {
    unsigned count = 0, limit = sim_fault(SIM_SMALL_WORK) ? 1 + (unsigned)sim_random(4) : 20;
    for (request *r = ring->requests; r != NULL; r = r->next)
        count++;
    unsigned skip = count > 0 ? (unsigned)sim_random(count) : 0, done = 0;
    for (int round = 0; round < 2; round++) {
        unsigned index = 0;
        for (request **at = &ring->requests; *at != NULL && done < limit; index++) {
            if ((round == 0) == (index < skip) || !is_ready(ring, *at)) {
                at = &(*at)->next;
                continue;
            }
            done++;
            sim_socket *socket = (*at)->socket;
            if (run(ring, *at))
                unlink_request(ring, at);
            else
                at = &(*at)->next;
            sim_between(socket);
        }
    }
}

/* ---- submitting ------------------------------------------------------------------------------------- */

static void unlink_this(weir__ring *ring, const request *r) {
    request **at = &ring->requests;
    while (*at != r)
        at = &(*at)->next;
    unlink_request(ring, at);
}

/* What @r was to bring was on its way, and comes; a multishot ends after it. */
static void go_on(weir__ring *ring, request *r, uint64_t user_data) {
    static const int answers[] = { -ENOENT, -EALREADY, 0 };
    bool answers_first = sim_random(2) == 0;
    int answer = answers[sim_random(3)];
    if (answers_first)
        post(ring, user_data, answer, 0);
    if (run(ring, r)) {
        sim_event(SIM_EVENT_CANCEL_OWN_RESULT);
        unlink_this(ring, r);
    } else {
        r->ended = -ECANCELED;
        r->not_before = 0;
    }
    if (!answers_first)
        post(ring, user_data, answer, 0);
}

static void cancel(weir__ring *ring, const struct io_uring_sqe *sqe) {
    for (request *r = ring->requests; r != NULL; r = r->next) {
        if (r->sqe.user_data != sqe->addr || r->ended != 0)
            continue;
        if (sim_fault(SIM_CANCEL_ENOENT)) {
            sim_event(SIM_EVENT_CANCEL_MISSED);
            post(ring, sqe->user_data, -ENOENT, 0);
            return;
        }
        if (is_ready(ring, r) && sim_fault(SIM_CANCEL_TOO_LATE)) {
            go_on(ring, r, sqe->user_data);
            return;
        }
        if (sim_fault(SIM_CANCEL_EALREADY)) {
            r->ended = -ECANCELED;
            r->not_before = 0;
            post(ring, sqe->user_data, -EALREADY, 0);
            return;
        }
        r->ended = -ECANCELED;
        if (sim_random(2) == 0)
            r->not_before = sim.now_ns + (int64_t)sim_random(2000000);
        else
            r->not_before = 0;
        if (sim_fault(SIM_CANCEL_LATE)) { /* the target's completion first */
            r->not_before = 0;
            (void)run(ring, r);
            unlink_this(ring, r);
            sim_event(SIM_EVENT_CANCEL_SECOND);
        } else {
            sim_event(SIM_EVENT_CANCEL_FIRST);
        }
        post(ring, sqe->user_data, 0, 0);
        return;
    }
    sim_event(SIM_EVENT_CANCEL_MISSED);
    post(ring, sqe->user_data, -ENOENT, 0);
}

static bool must_not_wait(const struct io_uring_sqe *sqe) {
    return (sqe->opcode == IORING_OP_SEND || sqe->opcode == IORING_OP_SENDMSG) &&
           (sqe->msg_flags & MSG_DONTWAIT) != 0;
}

static void submit(weir__ring *ring, const struct io_uring_sqe *sqe) {
    sim.operations++;
    if (sim.config.trace)
        sim_note("submission %#llx: opcode %u, descriptor %d", (unsigned long long)sqe->user_data, sqe->opcode,
                 sqe->fd);
    if (sqe->opcode == IORING_OP_RECV)
        armed_again(sqe->user_data);
    if (sqe->opcode == IORING_OP_ASYNC_CANCEL) {
        cancel(ring, sqe);
        return;
    }
    sim_socket *socket = sim_socket_of(sqe->fd);
    if (socket == NULL) {
        post(ring, sqe->user_data, -EBADF, 0);
        return;
    }
    for (const request *r = ring->requests; r != NULL; r = r->next)
        sim_require(r->sqe.user_data != sqe->user_data,
                    "an operation was submitted again before it had completed");
    if (sim_fault(sqe->opcode == IORING_OP_POLL_ADD ? SIM_POLL_ENOMEM : SIM_REQUEST_ENOMEM)) {
        post(ring, sqe->user_data, -ENOMEM, 0);
        return;
    }
    request *r = calloc(1, sizeof *r);
    r->sqe = *sqe;
    r->socket = socket;
    r->signals = 0;
    socket->requests++;
    *ring->last = r;
    ring->last = &r->next;
    if (sqe->opcode == IORING_OP_RECV && (sqe->ioprio & IORING_RECVSEND_POLL_FIRST) == 0) {
        if (run(ring, r))
            unlink_this(ring, r);
    } else if (sqe->opcode == IORING_OP_RECV || sqe->opcode == IORING_OP_CONNECT ||
               sqe->opcode == IORING_OP_ACCEPT || must_not_wait(sqe) || sim_random(2) == 0) {
        if (sqe->opcode == IORING_OP_RECV) {
            const weir__buffer_ring *group = ring->groups[sqe->buf_group & 255];
            if (group == NULL || group->head == group->tail)
                sim_event(SIM_EVENT_POLL_FIRST_WAITS);
            r->has_tried = true;
            return;
        }
        if (run(ring, r))
            unlink_this(ring, r);
    }
}

void sim_ring_disconnected(sim_socket *socket) {
    if (the_ring == NULL)
        return;
    for (request *r = the_ring->requests; r != NULL; r = r->next)
        if (r->socket == socket && r->ended == 0 && r->sqe.opcode != IORING_OP_POLL_ADD) {
            bool is_reset = sim_random(2) == 0;
            r->ended = is_reset ? -ECONNRESET : r->sqe.opcode == IORING_OP_RECV ? -ENOTCONN : -EPIPE;
            r->not_before = 0;
        }
}

unsigned sim_ring_requests(void) {
    unsigned count = 0;
    if (the_ring != NULL)
        for (const request *r = the_ring->requests; r != NULL; r = r->next)
            count += r->socket->kind != SIM_EVENTFD;
    return count;
}

/* ---- lib/edge/ring.h -------------------------------------------------------------------------------- */

int weir__ring_open(const weir_allocator *allocator, unsigned sq_entries, unsigned cq_entries,
                    uint32_t setup_flags, weir__ring **ret_ring) {
    if (sim_fault(SIM_RING_ENOMEM))
        return -ENOMEM;
    weir__ring *ring = calloc(1, sizeof *ring);
    sim_require(the_ring == NULL, "a second ring was opened");
    starved.count = 0;
    ring->allocator = allocator;
    ring->sq_entries = sim_chance(SIM_TINY_SQ) ? 2 : sq_entries;
    ring->cq_entries = sim_chance(SIM_TINY_CQ) ? 2 + (unsigned)sim_random(14) : cq_entries;
    ring->sqes = calloc(ring->sq_entries, sizeof *ring->sqes);
    ring->cqes = calloc(ring->cq_entries, sizeof *ring->cqes);
    ring->last = &ring->requests;
    ring->setup_flags = setup_flags;
    the_ring = ring;
    *ret_ring = ring;
    return 0;
}

void weir__ring_close(weir__ring *ring) {
    while (ring->requests != NULL) {
        if (ring->requests->socket != NULL)
            ring->requests->socket->requests--;
        unlink_request(ring, &ring->requests);
    }
    the_ring = NULL;
    free(ring->sqes);
    free(ring->cqes);
    free(ring->overflow);
    free(ring);
}

uint32_t weir__ring_features(const weir__ring *ring) {
    (void)ring;
    return IORING_FEAT_NO_IOWAIT;
}

int weir__ring_enable(weir__ring *ring) {
    ring->is_enabled = true;
    return 0;
}

struct io_uring_sqe *weir__ring_sqe(weir__ring *ring) {
    if (ring->sq_count == ring->sq_entries)
        return NULL;
    struct io_uring_sqe *sqe = &ring->sqes[ring->sq_count++];
    memset(sqe, 0, sizeof *sqe);
    return sqe;
}

bool weir__ring_cqe(weir__ring *ring, weir__cqe *ret_cqe) {
    if (ring->cq_head == ring->cq_tail) {
        sim_require(++ring->vain_looks < MOST_IDLE_ENTERS,
                    "the loop spins: it looks for completions and never enters");
        return false;
    }
    *ret_cqe = ring->cqes[ring->cq_head++ % ring->cq_entries];
    return true;
}

uint32_t weir__ring_flags(const weir__ring *ring) {
    return (ring->overflow_count > 0 ? IORING_SQ_CQ_OVERFLOW : 0) | (has_ready(ring) ? IORING_SQ_TASKRUN : 0);
}

static bool has_completions(const weir__ring *ring) {
    return ring->cq_head != ring->cq_tail;
}

/* Sleep: the world goes on until something completes or the time is up. */
static int sleep_until(weir__ring *ring, int64_t deadline) {
    bool loses = sim_fault(SIM_LOST_WAKE);
    for (;;) {
        if (!loses) {
            run_work(ring);
            flush(ring);
        }
        if (has_completions(ring))
            return 0;
        if (!loses && !has_ready(ring))
            sim_check_sleep(deadline);
        if (sim_fault(SIM_SPURIOUS_WAKE))
            return 0;
        if (sim.now_ns >= deadline)
            return -ETIME;
        sim_other_thread();
        if (!sim_world_step() && (loses || !has_ready(ring))) /* nothing but time */
            sim.now_ns = sim.now_ns + 1000000 < deadline ? sim.now_ns + 1000000 : deadline;
    }
}

int weir__ring_enter(weir__ring *ring, unsigned wait, uint32_t enter_flags, int64_t timeout_ns) {
    if (!ring->is_enabled)
        return -EBADFD;
    ring->vain_looks = 0;
    sim_require(!sim.is_other_thread, "enter from another thread than the ring's");
    sim_require((enter_flags & IORING_ENTER_GETEVENTS) != 0, "enter without GETEVENTS");
    sim_require(wait == 0 || timeout_ns >= 0, "a wait without a timeout");
    sim.now_ns += 1 + (int64_t)sim_random(2000);
    sim_other_thread();
    if (ring->overflow_count > 0 && sim_fault(SIM_ENTER_EBUSY)) {
        flush(ring);
        return -EBUSY;
    }
    if (ring->sq_count > 0 && sim_fault(SIM_ENTER_EAGAIN))
        return -EAGAIN;
    if (sim_fault(SIM_ENTER_ENOMEM))
        return -ENOMEM;
    unsigned count = ring->sq_count;
    struct io_uring_sqe *sqes = calloc(count + 1, sizeof *sqes);
    memcpy(sqes, ring->sqes, count * sizeof *sqes);
    ring->sq_count = 0;
    for (unsigned i = 0; i < count; i++)
        submit(ring, &sqes[i]);
    free(sqes);
    flush(ring);
    run_work(ring);
    if (wait == 0 && count == 0 && !has_completions(ring)) {
        sim_require(++ring->idle_enters < MOST_IDLE_ENTERS, "the loop spins: %u enters without work or sleep",
                    ring->idle_enters);
    } else {
        ring->idle_enters = 0;
    }
    if (wait > 0 && !has_completions(ring)) {
        if (count == 0 && sim_fault(SIM_ENTER_EINTR))
            return -EINTR;
        int r = sleep_until(ring, sim.now_ns + timeout_ns);
        if (r < 0 && count == 0)
            return r;
    }
    return (int)count;
}

int weir__buffer_ring_open(weir__ring *ring, uint16_t group, uint32_t entries, uint16_t flags,
                           const weir_allocator *allocator, weir__buffer_ring **ret_buffers) {
    (void)allocator;
    if (sim_fault(SIM_RING_ENOMEM))
        return -ENOMEM;
    weir__buffer_ring *buffers = calloc(1, sizeof *buffers);
    sim_require(entries > 0 && (entries & (entries - 1)) == 0, "a buffer ring of %u entries", entries);
    buffers->entries = calloc(entries, sizeof *buffers->entries);
    buffers->mask = entries - 1;
    buffers->group = group;
    buffers->flags = flags;
    buffers->is_registered = true;
    ring->groups[group & 255] = buffers;
    *ret_buffers = buffers;
    return 0;
}

int weir__buffer_ring_unregister(weir__ring *ring, weir__buffer_ring *buffers) {
    ring->groups[buffers->group & 255] = NULL;
    buffers->is_registered = false;
    return 0;
}

void weir__buffer_ring_close(weir__buffer_ring *buffers) {
    free(buffers->entries);
    free(buffers);
}

void weir__buffer_ring_publish(weir__buffer_ring *buffers, const weir__provided *provided, size_t count) {
    for (size_t i = 0; i < count; i++) {
        sim_require(provided[i].size > 0, "an entry of length 0 was published");
        sim_require(buffers->tail - buffers->head <= buffers->mask,
                    "more buffers were published than the ring has");
        for (uint32_t at = buffers->head; at != buffers->tail; at++)
            sim_require(buffers->entries[at & buffers->mask].id != provided[i].id, "buffer %u was published twice",
                        provided[i].id);
        sim_kernel_write(provided[i].data, NULL, provided[i].size); /* whoever still looks at it shall notice */
        buffers->entries[buffers->tail++ & buffers->mask] = provided[i];
    }
}

weir__provided weir__buffer_ring_entry(const weir__buffer_ring *buffers, uint32_t position) {
    return buffers->entries[position & buffers->mask];
}
