/* SPDX-License-Identifier: MIT */
#include <stdio.h>

#include "backend/uring.h"
#include "edge/sys.h"

/*
 * What can this kernel do? Two things are found out on a throwaway ring, since they decide whose bytes a stream
 * gets:
 *
 *   - is consumption really incremental? Two receives must lie back to back in one buffer. (A library that drops
 *     the flag of the registration leaves a ring that looks incremental and is not.)
 *   - do completions come in the order in which buffers were consumed? A completion carries no offset, so the order
 *     is all there is. Before Linux 6.12.29 a single-shot receive that completes inline is overtaken by a multishot
 *     one submitted behind it; that is the order which is tried.
 *
 * A second reordering, over a completion queue that overflows, was repaired in 6.15 and 6.12.31 and cannot be tried. So
 * incremental rings want the tests and such a version. Refusing a kernel with a good backport costs a little speed;
 * accepting a bad one would cost bytes.
 */

#define KERNEL(major, minor, patch) ((major) << 16 | (minor) << 8 | (patch))

enum {
    SQ_ENTRIES = 256,
    CQ_ENTRIES = 4096, /* well above the SQ: after an overflow nothing is lost, but every multishot stops */
    LEAST_ENTRIES = 16,
    PROBE_BYTES = 4096
};

int weir__uring_open_ring(const weir_allocator *allocator, weir__tuning *tuning, weir__ring **ret_ring,
                          uint32_t *ret_setup_flags) {
    const uint32_t base = IORING_SETUP_R_DISABLED | IORING_SETUP_CLAMP;
    const uint32_t all = base | IORING_SETUP_SUBMIT_ALL;
    const uint32_t coop = IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    const uint32_t defer = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_TASKRUN_FLAG;
    /* Best first; what an older kernel does not know is -EINVAL. */
    const uint32_t choices[] = {
        all | defer | IORING_SETUP_NO_SQARRAY,   /* 6.6 */
        all | defer,                             /* 6.1 */
        all | coop | IORING_SETUP_SINGLE_ISSUER, /* 6.0 */
        all | coop,                              /* 5.19 */
        all,
        base,
    };
    size_t i = 0;
    for (;;) {
        unsigned sq = tuning->sq_entries > 0 ? tuning->sq_entries : SQ_ENTRIES;
        unsigned cq = tuning->cq_entries > 0 ? tuning->cq_entries : CQ_ENTRIES;
        int r = weir__ring_open(allocator, sq, cq, choices[i], ret_ring);
        if (r >= 0) {
            *ret_setup_flags = choices[i];
            return 0;
        }
        if (r == -EINVAL && i + 1 < sizeof choices / sizeof *choices)
            i++;
        else if (r != -ENOMEM || !weir__uring_shrink(tuning)) /* RLIMIT_MEMLOCK */
            return r == -EACCES ? -EPERM : r;
    }
}

bool weir__uring_shrink(weir__tuning *tuning) {
    unsigned sq = tuning->sq_entries > 0 ? tuning->sq_entries : SQ_ENTRIES;
    unsigned cq = tuning->cq_entries > 0 ? tuning->cq_entries : CQ_ENTRIES;
    if (sq <= LEAST_ENTRIES)
        return false;
    /* Much smaller at once: there is a ring of buffers to come, and what a closed ring was charged comes back late. */
    tuning->sq_entries = sq / 4 > LEAST_ENTRIES ? sq / 4 : LEAST_ENTRIES;
    tuning->cq_entries = cq / 4 > tuning->sq_entries ? cq / 4 : tuning->sq_entries;
    return true;
}

/* ---- the self-test ---------------------------------------------------------------------------------- */

typedef struct probe {
    weir__ring *ring;
    weir__buffer_ring *buffers;
    uint8_t *memory; /* two buffers of PROBE_BYTES */
    int first[2], second[2];
} probe;

static void probe_receive(weir__ring *ring, int fd, uint16_t ioprio, uint64_t user_data) {
    struct io_uring_sqe *sqe = weir__ring_sqe(ring);
    if (sqe == NULL)
        return;
    sqe->opcode = IORING_OP_RECV;
    sqe->fd = fd;
    sqe->flags = IOSQE_BUFFER_SELECT;
    sqe->ioprio = ioprio;
    sqe->user_data = user_data;
}

/* Four bytes on each of two sockets; a single-shot receive on one, a multishot on the other, one submission. Return: 1
 * as it should be, 0 with a reason, or -errno. */
static int probe_order(probe *p, const char **ret_reason) {
    *ret_reason = "this kernel does not answer the test of its buffer rings";
    if (weir__sys_send(p->first[0], "aaaa", 4) != 4 || weir__sys_send(p->second[0], "bbbb", 4) != 4)
        return 0;
    const weir__provided provided[2] = { { p->memory, PROBE_BYTES, 0 },
                                         { p->memory + PROBE_BYTES, PROBE_BYTES, 1 } };
    weir__buffer_ring_publish(p->buffers, provided, 2);
    probe_receive(p->ring, p->first[1], 0, 1);
    probe_receive(p->ring, p->second[1], IORING_RECV_MULTISHOT, 2);
    weir__cqe cqes[2];
    unsigned count = 0;
    for (int turn = 0; turn < 100 && count < 2; turn++) {
        int r = weir__ring_enter(p->ring, 2 - count, IORING_ENTER_GETEVENTS, 10 * 1000 * 1000);
        if (r < 0 && r != -ETIME && r != -EINTR)
            return r;
        while (count < 2 && weir__ring_cqe(p->ring, &cqes[count]))
            count++;
    }
    if (count < 2)
        return 0;
    *ret_reason = "this kernel does not deliver receives in the order of its buffers";
    if (cqes[0].user_data != 1 || cqes[1].user_data != 2 || cqes[0].res != 4 || cqes[1].res != 4)
        return 0;
    *ret_reason = "this kernel does not fill buffers incrementally";
    const uint32_t want = IORING_CQE_F_BUFFER | IORING_CQE_F_BUF_MORE;
    if ((cqes[0].flags & want) != want || (cqes[1].flags & want) != want ||
        cqes[0].flags >> IORING_CQE_BUFFER_SHIFT != 0 || cqes[1].flags >> IORING_CQE_BUFFER_SHIFT != 0)
        return 0;
    return memcmp(p->memory, "aaaabbbb", 8) == 0;
}

static void close_pair(const int fds[2]) {
    for (int i = 0; i < 2; i++)
        if (fds[i] >= 0)
            weir__sys_close(fds[i]);
}

static int self_test(const weir_allocator *allocator, const char **ret_reason) {
    weir__tuning small = { .sq_entries = 8, .cq_entries = 16 };
    probe p = { .first = { -1, -1 }, .second = { -1, -1 } };
    uint32_t flags;
    int r = weir__uring_open_ring(allocator, &small, &p.ring, &flags);
    if (r < 0)
        return r;
    p.memory = weir__alloc_zeroed(allocator, 2 * PROBE_BYTES);
    r = p.memory != NULL ? weir__ring_enable(p.ring) : -ENOMEM;
    if (r >= 0)
        r = weir__sys_socketpair(p.first);
    if (r >= 0)
        r = weir__sys_socketpair(p.second);
    if (r >= 0) {
        r = weir__buffer_ring_open(p.ring, 0, 8, IOU_PBUF_RING_INC, allocator, &p.buffers);
        if (r == -EINVAL) {
            *ret_reason = "this kernel has no incremental buffer rings (Linux 6.12)";
            r = 0;
        } else if (r >= 0) {
            r = probe_order(&p, ret_reason);
        }
    }
    weir__ring_close(p.ring); /* ends the multishot, so that the kernel is done with the memory */
    if (p.buffers != NULL)
        weir__buffer_ring_close(p.buffers);
    close_pair(p.first);
    close_pair(p.second);
    weir__free(allocator, p.memory, 2 * PROBE_BYTES);
    return r;
}

/* ---- choosing --------------------------------------------------------------------------------------- */

/* The kernel does not change while we run, so its answer is kept: NULL, untried; "", incremental; else why not. */
static _Atomic(const char *) verdict;

static bool is_repaired(uint32_t kernel) {
    return kernel >= KERNEL(6, 15, 0) || (kernel >= KERNEL(6, 12, 31) && kernel < KERNEL(6, 13, 0));
}

static int try_incremental(const weir_allocator *allocator, const char **ret_reason) {
    const char *reason = atomic_load(&verdict);
    if (reason == NULL) {
        reason = "incremental rings can mix up connections before Linux 6.12.31, and in 6.13 and 6.14";
        int r = is_repaired(weir__sys_kernel_version()) ? self_test(allocator, &reason) : 0;
        if (r < 0)
            return r; /* no memory, no descriptors: not the kernel's nature, to be tried again */
        if (r > 0)
            reason = "";
        atomic_store(&verdict, reason);
    }
    *ret_reason = reason;
    return *reason == '\0';
}

const char *weir__uring_error_text(int error) {
    switch (error) {
    case -ENOSYS:
        return "io_uring is not available: the kernel has none, or a filter hides it";
    case -EPERM:
        return "io_uring is not permitted: kernel.io_uring_disabled, or a container's seccomp filter";
    case -ENOMEM:
        return "io_uring: no memory, or RLIMIT_MEMLOCK is too small";
    case -EMFILE:
    case -ENFILE:
        return "io_uring: no descriptor left";
    default:
        return "io_uring_setup failed";
    }
}

int weir__uring_choose(const weir_allocator *allocator, uint32_t asked, const weir__tuning *tuning,
                       uint32_t *ret_mode, char *reason, size_t reason_size) {
    const char *why = "";
    int r = 0;
    if (weir__sys_kernel_version() < KERNEL(6, 0, 0)) {
        why = "io_uring before Linux 6.0 has no multishot receive";
        r = -ENOSYS;
    } else if (asked == WEIR_BACKEND_URING_CLASSIC) {
        *ret_mode = WEIR_BACKEND_URING_CLASSIC;
        why = "classic rings were asked for";
    } else if (tuning->no_self_test) {
        *ret_mode = WEIR_BACKEND_URING_INCREMENTAL;
    } else {
        r = try_incremental(allocator, &why);
        if (r < 0)
            why = weir__uring_error_text(r);
        else if (r == 0 && asked != WEIR_BACKEND_AUTO)
            r = -ENOSYS;
        else
            *ret_mode = r > 0 ? WEIR_BACKEND_URING_INCREMENTAL : WEIR_BACKEND_URING_CLASSIC;
    }
    snprintf(reason, reason_size, "%s", why);
    return r < 0 ? r : 0;
}
