"""Make one call of a job's platform: which requests a verb stands for, and what answers it."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias, assert_never
from urllib.parse import urlencode

import msgspec

from gen_worker.fetch.cancel import Cancel
from gen_worker.fetch.fetcher import Fetcher
from gen_worker.fetch.platform.api import Api, documented, repo_route
from gen_worker.fetch.platform.commits import Commits
from gen_worker.fetch.platform.contents import fetch_repo, materialize, materialize_here
from gen_worker.fetch.platform.failure import PlatformError, of_model, of_platform, of_upload
from gen_worker.fetch.platform.renewal import renew
from gen_worker.fetch.platform.revisions import Revisions
from gen_worker.fetch.uploading.failure import UploadError
from gen_worker.fetch.uploading.journal import Journal
from gen_worker.fetch.uploading.pace import Pace
from gen_worker.fetch.uploading.store import Transports
from gen_worker.fetch.uploading.uploader import Uploader
from gen_worker.models.errors import ModelError
from gen_worker.wire.fetching import Destination, RenewToken, TokenRenewed, Upload
from gen_worker.wire.platform import (
    AbortCommit,
    AnyVerb,
    BeginCommit,
    CommitFile,
    Done,
    FetchRepo,
    FindDataset,
    FinishCommit,
    FoundDataset,
    KeepContent,
    Located,
    Materialize,
    Materialized,
    Metadata,
    Posted,
    PostJson,
    PublishDataset,
    PublishedDataset,
    ReadMetadata,
    WriteMetadata,
)

OpenApi: TypeAlias = Callable[[], Api]


class Answered(NamedTuple):
    """An answer, and what comes with it."""

    value: object
    lease: int = -1
    """A descriptor, the caller's to close; -1: none."""


class _Dataset(msgspec.Struct):
    id: str
    name: str
    features: Any = None
    schema: Any = None
    visibility: str = ""


class _Datasets(msgspec.Struct):
    items: list[_Dataset] = []


class Calls:
    """Makes calls, for all jobs of a process and any number of threads."""

    def __init__(self, fetcher: Fetcher, pace: Pace | None = None, transports: Transports | None = None) -> None:
        self._fetcher = fetcher
        self.transports = transports or Transports(fetcher.config, pace or Pace())
        self._pace = self.transports.pace
        self._uploader = Uploader(fetcher.config, transports=self.transports)
        self._revisions = Revisions(self._pace)
        self._commits = Commits(self.transports, self._revisions)

    def call(self, to: Destination, verb: AnyVerb, file: int | None, cancel: Cancel) -> Answered:
        """Do what a verb says with the platform `to`; `file` stays the caller's. Raises `PlatformError`."""
        try:
            if isinstance(verb, FetchRepo):
                return self._fetch_repo(to, verb, cancel)
            if isinstance(verb, Materialize) and not to.base_url and (found := self._here(verb, file, cancel)):
                return Answered(found)
            return Answered(self._call(Api(to, self.transports, self._pace), to, verb, file, cancel))
        except UploadError as error:
            raise of_upload(error) from None
        except ModelError as error:
            raise of_model(error) from None

    def renew(self, order: RenewToken, cancel: Cancel) -> TokenRenewed:
        """Have a job's token exchanged for a fresh one."""
        return renew(order, self.transports, cancel)

    def uploads_of(self, to: Destination, cancel: Cancel) -> str:
        """Return where files of a job's repository are stored, below the platform's address; raise `UploadError`.

        "": the platform stores none there.
        """
        try:
            api = Api(to, self.transports, self._pace)
            route = self._revisions.route(api, to.repo, to.opening, cancel)
            return f"{route}/uploads" if route else ""
        except PlatformError as error:
            raise of_platform(error) from None

    def end(self, to: Destination) -> None:
        """Give up what a job began and did not finish."""
        try:
            api = Api(to, self.transports, self._pace)
            self._commits.end(api)
            self._revisions.end(api)
        except (PlatformError, ModelError):  # it had no platform that can be asked: there is nothing to give up
            return

    def _fetch_repo(self, to: Destination, verb: FetchRepo, cancel: Cancel) -> Answered:
        open_api = partial(Api, to, self.transports, self._pace)
        wanted, fetched = fetch_repo(open_api, verb, self._fetcher, cancel)
        return Answered(Located(fetched.snapshot.path, wanted.ref, fetched.snapshot.key), fetched.lease)

    def _here(self, verb: Materialize, file: int | None, cancel: Cancel) -> Materialized | None:
        config = self._fetcher.config
        return materialize_here((config.root, *config.lower), verb, _given(file), cancel)

    def _keep(self, to: Destination, verb: KeepContent, fd: int, cancel: Cancel) -> Done:
        order = Upload(0, msgspec.structs.replace(to, repo=""), verb.ref, verb.length)
        stored = self._uploader.upload(order, fd, Journal(None), cancel, _untold)
        return Done({"blake3": stored.blake3})

    def _call(self, api: Api, to: Destination, verb: AnyVerb, file: int | None, cancel: Cancel) -> object:
        match verb:
            case BeginCommit():
                return self._commits.begin(api, verb, cancel)
            case CommitFile():
                return self._commits.send(api, verb, to, _given(file), cancel)
            case FinishCommit():
                return self._commits.finish(api, verb, cancel)
            case AbortCommit():
                return self._commits.abort(api, verb, cancel)
            case ReadMetadata() | WriteMetadata():
                return _metadata(api, verb, cancel)
            case Materialize():
                return materialize(api, verb, _given(file), self.transports.downloads, cancel)
            case KeepContent():
                return self._keep(to, verb, _given(file), cancel)
            case FindDataset():
                return FoundDataset(_found(api, verb.owner, verb.name, cancel))
            case PublishDataset():
                return _publish_dataset(api, verb, cancel)
            case PostJson():
                return _post(api, to, verb, cancel)
            case FetchRepo():
                raise PlatformError("invalid", "a repository is no request of its own")
            case _:
                assert_never(verb)


def _untold(done: int, total: int) -> None:
    """Tell nobody how far an upload is."""


def _given(file: int | None) -> int:
    if file is None:
        raise PlatformError("invalid", "no file came with it")
    return file


def _metadata(api: Api, verb: ReadMetadata | WriteMetadata, cancel: Cancel) -> Metadata:
    route = f"{repo_route(verb.repo)}/metadata"
    if isinstance(verb, WriteMetadata):
        return api.read(api.ask("PUT", route, {"metadata": verb.metadata}, cancel=cancel), Metadata)
    reply = api.ask("GET", route, cancel=cancel, accepted=(404,))
    return Metadata() if reply.status == 404 else api.read(reply, Metadata)


def _post(api: Api, to: Destination, verb: PostJson, cancel: Cancel) -> Posted:
    url = to.targets.get(verb.target, "")
    if not url:
        known = ", ".join(f"`{name}`" for name in sorted(to.targets)) or "none"
        raise PlatformError("invalid", f"the job brought no URL for `{verb.target[:100]}`; there are: {known}")
    reply = api.ask("POST", url, verb.document, cancel=cancel)
    try:
        said = documented(msgspec.json.decode(reply.content or b"{}"))
    except (msgspec.MsgspecError, RecursionError):  # whoever is posted to need say nothing
        said = {}
    return Posted(reply.status, said)


# --- data sets --------------------------------------------------------------------------------------------------------


def _found(api: Api, owner: str, name: str, cancel: Cancel) -> dict[str, Any] | None:
    listed = api.read(api.ask("GET", f"/api/v1/datasets?{urlencode({'owner': owner})}", cancel=cancel), _Datasets)
    found = next((each for each in listed.items if each.name == name), None)
    return None if found is None else msgspec.to_builtins(found)


def _publish_dataset(api: Api, verb: PublishDataset, cancel: Cancel) -> PublishedDataset:
    there = _found(api, verb.owner, verb.name, cancel)
    if there is None:
        document = {"owner": verb.owner, "name": verb.name, "visibility": verb.visibility, **verb.document}
        reply = api.ask("POST", "/api/v1/datasets", document, cancel=cancel, accepted=(409,))
        if reply.status != 409:
            return PublishedDataset(str(api.read(reply, dict[str, Any]).get("id", "")), existed=False)
        there = _found(api, verb.owner, verb.name, cancel)  # somebody made it meanwhile
    if there is None:
        text = f"`{verb.owner}/{verb.name}` is somebody else's: `{api.shown}` has it, and does not show it"
        raise PlatformError("invalid", text, status=409)
    document = {**verb.document, "visibility": verb.visibility}
    api.ask("PATCH", f"/api/v1/datasets/{there['id']}", document, cancel=cancel)
    return PublishedDataset(str(there["id"]), existed=True)
