/* SPDX-License-Identifier: MIT */
#include "weir/signal.h"

#include <poll.h>
#include <signal.h>
#include <sys/signalfd.h>

#include "loop/poller.h"

/*
 * A signal is blocked by the first that is started for it and unblocked by the last that is stopped, among those of one
 * loop and thread: one that stops while another goes on leaves it the duty to unblock.
 */

struct weir_signal {
    weir__poller poller; /* of a signalfd of its own, while it is started */
    weir__link started;  /* loop.signals, while it is */
    int number;
    bool unblocks;    /* was not blocked before */
    uintptr_t thread; /* where it was blocked */
    weir_signal_fn function;
    void *userdata;
};

static weir_signal *to_signal(weir__poller *poller) {
    return WEIR__CONTAINER(poller, weir_signal, poller);
}

/* Also where glibc has some for itself. */
static bool is_heard(int number) {
    switch (number) {
    case SIGKILL: /* cannot be blocked */
    case SIGSTOP:
    case SIGSEGV: /* the thread that they are about cannot go on */
    case SIGBUS:
    case SIGFPE:
    case SIGILL:
    case SIGTRAP:
    case SIGSYS:
        return false;
    default:
        return (number > 0 && number < 32) || (number >= SIGRTMIN && number <= SIGRTMAX);
    }
}

static void ready(weir__poller *poller, int events) {
    weir_signal *signal = to_signal(poller);
    struct signalfd_siginfo info;
    /* One, and the next one in the next turn: the callback may stop it. None: somebody else has heard it. */
    if (events > 0 && weir__sys_read(poller->fd, &info, sizeof info) == (int)sizeof info)
        signal->function(signal, signal->number, signal->userdata);
}

static weir_signal *find_heir(const weir_signal *signal) {
    const weir__link *signals = &signal->poller.loop->signals;
    for (weir__link *link = signals->next; link != signals; link = link->next) {
        weir_signal *other = WEIR__CONTAINER(link, weir_signal, started);
        if (other->number == signal->number && other->thread == signal->thread)
            return other;
    }
    return NULL;
}

static void stopped(weir__poller *poller) {
    weir_signal *signal = to_signal(poller);
    weir__list_remove(&signal->started);
    poller->loop->signals_started--;
    weir__loop_close_fd(poller->loop, poller->fd); /* a poll that is under way holds the file, and is taken back */
    if (!signal->unblocks)
        return;
    weir_signal *heir = find_heir(signal);
    if (heir != NULL)
        heir->unblocks = true;
    else if (signal->thread == weir__sys_thread())
        (void)weir__sys_unblock_signal(signal->number);
}

static const weir__poller_verbs verbs = { .ready = ready, .stopped = stopped, .size = sizeof(weir_signal) };

WEIR_API int weir_signal_new(weir_loop *loop, int number, weir_signal_fn function, void *userdata,
                             weir_signal **ret_signal) {
    if (loop == NULL || function == NULL || ret_signal == NULL || !is_heard(number))
        return WEIR__MISTAKE(-EINVAL, "no loop, no function, nowhere to put it, or no signal that can be heard");
    int r = weir__loop_check_open(loop);
    if (r < 0)
        return r;
    weir__poller *poller;
    r = weir__poller_new(loop, &verbs, &poller);
    if (r < 0)
        return r;
    weir_signal *signal = to_signal(poller);
    weir__list_init(&signal->started);
    signal->number = number;
    signal->function = function;
    signal->userdata = userdata;
    *ret_signal = signal;
    return 0;
}

WEIR_API weir_signal *weir_signal_ref(weir_signal *signal) {
    if (signal != NULL && !weir__fork_is_child(signal->poller.loop->generation))
        weir__poller_ref(&signal->poller);
    return signal;
}

WEIR_API weir_signal *weir_signal_unref(weir_signal *signal) {
    if (signal != NULL && !weir__fork_is_child(signal->poller.loop->generation))
        weir__poller_unref(&signal->poller);
    return NULL;
}

WEIR_API int weir_signal_start(weir_signal *signal) {
    if (signal == NULL)
        return WEIR__MISTAKE(-EINVAL, "no signal");
    weir_loop *loop = signal->poller.loop;
    int r = weir__loop_check(loop);
    if (r < 0)
        return r;
    if (loop->phase >= WEIR__PHASE_CLOSING)
        return -ESHUTDOWN;
    if (signal->poller.is_started)
        return 0;
    int was_blocked = weir__sys_block_signal(signal->number);
    if (was_blocked < 0)
        return was_blocked;
    int fd = weir__sys_signalfd(signal->number);
    if (fd < 0) {
        if (was_blocked == 0)
            (void)weir__sys_unblock_signal(signal->number);
        return fd;
    }
    signal->unblocks = was_blocked == 0;
    signal->thread = weir__sys_thread();
    weir__list_append(&loop->signals, &signal->started);
    loop->signals_started++;
    weir__poller_start(&signal->poller, fd, POLLIN);
    return 0;
}

WEIR_API int weir_signal_stop(weir_signal *signal) {
    if (signal == NULL)
        return WEIR__MISTAKE(-EINVAL, "no signal");
    int r = weir__loop_check(signal->poller.loop);
    if (r < 0)
        return r;
    weir__poller_stop(&signal->poller);
    return 0;
}
