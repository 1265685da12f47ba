"""A supervisor's fetcher under test: the real process, held by a loop that the test runs."""

import asyncio
import json
import os
import random
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.fetcher import Fetched as Had
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.fetch.network.patience import Patience
from gen_worker.models.errors import ModelError
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import Wanted
from gen_worker.wire.channel import Channel, close_all
from gen_worker.wire.fetching import (
    Abort,
    Configure,
    Fetch,
    Fetched,
    FetchFailed,
    Fetching,
    FetchReport,
    Held,
    HoldFailed,
    Noted,
)
from gen_worker_supervisor.files.fetching import FetcherProcess
from gen_worker_supervisor.logs.log import Log, Look
from gen_worker_supervisor.processes.reaper import Reaper
from gen_worker_supervisor.sockets.poller import Poller

PATIENCE_S = 20.0
QUICK = Patience(tries=5, first_delay_s=0.01, longest_delay_s=0.05, longest_retry_after_s=0.1, quiet_s=2.0)
Found = TypeVar("Found")


def config_for(root: Path, hub_url: str = "", **changes: object) -> FetchConfig:
    """Return what a fetcher goes by that knows one hub and keeps everything below one folder."""
    endpoints = {"hf_endpoint": hub_url, "civitai_endpoint": hub_url, "modelscope_endpoint": hub_url}
    config = FetchConfig(root=str(root), hf_cache=str(root / "hub"), cozy_hub_url=hub_url, free_bytes=0)
    return msgspec.structs.replace(config, **(endpoints if hub_url else {}), **changes)


class Supervisor:
    """The part of a supervisor that holds its fetcher."""

    def __init__(self, config: FetchConfig, log_file: Path) -> None:
        self._loop = asyncio.new_event_loop()
        self._log_file = log_file
        self._log_fd = os.open(log_file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
        self._log = Log(Look(), self._log_fd)
        self._poller = Poller(self._loop)
        self.reaper = Reaper(self._loop)
        self._news = asyncio.Event()
        self._number = 0
        self.reports: list[FetchReport] = []
        self.attached: dict[int, list[int]] = {}  # what came with reports on a fetch or hold, by its number
        self.lost = 0
        self.process = FetcherProcess(
            self._loop,
            self._poller,
            self.reaper,
            self._log,
            msgspec.msgpack.encode(config),
            self._on_report,
            self._on_lost,
        )

    def _on_report(self, report: FetchReport, descriptors: list[int]) -> None:
        self.reports.append(report)
        if descriptors:
            assert isinstance(report, Fetched | Held)
            self.attached.setdefault(report.number, []).extend(descriptors)
        self._news.set()

    def _on_lost(self) -> None:
        self.lost += 1
        self._news.set()

    def fetch(self, wanted: Wanted, *, probe: bool = False, attached: Sequence[int] = ()) -> int:
        """Order a fetch and return its number."""
        self._number += 1
        self.process.send(Fetch(self._number, wanted, probe), attached)
        return self._number

    def abort(self, number: int) -> None:
        """Order the end of a fetch."""
        self.process.send(Abort(number))

    def until(self, condition: Callable[[], Found], within_s: float = PATIENCE_S, *, what: str = "it") -> Found:
        """Run until a condition holds, which is looked at after every report and a hundred times a second."""

        async def wait() -> Found:
            async with asyncio.timeout(within_s):
                while not (found := condition()):
                    self._news.clear()
                    try:
                        await asyncio.wait_for(self._news.wait(), 0.01)
                    except TimeoutError:
                        continue
                return found

        try:
            return self._loop.run_until_complete(wait())
        except TimeoutError:
            seen = "\n".join(map(repr, self.reports[-5:]))
            raise AssertionError(
                f"{what} did not come true within {within_s:g} s; reports:\n{seen}\n{self.log}"
            ) from None

    def end_of(self, number: int, within_s: float = PATIENCE_S) -> Fetched | FetchFailed:
        """Return the report that ends a fetch."""

        def ended() -> Fetched | FetchFailed | None:
            ends = (each for each in self.reports if isinstance(each, Fetched | FetchFailed) and each.number == number)
            return next(ends, None)

        found = self.until(ended, within_s, what=f"the end of fetch {number}")
        assert found is not None
        return found

    def fetched(self, wanted: Wanted) -> Fetched:
        """Fetch a model, which must succeed."""
        end = self.end_of(self.fetch(wanted))
        assert isinstance(end, Fetched), end
        return end

    def failed(self, wanted: Wanted) -> FetchFailed:
        """Fetch a model, which must fail."""
        end = self.end_of(self.fetch(wanted))
        assert isinstance(end, FetchFailed), end
        return end

    def release(self, number: int) -> None:
        """Close what came with the reports on a fetch: its lease."""
        close_all(self.attached.pop(number))

    def held(self, number: int) -> list[Held] | HoldFailed:
        """Return the reports on a hold, when it has ended."""

        def ended() -> list[Held] | HoldFailed | None:
            reports = [each for each in self.reports if isinstance(each, Held | HoldFailed) and each.number == number]
            if not reports or (isinstance(reports[-1], Held) and not reports[-1].last):
                return None
            last = reports[-1]
            return last if isinstance(last, HoldFailed) else [each for each in reports if isinstance(each, Held)]

        found = self.until(ended, what=f"the end of hold {number}")
        assert found is not None
        return found

    @property
    def log(self) -> str:
        """What the log says so far."""
        return self._log_file.read_text()

    @property
    def events(self) -> str:
        """The events of the log."""
        return "\n".join(event.message for event in self._log.events)

    def close(self) -> None:
        """End the fetcher and let go of everything."""
        self.process.close()
        for descriptors in self.attached.values():
            close_all(descriptors)
        self.reaper.close()
        self._poller.close()
        self._log.close()
        os.close(self._log_fd)
        self._loop.close()


@contextmanager
def supervising(config: FetchConfig, log_file: Path) -> Iterator[Supervisor]:
    """A supervisor whose fetcher is started."""
    supervisor = Supervisor(config, log_file)
    try:
        supervisor.process.start()
        yield supervisor
    finally:
        supervisor.close()


class Bare:
    """A fetcher's process on a socket of the test's own, which kills it in the end; nobody replaces it."""

    def __init__(self, config: FetchConfig | None = None) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-P", "-m", "gen_worker.fetch", "--socket", str(theirs.fileno())]
        self.process = subprocess.Popen(
            [*command, "--supervisor", str(os.getpid())], pass_fds=[theirs.fileno()], stderr=subprocess.PIPE, text=True
        )
        theirs.close()
        ours.settimeout(PATIENCE_S)
        self.channel: Channel[FetchReport] = Channel(ours, generation=0, receives=FetchReport)
        if config is not None:
            self.channel.send(Configure(msgspec.msgpack.encode(config)))

    def __enter__(self) -> "Bare":
        return self

    def __exit__(self, *raised: object) -> None:
        self.channel.close()
        self.process.kill()
        self.process.communicate()

    def report(self, within_s: float = PATIENCE_S) -> FetchReport | None:
        """Return the next report, whose descriptors are closed; None when none comes in time."""
        self.channel.sock.settimeout(within_s)
        try:
            received = self.channel.receive()
        except TimeoutError:
            return None
        assert received is not None, self.process.communicate()
        close_all(received[1])
        return received[0]

    def fetched(self, wanted: Wanted) -> Fetched:
        """Fetch a model, which must succeed."""
        self.channel.send(Fetch(1, wanted))
        return self.end()

    def end(self) -> Fetched:
        """Wait for the end of a fetch, which must succeed."""
        while not isinstance(report := self.report(), Fetched):
            assert isinstance(report, Fetching | Noted), report
        return report


# --- without a process ------------------------------------------------------------------------------------------------


class Having(Fetcher):
    """A fetcher in this process that is soon out of patience, and closes the leases it gave when it ends."""

    def __init__(self, config: FetchConfig) -> None:
        super().__init__(config, for_questions=QUICK, for_files=QUICK)
        self._leases: list[int] = []

    def have(self, wanted: Wanted, **options: Any) -> Had:
        """Fetch a model, which must succeed."""
        had = self.fetch(wanted, **options)
        self._leases.append(had.lease)
        return had

    def close(self) -> None:
        """Let go of all leases and connections."""
        close_all(self._leases)
        super().close()


@contextmanager
def fetcher_for(config: FetchConfig) -> Iterator[Having]:
    """A fetcher in this process."""
    fetcher = Having(config)
    try:
        yield fetcher
    finally:
        fetcher.close()


def refused(fetcher: Having, wanted: Wanted, **options: Any) -> ModelError:
    """Fetch a model, which must fail, and return the error."""
    try:
        fetcher.have(wanted, **options)
    except ModelError as error:
        return error
    raise AssertionError(f"`{wanted.ref}` was fetched")


# --- what is fetched --------------------------------------------------------------------------------------------------


def weights(count: int, seed: int = 0) -> bytes:
    """Return a safetensors file with so many numbers of two bytes."""
    header = json.dumps({"weight": {"dtype": "BF16", "shape": [count], "data_offsets": [0, 2 * count]}}).encode()
    return len(header).to_bytes(8, "little") + header + random.Random(seed).randbytes(2 * count)


def repository(count: int = 100_000, seed: int = 0) -> dict[str, bytes]:
    """Return the files of a model that loaders know by its shape."""
    config = json.dumps({"model_type": "bert", "architectures": ["BertModel"], "seed": seed}).encode()
    return {"config.json": config, "model.safetensors": weights(count, seed)}


def contents(snapshot: Snapshot) -> dict[str, bytes]:
    """Return the files of a snapshot as they lie on disk."""
    return {entry.path: Path(snapshot.source(entry)).read_bytes() for entry in snapshot.files}


def size_of(files: Mapping[str, bytes]) -> int:
    """Return how many bytes files have together."""
    return sum(map(len, files.values()))


def visible(config: FetchConfig) -> list[str]:
    """Return every file in snapshots of a cache, whatever state they are in: what somebody could come to load."""
    roots = (Path(config.root), Path(config.hf_cache))
    found = {path for root in roots for path in root.glob("**/snapshots/**/*") if not path.is_dir()}
    return sorted(str(path) for path in found)
