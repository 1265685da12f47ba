"""A killed child and its replacement, beside a bare fork: `python -m benchmarks.recover`."""

import contextlib
import ctypes
import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks import floors
from benchmarks.dispatch import request
from benchmarks.figures import Effort, Figure, Target, figure, main
from benchmarks.load import ask, checked, connection
from benchmarks.servers import Served, product
from gen_worker.client import Client
from gen_worker.environment import author_environment
from gen_worker.wire.channel import Channel
from gen_worker.wire.messages import Fork, Forked, Hello, Report, Warm, ZygoteReport
from gen_worker.wire.page import create_page

SHOWS = "recover: how soon a killed child is replaced"
CHILD = "gen_worker_child.main"  # what every child has imported before it says hello
PR_SET_CHILD_SUBREAPER = 36


def measure(effort: Effort) -> list[Figure]:
    """Fork to hello and kill to next answer, without and with torch in the zygote."""
    figures = []
    setups: list[tuple[str, list[str], str]] = [("echoes", [], "bare")]
    if not effort.brief and importlib.util.find_spec("torch"):
        setups.append(("echoes_with_torch", ["torch"], "torch imported"))
    for module, modules, words in setups:
        forks, hellos, answers = [], [], []
        with floors.forker(CHILD, *modules) as forker, Zygote(modules) as zygote, product(module) as served:
            for _ in range(effort.rounds):
                with forker.child() as (_, seconds):
                    forks.append(seconds * 1e3)
                hellos.append(zygote.seconds_to_hello() * 1e3)
                answers.append(seconds_to_next_answer(served) * 1e3)
        floor = f"bare fork, {words}"
        limit = Target("value", "most", 100.0)
        figures.append(
            figure(
                f"zygote forks, child says hello ({words})", "ms", hellos, floors=forks, floor_name=floor, target=limit
            )
        )
        figures.append(
            figure(f"the only child killed, next answer ({words})", "ms", answers, floors=forks, floor_name=floor)
        )
    if not effort.brief and importlib.util.find_spec("diffusers"):
        figures.append(pipeline(effort))
    return figures


def pipeline(effort: Effort) -> Figure:
    """Kill the only child, which holds a tiny SDXL, with its files hidden from the next one: kill to next image."""
    from gen_worker.testing import LoopbackHub, make_tiny

    with tempfile.TemporaryDirectory(prefix="gw-models-") as folder, LoopbackHub() as hub:
        hub.add_repo("acme/tiny-sdxl", make_tiny("sdxl", Path(folder, "repository"), dtype="fp32"))
        cache = Path(folder, "cache")
        variables = {**hub.variables(), "TENSORHUB_CACHE_DIR": str(cache), "HF_HOME": ""}
        answers = []
        with product("paints", variables=variables) as served:
            with connection(served.socket) as client:
                checked(client, request("paint"))
            _until_in_memory(served)
            cache.rename(cache.with_name("hidden"))  # so that nothing can be read from the disk
            for _ in range(effort.rounds):
                answers.append(seconds_to_next_answer(served, "paint") * 1e3)
            cache.with_name("hidden").rename(cache)
    name = "the only child killed, next image of a tiny SDXL from host memory"
    return figure(name, "ms", answers, target=Target("value", "most", 700.0))


def _until_in_memory(served: Served) -> None:
    deadline = time.monotonic() + 30.0
    with Client(served.control) as control:
        while not any("in host memory" in event.message for event in control.list().events):
            if time.monotonic() > deadline:
                raise TimeoutError("the model did not come into host memory within 30 s")
            time.sleep(0.01)


def seconds_to_next_answer(served: Served, function: str = "echo") -> float:
    """Kill the only child; seconds until a request sent at once is answered."""
    line = request(function)
    with connection(served.socket) as client, Client(served.control) as control:
        checked(client, line)
        (device,) = control.list().gpus
        assert device.pid is not None
        begin = time.perf_counter()
        os.kill(device.pid, signal.SIGKILL)
        answer = ask(client, line)
        taken = time.perf_counter() - begin
    if not answer.startswith(b'{"ok":true,'):
        raise ValueError(f"the request did not survive the child: {answer[:500]!r}")
    return taken


class Zygote(contextlib.AbstractContextManager["Zygote"]):
    """The product's own zygote, with this benchmark in the place of its supervisor."""

    def __init__(self, modules: list[str]) -> None:
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "gen_worker_child.zygote", "--socket", str(theirs.fileno())]
        command += ["--supervisor", str(os.getpid()), *modules]
        self._process = subprocess.Popen(command, env=author_environment(os.environ), pass_fds=[theirs.fileno()])
        theirs.close()
        self._channel: Channel[ZygoteReport] = Channel(ours, generation=0, receives=ZygoteReport)
        self._generation = 0
        self._expect(Warm)

    def __exit__(self, *error: object) -> None:
        self._channel.close()
        self._process.wait()

    def seconds_to_hello(self) -> float:
        """Seconds from the order to fork until the new child speaks."""
        with self.child() as (_, seconds):
            return seconds

    @contextlib.contextmanager
    def child(self) -> Iterator[tuple[int, float]]:
        """A forked child that waits for its first order: its pid, and the seconds until its hello."""
        self._generation += 1
        with contextlib.ExitStack() as files:
            link, descriptors = self._equipment(files)
            begin = time.perf_counter()
            self._channel.send(Fork(self._generation, author_environment(os.environ), os.getpid()), descriptors)
            received = link.receive()
            taken = time.perf_counter() - begin
        assert received is not None
        hello, _ = received
        assert isinstance(hello, Hello)
        (pidfd,) = self._expect(Forked)
        try:
            yield hello.pid, taken
        finally:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.waitpid(hello.pid, 0)
            os.close(pidfd)
            link.close()

    def _equipment(self, files: contextlib.ExitStack) -> tuple[Channel[Report], list[int]]:
        """Our end of a child's socket, and the five descriptors that the child is given."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        files.enter_context(theirs)
        null, crash, page = os.open(os.devnull, os.O_WRONLY), os.memfd_create("crash"), create_page()
        for fd in (null, crash, page):
            files.callback(os.close, fd)
        return Channel(ours, generation=self._generation, receives=Report), [theirs.fileno(), null, null, crash, page]

    def _expect(self, kind: type[Warm] | type[Forked]) -> list[int]:
        received = self._channel.receive()
        if received is None or not isinstance(received[0], kind):
            raise RuntimeError(f"the zygote said {received and received[0]} where `{kind.__name__}` was due")
        return received[1]


if __name__ == "__main__":
    main({SHOWS: measure})
