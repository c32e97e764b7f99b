/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SOCKET_SETTINGS_H
#define WEIR_SOCKET_SETTINGS_H

/*
 * What options say of a stream, with the defaults filled in. Most streams of a server have the same: those that a listener
 * accepts share its settings, and whoever has the defaults shares the library's. Shared settings never change: a stream
 * that is to have others gets settings of its own.
 */

#include "base/base.h"
#include "weir/loop.h"
#include "weir/stream.h"

typedef struct weir__stream_settings {
    uint64_t queue_limit_bytes, queue_high_bytes, queue_low_bytes;
    int64_t connect_timeout_ns, idle_timeout_ns, write_timeout_ns, linger_timeout_ns; /* or WEIR_NEVER */
    uint32_t flags;                                                                   /* WEIR_STREAM_* */
    uint32_t most_ranges; /* in a queue: they cost memory that their bytes do not show; follows from the limit */
} weir__stream_settings;

/* Read options. 0; -EINVAL; -E2BIG. */
int weir__stream_settings_read(const weir_stream_options *options, weir__stream_settings *ret_settings);
/* What follows from the others. 0; -EINVAL: they contradict each other. */
int weir__stream_settings_complete(weir__stream_settings *settings);
/* The same values to be shared, referenced. NULL: no memory. */
const weir__stream_settings *weir__stream_settings_share(const weir_allocator *allocator,
                                                         const weir__stream_settings *values);
/* Of shared ones only. Any thread. */
const weir__stream_settings *weir__stream_settings_ref(const weir__stream_settings *settings);
void weir__stream_settings_unref(const weir_allocator *allocator, const weir__stream_settings *settings);

#endif
