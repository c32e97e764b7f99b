/* SPDX-License-Identifier: MIT */
#include "conformance/world.h"

/* Reading: when it is delivered, how much of it, how long it may be held, and what happens when memory is spent. */

enum { MUCH = 100000, PAGE = 4096 };

static uint8_t data[1 << 20];

static void pause_at_data(teller *t, char event, const weir_slice *slice) {
    (void)slice;
    if (event == 'd')
        ok(weir_stream_pause(t->stream));
}

static void end_it(world *w, teller *a, int peer) {
    ok(weir_stream_abort(a->stream));
    until(w, a->closes == 1);
    close(peer);
}

/* ---- pausing -------------------------------------------------------------------------------------------- */

static void a_pause_inside_on_data_holds_at_once(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .voice = { .seed = 6 }, .hook = pause_at_data };
        test_fill(6, 0, data, MUCH);
        int peer = teller_pair(w, &a, "a", tcp, NULL);
        turns(w, 3);
        peer_send(peer, data, MUCH);
        shutdown(peer, SHUT_WR);
        until(w, a.voice.size > 0);
        uint64_t had = a.voice.size;
        turns(w, 20);
        assert_int_equal(a.voice.size, had); /* one slice, and no more */
        assert_true(had < MUCH);
        while (a.voice.size < MUCH) {
            had = a.voice.size;
            ok(weir_stream_resume(a.stream));
            assert_int_equal(a.voice.size, had); /* never inside */
            until(w, a.voice.size > had);
            assert_int_equal(a.ends, 0);
        }
        turns(w, 5);
        assert_int_equal(a.ends, 0); /* paused still */
        assert_int_equal(stream_stats(a.stream).staged_bytes, 0);
        ok(weir_stream_resume(a.stream));
        until(w, a.ends == 1);
        told(w, "a: data 100000\n"
                "a: end\n");
        end_it(w, &a, peer);
        told(w, "a: close ABORT 0\n");
    }
    counted(w, 2 * MUCH, 0, 0, 0);
}

static void a_pause_and_a_resume_in_one_turn_change_nothing(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        int peer = teller_pair(w, &a, "a", tcp, NULL);
        for (int i = 0; i < 10; i++) {
            if (i % 2)
                turns(w, 2);
            ok(weir_stream_pause(a.stream));
            ok(weir_stream_resume(a.stream));
            peer_send_text(peer, "x");
        }
        until(w, a.voice.size == 10);
        ok(weir_stream_resume(a.stream));
        ok(weir_stream_pause(a.stream));
        peer_send_text(peer, "y");
        turns(w, 10);
        told(w, "a: data 'xxxxxxxxxx'\n");
        ok(weir_stream_resume(a.stream));
        until(w, a.voice.size == 11);
        told(w, "a: data 'y'\n");
        end_it(w, &a, peer);
        told(w, "a: close ABORT 0\n");
    }
}

static void nothing_comes_while_paused(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        int peer = teller_pair(w, &a, "a", tcp, NULL);
        ok(weir_stream_pause(a.stream));
        peer_send_text(peer, "first ");
        turns(w, 5);
        peer_send_text(peer, "second");
        shutdown(peer, SHUT_WR);
        turns(w, 5);
        told(w, "");
        ok(weir_stream_resume(a.stream));
        until(w, a.ends == 1);
        told(w, "a: data 'first second'\n"
                "a: end\n");
        end_it(w, &a, peer);
        told(w, "a: close ABORT 0\n");
    }
}

static void without_on_data_nothing_is_read(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .voice = { .world = w, .name = "a" } };
        int fds[2];
        peer_pair(tcp, fds);
        ok(weir_stream_adopt(w->loop, fds[0], NULL, &a.stream));
        ok(weir_stream_start(a.stream, &deaf_callbacks, &a));
        peer_send_text(fds[1], "to nobody");
        shutdown(fds[1], SHUT_WR);
        turns(w, 10);
        told(w, "");
        assert_int_equal(stream_stats(a.stream).bytes_in, 0);
        end_it(w, &a, fds[1]);
        told(w, "a: close ABORT 0\n");
    }
    counted(w, 0, 0, 0, 0);
}

/* ---- grants --------------------------------------------------------------------------------------------- */

static const weir_stream_options metered = { .size = sizeof metered, .flags = WEIR_STREAM_METERED };

static void grants_are_exact(void **state) {
    world *w = *state;
    static const uint64_t amounts[] = { 1, 2, 1000, 65535, 65536, 65537, 3, 5000 };
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .voice = { .seed = 9 } };
        uint64_t granted = 0;
        test_fill(9, 0, data, sizeof data);
        int peer = teller_pair(w, &a, "a", tcp, &metered);
        peer_send(peer, data, 50000);
        turns(w, 10);
        told(w, ""); /* nothing is granted */
        uint64_t sent = 50000;
        for (size_t i = 0; i < sizeof amounts / sizeof *amounts; i++) {
            granted += amounts[i];
            ok(weir_stream_grant(a.stream, amounts[i]));
            if (sent < granted + 20000) {
                uint64_t more = granted + 20000 - sent;
                peer_send(peer, data + sent, more);
                sent += more;
            }
            until(w, a.voice.size >= granted);
            turns(w, 10);
            assert_int_equal(a.voice.size, granted);
            weir_stream_stats stats = stream_stats(a.stream);
            /* What the kernel may bring beyond it differs by nature (docs/modes.md). */
            assert_in_range(stats.bytes_in, granted, granted + (world_mode() == WEIR_BACKEND_EPOLL ? 0 : 65536));
            assert_int_equal(stats.staged_bytes, stats.bytes_in - granted);
        }
        told(w, "a: data 202614\n");
        ok(weir_stream_grant(a.stream, UINT64_MAX));
        ok(weir_stream_grant(a.stream, UINT64_MAX)); /* saturates */
        until(w, a.voice.size == sent);
        shutdown(peer, SHUT_WR);
        until(w, a.ends == 1);
        told(w, "a: data 20000\n"
                "a: end\n");
        end_it(w, &a, peer);
        told(w, "a: close ABORT 0\n");
    }
}

static void grant_one_more(teller *t, char event, const weir_slice *slice) {
    if (event != 'd')
        return;
    assert_int_equal(slice->size, 1);
    say(t->voice.world, "a: grants 1");
    ok(weir_stream_grant(t->stream, 1));
}

static void grants_inside_the_callback(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = grant_one_more };
        int peer = teller_pair(w, &a, "a", tcp, &metered);
        ok(weir_stream_grant(a.stream, 1));
        peer_send_text(peer, "abc");
        until(w, a.voice.size == 3);
        shutdown(peer, SHUT_WR);
        until(w, a.ends == 1);
        told(w, "a: data 'a'\n"
                "a: grants 1\n"
                "a: data 'b'\n"
                "a: grants 1\n"
                "a: data 'c'\n"
                "a: grants 1\n"
                "a: end\n");
        end_it(w, &a, peer);
        told(w, "a: close ABORT 0\n");
    }
}

static void an_end_wants_a_grant(void **state) {
    world *w = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        teller a = { .hook = NULL };
        int peer = teller_pair(w, &a, "a", tcp, &metered);
        ok(weir_stream_grant(a.stream, 5));
        peer_send_text(peer, "hello");
        shutdown(peer, SHUT_WR);
        until(w, a.voice.size == 5);
        turns(w, 10);
        told(w, "a: data 'hello'\n");
        ok(weir_stream_grant(a.stream, 1));
        until(w, a.ends == 1);
        told(w, "a: end\n");
        end_it(w, &a, peer);
        told(w, "a: close ABORT 0\n");
    }
}

static void a_pause_holds_a_grant(void **state) {
    world *w = *state;
    teller a = { .hook = pause_at_data };
    int peer = teller_pair(w, &a, "a", true, &metered);
    ok(weir_stream_grant(a.stream, 3));
    peer_send_text(peer, "ab");
    until(w, a.voice.size == 2);
    peer_send_text(peer, "cd");
    turns(w, 10);
    told(w, "a: data 'ab'\n");
    ok(weir_stream_resume(a.stream));
    until(w, a.voice.size == 3);
    ok(weir_stream_resume(a.stream));
    turns(w, 10);
    told(w, "a: data 'c'\n");
    end_it(w, &a, peer);
    told(w, "a: close ABORT 0\n");
}

/* ---- slices that are held ------------------------------------------------------------------------------- */

static struct { weir_slice ref, keep, part; } held;

static void hold(teller *t, char event, const weir_slice *slice) {
    (void)t;
    if (event != 'd' || held.ref.size > 0)
        return;
    weir_slice_ref(slice, &held.ref);
    ok(weir_slice_keep(slice, &held.keep));
    ok(weir_slice_sub(slice, 1, 3, &held.part));
    assert_int_equal(weir_slice_sub(slice, slice->size, 1, &held.part), -ERANGE);
}

static void slices_outlive_their_loop(void **state) {
    world *w = *state;
    teller a = { .hook = hold };
    int peer = teller_pair(w, &a, "a", true, NULL);
    peer_send_text(peer, "held for long");
    until(w, a.voice.size == 13);
    peer_send_text(peer, " and more");
    until(w, a.voice.size == 22);
    told(w, "a: data 'held for long and more'\n");
    assert_int_equal(loop_stats(w).bytes_copied, 13); /* small for its buffer: kept by a copy */
    weir_pool *pool = weir_pool_ref(weir_loop_get_pool(w->loop));
    world_close_loop(w);
    told(w, "a: close LOOP 0\n");
    close(peer);
    assert_int_equal(held.ref.size, 13);
    assert_memory_equal(held.ref.data, "held for long", 13);
    assert_memory_equal(held.keep.data, "held for long", 13);
    assert_int_equal(held.part.size, 3);
    assert_memory_equal(held.part.data, "eld", 3);
    weir_slice_unref(&held.ref);
    assert_int_equal(held.ref.size, 0);
    assert_memory_equal(held.part.data, "eld", 3);
    weir_slice_unref(&held.part);
    weir_slice_unref(&held.keep);
    weir_pool_stats stats = { .size = sizeof stats };
    ok(weir_pool_get_stats(pool, &stats));
    assert_int_equal(stats.used_bytes, 0);
    weir_pool_unref(pool);
}

/* ---- memory that is spent ------------------------------------------------------------------------------- */

enum { CROWD = 80, HALF = 500 };

typedef struct member {
    teller t;
    int peer;
    weir_slice parts[8];
    unsigned count;
} member;

static struct {
    member each[CROWD];
    unsigned order[CROWD], done;
    int highest, last;
} crowd;

static void let_go(member *m) {
    while (m->count > 0)
        weir_slice_unref(&m->parts[--m->count]);
}

/* Keeps the first half of a message by reference until the second is there. */
static void gather(teller *t, char event, const weir_slice *slice) {
    member *m = t->userdata;
    if (event == 'd') {
        assert_true(m->count < 8);
        weir_slice_ref(slice, &m->parts[m->count++]);
        if (t->voice.size == 2 * HALF) {
            crowd.done++;
            let_go(m);
        }
    } else if (event == 'c') {
        let_go(m);
    }
}

static void on_pressure(weir_loop *loop, weir_pool *pool, int level, void *userdata) {
    weir_pool_stats stats = { .size = sizeof stats };
    world *w = userdata;
    assert_ptr_equal(loop, w->loop);
    ok(weir_pool_get_stats(pool, &stats));
    assert_int_equal(stats.level, level);
    assert_int_not_equal(level, crowd.last);
    crowd.last = level;
    if (level > crowd.highest)
        crowd.highest = level;
}

static unsigned heard(uint64_t size) {
    unsigned count = 0;
    for (unsigned i = 0; i < CROWD; i++)
        count += crowd.each[i].t.voice.size >= size;
    return count;
}

static void crowd_open(world *w, unsigned buffers, unsigned reserve) {
    const weir_pool_options pool = { .size = sizeof pool,
                                     .budget_bytes = (uint64_t)(buffers + reserve) * PAGE,
                                     .reserve_bytes = (uint64_t)reserve * PAGE,
                                     .buffer_bytes = PAGE,
                                     .window_bytes = 4 * PAGE };
    weir_loop_options options = { .pool = &pool };
    memset(&crowd, 0, sizeof crowd);
    world_reopen(w, &options);
    ok(weir_loop_set_pressure(w->loop, on_pressure, w));
    for (unsigned i = 0; i < CROWD; i++) {
        member *m = &crowd.each[i];
        m->t = (teller){ .voice = { .seed = i + 1, .is_quiet = true }, .hook = gather, .userdata = m };
        m->peer = teller_pair(w, &m->t, "m", true, NULL);
    }
    turns(w, 3);
}

static void crowd_sends(unsigned half) {
    uint8_t bytes[HALF];
    for (unsigned i = 0; i < CROWD; i++) {
        test_fill(i + 1, (uint64_t)half * HALF, bytes, sizeof bytes);
        peer_send(crowd.each[i].peer, bytes, sizeof bytes);
    }
}

static void crowd_close(world *w) {
    for (unsigned i = 0; i < CROWD; i++) {
        teller *t = &crowd.each[i].t;
        ok(weir_stream_abort(t->stream));
        until(w, t->closes == 1);
        assert_int_equal(t->reason, WEIR_CLOSE_ABORT);
        close(crowd.each[i].peer);
    }
    turns(w, 3);
    weir_pool_stats stats = pool_stats(w);
    assert_int_equal(stats.parked_streams, 0);
    assert_int_equal(stats.pinned_bytes, 0);
    assert_int_equal(stats.private_bytes, 0);
    assert_int_equal(stats.level, WEIR_PRESSURE_NONE);
    assert_int_equal(crowd.last, WEIR_PRESSURE_NONE);
}

static void half_messages_complete_though_they_hold_all_memory(void **state) {
    world *w = *state;
    crowd_open(w, 8, CROWD + 8);
    crowd_sends(0);
    until(w, heard(HALF) == CROWD);
    assert_int_equal(crowd.done, 0);
    crowd_sends(1);
    until(w, crowd.done == CROWD);
    assert_int_not_equal(crowd.highest, WEIR_PRESSURE_STUCK);
    assert_true(pool_stats(w).peak_bytes <= pool_stats(w).budget_bytes);
    crowd_close(w);
}

/* Who heard something, in order. (One whose bytes begin at a buffer's end hears twice.) */
static void note_order(teller *t, char event, const weir_slice *slice) {
    member *m = t->userdata;
    if (event == 'd' && t->voice.size == slice->size)
        crowd.order[crowd.done++] = (unsigned)(m - crowd.each);
}

static void spent_memory_comes_back_and_parked_streams_go_on_in_order(void **state) {
    world *w = *state;
    enum { BUFFERS = 4, RESERVE = 8, HOLDERS = BUFFERS + RESERVE };
    uint8_t bytes[HALF];
    crowd_open(w, BUFFERS, RESERVE);
    for (unsigned i = 0; i < CROWD; i++) {
        /* The first fill the memory: each a buffer, since what is left of one is used up. */
        unsigned now = i * 7 % CROWD; /* in an order that is not that of their numbers */
        test_fill(now + 1, 0, bytes, HALF);
        peer_send(crowd.each[now].peer, bytes, HALF);
        until(w, heard(HALF) + pool_stats(w).parked_streams >= i + 1);
    }
    turns(w, 20);
    unsigned had = heard(1);
    assert_in_range(had, HOLDERS, CROWD - 10);
    assert_int_equal(heard(HALF), had); /* each has got all or nothing */
    assert_int_equal(pool_stats(w).parked_streams, CROWD - had);
    assert_int_equal(pool_stats(w).level, WEIR_PRESSURE_STUCK);
    assert_int_equal(crowd.highest, WEIR_PRESSURE_STUCK);
    /* Nobody gets anything before somebody lets go. Then all do, in the order in which they began to wait. (One by one,
       which arms one or two in a turn: Linux 6.1 answers the last one first.) */
    for (unsigned i = 0; i < CROWD; i++)
        crowd.each[i].t.hook = note_order;
    for (unsigned i = 0; i < CROWD; i++) {
        let_go(&crowd.each[i]);
        turns(w, 4);
    }
    until(w, heard(HALF) == CROWD);
    for (unsigned i = had; i < CROWD; i++) {
        unsigned next = i * 7 % CROWD, *heard_of = &crowd.order[i - had];
        if (world_mode() == WEIR_BACKEND_URING_CLASSIC && *heard_of != next && i + 1 < CROWD) {
            assert_int_equal(heard_of[1], next);
            heard_of[1] = *heard_of;
            *heard_of = next;
        }
        assert_int_equal(*heard_of, next);
    }
    until(w, pool_stats(w).level == WEIR_PRESSURE_NONE);
    crowd_sends(1);
    until(w, heard(2 * HALF) == CROWD);
    counted(w, 2 * HALF * CROWD, 0, 0, 0);
    crowd_close(w);
}

static void a_reset_while_parked(void **state) {
    world *w = *state;
    const weir_pool_options pool = {
        .size = sizeof pool, .budget_bytes = 4 * PAGE, .buffer_bytes = PAGE, .window_bytes = PAGE
    };
    weir_loop_options options = { .pool = &pool };
    teller a = { .voice = { .seed = 8 } }, b = { .hook = NULL };
    member m = { .count = 0 };
    test_fill(8, 0, data, sizeof data);
    world_reopen(w, &options);
    a.hook = gather;
    a.userdata = &m;
    int holds = teller_pair(w, &a, "a", true, NULL);
    peer_send(holds, data, 6 * PAGE);
    until(w, pool_stats(w).level == WEIR_PRESSURE_STUCK);
    assert_int_equal(pool_stats(w).parked_streams, 1);
    told(w, "a: data 16384\n");
    int parks = teller_pair(w, &b, "b", true, NULL);
    peer_send_text(parks, "heard late");
    until(w, pool_stats(w).parked_streams == 2);
    peer_reset(parks);
    turns(w, 20);
    told(w, "");
    a.voice.is_quiet = true;
    let_go(&m);
    a.hook = NULL;
    until(w, a.voice.size == 6 * PAGE && b.closes == 1);
    told(w, "b: data 'heard late'\n"
            "b: close ERROR ECONNRESET\n");
    end_it(w, &a, holds);
}

/* ---- urgent bytes --------------------------------------------------------------------------------------- */

static void an_urgent_byte_is_no_part_of_the_stream(void **state) {
    world *w = *state;
    for (int paused = 0; paused <= 1; paused++) {
        teller a = { .hook = NULL };
        int peer = teller_pair(w, &a, "a", true, NULL);
        turns(w, 3);
        if (paused)
            ok(weir_stream_pause(a.stream));
        peer_send_text(peer, "before ");
        assert_int_equal(send(peer, "!", 1, MSG_OOB), 1);
        peer_send_text(peer, "after");
        turns(w, 10);
        ok(weir_stream_resume(a.stream));
        until(w, a.voice.size >= 12);
        assert_int_equal(send(peer, "!", 1, MSG_OOB), 1);
        turns(w, 10);
        shutdown(peer, SHUT_WR);
        until(w, a.ends == 1);
        told(w, "a: data 'before after'\n"
                "a: end\n");
        end_it(w, &a, peer);
        told(w, "a: close ABORT 0\n");
    }
    counted(w, 24, 0, 0, 0);
}

/* ---- descriptors sent along ----------------------------------------------------------------------------- */

static void send_with_descriptor(int fd, const char *text, int descriptor) {
    union {
        struct cmsghdr header;
        char space[CMSG_SPACE(sizeof(int))];
    } control = { .header = {
                      .cmsg_len = CMSG_LEN(sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS } };
    struct iovec vector = { .iov_base = (char *)(uintptr_t)text, .iov_len = strlen(text) };
    const struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control
    };
    memcpy(CMSG_DATA(&control.header), &descriptor, sizeof descriptor);
    assert_int_equal(sendmsg(fd, &message, MSG_NOSIGNAL), vector.iov_len);
}

/* A receive stops at each, and nothing tells that more is there. That no descriptor is left world_close() sees. */
static void descriptors_sent_along_are_dropped_and_hold_nothing_up(void **state) {
    world *w = *state;
    teller a = { .hook = NULL };
    int peer = teller_pair(w, &a, "a", false, NULL);
    turns(w, 3);
    send_with_descriptor(peer, "one ", peer);
    send_with_descriptor(peer, "two ", peer);
    peer_send_text(peer, "three");
    until(w, a.voice.size == 13);
    told(w, "a: data 'one two three'\n");
    end_it(w, &a, peer);
    told(w, "a: close ABORT 0\n");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scenario(a_pause_inside_on_data_holds_at_once),
        scenario(a_pause_and_a_resume_in_one_turn_change_nothing),
        scenario(nothing_comes_while_paused),
        scenario(without_on_data_nothing_is_read),
        scenario(grants_are_exact),
        scenario(grants_inside_the_callback),
        scenario(an_end_wants_a_grant),
        scenario(a_pause_holds_a_grant),
        scenario(slices_outlive_their_loop),
        scenario(half_messages_complete_though_they_hold_all_memory),
        scenario(spent_memory_comes_back_and_parked_streams_go_on_in_order),
        scenario(a_reset_while_parked),
        scenario(an_urgent_byte_is_no_part_of_the_stream),
        scenario(descriptors_sent_along_are_dropped_and_hold_nothing_up),
    };
    return run_world(tests);
}
