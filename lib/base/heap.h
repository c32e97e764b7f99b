/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_HEAP_H
#define WEIR_BASE_HEAP_H

/*
 * Deadlines in a binary heap, least first. A node's place in the heap is sorted by `key`, what it means is in
 * `deadline`, and deadline >= key always: pushing a node forward stores the deadline and nothing else, and the
 * place is corrected when the key comes to the top. Connections push their timeouts forward at every read, so
 * that case has to cost a store.
 */

#include "base/alloc.h"
#include "base/base.h"

typedef struct weir__heap_node {
    int64_t deadline; /* when it is due, ns */
    int64_t key;      /* where it lies in the heap; never later than deadline */
    size_t index;     /* in heap.nodes; WEIR__HEAP_OUTSIDE */
} weir__heap_node;

#define WEIR__HEAP_OUTSIDE SIZE_MAX

typedef struct weir__heap {
    weir__heap_node **nodes; /* nodes[i]->key <= nodes[2i+1]->key, nodes[2i+2]->key */
    size_t count;            /* nodes in it */
    size_t reserved;         /* nodes that may be put in without memory: count <= reserved <= capacity */
    size_t capacity;
} weir__heap;

static inline void weir__heap_node_init(weir__heap_node *node) {
    node->deadline = node->key = INT64_MAX;
    node->index = WEIR__HEAP_OUTSIDE;
}

static inline bool weir__heap_has(const weir__heap_node *node) {
    return node->index != WEIR__HEAP_OUTSIDE;
}

/* Promise a place to one node, so that weir__heap_set() cannot fail for it. 0; -ENOMEM. */
int weir__heap_reserve(weir__heap *heap, const weir_allocator *allocator);
/* Take one promise back; its node is outside. */
void weir__heap_unreserve(weir__heap *heap);

/* Put in, or move. */
void weir__heap_set(weir__heap *heap, weir__heap_node *node, int64_t deadline);
/* Take out; does nothing when it is outside. */
void weir__heap_remove(weir__heap *heap, weir__heap_node *node);
/* Take out all that @matches. */
void weir__heap_remove_if(weir__heap *heap, bool (*matches)(weir__heap_node *node));
/* When to look again: no node is due before. INT64_MAX: never. */
static inline int64_t weir__heap_next(const weir__heap *heap) {
    return heap->count > 0 ? heap->nodes[0]->key : INT64_MAX;
}
/* Take out and return a node that is due, least deadline first; NULL: none. */
weir__heap_node *weir__heap_take_due(weir__heap *heap, int64_t now);
void weir__heap_deinit(weir__heap *heap, const weir_allocator *allocator);

#endif
