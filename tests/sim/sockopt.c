/* SPDX-License-Identifier: MIT */
#include "sim/world.h"

#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "edge/sys.h"

/* What sockets can be asked for, by enum weir_stream_option. */
static const struct {
    int level, name, least, most, initially;
} options[SIM_OPTIONS] = {
    [1] = { IPPROTO_TCP, TCP_NODELAY, INT_MIN, INT_MAX, 0 },
    [2] = { SOL_SOCKET, SO_KEEPALIVE, INT_MIN, INT_MAX, 0 },
    [3] = { IPPROTO_TCP, TCP_KEEPIDLE, 1, 32767, 7200 },
    [4] = { IPPROTO_TCP, TCP_KEEPINTVL, 1, 32767, 75 },
    [5] = { IPPROTO_TCP, TCP_KEEPCNT, 1, 127, 9 },
    [6] = { IPPROTO_TCP, TCP_USER_TIMEOUT, 0, INT_MAX, 0 },
    [7] = { SOL_SOCKET, SO_SNDBUF, INT_MIN, INT_MAX, 16 << 10 },
    [8] = { SOL_SOCKET, SO_RCVBUF, INT_MIN, INT_MAX, 128 << 10 },
};

void sim_begin_options(sim_socket *socket) {
    for (int i = 0; i < SIM_OPTIONS; i++)
        socket->options[i] = options[i].initially;
}

/* Which one of these it is; 0: none that the socket has. */
static int find_option(const sim_socket *socket, int level, int name) {
    for (int i = 1; i < SIM_OPTIONS && (level == SOL_SOCKET || socket->is_tcp); i++)
        if (options[i].level == level && options[i].name == name)
            return i;
    return 0;
}

int weir__sys_setsockopt(int fd, int level, int name, int value) {
    enum { MOST_BYTES = 208 << 10, LEAST_BYTES = 4608 };
    sim_socket *socket = sim_socket_of(fd);
    if (socket == NULL)
        return -EBADF;
    int i = find_option(socket, level, name);
    if (i == 0)
        return 0; /* others do nothing here */
    if (value < options[i].least || value > options[i].most)
        return -EINVAL;
    if (i >= 7) {
        value = 2 * (value > MOST_BYTES ? MOST_BYTES : value);
        value = value < LEAST_BYTES ? LEAST_BYTES : value;
    }
    socket->options[i] = i <= 2 ? value != 0 : value;
    return 0;
}

int weir__sys_getsockopt(int fd, int level, int name, int *ret_value) {
    sim_socket *socket = sim_socket_of(fd);
    if (socket == NULL)
        return -EBADF;
    sim_settle(socket);
    if (level == SOL_SOCKET && name == SO_ERROR) {
        *ret_value = -sim_take_error(socket);
    } else if (level == SOL_SOCKET && name == SO_TYPE) {
        *ret_value = SOCK_STREAM;
    } else if (level == SOL_SOCKET && name == SO_DOMAIN) {
        *ret_value = socket->is_tcp ? AF_INET : AF_UNIX;
    } else if (level == SOL_SOCKET && name == SO_PROTOCOL) {
        *ret_value = socket->is_tcp ? IPPROTO_TCP : 0;
    } else if (level == SOL_SOCKET && name == SO_ACCEPTCONN) {
        *ret_value = socket->kind == SIM_LISTENER;
    } else {
        int i = find_option(socket, level, name);
        if (i == 0)
            return -ENOPROTOOPT;
        *ret_value = socket->options[i];
    }
    return 0;
}
