/* SPDX-License-Identifier: MIT */
/*
 * What an option is that nobody set: as the headers say, word for word, and as the library has it. The headers are read
 * here, so a default that is changed in one place only fails, and so does a new one that is not in the table below.
 */
#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>

#include "scripted/scripted.h"
#include "socket/stream.h"
#include "support/support.h"
#include "weir/listener.h"

static const weir__tuning tuning = { .no_self_test = true };

/* ---- what the library has ---------------------------------------------------------------------------- */

static struct {
    weir__stream_settings stream;
    uint32_t max_streams, max_turn_events, busy_poll;
    uint64_t busy_poll_ns, share_percent, fixed_share_percent;
    bool is_default_allocator;
    weir_pool_stats pool, classic_pool;
    int backlog;
    uint64_t handed_out; /* of a crowd, by a listener without a limit */
} ours;

enum { CROWD = 300 };

static weir_pool_stats pool_stats(weir_loop *loop) {
    weir_pool_stats stats = { .size = sizeof stats };
    test_ok(weir_pool_get_stats(weir_loop_get_pool(loop), &stats));
    return stats;
}

static void close_loop(weir_loop *loop) {
    test_ok(weir_loop_close(loop));
    weir_loop_unref(loop);
}

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener, (void)stream, (void)userdata;
    ours.handed_out++;
}

static const weir_listener_callbacks callbacks = { .size = sizeof callbacks, .on_accept = on_accept };

static void ask_a_listener(weir_loop *loop) {
    weir_listener *listener;
    test_ok(weir_listener_open(loop, "127.0.0.1:0", NULL, &listener));
    ours.backlog = script_backlog();
    test_ok(weir_listener_start(listener, &callbacks, NULL));
    assert_true(weir_loop_run_once(loop, 0) >= 0);
    script_entry *accept = script_live(1); /* behind the waker's poll */
    assert_non_null(accept);
    assert_int_equal(accept->sqe.opcode, IORING_OP_ACCEPT);
    for (int i = 0; i < CROWD; i++)
        script_complete(accept, weir__sys_socket(AF_INET, SOCK_STREAM), IORING_CQE_F_MORE);
    assert_true(weir_loop_run_once(loop, 0) >= 0);
}

/* The share is what may be saved up, and what comes to it in a window. */
static uint64_t share_of(const weir__spin *spin) {
    return (uint64_t)(spin->longest_ns + spin->rate_ns) / (WEIR__SPIN_WINDOW_NS / 100);
}

static void ask_for_busy_polling(void) {
    for (uint32_t mode = WEIR_BUSY_POLL_ADAPTIVE; mode <= WEIR_BUSY_POLL_FIXED; mode++) {
        const weir_loop_options options = { .size = sizeof options, .busy_poll = mode };
        weir_loop *loop;
        test_ok(weir__loop_new(&options, &tuning, &loop));
        ours.busy_poll_ns = (uint64_t)loop->spin.longest_ns;
        *(mode == WEIR_BUSY_POLL_FIXED ? &ours.fixed_share_percent : &ours.share_percent) = share_of(&loop->spin);
        close_loop(loop);
    }
}

static int ask_the_library(void **state) {
    (void)state;
    const weir_loop_options classic = { .size = sizeof classic, .backend = WEIR_BACKEND_URING_CLASSIC };
    weir_loop *loop;
    script_begin();
    script_answer_cancels(true);
    test_ok(weir__stream_settings_read(NULL, &ours.stream));
    test_ok(weir__loop_new(NULL, &tuning, &loop));
    assert_int_equal(loop->backend->mode, WEIR_BACKEND_URING_INCREMENTAL);
    ours.max_streams = loop->max_streams;
    ours.max_turn_events = loop->max_turn_events;
    ours.busy_poll = loop->spin.mode;
    ours.is_default_allocator = loop->allocator == &weir__default_allocator;
    ours.pool = pool_stats(loop);
    ask_a_listener(loop);
    close_loop(loop);
    ask_for_busy_polling();
    test_ok(weir__loop_new(&classic, &tuning, &loop));
    ours.classic_pool = pool_stats(loop);
    close_loop(loop);
    script_end();
    return 0;
}

/* ---- what the headers say ------------------------------------------------------------------------------ */

/* "64 MiB", "10 s", "1,000,000" */
static uint64_t number_of(const char *text) {
    static const struct {
        const char *unit;
        uint64_t factor;
    } units[] = { { " us", 1000 }, { " KiB", 1 << 10 }, { " MiB", 1 << 20 }, { " s", 1000000000 } };
    uint64_t number = 0;
    for (; isdigit((unsigned char)*text) || *text == ','; text++)
        if (*text != ',')
            number = number * 10 + (uint64_t)(*text - '0');
    for (size_t i = 0; i < sizeof units / sizeof *units; i++)
        if (strncmp(text, units[i].unit, strlen(units[i].unit)) == 0)
            return number * units[i].factor;
    return number;
}

static char headers[1 << 18];

static int read_headers(void **state) {
    static const char *const names[] = { "loop.h", "pool.h", "stream.h", "listener.h" };
    size_t size = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        char path[4096];
        snprintf(path, sizeof path, "%s/%s", WEIR_HEADERS, names[i]);
        FILE *file = fopen(path, "r");
        assert_non_null(file);
        size += fread(headers + size, 1, sizeof headers - 1 - size, file);
        assert_true(size < sizeof headers - 1);
        fclose(file);
    }
    return ask_the_library(state);
}

/* The next option structure; *at goes on inside it. */
static bool next_structure(const char **at, char name[64]) {
    while ((*at = strstr(*at, "typedef struct weir_")) != NULL) {
        int length = 0;
        int found = sscanf(*at, "typedef struct %63[a-z_] {%n", name, &length);
        *at += found == 1 && length > 0 ? length : 1;
        if (length > 0 && strstr(name, "_options") != NULL)
            return true;
    }
    return false;
}

/* Append a comment, if there is one just here, with its spaces and line ends made one space. */
static bool take_comment(const char **at, char *comment, size_t size) {
    if (strncmp(*at, "/*", 2) != 0)
        return false;
    const char *close = strstr(*at, "*/");
    assert_non_null(close);
    size_t length = strlen(comment);
    for (const char *c = *at + 2; c < close && length < size - 1; c++)
        if (!isspace((unsigned char)*c) || (length > 0 && comment[length - 1] != ' '))
            comment[length++] = (char)(isspace((unsigned char)*c) ? ' ' : *c);
    comment[length] = '\0';
    *at = close + 2;
    return true;
}

/* Its next field, and the comments above it and behind it. */
static bool next_field(const char **at, char name[64], char *comment, size_t size) {
    comment[0] = '\0';
    do
        *at += strspn(*at, " \n");
    while (take_comment(at, comment, size));
    const char *end = strpbrk(*at, ";}"), *begin = end;
    assert_non_null(end);
    if (*end == '}')
        return false;
    while (isalnum((unsigned char)begin[-1]) || begin[-1] == '_')
        begin--;
    snprintf(name, 64, "%.*s", (int)(end - begin), begin);
    *at = end + 1 + strspn(end + 1, " ");
    (void)take_comment(at, comment, size);
    return true;
}

/* ---- both ------------------------------------------------------------------------------------------------- */

typedef struct option_default {
    const char *structure, *field;
    const char *says;  /* a number with its unit, or words */
    uint64_t expected; /* what the words mean */
    uint64_t is;
    bool is_found;
} option_default;

/* One field of a header. false: the header tells of a default, and the table does not. */
static bool compare(option_default *table, size_t entries, const char *structure, const char *field,
                    const char *comment) {
    const char *says = strstr(comment, "efault"); /* with or without a capital */
    bool is_known = says == NULL;
    for (option_default *it = table; it < table + entries; it++) {
        if (strcmp(it->structure, structure) != 0 || strcmp(it->field, field) != 0)
            continue;
        if (says == NULL || strstr(says, it->says) == NULL)
            fail_msg("%s.%s: the header does not say \"%s\", but:%s", structure, field, it->says, comment);
        uint64_t expected = isdigit((unsigned char)it->says[0]) ? number_of(it->says) : it->expected;
        if (it->is != expected)
            fail_msg("%s.%s: the header says %s, and it is %llu", structure, field, it->says,
                     (unsigned long long)it->is);
        is_known = it->is_found = true;
    }
    return is_known;
}

static void every_default_is_what_its_header_says(void **state) {
    (void)state;
    const weir__stream_settings *stream = &ours.stream;
    const uint64_t window = (uint64_t)ours.pool.window_buffers * ours.pool.buffer_bytes;
    const uint64_t classic_window = (uint64_t)ours.classic_pool.window_buffers * ours.classic_pool.buffer_bytes;
    option_default table[] = {
        { "weir_stream_options", "queue_limit_bytes", "16 MiB", 0, stream->queue_limit_bytes, false },
        { "weir_stream_options", "queue_high_bytes", "1 MiB", 0, stream->queue_high_bytes, false },
        { "weir_stream_options", "queue_low_bytes", "a quarter of high", 256 << 10, stream->queue_low_bytes,
          false },
        { "weir_stream_options", "connect_timeout_ns", "30 s", 0, (uint64_t)stream->connect_timeout_ns, false },
        { "weir_stream_options", "linger_timeout_ns", "10 s", 0, (uint64_t)stream->linger_timeout_ns, false },
        { "weir_stream_options", "idle_timeout_ns", "none", (uint64_t)WEIR_NEVER,
          (uint64_t)stream->idle_timeout_ns, false },
        { "weir_stream_options", "write_timeout_ns", "60 s", 0, (uint64_t)stream->write_timeout_ns, false },
        { "weir_loop_options", "max_streams", "1,000,000", 0, ours.max_streams, false },
        { "weir_loop_options", "max_turn_events", "1024", 0, ours.max_turn_events, false },
        { "weir_loop_options", "busy_poll", "off", WEIR_BUSY_POLL_OFF, ours.busy_poll, false },
        { "weir_loop_options", "busy_poll_share_percent", "50", 0, ours.share_percent, false },
        { "weir_loop_options", "busy_poll_share_percent", "FIXED: 100", 100, ours.fixed_share_percent, false },
        { "weir_loop_options", "busy_poll_ns", "50 us", 0, ours.busy_poll_ns, false },
        { "weir_loop_options", "allocator", "mimalloc or libc", 1, ours.is_default_allocator, false },
        { "weir_pool_options", "budget_bytes", "64 MiB", 0, ours.pool.budget_bytes, false },
        { "weir_pool_options", "budget_bytes", "64 MiB", 0, ours.classic_pool.budget_bytes, false },
        { "weir_pool_options", "reserve_bytes", "an eighth", (64 << 20) / 8, ours.pool.reserve_bytes, false },
        { "weir_pool_options", "reserve_bytes", "an eighth", (64 << 20) / 8, ours.classic_pool.reserve_bytes,
          false },
        { "weir_pool_options", "buffer_bytes", "64 KiB", 0, ours.pool.buffer_bytes, false },
        { "weir_pool_options", "buffer_bytes", "16 KiB classic", 0, ours.classic_pool.buffer_bytes, false },
        { "weir_pool_options", "window_bytes", "1 MiB", 0, window, false },
        { "weir_pool_options", "window_bytes", "1 MiB", 0, classic_window, false },
        { "weir_listener_options", "backlog", "SOMAXCONN", SOMAXCONN, (uint64_t)ours.backlog, false },
        { "weir_listener_options", "max_streams", "none", CROWD, ours.handed_out, false },
    };
    enum { ENTRIES = sizeof table / sizeof *table };
    const char *at = headers;
    char structure[64], field[64], comment[512];
    while (next_structure(&at, structure))
        while (next_field(&at, field, comment, sizeof comment))
            if (!compare(table, ENTRIES, structure, field, comment))
                fail_msg("%s.%s has a default that is not looked at here:%s", structure, field, comment);
    for (size_t i = 0; i < ENTRIES; i++)
        if (!table[i].is_found)
            fail_msg("no header says what %s.%s is by default", table[i].structure, table[i].field);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_default_is_what_its_header_says),
    };
    return cmocka_run_group_tests_name("defaults", tests, read_headers, NULL);
}
