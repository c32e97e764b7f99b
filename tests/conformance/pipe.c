/* SPDX-License-Identifier: MIT */
#include <sys/utsname.h>

#include "conformance/world.h"

/* Pipes: what one stream receives another sends, and how the end of either reaches the other. */

enum { MUCH = 150000 };

static uint8_t data[1 << 20];

typedef struct two {
    teller a, b;
    int pa, pb; /* their peers */
    voice va, vb;
} two;

static void two_open(world *w, two *t, bool tcp, bool both) {
    memset(t, 0, sizeof *t);
    t->va = (voice){ .name = "pa", .seed = 22 };
    t->vb = (voice){ .name = "pb", .seed = 11 };
    t->pa = teller_pair(w, &t->a, "a", tcp, NULL);
    t->pb = teller_pair(w, &t->b, "b", tcp, NULL);
    ok((both ? weir_stream_pipe_both : weir_stream_pipe)(t->a.stream, t->b.stream));
}

/* One after the other: which of two streams ends first in one turn, the kernel says. */
static void two_close(world *w, two *t) {
    if (t->a.stream != NULL)
        ok(weir_stream_abort(t->a.stream));
    until(w, t->a.closes == 1);
    if (t->b.stream != NULL)
        ok(weir_stream_abort(t->b.stream));
    until(w, t->b.closes == 1);
    if (t->pa >= 0)
        close(t->pa);
    close(t->pb);
}

static void send_pattern(int fd, uint64_t seed, uint64_t position, size_t size) {
    test_fill(seed, position, data, size);
    peer_send(fd, data, size);
}

/* ---- one way -------------------------------------------------------------------------------------------- */

static void one_way_ends_behind_the_last_byte(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        two t;
        two_open(w, &t, tcp, false);
        assert_int_equal(weir_stream_pipe(t.a.stream, t.b.stream), -EALREADY);
        assert_int_equal(weir_stream_shutdown(t.b.stream), -EBUSY);
        send_pattern(t.pa, 11, 0, MUCH);
        shutdown(t.pa, SHUT_WR);
        peer_hear_all(w, &t.vb, t.pb);
        until(w, t.a.ends == 1);
        turns(w, 5);
        weir_stream_stats a = stream_stats(t.a.stream), b = stream_stats(t.b.stream);
        assert_int_equal(a.bytes_in, MUCH);
        assert_int_equal(a.bytes_piped, MUCH);
        assert_int_equal(b.bytes_out, MUCH);
        assert_int_equal(b.bytes_copied, 0);
        peer_send_text(t.pb, "back");
        until(w, t.b.voice.size == 4); /* the other way is no pipe */
        t.vb.seed = 0;
        two_close(w, &t);
        told(w, "a: end\n"
                "pb: data 150000\n"
                "pb: end\n"
                "b: data 'back'\n"
                "a: close ABORT 0\n"
                "b: close ABORT 0\n");
    }
    counted(w, 2 * (MUCH + 4), 2 * MUCH, 0, 0);
}

static void an_unpiped_stream_is_heard_again(void **state) {
    world *w = *state;
    two t;
    two_open(w, &t, true, false);
    t.vb.seed = 0;
    peer_send_text(t.pa, "piped");
    peer_hear(w, &t.vb, t.pb, 5);
    ok(weir_stream_unpipe(t.a.stream));
    peer_send_text(t.pa, "heard");
    until(w, t.a.voice.size == 5);
    ok(weir_stream_pipe(t.a.stream, t.b.stream));
    peer_send_text(t.pa, "piped again");
    peer_hear(w, &t.vb, t.pb, 11);
    ok(weir_stream_unpipe(t.a.stream));
    ok(weir_stream_shutdown(t.b.stream));
    peer_hear_all(w, &t.vb, t.pb);
    told(w, "pb: data 'piped'\n"
            "a: data 'heard'\n"
            "pb: data 'piped again'\n"
            "pb: end\n");
    two_close(w, &t);
    told(w, "a: close ABORT 0\n"
            "b: close ABORT 0\n");
}

static void what_is_written_besides_keeps_its_place(void **state) {
    world *w = *state;
    two t;
    two_open(w, &t, true, false);
    t.vb.seed = 0;
    ok(weir_stream_write(t.b.stream, "before ", 7));
    peer_send_text(t.pa, "piped ");
    until(w, stream_stats(t.a.stream).bytes_piped == 6);
    ok(weir_stream_write(t.b.stream, "after", 5));
    peer_hear(w, &t.vb, t.pb, 18);
    ok(weir_stream_unpipe(t.a.stream));
    two_close(w, &t);
    told(w, "pb: data 'before piped after'\n"
            "a: close ABORT 0\n"
            "b: close ABORT 0\n");
}

static void a_stream_piped_into_itself_echoes(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        voice p = { .name = "p", .seed = 33 };
        int peer = teller_pair(w, &a, "a", tcp, NULL);
        ok(weir_stream_pipe(a.stream, a.stream));
        send_pattern(peer, 33, 0, 50000);
        peer_hear(w, &p, peer, 50000);
        shutdown(peer, SHUT_WR);
        peer_hear_all(w, &p, peer);
        until(w, a.closes == 1);
        told(w, "p: data 50000\n"
                "a: end\n"
                "a: close PEER 0\n"
                "p: end\n");
        close(peer);
    }
    counted(w, 100000, 100000, 0, 0);
}

/* ---- both ways ------------------------------------------------------------------------------------------ */

static void both_ways_close_when_both_have_ended(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        two t;
        two_open(w, &t, tcp, true);
        send_pattern(t.pa, 11, 0, MUCH);
        send_pattern(t.pb, 22, 0, MUCH);
        peer_hear(w, &t.va, t.pa, MUCH);
        peer_hear(w, &t.vb, t.pb, MUCH);
        shutdown(t.pa, SHUT_WR);
        peer_hear_all(w, &t.vb, t.pb);
        turns(w, 5);
        told(w, "pa: data 150000\n"
                "pb: data 150000\n"
                "a: end\n"
                "pb: end\n");
        send_pattern(t.pb, 22, MUCH, 1000);
        peer_hear(w, &t.va, t.pa, 1000);
        assert_int_equal(weir_stream_get_state(t.a.stream), WEIR_STREAM_OPEN);
        shutdown(t.pb, SHUT_WR);
        until(w, t.b.closes == 1 && t.a.closes == 1);
        peer_hear_all(w, &t.va, t.pa);
        told(w, "pa: data 1000\n"
                "b: end\n"
                "b: close PEER 0\n"
                "a: close PEER 0\n"
                "pa: end\n");
        two_close(w, &t);
    }
}

static void a_reset_of_either_resets_the_other(void **state) {
    world *w = *state;
    for (int both = 0; both <= 1; both++) {
        two t;
        two_open(w, &t, true, both);
        turns(w, 5);
        peer_reset(t.pa);
        t.pa = -1;
        until(w, t.a.closes == 1 && t.b.closes == 1);
        peer_hear_all(w, &t.vb, t.pb);
        told(w, "a: close ERROR ECONNRESET\n"
                "b: close PIPE ECONNRESET\n"
                "pb: ECONNRESET\n");
        two_close(w, &t);
    }
}

static void a_reset_of_the_receiver_ends_the_sender(void **state) {
    world *w = *state;
    two t;
    two_open(w, &t, true, false);
    turns(w, 5);
    peer_reset(t.pb);
    until(w, t.a.closes == 1 && t.b.closes == 1);
    peer_hear_all(w, &t.va, t.pa);
    told(w, "b: close ERROR ECONNRESET\n"
            "a: close PIPE ECONNRESET\n"
            "pa: ECONNRESET\n");
    close(t.pa);
}

static void a_close_of_one_closes_the_other(void **state) {
    world *w = *state;
    two t;
    two_open(w, &t, true, true);
    turns(w, 5);
    ok(weir_stream_close(t.a.stream));
    peer_hear_all(w, &t.va, t.pa);
    shutdown(t.pa, SHUT_WR);
    until(w, t.a.closes == 1);
    peer_hear_all(w, &t.vb, t.pb);
    shutdown(t.pb, SHUT_WR);
    until(w, t.b.closes == 1);
    told(w, "pa: end\n"
            "a: close LOCAL 0\n"
            "pb: end\n"
            "b: close LOCAL 0\n");
    two_close(w, &t);
}

/* ---- a slow reader -------------------------------------------------------------------------------------- */

/* Since Linux 6.17. Before, a receive of a ring brings what it can before it is taken back. */
static bool kernel_limits_receives(void) {
    struct utsname name;
    unsigned major = 0, minor = 0;
    ok(uname(&name));
    assert_int_equal(sscanf(name.release, "%u.%u", &major, &minor), 2);
    return major > 6 || (major == 6 && minor >= 17);
}

static void a_slow_reader_holds_the_sender_back(void **state) {
    world *w = *state;
    enum { HIGH = 20000, ALL = 4 << 20 };
    const weir_stream_options options = { .size = sizeof options,
                                          .queue_high_bytes = HIGH,
                                          .queue_low_bytes = 1000 };
    const weir_pool_options pool = { .size = sizeof pool, .budget_bytes = 1 << 20, .buffer_bytes = 16384 };
    weir_loop_options loop_options = { .pool = &pool };
    int fds[2];
    teller a = { .hook = NULL }, b = { .hook = NULL };
    voice p = { .name = "p", .seed = 11 };
    world_reopen(w, &loop_options);
    int pa = teller_pair(w, &a, "a", true, NULL);
    peer_pair(true, fds);
    small_send_buffer(fds[0]);
    teller_adopt(w, &b, "b", fds[0], &options);
    ok(weir_stream_pipe(a.stream, b.stream));
    int flags = fcntl(pa, F_GETFL);
    ok(fcntl(pa, F_SETFL, flags | O_NONBLOCK));
    bool is_held_exactly = world_mode() == WEIR_BACKEND_EPOLL || kernel_limits_receives();
    uint64_t sent = 0;
    for (int rest = 0; sent < ALL;) {
        size_t size = ALL - sent < sizeof data ? ALL - sent : sizeof data;
        test_fill(11, sent, data, size);
        ssize_t n = send(pa, data, size, MSG_NOSIGNAL);
        sent += n > 0 ? (uint64_t)n : 0;
        turns(w, 1);
        assert_true(stream_stats(b.stream).queued_bytes <= HIGH + 16384);
        rest = n > 0 ? 0 : rest + 1;
        if (rest >= 50) { /* nothing moves: the way is full, and it was held back before memory was */
            if (is_held_exactly)
                assert_int_equal(pool_stats(w).starved, 0);
            peer_hear(w, &p, fds[1], 500000);
            rest = 0;
        }
    }
    shutdown(pa, SHUT_WR);
    peer_hear_all(w, &p, fds[1]);
    assert_int_equal(p.size, ALL);
    until(w, a.ends == 1);
    assert_true(stream_stats(b.stream).queue_peak_bytes <= HIGH + 16384);
    assert_int_equal(a.drains + b.drains, 0);
    counted(w, ALL, ALL, is_held_exactly ? 0 : loop_stats(w).bytes_copied,
            0);      /* else memory may be short meanwhile */
    forget_story(w); /* in how many steps it went is the kernel's business; the bytes were looked at */
    ok(weir_stream_abort(a.stream)); /* the pipe is over: the other stays */
    turns(w, 5);
    ok(weir_stream_abort(b.stream));
    until(w, a.closes == 1 && b.closes == 1);
    told(w, "a: close ABORT 0\n"
            "b: close ABORT 0\n");
    close(pa);
    close(fds[1]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scenario(one_way_ends_behind_the_last_byte),       scenario(an_unpiped_stream_is_heard_again),
        scenario(what_is_written_besides_keeps_its_place), scenario(a_stream_piped_into_itself_echoes),
        scenario(both_ways_close_when_both_have_ended),    scenario(a_reset_of_either_resets_the_other),
        scenario(a_reset_of_the_receiver_ends_the_sender), scenario(a_close_of_one_closes_the_other),
        scenario(a_slow_reader_holds_the_sender_back),
    };
    return run_world(tests);
}
