/* SPDX-License-Identifier: MIT */
/*
 * The reference: what one would write by hand on io_uring for these jobs and no others, as well as one can.
 *
 * All connections receive, multishot, into one incremental buffer ring: 16 buffers of 64 KiB are posted, each
 * is filled by many receives and goes back when the kernel is done with it and the last reply out of it is
 * sent. So nothing is copied. What a slow reader pins is replaced out of a fixed number of spare buffers, the
 * one used last first; if there is none receives end with -ENOBUFS, and are started again in their order as
 * buffers are posted.
 *
 * A connection's replies are pieces, a pointer and a size. It has one send under way; what comes meanwhile is
 * gathered by the next one. All that a turn brings is looked at once more at its end, by settle(), connection
 * by connection: there sends, receives and closes are decided, and one system call submits them and waits.
 * Variant direct calls send(2) as soon as a receive completes, and the ring gets only what did not fit into the
 * socket.
 *
 * In a proxy each connection's peer is the other one, in an echo itself, so both are the same program.
 */
#include <errno.h>
#include <liburing.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../server.h"
#include "ring_queue.h"

enum {
    SUBMISSIONS = 256,
    COMPLETIONS = 4096,
    GATHERED = 64, /* pieces in one send */
    QUEUE_LOW = SERVER_PROXY_QUEUE / 4
};

/* In the low bits of a completion's user_data; the rest is the connection's address. */
enum operation { RECEIVE, SEND, CANCEL, ACCEPT, OPERATION = 3 };

typedef struct connection {
    int fd;
    uint32_t pending;        /* operations of the kernel's */
    struct connection *peer; /* whom its bytes go to, or NULL */
    struct connection *next_touched, *next_parked;
    queue out;
    uint32_t offered; /* bytes of it, to the send that is under way */
    uint8_t *held;    /* of a message that is not whole */
    uint32_t held_size;
    bool is_touched, is_parked; /* in these lists */
    bool is_receiving, is_sending, is_paused;
    bool is_full;    /* the socket took less than it was given */
    bool has_ended;  /* no more will be received */
    bool has_shut;   /* and none sent */
    bool is_closing; /* gone when nothing is pending */
} connection;

/* What a sendmsg points to until it is submitted: one for each place in the submission queue. */
typedef struct frame {
    struct msghdr header;
    struct iovec vectors[GATHERED];
} frame;

typedef struct list {
    connection *first, **end;
} list;

static server_options options;
static bool is_direct;
static struct io_uring ring;
static frame frames[SUBMISSIONS];
static list touched = { NULL, &touched.first }, parked = { NULL, &parked.first };
static int listener;

/* ---- submissions ------------------------------------------------------------------------------------ */

/* (Busy: completions have to be taken first.) */
static void submit(unsigned wait) {
    int r = io_uring_submit_and_wait(&ring, wait);
    if (r < 0 && r != -EINTR && r != -EAGAIN && r != -EBUSY)
        server_die("io_uring_enter: %s", strerror(-r));
}

static struct io_uring_sqe *submission(void) {
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    while (sqe == NULL) {
        submit(0);
        sqe = io_uring_get_sqe(&ring);
    }
    return sqe;
}

static void tag(struct io_uring_sqe *sqe, connection *c, enum operation operation) {
    io_uring_sqe_set_data64(sqe, (uintptr_t)c | operation);
}

static void accept_all(void) {
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_multishot_accept(sqe, listener, NULL, NULL, SOCK_CLOEXEC);
    tag(sqe, NULL, ACCEPT);
}

static void receive(connection *c) {
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_recv_multishot(sqe, c->fd, NULL, 0, 0);
    sqe->flags |= IOSQE_BUFFER_SELECT;
    sqe->buf_group = GROUP;
    tag(sqe, c, RECEIVE);
    c->is_receiving = true;
    c->pending++;
}

static void cancel_receive(connection *c) {
    struct io_uring_sqe *sqe = submission();
    io_uring_prep_cancel64(sqe, (uintptr_t)c | RECEIVE, 0);
    sqe->flags |= IOSQE_CQE_SKIP_SUCCESS;
    tag(sqe, NULL, CANCEL);
}

static void send_queue(connection *c) {
    uint32_t count = c->out.count < GATHERED ? c->out.count : GATHERED;
    struct io_uring_sqe *sqe = submission();
    if (count == 1) {
        const piece *p = piece_at(&c->out, 0);
        io_uring_prep_send(sqe, c->fd, p->data, p->size, MSG_NOSIGNAL);
        c->offered = p->size;
    } else {
        frame *f = &frames[sqe - ring.sq.sqes];
        c->offered = 0;
        f->header = (struct msghdr){ .msg_iov = f->vectors, .msg_iovlen = count };
        for (uint32_t i = 0; i < count; i++) {
            const piece *p = piece_at(&c->out, i);
            f->vectors[i] = (struct iovec){ .iov_base = (void *)(uintptr_t)p->data, .iov_len = p->size };
            c->offered += p->size;
        }
        io_uring_prep_sendmsg(sqe, c->fd, &f->header, MSG_NOSIGNAL);
    }
    if (c->is_full) /* to try at once would be in vain */
        sqe->ioprio |= IORING_RECVSEND_POLL_FIRST;
    tag(sqe, c, SEND);
    c->is_full = false;
    c->is_sending = true;
    c->pending++;
}

/* ---- connections ------------------------------------------------------------------------------------ */

static void touch(connection *c) {
    if (c->is_touched)
        return;
    c->is_touched = true;
    c->next_touched = NULL;
    *touched.end = c;
    touched.end = &c->next_touched;
}

static void park(connection *c) {
    c->is_parked = true;
    c->next_parked = NULL;
    *parked.end = c;
    parked.end = &c->next_parked;
}

/* As many as there are buffers, in the order in which they found none. */
static void unpark(void) {
    for (uint32_t i = 0; i < posted && parked.first != NULL; i++) {
        connection *c = parked.first;
        parked.first = c->next_parked;
        if (parked.first == NULL)
            parked.end = &parked.first;
        c->is_parked = false;
        touch(c);
    }
}

static void close_soon(connection *c) {
    c->is_closing = true;
    touch(c);
}

/* The kernel ends what it has under way. */
static void fail(connection *c) {
    if (c == NULL || c->is_closing)
        return;
    shutdown(c->fd, SHUT_RDWR);
    close_soon(c);
    fail(c->peer);
}

static connection *connection_new(int fd) {
    connection *c = calloc(1, sizeof *c);
    if (c == NULL)
        server_die("no memory");
    c->fd = fd;
    touch(c);
    return c;
}

static void connection_free(connection *c) {
    clear(&c->out);
    if (c->peer != NULL && c->peer != c)
        c->peer->peer = NULL;
    close(c->fd);
    free(c->held);
    free(c);
}

static void reply(connection *c, piece p) {
    if (is_direct && c->out.count == 0) {
        ssize_t sent = send(c->fd, p.data, p.size, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent == (ssize_t)p.size || (sent < 0 && errno != EAGAIN)) {
            release(p.buffer);
            if (sent < 0)
                fail(c);
            return;
        }
        c->is_full = true;
        p.data += sent > 0 ? sent : 0;
        p.size -= (uint32_t)(sent > 0 ? sent : 0);
    }
    push(&c->out, p);
    touch(c);
}

/* ---- workloads -------------------------------------------------------------------------------------- */

static void hold(connection *c, const uint8_t *data, uint32_t size) {
    for (; c->held_size + size >= SERVER_HOLD_SIZE; c->held_size = 0) {
        uint32_t used = SERVER_HOLD_SIZE - c->held_size;
        data += used;
        size -= used;
        free(c->held);
        c->held = NULL;
        reply(c, (piece){ .data = server_block, .size = 1, .buffer = NOT_A_BUFFER });
    }
    if (size == 0)
        return;
    c->held = realloc(c->held, c->held_size + size);
    if (c->held == NULL)
        server_die("no memory");
    memcpy(c->held + c->held_size, data, size);
    c->held_size += size;
}

static void on_data(connection *c, piece p) {
    if (c->peer != NULL && !c->peer->is_closing) {
        reply(c->peer, p);
        return;
    }
    if (options.work == SERVER_HOLD)
        hold(c, p.data, p.size);
    release(p.buffer);
}

static void fill(connection *c) {
    while (c->out.bytes < SERVER_QUEUE)
        push(&c->out, (piece){ .data = server_block, .size = SERVER_WRITE_SIZE, .buffer = NOT_A_BUFFER });
}

static void on_connection(int fd) {
    connection *c = connection_new(server_accepted(fd));
    if (options.work == SERVER_ECHO)
        c->peer = c;
    if (options.work != SERVER_PROXY)
        return;
    int upstream = server_connect(options.upstream);
    if (upstream < 0) {
        fail(c);
        return;
    }
    c->peer = connection_new(upstream);
    c->peer->peer = c;
}

/* ---- a turn ----------------------------------------------------------------------------------------- */

/* Whether what c receives would go into a queue that is long. Between the two marks it stays as it was. */
static bool is_held_back(const connection *c) {
    return c->peer != NULL && c->peer->out.bytes > (c->is_paused ? QUEUE_LOW : SERVER_PROXY_QUEUE);
}

/* c has nothing left to send: is that all that there ever will be? */
static void settle_end(connection *c) {
    const connection *from = c->peer != NULL ? c->peer : c;
    if (c->has_shut || !from->has_ended)
        return;
    c->has_shut = true;
    if (c->peer == NULL || c->peer->has_shut) {
        close_soon(c);
        if (c->peer != NULL)
            close_soon(c->peer);
    } else {
        shutdown(c->fd, SHUT_WR);
    }
}

static void settle_input(connection *c) {
    bool is_paused = is_held_back(c);
    if (is_paused && !c->is_paused && c->is_receiving)
        cancel_receive(c);
    c->is_paused = is_paused;
    if (!is_paused && !c->is_receiving && !c->is_parked && !c->has_ended)
        receive(c);
}

static void settle(connection *c) {
    if (c->is_closing) {
        if (c->pending == 0 && !c->is_parked)
            connection_free(c);
        return;
    }
    if (c->out.count == 0 && options.work == SERVER_SOURCE && !c->has_ended)
        fill(c);
    if (c->out.count > 0 && !c->is_sending)
        send_queue(c);
    if (c->out.count == 0)
        settle_end(c);
    settle_input(c);
    if (c->peer != NULL && c->peer != c && is_held_back(c->peer) != c->peer->is_paused)
        touch(c->peer);
}

static void settle_all(void) {
    while (touched.first != NULL) {
        connection *c = touched.first;
        touched.first = c->next_touched;
        if (touched.first == NULL)
            touched.end = &touched.first;
        c->is_touched = false;
        settle(c);
    }
}

static void on_receive(connection *c, const struct io_uring_cqe *cqe) {
    if ((cqe->flags & IORING_CQE_F_MORE) == 0) {
        c->is_receiving = false;
        c->pending--;
        touch(c);
    }
    if (cqe->res > 0) {
        piece p = received(cqe);
        if (c->is_closing)
            release(p.buffer);
        else
            on_data(c, p);
    } else if (cqe->res == 0) {
        c->has_ended = true;
        if (c->peer != NULL)
            touch(c->peer);
        if (options.work == SERVER_SOURCE)
            fail(c);
    } else if (cqe->res == -ENOBUFS) {
        park(c);
    } else if (cqe->res != -ECANCELED && cqe->res != -EINTR) {
        fail(c);
    }
}

static void on_send(connection *c, int res) {
    c->is_sending = false;
    c->pending--;
    touch(c);
    if (res < 0) {
        if (res != -EINTR)
            fail(c);
        return;
    }
    c->is_full = (uint32_t)res < c->offered;
    consume(&c->out, (uint32_t)res);
}

static void on_completion(const struct io_uring_cqe *cqe) {
    connection *c = (connection *)(uintptr_t)(cqe->user_data & ~(uint64_t)OPERATION);
    switch ((enum operation)(cqe->user_data & OPERATION)) {
    case RECEIVE:
        on_receive(c, cqe);
        break;
    case SEND:
        on_send(c, cqe->res);
        break;
    case ACCEPT:
        if (cqe->res >= 0)
            on_connection(cqe->res);
        else if (cqe->res != -ECONNABORTED && cqe->res != -EINTR)
            server_die("accept: %s", strerror(-cqe->res));
        if ((cqe->flags & IORING_CQE_F_MORE) == 0)
            accept_all();
        break;
    case CANCEL:
        break; /* it was over already */
    }
}

static void turn(void) {
    struct io_uring_cqe *cqe;
    unsigned head, count = 0;
    io_uring_for_each_cqe(&ring, head, cqe) {
        on_completion(cqe);
        count++;
    }
    io_uring_cq_advance(&ring, count);
    unpark();
    settle_all();
    submit(1);
}

static void open_ring(void) {
    const unsigned flags =
        IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN | IORING_SETUP_SUBMIT_ALL | IORING_SETUP_CQSIZE;
    struct io_uring_params params = { .flags = flags | IORING_SETUP_NO_SQARRAY, .cq_entries = COMPLETIONS };
    int r = io_uring_queue_init_params(SUBMISSIONS, &ring, &params);
    if (r == -EINVAL) { /* before Linux 6.6 */
        params = (struct io_uring_params){ .flags = flags, .cq_entries = COMPLETIONS };
        r = io_uring_queue_init_params(SUBMISSIONS, &ring, &params);
    }
    if (r < 0)
        server_unsupported("io_uring_setup: %s", strerror(-r));
    (void)io_uring_register_ring_fd(&ring);
}

int main(int argc, char **argv) {
    static const char *const variants[] = { "ring", "direct", NULL };
    server_arguments(argc, argv, variants, &options);
    is_direct = server_is_variant(&options, "direct");
    open_ring();
    open_buffers(&ring);
    listener = server_listen(&options);
    accept_all();
    server_ready(is_direct ? "uring-incremental-direct" : "uring-incremental");
    for (;;)
        turn();
}
