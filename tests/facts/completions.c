/* SPDX-License-Identifier: MIT */
#include "facts/facts.h"
const fact facts_of_completions[] = { { 0 } };
