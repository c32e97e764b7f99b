/* SPDX-License-Identifier: MIT */
#include "sim/world.h"

#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "edge/sys.h"

/*
 * epoll as it behaves, and the plain calls that go with it. Each change of a socket is one that whoever registered it is told
 * of (sim_changed, which net.c calls where the kernel wakes who waits), once, and with what is so then. What a call says
 * of its socket may be so no more a moment later, and is told again in that case.
 */

enum { MOST_VAIN = 500, MOST_BUSY = 20000, MOST_VECTORS = 1024 };

struct sim_registration {
    sim_socket *socket;
    int fd;
    uint32_t events;
    uint64_t data, told; /* the changes that it was told of */
};

static struct {
    unsigned vain, busy; /* waits in a row: without anything to tell, without anything that came of it */
    bool has_told;       /* of a change, not for nothing */
} waits;

/* ---- changes ---------------------------------------------------------------------------------------- */

void sim_changed(sim_socket *socket) {
    if (socket != NULL)
        socket->changes++;
}

bool sim_has_much_room(const sim_socket *writer) {
    const sim_socket *reader = writer->other;
    if (reader == NULL)
        return false;
    size_t used = sim_readable(reader);
    return writer->is_tcp ? used <= reader->room / 3 * 2 : used <= reader->room / 4;
}

/* TCP tells of room if somebody found too little, and when there is much; a Unix socket whenever there is much. */
void sim_made_room(sim_socket *reader) {
    sim_socket *writer = reader->other;
    if (writer == NULL || !sim_has_much_room(writer) || (writer->is_tcp && !writer->wants_room))
        return;
    if (writer->wants_room)
        sim_event(SIM_EVENT_ROOM_TOLD);
    writer->wants_room = false;
    sim_changed(writer);
}

void sim_give_up_connecting(sim_socket *socket) {
    sim.connecting -= socket->is_connecting;
    socket->is_connecting = false;
}

/* What a connect(2) has come to. */
void sim_settle(sim_socket *socket) {
    if (!socket->is_connecting || sim.now_ns < socket->connects_at)
        return;
    int r = sim_fault(SIM_REFUSE)
                ? -ECONNREFUSED
                : sim_connect(socket, (const struct sockaddr *)&socket->target, socket->target_length);
    if (r == -EAGAIN) { /* it is tried again */
        socket->connects_at = sim.now_ns + 1000000;
        return;
    }
    sim_give_up_connecting(socket);
    if (r < 0) {
        socket->is_refused = socket->is_reset = socket->has_error = socket->has_ended = true;
        sim_changed(socket);
    }
    sim_event(r < 0 ? SIM_EVENT_CONNECT_FAILED : SIM_EVENT_CONNECTED);
}

static void settle_all(void) {
    for (size_t i = 0; i < sim.socket_count && sim.connecting > 0; i++)
        sim_settle(sim.sockets[i]);
}

static bool is_owed(const struct sim_registration *r) {
    if (r->events == 0)
        return false; /* it was to be told once, and has been */
    return r->told != r->socket->changes || (r->events & EPOLLET) == 0;
}

/* ---- registering ------------------------------------------------------------------------------------ */

static sim_socket *epoll_of(int fd) {
    sim_socket *epoll = sim_socket_of(fd);
    sim_require(epoll != NULL && epoll->kind == SIM_EPOLL, "descriptor %d is no epoll's", fd);
    return epoll;
}

static struct sim_registration *find(const sim_socket *epoll, const sim_socket *socket, int fd) {
    for (size_t i = 0; i < epoll->registered_count; i++)
        if (epoll->registered[i].socket == socket && epoll->registered[i].fd == fd)
            return &epoll->registered[i];
    return NULL;
}

static void forget(sim_socket *epoll, struct sim_registration *r) {
    r->socket->registrations--;
    *r = epoll->registered[--epoll->registered_count];
}

void sim_epoll_forget(sim_socket *socket) {
    while (socket->registered_count > 0)
        forget(socket, &socket->registered[0]);
    for (size_t i = 0; i < sim.socket_count && socket->registrations > 0; i++) {
        struct sim_registration *r;
        if (sim.sockets[i]->kind == SIM_EPOLL && (r = find(sim.sockets[i], socket, socket->fd)) != NULL)
            forget(sim.sockets[i], r);
    }
}

int weir__sys_epoll(void) {
    if (sim_fault(SIM_SOCKET_ENOMEM))
        return -ENOMEM;
    sim_socket *epoll = sim_epoll_new();
    int fd = sim_descriptor(epoll);
    waits.vain = waits.busy = 0;
    if (fd < 0)
        epoll->is_freed = true;
    return fd;
}

static int add(sim_socket *epoll, sim_socket *socket, const struct sim_registration *r) {
    static const int errors[] = { -ENOMEM, -ENOSPC };
    if (sim_fault(SIM_POLL_ENOMEM))
        return errors[sim_random(2)];
    epoll->registered = realloc(epoll->registered, (epoll->registered_count + 1) * sizeof *r);
    epoll->registered[epoll->registered_count++] = *r;
    socket->registrations++;
    return 0;
}

int weir__sys_epoll_set(int epoll_fd, int operation, int fd, uint32_t events, uint64_t data) {
    sim_socket *epoll = epoll_of(epoll_fd), *socket = sim_socket_of(fd);
    sim.operations++;
    if (socket == NULL)
        return -EBADF;
    struct sim_registration *found = find(epoll, socket, fd);
    const struct sim_registration fresh = {
        .socket = socket, .fd = fd, .events = events, .data = data, .told = socket->changes - 1
    };
    if (sim.config.trace)
        sim_note("epoll_ctl %d of descriptor %d: %#x", operation, fd, events);
    switch (operation) {
    case EPOLL_CTL_ADD:
        return found != NULL ? -EEXIST : add(epoll, socket, &fresh);
    case EPOLL_CTL_MOD:
        if (found != NULL)
            *found = fresh;
        sim_event(SIM_EVENT_REGISTERED_ANEW);
        break;
    default:
        sim_require(operation == EPOLL_CTL_DEL, "epoll_ctl %d", operation);
        if (found != NULL)
            forget(epoll, found);
        sim_event(SIM_EVENT_DEREGISTERED);
    }
    return found != NULL ? 0 : -ENOENT;
}

/* ---- waiting ---------------------------------------------------------------------------------------- */

/* What of @r is to be told, and is from now on. */
static uint32_t tell(struct sim_registration *r) {
    bool owes = is_owed(r);
    /* (Not to one that looks out, which would have no end if each look brought something.) */
    if (!owes && (r->events == 0 || sim.has_paused || !sim_fault(SIM_SPURIOUS_EVENT)))
        return 0;
    r->told = r->socket->changes;
    uint32_t events = (uint32_t)sim_poll(r->socket) & (r->events | EPOLLERR | EPOLLHUP);
    if (events == 0)
        return 0;
    if ((r->events & EPOLLONESHOT) != 0)
        r->events = 0;
    waits.has_told |= owes;
    sim_event(!owes ? SIM_EVENT_TOLD_AGAIN : SIM_EVENT_TOLD);
    if (r->socket->kind == SIM_EVENTFD)
        sim_event(SIM_EVENT_WOKEN);
    if (events == EPOLLPRI || events == (EPOLLPRI | EPOLLOUT))
        sim_event(SIM_EVENT_TOLD_OF_A_MARK);
    return events;
}

/* In any order, and not necessarily all of them: the others are owed still. */
static int collect(sim_socket *epoll, struct epoll_event *ret_events, int most) {
    size_t count = epoll->registered_count, first = count > 0 ? (size_t)sim_random(count) : 0;
    size_t step = sim_random(2) == 0 ? 1 : count - 1; /* which way round */
    settle_all();
    int told = 0, limit = sim_fault(SIM_FEW_EVENTS) ? 1 + (int)sim_random(3) : most;
    for (size_t i = 0; i < count; i++) {
        struct sim_registration *r = &epoll->registered[(first + i * step) % count];
        if (told == most || told == limit) {
            if (told < most && is_owed(r))
                sim_event(SIM_EVENT_TOLD_LATER);
            continue;
        }
        uint32_t events = tell(r);
        if (events == 0)
            continue;
        ret_events[told++] = (struct epoll_event){ .events = events, .data.u64 = r->data };
        if (sim.config.trace)
            sim_note("descriptor %d is told to be %#x", r->fd, events);
        sim_between(r->socket);
    }
    for (int i = told - 1; i > 0; i--) {
        int other = (int)sim_random((uint64_t)i + 1);
        struct epoll_event swapped = ret_events[i];
        ret_events[i] = ret_events[other];
        ret_events[other] = swapped;
    }
    return told;
}

/* A change that is of no interest is one that nobody wakes for. */
static bool has_owed(const sim_socket *epoll) {
    settle_all();
    for (size_t i = 0; i < epoll->registered_count; i++) {
        const struct sim_registration *r = &epoll->registered[i];
        if (is_owed(r) && ((uint32_t)sim_poll(r->socket) & (r->events | EPOLLERR | EPOLLHUP)) != 0)
            return true;
    }
    return false;
}

static int sleep_until(sim_socket *epoll, struct epoll_event *ret_events, int most, int64_t deadline) {
    enum { SHORT_NS = 20000000 };
    for (bool is_first = true;; is_first = false) {
        int64_t left = deadline - sim.now_ns;
        if (!is_first && left > SHORT_NS && has_owed(epoll) && sim_fault(SIM_LOST_WAKE)) {
            /* A wake-up that comes late, as it does where others have the processor. */
            for (int steps = 0; steps < 8 && sim.now_ns < deadline; steps++) {
                sim_other_thread();
                (void)sim_world_step();
            }
            sim.now_ns = sim.now_ns > deadline ? sim.now_ns : deadline;
        }
        int told = collect(epoll, ret_events, most);
        if (told > 0 || left <= 0)
            return told;
        if (!has_owed(epoll))
            sim_check_sleep(deadline);
        if (sim_fault(SIM_ENTER_EINTR))
            return -EINTR;
        if (sim_fault(SIM_SPURIOUS_WAKE))
            return 0;
        sim_other_thread();
        if (sim_world_step() || has_owed(epoll))
            continue;
        int64_t passes = left > SHORT_NS ? 1000000 + (int64_t)sim_random(8000000) : 1000000; /* nothing but time */
        sim.now_ns = sim.now_ns + passes < deadline ? sim.now_ns + passes : deadline;
    }
}

void sim_epoll_useful(void) {
    waits.vain = waits.busy = 0;
}

int weir__sys_epoll_wait(int epoll_fd, struct epoll_event *ret_events, int most, int64_t timeout_ns) {
    sim_socket *epoll = epoll_of(epoll_fd);
    sim_require(!sim.is_other_thread, "a wait on another thread than the loop's");
    sim_require(timeout_ns >= 0, "a wait without a timeout");
    sim_require(most > 0, "a wait for no events");
    sim.now_ns += 1 + (int64_t)sim_random(2000);
    sim_other_thread();
    int64_t deadline = sim.now_ns + timeout_ns;
    waits.has_told = false;
    int told = timeout_ns > 0 ? sleep_until(epoll, ret_events, most, deadline) : collect(epoll, ret_events, most);
    if (timeout_ns > 0 || !sim.has_paused) { /* else it has been looking out, of which there is a limit */
        waits.vain = told == 0 && timeout_ns == 0 ? waits.vain + 1 : 0;
        if (timeout_ns > 0 && !waits.has_told)
            waits.busy = 0;
        else if (told <= 0 || waits.has_told ||
                 !sim.is_polling) /* told for nothing, it has a reason to look again */
            waits.busy++;
    }
    sim.has_paused = false;
    if (timeout_ns > 0 || told > 0)
        sim.pauses = 0;
    sim_require(waits.vain < MOST_VAIN, "the loop spins: %u waits without events or sleep", waits.vain);
    sim_require(waits.busy < MOST_BUSY, "the loop spins: nothing came of %u waits", waits.busy);
    return told;
}

/* ---- the calls that go with it ----------------------------------------------------------------------- */

/* There is something, and the call says no: it came a moment later, and is told of. */
bool sim_is_too_early(sim_socket *socket) {
    if (!sim.config.epoll || !sim_fault(SIM_TOO_EARLY))
        return false;
    sim_event(SIM_EVENT_TOO_EARLY);
    socket->wants_room = true; /* a send was, and there may be none for long */
    sim_changed(socket);
    return true;
}

int weir__sys_send_vectors(int fd, const struct iovec *vectors, size_t count) {
    sim_socket *socket = sim_socket_of(fd);
    size_t all = 0, sent = 0;
    int r = 0;
    sim_require(socket != NULL && socket->kind == SIM_STREAM, "a send on descriptor %d, which is no stream", fd);
    sim_require(count > 0 && count <= MOST_VECTORS, "a send of %zu vectors", count);
    sim.operations++;
    sim_between(socket);
    sim_settle(socket);
    if (sim_is_too_early(socket))
        return -EAGAIN;
    for (size_t i = 0; i < count; i++)
        all += vectors[i].iov_len;
    for (size_t i = 0; i < count; i++) {
        size_t size = vectors[i].iov_len, part = size;
        if (part > 1 && sim_fault(SIM_SHORT_SEND))
            part = 1 + (size_t)sim_random(part - 1);
        r = size > 0 ? sim_transmit(socket, vectors[i].iov_base, part) : 0;
        sent += r > 0 ? (size_t)r : 0;
        if (r < 0 || (size_t)r < size)
            break;
    }
    if (sent > 0 && sent < all) { /* there was no room for the rest, and there may be some again */
        sim_event(SIM_EVENT_SHORT);
        socket->wants_room = true;
        if (socket->other != NULL)
            sim_made_room(socket->other);
    }
    if (sent == 0)
        sim_event(r == -EAGAIN ? SIM_EVENT_NO_ROOM : SIM_EVENT_SEND_FAILED);
    if (sent > 0)
        sim_epoll_useful();
    return sent > 0 ? (int)sent : r;
}

/* The number is found first, whether or not somebody waits. */
int weir__sys_accept(int fd) {
    sim_socket *listener = sim_socket_of(fd);
    sim_require(listener != NULL && listener->kind == SIM_LISTENER, "an accept on descriptor %d", fd);
    sim.operations++;
    if (sim_lacks_descriptors()) {
        sim_event(SIM_EVENT_OUT_OF_DESCRIPTORS);
        return -EMFILE;
    }
    if (listener->pending_count == 0 || sim_is_too_early(listener))
        return -EAGAIN;
    if (sim_fault(SIM_ACCEPT_ERROR)) {
        sim_reset(sim_accept(listener));
        return -ECONNABORTED;
    }
    int accepted = sim_descriptor(listener->pending[0]);
    if (accepted < 0) {
        sim_event(SIM_EVENT_OUT_OF_DESCRIPTORS);
        return accepted;
    }
    (void)sim_accept(listener);
    sim_event(SIM_EVENT_ACCEPTED);
    sim_epoll_useful();
    return accepted;
}

const char *weir__sys_environment(const char *name) {
    (void)name;
    return NULL;
}
