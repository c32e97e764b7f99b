/* SPDX-License-Identifier: MIT */
#include "sim/program.h"

#include "backend/epoll.h"
#include "backend/uring.h"

/* What streams are limited by: grants, time and memory; and an account of our own of each. */

enum { MOST_OVERRUN = 64 << 10, LATEST = 1500000000 };

/* ---- grants ----------------------------------------------------------------------------------------- */

/* Reading is held back by the application: then idle time stands still. */
void note_held_back(connection *c) {
    bool is_held = !c->end_told && (c->is_paused || (c->is_metered && c->credit == 0));
    if (is_held == c->is_held_back)
        return;
    c->is_held_back = is_held;
    if (is_held)
        c->held_from = sim.now_ns;
    else
        c->held_until = sim.now_ns;
}

void spend(connection *c, uint64_t bytes) {
    if (!c->is_metered)
        return;
    sim_require(bytes <= c->credit, "connection %llu: %llu bytes were delivered, and %llu are granted",
                (unsigned long long)c->number, (unsigned long long)bytes, (unsigned long long)c->credit);
    if (c->credit != UINT64_MAX)
        c->credit -= bytes;
    note_held_back(c);
}

void grant(connection *c, uint64_t bytes) {
    note_all_piped(c);
    forget_starved(c);
    sim_require(weir_stream_grant(c->stream, bytes) == 0, "grant failed");
    bool is_all = bytes == UINT64_MAX || c->credit == UINT64_MAX;
    c->credit = is_all ? UINT64_MAX : c->credit + bytes;
    c->granted = is_all ? UINT64_MAX : c->granted + bytes;
    note_held_back(c);
}

void grant_some(connection *c) {
    if (c->is_metered)
        grant(c, sim_random(64) == 0 ? UINT64_MAX : sim_random((uint64_t)1 << sim_random(18)));
}

/* Those who have nothing left get something, some of them late, and a few not before it is calm. */
void tend_metered(void) {
    for (size_t i = 0; i < app.used_count; i++) {
        connection *c = app.used[i];
        if (!c->is_metered || c->credit > 0 || c->stream == NULL || c->closes > 0 ||
            (!c->is_started && !c->is_held))
            continue;
        if (sim.is_calm)
            grant(c, UINT64_MAX);
        else if (!c->forgets_grants && sim_random(8) == 0)
            grant_some(c);
    }
}

static void check_metered(connection *c) {
    weir_stream_stats stats = { .size = sizeof stats };
    if (c->is_closing || c->is_pipe_broken || c->stream->has_failed)
        return;
    note_all_piped(c);
    sim_require(weir_stream_get_stats(c->stream, &stats) == 0, "no statistics");
    sim_require(stats.staged_bytes + c->app_read == stats.bytes_in && stats.bytes_piped >= c->piped,
                "connection %llu: %llu bytes came, %llu were delivered, and %llu are staged",
                (unsigned long long)c->number, (unsigned long long)stats.bytes_in, (unsigned long long)c->app_read,
                (unsigned long long)stats.staged_bytes);
    uint64_t more = sim.config.no_caps || sim.config.epoll ? 0 : MOST_OVERRUN;
    sim_require(c->granted >= stats.bytes_in || stats.bytes_in - c->granted <= more,
                "connection %llu: %llu bytes came, and %llu were granted", (unsigned long long)c->number,
                (unsigned long long)stats.bytes_in, (unsigned long long)c->granted);
}

/* ---- time ------------------------------------------------------------------------------------------- */

static int64_t later(int64_t a, int64_t b) {
    return a > b ? a : b;
}

/* The kernel did something for it then, or it was opened; the library has heard of it at that time or later. */
static int64_t last_activity(const connection *c) {
    return later(c->opened_at, later(c->ours->sent_at, c->ours->brought_at));
}

static int64_t last_byte(const connection *c) {
    return c != NULL ? later(c->ours->sent_at, c->ours->brought_at) : 0;
}

/* Who is piped is as busy as the other end, which may not be open yet. (Time that stood still is added to its own.) */
static int64_t last_of_pipe(const connection *c) {
    int64_t other = later(last_byte(c->pipe_to), last_byte(c->pipe_from));
    return other > c->held_until ? later(last_activity(c), other) : last_activity(c);
}

static int64_t last_progress(const connection *c) {
    return later(later(c->opened_at, c->ours->sent_at), later(c->peer_took_at, c->queue_began));
}

/* The library has given a stream up; what the kernel still does for it, before it has been taken back, is no activity. */
static void note_failure(connection *c) {
    if (c->failed_at != 0 || !c->stream->has_failed)
        return;
    c->failed_at = sim.now_ns;
    c->active_before = last_of_pipe(c);
    c->progress_before = last_progress(c);
    c->taken_before = c->peer_took_at;
}

void check_idle(const connection *c) {
    int64_t active = c->failed_at != 0 ? c->active_before : last_of_pipe(c);
    int64_t took_at = c->failed_at != 0 ? c->taken_before : c->peer_took_at;
    int64_t passed = (c->failed_at != 0 ? c->failed_at : sim.now_ns) - active;
    if (c->held_from >= active && c->held_until > c->held_from)
        passed -= c->held_until - c->held_from;
    /* A send that nobody waited for has the time of the turn that wrote it, and the kernel took it in the next. */
    passed += sim.is_calm ? LEAP_NS : 0;
    sim_event(SIM_EVENT_IDLE_TIMEOUT);
    sim_require(c->idle_ns > 0 && (app.max_turn_events > 0 || sim.events[SIM_EVENT_OVERFLOW] > 0 ||
                                   passed + 2 * TIMER_SLACK >= c->idle_ns),
                "connection %llu: idle for %.3f ms only", (unsigned long long)c->number, (double)passed / 1e6);
    /* With something for its peer in the kernel it is looked at twice. */
    int64_t at = c->failed_at != 0 ? c->failed_at : sim.now_ns;
    sim_require(c->peer_took >= c->ours->sent || app.max_turn_events > 0 ||
                    at - took_at + 2 * TIMER_SLACK + (sim.is_calm ? LEAP_NS : 0) >= c->idle_ns / 2,
                "connection %llu: an idle timeout, and its peer took something %.3f ms ago",
                (unsigned long long)c->number, (double)(at - took_at) / 1e6);
    sim_require(!c->is_held_back || sim.now_ns - c->held_from < 20 * TIMER_SLACK,
                "connection %llu: an idle timeout of a stream that is held back", (unsigned long long)c->number);
}

/* The kernel took nothing of the queue for all of the time, and the peer nothing of the kernel's for half of it: that is looked
 * at twice. */
void check_write_timeout(const connection *c) {
    bool is_known = c->failed_at != 0;
    int64_t at = is_known ? c->failed_at : sim.now_ns, took_at = is_known ? c->taken_before : c->peer_took_at;
    int64_t progress = is_known ? c->progress_before : last_progress(c);
    int64_t passed = at - progress + TIMER_SLACK, due = progress == took_at ? c->write_ns / 2 : c->write_ns;
    sim_event(SIM_EVENT_WRITE_TIMEOUT);
    sim_require(c->write_ns > 0 && (c->peer_took < c->app_wrote || app.max_turn_events > 0),
                "a write timeout, and nothing is queued");
    sim_require(app.max_turn_events > 0 || sim.events[SIM_EVENT_OVERFLOW] > 0 || passed >= due,
                "connection %llu: a write timeout, and its peer took something %.3f ms ago",
                (unsigned long long)c->number, (double)(at - progress) / 1e6);
}

/* Timeouts are not forgotten either. What is overdue is so at several looks: the first may come after a long run. */
static void check_times(connection *c, bool is_memory_short) {
    enum { LOOKS = 4 };
    const weir_stream *stream = c->stream;
    note_failure(c);
    if (is_memory_short)
        c->waited_at = sim.now_ns;
    if (c->is_held_back || c->pipe_to != NULL || c->pipe_from != NULL || c->callbacks->on_data == NULL)
        c->rested_at =
            sim.now_ns; /* or it may have: what is behind the pipe was full or busy, or nobody wants data */
    if (c->is_closing || stream->has_failed || weir_stream_get_state(stream) != WEIR_STREAM_OPEN)
        return;
    int64_t active = later(later(last_activity(c), c->waited_at), later(c->rested_at, c->held_until));
    int64_t progress = later(later(last_progress(c), c->piped_at), later(c->waited_at, c->uncorked_at));
    active = later(active, c->peer_took_at); /* what the kernel had; that is found out half of the time later */
    bool is_idle = c->idle_ns > 0 && sim.now_ns - active >= 2 * c->idle_ns + LATEST;
    bool is_stuck = c->write_ns > 0 && stream->queue.bytes > 0 && !c->is_corked &&
                    sim.now_ns - progress >= c->write_ns + LATEST;
    c->overdue = is_idle || is_stuck ? c->overdue + 1 : 0;
    sim_require(c->overdue < LOOKS, "connection %llu: %s for %.3f ms, and no timeout comes",
                (unsigned long long)c->number, is_idle ? "nothing has happened" : "its peer has taken nothing",
                (double)(sim.now_ns - (is_idle ? active : progress)) / 1e6);
}

/* What is written to a corked stream waits. */
static void check_cork(const connection *c) {
    sim_require(!c->is_corked || c->is_cork_lifted || c->is_shut || c->is_closing || c->pipe_from != NULL ||
                    c->ours->sent <= c->cork_position,
                "connection %llu: a corked stream sends", (unsigned long long)c->number);
}

/* ---- memory ----------------------------------------------------------------------------------------- */

/* What the numbers say, by the header's words. Return: does @level fit? */
static bool is_level_true(int level, const weir_pool_stats *stats) {
    uint64_t used = stats->used_bytes, budget = stats->budget_bytes;
    bool is_dry = stats->buffers_posted + stats->buffers_filling + stats->buffers_idle == 0;
    bool has_room = budget - used >= 4096; /* for one more block of the reserve */
    switch (level) {
    case WEIR_PRESSURE_NONE:
        return used <= budget / 4 * 3 + 4;
    case WEIR_PRESSURE_HIGH:
        return used > budget / 2;
    case WEIR_PRESSURE_PARKED:
        return is_dry;
    default:
        /* Where receives have no limit, a metered stream waits for a block, whatever else there is: but for one that is held,
         * or for a buffer that is, not for room that nobody uses. */
        return level == WEIR_PRESSURE_STUCK && stats->parked_streams > 0 && !has_room &&
               (is_dry || (sim.config.no_caps &&
                           (stats->private_bytes > 0 || stats->buffers_idle + stats->buffers_posted == 0)));
    }
}

void on_pressure(weir_loop *loop, weir_pool *pool, int level, void *userdata) {
    weir_pool_stats stats = { .size = sizeof stats };
    sim_require(loop == app.loop && userdata == &app, "pressure of another loop");
    sim_require(weir_pool_get_stats(pool, &stats) == 0, "no statistics");
    sim_require(level != app.level, "pressure %d was told twice", level);
    sim_require((int)stats.level == level && is_level_true(level, &stats),
                "pressure %d, and %u parked, %u idle, %u posted, %llu used of %llu", level, stats.parked_streams,
                stats.buffers_idle, stats.buffers_posted, (unsigned long long)stats.used_bytes,
                (unsigned long long)stats.budget_bytes);
    app.level = level;
    if (level == WEIR_PRESSURE_STUCK)
        sim_event(SIM_EVENT_STUCK);
    else if (level == WEIR_PRESSURE_PARKED)
        sim_event(SIM_EVENT_PARKED);
    if (level >= WEIR_PRESSURE_PARKED && app.held_count > 0 && sim_random(2) == 0)
        drop_held((size_t)sim_random(app.held_count)); /* what an application would do */
}

void check_limits(const weir_pool_stats *stats) {
    bool is_short = stats->parked_streams > 0 || app.level >= WEIR_PRESSURE_PARKED;
    sim_require((int)stats->level == app.level, "the level is %u, and %d was told", stats->level, app.level);
    for (size_t i = 0; i < app.used_count; i++) {
        connection *c = app.used[i];
        if (!c->is_started || c->closes > 0 || c->stream == NULL)
            continue;
        if (c->is_metered)
            check_metered(c);
        note_piped(c);
        check_held_pipe(c);
        check_resumed(c, is_short);
        check_cork(c);
        check_times(c, is_short);
        sim_require(!c->is_pipe_broken || ++c->turns_since_broken < (app.max_turn_events > 0 ? 10000 : 400),
                    "connection %llu: the other end of its pipe failed, and it goes on",
                    (unsigned long long)c->number);
    }
}

static bool has_no_memory(void) {
    weir__backend *backend = app.loop->backend;
    return sim.config.epoll ? weir__epoll_of(backend)->has_no_memory : weir__uring_of(backend)->has_no_memory;
}

/* The loop would sleep: could the reserve help somebody? */
void check_reserve(const weir_pool_stats *stats) {
    /* Where an allocation has failed, it is tried again with the next tick. */
    sim_require(stats->parked_streams == 0 || stats->buffers_posted + stats->buffers_filling > 0 ||
                    stats->budget_bytes - stats->used_bytes < 4096 || has_no_memory(),
                "the loop sleeps while streams wait and the reserve could carry them");
    /* Where there are buffers, those who wait do so for a block. (One that is being filled may be referred to.) */
    sim_require(sim.config.epoll || stats->parked_streams == 0 || has_no_memory() ||
                    stats->buffers_posted + stats->buffers_idle == 0 ||
                    stats->used_bytes + 4096 <= stats->budget_bytes + stats->private_bytes,
                "the loop sleeps while streams wait for a block, and buffers that nobody uses have its room");
}
