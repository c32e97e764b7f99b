/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SLICE_H
#define WEIR_SLICE_H

#include "base.h"

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

/*
 * A slice is a range of bytes and whom they belong to. It is a plain value: look at it, narrow it in place
 * (advance data, lessen size: unref needs only the owner). What must not be done is to copy the structure and unref
 * both: one reference, one unref. The bytes are read-only: their neighbours belong to other connections.
 *
 * owner NULL: bytes that nobody counts, made by hand ({ text, 5, NULL }). Writes copy them; ref, sub and keep
 * refuse them (weir_slice_copy() or weir_slice_wrap() makes them counted). All zero is the empty
 * slice, which everything accepts.
 */
typedef struct weir_slice {
    const uint8_t *data;
    size_t size;
    weir_block *owner;
} weir_slice;

typedef void (*weir_release_fn)(const void *data, size_t size, void *userdata);

/**
 * weir_slice_ref() - make a slice outlive its callback
 * @slice:     borrowed, or one of yours
 * @ret_slice: becomes the same bytes with a reference of its own; may be an uninitialised variable, must not
 *             hold a reference (it would leak)
 *
 * The memory stays where it is, stable and readable, until that reference is dropped. It pins the whole
 * buffer that the bytes lie in, however few they are: for a small message that is to be held for long,
 * weir_slice_keep() bounds that.
 *
 * Ownership: @ret_slice is yours, to be given to weir_slice_unref() once.
 * Context:   A borrowed slice: inside its callback, on that thread. One of yours: any thread. No allocation, no
 *            callback.
 * Return:    nothing; it cannot fail. Uncounted bytes (owner NULL, size not 0) are a mistake and give the empty
 *            slice.
 * Since:     0.1
 */
WEIR_API void weir_slice_ref(const weir_slice *slice, weir_slice *ret_slice);

/**
 * weir_slice_unref() - drop a reference and empty the variable
 * @slice: one of yours, or NULL, or empty
 *
 * Sets *@slice to the empty slice before anything is released, so a second call does nothing. The last one
 * gives the buffer back to its pool, and wakes the loop if it sleeps and streams wait for memory. A borrowed slice is
 * const and does not fit here: the compiler's complaint is right.
 *
 * Ownership: one reference is dropped.
 * Context:   any thread, also after the loop is gone; not from a signal handler. For weir_slice_wrap()ped
 *            memory the release function may run before it returns.
 * Since:     0.1
 */
WEIR_API void weir_slice_unref(weir_slice *slice);

/**
 * weir_slice_keep() - like ref, but bounded in what it pins
 * @slice:     borrowed, or one of yours
 * @ret_slice: the same bytes, at the same address or another
 *
 * A slice that is large for its buffer (an eighth of it or more) is referenced, a small one is copied into a
 * block of its size. So what kept slices occupy is never more than eight times what was kept, and a header of 64 bytes
 * each.
 *
 * Ownership: @ret_slice is yours on success, untouched on failure.
 * Context:   as weir_slice_ref(); may allocate. No callback.
 * Return:    0; -ENOMEM: no memory; -ENOBUFS: the pool's budget is spent; -EINVAL: uncounted bytes (they have
 *            no pool: weir_slice_copy).
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_slice_keep(const weir_slice *slice, weir_slice *ret_slice);

/** weir_slice_sub() - ref of a part. 0; -ERANGE: not inside; -EINVAL: no slice, or uncounted bytes; -ECHILD. Context as
 * weir_slice_ref(). */
WEIR_API WEIR_MUST_CHECK int weir_slice_sub(const weir_slice *slice, size_t offset, size_t size,
                                            weir_slice *ret_slice);

/**
 * weir_slice_new() - a block to fill, then to send, also to many
 * @pool:      counts it (weir_loop_get_pool)
 * @size:      bytes, at least 1
 * @ret_data:  where to write; stop writing before the first write_slice or hand-over to another thread
 * @ret_slice: those bytes
 *
 * Ownership: @ret_slice is yours on success; @ret_data lives as long as it does.
 * Context:   any thread that holds @pool. No callback.
 * Return:    0; -ENOMEM; -ENOBUFS: the budget's share for writing is spent; -EINVAL.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_slice_new(weir_pool *pool, size_t size, uint8_t **ret_data,
                                            weir_slice *ret_slice);

/** weir_slice_copy() - weir_slice_new() filled from @data. */
WEIR_API WEIR_MUST_CHECK int weir_slice_copy(weir_pool *pool, const void *data, size_t size,
                                             weir_slice *ret_slice);

/**
 * weir_slice_wrap() - a slice over memory of yours
 * @pool:      lends its allocator for the small owner block; the bytes do not count against its budget
 * @data:      stays readable and unchanged until @release runs
 * @release:   told once, when the last reference is gone; NULL for memory that is always there
 *
 * Ownership: on success the memory is weir's until @release; on failure it stays yours and @release never runs.
 * Context:   any thread. @release runs on whichever thread drops the last reference, possibly inside
 *            weir_slice_unref(), with no lock held; it may call what any thread may call. To have it on the
 *            loop's thread, use weir_stream_write_external().
 * Return:    0; -ENOMEM; -EINVAL.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_slice_wrap(weir_pool *pool, const void *data, size_t size,
                                             weir_release_fn release, void *userdata, weir_slice *ret_slice);

#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
