"""The routes by which files come and go: jobs' uploads, callers' files, outputs, models.

A job's uploads go by its token, and count only while its attempt is the one that is live. Everything that is read goes
by signed URLs.
"""

from collections.abc import Callable
from time import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from gen_worker.orchestrator.files import CALLER, HELD, FileStore, Filling, StoredFile, checked_name
from gen_worker.orchestrator.http import FileContent, Json, Threads, answering, document_of, length_of, pieces
from gen_worker.orchestrator.offered import OfferedModels
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.signing import JobClaims, SignatureError, Signer
from gen_worker.wire.scheduler import Snapshot

TOKEN_S = {"inference": 3600.0, "conversion": 24 * 3600.0, "dataset": 24 * 3600.0, "training": 7 * 24 * 3600.0}
"""How long the token of a job is good, by the kind of its function; it counts no longer than its attempt does.

A function of which nobody knows the kind may be a training.
"""
PARTS_S = 6 * 3600.0
READS_S = 24 * 3600.0
_PARTS_BYTES = 2 << 20  # a list of all parts of a file


class _Create(msgspec.Struct):
    ref: str
    blake3: str
    size_bytes: int
    request_id: str = ""
    content_type: str = ""


class _Part(msgspec.Struct):
    part_number: int
    etag: str


class _Complete(msgspec.Struct):
    parts: list[_Part]


class PlaneFiles:
    """What workers are told of files: where models lie, and with which token a job stores its own."""

    def __init__(self, models: OfferedModels, signer: Signer, *, clock: Callable[[], float] = time) -> None:
        self.models = models
        self.signer = signer
        self._clock = clock
        self.kind_of: Callable[[str], str] = lambda function: ""
        """Says of which kind a function is, "" where that is not known; set by whoever looks into projects."""
        self.published: Callable[[str], Snapshot | None] = lambda ref: None
        """Describes what a ref of a repository stands for now; set by whoever keeps repositories."""

    def snapshot(self, ref: str) -> Snapshot | None:
        """Return a model's files with URLs that are good from now on; None for a ref that is not kept here.

        What somebody published under a ref that a folder is offered under, too, is not seen.
        """
        return self.models.snapshot(ref) or self.published(ref)

    def capability(self, request_id: str, attempt: int, tenant: str, function: str) -> str:
        """Return the token with which a worker stores the files of one attempt at a function."""
        now = self._clock()
        exp = int(now + TOKEN_S.get(self.kind_of(function), TOKEN_S["training"]))
        return self.signer.token(JobClaims(request_id=request_id, attempt=attempt, owner=tenant, iat=int(now), exp=exp))


class Transfers:
    """The routes of one store and of the models that are offered beside it."""

    def __init__(
        self,
        store: FileStore,
        models: OfferedModels,
        signer: Signer,
        threads: Threads,
        *,
        base_url: str,
        live_attempt: Callable[[str], int | None],
        whose: Callable[[Request], JobClaims],
    ) -> None:
        """`whose` returns what a request's token allows, that of a job or that of a caller; or raises `Refusal`."""
        self._store = store
        self._models = models
        self._signer = signer
        self._threads = threads
        self._base_url = base_url
        self._live_attempt = live_attempt
        self._whose = whose

    def routes(self) -> list[Route]:
        """Return the routes that check their callers by themselves."""
        uploads = "/api/v1/media/{owner}/uploads"
        return [
            Route(uploads, answering(self._create), methods=["POST"]),
            Route(uploads + "/{upload}/complete", answering(self._complete), methods=["POST"]),
            Route(uploads + "/{upload}", answering(self._abort), methods=["DELETE"]),
            Route("/v1/uploads/{upload}/{number:int}", answering(self._part), methods=["PUT"]),
            Route("/v1/outputs/{request_id}/{attempt:int}/{name:path}", answering(self._output), methods=["GET"]),
            Route("/v1/models/{digest}/{path:path}", answering(self._model), methods=["GET"]),
            Route("/v1/files/{name:path}", answering(self._file), methods=["GET"]),
        ]

    def urls(self, request_id: str, attempt: int) -> dict[str, str]:
        """Return where the files of an attempt are had, by their refs."""
        return {
            name: self._signed("GET", f"/v1/outputs/{request_id}/{attempt}/{name}", READS_S)
            for name in self._store.of_job(request_id, attempt)
        }

    async def receive(self, request: Request) -> Response:
        """Take a caller's file; whoever calls this has checked the caller."""
        name = checked_name(request.path_params["name"])
        filling = await self._threads.run(self._store.receive, name, length_of(request))
        file = await self._filled(request, filling)
        assert isinstance(file, StoredFile)
        url = self._signed("GET", f"/v1/files/{file.name}", READS_S)
        return Json({"url": url, "name": file.name, **_meta(file)}, 201)

    async def remove(self, request: Request) -> Response:
        """Remove a caller's file; whoever calls this has checked the caller."""
        name = request.path_params["name"]
        if not await self._threads.run(self._store.remove, name):
            raise Refusal(404, "not_found", f"there is no file `{name[:100]}`")
        return Response(status_code=204)

    # --- a job's uploads ----------------------------------------------------------------------------------------------

    async def _create(self, request: Request) -> Response:
        claims = self._uploader(request)
        asked: _Create = await document_of(request, _Create)
        digest = asked.blake3.lower()
        name = asked.ref if claims.request_id != CALLER else f"{digest}/{asked.ref}"
        begun = await self._threads.run(self._store.begin, claims, name, digest, asked.size_bytes, asked.content_type)
        if isinstance(begun, StoredFile):
            return Json({"dedup": True, "ref": begun.name, **_meta(begun)})
        urls = [self._signed("PUT", f"/v1/uploads/{begun.id}/{at + 1}", PARTS_S) for at in range(begun.parts)]
        parts = {"part_urls": urls, "part_size": begun.part_bytes, "total_parts": begun.parts}
        return Json({"upload_id": begun.id, **parts})

    async def _part(self, request: Request) -> Response:
        self._check_signature(request)
        upload, number = request.path_params["upload"], request.path_params["number"]
        filling = await self._threads.run(self._store.part, upload, number, length_of(request))
        etag = await self._filled(request, filling)
        return Response(headers={"ETag": f'"{etag}"'})

    async def _complete(self, request: Request) -> Response:
        claims = self._uploader(request)
        asked: _Complete = await document_of(request, _Complete, _PARTS_BYTES)
        etags = [(part.part_number, part.etag) for part in asked.parts]
        file = await self._threads.run(self._store.complete, claims, request.path_params["upload"], etags)
        return Json({"ref": file.name, **_meta(file)})

    async def _abort(self, request: Request) -> Response:
        claims = self._uploader(request)
        await self._threads.run(self._store.abort, claims, request.path_params["upload"])
        return Response(status_code=204)

    def _uploader(self, request: Request) -> JobClaims:
        """Return for whom a file is stored: a job, or a caller who publishes it next."""
        claims = self._whose(request)
        return claims if claims.request_id else msgspec.structs.replace(claims, request_id=CALLER, attempt=HELD)

    async def _filled(self, request: Request, filling: Filling) -> StoredFile | str:
        """Write a body into the store and return what became of it."""
        try:
            async for piece in pieces(request):
                await self._threads.run(filling.write, piece)
            return await self._threads.run(filling.finish)
        finally:
            filling.close()

    def claims(self, request: Request, *, over: bool = False) -> JobClaims:
        """Return what the job's token allows; raise `Refusal` where it is none, or its attempt does not count.

        `over` is for what may be done after an attempt's end as well: to give up what it began.
        """
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise Refusal(401, "unauthorized", "a job shows its token here")
        try:
            claims = self._signer.claims(token.strip(), time())
        except SignatureError as error:
            raise Refusal(401, "expired" if error.expired else "unauthorized", str(error)) from None
        live = self._live_attempt(claims.request_id)
        if live != claims.attempt and not over:
            now = "has ended" if live is None else f"is at attempt {live}"
            text = f"attempt {claims.attempt} of `{claims.request_id}` does not count: the job {now}"
            raise Refusal(409, "stale_attempt", text)
        return claims

    # --- what is read -------------------------------------------------------------------------------------------------

    async def _output(self, request: Request) -> Response:
        self._check_signature(request)
        asked = request.path_params
        return await self._stored(request, asked["request_id"], asked["attempt"], asked["name"])

    async def _file(self, request: Request) -> Response:
        self._check_signature(request)
        return await self._stored(request, "", 0, request.path_params["name"])

    async def _stored(self, request: Request, request_id: str, attempt: int, name: str) -> Response:
        file = await self._threads.run(self._store.find, request_id, attempt, name)
        if file is None:
            raise Refusal(404, "not_found", f"there is no file `{name}`")
        descriptor = await self._threads.run(self._store.open, file)
        return FileContent(request, self._threads, descriptor, file.size_bytes, file.blake3, file.mime_type)

    async def _model(self, request: Request) -> Response:
        self._check_signature(request)
        digest, path = request.path_params["digest"], request.path_params["path"]
        descriptor, file = await self._threads.run(self._models.open, digest, path)
        return FileContent(request, self._threads, descriptor, file.size_bytes, file.blake3)

    def _check_signature(self, request: Request) -> None:
        expires, signature = (request.query_params.get(name, "") for name in ("expires", "signature"))
        path = request.scope["path"]
        try:
            self._signer.check(request.method, path, expires=expires, signature=signature, now=time())
        except SignatureError as error:
            code = "expired" if error.expired else "bad_signature"
            raise Refusal(403, code, str(error), "ask for the job or the file again: it comes with a URL") from None

    def _signed(self, method: str, path: str, lifetime_s: float) -> str:
        return self._base_url + self._signer.sign(method, path, int(time() + lifetime_s))


def _meta(file: StoredFile) -> dict[str, object]:
    return {
        "size_bytes": file.size_bytes,
        "sha256": file.sha256,
        "blake3": file.blake3,
        "mime_type": file.mime_type,
        "media_id": file.blake3[:32],
    }
