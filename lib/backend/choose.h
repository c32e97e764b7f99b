/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BACKEND_CHOOSE_H
#define WEIR_BACKEND_CHOOSE_H

/* Which backend runs: what was asked for, what the environment says, what this kernel has. */

#include "backend/backend.h"
#include "backend/waker.h"

typedef struct weir__choice {
    uint32_t mode; /* enum weir_backend, never AUTO */
    bool is_free;  /* any would do */
} weir__choice;

/*
 * The best mode that is to be had, or the one asked for: 0 and *ret_choice; -ENOSYS, -EPERM: it is not to be had; -EINVAL: the
 * environment names none; -ENOMEM, -EMFILE and so on. In any case @reason says why it is not a better one, "" if it is
 * the best.
 */
int weir__backend_choose(const weir_allocator *allocator, uint32_t asked, const weir__tuning *tuning,
                         weir__choice *ret_choice, char *reason, size_t reason_size);
/* A backend of the chosen mode failed: is there another one to go on with? */
bool weir__backend_choose_next(weir__choice *choice, int error, char *reason, size_t reason_size);
/* The size of a receive buffer, unless the application says another. */
uint32_t weir__backend_buffer_bytes(uint32_t mode);
/* Does one buffer serve many receives? */
bool weir__backend_is_incremental(uint32_t mode);
/* A backend over @pool, disabled until enable. On failure the pool is good for nothing but to be closed. */
int weir__backend_new(const weir_allocator *allocator, uint32_t mode, const weir__tuning *tuning, weir_pool *pool,
                      weir__waker *waker, weir__backend **ret_backend);
/* Why that failed. */
const char *weir__backend_error_text(uint32_t mode, int error);

#endif
