/* SPDX-License-Identifier: MIT */
#include "backend/waker.h"

#include "edge/sys.h"

int weir__waker_new(const weir_allocator *allocator, weir__waker **ret_waker) {
    weir__waker *waker = weir__alloc_zeroed(allocator, sizeof *waker);
    if (waker == NULL)
        return -ENOMEM;
    int fd = weir__sys_eventfd();
    if (fd < 0) {
        weir__free(allocator, waker, sizeof *waker);
        return fd;
    }
    waker->allocator = allocator;
    atomic_init(&waker->refs, 1);
    atomic_init(&waker->fd, fd);
    *ret_waker = waker;
    return 0;
}

void weir__waker_ref(weir__waker *waker) {
    atomic_fetch_add_explicit(&waker->refs, 1, memory_order_relaxed);
}

void weir__waker_unref(void *userdata) {
    weir__waker *waker = userdata;
    if (atomic_fetch_sub_explicit(&waker->refs, 1, memory_order_acq_rel) == 1) {
        weir__waker_close(waker);
        weir__free(waker->allocator, waker, sizeof *waker);
    }
}

void weir__waker_close(weir__waker *waker) {
    int fd = atomic_exchange(&waker->fd, -1);
    if (fd < 0)
        return;
    /* Somebody may have read the number and not written to it yet: the descriptor must not become another file
     * meanwhile. They are at one system call, so this is short. */
    while (atomic_load(&waker->users) > 0)
        weir__sys_yield();
    weir__sys_close(fd);
}

void weir__waker_sleep(weir__waker *waker) {
    atomic_store(&waker->sleeping, 1);
    atomic_thread_fence(memory_order_seq_cst);
}

void weir__waker_rise(weir__waker *waker) {
    atomic_store_explicit(&waker->sleeping, 0, memory_order_relaxed);
}

void weir__waker_wake(void *userdata) {
    weir__waker *waker = userdata;
    atomic_thread_fence(memory_order_seq_cst);
    if (atomic_load(&waker->sleeping) == 0 || atomic_exchange(&waker->sleeping, 0) == 0)
        return;
    atomic_fetch_add(&waker->users, 1);
    int fd = atomic_load(&waker->fd);
    if (fd >= 0) {
        (void)weir__sys_eventfd_signal(fd);
        atomic_fetch_add_explicit(&waker->wakes, 1, memory_order_relaxed);
    }
    atomic_fetch_sub(&waker->users, 1);
}
