/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "sim/program.h"

/* One run: what is opened, what happens from outside callbacks, and how it ends. */

application app;

enum { LONGEST_DELAY = 1100000000 };

/* ---- timers, posts ---------------------------------------------------------------------------------- */

static void on_timer(weir_timer *timer, void *userdata) {
    size_t i = (size_t)(uintptr_t)userdata;
    sim_require(app.timers[i] == timer && app.due[i] >= 0, "timer %zu fired after it was stopped", i);
    sim_require(sim.now_ns + TIMER_SLACK >= app.due[i], "timer %zu fired too early", i);
    int64_t next = app.due[i] + app.repeat[i], now = app.loop->now;
    app.due[i] = app.repeat[i] == 0 ? -1 : next > now ? next : now + app.repeat[i];
}

static void on_post_to_stop(weir_loop *loop, void *userdata) {
    (void)userdata;
    app.ran++;
    weir_loop_stop(loop);
}

static void on_post(weir_loop *loop, void *userdata) {
    sim_require(loop == app.loop && !sim.is_other_thread, "a post ran elsewhere");
    uint64_t number = (uint64_t)(uintptr_t)userdata;
    sim_require(number == ++app.post_ran, "posts ran out of order");
    /* Nobody was told of it, if the wake-up was lost; but then it waits for a sleep at most. */
    sim_require(sim.now_ns - app.posted_at[number % MOST_POSTS] <= LONGEST_DELAY, "a post waited for %.3f ms",
                (double)(sim.now_ns - app.posted_at[number % MOST_POSTS]) / 1e6);
    app.ran++;
}

/* ---- other threads ---------------------------------------------------------------------------------- */

static void post_one(void) {
    uint64_t number = app.post_started + 1;
    int r = weir_loop_post(app.loop, on_post, (void *)(uintptr_t)number);
    if (r < 0) {
        sim_require(r == -ENOMEM || r == -ESHUTDOWN, "post said %s", weir_error_name(r));
        return;
    }
    app.posted_at[number % MOST_POSTS] = sim.now_ns;
    app.post_started++;
    app.posted++;
}

void sim_other_thread(void) {
    note_starved(); /* the time is looked at in each turn */
    if (app.loop == NULL || app.is_in_thread || sim.is_other_thread || sim.is_calm || !sim_fault(SIM_OTHER_THREAD))
        return;
    app.is_in_thread = sim.is_other_thread = true;
    sim.pauses = 0; /* which is something to look out for */
    if (app.loop->spin.mode != WEIR_BUSY_POLL_OFF)
        sim_epoll_useful(); /* it need not sleep in between */
    switch (sim_random(3)) {
    case 0:
        if (app.held_count > 0)
            drop_held((size_t)sim_random(app.held_count));
        break;
    case 1:
        post_one();
        break;
    default:
        weir_loop_stop(app.loop);
        sim.was_stopped = true;
    }
    app.is_in_thread = sim.is_other_thread = false;
}

void __real_weir__waker_sleep(weir__waker *waker);
void __wrap_weir__waker_sleep(weir__waker *waker);

/* The loop has found nothing to do and is about to say that it sleeps. */
void __wrap_weir__waker_sleep(weir__waker *waker) {
    sim_other_thread();
    __real_weir__waker_sleep(waker);
}

/* ---- a run ------------------------------------------------------------------------------------------ */

static void act_outside(void) {
    switch (sim_random(17)) {
    case 0:
        if (!app.no_new && sim_random(2) == 0)
            adopt();
        else if (!app.no_new)
            (void)dial((enum role)sim_random(FORWARD));
        break;
    case 1:
        if (!app.no_new)
            dial_pair();
        break;
    case 2: {
        size_t i = (size_t)sim_random(TIMERS);
        int64_t delay = (int64_t)sim_random(50000000),
                repeat = sim_random(3) == 0 ? 1 + (int64_t)sim_random(9000000) : 0;
        app.due[i] = sim.now_ns + delay;
        app.repeat[i] = repeat;
        sim_require(weir_timer_start(app.timers[i], delay, repeat) == 0, "a timer did not start");
        break;
    }
    case 3: {
        size_t i = (size_t)sim_random(TIMERS);
        sim_require(weir_timer_stop(app.timers[i]) == 0, "a timer did not stop");
        app.due[i] = -1;
        break;
    }
    case 4:
        post_one();
        break;
    case 5:
        if (app.held_count > 0)
            drop_held((size_t)sim_random(app.held_count));
        break;
    case 6:
        if (sim_random(4) == 0)
            open_or_close_extra();
        break;
    case 7:
        if (app.listener == NULL)
            break;
        app.is_listener_paused = sim_random(2) == 0;
        sim_require((app.is_listener_paused ? weir_listener_pause : weir_listener_resume)(app.listener) == 0,
                    "pause, resume");
        break;
    case 8:
        act_on_watch();
        break;
    case 9:
        act_on_signal();
        break;
    case 10: {
        connection *c = any_connection();
        if (c != NULL && sim_random(2) == 0)
            change_option(c);
        break;
    }
    default:
        act(any_connection());
    }
}

static void on_stop(weir_timer *timer, void *userdata) {
    (void)timer, (void)userdata;
    weir_loop_stop(app.loop);
}

/* Timers that fire each microsecond make a second of simulated time a minute of ours. */
static void stop_hasty_timers(void) {
    enum { HASTY_NS = 100000 };
    for (size_t i = 0; i < TIMERS; i++) {
        if (app.due[i] < 0 || app.repeat[i] == 0 || app.repeat[i] >= HASTY_NS)
            continue;
        sim_require(weir_timer_stop(app.timers[i]) == 0, "a timer did not stop");
        app.due[i] = -1;
    }
}

static int run_for(int64_t duration_ns) {
    weir_timer *timer;
    stop_hasty_timers();
    if (weir_timer_new(app.loop, on_stop, NULL, &timer) < 0)
        return 0;
    int r = weir_timer_start(timer, duration_ns, 0);
    sim_require(r == 0, "a timer did not start");
    r = weir_loop_run(app.loop);
    weir_timer_unref(timer);
    return r;
}

static void turn(void) {
    int r = 0;
    tend_metered();
    bool runs = sim_random(app.runs_often ? 4 : 32) == 0 && weir_loop_post(app.loop, on_post_to_stop, NULL) == 0;
    if (runs) { /* until it is stopped, or it hangs */
        app.posted++;
        r = weir_loop_run(app.loop);
    } else if (!sim.is_calm && sim_random(512) == 0) {
        /* So long that sleeps in it are long ones, and that a wake-up which is lost costs something. */
        r = run_for(100000000 + (int64_t)sim_random(2000000000));
    } else if (!sim.is_calm && app.runs_often && sim_random(4) == 0) {
        r = run_for((int64_t)sim_random(5000000));
    } else {
        r = weir_loop_run_once(app.loop, (int64_t)sim_random(4) * 2000000);
    }
    sim_require(r >= 0 || r == -ENOMEM, "run_once said %s", weir_error_name(r));
    check_world();
    check_watches();
    check_signals();
}

static bool is_everything_over(void) {
    return app.used_count == 0;
}

/* A peer that reset is noticed soon, whatever the stream is doing or not doing. */
static void expect_resets_noticed(void) {
    bool is_one_left = true;
    int turns = 0;
    while (is_one_left) {
        sim_require(++turns < 100000, "resets are not noticed, and it goes on and on: %s", sim_describe());
        turn();
        sim.now_ns += LEAP_NS;
        is_one_left = false;
        for (size_t i = 0; i < app.used_count; i++) {
            connection *c = app.used[i];
            if (!c->is_started || c->closes > 0 || !c->peer_was_reset || c->is_closing)
                continue;
            is_one_left = true;
            bool is_starved = app.loop->backend->verbs->is_starved(&c->stream->in);
            if (is_starved && app.loop->now - app.loop->moved_at < STILL_NS)
                continue; /* others go on, and then there will be memory to read what lies before its reset */
            /* Where a turn looks at a few completions only, hundreds may wait in the queue. */
            sim_require(++c->turns_since_reset < (app.max_turn_events > 0 ? 10000 : 400),
                        "connection %llu: its peer reset it, and nobody noticed: %s",
                        (unsigned long long)c->number, sim_describe());
        }
    }
}

/* Faults stop: everything must come to its end, soon. */
static void calm_down(void) {
    sim.is_calm = app.no_new = true;
    app.may_fail = false;
    tend_held();
    while (app.held_count > 0)
        drop_held(app.held_count - 1);
    for (size_t i = 0; i < app.used_count; i++) /* which may hold the last buffer for a few bytes */
        app.used[i]->chain = weir_chain_unref(app.used[i]->chain);
    for (size_t i = 0; i < TIMERS; i++) {
        (void)weir_timer_stop(app.timers[i]);
        app.due[i] = -1;
    }
    stop_watches();
    expect_resets_noticed(); /* in which time flies */
    app.is_time_honest = true;
    for (size_t i = 0; i < app.all_count; i++) {
        connection *c = app.all[i];
        c->peer_is_slow = false;
        c->peer_limit = c->peer_wrote;
        calm_option(c);
        if (c->is_used && c->is_started && c->closes == 0 && !c->is_closing) {
            resume_connection(c);
            uncork(c);
            if (c->is_metered)
                grant(c, UINT64_MAX);
            if ((c->role != ECHO && c->role != FORWARD && c->role != PIPE) || c->peer_is_dead)
                close_connection(c);
        }
    }
    app.is_listener_paused = false;
    sim_require(weir_listener_resume(app.listener) == 0, "resume");
    int turns = 0;
    while (!is_everything_over()) {
        sim_require(++turns < 20000, "it does not come to its end: %s", sim_describe());
        turn();
        (void)sim_world_step();
        for (size_t i = 0; i < app.all_count; i++) {
            connection *c = app.all[i];
            if (c->is_used && c->is_started && c->closes == 0 && !c->is_closing &&
                (c->peer_is_dead || ((c->end_told || c->callbacks->on_data == NULL) && c->pipe_to == NULL)))
                close_connection(c);
        }
        if (turns % 64 == 0)
            sim.now_ns += LEAP_NS;
    }
}

/* What fails leaves nothing behind; after that it succeeds. */
static weir_loop *open_loop(const weir_loop_options *options) {
    const weir__tuning tuning = { .no_self_test = true };
    weir_loop *loop = NULL;
    app.may_fail = true;
    int r = weir__loop_new(options, &tuning, &loop);
    app.may_fail = false;
    sim.is_calm = true; /* what else is opened now is not tested here */
    if (r == 0)
        return loop;
    sim_require(r == -ENOMEM || r == -EMFILE || (r == -ENOSPC && sim.config.epoll), "a loop could not be made: %s",
                weir_error_name(r));
    sim_require(loop == NULL && app.live_blocks == 0 && sim.mappings == 0 && sim.descriptors == 0,
                "a loop that could not be made left something behind");
    sim_require(weir__loop_new(options, &tuning, &loop) == 0, "no loop");
    return loop;
}

static void open_all(void) {
    app.runs_often = sim_random(4) == 0;
    app.max_turn_events = sim_random(3) == 0 ? 1 + (uint32_t)sim_random(8) : 0;
    uint32_t buffer = 4096U << sim_random(3);
    uint64_t buffers = 1 + sim_random(24);
    weir_pool_options pool = { .size = sizeof pool, .buffer_bytes = buffer };
    /* Not in the initialiser, where compilers may draw in any order. */
    pool.budget_bytes = buffer * buffers + (sim_random(2) == 0 ? 1 << 20 : 0);
    pool.reserve_bytes = buffers > 1 && sim_random(2) == 0 ? buffer * sim_random(buffers) / 2 : 0;
    pool.window_bytes = buffer * (uint32_t)(1 + sim_random(buffers));
    weir_loop_options options = { .size = sizeof options,
                                  .backend = sim.config.epoll     ? WEIR_BACKEND_EPOLL
                                             : sim.config.classic ? WEIR_BACKEND_URING_CLASSIC
                                                                  : WEIR_BACKEND_URING_INCREMENTAL,
                                  .flags = WEIR_LOOP_KEEP_RUNNING,
                                  .pool = &pool,
                                  .allocator = &counting_allocator,
                                  .max_turn_events = app.max_turn_events };
    if (sim_random(2) == 0) {
        sim.is_polling = true;
        options.busy_poll = 1 + (uint32_t)sim_random(2);
        options.busy_poll_ns = (int64_t)sim_random(200000);
        options.busy_poll_share_percent = (uint32_t)sim_random(101);
    }
    weir_loop *loop = open_loop(&options);
    app.buffer_bytes = buffer;
    sim_require(weir_loop_set_pressure(loop, on_pressure, &app) == 0, "set_pressure");
    app.max_streams = sim_random(3) == 0 ? 1 + (uint32_t)sim_random(8) : 0;
    app.queue_limit = sim_random(2) == 0 ? (uint64_t)1 << (12 + sim_random(9)) : 16 << 20;
    app.queue_high = app.queue_limit / 2 < 1 << 20 ? app.queue_limit / 2 : 1 << 20;
    app.queue_low = app.queue_high / 4;
    app.is_unix = sim_random(4) == 0;
    app.loop = loop;
    open_listener();
    sim_require(weir__address_parse(app.is_unix ? "unix:@upstream" : "127.0.0.1:9", &app.upstream_address) == 0,
                "address");
    app.upstream =
        sim_listener_new((const struct sockaddr *)&app.upstream_address.storage, app.upstream_address.length);
    for (size_t i = 0; i < TIMERS; i++) {
        app.due[i] = -1;
        sim_require(weir_timer_new(loop, on_timer, (void *)(uintptr_t)i, &app.timers[i]) == 0, "no timer");
    }
    open_watches();
    open_signals();
    sim.is_calm = false;
    app.may_fail = true;
}

/* What is open has some time to end by itself, while faults go on; then it is ended. */
static void drain(void) {
    int64_t grace = (int64_t)sim_random((uint64_t)1 << (20 + sim_random(10)));
    sim_note("the loop is drained, and has %.3f ms", (double)grace / 1e6);
    app.is_draining = true;
    app.drain_until = sim.now_ns + grace;
    sim_require(weir_loop_drain(app.loop, grace) == 0, "drain failed");
    for (int rounds = 0;
         app.loop->streams_open > app.loop->streams_unstarted || app.loop->listeners_open > 0 || !is_grace_over();
         rounds++) {
        sim_require(rounds < 100000 && sim.now_ns < app.drain_until + INT64_C(5000000000), "it is not drained: %s",
                    sim_describe());
        if (app.loop->streams_open == 0 && app.loop->listeners_open == 0 && sim_random(4) == 0)
            break; /* before the grace is over */
        if (sim_random(3) == 0)
            act_outside();
        stop_hasty_timers();
        tend_held();
        int r = sim_random(2) == 0 ? weir_loop_run(app.loop) : weir_loop_run_once(app.loop, 2000000);
        sim_require(r >= 0 || r == -ENOMEM, "run said %s", weir_error_name(r));
        check_world();
        (void)sim_world_step();
    }
    sim_require(app.listener == NULL && app.extra == NULL, "a listener is open after drain");
    for (size_t i = 0; i < app.used_count; i++)
        sim_require(!app.used[i]->is_started || app.used[i]->closes == 1, "connection %llu is open after drain",
                    (unsigned long long)app.used[i]->number);
}

/* Slices outlive the loop. What they occupied, by the allocator's sum, is what the pool said. */
static void drop_all_held(weir_pool *pool) {
    weir_pool_stats stats = { .size = sizeof stats };
    sim_require(weir_pool_get_stats(pool, &stats) == 0, "no statistics");
    uint64_t before = app.live_bytes;
    while (app.held_count > 0)
        drop_held(app.held_count - 1);
    uint64_t freed = before - app.live_bytes, buffers = stats.buffers_retired;
    uint64_t blocks = stats.block_bytes + stats.private_bytes;
    sim_require(sim.mapped_bytes == 0 && freed >= blocks && freed - blocks <= 256 * buffers,
                "%llu bytes were freed with the last slices, and the pool said %llu, and %llu buffers",
                (unsigned long long)freed, (unsigned long long)blocks, (unsigned long long)buffers);
}

void sim_run(const sim_config *config) {
    sim_begin(config);
    sim_is_out_of_order = is_anew;
    memset(&app, 0, sizeof app);
    open_all();
    bool ends_abruptly = sim_random(4) == 0;
    while (sim.steps < config->steps) {
        uint64_t random;
        if (sim_random(3) == 0 && sim_begin_action(&random)) {
            act_outside();
            sim_end_action(random);
        }
        tend_held();
        turn();
        (void)sim_world_step(); /* also when the loop does not sleep */
    }
    if (ends_abruptly)
        sim_note("the loop is closed in the middle");
    else if (sim_random(4) == 0)
        drain();
    else
        calm_down();
    app.no_new = true;
    app.may_fail = false;
    app.is_loop_closing = true;
    weir_loop *loop = app.loop;
    for (size_t i = 0; i < TIMERS; i++) {
        weir_timer_unref(app.timers[i]);
        app.due[i] = -1;
    }
    int r = weir_loop_close(loop);
    sim_require(r == 0, "close said %s", weir_error_name(r));
    sim_require(app.posted == app.ran, "a post that was taken did not run");
    notice_silent_ends();
    app.loop = NULL;
    close_watches();
    close_signals();
    sim_require(app.listener == NULL && app.extra == NULL, "a listener without on_close");
    for (size_t i = 0; i < app.all_count; i++)
        sim_require(!app.all[i]->is_started || app.all[i]->closes == 1, "a started stream without on_close");
    sim_require(app.external_given == app.external_released, "external memory was not released");
    weir_pool *pool = weir_pool_ref(weir_loop_get_pool(loop));
    weir_loop_unref(loop);
    drop_all_held(pool);
    weir_pool_unref(pool);
    sim_require(app.live_blocks == 0, "%llu blocks of memory are left", (unsigned long long)app.live_blocks);
    sim_require(sim.mappings == 0, "%d mappings are left", sim.mappings);
    sim_require(sim.descriptors == 0, "%d descriptors are left", sim.descriptors);
    for (size_t i = 0; i < app.all_count; i++) {
        free(app.all[i]->segments);
        free(app.all[i]);
    }
    sim_end();
}
