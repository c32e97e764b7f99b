/* SPDX-License-Identifier: MIT */
#include "weir/watch.h"

#include <poll.h>

#include "loop/poller.h"

struct weir_watch {
    weir__poller poller;
    int fd;
    weir_watch_fn function;
    void *userdata;
};

static weir_watch *to_watch(weir__poller *poller) {
    return WEIR__CONTAINER(poller, weir_watch, poller);
}

static uint32_t to_poll(int events) {
    return ((events & WEIR_WATCH_READ) != 0 ? POLLIN : 0U) | ((events & WEIR_WATCH_WRITE) != 0 ? POLLOUT : 0U);
}

static int from_poll(int events) {
    if (events < 0)
        return WEIR_WATCH_FAILED;
    return ((events & POLLIN) != 0 ? WEIR_WATCH_READ : 0) | ((events & POLLOUT) != 0 ? WEIR_WATCH_WRITE : 0) |
           ((events & (POLLERR | POLLNVAL)) != 0 ? WEIR_WATCH_ERROR : 0) |
           ((events & POLLHUP) != 0 ? WEIR_WATCH_HANGUP : 0);
}

static void ready(weir__poller *poller, int events) {
    weir_watch *watch = to_watch(poller);
    watch->function(watch, from_poll(events), watch->userdata);
}

static void stopped(weir__poller *poller) {
    poller->loop->watches_started--;
}

static const weir__poller_verbs verbs = { .ready = ready, .stopped = stopped, .size = sizeof(weir_watch) };

WEIR_API int weir_watch_new(weir_loop *loop, int fd, weir_watch_fn function, void *userdata,
                            weir_watch **ret_watch) {
    if (loop == NULL || function == NULL || ret_watch == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop, no function, or nowhere to put the watch");
    int r = weir__loop_check_open(loop);
    if (r < 0)
        return r;
    if (fd < 0)
        return WEIR__MISTAKE(-EBADF, "no descriptor");
    weir__poller *poller;
    r = weir__poller_new(loop, &verbs, &poller);
    if (r < 0)
        return r;
    weir_watch *watch = to_watch(poller);
    watch->fd = fd;
    watch->function = function;
    watch->userdata = userdata;
    *ret_watch = watch;
    return 0;
}

WEIR_API weir_watch *weir_watch_ref(weir_watch *watch) {
    if (watch != NULL && !weir__fork_is_child(watch->poller.loop->generation))
        weir__poller_ref(&watch->poller);
    return watch;
}

WEIR_API weir_watch *weir_watch_unref(weir_watch *watch) {
    if (watch != NULL && !weir__fork_is_child(watch->poller.loop->generation))
        weir__poller_unref(&watch->poller);
    return NULL;
}

WEIR_API int weir_watch_start(weir_watch *watch, int events) {
    if (watch == NULL || (events & ~(WEIR_WATCH_READ | WEIR_WATCH_WRITE)) != 0)
        return WEIR__MISTAKE(-EINVAL, "no watch, or events that cannot be asked for");
    weir_loop *loop = watch->poller.loop;
    int r = weir__loop_check(loop);
    if (r < 0)
        return r;
    if (loop->phase >= WEIR__PHASE_CLOSING)
        return -ESHUTDOWN;
    loop->watches_started += !watch->poller.is_started;
    weir__poller_start(&watch->poller, watch->fd, to_poll(events));
    return 0;
}

WEIR_API int weir_watch_stop(weir_watch *watch) {
    if (watch == NULL)
        return WEIR__MISTAKE(-EINVAL, "no watch");
    int r = weir__loop_check(watch->poller.loop);
    if (r < 0)
        return r;
    weir__poller_stop(&watch->poller);
    return 0;
}
