/* SPDX-License-Identifier: MIT */
#include "backend/uring.h"
#include "edge/sys.h"
#include "memory/block.h"

/*
 * Receiving without the buffer ring, by recv(2) into a block of its own, for an operation that has nothing in the kernel.
 * Two need it:
 *
 *   - streams that are parked while all buffers are pinned, by an application that waits for more of each message, say.
 *     Nothing comes back by itself then. A block is small, so the budget's reserve carries many of them: it is slow, but
 *     it goes on.
 *   - streams that receive no more than was granted, where the kernel's receives have no limit (before 6.17). Receiving
 *     from a buffer ring with a poll and single receives is not safe: see docs/kernel.md.
 *
 * Such a call is ahead of what waits in the completion queue. A reset is told once, so if a send there has it, this finds
 * a mere end. So an end is believed the second time, after a completion that was queued behind all those.
 */

enum { MOST_SERVED = 64 }; /* in one dispatch; a system call each */

bool weir__uring_has_private(const weir__uring *u) {
    return !u->has_no_memory && weir__pool_has_private(u->group.pool, WEIR__PRIVATE_BYTES);
}

/* NULL: the budget is spent, whose release wakes us; or there is no memory, of which nobody tells, so that asking again at
 * once would be all that the loop did. */
static weir__heap_block *block_new(weir__uring *u) {
    weir__heap_block *block = NULL;
    if (!weir__uring_has_private(u))
        return NULL;
    u->has_no_memory = weir__private_block_new(u->group.pool, &block) == -ENOMEM;
    return block;
}

/* The block is the callback's to look at and, if it wants, to refer to. */
static void tell(weir__uring *u, weir__op *op, weir__heap_block *block, int bytes) {
    const weir_slice slice = { weir__heap_block_data(block), (size_t)bytes, &block->block };
    u->base.stats.slices++;
    u->base.stats.bytes_in += (uint64_t)bytes;
    op->size &= ~(uint32_t)WEIR__RECEIVE_KEEPS_PLACE;
    if ((op->size & WEIR__RECEIVE_LIMITED) != 0)
        op->limit -= (uint64_t)bytes;
    if ((op->size & WEIR__RECEIVE_LIMITED) != 0 && op->limit == 0)
        weir__uring_finish_later(u, op, -ECANCELED);
    else
        weir__uring_rearm(u, op);
    op->complete(op, &(weir__completion){ .result = bytes, .slice = slice });
}

static void receive_into(weir__uring *u, weir__op *op, weir__heap_block *block) {
    uint64_t most = (op->size & WEIR__RECEIVE_LIMITED) != 0 ? op->limit : UINT64_MAX;
    int r = weir__sys_receive(op->fd, weir__heap_block_data(block),
                              (size_t)weir__min_u64(block->block.capacity, most));
    bool is_first_end = r == 0 && (op->size & WEIR__RECEIVE_SAW_END) == 0;
    if (is_first_end)
        op->size |= WEIR__RECEIVE_SAW_END;
    if (r > 0)
        tell(u, op, block, r);
    else if (r == -EAGAIN || r == -EINTR || is_first_end)
        weir__uring_rearm(u, op);
    else
        weir__uring_deliver_final(u, op, r);
    if (!weir__fork_is_child(weir__pool_generation(u->group.pool)))
        weir__block_unref_shared(&block->block);
}

void weir__uring_receive_private(weir__uring *u, weir__op *op) {
    weir__heap_block *block = block_new(u);
    if (block == NULL)
        weir__uring_park(u, op);
    else
        receive_into(u, op, block);
}

unsigned weir__uring_serve_parked(weir__uring *u) {
    uint32_t generation = weir__pool_generation(u->group.pool);
    weir__heap_block *block = NULL;
    unsigned count = 0;
    while (count < MOST_SERVED && u->group.parked_count > 0 && !weir__fork_is_child(generation) &&
           (block = block_new(u)) != NULL) {
        weir__op *op = WEIR__CONTAINER(u->group.parked.next, weir__op, link);
        weir__uring_group_unpark(&u->group, op);
        receive_into(u, op, block);
        count++;
    }
    return count;
}
