/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BENCH_LOAD_RING_H
#define WEIR_BENCH_LOAD_RING_H

/* The ring that the load works with, and the buffers that the kernel receives into. What a completion brought is
 * looked at and given back at once, so that few buffers serve all connections and stay in the cache. */

#include <liburing.h>
#include <stdbool.h>
#include <stdint.h>

enum { LOAD_GROUP = 1, LOAD_BUFFERS_MAX = 512 };

struct load_ring {
    struct io_uring uring;
    struct io_uring_buf_ring *buffers;
    uint8_t *memory;
    unsigned buffer_count;
    uint32_t buffer_size;
    uint32_t filled[LOAD_BUFFERS_MAX]; /* of each buffer that the kernel fills bit by bit */
};

/* What a completion belongs to is said by a number and the kind of what completed. */
enum load_kind { LOAD_CONNECT = 1, LOAD_RECEIVE, LOAD_SEND, LOAD_CANCEL, LOAD_CLOSE };
static inline uint64_t load_tag(unsigned index, enum load_kind kind) {
    return (uint64_t)index << 8 | (uint64_t)kind;
}

/* @files is how many places the table of registered files gets. */
void load_ring_open(struct load_ring *ring, unsigned files);
void load_ring_close(struct load_ring *ring);
void load_ring_submit(struct load_ring *ring);
/* Submits, and waits for a completion, but not beyond @until_ns. */
void load_ring_wait(struct load_ring *ring, uint64_t now_ns, uint64_t until_ns);

/* Submits. Return: something is complete. */
bool load_ring_look(struct load_ring *ring);

/* An entry, with room for @count in one submission: what is linked must not be torn. */
static inline struct io_uring_sqe *load_ring_sqe(struct load_ring *ring, unsigned count) {
    if (io_uring_sq_space_left(&ring->uring) < count)
        load_ring_submit(ring);
    return io_uring_get_sqe(&ring->uring);
}

static inline const uint8_t *load_ring_data(const struct load_ring *ring, const struct io_uring_cqe *cqe) {
    unsigned id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
    return ring->memory + (size_t)id * ring->buffer_size + ring->filled[id];
}

/* Gives back what a completion brought, if it brought something. */
static inline void load_ring_recycle(struct load_ring *ring, const struct io_uring_cqe *cqe) {
    if (!(cqe->flags & IORING_CQE_F_BUFFER))
        return;
    unsigned id = cqe->flags >> IORING_CQE_BUFFER_SHIFT;
    if (cqe->flags & IORING_CQE_F_BUF_MORE) {
        ring->filled[id] += (uint32_t)(cqe->res > 0 ? cqe->res : 0);
        return;
    }
    ring->filled[id] = 0;
    io_uring_buf_ring_add(ring->buffers, ring->memory + (size_t)id * ring->buffer_size, ring->buffer_size,
                          (unsigned short)id, io_uring_buf_ring_mask(ring->buffer_count), 0);
    io_uring_buf_ring_advance(ring->buffers, 1);
}

#endif
