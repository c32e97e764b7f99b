/* SPDX-License-Identifier: MIT */
/* Results that have to be looked at: a refused write that nobody sees is lost data. CALL is one of them. */
#include <stddef.h>
#include <weir.h>

void ignore(weir_loop *loop, weir_stream *stream, weir_slice *slice);

void ignore(weir_loop *loop, weir_stream *stream, weir_slice *slice) {
    weir_listener *listener = NULL;
    weir_timer *timer = NULL;
    weir_chain *chain = NULL;
    const weir_slice *shown = NULL;
    weir_watch *watch = NULL;
    weir_signal *signal = NULL;
    weir_pool *pool = NULL;
    uint8_t *data = NULL;
    int fd = -1;
    (void)loop, (void)stream, (void)slice, (void)listener, (void)timer, (void)pool, (void)data, (void)fd;
    (void)chain, (void)shown;
    (void)watch, (void)signal;
#ifdef RIGHT
    if ((CALL) < 0)
        return;
#else
    CALL;
#endif
}
