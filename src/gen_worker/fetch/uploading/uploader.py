"""One file into the platform's store, from its descriptor to what the store says of it."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.job_tokens import JobKey, job_key
from gen_worker.fetch.uploading.asking import read
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.file_api import write_file
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.limits import Claims, check_size, claims_of
from gen_worker.fetch.uploading.pace import Pace
from gen_worker.fetch.uploading.places import Bucket, Created, Place, SignedUrls, grant_of
from gen_worker.fetch.uploading.source import Digests, Source
from gen_worker.fetch.uploading.store import Meta, Store, Transports
from gen_worker.filetypes import HEAD_BYTES, mime_type
from gen_worker.models.errors import ModelError
from gen_worker.wire.fetching import Destination, Upload
from gen_worker.wire.messages import Stored

_LOOK_S = 0.1  # how often who waits for others' bytes looks whether it is still wanted


class Uploader:
    """Stores the files of all jobs of a worker. For any number of threads."""

    def __init__(
        self,
        config: FetchConfig,
        pace: Pace | None = None,
        transports: Transports | None = None,
        into: Callable[[Destination, Cancel], str] | None = None,
    ) -> None:
        """`into` returns the uploads' route of the repository of a destination that names one."""
        self._transports = transports or Transports(config, pace or Pace())
        self._pace = self._transports.pace
        self._into = into
        self._max_upload_bytes = config.max_upload_bytes
        self._allowances = _Allowances()

    def upload(
        self, order: Upload, fd: int, journal: Journal, cancel: Cancel, on_progress: Callable[[int, int], None]
    ) -> Stored:
        """Store a file and return what became of it.

        `on_progress` takes the bytes that are sent, and all; any thread may call it. Goes on where the journal ends.
        Raises `UploadError`, and `ModelError` of the kind `canceled`; the store is told then that nothing more comes.
        """
        try:
            return self._upload(order, fd, journal, cancel, on_progress)
        except ModelError as error:
            if error.kind == "canceled":
                raise
            failure = UploadError("transfer", str(error))  # an address that is none
        except UploadError as error:
            failure = error
        raise failure.about(order.ref) from None

    def _upload(
        self, order: Upload, fd: int, journal: Journal, cancel: Cancel, on_progress: Callable[[int, int], None]
    ) -> Stored:
        target, ref = order.destination, order.ref
        if target.file_api and target.base_url:
            return self._write_file(order, fd, cancel, on_progress)
        if not target.base_url:
            raise UploadError("transfer", f"`{ref}` cannot be stored: the orchestrator named no store of files")
        if not target.token:
            raise UploadError("auth", f"`{ref}` cannot be stored: its job came without a token")
        claims = claims_of(self._transports.tokens.of(target))
        check_size(ref, order.length, claims, self._max_upload_bytes)
        source = Source(fd, order.length, ref)
        with self._allowances.taken(job_key(target), order.length, claims, cancel), self._transports.files.turn(cancel):
            work = _Work(order, source, journal, self._transports, self._route(target, cancel))
            return work.go_on(cancel, on_progress)

    def _route(self, target: Destination, cancel: Cancel) -> str:
        """Return where uploads go below the platform's address; "": to the media of their owner."""
        if not target.repo:
            return ""
        if self._into is None:
            raise UploadError("transfer", f"nothing can be stored in `{target.repo}` from here")
        return self._into(target, cancel)

    def _write_file(self, order: Upload, fd: int, cancel: Cancel, on_progress: Callable[[int, int], None]) -> Stored:
        check_size(order.ref, order.length, Claims(), self._max_upload_bytes, empty=True)
        with self._transports.files.turn(cancel):
            source = Source(fd, order.length, order.ref)
            return write_file(order, source, self._transports.parts, self._pace, cancel, on_progress)


class _Work:
    """The upload of one file."""

    def __init__(self, order: Upload, source: Source, journal: Journal, transports: Transports, route: str) -> None:
        self._order = order
        self._source = source
        self._journal = journal
        self._transports = transports
        self._in_repo = bool(route)
        self._store = Store(order.destination, transports, transports.pace, route, in_repo=self._in_repo)
        self._mime_type = order.mime_type or mime_type(source.head(HEAD_BYTES), order.ref) or ""

    def go_on(self, cancel: Cancel, on_progress: Callable[[int, int], None]) -> Stored:
        """Do what is left to be done; where the store knows nothing more of what was done, all of it."""
        digests = self._journal.digests
        if digests is None:
            digests = self._source.digests(cancel)
            self._journal.note_digests(digests)
        if self._journal.created:
            try:
                return self._attempt(digests, cancel, on_progress)
            except UploadError as error:
                if error.retryable:
                    raise
                self._journal.begin_anew()
        return self._attempt(digests, cancel, on_progress)

    def _attempt(self, digests: Digests, cancel: Cancel, on_progress: Callable[[int, int], None]) -> Stored:
        order, store, journal = self._order, self._store, self._journal
        if not journal.created:
            journal.note_created(store.create(order.ref, digests, order.length, self._mime_type, cancel))
        created = read(journal.created, Created, store.shown)
        if created.dedup:
            on_progress(order.length, order.length)
            return self._stored(read(journal.created, Meta, store.shown), digests)
        if not created.upload_id:
            raise UploadError("transfer", f"`{store.shown}` names no upload for `{order.ref}`")
        counted = _Counted(order.length, on_progress)
        place: Place | None = None
        try:
            granted = created.transfer_grant or created.s3_transfer_grant
            with self._transports.into_buckets.turn(cancel) if granted else nullcontext():
                place = self._place(created, digests, cancel)
                etags = self._transports.sender.send(place, self._source, journal, cancel, counted.add)
                self._source.check()
                told = place.finish(etags, cancel)
            meta = store.complete(order.ref, created.upload_id, told, cancel)
        except (UploadError, ModelError):
            if place is not None:
                place.abandon()
            journal.begin_anew()
            store.abort(created.upload_id)
            raise
        return self._stored(meta, digests)

    def _place(self, created: Created, digests: Digests, cancel: Cancel) -> Place:
        length, transport, who = self._order.length, self._transports.parts, self._store.shown
        granted = created.transfer_grant or created.s3_transfer_grant
        if granted is None and self._in_repo:
            raise UploadError("transfer", f"`{who}` lends no keys for `{self._order.ref}`, a file of a repository")
        if granted is None:
            return SignedUrls(created, length, transport, who)
        grant = grant_of(granted, who)
        bucket = Bucket(grant, length, digests, self._journal, transport, self._transports.pace.object_part_bytes)
        bucket.begin(cancel)
        return bucket

    def _stored(self, meta: Meta, digests: Digests) -> Stored:
        order, who = self._order, self._store.shown
        told = (("size_bytes", meta.size_bytes, order.length), ("blake3", _hex(meta.blake3), digests.blake3))
        for name, there, sent in (*told, ("sha256", _hex(meta.sha256), digests.sha256)):
            if there not in (None, "", sent):
                text = f"`{order.ref}` is not what was sent: its {name} at `{who}` is {there}, not {sent}"
                raise UploadError("transfer", text, retryable=True)
        return Stored(
            ref=meta.ref or order.ref,
            size_bytes=order.length,
            owner=order.destination.owner,
            mime_type=meta.mime_type or self._mime_type,
            sha256=digests.sha256,
            blake3=digests.blake3,
            media_id=str(meta.media_id or ""),
            blob_digest=meta.blob_digest or "",
            blob_domain=meta.blob_domain or "",
            blob_path=meta.blob_path or "",
            snapshot_digest=meta.snapshot_digest or "",
        )


class _Counted:
    """How much of a file is sent, for all of its parts."""

    def __init__(self, total: int, on_progress: Callable[[int, int], None]) -> None:
        self._total = total
        self._done = 0
        self._on_progress = on_progress
        self._lock = threading.Lock()

    def add(self, count: int) -> None:
        """So many more bytes are sent; fewer when it is negative."""
        with self._lock:
            self._done += count
            self._on_progress(self._done, self._total)


class _Allowances:
    """The bytes that each job has on their way, never more at once than its token allows."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken: dict[JobKey, int] = {}

    @contextmanager
    def taken(self, job: JobKey, length: int, claims: Claims, cancel: Cancel) -> Iterator[None]:
        """Wait until a file fits beside those under way, and count it; raise `ModelError` when canceled before."""
        with self._changed:
            while claims.max_total_bytes and self._taken.get(job, 0) + length > claims.max_total_bytes:
                self._changed.wait(_LOOK_S)
                cancel.raise_if_set()
            self._taken[job] = self._taken.get(job, 0) + length
        try:
            yield
        finally:
            with self._changed:
                left = self._taken[job] - length
                self._taken[job] = left
                if not left:
                    del self._taken[job]
                self._changed.notify_all()


def _hex(digest: str | None) -> str:
    """Return the digits of a digest, which may say its algorithm before them."""
    return (digest or "").rpartition(":")[2].lower()
