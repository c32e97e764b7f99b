/* SPDX-License-Identifier: MIT */

/*
 * The kernel moves a request that it woke often in vain to a thread of its own. For a receive into a shared buffer
 * that is worse than the thread: it then takes the whole rest of the buffer for what it asked for, and the next
 * stream's bytes are not where they are looked for. For a send to a slow reader it is a thread a stream. A peer can
 * bring about both from outside; so neither may happen: this process has one thread, and keeps one.
 */

#include <netinet/in.h>
#include <sys/resource.h>

#include "kernel/scribe.h"

/* The kernel's workers are threads of this process, and stay for some seconds when they are done. */
static void expect_no_worker(const test_fixture *f) {
    assert_int_equal(test_count_threads(), f->threads);
}

/* ---- urgent bytes: wake-ups without data ----------------------------------------------------------------------- */

enum { NEIGHBOURS = 12, URGENT = 200 };

static void forget_wrong_bytes(scribe *s, char event, const weir_slice *slice) {
    (void)event, (void)slice;
    s->wrong = -1; /* urgent bytes may come among the others */
}

static void urgent_bytes_on_one_stream_do_no_harm_to_its_neighbours(void **state) {
    (void)state;
    const weir_pool_options pool = {
        .size = sizeof pool, .buffer_bytes = 16 << 10, .budget_bytes = 1 << 20, .window_bytes = 16 << 10
    };
    test_fixture f;
    scribe victim = { .hook = forget_wrong_bytes }, s[NEIGHBOURS] = { 0 };
    int fds[2], peers[NEIGHBOURS];
    uint64_t sent[NEIGHBOURS] = { 0 };
    test_open(&f, NULL, &pool);
    test_pair(true, fds);
    int attacker = fds[0];
    scribe_init(&victim, 0);
    scribe_adopt(&f, &victim, fds[1], NULL);
    for (unsigned n = 0; n < NEIGHBOURS; n++) {
        test_pair(n % 2 == 0, fds);
        peers[n] = fds[0];
        scribe_init(&s[n], n + 1);
        scribe_adopt(&f, &s[n], fds[1], NULL);
    }
    scribe_turns(&f, 5);
    for (unsigned i = 0; i < URGENT; i++) { /* one at a time, so that each wakes the receive */
        assert_int_equal(send(attacker, "!", 1, MSG_OOB | MSG_NOSIGNAL), 1);
        scribe_turns(&f, 2);
        for (unsigned n = 0; n < NEIGHBOURS; n++) {
            size_t size = 40 + 7 * n + i % 13;
            assert_int_equal(peer_send(peers[n], n + 1, sent[n], size), 0);
            sent[n] += size;
        }
        scribe_turns(&f, 1);
        expect_no_worker(&f);
    }
    /* After the attack the victim's own bytes go into the middle of its neighbours', which is where it would show. */
    assert_int_equal(peer_send(attacker, 0, 0, 40), 0);
    scribe_turns(&f, 3);
    for (unsigned n = 0; n < NEIGHBOURS; n++) {
        assert_int_equal(peer_send(peers[n], n + 1, sent[n], 3000), 0);
        RUN_UNTIL(&f, s[n].received == sent[n] + 3000);
        assert_int_equal(s[n].wrong, -1);
    }
    RUN_UNTIL(&f, victim.received >= 40);
    expect_no_worker(&f);
    for (unsigned n = 0; n < NEIGHBOURS; n++)
        close(peers[n]);
    close(attacker);
    test_close(&f);
}

/*
 * A soak had worker threads, for ever: one for each peer that had sent an urgent byte and then did not read. What keeps
 * the kernel's poll of a waiting send awake is the urgent byte, which nobody reads, and after 128 times it gave the send
 * to a thread.
 */
enum { URGENT_PEERS = 20, UNREAD = 8 << 20 };

static void peers_that_sent_an_urgent_byte_and_do_not_read_cost_no_thread(void **state) {
    (void)state;
    static scribe s[URGENT_PEERS];
    static loan loans[URGENT_PEERS];
    test_fixture f;
    int peers[URGENT_PEERS];
    uint8_t *bytes = pattern_new(1, UNREAD);
    test_open(&f, NULL, NULL);
    for (unsigned n = 0; n < URGENT_PEERS; n++) {
        int fds[2];
        test_pair(true, fds);
        peers[n] = fds[1];
        assert_int_equal(send(fds[1], "!", 1, MSG_OOB), 1);
        scribe_init(&s[n], 0);
        scribe_adopt(&f, &s[n], fds[0], NULL);
        test_ok(weir_stream_pause(s[n].stream)); /* as an echo does whose peer does not read */
        loans[n] = (loan){ .data = bytes, .size = UNREAD };
        assert_true(weir_stream_write_external(s[n].stream, bytes, UNREAD, loan_release, &loans[n]) >= 0);
    }
    for (int turn = 0; turn < 20; turn++) {
        scribe_turn(&f, 5 * MS);
        expect_no_worker(&f);
    }
    for (unsigned n = 0; n < URGENT_PEERS; n++) {
        assert_int_equal(loans[n].releases, 0); /* it is held back */
        close(peers[n]);
    }
    test_close(&f);
    free(bytes);
}

/* ---- slow readers ------------------------------------------------------------------------------------------------ */

/* With a small send buffer the kernel takes little of a queue. Otherwise it takes some MiB, and the queue is longer. */
typedef struct slowness {
    int send_bytes, receive_bytes; /* SO_SNDBUF, SO_RCVBUF; 0: as it comes */
    unsigned readers;
    size_t queued;
    unsigned trickles, rounds; /* so many readers, so many times */
    size_t step;               /* read so much, before all read all */
} slowness;

enum { READERS = TIMES(1000, 100) };

static slowness small_send_buffers = { 16 << 10, 0, READERS, 1 << 20, 8, 50, 7000 };
static slowness usual_send_buffers = { 0, 16 << 10, TIMES(100, 20), 6 << 20, 8, 50, 7000 };
/* With the smallest buffers there are, a send of some 100 KiB is woken more than 128 times, which is when the kernel
 * has enough of it. */
static slowness many_wakes = { 1, 1, 8, 1 << 20, 8, TIMES(1000, 600), 700 };

typedef struct hall {
    test_fixture f;
    weir_listener *listener;
    scribe s[READERS];
    loan loans[READERS];
    int fds[READERS];
    size_t received[READERS];
    unsigned readers, accepted;
    size_t queued;
    uint8_t *bytes;
} hall;

static void seat(weir_listener *listener, weir_stream *stream, void *userdata) {
    hall *h = userdata;
    (void)listener;
    unsigned i = h->accepted++;
    h->loans[i] = (loan){ .data = h->bytes, .size = h->queued };
    scribe_init(&h->s[i], 0);
    scribe_start(&h->s[i], stream);
    assert_true(weir_stream_write_external(stream, h->bytes, h->queued, loan_release, &h->loans[i]) >= 0);
    test_ok(weir_stream_shutdown(stream));
}

static const weir_listener_callbacks hall_callbacks = { .size = sizeof hall_callbacks, .on_accept = seat };

/* A listener whose streams inherit a small send buffer, or readers with a small one: the kernel takes little. */
static void hall_open(hall *h, const slowness *how) {
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    struct rlimit limit;
    memset(h, 0, sizeof *h);
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = limit.rlim_max;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    h->queued = how->queued;
    h->readers = how->readers;
    if (limit.rlim_cur < 2 * h->readers + 100)
        h->readers = (unsigned)(limit.rlim_cur - 100) / 2;
    h->bytes = pattern_new(1, h->queued);
    test_open(&h->f, NULL, NULL);
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (how->send_bytes > 0)
        assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &how->send_bytes, sizeof how->send_bytes), 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(listen(fd, 4096), 0);
    socklen_t length = sizeof in;
    assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &length), 0);
    test_ok(weir_listener_adopt(h->f.loop, fd, NULL, &h->listener));
    test_ok(weir_listener_start(h->listener, &hall_callbacks, h));
    for (unsigned i = 0; i < h->readers; i++) {
        h->fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        if (how->receive_bytes > 0) /* before it connects: a window that shrinks later is probed, not filled */
            assert_int_equal(
                setsockopt(h->fds[i], SOL_SOCKET, SO_RCVBUF, &how->receive_bytes, sizeof how->receive_bytes), 0);
        assert_int_equal(connect(h->fds[i], (struct sockaddr *)&in, sizeof in), 0);
        if (i % 50 == 49)
            scribe_turn(&h->f, 0);
    }
    RUN_UNTIL(&h->f, h->accepted == h->readers);
}

/* Return: it is at the end. */
static bool reader_reads(hall *h, unsigned i, size_t most) {
    static uint8_t bytes[128 << 10];
    for (;;) {
        ssize_t count = recv(h->fds[i], bytes, most < sizeof bytes ? most : sizeof bytes, MSG_DONTWAIT);
        if (count < 0)
            assert_int_equal(errno, EAGAIN);
        if (count <= 0)
            return count == 0;
        assert_true(h->received[i] + (size_t)count <= h->queued);
        assert_memory_equal(bytes, h->bytes + h->received[i], (size_t)count);
        h->received[i] += (size_t)count;
        if (most < sizeof bytes)
            return false;
    }
}

static void slow_readers_cost_no_thread_and_get_all_their_bytes(void **state) {
    static hall h;
    const slowness *how = *state;
    hall_open(&h, how);
    scribe_turns(&h.f, 20);
    for (unsigned i = 0; i < h.readers; i++)
        assert_int_equal(h.loans[i].releases, 0); /* every one of them is held back */
    expect_no_worker(&h.f);
    for (unsigned round = 0; round < how->rounds; round++) {
        for (unsigned i = 0; i < how->trickles; i++)
            (void)reader_reads(&h, i, how->step);
        scribe_turn(&h.f, 0);
        if (round % 16 == 0)
            expect_no_worker(&h.f);
    }
    expect_no_worker(&h.f);
    for (unsigned i = 0; i < h.readers; i++) { /* the rest need not take as long */
        const int room = 1 << 20, fd = weir_stream_get_fd(h.s[i].stream);
        assert_int_equal(setsockopt(h.fds[i], SOL_SOCKET, SO_RCVBUF, &room, sizeof room), 0);
        assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
    }
    bool is_over[READERS] = { false };
    int64_t deadline = test_now_ns() + PATIENCE_S * INT64_C(1000000000);
    for (unsigned over = 0; over < h.readers;) {
        for (unsigned i = 0; i < h.readers; i++) {
            if (!is_over[i] && reader_reads(&h, i, SIZE_MAX))
                over += is_over[i] = true;
        }
        assert_true(weir_loop_run_once(h.f.loop, 0) >= 0);
        assert_true(test_now_ns() < deadline);
    }
    expect_no_worker(&h.f);
    for (unsigned i = 0; i < h.readers; i++) {
        assert_int_equal(h.received[i], h.queued);
        assert_int_equal(h.loans[i].releases, 1);
        close(h.fds[i]);
    }
    test_close(&h.f);
    free(h.bytes);
}

#define WITH(which)                                                                 \
    {                                                                               \
        "slow_readers_cost_no_thread_and_get_all_their_bytes_with_" #which,         \
            slow_readers_cost_no_thread_and_get_all_their_bytes, NULL, NULL, &which \
    }

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(urgent_bytes_on_one_stream_do_no_harm_to_its_neighbours),
        cmocka_unit_test(peers_that_sent_an_urgent_byte_and_do_not_read_cost_no_thread),
        WITH(usual_send_buffers),
        WITH(small_send_buffers),
        WITH(many_wakes),
    };
    return cmocka_run_group_tests_name("workers", tests, NULL, NULL);
}
