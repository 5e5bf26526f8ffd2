// A proxyless gRPC client and server on grpc-js (see ../README.md).
'use strict';

const readline = require('node:readline');
// Installed beside the tools of the tests, not beside this file.
const load = (name) => require(require.resolve(name, { paths: [process.env.PHALANX_NODE_MODULES || __dirname] }));
const grpc = load('@grpc/grpc-js');
const xds = load('@grpc/grpc-js-xds');

// Whether certificates are asked for; what they are follows from xDS and the bootstrap.
const secure = process.env.XDS_CREDENTIALS === '1';
const bytes = (buffer) => buffer;

function channelCredentials() {
  const insecure = grpc.credentials.createInsecure();
  return secure ? new xds.XdsChannelCredentials(insecure) : insecure;
}

function serverCredentials() {
  const insecure = grpc.ServerCredentials.createInsecure();
  return secure ? new xds.XdsServerCredentials(insecure) : insecure;
}

function dial(clients, target) {
  if (!clients.has(target)) clients.set(target, new grpc.Client('xds:///' + target, channelCredentials()));
  return clients.get(target);
}

// One unary call with empty messages; the answer's shape is in the README.
function call(clients, order) {
  return new Promise((resolve) => {
    const metadata = new grpc.Metadata();
    for (const [name, value] of Object.entries(order.headers || {})) metadata.set(name, value);
    const begin = Date.now();
    let by = '';
    const options = { deadline: begin + (order.timeout_ms || 5000) };
    const request = dial(clients, order.target).makeUnaryRequest(
      order.method, bytes, bytes, Buffer.alloc(0), metadata, options,
      (error) => resolve({
        code: error ? error.code : 0,
        by: error ? '' : by,
        message: error ? error.details : '',
        ms: Date.now() - begin,
      }),
    );
    request.on('metadata', (answer) => { by = String(answer.get('x-echo')[0] || ''); });
  });
}

function start(clients, order) {
  const state = { sent: 0, failures: {}, stopped: false };
  const run = async () => {
    while (!state.stopped) {
      await new Promise((resolve) => setTimeout(resolve, order.interval_ms));
      const result = await call(clients, order);
      state.sent += 1;
      if (result.code) {
        const why = `${result.code} ${result.message}`;
        state.failures[why] = (state.failures[why] || 0) + 1;
      }
    }
  };
  state.done = run();
  return state;
}

async function client() {
  const clients = new Map();
  let running;
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const order = JSON.parse(line);
    let answer = {};
    if (order.op === 'call') {
      const results = [];
      for (let i = 0; i < (order.count || 1); i += 1) results.push(await call(clients, order));
      answer = { results };
    } else if (order.op === 'load') {
      running = start(clients, order);
    } else {
      running.stopped = true;
      await running.done;
      answer = { sent: running.sent, failures: running.failures };
    }
    process.stdout.write(JSON.stringify(answer) + '\n');
  }
  process.exit(0);
}

function server(address, name) {
  const method = (called) => ({
    path: `/arena.v1.Battle/${called}`, requestStream: false, responseStream: false,
    requestSerialize: bytes, requestDeserialize: bytes, responseSerialize: bytes, responseDeserialize: bytes,
  });
  const answer = (request, done) => {
    const metadata = new grpc.Metadata();
    metadata.set('x-echo', name);
    request.sendMetadata(metadata);
    done(null, Buffer.alloc(0));
  };
  const listening = new xds.XdsServer();
  listening.addService({ Fight: method('Fight'), Watch: method('Watch') }, { Fight: answer, Watch: answer });
  listening.bindAsync(address, serverCredentials(), (error) => {
    process.stdout.write(error ? `not serving: ${error.message}\n` : 'serving\n');
  });
}

// A server needs it too: HTTP filters are registered by it.
xds.register();
if (process.argv[2] === 'client') client(); else server(process.argv[3], process.argv[4]);
