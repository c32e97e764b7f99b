/* SPDX-License-Identifier: MIT */
#include "backend/uring.h"
#include "base/fork.h"
#include "edge/sys.h"

/* The turns of an io_uring and its life: everything about single operations is in uring_op.c and uring_receive.c. */

enum { MOST_DRY_TURNS = 8 };

static const int64_t close_timeout_ns = 5 * INT64_C(1000000000);

/* ---- turns ------------------------------------------------------------------------------------------ */

static int enter(weir__uring *u, unsigned wait, int64_t timeout_ns) {
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

/* Start parked receives, oldest first, one for each buffer there is; those that need a block, while there is room for
 * some. Return: there are buffers, and more streams that wait for them. */
static bool unpark(weir__uring *u) {
    uint32_t count = weir__pool_available(u->group.pool);
    if (u->group.parked_for_blocks > 0 && !weir__uring_has_private(u))
        weir__pool_free_idle(u->group.pool);
    bool has_room = weir__uring_has_private(u);
    weir__link *link = u->group.parked.next;
    u->group.returned = &u->group.parked;
    while (link != &u->group.parked) {
        weir__op *op = WEIR__CONTAINER(link, weir__op, link);
        bool is_by_poll = (op->size & WEIR__RECEIVE_BY_POLL) != 0;
        link = link->next;
        if (!is_by_poll && count == 0)
            return weir__pool_available(u->group.pool) > 0;
        if (is_by_poll && !has_room)
            continue;
        count -= !is_by_poll;
        weir__uring_group_unpark(&u->group, op);
        op->size |= WEIR__RECEIVE_KEEPS_PLACE;
        weir__uring_rearm(u, op);
    }
    return false;
}

/* Streams wait, no buffer is there, and the reserve could help them. */
static bool may_serve(const weir__uring *u) {
    return u->group.parked_count > 0 && weir__pool_available(u->group.pool) == 0 && weir__uring_has_private(u);
}

/*
 * While completions lie outside of the queue, which was full, the kernel ends each multishot that has one more. Those are
 * not started again before all have been taken: where many have something to say at once, a thousand ended peers, say,
 * they would be ended again, and so without end.
 */
static bool has_overflown(const weir__uring *u) {
    return (weir__ring_flags(u->ring) & IORING_SQ_CQ_OVERFLOW) != 0;
}

/*
 * Streams that receive into blocks alone wait for one. Buffers that nobody uses must not have its room: idle ones are given
 * up at once, but those that are posted may lie there for ever, if all that comes is for such streams. So they are taken back
 * once, after which buffers leave that room. (The kernel keeps the number of a ring, and not the ring: docs/kernel.md.)
 */
static void make_room(weir__uring *u) {
    weir_pool *pool = u->group.pool;
    bool is_wanted = u->group.parked_for_blocks > 0;
    if (is_wanted) {
        weir__pool_make_room(pool);
        if (weir__pool_is_crowded(pool))
            weir__uring_group_take_back(&u->group, u->ring);
    }
    if (u->group.ring == NULL && !u->is_mistrusted && !weir__ring_has_cqe(u->ring) && !has_overflown(u)) {
        weir__uring_group_renew(&u->group, u->ring, u->allocator);
        if (is_wanted)
            weir__pool_make_room(pool);
    }
}

/* Prepare all that the kernel is to know of. 1: enter, and wait for *timeout_ns at most; 0: that was it; -errno. */
static int prepare(weir__uring *u, int64_t *timeout_ns) {
    int r = 0;
    if (WEIR__UNLIKELY(u->is_mistrusted)) {
        r = weir__uring_group_condemn(&u->group, u->ring, u->allocator);
        if (r < 0)
            return r; /* tried again by the next wait */
        u->is_mistrusted = false;
        u->base.mode = WEIR_BACKEND_URING_CLASSIC;
        u->base.demoted = "completions and buffers disagreed, so classic rings took the incremental ones' place";
    }
    weir__pool_collect(u->group.pool);
    if (WEIR__UNLIKELY(u->group.parked_for_blocks > 0))
        weir__pool_make_room(u->group.pool); /* before buffers are */
    weir__uring_group_refill(&u->group);
    bool has_waiting = u->group.parked_count > 0 && unpark(u);
    if (WEIR__LIKELY(!has_overflown(u)))
        weir__uring_submit_waiting(u);
    while (!weir__list_is_empty(&u->waiting) && !has_overflown(u)) { /* more than the queue has entries */
        r = enter(u, 0, 0);
        if (r <= 0)
            return r;
        weir__uring_submit_waiting(u);
    }
    if (!weir__list_is_empty(&u->waiting))
        *timeout_ns = 0;
    if (!weir__list_is_empty(&u->finished))
        *timeout_ns = 0; /* something ended just now, without the kernel */
    if (u->has_unsettled)
        *timeout_ns = 0;
    if (WEIR__UNLIKELY(u->group.parked_for_blocks > 0) && weir__pool_is_crowded(u->group.pool))
        *timeout_ns = 0; /* since somebody has let something go: the coming dispatch makes room of it */
    if (has_waiting || may_serve(u))
        *timeout_ns = 0; /* those armed again may need no buffer yet, and then the next ones may have it */
    return 1;
}

static int wait_for(weir__backend *backend, int64_t timeout_ns) {
    weir__uring *u = weir__uring_of(backend);
    int r = prepare(u, &timeout_ns);
    if (r > 0)
        r = enter(u, timeout_ns != 0, timeout_ns);
    return r < 0 ? r : 0;
}

/* The kernel says in the ring when it has work to do for us, or completions that had no room. */
static int look(weir__backend *backend) {
    const uint32_t to_fetch = IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW;
    weir__uring *u = weir__uring_of(backend);
    int64_t timeout_ns = WEIR_NEVER; /* 0: the coming dispatch has something to do */
    int r = prepare(u, &timeout_ns);
    if (r <= 0)
        return r < 0 ? r : 1;
    if (timeout_ns == 0 || weir__ring_unsubmitted(u->ring) > 0 || (weir__ring_flags(u->ring) & to_fetch) != 0)
        r = enter(u, 0, 0);
    return r < 0 ? r : timeout_ns == 0 || weir__ring_has_cqe(u->ring);
}

/* Every completion has been taken: is the kernel where we think it is? */
static void cross_check(weir__uring *u) {
    if (has_overflown(u)) {
        u->base.stats.overflows += !u->is_overflown;
        u->is_overflown = true;
        return;
    }
    u->is_overflown = false;
    /* Without deferred work the kernel may consume at any time, also between the queue and the look. */
    if ((u->base.features & WEIR_FEATURE_DEFER_TASKRUN) != 0 && !weir__uring_group_agrees(&u->group))
        u->is_mistrusted = true;
}

/*
 * A silent send that failed is in the completion queue since its submission. So when the queue is empty, those that are
 * still silent have been taken; and while each dispatch is full, when as many completions have been taken as lay there when
 * somebody looked. @taken: so many this dispatch took.
 */
static unsigned settle_silent(weir__uring *u, unsigned taken) {
    unsigned count = 0;
    u->settling_left -= (unsigned)weir__min_u64(taken, u->settling_left);
    if (WEIR__UNLIKELY(!weir__list_is_empty(&u->settling)) && (u->settling_left == 0 || !u->has_more)) {
        count += weir__uring_settle_silent(u, &u->settling);
        if (weir__fork_is_child(weir__pool_generation(u->group.pool)))
            return count; /* somebody who waited for one forked, and this is the child: the ring is not there */
    }
    bool is_all_known = !has_overflown(u) && weir__ring_unsubmitted(u->ring) == 0;
    if (!is_all_known || weir__list_is_empty(&u->silent))
        return count;
    if (!u->has_more) {
        count += weir__uring_settle_silent(u, &u->silent);
    } else if (weir__list_is_empty(&u->settling)) {
        weir__list_move(&u->silent, &u->settling);
        u->settling_left = weir__ring_ready(u->ring);
    }
    return count;
}

static unsigned dispatch(weir__backend *backend, unsigned max) {
    weir__uring *u = weir__uring_of(backend);
    weir__link finished, *link;
    weir__cqe cqe;
    unsigned count = 0;
    uint32_t generation = weir__pool_generation(u->group.pool);
    weir__list_move(&u->finished, &finished);
    while ((link = weir__list_take_first(&finished)) != NULL) {
        weir__op *op = WEIR__CONTAINER(link, weir__op, link);
        weir__uring_deliver_final(u, op, op->result);
        count++;
        if (weir__fork_is_child(generation))
            return count;
    }
    unsigned finished_count = count;
    while (count < max && weir__ring_cqe(u->ring, &cqe)) {
        weir__uring_complete(u, &cqe);
        count++;
        if (weir__fork_is_child(generation))
            return count; /* a callback forked, and came back in the child: the ring is not there */
    }
    u->has_more = count >= max;
    if (!u->has_more)
        cross_check(u);
    if (!weir__list_is_empty(&u->silent) || !weir__list_is_empty(&u->settling))
        count += settle_silent(u, count - finished_count);
    if (weir__fork_is_child(generation))
        return count;
    u->has_unsettled = !weir__list_is_empty(&u->silent) || !weir__list_is_empty(&u->settling);
    /* The reserve is for when nothing else moves: a send that completes may bring a buffer back. */
    if (WEIR__UNLIKELY(may_serve(u)) && (count == 0 || ++u->dry_turns > MOST_DRY_TURNS)) {
        u->dry_turns = 0;
        count += weir__uring_serve_parked(u);
        if (weir__fork_is_child(generation))
            return count;
    }
    weir__pool_end_dispatch(u->group.pool);
    if (WEIR__UNLIKELY(u->group.parked_for_blocks > 0 || u->group.ring == NULL) && !u->has_more)
        make_room(u);
    return count;
}

static bool is_ready(const weir__backend *backend) {
    const weir__uring *u = WEIR__CONTAINER(backend, const weir__uring, base);
    return u->has_more || !weir__list_is_empty(&u->finished);
}

static bool is_quiet(const weir__backend *backend) {
    const weir__uring *u = WEIR__CONTAINER(backend, const weir__uring, base);
    return u->under_way == !weir__op_is_idle(&u->wake);
}

static void free_frames(weir__uring *u) {
    while (u->frames != NULL) {
        weir__uring_frame *f = u->frames;
        u->frames = f->header.msg_name;
        weir__free(u->allocator, f, sizeof *f);
    }
}

static void tick(weir__backend *backend, bool is_still) {
    weir__uring *u = weir__uring_of(backend);
    if (is_still)
        weir__uring_look_at_parked(u);
    u->has_no_memory = false;
    if (!u->frames_were_used)
        free_frames(u); /* a burst is over */
    u->frames_were_used = false;
    weir__uring_look_again(u);
    weir__pool_trim(u->group.pool);
}

/* ---- life ------------------------------------------------------------------------------------------- */

static void poll_waker(weir__uring *u) {
    weir__uring_start(u, &u->wake, WEIR__OP_WAKE, atomic_load(&u->waker->fd), NULL, 0);
}

/* That the loop is awake is all it was for. A loop that cannot be woken would be lost, so the poll never ends. */
static void woken(weir__op *op, const weir__completion *completion) {
    weir__uring *u = WEIR__CONTAINER(op, weir__uring, wake);
    if (completion->final && !u->is_closing)
        poll_waker(u);
}

static int enable(weir__backend *backend) {
    weir__uring *u = weir__uring_of(backend);
    int r = weir__ring_enable(u->ring);
    if (r < 0)
        return r == -EEXIST ? -EPERM : r;
    u->is_enabled = true;
    poll_waker(u);
    return 0;
}

static int close_uring(weir__backend *backend) {
    weir__uring *u = weir__uring_of(backend);
    int64_t deadline = weir__sys_now() + u->close_timeout_ns;
    u->is_closing = true;
    weir__uring_cancel(backend, &u->wake);
    while (u->is_enabled && u->under_way > 0 && weir__sys_now() < deadline) {
        int r = wait_for(backend, 10 * 1000 * 1000);
        if (r < 0 && r != -ENOMEM) /* of which there may be some a moment later */
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
    weir__uring *u = weir__uring_of(backend);
    free_frames(u);
    weir__free(u->allocator, u, sizeof *u);
}

/* Operations hold their files, and nothing is remembered of a descriptor. */
static int admit(weir__backend *backend, int fd) {
    (void)backend, (void)fd;
    return 0;
}

static void forget(weir__backend *backend, int fd) {
    (void)backend, (void)fd;
}

static const weir__backend_verbs verbs = {
    .enable = enable,
    .receive = weir__uring_receive,
    .send = weir__uring_send,
    .hurry = weir__uring_hurry,
    .accept = weir__uring_accept,
    .connect = weir__uring_connect,
    .watch = weir__uring_watch,
    .poll = weir__uring_poll,
    .cancel = weir__uring_cancel,
    .admit = admit,
    .forget = forget,
    .is_starved = weir__uring_is_starved,
    .wait = wait_for,
    .look = look,
    .dispatch = dispatch,
    .is_ready = is_ready,
    .is_quiet = is_quiet,
    .tick = tick,
    .close = close_uring,
    .free = free_uring,
};

/* RLIMIT_MEMLOCK has to hold both, on kernels that charge rings to it: the more of the one, the less of the other. */
static int open_rings(weir__uring *u, const weir_allocator *allocator, weir__tuning tuning,
                      uint32_t *ret_setup_flags) {
    for (;;) {
        int r = weir__uring_open_ring(allocator, &tuning, &u->ring, ret_setup_flags);
        if (r < 0)
            return r;
        /* The ring is disabled still (-EBADFD); but is the call allowed? There are filters that forget one of the three. */
        r = weir__ring_enter(u->ring, 0, 0, 0);
        if (r != -EPERM && r != -ENOSYS)
            r = weir__uring_group_open(&u->group, u->ring, allocator);
        if (r >= 0)
            return 0;
        weir__ring_close(u->ring);
        if (r != -ENOMEM || !weir__uring_shrink(&tuning))
            return r;
    }
}

int weir__uring_new(const weir_allocator *allocator, uint32_t mode, const weir__tuning *tuning, weir_pool *pool,
                    weir__waker *waker, weir__backend **ret_backend) {
    uint32_t setup_flags = 0;
    weir__uring *u = weir__alloc_zeroed(allocator, sizeof *u);
    if (u == NULL)
        return -ENOMEM;
    u->group.pool = pool;
    int r = open_rings(u, allocator, *tuning, &setup_flags);
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
    u->has_no_limits = tuning->no_receive_limits;
    u->has_silence = (weir__ring_features(u->ring) & IORING_FEAT_CQE_SKIP) != 0;
    u->close_timeout_ns = tuning->close_timeout_ns > 0 ? tuning->close_timeout_ns : close_timeout_ns;
    weir__list_init(&u->waiting);
    weir__list_init(&u->finished);
    weir__list_init(&u->doubtful);
    weir__list_init(&u->silent);
    weir__list_init(&u->settling);
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
