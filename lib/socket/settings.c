/* SPDX-License-Identifier: MIT */
#include "socket/settings.h"

#include "base/alloc.h"
#include "base/options.h"

#define S INT64_C(1000000000)

enum { LIMIT = 16 << 20, HIGH = 1 << 20, RANGES = 1024, BYTES_A_RANGE = 256 };

static const weir__stream_settings defaults = {
    .queue_limit_bytes = LIMIT,
    .queue_high_bytes = HIGH,
    .queue_low_bytes = HIGH / 4,
    .connect_timeout_ns = 30 * S,
    .idle_timeout_ns = WEIR_NEVER,
    .write_timeout_ns = 60 * S,
    .linger_timeout_ns = 10 * S,
    .most_ranges = RANGES + LIMIT / BYTES_A_RANGE,
};

int weir__stream_settings_complete(weir__stream_settings *settings) {
    if (settings->queue_limit_bytes == 0 || settings->queue_high_bytes > settings->queue_limit_bytes ||
        settings->queue_low_bytes > settings->queue_high_bytes)
        return -EINVAL;
    settings->most_ranges =
        (uint32_t)weir__min_u64(RANGES + settings->queue_limit_bytes / BYTES_A_RANGE, UINT32_MAX);
    return 0;
}

static int64_t timeout(int64_t option, int64_t otherwise) {
    return option != 0 ? option : otherwise;
}

int weir__stream_settings_read(const weir_stream_options *user_options, weir__stream_settings *ret_settings) {
    weir_stream_options options;
    int r = weir__options_read(&options, sizeof options, sizeof options, user_options);
    if (r < 0)
        return r;
    const uint32_t flags = WEIR_STREAM_METERED | WEIR_STREAM_NAGLE | WEIR_STREAM_KEEPALIVE;
    if ((options.flags & ~flags) != 0 || options.reserved != 0 || options.connect_timeout_ns < WEIR_NEVER ||
        options.idle_timeout_ns < WEIR_NEVER || options.write_timeout_ns < WEIR_NEVER ||
        options.linger_timeout_ns < WEIR_NEVER)
        return -EINVAL;
    uint64_t limit = options.queue_limit_bytes, high = options.queue_high_bytes, low = options.queue_low_bytes;
    limit = limit > 0 ? limit : LIMIT;
    high = high > 0 ? high : weir__min_u64(HIGH, limit - limit / 2);
    low = low > 0 ? low : high / 4;
    weir__stream_settings settings = {
        .queue_limit_bytes = limit,
        .queue_high_bytes = high,
        .queue_low_bytes = low,
        .connect_timeout_ns = timeout(options.connect_timeout_ns, defaults.connect_timeout_ns),
        .idle_timeout_ns = timeout(options.idle_timeout_ns, defaults.idle_timeout_ns),
        .write_timeout_ns = timeout(options.write_timeout_ns, defaults.write_timeout_ns),
        .linger_timeout_ns = timeout(options.linger_timeout_ns, defaults.linger_timeout_ns),
        .flags = options.flags,
    };
    r = weir__stream_settings_complete(&settings);
    if (r >= 0)
        *ret_settings = settings;
    return r;
}

/* ---- sharing ---------------------------------------------------------------------------------------- */

typedef struct shared_settings {
    weir__stream_settings values;
    _Atomic(uint32_t) refs;
} shared_settings;

static shared_settings *to_shared(const weir__stream_settings *settings) {
    return WEIR__CONTAINER((weir__stream_settings *)(uintptr_t)settings, shared_settings, values);
}

const weir__stream_settings *weir__stream_settings_share(const weir_allocator *allocator,
                                                         const weir__stream_settings *values) {
    static_assert(sizeof *values == 7 * sizeof(uint64_t) + 2 * sizeof(uint32_t), "it is compared as bytes");
    if (memcmp(values, &defaults, sizeof *values) == 0)
        return &defaults;
    shared_settings *shared = weir__alloc(allocator, sizeof *shared);
    if (shared == NULL)
        return NULL;
    shared->values = *values;
    atomic_init(&shared->refs, 1);
    return &shared->values;
}

const weir__stream_settings *weir__stream_settings_ref(const weir__stream_settings *settings) {
    if (settings != &defaults)
        atomic_fetch_add_explicit(&to_shared(settings)->refs, 1, memory_order_relaxed);
    return settings;
}

void weir__stream_settings_unref(const weir_allocator *allocator, const weir__stream_settings *settings) {
    if (settings == NULL || settings == &defaults)
        return;
    shared_settings *shared = to_shared(settings);
    if (atomic_fetch_sub_explicit(&shared->refs, 1, memory_order_acq_rel) == 1)
        weir__free(allocator, shared, sizeof *shared);
}
