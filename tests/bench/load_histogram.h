/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BENCH_LOAD_HISTOGRAM_H
#define WEIR_BENCH_LOAD_HISTOGRAM_H

/* A histogram of durations: exact up to 2 us, beyond that to one part in 1024, which is three digits. */

#include <stdint.h>

enum {
    LOAD_HISTOGRAM_BITS = 10,
    LOAD_HISTOGRAM_MAX_BITS = 40, /* 18 minutes: more is counted as that */
    LOAD_HISTOGRAM_CELLS = (LOAD_HISTOGRAM_MAX_BITS - LOAD_HISTOGRAM_BITS + 1) << LOAD_HISTOGRAM_BITS,
};

struct load_histogram {
    uint64_t count;
    uint64_t max;
    uint32_t cells[LOAD_HISTOGRAM_CELLS];
};

/* A number's first eleven bits are kept; the cell's number says which these are and how many were dropped. */
static inline void load_histogram_add(struct load_histogram *histogram, uint64_t value) {
    const uint64_t limit = (UINT64_C(1) << LOAD_HISTOGRAM_MAX_BITS) - 1;
    uint64_t v = value < limit ? value : limit;
    unsigned bits = 64 - (unsigned)__builtin_clzll(v | 1);
    unsigned dropped = bits > LOAD_HISTOGRAM_BITS + 1 ? bits - (LOAD_HISTOGRAM_BITS + 1) : 0;
    histogram->cells[((uint64_t)dropped << LOAD_HISTOGRAM_BITS) + (v >> dropped)]++;
    histogram->count++;
    if (value > histogram->max)
        histogram->max = value;
}

void load_histogram_clear(struct load_histogram *histogram);
/* The smallest value that @share (0..1) of all are not above; 0 if there is none. */
uint64_t load_histogram_at(const struct load_histogram *histogram, double share);

#endif
