/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_FUZZ_H
#define WEIR_TESTS_FUZZ_H

/*
 * What fuzz targets share. Each target is one function that takes bytes and holds the library to what it promises of
 * them; libFuzzer calls it with bytes of its own (./dev fuzz), replay.c with those that are kept in corpus/.
 */

#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <weir.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ_CHECK(condition)                                                               \
    do {                                                                                    \
        if (!(condition)) {                                                                 \
            fprintf(stderr, "%s:%d: this is not so: %s\n", __FILE__, __LINE__, #condition); \
            abort();                                                                        \
        }                                                                                   \
    } while (0)

/* ---- bytes, taken from the front; zeros when there are no more ---------------------------------------- */

typedef struct fuzz_input {
    const uint8_t *data;
    size_t size;
} fuzz_input;

static inline uint64_t fuzz_take(fuzz_input *input, size_t bytes) {
    uint64_t value = 0;
    for (size_t i = 0; i < bytes && input->size > 0; i++, input->data++, input->size--)
        value |= (uint64_t)*input->data << (8 * i);
    return value;
}

/* A number that is often one at which something changes: a power of two, next to one, small, nothing, everything. */
static inline uint64_t fuzz_number(fuzz_input *input) {
    uint64_t how = fuzz_take(input, 1), detail = fuzz_take(input, 1);
    uint64_t power = UINT64_C(1) << (detail & 63);
    switch (how % 8) {
    case 0:
        return 0;
    case 1:
    case 2:
        return power;
    case 3:
        return power - 1;
    case 4:
        return power + 1;
    case 5:
        return detail;
    case 6:
        return UINT64_MAX - detail;
    default:
        return fuzz_take(input, 8);
    }
}

/* A copy that ends where it ends: a look beyond is seen by AddressSanitizer. */
static inline void *fuzz_copy(const void *data, size_t size) {
    void *copy = malloc(size > 0 ? size : 1);
    FUZZ_CHECK(copy != NULL);
    if (size > 0)
        memcpy(copy, data, size);
    return copy;
}

/* ---- memory that is counted --------------------------------------------------------------------------- */

typedef struct fuzz_memory {
    weir_allocator allocator;
    uint64_t live_blocks, live_bytes;
} fuzz_memory;

static inline void *fuzz_alloc(size_t size, size_t alignment, void *userdata) {
    fuzz_memory *memory = userdata;
    void *block = aligned_alloc(alignment, (size + alignment - 1) & ~(alignment - 1));
    FUZZ_CHECK(block != NULL);
    memset(block, 0xA5, size);
    memory->live_blocks++;
    memory->live_bytes += size;
    return block;
}

static inline void fuzz_free(void *block, size_t size, size_t alignment, void *userdata) {
    fuzz_memory *memory = userdata;
    (void)alignment;
    memory->live_blocks--;
    memory->live_bytes -= size;
    memset(block, 0x5A, size);
    free(block);
}

static inline void fuzz_memory_init(fuzz_memory *memory) {
    *memory = (fuzz_memory){
        .allocator = { .size = sizeof(weir_allocator), .alloc = fuzz_alloc, .free = fuzz_free, .userdata = memory }
    };
}

#endif
