/* SPDX-License-Identifier: MIT */
#include "weir/slice.h"

#include "memory/block.h"

static const weir_slice empty = { NULL, 0, NULL };

static size_t heap_block_bytes(size_t capacity) {
    return sizeof(weir__heap_block) + capacity;
}

int weir__heap_block_new(weir_pool *pool, size_t capacity, weir__heap_block **ret_block) {
    if (capacity > SIZE_MAX / 2 || !weir__pool_charge(pool, heap_block_bytes(capacity)))
        return -ENOBUFS;
    weir__heap_block *block = weir__alloc(weir__pool_allocator(pool), heap_block_bytes(capacity));
    if (block == NULL) {
        weir__pool_uncharge(pool, heap_block_bytes(capacity));
        return -ENOMEM;
    }
    *block = (weir__heap_block){ .block = { .kind = WEIR__BLOCK_HEAP, .pool = pool, .capacity = capacity } };
    atomic_init(&block->block.shared, 1);
    *ret_block = block;
    return 0;
}

int weir__private_block_new(weir_pool *pool, weir__heap_block **ret_block) {
    size_t capacity = WEIR__PRIVATE_BYTES - sizeof(weir__heap_block);
    if (!weir__pool_charge_private(pool, WEIR__PRIVATE_BYTES))
        return -ENOBUFS;
    weir__heap_block *block = weir__alloc(weir__pool_allocator(pool), WEIR__PRIVATE_BYTES);
    if (block == NULL) {
        weir__pool_uncharge_private(pool, WEIR__PRIVATE_BYTES);
        return -ENOMEM;
    }
    *block = (weir__heap_block){
        .block = { .kind = WEIR__BLOCK_HEAP, .is_private = true, .pool = pool, .capacity = capacity },
        .used = capacity,
    };
    atomic_init(&block->block.shared, 1);
    *ret_block = block;
    return 0;
}

uint8_t *weir__heap_block_data(weir__heap_block *block) {
    return (uint8_t *)(block + 1);
}

void weir__block_release(weir_block *block) {
    weir_pool *pool = block->pool;
    if (block->kind == WEIR__BLOCK_BUFFER) {
        weir__pool_return(block);
    } else if (block->kind == WEIR__BLOCK_HEAP) {
        size_t bytes = heap_block_bytes(block->capacity);
        void (*uncharge)(weir_pool *, uint64_t) =
            block->is_private ? weir__pool_uncharge_private : weir__pool_uncharge;
        weir__free(weir__pool_allocator(pool), block, bytes);
        uncharge(pool, bytes);
    } else {
        weir__external_block external = *WEIR__CONTAINER(block, weir__external_block, block);
        weir__free(weir__pool_allocator(pool), block, sizeof external);
        if (external.release != NULL)
            external.release(external.data, external.size, external.userdata);
        weir__pool_uncharge(pool, 0);
    }
}

/* Another process's slice: its memory is not here. */
static bool is_foreign(const weir_block *block) {
    return weir__fork_is_child(weir__pool_generation(block->pool));
}

WEIR_API void weir_slice_ref(const weir_slice *slice, weir_slice *ret_slice) {
    if (ret_slice == NULL) {
        (void)WEIR__MISTAKE(-EINVAL, "nowhere to put the slice");
        return;
    }
    if (slice == NULL || slice->owner == NULL) {
        if (slice == NULL || slice->size != 0)
            (void)WEIR__MISTAKE(-EINVAL, "uncounted bytes: copy or wrap them");
        *ret_slice = empty;
        return;
    }
    if (is_foreign(slice->owner)) {
        *ret_slice = empty;
        return;
    }
    weir__block_ref_shared(slice->owner);
    *ret_slice = *slice;
}

WEIR_API void weir_slice_unref(weir_slice *slice) {
    if (slice == NULL)
        return;
    weir_block *owner = slice->owner;
    *slice = empty;
    if (owner != NULL && !is_foreign(owner))
        weir__block_unref_shared(owner);
}

WEIR_API int weir_slice_sub(const weir_slice *slice, size_t offset, size_t size, weir_slice *ret_slice) {
    if (slice == NULL || ret_slice == NULL || (slice->owner == NULL && slice->size != 0))
        return WEIR__MISTAKE(-EINVAL, "no slice, or uncounted bytes");
    if (slice->owner != NULL && is_foreign(slice->owner))
        return -ECHILD;
    if (offset > slice->size || size > slice->size - offset)
        return -ERANGE;
    weir_slice part = empty;
    if (size > 0)
        part = (weir_slice){ slice->data + offset, size, slice->owner };
    weir_slice_ref(&part, ret_slice);
    return 0;
}

WEIR_API int weir_slice_new(weir_pool *pool, size_t size, uint8_t **ret_data, weir_slice *ret_slice) {
    if (pool == NULL || size == 0 || ret_data == NULL || ret_slice == NULL)
        return WEIR__MISTAKE(-EINVAL, "no pool, no size, or nowhere to put the slice");
    if (weir__fork_is_child(weir__pool_generation(pool)))
        return -ECHILD;
    weir__heap_block *block = NULL;
    int r = weir__heap_block_new(pool, size, &block);
    if (r < 0)
        return r;
    block->used = size;
    *ret_data = weir__heap_block_data(block);
    *ret_slice = (weir_slice){ *ret_data, size, &block->block };
    return 0;
}

WEIR_API int weir_slice_copy(weir_pool *pool, const void *data, size_t size, weir_slice *ret_slice) {
    uint8_t *target;
    if (data == NULL)
        return WEIR__MISTAKE(-EINVAL, "no data");
    int r = weir_slice_new(pool, size, &target, ret_slice);
    if (r < 0)
        return r;
    memcpy(target, data, size);
    weir__pool_add_copied(pool, size);
    return 0;
}

WEIR_API int weir_slice_keep(const weir_slice *slice, weir_slice *ret_slice) {
    if (slice == NULL || ret_slice == NULL || (slice->owner == NULL && slice->size != 0))
        return WEIR__MISTAKE(-EINVAL, "no slice, or uncounted bytes");
    if (slice->owner != NULL && is_foreign(slice->owner))
        return -ECHILD;
    if (slice->size == 0 || !weir__block_is_large_for(slice->owner, slice->size)) {
        weir_slice_ref(slice->size > 0 ? slice : &empty, ret_slice);
        return 0;
    }
    return weir_slice_copy(slice->owner->pool, slice->data, slice->size, ret_slice);
}

WEIR_API int weir_slice_wrap(weir_pool *pool, const void *data, size_t size, weir_release_fn release,
                             void *userdata, weir_slice *ret_slice) {
    if (pool == NULL || data == NULL || size == 0 || ret_slice == NULL)
        return WEIR__MISTAKE(-EINVAL, "no pool, no data, or nowhere to put the slice");
    if (weir__fork_is_child(weir__pool_generation(pool)))
        return -ECHILD;
    weir__external_block *block = weir__alloc(weir__pool_allocator(pool), sizeof *block);
    if (block == NULL)
        return -ENOMEM;
    (void)weir__pool_charge(pool, 0); /* its bytes are not ours; it holds the pool */
    *block = (weir__external_block){ .block = { .kind = WEIR__BLOCK_EXTERNAL, .pool = pool },
                                     .release = release,
                                     .userdata = userdata,
                                     .data = data,
                                     .size = size };
    atomic_init(&block->block.shared, 1);
    *ret_slice = (weir_slice){ data, size, &block->block };
    return 0;
}
