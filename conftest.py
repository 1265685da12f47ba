"""What every test of this repository stands on: the right sources, honest skips, nothing left behind.

- The session refuses to run against a `gen_worker` that is not the one of this checkout.
- `@pytest.mark.needs("torch")` skips where a module is absent; under `make test` absence is a failure.
- `@pytest.mark.root` and `@pytest.mark.gpu` skip with their reason.
- After each test that may start processes: no process, no entry in /dev/shm, no open file more than before.
"""

import gc
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, TypeVar

import psutil
import pytest

ROOT = Path(__file__).resolve().parent
PACKAGES = ("gen_worker", "gen_worker_supervisor", "gen_worker_child")
NEED_ALL = os.environ.get("GW_TESTS_NEED_ALL") == "1"  # `make test`: what is missing fails instead of skipping
SESSION = "GW_TESTS_SESSION"  # inherited by every process a test starts and all they start: how orphans are found
WORKER = "PYTEST_XDIST_WORKER"  # one of several that run tests side by side: each has a run directory of its own
UNWATCHED = ROOT / "tests" / "pure"  # these start nothing, and there are many of them
GRACE_S = 3.0  # for what is already ending, such as children whose supervisor was killed
# Opened once by libraries and kept: not a leak of ours.
KEPT_OPEN = ("/dev/null", "/dev/urandom", "/dev/random", str(ROOT / ".hypothesis"))
GRPC_OPENS = ("anon_inode:[eventpoll]", "anon_inode:[eventfd]")  # when it has more to do than before


T = TypeVar("T")


def pytest_configure(config: pytest.Config) -> None:
    """Refuse foreign sources; give the session its mark and its own run directory."""
    for package in PACKAGES:
        spec = importlib.util.find_spec(package)
        found = list(spec.submodule_search_locations or ()) if spec else []
        if not found:
            raise pytest.UsageError(f"`{package}` is not installed; hint: `make setup`, then `make test`")
        if not all(Path(place).resolve().is_relative_to(ROOT) for place in found):
            raise pytest.UsageError(
                f"`{package}` resolves to {found[0]}, outside this checkout: {ROOT}; hint: `make setup` here"
            )
    if os.geteuid() != 0:
        os.environ.setdefault("GEN_WORKER_DEBUGGABLE", "1")  # tests look at what servers hold open
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under `nohup` every server would be deaf to its terminal's end
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell has it ignored by what it starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ[SESSION] = f"{os.getpid()}-{time.time_ns()}"
    if WORKER in os.environ:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # tests side by side share the cores
    if "GEN_WORKER_RUN_DIR" not in os.environ or WORKER in os.environ:
        run_dir = tempfile.mkdtemp(prefix="gw-tests-")  # short: a Unix socket's path has 107 bytes
        os.environ["GEN_WORKER_RUN_DIR"] = run_dir
        config.add_cleanup(lambda: shutil.rmtree(run_dir))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Turn what a test needs and this machine lacks into skips that say so."""
    no_root = None if os.geteuid() == 0 else "needs root"
    for item in items:
        if no_root and item.get_closest_marker("root"):
            item.add_marker(pytest.mark.skip(reason=no_root))
        if item.get_closest_marker("gpu") and not has_gpu():
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU"))
        if not NEED_ALL and (missing := absent(item)):
            item.add_marker(pytest.mark.skip(reason=f"needs {', '.join(missing)}"))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Fail under `make test` what would skip elsewhere."""
    if NEED_ALL and (missing := absent(item)):
        pytest.fail(f"needs {', '.join(missing)}: not installed", pytrace=False)


def absent(item: pytest.Item) -> list[str]:
    """Modules the test says it needs and that cannot be imported here."""
    wanted = {name for mark in item.iter_markers("needs") for name in mark.args}
    return sorted(name for name in wanted if importlib.util.find_spec(name) is None)


def has_gpu() -> bool:
    """Whether the driver answers and has a device."""
    import pynvml

    try:
        pynvml.nvmlInit()
        return bool(pynvml.nvmlDeviceGetCount())
    except pynvml.NVMLError:
        return False


# --- nothing left behind ----------------------------------------------------------------------------------------------


class Traces(NamedTuple):
    """What exists at one moment that a test could leave behind."""

    processes: frozenset[psutil.Process]
    shared_memory: frozenset[str]
    files: dict[int, str]


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Compare processes, /dev/shm and open files before and after the test."""
    if request.path.is_relative_to(UNWATCHED) or not Path("/proc/self/fd").exists():
        yield
        return
    before = Traces(processes(), shared_memory(), open_files())
    yield
    left = [
        *map(described, settled(lambda: processes() - before.processes)),
        *(f"/dev/shm/{name}" for name in settled(lambda: shared_memory() - before.shared_memory)),
    ]
    left += [f"fd {fd} -> {target}" for fd, target in settled(lambda: opened(before.files))]
    if left:
        pytest.fail("the test left behind:\n  " + "\n  ".join(sorted(left)), pytrace=False)


def settled(look: Callable[[], frozenset[T]]) -> frozenset[T]:
    """What is still there when it has had its grace to go."""
    deadline = time.monotonic() + GRACE_S
    while (found := look()) and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def processes() -> frozenset[psutil.Process]:
    """Processes that we started, or that were started by one we started, even if that one is gone."""
    mark = f"{SESSION}={os.environ[SESSION]}".encode()
    pids = descendants(os.getpid())
    for pid in psutil.pids():
        with suppress(OSError):  # it ended meanwhile, or is another user's
            if pid != os.getpid() and mark in Path(f"/proc/{pid}/environ").read_bytes():
                pids.add(pid)
    found = set()
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            found.add(psutil.Process(pid))
    return frozenset(found)


def descendants(pid: int) -> set[int]:
    """Pids below a process; twice for each test, so without a look at everything else that runs."""
    below: set[int] = set()
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            below |= {int(child) for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()}
    return below.union(*map(descendants, below))


def described(process: psutil.Process) -> str:
    """The process for a person."""
    try:
        return f"process {process.pid}: {' '.join(process.cmdline())}"
    except psutil.ZombieProcess:
        return f"process {process.pid}: ended, and nobody has waited for it"
    except psutil.NoSuchProcess:
        return f"process {process.pid}: ended just now"


def shared_memory() -> frozenset[str]:
    """Names in /dev/shm."""
    place = Path("/dev/shm")
    return frozenset(os.listdir(place)) if place.exists() else frozenset()


def opened(before: dict[int, str]) -> frozenset[tuple[int, str]]:
    """Our open descriptors that were not there before, when there are more of them than before."""
    if len(now := open_files()) > len(before):
        gc.collect()
        now = open_files()
    return frozenset(now.items() - before.items()) if len(now) > len(before) else frozenset()


def open_files() -> dict[int, str]:
    """Our open descriptors and what they point to, without those that libraries keep."""
    found = {}
    kept = KEPT_OPEN + GRPC_OPENS if "grpc._cython.cygrpc" in sys.modules else KEPT_OPEN
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
        if not target.startswith(kept):
            found[int(name)] = target
    return found
