/* SPDX-License-Identifier: MIT */

/*
 * The memory that the kernel is given to keep, and how it is entered. A kernel that writes to a buffer which is not ours any
 * more, or a child that shares the ring with its parent, shows up late and elsewhere. So the calls themselves are looked at.
 */

#include <liburing.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>

#include "kernel/scribe.h"

enum { THEIRS = 2, MOST_PAYLOADS = 1024 };

/* ---- the calls --------------------------------------------------------------------------------------------- */

typedef struct area {
    const uint8_t *data;
    size_t size;
} area;

static struct {
    area ring;                   /* what the kernel was told last that a buffer ring is */
    area payload[MOST_PAYLOADS]; /* buffers that are mapped */
    unsigned payloads;
    bool is_registered; /* the kernel has the ring */
    unsigned unregistered;
    unsigned early; /* unmapped while the kernel had the ring */
    bool refuses_ring_fd;
    unsigned ring_fds; /* registered */
    unsigned enters, enters_by_index, enters_by_fd;
} seen;

int __real_munmap(void *address, size_t size);
int __wrap_munmap(void *address, size_t size);
void *__real_weir__sys_map_private(size_t size);
void *__wrap_weir__sys_map_private(size_t size);
int __real_io_uring_register(unsigned fd, unsigned opcode, const void *argument, unsigned count);
int __wrap_io_uring_register(unsigned fd, unsigned opcode, const void *argument, unsigned count);
int __real_io_uring_register_ring_fd(struct io_uring *ring);
int __wrap_io_uring_register_ring_fd(struct io_uring *ring);
int __real_io_uring_enter(unsigned fd, unsigned submit, unsigned wait, unsigned flags, sigset_t *signals);
int __wrap_io_uring_enter(unsigned fd, unsigned submit, unsigned wait, unsigned flags, sigset_t *signals);
int __real_io_uring_enter2(unsigned fd, unsigned submit, unsigned wait, unsigned flags, void *argument,
                           size_t size);
int __wrap_io_uring_enter2(unsigned fd, unsigned submit, unsigned wait, unsigned flags, void *argument,
                           size_t size);

int __wrap_munmap(void *address, size_t size) {
    for (unsigned i = 0; i < seen.payloads; i++)
        if (seen.payload[i].data == address) {
            seen.early += seen.is_registered;
            seen.payload[i] = seen.payload[--seen.payloads];
            break;
        }
    if (seen.ring.data != NULL && seen.ring.data == address) {
        seen.early += seen.is_registered;
        seen.ring = (area){ 0 };
    }
    return __real_munmap(address, size);
}

void *__wrap_weir__sys_map_private(size_t size) {
    void *data = __real_weir__sys_map_private(size);
    assert_true(seen.payloads < MOST_PAYLOADS);
    seen.payload[seen.payloads++] = (area){ data, size };
    return data;
}

int __wrap_io_uring_register(unsigned fd, unsigned opcode, const void *argument, unsigned count) {
    const struct io_uring_buf_reg *ring = argument;
    int r = __real_io_uring_register(fd, opcode, argument, count);
    if (opcode == IORING_REGISTER_PBUF_RING && r >= 0) {
        seen.ring = (area){ (const uint8_t *)(uintptr_t)ring->ring_addr,
                            ring->ring_entries * sizeof(struct io_uring_buf) };
        seen.is_registered = true;
    } else if (opcode == IORING_UNREGISTER_PBUF_RING && r >= 0) {
        seen.is_registered = false;
        seen.unregistered++;
    }
    return r;
}

int __wrap_io_uring_register_ring_fd(struct io_uring *ring) {
    int r = seen.refuses_ring_fd ? -EINVAL : __real_io_uring_register_ring_fd(ring);
    seen.ring_fds += r == 1;
    return r;
}

static void entered(unsigned fd, unsigned flags, int result) {
    if (result == -EBADFD)
        return; /* whether the call is allowed, before the ring is enabled and has an index */
    bool is_index = (flags & IORING_ENTER_REGISTERED_RING) != 0;
    seen.enters++;
    seen.enters_by_index += is_index && fd < 16; /* of a thread's registered rings, which are so many */
    seen.enters_by_fd += !is_index;
}

int __wrap_io_uring_enter(unsigned fd, unsigned submit, unsigned wait, unsigned flags, sigset_t *signals) {
    int r = __real_io_uring_enter(fd, submit, wait, flags, signals);
    entered(fd, flags, r);
    return r;
}

int __wrap_io_uring_enter2(unsigned fd, unsigned submit, unsigned wait, unsigned flags, void *argument,
                           size_t size) {
    int r = __real_io_uring_enter2(fd, submit, wait, flags, argument, size);
    entered(fd, flags, r);
    return r;
}

/* ---- a loop that has received something -------------------------------------------------------------------- */

typedef struct room {
    test_fixture f;
    scribe s;
    int peer;
    weir_slice held;
} room;

static void hold(scribe *s, char event, const weir_slice *slice) {
    room *r = s->userdata;
    if (event == 'd' && r->held.size == 0)
        weir_slice_ref(slice, &r->held);
}

static void room_open(room *r) {
    int fds[2];
    bool refuses_ring_fd = seen.refuses_ring_fd;
    memset(r, 0, sizeof *r);
    /* The process's first loop tries the kernel out on rings of its own. */
    test_open(&r->f, NULL, NULL);
    test_close(&r->f);
    memset(&seen, 0, sizeof seen);
    seen.refuses_ring_fd = refuses_ring_fd;
    test_open(&r->f, NULL, NULL);
    test_pair(true, fds);
    r->peer = fds[0];
    r->s.hook = hold;
    r->s.userdata = r;
    scribe_init(&r->s, THEIRS);
    scribe_adopt(&r->f, &r->s, fds[1], NULL);
    assert_int_equal(peer_send(r->peer, THEIRS, 0, 1000), 0);
    RUN_UNTIL(&r->f, r->s.received == 1000);
    assert_int_equal(r->s.wrong, -1);
}

static void room_close(room *r) {
    close(r->peer);
    test_close(&r->f);
}

/* ---- what becomes of the memory ------------------------------------------------------------------------------ */

static bool is_mapped(area it) {
    unsigned char is_resident;
    uintptr_t page = (uintptr_t)it.data & ~((uintptr_t)weir__sys_page_bytes() - 1);
    return mincore((void *)page, 1, &is_resident) == 0;
}

/* A child that had it could change what the kernel writes to in its parent; and a page that both have is copied when one
 * of the two writes, so that the kernel and the parent would look at different ones. */
static void a_child_has_neither_the_buffer_ring_nor_the_buffers(void **state) {
    (void)state;
    room r;
    test_needs_io_uring();
    room_open(&r);
    weir_slice_unref(&r.held);
    assert_non_null(seen.ring.data);
    assert_true(seen.payloads > 0);
    assert_true(is_mapped(seen.ring));
    assert_true(is_mapped(seen.payload[0]));
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        unsigned found = is_mapped(seen.ring);
        for (unsigned i = 0; i < seen.payloads; i++)
            found += is_mapped(seen.payload[i]) ? 2U : 0U;
        _exit((int)(found < 100 ? found : 100));
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    assert_int_equal(WEXITSTATUS(status), 0);
    room_close(&r);
}

static void the_kernel_gives_the_ring_up_before_its_memory_goes(void **state) {
    (void)state;
    room r;
    test_needs_io_uring();
    room_open(&r);
    assert_true(seen.is_registered);
    assert_int_equal(seen.unregistered, 0);
    unsigned mapped = seen.payloads;
    test_ok(weir_loop_close(r.f.loop));
    assert_int_equal(seen.unregistered, 1);
    assert_int_equal(seen.early, 0);
    assert_null(seen.ring.data);
    assert_true(mapped > 1);
    assert_int_equal(seen.payloads, 1); /* the held one */
    assert_int_equal(test_differs(THEIRS, 0, r.held.data, r.held.size), -1);
    weir_slice_unref(&r.held);
    assert_int_equal(seen.payloads, 0);
    room_close(&r);
    assert_int_equal(seen.early, 0);
}

/* ---- how the kernel is entered --------------------------------------------------------------------------------- */

static bool kernel_registers_rings(void) {
    struct io_uring ring;
    assert_int_equal(io_uring_queue_init(2, &ring, 0), 0);
    int r = __real_io_uring_register_ring_fd(&ring);
    io_uring_queue_exit(&ring);
    return r == 1;
}

static void the_ring_is_entered_by_its_registered_index(void **state) {
    (void)state;
    room r;
    test_needs_io_uring();
    if (!kernel_registers_rings())
        skip();
    room_open(&r);
    assert_int_equal(seen.ring_fds, 1);
    assert_true(seen.enters > 0);
    assert_int_equal(seen.enters_by_index, seen.enters);
    weir_slice_unref(&r.held);
    room_close(&r);
    assert_int_equal(seen.enters_by_fd, 0);
}

static void a_kernel_that_registers_none_is_entered_by_the_descriptor(void **state) {
    (void)state;
    room r;
    test_needs_io_uring();
    seen.refuses_ring_fd = true;
    room_open(&r);
    assert_int_equal(seen.ring_fds, 0);
    assert_true(seen.enters > 0);
    assert_int_equal(seen.enters_by_fd, seen.enters);
    weir_slice_unref(&r.held);
    room_close(&r);
    seen.refuses_ring_fd = false;
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_child_has_neither_the_buffer_ring_nor_the_buffers),
        cmocka_unit_test(the_kernel_gives_the_ring_up_before_its_memory_goes),
        cmocka_unit_test(the_ring_is_entered_by_its_registered_index),
        cmocka_unit_test(a_kernel_that_registers_none_is_entered_by_the_descriptor),
    };
    return cmocka_run_group_tests_name("rings", tests, NULL, NULL);
}
