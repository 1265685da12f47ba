"""The routes of Civitai that downloads go by: a model, a version of it, and the files of that."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gen_worker.testing.answers import Provider, as_json
from gen_worker.testing.contents import Content
from gen_worker.testing.faults import NoSize
from gen_worker.testing.origin import Answer, Request


@dataclass
class _Version:
    model: str
    files: dict[str, Content]
    gated: bool


@dataclass
class Civitai(Provider):
    """Models by their numbers, each with its versions, the last added first."""

    versions: dict[str, _Version] = field(default_factory=dict)

    def add(self, model: str, version: str, files: Mapping[str, Content], *, gated: bool) -> None:
        """Add a version of a model; `gated`: its files need the token, what is said of it does not."""
        self.versions = {version: _Version(model, dict(files), gated), **self.versions}

    def answer(self, request: Request) -> Answer | None:
        """Answer a request, or return None where it is none of these routes."""
        match request.segments:
            case ("api", "v1", "models", model):
                versions = [
                    self._about(request, number) for number, each in self.versions.items() if each.model == model
                ]
                if not versions:
                    return as_json(request, {"error": f"No model with id {model}"}, 404)
                about = {"id": int(model), "name": f"model {model}", "type": "Checkpoint", "nsfw": False}
                return as_json(request, {**about, "modelVersions": versions})
            case ("api", "v1", "model-versions", version):
                if version not in self.versions:
                    return as_json(request, {"error": f"Model not found: {version}"}, 404)
                return as_json(request, self._about(request, version))
            case ("api", "download", "models", version):
                return self._download(request, version)
        return None

    def _about(self, request: Request, number: str) -> dict[str, Any]:
        version = self.versions[number]
        files = [
            self._file(request, number, at, path, content) for at, (path, content) in enumerate(version.files.items())
        ]
        return {"id": int(number), "modelId": int(version.model), "name": f"v{number}", "files": files}

    def _file(self, request: Request, number: str, at: int, path: str, content: Content) -> dict[str, Any]:
        model = self.versions[number].model
        safe = path.endswith(".safetensors")
        url = f"http://{request.headers.get('host', '')}/api/download/models/{number}?type=Model&file={at}"
        about: dict[str, Any] = {
            "id": int(number) * 100 + at,
            "name": self.shown(model, path),
            "type": "Model",
            "sizeKB": content.size / 1024,
            "primary": at == 0,
            "metadata": {"format": "SafeTensor" if safe else "PickleTensor"},
            "pickleScanResult": "Success",
            "hashes": {algorithm.upper(): content.digest(algorithm).upper() for algorithm in ("sha256", "blake3")},
            "downloadUrl": url,
        }
        if self.faults.take(f"{model}/{path}", NoSize):
            del about["sizeKB"]
        return about

    def _download(self, request: Request, number: str) -> Answer:
        version = self.versions.get(number)
        at = request.parameters.get("file", "0")
        if version is None or not at.isdigit() or int(at) >= len(version.files):
            return as_json(request, {"error": "File not found"}, 404)
        standing = self.access.standing(request)
        if standing == "wrong" or (version.gated and standing != "accepted"):
            message = "The creator of this asset requires you to be logged in to download it"
            return as_json(request, {"error": "Unauthorized", "message": message}, 403 if standing == "denied" else 401)
        path, content = list(version.files.items())[int(at)]
        target = f"{version.model}/{path}"
        return Answer(307, f"resolve:{target}", {"Location": self.cdn.sign(content, target)})
