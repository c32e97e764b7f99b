/* SPDX-License-Identifier: MIT */
/*
 * What a server really read and wrote. In a slice of `sink` or `source` the sockets' buffers, megabytes for each
 * connection, fill or empty faster than the server works: who counts at the load's end counts the kernel's buffers,
 * and finds all servers equally fast. The kernel tells (sock_diag) what came to each of the server's sockets, what of
 * it is unread, and what was written to it: the sum is what passed through the server's calls.
 *
 * Each socket is asked for by its addresses. To have them listed would take one request, but the kernel then walks
 * the table of all sockets of the machine, for tens of milliseconds in which no load is put.
 */
#include "load.h"

#include <errno.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>

enum { ESTABLISHED = 1 }; /* TCP_ESTABLISHED, of a header that excludes linux/tcp.h */

struct question {
    struct nlmsghdr header;
    struct inet_diag_req_v2 request;
};

/* The server's end of a connection: its peer is the load. */
static void ask(int fd, uint16_t port, const struct sockaddr_in *peer) {
    struct question question = {
        .header = { .nlmsg_len = sizeof question,
                    .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                    .nlmsg_flags = NLM_F_REQUEST },
        .request = { .sdiag_family = AF_INET,
                     .sdiag_protocol = IPPROTO_TCP,
                     .idiag_ext = 1 << (INET_DIAG_INFO - 1),
                     .idiag_states = 1U << ESTABLISHED,
                     .id = { .idiag_sport = htons(port),
                             .idiag_dport = peer->sin_port,
                             .idiag_src = { htonl(INADDR_LOOPBACK) },
                             .idiag_dst = { peer->sin_addr.s_addr },
                             .idiag_cookie = { INET_DIAG_NOCOOKIE, INET_DIAG_NOCOOKIE } } },
    };
    if (send(fd, &question, sizeof question, 0) < 0)
        load_fail(NULL, "asking for a socket: %s", strerror(errno));
}

static bool find_info(const struct inet_diag_msg *socket, const uint8_t *end, struct tcp_info *info) {
    const uint8_t *at = (const uint8_t *)(socket + 1);
    while ((size_t)(end - at) >= sizeof(struct rtattr)) {
        const struct rtattr *attribute = (const void *)at;
        size_t left = (size_t)(end - at);
        if (attribute->rta_len < sizeof *attribute || attribute->rta_len > left)
            return false;
        size_t size = attribute->rta_len - sizeof *attribute;
        if (attribute->rta_type == INET_DIAG_INFO) {
            memcpy(info, attribute + 1, size < sizeof *info ? size : sizeof *info);
            return true;
        }
        size_t step = RTA_ALIGN(attribute->rta_len);
        at += step < left ? step : left;
    }
    return false;
}

static void take(const struct load_server *server, int fd, struct load_passed *passed) {
    static _Alignas(struct nlmsghdr) uint8_t data[8192];
    ssize_t size = recv(fd, data, sizeof data, 0);
    const struct nlmsghdr *header = (const void *)data;
    struct tcp_info info = { 0 };
    if (size < (ssize_t)(sizeof *header + sizeof(int)))
        load_fail(NULL, "the kernel does not tell of sockets: %s", size < 0 ? strerror(errno) : "a short answer");
    if (header->nlmsg_type == NLMSG_ERROR) {
        int error = -((const struct nlmsgerr *)(const void *)(header + 1))->error;
        load_fail(server, "one of its connections is lost, or sockets are not told of (CONFIG_INET_DIAG): %s",
                  strerror(error));
    }
    const struct inet_diag_msg *socket = (const void *)(header + 1);
    if ((size_t)size < sizeof *header + sizeof *socket || !find_info(socket, data + size, &info))
        load_fail(NULL, "the kernel's answer about a socket is not understood");
    passed->read_bytes += info.tcpi_bytes_received - socket->idiag_rqueue;
    passed->written_bytes += info.tcpi_bytes_acked + socket->idiag_wqueue;
}

struct load_passed load_ask_passed(const struct load *load) {
    static int fd = -1;
    struct load_passed passed = { 0 };
    if (fd < 0)
        fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (fd < 0)
        load_fail(NULL, "a socket that tells of sockets: %s", strerror(errno));
    for (unsigned i = 0; i < load->options->connections; i++) {
        ask(fd, load->server->port, load_flow_local(load, load->server->first + i));
        take(load->server, fd, &passed);
    }
    return passed;
}
