/* SPDX-License-Identifier: MIT */
#include <poll.h>

#include "sim/program.h"
#include "weir/watch.h"

/* Sockets of the application's own, which it reads and writes itself, and only hears of when. */

enum { WATCHES = 2, PATIENCE = 300 };

static struct watched {
    weir_watch *watch;
    sim_socket *near, *far;
    int fd, wanted;
    bool is_started, was_touched; /* since the last turn: what the kernel has said may be so no more */
    unsigned turns_ready;
} watched[WATCHES];

static int ready_now(const struct watched *w) {
    int events = sim_poll(w->near);
    return ((events & POLLIN) != 0 ? WEIR_WATCH_READ : 0) | ((events & POLLOUT) != 0 ? WEIR_WATCH_WRITE : 0) |
           ((events & POLLERR) != 0 ? WEIR_WATCH_ERROR : 0) | ((events & POLLHUP) != 0 ? WEIR_WATCH_HANGUP : 0);
}

static void stop_watch(struct watched *w) {
    sim_require(weir_watch_stop(w->watch) == 0, "a watch did not stop");
    w->is_started = false;
    w->turns_ready = 0;
}

static void on_ready(weir_watch *watch, int events, void *userdata) {
    struct watched *w = userdata;
    sim_require(w->watch == watch && w->is_started, "a watch fired after it was stopped");
    sim_event(SIM_EVENT_WATCH_FIRED);
    w->turns_ready = 0;
    if (events == WEIR_WATCH_FAILED) {
        sim_require(sim.faults[SIM_POLL_ENOMEM] > 0, "a watch failed for no reason");
        w->is_started = false;
        return;
    }
    sim_require(events != 0 && (events & ~(w->wanted | WEIR_WATCH_ERROR | WEIR_WATCH_HANGUP)) == 0,
                "a watch of %d fired for %d", w->wanted, events);
    sim_require(w->was_touched || (events & ~ready_now(w)) == 0, "a watch said %d, and it is %d", events,
                ready_now(w));
    if ((events & WEIR_WATCH_READ) != 0 && sim_readable(w->near) > 0 && sim_random(4) != 0) {
        sim_take(w->near, NULL, 1 + (size_t)sim_random(sim_readable(w->near)));
        w->was_touched = true;
    } else {
        stop_watch(w);
    }
}

void open_watches(void) {
    for (size_t i = 0; i < WATCHES; i++) {
        struct watched *w = &watched[i];
        *w = (struct watched){ .near = sim_stream_new(sim_random(2) == 0) };
        w->far = sim_stream_new(w->near->is_tcp);
        w->near->other = w->far;
        w->far->other = w->near;
        w->near->is_connected = w->far->is_connected = true;
        w->fd = sim_descriptor(w->near);
        sim_require(weir_watch_new(app.loop, w->fd, on_ready, w, &w->watch) == 0, "no watch");
    }
}

void act_on_watch(void) {
    struct watched *w = &watched[sim_random(WATCHES)];
    static const uint8_t bytes[64];
    switch (sim_random(5)) {
    case 0:
    case 1:
        w->wanted = (int)sim_random(4);
        w->is_started = true;
        w->turns_ready = 0;
        sim_require(weir_watch_start(w->watch, w->wanted) == 0, "a watch did not start");
        break;
    case 2:
        stop_watch(w);
        break;
    case 3:
        (void)sim_transmit(w->far, bytes, 1 + (size_t)sim_random(sizeof bytes));
        break;
    default:
        if (sim_random(8) == 0)
            sim_shut(w->far);
    }
}

/* A turn is over: what is ready has been said, or will be soon. */
void check_watches(void) {
    for (size_t i = 0; i < WATCHES; i++) {
        struct watched *w = &watched[i];
        w->was_touched = false;
        if (!w->is_started || (ready_now(w) & (w->wanted | WEIR_WATCH_ERROR | WEIR_WATCH_HANGUP)) == 0) {
            w->turns_ready = 0;
            continue;
        }
        sim_require(++w->turns_ready < (app.max_turn_events > 0 ? 10000 : PATIENCE), "a watch does not fire");
    }
}

/* They need not be stopped: the loop's close does that. */
void close_watches(void) {
    for (size_t i = 0; i < WATCHES; i++) {
        weir_watch_unref(watched[i].watch);
        sim_require(weir__sys_close(watched[i].fd) == 0, "the descriptor of a watch is not the application's");
    }
}

void stop_watches(void) {
    for (size_t i = 0; i < WATCHES; i++)
        stop_watch(&watched[i]);
}
