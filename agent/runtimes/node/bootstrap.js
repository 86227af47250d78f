'use strict';
// Runs a Node.js function inside a sandbox of Mayfly.
//
// It dials the agent's socket, says Hello, loads the function that Load names, and answers one Invoke after
// the other. The frames are described in agent/frame. It is one file, if a long one: each more would cost start time.

const fs = require('fs');
const net = require('net');
const path = require('path');
const util = require('util');
const { Writable, promises: { pipeline } } = require('stream');
const { pathToFileURL } = require('url');

const PROTOCOL = 1;
const NODE_MAJOR = process.versions.node.split('.')[0];
const RUNTIME = `nodejs${NODE_MAJOR}`;
const SOCKET_PATH = '/run/mayfly/agent.sock';

const HELLO = 1, READY = 2, INIT_ERROR = 3, RESULT = 4, ERROR = 5, STREAM_BEGIN = 6, STREAM = 7, STREAM_END = 8;
const LOAD = 16, INVOKE = 17, SHUTDOWN = 18;

// Lambda's limit for an answer, in bytes; a streamed answer has none.
const MAX_RESULT = 6291556;
const MAX_STREAM_PART = 1 << 20;
// A failure with more text than this is cut: it must fit in a frame.
const MAX_ERROR_TEXT = 256 << 10;

const EXIT_UNCAUGHT = 129, EXIT_UNHANDLED_REJECTION = 128;
const HTTP_STREAM_TYPE = 'application/vnd.awslambda.http-integration-response';
const PRELOAD = ['crypto', 'http', 'https', 'events', 'zlib', 'timers/promises', 'fs/promises', 'querystring'];

// ---- log ----

let requestId; // of the invocation that runs, for log lines

const nap = new Int32Array(new SharedArrayBuffer(4));

/** Writes to stdout at once: lines must be out before the answer is. */
function writeLog(text) {
  let rest = Buffer.from(text);
  while (rest.length > 0) {
    try {
      rest = rest.subarray(fs.writeSync(1, rest));
    } catch (err) {
      if (err.code !== 'EAGAIN') return;
      Atomics.wait(nap, 0, 0, 1);
    }
  }
}

function logLine(level, text) {
  writeLog(`${new Date().toISOString()}\t${requestId}\t${level}\t${text}\n`);
}

function patchConsole() {
  const levels = { log: 'INFO', info: 'INFO', debug: 'DEBUG', warn: 'WARN', error: 'ERROR', trace: 'TRACE' };
  for (const [method, level] of Object.entries(levels)) {
    console[method] = (...args) => logLine(level, util.format(...args));
  }
}

// ---- errors ----

/** A failure with a type of Lambda's, such as Runtime.HandlerNotFound. */
class Fault extends Error {
  constructor(type, message, stack) {
    super(message);
    this.name = type;
    if (stack) this.stack = stack;
  }
}

function clip(text) {
  return text.length > MAX_ERROR_TEXT ? `${text.slice(0, MAX_ERROR_TEXT)}…` : text;
}

/** The error that the caller of the function sees. `trace` is Lambda's name for it in Node, `stackTrace` in every other runtime. */
function describe(err) {
  if (!util.types.isNativeError(err) && !(err instanceof Error)) {
    return { errorType: typeof err, errorMessage: clip(asText(err)), trace: [], stackTrace: [] };
  }
  const trace = stackLines(err);
  return { errorType: String(err.name || 'Error'), errorMessage: clip(String(err.message)), trace, stackTrace: trace };
}

/** The lines of an error's stack, without those below the function's own code. */
function stackLines(err) {
  const lines = clip(String(err.stack || '')).split('\n');
  const ours = lines.findIndex((line) => /^\s+at .*\/var\/runtime\/bootstrap\.js:/.test(line));
  return ours > 0 ? lines.slice(0, ours) : lines;
}

function asText(value) {
  try {
    return String(value !== null && typeof value === 'object' ? JSON.stringify(value) : value);
  } catch {
    return util.inspect(value);
  }
}

function logError(title, err) {
  const { errorType, errorMessage, trace } = describe(err);
  logLine('ERROR', `${title} \t${JSON.stringify({ errorType, errorMessage, ...ownFields(err), stack: trace })}`);
}

/** What people add to their errors, such as code or statusCode, as far as it is JSON. */
function ownFields(err) {
  try {
    return err instanceof Error ? JSON.parse(JSON.stringify({ ...err })) : {};
  } catch {
    return {};
  }
}

// ---- frames ----

/** The socket to the agent, as frames. */
class Connection {
  constructor(onFrame, onClose) {
    this.rest = null;
    this.onFrame = onFrame;
    this.socket = net.connect(SOCKET_PATH);
    this.socket.on('data', (chunk) => this.take(chunk));
    this.socket.on('end', onClose);
    this.socket.on('error', onClose);
  }

  /** Sends a frame; done is called when the kernel has it. */
  send(type, body, done) {
    const size = body ? body.length : 0;
    if (size > 64 << 10) {
      this.socket.write(header(type, size));
      return this.socket.write(body, done);
    }
    const frame = Buffer.allocUnsafe(5 + size);
    frame.writeUInt32BE(size + 1, 0);
    frame[4] = type;
    if (size > 0) body.copy(frame, 5);
    return this.socket.write(frame, done);
  }

  sendJSON(type, value, done) {
    return this.send(type, Buffer.from(JSON.stringify(value)), done);
  }

  take(chunk) {
    let data = this.rest ? this.join(chunk) : chunk;
    while (data && data.length >= 4) {
      const end = 4 + data.readUInt32BE(0);
      if (data.length < end) break;
      this.onFrame(data[4], data.subarray(5, end));
      data = data.length > end ? data.subarray(end) : null;
    }
    if (data) this.keep(data);
  }

  /** Keeps the parts of a large frame until all are here, so that they are copied once only. */
  keep(data) {
    this.rest = [data];
    this.have = data.length;
    this.want = data.length >= 4 ? 4 + data.readUInt32BE(0) : 4;
  }

  join(chunk) {
    this.rest.push(chunk);
    this.have += chunk.length;
    if (this.have < this.want) return null;
    const data = Buffer.concat(this.rest, this.have);
    this.rest = null;
    return data;
  }
}

function header(type, size) {
  const h = Buffer.allocUnsafe(5);
  h.writeUInt32BE(size + 1, 0);
  h[4] = type;
  return h;
}

// ---- streamed answers ----

const STREAMING = Symbol.for('aws.lambda.runtime.handler.streaming');

/** The stream that a handler of streamifyResponse writes to. */
class ResponseStream extends Writable {
  constructor(connection) {
    super({ highWaterMark: 64 << 10 });
    this.connection = connection;
    this.begun = false;
    this.contentType = undefined;
    this.prelude = null;
  }

  setContentType(type) {
    this.contentType = type;
  }

  begin() {
    if (this.begun) return;
    this.begun = true;
    this.connection.sendJSON(STREAM_BEGIN, this.contentType ? { content_type: this.contentType } : {});
    if (this.prelude) this.connection.send(STREAM, this.prelude);
  }

  _write(chunk, encoding, done) {
    this.begin();
    for (let i = 0; i < chunk.length - MAX_STREAM_PART; i += MAX_STREAM_PART) {
      this.connection.send(STREAM, chunk.subarray(i, i + MAX_STREAM_PART));
    }
    const last = chunk.length - ((chunk.length - 1) % MAX_STREAM_PART) - 1;
    this.connection.send(STREAM, chunk.subarray(last), () => done());
  }

  _final(done) {
    this.begin();
    done();
  }
}

const HttpResponseStream = {
  /** Puts status code, headers and cookies, as JSON and eight zero bytes, in front of the body. */
  from(stream, prelude) {
    stream.setContentType(HTTP_STREAM_TYPE);
    stream.prelude = Buffer.concat([Buffer.from(JSON.stringify(prelude)), Buffer.alloc(8)]);
    return stream;
  },
};

function streamifyResponse(handler, options) {
  handler[STREAMING] = (options && options.highWaterMark) || true;
  return handler;
}

/** Tells of what function* and async function* return. */
function isGenerator(value) {
  return value !== null && typeof value === 'object' && typeof value.next === 'function' && typeof value.return === 'function'
    && (typeof value[Symbol.asyncIterator] === 'function' || typeof value[Symbol.iterator] === 'function');
}

/** The parts that a generator yields, as bytes. An object that comes first is status code, headers and cookies of an HTTP answer. */
async function* streamParts(generator, stream) {
  let first = true;
  for await (const part of generator) {
    if (typeof part === 'string' || part instanceof Uint8Array) yield Buffer.from(part);
    else if (first && part !== null && typeof part === 'object') HttpResponseStream.from(stream, part);
    else throw new Fault('Runtime.MarshalError', `Unable to marshal response: a stream yields strings or bytes, not ${typeof part}`);
    first = false;
  }
}

// ---- loading ----

/** Splits "dir/file.a.b" in the module's path and the path of the function in it. */
function parseHandler(handler) {
  const base = path.basename(handler);
  const dot = base.indexOf('.');
  if (dot <= 0 || dot === base.length - 1 || handler.includes('..')) {
    throw new Fault('Runtime.MalformedHandlerName', `Bad handler '${handler}': it must look like module.function`);
  }
  return [path.join(path.dirname(handler), base.slice(0, dot)), base.slice(dot + 1)];
}

/** The file of a module: without extension, .js, .mjs, .cjs, or what require finds. */
function findModule(taskRoot, name) {
  const full = path.resolve(taskRoot, name);
  for (const ext of ['', '.js', '.mjs', '.cjs']) {
    if (fs.statSync(full + ext, { throwIfNoEntry: false })?.isFile()) return full + ext;
  }
  return require.resolve(name, { paths: [taskRoot, path.dirname(full)] });
}

/** Tells whether a .js file is an ES module: the nearest package.json decides. */
function isESModule(file) {
  if (!file.endsWith('.js')) return file.endsWith('.mjs');
  for (let dir = path.dirname(file); ; dir = path.dirname(dir)) {
    const manifest = path.join(dir, 'package.json');
    if (fs.existsSync(manifest)) return JSON.parse(fs.readFileSync(manifest, 'utf8')).type === 'module';
    if (dir === path.dirname(dir) || path.basename(dir) === 'node_modules') return false;
  }
}

async function importModule(taskRoot, name) {
  try {
    const file = findModule(taskRoot, name);
    return isESModule(file) ? await import(pathToFileURL(file).href) : require(file);
  } catch (err) {
    if (err instanceof SyntaxError) throw new Fault('Runtime.UserCodeSyntaxError', `${err}`, err.stack);
    if (err && /^(ERR_)?MODULE_NOT_FOUND$/.test(err.code)) {
      throw new Fault('Runtime.ImportModuleError', `${err}`, err.stack);
    }
    throw err;
  }
}

async function loadHandler(taskRoot, handler) {
  const [moduleName, functionPath] = parseHandler(handler);
  const module = await importModule(taskRoot, moduleName);
  const parts = functionPath.split('.');
  const found = follow(module, parts) ?? follow(module.default, parts);
  if (typeof found !== 'function') {
    const problem = found === undefined ? 'undefined or not exported' : 'not a function';
    throw new Fault('Runtime.HandlerNotFound', `${handler} is ${problem}`);
  }
  return found;
}

function follow(object, parts) {
  return parts.reduce((o, part) => (o === undefined || o === null ? undefined : o[part]), object);
}

// ---- invocations ----

/** One invocation: from its event to its answer, which is sent once. */
class Invocation {
  constructor(runner, meta) {
    this.runner = runner;
    this.meta = meta;
    this.answered = false;
    this.waits = true;
    this.saved = null;
  }

  context() {
    const { meta, runner: { load } } = this;
    const context = {
      functionName: load.function_name,
      functionVersion: load.function_version,
      memoryLimitInMB: String(load.memory_limit_mb),
      logGroupName: load.log_group,
      logStreamName: load.log_stream,
      invokedFunctionArn: meta.arn,
      awsRequestId: meta.request_id,
      clientContext: meta.client_context ? JSON.parse(meta.client_context) : undefined,
      identity: meta.cognito_identity ? JSON.parse(meta.cognito_identity) : undefined,
      getRemainingTimeInMillis: () => Math.max(meta.deadline_ms - Date.now(), 0),
      done: (err, result) => this.callback(err, result),
      succeed: (result) => this.callback(null, result),
      fail: (err) => this.callback(err === undefined || err === null ? 'handled' : err),
    };
    Object.defineProperty(context, 'callbackWaitsForEmptyEventLoop', {
      enumerable: true,
      get: () => this.waits,
      set: (value) => { this.waits = Boolean(value); },
    });
    return context;
  }

  /** The end of a handler in callback style: now, or when the event loop is empty. */
  callback(err, result) {
    if (this.answered || this.saved) return;
    this.saved = () => (err === undefined || err === null ? this.succeed(result) : this.fail(err));
    if (!this.waits) setImmediate(() => this.idle());
  }

  /** The event loop is empty, so nothing more will come. */
  idle() {
    if (this.answered) return;
    if (this.stream) this.stream.end(() => this.answer(STREAM_END));
    else if (this.saved) this.saved();
    else this.succeed(null);
  }

  succeed(result) {
    if (this.answered) return;
    try {
      this.answer(RESULT, encodeResult(result));
    } catch (err) {
      this.fail(err);
    }
  }

  fail(err) {
    if (this.answered) return;
    logError('Invoke Error', err);
    this.answer(ERROR, encodeError(err));
  }

  answer(type, body) {
    if (this.answered) return;
    this.answered = true;
    this.runner.finished();
    this.runner.connection.send(type, body);
  }

  run(handler, event) {
    if (handler[STREAMING]) {
      this.runStreaming(handler, event);
      return;
    }
    const result = handler(event, this.context(), (err, value) => this.callback(err, value));
    if (result && typeof result.then === 'function') {
      result.then((value) => this.settle(value), (err) => this.fail(err));
    } else if (isGenerator(result)) {
      this.settle(result);
    }
  }

  /** The end of an async handler; what a generator yields is a streamed answer. */
  settle(result) {
    if (!isGenerator(result) || this.answered) {
      this.succeed(result);
      return;
    }
    const stream = new ResponseStream(this.runner.connection);
    this.stream = stream;
    pipeline(streamParts(result, stream), stream).then(() => this.answer(STREAM_END), (err) => this.breakOff(err));
  }

  runStreaming(handler, event) {
    const stream = new ResponseStream(this.runner.connection);
    this.stream = stream;
    const finished = new Promise((resolve, reject) => {
      stream.on('finish', resolve);
      stream.on('error', reject);
    });
    Promise.all([handler(event, stream, this.context()), finished])
      .then(() => this.answer(STREAM_END), (err) => this.breakOff(err));
  }

  /** A streamed answer failed: before its first byte that is an error like any other. */
  breakOff(err) {
    if (this.answered) return;
    if (!this.stream || !this.stream.begun) {
      this.fail(err);
      return;
    }
    logError('Invoke Error', err);
    this.answer(STREAM_END, encodeError(err));
  }
}

function encodeError(err) {
  return Buffer.from(JSON.stringify({ ...describe(err), requestId }));
}

function encodeResult(result) {
  let body;
  try {
    body = Buffer.from(JSON.stringify(result === undefined ? null : result) ?? 'null');
  } catch (err) {
    throw new Fault('Runtime.MarshalError', `Unable to marshal response: ${err.message}`);
  }
  if (body.length > MAX_RESULT) {
    throw new Fault('Function.ResponseSizeTooLarge',
      `Response payload size (${body.length} bytes) exceeded maximum allowed payload size (${MAX_RESULT} bytes).`);
  }
  return body;
}

function decodeEvent(raw) {
  try {
    return JSON.parse(raw.toString());
  } catch (err) {
    throw new Fault('Runtime.UnmarshalError', `Unable to unmarshal input: ${err.message}`);
  }
}

// ---- the process ----

/** Loads one function and answers its invocations. */
class Runner {
  constructor() {
    this.load = null;
    this.handler = null;
    this.current = null;
    this.connection = new Connection((type, body) => this.frame(type, body), () => process.exit(0));
  }

  start() {
    process.on('beforeExit', () => this.current && this.current.idle());
    process.on('uncaughtException', (err) => this.die(err, 'Uncaught Exception', EXIT_UNCAUGHT));
    process.on('unhandledRejection', (reason) => this.rejected(reason));
    this.connection.sendJSON(HELLO, { protocol: PROTOCOL, runtime: RUNTIME });
    this.preload(0);
  }

  /** Loads what many functions use while the sandbox waits to be claimed. */
  preload(i) {
    if (this.load || i === PRELOAD.length) return;
    require(PRELOAD[i]);
    setImmediate(() => this.preload(i + 1));
  }

  frame(type, body) {
    if (type === INVOKE) this.invoke(body);
    else if (type === LOAD) this.loadFunction(JSON.parse(body.toString()));
    else if (type === SHUTDOWN) process.exit(0);
  }

  async loadFunction(load) {
    this.load = load;
    Object.assign(process.env, load.env);
    addModulePaths(load.task_root);
    try {
      process.chdir(load.task_root);
      this.handler = await loadHandler(load.task_root, load.handler);
    } catch (err) {
      this.die(err, 'Uncaught Exception', 1);
      return;
    }
    this.connection.send(READY);
  }

  invoke(body) {
    const size = body.readUInt32BE(0);
    const meta = JSON.parse(body.toString('utf8', 4, 4 + size));
    requestId = meta.request_id;
    if (meta.trace_id) process.env._X_AMZN_TRACE_ID = meta.trace_id;
    const invocation = new Invocation(this, meta);
    this.current = invocation;
    // Only what the handler started keeps the event loop alive, so that beforeExit tells when it is done.
    this.connection.socket.unref();
    try {
      invocation.run(this.handler, decodeEvent(body.subarray(4 + size)));
    } catch (err) {
      invocation.breakOff(err);
    }
  }

  finished() {
    this.current = null;
    this.connection.socket.ref();
  }

  rejected(reason) {
    const err = reason instanceof Error ? reason : undefined;
    const fault = new Fault('Runtime.UnhandledPromiseRejection', err ? String(err) : asText(reason), err && err.stack);
    this.die(fault, 'Unhandled Promise Rejection', EXIT_UNHANDLED_REJECTION);
  }

  /** Tells the agent why, and exits: after this, the state of the process is unknown. */
  die(err, title, status) {
    logError(title, err);
    const invocation = this.current;
    const leave = () => process.exit(status);
    if (invocation && !invocation.answered) {
      invocation.answered = true;
      const type = invocation.stream && invocation.stream.begun ? STREAM_END : ERROR;
      this.connection.send(type, encodeError(err), leave);
    } else if (this.load && !this.handler) {
      this.connection.send(INIT_ERROR, encodeError(err), leave);
    } else {
      leave();
    }
  }
}

/** Where modules are looked for after node_modules: the package's vendor folder, and layers, as in Lambda. */
function addModulePaths(taskRoot) {
  const more = [path.join(taskRoot, 'vendor'), path.join(taskRoot, 'vendor/node_modules'), `/opt/nodejs/node${NODE_MAJOR}/node_modules`, '/opt/nodejs/node_modules', '/var/runtime/node_modules'];
  process.env.NODE_PATH = [process.env.NODE_PATH, ...more].filter(Boolean).join(':');
  require('module').Module._initPaths();
}

globalThis.awslambda = { streamifyResponse, HttpResponseStream };
patchConsole();
new Runner().start();
