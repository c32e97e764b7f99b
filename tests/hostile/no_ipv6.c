/* SPDX-License-Identifier: MIT */

/* A machine without IPv6: a kernel that has none, or a network whose administrator has switched it off. Addresses of it
 * give a clear error, and IPv4 works. */

#include "hostile/hostile.h"

#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/socket.h>

/* ---- a stream that is closed --------------------------------------------------------------------------------- */

typedef struct ending {
    unsigned opens, closes;
    int reason, error;
} ending;

static void on_open(weir_stream *stream, void *userdata) {
    (void)stream;
    ((ending *)userdata)->opens++;
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    ending *e = userdata;
    (void)stream;
    e->closes++;
    e->reason = reason;
    e->error = error;
}

static const weir_stream_callbacks callbacks = { .size = sizeof callbacks,
                                                 .on_open = on_open,
                                                 .on_close = on_close };

/* ---- a kernel that has none -------------------------------------------------------------------------------- */

static void child_has_no_ipv6(const void *argument) {
    const denial d = { .number = SYS_socket, .answer = DENY(EAFNOSUPPORT), .has_first = true, .first = AF_INET6 };
    weir_listener *listener = NULL;
    weir_stream *stream = NULL;
    place p;
    deny(&d, 1);
    CHECK_INT(socket(AF_INET6, SOCK_STREAM, 0), -1);
    CHECK_INT(place_try(&p, *(const uint32_t *)argument), 0);
    uint64_t blocks = atomic_load(&p.memory.live_blocks);
    unsigned fds = test_count_fds();
    CHECK_INT(weir_listener_open(p.loop, "[::]:0", NULL, &listener), -EAFNOSUPPORT);
    CHECK_INT(weir_listener_open(p.loop, "[::1]:0", NULL, &listener), -EAFNOSUPPORT);
    CHECK_INT(weir_stream_dial(p.loop, "[::1]:1", NULL, &stream), -EAFNOSUPPORT);
    CHECK(listener == NULL && stream == NULL);
    CHECK_INT(atomic_load(&p.memory.live_blocks), blocks);
    CHECK_INT(test_count_fds(), fds);
    expect_an_echo(&p, "127.0.0.1:0");
    expect_an_echo(&p, "0.0.0.0:0");
    place_close(&p);
}

static void a_kernel_without_ipv6(void **state) {
    uint32_t asked = backend_under_test();
    (void)state;
    in_a_child(child_has_no_ipv6, &asked);
}

/* ---- a network without it ------------------------------------------------------------------------------------ */

/* A network of our own, with a loopback that is up and no IPv6. */
static void leave_the_network(void) {
    struct ifreq lo = { .ifr_flags = IFF_UP };
    memcpy(lo.ifr_name, "lo", sizeof "lo");
    if (unshare(CLONE_NEWNET) != 0 && unshare(CLONE_NEWUSER | CLONE_NEWNET) != 0)
        child_skips("no network of our own to be had here");
    int fd = open("/proc/sys/net/ipv6/conf/all/disable_ipv6", O_WRONLY | O_CLOEXEC);
    if (fd < 0 || write(fd, "1", 1) != 1)
        child_skips("IPv6 cannot be switched off here");
    close(fd);
    CHECK((fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0)) >= 0);
    CHECK_INT(ioctl(fd, SIOCSIFFLAGS, &lo), 0);
    close(fd);
}

static void child_has_it_switched_off(const void *argument) {
    weir_listener *listener = NULL;
    weir_stream *stream = NULL;
    ending e = { 0 };
    place p;
    leave_the_network();
    CHECK_INT(place_try(&p, *(const uint32_t *)argument), 0);
    uint64_t blocks = atomic_load(&p.memory.live_blocks);
    CHECK_INT(weir_listener_open(p.loop, "[::1]:0", NULL, &listener), -EADDRNOTAVAIL);
    CHECK(listener == NULL);
    CHECK_INT(atomic_load(&p.memory.live_blocks), blocks);
    /* Where a packet could go is the kernel's word, and comes as any other failure to connect. */
    CHECK_INT(weir_stream_dial(p.loop, "[::1]:1", NULL, &stream), 0);
    CHECK_INT(weir_stream_start(stream, &callbacks, &e), 0);
    TURN_UNTIL(&p, e.closes == 1);
    CHECK_INT(e.opens, 0);
    CHECK(e.error == -EADDRNOTAVAIL || e.error == -ENETUNREACH);
    expect_an_echo(&p, "127.0.0.1:0");
    place_close(&p);
}

static void a_network_without_ipv6(void **state) {
    uint32_t asked = backend_under_test();
    (void)state;
    in_a_child(child_has_it_switched_off, &asked);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_kernel_without_ipv6),
        cmocka_unit_test(a_network_without_ipv6),
    };
    return cmocka_run_group_tests_name("no_ipv6", tests, NULL, NULL);
}
