"""The routes of the platform's hub: a tag's snapshot, what the snapshot consists of, and signed URLs of its files."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gen_worker.models.wanted import SnapshotFile
from gen_worker.testing.answers import Provider, as_json
from gen_worker.testing.contents import Content, tree_digest
from gen_worker.testing.faults import NoSize
from gen_worker.testing.origin import Answer, Request


@dataclass
class _Snapshot:
    repo: str
    private: bool
    root: dict[str, Content]
    objects: dict[str, tuple[str, dict[str, Content]]]
    """By name: the digest, and the files by their path within the object."""


@dataclass
class Snapshots(Provider):
    """Snapshots by digest, and the tags that name them. Each folder at the top of one is an object of its own."""

    tags: dict[tuple[str, str, str], str] = field(default_factory=dict)
    snapshots: dict[str, _Snapshot] = field(default_factory=dict)

    def add(self, repo: str, files: Mapping[str, Content], tag: str, flavor: str, *, private: bool) -> str:
        """Tag a snapshot of files and return its digest, `blake3:<hex>`."""
        folders: dict[str, dict[str, Content]] = {}
        for path, content in files.items():
            name, slash, inner = path.partition("/")
            if slash:
                folders.setdefault(name, {})[inner] = content
        root = {path: content for path, content in files.items() if "/" not in path}
        objects = {name: (f"blake3:{tree_digest(inner)}", inner) for name, inner in folders.items()}
        digest = f"blake3:{tree_digest(files)}"
        self.snapshots[digest] = _Snapshot(repo, private, root, objects)
        self.tags[repo, tag, flavor] = digest
        return digest

    def signed(self, repo: str, files: Mapping[str, Content], below: str = "") -> list[SnapshotFile]:
        """Return files as an orchestrator describes them, with URLs that carry their own permission."""
        return [
            SnapshotFile(
                path=self.shown(repo, below + path).removeprefix(below),
                size_bytes=content.size,
                blake3=content.digest("blake3"),
                url=self.cdn.sign(content, f"{repo}/{below}{path}"),
            )
            for path, content in files.items()
        ]

    def answer(self, request: Request) -> Answer | None:
        """Answer a request, or return None where it is none of these routes."""
        match request.segments:
            case ("api", "v1", "repos" | "objects", *_):
                if self.access.standing(request) == "wrong":
                    return as_json(request, {"error": "unauthorized"}, 401)
        match request.segments:
            case ("api", "v1", "repos", org, name, "resolve"):
                return self._resolve(request, f"{org}/{name}")
            case ("api", "v1", "repos", org, name, "snapshots", digest, "manifest"):
                return self._manifest(request, f"{org}/{name}", digest)
            case ("api", "v1", "objects", digest, "manifest"):
                return self._object(request, digest)
        return None

    def _resolve(self, request: Request, repo: str) -> Answer:
        tag, flavor = request.parameters.get("tag", "latest"), request.parameters.get("flavor", "")
        digest = self.tags.get((repo, tag, flavor))
        if digest is None or not self._may_see(request, self.snapshots[digest]):
            return as_json(request, {"error": "not_found", "message": f"no {repo}:{tag}"}, 404)
        return as_json(request, {"digest": digest})

    def _manifest(self, request: Request, repo: str, digest: str) -> Answer:
        snapshot = self.snapshots.get(_full(digest))
        if snapshot is None or snapshot.repo != repo or not self._may_see(request, snapshot):
            return as_json(request, {"error": "not_found", "message": f"no {repo}@{digest}"}, 404)
        objects = {name: digest for name, (digest, _) in snapshot.objects.items()}
        files = self._described(repo, snapshot.root)
        return as_json(request, {"snapshot_digest": _full(digest), "objects": objects, "root_files": files})

    def _object(self, request: Request, digest: str) -> Answer:
        for snapshot in self.snapshots.values():
            for name, (each, files) in snapshot.objects.items():
                if each == _full(digest) and self._may_see(request, snapshot):
                    return as_json(
                        request, {"digest": each, "files": self._described(snapshot.repo, files, f"{name}/")}
                    )
        return as_json(request, {"error": "not_found", "message": f"no object {digest}"}, 404)

    def _described(self, repo: str, files: Mapping[str, Content], below: str = "") -> list[dict[str, Any]]:
        described = []
        for path, file in zip(files, self.signed(repo, files, below), strict=True):
            entry = {"path": file.path, "size_bytes": file.size_bytes, "blake3": file.blake3, "url": file.url}
            if self.faults.take(f"{repo}/{below}{path}", NoSize):
                del entry["size_bytes"]
            described.append(entry)
        return described

    def _may_see(self, request: Request, snapshot: _Snapshot) -> bool:
        return not snapshot.private or self.access.standing(request) == "accepted"


def _full(digest: str) -> str:
    return digest if ":" in digest else f"blake3:{digest}"
