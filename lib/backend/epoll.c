/* SPDX-License-Identifier: MIT */
#include "backend/epoll.h"
#include "base/fork.h"

/* The turns of the epoll backend and its life: everything about single operations is in epoll_op.c. */

enum {
    MOST_DRY_TURNS = 8,
    MOST_SERVED = 64,
    /* When so much has been brought it is answered before there is more: while it lies in the cache. That, and sends of all
     * that a stream's share has brought, take little more than half of the processor's time in bulk echo. */
    MOST_BROUGHT = 64 << 10
};

static const uint64_t waker_data = UINT64_MAX; /* no descriptor's */

/* ---- turns ------------------------------------------------------------------------------------------ */

static bool has_ready(const weir__epoll *e) {
    return !weir__list_is_empty(&e->ready) || !weir__list_is_empty(&e->sends) ||
           !weir__list_is_empty(&e->finished);
}

/* Streams are parked, and there is something to receive into. */
static bool may_serve(weir__epoll *e) {
    return e->parked_count > 0 && (weir__epoll_has_buffer(e) || weir__epoll_has_private(e));
}

static int wait_for(weir__backend *backend, int64_t timeout_ns) {
    weir__epoll *e = weir__epoll_of(backend);
    weir__pool_collect(e->pool);
    weir__epoll_files_forget_left(e);
    bool has_work = has_ready(e) || may_serve(e);
    /* What was started in this turn, a send mostly, is tried first; the kernel is asked in the next one. */
    if (has_work && !e->has_skipped) {
        e->has_skipped = true;
        return 0;
    }
    e->has_skipped = false;
    e->base.stats.enters++;
    int count = weir__sys_epoll_wait(e->fd, e->events, WEIR__EPOLL_EVENTS, has_work ? 0 : timeout_ns);
    for (int i = 0; i < count; i++)
        if (e->events[i].data.u64 != waker_data) /* that the loop is awake is all that was for */
            weir__epoll_told(e, (int)e->events[i].data.u64, e->events[i].events);
    return count < 0 && count != -EINTR ? count : 0;
}

/* It has to ask, so this is a system call each time. */
static int look(weir__backend *backend) {
    weir__epoll *e = weir__epoll_of(backend);
    int r = wait_for(backend, 0);
    return r < 0 ? r : has_ready(e) || may_serve(e);
}

static bool is_lost(const weir__epoll *e) {
    return weir__fork_is_child(weir__pool_generation(e->pool));
}

/* Return: how many; those whose turn it is not yet stay in front. */
static unsigned try_ready(weir__epoll *e, weir__link *list, unsigned max) {
    weir__link ready, *link;
    unsigned count = 0;
    weir__list_move(list, &ready); /* one that is ready still waits for the others */
    while (count < max && e->brought_bytes < MOST_BROUGHT && !is_lost(e) &&
           (link = weir__list_take_first(&ready)) != NULL) {
        weir__epoll_try(e, WEIR__CONTAINER(link, weir__op, link));
        count++;
    }
    weir__list_move_to_front(&ready, list);
    return count;
}

/* They go first, but leave half to the others: where there is always more to send, nothing else would ever be done. */
static unsigned most_sends(weir__epoll *e, unsigned max) {
    e->is_odd = !e->is_odd; /* half of one is one in every second dispatch */
    return weir__list_is_empty(&e->ready) ? max : max / 2 + (max % 2 != 0 && e->is_odd);
}

static unsigned serve(weir__epoll *e, unsigned max, bool is_private) {
    unsigned count = 0;
    while (count < max && !is_lost(e) && weir__epoll_serve_parked(e, is_private))
        count++;
    return count;
}

static unsigned dispatch(weir__backend *backend, unsigned max) {
    weir__epoll *e = weir__epoll_of(backend);
    weir__link finished, *link;
    unsigned count = 0;
    weir__list_move(&e->finished, &finished);
    while ((link = weir__list_take_first(&finished)) != NULL) {
        weir__op *op = WEIR__CONTAINER(link, weir__op, link);
        weir__epoll_deliver_final(e, op, op->result);
        count++;
        if (is_lost(e))
            return count;
    }
    count += serve(e, max > count ? max - count : 0, false);
    if (is_lost(e))
        return count;
    e->brought_bytes = 0;
    count += try_ready(e, &e->sends, most_sends(e, max > count ? max - count : 0));
    if (is_lost(e))
        return count;
    count += try_ready(e, &e->ready, max > count ? max - count : 0);
    if (is_lost(e))
        return count;
    /* The reserve is for when nothing else moves: a send may bring a buffer back. */
    bool is_dry = e->parked_count > 0 && !weir__epoll_has_buffer(e) && weir__epoll_has_private(e);
    if (WEIR__UNLIKELY(is_dry) && (count == 0 || ++e->dry_turns > MOST_DRY_TURNS)) {
        e->dry_turns = 0;
        count += serve(e, MOST_SERVED, true);
        if (is_lost(e))
            return count;
    }
    weir__pool_end_dispatch(e->pool);
    return count;
}

static bool is_ready(const weir__backend *backend) {
    return has_ready(WEIR__CONTAINER(backend, const weir__epoll, base));
}

static bool is_quiet(const weir__backend *backend) {
    return WEIR__CONTAINER(backend, const weir__epoll, base)->under_way == 0;
}

static void tick(weir__backend *backend, bool is_still) {
    weir__epoll *e = weir__epoll_of(backend);
    if (is_still)
        weir__epoll_look_at_parked(e);
    e->has_no_memory = false;
    weir__pool_trim(e->pool);
}

/* ---- life ------------------------------------------------------------------------------------------- */

/* An epoll instance is no thread's. */
static int enable(weir__backend *backend) {
    (void)backend;
    return 0;
}

static int admit(weir__backend *backend, int fd) {
    return weir__epoll_file_admit(weir__epoll_of(backend), fd);
}

static void forget(weir__backend *backend, int fd) {
    weir__epoll *e = weir__epoll_of(backend);
    weir__epoll_file *file = weir__epoll_file_find(e, fd);
    if (file != NULL)
        weir__epoll_file_forget(e, file);
}

static int close_epoll(weir__backend *backend) {
    weir__epoll *e = weir__epoll_of(backend);
    weir__sys_close(e->fd);
    weir__pool_close(e->pool);
    return 0;
}

static void free_epoll(weir__backend *backend) {
    weir__epoll *e = weir__epoll_of(backend);
    weir__epoll_files_free(e);
    weir__free(e->allocator, e, sizeof *e);
}

static const weir__backend_verbs verbs = {
    .enable = enable,
    .receive = weir__epoll_receive,
    .send = weir__epoll_send,
    .hurry = weir__epoll_hurry,
    .accept = weir__epoll_accept,
    .connect = weir__epoll_connect,
    .watch = weir__epoll_watch,
    .poll = weir__epoll_poll,
    .cancel = weir__epoll_cancel,
    .admit = admit,
    .forget = forget,
    .is_starved = weir__epoll_is_starved,
    .wait = wait_for,
    .look = look,
    .dispatch = dispatch,
    .is_ready = is_ready,
    .is_quiet = is_quiet,
    .tick = tick,
    .close = close_epoll,
    .free = free_epoll,
};

int weir__epoll_new(const weir_allocator *allocator, weir_pool *pool, weir__waker *waker,
                    weir__backend **ret_backend) {
    weir__epoll *e = weir__alloc_zeroed(allocator, sizeof *e);
    if (e == NULL)
        return -ENOMEM;
    e->base = (weir__backend){ .verbs = &verbs, .mode = WEIR_BACKEND_EPOLL, .features = WEIR_FEATURE_NO_IOWAIT };
    e->allocator = allocator;
    e->pool = pool;
    e->left = -1;
    weir__list_init(&e->sends);
    weir__list_init(&e->ready);
    weir__list_init(&e->finished);
    weir__list_init(&e->parked);
    e->fd = weir__sys_epoll();
    int r = e->fd;
    if (r >= 0)
        r = weir__sys_epoll_set(e->fd, EPOLL_CTL_ADD, atomic_load(&waker->fd), EPOLLIN | EPOLLET, waker_data);
    if (r >= 0 && !weir__epoll_has_buffer(e))
        r = -ENOMEM; /* it could receive nothing: better said now */
    if (r < 0) {
        if (e->fd >= 0)
            weir__sys_close(e->fd);
        weir__free(allocator, e, sizeof *e);
        return r;
    }
    *ret_backend = &e->base;
    return 0;
}
