/* SPDX-License-Identifier: MIT */

/*
 * Option structures of any size and with any bytes, held against a second reading of the rules: what is to be refused
 * is refused with the error that the headers promise, what is taken has its defaults, and a loop that is made with it
 * leaves nothing behind. The loop runs on the scripted kernel.
 */

#include "base/options.h"
#include "fuzz/fuzz.h"
#include "scripted/scripted.h"
#include "socket/stream.h"

enum { MOST = 4096, PAGE = 4096 };

/* A structure as somebody else's program has it: it says a size, and there is as much memory. */
typedef struct structure {
    uint8_t *bytes;
    size_t claimed; /* what it says */
    size_t room;    /* what there is; less only if a byte in it says already that it is not understood */
} structure;

/* @fields: the size of each field of the structure that the library knows, without the first one; 0 ends. */
static structure take_structure(fuzz_input *input, const uint8_t *fields, size_t known) {
    structure s;
    switch (fuzz_take(input, 1) % 8) {
    case 0:
        s.claimed = (size_t)fuzz_take(input, 2);
        break;
    case 1:
        s.claimed = (size_t)fuzz_number(input);
        break;
    case 2:
        s.claimed = known + (size_t)fuzz_take(input, 1);
        break;
    case 3:
        s.claimed = known - 1 - (size_t)fuzz_take(input, 1) % known;
        break;
    default:
        s.claimed = known;
        break;
    }
    s.room = s.claimed < sizeof s.claimed ? sizeof s.claimed : s.claimed < MOST ? s.claimed : MOST;
    s.bytes = malloc(s.room);
    FUZZ_CHECK(s.bytes != NULL);
    memset(s.bytes, 0, s.room);
    memcpy(s.bytes, &s.claimed, sizeof s.claimed);
    size_t at = sizeof s.claimed;
    for (; *fields != 0 && at + *fields <= s.room; at += *fields++) {
        uint64_t number = fuzz_number(input);
        memcpy(s.bytes + at, &number, *fields);
    }
    if (s.room > known && fuzz_take(input, 1) % 4 == 0) /* else it is newer, and asks for nothing new */
        s.bytes[known + fuzz_take(input, 2) % (s.room - known)] = (uint8_t)fuzz_take(input, 1);
    if (s.claimed > s.room)
        s.bytes[s.room - 1] = 1;
    return s;
}

/* What reading it must come to, and what it then says. */
static int read_structure(const structure *s, size_t known, void *ret_values) {
    memset(ret_values, 0, known);
    if (s == NULL)
        return 0;
    if (s->claimed < known)
        return -EINVAL;
    for (size_t i = known; i < s->room; i++)
        if (s->bytes[i] != 0)
            return -E2BIG;
    memcpy(ret_values, s->bytes, known);
    return 0;
}

/* NULL is a structure too. */
static const void *pointer(const structure *s) {
    return s != NULL ? s->bytes : NULL;
}

static structure *maybe(fuzz_input *input, structure *s) {
    return fuzz_take(input, 1) % 8 == 0 ? NULL : s;
}

/* ---- the structures themselves ------------------------------------------------------------------------ */

static const uint8_t pool_fields[] = { 8, 8, 4, 4, 0 };
static const uint8_t stream_fields[] = { 4, 4, 8, 8, 8, 8, 8, 8, 8, 0 };
static const uint8_t listener_fields[] = { 4, 4, 4, 4, 0 }; /* the pointer is set by hand */
static const uint8_t loop_fields[] = { 4, 4, 0 };           /* likewise */

/* 0 or -EINVAL, and in which memory that ends. */
static int pool_is_good(const weir_pool_options *o, uint32_t mode_bytes, uint64_t *ret_window,
                        uint64_t *ret_buffer) {
    uint64_t budget = o->budget_bytes != 0 ? o->budget_bytes : UINT64_C(64) << 20;
    uint64_t buffer = o->buffer_bytes != 0 ? o->buffer_bytes : mode_bytes;
    uint64_t window = o->window_bytes;
    if (buffer < PAGE || buffer > 16 << 20 || __builtin_popcountll(buffer) != 1 || budget < buffer)
        return -EINVAL;
    if (window == 0) {
        window = buffer > 1 << 20 ? buffer : 1 << 20;
        window = window < budget ? window : budget;
    }
    *ret_window = window;
    *ret_buffer = buffer;
    if (o->reserve_bytes > budget - buffer)
        return -EINVAL;
    return window >= buffer && window <= budget ? 0 : -EINVAL;
}

static int stream_is_good(const weir_stream_options *o) {
    if ((o->flags & ~7U) != 0 || o->reserved != 0 || o->connect_timeout_ns < -1 || o->idle_timeout_ns < -1 ||
        o->write_timeout_ns < -1 || o->linger_timeout_ns < -1)
        return -EINVAL;
    uint64_t limit = o->queue_limit_bytes != 0 ? o->queue_limit_bytes : UINT64_C(16) << 20;
    uint64_t high = o->queue_high_bytes;
    if (high == 0)
        high = limit < 2 << 20 ? (limit + 1) / 2 : 1 << 20;
    uint64_t low = o->queue_low_bytes != 0 ? o->queue_low_bytes : high / 4;
    return low <= high && high <= limit ? 0 : -EINVAL;
}

static void try_any(fuzz_input *input) {
    uint8_t fields[9] = { 0 };
    size_t known = sizeof(size_t);
    for (uint64_t count = fuzz_take(input, 1) % 8; count > 0; count--)
        known += fields[count - 1] = 8;
    uint8_t *ours = malloc(known), *expected = malloc(known);
    FUZZ_CHECK(ours != NULL && expected != NULL);
    structure s = take_structure(input, fields, known), *which = maybe(input, &s);
    int r = read_structure(which, known, expected);
    FUZZ_CHECK(weir__options_read(ours, known, known, pointer(which)) == r);
    FUZZ_CHECK(r < 0 || memcmp(ours, expected, known) == 0);
    if (which != NULL && s.claimed >= sizeof(size_t)) {
        /* An older caller, before what came last: its fields are taken, the new ones have their default. */
        size_t least = sizeof(size_t) + (size_t)fuzz_take(input, 1) % (known - sizeof(size_t) + 1);
        r = weir__options_read(ours, known, least, s.bytes);
        FUZZ_CHECK((r == -EINVAL) == (s.claimed < least));
        size_t common = s.claimed < known ? s.claimed : known;
        if (r == 0) {
            FUZZ_CHECK(memcmp(ours, s.bytes, common) == 0);
            for (size_t i = common; i < known; i++)
                FUZZ_CHECK(ours[i] == 0);
        }
    }
    free(ours);
    free(expected);
    free(s.bytes);
}

static void try_pool(fuzz_input *input) {
    structure s = take_structure(input, pool_fields, sizeof(weir_pool_options));
    weir_pool_options options, expected;
    uint32_t mode_bytes = fuzz_take(input, 1) % 2 == 0 ? 64 << 10 : 16 << 10;
    int r = read_structure(&s, sizeof options, &expected);
    FUZZ_CHECK(weir__options_read(&options, sizeof options, sizeof options, s.bytes) == r);
    if (r == 0) {
        weir__pool_config config = { .page_bytes = PAGE };
        uint64_t window = 0, buffer = 0;
        r = pool_is_good(&expected, mode_bytes, &window, &buffer);
        FUZZ_CHECK(weir__pool_configure(&options, mode_bytes, &config) == r);
        FUZZ_CHECK(r < 0 || (config.buffer_bytes == buffer && config.window_bytes <= window &&
                             config.window_bytes >= buffer && config.budget_bytes >= window));
    }
    free(s.bytes);
}

static void try_stream(fuzz_input *input) {
    structure s = take_structure(input, stream_fields, sizeof(weir_stream_options)), *which = maybe(input, &s);
    weir__stream_settings settings;
    weir_stream_options expected;
    int r = read_structure(which, sizeof expected, &expected);
    if (r == 0)
        r = stream_is_good(&expected);
    FUZZ_CHECK(weir__stream_settings_read(pointer(which), &settings) == r);
    if (r == 0) {
        FUZZ_CHECK(settings.queue_low_bytes <= settings.queue_high_bytes &&
                   settings.queue_high_bytes <= settings.queue_limit_bytes && settings.queue_limit_bytes > 0);
        FUZZ_CHECK(settings.connect_timeout_ns != 0 && settings.linger_timeout_ns != 0);
        FUZZ_CHECK(settings.idle_timeout_ns != 0 && settings.write_timeout_ns != 0);
        FUZZ_CHECK(expected.idle_timeout_ns == 0 || settings.idle_timeout_ns == expected.idle_timeout_ns);
        FUZZ_CHECK(expected.write_timeout_ns == 0 || settings.write_timeout_ns == expected.write_timeout_ns);
        FUZZ_CHECK(expected.connect_timeout_ns == 0 || settings.connect_timeout_ns == expected.connect_timeout_ns);
        FUZZ_CHECK(expected.linger_timeout_ns == 0 || settings.linger_timeout_ns == expected.linger_timeout_ns);
    }
    free(s.bytes);
}

/* ---- a loop of them ----------------------------------------------------------------------------------- */

/* What is filled for the caller has a size too; what is beyond the library's is zeroed. */
static void try_stats(fuzz_input *input, weir_loop *loop) {
    size_t claimed = fuzz_take(input, 1) % 2 == 0 ? (size_t)fuzz_take(input, 2) % MOST : 0, known;
    uint64_t which = fuzz_take(input, 1) % 3;
    known = which == 0 ? sizeof(weir_loop_info) : which == 1 ? sizeof(weir_loop_stats) : sizeof(weir_pool_stats);
    claimed = claimed > 0 ? claimed : known;
    uint8_t *bytes = malloc(claimed < sizeof claimed ? sizeof claimed : claimed);
    FUZZ_CHECK(bytes != NULL);
    memset(bytes, 0xEE, claimed);
    memcpy(bytes, &claimed, sizeof claimed);
    int r = which == 0   ? weir_loop_get_info(loop, (weir_loop_info *)(void *)bytes)
            : which == 1 ? weir_loop_get_stats(loop, (weir_loop_stats *)(void *)bytes)
                         : weir_pool_get_stats(weir_loop_get_pool(loop), (weir_pool_stats *)(void *)bytes);
    FUZZ_CHECK(r == (claimed < known ? -EINVAL : 0));
    FUZZ_CHECK(memcmp(bytes, &claimed, sizeof claimed) == 0);
    for (size_t i = known; i < claimed; i++)
        FUZZ_CHECK(bytes[i] == 0);
    free(bytes);
}

static void use_loop(fuzz_input *input, weir_loop *loop) {
    weir_stream *stream;
    weir_listener *listener;
    weir_stream_options of_stream;
    weir_listener_options of_listener;
    try_stats(input, loop);
    structure s = take_structure(input, stream_fields, sizeof of_stream), *dialled = maybe(input, &s);
    int stream_result = read_structure(dialled, sizeof of_stream, &of_stream);
    if (stream_result == 0)
        stream_result = stream_is_good(&of_stream);
    FUZZ_CHECK(weir_stream_dial(loop, "127.0.0.1:9", pointer(dialled), &stream) == stream_result);
    if (stream_result == 0)
        (void)weir_stream_close(stream);

    structure l = take_structure(input, listener_fields, sizeof of_listener), *opened = maybe(input, &l);
    if (l.room >= sizeof of_listener)
        memcpy(l.bytes + offsetof(weir_listener_options, stream), &(const void *){ pointer(dialled) },
               sizeof(void *));
    int r = read_structure(opened, sizeof of_listener, &of_listener);
    if (r == 0 && ((of_listener.flags & ~7U) != 0 || of_listener.reserved != 0 || of_listener.backlog > INT32_MAX))
        r = -EINVAL;
    if (r == 0 && opened != NULL)
        r = stream_result;
    FUZZ_CHECK(weir_listener_open(loop, "127.0.0.1:0", pointer(opened), &listener) == r);
    free(s.bytes);
    free(l.bytes);
}

static void try_loop(fuzz_input *input) {
    static const weir__tuning tuning = { .no_self_test =
                                             true }; /* the scripted kernel answers nothing by itself */
    fuzz_memory memory;
    weir_loop_options options;
    weir_pool_options of_pool;
    weir_loop *loop = NULL;
    fuzz_memory_init(&memory);
    script_begin();
    script_answer_cancels(true);

    structure p = take_structure(input, pool_fields, sizeof of_pool), *pool = maybe(input, &p);
    structure l = take_structure(input, loop_fields, sizeof options);
    size_t reason_size = (size_t)fuzz_take(input, 1);
    char *reason = fuzz_copy(l.bytes, 0);
    reason = realloc(reason, reason_size + 1);
    FUZZ_CHECK(reason != NULL);
    memset(reason, 'x', reason_size + 1);
    uint64_t mistake = fuzz_take(input, 1);
    if (mistake % 16 == 1)
        memory.allocator.size = (size_t)fuzz_number(input);
    if (mistake % 16 == 2)
        memory.allocator.alloc = NULL;
    if (mistake % 16 == 3)
        memory.allocator.free = NULL;
    if (l.room >= sizeof options) {
        memcpy(&options, l.bytes, sizeof options);
        options.pool = pointer(pool);
        options.allocator = &memory.allocator;
        options.reason = mistake % 16 == 4 ? NULL : reason;
        options.reason_size = reason_size;
        options.max_streams = 1 + (uint32_t)fuzz_number(input);
        options.max_streams = options.max_streams > 0 ? options.max_streams : 1;
        options.max_turn_events = (uint32_t)fuzz_number(input);
        if (mistake % 16 >= 8) {
            options.busy_poll = (uint32_t)fuzz_number(input) % 5;
            options.busy_poll_share_percent = (uint32_t)fuzz_number(input) % 128;
            options.busy_poll_ns = (int64_t)fuzz_number(input);
        }
        memcpy(l.bytes, &options, sizeof options);
    }
    int r = read_structure(&l, sizeof options, &options);
    bool is_read = r == 0;
    if (r == 0 && (options.backend > WEIR_BACKEND_EPOLL || (options.flags & ~1U) != 0 || options.busy_poll > 2 ||
                   options.busy_poll_share_percent > 100 || options.busy_poll_ns < 0 ||
                   options.busy_poll_ns > 10000000 || memory.allocator.size < sizeof(weir_allocator) ||
                   memory.allocator.alloc == NULL || memory.allocator.free == NULL))
        r = -EINVAL;
    if (r == 0)
        r = read_structure(pool, sizeof of_pool, &of_pool);
    uint64_t window = 0, buffer = 1;
    if (r == 0)
        r = pool_is_good(&of_pool, options.backend == WEIR_BACKEND_URING_CLASSIC ? 16 << 10 : 64 << 10, &window,
                         &buffer);
    if (window <= 16 << 20 && window / buffer <= 64) { /* else it is only slow */
        FUZZ_CHECK(weir__loop_new((const weir_loop_options *)(const void *)l.bytes, &tuning, &loop) == r);
        FUZZ_CHECK((loop != NULL) == (r == 0));
        FUZZ_CHECK(reason[reason_size] == 'x');
        if (is_read && options.reason != NULL && reason_size > 0)
            FUZZ_CHECK(memchr(reason, '\0', reason_size) != NULL &&
                       (reason_size == 1 || (*reason == '\0') == (r == 0)));
    }
    if (loop != NULL) {
        use_loop(input, loop);
        FUZZ_CHECK(weir_loop_close(loop) == 0);
        weir_loop_unref(loop);
    }
    FUZZ_CHECK(memory.live_blocks == 0 && memory.live_bytes == 0);
    script_end();
    free(reason);
    free(p.bytes);
    free(l.bytes);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input input = { data, size };
    switch (fuzz_take(&input, 1) % 4) {
    case 0:
        try_any(&input);
        break;
    case 1:
        try_pool(&input);
        break;
    case 2:
        try_stream(&input);
        break;
    default:
        try_loop(&input);
        break;
    }
    return 0;
}
