/* SPDX-License-Identifier: MIT */
#include "base/heap.h"

int weir__heap_reserve(weir__heap *heap, const weir_allocator *allocator) {
    if (heap->reserved == heap->capacity) {
        size_t capacity = heap->capacity > 0 ? heap->capacity * 2 : 64;
        weir__heap_node **nodes = weir__alloc(allocator, capacity * sizeof *nodes);
        if (nodes == NULL)
            return -ENOMEM;
        if (heap->count > 0)
            memcpy(nodes, heap->nodes, heap->count * sizeof *nodes);
        weir__free(allocator, heap->nodes, heap->capacity * sizeof *nodes);
        heap->nodes = nodes;
        heap->capacity = capacity;
    }
    heap->reserved++;
    return 0;
}

void weir__heap_unreserve(weir__heap *heap) {
    WEIR__ASSERT(heap->reserved > heap->count);
    heap->reserved--;
}

static void place(weir__heap *heap, weir__heap_node *node, size_t index) {
    heap->nodes[index] = node;
    node->index = index;
}

static void sift_up(weir__heap *heap, weir__heap_node *node, size_t index) {
    while (index > 0) {
        size_t parent = (index - 1) / 2;
        if (heap->nodes[parent]->key <= node->key)
            break;
        place(heap, heap->nodes[parent], index);
        index = parent;
    }
    place(heap, node, index);
}

static void sift_down(weir__heap *heap, weir__heap_node *node, size_t index) {
    for (;;) {
        size_t child = 2 * index + 1;
        if (child >= heap->count)
            break;
        if (child + 1 < heap->count && heap->nodes[child + 1]->key < heap->nodes[child]->key)
            child++;
        if (node->key <= heap->nodes[child]->key)
            break;
        place(heap, heap->nodes[child], index);
        index = child;
    }
    place(heap, node, index);
}

void weir__heap_set(weir__heap *heap, weir__heap_node *node, int64_t deadline) {
    node->deadline = deadline;
    if (!weir__heap_has(node)) {
        WEIR__ASSERT(heap->count < heap->reserved);
        node->key = deadline;
        sift_up(heap, node, heap->count++);
    } else if (deadline < node->key) {
        node->key = deadline;
        sift_up(heap, node, node->index);
    }
}

void weir__heap_remove(weir__heap *heap, weir__heap_node *node) {
    if (!weir__heap_has(node))
        return;
    size_t index = node->index;
    weir__heap_node *last = heap->nodes[--heap->count];
    if (last != node) {
        if (index > 0 && last->key < heap->nodes[(index - 1) / 2]->key)
            sift_up(heap, last, index);
        else
            sift_down(heap, last, index);
    }
    node->index = WEIR__HEAP_OUTSIDE;
}

void weir__heap_remove_if(weir__heap *heap, bool (*matches)(weir__heap_node *node)) {
    size_t kept = 0;
    for (size_t i = 0; i < heap->count; i++) {
        weir__heap_node *node = heap->nodes[i];
        if (matches(node))
            node->index = WEIR__HEAP_OUTSIDE;
        else
            sift_up(heap, node, kept++); /* never behind i: a heap grows in the space that was looked at */
    }
    heap->count = kept;
}

weir__heap_node *weir__heap_take_due(weir__heap *heap, int64_t now) {
    while (heap->count > 0 && heap->nodes[0]->key <= now) {
        weir__heap_node *top = heap->nodes[0];
        if (top->deadline <= top->key) {
            weir__heap_remove(heap, top);
            return top;
        }
        top->key = top->deadline; /* it was pushed forward: now it moves */
        sift_down(heap, top, 0);
    }
    return NULL;
}

void weir__heap_deinit(weir__heap *heap, const weir_allocator *allocator) {
    WEIR__ASSERT(heap->count == 0);
    weir__free(allocator, heap->nodes, heap->capacity * sizeof *heap->nodes);
    *heap = (weir__heap){ 0 };
}
