/* SPDX-License-Identifier: MIT */
#include "base/alloc.h"

#include <stdlib.h>
#if WEIR_ALLOCATOR_MIMALLOC
#include <mimalloc.h>
#endif

static void *default_alloc(size_t size, size_t alignment, void *userdata) {
    (void)userdata;
    int saved = errno;
#if WEIR_ALLOCATOR_MIMALLOC
    /* Asked for an alignment mimalloc may take the next larger size, also where any block would do: 512 bytes for 448. */
    bool is_aligned = alignment <= WEIR__ALIGNMENT && size >= WEIR__ALIGNMENT;
    void *memory = is_aligned ? mi_malloc(size) : mi_malloc_aligned(size, alignment);
#else
    /* aligned_alloc() wants a multiple of the alignment, and what malloc() gives is aligned for any type anyway */
    size_t rounded = (size + alignment - 1) & ~(alignment - 1);
    void *memory = rounded < size                 ? NULL
                   : alignment <= WEIR__ALIGNMENT ? malloc(rounded)
                                                  : aligned_alloc(alignment, rounded);
#endif
    errno = saved;
    return memory;
}

static void default_free(void *memory, size_t size, size_t alignment, void *userdata) {
    (void)userdata;
    int saved = errno;
#if WEIR_ALLOCATOR_MIMALLOC
    mi_free_size_aligned(memory, size, alignment);
#else
    (void)size, (void)alignment;
    free(memory);
#endif
    errno = saved;
}

const weir_allocator weir__default_allocator = { .size = sizeof(weir_allocator),
                                                 .alloc = default_alloc,
                                                 .free = default_free };

void *weir__alloc(const weir_allocator *allocator, size_t size) {
    return allocator->alloc(size, WEIR__ALIGNMENT, allocator->userdata);
}

void *weir__alloc_zeroed(const weir_allocator *allocator, size_t size) {
    void *memory = weir__alloc(allocator, size);
    if (memory != NULL)
        memset(memory, 0, size);
    return memory;
}

void weir__free(const weir_allocator *allocator, void *memory, size_t size) {
    if (memory != NULL)
        allocator->free(memory, size, WEIR__ALIGNMENT, allocator->userdata);
}
