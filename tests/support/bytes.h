/* SPDX-License-Identifier: MIT */
#ifndef WEIR_TESTS_BYTES_H
#define WEIR_TESTS_BYTES_H

/* Bytes whose every position is known, and numbers that can be had again. */

#include <stddef.h>
#include <stdint.h>

/* Every stream's bytes: what stands at @position of the stream number @seed. */
uint8_t test_byte(uint64_t seed, uint64_t position);
void test_fill(uint64_t seed, uint64_t position, void *data, size_t size);
/* The first position at which @data differs, or -1. */
int64_t test_differs(uint64_t seed, uint64_t position, const void *data, size_t size);

/* A random number from a state of its own: repeatable. */
uint64_t test_random(uint64_t *state);

#endif
