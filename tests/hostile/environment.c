/* SPDX-License-Identifier: MIT */

/*
 * WEIR_BACKEND in the environment says what AUTO is, for somebody who looks for a fault: not for a program that has
 * made its choice, and not for one that has more rights than its user.
 */

#include "hostile/hostile.h"

#include <dirent.h>
#include <fcntl.h>
#include <grp.h>
#include <sys/auxv.h>
#include <sys/stat.h>

static const struct {
    const char *value;
    uint32_t backend;
} values[] = {
    { "uring-incremental", WEIR_BACKEND_URING_INCREMENTAL },
    { "uring-classic", WEIR_BACKEND_URING_CLASSIC },
    { "epoll", WEIR_BACKEND_EPOLL },
};

static void set(const char *value) {
    CHECK_INT(setenv("WEIR_BACKEND", value, 1), 0);
}

/* ---- what it says -------------------------------------------------------------------------------------------- */

typedef struct wish {
    const char *value;
    uint32_t backend;
} wish;

/* Where this machine has no such mode, it is the same error as if the program had asked for it. */
static void child_has_a_wish(const void *argument) {
    const wish *w = argument;
    place p;
    unsetenv("WEIR_BACKEND");
    int r = place_try(&p, w->backend);
    char reason[WEIR_REASON_SIZE];
    memcpy(reason, p.reason, sizeof reason);
    place_close(&p);
    set(w->value);
    if (r < 0)
        expect_no_loop(WEIR_BACKEND_AUTO, r, reason);
    else
        expect_a_good_loop(WEIR_BACKEND_AUTO, w->backend);
}

static void each_value_is_what_auto_is(void **state) {
    (void)state;
    for (size_t i = 0; i < COUNT(values); i++) {
        const wish w = { values[i].value, values[i].backend };
        in_a_child(child_has_a_wish, &w);
    }
}

static void child_wishes_for_nothing(const void *argument) {
    const wish *w = argument;
    set(w->value);
    expect_a_good_loop(WEIR_BACKEND_AUTO, w->backend);
}

static void auto_is_what_it_is_without(void **state) {
    const wish w[] = { { "auto", undisturbed_backend() }, { "", w[0].backend } };
    (void)state;
    in_a_child(child_wishes_for_nothing, &w[0]);
    in_a_child(child_wishes_for_nothing, &w[1]);
}

static void child_wishes_for_what_is_not(const void *argument) {
    set(argument);
    expect_no_loop(WEIR_BACKEND_AUTO, -EINVAL, "WEIR_BACKEND");
    /* Nobody asked it. */
    expect_a_good_loop(WEIR_BACKEND_EPOLL, WEIR_BACKEND_EPOLL);
    CHECK_INT(unsetenv("WEIR_BACKEND"), 0);
    place p;
    CHECK_INT(place_try(&p, WEIR_BACKEND_AUTO), 0);
    place_close(&p);
}

static void an_unknown_value_is_an_error_that_says_so(void **state) {
    static const char *const unknown[] = { "select", "EPOLL", "epoll ", "epol",
                                           "epolll", "3",     "uring",  "auto,epoll" };
    (void)state;
    for (size_t i = 0; i < COUNT(unknown); i++)
        in_a_child(child_wishes_for_what_is_not, unknown[i]);
}

/* What is asked for is what comes: a program's choice is not to be debugged away. */
static void child_has_chosen(const void *argument) {
    (void)argument;
    for (size_t asked = 0; asked < COUNT(values); asked++) {
        unsetenv("WEIR_BACKEND");
        place p;
        int r = place_try(&p, values[asked].backend);
        place_close(&p);
        for (size_t i = 0; i < COUNT(values); i++) {
            set(values[i].value);
            if (r < 0)
                expect_no_loop(values[asked].backend, r, "");
            else
                expect_a_good_loop(values[asked].backend, values[asked].backend);
        }
    }
}

static void what_a_program_asks_for_counts_more(void **state) {
    (void)state;
    in_a_child(child_has_chosen, NULL);
}

/* ---- a program with more rights than its user ------------------------------------------------------------- */

enum { NOBODY = 65534, NO_LOOP = 100, NO_MORE_RIGHTS = 101 };

/* What the copy of this program does: its exit status says which mode AUTO is. */
static int tell_what_runs(void) {
    weir_loop_info info = { .size = sizeof info };
    weir_loop *loop;
    if (getauxval(AT_SECURE) == 0)
        return NO_MORE_RIGHTS;
    if (weir_loop_new(NULL, &loop) != 0)
        return NO_LOOP;
    if (weir_loop_get_info(loop, &info) != 0 || weir_loop_close(loop) != 0)
        return NO_LOOP;
    weir_loop_unref(loop);
    return (int)info.backend;
}

static void copy_program(const char *path) {
    char bytes[64 << 10];
    ssize_t size;
    int from = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    int to = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0700);
    assert_true(from >= 0 && to >= 0);
    while ((size = read(from, bytes, sizeof bytes)) > 0)
        assert_int_equal(write(to, bytes, (size_t)size), size);
    assert_int_equal(size, 0);
    close(from);
    assert_int_equal(fchmod(to, 04755), 0);
    close(to);
}

typedef struct attempt {
    const char *path, *value;
} attempt;

static void child_is_nobody(const void *argument) {
    const attempt *a = argument;
    char setting[64];
    snprintf(setting, sizeof setting, "WEIR_BACKEND=%s", a->value);
    char *const arguments[] = { (char *)(uintptr_t)a->path, (char *)"--what-runs", NULL };
    char *const environment[] = { setting, NULL };
    if (setgroups(0, NULL) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0)
        child_skips("root cannot become nobody here");
    execve(a->path, arguments, environment);
    child_found("execve", -errno, 0, __LINE__);
}

static int run_with_more_rights(const char *path, const char *value) {
    const attempt a = { path, value };
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        child_is_nobody(&a);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    return WEXITSTATUS(status);
}

/* A user must not choose how a program of root's does its work. */
static void more_rights_than_its_user_and_it_is_ignored(void **state) {
    char directory[] = "/tmp/weir-hostile-XXXXXX", path[64];
    (void)state;
    if (geteuid() != 0)
        skip();
    int undisturbed = (int)undisturbed_backend();
    assert_non_null(mkdtemp(directory));
    assert_int_equal(chmod(directory, 0711), 0);
    snprintf(path, sizeof path, "%s/program", directory);
    copy_program(path);
    int unknown = run_with_more_rights(path, "select"), epoll = run_with_more_rights(path, "epoll"),
        classic = run_with_more_rights(path, "uring-classic");
    unlink(path);
    rmdir(directory);
    if (unknown == NO_MORE_RIGHTS) {
        print_message("# a program cannot have more rights than its user here\n");
        skip();
    }
    assert_int_equal(unknown, undisturbed);
    assert_int_equal(epoll, undisturbed);
    assert_int_equal(classic, undisturbed);
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_value_is_what_auto_is),
        cmocka_unit_test(auto_is_what_it_is_without),
        cmocka_unit_test(an_unknown_value_is_an_error_that_says_so),
        cmocka_unit_test(what_a_program_asks_for_counts_more),
        cmocka_unit_test(more_rights_than_its_user_and_it_is_ignored),
    };
    if (argc == 2 && strcmp(argv[1], "--what-runs") == 0)
        return tell_what_runs();
    return cmocka_run_group_tests_name("environment", tests, NULL, NULL);
}
