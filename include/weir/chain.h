/* SPDX-License-Identifier: MIT */
#ifndef WEIR_CHAIN_H
#define WEIR_CHAIN_H

#include "base.h"
#include "slice.h"
#include "stream.h"

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

/*
 * A chain: bytes that do not make a message yet. on_data pushes what came, looks whether a message is complete, and takes,
 * drops or writes it; what is left waits for more.
 *
 * Slices are referenced as they are pushed, and neighbours in one buffer become one piece, so a message that comes whole
 * is never copied. Once the turn's callbacks are over, what is still there is held within weir_slice_keep()'s bound: where
 * a few bytes pin a whole buffer they are copied, so 10,000 half messages do not pin 10,000 buffers. Therefore what peek
 * shows is good until the next call on the chain, and no longer than the callback. (While there is no memory for such a
 * copy the slices simply stay, and it is tried again each turn.)
 *
 * A chain belongs to its loop's thread. It outlives the loop's close: what is in it can still be read and removed.
 */

/**
 * weir_chain_new() - an empty chain
 * @loop:        whose thread uses it, and whose budget counts its copies
 * @limit_bytes: it never holds more; at least 1
 * @ret_chain:   the chain
 *
 * The limit has to have room for the longest message and, behind its last byte, for what came with it: add the pool's
 * buffer_bytes, since no slice of a stream is larger. What all chains hold is the budget's: as many streams as may be open
 * with a message each that does not come to its end can take all of it (WEIR_PRESSURE_STUCK), so have an idle timeout, or
 * end the one that holds most when that is told.
 *
 * Ownership: @ret_chain is yours: the last unref ends it.
 * Context:   loop's thread; no callback.
 * Return:    0; -EINVAL; -ENOMEM; -ESHUTDOWN: the loop is closed, or drained beyond its grace; -EPERM; -ECHILD.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_chain_new(weir_loop *loop, size_t limit_bytes, weir_chain **ret_chain);
/** weir_chain_ref() - any thread; returns @chain. */
WEIR_API weir_chain *weir_chain_ref(weir_chain *chain);
/** weir_chain_unref() - any thread, also after the loop's close; NULL is fine; returns NULL. The last one drops what is in
 * it: on the loop's thread, or once that is closed, on the caller's. */
WEIR_API weir_chain *weir_chain_unref(weir_chain *chain);

/**
 * weir_chain_push() - append a slice without copying it
 * @slice: borrowed or yours, from any loop; stays what it was. Uncounted bytes (owner NULL) are copied. Size 0 is fine and
 *         does nothing
 *
 * (Also copied is what comes to a chain that is in very many pieces: 1,024, and one for each 256 bytes of its limit.)
 *
 * Ownership: yours is yours still: the chain takes a reference of its own.
 * Context:   loop's thread; no callback. Allocates nothing in the usual case.
 * Return:    0; -EMSGSIZE: beyond its limit; -ENOMEM; -ENOBUFS: the budget is spent (where it has to copy); -EINVAL: no
 *            slice, or no data; -ESHUTDOWN: the loop is closed; -EPERM; -ECHILD. On failure the chain is as it was.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_chain_push(weir_chain *chain, const weir_slice *slice);

/** weir_chain_get_size() - bytes in it; 0 also where it may not be asked. */
WEIR_API size_t weir_chain_get_size(const weir_chain *chain);

/**
 * weir_chain_peek() - show bytes in one piece, leaving them
 * @offset:    from its front
 * @size:      how many; 0 shows the empty slice
 * @ret_slice: borrowed: do not unref; weir_slice_ref() it into another variable to have it
 *
 * No copy when they lie together already, which they mostly do; else they are copied together, once: looking again, also
 * at a few more, does not copy them all again.
 *
 * Context:   loop's thread; no callback, but the release of wrapped memory that was copied. @ret_slice is good until the
 *            next call on the chain, no longer than the callback.
 * Return:    0; -EAGAIN: not there yet; -EMSGSIZE: never will be, that is beyond its limit; -ENOBUFS, -ENOMEM: no room to
 *            copy them together; -EINVAL; -EPERM; -ECHILD. On failure nothing is lost.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_chain_peek(weir_chain *chain, size_t offset, size_t size,
                                             const weir_slice **ret_slice);

/**
 * weir_chain_take() - remove bytes from the front, in one piece
 * @size:      how many; 0 gives the empty slice
 * @ret_slice: those bytes
 *
 * Ownership: @ret_slice is yours. It is a ref: to hold it for long, weir_slice_keep() it.
 * Context:   loop's thread; no callback, but as weir_chain_peek().
 * Return:    as weir_chain_peek(). On failure the chain is as it was.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_chain_take(weir_chain *chain, size_t size, weir_slice *ret_slice);

/** weir_chain_drop() - remove bytes from the front; wrapped memory may be released inside. Loop's thread. 0, also for
 * @size 0; -EAGAIN: not there yet; -EMSGSIZE: beyond its limit; -EINVAL; -EPERM; -ECHILD. */
WEIR_API WEIR_MUST_CHECK int weir_chain_drop(weir_chain *chain, size_t size);

/**
 * weir_chain_find() - where bytes first lie, at or after an offset
 * @offset: from its front
 * @bytes:  what to find: a line's end, a boundary
 * @size:   how many; at least 1
 *
 * Also where they lie in two pieces of the chain. It remembers how far it has looked for these bytes (up to 80 of them), so
 * a peer that sends one byte at a time costs one look at each.
 *
 * Context:   loop's thread; no callback, no allocation, no copy.
 * Return:    the offset; -EAGAIN: not there yet; -EINVAL: no chain, or nothing to find; -EPERM; -ECHILD.
 * Since:     0.1
 */
WEIR_API int64_t weir_chain_find(weir_chain *chain, size_t offset, const void *bytes, size_t size);

/**
 * weir_chain_write() - move bytes from the front to a stream's queue
 * @size:   how many; 0 does nothing
 * @stream: the same thread's
 *
 * As they lie: neither copied nor pulled up, however many pieces they are (but see weir_stream_write_slice() about memory
 * that is short). All or nothing.
 *
 * Context:   loop's thread; no callback. Allocates nothing in the usual case.
 * Return:    as weir_stream_write_slice(); -EAGAIN: not there yet; -EMSGSIZE: beyond the chain's limit. On failure both are
 *            as they were.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_chain_write(weir_chain *chain, size_t size, weir_stream *stream);

#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
