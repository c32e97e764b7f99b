/* SPDX-License-Identifier: MIT */
#include "scripted/scripted.h"

#include <stdlib.h>

#include "support/support.h"

/* Readiness as the test tells it, and the calls that go with it. */

enum { MAX_SETS = 4096, MAX_READY = 1024, MAX_SENT = 1 << 20 };

static struct {
    script_set sets[MAX_SETS];
    unsigned set_count;
    struct {
        int fd;
        uint32_t events;
    } ready[MAX_READY];
    unsigned ready_first, ready_count;
    script_wait last_wait;
    unsigned coming, accepts, sends;
    size_t room, sent, last_vectors;
    uint8_t bytes[MAX_SENT];
    const char *name, *value;
} script;

void script_begin_epoll(void) {
    memset(&script, 0, sizeof script);
    script.room = SIZE_MAX;
}

/* ---- registering ------------------------------------------------------------------------------------ */

int weir__sys_epoll(void) {
    int r = script_fault(SCRIPT_EPOLL);
    return r < 0 ? r : script_new_fd();
}

/* The last call that changed what @fd is registered for, or NULL: it is not registered, or was closed since. */
static const script_set *registration(int fd) {
    if (script_check_fd(fd) < 0)
        return NULL;
    for (unsigned i = script.set_count; i-- > 0;)
        if (script.sets[i].fd == fd && script.sets[i].result == 0)
            return script.sets[i].operation != EPOLL_CTL_DEL ? &script.sets[i] : NULL;
    return NULL;
}

static int try_to_set(int operation, int fd) {
    int r = script_fault(SCRIPT_EPOLL_SET);
    if (r == 0)
        r = script_check_fd(fd);
    if (r < 0)
        return r;
    bool is_registered = registration(fd) != NULL;
    if (operation == EPOLL_CTL_ADD)
        return is_registered ? -EEXIST : 0;
    return is_registered ? 0 : -ENOENT;
}

int weir__sys_epoll_set(int epoll, int operation, int fd, uint32_t events, uint64_t data) {
    assert_int_equal(script_check_fd(epoll), 0);
    assert_true(script.set_count < MAX_SETS);
    int r = try_to_set(operation, fd);
    script.sets[script.set_count++] = (script_set){ operation, fd, events, data, r };
    return r;
}

unsigned script_sets(void) {
    return script.set_count;
}

script_set script_set_at(unsigned index) {
    assert_true(index < script.set_count);
    return script.sets[index];
}

script_set script_last_set(void) {
    assert_true(script.set_count > 0);
    return script.sets[script.set_count - 1];
}

bool script_is_registered(int fd) {
    return registration(fd) != NULL;
}

/* ---- waiting ---------------------------------------------------------------------------------------- */

void script_ready(int fd, uint32_t events) {
    assert_non_null(registration(fd));
    assert_true(script.ready_count < MAX_READY);
    script.ready[script.ready_count].fd = fd;
    script.ready[script.ready_count++].events = events;
}

script_wait script_last_wait(void) {
    return script.last_wait;
}

int weir__sys_epoll_wait(int epoll, struct epoll_event *ret_events, int most, int64_t timeout_ns) {
    assert_int_equal(script_check_fd(epoll), 0);
    assert_true(most > 0);
    int r = script_fault(SCRIPT_EPOLL_WAIT), told = 0;
    script.last_wait = (script_wait){ script.last_wait.count + 1, 0, timeout_ns };
    if (r < 0)
        return r;
    for (; told < most && script.ready_first < script.ready_count; script.ready_first++) {
        const script_set *it = registration(script.ready[script.ready_first].fd);
        if (it == NULL) /* not registered any more: that is nothing to tell */
            continue;
        ret_events[told++] =
            (struct epoll_event){ .events = script.ready[script.ready_first].events, .data.u64 = it->data };
    }
    if (script.ready_first == script.ready_count)
        script.ready_first = script.ready_count = 0;
    script.last_wait.told = (unsigned)told;
    if (told == 0 && timeout_ns < 0)
        fail_msg("the library sleeps for ever");
    if (told == 0)
        script_advance_ns(timeout_ns);
    return told;
}

/* ---- the calls that go with it ----------------------------------------------------------------------- */

void script_set_room(size_t bytes) {
    script.room = bytes;
}

size_t script_take_room(size_t bytes) {
    size_t taken = bytes < script.room ? bytes : script.room;
    if (script.room != SIZE_MAX)
        script.room -= taken;
    return taken;
}

size_t script_sent(const void **ret_bytes) {
    if (ret_bytes != NULL)
        *ret_bytes = script.bytes;
    return script.sent;
}

unsigned script_sends(void) {
    return script.sends;
}

size_t script_last_vectors(void) {
    return script.last_vectors;
}

int weir__sys_send_vectors(int fd, const struct iovec *vectors, size_t count) {
    assert_true(count > 0 && vectors != NULL);
    int r = script_fault(SCRIPT_SEND_VECTORS);
    script.sends++;
    script.last_vectors = count;
    if (r == 0)
        r = script_check_fd(fd);
    if (r < 0)
        return r;
    size_t taken = 0;
    for (size_t i = 0; i < count; i++) {
        size_t size = script_take_room(vectors[i].iov_len);
        assert_true(script.sent + size <= MAX_SENT);
        memcpy(script.bytes + script.sent, vectors[i].iov_base, size);
        script.sent += size;
        taken += size;
    }
    return taken > 0 ? (int)taken : -EAGAIN;
}

void script_come(unsigned count) {
    script.coming += count;
}

unsigned script_accepts(void) {
    return script.accepts;
}

int weir__sys_accept(int fd) {
    int r = script_fault(SCRIPT_ACCEPT);
    script.accepts++;
    if (r == 0)
        r = script_check_fd(fd);
    if (r < 0)
        return r;
    if (script.coming == 0)
        return -EAGAIN;
    script.coming--;
    return script_new_fd();
}

void script_set_environment(const char *name, const char *value) {
    script.name = name;
    script.value = value;
}

const char *weir__sys_environment(const char *name) {
    return script.name != NULL && strcmp(name, script.name) == 0 ? script.value : NULL;
}
