/* SPDX-License-Identifier: MIT */
#ifndef WEIR_LOOP_LOOP_H
#define WEIR_LOOP_LOOP_H

/*
 * The loop: when things happen. Sockets take part in it as actors; the loop knows of them only that they can be
 * settled and ended.
 *
 * Calls of the application change an actor's wishes and mark it; nothing is done inside the call. The loop settles
 * marked actors once a turn: that is where operations start, descriptors close and deferred callbacks run. So no
 * call needs the kernel, none calls back, several changes in one turn cost one operation, and any callback may
 * call anything.
 *
 * Holders have bytes of streams beyond their callbacks. Once a turn's callbacks are over, and before the loop sleeps,
 * those that have changed are tidied: they may pin a whole buffer with a few bytes no longer than that.
 *
 *   turn = settle what is marked, tidy; submit, maybe spin, and sleep; deliver completions; fire timers; run posts; settle, tidy
 */

#include "backend/backend.h"
#include "backend/waker.h"
#include "base/heap.h"
#include "base/list.h"
#include "edge/sys.h"
#include "loop/spin.h"
#include "memory/pool.h"
#include "memory/sendq.h"
#include "weir/loop.h"

typedef struct weir__actor weir__actor;

typedef struct weir__actor_verbs {
    /* Make what is so into what is wished. May free the actor. */
    void (*settle)(weir__actor *actor);
    /* End without grace, and tell why: enum weir_close_reason. */
    void (*end)(weir__actor *actor, int reason);
    /* The loop drains: a listener closes, a stream goes on. */
    void (*drain)(weir__actor *actor);
    /* The loop's close is over: free what weir__loop_keep() kept. NULL: it keeps nothing. */
    void (*release)(weir__actor *actor);
} weir__actor_verbs;

struct weir__actor {
    const weir__actor_verbs *verbs;
    weir__link marked; /* loop.marked, while there is something to settle; loop.kept, once it has ended */
    weir__link member; /* loop.actors, until it has ended */
};

/* Something that holds what streams have received: a chain. */
typedef struct weir__holder weir__holder;

typedef struct weir__holder_verbs {
    /* Pin less, without calling back. 0; -errno: it tries again in the next turn. */
    int (*tidy)(weir__holder *holder);
    /* The loop closes: from here on the holder is on its own, and any thread may free it. */
    void (*part)(weir__holder *holder);
} weir__holder_verbs;

struct weir__holder {
    const weir__holder_verbs *verbs;
    weir__link untidy; /* loop.untidy, while there may be something to tidy */
    weir__link member; /* loop.holders, until the loop's close */
};

/* An actor that waits for a descriptor to become free. */
typedef struct weir__stall {
    weir__link link; /* loop.stalled */
    weir__actor *actor;
} weir__stall;

/* Something that is due at a time. */
typedef struct weir__timeout weir__timeout;
struct weir__timeout {
    weir__heap_node node;
    void (*fire)(weir__timeout *timeout); /* taken out of the heap before */
};

/* Something to be run by the loop's thread. */
typedef struct weir__post weir__post;
struct weir__post {
    weir__post *next; /* loop.posts, last one first */
    void (*run)(weir_loop *loop, weir__post *post);
};

enum weir__phase { WEIR__PHASE_RESTING, WEIR__PHASE_RUNNING, WEIR__PHASE_CLOSING, WEIR__PHASE_CLOSED };

struct weir_loop {
    _Atomic(uint32_t) refs;   /* the loop's own until it is closed, the application's, one each stream, ... */
    uint32_t generation;      /* see base/fork.h */
    _Atomic(uintptr_t) owner; /* the thread it is bound to; 0: none yet */
    const weir_allocator *allocator;
    weir__waker *waker;
    weir_pool *pool;
    weir__backend *backend;
    weir__spin spin;
    int64_t now;    /* of this turn */
    int64_t ticked; /* when the backend's tick last was */
    uint8_t phase;  /* enum weir__phase */
    bool is_draining, is_grace_over;
    bool is_unwatched; /* nobody looks between turns: weir_loop_run */
    uint32_t flags;    /* WEIR_LOOP_* */
    uint32_t max_streams, max_turn_events;
    weir__link marked;   /* weir__actor.marked */
    weir__link actors;   /* weir__actor.member */
    weir__link kept;     /* weir__actor.marked */
    weir__link stalled;  /* weir__stall.link */
    weir__link holders;  /* weir__holder.member */
    weir__link untidy;   /* weir__holder.untidy */
    weir__link signals;  /* weir_signal.started */
    weir__heap timers;   /* weir__timeout.node */
    weir__timeout grace; /* of drain */
    weir__range_cache ranges;
    weir_pressure_fn on_pressure;
    void *pressure_userdata;
    uint64_t moved_bytes;     /* received and sent when somebody last looked, */
    int64_t moved_at;         /* and when that was another number than before */
    uint32_t pressure_told;   /* enum weir_pressure_level */
    bool is_pressure_renewed; /* while it was told: somebody else hears of it from now on */

    _Atomic(weir__post *) posts; /* a stack; weir__loop_posts_closed from the loop's close */
    _Atomic(uint32_t) is_stopping;

    uint32_t streams_open, streams_unstarted, listeners_open, timers_started, watches_started, signals_started;
    uint32_t pollers_leaving; /* stopped, but the kernel may not be done with their descriptors */
    uint64_t turns, bytes_out, accepted, accept_stalls, posts_run;

    uint32_t asked;                /* enum weir_backend */
    char reason[WEIR_REASON_SIZE]; /* why not a better mode */
};

/* As weir_loop_new(), with what only tests set. */
int weir__loop_new(const weir_loop_options *options, const weir__tuning *tuning, weir_loop **ret_loop);

/* May the calling thread use it? 0; -ECHILD; -EPERM. */
static inline int weir__loop_check(const weir_loop *loop) {
    if (weir__fork_is_child(loop->generation))
        return -ECHILD;
    uintptr_t owner = atomic_load_explicit(&loop->owner, memory_order_relaxed);
    if (WEIR__UNLIKELY(owner != 0 && owner != weir__sys_thread()))
        return WEIR__MISTAKE(-EPERM, "this is another thread's loop");
    return 0;
}

/* Has a callback forked, and is this the child, which came back from it? Then nothing of the loop's is here. */
static inline bool weir__loop_is_lost(const weir_loop *loop) {
    return weir__fork_is_child(loop->generation);
}

/* As above, and may something new be made in it? -ESHUTDOWN. */
int weir__loop_check_open(const weir_loop *loop);

/* Something is to be done before the next sleep. */
bool weir__loop_has_work(const weir_loop *loop);
/* Hand over what was started, and sleep for @sleep_ns unless there is work. 0; -errno. */
int weir__loop_sleep(weir_loop *loop, int64_t sleep_ns);
/* Likewise, but look out for what comes first, where that is likely to pay. */
int weir__loop_spin(weir_loop *loop, int64_t sleep_ns);

/* When did bytes last come or go, on any of its streams? Or up to a second later. */
int64_t weir__loop_moved_at(weir_loop *loop);

/* Nothing is open that would keep run going. */
bool weir__loop_is_idle(const weir_loop *loop);
/* A sentence for the caller, cut to its room. */
void weir__reason_copy(char *reason, size_t size, const char *text);

/* What time is it? In a turn, the turn's. */
static inline int64_t weir__loop_now(const weir_loop *loop) {
    return loop->phase == WEIR__PHASE_RESTING ? weir__sys_now() : loop->now;
}

void weir__loop_add(weir_loop *loop, weir__actor *actor, const weir__actor_verbs *verbs);
void weir__loop_remove(weir_loop *loop, weir__actor *actor);
static inline void weir__loop_mark(weir_loop *loop, weir__actor *actor) {
    if (!weir__link_is_listed(&actor->marked) && weir__link_is_listed(&actor->member))
        weir__list_append(&loop->marked, &actor->marked);
}
/* It was removed by the loop's close, and its owner was not told: its memory stays until the last callback is over. */
void weir__loop_keep(weir_loop *loop, weir__actor *actor);

void weir__loop_add_holder(weir_loop *loop, weir__holder *holder, const weir__holder_verbs *verbs);
void weir__loop_remove_holder(weir__holder *holder);
/* It has changed: tidy it at the end of the turn, or not. */
void weir__loop_set_untidy(weir_loop *loop, weir__holder *holder, bool is_untidy);

/* A timeout has a place promised from init to deinit, so that setting it cannot fail. 0; -ENOMEM. */
int weir__timeout_init(weir_loop *loop, weir__timeout *timeout, void (*fire)(weir__timeout *timeout));
void weir__timeout_deinit(weir_loop *loop, weir__timeout *timeout);
/* @delay_ns from now; WEIR_NEVER stops it. */
void weir__timeout_set(weir_loop *loop, weir__timeout *timeout, int64_t delay_ns);

/* The loop's close: no timer of the application fires after this. */
void weir__loop_stop_timers(weir_loop *loop);

extern weir__post weir__loop_posts_closed; /* what loop.posts is from the loop's close on */
/* Any thread. false: the loop is closed, and it will not run. */
bool weir__loop_push(weir_loop *loop, weir__post *post);
/* The loop's thread, at its close: from here on weir__loop_push() says false. */
void weir__loop_refuse_posts(weir_loop *loop);
/* Run what has been posted, in order. Return: how many. */
unsigned weir__loop_run_posts(weir_loop *loop);
static inline bool weir__loop_has_posts(const weir_loop *loop) {
    weir__post *top = atomic_load(&loop->posts);
    return top != NULL && top != &weir__loop_posts_closed;
}

/* Mark those who wait for a descriptor, or for a stream to end: one may have become free. */
void weir__loop_unstall(weir_loop *loop);
/* Close a descriptor of ours, and tell those who wait. */
void weir__loop_close_fd(weir_loop *loop, int fd);

#endif
