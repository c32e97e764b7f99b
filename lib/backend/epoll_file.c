/* SPDX-License-Identifier: MIT */
#include "backend/epoll.h"

/*
 * What the kernel has been asked to tell of each descriptor, and what it has told.
 *
 * Registrations are edge-triggered. A socket is registered once, for all that it may ever tell, and no more calls are
 * needed while it lives: what is ready is remembered, and forgotten when a call finds that it is so no more. Only what
 * nobody wants for long, bytes that come while a stream is paused, is deregistered when it is told.
 *
 * A descriptor that is ours is deregistered before it is closed. Closing alone does that only for the last one of its file,
 * and a child of fork may have another. One that is foreign is closed by whom it belongs to, and its number may be
 * another file's when it is seen again; so where the kernel does not know what we think it knows, it is told anew.
 */

enum { CHUNK = 64 };

weir__epoll_file *weir__epoll_file_find(const weir__epoll *e, int fd) {
    uint32_t chunk = (uint32_t)fd / CHUNK;
    if (fd < 0 || chunk >= e->chunk_count || e->files[chunk] == NULL)
        return NULL;
    return &e->files[chunk][(uint32_t)fd % CHUNK];
}

static int grow(weir__epoll *e, uint32_t chunk) {
    uint32_t count = e->chunk_count > 0 ? e->chunk_count : 16;
    while (count <= chunk)
        count *= 2;
    weir__epoll_file **files = weir__alloc_zeroed(e->allocator, count * sizeof *files);
    if (files == NULL)
        return -ENOMEM;
    if (e->chunk_count > 0)
        memcpy(files, e->files, e->chunk_count * sizeof *files);
    weir__free(e->allocator, e->files, e->chunk_count * sizeof *files);
    e->files = files;
    e->chunk_count = count;
    return 0;
}

int weir__epoll_file_get(weir__epoll *e, int fd, weir__epoll_file **ret_file) {
    if (fd < 0)
        return -EBADF;
    uint32_t chunk = (uint32_t)fd / CHUNK;
    if (chunk >= e->chunk_count && grow(e, chunk) < 0)
        return -ENOMEM;
    if (e->files[chunk] == NULL) {
        weir__epoll_file *files = weir__alloc_zeroed(e->allocator, CHUNK * sizeof *files);
        if (files == NULL)
            return -ENOMEM;
        for (uint32_t i = 0; i < CHUNK; i++) {
            files[i].fd = (int32_t)(chunk * CHUNK + i);
            files[i].ready = EPOLLOUT;
            weir__list_init(&files[i].polls);
        }
        e->files[chunk] = files;
    }
    *ret_file = &e->files[chunk][(uint32_t)fd % CHUNK];
    return 0;
}

static bool is_used(const weir__epoll_file *file) {
    return file->in != NULL || file->out != NULL || !weir__list_is_empty(&file->polls);
}

void weir__epoll_file_leave(weir__epoll *e, weir__epoll_file *file) {
    if (file->is_left || is_used(file))
        return;
    file->is_left = true;
    file->next_left = e->left;
    e->left = file->fd;
}

void weir__epoll_files_forget_left(weir__epoll *e) {
    while (e->left >= 0) {
        weir__epoll_file *file = weir__epoll_file_find(e, e->left);
        e->left = file->next_left;
        file->is_left = false;
        if (!is_used(file))
            weir__epoll_file_forget(e, file);
    }
}

void weir__epoll_files_free(weir__epoll *e) {
    for (uint32_t i = 0; i < e->chunk_count; i++)
        weir__free(e->allocator, e->files[i], CHUNK * sizeof **e->files);
    weir__free(e->allocator, e->files, e->chunk_count * sizeof *e->files);
}

static int set(weir__epoll *e, const weir__epoll_file *file, int operation, uint32_t events) {
    return weir__sys_epoll_set(e->fd, operation, file->fd, events | EPOLLET, (uint32_t)file->fd);
}

int weir__epoll_file_register(weir__epoll *e, weir__epoll_file *file, uint32_t events, bool again) {
    uint32_t all = file->registered | events;
    if (all == file->registered && !again && !file->is_foreign)
        return 0;
    int r = set(e, file, file->registered != 0 ? EPOLL_CTL_MOD : EPOLL_CTL_ADD, all);
    if (r == -ENOENT) /* it is another file by now */
        r = set(e, file, EPOLL_CTL_ADD, all);
    else if (r == -EEXIST)
        r = set(e, file, EPOLL_CTL_MOD, all);
    if (r >= 0)
        file->registered = all;
    return r < 0 ? r : 0;
}

void weir__epoll_file_forget(weir__epoll *e, weir__epoll_file *file) {
    if (file->registered != 0)
        (void)set(e, file, EPOLL_CTL_DEL, 0);
    file->registered = 0;
    file->ready = EPOLLOUT;
    file->gone = 0;
    file->is_known = false;
    file->is_foreign = !weir__list_is_empty(&file->polls);
}

void weir__epoll_file_ignore(weir__epoll *e, weir__epoll_file *file, uint32_t events) {
    uint32_t rest = file->registered & ~events;
    if (rest != file->registered && set(e, file, EPOLL_CTL_MOD, rest) >= 0)
        file->registered = rest;
}
