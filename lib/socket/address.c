/* SPDX-License-Identifier: MIT */
#include "socket/address.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/un.h>

#include "edge/sys.h"

enum { UNIX_NAME = offsetof(struct sockaddr_un, sun_path) };

static int parse_port(const char *text, in_port_t *ret_port) {
    unsigned port = 0, digits = 0;
    for (; *text >= '0' && *text <= '9' && digits < 5; text++, digits++)
        port = port * 10 + (unsigned)(*text - '0');
    if (digits == 0 || *text != '\0' || port > 65535)
        return -EINVAL;
    *ret_port = htons((uint16_t)port);
    return 0;
}

static int parse_unix(const char *name, weir__address *address) {
    struct sockaddr_un *un = (struct sockaddr_un *)&address->storage;
    size_t length = strlen(name);
    bool is_abstract = name[0] == '@';
    /* A path keeps its zero; an abstract name is as long as it is, and its zero comes first. */
    if (length == 0 || (is_abstract && length == 1) || length + !is_abstract > sizeof un->sun_path)
        return -EINVAL;
    un->sun_family = AF_UNIX;
    memcpy(un->sun_path, name, length);
    if (is_abstract)
        un->sun_path[0] = '\0';
    address->length = (socklen_t)(UNIX_NAME + length + !is_abstract);
    return 0;
}

/* An interface's name, or its number, which is what format writes. */
static int parse_zone(const char *zone) {
    int index = 0;
    for (const char *digit = zone; *digit >= '0' && *digit <= '9' && index < 100000000; digit++) {
        index = index * 10 + (*digit - '0');
        if (digit[1] == '\0')
            return index > 0 ? index : -ENODEV;
    }
    return weir__sys_interface_index(zone);
}

static int parse_v6(char *host, const char *port, weir__address *address) {
    struct sockaddr_in6 *in6 = (struct sockaddr_in6 *)&address->storage;
    char *zone = strchr(host, '%');
    if (zone != NULL)
        *zone++ = '\0';
    if (inet_pton(AF_INET6, host, &in6->sin6_addr) != 1 || parse_port(port, &in6->sin6_port) < 0)
        return -EINVAL;
    if (zone != NULL) {
        int index = parse_zone(zone);
        if (index < 0)
            return index;
        in6->sin6_scope_id = (uint32_t)index;
    }
    in6->sin6_family = AF_INET6;
    address->length = sizeof *in6;
    return 0;
}

static int parse_v4(const char *host, const char *port, weir__address *address) {
    struct sockaddr_in *in = (struct sockaddr_in *)&address->storage;
    if (inet_pton(AF_INET, host, &in->sin_addr) != 1 || parse_port(port, &in->sin_port) < 0)
        return -EINVAL;
    in->sin_family = AF_INET;
    address->length = sizeof *in;
    return 0;
}

int weir__address_parse(const char *text, weir__address *ret_address) {
    weir__address address;
    char host[WEIR_ADDRESS_SIZE];
    memset(&address, 0, sizeof address);
    int r;
    if (strncmp(text, "unix:", 5) == 0) {
        r = parse_unix(text + 5, &address);
    } else {
        bool is_v6 = text[0] == '[';
        text += is_v6;
        const char *end = strchr(text, is_v6 ? ']' : ':');
        size_t length = end != NULL ? (size_t)(end - text) : SIZE_MAX;
        if (length >= sizeof host || (is_v6 && end[1] != ':'))
            return -EINVAL;
        memcpy(host, text, length);
        host[length] = '\0';
        r = is_v6 ? parse_v6(host, end + 2, &address) : parse_v4(host, end + 1, &address);
    }
    if (r >= 0)
        *ret_address = address;
    return r;
}

const char *weir__address_path(const weir__address *address) {
    const struct sockaddr_un *un = (const struct sockaddr_un *)&address->storage;
    return un->sun_family == AF_UNIX && address->length > UNIX_NAME && un->sun_path[0] != '\0' ? un->sun_path
                                                                                               : NULL;
}

static int format_unix(const weir__address *address, char *text, size_t size) {
    const struct sockaddr_un *un = (const struct sockaddr_un *)&address->storage;
    size_t length = address->length > UNIX_NAME ? address->length - UNIX_NAME : 0;
    bool is_abstract = length > 0 && un->sun_path[0] == '\0';
    if (!is_abstract)
        length = strnlen(un->sun_path, length);
    if (5 + length + 1 > size)
        return -ENOBUFS;
    memcpy(text, "unix:", 5);
    memcpy(text + 5, un->sun_path, length);
    if (is_abstract)
        text[5] = '@';
    text[5 + length] = '\0';
    return (int)(5 + length);
}

int weir__address_format(const weir__address *address, char *text, size_t size) {
    char host[INET6_ADDRSTRLEN] = "", whole[WEIR_ADDRESS_SIZE], zone[16] = "";
    int length;
    if (address->storage.ss_family == AF_UNIX)
        return format_unix(address, text, size);
    if (address->storage.ss_family == AF_INET6) {
        const struct sockaddr_in6 *in6 = (const struct sockaddr_in6 *)&address->storage;
        (void)inet_ntop(AF_INET6, &in6->sin6_addr, host, sizeof host);
        if (in6->sin6_scope_id != 0) /* dial understands the number as well as the name */
            snprintf(zone, sizeof zone, "%%%u", in6->sin6_scope_id);
        length = snprintf(whole, sizeof whole, "[%s%s]:%u", host, zone, ntohs(in6->sin6_port));
    } else {
        const struct sockaddr_in *in = (const struct sockaddr_in *)&address->storage;
        (void)inet_ntop(AF_INET, &in->sin_addr, host, sizeof host);
        length = snprintf(whole, sizeof whole, "%s:%u", host, ntohs(in->sin_port));
    }
    if (length < 0 || (size_t)length + 1 > size)
        return -ENOBUFS;
    memcpy(text, whole, (size_t)length + 1);
    return length;
}
