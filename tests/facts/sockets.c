/* SPDX-License-Identifier: MIT */
/* Sends, accepts, connects, watches, and what ends requests that are under way. */
#include "facts/facts.h"

enum { LARGE = 1 << 20 };

static int ends[2];
static uint8_t large[LARGE];

static void begin(void) {
    open_ring(16, 256);
    open_group(0, INCREMENTAL);
    pair(ends);
    test_ok(weir__sys_setsockopt(ends[0], SOL_SOCKET, SO_SNDBUF, 16384));
}

/* ---- sends ------------------------------------------------------------------------------------------ */

static void send_completes_with_what_it_took(void) {
    begin();
    next_bytes(ends[0], large, 500);
    send_to(ends[0], 1, large, 500);
    is(next(), 1, 500, 0);
    wrote(ends[0], 500);
    drain(ends[1], ends[0]);
}

static void send_of_more_than_there_is_room_for_is_short(void) {
    begin();
    next_bytes(ends[0], large, LARGE);
    send_to(ends[0], 1, large, LARGE);
    weir__cqe cqe = next();
    assert_in_range(cqe.res, 1, LARGE - 1);
    is(cqe, 1, cqe.res, 0);
    wrote(ends[0], (size_t)cqe.res);
    drain(ends[1], ends[0]);
}

static void send_to_a_full_socket_waits_for_room(void) {
    begin();
    send_that_waits(ends[0], 1, large, LARGE);
    drain(ends[1], ends[0]);
    weir__cqe cqe = next_of(1);
    assert_in_range(cqe.res, 1, LARGE);
    is(cqe, 1, cqe.res, 0);
    wrote(ends[0], (size_t)cqe.res);
    drain(ends[1], ends[0]);
}

/* Until there is no room, for as much as is sent next. TCP's acknowledgements may be on their way, and make some again: who
 * finds some fills it, and tries again. */
enum { PIECE = 4096, TRIES = 100 };

static void fill(void) {
    for (int i = 0; i < 100000 && weir__sys_send(ends[0], large, PIECE) > 0; i++)
        ;
}

static void send_that_must_not_wait_says_so_at_once(void) {
    begin();
    weir__cqe cqe = { .res = 1 };
    for (int i = 0; i < TRIES && cqe.res > 0; i++) {
        fill();
        struct io_uring_sqe *sqe = entry(IORING_OP_SEND, ends[0], 1);
        sqe->addr = (uint64_t)(uintptr_t)large;
        sqe->len = PIECE;
        sqe->msg_flags = MSG_NOSIGNAL | MSG_DONTWAIT;
        cqe = next();
    }
    is(cqe, 1, -EAGAIN, 0);
    poll_at(ends[0], 2, POLLOUT, false);
    nothing_comes();
}

/* A send that is to say nothing of success, and must not wait. */
static void send_silently(size_t size) {
    struct io_uring_sqe *sqe = entry(IORING_OP_SEND, ends[0], 1);
    sqe->addr = (uint64_t)(uintptr_t)large;
    sqe->len = (uint32_t)size;
    sqe->flags = IOSQE_CQE_SKIP_SUCCESS;
    sqe->msg_flags = MSG_NOSIGNAL | MSG_DONTWAIT | MSG_WAITALL;
}

static void silent_send_that_is_taken_whole_says_nothing(void) {
    begin();
    next_bytes(ends[0], large, 100);
    send_silently(100);
    nothing_comes();
    wrote(ends[0], 100);
    drain(ends[1], ends[0]);
}

static void silent_send_that_is_taken_in_part_says_how_much(void) {
    begin();
    next_bytes(ends[0], large, LARGE);
    send_silently(LARGE);
    weir__cqe cqe = next();
    assert_in_range(cqe.res, 1, LARGE - 1);
    is(cqe, 1, cqe.res, 0);
    wrote(ends[0], (size_t)cqe.res);
    drain(ends[1], ends[0]);
}

static void silent_send_without_room_says_so_at_once(void) {
    begin();
    weir__cqe cqe = { .res = 1 };
    for (int i = 0; i < TRIES && cqe.res > 0; i++) {
        fill();
        send_silently(PIECE);
        (void)next_if_any(
            &cqe); /* there is none if it was taken whole, and some bytes if there was room for those */
    }
    is(cqe, 1, -EAGAIN, 0);
}

static void silent_send_tells_of_its_failure(void) {
    begin();
    test_ok(weir__sys_shutdown(ends[0], SHUT_WR));
    send_silently(10);
    is(next(), 1, -EPIPE, 0);
}

static void gathered_send_goes_in_order(void) {
    struct iovec vectors[3] = { { large, 10 }, { large + 10, 300 }, { large + 310, 7 } };
    struct msghdr header = { .msg_iov = vectors, .msg_iovlen = 3 };
    begin();
    next_bytes(ends[0], large, 317);
    struct io_uring_sqe *sqe = entry(IORING_OP_SENDMSG, ends[0], 1);
    sqe->addr = (uint64_t)(uintptr_t)&header;
    sqe->len = 1;
    sqe->msg_flags = MSG_NOSIGNAL;
    is(next(), 1, 317, 0);
    wrote(ends[0], 317);
    drain(ends[1], ends[0]);
}

static void gathered_send_may_be_short_anywhere(void) {
    struct iovec vectors[64];
    struct msghdr header = { .msg_iov = vectors, .msg_iovlen = 64 };
    begin();
    next_bytes(ends[0], large, LARGE);
    for (unsigned i = 0; i < 64; i++)
        vectors[i] = (struct iovec){ large + i * (LARGE / 64), LARGE / 64 };
    struct io_uring_sqe *sqe = entry(IORING_OP_SENDMSG, ends[0], 1);
    sqe->addr = (uint64_t)(uintptr_t)&header;
    sqe->len = 1;
    sqe->msg_flags = MSG_NOSIGNAL;
    weir__cqe cqe = next();
    assert_in_range(cqe.res, 1, LARGE - 1);
    is(cqe, 1, cqe.res, 0);
    wrote(ends[0], (size_t)cqe.res);
    drain(ends[1], ends[0]);
}

/* Each poll is one for the peer's end, too; but not in 6.12.118, which tells nothing before there is room. */
static void poll_for_room_tells_of_an_end_unasked(void) {
    begin();
    send_that_waits(ends[0], 3, large, LARGE);
    poll_at(ends[0], 1, POLLOUT, true);
    nothing_comes();
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    weir__cqe cqe;
    bool is_told = next_if_any(&cqe);
    assert_true(is_told || is_before(6, 13));
    poll_at(ends[0], 2, POLLOUT, false);
    if (is_told) {
        is(cqe, 1, POLLRDHUP, F_MORE);
        is(next_of(2), 2, POLLRDHUP, 0);
    }
    nothing_comes();
}

static void send_after_our_own_end_fails(void) {
    begin();
    test_ok(weir__sys_shutdown(ends[0], SHUT_WR));
    send_to(ends[0], 1, large, 10);
    is(next(), 1, -EPIPE, 0);
}

static void send_to_a_peer_that_has_ended_goes_on(void) {
    begin();
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    until(ends[0], POLLRDHUP);
    next_bytes(ends[0], large, 10);
    send_to(ends[0], 1, large, 10);
    is(next(), 1, 10, 0);
    wrote(ends[0], 10);
    drain(ends[1], ends[0]);
}

static void send_after_a_reset_hears_of_it_once(void) {
    begin();
    disconnect(ends[1]);
    until(ends[0], POLLHUP);
    send_to(ends[0], 1, large, 10);
    is(next(), 1, -ECONNRESET, 0);
    send_to(ends[0], 1, large, 10);
    is(next(), 1, -EPIPE, 0);
    publish(0, 4096, 1);
    receive(ends[0], 2, 0, 0); /* the error has been told */
    is(next(), 2, 0, 0);
}

static void send_after_an_end_and_a_reset_is_a_broken_pipe(void) {
    begin();
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    until(ends[0], POLLRDHUP);
    disconnect(ends[1]);
    until(ends[0], POLLHUP);
    send_to(ends[0], 1, large, 10);
    is(next(), 1, -EPIPE, 0);
}

static void send_to_a_closed_unix_socket_fails(void) {
    begin();
    close_now(ends[1]);
    send_to(ends[0], 1, large, 10);
    is(next(), 1, -EPIPE, 0);
    send_to(ends[0], 1, large, 10);
    is(next(), 1, -EPIPE, 0);
}

/* ---- urgent bytes ------------------------------------------------------------------------------------ */

/* The kernel's own poll for room asks for urgent bytes too, and one that nobody reads is there each time. */
static void urgent_byte_moves_a_send_that_waits_to_a_worker_thread(void) {
    begin();
    write_urgent(ends[1]);
    until(ends[0], POLLPRI);
    assert_int_equal(facts_edge_workers(), 0);
    send_that_waits(ends[0], 1, large, LARGE);
    for (int i = 0; i < 100 && facts_edge_workers() == 0; i++)
        nothing_comes();
    if (facts_edge_workers() == 0 && is_before(6, 13)) {
        print_message("this kernel's sends do not look for urgent data (6.12.118; 6.12.43's do)\n");
        skip();
    }
    assert_int_equal(facts_edge_workers(), 1);
    cancel(1, 2);
    (void)next_of(1);
    (void)next_of(2);
}

static void urgent_byte_does_not_wake_a_poll_for_room(void) {
    begin();
    send_that_waits(ends[0], 1, large, LARGE); /* so it is full */
    cancel(1, 2);
    is(next_of(2), 2, 0, 0);
    is(next_of(1), 1, -ECANCELED, 0);
    poll_at(ends[0], 3, POLLOUT, false);
    write_urgent(ends[1]);
    for (int i = 0; i < 10; i++)
        nothing_comes();
    assert_int_equal(facts_edge_workers(), 0);
}

static void watch_ignores_urgent_bytes(void) {
    begin();
    poll_at(ends[0], 1, POLLRDHUP, true);
    nothing_comes();
    write_urgent(ends[1]);
    nothing_comes();
}

/* ---- what ends requests under way -------------------------------------------------------------------- */

static void reset_ends_a_receive_and_a_send_and_one_of_them_hears_why(void) {
    begin();
    publish(0, 4096, 1);
    receive(ends[0], 2, 0, 0);
    send_that_waits(ends[0], 1, large, LARGE);
    disconnect(ends[1]);
    weir__cqe sent = next_of(1), received = next_of(2);
    assert_true(sent.res == -ECONNRESET || sent.res == -EPIPE);
    assert_true(received.res == -ECONNRESET || received.res == 0);
    assert_int_equal((sent.res == -ECONNRESET) + (received.res == -ECONNRESET), 1);
}

static void disconnect_ends_a_receive_and_a_send(void) {
    begin();
    publish(0, 4096, 1);
    receive(ends[0], 2, 0, 0);
    send_that_waits(ends[0], 1, large, LARGE);
    disconnect(ends[0]);
    weir__cqe sent = next_of(1), received = next_of(2);
    assert_true(received.res == -ENOTCONN || received.res == -ECONNRESET);
    assert_true(sent.res == -EPIPE || sent.res == -ECONNRESET);
    nothing_comes();
    until(ends[1], POLLHUP);
}

static void disconnected_socket_brings_nothing_more(void) {
    begin();
    publish(0, 4096, 1);
    write_bytes(ends[1], 100);
    until(ends[0], POLLIN);
    disconnect(ends[0]);
    receive(ends[0], 1, 0, 0);
    weir__cqe cqe = next();
    assert_true(cqe.res == -ENOTCONN || cqe.res == -ECONNRESET);
    receive(ends[0], 1, 0, 0);
    cqe = next();
    assert_true(cqe.res == -ENOTCONN || cqe.res == -ECONNRESET);
    assert_int_equal(weir__sys_send(ends[0], "x", 1), -EPIPE);
}

static void shutdown_both_ways_ends_a_receive_and_a_send(void) {
    begin();
    publish(0, 4096, 1);
    receive(ends[0], 2, 0, 0);
    send_that_waits(ends[0], 1, large, LARGE);
    test_ok(weir__sys_shutdown(ends[0], SHUT_RDWR));
    is(next_of(1), 1, -EPIPE, 0);
    is(next_of(2), 2, 0, 0);
    nothing_comes();
    assert_int_equal(weir__sys_send(ends[1], "x", 1), -EPIPE);
    drain(ends[1], ends[0]);
    receive(ends[1], 3, 0, 0);
    is(next(), 3, 0, 0);
}

/* ---- accepts and connects --------------------------------------------------------------------------- */

static struct sockaddr_storage address;
static socklen_t length;

static int listen_here(void) {
    int listener = listen_somewhere(16);
    test_ok(weir__sys_getsockname(listener, &address, &length));
    return listener;
}

static int come(void) {
    int fd = own(weir__sys_socket(AF_INET, SOCK_STREAM));
    connect_at(fd, 99, &address, length);
    is(next_of(99), 99, 0, 0);
    return fd;
}

static void listeners_get_ports_of_their_own(void) {
    struct sockaddr_storage other;
    open_ring(16, 64);
    (void)listen_here();
    int listener = listen_somewhere(1);
    test_ok(weir__sys_getsockname(listener, &other, &length));
    assert_int_equal(length, sizeof(struct sockaddr_in));
    assert_int_equal(other.ss_family, AF_INET);
    assert_int_not_equal(((struct sockaddr_in *)&other)->sin_port, 0);
    assert_int_not_equal(((struct sockaddr_in *)&other)->sin_port, ((struct sockaddr_in *)&address)->sin_port);
    int fd = own(weir__sys_socket(AF_INET, SOCK_STREAM));
    assert_int_equal(weir__sys_bind(fd, (const struct sockaddr *)&address, length), -EADDRINUSE);
}

static void connect_succeeds_before_anybody_accepts(void) {
    open_ring(16, 64);
    open_group(0, INCREMENTAL);
    publish(0, 4096, 1);
    int listener = listen_here(), client = come();
    write_bytes(client, 100);
    accept_at(listener, 1, false);
    weir__cqe cqe = next();
    is(cqe, 1, cqe.res, 0);
    int served = own(cqe.res);
    receive(served, 2, 0, 0);
    cqe = next();
    is_data(cqe, 2, 100, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, client);
}

static void connect_where_nobody_listens_is_refused(void) {
    open_ring(16, 64);
    close_now(listen_here());
    int fd = own(weir__sys_socket(AF_INET, SOCK_STREAM));
    connect_at(fd, 1, &address, length);
    is(next(), 1, -ECONNREFUSED, 0);
}

static void accept_waits_for_somebody(void) {
    open_ring(16, 64);
    int listener = listen_here();
    accept_at(listener, 1, true);
    nothing_comes();
    (void)come();
    weir__cqe cqe = next_of(1);
    is(cqe, 1, cqe.res, F_MORE);
    own(cqe.res);
    nothing_comes();
}

static void multishot_accept_brings_all_who_wait(void) {
    int fds[5];
    open_ring(16, 64);
    int listener = listen_here();
    for (unsigned i = 0; i < 4; i++)
        (void)come();
    accept_at(listener, 1, true);
    for (unsigned i = 0; i < 4; i++) {
        weir__cqe cqe = next();
        is(cqe, 1, cqe.res, F_MORE);
        fds[i] = own(cqe.res);
        for (unsigned j = 0; j < i; j++)
            assert_int_not_equal(fds[i], fds[j]);
    }
    nothing_comes();
    (void)come();
    weir__cqe cqe = next_of(1);
    is(cqe, 1, cqe.res, F_MORE);
    own(cqe.res);
}

static void single_accept_brings_one(void) {
    open_ring(16, 64);
    int listener = listen_here();
    (void)come();
    (void)come();
    accept_at(listener, 1, false);
    weir__cqe cqe = next();
    is(cqe, 1, cqe.res, 0);
    own(cqe.res);
    nothing_comes();
}

static void use_up_descriptors(void) {
    int r;
    while ((r = weir__sys_socket(AF_INET, SOCK_STREAM)) >= 0)
        own(r);
    assert_int_equal(r, -EMFILE);
}

static void want_of_a_descriptor_ends_a_multishot_accept(void) {
    open_ring(16, 64);
    int listener = listen_here();
    accept_at(listener, 1, true);
    nothing_comes();
    int fds[3];
    for (unsigned i = 0; i < 3; i++)
        fds[i] = own(weir__sys_socket(AF_INET, SOCK_STREAM));
    int spare = own(weir__sys_eventfd());
    use_up_descriptors();
    close_now(spare);
    for (unsigned i = 0; i < 3; i++)
        connect_at(fds[i], 10 + i, &address, length);
    /* There is one left. */
    weir__cqe cqe = next_of(1);
    is(cqe, 1, cqe.res, F_MORE);
    assert_in_range(cqe.res, 0, INT32_MAX);
    int served = own(cqe.res);
    is(next_of(1), 1, -EMFILE, 0);
    for (unsigned i = 0; i < 3; i++)
        is(next_of(10 + i), 10 + i, 0, 0);
    /* The others still wait, for who frees one. */
    accept_at(listener, 1, true);
    is(next(), 1, -EMFILE, 0);
    close_now(served);
    accept_at(listener, 1, true);
    cqe = next();
    is(cqe, 1, cqe.res, F_MORE);
    own(cqe.res);
}

static void accept_without_a_free_descriptor_answers_at_once(void) {
    open_ring(16, 64);
    int listener = listen_here();
    use_up_descriptors();
    accept_at(listener, 1, true);
    is(next(), 1, -EMFILE, 0);
    accept_at(listener, 1, false);
    is(next(), 1, -EMFILE, 0);
}

static void who_was_not_accepted_is_reset_when_the_listener_closes(void) {
    open_ring(16, 64);
    open_group(0, INCREMENTAL);
    publish(0, 4096, 1);
    int listener = listen_here(), client = come();
    receive(client, 1, 0, 0);
    nothing_comes();
    close_now(listener);
    is(next(), 1, -ECONNRESET, 0);
}

static void who_left_before_being_accepted_is_accepted(void) {
    open_ring(16, 64);
    open_group(0, INCREMENTAL);
    publish(0, 4096, 1);
    int listener = listen_here();
    int client = come();
    write_bytes(client, 10);
    close_now(client);
    accept_at(listener, 1, false);
    weir__cqe cqe = next();
    is(cqe, 1, cqe.res, 0);
    receive(own(cqe.res), 2, 0, 0);
    is_data(next(), 2, 10, 0, F_MORE | F_BUF_MORE);
    is(next(), 2, 0, 0);
}

/* ---- watches ---------------------------------------------------------------------------------------- */

static void signalled_eventfd_wakes_a_poll_each_time_though_never_read(void) {
    open_ring(16, 64);
    int fd = own(weir__sys_eventfd());
    poll_at(fd, 1, POLLIN, true);
    nothing_comes();
    for (unsigned i = 0; i < 5; i++) {
        assert_int_equal(weir__sys_eventfd_signal(fd), 8);
        is(next(), 1, POLLIN, F_MORE);
        nothing_comes();
    }
}

static void signals_between_two_enters_may_wake_once(void) {
    open_ring(16, 64);
    int fd = own(weir__sys_eventfd());
    poll_at(fd, 1, POLLIN, true);
    nothing_comes();
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(weir__sys_eventfd_signal(fd), 8);
    is(next(), 1, POLLIN, F_MORE);
    weir__cqe cqe;
    for (unsigned more = 0; enter() >= 0 && weir__ring_cqe(ring(), &cqe); more++) {
        assert_in_range(more, 0, 1);
        is(cqe, 1, POLLIN, F_MORE);
    }
}

static void poll_of_what_was_signalled_before_fires(void) {
    open_ring(16, 64);
    int fd = own(weir__sys_eventfd());
    assert_int_equal(weir__sys_eventfd_signal(fd), 8);
    poll_at(fd, 1, POLLIN, true);
    is(next(), 1, POLLIN, F_MORE);
    nothing_comes();
}

static void watch_ignores_data_and_tells_of_an_end(void) {
    begin();
    poll_at(ends[0], 1, POLLRDHUP, true);
    nothing_comes();
    write_bytes(ends[1], 100);
    nothing_comes();
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    is(next(), 1, POLLRDHUP, F_MORE);
    nothing_comes();
}

static void watch_goes_on_to_tell_of_a_reset(void) {
    begin();
    poll_at(ends[0], 1, POLLRDHUP, true);
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    is(next(), 1, POLLRDHUP, F_MORE);
    disconnect(ends[1]);
    is(next(), 1, POLLRDHUP | POLLHUP | POLLERR, F_MORE);
    nothing_comes();
}

static void watch_tells_of_a_reset(void) {
    begin();
    poll_at(ends[0], 1, POLLRDHUP, true);
    nothing_comes();
    disconnect(ends[1]);
    is(next(), 1, POLLRDHUP | POLLHUP | POLLERR, F_MORE);
    nothing_comes();
}

static void watch_tells_that_the_peer_closed(void) {
    begin();
    poll_at(ends[0], 1, POLLRDHUP, true);
    nothing_comes();
    close_now(ends[1]);
    is(next(), 1, is_tcp() ? POLLRDHUP : POLLRDHUP | POLLHUP, F_MORE);
    nothing_comes();
}

static void watch_of_what_has_ended_tells_at_once(void) {
    begin();
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    until(ends[0], POLLRDHUP);
    poll_at(ends[0], 1, POLLRDHUP, true);
    is(next(), 1, POLLRDHUP, F_MORE);
    nothing_comes();
}

static void watch_and_receive_do_not_disturb_each_other(void) {
    begin();
    publish(0, 4096, 1);
    poll_at(ends[0], 1, POLLRDHUP, true);
    receive(ends[0], 2, 0, 0);
    write_bytes(ends[1], 100);
    is_data(next(), 2, 100, 0, F_MORE | F_BUF_MORE);
    test_ok(weir__sys_shutdown(ends[1], SHUT_WR));
    is(next_of(1), 1, POLLRDHUP, F_MORE);
    is(next_of(2), 2, 0, 0);
    nothing_comes();
}

static void error_of_a_socket_is_told_once(void) {
    int error = 0;
    begin();
    disconnect(ends[1]);
    until(ends[0], POLLHUP);
    test_ok(weir__sys_getsockopt(ends[0], SOL_SOCKET, SO_ERROR, &error));
    assert_int_equal(error, ECONNRESET);
    test_ok(weir__sys_getsockopt(ends[0], SOL_SOCKET, SO_ERROR, &error));
    assert_int_equal(error, 0);
    assert_int_equal(weir__sys_getpeername(ends[0], &address, &length), -ENOTCONN);
    assert_int_equal(weir__sys_shutdown(ends[0], SHUT_WR), -ENOTCONN);
}

const fact facts_of_sockets[] = {
    FACT(send_completes_with_what_it_took, ANY),
    FACT(send_of_more_than_there_is_room_for_is_short, ANY),
    FACT(send_to_a_full_socket_waits_for_room, ANY),
    FACT(send_that_must_not_wait_says_so_at_once, ANY),
    FACT(silent_send_that_is_taken_whole_says_nothing, ANY),
    FACT(silent_send_that_is_taken_in_part_says_how_much, ANY),
    FACT(silent_send_without_room_says_so_at_once, ANY),
    FACT(silent_send_tells_of_its_failure, ANY),
    FACT(gathered_send_goes_in_order, ANY),
    FACT(gathered_send_may_be_short_anywhere, ANY),
    FACT(send_after_our_own_end_fails, ANY),
    FACT(send_to_a_peer_that_has_ended_goes_on, ANY),
    FACT(send_after_a_reset_hears_of_it_once, TCP),
    FACT(send_after_an_end_and_a_reset_is_a_broken_pipe, TCP),
    FACT(send_to_a_closed_unix_socket_fails, UNIX),
    FACT(urgent_byte_does_not_wake_a_poll_for_room, TCP), /* first: a worker stays for a while */
    FACT(urgent_byte_moves_a_send_that_waits_to_a_worker_thread, TCP),
    FACT(watch_ignores_urgent_bytes, TCP),
    FACT(reset_ends_a_receive_and_a_send_and_one_of_them_hears_why, TCP),
    FACT(disconnect_ends_a_receive_and_a_send, TCP),
    FACT(disconnected_socket_brings_nothing_more, TCP),
    FACT(shutdown_both_ways_ends_a_receive_and_a_send, UNIX),
    FACT(listeners_get_ports_of_their_own, TCP),
    FACT(connect_succeeds_before_anybody_accepts, TCP),
    FACT(connect_where_nobody_listens_is_refused, TCP),
    FACT(accept_waits_for_somebody, TCP),
    FACT(multishot_accept_brings_all_who_wait, TCP),
    FACT(single_accept_brings_one, TCP),
    FACT(want_of_a_descriptor_ends_a_multishot_accept, TCP),
    FACT(accept_without_a_free_descriptor_answers_at_once, TCP),
    FACT(who_was_not_accepted_is_reset_when_the_listener_closes, TCP),
    FACT(who_left_before_being_accepted_is_accepted, TCP),
    FACT(signalled_eventfd_wakes_a_poll_each_time_though_never_read, UNIX),
    FACT(signals_between_two_enters_may_wake_once, UNIX),
    FACT(poll_of_what_was_signalled_before_fires, UNIX),
    FACT(watch_ignores_data_and_tells_of_an_end, ANY),
    FACT(watch_goes_on_to_tell_of_a_reset, TCP),
    FACT(watch_tells_of_a_reset, TCP),
    FACT(watch_tells_that_the_peer_closed, ANY),
    FACT(watch_of_what_has_ended_tells_at_once, ANY),
    FACT(poll_for_room_tells_of_an_end_unasked, ANY),
    FACT(watch_and_receive_do_not_disturb_each_other, ANY),
    FACT(error_of_a_socket_is_told_once, TCP),
    { 0 },
};
