/* SPDX-License-Identifier: MIT */
/* Receiving over epoll: when a socket is read and when it is not, how much, into what, and what the kernel is asked to
 * tell. */
#include <netinet/in.h>

#include "unit/epoll_rig.h"

static owner o[4];
static int fd;
static int protocol; /* of every socket */

int __real_weir__sys_getsockopt(int socket, int level, int name, int *ret_value);
int __wrap_weir__sys_getsockopt(int socket, int level, int name, int *ret_value);

int __wrap_weir__sys_getsockopt(int socket, int level, int name, int *ret_value) {
    int error = __real_weir__sys_getsockopt(socket, level, name, ret_value);
    if (level == SOL_SOCKET && name == SO_PROTOCOL)
        *ret_value = protocol;
    return error;
}

static void receive(owner *it, int socket, uint64_t limit) {
    r.backend->verbs->receive(r.backend, &it->op, socket, limit, false);
}

/* One receive, and the kernel knows of it. */
static void open_receive(uint64_t limit) {
    owners_init(o, 4);
    protocol = IPPROTO_TCP;
    epoll_open_default();
    fd = epoll_socket();
    receive(o, fd, limit);
    epoll_expect_set(EPOLL_CTL_ADD, fd, input);
    assert_int_equal(script_last_set().data, (uint64_t)fd);
    epoll_settle();
    assert_int_equal(script_receives(), 0);
}

static void close_receive(void) {
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    epoll_close_socket(fd);
    rig_close();
}

/* ---- what the kernel is asked to tell ---------------------------------------------------------------- */

static void socket_is_registered_once(void **state) {
    (void)state;
    open_receive(0);
    for (int i = 0; i < 10; i++) {
        script_set_receive("abc", 3);
        epoll_tell(fd, EPOLLIN);
        told_bytes(o, "abc");
    }
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    receive(o, fd, 0);
    script_set_receive("def", 3);
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "def");
    assert_int_equal(script_receives(), 11);
    epoll_expect_no_set();
    close_receive();
}

static void registration_that_fails_is_the_receives_failure(void **state) {
    (void)state;
    owners_init(o, 4);
    epoll_open_default();
    fd = epoll_socket();
    script_fail(SCRIPT_EPOLL_SET, -ENOSPC, 1);
    receive(o, fd, 0);
    told_nothing_more(o); /* not inside the start */
    epoll_settle();
    told_final(o, -ENOSPC);
    receive(o, fd, 0);
    script_set_receive("abc", 3);
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "abc");
    close_receive();
}

/* Bytes for a stream that is paused: each of them would wake a loop that can do nothing. */
static void unwanted_input_is_deregistered_and_registered_again(void **state) {
    (void)state;
    open_receive(0);
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    epoll_expect_no_set(); /* none has come yet */
    epoll_tell(fd, EPOLLIN);
    epoll_expect_set(EPOLL_CTL_MOD, fd, EPOLLRDHUP);
    assert_int_equal(script_receives(), 0);
    script_set_receive("abc", 3);
    receive(o, fd, 0); /* they are there already, as we know */
    epoll_settle();
    told_bytes(o, "abc");
    epoll_expect_set(EPOLL_CTL_MOD, fd, input);
    epoll_expect_no_set();
    script_set_receive("def", 3);
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "def");
    close_receive();
}

/* A watch wants to know of the end, and not of what comes before it. */
static void input_is_unwanted_beside_a_watch(void **state) {
    (void)state;
    open_receive(0);
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    r.backend->verbs->watch(r.backend, &o[1].op, fd);
    epoll_expect_no_set();
    epoll_tell(fd, EPOLLIN | EPOLLPRI);
    epoll_expect_set(EPOLL_CTL_MOD, fd, EPOLLRDHUP);
    told_nothing_more(&o[1]);
    epoll_tell(fd, EPOLLRDHUP);
    told_result(&o[1], EPOLLRDHUP);
    r.backend->verbs->cancel(r.backend, &o[1].op);
    epoll_settle();
    told_final(&o[1], -ECANCELED);
    close_receive();
}

/* What was told while nobody listened counts. */
static void readiness_is_remembered(void **state) {
    (void)state;
    open_receive(3);
    script_set_receive("abcdef", 6);
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "abc");
    epoll_settle();
    told_final(o, -ECANCELED);
    receive(o, fd, 0); /* the kernel says nothing of it */
    epoll_settle();
    told_bytes(o, "def");
    epoll_expect_no_set();
    close_receive();
}

/* ---- when there is no more --------------------------------------------------------------------------- */

static void short_read_of_tcp_is_trusted(void **state) {
    (void)state;
    open_receive(0);
    script_set_receive("abc", 3);
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "abc");
    epoll_settle();
    assert_int_equal(script_receives(), 1);
    close_receive();
}

static void full_read_is_followed_by_another(void **state) {
    (void)state;
    static const char full[BUFFER];
    open_receive(0);
    script_set_receive(full, BUFFER);
    epoll_tell(fd, EPOLLIN);
    told_result(o, BUFFER);
    assert_int_equal(script_receives(), 2);
    epoll_settle(); /* -EAGAIN: no more until the kernel says so */
    assert_int_equal(script_receives(), 2);
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    receive(o, fd, 0); /* and this one knows it */
    epoll_settle();
    assert_int_equal(script_receives(), 2);
    epoll_expect_no_set();
    close_receive();
}

static void short_read_of_a_unix_socket_is_not_trusted(void **state) {
    (void)state;
    open_receive(0);
    protocol = 0;
    script_set_receive("abc", 3);
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "abc");
    assert_int_equal(script_receives(), 2);
    epoll_settle();
    assert_int_equal(script_receives(), 2);
    epoll_expect_no_set();
    close_receive();
}

/* Of a number that is another socket's by now, nothing is known. */
static void kind_of_a_socket_is_forgotten_with_it(void **state) {
    (void)state;
    open_receive(1);
    script_set_receive("a", 1);
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "a");
    epoll_settle();
    told_final(o, -ECANCELED);
    r.backend->verbs->forget(r.backend, fd);
    test_ok(r.backend->verbs->admit(r.backend, fd)); /* it has the same number */
    protocol = 0;
    receive(o, fd, 0);
    script_set_receive("abc", 3);
    unsigned before = script_receives();
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "abc");
    assert_int_equal(script_receives() - before, 2);
    close_receive();
}

/*
 * A receive stops at an urgent byte, whatever is behind it. And where it finds nothing, the kernel may have told of what
 * is behind the mark before: it is asked to tell again what is so.
 */
static void urgent_byte_ends_a_read_early(void **state) {
    (void)state;
    open_receive(0);
    script_set_receive("abc", 3);
    epoll_tell(fd, EPOLLIN | EPOLLPRI);
    told_bytes(o, "abc");
    assert_int_equal(script_receives(), 2);
    epoll_expect_set(EPOLL_CTL_MOD, fd, input);
    epoll_expect_no_set();
    script_set_receive("def", 3);
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "def");
    assert_int_equal(script_receives(), 3); /* the mark is behind us */
    epoll_expect_no_set();
    close_receive();
}

static void then_the_peer_has_ended(owner *it, const told *last) {
    (void)it;
    if (last->result > 0)
        script_set_receive(NULL, 0);
}

static void short_read_before_the_end_is_not_trusted(void **state) {
    (void)state;
    open_receive(0);
    o->then = then_the_peer_has_ended;
    script_set_receive("abc", 3);
    epoll_tell(fd, EPOLLIN | EPOLLRDHUP);
    told_bytes(o, "abc");
    told_final(o, 0); /* the kernel tells of an end once */
    epoll_expect_no_set();
    close_receive();
}

static void end_that_was_told_of_while_nobody_received_is_found(void **state) {
    (void)state;
    open_receive(0);
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    epoll_tell(fd, EPOLLRDHUP);
    script_set_receive(NULL, 0);
    receive(o, fd, 0);
    epoll_settle();
    told_final(o, 0);
    close_receive();
}

static void failures_and_ends_are_final(void **state) {
    (void)state;
    static const int results[] = { -ECONNRESET, -ETIMEDOUT, 0 };
    open_receive(0);
    for (size_t i = 0; i < sizeof results / sizeof *results; i++) {
        script_set_receive(NULL, results[i]);
        epoll_tell(fd, EPOLLIN | EPOLLERR | EPOLLHUP);
        told_final(o, results[i]);
        assert_true(r.backend->verbs->is_quiet(r.backend));
        receive(o, fd, 0);
        script_set_receive(NULL, -EAGAIN);
        epoll_settle();
    }
    close_receive();
}

static void interrupted_receive_is_tried_again(void **state) {
    (void)state;
    open_receive(0);
    script_fail(SCRIPT_RECEIVE, -EINTR, 2);
    script_set_receive("abc", 3);
    epoll_tell(fd, EPOLLIN);
    told_bytes(o, "abc");
    assert_int_equal(script_receives(), 3);
    close_receive();
}

/* ---- how much ---------------------------------------------------------------------------------------- */

static void limit_is_exact(void **state) {
    (void)state;
    static char bytes[3 * BUFFER];
    memcpy(bytes + BUFFER + 10, "rest", 5);
    open_receive(BUFFER + 10);
    script_set_receive(bytes, BUFFER + 14);
    epoll_tell(fd, EPOLLIN);
    told_result(o, BUFFER);
    told_result(o, 10);
    told_final(o, -ECANCELED);
    assert_int_equal(script_receives(), 2); /* none for what is behind the limit */
    receive(o, fd, 4);
    epoll_settle();
    told_bytes(o, "rest");
    told_final(o, -ECANCELED);
    assert_int_equal(r.backend->stats.bytes_in, BUFFER + 14);
    assert_int_equal(r.backend->stats.slices, 3);
    close_receive();
}

/* ---- shares ------------------------------------------------------------------------------------------ */

enum { LARGE = 64 << 10, SHARE = 256 << 10 };
static const char plenty[1 << 20];
static int other;

/* Two sockets with more than anybody would take at once. */
static void open_two(void) {
    owners_init(o, 4);
    protocol = IPPROTO_TCP;
    epoll_open(&(rig_options){ .buffer_bytes = LARGE, .budget = 64 });
    fd = epoll_socket();
    other = epoll_socket();
    receive(o, fd, 0);
    receive(&o[1], other, 0);
    script_set_receive(plenty, sizeof plenty);
    script_ready(fd, EPOLLIN);
    script_ready(other, EPOLLIN);
    rig_submit();
}

static void close_two(void) {
    r.backend->verbs->cancel(r.backend, &o[1].op);
    epoll_settle();
    epoll_close_socket(other);
    close_receive();
}

/* What a socket has is brought in one go, so that it is answered by one send, but no more than its share. */
static void shares_take_turns(void **state) {
    (void)state;
    open_two();
    for (unsigned i = 1; i <= 2; i++) {
        assert_int_equal(rig_dispatch(), 1); /* and what it brought is looked at first */
        assert_int_equal(o[0].count, i * SHARE / LARGE);
        assert_int_equal(o[1].count, (i - 1) * SHARE / LARGE);
        rig_submit();
        assert_int_equal(rig_dispatch(), 1);
        assert_int_equal(o[0].count, i * SHARE / LARGE);
        assert_int_equal(o[1].count, i * SHARE / LARGE);
        script_set_receive(plenty, sizeof plenty);
        rig_submit();
    }
    close_two();
}

static void small_receives_share_a_dispatch(void **state) {
    (void)state;
    open_two();
    script_set_receive("abc", 3);
    assert_int_equal(rig_dispatch(), 2);
    told_bytes(&o[0], "abc");
    told_nothing_more(&o[1]);
    assert_int_equal(script_receives(), 2); /* none for what is not there */
    close_two();
}

static void wish_for_something_else(owner *it, const told *last) {
    (void)last;
    it->op.is_stale = true;
}

/* Who has been paused inside, say, gets nothing more before that has been settled. */
static void share_ends_where_the_owner_may_wish_for_something_else(void **state) {
    (void)state;
    open_two();
    o[0].then = wish_for_something_else;
    assert_int_equal(rig_dispatch(), 1);
    assert_int_equal(o[0].count, 1);
    rig_submit();
    o[0].then = NULL;
    o[0].op.is_stale = false;
    assert_int_equal(rig_dispatch(), 1);
    assert_int_equal(o[1].count, SHARE / LARGE);
    assert_int_equal(o[0].count, 1);
    close_two();
}

static void cancel_inside(owner *it, const told *last) {
    if (!last->is_final)
        r.backend->verbs->cancel(r.backend, &it->op);
}

static void share_ends_where_it_is_cancelled(void **state) {
    (void)state;
    open_two();
    o[0].then = cancel_inside;
    rig_dispatch();
    assert_int_equal(o[0].count, 1);
    rig_turn();
    assert_int_equal(o[0].count, 2);
    assert_true(o[0].told[1].is_final);
    o[0].then = NULL;
    o[0].finals = 0;
    receive(o, fd, 0);
    close_two();
}

static void nothing_was_brought_yet(owner *it, const told *last) {
    (void)it, (void)last;
    told_nothing_more(&o[1]);
}

static weir__range_cache cache;
static weir__sendq queue;

static void open_queue(void) {
    weir_slice slice;
    cache = (weir__range_cache){ .allocator = &r.memory.allocator, .owner = &r };
    queue = (weir__sendq){ 0 };
    test_ok(weir_slice_copy(r.pool, "answer", 6, &slice));
    test_ok(weir__sendq_push(&queue, &cache, &slice));
    weir_slice_unref(&slice);
}

static void close_queue(void) {
    weir__sendq_clear(&queue, &cache);
    weir__range_cache_deinit(&cache);
}

/* What is to go out lies in the cache, and goes before anything else is brought. */
static void sends_go_before_receives(void **state) {
    (void)state;
    open_two();
    open_queue();
    assert_int_equal(rig_dispatch(), 1);
    assert_int_equal(o[0].count, SHARE / LARGE);
    int third = epoll_socket();
    o[2].then = nothing_was_brought_yet;
    r.backend->verbs->send(r.backend, &o[2].op, third, &queue, false); /* other is ready, and was first */
    rig_submit();
    assert_int_equal(rig_dispatch(), 2);
    told_final(&o[2], 6);
    assert_int_equal(o[1].count, SHARE / LARGE);
    close_queue();
    epoll_close_socket(third);
    close_two();
}

/* Where there was always more to send than a turn may do, nothing was ever received, nor accepted, nor connected. */
static void sends_leave_half_of_a_turn_to_the_others(void **state) {
    (void)state;
    for (unsigned max = 1; max <= 3; max++) {
        open_two();
        open_queue();
        script_set_receive("abc", 3);
        int fds[2] = { epoll_socket(), epoll_socket() };
        for (unsigned turns = 0; turns < 4; turns++) {
            for (unsigned i = 0; i < 2; i++) {
                o[2 + i].finals = 0;
                if (weir__op_is_idle(&o[2 + i].op))
                    r.backend->verbs->send(r.backend, &o[2 + i].op, fds[i], &queue, false);
            }
            assert_true(r.backend->verbs->dispatch(r.backend, max) <= max);
        }
        assert_true(o[0].count > 0);
        assert_true(o[2].count + o[3].count >= 2);
        for (unsigned i = 0; i < 2; i++) {
            r.backend->verbs->cancel(r.backend, &o[2 + i].op);
            o[2 + i].finals = 0;
        }
        epoll_settle();
        close_queue();
        epoll_close_socket(fds[0]);
        epoll_close_socket(fds[1]);
        close_two();
    }
}

/* The share is one of bytes, however little of the first buffer was left. */
static void share_is_not_overdrawn(void **state) {
    (void)state;
    open_two();
    script_set_receive(plenty, LARGE / 2); /* into the first buffer */
    rig_dispatch();
    script_set_receive(plenty, sizeof plenty);
    uint64_t before = r.backend->stats.bytes_in;
    for (unsigned i = 0; r.backend->stats.bytes_in == before && i < 4; i++) {
        script_ready(fd, EPOLLIN);
        rig_turn();
    }
    assert_int_equal(r.backend->stats.bytes_in - before, SHARE);
    close_two();
}

/* ---- into what --------------------------------------------------------------------------------------- */

enum { LEAST = BUFFER / 16 };
static weir_slice kept;

static void keep(owner *it, const told *last) {
    if (last->result > 0 && kept.data == NULL)
        weir_slice_ref(&it->slice, &kept);
}

/* Two receives, of which the first leaves @rest of a buffer: do they share it? */
static bool share_a_buffer(int rest) {
    static const char bytes[BUFFER];
    kept = (weir_slice){ 0 };
    open_receive(0);
    o->then = keep;
    script_set_receive(bytes, BUFFER - rest);
    epoll_tell(fd, EPOLLIN);
    told_result(o, BUFFER - rest);
    script_set_receive(bytes, LEAST);
    epoll_tell(fd, EPOLLIN);
    const told *second = next_told(o);
    bool is_behind = second->data == (const uint8_t *)kept.data + BUFFER - rest;
    assert_int_equal(second->result, is_behind && rest < LEAST ? rest : LEAST);
    weir_slice_unref(&kept);
    close_receive();
    return is_behind;
}

static void small_rest_of_a_buffer_is_left(void **state) {
    assert_true(share_a_buffer(LEAST));
    script_end();
    epoll_setup(state);
    assert_false(share_a_buffer(LEAST - 1));
    script_end();
    epoll_setup(state);
    assert_true(share_a_buffer(BUFFER / 2));
}

/* ---- cancelling -------------------------------------------------------------------------------------- */

static void receive_can_be_cancelled_in_each_state(void **state) {
    (void)state;
    open_receive(0);
    r.backend->verbs->cancel(r.backend, &o->op); /* it waits */
    r.backend->verbs->cancel(r.backend, &o->op); /* it is over, and not told yet */
    told_nothing_more(o);
    epoll_settle();
    told_final(o, -ECANCELED);
    r.backend->verbs->cancel(r.backend, &o->op); /* it is idle */
    epoll_settle();
    told_nothing_more(o);
    receive(o, fd, 0);
    script_ready(fd, EPOLLIN);
    script_set_receive("abc", 3);
    rig_submit();
    r.backend->verbs->cancel(r.backend, &o->op); /* it is about to be tried */
    epoll_settle();
    told_final(o, -ECANCELED);
    assert_int_equal(script_receives(), 0);
    receive(o, fd, 0); /* nothing was lost */
    epoll_settle();
    told_bytes(o, "abc");
    close_receive();
}

static void cancel(owner *it, const told *last) {
    if (!last->is_final)
        r.backend->verbs->cancel(r.backend, &it->op);
}

static void receive_can_be_cancelled_inside_its_completion(void **state) {
    (void)state;
    static const char bytes[2 * BUFFER];
    static const uint64_t limits[] = { 0, BUFFER, 1 }; /* ready for more; at its limit, and it has ended itself */
    open_receive(0);
    r.backend->verbs->cancel(r.backend, &o->op);
    epoll_settle();
    told_final(o, -ECANCELED);
    o->then = cancel;
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        script_set_receive(bytes, sizeof bytes);
        receive(o, fd, limits[i]);
        epoll_tell(fd, EPOLLIN);
        (void)next_told(o);
        told_final(o, -ECANCELED);
    }
    close_receive();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        epoll_test(socket_is_registered_once),
        epoll_test(registration_that_fails_is_the_receives_failure),
        epoll_test(unwanted_input_is_deregistered_and_registered_again),
        epoll_test(input_is_unwanted_beside_a_watch),
        epoll_test(readiness_is_remembered),
        epoll_test(short_read_of_tcp_is_trusted),
        epoll_test(full_read_is_followed_by_another),
        epoll_test(short_read_of_a_unix_socket_is_not_trusted),
        epoll_test(kind_of_a_socket_is_forgotten_with_it),
        epoll_test(urgent_byte_ends_a_read_early),
        epoll_test(short_read_before_the_end_is_not_trusted),
        epoll_test(end_that_was_told_of_while_nobody_received_is_found),
        epoll_test(failures_and_ends_are_final),
        epoll_test(interrupted_receive_is_tried_again),
        epoll_test(limit_is_exact),
        epoll_test(shares_take_turns),
        epoll_test(small_receives_share_a_dispatch),
        epoll_test(share_ends_where_the_owner_may_wish_for_something_else),
        epoll_test(share_ends_where_it_is_cancelled),
        epoll_test(sends_go_before_receives),
        epoll_test(sends_leave_half_of_a_turn_to_the_others),
        epoll_test(share_is_not_overdrawn),
        epoll_test(small_rest_of_a_buffer_is_left),
        epoll_test(receive_can_be_cancelled_in_each_state),
        epoll_test(receive_can_be_cancelled_inside_its_completion),
    };
    return cmocka_run_group_tests_name("epoll-receive", tests, NULL, NULL);
}
