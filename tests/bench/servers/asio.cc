/* SPDX-License-Identifier: MIT */
/*
 * The benchmark's servers over Asio (standalone): async_read_some into a buffer of each connection, async_write
 * from it, and so on in turn, which is its own backpressure. As a good engineer would have it for one thread: an
 * io_context that does not lock, sockets of its executor's own type rather than of any executor's, and plain
 * pointers to what lives until its last operation has ended. Echo, sink, source and proxy; echo is a proxy to the
 * same connection.
 */
#define ASIO_STANDALONE
#define ASIO_NO_DEPRECATED
#include <array>
#include <asio.hpp>
#include <cstdlib>
#include <exception>
#include <memory>
#include <system_error>
#include <utility>

#include "../server.h"

namespace {

using tcp = asio::ip::tcp;
using context = asio::io_context;
using socket_type = asio::basic_stream_socket<tcp, context::executor_type>;
using acceptor_type = asio::basic_socket_acceptor<tcp, context::executor_type>;
using error = std::error_code;

server_options options;

/* What is read from one socket goes to another, which may be the same. */
class direction {
  public:
    direction(socket_type &from, socket_type &to) : from_(from), to_(to) {
    }

    /* finished(bool broken) is called once. */
    template <typename Finished> void start(Finished finished) {
        read(finished);
    }

  private:
    template <typename Finished> void read(Finished finished) {
        from_.async_read_some(asio::buffer(buffer_), [this, finished](error e, std::size_t size) {
            if (!e) {
                write(size, finished);
                return;
            }
            error ignored;
            to_.shutdown(socket_type::shutdown_send, ignored);
            finished(e != asio::error::eof);
        });
    }

    template <typename Finished> void write(std::size_t size, Finished finished) {
        asio::async_write(to_, asio::buffer(buffer_, size), [this, finished](error e, std::size_t) {
            if (e)
                finished(true);
            else
                read(finished);
        });
    }

    socket_type &from_;
    socket_type &to_;
    std::array<unsigned char, 65536> buffer_;
};

/* Each of these deletes itself when no operation is left that knows it. */

class echo {
  public:
    explicit echo(socket_type &&socket) : socket_(std::move(socket)), back_(socket_, socket_) {
        back_.start([this](bool) { delete this; });
    }

  private:
    socket_type socket_;
    direction back_;
};

class sink {
  public:
    explicit sink(socket_type &&socket) : socket_(std::move(socket)) {
        read();
    }

  private:
    void read() {
        socket_.async_read_some(asio::buffer(buffer_), [this](error e, std::size_t) {
            if (e)
                delete this;
            else
                read();
        });
    }

    socket_type socket_;
    std::array<unsigned char, 65536> buffer_;
};

/* What is queued is one write of several blocks, which Asio hands to the kernel in pieces of 64 KiB. */
class source {
  public:
    explicit source(socket_type &&socket) : socket_(std::move(socket)) {
        write();
    }

  private:
    void write() {
        static const asio::const_buffer block(server_block, SERVER_WRITE_SIZE);
        static const std::array<asio::const_buffer, SERVER_QUEUE / SERVER_WRITE_SIZE> queue{ block, block, block,
                                                                                             block };
        asio::async_write(socket_, queue, [this](error e, std::size_t) {
            if (e)
                delete this;
            else
                write();
        });
    }

    socket_type socket_;
};

class proxy {
  public:
    explicit proxy(socket_type &&client)
        : client_(std::move(client)), upstream_(client_.get_executor()), there_(client_, upstream_),
          back_(upstream_, client_) {
        upstream_.async_connect(tcp::endpoint(asio::ip::address_v4::loopback(), options.upstream),
                                [this](error e) {
                                    error ignored;
                                    upstream_.set_option(tcp::no_delay(true), ignored);
                                    there_.start([this](bool broken) { ended(broken); });
                                    back_.start([this](bool broken) { ended(broken); });
                                    if (e)
                                        close();
                                });
    }

  private:
    void close() {
        error ignored;
        client_.close(ignored);
        upstream_.close(ignored);
    }

    void ended(bool broken) {
        if (broken)
            close();
        if (--left_ == 0)
            delete this;
    }

    socket_type client_;
    socket_type upstream_;
    direction there_;
    direction back_;
    int left_ = 2;
};

void serve(socket_type &&socket) {
    switch (options.work) {
    case SERVER_ECHO:
        new echo(std::move(socket));
        break;
    case SERVER_SINK:
        new sink(std::move(socket));
        break;
    case SERVER_SOURCE:
        new source(std::move(socket));
        break;
    case SERVER_PROXY:
        new proxy(std::move(socket));
        break;
    case SERVER_HOLD:
        break; /* not had */
    }
}

void accept(acceptor_type &acceptor) {
    acceptor.async_accept([&acceptor](error e, socket_type socket) {
        if (!e) {
            server_accepted(socket.native_handle());
            serve(std::move(socket));
        } else if (e != asio::error::connection_aborted) {
            server_die("accept: %s", e.message().c_str());
        }
        accept(acceptor);
    });
}

void run() {
    context loop(ASIO_CONCURRENCY_HINT_UNSAFE);
    acceptor_type acceptor(loop, tcp::v4(), server_listen(&options));
    accept(acceptor);
#if defined(ASIO_HAS_IO_URING_AS_DEFAULT)
    server_ready("io_uring");
#else
    server_ready("epoll");
#endif
    loop.run();
}

} /* namespace */

int main(int argc, char **argv) {
    static const char *const variants[] = { "asio", nullptr };
    server_arguments(argc, argv, variants, &options);
    if (options.work == SERVER_HOLD)
        server_unsupported("no workload '%s'", options.workload);
    try {
        run();
    } catch (const std::exception &e) {
        server_die("%s", e.what());
    }
    return EXIT_FAILURE; /* it serves until it is killed */
}
