/* SPDX-License-Identifier: MIT */
/* When a loop spins: the decision alone, told of times that never were. */
#include "loop/spin.h"
#include "support/support.h"
#include "weir/loop.h"

enum { US = 1000, MS = 1000 * US };

static const int64_t start = INT64_C(5000000000);

static weir__spin configured(uint32_t mode, int64_t longest_ns, uint32_t share_percent) {
    weir__spin spin;
    test_ok(weir__spin_configure(&spin, mode, longest_ns, share_percent));
    return spin;
}

/* A gap: planned, spun for as long as allowed, slept for the rest. Return: for how long it was spun. */
static int64_t live_through(weir__spin *spin, int64_t *now, int64_t gap_ns) {
    int64_t plan = weir__spin_plan(spin, *now), spun = plan < gap_ns ? plan : gap_ns;
    if (plan > 0)
        weir__spin_spent(spin, spun, plan >= gap_ns);
    *now += gap_ns;
    weir__spin_came(spin, *now, 1);
    return spun;
}

/* ---- idle ------------------------------------------------------------------------------------------- */

static void who_is_idle_does_not_spin(void **state) {
    (void)state;
    for (uint32_t mode = WEIR_BUSY_POLL_ADAPTIVE; mode <= WEIR_BUSY_POLL_FIXED; mode++) {
        weir__spin spin = configured(mode, WEIR__SPIN_LONGEST_NS, 100);
        int64_t now = start;
        for (int i = 0; i < 100; i++)
            (void)live_through(&spin, &now, 10 * US);
        assert_int_equal(weir__spin_plan(&spin, now), 10 * MS);
        weir__spin_spent(&spin, 10 * MS, false);
        for (int64_t idle = 10 * MS; idle < INT64_C(100000) * MS; idle += 7 * MS) /* timers fire, say */
            assert_int_equal(weir__spin_plan(&spin, now + idle), 0);
        assert_int_equal(spin.spins - spin.spins_paid, 1);
    }
}

/* A signal's handler ran: that is nothing new, and the gap goes on. */
static void a_gap_has_one_spin_in_all(void **state) {
    (void)state;
    weir__spin spin = configured(WEIR_BUSY_POLL_FIXED, 50 * US, 100);
    assert_int_equal(weir__spin_plan(&spin, start), 50 * US);
    weir__spin_spent(&spin, 20 * US, false);
    assert_int_equal(weir__spin_plan(&spin, start + 20 * US), 30 * US);
    weir__spin_spent(&spin, 30 * US, false);
    assert_int_equal(weir__spin_plan(&spin, start + 50 * US), 0);
    assert_int_equal(weir__spin_plan(&spin, start + 51 * US), 0);
    weir__spin_came(&spin, start + 60 * US, 1);
    assert_int_equal(weir__spin_plan(&spin, start + 61 * US), 50 * US);
}

/* ---- what pays -------------------------------------------------------------------------------------- */

static unsigned spins_in(weir__spin *spin, int64_t *now, int64_t gap_ns, unsigned gaps) {
    uint64_t before = spin->spins;
    for (unsigned i = 0; i < gaps; i++)
        (void)live_through(spin, now, gap_ns);
    return (unsigned)(spin->spins - before);
}

static void adaptive_finds_out_what_pays(void **state) {
    (void)state;
    weir__spin spin = configured(WEIR_BUSY_POLL_ADAPTIVE, 50 * US, 100);
    int64_t now = start;
    assert_int_equal(spins_in(&spin, &now, 1 * MS, 6400), 100); /* only trying */
    assert_int_equal(spin.spins_paid, 0);
    assert_in_range(spins_in(&spin, &now, 20 * US, 100), 99, 100);
    assert_in_range(spins_in(&spin, &now, 1 * MS, 63), 1,
                    8); /* three in a row end what one began, some more a habit */
    assert_in_range(spins_in(&spin, &now, 1 * MS, 6400), 100, 101);
    assert_in_range(spins_in(&spin, &now, 50 * US, 100), 99, 100); /* just as long as it may spin */
    assert_in_range(spins_in(&spin, &now, 50 * US + 1, 6400), 100, 110);
}

/* Waking up makes a gap that is slept through longer, maybe so that none is short: a spin would see it. */
static void adaptive_finds_out_what_sleeping_hides(void **state) {
    (void)state;
    enum { WAKE_UP = 40 * US, GAP = 30 * US };
    weir__spin spin = configured(WEIR_BUSY_POLL_ADAPTIVE, 50 * US, 100);
    int64_t now = start;
    unsigned spun = 0;
    for (int i = 0; i < 1000; i++) {
        bool spins = weir__spin_plan(&spin, now) >= GAP;
        if (spins)
            weir__spin_spent(&spin, GAP, true);
        now += spins ? GAP : GAP + WAKE_UP;
        weir__spin_came(&spin, now, 1);
        spun += spins;
    }
    assert_in_range(spun, 1000 - 64, 1000);
}

static void two_short_gaps_in_three_are_enough(void **state) {
    (void)state;
    weir__spin spin = configured(WEIR_BUSY_POLL_ADAPTIVE, 50 * US, 100);
    int64_t now = start;
    (void)spins_in(&spin, &now, 20 * US, 10);
    for (int i = 0; i < 100; i++) {
        assert_int_equal(spins_in(&spin, &now, 1 * MS, 1), 1);
        assert_int_equal(spins_in(&spin, &now, 20 * US, 2), 2);
    }
}

/* A wake-up that brings much is cheap for each of what it brings. */
static void adaptive_leaves_gaps_that_end_with_much(void **state) {
    (void)state;
    enum { FEW = 4 };
    weir__spin spin = configured(WEIR_BUSY_POLL_ADAPTIVE, 50 * US, 100);
    int64_t now = start;
    for (uint64_t count = FEW; count <= FEW + 1; count++) {
        uint64_t before = spin.spins;
        (void)spins_in(&spin, &now, 20 * US, 10); /* with one each */
        for (int i = 0; i < 640; i++) {
            int64_t plan = weir__spin_plan(&spin, now);
            if (plan > 0)
                weir__spin_spent(&spin, 20 * US, true);
            weir__spin_came(&spin, now += 20 * US, count);
        }
        if (count == FEW)
            assert_in_range(spin.spins - before, 640, 650);
        else
            assert_in_range(spin.spins - before, 20, 24); /* the ten, what they began, and one in 64 */
    }
}

static void fixed_spins_whatever_comes(void **state) {
    (void)state;
    weir__spin spin = configured(WEIR_BUSY_POLL_FIXED, 50 * US, 0);
    int64_t now = start;
    assert_int_equal(spins_in(&spin, &now, 1 * MS, 1000), 1000);
    assert_int_equal(spin.spun_ns, 1000 * 50 * US);
    assert_int_equal(spin.spins_paid, 0);
}

/* ---- the share -------------------------------------------------------------------------------------- */

enum { MOST_SPINS = 20000 };
static struct { int64_t at, ns, before; /* before: spun before it */ } spun[MOST_SPINS];
static size_t spun_count;

/* How much was spun before @at? */
static int64_t spun_before(int64_t at) {
    size_t low = 0, high = spun_count;
    while (low < high) { /* the first that began at @at or later */
        size_t middle = (low + high) / 2;
        if (spun[middle].at < at)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0)
        return 0;
    int64_t inside = at - spun[low - 1].at;
    return spun[low - 1].before + (inside < spun[low - 1].ns ? inside : spun[low - 1].ns);
}

static int64_t random_ns(uint64_t *random) {
    switch (test_random(random) % 4) {
    case 0:
        return (int64_t)(test_random(random) % (2 * US));
    case 1:
        return (int64_t)(test_random(random) % (60 * US));
    case 2:
        return (int64_t)(test_random(random) % (2 * MS));
    default:
        return test_random(random) % 64 == 0 ? (int64_t)(test_random(random) % (300 * MS)) : 0;
    }
}

static void spin_at_random(weir__spin *spin, uint64_t *random) {
    int64_t now = start, sum = 0;
    bool is_steady = test_random(random) % 2 == 0; /* gaps and work that are all alike, too */
    int64_t gap = random_ns(random), work = random_ns(random) / 8;
    spun_count = 0;
    for (unsigned i = 0; i < MOST_SPINS; i++) {
        gap = is_steady ? gap : random_ns(random);
        now += is_steady ? work : random_ns(random) / 8;
        int64_t ns = live_through(spin, &now, gap);
        if (ns == 0)
            continue;
        spun[spun_count].at = now - gap;
        spun[spun_count].ns = ns;
        spun[spun_count++].before = sum;
        sum += ns;
    }
}

/* A window is fullest where it ends with a spin, or begins with one. */
static void the_share_is_kept_in_every_window(void **state) {
    (void)state;
    uint64_t random = 1;
    unsigned tight = 0;
    for (int round = 0; round < 200; round++) {
        uint32_t mode = 1 + (uint32_t)(test_random(&random) % 2),
                 share = 1 + (uint32_t)(test_random(&random) % 99);
        weir__spin spin = configured(mode, 1 + (int64_t)(test_random(&random) % WEIR__SPIN_LONGEST_NS), share);
        const int64_t window = WEIR__SPIN_WINDOW_NS, most = window / 100 * (int64_t)share;
        int64_t seen = 0;
        spin_at_random(&spin, &random);
        for (size_t i = 0; i < spun_count; i++) {
            int64_t begin = spun[i].at, end = begin + spun[i].ns;
            int64_t behind = spun_before(end) - spun_before(end - window);
            int64_t ahead = spun_before(begin + window) - spun_before(begin);
            seen = behind > seen ? behind : seen;
            if (behind > most || ahead > most)
                fail_msg("round %d: %lld and %lld of %lld ns were spun", round, (long long)behind,
                         (long long)ahead, (long long)most);
        }
        tight += seen > most / 10 * 9;
    }
    assert_true(tight > 10); /* it was put to the test, and used */
}

static void spin_that_was_too_long_is_made_up_for(void **state) {
    (void)state;
    weir__spin spin = configured(WEIR_BUSY_POLL_FIXED, 50 * US, 50);
    assert_int_equal(weir__spin_plan(&spin, start), 50 * US);
    weir__spin_spent(&spin, 4 * MS, true); /* another had the processor */
    weir__spin_came(&spin, start + 4 * MS, 1);
    for (int64_t at = 4 * MS; at < 8 * MS; at += 100 * US) {
        assert_int_equal(weir__spin_plan(&spin, start + at), 0);
        weir__spin_came(&spin, start + at + 10 * US, 1);
    }
    assert_true(weir__spin_plan(&spin, start + 9 * MS) > 0);
}

static void a_small_share_makes_spins_short(void **state) {
    (void)state;
    weir__spin spin = configured(WEIR_BUSY_POLL_FIXED, 10 * MS, 1);
    assert_int_equal(weir__spin_plan(&spin, start), 500 * US);
    spin = configured(WEIR_BUSY_POLL_FIXED, 0, 1);
    assert_int_equal(weir__spin_plan(&spin, start), 50 * US);
}

/* ---- options ---------------------------------------------------------------------------------------- */

static void what_cannot_be_is_refused(void **state) {
    (void)state;
    weir__spin spin;
    assert_int_equal(weir__spin_configure(&spin, 3, 0, 0), -EINVAL);
    assert_int_equal(weir__spin_configure(&spin, 0, -1, 0), -EINVAL);
    assert_int_equal(weir__spin_configure(&spin, 1, INT64_MIN, 0), -EINVAL);
    assert_int_equal(weir__spin_configure(&spin, 1, 10 * MS + 1, 0), -EINVAL);
    assert_int_equal(weir__spin_configure(&spin, 1, 10 * MS, 101), -EINVAL);
    test_ok(weir__spin_configure(&spin, 1, 10 * MS, 100));
    test_ok(weir__spin_configure(&spin, 2, 1, 1));
    test_ok(weir__spin_configure(&spin, 0, 0, 0));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(who_is_idle_does_not_spin),
        cmocka_unit_test(a_gap_has_one_spin_in_all),
        cmocka_unit_test(adaptive_finds_out_what_pays),
        cmocka_unit_test(adaptive_finds_out_what_sleeping_hides),
        cmocka_unit_test(two_short_gaps_in_three_are_enough),
        cmocka_unit_test(adaptive_leaves_gaps_that_end_with_much),
        cmocka_unit_test(fixed_spins_whatever_comes),
        cmocka_unit_test(the_share_is_kept_in_every_window),
        cmocka_unit_test(spin_that_was_too_long_is_made_up_for),
        cmocka_unit_test(a_small_share_makes_spins_short),
        cmocka_unit_test(what_cannot_be_is_refused),
    };
    return cmocka_run_group_tests_name("spin", tests, NULL, NULL);
}
