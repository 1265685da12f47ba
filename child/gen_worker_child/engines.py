"""The engine servers of this process: one for each instance of a class with `runtime=`, from before its `setup()` on.

Knows nothing of frames but what it reports: `gen-worker run` uses it in its own process, a child in its own. How an
engine is started, and that nothing of it outlives this process, is `gen_worker.runtimes.server`'s.
"""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from gen_worker.api.errors import CanceledError, ValidationError
from gen_worker.wire.messages import Engine, ErrorDetail, Failed

if TYPE_CHECKING:
    from gen_worker.discovery.function_spec import FunctionSpec
    from gen_worker.runtimes.launching import Launched
    from gen_worker.runtimes.server import ServerHandle, ServerProcess
    from gen_worker.wire.messages import SlotModel

GRACE_S = 2.0  # between SIGTERM and SIGKILL: less than what a child has to drain
NEWS_S = 0.3  # a broken connection may be heard of sooner than the death that broke it
LAST_LINES_S = 0.1  # what the last of its output may take to come
LINE_CHARS = 400


@dataclass(slots=True)
class Running:
    """One engine that came up, to its end."""

    handle: "ServerHandle"
    launched: "Launched"
    settled: bool = False  # its instance is set up, and others know of it
    lost: bool = False  # it died, and its instance is of no use any more: the owner of `on_death` says so
    death: str = ""
    lines: list[str] = field(default_factory=list)  # what it printed last
    died: "Future[None]" = field(default_factory=Future)


class Engines:
    """What runs here. `start` and `stop` are for the thread that sets instances up, all else is for any."""

    def __init__(self) -> None:
        self.report: Callable[[Engine], None] = lambda report: None
        """Is told what engines are at, again and again while they boot."""

        self.on_death: Callable[[str, Running], None] = lambda instance, engine: None
        """Called with an instance whose engine died under it, and with that engine."""

        self._running: dict[str, Running] = {}
        self._booting: Launched | None = None
        self._leaving = False
        self._lock = threading.Lock()

    def start(self, instance: str, spec: "FunctionSpec", slots: "Sequence[SlotModel]") -> "ServerHandle":
        """Start the engine of an instance with the first of its models, and wait until it is up.

        Raises `ValidationError` where there is no model, `ServerBootError` where it does not come up.
        """
        server = _server(spec, slots)

        def look(launched: "Launched") -> None:
            self._booting = launched
            if self._leaving:
                launched.end()
            self.report(Engine(instance, server.name, "booting", launched.pid, server.port))

        server.on_look = look
        try:
            handle = server.start()
        finally:
            self._booting = None
        launched = handle.launched
        assert launched is not None
        running = self._running[instance] = Running(handle, launched)
        launched.on_end = partial(self._ended, instance, running)
        if launched.ended.is_set():
            self._ended(instance, running)
        self.report(Engine(instance, server.name, "up", launched.pid, server.port))
        return handle

    def check(self, instance: str, error: BaseException | None = None) -> None:
        """Raise `ServerBootError` when the engine of an instance that is being set up has died.

        An `error` of the set-up may come of that, and be there sooner than the news.
        """
        running = self._running.get(instance)
        if running is None:
            return
        within_s = NEWS_S if error is not None and _may_be_news(error) else 0
        if running.launched.ended.wait(within_s):
            from gen_worker.runtimes.server import ServerBootError

            text = f"`{running.launched.name}` died while `{instance}` was set up: {_how(running)}"
            raise ServerBootError(text, lines=running.launched.last_lines())

    def settled(self, instance: str) -> None:
        """Tell of the death of an instance's engine from now on, or now."""
        running = self._running.get(instance)
        if running is None:
            return
        with self._lock:
            running.settled, late = True, running.died.done()
        if late:
            self._tell(instance, running)

    def release(self, instance: str) -> None:
        """Tell of no death any more: what lets go of an instance may end its engine, too."""
        running = self._running.get(instance)
        if running is not None:
            with self._lock:
                running.settled = False

    def stop(self, instance: str) -> None:
        """End the engine of an instance, if it has one."""
        running = self._running.pop(instance, None)
        if running is not None:
            running.handle.stop(grace_s=GRACE_S)
            self.report(Engine(instance, running.launched.name, "gone"))

    def leave(self) -> None:
        """Wait for no engine that boots: this process is about to end."""
        self._leaving = True
        if (booting := self._booting) is not None:
            booting.end()

    # --- deaths ---

    def _ended(self, instance: str, running: Running) -> None:
        lines = [line[:LINE_CHARS] for line in running.launched.last_lines(LAST_LINES_S)]
        with self._lock:
            if running.died.done():
                return
            running.lines = lines
            running.death = f"its engine `{running.launched.name}` died: {_how(running)}"
            running.died.set_result(None)
            if not running.settled:
                return
        self._tell(instance, running)

    def _tell(self, instance: str, running: Running) -> None:
        if self._running.get(instance) is running:
            self.on_death(instance, running)

    def lost(self, instance: str) -> bool:
        """Whether the engine that an instance has just now is lost: it may have had another before."""
        running = self._running.get(instance)
        return running is not None and running.lost

    def loss(self, job: int, instance: str, error: BaseException) -> Failed | None:
        """Return the end of a job that failed on an instance whose engine died; None where that is not why."""
        running = self._concerned(instance, error)
        if running is None:
            return None
        wait([running.died], NEWS_S if _may_be_news(error) else 0)
        return _lost(job, running)

    async def loss_on_loop(self, job: int, instance: str, error: BaseException) -> Failed | None:
        """Do the same on an asyncio loop."""
        running = self._concerned(instance, error)
        if running is None:
            return None
        if _may_be_news(error) and not running.died.done():
            with suppress(asyncio.CancelledError):  # the job has ended, whoever wants it to
                await asyncio.wait([asyncio.wrap_future(running.died)], timeout=NEWS_S)
        return _lost(job, running)

    def _concerned(self, instance: str, error: BaseException) -> Running | None:
        return None if isinstance(error, ValidationError) else self._running.get(instance)


def _may_be_news(error: BaseException) -> bool:
    return isinstance(error, Exception) and not isinstance(error, CanceledError)


def _lost(job: int, running: Running) -> Failed | None:
    if not running.died.done():
        return None
    detail = ErrorDetail(cause="engine_died", stderr=running.lines or None)
    status = running.launched.status
    if status is not None and status >= 0:
        detail.exit_code = status
    elif status is not None:
        detail.signal = _how(running)
    return Failed(job, "retryable", running.death, True, 0.0, detail=detail)


def _how(running: Running) -> str:
    from gen_worker.runtimes.launching import how

    return how(running.launched.status)


def _server(spec: "FunctionSpec", slots: "Sequence[SlotModel]") -> "ServerProcess":
    from gen_worker.runtimes.server import RUNTIME_FACTORIES
    from gen_worker_child.models.loading import place_of

    assert spec.runtime is not None
    if not slots:
        raise ValidationError(f'`runtime="{spec.runtime}"` needs a model, `{spec.class_name}` is bound to none')
    first = next(iter(spec.bindings), "")
    slot = next((each for each in slots if each.slot == first), slots[0])
    return RUNTIME_FACTORIES[spec.runtime](place_of(slot), extra_args=_arguments(spec))


def _arguments(spec: "FunctionSpec") -> list[str]:
    """Return what the class adds to its engine's command; vLLM has to be told that it is to use several GPUs."""
    own = [str(each) for each in getattr(spec.owner, "engine_args", ())]
    gpus = spec.resources.gpu_count
    given = any(each.split("=")[0] in ("--tensor-parallel-size", "-tp", "--pipeline-parallel-size") for each in own)
    if spec.runtime == "vllm" and gpus > 1 and not given:
        own += ["--tensor-parallel-size", str(gpus)]
    return own
