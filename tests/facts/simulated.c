/* SPDX-License-Identifier: MIT */
#include <stdarg.h>
#include <stdio.h>

#include "facts/facts.h"
#include "sim/world.h"

/* The simulated kernel as it is when nothing rare happens: no faults, nobody outside, one seed after another. */

const char *const facts_edge = "simulated";
const unsigned facts_rounds = 100;

const fact facts_of_this_edge[] = { { 0 } };

sim_world sim;
static unsigned workers;

const char *facts_edge_missing(void) {
    return NULL;
}

void facts_edge_begin(unsigned round) {
    memset(&sim, 0, sizeof sim);
    sim.random = sim.config.seed = round + 1;
    sim.now_ns = 1000000000;
    workers = 0;
}

void facts_edge_end(void) {
    for (size_t i = 0; i < sim.socket_count; i++) {
        free(sim.sockets[i]->received.data);
        free(sim.sockets[i]->registered);
        free(sim.sockets[i]);
    }
    free(sim.sockets);
    sim.sockets = NULL;
    sim.socket_count = sim.socket_capacity = 0;
}

uint64_t sim_random(uint64_t below) {
    return below > 0 ? test_random(&sim.random) % below : 0;
}

bool sim_fault(enum sim_fault fault) {
    (void)fault;
    return false;
}

bool sim_chance(enum sim_fault fault) {
    (void)fault;
    return false;
}

void sim_event(enum sim_event event) {
    sim.events[event]++;
}

__attribute__((no_sanitize("address", "thread"))) void sim_kernel_write(void *to, const void *from, size_t size) {
    volatile uint8_t *target = to;
    const uint8_t *source = from;
    for (size_t i = 0; i < size; i++)
        target[i] = source != NULL ? source[i] : 0xDB;
}

void sim_note(const char *format, ...) {
    (void)format;
}

void sim_fail(const char *format, ...) {
    va_list arguments;
    char text[256];
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    fail_msg("seed %u: %s", (unsigned)sim.config.seed, text);
    abort();
}

bool sim_world_step(void) {
    return false;
}

void sim_other_thread(void) {
}

void sim_between(sim_socket *socket) {
    (void)socket;
}

void sim_received(const sim_socket *socket) {
    (void)socket;
}

void sim_worker(const sim_socket *socket) {
    (void)socket;
    workers++;
}

unsigned facts_edge_workers(void) {
    return workers;
}

void sim_check_sleep(int64_t until) {
    (void)until;
}

const char *sim_describe(void) {
    return "";
}
