"""The routes of Hugging Face's hub that `huggingface_hub` goes by: metadata, listings, files and their redirects."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from gen_worker.testing.answers import Provider, as_json
from gen_worker.testing.contents import Content
from gen_worker.testing.faults import ETag, NoSize
from gen_worker.testing.origin import Answer, Request

PAGE = 1000  # entries of a listing, as there


@dataclass
class _Repo:
    gated: bool
    private: bool
    lfs_from: int
    revisions: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Content]] = field(default_factory=dict)

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.revisions.get(revision)


@dataclass
class HuggingFace(Provider):
    """Repositories of models, each with its branches and commits."""

    repos: dict[str, _Repo] = field(default_factory=dict)

    def add(
        self, name: str, files: Mapping[str, Content], revision: str, *, gated: bool, private: bool, lfs_from: int
    ) -> str:
        """Commit files to a branch and return the commit; it replaces all files of the one before."""
        repo = self.repos.setdefault(name, _Repo(gated, private, lfs_from))
        repo.gated, repo.private, repo.lfs_from = gated, private, lfs_from
        mark = hashlib.sha1("\n".join([name, *repo.commits]).encode())
        for path, content in files.items():
            mark.update(f"{path} {_oid(repo, content)}\n".encode())
        commit = mark.hexdigest()
        repo.commits[commit] = dict(files)
        repo.revisions[revision] = commit
        return commit

    def answer(self, request: Request) -> Answer | None:
        """Answer a request, or return None where it is none of these routes."""
        match request.segments:
            case ("api", "models", owner, name, *rest):
                return self._api(request, f"{owner}/{name}", rest)
            case (owner, name, "resolve", revision, *path) if path:
                return self._resolve(request, f"{owner}/{name}", revision, "/".join(path))
        return None

    # --- metadata -----------------------------------------------------------------------------------------------------

    def _api(self, request: Request, name: str, rest: list[str]) -> Answer:
        repo, refusal = self._seen(request, name)
        if repo is None:
            return refusal
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repo.commit(revision)
        if commit is None:
            return _refusal(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        match rest:
            case [] | ["revision", _]:
                return as_json(request, self._about(request, name, repo, commit))
            case ["tree", _, *folder]:
                return self._tree(request, name, repo, commit, "/".join(folder))
        return _refusal(request, 404, "", "Sorry, we can't find the page you are looking for.")

    def _about(self, request: Request, name: str, repo: _Repo, commit: str) -> dict[str, Any]:
        siblings = []
        for path, content in repo.commits[commit].items():
            sibling: dict[str, Any] = {"rfilename": self.shown(name, path)}
            if request.parameters.get("blobs", "").lower() in ("true", "1"):
                entry = self._entry(name, repo, path, content)
                sibling |= {"size": entry["size"], "blobId": entry["oid"]}
                if lfs := entry.get("lfs"):
                    sibling["lfs"] = {"sha256": lfs["oid"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            siblings.append(sibling)
        return {
            "_id": commit[:24],
            "id": name,
            "modelId": name,
            "author": name.partition("/")[0],
            "sha": commit,
            "private": repo.private,
            "gated": "auto" if repo.gated else False,
            "disabled": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": siblings,
        }

    def _tree(self, request: Request, name: str, repo: _Repo, commit: str, folder: str) -> Answer:
        recursive = request.parameters.get("recursive", "").lower() in ("true", "1")
        below = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, content in repo.commits[commit].items():
            if not path.startswith(below):
                continue
            parts = path.removeprefix(below).split("/")
            for depth in range(1, len(parts) if recursive else min(2, len(parts))):
                inner = below + "/".join(parts[:depth])
                oid = hashlib.sha1(inner.encode()).hexdigest()
                entries.setdefault(inner, {"type": "directory", "oid": oid, "size": 0, "path": inner})
            if recursive or len(parts) == 1:
                entries[path] = self._entry(name, repo, path, content)
        if folder and not entries:
            return _refusal(request, 404, "EntryNotFound", f"{folder} does not exist on {commit}")
        start = int(request.parameters.get("cursor", "0"))
        headers = {}
        if start + PAGE < len(entries):
            here = f"http://{request.headers.get('host', '')}{quote(request.path)}"
            query = f"recursive={str(recursive).lower()}&cursor={start + PAGE}"
            headers["Link"] = f'<{here}?{query}>; rel="next"'
        return as_json(request, list(entries.values())[start : start + PAGE], headers=headers)

    def _entry(self, name: str, repo: _Repo, path: str, content: Content) -> dict[str, Any]:
        size = None if self.faults.take(f"{name}/{path}", NoSize) else content.size
        entry: dict[str, Any] = {"type": "file", "path": self.shown(name, path), "size": size}
        if not _is_lfs(repo, content):
            return entry | {"oid": content.digest("git-sha1")}
        pointer = content.pointer
        lfs = {"oid": content.digest("sha256"), "size": size, "pointerSize": len(pointer)}
        return entry | {"oid": Content(pointer).digest("git-sha1"), "lfs": lfs}

    # --- files --------------------------------------------------------------------------------------------------------

    def _resolve(self, request: Request, name: str, revision: str, path: str) -> Answer:
        repo, refusal = self._seen(request, name)
        if repo is None:
            return refusal
        if repo.gated and (standing := self.access.standing(request)) != "accepted":
            message = f"Access to model {name} is restricted. You must have access to it and be authenticated."
            return _refusal(request, 401 if standing == "anonymous" else 403, "GatedRepo", message)
        commit = repo.commit(revision)
        if commit is None:
            return _refusal(request, 404, "RevisionNotFound", f"Invalid rev id: {revision}")
        content = repo.commits[commit].get(path)
        if content is None:
            return _refusal(request, 404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        return self._file(name, path, repo, commit, content)

    def _file(self, name: str, path: str, repo: _Repo, commit: str, content: Content) -> Answer:
        target, oid = f"{name}/{path}", _oid(repo, content)
        hostile = self.faults.take(target, ETag)
        etag = f'"{hostile.text if hostile else oid}"'
        headers = {"X-Repo-Commit": commit, "ETag": etag, "Accept-Ranges": "bytes"}
        if not _is_lfs(repo, content):
            return Answer(200, target, headers, content)
        headers |= {"X-Linked-Etag": etag, "X-Linked-Size": str(content.size)}
        if self.faults.take(target, NoSize):
            del headers["X-Linked-Size"]
        headers["Location"] = self.cdn.sign(content, target)
        return Answer(302, f"resolve:{target}", headers)

    # --- who sees what ------------------------------------------------------------------------------------------------

    def _seen(self, request: Request, name: str) -> tuple[_Repo | None, Answer]:
        """Return the repository if whoever asks may know that there is one, and else the refusal."""
        standing = self.access.standing(request)
        if standing == "wrong":
            return None, _refusal(request, 401, "", "Invalid credentials in Authorization header")
        repo = self.repos.get(name)
        if repo is None or (repo.private and standing != "accepted"):
            status = 401 if standing == "anonymous" else 404
            return None, _refusal(request, status, "RepoNotFound", "Repository not found")
        return repo, _refusal(request, 404, "", "")


def _is_lfs(repo: _Repo, content: Content) -> bool:
    return content.size >= repo.lfs_from


def _oid(repo: _Repo, content: Content) -> str:
    return content.digest("sha256" if _is_lfs(repo, content) else "git-sha1")


def _refusal(
    request: Request, status: int, code: str, message: str, headers: Mapping[str, str] | None = None
) -> Answer:
    shown = {"X-Error-Code": code} if code else {}
    return as_json(request, {"error": message}, status, {**shown, "X-Error-Message": message, **(headers or {})})
