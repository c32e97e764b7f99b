/* SPDX-License-Identifier: MIT */
#include <stdlib.h>

#include "sim/program.h"

/* The peers beyond the sockets: who comes, what they write, read and end, and when both sides are done. */

/* ---- connections ------------------------------------------------------------------------------------ */

void use(connection *c, bool is_used) {
    if (is_used == c->is_used)
        return;
    c->is_used = is_used;
    if (is_used) {
        c->place = app.used_count++;
        app.used[c->place] = c;
    } else {
        connection *last = app.used[--app.used_count];
        app.used[c->place] = last;
        last->place = c->place;
    }
}

connection *connection_new(enum role role) {
    if (app.used_count >= sim.config.connections || app.all_count == MOST_EVER)
        return NULL;
    connection *c = app.all[app.all_count++] = calloc(1, sizeof *c);
    *c = (connection){ .number = ++app.numbers, .role = role };
    use(c, true);
    c->in_seed = c->number * 2;
    c->out_seed = role == ECHO ? c->in_seed : c->in_seed + 1;
    c->peer_limit = sim_random((uint64_t)1 << (4 + sim_random(16)));
    c->peer_is_slow = sim_random(4) == 0;
    c->peer_is_dead = sim_random(24) == 0;
    c->peer_waits = (role == SOURCE || role == SINK) && sim_random(4) == 0;
    return c;
}

/* One of those that are going on, or NULL. */
connection *any_connection(void) {
    return app.used_count > 0 ? app.used[sim_random(app.used_count)] : NULL;
}

/* A peer comes. */
static void come(void) {
    connection *c = connection_new((enum role)sim_random(FORWARD));
    if (c == NULL)
        return;
    c->socket = sim_stream_new(true);
    c->socket->peer = c;
    const weir__address *address =
        app.extras > 0 && sim_random(3) == 0 ? &app.extra_address : &app.address; /* which may have gone */
    int r = sim_connect(c->socket, (const struct sockaddr *)&address->storage, address->length);
    if (r < 0) {
        sim_close_socket(c->socket);
        use(c, false);
        return;
    }
    sim_note("connection %llu (%s): came", (unsigned long long)c->number, role_names[c->role]);
}

/* ---- what they do ------------------------------------------------------------------------------------ */

static void peer_reset(connection *c) {
    sim_note("connection %llu: the peer resets", (unsigned long long)c->number);
    sim_reset(c->socket);
    sim_take(c->socket, NULL, sim_readable(c->socket));
    c->peer_gone = c->peer_was_reset = true;
}

static bool peer_read(connection *c) {
    static uint8_t bytes[1 << 16];
    size_t size = sim_readable(c->socket);
    if (size > 0) {
        size = size > sizeof bytes ? sizeof bytes : size;
        if (!sim.is_calm)
            size = 1 + (size_t)sim_random(size);
        sim_take(c->socket, bytes, size);
        if (c->ours != NULL && !c->ours->is_shut) { /* else it reads what is left */
            c->peer_took_at = sim.now_ns;
            c->peer_took += size;
        }
        check_sent(c, bytes, size);
        return true;
    }
    if (c->socket->is_reset) {
        c->peer_gone = c->peer_was_reset = true;
        return true;
    }
    if (c->socket->has_ended && !c->peer_saw_end) {
        c->peer_saw_end = true;
        note_piped(c);
        notice_ends(); /* it may be the loop's sleep in which peers do something */
        bool is_over = c->stream == NULL || weir_stream_get_state(c->stream) == WEIR_STREAM_CLOSED;
        sim_require(c->is_shut || c->is_closing || is_over || !is_end_honest(c),
                    "connection %llu: an end that nobody asked for", (unsigned long long)c->number);
        /* The application ended its half: nothing that it wrote may be missing. */
        sim_require(c->peer_read == c->app_wrote || !is_end_honest(c),
                    "connection %llu (%s): the end came after %llu of %llu bytes", (unsigned long long)c->number,
                    role_names[c->role], (unsigned long long)c->peer_read, (unsigned long long)c->app_wrote);
        return true;
    }
    return false;
}

static bool peer_write(connection *c) {
    static uint8_t bytes[1 << 14];
    if (c->peer_shut || !c->socket->is_connected)
        return false;
    if (c->peer_wrote >= c->peer_limit && c->peer_waits && c->is_closing && !c->peer_saw_end)
        return false;
    if (c->peer_wrote >= c->peer_limit || c->peer_saw_end) {
        sim_shut(c->socket);
        c->peer_shut = true;
        return true;
    }
    const sim_socket *far = c->socket->other;
    if (far != NULL && !c->socket->has_error && sim_readable(far) >= far->room)
        return false;
    size_t size = 1 + (size_t)sim_random((uint64_t)1 << sim_random(15));
    if (size > c->peer_limit - c->peer_wrote)
        size = (size_t)(c->peer_limit - c->peer_wrote);
    test_fill(c->in_seed, c->peer_wrote, bytes, size);
    int r = sim_transmit(c->socket, bytes, size);
    if (r > 0)
        c->peer_wrote += (uint64_t)r;
    if (r > 0 && c->socket->is_tcp && c->socket->other != NULL && sim_fault(SIM_URGENT))
        sim_urge(c->socket->other);
    if (r == -EPIPE || r == -ECONNRESET)
        c->peer_gone = c->peer_was_reset = true;
    return r != -EAGAIN;
}

static bool peer_act(connection *c) {
    if (c->socket == NULL) { /* dialled: is it there yet? */
        for (unsigned i = 0; i < app.upstream->pending_count; i++)
            if (app.upstream->pending[i]->peer == c) {
                c->socket = sim_accept(app.upstream);
                connection *first = c->socket->peer;
                if (first != c) { /* they come in order; give it to its own */
                    first->socket = c->socket;
                    c->socket = NULL;
                }
                return true;
            }
        return false;
    }
    if (c->peer_gone || (c->peer_is_dead && c->peer_wrote >= c->peer_limit / 2))
        return false;
    if (sim_random(200) == 0 && sim_fault(SIM_RESET)) {
        peer_reset(c);
        return true;
    }
    if (c->peer_is_slow && !sim.is_calm && sim_random(4) != 0)
        return false;
    bool did = sim_random(2) == 0 ? peer_read(c) || peer_write(c) : peer_write(c) || peer_read(c);
    if (!c->peer_gone && c->peer_shut && c->peer_saw_end && sim_readable(c->socket) == 0) {
        sim_close_socket(c->socket);
        c->peer_gone = true;
        did = true;
    }
    return did;
}

/* A connection that both sides are done with makes place for another. */
static void reap(connection *c) {
    bool never_came = !c->is_started && !c->is_dialled;
    if (c->is_held || (c->is_started && c->closes == 0))
        return;
    bool is_left = c->peer_is_dead && c->socket != NULL && c->socket->other == NULL;
    if (never_came && !c->peer_gone && !is_left)
        return;
    if (c->socket != NULL && !c->peer_gone && !c->peer_is_dead)
        return;
    if (c->is_started && !c->was_aborted && !c->peer_was_reset && c->socket != NULL &&
        (c->reason == WEIR_CLOSE_LOCAL || c->reason == WEIR_CLOSE_PEER))
        sim_require(c->peer_read == c->app_wrote, "connection %llu: it ended well, and %llu of %llu bytes came",
                    (unsigned long long)c->number, (unsigned long long)c->peer_read,
                    (unsigned long long)c->app_wrote);
    if (c->socket != NULL && !c->socket->is_freed)
        sim_close_socket(c->socket);
    if (c->partner != NULL)
        c->partner->partner = NULL, c->partner->role = c->partner->role == FORWARD ? SINK : c->partner->role;
    use(c, false);
}

bool sim_world_step(void) {
    if (app.loop == NULL)
        return false;
    sim.steps++;
    if (!app.no_new && sim_random(12) == 0)
        come();
    bool did = false;
    app.is_outside = true;
    size_t count = app.used_count, first = count > 0 ? (size_t)sim_random(count) : 0;
    for (size_t i = 0; i < count && app.used_count > 0 && !did; i++) {
        connection *c = app.used[(first + i) % app.used_count];
        did = peer_act(c);
        reap(c);
    }
    app.is_outside = false;
    sim.now_ns += (int64_t)sim_random(20000);
    return did;
}

void sim_between(sim_socket *socket) {
    if (app.loop == NULL)
        return;
    if (sim.config.epoll && sim_fault(SIM_ACT_BETWEEN)) {
        connection *c = sim_random(2) == 0 ? socket->peer : any_connection();
        if (c != NULL && c->is_used && c->socket != NULL && !c->peer_gone && !c->peer_is_dead)
            (void)peer_write(c);
    }
    if (!sim_fault(SIM_RESET_BETWEEN))
        return;
    connection *c = sim_random(2) == 0 ? socket->peer : any_connection();
    if (c != NULL && c->is_used && c->socket != NULL && !c->peer_gone)
        peer_reset(c);
}
