/* SPDX-License-Identifier: MIT */
#include "edge/sys.h"

#include <fcntl.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

/* Runs a call that says what went wrong in errno, and gives errno back as it was. */
#define CALL(expression)                     \
    do {                                     \
        int saved = errno;                   \
        int result = (int)(expression);      \
        int error = errno;                   \
        errno = saved;                       \
        return result < 0 ? -error : result; \
    } while (0)

int weir__sys_socket(int family, int type) {
    CALL(socket(family, type | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
}

int weir__sys_bind(int fd, const struct sockaddr *address, socklen_t length) {
    CALL(bind(fd, address, length));
}

int weir__sys_listen(int fd, int backlog) {
    CALL(listen(fd, backlog));
}

int weir__sys_connect(int fd, const struct sockaddr *address, socklen_t length) {
    CALL(connect(fd, address, length));
}

int weir__sys_shutdown(int fd, int how) {
    CALL(shutdown(fd, how));
}

int weir__sys_setsockopt(int fd, int level, int name, int value) {
    CALL(setsockopt(fd, level, name, &value, sizeof value));
}

int weir__sys_getsockopt(int fd, int level, int name, int *ret_value) {
    int value = 0;
    socklen_t size = sizeof value;
    int saved = errno;
    int r = getsockopt(fd, level, name, &value, &size) < 0 ? -errno : 0;
    errno = saved;
    if (r == 0)
        *ret_value = value;
    return r;
}

int weir__sys_getsockname(int fd, struct sockaddr_storage *ret_address, socklen_t *ret_length) {
    *ret_length = sizeof *ret_address;
    CALL(getsockname(fd, (struct sockaddr *)ret_address, ret_length));
}

int weir__sys_getpeername(int fd, struct sockaddr_storage *ret_address, socklen_t *ret_length) {
    *ret_length = sizeof *ret_address;
    CALL(getpeername(fd, (struct sockaddr *)ret_address, ret_length));
}

int weir__sys_socketpair(int ret_fds[2]) {
    CALL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, ret_fds));
}

int weir__sys_send(int fd, const void *data, size_t size) {
    CALL(send(fd, data, size, MSG_NOSIGNAL | MSG_DONTWAIT));
}

int weir__sys_receive(int fd, void *data, size_t size) {
    CALL(recv(fd, data, size, MSG_DONTWAIT));
}

int weir__sys_send_vectors(int fd, const struct iovec *vectors, size_t count) {
    struct msghdr header = { .msg_iov = (struct iovec *)(uintptr_t)vectors, .msg_iovlen = count };
    CALL(sendmsg(fd, &header, MSG_NOSIGNAL | MSG_DONTWAIT));
}

int weir__sys_accept(int fd) {
    CALL(accept4(fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC));
}

int weir__sys_epoll(void) {
    CALL(epoll_create1(EPOLL_CLOEXEC));
}

int weir__sys_epoll_set(int epoll, int operation, int fd, uint32_t events, uint64_t data) {
    struct epoll_event event = { .events = events, .data.u64 = data };
    CALL(epoll_ctl(epoll, operation, fd, &event));
}

static int epoll_wait_ms(int epoll, struct epoll_event *events, int most, int64_t timeout_ns) {
    const int64_t ns_per_ms = 1000000;
    /* Rounded up: a timer that is not due yet would be looked at again and again. */
    int64_t ms = timeout_ns / ns_per_ms + (timeout_ns % ns_per_ms > 0);
    CALL(epoll_wait(epoll, events, most, timeout_ns < 0 ? -1 : ms < INT32_MAX ? (int)ms : INT32_MAX));
}

static int epoll_wait_ns(int epoll, struct epoll_event *events, int most, int64_t timeout_ns) {
    const int64_t ns_per_s = 1000000000;
    /* As the kernel has it; the C library's structure may be another. */
    struct {
        int64_t seconds, nanoseconds;
    } timeout = { timeout_ns / ns_per_s, timeout_ns % ns_per_s };
    CALL(syscall(SYS_epoll_pwait2, epoll, events, most, &timeout, NULL, (size_t)0));
}

int weir__sys_epoll_wait(int epoll, struct epoll_event *events, int most, int64_t timeout_ns) {
    static _Atomic(int) is_missing; /* epoll_pwait2: before Linux 5.11, or behind a filter that does not know it */
    if (timeout_ns > 0 && atomic_load_explicit(&is_missing, memory_order_relaxed) == 0) {
        int r = epoll_wait_ns(epoll, events, most, timeout_ns);
        if (r != -ENOSYS && r != -EPERM)
            return r;
        atomic_store_explicit(&is_missing, 1, memory_order_relaxed);
    }
    return epoll_wait_ms(epoll, events, most, timeout_ns);
}

int weir__sys_unsent(int fd) {
    int bytes = 0, saved = errno;
    int r = ioctl(fd, SIOCOUTQ, &bytes) < 0 ? -errno : bytes;
    errno = saved;
    return r;
}

int weir__sys_peek(int fd) {
    char byte;
    CALL(recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT));
}

int weir__sys_lost(int fd) {
    struct pollfd asked = { .fd = fd };
    int error = 0, saved = errno;
    bool is_lost = poll(&asked, 1, 0) > 0 && (asked.revents & POLLERR) != 0;
    errno = saved;
    /* Without that SO_ERROR may be a router's complaint, which TCP lives through. */
    return is_lost && weir__sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error) >= 0 ? -error : 0;
}

int weir__sys_close(int fd) {
    CALL(close(fd));
}

static int set_flag(int fd, int get, int set, int flag) {
    int flags = fcntl(fd, get);
    return flags < 0 ? flags : flags & flag ? 0 : fcntl(fd, set, flags | flag);
}

int weir__sys_set_nonblocking_cloexec(int fd) {
    CALL(set_flag(fd, F_GETFL, F_SETFL, O_NONBLOCK) < 0 ? -1 : set_flag(fd, F_GETFD, F_SETFD, FD_CLOEXEC));
}

int weir__sys_eventfd(void) {
    CALL(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC));
}

int weir__sys_eventfd_signal(int fd) {
    uint64_t one = 1;
    CALL(write(fd, &one, sizeof one));
}

int weir__sys_read(int fd, void *data, size_t size) {
    CALL(read(fd, data, size));
}

static sigset_t only(int number) {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, number);
    return set;
}

int weir__sys_signalfd(int number) {
    sigset_t set = only(number);
    CALL(signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC));
}

/* These say what went wrong by themselves, and leave errno alone. */
int weir__sys_block_signal(int number) {
    sigset_t set = only(number), before;
    int r = pthread_sigmask(SIG_BLOCK, &set, &before);
    return r != 0 ? -r : sigismember(&before, number);
}

int weir__sys_unblock_signal(int number) {
    sigset_t set = only(number);
    return -pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

int weir__sys_unlink(const char *path) {
    CALL(unlink(path));
}

int weir__sys_socket_file(const char *path, weir__sys_file *ret_file) {
    struct stat status;
    int saved = errno;
    int r = stat(path, &status) < 0 ? -errno : S_ISSOCK(status.st_mode) ? 0 : -ENOTSOCK;
    errno = saved;
    if (r == 0)
        *ret_file = (weir__sys_file){ status.st_dev, status.st_ino };
    return r;
}

int weir__sys_interface_index(const char *name) {
    int saved = errno;
    unsigned index = if_nametoindex(name);
    errno = saved;
    return index > 0 && index <= INT32_MAX ? (int)index : -ENODEV;
}

static void *map(size_t size, int advice) {
    int saved = errno;
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    if (memory != MAP_FAILED && madvise(memory, size, advice) < 0) {
        munmap(memory, size);
        memory = MAP_FAILED;
    }
    errno = saved;
    if (memory == MAP_FAILED)
        return NULL;
    WEIR__UNPOISON(memory, size); /* a child of fork may get it where its parent had a buffer */
    return memory;
}

void *weir__sys_wiped_page(void) {
    return map(weir__sys_page_bytes(), MADV_WIPEONFORK);
}

void *weir__sys_map_private(size_t size) {
    return map(size, MADV_DONTFORK);
}

void weir__sys_unmap(void *memory, size_t size) {
    int saved = errno;
    munmap(memory, size);
    errno = saved;
}

size_t weir__sys_page_bytes(void) {
    return (size_t)sysconf(_SC_PAGESIZE);
}

int64_t weir__sys_now(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void weir__sys_yield(void) {
    sched_yield();
}

void weir__sys_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* yield, which is meant for this, is next to nothing on most */
#else
    __asm__ volatile("" ::: "memory");
#endif
}

uint32_t weir__sys_kernel_version(void) {
    struct utsname name;
    unsigned major = 0, minor = 0, patch = 0;
    int saved = errno;
    if (uname(&name) < 0 || sscanf(name.release, "%u.%u.%u", &major, &minor, &patch) < 2)
        major = minor = patch = 0;
    errno = saved;
    return major << 16 | (minor < 255 ? minor : 255) << 8 | (patch < 255 ? patch : 255);
}

const char *weir__sys_environment(const char *name) {
    return secure_getenv(name);
}

uintptr_t weir__sys_thread(void) {
    return (uintptr_t)pthread_self();
}
