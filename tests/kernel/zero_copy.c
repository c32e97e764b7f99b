/* SPDX-License-Identifier: MIT */

/*
 * Nothing is copied between the kernel that receives and the kernel that sends, and that is not taken from a counter
 * which the library keeps itself: the calls of the edge are wrapped (the linker's --wrap), so that this file sees the
 * address of each buffer that is published, where in it each completion put its bytes, and the addresses of each send.
 * Every byte that was sent must have been sent from the very place where the kernel had received it, in order.
 *
 * tests/mutations/copy-before-send.patch inserts one copy, and this test must fail then.
 */

#include "kernel/scribe.h"

#include "edge/ring.h"

enum { MOST_FDS = 256, MOST_IDS = 65536, MOST_OPS = 1024, MOST_TAKEN = 4096, MOST_VECTORS = 64 };

/* ---- what passes the edge --------------------------------------------------------------------------------- */

typedef struct range {
    const uint8_t *data;
    size_t size;
} range;

/* Ranges in order: received on a descriptor, or to be sent on it. */
typedef struct ranges {
    range *items;
    size_t first, count, capacity;
} ranges;

typedef struct operation {
    uint64_t user_data;
    int fd;
    uint8_t opcode;
    range vectors[MOST_VECTORS];
    unsigned vector_count;
} operation;

/* Known from the loop's first day on, also before anything is recorded. */
static struct {
    const uint8_t *base[MOST_IDS];
    size_t offset[MOST_IDS];
} published;

static struct record {
    bool is_on, is_echo;
    struct io_uring_sqe *taken[MOST_TAKEN]; /* since the last enter */
    unsigned taken_count;
    operation operations[MOST_OPS];
    ranges due[MOST_FDS]; /* what is still to be sent on a descriptor, and from where */
    range last;           /* received */
    uint64_t wrong, bytes_sent, gathered, partial, coalesced;
} record;

static void range_push(ranges *r, range item) {
    if (r->first + r->count == r->capacity) {
        if (r->first > 0)
            memmove(r->items, r->items + r->first, r->count * sizeof *r->items);
        r->first = 0;
        if (r->count * 2 > r->capacity || r->capacity == 0) {
            r->capacity = r->capacity > 0 ? r->capacity * 2 : 64;
            r->items = realloc(r->items, r->capacity * sizeof *r->items);
            assert_non_null(r->items);
        }
    }
    r->items[r->first + r->count++] = item;
}

static operation *operation_of(uint64_t user_data, bool is_new) {
    for (unsigned i = 0; i < MOST_OPS; i++) {
        operation *op = &record.operations[i];
        if (op->user_data == user_data)
            return op;
        if (op->user_data == 0 && is_new) {
            op->user_data = user_data;
            return op;
        }
        if (op->user_data == 0)
            return NULL;
    }
    fail_msg("more operations than this test has room for");
    return NULL;
}

static void note_submission(const struct io_uring_sqe *sqe) {
    bool is_poll = sqe->opcode == IORING_OP_POLL_ADD; /* a send that waits for room is the same operation */
    if (!is_poll && sqe->opcode != IORING_OP_RECV && sqe->opcode != IORING_OP_SEND &&
        sqe->opcode != IORING_OP_SENDMSG)
        return;
    operation *op = operation_of(sqe->user_data, !is_poll);
    if (op == NULL)
        return;
    op->fd = sqe->fd;
    op->opcode = sqe->opcode;
    op->vector_count = 0;
    if (sqe->opcode == IORING_OP_SEND)
        op->vectors[op->vector_count++] = (range){ (const uint8_t *)(uintptr_t)sqe->addr, sqe->len };
    if (sqe->opcode != IORING_OP_SENDMSG)
        return;
    const struct msghdr *header = (const struct msghdr *)(uintptr_t)sqe->addr;
    assert_true(header->msg_iovlen <= MOST_VECTORS);
    for (; op->vector_count < header->msg_iovlen; op->vector_count++) {
        const struct iovec *vector = &header->msg_iov[op->vector_count];
        op->vectors[op->vector_count] = (range){ vector->iov_base, vector->iov_len };
    }
}

/* These bytes went out: were they due, and from here? */
static void note_sent(ranges *due, range sent) {
    for (unsigned parts = 0; sent.size > 0; parts++) {
        if (due->count == 0 || due->items[due->first].data != sent.data) {
            record.wrong++;
            return;
        }
        range *next = &due->items[due->first];
        size_t size = sent.size < next->size ? sent.size : next->size;
        next->data += size;
        next->size -= size;
        sent.data += size;
        sent.size -= size;
        record.bytes_sent += size;
        record.coalesced += parts == 1;
        if (next->size == 0) {
            due->first++;
            due->count--;
        }
    }
}

static void note_completion(const weir__cqe *cqe) {
    const operation *op = operation_of(cqe->user_data, false);
    if (op == NULL || op->opcode == IORING_OP_POLL_ADD || op->fd >= MOST_FDS || cqe->res <= 0)
        return;
    if (op->opcode == IORING_OP_RECV) {
        uint32_t id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
        assert_true((cqe->flags & IORING_CQE_F_BUFFER) != 0 && published.base[id] != NULL);
        record.last = (range){ published.base[id] + published.offset[id], (size_t)cqe->res };
        published.offset[id] += (size_t)cqe->res;
        if (record.is_echo)
            range_push(&record.due[op->fd], record.last);
        return;
    }
    size_t left = (size_t)cqe->res, all = 0;
    for (unsigned i = 0; i < op->vector_count; i++) {
        range part = op->vectors[i];
        all += part.size;
        part.size = part.size < left ? part.size : left;
        left -= part.size;
        note_sent(&record.due[op->fd], part);
    }
    record.gathered += op->vector_count > 1;
    record.partial += (size_t)cqe->res < all;
}

/* ---- the wrapped edge --------------------------------------------------------------------------------------- */

struct io_uring_sqe *__real_weir__ring_sqe(weir__ring *ring);
struct io_uring_sqe *__wrap_weir__ring_sqe(weir__ring *ring);
int __real_weir__ring_enter(weir__ring *ring, unsigned wait, uint32_t enter_flags, int64_t timeout_ns);
int __wrap_weir__ring_enter(weir__ring *ring, unsigned wait, uint32_t enter_flags, int64_t timeout_ns);
bool __real_weir__ring_cqe(weir__ring *ring, weir__cqe *ret_cqe);
bool __wrap_weir__ring_cqe(weir__ring *ring, weir__cqe *ret_cqe);
void __real_weir__buffer_ring_publish(weir__buffer_ring *buffers, const weir__provided *provided, size_t count);
void __wrap_weir__buffer_ring_publish(weir__buffer_ring *buffers, const weir__provided *provided, size_t count);

struct io_uring_sqe *__wrap_weir__ring_sqe(weir__ring *ring) {
    struct io_uring_sqe *sqe = __real_weir__ring_sqe(ring);
    if (record.is_on && sqe != NULL) {
        assert_true(record.taken_count < MOST_TAKEN);
        record.taken[record.taken_count++] = sqe;
    }
    return sqe;
}

int __wrap_weir__ring_enter(weir__ring *ring, unsigned wait, uint32_t enter_flags, int64_t timeout_ns) {
    for (unsigned i = 0; i < record.taken_count; i++)
        note_submission(record.taken[i]);
    record.taken_count = 0;
    return __real_weir__ring_enter(ring, wait, enter_flags, timeout_ns);
}

bool __wrap_weir__ring_cqe(weir__ring *ring, weir__cqe *ret_cqe) {
    bool is_there = __real_weir__ring_cqe(ring, ret_cqe);
    if (is_there && record.is_on)
        note_completion(ret_cqe);
    return is_there;
}

void __wrap_weir__buffer_ring_publish(weir__buffer_ring *buffers, const weir__provided *provided, size_t count) {
    for (size_t i = 0; i < count; i++) {
        published.base[provided[i].id] = provided[i].data;
        published.offset[provided[i].id] = 0;
    }
    __real_weir__buffer_ring_publish(buffers, provided, count);
}

static void record_start(bool is_echo) {
    memset(&record, 0, sizeof record);
    record.is_on = true;
    record.is_echo = is_echo;
}

static void record_stop(void) {
    record.is_on = false;
    for (int i = 0; i < MOST_FDS; i++)
        free(record.due[i].items);
}

static size_t still_due(void) {
    size_t count = 0;
    for (int i = 0; i < MOST_FDS; i++)
        count += record.due[i].count;
    return count;
}

/* ---- streams ------------------------------------------------------------------------------------------------- */

enum { STREAMS = 24, BYTES = TIMES(512 << 10, 128 << 10), ROOM = 16 << 10, MANY = TIMES(100, 10) };

typedef struct line {
    scribe s;
    peer p;
    uint64_t sent; /* by the peer */
} line;

/* The slice is what the kernel just said, and nothing else. */
static void expect_uncopied(const weir_slice *slice) {
    assert_ptr_equal(slice->data, record.last.data);
    assert_int_equal(slice->size, record.last.size);
}

static void echo(scribe *s, char event, const weir_slice *slice) {
    if (event != 'd')
        return;
    expect_uncopied(slice);
    assert_true(weir_stream_write_slice(s->stream, slice) >= 0);
}

/* A peer sends what there is room for. Return: it has sent all. */
static bool feed(line *l, uint64_t seed, uint64_t bytes, uint64_t *random) {
    uint8_t data[8192];
    size_t size = 1 + (size_t)(test_random(random) % sizeof data);
    size = size < bytes - l->sent ? size : (size_t)(bytes - l->sent);
    if (size == 0)
        return true;
    test_fill(seed, l->sent, data, size);
    ssize_t count = send(l->p.fd, data, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    l->sent += count > 0 ? (uint64_t)count : 0;
    return l->sent == bytes;
}

static void line_open(const test_fixture *f, line *l, bool is_tcp, uint64_t seed) {
    int fds[2];
    test_pair(is_tcp, fds);
    set_room(fds, ROOM);
    assert_true(fds[1] < MOST_FDS);
    peer_init(&l->p, fds[0], seed);
    scribe_init(&l->s, seed);
    l->sent = 0;
    scribe_adopt(f, &l->s, fds[1], NULL);
}

static void lines_close(test_fixture *f, line *lines, unsigned count) {
    for (unsigned i = 0; i < count; i++) {
        assert_int_equal(lines[i].s.wrong, -1);
        assert_int_equal(lines[i].p.wrong, -1);
        close(lines[i].p.fd);
    }
    assert_int_equal(record.wrong, 0);
    assert_int_equal(still_due(), 0);
    assert_int_equal(test_loop_stats(f).bytes_copied, 0);
    record_stop();
    test_close(f);
}

static void an_echo_sends_from_where_the_kernel_received(void **state) {
    (void)state;
    static line lines[STREAMS];
    test_fixture f;
    uint64_t random = 1, received = 0, rounds = 0;
    test_needs_io_uring();
    test_open(&f, NULL, NULL);
    record_start(true);
    for (unsigned i = 0; i < STREAMS; i++) {
        lines[i].s.hook = echo;
        line_open(&f, &lines[i], i % 2 == 0, i);
    }
    int64_t deadline = test_now_ns() + PATIENCE_S * INT64_C(1000000000);
    while (received < (uint64_t)STREAMS * BYTES) {
        received = 0;
        rounds++;
        scribe_turn(&f, 0);
        for (unsigned i = 0; i < STREAMS; i++) {
            for (int times = 0; times < 4 && !feed(&lines[i], i, BYTES, &random); times++)
                ;
            if ((rounds + i) % 8 < 2) /* they read now and then, so that queues grow and sends come up short */
                peer_read(&lines[i].p);
            received += lines[i].p.received;
        }
        assert_true(test_now_ns() < deadline);
    }
    scribe_turns(&f, 5);
    assert_int_equal(record.bytes_sent, (uint64_t)STREAMS * BYTES);
    assert_true(record.gathered > MANY);
    assert_true(record.partial > MANY);
    if (f.loop->backend->mode == WEIR_BACKEND_URING_INCREMENTAL)
        assert_true(record.coalesced > MANY);
    lines_close(&f, lines, STREAMS);
}

static line hall[STREAMS];

static void tell_all(scribe *s, char event, const weir_slice *slice) {
    if (event != 'd')
        return;
    expect_uncopied(slice);
    for (unsigned i = 0; i < STREAMS; i++) {
        if (&hall[i].s == s)
            continue;
        range_push(&record.due[weir_stream_get_fd(hall[i].s.stream)], (range){ slice->data, slice->size });
        assert_true(weir_stream_write_slice(hall[i].s.stream, slice) >= 0);
    }
}

static void one_slice_goes_to_many_streams_from_one_place(void **state) {
    (void)state;
    test_fixture f;
    uint64_t random = 2, received = 0;
    enum { SAID = 64 << 10 };
    test_needs_io_uring();
    test_open(&f, NULL, NULL);
    record_start(false);
    for (unsigned i = 0; i < STREAMS; i++) {
        hall[i].s.hook = tell_all;
        line_open(&f, &hall[i], i % 2 == 1, 0);
    }
    int64_t deadline = test_now_ns() + PATIENCE_S * INT64_C(1000000000);
    while (received < (uint64_t)(STREAMS - 1) * SAID) { /* the first speaks, the others listen */
        received = 0;
        scribe_turn(&f, 0);
        (void)feed(&hall[0], 0, SAID, &random);
        for (unsigned i = 1; i < STREAMS; i++) {
            peer_read(&hall[i].p);
            received += hall[i].p.received;
        }
        assert_true(test_now_ns() < deadline);
    }
    scribe_turns(&f, 5);
    assert_int_equal(record.bytes_sent, (uint64_t)(STREAMS - 1) * SAID);
    lines_close(&f, hall, STREAMS);
}

static void lent_memory_is_sent_from_where_it_lies(void **state) {
    (void)state;
    test_fixture f;
    line l = { 0 };
    enum { LENT = 3 << 20 };
    uint8_t *bytes = pattern_new(7, LENT);
    loan first = { .data = bytes, .size = LENT / 3 };
    loan second = { .data = bytes + LENT / 3, .size = LENT - LENT / 3 };
    test_needs_io_uring();
    test_open(&f, NULL, NULL);
    record_start(false);
    line_open(&f, &l, true, 7);
    range_push(&record.due[weir_stream_get_fd(l.s.stream)], (range){ bytes, LENT });
    assert_true(weir_stream_write_external(l.s.stream, first.data, first.size, loan_release, &first) >= 0);
    assert_true(weir_stream_write_external(l.s.stream, second.data, second.size, loan_release, &second) >= 0);
    RUN_UNTIL(&f, (peer_read(&l.p), l.p.received == LENT));
    RUN_UNTIL(&f, second.releases > 0);
    assert_int_equal(record.bytes_sent, LENT);
    assert_int_equal(first.releases, 1);
    assert_int_equal(second.releases, 1);
    lines_close(&f, &l, 1);
    free(bytes);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_echo_sends_from_where_the_kernel_received),
        cmocka_unit_test(one_slice_goes_to_many_streams_from_one_place),
        cmocka_unit_test(lent_memory_is_sent_from_where_it_lies),
    };
    return cmocka_run_group_tests_name("zero-copy", tests, NULL, NULL);
}
