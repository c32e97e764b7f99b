/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_SCRIPTED_H
#define WEIR_TESTS_SCRIPTED_H

/*
 * A kernel that does what the test says: it stands in the place of lib/edge and makes no system call for
 * io_uring, sockets or the clock. The library runs on it unmodified.
 *
 * A test reads as a story: let the library enter the kernel, look at what it submitted (script_expect), say what
 * came of it (script_complete, script_receive), let the library dispatch, look at what it told its owner.
 *
 * There is one ring at a time, and one thread may use it; the few calls that other threads make (waking, giving
 * memory back) are safe.
 */

#include "edge/ring.h"
#include "edge/sys.h"

/* ---- beginning and end ------------------------------------------------------------------------------ */

/* A kernel that knows everything (6.18), at a time of one second, with nothing open. */
void script_begin(void);
/* Asserts that rings, buffer rings and descriptors are closed and nothing is mapped, and forgets everything. */
void script_end(void);
/* As the end, but what the library left behind on purpose may be there. Return: buffer rings not closed. */
unsigned script_end_abandoned(void);

/* ---- what the kernel refuses ------------------------------------------------------------------------ */

enum script_call {
    SCRIPT_OPEN,
    SCRIPT_ENABLE,
    SCRIPT_ENTER,
    SCRIPT_BUFFERS_OPEN,
    SCRIPT_EVENTFD,
    SCRIPT_SIGNALFD,
    SCRIPT_SOCKETPAIR,
    SCRIPT_SEND,
    SCRIPT_CONNECT, /* connect(2), which is no request of the ring */
    SCRIPT_MAP,
    SCRIPT_EPOLL,
    SCRIPT_EPOLL_SET,
    SCRIPT_EPOLL_WAIT,
    SCRIPT_RECEIVE,
    SCRIPT_SEND_VECTORS,
    SCRIPT_ACCEPT,
    SCRIPT_CALLS
};

/* The next @times calls do nothing but return @error, or NULL. */
void script_fail(enum script_call call, int error, unsigned times);
/* An older kernel: a ring with any of these IORING_SETUP_* is -EINVAL. */
void script_refuse_setup(uint32_t flags);
/* A small RLIMIT_MEMLOCK: a submission queue of more entries is -ENOMEM. */
void script_refuse_entries(unsigned more_than);
/* An older kernel: a buffer ring with any of these IOU_PBUF_RING_* is -EINVAL. */
void script_refuse_buffer_rings(uint16_t flags);
void script_set_kernel(unsigned major, unsigned minor, unsigned patch);
void script_set_features(uint32_t features);

/* ---- what the library asked for --------------------------------------------------------------------- */

typedef struct script_attempt {
    unsigned sq_entries, cq_entries;
    uint32_t flags;
    int result;
} script_attempt;

/* Attempts to open a ring since the beginning, and one of them. */
unsigned script_attempts(void);
script_attempt script_attempt_at(unsigned index);
unsigned script_rings_open(void);

typedef struct script_enter {
    unsigned count; /* of enters */
    unsigned wait, submitted;
    uint32_t flags;
    int64_t timeout_ns;
} script_enter;

/* The last one. */
script_enter script_last_enter(void);

typedef struct script_entry {
    struct io_uring_sqe sqe;
    bool is_live; /* its final completion has not been said */
    bool is_seen; /* by the test */
} script_entry;

/* The oldest submitted entry that the test has not seen, which must be this one. */
script_entry *script_expect(uint8_t opcode, int fd);
/* Likewise, and it cancels @target. */
script_entry *script_expect_cancel(const script_entry *target);
/* The oldest unseen entry like this wherever it stands, or NULL. */
script_entry *script_find(uint8_t opcode, int fd);
/* How many the test has not seen. */
unsigned script_unseen(void);
/* An entry, seen or not, that the kernel has not answered for good: the @index-th of them, or NULL. */
script_entry *script_live(unsigned index);
script_entry *script_live_target(const script_entry *cancel);

/* ---- what the kernel does --------------------------------------------------------------------------- */

/* A completion; without IORING_CQE_F_MORE it is the last of its entry. */
void script_complete(script_entry *entry, int32_t res, uint32_t flags);
/* Bytes came on a receive, and take as many buffers as they need; -ENOBUFS if there is none. @goes_on: F_MORE. */
void script_receive(script_entry *entry, const void *bytes, size_t size, bool goes_on);
/* As it would be, but say nothing: the bytes of @size are consumed without a completion. */
void script_consume(const script_entry *entry, size_t size);
/* Answer each cancellation in the enter that submits it: the target's -ECANCELED, then 0; or -ENOENT. */
void script_answer_cancels(bool answers);
/* From now on completions are there only after an enter, and the ring says that there is work to do. */
void script_defer(bool defers);
/* Called at the end of each enter, before it looks for completions. */
void script_on_enter(void (*hook)(void *userdata), void *userdata);
/* Say that completions overflowed. (They also do when the completion queue is full.) */
void script_overflow(bool is_overflown);
/* Completions not taken by the library. */
unsigned script_completions(void);
/* As the kernel writes: past every sanitizer's poison. */
void script_write(void *target, const void *bytes, size_t size);
/* The time, and its passing. A wait that nothing ends passes as much as it was to last. */
void script_advance_ns(int64_t ns);
/* One that spins passes so much at each pause; what happens in it. */
enum { SCRIPT_PAUSE_NS = 100 };
void script_on_pause(void (*hook)(void *userdata), void *userdata);
unsigned script_pauses(void);

/* ---- buffers ---------------------------------------------------------------------------------------- */

typedef struct script_group {
    bool is_registered;
    uint16_t id, flags;
    uint32_t entries, published, available; /* ever; and not consumed */
} script_group;

/* The group registered last. */
script_group script_last_group(void);
unsigned script_groups_registered(void);
/* What was published at this place since the group was registered, as it was then. */
weir__provided script_published(uint32_t position);
/* Write where the library put buffer @id of the last group. */
void script_write_into_buffer(uint16_t id, uint32_t offset, const void *bytes, size_t size);

/* Bytes of payload that are mapped. */
uint64_t script_mapped(void);

/* ---- readiness -------------------------------------------------------------------------------------- */

/* A call of epoll_ctl(2), and what was said. */
typedef struct script_set {
    int operation, fd;
    uint32_t events;
    uint64_t data;
    int result;
} script_set;

/* How many there were, one of them, and the last one. */
unsigned script_sets(void);
script_set script_set_at(unsigned index);
script_set script_last_set(void);
bool script_is_registered(int fd);
/* The next wait says this of @fd, in the order of these calls; unless it is not registered by then. */
void script_ready(int fd, uint32_t events);

typedef struct script_wait {
    unsigned count; /* of waits */
    unsigned told;
    int64_t timeout_ns;
} script_wait;

/* The last one. */
script_wait script_last_wait(void);

/* From now on sockets take so many bytes with weir__sys_send_vectors(), or by sends that are to say nothing of it
 * (IOSQE_CQE_SKIP_SUCCESS), and no more; SIZE_MAX, as at first: any number. */
void script_set_room(size_t bytes);
size_t script_sent(const void **ret_bytes); /* what they took, one behind the other */
unsigned script_sends(void);                /* calls, and how many vectors the last one had */
size_t script_last_vectors(void);
/* So many more connections wait to be accepted. */
void script_come(unsigned count);
unsigned script_accepts(void); /* calls */
/* What SO_ERROR says of any socket once, an errno; and getpeername(2) from now on, 0 or -errno. */
void script_set_socket_error(int error);
void script_set_peer(int result);
/* One variable of the environment, which is empty otherwise. */
void script_set_environment(const char *name, const char *value);

/* ---- descriptors ------------------------------------------------------------------------------------ */

unsigned script_fds_open(void);
/* What a look at any socket says from now on: 1, 0 (its peer has ended), -errno. At first -EAGAIN. */
/* What weir__sys_receive() brings: @result bytes of @data, as they are asked for, and then -EAGAIN; 0; -errno. */
void script_set_receive(const void *data, int result);
unsigned script_receives(void); /* how often it was called */
void script_set_peek(int result);
unsigned script_peeks(void);
/* What broke every connection: 0, or -errno. */
void script_set_lost(int error);
/* What every socket says that its peer has not taken yet; at first 0. */
void script_set_unsent(int bytes);
unsigned script_unsent_asked(void); /* how often that was */
int script_backlog(void);           /* of the last listen(2) */
unsigned script_connects(void);     /* calls of connect(2) */
unsigned script_shutdowns(void);    /* of one half, SHUT_WR */
unsigned script_signals(void);      /* of eventfds */
unsigned script_mappings(void);     /* pages that are not inherited, still mapped */
unsigned script_signals(void);      /* of eventfds */
/* A signal comes, to be read from a signalfd of its number; and is its number blocked? */
void script_raise(int number);
bool script_is_blocked(int number);
void script_block(int number);
unsigned script_mappings(void); /* pages that are not inherited, still mapped */

/* ---- scripted.c, for epoll.c ------------------------------------------------------------------------- */

void script_begin_epoll(void);
/* A socket takes bytes: as many as there is room for. */
size_t script_take_room(size_t bytes);
int script_fault(enum script_call call); /* what it is to fail with; 0 */
int script_new_fd(void);
int script_check_fd(int fd); /* 0: open; -EBADF */

#endif
