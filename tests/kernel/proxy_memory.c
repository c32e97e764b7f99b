/* SPDX-License-Identifier: MIT */

/*
 * What a proxy is for, and what it dies of: a client that sends as fast as it can, to a server that reads nothing at all,
 * then slowly, and in the end all that there is: four gigabytes, where nothing slows the test itself down. What the proxy
 * holds of them is bounded all the time, in its own words and in the system's, and its other connections do not notice.
 */

#include "kernel/scribe.h"

enum {
    ECHOES = 10,
    PIECE = 256 << 10,
    SLOWLY = 16 << 10, /* that the reader takes in a turn */
    BUDGET = 16 << 20,
    /* What is not in the budget: rings, queues, the allocator's own, and what this program touches first. */
    BESIDES = 8 << 20
};

static uint64_t offered;

typedef struct proxy {
    test_fixture f;
    weir_stream *client, *server;
    int sender, reader;
    uint64_t sent, read, resident;
    struct {
        int peer;
        bool is_waiting;
        unsigned rounds;
    } echoes[ECHOES];
} proxy;

static const weir_stream_callbacks silent = { .size = sizeof silent };

/* VmRSS of this process. */
static uint64_t resident(void) {
    char line[256];
    unsigned long kib = 0;
    FILE *status = fopen("/proc/self/status", "re");
    assert_non_null(status);
    while (fgets(line, sizeof line, status) != NULL)
        if (sscanf(line, "VmRSS: %lu kB", &kib) == 1)
            break;
    fclose(status);
    assert_true(kib > 0);
    return (uint64_t)kib << 10;
}

static int piped(proxy *p, weir_stream **ret_stream) {
    int fds[2];
    test_pair(true, fds);
    test_ok(weir_stream_adopt(p->f.loop, fds[0], NULL, ret_stream));
    test_ok(weir_stream_start(*ret_stream, &silent, NULL));
    return fds[1];
}

static void proxy_open(proxy *p) {
    const weir_pool_options pool = { .size = sizeof pool, .budget_bytes = BUDGET };
    memset(p, 0, sizeof *p);
    p->resident = resident();
    test_open(&p->f, NULL, &pool);
    p->sender = piped(p, &p->client);
    p->reader = piped(p, &p->server);
    test_ok(weir_stream_pipe_both(p->client, p->server));
    for (int i = 0; i < ECHOES; i++) {
        weir_stream *stream;
        p->echoes[i].peer = piped(p, &stream);
        test_ok(weir_stream_pipe(stream, stream));
    }
    p->f.fds += 2 + ECHOES;
}

static void proxy_close(proxy *p) {
    test_close(&p->f);
    for (int i = 0; i < ECHOES; i++)
        close(p->echoes[i].peer);
    close(p->sender);
    close(p->reader);
}

/* The sender sends what it can; what it offers is known by its position. */
static void offer(proxy *p) {
    static uint8_t bytes[PIECE];
    while (p->sent < offered) {
        size_t size = offered - p->sent < PIECE ? (size_t)(offered - p->sent) : PIECE;
        test_fill(1, p->sent, bytes, size);
        ssize_t n = send(p->sender, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n <= 0)
            return;
        p->sent += (uint64_t)n;
    }
}

/* Return: there may be more. */
static bool read_some(proxy *p, size_t size) {
    static uint8_t bytes[PIECE];
    ssize_t n = recv(p->reader, bytes, size, MSG_DONTWAIT);
    if (n <= 0)
        return false;
    assert_int_equal(test_differs(1, p->read, bytes, (size_t)n), -1);
    p->read += (uint64_t)n;
    return true;
}

static void talk(proxy *p) {
    for (int i = 0; i < ECHOES; i++) {
        char byte = 0;
        if (!p->echoes[i].is_waiting)
            p->echoes[i].is_waiting = send(p->echoes[i].peer, "e", 1, MSG_DONTWAIT | MSG_NOSIGNAL) == 1;
        else if (recv(p->echoes[i].peer, &byte, 1, MSG_DONTWAIT) == 1) {
            assert_int_equal(byte, 'e');
            p->echoes[i].is_waiting = false;
            p->echoes[i].rounds++;
        }
    }
}

/* Each echo has gone to and fro so often since the last time. */
static void echoes_have_moved(proxy *p, unsigned rounds) {
    for (int i = 0; i < ECHOES; i++) {
        assert_true(p->echoes[i].rounds >= rounds);
        p->echoes[i].rounds = 0;
    }
}

static void is_bounded(const proxy *p) {
    weir_stream_stats client = { .size = sizeof client }, server = { .size = sizeof server };
    weir_pool_stats pool = test_pool_stats(&p->f);
    test_ok(weir_stream_get_stats(p->client, &client));
    test_ok(weir_stream_get_stats(p->server, &server));
    assert_true(pool.used_bytes <= BUDGET);
    assert_true(pool.level < WEIR_PRESSURE_STUCK); /* who waits for a buffer does so for a moment */
    assert_true(server.queue_peak_bytes <= (1 << 20) + (64 << 10)); /* the high mark and a buffer */
    assert_true(client.staged_bytes <= 128 << 10);                  /* what was on its way when that was full */
    if (!SANITIZED)                                                 /* which have memory of their own */
        assert_true(resident() <= p->resident + BUDGET + BESIDES);
}

static void turns_for_ms(proxy *p, int64_t duration_ms, bool reads) {
    int64_t end = test_now_ns() + duration_ms * MS;
    for (unsigned turn = 0; p->read < offered && test_now_ns() < end; turn++) {
        offer(p);
        if (reads)
            (void)read_some(p, SLOWLY);
        talk(p);
        scribe_turn(&p->f, 100000);
        if (turn % 64 == 0)
            is_bounded(p);
    }
    is_bounded(p);
}

/* All that is left is read as it comes, and then the end. Return: in how many turns. */
static unsigned turns_to_the_end(proxy *p) {
    bool is_shut = false;
    alarm(PATIENCE_S * 3);
    char byte;
    for (unsigned turn = 0;; turn++) {
        offer(p);
        if (p->sent == offered && !is_shut)
            is_shut = shutdown(p->sender, SHUT_WR) == 0;
        for (int pieces = 0; pieces < 16 && read_some(p, PIECE); pieces++)
            ;
        talk(p);
        if (p->read == offered && is_shut && recv(p->reader, &byte, 1, MSG_DONTWAIT) == 0) {
            alarm(0);
            return turn;
        }
        scribe_turn(&p->f, 100000);
        if (turn % 64 == 0)
            is_bounded(p);
    }
}

static void a_fast_sender_and_a_slow_reader_hold_no_memory(void **state) {
    (void)state;
    static proxy p;
    const char *mode = getenv("WEIR_TEST_MODE"); /* once is enough */
    bool is_main = mode == NULL || strcmp(mode, "auto") == 0;
    offered = is_main ? TIMES(UINT64_C(4) << 30, 128 << 20) : TIMES(512 << 20, 128 << 20);
    proxy_open(&p);
    turns_for_ms(&p, 1000, false);
    uint64_t held = p.sent; /* by sockets and by the proxy, and no more of it comes */
    assert_true(held > 1 << 20);
    assert_int_equal(p.read, 0);
    echoes_have_moved(&p, 20);
    turns_for_ms(&p, 200, false);
    assert_int_equal(p.sent, held);
    echoes_have_moved(&p, 2);
    turns_for_ms(&p, 5000, true);
    assert_true(p.read > TIMES(1 << 20, 64 << 10));
    assert_true(p.sent - p.read <= held + (8 << 20)); /* the reader is who sets the pace */
    echoes_have_moved(&p, 100);
    unsigned turns = turns_to_the_end(&p);
    is_bounded(&p);
    assert_int_equal(p.read, offered);
    echoes_have_moved(&p, turns / 16);
    proxy_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_fast_sender_and_a_slow_reader_hold_no_memory),
    };
    return cmocka_run_group_tests_name("proxy-memory", tests, first_thread, NULL);
}
