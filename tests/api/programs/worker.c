/* SPDX-License-Identifier: MIT */
#include "api/programs/client.h"

/* Requests are answered on a worker thread: it reads the slice there, makes the answer there, drops both references
 * there, and posts the answer back to a stream that may have ended meanwhile. */

/* ---- the program ------------------------------------------------------------------------------------- */

typedef struct job {
    struct job *next;
    weir_stream *stream; /* a reference */
    weir_slice request, answer;
} job;

static struct {
    pthread_mutex_t lock;
    pthread_cond_t some;
    job *first, **last;
    bool end;
    weir_loop *loop;
    weir_pool *pool;
} work = { .lock = PTHREAD_MUTEX_INITIALIZER, .some = PTHREAD_COND_INITIALIZER };

static void job_free(job *j) {
    weir_slice_unref(&j->request);
    weir_slice_unref(&j->answer);
    weir_stream_unref(j->stream);
    free(j);
}

static void answered(weir_loop *loop, void *userdata) {
    job *j = userdata;
    (void)loop;
    if (j->answer.size > 0 && weir_stream_write_slice(j->stream, &j->answer) < 0)
        weir_stream_abort(j->stream); /* closed meanwhile: harmless */
    job_free(j);
}

static void *be_worker(void *userdata) {
    (void)userdata;
    for (;;) {
        uint8_t *out;
        pthread_mutex_lock(&work.lock);
        while (work.first == NULL && !work.end)
            pthread_cond_wait(&work.some, &work.lock);
        job *j = work.first;
        if (j != NULL && (work.first = j->next) == NULL)
            work.last = &work.first;
        pthread_mutex_unlock(&work.lock);
        if (j == NULL)
            return NULL;
        if (weir_slice_new(work.pool, j->request.size, &out, &j->answer) >= 0)
            for (size_t i = 0; i < j->request.size; i++)
                out[i] = j->request.data[j->request.size - 1 - i];
        weir_slice_unref(&j->request);
        if (weir_loop_post(work.loop, answered, j) < 0)
            job_free(j); /* the loop is closed; the slices are good still */
    }
}

static void on_data(weir_stream *stream, const weir_slice *slice, void *userdata) {
    (void)userdata;
    job *j = calloc(1, sizeof *j);
    if (j == NULL || weir_slice_keep(slice, &j->request) < 0) {
        free(j);
        weir_stream_abort(stream);
        return;
    }
    j->stream = weir_stream_ref(stream);
    pthread_mutex_lock(&work.lock);
    *work.last = j;
    work.last = &j->next;
    pthread_cond_signal(&work.some);
    pthread_mutex_unlock(&work.lock);
}

static const weir_stream_callbacks serving = { .size = sizeof serving, .on_data = on_data };

static void on_accept(weir_listener *listener, weir_stream *stream, void *userdata) {
    (void)listener, (void)userdata;
    weir_stream_start(stream, &serving, NULL);
}

static const weir_listener_callbacks accepting = { .size = sizeof accepting, .on_accept = on_accept };

/* ---- its clients ------------------------------------------------------------------------------------- */

enum { CLIENTS = 6, REQUESTS = 200, LARGEST = 4000, HASTY = 40 };

typedef struct client {
    unsigned number;
    client_target server;
    pthread_t thread;
    const char *wrong;
} client;

static bool is_reverse(const uint8_t *answer, const uint8_t *request, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (answer[i] != request[size - 1 - i])
            return false;
    return true;
}

/* A request that lies across the end of a buffer comes in two slices, and is answered as two. */
static bool is_answer(const uint8_t *answer, const uint8_t *request, size_t size) {
    for (size_t first = size; first > 0; first--)
        if (is_reverse(answer, request, first) && is_reverse(answer + first, request + first, size - first))
            return true;
    return false;
}

static void *ask(void *userdata) {
    client *self = userdata;
    static const size_t sizes[] = { 1, 30, 900, LARGEST };
    int fd = client_connect(self->server);
    for (unsigned n = 0; n < REQUESTS && self->wrong == NULL; n++) {
        uint8_t request[LARGEST], answer[LARGEST];
        size_t size = sizes[(n + self->number) % 4];
        client_fill(self->number, n * LARGEST, request, size);
        self->wrong = client_send(fd, request, size);
        if (self->wrong == NULL)
            self->wrong = client_receive(fd, answer, size);
        if (self->wrong == NULL && !is_answer(answer, request, size))
            self->wrong = "an answer is not its request reversed";
    }
    close(fd);
    return NULL;
}

/* Ask, and be gone before the answer. */
static void *ask_and_leave(void *userdata) {
    client *self = userdata;
    for (unsigned n = 0; n < HASTY && self->wrong == NULL; n++) {
        struct linger linger = { .l_onoff = n % 2, .l_linger = 0 };
        int fd = client_connect(self->server);
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        self->wrong = client_send(fd, "are you there?", 14);
        close(fd);
    }
    return NULL;
}

static void *be_all_clients(void *userdata) {
    client *clients = userdata;
    for (unsigned i = 0; i <= CLIENTS; i++)
        pthread_create(&clients[i].thread, NULL, i < CLIENTS ? ask : ask_and_leave, &clients[i]);
    for (unsigned i = 0; i <= CLIENTS; i++)
        pthread_join(clients[i].thread, NULL);
    weir_loop_stop(work.loop);
    return NULL;
}

static void a_worker_answers_every_request_reversed(void **state) {
    (void)state;
    static client clients[CLIENTS + 1];
    weir_listener *listener;
    pthread_t worker, thread;
    work.last = &work.first;
    assert_int_equal(weir_loop_new(NULL, &work.loop), 0);
    work.pool = weir_pool_ref(weir_loop_get_pool(work.loop));
    assert_int_equal(pthread_create(&worker, NULL, be_worker, NULL), 0);
    assert_int_equal(weir_listener_open(work.loop, "127.0.0.1:0", NULL, &listener), 0);
    assert_int_equal(weir_listener_start(listener, &accepting, NULL), 0);
    for (unsigned i = 0; i <= CLIENTS; i++)
        clients[i] = (client){ .number = i, .server = client_find(listener) };
    assert_int_equal(pthread_create(&thread, NULL, be_all_clients, clients), 0);
    assert_int_equal(weir_loop_run(work.loop), 0);
    assert_int_equal(pthread_join(thread, NULL), 0);
    assert_int_equal(weir_loop_close(work.loop), 0); /* before the worker ends: its posts are refused */
    pthread_mutex_lock(&work.lock);
    work.end = true;
    pthread_cond_signal(&work.some);
    pthread_mutex_unlock(&work.lock);
    assert_int_equal(pthread_join(worker, NULL), 0);
    for (unsigned i = 0; i <= CLIENTS; i++)
        if (clients[i].wrong != NULL)
            fail_msg("client %u: %s", i, clients[i].wrong);
    weir_pool_stats stats = { .size = sizeof stats };
    assert_int_equal(weir_pool_get_stats(work.pool, &stats), 0);
    assert_int_equal(stats.used_bytes, 0);
    weir_pool_unref(work.pool);
    weir_loop_unref(work.loop);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_worker_answers_every_request_reversed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
