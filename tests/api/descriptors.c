/* SPDX-License-Identifier: MIT */
#include "api/witness.h"

#include <stdio.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* Out of descriptors: what needs one says -EMFILE and changes nothing, what needs none works. */

static struct rlimit old_limit;
static int fillers[256];
static int filler_count;

/* Leave exactly @spare descriptors to be had. */
static void exhaust(int spare) {
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old_limit), 0);
    struct rlimit low = old_limit;
    int top = dup(0);
    assert_true(top >= 0 && top < 200);
    low.rlim_cur = 200;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    fillers[filler_count++] = top;
    for (int fd; (fd = dup(0)) >= 0;)
        fillers[filler_count++] = fd;
    assert_true(filler_count >= spare);
    while (spare-- > 0)
        close(fillers[--filler_count]);
}

static void relieve(void) {
    while (filler_count > 0)
        close(fillers[--filler_count]);
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &old_limit), 0);
}

static uint32_t mode_of_new_loop(void) {
    weir_loop_info info = { .size = sizeof info };
    weir_loop *loop;
    if (weir_loop_new(NULL, &loop) != 0 || weir_loop_get_info(loop, &info) != 0 || weir_loop_close(loop) != 0)
        return 0;
    weir_loop_unref(loop);
    return info.backend;
}

/* The first loop of a process tries what the kernel can do, and needs descriptors for that: being without them must not
 * be taken for the kernel's answer. A child finds that out, undisturbed. */
static void a_loop_needs_its_descriptors_and_gets_them_later(void **state) {
    (void)state;
    int status, last = -1;
    test_memory memory;
    test_memory_init(&memory);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        _exit((int)mode_of_new_loop());
    assert_int_equal(waitpid(child, &status, 0), child);
    unsigned fds = test_count_fds();
    for (int spare = 0; last != 0 && spare < 20; spare++) {
        char reason[WEIR_REASON_SIZE] = "";
        weir_loop_options options = {
            .size = sizeof options, .allocator = &memory.allocator, .reason = reason, .reason_size = sizeof reason
        };
        weir_loop *loop = NULL;
        exhaust(spare);
        last = weir_loop_new(&options, &loop);
        if (last == 0)
            last = weir_loop_run(loop) | weir_loop_close(loop); /* and that is all it ever needs */
        relieve();
        if (loop != NULL) {
            assert_int_equal(last, 0);
            weir_loop_unref(loop);
        } else {
            assert_int_equal(last, -EMFILE);
            assert_true(strlen(reason) > 4);
        }
        assert_int_equal(test_count_fds(), fds);
        assert_int_equal(atomic_load(&memory.live_blocks), 0);
    }
    assert_int_equal(last, 0);
    assert_int_equal(mode_of_new_loop(), WEXITSTATUS(status));
}

static void dial_and_listen_need_one_descriptor(void **state) {
    test_fixture *f = *state;
    weir_stream *streams[2] = { NULL, NULL };
    weir_listener *listeners[2] = { NULL, NULL };
    int results[6];
    char path[WEIR_ADDRESS_SIZE];
    snprintf(path, sizeof path, "unix:/tmp/weir-api-%d-fds", (int)getpid());
    unsigned fds = test_count_fds();
    exhaust(0);
    results[0] = weir_stream_dial(f->loop, "127.0.0.1:1", NULL, &streams[0]);
    results[1] = weir_stream_dial(f->loop, "unix:@nobody", NULL, &streams[0]);
    results[2] = weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listeners[0]);
    results[3] = weir_listener_open(f->loop, path, NULL, &listeners[0]);
    relieve();
    for (int i = 0; i < 4; i++)
        assert_int_equal(results[i], -EMFILE);
    assert_null(streams[0]);
    assert_null(listeners[0]);
    assert_int_equal(access(path + 5, F_OK), -1);
    assert_int_equal(test_count_fds(), fds);
    assert_int_equal(test_loop_stats(f).streams_open + test_loop_stats(f).listeners_open, 0);
    exhaust(2);
    results[0] = weir_stream_dial(f->loop, "127.0.0.1:1", NULL, &streams[0]);
    results[1] = weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listeners[0]);
    results[2] = weir_stream_dial(f->loop, "127.0.0.1:1", NULL, &streams[1]);
    results[3] = weir_listener_open(f->loop, "127.0.0.1:0", NULL, &listeners[1]);
    relieve();
    assert_int_equal(results[0], 0);
    assert_int_equal(results[1], 0);
    assert_int_equal(results[2], -EMFILE);
    assert_int_equal(results[3], -EMFILE);
    assert_null(streams[1]);
    assert_null(listeners[1]);
    test_ok(weir_stream_abort(streams[0]));
    test_ok(weir_listener_close(listeners[0]));
    run_until(f, test_loop_stats(f).streams_open + test_loop_stats(f).listeners_open == 0);
    assert_int_equal(test_count_fds(), fds);
}

static void count_post(weir_loop *loop, void *userdata) {
    (void)loop;
    ++*(unsigned *)userdata;
}

static void count_fire(weir_timer *timer, void *userdata) {
    (void)timer;
    ++*(unsigned *)userdata;
}

static void what_needs_no_descriptor_works_without(void **state) {
    test_fixture *f = *state;
    static witness w;
    weir_timer *timer;
    weir_stream *stream;
    unsigned count = 0;
    int fds[2], fd, r[8];
    char got[5];
    int peer = witness_pair(f, &w, true, NULL);
    test_pair(true, fds);
    exhaust(0);
    r[0] = weir_stream_adopt(f->loop, fds[0], NULL, &stream);
    r[1] = r[0] < 0 ? r[0] : weir_stream_detach(stream, &fd);
    r[2] = weir_timer_new(f->loop, count_fire, &count, &timer);
    r[3] = r[2] < 0 ? r[2] : weir_timer_start(timer, 0, 0);
    r[4] = weir_loop_post(f->loop, count_post, &count);
    r[5] = weir_stream_write(w.stream, "hello", 5);
    r[6] = 0;
    for (int i = 0; i < 1000 && (count < 2 || w.size < 5); i++) {
        if (i == 3 && send(peer, "there", 5, 0) != 5)
            r[6] = -EIO;
        r[7] = weir_loop_run_once(f->loop, 1000 * 1000);
    }
    relieve();
    for (int i = 0; i < 7; i++)
        assert_int_equal(r[i], 0);
    assert_int_equal(count, 2);
    assert_int_equal(w.size, 5);
    assert_int_equal(fd, fds[0]);
    peer_receive(peer, got, 5);
    assert_memory_equal(got, "hello", 5);
    weir_timer_unref(timer);
    close(fd);
    close(fds[1]);
    close(peer);
}

/* Accepting rests, says so in a statistic, and goes on by itself. */
static void a_listener_without_descriptors_rests_and_goes_on(void **state) {
    test_fixture *f = *state;
    static witness_gate gate;
    int peers[5], r = 0;
    witness_listen(f, &gate, "127.0.0.1:0", NULL);
    test_ok(weir_listener_pause(gate.listener)); /* the kernel reads the limit when an accept is armed */
    run_turns(f, 2);
    for (int i = 0; i < 5; i++)
        peers[i] = test_connect(gate.listener);
    exhaust(2);
    r = weir_listener_resume(gate.listener);
    for (int i = 0; i < 20 && r >= 0; i++)
        r = weir_loop_run_once(f->loop, 1000 * 1000);
    unsigned meanwhile = gate.count;
    relieve();
    assert_true(r >= 0);
    assert_int_equal(meanwhile, 2);
    assert_true(test_loop_stats(f).accept_stalls > 0);
    run_until(f, gate.count == 5); /* nobody in this loop has closed anything */
    for (int i = 0; i < 5; i++)
        close(peers[i]);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_loop_needs_its_descriptors_and_gets_them_later),
        loop_test(dial_and_listen_need_one_descriptor),
        loop_test(what_needs_no_descriptor_works_without),
        loop_test(a_listener_without_descriptors_rests_and_goes_on),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
