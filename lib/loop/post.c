/* SPDX-License-Identifier: MIT */
#include "loop/loop.h"

/* Work from any thread: a stack that many push and the loop takes as a whole, then runs from its oldest end. */

weir__post weir__loop_posts_closed;
#define CLOSED (&weir__loop_posts_closed)

typedef struct user_post {
    weir__post post;
    weir_post_fn function;
    void *userdata;
} user_post;

bool weir__loop_push(weir_loop *loop, weir__post *post) {
    weir__post *top = atomic_load(&loop->posts);
    do {
        if (top == CLOSED)
            return false;
        post->next = top;
    } while (!atomic_compare_exchange_weak(&loop->posts, &top, post));
    weir__waker_wake(loop->waker);
    return true;
}

static unsigned run(weir_loop *loop, weir__post *newest) {
    weir__post *oldest = NULL;
    unsigned count = 0;
    while (newest != NULL) {
        weir__post *next = newest->next;
        newest->next = oldest;
        oldest = newest;
        newest = next;
    }
    while (oldest != NULL && !weir__loop_is_lost(loop)) {
        weir__post *post = oldest;
        oldest = post->next;
        post->run(loop, post);
        count++;
    }
    return count;
}

unsigned weir__loop_run_posts(weir_loop *loop) {
    return weir__loop_has_posts(loop) ? run(loop, atomic_exchange(&loop->posts, NULL)) : 0;
}

void weir__loop_refuse_posts(weir_loop *loop) {
    (void)run(loop, atomic_exchange(&loop->posts, CLOSED));
}

static void run_user_post(weir_loop *loop, weir__post *post) {
    user_post it = *WEIR__CONTAINER(post, user_post, post);
    weir__free(loop->allocator, post, sizeof it);
    loop->posts_run++;
    it.function(loop, it.userdata);
}

WEIR_API int weir_loop_post(weir_loop *loop, weir_post_fn function, void *userdata) {
    if (loop == NULL || function == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop, or no function");
    if (weir__fork_is_child(loop->generation))
        return -ECHILD;
    user_post *post = weir__alloc(loop->allocator, sizeof *post);
    if (post == NULL)
        return -ENOMEM;
    *post = (user_post){ .post = { .run = run_user_post }, .function = function, .userdata = userdata };
    if (weir__loop_push(loop, &post->post))
        return 0;
    weir__free(loop->allocator, post, sizeof *post);
    return -ESHUTDOWN;
}
