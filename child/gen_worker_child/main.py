"""A child process: boots, imports the author's module, then obeys its supervisor's frames until the end.

The author's handlers run on the job thread, or on the asyncio loop's; the main thread never runs one, so that orders
reach a busy child.
"""

import argparse
import ctypes
import faulthandler
import gc
import os
import queue
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from math import inf
from typing import TYPE_CHECKING, assert_never

from gen_worker.api.errors import classify
from gen_worker.capability import HardwareUnmetError
from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.function_spec import FunctionSpec
from gen_worker.discovery.specs import collect
from gen_worker.discovery.stacks import author_stack, briefly
from gen_worker.discovery.walk import import_modules
from gen_worker.models.broken_context import breaks_context
from gen_worker.models.errors import ModelError
from gen_worker.oom_score import CHILD, go_before
from gen_worker.wire.channel import Channel
from gen_worker.wire.messages import (
    Boot,
    Called,
    Cancel,
    Drain,
    Grant,
    Hangup,
    Hello,
    ImportFailed,
    Interrupt,
    Lane,
    Load,
    Loaded,
    LoadFailed,
    Message,
    More,
    Order,
    Pin,
    Ready,
    Recall,
    Release,
    Saved,
    Stack,
    Stacked,
    Submit,
    Unload,
    Unloaded,
    Unmap,
    Warned,
)
from gen_worker.wire.page import PageWriter
from gen_worker_child.executor import Executor
from gen_worker_child.failures import STACK_LINES, Interrupted
from gen_worker_child.jobs import Jobs
from gen_worker_child.lines import MarkedStreams
from gen_worker_child.loop import EXIT_BROKEN
from gen_worker_child.peaks import device_use
from gen_worker_child.stacks import stacks

if TYPE_CHECKING:
    from gen_worker_child.engines import Running
    from gen_worker_child.models.plane import Models

WATCH_S = 0.002  # how late an order may reach a child whose job has just begun
RESTED_LOOKS = 100  # after so many looks at an idle job thread the main thread waits to be woken
CREDITS: dict[Lane, int] = {"device": 1, "loop": 64}
PR_SET_PDEATHSIG = 1
KEPT_FREED_BYTES = 128 << 20
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def die_with(supervisor_pid: int) -> None:
    """Have the kernel end this process when its supervisor dies; end it now if that has happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor_pid:
        os._exit(1)


def keep_freed_memory() -> None:
    """Have the allocator use freed memory again for values of up to `KEPT_FREED_BYTES` instead of giving it back.

    A fresh 32 MiB costs more in page faults than the copy into it. See mallopt(3); only glibc has it.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, KEPT_FREED_BYTES)
        libc.mallopt(_M_TRIM_THRESHOLD, KEPT_FREED_BYTES)


def resident_bytes() -> int:
    """Return this process's resident memory in bytes."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE


def run_child(sock: socket.socket, generation: int, crash_fd: int, page_fd: int, supervisor_pid: int) -> None:
    """Serve one supervisor until it drains this child or is gone; never returns."""
    die_with(supervisor_pid)
    go_before(supervisor_pid, CHILD)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would never run while a job holds the GIL
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to the whole group; the supervisor decides
    keep_freed_memory()
    faulthandler.enable(file=crash_fd)
    faulthandler.register(signal.SIGUSR2, file=crash_fd, all_threads=True)
    streams = MarkedStreams()
    streams.install()
    channel: Channel[Order] = Channel(sock, generation=generation, receives=Order)
    try:
        status = Child(channel, PageWriter(page_fd), streams).run()
    except BaseException as error:  # noqa: BLE001 - around the process's whole life
        print("\n".join(author_stack(error)), file=sys.stderr)
        status = 1
    streams.end()
    os._exit(status)  # interpreter teardown after native work can hang, and threads of the author's would keep it up


def load_failure(instance: str, error: BaseException) -> LoadFailed:
    """Return what is told of a load that failed: whether the model, the device or the author's code is to blame."""
    told = _load_failure(instance, error)
    told.broken = told.kind != "out_of_memory" and breaks_context(error)
    return told


def _load_failure(instance: str, error: BaseException) -> LoadFailed:
    from gen_worker.runtimes.server import ServerBootError

    stack = briefly(author_stack(error), STACK_LINES)
    if isinstance(error, ModelError):
        return LoadFailed(instance, str(error)[:1024], [], "model", hint=error.hint[:1024])
    if isinstance(error, ServerBootError):
        return LoadFailed(instance, error.message[:1024], list(error.lines)[-STACK_LINES:], hint=error.hint[:1024])
    message = f"{type(error).__name__}: {error}"[:1024]
    if isinstance(error, HardwareUnmetError):
        reason, hint = error.reason, error.hint[:1024]
        return LoadFailed(instance, str(error)[:1024], [], "hardware", reason, hint=hint, axes=error.axes())
    if classify(error).kind == "out_of_memory":
        return LoadFailed(instance, message, stack, "out_of_memory")
    return LoadFailed(instance, message, stack)


class Child:
    """A booted child: its two threads and who of them reads frames.

    The job thread reads while it has nothing to do, so that a short job costs no hand-over between threads. When a job
    takes longer than `WATCH_S` the main thread, which looks at it in that rhythm, takes the reading over, so that
    orders reach a busy child. It gives the reading back with the next job. Exactly one of them reads at any time.
    """

    def __init__(self, channel: Channel[Order], page: PageWriter, streams: MarkedStreams) -> None:
        self._channel = channel
        self._page = page
        self._streams = streams
        self._turn = threading.Lock()
        self._main_reads = False
        self._handed = 0  # tasks that other threads gave to the job thread
        self._taken_over = 0  # of those, the ones that have ended
        self._task = 0  # counts what the job thread does; even while it waits for work
        self._work: queue.SimpleQueue[tuple[Callable[[], None], bool]] = queue.SimpleQueue()
        self._wake = threading.Event()
        self._dozing = False
        self._pinned: frozenset[str] = frozenset()  # instances that make room for no other
        self._device_use = (0, 0)  # as the job thread last found it: a beat waits for no device
        self._measured_at = -inf
        self._beat_s = 1.0
        self._beat_due = -inf
        self._turn_loop: Callable[[], None] = lambda: None
        self._job_thread = threading.Thread(target=self._serve_jobs, name="gen-worker-job", daemon=True)

    # --- boot ---

    def run(self) -> int:
        """Boot, then serve until the supervisor is gone or drains this child; return the exit status."""
        self._beat()
        self._channel.send(Hello(os.getpid()))
        boot = self._boot()
        if boot is None:
            return 0
        specs = self._import(boot)
        if specs is None:
            return 3
        self._executor = Executor(specs, partial(self._open_models, boot))
        self._executor.hand_over = self._hand_over
        self._engines = self._executor.instances.engines
        self._engine_deaths = threading.Lock()  # of one that is told of all is known here, and its jobs are told to end
        self._engines.report = self._channel.send
        self._engines.on_death = self._engine_died
        self._beat_s = boot.beat_s
        self._jobs = Jobs(self._channel, self._executor, self._page, self._streams)
        self._jobs.on_progress = self._measure
        self._jobs.read_ahead = self._read_ahead
        self._turn_loop = partial(self._executor.turn, self._page.loop)
        self._receive_for(boot.beat_s)
        self._job_thread.start()
        thread = self._job_thread
        self._channel.send(Ready([spec.name for spec in specs], CREDITS, thread.ident or 0, thread.native_id or 0))
        return self._watch()

    def _boot(self) -> Boot | None:
        received = self._channel.receive()
        if received is None:
            return None
        boot, _ = received
        assert isinstance(boot, Boot)
        return boot

    def _import(self, boot: Boot) -> list[FunctionSpec] | None:
        os.environ.update(boot.environment)
        os.environ["GEN_WORKER_LOCAL_DEVICE"] = boot.device
        try:
            specs = collect(*import_modules(boot.module, boot.paths), skipped=[], passed_over=[])  # the survey has told
        except DiscoveryError as error:
            self._channel.send(ImportFailed(str(error)[:2048], briefly(error.stack, STACK_LINES)))
            return None
        gc.collect()
        gc.freeze()
        return specs

    def _receive_for(self, seconds: float) -> None:
        """Let the kernel end each wait for a frame after `seconds`, so that the beat needs no call of its own."""
        whole = int(seconds)
        self._channel.sock.setsockopt(
            socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", whole, int((seconds - whole) * 1e6))
        )

    # --- the job thread ---

    def _serve_jobs(self) -> None:
        while True:
            try:
                self._serve_next()
            except Interrupted:
                continue  # aimed at a job that had just ended
            except BaseException:  # noqa: BLE001 - a job thread that ends silently would hold its jobs for ever
                traceback.print_exc()
                self._leave(EXIT_BROKEN)

    def _serve_next(self) -> None:
        if self._main_reads or not self._work.empty():
            work, reads_on = self._work.get()
            if reads_on:
                with self._turn:
                    self._main_reads = False
            try:
                self._perform_task(work)
            finally:
                self._taken_over += 1
            return
        received = self._receive()
        if received is not None:
            task = self._obey(*received)
            if task is not None:
                self._perform_task(task)

    def _perform_task(self, task: Callable[[], None]) -> None:
        self._task += 1
        if self._dozing:
            self._wake.set()
        try:
            task()
            self._device_use = device_use()
        finally:
            self._task += 1

    def _measure(self) -> None:
        """Learn what a job takes of the device, from its own thread and not more often than there are beats."""
        if (now := time.monotonic()) - self._measured_at >= self._beat_s:
            self._measured_at = now
            self._device_use = device_use()

    # --- the main thread ---

    def _beat(self) -> None:
        self._page.beat(resident_bytes(), *self._device_use)
        self._turn_loop()
        self._beat_due = time.monotonic() + self._beat_s

    def _beat_if_due(self) -> None:
        if time.monotonic() >= self._beat_due:
            self._beat()

    def _watch(self) -> int:
        """Beat, and take the reading over whenever the job thread is at one thing for too long."""
        while True:
            self._beat()
            self._dozing = True
            if self._task % 2 == 0:  # one that began before just now has woken nobody
                self._wake.wait(self._beat_s)
            self._dozing = False
            self._wake.clear()
            self._follow_jobs()

    def _follow_jobs(self) -> None:
        """Look at the job thread in the rhythm of `WATCH_S`, until it has rested for a while."""
        rested = 0
        while rested < RESTED_LOOKS:
            seen = self._task
            time.sleep(WATCH_S)
            if seen % 2 and self._task == seen and self._take_reading(seen):
                self._read_for_job_thread()
            rested = rested + 1 if seen == self._task else 0
            self._beat_if_due()

    def _take_reading(self, task: int) -> bool:
        with self._turn:
            self._main_reads = self._task == task
            return self._main_reads

    def _read_for_job_thread(self) -> None:
        """Obey frames; give the reading back with the first task that finds the job thread waiting."""
        while True:
            self._beat_if_due()
            received = self._receive()
            task = self._obey(*received) if received is not None else None
            if task is not None:
                with self._turn:
                    waits = self._task % 2 == 0 and self._handed == self._taken_over
                    self._handed += 1
                    self._work.put((task, waits))
                if waits:
                    return

    def _read_ahead(self, enough: Callable[[], bool]) -> None:
        """Obey what has come while the job thread, whose task calls this, reads; what that leads to comes after it."""
        with self._turn:
            while not (self._main_reads or enough()):
                try:
                    received = self._channel.receive(wait=False)
                except BlockingIOError:
                    return
                if received is None:  # the supervisor is gone, which the next wait for a frame finds again
                    return
                task = self._obey(*received)
                if task is not None:
                    self._handed += 1
                    self._work.put((task, False))

    # --- the loop's thread ---

    def _hand_over(self, call: Callable[[], None]) -> None:
        """Have the job thread do something between two of its tasks; one that waits for a frame looks once a beat."""
        with self._turn:
            self._handed += 1
            self._work.put((call, False))

    # --- both ---

    def _receive(self) -> tuple[Order, list[int]] | None:
        try:
            received = self._channel.receive()
        except BlockingIOError:
            return None
        if received is None:
            self._leave(0)  # the supervisor is gone
        return received

    def _leave(self, status: int) -> None:
        self._streams.end()
        os._exit(status)

    def _obey(self, order: Order, descriptors: list[int]) -> Callable[[], None] | None:
        """Do what a frame says, or return it as a task for the job thread."""
        match order:
            case Submit():
                job = self._jobs.submit(order, descriptors)
                return None if job is None else partial(self._jobs.run, job)
            case Load():
                return partial(self._load, order)
            case Unload(instance):
                return partial(self._unload, instance)
            case Drain():
                self._engines.leave()
                return self._shut_down
            case Pin(instances):
                self._pinned = frozenset(instances)
            case Stack():
                self._channel.send(Stacked(stacks(self._executor.loop)))
            case Release() | Unmap() | Grant():
                self._jobs.outputs.obey(order, descriptors)
            case Cancel() | More() | Recall() | Saved() | Interrupt() | Called() | Message() | Hangup():
                self._tell_jobs(order, descriptors)
            case Boot():
                raise RuntimeError("`boot` is out of place")
            case _:
                assert_never(order)
        return None

    def _tell_jobs(
        self,
        order: Cancel | More | Recall | Saved | Interrupt | Called | Message | Hangup,
        descriptors: list[int],
    ) -> None:
        match order:
            case Cancel(job_number, unheard):
                self._jobs.cancel(job_number, unheard=unheard)
            case More(job_number, items):
                self._jobs.more(job_number, items)
            case Recall(job_number):
                self._jobs.recall(job_number)
            case Saved():
                self._jobs.saves.saved(order)
            case Interrupt(job_number):
                self._jobs.interrupt(job_number, self._job_thread.ident or 0)
            case Called():
                self._jobs.calls.called(order, descriptors)
            case Message():
                self._jobs.message(order, descriptors)
            case Hangup():
                self._jobs.hang_up(order)
            case _:
                assert_never(order)

    # --- tasks of the job thread that are not jobs ---

    def _load(self, order: Load) -> None:
        began = time.monotonic()
        instance = order.instance
        self._clear(instance)
        try:
            residents = self._executor.load(instance, order.models)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - around the author's code
            self._channel.send(load_failure(instance, error))
        else:
            rung = self._executor.instances.rung(instance)
            self._channel.send(Loaded(instance, time.monotonic() - began, residents, rung))
            self._engines.settled(instance)

    def _engine_died(self, instance: str, engine: "Running") -> None:
        """An instance has lost its engine: no job comes any more, those that run end, and it is let go of."""
        with self._engine_deaths:
            self._channel.send(
                Unloaded(instance, engine.death, engine.lines)
            )  # first: what is given back goes elsewhere
            engine.lost = True
            self._jobs.lose(instance)
        self._hand_over(partial(self._clear, instance))

    def _clear(self, instance: str) -> None:
        """Let go of an instance whose engine has died, unless that is done."""
        with self._engine_deaths:  # whoever has heard of its death may have ordered it anew already
            is_lost = self._engines.lost(instance)
        if is_lost:
            self._executor.instances.unload(instance, self._report_shutdown)

    def _unload(self, instance: str, reason: str = "") -> None:
        self._channel.send(Unloaded(instance, reason))  # first: its `shutdown()` may be slow, and no job shall come
        self._executor.instances.unload(instance, self._report_shutdown)

    def _open_models(self, boot: Boot) -> "Models":
        from gen_worker_child.models.plane import Models

        models = Models(
            device=boot.device,
            budget_bytes=boot.budget_bytes,
            margin_bytes=boot.margin_bytes,
            derived=boot.derived,
            report=self._channel.send,
        )
        models.on_evict = lambda instance: self._unload(instance, "its device has no room for it and what came next")
        models.current = lambda: self._executor.current
        models.pinned = lambda: self._pinned
        return models

    def _shut_down(self) -> None:
        """Run every `shutdown()`, in the thread where `setup()` ran, and end the process."""
        self._executor.shutdown(self._report_shutdown)
        self._leave(0)

    def _report_shutdown(self, error: Exception) -> None:
        self._channel.send(Warned(f"shutdown() raised {type(error).__name__}: {error}"[:2048]))


def main(arguments: Sequence[str] | None = None, *, run: Callable[..., None] = run_child) -> None:
    """Start a child that was spawned rather than forked."""
    parser = argparse.ArgumentParser(prog="gen-worker child")
    for name in ("socket", "crash", "page", "generation", "supervisor"):
        parser.add_argument(f"--{name}", type=int, required=True)
    options = parser.parse_args(arguments)
    sock = socket.socket(fileno=options.socket)
    run(sock, options.generation, options.crash, options.page, options.supervisor)


if __name__ == "__main__":
    main()
