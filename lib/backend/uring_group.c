/* SPDX-License-Identifier: MIT */
#include "backend/uring.h"

/*
 * A buffer group: the ring that the kernel takes buffers from, and the streams that found it empty.
 *
 * Those are parked and started again in the order in which they starved, at most one for each buffer that is there:
 * starting all of them would have most of them starve again, each for the price of a completion. What wakes them
 * is buffers coming back, never a timer. One that finds the buffers gone again, since another has taken more than one, has
 * not had its turn and keeps its place.
 */

static int open_ring(weir__uring_group *group, weir__ring *ring, const weir_allocator *allocator) {
    uint16_t flags = weir__pool_is_incremental(group->pool) ? IOU_PBUF_RING_INC : 0;
    return weir__buffer_ring_open(ring, group->id, weir__pool_max_buffers(group->pool), flags, allocator,
                                  &group->ring);
}

int weir__uring_group_open(weir__uring_group *group, weir__ring *ring, const weir_allocator *allocator) {
    weir__list_init(&group->parked);
    group->returned = &group->parked;
    group->id = 1;
    return open_ring(group, ring, allocator);
}

void weir__uring_group_refill(weir__uring_group *group) {
    enum { BATCH = 32 };
    weir__pool_buffer buffer;
    weir__provided provided[BATCH];
    size_t count;
    if (group->ring == NULL)
        return;
    do {
        for (count = 0; count < BATCH && weir__pool_publish(group->pool, &buffer); count++)
            provided[count] = (weir__provided){ buffer.data, buffer.size, buffer.id };
        if (count > 0)
            weir__buffer_ring_publish(group->ring, provided, count);
    } while (count == BATCH);
}

bool weir__uring_group_agrees(const weir__uring_group *group) {
    const uint8_t *ours;
    uint32_t position;
    if (group->ring == NULL || !weir__pool_is_incremental(group->pool) ||
        !weir__pool_next_byte(group->pool, &ours, &position))
        return true;
    return weir__buffer_ring_entry(group->ring, position).data == ours;
}

void weir__uring_group_take_back(weir__uring_group *group, weir__ring *ring) {
    if (group->ring == NULL)
        return;
    (void)weir__buffer_ring_unregister(ring, group->ring); /* from here on the kernel writes nothing */
    weir__buffer_ring_close(group->ring);
    group->ring = NULL;
}

void weir__uring_group_renew(weir__uring_group *group, weir__ring *ring, const weir_allocator *allocator) {
    weir__pool_take_back(group->pool);
    (void)open_ring(group, ring, allocator); /* without memory it is tried again; meanwhile the blocks carry all */
}

int weir__uring_group_condemn(weir__uring_group *group, weir__ring *ring, const weir_allocator *allocator) {
    weir__uring_group_take_back(group, ring);
    weir__pool_withdraw(group->pool);
    /* What was armed on the old one must not find the new one. */
    group->id = group->id < WEIR__MOST_GROUPS ? group->id + 1 : 1;
    return open_ring(group, ring, allocator);
}

static void count_parked(weir__uring_group *group, const weir__op *op, uint32_t change) {
    group->parked_count += change;
    if ((op->size & WEIR__RECEIVE_BY_POLL) != 0)
        group->parked_for_blocks += change;
    weir__pool_set_parked_for_blocks(group->pool, group->parked_for_blocks);
    weir__pool_set_parked(group->pool, group->parked_count);
}

void weir__uring_group_park(weir__uring_group *group, weir__op *op) {
    if ((op->size & WEIR__RECEIVE_KEEPS_PLACE) != 0) {
        weir__list_prepend(group->returned, &op->link);
        group->returned = &op->link;
    } else {
        weir__list_append(&group->parked, &op->link);
    }
    count_parked(group, op, 1);
}

void weir__uring_group_unpark(weir__uring_group *group, weir__op *op) {
    if (group->returned == &op->link)
        group->returned = op->link.previous;
    weir__list_remove(&op->link);
    count_parked(group, op, UINT32_MAX);
}
