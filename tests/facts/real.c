/* SPDX-License-Identifier: MIT */
#include <sys/resource.h>

#include "facts/facts.h"

/* The machine's kernel. */

const char *const facts_edge = "real";
const unsigned facts_rounds = 1;

const char *facts_edge_missing(void) {
    return weir__sys_kernel_version() < (6U << 16 | 12U << 8 | 31) ? "these facts are of Linux 6.12.31 and later"
                                                                   : NULL;
}

void facts_edge_begin(unsigned round) {
    /* So that descriptors can run out. */
    struct rlimit limit;
    (void)round;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_cur > 256)
        limit.rlim_cur = 256;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

void facts_edge_end(void) {
}
