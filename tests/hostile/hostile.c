/* SPDX-License-Identifier: MIT */
#include "hostile/hostile.h"

#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>

/* ---- children --------------------------------------------------------------------------------------------- */

enum { SKIPPED = 77, TEXT = 400 };

static int report = -1; /* in a child: where it writes to */

void child_found(const char *expression, long value, long wanted, int line) {
    char text[TEXT];
    int length = value == wanted ? snprintf(text, sizeof text, "line %d: %s", line, expression)
                                 : snprintf(text, sizeof text, "line %d: %s is %ld (%s), not %ld", line,
                                            expression, value, weir_error_name((int)value), wanted);
    size_t size = (size_t)length < sizeof text ? (size_t)length : sizeof text - 1;
    _exit(write(report, text, size) == (ssize_t)size ? 1 : 2);
}

void child_skips(const char *why) {
    size_t size = strlen(why);
    _exit(write(report, why, size) == (ssize_t)size ? SKIPPED : 2);
}

/* Its wait status, and what it wrote. */
static int run_child(ordeal function, const void *argument, char text[TEXT]) {
    int fds[2], status;
    size_t size = 0;
    fflush(NULL);
    assert_int_equal(pipe2(fds, O_CLOEXEC), 0);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        close(fds[0]);
        report = fds[1];
        alarm(120); /* not to outlive a test that was given up */
        function(argument);
        _exit(0);
    }
    close(fds[1]);
    for (ssize_t r; size + 1 < TEXT && (r = read(fds[0], text + size, TEXT - 1 - size)) > 0;)
        size += (size_t)r;
    text[size] = '\0';
    close(fds[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    return status;
}

void in_a_child(ordeal function, const void *argument) {
    char text[TEXT];
    int status = run_child(function, argument, text);
    if (WIFEXITED(status) && WEXITSTATUS(status) == SKIPPED) {
        print_message("# %s\n", text);
        skip();
    }
    if (WIFSIGNALED(status))
        fail_msg("signal %d ended the child", WTERMSIG(status));
    if (WEXITSTATUS(status) != 0)
        fail_msg("exit status %d: %s", WEXITSTATUS(status), text);
}

int signal_that_ends(ordeal function, const void *argument) {
    char text[TEXT];
    int status = run_child(function, argument, text);
    if (WIFEXITED(status) && WEXITSTATUS(status) != 0)
        fail_msg("exit status %d: %s", WEXITSTATUS(status), text);
    return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

static void tell_backend(const void *argument) {
    weir_loop_info info = { .size = sizeof info };
    weir_loop *loop;
    (void)argument;
    CHECK_INT(weir_loop_new(NULL, &loop), 0);
    CHECK_INT(weir_loop_get_info(loop, &info), 0);
    CHECK_INT(weir_loop_close(loop), 0);
    weir_loop_unref(loop);
    const char digit = (char)('0' + info.backend);
    CHECK_INT(write(report, &digit, 1), 1);
}

uint32_t undisturbed_backend(void) {
    char text[TEXT];
    int status = run_child(tell_backend, NULL, text);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) != 0)
        fail_msg("no loop where nothing is in its way: %s", text);
    return (uint32_t)(text[0] - '0');
}

uint32_t backend_under_test(void) {
    const char *mode = getenv("WEIR_TEST_MODE");
    if (mode == NULL || strcmp(mode, "auto") == 0)
        return WEIR_BACKEND_AUTO;
    return strcmp(mode, "epoll") == 0     ? WEIR_BACKEND_EPOLL
           : strcmp(mode, "classic") == 0 ? WEIR_BACKEND_URING_CLASSIC
                                          : WEIR_BACKEND_URING_INCREMENTAL;
}

/* ---- filters ---------------------------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define THIS_ARCHITECTURE AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define THIS_ARCHITECTURE AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#define THIS_ARCHITECTURE AUDIT_ARCH_RISCV64
#else
#error "which AUDIT_ARCH_* is this?"
#endif

/* Written out: no library is needed for a dozen instructions. */
void deny(const denial *denials, size_t count) {
    struct sock_filter program[64];
    unsigned short size = 0;
    CHECK(6 * count + 5 <= COUNT(program));
#define LOAD(field) \
    (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)offsetof(struct seccomp_data, field))
#define UNLESS(value, skipped) \
    (struct sock_filter) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (uint32_t)(value), 0, skipped)
#define ANSWER(value) (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, (value))
    program[size++] = LOAD(arch);
    program[size++] = UNLESS(THIS_ARCHITECTURE, 1);
    program[size++] = (struct sock_filter)BPF_STMT(BPF_JMP | BPF_JA, 1);
    program[size++] = ANSWER(KILL);
    for (size_t i = 0; i < count; i++) {
        const denial *d = &denials[i];
        program[size++] = LOAD(nr);
        program[size++] = UNLESS(d->number, d->has_first ? 3 : 1);
        if (d->has_first) {
            program[size++] = LOAD(args[0]); /* its lower half: little endian */
            program[size++] = UNLESS(d->first, 1);
        }
        program[size++] = ANSWER(d->answer);
    }
    program[size++] = ANSWER(SECCOMP_RET_ALLOW);
    const struct sock_fprog filter = { .len = size, .filter = program };
    CHECK_INT(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &filter) != 0)
        child_skips("no filter of system calls to be had here");
}

void deny_io_uring(uint32_t answer) {
    const denial denials[] = { { .number = SYS_io_uring_setup, .answer = answer },
                               { .number = SYS_io_uring_enter, .answer = answer },
                               { .number = SYS_io_uring_register, .answer = answer } };
    deny(denials, COUNT(denials));
}

/* ---- limits ------------------------------------------------------------------------------------------------- */

void leave_descriptors(int spare) {
    static struct rlimit before;
    if (before.rlim_max == 0)
        CHECK_INT(getrlimit(RLIMIT_NOFILE, &before), 0);
    struct rlimit limit = before;
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &before), 0);
    if (spare < 0)
        return;
    /* A new descriptor is the lowest that is free, so the limit goes above the first @spare of these. */
    int fds[64];
    CHECK(spare < (int)COUNT(fds));
    for (int i = 0; i <= spare; i++)
        CHECK((fds[i] = dup(0)) >= 0);
    limit.rlim_cur = (rlim_t)fds[spare];
    for (int i = 0; i <= spare; i++)
        close(fds[i]);
    CHECK_INT(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* ---- loops ---------------------------------------------------------------------------------------------- */

int place_try(place *p, uint32_t backend) {
    *p = (place){ .fds = test_count_fds(), .threads = test_count_threads() };
    test_memory_init(&p->memory);
    const weir_loop_options options = { .size = sizeof options,
                                        .backend = backend,
                                        .allocator = &p->memory.allocator,
                                        .reason = p->reason,
                                        .reason_size = sizeof p->reason };
    return weir_loop_new(&options, &p->loop);
}

void place_open(place *p, uint32_t asked, uint32_t runs) {
    weir_loop_info info = { .size = sizeof info };
    CHECK_INT(place_try(p, asked), 0);
    CHECK_INT(weir_loop_get_info(p->loop, &info), 0);
    CHECK_INT(info.backend, runs);
    CHECK_INT(info.asked, asked);
}

void place_close(place *p) {
    CHECK_INT(weir_loop_close(p->loop), 0);
    p->loop = weir_loop_unref(p->loop);
    CHECK_INT(atomic_load(&p->memory.live_blocks), 0);
    CHECK_INT(atomic_load(&p->memory.live_bytes), 0);
    CHECK_INT(test_count_fds(), p->fds);
    CHECK_INT(test_count_threads(), p->threads);
}

void expect_no_loop(uint32_t asked, int error, const char *word) {
    place p;
    CHECK_INT(place_try(&p, asked), error);
    CHECK(p.loop == NULL);
    if (strstr(p.reason, word) == NULL || strlen(p.reason) < 20)
        child_found(p.reason, 0, 0, __LINE__);
    place_close(&p);
}

/* ---- what a loop does --------------------------------------------------------------------------------------- */

enum { SIZE = 300000, SEED = 7 };

typedef struct echo {
    weir_listener *listener;
    weir_stream *dialled;
    uint64_t received;
    bool differs, refused;
    unsigned closed;
    int error;
    unsigned ticks, posts, watched;
} echo;

static void send_back(weir_stream *stream, const weir_slice *slice, void *userdata) {
    echo *e = userdata;
    e->refused |= weir_stream_write_slice(stream, slice) < 0;
}

static void answer_end(weir_stream *stream, void *userdata) {
    echo *e = userdata;
    e->refused |= weir_stream_close(stream) < 0;
}

static void compare(weir_stream *stream, const weir_slice *slice, void *userdata) {
    echo *e = userdata;
    (void)stream;
    e->differs |= test_differs(SEED, e->received, slice->data, slice->size) >= 0;
    e->received += slice->size;
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    echo *e = userdata;
    (void)stream, (void)reason;
    e->closed++;
    if (error != 0)
        e->error = error;
}

static const weir_stream_callbacks server_callbacks = {
    .size = sizeof server_callbacks, .on_data = send_back, .on_end = answer_end, .on_close = on_close
};
static const weir_stream_callbacks client_callbacks = { .size = sizeof client_callbacks,
                                                        .on_data = compare,
                                                        .on_close = on_close };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    echo *e = userdata;
    (void)listener;
    e->refused |= weir_stream_start(stream, &server_callbacks, userdata) < 0;
}

static const weir_listener_callbacks gate_callbacks = { .size = sizeof gate_callbacks, .on_accept = on_accept };

void expect_an_echo(place *p, const char *address) {
    static uint8_t bytes[SIZE];
    char at[WEIR_ADDRESS_SIZE];
    echo e = { 0 };
    test_fill(SEED, 0, bytes, sizeof bytes);
    CHECK_INT(weir_listener_open(p->loop, address, NULL, &e.listener), 0);
    CHECK_INT(weir_listener_start(e.listener, &gate_callbacks, &e), 0);
    CHECK(weir_listener_get_address(e.listener, at, sizeof at) > 0);
    CHECK_INT(weir_stream_dial(p->loop, at, NULL, &e.dialled), 0);
    CHECK_INT(weir_stream_start(e.dialled, &client_callbacks, &e), 0);
    CHECK(weir_stream_write(e.dialled, bytes, sizeof bytes) >= 0);
    CHECK_INT(weir_stream_shutdown(e.dialled), 0);
    TURN_UNTIL(p, e.closed == 2);
    CHECK_INT(e.error, 0);
    CHECK(!e.differs && !e.refused);
    CHECK_INT(e.received, SIZE);
    CHECK_INT(weir_listener_close(e.listener), 0);
    TURN_UNTIL(p, weir_loop_is_idle(p->loop) == 1);
}

static void tick(weir_timer *timer, void *userdata) {
    (void)timer;
    ((echo *)userdata)->ticks++;
}

static void posted(weir_loop *loop, void *userdata) {
    (void)loop;
    ((echo *)userdata)->posts++;
}

static void watched(weir_watch *watch, int events, void *userdata) {
    ((echo *)userdata)->watched += events & WEIR_WATCH_READ ? 1 : 1000;
    weir_watch_stop(watch);
}

static void expect_its_other_services(place *p) {
    echo e = { 0 };
    weir_timer *timer;
    weir_watch *watch;
    int fds[2];
    CHECK_INT(pipe2(fds, O_CLOEXEC | O_NONBLOCK), 0);
    CHECK_INT(weir_timer_new(p->loop, tick, &e, &timer), 0);
    CHECK_INT(weir_timer_start(timer, 3 * MS, 3 * MS), 0);
    CHECK_INT(weir_watch_new(p->loop, fds[0], watched, &e, &watch), 0);
    CHECK_INT(weir_watch_start(watch, WEIR_WATCH_READ), 0);
    CHECK_INT(weir_loop_post(p->loop, posted, &e), 0);
    TURN_UNTIL(p, e.ticks >= 2 && e.posts == 1);
    CHECK_INT(e.watched, 0);
    CHECK_INT(write(fds[1], "x", 1), 1);
    TURN_UNTIL(p, e.watched == 1);
    weir_timer_unref(timer);
    weir_watch_unref(watch);
    close(fds[0]);
    close(fds[1]);
}

void expect_a_good_loop(uint32_t asked, uint32_t runs) {
    char path[WEIR_ADDRESS_SIZE];
    place p;
    snprintf(path, sizeof path, "unix:@weir-hostile-%d", (int)getpid());
    place_open(&p, asked, runs);
    expect_an_echo(&p, "127.0.0.1:0");
    expect_an_echo(&p, path);
    expect_its_other_services(&p);
    place_close(&p);
}
