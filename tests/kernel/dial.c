/* SPDX-License-Identifier: MIT */

/* Connecting: nobody there, no way there, no answer, and what may happen on the way; and that what was written before
 * is the first that arrives. */

#include <netinet/in.h>
#include <sched.h>
#include <fcntl.h>
#include <sys/un.h>

#include "kernel/scribe.h"

enum { OURS = 1, THEIRS = 2 };

/* A listening socket, and its address as text. */
static int listen_at(int family, int backlog, char address[WEIR_ADDRESS_SIZE]) {
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback };
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    socklen_t length = sizeof in;
    int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), r;
    assert_true(fd >= 0);
    if (family == AF_INET) {
        r = bind(fd, (struct sockaddr *)&in, sizeof in);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &length), 0);
        snprintf(address, WEIR_ADDRESS_SIZE, "127.0.0.1:%u", ntohs(in.sin_port));
    } else if (family == AF_INET6) {
        length = sizeof in6;
        r = bind(fd, (struct sockaddr *)&in6, sizeof in6);
        assert_int_equal(getsockname(fd, (struct sockaddr *)&in6, &length), 0);
        snprintf(address, WEIR_ADDRESS_SIZE, "[::1]:%u", ntohs(in6.sin6_port));
    } else {
        int size = snprintf(un.sun_path + 1, sizeof un.sun_path - 1, "weir-test-dial-%d", (int)getpid());
        r = bind(fd, (struct sockaddr *)&un,
                 (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)size));
        snprintf(address, WEIR_ADDRESS_SIZE, "unix:@%s", un.sun_path + 1);
    }
    assert_int_equal(r, 0);
    assert_int_equal(listen(fd, backlog), 0);
    return fd;
}

typedef struct call {
    test_fixture f;
    scribe s;
    weir_stream *stream;
} call;

static void call_open(call *c, const char *address, const weir_stream_options *options) {
    memset(c, 0, sizeof *c);
    test_open(&c->f, NULL, NULL);
    scribe_init(&c->s, THEIRS);
    test_ok(weir_stream_dial(c->f.loop, address, options, &c->stream));
}

/* Accept what was dialled. */
static int answer(const call *c, int listener) {
    int fd = -1;
    RUN_UNTIL(&c->f, (fd = accept(listener, NULL, NULL)) >= 0);
    return fd;
}

/* It never connects: this is said, and how. */
static void expect_failure(const char *address, const weir_stream_options *options, int error) {
    call c;
    call_open(&c, address, options);
    test_ok(weir_stream_write(c.stream, "lost", 4));
    scribe_start(&c.s, c.stream);
    assert_string_equal(c.s.events, "");
    RUN_UNTIL(&c.f, scribe_is_closed(&c.s));
    scribe_expect(&c.s, "c", WEIR_CLOSE_CONNECT, error);
    test_close(&c.f);
}

/* ---- it does not come about -------------------------------------------------------------------------------- */

static void a_refused_connection_says_so(void **state) {
    (void)state;
    char address[WEIR_ADDRESS_SIZE];
    test_free_address(address, sizeof address);
    expect_failure(address, NULL, -ECONNREFUSED);
    snprintf(address, sizeof address, "unix:@weir-test-nobody-%d", (int)getpid());
    expect_failure(address, NULL, -ECONNREFUSED);
}

static void a_path_that_does_not_exist_says_so(void **state) {
    (void)state;
    expect_failure("unix:/tmp/weir-test/no/such/socket", NULL, -ENOENT);
}

/* In a network of its own this thread has no way anywhere, not even to itself. */
static void an_unreachable_network_says_so(void **state) {
    (void)state;
    int home = open("/proc/thread-self/ns/net", O_RDONLY | O_CLOEXEC);
    assert_true(home >= 0);
    if (unshare(CLONE_NEWNET) < 0) {
        close(home);
        print_message("no network namespace to be had: %s\n", strerror(errno));
        skip();
    }
    expect_failure("127.0.0.1:9", NULL, -ENETUNREACH);
    expect_failure("192.0.2.1:9", NULL, -ENETUNREACH);
    /* Where this loopback is down, IPv6 has no address to start from. */
    call c;
    call_open(&c, "[2001:db8::1]:9", NULL);
    scribe_start(&c.s, c.stream);
    RUN_UNTIL(&c.f, scribe_is_closed(&c.s));
    assert_int_equal(c.s.reason, WEIR_CLOSE_CONNECT);
    assert_true(c.s.error == -ENETUNREACH || c.s.error == -EADDRNOTAVAIL || c.s.error == -EAFNOSUPPORT);
    test_close(&c.f);
    assert_int_equal(setns(home, CLONE_NEWNET), 0);
    close(home);
}

static void a_broadcast_address_says_so(void **state) {
    (void)state;
    expect_failure("255.255.255.255:9", NULL, -ENETUNREACH);
}

/* A listener whose backlog is full drops what else comes, as a host that is gone would. */
static void nobody_answers_until_the_timeout(void **state) {
    (void)state;
    const weir_stream_options options = { .size = sizeof options, .connect_timeout_ns = 50 * MS };
    char address[WEIR_ADDRESS_SIZE];
    int listener = listen_at(AF_INET, 0, address);
    int filler = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct sockaddr_in in;
    socklen_t length = sizeof in;
    assert_int_equal(getsockname(listener, (struct sockaddr *)&in, &length), 0);
    assert_int_equal(connect(filler, (struct sockaddr *)&in, sizeof in), 0);
    expect_failure(address, &options, -ETIMEDOUT);
    close(filler);
    close(listener);
}

/* The timeout runs from the dial on, and an unstarted stream says nothing before its start. */
static void an_unstarted_stream_tells_of_its_failure_when_it_is_started(void **state) {
    (void)state;
    char address[WEIR_ADDRESS_SIZE];
    call c;
    test_free_address(address, sizeof address);
    call_open(&c, address, NULL);
    test_run_for_ms(&c.f, 50);
    assert_int_equal(weir_stream_get_state(c.stream), WEIR_STREAM_UNSTARTED);
    assert_int_equal(test_loop_stats(&c.f).streams_unstarted, 1);
    scribe_start(&c.s, c.stream);
    RUN_UNTIL(&c.f, scribe_is_closed(&c.s));
    scribe_expect(&c.s, "c", WEIR_CLOSE_CONNECT, -ECONNREFUSED);
    test_close(&c.f);
}

static void an_unstarted_stream_that_failed_can_be_closed(void **state) {
    (void)state;
    char address[WEIR_ADDRESS_SIZE];
    call c;
    test_free_address(address, sizeof address);
    call_open(&c, address, NULL);
    test_run_for_ms(&c.f, 50);
    test_ok(weir_stream_close(c.stream));
    RUN_UNTIL(&c.f, test_loop_stats(&c.f).streams_open == 0);
    test_close(&c.f);
}

/* A Unix socket's backlog that is full: no worker thread may wait there for us. */
static void a_full_unix_backlog_costs_no_thread(void **state) {
    (void)state;
    const weir_stream_options options = { .size = sizeof options, .connect_timeout_ns = 200 * MS };
    enum { CALLS = 10 };
    char address[WEIR_ADDRESS_SIZE];
    int listener = listen_at(AF_UNIX, 1, address);
    test_fixture f;
    scribe s[CALLS] = { 0 };
    weir_stream *stream;
    unsigned closed = 0, opened = 0;
    test_open(&f, NULL, NULL);
    for (int i = 0; i < CALLS; i++) {
        scribe_init(&s[i], THEIRS);
        test_ok(weir_stream_dial(f.loop, address, &options, &stream));
        scribe_start(&s[i], stream);
    }
    int64_t deadline = test_now_ns() + PATIENCE_S * INT64_C(1000000000);
    while (opened + closed < CALLS) {
        scribe_turn(&f, 10 * MS);
        assert_int_equal(test_count_threads(), f.threads);
        assert_true(test_now_ns() < deadline);
        opened = closed = 0;
        for (int i = 0; i < CALLS; i++) {
            opened += strcmp(s[i].events, "o") == 0;
            closed += strcmp(s[i].events, "c") == 0;
        }
    }
    assert_true(opened > 0 && closed > 0);
    for (int i = 0; i < CALLS; i++) {
        if (s[i].events[0] != 'c')
            continue;
        assert_int_equal(s[i].reason, WEIR_CLOSE_CONNECT);
        assert_int_equal(s[i].error, -ETIMEDOUT);
    }
    test_close(&f);
    close(listener);
}

/* Nobody tells that there is room again, so it is tried again: not an error, as long as there is time. */
static void a_full_unix_backlog_is_waited_for_until_there_is_room(void **state) {
    (void)state;
    enum { FILLERS = 2 }; /* one more than the backlog is what it takes */
    char address[WEIR_ADDRESS_SIZE];
    int listener = listen_at(AF_UNIX, FILLERS - 1, address), accepted[FILLERS + 1];
    test_fixture f;
    scribe s[FILLERS + 1] = { 0 };
    weir_stream *stream;
    test_open(&f, NULL, NULL);
    for (int i = 0; i <= FILLERS; i++) {
        scribe_init(&s[i], THEIRS);
        test_ok(weir_stream_dial(f.loop, address, NULL, &stream));
        scribe_start(&s[i], stream);
        if (i < FILLERS)
            RUN_UNTIL(&f, s[i].events[0] == 'o');
    }
    test_run_for_ms(&f, 50);
    assert_string_equal(s[FILLERS].events, "");
    assert_int_equal(weir_stream_get_state(s[FILLERS].stream), WEIR_STREAM_CONNECTING);
    for (int i = 0; i <= FILLERS; i++) { /* the last one has come in when there is one in its place */
        if (i == FILLERS)
            RUN_UNTIL(&f, s[FILLERS].events[0] != '\0');
        accepted[i] = accept(listener, NULL, NULL);
        assert_true(accepted[i] >= 0);
    }
    assert_int_equal(peer_send(accepted[FILLERS], THEIRS, 0, 1000), 0);
    RUN_UNTIL(&f, s[FILLERS].received == 1000);
    assert_string_equal(s[FILLERS].events, "od");
    assert_int_equal(s[FILLERS].wrong, -1);
    for (int i = 0; i <= FILLERS; i++)
        close(accepted[i]);
    test_close(&f);
    close(listener);
}

/* ---- it comes about --------------------------------------------------------------------------------------------- */

static int inet = AF_INET, inet6 = AF_INET6, local = AF_UNIX;
#define ON(family, function) \
    { #function "_on_" #family, function, NULL, NULL, &family }
#define EVERY(function) ON(inet, function), ON(inet6, function), ON(local, function)

static void what_was_written_before_connecting_arrives_first(void **state) {
    char address[WEIR_ADDRESS_SIZE];
    call c;
    peer p;
    int listener = listen_at(*(int *)*state, 4, address);
    uint8_t *bytes = pattern_new(OURS, 300000);
    call_open(&c, address, NULL);
    test_ok(weir_stream_write(c.stream, bytes, 1000));
    scribe_start(&c.s, c.stream);
    test_ok(weir_stream_write(c.stream, bytes + 1000, 199000));
    peer_init(&p, answer(&c, listener), OURS);
    RUN_UNTIL(&c.f, strchr(c.s.events, 'o') != NULL);
    test_ok(weir_stream_write(c.stream, bytes + 200000, 100000));
    RUN_UNTIL(&c.f, (peer_read(&p), p.received == 300000));
    peer_expect_open(&p, 300000);
    assert_int_equal(peer_send(p.fd, THEIRS, 0, 5000), 0);
    RUN_UNTIL(&c.f, c.s.received == 5000);
    assert_string_equal(c.s.events, "od");
    test_ok(weir_stream_abort(c.stream));
    RUN_UNTIL(&c.f, scribe_is_closed(&c.s));
    close(p.fd);
    test_close(&c.f);
    close(listener);
    free(bytes);
}

static void a_stream_closed_before_it_connects_still_sends_its_queue(void **state) {
    char address[WEIR_ADDRESS_SIZE];
    call c;
    peer p;
    int listener = listen_at(*(int *)*state, 4, address);
    uint8_t *bytes = pattern_new(OURS, 100000);
    call_open(&c, address, NULL);
    scribe_start(&c.s, c.stream);
    test_ok(weir_stream_write(c.stream, bytes, 100000));
    test_ok(weir_stream_close(c.stream));
    peer_init(&p, answer(&c, listener), OURS);
    RUN_UNTIL(&c.f, peer_is_over(&p));
    peer_expect_end(&p, 100000);
    close(p.fd);
    RUN_UNTIL(&c.f, scribe_is_closed(&c.s));
    scribe_expect(&c.s, "c", WEIR_CLOSE_LOCAL, 0);
    test_close(&c.f);
    close(listener);
    free(bytes);
}

static void shutdown_before_connecting_ends_our_half_after_the_queue(void **state) {
    char address[WEIR_ADDRESS_SIZE];
    call c;
    peer p;
    int listener = listen_at(*(int *)*state, 4, address);
    uint8_t *bytes = pattern_new(OURS, 1000);
    call_open(&c, address, NULL);
    test_ok(weir_stream_write(c.stream, bytes, 1000));
    scribe_start(&c.s, c.stream);
    test_ok(weir_stream_shutdown(c.stream));
    peer_init(&p, answer(&c, listener), OURS);
    RUN_UNTIL(&c.f, peer_is_over(&p));
    peer_expect_end(&p, 1000);
    assert_string_equal(c.s.events, "o");
    assert_int_equal(peer_send(p.fd, THEIRS, 0, 10), 0);
    close(p.fd);
    RUN_UNTIL(&c.f, strchr(c.s.events, 'e') != NULL);
    test_ok(weir_stream_close(c.stream));
    RUN_UNTIL(&c.f, scribe_is_closed(&c.s));
    scribe_expect(&c.s, "odec", WEIR_CLOSE_PEER, 0);
    test_close(&c.f);
    close(listener);
    free(bytes);
}

static void an_idle_stream_closed_while_it_connects_is_gone_at_once(void **state) {
    char address[WEIR_ADDRESS_SIZE];
    call c;
    int listener = listen_at(*(int *)*state, 4, address);
    for (int turns = 0; turns < 2; turns++) {
        call_open(&c, address, NULL);
        scribe_start(&c.s, c.stream);
        if (turns > 0)
            scribe_turn(&c.f, 0); /* under way, and perhaps there already */
        bool is_open = c.s.events[0] == 'o';
        test_ok(is_open ? weir_stream_abort(c.stream) : weir_stream_close(c.stream));
        RUN_UNTIL(&c.f, scribe_is_closed(&c.s));
        scribe_expect(&c.s, is_open ? "oc" : "c", is_open ? WEIR_CLOSE_ABORT : WEIR_CLOSE_LOCAL, 0);
        test_close(&c.f);
    }
    close(listener);
}

static void an_abort_before_and_while_connecting_is_the_end(void **state) {
    char address[WEIR_ADDRESS_SIZE];
    call c;
    int listener = listen_at(*(int *)*state, 4, address);
    for (int turns = 0; turns < 2; turns++) {
        call_open(&c, address, NULL);
        test_ok(weir_stream_write(c.stream, "lost", 4));
        scribe_start(&c.s, c.stream);
        if (turns > 0)
            scribe_turn(&c.f, 0);
        test_ok(weir_stream_abort(c.stream));
        RUN_UNTIL(&c.f, scribe_is_closed(&c.s));
        assert_int_equal(c.s.reason, WEIR_CLOSE_ABORT);
        assert_int_equal(c.s.events[strlen(c.s.events) - 1], 'c');
        test_close(&c.f);
    }
    close(listener);
}

static void a_connected_stream_can_be_detached_before_its_start(void **state) {
    char address[WEIR_ADDRESS_SIZE], byte;
    call c;
    int fd = -1, listener = listen_at(*(int *)*state, 4, address);
    call_open(&c, address, NULL);
    assert_int_equal(weir_stream_detach(c.stream, &fd), -EBUSY);
    int accepted = answer(&c, listener);
    for (unsigned i = 0; i < PATIENCE_S * 100 && weir_stream_detach(c.stream, &fd) == -EBUSY; i++)
        scribe_turn(&c.f, 10 * MS);
    assert_true(fd >= 0);
    assert_int_equal(send(accepted, "x", 1, 0), 1);
    assert_true(recv(fd, &byte, 1, 0) == 1 || errno == EAGAIN);
    close(fd);
    close(accepted);
    assert_int_equal(test_loop_stats(&c.f).streams_open, 0);
    test_close(&c.f);
    close(listener);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_refused_connection_says_so),
        cmocka_unit_test(a_path_that_does_not_exist_says_so),
        cmocka_unit_test(an_unreachable_network_says_so),
        cmocka_unit_test(a_broadcast_address_says_so),
        cmocka_unit_test(nobody_answers_until_the_timeout),
        cmocka_unit_test(an_unstarted_stream_tells_of_its_failure_when_it_is_started),
        cmocka_unit_test(an_unstarted_stream_that_failed_can_be_closed),
        cmocka_unit_test(a_full_unix_backlog_costs_no_thread),
        cmocka_unit_test(a_full_unix_backlog_is_waited_for_until_there_is_room),
        EVERY(what_was_written_before_connecting_arrives_first),
        EVERY(a_stream_closed_before_it_connects_still_sends_its_queue),
        EVERY(shutdown_before_connecting_ends_our_half_after_the_queue),
        EVERY(an_idle_stream_closed_while_it_connects_is_gone_at_once),
        EVERY(an_abort_before_and_while_connecting_is_the_end),
        EVERY(a_connected_stream_can_be_detached_before_its_start),
    };
    return cmocka_run_group_tests_name("dial", tests, NULL, NULL);
}
