/* SPDX-License-Identifier: MIT */
#include "weir/chain.h"

#include "memory/chain.h"
#include "socket/stream.h"

/*
 * Chains as the application has them: whose thread it is, what is to be tidied at the end of the turn, and who frees one.
 *
 * While its loop is open a chain is freed by the loop's thread, whose are the ranges and the local counts. When the loop
 * closes it parts from its chains: each counts in `shared` only, and the last unref may be any thread's. What they hold
 * stays readable.
 */

struct weir_chain {
    weir__chain bytes;
    weir__holder holder;
    weir__post ending; /* the last unref, when it is another thread's */
    _Atomic(uint32_t) refs;
    weir_loop *loop; /* referenced */
};

static int tidy(weir__holder *holder) {
    return weir__chain_tidy(&WEIR__CONTAINER(holder, weir_chain, holder)->bytes);
}

static void part(weir__holder *holder) {
    weir__chain_part(&WEIR__CONTAINER(holder, weir_chain, holder)->bytes);
}

static const weir__holder_verbs verbs = { .tidy = tidy, .part = part };

static int check(const weir_chain *chain) {
    if (WEIR__UNLIKELY(chain == NULL))
        return WEIR__MISTAKE(-EINVAL, "no chain");
    return weir__loop_check(chain->loop);
}

/* The bytes have changed, or how they lie. Last in a call: a release function may do anything, and unref the chain. */
static void changed(weir_chain *chain) {
    weir__loop_set_untidy(chain->loop, &chain->holder, chain->bytes.queue.bytes > 0);
    if (WEIR__LIKELY(chain->bytes.late == NULL))
        return;
    weir_chain_ref(chain);
    weir__chain_release(&chain->bytes);
    weir_chain_unref(chain);
}

/* ---- life ------------------------------------------------------------------------------------------- */

WEIR_API int weir_chain_new(weir_loop *loop, size_t limit_bytes, weir_chain **ret_chain) {
    if (loop == NULL || limit_bytes == 0 || ret_chain == NULL)
        return WEIR__MISTAKE(-EINVAL, "no loop, no limit, or nowhere to put the chain");
    int r = weir__loop_check_open(loop);
    if (r < 0)
        return r;
    weir_chain *chain = weir__alloc_zeroed(loop->allocator, sizeof *chain);
    if (chain == NULL)
        return -ENOMEM;
    atomic_init(&chain->refs, 1);
    chain->loop = weir_loop_ref(loop);
    weir__chain_init(&chain->bytes, limit_bytes, &loop->ranges, loop->pool);
    weir__loop_add_holder(loop, &chain->holder, &verbs);
    *ret_chain = chain;
    return 0;
}

WEIR_API weir_chain *weir_chain_ref(weir_chain *chain) {
    if (chain != NULL && !weir__fork_is_child(chain->loop->generation))
        atomic_fetch_add_explicit(&chain->refs, 1, memory_order_relaxed);
    return chain;
}

static void free_chain(weir_chain *chain) {
    weir_loop *loop = chain->loop;
    weir__chain_clear(&chain->bytes);
    weir__chain_release(&chain->bytes);
    weir__free(loop->allocator, chain, sizeof *chain);
    weir_loop_unref(loop);
}

static void end(weir_loop *loop, weir__post *post) {
    weir_chain *chain = WEIR__CONTAINER(post, weir_chain, ending);
    (void)loop;
    weir__loop_remove_holder(&chain->holder);
    free_chain(chain);
}

WEIR_API weir_chain *weir_chain_unref(weir_chain *chain) {
    if (chain == NULL || weir__fork_is_child(chain->loop->generation) ||
        atomic_fetch_sub_explicit(&chain->refs, 1, memory_order_acq_rel) != 1)
        return NULL;
    weir_loop *loop = chain->loop;
    chain->ending.run = end;
    if (atomic_load(&loop->owner) == weir__sys_thread()) {
        end(loop, &chain->ending);
        return NULL;
    }
    weir_loop_ref(loop); /* the chain's own may be gone, with the chain, as soon as it is pushed */
    if (!weir__loop_push(loop, &chain->ending)) {
        /* The loop has parted from it. Its thread may still use other chains, and with them the cache. */
        chain->bytes.cache = NULL;
        free_chain(chain);
    }
    weir_loop_unref(loop);
    return NULL;
}

/* ---- bytes ------------------------------------------------------------------------------------------ */

WEIR_API int weir_chain_push(weir_chain *chain, const weir_slice *slice) {
    int r = check(chain);
    if (r < 0)
        return r;
    if (slice == NULL || (slice->data == NULL && slice->size > 0))
        return WEIR__MISTAKE(-EINVAL, "no slice, or no data");
    if (chain->loop->phase >= WEIR__PHASE_CLOSING)
        return -ESHUTDOWN;
    if (slice->owner != NULL && weir__fork_is_child(weir__pool_generation(slice->owner->pool)))
        return -ECHILD;
    r = weir__chain_push(&chain->bytes, slice);
    if (r >= 0)
        changed(chain);
    return r;
}

WEIR_API size_t weir_chain_get_size(const weir_chain *chain) {
    return check(chain) < 0 ? 0 : (size_t)chain->bytes.queue.bytes;
}

WEIR_API int weir_chain_peek(weir_chain *chain, size_t offset, size_t size, const weir_slice **ret_slice) {
    int r = check(chain);
    if (r < 0)
        return r;
    if (ret_slice == NULL)
        return WEIR__MISTAKE(-EINVAL, "nowhere to put the slice");
    r = weir__chain_peek(&chain->bytes, offset, size, ret_slice);
    if (r >= 0)
        changed(chain);
    return r;
}

WEIR_API int weir_chain_take(weir_chain *chain, size_t size, weir_slice *ret_slice) {
    int r = check(chain);
    if (r < 0)
        return r;
    if (ret_slice == NULL)
        return WEIR__MISTAKE(-EINVAL, "nowhere to put the slice");
    r = weir__chain_take(&chain->bytes, size, ret_slice);
    if (r >= 0)
        changed(chain);
    return r;
}

WEIR_API int weir_chain_drop(weir_chain *chain, size_t size) {
    int r = check(chain);
    if (r >= 0)
        r = weir__chain_reach(&chain->bytes, 0, size);
    if (r < 0)
        return r;
    weir__chain_drop(&chain->bytes, size);
    changed(chain);
    return 0;
}

WEIR_API int64_t weir_chain_find(weir_chain *chain, size_t offset, const void *bytes, size_t size) {
    int r = check(chain);
    if (r < 0)
        return r;
    if (bytes == NULL || size == 0)
        return WEIR__MISTAKE(-EINVAL, "nothing to find");
    return weir__chain_find(&chain->bytes, offset, bytes, size);
}

WEIR_API int weir_chain_write(weir_chain *chain, size_t size, weir_stream *stream) {
    int r = check(chain);
    if (r >= 0)
        r = weir__stream_check(stream);
    if (r >= 0)
        r = weir__chain_reach(&chain->bytes, 0, size);
    if (r >= 0)
        r = weir__stream_write_ranges(stream, chain->bytes.queue.first, size);
    if (r < 0)
        return r;
    weir__chain_drop(&chain->bytes, size);
    changed(chain);
    return r;
}
