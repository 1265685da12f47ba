"""The files of a training: a checkpoint a step file, one for the end, and which of them to go on from.

`step-00000010.json` is written last and says what every other file of its checkpoint must be:
`step-00000010.safetensors` has the tensors of its state, `step-00000010/` what the plugin wrote. A checkpoint of which
a byte is missing or is another counts as not there.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gen_worker.trainer.contracts import StatePayload, checkpoint_folder
from gen_worker.trainer.durable import Digest, damage, digest_of, digests_in, publish, sync_all, write_file
from gen_worker.trainer.packing import pack, unpack
from gen_worker.trainer.room import NoRoomError, bytes_in, lacks_room, no_room

FINAL = "final.json"
_STEP = re.compile(r"step-(\d{8,})\.json")
Complain = Callable[[str], None]


class CheckpointError(ValueError):
    """A checkpoint cannot be gone on from; the text says which and why."""


class Resume(NamedTuple):
    """Where a training goes on."""

    step: int
    payload: StatePayload
    checkpoint_dir: str | None
    """What the plugin wrote, where it wrote something."""

    path: Path
    weights: Mapping[str, Any] | None = None
    """Weights to begin with, where there is no more than those."""


class Final(NamedTuple):
    """The end of a training, as its file says it."""

    step: int
    checkpoint: str | None


def step_file(folder: Path, step: int) -> Path:
    """Return where the step file of a step is."""
    return folder / f"step-{step:08d}.json"


def steps_in(folder: Path) -> list[tuple[int, Path]]:
    """Return the step files of a folder, the highest step first."""
    found = [(int(match[1]), path) for path in _listed(folder) if (match := _STEP.fullmatch(path.name))]
    return sorted(found, reverse=True)


def _step_of(path: Path) -> float:
    """Return the step that a file or folder of a checkpoint is of; more than any for another."""
    match = _STEP.fullmatch(path.with_suffix(".json").name)
    return int(match[1]) if match else float("inf")


def _listed(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


# --- written ----------------------------------------------------------------------------------------------------------


class CheckpointFolder:
    """Where the checkpoints of one training go: the `ArtifactWriter` of a folder."""

    def __init__(
        self, checkpoints: Path, request_id: str, samples: "SampleFolder | None" = None, *, keep: int = 0
    ) -> None:
        """With `keep`, so many checkpoints stay at most: the latest ones. 0: all."""
        self.folder = checkpoints
        self._request_id = request_id
        self._samples = samples
        self._keep = keep
        self._bytes = 0  # what the tensors of the latest state take

    def write_checkpoint(self, *, step: int, state_payload: dict[str, Any], trainer: Any, state: Any, ctx: Any) -> str:
        """Keep a state, and what the plugin writes itself; return the step file's path.

        Raises `NoRoomError` where the disk has no room for it; nothing is left of it then.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = step_file(self.folder, step)
        with self._whole_or_not(path):
            self._write(path, step, state_payload, trainer, state, ctx)
        self._drop_before(step)
        return str(path)

    def _write(self, path: Path, step: int, state_payload: dict[str, Any], trainer: Any, state: Any, ctx: Any) -> None:
        document: dict[str, Any] = {"step": step, "request_id": self._request_id}
        files: dict[str, Digest] = {}
        told = self._plugin_files(path, trainer, state=state, step=step, final=False, ctx=ctx)
        if told is not None:
            document["trainer_checkpoint"], files = told
        tensors: dict[str, Any] = {}
        document["state"] = pack(dict(state_payload), tensors, "state")
        if isinstance(state_payload, StatePayload):
            document["runtime"] = pack(state_payload.runtime, tensors, "runtime")
        if tensors:
            self._bytes = sum(each.numel() * each.element_size() for each in tensors.values())
            kept = _save_tensors(tensors, path.with_suffix(".safetensors"))
            files[kept.name] = digest_of(kept)
        _write_document(path, {**document, "files": files})

    @contextmanager
    def _whole_or_not(self, path: Path) -> Iterator[None]:
        """Have nothing left of a checkpoint that could not be written; one that was there before stays."""
        try:
            yield
        except Exception as error:
            full = lacks_room(error, self.folder)
            left = [each for each in _belonging_to(path) if each.name.startswith(".") or not path.exists()]
            before = [bytes_in(_belonging_to(kept)) for _, kept in steps_in(self.folder)[:1]]
            needed = max(self._bytes, bytes_in(left), *before)
            for each in left:
                _remove(each)
            if full and not isinstance(error, NoRoomError):
                raise no_room(path, needed) from None  # whoever wrote has done nothing wrong
            raise

    def _drop_before(self, step: int) -> None:
        """Remove the checkpoints that are too many, now that a later one is whole."""
        if self._keep <= 0:
            return
        kept = [at for at, _ in steps_in(self.folder) if at <= step][: self._keep]
        stale = [path for path in self.folder.glob("step-*") if _step_of(path) < kept[-1]]
        for path in sorted(stale, key=lambda path: path.suffix != ".json"):  # without it the rest is no checkpoint
            _remove(path)

    def write_samples(self, *, step: int, state: Any, ctx: Any) -> list[str]:
        """Have the plugin make samples, where it can and somebody wants some."""
        return [] if self._samples is None else self._samples.write(step=step, state=state, ctx=ctx)

    def finalize(self, *, state_payload: dict[str, Any], trainer: Any, state: Any, ctx: Any) -> str | None:
        """Keep what the plugin writes at the end, and say where it is; without such a hook, the last state is it."""
        self.folder.mkdir(parents=True, exist_ok=True)
        step = int(state_payload.runtime["step"]) if isinstance(state_payload, StatePayload) else 0  # type: ignore[index]
        path = self.folder / FINAL
        with self._whole_or_not(path):
            told = self._plugin_files(path, trainer, state=state, step=step, final=True, ctx=ctx)
            document: dict[str, Any] = {"step": step, "request_id": self._request_id}
            if told is not None:
                document["trainer_checkpoint"], files = told
                checkpoint = str(document["trainer_checkpoint"].get("primary_path") or checkpoint_folder(path))
            else:
                checkpoint = self.write_checkpoint(
                    step=step, state_payload=state_payload, trainer=None, state=state, ctx=ctx
                )
                files = {Path(checkpoint).name: digest_of(Path(checkpoint))}
            _write_document(path, {**document, "final_checkpoint": checkpoint, "files": files})
        return checkpoint

    def _plugin_files(self, path: Path, trainer: Any, **asked: Any) -> tuple[dict[str, Any], dict[str, Digest]] | None:
        """Have the plugin write into a folder of its own; return what it says, with where the files are then."""
        hook = getattr(trainer, "save_checkpoint", None)
        if hook is None:
            return None
        path.unlink(missing_ok=True)  # what it says is of other files from now on
        folder = checkpoint_folder(path)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        told = hook(output_dir=str(folder), **asked)
        if told is not None and not isinstance(told, Mapping):
            raise TypeError(f"`save_checkpoint` returns a mapping with `primary_path`, not {type(told).__name__}")
        sync_all(folder)
        files = {f"{folder.name}/{name}": digest for name, digest in digests_in(folder).items()}
        return json.loads(json.dumps(dict(told or {}), default=str)), files


def _belonging_to(path: Path) -> list[Path]:
    """Return what there is of a checkpoint with this step file, complete or not."""
    stem = path.stem
    return [each for each in _listed(path.parent) if each.name.removeprefix(".").partition(".")[0] == stem]


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _save_tensors(tensors: Mapping[str, Any], path: Path) -> Path:
    from safetensors.torch import save_file

    seen: set[int] = set()
    apart: dict[str, Any] = {}
    for name, tensor in tensors.items():
        value = tensor.detach().cpu().contiguous()
        if (place := value.untyped_storage().data_ptr()) in seen:  # a file of tensors has no two that share memory
            value = value.clone()
        seen.add(place)
        apart[name] = value
    part = path.with_name(f".{path.name}.part")
    save_file(apart, part)
    return publish(part, path)


def _write_document(path: Path, document: dict[str, Any]) -> Path:
    content = json.dumps({**document, "digest": _digest(document)}, indent=1).encode()
    return write_file(path, content + b"\n")


def _digest(document: Mapping[str, Any]) -> str:
    plain = {key: value for key, value in document.items() if key != "digest"}
    return hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


class SampleFolder:
    """Where the samples of one training go: a JSON file for each prompt, with what the plugin's `sample` returned.

    The hook is optional: `sample(*, prompts, seed, step, state, output_dir, ctx)` returns one mapping for each prompt,
    and may write files into `output_dir`.
    """

    def __init__(self, folder: Path, trainer: Any, prompts: list[dict[str, Any]], seed: int, request_id: str) -> None:
        self.folder = folder
        self._hook = getattr(trainer, "sample", None)
        self._prompts = prompts
        self._seed = seed
        self._request_id = request_id

    def write(self, *, step: int, state: Any, ctx: Any) -> list[str]:
        """Write the samples of a step; return the paths of their files. Raises `NoRoomError`."""
        if self._hook is None:
            return []
        self.folder.mkdir(parents=True, exist_ok=True)
        made = self._hook(
            prompts=self._prompts, seed=self._seed, step=step, state=state, output_dir=str(self.folder), ctx=ctx
        )
        if made is not None and (isinstance(made, str | Mapping) or not isinstance(made, Iterable)):
            raise TypeError(
                f"`sample` returns a mapping for each prompt, one after the other, not {type(made).__name__}"
            )
        paths = []
        for number, sample in enumerate(made or ()):
            prompt = self._prompts[number] if number < len(self._prompts) else None
            document = {"request_id": self._request_id, "step": step, "prompt": prompt, "sample": sample}
            content = json.dumps(document, indent=1, default=str).encode()
            paths.append(str(self._keep(self.folder / f"step-{step:08d}-{number:02d}.json", content + b"\n")))
        return paths

    def _keep(self, path: Path, content: bytes) -> Path:
        try:
            return write_file(path, content)
        except OSError as error:
            full = lacks_room(error, self.folder)
            _remove(path.with_name(f".{path.name}.part"))
            if full:
                raise no_room(path, len(content)) from None
            raise


def link_checkpoint(path: Path, folder: Path) -> Path:
    """Have a checkpoint's files in another folder of the same disk, in the place of what it has; return where it is.

    `path` is a step file, which takes along what belongs to it, or a folder. Raises `OSError`.
    """
    path.stat()
    part = folder.with_name(f".{folder.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    for each in (path,) if path.is_dir() else path.parent.glob(f"{path.stem}*"):
        if each.is_dir():
            shutil.copytree(each, part / each.name, copy_function=os.link)
        else:
            os.link(each, part / each.name)
    shutil.rmtree(folder, ignore_errors=True)
    part.rename(folder)
    return folder / path.name


# --- read back --------------------------------------------------------------------------------------------------------


def latest(folder: Path, request_id: str, complain: Complain) -> Resume | None:
    """Return the highest checkpoint of a training that is whole; each one that is not is complained of."""
    for _, path in steps_in(folder):
        try:
            return read_checkpoint(path, request_id)
        except CheckpointError as error:
            complain(str(error))
    return None


def read_checkpoint(path: Path, request_id: str = "") -> Resume:
    """Return what a step file has; raise `CheckpointError` where it, or a file that it names, is not as it was.

    With a request's id, so is one of another training.
    """
    document = _document(path)
    if request_id and document.get("request_id") != request_id:
        raise CheckpointError(f"`{path}` is passed over: it is of another training, `{document.get('request_id')}`")
    if wrong := damage(path.parent, document["files"]):
        raise CheckpointError(f"`{path}` is passed over: {wrong}")
    beside = path.with_suffix(".safetensors")
    tensors = _load_tensors(beside) if beside.name in document["files"] else {}
    try:
        state, runtime = unpack(document["state"], tensors), unpack(document.get("runtime"), tensors)
    except ValueError as error:
        raise CheckpointError(f"`{path}` is passed over: {error}") from None
    own = checkpoint_folder(path)
    return Resume(document["step"], StatePayload(state, runtime), str(own) if own.is_dir() else None, path)


def read_final(folder: Path, request_id: str, complain: Complain) -> Final | None:
    """Return the end of a training where its file is there and whole; else complain, unless there is none."""
    path = folder / FINAL
    if not path.exists():
        return None
    try:
        document = _document(path)
        if document.get("request_id") != request_id:
            raise CheckpointError(f"`{path}` is passed over: it is of another training, `{document.get('request_id')}`")
        if wrong := damage(folder, document["files"]):
            raise CheckpointError(f"`{path}` is passed over: {wrong}")
    except CheckpointError as error:
        complain(str(error))
        return None
    return Final(document["step"], _where(document.get("final_checkpoint"), folder))


def final_named(folder: Path) -> str | None:
    """Return where the end of a training says that what was made is, unverified; None where it has not come there."""
    try:
        return _where(_document(folder / FINAL).get("final_checkpoint"), folder)
    except CheckpointError:
        return None


def _where(told: str | None, folder: Path) -> str | None:
    """Return where a file of a folder is: that may have been moved, or copied, since its path was told."""
    if told is None or Path(told).is_relative_to(folder):
        return told
    parts = Path(told).parts
    tails = (folder.joinpath(*parts[at:]) for at in range(1, len(parts)))
    return next((str(path) for path in tails if path.exists()), told)


def _document(path: Path) -> dict[str, Any]:
    try:
        document: Any = json.loads(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"`{path}` cannot be read: {(error.strerror or str(error)).lower()}") from None
    except ValueError:
        what = "torn" if path.suffix == ".json" else "no step file, no archive of one, and no safetensors file"
        raise CheckpointError(f"`{path}` is passed over: it is {what}") from None
    if isinstance(document, dict) and "step" in document and document.get("digest") == _digest(document):
        return document
    raise CheckpointError(f"`{path}` is passed over: it is damaged")


def _load_tensors(path: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    tensors: dict[str, Any] = load_file(path)
    return tensors
