/* SPDX-License-Identifier: MIT */
/* Info: how weir runs on this machine, and what else it could do here. For a bug report, or a look at a container.
 * Try it: build/examples/info; WEIR_BACKEND=epoll build/examples/info */
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/utsname.h>
#include <weir.h>

static const char *const modes[] = { "auto", "uring-incremental", "uring-classic", "epoll" };

static const struct {
    uint64_t feature;
    const char *name, *meaning;
} features[] = {
    { WEIR_FEATURE_DEFER_TASKRUN, "DEFER_TASKRUN", "completions are produced when the loop asks for them" },
    { WEIR_FEATURE_NO_IOWAIT, "NO_IOWAIT", "an idle loop does not show as iowait" },
};

static int make(uint32_t backend, weir_loop **ret_loop, char *reason) {
    const weir_loop_options options = {
        .size = sizeof options, .backend = backend, .reason = reason, .reason_size = WEIR_REASON_SIZE
    };
    return weir_loop_new(&options, ret_loop);
}

static void end(weir_loop *loop) {
    weir_loop_close(loop);
    weir_loop_unref(loop);
}

/* What a program gets that asks for nothing. 0; -errno. */
static int print_auto(void) {
    char reason[WEIR_REASON_SIZE] = "";
    weir_loop *loop = NULL;
    weir_loop_info info = { .size = sizeof info };
    weir_pool_stats pool = { .size = sizeof pool };
    int r = make(WEIR_BACKEND_AUTO, &loop, reason);
    r = r < 0 ? r : weir_loop_get_info(loop, &info);
    r = r < 0 ? r : weir_pool_get_stats(weir_loop_get_pool(loop), &pool);
    if (r < 0) {
        fprintf(stderr, "info: %s: %s\n", weir_error_name(r), reason[0] != '\0' ? reason : weir_error_text(r));
        end(loop);
        return r;
    }
    printf("backend   %s%s%s\n", modes[info.backend], info.reason[0] != '\0' ? ": " : "", info.reason);
    printf("buffers   %" PRIu32 " KiB each, %" PRIu32 " posted, within a budget of %" PRIu64 " MiB\n",
           pool.buffer_bytes >> 10, pool.window_buffers, pool.budget_bytes >> 20);
    for (size_t i = 0; i < sizeof features / sizeof *features; i++)
        printf("feature   %-14s %s   %s\n", features[i].name,
               (info.features & features[i].feature) != 0 ? "yes" : "no ", features[i].meaning);
    end(loop);
    return 0;
}

static void print_mode(uint32_t backend) {
    char reason[WEIR_REASON_SIZE] = "";
    weir_loop *loop = NULL;
    int r = make(backend, &loop, reason);
    if (r < 0)
        printf("mode      %-18s no    %s (%s)\n", modes[backend], reason, weir_error_name(r));
    else
        printf("mode      %-18s yes\n", modes[backend]);
    end(loop);
}

int main(void) {
    struct utsname system;
    uint32_t version = weir_version();
    printf("weir      %" PRIu32 ".%" PRIu32 ".%" PRIu32 "\n", version >> 16, version >> 8 & 255, version & 255);
    if (uname(&system) == 0)
        printf("kernel    %s %s, %s\n", system.sysname, system.release, system.machine);
    int r = print_auto();
    for (uint32_t backend = WEIR_BACKEND_URING_INCREMENTAL; backend <= WEIR_BACKEND_EPOLL; backend++)
        print_mode(backend);
    return r < 0;
}
