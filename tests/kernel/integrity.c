/* SPDX-License-Identifier: MIT */

/*
 * Whose bytes are these? One group of buffers serves all streams, and a completion says how many bytes came but not
 * where they lie: if one is taken out of order, every later one hands somebody else's bytes to its stream. So: 48
 * connections over few and small buffers and a completion queue of 16 entries, all that can happen to them happening
 * at random, and each byte known by its stream and position. Kept slices are looked at again when they are dropped,
 * which may be much later, elsewhere, and after the loop is gone.
 *
 * Each round is random from a seed, which is printed when it fails; threads make no two runs alike all the same.
 */

#include <netinet/in.h>

#include "kernel/scribe.h"

enum {
    STREAMS = 48, /* a third each over IPv4, IPv6 and Unix sockets */
    THREADS = 2,
    HEADER = 8, /* a stream begins with its number, so that its pattern is known */
    BUFFER = 4096,
    MOST_KEPT = 256,
    MOST_BYTES = TIMES(200000, 100000)
};

enum ending { CLOSES, SHUTS_DOWN, RESETS, ENDINGS };

typedef struct round_state round_state;

typedef struct wire {
    round_state *round;
    /* the peer's thread */
    int fd; /* -1: ended */
    enum ending ending;
    uint64_t quota, sent;
    bool is_broken; /* we ended it */
    /* the loop's */
    weir_stream *stream;
    uint8_t header[HEADER];
    uint64_t received;
    uint32_t number; /* from the header */
    bool is_ours_to_end, is_paused, is_closed;
} wire;

typedef struct kept {
    weir_slice slice;
    uint64_t seed, position;
} kept;

struct round_state {
    test_fixture f;
    uint64_t seed, random;
    wire peers[STREAMS];   /* by number */
    wire streams[STREAMS]; /* in the order of acceptance */
    unsigned accepted, closed;
    kept kept[MOST_KEPT];
    unsigned kept_count;
    _Atomic(unsigned) wrong;
    weir_timer *timer;
    /* slices on their way to another thread */
    pthread_mutex_t mutex;
    pthread_cond_t cond;
    kept handed[MOST_KEPT * 4];
    unsigned handed_count;
    bool is_over;
};

/* What happened, over all rounds: a test that did not have it proves little. */
static struct {
    uint64_t overflows, starved, recycled, kept, dropped_elsewhere, paused, ended_by_us, bytes;
    bool is_epoll;
} seen;

static void expect(round_state *r, bool condition, const char *what) {
    if (condition)
        return;
    print_error("seed %llu: %s\n", (unsigned long long)r->seed, what);
    fail();
}

static bool one_in(round_state *r, unsigned n) {
    return test_random(&r->random) % n == 0;
}

static uint64_t pattern_of(const round_state *r, uint32_t number) {
    return r->seed * 1000 + number;
}

/* ---- the peers ---------------------------------------------------------------------------------------- */

typedef struct feeder {
    round_state *round;
    uint64_t random;
    unsigned first; /* every THREADS-th connection from here on is this thread's */
} feeder;

/* From a byte to 64 KiB, small and large ones as often as not. */
static size_t pick_size(uint64_t *random) {
    static const uint32_t limits[] = { 16, 500, 6000, 65536 };
    return 1 + test_random(random) % limits[test_random(random) % 4];
}

static void end_wire(wire *w) {
    struct linger linger = { .l_onoff = 1, .l_linger = 0 };
    if (w->ending == RESETS)
        (void)setsockopt(w->fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
    if (w->ending != SHUTS_DOWN || w->is_broken)
        close(w->fd);
    else
        shutdown(w->fd, SHUT_WR); /* and is closed when all is over */
    if (w->ending != SHUTS_DOWN || w->is_broken)
        w->fd = -1;
}

static void *feed(void *userdata) {
    feeder *it = userdata;
    round_state *r = it->round;
    unsigned live[STREAMS], count = 0;
    for (unsigned i = it->first; i < STREAMS; i += THREADS)
        live[count++] = i;
    while (count > 0) {
        unsigned pick = (unsigned)(test_random(&it->random) % count);
        wire *w = &r->peers[live[pick]];
        uint32_t number = live[pick];
        size_t size = pick_size(&it->random);
        if (w->sent == 0) {
            uint8_t header[HEADER] = { 0 };
            memcpy(header, &number, sizeof number);
            w->is_broken = send(w->fd, header, HEADER, MSG_NOSIGNAL) != HEADER;
            w->sent = HEADER;
        } else if (w->sent < w->quota) {
            size = size < w->quota - w->sent ? size : (size_t)(w->quota - w->sent);
            w->is_broken = peer_send(w->fd, pattern_of(r, number), w->sent, size) < 0;
            w->sent += size;
        }
        if (w->is_broken || w->sent >= w->quota) {
            end_wire(w);
            live[pick] = live[--count];
        }
    }
    return NULL;
}

/* ---- slices that are kept ------------------------------------------------------------------------------ */

static void drop(round_state *r, kept *k) {
    if (test_differs(k->seed, k->position, k->slice.data, k->slice.size) >= 0)
        atomic_fetch_add(&r->wrong, 1);
    weir_slice_unref(&k->slice);
}

static void *drop_elsewhere(void *userdata) {
    round_state *r = userdata;
    pthread_mutex_lock(&r->mutex);
    while (!r->is_over || r->handed_count > 0) {
        if (r->handed_count == 0) {
            pthread_cond_wait(&r->cond, &r->mutex);
            continue;
        }
        kept k = r->handed[--r->handed_count];
        pthread_mutex_unlock(&r->mutex);
        drop(r, &k);
        pthread_mutex_lock(&r->mutex);
    }
    pthread_mutex_unlock(&r->mutex);
    return NULL;
}

static bool hand_over(round_state *r, const kept *k) {
    pthread_mutex_lock(&r->mutex);
    bool has_room = r->handed_count < MOST_KEPT * 4;
    if (has_room)
        r->handed[r->handed_count++] = *k;
    pthread_cond_signal(&r->cond);
    pthread_mutex_unlock(&r->mutex);
    return has_room;
}

static void keep(round_state *r, const weir_slice *slice, uint64_t seed, uint64_t position) {
    kept *k = &r->kept[r->kept_count];
    size_t offset = 0, size = slice->size;
    if (one_in(r, 3)) {
        offset = test_random(&r->random) % slice->size;
        size = 1 + test_random(&r->random) % (slice->size - offset);
        test_ok(weir_slice_sub(slice, offset, size, &k->slice));
    } else {
        weir_slice_ref(slice, &k->slice);
    }
    k->seed = seed;
    k->position = position + offset;
    r->kept_count++;
    seen.kept++;
}

/* ---- the streams ---------------------------------------------------------------------------------------- */

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    wire *w = userdata;
    round_state *r = w->round;
    weir_slice rest = *slice;
    uint64_t position = w->received;
    expect(r, !w->is_closed && !w->is_paused && !w->is_ours_to_end, "data came where none may");
    while (position < HEADER && rest.size > 0) {
        w->header[position++] = *rest.data++;
        rest.size--;
    }
    if (w->received < HEADER && position == HEADER) {
        memcpy(&w->number, w->header, sizeof w->number);
        expect(r, w->number < STREAMS && memcmp(w->header + 4, "\0\0\0\0", 4) == 0, "a header is not one");
    }
    if (rest.size > 0 && test_differs(pattern_of(r, w->number), position, rest.data, rest.size) >= 0)
        expect(r, false, "a byte is not its stream's");
    w->received += slice->size;
    if (rest.size > 0 && r->kept_count < MOST_KEPT && one_in(r, 6))
        keep(r, &rest, pattern_of(r, w->number), position);
    if (one_in(r, 12)) {
        w->is_paused = true;
        seen.paused++;
        test_ok(weir_stream_pause(stream));
    }
    if (w->received > HEADER && one_in(r, 600)) {
        w->is_ours_to_end = true;
        seen.ended_by_us++;
        test_ok(one_in(r, 2) ? weir_stream_close(stream) : weir_stream_abort(stream));
    }
}

static void on_end(weir_stream *stream, void *userdata) {
    wire *w = userdata;
    round_state *r = w->round;
    expect(r, !w->is_paused && !w->is_ours_to_end, "an end came where none may");
    expect(r, w->received == r->peers[w->number].quota, "an end came before all bytes");
    test_ok(weir_stream_close(stream));
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    wire *w = userdata;
    round_state *r = w->round;
    (void)stream;
    expect(r, !w->is_closed, "on_close came twice");
    w->is_closed = true;
    w->stream = NULL;
    r->closed++;
    seen.bytes += w->received;
    if (w->is_ours_to_end || (w->received >= HEADER && r->peers[w->number].ending == RESETS) ||
        (w->received < HEADER && error == -ECONNRESET))
        return;
    expect(r, reason == WEIR_CLOSE_PEER && error == 0, "a stream was closed for no reason");
    expect(r, w->received == r->peers[w->number].quota, "bytes are missing");
}

static const weir_stream_callbacks callbacks = {
    .size = sizeof callbacks, .on_data = on_data, .on_end = on_end, .on_close = on_close
};

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    round_state *r = userdata;
    (void)listener;
    wire *w = &r->streams[r->accepted++];
    *w = (wire){ .round = r, .stream = stream };
    test_ok(weir_stream_start(stream, &callbacks, w));
}

static const weir_listener_callbacks listener_callbacks = { .size = sizeof listener_callbacks,
                                                            .on_accept = on_accept };

/* Now and then: let some go on, let some memory go. */
static void on_timer(weir_timer *timer, void *userdata) {
    round_state *r = userdata;
    (void)timer;
    for (unsigned i = 0; i < r->accepted; i++) {
        wire *w = &r->streams[i];
        if (w->is_paused && !w->is_closed && one_in(r, 3)) {
            w->is_paused = false;
            test_ok(weir_stream_resume(w->stream));
        }
    }
    for (unsigned i = r->kept_count; i-- > 0;) {
        if (!one_in(r, 3))
            continue;
        if (one_in(r, 2) && hand_over(r, &r->kept[i]))
            seen.dropped_elsewhere++;
        else
            drop(r, &r->kept[i]);
        r->kept[i] = r->kept[--r->kept_count];
    }
}

/* ---- a round ---------------------------------------------------------------------------------------------- */

static void open_round(round_state *r, uint64_t seed, uint32_t buffers, weir_listener *listeners[3]) {
    const weir__tuning tuning = { .sq_entries = 16, .cq_entries = 16 };
    const weir_pool_options pool = { .size = sizeof pool,
                                     .buffer_bytes = BUFFER,
                                     .budget_bytes = (uint64_t)buffers * BUFFER,
                                     .window_bytes = (buffers + 1) / 2 * BUFFER };
    static const char *const addresses[3] = { "127.0.0.1:0", "[::1]:0", "unix:@weir-test-integrity" };
    char address[WEIR_ADDRESS_SIZE];
    memset(r, 0, sizeof *r);
    r->seed = r->random = seed;
    pthread_mutex_init(&r->mutex, NULL);
    pthread_cond_init(&r->cond, NULL);
    test_open(&r->f, &tuning, &pool);
    for (int i = 0; i < 3; i++) {
        snprintf(address, sizeof address, "%s%s%d", addresses[i], i == 2 ? "-" : "", i == 2 ? (int)getpid() : 0);
        test_ok(weir_listener_open(r->f.loop, i == 2 ? address : addresses[i], NULL, &listeners[i]));
        test_ok(weir_listener_start(listeners[i], &listener_callbacks, r));
    }
    for (uint32_t i = 0; i < STREAMS; i++) {
        wire *w = &r->peers[i];
        *w = (wire){ .round = r, .fd = test_connect(listeners[i % 3]) };
        w->ending = (enum ending)(test_random(&r->random) % ENDINGS);
        w->quota = HEADER + 1 + test_random(&r->random) % MOST_BYTES;
    }
    test_ok(weir_timer_new(r->f.loop, on_timer, r, &r->timer));
    test_ok(weir_timer_start(r->timer, 1 * MS, 1 * MS));
}

static void close_round(round_state *r, weir_listener *const listeners[3]) {
    weir_loop_stats loop = test_loop_stats(&r->f);
    weir_pool_stats pool = test_pool_stats(&r->f);
    weir_loop_info info = { .size = sizeof info };
    test_ok(weir_loop_get_info(r->f.loop, &info));
    expect(r, info.asked == WEIR_BACKEND_AUTO || info.backend == info.asked, "the group was condemned");
    seen.overflows += loop.overflows;
    seen.is_epoll = test_is_epoll(&r->f);
    seen.starved += pool.starved;
    seen.recycled += pool.recycled;
    weir_timer_unref(r->timer);
    for (int i = 0; i < 3; i++)
        test_ok(weir_listener_close(listeners[i]));
    test_ok(weir_loop_close(r->f.loop));
    while (r->kept_count > 0) /* the loop is gone, and they are good still */
        drop(r, &r->kept[--r->kept_count]);
}

static void run_round(uint64_t seed, uint32_t buffers) {
    static round_state r;
    weir_listener *listeners[3];
    pthread_t threads[THREADS], dropper;
    feeder feeders[THREADS];
    open_round(&r, seed, buffers, listeners);
    test_ok(pthread_create(&dropper, NULL, drop_elsewhere, &r));
    for (unsigned i = 0; i < THREADS; i++) {
        feeders[i] = (feeder){ .round = &r, .random = seed + 1000 + i, .first = i };
        test_ok(pthread_create(&threads[i], NULL, feed, &feeders[i]));
    }
    int64_t deadline = test_now_ns() + PATIENCE_S * INT64_C(1000000000);
    for (unsigned turn = 0; r.closed < STREAMS; turn++) {
        expect(&r, test_now_ns() < deadline, "it never ended");
        expect(&r, weir_loop_run_once(r.f.loop, 10 * MS) >= 0, "a turn failed");
        if (turn % 16 == 0)
            expect(&r, weir__pool_is_consistent(r.f.loop->pool), "the pool is out of balance");
    }
    expect(&r, r.accepted == STREAMS, "too many streams were accepted");
    for (unsigned i = 0; i < THREADS; i++)
        test_ok(pthread_join(threads[i], NULL));
    for (unsigned i = 0; i < STREAMS; i++)
        if (r.peers[i].fd >= 0)
            close(r.peers[i].fd);
    close_round(&r, listeners);
    pthread_mutex_lock(&r.mutex);
    r.is_over = true;
    pthread_cond_signal(&r.cond);
    pthread_mutex_unlock(&r.mutex);
    test_ok(pthread_join(dropper, NULL));
    pthread_mutex_destroy(&r.mutex);
    pthread_cond_destroy(&r.cond);
    expect(&r, atomic_load(&r.wrong) == 0, "a kept slice has changed");
    test_close(&r.f);
}

static void every_byte_goes_to_its_stream(void **state) {
    uint32_t buffers = *(uint32_t *)*state;
    for (uint64_t seed = 1; seed <= TIMES(3, 2); seed++)
        run_round(seed * 100 + buffers, buffers);
}

static void and_the_hard_things_happened(void **state) {
    (void)state;
    assert_true(seen.overflows > 0 || seen.is_epoll);
    assert_true(seen.starved > 0);
    assert_true(seen.recycled > 1000);
    assert_true(seen.kept > 100);
    assert_true(seen.dropped_elsewhere > 10);
    assert_true(seen.paused > 100);
    assert_true(seen.ended_by_us > 0);
    assert_true(seen.bytes > STREAMS * (uint64_t)MOST_BYTES);
}

static uint32_t of[] = { 1, 2, 3, 7, 16, 64 };
#define WITH(i, buffers) \
    { "every_byte_goes_to_its_stream_with_" buffers, every_byte_goes_to_its_stream, NULL, NULL, &of[i] }

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(0, "1_buffer"),
        WITH(1, "2_buffers"),
        WITH(2, "3_buffers"),
        WITH(3, "7_buffers"),
        WITH(4, "16_buffers"),
        WITH(5, "64_buffers"),
        cmocka_unit_test(and_the_hard_things_happened),
    };
    return cmocka_run_group_tests_name("integrity", tests, first_thread, NULL);
}
