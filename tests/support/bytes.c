/* SPDX-License-Identifier: MIT */
#include "support/bytes.h"

uint8_t test_byte(uint64_t seed, uint64_t position) {
    /* Neighbours, streams and multiples of any buffer size must differ. */
    uint64_t x = (seed + 1) * UINT64_C(0x9E3779B97F4A7C15) + (position >> 3) * UINT64_C(0xD1B54A32D192ED03);
    x ^= x >> 29;
    x *= UINT64_C(0xBF58476D1CE4E5B9);
    x ^= x >> 32;
    return (uint8_t)(x >> (8 * (position & 7)));
}

void test_fill(uint64_t seed, uint64_t position, void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        ((uint8_t *)data)[i] = test_byte(seed, position + i);
}

int64_t test_differs(uint64_t seed, uint64_t position, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++)
        if (((const uint8_t *)data)[i] != test_byte(seed, position + i))
            return (int64_t)(position + i);
    return -1;
}

uint64_t test_random(uint64_t *state) {
    uint64_t x = *state += UINT64_C(0x9E3779B97F4A7C15);
    x = (x ^ x >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ x >> 27) * UINT64_C(0x94D049BB133111EB);
    return x ^ x >> 31;
}
