/* SPDX-License-Identifier: MIT */
#include <dirent.h>
#include <stdio.h>
#include <sys/resource.h>

#include "facts/facts.h"

/* The machine's kernel. */

const char *const facts_edge = "real";
const unsigned facts_rounds = 1;

const char *facts_edge_missing(void) {
    weir__ring *it;
    if (weir__sys_kernel_version() < (6U << 16 | 12U << 8 | 31))
        return "these facts are of Linux 6.12.31 and later";
    int r = weir__ring_open(&weir__default_allocator, 8, 16, IORING_SETUP_R_DISABLED, &it);
    if (r >= 0)
        weir__ring_close(it);
    return r == -EPERM ? "io_uring is forbidden here" : NULL;
}

void facts_edge_begin(unsigned round) {
    /* So that descriptors can run out. */
    struct rlimit limit;
    (void)round;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    if (limit.rlim_cur > 256)
        limit.rlim_cur = 256;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

void facts_edge_end(void) {
}

unsigned facts_edge_workers(void) {
    unsigned count = 0;
    DIR *tasks = opendir("/proc/self/task");
    assert_non_null(tasks);
    for (const struct dirent *task; (task = readdir(tasks)) != NULL;) {
        char path[300], name[16] = "";
        snprintf(path, sizeof path, "/proc/self/task/%s/comm", task->d_name);
        FILE *file = fopen(path, "r");
        if (file == NULL)
            continue;
        if (fgets(name, sizeof name, file) != NULL)
            count += strncmp(name, "iou-wrk", 7) == 0;
        fclose(file);
    }
    closedir(tasks);
    return count;
}
