/* SPDX-License-Identifier: MIT */
#include "loop/loop.h"

/* What a loop tells about itself. */

void weir__reason_copy(char *reason, size_t size, const char *text) {
    if (reason == NULL || size == 0)
        return;
    size_t length = strlen(text);
    length = length < size ? length : size - 1;
    memcpy(reason, text, length);
    reason[length] = '\0';
}

WEIR_API int weir_loop_is_idle(const weir_loop *loop) {
    if (loop == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop");
    int r = weir__loop_check(loop);
    return r < 0 ? r : weir__loop_is_idle(loop);
}

WEIR_API int weir_loop_is_own_thread(const weir_loop *loop) {
    if (loop == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop");
    if (weir__fork_is_child(loop->generation))
        return -ECHILD;
    uintptr_t owner = atomic_load_explicit(&loop->owner, memory_order_relaxed);
    return owner == 0 || owner == weir__sys_thread();
}

WEIR_API int64_t weir_loop_get_now(const weir_loop *loop) {
    if (loop == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop");
    int r = weir__loop_check(loop);
    return r < 0 ? r : weir__loop_now(loop);
}

WEIR_API weir_pool *weir_loop_get_pool(weir_loop *loop) {
    return loop != NULL ? loop->pool : NULL;
}

WEIR_API int weir_loop_get_info(const weir_loop *loop, weir_loop_info *info) {
    size_t size = info != NULL ? info->size : 0;
    if (loop == NULL || size < sizeof *info)
        return WEIR__MISTAKE(-EINVAL, "no loop, no info, or a wrong size");
    int r = weir__loop_check(loop);
    if (r < 0)
        return r;
    memset(info, 0, size);
    info->size = size;
    info->backend = loop->backend->mode;
    info->asked = loop->asked;
    info->features = loop->backend->features;
    const char *demoted = loop->backend->demoted;
    weir__reason_copy(info->reason, sizeof info->reason, demoted != NULL ? demoted : loop->reason);
    return 0;
}

WEIR_API int weir_loop_get_stats(const weir_loop *loop, weir_loop_stats *stats) {
    size_t size = stats != NULL ? stats->size : 0;
    if (loop == NULL || size < sizeof *stats)
        return WEIR__MISTAKE(-EINVAL, "no loop, no statistics, or a wrong size");
    int r = weir__loop_check(loop);
    if (r < 0)
        return r;
    const weir__backend_stats *kernel = &loop->backend->stats;
    memset(stats, 0, size);
    stats->size = size;
    stats->turns = loop->turns;
    stats->enters = kernel->enters;
    stats->completions = kernel->completions;
    stats->overflows = kernel->overflows;
    stats->rearms = kernel->rearms;
    stats->slices = kernel->slices;
    stats->bytes_in = kernel->bytes_in;
    stats->bytes_out = loop->bytes_out;
    stats->bytes_copied = weir__pool_copied(loop->pool);
    stats->accepted = loop->accepted;
    stats->accept_stalls = loop->accept_stalls;
    stats->posts = loop->posts_run;
    stats->wakes = atomic_load(&loop->waker->wakes);
    stats->spins = loop->spin.spins;
    stats->spins_paid = loop->spin.spins_paid;
    stats->spun_ns = loop->spin.spun_ns;
    stats->streams_open = loop->streams_open;
    stats->streams_unstarted = loop->streams_unstarted;
    stats->listeners_open = loop->listeners_open;
    stats->timers_started = loop->timers_started;
    stats->watches_started = loop->watches_started;
    stats->signals_started = loop->signals_started;
    return 0;
}
