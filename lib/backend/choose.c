/* SPDX-License-Identifier: MIT */
#include "backend/choose.h"

#include <stdio.h>

#include "backend/epoll.h"
#include "backend/uring.h"
#include "edge/sys.h"

/* For debugging: what a program that asks for nothing gets. */
static int ask_environment(uint32_t *ret_asked) {
    static const char *const names[] = { "auto", "uring-incremental", "uring-classic", "epoll" };
    const char *name = weir__sys_environment("WEIR_BACKEND");
    if (name == NULL || *name == '\0')
        return 0;
    for (uint32_t mode = WEIR_BACKEND_AUTO; mode <= WEIR_BACKEND_EPOLL; mode++) {
        if (strcmp(name, names[mode]) == 0) {
            *ret_asked = mode;
            return mode != WEIR_BACKEND_AUTO;
        }
    }
    return -EINVAL;
}

/* Not there and not allowed are a reason to go on without; what may be otherwise in a moment is an error. */
static bool is_missing(int error) {
    return error < 0 && error != -ENOMEM && error != -EMFILE && error != -ENFILE && error != -EAGAIN;
}

int weir__backend_choose(const weir_allocator *allocator, uint32_t asked, const weir__tuning *tuning,
                         weir__choice *ret_choice, char *reason, size_t reason_size) {
    int r = asked == WEIR_BACKEND_AUTO ? ask_environment(&asked) : 0;
    bool is_by_environment = r > 0;
    *ret_choice = (weir__choice){ .mode = WEIR_BACKEND_EPOLL, .is_free = asked == WEIR_BACKEND_AUTO };
    if (r < 0) {
        snprintf(reason, reason_size,
                 "WEIR_BACKEND in the environment is none of auto, uring-incremental, uring-classic, epoll");
        return r;
    }
    if (asked == WEIR_BACKEND_EPOLL) {
        snprintf(reason, reason_size, "epoll was asked for%s", is_by_environment ? ", by WEIR_BACKEND" : "");
        return 0;
    }
    r = weir__uring_choose(allocator, asked, tuning, &ret_choice->mode, reason, reason_size);
    if (!ret_choice->is_free || !is_missing(r))
        return r;
    ret_choice->mode = WEIR_BACKEND_EPOLL; /* the reason stands */
    return 0;
}

bool weir__backend_choose_next(weir__choice *choice, int error, char *reason, size_t reason_size) {
    if (!choice->is_free || choice->mode == WEIR_BACKEND_EPOLL || !is_missing(error))
        return false;
    snprintf(reason, reason_size, "%s", weir__uring_error_text(error));
    choice->mode = WEIR_BACKEND_EPOLL;
    return true;
}

uint32_t weir__backend_buffer_bytes(uint32_t mode) {
    /* An incremental buffer serves many receives; a classic one serves one, and most receives are small. */
    return weir__backend_is_incremental(mode) ? 64 << 10 : 16 << 10;
}

bool weir__backend_is_incremental(uint32_t mode) {
    return mode != WEIR_BACKEND_URING_CLASSIC;
}

int weir__backend_new(const weir_allocator *allocator, uint32_t mode, const weir__tuning *tuning, weir_pool *pool,
                      weir__waker *waker, weir__backend **ret_backend) {
    return mode == WEIR_BACKEND_EPOLL ? weir__epoll_new(allocator, pool, waker, ret_backend)
                                      : weir__uring_new(allocator, mode, tuning, pool, waker, ret_backend);
}

const char *weir__backend_error_text(uint32_t mode, int error) {
    return mode == WEIR_BACKEND_EPOLL ? weir_error_text(error) : weir__uring_error_text(error);
}
