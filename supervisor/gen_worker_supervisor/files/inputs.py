"""The files that payloads name by URLs: ordered from the fetcher, kept while their jobs live, removed with them.

Never opens a URL itself. On the supervisor's loop.
"""

import os
import time
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

import msgspec

from gen_worker.wire.fetching import Abort, FetchInput, FetchOrder, FetchReport, InputFailed, InputFetched
from gen_worker.wire.messages import InputAsset, InputFile
from gen_worker_supervisor.core.happenings import Happening, InputsCame, InputsRefused
from gen_worker_supervisor.core.state import Job
from gen_worker_supervisor.files.input_folders import InputFolders

AT_ONCE = 32  # each is a thread and a connection of the fetcher
OF_ONE_JOB = 4  # at once, so that a slow one does not hold up the others
OF_ONE_ORIGIN = 8  # at once, for the same reason; one job alone has half of them
LIMIT_S = 600.0  # for all files of a job, from the first order on
LEAST_S = 1.0
FETCHERS = 3  # that may die with an order before its job is refused
ANY_BYTES = 1 << 60


@dataclass(slots=True, eq=False)
class _Order:
    """What one job waits for, and where that goes."""

    job: Job
    folder: Path
    assets: list[InputAsset]
    files: list[InputFile | None]
    origins: list[str]  # of the assets
    waiting: deque[int]  # assets that are not ordered yet
    deadline: float | None = None  # from the first order on
    under_way: dict[int, int] = field(default_factory=dict)  # the asset by the number of its order
    lost: int = 0  # fetchers that died with some of it
    wanted: bool = True  # else nothing more is ordered, and what was is being stopped
    over: bool = False  # nobody reads its files any more: they go as soon as nobody writes them
    removed: bool = False

    def next(self, busy: Counter[str]) -> int | None:
        """Return the asset to order next, with so many of each origin under way; None while none may be."""
        if len(self.under_way) >= OF_ONE_JOB:
            return None
        return next((asset for asset in self.waiting if busy[self.origins[asset]] < OF_ONE_ORIGIN), None)


class Orders(Protocol):
    """Who takes orders: the fetcher."""

    def send(self, order: FetchOrder) -> None:
        """Take an order; never waits."""


class Inputs:
    """Everything that jobs wait for, and the files of those that run."""

    def __init__(
        self,
        fetcher: Callable[[], Orders],
        on: Callable[[Happening], None],
        *,
        max_bytes: int,
        allow_private: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._fetcher = fetcher
        self._on = on
        self._max_bytes = max_bytes
        self._allow_private = allow_private
        self.trusted_origin = ""
        """The orchestrator's own file store, as `https://host:port`: its address may be private."""

        self.folders = InputFolders()
        self._orders: dict[int, _Order] = {}  # by the job's number, until its files are removed
        self._waiting: dict[int, _Order] = {}  # those with assets that are not ordered yet, whose turn is first: first
        self._numbers: dict[int, _Order] = {}  # by the number of what is under way
        self._number = 0

    def order(self, job: Job, assets: list[InputAsset]) -> None:
        """Have files fetched; `InputsCame` or `InputsRefused` follows, unless `forget` comes first."""
        try:
            folder = self.folders.new(job.request_id)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            self._on(InputsRefused(job, f"the files of the payload cannot be written: {reason}", retryable=True))
            return
        origins = [_origin(asset.url, job) for asset in assets]
        order = _Order(job, folder, assets, [None] * len(assets), origins, deque(range(len(assets))))
        self._orders[job.number] = self._waiting[job.number] = order
        self._go_on()

    def forget(self, job: Job) -> None:
        """Stop what is under way for a job and remove its files, at once or as soon as nobody writes them."""
        order = self._orders.get(job.number)
        if order is not None:
            order.over = True
            self._stop(order)
            self._remove_if_over(order)

    def has(self, job: Job) -> bool:
        """Whether the files of a job that came once are as they were; else it is forgotten, and may ask again."""
        order = self._orders.get(job.number)
        if order is not None and all(file is not None and _is_there(file) for file in order.files):
            return True
        self.forget(job)
        return False

    def on_report(self, report: FetchReport) -> None:
        """Take what the fetcher says of a file; other reports are none of this one's."""
        if not isinstance(report, InputFetched | InputFailed):
            return
        order = self._numbers.pop(report.number, None)
        if order is None:
            return
        asset = order.under_way.pop(report.number)
        if isinstance(report, InputFetched):
            order.files[asset] = report.file
        if order.wanted:
            self._judge(order, report)
        self._remove_if_over(order)
        self._go_on()

    def on_lost(self) -> None:
        """The fetcher has died and another one starts: what was under way begins anew, a few times."""
        orders = dict.fromkeys([*self._orders.values(), *self._numbers.values()])
        self._numbers.clear()
        for order in orders:
            again, order.under_way = list(order.under_way.values()), {}
            if again and order.wanted:
                order.lost += 1
                order.waiting.extend(again)
                self._waiting[order.job.number] = order
            if order.lost == FETCHERS and order.wanted:
                self._stop(order)
                text = f"the files of the payload could not be fetched: the fetcher died {order.lost} times"
                self._on(InputsRefused(order.job, text, retryable=True))
            self._remove_if_over(order)
        self._go_on()

    def close(self) -> None:
        """Remove every file; nobody writes any more."""
        self.folders.close()

    def _judge(self, order: _Order, report: InputFetched | InputFailed) -> None:
        """Tell whether a job has its files, or why not."""
        if isinstance(report, InputFailed):
            self._stop(order)
            invalid, unauthorized = report.kind == "invalid", report.kind == "unauthorized"
            self._on(InputsRefused(order.job, report.message, report.retryable, invalid, unauthorized))
            return
        files = [file for file in order.files if file is not None]
        if len(files) == len(order.assets):
            order.wanted = False
            self._on(InputsCame(order.job, files))

    def _stop(self, order: _Order) -> None:
        """Order nothing more for a job and have what is under way stopped, which is reported."""
        order.wanted = False
        self._waiting.pop(order.job.number, None)
        for number in order.under_way:
            self._fetcher().send(Abort(number, "input"))

    def _remove_if_over(self, order: _Order) -> None:
        if order.over and not order.under_way and not order.removed:
            order.removed = True
            if self._orders.get(order.job.number) is order:  # else its job has asked again
                del self._orders[order.job.number]
            self.folders.remove(order.folder)

    def _go_on(self) -> None:
        """Order what there is room for, first of the jobs with the fewest under way, in turn."""
        busy = Counter(order.origins[order.under_way[number]] for number, order in self._numbers.items())
        while len(self._numbers) < AT_ONCE:
            able = [order for order in self._waiting.values() if order.next(busy) is not None]
            if not able:
                return
            order = min(able, key=lambda order: len(order.under_way))
            asset = order.next(busy)
            assert asset is not None
            busy[order.origins[asset]] += 1
            self._ask_for(order, asset)

    def _ask_for(self, order: _Order, asset: int) -> None:
        order.waiting.remove(asset)
        del self._waiting[order.job.number]
        if order.waiting:
            self._waiting[order.job.number] = order  # behind all others
        self._number += 1
        order.under_way[self._number] = asset
        self._numbers[self._number] = order
        now = self._clock()
        order.deadline = order.deadline or now + LIMIT_S
        path = str(order.folder / f"input-{asset}")
        wanted = FetchInput(self._number, self._as_limited(order, asset), path, self._max_bytes)
        wanted.trusted_origin, wanted.allow_private = self.trusted_origin, self._allow_private
        if not _is_url(order.assets[asset].url):
            wanted.destination = order.job.destination
        wanted.limit_s = max(order.deadline - now, LEAST_S)
        self._fetcher().send(wanted)

    def _as_limited(self, order: _Order, asset: int) -> InputAsset:
        """Return an asset with its limit: what is named over the earlier wire may be as long as the worker allows."""
        wanted = order.assets[asset]
        if order.job.earlier is None or wanted.max_bytes:
            return wanted
        return msgspec.structs.replace(wanted, max_bytes=self._max_bytes or ANY_BYTES)


def _is_there(file: InputFile) -> bool:
    try:
        return os.stat(file.local_path).st_size == file.size_bytes
    except OSError:  # the author's code has moved it
        return False


def _is_url(ref: str) -> bool:
    return ref[:8].lower().startswith(("http://", "https://"))


def _origin(url: str, job: Job) -> str:
    """Return whom a URL asks, or the ref of a file; nobody, when the fetcher will say that it is none."""
    if not _is_url(url) and job.destination is not None:
        return job.destination.base_url
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return ""
