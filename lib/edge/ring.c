/* SPDX-License-Identifier: MIT */
#include "edge/ring.h"

#include <liburing.h>
#include <sys/mman.h>

struct weir__ring {
    struct io_uring uring;
    const weir_allocator *allocator;
    int enter_fd;         /* a descriptor, or an index of this thread's registered rings */
    uint32_t enter_flags; /* IORING_ENTER_REGISTERED_RING in that case */
};

struct weir__buffer_ring {
    struct io_uring_buf_ring *shared;
    size_t shared_size;
    uint32_t mask;
    uint16_t tail, group;
    const weir_allocator *allocator;
};

/* liburing's wrappers of mmap leave errno alone; what libc does here must too. */
static int failed(int saved) {
    int error = errno;
    errno = saved;
    return -error;
}

/* In a child of fork its parent may have had a buffer there; liburing's mappings are made past AddressSanitizer. */
static void unpoison(const struct io_uring *uring) {
    WEIR__UNPOISON(uring->sq.ring_ptr, uring->sq.ring_sz);
    WEIR__UNPOISON(uring->cq.ring_ptr, uring->cq.ring_sz);
    WEIR__UNPOISON(uring->sq.sqes, uring->sq.ring_entries * sizeof *uring->sq.sqes);
}

int weir__ring_open(const weir_allocator *allocator, unsigned sq_entries, unsigned cq_entries,
                    uint32_t setup_flags, weir__ring **ret_ring) {
    weir__ring *ring = weir__alloc_zeroed(allocator, sizeof *ring);
    if (ring == NULL)
        return -ENOMEM;
    struct io_uring_params params = { .flags = setup_flags | IORING_SETUP_CQSIZE, .cq_entries = cq_entries };
    int saved = errno;
    int r = io_uring_queue_init_params(sq_entries, &ring->uring, &params);
    if (r >= 0) {
        r = io_uring_ring_dontfork(&ring->uring);
        if (r < 0)
            io_uring_queue_exit(&ring->uring);
    }
    errno = saved;
    if (r < 0) {
        weir__free(allocator, ring, sizeof *ring);
        return r;
    }
    unpoison(&ring->uring);
    ring->allocator = allocator;
    ring->enter_fd = ring->uring.ring_fd;
    *ret_ring = ring;
    return 0;
}

void weir__ring_close(weir__ring *ring) {
    int saved = errno;
    io_uring_queue_exit(&ring->uring);
    errno = saved;
    weir__free(ring->allocator, ring, sizeof *ring);
}

uint32_t weir__ring_features(const weir__ring *ring) {
    return ring->uring.features;
}

int weir__ring_enable(weir__ring *ring) {
    int r = io_uring_register((unsigned)ring->uring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0);
    if (r < 0)
        return r;
    /* The index is this thread's, so it is registered here and not where the ring was made. It saves looking the
     * descriptor up at each enter; without it everything works. */
    if (io_uring_register_ring_fd(&ring->uring) == 1) {
        ring->enter_fd = ring->uring.enter_ring_fd;
        ring->enter_flags = IORING_ENTER_REGISTERED_RING;
    }
    return 0;
}

struct io_uring_sqe *weir__ring_sqe(weir__ring *ring) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring->uring);
    if (sqe != NULL)
        memset(sqe, 0, sizeof *sqe);
    return sqe;
}

/* Show the kernel what was queued; returns how much it has not consumed. */
static unsigned flush(struct io_uring_sq *sq) {
    if (sq->sqe_head != sq->sqe_tail) {
        sq->sqe_head = sq->sqe_tail;
        io_uring_smp_store_release(sq->ktail, sq->sqe_tail);
    }
    return sq->sqe_tail - io_uring_smp_load_acquire(sq->khead);
}

int weir__ring_enter(weir__ring *ring, unsigned wait, uint32_t enter_flags, int64_t timeout_ns) {
    unsigned submit = flush(&ring->uring.sq);
    enter_flags |= ring->enter_flags;
    if (timeout_ns < 0 || wait == 0)
        return io_uring_enter((unsigned)ring->enter_fd, submit, wait, enter_flags, NULL);
    struct __kernel_timespec time = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };
    struct io_uring_getevents_arg arg = { .sigmask_sz = _NSIG / 8, .ts = (uint64_t)(uintptr_t)&time };
    return io_uring_enter2((unsigned)ring->enter_fd, submit, wait, enter_flags | IORING_ENTER_EXT_ARG,
                           (sigset_t *)(void *)&arg, sizeof arg);
}

unsigned weir__ring_unsubmitted(const weir__ring *ring) {
    const struct io_uring_sq *sq = &ring->uring.sq;
    return sq->sqe_tail - io_uring_smp_load_acquire(sq->khead);
}

bool weir__ring_cqe(weir__ring *ring, weir__cqe *ret_cqe) {
    struct io_uring_cq *cq = &ring->uring.cq;
    unsigned head = *cq->khead;
    if (head == io_uring_smp_load_acquire(cq->ktail))
        return false;
    const struct io_uring_cqe *cqe = &cq->cqes[head & cq->ring_mask];
    *ret_cqe = (weir__cqe){ .user_data = cqe->user_data, .res = cqe->res, .flags = cqe->flags };
    io_uring_smp_store_release(cq->khead, head + 1);
    return true;
}

unsigned weir__ring_ready(const weir__ring *ring) {
    const struct io_uring_cq *cq = &ring->uring.cq;
    return io_uring_smp_load_acquire(cq->ktail) - *cq->khead;
}

bool weir__ring_has_cqe(const weir__ring *ring) {
    const struct io_uring_cq *cq = &ring->uring.cq;
    return *cq->khead != io_uring_smp_load_acquire(cq->ktail);
}

uint32_t weir__ring_flags(const weir__ring *ring) {
    return IO_URING_READ_ONCE(*ring->uring.sq.kflags);
}

int weir__buffer_ring_open(weir__ring *ring, uint16_t group, uint32_t entries, uint16_t flags,
                           const weir_allocator *allocator, weir__buffer_ring **ret_buffers) {
    weir__buffer_ring *buffers = weir__alloc_zeroed(allocator, sizeof *buffers);
    if (buffers == NULL)
        return -ENOMEM;
    int saved = errno, r;
    buffers->shared_size = entries * sizeof(struct io_uring_buf);
    buffers->shared = mmap(NULL, buffers->shared_size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    if (buffers->shared == MAP_FAILED) {
        r = failed(saved);
        weir__free(allocator, buffers, sizeof *buffers);
        return r;
    }
    WEIR__UNPOISON(buffers->shared, buffers->shared_size);
    r = madvise(buffers->shared, buffers->shared_size, MADV_DONTFORK) < 0 ? failed(saved) : 0;
    if (r >= 0) {
        /* liburing's own call dropped the flags before 2.8 and said nothing; the structure is the kernel's. */
        struct io_uring_buf_reg reg = { .ring_addr = (uint64_t)(uintptr_t)buffers->shared,
                                        .ring_entries = entries,
                                        .bgid = group,
                                        .flags = flags };
        r = io_uring_register((unsigned)ring->uring.ring_fd, IORING_REGISTER_PBUF_RING, &reg, 1);
    }
    buffers->mask = entries - 1;
    buffers->group = group;
    buffers->allocator = allocator;
    if (r < 0) {
        weir__buffer_ring_close(buffers);
        return r;
    }
    *ret_buffers = buffers;
    return 0;
}

int weir__buffer_ring_unregister(weir__ring *ring, weir__buffer_ring *buffers) {
    struct io_uring_buf_reg reg = { .bgid = buffers->group };
    return io_uring_register((unsigned)ring->uring.ring_fd, IORING_UNREGISTER_PBUF_RING, &reg, 1);
}

void weir__buffer_ring_close(weir__buffer_ring *buffers) {
    int saved = errno;
    munmap(buffers->shared, buffers->shared_size);
    errno = saved;
    weir__free(buffers->allocator, buffers, sizeof *buffers);
}

void weir__buffer_ring_publish(weir__buffer_ring *buffers, const weir__provided *provided, size_t count) {
    for (size_t i = 0; i < count; i++) {
        struct io_uring_buf *entry = &buffers->shared->bufs[buffers->tail++ & buffers->mask];
        entry->addr = (uint64_t)(uintptr_t)provided[i].data; /* the fourth member of entry 0 is the tail */
        entry->len = provided[i].size;
        entry->bid = provided[i].id;
    }
    io_uring_smp_store_release(&buffers->shared->tail, buffers->tail);
}

weir__provided weir__buffer_ring_entry(const weir__buffer_ring *buffers, uint32_t position) {
    const struct io_uring_buf *entry = &buffers->shared->bufs[position & buffers->mask];
    return (weir__provided){ .data = (void *)(uintptr_t)entry->addr, .size = entry->len, .id = entry->bid };
}
