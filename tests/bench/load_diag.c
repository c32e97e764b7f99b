/* SPDX-License-Identifier: MIT */
/*
 * What a server really read and wrote. In a slice of `sink` or `source` the sockets' buffers, megabytes for each
 * connection, fill or empty faster than the server works: who counts at the load's end counts the kernel's buffers,
 * and finds all servers equally fast. The kernel tells (sock_diag) what came to each of the server's sockets, what of
 * it is unread, and what was written to it: the sum is what passed through the server's calls.
 */
#include "load.h"

#include <arpa/inet.h>
#include <linux/inet_diag.h>
#include <linux/netlink.h>
#include <linux/rtnetlink.h>
#include <linux/sock_diag.h>
#include <linux/tcp.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { ESTABLISHED = 1 }; /* TCP_ESTABLISHED, of a header that excludes linux/tcp.h */

static bool ask(int fd, uint16_t port) {
    struct {
        struct nlmsghdr header;
        struct inet_diag_req_v2 request;
    } message = {
        .header = { .nlmsg_len = sizeof message,
                    .nlmsg_type = SOCK_DIAG_BY_FAMILY,
                    .nlmsg_flags = NLM_F_REQUEST | NLM_F_DUMP },
        .request = { .sdiag_family = AF_INET,
                     .sdiag_protocol = IPPROTO_TCP,
                     .idiag_ext = 1 << (INET_DIAG_INFO - 1),
                     .idiag_states = 1U << ESTABLISHED,
                     .id.idiag_sport = htons(port) },
    };
    return send(fd, &message, sizeof message, 0) == (ssize_t)sizeof message;
}

static void add(const struct nlmsghdr *header, struct load_passed *passed) {
    const struct inet_diag_msg *socket = NLMSG_DATA(header);
    const uint8_t *end = (const uint8_t *)header + header->nlmsg_len;
    const uint8_t *at = (const uint8_t *)(socket + 1);
    while ((size_t)(end - at) >= sizeof(struct rtattr)) {
        const struct rtattr *attribute = (const void *)at;
        if (attribute->rta_len < sizeof *attribute || attribute->rta_len > end - at)
            break;
        at += RTA_ALIGN(attribute->rta_len) < (size_t)(end - at) ? RTA_ALIGN(attribute->rta_len)
                                                                 : (size_t)(end - at);
        if (attribute->rta_type != INET_DIAG_INFO)
            continue;
        struct tcp_info info = { 0 };
        size_t size = attribute->rta_len - RTA_LENGTH(0);
        memcpy(&info, (const uint8_t *)attribute + RTA_LENGTH(0), size < sizeof info ? size : sizeof info);
        passed->connections++;
        passed->read_bytes += info.tcpi_bytes_received - socket->idiag_rqueue;
        passed->written_bytes += info.tcpi_bytes_acked + socket->idiag_wqueue;
    }
}

/* One datagram of the answer: 1 if there are more, 0 at the end, -1 if it is none. */
static int take(int fd, struct load_passed *passed) {
    static _Alignas(struct nlmsghdr) uint8_t data[64 * 1024];
    ssize_t size = recv(fd, data, sizeof data, 0);
    if (size <= 0)
        return -1;
    for (size_t at = 0, left = (size_t)size; left >= sizeof(struct nlmsghdr);) {
        const struct nlmsghdr *header = (const void *)(data + at);
        if (header->nlmsg_type == NLMSG_DONE)
            return 0;
        if (header->nlmsg_type == NLMSG_ERROR || header->nlmsg_len < sizeof *header || header->nlmsg_len > left)
            return -1;
        add(header, passed);
        size_t step = NLMSG_ALIGN(header->nlmsg_len) < left ? NLMSG_ALIGN(header->nlmsg_len) : left;
        at += step, left -= step;
    }
    return 1;
}

bool load_ask_passed(uint16_t port, struct load_passed *passed) {
    *passed = (struct load_passed){ 0 };
    int fd = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_SOCK_DIAG);
    if (fd < 0)
        return false;
    int more = ask(fd, port) ? 1 : -1;
    while (more > 0)
        more = take(fd, passed);
    close(fd);
    return more == 0;
}
