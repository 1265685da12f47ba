"""Commits of repositories: begun with a list of files, given the bytes that the platform lacks, made visible.

`POST …/commits`, PUTs of parts and `POST …/commits/<id>/uploads/<upload>/complete` for each file, then
`POST …/commits/<id>/finalize` until it is done, or `DELETE …/commits/<id>`.
"""

import threading
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.platform.api import Api, Reply, documented, repo_route
from gen_worker.fetch.platform.failure import PlatformError, of_upload
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.pace import Pace
from gen_worker.fetch.uploading.places import Bucket, Created, Place, SignedUrls, grant_of
from gen_worker.fetch.uploading.sending import Sender, Turns
from gen_worker.fetch.uploading.source import Source
from gen_worker.fetch.uploading.store import Store, Transports
from gen_worker.models.errors import ModelError
from gen_worker.wire.fetching import Destination
from gen_worker.wire.platform import AbortCommit, BeginCommit, CommitBegun, CommitFile, Done, FinishCommit

REMEMBERED = 256  # commits that may be under way; the oldest one is forgotten first
FINALIZE_S = 1800.0
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGER = 2.0, 15.0, 1.5


class _Awaited(Created):
    """A file of a commit."""

    path: str = ""
    exists: bool = False
    """The platform has its bytes."""


class _Begun(msgspec.Struct):
    revision_id: str
    uploads: list[_Awaited] = []


class Commits:
    """The commits that were begun here. For any number of threads."""

    def __init__(self, transports: Transports, pace: Pace) -> None:
        self._transports = transports
        self._pace = pace
        self._sender = Sender(pace)
        self._files = Turns(pace.files)
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[str, str, str], dict[str, _Awaited]] = OrderedDict()
        """What is awaited by path, by the job's token, the repository and the revision."""

    def begin(self, api: Api, verb: BeginCommit, cancel: Cancel) -> CommitBegun:
        """Begin one and remember where its files go."""
        reply = api.ask("POST", f"{repo_route(verb.repo)}/commits", verb.document, cancel=cancel)
        begun = api.read(reply, _Begun)
        awaited = {each.path: each for each in begun.uploads if not (each.exists or each.dedup)}
        with self._lock:
            self._open[api.token, verb.repo, begun.revision_id] = awaited
            while len(self._open) > REMEMBERED:
                self._open.popitem(last=False)
        return CommitBegun(begun.revision_id, sorted(awaited))

    def send(self, api: Api, verb: CommitFile, to: Destination, fd: int, cancel: Cancel) -> Done:
        """Send the bytes of one file."""
        with self._lock:
            awaited = self._open.get((api.token, verb.repo, verb.revision_id))
        if awaited is None:
            text = f"the commit `{verb.revision_id[:80]}` was forgotten: it is to begin anew"
            raise PlatformError("transfer", text, retryable=True)
        created = awaited.get(verb.path)
        if created is None:
            raise PlatformError("invalid", f"the commit awaits no bytes of `{verb.path[:200]}`")
        route = f"{repo_route(verb.repo)}/commits/{quote(verb.revision_id, safe='')}/uploads"
        store = Store(to, self._transports, self._pace, route)
        try:
            with self._files.turn(cancel):
                self._send(store, verb, created, Source(fd, verb.length, verb.path), cancel)
        except UploadError as error:
            raise of_upload(error.about(verb.path)) from None
        with self._lock:
            awaited.pop(verb.path, None)
        return Done()

    def _send(self, store: Store, verb: CommitFile, created: _Awaited, source: Source, cancel: Cancel) -> None:
        journal = Journal(None)
        place = self._place(store, verb, created, source, journal, cancel)
        try:
            etags = self._sender.send(place, source, journal, cancel, lambda count: None)
            source.check()
            store.complete(verb.path, created.upload_id, place.finish(etags, cancel), cancel)
        except (UploadError, ModelError):
            place.abandon()
            raise

    def _place(
        self, store: Store, verb: CommitFile, created: _Awaited, source: Source, journal: Journal, cancel: Cancel
    ) -> Place:
        granted = created.transfer_grant or created.s3_transfer_grant
        if granted is None:
            return SignedUrls(created, verb.length, self._transports.parts, store.shown)
        grant, digests = grant_of(granted, store.shown), source.digests(cancel)
        bucket = Bucket(grant, verb.length, digests, journal, self._transports.parts, self._pace.object_part_bytes)
        bucket.begin(cancel)
        return bucket

    def finish(self, api: Api, verb: FinishCommit, cancel: Cancel) -> Done:
        """Have it made visible, and wait until it is."""
        route = f"{repo_route(verb.repo)}/commits/{quote(verb.revision_id, safe='')}/finalize"
        until, pause_s = time.monotonic() + FINALIZE_S, FIRST_PAUSE_S
        while (reply := api.ask("POST", route, {}, cancel=cancel)).status == 202:
            if time.monotonic() + pause_s > until:
                text = f"`{verb.repo}` was not published: `{api.shown}` is at it for {FINALIZE_S / 60:.0f} minutes"
                raise PlatformError("transfer", text, retryable=True)
            cancel.wait(_wished(reply, pause_s))
            pause_s = min(LONGEST_PAUSE_S, pause_s * LONGER)
        with self._lock:
            self._open.pop((api.token, verb.repo, verb.revision_id), None)
        return Done(documented(api.read(reply, dict[str, Any])))

    def abort(self, api: Api, verb: AbortCommit, cancel: Cancel) -> Done:
        """Give one up."""
        with self._lock:
            self._open.pop((api.token, verb.repo, verb.revision_id), None)
        route = f"{repo_route(verb.repo)}/commits/{quote(verb.revision_id, safe='')}"
        api.ask("DELETE", route, cancel=cancel, accepted=(404, 409))
        return Done()

    def end(self, api: Api) -> None:
        """Give up what a job began and did not finish; whether its platform hears that does not matter."""
        with self._lock:
            left = [key for key in self._open if key[0] == api.token]
        for _, repo, revision in left:
            with suppress(PlatformError, ModelError):
                self.abort(api, AbortCommit(repo=repo, revision_id=revision), Cancel())


def _wished(reply: Reply, pause_s: float) -> float:
    """Return how long the platform wants to be left alone, within reason."""
    text = reply.headers.get("retry-after", "")
    return min(LONGEST_PAUSE_S, float(text)) if text.isascii() and text.isdigit() and len(text) < 6 else pause_s
