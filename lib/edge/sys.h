/* SPDX-License-Identifier: MIT */
#ifndef WEIR_EDGE_SYS_H
#define WEIR_EDGE_SYS_H

/*
 * The plain system calls that weir makes, as they are: 0 or more, or -errno, and errno itself is not touched. Like
 * ring.h, a test may put another implementation in the place of sys.c.
 */

#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/uio.h>

#include "base/base.h"

/* Sockets: always non-blocking and close-on-exec. */
int weir__sys_socket(int family, int type);
int weir__sys_bind(int fd, const struct sockaddr *address, socklen_t length);
int weir__sys_listen(int fd, int backlog);
int weir__sys_connect(int fd, const struct sockaddr *address, socklen_t length);
int weir__sys_shutdown(int fd, int how);
int weir__sys_setsockopt(int fd, int level, int name, int value);
int weir__sys_getsockopt(int fd, int level, int name, int *ret_value);
int weir__sys_getsockname(int fd, struct sockaddr_storage *ret_address, socklen_t *ret_length);
int weir__sys_getpeername(int fd, struct sockaddr_storage *ret_address, socklen_t *ret_length);

int weir__sys_socketpair(int ret_fds[2]); /* Unix stream sockets */
int weir__sys_send(int fd, const void *data, size_t size);
int weir__sys_receive(int fd, void *data, size_t size);                        /* never waits */
int weir__sys_send_vectors(int fd, const struct iovec *vectors, size_t count); /* never waits */
int weir__sys_accept(int fd);
int weir__sys_unsent(int fd); /* bytes of ours that the peer has not taken (Unix) or acknowledged (TCP) */
int weir__sys_peek(int fd);   /* 1: bytes are waiting; 0: the peer has ended; -EAGAIN: neither */
int weir__sys_lost(int fd);   /* 0; -errno: what broke the connection, also if bytes are waiting; told once */

/* Readiness. */
int weir__sys_epoll(void);
int weir__sys_epoll_set(int epoll, int operation, int fd, uint32_t events,
                        uint64_t data); /* EPOLL_CTL_*; EPOLL* */
/* For @timeout_ns at most (negative: without limit). Return: how many events; -EINTR and so on. */
int weir__sys_epoll_wait(int epoll, struct epoll_event *ret_events, int most, int64_t timeout_ns);

/* Descriptors. */
int weir__sys_close(int fd);
int weir__sys_set_nonblocking_cloexec(int fd);
int weir__sys_eventfd(void);
int weir__sys_eventfd_signal(int fd);
int weir__sys_read(int fd, void *data, size_t size);

/* Signals: of the calling thread's mask. */
int weir__sys_signalfd(int number);     /* non-blocking, close-on-exec */
int weir__sys_block_signal(int number); /* 1: it was blocked before; 0: it was not */
int weir__sys_unblock_signal(int number);

/* Files: a Unix socket's path. */
int weir__sys_unlink(const char *path);
typedef struct weir__sys_file {
    uint64_t device, inode;
} weir__sys_file;
int weir__sys_socket_file(const char *path, weir__sys_file *ret_file); /* -ENOTSOCK: a file, but no socket's */
int weir__sys_interface_index(const char *name);

/* Memory and time. */
void *weir__sys_wiped_page(void);         /* a page that a child of fork gets empty; NULL: none to be had */
void *weir__sys_map_private(size_t size); /* pages that a child of fork does not get at all; NULL */
void weir__sys_unmap(void *memory, size_t size);
size_t weir__sys_page_bytes(void);
int64_t weir__sys_now(void); /* CLOCK_MONOTONIC, ns */
void weir__sys_yield(void);
void weir__sys_pause(void);              /* a moment, some ten to a hundred ns, without a system call */
uint32_t weir__sys_kernel_version(void); /* major << 16 | minor << 8 | patch, at most 255 */
const char *weir__sys_environment(const char *name); /* NULL, too, in a program with more rights than its user */
uintptr_t weir__sys_thread(void);                    /* a number for the calling thread, never 0 */

#endif
