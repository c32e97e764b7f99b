/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BACKEND_EPOLL_H
#define WEIR_BACKEND_EPOLL_H

/*
 * The epoll backend, for where io_uring cannot be had: epoll.c turns and closes, epoll_op.c carries out operations,
 * epoll_file.c knows what descriptors are ready for.
 *
 * What io_uring does in the kernel is done here, in the turn: an operation is tried when its descriptor is ready, and its
 * completion delivered at once. Above nobody can tell.
 */

#include "backend/backend.h"
#include "backend/waker.h"
#include "edge/sys.h"

/* ---- what choose.c calls ---------------------------------------------------------------------------- */

/* A backend over @pool. On failure the pool is good for nothing but to be closed. 0; -ENOMEM; -EMFILE; -ENFILE. */
int weir__epoll_new(const weir_allocator *allocator, weir_pool *pool, weir__waker *waker,
                    weir__backend **ret_backend);

/* ---- between the files ------------------------------------------------------------------------ */

enum { WEIR__EPOLL_EVENTS = 256 }; /* taken at once */

/* A descriptor: who is at it, and what it is ready for. */
typedef struct weir__epoll_file {
    weir__op *in;     /* receive, watch or accept; NULL */
    weir__op *out;    /* send or connect; NULL */
    weir__link polls; /* weir__op.link: POLLING */
    uint32_t
        registered; /* EPOLL* that the kernel tells of; 0: it does not know the descriptor, as far as we know */
    uint32_t gone;  /* EPOLLRDHUP, EPOLLHUP, EPOLLERR that have been told */
    int32_t fd;
    int32_t next_left;   /* weir__epoll.left */
    uint8_t ready;       /* EPOLLIN, EPOLLOUT: try it; EPOLLPRI: there is an urgent byte */
    bool is_foreign : 1; /* has been polled: others may close it without a word */
    bool is_left : 1;    /* on that list */
    bool is_known : 1;   /* whether it is TCP */
    bool is_tcp : 1;
} weir__epoll_file;

typedef struct weir__epoll {
    weir__backend base;
    const weir_allocator *allocator;
    weir_pool *pool;
    int fd;
    weir__link sends;    /* weir__op.link: READY, sends; in order */
    weir__link ready;    /* weir__op.link: READY, the others; in order */
    weir__link finished; /* weir__op.link: FINISHED */
    weir__link parked;   /* weir__op.link: PARKED; in the order in which they found no buffer */
    uint32_t parked_count, under_way;
    uint32_t dry_turns;        /* in which a parked stream might have been served */
    weir__pool_buffer current; /* what is received into; data NULL: none */
    uint32_t filled;           /* of it */
    uint64_t brought_bytes;    /* by this dispatch, but to those that were parked */
    bool is_odd;               /* the dispatch */
    bool has_skipped;          /* the last wait did not ask the kernel: the next one does */
    bool has_no_memory;        /* for a private block; tried again at the next tick */
    weir__epoll_file **files;  /* by descriptor, in chunks: a file stays where it is */
    uint32_t chunk_count;
    int32_t left; /* the first of the descriptors whose polls are over, unless they are polled again; -1 */
    struct epoll_event events[WEIR__EPOLL_EVENTS];
} weir__epoll;

static inline weir__epoll *weir__epoll_of(weir__backend *backend) {
    return WEIR__CONTAINER(backend, weir__epoll, base);
}

/* ---- epoll_file.c ----------------------------------------------------------------------------------- */

/* 0; -ENOMEM; -EBADF. */
int weir__epoll_file_get(weir__epoll *e, int fd, weir__epoll_file **ret_file);
/* Likewise, of a file that is new. */
int weir__epoll_file_admit(weir__epoll *e, int fd);
/* NULL: nothing is known of it. */
weir__epoll_file *weir__epoll_file_find(const weir__epoll *e, int fd);
/* See to it that the kernel tells of @events; @again: also if they are so already and were told before. 0; -errno. */
int weir__epoll_file_register(weir__epoll *e, weir__epoll_file *file, uint32_t events, bool again);
/* The kernel is to forget it, and so are we. */
void weir__epoll_file_forget(weir__epoll *e, weir__epoll_file *file);
/* Nobody wants @events of it at present. */
void weir__epoll_file_ignore(weir__epoll *e, weir__epoll_file *file, uint32_t events);
/* A poll of it is over: unless there is another one before the turn ends, it is forgotten. */
void weir__epoll_file_leave(weir__epoll *e, weir__epoll_file *file);
void weir__epoll_files_forget_left(weir__epoll *e);
void weir__epoll_files_free(weir__epoll *e);

/* ---- epoll_op.c ------------------------------------------------------------------------------------- */

void weir__epoll_receive(weir__backend *backend, weir__op *op, int fd, uint64_t limit_bytes, bool is_wish);
void weir__epoll_hurry(weir__op *op);
void weir__epoll_send(weir__backend *backend, weir__op *op, int fd, const weir__sendq *queue, bool is_quiet);
void weir__epoll_accept(weir__backend *backend, weir__op *op, int fd, bool one);
void weir__epoll_connect(weir__backend *backend, weir__op *op, int fd, const struct sockaddr *address,
                         socklen_t length);
void weir__epoll_watch(weir__backend *backend, weir__op *op, int fd);
void weir__epoll_poll(weir__backend *backend, weir__op *op, int fd, unsigned events);
void weir__epoll_cancel(weir__backend *backend, weir__op *op);
bool weir__epoll_is_starved(const weir__op *op);

/* What the kernel says of a descriptor. */
void weir__epoll_told(weir__epoll *e, int fd, uint32_t events);
/* Try an operation whose descriptor is ready. */
void weir__epoll_try(weir__epoll *e, weir__op *op);
/* The last of an operation. Its owner may free it inside. */
void weir__epoll_deliver_final(weir__epoll *e, weir__op *op, int32_t result);
/* Is there a buffer to receive into? */
bool weir__epoll_has_buffer(weir__epoll *e);
/* Receive for the one that has been parked the longest; @is_private: into a block. false: there was none. */
bool weir__epoll_serve_parked(weir__epoll *e, bool is_private);
bool weir__epoll_has_private(const weir__epoll *e);
/* Nothing moves: if that is for want of memory, are those that wait for it still connected? */
void weir__epoll_look_at_parked(weir__epoll *e);

#endif
