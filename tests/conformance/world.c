/* SPDX-License-Identifier: MIT */
#include "conformance/world.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <sys/un.h>
#include <time.h>

/* ---- memory and the process ----------------------------------------------------------------------------- */

static void *world_alloc(size_t size, size_t alignment, void *userdata) {
    world *w = userdata;
    void *block = aligned_alloc(alignment, (size + alignment - 1) & ~(alignment - 1));
    if (block == NULL)
        return NULL;
    memset(block, 0xA5, size); /* what is not initialised shall be noticed */
    atomic_fetch_add(&w->live_blocks, 1);
    atomic_fetch_add(&w->live_bytes, size);
    return block;
}

static void world_free(void *block, size_t size, size_t alignment, void *userdata) {
    world *w = userdata;
    (void)alignment;
    memset(block, 0x5A, size); /* nor shall what is freed be used */
    free(block);
    atomic_fetch_sub(&w->live_blocks, 1);
    atomic_fetch_sub(&w->live_bytes, size);
}

static unsigned count_entries(const char *path) {
    DIR *directory = opendir(path);
    assert_non_null(directory);
    unsigned count = 0;
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL)
        count += entry->d_name[0] != '.';
    closedir(directory);
    return count;
}

static unsigned count_fds(void) {
    return count_entries("/proc/self/fd") - 1; /* the directory's own */
}

static unsigned count_threads(void) {
    return count_entries("/proc/self/task");
}

int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void sleep_ms(unsigned ms) {
    struct timespec time = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };
    while (nanosleep(&time, &time) < 0)
        ;
}

static void *end_at_once(void *userdata) {
    return userdata;
}

/* ThreadSanitizer makes a thread of its own at the first one that the program makes: before anybody counts threads. */
__attribute__((constructor)) static void make_the_first_thread(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, end_at_once, NULL) == 0)
        pthread_join(thread, NULL);
}

/* ---- a world -------------------------------------------------------------------------------------------- */

uint32_t world_mode(void) {
    const char *mode = getenv("WEIR_TEST_MODE");
    if (mode == NULL || strcmp(mode, "auto") == 0)
        return WEIR_BACKEND_AUTO;
    if (strcmp(mode, "incremental") == 0)
        return WEIR_BACKEND_URING_INCREMENTAL;
    if (strcmp(mode, "classic") == 0)
        return WEIR_BACKEND_URING_CLASSIC;
    if (strcmp(mode, "epoll") == 0)
        return WEIR_BACKEND_EPOLL;
    fprintf(stderr, "WEIR_TEST_MODE=%s: no such mode\n", mode);
    exit(1);
}

int world_main(const struct CMUnitTest *tests, size_t count) {
    char reason[WEIR_REASON_SIZE] = "";
    const weir_loop_options options = {
        .size = sizeof options, .backend = world_mode(), .reason = reason, .reason_size = sizeof reason
    };
    weir_loop *loop;
    int result = weir_loop_new(&options, &loop);
    /* epoll is everywhere. */
    if ((result == -ENOSYS || result == -EPERM) && options.backend != WEIR_BACKEND_EPOLL &&
        options.backend != WEIR_BACKEND_AUTO) {
        printf("1..0 # SKIP %s\n", reason);
        return 77;
    }
    if (result < 0) {
        fprintf(stderr, "no loop: %s: %s\n", weir_error_name(result), reason);
        return 1;
    }
    if (weir_loop_close(loop) != 0)
        return 1;
    weir_loop_unref(loop);
    return _cmocka_run_group_tests("conformance", tests, count, NULL, NULL);
}

static void open_loop(world *w, weir_loop_options *options) {
    options->size = sizeof *options;
    options->backend = world_mode();
    options->allocator = &w->allocator;
    ok(weir_loop_new(options, &w->loop));
}

void world_open(world *w, weir_loop_options *options) {
    memset(w, 0, sizeof *w);
    w->allocator = (weir_allocator){
        .size = sizeof(weir_allocator), .alloc = world_alloc, .free = world_free, .userdata = w
    };
    w->fds = count_fds();
    w->threads = count_threads();
    open_loop(w, options);
}

void world_close_loop(world *w) {
    weir_pool_stats pool = pool_stats(w);
    assert_true(pool.peak_bytes <= pool.budget_bytes);
    assert_true(pool.used_bytes <= pool.peak_bytes);
    ok(weir_loop_close(w->loop));
    assert_int_equal(loop_stats(w).streams_open, 0);
    assert_int_equal(loop_stats(w).listeners_open, 0);
    w->loop = weir_loop_unref(w->loop);
}

void world_close(world *w) {
    if (w->loop != NULL) {
        assert_int_equal(loop_stats(w).streams_open, 0);
        assert_int_equal(pool_stats(w).parked_streams, 0);
        world_close_loop(w);
    }
    world_told(w, "", "after the end", 0);
    assert_int_equal(atomic_load(&w->live_blocks), 0);
    assert_int_equal(atomic_load(&w->live_bytes), 0);
    assert_int_equal(count_fds(), w->fds);
    /* A thread that was joined may be seen for a moment longer. */
    for (int i = 0; i < 100 && count_threads() != w->threads; i++)
        sleep_ms(10);
    assert_int_equal(count_threads(), w->threads);
}

static world the_world;

int world_setup(void **state) {
    weir_loop_options options = { .size = 0 };
    world_open(&the_world, &options);
    *state = &the_world;
    return 0;
}

int world_teardown(void **state) {
    world_close(*state);
    return 0;
}

void world_reopen(world *w, weir_loop_options *options) {
    world_close_loop(w);
    open_loop(w, options);
}

void turns(world *w, unsigned count) {
    while (count-- > 0)
        assert_true(weir_loop_run_once(w->loop, 0) >= 0);
}

/* ---- its story ------------------------------------------------------------------------------------------ */

static void append(world *w, const char *format, ...) __attribute__((format(printf, 2, 3)));
static void append(world *w, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(w->story + w->length, sizeof w->story - w->length, format, arguments);
    va_end(arguments);
    assert_true(n >= 0 && (size_t)n < sizeof w->story - w->length);
    w->length += (size_t)n;
}

static void finish_line(world *w) {
    voice *v = w->talking;
    w->talking = NULL;
    if (v == NULL || v->said == 0)
        return;
    if (v->seed == 0 && v->said < sizeof v->text)
        append(w, "%s: data '%.*s'\n", v->name, (int)v->said, v->text);
    else
        append(w, "%s: data %llu%s\n", v->name, (unsigned long long)v->said,
               v->is_wrong || v->seed == 0 ? " WRONG" : "");
    v->said = 0;
    v->is_wrong = false;
}

static void take(voice *v, const void *data, size_t size) {
    if (v->seed != 0)
        v->is_wrong |= test_differs(v->seed, v->size, data, size) != -1;
    else if (v->said < sizeof v->text)
        memcpy(v->text + v->said, data, size < sizeof v->text - v->said ? size : sizeof v->text - v->said);
    v->said += size;
    v->size += size;
}

void say(world *w, const char *format, ...) {
    va_list arguments;
    char line[256];
    finish_line(w);
    va_start(arguments, format);
    assert_in_range(vsnprintf(line, sizeof line, format, arguments), 1, sizeof line - 1);
    va_end(arguments);
    append(w, "%s\n", line);
}

void say_data(voice *v, const void *data, size_t size) {
    if (v->is_quiet) {
        assert_int_equal(test_differs(v->seed, v->size, data, size), -1);
        v->size += size;
        return;
    }
    if (v->world->talking != v)
        finish_line(v->world);
    v->world->talking = v;
    take(v, data, size);
}

void world_told(world *w, const char *expected, const char *file, int line) {
    finish_line(w);
    if (strcmp(w->story, expected) != 0)
        fail_msg("%s:%d: told in mode %u:\n%s-- expected:\n%s--", file, line, world_mode(), w->story, expected);
    w->length = 0;
    w->story[0] = '\0';
}

void forget_story(world *w) {
    w->talking = NULL;
    w->length = 0;
    w->story[0] = '\0';
}

void world_gave_up(world *w, const char *condition) {
    finish_line(w);
    fail_msg("never came true in mode %u: %s; told until then:\n%s--", world_mode(), condition, w->story);
}

weir_loop_stats loop_stats(const world *w) {
    weir_loop_stats stats = { .size = sizeof stats };
    ok(weir_loop_get_stats(w->loop, &stats));
    return stats;
}

weir_pool_stats pool_stats(const world *w) {
    weir_pool_stats stats = { .size = sizeof stats };
    ok(weir_pool_get_stats(weir_loop_get_pool(w->loop), &stats));
    return stats;
}

weir_stream_stats stream_stats(const weir_stream *stream) {
    weir_stream_stats stats = { .size = sizeof stats };
    ok(weir_stream_get_stats(stream, &stats));
    return stats;
}

void counted(world *w, uint64_t in, uint64_t out, uint64_t copied, uint64_t accepted) {
    weir_loop_stats stats = loop_stats(w);
    assert_int_equal(stats.bytes_in, in);
    assert_int_equal(stats.bytes_out, out);
    assert_int_equal(stats.bytes_copied, copied);
    assert_int_equal(stats.accepted, accepted);
}

const char *error_text(int error) {
    return error == 0 ? "0" : weir_error_name(error);
}

/* ---- streams -------------------------------------------------------------------------------------------- */

static const char *reason_text(int reason) {
    static const char *const names[] = { "0",    "LOCAL", "PEER",   "ABORT", "ERROR", "CONNECT",
                                         "IDLE", "WRITE", "LINGER", "PIPE",  "DRAIN", "LOOP" };
    assert_in_range(reason, 1, sizeof names / sizeof *names - 1);
    return names[reason];
}

static void tell(const teller *t, const char *text) {
    if (!t->voice.is_quiet)
        say(t->voice.world, "%s: %s", t->voice.name, text);
}

static void called(teller *t, weir_stream *stream, char event, const weir_slice *slice) {
    assert_ptr_equal(stream, t->stream);
    assert_int_equal(weir_loop_is_own_thread(weir_stream_get_loop(stream)), 1);
    if (t->hook != NULL)
        t->hook(t, event, slice);
}

static void on_open(weir_stream *stream, void *userdata) {
    teller *t = userdata;
    t->opens++;
    tell(t, "open");
    called(t, stream, 'o', NULL);
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    teller *t = userdata;
    assert_true(slice->size > 0);
    say_data(&t->voice, slice->data, slice->size);
    called(t, stream, 'd', slice);
}

static void on_end(weir_stream *stream, void *userdata) {
    teller *t = userdata;
    t->ends++;
    tell(t, "end");
    called(t, stream, 'e', NULL);
}

static void on_drain(weir_stream *stream, void *userdata) {
    teller *t = userdata;
    t->drains++;
    tell(t, "drain");
    called(t, stream, 'r', NULL);
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    teller *t = userdata;
    t->closes++;
    t->reason = reason;
    t->error = error;
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_CLOSED);
    assert_int_equal(weir_stream_get_fd(stream), -EBADF);
    char text[64];
    snprintf(text, sizeof text, "close %s %s", reason_text(reason), error_text(error));
    tell(t, text);
    called(t, stream, 'c', NULL);
    t->stream = NULL;
}

const weir_stream_callbacks teller_callbacks = {
    .size = sizeof teller_callbacks,
    .on_open = on_open,
    .on_data = on_data,
    .on_end = on_end,
    .on_drain = on_drain,
    .on_close = on_close,
};

const weir_stream_callbacks deaf_callbacks = {
    .size = sizeof deaf_callbacks,
    .on_open = on_open,
    .on_end = on_end,
    .on_drain = on_drain,
    .on_close = on_close,
};

const weir_stream_callbacks endless_callbacks = {
    .size = sizeof endless_callbacks,
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_close = on_close,
};

void teller_start(world *w, teller *t, const char *name, weir_stream *stream) {
    t->voice.world = w;
    t->voice.name = name;
    t->stream = stream;
    ok(weir_stream_start(stream, &teller_callbacks, t));
}

void teller_adopt(world *w, teller *t, const char *name, int fd, const weir_stream_options *options) {
    weir_stream *stream;
    ok(weir_stream_adopt(w->loop, fd, options, &stream));
    teller_start(w, t, name, stream);
}

void teller_dial(world *w, teller *t, const char *name, const char *address, const weir_stream_options *options) {
    weir_stream *stream;
    ok(weir_stream_dial(w->loop, address, options, &stream));
    teller_start(w, t, name, stream);
}

int teller_pair(world *w, teller *t, const char *name, bool tcp, const weir_stream_options *options) {
    int fds[2];
    peer_pair(tcp, fds);
    teller_adopt(w, t, name, fds[0], options);
    return fds[1];
}

/* ---- accepting ------------------------------------------------------------------------------------------ */

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    gate *g = userdata;
    assert_ptr_equal(listener, g->listener);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_UNSTARTED);
    say(g->world, "gate: accept");
    if (g->count < sizeof g->streams / sizeof *g->streams)
        g->streams[g->count] = stream;
    if (g->tellers != NULL) {
        teller *t = &g->tellers[g->count];
        teller_start(g->world, t, t->voice.name, stream);
    }
    g->count++;
    if (g->hook != NULL)
        g->hook(g, stream);
}

static void on_gate_close(weir_listener *listener, int error, void *userdata) {
    gate *g = userdata;
    assert_ptr_equal(listener, g->listener);
    g->closes++;
    say(g->world, "gate: close %s", error_text(error));
    g->listener = NULL;
}

const weir_listener_callbacks gate_callbacks = { .size = sizeof gate_callbacks,
                                                 .on_accept = on_accept,
                                                 .on_close = on_gate_close };

void gate_open(world *w, gate *g, const char *address, const weir_listener_options *options, teller *tellers) {
    g->world = w;
    g->tellers = tellers;
    ok(weir_listener_open(w->loop, address, options, &g->listener));
    ok(weir_listener_start(g->listener, &gate_callbacks, g));
}

/* ---- peers ---------------------------------------------------------------------------------------------- */

static int connect_to(const struct sockaddr *address, socklen_t length) {
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    ok(connect(fd, address, length));
    return fd;
}

int peer_connect(const weir_listener *listener) {
    char text[WEIR_ADDRESS_SIZE];
    assert_true(weir_listener_get_address(listener, text, sizeof text) > 0);
    if (strncmp(text, "unix:", 5) == 0) {
        struct sockaddr_un un = { .sun_family = AF_UNIX };
        size_t length = strlen(text + 5);
        memcpy(un.sun_path, text + 5, length);
        if (text[5] == '@')
            un.sun_path[0] = '\0';
        return connect_to((struct sockaddr *)&un, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + length));
    }
    struct sockaddr_in in = { .sin_family = AF_INET,
                              .sin_port = htons((uint16_t)strtoul(strrchr(text, ':') + 1, NULL, 10)),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    return connect_to((struct sockaddr *)&in, sizeof in);
}

static int listen_on_loopback(struct sockaddr_in *ret_address) {
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof in;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    ok(bind(fd, (struct sockaddr *)&in, sizeof in));
    ok(listen(fd, 1));
    ok(getsockname(fd, (struct sockaddr *)&in, &length));
    *ret_address = in;
    return fd;
}

void peer_pair(bool tcp, int ret_fds[2]) {
    if (!tcp) {
        ok(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ret_fds));
        return;
    }
    struct sockaddr_in in;
    int listener = listen_on_loopback(&in);
    ret_fds[0] = connect_to((struct sockaddr *)&in, sizeof in);
    ret_fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(ret_fds[1] >= 0);
    close(listener);
}

void free_address(char *text, size_t size) {
    struct sockaddr_in in;
    int fd = listen_on_loopback(&in);
    close(fd);
    snprintf(text, size, "127.0.0.1:%u", ntohs(in.sin_port));
}

void peer_send(int fd, const void *data, size_t size) {
    const uint8_t *bytes = data;
    while (size > 0) {
        ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL);
        assert_true(n > 0);
        bytes += n;
        size -= (size_t)n;
    }
}

void peer_send_text(int fd, const char *text) {
    peer_send(fd, text, strlen(text));
}

void peer_reset(int fd) {
    struct linger linger = { .l_onoff = 1, .l_linger = 0 };
    ok(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger));
    close(fd);
}

uint64_t peer_hear(world *w, voice *v, int fd, uint64_t size) {
    static uint8_t buffer[65536];
    uint64_t had = v->size;
    ssize_t n = 1;
    int error = 0;
    v->world = w;
    while (n > 0 && v->size - had < size) {
        uint64_t rest = size - (v->size - had);
        until(w, (n = recv(fd, buffer, rest < sizeof buffer ? rest : sizeof buffer, MSG_DONTWAIT)) >= 0 ||
                     errno != EAGAIN);
        error = errno;
        if (n > 0)
            take(v, buffer, (size_t)n);
    }
    finish_line(w);
    w->talking = v;
    finish_line(w);
    if (n <= 0)
        say(w, "%s: %s", v->name, n == 0 ? "end" : error_text(-error));
    return v->size - had;
}

uint64_t peer_hear_all(world *w, voice *v, int fd) {
    return peer_hear(w, v, fd, UINT64_MAX);
}

void small_send_buffer(int fd) {
    int bytes = 8192;
    ok(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes));
}
