/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/un.h>

/* How one comes to a stream, and gets rid of it again: dial, adopt, detach; addresses; options. */

/* ---- addresses --------------------------------------------------------------------------------------- */

static void local_of(const weir_stream *stream, char text[WEIR_ADDRESS_SIZE]) {
    int length = weir_stream_get_local(stream, text, WEIR_ADDRESS_SIZE);
    assert_true(length > 0);
    assert_int_equal(length, strlen(text));
}

static void peer_of(const weir_stream *stream, char text[WEIR_ADDRESS_SIZE]) {
    int length = weir_stream_get_peer(stream, text, WEIR_ADDRESS_SIZE);
    assert_true(length > 0);
    assert_int_equal(length, strlen(text));
}

static void unix_address(char *text, const char *prefix) {
    static unsigned number;
    snprintf(text, WEIR_ADDRESS_SIZE, "unix:%sweir-api-%d-%u", prefix, (int)getpid(), number++);
}

/* Dial where a listener is, by the text that it gives; both ends then agree on the two addresses. */
static void dial_listener_at(test_fixture *f, const char *address, const char *expected_prefix) {
    static witness w, again;
    static witness_gate gate;
    char listening[WEIR_ADDRESS_SIZE], text[WEIR_ADDRESS_SIZE], other[WEIR_ADDRESS_SIZE], small[8];
    const weir_listener_options options = { .size = sizeof options, .flags = WEIR_LISTENER_UNLINK };
    memset(&w, 0, sizeof w);
    memset(&again, 0, sizeof again);
    witness_listen(f, &gate, address, &options);
    int length = weir_listener_get_address(gate.listener, listening, sizeof listening);
    assert_int_equal(length, strlen(listening));
    assert_memory_equal(listening, expected_prefix, strlen(expected_prefix));
    test_ok(weir_stream_dial(f->loop, listening, NULL, &w.stream));
    test_ok(weir_stream_start(w.stream, &witness_callbacks, &w));
    run_until(f, w.opens == 1 && gate.count == 1);
    peer_of(w.stream, text);
    assert_string_equal(text, listening);
    local_of(gate.streams[0], text);
    assert_string_equal(text, listening);
    local_of(w.stream, text);
    peer_of(gate.streams[0], other);
    assert_string_equal(text, other); /* "unix:" for an unnamed one, on both sides */
    if (strncmp(listening, "unix:", 5) == 0)
        assert_string_equal(text, "unix:");
    assert_int_equal(weir_stream_get_peer(w.stream, small, 3), -ENOBUFS);
    assert_int_equal(weir_stream_get_peer(w.stream, text, (size_t)length), -ENOBUFS); /* no room for the zero */
    assert_int_equal(weir_stream_get_peer(w.stream, text, (size_t)length + 1), length);
    assert_int_equal(weir_listener_get_address(gate.listener, text, (size_t)length), -ENOBUFS);

    local_of(gate.streams[0], text); /* and it is text that dial understands */
    test_ok(weir_stream_dial(f->loop, text, NULL, &again.stream));
    test_ok(weir_stream_start(again.stream, &witness_callbacks, &again));
    run_until(f, again.opens == 1 && gate.count == 2);
    test_ok(weir_stream_abort(w.stream));
    test_ok(weir_stream_abort(again.stream));
    test_ok(weir_stream_abort(gate.streams[0]));
    test_ok(weir_stream_abort(gate.streams[1]));
    test_ok(weir_listener_close(gate.listener));
    test_ok(weir_loop_run(f->loop));
}

static void addresses_are_text_that_dial_understands(void **state) {
    test_fixture *f = *state;
    char path[WEIR_ADDRESS_SIZE], abstract[WEIR_ADDRESS_SIZE];
    unix_address(path, "/tmp/");
    unix_address(abstract, "@");
    dial_listener_at(f, "127.0.0.1:0", "127.0.0.1:");
    dial_listener_at(f, "[::1]:0", "[::1]:");
    dial_listener_at(f, path, path);
    dial_listener_at(f, abstract, abstract);
    assert_int_equal(access(path + 5, F_OK), -1); /* unlinked at close */
}

static void what_is_not_a_numeric_address_is_refused(void **state) {
    test_fixture *f = *state;
    static const char *const bad[] = {
        "",
        ":",
        "127.0.0.1",
        "127.0.0.1:",
        "127.0.0.1:x",
        "127.0.0.1:65536",
        "127.0.0.1:-1",
        "127.0.0.1:80 ",
        " 127.0.0.1:80",
        "127.0.0.1:000080",
        "127.1:80",
        "localhost:80",
        "::1:80",
        "[::1]",
        "[::1]80",
        "[::1:80",
        "[localhost]:80",
        "[127.0.0.1]:80",
        "unix:",
        "unix:@",
        "unix",
        "http://127.0.0.1:80",
        "256.0.0.1:80",
        "[:::1]:80",
        "unix:"
        "/12345678901234567890123456789012345678901234567890123456789012345678901234567890123456789012345678901234"
        "5"
        "67",
    };
    weir_stream *stream = NULL;
    weir_listener *listener = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        if (weir_stream_dial(f->loop, bad[i], NULL, &stream) != -EINVAL)
            fail_msg("dialled '%s'", bad[i]);
        if (weir_listener_open(f->loop, bad[i], NULL, &listener) != -EINVAL)
            fail_msg("listens on '%s'", bad[i]);
        assert_null(stream);
        assert_null(listener);
    }
}

static void a_zone_that_does_not_exist_is_refused(void **state) {
    test_fixture *f = *state;
    weir_stream *stream = NULL;
    assert_int_equal(weir_stream_dial(f->loop, "[fe80::1%nosuchif0]:80", NULL, &stream), -ENODEV);
    assert_int_equal(weir_stream_dial(f->loop, "[fe80::1%]:80", NULL, &stream), -ENODEV);
    assert_null(stream);
}

/* ---- adopt ------------------------------------------------------------------------------------------- */

static void adopt_makes_the_descriptor_weirs(void **state) {
    test_fixture *f = *state;
    int fds[2];
    weir_stream *stream;
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &stream));
    assert_int_equal(weir_stream_get_fd(stream), fds[0]);
    assert_true(fcntl(fds[0], F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(fds[0], F_GETFD) & FD_CLOEXEC);
    test_ok(weir_stream_abort(stream));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(fcntl(fds[0], F_GETFD), -1); /* closed with the stream */
    close(fds[1]);
}

static void refuse(test_fixture *f, int fd, int error) {
    weir_stream *stream = NULL;
    int flags = fcntl(fd, F_GETFL), fd_flags = fcntl(fd, F_GETFD);
    uint32_t open = test_loop_stats(f).streams_open;
    assert_int_equal(weir_stream_adopt(f->loop, fd, NULL, &stream), error);
    assert_null(stream);
    assert_int_equal(fcntl(fd, F_GETFL), flags);
    assert_int_equal(fcntl(fd, F_GETFD), fd_flags);
    assert_int_equal(test_loop_stats(f).streams_open, open);
    if (fd >= 0)
        assert_int_equal(close(fd), 0); /* it stayed ours */
}

static void adopt_refuses_what_is_not_a_connected_stream_socket(void **state) {
    test_fixture *f = *state;
    int fds[2];
    refuse(f, -1, -EBADF);
    refuse(f, open("/dev/null", O_RDWR), -ENOTSOCK);
    assert_int_equal(pipe(fds), 0);
    refuse(f, fds[0], -ENOTSOCK);
    close(fds[1]);
    refuse(f, socket(AF_INET, SOCK_DGRAM, 0), -EPROTOTYPE);
    assert_int_equal(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, fds), 0);
    refuse(f, fds[0], -EPROTOTYPE);
    close(fds[1]);
    refuse(f, socket(AF_INET, SOCK_STREAM, 0), -ENOTCONN);
    refuse(f, socket(AF_UNIX, SOCK_STREAM, 0), -ENOTCONN);
}

static void at_the_limit_of_streams_nothing_more_is_made(void **state) {
    (void)state;
    test_fixture f;
    weir_loop_options options = { .max_streams = 2 };
    static witness w[2];
    char address[WEIR_ADDRESS_SIZE];
    weir_stream *stream = NULL;
    int fds[2], peers[2];
    test_free_address(address, sizeof address);
    test_open_options(&f, NULL, &options);
    for (int i = 0; i < 2; i++)
        peers[i] = witness_pair(&f, &w[i], false, NULL);
    unsigned open = test_count_fds();
    assert_int_equal(weir_stream_dial(f.loop, address, NULL, &stream), -EUSERS);
    assert_int_equal(test_count_fds(), open);
    test_pair(false, fds);
    assert_int_equal(weir_stream_adopt(f.loop, fds[0], NULL, &stream), -EUSERS);
    assert_null(stream);
    test_ok(weir_stream_abort(w[0].stream));
    run_until(&f, w[0].closes == 1);
    test_ok(weir_stream_adopt(f.loop, fds[0], NULL, &stream)); /* room again */
    close(fds[1]);
    close(peers[0]);
    close(peers[1]);
    test_close(&f);
}

/* On failure nothing has changed: the socket is not non-blocking all of a sudden. */
static void a_descriptor_that_is_not_adopted_keeps_its_flags(void **state) {
    (void)state;
    test_fixture f;
    weir_loop_options options = { .max_streams = 1 };
    static witness w;
    int fds[2];
    test_open_options(&f, NULL, &options);
    int peer = witness_pair(&f, &w, false, NULL);
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM, 0, fds), 0);
    refuse(&f, fds[0], -EUSERS);
    close(fds[1]);
    close(peer);
    test_close(&f);
}

/* ---- detach ------------------------------------------------------------------------------------------ */

static void detach_gives_the_socket_back_with_every_byte(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    char got[10];
    int fd = -1;
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    int peer = test_connect(gate.listener);
    peer_send(peer, "hello", 5);
    run_until(f, gate.count == 1);
    run_turns(f, 3);
    uint32_t open = test_loop_stats(f).streams_open;
    test_ok(weir_stream_detach(gate.streams[0], &fd));
    assert_int_equal(test_loop_stats(f).streams_open, open - 1);
    assert_true(fd >= 0);
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    peer_send(peer, "there", 5);
    for (int have = 0; have < 10;) {
        int n = peer_poll(fd, got + have, (size_t)(10 - have));
        have += n > 0 ? n : 0;
    }
    assert_memory_equal(got, "hellothere", 10);
    close(fd);
    close(peer);
}

static void detach_refuses_what_is_on_its_way_started_or_has_a_queue(void **state) {
    test_fixture *f = *state;
    static witness w;
    static witness_gate gate;
    char address[WEIR_ADDRESS_SIZE];
    weir_stream *stream;
    int fd = -77, fds[2];
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    assert_true(weir_listener_get_address(gate.listener, address, sizeof address) > 0);
    test_ok(weir_stream_dial(f->loop, address, NULL, &stream));
    assert_int_equal(weir_stream_detach(stream, &fd), -EBUSY);
    run_until(f, gate.count == 1);
    run_turns(f, 3);
    test_ok(weir_stream_detach(stream, &fd)); /* it is connected now */
    assert_true(fd >= 0);
    close(fd);
    fd = -77;
    test_ok(weir_stream_abort(gate.streams[0]));

    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &stream));
    assert_int_equal(weir_stream_write(stream, "x", 1), WEIR_WRITE_OK);
    assert_int_equal(weir_stream_detach(stream, &fd), -EBUSY);
    test_ok(weir_stream_abort(stream));
    close(fds[1]);

    int peer = witness_pair(f, &w, false, NULL);
    assert_int_equal(weir_stream_detach(w.stream, &fd), -EALREADY);
    assert_int_equal(weir_stream_get_state(w.stream), WEIR_STREAM_OPEN);
    assert_int_equal(fd, -77);
    close(peer);
}

static void a_kept_handle_of_a_detached_stream_is_closed(void **state) {
    test_fixture *f = *state;
    weir_stream *stream;
    int fds[2], fd;
    test_pair(false, fds);
    test_ok(weir_stream_adopt(f->loop, fds[0], NULL, &stream));
    weir_stream_ref(stream);
    test_ok(weir_stream_detach(stream, &fd));
    assert_int_equal(fd, fds[0]);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_CLOSED);
    assert_int_equal(weir_stream_get_fd(stream), -EBADF);
    assert_int_equal(weir_stream_write(stream, "x", 1), -EPIPE);
    test_ok(weir_stream_close(stream));
    assert_null(weir_stream_unref(stream));
    close(fds[0]);
    close(fds[1]);
}

/* ---- two loops --------------------------------------------------------------------------------------- */

typedef struct other_loop {
    test_fixture fixture;
    pthread_t thread;
    witness w;
    atomic_bool has_arrived;
} other_loop;

static other_loop other;

static void arrive(weir_loop *loop, void *userdata) {
    memset(&other.w, 0, sizeof other.w);
    if (weir_stream_adopt(loop, (int)(intptr_t)userdata, NULL, &other.w.stream) != 0 ||
        weir_stream_start(other.w.stream, &witness_callbacks, &other.w) != 0)
        abort();
}

static void stop_at_end(witness *w, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'e')
        weir_loop_stop(weir_stream_get_loop(w->stream));
}

static void arrive_hooked(weir_loop *loop, void *userdata) {
    arrive(loop, userdata);
    other.w.hook = stop_at_end;
}

static void *run_other(void *userdata) {
    (void)userdata;
    return (void *)(intptr_t)(weir_loop_run(other.fixture.loop) | weir_loop_close(other.fixture.loop));
}

static void a_connection_moves_to_another_loop_unread(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    void *answer;
    int fd;
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    int peer = test_connect(gate.listener);
    peer_send(peer, "first words", 11);
    shutdown(peer, SHUT_WR);
    run_until(f, gate.count == 1);
    test_open_options(&other.fixture, NULL, &options);
    assert_int_equal(pthread_create(&other.thread, NULL, run_other, NULL), 0);
    test_ok(weir_stream_detach(gate.streams[0], &fd));
    test_ok(weir_loop_post(other.fixture.loop, arrive_hooked, (void *)(intptr_t)fd));
    assert_int_equal(pthread_join(other.thread, &answer), 0);
    assert_int_equal((int)(intptr_t)answer, 0);
    assert_int_equal(other.w.size, 11);
    assert_memory_equal(other.w.bytes, "first words", 11);
    weir_loop_unref(other.fixture.loop);
    close(peer);
}

/* ---- options ----------------------------------------------------------------------------------------- */

static int option_of(const weir_stream *stream, int level, int name) {
    int value = -1;
    socklen_t length = sizeof value;
    assert_int_equal(getsockopt(weir_stream_get_fd(stream), level, name, &value, &length), 0);
    return value;
}

static void socket_options_are_as_the_flags_say(void **state) {
    test_fixture *f = *state;
    for (uint32_t flags = 0; flags <= WEIR_STREAM_NAGLE + WEIR_STREAM_KEEPALIVE; flags += 2) {
        static witness_gate gate;
        const weir_stream_options each = { .size = sizeof each, .flags = flags };
        const weir_listener_options options = { .size = sizeof options, .stream = &each };
        char address[WEIR_ADDRESS_SIZE];
        weir_stream *streams[3];
        int fds[2];
        witness_listen(f, &gate, "127.0.0.1:0", &options);
        assert_true(weir_listener_get_address(gate.listener, address, sizeof address) > 0);
        test_ok(weir_stream_dial(f->loop, address, &each, &streams[0]));
        test_pair(true, fds);
        test_ok(weir_stream_adopt(f->loop, fds[0], &each, &streams[1]));
        run_until(f, gate.count == 1);
        streams[2] = gate.streams[0];
        for (int i = 0; i < 3; i++) {
            assert_int_equal(option_of(streams[i], IPPROTO_TCP, TCP_NODELAY) == 0,
                             (flags & WEIR_STREAM_NAGLE) != 0);
            assert_int_equal(option_of(streams[i], SOL_SOCKET, SO_KEEPALIVE) != 0,
                             (flags & WEIR_STREAM_KEEPALIVE) != 0);
            test_ok(weir_stream_abort(streams[i]));
        }
        test_ok(weir_listener_close(gate.listener));
        close(fds[1]);
        test_ok(weir_loop_run(f->loop));
    }
}

static void options_that_make_no_sense_are_refused(void **state) {
    test_fixture *f = *state;
    static const weir_stream_options bad[] = {
        { .size = sizeof *bad, .flags = 8 },
        { .size = sizeof *bad, .flags = 1U << 31 },
        { .size = sizeof *bad, .reserved = 1 },
        { .size = sizeof *bad, .connect_timeout_ns = -2 },
        { .size = sizeof *bad, .idle_timeout_ns = -2 },
        { .size = sizeof *bad, .write_timeout_ns = -2 },
        { .size = sizeof *bad, .linger_timeout_ns = -2 },
        { .size = sizeof *bad, .queue_limit_bytes = 1000, .queue_high_bytes = 1001 },
        { .size = sizeof *bad, .queue_high_bytes = 1000, .queue_low_bytes = 1001 },
    };
    weir_stream *stream = NULL;
    weir_listener *listener = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const weir_listener_options options = { .size = sizeof options, .stream = &bad[i] };
        int fds[2];
        test_pair(false, fds);
        assert_int_equal(weir_stream_adopt(f->loop, fds[0], &bad[i], &stream), -EINVAL);
        assert_int_equal(weir_stream_dial(f->loop, "127.0.0.1:1", &bad[i], &stream), -EINVAL);
        assert_int_equal(weir_listener_open(f->loop, "127.0.0.1:0", &options, &listener), -EINVAL);
        assert_null(stream);
        assert_null(listener);
        close(fds[0]);
        close(fds[1]);
    }
    const weir_stream_options never = { .size = sizeof never,
                                        .connect_timeout_ns = WEIR_NEVER,
                                        .linger_timeout_ns = WEIR_NEVER };
    test_ok(weir_stream_dial(f->loop, "127.0.0.1:1", &never, &stream));
    test_ok(weir_stream_abort(stream));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(addresses_are_text_that_dial_understands),
        loop_test(what_is_not_a_numeric_address_is_refused),
        loop_test(a_zone_that_does_not_exist_is_refused),
        loop_test(adopt_makes_the_descriptor_weirs),
        loop_test(adopt_refuses_what_is_not_a_connected_stream_socket),
        cmocka_unit_test(at_the_limit_of_streams_nothing_more_is_made),
        cmocka_unit_test(a_descriptor_that_is_not_adopted_keeps_its_flags),
        loop_test(detach_gives_the_socket_back_with_every_byte),
        loop_test(detach_refuses_what_is_on_its_way_started_or_has_a_queue),
        loop_test(a_kept_handle_of_a_detached_stream_is_closed),
        loop_test(a_connection_moves_to_another_loop_unread),
        loop_test(socket_options_are_as_the_flags_say),
        loop_test(options_that_make_no_sense_are_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
