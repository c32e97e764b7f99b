/* SPDX-License-Identifier: MIT */
#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/uio.h>

#include "sim/ring.h"

/* What requests do when they are tried, and when they would do something. */

enum { RETRIES = 32 };

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
    if (!r->socket->is_shut)
        r->socket->brought_at = sim.now_ns;
    *ret_flags = IORING_CQE_F_BUFFER | (uint32_t)entry->id << IORING_CQE_BUFFER_SHIFT;
    if (r->was_dry)
        sim_event(SIM_EVENT_BUFFER_ADDED);
    r->was_dry = false;
    if (group->has_ended_one)
        sim_event(SIM_EVENT_GOES_ON);
    group->has_ended_one = false;
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

/* Nothing is left to receive, and it has ended. */
static void end_receive(weir__ring *ring, request *r, weir__buffer_ring *group) {
    sim_socket *socket = r->socket;
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
        group->has_ended_one = false;
    }
    sim_end_request(ring, r, res, end_flags);
}

static bool run_receive(weir__ring *ring, request *r) {
    sim_socket *socket = r->socket;
    weir__buffer_ring *group = ring->groups[r->sqe.buf_group & 255];
    bool is_multishot = (r->sqe.ioprio & IORING_RECV_MULTISHOT) != 0;
    bool is_empty = group == NULL || group->head == group->tail;
    if (is_multishot ? sim.config.no_caps && (r->sqe.len > 0 || r->sqe.optlen > 0) : r->sqe.optlen > 0) {
        sim_event(SIM_EVENT_NO_CAPS);
        sim_end_request(ring, r, -EINVAL, 0);
        return true;
    }
    bool has_something = has_something_for(r);
    if (!r->has_tried && !has_something && is_empty && (r->sqe.ioprio & IORING_RECVSEND_POLL_FIRST) == 0) {
        sim_event(SIM_EVENT_EMPTY_AT_ONCE);
        sim_starve(r);
        sim_end_request(ring, r, -ENOBUFS, 0);
        return true;
    }
    r->has_tried = true;
    for (int retry = 0; retry < RETRIES; retry++) {
        size_t size = sim_readable(socket);
        if (!has_something_for(r))
            return false;
        if (group == NULL || group->head == group->tail || sim_fault(SIM_NO_BUFFERS)) {
            sim_event(size > 0 ? SIM_EVENT_EMPTY_WITH_DATA : SIM_EVENT_EMPTY_WITH_END);
            sim_starve(r);
            sim_end_request(ring, r, -ENOBUFS, 0);
            return true;
        }
        if (size == 0) {
            end_receive(ring, r, group);
            return true;
        }
        uint32_t flags;
        size = fill(group, r, size, &flags);
        r->brought += (uint32_t)size;
        if (r->sqe.optlen > 0 && r->brought >= r->sqe.optlen) { /* looked at now, and not before */
            sim_event(SIM_EVENT_CAPPED);
            if (r->brought > r->sqe.optlen)
                sim_event(SIM_EVENT_OVERRUN);
            flags |= sim_readable(socket) > 0 ? IORING_CQE_F_SOCK_NONEMPTY : 0;
            sim_end_request(ring, r, (int)size, flags);
            return true;
        }
        if (!sim_has_room(ring)) {
            sim_event(SIM_EVENT_FULL_QUEUE);
            sim_end_request(ring, r, (int)size, flags);
            return true;
        }
        if (!is_multishot || sim_fault(SIM_END_WITH_DATA)) {
            sim_end_request(ring, r, (int)size, flags);
            return true;
        }
        if (sim_readable(socket) > 0)
            flags |= IORING_CQE_F_SOCK_NONEMPTY;
        else
            may_forget_end(r);
        sim_post(ring, r->sqe.user_data, (int)size, flags | IORING_CQE_F_MORE);
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
            sim_urge(r->socket->other);
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
    sim_end_request(ring, r, sent > 0 ? (int)sent : res, 0);
    return true;
}

static bool run_accept(weir__ring *ring, request *r) {
    bool is_multishot = (r->sqe.ioprio & IORING_ACCEPT_MULTISHOT) != 0;
    if (!r->has_tried && sim_lacks_descriptors()) { /* whether somebody waits is looked at later */
        sim_event(SIM_EVENT_OUT_OF_DESCRIPTORS);
        sim_end_request(ring, r, -EMFILE, 0);
        return true;
    }
    r->has_tried = true;
    for (;;) {
        if (r->socket->pending_count == 0)
            return false;
        if (sim_fault(SIM_ACCEPT_ERROR)) {
            sim_reset(sim_accept(r->socket));
            sim_end_request(ring, r, -ECONNABORTED, 0);
            return true;
        }
        int fd = sim_descriptor(r->socket->pending[0]);
        if (fd < 0) {
            sim_event(SIM_EVENT_OUT_OF_DESCRIPTORS);
            sim_end_request(ring, r, fd, 0);
            return true;
        }
        (void)sim_accept(r->socket);
        sim_event(SIM_EVENT_ACCEPTED);
        if (!is_multishot || !sim_has_room(ring) || sim_fault(SIM_ACCEPT_END)) {
            sim_end_request(ring, r, fd, 0);
            return true;
        }
        sim_post(ring, r->sqe.user_data, fd, IORING_CQE_F_MORE);
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
    sim_end_request(ring, r, res, 0);
    return true;
}

/* What is so now, of what was asked for and of what is always told: errors and hang-ups, and the peer's end. */
static int polled_for(const request *r) {
    return sim_poll(r->socket) & (int)(r->sqe.poll32_events | POLLERR | POLLHUP | POLLRDHUP);
}

/* A poll for changes may end with what it tells, now and then: one that always did would be told the same without end. */
static bool is_last_of_poll(const weir__ring *ring, const request *r) {
    enum { APART_NS = 1000000 };
    if ((r->sqe.len & IORING_POLL_ADD_MULTI) == 0 || !sim_has_room(ring))
        return true;
    if (sim.now_ns - r->socket->poll_ended_at < APART_NS || !sim_fault(SIM_WATCH_END))
        return false;
    r->socket->poll_ended_at = sim.now_ns;
    return true;
}

static bool run_poll(weir__ring *ring, request *r) {
    if (r->socket->kind == SIM_EVENTFD) {
        if (r->signals == r->socket->signals)
            return false;
        r->signals = r->socket->signals;
        sim_event(SIM_EVENT_WOKEN);
        bool ends = is_last_of_poll(ring, r);
        if (ends)
            sim_end_request(ring, r, POLLIN, 0);
        else
            sim_post(ring, r->sqe.user_data, POLLIN, IORING_CQE_F_MORE);
        return ends;
    }
    int events = polled_for(r);
    if ((events & ~r->polled) == 0)
        return false;
    r->polled = events;
    if ((events & (int)r->sqe.poll32_events) == 0 && (events & (POLLERR | POLLHUP)) == 0)
        sim_event(SIM_EVENT_POLLED_UNASKED);
    else if ((r->sqe.poll32_events & POLLOUT) != 0)
        sim_event(SIM_EVENT_SEND_WAITED);
    else if ((r->sqe.poll32_events & POLLIN) != 0)
        sim_event(SIM_EVENT_RECEIVE_POLLED);
    else
        sim_event((events & POLLERR) != 0 ? SIM_EVENT_WATCHED_RESET : SIM_EVENT_WATCHED_END);
    bool ends = is_last_of_poll(ring, r);
    if (ends)
        sim_end_request(ring, r, events, 0);
    else
        sim_post(ring, r->sqe.user_data, events, IORING_CQE_F_MORE);
    return ends;
}

bool sim_run_request(weir__ring *ring, request *r) {
    if (r->ended != 0) {
        if (sim.now_ns < r->not_before)
            return false;
        if (r->ended != -ECANCELED)
            sim_event(SIM_EVENT_DISCONNECT_ENDED);
        else if (r->sqe.opcode == IORING_OP_RECV)
            sim_event(sim_readable(r->socket) > 0 ? SIM_EVENT_CANCELLED_WITH_DATA : SIM_EVENT_CANCELLED);
        sim_end_request(ring, r, r->ended, 0);
        return true;
    }
    if (r->sqe.opcode != IORING_OP_POLL_ADD && r->sqe.opcode != IORING_OP_ACCEPT &&
        sim_fault(SIM_UNASKED_CANCEL) && r->sqe.opcode != IORING_OP_CONNECT) {
        static const int errors[] = { -ECANCELED, -EINTR, -EAGAIN };
        sim_end_request(ring, r, errors[sim_random(3)], 0);
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
bool sim_is_ready(const request *r) {
    const sim_socket *socket = r->socket;
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
        return socket->kind == SIM_EVENTFD ? r->signals != socket->signals : (polled_for(r) & ~r->polled) != 0;
    default:
        return false;
    }
}
