/* SPDX-License-Identifier: MIT */
/*
 * Of ring.c, and a header only so that all of it is compiled as one: receive buffers, and a queue of pieces of
 * them.
 *
 * A buffer is the kernel's from when it is posted until a completion without F_BUF_MORE. The kernel does not
 * say where in it a receive lies: behind the one before, in the order of completions. When the kernel is done
 * with it and no piece points into it any more it is posted again, or, if enough are posted, becomes a spare.
 */
#ifndef WEIR_BENCH_RING_QUEUE_H
#define WEIR_BENCH_RING_QUEUE_H

#include <errno.h>
#include <liburing.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "../server.h"

enum {
    BUFFER_SIZE = 65536,
    POSTED = 16,
    BUFFERS = 1024, /* with the spare ones */
    GROUP = 0,
    NOT_A_BUFFER = BUFFERS, /* where a piece is of memory that nobody counts */
};

typedef struct buffer {
    uint32_t used;   /* bytes received into it */
    uint32_t pieces; /* that point into it */
    bool is_kernels;
} buffer;

typedef struct piece {
    const uint8_t *data;
    uint32_t size;
    uint32_t buffer;
} piece;

/* What is to be sent, in order. All zero is the empty one. */
typedef struct queue {
    piece *pieces; /* a ring of capacity, a power of two */
    uint32_t first, count, capacity;
    size_t bytes;
} queue;

static struct io_uring_buf_ring *buffer_ring;
static uint8_t *memory;
static buffer buffers[BUFFERS];
static uint32_t spares[BUFFERS], spare_count, posted;

/* ---- buffers ---------------------------------------------------------------------------------------- */

static void post(uint32_t id) {
    buffers[id] = (buffer){ .is_kernels = true };
    io_uring_buf_ring_add(buffer_ring, memory + (size_t)id * BUFFER_SIZE, BUFFER_SIZE, (unsigned short)id,
                          io_uring_buf_ring_mask(POSTED), 0);
    io_uring_buf_ring_advance(buffer_ring, 1);
    posted++;
}

/* Nobody needs it any more. */
static void give_back(uint32_t id) {
    if (posted < POSTED)
        post(id);
    else
        spares[spare_count++] = id;
}

static void release(uint32_t id) {
    if (id != NOT_A_BUFFER && --buffers[id].pieces == 0 && !buffers[id].is_kernels)
        give_back(id);
}

/* What a completion brought. It counts as one piece, for the caller to release. */
static piece received(const struct io_uring_cqe *cqe) {
    uint32_t id = cqe->flags >> IORING_CQE_BUFFER_SHIFT, size = (uint32_t)cqe->res;
    buffer *b = &buffers[id];
    piece got = { .data = memory + (size_t)id * BUFFER_SIZE + b->used, .size = size, .buffer = id };
    b->used += size;
    b->pieces++;
    if ((cqe->flags & IORING_CQE_F_BUF_MORE) == 0) {
        b->is_kernels = false;
        posted--;
        if (spare_count > 0)
            post(spares[--spare_count]);
    }
    return got;
}

static void open_buffers(struct io_uring *ring) {
    int r;
    memory = mmap(NULL, (size_t)BUFFERS * BUFFER_SIZE, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED)
        server_die("mmap: %s", strerror(errno));
    buffer_ring = io_uring_setup_buf_ring(ring, POSTED, GROUP, IOU_PBUF_RING_INC, &r);
    if (buffer_ring == NULL)
        server_unsupported("incremental buffer ring: %s", strerror(-r));
    for (uint32_t id = 0; id < BUFFERS; id++)
        give_back(id);
}

/* ---- queues ----------------------------------------------------------------------------------------- */

static piece *piece_at(const queue *q, uint32_t i) {
    return &q->pieces[(q->first + i) & (q->capacity - 1)];
}

static void grow(queue *q) {
    uint32_t capacity = q->capacity > 0 ? 2 * q->capacity : 4;
    piece *pieces = malloc(capacity * sizeof *pieces);
    if (pieces == NULL)
        server_die("no memory");
    for (uint32_t i = 0; i < q->count; i++)
        pieces[i] = *piece_at(q, i);
    free(q->pieces);
    q->pieces = pieces;
    q->capacity = capacity;
    q->first = 0;
}

static void push(queue *q, piece p) {
    q->bytes += p.size;
    if (q->count > 0) {
        piece *last = piece_at(q, q->count - 1);
        if (p.buffer != NOT_A_BUFFER && last->buffer == p.buffer && last->data + last->size == p.data) {
            last->size += p.size;
            release(p.buffer);
            return;
        }
    }
    if (q->count == q->capacity)
        grow(q);
    *piece_at(q, q->count++) = p;
}

/* So much of the queue is sent. */
static void consume(queue *q, uint32_t size) {
    q->bytes -= size;
    while (size > 0) {
        piece *p = piece_at(q, 0);
        if (size < p->size) {
            p->data += size;
            p->size -= size;
            return;
        }
        size -= p->size;
        release(p->buffer);
        q->first++;
        q->count--;
    }
}

static void clear(queue *q) {
    for (uint32_t i = 0; i < q->count; i++)
        release(piece_at(q, i)->buffer);
    free(q->pieces);
    *q = (queue){ 0 };
}

#endif
