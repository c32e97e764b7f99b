/* SPDX-License-Identifier: MIT */
#include "loop/loop.h"

#include "backend/choose.h"
#include "base/fork.h"
#include "base/options.h"
#include "weir/stream.h"

enum {
    NS_PER_S = 1000000000,
    /* Kernels before 7.3.2 can lose a wake-up of a ring with deferred work, so no sleep is longer than this. */
    LONGEST_SLEEP_NS = NS_PER_S,
    TICK_NS = NS_PER_S,
    CLOSE_TIMEOUT_S = 10
};

/* ---- marking and settling --------------------------------------------------------------------------- */

void weir__loop_add(weir_loop *loop, weir__actor *actor, const weir__actor_verbs *verbs) {
    actor->verbs = verbs;
    weir__list_init(&actor->marked);
    weir__list_append(&loop->actors, &actor->member);
}

void weir__loop_remove(weir_loop *loop, weir__actor *actor) {
    (void)loop;
    weir__list_remove(&actor->marked);
    weir__list_remove(&actor->member);
}

void weir__loop_keep(weir_loop *loop, weir__actor *actor) {
    weir__list_append(&loop->kept, &actor->marked); /* where it is, it cannot be marked any more */
}

/* Settle what is marked now; what its callbacks mark is for the next time, so that this ends. */
static unsigned settle(weir_loop *loop) {
    weir__link marked, *link;
    unsigned count = 0;
    if (weir__list_is_empty(&loop->marked))
        return 0;
    weir__list_move(&loop->marked, &marked);
    while (!weir__loop_is_lost(loop) && (link = weir__list_take_first(&marked)) != NULL) {
        weir__actor *actor = WEIR__CONTAINER(link, weir__actor, marked);
        actor->verbs->settle(actor);
        count++;
    }
    return count;
}

void weir__loop_add_holder(weir_loop *loop, weir__holder *holder, const weir__holder_verbs *verbs) {
    holder->verbs = verbs;
    weir__list_init(&holder->untidy);
    weir__list_append(&loop->holders, &holder->member);
}

void weir__loop_remove_holder(weir__holder *holder) {
    weir__list_remove(&holder->untidy);
    weir__list_remove(&holder->member);
}

void weir__loop_set_untidy(weir_loop *loop, weir__holder *holder, bool is_untidy) {
    if (!is_untidy)
        weir__list_remove(&holder->untidy);
    else if (!weir__link_is_listed(&holder->untidy) && weir__link_is_listed(&holder->member))
        weir__list_append(&loop->untidy, &holder->untidy);
}

/* No callback comes of it, so nothing is added meanwhile. Where there is no memory to tidy one, the others would fare no
 * better: they have their turn in the next one, and this one after them. */
static void tidy(weir_loop *loop) {
    weir__link *link;
    int r = 0;
    while (r >= 0 && (link = weir__list_take_first(&loop->untidy)) != NULL) {
        weir__holder *holder = WEIR__CONTAINER(link, weir__holder, untidy);
        r = holder->verbs->tidy(holder);
        if (r < 0)
            weir__list_append(&loop->untidy, link);
    }
}

static void part_from_holders(weir_loop *loop) {
    weir__link *link;
    while ((link = weir__list_take_first(&loop->holders)) != NULL) {
        weir__holder *holder = WEIR__CONTAINER(link, weir__holder, member);
        weir__list_remove(&holder->untidy);
        holder->verbs->part(holder);
    }
}

void weir__loop_unstall(weir_loop *loop) {
    weir__link *link;
    while ((link = weir__list_take_first(&loop->stalled)) != NULL) {
        weir__loop_mark(loop, WEIR__CONTAINER(link, weir__stall, link)->actor);
    }
}

int weir__loop_check_open(const weir_loop *loop) {
    int r = weir__loop_check(loop);
    return r < 0 ? r : loop->phase >= WEIR__PHASE_CLOSING || loop->is_grace_over ? -ESHUTDOWN : 0;
}

void weir__loop_close_fd(weir_loop *loop, int fd) {
    loop->backend->verbs->forget(loop->backend, fd);
    weir__sys_close(fd);
    weir__loop_unstall(loop);
}

/* ---- turns ------------------------------------------------------------------------------------------ */

bool weir__loop_has_work(const weir_loop *loop) {
    return !weir__list_is_empty(&loop->marked) || weir__loop_has_posts(loop) ||
           (atomic_load(&loop->is_stopping) != 0 && loop->phase == WEIR__PHASE_RUNNING) ||
           loop->backend->verbs->is_ready(loop->backend);
}

static bool has_nothing_open(const weir_loop *loop) {
    return loop->streams_open == 0 && loop->listeners_open == 0;
}

static bool is_drained(const weir_loop *loop) {
    /* After the grace an unstarted stream has failed, and waits for an owner who may never ask for it. */
    return has_nothing_open(loop) || (loop->is_grace_over && loop->streams_open == loop->streams_unstarted);
}

bool weir__loop_is_idle(const weir_loop *loop) {
    return has_nothing_open(loop) && loop->timers_started == 0 && loop->watches_started == 0 &&
           loop->pollers_leaving == 0 && !weir__loop_has_posts(loop);
}

/* Nothing happens any more, unless another thread posts, which this loop was not told to wait for. */
static bool has_nothing_to_wait_for(const weir_loop *loop) {
    return weir__loop_is_idle(loop) && (loop->flags & WEIR_LOOP_KEEP_RUNNING) == 0;
}

/* Is that all, so that run returns? */
static bool is_over(const weir_loop *loop) {
    return loop->is_draining ? is_drained(loop) && loop->pollers_leaving == 0 : has_nothing_to_wait_for(loop);
}

static unsigned fire_timers(weir_loop *loop) {
    unsigned count = 0;
    weir__heap_node *node;
    while (weir__heap_next(&loop->timers) <= loop->now && count < loop->max_turn_events &&
           !weir__loop_is_lost(loop) && (node = weir__heap_take_due(&loop->timers, loop->now)) != NULL) {
        weir__timeout *timeout = WEIR__CONTAINER(node, weir__timeout, node);
        timeout->fire(timeout);
        count++;
    }
    return count;
}

/* Who hears of it may let something go: then the level is another at once, and is told, so that what is the same again in
 * the next turn is not taken for what was told already. (Or may have another function hear of it: that one's turn is the
 * next.) */
static void tell_pressure(weir_loop *loop) {
    uint32_t level;
    while ((level = weir__pool_look_at_pressure(loop->pool)) != loop->pressure_told) {
        bool has_risen = level > loop->pressure_told;
        loop->pressure_told = level;
        loop->is_pressure_renewed = false;
        if (loop->on_pressure != NULL && loop->phase == WEIR__PHASE_RUNNING)
            loop->on_pressure(loop, loop->pool, (int)level, loop->pressure_userdata);
        if (!has_risen || weir__loop_is_lost(loop) || loop->is_pressure_renewed)
            return;
    }
}

int weir__loop_sleep(weir_loop *loop, int64_t sleep_ns) {
    if (sleep_ns > 0 && !weir__loop_has_work(loop)) {
        weir__waker_sleep(loop->waker);
        if (weir__loop_has_work(loop)) /* again: what came before the flag was seen could not know that we sleep */
            sleep_ns = 0;
    } else {
        sleep_ns = 0;
    }
    int r = loop->backend->verbs->wait(loop->backend, sleep_ns);
    weir__waker_rise(loop->waker);
    return r;
}

int64_t weir__loop_moved_at(weir_loop *loop) {
    uint64_t bytes = loop->bytes_out + loop->backend->stats.bytes_in;
    if (bytes != loop->moved_bytes) {
        loop->moved_bytes = bytes;
        loop->moved_at = loop->now;
    }
    return loop->moved_at;
}

/* One turn. Return: how much happened; -errno; -ECHILD: a callback forked, and this is the child. */
static int turn(weir_loop *loop, int64_t timeout_ns) {
    const weir__backend_verbs *verbs = loop->backend->verbs;
    unsigned count = settle(loop);
    if (weir__loop_is_lost(loop))
        return -ECHILD;
    tidy(loop);
    int64_t next = weir__heap_next(&loop->timers), sleep_ns = LONGEST_SLEEP_NS;
    if (timeout_ns >= 0 && timeout_ns < sleep_ns)
        sleep_ns = timeout_ns;
    if (next != INT64_MAX) {
        int64_t left = next - weir__sys_now();
        sleep_ns = left <= 0 ? 0 : left < sleep_ns ? left : sleep_ns;
    }
    if (count > 0 && is_over(loop))
        sleep_ns = 0; /* what was closed before this turn was the last of it */
    bool may_spin = WEIR__UNLIKELY(loop->spin.mode != WEIR_BUSY_POLL_OFF);
    int r = may_spin ? weir__loop_spin(loop, sleep_ns) : weir__loop_sleep(loop, sleep_ns);
    loop->now = weir__sys_now();
    loop->turns++;
    count += verbs->dispatch(loop->backend, loop->max_turn_events);
    count += fire_timers(loop);
    count += weir__loop_run_posts(loop);
    count += settle(loop);
    if (!weir__loop_is_lost(loop))
        tell_pressure(loop);
    if (weir__loop_is_lost(loop))
        return -ECHILD;
    tidy(loop);
    if (loop->now - loop->ticked >= TICK_NS) {
        loop->ticked = loop->now;
        verbs->tick(loop->backend, loop->now - weir__loop_moved_at(loop) >= 2 * TICK_NS);
        weir__range_cache_trim(&loop->ranges);
    }
    return r < 0 ? r : (int)(count < INT32_MAX ? count : INT32_MAX);
}

static int bind_to_thread(weir_loop *loop) {
    if (atomic_load_explicit(&loop->owner, memory_order_relaxed) != 0)
        return 0;
    int r = loop->backend->verbs->enable(loop->backend);
    if (r < 0)
        return r;
    atomic_store(&loop->owner, weir__sys_thread());
    return 0;
}

/* Check, bind, and begin to run. */
static int begin(weir_loop *loop) {
    if (loop == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop");
    int r = weir__loop_check(loop);
    if (r < 0)
        return r;
    if (loop->phase == WEIR__PHASE_RUNNING || loop->phase == WEIR__PHASE_CLOSING)
        return WEIR__MISTAKE(-EBUSY, "called from a callback of this loop");
    if (loop->phase == WEIR__PHASE_CLOSED)
        return -ESHUTDOWN;
    r = bind_to_thread(loop);
    if (r < 0)
        return r;
    loop->now = weir__sys_now();
    loop->phase = WEIR__PHASE_RUNNING;
    return 0;
}

/* Was it told to stop? Looked at first: to take what is not there would cost each turn an atomic write. */
static bool take_stop(weir_loop *loop) {
    return atomic_load(&loop->is_stopping) != 0 && atomic_exchange(&loop->is_stopping, 0) != 0;
}

WEIR_API int weir_loop_run(weir_loop *loop) {
    int r = begin(loop);
    if (r < 0)
        return r;
    loop->is_unwatched = true;
    while (r >= 0 && !take_stop(loop)) {
        if (is_over(loop))
            break;
        r = turn(loop, WEIR_NEVER);
    }
    loop->is_unwatched = false;
    loop->phase = WEIR__PHASE_RESTING;
    return r < 0 ? r : 0;
}

WEIR_API int weir_loop_run_once(weir_loop *loop, int64_t timeout_ns) {
    int r = begin(loop);
    if (r < 0)
        return r;
    int64_t deadline = timeout_ns < 0 || timeout_ns > INT64_MAX - loop->now ? INT64_MAX : loop->now + timeout_ns;
    do { /* again while nothing happened: a sleep may be cut short */
        if (timeout_ns < 0 && has_nothing_to_wait_for(loop))
            deadline = loop->now; /* a turn that does not sleep, and the last one */
        int64_t left = deadline == INT64_MAX ? WEIR_NEVER : deadline > loop->now ? deadline - loop->now : 0;
        r = turn(loop, left);
    } while (r == 0 && loop->now < deadline && atomic_load(&loop->is_stopping) == 0);
    atomic_store(&loop->is_stopping, 0);
    loop->phase = WEIR__PHASE_RESTING;
    return r < 0 ? r : !weir__loop_is_idle(loop);
}

WEIR_API void weir_loop_stop(weir_loop *loop) {
    if (loop == NULL || weir__fork_is_child(loop->generation))
        return;
    atomic_store(&loop->is_stopping, 1);
    weir__waker_wake(loop->waker);
}

WEIR_API int weir_loop_set_pressure(weir_loop *loop, weir_pressure_fn function, void *userdata) {
    if (loop == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop");
    int r = weir__loop_check(loop);
    if (r < 0)
        return r;
    loop->on_pressure = function;
    loop->pressure_told = WEIR_PRESSURE_NONE; /* it has not heard of anything yet */
    loop->is_pressure_renewed = true;
    loop->pressure_userdata = userdata;
    return 0;
}

/* ---- draining --------------------------------------------------------------------------------------- */

static void end_all(weir_loop *loop, int reason) {
    weir__link *link = loop->actors.next;
    while (link != &loop->actors) { /* end() frees nothing: settling does */
        weir__actor *actor = WEIR__CONTAINER(link, weir__actor, member);
        link = link->next;
        actor->verbs->end(actor, reason);
    }
}

static void release_kept(weir_loop *loop) {
    weir__link *link;
    while ((link = weir__list_take_first(&loop->kept)) != NULL) {
        weir__actor *actor = WEIR__CONTAINER(link, weir__actor, marked);
        actor->verbs->release(actor);
    }
}

static void grace_is_over(weir__timeout *timeout) {
    weir_loop *loop = WEIR__CONTAINER(timeout, weir_loop, grace);
    loop->is_grace_over = true;
    end_all(loop, WEIR_CLOSE_DRAIN);
}

WEIR_API int weir_loop_drain(weir_loop *loop, int64_t grace_ns) {
    if (loop == NULL || (grace_ns < 0 && grace_ns != WEIR_NEVER))
        return WEIR__MISTAKE(-EINVAL, "no loop, or a negative time");
    int r = weir__loop_check(loop);
    if (r < 0)
        return r;
    if (loop->phase >= WEIR__PHASE_CLOSING)
        return -ESHUTDOWN;
    for (weir__link *link = loop->actors.next; link != &loop->actors; link = link->next) {
        weir__actor *actor = WEIR__CONTAINER(link, weir__actor, member);
        actor->verbs->drain(actor);
    }
    loop->is_draining = true;
    if (grace_ns >= 0 &&
        (!weir__heap_has(&loop->grace.node) || grace_ns < loop->grace.node.deadline - weir__loop_now(loop)))
        weir__timeout_set(loop, &loop->grace, grace_ns);
    return 0;
}

/* ---- life ------------------------------------------------------------------------------------------- */

static void free_loop(weir_loop *loop) {
    const weir_allocator *allocator = loop->allocator;
    if (loop->backend != NULL)
        loop->backend->verbs->free(loop->backend);
    weir__range_cache_deinit(&loop->ranges);
    weir__heap_deinit(&loop->timers, allocator);
    weir_pool_unref(loop->pool);
    if (loop->waker != NULL)
        weir__waker_unref(loop->waker);
    weir__free(allocator, loop, sizeof *loop);
}

static int init_pool(weir_loop *loop, const weir_pool_options *pool_options, uint32_t mode) {
    weir_pool_options options;
    int r = weir__options_read(&options, sizeof options, sizeof options, pool_options);
    weir__pool_config config = {
        .allocator = loop->allocator,
        .owner = loop,
        .generation = loop->generation,
        .incremental = weir__backend_is_incremental(mode),
        .page_bytes = weir__sys_page_bytes(),
        .map = weir__sys_map_private,
        .unmap = weir__sys_unmap,
        .wake = weir__waker_wake,
        .drop = weir__waker_unref,
        .host = loop->waker,
    };
    if (r >= 0)
        r = weir__pool_configure(&options, weir__backend_buffer_bytes(mode), &config);
    if (mode == WEIR_BACKEND_EPOLL)
        config.window_bytes = config.buffer_bytes; /* it receives into one buffer after the other */
    if (r >= 0)
        r = weir__pool_new(&config, &loop->pool);
    if (r >= 0)
        weir__waker_ref(loop->waker); /* the pool's, until it drops it */
    return r;
}

/* The process's page that tells a child from its parent. */
static int init_generation(weir_loop *loop) {
    if (__atomic_load_n(&weir__fork_word, __ATOMIC_ACQUIRE) == NULL) {
        void *page = weir__sys_wiped_page();
        if (page == NULL)
            return -ENOMEM;
        if (!weir__fork_install(page))
            weir__sys_unmap(page, weir__sys_page_bytes());
    }
    loop->generation = weir__fork_generation();
    return 0;
}

static int failed(weir_loop *loop, int error, const char *why) {
    weir__reason_copy(loop->reason, sizeof loop->reason, why);
    return error;
}

/* What the kernel has it may still refuse us; then the next best mode is tried. */
static int init_backend(weir_loop *loop, const weir_loop_options *options, const weir__tuning *tuning,
                        weir__choice *choice) {
    for (;;) {
        int r = init_pool(loop, options->pool, choice->mode);
        if (r < 0)
            return failed(loop, r, weir_error_text(r));
        r = weir__backend_new(loop->allocator, choice->mode, tuning, loop->pool, loop->waker, &loop->backend);
        if (r >= 0)
            return 0;
        weir__pool_close(loop->pool);
        loop->pool = NULL;
        if (!weir__backend_choose_next(choice, r, loop->reason, sizeof loop->reason))
            return failed(loop, r, weir__backend_error_text(choice->mode, r));
    }
}

static int init(weir_loop *loop, const weir_loop_options *options, const weir__tuning *tuning) {
    weir__choice choice;
    int r = init_generation(loop);
    if (r >= 0)
        r = weir__backend_choose(loop->allocator, options->backend, tuning, &choice, loop->reason,
                                 sizeof loop->reason);
    if (r < 0)
        return r;
    r = weir__waker_new(loop->allocator, &loop->waker);
    if (r < 0)
        return failed(loop, r, weir_error_text(r));
    r = init_backend(loop, options, tuning, &choice);
    if (r < 0)
        return r;
    r = weir__timeout_init(loop, &loop->grace, grace_is_over);
    if (r < 0) {
        (void)loop->backend->verbs->close(loop->backend);
        loop->pool = NULL;
        return r;
    }
    weir_pool_ref(loop->pool); /* the application's, by way of get_pool: until the loop is freed */
    return 0;
}

static int check_options(const weir_loop_options *options) {
    const weir_allocator *allocator = options->allocator;
    if (options->backend > WEIR_BACKEND_EPOLL || (options->flags & ~(uint32_t)WEIR_LOOP_KEEP_RUNNING) != 0)
        return -EINVAL;
    if (allocator != NULL &&
        (allocator->size < sizeof *allocator || allocator->alloc == NULL || allocator->free == NULL))
        return -EINVAL;
    weir__spin spin;
    return weir__spin_configure(&spin, options->busy_poll, options->busy_poll_ns,
                                options->busy_poll_share_percent);
}

static int refused(const weir_loop_options *options, int error, const char *why) {
    weir__reason_copy(options->reason, options->reason_size, *why != '\0' ? why : weir_error_text(error));
    return error;
}

int weir__loop_new(const weir_loop_options *user_options, const weir__tuning *tuning, weir_loop **ret_loop) {
    weir_loop_options options;
    if (ret_loop == NULL)
        return WEIR__MISTAKE(-EINVAL, "nowhere to put the loop");
    int r = weir__options_read(&options, sizeof options, sizeof options, user_options);
    if (r < 0)
        return r; /* where the reason would go is not known */
    weir__reason_copy(options.reason, options.reason_size, "");
    r = check_options(&options);
    if (r < 0)
        return refused(&options, r, "an option has a value that it cannot have");
    const weir_allocator *allocator = options.allocator != NULL ? options.allocator : &weir__default_allocator;
    weir_loop *loop = weir__alloc_zeroed(allocator, sizeof *loop);
    if (loop == NULL)
        return refused(&options, -ENOMEM, "");
    atomic_init(&loop->refs, 2); /* its own, and the caller's */
    loop->allocator = allocator;
    loop->flags = options.flags;
    loop->asked = options.backend;
    loop->max_streams = options.max_streams > 0 ? options.max_streams : 1000000;
    loop->max_turn_events = options.max_turn_events > 0 ? options.max_turn_events : 1024;
    loop->ranges = (weir__range_cache){ .allocator = allocator, .owner = loop };
    loop->ticked = weir__sys_now();
    weir__list_init(&loop->marked);
    weir__list_init(&loop->actors);
    weir__list_init(&loop->kept);
    weir__list_init(&loop->stalled);
    weir__list_init(&loop->holders);
    weir__list_init(&loop->untidy);
    weir__list_init(&loop->signals);
    (void)weir__spin_configure(&loop->spin, options.busy_poll, options.busy_poll_ns,
                               options.busy_poll_share_percent);
    r = init(loop, &options, tuning);
    if (r < 0) {
        (void)refused(&options, r, loop->reason);
        free_loop(loop);
        return r;
    }
    *ret_loop = loop;
    return 0;
}

WEIR_API int weir_loop_new(const weir_loop_options *options, weir_loop **ret_loop) {
    static const weir__tuning none;
    return weir__loop_new(options, &none, ret_loop);
}

WEIR_API weir_loop *weir_loop_ref(weir_loop *loop) {
    if (loop != NULL && !weir__fork_is_child(loop->generation))
        atomic_fetch_add_explicit(&loop->refs, 1, memory_order_relaxed);
    return loop;
}

WEIR_API weir_loop *weir_loop_unref(weir_loop *loop) {
    if (loop != NULL && !weir__fork_is_child(loop->generation) &&
        atomic_fetch_sub_explicit(&loop->refs, 1, memory_order_acq_rel) == 1)
        free_loop(loop);
    return NULL;
}

WEIR_API int weir_loop_close(weir_loop *loop) {
    if (loop == NULL)
        return 0;
    int r = weir__loop_check(loop);
    if (r < 0)
        return r;
    if (loop->phase == WEIR__PHASE_CLOSED)
        return 0;
    if (loop->phase != WEIR__PHASE_RESTING)
        return WEIR__MISTAKE(-EBUSY, "called from a callback of this loop");
    r = bind_to_thread(loop);
    if (r < 0)
        return r;
    loop->phase = WEIR__PHASE_CLOSING;
    loop->now = weir__sys_now();
    /* Timers and chains first: from the moment that posts are refused, another thread frees one without telling us. */
    weir__loop_stop_timers(loop);
    part_from_holders(loop);
    weir__heap_remove(&loop->timers, &loop->grace.node);
    weir__loop_refuse_posts(loop);
    if (weir__loop_is_lost(loop))
        return -ECHILD;
    end_all(loop, WEIR_CLOSE_LOOP);
    int64_t deadline = loop->now + CLOSE_TIMEOUT_S * (int64_t)NS_PER_S;
    const weir__backend_verbs *verbs = loop->backend->verbs;
    while ((!weir__list_is_empty(&loop->actors) || !verbs->is_quiet(loop->backend)) && loop->now < deadline) {
        r = turn(loop, NS_PER_S / 100);
        if (r == -ECHILD)
            return r;
        if (r < 0 && r != -ENOMEM)
            break;
    }
    r = verbs->close(loop->backend);
    weir__waker_close(loop->waker);
    loop->phase = WEIR__PHASE_CLOSED;
    release_kept(loop); /* no callback comes any more */
    weir_loop_unref(loop);
    return r;
}
