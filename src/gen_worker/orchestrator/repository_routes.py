"""The routes of repositories and data sets: a job's, by its token, and callers' of the API."""

from collections.abc import Callable
from datetime import UTC, datetime
from time import time
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gen_worker.models.wanted import SnapshotFile
from gen_worker.orchestrator.bucket import BUCKET, Bucket
from gen_worker.orchestrator.files import FileStore, StoredFile, Upload
from gen_worker.orchestrator.http import FileContent, Json, Threads, answering, document_of
from gen_worker.orchestrator.offered import OfferedModels
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.repositories import Commit, Finalizing, Opening, Operation, Repositories, Revision
from gen_worker.orchestrator.signing import JobClaims, SignatureError, Signer
from gen_worker.wire.scheduler import Snapshot

READS_S = 6 * 3600.0
PARTS_S = 6 * 3600.0
_DOCUMENT_BYTES = 8 << 20  # ten thousand files of a commit, or the schema of a data set


class _Metadata(msgspec.Struct):
    metadata: dict[str, Any] = {}


class _Part(msgspec.Struct):
    part_number: int
    etag: str


class _Complete(msgspec.Struct):
    parts: list[_Part]


class _Transfer(msgspec.Struct):
    mode: str
    bucket: str
    key: str
    size_bytes: int
    blake3: str
    etag: str


class _Transferred(msgspec.Struct):
    transfer: _Transfer


class _Stored(msgspec.Struct):
    path: str
    blake3: str
    size_bytes: int
    request_id: str = ""
    content_type: str = ""


class _Dataset(msgspec.Struct):
    owner: str
    name: str
    dataset_schema: dict[str, Any] = msgspec.field(name="schema")
    visibility: str = "private"
    row_artifacts: Any = None


class _Change(msgspec.Struct):
    dataset_schema: dict[str, Any] = msgspec.field(name="schema")
    visibility: str = ""
    row_artifacts: Any = None


class RepositoryRoutes:
    """Checks its callers by itself: `claims` returns what a request's token allows, or raises `Refusal`.

    With `over=True` it takes the token of an attempt that has ended, too.
    """

    def __init__(
        self,
        repositories: Repositories,
        store: FileStore,
        models: OfferedModels,
        signer: Signer,
        threads: Threads,
        bucket: Bucket,
        *,
        base_url: str,
        claims: Callable[..., JobClaims],
    ) -> None:
        self._repositories = repositories
        self._store = store
        self._models = models
        self._signer = signer
        self._threads = threads
        self._bucket = bucket
        self._base_url = base_url
        self._claims = claims

    def routes(self) -> list[Route]:
        """Return the routes."""
        repo = "/api/v1/repos/{owner}/{name}"
        commits, revisions = repo + "/commits", repo + "/revisions"
        stored = revisions + "/{revision}/uploads"
        named = (
            ("POST", commits, self._begin),
            ("POST", commits + "/{revision}/uploads/{upload}/complete", self._complete),
            ("POST", commits + "/{revision}/finalize", self._finalize),
            ("DELETE", commits + "/{revision}", self._abort),
            ("POST", revisions, self._open),
            ("GET", revisions + "/{revision}", self._state),
            ("POST", stored, self._store_into),
            ("POST", stored + "/{upload}/complete", self._stored),
            ("DELETE", stored + "/{upload}", self._give_up),
            ("POST", revisions + "/{revision}/finalize", self._finalize_opened),
            ("DELETE", revisions + "/{revision}", self._abort),
            ("GET", repo + "/metadata", self._metadata),
            ("PUT", repo + "/metadata", self._set_metadata),
            ("GET", repo + "/resolve", self._resolve),
            ("GET", repo + "/snapshots/{digest}/manifest", self._manifest),
            ("GET", "/api/v1/blobs/{digest}/content", self._blob),
            ("GET", "/api/v1/datasets", self._datasets),
            ("POST", "/api/v1/datasets", self._make_dataset),
            ("PATCH", "/api/v1/datasets/{id}", self._change_dataset),
            ("GET", "/v1/revisions/{owner}/{name}/{revision}/{path:path}", self._file),
        )
        return [Route(path, answering(handler), methods=[method]) for method, path, handler in named]

    # --- commits ------------------------------------------------------------------------------------------------------

    async def _begin(self, request: Request) -> Response:
        claims, repo = self._claims(request), _repo(request)
        commit: Commit = await document_of(request, Commit, _DOCUMENT_BYTES)
        revision, begun = await self._threads.run(self._repositories.begin, claims, repo, commit)
        return Json({"revision_id": revision, "uploads": [self._upload(path, to) for path, to in begun.items()]}, 201)

    def _upload(self, path: str, to: object) -> dict[str, object]:
        if not isinstance(to, Upload):
            return {"path": path, "exists": True}
        urls = [self._signed("PUT", f"/v1/uploads/{to.id}/{at + 1}", PARTS_S) for at in range(to.parts)]
        parts = {"part_urls": urls, "part_size": to.part_bytes, "total_parts": to.parts}
        return {"path": path, "exists": False, "upload_id": to.id, **parts}

    async def _complete(self, request: Request) -> Response:
        claims, repo, path = self._claims(request), _repo(request), request.path_params
        asked: _Complete = await document_of(request, _Complete, _DOCUMENT_BYTES)
        etags = [(part.part_number, part.etag) for part in asked.parts]
        complete = self._repositories.complete
        file = await self._threads.run(complete, claims, repo, path["revision"], path["upload"], etags)
        return Json(_meta(file))

    async def _finalize(self, request: Request) -> Response:
        claims, repo = self._claims(request), _repo(request)
        made = await self._threads.run(self._repositories.finalize, claims, repo, request.path_params["revision"])
        return Json(_finalized([made]))

    async def _abort(self, request: Request) -> Response:
        claims, repo = self._claims(request, over=True), _repo(request)
        await self._threads.run(self._repositories.abort, claims, repo, request.path_params["revision"])
        return Response(status_code=204)

    # --- revisions that are stored into -------------------------------------------------------------------------------

    async def _open(self, request: Request) -> Response:
        claims, repo = self._claims(request), _repo(request)
        opening: Opening = await document_of(request, Opening)
        key, expires = await self._threads.run(self._repositories.open, claims, repo, opening)
        return Json({"session_id": key, "expires_at": datetime.fromtimestamp(expires, UTC).isoformat()}, 201)

    async def _state(self, request: Request) -> Response:
        claims, repo = self._claims(request), _repo(request)
        made = await self._threads.run(self._repositories.state_of, claims, repo, request.path_params["revision"])
        return Json({"state": "open"} if made is None else _finalized(made))

    async def _store_into(self, request: Request) -> Response:
        claims, repo, revision = self._claims(request), _repo(request), request.path_params["revision"]
        asked: _Stored = await document_of(request, _Stored)
        operation = Operation(asked.path, asked.blake3, asked.size_bytes)
        store = self._repositories.store
        begun = await self._threads.run(store, claims, repo, revision, operation, asked.content_type)
        if not isinstance(begun, Upload):
            return Json({"dedup": True, **_meta(begun)})
        return Json({"upload_id": begun.id, "transfer_grant": self._bucket.grant(begun)})

    async def _stored(self, request: Request) -> Response:
        claims, repo, path = self._claims(request), _repo(request), request.path_params
        asked: _Transferred = await document_of(request, _Transferred)
        upload = await self._threads.run(self._store.upload, path["upload"])
        told = asked.transfer
        named = (told.mode, told.bucket, told.key, told.size_bytes, told.blake3)
        if named != ("s3_sdk", BUCKET, upload.id, upload.size_bytes, upload.blake3):
            raise Refusal(400, "wrong_transfer", "`transfer` names another object than the one that keys were lent for")
        etags = [] if upload.done else await self._threads.run(self._bucket.sent, upload, told.etag)
        stored = self._repositories.stored
        file = await self._threads.run(stored, claims, repo, path["revision"], upload.id, etags)
        return Json(_meta(file))

    async def _give_up(self, request: Request) -> Response:
        claims, repo, path = self._claims(request, over=True), _repo(request), request.path_params
        give_up = self._repositories.give_up_upload
        await self._threads.run(give_up, claims, repo, path["revision"], path["upload"])
        return Response(status_code=204)

    async def _finalize_opened(self, request: Request) -> Response:
        claims, repo = self._claims(request), _repo(request)
        asked: Finalizing = await document_of(request, Finalizing, _DOCUMENT_BYTES)
        finalize = self._repositories.finalize_opened
        made = await self._threads.run(finalize, claims, repo, request.path_params["revision"], asked)
        return Json(_finalized(made))

    # --- what there is ------------------------------------------------------------------------------------------------

    async def _metadata(self, request: Request) -> Response:
        found = await self._threads.run(self._repositories.metadata, self._claims(request), _repo(request))
        if found is None:
            raise Refusal(404, "no_such_repo", f"there is no repository `{_repo(request)}`")
        return Json({"exists": True, "metadata": found})

    async def _set_metadata(self, request: Request) -> Response:
        claims, repo = self._claims(request), _repo(request)
        asked: _Metadata = await document_of(request, _Metadata, _DOCUMENT_BYTES)
        await self._threads.run(self._repositories.set_metadata, claims, repo, asked.metadata)
        return Json({"exists": True, "metadata": asked.metadata})

    async def _resolve(self, request: Request) -> Response:
        claims, repo = self._claims(request), _repo(request)
        tag, flavor = (request.query_params.get(name, "") for name in ("tag", "flavor"))
        bare = f"{repo}{f':{tag}' if tag not in ('', 'prod') else ''}{f'#{flavor}' if flavor else ''}"
        found = self._repositories.find(bare)
        if found is not None and found.tenant in ("", claims.owner):
            return Json({"digest": found.digest})
        offered = self._models.snapshot(bare)
        if offered is None:
            raise Refusal(404, "not_found", f"there is no `{bare[:200]}`")
        return Json({"digest": offered.digest})

    async def _manifest(self, request: Request) -> Response:
        claims, repo, digest = self._claims(request), _repo(request), request.path_params["digest"]
        found = self._repositories.by_digest(repo, digest)
        if found is not None and found.tenant in ("", claims.owner):
            return Json({"files": self.snapshot_of(found).files})
        offered = self._models.by_digest(digest)
        if offered is None:
            raise Refusal(404, "not_found", "there is no such snapshot")
        return Json({"files": offered.files})

    def snapshot(self, ref: str) -> Snapshot | None:
        """Describe what a ref stands for with URLs that are good from now on; None for what is not kept here."""
        found = self._repositories.find(ref)
        return None if found is None else self.snapshot_of(found)

    def snapshot_of(self, revision: Revision) -> Snapshot:
        """Describe a revision with URLs that are good from now on."""
        at = f"/v1/revisions/{revision.repo}/{revision.id}"
        files = (
            SnapshotFile(path, file.size_bytes, file.blake3, self._signed("GET", f"{at}/{path}", READS_S))
            for path, file in sorted(revision.files.items())
        )
        return Snapshot(digest=revision.digest, files=tuple(files))

    async def _file(self, request: Request) -> Response:
        expires, signature = (request.query_params.get(name, "") for name in ("expires", "signature"))
        try:
            self._signer.check("GET", request.scope["path"], expires=expires, signature=signature, now=time())
        except SignatureError as error:
            raise Refusal(403, "expired" if error.expired else "bad_signature", str(error)) from None
        asked = request.path_params
        holder = f"{_repo(request)}@{asked['revision']}"
        file = await self._threads.run(self._store.find, holder, -1, asked["path"])
        if file is None:
            raise Refusal(404, "not_found", f"there is no file `{asked['path'][:200]}`")
        descriptor = await self._threads.run(self._store.open, file)
        return FileContent(request, self._threads, descriptor, file.size_bytes, file.blake3, file.mime_type)

    async def _blob(self, request: Request) -> Response:
        claims = self._claims(request)
        digest: str = request.path_params["digest"]
        file = await self._threads.run(self._store.content, digest, claims.owner)
        if file is None:
            raise Refusal(404, "not_found", f"there is no content `{digest[:100]}`")
        descriptor = await self._threads.run(self._store.open, file)
        return FileContent(request, self._threads, descriptor, file.size_bytes, file.blake3)

    # --- data sets ----------------------------------------------------------------------------------------------------

    async def _datasets(self, request: Request) -> Response:
        claims, owner = self._claims(request), request.query_params.get("owner", "")
        return Json({"items": await self._threads.run(self._repositories.datasets, claims, owner)})

    async def _make_dataset(self, request: Request) -> Response:
        claims = self._claims(request)
        asked: _Dataset = await document_of(request, _Dataset, _DOCUMENT_BYTES)
        if not asked.owner or not asked.name:
            raise Refusal(400, "bad_name", "a data set has an owner and a name")
        make = self._repositories.make_dataset
        key = await self._threads.run(
            make, claims, asked.owner, asked.name, asked.visibility, asked.dataset_schema, asked.row_artifacts
        )
        return Json({"id": key, "owner": asked.owner, "name": asked.name}, 201)

    async def _change_dataset(self, request: Request) -> Response:
        claims, key = self._claims(request), request.path_params["id"]
        asked: _Change = await document_of(request, _Change, _DOCUMENT_BYTES)
        change = self._repositories.change_dataset
        await self._threads.run(change, claims, key, asked.dataset_schema, asked.row_artifacts, asked.visibility)
        return Json({"id": key})

    def _signed(self, method: str, path: str, lifetime_s: float) -> str:
        return self._base_url + self._signer.sign(method, path, int(time() + lifetime_s))


def _finalized(made: list[Revision]) -> dict[str, object]:
    checkpoints = [{"checkpoint_id": each.id, "snapshot_digest": each.digest} for each in made]
    return {"state": "finalized", "checkpoints": checkpoints, "snapshot_digest": made[0].digest}


def _meta(file: StoredFile) -> dict[str, object]:
    known = {"ref": file.name, "size_bytes": file.size_bytes, "blake3": file.blake3, "sha256": file.sha256}
    return {**known, "mime_type": file.mime_type, "blob_digest": f"blake3:{file.blake3}", "blob_path": file.name}


def _repo(request: Request) -> str:
    return f"{request.path_params['owner']}/{request.path_params['name']}"
