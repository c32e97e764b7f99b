/* SPDX-License-Identifier: MIT */
/* Addresses as text, in both directions. */
#include "socket/address.h"

#include <arpa/inet.h>
#include <net/if.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/un.h>

#include "support/support.h"

static const struct sockaddr_in *in(const weir__address *address) {
    return (const struct sockaddr_in *)&address->storage;
}

static const struct sockaddr_in6 *in6(const weir__address *address) {
    return (const struct sockaddr_in6 *)&address->storage;
}

static const struct sockaddr_un *un(const weir__address *address) {
    return (const struct sockaddr_un *)&address->storage;
}

/* Text, to an address, and to the same text. */
static void there_and_back(const char *text) {
    weir__address address;
    char again[WEIR_ADDRESS_SIZE];
    test_ok(weir__address_parse(text, &address));
    assert_int_equal(weir__address_format(&address, again, sizeof again), strlen(text));
    assert_string_equal(again, text);
}

static void v4_is_read(void **state) {
    (void)state;
    weir__address address;
    test_ok(weir__address_parse("10.1.2.3:8080", &address));
    assert_int_equal(address.length, sizeof(struct sockaddr_in));
    assert_int_equal(in(&address)->sin_family, AF_INET);
    assert_int_equal(ntohs(in(&address)->sin_port), 8080);
    assert_int_equal(ntohl(in(&address)->sin_addr.s_addr), 0x0A010203);
}

static void v6_is_read(void **state) {
    (void)state;
    weir__address address;
    test_ok(weir__address_parse("[2001:db8::7]:443", &address));
    assert_int_equal(address.length, sizeof(struct sockaddr_in6));
    assert_int_equal(in6(&address)->sin6_family, AF_INET6);
    assert_int_equal(ntohs(in6(&address)->sin6_port), 443);
    assert_int_equal(in6(&address)->sin6_addr.s6_addr[0], 0x20);
    assert_int_equal(in6(&address)->sin6_addr.s6_addr[15], 7);
    assert_int_equal(in6(&address)->sin6_scope_id, 0);
}

static void addresses_go_there_and_back(void **state) {
    (void)state;
    static const char *const texts[] = {
        "0.0.0.0:0",
        "127.0.0.1:80",
        "255.255.255.255:65535",
        "[::]:0",
        "[::1]:1",
        "[2001:db8:1:2:3:4:5:6]:65535",
        "[::ffff:1.2.3.4]:9",
        "unix:/tmp/socket",
        "unix:relative",
        "unix:./@odd",
        "unix:@abstract",
        "unix:@a",
        "unix:@with:colon and space",
        "unix:/a:b",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        there_and_back(texts[i]);
}

static void bad_addresses_are_refused(void **state) {
    (void)state;
    static const char *const texts[] = {
        "",
        ":",
        "80",
        "127.0.0.1",
        "127.0.0.1:",
        ":80",
        "127.0.0.1:65536",
        "127.0.0.1:99999",
        "127.0.0.1:100000",
        "127.0.0.1:000080",
        "127.0.0.1:-1",
        "127.0.0.1:+80",
        "127.0.0.1: 80",
        "127.0.0.1:80 ",
        "127.0.0.1:80x",
        "127.0.0.1:0x50",
        "127.0.0.1:http",
        "127.0.0.1::80",
        "127.0.0.1:80:80",
        " 127.0.0.1:80",
        "127.0.0.1 :80",
        "127.0.0:80",
        "127.0.0.1.1:80",
        "127.0.0.256:80",
        "127.0.0.-1:80",
        "127.1:80",
        "1:80",
        "0x7f.0.0.1:80",
        "localhost:80",
        "example.com:80",
        "[127.0.0.1]:80",
        "127.0.0.1%lo:80",
        "::1:80",
        "::1",
        "[::1]",
        "[::1]:",
        "[::1]80",
        "[::1",
        "[::1:80",
        "::1]:80",
        "[]:80",
        "[::1]:65536",
        "[::1]x:80",
        "[[::1]]:80",
        "[::g]:80",
        "[1:2:3:4:5:6:7:8:9]:80",
        "[:::]:80",
        "[ ::1]:80",
        "[::1 ]:80",
        "[::1]:80]",
        "[",
        "]",
        "[]",
        "[%lo]:80",
        "[::1%lo]",
        "[::1%lo]:",
        "[::1%lo]:x",
        "unix",
        "unix:",
        "unix:@",
        "Unix:/tmp/x",
        "tcp:127.0.0.1:80",
        "http://127.0.0.1:80",
        "127.0.0.1:80/",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        weir__address address, before;
        memset(&address, 0xEE, sizeof address);
        before = address;
        if (weir__address_parse(texts[i], &address) != -EINVAL)
            fail_msg("'%s' was not refused", texts[i]);
        assert_memory_equal(&address, &before, sizeof address);
    }
}

static void endless_text_is_refused(void **state) {
    (void)state;
    static char text[100000];
    weir__address address;
    static const char *const beginnings[] = { "1", "[", "[:", "1:", "[::1%", "[::1]:", "unix:", "unix:@" };
    for (size_t i = 0; i < sizeof beginnings / sizeof *beginnings; i++) {
        memset(text, '1', sizeof text - 1);
        memcpy(text, beginnings[i], strlen(beginnings[i]));
        assert_int_equal(weir__address_parse(text, &address), -EINVAL);
    }
}

/* The host is copied out of the text: no length of it may be one too many. */
static void every_length_of_a_host_is_refused_or_read(void **state) {
    (void)state;
    char text[400];
    weir__address address;
    for (int length = 0; length < 300; length++) {
        snprintf(text, sizeof text, "%0*d:80", length, 1);
        assert_int_equal(weir__address_parse(text, &address), -EINVAL);
        snprintf(text, sizeof text, "[%0*d]:80", length, 1);
        assert_int_equal(weir__address_parse(text, &address), -EINVAL);
    }
}

static void unknown_interface_is_no_device(void **state) {
    (void)state;
    weir__address address;
    assert_int_equal(weir__address_parse("[fe80::1%no-such-one]:80", &address), -ENODEV);
    assert_int_equal(weir__address_parse("[fe80::1%]:80", &address), -ENODEV);
    assert_int_equal(weir__address_parse("[fe80::1%a-name-that-is-longer-than-any]:80", &address), -ENODEV);
}

static void interface_is_the_scope(void **state) {
    (void)state;
    weir__address address;
    unsigned lo = if_nametoindex("lo");
    if (lo == 0)
        skip();
    test_ok(weir__address_parse("[fe80::1%lo]:80", &address));
    assert_int_equal(in6(&address)->sin6_scope_id, lo);
}

/* What format writes is a number, which parse once took for an interface's name. */
static void scope_goes_there_and_back(void **state) {
    (void)state;
    weir__address address, again;
    char text[WEIR_ADDRESS_SIZE];
    if (if_nametoindex("lo") == 0)
        skip();
    test_ok(weir__address_parse("[fe80::1%lo]:80", &address));
    assert_true(weir__address_format(&address, text, sizeof text) > 0);
    test_ok(weir__address_parse(text, &again));
    assert_int_equal(in6(&again)->sin6_scope_id, in6(&address)->sin6_scope_id);
    assert_int_equal(weir__address_parse("[fe80::1%0]:80", &again), -ENODEV);
    assert_int_equal(weir__address_parse("[fe80::1%99999999999]:80", &again), -ENODEV);
}

/* ---- unix ------------------------------------------------------------------------------------------- */

static void path_keeps_its_zero(void **state) {
    (void)state;
    weir__address address;
    test_ok(weir__address_parse("unix:/tmp/x", &address));
    assert_int_equal(un(&address)->sun_family, AF_UNIX);
    assert_string_equal(un(&address)->sun_path, "/tmp/x");
    assert_int_equal(address.length, offsetof(struct sockaddr_un, sun_path) + 7);
    assert_string_equal(weir__address_path(&address), "/tmp/x");
}

static void abstract_name_has_its_zero_first(void **state) {
    (void)state;
    weir__address address;
    test_ok(weir__address_parse("unix:@name", &address));
    assert_memory_equal(un(&address)->sun_path, "\0name", 5);
    assert_int_equal(address.length, offsetof(struct sockaddr_un, sun_path) + 5);
    assert_null(weir__address_path(&address));
}

/* "unix:" and a name of @length bytes. */
static void make_name(char *text, char first, size_t length) {
    memcpy(text, "unix:", 5);
    memset(text + 5, 'n', length);
    text[5] = first;
    text[5 + length] = '\0';
}

static void longest_names_fit_and_longer_ones_are_refused(void **state) {
    (void)state;
    char text[200];
    weir__address address;
    make_name(text, '/', 107); /* 108 with its zero */
    there_and_back(text);
    make_name(text, '/', 108);
    assert_int_equal(weir__address_parse(text, &address), -EINVAL);
    make_name(text, '@', 108);
    there_and_back(text);
    make_name(text, '@', 109);
    assert_int_equal(weir__address_parse(text, &address), -EINVAL);
}

/* The kernel may give a path of 108 bytes that has no zero at all. */
static void path_without_a_zero_is_written_whole(void **state) {
    (void)state;
    weir__address address = { .length = sizeof(struct sockaddr_un) };
    struct sockaddr_un *to = (struct sockaddr_un *)&address.storage;
    char text[WEIR_ADDRESS_SIZE], expected[WEIR_ADDRESS_SIZE];
    to->sun_family = AF_UNIX;
    memset(to->sun_path, 'n', sizeof to->sun_path);
    memset((char *)&address.storage + sizeof *to, 'x', sizeof address.storage - sizeof *to);
    make_name(expected, 'n', 108);
    assert_int_equal(weir__address_format(&address, text, sizeof text), 113);
    assert_string_equal(text, expected);
}

static void unnamed_socket_has_no_name(void **state) {
    (void)state;
    weir__address address = { .length = offsetof(struct sockaddr_un, sun_path) };
    char text[WEIR_ADDRESS_SIZE];
    address.storage.ss_family = AF_UNIX;
    assert_int_equal(weir__address_format(&address, text, sizeof text), 5);
    assert_string_equal(text, "unix:");
    assert_null(weir__address_path(&address));
}

static void path_is_of_unix_addresses_only(void **state) {
    (void)state;
    weir__address address;
    test_ok(weir__address_parse("127.0.0.1:80", &address));
    assert_null(weir__address_path(&address));
    test_ok(weir__address_parse("[::1]:80", &address));
    assert_null(weir__address_path(&address));
}

/* ---- room ------------------------------------------------------------------------------------------- */

static void text_that_does_not_fit_is_refused_whole(void **state) {
    (void)state;
    static const char *const texts[] = { "127.0.0.1:80", "[::1]:80", "unix:/tmp/x", "unix:@name" };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        weir__address address;
        char text[WEIR_ADDRESS_SIZE];
        size_t length = strlen(texts[i]);
        test_ok(weir__address_parse(texts[i], &address));
        for (size_t size = 0; size <= length; size++) {
            memset(text, 'x', sizeof text);
            assert_int_equal(weir__address_format(&address, text, size), -ENOBUFS);
            assert_int_equal(text[0], 'x');
        }
        assert_int_equal(weir__address_format(&address, text, length + 1), length);
        assert_string_equal(text, texts[i]);
    }
}

static void no_address_is_larger_than_promised(void **state) {
    (void)state;
    weir__address address = { .length = sizeof(struct sockaddr_in6) };
    char text[WEIR_ADDRESS_SIZE];
    struct sockaddr_in6 *to = (struct sockaddr_in6 *)&address.storage;
    *to = (struct sockaddr_in6){ .sin6_family = AF_INET6, .sin6_port = 0xFFFF, .sin6_scope_id = UINT32_MAX };
    memset(&to->sin6_addr, 0xAA, sizeof to->sin6_addr);
    assert_true(weir__address_format(&address, text, sizeof text) > 0);
    assert_string_equal(text, "[aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa:aaaa%4294967295]:65535");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(v4_is_read),
        cmocka_unit_test(v6_is_read),
        cmocka_unit_test(addresses_go_there_and_back),
        cmocka_unit_test(bad_addresses_are_refused),
        cmocka_unit_test(endless_text_is_refused),
        cmocka_unit_test(every_length_of_a_host_is_refused_or_read),
        cmocka_unit_test(unknown_interface_is_no_device),
        cmocka_unit_test(interface_is_the_scope),
        cmocka_unit_test(scope_goes_there_and_back),
        cmocka_unit_test(path_keeps_its_zero),
        cmocka_unit_test(abstract_name_has_its_zero_first),
        cmocka_unit_test(longest_names_fit_and_longer_ones_are_refused),
        cmocka_unit_test(path_without_a_zero_is_written_whole),
        cmocka_unit_test(unnamed_socket_has_no_name),
        cmocka_unit_test(path_is_of_unix_addresses_only),
        cmocka_unit_test(text_that_does_not_fit_is_refused_whole),
        cmocka_unit_test(no_address_is_larger_than_promised),
    };
    return cmocka_run_group_tests_name("address", tests, NULL, NULL);
}
