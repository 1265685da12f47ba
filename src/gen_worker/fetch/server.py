"""What the fetcher's process does: obeys the supervisor's frames, each fetch and each hold on a thread of its own.

How far fetches are is told by one more thread, so that no download ever waits for the supervisor to read it.
"""

import itertools
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from gen_worker.environment import close_memory
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.fetch.holding import hold
from gen_worker.fetch.inputs.cache import InputCache
from gen_worker.fetch.inputs.fetch import FileApi, InputError, Limits, fetch_input, give_none, spare_bytes
from gen_worker.fetch.platform.calls import Calls
from gen_worker.fetch.platform.failure import PlatformError
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.uploader import Uploader
from gen_worker.models.errors import ModelError
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import SnapshotFile, Wanted
from gen_worker.wire.channel import MAX_DESCRIPTORS, Channel, ProtocolError, close_all
from gen_worker.wire.fetching import (
    Abort,
    CallPlatform,
    Configure,
    EndPlatform,
    Evicted,
    Fetch,
    Fetched,
    FetchFailed,
    Fetching,
    FetchInput,
    FetchOrder,
    FetchReport,
    Held,
    Hold,
    HoldFailed,
    InputFailed,
    InputFetched,
    Keep,
    Noted,
    PlatformAnswered,
    RenewToken,
    Stock,
    Stocked,
    TakeStock,
    Upload,
    Uploaded,
    UploadFailed,
    Uploading,
)
from gen_worker.wire.messages import INLINE_LIMIT
from gen_worker.wire.platform import encoded, verb_of

REPORT_S = 0.1  # between two reports on how far a fetch is
SNAPSHOT_BYTES = 64 << 20  # the longest description of a snapshot that is read
TEXT_CHARS = 8000  # of an error; two of them fit into a frame
STOCK_MODELS = 1000  # that are worth knowing
STOCK_A_FRAME = 50
FAREWELL_S = 1.5  # for downloads to note what they have, before the supervisor loses patience

WorkKind: TypeAlias = Literal["stock", "fetch", "hold", "upload", "input", "call", "end", "renewal"]
Work: TypeAlias = tuple[WorkKind, int]
"""What is under way, by its number; each kind is numbered apart."""


class Reports:
    """The frames to the supervisor, from all threads."""

    def __init__(self, channel: Channel[FetchOrder]) -> None:
        self._channel = channel
        self._sending = threading.Lock()
        self._latest: dict[tuple[type, int], Fetching | Uploading] = {}
        self._some = threading.Event()
        threading.Thread(target=self._tell, name="gen-worker-progress", daemon=True).start()

    def send(self, report: FetchReport, descriptors: Sequence[int] = ()) -> None:
        """Send a frame; raise `ProtocolError` when it is too long for one."""
        with self._sending:
            self._send(report, descriptors)

    def progress(self, report: Fetching | Uploading) -> None:
        """Have this told when it is time to; never waits."""
        self._latest[type(report), report.number] = report
        self._some.set()

    def end(self, kind: type[Fetching | Uploading], number: int) -> None:
        """Tell no more of how far this is: what ended it comes next."""
        with self._sending:
            self._latest.pop((kind, number), None)

    def _tell(self) -> None:
        while self._some.wait():
            self._some.clear()
            for which in list(self._latest):
                with self._sending:
                    report = self._latest.pop(which, None)
                    if report is not None:
                        self._send(report)
            time.sleep(REPORT_S)

    def _send(self, report: FetchReport, descriptors: Sequence[int] = ()) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the supervisor is gone: the main thread reads the end
            self._channel.send(report, descriptors)


class Server:
    """Everything that is under way in this process."""

    def __init__(self, channel: Channel[FetchOrder]) -> None:
        self._channel = channel
        self._reports = Reports(channel)
        self._keep: tuple[str, ...] = ()
        self._under_way: dict[Work, tuple[threading.Thread, Cancel]] = {}
        self._calls: Calls | None = None
        self._inputs: InputCache | None = None
        self._ends = itertools.count(1)

    def run(self) -> None:
        """Obey until the supervisor closes its socket; raise `ProtocolError` when it speaks another language."""
        fetcher = self._configured()
        uploader: Uploader | None = None
        while fetcher is not None and (received := self._channel.receive()) is not None:
            order, descriptors = received
            match order:
                case Fetch():
                    self._begin(("fetch", order.number), partial(self._fetch, fetcher, order, descriptors))
                case Hold():
                    self._begin(("hold", order.number), partial(self._hold, order))
                case FetchInput():
                    self._begin(("input", order.number), partial(self._fetch_input, fetcher.config, order))
                case Upload():
                    uploader = uploader or self._uploader(fetcher)
                    self._begin(("upload", order.number), partial(self._upload, uploader, order, descriptors))
                case CallPlatform() | EndPlatform() | RenewToken():
                    self._ask_platform(fetcher, order, descriptors)
                case Abort(number, work):
                    self._abort(work, number)
                case TakeStock():
                    self._begin(("stock", 0), partial(self._take_stock, fetcher))
                case Keep(refs):
                    self._keep = tuple(refs)
                case Configure():
                    raise ProtocolError("it was configured twice")

    def stop(self) -> None:
        """End everything that is under way; what came is kept."""
        under_way = list(self._under_way.values())
        deadline = time.monotonic() + FAREWELL_S
        for _, cancel in under_way:
            cancel.set()
        for thread, _ in under_way:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _configured(self) -> Fetcher | None:
        received = self._channel.receive()
        if received is None:
            return None
        order, _ = received
        if not isinstance(order, Configure):
            raise ProtocolError(f"the first frame was `{type(order).__name__}`, not `Configure`")
        config = msgspec.msgpack.decode(order.config, type=FetchConfig)
        if not config.debuggable:
            close_memory()
        fetcher = Fetcher(
            config,
            on_evicted=lambda ref, size: self._reports.send(Evicted(ref, size)),
            on_download=lambda ref, size: self._reports.send(Noted("info", downloading(ref, size))),
        )
        for warning in fetcher.warnings():
            self._reports.send(Noted("warning", warning))
        if config.input_cache and config.input_cache_bytes:
            folder = Path(config.input_cache)
            self._inputs = InputCache(folder, config.input_cache_bytes, self._warn, spare_bytes)
        return fetcher

    def _warn(self, text: str) -> None:
        self._reports.send(Noted("warning", text[:TEXT_CHARS]))

    def _begin(self, which: Work, work: Callable[[Cancel], None]) -> None:
        if which in self._under_way:
            raise ProtocolError(f"{' '.join(map(str, which))} is under way already")
        cancel = Cancel()

        def live() -> None:
            try:
                work(cancel)
            except Exception:  # noqa: BLE001 - it could not be reported: the next process does all of it again
                traceback.print_exc()
                os._exit(1)
            del self._under_way[which]

        thread = threading.Thread(target=live, name="gen-worker-{}-{}".format(*which), daemon=True)
        self._under_way[which] = thread, cancel
        thread.start()

    def _abort(self, kind: WorkKind, number: int) -> None:
        with suppress(KeyError):  # it has just ended
            self._under_way[kind, number][1].set()

    # --- a fetch ------------------------------------------------------------------------------------------------------

    def _fetch(self, fetcher: Fetcher, order: Fetch, descriptors: list[int], cancel: Cancel) -> None:
        number, wanted = order.number, order.wanted
        try:
            fetched = fetcher.fetch(
                wanted,
                on_progress=lambda done, total, retries: self._reports.progress(Fetching(number, done, total, retries)),
                cancel=cancel,
                probe=order.probe,
                verify=order.verify,
                snapshot=_described(wanted, descriptors),
                keep=self._keep,
            )
        except ModelError as error:
            report = FetchFailed(number, error.kind, _short(error), error.hint[:TEXT_CHARS], error.retryable)
        except Exception as error:  # noqa: BLE001 - around a fetch's whole life, which ends in a report whatever happens
            traceback.print_exc()
            text = f"`{wanted.ref}` cannot be had: the fetcher failed with a `{type(error).__name__}`"
            report = FetchFailed(number, "download_failed", text, "its stack is in the log", retryable=False)
        else:
            self._deliver(number, fetched.snapshot, fetched.lease, fetched.fetched_bytes)
            return
        self._reports.end(Fetching, number)
        self._reports.send(report)

    def _deliver(self, number: int, snapshot: Snapshot, lease: int, fetched_bytes: int) -> None:
        self._reports.end(Fetching, number)
        try:
            self._reports.send(Fetched(number, snapshot, fetched_bytes), [lease])
        except ProtocolError:
            count, unnamed = len(snapshot.files), msgspec.structs.replace(snapshot, files=())
            text = f"`{snapshot.wanted.ref}` has {count} files, too many to be held in memory: it is loaded from disk"
            self._reports.send(Noted("info", text))
            self._reports.send(Fetched(number, unnamed, fetched_bytes), [lease])
        finally:
            os.close(lease)

    # --- what is there ----------------------------------------------------------------------------------------------

    def _take_stock(self, fetcher: Fetcher, cancel: Cancel) -> None:
        found: dict[Wanted, Stocked] = {}
        for wanted, size in fetcher.stock():
            plain = wanted.plain
            found.setdefault(plain, Stocked(plain, size))
            if len(found) == STOCK_MODELS or cancel.is_set():
                break
        models = list(found.values())
        for first in range(0, max(1, len(models)), STOCK_A_FRAME):
            some = models[first : first + STOCK_A_FRAME]
            self._reports.send(Stock(some, first + STOCK_A_FRAME >= len(models)))

    # --- a hold -------------------------------------------------------------------------------------------------------

    def _hold(self, order: Hold, cancel: Cancel) -> None:
        try:
            held = hold(order.snapshot, cancel, lambda count: None)
        except ModelError as error:
            self._reports.send(HoldFailed(order.number, _short(error)))
            return
        try:
            for first in range(0, max(1, len(held)), MAX_DESCRIPTORS):
                some = held[first : first + MAX_DESCRIPTORS]
                last = first + MAX_DESCRIPTORS >= len(held)
                self._reports.send(Held(order.number, [path for path, _ in some], last), [fd for _, fd in some])
        finally:
            close_all([fd for _, fd in held])

    # --- an input -----------------------------------------------------------------------------------------------------

    def _fetch_input(self, config: FetchConfig, order: FetchInput, cancel: Cancel) -> None:
        limits = Limits(
            max_bytes=order.max_bytes, trusted_origin=order.trusted_origin, allow_private=order.allow_private
        )
        report: FetchReport
        try:
            api = None if order.destination is None else FileApi(order.destination, self._inputs)
            file = fetch_input(
                order.asset,
                order.path,
                limits if api is None else api.trusted(limits),
                config,
                cancel,
                limit_s=order.limit_s,
                give_room=give_none if self._inputs is None else self._inputs.give_room,
                api=api,
            )
            report = InputFetched(order.number, file)
        except InputError as error:
            report = InputFailed(order.number, error.kind, str(error)[:TEXT_CHARS], error.retryable)
        except Exception as error:  # noqa: BLE001 - around its whole life, which ends in a report whatever happens
            traceback.print_exc()
            text = f"a file of the payload cannot be had: the fetcher failed with a `{type(error).__name__}`"
            report = InputFailed(order.number, "unreachable", text, retryable=False)
        self._reports.send(report)

    # --- an upload ----------------------------------------------------------------------------------------------------

    def _upload(self, uploader: Uploader, order: Upload, descriptors: list[int], cancel: Cancel) -> None:
        """Store the first descriptor's content; the second, if there is one, is the journal."""
        number = order.number
        report: FetchReport
        try:
            fd, journal = descriptors[0], descriptors[1] if len(descriptors) > 1 else None
            stored = uploader.upload(
                order,
                fd,
                Journal(journal),
                cancel,
                lambda done, total: self._reports.progress(Uploading(number, done, total)),
            )
            report = Uploaded(number, stored)
        except UploadError as error:
            text, retryable = _short(error), error.retryable
            report = UploadFailed(number, error.kind, text, retryable, error.limit_bytes, error.status)
        except ModelError as error:
            report = UploadFailed(number, "canceled", _short(error), retryable=True)
        except Exception as error:  # noqa: BLE001 - around an upload's whole life, which ends in a report
            traceback.print_exc()
            text = f"`{order.ref}` cannot be stored: the fetcher failed with a `{type(error).__name__}`"
            report = UploadFailed(number, "transfer", text, retryable=False)
        finally:
            close_all(descriptors)
        self._reports.end(Uploading, number)
        self._reports.send(report)

    # --- a call -------------------------------------------------------------------------------------------------------

    def _uploader(self, fetcher: Fetcher) -> Uploader:
        calls = self._asking(fetcher)
        return Uploader(fetcher.config, transports=calls.transports, into=calls.uploads_of)

    def _asking(self, fetcher: Fetcher) -> Calls:
        if self._calls is None:
            self._calls = Calls(fetcher)
        return self._calls

    def _ask_platform(
        self, fetcher: Fetcher, order: CallPlatform | EndPlatform | RenewToken, descriptors: list[int]
    ) -> None:
        calls = self._asking(fetcher)
        if isinstance(order, CallPlatform):
            self._begin(("call", order.number), partial(self._call, calls, order, descriptors))
        elif isinstance(order, RenewToken):
            self._begin(("renewal", order.number), partial(self._renew, calls, order))
        else:
            self._begin(("end", next(self._ends)), partial(self._end_job, calls, order))

    def _renew(self, calls: Calls, order: RenewToken, cancel: Cancel) -> None:
        renewed = calls.renew(order, cancel)
        renewed.error = renewed.error[:TEXT_CHARS]
        self._reports.send(renewed)

    def _end_job(self, calls: Calls, order: EndPlatform, _: Cancel) -> None:
        calls.end(order.destination)

    def _call(self, calls: Calls, order: CallPlatform, descriptors: list[int], cancel: Cancel) -> None:
        """Make a call; the first descriptor is its verb where that is long, the last its file where it has one."""
        number = order.number
        try:
            content = _whole(descriptors[0]) if order.attached else order.arguments
            answer = calls.call(
                order.destination, verb_of(content), descriptors[-1] if order.has_file else None, cancel
            )
        except PlatformError as error:
            text = str(error)[:TEXT_CHARS]
            self._reports.send(PlatformAnswered(number, b"", False, text, error.kind, error.retryable, error.status))
        except msgspec.MsgspecError as error:
            self._reports.send(PlatformAnswered(number, error=f"not a call: {error}", failure="invalid"))
        except Exception as error:  # noqa: BLE001 - around a call's whole life, which ends in a report
            traceback.print_exc()
            text = f"the platform was not asked: the fetcher failed with a `{type(error).__name__}`"
            self._reports.send(PlatformAnswered(number, error=text, failure="transfer"))
        else:
            self._answer(number, encoded(answer.value), [] if answer.lease < 0 else [answer.lease])
        finally:
            close_all(descriptors)

    def _answer(self, number: int, content: bytes, attached: list[int]) -> None:
        try:
            if len(content) <= INLINE_LIMIT:
                self._reports.send(PlatformAnswered(number, content), attached)
                return
            with os.fdopen(os.memfd_create("gen-worker-answer", os.MFD_CLOEXEC), "wb") as memory:
                memory.write(content)
                memory.flush()
                self._reports.send(PlatformAnswered(number, attached=True), [memory.fileno(), *attached])
        finally:
            close_all(attached)


def _whole(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)


def _short(error: ModelError | UploadError) -> str:
    return str(error)[:TEXT_CHARS]


def downloading(ref: str, bytes_to_come: int | None) -> str:
    """Return what an operator reads when a download begins; None: nobody knows how much will come."""
    if bytes_to_come is None:
        return f"downloading `{ref}`"
    mebi = bytes_to_come / (1 << 20)
    return f"downloading `{ref}`, {f'{mebi:.1f} MiB' if mebi < 10 << 10 else f'{mebi / 1024:.1f} GiB'}"


def _described(wanted: Wanted, descriptors: list[int]) -> list[SnapshotFile] | None:
    """Return what the attached memory says that a snapshot consists of; None when nothing is attached."""
    try:
        if not descriptors:
            return None
        size = os.fstat(descriptors[0]).st_size
        if size > SNAPSHOT_BYTES:
            raise _undescribed(wanted, f"{size} bytes long, the limit is {SNAPSHOT_BYTES}")
        text = os.pread(descriptors[0], size, 0)
        return msgspec.json.decode(text, type=list[SnapshotFile])
    except msgspec.MsgspecError as error:
        raise _undescribed(wanted, f"not readable: {error}") from None
    finally:
        close_all(descriptors)


def _undescribed(wanted: Wanted, reason: str) -> ModelError:
    text = f"what the orchestrator says of the files of `{wanted.ref}` is {reason}"
    return ModelError("bad_manifest", text, "the request has to name the snapshot again", ref=wanted.ref)


def serve(channel: Channel[FetchOrder]) -> int:
    """Obey a supervisor until the end; return the exit code."""
    server = Server(channel)
    try:
        server.run()
    except SystemExit:
        return 0  # it was asked to end
    except Exception:  # noqa: BLE001 - around the process's whole life
        traceback.print_exc()
        return 1
    finally:
        server.stop()
        sys.stderr.flush()
    return 0
