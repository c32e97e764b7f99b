/* SPDX-License-Identifier: MIT */
#ifndef WEIR_H
#define WEIR_H

#include "weir/base.h"
#include "weir/slice.h"
#include "weir/pool.h"
#include "weir/loop.h"
#include "weir/timer.h"
#include "weir/stream.h"
#include "weir/listener.h"

#endif
