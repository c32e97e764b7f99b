// SPDX-License-Identifier: MIT
// A user in C++17: wrappers that own, over values and handles that are plain C. Both ends of an echo in one loop; ends
// with 0 if every byte came back.
#include <cstdio>
#include <cstring>
#include <string>
#include <utility>
#include <vector>

#include <weir.h>

namespace {

// Owned is not const, borrowed is: the split of weir_slice_ref() and weir_slice_unref() is that of C++.
class Slice {
    weir_slice slice_{};

  public:
    explicit Slice(const weir_slice &borrowed) {
        weir_slice_ref(&borrowed, &slice_);
    }
    Slice(Slice &&other) noexcept : slice_(std::exchange(other.slice_, weir_slice{})) {
    }
    Slice &operator=(Slice &&other) noexcept {
        std::swap(slice_, other.slice_);
        return *this;
    }
    Slice(const Slice &) = delete;
    Slice &operator=(const Slice &) = delete;
    ~Slice() {
        weir_slice_unref(&slice_);
    }
    const weir_slice *get() const {
        return &slice_;
    }
};

class Loop {
    weir_loop *loop_ = nullptr;

  public:
    Loop() {
        if (weir_loop_new(nullptr, &loop_) < 0)
            loop_ = nullptr;
    }
    Loop(const Loop &) = delete;
    Loop &operator=(const Loop &) = delete;
    ~Loop() {
        weir_loop_close(loop_);
        weir_loop_unref(loop_);
    }
    weir_loop *get() const {
        return loop_;
    }
};

std::vector<Slice> received; // outlives its callbacks, and the loop
int errors;

const weir_stream_callbacks serving = [] {
    weir_stream_callbacks c{};
    c.size = sizeof c;
    c.on_data = [](weir_stream *stream, const weir_slice *slice, void *) {
        Slice kept(*slice);
        Slice moved(std::move(kept));
        if (weir_stream_write_slice(stream, moved.get()) < 0)
            errors++;
    };
    return c;
}();

const weir_stream_callbacks asking = [] {
    weir_stream_callbacks c{};
    c.size = sizeof c;
    c.on_data = [](weir_stream *stream, const weir_slice *slice, void *userdata) {
        received.emplace_back(*slice);
        std::size_t size = 0;
        for (const Slice &part : received)
            size += part.get()->size;
        if (size == static_cast<const std::string *>(userdata)->size())
            weir_stream_close(stream);
    };
    c.on_close = [](weir_stream *, int, int error, void *) { errors += error != 0; };
    return c;
}();

const weir_listener_callbacks accepting = [] {
    weir_listener_callbacks c{};
    c.size = sizeof c;
    c.on_accept = [](weir_listener *listener, weir_stream *stream, void *) {
        errors += weir_stream_start(stream, &serving, nullptr) < 0;
        errors += weir_listener_close(listener) < 0;
    };
    return c;
}();

} // namespace

int main() {
    std::string text(100000, 'w'), answer;
    {
        Loop loop;
        weir_listener *listener = nullptr;
        weir_stream *stream = nullptr;
        char address[WEIR_ADDRESS_SIZE];
        if (weir_listener_open(loop.get(), "127.0.0.1:0", nullptr, &listener) < 0 ||
            weir_listener_start(listener, &accepting, nullptr) < 0 ||
            weir_listener_get_address(listener, address, sizeof address) < 0 ||
            weir_stream_dial(loop.get(), address, nullptr, &stream) < 0 ||
            weir_stream_start(stream, &asking, &text) < 0 ||
            weir_stream_write(stream, text.data(), text.size()) < 0 || weir_loop_run(loop.get()) < 0)
            return 2;
    }
    for (const Slice &part : received)
        answer.append(reinterpret_cast<const char *>(part.get()->data), part.get()->size);
    received.clear();
    return errors > 0 || answer != text;
}
