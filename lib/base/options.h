/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_OPTIONS_H
#define WEIR_BASE_OPTIONS_H

/*
 * Structures that begin with their size, from callers older or newer than this library. Reads what both know and
 * leaves the rest zero, which is every field's default.
 */

#include "base/base.h"

/* @least is version 0.1's size. 0; -EINVAL: smaller than that; -E2BIG: asks for what is not known here. */
static inline int weir__options_read(void *ours, size_t size, size_t least, const void *theirs) {
    memset(ours, 0, size);
    if (theirs == NULL)
        return 0;
    size_t their_size;
    memcpy(&their_size, theirs, sizeof their_size);
    if (their_size < least)
        return WEIR__MISTAKE(-EINVAL, "an option structure's size is not set, or wrong");
    for (size_t i = size; i < their_size; i++)
        if (((const uint8_t *)theirs)[i] != 0)
            return -E2BIG;
    memcpy(ours, theirs, their_size < size ? their_size : size);
    return 0;
}

#endif
