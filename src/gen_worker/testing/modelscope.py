"""The routes of ModelScope that downloads go by: a repository's listing, and its files."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gen_worker.testing.answers import Provider, as_json
from gen_worker.testing.contents import Content
from gen_worker.testing.faults import NoSize
from gen_worker.testing.origin import Answer, Request

LISTED = 3000  # entries of a listing; those beyond are left out without a word, as there
REDIRECTED_FROM = 1024  # bytes; smaller files come from the hub itself


@dataclass
class _Repo:
    private: bool
    revisions: dict[str, dict[str, Content]] = field(default_factory=dict)


@dataclass
class ModelScope(Provider):
    """Repositories of models, each with its branches."""

    repos: dict[str, _Repo] = field(default_factory=dict)

    def add(self, name: str, files: Mapping[str, Content], revision: str, *, private: bool) -> None:
        """Put files on a branch; they replace those that are there."""
        repo = self.repos.setdefault(name, _Repo(private))
        repo.private = private
        repo.revisions[revision] = dict(files)

    def answer(self, request: Request) -> Answer | None:
        """Answer a request, or return None where it is none of these routes."""
        match request.segments:
            case ("api", "v1", "models", owner, name, "repo", *rest) if rest in ([], ["files"]):
                found = self._files(request, f"{owner}/{name}")
                if isinstance(found, Answer):
                    return found
                route = self._listing if rest else self._file
                return route(request, f"{owner}/{name}", found)
        return None

    def _files(self, request: Request, name: str) -> dict[str, Content] | Answer:
        standing = self.access.standing(request)
        repo = self.repos.get(name)
        if standing == "wrong":
            return _refusal(request, 401, "invalid token")
        if repo is None or (repo.private and standing != "accepted"):
            return _refusal(request, 404, f"model {name} is not found")
        revision = request.parameters.get("Revision", "master")
        return repo.revisions.get(revision) or _refusal(request, 404, f"revision {revision} is not found")

    def _listing(self, request: Request, name: str, files: dict[str, Content]) -> Answer:
        root = request.parameters.get("Root", "").strip("/")
        recursive = request.parameters.get("Recursive", "").lower() == "true"
        below = f"{root}/" if root else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, content in files.items():
            if not path.startswith(below):
                continue
            parts = path.removeprefix(below).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                inner = below + "/".join(parts[:depth])
                entries.setdefault(inner, {"Path": inner, "Name": parts[depth - 1], "Type": "tree", "Size": 0})
            if recursive or len(parts) == 1:
                entries[path] = self._entry(name, path, content)
        data = {"Files": list(entries.values())[:LISTED]}
        return as_json(request, {"Code": 200, "Success": True, "Message": "success", "Data": data})

    def _entry(self, name: str, path: str, content: Content) -> dict[str, Any]:
        shown = self.shown(name, path)
        entry: dict[str, Any] = {
            "Path": shown,
            "Name": shown.rpartition("/")[2],
            "Type": "blob",
            "Size": content.size,
            "Sha256": content.digest("sha256"),
            "Revision": hashlib.sha1(content.digest("sha256").encode()).hexdigest(),
        }
        if self.faults.take(f"{name}/{path}", NoSize):
            del entry["Size"]
        return entry

    def _file(self, request: Request, name: str, files: dict[str, Content]) -> Answer:
        path = request.parameters.get("FilePath", "")
        content = files.get(path)
        if content is None:
            return _refusal(request, 404, f"file {path} is not found")
        target = f"{name}/{path}"
        if content.size < REDIRECTED_FROM:
            return Answer(200, target, {"ETag": f'"{content.digest("sha256")}"'}, content)
        return Answer(302, f"resolve:{target}", {"Location": self.cdn.sign(content, target)})


def _refusal(request: Request, status: int, message: str) -> Answer:
    return as_json(request, {"Code": 10010000000 + status, "Success": False, "Message": message}, status)
