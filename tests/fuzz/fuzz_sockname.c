/* SPDX-License-Identifier: MIT */

/*
 * What the kernel says a peer is called, as text: a peer picks its own name, so any bytes may be in it. The text fits
 * where it is promised to fit, and where dial takes it, dial means that address.
 */

#include <netinet/in.h>
#include <sys/un.h>

#include "fuzz/fuzz.h"
#include "socket/address.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    static const sa_family_t families[] = { AF_INET, AF_INET6, AF_UNIX, AF_UNIX };
    fuzz_input input = { data, size };
    weir__address address, again;
    memset(&address, 0xEE, sizeof address); /* what lies behind the name is not the kernel's */
    sa_family_t family = families[fuzz_take(&input, 1) % 4];
    socklen_t header = offsetof(struct sockaddr_un, sun_path);
    size_t most = family == AF_INET    ? sizeof(struct sockaddr_in)
                  : family == AF_INET6 ? sizeof(struct sockaddr_in6)
                                       : sizeof(struct sockaddr_un);
    address.length = (socklen_t)(family == AF_UNIX ? header + input.size : most);
    if (address.length > most)
        address.length = (socklen_t)most;
    for (size_t i = sizeof family; i < address.length; i++)
        ((uint8_t *)&address.storage)[i] = (uint8_t)fuzz_take(&input, 1);
    address.storage.ss_family = family;

    char *text = malloc(WEIR_ADDRESS_SIZE);
    FUZZ_CHECK(text != NULL);
    int length = weir__address_format(&address, text, WEIR_ADDRESS_SIZE);
    FUZZ_CHECK(length > 0 && length < WEIR_ADDRESS_SIZE && text[length] == '\0');
    char *small = malloc((size_t)length);
    FUZZ_CHECK(small != NULL);
    FUZZ_CHECK(weir__address_format(&address, small, (size_t)length) == -ENOBUFS);
    free(small);

    /* A name may have zeros in it, and an interface may be gone: then dial does not know it. */
    if (strlen(text) == (size_t)length && weir__address_parse(text, &again) == 0) {
        char second[WEIR_ADDRESS_SIZE];
        FUZZ_CHECK(again.storage.ss_family == family);
        FUZZ_CHECK(weir__address_format(&again, second, sizeof second) == length);
        FUZZ_CHECK(strcmp(text, second) == 0);
    } else {
        FUZZ_CHECK(family != AF_INET);
    }
    free(text);
    return 0;
}
