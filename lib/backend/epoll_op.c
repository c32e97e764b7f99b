/* SPDX-License-Identifier: MIT */
#include <netinet/in.h>

#include "backend/epoll.h"
#include "base/fork.h"

/*
 * Operations over epoll. The life of one:
 *
 *            start            ready, as far as we know                      tried: its last word
 *   IDLE ──────┬────────────────────────────────────▶ READY ────────────────────────────────────▶ IDLE
 *              │ not ready        told that it is       │ ▲ │ not now
 *              └───────▶ ATTACHED ──────────────────────┼─┘ └──────────▶ ATTACHED
 *                                                       │ no buffer
 *                                                       └──────────────▶ PARKED, and tried when there is one
 *
 * A cancellation makes it FINISHED at once: nothing of it is in the kernel. A poll of a foreign descriptor is POLLING,
 * and FINISHED when the kernel tells. What is FINISHED is delivered by the next dispatch.
 */

enum op_state { IDLE, ATTACHED, READY, PARKED, POLLING, FINISHED };

/* A receive's size: it has a limit. A connect's cancel: it is under way. */
enum { LIMITED = 1 };
enum { CONNECTING = 1 };

enum {
    VECTORS = 64,
    SEND_BYTES = 256 << 10,
    FAIR_BYTES = 256 << 10, /* one socket's share of a turn */
    MOST_ACCEPTED = 64,     /* likewise */
    LEAST_PART = 16         /* of a buffer: what is left of it is not worth a call */
};

static const uint32_t input_events = EPOLLIN | EPOLLRDHUP | EPOLLPRI;
static const uint32_t gone_events = EPOLLRDHUP | EPOLLHUP | EPOLLERR;

/* ---- states ----------------------------------------------------------------------------------------- */

static bool is_lost(const weir__epoll *e) {
    return weir__fork_is_child(weir__pool_generation(e->pool));
}

static void start(weir__epoll *e, weir__op *op, enum weir__op_kind kind, int fd, const void *data, uint32_t size) {
    WEIR__ASSERT(weir__op_is_idle(op) && op->state == IDLE);
    op->kind = (uint8_t)kind;
    op->fd = fd;
    op->data = data;
    op->size = size;
    op->result = 0;
    op->cancel = 0;
    e->under_way++;
}

static void finish_later(weir__epoll *e, weir__op *op, int32_t result) {
    op->state = FINISHED;
    op->result = result;
    weir__list_append(&e->finished, &op->link);
}

static void make_ready(weir__epoll *e, weir__op *op) {
    op->state = READY;
    weir__list_append(op->kind == WEIR__OP_SEND ? &e->sends : &e->ready, &op->link);
}

/* It goes on when the kernel tells of one of @events; @again: even if it has told of them. */
static void attach(weir__epoll *e, weir__epoll_file *file, weir__op *op, uint32_t events, bool again) {
    int r = weir__epoll_file_register(e, file, events, again);
    if (r < 0)
        finish_later(e, op, r);
    else
        op->state = ATTACHED;
}

static bool is_output(const weir__op *op) {
    return op->kind == WEIR__OP_SEND || op->kind == WEIR__OP_CONNECT;
}

void weir__epoll_deliver_final(weir__epoll *e, weir__op *op, int32_t result) {
    weir__epoll_file *file = weir__epoll_file_find(e, op->fd);
    bool is_poll = op->kind == WEIR__OP_POLL;
    if (file != NULL && file->in == op)
        file->in = NULL;
    if (file != NULL && file->out == op)
        file->out = NULL;
    if (file != NULL && is_poll)
        weir__epoll_file_leave(e, file);
    op->state = IDLE;
    op->kind = WEIR__OP_NONE;
    e->under_way--;
    op->complete(op, &(weir__completion){ .result = result, .final = true });
}

/* An operation at its descriptor; NULL: it is over already, for want of memory. */
static weir__epoll_file *take_place(weir__epoll *e, weir__op *op) {
    weir__epoll_file *file = NULL;
    int r = weir__epoll_file_get(e, op->fd, &file);
    if (r < 0) {
        finish_later(e, op, r);
        return NULL;
    }
    weir__op **place = is_output(op) ? &file->out : &file->in;
    WEIR__ASSERT(*place == NULL);
    *place = op;
    return file;
}

/* ---- the verbs that start --------------------------------------------------------------------------- */

void weir__epoll_receive(weir__backend *backend, weir__op *op, int fd, uint64_t limit_bytes, bool is_wish) {
    weir__epoll *e = weir__epoll_of(backend);
    (void)is_wish; /* limits cost nothing here */
    start(e, op, WEIR__OP_RECEIVE, fd, NULL, limit_bytes > 0 ? LIMITED : 0);
    op->limit = limit_bytes;
    weir__epoll_file *file = take_place(e, op);
    if (file != NULL && (file->ready & EPOLLIN) != 0)
        make_ready(e, op);
    else if (file != NULL)
        attach(e, file, op, input_events, false);
}

static void start_output(weir__epoll *e, weir__op *op) {
    const weir__epoll_file *file = take_place(e, op);
    if (file == NULL)
        return;
    if ((file->ready & EPOLLOUT) != 0 || op->kind == WEIR__OP_CONNECT)
        make_ready(e, op);
    else
        op->state = ATTACHED; /* a call has found no room, and registered it */
}

void weir__epoll_send(weir__backend *backend, weir__op *op, int fd, const weir__sendq *queue, bool is_quiet) {
    weir__epoll *e = weir__epoll_of(backend);
    (void)is_quiet; /* it is told without another call */
    /* What is written from now on is the next one's: the stream may be corked before this one is tried. */
    start(e, op, WEIR__OP_SEND, fd, queue, (uint32_t)weir__min_u64(queue->bytes, SEND_BYTES));
    start_output(e, op);
}

void weir__epoll_hurry(weir__op *op) {
    (void)op; /* its end is told as soon as it is known */
}

void weir__epoll_connect(weir__backend *backend, weir__op *op, int fd, const struct sockaddr *address,
                         socklen_t length) {
    weir__epoll *e = weir__epoll_of(backend);
    start(e, op, WEIR__OP_CONNECT, fd, address, length);
    start_output(e, op);
}

void weir__epoll_accept(weir__backend *backend, weir__op *op, int fd, bool one) {
    weir__epoll *e = weir__epoll_of(backend);
    start(e, op, one ? WEIR__OP_ACCEPT_ONE : WEIR__OP_ACCEPT, fd, NULL, 0);
    weir__epoll_file *file = take_place(e, op);
    if (file != NULL && (file->ready & EPOLLIN) != 0)
        make_ready(e, op);
    else if (file != NULL)
        attach(e, file, op, EPOLLIN, false);
}

void weir__epoll_watch(weir__backend *backend, weir__op *op, int fd) {
    weir__epoll *e = weir__epoll_of(backend);
    start(e, op, WEIR__OP_WATCH, fd, NULL, 0);
    weir__epoll_file *file = take_place(e, op);
    if (file == NULL)
        return;
    op->result = (int32_t)file->gone; /* it is not told again */
    if (op->result != 0)
        make_ready(e, op);
    else
        attach(e, file, op, EPOLLRDHUP, false);
}

void weir__epoll_poll(weir__backend *backend, weir__op *op, int fd, unsigned events) {
    weir__epoll *e = weir__epoll_of(backend);
    weir__epoll_file *file = NULL;
    start(e, op, WEIR__OP_POLL, fd, NULL, events);
    int r = weir__epoll_file_get(e, fd, &file);
    if (r >= 0) /* errors are told in any case, and without events it would count as not registered */
        r = weir__epoll_file_register(e, file, events != 0 ? events : EPOLLERR, true);
    if (r == -EPERM) { /* a regular file, which is always ready */
        finish_later(e, op, (int32_t)events);
    } else if (r < 0) {
        finish_later(e, op, r);
    } else {
        file->is_foreign = true;
        op->state = POLLING;
        weir__list_append(&file->polls, &op->link);
    }
}

void weir__epoll_cancel(weir__backend *backend, weir__op *op) {
    weir__epoll *e = weir__epoll_of(backend);
    if (op->state == IDLE || op->state == FINISHED)
        return;
    weir__list_remove(&op->link);
    if (op->state == PARKED)
        weir__pool_set_parked(e->pool, --e->parked_count);
    finish_later(e, op, -ECANCELED);
}

bool weir__epoll_is_starved(const weir__op *op) {
    return op->state == PARKED;
}

/* ---- readiness -------------------------------------------------------------------------------------- */

static bool wants_input(const weir__epoll_file *file) {
    bool wants = file->in != NULL && file->in->kind != WEIR__OP_WATCH;
    for (const weir__link *link = file->polls.next; link != &file->polls; link = link->next)
        wants |= (WEIR__CONTAINER(link, const weir__op, link)->size & EPOLLIN) != 0;
    return wants;
}

static void tell_polls(weir__epoll *e, weir__epoll_file *file, uint32_t events) {
    weir__link *link = file->polls.next;
    while (link != &file->polls) {
        weir__op *op = WEIR__CONTAINER(link, weir__op, link);
        uint32_t asked = events & (op->size | EPOLLERR | EPOLLHUP);
        link = link->next;
        if (asked == 0)
            continue;
        weir__list_remove(&op->link);
        finish_later(e, op, (int32_t)asked);
    }
}

void weir__epoll_told(weir__epoll *e, int fd, uint32_t events) {
    weir__epoll_file *file = weir__epoll_file_find(e, fd);
    if (file == NULL)
        return;
    uint32_t gone = events & gone_events;
    file->gone |= gone;
    /* What is gone is found out by the next call, whichever it is. */
    file->ready |= (uint8_t)(events & (EPOLLIN | EPOLLOUT | EPOLLPRI));
    if (gone != 0)
        file->ready |= (gone & (EPOLLHUP | EPOLLERR)) != 0 ? EPOLLIN | EPOLLOUT : EPOLLIN;
    weir__op *in = file->in, *out = file->out;
    if (in != NULL && in->kind == WEIR__OP_WATCH && in->state != FINISHED)
        in->result |= (int32_t)gone;
    if (in != NULL && in->state == ATTACHED &&
        (in->kind == WEIR__OP_WATCH ? in->result != 0 : (file->ready & EPOLLIN) != 0))
        make_ready(e, in);
    if (out != NULL && out->state == ATTACHED && (file->ready & EPOLLOUT) != 0)
        make_ready(e, out);
    /* A poll that is told now is started again in this turn, mostly. */
    bool is_polled = !weir__list_is_empty(&file->polls), is_input_wanted = wants_input(file);
    tell_polls(e, file, events);
    if ((events & EPOLLIN) != 0 && !is_input_wanted)
        weir__epoll_file_ignore(e, file, EPOLLIN | EPOLLPRI);
    /* A Unix socket tells of room each time that its peer has read. */
    if ((events & ~(uint32_t)EPOLLPRI) == EPOLLOUT && out == NULL && !is_polled)
        weir__epoll_file_ignore(e, file, EPOLLOUT);
}

/* ---- receiving -------------------------------------------------------------------------------------- */

bool weir__epoll_has_buffer(weir__epoll *e) {
    if (e->current.data != NULL)
        return true;
    e->filled = 0;
    return weir__pool_publish(e->pool, &e->current);
}

/* @share: what the socket has left of its own. */
static size_t most_of(const weir__op *op, size_t room, uint64_t share) {
    uint64_t most = weir__min_u64(room, share);
    return (size_t)((op->size & LIMITED) != 0 ? weir__min_u64(most, op->limit) : most);
}

/*
 * Fewer bytes came than there was room for: is that all that there is? Of TCP it is, and the next byte will be told of, unless
 * the peer has ended or there is an urgent byte, where a receive stops. On a Unix socket it stops in more places (where a
 * message had descriptors with it), and nothing tells.
 */
static bool is_drained(weir__epoll_file *file) {
    if (file->gone != 0 || (file->ready & EPOLLPRI) != 0)
        return false;
    if (!file->is_known) {
        int protocol;
        file->is_tcp =
            weir__sys_getsockopt(file->fd, SOL_SOCKET, SO_PROTOCOL, &protocol) >= 0 && protocol == IPPROTO_TCP;
        file->is_known = true;
    }
    return file->is_tcp;
}

/* NULL: the budget is spent, or there is no memory: of the latter nobody tells. */
static weir__heap_block *private_block(weir__epoll *e) {
    weir__heap_block *block = NULL;
    e->has_no_memory = weir__private_block_new(e->pool, &block) == -ENOMEM;
    return block;
}

bool weir__epoll_has_private(const weir__epoll *e) {
    return !e->has_no_memory && weir__pool_has_private(e->pool, WEIR__PRIVATE_BYTES);
}

static void park(weir__epoll *e, weir__op *op) {
    weir__pool_starve(e->pool);
    op->state = PARKED;
    weir__list_append(&e->parked, &op->link);
    weir__pool_set_parked(e->pool, ++e->parked_count);
}

/* @r bytes came of @most, or none. */
static void received(weir__epoll *e, weir__op *op, int r, size_t most, const weir_slice *slice) {
    weir__epoll_file *file = weir__epoll_file_find(e, op->fd);
    if (r == -EAGAIN) {
        /* At an urgent byte that is also said of bytes behind it, if a signal is pending: ask what is so. */
        bool is_doubtful = (file->ready & EPOLLPRI) != 0;
        file->ready &= (uint8_t) ~(EPOLLIN | EPOLLPRI);
        attach(e, file, op, input_events, is_doubtful);
        return;
    }
    if (r == -EINTR) {
        make_ready(e, op);
        return;
    }
    if (r <= 0) {
        weir__epoll_deliver_final(e, op, r);
        return;
    }
    e->base.stats.slices++;
    e->base.stats.bytes_in += (uint64_t)r;
    e->brought_bytes += (uint64_t)r;
    bool is_limited = (op->size & LIMITED) != 0;
    if (is_limited)
        op->limit -= (uint64_t)r;
    if ((size_t)r < most && is_drained(file))
        file->ready &= (uint8_t)~EPOLLIN;
    if (is_limited && op->limit == 0)
        finish_later(e, op, -ECANCELED);
    else if ((file->ready & EPOLLIN) != 0)
        make_ready(e, op);
    else
        attach(e, file, op, input_events, false);
    op->complete(op, &(weir__completion){ .result = r, .slice = *slice });
}

/* Return: as many as there was room for. */
static bool receive_buffer(weir__epoll *e, weir__op *op, uint64_t share) {
    uint32_t room = e->current.size - e->filled;
    uint8_t *data = (uint8_t *)e->current.data + e->filled;
    size_t most = most_of(op, room, share);
    weir_slice slice = { 0 };
    WEIR__UNPOISON(data, most);
    int r = weir__sys_receive(op->fd, data, most);
    uint32_t size = r > 0 ? (uint32_t)r : 0;
    WEIR__POISON(data + size, most - size);
    if (size > 0) {
        bool more = room - size >= e->current.size / LEAST_PART;
        int committed = weir__pool_commit(e->pool, e->current.id, size, more, &slice);
        WEIR__ASSERT(committed >= 0); /* of our own making, not the kernel's */
        r = committed < 0 ? committed : r;
        e->filled += size;
        if (!more)
            e->current.data = NULL;
    }
    received(e, op, r, most, &slice);
    return size == most;
}

/* Is there more, and its owner asks for nothing else? */
static bool goes_on(weir__epoll *e, const weir__op *op) {
    return !is_lost(e) && op->state == READY && !op->is_stale && weir__epoll_has_buffer(e);
}

/* All of its share in a row, so that it is answered as a whole: one large send costs much less than small ones. */
static void receive_share(weir__epoll *e, weir__op *op) {
    uint64_t end = e->brought_bytes + FAIR_BYTES;
    while (receive_buffer(e, op, end - e->brought_bytes) && e->brought_bytes < end && goes_on(e, op))
        weir__list_remove(&op->link);
}

static void try_receive(weir__epoll *e, weir__op *op) {
    if (WEIR__LIKELY(e->parked_count == 0 && weir__epoll_has_buffer(e))) {
        receive_share(e, op);
        return;
    }
    /* Something to read has to wait for a buffer. An end has not, and nothing at all is no reason to wait. */
    int r = weir__sys_peek(op->fd);
    if (r > 0)
        park(e, op);
    else
        received(e, op, r, 0, &(weir_slice){ 0 });
}

static void receive_private(weir__epoll *e, weir__op *op, weir__heap_block *block) {
    uint8_t *data = weir__heap_block_data(block);
    size_t most = most_of(op, block->block.capacity, FAIR_BYTES);
    int r = weir__sys_receive(op->fd, data, most);
    const weir_slice slice = { data, r > 0 ? (size_t)r : 0, &block->block };
    received(e, op, r, most, &slice);
    if (!is_lost(e))
        weir__block_unref_shared(&block->block);
}

bool weir__epoll_serve_parked(weir__epoll *e, bool is_private) {
    weir__heap_block *block = NULL;
    if (e->parked_count == 0 || (is_private && (block = private_block(e)) == NULL) ||
        (!is_private && !weir__epoll_has_buffer(e)))
        return false;
    weir__op *op = WEIR__CONTAINER(weir__list_take_first(&e->parked), weir__op, link);
    weir__pool_set_parked(e->pool, --e->parked_count);
    if (is_private)
        receive_private(e, op, block);
    else
        (void)receive_buffer(e, op, FAIR_BYTES);
    return true;
}

void weir__epoll_look_at_parked(weir__epoll *e) {
    weir__link *link = e->parked.next;
    if (e->parked_count == 0 || weir__epoll_has_buffer(e) || weir__epoll_has_private(e))
        return;
    while (link != &e->parked) {
        weir__op *op = WEIR__CONTAINER(link, weir__op, link);
        link = link->next;
        int r = weir__sys_lost(op->fd);
        if (r < 0) {
            weir__list_remove(&op->link);
            weir__pool_set_parked(e->pool, --e->parked_count);
            finish_later(e, op, r);
        }
    }
}

/* ---- the other operations --------------------------------------------------------------------------- */

/* There is no room; or the connection is not there yet. */
static void wait_for_room(weir__epoll *e, weir__op *op) {
    weir__epoll_file *file = weir__epoll_file_find(e, op->fd);
    file->ready &= (uint8_t)~EPOLLOUT;
    attach(e, file, op, EPOLLOUT, false);
}

static void try_send(weir__epoll *e, weir__op *op) {
    struct iovec vectors[VECTORS];
    unsigned count = weir__sendq_gather(op->data, vectors, VECTORS, op->size);
    int r = count == 1 ? weir__sys_send(op->fd, vectors[0].iov_base, vectors[0].iov_len)
                       : weir__sys_send_vectors(op->fd, vectors, count);
    if (r == -EAGAIN)
        wait_for_room(e, op);
    else if (r == -EINTR)
        make_ready(e, op);
    else
        weir__epoll_deliver_final(e, op, r);
}

/* How did it end? -EINPROGRESS: it has not. */
static int connected(int fd) {
    int error = 0;
    struct sockaddr_storage peer;
    socklen_t length;
    int r = weir__sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error);
    if (r < 0 || error != 0)
        return r < 0 ? r : -error;
    r = weir__sys_getpeername(fd, &peer, &length); /* told for nothing? */
    return r == -ENOTCONN ? -EINPROGRESS : r;
}

static void try_connect(weir__epoll *e, weir__op *op) {
    int r;
    if (op->cancel != CONNECTING)
        r = weir__sys_connect(op->fd, op->data, op->size);
    else
        r = connected(op->fd);
    if (r == -EINPROGRESS || r == -EINTR || r == -EALREADY) {
        op->cancel = CONNECTING;
        wait_for_room(e, op);
    } else {
        weir__epoll_deliver_final(e, op, r);
    }
}

static void try_accept(weir__epoll *e, weir__op *op) {
    for (int i = 0; i < MOST_ACCEPTED; i++) {
        int r = weir__sys_accept(op->fd);
        if (r == -EAGAIN) {
            weir__epoll_file *file = weir__epoll_file_find(e, op->fd);
            file->ready &= (uint8_t)~EPOLLIN;
            attach(e, file, op, EPOLLIN, false);
            return;
        }
        if (r == -EINTR || r == -ECONNABORTED)
            continue;
        if (r < 0) {
            weir__epoll_deliver_final(e, op, r);
            return;
        }
        op->complete(op, &(weir__completion){ .result = r });
        if (is_lost(e) || op->state == FINISHED) /* cancelled inside: what else has come stays where it is */
            return;
        if (op->kind == WEIR__OP_ACCEPT_ONE) {
            weir__epoll_deliver_final(e, op, -ECANCELED);
            return;
        }
    }
    make_ready(e, op);
}

static void try_watch(weir__op *op) {
    int32_t events = op->result;
    op->result = 0;
    op->state = ATTACHED;
    op->complete(op, &(weir__completion){ .result = events });
}

void weir__epoll_try(weir__epoll *e, weir__op *op) {
    e->base.stats.completions++;
    switch ((enum weir__op_kind)op->kind) {
    case WEIR__OP_RECEIVE:
        try_receive(e, op);
        break;
    case WEIR__OP_SEND:
        try_send(e, op);
        break;
    case WEIR__OP_CONNECT:
        try_connect(e, op);
        break;
    case WEIR__OP_ACCEPT:
    case WEIR__OP_ACCEPT_ONE:
        try_accept(e, op);
        break;
    case WEIR__OP_WATCH:
        try_watch(op);
        break;
    default: /* the others are not tried */
        break;
    }
}
