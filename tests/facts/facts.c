/* SPDX-License-Identifier: MIT */
#include "facts/facts.h"

#include <assert.h>
#include <stdio.h>

enum { MOST_SOCKETS = 1024, MOST_BUFFERS = 4096, INTERNAL = 1 << 30, PATIENCE = 2000, MOST_FACTS = 256 };

typedef struct group {
    weir__buffer_ring *ring;
    uint16_t flags;
    uint8_t *memory, *bases[MOST_BUFFERS];
    uint32_t sizes[MOST_BUFFERS], used[MOST_BUFFERS];
    unsigned count, head; /* published; the first one that is not used up */
    size_t memory_used;
} group;

static struct {
    bool is_tcp, is_running;
    unsigned round;
    weir__ring *ring;
    group groups[GROUPS];
    weir__buffer_ring *old[GROUPS]; /* closed with the ring */
    int fds[MOST_SOCKETS];
    unsigned fd_count;
    weir__cqe held[MOST_HELD];
    unsigned held_first, held_count;
    uint64_t written[MOST_SOCKETS], read[MOST_SOCKETS]; /* by descriptor */
} facts;

bool is_before(unsigned major, unsigned minor) {
    return weir__sys_kernel_version() < (major << 16 | minor << 8);
}

/* ---- a ring, its buffers and sockets ---------------------------------------------------------------- */

void open_disabled_ring(unsigned sq_entries, unsigned cq_entries) {
    const uint32_t flags = IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP | IORING_SETUP_SUBMIT_ALL |
                           IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG |
                           IORING_SETUP_NO_SQARRAY;
    test_ok(weir__ring_open(&weir__default_allocator, sq_entries, cq_entries, flags, &facts.ring));
}

void open_ring(unsigned sq_entries, unsigned cq_entries) {
    open_disabled_ring(sq_entries, cq_entries);
    test_ok(weir__ring_enable(facts.ring));
}

weir__ring *ring(void) {
    return facts.ring;
}

void open_group(uint16_t number, uint16_t flags) {
    group *g = &facts.groups[number];
    test_ok(weir__buffer_ring_open(facts.ring, number, GROUP_ENTRIES, flags, &weir__default_allocator, &g->ring));
    g->flags = flags;
    if (g->memory == NULL)
        g->memory = malloc(GROUP_BYTES);
    assert_non_null(g->memory);
}

void reopen_group(uint16_t number, uint16_t flags) {
    group *g = &facts.groups[number];
    test_ok(weir__buffer_ring_unregister(facts.ring, g->ring));
    facts.old[number] = g->ring;
    g->ring = NULL;
    g->head = g->count;
    open_group(number, flags);
}

weir__buffer_ring *buffers_of(uint16_t number) {
    return facts.groups[number].ring;
}

void publish(uint16_t number, uint32_t size, unsigned count) {
    group *g = &facts.groups[number];
    for (unsigned i = 0; i < count; i++) {
        unsigned id = g->count++;
        assert_true(id < MOST_BUFFERS);
        if (g->memory_used + size > GROUP_BYTES) {
            assert_int_equal(g->head, id); /* nothing of it is the kernel's any more */
            g->memory_used = 0;
        }
        g->bases[id] = g->memory + g->memory_used;
        g->sizes[id] = size;
        g->used[id] = 0;
        g->memory_used += size;
        const weir__provided provided = { g->bases[id], size, (uint16_t)id };
        weir__buffer_ring_publish(g->ring, &provided, 1);
    }
}

uint8_t *buffer(uint16_t number, unsigned id) {
    return facts.groups[number].bases[id];
}

bool is_tcp(void) {
    return facts.is_tcp;
}

int own(int fd) {
    assert_in_range(fd, 0, MOST_SOCKETS - 1);
    assert_true(facts.fd_count < MOST_SOCKETS);
    facts.fds[facts.fd_count++] = fd;
    facts.written[fd] = facts.read[fd] = 0;
    return fd;
}

void disconnect(int fd) {
    const struct sockaddr_storage none = { .ss_family = AF_UNSPEC };
    test_ok(weir__sys_connect(fd, (const struct sockaddr *)&none, sizeof none));
}

void close_now(int fd) {
    for (unsigned i = 0; i < facts.fd_count; i++)
        if (facts.fds[i] == fd) {
            facts.fds[i] = facts.fds[--facts.fd_count];
            break;
        }
    test_ok(weir__sys_close(fd));
}

int listen_somewhere(int backlog) {
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int fd = own(weir__sys_socket(AF_INET, SOCK_STREAM));
    test_ok(weir__sys_bind(fd, (const struct sockaddr *)&in, sizeof in));
    test_ok(weir__sys_listen(fd, backlog));
    return fd;
}

void pair(int ret_fds[2]) {
    if (!facts.is_tcp) {
        test_ok(weir__sys_socketpair(ret_fds));
        own(ret_fds[0]);
        own(ret_fds[1]);
        return;
    }
    struct sockaddr_storage address;
    socklen_t length;
    int listener = listen_somewhere(1);
    test_ok(weir__sys_getsockname(listener, &address, &length));
    ret_fds[0] = own(weir__sys_socket(AF_INET, SOCK_STREAM));
    connect_at(ret_fds[0], INTERNAL, &address, length);
    assert_int_equal(next_of(INTERNAL).res, 0);
    accept_at(listener, INTERNAL + 1, false);
    ret_fds[1] = own(next_of(INTERNAL + 1).res);
    close_now(listener);
}

/* ---- submissions ------------------------------------------------------------------------------------ */

struct io_uring_sqe *entry(uint8_t opcode, int fd, uint64_t user) {
    struct io_uring_sqe *sqe = weir__ring_sqe(facts.ring);
    assert_non_null(sqe);
    sqe->opcode = opcode;
    sqe->fd = fd;
    sqe->user_data = user;
    return sqe;
}

void receive(int fd, uint64_t user, uint16_t number, unsigned ioprio) {
    struct io_uring_sqe *sqe = entry(IORING_OP_RECV, fd, user);
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->buf_group = number;
    sqe->ioprio = (uint16_t)(IORING_RECV_MULTISHOT | ioprio);
}

void send_to(int fd, uint64_t user, const void *data, size_t size) {
    struct io_uring_sqe *sqe = entry(IORING_OP_SEND, fd, user);
    sqe->addr = (uint64_t)(uintptr_t)data;
    sqe->len = (uint32_t)size;
    sqe->msg_flags = MSG_NOSIGNAL;
}

void cancel(uint64_t target, uint64_t user) {
    entry(IORING_OP_ASYNC_CANCEL, -1, user)->addr = target;
}

void connect_at(int fd, uint64_t user, const struct sockaddr_storage *address, socklen_t length) {
    static struct sockaddr_storage kept; /* the kernel copies it when it is entered */
    struct io_uring_sqe *sqe = entry(IORING_OP_CONNECT, fd, user);
    kept = *address;
    sqe->addr = (uint64_t)(uintptr_t)&kept;
    sqe->off = length;
}

void accept_at(int listener, uint64_t user, bool is_multishot) {
    struct io_uring_sqe *sqe = entry(IORING_OP_ACCEPT, listener, user);
    sqe->ioprio = is_multishot ? IORING_ACCEPT_MULTISHOT : 0;
    sqe->accept_flags = SOCK_NONBLOCK | SOCK_CLOEXEC;
}

void poll_at(int fd, uint64_t user, int events, bool is_multishot) {
    struct io_uring_sqe *sqe = entry(IORING_OP_POLL_ADD, fd, user);
    sqe->len = is_multishot ? IORING_POLL_ADD_MULTI : 0;
    sqe->poll32_events = (uint32_t)events;
}

/* ---- completions ------------------------------------------------------------------------------------ */

int enter(void) {
    return weir__ring_enter(facts.ring, 0, IORING_ENTER_GETEVENTS, 0);
}

static void take_all(void) {
    while (facts.held_count < MOST_HELD &&
           weir__ring_cqe(facts.ring, &facts.held[(facts.held_first + facts.held_count) % MOST_HELD]))
        facts.held_count++;
    assert_true(facts.held_count < MOST_HELD);
}

/* Enter and take what there is, waiting 10 ms for it at most. */
static void turn(void) {
    int r = weir__ring_enter(facts.ring, 1, IORING_ENTER_GETEVENTS, 10 * 1000 * 1000);
    if (r != -ETIME && r != -EINTR)
        assert_true(r >= 0);
    take_all();
}

weir__cqe next(void) {
    take_all();
    for (int turns = 0; facts.held_count == 0; turns++) {
        assert_in_range(turns, 0, PATIENCE);
        turn();
    }
    weir__cqe cqe = facts.held[facts.held_first++ % MOST_HELD];
    facts.held_first %= MOST_HELD;
    facts.held_count--;
    return cqe;
}

weir__cqe next_of(uint64_t user) {
    take_all();
    for (int turns = 0;; turns++) {
        for (unsigned i = 0; i < facts.held_count; i++) {
            weir__cqe cqe = facts.held[(facts.held_first + i) % MOST_HELD];
            if (cqe.user_data != user)
                continue;
            for (facts.held_count--; i < facts.held_count; i++)
                facts.held[(facts.held_first + i) % MOST_HELD] =
                    facts.held[(facts.held_first + i + 1) % MOST_HELD];
            return cqe;
        }
        assert_in_range(turns, 0, PATIENCE);
        turn();
    }
}

bool next_if_any(weir__cqe *ret_cqe) {
    for (int i = 0; i < 2 && facts.held_count == 0; i++)
        turn();
    if (facts.held_count == 0)
        return false;
    *ret_cqe = next();
    return true;
}

void nothing_comes(void) {
    for (int i = 0; i < 2; i++)
        turn();
    for (unsigned i = 0; i < facts.held_count; i++) {
        weir__cqe cqe = facts.held[(facts.held_first + i) % MOST_HELD];
        print_error("user %u res %d flags %#x\n", (unsigned)cqe.user_data, cqe.res, cqe.flags);
    }
    assert_int_equal(facts.held_count, 0);
}

void is(weir__cqe cqe, uint64_t user, int32_t res, uint32_t flags) {
    assert_int_equal(cqe.user_data, user);
    assert_int_equal(cqe.res, res);
    assert_int_equal(cqe.flags & ~(uint32_t)IORING_CQE_F_SOCK_NONEMPTY, flags);
}

void is_data(weir__cqe cqe, uint64_t user, int32_t res, unsigned id, uint32_t flags) {
    is(cqe, user, res, flags | IORING_CQE_F_BUFFER | id << IORING_CQE_BUFFER_SHIFT);
}

void until(int fd, int events) {
    poll_at(fd, INTERNAL + 2, events, false);
    weir__cqe cqe = next_of(INTERNAL + 2);
    assert_true(cqe.res > 0);
    assert_int_equal(cqe.flags & F_MORE, 0);
}

/* ---- bytes ------------------------------------------------------------------------------------------ */

void next_bytes(int fd, void *data, size_t size) {
    test_fill((uint64_t)fd, facts.written[fd], data, size);
}

void wrote(int fd, size_t size) {
    facts.written[fd] += size;
}

void write_bytes(int fd, size_t size) {
    uint8_t bytes[8192];
    assert_true(size <= sizeof bytes);
    next_bytes(fd, bytes, size);
    assert_int_equal(weir__sys_send(fd, bytes, size), size);
    wrote(fd, size);
}

void write_urgent(int fd) {
    struct io_uring_sqe *sqe = entry(IORING_OP_SEND, fd, INTERNAL + 5);
    sqe->addr = (uint64_t)(uintptr_t) "!";
    sqe->len = 1;
    sqe->msg_flags = MSG_NOSIGNAL | MSG_OOB;
    is(next_of(INTERNAL + 5), INTERNAL + 5, 1, 0);
}

static void write_until_full(int fd) {
    uint8_t bytes[8192];
    for (int tries = 0; tries < 3;) {
        next_bytes(fd, bytes, sizeof bytes);
        int r = weir__sys_send(fd, bytes, sizeof bytes);
        if (r == -EAGAIN) { /* over TCP room may come late */
            tries++;
            turn();
            continue;
        }
        assert_true(r > 0);
        wrote(fd, (size_t)r);
    }
}

void send_that_waits(int fd, uint64_t user, void *data, size_t size) {
    for (;;) {
        write_until_full(fd);
        next_bytes(fd, data, size);
        send_to(fd, user, data, size);
        for (int i = 0; i < 5 && facts.held_count == 0; i++)
            turn();
        if (facts.held_count == 0)
            return;
        weir__cqe cqe = next_of(user);
        assert_true(cqe.res > 0);
        wrote(fd, (size_t)cqe.res);
    }
}

void read_bytes(weir__cqe cqe, uint16_t number, int from) {
    group *g = &facts.groups[number];
    unsigned id = cqe.flags >> IORING_CQE_BUFFER_SHIFT;
    assert_true(cqe.res > 0);
    assert_true((cqe.flags & IORING_CQE_F_BUFFER) != 0);
    assert_int_equal(id, g->head & 0xFFFF); /* in the order of publishing */
    assert_true(g->used[id] + (uint32_t)cqe.res <= g->sizes[id]);
    assert_int_equal(test_differs((uint64_t)from, facts.read[from], g->bases[id] + g->used[id], (size_t)cqe.res),
                     -1);
    g->used[id] += (uint32_t)cqe.res;
    facts.read[from] += (uint64_t)cqe.res;
    if ((g->flags & INCREMENTAL) != 0)
        assert_true(((cqe.flags & F_BUF_MORE) != 0) == (g->used[id] < g->sizes[id]));
    else
        assert_int_equal(cqe.flags & F_BUF_MORE, 0);
    g->head += (cqe.flags & F_BUF_MORE) == 0;
}

size_t bytes_read(int from) {
    return (size_t)facts.read[from];
}

void drain(int fd, int from) {
    const uint16_t number = GROUPS - 1;
    group *g = &facts.groups[number];
    if (g->ring == NULL)
        open_group(number, INCREMENTAL);
    bool is_armed = false, is_cancelled = false;
    while (facts.read[from] < facts.written[from] || is_armed) {
        if (g->head == g->count)
            publish(number, 16384, 1);
        if (!is_armed)
            receive(fd, INTERNAL + 3, number, 0);
        weir__cqe cqe = next_of(INTERNAL + 3);
        is_armed = (cqe.flags & F_MORE) != 0;
        if (cqe.res > 0)
            read_bytes(cqe, number,
                       from); /* it may be more than has been said to be written: a send is under way */
        else
            assert_true(cqe.res == -ENOBUFS || cqe.res == -ECANCELED ||
                        (cqe.res == 0 && facts.read[from] == facts.written[from]));
        if (is_armed && !is_cancelled && facts.read[from] >= facts.written[from]) {
            cancel(INTERNAL + 3, INTERNAL + 4);
            is_cancelled = true;
        }
    }
    if (is_cancelled)
        (void)next_of(INTERNAL + 4);
}

/* ---- running ---------------------------------------------------------------------------------------- */

static int tear_down(void **state) {
    (void)state;
    if (facts.is_running)
        print_error("over %s, round %u\n", facts.is_tcp ? "TCP" : "Unix sockets", facts.round);
    if (facts.ring != NULL)
        weir__ring_close(facts.ring);
    for (int i = 0; i < GROUPS; i++) {
        if (facts.groups[i].ring != NULL)
            weir__buffer_ring_close(facts.groups[i].ring);
        if (facts.old[i] != NULL)
            weir__buffer_ring_close(facts.old[i]);
        free(facts.groups[i].memory);
    }
    while (facts.fd_count > 0)
        close_now(facts.fds[facts.fd_count - 1]);
    memset(&facts, 0, sizeof facts);
    facts_edge_end();
    return 0;
}

static void run_fact(void **state) {
    const fact *it = *state;
    if (facts_edge_missing() != NULL) {
        print_message("%s\n", facts_edge_missing());
        skip();
    }
    for (unsigned round = 0; round < facts_rounds; round++)
        for (int family = UNIX; family <= TCP; family++) {
            if ((it->families & family) == 0)
                continue;
            facts_edge_begin(round);
            facts.is_tcp = family == TCP;
            facts.round = round;
            facts.is_running = true;
            it->run();
            facts.is_running = false;
            (void)tear_down(state);
        }
}

static unsigned add(struct CMUnitTest *tests, unsigned count, const fact *list) {
    for (; list->run != NULL; list++) {
        assert(count < MOST_FACTS);
        tests[count++] = (struct CMUnitTest){ .name = list->name,
                                              .test_func = run_fact,
                                              .teardown_func = tear_down,
                                              .initial_state = (void *)(uintptr_t)list };
    }
    return count;
}

int main(void) {
    static struct CMUnitTest tests[MOST_FACTS];
    unsigned count = add(tests, 0, facts_of_buffers);
    count = add(tests, count, facts_of_caps);
    count = add(tests, count, facts_of_receives);
    count = add(tests, count, facts_of_completions);
    count = add(tests, count, facts_of_sockets);
    count = add(tests, count, facts_of_readiness);
    count = add(tests, count, facts_of_this_edge);
    return _cmocka_run_group_tests(facts_edge, tests, count, NULL, NULL);
}
