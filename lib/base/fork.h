/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_FORK_H
#define WEIR_BASE_FORK_H

/*
 * Knowing that we are in the child of a fork, for the price of two loads. One word of the process lies in a page
 * that the kernel gives to a child empty (MADV_WIPEONFORK). Every object remembers the word as it was when it was
 * made; where they differ, the object belongs to the parent. The child's first loop writes a new number there, one
 * that no parent's object carries, since the counter itself is inherited.
 */

#include "base/base.h"

extern _Atomic(uint32_t) *weir__fork_word; /* in the page; NULL until the first loop */

/* Give the process its page: empty, wiped on fork. false: it had one already, and @page is still the caller's. */
bool weir__fork_install(void *page);
/* The number for a new object; the process has its page. */
uint32_t weir__fork_generation(void);

static inline bool weir__fork_is_child(uint32_t generation) {
    return WEIR__UNLIKELY(atomic_load_explicit(weir__fork_word, memory_order_relaxed) != generation);
}

#endif
