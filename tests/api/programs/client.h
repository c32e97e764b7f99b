/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_CLIENT_H
#define WEIR_TESTS_CLIENT_H

/*
 * Clients as anybody writes them: blocking sockets on threads of their own. These tests link the library as a user
 * does, so nothing of support.c is here. A thread must not assert: it says what went wrong, NULL if nothing did.
 */

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <arpa/inet.h>
#include <stdbool.h>
#include <cmocka.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>
#include <weir.h>

/* Where a listener on loopback is; to be asked on its loop's thread. */
typedef struct client_target {
    int family;
    in_port_t port; /* as it goes into an address */
} client_target;

static inline client_target client_find(const weir_listener *listener) {
    char text[WEIR_ADDRESS_SIZE] = "";
    if (weir_listener_get_address(listener, text, sizeof text) < 0)
        abort();
    return (client_target){ .family = text[0] == '[' ? AF_INET6 : AF_INET,
                            .port = htons((uint16_t)strtoul(strrchr(text, ':') + 1, NULL, 10)) };
}

/* Connected, or -1. Nothing that it does later takes longer than a minute. */
static inline int client_connect(client_target target) {
    struct sockaddr_in in = { .sin_family = AF_INET,
                              .sin_port = target.port,
                              .sin_addr = { htonl(INADDR_LOOPBACK) } };
    struct sockaddr_in6 in6 = { .sin6_family = AF_INET6,
                                .sin6_port = target.port,
                                .sin6_addr = IN6ADDR_LOOPBACK_INIT };
    struct timeval minute = { .tv_sec = 60 };
    int fd = socket(target.family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r = target.family == AF_INET6 ? connect(fd, (struct sockaddr *)&in6, sizeof in6)
                                      : connect(fd, (struct sockaddr *)&in, sizeof in);
    if (r < 0 || setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &minute, sizeof minute) < 0 ||
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &minute, sizeof minute) < 0)
        return -1;
    return fd;
}

static inline const char *client_send(int fd, const void *data, size_t size) {
    const uint8_t *bytes = data;
    while (size > 0) {
        ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL);
        if (n <= 0)
            return "a send failed";
        bytes += n;
        size -= (size_t)n;
    }
    return NULL;
}

static inline const char *client_receive(int fd, void *data, size_t size) {
    return recv(fd, data, size, MSG_WAITALL) == (ssize_t)size ? NULL : "less came than was expected";
}

static inline const char *client_expect(int fd, const void *data, size_t size) {
    uint8_t *got = malloc(size);
    const char *wrong = client_receive(fd, got, size);
    if (wrong == NULL && memcmp(got, data, size) != 0)
        wrong = "other bytes came than were expected";
    free(got);
    return wrong;
}

static inline const char *client_expect_end(int fd) {
    char byte;
    return recv(fd, &byte, 1, 0) == 0 ? NULL : "the end did not come";
}

/* Bytes that differ between clients and positions. */
static inline void client_fill(unsigned client, size_t position, uint8_t *data, size_t size) {
    for (size_t i = 0; i < size; i++) {
        size_t at = position + i;
        data[i] = (uint8_t)(at * 31 + (at >> 8) * 7 + (at >> 16) + client * 101);
    }
}

#endif
