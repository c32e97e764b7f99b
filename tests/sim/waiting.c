/* SPDX-License-Identifier: MIT */
#include "sim/program.h"

/*
 * What waits in the library waits in the simulated kernel, too, if that is io_uring. Over epoll no call is made for what waits, so
 * the library is looked at.
 *
 * The backend says who is starved, and that is looked at again and again: who was found starved at an earlier look is to
 * be served before those who were not.
 */

/* In no order with the others, until it has been served. */
static const uint64_t anywhere = UINT64_MAX;

static bool is_starved(const connection *c) {
    const weir__op *in = &c->stream->in;
    return app.loop->backend->verbs->is_starved(in) && !is_anew((uint64_t)(uintptr_t)in);
}

static bool has_stream(const connection *c) {
    return c->is_started && c->closes == 0 && c->stream != NULL;
}

void forget_starved(connection *c) {
    sim_ring_forget((uint64_t)(uintptr_t)&c->stream->in);
    c->starved_in = anywhere; /* it may keep its place, too */
}

void note_starved(void) {
    if (!sim.config.epoll || app.loop == NULL)
        return;
    app.looks++;
    for (size_t i = 0; i < app.used_count; i++) {
        connection *c = app.used[i];
        if (!has_stream(c) || !app.loop->backend->verbs->is_starved(&c->stream->in))
            c->starved_in = 0;
        else if (c->starved_in == 0)
            c->starved_in = is_anew((uint64_t)(uintptr_t)&c->stream->in) ? anywhere : app.looks;
    }
}

void sim_received(const sim_socket *socket) {
    connection *c = socket->peer;
    if (app.loop == NULL || c == NULL || !has_stream(c) || c->starved_in == anywhere)
        return;
    if (is_anew((uint64_t)(uintptr_t)&c->stream->in))
        return;
    if (c->starved_in > 0)
        sim_event(SIM_EVENT_RECEIVED_WHILE_STARVED);
    for (size_t i = 0; i < app.used_count; i++) {
        const connection *other = app.used[i];
        bool is_earlier = other->starved_in > 0 && other->starved_in != anywhere &&
                          (c->starved_in == 0 || other->starved_in < c->starved_in);
        sim_require(!is_earlier || !has_stream(other) || !is_starved(other),
                    "connection %llu was served, and connection %llu starved before it",
                    (unsigned long long)c->number, (unsigned long long)other->number);
    }
    c->starved_in = 0; /* it may starve again in this turn, behind the others */
}

static bool is_open(const connection *c) {
    return has_stream(c) && !c->is_closing && !c->stream->has_failed && c->stream->output_error == 0 &&
           weir_stream_get_state(c->stream) == WEIR_STREAM_OPEN;
}

static uint64_t mark_of(const connection *c, int option) {
    return (uint64_t)c->options[option];
}

/* Somebody holds back what comes to @c, which is open. What a pipe uses up of a grant is noted later: it is asked for. */
static bool is_held(const connection *c) {
    return c->is_paused || c->stream->credit == 0 ||
           (c->pipe_to != NULL &&
            c->pipe_to->stream->queue.bytes > mark_of(c->pipe_to, WEIR_OPTION_QUEUE_HIGH_BYTES));
}

/* Nobody does, and somebody wants it. */
static bool is_wanted(const connection *c) {
    const connection *to = c->pipe_to;
    if (is_held(c) || c->stream->has_ended)
        return false;
    return to == NULL ? c->callbacks->on_data != NULL
                      : is_open(to) && !to->is_shut &&
                            to->stream->queue.bytes <= mark_of(to, WEIR_OPTION_QUEUE_LOW_BYTES) &&
                            to->stream->queue.count < 64;
}

/* What is wanted is received for, and what is held back is not, unless what was under way before has not been taken back yet. */
static void check_received_for(const connection *c) {
    const weir__op *in = &c->stream->in;
    if (in->cancel != 0)
        return;
    sim_require(!is_wanted(c) || in->kind == WEIR__OP_RECEIVE,
                "connection %llu: the loop sleeps, and does not receive for it", (unsigned long long)c->number);
    sim_require(!is_held(c) || in->kind != WEIR__OP_RECEIVE,
                "connection %llu: the loop sleeps, and receives for it although it is held back",
                (unsigned long long)c->number);
}

/* An operation that waits is one that has been tried, and what it waits for would be a change. */
void check_forgotten(void) {
    for (size_t i = 0; i < app.used_count; i++)
        if (is_open(app.used[i]))
            check_received_for(app.used[i]);
    for (size_t i = 0; i < app.used_count && sim.config.epoll; i++) {
        const connection *c = app.used[i];
        if (!has_stream(c))
            continue;
        bool may_receive = sim_readable(c->ours) > 0 || c->ours->has_ended || c->ours->has_error;
        sim_require(c->stream->in.kind != WEIR__OP_RECEIVE || !may_receive ||
                        app.loop->backend->verbs->is_starved(&c->stream->in),
                    "connection %llu: the loop sleeps, and there is something to receive",
                    (unsigned long long)c->number);
        sim_require(c->stream->out.kind != WEIR__OP_SEND || !sim_has_much_room(c->ours),
                    "connection %llu: the loop sleeps, and there is room to send", (unsigned long long)c->number);
    }
}
