/* SPDX-License-Identifier: MIT */
#include <netinet/in.h>

#include "socket/stream.h"

/* How an application comes to a stream of its own: it dials, or has a connected socket. */

static bool is_internet(int family) {
    return family == AF_INET || family == AF_INET6;
}

static int make(weir_loop *loop, int fd, bool is_tcp, const weir__stream_settings *values,
                weir_stream **ret_stream) {
    const weir__stream_settings *settings = weir__stream_settings_share(loop->allocator, values);
    int r = settings != NULL ? weir__stream_new(loop, fd, is_tcp, settings, ret_stream) : -ENOMEM;
    weir__stream_settings_unref(loop->allocator, settings); /* the stream has its own reference */
    return r;
}

WEIR_API int weir_stream_dial(weir_loop *loop, const char *text, const weir_stream_options *options,
                              weir_stream **ret_stream) {
    if (loop == NULL || text == NULL || ret_stream == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop, no address, or nowhere to put the stream");
    weir__stream_settings settings;
    weir__address address;
    int r = weir__loop_check_open(loop);
    if (r >= 0)
        r = weir__stream_settings_read(options, &settings);
    if (r >= 0)
        r = weir__address_parse(text, &address);
    if (r < 0)
        return r;
    weir__dialling *dialling = weir__alloc(loop->allocator, sizeof *dialling);
    if (dialling == NULL)
        return -ENOMEM;
    int64_t now = weir__loop_now(loop), timeout_ns = settings.connect_timeout_ns;
    bool is_limited = timeout_ns >= 0 && timeout_ns < INT64_MAX - now;
    *dialling = (weir__dialling){ .address = address, .deadline = is_limited ? now + timeout_ns : INT64_MAX };
    bool is_tcp = is_internet(address.storage.ss_family);
    weir_stream *stream = NULL;
    int fd = weir__sys_socket(address.storage.ss_family, SOCK_STREAM);
    r = fd < 0 ? fd : make(loop, fd, is_tcp, &settings, &stream);
    if (r < 0) {
        if (fd >= 0)
            weir__sys_close(fd);
        weir__free(loop->allocator, dialling, sizeof *dialling);
        return r;
    }
    stream->dialling = dialling;
    weir__stream_apply(fd, is_tcp, &settings);
    weir__stream_set_deadline(stream, settings.connect_timeout_ns);
    weir__stream_mark(stream);
    *ret_stream = stream;
    return 0;
}

/* 0: a connected stream socket; -errno. */
static int inspect(int fd, int *ret_family) {
    int type;
    weir__address peer;
    int r = weir__sys_getsockopt(fd, SOL_SOCKET, SO_TYPE, &type);
    if (r >= 0 && type != SOCK_STREAM)
        r = -EPROTOTYPE;
    if (r >= 0)
        r = weir__sys_getsockopt(fd, SOL_SOCKET, SO_DOMAIN, ret_family);
    if (r >= 0 && !is_internet(*ret_family) && *ret_family != AF_UNIX)
        r = -EAFNOSUPPORT;
    if (r >= 0)
        r = weir__sys_getpeername(fd, &peer.storage, &peer.length);
    return r;
}

WEIR_API int weir_stream_adopt(weir_loop *loop, int fd, const weir_stream_options *options,
                               weir_stream **ret_stream) {
    if (loop == NULL || ret_stream == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop, or nowhere to put the stream");
    weir__stream_settings settings;
    weir_stream *stream;
    int family = 0;
    int r = weir__loop_check_open(loop);
    if (r >= 0)
        r = weir__stream_settings_read(options, &settings);
    if (r >= 0)
        r = inspect(fd, &family);
    if (r >= 0)
        r = make(loop, fd, is_internet(family), &settings, &stream);
    if (r < 0)
        return r;
    (void)weir__sys_set_nonblocking_cloexec(
        fd); /* of an open descriptor: it cannot fail; so the last thing done */
    stream->is_connected = stream->is_open_told = true;
    weir__stream_apply(fd, stream->is_tcp, &settings);
    *ret_stream = stream;
    return 0;
}
