/* SPDX-License-Identifier: MIT */
#include "sim/world.h"

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/un.h>

#include "edge/sys.h"

/* Sockets, descriptors, memory and time: lib/edge/sys.c's functions, and what the peers do to their end. */

enum { FIRST_DESCRIPTOR = 100, MOST_DESCRIPTORS = 200 };

/* ---- bytes ------------------------------------------------------------------------------------------ */

static void bytes_append(sim_bytes *bytes, const void *data, size_t size) {
    if (bytes->head + bytes->size + size > bytes->capacity) {
        if (bytes->size > 0)
            memmove(bytes->data, bytes->data + bytes->head, bytes->size);
        bytes->head = 0;
        while (bytes->size + size > bytes->capacity) {
            bytes->capacity = bytes->capacity > 0 ? bytes->capacity * 2 : 4096;
            bytes->data = realloc(bytes->data, bytes->capacity);
        }
    }
    memcpy(bytes->data + bytes->head + bytes->size, data, size);
    bytes->size += size;
}

/* ---- sockets ---------------------------------------------------------------------------------------- */

static sim_socket *socket_new(enum sim_socket_kind kind) {
    sim_socket *socket = calloc(1, sizeof *socket);
    socket->kind = kind;
    socket->fd = -1;
    socket->room = (size_t)1 << (10 + sim_random(8));
    sim_begin_options(socket);
    if (sim.socket_count == sim.socket_capacity) {
        sim.socket_capacity = sim.socket_capacity > 0 ? sim.socket_capacity * 2 : 256;
        sim.sockets = realloc(sim.sockets, sim.socket_capacity * sizeof(sim_socket *));
    }
    sim.sockets[sim.socket_count++] = socket;
    return socket;
}

sim_socket *sim_epoll_new(void) {
    return socket_new(SIM_EPOLL);
}

sim_socket *sim_listener_new(const struct sockaddr *address, socklen_t length) {
    sim_socket *socket = socket_new(SIM_LISTENER);
    memcpy(&socket->address, address, length);
    socket->address_length = length;
    socket->is_tcp = address->sa_family != AF_UNIX;
    return socket;
}

sim_socket *sim_stream_new(bool is_tcp) {
    sim_socket *socket = socket_new(SIM_STREAM);
    socket->is_tcp = is_tcp;
    return socket;
}

sim_socket *sim_socket_of(int fd) {
    for (size_t i = sim.socket_count; i-- > 0;)
        if (sim.sockets[i]->fd == fd)
            return sim.sockets[i];
    return NULL;
}

bool sim_lacks_descriptors(void) {
    return sim.descriptors >= MOST_DESCRIPTORS || sim_fault(SIM_NO_DESCRIPTOR);
}

int sim_descriptor(sim_socket *socket) {
    if (sim_lacks_descriptors())
        return -EMFILE;
    int fd = FIRST_DESCRIPTOR; /* the least one, as the kernel does: numbers are used again at once */
    while (sim_socket_of(fd) != NULL)
        fd++;
    sim.descriptors++;
    socket->fd = fd;
    return fd;
}

int sim_connect(sim_socket *from, const struct sockaddr *address, socklen_t length) {
    for (size_t i = 0; i < sim.socket_count; i++) {
        sim_socket *listener = sim.sockets[i];
        if (listener->kind != SIM_LISTENER || listener->is_freed || listener->address_length != length ||
            memcmp(&listener->address, address, length) != 0)
            continue;
        if (listener->pending_count == sizeof listener->pending / sizeof *listener->pending)
            return -EAGAIN;
        sim_socket *far = socket_new(SIM_STREAM);
        far->is_tcp = from->is_tcp = listener->is_tcp;
        memcpy(far->options, listener->options, sizeof far->options);
        far->other = from;
        from->other = far;
        far->is_connected = from->is_connected = true;
        if (from->peer != NULL)
            far->peer = from->peer;
        listener->pending[listener->pending_count++] = far;
        sim_changed(listener);
        sim_changed(from);
        return 0;
    }
    return -ECONNREFUSED;
}

sim_socket *sim_accept(sim_socket *listener) {
    if (listener->pending_count == 0)
        return NULL;
    sim_socket *socket = listener->pending[0];
    memmove(listener->pending, listener->pending + 1, --listener->pending_count * sizeof(sim_socket *));
    return socket;
}

size_t sim_readable(const sim_socket *socket) {
    return socket->received.size;
}

void sim_take(sim_socket *socket, void *data, size_t size) {
    sim_bytes *bytes = &socket->received;
    if (data != NULL && size > 0)
        memcpy(data, bytes->data + bytes->head, size);
    bytes->head += size;
    bytes->size -= size;
    if (socket->is_urgent && size > socket->urgent_after)
        socket->is_urgent = false;
    socket->urgent_after -= size < socket->urgent_after ? size : socket->urgent_after;
    sim_made_room(socket);
}

void sim_urge(sim_socket *socket) {
    socket->is_urgent = true;
    socket->urgent_after = sim_readable(socket);
    sim_changed(socket);
}

int sim_take_error(sim_socket *socket) {
    int error = !socket->has_error    ? 0
                : socket->is_refused  ? -ECONNREFUSED
                : socket->ended_first ? -EPIPE
                                      : -ECONNRESET;
    socket->has_error = false;
    return error;
}

int sim_transmit(sim_socket *from, const void *data, size_t size) {
    if (from->has_error)
        return sim_take_error(from);
    if (from->is_reset || from->is_shut || from->other == NULL || !from->is_connected)
        return -EPIPE;
    size_t used = sim_readable(from->other);
    size_t room = from->other->room > used ? from->other->room - used : 0;
    from->wants_room = from->wants_room || size > room;
    if (room == 0)
        return -EAGAIN;
    size = size < room ? size : room;
    bytes_append(&from->other->received, data, size);
    sim_changed(from->other);
    from->sent += size;
    from->sent_at = sim.now_ns;
    return (int)size;
}

void sim_shut(sim_socket *socket) {
    if (socket->is_shut)
        return;
    socket->is_shut = true;
    if (socket->other != NULL)
        socket->other->has_ended = true;
    sim_changed(socket->other);
    sim_changed(socket);
}

/* @socket's far end hears a reset; what it has received already it can still read. */
void sim_reset(sim_socket *socket) {
    sim_socket *far = socket->other;
    socket->is_reset = socket->is_shut = true;
    socket->other = NULL;
    sim_changed(socket);
    sim_changed(far);
    if (far == NULL)
        return;
    far->ended_first = far->is_tcp && far->has_ended && !far->is_shut;
    far->is_reset = far->has_error = far->has_ended = true;
    far->other = NULL;
}

void sim_close_socket(sim_socket *socket) {
    if (socket->kind == SIM_LISTENER)
        for (sim_socket *pending; (pending = sim_accept(socket)) != NULL;)
            sim_reset(pending);
    if (socket->kind == SIM_STREAM && socket->other != NULL) {
        if (sim_readable(socket) > 0) {
            sim_reset(socket); /* what nobody read makes an end a reset */
        } else {
            sim_shut(socket);
            sim_changed(socket->other);
            socket->other->other = NULL;
        }
    }
    socket->other = NULL;
    socket->is_freed = true;
}

int sim_poll(const sim_socket *socket) {
    bool was_never_connected = !socket->is_connected && !socket->is_reset && socket->other == NULL;
    if (socket->kind == SIM_EVENTFD)
        return socket->signals > 0 ? POLLIN | POLLOUT : POLLOUT;
    if (socket->kind == SIM_SIGNALFD)
        return sim_signal_is_pending() ? POLLIN : 0;
    if (socket->kind == SIM_LISTENER)
        return socket->pending_count > 0 ? POLLIN : 0;
    if (was_never_connected)
        return socket->is_connecting ? 0 : POLLOUT | POLLHUP;
    int events = sim_readable(socket) > 0 ? POLLIN : 0;
    if (socket->is_urgent)
        events |= POLLPRI;
    if (socket->has_ended || socket->is_reset)
        events |= POLLRDHUP | POLLIN;
    const sim_socket *far = socket->other;
    if (socket->is_shut || socket->is_reset || far == NULL || sim_readable(far) < far->room)
        events |= POLLOUT;
    if (socket->is_reset && socket->has_error)
        events |= POLLERR;
    bool is_gone = !socket->is_tcp && socket->is_connected && socket->other == NULL;
    if (socket->is_reset || is_gone || (socket->has_ended && socket->is_shut))
        events |= POLLHUP;
    return events;
}

/* ---- lib/edge/sys.h --------------------------------------------------------------------------------- */

int weir__sys_socket(int family, int type) {
    (void)type;
    if (sim_fault(SIM_SOCKET_ENOMEM))
        return -ENOMEM;
    sim_socket *socket = socket_new(SIM_STREAM);
    socket->is_tcp = family != AF_UNIX;
    int fd = sim_descriptor(socket);
    if (fd < 0)
        socket->is_freed = true;
    return fd;
}

int weir__sys_bind(int fd, const struct sockaddr *address, socklen_t length) {
    sim_socket *socket = sim_socket_of(fd);
    struct sockaddr_in chosen;
    if (socket == NULL)
        return -EBADF;
    if (address->sa_family == AF_INET && ((const struct sockaddr_in *)(const void *)address)->sin_port == 0) {
        memcpy(&chosen, address, sizeof chosen);
        chosen.sin_port = htons((uint16_t)(32768 + sim.socket_count)); /* sockets are never forgotten */
        address = (const struct sockaddr *)&chosen;
    }
    for (size_t i = 0; i < sim.socket_count; i++)
        if (sim.sockets[i]->kind == SIM_LISTENER && !sim.sockets[i]->is_freed &&
            sim.sockets[i]->address_length == length && memcmp(&sim.sockets[i]->address, address, length) == 0)
            return -EADDRINUSE;
    memcpy(&socket->address, address, length);
    socket->address_length = length;
    return 0;
}

int weir__sys_listen(int fd, int backlog) {
    sim_socket *socket = sim_socket_of(fd);
    (void)backlog;
    if (socket == NULL)
        return -EBADF;
    socket->kind = SIM_LISTENER;
    return 0;
}

static int begin_connect(sim_socket *socket, const struct sockaddr *address, socklen_t length) {
    sim_settle(socket);
    if (socket->is_connecting || socket->is_connected)
        return socket->is_connecting ? -EALREADY : -EISCONN;
    memcpy(&socket->target, address, length);
    socket->target_length = length;
    socket->is_connecting = true;
    sim.connecting++;
    socket->connects_at =
        sim.now_ns + (sim_fault(SIM_BLACKHOLE) ? INT64_C(1) << 60 : (int64_t)sim_random(3) * 1000000);
    sim_event(SIM_EVENT_CONNECTING);
    return -EINPROGRESS;
}

int weir__sys_connect(int fd, const struct sockaddr *address, socklen_t length) {
    sim_socket *socket = sim_socket_of(fd);
    if (socket == NULL)
        return -EBADF;
    if (address->sa_family == AF_UNIX)
        return sim_connect(socket, address, length);
    if (address->sa_family != AF_UNSPEC)
        return begin_connect(socket, address, length);
    sim_require(socket->is_tcp, "a Unix socket was disconnected");
    if (socket->requests > 0)
        sim_event(SIM_EVENT_DISCONNECTED);
    sim_reset(socket);
    sim_take(socket, NULL, sim_readable(socket));
    socket->has_ended = socket->is_disconnected = true;
    sim_give_up_connecting(socket);
    sim_ring_disconnected(socket);
    return 0;
}

int weir__sys_shutdown(int fd, int how) {
    sim_socket *socket = sim_socket_of(fd);
    if (socket == NULL)
        return -EBADF;
    sim_require(how != SHUT_RD, "SHUT_RD was used");
    if (socket->is_reset || !socket->is_connected)
        return -ENOTCONN;
    sim_shut(socket);
    if (how == SHUT_RDWR) {
        socket->has_ended = true;
        if (!socket->is_tcp && socket->other != NULL)
            socket->other->is_shut = true;
        sim_changed(socket->other);
    }
    return 0;
}

int weir__sys_getsockname(int fd, struct sockaddr_storage *ret_address, socklen_t *ret_length) {
    const sim_socket *socket = sim_socket_of(fd);
    if (socket == NULL)
        return -EBADF;
    memcpy(ret_address, &socket->address, sizeof *ret_address);
    *ret_length = socket->address_length;
    return 0;
}

int weir__sys_getpeername(int fd, struct sockaddr_storage *ret_address, socklen_t *ret_length) {
    sim_socket *socket = sim_socket_of(fd);
    if (socket == NULL)
        return -EBADF;
    sim_settle(socket);
    if (!socket->is_connected || socket->is_reset)
        return -ENOTCONN;
    memset(ret_address, 0, sizeof *ret_address);
    ret_address->ss_family = socket->is_tcp ? AF_INET : AF_UNIX;
    *ret_length = socket->is_tcp ? sizeof(struct sockaddr_in) : sizeof(sa_family_t);
    return 0;
}

int weir__sys_socketpair(int ret_fds[2]) {
    sim_socket *pair[2] = { socket_new(SIM_STREAM), socket_new(SIM_STREAM) };
    for (int i = 0; i < 2; i++) {
        pair[i]->other = pair[1 - i];
        pair[i]->is_connected = true;
        ret_fds[i] = sim_descriptor(pair[i]);
    }
    return ret_fds[0] < 0 ? ret_fds[0] : ret_fds[1] < 0 ? ret_fds[1] : 0;
}

int weir__sys_send(int fd, const void *data, size_t size) {
    sim_socket *socket = sim_socket_of(fd);
    const struct iovec one = { (void *)(uintptr_t)data, size };
    if (socket == NULL)
        return -EBADF;
    return sim.config.epoll ? weir__sys_send_vectors(fd, &one, 1) : sim_transmit(socket, data, size);
}

/* How much a receive of @size brings now. It stops at the urgent mark, or goes over it if it begins there. A signal that comes
 * there makes it say that there is nothing. Else what it brings over TCP is all that it was asked for, or all there is; a
 * Unix socket's stops behind what came with a descriptor. */
static size_t receivable(sim_socket *socket, size_t size) {
    size_t there = sim_readable(socket), most = there < size ? there : size;
    if (most > 0 && sim_is_too_early(socket))
        return 0;
    if (socket->is_urgent && socket->urgent_after == 0) {
        if (most > 0 && sim_fault(SIM_SIGNAL_AT_MARK)) {
            sim_event(SIM_EVENT_HIDDEN_BY_MARK);
            return 0;
        }
        socket->is_urgent = false;
    }
    if (socket->is_urgent && most > socket->urgent_after) {
        sim_event(SIM_EVENT_STOPPED_AT_MARK);
        most = socket->urgent_after;
    }
    if (most > 1 && (!sim.config.epoll || !socket->is_tcp) && sim_fault(SIM_SPLIT)) {
        sim_event(SIM_EVENT_RECEIVED_PART);
        most = 1 + (size_t)sim_random(most - 1);
    }
    return most;
}

int weir__sys_receive(int fd, void *data, size_t size) {
    sim_socket *socket = sim_socket_of(fd);
    sim_require(socket != NULL && socket->kind == SIM_STREAM, "a receive on descriptor %d, which is no stream",
                fd);
    sim_require(size > 0, "a receive of nothing");
    sim.operations++;
    sim_between(socket);
    sim_settle(socket);
    (sim.config.epoll ? sim_received : sim_ring_received)(socket);
    size_t most = receivable(socket, size);
    sim_take(socket, data, most);
    if (most > 0 && !socket->is_shut)
        socket->brought_at = sim.now_ns;
    if (most > 0)
        sim_epoll_useful();
    if (most > 0)
        return (int)most;
    if (sim_readable(socket) > 0)
        return -EAGAIN; /* and something is there all the same */
    if (socket->is_reset && socket->has_error && !socket->ended_first) {
        sim_event(SIM_EVENT_BROUGHT_ERROR);
        return sim_take_error(socket);
    }
    if (socket->has_ended)
        sim_event(SIM_EVENT_BROUGHT_END);
    return socket->has_ended ? 0 : -EAGAIN;
}

int weir__sys_unsent(int fd) {
    const sim_socket *socket = sim_socket_of(fd);
    return socket == NULL ? -EBADF : socket->other == NULL ? 0 : (int)sim_readable(socket->other);
}

int weir__sys_peek(int fd) {
    sim_socket *socket = sim_socket_of(fd);
    sim_require(socket != NULL && socket->kind == SIM_STREAM, "a look at descriptor %d, which is no stream", fd);
    if (sim_readable(socket) > 0)
        return 1;
    return socket->has_error && !socket->ended_first ? sim_take_error(socket) : socket->has_ended ? 0 : -EAGAIN;
}

int weir__sys_lost(int fd) {
    sim_socket *socket = sim_socket_of(fd);
    sim_require(socket != NULL && socket->kind == SIM_STREAM, "a look at descriptor %d, which is no stream", fd);
    return socket->has_error ? sim_take_error(socket) : 0;
}

int weir__sys_close(int fd) {
    sim_socket *socket = sim_socket_of(fd);
    sim_require(socket != NULL, "descriptor %d was closed, which is not open", fd);
    /* A poll of these holds the file, and is taken back. */
    bool may_be_polled = socket->kind == SIM_EVENTFD || socket->kind == SIM_SIGNALFD;
    sim_require(socket->requests == 0 || may_be_polled, "descriptor %d was closed with %u requests under way", fd,
                socket->requests);
    sim.descriptors--;
    sim_require(!sim.config.epoll || socket->registrations == 0,
                "descriptor %d was closed, and is registered with epoll", fd);
    sim_ring_closed(socket);
    sim_epoll_forget(socket);
    sim_epoll_useful();
    sim_give_up_connecting(socket);
    socket->fd = -1;
    sim_close_socket(socket);
    return 0;
}

int weir__sys_set_nonblocking_cloexec(int fd) {
    return sim_socket_of(fd) != NULL ? 0 : -EBADF;
}

int weir__sys_eventfd(void) {
    sim_socket *socket = socket_new(SIM_EVENTFD);
    int fd = sim_descriptor(socket);
    if (fd < 0)
        socket->is_freed = true;
    return fd;
}

int weir__sys_eventfd_signal(int fd) {
    sim_socket *socket = sim_socket_of(fd);
    sim_require(socket != NULL && socket->kind == SIM_EVENTFD, "descriptor %d was signalled, which is no eventfd",
                fd);
    socket->signals++;
    sim_changed(socket);
    return 8;
}

sim_socket *sim_signalfd_new(void) {
    return socket_new(SIM_SIGNALFD);
}

void sim_signalfds_changed(void) {
    for (size_t i = 0; i < sim.socket_count; i++)
        if (sim.sockets[i]->kind == SIM_SIGNALFD)
            sim_changed(sim.sockets[i]);
}

int weir__sys_unlink(const char *path) {
    (void)path;
    return 0;
}

int weir__sys_socket_file(const char *path, weir__sys_file *ret_file) {
    (void)path, (void)ret_file;
    return -ENOENT;
}

int weir__sys_interface_index(const char *name) {
    (void)name;
    return -ENODEV;
}

void *weir__sys_wiped_page(void) {
    return calloc(1, 4096);
}

void *weir__sys_map_private(size_t size) {
    void *memory = sim_fault(SIM_NO_MEMORY) ? NULL : aligned_alloc(4096, size);
    sim.mappings += memory != NULL;
    sim.mapped_bytes += memory != NULL ? size : 0;
    return memory;
}

void weir__sys_unmap(void *memory, size_t size) {
    memset(memory, 0x5A, size);
    free(memory);
    sim.mappings--;
    sim.mapped_bytes -= size;
}

size_t weir__sys_page_bytes(void) {
    return 4096;
}

int64_t weir__sys_now(void) {
    sim_other_thread(); /* between any two steps of the loop others may get in */
    return sim.now_ns;
}

void weir__sys_yield(void) {
}

/* The world goes on while a loop spins; most of the time nothing of it. */
void weir__sys_pause(void) {
    enum { MOST_PAUSES = 5000 };
    sim.has_paused = true;
    sim_require(++sim.pauses < MOST_PAUSES, "the loop spins: it looks out without end");
    sim.now_ns += 20 + (int64_t)sim_random(2000);
    sim_other_thread();
    if (sim_random(8) == 0)
        (void)sim_world_step();
}

uint32_t weir__sys_kernel_version(void) {
    return 6U << 16 | 18U << 8;
}

uintptr_t weir__sys_thread(void) {
    return sim.is_other_thread ? 2 : 1;
}
