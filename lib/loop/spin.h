/* SPDX-License-Identifier: MIT */
#ifndef WEIR_LOOP_SPIN_H
#define WEIR_LOOP_SPIN_H

/*
 * Is it worth it to look out a moment for what comes next, before the loop sleeps?
 *
 * A gap is the time from when there is nothing to do until something comes. At its beginning, and only there, it is decided
 * how much of it may be spun through: so a loop for which nothing comes spins once, for `longest_ns` at most, and is silent
 * from then on, whatever timers it has.
 *
 *   FIXED      the beginning of each gap
 *   ADAPTIVE   of those gaps that are likely to be short and to end with little. One that did, slept through or not, makes
 *              that much more likely, another less: what one short gap starts three others in a row end. With much the
 *              price of waking up is shared, and spinning would only cost. What a sleep adds to a gap may make it look
 *              long, so one in some dozens is tried, too.
 *
 * Both are held to a share of the time, by an allowance that grows with it and is spent by spinning. It never holds more
 * than one spin, which is taken off the rate, so that the share is kept in every WEIR__SPIN_WINDOW_NS and not only in
 * the long run.
 *
 * Times are the caller's: nothing here reads a clock, or knows of a kernel.
 */

#include "base/base.h"

enum {
    WEIR__SPIN_WINDOW_NS = 100000000,
    WEIR__SPIN_LONGEST_NS = 10000000 /* that can be asked for: who is idle for so long does not spin */
};

typedef struct weir__spin {
    uint32_t mode; /* enum weir_busy_poll */
    bool is_in_gap;
    bool is_unlimited;     /* the share is a whole core */
    uint32_t chance;       /* that the next gap is worth it, of 256 */
    uint32_t unspun;       /* gaps in a row that were not tried */
    int64_t longest_ns;    /* to spin at the beginning of a gap */
    int64_t rate_ns;       /* that may be spun in a window, besides what was saved up */
    int64_t allowance_ns;  /* saved up, as of refilled_at; negative if the last spin was too long */
    int64_t refilled_at;   /* ns, like all that ends so */
    int64_t gap_began_at;  /* while is_in_gap */
    int64_t spin_until_at; /* likewise */
    uint64_t spins, spins_paid, spun_ns;
    /* Kept here by weir__loop_spin(). */
    uint64_t completions; /* as of the last wait's end */
    int64_t awake_at;     /* when that was */
} weir__spin;

/* Zeros are the defaults. 0; -EINVAL. */
int weir__spin_configure(weir__spin *spin, uint32_t mode, int64_t longest_ns, uint32_t share_percent);
/* There is nothing to do. Return: for how long to look out before sleeping; 0: sleep. */
int64_t weir__spin_plan(weir__spin *spin, int64_t now);
/* That is what was done, and something came of it or did not. */
void weir__spin_spent(weir__spin *spin, int64_t spent_ns, bool has_paid);
/* So much has come, and the gap, if it is in one, was over @at. */
void weir__spin_came(weir__spin *spin, int64_t at, uint64_t count);

#endif
