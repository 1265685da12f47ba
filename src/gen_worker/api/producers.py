"""What the handlers of producers are given: endpoints that make models or data sets rather than answers."""

import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from gen_worker.api.context import RequestContext
from gen_worker.api.decorator import Kind
from gen_worker.api.errors import ArtifactTransferError, ValidationError
from gen_worker.api.output_streams import OutputStream
from gen_worker.api.platform import NoPlatformError, Platform
from gen_worker.api.publishing import (
    Artifact,
    SavedContents,
    checked_tags,
    listed,
    memory_content,
    named_paths,
    open_content,
    publish,
)
from gen_worker.api.types import Asset, Compute, Tensors
from gen_worker.outputs import Repository, safe_ref
from gen_worker.wire.platform import (
    SKIPPED,
    Answer,
    FetchRepo,
    FindDataset,
    KeepContent,
    Materialize,
    PublishDataset,
    ReadMetadata,
    Verb,
    WriteMetadata,
)

CHECKPOINT_FOLDER = ".gen-worker-run/checkpoints"
DATASET_FOLDER = "gen_worker_datasets"
_FORMATS = ("safetensors", "bin", "pt", "pth", "ckpt")
_REPO_HINTS = ("destination_repo", "repo", "output_repo")
_JOB_HINTS = ("job_id", "conversion_job_id", "training_job_id")
_DATASET_KEYS = ("__cozy_kind__", "__cozy_dataset_info__", "__cozy_snapshot_manifest__")
Kept = TypeVar("Kept")


class ProducerContext(RequestContext):
    """The part that all producers share."""

    __slots__ = {
        "__weakref__": None,
        "_contents": None,
        "_platform": None,
        "_publishes": None,
        "_remote": None,
        "_repo_spec": None,
        "compute": "The machine that the job was given, as far as whoever sent it says.",
        "destination": "The payload's `destination`, as a dict: what is published to where nothing else is named.",
        "hf_token": "The token of `HF_TOKEN` in `run` and `serve`; empty on a platform.",
        "source": "The payload's `source`, as a dict.",
        "source_path": "Where the source lies on this machine; None without one.",
    }

    def __init__(
        self,
        *,
        hf_token: str = "",
        compute: Compute | None = None,
        source_info: Mapping[str, Any] | None = None,
        source: Mapping[str, Any] | None = None,
        source_path: str | None = None,
        destination_info: Mapping[str, Any] | None = None,
        execution_hints: Mapping[str, object] | None = None,
        platform: Platform | None = None,
        publishes: bool = True,
        remote: bool = False,
        job_id: str = "",
        **request: Any,
    ) -> None:
        """`publishes`: else what would be published is said and not done; `remote`: files go to a store."""
        hints = execution_hints or {}
        super().__init__(job_id=job_id or _hint(hints, _JOB_HINTS), execution_hints=execution_hints, **request)
        self._platform = platform
        self._publishes = publishes
        self._remote = remote
        self._repo_spec: dict[str, str] = {}
        self._contents = SavedContents()
        weakref.finalize(self, self._contents.close)
        self.hf_token = hf_token
        self.compute = compute or Compute()
        self.source = dict(source_info or source or {})
        self.source_path = source_path
        self.destination = dict(destination_info or {})
        if (repo := _hint(hints, _REPO_HINTS)) and "ref" not in self.destination:
            self.destination["ref"] = repo

    # --- files --------------------------------------------------------------------------------------------------------

    def open_output_stream(
        self, ref: str, *, create: bool = False, expected_size_bytes: int | None = None
    ) -> OutputStream[Asset]:
        """Open a file to be written piece by piece; with `create` a name that is taken is refused at the end."""

        def keep(path: str, sha256: str, blake3: str) -> Asset:
            asset = self._save_file(ref, path, create)
            return msgspec.structs.replace(asset, sha256=sha256, blake3=blake3, stream_mode=self._mode)

        return self._stream(ref, keep, expected_size_bytes)

    def open_checkpoint_stream(
        self,
        ref: str,
        *,
        format: str | None = None,
        expected_size_bytes: int | None = None,
        produced_by_kind: str | None = None,
        step_number: int | None = None,
        epoch_number: int | None = None,
        output_kind: str | None = None,
        target_dtype: str | None = None,
        flavor: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> OutputStream[Tensors]:
        """Open a checkpoint to be written piece by piece; `finalize` saves it as `save_checkpoint` does."""
        facts = _facts(
            produced_by_kind, step_number, epoch_number, output_kind, target_dtype, flavor, dict(attributes or {})
        )

        def keep(path: str, sha256: str, blake3: str) -> Tensors:
            asset = self.save_file(ref, path)
            self._contents.keep(asset.ref, open_content(path), blake3, facts)
            return _tensors(asset, format, sha256=sha256, blake3=blake3, stream_mode=self._mode)

        return self._stream(ref, keep, expected_size_bytes)

    def save_checkpoint(
        self,
        ref: str,
        local_path: str | os.PathLike[str],
        format: str | None = None,
        *,
        produced_by_kind: str | None = None,
        step_number: int | None = None,
        epoch_number: int | None = None,
        output_kind: str | None = None,
        target_dtype: str | None = None,
        flavor: str | None = None,
        attributes: Mapping[str, Any] | None = None,
    ) -> Tensors:
        """Keep a file of weights under a name; what is said of it goes into the revision that it is published in.

        Without a `format` the extension tells: safetensors, bin, pt, pth or ckpt.
        """
        asset = self.save_file(ref, local_path)
        facts = _facts(
            produced_by_kind, step_number, epoch_number, output_kind, target_dtype, flavor, dict(attributes or {})
        )
        self._contents.keep(asset.ref, open_content(os.fspath(local_path)), asset.blake3 or "", facts)
        return _tensors(asset, format, blake3=self._contents.of(asset.ref).blake3)

    def save_checkpoint_bytes(
        self,
        ref: str,
        data: bytes | bytearray,
        format: str | None = None,
        *,
        produced_by_kind: str | None = None,
        step_number: int | None = None,
        epoch_number: int | None = None,
        output_kind: str | None = None,
        target_dtype: str | None = None,
        flavor: str | None = None,
    ) -> Tensors:
        """Keep weights that are in memory under a name, as `save_checkpoint`."""
        asset = self.save_bytes(ref, data)
        facts = _facts(produced_by_kind, step_number, epoch_number, output_kind, target_dtype, flavor, {})
        content = open_content(asset.local_path) if asset.local_path else memory_content(data)
        self._contents.keep(asset.ref, content, asset.blake3 or "", facts)
        return _tensors(asset, format, blake3=self._contents.of(asset.ref).blake3)

    def _whither(self) -> dict[str, Any]:
        """Have files go into the destination's repository, where there is a platform and the job has a name."""
        ref = str(self.destination.get("ref") or "")
        if not self._remote or not ref or not self._job_id:
            return {}
        try:
            return {"into": Repository(_repo(ref), {"job_id": self._job_id, **self._repo_spec})}
        except ValidationError:  # a destination that is no repository of the platform's
            return {}

    @property
    def _mode(self) -> Any:
        return "presigned" if self._remote else "local_fallback"

    def _stream(
        self, ref: str, keep: Callable[[str, str, str], Kept], expected_size_bytes: int | None
    ) -> OutputStream[Kept]:
        return OutputStream(
            safe_ref(ref),
            keep,
            mode=self._mode,
            tell=partial(self._emit, "request.upload_progress"),
            check=self.raise_if_cancelled,
            expected_size_bytes=expected_size_bytes,
        )

    # --- the platform -------------------------------------------------------------------------------------------------

    def set_repo_spec(
        self,
        *,
        kind: str = "",
        library_name: str = "",
        model_family: str = "",
        class_name: str = "",
        adapter_for_checkpoint_group: str = "",
        adapter_for_family: str = "",
    ) -> None:
        """Say what the destination's repository is; told with everything that is published from now on."""
        given = {
            "kind": kind,
            "library_name": library_name,
            "model_family": model_family,
            "class_name": class_name,
            "adapter_for_checkpoint_group": adapter_for_checkpoint_group,
            "adapter_for_family": adapter_for_family,
        }
        self._repo_spec = {name: value for name, value in given.items() if value}

    def publish_repo_revision(
        self,
        *,
        destination_repo: str = "",
        artifact_refs: Mapping[str, Artifact] | Sequence[Artifact] | None = None,
        metadata: Mapping[str, Any] | None = None,
        create_if_missing: bool = True,
        destination_repo_tags: Sequence[str] | None = None,
        source_repo: str = "",
        source_version_id: str = "",
        target_version_id: str = "",
        snapshot_manifest: Sequence[Mapping[str, Any]] | None = None,
        relationship_kind: str = "import",
        auto_create_external_parent: bool = True,
    ) -> dict[str, Any]:
        """Make a revision of `owner/name` out of saved checkpoints, or of contents that the platform has.

        `artifact_refs` are refs or what saving returned: a list, or a mapping of paths in the repository to them.
        Without a repository or tags those of the destination are taken. Returns {ok, destination_repo, revision_id,
        tags, …}; {ok: false, skipped: true, reason} where the job has no platform, {stubbed: true, …} where nothing is
        published from.
        """
        repo = _repo(destination_repo or str(self.destination.get("ref") or ""))
        tags = checked_tags(destination_repo_tags or self.destination.get("tags") or [])
        contents = listed(snapshot_manifest or [])
        paths = named_paths(artifact_refs or {})
        if not self._publishes:
            return self._stub(repo, sorted({*paths, *contents}), tags)
        contents |= {path: self._contents.of(ref) for path, ref in paths.items()}
        if not contents:
            raise ValidationError("a revision has files: name saved ones with `artifact_refs`")
        checkpoints = {path: facts for path, ref in paths.items() if (facts := self._contents.facts(ref))}
        known = dict(metadata or {}) | ({"checkpoints": checkpoints} if checkpoints else {})
        parent = {
            "parent_repo": source_repo,
            "parent_checkpoint_id": source_version_id,
            "relationship_kind": relationship_kind,
        }
        document: dict[str, Any] = {
            "mode": "replace",
            "tags": [{"tag": tag} for tag in tags],
            "metadata": known | ({"target_version_id": target_version_id} if target_version_id else {}),
            "create_if_missing": create_if_missing,
            **(
                {"lineage": [parent], "auto_create_external_parent": auto_create_external_parent} if source_repo else {}
            ),
            **self._repo_spec,
        }
        if self._platform is None:
            return _skipped(destination_repo=repo)
        try:
            revision_id, said = publish(self._platform, repo, contents, document)
        except NoPlatformError:
            return _skipped(destination_repo=repo)
        return {**said, "ok": True, "destination_repo": repo, "revision_id": revision_id, "tags": tags}

    def _stub(self, repo: str, paths: list[str], tags: list[str]) -> dict[str, Any]:
        would = {"destination_repo": repo, "paths": paths, "tags": tags, **self._repo_spec}
        self._say("publish_repo_revision.stubbed", would)
        revision_id = f"stub-{self._request_id}"
        return {"stubbed": True, "destination_repo": repo, "revision_id": revision_id}

    def _say(self, kind: str, would: dict[str, Any]) -> None:
        """Tell that something was not done because nothing may be published from here."""
        self._emit(f"request.{kind}", {"kind": kind, "would_publish": would})

    def read_repo_metadata(self, *, destination_repo: str = "") -> dict[str, Any]:
        """Return what is noted beside a repository: {ok, exists, metadata}."""
        repo = _repo(destination_repo or str(self.destination.get("ref") or ""))
        if not self._publishes:
            return {"ok": True, "stubbed": True, "exists": False, "metadata": {}}
        try:
            found = self._ask(ReadMetadata(repo=repo))
        except NoPlatformError:
            return _skipped(exists=False, metadata={})
        return {"ok": True, "exists": found.exists, "metadata": found.metadata}

    def write_repo_metadata(self, *, destination_repo: str = "", metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Replace what is noted beside a repository; returns {ok, exists, metadata}."""
        repo = _repo(destination_repo or str(self.destination.get("ref") or ""))
        if not self._publishes:
            self._say("write_repo_metadata.stubbed", {"destination_repo": repo, "metadata": dict(metadata)})
            return {"ok": True, "stubbed": True, "exists": False, "metadata": dict(metadata)}
        try:
            found = self._ask(WriteMetadata(repo=repo, metadata=dict(metadata)))
        except NoPlatformError:
            return _skipped(exists=False, metadata={})
        return {"ok": True, "exists": found.exists, "metadata": found.metadata}

    def materialize_blob(self, digest: str, dest: str | os.PathLike[str]) -> Path:
        """Have a content of the platform, `blake3:hex` or `sha256:hex`, at a path; what is there is replaced.

        The file appears under its name when it is whole and verified.
        """
        import tempfile

        path = Path(dest)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, draft = tempfile.mkstemp(prefix=".materializing-", dir=path.parent)
        try:
            self._ask(Materialize(digest=digest if ":" in digest else f"blake3:{digest}"), descriptor)
            os.replace(draft, path)
        except NoPlatformError:
            raise FileNotFoundError(f"`{digest}` is not on this machine, and there is no platform to ask") from None
        finally:
            os.close(descriptor)
            with suppress(FileNotFoundError):
                os.unlink(draft)
        return path

    def _ask(self, verb: Verb[Answer], file: int | None = None) -> Answer:
        if self._platform is None:
            raise NoPlatformError(SKIPPED)
        return self._platform.call(verb, file)

    # --- its beginning and its end ------------------------------------------------------------------------------------

    def _begin(self, payload: msgspec.Struct) -> None:
        """Fill the context from the payload's reserved fields, and have the source on this machine."""
        source, destination = (getattr(payload, name, None) for name in ("source", "destination"))
        if source is not None and hasattr(source, "ref"):
            self.source = msgspec.to_builtins(source)
            if not str(self.source.get("ref") or "").strip():
                raise ValidationError("`source.ref` is empty: name what to start from")
            if self.source_path is None:
                self.source_path = self._located(str(self.source["ref"]).strip())
        if destination is not None and hasattr(destination, "ref"):
            self.destination = msgspec.to_builtins(destination)

    def _located(self, ref: str) -> str:
        try:
            return self._ask(FetchRepo(ref=ref)).path
        except NoPlatformError:
            raise ArtifactTransferError(
                f"the source `{ref}` cannot be fetched from here", "platform", "source"
            ) from None

    def _end(self) -> None:
        self._contents.close()
        if self._platform is not None and hasattr(self._platform, "close"):
            self._platform.close()


class ConversionContext(ProducerContext):
    """The request of a conversion, with folders to work in."""

    __slots__ = ("_checkpoint_root", "_scratch")

    def __init__(self, *, checkpoint_root: str | os.PathLike[str] = CHECKPOINT_FOLDER, **request: Any) -> None:
        super().__init__(**request)
        self._checkpoint_root = Path(checkpoint_root).absolute()
        self._scratch: Path | None = None

    def mktemp(self) -> Path:
        """Make an empty folder that goes away with this context."""
        import shutil
        import tempfile

        if self._scratch is None:
            self._scratch = Path(tempfile.mkdtemp(prefix="gen-worker-"))
            weakref.finalize(self, shutil.rmtree, self._scratch, ignore_errors=True)
        return Path(tempfile.mkdtemp(dir=self._scratch))

    def checkpoint_dir(self, *, key: str) -> Path:
        """Return a folder that outlives this attempt: the same one for every attempt of the job with this key."""
        folder = self._checkpoint_root / safe_ref(self._job_id or self._request_id) / safe_ref(key)
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def copy_unconverted_components(
        self, source: str | os.PathLike[str], out_dir: str | os.PathLike[str], *, skip: Sequence[str] = ()
    ) -> list[Path]:
        """Copy what lies in a model's folder and is not converted; return the paths of the copies in `out_dir`.

        `skip` names the files and folders at its top that are; hidden ones and those that are there stay as they are.
        """
        import shutil

        origin, target = Path(source), Path(out_dir)
        if not origin.is_dir():
            raise FileNotFoundError(f"no folder `{origin}`")
        target.mkdir(parents=True, exist_ok=True)
        passed = {name.strip("/") for name in skip}
        copied: list[Path] = []
        for found in sorted(origin.rglob("*")):
            path = found.relative_to(origin)
            hidden = any(part.startswith(".") for part in path.parts)
            if hidden or path.parts[0] in passed or not found.is_file() or (target / path).exists():
                continue
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(found, target / path)
            copied.append(path)
            self.raise_if_cancelled()
        return copied


class DatasetContext(ProducerContext):
    """The request of an endpoint that makes a data set."""

    __slots__ = ()

    def publish_dataset_revision(
        self,
        *,
        destination_dataset: str,
        features_json: Mapping[str, Any] | str,
        row_artifacts_json: Any = None,
        snapshot_manifest: Sequence[Mapping[str, Any]] | None = None,
        visibility: str = "private",
        kind: str = "",
        dataset_info: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Make `owner/name`, or give it another revision; returns {ok, dataset_id, owner, name, existed}.

        `snapshot_manifest` is [{path, digest, size_bytes}]: contents that were saved, or that the platform has.
        """
        owner, name = _repo(destination_dataset).split("/")
        reserved = (kind or None, dict(dataset_info) if dataset_info else None, list(snapshot_manifest or []) or None)
        named = {key: value for key, value in zip(_DATASET_KEYS, reserved, strict=True) if value is not None}
        document: dict[str, Any] = {"schema": {"features": _features(features_json), **named}}
        if row_artifacts_json is not None:
            document["row_artifacts"] = row_artifacts_json
        if not self._publishes:
            self._say("publish_dataset_revision.stubbed", {"destination_dataset": f"{owner}/{name}", **document})
            return {"ok": True, "stubbed": True, "dataset_id": "", "owner": owner, "name": name, "existed": False}
        try:
            self._send_along(snapshot_manifest or [])
            verb = PublishDataset(owner=owner, name=name, visibility=visibility, document=document)
            found = self._ask(verb)
        except NoPlatformError:
            return _skipped(owner=owner, name=name)
        return {"ok": True, "dataset_id": found.dataset_id, "owner": owner, "name": name, "existed": found.existed}

    def _send_along(self, manifest: Sequence[Mapping[str, Any]]) -> None:
        """Have the platform keep the contents of a manifest that lie on this machine alone."""
        for entry in manifest if not self._remote else ():
            content = self._contents.of_digest(str(entry.get("digest") or "").rpartition(":")[2].lower())
            if content is not None:
                self._ask(KeepContent(ref=safe_ref(str(entry.get("path"))), length=content.size_bytes), content.fd)

    def resolve_dataset(self, ref: str) -> str:
        """Have the files of a data set `owner/name` on this machine and return the folder that they lie in."""
        return _resolved_dataset(self, ref)


class TrainingContext(ProducerContext):
    """The request of a training."""

    __slots__ = ()

    def resolve_dataset(self, ref: str) -> str:
        """Have the files of a data set `owner/name` on this machine and return the folder that they lie in."""
        return _resolved_dataset(self, ref)


def _features(given: Mapping[str, Any] | str) -> dict[str, Any]:
    """Return what the columns of a data set are, given as it is or as JSON."""
    try:
        features = msgspec.json.decode(given) if isinstance(given, str) else given
    except msgspec.DecodeError as error:
        raise TypeError(f"`features_json` is not JSON: {error}") from None
    if not isinstance(features, Mapping):
        raise TypeError(f"`features_json` takes a dict of column to type, got {given!r}")
    return dict(features)


def _resolved_dataset(ctx: ProducerContext, ref: str) -> str:
    owner, name = _repo(ref).split("/")
    try:
        found = ctx._ask(FindDataset(owner=owner, name=name)).dataset
    except NoPlatformError:
        text = f"the data set `{owner}/{name}` is on a platform, and there is none to ask"
        raise NoPlatformError(f"{text}; `gen-worker run` asks one with `--allow-publish`") from None
    if found is None:
        raise ValidationError(f"there is no data set `{owner}/{name}`")
    import tempfile

    folder = Path(tempfile.gettempdir(), DATASET_FOLDER, owner, name)
    folder.mkdir(parents=True, exist_ok=True)
    described = found.get("schema") or found.get("features") or {}
    for entry in described.get(_DATASET_KEYS[2], []) if isinstance(described, dict) else []:
        path = folder / safe_ref(str(entry["path"]))
        if not _is_there(path, entry):
            ctx.materialize_blob(str(entry["digest"]), path)
    return str(folder)


def _is_there(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file of a data set has the bytes that it should have."""
    if not path.is_file() or path.stat().st_size != entry.get("size_bytes"):
        return False
    from blake3 import blake3

    algorithm, _, digits = str(entry["digest"]).rpartition(":")
    return algorithm in ("", "blake3") and blake3(path.read_bytes()).hexdigest() == digits.lower()


# --- small things -----------------------------------------------------------------------------------------------------


def _hint(hints: Mapping[str, object], names: Sequence[str]) -> str:
    """Return the first of some execution hints that says something."""
    return next((str(hints[name]) for name in names if hints.get(name)), "")


def _repo(ref: str) -> str:
    """Return `owner/name` of a ref; raise `ValidationError` for what is none."""
    if not ref.strip():
        raise ValidationError("no `owner/name` is named: give it to the call, or the request a `destination`")
    bare = ref.strip().removeprefix("cozy:").partition("#")[0].partition("@")[0].partition(":")[0]
    owner, slash, name = bare.partition("/")
    if not (slash and owner and name) or "/" in name or {owner, name} & {".", ".."}:
        raise ValidationError(f"`{ref[:200]}` is no `owner/name`")
    return bare


def _skipped(**more: Any) -> dict[str, Any]:
    """Return what is told where there is no platform to publish to."""
    return {"ok": False, "skipped": True, "reason": SKIPPED, **more}


def _facts(
    produced_by_kind: str | None,
    step_number: int | None,
    epoch_number: int | None,
    output_kind: str | None,
    target_dtype: str | None,
    flavor: str | None,
    attributes: dict[str, Any],
) -> dict[str, Any]:
    return {
        "produced_by_kind": produced_by_kind,
        "step_number": step_number,
        "epoch_number": epoch_number,
        "output_kind": output_kind,
        "target_dtype": target_dtype,
        "flavor": flavor,
        "attributes": attributes or None,
    }


def _tensors(asset: Asset, format: str | None, **more: Any) -> Tensors:
    extension = asset.ref.rpartition(".")[2].lower()
    names = ("ref", "owner", "local_path", "size_bytes", "sha256", "blake3", "download_token", "stream_mode")
    known = {name: getattr(asset, name) for name in names} | more
    digest = known["blake3"]
    return Tensors(
        **known,
        format=format or (extension if extension in _FORMATS else "unknown"),
        blob_digest=f"blake3:{digest}" if digest else None,
    )


_CONTEXTS: dict[Kind, type[RequestContext]] = {
    "inference": RequestContext,
    "conversion": ConversionContext,
    "dataset": DatasetContext,
    "training": TrainingContext,
}
_NOTHING = nullcontext()


def begin(ctx: RequestContext, payload: msgspec.Struct) -> AbstractContextManager[None]:
    """Fill a producer's context from the payload and have its source here; what it holds goes with the body's end.

    Blocks for as long as the source takes. Raises `ValidationError` for a source without a ref.
    """
    if not isinstance(ctx, ProducerContext):
        return _NOTHING
    try:
        ctx._begin(payload)
    except BaseException:
        ctx._end()
        raise
    return _ending(ctx)


@contextmanager
def _ending(ctx: ProducerContext) -> Iterator[None]:
    try:
        yield
    finally:
        ctx._end()


def context_class(kind: Kind) -> type[RequestContext]:
    """Return the context that the handlers of an endpoint of this kind receive."""
    return _CONTEXTS[kind]
