/* SPDX-License-Identifier: MIT */
#include "sim/program.h"

/*
 * Options by name, of streams in any state: what is set is read back, what is refused changes nothing, and neither does it
 * anything of another stream, though streams of one listener have begun with the same settings.
 */

/* ---- what is legal ---------------------------------------------------------------------------------- */

static bool is_of_socket(int option) {
    return option >= WEIR_OPTION_NODELAY && option <= WEIR_OPTION_RECEIVE_BUFFER_BYTES;
}

static bool is_timeout(int option) {
    return option >= WEIR_OPTION_IDLE_TIMEOUT_NS && option <= WEIR_OPTION_LINGER_TIMEOUT_NS;
}

static bool is_buffer(int option) {
    return option == WEIR_OPTION_SEND_BUFFER_BYTES || option == WEIR_OPTION_RECEIVE_BUFFER_BYTES;
}

/* Which Unix sockets do not have. */
static bool is_of_tcp(int option) {
    return is_of_socket(option) && !is_buffer(option);
}

/* What the header says of this value, and the kernel of what it is asked. */
static int verdict_on(const connection *c, int option, int64_t value) {
    const int64_t *now = c->options;
    int64_t least = 0, most = INT64_MAX;
    switch (option) {
    case WEIR_OPTION_NODELAY:
    case WEIR_OPTION_KEEPALIVE:
        most = 1;
        break;
    case WEIR_OPTION_KEEPALIVE_IDLE_S:
    case WEIR_OPTION_KEEPALIVE_INTERVAL_S:
    case WEIR_OPTION_KEEPALIVE_PROBES:
        least = 1;
        most = app.is_unix ? INT32_MAX : option == WEIR_OPTION_KEEPALIVE_PROBES ? 127 : 32767;
        break;
    case WEIR_OPTION_USER_TIMEOUT_MS:
        most = INT32_MAX;
        break;
    case WEIR_OPTION_SEND_BUFFER_BYTES:
    case WEIR_OPTION_RECEIVE_BUFFER_BYTES:
        least = 1;
        most = INT32_MAX;
        break;
    case WEIR_OPTION_QUEUE_LIMIT_BYTES:
        least = now[WEIR_OPTION_QUEUE_HIGH_BYTES] > 0 ? now[WEIR_OPTION_QUEUE_HIGH_BYTES] : 1;
        break;
    case WEIR_OPTION_QUEUE_HIGH_BYTES:
        least = now[WEIR_OPTION_QUEUE_LOW_BYTES];
        most = now[WEIR_OPTION_QUEUE_LIMIT_BYTES];
        break;
    case WEIR_OPTION_QUEUE_LOW_BYTES:
        most = now[WEIR_OPTION_QUEUE_HIGH_BYTES];
        break;
    case WEIR_OPTION_IDLE_TIMEOUT_NS:
    case WEIR_OPTION_WRITE_TIMEOUT_NS:
    case WEIR_OPTION_LINGER_TIMEOUT_NS:
        least = value == WEIR_NEVER ? WEIR_NEVER : 1;
        break;
    default:
        return -ENOPROTOOPT;
    }
    return value >= least && value <= most ? 0 : -EINVAL;
}

/* ---- what is set ------------------------------------------------------------------------------------ */

/* A stream begins with what its options say; of its socket with what the kernel says. */
void begin_options(connection *c, const weir_stream_options *options) {
    bool is_nagle = (options->flags & WEIR_STREAM_NAGLE) != 0,
         is_kept = (options->flags & WEIR_STREAM_KEEPALIVE) != 0;
    for (int option = WEIR_OPTION_NODELAY; is_of_socket(option); option++)
        c->options[option] = app.is_unix && is_of_tcp(option) ? 0 : c->ours->options[option];
    sim_require(app.is_unix || (c->options[WEIR_OPTION_NODELAY] == 1 || is_nagle), "a stream without TCP_NODELAY");
    sim_require(app.is_unix || (c->options[WEIR_OPTION_KEEPALIVE] == 1 || !is_kept),
                "a stream without SO_KEEPALIVE");
    c->options[WEIR_OPTION_QUEUE_LIMIT_BYTES] = (int64_t)app.queue_limit;
    c->options[WEIR_OPTION_QUEUE_HIGH_BYTES] = (int64_t)app.queue_high;
    c->options[WEIR_OPTION_QUEUE_LOW_BYTES] = (int64_t)app.queue_low;
    c->options[WEIR_OPTION_IDLE_TIMEOUT_NS] = options->idle_timeout_ns > 0 ? options->idle_timeout_ns : WEIR_NEVER;
    c->options[WEIR_OPTION_WRITE_TIMEOUT_NS] = options->write_timeout_ns;
    c->options[WEIR_OPTION_LINGER_TIMEOUT_NS] = options->linger_timeout_ns;
    c->highest_mark = app.queue_high;
}

/* All of them are what they should be. */
static void check_options(const connection *c) {
    bool is_closed = weir_stream_get_fd(c->stream) < 0;
    for (int option = WEIR_OPTION_NODELAY; option <= WEIR_OPTION_LINGER_TIMEOUT_NS; option++) {
        int64_t now = -7;
        int r = weir_stream_get_option(c->stream, option, &now);
        sim_require(r == (is_closed ? -EBADF : 0), "reading option %d said %s", option, weir_error_name(r));
        sim_require(now == (is_closed ? -7 : c->options[option]), "connection %llu: option %d is %lld, not %lld",
                    (unsigned long long)c->number, option, (long long)now, (long long)c->options[option]);
    }
}

/* For the account of what streams are limited by. */
static void note_change(connection *c, int option, int64_t value) {
    const int64_t longest_ns = INT64_C(1) << 50; /* which no run lasts */
    int64_t timeout_ns = value > 0 && value < longest_ns ? value : 0;
    uint64_t queued = weir_stream_get_queued(c->stream), high = (uint64_t)c->options[WEIR_OPTION_QUEUE_HIGH_BYTES];
    if (option == WEIR_OPTION_IDLE_TIMEOUT_NS)
        c->idle_ns = timeout_ns;
    else if (option == WEIR_OPTION_WRITE_TIMEOUT_NS)
        c->write_ns = timeout_ns;
    if (option == WEIR_OPTION_LINGER_TIMEOUT_NS && value < c->lingers_ns)
        c->lingers_ns = value; /* it is renewed while the peer reads */
    if (is_timeout(option)) {
        c->overdue = 0;
        c->waited_at = sim.now_ns; /* if that is late already, the peer is looked at twice all the same */
    }
    c->sent_before = c->stream->bytes_out;
    if (high > c->highest_mark)
        c->highest_mark = high;
    /* It may be above its mark now, or of more ranges than half of what it may have. */
    if (queued > high || c->stream->queue.count > 512)
        c->is_cork_lifted = true;
}

static int64_t near(int64_t value) {
    return value + (int64_t)sim_random(3) - 1;
}

/* Some that do something, and those at the edges. */
static int64_t choose_value(const connection *c, int option) {
    static const int64_t edges[] = { INT64_MIN, -2, -1, 0, 1, 2, INT32_MAX, INT64_C(1) << 31, INT64_MAX };
    const int64_t *now = c->options;
    int which = (int)sim_random(4);
    if (is_timeout(option) && which > 0)
        return sim_random(3) == 0 && option != WEIR_OPTION_LINGER_TIMEOUT_NS
                   ? WEIR_NEVER
                   : 1000000 + (int64_t)sim_random(100000000);
    if (option >= WEIR_OPTION_QUEUE_LIMIT_BYTES && option <= WEIR_OPTION_QUEUE_LOW_BYTES && which > 0)
        return which == 1   ? (int64_t)sim_random(4 * app.queue_high)
               : which == 2 ? (int64_t)sim_random((uint64_t)1 << sim_random(8))
                            : near(now[WEIR_OPTION_QUEUE_LIMIT_BYTES + (int)sim_random(3)]);
    if (which > 0)
        return (int64_t)sim_random((uint64_t)1 << sim_random(34));
    return edges[sim_random(sizeof edges / sizeof *edges)];
}

/* Would the run come to no end by it? Who lingers for ever does so with a peer that does nothing; who queues without
 * limit, for one that does not read. */
static bool is_excessive(int option, int64_t value) {
    const int64_t most_bytes = 4 << 20;
    return (option == WEIR_OPTION_LINGER_TIMEOUT_NS && (value == WEIR_NEVER || value > 2000000000)) ||
           (option == WEIR_OPTION_QUEUE_HIGH_BYTES && value > most_bytes);
}

static void set_option(connection *c, int option, int64_t value) {
    bool is_closed = weir_stream_get_fd(c->stream) < 0;
    int verdict = verdict_on(c, option, value);
    if (is_closed && verdict != -ENOPROTOOPT)
        verdict = -EBADF;
    note_all_piped(c);
    int r = weir_stream_set_option(c->stream, option, value);
    sim_require(r == verdict || (r == -ENOMEM && app.may_fail && verdict == 0 && !is_of_socket(option)),
                "option %d was set to %lld: %s", option, (long long)value, weir_error_name(r));
    sim_event(r == 0 ? SIM_EVENT_OPTION_CHANGED : SIM_EVENT_OPTION_REFUSED);
    if (r < 0)
        return;
    if (is_buffer(option)) /* the kernel makes of it what it likes */
        c->options[option] = c->ours->options[option];
    else if (!app.is_unix || !is_of_tcp(option))
        c->options[option] = value;
    if (!is_of_socket(option))
        note_change(c, option, value);
}

static bool has_stream(const connection *c) {
    return c->stream != NULL && c->closes == 0 && (c->is_started || c->is_held);
}

/* So near to each other and to nothing that a byte more or less in the queue is beyond one. */
static void tighten_marks(connection *c) {
    int64_t low = (int64_t)sim_random(3);
    set_option(c, WEIR_OPTION_QUEUE_LOW_BYTES, 0);
    set_option(c, WEIR_OPTION_QUEUE_HIGH_BYTES, low + (int64_t)sim_random(3));
    set_option(c, WEIR_OPTION_QUEUE_LOW_BYTES, low);
}

void change_option(connection *c) {
    if (!has_stream(c))
        return;
    if (sim_random(4) == 0 && c->pipe_from == NULL)
        tighten_marks(c);
    int option = (int)sim_random(WEIR_OPTION_LINGER_TIMEOUT_NS + 2) - (sim_random(16) == 0);
    int64_t value = choose_value(c, option);
    bool is_mark = option >= WEIR_OPTION_QUEUE_LIMIT_BYTES && option <= WEIR_OPTION_QUEUE_LOW_BYTES;
    /* When a queue that a pipe fills was full, and by which mark, would be another account. */
    bool is_unaccounted = (is_mark && c->pipe_from != NULL) || (is_timeout(option) && c->stream->has_failed);
    if (!is_excessive(option, value) && !is_unaccounted)
        set_option(c, option, value);
    check_options(c);
    const connection *other = any_connection();
    if (has_stream(other))
        check_options(other);
}

/* What was to be seen of short times has been. One of nanoseconds comes up in each turn while a stream waits for memory. */
void calm_option(connection *c) {
    enum { SHORT_NS = 1000000 };
    if (!has_stream(c) || c->stream->has_failed)
        return;
    set_option(c, WEIR_OPTION_LINGER_TIMEOUT_NS, 1000000000);
    for (int option = WEIR_OPTION_IDLE_TIMEOUT_NS; option <= WEIR_OPTION_WRITE_TIMEOUT_NS; option++)
        if (c->options[option] > 0 && c->options[option] < SHORT_NS)
            set_option(c, option, SHORT_NS);
}
