/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_FACTS_H
#define WEIR_TESTS_FACTS_H

/*
 * What weir relies on in the kernel, written down as tests that know lib/edge's functions alone. They run twice: over
 * the machine's kernel (real.c) and over the simulated one (simulated.c), which so cannot drift into fiction. Where
 * a kernel may do one thing or another, the fact is the set, and both must stay within it.
 *
 * A fact runs once for each kind of socket that it is about, and over the simulated kernel once a seed.
 */

#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "edge/ring.h"
#include "edge/sys.h"
#include "support/support.h"

/* ---- the edge under test ---------------------------------------------------------------------------- */

extern const char *const facts_edge;
extern const unsigned facts_rounds; /* how often each fact is tried */
/* NULL, or why this kernel cannot be asked. */
const char *facts_edge_missing(void);
void facts_edge_begin(unsigned round);
void facts_edge_end(void);
/* Is this kernel older than Linux @major.@minor? The simulated one is 6.18. */
bool is_before(unsigned major, unsigned minor);
/* Worker threads that requests of the ring were moved to, now. */
unsigned facts_edge_workers(void);

/* ---- facts ------------------------------------------------------------------------------------------ */

enum { UNIX = 1, TCP = 2, ANY = 3 };

typedef struct fact {
    const char *name;
    void (*run)(void);
    int families;
} fact;

#define FACT(name, families) \
    { #name, name, families }

extern const fact facts_of_buffers[], facts_of_caps[], facts_of_receives[], facts_of_completions[],
    facts_of_sockets[], facts_of_readiness[];
extern const fact facts_of_this_edge[]; /* which the other one does not have. All are ended by {} */

/* ---- a ring, its buffers and sockets ---------------------------------------------------------------- */

enum {
    GROUPS = 3,
    GROUP_ENTRIES = 128, /* what a group has room for */
    GROUP_BYTES = 256 << 10,
    INCREMENTAL = IOU_PBUF_RING_INC,
    CLASSIC = 0,
    POLL_FIRST = IORING_RECVSEND_POLL_FIRST,
    MOST_HELD = 8192
};

/* A ring as weir sets it up; closed after the fact. */
void open_disabled_ring(unsigned sq_entries, unsigned cq_entries);
void open_ring(unsigned sq_entries, unsigned cq_entries); /* and enabled */
weir__ring *ring(void);
/* Groups are numbered from 0; their buffers too, in the order of publishing. */
void open_group(uint16_t group, uint16_t flags);
void reopen_group(uint16_t group, uint16_t flags);
weir__buffer_ring *buffers_of(uint16_t group);
void publish(uint16_t group, uint32_t size, unsigned count);
uint8_t *buffer(uint16_t group, unsigned id);

/* Connected sockets of the kind under test, closed after the fact unless close_now did. */
void pair(int ret_fds[2]);
bool is_tcp(void);
/* A socket that listens at an address of its own on loopback. */
int listen_somewhere(int backlog);
int own(int fd);
/* TCP alone: it is connected no more, at once, and the far end hears a reset. */
void disconnect(int fd);
void close_now(int fd);

/* ---- submissions: they wait for the next enter ------------------------------------------------------- */

struct io_uring_sqe *entry(uint8_t opcode, int fd, uint64_t user);
void receive(int fd, uint64_t user, uint16_t group, unsigned ioprio); /* multishot */
void send_to(int fd, uint64_t user, const void *data, size_t size);
void cancel(uint64_t target, uint64_t user);
void connect_at(int fd, uint64_t user, const struct sockaddr_storage *address, socklen_t length);
void accept_at(int listener, uint64_t user, bool is_multishot);
void poll_at(int fd, uint64_t user, int events, bool is_multishot);

/* ---- completions ------------------------------------------------------------------------------------ */

/* Enter without waiting; completions stay in the kernel's queue. Return: what enter said. */
int enter(void);
/* The next completion, of anyone or of @user; those of others are kept, in order. Waits for it. */
weir__cqe next(void);
weir__cqe next_of(uint64_t user);
bool next_if_any(weir__cqe *ret_cqe); /* waits a little */
/* Nothing comes, however long one waits (which is not long). */
void nothing_comes(void);

/* The completion is this one; F_SOCK_NONEMPTY, which is a hint, may come with anything that was received. */
void is(weir__cqe cqe, uint64_t user, int32_t res, uint32_t flags);
/* Bytes in buffer @id of the group, and whether the kernel keeps the buffer and the request. */
void is_data(weir__cqe cqe, uint64_t user, int32_t res, unsigned id, uint32_t flags);
/* Wait until something can be read from it, has ended, or broke. */
void until(int fd, int events);

/* ---- bytes ------------------------------------------------------------------------------------------ */

/* Send what stands at the next position of the stream number @fd; all of it is taken. */
void write_bytes(int fd, size_t size);
/* What stands there, for those who send it themselves, and then: so much of it was taken. */
void next_bytes(int fd, void *data, size_t size);
void wrote(int fd, size_t size);
/* A byte that is not among the others. */
void write_urgent(int fd);
/* Send as much as goes in, and then submit a send of @size bytes, which waits. */
void send_that_waits(int fd, uint64_t user, void *data, size_t size);
/* Take what a completion brought out of its buffer, whose place is known from the order of completions alone, and see
 * that it goes on with the stream number @from. */
void read_bytes(weir__cqe cqe, uint16_t group, int from);
/* How much of it was read so far. */
size_t bytes_read(int from);
/* Read everything that has come to @fd and was written to @from. The last group's number is used. */
void drain(int fd, int from);

#define F_MORE IORING_CQE_F_MORE
#define F_BUF_MORE IORING_CQE_F_BUF_MORE

#endif
