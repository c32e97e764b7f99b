// SPDX-License-Identifier: MIT
//
// The benchmark's servers over Node's net module, as its documentation has it: what 'data' brings is written, a
// socket whose write() says that enough is queued is not read from until 'drain'. Echo, sink, source and proxy.
//
//   node node.js WORKLOAD PORT [--variant net] [--upstream PORT] [--connections N]
//
// It is one of several servers with the same contract (server.h); as Node cannot ask to be killed with its parent,
// it ends when its standard input does.
'use strict';

const net = require('net');

const HOST = '127.0.0.1';
const BACKLOG = 4096;
const BLOCK = Buffer.alloc(64 * 1024, 'w');
const QUEUE = 256 * 1024; // the source has so much queued with Node
const PROXY_QUEUE = 1024 * 1024; // with so much waiting for one side nothing is read from the other
const BIND_TRIES = 200;
const BIND_PAUSE_MS = 10;
const USAGE = 2;
const UNSUPPORTED = 77;

function end(status, text) {
    process.stderr.write(`node.js: ${text}\n`);
    process.exit(status);
}

function port(text) {
    const value = /^\d+$/.test(text) ? Number(text) : 0;
    return value <= 65535 ? value : 0;
}

function readArguments([workload, listening, ...rest]) {
    const options = { workload, port: port(listening), variant: 'net', upstream: 0 };
    let good = options.port > 0 && rest.length % 2 === 0;
    for (let i = 0; i + 1 < rest.length; i += 2) {
        if (rest[i] === '--variant')
            options.variant = rest[i + 1];
        else if (rest[i] === '--upstream')
            good = good && (options.upstream = port(rest[i + 1])) > 0;
        else
            good = good && rest[i] === '--connections' && /^[1-9]\d*$/.test(rest[i + 1]);
    }
    if (!good || (workload === 'proxy' && options.upstream === 0))
        end(USAGE, 'usage: echo|sink|source|proxy PORT [--variant net] [--upstream PORT] [--connections N]');
    if (options.variant !== 'net')
        end(UNSUPPORTED, `no variant '${options.variant}'`);
    return options;
}

// What comes from one goes to the other, and so does its end. (pipe() does the same, with more events in between.)
function forward(from, to) {
    from.on('data', (data) => {
        if (!to.write(data))
            from.pause();
    });
    to.on('drain', () => from.resume());
    from.on('end', () => to.end());
}

function echo(socket) {
    forward(socket, socket);
}

function sink(socket) {
    socket.on('data', () => {});
    socket.on('end', () => socket.end());
}

// A full socket ends a turn, and so do as many blocks as may be queued: the others want one, too.
function source(socket) {
    function more() {
        for (let i = 0; i < QUEUE / BLOCK.length; i++)
            if (socket.destroyed || !socket.write(BLOCK))
                return;
        setImmediate(more);
    }
    socket.on('drain', more);
    more();
}

function proxy(socket, options) {
    const upstream = net.connect({
        host: HOST,
        port: options.upstream,
        allowHalfOpen: true,
        noDelay: true,
        highWaterMark: PROXY_QUEUE,
    });
    upstream.on('error', () => {});
    upstream.on('close', () => socket.destroy());
    socket.on('close', () => upstream.destroy());
    forward(socket, upstream);
    forward(upstream, socket);
}

const workloads = { echo, sink, source, proxy };
const highWaterMarks = { source: QUEUE, proxy: PROXY_QUEUE }; // elsewhere Node's own

function listen(options) {
    const serve = workloads[options.workload];
    const server = net.createServer({
        allowHalfOpen: true, // what still waits is sent after the other side's end
        noDelay: true,
        highWaterMark: highWaterMarks[options.workload],
    });
    let tries = 0;
    const start = () => server.listen({ host: HOST, port: options.port, backlog: BACKLOG });
    server.on('connection', (socket) => {
        socket.on('error', () => {}); // it is closed after that
        serve(socket, options);
    });
    server.on('listening', () => process.stdout.write('ready epoll\n')); // libuv's
    server.on('error', (error) => {
        if (error.code !== 'EADDRINUSE' || ++tries === BIND_TRIES)
            end(1, error.message);
        setTimeout(start, BIND_PAUSE_MS);
    });
    start();
}

const options = readArguments(process.argv.slice(2));
if (!Object.hasOwn(workloads, options.workload))
    end(UNSUPPORTED, `no workload '${options.workload}'`);
process.stdin.on('end', () => process.exit(0)).on('error', () => process.exit(0)).resume();
listen(options);
