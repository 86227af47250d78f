"""Runs a Python function inside a sandbox of Mayfly.

It dials the agent's socket, says Hello, imports the function that Load names, and answers one
Invoke after the other. The frames are described in agent/frame. It is one file, if a long one: each more
would cost start time.

The path of an invocation is kept short: one recv and one sendall for small payloads. Modules that not
every function needs are imported after Hello, while the sandbox waits to be claimed, or when first used.
"""

import os
import sys
import time

import _socket
import json
import select

PROTOCOL = 1
RUNTIME = "python%d.%d" % sys.version_info[:2]
SOCKET_PATH = "/run/mayfly/agent.sock"
SITE_PACKAGES = "/usr/lib/python3/dist-packages"

HELLO, READY, INIT_ERROR, RESULT, ERROR, STREAM_BEGIN, STREAM, STREAM_END = range(1, 9)
LOAD, INVOKE, SHUTDOWN = range(16, 19)

# Small enough that the buffer stays in the cache and its copies in malloc's heap: a large one costs page faults each time.
RECV_SIZE = 32 << 10
# Lambda's limit for an answer, in bytes; a streamed answer has none.
MAX_RESULT = 6291556
MAX_STREAM_PART = 1 << 20
HTTP_STREAM_TYPE = "application/vnd.awslambda.http-integration-response"
# A failure with more text than this is cut: it must fit in a frame.
MAX_ERROR_TEXT = 256 << 10

# Imported while the sandbox waits to be claimed. Each waiting sandbox pays for them in memory.
PRELOAD = (
    "logging", "traceback", "datetime", "hashlib", "base64", "random", "functools", "typing", "threading", "urllib.parse",
)


class Fault(Exception):
    """A failure with a type of Lambda's, such as Runtime.HandlerNotFound."""

    def __init__(self, kind, message, trace=()):
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.trace = list(trace)


class Connection:
    """The socket to the agent, as frames."""

    def __init__(self, path):
        self.sock = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        self.sock.connect(path)
        self.rest = b""
        self.buffer = bytearray(RECV_SIZE)
        self.view = memoryview(self.buffer)
        # A process that waits in recv is woken, for nothing, when the agent takes the answer before; one in poll is not.
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        self.wait = poll.poll

    def recv(self):
        """Returns what there is, at most RECV_SIZE bytes; nothing at the end of the stream."""
        self.wait()
        return bytes(self.view[: self.sock.recv_into(self.buffer)])

    def send(self, kind, body=b""):
        self.sock.sendall(b"%b%c%b" % ((len(body) + 1).to_bytes(4, "big"), kind, body))

    def receive(self):
        """Returns a whole frame without its length: type, then body. None at the end of the stream."""
        data = self.rest or self.recv()
        if len(data) > 4 and len(data) - 4 == int.from_bytes(data[:4], "big"):
            self.rest = b""
            return data[4:]
        return self._assemble(data)

    def _assemble(self, data):
        while len(data) < 4:
            more = self.recv()
            if not more:
                return None
            data += more
        size = int.from_bytes(data[:4], "big")
        have = data[4 : 4 + size]
        self.rest = data[4 + size :]
        if len(have) == size:
            return have
        frame = bytearray(size)
        frame[: len(have)] = have
        view = memoryview(frame)[len(have) :]
        while view:
            n = self.sock.recv_into(view)
            if n == 0:
                return None
            view = view[n:]
        return bytes(frame)

    def pending(self):
        """Tells whether the agent sent something that is not read yet."""
        try:
            self.sock.recv(1, _socket.MSG_PEEK | _socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        return True


class CognitoIdentity:
    """context.identity."""

    def __init__(self, fields):
        self.cognito_identity_id = fields.get("cognitoIdentityId")
        self.cognito_identity_pool_id = fields.get("cognitoIdentityPoolId")


class Client:
    """context.client_context.client."""

    def __init__(self, fields):
        self.installation_id = fields.get("installation_id")
        self.app_title = fields.get("app_title")
        self.app_version_name = fields.get("app_version_name")
        self.app_version_code = fields.get("app_version_code")
        self.app_package_name = fields.get("app_package_name")


class ClientContext:
    """context.client_context."""

    def __init__(self, fields):
        self.custom = fields.get("custom")
        self.env = fields.get("env")
        client = fields.get("client")
        self.client = Client(client) if isinstance(client, dict) else None


class LambdaContext:
    """The second argument of a handler, as AWS Lambda documents it."""

    def __init__(self, function, call):
        self.aws_request_id = call["request_id"]
        self.log_group_name = function["log_group"]
        self.log_stream_name = function["log_stream"]
        self.function_name = function["function_name"]
        self.memory_limit_in_mb = function["memory_limit_mb"]
        self.function_version = function["function_version"]
        self.invoked_function_arn = call["arn"]
        client = call.get("client_context")
        self.client_context = ClientContext(json.loads(client)) if client else None
        identity = call.get("cognito_identity")
        self.identity = CognitoIdentity(json.loads(identity) if identity else {})
        self._deadline_ms = call["deadline_ms"]

    def get_remaining_time_in_millis(self):
        return max(self._deadline_ms - int(time.time() * 1000), 0)

    def log(self, message):
        sys.stdout.write(str(message))

    def __repr__(self):
        fields = ",".join(f"{k}={v}" for k, v in vars(self).items() if k[0] != "_")
        return f"LambdaContext([{fields}])"


class LoggingFinder:
    """Sets up the root logger when the module logging is imported for the first time."""

    def __init__(self, runner):
        self.runner = runner

    def find_spec(self, name, path=None, target=None):
        if name != "logging":
            return None
        sys.meta_path.remove(self)
        import importlib.machinery

        spec = importlib.machinery.PathFinder.find_spec(name, path)
        run = spec.loader.exec_module

        def exec_module(module):
            run(module)
            configure_logging(module, self.runner)

        spec.loader.exec_module = exec_module
        return spec


def configure_logging(logging, runner):
    """Makes log lines look as in Lambda: level, time, request id and message, separated by tabs."""

    class Handler(logging.Handler):
        def emit(self, record):
            try:
                record.aws_request_id = runner.request_id
                sys.stdout.write(self.format(record) + "\n")
            except Exception:
                self.handleError(record)

    formatter = logging.Formatter(
        "[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(aws_request_id)s\t%(message)s", "%Y-%m-%dT%H:%M:%S"
    )
    formatter.converter = time.gmtime
    handler = Handler()
    handler.setFormatter(formatter)
    logging.root.addHandler(handler)


def user_frames(tb):
    """The formatted frames of a traceback from the function's own code on."""
    import traceback

    frames = traceback.extract_tb(tb)
    own = Fault.__init__.__code__.co_filename
    for i, frame in enumerate(frames):
        name = frame.filename
        if name != own and not name.startswith("<frozen importlib") and not name.endswith("/importlib/__init__.py"):
            return traceback.format_list(frames[i:])
    return []


def describe(exc):
    """The error that the caller of the function sees, as a dict."""
    if isinstance(exc, Fault):
        kind, message, trace = exc.kind, exc.message, exc.trace
    else:
        kind, trace = type(exc).__name__, user_frames(exc.__traceback__)
        try:
            message = str(exc)
        except Exception:
            message = f"<{kind} whose message cannot be made>"
    if len(message) > MAX_ERROR_TEXT:
        message = message[:MAX_ERROR_TEXT] + "…"
    while sum(map(len, trace)) > MAX_ERROR_TEXT:
        trace = trace[len(trace) // 2 + 1 :]
    return {"errorMessage": message, "errorType": kind, "stackTrace": trace}


def report(error):
    """Writes an error to the log."""
    lines = [f"[ERROR] {error['errorType']}: {error['errorMessage']}\n"]
    if error["stackTrace"]:
        lines.append("Traceback (most recent call last):\n")
        lines.extend(error["stackTrace"])
    try:
        sys.stdout.write("".join(lines))
    except Exception:  # the function may have closed or replaced it
        os.write(2, "".join(lines).encode(errors="replace"))
    flush()


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except Exception:  # the function may have closed or replaced it
            pass


def encode_other(value):
    """JSON for what json itself refuses: only decimals, as in Lambda."""
    if type(value).__name__ == "Decimal":
        return float(value)
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


# What json.JSONEncoder(ensure_ascii=False, default=encode_other).encode makes anew for each call.
_seen = {}
_chunks = json.encoder.c_make_encoder(_seen, encode_other, json.encoder.encode_basestring, None, ": ", ", ", False, False, True)


def encode(value):
    try:
        return "".join(_chunks(value, 0))
    except BaseException:
        _seen.clear()  # or the next value with this address would count as its own part
        raise


# What json.loads does, without its regular expressions for white space around a value: that is rare.
_scan = json.JSONDecoder().scan_once


def decode(text):
    try:
        value, end = _scan(text, 0)
        if end == len(text):
            return value
    except StopIteration:
        pass
    return json.loads(text)


def encode_bytes(value):
    try:
        return encode(value).encode()
    except UnicodeEncodeError:  # lone surrogates can only travel escaped
        return json.dumps(value, default=encode_other).encode()


def encode_result(value):
    try:
        body = encode_bytes(value)
    except Exception as exc:
        raise Fault("Runtime.MarshalError", f"Unable to marshal response: {exc}") from exc
    if len(body) > MAX_RESULT:
        raise Fault(
            "Function.ResponseSizeTooLarge",
            f"Response payload size ({len(body)} bytes) exceeded maximum allowed payload size ({MAX_RESULT} bytes).",
        )
    return body


def decode_event(raw):
    try:
        return decode(str(raw, "utf-8"))
    except ValueError as exc:
        raise Fault("Runtime.UnmarshalError", f"Unable to unmarshal input: {exc}") from exc


def find_handler(name, task_root):
    """Imports the module of a handler and returns its function."""
    module_name, dot, function_name = name.rpartition(".")
    if not dot or not module_name or not function_name:
        raise Fault("Runtime.MalformedHandlerName", f"Bad handler '{name}': it must look like module.function")
    module = import_module(module_name, task_root)
    try:
        return getattr(module, function_name)
    except AttributeError:
        raise Fault(
            "Runtime.HandlerNotFound", f"Handler '{function_name}' missing on module '{module_name}'"
        ) from None


def import_module(name, task_root):
    path = name.replace("/", ".")
    top = path.partition(".")[0]
    if top in sys.builtin_module_names:
        raise Fault("Runtime.BuiltInModuleConflict", f"Cannot use built-in module {name} as a handler module")
    # A module of the function goes before one of the same name that we loaded ahead.
    if top in sys.modules and found_in(top, task_root):
        del sys.modules[top]
    try:
        __import__(path)
        return sys.modules[path]
    except ImportError as exc:
        raise Fault("Runtime.ImportModuleError", f"Unable to import module '{name}': {exc}", user_frames(exc.__traceback__)) from exc
    except SyntaxError as exc:
        where = f'  File "{exc.filename}" Line {exc.lineno}\n    {(exc.text or "").strip()}\n'
        raise Fault("Runtime.UserCodeSyntaxError", f"Syntax error in module '{name}': {exc}", [where]) from exc


def found_in(name, directory):
    from importlib.machinery import PathFinder

    return PathFinder.find_spec(name, [directory]) is not None


def search_path(task_root, environ):
    """Where modules are looked for: the function, its own PYTHONPATH and folders, layers, then Python's and the image's."""
    own = [p for p in environ.get("PYTHONPATH", "").split(":") if p and p != task_root]
    folders = [p for p in (f"{task_root}/python", f"{task_root}/vendor") if os.path.isdir(p)]
    layers = [f"/opt/python/lib/{RUNTIME}/site-packages", "/opt/python"]
    return [task_root, *own, *folders, *layers, *sys.path, SITE_PACKAGES]


class Runner:
    """Loads one function and answers its invocations."""

    def __init__(self, connection):
        self.connection = connection
        self.request_id = ""
        self.function = None
        self.handler = None
        self.forked = False
        os.register_at_fork(after_in_child=self.mark_forked)

    def preload(self):
        for name in PRELOAD:
            if self.connection.pending():
                return
            __import__(name)

    def load(self, function):
        """Imports the function. A failure is told to the agent, and ends the process."""
        os.environ.update(function.get("env") or {})
        time.tzset()
        task_root = function["task_root"]
        function["memory_limit_mb"] = str(function["memory_limit_mb"])
        self.function = function
        sys.path[:] = search_path(task_root, os.environ)
        try:
            os.chdir(task_root)
            self.handler = find_handler(function["handler"], task_root)
        except SystemExit:
            raise
        except BaseException as exc:
            error = describe(exc)
            report(error)
            self.connection.send(INIT_ERROR, encode_bytes(error))
            leave(1)
        import gc

        gc.freeze()
        flush()
        self.connection.send(READY)

    def invoke(self, frame):
        size = int.from_bytes(frame[1:5], "big")
        call = decode(str(frame[5 : 5 + size], "utf-8"))
        self.request_id = call["request_id"]
        trace_id = call.get("trace_id")
        if trace_id:
            os.environ["_X_AMZN_TRACE_ID"] = trace_id
        try:
            event = decode_event(frame[5 + size :])
            result = self.handler(event, LambdaContext(self.function, call))
            if hasattr(result, "__next__"):
                self.check_process()
                self.stream(result)
                return
            kind, body = RESULT, encode_result(result)
        except SystemExit:
            raise
        except BaseException as exc:
            kind, body = ERROR, self.failure(exc)
        self.check_process()
        flush()
        self.connection.send(kind, body)

    def mark_forked(self):
        self.forked = True

    def check_process(self):
        """A child that the handler forked must not answer for its parent."""
        if self.forked:
            flush()
            os._exit(0)

    def failure(self, exc):
        error = describe(exc)
        report(error)
        return encode_bytes({**error, "requestId": self.request_id})

    def stream(self, parts):
        """Sends what an iterator yields as a streamed answer."""
        send, begun = self.connection.send, False
        try:
            for part in parts:
                if begun:
                    part = stream_part(part)
                else:
                    head, part = stream_start(part)
                    send(STREAM_BEGIN, head)
                    begun = True
                for i in range(0, len(part), MAX_STREAM_PART):
                    send(STREAM, part[i : i + MAX_STREAM_PART])
        except SystemExit:
            raise
        except BaseException as exc:
            send(STREAM_END if begun else ERROR, self.failure(exc))
            return
        flush()
        if not begun:
            send(STREAM_BEGIN, b"{}")
        send(STREAM_END)

    def run(self):
        """Serves frames until the agent hangs up or asks to stop."""
        receive = self.connection.receive
        while True:
            frame = receive()
            if frame is None:
                return
            kind = frame[0]
            if kind == INVOKE:
                self.invoke(frame)
            elif kind == LOAD:
                self.load(json.loads(frame[1:]))
            elif kind == SHUTDOWN:
                return


def stream_start(part):
    """The body of StreamBegin for the first part, and its bytes: a dict is status code, headers and cookies of an HTTP answer."""
    if isinstance(part, dict):
        return encode_bytes({"content_type": HTTP_STREAM_TYPE}), encode_result(part) + bytes(8)
    return b"{}", stream_part(part)


def stream_part(part):
    if isinstance(part, str):
        return part.encode()
    if isinstance(part, (bytes, bytearray, memoryview)):
        return bytes(part)
    raise Fault("Runtime.MarshalError", f"Unable to marshal response: a stream yields bytes or str, not {type(part).__name__}")


def leave(status):
    """Ends the process at once: threads that the function left behind must not hold it."""
    import atexit

    try:
        atexit._run_exitfuncs()
    finally:
        flush()
        os._exit(status)


def exit_status(exc):
    """The process status that Python gives to a SystemExit."""
    if exc.code is None:
        return 0
    if isinstance(exc.code, int):
        return exc.code & 0xFF
    print(exc.code, file=sys.stderr)
    return 1


def prepare():
    """What `python3 -S -I` leaves out, and functions expect."""
    import site

    site.setquit()
    site.setcopyright()
    site.sethelper()
    sys.stdout.reconfigure(line_buffering=True)
    sys.argv[:] = [""]


def main():
    prepare()
    runner = Runner(Connection(SOCKET_PATH))
    sys.meta_path.insert(0, LoggingFinder(runner))
    runner.connection.send(HELLO, encode({"protocol": PROTOCOL, "runtime": RUNTIME}).encode())
    try:
        runner.preload()
        runner.run()
    except SystemExit as exc:
        leave(exit_status(exc))
    leave(0)


if __name__ == "__main__":
    main()
