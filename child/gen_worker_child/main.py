"""A child process: boots, imports the author's module, then obeys its supervisor's frames until the end.

The main thread reads frames and never runs the author's handlers, so that a cancel reaches a busy child.
"""

import argparse
import ctypes
import faulthandler
import gc
import os
import signal
import socket
import struct
import sys
import time
from collections.abc import Callable, Sequence
from typing import assert_never

from gen_worker.discovery.errors import DiscoveryError
from gen_worker.discovery.stacks import author_stack
from gen_worker.discovery.specs import FunctionSpec, collect
from gen_worker.discovery.walk import import_main
from gen_worker.wire.channel import Channel, close_all
from gen_worker.wire.messages import (
    Boot,
    Cancel,
    Drain,
    Grant,
    Hello,
    ImportFailed,
    Interrupt,
    Lane,
    Load,
    Loaded,
    LoadFailed,
    More,
    Order,
    Ready,
    Recall,
    Release,
    Saved,
    Submit,
    Warned,
)
from gen_worker.wire.page import PageWriter
from gen_worker_child.executor import Executor
from gen_worker_child.jobs import STACK_LINES, Jobs
from gen_worker_child.lines import MarkedStreams

CREDITS: dict[Lane, int] = {"device": 1, "loop": 64}
PR_SET_PDEATHSIG = 1
_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def die_with(supervisor_pid: int) -> None:
    """Have the kernel end this process when its supervisor dies; end it now if that has happened."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != supervisor_pid:
        os._exit(1)


def resident_bytes() -> int:
    """Return this process's resident memory in bytes."""
    with open("/proc/self/statm", "rb") as statm:
        return int(statm.read().split()[1]) * _PAGE


def run_child(sock: socket.socket, generation: int, crash_fd: int, page_fd: int, supervisor_pid: int) -> None:
    """Serve one supervisor until it drains this child or is gone; never returns."""
    die_with(supervisor_pid)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a Python handler would never run while a job holds the GIL
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C in a terminal goes to the whole group; the supervisor decides
    faulthandler.enable(file=crash_fd)
    faulthandler.register(signal.SIGUSR2, file=crash_fd, all_threads=True)
    streams = MarkedStreams()
    streams.install()
    channel: Channel[Order] = Channel(sock, generation=generation, receives=Order)
    try:
        status = Child(channel, PageWriter(page_fd), streams).run()
    except BaseException as error:  # noqa: BLE001 - around the process's whole life
        print("".join(author_stack(error)), file=sys.stderr)
        status = 1
    streams.end()
    os._exit(status)  # interpreter teardown after native work can hang, and threads of the author's would keep it up


class Child:
    """The frame loop and what it needs."""

    def __init__(self, channel: Channel[Order], page: PageWriter, streams: MarkedStreams) -> None:
        self._channel = channel
        self._page = page
        self._streams = streams

    def run(self) -> int:
        """Boot, then obey frames; return the exit status."""
        self._page.beat(resident_bytes())
        self._channel.send(Hello(os.getpid()))
        boot = self._boot()
        if boot is None:
            return 0
        specs = self._import(boot)
        if specs is None:
            return 3
        self._executor = Executor(specs)
        self._jobs = Jobs(self._channel, self._executor, self._page, self._streams)
        self._beat_s = boot.beat_s
        self._receive_for(boot.beat_s)
        self._channel.send(Ready([spec.name for spec in specs], CREDITS, self._jobs.thread.ident or 0))
        return self._obey()

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
            specs = collect(import_main(boot.module, boot.paths))
        except DiscoveryError as error:
            self._channel.send(ImportFailed(str(error)[:2048], error.stack[-STACK_LINES:]))
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

    def _obey(self) -> int:
        beat_due = 0.0
        while True:
            now = time.monotonic()
            if now >= beat_due:
                self._page.beat(resident_bytes())
                beat_due = now + self._beat_s
            try:
                received = self._channel.receive()
            except BlockingIOError:
                continue
            if received is None:
                return 0
            if isinstance(received[0], Drain):
                self._shut_down()
                return 0
            self._perform(*received)

    def _perform(self, order: Order, descriptors: list[int]) -> None:
        match order:
            case Submit():
                self._jobs.submit(order, descriptors)
            case Cancel(job):
                self._jobs.cancel(job)
            case More(job, items):
                self._jobs.more(job, items)
            case Release(index):
                self._jobs.outputs.released(index)
            case Grant():
                self._jobs.outputs.granted(order, descriptors[0])
            case Recall(job):
                self._jobs.recall(job)
            case Saved():
                self._jobs.saved(order)
            case Load(instance):
                self._jobs.on_thread(lambda: self._load(instance))
            case Interrupt(job):
                self._jobs.interrupt(job)
            case Boot() | Drain():
                close_all(descriptors)
                raise RuntimeError(f"`{type(order).__name__}` is out of place")
            case _:
                assert_never(order)

    def _load(self, instance: str) -> None:
        began = time.monotonic()
        try:
            self._executor.load(instance)
        except (Exception, SystemExit) as error:  # around the author's code
            message = f"{type(error).__name__}: {error}"[:1024]
            self._channel.send(LoadFailed(instance, message, author_stack(error)[-STACK_LINES:]))
        else:
            self._channel.send(Loaded(instance, time.monotonic() - began))

    def _shut_down(self) -> None:
        """Run every `shutdown()` on the job thread, where `setup()` ran."""
        import threading

        done = threading.Event()

        def work() -> None:
            self._executor.shutdown(self._report_shutdown)
            done.set()

        self._jobs.on_thread(work)
        done.wait()

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
