/* SPDX-License-Identifier: MIT */
/* Setting up the ring and its buffers. Buffers are filled bit by bit where the kernel can (6.12): then few large ones
 * do both for thousands of small messages and for a stream. Elsewhere there are more and smaller ones. */
#include "load.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

static void check(int result, const char *what) {
    if (result < 0)
        load_fail(NULL, "%s: %s", what, strerror(-result));
}

static void open_buffers(struct load_ring *ring) {
    int r = 0;
    ring->buffer_count = 16;
    ring->buffer_size = 128 * 1024;
    ring->buffers = io_uring_setup_buf_ring(&ring->uring, ring->buffer_count, LOAD_GROUP, IOU_PBUF_RING_INC, &r);
    if (ring->buffers == NULL && r == -EINVAL) {
        ring->buffer_count = LOAD_BUFFERS_MAX;
        ring->buffer_size = 16 * 1024;
        ring->buffers = io_uring_setup_buf_ring(&ring->uring, ring->buffer_count, LOAD_GROUP, 0, &r);
    }
    if (ring->buffers == NULL)
        load_fail(NULL, "io_uring's buffers: %s", strerror(-r));
    size_t size = (size_t)ring->buffer_count * ring->buffer_size;
    ring->memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (ring->memory == MAP_FAILED)
        load_fail(NULL, "mmap: %s", strerror(errno));
    for (unsigned i = 0; i < ring->buffer_count; i++)
        io_uring_buf_ring_add(ring->buffers, ring->memory + (size_t)i * ring->buffer_size, ring->buffer_size,
                              (unsigned short)i, io_uring_buf_ring_mask(ring->buffer_count), (int)i);
    io_uring_buf_ring_advance(ring->buffers, (int)ring->buffer_count);
}

void load_ring_open(struct load_ring *ring, unsigned files) {
    struct io_uring_params params = {
        .flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL |
                 IORING_SETUP_CQSIZE,
        .cq_entries = 65536,
    };
    check(io_uring_queue_init_params(4096, &ring->uring, &params), "io_uring");
    check(io_uring_register_ring_fd(&ring->uring), "registering the ring");
    if (files > 0)
        check(io_uring_register_files_sparse(&ring->uring, files), "registering files");
    open_buffers(ring);
}

void load_ring_close(struct load_ring *ring) {
    io_uring_free_buf_ring(&ring->uring, ring->buffers, ring->buffer_count, LOAD_GROUP);
    io_uring_queue_exit(&ring->uring);
    munmap(ring->memory, (size_t)ring->buffer_count * ring->buffer_size);
}

void load_ring_submit(struct load_ring *ring) {
    check(io_uring_submit(&ring->uring), "submitting");
}

bool load_ring_look(struct load_ring *ring) {
    check(io_uring_submit_and_get_events(&ring->uring), "looking");
    return io_uring_cq_ready(&ring->uring) > 0;
}

void load_ring_wait(struct load_ring *ring, uint64_t now_ns, uint64_t until_ns) {
    uint64_t left_ns = until_ns > now_ns ? until_ns - now_ns : 0;
    struct __kernel_timespec timeout = {
        .tv_sec = (long long)(left_ns / 1000000000),
        .tv_nsec = (long long)(left_ns % 1000000000),
    };
    struct io_uring_cqe *cqe = NULL;
    int r = io_uring_submit_and_wait_timeout(&ring->uring, &cqe, 1, &timeout, NULL);
    if (r != -ETIME && r != -EINTR)
        check(r, "waiting");
}
