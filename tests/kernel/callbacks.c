/* SPDX-License-Identifier: MIT */

/* A callback may call anything but run and close of its own loop: each callback meets each call that ends, stops or
 * frees what it is about, its own stream or another one whose completion lies in the same batch. */

#include <netinet/in.h>

#include "kernel/scribe.h"

enum { OURS = 1, THEIRS = 2, BUFFER = 4096, LONG = 2 << 20 };

/* ---- a stream's own callbacks ------------------------------------------------------------------------------- */

#define ACTIONS(X) X(close) X(abort) X(detach) X(run) X(loop_close) X(drain) X(pause_and_resume)
#define AS_ENUM(name) action_##name,
enum action { ACTIONS(AS_ENUM) ACTION_COUNT };
#define AS_TEXT(name) #name,
static const char *const action_names[] = { ACTIONS(AS_TEXT) };
static const char *const event_names[] = { "on_open", "on_data", "on_end", "on_drain", "on_close" };
static const char event_letters[] = "oderc";

/* A dialled stream that is told everything there is to tell, in the order o, d, r, e, c. */
typedef struct story {
    enum action action;
    char event;
    char name[64];
    bool has_acted;
    test_fixture f;
    scribe s;
    peer p;
    weir_stream *kept;
} story;

static void act(scribe *s, char event, const weir_slice *slice) {
    story *t = s->userdata;
    weir_stream *stream = t->kept;
    weir_loop *loop = weir_stream_get_loop(stream);
    int fd;
    (void)slice;
    if (event != t->event || t->has_acted)
        return;
    t->has_acted = true;
    switch (t->action) {
    case action_close:
        test_ok(weir_stream_close(stream));
        break;
    case action_abort:
        test_ok(weir_stream_abort(stream));
        break;
    case action_detach:
        assert_int_equal(weir_stream_detach(stream, &fd), -EALREADY);
        break;
    case action_run:
        assert_int_equal(weir_loop_run(loop), -EBUSY);
        assert_int_equal(weir_loop_run_once(loop, 0), -EBUSY);
        break;
    case action_loop_close:
        assert_int_equal(weir_loop_close(loop), -EBUSY);
        break;
    case action_drain:
        test_ok(weir_loop_drain(loop, 0));
        break;
    default: /* start again, pause and resume, shut down what is open */
        assert_int_equal(weir_stream_start(stream, &scribe_callbacks, s), -EALREADY);
        test_ok(weir_stream_pause(stream));
        test_ok(weir_stream_resume(stream));
    }
}

static bool ends_it(const story *t) {
    return t->action == action_close || t->action == action_abort || t->action == action_drain;
}

/* Everything that can be told, as far as the action lets it come. */
static void tell(story *t) {
    RUN_UNTIL(&t->f, strchr(t->s.events, 'o') != NULL || scribe_is_closed(&t->s));
    if (!t->has_acted || !ends_it(t)) {
        assert_int_equal(peer_send(t->p.fd, THEIRS, 0, 3 * BUFFER), 0);
        RUN_UNTIL(&t->f, t->s.received == 3 * BUFFER || (t->has_acted && ends_it(t)));
    }
    if (!t->has_acted || !ends_it(t))
        RUN_UNTIL(&t->f, (peer_read(&t->p), strchr(t->s.events, 'r') != NULL));
    if (!t->has_acted || !ends_it(t)) {
        shutdown(t->p.fd, SHUT_WR);
        RUN_UNTIL(&t->f, strchr(t->s.events, 'e') != NULL);
    }
    if (!t->has_acted || t->action != action_drain)
        test_ok(weir_stream_close(t->kept));
    RUN_UNTIL(&t->f, peer_is_over(&t->p));
    close(t->p.fd);
    RUN_UNTIL(&t->f, scribe_is_closed(&t->s));
}

static void a_call_inside_a_callback(void **state) {
    story *t = *state;
    const weir_pool_options pool = { .size = sizeof pool, .buffer_bytes = BUFFER, .budget_bytes = 8 << 20 };
    const weir_stream_options options = { .size = sizeof options,
                                          .queue_high_bytes = 1 << 20,
                                          .queue_low_bytes = 64 << 10 };
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof in;
    char address[WEIR_ADDRESS_SIZE];
    int room = 64 << 10, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &room, sizeof room), 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&in, sizeof in), 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_int_equal(getsockname(listener, (struct sockaddr *)&in, &length), 0);
    test_open(&t->f, NULL, &pool);
    snprintf(address, sizeof address, "127.0.0.1:%u", ntohs(in.sin_port));
    t->s.hook = act;
    t->s.userdata = t;
    scribe_init(&t->s, THEIRS);
    test_ok(weir_stream_dial(t->f.loop, address, &options, &t->kept));
    (void)weir_stream_ref(t->kept);
    assert_int_equal(setsockopt(weir_stream_get_fd(t->kept), SOL_SOCKET, SO_SNDBUF, &room, sizeof room), 0);
    uint8_t *bytes = pattern_new(OURS, LONG);
    assert_int_equal(weir_stream_write(t->kept, bytes, LONG), WEIR_WRITE_FULL);
    free(bytes);
    scribe_start(&t->s, t->kept);
    scribe_turns(&t->f, 1); /* it connects, and has not been told */
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0);
    peer_init(&t->p, fd, OURS);
    tell(t);
    assert_true(t->has_acted);
    assert_int_equal(t->s.wrong, -1);
    assert_int_equal(t->p.wrong, -1);
    if (ends_it(t)) { /* the last thing told before on_close is the callback that ended it */
        size_t end = strlen(t->s.events);
        assert_int_equal(t->s.events[end - 1], 'c');
        if (t->event != 'c' && t->action != action_drain)
            assert_int_equal(t->s.events[end - 2], t->event);
        int reason = t->action == action_abort   ? WEIR_CLOSE_ABORT
                     : t->action == action_drain ? WEIR_CLOSE_DRAIN
                     : t->event == 'e'           ? WEIR_CLOSE_PEER
                                                 : WEIR_CLOSE_LOCAL;
        assert_int_equal(t->s.reason, t->event == 'c' ? WEIR_CLOSE_PEER : reason);
    } else {
        assert_string_equal(t->s.events, "odrec");
        assert_int_equal(t->s.reason, WEIR_CLOSE_PEER);
    }
    weir_stream_unref(t->kept);
    test_close(&t->f);
    close(listener);
}

/* ---- another stream's ---------------------------------------------------------------------------------------- */

enum { CROWD = 30 };

typedef struct crowd {
    test_fixture f;
    scribe s[CROWD];
    int peers[CROWD];
    int (*call)(weir_stream *stream);
    unsigned told;
} crowd;

/* Whoever is told first ends all the others. */
static void end_the_others(scribe *s, char event, const weir_slice *slice) {
    crowd *c = s->userdata;
    (void)slice;
    if (event != 'd' || c->told++ > 0)
        return;
    for (unsigned i = 0; i < CROWD; i++)
        if (&c->s[i] != s)
            test_ok(c->call(c->s[i].stream));
}

static void crowd_open(crowd *c, int (*call)(weir_stream *stream)) {
    const weir_pool_options pool = { .size = sizeof pool, .buffer_bytes = BUFFER };
    memset(c, 0, sizeof *c);
    c->call = call;
    test_open(&c->f, NULL, &pool);
    for (unsigned i = 0; i < CROWD; i++) {
        int fds[2];
        test_pair(i % 2 == 0, fds);
        c->peers[i] = fds[0];
        c->s[i].hook = end_the_others;
        c->s[i].userdata = c;
        scribe_init(&c->s[i], i);
        scribe_adopt(&c->f, &c->s[i], fds[1], NULL);
    }
    scribe_turns(&c->f, 3);
    for (unsigned i = 0; i < CROWD; i++)
        assert_int_equal(peer_send(c->peers[i], i, 0, 1000), 0);
    RUN_UNTIL(&c->f, c->told > 0);
}

static void crowd_close(crowd *c) {
    for (unsigned i = 0; i < CROWD; i++)
        close(c->peers[i]);
    test_close(&c->f);
}

static void others_that_are_aborted_hear_nothing_but_on_close(void **state) {
    (void)state;
    static crowd c;
    crowd_open(&c, weir_stream_abort);
    RUN_UNTIL(&c.f, test_loop_stats(&c.f).streams_open == 1);
    assert_int_equal(c.told, 1);
    for (unsigned i = 0; i < CROWD; i++)
        if (c.s[i].received == 0)
            scribe_expect(&c.s[i], "c", WEIR_CLOSE_ABORT, 0);
    crowd_close(&c);
}

static void others_that_are_closed_hear_nothing_but_on_close(void **state) {
    (void)state;
    static crowd c;
    crowd_open(&c, weir_stream_close);
    for (unsigned i = 0; i < CROWD; i++)
        shutdown(c.peers[i], SHUT_WR);
    RUN_UNTIL(&c.f, test_loop_stats(&c.f).streams_open == 1);
    assert_int_equal(c.told, 1);
    for (unsigned i = 0; i < CROWD; i++)
        if (c.s[i].received == 0)
            scribe_expect(&c.s[i], "c", WEIR_CLOSE_LOCAL, 0);
    crowd_close(&c);
}

static void others_that_are_paused_hear_nothing_until_their_resume(void **state) {
    (void)state;
    static crowd c;
    crowd_open(&c, weir_stream_pause);
    scribe_turns(&c.f, 10);
    assert_int_equal(c.told, 1);
    for (unsigned i = 0; i < CROWD; i++)
        test_ok(weir_stream_resume(c.s[i].stream));
    for (unsigned i = 0; i < CROWD; i++) {
        RUN_UNTIL(&c.f, c.s[i].received == 1000);
        assert_int_equal(c.s[i].wrong, -1);
    }
    crowd_close(&c);
}

/* ---- on_accept ------------------------------------------------------------------------------------------------ */

typedef struct door {
    test_fixture f;
    weir_listener *listener;
    void (*act)(struct door *d, weir_stream *stream);
    scribe s;
    unsigned accepted, closed;
    int detached;
} door;

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    door *d = userdata;
    assert_ptr_equal(listener, d->listener);
    d->accepted++;
    d->act(d, stream);
}

static void on_listener_close(weir_listener *listener, int error, void *userdata) {
    door *d = userdata;
    (void)listener;
    assert_int_equal(error, 0);
    d->closed++;
}

static const weir_listener_callbacks door_callbacks = { .size = sizeof door_callbacks,
                                                        .on_accept = on_accept,
                                                        .on_close = on_listener_close };

static void close_it(door *d, weir_stream *stream) {
    (void)d;
    test_ok(weir_stream_close(stream));
}

static void abort_it(door *d, weir_stream *stream) {
    (void)d;
    test_ok(weir_stream_abort(stream));
}

static void detach_it(door *d, weir_stream *stream) {
    test_ok(weir_stream_detach(stream, &d->detached));
}

static void close_the_door(door *d, weir_stream *stream) {
    test_ok(weir_listener_close(d->listener));
    scribe_start(&d->s, stream);
}

static void abort_what_was_started(door *d, weir_stream *stream) {
    scribe_start(&d->s, stream);
    test_ok(weir_stream_abort(stream));
}

static int door_open(door *d, void (*how)(door *d, weir_stream *stream)) {
    memset(d, 0, sizeof *d);
    d->act = how;
    d->detached = -1;
    test_open(&d->f, NULL, NULL);
    scribe_init(&d->s, THEIRS);
    test_ok(weir_listener_open(d->f.loop, "127.0.0.1:0", NULL, &d->listener));
    test_ok(weir_listener_start(d->listener, &door_callbacks, d));
    int fd = test_connect(d->listener);
    assert_int_equal(peer_send(fd, THEIRS, 0, 1000), 0);
    RUN_UNTIL(&d->f, d->accepted == 1);
    return fd;
}

static void a_stream_can_be_closed_in_on_accept(void **state) {
    (void)state;
    door d;
    peer p;
    peer_init(&p, door_open(&d, close_it), 0);
    RUN_UNTIL(&d.f, peer_is_over(&p));
    peer_expect_end(&p, 0); /* its input was read and thrown away, so there is no reset */
    close(p.fd);
    RUN_UNTIL(&d.f, test_loop_stats(&d.f).streams_open == 0);
    test_close(&d.f);
}

static void a_stream_can_be_aborted_in_on_accept(void **state) {
    (void)state;
    door d;
    peer p;
    peer_init(&p, door_open(&d, abort_it), 0);
    RUN_UNTIL(&d.f, peer_is_over(&p));
    peer_expect_error(&p, 0, ECONNRESET);
    close(p.fd);
    RUN_UNTIL(&d.f, test_loop_stats(&d.f).streams_open == 0);
    test_close(&d.f);
}

static void a_stream_can_be_detached_in_on_accept_with_all_its_bytes(void **state) {
    (void)state;
    door d;
    uint8_t bytes[1000];
    int fd = door_open(&d, detach_it);
    assert_int_equal(test_loop_stats(&d.f).streams_open, 0);
    assert_int_equal(recv(d.detached, bytes, sizeof bytes, 0), sizeof bytes);
    assert_int_equal(test_differs(THEIRS, 0, bytes, sizeof bytes), -1);
    close(d.detached);
    close(fd);
    test_close(&d.f);
}

static void a_stream_can_be_started_and_aborted_in_on_accept(void **state) {
    (void)state;
    door d;
    int fd = door_open(&d, abort_what_was_started);
    RUN_UNTIL(&d.f, scribe_is_closed(&d.s));
    scribe_expect(&d.s, "c", WEIR_CLOSE_ABORT, 0);
    close(fd);
    test_close(&d.f);
}

static void a_listener_can_be_closed_in_on_accept_and_the_stream_goes_on(void **state) {
    (void)state;
    door d;
    int fd = door_open(&d, close_the_door);
    RUN_UNTIL(&d.f, d.closed == 1 && d.s.received == 1000);
    assert_int_equal(test_loop_stats(&d.f).listeners_open, 0);
    close(fd);
    RUN_UNTIL(&d.f, strchr(d.s.events, 'e') != NULL);
    test_ok(weir_stream_close(d.s.stream));
    RUN_UNTIL(&d.f, scribe_is_closed(&d.s));
    assert_int_equal(d.closed, 1);
    test_close(&d.f);
}

int main(void) {
    enum { EVENTS = sizeof event_letters - 1 };
    static const struct CMUnitTest others[] = {
        cmocka_unit_test(others_that_are_aborted_hear_nothing_but_on_close),
        cmocka_unit_test(others_that_are_closed_hear_nothing_but_on_close),
        cmocka_unit_test(others_that_are_paused_hear_nothing_until_their_resume),
        cmocka_unit_test(a_stream_can_be_closed_in_on_accept),
        cmocka_unit_test(a_stream_can_be_aborted_in_on_accept),
        cmocka_unit_test(a_stream_can_be_detached_in_on_accept_with_all_its_bytes),
        cmocka_unit_test(a_stream_can_be_started_and_aborted_in_on_accept),
        cmocka_unit_test(a_listener_can_be_closed_in_on_accept_and_the_stream_goes_on),
    };
    static story stories[EVENTS * ACTION_COUNT];
    static struct CMUnitTest tests[EVENTS * ACTION_COUNT + sizeof others / sizeof *others];
    size_t count = 0;
    for (size_t event = 0; event < EVENTS; event++) {
        for (int action = 0; action < ACTION_COUNT; action++) {
            story *t = &stories[count];
            t->action = (enum action)action;
            t->event = event_letters[event];
            snprintf(t->name, sizeof t->name, "%s_inside_%s", action_names[action], event_names[event]);
            tests[count++] =
                (struct CMUnitTest){ .name = t->name, .test_func = a_call_inside_a_callback, .initial_state = t };
        }
    }
    memcpy(tests + count, others, sizeof others);
    count += sizeof others / sizeof *others;
    return _cmocka_run_group_tests("callbacks", tests, count, NULL, NULL);
}
