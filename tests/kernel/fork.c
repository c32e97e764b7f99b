/* SPDX-License-Identifier: MIT */

/*
 * After a fork the child has a copy of every handle and none of what they stand for: each call there fails with
 * -ECHILD or does nothing, frees nothing and disturbs nothing of the parent's. The child may make a loop of its own.
 *
 * What the child finds wrong it writes to a pipe, a line each; the parent fails when there is one.
 */

#include <netinet/in.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "kernel/scribe.h"

enum { OURS = 1, THEIRS = 2 };

/* Everything that a program may hold when it forks. */
typedef struct household {
    test_fixture f;
    weir_listener *listener;
    weir_stream *accepted[8]; /* unstarted */
    unsigned accepted_count;
    scribe s, dialled;
    peer p;
    weir_timer *timer;
    weir_slice held, made;
    weir_chain *chain; /* both of them */
    unsigned ticks;
    int report[2], hold[2]; /* pipes: what the child says; the child lives until this one is closed */
    pid_t child;
} household;

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    household *h = userdata;
    (void)listener;
    assert_true(h->accepted_count < 8);
    h->accepted[h->accepted_count++] = stream;
}

static const weir_listener_callbacks listener_callbacks = { .size = sizeof listener_callbacks,
                                                            .on_accept = on_accept };

static void tick(weir_timer *timer, void *userdata) {
    (void)timer;
    ((household *)userdata)->ticks++;
}

static void hold(scribe *s, char event, const weir_slice *slice) {
    household *h = s->userdata;
    if (event == 'd' && h->held.size == 0)
        weir_slice_ref(slice, &h->held);
}

static void move_in(household *h) {
    int fds[2];
    char address[WEIR_ADDRESS_SIZE];
    weir_stream *stream;
    memset(h, 0, sizeof *h);
    test_open(&h->f, NULL, NULL);
    test_ok(weir_listener_open(h->f.loop, "127.0.0.1:0", NULL, &h->listener));
    test_ok(weir_listener_start(h->listener, &listener_callbacks, h));
    assert_true(weir_listener_get_address(h->listener, address, sizeof address) > 0);
    test_pair(true, fds);
    peer_init(&h->p, fds[0], OURS);
    h->s.hook = hold;
    h->s.userdata = h;
    scribe_init(&h->s, THEIRS);
    scribe_adopt(&h->f, &h->s, fds[1], NULL);
    assert_int_equal(peer_send(h->p.fd, THEIRS, 0, 1000), 0);
    scribe_init(&h->dialled, 0);
    test_ok(weir_stream_dial(h->f.loop, address, NULL, &stream));
    scribe_start(&h->dialled, stream);
    test_ok(weir_timer_new(h->f.loop, tick, h, &h->timer));
    test_ok(weir_timer_start(h->timer, 1 * MS, 1 * MS));
    test_ok(weir_slice_copy(weir_loop_get_pool(h->f.loop), "made", 4, &h->made));
    RUN_UNTIL(&h->f, h->held.size > 0 && h->accepted_count == 1 && h->ticks > 0);
    test_ok(weir_chain_new(h->f.loop, 1 << 20, &h->chain));
    test_ok(weir_chain_push(h->chain, &h->held));
    test_ok(weir_chain_push(h->chain, &h->made));
}

static void move_out(household *h) {
    assert_int_equal(weir_chain_get_size(h->chain), h->held.size + h->made.size);
    weir_chain_unref(h->chain);
    weir_slice_unref(&h->held);
    weir_slice_unref(&h->made);
    weir_timer_unref(h->timer);
    close(h->p.fd);
    test_close(&h->f);
}

/* ---- the child -------------------------------------------------------------------------------------------------- */

static void found(household *h, const char *expression, int line) {
    char text[256];
    int length = snprintf(text, sizeof text, "line %d: %s\n", line, expression);
    if (write(h->report[1], text, (size_t)length) != length)
        _exit(2);
}

#define CHECK(expression)                    \
    do {                                     \
        if (!(expression))                   \
            found(h, #expression, __LINE__); \
    } while (0)

static void never_post(weir_loop *loop, void *userdata) {
    (void)loop;
    household *h = userdata;
    CHECK(!"a post ran in the child");
}

static void never_flush(weir_stream *stream, int error, void *userdata) {
    (void)stream, (void)error;
    household *h = userdata;
    CHECK(!"a flush ended in the child");
}

static void child_tries_every_loop_call(household *h) {
    weir_loop *loop = h->f.loop;
    weir_loop_info info = { .size = sizeof info };
    weir_loop_stats stats = { .size = sizeof stats };
    weir_pool_stats pool = { .size = sizeof pool };
    weir_listener *listener = NULL;
    weir_stream *stream = NULL;
    weir_timer *timer = NULL;
    weir_slice slice = { 0 };
    uint8_t *data;
    CHECK(weir_loop_run(loop) == -ECHILD);
    CHECK(weir_loop_run_once(loop, 0) == -ECHILD);
    CHECK(weir_loop_drain(loop, 0) == -ECHILD);
    CHECK(weir_loop_set_pressure(loop, NULL, NULL) == -ECHILD);
    CHECK(weir_loop_post(loop, never_post, h) == -ECHILD);
    CHECK(weir_loop_is_idle(loop) == -ECHILD);
    CHECK(weir_loop_is_own_thread(loop) == -ECHILD);
    CHECK(weir_loop_get_now(loop) == -ECHILD);
    CHECK(weir_loop_get_info(loop, &info) == -ECHILD);
    CHECK(weir_loop_get_stats(loop, &stats) == -ECHILD);
    CHECK(weir_pool_get_stats(weir_loop_get_pool(loop), &pool) == -ECHILD);
    CHECK(weir_pool_ref(weir_loop_get_pool(loop)) == weir_loop_get_pool(loop));
    CHECK(weir_pool_unref(weir_loop_get_pool(loop)) == NULL);
    CHECK(weir_listener_open(loop, "127.0.0.1:0", NULL, &listener) == -ECHILD);
    CHECK(weir_listener_adopt(loop, 0, NULL, &listener) == -ECHILD);
    CHECK(weir_stream_dial(loop, "127.0.0.1:1", NULL, &stream) == -ECHILD);
    CHECK(weir_stream_adopt(loop, 0, NULL, &stream) == -ECHILD);
    CHECK(weir_timer_new(loop, tick, h, &timer) == -ECHILD);
    CHECK(weir_slice_new(weir_loop_get_pool(loop), 10, &data, &slice) == -ECHILD);
    CHECK(weir_slice_copy(weir_loop_get_pool(loop), "x", 1, &slice) == -ECHILD);
    CHECK(weir_slice_wrap(weir_loop_get_pool(loop), "x", 1, NULL, NULL, &slice) == -ECHILD);
    weir_loop_stop(loop);
    CHECK(weir_loop_ref(loop) == loop);
    CHECK(weir_loop_unref(loop) == NULL);
    CHECK(weir_loop_close(loop) == -ECHILD);
}

static void child_tries_every_stream_call(household *h, weir_stream *stream) {
    weir_stream_stats stats = { .size = sizeof stats };
    char text[WEIR_ADDRESS_SIZE];
    int fd = -1;
    CHECK(weir_stream_start(stream, &scribe_callbacks, &h->s) == -ECHILD);
    CHECK(weir_stream_detach(stream, &fd) == -ECHILD);
    CHECK(weir_stream_pause(stream) == -ECHILD);
    CHECK(weir_stream_resume(stream) == -ECHILD);
    CHECK(weir_stream_write(stream, "child", 5) == -ECHILD);
    CHECK(weir_stream_write_slice(stream, &h->made) == -ECHILD);
    CHECK(weir_stream_write_external(stream, "child", 5, NULL, NULL) == -ECHILD);
    CHECK(weir_stream_writev(stream, &h->made, 1) == -ECHILD);
    CHECK(weir_stream_cork(stream) == -ECHILD);
    CHECK(weir_stream_uncork(stream) == -ECHILD);
    CHECK(weir_stream_flush(stream, never_flush, h) == -ECHILD);
    CHECK(weir_stream_grant(stream, 1) == -ECHILD);
    CHECK(weir_stream_pipe(stream, stream) == -ECHILD);
    CHECK(weir_stream_pipe_both(stream, stream) == -ECHILD);
    CHECK(weir_stream_unpipe(stream) == -ECHILD);
    CHECK(weir_stream_shutdown(stream) == -ECHILD);
    CHECK(weir_stream_get_state(stream) == -ECHILD);
    CHECK(weir_stream_get_queued(stream) == 0);
    CHECK(weir_stream_get_fd(stream) == -ECHILD);
    CHECK(weir_stream_get_local(stream, text, sizeof text) == -ECHILD);
    CHECK(weir_stream_get_peer(stream, text, sizeof text) == -ECHILD);
    CHECK(weir_stream_get_stats(stream, &stats) == -ECHILD);
    CHECK(weir_stream_close(stream) == -ECHILD);
    CHECK(weir_stream_abort(stream) == -ECHILD);
    CHECK(weir_stream_ref(stream) == stream);
    for (int i = 0; i < 5; i++)
        CHECK(weir_stream_unref(stream) == NULL);
}

static void child_tries_every_chain_call(household *h) {
    const weir_slice *shown = NULL;
    weir_slice slice;
    weir_chain *chain = NULL;
    CHECK(weir_chain_new(h->f.loop, 1, &chain) == -ECHILD);
    CHECK(weir_chain_push(h->chain, &h->made) == -ECHILD);
    CHECK(weir_chain_get_size(h->chain) == 0);
    CHECK(weir_chain_peek(h->chain, 0, 1, &shown) == -ECHILD);
    CHECK(weir_chain_take(h->chain, 1, &slice) == -ECHILD);
    CHECK(weir_chain_drop(h->chain, 1) == -ECHILD);
    CHECK(weir_chain_find(h->chain, 0, "x", 1) == -ECHILD);
    CHECK(weir_chain_write(h->chain, 1, h->accepted[0]) == -ECHILD);
    CHECK(weir_chain_ref(h->chain) == h->chain);
    for (int i = 0; i < 5; i++)
        CHECK(weir_chain_unref(h->chain) == NULL);
}

static void child_tries_the_rest(household *h) {
    char text[WEIR_ADDRESS_SIZE];
    weir_slice slice = { (const uint8_t *)"x", 1, h->held.owner };
    CHECK(weir_listener_start(h->listener, &listener_callbacks, h) == -ECHILD);
    CHECK(weir_listener_pause(h->listener) == -ECHILD);
    CHECK(weir_listener_resume(h->listener) == -ECHILD);
    CHECK(weir_listener_close(h->listener) == -ECHILD);
    CHECK(weir_listener_get_address(h->listener, text, sizeof text) == -ECHILD);
    CHECK(weir_listener_ref(h->listener) == h->listener);
    for (int i = 0; i < 5; i++)
        CHECK(weir_listener_unref(h->listener) == NULL);
    CHECK(weir_timer_start(h->timer, 0, 0) == -ECHILD);
    CHECK(weir_timer_stop(h->timer) == -ECHILD);
    CHECK(weir_timer_ref(h->timer) == h->timer);
    for (int i = 0; i < 5; i++)
        CHECK(weir_timer_unref(h->timer) == NULL);
    CHECK(weir_slice_keep(&h->held, &slice) == -ECHILD);
    CHECK(weir_slice_sub(&h->held, 0, 1, &slice) == -ECHILD);
    weir_slice_ref(&h->held, &slice);
    CHECK(slice.size == 0 && slice.owner == NULL);
    for (int i = 0; i < 5; i++) {
        slice = h->held; /* not ours to drop, and dropping it does nothing */
        weir_slice_unref(&slice);
        CHECK(slice.owner == NULL);
        slice = h->made;
        weir_slice_unref(&slice);
    }
}

static uint64_t frees_in_child;
static void (*real_free)(void *memory, size_t size, size_t alignment, void *userdata);

static void count_frees(void *memory, size_t size, size_t alignment, void *userdata) {
    frees_in_child++;
    real_free(memory, size, alignment, userdata);
}

static void child_uses_what_it_inherited(household *h) {
    real_free = h->f.memory.allocator.free;
    h->f.memory.allocator.free = count_frees;
    uint64_t allocations = atomic_load(&h->f.memory.allocations);
    child_tries_every_stream_call(h, h->s.stream);
    child_tries_every_stream_call(h, h->accepted[0]);
    child_tries_every_chain_call(h);
    child_tries_the_rest(h);
    child_tries_every_loop_call(h);
    CHECK(frees_in_child == 0);
    CHECK(atomic_load(&h->f.memory.allocations) == allocations);
}

static bool maps_an_io_uring(void) {
    char line[512];
    bool is_found = false;
    FILE *maps = fopen("/proc/self/maps", "r");
    while (maps != NULL && fgets(line, sizeof line, maps) != NULL)
        is_found = is_found || strstr(line, "[io_uring]") != NULL;
    if (maps != NULL)
        fclose(maps);
    return is_found;
}

/* Else the parent's next receive would be copied page by page into whoever writes first, and a child could submit. */
static void child_has_neither_payload_nor_ring(household *h) {
    unsigned char is_resident;
    uintptr_t page = (uintptr_t)h->held.data & ~((uintptr_t)weir__sys_page_bytes() - 1);
    CHECK(mincore((void *)page, 1, &is_resident) < 0 && errno == ENOMEM);
    CHECK(!maps_an_io_uring());
}

static void child_runs_a_loop_of_its_own(household *h) {
    static scribe s;
    weir_loop *loop = NULL;
    weir_stream *stream = NULL;
    int fds[2];
    CHECK(weir_loop_new(NULL, &loop) == 0);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, fds) == 0);
    CHECK(weir_stream_adopt(loop, fds[1], NULL, &stream) == 0);
    scribe_init(&s, THEIRS);
    s.stream = stream;
    CHECK(weir_stream_start(stream, &scribe_callbacks, &s) == 0);
    CHECK(peer_send(fds[0], THEIRS, 0, 5000) == 0);
    for (int i = 0; i < 1000 && s.received < 5000; i++)
        CHECK(weir_loop_run_once(loop, 10 * MS) >= 0);
    CHECK(s.received == 5000 && s.wrong < 0);
    CHECK(weir_loop_run(h->f.loop) == -ECHILD); /* the parent's is as dead as before */
    CHECK(weir_stream_abort(h->s.stream) == -ECHILD);
    CHECK(weir_loop_close(loop) == 0);
    CHECK(scribe_is_closed(&s) && s.reason == WEIR_CLOSE_LOOP);
    weir_loop_unref(loop);
}

/* ---- the parent --------------------------------------------------------------------------------------------------- */

/* Both come back: the parent with h->child > 0, the child with 0. */
static void fork_here(household *h) {
    assert_int_equal(pipe(h->report), 0);
    assert_int_equal(pipe(h->hold), 0);
    fflush(NULL);
    h->child = fork();
    assert_true(h->child >= 0);
    if (h->child > 0) {
        close(h->report[1]);
        close(h->hold[0]);
    } else {
        signal(SIGSEGV, SIG_DFL); /* cmocka would go on with the next test, twice then */
        close(h->hold[1]);
    }
}

/* The child has said all. It lives until the parent says so. */
static _Noreturn void child_waits(household *h) {
    char byte;
    close(h->report[1]);
    while (read(h->hold[0], &byte, 1) > 0)
        ;
    _exit(0);
}

static void fork_off(household *h, void (*child)(household *h)) {
    fork_here(h);
    if (h->child == 0) {
        child(h);
        child_waits(h);
    }
}

/* All that the child had to say, when it has said it. */
static void expect_child_content(household *h) {
    char text[4096];
    size_t size = 0;
    ssize_t count;
    while ((count = read(h->report[0], text + size, sizeof text - 1 - size)) > 0)
        size += (size_t)count;
    text[size] = '\0';
    if (size > 0)
        fail_msg("in the child:\n%s", text);
}

static void child_may_go(household *h) {
    int status;
    close(h->hold[1]);
    close(h->report[0]);
    assert_int_equal(waitpid(h->child, &status, 0), h->child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
}

/* Streams, listener, timer, posts and memory of the parent are what they were. */
static void expect_parent_goes_on(household *h) {
    unsigned ticks = h->ticks;
    uint64_t received = h->s.received;
    assert_int_equal(peer_send(h->p.fd, THEIRS, received, 2000), 0);
    assert_int_equal(weir_stream_write(h->s.stream, "", 0), 0);
    uint8_t *bytes = pattern_new(OURS, 3000);
    test_ok(weir_stream_write(h->s.stream, bytes, 3000));
    free(bytes);
    int fd = test_connect(h->listener);
    RUN_UNTIL(&h->f, h->s.received == received + 2000 && h->accepted_count == 2 && h->ticks > ticks);
    RUN_UNTIL(&h->f, (peer_read(&h->p), h->p.received == 3000));
    peer_expect_open(&h->p, 3000);
    assert_int_equal(h->s.wrong, -1);
    assert_int_equal(test_differs(THEIRS, 0, h->held.data, h->held.size), -1);
    assert_memory_equal(h->made.data, "made", 4);
    close(fd);
}

static void every_call_in_the_child_fails_and_frees_nothing(void **state) {
    (void)state;
    static household h;
    move_in(&h);
    fork_off(&h, child_uses_what_it_inherited);
    expect_child_content(&h);
    expect_parent_goes_on(&h); /* the child is still there */
    child_may_go(&h);
    scribe_turns(&h.f, 5);
    move_out(&h);
}

static void the_child_has_neither_payload_nor_ring(void **state) {
    (void)state;
    static household h;
    move_in(&h);
    assert_true(maps_an_io_uring() || test_is_epoll(&h.f)); /* or there would be nothing to be seen */
    fork_off(&h, child_has_neither_payload_nor_ring);
    expect_child_content(&h);
    child_may_go(&h);
    expect_parent_goes_on(&h);
    move_out(&h);
}

static void the_child_can_have_a_loop_of_its_own(void **state) {
    (void)state;
    static household h;
    move_in(&h);
    fork_off(&h, child_runs_a_loop_of_its_own);
    expect_parent_goes_on(&h);
    expect_child_content(&h);
    child_may_go(&h);
    move_out(&h);
}

/* ---- a child that comes back from the callback it was forked in ------------------------------------------------------ */

/* Once it went on in its parent's loop, touched rings that a child does not have, and died of it; had it only forked to
 * be rid of the callback, nobody would have known why. */

static int one_turn(weir_loop *loop) {
    return weir_loop_run_once(loop, 10 * MS);
}

/* What is called after the fork is called in the parent only. */
static void not_in_the_child(weir_loop *loop, void *userdata) {
    household *h = userdata;
    (void)loop;
    CHECK(h->child != 0);
}

static void not_in_the_child_either(weir_timer *timer, void *userdata) {
    (void)timer;
    not_in_the_child(NULL, userdata);
}

static void stop(weir_loop *loop, void *userdata) {
    not_in_the_child(loop, userdata);
    weir_loop_stop(loop);
}

static void fork_in_post(weir_loop *loop, void *userdata) {
    (void)loop;
    fork_here(userdata);
}

static void fork_in_timer(weir_timer *timer, void *userdata) {
    (void)timer;
    fork_here(userdata);
}

static void fork_at_first_close(scribe *s, char event, const weir_slice *slice) {
    household *h = s->userdata;
    (void)slice;
    if (event == 'c' && h->child < 0)
        fork_here(h);
    else
        CHECK(h->child != 0);
}

static void fork_at_first_data(scribe *s, char event, const weir_slice *slice) {
    household *h = s->userdata;
    (void)slice;
    if (event == 'd' && h->child < 0)
        fork_here(h);
    else
        CHECK(h->child != 0);
}

/* Call it until a callback in it forks: the parent gets what it always gets, the child is told. */
static void call_and_come_back(household *h, int (*call)(weir_loop *loop)) {
    int r = 0;
    for (int i = 0; i < 1000 && h->child < 0 && r >= 0; i++)
        r = call(h->f.loop);
    if (h->child == 0) {
        CHECK(r == -ECHILD);
        CHECK(weir_loop_run(h->f.loop) == -ECHILD);
        CHECK(weir_loop_close(h->f.loop) == -ECHILD);
        child_waits(h);
    }
    assert_true(h->child > 0);
    assert_true(r >= 0);
    expect_child_content(h);
}

/* Two streams, and the other sides of them. */
static void take_in_lodgers(household *h, scribe lodgers[2], int peers[2], const weir_stream_options *options,
                            void (*hook)(scribe *s, char event, const weir_slice *slice)) {
    for (int i = 0; i < 2; i++) {
        int fds[2];
        test_pair(true, fds);
        peers[i] = fds[0];
        scribe_init(&lodgers[i], THEIRS);
        lodgers[i].hook = hook;
        lodgers[i].userdata = h;
        scribe_adopt(&h->f, &lodgers[i], fds[1], options);
    }
    scribe_turns(&h->f, 3);
    h->child = -1;
}

static void a_child_that_comes_back_from_a_post_is_told(void **state) {
    (void)state;
    static household h;
    move_in(&h);
    h.child = -1;
    test_ok(weir_loop_post(h.f.loop, fork_in_post, &h));
    test_ok(weir_loop_post(h.f.loop, stop, &h));
    call_and_come_back(&h, weir_loop_run);
    expect_parent_goes_on(&h);
    child_may_go(&h);
    move_out(&h);
}

static void a_child_that_comes_back_from_a_timer_is_told(void **state) {
    (void)state;
    static household h;
    weir_timer *first, *second;
    move_in(&h);
    h.child = -1;
    test_ok(weir_timer_new(h.f.loop, fork_in_timer, &h, &first));
    test_ok(weir_timer_new(h.f.loop, not_in_the_child_either, &h, &second));
    test_ok(weir_timer_start(first, 1, 0));
    test_ok(weir_timer_start(second, 2, 0)); /* due in the same turn */
    call_and_come_back(&h, one_turn);
    expect_parent_goes_on(&h);
    child_may_go(&h);
    weir_timer_unref(first);
    weir_timer_unref(second);
    move_out(&h);
}

static void a_child_that_comes_back_from_on_close_is_told(void **state) {
    (void)state;
    static household h;
    static scribe lodgers[2];
    int peers[2];
    move_in(&h);
    take_in_lodgers(&h, lodgers, peers, NULL, fork_at_first_close);
    test_ok(weir_stream_abort(lodgers[0].stream));
    test_ok(weir_stream_abort(lodgers[1].stream)); /* settled in the same turn */
    call_and_come_back(&h, one_turn);
    RUN_UNTIL(&h.f, scribe_is_closed(&lodgers[0]) && scribe_is_closed(&lodgers[1]));
    expect_parent_goes_on(&h);
    child_may_go(&h);
    close(peers[0]);
    close(peers[1]);
    move_out(&h);
}

static void a_child_that_comes_back_in_the_loops_close_is_told(void **state) {
    (void)state;
    static household h;
    static scribe lodgers[2];
    int peers[2];
    move_in(&h);
    take_in_lodgers(&h, lodgers, peers, NULL, fork_at_first_close);
    call_and_come_back(&h, weir_loop_close);
    assert_true(scribe_is_closed(&lodgers[0]) && scribe_is_closed(&lodgers[1]) && scribe_is_closed(&h.s));
    child_may_go(&h);
    close(peers[0]);
    close(peers[1]);
    move_out(&h);
}

/* Not yet where the kernel's completions are delivered: the loop looks between them only when all are done. */
static void a_child_that_comes_back_from_on_data_is_told(void **state) {
    (void)state;
    static household h;
    static scribe lodgers[2];
    int peers[2];
    move_in(&h);
    take_in_lodgers(&h, lodgers, peers, NULL, fork_at_first_data);
    assert_int_equal(peer_send(peers[0], THEIRS, 0, 1000), 0);
    assert_int_equal(peer_send(peers[1], THEIRS, 0, 1000), 0);
    call_and_come_back(&h, one_turn);
    RUN_UNTIL(&h.f, lodgers[0].received == 1000 && lodgers[1].received == 1000);
    expect_parent_goes_on(&h);
    child_may_go(&h);
    close(peers[0]);
    close(peers[1]);
    move_out(&h);
}

/* The last lodger's: what it is owed after this, a drain or its on_close, is the parent's. */
static void fork_in_flush(weir_stream *stream, int error, void *userdata) {
    household *h = userdata;
    (void)stream, (void)error;
    if (h->child < 0)
        fork_here(h);
    else
        CHECK(h->child != 0);
}

static void never_flush_in_the_child(weir_stream *stream, int error, void *userdata) {
    household *h = userdata;
    (void)stream, (void)error;
    CHECK(h->child != 0);
}

static void fork_in_release(const void *data, size_t size, void *userdata) {
    (void)data, (void)size;
    fork_in_flush(NULL, 0, userdata);
}

/*
 * Memory is released, and flushes are told, between the kernel's answer and on_drain, and before on_close. A child that
 * came back from there went on: it was told of a drain, and at the end closed its copy of the descriptor and said so.
 */
static void come_back_from(bool is_release, bool is_at_the_end) {
    static household h;
    static scribe lodgers[2];
    static uint8_t data[3000000];
    const weir_stream_options options = { .size = sizeof options, .queue_high_bytes = 1000 }; /* a drain is owed */
    const size_t size = is_at_the_end ? sizeof data : 2000;
    int peers[2];
    move_in(&h);
    take_in_lodgers(&h, lodgers, peers, &options, fork_at_first_data);
    weir_stream *stream = lodgers[0].stream;
    int r = is_release ? weir_stream_write_external(stream, data, size, fork_in_release, &h)
                       : weir_stream_write(stream, data, size);
    assert_int_equal(r, WEIR_WRITE_FULL);
    test_ok(weir_stream_flush(stream, is_release ? never_flush_in_the_child : fork_in_flush, &h));
    test_ok(weir_stream_flush(stream, never_flush_in_the_child, &h));
    if (is_at_the_end)
        test_ok(weir_stream_abort(stream));
    call_and_come_back(&h, one_turn);
    if (is_at_the_end)
        RUN_UNTIL(&h.f, scribe_is_closed(&lodgers[0]));
    else
        assert_string_equal(lodgers[0].events, "r");
    expect_parent_goes_on(&h);
    child_may_go(&h);
    close(peers[0]);
    close(peers[1]);
    move_out(&h);
}

static void a_child_that_comes_back_from_a_flush_is_told(void **state) {
    (void)state;
    come_back_from(false, false);
    come_back_from(false, true);
}

static void a_child_that_comes_back_from_a_release_is_told(void **state) {
    (void)state;
    come_back_from(true, false);
    come_back_from(true, true);
}

/* ---- what ends although the child lives ------------------------------------------------------------------------------ */

static void child_does_nothing(household *h) {
    (void)h;
}

/* The parent closes its connections for good although the child holds copies of their descriptors. */
static void connections_end_although_the_child_lives(void **state) {
    (void)state;
    static household h;
    peer graceful, aborted;
    scribe s[2] = { 0 };
    int fds[2];
    move_in(&h);
    for (int i = 0; i < 2; i++) {
        test_pair(true, fds);
        peer_init(i == 0 ? &graceful : &aborted, fds[0], OURS);
        scribe_init(&s[i], THEIRS);
        scribe_adopt(&h.f, &s[i], fds[1], NULL);
    }
    scribe_turns(&h.f, 3);
    fork_off(&h, child_does_nothing);
    expect_child_content(&h); /* it has closed its end: it is there */
    test_ok(weir_stream_close(s[0].stream));
    test_ok(weir_stream_abort(s[1].stream));
    RUN_UNTIL(&h.f, peer_is_over(&graceful) && peer_is_over(&aborted));
    peer_expect_end(&graceful, 0);
    peer_expect_error(&aborted, 0, ECONNRESET);
    test_ok(weir_loop_close(h.f.loop));
    for (unsigned ms = 0; ms < PATIENCE_S * 1000 && !peer_is_over(&h.p); ms++)
        test_sleep_ms(1);
    assert_int_equal(h.p.error, ECONNRESET);
    child_may_go(&h);
    close(graceful.fd);
    close(aborted.fd);
    move_out(&h);
}

/* The copy of the listening socket, whose number is nowhere told. What then remains is the ring's. */
static void child_closes_the_listening_socket(household *h) {
    int listens = 0, closed = 0;
    for (int fd = 3; fd < 1024; fd++) {
        socklen_t length = sizeof listens;
        if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &length) == 0 && listens != 0)
            closed += close(fd) == 0;
    }
    CHECK(closed >= 1);
}

/* Close a loop that listens, while a child lives. Nobody answers at the port, and somebody else may have it. */
static void expect_the_port_free(void (*child)(household *h)) {
    static household h;
    char address[WEIR_ADDRESS_SIZE];
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    test_fixture second;
    weir_listener *listener;
    memset(&h, 0, sizeof h);
    test_open(&h.f, NULL, NULL);
    test_ok(weir_listener_open(h.f.loop, "127.0.0.1:0", NULL, &h.listener));
    test_ok(weir_listener_start(h.listener, &listener_callbacks, &h));
    assert_true(weir_listener_get_address(h.listener, address, sizeof address) > 0);
    scribe_turns(&h.f, 3);
    fork_off(&h, child);
    expect_child_content(&h);
    test_ok(weir_loop_close(h.f.loop));
    in.sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int r = connect(fd, (struct sockaddr *)&in, sizeof in) < 0 ? -errno : 0;
    close(fd);
    test_open(&second, NULL, NULL);
    int opened = weir_listener_open(second.loop, address, NULL, &listener);
    test_close(&second);
    child_may_go(&h);
    test_close(&h.f);
    assert_int_equal(r, -ECONNREFUSED);
    assert_int_equal(opened, 0);
}

/* A child holds the ring's descriptor, too: what is armed stays armed, unless the parent takes it back before it goes. */
static void an_accept_does_not_live_on_in_the_childs_ring(void **state) {
    (void)state;
    expect_the_port_free(child_closes_the_listening_socket);
}

/* And it holds the listening socket: while there is a copy of it, closing does not end it. The kernel goes on to take
 * connections that nobody is ever going to accept, and the port is taken (-EADDRINUSE). Only shutting it down would end
 * it for all, as a stream's close does for connections. */
static void the_port_is_free_after_the_loops_close_although_the_child_lives(void **state) {
    (void)state;
    expect_the_port_free(child_does_nothing);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_call_in_the_child_fails_and_frees_nothing),
        cmocka_unit_test(the_child_has_neither_payload_nor_ring),
        cmocka_unit_test(the_child_can_have_a_loop_of_its_own),
        cmocka_unit_test(a_child_that_comes_back_from_a_post_is_told),
        cmocka_unit_test(a_child_that_comes_back_from_a_timer_is_told),
        cmocka_unit_test(a_child_that_comes_back_from_on_close_is_told),
        cmocka_unit_test(a_child_that_comes_back_in_the_loops_close_is_told),
        cmocka_unit_test(a_child_that_comes_back_from_on_data_is_told),
        cmocka_unit_test(a_child_that_comes_back_from_a_flush_is_told),
        cmocka_unit_test(a_child_that_comes_back_from_a_release_is_told),
        cmocka_unit_test(connections_end_although_the_child_lives),
        cmocka_unit_test(an_accept_does_not_live_on_in_the_childs_ring),
        cmocka_unit_test(the_port_is_free_after_the_loops_close_although_the_child_lives),
    };
    return cmocka_run_group_tests_name("fork", tests, NULL, NULL);
}
