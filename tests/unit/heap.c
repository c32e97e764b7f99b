/* SPDX-License-Identifier: MIT */
/* Deadlines in a heap: the least first, and pushing one forward moves nothing. */
#include "base/heap.h"
#include "support/support.h"

static test_memory memory;
static weir__heap heap;

static int setup(void **state) {
    (void)state;
    test_memory_init(&memory);
    heap = (weir__heap){ 0 };
    return 0;
}

static int teardown(void **state) {
    (void)state;
    weir__heap_deinit(&heap, &memory.allocator);
    assert_int_equal(atomic_load(&memory.live_blocks), 0);
    return 0;
}

static void is_a_heap(void) {
    assert_true(heap.count <= heap.reserved && heap.reserved <= heap.capacity);
    for (size_t i = 0; i < heap.count; i++) {
        assert_int_equal(heap.nodes[i]->index, i);
        assert_true(heap.nodes[i]->key <= heap.nodes[i]->deadline);
        if (i > 0)
            assert_true(heap.nodes[(i - 1) / 2]->key <= heap.nodes[i]->key);
    }
}

static void put(weir__heap_node *node, int64_t deadline) {
    weir__heap_node_init(node);
    test_ok(weir__heap_reserve(&heap, &memory.allocator));
    weir__heap_set(&heap, node, deadline);
    is_a_heap();
}

static void empty_heap_has_nothing_due(void **state) {
    (void)state;
    assert_true(weir__heap_next(&heap) == INT64_MAX);
    assert_null(weir__heap_take_due(&heap, INT64_MAX));
}

static void nodes_come_out_least_first(void **state) {
    (void)state;
    weir__heap_node nodes[7];
    static const int64_t deadlines[7] = { 50, 10, 70, 20, 60, 30, 40 };
    for (int i = 0; i < 7; i++)
        put(&nodes[i], deadlines[i]);
    for (int64_t deadline = 10; deadline <= 70; deadline += 10) {
        assert_true(weir__heap_next(&heap) == deadline);
        const weir__heap_node *node = weir__heap_take_due(&heap, 100);
        assert_non_null(node);
        assert_true(node->deadline == deadline);
        assert_false(weir__heap_has(node));
        is_a_heap();
    }
}

static void node_is_due_at_its_deadline_and_not_before(void **state) {
    (void)state;
    weir__heap_node node;
    put(&node, 10);
    assert_null(weir__heap_take_due(&heap, 9));
    assert_true(weir__heap_has(&node));
    assert_ptr_equal(weir__heap_take_due(&heap, 10), &node);
}

static void ties_all_come_out(void **state) {
    (void)state;
    weir__heap_node nodes[33];
    unsigned count = 0;
    for (int i = 0; i < 33; i++)
        put(&nodes[i], 5);
    while (weir__heap_take_due(&heap, 5) != NULL)
        count++;
    assert_int_equal(count, 33);
}

static void pushing_forward_moves_nothing(void **state) {
    (void)state;
    weir__heap_node nodes[15];
    weir__heap_node *before[15];
    for (int i = 0; i < 15; i++)
        put(&nodes[i], 100 + i);
    memcpy(before, heap.nodes, sizeof before);
    for (int64_t later = 0; later < 1000; later++)
        for (int i = 0; i < 15; i++)
            weir__heap_set(&heap, &nodes[i], 1000 + later);
    assert_memory_equal(before, heap.nodes, sizeof before);
    assert_true(weir__heap_next(&heap) == 100); /* a look too early is all that it costs */
    is_a_heap();
    for (int i = 0; i < 15; i++)
        weir__heap_remove(&heap, &nodes[i]);
}

static void node_pushed_forward_is_due_at_its_new_deadline(void **state) {
    (void)state;
    weir__heap_node idle, other;
    put(&idle, 10);
    put(&other, 50);
    weir__heap_set(&heap, &idle, 100);
    assert_null(weir__heap_take_due(&heap, 20));
    assert_true(weir__heap_next(&heap) == 50); /* and now it lies where it belongs */
    assert_ptr_equal(weir__heap_take_due(&heap, 200), &other);
    assert_ptr_equal(weir__heap_take_due(&heap, 200), &idle);
}

static void node_pushed_forward_and_back_is_due_in_time(void **state) {
    (void)state;
    weir__heap_node node;
    put(&node, 10);
    weir__heap_set(&heap, &node, 100);
    weir__heap_set(&heap, &node, 30);
    assert_null(weir__heap_take_due(&heap, 29));
    assert_ptr_equal(weir__heap_take_due(&heap, 30), &node);
}

static void node_pulled_to_the_front_is_due_first(void **state) {
    (void)state;
    weir__heap_node nodes[9];
    for (int i = 0; i < 9; i++)
        put(&nodes[i], 100 + i);
    weir__heap_set(&heap, &nodes[8], 1);
    is_a_heap();
    assert_ptr_equal(weir__heap_take_due(&heap, 1), &nodes[8]);
    for (int i = 0; i < 8; i++)
        weir__heap_remove(&heap, &nodes[i]);
}

static void removing_what_is_outside_does_nothing(void **state) {
    (void)state;
    weir__heap_node node, other;
    put(&other, 5);
    weir__heap_node_init(&node);
    weir__heap_remove(&heap, &node);
    weir__heap_remove(&heap, &other);
    weir__heap_remove(&heap, &other);
    assert_int_equal(heap.count, 0);
}

/* What moves into the hole may belong above it as well as below. */
static void hole_is_filled_in_either_direction(void **state) {
    (void)state;
    weir__heap_node nodes[7];
    static const int64_t deadlines[7] = { 1, 50, 2, 60, 61, 3, 4 };
    for (int i = 0; i < 7; i++)
        put(&nodes[i], deadlines[i]);
    weir__heap_remove(&heap, &nodes[3]); /* 4 comes into its place, under 50 */
    is_a_heap();
    weir__heap_remove(&heap, &nodes[0]);
    is_a_heap();
    for (int i = 0; i < 7; i++)
        weir__heap_remove(&heap, &nodes[i]);
}

static void reserved_place_needs_no_memory(void **state) {
    (void)state;
    static weir__heap_node nodes[200];
    for (int i = 0; i < 200; i++) {
        weir__heap_node_init(&nodes[i]);
        test_ok(weir__heap_reserve(&heap, &memory.allocator));
    }
    uint64_t allocations = atomic_load(&memory.allocations);
    for (int i = 0; i < 200; i++)
        weir__heap_set(&heap, &nodes[i], 1000 - i);
    is_a_heap();
    for (int i = 0; i < 200; i++)
        weir__heap_remove(&heap, &nodes[i]);
    assert_int_equal(atomic_load(&memory.allocations), allocations);
}

static void place_given_back_is_promised_again(void **state) {
    (void)state;
    for (int i = 0; i < 1000; i++) {
        test_ok(weir__heap_reserve(&heap, &memory.allocator));
        weir__heap_unreserve(&heap);
    }
    assert_int_equal(atomic_load(&memory.allocations), 1);
    assert_int_equal(heap.reserved, 0);
}

static void place_without_memory_is_not_promised(void **state) {
    (void)state;
    static weir__heap_node nodes[64];
    for (int i = 0; i < 64; i++)
        put(&nodes[i], i);
    atomic_store(&memory.fail_at, atomic_load(&memory.allocations) + 1);
    assert_int_equal(weir__heap_reserve(&heap, &memory.allocator), -ENOMEM);
    assert_int_equal(heap.reserved, 64);
    is_a_heap();
    test_ok(weir__heap_reserve(&heap, &memory.allocator));
    is_a_heap();
    for (int i = 0; i < 64; i++)
        weir__heap_remove(&heap, &nodes[i]);
}

static int64_t odd_ones;

static bool is_odd(weir__heap_node *node) {
    odd_ones += node->deadline % 2 != 0;
    return node->deadline % 2 != 0;
}

static void all_that_match_are_removed_and_the_rest_is_a_heap(void **state) {
    (void)state;
    static weir__heap_node nodes[100];
    uint64_t random = 8;
    for (int round = 0; round < 200; round++) {
        size_t count = test_random(&random) % 100, odd = 0;
        for (size_t i = 0; i < count; i++) {
            int64_t deadline = (int64_t)(test_random(&random) % 1000);
            weir__heap_node_init(&nodes[i]);
            test_ok(weir__heap_reserve(&heap, &memory.allocator));
            weir__heap_set(&heap, &nodes[i], deadline);
            odd += deadline % 2 != 0;
        }
        odd_ones = 0;
        weir__heap_remove_if(&heap, is_odd);
        assert_int_equal(odd_ones, odd); /* each was asked for once */
        is_a_heap();
        assert_int_equal(heap.count, count - odd);
        for (size_t i = 0; i < count; i++) {
            assert_true(weir__heap_has(&nodes[i]) == (nodes[i].deadline % 2 == 0));
            weir__heap_remove(&heap, &nodes[i]);
            weir__heap_unreserve(&heap);
        }
    }
}

/* ---- at random -------------------------------------------------------------------------------------- */

enum { NODES = 200 };

static weir__heap_node random_nodes[NODES];
static int64_t model[NODES]; /* -1: outside */

static void take_all_due(int64_t now) {
    int64_t last = INT64_MIN;
    weir__heap_node *node;
    while ((node = weir__heap_take_due(&heap, now)) != NULL) {
        size_t i = (size_t)(node - random_nodes);
        assert_true(model[i] >= 0 && model[i] <= now && node->deadline == model[i]);
        assert_true(node->deadline >= last); /* least first */
        last = node->deadline;
        model[i] = -1;
        is_a_heap();
    }
    int64_t least = INT64_MAX;
    for (size_t i = 0; i < NODES; i++) {
        assert_true(model[i] < 0 || model[i] > now); /* and none forgotten */
        assert_true((model[i] >= 0) == weir__heap_has(&random_nodes[i]));
        if (model[i] >= 0 && model[i] < least)
            least = model[i];
    }
    assert_true(weir__heap_next(&heap) <= least);
}

static void random_deadlines_come_out_as_from_a_sorted_list(void **state) {
    (void)state;
    uint64_t random = 1;
    int64_t now = 0;
    for (size_t i = 0; i < NODES; i++) {
        weir__heap_node_init(&random_nodes[i]);
        test_ok(weir__heap_reserve(&heap, &memory.allocator));
        model[i] = -1;
    }
    for (unsigned step = 0; step < 20000; step++) {
        size_t i = test_random(&random) % NODES;
        switch (test_random(&random) % 8) {
        case 0:
            weir__heap_remove(&heap, &random_nodes[i]);
            model[i] = -1;
            break;
        case 1:
            now += (int64_t)(test_random(&random) % 20);
            take_all_due(now);
            break;
        default:
            model[i] = now + (int64_t)(test_random(&random) % (test_random(&random) % 2 ? 300 : 5));
            weir__heap_set(&heap, &random_nodes[i], model[i]);
            break;
        }
        is_a_heap();
    }
    take_all_due(INT64_MAX);
    assert_int_equal(heap.count, 0);
}

#define heap_test(function) cmocka_unit_test_setup_teardown(function, setup, teardown)

int main(void) {
    const struct CMUnitTest tests[] = {
        heap_test(empty_heap_has_nothing_due),
        heap_test(nodes_come_out_least_first),
        heap_test(node_is_due_at_its_deadline_and_not_before),
        heap_test(ties_all_come_out),
        heap_test(pushing_forward_moves_nothing),
        heap_test(node_pushed_forward_is_due_at_its_new_deadline),
        heap_test(node_pushed_forward_and_back_is_due_in_time),
        heap_test(node_pulled_to_the_front_is_due_first),
        heap_test(removing_what_is_outside_does_nothing),
        heap_test(hole_is_filled_in_either_direction),
        heap_test(reserved_place_needs_no_memory),
        heap_test(place_given_back_is_promised_again),
        heap_test(place_without_memory_is_not_promised),
        heap_test(all_that_match_are_removed_and_the_rest_is_a_heap),
        heap_test(random_deadlines_come_out_as_from_a_sorted_list),
    };
    return cmocka_run_group_tests_name("heap", tests, NULL, NULL);
}
