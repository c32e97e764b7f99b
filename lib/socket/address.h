/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SOCKET_ADDRESS_H
#define WEIR_SOCKET_ADDRESS_H

/* Addresses as numeric text: 127.0.0.1:80, [::1]:80, [fe80::1%eth0]:80, unix:/path, unix:@abstract. */

#include <sys/socket.h>

#include "base/base.h"

typedef struct weir__address {
    struct sockaddr_storage storage;
    socklen_t length;
} weir__address;

/* 0; -EINVAL: not an address; -ENODEV: no such interface. */
int weir__address_parse(const char *text, weir__address *ret_address);
/* With its zero. Return: the length of the text; -ENOBUFS: @size is too small. */
int weir__address_format(const weir__address *address, char *text, size_t size);
/* The path of a Unix address that has one in the file system, else NULL. */
const char *weir__address_path(const weir__address *address);

#endif
