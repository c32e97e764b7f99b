/* SPDX-License-Identifier: MIT */
#include "api/programs/client.h"

/* A chat: each message, one slice, goes to everyone else, uncopied. Who is too slow is dropped, so that nobody holds
 * memory without bound. Over IPv6. */

/* ---- the program ------------------------------------------------------------------------------------- */

typedef struct member {
    struct member *next, **at;
    weir_stream *stream;
} member;

static member *members;
static unsigned member_count, dropped;

static void on_data(weir_stream *from, const weir_slice *slice, void *userdata) {
    (void)userdata;
    for (member *m = members; m != NULL; m = m->next) /* abort never calls back inside: the list stays as it is */
        if (m->stream != from && weir_stream_write_slice(m->stream, slice) < 0)
            weir_stream_abort(m->stream);
}

static void on_close(weir_stream *stream, int reason, int error, void *userdata) {
    member *m = userdata;
    (void)stream, (void)error;
    dropped += reason == WEIR_CLOSE_ABORT;
    member_count--;
    *m->at = m->next;
    if (m->next != NULL)
        m->next->at = m->at;
    free(m);
}

static const weir_stream_callbacks chatting = { .size = sizeof chatting,
                                                .on_data = on_data,
                                                .on_close = on_close };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    static const char hello[] = "* someone came\n";
    weir_slice note;
    (void)userdata;
    member *m = malloc(sizeof *m);
    if (m == NULL) {
        weir_stream_close(stream);
        return;
    }
    weir_stream_start(stream, &chatting, m);
    *m = (member){ .next = members, .at = &members, .stream = stream };
    if (m->next != NULL)
        m->next->at = &m->next;
    members = m;
    member_count++;
    /* Composed once, sent to all. */
    weir_pool *pool = weir_loop_get_pool(weir_listener_get_loop(listener));
    if (weir_slice_copy(pool, hello, sizeof hello - 1, &note) < 0)
        return;
    on_data(stream, &note, NULL);
    weir_slice_unref(&note);
}

static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

/* ---- its clients ------------------------------------------------------------------------------------- */

enum { MEMBERS = 6, MESSAGES = 50, MESSAGE_BYTES = 100, FLOOD_BYTES = 64 << 10, FLOODS = 512 };

static const char greeting[] = "* someone came\n";

typedef struct meeting {
    weir_loop *loop;
    client_target server;
    const char *wrong;
    uint8_t messages[MEMBERS][MESSAGES][MESSAGE_BYTES];
} meeting;

static void end_meeting(weir_loop *loop, void *userdata) {
    (void)userdata;
    weir_loop_drain(loop, 0);
}

/* What a member hears is everyone else's messages, whole and in each sender's order, but mixed: those who speak take
 * turns here, so the mixture is known. */
static void *talk(void *userdata) {
    meeting *m = userdata;
    int fds[MEMBERS];
    for (unsigned i = 0; i < MEMBERS && m->wrong == NULL; i++) {
        fds[i] = client_connect(m->server);
        if (fds[i] < 0)
            m->wrong = "cannot connect";
        for (unsigned j = 0; j < i && m->wrong == NULL; j++) /* who was there before is told */
            m->wrong = client_expect(fds[j], greeting, sizeof greeting - 1);
    }
    for (unsigned n = 0; n < MESSAGES; n++) {
        for (unsigned i = 0; i < MEMBERS && m->wrong == NULL; i++) {
            m->wrong = client_send(fds[i], m->messages[i][n], MESSAGE_BYTES);
            for (unsigned j = 0; j < MEMBERS && m->wrong == NULL; j++)
                if (j != i)
                    m->wrong = client_expect(fds[j], m->messages[i][n], MESSAGE_BYTES);
        }
    }
    for (unsigned i = 0; i < MEMBERS; i++) /* nothing else, and not one's own */
        if (m->wrong == NULL && recv(fds[i], &(char){ 0 }, 1, MSG_DONTWAIT) != -1)
            m->wrong = "more came than was said";
    for (unsigned i = 0; i < MEMBERS; i++)
        close(fds[i]);
    if (weir_loop_post(m->loop, end_meeting, NULL) != 0)
        abort();
    return NULL;
}

/* One member never reads; another one talks more than its queue may hold; a third one hears it all. */
static void *flood(void *userdata) {
    meeting *m = userdata;
    static uint8_t block[FLOOD_BYTES];
    int silent = client_connect(m->server), talker = -1, listening = -1;
    talker = client_connect(m->server);
    m->wrong = client_expect(silent, greeting, sizeof greeting - 1);
    if (m->wrong == NULL)
        listening = client_connect(m->server);
    if (m->wrong == NULL)
        m->wrong = client_expect(talker, greeting, sizeof greeting - 1);
    for (unsigned i = 0; i < FLOODS && m->wrong == NULL; i++) {
        client_fill(i, 0, block, sizeof block);
        m->wrong = client_send(talker, block, sizeof block);
        if (m->wrong == NULL)
            m->wrong = client_expect(listening, block, sizeof block);
    }
    close(silent);
    close(talker);
    close(listening);
    if (weir_loop_post(m->loop, end_meeting, NULL) != 0)
        abort();
    return NULL;
}

static weir_loop_stats hold(meeting *m, void *(*clients)(void *userdata)) {
    weir_stream_options each = { .size = sizeof each, .queue_limit_bytes = 1 << 20 };
    weir_listener_options options = { .size = sizeof options, .max_streams = 100, .stream = &each };
    weir_loop_stats stats = { .size = sizeof stats };
    weir_listener *listener;
    pthread_t thread;
    dropped = 0;
    assert_int_equal(weir_loop_new(NULL, &m->loop), 0);
    assert_int_equal(weir_listener_open(m->loop, "[::1]:0", &options, &listener), 0);
    assert_int_equal(weir_listener_start(listener, &accepting, NULL), 0);
    m->server = client_find(listener);
    m->wrong = NULL;
    assert_int_equal(pthread_create(&thread, NULL, clients, m), 0);
    assert_int_equal(weir_loop_run(m->loop), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    if (m->wrong != NULL)
        fail_msg("%s", m->wrong);
    assert_int_equal(member_count, 0);
    assert_null(members);
    assert_int_equal(weir_loop_get_stats(m->loop, &stats), 0);
    assert_int_equal(weir_loop_close(m->loop), 0);
    weir_loop_unref(m->loop);
    return stats;
}

static meeting here;

static void each_message_reaches_everyone_else(void **state) {
    (void)state;
    for (unsigned i = 0; i < MEMBERS; i++)
        for (unsigned n = 0; n < MESSAGES; n++)
            client_fill(i * MESSAGES + n, 0, here.messages[i][n], MESSAGE_BYTES);
    weir_loop_stats stats = hold(&here, talk);
    assert_int_equal(stats.accepted, MEMBERS);
    assert_int_equal(stats.bytes_in, MEMBERS * MESSAGES * MESSAGE_BYTES);
    assert_int_equal(stats.bytes_copied, MEMBERS * (sizeof greeting - 1)); /* the notes, once each */
    assert_int_equal(dropped, 0);
}

static void who_does_not_read_is_dropped_and_the_others_go_on(void **state) {
    (void)state;
    weir_loop_stats stats = hold(&here, flood);
    assert_int_equal(stats.accepted, 3);
    assert_int_equal(stats.bytes_in, (uint64_t)FLOODS * FLOOD_BYTES);
    assert_int_equal(dropped, 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_message_reaches_everyone_else),
        cmocka_unit_test(who_does_not_read_is_dropped_and_the_others_go_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
