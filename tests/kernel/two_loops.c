/* SPDX-License-Identifier: MIT */

/* Loops on threads of their own that give each other what may cross: slices, descriptors, posts. */

#include "kernel/scribe.h"

enum { BUFFER = 4096, BYTES = TIMES(4 << 20, 512 << 10), STREAMS = 8 };

/* A loop that runs on its own thread until it is stopped, and is closed there. */
typedef struct worker {
    test_memory memory;
    weir_loop *loop;
    pthread_t thread;
    _Atomic(int) error;
} worker;

static void *work(void *userdata) {
    worker *w = userdata;
    if (weir_loop_run(w->loop) < 0 || weir_loop_close(w->loop) < 0)
        atomic_store(&w->error, 1);
    return NULL;
}

static void worker_start(worker *w, const weir_pool_options *pool) {
    test_memory_init(&w->memory);
    const weir_loop_options options = {
        .size = sizeof options, .flags = WEIR_LOOP_KEEP_RUNNING, .pool = pool, .allocator = &w->memory.allocator
    };
    test_ok(weir_loop_new(&options, &w->loop));
    test_ok(pthread_create(&w->thread, NULL, work, w));
}

/* Its memory is looked at by the caller, when all that it lent is back. */
static void worker_stop(worker *w) {
    weir_loop_stop(w->loop);
    test_ok(pthread_join(w->thread, NULL));
    assert_int_equal(atomic_load(&w->error), 0);
    w->loop = weir_loop_unref(w->loop);
}

/* ---- slices of one loop on a stream of another ------------------------------------------------------------- */

/* What came in on this loop goes out on the other: a slice for each post, released there when the kernel has it. */
typedef struct bridge {
    test_fixture f; /* receives */
    worker w;       /* sends */
    scribe in[STREAMS];
    int in_peers[STREAMS];
    weir_stream *out[STREAMS]; /* the worker's thread's */
    peer out_peers[STREAMS];
    int out_fds[STREAMS];
    _Atomic(unsigned) ready, failed, closed, is_let_go;
} bridge;

typedef struct load {
    bridge *b;
    unsigned index;
    weir_slice slice;
} load;

static void on_out_close(weir_stream *stream, int reason, int error, void *userdata) {
    bridge *b = userdata;
    (void)stream, (void)reason, (void)error;
    atomic_fetch_add(&b->closed, 1);
}

static const weir_stream_callbacks out_callbacks = { .size = sizeof out_callbacks, .on_close = on_out_close };

static void open_out(weir_loop *loop, void *userdata) {
    bridge *b = userdata;
    for (unsigned i = 0; i < STREAMS; i++) {
        if (weir_stream_adopt(loop, b->out_fds[i], NULL, &b->out[i]) < 0 ||
            weir_stream_start(b->out[i], &out_callbacks, b) < 0)
            atomic_fetch_add(&b->failed, 1);
    }
    atomic_store(&b->ready, 1);
}

static void send_load(weir_loop *loop, void *userdata) {
    load *l = userdata;
    (void)loop;
    if (weir_stream_write_slice(l->b->out[l->index], &l->slice) < 0)
        atomic_fetch_add(&l->b->failed, 1);
    weir_slice_unref(&l->slice);
    free(l);
}

static void carry(scribe *s, char event, const weir_slice *slice) {
    bridge *b = s->userdata;
    if (event != 'd')
        return;
    load *l = malloc(sizeof *l);
    assert_non_null(l);
    *l = (load){ .b = b, .index = (unsigned)(s - b->in) };
    weir_slice_ref(slice, &l->slice);
    test_ok(weir_loop_post(b->w.loop, send_load, l));
}

static void bridge_open(bridge *b, uint32_t buffers) {
    const weir_pool_options pool = {
        .size = sizeof pool, .buffer_bytes = BUFFER, .budget_bytes = buffers * BUFFER, .window_bytes = 8 * BUFFER
    };
    memset(b, 0, sizeof *b);
    test_open(&b->f, NULL, &pool);
    for (unsigned i = 0; i < STREAMS; i++) {
        int fds[2];
        test_pair(i % 2 == 0, fds);
        b->in_peers[i] = fds[0];
        b->in[i].hook = carry;
        b->in[i].userdata = b;
        scribe_init(&b->in[i], i);
        scribe_adopt(&b->f, &b->in[i], fds[1], NULL);
        test_pair(i % 2 == 1, fds);
        peer_init(&b->out_peers[i], fds[0], i);
        b->out_fds[i] = fds[1];
    }
    worker_start(&b->w, NULL);
    test_ok(weir_loop_post(b->w.loop, open_out, b));
    while (atomic_load(&b->ready) == 0)
        test_sleep_ms(1);
}

/* What a peer sends without waiting. */
static size_t trickle(int fd, uint64_t seed, uint64_t position, uint64_t *random) {
    uint8_t bytes[8192];
    size_t size = 1 + (size_t)(test_random(random) % sizeof bytes);
    size = size < BYTES - position ? size : (size_t)(BYTES - position);
    test_fill(seed, position, bytes, size);
    ssize_t count = size > 0 ? send(fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL) : 0;
    return count > 0 ? (size_t)count : 0;
}

/* The sender's thread stands still until it is let go: what is posted behind this waits, and holds its buffers. */
static void stand_still(weir_loop *loop, void *userdata) {
    bridge *b = userdata;
    (void)loop;
    for (unsigned ms = 0; ms < PATIENCE_S * 1000 && atomic_load(&b->is_let_go) == 0; ms++)
        test_sleep_ms(1);
}

static void a_slice_of_one_loop_is_sent_by_another(void **state) {
    (void)state;
    static bridge b;
    uint64_t sent[STREAMS] = { 0 }, random = 1, received = 0;
    bridge_open(&b, 8);
    test_ok(weir_loop_post(b.w.loop, stand_still, &b));
    int64_t deadline = test_now_ns() + PATIENCE_S * INT64_C(1000000000);
    while (received < (uint64_t)BYTES * STREAMS) {
        assert_true(test_now_ns() < deadline);
        received = 0;
        for (unsigned i = 0; i < STREAMS; i++) {
            sent[i] += trickle(b.in_peers[i], i, sent[i], &random);
            peer_read(&b.out_peers[i]);
            received += b.out_peers[i].received;
        }
        assert_true(weir_loop_run_once(b.f.loop, 1 * MS) >= 0);
        if (test_pool_stats(&b.f).starved >
            0) /* from here on every byte needs a buffer that the sender gave back */
            atomic_store(&b.is_let_go, 1);
    }
    assert_int_equal(atomic_load(&b.failed), 0);
    assert_true(test_pool_stats(&b.f).recycled > 0);
    assert_int_equal(atomic_load(&b.is_let_go), 1);
    assert_int_equal(test_loop_stats(&b.f).bytes_copied, 0);
    worker_stop(&b.w);
    assert_int_equal(atomic_load(&b.closed), STREAMS);
    assert_int_equal(atomic_load(&b.w.memory.live_bytes), 0);
    for (unsigned i = 0; i < STREAMS; i++) {
        assert_int_equal(b.in[i].wrong, -1);
        assert_int_equal(b.out_peers[i].wrong, -1);
        close(b.in_peers[i]);
        close(b.out_peers[i].fd);
    }
    test_close(&b.f);
}

static void doze(weir_loop *loop, void *userdata) {
    (void)loop, (void)userdata;
    test_sleep_ms(200);
}

/* The receiving loop is gone while its slices wait in the other's queues; they are sent, and free its pool. */
static void slices_are_sent_by_another_loop_when_theirs_is_gone(void **state) {
    (void)state;
    static bridge b;
    bridge_open(&b, 64);
    test_ok(weir_loop_post(b.w.loop, doze, NULL)); /* what is posted behind it waits */
    for (unsigned i = 0; i < STREAMS; i++)
        assert_int_equal(peer_send(b.in_peers[i], i, 0, 3 * BUFFER), 0);
    for (unsigned i = 0; i < STREAMS; i++)
        RUN_UNTIL(&b.f, b.in[i].received == 3 * BUFFER);
    test_ok(weir_loop_close(b.f.loop));
    b.f.loop = weir_loop_unref(b.f.loop);
    for (unsigned i = 0; i < STREAMS; i++) {
        for (unsigned ms = 0; ms < PATIENCE_S * 1000 && b.out_peers[i].received < 3 * BUFFER; ms++) {
            peer_read(&b.out_peers[i]);
            test_sleep_ms(1);
        }
        peer_expect_open(&b.out_peers[i], 3 * BUFFER);
    }
    worker_stop(&b.w);
    assert_int_equal(atomic_load(&b.w.memory.live_bytes), 0);
    assert_int_equal(atomic_load(&b.f.memory.live_bytes), 0);
    assert_int_equal(atomic_load(&b.f.memory.live_blocks), 0);
    for (unsigned i = 0; i < STREAMS; i++) {
        close(b.in_peers[i]);
        close(b.out_peers[i].fd);
    }
    assert_int_equal(test_count_fds(), b.f.fds);
}

/* ---- connections that are accepted here and served there ------------------------------------------------------- */

typedef struct ramp {
    test_fixture f;
    worker workers[2];
    unsigned accepted;
    _Atomic(unsigned) served, failed;
} ramp;

typedef struct passenger {
    ramp *r;
    int fd;
} passenger;

static void echo(weir_stream *stream, const weir_slice *slice, void *userdata) {
    ramp *r = userdata;
    if (weir_stream_write_slice(stream, slice) < 0)
        atomic_fetch_add(&r->failed, 1);
}

static void on_served(weir_stream *stream, int reason, int error, void *userdata) {
    ramp *r = userdata;
    (void)stream;
    if (reason != WEIR_CLOSE_PEER || error != 0)
        atomic_fetch_add(&r->failed, 1);
    atomic_fetch_add(&r->served, 1);
}

static const weir_stream_callbacks echo_callbacks = { .size = sizeof echo_callbacks,
                                                      .on_data = echo,
                                                      .on_close = on_served };

static void board(weir_loop *loop, void *userdata) {
    passenger *p = userdata;
    weir_stream *stream;
    if (weir_stream_adopt(loop, p->fd, NULL, &stream) < 0) {
        close(p->fd);
        atomic_fetch_add(&p->r->failed, 1);
    } else {
        (void)weir_stream_start(stream, &echo_callbacks, p->r);
    }
    free(p);
}

static void pass_on(weir_listener *listener, weir_stream *stream, void *userdata) {
    ramp *r = userdata;
    passenger *p = malloc(sizeof *p);
    (void)listener;
    assert_non_null(p);
    p->r = r;
    test_ok(weir_stream_detach(stream, &p->fd));
    test_ok(weir_loop_post(r->workers[r->accepted++ % 2].loop, board, p));
}

static void a_connection_is_accepted_by_one_loop_and_served_by_another(void **state) {
    (void)state;
    enum { CLIENTS = TIMES(200, 60) };
    static const weir_listener_callbacks callbacks = { .size = sizeof callbacks, .on_accept = pass_on };
    static ramp r;
    static peer peers[CLIENTS];
    weir_listener *listener;
    memset(&r, 0, sizeof r);
    test_open(&r.f, NULL, NULL);
    for (int i = 0; i < 2; i++)
        worker_start(&r.workers[i], NULL);
    test_ok(weir_listener_open(r.f.loop, "127.0.0.1:0", NULL, &listener));
    test_ok(weir_listener_start(listener, &callbacks, &r));
    for (unsigned i = 0; i < CLIENTS; i++) { /* the first bytes are there before anybody accepts */
        peer_init(&peers[i], test_connect(listener), i);
        assert_int_equal(peer_send(peers[i].fd, i, 0, 5000), 0);
        shutdown(peers[i].fd, SHUT_WR);
    }
    for (unsigned i = 0; i < CLIENTS; i++)
        RUN_UNTIL(&r.f, peer_is_over(&peers[i]));
    for (unsigned i = 0; i < CLIENTS; i++) {
        peer_expect_end(&peers[i], 5000);
        close(peers[i].fd);
    }
    for (unsigned ms = 0; ms < PATIENCE_S * 1000 && atomic_load(&r.served) < CLIENTS; ms++)
        test_sleep_ms(1);
    assert_int_equal(atomic_load(&r.served), CLIENTS);
    assert_int_equal(atomic_load(&r.failed), 0);
    for (int i = 0; i < 2; i++) {
        worker_stop(&r.workers[i]);
        assert_int_equal(atomic_load(&r.workers[i].memory.live_bytes), 0);
    }
    test_close(&r.f);
}

/* ---- posts that race with a close --------------------------------------------------------------------------------- */

typedef struct late {
    weir_loop *loop;
    _Atomic(unsigned) run;
    unsigned taken;
    bool is_refused;
} late;

static void count_run(weir_loop *loop, void *userdata) {
    late *l = userdata;
    (void)loop;
    atomic_fetch_add(&l->run, 1);
}

static void *post_until_refused(void *userdata) {
    late *l = userdata;
    int r;
    while ((r = weir_loop_post(l->loop, count_run, l)) == 0)
        l->taken++;
    l->is_refused = r == -ESHUTDOWN;
    weir_loop_unref(l->loop);
    return NULL;
}

/* A post that was taken runs, at the latest in the loop's close; one that was not never does. */
static void each_post_that_is_taken_runs_although_the_loop_closes(void **state) {
    (void)state;
    for (int i = 0; i < TIMES(50, 15); i++) {
        test_fixture f;
        pthread_t thread;
        late l = { 0 };
        test_open(&f, NULL, NULL);
        l.loop = weir_loop_ref(f.loop);
        test_ok(pthread_create(&thread, NULL, post_until_refused, &l));
        for (int turn = 0; turn < i % 4; turn++)
            assert_true(weir_loop_run_once(f.loop, 1 * MS) >= 0);
        test_ok(weir_loop_close(f.loop));
        test_ok(pthread_join(thread, NULL));
        assert_true(l.is_refused);
        assert_int_equal(atomic_load(&l.run), l.taken);
        test_close(&f);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_slice_of_one_loop_is_sent_by_another),
        cmocka_unit_test(slices_are_sent_by_another_loop_when_theirs_is_gone),
        cmocka_unit_test(a_connection_is_accepted_by_one_loop_and_served_by_another),
        cmocka_unit_test(each_post_that_is_taken_runs_although_the_loop_closes),
    };
    return cmocka_run_group_tests_name("two-loops", tests, first_thread, NULL);
}
