"""The routes of workers, of what they offer, and of the models that are offered to them."""

from collections.abc import Awaitable, Callable
from typing import Any, Literal, TypeVar

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from gen_worker.orchestrator import rendering
from gen_worker.orchestrator.http import Json, Routes, document_of
from gen_worker.orchestrator.plane import ControlPlane
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.orchestrator.transfers import PlaneFiles
from gen_worker.orchestrator.views import UnknownWorkerError
from gen_worker.wire.scheduler import ModelOp, ModelOpKind

_OPS = {"download": ModelOpKind.DOWNLOAD, "load": ModelOpKind.LOAD, "unload": ModelOpKind.UNLOAD}
_Found = TypeVar("_Found")


class _Drain(msgspec.Struct):
    deadline_ms: int = 0


class _ModelOrder(msgspec.Struct):
    op: Literal["download", "load", "unload"]
    ref: str
    worker_id: str


class FleetRoutes:
    """The routes of one control plane's workers."""

    def __init__(self, plane: ControlPlane, files: PlaneFiles, schemas: Callable[[str], dict[str, Any]]) -> None:
        self._plane = plane
        self._files = files
        self._schemas = schemas

    def routes(self) -> Routes:
        """Return method, path and handler of each."""
        return [
            ("GET", "/v1/functions", self._functions),
            ("GET", "/v1/workers", self._workers),
            ("POST", "/v1/workers/{worker_id}/drain", self._drain),
            ("GET", "/v1/models", self._models),
            ("POST", "/v1/models", self._model_op),
        ]

    async def _functions(self, _request: Request) -> Response:
        functions = rendering.functions(await self._plane.workers())
        return Json({"functions": [each | self._schemas(each["name"]) for each in functions]})

    async def _workers(self, _request: Request) -> Response:
        return Json({"workers": [rendering.worker(each) for each in await self._plane.workers()]})

    async def _drain(self, request: Request) -> Response:
        asked: _Drain = await document_of(request, _Drain)
        worker_id = request.path_params["worker_id"]
        if not 0 <= asked.deadline_ms < 1 << 53:
            raise Refusal(400, "bad_request", "`deadline_ms` is 0 or more, and below 2^53")
        await _of_worker(self._plane.drain(worker_id, asked.deadline_ms))
        return Json({"worker_id": worker_id, "draining": True}, 202)

    async def _models(self, _request: Request) -> Response:
        workers = await self._plane.workers()
        document = []
        for model in self._files.models.all():
            held = {
                view.worker_id: each.tier.name.lower()
                for view in workers
                for each in view.models
                if each.ref == model.ref
            }
            facts = {"digest": model.digest, "files": len(model.files), "size_bytes": model.size_bytes}
            document.append({"ref": model.ref, **facts, "workers": held})
        return Json({"models": document})

    async def _model_op(self, request: Request) -> Response:
        asked: _ModelOrder = await document_of(request, _ModelOrder)
        snapshot = None if asked.op == "unload" else self._files.snapshot(asked.ref)
        order = ModelOp(op=_OPS[asked.op], ref=asked.ref, snapshot=snapshot)
        await _of_worker(self._plane.model_op(asked.worker_id, order))
        return Json({"op": asked.op, "ref": asked.ref, "worker_id": asked.worker_id}, 202)


async def _of_worker(asking: Awaitable[_Found]) -> _Found:
    try:
        return await asking
    except UnknownWorkerError as error:
        raise Refusal(404, "not_found", str(error)) from None
