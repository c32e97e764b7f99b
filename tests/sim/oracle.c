/* SPDX-License-Identifier: MIT */
#include <stdio.h>

#include "sim/program.h"

#include "backend/uring.h"

/* What must be true of the application, the library and the peers at any time. */

/* Why it ended must be something that happened. */
void check_reason(const connection *c, int reason, int error) {
    bool has_gone = c->peer_gone || c->peer_was_reset;
    bool lacked_memory =
        sim.faults[SIM_NO_MEMORY] + sim.faults[SIM_REQUEST_ENOMEM] + sim.faults[SIM_POLL_ENOMEM] > 0;
    switch (reason) {
    case WEIR_CLOSE_LOCAL:
    case WEIR_CLOSE_PEER:
        sim_require(error == 0 && !c->was_aborted, "a good end with an error");
        sim_require(c->is_closing, "a stream closed itself");
        sim_require(reason == WEIR_CLOSE_LOCAL || c->peer_shut || has_gone, "an end by a peer that did not end");
        sim_require(reason == WEIR_CLOSE_PEER || !c->closed_after_end,
                    "the peer ended first, and it is not told so");
        break;
    case WEIR_CLOSE_ABORT:
        sim_require(error == 0 && c->was_aborted, "an abort that nobody asked for");
        break;
    case WEIR_CLOSE_CONNECT:
        sim_require(error < 0 && c->is_dialled && !c->open_told, "a failed connect of what was connected");
        break;
    case WEIR_CLOSE_LINGER:
        sim_require(error == -ETIMEDOUT && c->is_closing, "a linger timeout of a stream that does not close");
        sim_require(c->closing_at == 0 || sim.now_ns - c->closing_at + 20 * TIMER_SLACK >= c->lingers_ns,
                    "connection %llu: a linger timeout %.3f ms after its close", (unsigned long long)c->number,
                    (double)(sim.now_ns - c->closing_at) / 1e6);
        sim_require(
            !c->closed_in_calm || c->peer_is_dead || app.was_dry || sim.events[SIM_EVENT_END_FORGOTTEN] > 0,
            "connection %llu: a linger timeout although the peer reads and ends", (unsigned long long)c->number);
        sim_require(c->socket == NULL || has_gone || c->socket->has_ended ||
                        c->peer_read + sim_readable(c->socket) < c->app_wrote,
                    "the peer has all, and was not told the end");
        break;
    case WEIR_CLOSE_IDLE:
        sim_require(error == -ETIMEDOUT, "an idle timeout says %s", weir_error_name(error));
        check_idle(c);
        break;
    case WEIR_CLOSE_WRITE:
        sim_require(error == -ETIMEDOUT, "a write timeout says %s", weir_error_name(error));
        check_write_timeout(c);
        break;
    case WEIR_CLOSE_PIPE:
        sim_require(c->is_pipe_broken && error == c->pipe_error, "the pipe's other end did not fail with %s",
                    weir_error_name(error));
        break;
    case WEIR_CLOSE_DRAIN:
        sim_require(error == 0 && is_grace_over(), "drain has not ended its grace");
        break;
    case WEIR_CLOSE_LOOP:
        sim_require(error == 0 && app.is_loop_closing, "the loop is not closing");
        break;
    default:
        sim_require(reason == WEIR_CLOSE_ERROR, "reason %d", reason);
        sim_require(((error == -ENOMEM || (error == -ENOSPC && sim.config.epoll)) && lacked_memory) ||
                        ((error == -ECONNRESET || error == -EPIPE || error == -ENOTCONN) && has_gone),
                    "connection %llu: closed with %s, for no reason", (unsigned long long)c->number,
                    weir_error_name(error));
    }
    sim_require(!c->is_pipe_broken || (reason != WEIR_CLOSE_LOCAL && reason != WEIR_CLOSE_PEER),
                "it ended well, and the other end of its pipe did not");
    sim_require(!c->is_dialled || c->open_told || reason == WEIR_CLOSE_PIPE || c->is_closing ||
                    reason == WEIR_CLOSE_CONNECT || reason == WEIR_CLOSE_LOOP || reason == WEIR_CLOSE_ERROR ||
                    reason == WEIR_CLOSE_DRAIN || c->callbacks->on_open == NULL,
                "connection %llu was never said to be open", (unsigned long long)c->number);
}

void check_timers(int64_t until, const char *what) {
    for (size_t i = 0; i < TIMERS; i++)
        sim_require(app.due[i] < 0 || app.due[i] + TIMER_SLACK >= until, "timer %zu: %s", i, what);
}

/* A Unix socket that ends without grace looks to its peer like one that ended well. */
bool is_end_honest(const connection *c) {
    if (!app.is_unix)
        return true;
    if (c->was_aborted || !c->is_started)
        return false;
    return c->closes == 0 ? !c->stream->has_failed && c->stream->output_error == 0
                          : c->reason == WEIR_CLOSE_LOCAL || c->reason == WEIR_CLOSE_PEER;
}

bool is_grace_over(void) {
    return app.is_draining && sim.now_ns >= app.drain_until;
}

/* What is lent is as much as was given and has not come back, and is in the queues of streams that are open. */
static void check_lent(void) {
    uint64_t count = 0, open = 0;
    for (size_t i = 0; i < MOST_EXTERNAL && i < app.external_given; i++)
        count += app.external[i].memory != NULL;
    for (size_t i = 0; i < app.used_count; i++)
        open += app.used[i]->closes == 0 ? app.used[i]->lent : 0;
    sim_require(count == app.external_given - app.external_released && open <= count,
                "%llu pieces of external memory are lent, of %llu given and %llu released",
                (unsigned long long)count, (unsigned long long)app.external_given,
                (unsigned long long)app.external_released);
}

/* What the kernel has taken since a drain is owed has left the queue above its low mark, else there would have been one. */
static void check_drains(void) {
    for (size_t i = 0; i < app.used_count; i++) {
        const connection *c = app.used[i];
        if (!c->is_full || !c->is_started || c->stream == NULL || c->closes > 0 || c->is_closing)
            continue;
        const weir_stream *stream = c->stream;
        sim_require(stream->has_failed || stream->output_error != 0 || stream->state != WEIR_STREAM_OPEN ||
                        stream->bytes_out <= c->sent_before || stream->queue.count > 64 ||
                        stream->queue.bytes > (uint64_t)c->options[WEIR_OPTION_QUEUE_LOW_BYTES],
                    "connection %llu: the queue has fallen to %llu bytes, and no drain came",
                    (unsigned long long)c->number, (unsigned long long)stream->queue.bytes);
    }
}

void check_world(void) {
    notice_silent_ends();
    weir_pool *pool = weir_loop_get_pool(app.loop);
    weir_pool_stats stats = { .size = sizeof stats };
    sim_require(weir_pool_get_stats(pool, &stats) == 0, "no statistics");
    if (app.checks++ % 8 == 0) /* it looks at every buffer */
        sim_require(weir__pool_is_consistent(pool), "the pool's account is not right");
    sim_require(stats.used_bytes <= stats.budget_bytes, "the budget is exceeded");
    /* By a sum of our own: what was mapped, and of what was allocated at least the blocks. */
    uint64_t blocks = stats.block_bytes + stats.private_bytes;
    sim_require(sim.mapped_bytes + blocks == stats.used_bytes && blocks <= app.live_bytes,
                "%llu bytes are mapped and %llu allocated, and the pool says %llu, %llu of them in blocks",
                (unsigned long long)sim.mapped_bytes, (unsigned long long)app.live_bytes,
                (unsigned long long)stats.used_bytes, (unsigned long long)blocks);
    app.was_dry = app.was_dry || (sim.is_calm && stats.buffers_posted + stats.buffers_filling == 0);
    if (app.max_turn_events == 0 || app.max_turn_events >= TIMERS)
        check_timers(app.loop->now, "it is overdue");
    for (size_t i = 0; i < app.used_count; i++) {
        connection *c = app.used[i];
        if (c->is_full && c->is_started && c->stream != NULL && c->closes == 0 && !c->is_closing &&
            c->stream->queue.bytes == 0 && weir__op_is_idle(&c->stream->out) && c->stream->output_error == 0 &&
            !c->stream->has_failed)
            sim_require(++c->turns_without_drain < 8, "connection %llu: nothing is queued, and no drain comes",
                        (unsigned long long)c->number);
    }
    check_drains();
    if (app.held_count > 0)
        check_held(&app.held[sim_random(app.held_count)]);
    check_lent();
    check_limits(&stats);
}

/* A send that says nothing of its success wakes nobody, so nobody may wait for what comes of it. */
static void check_silent_sends(const weir_pool_stats *stats) {
    for (size_t i = 0; i < app.used_count && !sim.config.epoll; i++) {
        const connection *c = app.used[i];
        const weir_stream *stream = c->stream;
        if (!c->is_started || c->closes > 0 || stream == NULL || stream->out.state != SILENT)
            continue;
        sim_event(SIM_EVENT_SLEPT_IN_SILENCE);
        sim_require(!stream->is_full_told && !stream->is_pipe_full && stream->flushes == NULL &&
                        !stream->wants_shutdown && !stream->wants_close && stats->parked_streams == 0 &&
                        c->lent == 0,
                    "connection %llu: the loop sleeps on a silent send, and somebody waits for what comes of it",
                    (unsigned long long)c->number);
        sim_require(stream->queue.bytes == stream->out.size,
                    "connection %llu: the loop sleeps on a silent send, and there is more to send",
                    (unsigned long long)c->number);
    }
}

/* What is queued is being sent, or is held back by a cork. */
static void check_sending(void) {
    for (size_t i = 0; i < app.used_count; i++) {
        const connection *c = app.used[i];
        const weir_stream *stream = c->stream;
        if (!c->is_started || c->closes > 0 || stream == NULL || stream->has_failed || stream->output_error != 0)
            continue;
        sim_require(stream->state != WEIR_STREAM_OPEN || stream->queue.bytes == 0 || stream->is_corked ||
                        !weir__op_is_idle(&stream->out),
                    "connection %llu: the loop sleeps, and what is queued is not being sent",
                    (unsigned long long)c->number);
    }
}

void sim_check_sleep(int64_t until) {
    if (app.loop == NULL)
        return;
    sim_require(until - sim.now_ns <= 1000000000, "a sleep that a lost wake-up would make last");
    check_timers(until, "the loop sleeps past it");
    weir_pool *pool = weir_loop_get_pool(app.loop);
    weir_pool_stats stats = { .size = sizeof stats };
    (void)weir_pool_get_stats(pool, &stats);
    sim_require(app.posted == app.ran, "the loop sleeps while a post waits");
    check_reserve(&stats);
    check_forgotten();
    check_silent_sends(&stats);
    check_sending();
    sim_require(stats.parked_streams == 0 || !weir__pool_has_returned(pool),
                "the loop sleeps while streams wait and a buffer has come back");
    sim_require(atomic_load(&app.loop->is_stopping) == 0 || app.loop->phase != WEIR__PHASE_RUNNING,
                "the loop sleeps although it was stopped");
}

void sim_worker(const sim_socket *socket) {
    sim_fail("descriptor %d: a send that waits in the kernel has got a worker thread", socket->fd);
}

const char *sim_describe(void) {
    static char text[4096];
    size_t at = 0;
    weir_pool_stats stats = { .size = sizeof stats };
    if (app.loop == NULL)
        return "";
    (void)weir_pool_get_stats(weir_loop_get_pool(app.loop), &stats);
    at += (size_t)snprintf(text + at, sizeof text - at,
                           "idle %u, posted %u, filling %u, retired %u, parked %u, used %llu of %llu, %u requests",
                           stats.buffers_idle, stats.buffers_posted, stats.buffers_filling, stats.buffers_retired,
                           stats.parked_streams, (unsigned long long)stats.used_bytes,
                           (unsigned long long)stats.budget_bytes, sim_ring_requests());
    for (size_t i = 0; i < app.all_count && at + 400 < sizeof text; i++) {
        const connection *c = app.all[i];
        if (!c->is_used)
            continue;
        at += (size_t)snprintf(
            text + at, sizeof text - at,
            "\n  connection %llu (%s)%s%s%s%s%s%s%s%s: peer wrote %llu read %llu of %llu, app read %llu; readable "
            "%zu, in %d/%d "
            "out %d/%d queue %llu staged %llu state %d",
            (unsigned long long)c->number, role_names[c->role], c->is_started ? " started" : "",
            c->is_paused ? " paused" : "", c->is_closing ? " closing" : "", c->peer_shut ? " peer-shut" : "",
            c->peer_gone ? " peer-gone" : "", c->peer_saw_end ? " peer-saw-end" : "",
            c->end_told ? " end-told" : "", c->is_full ? " full" : "", (unsigned long long)c->peer_wrote,
            (unsigned long long)c->peer_read, (unsigned long long)c->app_wrote, (unsigned long long)c->app_read,
            c->socket != NULL ? sim_readable(c->socket) : 0, c->stream ? c->stream->in.kind : -1,
            c->stream ? c->stream->in.state : -1, c->stream ? c->stream->out.kind : -1,
            c->stream ? c->stream->out.state : -1, c->stream ? (unsigned long long)c->stream->queue.bytes : 0,
            c->stream ? (unsigned long long)c->stream->staged.bytes : 0, c->stream ? c->stream->state : -1);
    }
    return text;
}
