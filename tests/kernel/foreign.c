/* SPDX-License-Identifier: MIT */

/*
 * A library that does its own input and output, driven through watches while streams of the same loop serve it. As with
 * c-ares and libcurl, it opens and closes descriptors as it likes and says by a callback what it waits for on which: a
 * connection, room for a long question, the answer, both. The numbers of its descriptors come again and again.
 *
 * It takes what it is told at its word: one event that is not so, because it was of an earlier descriptor with this
 * number or of earlier wishes, and the test fails.
 */

#include <fcntl.h>
#include <netinet/in.h>

#include "kernel/scribe.h"

enum { QUESTIONS = 6, ROUNDS = 40, MOST_FDS = 1024, QUESTION = 150000 };

/* ---- the library ------------------------------------------------------------------------------------------------ */

/* It wants to hear of @fd: WEIR_WATCH_READ, WEIR_WATCH_WRITE; 0: not any more, it is about to be closed. */
typedef void (*oracle_wants_fn)(int fd, int events, void *userdata);

typedef struct question {
    int fd; /* -1: none */
    int wants;
    bool is_connecting;
    size_t size, asked, answered;
} question;

typedef struct oracle {
    struct sockaddr_in address;
    oracle_wants_fn wants;
    void *userdata;
    question questions[QUESTIONS];
    unsigned asked, answered, given_up;
    uint64_t random;
    uint8_t bytes[QUESTION];
} oracle;

static void oracle_want(oracle *o, question *q, int events) {
    if (q->wants == events)
        return;
    q->wants = events;
    o->wants(q->fd, events, o->userdata);
}

static void oracle_ask(oracle *o, question *q) {
    if (o->asked == QUESTIONS * ROUNDS)
        return;
    o->asked++;
    *q = (question){ .fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), .is_connecting = true };
    assert_true(q->fd >= 0);
    q->size = 1 + test_random(&o->random) % QUESTION;
    int r = connect(q->fd, (struct sockaddr *)&o->address, sizeof o->address);
    assert_true(r == 0 || errno == EINPROGRESS);
    oracle_want(o, q, WEIR_WATCH_WRITE);
}

static void oracle_end(oracle *o, question *q) {
    oracle_want(o, q, 0);
    close(q->fd); /* the next one gets this number, most likely */
    q->fd = -1;
    oracle_ask(o, q);
}

static void oracle_write(oracle *o, question *q) {
    if (q->is_connecting) {
        int error = 0;
        socklen_t size = sizeof error;
        assert_int_equal(getsockopt(q->fd, SOL_SOCKET, SO_ERROR, &error, &size), 0);
        assert_int_equal(error, 0);
        q->is_connecting = false;
    }
    ssize_t n = send(q->fd, o->bytes + q->asked, q->size - q->asked, MSG_NOSIGNAL);
    assert_true(n > 0); /* there is room, as it was told */
    q->asked += (size_t)n;
}

static void oracle_read(oracle *o, question *q) {
    static uint8_t answer[20000];
    ssize_t n = recv(q->fd, answer, sizeof answer, 0);
    assert_true(n > 0);
    assert_true((size_t)n <= q->size - q->answered);
    assert_memory_equal(answer, o->bytes + q->answered, (size_t)n);
    q->answered += (size_t)n;
}

/* What its user calls when a descriptor is ready. */
static void oracle_process(oracle *o, int fd, int events) {
    question *q = o->questions;
    while (q < o->questions + QUESTIONS && q->fd != fd)
        q++;
    assert_true(q < o->questions + QUESTIONS); /* else it has closed that one */
    assert_int_equal(events & ~(q->wants | WEIR_WATCH_ERROR | WEIR_WATCH_HANGUP), 0);
    if ((events & WEIR_WATCH_WRITE) != 0)
        oracle_write(o, q);
    if ((events & WEIR_WATCH_READ) != 0)
        oracle_read(o, q);
    if (q->answered == q->size) {
        o->answered++;
        oracle_end(o, q);
    } else if (q->answered > 0 && test_random(&o->random) % 100 == 0) {
        o->given_up++; /* with things under way */
        oracle_end(o, q);
    } else if (q->asked < q->size && test_random(&o->random) % 4 == 0) {
        oracle_want(o, q, WEIR_WATCH_WRITE);
    } else {
        oracle_want(o, q, (q->asked < q->size ? WEIR_WATCH_WRITE : 0) | WEIR_WATCH_READ);
    }
}

static void oracle_begin(oracle *o, const char *address, oracle_wants_fn wants, void *userdata) {
    *o = (oracle){ .wants = wants, .userdata = userdata, .random = 11 };
    o->address = (struct sockaddr_in){ .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    o->address.sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1));
    test_fill(7, 0, o->bytes, sizeof o->bytes);
    for (int i = 0; i < QUESTIONS; i++)
        oracle_ask(o, &o->questions[i]);
}

/* ---- its user --------------------------------------------------------------------------------------------------- */

typedef struct host {
    test_fixture f;
    weir_watch *watches[MOST_FDS]; /* by descriptor */
    unsigned uses[MOST_FDS];
    oracle oracle;
    unsigned streams;
    bool keeps; /* the watch of a number that is not used now */
} host;

static host it;

static void ready(weir_watch *watch, int events, void *userdata) {
    int fd = (int)(intptr_t)userdata;
    assert_ptr_equal(it.watches[fd], watch);
    oracle_process(&it.oracle, fd, events);
}

static void wants(int fd, int events, void *userdata) {
    host *h = userdata;
    assert_true(fd < MOST_FDS);
    if (events != 0) {
        if (h->watches[fd] == NULL)
            test_ok(weir_watch_new(h->f.loop, fd, ready, (void *)(intptr_t)fd, &h->watches[fd]));
        test_ok(weir_watch_start(h->watches[fd], events));
        return;
    }
    h->uses[fd]++;
    if (h->keeps)
        test_ok(weir_watch_stop(h->watches[fd]));
    else
        h->watches[fd] = weir_watch_unref(h->watches[fd]);
}

/* The server: an echo. Who gave up may have reset while what it sent is still being read. */
static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)userdata;
    int r = weir_stream_write_slice(stream, slice);
    assert_true(r >= 0 || (r == -EPIPE && it.oracle.given_up > 0));
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    (void)stream, (void)reason, (void)error;
    ((host *)userdata)->streams--;
}

static const weir_stream_callbacks echoing = { .size = sizeof echoing, .on_data = on_data, .on_close = on_close };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener;
    ((host *)userdata)->streams++;
    test_ok(weir_stream_start(stream, &echoing, userdata));
}

static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

static void drive_it(bool keeps) {
    char address[WEIR_ADDRESS_SIZE];
    weir_listener *listener;
    unsigned most = 0;
    memset(&it, 0, sizeof it);
    it.keeps = keeps;
    test_open(&it.f, NULL, NULL);
    test_ok(weir_listener_open(it.f.loop, "127.0.0.1:0", NULL, &listener));
    test_ok(weir_listener_start(listener, &accepting, &it));
    assert_true(weir_listener_get_address(listener, address, sizeof address) > 0);
    oracle_begin(&it.oracle, address, wants, &it);
    RUN_UNTIL(&it.f, it.oracle.answered + it.oracle.given_up == QUESTIONS * ROUNDS);
    RUN_UNTIL(&it.f, it.streams == 0);
    assert_int_equal(test_loop_stats(&it.f).watches_started, 0);
    assert_true(it.oracle.answered > it.oracle.given_up);
    for (int fd = 0; fd < MOST_FDS; fd++) {
        most = it.uses[fd] > most ? it.uses[fd] : most;
        weir_watch_unref(it.watches[fd]);
    }
    assert_true(most > 1); /* or it would say nothing of numbers that come again */
    test_close(&it.f);
}

static void a_foreign_library_is_driven_by_watches_of_each_descriptor(void **state) {
    (void)state;
    drive_it(false);
}

static void a_foreign_library_is_driven_by_watches_of_each_number(void **state) {
    (void)state;
    drive_it(true);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_foreign_library_is_driven_by_watches_of_each_descriptor),
        cmocka_unit_test(a_foreign_library_is_driven_by_watches_of_each_number),
    };
    return cmocka_run_group_tests_name("foreign", tests, NULL, NULL);
}
