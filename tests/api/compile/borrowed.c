/* SPDX-License-Identifier: MIT */
/* unref of a slice that is only borrowed: a const one does not fit, and so the compiler finds it. */
#include <weir.h>

void on_data(const weir_slice *slice);

void on_data(const weir_slice *slice) {
#ifdef RIGHT
    weir_slice mine;
    weir_slice_ref(slice, &mine);
    weir_slice_unref(&mine);
#else
    weir_slice_unref(slice);
#endif
}
