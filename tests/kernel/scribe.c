/* SPDX-License-Identifier: MIT */
#include "kernel/scribe.h"

#include <netinet/in.h>

/* ---- a stream that writes down ------------------------------------------------------------------------ */

static void write_down(scribe *s, char event, const weir_slice *slice) {
    size_t length = strlen(s->events);
    bool is_repeated = event == 'd' && length > 0 && s->events[length - 1] == 'd';
    if (!is_repeated && length + 1 < sizeof s->events)
        s->events[length] = event;
    if (s->hook != NULL)
        s->hook(s, event, slice);
}

static void on_open(weir_stream *stream, void *userdata) {
    (void)stream;
    write_down(userdata, 'o', NULL);
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    scribe *s = userdata;
    (void)stream;
    if (s->wrong < 0)
        s->wrong = test_differs(s->seed, s->received, slice->data, slice->size);
    if (slice->size == 0)
        s->wrong = (int64_t)s->received; /* an empty slice says nothing and must not come */
    s->received += slice->size;
    write_down(s, 'd', slice);
}

static void on_end(weir_stream *stream, void *userdata) {
    (void)stream;
    write_down(userdata, 'e', NULL);
}

static void on_drain(weir_stream *stream, void *userdata) {
    (void)stream;
    write_down(userdata, 'r', NULL);
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    scribe *s = userdata;
    if (s->stream != stream)
        s->wrong = 0;
    s->stream = NULL;
    s->reason = reason;
    s->error = error;
    write_down(s, 'c', NULL);
}

const weir_stream_callbacks scribe_callbacks = {
    .size = sizeof scribe_callbacks,
    .on_open = on_open,
    .on_data = on_data,
    .on_end = on_end,
    .on_drain = on_drain,
    .on_close = on_close,
};

const weir_stream_callbacks scribe_callbacks_without_end = {
    .size = sizeof scribe_callbacks_without_end,
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_close = on_close,
};

void scribe_init(scribe *s, uint64_t seed) {
    *s = (scribe){ .seed = seed, .wrong = -1, .hook = s->hook, .userdata = s->userdata };
}

void scribe_start(scribe *s, weir_stream *stream) {
    s->stream = stream;
    test_ok(weir_stream_start(stream, &scribe_callbacks, s));
}

void scribe_adopt(const test_fixture *fixture, scribe *s, int fd, const weir_stream_options *options) {
    weir_stream *stream;
    test_ok(weir_stream_adopt(fixture->loop, fd, options, &stream));
    scribe_start(s, stream);
}

bool scribe_is_closed(void *userdata) {
    const scribe *s = userdata;
    return strchr(s->events, 'c') != NULL;
}

void scribe_expect_at(const scribe *s, const char *events, int reason, int error, const char *file, int line) {
    if (strcmp(s->events, events) == 0 && s->reason == reason && s->error == error && s->wrong < 0)
        return;
    print_error("expected events '%s', reason %d, %s\n", events, reason, weir_error_name(error));
    print_error("but came events '%s', reason %d, %s", s->events, s->reason, weir_error_name(s->error));
    if (s->wrong >= 0)
        print_error(", and byte %lld was wrong", (long long)s->wrong);
    print_error("\n");
    _fail(file, line);
}

/* ---- the other side ----------------------------------------------------------------------------------- */

void peer_init(peer *p, int fd, uint64_t seed) {
    *p = (peer){ .fd = fd, .seed = seed, .wrong = -1 };
}

void peer_read(peer *p) {
    static _Thread_local uint8_t bytes[64 << 10];
    size_t most = p->most > 0 && p->most < sizeof bytes ? p->most : sizeof bytes;
    while (!p->has_ended && p->error == 0) {
        ssize_t count = recv(p->fd, bytes, most, MSG_DONTWAIT);
        if (count < 0 && errno == EAGAIN)
            return;
        if (count < 0) {
            p->error = errno;
        } else if (count == 0) {
            p->has_ended = true;
        } else {
            if (p->wrong < 0)
                p->wrong = test_differs(p->seed, p->received, bytes, (size_t)count);
            p->received += (uint64_t)count;
        }
        if (p->most > 0)
            return;
    }
}

bool peer_is_over(void *userdata) {
    peer *p = userdata;
    peer_read(p);
    return p->has_ended || p->error != 0;
}

void peer_expect_at(const peer *p, uint64_t bytes, bool has_ended, int error, const char *file, int line) {
    if (p->received == bytes && p->has_ended == has_ended && p->error == error && p->wrong < 0)
        return;
    print_error("expected %llu bytes, %s, %s\n", (unsigned long long)bytes, has_ended ? "the end" : "no end",
                weir_error_name(error));
    print_error("but came %llu bytes, %s, %s", (unsigned long long)p->received,
                p->has_ended ? "the end" : "no end", weir_error_name(p->error));
    if (p->wrong >= 0)
        print_error(", and byte %lld was wrong", (long long)p->wrong);
    print_error("\n");
    _fail(file, line);
}

int peer_send(int fd, uint64_t seed, uint64_t position, size_t size) {
    static _Thread_local uint8_t bytes[64 << 10];
    while (size > 0) {
        size_t part = size < sizeof bytes ? size : sizeof bytes;
        test_fill(seed, position, bytes, part);
        ssize_t count = send(fd, bytes, part, MSG_NOSIGNAL);
        if (count < 0)
            return -errno;
        position += (uint64_t)count;
        size -= (size_t)count;
    }
    return 0;
}

void peer_reset(int fd) {
    struct linger linger = { .l_onoff = 1, .l_linger = 0 };
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    close(fd);
}

void set_room(const int fds[2], int bytes) {
    for (int i = 0; i < 2; i++) {
        assert_int_equal(setsockopt(fds[i], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
        assert_int_equal(setsockopt(fds[i], SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes), 0);
    }
}

void pair_with_room(bool is_tcp, int bytes, int ret_fds[2]) {
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof address;
    if (!is_tcp) {
        test_pair(false, ret_fds);
        set_room(ret_fds, bytes);
        return;
    }
    const int fds[2] = { socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0),
                         socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) };
    set_room(fds, bytes); /* what is accepted inherits it */
    assert_int_equal(bind(fds[1], (struct sockaddr *)&address, length), 0);
    assert_int_equal(listen(fds[1], 1), 0);
    assert_int_equal(getsockname(fds[1], (struct sockaddr *)&address, &length), 0);
    assert_int_equal(connect(fds[0], (struct sockaddr *)&address, length), 0);
    ret_fds[0] = fds[0];
    ret_fds[1] = accept4(fds[1], NULL, NULL, SOCK_CLOEXEC);
    assert_true(ret_fds[1] >= 0);
    close(fds[1]);
}

unsigned patience_s(void) {
    const char *text = getenv("WEIR_TEST_PATIENCE_S");
    return text != NULL ? (unsigned)strtoul(text, NULL, 10) : 30;
}

/* ---- the loop ----------------------------------------------------------------------------------------- */

void scribe_turn(const test_fixture *fixture, int64_t timeout_ns) {
    assert_true(weir_loop_run_once(fixture->loop, timeout_ns) >= 0);
    assert_true(weir__pool_is_consistent(fixture->loop->pool));
}

void scribe_turns(const test_fixture *fixture, int turns) {
    while (turns-- > 0)
        scribe_turn(fixture, 0);
}

static void *do_nothing(void *userdata) {
    return userdata;
}

int first_thread(void **state) {
    (void)state;
    pthread_t thread;
    return pthread_create(&thread, NULL, do_nothing, NULL) == 0 ? pthread_join(thread, NULL) : -1;
}

/* ---- memory that is lent to a stream ------------------------------------------------------------------- */

void loan_release(const void *data, size_t size, void *userdata) {
    loan *l = userdata;
    l->releases += data == l->data && size == l->size ? 1 : 1000;
}

uint8_t *pattern_new(uint64_t seed, size_t size) {
    uint8_t *bytes = malloc(size);
    assert_non_null(bytes);
    test_fill(seed, 0, bytes, size);
    return bytes;
}
