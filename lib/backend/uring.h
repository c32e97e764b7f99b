/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BACKEND_URING_H
#define WEIR_BACKEND_URING_H

/* The io_uring backend: uring.c carries out operations, uring_group.c keeps the buffer ring, uring_setup.c finds out
 * what this kernel can do. */

#include "backend/backend.h"
#include "backend/waker.h"
#include "edge/ring.h"

/* ---- what the loop calls ---------------------------------------------------------------------------- */

/*
 * Find the best mode that this kernel has (or the one asked for). 0 and *ret_mode; else -ENOSYS, -EPERM and so on.
 * In either case @reason says why it is not a better one, "" if it is the best.
 */
int weir__uring_choose(const weir_allocator *allocator, uint32_t asked, const weir__tuning *tuning,
                       uint32_t *ret_mode, char *reason, size_t reason_size);
/* Why a ring could not be had. */
const char *weir__uring_error_text(int error);
/* The size of a receive buffer, unless the application says another. */
uint32_t weir__uring_buffer_bytes(uint32_t mode);
/* A backend over @pool, disabled until enable. On failure the pool is as it was. */
int weir__uring_new(const weir_allocator *allocator, uint32_t mode, const weir__tuning *tuning, weir_pool *pool,
                    weir__waker *waker, weir__backend **ret_backend);

/* ---- between the three files ------------------------------------------------------------------------ */

/* A registered buffer ring, the pool behind it, and those who wait for a buffer. */
typedef struct weir__uring_group {
    weir_pool *pool;
    weir__buffer_ring *ring;
    weir__link parked; /* weir__op.link, in the order in which they found no buffer */
    uint32_t parked_count;
    uint8_t id; /* the kernel's number of it; a condemned group's successor has another */
} weir__uring_group;

/* Open a ring with the best flags that this kernel takes. */
int weir__uring_open_ring(const weir_allocator *allocator, const weir__tuning *tuning, weir__ring **ret_ring,
                          uint32_t *ret_setup_flags);

int weir__uring_group_open(weir__uring_group *group, weir__ring *ring, const weir_allocator *allocator);
/* Publish buffers up to the window. */
void weir__uring_group_refill(weir__uring_group *group);
/* Does the kernel agree where the next byte goes? Ask only when every completion has been taken. */
bool weir__uring_group_agrees(const weir__uring_group *group);
/* It cannot be trusted: unregister it, and put a classic ring in its place. 0; -errno: there is none now. */
int weir__uring_group_condemn(weir__uring_group *group, weir__ring *ring, const weir_allocator *allocator);
void weir__uring_group_park(weir__uring_group *group, weir__op *op);
void weir__uring_group_unpark(weir__uring_group *group, weir__op *op);

#endif
