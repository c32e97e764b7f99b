/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_ALLOC_H
#define WEIR_BASE_ALLOC_H

/* Memory through a loop's allocator. None of it touches errno; sizes come back with the memory, so that an allocator
 * need not remember them. */

#include "base/base.h"
#include "weir/loop.h"

enum { WEIR__ALIGNMENT = 16 };

/* mimalloc or libc, as built. */
extern const weir_allocator weir__default_allocator;

void *weir__alloc(const weir_allocator *allocator, size_t size);
void *weir__alloc_zeroed(const weir_allocator *allocator, size_t size);
void weir__free(const weir_allocator *allocator, void *memory, size_t size);

#endif
