/* SPDX-License-Identifier: MIT */
#ifndef WEIR_LISTENER_H
#define WEIR_LISTENER_H

#include "base.h"
#include "stream.h"

#if defined(__cplusplus) && !defined(WEIR_PARSE)
extern "C" {
#endif

/*
 * static const, kept by pointer.
 *   on_accept  @stream is yours: start, detach or close it, now or later. Needed.
 *   on_close   last, once; only after weir_listener_start(). May be NULL.
 */
typedef struct weir_listener_callbacks {
    size_t size; /* sizeof(weir_listener_callbacks) */
    void (*on_accept)(weir_listener *listener, weir_stream *stream, void *userdata);
    void (*on_close)(weir_listener *listener, int error, void *userdata);
} weir_listener_callbacks;

enum weir_listener_flags {
    WEIR_LISTENER_REUSE_PORT = 1, /* one a loop: the kernel spreads connections */
    WEIR_LISTENER_V6_ONLY = 2,
    WEIR_LISTENER_UNLINK = 4 /* unix: remove a socket that nobody listens on, and ours at close */
};

typedef struct weir_listener_options {
    size_t size;                       /* sizeof(weir_listener_options) */
    uint32_t flags;                    /* WEIR_LISTENER_* */
    uint32_t backlog;                  /* default SOMAXCONN */
    uint32_t max_streams;              /* handed out and still open; accepting rests there; default none */
    uint32_t reserved;                 /* 0 */
    const weir_stream_options *stream; /* of each stream accepted; copied */
} weir_listener_options;

/**
 * weir_listener_open() - bind and listen
 * @loop:         the loop
 * @address:      as of weir_stream_dial(); port 0 picks one (weir_listener_get_address)
 * @options:      NULL for the defaults
 * @ret_listener: does not accept before weir_listener_start()
 *
 * SO_REUSEADDR is always set.
 *
 * Ownership: @ret_listener ends by weir_listener_close() or with the loop.
 * Context:   loop's thread, also before the loop first runs; no callback.
 * Return:    0; -EINVAL: not an address, or @options; -E2BIG: @options; -EADDRINUSE; -EADDRNOTAVAIL; -EACCES;
 *            -EAFNOSUPPORT; -EMFILE, -ENFILE; -ENOMEM; -EPERM; -ESHUTDOWN: closed or draining; -ECHILD.
 * Since:     0.1
 */
WEIR_API WEIR_MUST_CHECK int weir_listener_open(weir_loop *loop, const char *address,
                                                const weir_listener_options *options,
                                                weir_listener **ret_listener);

/** weir_listener_adopt() - a listener of a listening socket (socket activation). On success @fd is weir's, made
 * non-blocking and close-on-exec; on failure it stays yours. Return: as weir_listener_open(); -EBADF; -ENOTSOCK;
 * -EINVAL: it does not listen, or is not a stream socket. */
WEIR_API WEIR_MUST_CHECK int weir_listener_adopt(weir_loop *loop, int fd, const weir_listener_options *options,
                                                 weir_listener **ret_listener);

/** weir_listener_start() - accept. At a limit, or out of descriptors (a statistic counts it), it rests and goes on by
 * itself. No more streams than the limit are handed out, but a burst may bring in more, about a backlog of them: they
 * wait for a place with their descriptors open. 0; or a mistake: -EALREADY; -EINVAL: no table, its size, or no
 * on_accept; -EPERM; -ECHILD; -ESHUTDOWN: it is closed. */
WEIR_API int weir_listener_start(weir_listener *listener, const weir_listener_callbacks *callbacks,
                                 void *userdata);
/** weir_listener_pause() - no on_accept after this; connections wait in the backlog. 0; -EPERM. */
WEIR_API int weir_listener_pause(weir_listener *listener);
/** weir_listener_resume() - 0; -EPERM. */
WEIR_API int weir_listener_resume(weir_listener *listener);
/** weir_listener_close() - stop and close; connections not yet handed out are closed, those handed out go on. on_close
 * comes later. NULL is fine. 0, also again; -EPERM. */
WEIR_API int weir_listener_close(weir_listener *listener);
/** weir_listener_ref() - any thread. */
WEIR_API weir_listener *weir_listener_ref(weir_listener *listener);
/** weir_listener_unref() - any thread; NULL is fine; returns NULL. Never closes. */
WEIR_API weir_listener *weir_listener_unref(weir_listener *listener);
/** weir_listener_get_loop() - borrowed. */
WEIR_API weir_loop *weir_listener_get_loop(const weir_listener *listener);
/** weir_listener_get_address() - where it listens, as text. Return: its length; -ENOBUFS; -EBADF: closed; -EINVAL. */
WEIR_API int weir_listener_get_address(const weir_listener *listener, char *text, size_t size);

#if defined(__cplusplus) && !defined(WEIR_PARSE)
}
#endif
#endif
