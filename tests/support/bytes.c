/* SPDX-License-Identifier: MIT */
#include "support/bytes.h"

#include <string.h>

/* Eight bytes at once. Neighbours, streams and multiples of any buffer size must differ. */
static uint64_t word(uint64_t seed, uint64_t index) {
    uint64_t x = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15) + index * UINT64_C(0xD1B54A32D192ED03);
    x ^= x >> 29;
    x *= UINT64_C(0xBF58476D1CE4E5B9);
    return x ^ x >> 32;
}

uint8_t test_byte(uint64_t seed, uint64_t position) {
    return (uint8_t)(word(seed, position >> 3) >> (8 * (position & 7)));
}

void test_fill(uint64_t seed, uint64_t position, void *data, size_t size) {
    uint8_t *bytes = data;
    size_t i = 0;
    while (i < size && ((position + i) & 7) != 0)
        bytes[i] = test_byte(seed, position + i), i++;
    for (; size - i >= 8; i += 8) {
        uint64_t x = word(seed, (position + i) >> 3);
        memcpy(bytes + i, &x, 8);
    }
    for (; i < size; i++)
        bytes[i] = test_byte(seed, position + i);
}

static int64_t first_difference(uint64_t seed, uint64_t position, const uint8_t *bytes, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (bytes[i] != test_byte(seed, position + i))
            return (int64_t)(position + i);
    return -1;
}

int64_t test_differs(uint64_t seed, uint64_t position, const void *data, size_t size) {
    const uint8_t *bytes = data;
    size_t i = 0;
    while (i < size && ((position + i) & 7) != 0) {
        if (bytes[i] != test_byte(seed, position + i))
            return (int64_t)(position + i);
        i++;
    }
    for (; size - i >= 8; i += 8) {
        uint64_t x = word(seed, (position + i) >> 3);
        if (memcmp(bytes + i, &x, 8) != 0)
            return first_difference(seed, position + i, bytes + i, 8);
    }
    return first_difference(seed, position + i, bytes + i, size - i);
}

uint64_t test_random(uint64_t *state) {
    uint64_t x = *state += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}
