/* SPDX-License-Identifier: MIT */
#ifndef WEIR_BASE_LIST_H
#define WEIR_BASE_LIST_H

/*
 * An intrusive, circular, doubly linked list. The head is a link too; a link that is on no list points to itself,
 * so removing it again does nothing. Each link's comment names its head and each head's comment its links.
 */

#include "base/base.h"

typedef struct weir__link {
    struct weir__link *next, *previous;
} weir__link;

static inline void weir__list_init(weir__link *link) {
    link->next = link->previous = link;
}

static inline bool weir__list_is_empty(const weir__link *head) {
    return head->next == head;
}

static inline bool weir__link_is_listed(const weir__link *link) {
    return link->next != link;
}

static inline void weir__list_append(weir__link *head, weir__link *link) {
    link->previous = head->previous;
    link->next = head;
    head->previous->next = link;
    head->previous = link;
}

static inline void weir__list_prepend(weir__link *head, weir__link *link) {
    weir__list_append(head->next, link);
}

static inline void weir__list_remove(weir__link *link) {
    link->previous->next = link->next;
    link->next->previous = link->previous;
    weir__list_init(link);
}

static inline weir__link *weir__list_take_first(weir__link *head) {
    weir__link *first = head->next;
    if (first == head)
        return NULL;
    weir__list_remove(first);
    return first;
}

/* Move everything from one list to an empty one: whoever walks @to may let others add to @from meanwhile. */
static inline void weir__list_move(weir__link *from, weir__link *to) {
    weir__list_init(to);
    if (weir__list_is_empty(from))
        return;
    to->next = from->next;
    to->previous = from->previous;
    to->next->previous = to;
    to->previous->next = to;
    weir__list_init(from);
}

/* Put everything of one list in front of another. */
static inline void weir__list_move_to_front(weir__link *from, weir__link *to) {
    if (weir__list_is_empty(from))
        return;
    from->previous->next = to->next;
    to->next->previous = from->previous;
    from->next->previous = to;
    to->next = from->next;
    weir__list_init(from);
}

#endif
