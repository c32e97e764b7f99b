/* SPDX-License-Identifier: MIT */
/* Polls of foreign descriptors: one answer each, whatever the kernel makes of them. */
#include "unit/rig.h"

static owner o[1];

static script_entry *expect_poll(unsigned events, bool changes) {
    script_entry *entry = script_expect(IORING_OP_POLL_ADD, 7);
    assert_int_equal(entry->sqe.len, changes ? IORING_POLL_ADD_MULTI : 0);
    assert_int_equal(entry->sqe.poll32_events, events);
    return entry;
}

static script_entry *start_poll(unsigned events) {
    owner_init(o);
    script_answer_cancels(false); /* closing the last rig said so */
    rig_open_default();
    r.backend->verbs->poll(r.backend, &o->op, 7, events);
    rig_submit();
    return expect_poll(events, false);
}

static void poll_answers_once(void **state) {
    (void)state;
    script_entry *entry = start_poll(POLLIN | POLLOUT);
    told_nothing_more(o);
    script_complete(entry, POLLIN, 0);
    rig_turn();
    told_final(o, POLLIN);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    assert_int_equal(r.backend->stats.rearms, 0);
    rig_close();
}

static void poll_tells_what_was_asked_for_and_errors(void **state) {
    (void)state;
    static const int polls[][3] = { { POLLIN, POLLIN | POLLRDHUP, POLLIN },
                                    { POLLOUT, POLLIN | POLLOUT, POLLOUT },
                                    { POLLIN, POLLERR | POLLOUT | POLLRDHUP, POLLERR },
                                    { 0, POLLHUP | POLLIN, POLLHUP } };
    for (size_t i = 0; i < sizeof polls / sizeof *polls; i++) {
        script_entry *entry = start_poll((unsigned)polls[i][0]);
        script_complete(entry, polls[i][1], 0);
        rig_turn();
        told_final(o, polls[i][2]);
        rig_close();
    }
}

static void poll_that_fails_is_final(void **state) {
    (void)state;
    static const int errors[] = { -EBADF, -ENOMEM, -EINVAL };
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_entry *entry = start_poll(POLLIN);
        script_complete(entry, errors[i], 0);
        rig_turn();
        told_final(o, errors[i]);
        rig_close();
    }
}

static void poll_that_ends_for_nothing_is_started_again(void **state) {
    (void)state;
    static const int ends[] = { -ECANCELED, 0 };
    script_entry *entry = start_poll(POLLIN);
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        script_complete(entry, ends[i], 0);
        rig_turn();
        told_nothing_more(o);
        rig_submit();
        entry = expect_poll(POLLIN, false);
    }
    assert_int_equal(r.backend->stats.rearms, 2);
    rig_cancel_and_close(o, 1);
}

/* ---- a peer that has ended --------------------------------------------------------------------------- */

/*
 * The kernel adds POLLRDHUP to what it polls for. Where the peer has shut down its side, a poll for room alone completed at
 * once, told its owner nothing, was started again, and so on: a loop that never slept.
 */
static script_entry *start_poll_after_the_peers_end(void) {
    script_entry *entry = start_poll(POLLOUT);
    script_complete(entry, POLLRDHUP, 0);
    rig_turn();
    rig_submit();
    entry = expect_poll(POLLOUT, true);
    for (int i = 0; i < 3; i++) {
        script_complete(entry, POLLRDHUP, IORING_CQE_F_MORE);
        rig_turn();
        assert_int_equal(script_unseen(), 0);
    }
    told_nothing_more(o);
    return entry;
}

static void poll_for_room_sleeps_after_the_peers_end(void **state) {
    (void)state;
    for (int target_first = 0; target_first <= 1; target_first++) {
        script_entry *entry = start_poll_after_the_peers_end();
        script_complete(entry, POLLOUT | POLLRDHUP, IORING_CQE_F_MORE);
        rig_turn();
        told_nothing_more(o); /* the kernel has to forget it first */
        rig_submit();
        script_entry *cancel = script_expect_cancel(entry);
        if (target_first)
            script_complete(entry, -ECANCELED, 0);
        script_complete(cancel, 0, 0);
        rig_turn();
        if (!target_first) {
            told_nothing_more(o);
            script_complete(entry, -ECANCELED, 0);
            rig_turn();
        }
        told_final(o, POLLOUT);
        rig_close();
    }
}

static void poll_for_changes_tells_all_it_saw(void **state) {
    (void)state;
    script_entry *entry = start_poll_after_the_peers_end();
    script_complete(entry, POLLOUT, IORING_CQE_F_MORE);
    script_complete(entry, POLLERR, 0); /* ended by the kernel, before it was to be cancelled */
    rig_turn();
    told_final(o, POLLOUT | POLLERR);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void poll_for_changes_that_the_kernel_ended_goes_on(void **state) {
    (void)state;
    static const int ends[] = { POLLRDHUP, 0, -ECANCELED };
    script_entry *entry = start_poll_after_the_peers_end();
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        script_complete(entry, ends[i], 0);
        rig_turn();
        told_nothing_more(o);
        rig_submit();
        entry = expect_poll(POLLOUT, true);
    }
    script_complete(entry, -ENOMEM, 0);
    rig_turn();
    told_final(o, -ENOMEM);
    rig_close();
}

static void next_poll_asks_plainly_again(void **state) {
    (void)state;
    script_entry *entry = start_poll_after_the_peers_end();
    script_complete(entry, POLLOUT, 0);
    rig_turn();
    told_final(o, POLLOUT);
    r.backend->verbs->poll(r.backend, &o->op, 7, POLLOUT);
    rig_submit();
    script_complete(expect_poll(POLLOUT, false), POLLRDHUP, 0);
    rig_turn();
    rig_submit();
    entry = expect_poll(POLLOUT, true);
    script_complete(entry, POLLRDHUP, IORING_CQE_F_MORE); /* the room was the last one's */
    rig_turn();
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    script_complete(entry, POLLOUT, 0);
    rig_turn();
    told_final(o, POLLOUT);
    r.backend->verbs->poll(r.backend, &o->op, 7, POLLIN);
    rig_submit();
    entry = expect_poll(POLLIN, false);
    script_complete(entry, -ECANCELED, 0); /* not what the last one saw */
    rig_turn();
    told_nothing_more(o);
    rig_cancel_and_close(o, 1);
}

/* ---- cancelling --------------------------------------------------------------------------------------- */

static void poll_is_cancelled_at_every_point(void **state) {
    (void)state;
    for (int point = 0; point < 4; point++) {
        owner_init(o);
        rig_open_default();
        script_answer_cancels(true);
        r.backend->verbs->poll(r.backend, &o->op, 7, POLLOUT);
        if (point >= 1)
            rig_submit();
        script_entry *entry = point >= 1 ? expect_poll(POLLOUT, false) : NULL;
        if (point >= 2) {
            script_complete(entry, POLLRDHUP, 0);
            rig_dispatch();
        }
        if (point >= 3) {
            rig_submit();
            expect_poll(POLLOUT, true);
        }
        r.backend->verbs->cancel(r.backend, &o->op);
        told_nothing_more(o);
        rig_turn();
        rig_turn();
        told_final(o, -ECANCELED);
        rig_close();
    }
}

static void poll_that_was_answered_before_its_cancellation_tells_that(void **state) {
    (void)state;
    script_entry *entry = start_poll(POLLIN);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_submit();
    script_entry *cancel = script_expect_cancel(entry);
    script_complete(entry, POLLIN, 0);
    script_complete(cancel, -ENOENT, 0);
    rig_turn();
    told_final(o, POLLIN);
    rig_close();
}

static void poll_for_nothing_that_is_cancelled_is_not_started_again(void **state) {
    (void)state;
    script_entry *entry = start_poll(POLLOUT);
    r.backend->verbs->cancel(r.backend, &o->op);
    rig_submit();
    script_entry *cancel = script_expect_cancel(entry);
    script_complete(entry, POLLRDHUP, 0);
    script_complete(cancel, -ENOENT, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(poll_answers_once),
        rig_test(poll_tells_what_was_asked_for_and_errors),
        rig_test(poll_that_fails_is_final),
        rig_test(poll_that_ends_for_nothing_is_started_again),
        rig_test(poll_for_room_sleeps_after_the_peers_end),
        rig_test(poll_for_changes_tells_all_it_saw),
        rig_test(poll_for_changes_that_the_kernel_ended_goes_on),
        rig_test(next_poll_asks_plainly_again),
        rig_test(poll_is_cancelled_at_every_point),
        rig_test(poll_that_was_answered_before_its_cancellation_tells_that),
        rig_test(poll_for_nothing_that_is_cancelled_is_not_started_again),
    };
    return cmocka_run_group_tests_name("uring-poll", tests, NULL, NULL);
}
