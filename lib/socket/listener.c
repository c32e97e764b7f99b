/* SPDX-License-Identifier: MIT */
#include "socket/listener.h"

#include <netinet/in.h>

#include "base/options.h"
#include "socket/stream.h"

/*
 * A listener accepts while it is started, not paused, below its limit and not out of descriptors. What the kernel
 * accepted before it heard of a pause, or that there is no more room, is held, and handed out first when it may be.
 * Out of descriptors, it goes on when this loop closes one, and tries every 100 ms, since others may have closed some:
 * the kernel does not tell.
 *
 * Some errors are of the connection that would have been accepted: it is gone, and the next one is asked for at once. But
 * an error that stays would never let the loop sleep, so after many in a row it rests as well.
 */

enum {
    RETRY_NS = 100 * 1000 * 1000,
    MOST_LOST = 16, /* connections in a row that the network took away */
    /*
     * With more places than MANY left, connections are accepted as they come: a burst may be larger than that, and what
     * is too much is held. With fewer than FEW they are accepted one by one, a turn each, and none is too much. In
     * between it goes on as it was armed, so that a stream or two do not change it back and forth.
     */
    FEW_PLACES = 32,
    MANY_PLACES = 64
};

struct weir_listener {
    weir__actor actor;
    _Atomic(uint32_t) refs; /* the loop's until it is closed, the application's, one each counted stream */
    int fd;                 /* -1 once closed */
    weir_loop *loop;        /* referenced */
    weir__op op;            /* accept */
    weir__stall stall;      /* listed: rests until a descriptor is closed */
    weir__timeout retry;    /* or until this */
    const weir_listener_callbacks *callbacks;
    void *userdata;
    const weir__stream_settings *settings; /* shared with what it accepts */
    int *held;                             /* accepted, not handed out */
    size_t held_count, held_capacity;
    uint32_t max_streams;  /* 0: none */
    uint32_t stream_count; /* accepted by it and not ended, if it has a limit */
    uint32_t lost;         /* connections that were gone, since one was not and since it last rested */
    int error;
    weir__sys_file file; /* what bind made, if @unlinks */
    bool is_tcp, is_paused, is_closing, is_adopted, unlinks;
    bool takes_many; /* the accept that is under way goes on after one */
};

static weir_listener *to_listener(weir__actor *actor) {
    return WEIR__CONTAINER(actor, weir_listener, actor);
}

static int check(const weir_listener *listener) {
    if (listener == NULL)
        return WEIR__MISTAKE(-EINVAL, "no listener");
    return weir__loop_check(listener->loop);
}

static void mark(weir_listener *listener) {
    weir__loop_mark(listener->loop, &listener->actor);
}

/* ---- a Unix socket's file ---------------------------------------------------------------------------- */

/* inode 0: there is none. */
static weir__sys_file find_file(const weir__address *address) {
    weir__sys_file file = { 0 };
    const char *path = weir__address_path(address);
    if (path != NULL)
        (void)weir__sys_socket_file(path, &file);
    return file;
}

/*
 * What lies at the path now may be another's, who listens there since. The file's number tells, as long as our socket is
 * open: until then the kernel gives it to no other.
 */
static void remove_file(const weir__address *address, weir__sys_file ours) {
    weir__sys_file file = find_file(address);
    if (file.inode != 0 && file.inode == ours.inode && file.device == ours.device)
        (void)weir__sys_unlink(weir__address_path(address));
}

/* A Unix socket's file stays when its owner dies. Nobody listens on it: remove it. */
static bool remove_stale(const weir__address *address) {
    if (find_file(address).inode == 0)
        return false;
    int fd = weir__sys_socket(AF_UNIX, SOCK_STREAM);
    if (fd < 0)
        return false;
    int r = weir__sys_connect(fd, (const struct sockaddr *)&address->storage, address->length);
    weir__sys_close(fd);
    return r == -ECONNREFUSED && weir__sys_unlink(weir__address_path(address)) >= 0;
}

/* ---- accepting -------------------------------------------------------------------------------------- */

/* How many streams there may be besides those that there are. */
static uint32_t count_places(const weir_listener *listener) {
    const weir_loop *loop = listener->loop;
    uint32_t places = loop->streams_open < loop->max_streams ? loop->max_streams - loop->streams_open : 0;
    if (listener->max_streams > 0 && listener->max_streams - listener->stream_count < places)
        places = listener->max_streams - listener->stream_count;
    return places;
}

static bool has_room(const weir_listener *listener) {
    return count_places(listener) > 0;
}

static bool takes_too_many(const weir_listener *listener) {
    return listener->takes_many && count_places(listener) < FEW_PLACES;
}

static bool is_handing_out(const weir_listener *listener) {
    return !listener->is_paused && !listener->is_closing && has_room(listener);
}

static void hold(weir_listener *listener, int fd) {
    const weir_allocator *allocator = listener->loop->allocator;
    if (listener->held_count == listener->held_capacity) {
        size_t capacity = listener->held_capacity > 0 ? listener->held_capacity * 2 : 16;
        int *held = weir__alloc(allocator, capacity * sizeof *held);
        if (held == NULL) {
            listener->loop->accept_stalls++;
            weir__loop_close_fd(listener->loop, fd);
            return;
        }
        if (listener->held_count > 0)
            memcpy(held, listener->held, listener->held_count * sizeof *held);
        weir__free(allocator, listener->held, listener->held_capacity * sizeof *held);
        listener->held = held;
        listener->held_capacity = capacity;
    }
    listener->held[listener->held_count++] = fd;
}

static void hand_out(weir_listener *listener, int fd) {
    weir_loop *loop = listener->loop;
    weir_stream *stream;
    if (weir__stream_new(loop, fd, listener->is_tcp, listener->settings, &stream) < 0) {
        loop->accept_stalls++; /* no memory for another stream: the peer is told at once */
        weir__loop_close_fd(loop, fd);
        return;
    }
    stream->is_connected = stream->is_open_told = true;
    if (listener->max_streams > 0) {
        stream->listener = weir_listener_ref(listener);
        listener->stream_count++;
    }
    loop->accepted++;
    listener->callbacks->on_accept(listener, stream, listener->userdata);
}

void weir__listener_stream_ended(weir_listener *listener) {
    listener->stream_count--;
    mark(listener);
    weir_listener_unref(listener);
}

/* Until a descriptor is closed or a stream has ended. */
static void stall(weir_listener *listener) {
    if (!weir__link_is_listed(&listener->stall.link))
        weir__list_append(&listener->loop->stalled, &listener->stall.link);
}

/* Nothing more can be accepted now: stall, or wait for a while. */
static void rest(weir_listener *listener) {
    stall(listener);
    weir__timeout_set(listener->loop, &listener->retry, RETRY_NS);
}

static void rested(weir__timeout *timeout) {
    weir_listener *listener = WEIR__CONTAINER(timeout, weir_listener, retry);
    weir__list_remove(&listener->stall.link);
    listener->lost = 0;
    mark(listener);
}

static void accepted(weir__op *op, const weir__completion *completion) {
    weir_listener *listener = WEIR__CONTAINER(op, weir_listener, op);
    if (!completion->final) {
        listener->lost = 0;
        if (is_handing_out(listener) && listener->held_count == 0)
            hand_out(listener, completion->result);
        else
            hold(listener, completion->result);
        if (!is_handing_out(listener) || takes_too_many(listener))
            mark(listener); /* no more of them, please */
        return;
    }
    switch (completion->result) {
    case -ECANCELED:
        break;
    case -EBADF:
    case -EINVAL:
    case -ENOTSOCK: /* this socket will never accept */
        listener->error = completion->result;
        listener->is_closing = true;
        break;
    case -ENETDOWN: /* accept(2) lists these: what the network said of a connection that came and went */
    case -EPROTO:
    case -ENOPROTOOPT:
    case -EHOSTDOWN:
    case -ENONET:
    case -EHOSTUNREACH:
    case -EOPNOTSUPP:
    case -ENETUNREACH:
        if (++listener->lost >= MOST_LOST)
            rest(listener);
        break;
    default: /* no descriptor, no memory, or something that nobody has thought of */
        listener->loop->accept_stalls++;
        rest(listener);
    }
    mark(listener);
}

/* ---- settling --------------------------------------------------------------------------------------- */

static void finish(weir_listener *listener) {
    weir_loop *loop = listener->loop;
    const weir_listener_callbacks *callbacks = listener->callbacks;
    weir__address address;
    for (size_t i = 0; i < listener->held_count; i++)
        weir__loop_close_fd(loop, listener->held[i]);
    listener->held_count = 0;
    if (listener->unlinks && weir__sys_getsockname(listener->fd, &address.storage, &address.length) >= 0 &&
        weir__address_path(&address) != NULL)
        remove_file(&address, listener->file);
    weir__list_remove(&listener->stall.link);
    weir__timeout_deinit(loop, &listener->retry);
    if (!listener->is_adopted) /* a child's copy would go on listening; an adopted one may be meant to */
        (void)weir__sys_shutdown(listener->fd, SHUT_RDWR);
    weir__loop_close_fd(loop, listener->fd);
    listener->fd = -1;
    weir__loop_remove(loop, &listener->actor);
    loop->listeners_open--;
    if (callbacks != NULL && callbacks->on_close != NULL)
        callbacks->on_close(listener, listener->error, listener->userdata);
    if (callbacks == NULL && loop->phase == WEIR__PHASE_CLOSING)
        weir__loop_keep(loop, &listener->actor); /* its owner has not heard of it, and may still close it, say */
    else
        weir_listener_unref(listener);
}

static void hand_out_held(weir_listener *listener) {
    size_t count = 0;
    while (count < listener->held_count && is_handing_out(listener) && !weir__loop_is_lost(listener->loop))
        hand_out(listener, listener->held[count++]);
    listener->held_count -= count;
    memmove(listener->held, listener->held + count, listener->held_count * sizeof *listener->held);
}

static void settle(weir__actor *actor) {
    weir_listener *listener = to_listener(actor);
    weir__backend *backend = listener->loop->backend;
    weir_listener_ref(listener);
    if (listener->callbacks != NULL && listener->held_count > 0)
        hand_out_held(listener);
    if (weir__loop_is_lost(listener->loop))
        return; /* on_accept forked, and this is the child */
    bool wish = listener->callbacks != NULL && is_handing_out(listener) && listener->held_count == 0 &&
                !weir__link_is_listed(&listener->stall.link);
    bool is_idle = weir__op_is_idle(&listener->op);
    if (wish && is_idle) {
        listener->takes_many = count_places(listener) > MANY_PLACES;
        backend->verbs->accept(backend, &listener->op, listener->fd, !listener->takes_many);
    } else if (!is_idle && (!wish || takes_too_many(listener))) {
        backend->verbs->cancel(backend, &listener->op);
    } else if (listener->is_closing && is_idle) {
        finish(listener);
    }
    if (!listener->is_closing && !has_room(listener))
        stall(listener); /* a stream that ends makes room */
    weir_listener_unref(listener);
}

static void end(weir__actor *actor, int reason) {
    (void)reason;
    weir_listener *listener = to_listener(actor);
    listener->is_closing = true;
    mark(listener);
}

static void drain(weir__actor *actor) {
    end(actor, WEIR_CLOSE_DRAIN);
}

static void release(weir__actor *actor) {
    weir_listener_unref(to_listener(actor));
}

static const weir__actor_verbs verbs = { .settle = settle, .end = end, .drain = drain, .release = release };

/* ---- opening ---------------------------------------------------------------------------------------- */

typedef struct opening {
    weir_listener_options options;
    weir__stream_settings settings;
    weir__sys_file file; /* of the socket that is going to listen */
} opening;

static int read_options(weir_loop *loop, const weir_listener_options *options, opening *ret_opening) {
    const uint32_t flags = WEIR_LISTENER_REUSE_PORT | WEIR_LISTENER_V6_ONLY | WEIR_LISTENER_UNLINK;
    int r = weir__loop_check_open(loop);
    if (r >= 0 && loop->is_draining)
        r = -ESHUTDOWN;
    if (r >= 0)
        r = weir__options_read(&ret_opening->options, sizeof ret_opening->options, sizeof ret_opening->options,
                               options);
    if (r >= 0 && ((ret_opening->options.flags & ~flags) != 0 || ret_opening->options.reserved != 0 ||
                   ret_opening->options.backlog > INT32_MAX))
        r = -EINVAL;
    return r < 0 ? r : weir__stream_settings_read(ret_opening->options.stream, &ret_opening->settings);
}

static int make(weir_loop *loop, int fd, bool is_tcp, const opening *how, weir_listener **ret_listener) {
    weir_listener *listener = weir__alloc_zeroed(loop->allocator, sizeof *listener);
    if (listener == NULL)
        return -ENOMEM;
    listener->settings = weir__stream_settings_share(loop->allocator, &how->settings);
    int r = listener->settings != NULL ? loop->backend->verbs->admit(loop->backend, fd) : -ENOMEM;
    if (r >= 0)
        r = weir__timeout_init(loop, &listener->retry, rested);
    if (r < 0) {
        weir__stream_settings_unref(loop->allocator, listener->settings);
        weir__free(loop->allocator, listener, sizeof *listener);
        return r;
    }
    atomic_init(&listener->refs, 1);
    listener->fd = fd;
    listener->loop = weir_loop_ref(loop);
    listener->is_tcp = is_tcp;
    listener->max_streams = how->options.max_streams;
    listener->unlinks = (how->options.flags & WEIR_LISTENER_UNLINK) != 0;
    listener->file = how->file;
    listener->stall.actor = &listener->actor;
    weir__list_init(&listener->stall.link);
    weir__op_init(&listener->op, accepted);
    weir__loop_add(loop, &listener->actor, &verbs);
    weir__stream_apply(fd, is_tcp, &how->settings); /* inherited by what it accepts */
    loop->listeners_open++;
    *ret_listener = listener;
    return 0;
}

static int bind_to(int fd, const weir__address *address, const weir_listener_options *options) {
    const struct sockaddr *name = (const struct sockaddr *)&address->storage;
    int r = 0;
    if (address->storage.ss_family != AF_UNIX)
        r = weir__sys_setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    if (r >= 0 && (options->flags & WEIR_LISTENER_REUSE_PORT) != 0)
        r = weir__sys_setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, 1);
    if (r >= 0 && address->storage.ss_family == AF_INET6)
        r = weir__sys_setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, (options->flags & WEIR_LISTENER_V6_ONLY) != 0);
    if (r >= 0)
        r = weir__sys_bind(fd, name, address->length);
    if (r == -EADDRINUSE && (options->flags & WEIR_LISTENER_UNLINK) != 0 && remove_stale(address))
        r = weir__sys_bind(fd, name, address->length);
    return r;
}

WEIR_API int weir_listener_open(weir_loop *loop, const char *text, const weir_listener_options *options,
                                weir_listener **ret_listener) {
    if (loop == NULL || text == NULL || ret_listener == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop, no address, or nowhere to put the listener");
    opening how;
    weir__address address;
    int r = read_options(loop, options, &how);
    if (r >= 0)
        r = weir__address_parse(text, &address);
    if (r < 0)
        return r;
    int fd = weir__sys_socket(address.storage.ss_family, SOCK_STREAM);
    if (fd < 0)
        return fd;
    r = bind_to(fd, &address, &how.options);
    how.file = r >= 0 ? find_file(&address) : (weir__sys_file){ 0 };
    if (r >= 0)
        r = weir__sys_listen(fd, how.options.backlog > 0 ? (int)how.options.backlog : SOMAXCONN);
    if (r >= 0)
        r = make(loop, fd, address.storage.ss_family != AF_UNIX, &how, ret_listener);
    if (r < 0) {
        remove_file(&address, how.file); /* bind made it */
        weir__sys_close(fd);
    }
    return r;
}

WEIR_API int weir_listener_adopt(weir_loop *loop, int fd, const weir_listener_options *options,
                                 weir_listener **ret_listener) {
    if (loop == NULL || ret_listener == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop, or nowhere to put the listener");
    opening how;
    weir__address address;
    int type = 0, listens = 0, family = 0;
    int r = read_options(loop, options, &how);
    if (r >= 0)
        r = weir__sys_getsockopt(fd, SOL_SOCKET, SO_TYPE, &type);
    if (r >= 0)
        r = weir__sys_getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens);
    if (r >= 0)
        r = weir__sys_getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &family);
    if (r >= 0 && (type != SOCK_STREAM || listens == 0))
        r = -EINVAL;
    if (r >= 0)
        r = weir__sys_getsockname(fd, &address.storage, &address.length);
    if (r >= 0) {
        how.file = find_file(&address);
        r = make(loop, fd, family != AF_UNIX, &how, ret_listener);
    }
    if (r < 0)
        return r;
    (*ret_listener)->is_adopted = true;
    (void)weir__sys_set_nonblocking_cloexec(
        fd); /* of an open descriptor: it cannot fail; so the last thing done */
    return 0;
}

/* ---- the application -------------------------------------------------------------------------------- */

WEIR_API int weir_listener_start(weir_listener *listener, const weir_listener_callbacks *callbacks,
                                 void *userdata) {
    int r = check(listener);
    if (r < 0)
        return r;
    if (callbacks == NULL || callbacks->size < sizeof *callbacks || callbacks->on_accept == NULL)
        return WEIR__MISTAKE(-EINVAL, "no callbacks, their size is not set, or no on_accept");
    if (listener->callbacks != NULL)
        return WEIR__MISTAKE(-EALREADY, "started twice");
    if (listener->is_closing)
        return -ESHUTDOWN;
    listener->callbacks = callbacks;
    listener->userdata = userdata;
    mark(listener);
    return 0;
}

static int set_paused(weir_listener *listener, bool is_paused) {
    int r = check(listener);
    if (r < 0)
        return r;
    listener->is_paused = is_paused;
    mark(listener);
    return 0;
}

WEIR_API int weir_listener_pause(weir_listener *listener) {
    return set_paused(listener, true);
}

WEIR_API int weir_listener_resume(weir_listener *listener) {
    return set_paused(listener, false);
}

WEIR_API int weir_listener_close(weir_listener *listener) {
    if (listener == NULL)
        return 0;
    int r = check(listener);
    if (r < 0)
        return r;
    listener->is_closing = true;
    mark(listener);
    return 0;
}

WEIR_API weir_listener *weir_listener_ref(weir_listener *listener) {
    if (listener != NULL && !weir__fork_is_child(listener->loop->generation))
        atomic_fetch_add_explicit(&listener->refs, 1, memory_order_relaxed);
    return listener;
}

WEIR_API weir_listener *weir_listener_unref(weir_listener *listener) {
    if (listener == NULL || weir__fork_is_child(listener->loop->generation) ||
        atomic_fetch_sub_explicit(&listener->refs, 1, memory_order_acq_rel) != 1)
        return NULL;
    weir_loop *loop = listener->loop;
    weir__free(loop->allocator, listener->held, listener->held_capacity * sizeof *listener->held);
    weir__stream_settings_unref(loop->allocator, listener->settings);
    weir__free(loop->allocator, listener, sizeof *listener);
    weir_loop_unref(loop);
    return NULL;
}

WEIR_API weir_loop *weir_listener_get_loop(const weir_listener *listener) {
    return listener != NULL ? listener->loop : NULL;
}

WEIR_API int weir_listener_get_address(const weir_listener *listener, char *text, size_t size) {
    weir__address address;
    int r = check(listener);
    if (r >= 0 && text == NULL)
        r = WEIR__MISTAKE(-EINVAL, "nowhere to put the address");
    if (r >= 0)
        r = listener->fd < 0 ? -EBADF : weir__sys_getsockname(listener->fd, &address.storage, &address.length);
    return r < 0 ? r : weir__address_format(&address, text, size);
}
