/* SPDX-License-Identifier: MIT */

/* The other side: plain sockets that connect, talk and leave in every way that there is. */

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "soak/soak.h"

enum { MOST_LINKS = 16, PATIENCE_S = 60 };

enum manner {
    SHUT,   /* end our half, read to the end */
    LEAVE,  /* having read all, close */
    RESET,  /* at some point */
    VANISH, /* at some point, whatever lies unread */
    MANNERS
};

typedef struct guest {
    int fd; /* -1: over */
    request request;
    enum manner manner;
    bool is_tcp, is_slow, is_shut, is_told, may_be_thrown_out;
    bool waits; /* until its room is full */
    uint64_t sent, received;
    uint64_t to_send, to_receive; /* without the first byte of a member and of what is only looked at */
    uint64_t leave_after;         /* bytes sent and received */
    uint64_t urgent_at;           /* one urgent byte there; UINT64_MAX: none, 0 with DISCARD: many */
    size_t chunk;
    int64_t next_read, next_write, deadline;
} guest;

typedef struct batch {
    uint64_t random;
    guest links[MOST_LINKS];
    unsigned count;
} batch;

static uint64_t below(batch *b, uint64_t limit) {
    return test_random(&b->random) % limit;
}

/* Short more often than long. */
static uint64_t some_length(batch *b, unsigned most_bits) {
    return below(b, UINT64_C(1) << below(b, most_bits + 1)) + below(b, 3);
}

/* ---- connecting --------------------------------------------------------------------------------------- */

static int connect_to(const char *text, bool is_slow) {
    union {
        struct sockaddr any;
        struct sockaddr_in in;
        struct sockaddr_in6 in6;
        struct sockaddr_un un;
    } to;
    socklen_t length;
    memset(&to, 0, sizeof to);
    if (strncmp(text, "unix:@", 6) == 0) {
        to.un.sun_family = AF_UNIX;
        memcpy(to.un.sun_path + 1, text + 6, strlen(text + 6));
        length = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + 1 + strlen(text + 6));
    } else {
        in_port_t port = htons((uint16_t)strtoul(strrchr(text, ':') + 1, NULL, 10));
        if (text[0] == '[')
            to.in6 =
                (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = port, .sin6_addr = in6addr_loopback };
        else
            to.in = (struct sockaddr_in){ .sin_family = AF_INET,
                                          .sin_port = port,
                                          .sin_addr = { htonl(INADDR_LOOPBACK) } };
        length = text[0] == '[' ? sizeof to.in6 : sizeof to.in;
    }
    for (;;) {
        int fd = socket(to.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0), small = 8 << 10;
        if (fd < 0) {
            soak_fail("no socket for a peer: %d", errno);
            return -1;
        }
        if (is_slow)
            (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
        if (connect(fd, &to.any, length) == 0)
            return fd;
        close(fd);
        if (errno != EADDRNOTAVAIL) { /* else all ports rest from earlier connections: wait for one */
            soak_fail("connect to %s: %d", text, errno);
            return -1;
        }
        soak_sleep(10 * MS);
    }
}

static void add(batch *b, unsigned loop, enum place place, guest l) {
    l.is_tcp = place != UNIX;
    l.request.magic = MAGIC;
    l.chunk = 1 + (size_t)some_length(b, 15);
    l.leave_after = l.manner >= RESET ? below(b, l.to_send + l.to_receive + 1) : UINT64_MAX;
    l.deadline = soak_now() + PATIENCE_S * SECOND;
    l.fd = connect_to(soak->addresses[loop][place], l.is_slow);
    if (l.fd < 0)
        return;
    soak_count(CONNECTIONS, 1);
    if (l.is_slow)
        soak_count(SLOW_READERS, 1);
    b->links[b->count++] = l;
    if (send(l.fd, &l.request, sizeof l.request, MSG_NOSIGNAL) != sizeof l.request)
        soak_fail("a request was not taken: %d", errno);
}

/* Any one. */
static void add_some(batch *b) {
    static const uint8_t services[] = { ECHO, ECHO, ECHO, PROXY, SINK, KEEP, KEEP, DISCARD, SOURCE, SOURCE };
    enum place place = (enum place)below(b, PLACES);
    unsigned loop = (unsigned)below(b, LOOPS);
    guest l = { .urgent_at = UINT64_MAX, .manner = below(b, 2) == 0 ? SHUT : (enum manner)below(b, MANNERS) };
    l.request.service = services[below(b, sizeof services)];
    l.request.seed = test_random(&b->random);
    l.is_slow = below(b, 24) == 0;
    /* What goes through both loops fits into sockets: else each could fill with what waits for the other. */
    uint64_t length = some_length(b, l.request.service == PROXY ? 14 : l.is_slow ? 14 : 19);
    l.request.length = length;
    l.to_send = l.request.service == SOURCE ? 0 : length;
    l.to_receive = l.request.service <= PROXY || l.request.service == SOURCE ? length : 0;
    if (l.manner == LEAVE && l.to_receive == 0)
        l.manner = SHUT; /* whose bytes are only looked at has to say that they are all */
    if (place != UNIX && l.request.service == DISCARD)
        l.urgent_at = 0;
    else if (place != UNIX && l.to_send > 0 && l.manner == SHUT && below(b, 4) == 0)
        l.urgent_at = below(b, l.to_send);
    add(b, loop, place, l);
}

/* One who talks, and some who listen. */
static void add_room(batch *b) {
    enum place place = (enum place)below(b, HANDED_OVER);
    unsigned loop = (unsigned)below(b, LOOPS), members = 2 + (unsigned)below(b, 4);
    guest l = { .urgent_at = UINT64_MAX, .manner = SHUT };
    l.request.seed = test_random(&b->random);
    l.request.room = test_random(&b->random);
    bool is_patient = l.request.room % 2 == 0;
    bool is_too_much = !is_patient && below(b, 3) == 0; /* for who is slow, even where all else is slow as well */
    l.request.length = l.to_receive = (is_too_much ? 1 << 20 : 0) + some_length(b, is_patient ? 15 : 21);
    l.request.service = LISTEN;
    for (unsigned i = 0; i < members; i++) {
        l.is_slow = i == 0;
        l.manner = i == 1 && below(b, 3) == 0 ? RESET : LEAVE;
        l.may_be_thrown_out = !is_patient;
        add(b, loop, place, l);
    }
    l = (guest){
        .urgent_at = UINT64_MAX, .manner = SHUT, .request = l.request, .to_send = l.request.length, .waits = true
    };
    l.request.service = TALK;
    add(b, loop, place, l);
}

/* ---- talking --------------------------------------------------------------------------------------------- */

static void over(guest *l) {
    close(l->fd);
    l->fd = -1;
}

static void fail(guest *l, const char *what) {
    soak_fail("a peer of service %u, manner %d, %llu of %llu sent, %llu of %llu received: %s (%d)",
              l->request.service, (int)l->manner, (unsigned long long)l->sent, (unsigned long long)l->to_send,
              (unsigned long long)l->received, (unsigned long long)l->to_receive, what, errno);
    over(l);
}

static bool has_verdict(const guest *l) {
    return l->request.service == SINK || l->request.service == KEEP || l->request.service == LISTEN;
}

static bool ends_anyhow(guest *l) {
    if (l->sent + l->received < l->leave_after)
        return false;
    const struct linger reset = { .l_onoff = 1 };
    if (l->manner == RESET)
        (void)setsockopt(l->fd, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
    soak_count(l->manner == RESET ? RESETS : ABRUPT, 1);
    over(l);
    return true;
}

static void at_end(guest *l) {
    bool is_whole = l->received == l->to_receive && l->sent == l->to_send && (l->is_told || !has_verdict(l));
    if (!is_whole && l->leave_after == UINT64_MAX && !l->may_be_thrown_out)
        fail(l, "the end came early");
    else
        over(l);
}

static void read_some(guest *l, int64_t now) {
    uint8_t bytes[64 << 10];
    ssize_t count = recv(l->fd, bytes, l->is_slow ? 1500 : sizeof bytes, MSG_DONTWAIT);
    if (count < 0 && errno == EAGAIN)
        return;
    if (count < 0) {
        if (l->leave_after == UINT64_MAX && !l->may_be_thrown_out)
            fail(l, "read");
        else
            over(l);
        return;
    }
    if (count == 0) {
        at_end(l);
        return;
    }
    const uint8_t *data = bytes;
    size_t size = (size_t)count;
    if (has_verdict(l) && !l->is_told) {
        if (*data != (l->request.service == LISTEN ? JOINED : GOOD))
            fail(l, "a wrong answer");
        l->is_told = true;
        data++;
        size--;
    }
    if (l->fd < 0)
        return;
    if (l->received + size > l->to_receive) {
        fail(l, "too many bytes");
        return;
    }
    if (size > 0 && test_differs(l->request.seed, l->received, data, size) >= 0) {
        fail(l, "wrong bytes");
        return;
    }
    l->received += size;
    soak_count(BYTES, size);
    l->next_read = l->is_slow ? now + 1 * MS + (int64_t)(l->received % 7) * MS : now;
    if (l->manner == LEAVE && l->received == l->to_receive && l->sent == l->to_send &&
        l->request.service != LISTEN)
        over(l);
}

static void write_some(guest *l) {
    uint8_t bytes[64 << 10];
    uint64_t end = l->urgent_at > l->sent && l->urgent_at < l->to_send ? l->urgent_at : l->to_send;
    size_t size = l->chunk < end - l->sent ? l->chunk : (size_t)(end - l->sent);
    if (l->urgent_at == l->sent || l->urgent_at == 0) { /* outside the stream: it is not seen there */
        if (send(l->fd, "!", 1, MSG_OOB | MSG_DONTWAIT | MSG_NOSIGNAL) == 1) {
            soak_count(URGENT, 1);
            l->urgent_at = l->request.service == DISCARD ? 0 : UINT64_MAX;
        } else if (errno == EAGAIN) {
            return;
        }
    }
    test_fill(l->request.seed, l->sent, bytes, size);
    ssize_t count = send(l->fd, bytes, size, MSG_DONTWAIT | MSG_NOSIGNAL);
    if (count > 0)
        l->sent += (uint64_t)count;
    else if (count < 0 && errno != EAGAIN)
        fail(l, "write");
}

static void shut(guest *l) {
    l->is_shut = true;
    soak_count(HALF_CLOSES, 1);
    (void)shutdown(l->fd, SHUT_WR);
}

/* Poll events that it waits for. */
static short wishes(const guest *l, int64_t now) {
    short events = 0;
    if (l->sent < l->to_send && !l->waits)
        events |= POLLOUT;
    if (now >= l->next_read)
        events |= POLLIN;
    return events;
}

static void go_on(guest *l, short events, int64_t now) {
    if (ends_anyhow(l))
        return;
    if ((events & POLLIN) != 0 || (events & (POLLERR | POLLHUP)) != 0)
        read_some(l, now);
    if (l->fd >= 0 && (events & POLLOUT) != 0 && l->sent < l->to_send && !l->waits)
        write_some(l);
    if (l->fd >= 0 && l->sent == l->to_send && !l->is_shut && l->manner == SHUT && !l->waits)
        shut(l);
    if (l->fd >= 0 && now > l->deadline)
        fail(l, "nothing comes of it");
}

/* Who talks begins when all are there who will listen. */
static void open_rooms(batch *b) {
    for (unsigned i = 0; i < b->count; i++) {
        bool is_full = true;
        for (unsigned j = 0; j < b->count && b->links[i].waits; j++) {
            const guest *l = &b->links[j];
            if (l->fd >= 0 && l->request.service == LISTEN && l->request.room == b->links[i].request.room)
                is_full = is_full && l->is_told;
        }
        if (is_full)
            b->links[i].waits = false;
    }
}

static void run_batch(batch *b) {
    struct pollfd fds[MOST_LINKS];
    b->count = 0;
    if (below(b, 6) == 0)
        add_room(b);
    for (uint64_t some = 1 + below(b, MOST_LINKS - b->count); some > 0; some--)
        add_some(b);
    for (unsigned open = b->count; open > 0 && atomic_load(&soak->has_failed) == 0;) {
        int64_t now = soak_now();
        open_rooms(b);
        for (unsigned i = 0; i < b->count; i++)
            fds[i] = (struct pollfd){ .fd = b->links[i].fd, .events = wishes(&b->links[i], now) };
        (void)poll(fds, b->count, 2);
        open = 0;
        for (unsigned i = 0; i < b->count; i++) {
            guest *l = &b->links[i];
            if (l->fd >= 0 && (fds[i].revents & POLLIN) == 0 && now < l->next_read)
                fds[i].revents &= POLLOUT; /* it is not ready to hear of an end */
            if (l->fd >= 0)
                go_on(l, fds[i].revents, now);
            open += l->fd >= 0;
        }
    }
    for (unsigned i = 0; i < b->count; i++)
        if (b->links[i].fd >= 0)
            over(&b->links[i]);
}

static void *run(void *userdata) {
    batch b = { .random = *(const uint64_t *)userdata };
    while (atomic_load(&soak->is_over) == 0 && atomic_load(&soak->has_failed) == 0) {
        if (atomic_load(&soak->is_quiet) == 0) {
            run_batch(&b);
            continue;
        }
        atomic_fetch_add(&soak->resting, 1);
        while (atomic_load(&soak->is_quiet) != 0 && atomic_load(&soak->is_over) == 0)
            soak_sleep(1 * MS);
        atomic_fetch_sub(&soak->resting, 1);
    }
    return NULL;
}

int peers_main(uint64_t seed) {
    pthread_t threads[PEER_THREADS];
    uint64_t seeds[PEER_THREADS];
    for (unsigned i = 0; i < PEER_THREADS; i++) {
        seeds[i] = seed * PEER_THREADS + i;
        if (pthread_create(&threads[i], NULL, run, &seeds[i]) != 0)
            abort();
    }
    for (unsigned i = 0; i < PEER_THREADS; i++)
        pthread_join(threads[i], NULL);
    return 0;
}
