/* SPDX-License-Identifier: MIT */

/* The measured side: two loops that serve whatever peers ask for, and a thread that drops what they keep. */

#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "soak/soak.h"

typedef struct server host;
typedef struct session session;
typedef struct room room;

struct room {
    room *next;
    uint64_t id;
    session *members, *talker;
};

struct server {
    weir_loop *loop;
    host *other;
    unsigned index;
    pthread_t thread;
    weir_listener *listeners[PLACES];
    weir_timer *tick, *reopen;
    room *rooms;
    pthread_mutex_t lock; /* of figures */
    server_figures figures;
    uint64_t posts_made; /* the main thread's */
    _Atomic(uint64_t) posts_run, live_blocks, live_bytes;
    weir_allocator allocator;
};

struct session {
    host *server;
    weir_stream *stream, *back; /* back: a proxy's other side */
    weir_timer *retry;
    request request;
    size_t header; /* bytes of it */
    uint64_t received, sent;
    bool is_full;     /* a member whose queue is */
    weir_slice first; /* a proxy's first bytes, until it has another side */
    room *room;
    session *next; /* in the room */
};

static host servers[LOOPS];
static const uint8_t joined = JOINED, good = GOOD;

/* ---- dropping on another thread ------------------------------------------------------------------------- */

typedef struct held {
    struct held *next;
    weir_slice slice;
    uint64_t seed, position;
    int64_t until;
} held;

static struct {
    pthread_t thread;
    pthread_mutex_t lock;
    held *list;
    _Atomic(uint64_t) count;
    _Atomic(int64_t) hold_until;
    _Atomic(uint32_t) is_over;
} dropper = { .lock = PTHREAD_MUTEX_INITIALIZER };

static void hold(session *s, const weir_slice *slice) {
    static _Atomic(uint64_t) turn;
    uint64_t number = atomic_fetch_add(&turn, 1);
    held *h = calloc(1, sizeof *h);
    if (h == NULL)
        abort();
    /* Every third is kept, and so is small in what it pins; there may be no memory for that. */
    if (number % 3 != 0 || weir_slice_keep(slice, &h->slice) < 0)
        weir_slice_ref(slice, &h->slice);
    h->seed = s->request.seed;
    h->position = s->received;
    h->until = soak_now() + (int64_t)(number % 7) * 3 * MS;
    atomic_fetch_add(&dropper.count, 1);
    soak_count(KEPT, 1);
    pthread_mutex_lock(&dropper.lock);
    h->next = dropper.list;
    dropper.list = h;
    pthread_mutex_unlock(&dropper.lock);
}

static void drop(held *h) {
    if (test_differs(h->seed, h->position, h->slice.data, h->slice.size) >= 0)
        soak_fail("a kept slice has changed");
    weir_slice_unref(&h->slice);
    free(h);
    atomic_fetch_sub(&dropper.count, 1);
}

static void *run_dropper(void *userdata) {
    (void)userdata;
    while (atomic_load(&dropper.is_over) == 0 || atomic_load(&dropper.count) > 0) {
        int64_t now = soak_now();
        held *due = NULL;
        pthread_mutex_lock(&dropper.lock);
        for (held **place = &dropper.list; *place != NULL && now >= atomic_load(&dropper.hold_until);) {
            held *h = *place;
            if (now < h->until) {
                place = &h->next;
                continue;
            }
            *place = h->next;
            h->next = due;
            due = h;
        }
        pthread_mutex_unlock(&dropper.lock);
        for (held *next; due != NULL; due = next) {
            next = due->next;
            drop(due);
        }
        soak_sleep(1 * MS);
    }
    return NULL;
}

uint64_t servers_held(void) {
    return atomic_load(&dropper.count);
}

void servers_hold(int64_t ns) {
    atomic_store(&dropper.hold_until, soak_now() + ns);
}

/* ---- sessions -------------------------------------------------------------------------------------------- */

static const weir_stream_callbacks back_callbacks;

static void expect_write(const session *s, int result) {
    if (result < 0 && result != -EPIPE) /* the peer may be gone */
        soak_fail("service %u: a write failed: %s", s->request.service, weir_error_name(result));
}

static void look(session *s, const weir_slice *slice) {
    if (test_differs(s->request.seed, s->received, slice->data, slice->size) >= 0)
        soak_fail("service %u: wrong bytes at %llu", s->request.service, (unsigned long long)s->received);
    soak_count(BYTES, slice->size);
}

static void retry_in(session *s, int64_t ns, weir_timer_fn function) {
    soak_count(RETRIES, 1);
    if (s->retry == NULL && weir_timer_new(s->server->loop, function, s, &s->retry) < 0)
        abort();
    (void)weir_timer_start(s->retry, ns, 0);
}

static void release(const void *data, size_t size, void *userdata) {
    (void)size, (void)userdata;
    free((void *)(uintptr_t)data);
}

/* Some more bytes for a stream that wants them, in each of the three ways. 0; WEIR_WRITE_FULL; -errno. */
static int produce_some(session *s) {
    uint64_t left = s->request.length - s->sent, seed = s->request.seed;
    size_t size = 1 + (size_t)((seed >> 8 ^ s->sent) * 2654435761U % 20000);
    size = size < left ? size : (size_t)left;
    uint8_t bytes[20000], *data;
    weir_slice slice;
    int r;
    switch (seed % 3) {
    case 0:
        r = weir_slice_new(weir_loop_get_pool(s->server->loop), size, &data, &slice);
        if (r < 0)
            return r;
        test_fill(seed, s->sent, data, size);
        r = weir_stream_write_slice(s->stream, &slice);
        weir_slice_unref(&slice);
        break;
    case 1:
        test_fill(seed, s->sent, bytes, size);
        r = weir_stream_write(s->stream, bytes, size);
        break;
    default:
        data = malloc(size);
        if (data == NULL)
            abort();
        test_fill(seed, s->sent, data, size);
        r = weir_stream_write_external(s->stream, data, size, release, NULL);
        if (r < 0)
            free(data);
        break;
    }
    if (r >= 0)
        s->sent += size;
    return r;
}

static void on_retry_produce(weir_timer *timer, void *userdata);

static void produce(session *s) {
    int r = WEIR_WRITE_OK;
    while (s->sent < s->request.length && (r = produce_some(s)) == WEIR_WRITE_OK)
        ;
    if (r == -ENOBUFS)
        retry_in(s, 5 * MS, on_retry_produce);
    else
        expect_write(s, r);
    if (s->sent == s->request.length)
        (void)weir_stream_close(s->stream);
}

static void on_retry_produce(weir_timer *timer, void *userdata) {
    (void)timer;
    session *s = userdata;
    if (s->stream != NULL)
        produce(s);
}

/* ---- rooms ------------------------------------------------------------------------------------------------ */

enum { THROW_OUT_BYTES = 256 << 10 };

static room *room_of(host *server, uint64_t id) {
    for (room *r = server->rooms; r != NULL; r = r->next)
        if (r->id == id)
            return r;
    room *r = calloc(1, sizeof *r);
    if (r == NULL)
        abort();
    *r = (room){ .next = server->rooms, .id = id };
    server->rooms = r;
    return r;
}

static void go_on_talking(const room *r) {
    if (r->talker == NULL)
        return;
    for (const session *s = r->members; s != NULL; s = s->next)
        if (s->is_full)
            return;
    (void)weir_stream_resume(r->talker->stream);
}

static void leave(session *s) {
    room *r = s->room;
    s->room = NULL;
    if (r == NULL)
        return;
    if (r->talker == s) { /* what was said was all */
        r->talker = NULL;
        for (session *member = r->members; member != NULL; member = member->next)
            (void)weir_stream_close(member->stream);
    }
    for (session **place = &r->members; *place != NULL; place = &(*place)->next) {
        if (*place == s) {
            *place = s->next;
            break;
        }
    }
    go_on_talking(r);
    if (r->members != NULL || r->talker != NULL)
        return;
    room **place = &s->server->rooms;
    while (*place != r)
        place = &(*place)->next;
    *place = r->next;
    free(r);
}

static void say(session *s, const weir_slice *slice) {
    bool is_patient = s->room->id % 2 == 0;
    look(s, slice);
    for (session *member = s->room->members; member != NULL; member = member->next) {
        int r = weir_stream_write_slice(member->stream, slice);
        expect_write(member, r);
        if (r == WEIR_WRITE_FULL && is_patient) {
            member->is_full = true;
            (void)weir_stream_pause(s->stream);
        } else if (weir_stream_get_queued(member->stream) > THROW_OUT_BYTES) {
            soak_count(THROWN_OUT, 1);
            (void)weir_stream_abort(member->stream);
        }
    }
}

/* ---- to the other loop and back --------------------------------------------------------------------------- */

static void on_retry_dial(weir_timer *timer, void *userdata);

static void dial(session *s) {
    enum place place = s->request.seed % 3;
    int r = weir_stream_dial(s->server->loop, soak->addresses[s->server->other->index][place], NULL, &s->back);
    if (r < 0) {
        s->back = NULL;
        if (r != -EMFILE)
            soak_fail("a proxy's dial failed: %s", weir_error_name(r));
        retry_in(s, 5 * MS, on_retry_dial);
        return;
    }
    soak_count(PROXIED, 1);
    s->request.service = ECHO; /* said to the other side; it lies here until both streams are closed */
    (void)weir_stream_start(s->back, &back_callbacks, s);
    expect_write(s, weir_stream_write_external(s->back, &s->request, sizeof s->request, NULL, NULL));
    expect_write(s, weir_stream_write_slice(s->back, &s->first));
    weir_slice_unref(&s->first);
    (void)weir_stream_resume(s->stream);
}

static void on_retry_dial(weir_timer *timer, void *userdata) {
    (void)timer;
    session *s = userdata;
    if (s->stream != NULL && s->back == NULL)
        dial(s);
}

static void forget_if_closed(session *s) {
    if (s->stream != NULL || s->back != NULL)
        return;
    weir_slice_unref(&s->first);
    weir_timer_unref(s->retry);
    free(s);
}

static void back_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    session *s = userdata;
    int r = s->stream != NULL ? weir_stream_write_slice(s->stream, slice) : 0;
    expect_write(s, r);
    if (r == WEIR_WRITE_FULL)
        (void)weir_stream_pause(stream);
}

static void back_end(weir_stream *stream, void *userdata) {
    session *s = userdata;
    (void)weir_stream_close(stream);
    (void)weir_stream_close(s->stream);
}

static void back_drain(weir_stream *stream, void *userdata) {
    session *s = userdata;
    (void)stream;
    if (s->stream != NULL)
        (void)weir_stream_resume(s->stream);
}

static void back_close(weir_stream *stream, int reason, int error, void *userdata) {
    session *s = userdata;
    (void)stream;
    s->back = NULL;
    if (reason == WEIR_CLOSE_CONNECT || (reason == WEIR_CLOSE_ERROR && s->stream != NULL)) {
        soak_fail("a proxy's other side closed with %s", weir_error_name(error));
        (void)weir_stream_abort(s->stream);
    }
    forget_if_closed(s);
}

static const weir_stream_callbacks back_callbacks = { .size = sizeof back_callbacks,
                                                      .on_data = back_data,
                                                      .on_end = back_end,
                                                      .on_drain = back_drain,
                                                      .on_close = back_close };

/* ---- what a stream tells ------------------------------------------------------------------------------------ */

static void begin(session *s) {
    if (s->request.magic != MAGIC)
        soak_fail("wrong bytes where a request should be");
    switch (s->request.service) {
    case PROXY:
        (void)weir_stream_pause(s->stream);
        break;
    case SOURCE:
        produce(s);
        break;
    case LISTEN:
        s->room = room_of(s->server, s->request.room);
        s->next = s->room->members;
        s->room->members = s;
        expect_write(s, weir_stream_write_external(s->stream, &joined, 1, NULL, NULL));
        break;
    case TALK:
        s->room = room_of(s->server, s->request.room);
        s->room->talker = s;
        break;
    default:
        break;
    }
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    session *s = userdata;
    weir_slice rest = *slice;
    if (s->header < sizeof s->request) {
        size_t size = sizeof s->request - s->header;
        size = size < rest.size ? size : rest.size;
        memcpy((uint8_t *)&s->request + s->header, rest.data, size);
        s->header += size;
        rest.data += size;
        rest.size -= size;
        if (s->header < sizeof s->request)
            return;
        begin(s);
        if (s->request.service == PROXY && s->back == NULL) {
            if (rest.size > 0)
                weir_slice_ref(&rest, &s->first);
            dial(s);
            return;
        }
    }
    if (rest.size == 0)
        return;
    int r = 0;
    if (s->back != NULL) {
        r = weir_stream_write_slice(s->back, &rest);
    } else if (s->request.service == ECHO) {
        r = weir_stream_write_slice(stream, &rest);
    } else if (s->request.service == TALK) {
        say(s, &rest);
    } else if (s->request.service == SINK || s->request.service == KEEP) {
        look(s, &rest);
        if (s->request.service == KEEP)
            hold(s, &rest);
    } else if (s->request.service != DISCARD) {
        soak_fail("bytes for service %u", s->request.service);
    }
    expect_write(s, r);
    if (r == WEIR_WRITE_FULL)
        (void)weir_stream_pause(stream);
    s->received += rest.size;
}

static void on_end(weir_stream *stream, void *userdata) {
    session *s = userdata;
    if (s->back != NULL) {
        (void)weir_stream_shutdown(s->back);
        return;
    }
    if (s->header == sizeof s->request && s->request.service == SOURCE && s->sent < s->request.length)
        return; /* half closed, and still to be told */
    if (s->request.service == SINK || s->request.service == KEEP)
        expect_write(s, weir_stream_write_external(stream, &good, 1, NULL, NULL));
    (void)weir_stream_close(stream);
}

static void on_drain(weir_stream *stream, void *userdata) {
    session *s = userdata;
    if (s->back != NULL) {
        (void)weir_stream_resume(s->back);
    } else if (s->request.service == SOURCE) {
        produce(s);
    } else if (s->request.service == LISTEN) {
        s->is_full = false;
        if (s->room != NULL)
            go_on_talking(s->room);
    } else {
        (void)weir_stream_resume(stream);
    }
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    session *s = userdata;
    (void)stream, (void)error;
    if (reason == WEIR_CLOSE_LINGER)
        soak_fail("service %u: the peer did not end in time", s->request.service);
    s->stream = NULL;
    leave(s);
    if (s->back != NULL)
        (void)weir_stream_abort(s->back);
    forget_if_closed(s);
}

static const weir_stream_callbacks callbacks = {
    .size = sizeof callbacks, .on_data = on_data, .on_end = on_end, .on_drain = on_drain, .on_close = on_close
};

static void serve(host *server, weir_stream *stream) {
    session *s = calloc(1, sizeof *s);
    if (s == NULL)
        abort();
    s->server = server;
    s->stream = stream;
    (void)weir_stream_start(stream, &callbacks, s);
}

/* ---- accepting ------------------------------------------------------------------------------------------------ */

static const weir_stream_options stream_options = { .size = sizeof stream_options,
                                                    .queue_high_bytes = 128 << 10,
                                                    .linger_timeout_ns = 30 * SECOND };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener;
    serve(userdata, stream);
}

typedef struct parcel {
    host *to;
    int fd;
} parcel;

static void unpack(weir_loop *loop, void *userdata) {
    parcel *p = userdata;
    weir_stream *stream;
    int r = weir_stream_adopt(loop, p->fd, &stream_options, &stream);
    if (r < 0) { /* reset before it came here */
        if (r != -ENOTCONN)
            soak_fail("adopt failed: %s", weir_error_name(r));
        close(p->fd);
    } else {
        serve(p->to, stream);
    }
    free(p);
}

static void hand_over(weir_listener *listener, weir_stream *stream, void *userdata) {
    host *server = userdata;
    (void)listener;
    parcel *p = calloc(1, sizeof *p);
    if (p == NULL)
        abort();
    p->to = server->other;
    if (weir_stream_detach(stream, &p->fd) < 0) {
        soak_fail("a connection could not be detached");
        abort();
    }
    soak_count(HANDED, 1);
    if (weir_loop_post(p->to->loop, unpack, p) < 0) { /* it is ending */
        close(p->fd);
        free(p);
    }
}

static const weir_listener_callbacks accept_callbacks = { .size = sizeof accept_callbacks,
                                                          .on_accept = on_accept };
static const weir_listener_callbacks over_callbacks = { .size = sizeof over_callbacks, .on_accept = hand_over };

static void on_reopen(weir_timer *timer, void *userdata) {
    host *server = userdata;
    (void)timer;
    for (int i = 0; i < PLACES; i++)
        (void)weir_listener_resume(server->listeners[i]);
}

static void pause_all(weir_loop *loop, void *userdata) {
    host *server = userdata;
    (void)loop;
    for (int i = 0; i < PLACES; i++)
        (void)weir_listener_pause(server->listeners[i]);
    (void)weir_timer_start(server->reopen, 100 * MS, 0);
}

void servers_pause(unsigned loop) {
    if (weir_loop_post(servers[loop].loop, pause_all, &servers[loop]) < 0)
        soak_fail("a post was refused");
}

static void count_post(weir_loop *loop, void *userdata) {
    host *server = userdata;
    (void)loop;
    atomic_fetch_add(&server->posts_run, 1);
}

void servers_post(unsigned loop) {
    for (int i = 0; i < 20; i++) {
        if (weir_loop_post(servers[loop].loop, count_post, &servers[loop]) < 0)
            soak_fail("a post was refused");
        servers[loop].posts_made++;
    }
}

/* ---- life -------------------------------------------------------------------------------------------------------- */

static void on_tick(weir_timer *timer, void *userdata) {
    host *server = userdata;
    server_figures now = { .loop = { .size = sizeof now.loop }, .pool = { .size = sizeof now.pool } };
    (void)timer;
    (void)weir_loop_get_stats(server->loop, &now.loop);
    (void)weir_pool_get_stats(weir_loop_get_pool(server->loop), &now.pool);
    if (now.pool.used_bytes > now.pool.budget_bytes || now.pool.peak_bytes > now.pool.budget_bytes)
        soak_fail("loop %u has more than its budget", server->index);
    pthread_mutex_lock(&server->lock);
    server->figures = now;
    pthread_mutex_unlock(&server->lock);
}

uint64_t servers_live(void) {
    uint64_t bytes = 0;
    for (unsigned i = 0; i < LOOPS; i++)
        bytes += atomic_load(&servers[i].live_bytes);
    return bytes;
}

server_figures server_get_figures(unsigned loop) {
    host *server = &servers[loop];
    pthread_mutex_lock(&server->lock);
    server_figures figures = server->figures;
    pthread_mutex_unlock(&server->lock);
    return figures;
}

static void *alloc(size_t size, size_t alignment, void *userdata) {
    host *server = userdata;
    void *memory = aligned_alloc(alignment, (size + alignment - 1) & ~(alignment - 1));
    if (memory != NULL) {
        atomic_fetch_add_explicit(&server->live_blocks, 1, memory_order_relaxed);
        atomic_fetch_add_explicit(&server->live_bytes, size, memory_order_relaxed);
    }
    return memory;
}

static void dealloc(void *memory, size_t size, size_t alignment, void *userdata) {
    host *server = userdata;
    (void)alignment;
    free(memory);
    atomic_fetch_sub_explicit(&server->live_blocks, 1, memory_order_relaxed);
    atomic_fetch_sub_explicit(&server->live_bytes, size, memory_order_relaxed);
}

static void *run(void *userdata) {
    host *server = userdata;
    int r = weir_loop_run(server->loop);
    if (r < 0)
        soak_fail("loop %u stopped: %s", server->index, weir_error_name(r));
    weir_timer_unref(server->tick);
    weir_timer_unref(server->reopen);
    r = weir_loop_close(server->loop);
    if (r < 0)
        soak_fail("loop %u does not close: %s", server->index, weir_error_name(r));
    return NULL;
}

static void check(int result, const char *what) {
    if (result >= 0)
        return;
    fprintf(stderr, "soak: %s: %s\n", what, weir_error_name(result));
    exit(1);
}

static void listen_at(host *server, enum place place) {
    char name[WEIR_ADDRESS_SIZE];
    snprintf(name, sizeof name, "unix:@weir-soak-%ld-%u", (long)getpid(), server->index);
    const char *const wanted[PLACES] = { "127.0.0.1:0", "[::1]:0", name, "127.0.0.1:0" };
    /* A limit that is reached now and then: accepting rests, and goes on. */
    const weir_listener_options options = { .size = sizeof options,
                                            .max_streams = place == UNIX ? 12 : 0,
                                            .stream = &stream_options };
    check(weir_listener_open(server->loop, wanted[place], &options, &server->listeners[place]), wanted[place]);
    check(weir_listener_start(server->listeners[place], place == HANDED_OVER ? &over_callbacks : &accept_callbacks,
                              server),
          "start");
    check(weir_listener_get_address(server->listeners[place], soak->addresses[server->index][place],
                                    WEIR_ADDRESS_SIZE),
          "address");
}

/* The first loop runs as it will (incremental rings), the second one on classic ones; both have little memory. */
static void server_open(host *server, unsigned index) {
    char reason[WEIR_REASON_SIZE];
    const weir_pool_options pool = {
        .size = sizeof pool, .budget_bytes = 1 << 20, .buffer_bytes = 16 << 10, .window_bytes = 64 << 10
    };
    server->index = index;
    server->other = &servers[1 - index];
    server->allocator =
        (weir_allocator){ .size = sizeof(weir_allocator), .alloc = alloc, .free = dealloc, .userdata = server };
    pthread_mutex_init(&server->lock, NULL);
    const weir_loop_options options = {
        .size = sizeof options,
        .backend = index == 0 ? WEIR_BACKEND_AUTO : WEIR_BACKEND_URING_CLASSIC,
        .pool = &pool,
        .allocator = &server->allocator,
        .reason = reason,
        .reason_size = sizeof reason,
    };
    check(weir_loop_new(&options, &server->loop), reason);
    check(weir_timer_new(server->loop, on_tick, server, &server->tick), "timer");
    check(weir_timer_new(server->loop, on_reopen, server, &server->reopen), "timer");
    check(weir_timer_start(server->tick, 0, 5 * MS), "timer");
    for (int i = 0; i < PLACES; i++)
        listen_at(server, (enum place)i);
}

static void start_thread(pthread_t *thread, void *(*function)(void *), void *userdata) {
    check(-pthread_create(thread, NULL, function, userdata), "thread");
}

void servers_start(void) {
    for (unsigned i = 0; i < LOOPS; i++)
        server_open(&servers[i], i);
    for (unsigned i = 0; i < LOOPS; i++)
        start_thread(&servers[i].thread, run, &servers[i]);
    start_thread(&dropper.thread, run_dropper, NULL);
}

static void begin_drain(weir_loop *loop, void *userdata) {
    (void)userdata;
    check(weir_loop_drain(loop, 2 * SECOND), "drain");
}

void servers_stop(void) {
    check(weir_loop_post(servers[0].loop, begin_drain, NULL), "post");
    weir_loop_stop(servers[1].loop);
    for (unsigned i = 0; i < LOOPS; i++)
        pthread_join(servers[i].thread, NULL);
    atomic_store(&dropper.is_over, 1);
    pthread_join(dropper.thread, NULL);
    for (unsigned i = 0; i < LOOPS; i++) {
        host *server = &servers[i];
        weir_loop_unref(server->loop);
        if (atomic_load(&server->posts_run) != server->posts_made)
            soak_fail("loop %u lost a post", i);
        if (atomic_load(&server->live_blocks) != 0 || atomic_load(&server->live_bytes) != 0)
            soak_fail("loop %u left %llu bytes", i, (unsigned long long)atomic_load(&server->live_bytes));
    }
}
