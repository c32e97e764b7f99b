/* SPDX-License-Identifier: MIT */

/* Listeners at their limits: no descriptors, too many streams, a pause, a close over connections that the kernel has
 * accepted and nobody has seen; and the ways to come to one: a shared port, a path, an adopted socket. */

#include <fcntl.h>
#include <netinet/in.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/un.h>

#include "kernel/scribe.h"

enum { MOST = 64 };

/* A listener that keeps what it accepts, or gives it to scribes. */
typedef struct gate {
    test_fixture f;
    weir_listener *listener;
    weir_stream *streams[MOST];
    unsigned accepted, closes;
    int error;
    unsigned pause_after; /* accepted so many: pause */
    int clients[MOST];
    unsigned client_count;
} gate;

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    gate *g = userdata;
    assert_true(g->accepted < MOST);
    g->streams[g->accepted++] = stream;
    if (g->accepted == g->pause_after)
        test_ok(weir_listener_pause(listener));
}

static void on_close(weir_listener *listener, int error, void *userdata) {
    gate *g = userdata;
    assert_ptr_equal(listener, g->listener);
    g->listener = NULL;
    g->closes++;
    g->error = error;
}

static const weir_listener_callbacks callbacks = { .size = sizeof callbacks,
                                                   .on_accept = on_accept,
                                                   .on_close = on_close };

static void gate_open(gate *g, const char *address, const weir_listener_options *options,
                      const weir_loop_options *loop) {
    weir_loop_options copy = loop != NULL ? *loop : (weir_loop_options){ 0 };
    memset(g, 0, sizeof *g);
    test_open_options(&g->f, NULL, &copy);
    test_ok(weir_listener_open(g->f.loop, address, options, &g->listener));
}

static void gate_start(gate *g) {
    test_ok(weir_listener_start(g->listener, &callbacks, g));
}

/* A client whose first byte is its number. */
static int gate_connect(gate *g) {
    int fd = test_connect(g->listener);
    uint8_t number = (uint8_t)g->client_count;
    assert_int_equal(send(fd, &number, 1, MSG_NOSIGNAL), 1);
    g->clients[g->client_count++] = fd;
    return fd;
}

static void gate_close(gate *g) {
    for (unsigned i = 0; i < g->client_count; i++)
        if (g->clients[i] >= 0)
            close(g->clients[i]);
    test_close(&g->f);
}

/* Whose is it? Taken out of the stream, which is not started. */
static uint8_t number_of(weir_stream *stream) {
    uint8_t number = 255;
    assert_int_equal(recv(weir_stream_get_fd(stream), &number, 1, MSG_PEEK), 1);
    return number;
}

static bool client_is_over(int fd) {
    peer p;
    peer_init(&p, fd, 0);
    return peer_is_over(&p);
}

/* ---- no descriptors ------------------------------------------------------------------------------------------- */

typedef struct famine {
    int fds[64];
    unsigned count;
    struct rlimit before;
} famine;

/* From here on a new descriptor cannot be had. */
static void famine_begin(famine *x) {
    struct rlimit limit;
    x->count = 0;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &x->before), 0);
    int highest = fcntl(0, F_DUPFD_CLOEXEC, 0);
    assert_true(highest >= 0);
    x->fds[x->count++] = highest;
    limit = x->before;
    limit.rlim_cur = (rlim_t)highest + 8;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
    int fd;
    while ((fd = fcntl(0, F_DUPFD_CLOEXEC, 0)) >= 0) {
        assert_true(x->count < 64);
        x->fds[x->count++] = fd;
    }
    assert_int_equal(errno, EMFILE);
}

static void famine_end(famine *x) {
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &x->before), 0);
    while (x->count > 0)
        close(x->fds[--x->count]);
}

static void out_of_descriptors_it_rests_and_goes_on_when_the_loop_closes_one(void **state) {
    (void)state;
    gate g;
    famine x;
    scribe s = { 0 };
    int fds[2];
    gate_open(&g, "127.0.0.1:0", NULL, NULL);
    test_pair(false, fds);
    scribe_init(&s, 0);
    scribe_adopt(&g.f, &s, fds[1], NULL);
    gate_start(&g);
    for (int i = 0; i < 3; i++)
        gate_connect(&g);
    famine_begin(&x);
    RUN_UNTIL(&g.f, test_loop_stats(&g.f).accept_stalls > 0);
    scribe_turns(&g.f, 5);
    assert_int_equal(g.accepted, 0);
    assert_int_equal(g.closes, 0);
    test_ok(weir_stream_abort(s.stream)); /* one descriptor is free now, and one connection comes in */
    RUN_UNTIL(&g.f, g.accepted == 1);
    RUN_UNTIL(&g.f, test_loop_stats(&g.f).accept_stalls > 1);
    assert_int_equal(g.accepted, 1);
    famine_end(&x);
    RUN_UNTIL(&g.f, g.accepted == 3);
    for (uint8_t i = 0; i < 3; i++)
        assert_int_equal(number_of(g.streams[i]), i);
    close(fds[0]);
    gate_close(&g);
}

/* What others close the kernel does not tell, so it is tried again, ten times a second. */
static void out_of_descriptors_it_goes_on_when_somebody_else_closes_one(void **state) {
    (void)state;
    gate g;
    famine x;
    gate_open(&g, "127.0.0.1:0", NULL, NULL);
    gate_start(&g);
    gate_connect(&g);
    famine_begin(&x);
    RUN_UNTIL(&g.f, test_loop_stats(&g.f).accept_stalls > 2); /* it has tried, and does not spin */
    assert_true(test_loop_stats(&g.f).turns < 1000);
    assert_int_equal(g.accepted, 0);
    close(x.fds[--x.count]);
    RUN_UNTIL(&g.f, g.accepted == 1);
    famine_end(&x);
    gate_close(&g);
}

static void out_of_descriptors_it_can_be_closed(void **state) {
    (void)state;
    gate g;
    famine x;
    gate_open(&g, "127.0.0.1:0", NULL, NULL);
    gate_start(&g);
    gate_connect(&g);
    famine_begin(&x);
    RUN_UNTIL(&g.f, test_loop_stats(&g.f).accept_stalls > 0);
    test_ok(weir_listener_close(g.listener));
    RUN_UNTIL(&g.f, g.closes == 1);
    assert_int_equal(g.error, 0);
    famine_end(&x);
    gate_close(&g);
}

/* ---- pausing ---------------------------------------------------------------------------------------------------- */

static void connections_held_by_a_pause_come_in_order_after_it(void **state) {
    (void)state;
    enum { CLIENTS = 20 };
    gate g;
    gate_open(&g, "127.0.0.1:0", NULL, NULL);
    g.pause_after = 1;
    gate_start(&g);
    scribe_turns(&g.f, 3);
    for (int i = 0; i < CLIENTS;
         i++) /* all of them are there when the loop looks: it holds some, the kernel others */
        gate_connect(&g);
    RUN_UNTIL(&g.f, g.accepted == 1);
    scribe_turns(&g.f, 10);
    assert_int_equal(g.accepted, 1);
    test_ok(weir_listener_resume(g.listener));
    RUN_UNTIL(&g.f, g.accepted == CLIENTS);
    for (uint8_t i = 0; i < CLIENTS; i++)
        assert_int_equal(number_of(g.streams[i]), i);
    gate_close(&g);
}

static void a_pause_in_the_middle_of_the_held_ones_holds_the_rest(void **state) {
    (void)state;
    enum { CLIENTS = 12 };
    gate g;
    gate_open(&g, "127.0.0.1:0", NULL, NULL);
    gate_start(&g);
    scribe_turns(&g.f, 3);
    for (int i = 0; i < CLIENTS; i++)
        gate_connect(&g);
    for (unsigned i = 1; i <= CLIENTS; i += 3) {
        g.pause_after = i;
        test_ok(weir_listener_resume(g.listener));
        RUN_UNTIL(&g.f, g.accepted == i);
        scribe_turns(&g.f, 5);
        assert_int_equal(g.accepted, i);
    }
    g.pause_after = 0;
    test_ok(weir_listener_resume(g.listener));
    RUN_UNTIL(&g.f, g.accepted == CLIENTS);
    for (uint8_t i = 0; i < CLIENTS; i++)
        assert_int_equal(number_of(g.streams[i]), i);
    gate_close(&g);
}

/* ---- limits ------------------------------------------------------------------------------------------------------- */

static void at_its_own_limit_it_rests_until_a_stream_ends(void **state) {
    (void)state;
    const weir_listener_options options = { .size = sizeof options, .max_streams = 2 };
    gate g;
    gate_open(&g, "127.0.0.1:0", &options, NULL);
    gate_start(&g);
    for (int i = 0; i < 6; i++)
        gate_connect(&g);
    RUN_UNTIL(&g.f, g.accepted == 2);
    scribe_turns(&g.f, 10);
    assert_int_equal(g.accepted, 2);
    test_ok(weir_stream_abort(g.streams[0]));
    RUN_UNTIL(&g.f, g.accepted == 3);
    int fd;
    test_ok(weir_stream_detach(g.streams[1], &fd)); /* it is no stream of the listener's any more */
    close(fd);
    RUN_UNTIL(&g.f, g.accepted == 4);
    scribe_turns(&g.f, 10);
    assert_int_equal(g.accepted, 4);
    for (uint8_t i = 2; i < 4; i++)
        assert_int_equal(number_of(g.streams[i]), i);
    gate_close(&g);
}

/*
 * The loop's limit was looked at when a connection was accepted and the listener was not settled then: what came on
 * top was held, and when a stream ended nobody remembered it.
 */
static void at_the_loops_limit_it_rests_until_a_stream_ends(void **state) {
    (void)state;
    const weir_loop_options loop = { .max_streams = 2 };
    gate g;
    gate_open(&g, "127.0.0.1:0", NULL, &loop);
    gate_start(&g);
    scribe_turns(&g.f, 3);
    for (int i = 0; i < 5; i++)
        gate_connect(&g);
    RUN_UNTIL(&g.f, g.accepted == 2);
    scribe_turns(&g.f, 10);
    assert_int_equal(g.accepted, 2);
    for (unsigned i = 0; i < 3; i++) {
        test_ok(weir_stream_abort(g.streams[i]));
        RUN_UNTIL(&g.f, g.accepted == 3 + i);
        scribe_turns(&g.f, 5);
        assert_int_equal(g.accepted, 3 + i);
    }
    for (uint8_t i = 3; i < 5; i++)
        assert_int_equal(number_of(g.streams[i]), i);
    gate_close(&g);
}

/* Nor may it take in connections for which there is no place: they would fill the process with descriptors. */
static void at_the_loops_limit_what_is_held_is_bounded(void **state) {
    (void)state;
    enum { LIMIT = 2, CLIENTS = 40 };
    const weir_loop_options loop = { .max_streams = LIMIT };
    gate g;
    gate_open(&g, "127.0.0.1:0", NULL, &loop);
    gate_start(&g);
    scribe_turns(&g.f, 3);
    for (int i = 0; i < LIMIT; i++)
        gate_connect(&g);
    RUN_UNTIL(&g.f, g.accepted == LIMIT);
    scribe_turns(&g.f, 5);
    unsigned before = test_count_fds();
    for (int i = 0; i < CLIENTS; i++) {
        gate_connect(&g);
        scribe_turns(&g.f, 2);
    }
    assert_true(test_count_fds() - before < CLIENTS + CLIENTS / 2); /* the clients', and few of ours */
    gate_close(&g);
}

/* ---- closing -------------------------------------------------------------------------------------------------------- */

static void close_over_connections_that_were_not_handed_out_closes_them(void **state) {
    (void)state;
    enum { CLIENTS = 20 };
    gate g;
    gate_open(&g, *(const char **)*state, NULL, NULL);
    g.pause_after = 1;
    gate_start(&g);
    scribe_turns(&g.f, 3);
    for (int i = 0; i < CLIENTS; i++)
        gate_connect(&g);
    RUN_UNTIL(&g.f, g.accepted == 1);
    test_ok(weir_listener_close(g.listener));
    RUN_UNTIL(&g.f, g.closes == 1);
    for (int i = 1; i < CLIENTS; i++)
        RUN_UNTIL(&g.f, client_is_over(g.clients[i]));
    assert_false(client_is_over(g.clients[0])); /* what was handed out goes on */
    gate_close(&g);
}

static void close_in_the_turn_of_the_accept_leaks_nothing(void **state) {
    enum { CLIENTS = 20 };
    gate g;
    gate_open(&g, *(const char **)*state, NULL, NULL);
    gate_start(&g);
    scribe_turns(&g.f, 3);
    for (int i = 0; i < CLIENTS; i++)
        gate_connect(&g);
    test_ok(
        weir_listener_close(g.listener)); /* the kernel has accepted, in its deferred way, and we did not look */
    RUN_UNTIL(&g.f, g.closes == 1);
    assert_int_equal(g.accepted, 0);
    for (int i = 0; i < CLIENTS; i++)
        RUN_UNTIL(&g.f, client_is_over(g.clients[i]));
    gate_close(&g);
}

static void the_loops_close_over_unseen_connections_leaks_nothing(void **state) {
    enum { CLIENTS = 20 };
    gate g;
    gate_open(&g, *(const char **)*state, NULL, NULL);
    gate_start(&g);
    scribe_turns(&g.f, 3);
    for (int i = 0; i < CLIENTS; i++)
        gate_connect(&g);
    test_ok(weir_loop_close(g.f.loop));
    assert_int_equal(g.closes, 1);
    for (int i = 0; i < CLIENTS; i++)
        assert_true(client_is_over(g.clients[i]));
    gate_close(&g);
}

/* ---- sharing a port ---------------------------------------------------------------------------------------------------- */

typedef struct half {
    gate g;
    pthread_t thread;
    _Atomic(unsigned) count;
    _Atomic(int) error;
} half;

static void on_accept_half(weir_listener *listener, weir_stream *stream, void *userdata) {
    half *h = userdata;
    (void)listener;
    if (weir_stream_abort(stream) < 0)
        atomic_store(&h->error, 1);
    atomic_fetch_add(&h->count, 1);
}

static const weir_listener_callbacks half_callbacks = { .size = sizeof half_callbacks,
                                                        .on_accept = on_accept_half };

static void *run_half(void *userdata) {
    half *h = userdata;
    if (weir_loop_run(h->g.f.loop) < 0 || weir_loop_close(h->g.f.loop) < 0)
        atomic_store(&h->error, 1);
    return NULL;
}

static void two_loops_on_two_threads_share_a_port(void **state) {
    (void)state;
    enum { CLIENTS = 200 };
    const weir_listener_options options = { .size = sizeof options, .flags = WEIR_LISTENER_REUSE_PORT };
    static half halves[2];
    char address[WEIR_ADDRESS_SIZE];
    int fds[CLIENTS];
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    memset(halves, 0, sizeof halves);
    gate_open(&halves[0].g, "127.0.0.1:0", &options, NULL);
    assert_true(weir_listener_get_address(halves[0].g.listener, address, sizeof address) > 0);
    gate_open(&halves[1].g, address, &options, NULL);
    in.sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1));
    for (int i = 0; i < 2; i++)
        test_ok(weir_listener_start(halves[i].g.listener, &half_callbacks, &halves[i]));
    for (int i = 0; i < 2; i++)
        test_ok(pthread_create(&halves[i].thread, NULL, run_half, &halves[i]));
    for (int i = 0; i < CLIENTS; i++) {
        fds[i] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        int r = connect(fds[i], (struct sockaddr *)&in, sizeof in);
        assert_true(r == 0 || errno == ECONNRESET); /* aborted before connect had returned */
    }
    for (unsigned i = 0; i < PATIENCE_S * 100; i++) {
        if (atomic_load(&halves[0].count) + atomic_load(&halves[1].count) == CLIENTS)
            break;
        test_sleep_ms(10);
    }
    for (int i = 0; i < 2; i++) {
        weir_loop_stop(halves[i].g.f.loop);
        test_ok(pthread_join(halves[i].thread, NULL));
        assert_int_equal(atomic_load(&halves[i].error), 0);
        assert_true(atomic_load(&halves[i].count) > 0);
    }
    assert_int_equal(atomic_load(&halves[0].count) + atomic_load(&halves[1].count), CLIENTS);
    for (int i = 0; i < CLIENTS; i++)
        close(fds[i]);
    for (int i = 0; i < 2; i++) { /* each was closed by its own thread */
        halves[i].g.f.loop = weir_loop_unref(halves[i].g.f.loop);
        assert_int_equal(atomic_load(&halves[i].g.f.memory.live_bytes), 0);
    }
    assert_int_equal(test_count_fds(), halves[0].g.f.fds);
}

/* ---- paths and adopted sockets ----------------------------------------------------------------------------------------- */

static void unix_address(char *text, size_t size, const char *what) {
    snprintf(text, size, "unix:/tmp/weir-test-%s-%d", what, (int)getpid());
    unlink(text + 5);
}

static void a_path_that_somebody_left_behind_is_taken_over_and_removed_at_close(void **state) {
    (void)state;
    const weir_listener_options options = { .size = sizeof options, .flags = WEIR_LISTENER_UNLINK };
    char address[WEIR_ADDRESS_SIZE];
    struct sockaddr_un un = { .sun_family = AF_UNIX };
    struct stat status;
    gate g;
    unix_address(address, sizeof address, "stale");
    memcpy(un.sun_path, address + 5, strlen(address + 5) + 1);
    int dead = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(dead, (struct sockaddr *)&un, sizeof un), 0);
    assert_int_equal(listen(dead, 1), 0);
    close(dead); /* its owner is gone, the file is not */
    assert_int_equal(stat(un.sun_path, &status), 0);
    gate_open(&g, address, &options, NULL);
    gate_start(&g);
    gate_connect(&g);
    RUN_UNTIL(&g.f, g.accepted == 1);
    assert_int_equal(number_of(g.streams[0]), 0);
    test_ok(weir_listener_close(g.listener));
    RUN_UNTIL(&g.f, g.closes == 1);
    assert_int_equal(stat(un.sun_path, &status), -1);
    gate_close(&g);
}

static void a_path_that_somebody_listens_on_is_left_alone(void **state) {
    (void)state;
    const weir_listener_options options = { .size = sizeof options, .flags = WEIR_LISTENER_UNLINK };
    char address[WEIR_ADDRESS_SIZE];
    weir_listener *second;
    gate g;
    unix_address(address, sizeof address, "alive");
    gate_open(&g, address, &options, NULL);
    gate_start(&g);
    assert_int_equal(weir_listener_open(g.f.loop, address, &options, &second), -EADDRINUSE);
    gate_connect(&g);
    RUN_UNTIL(&g.f, g.accepted >= 1); /* who asked whether we live may have been accepted as well */
    gate_close(&g);
}

static void a_path_without_the_flag_stays(void **state) {
    (void)state;
    char address[WEIR_ADDRESS_SIZE];
    struct stat status;
    weir_listener *second;
    gate g;
    unix_address(address, sizeof address, "kept");
    gate_open(&g, address, NULL, NULL);
    gate_start(&g);
    test_ok(weir_listener_close(g.listener));
    RUN_UNTIL(&g.f, g.closes == 1);
    assert_int_equal(stat(address + 5, &status), 0);
    assert_int_equal(weir_listener_open(g.f.loop, address, NULL, &second), -EADDRINUSE);
    unlink(address + 5);
    gate_close(&g);
}

static void a_listening_socket_can_be_adopted(void **state) {
    (void)state;
    struct sockaddr_in6 in6 = { .sin6_family = AF_INET6, .sin6_addr = in6addr_loopback };
    gate g;
    memset(&g, 0, sizeof g);
    test_open(&g.f, NULL, NULL);
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    assert_int_equal(weir_listener_adopt(g.f.loop, fd, NULL, &g.listener), -EINVAL); /* it does not listen */
    assert_int_equal(bind(fd, (struct sockaddr *)&in6, sizeof in6), 0);
    assert_int_equal(listen(fd, 4), 0);
    test_ok(weir_listener_adopt(g.f.loop, fd, NULL, &g.listener));
    assert_true((fcntl(fd, F_GETFD) & FD_CLOEXEC) != 0);
    assert_true((fcntl(fd, F_GETFL) & O_NONBLOCK) != 0);
    gate_start(&g);
    gate_connect(&g);
    RUN_UNTIL(&g.f, g.accepted == 1);
    assert_int_equal(number_of(g.streams[0]), 0);
    gate_close(&g);
}

static char gate_name[64];
static const char *on_tcp = "127.0.0.1:0", *on_unix = gate_name;
#define ON(socket, function) \
    { #function "_" #socket, function, NULL, NULL, &socket }
#define BOTH(function) ON(on_tcp, function), ON(on_unix, function)

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(out_of_descriptors_it_rests_and_goes_on_when_the_loop_closes_one),
        cmocka_unit_test(out_of_descriptors_it_goes_on_when_somebody_else_closes_one),
        cmocka_unit_test(out_of_descriptors_it_can_be_closed),
        cmocka_unit_test(connections_held_by_a_pause_come_in_order_after_it),
        cmocka_unit_test(a_pause_in_the_middle_of_the_held_ones_holds_the_rest),
        cmocka_unit_test(at_its_own_limit_it_rests_until_a_stream_ends),
        cmocka_unit_test(at_the_loops_limit_it_rests_until_a_stream_ends),
        cmocka_unit_test(at_the_loops_limit_what_is_held_is_bounded),
        BOTH(close_over_connections_that_were_not_handed_out_closes_them),
        BOTH(close_in_the_turn_of_the_accept_leaks_nothing),
        BOTH(the_loops_close_over_unseen_connections_leaks_nothing),
        cmocka_unit_test(two_loops_on_two_threads_share_a_port),
        cmocka_unit_test(a_path_that_somebody_left_behind_is_taken_over_and_removed_at_close),
        cmocka_unit_test(a_path_that_somebody_listens_on_is_left_alone),
        cmocka_unit_test(a_path_without_the_flag_stays),
        cmocka_unit_test(a_listening_socket_can_be_adopted),
    };
    snprintf(gate_name, sizeof gate_name, "unix:@weir-test-gate-%d", (int)getpid());
    return cmocka_run_group_tests_name("listener", tests, first_thread, NULL);
}
