/* SPDX-License-Identifier: MIT */
/* The histogram's slow half: what is asked once a slice. */
#include "load_histogram.h"

#include <string.h>

void load_histogram_clear(struct load_histogram *histogram) {
    memset(histogram, 0, sizeof *histogram);
}

/* The largest value that a cell stands for. */
static uint64_t last_of(unsigned cell) {
    unsigned dropped = cell >> LOAD_HISTOGRAM_BITS;
    dropped = dropped > 0 ? dropped - 1 : 0;
    uint64_t kept = cell - ((uint64_t)dropped << LOAD_HISTOGRAM_BITS);
    return ((kept + 1) << dropped) - 1;
}

uint64_t load_histogram_at(const struct load_histogram *histogram, double share) {
    if (histogram->count == 0)
        return 0;
    uint64_t wanted = (uint64_t)(share * (double)histogram->count);
    if ((double)wanted < share * (double)histogram->count)
        wanted++;
    wanted = wanted > 0 ? wanted : 1;
    uint64_t seen = 0;
    for (unsigned cell = 0; cell < LOAD_HISTOGRAM_CELLS; cell++) {
        seen += histogram->cells[cell];
        if (seen >= wanted) {
            uint64_t value = last_of(cell);
            return value < histogram->max ? value : histogram->max;
        }
    }
    return histogram->max;
}
