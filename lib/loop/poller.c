/* SPDX-License-Identifier: MIT */
#include "loop/poller.h"

#include <poll.h>

#include "weir/stream.h"

static weir__poller *to_poller(weir__actor *actor) {
    return WEIR__CONTAINER(actor, weir__poller, actor);
}

static bool is_in_the_loop(const weir__poller *poller) {
    return weir__link_is_listed(&poller->actor.member);
}

/* ---- life ------------------------------------------------------------------------------------------- */

static void need_no_more(weir__poller *poller) {
    weir_loop *loop = poller->loop;
    if (atomic_fetch_sub_explicit(&poller->needed, 1, memory_order_acq_rel) != 1)
        return;
    weir__free(loop->allocator, poller, poller->verbs->size);
    weir_loop_unref(loop);
}

/* A reference, unless the last one is gone: then another thread's post is on its way to stop the poller. */
static bool ref_if_alive(weir__poller *poller) {
    uint32_t refs = atomic_load_explicit(&poller->refs, memory_order_relaxed);
    do {
        if (refs == 0)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&poller->refs, &refs, refs + 1, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

void weir__poller_ref(weir__poller *poller) {
    atomic_fetch_add_explicit(&poller->refs, 1, memory_order_relaxed);
}

static void end_of_references(weir_loop *loop, weir__post *post) {
    weir__poller *poller = WEIR__CONTAINER(post, weir__poller, ending);
    (void)loop;
    weir__poller_stop(poller);
    need_no_more(poller);
}

void weir__poller_unref(weir__poller *poller) {
    if (atomic_fetch_sub_explicit(&poller->refs, 1, memory_order_acq_rel) != 1)
        return;
    weir_loop *loop = poller->loop;
    poller->ending.run = end_of_references;
    if (atomic_load(&loop->owner) == weir__sys_thread()) {
        end_of_references(loop, &poller->ending);
        return;
    }
    weir_loop_ref(loop); /* the poller's own may be gone, with the poller, as soon as it is pushed */
    if (!weir__loop_push(loop, &poller->ending))
        need_no_more(poller); /* the loop closes, and stops it by itself */
    weir_loop_unref(loop);
}

/* ---- polling ---------------------------------------------------------------------------------------- */

static void mark(weir__poller *poller) {
    weir__loop_mark(poller->loop, &poller->actor);
}

static void completed(weir__op *op, const weir__completion *completion) {
    weir__poller *poller = WEIR__CONTAINER(op, weir__poller, op);
    int result = completion->result;
    bool is_asked_for = poller->is_started && !poller->is_stale && result != -ECANCELED;
    poller->is_stale = false;
    mark(poller);
    if (is_asked_for && result >= 0) { /* what is wanted may have changed since */
        result &= (int)(poller->events | POLLERR | POLLHUP | POLLNVAL);
        is_asked_for = result != 0;
    }
    if (!is_asked_for || !ref_if_alive(poller))
        return;
    if (result < 0)
        weir__poller_stop(poller);
    poller->verbs->ready(poller, result);
    if (!weir__loop_is_lost(poller->loop)) /* the callback may have forked */
        weir__poller_unref(poller);
}

static void settle(weir__actor *actor) {
    weir__poller *poller = to_poller(actor);
    weir_loop *loop = poller->loop;
    if (!weir__op_is_idle(&poller->op)) {
        if (poller->is_stale || poller->polled_events != poller->events)
            loop->backend->verbs->cancel(loop->backend, &poller->op);
    } else if (poller->is_started) {
        poller->polled_events = poller->events;
        loop->backend->verbs->poll(loop->backend, &poller->op, poller->fd, poller->events);
    } else {
        weir__loop_remove(loop, actor);
        loop->pollers_leaving--;
        need_no_more(poller);
    }
}

static void end(weir__actor *actor, int reason) {
    if (reason == WEIR_CLOSE_LOOP) /* like timers, they go on while the loop drains */
        weir__poller_stop(to_poller(actor));
}

static void drain(weir__actor *actor) {
    (void)actor;
}

static const weir__actor_verbs actor_verbs = { .settle = settle, .end = end, .drain = drain };

void weir__poller_start(weir__poller *poller, int fd, uint32_t events) {
    weir_loop *loop = poller->loop;
    poller->fd = fd;
    poller->events = events;
    if (!poller->is_started) {
        poller->is_started = true;
        if (is_in_the_loop(poller)) {
            loop->pollers_leaving--;
        } else {
            weir__loop_add(loop, &poller->actor, &actor_verbs);
            atomic_fetch_add_explicit(&poller->needed, 1, memory_order_relaxed);
        }
    }
    mark(poller);
}

void weir__poller_stop(weir__poller *poller) {
    weir_loop *loop = poller->loop;
    if (!poller->is_started)
        return;
    poller->is_started = false;
    poller->is_stale = !weir__op_is_idle(&poller->op);
    loop->pollers_leaving++;
    mark(poller);
    poller->verbs->stopped(poller);
}

int weir__poller_new(weir_loop *loop, const weir__poller_verbs *verbs, weir__poller **ret_poller) {
    weir__poller *poller = weir__alloc_zeroed(loop->allocator, verbs->size);
    if (poller == NULL)
        return -ENOMEM;
    poller->verbs = verbs;
    poller->loop = weir_loop_ref(loop);
    atomic_init(&poller->refs, 1);
    atomic_init(&poller->needed, 1);
    weir__list_init(&poller->actor.marked);
    weir__list_init(&poller->actor.member);
    weir__op_init(&poller->op, completed);
    *ret_poller = poller;
    return 0;
}
