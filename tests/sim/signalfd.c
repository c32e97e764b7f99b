/* SPDX-License-Identifier: MIT */
#include <signal.h>
#include <string.h>
#include <sys/signalfd.h>

#include "sim/world.h"

#include "edge/sys.h"

/* The one signal that this process may have. Raised while it is not blocked it would be the end of the process. */

static bool is_blocked, is_pending;

void sim_signals_begin(void) {
    is_blocked = is_pending = false;
}

bool sim_signal_is_pending(void) {
    return is_pending;
}

bool sim_signal_is_blocked(void) {
    return is_blocked;
}

void sim_raise(void) {
    sim_require(is_blocked, "a signal ends the process");
    is_pending = true;
    sim_signalfds_changed();
}

int weir__sys_signalfd(int number) {
    sim_require(number == SIM_SIGNAL, "a signalfd for %d", number);
    if (sim_fault(SIM_SOCKET_ENOMEM))
        return -ENOMEM;
    sim_socket *socket = sim_signalfd_new();
    int fd = sim_descriptor(socket);
    if (fd < 0)
        socket->is_freed = true;
    return fd;
}

/* The signal goes to the first that reads it. */
int weir__sys_read(int fd, void *data, size_t size) {
    const sim_socket *socket = sim_socket_of(fd);
    sim_require(socket != NULL && socket->kind == SIM_SIGNALFD, "descriptor %d was read, which is no signalfd",
                fd);
    sim_require(size == sizeof(struct signalfd_siginfo), "a signal was read into %zu bytes", size);
    if (!is_pending)
        return -EAGAIN;
    is_pending = false;
    memset(data, 0, size);
    return (int)size;
}

int weir__sys_block_signal(int number) {
    bool was_blocked = is_blocked;
    sim_require(number == SIM_SIGNAL, "signal %d was blocked", number);
    is_blocked = true;
    return was_blocked;
}

int weir__sys_unblock_signal(int number) {
    sim_require(number == SIM_SIGNAL && is_blocked, "signal %d was unblocked", number);
    is_blocked = is_pending = false;
    return 0;
}
