/* SPDX-License-Identifier: MIT */
/*
 * Many connections that mostly do nothing, for what they cost the server in memory. What they do, and when, is said
 * in lines on stdin by whoever measures; each is answered by a line when it is done and the server has come to rest.
 */
#include "load.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void say(struct load *load, const char *state) {
    load_settle(load->server);
    printf("{\"state\": \"%s\"}\n", state);
    fflush(stdout);
}

static bool number_after(const char *line, const char *word, size_t *number) {
    size_t length = strlen(word);
    if (strncmp(line, word, length) != 0 || line[length] != ' ')
        return false;
    char *end = NULL;
    unsigned long long value = strtoull(line + length + 1, &end, 10);
    *number = (size_t)value;
    return end != line + length + 1 && *end == '\0' && value > 0 && value <= 1 << 30;
}

static void each(struct load *load, size_t bytes) {
    load->now_ns = load->progress_ns = load_now_ns(CLOCK_MONOTONIC);
    load->stopping = true; /* what comes back is not followed by another */
    for (unsigned i = 0; i < load->connection_count; i++)
        load_flow_send(load, i, bytes);
    load_drain(load);
}

void load_held(struct load *load) {
    char line[64];
    say(load, "connected");
    while (fgets(line, sizeof line, stdin) != NULL) {
        size_t bytes = 0;
        line[strcspn(line, "\n")] = '\0';
        if (strcmp(line, "quit") == 0)
            break;
        bool burst = load->options->workload == LOAD_IDLE && number_after(line, "burst", &bytes);
        bool one_way = load->options->workload == LOAD_HOLD && number_after(line, "send", &bytes);
        if (!burst && !one_way)
            load_fail(NULL, "'%s' is no order for this workload", line);
        each(load, bytes);
        say(load, burst ? "burst" : "sent");
    }
    load_flow_close(load);
    say(load, "closed");
}
