/* SPDX-License-Identifier: MIT */
/* Lists, names of errors, option structures, the default allocator, generations of processes. */
#include <limits.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "base/alloc.h"
#include "base/fork.h"
#include "base/list.h"
#include "base/options.h"
#include "edge/sys.h"
#include "support/support.h"

/* ---- lists ------------------------------------------------------------------------------------------ */

typedef struct item {
    int number;
    weir__link link;
} item;

static weir__link head;
static item items[4];

static void init_items(void) {
    weir__list_init(&head);
    for (int i = 0; i < 4; i++) {
        items[i].number = i;
        weir__list_init(&items[i].link);
    }
}

/* The list reads like this, in both directions. */
static void reads(const weir__link *list, const char *expected) {
    size_t length = strlen(expected), count = 0;
    for (const weir__link *link = list->next; link != list; link = link->next, count++) {
        assert_true(count < length);
        assert_int_equal(WEIR__CONTAINER(link, item, link)->number, expected[count] - '0');
    }
    assert_int_equal(count, length);
    for (const weir__link *link = list->previous; link != list; link = link->previous)
        assert_int_equal(WEIR__CONTAINER(link, item, link)->number, expected[--count] - '0');
    assert_int_equal(count, 0);
    assert_true(weir__list_is_empty(list) == (length == 0));
}

static void list_keeps_the_order_of_appending(void **state) {
    (void)state;
    init_items();
    reads(&head, "");
    for (int i = 0; i < 3; i++)
        weir__list_append(&head, &items[i].link);
    weir__list_prepend(&head, &items[3].link);
    reads(&head, "3012");
}

static void link_is_removed_from_anywhere_and_twice(void **state) {
    (void)state;
    init_items();
    for (int i = 0; i < 4; i++)
        weir__list_append(&head, &items[i].link);
    assert_true(weir__link_is_listed(&items[1].link));
    weir__list_remove(&items[1].link);
    assert_false(weir__link_is_listed(&items[1].link));
    weir__list_remove(&items[1].link);
    reads(&head, "023");
    weir__list_remove(&items[0].link);
    weir__list_remove(&items[3].link);
    reads(&head, "2");
    weir__list_remove(&items[2].link);
    reads(&head, "");
}

static void first_is_taken_until_there_is_none(void **state) {
    (void)state;
    init_items();
    for (int i = 0; i < 2; i++)
        weir__list_append(&head, &items[i].link);
    assert_ptr_equal(weir__list_take_first(&head), &items[0].link);
    assert_false(weir__link_is_listed(&items[0].link));
    assert_ptr_equal(weir__list_take_first(&head), &items[1].link);
    assert_null(weir__list_take_first(&head));
}

static void list_moves_as_a_whole(void **state) {
    (void)state;
    weir__link to;
    init_items();
    weir__list_move(&head, &to);
    reads(&to, "");
    for (int i = 0; i < 3; i++)
        weir__list_append(&head, &items[i].link);
    weir__list_move(&head, &to);
    reads(&head, "");
    reads(&to, "012");
    weir__list_append(&head, &items[3].link); /* while the other is walked */
    weir__list_remove(&items[1].link);
    reads(&head, "3");
    reads(&to, "02");
}

/* ---- errors ----------------------------------------------------------------------------------------- */

static bool is_known(int error) {
    return strcmp(weir_error_name(error), "unknown") != 0;
}

static void names_are_distinct_and_texts_too(void **state) {
    (void)state;
    unsigned known = 0;
    for (int i = 1; i < 4096; i++) {
        if (!is_known(i))
            continue;
        known++;
        assert_int_equal(weir_error_name(i)[0], 'E');
        assert_string_not_equal(weir_error_text(i), "unknown error");
        assert_true(strlen(weir_error_text(i)) > 3);
        for (int j = i + 1; j < 4096; j++)
            if (is_known(j)) {
                assert_string_not_equal(weir_error_name(i), weir_error_name(j));
                assert_string_not_equal(weir_error_text(i), weir_error_text(j));
            }
    }
    assert_true(known > 50);
}

static void either_sign_names_the_same_error(void **state) {
    (void)state;
    for (int i = 0; i < 4096; i++) {
        assert_string_equal(weir_error_name(i), weir_error_name(-i));
        assert_string_equal(weir_error_text(i), weir_error_text(-i));
    }
    assert_string_equal(weir_error_name(-ECONNRESET), "ECONNRESET");
    assert_string_equal(weir_error_text(-ECONNRESET), "connection reset by peer");
}

static void names_are_those_of_the_system(void **state) {
    (void)state;
#define CODE(name) \
    { name, #name }
    static const struct {
        int number;
        const char *name;
    } codes[] = { CODE(EPERM),  CODE(EINVAL),    CODE(ENOMEM), CODE(ENOBUFS), CODE(EILSEQ), CODE(ESHUTDOWN),
                  CODE(ECHILD), CODE(ETIMEDOUT), CODE(EPIPE),  CODE(E2BIG),   CODE(EUSERS), CODE(EALREADY) };
#undef CODE
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        assert_string_equal(weir_error_name(codes[i].number), codes[i].name);
}

static void no_error_and_no_such_error_have_texts(void **state) {
    (void)state;
    assert_string_equal(weir_error_name(0), "0");
    assert_string_equal(weir_error_text(0), "success");
    static const int none[] = { 4095, -4095, INT_MAX, INT_MIN, -INT_MAX };
    for (size_t i = 0; i < sizeof none / sizeof *none; i++) {
        assert_string_equal(weir_error_name(none[i]), "unknown");
        assert_string_equal(weir_error_text(none[i]), "unknown error");
    }
}

static void version_is_the_one_of_the_project(void **state) {
    (void)state;
    assert_int_equal(weir_version(), 0x000100);
}

/* ---- options ---------------------------------------------------------------------------------------- */

typedef struct options {
    size_t size;
    uint64_t old, new;
} options;

enum { OLD_SIZE = offsetof(options, new) };

static void no_options_are_the_defaults(void **state) {
    (void)state;
    options ours;
    memset(&ours, 0xEE, sizeof ours);
    test_ok(weir__options_read(&ours, sizeof ours, OLD_SIZE, NULL));
    assert_int_equal(ours.size, 0);
    assert_int_equal(ours.old, 0);
    assert_int_equal(ours.new, 0);
}

static void options_of_our_size_are_read(void **state) {
    (void)state;
    options ours, theirs = { sizeof theirs, 1, 2 };
    test_ok(weir__options_read(&ours, sizeof ours, OLD_SIZE, &theirs));
    assert_memory_equal(&ours, &theirs, sizeof ours);
}

static void options_of_an_older_caller_leave_the_rest_zero(void **state) {
    (void)state;
    options ours, theirs = { OLD_SIZE, 1, 2 };
    memset(&ours, 0xEE, sizeof ours);
    test_ok(weir__options_read(&ours, sizeof ours, OLD_SIZE, &theirs));
    assert_int_equal(ours.old, 1);
    assert_int_equal(ours.new, 0);
}

static void options_of_a_newer_caller_must_ask_for_nothing_new(void **state) {
    (void)state;
    struct {
        options known;
        uint8_t newer[16];
    } theirs = { .known = { sizeof theirs, 1, 2 } };
    options ours;
    test_ok(weir__options_read(&ours, sizeof ours, OLD_SIZE, &theirs));
    assert_int_equal(ours.old, 1);
    assert_int_equal(ours.new, 2);
    for (size_t i = 0; i < sizeof theirs.newer; i++) {
        theirs.newer[i] = 1;
        assert_int_equal(weir__options_read(&ours, sizeof ours, OLD_SIZE, &theirs), -E2BIG);
        theirs.newer[i] = 0;
    }
}

static void options_smaller_than_the_first_version_are_refused(void **state) {
    (void)state;
    options ours, theirs = { 0, 1, 2 };
    assert_int_equal(weir__options_read(&ours, sizeof ours, OLD_SIZE, &theirs), -EINVAL);
    theirs.size = OLD_SIZE - 1;
    assert_int_equal(weir__options_read(&ours, sizeof ours, OLD_SIZE, &theirs), -EINVAL);
}

/* ---- memory ----------------------------------------------------------------------------------------- */

static void default_memory_is_aligned_and_errno_left_alone(void **state) {
    (void)state;
    errno = 1234;
    const weir_allocator *allocator = &weir__default_allocator;
    for (size_t alignment = 16; alignment <= 4096; alignment *= 2)
        for (size_t size = 1; size <= 10000; size = size * 3 + 1) {
            uint8_t *memory = allocator->alloc(size, alignment, allocator->userdata);
            assert_non_null(memory);
            assert_int_equal((uintptr_t)memory % alignment, 0);
            memset(memory, 1, size);
            allocator->free(memory, size, alignment, allocator->userdata);
        }
    assert_null(allocator->alloc(SIZE_MAX, 4096, allocator->userdata));
    assert_null(allocator->alloc(SIZE_MAX - 8, 16, allocator->userdata));
    assert_int_equal(errno, 1234);
    weir__free(&weir__default_allocator, NULL, 10);
}

static void zeroed_memory_is_zero(void **state) {
    (void)state;
    test_memory memory;
    test_memory_init(&memory); /* whose memory is not, by itself */
    uint8_t *bytes = weir__alloc_zeroed(&memory.allocator, 1000);
    for (size_t i = 0; i < 1000; i++)
        assert_int_equal(bytes[i], 0);
    weir__free(&memory.allocator, bytes, 1000);
    atomic_store(&memory.fail_every, 1);
    assert_null(weir__alloc_zeroed(&memory.allocator, 10));
}

/* ---- processes -------------------------------------------------------------------------------------- */

static void install_page(void) {
    void *page = weir__sys_wiped_page();
    assert_non_null(page);
    if (!weir__fork_install(page))
        weir__sys_unmap(page, weir__sys_page_bytes());
}

static void process_has_one_page(void **state) {
    (void)state;
    install_page();
    uint32_t generation = weir__fork_generation();
    void *another = weir__sys_wiped_page();
    assert_false(weir__fork_install(another));
    weir__sys_unmap(another, weir__sys_page_bytes());
    assert_int_equal(weir__fork_generation(), generation);
}

static void generation_is_the_same_in_one_process(void **state) {
    (void)state;
    install_page();
    uint32_t generation = weir__fork_generation();
    assert_int_not_equal(generation, 0);
    assert_int_equal(weir__fork_generation(), generation);
    assert_false(weir__fork_is_child(generation));
}

/* Wait for a child that says by its exit whether all was well. */
static void child_is_well(pid_t child) {
    int status = -1;
    assert_true(child > 0);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

static void child_of_a_fork_knows_its_parents_objects(void **state) {
    (void)state;
    install_page();
    uint32_t parents = weir__fork_generation();
    pid_t child = fork();
    if (child == 0) {
        if (!weir__fork_is_child(parents))
            _exit(1);
        uint32_t own = weir__fork_generation();
        if (own == parents || own == 0 || weir__fork_is_child(own) || !weir__fork_is_child(parents))
            _exit(2);
        pid_t grandchild = fork();
        if (grandchild == 0) {
            uint32_t third = weir__fork_generation();
            _exit(third == own || third == parents || !weir__fork_is_child(own) || !weir__fork_is_child(parents));
        }
        int status = -1;
        if (waitpid(grandchild, &status, 0) != grandchild || !WIFEXITED(status) || WEXITSTATUS(status) != 0)
            _exit(3);
        _exit(0);
    }
    child_is_well(child);
    assert_false(weir__fork_is_child(parents)); /* and the parent is undisturbed */
    assert_int_equal(weir__fork_generation(), parents);
}

static void *get_generation(void *userdata) {
    *(uint32_t *)userdata = weir__fork_generation();
    return NULL;
}

static void threads_of_a_new_process_agree_on_its_generation(void **state) {
    (void)state;
    install_page();
    pid_t child = fork();
    if (child == 0) {
        enum { THREADS = 4 };
        pthread_t threads[THREADS];
        uint32_t generations[THREADS] = { 0 };
        for (int i = 0; i < THREADS; i++)
            if (pthread_create(&threads[i], NULL, get_generation, &generations[i]) != 0)
                _exit(2);
        for (int i = 0; i < THREADS; i++)
            pthread_join(threads[i], NULL);
        for (int i = 0; i < THREADS; i++)
            if (generations[i] == 0 || generations[i] != generations[0])
                _exit(1);
        _exit(0);
    }
    child_is_well(child);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(list_keeps_the_order_of_appending),
        cmocka_unit_test(link_is_removed_from_anywhere_and_twice),
        cmocka_unit_test(first_is_taken_until_there_is_none),
        cmocka_unit_test(list_moves_as_a_whole),
        cmocka_unit_test(names_are_distinct_and_texts_too),
        cmocka_unit_test(either_sign_names_the_same_error),
        cmocka_unit_test(names_are_those_of_the_system),
        cmocka_unit_test(no_error_and_no_such_error_have_texts),
        cmocka_unit_test(version_is_the_one_of_the_project),
        cmocka_unit_test(no_options_are_the_defaults),
        cmocka_unit_test(options_of_our_size_are_read),
        cmocka_unit_test(options_of_an_older_caller_leave_the_rest_zero),
        cmocka_unit_test(options_of_a_newer_caller_must_ask_for_nothing_new),
        cmocka_unit_test(options_smaller_than_the_first_version_are_refused),
        cmocka_unit_test(default_memory_is_aligned_and_errno_left_alone),
        cmocka_unit_test(zeroed_memory_is_zero),
        cmocka_unit_test(process_has_one_page),
        cmocka_unit_test(generation_is_the_same_in_one_process),
        cmocka_unit_test(child_of_a_fork_knows_its_parents_objects),
        cmocka_unit_test(threads_of_a_new_process_agree_on_its_generation),
    };
    return cmocka_run_group_tests_name("base", tests, NULL, NULL);
}
