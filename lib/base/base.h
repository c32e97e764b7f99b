/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_BASE_H
#define WEIR_BASE_BASE_H

/* What every file of the library starts from: the public types, a few words the language lacks, assertions. */

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "weir/base.h"

#define WEIR__CONTAINER(pointer, type, member) ((type *)(void *)((char *)(pointer)-offsetof(type, member)))
#define WEIR__LIKELY(condition) __builtin_expect(!!(condition), 1)
/* Of a function that the hot path seldom calls: inlined it would have the path save registers for it each time. */
#define WEIR__NOINLINE __attribute__((noinline))
#define WEIR__UNLIKELY(condition) __builtin_expect(!!(condition), 0)

/* True of our own code only, never of what the kernel or the user says. */
#define WEIR__ASSERT(condition) assert(condition)

/*
 * A mistake in the program that uses us. It gets its error; a library built with -Dmisuse=abort says which one it
 * was and stops, since the caller may not look.
 */
#ifdef WEIR_MISUSE_ABORTS
int weir__mistake(int error, const char *function, const char *what);
#define WEIR__MISTAKE(error, what) weir__mistake((error), __func__, (what))
#else
#define WEIR__MISTAKE(error, what) (error)
#endif

static inline uint64_t weir__min_u64(uint64_t a, uint64_t b) {
    return a < b ? a : b;
}

static inline uint64_t weir__max_u64(uint64_t a, uint64_t b) {
    return a > b ? a : b;
}

/* AddressSanitizer: idle buffers and bytes not received yet are poisoned, so that an over-read into them is seen.
 * (Not one into a neighbour's bytes, which are in the same buffer and as good.) */
#if defined(__SANITIZE_ADDRESS__)
#define WEIR__ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define WEIR__ASAN 1
#endif
#endif
#ifdef WEIR__ASAN
void __asan_poison_memory_region(void const volatile *address, size_t size);
void __asan_unpoison_memory_region(void const volatile *address, size_t size);
#define WEIR__POISON(address, size) __asan_poison_memory_region((address), (size))
#define WEIR__UNPOISON(address, size) __asan_unpoison_memory_region((address), (size))
#else
#define WEIR__POISON(address, size) ((void)(address), (void)(size))
#define WEIR__UNPOISON(address, size) ((void)(address), (void)(size))
#endif

#endif
