/* SPDX-License-Identifier: MIT */

/*
 * Little memory that may be locked, and no descriptor left: before a loop is made, while one accepts, while one dials.
 */

#include "hostile/hostile.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <grp.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/socket.h>

/* ---- locked memory ------------------------------------------------------------------------------------------ */

/* The limit does not bind who may lock what he likes. */
static void become_nobody(void) {
    enum { NOBODY = 65534 };
    if (geteuid() != 0)
        return;
    if (setgroups(0, NULL) != 0 || setgid(NOBODY) != 0 || setuid(NOBODY) != 0)
        child_skips("root cannot become nobody here");
}

static void child_may_lock_64_kib(const void *argument) {
    const uint32_t asked = *(const uint32_t *)argument;
    const struct rlimit limit = { .rlim_cur = 64 << 10, .rlim_max = 64 << 10 };
    place p;
    CHECK_INT(setrlimit(RLIMIT_MEMLOCK, &limit), 0);
    become_nobody();
    int r = place_try(&p, asked);
    if (r == -ENOMEM && (asked == WEIR_BACKEND_URING_INCREMENTAL || asked == WEIR_BACKEND_URING_CLASSIC)) {
        CHECK(strstr(p.reason, "RLIMIT_MEMLOCK") != NULL);
    } else {
        CHECK_INT(r, 0);
        expect_an_echo(&p, "127.0.0.1:0");
    }
    place_close(&p);
}

/*
 * A container's usual limit. Rings of io_uring are charged to it before Linux 5.12, and again in 6.18, where a loop was
 * first refused altogether: the ring itself was made small enough to be had, and then there was nothing left for
 * that of the buffers. Who asks for io_uring may hear that; where weir chooses, there is a loop.
 */
static void locked_memory_of_64_kib_is_enough(void **state) {
    uint32_t asked = backend_under_test();
    (void)state;
    in_a_child(child_may_lock_64_kib, &asked);
}

/* ---- descriptors: a loop ------------------------------------------------------------------------------------ */

static void child_makes_a_loop(const void *argument) {
    const uint32_t *backends = argument;
    int r = -1, spare = 0;
    for (; r != 0; spare++) {
        weir_loop_info info = { .size = sizeof info };
        test_memory memory;
        char reason[WEIR_REASON_SIZE] = "";
        CHECK(spare < 32);
        unsigned fds = test_count_fds();
        test_memory_init(&memory);
        const weir_loop_options options = { .size = sizeof options,
                                            .backend = backends[0],
                                            .allocator = &memory.allocator,
                                            .reason = reason,
                                            .reason_size = sizeof reason };
        weir_loop *loop = NULL;
        leave_descriptors(spare);
        r = weir_loop_new(&options, &loop);
        if (r == 0) {
            CHECK_INT(weir_loop_run(loop), 0); /* with no more than it has */
            CHECK_INT(weir_loop_get_info(loop, &info), 0);
            CHECK_INT(info.backend, backends[1]);
            CHECK_INT(weir_loop_close(loop), 0);
            weir_loop_unref(loop);
        } else {
            CHECK_INT(r, -EMFILE);
            CHECK(loop == NULL);
            if (strstr(reason, "descriptor") == NULL && strstr(reason, "open files") == NULL)
                child_found(reason, 0, 0, __LINE__);
        }
        leave_descriptors(-1);
        CHECK_INT(atomic_load(&memory.live_blocks), 0);
        CHECK_INT(test_count_fds(), fds);
    }
    CHECK(spare > 1);
    expect_a_good_loop(backends[0], backends[1]);
}

/* Also the first loop of a process, which tries what the kernel can do: to be without descriptors must not be taken for
 * its answer, neither now nor later. */
static void a_loop_that_lacks_a_descriptor_says_so(void **state) {
    uint32_t asked = backend_under_test();
    const uint32_t backends[] = { asked, asked != WEIR_BACKEND_AUTO ? asked : undisturbed_backend() };
    (void)state;
    in_a_child(child_makes_a_loop, backends);
}

/* ---- descriptors: accepting --------------------------------------------------------------------------------- */

enum { PEERS = 5, ROOM = 2 };

typedef struct gate {
    weir_listener *listener;
    weir_stream *streams[PEERS];
    unsigned accepted, closed, refused;
} gate;

static void gate_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    ((gate *)userdata)->refused += weir_stream_write_slice(stream, slice) < 0;
}

static void gate_close(weir_stream *stream, int reason, int error, void *userdata) {
    gate *g = userdata;
    (void)reason, (void)error;
    for (int i = 0; i < PEERS; i++)
        if (g->streams[i] == stream)
            g->streams[i] = NULL;
    g->closed++;
}

static const weir_stream_callbacks stream_callbacks = { .size = sizeof stream_callbacks,
                                                        .on_data = gate_data,
                                                        .on_close = gate_close };

static void gate_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    gate *g = userdata;
    (void)listener;
    CHECK(g->accepted < PEERS);
    g->streams[g->accepted++] = stream;
    CHECK_INT(weir_stream_start(stream, &stream_callbacks, g), 0);
}

static const weir_listener_callbacks gate_callbacks = { .size = sizeof gate_callbacks, .on_accept = gate_accept };

static weir_loop_stats stats_of(const place *p) {
    weir_loop_stats stats = { .size = sizeof stats };
    CHECK_INT(weir_loop_get_stats(p->loop, &stats), 0);
    return stats;
}

/* Sockets that are there already. */
static void connect_to(const gate *g, const int peers[PEERS]) {
    char text[WEIR_ADDRESS_SIZE];
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    CHECK(weir_listener_get_address(g->listener, text, sizeof text) > 0);
    in.sin_port = htons((uint16_t)strtoul(strrchr(text, ':') + 1, NULL, 10));
    for (int i = 0; i < PEERS; i++) {
        CHECK_INT(connect(peers[i], (struct sockaddr *)&in, sizeof in), 0);
        CHECK_INT(fcntl(peers[i], F_SETFL, O_NONBLOCK), 0);
    }
}

/* A byte there and back. */
static void exchange(place *p, int peer) {
    char byte = 'a';
    CHECK_INT(send(peer, &byte, 1, MSG_NOSIGNAL), 1);
    byte = 'b';
    TURN_UNTIL(p, recv(peer, &byte, 1, 0) == 1);
    CHECK_INT(byte, 'a');
}

static void child_accepts(const void *argument) {
    gate g = { 0 };
    int peers[PEERS];
    place p;
    CHECK_INT(place_try(&p, *(const uint32_t *)argument), 0);
    CHECK_INT(weir_listener_open(p.loop, "127.0.0.1:0", NULL, &g.listener), 0);
    for (int i = 0; i < PEERS; i++)
        CHECK((peers[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)) >= 0);
    leave_descriptors(ROOM); /* now: an accept of io_uring keeps to the limit that there was when it was started */
    CHECK_INT(weir_listener_start(g.listener, &gate_callbacks, &g), 0);
    connect_to(&g, peers);
    TURN_UNTIL(&p, g.accepted == ROOM && stats_of(&p).accept_stalls > 0);
    /* It rests: turns end by their timeouts, or at its next try, which is not soon. */
    uint64_t before = stats_of(&p).completions;
    for (int i = 0; i < 10; i++)
        CHECK_INT(weir_loop_run_once(p.loop, 5 * MS), 1);
    CHECK(stats_of(&p).completions - before <= 5);
    CHECK_INT(g.accepted, ROOM);
    for (int i = 0; i < ROOM; i++)
        exchange(&p, peers[i]); /* those that are in are served */
    /* A stream's end is the next one's beginning. */
    for (unsigned wanted = ROOM + 1; wanted <= ROOM + 2; wanted++) {
        CHECK_INT(weir_stream_abort(g.streams[wanted - ROOM - 1]), 0);
        TURN_UNTIL(&p, g.accepted == wanted);
        exchange(&p, peers[wanted - 1]);
    }
    /* And descriptors that somebody else gives back are found, in time. */
    for (int i = 0; i < 3; i++)
        CHECK(weir_loop_run_once(p.loop, 5 * MS) >= 0);
    CHECK_INT(g.accepted, PEERS - 1);
    leave_descriptors(-1);
    TURN_UNTIL(&p, g.accepted == PEERS);
    exchange(&p, peers[PEERS - 1]);
    CHECK_INT(g.refused, 0);
    for (int i = 0; i < PEERS; i++)
        close(peers[i]);
    TURN_UNTIL(&p, g.closed == PEERS);
    place_close(&p);
}

static void a_listener_rests_without_descriptors_and_recovers(void **state) {
    uint32_t asked = backend_under_test();
    (void)state;
    in_a_child(child_accepts, &asked);
}

/* ---- descriptors: dialling ---------------------------------------------------------------------------------- */

static void child_dials(const void *argument) {
    const char *at[] = { "127.0.0.1:1", "[::1]:1", "unix:@weir-nobody" };
    place p;
    CHECK_INT(place_try(&p, *(const uint32_t *)argument), 0);
    unsigned fds = test_count_fds();
    uint64_t blocks = atomic_load(&p.memory.live_blocks);
    leave_descriptors(0);
    for (size_t i = 0; i < COUNT(at); i++) {
        weir_stream *stream = NULL;
        weir_listener *listener = NULL;
        CHECK_INT(weir_stream_dial(p.loop, at[i], NULL, &stream), -EMFILE);
        CHECK_INT(weir_listener_open(p.loop, at[i], NULL, &listener), -EMFILE);
        CHECK(stream == NULL && listener == NULL);
    }
    CHECK_INT(stats_of(&p).streams_open + stats_of(&p).listeners_open, 0);
    CHECK_INT(weir_loop_run(p.loop), 0); /* nothing is open */
    leave_descriptors(-1);
    CHECK_INT(atomic_load(&p.memory.live_blocks), blocks);
    CHECK_INT(test_count_fds(), fds);
    /* A listener, what it accepts and what is dialled: three are enough for an echo. */
    leave_descriptors(3);
    expect_an_echo(&p, "127.0.0.1:0");
    leave_descriptors(-1);
    place_close(&p);
}

static void dialling_without_descriptors_changes_nothing(void **state) {
    uint32_t asked = backend_under_test();
    (void)state;
    in_a_child(child_dials, &asked);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(locked_memory_of_64_kib_is_enough),
        cmocka_unit_test(a_loop_that_lacks_a_descriptor_says_so),
        cmocka_unit_test(a_listener_rests_without_descriptors_and_recovers),
        cmocka_unit_test(dialling_without_descriptors_changes_nothing),
    };
    return cmocka_run_group_tests_name("limits", tests, NULL, NULL);
}
