/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

/* ---- the fixture ------------------------------------------------------------------------------------- */

static test_fixture fixture_of_the_test;

static void *end_at_once(void *userdata) {
    return userdata;
}

/* ThreadSanitizer makes a thread of its own at the first one that the program makes: before anybody counts threads. */
__attribute__((constructor)) static void make_the_first_thread(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, end_at_once, NULL) == 0)
        pthread_join(thread, NULL);
}

int witness_setup(void **state) {
    test_open(&fixture_of_the_test, NULL, NULL);
    *state = &fixture_of_the_test;
    return 0;
}

int witness_teardown(void **state) {
    test_close(*state);
    return 0;
}

void run_turns(test_fixture *fixture, unsigned turns) {
    while (turns-- > 0)
        assert_true(weir_loop_run_once(fixture->loop, 0) >= 0);
}

/* ---- streams ----------------------------------------------------------------------------------------- */

static void note(witness *w, char event, const weir_slice *slice) {
    size_t length = strlen(w->order);
    bool repeats = event == 'd' && length > 0 && w->order[length - 1] == 'd';
    if (!repeats && length + 1 < sizeof w->order)
        w->order[length] = event;
    if (w->hook != NULL)
        w->hook(w, event, slice);
}

static void on_open(weir_stream *stream, void *userdata) {
    witness *w = userdata;
    assert_ptr_equal(stream, w->stream);
    w->opens++;
    note(w, 'o', NULL);
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    witness *w = userdata;
    assert_ptr_equal(stream, w->stream);
    assert_true(slice->size > 0);
    size_t room = sizeof w->bytes - (w->size < sizeof w->bytes ? w->size : sizeof w->bytes);
    if (room > 0)
        memcpy(w->bytes + w->size, slice->data, slice->size < room ? slice->size : room);
    w->size += slice->size;
    w->slices++;
    note(w, 'd', slice);
}

static void on_end(weir_stream *stream, void *userdata) {
    witness *w = userdata;
    assert_ptr_equal(stream, w->stream);
    w->ends++;
    note(w, 'e', NULL);
}

static void on_drain(weir_stream *stream, void *userdata) {
    witness *w = userdata;
    assert_ptr_equal(stream, w->stream);
    w->drains++;
    note(w, 'r', NULL);
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    witness *w = userdata;
    assert_ptr_equal(stream, w->stream);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_CLOSED);
    w->closes++;
    w->reason = reason;
    w->error = error;
    note(w, 'c', NULL);
    w->stream = NULL;
}

const weir_stream_callbacks witness_callbacks = {
    .size = sizeof witness_callbacks,
    .on_open = on_open,
    .on_data = on_data,
    .on_end = on_end,
    .on_drain = on_drain,
    .on_close = on_close,
};

const weir_stream_callbacks witness_deaf_callbacks = {
    .size = sizeof witness_deaf_callbacks,
    .on_open = on_open,
    .on_end = on_end,
    .on_drain = on_drain,
    .on_close = on_close,
};

const weir_stream_callbacks witness_endless_callbacks = {
    .size = sizeof witness_endless_callbacks,
    .on_open = on_open,
    .on_data = on_data,
    .on_drain = on_drain,
    .on_close = on_close,
};

void witness_adopt(test_fixture *fixture, witness *w, int fd, const weir_stream_options *options) {
    test_ok(weir_stream_adopt(fixture->loop, fd, options, &w->stream));
    test_ok(weir_stream_start(w->stream, &witness_callbacks, w));
}

int witness_pair(test_fixture *fixture, witness *w, bool tcp, const weir_stream_options *options) {
    int fds[2];
    memset(w, 0, sizeof *w);
    test_pair(tcp, fds);
    witness_adopt(fixture, w, fds[0], options);
    return fds[1];
}

/* ---- accepting --------------------------------------------------------------------------------------- */

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    witness_gate *gate = userdata;
    assert_ptr_equal(listener, gate->listener);
    assert_int_equal(weir_stream_get_state(stream), WEIR_STREAM_UNSTARTED);
    if (gate->closes_them)
        test_ok(weir_stream_close(stream));
    else
        gate->streams[gate->count] = stream;
    gate->count++;
}

static void on_listener_close(weir_listener *listener, int error, void *userdata) {
    witness_gate *gate = userdata;
    assert_ptr_equal(listener, gate->listener);
    gate->closes++;
    gate->error = error;
    gate->listener = NULL;
}

const weir_listener_callbacks witness_gate_callbacks = { .size = sizeof witness_gate_callbacks,
                                                         .on_accept = on_accept,
                                                         .on_close = on_listener_close };

void witness_listen(test_fixture *fixture, witness_gate *gate, const char *address,
                    const weir_listener_options *options) {
    memset(gate, 0, sizeof *gate);
    test_ok(weir_listener_open(fixture->loop, address, options, &gate->listener));
    test_ok(weir_listener_start(gate->listener, &witness_gate_callbacks, gate));
}

/* ---- peers ------------------------------------------------------------------------------------------- */

void peer_send(int fd, const void *data, size_t size) {
    const uint8_t *bytes = data;
    while (size > 0) {
        ssize_t n = send(fd, bytes, size, MSG_NOSIGNAL);
        assert_true(n > 0);
        bytes += n;
        size -= (size_t)n;
    }
}

void peer_receive(int fd, void *data, size_t size) {
    uint8_t *bytes = data;
    while (size > 0) {
        ssize_t n = recv(fd, bytes, size, 0);
        assert_true(n > 0);
        bytes += n;
        size -= (size_t)n;
    }
}

void peer_expect_end(int fd) {
    uint8_t byte;
    assert_int_equal(recv(fd, &byte, 1, 0), 0);
}

void peer_reset(int fd) {
    struct linger linger = { .l_onoff = 1, .l_linger = 0 };
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    close(fd);
}

int peer_poll(int fd, void *data, size_t size) {
    ssize_t n = recv(fd, data, size, MSG_DONTWAIT);
    return n < 0 ? -errno : (int)n;
}

void set_buffer_sizes(int fd, int bytes) {
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes), 0);
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof bytes), 0);
}

void lent_release(const void *data, size_t size, void *userdata) {
    lent *it = userdata;
    it->releases++;
    it->data = data;
    it->size = size;
    it->thread = pthread_self();
}
