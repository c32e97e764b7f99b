/* SPDX-License-Identifier: MIT */
/* Streams over a kernel that does what the test says: what they ask of it, how often, and when they stop to wait. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include "loop/loop.h"
#include "scripted/scripted.h"
#include "support/support.h"
#include "weir/stream.h"

static test_fixture f;
static const weir__tuning tuning = { .no_self_test = true };

static const int64_t ms = 1000000;

/* What the stream was told: o open, d data, e end, c close. */
static struct {
    char events[16];
    int reason, error;
} told;

static void tell(char event) {
    size_t length = strlen(told.events);
    assert_true(length + 1 < sizeof told.events);
    told.events[length] = event;
}

static void on_open(weir_stream *stream, void *userdata) {
    (void)stream, (void)userdata;
    tell('o');
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)stream, (void)slice, (void)userdata;
    tell('d');
}

static void on_end(weir_stream *stream, void *userdata) {
    (void)stream, (void)userdata;
    tell('e');
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)userdata;
    told.reason = reason;
    told.error = error;
    tell('c');
}

static const weir_stream_callbacks callbacks = {
    .size = sizeof callbacks, .on_open = on_open, .on_data = on_data, .on_end = on_end, .on_close = on_close
};

static int setup(void **state) {
    (void)state;
    script_begin();
    script_answer_cancels(true);
    memset(&told, 0, sizeof told);
    test_open(&f, &tuning, NULL);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    test_close(&f);
    script_end();
    return 0;
}

/* Turns without sleeping: as many as anything needs that only has to be carried out. */
static void turns(void) {
    for (int i = 0; i < 4; i++)
        assert_true(weir_loop_run_once(f.loop, 0) >= 0);
}

/* A turn that sleeps until something is due. */
static void sleep_once(void) {
    assert_true(weir_loop_run_once(f.loop, 1000 * ms) >= 0);
}

static weir_stream *dial(const char *address, int64_t connect_timeout_ns) {
    const weir_stream_options options = { .size = sizeof options, .connect_timeout_ns = connect_timeout_ns };
    weir_stream *stream;
    test_ok(weir_stream_dial(f.loop, address, &options, &stream));
    test_ok(weir_stream_start(stream, &callbacks, NULL));
    return stream;
}

/* A connected stream, started; *ret_fd is its descriptor. */
static weir_stream *adopt(int64_t linger_timeout_ns, int *ret_fd) {
    const weir_stream_options options = { .size = sizeof options, .linger_timeout_ns = linger_timeout_ns };
    weir_stream *stream;
    *ret_fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    test_ok(weir_stream_adopt(f.loop, *ret_fd, &options, &stream));
    test_ok(weir_stream_start(stream, &callbacks, NULL));
    turns();
    return stream;
}

static void told_close(const char *events, int reason, int error) {
    assert_string_equal(told.events, events);
    assert_int_equal(told.reason, reason);
    assert_int_equal(told.error, error);
}

/* ---- connecting to a Unix socket ---------------------------------------------------------------------- */

/*
 * connect(2) on a Unix socket whose backlog is full says -EAGAIN and remembers nothing: nobody tells when there is room.
 * So it is asked again every 10 ms: neither given up at once nor asked without a pause.
 */
static void a_full_unix_backlog_is_asked_again_until_there_is_room(void **state) {
    (void)state;
    script_fail(SCRIPT_CONNECT, -EAGAIN, 2);
    int64_t begin = weir__sys_now();
    weir_stream *stream = dial("unix:@full", 1000 * ms);
    for (int i = 0; i < 10 && told.events[0] == '\0'; i++)
        sleep_once();
    assert_string_equal(told.events, "o");
    assert_int_equal(script_connects(), 3);
    assert_int_equal(weir__sys_now() - begin, 20 * ms);
    test_ok(weir_stream_abort(stream));
}

static void a_unix_backlog_that_stays_full_is_given_up_at_the_timeout(void **state) {
    (void)state;
    script_fail(SCRIPT_CONNECT, -EAGAIN, UINT32_MAX);
    int64_t begin = weir__sys_now();
    dial("unix:@full", 25 * ms);
    for (int i = 0; i < 10 && told.events[0] == '\0'; i++)
        sleep_once();
    told_close("c", WEIR_CLOSE_CONNECT, -ETIMEDOUT);
    assert_int_equal(script_connects(), 3); /* at 0, 10 and 20 ms */
    assert_int_equal(weir__sys_now() - begin, 25 * ms);
}

static void any_other_error_of_a_unix_connect_is_the_end_of_it(void **state) {
    (void)state;
    script_fail(SCRIPT_CONNECT, -ECONNREFUSED, 1);
    dial("unix:@nobody", 1000 * ms);
    turns();
    told_close("c", WEIR_CLOSE_CONNECT, -ECONNREFUSED);
    assert_int_equal(script_connects(), 1);
}

/* ---- closing while it connects ------------------------------------------------------------------------- */

/* Nothing is queued, so there is nobody to wait for: not for the connection, nor for its timeout. */
static void an_idle_stream_closed_while_it_connects_is_gone_at_once(void **state) {
    (void)state;
    static const char *const addresses[] = { "127.0.0.1:9", "unix:@full" };
    for (int i = 0; i < 2; i++) {
        memset(&told, 0, sizeof told);
        script_fail(SCRIPT_CONNECT, -EAGAIN, 1);
        int64_t begin = weir__sys_now();
        weir_stream *stream = dial(addresses[i], WEIR_NEVER);
        turns();
        assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_CONNECTING);
        test_ok(weir_stream_close(stream));
        turns();
        told_close("c", WEIR_CLOSE_LOCAL, 0);
        assert_int_equal(weir__sys_now(), begin);
        script_fail(SCRIPT_CONNECT, 0, 0);
    }
}

/* ---- ending our half ------------------------------------------------------------------------------------- */

static void our_half_is_ended_once(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(0, &fd);
    test_ok(weir_stream_shutdown(stream));
    turns();
    assert_int_equal(script_shutdowns(), 1);
    /* Whatever settles it again: the application, its peer's end, its close. */
    test_ok(weir_stream_shutdown(stream));
    test_ok(weir_stream_pause(stream));
    turns();
    test_ok(weir_stream_resume(stream));
    turns();
    test_ok(weir_stream_close(stream));
    turns();
    assert_int_equal(script_shutdowns(), 1);
    assert_string_equal(told.events, "");
    test_ok(weir_stream_abort(stream));
}

/* ---- the linger timeout ----------------------------------------------------------------------------------- */

/* The kernel takes some of what is queued. */
static void take(int fd, int32_t bytes) {
    script_entry *entry = script_find(IORING_OP_SEND, fd);
    assert_non_null(entry);
    script_complete(entry, bytes, 0);
    turns();
}

/* The timeout is for a peer that takes nothing, not for one that is slow: each byte taken sets it anew. */
static void a_peer_that_takes_some_has_the_linger_timeout_again(void **state) {
    (void)state;
    static const uint8_t bytes[300];
    int fd;
    weir_stream *stream = adopt(100 * ms, &fd);
    script_entry *receive = script_find(IORING_OP_RECV, fd);
    assert_non_null(receive);
    test_ok(weir_stream_write(stream, bytes, sizeof bytes));
    test_ok(weir_stream_close(stream));
    turns();
    for (int i = 0; i < 3; i++) {
        assert_int_equal(script_shutdowns(), 0);
        script_advance_ns(70 * ms);
        take(fd, 100);
        assert_string_equal(told.events, "");
    }
    assert_int_equal(script_shutdowns(), 1);
    script_advance_ns(70 * ms);
    turns();
    script_complete(receive, 0, 0);
    turns();
    told_close("c", WEIR_CLOSE_LOCAL, 0);
}

static void a_peer_that_takes_nothing_more_has_it_once(void **state) {
    (void)state;
    static const uint8_t bytes[300];
    int fd;
    weir_stream *stream = adopt(100 * ms, &fd);
    test_ok(weir_stream_write(stream, bytes, sizeof bytes));
    test_ok(weir_stream_close(stream));
    turns();
    script_advance_ns(70 * ms);
    take(fd, 100);
    script_advance_ns(99 * ms);
    turns();
    assert_string_equal(told.events, "");
    script_advance_ns(1 * ms);
    turns();
    told_close("c", WEIR_CLOSE_LINGER, -ETIMEDOUT);
}

/* A connection that comes, asks once and goes is closed by nothing that it need not be: its peer has all, and sends no more. */
static void a_peer_that_has_all_and_has_ended_is_not_waited_for(void **state) {
    (void)state;
    int fd;
    weir_stream *stream = adopt(100 * ms, &fd);
    script_complete(script_find(IORING_OP_RECV, fd), 0, 0);
    turns();
    assert_string_equal(told.events, "e");
    test_ok(weir_stream_close(stream));
    turns();
    told_close("ec", WEIR_CLOSE_PEER, 0);
    assert_int_equal(script_shutdowns(), 1);
    assert_int_equal(script_unsent_asked(), 0);
}

/* One that has ended its half may still have to take what is queued. */
static void a_peer_that_has_ended_but_has_not_all_is_waited_for(void **state) {
    (void)state;
    static const uint8_t bytes[300];
    int fd;
    weir_stream *stream = adopt(100 * ms, &fd);
    script_complete(script_find(IORING_OP_RECV, fd), 0, 0);
    turns();
    assert_string_equal(told.events, "e");
    test_ok(weir_stream_write(stream, bytes, sizeof bytes));
    test_ok(weir_stream_close(stream));
    turns();
    assert_string_equal(told.events, "e");
    script_advance_ns(100 * ms);
    turns();
    told_close("ec", WEIR_CLOSE_LINGER, -ETIMEDOUT);
}

/* ---- the receive of a pipe ------------------------------------------------------------------------------------ */

/* The receive that the kernel has of this descriptor, or NULL. */
static script_entry *find_receive(int fd) {
    script_entry *entry;
    for (unsigned i = 0; (entry = script_live(i)) != NULL; i++)
        if (entry->sqe.opcode == IORING_OP_RECV && entry->sqe.fd == fd)
            return entry;
    return NULL;
}

static uint64_t staged(const weir_stream *stream) {
    weir_stream_stats stats = { .size = sizeof stats };
    test_ok(weir_stream_get_stats(stream, &stats));
    return stats.staged_bytes;
}

/*
 * A pipe's other end closes, which takes as long as its peer does. Nobody took the receive back meanwhile, and all that came
 * on it was staged, for nobody: as much as the budget has, where receives cannot be limited, and then all others waited.
 */
static void a_pipes_receive_is_taken_back_when_its_other_end_closes(void **state) {
    (void)state;
    int from_fd, to_fd;
    weir_stream *from = adopt(WEIR_NEVER, &from_fd), *to = adopt(WEIR_NEVER, &to_fd);
    test_ok(weir_stream_pipe(from, to));
    turns();
    assert_non_null(find_receive(from_fd));
    test_ok(weir_stream_close(to));
    turns();
    assert_null(find_receive(from_fd));
    assert_int_equal(weir_stream_get_state(to), WEIR_STREAM_CLOSING); /* its peer has not ended yet */
    assert_int_equal(weir_stream_get_state(from), WEIR_STREAM_OPEN);
    test_ok(weir_stream_unpipe(from)); /* somebody reads again */
    turns();
    assert_non_null(find_receive(from_fd));
}

/* Likewise, when it can send nothing more but has still to hear what its peer has to say. */
static void a_pipes_receive_is_taken_back_when_its_other_end_breaks(void **state) {
    (void)state;
    int from_fd, to_fd;
    weir_stream *from = adopt(WEIR_NEVER, &from_fd), *to = adopt(WEIR_NEVER, &to_fd);
    test_ok(weir_stream_pipe(from, to));
    turns();
    script_receive(find_receive(from_fd), "hello", 5, true);
    turns();
    script_complete(script_find(IORING_OP_SEND, to_fd), -EPIPE, 0);
    turns();
    assert_null(find_receive(from_fd));
    assert_int_equal(staged(from), 0);
    script_entry *answer = find_receive(to_fd);
    assert_non_null(answer); /* there may be one */
    script_complete(answer, 0, 0);
    turns();
    assert_string_equal(told.events, "cc");
}

/* ---- a child that a callback made ------------------------------------------------------------------------------- */

static pid_t child;

static void pause_and_fork(weir_stream *stream, const weir_slice *slice, void *userdata) {
    on_data(stream, slice, userdata);
    if (told.events[1] == '\0') {
        test_ok(weir_stream_pause(stream));
        return;
    }
    child = fork();
    if (child == 0)
        signal(SIGSEGV, SIG_DFL); /* cmocka would go on with the next test */
}

/* It is told what was staged, forks there, and is back in both: then the child was told of the end, which is the parent's. */
static void the_child_of_an_on_data_is_not_told_of_the_end(void **state) {
    (void)state;
    static const weir_stream_callbacks forks = {
        .size = sizeof forks, .on_data = pause_and_fork, .on_end = on_end, .on_close = on_close
    };
    int status = -1, fd = weir__sys_socket(AF_INET, SOCK_STREAM);
    weir_stream *stream;
    test_ok(weir_stream_adopt(f.loop, fd, NULL, &stream));
    test_ok(weir_stream_start(stream, &forks, NULL));
    turns();
    script_entry *receive = find_receive(fd);
    script_receive(receive, "one", 3, true);
    script_receive(receive, "two", 3, true);
    script_complete(receive, 0, 0);
    turns();
    assert_string_equal(told.events, "d");
    assert_int_equal(staged(stream), 3);
    test_ok(weir_stream_resume(stream));
    child = -1;
    int result = weir_loop_run_once(f.loop, 0);
    if (child == 0)
        _exit(strcmp(told.events, "dd") != 0 || result != -ECHILD);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    assert_string_equal(told.events, "dde");
}

/* ---- a condemned group ------------------------------------------------------------------------------------- */

static weir_loop_info info_now(void) {
    weir_loop_info info = { .size = sizeof info };
    test_ok(weir_loop_get_info(f.loop, &info));
    return info;
}

/* Who looks at a log wants to know why a loop that ran one way in the morning runs another way now. */
static void what_condemned_the_rings_is_in_the_loops_info(void **state) {
    (void)state;
    enum { NEVER_GIVEN = 77 };
    int fd;
    adopt(0, &fd);
    script_entry *receive = script_find(IORING_OP_RECV, fd);
    assert_non_null(receive);
    assert_int_equal(info_now().backend, WEIR_BACKEND_URING_INCREMENTAL);
    assert_string_equal(info_now().reason, "");
    script_complete(receive, 10, IORING_CQE_F_BUFFER | (uint32_t)NEVER_GIVEN << IORING_CQE_BUFFER_SHIFT);
    turns();
    told_close("c", WEIR_CLOSE_ERROR, -EILSEQ);
    assert_int_equal(info_now().backend, WEIR_BACKEND_URING_CLASSIC);
    assert_int_equal(info_now().asked, WEIR_BACKEND_AUTO);
    assert_non_null(strstr(info_now().reason, "completions and buffers disagreed"));
}

#define stream_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        stream_test(a_full_unix_backlog_is_asked_again_until_there_is_room),
        stream_test(a_unix_backlog_that_stays_full_is_given_up_at_the_timeout),
        stream_test(any_other_error_of_a_unix_connect_is_the_end_of_it),
        stream_test(an_idle_stream_closed_while_it_connects_is_gone_at_once),
        stream_test(our_half_is_ended_once),
        stream_test(a_peer_that_takes_some_has_the_linger_timeout_again),
        stream_test(a_peer_that_takes_nothing_more_has_it_once),
        stream_test(a_peer_that_has_all_and_has_ended_is_not_waited_for),
        stream_test(a_peer_that_has_ended_but_has_not_all_is_waited_for),
        stream_test(a_pipes_receive_is_taken_back_when_its_other_end_closes),
        stream_test(a_pipes_receive_is_taken_back_when_its_other_end_breaks),
        stream_test(the_child_of_an_on_data_is_not_told_of_the_end),
        stream_test(what_condemned_the_rings_is_in_the_loops_info),
    };
    return cmocka_run_group_tests_name("stream", tests, NULL, NULL);
}
