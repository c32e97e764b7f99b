/* SPDX-License-Identifier: MIT */
#include "weir/timer.h"

#include "loop/loop.h"

/* ---- timeouts, for the library's own use ------------------------------------------------------------ */

int weir__timeout_init(weir_loop *loop, weir__timeout *timeout, void (*fire)(weir__timeout *timeout)) {
    weir__heap_node_init(&timeout->node);
    timeout->fire = fire;
    return weir__heap_reserve(&loop->timers, loop->allocator);
}

void weir__timeout_deinit(weir_loop *loop, weir__timeout *timeout) {
    weir__heap_remove(&loop->timers, &timeout->node);
    weir__heap_unreserve(&loop->timers);
}

static int64_t after(int64_t now, int64_t delay_ns) {
    return delay_ns > INT64_MAX - now ? INT64_MAX : now + delay_ns;
}

void weir__timeout_set(weir_loop *loop, weir__timeout *timeout, int64_t delay_ns) {
    if (delay_ns < 0) {
        weir__heap_remove(&loop->timers, &timeout->node);
    } else { /* never due in the turn that sets it, whose time stands still */
        delay_ns = delay_ns > 0 ? delay_ns : 1;
        weir__heap_set(&loop->timers, &timeout->node, after(weir__loop_now(loop), delay_ns));
    }
}

/* ---- timers, for the application --------------------------------------------------------------------- */

struct weir_timer {
    weir__timeout timeout;
    weir__post ending; /* the last unref, when it is another thread's */
    _Atomic(uint32_t) refs;
    bool is_started;
    weir_loop *loop;
    int64_t repeat_ns;
    weir_timer_fn function;
    void *userdata;
};

static weir_timer *to_timer(weir__timeout *timeout) {
    return WEIR__CONTAINER(timeout, weir_timer, timeout);
}

static void set_started(weir_timer *timer, bool is_started) {
    if (timer->is_started != is_started)
        timer->loop->timers_started += is_started ? 1U : UINT32_MAX;
    timer->is_started = is_started;
}

/* A reference, unless the last one is gone: then another thread's post is on its way to free the timer. */
static bool ref_if_alive(weir_timer *timer) {
    uint32_t refs = atomic_load_explicit(&timer->refs, memory_order_relaxed);
    do {
        if (refs == 0)
            return false;
    } while (!atomic_compare_exchange_weak_explicit(&timer->refs, &refs, refs + 1, memory_order_relaxed,
                                                    memory_order_relaxed));
    return true;
}

static void fire(weir__timeout *timeout) {
    weir_timer *timer = to_timer(timeout);
    weir_loop *loop = timer->loop;
    if (!ref_if_alive(timer))
        return;
    if (timer->repeat_ns > 0) { /* late: once, and then from now on */
        int64_t due = after(timeout->node.deadline, timer->repeat_ns);
        weir__heap_set(&loop->timers, &timeout->node, due > loop->now ? due : after(loop->now, timer->repeat_ns));
    } else {
        set_started(timer, false);
    }
    timer->function(timer, timer->userdata);
    weir_timer_unref(timer);
}

static bool is_timer(weir__heap_node *node) {
    weir__timeout *timeout = WEIR__CONTAINER(node, weir__timeout, node);
    if (timeout->fire != fire)
        return false;
    set_started(to_timer(timeout), false);
    return true;
}

void weir__loop_stop_timers(weir_loop *loop) {
    weir__heap_remove_if(&loop->timers, is_timer);
}

WEIR_API int weir_timer_new(weir_loop *loop, weir_timer_fn function, void *userdata, weir_timer **ret_timer) {
    if (loop == NULL || function == NULL || ret_timer == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop, no function, or nowhere to put the timer");
    int r = weir__loop_check_open(loop);
    if (r < 0)
        return r;
    weir_timer *timer = weir__alloc_zeroed(loop->allocator, sizeof *timer);
    if (timer == NULL)
        return -ENOMEM;
    r = weir__timeout_init(loop, &timer->timeout, fire);
    if (r < 0) {
        weir__free(loop->allocator, timer, sizeof *timer);
        return r;
    }
    atomic_init(&timer->refs, 1);
    timer->loop = weir_loop_ref(loop);
    timer->function = function;
    timer->userdata = userdata;
    *ret_timer = timer;
    return 0;
}

WEIR_API weir_timer *weir_timer_ref(weir_timer *timer) {
    if (timer != NULL && !weir__fork_is_child(timer->loop->generation))
        atomic_fetch_add_explicit(&timer->refs, 1, memory_order_relaxed);
    return timer;
}

static void end(weir_loop *loop, weir__post *post) {
    weir_timer *timer = WEIR__CONTAINER(post, weir_timer, ending);
    set_started(timer, false);
    weir__timeout_deinit(loop, &timer->timeout);
    weir__free(loop->allocator, timer, sizeof *timer);
    weir_loop_unref(loop);
}

WEIR_API weir_timer *weir_timer_unref(weir_timer *timer) {
    if (timer == NULL || weir__fork_is_child(timer->loop->generation) ||
        atomic_fetch_sub_explicit(&timer->refs, 1, memory_order_acq_rel) != 1)
        return NULL;
    weir_loop *loop = timer->loop;
    timer->ending.run = end;
    if (atomic_load(&loop->owner) == weir__sys_thread()) {
        end(loop, &timer->ending);
        return NULL;
    }
    weir_loop_ref(loop); /* the timer's own may be gone, with the timer, as soon as it is pushed */
    if (!weir__loop_push(loop, &timer->ending)) {
        /* The loop is closed: its heap is nobody's, and holds no timer any more. */
        weir__free(loop->allocator, timer, sizeof *timer);
        weir_loop_unref(loop);
    }
    weir_loop_unref(loop);
    return NULL;
}

WEIR_API int weir_timer_start(weir_timer *timer, int64_t delay_ns, int64_t repeat_ns) {
    if (timer == NULL || delay_ns < 0 || repeat_ns < 0)
        return WEIR__MISTAKE(-EINVAL, "no timer, or a negative time");
    int r = weir__loop_check(timer->loop);
    if (r < 0)
        return r;
    if (timer->loop->phase >= WEIR__PHASE_CLOSING)
        return -ESHUTDOWN;
    timer->repeat_ns = repeat_ns;
    set_started(timer, true);
    weir__timeout_set(timer->loop, &timer->timeout, delay_ns);
    return 0;
}

WEIR_API int weir_timer_stop(weir_timer *timer) {
    if (timer == NULL)
        return WEIR__MISTAKE(-EINVAL, "no timer");
    int r = weir__loop_check(timer->loop);
    if (r < 0)
        return r;
    set_started(timer, false);
    weir__timeout_set(timer->loop, &timer->timeout, WEIR_NEVER);
    return 0;
}
