/* SPDX-License-Identifier: MIT */
#include "conformance/world.h"

#include <poll.h>
#include <signal.h>
#include <sys/eventfd.h>

/* When things happen: timers, posts, stops, watches, signals, and what is given up for want of progress. Only orders and
 * reasons, never how long it took. */

static const int64_t ms = 1000000;

/* ---- timers, posts and stops ------------------------------------------------------------------------ */

static void on_timer(weir_timer *timer, void *userdata) {
    voice *v = userdata;
    assert_non_null(timer);
    v->size++;
    say(v->world, "%s fires", v->name);
}

static void timers_fire_in_order(void **state) {
    world *w = *state;
    voice v[4] = { { .world = w, .name = "first" },
                   { .world = w, .name = "second" },
                   { .world = w, .name = "third" },
                   { .world = w, .name = "never" } };
    weir_timer *timers[4];
    for (int i = 0; i < 4; i++)
        ok(weir_timer_new(w->loop, on_timer, &v[i], &timers[i]));
    ok(weir_timer_start(timers[2], 300 * ms, 0));
    ok(weir_timer_start(timers[1], 400 * ms, 0));
    ok(weir_timer_start(timers[3], 10 * ms, 0));
    ok(weir_timer_start(timers[0], 0, 0));
    ok(weir_timer_start(timers[1], 20 * ms, 0)); /* moved */
    ok(weir_timer_stop(timers[3]));
    told(w, "");
    sleep_ms(310); /* all are due in one turn, and in the order of their times still */
    ok(weir_loop_run(w->loop));
    told(w, "first fires\n"
            "second fires\n"
            "third fires\n");
    ok(weir_timer_start(timers[0], 1 * ms, 1 * ms));
    until(w, v[0].size == 4);
    ok(weir_timer_stop(timers[0]));
    turns(w, 3);
    told(w, "first fires\n"
            "first fires\n"
            "first fires\n");
    for (int i = 0; i < 4; i++)
        weir_timer_unref(timers[i]);
}

typedef struct post {
    world *world;
    int number;
} post;

static void on_post(weir_loop *loop, void *userdata) {
    post *p = userdata;
    assert_ptr_equal(loop, p->world->loop);
    say(p->world, "post %d", p->number);
    if (p->number == 1) {
        static post again;
        again = (post){ p->world, 10 };
        ok(weir_loop_post(loop, on_post, &again));
        say(p->world, "post 1 is over"); /* never inside */
    }
}

static void posts_run_in_order(void **state) {
    world *w = *state;
    post posts[] = { { w, 1 }, { w, 2 }, { w, 3 } };
    for (int i = 0; i < 3; i++)
        ok(weir_loop_post(w->loop, on_post, &posts[i]));
    told(w, "");
    ok(weir_loop_run(w->loop));
    told(w, "post 1\n"
            "post 1 is over\n"
            "post 2\n"
            "post 3\n"
            "post 10\n");
    ok(weir_loop_post(w->loop, on_post, &posts[1]));
    world_close_loop(w);
    told(w, "post 2\n"); /* at the latest inside the close */
}

enum { POSTERS = 4, POSTS = 500 };

typedef struct poster {
    weir_loop *loop;
    pthread_t thread;
    unsigned heard;
    struct one {
        struct poster *poster;
        unsigned number;
    } posts[POSTS];
} poster;

static void on_numbered(weir_loop *loop, void *userdata) {
    struct one *one = userdata;
    (void)loop;
    assert_int_equal(one->number, one->poster->heard++);
}

static void *post_many(void *userdata) {
    poster *p = userdata;
    for (unsigned i = 0; i < POSTS; i++) {
        p->posts[i] = (struct one){ p, i };
        if (weir_loop_post(p->loop, on_numbered, &p->posts[i]) < 0)
            abort();
        if (i % 50 == 0)
            sleep_ms(1); /* so that the loop sleeps now and then */
    }
    return NULL;
}

static void posts_of_each_thread_run_in_its_order(void **state) {
    world *w = *state;
    static poster posters[POSTERS];
    memset(posters, 0, sizeof posters);
    for (int i = 0; i < POSTERS; i++) {
        posters[i].loop = w->loop;
        ok(pthread_create(&posters[i].thread, NULL, post_many, &posters[i]));
    }
    unsigned heard = 0;
    while (heard < POSTERS * POSTS) {
        assert_true(weir_loop_run_once(w->loop, WEIR_NEVER) >= 0);
        heard = 0;
        for (int i = 0; i < POSTERS; i++)
            heard += posters[i].heard;
    }
    for (int i = 0; i < POSTERS; i++)
        ok(pthread_join(posters[i].thread, NULL));
    assert_int_equal(loop_stats(w).posts, POSTERS * POSTS);
}

static void *stop_soon(void *userdata) {
    sleep_ms(20);
    weir_loop_stop(userdata);
    return NULL;
}

static void another_thread_stops_a_loop_that_sleeps(void **state) {
    world *w = *state;
    pthread_t thread;
    teller a = { .hook = NULL };
    int peer = teller_pair(w, &a, "a", true, NULL);
    ok(pthread_create(&thread, NULL, stop_soon, w->loop));
    ok(weir_loop_run(w->loop)); /* returns though a stream is open */
    ok(pthread_join(thread, NULL));
    weir_loop_stop(w->loop);
    ok(weir_loop_run(w->loop)); /* the next one returns at once */
    told(w, "");
    close(peer);
    until(w, a.ends == 1);
    ok(weir_stream_close(a.stream));
    ok(weir_loop_run(w->loop)); /* until nothing is open */
    told(w, "a: end\n"
            "a: close PEER 0\n");
}

/* ---- watches -------------------------------------------------------------------------------------------- */

static void on_watch(weir_watch *watch, int events, void *userdata) {
    voice *v = userdata;
    say(v->world, "%s:%s%s%s%s%s", v->name, events & WEIR_WATCH_READ ? " read" : "",
        events & WEIR_WATCH_WRITE ? " write" : "", events & WEIR_WATCH_ERROR ? " error" : "",
        events & WEIR_WATCH_HANGUP ? " hangup" : "", events & WEIR_WATCH_FAILED ? " failed" : "");
    v->size++;
    if (v->seed != 0)
        ok(weir_watch_stop(watch));
}

/* One event is heard; the watch has stopped then. */
static void watch_one(world *w, int fd, int events, const char *expected) {
    voice v = { .world = w, .name = "w", .seed = 1 };
    weir_watch *watch;
    ok(weir_watch_new(w->loop, fd, on_watch, &v, &watch));
    ok(weir_watch_start(watch, events));
    told(w, "");
    until(w, v.size == 1);
    turns(w, 3);
    told(w, expected);
    weir_watch_unref(watch);
}

static void watches_tell_what_is_so(void **state) {
    world *w = *state;
    int fds[2], ends[2];
    ok(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
    watch_one(w, fds[0], WEIR_WATCH_WRITE, "w: write\n");
    watch_one(w, fds[0], WEIR_WATCH_READ | WEIR_WATCH_WRITE, "w: write\n");
    peer_send_text(fds[1], "x");
    watch_one(w, fds[0], WEIR_WATCH_READ, "w: read\n");
    watch_one(w, fds[0], WEIR_WATCH_READ | WEIR_WATCH_WRITE, "w: read write\n");
    watch_one(w, fds[0], WEIR_WATCH_WRITE, "w: write\n");
    close(fds[1]);
    watch_one(w, fds[0], 0, "w: hangup\n");
    watch_one(w, fds[0], WEIR_WATCH_READ, "w: read hangup\n");
    close(fds[0]);
    ok(pipe2(ends, O_CLOEXEC));
    close(ends[0]);
    watch_one(w, ends[1], 0, "w: error\n");
    watch_one(w, ends[1], WEIR_WATCH_WRITE, "w: write error\n");
    close(ends[1]);
    ok(pipe2(ends, O_CLOEXEC));
    close(ends[1]);
    watch_one(w, ends[0], WEIR_WATCH_READ, "w: hangup\n");
    close(ends[0]);
    int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC), directory = open("/", O_RDONLY | O_CLOEXEC);
    watch_one(w, file, WEIR_WATCH_READ, "w: read\n");
    watch_one(w, file, WEIR_WATCH_READ | WEIR_WATCH_WRITE, "w: read write\n");
    watch_one(w, directory, WEIR_WATCH_READ, "w: read\n");
    close(file);
    close(directory);
    watch_one(w, file, WEIR_WATCH_READ, "w: failed\n"); /* not open any more */
}

static void a_watch_is_heard_for_as_long_as_it_is_so(void **state) {
    world *w = *state;
    voice v = { .world = w, .name = "v" }, u = { .world = w, .name = "u" };
    weir_watch *watch, *other;
    uint64_t count;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    ok(weir_watch_new(w->loop, fd, on_watch, &v, &watch));
    ok(weir_watch_new(w->loop, fd, on_watch, &u, &other));
    ok(weir_watch_start(watch, WEIR_WATCH_READ));
    turns(w, 5);
    told(w, "");
    assert_int_equal(eventfd_write(fd, 1), 0);
    until(w, v.size == 3);                        /* nobody reads it */
    ok(weir_watch_start(other, WEIR_WATCH_READ)); /* the same descriptor twice */
    until(w, u.size >= 2 && v.size >= 5);
    ok(weir_watch_stop(watch));
    forget_story(w);
    uint64_t had = u.size;
    until(w, u.size >= had + 2);
    assert_memory_equal(w->story, "u: read\nu: read\n", 16);
    assert_true(read(fd, &count, sizeof count) == sizeof count);
    turns(w, 3);
    forget_story(w);
    turns(w, 5);
    told(w, "");
    ok(weir_watch_start(other, 0)); /* other events than until now */
    assert_int_equal(eventfd_write(fd, 1), 0);
    turns(w, 5);
    told(w, "");
    assert_int_equal(loop_stats(w).watches_started, 1);
    ok(weir_watch_stop(other));
    close(fd);                           /* at once after the stop */
    int again = eventfd(1, EFD_CLOEXEC); /* mostly with the same number */
    turns(w, 5);
    told(w, "");
    watch_one(w, again, WEIR_WATCH_READ, "w: read\n");
    close(again);
    weir_watch_unref(watch);
    weir_watch_unref(other);
}

static void two_watches_of_a_descriptor_hear_what_each_wants(void **state) {
    world *w = *state;
    voice r = { .world = w, .name = "r", .seed = 1 }, s = { .world = w, .name = "s", .seed = 1 };
    weir_watch *reads, *sends;
    int fds[2];
    ok(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
    ok(weir_watch_new(w->loop, fds[0], on_watch, &r, &reads));
    ok(weir_watch_new(w->loop, fds[0], on_watch, &s, &sends));
    ok(weir_watch_start(reads, WEIR_WATCH_READ));
    turns(w, 3);
    ok(weir_watch_start(sends, WEIR_WATCH_WRITE));
    until(w, s.size == 1);
    turns(w, 5);
    told(w, "s: write\n");
    peer_send_text(fds[1], "x");
    until(w, r.size == 1);
    turns(w, 5);
    told(w, "r: read\n");
    ok(weir_watch_start(reads, WEIR_WATCH_READ)); /* nobody has read it */
    until(w, r.size == 2);
    told(w, "r: read\n");
    close(fds[0]);
    close(fds[1]);
    weir_watch_unref(reads);
    weir_watch_unref(sends);
}

static void a_stopped_watch_lets_go_of_its_file(void **state) {
    world *w = *state;
    voice v = { .world = w, .name = "v" };
    weir_watch *watch;
    int fds[2];
    char byte;
    ok(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds));
    ok(weir_watch_new(w->loop, fds[0], on_watch, &v, &watch));
    ok(weir_watch_start(watch, WEIR_WATCH_READ));
    turns(w, 3);
    ok(weir_watch_stop(watch));
    close(fds[0]);
    turns(w, 3);
    assert_int_equal(recv(fds[1], &byte, 1, MSG_DONTWAIT), 0);
    close(fds[1]);
    weir_watch_unref(watch);
    told(w, "");
}

/* ---- signals -------------------------------------------------------------------------------------------- */

static void on_signal(weir_signal *signal, int number, void *userdata) {
    voice *v = userdata;
    assert_non_null(signal);
    say(v->world, "%s: signal %s", v->name, number == SIGUSR1 ? "USR1" : "USR2");
    v->size++;
}

static void signals_are_heard(void **state) {
    world *w = *state;
    voice one = { .world = w, .name = "one" }, two = { .world = w, .name = "two" };
    weir_signal *first, *second;
    ok(weir_signal_new(w->loop, SIGUSR1, on_signal, &one, &first));
    ok(weir_signal_new(w->loop, SIGUSR2, on_signal, &two, &second));
    ok(weir_signal_start(first));
    ok(weir_signal_start(second));
    assert_int_equal(loop_stats(w).signals_started, 2);
    ok(raise(SIGUSR1));
    ok(raise(SIGUSR1)); /* heard once */
    told(w, "");
    until(w, one.size == 1);
    turns(w, 5);
    ok(raise(SIGUSR2));
    until(w, two.size == 1);
    ok(raise(SIGUSR1));
    until(w, one.size == 2);
    told(w, "one: signal USR1\n"
            "two: signal USR2\n"
            "one: signal USR1\n");
    ok(weir_signal_stop(first));
    ok(weir_loop_run(w->loop)); /* a started signal keeps nothing running */
    assert_int_equal(weir_loop_is_idle(w->loop), 1);
    assert_int_equal(loop_stats(w).signals_started, 1);
    world_close_loop(w);
    weir_signal_unref(first);
    weir_signal_unref(second);
}

/* ---- timeouts ------------------------------------------------------------------------------------------- */

static void a_silent_stream_is_given_up(void **state) {
    world *w = *state;
    const weir_stream_options options = { .size = sizeof options, .idle_timeout_ns = 20 * ms };
    teller a = { .hook = NULL };
    voice p = { .name = "p" };
    int peer = teller_pair(w, &a, "a", true, &options);
    peer_send_text(peer, "only this");
    until(w, a.closes == 1);
    peer_hear_all(w, &p, peer);
    told(w, "a: data 'only this'\n"
            "a: close IDLE ETIMEDOUT\n"
            "p: ECONNRESET\n");
    close(peer);
}

static void a_paused_stream_is_not_idle(void **state) {
    world *w = *state;
    const weir_stream_options options = { .size = sizeof options, .idle_timeout_ns = 10 * ms };
    teller a = { .hook = NULL };
    int peer = teller_pair(w, &a, "a", true, &options);
    ok(weir_stream_pause(a.stream));
    for (int i = 0; i < 5; i++) {
        turns(w, 2);
        sleep_ms(10);
    }
    turns(w, 2);
    told(w, "");
    ok(weir_stream_resume(a.stream));
    until(w, a.closes == 1);
    told(w, "a: close IDLE ETIMEDOUT\n");
    close(peer);
}

static void a_peer_that_takes_nothing_is_given_up(void **state) {
    world *w = *state;
    static uint8_t data[4 << 20];
    for (int closing = 0; closing <= 1; closing++) {
        const weir_stream_options options = { .size = sizeof options,
                                              .write_timeout_ns = closing ? WEIR_NEVER : 30 * ms,
                                              .linger_timeout_ns = 30 * ms };
        int fds[2];
        teller a = { .hook = NULL };
        peer_pair(true, fds);
        small_send_buffer(fds[0]);
        teller_adopt(w, &a, "a", fds[0], &options);
        assert_int_equal(weir_stream_write(a.stream, data, sizeof data), WEIR_WRITE_FULL);
        if (closing)
            ok(weir_stream_close(a.stream));
        until(w, a.closes == 1);
        told(w, closing ? "a: close LINGER ETIMEDOUT\n" : "a: close WRITE ETIMEDOUT\n");
        close(fds[1]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        scenario(timers_fire_in_order),
        scenario(posts_run_in_order),
        scenario(posts_of_each_thread_run_in_its_order),
        scenario(another_thread_stops_a_loop_that_sleeps),
        scenario(watches_tell_what_is_so),
        scenario(a_watch_is_heard_for_as_long_as_it_is_so),
        scenario(two_watches_of_a_descriptor_hear_what_each_wants),
        scenario(a_stopped_watch_lets_go_of_its_file),
        scenario(signals_are_heard),
        scenario(a_silent_stream_is_given_up),
        scenario(a_paused_stream_is_not_idle),
        scenario(a_peer_that_takes_nothing_is_given_up),
    };
    return run_world(tests);
}
