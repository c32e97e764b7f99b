/* SPDX-License-Identifier: MIT */

/*
 * Text as an address. What is refused changes nothing; what is taken is an address that the kernel would take, has a
 * text that fits where it is promised to fit, and that text means the same address.
 */

#include <netinet/in.h>
#include <sys/un.h>

#include "fuzz/fuzz.h"
#include "socket/address.h"

static void check_shape(const weir__address *address) {
    switch (address->storage.ss_family) {
    case AF_INET:
        FUZZ_CHECK(address->length == sizeof(struct sockaddr_in));
        break;
    case AF_INET6:
        FUZZ_CHECK(address->length == sizeof(struct sockaddr_in6));
        break;
    default:
        FUZZ_CHECK(address->storage.ss_family == AF_UNIX);
        FUZZ_CHECK(address->length > offsetof(struct sockaddr_un, sun_path) + 1 &&
                   address->length <= sizeof(struct sockaddr_un));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    weir__address address, again;
    char *text = malloc(size + 1);
    FUZZ_CHECK(text != NULL);
    if (size > 0)
        memcpy(text, data, size);
    text[size] = '\0';
    memset(&address, 0xEE, sizeof address);
    again = address;
    int r = weir__address_parse(text, &address);
    FUZZ_CHECK(r == 0 || r == -EINVAL || r == -ENODEV);
    free(text);
    if (r < 0) {
        FUZZ_CHECK(memcmp(&address, &again, sizeof address) == 0);
        return 0;
    }
    check_shape(&address);

    char whole[WEIR_ADDRESS_SIZE];
    int length = weir__address_format(&address, whole, sizeof whole);
    FUZZ_CHECK(length > 0 && length < WEIR_ADDRESS_SIZE && strlen(whole) == (size_t)length);
    memset(&again, 0xEE, sizeof again);
    bool is_zoned = address.storage.ss_family == AF_INET6 && strchr(whole, '%') != NULL;
    if (!is_zoned) { /* an interface's number is not read back, only its name */
        FUZZ_CHECK(weir__address_parse(whole, &again) == 0);
        FUZZ_CHECK(memcmp(&address, &again, sizeof address) == 0);
    }
    const char *path = weir__address_path(&address);
    FUZZ_CHECK((path != NULL) == (strncmp(whole, "unix:", 5) == 0 && whole[5] != '@'));
    FUZZ_CHECK(path == NULL || strcmp(path, whole + 5) == 0);

    /* Room for all of it, and for all but its zero. */
    char *exact = malloc((size_t)length + 1);
    FUZZ_CHECK(exact != NULL);
    FUZZ_CHECK(weir__address_format(&address, exact, (size_t)length + 1) == length);
    FUZZ_CHECK(strcmp(exact, whole) == 0);
    free(exact);
    exact = malloc((size_t)length);
    FUZZ_CHECK(exact != NULL);
    FUZZ_CHECK(weir__address_format(&address, exact, (size_t)length) == -ENOBUFS);
    free(exact);
    return 0;
}
