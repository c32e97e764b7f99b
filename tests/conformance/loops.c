/* SPDX-License-Identifier: MIT */
#include "conformance/world.h"

#include <netinet/in.h>
#include <sys/resource.h>

/* Loops as such: which mode runs, sockets that come from elsewhere and go on elsewhere, and many of them at once. */

static uint8_t data[1 << 16];

/* ---- which ---------------------------------------------------------------------------------------------- */

static void the_mode_asked_for_is_the_mode_that_runs(void **state) {
    world *w = *state;
    weir_loop_info info = { .size = sizeof info };
    ok(weir_loop_get_info(w->loop, &info));
    assert_int_equal(info.asked, world_mode());
    if (world_mode() != WEIR_BACKEND_AUTO)
        assert_int_equal(info.backend, world_mode());
    /* Why not a better one. */
    assert_int_equal(info.reason[0] == '\0', info.backend == WEIR_BACKEND_URING_INCREMENTAL);
}

static void auto_takes_the_best_and_says_why(void **state) {
    (void)state;
    weir_loop_info info = { .size = sizeof info };
    weir_loop *loop;
    unsetenv("WEIR_BACKEND");
    ok(weir_loop_new(NULL, &loop));
    ok(weir_loop_get_info(loop, &info));
    assert_int_equal(info.asked, WEIR_BACKEND_AUTO);
    assert_in_range(info.backend, WEIR_BACKEND_URING_INCREMENTAL, WEIR_BACKEND_EPOLL);
    assert_int_equal(info.reason[0] == '\0', info.backend == WEIR_BACKEND_URING_INCREMENTAL);
    /* Each mode that is better is not to be had, if asked for. */
    for (uint32_t better = WEIR_BACKEND_URING_INCREMENTAL; better < info.backend; better++) {
        const weir_loop_options options = { .size = sizeof options, .backend = better };
        weir_loop *none;
        int r = weir_loop_new(&options, &none);
        assert_true(r == -ENOSYS || r == -EPERM);
    }
    ok(weir_loop_close(loop));
    weir_loop_unref(loop);
}

static void the_environment_says_what_auto_is(void **state) {
    world *w = *state;
    static const char *const names[] = { "auto", "uring-incremental", "uring-classic", "epoll" };
    weir_loop_info info = { .size = sizeof info };
    weir_loop *loop;
    (void)w;
    ok(setenv("WEIR_BACKEND", names[world_mode()], 1));
    ok(weir_loop_new(NULL, &loop));
    ok(weir_loop_get_info(loop, &info));
    assert_int_equal(info.asked, WEIR_BACKEND_AUTO);
    if (world_mode() != WEIR_BACKEND_AUTO)
        assert_int_equal(info.backend, world_mode());
    ok(weir_loop_close(loop));
    weir_loop_unref(loop);
    /* Who asks for one gets that one. */
    ok(setenv("WEIR_BACKEND", world_mode() == WEIR_BACKEND_EPOLL ? "uring-classic" : "epoll", 1));
    const weir_loop_options options = { .size = sizeof options, .backend = world_mode() };
    if (world_mode() != WEIR_BACKEND_AUTO) {
        ok(weir_loop_new(&options, &loop));
        ok(weir_loop_get_info(loop, &info));
        assert_int_equal(info.backend, world_mode());
        ok(weir_loop_close(loop));
        weir_loop_unref(loop);
    }
    unsetenv("WEIR_BACKEND");
}

/* ---- sockets from elsewhere ----------------------------------------------------------------------------- */

static void what_was_sent_before_the_adoption_is_heard(void **state) {
    world *w = *state;
    for (int i = 0; i < 4; i++) {
        int fds[2];
        teller a = { .hook = NULL };
        peer_pair(i % 2, fds);
        peer_send_text(fds[1], "already here");
        if (i / 2)
            shutdown(fds[1], SHUT_WR);
        teller_adopt(w, &a, "a", fds[0], NULL);
        until(w, a.voice.size == 12);
        shutdown(fds[1], SHUT_WR);
        until(w, a.ends == 1);
        ok(weir_stream_close(a.stream));
        until(w, a.closes == 1);
        told(w, "a: data 'already here'\n"
                "a: end\n"
                "a: close PEER 0\n");
        close(fds[1]);
    }
}

static void what_ended_before_the_adoption(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        int fds[2];
        teller a = { .hook = NULL };
        peer_pair(tcp, fds);
        close(fds[1]);
        teller_adopt(w, &a, "a", fds[0], NULL);
        until(w, a.ends == 1);
        ok(weir_stream_close(a.stream));
        until(w, a.closes == 1);
        told(w, "a: end\n"
                "a: close PEER 0\n");
    }
}

static void what_is_no_connected_stream_is_not_adopted(void **state) {
    world *w = *state;
    weir_stream *stream = NULL;
    int pipes[2];
    ok(pipe2(pipes, O_CLOEXEC));
    const struct {
        int fd, error;
    } bad[] = {
        { -1, -EBADF },
        { pipes[0], -ENOTSOCK },
        { socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), -EPROTOTYPE },
        { socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), -EPROTOTYPE },
        { socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), -ENOTCONN },
        { socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), -ENOTCONN },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(weir_stream_adopt(w->loop, bad[i].fd, NULL, &stream), bad[i].error);
        assert_null(stream);
        if (bad[i].fd >= 0)
            ok(close(bad[i].fd)); /* it is ours still */
    }
    close(pipes[1]);
    turns(w, 3);
}

static void a_detached_socket_goes_on_from_its_first_byte(void **state) {
    world *w = *state;
    int fds[2], fd;
    weir_stream *stream;
    teller a = { .hook = NULL };
    peer_pair(true, fds);
    ok(weir_stream_adopt(w->loop, fds[0], NULL, &stream));
    peer_send_text(fds[1], "not read");
    turns(w, 5);
    ok(weir_stream_detach(stream, &fd));
    assert_int_equal(fd, fds[0]);
    teller_adopt(w, &a, "a", fd, NULL);
    assert_int_equal(weir_stream_detach(a.stream, &fd), -EALREADY);
    until(w, a.voice.size == 8);
    ok(weir_stream_abort(a.stream));
    until(w, a.closes == 1);
    told(w, "a: data 'not read'\n"
            "a: close ABORT 0\n");
    close(fds[1]);
}

/* ---- two loops in two threads --------------------------------------------------------------------------- */

enum { HANDED = 50, EACH = 5000 };

static struct {
    world world;
    weir_loop *loop;
    _Atomic(bool) is_running;
    int count;
    teller tellers[HANDED];
} other;

static void echo_to_the_end(teller *t, char event, const weir_slice *slice) {
    if (event == 'd')
        ok(weir_stream_write_slice(t->stream, slice));
    else if (event == 'e')
        ok(weir_stream_close(t->stream));
    else if (event == 'c' && ++other.count == HANDED)
        weir_loop_stop(other.loop);
}

static void take_over(weir_loop *loop, void *userdata) {
    teller *t = &other.tellers[(intptr_t)userdata >> 16];
    assert_ptr_equal(loop, other.loop);
    *t = (teller){ .voice = { .seed = 1 + (uint64_t)(t - other.tellers), .is_quiet = true },
                   .hook = echo_to_the_end };
    teller_adopt(&other.world, t, "t", (int)((intptr_t)userdata & 0xffff), NULL);
}

static void *run_the_other(void *userdata) {
    weir_loop_options options = { .flags = WEIR_LOOP_KEEP_RUNNING };
    world_open(&other.world, &options);
    other.loop = other.world.loop;
    atomic_store(&other.is_running, true);
    ok(weir_loop_run(other.loop));
    assert_int_equal(loop_stats(&other.world).bytes_in, HANDED * EACH);
    assert_int_equal(loop_stats(&other.world).bytes_out, HANDED * EACH);
    assert_int_equal(loop_stats(&other.world).posts, HANDED);
    world_close_loop(&other.world);
    return userdata;
}

static void sockets_are_passed_to_another_loop(void **state) {
    world *w = *state;
    gate g = { .hook = NULL };
    pthread_t thread;
    int peers[HANDED];
    memset(&other, 0, sizeof other);
    ok(pthread_create(&thread, NULL, run_the_other, NULL));
    while (!atomic_load(&other.is_running))
        sleep_ms(1);
    weir_loop *theirs = weir_loop_ref(other.loop); /* who posts holds it: a post may be what ends it */
    gate_open(w, &g, "127.0.0.1:0", NULL, NULL);
    for (intptr_t i = 0; i < HANDED; i++) {
        int fd;
        peers[i] = peer_connect(g.listener);
        test_fill(1 + (uint64_t)i, 0, data, EACH);
        peer_send(peers[i], data, EACH);
        g.count = 0;
        until(w, g.count == 1);
        told(w, "gate: accept\n");
        ok(weir_stream_detach(g.streams[0], &fd));
        ok(weir_loop_post(theirs, take_over, (void *)(i << 16 | fd)));
    }
    weir_loop_unref(theirs);
    for (uint64_t i = 0; i < HANDED; i++) {
        voice p = { .name = "p", .seed = 1 + i };
        peer_hear(w, &p, peers[i], EACH);
        shutdown(peers[i], SHUT_WR);
        peer_hear_all(w, &p, peers[i]);
        told(w, "p: data 5000\n"
                "p: end\n");
        close(peers[i]);
    }
    ok(pthread_join(thread, NULL));
    for (int i = 0; i < HANDED; i++) {
        assert_int_equal(other.tellers[i].ends, 1);
        assert_int_equal(other.tellers[i].reason, WEIR_CLOSE_PEER);
    }
    assert_int_equal(other.world.live_blocks, 0);
    ok(weir_listener_close(g.listener));
    until(w, g.closes == 1);
    told(w, "gate: close 0\n");
    counted(w, 0, 0, 0, HANDED);
}

/* ---- many ----------------------------------------------------------------------------------------------- */

enum { MANY = 500, LITTLE = 3000 };

static teller many[MANY];

static void echo_and_close(teller *t, char event, const weir_slice *slice) {
    if (event == 'd')
        ok(weir_stream_write_slice(t->stream, slice));
    else if (event == 'e')
        ok(weir_stream_close(t->stream));
}

static void enter_quietly(gate *g, weir_stream *stream) {
    teller *t = &many[g->count - 1];
    t->hook = echo_and_close;
    t->voice.is_quiet = true;
    teller_start(g->world, t, "t", stream);
}

static void many_connections_at_once(void **state) {
    world *w = *state;
    static int peers[MANY];
    struct rlimit limit;
    gate g = { .hook = enter_quietly };
    ok(getrlimit(RLIMIT_NOFILE, &limit));
    if (limit.rlim_cur < 3 * MANY) {
        limit.rlim_cur = 3 * MANY;
        ok(setrlimit(RLIMIT_NOFILE, &limit));
    }
    memset(many, 0, sizeof many);
    gate_open(w, &g, "127.0.0.1:0", NULL, NULL);
    for (int i = 0; i < MANY; i++) {
        peers[i] = peer_connect(g.listener);
        until(w, g.count == (unsigned)i + 1);
        many[i].voice.seed = 1000 + (uint64_t)i;
    }
    for (int round = 0; round < 3; round++)
        for (int i = MANY - 1; i >= 0; i--) {
            test_fill(1000 + (uint64_t)i, (uint64_t)round * LITTLE, data, LITTLE);
            peer_send(peers[i], data, LITTLE);
        }
    assert_int_equal(loop_stats(w).streams_open, MANY);
    forget_story(w); /* so many times "gate: accept" */
    for (int i = 0; i < MANY; i++) {
        voice p = { .name = "p", .seed = 1000 + (uint64_t)i };
        peer_hear(w, &p, peers[i], 3 * LITTLE);
        told(w, "p: data 9000\n");
    }
    for (int i = 0; i < MANY; i++)
        if (i % 5 != 0)
            shutdown(peers[i], SHUT_WR);
        else
            peer_reset(peers[i]);
    for (int i = 0; i < MANY; i++) {
        until(w, many[i].closes == 1);
        assert_int_equal(many[i].ends, i % 5 != 0);
        assert_int_equal(many[i].reason, i % 5 != 0 ? WEIR_CLOSE_PEER : WEIR_CLOSE_ERROR);
        assert_int_equal(many[i].error, i % 5 != 0 ? 0 : -ECONNRESET);
        if (i % 5 != 0)
            close(peers[i]);
    }
    ok(weir_listener_close(g.listener));
    until(w, g.closes == 1);
    told(w, "gate: close 0\n");
    counted(w, MANY * 3 * LITTLE, MANY * 3 * LITTLE, 0, MANY);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scenario(the_mode_asked_for_is_the_mode_that_runs),
        scenario(auto_takes_the_best_and_says_why),
        scenario(the_environment_says_what_auto_is),
        scenario(what_was_sent_before_the_adoption_is_heard),
        scenario(what_ended_before_the_adoption),
        scenario(what_is_no_connected_stream_is_not_adopted),
        scenario(a_detached_socket_goes_on_from_its_first_byte),
        scenario(sockets_are_passed_to_another_loop),
        scenario(many_connections_at_once),
    };
    return run_world(tests);
}
