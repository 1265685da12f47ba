"""What the routes of a loopback hub share: who may see what, signed URLs, and the answers that they give."""

import json
import os
import threading
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from gen_worker.testing.contents import Content
from gen_worker.testing.faults import Expire, Faults, Name
from gen_worker.testing.origin import Answer, Request

Standing: TypeAlias = Literal["anonymous", "accepted", "denied", "wrong"]


@dataclass
class Access:
    """The tokens there are."""

    token: str
    denied: set[str] = field(default_factory=set)
    """Tokens that are good, but of people who may see nothing that is gated or private."""

    def standing(self, request: Request) -> Standing:
        """Return what the token of a request is worth."""
        token = request.token
        if not token:
            return "anonymous"
        if token in self.denied:
            return "denied"
        return "accepted" if token == self.token else "wrong"


@dataclass
class _Grant:
    content: Content
    target: str
    used: list[Request] = field(default_factory=list)
    expired: bool = False

    @property
    def sent(self) -> int:
        return sum(request.sent for request in self.used)


class Cdn:
    """The routes of the second origin: files by signed URLs, for whoever has one."""

    def __init__(self, faults: Faults) -> None:
        self.url = ""  # known when its origin listens
        self._faults = faults
        self._lock = threading.Lock()
        self._grants: dict[str, _Grant] = {}

    def sign(self, content: Content, target: str) -> str:
        """Return a new URL for a file."""
        signature = os.urandom(16).hex()
        with self._lock:
            self._grants[signature] = _Grant(content, target)
        return f"{self.url}/files/{quote(target.rpartition('/')[2])}?X-Expires=3600&X-Signature={signature}"

    def answer(self, request: Request) -> Answer:
        """Answer a request with the file that its signature stands for, or with 403."""
        with self._lock:
            grant = self._grants.get(request.parameters.get("X-Signature", ""))
            if grant is None:
                return Answer(403, "api:" + request.path)
            if self._faults.take(grant.target, Expire, when=lambda fault: grant.sent >= fault.after):
                grant.expired = True
            if grant.expired:
                return Answer(403, grant.target)
            grant.used.append(request)
        return Answer(200, grant.target, {"ETag": grant.content.etag}, grant.content)


@dataclass
class Provider:
    """What the routes of each provider go by."""

    access: Access
    faults: Faults
    cdn: Cdn

    def answer(self, request: Request) -> Answer | None:
        """Answer a request, or return None where it is none of this provider's routes."""
        raise NotImplementedError

    def shown(self, repo: str, path: str) -> str:
        """Return the name that a listing shows for a file."""
        fault = self.faults.take(f"{repo}/{path}", Name)
        return path if fault is None else fault.path


def as_json(request: Request, value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """Answer with a JSON document."""
    headers = {"Content-Type": "application/json; charset=utf-8", **(headers or {})}
    return Answer(status, f"api:{request.path}", headers, Content(json.dumps(value).encode()))
