/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* How chains end, and what ends while they do: by a release function, by another thread, with their loop. */

static weir_chain *new_chain(test_fixture *f, size_t limit) {
    weir_chain *chain;
    test_ok(weir_chain_new(f->loop, limit, &chain));
    return chain;
}

static void push_copy(test_fixture *f, weir_chain *chain, const void *data, size_t size) {
    weir_slice slice;
    test_ok(weir_slice_copy(weir_loop_get_pool(f->loop), data, size, &slice));
    test_ok(weir_chain_push(chain, &slice));
    weir_slice_unref(&slice);
}

static void push_text(test_fixture *f, weir_chain *chain, const char *text) {
    push_copy(f, chain, text, strlen(text));
}

static const weir_slice *peek(weir_chain *chain, size_t offset, size_t size) {
    const weir_slice *slice = NULL;
    test_ok(weir_chain_peek(chain, offset, size, &slice));
    assert_int_equal(slice->size, size);
    return slice;
}

static void holds(weir_chain *chain, const char *text) {
    assert_int_equal(weir_chain_get_size(chain), strlen(text));
    assert_memory_equal(peek(chain, 0, strlen(text))->data, text, strlen(text));
}

static weir_chain *incoming;

static void push_all(witness *w, char event, const weir_slice *slice) {
    (void)w;
    if (event == 'd')
        test_ok(weir_chain_push(incoming, slice));
}

/* ---- wrapped memory ---------------------------------------------------------------------------------- */

static weir_chain *doomed;
static unsigned releases;

static void unref_doomed(const void *data, size_t size, void *userdata) {
    (void)data, (void)size, (void)userdata;
    if (++releases == 1)
        doomed = weir_chain_unref(doomed);
}

/* A release function may call anything, also unref the chain that it is released by, or change it. */
static void a_release_may_end_the_chain(void **state) {
    test_fixture *f = *state;
    weir_pool *pool = weir_loop_get_pool(f->loop);
    run_turns(f, 1); /* before, the loop has no thread yet, and chains end in its first turn */
    for (int how = 0; how < 3; how++) {
        const weir_slice *shown;
        weir_slice slice, taken = { 0 };
        releases = 0;
        doomed = new_chain(f, 100);
        for (int i = 0; i < 3; i++) {
            test_ok(weir_slice_wrap(pool, "wrapped", 7, unref_doomed, NULL, &slice));
            test_ok(weir_chain_push(doomed, &slice));
            weir_slice_unref(&slice);
        }
        if (how == 0)
            test_ok(weir_chain_drop(doomed, 15));
        else if (how == 1)
            test_ok(weir_chain_take(doomed, 15, &taken));
        else
            test_ok(weir_chain_peek(doomed, 0, 15, &shown));
        assert_int_equal(releases, 3);
        assert_null(doomed);
        if (how == 1)
            assert_memory_equal(taken.data, "wrappedwrappedw", 15);
        weir_slice_unref(&taken);
        assert_int_equal(test_pool_stats(f).block_bytes, 0);
    }
}

static void drop_more(const void *data, size_t size, void *userdata) {
    (void)data, (void)size;
    releases++;
    test_ok(weir_chain_drop(userdata, 1));
}

static void a_release_may_change_the_chain(void **state) {
    test_fixture *f = *state;
    weir_slice slice;
    weir_chain *chain = new_chain(f, 100);
    releases = 0;
    for (int i = 0; i < 2; i++) {
        test_ok(weir_slice_wrap(weir_loop_get_pool(f->loop), "12", 2, drop_more, chain, &slice));
        test_ok(weir_chain_push(chain, &slice));
        weir_slice_unref(&slice);
    }
    push_text(f, chain, "abcdef");
    test_ok(weir_chain_drop(chain, 5)); /* and one by each release */
    assert_int_equal(releases, 2);
    holds(chain, "def");
    weir_chain_unref(chain);
}

/* ---- threads, and the loop's end --------------------------------------------------------------------- */

static void *unref_elsewhere(void *userdata) {
    weir_chain_unref(userdata);
    return NULL;
}

static void the_last_unref_may_be_another_threads(void **state) {
    (void)state;
    static uint8_t data[5000];
    /* Before the loop ever ran; while it is open; after its close, when both hold one block, and when nothing but the loop
     * is common to them (the block's count would order what the two threads do, where ThreadSanitizer looks). */
    for (int when = 0; when < 4; when++) {
        test_fixture f;
        static witness w;
        pthread_t thread;
        test_open(&f, NULL, NULL);
        incoming = new_chain(&f, 100000);
        weir_chain *other = new_chain(&f, 100000);
        int peer = witness_pair(&f, &w, false, NULL);
        push_text(&f, incoming, "text");
        if (when > 0) {
            w.hook = push_all;
            test_fill(2, 0, data, sizeof data);
            peer_send(peer, data, sizeof data);
            run_until(&f, w.size == sizeof data);
        }
        for (int i = 0; i < 50; i++)
            push_text(&f, other, "so that ranges come and go");
        if (when < 3)
            test_ok(weir_chain_push(other, peek(incoming, 0, weir_chain_get_size(incoming))));
        if (when >= 2)
            test_ok(weir_loop_close(f.loop));
        assert_int_equal(pthread_create(&thread, NULL, unref_elsewhere, incoming), 0);
        for (size_t left; (left = weir_chain_get_size(other)) > 4;) { /* at the same time */
            weir_slice taken;
            test_ok(weir_chain_take(other, left - 4 < 100 ? left - 4 : 100, &taken));
            weir_slice_unref(&taken);
        }
        assert_int_equal(pthread_join(thread, NULL), 0);
        if (when == 1 || when == 2)
            assert_int_equal(test_differs(2, sizeof data - 4, peek(other, 0, 4)->data, 4), -1);
        weir_chain_unref(other);
        close(peer);
        test_close(&f);
    }
}

/* All that it holds is good, joined or not, also what its loop's buffers hold. */
static void a_chain_is_read_after_its_loops_close(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    static uint8_t data[9000];
    weir_slice taken;
    test_open(&f, NULL, NULL);
    incoming = new_chain(&f, 100000);
    int peer = witness_pair(&f, &w, false, NULL);
    w.hook = push_all;
    test_fill(3, 0, data, sizeof data);
    for (size_t at = 0; at < sizeof data; at += 3000) {
        peer_send(peer, data + at, 3000);
        run_until(&f, w.size == at + 3000);
        push_text(&f, incoming, "|");
    }
    test_ok(weir_loop_close(f.loop));
    weir_loop_unref(f.loop); /* the chain has one */
    close(peer);
    assert_int_equal(weir_chain_find(incoming, 3001, "|", 1) > 3000, 1);
    for (size_t at = 0; at < sizeof data; at += 3000) {
        test_ok(weir_chain_take(incoming, 2999, &taken));
        assert_int_equal(test_differs(3, at, taken.data, 2999), -1);
        weir_slice_unref(&taken);
        test_ok(weir_chain_take(incoming, 2, &taken)); /* over a seam */
        assert_int_equal(test_differs(3, at + 2999, taken.data, 1), -1);
        assert_int_equal(taken.data[1], '|');
        weir_slice_unref(&taken);
    }
    assert_int_equal(weir_chain_get_size(incoming), 0);
    weir_chain_unref(incoming);
    assert_int_equal(atomic_load(&f.memory.live_blocks), 0);
}

static void take_in_close(witness *w, char event, const weir_slice *slice) {
    if (event == 'd')
        test_ok(weir_chain_push(incoming, slice));
    if (event != 'c')
        return;
    weir_slice taken;
    assert_int_equal(weir_chain_push(incoming, &(const weir_slice){ (const uint8_t *)"x", 1, NULL }), -ESHUTDOWN);
    test_ok(weir_chain_take(incoming, w->size, &taken));
    weir_slice_unref(&taken);
    incoming = weir_chain_unref(incoming);
}

static void a_chain_ends_in_its_streams_close_by_the_loops(void **state) {
    (void)state;
    test_fixture f;
    static witness w;
    static uint8_t data[20000];
    test_open(&f, NULL, NULL);
    incoming = new_chain(&f, 100000);
    int peer = witness_pair(&f, &w, false, NULL);
    w.hook = take_in_close;
    peer_send(peer, data, sizeof data);
    run_until(&f, w.size == sizeof data);
    test_ok(weir_loop_close(f.loop));
    assert_null(incoming);
    close(peer);
    test_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(a_release_may_end_the_chain),
        loop_test(a_release_may_change_the_chain),
        cmocka_unit_test(the_last_unref_may_be_another_threads),
        cmocka_unit_test(a_chain_is_read_after_its_loops_close),
        cmocka_unit_test(a_chain_ends_in_its_streams_close_by_the_loops),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
