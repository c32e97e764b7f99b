/* SPDX-License-Identifier: MIT */
#include <netinet/in.h>
#include <netinet/tcp.h>

#include "socket/stream.h"

/* What may be changed of a stream by name: settings of ours, and options of its socket. */

typedef struct socket_option {
    int level, name;
    int least;
    bool is_tcp;
} socket_option;

/* By enum weir_stream_option; what is not here is a setting. */
static const socket_option socket_options[] = {
    [WEIR_OPTION_NODELAY] = { IPPROTO_TCP, TCP_NODELAY, 0, true },
    [WEIR_OPTION_KEEPALIVE] = { SOL_SOCKET, SO_KEEPALIVE, 0, true },
    [WEIR_OPTION_KEEPALIVE_IDLE_S] = { IPPROTO_TCP, TCP_KEEPIDLE, 1, true },
    [WEIR_OPTION_KEEPALIVE_INTERVAL_S] = { IPPROTO_TCP, TCP_KEEPINTVL, 1, true },
    [WEIR_OPTION_KEEPALIVE_PROBES] = { IPPROTO_TCP, TCP_KEEPCNT, 1, true },
    [WEIR_OPTION_USER_TIMEOUT_MS] = { IPPROTO_TCP, TCP_USER_TIMEOUT, 0, true },
    [WEIR_OPTION_SEND_BUFFER_BYTES] = { SOL_SOCKET, SO_SNDBUF, 1, false },
    [WEIR_OPTION_RECEIVE_BUFFER_BYTES] = { SOL_SOCKET, SO_RCVBUF, 1, false },
};
enum { SOCKET_OPTIONS = sizeof socket_options / sizeof *socket_options };

static bool is_switch(int option) {
    return option == WEIR_OPTION_NODELAY || option == WEIR_OPTION_KEEPALIVE;
}

static int set_of_socket(const weir_stream *stream, int option, int64_t value) {
    const socket_option *how = &socket_options[option];
    if (value < how->least || value > (is_switch(option) ? 1 : INT32_MAX))
        return -EINVAL;
    if (how->is_tcp && !stream->is_tcp)
        return 0;
    return weir__sys_setsockopt(stream->fd, how->level, how->name, (int)value);
}

static int set_bytes(weir__stream_settings *settings, int option, int64_t value) {
    uint64_t *which = option == WEIR_OPTION_QUEUE_LIMIT_BYTES  ? &settings->queue_limit_bytes
                      : option == WEIR_OPTION_QUEUE_HIGH_BYTES ? &settings->queue_high_bytes
                                                               : &settings->queue_low_bytes;
    if (value < 0)
        return -EINVAL;
    *which = (uint64_t)value;
    return weir__stream_settings_complete(settings);
}

static int64_t *timeout_of(weir__stream_settings *settings, int option) {
    return option == WEIR_OPTION_IDLE_TIMEOUT_NS    ? &settings->idle_timeout_ns
           : option == WEIR_OPTION_WRITE_TIMEOUT_NS ? &settings->write_timeout_ns
                                                    : &settings->linger_timeout_ns;
}

static int set_timeout(weir__stream_settings *settings, int option, int64_t value) {
    if (value < WEIR_NEVER || value == 0)
        return -EINVAL;
    *timeout_of(settings, option) = value;
    return 0;
}

/* Others may have the stream's settings, too: it gets new ones. */
static int set_of_ours(weir_stream *stream, int option, int64_t value) {
    const weir_allocator *allocator = stream->loop->allocator;
    weir__stream_settings wish = *stream->settings;
    bool is_bytes = option <= WEIR_OPTION_QUEUE_LOW_BYTES;
    int r = is_bytes ? set_bytes(&wish, option, value) : set_timeout(&wish, option, value);
    if (r < 0)
        return r;
    const weir__stream_settings *settings = weir__stream_settings_share(allocator, &wish);
    if (settings == NULL)
        return -ENOMEM;
    weir__stream_settings_unref(allocator, stream->settings);
    stream->settings = settings;
    if (!is_bytes)
        weir__stream_reschedule(stream);
    return 0;
}

/* A number of bytes as a value; options may have said more than a value can. */
static int64_t bytes_of(const weir__stream_settings *settings, int option) {
    uint64_t bytes = option == WEIR_OPTION_QUEUE_LIMIT_BYTES  ? settings->queue_limit_bytes
                     : option == WEIR_OPTION_QUEUE_HIGH_BYTES ? settings->queue_high_bytes
                                                              : settings->queue_low_bytes;
    return (int64_t)weir__min_u64(bytes, INT64_MAX);
}

static int check(const weir_stream *stream, int option) {
    int r = weir__stream_check(stream);
    if (r < 0)
        return r;
    if (option < WEIR_OPTION_NODELAY || option > WEIR_OPTION_LINGER_TIMEOUT_NS)
        return -ENOPROTOOPT;
    return stream->fd < 0 ? -EBADF : 0;
}

WEIR_API int weir_stream_set_option(weir_stream *stream, int option, int64_t value) {
    int r = check(stream, option);
    if (r < 0)
        return r;
    return option < SOCKET_OPTIONS ? set_of_socket(stream, option, value) : set_of_ours(stream, option, value);
}

WEIR_API int weir_stream_get_option(const weir_stream *stream, int option, int64_t *ret_value) {
    int r = check(stream, option), value = 0;
    if (r >= 0 && ret_value == NULL)
        r = WEIR__MISTAKE(-EINVAL, "nowhere to put the value");
    if (r < 0)
        return r;
    weir__stream_settings settings = *stream->settings;
    if (option >= SOCKET_OPTIONS) {
        bool is_bytes = option <= WEIR_OPTION_QUEUE_LOW_BYTES;
        *ret_value = is_bytes ? bytes_of(&settings, option) : *timeout_of(&settings, option);
        return 0;
    }
    const socket_option *how = &socket_options[option];
    if (!how->is_tcp || stream->is_tcp)
        r = weir__sys_getsockopt(stream->fd, how->level, how->name, &value);
    if (r >= 0)
        *ret_value = is_switch(option) ? value != 0 : value;
    return r;
}
