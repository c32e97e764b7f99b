/* SPDX-License-Identifier: MIT */
#include "sim/ring.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * io_uring as it behaves: submissions are tried when they are entered and wait for their socket otherwise; deferred
 * work runs in enter only; a full completion queue overflows into a list and ends multishots. What differs from run
 * to run, within what the real one may do, is drawn from the seed.
 */

enum { MOST_IDLE_ENTERS = 500 };

static weir__ring *the_ring; /* the loop's; there is one */

/* Receives that found no buffer, in order: they are to be armed again in that order. */
static struct {
    uint64_t user_data[1024];
    const sim_socket *socket[1024];
    uint8_t overtaken
        [1024]; /* a later one was helped before it, in one of two ways: wrong, if it ever is in that way */
    bool is_back[1024]; /* for the second time, and nothing came in between */
    size_t count;
} starved;

typedef struct receives {
    uint64_t user_data[1024];
    size_t count;
} receives;

/* Armed again after they had starved, and nothing came since: who starves now keeps its place. */
static receives hopeful;
/* Wished for anew while they starved, and nothing came since: they have their place or a new one. */
static receives loose;

static void add(receives *list, uint64_t user_data) {
    if (list->count < sizeof list->user_data / sizeof *list->user_data)
        list->user_data[list->count++] = user_data;
}

static bool take(receives *list, uint64_t user_data) {
    for (size_t i = 0; i < list->count; i++)
        if (list->user_data[i] == user_data) {
            list->user_data[i] = list->user_data[--list->count];
            return true;
        }
    return false;
}

bool (*sim_is_out_of_order)(uint64_t user_data);

void sim_starve(const request *r) {
    bool is_back = take(&hopeful, r->sqe.user_data), is_loose = take(&loose, r->sqe.user_data);
    if (is_loose || starved.count == sizeof starved.user_data / sizeof *starved.user_data || r->is_unwanted ||
        (sim_is_out_of_order != NULL && sim_is_out_of_order(r->sqe.user_data))) {
        add(&loose, r->sqe.user_data); /* from now on, too: it may come back */
        return;
    }
    sim_note("descriptor %d found no buffer%s", r->socket->fd, is_back ? ", again" : "");
    size_t i = starved.count++;
    starved.overtaken[i] = 0;
    starved.is_back[i] = is_back;
    starved.socket[i] = r->socket;
    starved.user_data[i] = r->sqe.user_data;
}

static void forget(size_t i) {
    starved.count--;
    memmove(starved.user_data + i, starved.user_data + i + 1, (starved.count - i) * sizeof *starved.user_data);
    memmove(starved.socket + i, starved.socket + i + 1, (starved.count - i) * sizeof *starved.socket);
    memmove(starved.overtaken + i, starved.overtaken + i + 1, starved.count - i);
    memmove(starved.is_back + i, starved.is_back + i + 1, starved.count - i);
}

void sim_ring_forget(uint64_t user_data) {
    bool was_starved = take(&hopeful, user_data);
    for (size_t i = 0; i < starved.count && !was_starved; i++)
        if (starved.user_data[i] == user_data) {
            forget(i);
            was_starved = true;
        }
    if (was_starved)
        add(&loose, user_data);
}

enum { OF_A_CLOSED_FILE = 1 }; /* as an entry's personality, which nobody uses */

/* Is its file not to be closed before it has ended? */
static bool is_counted(const request *r) {
    return r->sqe.personality != OF_A_CLOSED_FILE;
}

void sim_ring_closed(const sim_socket *socket) {
    for (size_t i = starved.count; i-- > 0;)
        if (starved.socket[i] == socket)
            sim_ring_forget(starved.user_data[i]);
    /* A signal that was stopped while its poll lay in the queue: the kernel looks the number up when it is submitted, and may
     * find another's file. The poll is taken back all the same, so that file may be closed meanwhile. */
    for (unsigned i = 0; the_ring != NULL && i < the_ring->sq_count; i++)
        if (the_ring->sqes[i].fd == socket->fd && the_ring->sqes[i].opcode == IORING_OP_POLL_ADD)
            the_ring->sqes[i].personality = OF_A_CLOSED_FILE;
}

/* By a receive that is armed again, or by recv(2). One that is to be armed may wait for an entry in the queue meanwhile, so
 * the order is that of each way. */
enum { BY_RECEIVE = 1, BY_CALL = 2 };

static void help(size_t i, uint8_t way) {
    sim_require((starved.overtaken[i] & way) == 0, "a starved stream was served after one that starved later");
    /* Who has come back may be before those who were there already. */
    for (size_t earlier = 0; earlier < i && !starved.is_back[i]; earlier++)
        starved.overtaken[earlier] |= way;
    forget(i);
}

static void armed_again(uint64_t user_data) {
    for (size_t i = 0; i < starved.count; i++)
        if (starved.user_data[i] == user_data) {
            sim_note("descriptor %d is armed again", starved.socket[i]->fd);
            help(i, BY_RECEIVE);
            add(&hopeful, user_data);
            return;
        }
}

void sim_ring_received(const sim_socket *socket) {
    for (size_t i = 0; i < starved.count; i++)
        if (starved.socket[i] == socket) {
            sim_note("descriptor %d is received from by a call", socket->fd);
            sim_event(SIM_EVENT_RECEIVED_WHILE_STARVED);
            add(&loose, starved.user_data[i]); /* a call that brought nothing was no turn */
            help(i, BY_CALL);
            return;
        }
    sim_event(SIM_EVENT_RECEIVED_BY_CALL);
}

/* ---- completing ------------------------------------------------------------------------------------- */

bool sim_has_room(const weir__ring *ring) {
    return ring->cq_tail - ring->cq_head < ring->cq_entries && ring->overflow_count == 0;
}

void sim_post(weir__ring *ring, uint64_t user_data, int res, uint32_t flags) {
    if (sim.config.trace)
        sim_note("completion of %#llx: %d, flags %#x", (unsigned long long)user_data, res, flags);
    weir__cqe cqe = { user_data, res, flags };
    bool goes_on = res == -ENOBUFS || res == -EINTR || res == -EAGAIN || res == -ECANCELED;
    if (res >= 0 ? (flags & IORING_CQE_F_BUFFER) != 0 || (flags & IORING_CQE_F_MORE) == 0 : !goes_on)
        (void)(take(&hopeful, user_data) + take(&loose, user_data)); /* it had its turn, or it is over */
    if (sim_has_room(ring)) {
        ring->cqes[ring->cq_tail++ % ring->cq_entries] = cqe;
        unsigned count = ring->cq_tail - ring->cq_shown;
        bool is_classic = (flags & (IORING_CQE_F_BUFFER | IORING_CQE_F_BUF_MORE)) == IORING_CQE_F_BUFFER;
        /* Only completions of different requests overtake each other, before they are there for anybody to see, and with
         * classic rings nobody can tell. */
        weir__cqe *last = &ring->cqes[(ring->cq_tail - 1) % ring->cq_entries];
        weir__cqe *before = &ring->cqes[(ring->cq_tail - 2) % ring->cq_entries];
        if (sim.config.classic && is_classic && count >= 2 && (last->user_data | 1) != (before->user_data | 1) &&
            sim_fault(SIM_REORDER)) {
            weir__cqe swapped = *last;
            *last = *before;
            *before = swapped;
        }
        return;
    }
    sim_event(SIM_EVENT_OVERFLOW);
    if (ring->overflow_count == ring->overflow_capacity) {
        ring->overflow_capacity = ring->overflow_capacity > 0 ? ring->overflow_capacity * 2 : 64;
        ring->overflow = realloc(ring->overflow, ring->overflow_capacity * sizeof cqe);
    }
    ring->overflow[ring->overflow_count++] = cqe;
}

static void flush(weir__ring *ring) {
    size_t count = 0;
    while (count < ring->overflow_count && ring->cq_tail - ring->cq_head < ring->cq_entries)
        ring->cqes[ring->cq_tail++ % ring->cq_entries] = ring->overflow[count++];
    if (count > 0)
        sim_event(SIM_EVENT_FLUSH);
    ring->overflow_count -= count;
    if (ring->overflow_count > 0)
        memmove(ring->overflow, ring->overflow + count, ring->overflow_count * sizeof *ring->overflow);
}

/* The last completion of a request. The caller unlinks it. */
void sim_end_request(weir__ring *ring, request *r, int res, uint32_t flags) {
    bool is_whole = res >= 0 && ((r->sqe.msg_flags & MSG_WAITALL) == 0 || (uint32_t)res == r->sqe.len);
    if ((r->sqe.flags & IOSQE_CQE_SKIP_SUCCESS) != 0 && is_whole)
        sim_event(SIM_EVENT_SILENT);
    else
        sim_post(ring, r->sqe.user_data, res, flags);
    if (r->socket != NULL)
        r->socket->requests -= is_counted(r);
    if (r->sqe.opcode != IORING_OP_RECV)
        return;
    ring->receives--;
    weir__buffer_ring *group = ring->groups[r->sqe.buf_group & 255];
    if (group != NULL && group->last_user != 0 && (flags & IORING_CQE_F_BUFFER) == 0)
        group->has_ended_one = true;
}

static bool has_ready(const weir__ring *ring) {
    for (const request *r = ring->requests; r != NULL; r = r->next)
        if (sim_is_ready(r))
            return true;
    return false;
}

static void unlink_request(weir__ring *ring, request **at) {
    request *r = *at;
    *at = r->next;
    if (ring->last == &r->next)
        ring->last = at;
    free(r);
}

/* Deferred work: each ready request once, starting anywhere, and not necessarily all of them. */
static void run_work(weir__ring *ring) {
    unsigned count = 0, limit = sim_fault(SIM_SMALL_WORK) ? 1 + (unsigned)sim_random(4) : 20;
    for (request *r = ring->requests; r != NULL; r = r->next)
        count++;
    unsigned skip = count > 0 ? (unsigned)sim_random(count) : 0, done = 0;
    for (int round = 0; round < 2; round++) {
        unsigned index = 0;
        for (request **at = &ring->requests; *at != NULL && done < limit; index++) {
            if ((round == 0) == (index < skip) || !sim_is_ready(*at)) {
                at = &(*at)->next;
                continue;
            }
            done++;
            sim_socket *socket = (*at)->socket;
            if (sim_run_request(ring, *at))
                unlink_request(ring, at);
            else
                at = &(*at)->next;
            sim_between(socket);
        }
    }
}

/* ---- submitting ------------------------------------------------------------------------------------- */

static void unlink_this(weir__ring *ring, const request *r) {
    request **at = &ring->requests;
    while (*at != r)
        at = &(*at)->next;
    unlink_request(ring, at);
}

/* What @r was to bring was on its way, and comes; a multishot ends after it. */
static void go_on(weir__ring *ring, request *r, uint64_t user_data) {
    static const int answers[] = { -ENOENT, -EALREADY, 0 };
    bool answers_first = sim_random(2) == 0;
    int answer = answers[sim_random(3)];
    if (answers_first)
        sim_post(ring, user_data, answer, 0);
    if (sim_run_request(ring, r)) {
        sim_event(SIM_EVENT_CANCEL_OWN_RESULT);
        unlink_this(ring, r);
    } else {
        r->ended = -ECANCELED;
        r->not_before = 0;
    }
    if (!answers_first)
        sim_post(ring, user_data, answer, 0);
}

static void cancel(weir__ring *ring, const struct io_uring_sqe *sqe) {
    for (request *r = ring->requests; r != NULL; r = r->next) {
        if (r->sqe.user_data != sqe->addr || r->ended != 0)
            continue;
        r->is_unwanted = true;
        if (sim_fault(SIM_CANCEL_ENOENT)) {
            sim_event(SIM_EVENT_CANCEL_MISSED);
            sim_post(ring, sqe->user_data, -ENOENT, 0);
            return;
        }
        if (sim_is_ready(r) && sim_fault(SIM_CANCEL_TOO_LATE)) {
            go_on(ring, r, sqe->user_data);
            return;
        }
        if (sim_fault(SIM_CANCEL_EALREADY)) {
            r->ended = -ECANCELED;
            r->not_before = 0;
            sim_post(ring, sqe->user_data, -EALREADY, 0);
            return;
        }
        r->ended = -ECANCELED;
        if (sim_random(2) == 0)
            r->not_before = sim.now_ns + (int64_t)sim_random(2000000);
        else
            r->not_before = 0;
        if (sim_fault(SIM_CANCEL_LATE)) { /* the target's completion first */
            r->not_before = 0;
            (void)sim_run_request(ring, r);
            unlink_this(ring, r);
            sim_event(SIM_EVENT_CANCEL_SECOND);
        } else {
            sim_event(SIM_EVENT_CANCEL_FIRST);
        }
        sim_post(ring, sqe->user_data, 0, 0);
        return;
    }
    sim_event(SIM_EVENT_CANCEL_MISSED);
    sim_post(ring, sqe->user_data, -ENOENT, 0);
}

static bool must_not_wait(const struct io_uring_sqe *sqe) {
    return (sqe->opcode == IORING_OP_SEND || sqe->opcode == IORING_OP_SENDMSG) &&
           (sqe->msg_flags & MSG_DONTWAIT) != 0;
}

static void submit(weir__ring *ring, const struct io_uring_sqe *sqe) {
    sim.operations++;
    if (sim.config.trace)
        sim_note("submission %#llx: opcode %u, descriptor %d", (unsigned long long)sqe->user_data, sqe->opcode,
                 sqe->fd);
    if (sqe->opcode == IORING_OP_RECV)
        armed_again(sqe->user_data);
    if (sqe->opcode == IORING_OP_ASYNC_CANCEL) {
        sim_ring_forget(sqe->addr); /* if it has starved already, that counts no more: it will be started anew */
        cancel(ring, sqe);
        return;
    }
    sim_socket *socket = sim_socket_of(sqe->fd);
    if (socket == NULL) {
        sim_post(ring, sqe->user_data, -EBADF, 0);
        return;
    }
    for (const request *r = ring->requests; r != NULL; r = r->next)
        sim_require(r->sqe.user_data != sqe->user_data,
                    "an operation was submitted again before it had completed");
    if (sim_fault(sqe->opcode == IORING_OP_POLL_ADD ? SIM_POLL_ENOMEM : SIM_REQUEST_ENOMEM)) {
        sim_post(ring, sqe->user_data, -ENOMEM, 0);
        return;
    }
    request *r = calloc(1, sizeof *r);
    r->sqe = *sqe;
    r->socket = socket;
    r->signals = 0;
    socket->requests += is_counted(r);
    *ring->last = r;
    ring->last = &r->next;
    if (sqe->opcode == IORING_OP_RECV) {
        const weir__buffer_ring *group = ring->groups[sqe->buf_group & 255];
        if (++ring->receives > (group != NULL ? group->tail - group->head : 0) && ring->receives > 1)
            sim_event(SIM_EVENT_MORE_THAN_BUFFERS);
    }
    bool is_refused = sqe->optlen > 0 && sim.config.no_caps;
    if (sqe->opcode == IORING_OP_RECV && ((sqe->ioprio & IORING_RECVSEND_POLL_FIRST) == 0 || is_refused)) {
        if (sim_run_request(ring, r))
            unlink_this(ring, r);
    } else if (sqe->opcode == IORING_OP_RECV || sqe->opcode == IORING_OP_CONNECT ||
               sqe->opcode == IORING_OP_ACCEPT || must_not_wait(sqe) || sim_random(2) == 0) {
        if (sqe->opcode == IORING_OP_RECV) {
            const weir__buffer_ring *group = ring->groups[sqe->buf_group & 255];
            r->was_dry = group == NULL || group->head == group->tail;
            if (r->was_dry)
                sim_event(SIM_EVENT_POLL_FIRST_WAITS);
            r->has_tried = true;
            return;
        }
        if (sim_run_request(ring, r))
            unlink_this(ring, r);
    }
}

void sim_ring_disconnected(sim_socket *socket) {
    if (the_ring == NULL)
        return;
    for (request *r = the_ring->requests; r != NULL; r = r->next)
        if (r->socket == socket && r->ended == 0 && r->sqe.opcode != IORING_OP_POLL_ADD) {
            bool is_reset = sim_random(2) == 0;
            r->ended = is_reset ? -ECONNRESET : r->sqe.opcode == IORING_OP_RECV ? -ENOTCONN : -EPIPE;
            r->not_before = 0;
        }
}

unsigned sim_ring_requests(void) {
    unsigned count = 0;
    if (the_ring != NULL)
        for (const request *r = the_ring->requests; r != NULL; r = r->next)
            count += r->socket->kind != SIM_EVENTFD;
    return count;
}

/* ---- lib/edge/ring.h -------------------------------------------------------------------------------- */

int weir__ring_open(const weir_allocator *allocator, unsigned sq_entries, unsigned cq_entries,
                    uint32_t setup_flags, weir__ring **ret_ring) {
    if (sim_fault(SIM_RING_ENOMEM))
        return -ENOMEM;
    weir__ring *ring = calloc(1, sizeof *ring);
    sim_require(the_ring == NULL, "a second ring was opened");
    sim_require(!sim.config.epoll, "a ring was opened, and epoll was asked for");
    starved.count = hopeful.count = loose.count = 0;
    ring->allocator = allocator;
    ring->sq_entries = sim_chance(SIM_TINY_SQ) ? 2 : sq_entries;
    ring->cq_entries = sim_chance(SIM_TINY_CQ) ? 2 + (unsigned)sim_random(14) : cq_entries;
    ring->sqes = calloc(ring->sq_entries, sizeof *ring->sqes);
    ring->cqes = calloc(ring->cq_entries, sizeof *ring->cqes);
    ring->last = &ring->requests;
    ring->setup_flags = setup_flags;
    the_ring = ring;
    *ret_ring = ring;
    return 0;
}

void weir__ring_close(weir__ring *ring) {
    while (ring->requests != NULL) {
        if (ring->requests->socket != NULL)
            ring->requests->socket->requests -= is_counted(ring->requests);
        unlink_request(ring, &ring->requests);
    }
    the_ring = NULL;
    free(ring->sqes);
    free(ring->cqes);
    free(ring->overflow);
    free(ring);
}

unsigned weir__ring_unsubmitted(const weir__ring *ring) {
    return ring->sq_count;
}

uint32_t weir__ring_features(const weir__ring *ring) {
    (void)ring;
    /* Every kernel that has buffer rings has it; without it there is more to go wrong. */
    return IORING_FEAT_NO_IOWAIT | (sim.config.seed % 4 != 2 ? IORING_FEAT_CQE_SKIP : 0);
}

int weir__ring_enable(weir__ring *ring) {
    ring->is_enabled = true;
    return 0;
}

struct io_uring_sqe *weir__ring_sqe(weir__ring *ring) {
    if (ring->sq_count == ring->sq_entries)
        return NULL;
    struct io_uring_sqe *sqe = &ring->sqes[ring->sq_count++];
    memset(sqe, 0, sizeof *sqe);
    return sqe;
}

bool weir__ring_cqe(weir__ring *ring, weir__cqe *ret_cqe) {
    ring->cq_shown = ring->cq_tail;
    if (ring->cq_head == ring->cq_tail) {
        sim_require(++ring->vain_looks < MOST_IDLE_ENTERS,
                    "the loop spins: it looks for completions and never enters");
        return false;
    }
    *ret_cqe = ring->cqes[ring->cq_head++ % ring->cq_entries];
    return true;
}

unsigned weir__ring_ready(const weir__ring *ring) {
    ((weir__ring *)(uintptr_t)ring)->cq_shown = ring->cq_tail;
    return ring->cq_tail - ring->cq_head;
}

bool weir__ring_has_cqe(const weir__ring *ring) {
    return ring->cq_head != ring->cq_tail;
}

uint32_t weir__ring_flags(const weir__ring *ring) {
    return (ring->overflow_count > 0 ? IORING_SQ_CQ_OVERFLOW : 0) | (has_ready(ring) ? IORING_SQ_TASKRUN : 0);
}

static bool has_completions(const weir__ring *ring) {
    return ring->cq_head != ring->cq_tail;
}

/* A wake-up that is lost costs the rest of the sleep, whatever happens in it; of a short one nobody would know. */
static int sleep_through(weir__ring *ring, int64_t deadline) {
    for (int steps = 0; steps < 8 && sim.now_ns < deadline; steps++) {
        sim_other_thread();
        (void)sim_world_step();
    }
    sim.now_ns = sim.now_ns > deadline ? sim.now_ns : deadline;
    run_work(ring);
    flush(ring);
    return has_completions(ring) ? 0 : -ETIME;
}

/* Sleep: the world goes on until something completes or the time is up. */
static int sleep_until(weir__ring *ring, int64_t deadline) {
    enum { SHORT_NS = 20000000 };
    for (bool is_first = true;; is_first = false) {
        int64_t left = deadline - sim.now_ns;
        if (!is_first && left > SHORT_NS && has_ready(ring) && sim_fault(SIM_LOST_WAKE))
            return sleep_through(ring, deadline);
        run_work(ring);
        flush(ring);
        if (has_completions(ring))
            return 0;
        if (!has_ready(ring))
            sim_check_sleep(deadline);
        if (sim_fault(SIM_SPURIOUS_WAKE))
            return 0;
        if (left <= 0)
            return -ETIME;
        sim_other_thread();
        if (sim_world_step() || has_ready(ring))
            continue;
        int64_t passes = left > SHORT_NS ? 1000000 + (int64_t)sim_random(8000000) : 1000000; /* nothing but time */
        sim.now_ns = sim.now_ns + passes < deadline ? sim.now_ns + passes : deadline;
    }
}

int weir__ring_enter(weir__ring *ring, unsigned wait, uint32_t enter_flags, int64_t timeout_ns) {
    if (!ring->is_enabled)
        return -EBADFD;
    ring->vain_looks = 0;
    sim_require(!sim.is_other_thread, "enter from another thread than the ring's");
    sim_require((enter_flags & IORING_ENTER_GETEVENTS) != 0, "enter without GETEVENTS");
    sim_require(wait == 0 || timeout_ns >= 0, "a wait without a timeout");
    sim.now_ns += 1 + (int64_t)sim_random(2000);
    sim_other_thread();
    if (ring->overflow_count > 0 && sim_fault(SIM_ENTER_EBUSY)) {
        flush(ring);
        return -EBUSY;
    }
    if (ring->sq_count > 0 && sim_fault(SIM_ENTER_EAGAIN))
        return -EAGAIN;
    if (sim_fault(SIM_ENTER_ENOMEM))
        return -ENOMEM;
    unsigned count = ring->sq_count;
    struct io_uring_sqe *sqes = calloc(count + 1, sizeof *sqes);
    memcpy(sqes, ring->sqes, count * sizeof *sqes);
    ring->sq_count = 0;
    for (unsigned i = 0; i < count; i++)
        submit(ring, &sqes[i]);
    free(sqes);
    flush(ring);
    run_work(ring);
    if (wait > 0 || has_completions(ring))
        sim.pauses = 0;
    if (sim.was_stopped)
        ring->idle_enters = 0;
    sim.was_stopped = false;
    if (wait == 0 && count == 0 && !has_completions(ring)) {
        sim_require(++ring->idle_enters < MOST_IDLE_ENTERS, "the loop spins: %u enters without work or sleep",
                    ring->idle_enters);
    } else {
        ring->idle_enters = 0;
    }
    if (wait > 0 && !has_completions(ring)) {
        if (count == 0 && sim_fault(SIM_ENTER_EINTR))
            return -EINTR;
        int r = sleep_until(ring, sim.now_ns + timeout_ns);
        if (r < 0 && count == 0)
            return r;
    }
    return (int)count;
}

int weir__buffer_ring_open(weir__ring *ring, uint16_t group, uint32_t entries, uint16_t flags,
                           const weir_allocator *allocator, weir__buffer_ring **ret_buffers) {
    (void)allocator;
    if (sim_fault(SIM_RING_ENOMEM))
        return -ENOMEM;
    weir__buffer_ring *buffers = calloc(1, sizeof *buffers);
    sim_require(entries > 0 && (entries & (entries - 1)) == 0, "a buffer ring of %u entries", entries);
    buffers->entries = calloc(entries, sizeof *buffers->entries);
    buffers->mask = entries - 1;
    buffers->group = group;
    buffers->flags = flags;
    buffers->is_registered = true;
    ring->groups[group & 255] = buffers;
    if (ring->is_enabled)
        sim_event(SIM_EVENT_RENEWED);
    *ret_buffers = buffers;
    return 0;
}

int weir__buffer_ring_unregister(weir__ring *ring, weir__buffer_ring *buffers) {
    ring->groups[buffers->group & 255] = NULL;
    buffers->is_registered = false;
    return 0;
}

void weir__buffer_ring_close(weir__buffer_ring *buffers) {
    free(buffers->entries);
    free(buffers);
}

void weir__buffer_ring_publish(weir__buffer_ring *buffers, const weir__provided *provided, size_t count) {
    if (starved.count > 0 && buffers->head == buffers->tail)
        sim_event(SIM_EVENT_WAKES_NOBODY); /* they have ended */
    for (size_t i = 0; i < count; i++) {
        sim_require(provided[i].size > 0, "an entry of length 0 was published");
        sim_require(buffers->tail - buffers->head <= buffers->mask,
                    "more buffers were published than the ring has");
        for (uint32_t at = buffers->head; at != buffers->tail; at++)
            sim_require(buffers->entries[at & buffers->mask].id != provided[i].id, "buffer %u was published twice",
                        provided[i].id);
        sim_kernel_write(provided[i].data, NULL, provided[i].size); /* whoever still looks at it shall notice */
        buffers->entries[buffers->tail++ & buffers->mask] = provided[i];
    }
}

weir__provided weir__buffer_ring_entry(const weir__buffer_ring *buffers, uint32_t position) {
    return buffers->entries[position & buffers->mask];
}
