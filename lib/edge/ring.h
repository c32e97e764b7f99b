/* SPDX-License-Identifier: MIT */
#ifndef WEIR_EDGE_RING_H
#define WEIR_EDGE_RING_H

/*
 * io_uring as it is, without logic: a ring, its submissions and completions, its buffer rings. A test puts another
 * implementation of these functions in the place of ring.c, and everything above runs on it unmodified.
 *
 * Results are 0 or more, or -errno; errno itself is not touched. A ring belongs to the thread that enables it.
 */

#include <liburing/io_uring.h>

#include "base/alloc.h"
#include "base/base.h"

/* Not in liburing 2.9's copy of the kernel's header. */
#ifndef IORING_ENTER_NO_IOWAIT
#define IORING_ENTER_NO_IOWAIT (1U << 7)
#endif
#ifndef IORING_FEAT_NO_IOWAIT
#define IORING_FEAT_NO_IOWAIT (1U << 17)
#endif

typedef struct weir__ring weir__ring;

/* A completion: struct io_uring_cqe without its optional tail. */
typedef struct weir__cqe {
    uint64_t user_data;
    int32_t res;
    uint32_t flags; /* IORING_CQE_F_* */
} weir__cqe;

/* ---- the ring --------------------------------------------------------------------------------------- */

/* io_uring_setup and the mappings (not inherited by a child). @setup_flags are IORING_SETUP_*. */
int weir__ring_open(const weir_allocator *allocator, unsigned sq_entries, unsigned cq_entries,
                    uint32_t setup_flags, weir__ring **ret_ring);
/* Unmap and close. Nothing of it may be used after. */
void weir__ring_close(weir__ring *ring);
/* IORING_FEAT_* of this ring. */
uint32_t weir__ring_features(const weir__ring *ring);
/* Enable a ring set up with R_DISABLED; the calling thread owns it. Registers the ring's descriptor where it can. */
int weir__ring_enable(weir__ring *ring);

/* ---- submitting and completing ---------------------------------------------------------------------- */

/* The next free submission entry, zeroed; NULL: the queue is full. */
struct io_uring_sqe *weir__ring_sqe(weir__ring *ring);
/* io_uring_enter: submit what is queued, wait for @wait completions, for @timeout_ns at most (negative: without
 * limit). @enter_flags are IORING_ENTER_*. Return: entries submitted, or -errno (-ETIME: nothing came in time). */
int weir__ring_enter(weir__ring *ring, unsigned wait, uint32_t enter_flags, int64_t timeout_ns);
/* Entries that are queued, and that the kernel has not taken yet. */
unsigned weir__ring_unsubmitted(const weir__ring *ring);
/* Take the oldest completion out of the queue; false: there is none. */
bool weir__ring_cqe(weir__ring *ring, weir__cqe *ret_cqe);
/* How many lie there? */
unsigned weir__ring_ready(const weir__ring *ring);
/* Is there one? */
bool weir__ring_has_cqe(const weir__ring *ring);
/* The IORING_SQ_* flags: is there deferred work, did completions overflow? */
uint32_t weir__ring_flags(const weir__ring *ring);

/* ---- provided buffers ------------------------------------------------------------------------------- */

typedef struct weir__buffer_ring weir__buffer_ring;

typedef struct weir__provided {
    void *data;
    uint32_t size;
    uint16_t id;
} weir__provided;

/* Map and register an empty buffer ring of @entries (a power of two) as group @group. @flags are IOU_PBUF_RING_*. */
int weir__buffer_ring_open(weir__ring *ring, uint16_t group, uint32_t entries, uint16_t flags,
                           const weir_allocator *allocator, weir__buffer_ring **ret_buffers);
/* Unregister; the kernel takes no more of it, and entries not consumed are whole again. */
int weir__buffer_ring_unregister(weir__ring *ring, weir__buffer_ring *buffers);
/* Unmap; after unregistering, or after the ring is closed. */
void weir__buffer_ring_close(weir__buffer_ring *buffers);
/* Give buffers to the kernel, in this order. */
void weir__buffer_ring_publish(weir__buffer_ring *buffers, const weir__provided *provided, size_t count);
/* The @position-th entry published since the ring was opened, as the kernel has left it. */
weir__provided weir__buffer_ring_entry(const weir__buffer_ring *buffers, uint32_t position);

#endif
