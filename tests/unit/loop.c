/* SPDX-License-Identifier: MIT */
/* When things happen: turns, posts, stopping, sleeping, settling, beginning and end. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "backend/uring.h"
#include "loop/loop.h"
#include "scripted/scripted.h"
#include "support/support.h"
#include "weir/listener.h"
#include "weir/stream.h"

static test_fixture f;
static const weir__tuning tuning = { .no_self_test = true };

enum { SECOND = 1000000000 };

static int setup(void **state) {
    (void)state;
    script_begin();
    script_answer_cancels(true);
    test_open(&f, &tuning, NULL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    test_close(&f);
    script_end();
    return 0;
}

static int bare_setup(void **state) {
    (void)state;
    script_begin();
    script_answer_cancels(true);
    return 0;
}

static int bare_teardown(void **state) {
    (void)state;
    script_end();
    return 0;
}

/* A turn without sleeping. */
static void turn(void) {
    assert_true(weir_loop_run_once(f.loop, 0) >= 0);
}

static char story[64];

static void tell(char c) {
    size_t length = strlen(story);
    assert_true(length + 1 < sizeof story);
    story[length] = c;
}

static void begin_story(void) {
    memset(story, 0, sizeof story);
}

/* ---- posts ------------------------------------------------------------------------------------------ */

static void tell_post(weir_loop *loop, void *userdata) {
    assert_ptr_equal(loop, f.loop);
    tell(*(const char *)userdata);
}

static void post(weir_post_fn function, const char *userdata) {
    test_ok(weir_loop_post(f.loop, function, (void *)(uintptr_t)userdata));
}

static void posts_run_in_order_in_one_turn(void **state) {
    (void)state;
    begin_story();
    post(tell_post, "a");
    post(tell_post, "b");
    post(tell_post, "c");
    assert_string_equal(story, ""); /* not inside the call */
    assert_int_equal(weir_loop_is_idle(f.loop), 0);
    turn();
    assert_string_equal(story, "abc");
    assert_int_equal(weir_loop_is_idle(f.loop), 1);
    assert_int_equal(test_loop_stats(&f).posts, 3);
}

static void post_again(weir_loop *loop, void *userdata) {
    tell(*(const char *)userdata);
    int result = weir_loop_post(loop, post_again, userdata);
    assert_true(result == 0 || result == -ESHUTDOWN); /* at the close */
}

static void post_of_a_post_runs_in_the_next_turn(void **state) {
    (void)state;
    begin_story();
    post(post_again, "x");
    turn();
    assert_string_equal(story, "x");
    turn();
    assert_string_equal(story, "xx");
    post(tell_post, "y");
    turn();
    assert_string_equal(story, "xxxy");
}

static void refused_later(weir_loop *loop, void *userdata) {
    tell(*(const char *)userdata);
    assert_int_equal(weir_loop_post(loop, tell_post, userdata), -ESHUTDOWN);
}

static void post_that_was_taken_runs_at_the_close(void **state) {
    (void)state;
    begin_story();
    test_open(&f, &tuning, NULL);
    post(tell_post, "a");
    post(refused_later, "b");
    test_ok(weir_loop_close(f.loop));
    assert_string_equal(story, "ab");
    assert_int_equal(weir_loop_post(f.loop, tell_post, story), -ESHUTDOWN);
    assert_string_equal(story, "ab");
    test_close(&f);
}

static void post_without_memory_is_refused_and_never_runs(void **state) {
    (void)state;
    begin_story();
    atomic_store(&f.memory.fail_at, atomic_load(&f.memory.allocations) + 1);
    assert_int_equal(weir_loop_post(f.loop, tell_post, story), -ENOMEM);
    turn();
    assert_string_equal(story, "");
}

static void post_wants_a_loop_and_a_function(void **state) {
    (void)state;
    assert_int_equal(weir_loop_post(NULL, tell_post, NULL), -EINVAL);
    assert_int_equal(weir_loop_post(f.loop, NULL, NULL), -EINVAL);
}

/* ---- sleeping --------------------------------------------------------------------------------------- */

static void loop_sleeps_as_long_as_it_is_told(void **state) {
    (void)state;
    assert_int_equal(weir_loop_run_once(f.loop, 3000000), 0);
    assert_int_equal(script_last_enter().timeout_ns, 3000000);
    assert_int_equal(script_last_enter().wait, 1);
    turn();
    assert_int_equal(script_last_enter().wait, 0);
}

/* Some kernels lose a wake-up of deferred work: no sleep may be for ever, nor long. */
static void no_sleep_is_longer_than_a_second(void **state) {
    (void)state;
    int64_t begun = weir__sys_now();
    unsigned enters = script_last_enter().count;
    assert_int_equal(weir_loop_run_once(f.loop, 5 * (int64_t)SECOND), 0);
    assert_int_equal(weir__sys_now() - begun, 5 * (int64_t)SECOND); /* and all of them as long as was asked for */
    assert_in_range(script_last_enter().count - enters, 5, 6);
    assert_true(script_last_enter().timeout_ns <= SECOND);
}

static void loop_with_work_does_not_sleep(void **state) {
    (void)state;
    post(tell_post, "a");
    assert_int_equal(weir_loop_run_once(f.loop, SECOND), 0);
    assert_int_equal(script_last_enter().wait, 0);
}

static void wake_of_a_running_loop_costs_nothing(void **state) {
    (void)state;
    turn();
    post(tell_post, "a");
    assert_int_equal(script_signals(), 0);
    assert_int_equal(test_loop_stats(&f).wakes, 0);
    turn();
}

static void post_inside_the_enter(void *userdata) {
    script_on_enter(NULL, NULL);
    test_ok(weir_loop_post(f.loop, tell_post, userdata));
}

static void post_to_a_sleeping_loop_wakes_it(void **state) {
    (void)state;
    begin_story();
    turn();
    script_on_enter(post_inside_the_enter, (void *)(uintptr_t) "z");
    assert_int_equal(weir_loop_run_once(f.loop, 1000), 0);
    assert_int_equal(script_signals(), 1);
    assert_int_equal(test_loop_stats(&f).wakes, 1);
    assert_string_equal(story, "z");
}

static weir__backend_verbs late_verbs;

/* The last thing that the loop looks at before it says that it sleeps. */
static bool post_and_say_no(const weir__backend *backend) {
    (void)backend;
    if (story[0] == '\0') {
        tell('!');
        test_ok(weir_loop_post(f.loop, tell_post, (void *)(uintptr_t) "p"));
    }
    return false;
}

/* Who posts after the loop has looked and before it says that it sleeps, wakes nobody: so it looks again. */
static void post_between_the_look_and_the_sleep_is_seen(void **state) {
    (void)state;
    begin_story();
    const weir__backend_verbs *before = f.loop->backend->verbs;
    late_verbs = *before;
    late_verbs.is_ready = post_and_say_no;
    f.loop->backend->verbs = &late_verbs;
    assert_int_equal(weir_loop_run_once(f.loop, SECOND), 0);
    assert_int_equal(script_last_enter().wait, 0);
    assert_string_equal(story, "!p");
    f.loop->backend->verbs = before;
}

/* ---- running and stopping --------------------------------------------------------------------------- */

static void run_returns_when_nothing_is_open(void **state) {
    (void)state;
    begin_story();
    test_ok(weir_loop_run(f.loop));
    assert_int_equal(test_loop_stats(&f).turns, 0);
    post(tell_post, "a");
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "a");
}

static void stop(weir_loop *loop, void *userdata) {
    tell(*(const char *)userdata);
    weir_loop_stop(loop);
}

static void stop_ends_the_run_after_its_turn(void **state) {
    (void)state;
    begin_story();
    post(stop, "s");
    post(tell_post, "t");  /* the same turn */
    post(post_again, "p"); /* keeps it running for ever */
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "stp");
    assert_int_equal(test_loop_stats(&f).turns, 1);
}

static void stop_before_the_run_ends_it_at_once(void **state) {
    (void)state;
    begin_story();
    post(tell_post, "a");
    weir_loop_stop(f.loop);
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "");
    test_ok(weir_loop_run(f.loop)); /* once only */
    assert_string_equal(story, "a");
    weir_loop_stop(NULL);
}

static void stop_of_a_single_turn_does_not_stop_the_next(void **state) {
    (void)state;
    begin_story();
    post(stop, "s");
    turn();
    post(tell_post, "a");
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "sa");
}

static int nested[4];

static void nest(weir_loop *loop, void *userdata) {
    (void)userdata;
    nested[0] = weir_loop_run(loop);
    nested[1] = weir_loop_run_once(loop, 0);
    nested[2] = weir_loop_close(loop);
    nested[3] = weir_loop_drain(loop, WEIR_NEVER);
}

static void loop_does_not_run_inside_itself(void **state) {
    (void)state;
    test_ok(weir_loop_post(f.loop, nest, NULL));
    turn();
    assert_int_equal(nested[0], -EBUSY);
    assert_int_equal(nested[1], -EBUSY);
    assert_int_equal(nested[2], -EBUSY);
    assert_int_equal(nested[3], 0);
}

static void loop_that_keeps_running_waits_for_its_stop(void **state) {
    (void)state;
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    begin_story();
    test_open_options(&f, &tuning, &options);
    post(tell_post, "a");
    script_on_enter(post_inside_the_enter, (void *)(uintptr_t) "b");
    post(stop, "s");
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "asb");
    test_close(&f);
}

static void loop_that_cannot_be_enabled_may_be_run_again(void **state) {
    (void)state;
    begin_story();
    post(tell_post, "a");
    script_fail(SCRIPT_ENABLE, -ENOMEM, 1);
    assert_int_equal(weir_loop_run(f.loop), -ENOMEM);
    assert_string_equal(story, "");
    assert_int_equal(weir_loop_is_own_thread(f.loop), 1);
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "a");
}

static void loop_that_the_kernel_refuses_once_goes_on_where_it_was(void **state) {
    (void)state;
    begin_story();
    post(tell_post, "a");
    script_fail(SCRIPT_ENTER, -ENOMEM, 1);
    assert_int_equal(weir_loop_run(f.loop), -ENOMEM);
    test_ok(weir_loop_run(f.loop));
    assert_string_equal(story, "a");
}

/* ---- settling --------------------------------------------------------------------------------------- */

typedef struct actor {
    weir__actor base;
    char name;
    struct actor *marks; /* from inside its settling */
    unsigned left;       /* times it does that */
    int reason;
} actor;

static void settle(weir__actor *base) {
    actor *it = WEIR__CONTAINER(base, actor, base);
    tell(it->name);
    if (it->marks != NULL && it->left > 0) {
        it->left--;
        weir__loop_mark(f.loop, &it->marks->base);
    }
}

static void end(weir__actor *base, int reason) {
    WEIR__CONTAINER(base, actor, base)->reason = reason;
    weir__loop_remove(f.loop, base);
}

static void drain(weir__actor *base) {
    (void)base;
    tell('d');
}

static actor a, b; /* the loop's close ends them */

static const weir__actor_verbs verbs = { .settle = settle, .end = end, .drain = drain };

static void add(actor *it, char name) {
    *it = (actor){ .name = name };
    weir__loop_add(f.loop, &it->base, &verbs);
}

static void marked_actor_is_settled_once(void **state) {
    (void)state;
    begin_story();
    add(&a, 'a');
    add(&b, 'b');
    weir__loop_mark(f.loop, &b.base);
    weir__loop_mark(f.loop, &a.base);
    weir__loop_mark(f.loop, &b.base);
    assert_string_equal(story, "");
    turn();
    assert_string_equal(story, "ba");
    turn();
    assert_string_equal(story, "ba");
}

/* An actor that marks itself whenever it settles may take the loop's time, but not its turn. */
static void settling_does_not_recurse(void **state) {
    (void)state;
    begin_story();
    add(&a, 'a');
    a.marks = &a;
    a.left = 5;
    weir__loop_mark(f.loop, &a.base);
    turn();
    assert_string_equal(story, "aa"); /* at the turn's beginning, and at its end */
    turn();
    assert_string_equal(story, "aaaa");
    turn();
    turn();
    assert_string_equal(story, "aaaaaa");
}

static void loop_does_not_sleep_over_what_is_marked(void **state) {
    (void)state;
    begin_story();
    add(&a, 'a');
    a.marks = &a;
    a.left = 3;
    weir__loop_mark(f.loop, &a.base);
    assert_int_equal(weir_loop_run_once(f.loop, SECOND), 0);
    assert_int_equal(script_last_enter().wait, 0);
    turn();
    turn();
}

static void actor_that_is_gone_is_not_settled(void **state) {
    (void)state;
    begin_story();
    add(&a, 'a');
    add(&b, 'b');
    weir__loop_mark(f.loop, &a.base);
    weir__loop_mark(f.loop, &b.base);
    weir__loop_remove(f.loop, &a.base);
    weir__loop_mark(f.loop, &a.base);
    turn();
    assert_string_equal(story, "b");
}

static void loop_that_closes_ends_every_actor(void **state) {
    (void)state;
    begin_story();
    test_open(&f, &tuning, NULL);
    add(&a, 'a');
    add(&b, 'b');
    test_ok(weir_loop_close(f.loop));
    assert_int_equal(a.reason, WEIR_CLOSE_LOOP);
    assert_int_equal(b.reason, WEIR_CLOSE_LOOP);
    test_close(&f);
}

static void actor_waiting_for_a_descriptor_is_settled_when_one_is_closed(void **state) {
    (void)state;
    int fds[2];
    begin_story();
    add(&a, 'a');
    weir__stall stall = { .actor = &a.base };
    weir__list_init(&stall.link);
    weir__list_append(&f.loop->stalled, &stall.link);
    turn();
    assert_string_equal(story, "");
    test_ok(weir__sys_socketpair(fds));
    weir__loop_close_fd(f.loop, fds[0]);
    turn();
    assert_string_equal(story, "a");
    weir__loop_close_fd(f.loop, fds[1]);
    turn();
    assert_string_equal(story, "a"); /* once for each time it waits */
}

/* ---- listeners: errors of a connection --------------------------------------------------------------- */

static void take(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener;
    ++*(unsigned *)userdata;
    test_ok(weir_stream_abort(stream));
}

static void over(weir_listener *listener, int error, void *userdata) {
    (void)listener, (void)error, (void)userdata;
    tell('c');
}

static weir_listener *listen_and_count(unsigned *count) {
    static const weir_listener_callbacks callbacks = { .size = sizeof callbacks,
                                                       .on_accept = take,
                                                       .on_close = over };
    weir_listener *listener;
    begin_story();
    *count = 0;
    test_ok(weir_listener_open(f.loop, "127.0.0.1:80", NULL, &listener));
    test_ok(weir_listener_start(listener, &callbacks, count));
    turn();
    return listener;
}

/* The accept that the kernel has, or NULL. */
static script_entry *find_accept(void) {
    script_entry *entry;
    for (unsigned i = 0; (entry = script_live(i)) != NULL; i++)
        if (entry->sqe.opcode == IORING_OP_ACCEPT)
            return entry;
    return NULL;
}

/* The kernel says this, if it was asked to accept, and the listener asks it again, or rests. Return: was it asked? */
static bool answer_accept(int32_t result) {
    script_entry *entry = find_accept();
    if (entry == NULL)
        return false;
    script_complete(entry, result, result < 0 ? 0 : IORING_CQE_F_MORE);
    turn();
    turn();
    return true;
}

static int new_connection(void) {
    int fds[2];
    test_ok(weir__sys_socketpair(fds));
    weir__sys_close(fds[1]);
    return fds[0];
}

/* accept(2): errors that the network had for the new connection, to be treated like EAGAIN. */
static const int lost[] = { -ENETDOWN, -EPROTO,       -ENOPROTOOPT, -EHOSTDOWN,
                            -ENONET,   -EHOSTUNREACH, -EOPNOTSUPP,  -ENETUNREACH };

/*
 * accept(2) tells what became of a connection before anybody accepted it. The listener took it for its own: -EOPNOTSUPP
 * closed it for good, the others made it rest for 100 ms, with all the connections behind that one.
 */
static void an_error_of_one_connection_does_not_hold_up_the_next(void **state) {
    (void)state;
    unsigned count;
    weir_listener *listener = listen_and_count(&count);
    for (size_t i = 0; i < sizeof lost / sizeof *lost; i++) {
        assert_true(answer_accept(lost[i]));
        assert_true(answer_accept(new_connection()));
        assert_int_equal(count, i + 1);
    }
    for (size_t i = 0; i < sizeof lost / sizeof *lost; i++) /* nor do several */
        assert_true(answer_accept(lost[i]));
    assert_true(answer_accept(new_connection()));
    assert_int_equal(test_loop_stats(&f).accept_stalls, 0); /* no want of descriptors */
    assert_string_equal(story, "");
    test_ok(weir_listener_close(listener));
    turn();
    assert_string_equal(story, "c");
}

/* An error that stays is not one connection's. It must not keep the loop from sleeping. */
static void an_error_of_each_connection_makes_the_listener_rest(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof lost / sizeof *lost; i++) {
        unsigned count, asked = 0;
        weir_listener *listener = listen_and_count(&count);
        for (int round = 0; round < 3; round++) {
            unsigned before = asked;
            while (asked - before < 100 && answer_accept(lost[i]))
                asked++;
            assert_in_range(asked - before, 1, 32);
            script_advance_ns(99000000);
            turn();
            turn();
            assert_null(find_accept());
            script_advance_ns(1000000);
            turn();
            turn();
            assert_non_null(find_accept());
        }
        assert_true(answer_accept(new_connection()));
        assert_int_equal(count, 1);
        for (int n = 0; n < 40; n++) { /* connections in between: it is not the same error that stays */
            assert_true(answer_accept(lost[i]));
            assert_true(answer_accept(new_connection()));
        }
        assert_int_equal(test_loop_stats(&f).accept_stalls, 0);
        test_ok(weir_listener_close(listener));
        turn();
    }
}

/* The process has no descriptor left, or the system has none, or no memory: others may give some back, and the kernel does
 * not tell. So it rests, and tries again every 100 ms, and when this loop closes one. */
static void listener_without_descriptors_rests_and_tries_again(void **state) {
    (void)state;
    static const int wants[] = { -EMFILE, -ENFILE, -ENOMEM, -ENOBUFS };
    for (size_t i = 0; i < sizeof wants / sizeof *wants; i++) {
        unsigned count;
        uint64_t stalls = test_loop_stats(&f).accept_stalls;
        weir_listener *listener = listen_and_count(&count);
        assert_true(answer_accept(wants[i]));
        assert_null(find_accept());
        assert_int_equal(test_loop_stats(&f).accept_stalls, stalls + 1);
        script_advance_ns(99000000);
        turn();
        turn();
        assert_null(find_accept());
        script_advance_ns(1000000);
        turn();
        turn();
        assert_true(answer_accept(wants[i])); /* and again */
        weir__loop_close_fd(f.loop, new_connection());
        turn();
        turn();
        assert_true(answer_accept(new_connection()));
        assert_int_equal(count, 1);
        assert_string_equal(story, "");
        test_ok(weir_listener_close(listener));
        turn();
        assert_string_equal(story, "c");
    }
}

static pid_t child;

static void close_and_fork(weir_listener *listener, weir_stream *stream, void *userdata) {
    take(listener, stream, userdata);
    test_ok(weir_listener_close(listener));
    child = fork();
    if (child == 0)
        signal(SIGSEGV, SIG_DFL); /* cmocka would go on with the next test */
}

/* A connection had been held back, and with it a server wants no more, and forks for it. It was back in both, and the child
 * closed the listener as well: it shut the parent's socket down, and was told so. */
static void the_child_of_an_on_accept_is_not_told_that_its_listener_closed(void **state) {
    (void)state;
    static const weir_listener_callbacks forks = { .size = sizeof forks,
                                                   .on_accept = close_and_fork,
                                                   .on_close = over };
    weir_listener *listener;
    unsigned count = 0;
    int status = -1;
    begin_story();
    test_ok(weir_listener_open(f.loop, "127.0.0.1:80", NULL, &listener));
    test_ok(weir_listener_start(listener, &forks, &count));
    turn();
    test_ok(weir_listener_pause(listener));
    assert_true(answer_accept(new_connection()));
    assert_int_equal(count, 0);
    test_ok(weir_listener_resume(listener));
    child = -1;
    int result = weir_loop_run_once(f.loop, 0);
    if (child == 0)
        _exit(strlen(story) > 0 || result != -ECHILD);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_int_equal(count, 1);
    assert_string_equal(story, "c");
}

/* ---- draining --------------------------------------------------------------------------------------- */

static void drained_loop_ends_what_is_open_when_its_grace_is_over(void **state) {
    (void)state;
    begin_story();
    add(&a, 'a');
    f.loop->streams_open++;
    test_ok(weir_loop_drain(f.loop, 5 * (int64_t)SECOND));
    assert_string_equal(story, "d");
    script_advance_ns(4 * (int64_t)SECOND);
    turn();
    assert_int_equal(a.reason, 0);
    script_advance_ns(SECOND);
    turn();
    assert_int_equal(a.reason, WEIR_CLOSE_DRAIN);
    f.loop->streams_open--;
    test_ok(weir_loop_run(f.loop));
}

static void grace_may_be_shortened_and_not_lengthened(void **state) {
    (void)state;
    add(&a, 'a');
    f.loop->streams_open++;
    test_ok(weir_loop_drain(f.loop, 2 * (int64_t)SECOND));
    test_ok(weir_loop_drain(f.loop, 9 * (int64_t)SECOND));
    test_ok(weir_loop_drain(f.loop, WEIR_NEVER));
    script_advance_ns(2 * (int64_t)SECOND);
    turn();
    assert_int_equal(a.reason, WEIR_CLOSE_DRAIN);
    add(&a, 'a');
    test_ok(weir_loop_drain(f.loop, 9 * (int64_t)SECOND));
    test_ok(weir_loop_drain(f.loop, 2 * (int64_t)SECOND));
    script_advance_ns(2 * (int64_t)SECOND);
    turn();
    assert_int_equal(a.reason, WEIR_CLOSE_DRAIN);
    f.loop->streams_open--;
    assert_int_equal(weir_loop_drain(f.loop, -2), -EINVAL);
}

/* ---- beginning and end ------------------------------------------------------------------------------- */

static void loop_that_is_closed_refuses_everything_but_questions(void **state) {
    (void)state;
    test_open(&f, &tuning, NULL);
    test_ok(weir_loop_close(f.loop));
    test_ok(weir_loop_close(f.loop));
    assert_int_equal(weir_loop_run(f.loop), -ESHUTDOWN);
    assert_int_equal(weir_loop_run_once(f.loop, 0), -ESHUTDOWN);
    assert_int_equal(weir_loop_drain(f.loop, 0), -ESHUTDOWN);
    assert_non_null(weir_loop_get_pool(f.loop));
    assert_int_equal(test_pool_stats(&f).used_bytes, 0);
    weir_loop_stop(f.loop);
    test_close(&f);
}

static void loop_takes_null_for_nothing(void **state) {
    (void)state;
    assert_int_equal(weir_loop_close(NULL), 0);
    assert_null(weir_loop_ref(NULL));
    assert_null(weir_loop_unref(NULL));
    assert_int_equal(weir_loop_run(NULL), -EINVAL);
}

/* Each allocation fails once: an error comes back and nothing is left, or the loop does without and works. */
static void loop_without_memory_leaves_nothing(void **state) {
    (void)state;
    unsigned made = 0, failed = 0;
    for (uint64_t nth = 1; made < 2; nth++) {
        test_memory memory;
        weir_loop *loop = NULL;
        char reason[WEIR_REASON_SIZE] = "";
        test_memory_init(&memory);
        atomic_store(&memory.fail_at, nth);
        weir_loop_options options = {
            .size = sizeof options, .allocator = &memory.allocator, .reason = reason, .reason_size = sizeof reason
        };
        int result = weir__loop_new(&options, &tuning, &loop);
        if (result == 0) {
            made += atomic_load(&memory.failed) == 0;
            test_ok(weir_loop_close(loop));
            weir_loop_unref(loop);
        } else {
            assert_int_equal(result, -ENOMEM);
            assert_true(nth == 1 || strlen(reason) > 0);
            assert_null(loop);
            failed++;
        }
        assert_int_equal(atomic_load(&memory.live_blocks), 0);
        assert_int_equal(script_fds_open(), 0);
        assert_int_equal(script_rings_open(), 0);
    }
    assert_true(failed >= 8);
}

static int new_loop(weir_loop_options *options, char *reason) {
    weir_loop *loop = NULL;
    options->size = options->size > 0 ? options->size : sizeof *options;
    options->reason = reason;
    options->reason_size = WEIR_REASON_SIZE;
    int result = weir__loop_new(options, &tuning, &loop);
    assert_true(result < 0);
    assert_null(loop);
    return result;
}

static void options_of_a_loop_are_checked(void **state) {
    (void)state;
    char reason[WEIR_REASON_SIZE];
    static const weir_allocator no_free = { .size = sizeof no_free };
    static const weir_pool_options bad_pool = { .size = sizeof bad_pool, .buffer_bytes = 3 };
    assert_int_equal(new_loop(&(weir_loop_options){ .backend = WEIR_BACKEND_EPOLL + 1 }, reason), -EINVAL);
    assert_int_equal(new_loop(&(weir_loop_options){ .flags = 2 }, reason), -EINVAL);
    assert_int_equal(new_loop(&(weir_loop_options){ .busy_poll = 3 }, reason), -EINVAL);
    assert_int_equal(new_loop(&(weir_loop_options){ .busy_poll_share_percent = 101 }, reason), -EINVAL);
    assert_int_equal(new_loop(&(weir_loop_options){ .busy_poll_ns = 10000001 }, reason), -EINVAL);
    assert_int_equal(new_loop(&(weir_loop_options){ .busy_poll_ns = -1 }, reason), -EINVAL);
    assert_int_equal(new_loop(&(weir_loop_options){ .allocator = &no_free }, reason), -EINVAL);
    assert_int_equal(new_loop(&(weir_loop_options){ .pool = &bad_pool }, reason), -EINVAL);
    assert_int_equal(new_loop(&(weir_loop_options){ .size = 8 }, reason), -EINVAL);
    assert_int_equal(weir_loop_new(NULL, NULL), -EINVAL);
}

/* Why there is no loop, not how it would have run: with classic rings asked for, the reason used to be that. */
static void reason_of_a_failure_is_that_failure(void **state) {
    (void)state;
    char reason[WEIR_REASON_SIZE];
    static const weir_pool_options bad_pool = { .size = sizeof bad_pool, .buffer_bytes = 3 };
    assert_int_equal(
        new_loop(&(weir_loop_options){ .backend = WEIR_BACKEND_URING_CLASSIC, .pool = &bad_pool }, reason),
        -EINVAL);
    assert_null(strstr(reason, "asked"));
    script_fail(SCRIPT_EVENTFD, -EMFILE, 1);
    assert_int_equal(new_loop(&(weir_loop_options){ .backend = WEIR_BACKEND_URING_CLASSIC }, reason), -EMFILE);
    assert_null(strstr(reason, "asked"));
}

static void forbidden_kernel_is_told_with_its_reason(void **state) {
    (void)state;
    char reason[WEIR_REASON_SIZE] = "";
    static const uint32_t asked[] = { WEIR_BACKEND_URING_INCREMENTAL, WEIR_BACKEND_URING_CLASSIC };
    for (size_t i = 0; i < 2; i++) {
        script_fail(SCRIPT_OPEN, -EPERM, 1);
        assert_int_equal(new_loop(&(weir_loop_options){ .backend = asked[i] }, reason), -EPERM);
        assert_non_null(strstr(reason, "not permitted"));
        assert_int_equal(script_fds_open(), 0);
    }
}

/* The self-test is over, and a filter came after it: the ring itself is refused. */
static void any_mode_goes_on_to_epoll_where_a_ring_is_refused(void **state) {
    (void)state;
    static const int refusals[] = { -EPERM, -ENOSYS, -EACCES };
    for (size_t i = 0; i < 3; i++) {
        test_memory memory;
        weir_loop *loop;
        test_memory_init(&memory);
        const weir_loop_options options = { .size = sizeof options, .allocator = &memory.allocator };
        weir_loop_info info = { .size = sizeof info };
        script_fail(SCRIPT_OPEN, refusals[i], 1);
        test_ok(weir__loop_new(&options, &tuning, &loop));
        test_ok(weir_loop_get_info(loop, &info));
        assert_int_equal(info.backend, WEIR_BACKEND_EPOLL);
        assert_int_equal(info.asked, WEIR_BACKEND_AUTO);
        assert_non_null(strstr(info.reason, i == 1 ? "not available" : "not permitted"));
        test_ok(weir_loop_close(loop));
        weir_loop_unref(loop);
        assert_int_equal(atomic_load(&memory.live_blocks), 0);
        assert_int_equal(script_fds_open(), 0);
        assert_int_equal(script_mapped(), 0);
    }
}

/* What may be otherwise in a moment is an error, and nothing else is tried. */
static void any_mode_is_refused_where_memory_or_descriptors_are_missing(void **state) {
    (void)state;
    static const int errors[] = { -ENOMEM, -EMFILE, -ENFILE };
    char reason[WEIR_REASON_SIZE] = "";
    for (size_t i = 0; i < 3; i++) {
        script_fail(SCRIPT_OPEN, errors[i], 100);
        assert_int_equal(new_loop(&(weir_loop_options){ 0 }, reason), errors[i]);
        assert_non_null(strstr(reason, i == 0 ? "memory" : "descriptor"));
        script_fail(SCRIPT_OPEN, 0, 0);
    }
}

static void backend_is_ticked_about_once_a_second(void **state) {
    (void)state;
    turn();
    weir__uring *u = weir__uring_of(f.loop->backend);
    u->has_no_memory = true; /* until the next tick */
    for (int i = 0; i < 5; i++) {
        script_advance_ns(100000000);
        turn();
    }
    assert_true(u->has_no_memory);
    for (int i = 0; i < 6; i++) {
        script_advance_ns(100000000);
        turn();
    }
    assert_false(u->has_no_memory);
}

/* ---- pressure ------------------------------------------------------------------------------------------ */

static void feel_last(weir_loop *loop, weir_pool *pool, int level, void *userdata) {
    (void)loop, (void)pool, (void)userdata;
    tell((char)('0' + level));
}

/* It asks for itself again and again: what it hears is news to it each time. */
static void feel_again(weir_loop *loop, weir_pool *pool, int level, void *userdata) {
    (void)pool;
    if (strlen(story) == 10)
        fail_msg("it is told for ever");
    tell('a');
    test_ok(weir_loop_set_pressure(loop, level == WEIR_PRESSURE_NONE ? feel_last : feel_again, userdata));
}

static void feel_once(weir_loop *loop, weir_pool *pool, int level, void *userdata) {
    (void)pool, (void)level;
    tell('b');
    test_ok(weir_loop_set_pressure(loop, feel_last, userdata));
}

/* Who asks for another function has not heard of anything, so the level was told again at once, to a function that asked for
 * another one, and again: the turn never ended. */
static void who_hears_of_pressure_may_have_another_hear_of_it(void **state) {
    (void)state;
    const weir_pool_options pool = { .size = sizeof pool, .budget_bytes = 1 << 20, .buffer_bytes = 4096 };
    weir_slice most;
    uint8_t *data;
    begin_story();
    test_open(&f, &tuning, &pool);
    test_ok(weir_slice_new(f.loop->pool, 300 << 10, &data, &most));
    test_ok(weir_loop_set_pressure(f.loop, feel_again, NULL));
    turn();
    assert_string_equal(story, "a");
    turn();
    assert_string_equal(story, "aa"); /* the new one's turn */
    test_ok(weir_loop_set_pressure(f.loop, feel_once, NULL));
    turn();
    assert_string_equal(story, "aab");
    turn();
    turn();
    assert_string_equal(story, "aab1"); /* as often as it changes */
    weir_slice_unref(&most);
    turn();
    turn();
    assert_string_equal(story, "aab10");
    test_close(&f);
}

#define loop_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)
#define bare_test(function) cmocka_unit_test_setup_teardown(function, bare_setup, bare_teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(posts_run_in_order_in_one_turn),
        loop_test(post_of_a_post_runs_in_the_next_turn),
        bare_test(post_that_was_taken_runs_at_the_close),
        loop_test(post_without_memory_is_refused_and_never_runs),
        loop_test(post_wants_a_loop_and_a_function),
        loop_test(loop_sleeps_as_long_as_it_is_told),
        loop_test(no_sleep_is_longer_than_a_second),
        loop_test(loop_with_work_does_not_sleep),
        loop_test(wake_of_a_running_loop_costs_nothing),
        loop_test(post_to_a_sleeping_loop_wakes_it),
        loop_test(post_between_the_look_and_the_sleep_is_seen),
        loop_test(run_returns_when_nothing_is_open),
        loop_test(stop_ends_the_run_after_its_turn),
        loop_test(stop_before_the_run_ends_it_at_once),
        loop_test(stop_of_a_single_turn_does_not_stop_the_next),
        loop_test(loop_does_not_run_inside_itself),
        bare_test(loop_that_keeps_running_waits_for_its_stop),
        loop_test(loop_that_cannot_be_enabled_may_be_run_again),
        loop_test(loop_that_the_kernel_refuses_once_goes_on_where_it_was),
        loop_test(marked_actor_is_settled_once),
        loop_test(settling_does_not_recurse),
        loop_test(loop_does_not_sleep_over_what_is_marked),
        loop_test(actor_that_is_gone_is_not_settled),
        bare_test(loop_that_closes_ends_every_actor),
        loop_test(actor_waiting_for_a_descriptor_is_settled_when_one_is_closed),
        loop_test(an_error_of_one_connection_does_not_hold_up_the_next),
        loop_test(an_error_of_each_connection_makes_the_listener_rest),
        loop_test(listener_without_descriptors_rests_and_tries_again),
        loop_test(the_child_of_an_on_accept_is_not_told_that_its_listener_closed),
        loop_test(drained_loop_ends_what_is_open_when_its_grace_is_over),
        loop_test(grace_may_be_shortened_and_not_lengthened),
        bare_test(loop_that_is_closed_refuses_everything_but_questions),
        bare_test(loop_takes_null_for_nothing),
        bare_test(loop_without_memory_leaves_nothing),
        bare_test(options_of_a_loop_are_checked),
        bare_test(reason_of_a_failure_is_that_failure),
        bare_test(forbidden_kernel_is_told_with_its_reason),
        bare_test(any_mode_goes_on_to_epoll_where_a_ring_is_refused),
        bare_test(any_mode_is_refused_where_memory_or_descriptors_are_missing),
        loop_test(backend_is_ticked_about_once_a_second),
        bare_test(who_hears_of_pressure_may_have_another_hear_of_it),
    };
    return cmocka_run_group_tests_name("loop", tests, NULL, NULL);
}
