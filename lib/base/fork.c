/* SPDX-License-Identifier: MIT */
#include "base/fork.h"

_Atomic(uint32_t) *weir__fork_word;

static _Atomic(uint32_t) last_generation; /* inherited by a child, so that it never uses a number again */

bool weir__fork_install(void *page) {
    _Atomic(uint32_t) *expected = NULL;
    return __atomic_compare_exchange_n(&weir__fork_word, &expected, (_Atomic(uint32_t) *)page, false,
                                       __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

uint32_t weir__fork_generation(void) {
    uint32_t word = atomic_load(weir__fork_word);
    if (word != 0)
        return word;
    uint32_t fresh = atomic_fetch_add(&last_generation, 1) + 1;
    uint32_t none = 0; /* two threads of a new process may come here at once: one number wins */
    return atomic_compare_exchange_strong(weir__fork_word, &none, fresh) ? fresh : none;
}
