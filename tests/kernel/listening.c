/* SPDX-License-Identifier: MIT */

/* What a listening socket is like in the kernel: how many connections may wait at it, and who may have its address. */

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/un.h>

#include "kernel/scribe.h"

/* A listener, and its socket, which is the only one of this process that listens. */
typedef struct post {
    test_fixture f;
    weir_listener *listener;
    int fd;
} post;

static int option(int fd, int level, int name) {
    int value = -1;
    socklen_t size = sizeof value;
    return getsockopt(fd, level, name, &value, &size) == 0 ? value : -errno;
}

static int find_listening(void) {
    int found = -1;
    for (int fd = 0; fd < 256; fd++)
        if (option(fd, SOL_SOCKET, SO_ACCEPTCONN) == 1) {
            assert_int_equal(found, -1);
            found = fd;
        }
    assert_true(found >= 0);
    return found;
}

static void post_open(post *p, const char *address, uint32_t flags, uint32_t backlog) {
    const weir_listener_options options = { .size = sizeof options, .flags = flags, .backlog = backlog };
    test_open(&p->f, NULL, NULL);
    test_ok(weir_listener_open(p->f.loop, address, &options, &p->listener));
    p->fd = find_listening();
}

static void post_close(post *p) {
    test_ok(weir_listener_close(p->listener));
    test_close(&p->f);
}

/* ---- the backlog ------------------------------------------------------------------------------------------ */

static uint32_t system_limit(void) {
    unsigned limit = 0;
    FILE *file = fopen("/proc/sys/net/core/somaxconn", "r");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%u", &limit), 1);
    fclose(file);
    return limit;
}

/* Of a listening socket TCP_INFO tells how many connections wait to be accepted, and how many may. */
static void count_waiting(int fd, uint32_t *ret_waiting, uint32_t *ret_most) {
    struct tcp_info info;
    socklen_t size = sizeof info;
    assert_int_equal(getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &size), 0);
    assert_int_equal(info.tcpi_state, TCP_LISTEN);
    *ret_waiting = info.tcpi_unacked;
    *ret_most = info.tcpi_sacked;
}

static void the_backlog_is_the_one_asked_for(void **state) {
    (void)state;
    static const char *const addresses[] = { "127.0.0.1:0", "[::1]:0" };
    const uint32_t limit = system_limit(), asked[] = { 0, 1, 7, limit, INT32_MAX };
    for (size_t i = 0; i < 2 * sizeof asked / sizeof *asked; i++) {
        uint32_t backlog = asked[i / 2], waiting, most;
        post p;
        post_open(&p, addresses[i % 2], 0, backlog);
        count_waiting(p.fd, &waiting, &most);
        uint32_t expected = backlog > 0 ? backlog : SOMAXCONN;
        assert_int_equal(most, expected < limit ? expected : limit);
        assert_int_equal(waiting, 0);
        post_close(&p);
    }
}

static void connections_wait_in_it_until_the_start(void **state) {
    (void)state;
    post p;
    uint32_t waiting, most;
    int clients[3];
    post_open(&p, "127.0.0.1:0", 0, 5);
    for (int i = 0; i < 3; i++)
        clients[i] = test_connect(p.listener);
    scribe_turns(&p.f, 3);
    count_waiting(p.fd, &waiting, &most);
    assert_int_equal(waiting, 3);
    assert_int_equal(most, 5);
    for (int i = 0; i < 3; i++)
        close(clients[i]);
    post_close(&p);
}

/* A Unix socket has no such statistics, but it says when it is full: it takes one more than its backlog. */
static void a_unix_backlog_is_the_one_asked_for(void **state) {
    (void)state;
    static const uint32_t asked[] = { 1, 7 };
    for (int i = 0; i < 2; i++) {
        post p;
        int clients[16];
        uint32_t count = 0;
        char address[WEIR_ADDRESS_SIZE];
        struct sockaddr_un un = { .sun_family = AF_UNIX };
        int size = snprintf(un.sun_path + 1, sizeof un.sun_path - 1, "weir-test-listening-%d", (int)getpid());
        snprintf(address, sizeof address, "unix:@%s", un.sun_path + 1);
        post_open(&p, address, 0, asked[i]);
        for (; count < 16; count++) {
            clients[count] = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
            socklen_t length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + (size_t)size);
            if (connect(clients[count], (struct sockaddr *)&un, length) < 0)
                break;
        }
        assert_int_equal(errno, EAGAIN);
        assert_int_equal(count, asked[i] + 1);
        for (uint32_t j = 0; j <= count; j++)
            close(clients[j]);
        post_close(&p);
    }
}

/* ---- the address ------------------------------------------------------------------------------------------- */

static void who_else_may_have_the_address_is_what_was_asked_for(void **state) {
    (void)state;
    static const char *const addresses[] = { "127.0.0.1:0", "[::]:0" };
    for (uint32_t i = 0; i < 8; i++) {
        bool is_v6 = (i & 1) != 0;
        uint32_t flags =
            ((i & 2) != 0 ? WEIR_LISTENER_REUSE_PORT : 0U) | ((i & 4) != 0 ? WEIR_LISTENER_V6_ONLY : 0U);
        post p;
        post_open(&p, addresses[is_v6], flags, 0);
        assert_int_equal(option(p.fd, SOL_SOCKET, SO_REUSEADDR), 1);
        assert_int_equal(option(p.fd, SOL_SOCKET, SO_REUSEPORT), (flags & WEIR_LISTENER_REUSE_PORT) != 0);
        if (is_v6) /* whatever net.ipv6.bindv6only says */
            assert_int_equal(option(p.fd, IPPROTO_IPV6, IPV6_V6ONLY), (flags & WEIR_LISTENER_V6_ONLY) != 0);
        post_close(&p);
    }
}

/* A server that is started again finds connections of its last life in TIME_WAIT at its port, and shall not mind. */
static void a_port_in_time_wait_can_be_listened_on(void **state) {
    (void)state;
    post p;
    char address[WEIR_ADDRESS_SIZE];
    post_open(&p, "127.0.0.1:0", 0, 0);
    assert_true(weir_listener_get_address(p.listener, address, sizeof address) > 0);
    int client = test_connect(p.listener);
    int server = accept(p.fd, NULL, NULL);
    assert_true(server >= 0);
    close(server); /* who ends first is the one that waits */
    char byte;
    assert_int_equal(recv(client, &byte, 1, 0), 0);
    close(client);
    post_close(&p);
    post_open(&p, address, 0, 0);
    post_close(&p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_backlog_is_the_one_asked_for),
        cmocka_unit_test(connections_wait_in_it_until_the_start),
        cmocka_unit_test(a_unix_backlog_is_the_one_asked_for),
        cmocka_unit_test(who_else_may_have_the_address_is_what_was_asked_for),
        cmocka_unit_test(a_port_in_time_wait_can_be_listened_on),
    };
    return cmocka_run_group_tests_name("listening", tests, NULL, NULL);
}
