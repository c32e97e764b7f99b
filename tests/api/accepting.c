/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <netinet/in.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

/* Listeners: opening, starting, pausing, their limits, their end. */

static char path[WEIR_ADDRESS_SIZE];

static const char *new_path(void) {
    static unsigned number;
    snprintf(path, sizeof path, "unix:/tmp/weir-api-%d-l%u", (int)getpid(), number++);
    return path;
}

static bool exists(const char *address) {
    return access(address + 5, F_OK) == 0;
}

/* ---- start and pause --------------------------------------------------------------------------------- */

static void nothing_is_accepted_before_start(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    memset(&gate, 0, sizeof gate);
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &gate.listener));
    int peer = test_connect(gate.listener);
    run_turns(f, 5);
    assert_int_equal(test_loop_stats(f).accepted, 0);
    assert_ptr_equal(weir_listener_get_loop(gate.listener), f->loop);
    test_ok(weir_listener_start(gate.listener, &witness_gate_callbacks, &gate));
    assert_int_equal(gate.count, 0); /* no callback inside */
    run_until(f, gate.count == 1);
    assert_int_equal(weir_listener_start(gate.listener, &witness_gate_callbacks, NULL), -EALREADY);
    close(peer);
}

static void a_paused_listener_leaves_connections_in_the_backlog(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    int peers[3];
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    peers[0] = test_connect(gate.listener);
    run_until(f, gate.count == 1);
    test_ok(weir_listener_pause(gate.listener));
    test_ok(weir_listener_pause(gate.listener));
    peers[1] = test_connect(gate.listener);
    peers[2] = test_connect(gate.listener);
    run_turns(f, 10);
    assert_int_equal(gate.count, 1);
    test_ok(weir_listener_resume(gate.listener));
    assert_int_equal(gate.count, 1); /* not inside */
    run_until(f, gate.count == 3);
    for (int i = 0; i < 3; i++)
        close(peers[i]);
}

static void pause_inside(weir_listener *listener, weir_stream *stream, void *userdata) {
    witness_gate *gate = userdata;
    test_ok(weir_stream_abort(stream));
    gate->count++;
    test_ok(weir_listener_pause(listener));
}

static void no_connection_is_handed_out_after_pause_inside_on_accept(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    static const weir_listener_callbacks callbacks = { .size = sizeof callbacks, .on_accept = pause_inside };
    int peers[5];
    memset(&gate, 0, sizeof gate);
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &gate.listener));
    for (int i = 0; i < 5; i++)
        peers[i] = test_connect(gate.listener);
    test_ok(weir_listener_start(gate.listener, &callbacks, &gate));
    for (unsigned i = 1; i <= 5; i++) {
        run_until(f, gate.count == i);
        run_turns(f, 5);
        assert_int_equal(gate.count, i);
        test_ok(weir_listener_resume(gate.listener));
    }
    for (int i = 0; i < 5; i++)
        close(peers[i]);
}

/* ---- limits ------------------------------------------------------------------------------------------ */

static void accepting_rests_at_the_limit_of_streams(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    const weir_listener_options options = { .size = sizeof options, .max_streams = 2 };
    int peers[4];
    witness_listen(f, &gate, "127.0.0.1:0", &options);
    for (int i = 0; i < 4; i++)
        peers[i] = test_connect(gate.listener);
    run_until(f, gate.count == 2);
    run_turns(f, 10);
    assert_int_equal(gate.count, 2);
    test_ok(weir_stream_abort(gate.streams[0]));
    run_until(f, gate.count == 3);
    run_turns(f, 10);
    assert_int_equal(gate.count, 3);
    test_ok(weir_stream_abort(gate.streams[1]));
    run_until(f, gate.count == 4);
    for (int i = 0; i < 4; i++)
        close(peers[i]);
}

/*
 * A listener at its limit rests until a descriptor is closed. A detached stream makes room without closing one: the
 * listener rested for ever.
 */
static void a_detached_stream_makes_room_at_the_limit(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    const weir_listener_options options = { .size = sizeof options, .max_streams = 1 };
    int peers[2], fd;
    witness_listen(f, &gate, "127.0.0.1:0", &options);
    peers[0] = test_connect(gate.listener);
    peers[1] = test_connect(gate.listener);
    run_until(f, gate.count == 1);
    run_turns(f, 5);
    test_ok(weir_stream_detach(gate.streams[0], &fd));
    close(fd);
    run_until(f, gate.count == 2);
    close(peers[0]);
    close(peers[1]);
}

/*
 * What a multishot accept brought beyond the loop's limit was held, but nobody settled the listener, so it did not wait
 * for a stream's end either: it held those connections, and accepted no other, for ever.
 */
static void accepting_rests_at_the_loops_limit_of_streams(void **state) {
    (void)state;
    test_fixture f;
    static witness_gate gate;
    weir_loop_options options = { .max_streams = 1 };
    int peers[3];
    test_open_options(&f, NULL, &options);
    witness_listen(&f, &gate, "127.0.0.1:0", NULL);
    for (int i = 0; i < 3; i++)
        peers[i] = test_connect(gate.listener);
    for (unsigned i = 1; i <= 3; i++) {
        run_until(&f, gate.count == i);
        run_turns(&f, 10);
        assert_int_equal(gate.count, i);
        assert_int_equal(test_loop_stats(&f).streams_open, 1);
        test_ok(weir_stream_abort(gate.streams[i - 1]));
    }
    for (int i = 0; i < 3; i++)
        close(peers[i]);
    test_close(&f);
}

/* Many connections to a listener with a limit: how many streams are open is looked at in each on_accept. */
typedef struct crowd {
    weir_listener *listener;
    weir_stream *streams[1000]; /* accepted, not ended */
    unsigned count, open, limit;
    int peers[1000];
    unsigned peer_count;
} crowd;

static in_port_t port_of(int fd, int (*get)(int fd, struct sockaddr *address, socklen_t *length)) {
    struct sockaddr_in in;
    socklen_t length = sizeof in;
    assert_int_equal(get(fd, (struct sockaddr *)&in, &length), 0);
    return in.sin_port;
}

static void crowd_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    crowd *c = userdata;
    (void)listener;
    assert_int_equal(port_of(weir_stream_get_fd(stream), getpeername), port_of(c->peers[c->count], getsockname));
    c->streams[c->count++] = stream;
    assert_true(++c->open <= c->limit);
}

static const weir_listener_callbacks crowd_callbacks = { .size = sizeof crowd_callbacks,
                                                         .on_accept = crowd_accept };

static void crowd_open(test_fixture *f, crowd *c, unsigned limit, const weir_listener_options *options) {
    struct rlimit descriptors;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &descriptors), 0);
    descriptors.rlim_cur = descriptors.rlim_max; /* two for each connection */
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &descriptors), 0);
    memset(c, 0, sizeof *c);
    c->limit = limit;
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", options, &c->listener));
    test_ok(weir_listener_start(c->listener, &crowd_callbacks, c));
}

static void crowd_connect(crowd *c, unsigned count) {
    while (count-- > 0)
        c->peers[c->peer_count++] = test_connect(c->listener);
}

static void crowd_disperse(crowd *c) {
    while (c->peer_count > 0)
        close(c->peers[--c->peer_count]);
}

/*
 * A listener with a limit, or in a loop with one of 4096 streams or less, accepted connections one by one, a turn each,
 * so that it took in no more than it had places for: 400 connections took 400 turns. It does that near the limit only.
 */
static void far_from_the_limit_connections_are_accepted_many_a_turn(void **state) {
    (void)state;
    static const unsigned limits[2][2] = { { 1000, 0 }, { 0, 1000 } }; /* the listener's, the loop's */
    static crowd c;
    for (int i = 0; i < 2; i++) {
        test_fixture f;
        const weir_listener_options options = { .size = sizeof options, .max_streams = limits[i][0] };
        weir_loop_options loop = { .max_streams = limits[i][1] };
        test_open_options(&f, NULL, &loop);
        crowd_open(&f, &c, 1000, &options);
        run_turns(&f, 3);
        crowd_connect(&c, 400);
        weir_loop_stats before = test_loop_stats(&f);
        run_until(&f, c.count == 400);
        weir_loop_stats after = test_loop_stats(&f);
        assert_true(after.turns - before.turns < 100);
        assert_true(after.enters - before.enters < 100);
        crowd_disperse(&c);
        test_close(&f);
    }
}

/* What comes in beyond the limit costs a descriptor each: near it, no more is taken than there is room for. */
static void near_the_limit_no_more_is_taken_than_there_is_room_for(void **state) {
    test_fixture *f = *state;
    enum { LIMIT = 100, FIRST = 80, MORE = 200, FEW = 4 };
    const weir_listener_options options = { .size = sizeof options, .max_streams = LIMIT };
    static crowd c;
    crowd_open(f, &c, LIMIT, &options);
    crowd_connect(&c, FIRST);
    run_until(f, c.count == FIRST);
    run_turns(f, 5);
    crowd_connect(&c, MORE);
    unsigned before = test_count_fds();
    run_until(f, c.count == LIMIT);
    run_turns(f, 20);
    assert_true(test_count_fds() - before <= LIMIT - FIRST + FEW);
    crowd_disperse(&c);
}

/* What the kernel accepted beyond the limit, before it heard that there is no room, comes when there is, in order. */
static void a_crowd_at_the_door_never_exceeds_the_limit(void **state) {
    (void)state;
    enum { LIMIT = 100, ALL = 1000, BATCH = 7 };
    static const unsigned limits[2][2] = { { LIMIT, 0 }, { 0, LIMIT } };
    static crowd c;
    for (int i = 0; i < 2; i++) {
        test_fixture f;
        const weir_listener_options options = { .size = sizeof options, .max_streams = limits[i][0] };
        weir_loop_options loop = { .max_streams = limits[i][1] };
        test_open_options(&f, NULL, &loop);
        crowd_open(&f, &c, LIMIT, &options);
        crowd_connect(&c, ALL);
        for (unsigned ended = 0; ended < ALL;) {
            run_until(&f, c.count == (ended + LIMIT < ALL ? ended + LIMIT : ALL));
            run_turns(&f, 2);
            assert_int_equal(c.open, c.count - ended);
            assert_int_equal(test_loop_stats(&f).streams_open, c.open);
            for (unsigned n = 0; n < BATCH && ended < ALL; n++) {
                test_ok(weir_stream_abort(c.streams[ended++]));
                c.open--;
            }
        }
        run_turns(&f, 3);
        assert_int_equal(test_loop_stats(&f).accepted, ALL);
        crowd_disperse(&c);
        test_close(&f);
    }
}

/* ---- opening ----------------------------------------------------------------------------------------- */

static void an_address_in_use_is_refused_and_a_free_one_taken_again(void **state) {
    test_fixture *f = *state;
    weir_listener *first, *second = NULL;
    char address[WEIR_ADDRESS_SIZE];
    unsigned fds = test_count_fds();
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &first));
    assert_true(weir_listener_get_address(first, address, sizeof address) > 0);
    assert_int_equal(weir_listener_open(f->loop, address, NULL, &second), -EADDRINUSE);
    assert_null(second);
    assert_int_equal(test_count_fds(), fds + 1);
    test_ok(weir_listener_close(first));
    run_turns(f, 3);
    test_ok(weir_listener_open(f->loop, address, NULL, &second));
    test_ok(weir_listener_close(second));
    assert_int_equal(weir_listener_open(f->loop, "192.0.2.1:0", NULL, &second), -EADDRNOTAVAIL);
}

static void reuse_port_lets_two_listeners_share_an_address(void **state) {
    test_fixture *f = *state;
    static witness_gate gates[2];
    const weir_listener_options options = { .size = sizeof options, .flags = WEIR_LISTENER_REUSE_PORT };
    char address[WEIR_ADDRESS_SIZE];
    int peers[20];
    witness_listen(f, &gates[0], "127.0.0.1:0", &options);
    assert_true(weir_listener_get_address(gates[0].listener, address, sizeof address) > 0);
    witness_listen(f, &gates[1], address, &options);
    for (int i = 0; i < 20; i++)
        peers[i] = test_connect(gates[0].listener);
    run_until(f, gates[0].count + gates[1].count == 20);
    for (int i = 0; i < 20; i++)
        close(peers[i]);
}

static void v6_only_leaves_v4_to_others(void **state) {
    test_fixture *f = *state;
    static const uint32_t flags[] = { 0, WEIR_LISTENER_V6_ONLY };
    for (int i = 0; i < 2; i++) {
        const weir_listener_options options = { .size = sizeof options, .flags = flags[i] };
        weir_listener *six, *four = NULL;
        char address[WEIR_ADDRESS_SIZE], v4[WEIR_ADDRESS_SIZE];
        test_ok(weir_listener_open(f->loop, "[::]:0", &options, &six));
        assert_true(weir_listener_get_address(six, address, sizeof address) > 0);
        snprintf(v4, sizeof v4, "0.0.0.0%s", strrchr(address, ':'));
        int r = weir_listener_open(f->loop, v4, NULL, &four);
        assert_int_equal(r, flags[i] != 0 ? 0 : -EADDRINUSE);
        test_ok(weir_listener_close(four));
        test_ok(weir_listener_close(six));
        run_turns(f, 3);
    }
}

static void unlink_removes_a_stale_socket_and_ours_at_close(void **state) {
    test_fixture *f = *state;
    const weir_listener_options options = { .size = sizeof options, .flags = WEIR_LISTENER_UNLINK };
    weir_listener *listener, *second = NULL;
    const char *address = new_path();
    test_ok(weir_listener_open(f->loop, address, NULL, &listener));
    test_ok(weir_listener_close(listener));
    test_ok(weir_loop_run(f->loop));
    assert_true(exists(address)); /* without the flag it stays: a stale one */
    assert_int_equal(weir_listener_open(f->loop, address, NULL, &listener), -EADDRINUSE);
    test_ok(weir_listener_open(f->loop, address, &options, &listener));
    assert_int_equal(weir_listener_open(f->loop, address, &options, &second), -EADDRINUSE); /* one that listens */
    assert_null(second);
    assert_true(exists(address));
    test_ok(weir_listener_close(listener));
    test_ok(weir_loop_run(f->loop));
    assert_false(exists(address));
    FILE *file = fopen(address + 5, "w"); /* what is no socket is not removed */
    assert_non_null(file);
    fclose(file);
    assert_int_equal(weir_listener_open(f->loop, address, &options, &listener), -EADDRINUSE);
    assert_true(exists(address));
    unlink(address + 5);
}

/*
 * A listener took whatever lay at its path for its own file. An old one, whose path a successor listened on already,
 * removed the successor's at its close: nobody could connect to it any more.
 */
static void an_old_listener_leaves_its_successors_socket(void **state) {
    test_fixture *f = *state;
    const weir_listener_options options = { .size = sizeof options, .flags = WEIR_LISTENER_UNLINK };
    for (int i = 0; i < 2; i++) {
        weir_listener *old, *successor;
        const char *address = new_path();
        char aside[WEIR_ADDRESS_SIZE + 4];
        snprintf(aside, sizeof aside, "%s.old", address);
        test_ok(weir_listener_open(f->loop, address, &options, &old));
        assert_int_equal(i == 0 ? unlink(address + 5) : rename(address + 5, aside + 5), 0);
        test_ok(weir_listener_open(f->loop, address, &options, &successor));
        test_ok(weir_listener_close(old));
        run_turns(f, 3);
        assert_true(exists(address));
        close(test_connect(successor));
        test_ok(weir_listener_close(successor));
        run_turns(f, 3);
        assert_false(exists(address)); /* its own it removes */
        assert_int_equal(exists(aside), i);
        unlink(aside + 5);
    }
}

/* Whose file it is, an adopted listener knows from when it was adopted. */
static void an_adopted_listener_removes_its_socket_and_no_others(void **state) {
    test_fixture *f = *state;
    const weir_listener_options options = { .size = sizeof options, .flags = WEIR_LISTENER_UNLINK };
    for (int i = 0; i < 2; i++) {
        weir_listener *old, *successor = NULL;
        const char *address = new_path();
        struct sockaddr_un un = { .sun_family = AF_UNIX };
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        memcpy(un.sun_path, address + 5, strlen(address + 5) + 1);
        assert_int_equal(bind(fd, (struct sockaddr *)&un, sizeof un), 0);
        assert_int_equal(listen(fd, 5), 0);
        test_ok(weir_listener_adopt(f->loop, fd, &options, &old));
        if (i == 1) {
            unlink(address + 5);
            test_ok(weir_listener_open(f->loop, address, NULL, &successor));
        }
        test_ok(weir_listener_close(old));
        run_turns(f, 3);
        assert_int_equal(exists(address), i);
        test_ok(weir_listener_close(successor));
        run_turns(f, 3);
        unlink(address + 5);
    }
}

/*
 * On failure nothing has changed. But bind makes the file, and what came after might fail, for want of memory: the file
 * stayed, and the next attempt found its address in use.
 */
static void a_listener_that_fails_leaves_no_socket_file(void **state) {
    test_fixture *f = *state;
    const weir_listener_options options = { .size = sizeof options, .flags = WEIR_LISTENER_UNLINK };
    for (int i = 0; i < 2; i++) {
        weir_listener *listener = NULL;
        const char *address = new_path();
        atomic_store(&f->memory.fail_at, atomic_load(&f->memory.allocations) + 1);
        assert_int_equal(weir_listener_open(f->loop, address, i ? &options : NULL, &listener), -ENOMEM);
        bool is_left = exists(address);
        unlink(address + 5);
        assert_false(is_left);
    }
}

static void adopt_takes_a_listening_stream_socket_and_nothing_else(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr = { htonl(INADDR_LOOPBACK) } };
    weir_listener *listener = NULL;
    int fds[2], udp = socket(AF_INET, SOCK_DGRAM, 0), idle = socket(AF_INET, SOCK_STREAM, 0);
    memset(&gate, 0, sizeof gate);
    assert_int_equal(pipe(fds), 0);
    assert_int_equal(weir_listener_adopt(f->loop, -1, NULL, &listener), -EBADF);
    assert_int_equal(weir_listener_adopt(f->loop, fds[0], NULL, &listener), -ENOTSOCK);
    assert_int_equal(weir_listener_adopt(f->loop, udp, NULL, &listener), -EINVAL);
    assert_int_equal(weir_listener_adopt(f->loop, idle, NULL, &listener), -EINVAL);
    assert_null(listener);
    assert_int_equal(fcntl(idle, F_GETFL) & O_NONBLOCK, 0);
    assert_int_equal(close(udp) | close(fds[0]) | close(fds[1]), 0);
    assert_int_equal(bind(idle, (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(listen(idle, 5), 0);
    test_ok(weir_listener_adopt(f->loop, idle, NULL, &gate.listener));
    assert_true(fcntl(idle, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(idle, F_GETFD) & FD_CLOEXEC);
    test_ok(weir_listener_start(gate.listener, &witness_gate_callbacks, &gate));
    int peer = test_connect(gate.listener);
    run_until(f, gate.count == 1);
    close(peer);
}

static void options_that_make_no_sense_are_refused(void **state) {
    test_fixture *f = *state;
    static const weir_listener_options bad[] = {
        { .size = sizeof *bad, .flags = 8 },
        { .size = sizeof *bad, .flags = 1U << 31 },
        { .size = sizeof *bad, .reserved = 1 },
        { .size = sizeof *bad, .backlog = UINT32_MAX },
    };
    weir_listener *listener = NULL;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(weir_listener_open(f->loop, "127.0.0.1:0", &bad[i], &listener), -EINVAL);
    assert_null(listener);
}

/* ---- the end ----------------------------------------------------------------------------------------- */

static void close_tells_later_and_once_and_leaves_streams_open(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    char answer[2];
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    weir_listener *kept = weir_listener_ref(gate.listener);
    int peer = test_connect(gate.listener);
    run_until(f, gate.count == 1);
    test_ok(weir_listener_close(gate.listener));
    test_ok(weir_listener_close(gate.listener));
    assert_int_equal(gate.closes, 0);
    run_until(f, gate.closes == 1);
    assert_int_equal(gate.error, 0);
    test_ok(weir_listener_close(kept));
    test_ok(weir_listener_pause(kept));
    run_turns(f, 5);
    assert_int_equal(gate.closes, 1);
    assert_int_equal(weir_stream_write(gate.streams[0], "ok", 2), WEIR_WRITE_OK);
    static const weir_stream_callbacks none = { .size = sizeof none };
    test_ok(weir_stream_start(gate.streams[0], &none, NULL));
    run_turns(f, 3);
    peer_receive(peer, answer, 2);
    assert_null(weir_listener_unref(kept));
    close(peer);
}

static void a_listener_that_was_not_started_closes_without_a_word(void **state) {
    test_fixture *f = *state;
    weir_listener *listener;
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listener));
    weir_listener_ref(listener);
    test_ok(weir_listener_close(listener));
    assert_int_equal(weir_listener_start(listener, &witness_gate_callbacks, NULL), -ESHUTDOWN);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(weir_listener_start(listener, &witness_gate_callbacks, NULL), -ESHUTDOWN);
    assert_null(weir_listener_unref(listener));
}

static void close_at_first(weir_listener *listener, weir_stream *stream, void *userdata) {
    ++*(unsigned *)userdata;
    test_ok(weir_stream_abort(stream));
    test_ok(weir_listener_close(listener));
}

static void connections_not_handed_out_are_closed(void **state) {
    test_fixture *f = *state;
    static const weir_listener_callbacks callbacks = { .size = sizeof callbacks, .on_accept = close_at_first };
    weir_listener *listener;
    unsigned count = 0;
    int peers[10];
    test_ok(weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listener));
    for (int i = 0; i < 10; i++)
        peers[i] = test_connect(listener);
    test_ok(weir_listener_start(listener, &callbacks, &count));
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(count, 1);
    for (int i = 0; i < 10; i++) {
        char byte;
        ssize_t n = recv(peers[i], &byte, 1, 0);
        assert_true(n == 0 || (n < 0 && errno == ECONNRESET));
        close(peers[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(nothing_is_accepted_before_start),
        loop_test(a_paused_listener_leaves_connections_in_the_backlog),
        loop_test(no_connection_is_handed_out_after_pause_inside_on_accept),
        loop_test(accepting_rests_at_the_limit_of_streams),
        loop_test(a_detached_stream_makes_room_at_the_limit),
        cmocka_unit_test(accepting_rests_at_the_loops_limit_of_streams),
        cmocka_unit_test(far_from_the_limit_connections_are_accepted_many_a_turn),
        loop_test(near_the_limit_no_more_is_taken_than_there_is_room_for),
        cmocka_unit_test(a_crowd_at_the_door_never_exceeds_the_limit),
        loop_test(an_address_in_use_is_refused_and_a_free_one_taken_again),
        loop_test(reuse_port_lets_two_listeners_share_an_address),
        loop_test(v6_only_leaves_v4_to_others),
        loop_test(unlink_removes_a_stale_socket_and_ours_at_close),
        loop_test(an_old_listener_leaves_its_successors_socket),
        loop_test(an_adopted_listener_removes_its_socket_and_no_others),
        loop_test(a_listener_that_fails_leaves_no_socket_file),
        loop_test(adopt_takes_a_listening_stream_socket_and_nothing_else),
        loop_test(options_that_make_no_sense_are_refused),
        loop_test(close_tells_later_and_once_and_leaves_streams_open),
        loop_test(a_listener_that_was_not_started_closes_without_a_word),
        loop_test(connections_not_handed_out_are_closed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
