"""The client that an endpoint's own tests call it with."""

import itertools
import os
import queue
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar, overload

from gen_worker.api.errors import CanceledError
from gen_worker.testing.calls import Call, Caller, body_of, decoded
from gen_worker.testing.results import Event, Result
from gen_worker.testing.target import Target, endpoint_of

if TYPE_CHECKING:
    from gen_worker.discovery.function_spec import FunctionSpec
    from gen_worker.testing.isolated import Isolated

Output = TypeVar("Output")
Item = TypeVar("Item")

_STREAMS = ("generator", "async_generator")
_LOOK_S = 0.02  # between looks of a stream's handler at whether somebody still reads


class Client:
    """Calls the functions of an endpoint as `gen-worker run` does, in this process or, `isolated`, in real children.

    `target` is a module or its name, a project's folder as a `Path`, or a class or function marked with `@endpoint`;
    without one it is the project of the current folder. `models` puts an object, such as a `fake_model()`, or the path
    of a folder with weights, into a slot; a slot without gets the model that its binding names, which must be on this
    machine unless `offline` is False.

    In this process calls run one after the other, on `device` if one is named; a class is set up by the first call that
    needs it. With `isolated` there are a supervisor and the `devices` of `gen-worker serve --devices`: children may
    crash and be killed, calls run beside each other, and slots take no objects.

    Producers publish nothing; `source_path` is the folder that stands for their `source`.

    Files that handlers keep go into `output_dir`, else into a folder that goes with the client. Closing it runs
    `shutdown()`. What is wrong with the endpoint is raised at once, as `DiscoveryError`, `ValueError` or `TypeError`.
    """

    def __init__(
        self,
        target: Target | None = None,
        *,
        models: Mapping[str, object] | None = None,
        isolated: bool = False,
        offline: bool = True,
        device: str | None = None,
        source_path: str | os.PathLike[str] | None = None,
        devices: str = "cpu:1",
        output_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._endpoint = endpoint_of(target)
        _refuse_unknown_slots(self._endpoint.specs, models or {})
        if isolated and (models or device or source_path):
            raise ValueError(
                "`isolated` children take no `models`, `device` and `source_path`: a hub has models, see `LoopbackHub`"
            )
        self._numbers = itertools.count(1)
        self._calls: set[Call] = set()
        self._own_folder = output_dir is None
        self._folder = Path(tempfile.mkdtemp(prefix="gen-worker-test-") if output_dir is None else output_dir).resolve()
        self._isolated: Isolated | None = None
        self._caller: Caller
        if isolated:
            from gen_worker.testing import isolated as server

            self._isolated = server.Isolated(self._endpoint, self._folder, offline=offline, devices=devices)
            self._caller = self._isolated
        else:
            from gen_worker.testing.in_process import InProcess

            source = None if source_path is None else str(Path(source_path).resolve())
            self._caller = InProcess(
                self._endpoint, self._folder, models or {}, offline=offline, device=device, source_path=source
            )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *raised: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Ask calls under way to end, run every `shutdown()`, remove the files; raise what a `shutdown()` raised."""
        try:
            self.cancel()
            for call in list(self._calls):
                call.ended.wait()
            self._caller.close()
        finally:
            if self._own_folder:
                shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def functions(self) -> list[str]:
        """The names of the functions."""
        return [spec.name for spec in self._endpoint.specs]

    @property
    def server(self) -> "Isolated":
        """Of an isolated client: its server, whose `connection` can kill jobs, and restart and drain devices."""
        if self._isolated is None:
            raise RuntimeError("there is no server: this client calls in its own process; make it with `isolated=True`")
        return self._isolated

    # --- calls --------------------------------------------------------------------------------------------------------

    @overload
    def run(
        self, function: str, payload: object = None, /, *, timeout_s: float | None = None, **fields: Any
    ) -> Result[Any]: ...

    @overload
    def run(
        self,
        function: Callable[..., Coroutine[Any, Any, Output]],
        payload: object = None,
        /,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Result[Output]: ...

    @overload
    def run(
        self,
        function: Callable[..., Iterator[Item] | AsyncIterator[Item]],
        payload: object = None,
        /,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Result[list[Item]]: ...

    @overload
    def run(
        self,
        function: Callable[..., Output],
        payload: object = None,
        /,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Result[Output]: ...

    def run(
        self,
        function: str | Callable[..., Any],
        payload: object = None,
        /,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Result[Any]:
        """Call a function, named or given as its handler, in this thread and return what came of it.

        The payload is a dict or a struct, `fields` are put over it; a `Path` stands for the asset that is that file.
        Raises what the handler raises. From an isolated child come `ValidationError`, `CanceledError` and
        `RetryableError` as such, everything else as `gen_worker.client.JobError`, whose `kind` says what it was: of a
        death `child_died`. A payload that the function does not take is a `ValidationError`, a name that there is not a
        `LookupError`, a deadline that has passed a `TimeoutError`.
        """
        return self._made(self._call(function, payload, fields, timeout_s))

    def submit(
        self,
        function: str | Callable[..., Any],
        payload: object = None,
        /,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> "Job[Any]":
        """Start a call in a thread of its own and return at once; in this process one runs at a time."""
        call = self._call(function, payload, fields, timeout_s)
        return Job(self, call)

    def stream(
        self,
        function: str | Callable[..., Any],
        payload: object = None,
        /,
        *,
        timeout_s: float | None = None,
        **fields: Any,
    ) -> Iterator[Any]:
        """Call a function that streams and yield its items as they come; closing the iterator cancels the call.

        Of a function that does not stream the only item is its output.
        """
        call = self._call(function, payload, fields, timeout_s)
        return _items(self, call)

    def cancel(self) -> None:
        """Ask every call that is under way to end."""
        for call in list(self._calls):
            self._caller.ask_to_end(call)

    def _call(
        self, function: str | Callable[..., Any], payload: object, fields: Mapping[str, Any], timeout_s: float | None
    ) -> Call:
        spec = self._endpoint.spec(function)
        return Call(spec, body_of(payload, fields), f"test-{next(self._numbers)}", timeout_s)

    def _made(self, call: Call) -> Result[Any]:
        items: list[Any] = []
        on_item = call.on_item

        def take(item: Any) -> None:
            items.append(decoded(call, item))
            on_item(items[-1])

        call.on_item = take
        self._calls.add(call)
        begun = time.monotonic()
        try:
            value = self._caller.call(call)
            seconds = time.monotonic() - begun
        finally:
            self._calls.discard(call)
            call.ended.set()
        return _result(call, value, items, seconds)


class Job(Generic[Output]):
    """A call under way in a thread of its own."""

    def __init__(self, client: Client, call: Call) -> None:
        self.request_id = call.request_id
        self._client = client
        self._call = call
        self._future: Future[Result[Output]] = Future()
        client._calls.add(call)  # before its thread has begun: it can be cancelled from now on
        threading.Thread(target=self._run, name=f"gen-worker-{call.request_id}", daemon=True).start()

    def _run(self) -> None:
        try:
            self._future.set_result(self._client._made(self._call))
        except BaseException as error:  # noqa: BLE001 - around the author's code; the caller of `result()` gets it
            self._future.set_exception(error)

    @property
    def events(self) -> list[Event]:
        """What the handler has told so far."""
        return list(self._call.events)

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self._future.done()

    def result(self, timeout_s: float | None = None) -> Result[Output]:
        """Wait for the end and return what `Client.run` returns, or raise that; `TimeoutError` when it takes longer."""
        return self._future.result(timeout_s)

    def cancel(self) -> None:
        """Ask it to end: the handler sees it, an async one is interrupted where it waits."""
        self._client._caller.ask_to_end(self._call)


def _result(call: Call, value: Any, items: list[Any], seconds: float) -> Result[Any]:
    import msgspec

    if call.spec.shape in _STREAMS:
        document = msgspec.json.encode({"yielded": len(items)})
        return Result(items, call.request_id, call.events, call.files, seconds, items, document)
    document = msgspec.json.encode(value)
    output = decoded(call, value, document)
    return Result(output, call.request_id, call.events, call.files, seconds, [], document)


def _items(client: Client, call: Call) -> Iterator[Any]:
    """Yield the items that a call in another thread hands over, one at a time."""
    handed: queue.Queue[Any] = queue.Queue(1)
    left = threading.Event()

    def hand(item: Any) -> None:
        while not left.is_set():
            with suppress(queue.Full):
                handed.put(item, timeout=_LOOK_S)
                return
        raise CanceledError("nobody reads the stream any more")

    call.on_item = hand
    job: Job[Any] = Job(client, call)
    try:
        while not (job.done and handed.empty()):
            with suppress(queue.Empty):
                yield handed.get(timeout=_LOOK_S)
        result = job.result()
        if call.spec.shape not in _STREAMS:
            yield result.output
    finally:
        left.set()
        job.cancel()
        call.ended.wait()


def _refuse_unknown_slots(specs: "list[FunctionSpec]", models: Mapping[str, object]) -> None:
    slots = sorted({slot for spec in specs for slot in spec.bindings})
    for name in models:
        if name not in slots:
            raise ValueError(
                f"no function has a slot `{name}`; there are {', '.join(f'`{each}`' for each in slots) or 'none'}"
            )
