/* SPDX-License-Identifier: MIT */
#ifndef WEIR_SOCKET_LISTENER_H
#define WEIR_SOCKET_LISTENER_H

#include "weir/listener.h"

/* A stream that @listener accepted and counts has ended; drops the stream's reference. */
void weir__listener_stream_ended(weir_listener *listener);

#endif
