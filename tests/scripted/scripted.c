/* SPDX-License-Identifier: MIT */
#include "scripted/scripted.h"

#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <unistd.h>

#include "support/support.h"

enum {
    MAX_ENTRIES = 1 << 15,
    MAX_COMPLETIONS = 1 << 16,
    MAX_ATTEMPTS = 64,
    MAX_GROUPS = 256,
    MAX_FDS = 1024,
    FIRST_FD = 1000
};

struct weir__ring {
    const weir_allocator *allocator;
    struct io_uring_sqe *queue;
    unsigned entries, cq_entries, queued;
    bool is_enabled;
    pid_t process; /* that opened it */
};

struct weir__buffer_ring {
    const weir_allocator *allocator;
    weir__provided *now;       /* as the kernel has left them; by position & (entries - 1) */
    weir__provided *published; /* as they were, by position */
    uint32_t entries, head, tail, capacity;
    uint16_t group, flags;
    bool is_registered, is_closed;
};

static struct {
    struct {
        int error;
        unsigned times;
    } faults[SCRIPT_CALLS];
    uint32_t refused_setup, features, kernel;
    unsigned refused_entries;
    uint16_t refused_buffers;

    script_attempt attempts[MAX_ATTEMPTS];
    unsigned attempt_count;
    weir__ring *ring;
    unsigned rings_open;

    script_entry **entries; /* submitted, in order */
    unsigned entry_count;
    script_enter last_enter;

    weir__cqe *completions; /* the queue, and behind its end what overflowed */
    unsigned completion_head, completion_tail, visible_tail;
    bool is_overflown, answers_cancels;
    void (*hook)(void *userdata);
    void *hook_userdata;

    weir__buffer_ring *groups[MAX_GROUPS];
    unsigned group_count;

    bool is_fd_open[MAX_FDS];
    int signal_of[MAX_FDS]; /* a signalfd's number; else 0 */
    uint64_t blocked;       /* 1 << number - 1 */
    unsigned raised[65];    /* by number */
    unsigned fd_count;
    int peek, lost, unsent, backlog, receive_result, socket_error, peer;
    const uint8_t *receive_data;
    unsigned peeks, receives, connects, shutdowns, unsent_asked;
    _Atomic(unsigned) signals, mappings;
    int64_t now, pause_ns;
    unsigned pauses;
    void (*pause_hook)(void *userdata);
    void *pause_userdata;
    bool defers;
} script;

/* Outside of the script: pages of the process live longer than a test. */
static void *wiped_page;
static _Atomic(uint64_t) mapped;

/* ---- beginning and end ------------------------------------------------------------------------------ */

void script_begin(void) {
    memset(&script, 0, sizeof script);
    script_begin_epoll();
    script.kernel = 6U << 16 | 18U << 8;
    script.refused_entries = UINT32_MAX;
    script.now = 1000000000;
    script.pause_ns = SCRIPT_PAUSE_NS;
    script.peek = script.receive_result = -EAGAIN;
    script.entries = calloc(MAX_ENTRIES, sizeof(script_entry *));
    script.completions = calloc(MAX_COMPLETIONS, sizeof *script.completions);
}

static void free_group(weir__buffer_ring *group) {
    free(group->now);
    free(group->published);
    free(group);
}

unsigned script_end_abandoned(void) {
    unsigned left = 0;
    assert_int_equal(script.rings_open, 0);
    for (unsigned i = 0; i < script.group_count; i++) {
        left += !script.groups[i]->is_closed;
        free_group(script.groups[i]);
    }
    for (unsigned i = 0; i < script.entry_count; i++)
        free(script.entries[i]);
    free(script.entries);
    free(script.completions);
    script.entries = NULL;
    script.completions = NULL;
    atomic_store(&mapped, 0);
    script.entry_count = script.group_count = 0;
    return left;
}

void script_end(void) {
    unsigned fds = script_fds_open();
    uint64_t bytes = script_mapped();
    assert_int_equal(script_end_abandoned(), 0);
    assert_int_equal(fds, 0);
    assert_int_equal(bytes, 0);
}

/* ---- what the kernel refuses ------------------------------------------------------------------------ */

void script_fail(enum script_call call, int error, unsigned times) {
    script.faults[call].error = error;
    script.faults[call].times = times;
}

int script_fault(enum script_call call) {
    if (script.faults[call].times == 0)
        return 0;
    script.faults[call].times--;
    return script.faults[call].error;
}

void script_refuse_setup(uint32_t flags) {
    script.refused_setup = flags;
}

void script_refuse_entries(unsigned more_than) {
    script.refused_entries = more_than;
}

void script_refuse_buffer_rings(uint16_t flags) {
    script.refused_buffers = flags;
}

void script_set_kernel(unsigned major, unsigned minor, unsigned patch) {
    script.kernel = major << 16 | minor << 8 | patch;
}

void script_set_features(uint32_t features) {
    script.features = features;
}

/* ---- rings ------------------------------------------------------------------------------------------ */

static int try_open(unsigned sq_entries, uint32_t setup_flags) {
    int r = script_fault(SCRIPT_OPEN);
    if (r < 0)
        return r;
    if ((setup_flags & script.refused_setup) != 0)
        return -EINVAL;
    return sq_entries > script.refused_entries ? -ENOMEM : 0;
}

int weir__ring_open(const weir_allocator *allocator, unsigned sq_entries, unsigned cq_entries,
                    uint32_t setup_flags, weir__ring **ret_ring) {
    int r = try_open(sq_entries, setup_flags);
    assert_true(script.attempt_count < MAX_ATTEMPTS);
    script.attempts[script.attempt_count++] = (script_attempt){ sq_entries, cq_entries, setup_flags, r };
    if (r < 0)
        return r;
    weir__ring *ring = weir__alloc_zeroed(allocator, sizeof *ring);
    if (ring == NULL)
        return -ENOMEM;
    ring->entries = 1;
    while (ring->entries < sq_entries)
        ring->entries *= 2;
    ring->cq_entries = cq_entries > ring->entries ? cq_entries : ring->entries;
    ring->queue = calloc(ring->entries, sizeof *ring->queue);
    ring->allocator = allocator;
    ring->process = getpid();
    script.ring = ring;
    script.rings_open++;
    *ret_ring = ring;
    return 0;
}

void weir__ring_close(weir__ring *ring) {
    for (unsigned i = 0; i < script.entry_count; i++)
        script.entries[i]->is_live = false;
    script.completion_head = script.visible_tail = script.completion_tail;
    script.ring = NULL;
    script.rings_open--;
    free(ring->queue);
    weir__free(ring->allocator, ring, sizeof *ring);
}

/* A child of fork has no copy of the real one: whoever looks into it there is killed. */
static void look_into(const weir__ring *ring) {
    if (getpid() != ring->process)
        abort();
}

uint32_t weir__ring_features(const weir__ring *ring) {
    (void)ring;
    return script.features;
}

int weir__ring_enable(weir__ring *ring) {
    int r = script_fault(SCRIPT_ENABLE);
    ring->is_enabled = r >= 0;
    return r;
}

unsigned script_attempts(void) {
    return script.attempt_count;
}

script_attempt script_attempt_at(unsigned index) {
    assert_true(index < script.attempt_count);
    return script.attempts[index];
}

unsigned script_rings_open(void) {
    return script.rings_open;
}

/* ---- submissions ------------------------------------------------------------------------------------ */

struct io_uring_sqe *weir__ring_sqe(weir__ring *ring) {
    if (ring->queued == ring->entries)
        return NULL;
    struct io_uring_sqe *sqe = &ring->queue[ring->queued++];
    memset(sqe, 0, sizeof *sqe);
    return sqe;
}

unsigned weir__ring_unsubmitted(const weir__ring *ring) {
    look_into(ring);
    return ring->queued;
}

static script_entry *find_live(uint64_t user_data) {
    for (unsigned i = script.entry_count; i-- > 0;)
        if (script.entries[i]->is_live && script.entries[i]->sqe.user_data == user_data)
            return script.entries[i];
    return NULL;
}

static void answer_cancel(script_entry *cancel) {
    script_entry *target = find_live(cancel->sqe.addr);
    cancel->is_seen = true;
    if (target != NULL)
        script_complete(target, -ECANCELED, 0);
    script_complete(cancel, target != NULL ? 0 : -ENOENT, 0);
}

/* A send that says nothing if it was taken whole. */
static void send_silently(script_entry *entry) {
    size_t taken = script_take_room(entry->sqe.len);
    assert_int_equal(entry->sqe.msg_flags, MSG_NOSIGNAL | MSG_DONTWAIT | MSG_WAITALL);
    if (taken == entry->sqe.len)
        entry->is_live = false;
    else
        script_complete(entry, taken > 0 ? (int32_t)taken : -EAGAIN, 0);
}

static unsigned submit(weir__ring *ring) {
    unsigned count = ring->queued;
    for (unsigned i = 0; i < count; i++) {
        script_entry *entry = calloc(1, sizeof *entry);
        assert_true(entry != NULL && script.entry_count < MAX_ENTRIES);
        entry->sqe = ring->queue[i];
        entry->is_live = true;
        script.entries[script.entry_count++] = entry;
        if (script.answers_cancels && entry->sqe.opcode == IORING_OP_ASYNC_CANCEL)
            answer_cancel(entry);
        if ((entry->sqe.flags & IOSQE_CQE_SKIP_SUCCESS) != 0)
            send_silently(entry);
    }
    ring->queued = 0;
    return count;
}

static void show_completions(unsigned cq_entries) {
    while (script.visible_tail != script.completion_tail &&
           script.visible_tail - script.completion_head < cq_entries)
        script.visible_tail++;
}

int weir__ring_enter(weir__ring *ring, unsigned wait, uint32_t enter_flags, int64_t timeout_ns) {
    if (!ring->is_enabled)
        return -EBADFD;
    script.last_enter = (script_enter){ script.last_enter.count + 1, wait, 0, enter_flags, timeout_ns };
    int r = script_fault(SCRIPT_ENTER);
    if (r < 0)
        return r;
    unsigned count = submit(ring);
    script.last_enter.submitted = count;
    if (script.hook != NULL)
        script.hook(script.hook_userdata);
    if ((enter_flags & IORING_ENTER_GETEVENTS) != 0)
        show_completions(ring->cq_entries);
    if (script.visible_tail - script.completion_head >= wait)
        return (int)count;
    if (timeout_ns < 0)
        fail_msg("the library sleeps for ever");
    script.now += timeout_ns;
    return count > 0 ? (int)count : -ETIME;
}

script_enter script_last_enter(void) {
    return script.last_enter;
}

script_entry *script_expect(uint8_t opcode, int fd) {
    for (unsigned i = 0; i < script.entry_count; i++) {
        script_entry *entry = script.entries[i];
        if (entry->is_seen)
            continue;
        assert_int_equal(entry->sqe.opcode, opcode);
        assert_int_equal(entry->sqe.fd, fd);
        entry->is_seen = true;
        return entry;
    }
    fail_msg("nothing was submitted where opcode %u on %d was expected", opcode, fd);
    abort();
}

script_entry *script_expect_cancel(const script_entry *target) {
    script_entry *entry = script_expect(IORING_OP_ASYNC_CANCEL, -1);
    assert_true(entry->sqe.addr == target->sqe.user_data);
    return entry;
}

script_entry *script_find(uint8_t opcode, int fd) {
    for (unsigned i = 0; i < script.entry_count; i++) {
        script_entry *entry = script.entries[i];
        if (!entry->is_seen && entry->sqe.opcode == opcode && entry->sqe.fd == fd) {
            entry->is_seen = true;
            return entry;
        }
    }
    return NULL;
}

unsigned script_unseen(void) {
    unsigned count = 0;
    for (unsigned i = 0; i < script.entry_count; i++)
        count += !script.entries[i]->is_seen;
    return count;
}

script_entry *script_live(unsigned index) {
    for (unsigned i = 0; i < script.entry_count; i++)
        if (script.entries[i]->is_live && index-- == 0)
            return script.entries[i];
    return NULL;
}

script_entry *script_live_target(const script_entry *cancel) {
    return find_live(cancel->sqe.addr);
}

/* ---- completions ------------------------------------------------------------------------------------ */

void script_complete(script_entry *entry, int32_t res, uint32_t flags) {
    assert_true(entry->is_live);
    assert_true(script.completion_tail < MAX_COMPLETIONS);
    script.completions[script.completion_tail++] = (weir__cqe){ entry->sqe.user_data, res, flags };
    if ((flags & IORING_CQE_F_MORE) == 0)
        entry->is_live = false;
    if (script.visible_tail == script.completion_tail - 1 && !script.defers)
        show_completions(script.ring->cq_entries);
}

bool weir__ring_cqe(weir__ring *ring, weir__cqe *ret_cqe) {
    look_into(ring);
    if (script.completion_head == script.visible_tail)
        return false;
    *ret_cqe = script.completions[script.completion_head++];
    return true;
}

unsigned weir__ring_ready(const weir__ring *ring) {
    look_into(ring);
    return script.visible_tail - script.completion_head;
}

bool weir__ring_has_cqe(const weir__ring *ring) {
    look_into(ring);
    return script.completion_head != script.visible_tail;
}

void script_defer(bool defers) {
    script.defers = defers;
}

uint32_t weir__ring_flags(const weir__ring *ring) {
    look_into(ring);
    bool has_more = script.visible_tail != script.completion_tail;
    if (script.defers && has_more)
        return IORING_SQ_TASKRUN;
    return script.is_overflown || has_more ? IORING_SQ_CQ_OVERFLOW : 0;
}

void script_overflow(bool is_overflown) {
    script.is_overflown = is_overflown;
}

unsigned script_completions(void) {
    return script.completion_tail - script.completion_head;
}

void script_answer_cancels(bool answers) {
    script.answers_cancels = answers;
}

void script_on_enter(void (*hook)(void *userdata), void *userdata) {
    script.hook = hook;
    script.hook_userdata = userdata;
}

#if defined(__SANITIZE_ADDRESS__) || defined(__clang__)
__attribute__((no_sanitize("address")))
#endif
void script_write(void *target, const void *bytes, size_t size) {
    volatile uint8_t *to = target; /* volatile: never made into a call of memcpy, which is watched */
    const volatile uint8_t *from = bytes;
    for (size_t i = 0; i < size; i++)
        to[i] = from[i];
}

static weir__buffer_ring *find_group(uint16_t id) {
    for (unsigned i = script.group_count; i-- > 0;)
        if (script.groups[i]->is_registered && script.groups[i]->group == id)
            return script.groups[i];
    return NULL;
}

/* Take up to @size bytes of the group's next buffer. Return: how many; *ret_flags says what is left of it. */
static size_t take_buffer(weir__buffer_ring *group, const void *bytes, size_t size, uint32_t *ret_flags) {
    weir__provided *head = &group->now[group->head & (group->entries - 1)];
    size_t taken = size < head->size ? size : head->size;
    bool is_incremental = (group->flags & IOU_PBUF_RING_INC) != 0;
    *ret_flags = IORING_CQE_F_BUFFER | (uint32_t)head->id << IORING_CQE_BUFFER_SHIFT;
    if (bytes != NULL)
        script_write(head->data, bytes, taken);
    if (is_incremental) {
        head->data = (uint8_t *)head->data + taken;
        head->size -= (uint32_t)taken;
        if (head->size > 0) {
            *ret_flags |= IORING_CQE_F_BUF_MORE;
            return taken;
        }
    }
    group->head++;
    return taken;
}

void script_receive(script_entry *entry, const void *bytes, size_t size, bool goes_on) {
    weir__buffer_ring *group = find_group(entry->sqe.buf_group);
    while (size > 0) {
        uint32_t flags;
        if (group == NULL || group->head == group->tail) {
            script_complete(entry, -ENOBUFS, 0);
            return;
        }
        size_t taken = take_buffer(group, bytes, size, &flags);
        bytes = (const uint8_t *)bytes + taken;
        size -= taken;
        script_complete(entry, (int32_t)taken, flags | (size > 0 || goes_on ? IORING_CQE_F_MORE : 0));
    }
}

void script_consume(const script_entry *entry, size_t size) {
    weir__buffer_ring *group = find_group(entry->sqe.buf_group);
    uint32_t flags;
    assert_non_null(group);
    while (size > 0) {
        assert_true(group->head != group->tail);
        size -= take_buffer(group, NULL, size, &flags);
    }
}

/* ---- buffers ---------------------------------------------------------------------------------------- */

int weir__buffer_ring_open(weir__ring *ring, uint16_t group, uint32_t entries, uint16_t flags,
                           const weir_allocator *allocator, weir__buffer_ring **ret_buffers) {
    (void)ring;
    int r = script_fault(SCRIPT_BUFFERS_OPEN);
    if (r < 0)
        return r;
    if ((flags & script.refused_buffers) != 0)
        return -EINVAL;
    assert_true(entries > 0 && (entries & (entries - 1)) == 0);
    assert_true(script.group_count < MAX_GROUPS);
    void *counted = weir__alloc(allocator, 1); /* the real edge allocates as well, and may fail */
    if (counted == NULL)
        return -ENOMEM;
    weir__free(allocator, counted, 1);
    weir__buffer_ring *buffers = calloc(1, sizeof *buffers);
    assert_non_null(buffers);
    buffers->now = calloc(entries, sizeof *buffers->now);
    buffers->allocator = allocator;
    buffers->entries = entries;
    buffers->group = group;
    buffers->flags = flags;
    buffers->is_registered = true;
    assert_null(find_group(group));
    script.groups[script.group_count++] = buffers;
    *ret_buffers = buffers;
    return 0;
}

int weir__buffer_ring_unregister(weir__ring *ring, weir__buffer_ring *buffers) {
    (void)ring;
    assert_true(buffers->is_registered && !buffers->is_closed);
    buffers->is_registered = false;
    return 0;
}

void weir__buffer_ring_close(weir__buffer_ring *buffers) {
    assert_true(!buffers->is_closed);
    assert_true(!buffers->is_registered || script.ring == NULL);
    buffers->is_registered = false;
    buffers->is_closed = true;
}

void weir__buffer_ring_publish(weir__buffer_ring *buffers, const weir__provided *provided, size_t count) {
    assert_true(buffers->is_registered);
    for (size_t i = 0; i < count; i++) {
        assert_true(provided[i].size > 0); /* at the head of a ring it would look like the end of a stream */
        assert_true(buffers->tail - buffers->head < buffers->entries);
        if (buffers->tail == buffers->capacity) {
            buffers->capacity = buffers->capacity > 0 ? buffers->capacity * 2 : 64;
            buffers->published = realloc(buffers->published, buffers->capacity * sizeof *buffers->published);
            assert_non_null(buffers->published);
        }
        buffers->published[buffers->tail] = provided[i];
        buffers->now[buffers->tail++ & (buffers->entries - 1)] = provided[i];
    }
}

weir__provided weir__buffer_ring_entry(const weir__buffer_ring *buffers, uint32_t position) {
    return buffers->now[position & (buffers->entries - 1)];
}

static weir__buffer_ring *last_group(void) {
    assert_true(script.group_count > 0);
    return script.groups[script.group_count - 1];
}

script_group script_last_group(void) {
    const weir__buffer_ring *group = last_group();
    return (script_group){ group->is_registered, group->group, group->flags,
                           group->entries,       group->tail,  group->tail - group->head };
}

unsigned script_groups_registered(void) {
    unsigned count = 0;
    for (unsigned i = 0; i < script.group_count; i++)
        count += script.groups[i]->is_registered;
    return count;
}

weir__provided script_published(uint32_t position) {
    const weir__buffer_ring *group = last_group();
    assert_true(position < group->tail);
    return group->published[position];
}

void script_write_into_buffer(uint16_t id, uint32_t offset, const void *bytes, size_t size) {
    const weir__buffer_ring *group = last_group();
    for (uint32_t i = group->tail; i-- > 0;)
        if (group->published[i].id == id) {
            assert_true(offset + size <= group->published[i].size);
            script_write((uint8_t *)group->published[i].data + offset, bytes, size);
            return;
        }
    fail_msg("buffer %u was not published", id);
}

/* ---- descriptors ------------------------------------------------------------------------------------ */

int script_new_fd(void) {
    assert_true(script.fd_count < MAX_FDS);
    script.is_fd_open[script.fd_count] = true;
    return FIRST_FD + (int)script.fd_count++;
}

int script_check_fd(int fd) {
    return fd >= FIRST_FD && fd < FIRST_FD + MAX_FDS && script.is_fd_open[fd - FIRST_FD] ? 0 : -EBADF;
}

unsigned script_fds_open(void) {
    unsigned count = 0;
    for (unsigned i = 0; i < script.fd_count; i++)
        count += script.is_fd_open[i];
    return count;
}

unsigned script_signals(void) {
    return atomic_load(&script.signals);
}

int weir__sys_socket(int family, int type) {
    (void)family, (void)type;
    return script_new_fd();
}

int weir__sys_bind(int fd, const struct sockaddr *address, socklen_t length) {
    (void)address, (void)length;
    return script_check_fd(fd);
}

int weir__sys_listen(int fd, int backlog) {
    script.backlog = backlog;
    return script_check_fd(fd);
}

int weir__sys_connect(int fd, const struct sockaddr *address, socklen_t length) {
    (void)address, (void)length;
    int r = script_check_fd(fd);
    script.connects++;
    return r < 0 ? r : script_fault(SCRIPT_CONNECT);
}

int weir__sys_shutdown(int fd, int how) {
    script.shutdowns += how == SHUT_WR;
    return script_check_fd(fd);
}

int script_backlog(void) {
    return script.backlog;
}

unsigned script_connects(void) {
    return script.connects;
}

unsigned script_shutdowns(void) {
    return script.shutdowns;
}

int weir__sys_setsockopt(int fd, int level, int name, int value) {
    (void)level, (void)name, (void)value;
    return script_check_fd(fd);
}

int weir__sys_getsockopt(int fd, int level, int name, int *ret_value) {
    *ret_value = name == SO_TYPE ? SOCK_STREAM : name == SO_DOMAIN ? AF_INET : 0;
    if (level == SOL_SOCKET && name == SO_PROTOCOL)
        *ret_value = IPPROTO_TCP;
    if (name == SO_ERROR) {
        *ret_value = script.socket_error;
        script.socket_error = 0;
    }
    return script_check_fd(fd);
}

int weir__sys_getsockname(int fd, struct sockaddr_storage *ret_address, socklen_t *ret_length) {
    struct sockaddr_in *in = (struct sockaddr_in *)ret_address;
    *in = (struct sockaddr_in){ .sin_family = AF_INET };
    *ret_length = sizeof *in;
    return script_check_fd(fd);
}

int weir__sys_getpeername(int fd, struct sockaddr_storage *ret_address, socklen_t *ret_length) {
    return script.peer < 0 ? script.peer : weir__sys_getsockname(fd, ret_address, ret_length);
}

void script_set_socket_error(int error) {
    script.socket_error = error;
}

void script_set_peer(int result) {
    script.peer = result;
}

int weir__sys_socketpair(int ret_fds[2]) {
    int r = script_fault(SCRIPT_SOCKETPAIR);
    if (r < 0)
        return r;
    ret_fds[0] = script_new_fd();
    ret_fds[1] = script_new_fd();
    return 0;
}

int weir__sys_send(int fd, const void *data, size_t size) {
    (void)data;
    int r = script_fault(SCRIPT_SEND);
    if (r == 0)
        r = script_check_fd(fd);
    return r < 0 ? r : (int)size;
}

void script_set_peek(int result) {
    script.peek = result;
}

unsigned script_peeks(void) {
    return script.peeks;
}

void script_set_lost(int error) {
    script.lost = error;
}

void script_set_unsent(int bytes) {
    script.unsent = bytes;
}

unsigned script_unsent_asked(void) {
    return script.unsent_asked;
}

void script_set_receive(const void *data, int result) {
    script.receive_data = data;
    script.receive_result = result;
}

unsigned script_receives(void) {
    return script.receives;
}

int weir__sys_receive(int fd, void *data, size_t size) {
    int r = script_fault(SCRIPT_RECEIVE);
    if (r == 0)
        r = script_check_fd(fd);
    script.receives++;
    if (r < 0 || script.receive_result <= 0)
        return r < 0 ? r : script.receive_result;
    r = (size_t)script.receive_result < size ? script.receive_result : (int)size;
    memcpy(data, script.receive_data, (size_t)r);
    script.receive_data += r;
    script.receive_result = script.receive_result > r ? script.receive_result - r : -EAGAIN;
    return r;
}

int weir__sys_unsent(int fd) {
    int r = script_check_fd(fd);
    script.unsent_asked++;
    return r < 0 ? r : script.unsent;
}

int weir__sys_peek(int fd) {
    (void)fd;
    script.peeks++;
    return script.peek;
}

int weir__sys_lost(int fd) {
    int r = script_check_fd(fd);
    return r < 0 ? r : script.lost;
}

int weir__sys_close(int fd) {
    assert_int_equal(script_check_fd(fd), 0); /* a descriptor closed twice may be another's */
    script.is_fd_open[fd - FIRST_FD] = false;
    return 0;
}

int weir__sys_set_nonblocking_cloexec(int fd) {
    return script_check_fd(fd);
}

int weir__sys_eventfd(void) {
    int r = script_fault(SCRIPT_EVENTFD);
    return r < 0 ? r : script_new_fd();
}

int weir__sys_eventfd_signal(int fd) {
    (void)fd;
    atomic_fetch_add(&script.signals, 1);
    return 0;
}

int weir__sys_signalfd(int number) {
    int r = script_fault(SCRIPT_SIGNALFD);
    if (r < 0)
        return r;
    int fd = script_new_fd();
    script.signal_of[fd - FIRST_FD] = number;
    return fd;
}

int weir__sys_read(int fd, void *data, size_t size) {
    assert_int_equal(script_check_fd(fd), 0);
    int number = script.signal_of[fd - FIRST_FD];
    assert_true(number > 0 && size == sizeof(struct signalfd_siginfo));
    if (script.raised[number] == 0)
        return -EAGAIN;
    script.raised[number]--;
    *(struct signalfd_siginfo *)data = (struct signalfd_siginfo){ .ssi_signo = (uint32_t)number };
    return (int)size;
}

int weir__sys_block_signal(int number) {
    bool was_blocked = script_is_blocked(number);
    script_block(number);
    return was_blocked;
}

int weir__sys_unblock_signal(int number) {
    assert_true(script_is_blocked(number));
    script.blocked &= ~(UINT64_C(1) << (number - 1));
    return 0;
}

void script_raise(int number) {
    script.raised[number]++;
}

void script_block(int number) {
    script.blocked |= UINT64_C(1) << (number - 1);
}

bool script_is_blocked(int number) {
    return (script.blocked >> (number - 1) & 1) != 0;
}

int weir__sys_unlink(const char *path) {
    (void)path;
    return 0;
}

int weir__sys_socket_file(const char *path, weir__sys_file *ret_file) {
    (void)path, (void)ret_file;
    return -ENOENT;
}

int weir__sys_interface_index(const char *name) {
    return strcmp(name, "lo") == 0 ? 1 : -ENODEV;
}

/* ---- memory and time -------------------------------------------------------------------------------- */

static void *map(size_t size, int advice) {
    void *memory = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, -1, 0);
    assert_true(memory != MAP_FAILED && madvise(memory, size, advice) == 0);
    return memory;
}

void *weir__sys_wiped_page(void) {
    return wiped_page = map(weir__sys_page_bytes(), MADV_WIPEONFORK);
}

void *weir__sys_map_private(size_t size) {
    if (script_fault(SCRIPT_MAP) < 0)
        return NULL;
    atomic_fetch_add(&mapped, size);
    return map(size, MADV_DONTFORK);
}

void weir__sys_unmap(void *memory, size_t size) {
    if (memory != wiped_page)
        atomic_fetch_sub(&mapped, size);
    munmap(memory, size);
}

uint64_t script_mapped(void) {
    return atomic_load(&mapped);
}

size_t weir__sys_page_bytes(void) {
    return 4096;
}

int64_t weir__sys_now(void) {
    return script.now;
}

void script_advance_ns(int64_t ns) {
    script.now += ns;
}

void weir__sys_yield(void) {
    sched_yield();
}

void weir__sys_pause(void) {
    script.now += script.pause_ns;
    script.pauses++;
    if (script.pause_hook != NULL)
        script.pause_hook(script.pause_userdata);
}

void script_on_pause(void (*hook)(void *userdata), void *userdata) {
    script.pause_hook = hook;
    script.pause_userdata = userdata;
}

unsigned script_pauses(void) {
    return script.pauses;
}

uint32_t weir__sys_kernel_version(void) {
    return script.kernel;
}

uintptr_t weir__sys_thread(void) {
    return (uintptr_t)pthread_self();
}
