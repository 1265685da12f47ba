"""Commits of repositories: begun with a list of files, given the bytes that the platform lacks, made visible.

`POST …/commits`, PUTs of parts and `POST …/commits/<id>/uploads/<upload>/complete` for each file, then
`POST …/commits/<id>/finalize` until it is done, or `DELETE …/commits/<id>`.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from typing import Any
from urllib.parse import quote

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.job_tokens import JobKey
from gen_worker.fetch.platform.api import NO_REPO, NO_ROUTE, Api, documented, repo_route
from gen_worker.fetch.platform.failure import PlatformError, of_upload
from gen_worker.fetch.platform.revisions import Revisions
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.places import Bucket, Created, Place, SignedUrls, grant_of
from gen_worker.fetch.uploading.source import Source
from gen_worker.fetch.uploading.store import Store, Transports
from gen_worker.models.errors import ModelError
from gen_worker.wire.fetching import Destination
from gen_worker.wire.platform import AbortCommit, BeginCommit, CommitBegun, CommitFile, Done, FinishCommit

REMEMBERED = 256  # commits that may be under way; the oldest one is forgotten first
FIRST_PAUSE_S, LONGEST_PAUSE_S, LONGER = 2.0, 15.0, 1.5
_SPEC = ("kind", "library_name", "model_family", "class_name", "adapter_for_checkpoint_group", "adapter_for_family")
_CHECKPOINT = ("flavor", "flavors", "lineage", "dtype", "file_layout", "file_type", "metadata")


class _Awaited(Created):
    """A file of a commit."""

    path: str = ""
    exists: bool = False
    """The platform has its bytes."""


class _Begun(msgspec.Struct):
    revision_id: str
    uploads: list[_Awaited] = []


class _Open(msgspec.Struct):
    """A commit that was begun."""

    route: str
    awaited: dict[str, _Awaited]
    """What the platform lacks, by path."""

    finalizing: dict[str, Any] | None = None
    """What makes it visible, where it is a revision that is stored into."""

    elsewhere: bool = False
    """Whether another process has begun it."""


class Commits:
    """The commits that were begun here. For any number of threads."""

    def __init__(self, transports: Transports, revisions: Revisions) -> None:
        """A platform without commits gets revisions that are stored into."""
        self._transports = transports
        self._pace = transports.pace
        self._revisions = revisions
        self._lock = threading.Lock()
        self._open: OrderedDict[tuple[JobKey, str, str], _Open] = OrderedDict()
        """By the job, the repository and the revision."""

    def begin(self, api: Api, verb: BeginCommit, cancel: Cancel) -> CommitBegun:
        """Begin one and remember where its files go."""
        route = f"{repo_route(verb.repo)}/commits"
        reply = api.ask("POST", route, verb.document, cancel=cancel, accepted=NO_ROUTE)
        if reply.status in NO_ROUTE and reply.said not in NO_REPO:
            revision, begun = self._begin_revision(api, verb, cancel)
        elif reply.status in NO_ROUTE:
            raise PlatformError("invalid", f"`{verb.repo}` is not on `{api.shown}`: {reply.said}", status=reply.status)
        else:
            answer = api.read(reply, _Begun)
            awaited = {each.path: each for each in answer.uploads if not (each.exists or each.dedup)}
            revision = answer.revision_id
            begun = _Open(f"{route}/{quote(revision, safe='')}", awaited)
        with self._lock:
            self._open[api.job, verb.repo, revision] = begun
            while len(self._open) > REMEMBERED:
                self._open.popitem(last=False)
        return CommitBegun(revision, sorted(begun.awaited))

    def _begin_revision(self, api: Api, verb: BeginCommit, cancel: Cancel) -> tuple[str, "_Open"]:
        """Announce the files of a commit to the job's revision, as a platform without commits has it."""
        opening = {name: verb.document[name] for name in _SPEC if verb.document.get(name)}
        route = self._revisions.route(api, verb.repo, opening, cancel)
        if not route:
            text = f"`{verb.repo}` cannot be published to `{api.shown}`: it takes neither commits nor revisions"
            raise PlatformError("invalid", text)
        awaited: dict[str, _Awaited] = {}
        for each in verb.document["operations"]:
            asked = {"path": each["path"], "blake3": each["blake3"], "size_bytes": each["size_bytes"]}
            reply = api.ask("POST", f"{route}/uploads", {**asked, "request_id": api.job[1]}, cancel=cancel)
            created = api.read(reply, _Awaited)
            if not created.dedup:
                awaited[each["path"]] = created
        return route.rpartition("/")[2], _Open(route, awaited, _finalizing(verb.document))

    def send(self, api: Api, verb: CommitFile, to: Destination, fd: int, cancel: Cancel) -> Done:
        """Send the bytes of one file."""
        with self._lock:
            begun = self._open.get((api.job, verb.repo, verb.revision_id))
        if begun is None:
            raise _forgotten(verb.revision_id)
        created = begun.awaited.get(verb.path)
        if created is None:
            raise PlatformError("invalid", f"the commit awaits no bytes of `{verb.path[:200]}`")
        store = Store(to, self._transports, self._pace, f"{begun.route}/uploads", in_repo=begun.finalizing is not None)
        try:
            with self._transports.files.turn(cancel):
                self._send(store, verb, created, Source(fd, verb.length, verb.path), cancel)
        except UploadError as error:
            raise of_upload(error.about(verb.path)) from None
        with self._lock:
            begun.awaited.pop(verb.path, None)
        return Done()

    def _send(self, store: Store, verb: CommitFile, created: _Awaited, source: Source, cancel: Cancel) -> None:
        journal = Journal(None)
        place = self._place(store, verb, created, source, journal, cancel)
        try:
            etags = self._transports.sender.send(place, source, journal, cancel, lambda count: None)
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
        begun = self._begun(api, verb.repo, verb.revision_id)
        try:
            if begun.finalizing is not None:
                told = self._revisions.finish(api, verb.repo, begun.route, begun.finalizing, cancel)
            else:
                told = self._finalized(api, verb.repo, begun.route, cancel)
        except PlatformError as error:
            if begun.elsewhere and error.status in NO_ROUTE:  # it may be a revision that is stored into
                raise _forgotten(verb.revision_id) from None
            raise
        with self._lock:
            self._open.pop((api.job, verb.repo, verb.revision_id), None)
        return Done(told)

    def _finalized(self, api: Api, repo: str, route: str, cancel: Cancel) -> dict[str, Any]:
        until, pause_s = time.monotonic() + self._pace.finalize_s, FIRST_PAUSE_S
        while (reply := api.ask("POST", f"{route}/finalize", {}, cancel=cancel)).status == 202:
            if time.monotonic() + pause_s > until:
                minutes = self._pace.finalize_s / 60
                text = f"`{repo}` was not published: `{api.shown}` is at it for {minutes:.0f} minutes"
                raise PlatformError("transfer", text, retryable=True)
            cancel.wait(reply.wished_s(min(pause_s, self._pace.longest_poll_s), LONGEST_PAUSE_S))
            pause_s = min(LONGEST_PAUSE_S, pause_s * LONGER)
        return documented(api.read(reply, dict[str, Any]))

    def _begun(self, api: Api, repo: str, revision: str) -> "_Open":
        """Return what is known of a commit; of one that another process has begun, where it is."""
        with self._lock:
            found = self._open.get((api.job, repo, revision))
        return found or _Open(f"{repo_route(repo)}/commits/{quote(revision, safe='')}", {}, elsewhere=True)

    def abort(self, api: Api, verb: AbortCommit, cancel: Cancel) -> Done:
        """Give one up; a revision that is stored into is the whole job's, and goes with its end."""
        begun = self._begun(api, verb.repo, verb.revision_id)
        with self._lock:
            self._open.pop((api.job, verb.repo, verb.revision_id), None)
        if begun.finalizing is None:
            api.ask("DELETE", begun.route, cancel=cancel, accepted=(404, 409))
        return Done()

    def end(self, api: Api) -> None:
        """Give up what a job began and did not finish; whether its platform hears that does not matter."""
        with self._lock:
            left = [key for key in self._open if key[0] == api.job]
        for _, repo, revision in left:
            with suppress(PlatformError, ModelError):
                self.abort(api, AbortCommit(repo=repo, revision_id=revision), Cancel())


def _forgotten(revision: str) -> PlatformError:
    text = f"the commit `{revision[:80]}` was forgotten: it is to begin anew"
    return PlatformError("transfer", text, retryable=True)


def _finalizing(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return what makes a revision visible that was stored into, from what begins a commit."""
    entries = [
        {"path": each["path"], "digest": f"blake3:{each['blake3']}", "size_bytes": each["size_bytes"]}
        for each in document["operations"]
    ]
    checkpoint = {"snapshot_manifest": entries, "flavor": "", "flavors": []}
    checkpoint |= {name: document[name] for name in _CHECKPOINT if document.get(name)}
    parent = document.get("auto_create_external_parent", True)
    tags = document.get("tags", [])
    return {"tags": tags, "checkpoint_flavors": [checkpoint], "auto_create_external_parent": parent}
