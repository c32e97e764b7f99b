/* SPDX-License-Identifier: MIT */

/* Runs a target on each file of its corpus, without libFuzzer: what was found once stays found, with any compiler. */

#include <dirent.h>

#include "fuzz/fuzz.h"

enum { LARGEST = 1 << 20 };

static void run(const char *directory, const char *name) {
    static uint8_t bytes[LARGEST];
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *file = fopen(path, "rb");
    FUZZ_CHECK(file != NULL);
    size_t size = fread(bytes, 1, sizeof bytes, file);
    FUZZ_CHECK(size < sizeof bytes);
    fclose(file);
    printf("# %s\n", name);
    fflush(stdout); /* the last one named is the one that crashes */
    void *copy = fuzz_copy(bytes, size);
    FUZZ_CHECK(LLVMFuzzerTestOneInput(copy, size) == 0);
    free(copy);
}

static int is_file(const struct dirent *entry) {
    return entry->d_name[0] != '.';
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s CORPUS\n", argv[0]);
        return 2;
    }
    struct dirent **entries;
    int count = scandir(argv[1], &entries, is_file, alphasort);
    if (count <= 0) {
        fprintf(stderr, "%s: no corpus\n", argv[1]);
        return 1;
    }
    printf("1..1\n");
    for (int i = 0; i < count; i++) {
        run(argv[1], entries[i]->d_name);
        free(entries[i]);
    }
    free(entries);
    FUZZ_CHECK(LLVMFuzzerTestOneInput((const uint8_t *)"", 0) == 0);
    printf("ok 1 - each_of_%d_kept_inputs\n", count);
    return 0;
}
