/* SPDX-License-Identifier: MIT */
#include "support/support.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "loop/loop.h"

/* ---- an allocator ----------------------------------------------------------------------------------- */

static void *memory_alloc(size_t size, size_t alignment, void *userdata) {
    test_memory *memory = userdata;
    uint64_t number = atomic_fetch_add(&memory->allocations, 1) + 1;
    uint64_t every = atomic_load(&memory->fail_every);
    if (number == atomic_load(&memory->fail_at) || (every > 0 && number % every == 0)) {
        atomic_fetch_add(&memory->failed, 1);
        return NULL;
    }
    void *block = aligned_alloc(alignment, (size + alignment - 1) & ~(alignment - 1));
    if (block == NULL)
        return NULL;
    memset(block, 0xA5, size); /* what is not initialised shall be noticed */
    atomic_fetch_add(&memory->live_blocks, 1);
    atomic_fetch_add(&memory->live_bytes, size);
    return block;
}

static void memory_free(void *block, size_t size, size_t alignment, void *userdata) {
    test_memory *memory = userdata;
    (void)alignment;
    memset(block, 0x5A, size); /* nor shall what is freed be used */
    free(block);
    atomic_fetch_sub(&memory->live_blocks, 1);
    atomic_fetch_sub(&memory->live_bytes, size);
}

void test_memory_init(test_memory *memory) {
    memset(memory, 0, sizeof *memory);
    memory->allocator = (weir_allocator){
        .size = sizeof(weir_allocator), .alloc = memory_alloc, .free = memory_free, .userdata = memory
    };
}

/* ---- the process ------------------------------------------------------------------------------------ */

static unsigned count_entries(const char *path, bool (*counts)(const char *name)) {
    DIR *directory = opendir(path);
    assert_non_null(directory);
    unsigned count = 0;
    const struct dirent *entry;
    while ((entry = readdir(directory)) != NULL)
        count += entry->d_name[0] != '.' && (counts == NULL || counts(entry->d_name));
    closedir(directory);
    return count;
}

unsigned test_count_fds(void) {
    return count_entries("/proc/self/fd", NULL) - 1; /* the directory's own */
}

/* A thread that was joined is to be seen for a moment longer, but it is exiting (PF_EXITING, of proc(5)'s "flags"). */
static bool is_alive(const char *thread) {
    char path[300], line[512];
    unsigned flags = 0;
    snprintf(path, sizeof path, "/proc/self/task/%s/stat", thread);
    FILE *file = fopen(path, "r");
    if (file == NULL)
        return false;
    const char *behind = fgets(line, sizeof line, file) != NULL ? strrchr(line, ')') : NULL;
    bool is_read = behind != NULL && sscanf(behind, ") %*c %*d %*d %*d %*d %*d %u", &flags) == 1;
    fclose(file);
    return is_read && (flags & 4) == 0;
}

unsigned test_count_threads(void) {
    return count_entries("/proc/self/task", is_alive);
}

int64_t test_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void test_sleep_ms(unsigned ms) {
    struct timespec time = { .tv_sec = ms / 1000, .tv_nsec = (long)(ms % 1000) * 1000000 };
    while (nanosleep(&time, &time) < 0)
        ;
}

/* ---- a fixture -------------------------------------------------------------------------------------- */

static uint32_t mode_under_test(void) {
    const char *mode = getenv("WEIR_TEST_MODE");
    if (mode == NULL || strcmp(mode, "auto") == 0)
        return WEIR_BACKEND_AUTO;
    if (strcmp(mode, "incremental") == 0)
        return WEIR_BACKEND_URING_INCREMENTAL;
    if (strcmp(mode, "epoll") == 0)
        return WEIR_BACKEND_EPOLL;
    assert_string_equal(mode, "classic");
    return WEIR_BACKEND_URING_CLASSIC;
}

void test_open_options(test_fixture *fixture, const weir__tuning *tuning, weir_loop_options *options) {
    static const weir__tuning none;
    memset(fixture, 0, sizeof *fixture);
    test_memory_init(&fixture->memory);
    fixture->fds = test_count_fds();
    fixture->threads = test_count_threads();
    options->size = sizeof *options;
    options->allocator = &fixture->memory.allocator;
    if (options->backend == WEIR_BACKEND_AUTO)
        options->backend = mode_under_test();
    assert_int_equal(weir__loop_new(options, tuning != NULL ? tuning : &none, &fixture->loop), 0);
}

void test_open(test_fixture *fixture, const weir__tuning *tuning, const weir_pool_options *pool) {
    weir_loop_options options = { .pool = pool };
    test_open_options(fixture, tuning, &options);
}

bool test_is_epoll(const test_fixture *fixture) {
    weir_loop_info info = { .size = sizeof info };
    test_ok(weir_loop_get_info(fixture->loop, &info));
    return info.backend == WEIR_BACKEND_EPOLL;
}

void test_needs_io_uring(void) {
    test_fixture fixture;
    test_open(&fixture, NULL, NULL);
    bool is_epoll = test_is_epoll(&fixture);
    test_close(&fixture);
    if (!is_epoll)
        return;
    print_message("there is no io_uring to be had\n");
    skip();
}

void test_close(test_fixture *fixture) {
    assert_int_equal(weir_loop_close(fixture->loop), 0);
    fixture->loop = weir_loop_unref(fixture->loop);
    assert_int_equal(atomic_load(&fixture->memory.live_blocks), 0);
    assert_int_equal(atomic_load(&fixture->memory.live_bytes), 0);
    assert_int_equal(test_count_fds(), fixture->fds);
    /* The kernel's own may take a moment to end. */
    for (int i = 0; i < 100 && test_count_threads() != fixture->threads; i++)
        test_sleep_ms(10);
    assert_int_equal(test_count_threads(), fixture->threads);
}

void test_run_until(test_fixture *fixture, bool (*done)(void *userdata), void *userdata, unsigned seconds) {
    int64_t deadline = test_now_ns() + (int64_t)seconds * 1000000000;
    while (!done(userdata)) {
        if (test_now_ns() > deadline)
            fail_msg("nothing came of it in %u s", seconds);
        assert_true(weir_loop_run_once(fixture->loop, 10 * 1000 * 1000) >= 0);
    }
}

void test_run_for_ms(test_fixture *fixture, unsigned ms) {
    int64_t now = test_now_ns(), deadline = now + (int64_t)ms * 1000000;
    for (; now < deadline; now = test_now_ns())
        assert_true(weir_loop_run_once(fixture->loop, deadline - now) >= 0);
}

weir_loop_stats test_loop_stats(const test_fixture *fixture) {
    weir_loop_stats stats = { .size = sizeof stats };
    assert_int_equal(weir_loop_get_stats(fixture->loop, &stats), 0);
    return stats;
}

weir_pool_stats test_pool_stats(const test_fixture *fixture) {
    weir_pool_stats stats = { .size = sizeof stats };
    assert_int_equal(weir_pool_get_stats(weir_loop_get_pool(fixture->loop), &stats), 0);
    return stats;
}

/* ---- peers ------------------------------------------------------------------------------------------ */

static int connect_to(const struct sockaddr *address, socklen_t length) {
    int fd = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(connect(fd, address, length), 0);
    return fd;
}

int test_connect(const weir_listener *listener) {
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
    uint16_t port = (uint16_t)strtoul(strrchr(text, ':') + 1, NULL, 10);
    if (text[0] == '[') {
        struct sockaddr_in6 in6 = { .sin6_family = AF_INET6,
                                    .sin6_port = htons(port),
                                    .sin6_addr = in6addr_loopback };
        return connect_to((struct sockaddr *)&in6, sizeof in6);
    }
    struct sockaddr_in in = { .sin_family = AF_INET,
                              .sin_port = htons(port),
                              .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    return connect_to((struct sockaddr *)&in, sizeof in);
}

static int listen_on_loopback(struct sockaddr_in *ret_address) {
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof in;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(listen(fd, 1), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &length), 0);
    *ret_address = in;
    return fd;
}

void test_pair(bool tcp, int ret_fds[2]) {
    if (!tcp) {
        assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ret_fds), 0);
        return;
    }
    struct sockaddr_in in;
    int listener = listen_on_loopback(&in);
    ret_fds[0] = connect_to((struct sockaddr *)&in, sizeof in);
    ret_fds[1] = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
    assert_true(ret_fds[1] >= 0);
    close(listener);
}

void test_free_address(char *text, size_t size) {
    struct sockaddr_in in;
    int fd = listen_on_loopback(&in);
    close(fd);
    snprintf(text, size, "127.0.0.1:%u", ntohs(in.sin_port));
}
