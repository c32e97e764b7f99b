/* SPDX-License-Identifier: MIT */

/* Any number has a name and a text, of either sign the same, and they are static. */

#include "fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    fuzz_input input = { data, size };
    int error = (int)(uint32_t)fuzz_take(&input, 4);
    const char *name = weir_error_name(error), *text = weir_error_text(error);
    FUZZ_CHECK(name != NULL && name[0] != '\0' && strlen(name) < 32);
    FUZZ_CHECK(text != NULL && text[0] != '\0' && strlen(text) < WEIR_REASON_SIZE);
    FUZZ_CHECK(weir_error_name(error) == name && weir_error_text(error) == text);
    int other = (int)(0U - (unsigned)error);
    FUZZ_CHECK(weir_error_name(other) == name && weir_error_text(other) == text);
    FUZZ_CHECK((strcmp(text, "success") == 0) == (error == 0));
    FUZZ_CHECK((strcmp(name, "unknown") == 0) == (strcmp(text, "unknown error") == 0));
    return 0;
}
