/* SPDX-License-Identifier: MIT */
#include "base/base.h"

/*
 * Names and texts of our own, since strerror() is localized and not safe in threads, and strerrorname_np() is only
 * in newer C libraries. The table holds what weir may return and what the kernel says of sockets.
 */
static const struct {
    int number;
    const char *name, *text;
} errors[] = {
    { E2BIG, "E2BIG", "options from a newer version ask for what this one does not know" },
    { EACCES, "EACCES", "permission denied" },
    { EADDRINUSE, "EADDRINUSE", "address already in use" },
    { EADDRNOTAVAIL, "EADDRNOTAVAIL", "address not available" },
    { EAFNOSUPPORT, "EAFNOSUPPORT", "address family not supported" },
    { EAGAIN, "EAGAIN", "not ready, try again" },
    { EALREADY, "EALREADY", "already done or under way" },
    { EBADF, "EBADF", "bad file descriptor" },
    { EBADFD, "EBADFD", "descriptor in a bad state" },
    { EBUSY, "EBUSY", "busy: called from a callback, or under way" },
    { ECANCELED, "ECANCELED", "operation cancelled" },
    { ECHILD, "ECHILD", "object belongs to the parent of this process" },
    { ECONNABORTED, "ECONNABORTED", "connection aborted" },
    { ECONNREFUSED, "ECONNREFUSED", "connection refused" },
    { ECONNRESET, "ECONNRESET", "connection reset by peer" },
    { EEXIST, "EEXIST", "exists already" },
    { EFAULT, "EFAULT", "bad address" },
    { EHOSTDOWN, "EHOSTDOWN", "host is down" },
    { EHOSTUNREACH, "EHOSTUNREACH", "no route to host" },
    { EILSEQ, "EILSEQ", "kernel completions out of order" },
    { EINPROGRESS, "EINPROGRESS", "operation in progress" },
    { EINTR, "EINTR", "interrupted" },
    { EINVAL, "EINVAL", "invalid argument" },
    { EIO, "EIO", "input/output error" },
    { EISCONN, "EISCONN", "already connected" },
    { ELOOP, "ELOOP", "too many symbolic links" },
    { EMFILE, "EMFILE", "too many open files in this process" },
    { EMSGSIZE, "EMSGSIZE", "message too long" },
    { ENAMETOOLONG, "ENAMETOOLONG", "name too long" },
    { ENETDOWN, "ENETDOWN", "network is down" },
    { ENETUNREACH, "ENETUNREACH", "network unreachable" },
    { ENFILE, "ENFILE", "too many open files in the system" },
    { ENOBUFS, "ENOBUFS", "no room: a limit on memory is reached" },
    { ENODEV, "ENODEV", "no such device" },
    { ENOENT, "ENOENT", "no such file or directory" },
    { ENOMEM, "ENOMEM", "out of memory" },
    { ENOPROTOOPT, "ENOPROTOOPT", "option not available" },
    { ENOSPC, "ENOSPC", "no space left" },
    { ENOSYS, "ENOSYS", "not available on this kernel" },
    { ENOTCONN, "ENOTCONN", "not connected" },
    { ENOTDIR, "ENOTDIR", "not a directory" },
    { ENOTSOCK, "ENOTSOCK", "not a socket" },
    { EOPNOTSUPP, "EOPNOTSUPP", "operation not supported" },
    { EPERM, "EPERM", "not permitted, or on the wrong thread" },
    { EPIPE, "EPIPE", "stream is closed for writing" },
    { EPROTO, "EPROTO", "protocol error" },
    { EPROTONOSUPPORT, "EPROTONOSUPPORT", "protocol not supported" },
    { EPROTOTYPE, "EPROTOTYPE", "wrong kind of socket" },
    { ERANGE, "ERANGE", "out of range" },
    { EROFS, "EROFS", "read-only file system" },
    { ESHUTDOWN, "ESHUTDOWN", "loop is closed" },
    { ETIMEDOUT, "ETIMEDOUT", "timed out" },
    { EUSERS, "EUSERS", "too many streams" },
    { EXDEV, "EXDEV", "objects of two different loops" },
};

static int find(int error) {
    unsigned wanted = error < 0 ? 0U - (unsigned)error : (unsigned)error;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if ((unsigned)errors[i].number == wanted)
            return (int)i;
    return -1;
}

WEIR_API const char *weir_error_name(int error) {
    int i = find(error);
    return error == 0 ? "0" : i >= 0 ? errors[i].name : "unknown";
}

WEIR_API const char *weir_error_text(int error) {
    int i = find(error);
    return error == 0 ? "success" : i >= 0 ? errors[i].text : "unknown error";
}

WEIR_API uint32_t weir_version(void) {
    return 0U << 16 | 1U << 8 | 0U;
}

#ifdef WEIR_MISUSE_ABORTS
#include <stdio.h>
#include <stdlib.h>

int weir__mistake(int error, const char *function, const char *what) {
    fprintf(stderr, "weir: %s: %s (%s)\n", function, what, weir_error_name(error));
    abort();
}
#endif
