/* SPDX-License-Identifier: MIT */
/*
 * Cancelling. A cancellation has a completion of its own, before or after that of its target, and the kernel may
 * say that it did not find what is there all the same. The owner hears one last completion, when both have come.
 */
#include <stdlib.h>

#include "unit/rig.h"

static owner o[300];

static void cancel(owner *it) {
    r.backend->verbs->cancel(r.backend, &it->op);
}

/* A receive that is armed, and its cancellation submitted. */
static void armed_and_cancelled(script_entry **ret_receive, script_entry **ret_cancel) {
    owner_init(o);
    rig_open_default();
    *ret_receive = rig_receive(o, 7);
    cancel(o);
    rig_submit();
    *ret_cancel = script_expect_cancel(*ret_receive);
}

/* The kernel does what it was asked. */
static void obey_and_close(script_entry *receive, script_entry *cancellation) {
    script_complete(receive, -ECANCELED, 0);
    script_complete(cancellation, 0, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    rig_close();
}

/* ---- when it is asked for --------------------------------------------------------------------------- */

static void cancel_of_an_idle_operation_does_nothing(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    cancel(o);
    rig_turn();
    assert_int_equal(script_unseen(), 0);
    told_nothing_more(o);
    rig_close();
}

static void cancelled_before_it_was_submitted_the_kernel_never_hears_of_it(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    r.backend->verbs->receive(r.backend, &o->op, 7, 0, false);
    cancel(o);
    cancel(o);
    told_nothing_more(o); /* not inside the call */
    assert_true(r.backend->verbs->is_ready(r.backend));
    rig_turn();
    told_final(o, -ECANCELED);
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void cancellation_names_its_target_and_not_itself(void **state) {
    (void)state;
    script_entry *receive, *cancellation;
    armed_and_cancelled(&receive, &cancellation);
    assert_true(cancellation->sqe.addr == receive->sqe.user_data);
    assert_true(cancellation->sqe.user_data != receive->sqe.user_data);
    assert_int_equal(cancellation->sqe.cancel_flags, 0); /* by user data alone: nothing else may be hit */
    obey_and_close(receive, cancellation);
}

static void second_cancel_is_not_submitted(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    script_entry *receive = rig_receive(o, 7);
    cancel(o);
    cancel(o);
    rig_submit();
    script_entry *cancellation = script_expect_cancel(receive);
    cancel(o);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    obey_and_close(receive, cancellation);
}

/* ---- the order of the two completions ---------------------------------------------------------------- */

static void final_waits_for_the_cancellations_completion(void **state) {
    (void)state;
    script_entry *receive, *cancellation;
    armed_and_cancelled(&receive, &cancellation);
    script_complete(receive, -ECANCELED, 0);
    rig_turn();
    told_nothing_more(o);
    assert_false(r.backend->verbs->is_quiet(r.backend));
    cancel(o); /* harmless */
    rig_turn();
    script_complete(cancellation, 0, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    rig_close();
}

static void final_waits_for_the_targets_completion(void **state) {
    (void)state;
    script_entry *receive, *cancellation;
    armed_and_cancelled(&receive, &cancellation);
    script_complete(cancellation, 0, 0);
    rig_turn();
    told_nothing_more(o);
    assert_false(r.backend->verbs->is_quiet(r.backend));
    script_complete(receive, -ECANCELED, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    rig_close();
}

static void what_happened_first_is_what_is_told(void **state) {
    (void)state;
    script_entry *receive, *cancellation;
    armed_and_cancelled(&receive, &cancellation);
    script_complete(receive, 0, 0); /* the peer had ended */
    script_complete(cancellation, -ENOENT, 0);
    rig_turn();
    told_final(o, 0);
    rig_submit();
    assert_int_equal(script_unseen(), 0); /* not tried again */
    rig_close();
}

static void error_that_came_first_is_what_is_told(void **state) {
    (void)state;
    script_entry *receive, *cancellation;
    armed_and_cancelled(&receive, &cancellation);
    script_complete(cancellation, -ENOENT, 0);
    script_complete(receive, -ECONNRESET, 0);
    rig_turn();
    told_final(o, -ECONNRESET);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void cancellation_that_finds_nothing_alive_is_tried_again(void **state) {
    (void)state;
    static const int errors[] = { -ENOENT, -EALREADY, -ENOENT };
    script_entry *receive, *cancellation;
    armed_and_cancelled(&receive, &cancellation);
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++) {
        script_complete(cancellation, errors[i], 0);
        rig_turn();
        told_nothing_more(o);
        rig_submit();
        cancellation = script_expect_cancel(receive);
    }
    script_complete(receive, -ECANCELED, 0);
    script_complete(cancellation, 0, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    rig_close();
}

static void target_that_ends_before_its_cancellation_is_submitted_needs_none(void **state) {
    (void)state;
    owner_init(o);
    rig_open_default();
    script_entry *receive = rig_receive(o, 7);
    script_complete(receive, 0, 0);
    cancel(o);
    rig_dispatch();
    told_final(o, 0);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

/* ---- what comes meanwhile --------------------------------------------------------------------------- */

static void bytes_that_come_before_the_end_are_delivered(void **state) {
    (void)state;
    script_entry *receive, *cancellation;
    armed_and_cancelled(&receive, &cancellation);
    script_receive(receive, "late", 4, true);
    script_complete(cancellation, 0, 0);
    script_receive(receive, "later", 5, true);
    script_complete(receive, -ECANCELED, 0);
    rig_turn();
    told_bytes(o, "late");
    told_bytes(o, "later");
    told_final(o, -ECANCELED);
    rig_close();
}

static void multishot_that_ends_with_bytes_is_not_armed_again(void **state) {
    (void)state;
    script_entry *receive, *cancellation;
    armed_and_cancelled(&receive, &cancellation);
    script_receive(receive, "last", 4, false);
    script_complete(cancellation, -ENOENT, 0);
    rig_turn();
    told_bytes(o, "last");
    told_final(o, -ECANCELED);
    rig_submit();
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void receive_without_a_buffer_is_not_parked_when_cancelled(void **state) {
    (void)state;
    script_entry *receive, *cancellation;
    armed_and_cancelled(&receive, &cancellation);
    script_complete(receive, -ENOBUFS, 0);
    script_complete(cancellation, -ENOENT, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    assert_int_equal(rig_pool_stats().parked_streams, 0);
    rig_close();
}

static void cancel_inside(owner *it, const told *last) {
    if (!last->is_final)
        cancel(it);
}

static void cancelled_inside_its_own_completion_it_ends(void **state) {
    (void)state;
    owner_init(o);
    o->then = cancel_inside;
    rig_open_default();
    script_entry *receive = rig_receive(o, 7);
    script_receive(receive, "data", 4, true);
    rig_turn();
    told_bytes(o, "data");
    rig_submit();
    script_entry *cancellation = script_expect_cancel(receive);
    script_complete(receive, -ECANCELED, 0);
    script_complete(cancellation, 0, 0);
    rig_turn();
    told_final(o, -ECANCELED);
    rig_close();
}

/* The multishot ended with these bytes and waits to be armed again: nothing of it is in the kernel. */
static void cancelled_inside_its_last_bytes_it_is_not_armed_again(void **state) {
    (void)state;
    owner_init(o);
    o->then = cancel_inside;
    rig_open_default();
    script_receive(rig_receive(o, 7), "data", 4, false);
    rig_turn();
    told_bytes(o, "data");
    rig_turn();
    told_final(o, -ECANCELED);
    assert_int_equal(script_unseen(), 0);
    rig_close();
}

static void free_inside(owner *it, const told *last) {
    if (last->is_final)
        free(it);
}

/* Whoever is told the last may free it: neither completion may touch it any more. */
static void owner_may_free_the_operation_in_its_final(void **state) {
    (void)state;
    rig_open_default();
    for (int order = 0; order < 3; order++) {
        owner *it = malloc(sizeof *it);
        owner_init(it);
        it->then = free_inside;
        script_entry *receive = rig_receive(it, 7);
        cancel(it);
        rig_submit();
        script_entry *cancellation = script_expect_cancel(receive);
        if (order == 0)
            script_complete(cancellation, 0, 0);
        script_complete(receive, -ECANCELED, 0);
        if (order == 1)
            script_complete(cancellation, 0, 0);
        if (order == 2)
            script_complete(cancellation, -ENOENT, 0);
        rig_turn();
        assert_int_equal(script_unseen(), 0);
    }
    rig_close();
}

static void cancel_the_next(owner *it, const told *last) {
    (void)last;
    cancel(it + 1);
}

static void cancel_inside_another_ones_final_is_harmless(void **state) {
    (void)state;
    owners_init(o, 3);
    o[0].then = o[1].then = cancel_the_next;
    rig_open_default();
    for (int i = 0; i < 3; i++)
        r.backend->verbs->receive(r.backend, &o[i].op, 10 + i, 0, false);
    cancel(&o[0]);
    cancel(&o[1]);
    rig_dispatch(); /* both are finished; the third is cancelled from inside */
    told_final(&o[0], -ECANCELED);
    told_final(&o[1], -ECANCELED);
    rig_dispatch();
    told_final(&o[2], -ECANCELED);
    rig_close();
}

static void every_kind_of_operation_can_be_cancelled(void **state) {
    (void)state;
    static const struct sockaddr address;
    owners_init(o, 4);
    rig_open_default();
    r.backend->verbs->accept(r.backend, &o[0].op, 10, false);
    r.backend->verbs->accept(r.backend, &o[1].op, 11, true);
    r.backend->verbs->connect(r.backend, &o[2].op, 12, &address, sizeof address);
    r.backend->verbs->watch(r.backend, &o[3].op, 13);
    rig_submit();
    script_entry *targets[4] = { script_expect(IORING_OP_ACCEPT, 10), script_expect(IORING_OP_ACCEPT, 11),
                                 script_expect(IORING_OP_CONNECT, 12), script_expect(IORING_OP_POLL_ADD, 13) };
    for (int i = 0; i < 4; i++)
        cancel(&o[i]);
    rig_submit();
    for (int i = 0; i < 4; i++) {
        script_complete(script_expect_cancel(targets[i]), 0, 0);
        script_complete(targets[i], -ECANCELED, 0);
    }
    rig_turn();
    for (int i = 0; i < 4; i++)
        told_final(&o[i], -ECANCELED);
    rig_close();
}

/* ---- a small submission queue ------------------------------------------------------------------------ */

static const rig_options small = { .tuning = { .sq_entries = 4, .cq_entries = 1024 } };

static void hundreds_of_starts_are_all_submitted_in_order(void **state) {
    (void)state;
    owners_init(o, 300);
    rig_open(&small);
    for (int i = 0; i < 300; i++)
        r.backend->verbs->receive(r.backend, &o[i].op, 1000 + i, 0, false);
    rig_submit();
    script_entry *entries[300];
    for (int i = 0; i < 300; i++)
        entries[i] = script_expect(IORING_OP_RECV, 1000 + i);
    for (int i = 0; i < 300; i++)
        cancel(&o[i]);
    rig_submit();
    for (int i = 0; i < 300; i++)
        script_complete(script_expect_cancel(entries[i]), 0, 0);
    for (int i = 0; i < 300; i++)
        script_complete(entries[i], -ECANCELED, 0);
    rig_turn();
    rig_turn();
    for (int i = 0; i < 300; i++)
        told_final(&o[i], -ECANCELED);
    rig_close();
}

static void starts_wait_for_an_entry_while_the_kernel_is_busy(void **state) {
    (void)state;
    owners_init(o, 10);
    rig_open(&small);
    for (int i = 0; i < 10; i++)
        r.backend->verbs->receive(r.backend, &o[i].op, 1000 + i, 0, false);
    script_fail(SCRIPT_ENTER, -EBUSY, 1);
    rig_submit(); /* four lie in the queue, six wait */
    assert_int_equal(script_unseen(), 0);
    cancel(&o[7]); /* has no entry yet */
    cancel(&o[1]); /* has one, behind which its cancellation comes */
    rig_dispatch();
    told_final(&o[7], -ECANCELED);
    told_nothing_more(&o[1]);
    rig_submit();
    static const int order[] = { 0, 1, 2, 3, 4, 5, 6, 8, 9 };
    script_entry *first = NULL;
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        script_entry *entry = script_expect(IORING_OP_RECV, 1000 + order[i]);
        first = order[i] == 1 ? entry : first;
    }
    script_complete(script_expect_cancel(first), 0, 0);
    script_complete(first, -ECANCELED, 0);
    rig_turn();
    told_final(&o[1], -ECANCELED);
    rig_cancel_and_close(o, 10);
}

/* ---- at random -------------------------------------------------------------------------------------- */

enum { OWNERS = 6, STEPS = 30000 };

typedef struct player {
    weir__op op;
    unsigned started, ended;
} player;

static player players[OWNERS];

static void played(weir__op *op, const weir__completion *completion) {
    player *p = WEIR__CONTAINER(op, player, op);
    assert_int_equal(p->started, p->ended + 1); /* under way, and only once */
    p->ended += completion->final;
}

static void answer(script_entry *entry, uint64_t *random) {
    static const int ends[] = { 0, -ECONNRESET, -ECANCELED, -ENOBUFS, -EINTR };
    static const int not_found[] = { -ENOENT, -EALREADY };
    if (entry->sqe.opcode == IORING_OP_POLL_ADD)
        return;
    if (entry->sqe.opcode != IORING_OP_ASYNC_CANCEL) {
        if (test_random(random) % 3 > 0)
            script_receive(entry, "data", 4, test_random(random) % 4 > 0);
        else
            script_complete(entry, ends[test_random(random) % 5], 0);
        return;
    }
    script_entry *target = script_live_target(entry);
    uint64_t how = test_random(random) % 4;
    if (target == NULL) {
        script_complete(entry, -ENOENT, 0);
    } else if (how < 2) {
        script_complete(how == 0 ? entry : target, how == 0 ? 0 : -ECANCELED, 0);
        script_complete(how == 0 ? target : entry, how == 0 ? -ECANCELED : 0, 0);
    } else {
        script_complete(entry, not_found[how - 2], 0);
    }
}

static void random_cancellations_end_each_operation_once(void **state) {
    (void)state;
    uint64_t random = 3;
    rig_open(&(rig_options){ .budget = 3, .window = 2, .tuning = { .sq_entries = 4, .cq_entries = 64 } });
    memset(players, 0, sizeof players);
    for (int i = 0; i < OWNERS; i++)
        weir__op_init(&players[i].op, played);
    for (unsigned step = 0; step < STEPS; step++) {
        player *p = &players[test_random(&random) % OWNERS];
        script_entry *entry;
        switch (test_random(&random) % 4) {
        case 0:
            if (!weir__op_is_idle(&p->op))
                break;
            p->started++;
            r.backend->verbs->receive(r.backend, &p->op, 10, 0, false);
            break;
        case 1:
            if (test_random(&random) % 3 == 0)
                r.backend->verbs->cancel(r.backend, &p->op);
            break;
        case 2:
            entry = script_live((unsigned)(test_random(&random) % OWNERS));
            if (entry != NULL)
                answer(entry, &random);
            break;
        default:
            if (test_random(&random) % 2 == 0)
                rig_submit();
            else
                rig_dispatch();
            break;
        }
    }
    script_answer_cancels(true);
    for (unsigned turn = 0; turn < 100; turn++) {
        for (int i = 0; i < OWNERS; i++)
            r.backend->verbs->cancel(r.backend, &players[i].op);
        for (unsigned i = 0; script_live(i) != NULL;) /* cancellations from before */
            if (script_live(i)->sqe.opcode == IORING_OP_ASYNC_CANCEL)
                answer(script_live(i), &random), i = 0;
            else
                i++;
        rig_turn();
    }
    for (int i = 0; i < OWNERS; i++) {
        assert_int_equal(players[i].started, players[i].ended);
        assert_true(players[i].started > 20);
        assert_true(weir__op_is_idle(&players[i].op));
    }
    rig_close();
}

int main(void) {
    const struct CMUnitTest tests[] = {
        rig_test(cancel_of_an_idle_operation_does_nothing),
        rig_test(cancelled_before_it_was_submitted_the_kernel_never_hears_of_it),
        rig_test(cancellation_names_its_target_and_not_itself),
        rig_test(second_cancel_is_not_submitted),
        rig_test(final_waits_for_the_cancellations_completion),
        rig_test(final_waits_for_the_targets_completion),
        rig_test(what_happened_first_is_what_is_told),
        rig_test(error_that_came_first_is_what_is_told),
        rig_test(cancellation_that_finds_nothing_alive_is_tried_again),
        rig_test(target_that_ends_before_its_cancellation_is_submitted_needs_none),
        rig_test(bytes_that_come_before_the_end_are_delivered),
        rig_test(multishot_that_ends_with_bytes_is_not_armed_again),
        rig_test(receive_without_a_buffer_is_not_parked_when_cancelled),
        rig_test(cancelled_inside_its_own_completion_it_ends),
        rig_test(cancelled_inside_its_last_bytes_it_is_not_armed_again),
        rig_test(owner_may_free_the_operation_in_its_final),
        rig_test(cancel_inside_another_ones_final_is_harmless),
        rig_test(every_kind_of_operation_can_be_cancelled),
        rig_test(hundreds_of_starts_are_all_submitted_in_order),
        rig_test(starts_wait_for_an_entry_while_the_kernel_is_busy),
        rig_test(random_cancellations_end_each_operation_once),
    };
    return cmocka_run_group_tests_name("uring-cancel", tests, NULL, NULL);
}
