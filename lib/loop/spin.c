/* SPDX-License-Identifier: MIT */
#include "loop/spin.h"

#include "loop/loop.h"

/* Busy polling: spin.h says when, weir__loop_spin() at the end does it. */

enum {
    DEFAULT_LONGEST_NS = 50000,
    DEFAULT_SHARE_PERCENT = 50, /* of ADAPTIVE; FIXED: 100 */
    CERTAIN = 256,
    LIKELY = 128,
    TRIED_ONE_IN = 64, /* gaps that are not likely to be short */
    FEW = 4,           /* completions that are worth a spin */
    LOOKS_A_TIME = 4   /* between two looks at the clock */
};

/* ---- the decision ----------------------------------------------------------------------------------- */

int weir__spin_configure(weir__spin *spin, uint32_t mode, int64_t longest_ns, uint32_t share_percent) {
    *spin = (weir__spin){ .mode = mode };
    if (mode > WEIR_BUSY_POLL_FIXED || longest_ns < 0 || longest_ns > WEIR__SPIN_LONGEST_NS || share_percent > 100)
        return -EINVAL;
    if (share_percent == 0)
        share_percent = mode == WEIR_BUSY_POLL_FIXED ? 100 : DEFAULT_SHARE_PERCENT;
    int64_t share_ns = WEIR__SPIN_WINDOW_NS / 100 * (int64_t)share_percent;
    spin->is_unlimited = share_percent == 100;
    spin->longest_ns = longest_ns > 0 ? longest_ns : DEFAULT_LONGEST_NS;
    if (spin->longest_ns > share_ns / 2) /* else next to nothing would be left for the rate */
        spin->longest_ns = share_ns / 2;
    spin->rate_ns = share_ns - spin->longest_ns;
    return 0;
}

static void refill(weir__spin *spin, int64_t now) {
    int64_t passed = now - spin->refilled_at;
    if (passed <= 0)
        return;
    spin->refilled_at = now;
    if (passed > WEIR__SPIN_WINDOW_NS)
        passed = WEIR__SPIN_WINDOW_NS; /* which fills it, and multiplies without overflow */
    spin->allowance_ns += passed * spin->rate_ns / WEIR__SPIN_WINDOW_NS;
    if (spin->allowance_ns > spin->longest_ns)
        spin->allowance_ns = spin->longest_ns;
}

static bool is_worth_it(const weir__spin *spin) {
    return spin->mode == WEIR_BUSY_POLL_FIXED || spin->chance >= LIKELY || spin->unspun + 1 >= TRIED_ONE_IN;
}

/* What is cut short by the share seldom pays, so half of a spin is saved up first. */
static int64_t allowed_ns(weir__spin *spin, int64_t now) {
    if (spin->is_unlimited)
        return spin->longest_ns;
    refill(spin, now);
    return spin->allowance_ns >= spin->longest_ns / 2 ? spin->allowance_ns : 0;
}

int64_t weir__spin_plan(weir__spin *spin, int64_t now) {
    if (!spin->is_in_gap) {
        spin->is_in_gap = true;
        spin->gap_began_at = now;
        spin->spin_until_at = is_worth_it(spin) ? now + spin->longest_ns : now;
        spin->unspun = is_worth_it(spin) ? 0 : spin->unspun + 1;
    }
    int64_t left = spin->spin_until_at - now; /* a sleep may have been cut short, and this be the same gap */
    if (left <= 0)
        return 0;
    int64_t allowed = allowed_ns(spin, now);
    return left < allowed ? left : allowed;
}

void weir__spin_spent(weir__spin *spin, int64_t spent_ns, bool has_paid) {
    spin->allowance_ns -= spin->is_unlimited ? 0 : spent_ns;
    spin->spins++;
    spin->spins_paid += has_paid;
    spin->spun_ns += (uint64_t)spent_ns;
}

void weir__spin_came(weir__spin *spin, int64_t at, uint64_t count) {
    if (!spin->is_in_gap)
        return;
    spin->is_in_gap = false;
    if (at - spin->gap_began_at <= spin->longest_ns && count <= FEW)
        spin->chance += (CERTAIN - spin->chance) / 2;
    else
        spin->chance -= spin->chance / 4;
    if (spin->chance >= LIKELY)
        spin->unspun = 0;
}

/* ---- doing it --------------------------------------------------------------------------------------- */

/* Look for @most_ns until something has come. Return: as the backend's look. */
static int look_out(weir_loop *loop, int64_t began, int64_t most_ns, int64_t *ret_spent_ns) {
    int64_t now;
    bool has_work = false;
    int r = 0;
    do {
        for (int i = 0; i < LOOKS_A_TIME && r == 0 && !has_work; i++) {
            weir__sys_pause();
            r = loop->backend->verbs->look(loop->backend);
            has_work = weir__loop_has_work(loop); /* posts, a stop */
        }
        now = weir__sys_now();
    } while (r == 0 && !has_work && now - began < most_ns);
    *ret_spent_ns = now - began;
    weir__spin_spent(&loop->spin, now - began, r > 0 || has_work);
    return r;
}

/* Who is about to spin hands over first what was started. What has come by then, sends that complete at once mostly, was
 * worth no spin, and says nothing of gaps. */
static int spin(weir_loop *loop, int64_t *sleep_ns) {
    int r = is_worth_it(&loop->spin) ? loop->backend->verbs->look(loop->backend) : 0;
    if (r != 0)
        return r;
    int64_t began = weir__sys_now(), most_ns = weir__spin_plan(&loop->spin, began), spent_ns;
    if (most_ns == 0)
        return 0;
    r = look_out(loop, began, most_ns < *sleep_ns ? most_ns : *sleep_ns, &spent_ns);
    *sleep_ns = spent_ns < *sleep_ns ? *sleep_ns - spent_ns : 0;
    return r;
}

/* The waker is not told that the loop sleeps while it spins, so that a post costs no system call. */
int weir__loop_spin(weir_loop *loop, int64_t sleep_ns) {
    const weir__backend_stats *stats = &loop->backend->stats;
    uint64_t count = stats->completions - loop->spin.completions;
    int r = 0;
    if (count > 0)
        weir__spin_came(&loop->spin, loop->spin.awake_at, count);
    if (sleep_ns > 0 && loop->phase == WEIR__PHASE_RUNNING && !weir__loop_has_work(loop))
        r = spin(loop, &sleep_ns);
    if (r == 0)
        r = weir__loop_sleep(loop, sleep_ns);
    loop->spin.completions = stats->completions;
    loop->spin.awake_at = weir__sys_now();
    if (weir__loop_has_work(loop)) /* a post has woken it: no completion tells of that over epoll */
        weir__spin_came(&loop->spin, loop->spin.awake_at, 1);
    return r < 0 ? r : 0;
}
