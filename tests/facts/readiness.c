/* SPDX-License-Identifier: MIT */
/* What epoll tells, each change once, of descriptors that were registered for everything. */
#include "facts/facts.h"

enum {
    EVERYTHING = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLPRI,
    MOST = 8,
    NEAR = 7, /* what ends[0] is registered with */
    LARGE = 1 << 20,
    TURN_NS = 10 * 1000 * 1000,
    PATIENCE = 500
};

static int ends[2], epoll;
static uint8_t large[LARGE];

static void set(int operation, int fd, uint64_t data) {
    test_ok(weir__sys_epoll_set(epoll, operation, fd, EVERYTHING | EPOLLET, data));
}

/* What is told within a turn, of @data alone. */
static uint32_t told(uint64_t data) {
    struct epoll_event events[MOST];
    uint32_t all = 0;
    int r = weir__sys_epoll_wait(epoll, events, MOST, TURN_NS);
    assert_true(r >= 0 || r == -EINTR);
    for (int i = 0; i < r; i++) {
        assert_int_equal(events[i].data.u64, data);
        all |= events[i].events;
    }
    return all;
}

/* Wait until all of @events were told, in one event or in several. Return: what was told besides, too. */
static uint32_t is_told_of(uint64_t data, uint32_t events) {
    uint32_t all = 0;
    for (int turns = 0; (all & events) != events; turns++) {
        assert_in_range(turns, 0, PATIENCE);
        all |= told(data);
    }
    return all;
}

static uint32_t is_told(uint32_t events) {
    return is_told_of(NEAR, events);
}

static void nothing_is_told(void) {
    for (int i = 0; i < 2; i++)
        assert_int_equal(told(NEAR), 0);
}

static void open_epoll(void) {
    open_ring(16, 256);
    epoll = own(weir__sys_epoll());
}

/* A pair, of which ends[0] is registered, and that it can be written to was told. */
static void begin(void) {
    open_epoll();
    pair(ends);
    set(EPOLL_CTL_ADD, ends[0], NEAR);
    assert_int_equal(is_told(EPOLLOUT), EPOLLOUT);
}

/* recv(2) brings so many of ends[1]'s bytes, from @position on. */
static void reads(size_t size, int result, uint64_t position) {
    uint8_t bytes[256];
    assert_true(size <= sizeof bytes);
    assert_int_equal(weir__sys_receive(ends[0], bytes, size), result);
    if (result > 0)
        assert_int_equal(test_differs((uint64_t)ends[1], position, bytes, (size_t)result), -1);
}

/* ---- what is so, and what changes -------------------------------------------------------------------- */

static void registering_tells_what_is_so_already(void) {
    open_epoll();
    pair(ends);
    write_bytes(ends[1], 100);
    until(ends[0], POLLIN);
    set(EPOLL_CTL_ADD, ends[0], NEAR);
    assert_int_equal(is_told(EPOLLIN), EPOLLIN | EPOLLOUT);
    nothing_is_told();
    assert_int_equal(weir__sys_epoll_set(epoll, EPOLL_CTL_ADD, ends[0], EVERYTHING | EPOLLET, NEAR), -EEXIST);
}

static void modifying_tells_what_is_so_again(void) {
    begin();
    write_bytes(ends[1], 100);
    assert_int_equal(is_told(EPOLLIN), EPOLLIN | EPOLLOUT);
    set(EPOLL_CTL_MOD, ends[0], NEAR);
    assert_int_equal(is_told(EPOLLIN), EPOLLIN | EPOLLOUT);
    reads(200, 100, 0);
    set(EPOLL_CTL_MOD, ends[0], NEAR + 1);
    assert_int_equal(is_told_of(NEAR + 1, EPOLLOUT), EPOLLOUT);
    nothing_is_told();
}

static void removed_descriptor_is_silent(void) {
    begin();
    set(EPOLL_CTL_DEL, ends[0], NEAR);
    write_bytes(ends[1], 100);
    until(ends[0], POLLIN);
    nothing_is_told();
    assert_int_equal(weir__sys_epoll_set(epoll, EPOLL_CTL_DEL, ends[0], 0, 0), -ENOENT);
    assert_int_equal(weir__sys_epoll_set(epoll, EPOLL_CTL_MOD, ends[0], EVERYTHING, 0), -ENOENT);
}

static void closed_descriptor_is_registered_no_more(void) {
    begin();
    close_now(ends[0]);
    nothing_is_told();
    pair(ends); /* which has the same numbers, maybe */
    write_bytes(ends[1], 100);
    until(ends[0], POLLIN);
    nothing_is_told();
}

static void signalled_eventfd_is_told_each_time_though_never_read(void) {
    open_epoll();
    int fd = own(weir__sys_eventfd());
    test_ok(weir__sys_epoll_set(epoll, EPOLL_CTL_ADD, fd, EPOLLIN | EPOLLET, NEAR));
    nothing_is_told();
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(weir__sys_eventfd_signal(fd), 8);
        assert_int_equal(is_told(EPOLLIN), EPOLLIN);
        nothing_is_told();
    }
}

/* ---- receiving -------------------------------------------------------------------------------------- */

static void byte_after_a_short_receive_is_told(void) {
    begin();
    write_bytes(ends[1], 100);
    (void)is_told(EPOLLIN);
    reads(200, 100, 0);
    nothing_is_told();
    write_bytes(ends[1], 1);
    (void)is_told(EPOLLIN);
    write_bytes(ends[1], 1); /* also where the last one is still unread */
    (void)is_told(EPOLLIN);
    reads(200, 2, 100);
}

static void end_after_a_short_receive_is_told(void) {
    begin();
    write_bytes(ends[1], 100);
    (void)is_told(EPOLLIN);
    reads(200, 100, 0);
    nothing_is_told();
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    assert_int_equal(is_told(EPOLLRDHUP), EPOLLIN | EPOLLOUT | EPOLLRDHUP);
    reads(200, 0, 100);
    nothing_is_told();
}

static void end_behind_unread_bytes_is_told(void) {
    begin();
    write_bytes(ends[1], 100);
    (void)is_told(EPOLLIN);
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    (void)is_told(EPOLLIN | EPOLLRDHUP);
    reads(200, 100, 0);
    reads(200, 0, 100);
}

/* The mark is the only place where a receive over TCP stops though bytes lie behind it, and who is told of them is told
 * of the mark, too, until something behind it was received. */
static void short_receive_leaves_bytes_at_the_urgent_mark(void) {
    begin();
    write_bytes(ends[1], 50);
    write_urgent(ends[1]);
    write_bytes(ends[1], 30);
    (void)is_told(EPOLLIN | EPOLLPRI);
    until(ends[0], POLLPRI);
    reads(200, 50, 0);
    set(EPOLL_CTL_MOD, ends[0], NEAR);
    (void)is_told(EPOLLIN | EPOLLPRI);
    reads(200, 30, 50);
    reads(200, -EAGAIN, 80);
    nothing_is_told();
    set(EPOLL_CTL_MOD, ends[0], NEAR);
    assert_int_equal(is_told(EPOLLOUT), EPOLLOUT);
}

/* And a receive that brings nothing goes over it. */
static void urgent_byte_with_nothing_behind_it_is_no_input(void) {
    begin();
    write_bytes(ends[1], 50);
    (void)is_told(EPOLLIN);
    reads(200, 50, 0);
    write_urgent(ends[1]);
    assert_int_equal(is_told(EPOLLPRI), EPOLLPRI | EPOLLOUT);
    set(EPOLL_CTL_MOD, ends[0], NEAR);
    assert_int_equal(is_told(EPOLLPRI), EPOLLPRI | EPOLLOUT);
    reads(200, -EAGAIN, 50);
    set(EPOLL_CTL_MOD, ends[0], NEAR);
    assert_int_equal(is_told(EPOLLOUT), EPOLLOUT);
    write_bytes(ends[1], 1);
    assert_int_equal(is_told(EPOLLIN), EPOLLIN | EPOLLOUT);
    reads(200, 1, 50);
}

/* ---- sending ---------------------------------------------------------------------------------------- */

static int send_large(void) {
    const struct iovec vectors[2] = { { large, LARGE / 2 }, { large + LARGE / 2, LARGE / 2 } };
    next_bytes(ends[0], large, LARGE);
    int r = weir__sys_send_vectors(ends[0], vectors, 2);
    if (r > 0)
        wrote(ends[0], (size_t)r);
    return r;
}

static void room_after_a_partial_send_is_told(void) {
    begin();
    test_ok(weir__sys_setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, 16384));
    assert_in_range(send_large(), 1, LARGE - 1); /* and nobody has heard -EAGAIN */
    drain(ends[1], ends[0]);
    assert_int_equal(is_told(EPOLLOUT), EPOLLOUT);
    assert_in_range(send_large(), 1, LARGE - 1);
    drain(ends[1], ends[0]);
}

static void room_in_a_full_socket_is_told(void) {
    begin();
    test_ok(weir__sys_setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, 16384));
    for (int empty = 0; empty < 2;) { /* over TCP some moves on to the peer */
        int r = send_large();
        assert_true(r > 0 || r == -EAGAIN);
        empty = r < 0 && told(NEAR) == 0 ? empty + 1 : 0;
    }
    drain(ends[1], ends[0]);
    assert_int_equal(is_told(EPOLLOUT), EPOLLOUT);
    assert_in_range(send_large(), 1, LARGE - 1);
    drain(ends[1], ends[0]);
}

/* ---- ends ------------------------------------------------------------------------------------------- */

static void reset_is_told(void) {
    begin();
    disconnect(ends[1]);
    assert_int_equal(is_told(EPOLLERR | EPOLLHUP), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLERR | EPOLLHUP);
    reads(200, -ECONNRESET, 0);
    reads(200, 0, 0);
}

static void reset_behind_unread_bytes_is_told(void) {
    begin();
    write_bytes(ends[1], 100);
    (void)is_told(EPOLLIN);
    disconnect(ends[1]);
    (void)is_told(EPOLLERR | EPOLLHUP);
    reads(50, 50, 0);
    reads(200, 50, 50);
    reads(200, -ECONNRESET, 100);
}

static void closed_peer_is_told(void) {
    begin();
    close_now(ends[1]);
    uint32_t events = EPOLLIN | EPOLLOUT | EPOLLRDHUP;
    assert_int_equal(is_told(EPOLLRDHUP), is_tcp() ? events : events | EPOLLHUP);
    reads(200, 0, 0);
}

static void both_ends_are_told_as_a_hang_up(void) {
    begin();
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    (void)is_told(EPOLLRDHUP);
    test_ok(weir__sys_shutdown(ends[0], SHUT_WR));
    (void)is_told(EPOLLHUP);
}

/* ---- connecting and accepting ------------------------------------------------------------------------ */

static struct sockaddr_storage address;
static socklen_t length;

static int listen_here(void) {
    int listener = listen_somewhere(16);
    test_ok(weir__sys_getsockname(listener, &address, &length));
    return listener;
}

static int connect_here(void) {
    int fd = own(weir__sys_socket(AF_INET, SOCK_STREAM));
    assert_int_equal(weir__sys_connect(fd, (const struct sockaddr *)&address, length), -EINPROGRESS);
    return fd;
}

static void connection_is_told_as_room(void) {
    int error = -1;
    open_epoll();
    (void)listen_here();
    int fd = connect_here();
    set(EPOLL_CTL_ADD, fd, NEAR);
    assert_int_equal(is_told(EPOLLOUT), EPOLLOUT);
    test_ok(weir__sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error));
    assert_int_equal(error, 0);
    test_ok(weir__sys_getpeername(fd, &address, &length));
    nothing_is_told();
}

static void refusal_is_told_as_an_error(void) {
    int error = 0;
    open_epoll();
    close_now(listen_here());
    int fd = connect_here();
    set(EPOLL_CTL_ADD, fd, NEAR);
    assert_int_equal(is_told(EPOLLERR | EPOLLHUP), EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLERR | EPOLLHUP);
    assert_int_equal(weir__sys_getpeername(fd, &address, &length), -ENOTCONN);
    test_ok(weir__sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error));
    assert_int_equal(error, ECONNREFUSED);
    test_ok(weir__sys_getsockopt(fd, SOL_SOCKET, SO_ERROR, &error));
    assert_int_equal(error, 0);
}

static void socket_that_was_never_connected_is_hung_up(void) {
    open_epoll();
    set(EPOLL_CTL_ADD, own(weir__sys_socket(is_tcp() ? AF_INET : AF_UNIX, SOCK_STREAM)), NEAR);
    assert_int_equal(is_told(EPOLLHUP), EPOLLOUT | EPOLLHUP);
    nothing_is_told();
}

static void connection_that_is_left_waiting_is_not_told_again(void) {
    open_epoll();
    int listener = listen_here();
    set(EPOLL_CTL_ADD, listener, NEAR);
    nothing_is_told();
    (void)connect_here();
    assert_int_equal(is_told(EPOLLIN), EPOLLIN);
    (void)connect_here();
    assert_int_equal(is_told(EPOLLIN), EPOLLIN);
    own(weir__sys_accept(listener));
    nothing_is_told();
    (void)connect_here();
    assert_int_equal(is_told(EPOLLIN), EPOLLIN);
    own(weir__sys_accept(listener));
    own(weir__sys_accept(listener));
    assert_int_equal(weir__sys_accept(listener), -EAGAIN);
}

static void accept_without_a_free_descriptor_says_so_whoever_waits(void) {
    int r;
    open_epoll();
    int listener = listen_here();
    assert_int_equal(weir__sys_accept(listener), -EAGAIN);
    while ((r = weir__sys_socket(AF_INET, SOCK_STREAM)) >= 0)
        own(r);
    assert_int_equal(r, -EMFILE);
    assert_int_equal(weir__sys_accept(listener), -EMFILE);
}

const fact facts_of_readiness[] = {
    FACT(registering_tells_what_is_so_already, ANY),
    FACT(modifying_tells_what_is_so_again, ANY),
    FACT(removed_descriptor_is_silent, ANY),
    FACT(closed_descriptor_is_registered_no_more, ANY),
    FACT(signalled_eventfd_is_told_each_time_though_never_read, UNIX),
    FACT(byte_after_a_short_receive_is_told, ANY),
    FACT(end_after_a_short_receive_is_told, ANY),
    FACT(end_behind_unread_bytes_is_told, ANY),
    FACT(short_receive_leaves_bytes_at_the_urgent_mark, TCP),
    FACT(urgent_byte_with_nothing_behind_it_is_no_input, TCP),
    FACT(room_after_a_partial_send_is_told, ANY),
    FACT(room_in_a_full_socket_is_told, ANY),
    FACT(reset_is_told, TCP),
    FACT(reset_behind_unread_bytes_is_told, TCP),
    FACT(closed_peer_is_told, ANY),
    FACT(both_ends_are_told_as_a_hang_up, ANY),
    FACT(connection_is_told_as_room, TCP),
    FACT(refusal_is_told_as_an_error, TCP),
    FACT(socket_that_was_never_connected_is_hung_up, ANY),
    FACT(connection_that_is_left_waiting_is_not_told_again, TCP),
    FACT(accept_without_a_free_descriptor_says_so_whoever_waits, TCP),
    { 0 },
};
