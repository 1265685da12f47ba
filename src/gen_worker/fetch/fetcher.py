"""Have a model on disk: look for it, ask its provider what it consists of, download what is missing, make it visible.

The order of work and nothing else: which files is `sources`, the bytes are `download`, the disk is `store`.
"""

import errno
import os
import re
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

import msgspec

from gen_worker.fetch.cache.disk import on_memory
from gen_worker.fetch.cache.layout import Record
from gen_worker.fetch.cache.store import Found, Plan, Store
from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.download import download
from gen_worker.fetch.network.joining import last_change, put_together
from gen_worker.fetch.network.patience import FOR_FILES, FOR_QUESTIONS, Patience
from gen_worker.fetch.network.transport import Transport
from gen_worker.fetch.progress import Ongoing, OnProgress, Progress
from gen_worker.fetch.sources import Resolved, host_of, resolve
from gen_worker.models.errors import ModelError, ModelErrorKind
from gen_worker.models.manifest import Manifest, ManifestFile
from gen_worker.models.snapshot import Snapshot
from gen_worker.models.wanted import SnapshotFile, Wanted

ASK_LIMIT_S = 10.0  # for the current commit of a model that is on disk already
ANSWER_S = 60.0  # for which what a probe was told is good enough for the fetch that follows it
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_UNTOLD: frozenset[ModelErrorKind] = frozenset(
    ("unreachable", "rate_limited", "not_configured", "unauthorized", "gated", "not_found")
)  # what a model stands for now; what is on disk was given to this machine once, and is used offline as well


class Fetched(NamedTuple):
    """A model that is on disk."""

    snapshot: Snapshot
    lease: int
    """A descriptor; nobody evicts the snapshot before it and its copies are closed. The caller's to close."""

    fetched_bytes: int
    """That came over the network for it; 0: it was there."""


class Fetcher:
    """Fetches models, several at once when called from several threads.

    `on_evicted` is told the ref and the bytes of what went to make room, `on_download` the ref and the bytes to come
    (None: nobody knows) of each download that begins.
    """

    def __init__(
        self,
        config: FetchConfig,
        on_evicted: Callable[[str, int], None] = lambda ref, size: None,
        on_download: Callable[[str, int | None], None] = lambda ref, size: None,
        *,
        for_questions: Patience = FOR_QUESTIONS,
        for_files: Patience = FOR_FILES,
    ) -> None:
        self._config = config
        self._on_evicted = on_evicted
        self._on_download = on_download
        self._for_files = for_files
        self._store = Store(config)
        self._transport = Transport(config, for_questions)
        self._hasty = Transport(config, _hasty(for_questions))
        self._ongoing = Ongoing()
        self._making_room = threading.Lock()
        self._probed: dict[Wanted, tuple[float, Resolved]] = {}

    @property
    def config(self) -> FetchConfig:
        """What it goes by."""
        return self._config

    def warnings(self) -> list[str]:
        """Return what an operator should know of the cache before anything is fetched."""
        root = Path(self._config.root)
        existing = next(folder for folder in (root, *root.parents) if folder.exists())
        if not os.access(existing, os.W_OK):
            return [f"models come from `{root}` only as it is: it cannot be written"]
        if on_memory(root):
            return [f"models are kept in memory: `{root}` is on a tmpfs; TENSORHUB_CACHE_DIR names another folder"]
        return []

    def fetch(
        self,
        wanted: Wanted,
        *,
        on_progress: OnProgress = lambda done, total, retries: None,
        cancel: Cancel | None = None,
        offline: bool = False,
        probe: bool = False,
        verify: bool = False,
        snapshot: Sequence[SnapshotFile] | None = None,
        keep: Collection[str] = (),
    ) -> Fetched:
        """Have a model on disk, whole and verified; raise `ModelError` when it cannot be had.

        Returns at once what is there and cannot change. Where a branch or tag is meant, its provider is asked what it
        stands for now; when the provider cannot be reached or does not tell, what is on disk is good enough, and the
        snapshot's notes say so. `offline` asks nobody. `probe` downloads nothing: a model that is not here raises the
        kind `absent`. `verify` reads what is found, and what is damaged of it counts as not here. `snapshot` is what an
        orchestrator says that the model consists of. `keep` are refs that eviction spares.

        Two fetches of the same bytes share one download, also across processes. After a failure nothing is visible;
        what came is kept, so that the next try goes on from there.
        """
        late = _too_late(wanted, self._config)
        with (
            _typed(wanted),
            _within(self._config.max_seconds, cancel or Cancel(), late) as limited,
            ExitStack() as held,
        ):
            find = partial(self._store.find_verified, cancel=limited) if verify else self._store.find
            found = find(wanted)
            if found is not None and (offline or self._config.offline or _is_settled(wanted, found)):
                return _there(found)
            if offline or self._config.offline:
                raise _offline(wanted)
            if found is not None:
                held.callback(os.close, found.lease)
            try:
                resolved = self._resolve(wanted, snapshot, limited, impatient=found is not None)
            except ModelError as error:
                if found is None or error.kind not in _UNTOLD:
                    raise
                held.pop_all()
                return _there(_noted(found, _as_it_is(wanted, error)))
            seen = found is not None and Record.of(wanted, resolved.manifest).key == found.snapshot.key
            current = (self._store.find if seen else find)(wanted, resolved.manifest)
            if current is not None:
                return _there(current)
            return self._have(_Fetch(wanted, resolved, limited, on_progress, keep), probe=probe)

    def stock(self) -> Iterator[tuple[Wanted, int]]:
        """Yield what lies in the caches, whole, with its bytes; of each cache the last used first."""
        return self._store.stock()

    def close(self) -> None:
        """Let go of idle connections; nothing may be under way."""
        self._transport.close()
        self._hasty.close()

    def _resolve(
        self, wanted: Wanted, snapshot: Sequence[SnapshotFile] | None, cancel: Cancel, *, impatient: bool
    ) -> Resolved:
        """Ask what the model consists of now; who is impatient does not wait long for a provider that is out."""
        text = f"{host_of(wanted, self._config)} does not say within {ASK_LIMIT_S:g} s what it stands for now"
        silent = ModelError("unreachable", text)
        asked, resolved = self._probed.pop(wanted, (-ANSWER_S, None))
        if resolved is not None and snapshot is None and time.monotonic() - asked < ANSWER_S:
            return resolved
        with _within(ASK_LIMIT_S if impatient else 0.0, cancel, silent) as limited:
            transport = self._hasty if impatient else self._transport
            return resolve(wanted, self._config, transport, limited, snapshot)

    def _have(self, fetch: "_Fetch", *, probe: bool) -> Fetched:
        """Download what is missing and build the snapshot."""
        with self._store.plan(fetch.wanted, fetch.manifest, fetch.cancel) as plan:
            if plan.missing and probe:
                self._remember(fetch)
                raise ModelError("absent", f"`{fetch.wanted.ref}` is not on this machine")
            missing = {path: file for file, path in plan.missing}
            fetched_bytes = self._download(fetch, plan, missing) if missing else 0
            found = self._store.publish(fetch.wanted, fetch.manifest, fetch.cancel)
            return Fetched(found.snapshot, found.lease, fetched_bytes)

    def _remember(self, fetch: "_Fetch") -> None:
        """Keep what a probe was told for the fetch that may follow it, and forget what none followed."""
        now = time.monotonic()
        for wanted, (asked, _) in list(self._probed.items()):
            if now - asked >= ANSWER_S:
                self._probed.pop(wanted, None)
        self._probed[fetch.wanted] = now, fetch.resolved

    def _download(self, fetch: "_Fetch", plan: Plan, missing: Mapping[Path, ManifestFile]) -> int:
        """Download blobs, the largest first; return how many bytes came over the network."""
        sizes = {path: file.size or 0 for path, file in missing.items()}
        progress = fetch.progress(there=fetch.manifest.size - sum(sizes.values()))
        others = self._ongoing.join(sizes, progress)
        try:
            with self._making_room:
                needed = plan.missing_bytes + others
                gone = self._store.make_room(
                    needed, fetch.keep, at=plan.place, ref=fetch.wanted.ref, cancel=fetch.cancel
                )
                for ref, size in gone:
                    self._on_evicted(ref, size)
            self._on_download(fetch.wanted.ref, plan.missing_bytes if fetch.sized else None)
            largest_first = sorted(missing, key=lambda path: (-sizes[path], missing[path].path))
            return self._at_once(
                fetch, [partial(self._blob, fetch, missing[path], path, progress) for path in largest_first]
            )
        finally:
            self._ongoing.leave(sizes, progress)

    def _at_once(self, fetch: "_Fetch", downloads: Sequence[Callable[[], int]]) -> int:
        """Run some downloads at once; the first that fails ends the others."""
        with ThreadPoolExecutor(self._config.files_at_once, "gen-worker-file") as threads:
            results = [threads.submit(each) for each in downloads]
            try:
                return sum(result.result() for result in as_completed(results))
            except BaseException:
                threads.shutdown(wait=False, cancel_futures=True)
                fetch.cancel.set()
                raise

    def _blob(self, fetch: "_Fetch", file: ManifestFile, path: Path, progress: Progress) -> int:
        """Have one blob on disk, by whoever brings it; return how many bytes came over the network."""
        fetch.cancel.raise_if_set()
        path.parent.mkdir(parents=True, exist_ok=True)
        with self._locked(fetch, file, path):
            if path.exists():  # somebody else brought it meanwhile
                self._ongoing.settle(path, file.size or path.stat().st_size)
                return 0
            on_bytes = partial(self._ongoing.add, path)
            bring = partial(
                download,
                ref=fetch.wanted.ref,
                transport=self._transport,
                token=fetch.resolved.token,
                token_for=fetch.resolved.token_for,
                fresh=fetch.resolved.fresh,
                on_bytes=on_bytes,
                on_retry=progress.retried,
                cancel=fetch.cancel,
                stall_timeout_s=self._config.stall_timeout_s,
                patience=self._for_files,
            )
            try:
                if file.parts:
                    return put_together(file, path, bring, on_bytes=on_bytes, cancel=fetch.cancel)
                return bring(file, path)
            except BaseException:
                self._ongoing.settle(path, 0)
                raise

    @contextmanager
    def _locked(self, fetch: "_Fetch", file: ManifestFile, path: Path) -> Iterator[None]:
        """Be the only one who brings a blob; wait for another process for as long as its part grows."""
        text = f"`{file.path}` of `{fetch.wanted.ref}`: another process is at it, and nothing comes"
        hint = "look for a `gen-worker` that hangs; as soon as it ends, the next try goes on from where it was"
        stalled = ModelError("stalled", text, hint, file=file.path)
        with ExitStack() as held:
            while True:
                before = last_change(path)
                try:
                    with _within(self._config.stall_timeout_s, fetch.cancel, stalled) as limited:
                        held.enter_context(self._store.locked(path, limited))
                    break
                except ModelError as error:
                    if error is not stalled or last_change(path) == before:
                        raise
            yield


class _Fetch(NamedTuple):
    """One fetch, from when it is known what the model consists of."""

    wanted: Wanted
    resolved: Resolved
    cancel: Cancel
    on_progress: OnProgress
    keep: Collection[str]

    @property
    def manifest(self) -> Manifest:
        return self.resolved.manifest

    @property
    def sized(self) -> bool:
        """Whether the provider says how large all its files are."""
        return all(file.size is not None for file in self.manifest.files)

    def progress(self, there: int) -> Progress:
        """Return the count of this fetch, of which so many bytes are there already."""
        progress = Progress(self.manifest.size if self.sized else None, self.on_progress)
        progress.add(there)
        return progress


# --- what was found ---------------------------------------------------------------------------------------------------


def _is_fixed(wanted: Wanted) -> bool:
    """Whether this can only ever mean the same bytes."""
    return bool(_COMMIT.fullmatch(wanted.revision) or wanted.digest or wanted.version)


def _is_settled(wanted: Wanted, found: Found) -> bool:
    """Whether what was found is what its provider would name, without asking it."""
    return _is_fixed(wanted) and found.same_options


def _there(found: Found) -> Fetched:
    return Fetched(found.snapshot, found.lease, 0)


def _hasty(patience: Patience) -> Patience:
    """Return the patience of who has something to go on with: three tries within a second, if all are refused."""
    return msgspec.structs.replace(
        patience, tries=min(patience.tries, 3), first_delay_s=min(patience.first_delay_s, 0.25)
    )


def _as_it_is(wanted: Wanted, error: ModelError) -> str:
    reason = str(error).removeprefix(f"`{wanted.ref}`: ")
    return f"`{wanted.ref}` is used as it is on disk: {reason}; with `--offline` nobody is asked"


def _noted(found: Found, note: str) -> Found:
    snapshot = msgspec.structs.replace(found.snapshot, notes=(*found.snapshot.notes, note))
    return msgspec.structs.replace(found, snapshot=snapshot)


# --- ends -------------------------------------------------------------------------------------------------------------


@contextmanager
def _within(seconds: float, cancel: Cancel, late: ModelError) -> Iterator[Cancel]:
    """Yield a flag that is also set when so many seconds are over, which raises `late`; 0: there is no limit."""
    with cancel.part() as limited:
        over = threading.Event()

        def end() -> None:
            over.set()
            limited.set()

        timer = threading.Timer(seconds, end) if seconds > 0 else None
        if timer is not None:
            timer.daemon = True
            timer.start()
        try:
            yield limited
        except ModelError as error:
            if error.kind == "canceled" and over.is_set() and not cancel.is_set():
                raise late from None
            raise
        finally:
            if timer is not None:
                timer.cancel()
                timer.join()


_HINTS: Mapping[ModelErrorKind, str] = {
    "bad_manifest": "check the address of its provider; if that is right, tell who owns the model",
    "canceled": "what came is kept: the next try goes on from there",
    "insufficient_disk": "`gen-worker cache ls` shows what models take, `gen-worker cache rm REF` removes one",
    "read_only": "set TENSORHUB_CACHE_DIR to a folder that can be written",
    "unreachable": "look at the network and its proxies; what came is kept: the next try goes on from there",
    "rate_limited": "try again later; what came is kept",
    "stalled": "try again: what came is kept",
    "download_failed": "try again: what came is kept",
}


@contextmanager
def _typed(wanted: Wanted) -> Iterator[None]:
    """See that every error is a `ModelError` that names the model and says what to do."""
    try:
        yield
    except ModelError as error:
        if error.kind == "canceled":
            text = f"the download of `{wanted.ref}` was canceled"
            raise ModelError("canceled", text, _HINTS["canceled"], ref=wanted.ref) from None
        error.ref = error.ref or wanted.ref
        error.hint = error.hint or _HINTS.get(error.kind, "")
        if any(f"`{name}`" in str(error) for name in (wanted.ref, wanted.repo)):
            raise
        text = f"`{wanted.ref}`: {error}"
        raise ModelError(error.kind, text, error.hint, ref=error.ref, file=error.file) from error
    except OSError as error:
        raise _of_disk(wanted, error) from error


def _of_disk(wanted: Wanted, error: OSError) -> ModelError:
    kind: ModelErrorKind = "download_failed"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        kind = "insufficient_disk"
    elif error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        kind = "read_only"
    where = f" at `{os.fsdecode(error.filename)}`" if error.filename else ""
    reason = (error.strerror or str(error)).lower()
    return ModelError(
        kind, f"`{wanted.ref}` cannot be kept on this disk: {reason}{where}", _HINTS[kind], ref=wanted.ref
    )


def _offline(wanted: Wanted) -> ModelError:
    prefix = "cozy:" if wanted.provider == "tensorhub" else f"{wanted.provider}:"
    narrowed = wanted.dtype or wanted.subfolder or wanted.files or wanted.trust_remote_code  # no ref can say so
    command = (
        "`gen-worker prefetch` in its endpoint's folder" if narrowed else f"`gen-worker prefetch {prefix}{wanted.ref}`"
    )
    return ModelError(
        "offline",
        f"`{wanted.ref}` is not on this machine, and nothing may be fetched",
        f"{command} fetches it while there is a network",
    )


def _too_late(wanted: Wanted, config: FetchConfig) -> ModelError:
    return ModelError(
        "download_failed",
        f"`{wanted.ref}` did not come within {config.max_seconds:g} s",
        "COZY_HF_DOWNLOAD_MAX_SECONDS sets the limit; what came is kept: the next try goes on from there",
    )
