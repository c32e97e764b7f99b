/* SPDX-License-Identifier: MIT */
#include "sim/program.h"
#include "weir/signal.h"

/* Two of the application's handles that want to hear the process's signal. */

enum { HANDLES = 2, PATIENCE = 300 };

static unsigned turns_pending;

static struct handle {
    weir_signal *signal;
    bool is_started;
} handles[HANDLES];

/* ---- the application -------------------------------------------------------------------------------- */

static void stop(struct handle *h) {
    sim_require(weir_signal_stop(h->signal) == 0, "a signal did not stop");
    h->is_started = false;
}

static void on_signal(weir_signal *signal, int number, void *userdata) {
    struct handle *h = userdata;
    sim_require(h->signal == signal && number == SIM_SIGNAL && h->is_started,
                "a signal was heard after it was stopped");
    sim_event(SIM_EVENT_SIGNAL_HEARD);
    turns_pending = 0;
    if (sim_random(4) == 0)
        stop(h);
}

void open_signals(void) {
    turns_pending = 0;
    sim_signals_begin();
    for (size_t i = 0; i < HANDLES; i++) {
        struct handle *h = &handles[i];
        *h = (struct handle){ 0 };
        sim_require(weir_signal_new(app.loop, SIM_SIGNAL, on_signal, h, &h->signal) == 0, "no signal");
    }
}

void act_on_signal(void) {
    struct handle *h = &handles[sim_random(HANDLES)];
    switch (sim_random(4)) {
    case 0:
        stop(h);
        break;
    case 1:
        if (sim_signal_is_blocked())
            sim_raise();
        break;
    default:
        h->is_started = weir_signal_start(h->signal) == 0 || h->is_started;
    }
}

/* A turn is over: what is pending is heard soon, and while somebody is to hear it, it is blocked; else it is not. */
void check_signals(void) {
    bool is_wanted = false;
    for (size_t i = 0; i < HANDLES; i++)
        is_wanted |= handles[i].is_started;
    /* A poll that failed has stopped it, of which nobody is told. */
    bool may_have_stopped = sim.faults[SIM_POLL_ENOMEM] > 0;
    sim_require(sim_signal_is_blocked() == is_wanted || may_have_stopped, "a signal is %sblocked, and %s",
                sim_signal_is_blocked() ? "" : "not ", is_wanted ? "is to be heard" : "nobody wants it");
    bool waits = sim_signal_is_pending() && is_wanted && !may_have_stopped;
    turns_pending = waits ? turns_pending + 1 : 0;
    sim_require(turns_pending < (app.max_turn_events > 0 ? 10000 : PATIENCE), "a signal is not heard");
}

/* They need not be stopped: the loop's close does that, and leaves the mask as it was. */
void close_signals(void) {
    for (size_t i = 0; i < HANDLES; i++)
        weir_signal_unref(handles[i].signal);
    sim_require(!sim_signal_is_blocked(), "the loop is closed, and a signal is blocked still");
}
