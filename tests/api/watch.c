/* SPDX-License-Identifier: MIT */
#include <weir/watch.h>

#include "api/witness.h"

#include <netinet/in.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/resource.h>

/* Watches: readiness of descriptors that are not weir's, on the real kernel. */

enum { IN = WEIR_WATCH_READ, OUT = WEIR_WATCH_WRITE };

typedef struct lookout {
    test_fixture *fixture;
    weir_watch *watch;
    int fd;
    unsigned count;
    int events, all; /* the last ones; all that ever came */
    void (*then)(struct lookout *lookout);
} lookout;

static void hear(weir_watch *watch, int events, void *userdata) {
    lookout *l = userdata;
    assert_true(l->watch == NULL || watch == l->watch);
    assert_true(events != 0);
    l->count++;
    l->events = events;
    l->all |= events;
    if (l->then != NULL)
        l->then(l);
}

static void begin(test_fixture *f, lookout *l, int fd, int events) {
    *l = (lookout){ .fixture = f, .fd = fd };
    test_ok(weir_watch_new(f->loop, fd, hear, l, &l->watch));
    test_ok(weir_watch_start(l->watch, events));
}

static void end(lookout *l) {
    l->watch = weir_watch_unref(l->watch);
}

/* A look that a poll(2) of its own confirms: nobody is told of what is not so. */
static uint64_t read_counter(int fd) {
    uint64_t value = 0;
    assert_int_equal(read(fd, &value, sizeof value), sizeof value);
    return value;
}

static void add(int fd) {
    uint64_t one = 1;
    assert_int_equal(write(fd, &one, sizeof one), sizeof one);
}

/* ---- level-triggered ---------------------------------------------------------------------------------- */

static void a_watch_is_heard_once_a_turn_as_long_as_its_descriptor_is_ready(void **state) {
    test_fixture *f = *state;
    lookout l;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    begin(f, &l, fd, IN);
    run_turns(f, 5);
    assert_int_equal(l.count, 0);
    add(fd);
    run_until(f, l.count == 1);
    for (unsigned i = 2; i <= 6; i++) {
        assert_int_equal(weir_loop_run_once(f->loop, 1000000000), 1);
        assert_int_equal(l.count, i);
        assert_int_equal(l.events, IN);
    }
    read_counter(fd);
    run_turns(f, 5);
    assert_int_equal(l.count, 6);
    add(fd);
    run_until(f, l.count == 7);
    end(&l);
    close(fd);
}

static void a_watch_costs_no_system_call_but_the_turns(void **state) {
    test_fixture *f = *state;
    lookout l;
    int fd = eventfd(1, EFD_CLOEXEC | EFD_NONBLOCK);
    begin(f, &l, fd, IN);
    run_turns(f, 3);
    weir_loop_stats before = test_loop_stats(f);
    uint64_t allocations = atomic_load(&f->memory.allocations);
    unsigned count = l.count;
    run_turns(f, 100);
    weir_loop_stats after = test_loop_stats(f);
    assert_int_equal(after.turns - before.turns, 100);
    assert_int_equal(after.enters - before.enters, 100);
    assert_int_equal(l.count - count, 100);
    assert_int_equal(atomic_load(&f->memory.allocations), allocations);
    end(&l);
    close(fd);
}

static void a_watch_that_is_not_ready_lets_the_loop_sleep(void **state) {
    test_fixture *f = *state;
    lookout l;
    int fds[2];
    test_pair(false, fds);
    begin(f, &l, fds[0], IN);
    run_turns(f, 3);
    uint64_t turns = test_loop_stats(f).turns;
    assert_int_equal(weir_loop_run_once(f->loop, 50000000), 1);
    assert_true(test_loop_stats(f).turns - turns <= 2);
    assert_int_equal(l.count, 0);
    end(&l);
    close(fds[0]);
    close(fds[1]);
}

static void *add_later(void *fd) {
    test_sleep_ms(20);
    add(*(int *)fd);
    return NULL;
}

static void stop_it(lookout *l) {
    test_ok(weir_watch_stop(l->watch));
}

static void a_sleeping_loop_is_woken_and_run_ends_with_the_last_watch(void **state) {
    test_fixture *f = *state;
    lookout l;
    pthread_t thread;
    int fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    begin(f, &l, fd, IN);
    l.then = stop_it;
    assert_int_equal(pthread_create(&thread, NULL, add_later, &fd), 0);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(l.count, 1);
    assert_int_equal(pthread_join(thread, NULL), 0);
    end(&l);
    close(fd);
}

/* ---- what is heard ------------------------------------------------------------------------------------- */

/* Until there is no room, and none comes by itself. */
static void fill(int fd) {
    static const char bytes[65536];
    struct pollfd room = { .fd = fd, .events = POLLOUT };
    do {
        while (send(fd, bytes, sizeof bytes, MSG_DONTWAIT | MSG_NOSIGNAL) > 0)
            continue;
    } while (poll(&room, 1, 50) > 0);
}

static void drain(int fd) {
    static char bytes[65536];
    while (recv(fd, bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        continue;
}

static void a_watch_changes_between_reading_and_writing(void **state) {
    test_fixture *f = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        lookout l;
        int fds[2];
        test_pair(tcp, fds);
        begin(f, &l, fds[0], IN);
        run_turns(f, 3);
        assert_int_equal(l.count, 0);
        test_ok(weir_watch_start(l.watch, IN | OUT));
        run_until(f, l.count > 0);
        assert_int_equal(l.events, OUT);
        peer_send(fds[1], "x", 1);
        run_until(f, l.events == (IN | OUT));
        test_ok(weir_watch_start(l.watch, IN));
        l.all = 0;
        run_turns(f, 5);
        assert_int_equal(l.all, IN);
        drain(fds[0]);
        test_ok(weir_watch_start(l.watch, 0));
        run_turns(f, 3);
        unsigned count = l.count;
        peer_send(fds[1], "x", 1);
        run_turns(f, 5);
        assert_int_equal(l.count, count);
        fill(fds[0]);
        drain(fds[0]);
        test_ok(weir_watch_start(l.watch, OUT));
        run_turns(f, 5);
        assert_int_equal(l.count, count);
        do { /* until the kernel thinks that it is worth it */
            drain(fds[1]);
            run_turns(f, 1);
        } while (l.count == count);
        assert_int_equal(l.events, OUT);
        end(&l);
        run_turns(f, 2);
        close(fds[0]);
        close(fds[1]);
    }
}

/*
 * The kernel polls for POLLRDHUP unasked. Once the peer had shut down its side, waiting for room completed at once,
 * with nothing to tell, and the loop span until there was room.
 */
static void waiting_for_room_sleeps_although_the_peer_has_ended(void **state) {
    test_fixture *f = *state;
    for (int tcp = 0; tcp <= 1; tcp++) {
        lookout l;
        int fds[2];
        test_pair(tcp, fds);
        fill(fds[0]);
        shutdown(fds[1], SHUT_WR);
        begin(f, &l, fds[0], OUT);
        run_turns(f, 5);
        uint64_t completions = test_loop_stats(f).completions;
        run_turns(f, 50);
        assert_true(test_loop_stats(f).completions - completions <= 5); /* TCP may have news of its own */
        assert_int_equal(l.count, 0);
        do { /* until the kernel thinks that it is worth it */
            drain(fds[1]);
            run_turns(f, 1);
        } while (l.count == 0);
        assert_int_equal(l.events, OUT);
        unsigned count = l.count;
        run_turns(f, 10); /* and still level-triggered */
        assert_true(l.count > count);
        end(&l);
        run_turns(f, 2);
        close(fds[0]);
        close(fds[1]);
    }
}

static void ends_and_errors_are_heard_whatever_is_asked_for(void **state) {
    test_fixture *f = *state;
    lookout l;
    int fds[2];
    assert_int_equal(pipe(fds), 0);
    begin(f, &l, fds[0], 0);
    run_turns(f, 3);
    close(fds[1]);
    run_until(f, l.count > 0);
    assert_int_equal(l.events, WEIR_WATCH_HANGUP);
    end(&l);
    close(fds[0]);
    assert_int_equal(pipe(fds), 0);
    begin(f, &l, fds[1], 0);
    close(fds[0]);
    run_until(f, l.count > 0);
    assert_int_equal(l.events, WEIR_WATCH_ERROR);
    end(&l);
    close(fds[1]);
    test_pair(true, fds);
    begin(f, &l, fds[0], IN);
    run_turns(f, 2);
    peer_reset(fds[1]);
    run_until(f, l.count > 0);
    assert_int_equal(l.events & (IN | WEIR_WATCH_ERROR | WEIR_WATCH_HANGUP),
                     IN | WEIR_WATCH_ERROR | WEIR_WATCH_HANGUP);
    end(&l);
    close(fds[0]);
}

static void a_connection_that_is_refused_is_heard(void **state) {
    test_fixture *f = *state;
    lookout l;
    char address[WEIR_ADDRESS_SIZE];
    test_free_address(address, sizeof address);
    struct sockaddr_in in = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    in.sin_port = htons((uint16_t)atoi(strchr(address, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), error = 0;
    socklen_t size = sizeof error;
    (void)connect(fd, (struct sockaddr *)&in, sizeof in);
    begin(f, &l, fd, OUT);
    run_until(f, l.count > 0);
    assert_true((l.events & WEIR_WATCH_ERROR) != 0);
    assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &size), 0);
    assert_int_equal(error, ECONNREFUSED);
    end(&l);
    close(fd);
}

/* As poll(2) has it, and not as epoll, which refuses them. */
static void what_is_always_ready_is_always_heard(void **state) {
    test_fixture *f = *state;
    static const char *const paths[] = { "/proc/self/exe", "/", "/dev/null" };
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        lookout l;
        int fd = open(paths[i], O_RDONLY | O_CLOEXEC);
        begin(f, &l, fd, IN);
        run_until(f, l.count == 3);
        assert_int_equal(l.all, IN);
        test_ok(weir_watch_start(l.watch, IN | OUT));
        run_until(f, l.events == (IN | OUT));
        end(&l);
        run_turns(f, 2);
        close(fd);
    }
}

static void what_is_not_open_is_told_once(void **state) {
    test_fixture *f = *state;
    lookout l;
    int fd = eventfd(0, EFD_CLOEXEC);
    close(fd);
    begin(f, &l, fd, IN);
    test_ok(weir_loop_run(f->loop)); /* it has stopped */
    assert_int_equal(l.count, 1);
    assert_int_equal(l.events, WEIR_WATCH_FAILED);
    assert_int_equal(test_loop_stats(f).watches_started, 0);
    end(&l);
}

static void two_watches_of_one_descriptor_both_hear(void **state) {
    test_fixture *f = *state;
    lookout a, b;
    int fds[2];
    test_pair(false, fds);
    begin(f, &a, fds[0], IN);
    begin(f, &b, fds[0], OUT);
    peer_send(fds[1], "x", 1);
    run_until(f, a.count >= 2 && b.count >= 2);
    assert_int_equal(a.all, IN);
    assert_int_equal(b.all, OUT);
    end(&a);
    run_turns(f, 3);
    unsigned count = b.count;
    run_turns(f, 3);
    assert_true(b.count > count);
    end(&b);
    close(fds[0]);
    close(fds[1]);
}

/* ---- stopping and closing ------------------------------------------------------------------------------ */

/* What the header promises: close at once, and the number may be anybody's. */
static void a_stopped_watchs_descriptor_may_be_closed_and_its_number_used_again(void **state) {
    test_fixture *f = *state;
    lookout l;
    int old[2], new[2];
    char byte;
    for (int again = 0; again <= 1; again++) {
        test_pair(false, old);
        begin(f, &l, old[0], IN);
        run_turns(f, 3);
        test_ok(weir_watch_stop(l.watch));
        close(old[0]);
        test_pair(false, new);
        assert_int_equal(new[0], old[0]);
        peer_send(new[1], "x", 1);
        if (again) {
            test_ok(weir_watch_start(l.watch, IN));
            run_until(f, l.count == 3);
            assert_int_equal(l.all, IN); /* the old one's peer has seen an end: no hang-up of it is heard */
            stop_it(&l);
        }
        run_turns(f, 5);
        assert_int_equal(l.count, again ? 3 : 0);
        assert_int_equal(peer_poll(old[1], &byte, 1), 0); /* and the kernel has let go of the old file */
        end(&l);
        close(old[1]);
        close(new[0]);
        close(new[1]);
    }
}

static void run_returns_only_when_the_kernel_has_let_go(void **state) {
    test_fixture *f = *state;
    lookout l;
    int fds[2];
    if (test_is_epoll(f))
        skip(); /* which holds no file */
    test_pair(false, fds);
    begin(f, &l, fds[0], IN);
    run_turns(f, 3);
    end(&l);
    close(fds[0]);
    char byte;
    assert_int_equal(peer_poll(fds[1], &byte, 1), -EAGAIN); /* the poll has the file still */
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(peer_poll(fds[1], &byte, 1), 0);
    close(fds[1]);
}

/* The mistake that the header names. */
static void closing_a_watched_descriptor_breaks_nothing(void **state) {
    test_fixture *f = *state;
    lookout l;
    int fds[2], other[2];
    if (test_is_epoll(f))
        skip(); /* which hears nothing more of it */
    test_pair(false, fds);
    begin(f, &l, fds[0], IN);
    run_turns(f, 3);
    close(fds[0]);
    peer_send(fds[1], "x", 1);
    run_until(f, l.count == 1); /* of the file that is not closed yet */
    assert_int_equal(l.events, IN);
    run_until(f, l.count == 2); /* and then there is none with this number */
    assert_int_equal(l.events, WEIR_WATCH_FAILED);
    char byte;
    assert_int_equal(peer_poll(fds[1], &byte, 1), -ECONNRESET); /* closed now, with a byte unread */
    close(fds[1]);
    test_pair(false, other);
    assert_int_equal(other[0], fds[0]);
    test_ok(weir_watch_start(l.watch, OUT));
    run_until(f, l.count == 3);
    assert_int_equal(l.events, OUT);
    end(&l);
    close(other[0]);
    close(other[1]);
}

static void stop_other(lookout *l) {
    lookout *other = l + 1;
    test_ok(weir_watch_stop(other->watch));
}

static void a_ready_watch_that_another_one_stops_is_not_heard(void **state) {
    test_fixture *f = *state;
    lookout both[2];
    int fds[2] = { eventfd(1, EFD_CLOEXEC), eventfd(1, EFD_CLOEXEC) };
    begin(f, &both[0], fds[0], IN);
    begin(f, &both[1], fds[1], IN);
    both[0].then = stop_other;
    run_until(f, both[0].count == 3);
    assert_int_equal(both[1].count, 0);
    for (int i = 0; i < 2; i++) {
        end(&both[i]);
        close(fds[i]);
    }
}

static void drop_it(lookout *l) {
    end(l);
    close(l->fd);
}

static void a_watch_may_be_dropped_in_its_callback(void **state) {
    test_fixture *f = *state;
    lookout l;
    begin(f, &l, eventfd(1, EFD_CLOEXEC), IN);
    l.then = drop_it;
    uint64_t live = atomic_load(&f->memory.live_blocks);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(l.count, 1);
    assert_true(atomic_load(&f->memory.live_blocks) < live || test_is_epoll(f)); /* which remembers its number */
}

static void *unref_elsewhere(void *watch) {
    return weir_watch_unref(watch);
}

static unsigned count_at_post;

static void after_unref(weir_loop *loop, void *userdata) {
    (void)loop;
    count_at_post = ((lookout *)userdata)->count;
}

static void *unref_and_post(void *userdata) {
    lookout *l = userdata;
    test_sleep_ms(10);
    weir_watch_unref(l->watch);
    assert_int_equal(weir_loop_post(l->fixture->loop, after_unref, l), 0);
    return NULL;
}

static void a_watch_may_be_dropped_on_another_thread(void **state) {
    test_fixture *f = *state;
    lookout l;
    pthread_t thread;
    int fd = eventfd(1, EFD_CLOEXEC);
    begin(f, &l, fd, IN); /* always ready: it is heard all the time meanwhile */
    run_turns(f, 2);
    assert_int_equal(pthread_create(&thread, NULL, unref_and_post, &l), 0);
    test_ok(weir_loop_run(f->loop));
    assert_int_equal(pthread_join(thread, NULL), 0);
    test_ok(weir_loop_run(f->loop));
    assert_true(l.count > 0);
    assert_int_equal(l.count, count_at_post);
    close(fd);
}

static void a_loop_closes_with_watches_started(void **state) {
    test_fixture *f = *state;
    lookout quiet, ready, dropped;
    pthread_t thread;
    int fds[2], fd = eventfd(1, EFD_CLOEXEC);
    test_pair(false, fds);
    begin(f, &quiet, fds[0], IN);
    begin(f, &ready, fd, IN);
    begin(f, &dropped, fds[0], IN);
    run_turns(f, 5);
    end(&dropped);
    unsigned count = ready.count;
    test_ok(weir_loop_close(f->loop));
    assert_int_equal(ready.count, count);
    close(fds[0]);
    char byte;
    assert_int_equal(peer_poll(fds[1], &byte, 1), 0); /* nobody holds it any more */
    assert_int_equal(weir_watch_start(quiet.watch, IN), -ESHUTDOWN);
    test_ok(weir_watch_stop(quiet.watch));
    end(&quiet);
    assert_int_equal(pthread_create(&thread, NULL, unref_elsewhere, ready.watch), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    close(fd);
    close(fds[1]);
}

static void a_hundred_watches_each_hear_their_own(void **state) {
    test_fixture *f = *state;
    enum { COUNT = 100 };
    static lookout all[COUNT];
    int fds[COUNT];
    uint64_t random = 3;
    for (int i = 0; i < COUNT; i++) {
        fds[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
        begin(f, &all[i], fds[i], IN);
    }
    for (int round = 0; round < 200; round++) {
        int i = (int)(test_random(&random) % COUNT);
        unsigned count = all[i].count, sum = 0;
        add(fds[i]);
        run_until(f, all[i].count > count);
        read_counter(fds[i]);
        run_turns(f, 2);
        for (int j = 0; j < COUNT; j++)
            sum += j == i ? 0 : all[j].count;
        count = all[i].count;
        run_turns(f, 1);
        assert_int_equal(all[i].count, count);
        for (int j = 0; j < COUNT; j++)
            sum -= j == i ? 0 : all[j].count;
        assert_int_equal(sum, 0);
    }
    for (int i = 0; i < COUNT; i++) {
        end(&all[i]);
        close(fds[i]);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        loop_test(a_watch_is_heard_once_a_turn_as_long_as_its_descriptor_is_ready),
        loop_test(a_watch_costs_no_system_call_but_the_turns),
        loop_test(a_watch_that_is_not_ready_lets_the_loop_sleep),
        loop_test(a_sleeping_loop_is_woken_and_run_ends_with_the_last_watch),
        loop_test(a_watch_changes_between_reading_and_writing),
        loop_test(waiting_for_room_sleeps_although_the_peer_has_ended),
        loop_test(ends_and_errors_are_heard_whatever_is_asked_for),
        loop_test(a_connection_that_is_refused_is_heard),
        loop_test(what_is_always_ready_is_always_heard),
        loop_test(what_is_not_open_is_told_once),
        loop_test(two_watches_of_one_descriptor_both_hear),
        loop_test(a_stopped_watchs_descriptor_may_be_closed_and_its_number_used_again),
        loop_test(run_returns_only_when_the_kernel_has_let_go),
        loop_test(closing_a_watched_descriptor_breaks_nothing),
        loop_test(a_ready_watch_that_another_one_stops_is_not_heard),
        loop_test(a_watch_may_be_dropped_in_its_callback),
        loop_test(a_watch_may_be_dropped_on_another_thread),
        loop_test(a_loop_closes_with_watches_started),
        loop_test(a_hundred_watches_each_hear_their_own),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
