"""A test's calls in its own process: the executor of children, and the models of this machine or what stands for them.

There is no supervisor: what a handler does to the process it does to the test.
"""

import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from gen_worker.api.context import DEVICE_VARIABLE, RequestContext
from gen_worker.api.errors import CanceledError
from gen_worker.api.producers import begin, context_class
from gen_worker.outputs import FolderSink, SavedFile
from gen_worker.settings import Settings
from gen_worker.testing.calls import Call, refused
from gen_worker.testing.results import Event
from gen_worker.testing.target import Endpoint
from gen_worker.wire.messages import Resident, SlotModel
from gen_worker_child.executor import Executor
from gen_worker_child.models.plane import Models

if TYPE_CHECKING:
    from gen_worker.api.bindings import Binding
    from gen_worker.cli.platform import LocalPlatform
    from gen_worker.fetch.config import FetchConfig

Given = Mapping[str, object]
"""What goes into slots: an object as it is, or the path of a folder that a model is built from."""


class InProcess:
    """Makes calls one after the other, whichever thread asks; instances are set up by the first call that needs one."""

    def __init__(
        self,
        endpoint: Endpoint,
        folder: Path,
        given: Given,
        *,
        offline: bool,
        device: str | None,
        source_path: str | None,
    ) -> None:
        self._endpoint = endpoint
        self._folder = folder
        self._given = given
        self._offline = offline
        self._device = device
        self._source_path = source_path
        self._settings = Settings.load()
        self._executor = Executor(endpoint.specs, self._open_models)
        if any(spec.shape.startswith("async") for spec in endpoint.specs):
            _ = self._executor.async_side  # its loop is this client's, not that of the test that calls first
        self._loaded: set[str] = set()
        self._leases: list[int] = []
        self._platforms: list[LocalPlatform] = []
        self._turn = threading.Lock()
        self._current: Call | None = None

    def call(self, call: Call) -> Any:
        """Make the call when those before it have ended."""
        with self._turn, self._on_device():
            self._current = call
            try:
                if call.cancel.requested:
                    raise CanceledError("canceled")
                return self._call(call)
            finally:
                self._current = None

    def _call(self, call: Call) -> Any:
        spec, executor = call.spec, self._executor
        self._name_source(call)
        try:
            payload = executor.decode(spec, call.body, "json")
            bindings = executor.models_of(spec, call.body, "json")
        except msgspec.ValidationError as error:
            raise refused(call, error) from None
        slots = self._slots(bindings)
        instance = self._set_up(call, bindings, slots)
        context = self._context(call, slots)
        with self._inputs(payload), _deadline(call, self):
            try:
                with begin(context, payload):
                    return executor.run(spec, context, payload, call.on_item, instance)
            except CanceledError:
                if call.cancel.requested and call.timeout_s is not None and _is_over(context):
                    raise TimeoutError(f"`{spec.name}` did not end within {call.timeout_s:g} s") from None
                raise

    def ask_to_end(self, call: Call) -> None:
        """Set the flag of a call; an async handler is interrupted where it waits."""
        call.cancel.set()
        if call is self._current:
            self._executor.cancel()

    def close(self) -> None:
        """Run every `shutdown()`; what one raises is raised when all of them have run."""
        raised: list[Exception] = []
        with self._on_device():
            self._executor.shutdown(raised.append)
        for platform in self._platforms:
            platform.close()
        self._platforms.clear()
        for lease in self._leases:
            os.close(lease)
        self._leases.clear()
        if raised:
            raise raised[0]

    @contextmanager
    def _on_device(self) -> Iterator[None]:
        if self._device is None:
            yield
            return
        before = os.environ.get(DEVICE_VARIABLE)
        os.environ[DEVICE_VARIABLE] = self._device
        try:
            yield
        finally:
            os.environ.pop(DEVICE_VARIABLE)
            if before is not None:
                os.environ[DEVICE_VARIABLE] = before

    # --- what a handler is given ---

    def _context(self, call: Call, slots: Sequence[SlotModel]) -> RequestContext:
        def emit(event: dict[str, Any]) -> None:
            value = dict(event["payload"])
            if "progress" in value:
                value["progress"] = min(1.0, max(0.0, value["progress"]))
            call.events.append(Event(str(event["type"]).removeprefix("request."), value))

        return context_class(call.spec.kind)(
            request_id=call.request_id,
            owner="test",
            emitter=emit,
            sink=_Kept(FolderSink(self._folder, self._settings.max_upload_bytes), call.files),
            cancel=call.cancel,
            timeout_s=call.timeout_s,
            models={slot.slot: slot.ref for slot in slots},
            **self._of_producer(call),
        )

    def _of_producer(self, call: Call) -> dict[str, Any]:
        """Return what the context of a producer takes beside what every context takes; it publishes nothing."""
        if call.spec.kind == "inference":
            return {}
        from gen_worker.cli.destination import local_destination
        from gen_worker.cli.platform import LocalPlatform

        to = local_destination(self._settings, call.request_id, publishes=False)
        platform = LocalPlatform(self._fetching(), to)
        self._platforms.append(platform)
        return {"platform": platform, "publishes": False, "source_path": self._source_path}

    def _name_source(self, call: Call) -> None:
        """Name the folder that stands for the source in a payload that names none."""
        if self._source_path is None or call.spec.kind == "inference":
            return
        payload = msgspec.json.decode(call.body)
        if "source" in call.spec.payload_type.__struct_fields__ and isinstance(payload, dict):
            payload.setdefault("source", {"ref": f"local/{Path(self._source_path).name}"})
            call.body = msgspec.json.encode(payload)

    def _inputs(self, payload: msgspec.Struct) -> AbstractContextManager[None]:
        """Have the files that a payload names by URLs."""
        from gen_worker_child.inputs import needed

        if not needed(payload):
            return nullcontext()
        from gen_worker.cli.inputs import with_inputs

        return with_inputs(payload, self._executor.inputs, self._settings, self._fetching())

    def _fetching(self) -> "FetchConfig":
        from gen_worker.fetch.config import FetchConfig

        return FetchConfig.of(self._settings, offline=self._offline)

    # --- models ---

    def _slots(self, bindings: "Mapping[str, Binding]") -> list[SlotModel]:
        """Return what goes into each slot; raise `ModelError` for a model that is neither given nor here."""
        return [self._slot(slot, binding) for slot, binding in bindings.items()]

    def _slot(self, slot: str, binding: "Binding") -> SlotModel:
        wanted = binding.wanted
        given = self._given.get(slot)
        if isinstance(given, str | os.PathLike):
            path = os.path.abspath(os.fspath(given))
            return SlotModel(slot, wanted.ref, path, f"path:{path}", wanted.dtype, wanted.subfolder, False)
        if given is not None:
            return SlotModel(slot, wanted.ref, "", f"given:{id(given)}", "", "", False)
        from gen_worker.fetch.fetcher import Fetcher
        from gen_worker.models.errors import ModelError

        fetcher = Fetcher(self._fetching())
        try:
            found = fetcher.fetch(wanted)
        except ModelError as error:
            error.add_note(f"hint: a test can do without it: `Client(…, models={{{slot!r}: fake_model(…)}})`")
            raise
        finally:
            fetcher.close()
        if found.lease >= 0:
            self._leases.append(found.lease)
        pickle = wanted.named_in(self._settings.allow_pickle)
        return SlotModel(
            slot, wanted.ref, found.snapshot.path, found.snapshot.key, wanted.dtype, wanted.subfolder, pickle
        )

    def _set_up(self, call: Call, bindings: "Mapping[str, Binding]", slots: Sequence[SlotModel]) -> str:
        instance = _instance(call, bindings)
        if instance and instance not in self._loaded:
            self._executor.load(instance, slots)
            self._loaded.add(instance)
        return instance

    def _open_models(self) -> Models:
        given = {name: value for name, value in self._given.items() if not isinstance(value, str | os.PathLike)}
        models = _Models(
            given,
            device=self._device or self._settings.local_device or _device(),
            budget_bytes=int(self._settings.max_vram_gb * (1 << 30)),
            margin_bytes=int(self._settings.vram_margin_gb * (1 << 30)),
            derived=str(self._settings.cache_dir / "cas/derived"),
        )
        models.current = lambda: self._executor.current
        return models


def _instance(call: Call, bindings: "Mapping[str, Binding]") -> str:
    """Name what the call runs on: the function's instance, or one with the models that the payload names."""
    changed = {slot: each for slot, each in bindings.items() if each != call.spec.bindings.get(slot)}
    if not call.spec.instance or not changed:
        return call.spec.instance
    return f"{call.spec.instance}?{'&'.join(f'{slot}={each.wanted.key}' for slot, each in sorted(changed.items()))}"


def _device() -> str:
    from gen_worker.cli.loading import has_cuda

    return "cuda" if has_cuda() else "cpu"


def _is_over(context: RequestContext) -> bool:
    return context.time_remaining() == 0.0


@contextmanager
def _deadline(call: Call, caller: InProcess) -> Iterator[None]:
    """Ask the call to end at its deadline."""
    if call.timeout_s is None:
        yield
        return
    clock = threading.Timer(call.timeout_s, caller.ask_to_end, [call])
    clock.daemon = True
    clock.start()
    try:
        yield
    finally:
        clock.cancel()
        clock.join()


class _Kept:
    """Keeps files in a folder, and remembers which."""

    def __init__(self, sink: FolderSink, files: dict[str, Path]) -> None:
        self._sink = sink
        self._files = files

    def save(self, ref: str, *, data: bytes | None, path: Path | None, **options: Any) -> SavedFile:
        """Keep a file as the folder does."""
        saved = self._sink.save(ref, data=data, path=path, **options)
        self._files[ref] = Path(saved.local_path)
        return saved


class _Models(Models):
    """The models of this process, with the objects that a test gives in place of some."""

    def __init__(self, given: Given, **options: Any) -> None:
        super().__init__(**options)
        self._given = given
        self._stood_for: set[str] = set()  # instances all of whose models are given

    def load(self, instance: str, slots: Sequence[SlotModel], annotations: Mapping[str, object]) -> dict[str, object]:
        """Load what is not given."""
        given = {slot.slot: self._given[slot.slot] for slot in slots if slot.slot in self._given}
        others = [slot for slot in slots if slot.slot not in given]
        if not others:
            self._stood_for.add(instance)
        return super().load(instance, others, annotations) | given

    def residents(self, instance: str) -> list[Resident]:
        """Return what is really here."""
        return [] if instance in self._stood_for else super().residents(instance)

    @contextmanager
    def leased(self, instance: str) -> Iterator[None]:
        """Keep what is really here."""
        with nullcontext() if instance in self._stood_for else super().leased(instance):
            yield
