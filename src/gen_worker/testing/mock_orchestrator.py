"""An orchestrator to try a worker with: it waits for one, sends it one request, prints what comes, and ends.

python -m gen_worker.testing.mock_orchestrator --run generate --payload-json '{"prompt": "a fox"}'

Workers speak to it over either wire, on one port: those that are told `ORCHESTRATOR_PUBLIC_ADDR`, and those that are
told only `SCHEDULER_ADDR`.

Exit codes: 0 the request succeeded; 1 it failed; 2 no worker came; 3 no result came. It keeps nothing and requeues
nothing: for that there is `gen-worker orchestrator`.
"""

import argparse
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from enum import IntEnum
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from gen_worker.models.errors import ModelError
from gen_worker.models.paths import check_path
from gen_worker.wire import earlier
from gen_worker.wire.scheduler import (
    EVENT_TYPE,
    MESSAGE_BYTES,
    FnUnavailable,
    Hello,
    HelloAck,
    JobAccepted,
    JobProgress,
    JobResult,
    JobStatus,
    ModelBinding,
    ModelEvent,
    ModelOp,
    ModelOpKind,
    RunJob,
    StateDelta,
    WorkerFrame,
)

OK, FAILED, NO_WORKER, NO_RESULT = 0, 1, 2, 3
RESULT_S = 5.0  # the least that a result is waited for
WORKERS = 16  # streams at once
OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.so_reuseport", 0),
)


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    screen = Screen(everything=options.run is None, events=options.print_events)
    try:
        payload = _payload(options.payload_json)
        with ExitStack() as stack:
            base_url = options.file_base_url
            if options.serve_files_dir is not None:
                base_url = base_url or _served_files(options, screen, stack)
            inbox = _listen(options.listen, stack)
            mock = Mock(inbox, screen, HelloAck(file_base_url=base_url), options)
            if options.run is None:
                mock.watch()
            return mock.run(_run_job(options, payload), _model_ops(options), wait_s=options.wait_s)
    except _UsageError as error:
        screen.error(str(error))
        return FAILED
    except KeyboardInterrupt:
        return OK if options.run is None else FAILED


class _UsageError(Exception):
    """What was asked for cannot be done."""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m gen_worker.testing.mock_orchestrator", description=(__doc__ or "").splitlines()[0]
    )
    add = parser.add_argument
    add("--listen", default="0.0.0.0:8080", metavar="HOST:PORT", help="where workers connect [0.0.0.0:8080]")
    add("--wait-s", type=float, default=30.0, metavar="S", help="for a worker, and (5 at least) for the result [30]")
    add("--run", metavar="NAME", help="the function to run once; without it, messages are printed for ever")
    add("--payload-json", default="{}", metavar="JSON", help="its payload [{}]")
    add("--timeout-ms", type=_milliseconds, default=0, metavar="MS", help="its deadline; 0: none [0]")
    add("--tenant-id", default="", metavar="ID", help="whose request it is")
    add("--user-id", default="", metavar="ID", help="who makes it")
    add(
        "--required-model",
        action="append",
        default=[],
        metavar="REF",
        help="a model to download first; `SLOT=REF`: one for a slot of the request; may be repeated",
    )
    add("--file-base-url", default="", metavar="URL", help="where the request's files are")
    add("--file-token", default="", metavar="TOKEN", help="the token for them")
    add("--serve-files-dir", type=Path, metavar="DIR", help="serve them here, from this folder")
    add("--serve-files-listen", default="0.0.0.0:8081", metavar="HOST:PORT", help="where [0.0.0.0:8081]")
    add("--print-events", action="store_true", help="print what the worker and the request say of themselves")
    add("--print-registrations", action="store_true", help="print all that a worker says when it connects")
    return parser


def _milliseconds(text: str) -> int:
    if not text.isdecimal() or int(text) >= 1 << 63:
        raise argparse.ArgumentTypeError(f"no number of milliseconds: `{text}`")
    return int(text)


def _payload(text: str) -> bytes:
    try:
        payload = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.MsgspecError, RecursionError) as error:
        raise _UsageError(f"--payload-json is no JSON object: {error}") from None
    return msgspec.msgpack.encode(payload)


def _run_job(options: argparse.Namespace, payload: bytes) -> RunJob:
    bound = [each.partition("=") for each in options.required_model if "=" in each]
    return RunJob(
        request_id=f"mock-{uuid.uuid4().hex[:12]}",
        attempt=1,
        function_name=options.run,
        input_payload=payload,
        timeout_ms=options.timeout_ms,
        tenant=options.tenant_id,
        invoker_id=options.user_id,
        capability_token=options.file_token,
        models=tuple(ModelBinding(slot=slot, ref=ref) for slot, _, ref in bound),
    )


def _model_ops(options: argparse.Namespace) -> list[ModelOp]:
    return [ModelOp(op=ModelOpKind.DOWNLOAD, ref=ref) for ref in options.required_model if "=" not in ref]


def _served_files(options: argparse.Namespace, screen: "Screen", stack: ExitStack) -> str:
    from gen_worker.testing.file_api import FileApi

    host, _, port = options.serve_files_listen.rpartition(":")
    try:
        address = (host.strip("[]"), int(port))
        api = FileApi(options.serve_files_dir, address, token=options.file_token, tell=screen.file_api)
    except (OSError, ValueError, OverflowError) as error:
        raise _UsageError(f"cannot serve files at {options.serve_files_listen}: {error}") from None
    stack.enter_context(api)
    screen.file_api(f"serving {options.serve_files_dir} at {api.url}")
    return api.url


# --- what is printed --------------------------------------------------------------------------------------------------


class Screen:
    """Lines on standard output, and errors on standard error."""

    def __init__(self, *, everything: bool, events: bool) -> None:
        self._everything = everything
        self._events = events or everything
        self._lock = threading.Lock()

    def line(self, kind: str, text: str) -> None:
        """Print a line at once."""
        with self._lock:
            print(f"[{kind}] {text}", flush=True)

    def error(self, text: str) -> None:
        """Print an error."""
        with self._lock:
            print(f"[error] {text}", file=sys.stderr, flush=True)

    def file_api(self, text: str) -> None:
        """Print what was asked of the files."""
        self.line("file-api", text)

    def event(self, kind: str, value: object, *, always: bool = False) -> None:
        """Print what a worker says, if that is wanted."""
        if self._events or always:
            self.line("event", f"{kind}: {_json(value)}")

    def frame(self, frame: WorkerFrame | earlier.Message) -> None:
        """Print a message, if that is wanted."""
        match frame:
            case earlier.WorkerEvent(event_type=kind, payload_json=payload):
                self.event(kind, _decoded(payload, "application/json"), always=kind.startswith("output."))
            case earlier.LoadModelResult() | earlier.UnloadModelResult() | earlier.RealtimeCloseCommand():
                self.event(_NAMES[type(frame)], _plain(frame))
            case earlier.TaskExecutionResult() if self._everything:
                self.event(_NAMES[type(frame)], _plain(frame))
            case JobProgress(content_type=content_type) if content_type == EVENT_TYPE:
                told = _decoded(frame.body, "application/json")
                told = told if isinstance(told, dict) else {"event": "event", "value": told}
                self.event(f"request.{told.get('event')}", told.get("value"))
            case JobProgress():
                self.event("output.delta", _decoded(frame.body, frame.content_type), always=True)
            case JobAccepted() | StateDelta() | ModelEvent() | FnUnavailable():
                self.event(_NAMES[type(frame)], _plain(frame))
            case JobResult() if self._everything:
                self.event(_NAMES[type(frame)], _plain(frame))
            case _:
                pass


_NAMES: dict[type, str] = {
    JobAccepted: "job_accepted",
    StateDelta: "state_delta",
    ModelEvent: "model_event",
    FnUnavailable: "fn_unavailable",
    JobResult: "job_result",
    earlier.LoadModelResult: "load_model_result",
    earlier.UnloadModelResult: "unload_model_result",
    earlier.RealtimeCloseCommand: "realtime_close_cmd",
    earlier.TaskExecutionResult: "run_result",
}


def _json(value: object) -> str:
    """Return a value as one line of JSON; bytes are base64 in it."""
    return msgspec.json.encode(value, enc_hook=str).decode()


def _plain(value: object) -> object:
    """Return a message as builtins, with the names of enums."""
    match value:
        case IntEnum():
            return value.name
        case msgspec.Struct():
            return {name: _plain(getattr(value, name)) for name in value.__struct_fields__}
        case tuple():
            return [_plain(each) for each in value]
        case Mapping():
            return {key: _plain(each) for key, each in value.items()}
        case _:
            return value


def _decoded(body: bytes, content_type: str) -> object:
    """Return what a body says; itself where that cannot be read."""
    try:
        if "json" in content_type:
            return msgspec.json.decode(body)
        if "msgpack" in content_type:
            return msgspec.msgpack.decode(body)
        if content_type.startswith("text/"):
            return body.decode()
    except (msgspec.MsgspecError, ValueError, RecursionError):
        return body
    return body


# --- the streams ------------------------------------------------------------------------------------------------------


class Stream:
    """One worker's connection: what is put here goes to it; None ends it."""

    def __init__(self) -> None:
        self._outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.worker_id = ""

    def send(self, frame: msgspec.Struct) -> None:
        """Send a message."""
        self._outgoing.put(frame)

    def end(self) -> None:
        """End the stream."""
        self._outgoing.put(None)

    def frames(self) -> Iterator[Any]:
        """What is to be sent, until its end."""
        while (frame := self._outgoing.get()) is not None:
            yield frame


Said: TypeAlias = WorkerFrame | earlier.Message
Inbox: TypeAlias = "queue.SimpleQueue[tuple[Stream, Said | None]]"
"""What all workers say, in order; None: that one's stream has ended."""


def _listen(address: str, stack: ExitStack) -> Inbox:
    """Serve workers until the stack closes; return what they say."""
    from concurrent.futures import ThreadPoolExecutor

    import grpc

    from gen_worker.pb import CONNECT, EARLIER_CONNECT, convert, convert_earlier

    inbox: Inbox = queue.SimpleQueue()

    def connecting(encode: Callable[[Any], bytes], decode: Callable[[bytes], Said | None]) -> Any:
        def connect(packets: Iterator[bytes], context: Any) -> Iterator[bytes]:
            stream = Stream()
            threading.Thread(target=_hear, args=(packets, decode, stream, inbox), daemon=True).start()
            yield from map(encode, stream.frames())

        return grpc.stream_stream_rpc_method_handler(connect)

    server = grpc.server(ThreadPoolExecutor(WORKERS), options=OPTIONS)
    for method, handler in (
        (CONNECT, connecting(convert.encode_scheduler, convert.decode_worker)),
        (EARLIER_CONNECT, connecting(convert_earlier.encode, convert_earlier.decode)),
    ):
        _, service, name = method.split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {name: handler}),))
    try:
        port = server.add_insecure_port(address)
    except RuntimeError:
        raise _UsageError(f"cannot listen at {address}") from None
    server.start()
    stack.callback(lambda: server.stop(grace=None).wait())
    print(f"listening on {address.rpartition(':')[0]}:{port}", file=sys.stderr, flush=True)
    return inbox


def _hear(packets: Iterator[bytes], decode: Callable[[bytes], Said | None], stream: Stream, inbox: Inbox) -> None:
    """Put what a worker says into the inbox until its stream ends."""
    import grpc
    from google.protobuf.message import DecodeError

    try:
        for packet in packets:
            frame = decode(packet)
            if frame is not None:
                inbox.put((stream, frame))
    except (grpc.RpcError, DecodeError):  # the connection is gone, or says what is no message
        pass
    finally:
        inbox.put((stream, None))
        stream.end()


# --- the request ------------------------------------------------------------------------------------------------------


class Mock:
    """Greets every worker, and gives the first one the request."""

    def __init__(self, inbox: Inbox, screen: Screen, ack: HelloAck, options: argparse.Namespace) -> None:
        self._inbox = inbox
        self._screen = screen
        self._ack = ack
        self._registrations: bool = options.print_registrations
        self._files: Path | None = options.serve_files_dir

    def watch(self) -> None:
        """Print what workers say, for ever."""
        while True:
            self._next(None)

    def run(self, run: RunJob, first: list[ModelOp], *, wait_s: float) -> int:
        """Have the request run by the first worker that comes; return the exit code.

        A worker that comes back without it gets it again, as another attempt.
        """
        hello = self._until(lambda stream, frame: isinstance(frame, Hello | earlier.WorkerRegistration), wait_s)
        if hello is None:
            self._screen.error(f"no worker within {wait_s:g} s")
            return NO_WORKER
        if isinstance(hello[1], earlier.WorkerRegistration):
            return self._run_earlier(hello[0], run, [op.ref for op in first], within_s=max(RESULT_S, wait_s))
        for op in first:
            hello[0].send(op)
            self._screen.line("sent", f"model_op {op.op.name} ref={op.ref}")
        run = self._sent(hello[0], run)
        deadline = time.monotonic() + max(RESULT_S, wait_s)
        while (found := self._until(lambda *_: True, deadline - time.monotonic())) is not None:
            match found:
                case stream, Hello() as again:
                    if all(each.request_id != run.request_id for each in again.in_flight):
                        run = self._sent(stream, msgspec.structs.replace(run, attempt=run.attempt + 1))
                case _, JobResult(request_id=request_id, attempt=attempt) as result:
                    if (request_id, attempt) == (run.request_id, run.attempt):
                        return self._outcome(result)
        self._screen.error(f"no result within {max(RESULT_S, wait_s):g} s")
        return NO_RESULT

    def _run_earlier(self, stream: Stream, run: RunJob, models: list[str], *, within_s: float) -> int:
        """Have the request run by a worker of the other wire; return the exit code.

        A worker that comes back gets it again: one that has it already passes that over.
        """
        request = earlier.TaskExecutionRequest(
            run_id=run.request_id,
            function_name=run.function_name,
            input_payload=run.input_payload,
            required_models=(*models, *(binding.ref for binding in run.models)),
            timeout_ms=run.timeout_ms,
            tenant_id=run.tenant,
            user_id=run.invoker_id,
            file_base_url=self._ack.file_base_url,
            file_token=run.capability_token,
        )
        self._sent_earlier(stream, request)
        deadline = time.monotonic() + within_s
        while (found := self._until(lambda *_: True, deadline - time.monotonic())) is not None:
            match found:
                case again, earlier.WorkerRegistration(is_heartbeat=False):
                    self._sent_earlier(again, request)
                case _, earlier.TaskExecutionResult(run_id=run_id) as result if run_id == request.run_id:
                    return self._earlier_outcome(result)
        self._screen.error(f"no result within {within_s:g} s")
        return NO_RESULT

    def _sent_earlier(self, stream: Stream, request: earlier.TaskExecutionRequest) -> None:
        stream.send(request)
        said = f"run_request run_id={request.run_id} function={request.function_name}"
        self._screen.line("sent", f"{said} worker_id={stream.worker_id}")

    def _earlier_outcome(self, result: earlier.TaskExecutionResult) -> int:
        if not result.success:
            self._screen.error(f"{result.error_type}: {result.error_message} (retryable={_json(result.retryable)})")
            return FAILED
        output = _decoded(result.output_payload, "application/msgpack") if result.output_payload else None
        self._screen.line("output", _json(output))
        return OK

    def _sent(self, stream: Stream, run: RunJob) -> RunJob:
        stream.send(run)
        said = f"run_job request_id={run.request_id} attempt={run.attempt} function={run.function_name}"
        self._screen.line("sent", f"{said} worker_id={stream.worker_id}")
        return run

    def _outcome(self, result: JobResult) -> int:
        if result.status is not JobStatus.OK:
            self._screen.error(f"{result.status.name}: {result.safe_message}")
            return FAILED
        self._screen.line("output", _json(self._output(result)))
        return OK

    def _output(self, result: JobResult) -> object:
        """Return what the request came to; where it lies, if that is not here."""
        if result.blob_ref is None:
            return None if result.inline is None else _decoded(result.inline, "application/msgpack")
        stored = self._stored(result.blob_ref)
        if stored is None:
            return {"blob_ref": result.blob_ref}
        return _decoded(stored.read_bytes(), "application/msgpack")

    def _stored(self, ref: str) -> Path | None:
        """Return where a worker's output lies, None where there is none of this name in the folder."""
        if self._files is None:
            return None
        try:
            place = (self._files / check_path(ref)).resolve()
        except ModelError:
            return None
        return place if place.is_file() and place.is_relative_to(self._files.resolve()) else None

    def _until(self, wanted: Callable[[Stream, Said], bool], within_s: float) -> tuple[Stream, Said] | None:
        """Return the next message that is wanted, None where none comes in time."""
        deadline = time.monotonic() + within_s
        while (left := deadline - time.monotonic()) > 0:
            try:
                stream, frame = self._next(left)
            except queue.Empty:
                break
            if frame is not None and wanted(stream, frame):
                return stream, frame
        return None

    def _next(self, within_s: float | None) -> tuple[Stream, Said | None]:
        """Return the next message, after its worker was greeted and it was printed."""
        stream, frame = self._inbox.get(timeout=within_s)
        if isinstance(frame, Hello):
            stream.worker_id = frame.worker_id
            stream.send(self._ack)
            functions = ",".join((*frame.state.available_functions, *frame.state.loading_functions))
            gpus = frame.resources.gpu_count
            said = f"worker_id={frame.worker_id} release_id={frame.release_id} functions={functions} gpus={gpus}"
            self._screen.line("connected", _json(_plain(frame)) if self._registrations else said)
        elif isinstance(frame, earlier.WorkerRegistration):
            self._registered(stream, frame)
        elif frame is not None:
            self._screen.frame(frame)
        elif stream.worker_id:
            self._screen.event("disconnected", {"worker_id": stream.worker_id})
        return stream, frame

    def _registered(self, stream: Stream, told: earlier.WorkerRegistration) -> None:
        """Print a registration; one of those that a worker sends again and again only where that is wanted."""
        stream.worker_id = told.resources.worker_id
        if told.is_heartbeat:
            if self._registrations:
                self._screen.event("heartbeat", _registration(told), always=True)
            return
        functions = ",".join(told.resources.available_functions)
        said = f"worker_id={stream.worker_id} functions={functions} gpus={told.resources.gpu_count}"
        self._screen.line("connected", _json(_registration(told)) if self._registrations else said)


def _registration(told: earlier.WorkerRegistration) -> object:
    """Return all that a registration says, with its schemas as what they are."""
    plain: Any = _plain(told)
    for schema in plain["resources"]["function_schemas"]:
        for name in [name for name in schema if name.endswith("_json")]:
            schema[name] = _decoded(schema[name], "application/json")
    return plain


if __name__ == "__main__":
    sys.exit(main())
