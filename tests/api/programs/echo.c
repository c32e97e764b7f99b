/* SPDX-License-Identifier: MIT */
#include "api/programs/client.h"

/* An echo server in three callbacks: what comes in goes out again, uncopied, and a peer that does not read is not read
 * from. Clients send megabytes at once, in pieces of any size, and end their half. */

/* ---- the program ------------------------------------------------------------------------------------- */

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)userdata;
    int r = weir_stream_write_slice(stream, slice);
    if (r < 0)
        weir_stream_abort(stream);
    else if (r == WEIR_WRITE_FULL)
        weir_stream_pause(stream);
}

static void on_drain(weir_stream *stream, void *userdata) {
    (void)userdata;
    weir_stream_resume(stream);
}

static const weir_stream_callbacks echo = { .size = sizeof echo, .on_data = on_data, .on_drain = on_drain };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener, (void)userdata;
    weir_stream_start(stream, &echo, NULL);
}

static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

/* ---- its clients ------------------------------------------------------------------------------------- */

enum { CLIENTS = 8, BYTES = 4 << 20 };

typedef struct client {
    unsigned number;
    weir_loop *loop;
    client_target server;
    pthread_t sender, receiver;
    int fd;
    const char *wrong[2];
} client;

static void *send_all(void *userdata) {
    client *self = userdata;
    static const size_t pieces[] = { 1, 100, 4096, 65536, 300000, 7 };
    uint8_t *data = malloc(300000);
    size_t sent = 0;
    for (unsigned i = self->number; sent < BYTES && self->wrong[0] == NULL; i++) {
        size_t piece = pieces[i % (sizeof pieces / sizeof *pieces)];
        piece = piece < BYTES - sent ? piece : BYTES - sent;
        client_fill(self->number, sent, data, piece);
        self->wrong[0] = client_send(self->fd, data, piece);
        sent += piece;
    }
    shutdown(self->fd, SHUT_WR);
    free(data);
    return NULL;
}

static void *receive_all(void *userdata) {
    client *self = userdata;
    uint8_t *expected = malloc(BYTES);
    client_fill(self->number, 0, expected, BYTES);
    if (self->number % 2 == 0)
        usleep(100000); /* a slow one: the server has to stop reading */
    self->wrong[1] = client_expect(self->fd, expected, BYTES);
    if (self->wrong[1] == NULL)
        self->wrong[1] = client_expect_end(self->fd);
    free(expected);
    return NULL;
}

static void drain_now(weir_loop *loop, void *userdata) {
    (void)userdata;
    weir_loop_drain(loop, WEIR_NEVER);
}

static void *be_all_clients(void *userdata) {
    client *clients = userdata;
    for (unsigned i = 0; i < CLIENTS; i++) {
        clients[i].fd = client_connect(clients[i].server);
        if (clients[i].fd < 0)
            abort();
        pthread_create(&clients[i].sender, NULL, send_all, &clients[i]);
        pthread_create(&clients[i].receiver, NULL, receive_all, &clients[i]);
    }
    for (unsigned i = 0; i < CLIENTS; i++) {
        pthread_join(clients[i].sender, NULL);
        pthread_join(clients[i].receiver, NULL);
        close(clients[i].fd);
    }
    if (weir_loop_post(clients->loop, drain_now, NULL) != 0)
        abort();
    return NULL;
}

static void every_byte_comes_back_to_whom_it_came_from(void **state) {
    (void)state;
    static client clients[CLIENTS];
    weir_loop *loop = NULL;
    weir_listener *listener;
    weir_loop_stats stats = { .size = sizeof stats };
    pthread_t thread;
    assert_int_equal(weir_loop_new(NULL, &loop), 0);
    assert_int_equal(weir_listener_open(loop, "127.0.0.1:0", NULL, &listener), 0);
    assert_int_equal(weir_listener_start(listener, &accepting, NULL), 0);
    for (unsigned i = 0; i < CLIENTS; i++)
        clients[i] = (client){ .number = i, .loop = loop, .server = client_find(listener) };
    assert_int_equal(pthread_create(&thread, NULL, be_all_clients, clients), 0);
    assert_int_equal(weir_loop_run(loop), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    for (unsigned i = 0; i < CLIENTS; i++) {
        if (clients[i].wrong[0] != NULL || clients[i].wrong[1] != NULL)
            fail_msg("client %u: %s", i, clients[i].wrong[0] != NULL ? clients[i].wrong[0] : clients[i].wrong[1]);
    }
    assert_int_equal(weir_loop_get_stats(loop, &stats), 0);
    assert_int_equal(stats.bytes_in, (uint64_t)CLIENTS * BYTES);
    assert_int_equal(stats.bytes_out, (uint64_t)CLIENTS * BYTES);
    assert_int_equal(stats.bytes_copied, 0);
    assert_int_equal(stats.accepted, CLIENTS);
    assert_int_equal(stats.streams_open, 0);
    assert_int_equal(weir_loop_close(loop), 0);
    assert_null(weir_loop_unref(loop));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_byte_comes_back_to_whom_it_came_from),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
