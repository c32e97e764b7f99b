/* SPDX-License-Identifier: MIT */

/*
 * A stream may be closed, aborted or detached, and its loop closed, in whatever state it is in, and with whatever the
 * kernel has under way for it: every state that a stream can be brought to here meets every way of ending it. After
 * that nothing is told but on_close, once, and nothing is left.
 *
 * The cases are made from two lists, so their names are as well: <ending>_while_<state>_on_<socket>.
 */

#include <netinet/in.h>

#include "kernel/scribe.h"

enum { OURS = 1, THEIRS = 2, LENT = 4 << 20, BUFFER = 4096, PENDING = 20000 };

/* ---- the states ------------------------------------------------------------------------------------------- */

#define STATES(X)                                                       \
    X(unstarted)    /* adopted, nothing else */                         \
    X(connecting)   /* to somebody who does not answer */               \
    X(idle)         /* a receive is armed, nothing comes */             \
    X(data_pending) /* it has come, and was not looked at yet */        \
    X(sending)      /* a gathered send waits for room */                \
    X(paused)       /* a watch is armed, data lies in the socket */     \
    X(pausing)      /* in this very turn: the receive is still armed */ \
    X(resuming)     /* in this very turn: the watch is still armed */   \
    X(staged)       /* data was received and not delivered */           \
    X(parked)       /* data is there and no buffer */                   \
    X(shut_down)    /* by us */                                         \
    X(half_closed)  /* by the peer, and known */                        \
    X(ending)       /* by the peer, and not known yet */                \
    X(closing)      /* gracefully, over a long queue */                 \
    X(aborting)     /* in this very turn */

#define ENDINGS(X) X(close) X(abort) X(detach) X(loop_close) X(drain)

#define AS_ENUM(name) state_##name,
enum state { STATES(AS_ENUM) STATE_COUNT };
#undef AS_ENUM
#define AS_ENUM(name) ending_##name,
enum ending { ENDINGS(AS_ENUM) ENDING_COUNT };
#define AS_TEXT(name) #name,
static const char *const state_names[] = { STATES(AS_TEXT) };
static const char *const ending_names[] = { ENDINGS(AS_TEXT) };

typedef struct meeting {
    enum state state;
    enum ending ending;
    bool is_tcp;
    char name[64];

    test_fixture f;
    scribe s;
    peer p;
    weir_stream *stream;
    weir_slice held;
    loan loans[2];
    uint8_t *lent;
    int silent[2]; /* a listener that answers nobody, and who fills its backlog */
    char before[32];
} meeting;

static void on_event(scribe *s, char event, const weir_slice *slice) {
    meeting *m = s->userdata;
    if (event != 'd')
        return;
    if (m->state == state_staged)
        test_ok(weir_stream_pause(s->stream));
    if (m->state == state_parked && m->before[0] == '\0' && m->held.size == 0)
        weir_slice_ref(slice, &m->held);
}

static void fill_queue(meeting *m) {
    m->lent = pattern_new(OURS, LENT);
    for (int i = 0; i < 2; i++) {
        m->loans[i] = (loan){ .data = m->lent + i * (LENT / 2), .size = LENT / 2 };
        assert_true(weir_stream_write_external(m->stream, m->loans[i].data, m->loans[i].size, loan_release,
                                               &m->loans[i]) >= 0);
    }
}

/* A listener whose backlog is full drops what else comes. */
static void dial_silence(meeting *m) {
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof in;
    char address[WEIR_ADDRESS_SIZE];
    m->silent[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    m->silent[1] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(m->silent[0], (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(listen(m->silent[0], 0), 0);
    assert_int_equal(getsockname(m->silent[0], (struct sockaddr *)&in, &length), 0);
    assert_int_equal(connect(m->silent[1], (struct sockaddr *)&in, sizeof in), 0);
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(in.sin_port));
    test_ok(weir_stream_dial(m->f.loop, address, NULL, &m->stream));
}

static void bring_to_state(meeting *m) {
    if (m->state == state_unstarted)
        return;
    if (m->state == state_data_pending || m->state == state_staged || m->state == state_parked)
        assert_int_equal(peer_send(m->p.fd, THEIRS, 0, PENDING), 0);
    if (m->state == state_staged) { /* it starts with all of it there, so that several slices come at once */
        scribe_start(&m->s, m->stream);
        RUN_UNTIL(&m->f, m->s.received > 0);
        weir_stream_stats stats = { .size = sizeof stats };
        test_ok(weir_stream_get_stats(m->stream, &stats));
        assert_true(stats.staged_bytes > 0 || test_is_epoll(&m->f));
        return;
    }
    scribe_start(&m->s, m->stream);
    if (m->state == state_data_pending)
        return;
    scribe_turns(&m->f, 5);
    switch (m->state) {
    case state_paused:
    case state_resuming:
        test_ok(weir_stream_pause(m->stream));
        assert_int_equal(peer_send(m->p.fd, THEIRS, 0, 1000), 0);
        scribe_turns(&m->f, 5);
        if (m->state == state_resuming)
            test_ok(weir_stream_resume(m->stream));
        break;
    case state_pausing:
        assert_int_equal(peer_send(m->p.fd, THEIRS, 0, 1000), 0);
        test_ok(weir_stream_pause(m->stream));
        break;
    case state_sending:
        fill_queue(m);
        scribe_turns(&m->f, 5);
        assert_true(weir_stream_get_queued(m->stream) > 0);
        break;
    case state_parked:
        RUN_UNTIL(&m->f, test_pool_stats(&m->f).parked_streams == 1);
        break;
    case state_shut_down:
        test_ok(weir_stream_shutdown(m->stream));
        scribe_turns(&m->f, 5);
        break;
    case state_half_closed:
        shutdown(m->p.fd, SHUT_WR);
        RUN_UNTIL(&m->f, strchr(m->s.events, 'e') != NULL);
        break;
    case state_ending:
        assert_int_equal(peer_send(m->p.fd, THEIRS, 0, 1000), 0);
        shutdown(m->p.fd, SHUT_WR);
        break;
    case state_closing:
        fill_queue(m);
        test_ok(weir_stream_close(m->stream));
        scribe_turns(&m->f, 5);
        assert_true(weir_stream_get_queued(m->stream) > 0);
        break;
    case state_aborting:
        test_ok(weir_stream_abort(m->stream));
        break;
    case state_connecting:
        assert_int_equal(weir_stream_get_state(m->stream), WEIR_STREAM_CONNECTING);
        break;
    default:
        break;
    }
}

/* ---- ending ------------------------------------------------------------------------------------------------ */

static int reason_of(const meeting *m) {
    if (m->state == state_aborting)
        return WEIR_CLOSE_ABORT; /* the first reason counts */
    switch (m->ending) {
    case ending_close:
        return m->state == state_half_closed ? WEIR_CLOSE_PEER : WEIR_CLOSE_LOCAL;
    case ending_loop_close:
        return WEIR_CLOSE_LOOP;
    case ending_drain:
        return WEIR_CLOSE_DRAIN;
    default:
        return WEIR_CLOSE_ABORT;
    }
}

/* Detaching is for streams that were not started; others are left alone by it. */
static void detach(meeting *m) {
    int fd = -1;
    if (m->state != state_unstarted) {
        assert_int_equal(weir_stream_detach(m->stream, &fd), -EALREADY);
        assert_int_equal(fd, -1);
        test_ok(weir_stream_abort(m->stream));
        return;
    }
    test_ok(weir_stream_detach(m->stream, &fd));
    assert_int_equal(peer_send(m->p.fd, THEIRS, 0, 1000), 0);
    uint8_t bytes[1000];
    assert_int_equal(recv(fd, bytes, sizeof bytes, MSG_WAITALL), sizeof bytes);
    assert_int_equal(test_differs(THEIRS, 0, bytes, sizeof bytes), -1);
    close(fd);
}

static void end(meeting *m) {
    memcpy(m->before, m->s.events, sizeof m->s.events);
    switch (m->ending) {
    case ending_close:
        test_ok(weir_stream_close(m->stream));
        break;
    case ending_abort:
        test_ok(weir_stream_abort(m->stream));
        break;
    case ending_detach:
        detach(m);
        break;
    case ending_loop_close:
        test_ok(weir_loop_close(m->f.loop));
        break;
    default:
        test_ok(weir_loop_drain(m->f.loop, 0));
    }
}

/* The peer reads to the end, and then goes itself. */
static void let_the_peer_end(meeting *m) {
    int64_t deadline = test_now_ns() + PATIENCE_S * INT64_C(1000000000);
    while (!peer_is_over(&m->p)) {
        assert_true(test_now_ns() < deadline);
        if (m->ending == ending_loop_close)
            test_sleep_ms(1);
        else
            scribe_turn(&m->f, 1 * MS);
    }
    bool is_graceful = m->ending == ending_close || m->state == state_shut_down ||
                       (m->ending == ending_detach && m->state == state_unstarted);
    if (is_graceful && m->state != state_aborting)
        peer_expect_end(&m->p, m->lent != NULL ? LENT : 0);
    else if (m->is_tcp)
        assert_int_equal(m->p.error, ECONNRESET);
    assert_int_equal(m->p.wrong, -1);
    close(m->p.fd);
    m->p.fd = -1;
}

static bool is_gone(const meeting *m) {
    return test_loop_stats(&m->f).streams_open == 0;
}

static void a_stream_ends_in_a_state(void **state) {
    meeting *m = *state;
    const weir_pool_options pool = { .size = sizeof pool,
                                     .buffer_bytes = BUFFER,
                                     .window_bytes = m->state == state_parked ? BUFFER : 4 * BUFFER,
                                     .budget_bytes = m->state == state_parked ? BUFFER : 1 << 20 };
    int fds[2];
    m->s.hook = on_event;
    m->s.userdata = m;
    scribe_init(&m->s, THEIRS);
    m->silent[0] = m->silent[1] = -1;
    test_open(&m->f, NULL, &pool);
    peer_init(&m->p, -1, OURS);
    if (m->state == state_connecting) {
        dial_silence(m);
    } else {
        test_pair(m->is_tcp, fds);
        set_room(fds, 64 << 10);
        m->p.fd = fds[0];
        test_ok(weir_stream_adopt(m->f.loop, fds[1], NULL, &m->stream));
    }
    bring_to_state(m);
    end(m);
    weir_slice_unref(&m->held);
    if (m->p.fd >= 0)
        let_the_peer_end(m);
    if (m->ending == ending_drain && m->state == state_unstarted)
        test_ok(weir_stream_close(m->stream)); /* it waits for its owner */
    if (m->ending != ending_loop_close)
        RUN_UNTIL(&m->f, is_gone(m));
    if (m->ending == ending_drain && m->state != state_aborting) /* until its grace is over things go on */
        snprintf(m->before, sizeof m->before, "%.*s", (int)strcspn(m->s.events, "c"), m->s.events);
    if (m->state != state_unstarted)
        strcat(m->before, "c");
    scribe_expect(&m->s, m->before, m->state != state_unstarted ? reason_of(m) : 0, 0);
    for (int i = 0; i < 2 && m->lent != NULL; i++)
        assert_int_equal(m->loans[i].releases, 1);
    for (int i = 0; i < 2; i++)
        if (m->silent[i] >= 0)
            close(m->silent[i]);
    test_close(&m->f);
    free(m->lent);
}

int main(void) {
    static meeting meetings[STATE_COUNT * ENDING_COUNT * 2];
    static struct CMUnitTest tests[STATE_COUNT * ENDING_COUNT * 2];
    size_t count = 0;
    for (int state = 0; state < STATE_COUNT; state++) {
        for (int ending = 0; ending < ENDING_COUNT; ending++) {
            for (int is_tcp = 0; is_tcp < (state == state_connecting ? 1 : 2); is_tcp++) {
                meeting *m = &meetings[count];
                m->state = (enum state)state;
                m->ending = (enum ending)ending;
                m->is_tcp = is_tcp != 0;
                snprintf(m->name, sizeof m->name, "%s_while_%s_on_%s", ending_names[ending], state_names[state],
                         is_tcp != 0 || state == state_connecting ? "tcp" : "unix");
                tests[count++] = (struct CMUnitTest){ .name = m->name,
                                                      .test_func = a_stream_ends_in_a_state,
                                                      .initial_state = m };
            }
        }
    }
    return _cmocka_run_group_tests("states", tests, count, NULL, NULL);
}
