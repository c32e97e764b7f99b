/* SPDX-License-Identifier: MIT */
/*
 * Thousands of random steps against a model that is too simple to be wrong: what each referenced slice said when
 * it came, it says until it is dropped; the pool's books balance after each step; a completion that cannot be
 * changes nothing; when all is dropped, all is there again.
 */
#include "unit/bench.h"

static bench b;

enum { HELD = 128, STEPS = 6000, BUDGET = 24 };

typedef struct held {
    weir_slice slice;
    uint64_t seed, position;
    bool is_local; /* counted as a queue of the loop counts */
} held;

typedef struct model {
    held held[HELD];
    unsigned count;
    uint64_t random, received;
    unsigned refused, arrivals;
} model;

static uint64_t below(model *m, uint64_t limit) {
    return test_random(&m->random) % limit;
}

static void is_unchanged(const held *h) {
    assert_int_equal(test_differs(h->seed, h->position, h->slice.data, h->slice.size), -1);
}

static void drop(model *m, unsigned index) {
    held *h = &m->held[index];
    is_unchanged(h);
    if (h->is_local)
        weir__block_unref_by(h->slice.owner, &b.owner);
    else
        weir_slice_unref(&h->slice);
    *h = m->held[--m->count];
}

static void hold(model *m, const weir_slice *slice, uint64_t position, uint64_t seed) {
    if (m->count == HELD || slice->size == 0)
        return;
    held *h = &m->held[m->count];
    *h = (held){ .seed = seed, .position = position };
    uint64_t how = below(m, 4);
    if (how == 0) {
        h->slice = *slice;
        h->is_local = true;
        weir__block_ref_by(slice->owner, &b.owner);
    } else if (how == 1) {
        size_t skip = below(m, slice->size), size = 1 + below(m, slice->size - skip);
        h->position += skip;
        test_ok(weir_slice_sub(slice, skip, size, &h->slice));
    } else if (how == 2) {
        if (weir_slice_keep(slice, &h->slice) < 0)
            return;
    } else {
        weir_slice_ref(slice, &h->slice);
    }
    m->count++;
}

static void arrive(model *m) {
    uint8_t bytes[BUFFER];
    if (b.head == b.tail)
        return;
    size_t size = below(m, 3) == 0 ? bench_room(&b) : 1 + below(m, bench_room(&b));
    uint64_t seed = below(m, 5), position = m->received;
    test_fill(seed, position, bytes, size);
    m->received += size;
    m->arrivals++;
    weir_slice slice = bench_put(&b, bytes, size, below(m, 16) == 0);
    if (below(m, 2) == 0)
        hold(m, &slice, position, seed);
}

/* A completion that no kernel gives: another id, too many bytes, more to come where nothing can. */
static void lie(model *m) {
    weir_slice slice;
    if (b.head == b.tail)
        return;
    uint16_t id = bench_head(&b);
    int r;
    switch (b.is_incremental ? below(m, 3) : 1 + below(m, 2)) { /* a classic ring knows no order */
    case 0:
        r = weir__pool_commit(b.pool, (id + 1 + (uint32_t)below(m, 100)), 1, true, &slice);
        break;
    case 1:
        r = weir__pool_commit(b.pool, id, bench_room(&b) + 1 + below(m, 100), false, &slice);
        break;
    default:
        r = weir__pool_commit(b.pool, id, bench_room(&b), true, &slice);
        break;
    }
    assert_int_equal(r, -EILSEQ);
    m->refused++;
}

static void make_block(model *m) {
    uint8_t *data;
    if (m->count == HELD)
        return;
    held *h = &m->held[m->count];
    *h = (held){ .seed = 99, .position = below(m, 1000) };
    size_t size = 1 + below(m, 3 * BUFFER);
    if (weir_slice_new(b.pool, size, &data, &h->slice) < 0)
        return;
    test_fill(99, h->position, data, size);
    m->count++;
}

static void step(model *m) {
    switch (below(m, 12)) {
    case 0:
    case 1:
        bench_publish(&b);
        break;
    case 2:
    case 3:
    case 4:
        arrive(m);
        break;
    case 5:
        lie(m);
        break;
    case 6:
    case 7:
        weir__pool_end_dispatch(b.pool);
        break;
    case 8:
        make_block(m);
        break;
    case 9:
        if (below(m, 8) == 0)
            weir__pool_trim(b.pool);
        else if (below(m, 4) == 0)
            weir__pool_starve(b.pool);
        break;
    default:
        if (m->count > 0)
            drop(m, (unsigned)below(m, m->count));
        break;
    }
}

static void run(uint64_t seed, bool is_incremental) {
    static model m;
    memset(&m, 0, sizeof m);
    m.random = seed;
    bench_open(&b, is_incremental, BUDGET, 3);
    for (unsigned i = 0; i < STEPS; i++) {
        step(&m);
        bench_check(&b);
        if (i % 16 == 0)
            for (unsigned j = 0; j < m.count; j++)
                is_unchanged(&m.held[j]);
    }
    assert_true(m.arrivals > STEPS / 20);
    assert_true(m.refused > STEPS / 50);
    while (m.count > 0)
        drop(&m, m.count - 1);
    bench_end_dispatch(&b);
    weir_pool_stats stats = bench_stats(&b);
    assert_int_equal(stats.buffers_retired, 0);
    assert_int_equal(stats.block_bytes, 0);
    assert_true(stats.recycled > 0);
    bench_close(&b);
}

static void random_life_of_an_incremental_pool_is_exact(void **state) {
    (void)state;
    for (uint64_t seed = 1; seed <= 5; seed++)
        run(seed, true);
}

static void random_life_of_a_classic_pool_is_exact(void **state) {
    (void)state;
    for (uint64_t seed = 101; seed <= 103; seed++)
        run(seed, false);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        bench_test(random_life_of_an_incremental_pool_is_exact),
        bench_test(random_life_of_a_classic_pool_is_exact),
    };
    return cmocka_run_group_tests_name("pool-random", tests, NULL, NULL);
}
