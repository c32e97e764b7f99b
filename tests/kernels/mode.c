/* SPDX-License-Identifier: MIT */
/*
 * Asks weir which modes this kernel lets it have, and says so in the lines that run.py reads:
 *
 *   @@ mode NAME auto|incremental|classic|epoll|none [REASON]
 */
#include <stdio.h>
#include <string.h>

#include <weir.h>

static const struct {
    uint32_t backend;
    const char *name;
} modes[] = {
    { WEIR_BACKEND_AUTO, "auto" },
    { WEIR_BACKEND_URING_INCREMENTAL, "incremental" },
    { WEIR_BACKEND_URING_CLASSIC, "classic" },
    { WEIR_BACKEND_EPOLL, "epoll" },
};
enum { MODES = sizeof modes / sizeof modes[0] };

static const char *name_of(uint32_t backend) {
    for (unsigned i = 0; i < MODES; i++)
        if (modes[i].backend == backend)
            return modes[i].name;
    return "unknown";
}

int main(void) {
    for (unsigned i = 0; i < MODES; i++) {
        char reason[WEIR_REASON_SIZE] = "";
        weir_loop_options options = {
            .size = sizeof options, .backend = modes[i].backend, .reason = reason, .reason_size = sizeof reason
        };
        weir_loop_info info = { .size = sizeof info };
        weir_loop *loop = NULL;
        int result = weir_loop_new(&options, &loop);
        if (result < 0) {
            printf("@@ mode %s none %s (%s)\n", modes[i].name, reason, strerror(-result));
            continue;
        }
        if (weir_loop_get_info(loop, &info) < 0 || weir_loop_close(loop) < 0)
            return 1;
        printf("@@ mode %s %s %s\n", modes[i].name, name_of(info.backend), info.reason);
        weir_loop_unref(loop);
    }
    return 0;
}
