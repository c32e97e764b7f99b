/* SPDX-License-Identifier: MIT */
/*
 * What weir stays away from: the simulated kernel does not have it, and refuses to run it. So these are asked of the
 * machine's kernel alone: they say why weir does without, and notice when that changes.
 */
#include <liburing.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

#include "facts/facts.h"

enum { HEADER = sizeof(struct io_uring_recvmsg_out) };

static int ends[2];
static struct msghdr nothing_named; /* the kernel's to look at until it is entered */

static void begin(void) {
    open_ring(16, 256);
    open_group(0, INCREMENTAL);
    pair(ends);
}

/* ---- other ways to receive into a group --------------------------------------------------------------- */

static void read_multishot(uint64_t user) {
    struct io_uring_sqe *sqe = entry(IORING_OP_READ_MULTISHOT, ends[0], user);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->off = UINT64_MAX;
}

static void recvmsg_multishot(uint64_t user) {
    struct io_uring_sqe *sqe = entry(IORING_OP_RECVMSG, ends[0], user);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->ioprio = IORING_RECV_MULTISHOT;
    sqe->addr = (uint64_t)(uintptr_t)&nothing_named;
    sqe->len = 1;
}

static void multishot_read_fills_buffers_as_a_receive_does(void) {
    begin();
    publish(0, 64, 2);
    read_multishot(1);
    nothing_comes();
    write_bytes(ends[1], 50);
    weir__cqe cqe = next();
    is_data(cqe, 1, 50, 0, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
    write_bytes(ends[1], 30);
    cqe = next();
    is_data(cqe, 1, 14, 0, F_MORE);
    read_bytes(cqe, 0, ends[1]);
    cqe = next();
    is_data(cqe, 1, 16, 1, F_MORE | F_BUF_MORE);
    read_bytes(cqe, 0, ends[1]);
}

static void recvmsg_takes_a_header_of_each_buffer(void) {
    begin();
    publish(0, 4096, 1);
    recvmsg_multishot(1);
    nothing_comes();
    for (unsigned i = 0; i < 2; i++) {
        struct io_uring_recvmsg_out header;
        write_bytes(ends[1], 100);
        weir__cqe cqe = next();
        is_data(cqe, 1, HEADER + 100, 0, F_MORE | F_BUF_MORE);
        memcpy(&header, buffer(0, 0) + (size_t)i * (HEADER + 100), sizeof header);
        assert_int_equal(header.payloadlen, 100);
        assert_int_equal(test_differs((uint64_t)ends[1], 100 * (uint64_t)i,
                                      buffer(0, 0) + (size_t)i * (HEADER + 100) + HEADER, 100),
                         -1);
    }
}

/* And the buffer stays at the head: whoever asks next is told the same. */
static void recvmsg_fails_for_ever_where_a_buffer_has_no_room_for_its_header(void) {
    begin();
    publish(0, HEADER + 100 + HEADER - 1, 1);
    publish(0, 4096, 1);
    recvmsg_multishot(1);
    nothing_comes();
    write_bytes(ends[1], 100);
    is_data(next(), 1, HEADER + 100, 0, F_MORE | F_BUF_MORE);
    write_bytes(ends[1], 100);
    is(next(), 1, -EFAULT, 0);
    recvmsg_multishot(1);
    is(next(), 1, -EFAULT, 0);
}

/* ---- entries ------------------------------------------------------------------------------------------ */

static void entry_without_length_fakes_an_end(void) {
    begin();
    publish(0, 0, 1);
    publish(0, 4096, 1);
    write_bytes(ends[1], 100);
    until(ends[0], POLLIN);
    receive(ends[0], 1, 0, 0);
    weir__cqe cqe = next();
    assert_int_equal(cqe.res, 0);
    assert_int_equal(cqe.flags & F_MORE, 0);
    assert_int_equal(weir__sys_peek(ends[0]), 1); /* nothing was taken, nor has it ended */
}

/* From Linux 7.1 on, and in some before: a buffer with fewer bytes left than that is given up. */
static void buffer_is_given_up_early_where_the_kernel_knows_min_left(void) {
    struct io_uring uring;
    static uint8_t memory[2][128];
    uint64_t min_left = 0;
    const size_t size = 2 * sizeof(struct io_uring_buf);
    test_ok(io_uring_queue_init(8, &uring, IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN));
    struct io_uring_buf_ring *shared =
        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    assert_true(shared != MAP_FAILED);
    struct io_uring_buf_reg reg = { .ring_addr = (uint64_t)(uintptr_t)shared,
                                    .ring_entries = 2,
                                    .flags = IOU_PBUF_RING_INC };
    const uint32_t least = 64; /* where 7.1's structure has it: the first half of what was reserved */
    memcpy(&min_left, &least, sizeof least);
    reg.resv[0] = min_left;
    int r = io_uring_register_buf_ring(&uring, &reg, 0);
    if (r == -EINVAL) {
        print_message("this kernel does not know min_left\n");
        io_uring_queue_exit(&uring);
        munmap(shared, size);
        skip();
    }
    test_ok(r);
    for (int i = 0; i < 2; i++)
        io_uring_buf_ring_add(shared, memory[i], sizeof memory[i], (unsigned short)i, 1, i);
    io_uring_buf_ring_advance(shared, 2);
    test_ok(weir__sys_socketpair(ends));
    for (int i = 0; i < 2; i++) {
        struct io_uring_sqe *sqe = io_uring_get_sqe(&uring);
        struct io_uring_cqe *cqe = NULL;
        assert_int_equal(weir__sys_send(ends[1], memory, i == 0 ? 64 : 1), i == 0 ? 64 : 1);
        io_uring_prep_recv(sqe, ends[0], NULL, 0, 0);
        sqe->flags = IOSQE_BUFFER_SELECT;
        assert_int_equal(io_uring_submit_and_wait(&uring, 1), 1);
        test_ok(io_uring_peek_cqe(&uring, &cqe));
        assert_int_equal(cqe->res, i == 0 ? 64 : 1);
        assert_int_equal(cqe->flags >> IORING_CQE_BUFFER_SHIFT, 0);
        assert_int_equal((cqe->flags & F_BUF_MORE) != 0, i == 0); /* 63 are left after the second */
        io_uring_cqe_seen(&uring, cqe);
    }
    test_ok(weir__sys_close(ends[0]));
    test_ok(weir__sys_close(ends[1]));
    io_uring_queue_exit(&uring);
    munmap(shared, size);
}

/* ---- threads ------------------------------------------------------------------------------------------ */

typedef struct elsewhere {
    int entered, registered;
} elsewhere;

static void *use_the_ring_elsewhere(void *results) {
    elsewhere *e = results;
    e->entered = enter();                                                /* by an index, which is this thread's */
    e->registered = weir__buffer_ring_unregister(ring(), buffers_of(0)); /* by its descriptor */
    return NULL;
}

static void ring_is_of_use_to_its_own_thread_alone(void) {
    pthread_t thread;
    elsewhere e = { 0 };
    begin();
    cancel(77, 1);
    assert_int_equal(pthread_create(&thread, NULL, use_the_ring_elsewhere, &e), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_true(e.entered == -EINVAL || e.entered == -EEXIST);
    assert_int_equal(e.registered, -EEXIST);
    is(next(), 1, -ENOENT, 0);
}

/* ---- closing ------------------------------------------------------------------------------------------ */

static void closing_does_not_end_what_is_under_way(void) {
    begin();
    publish(0, 4096, 1);
    receive(ends[0], 1, 0, 0);
    nothing_comes();
    const struct linger none = { .l_onoff = 1 };
    assert_int_equal(setsockopt(ends[0], SOL_SOCKET, SO_LINGER, &none, sizeof none), 0);
    close_now(ends[0]);
    nothing_comes();
    write_bytes(ends[1], 100); /* so there was no reset either */
    is_data(next(), 1, 100, 0, F_MORE | F_BUF_MORE);
    cancel(1, 2);
    is(next_of(1), 1, -ECANCELED, 0);
    is(next_of(2), 2, 0, 0);
}

/* ---- readiness ---------------------------------------------------------------------------------------- */

static void send_with_a_descriptor(int fd, size_t size) {
    uint8_t bytes[64];
    union {
        char room[CMSG_SPACE(sizeof(int))];
        struct cmsghdr aligned;
    } control = { { 0 } };
    struct iovec vector = { bytes, size };
    struct msghdr message = {
        .msg_iov = &vector, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control
    };
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    assert_true(size <= sizeof bytes);
    next_bytes(fd, bytes, size);
    *header =
        (struct cmsghdr){ .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof(int)) };
    memcpy(CMSG_DATA(header), &fd, sizeof fd);
    assert_int_equal(sendmsg(fd, &message, MSG_NOSIGNAL), size);
    wrote(fd, size);
}

/* What the simulated one does anywhere in a Unix socket. */
static void short_receive_of_a_unix_socket_stops_behind_each_descriptor(void) {
    uint8_t bytes[100];
    begin();
    send_with_a_descriptor(ends[1], 5);
    send_with_a_descriptor(ends[1], 3);
    write_bytes(ends[1], 2);
    assert_int_equal(weir__sys_receive(ends[0], bytes, sizeof bytes), 5);
    assert_int_equal(weir__sys_receive(ends[0], bytes, sizeof bytes), 3);
    assert_int_equal(weir__sys_receive(ends[0], bytes, sizeof bytes), 2);
    assert_int_equal(weir__sys_receive(ends[0], bytes, sizeof bytes), -EAGAIN);
}

static void regular_file_cannot_be_registered(void) {
    FILE *file = tmpfile();
    open_ring(16, 64);
    assert_non_null(file);
    int epoll = own(weir__sys_epoll());
    assert_int_equal(weir__sys_epoll_set(epoll, EPOLL_CTL_ADD, fileno(file), EPOLLIN | EPOLLET, 1), -EPERM);
    fclose(file);
}

/* So who closes it without removing it first hears of it still, under a number that may be another's by then. */
static void closed_descriptor_whose_file_lives_on_stays_registered(void) {
    struct epoll_event event;
    begin();
    int epoll = own(weir__sys_epoll()), other = own(dup(ends[0]));
    test_ok(weir__sys_epoll_set(epoll, EPOLL_CTL_ADD, ends[0], EPOLLIN | EPOLLET, 1));
    assert_int_equal(weir__sys_epoll_wait(epoll, &event, 1, 0), 0);
    close_now(ends[0]);
    write_bytes(ends[1], 10);
    until(other, POLLIN);
    assert_int_equal(weir__sys_epoll_wait(epoll, &event, 1, 0), 1);
    assert_int_equal(event.data.u64, 1);
    int r = weir__sys_epoll_set(epoll, EPOLL_CTL_DEL, ends[0], 0, 0); /* nor can it be removed now */
    assert_int_equal(r, -EBADF);
}

const fact facts_of_this_edge[] = {
    FACT(multishot_read_fills_buffers_as_a_receive_does, ANY),
    FACT(recvmsg_takes_a_header_of_each_buffer, ANY),
    FACT(recvmsg_fails_for_ever_where_a_buffer_has_no_room_for_its_header, ANY),
    FACT(entry_without_length_fakes_an_end, ANY),
    FACT(buffer_is_given_up_early_where_the_kernel_knows_min_left, UNIX),
    FACT(ring_is_of_use_to_its_own_thread_alone, UNIX),
    FACT(closing_does_not_end_what_is_under_way, ANY),
    FACT(short_receive_of_a_unix_socket_stops_behind_each_descriptor, UNIX),
    FACT(regular_file_cannot_be_registered, UNIX),
    FACT(closed_descriptor_whose_file_lives_on_stays_registered, ANY),
    { 0 },
};
