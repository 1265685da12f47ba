"""One training, in the process that trains: from its job spec to its last file.

What leaves the machine leaves through the job's context: this process has no network and no token.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.api.errors import ArtifactTransferError, AuthError, CanceledError, FatalError, classify
from gen_worker.api.producers import TrainingContext
from gen_worker.api.types import Asset
from gen_worker.trainer.archives import as_one_file, is_archive, unpacked
from gen_worker.trainer.batches import InputError, Repeated, Rows
from gen_worker.trainer.checkpoints import (
    FINAL,
    CheckpointError,
    CheckpointFolder,
    Resume,
    SampleFolder,
    latest,
    read_checkpoint,
    read_final,
)
from gen_worker.trainer.contracts import StatePayload, StepContext, TrainingCanceled
from gen_worker.trainer.durable import digest_of, publish
from gen_worker.trainer.events import EventFile
from gen_worker.trainer.handover import TrainerSubprocessContractV1, read_subprocess_contract
from gen_worker.trainer.loop import run_training_loop, told
from gen_worker.trainer.optimization import seed_everything
from gen_worker.trainer.plugins import load_trainer_plugin
from gen_worker.trainer.spec import Dataset, SpecError, TrainingSpec, asks_to_cancel, read_spec
from gen_worker.wire.platform import Materialize, PostJson

DEFAULT_SEED = 0
QUIET_S = 60.0
_CONTENT = re.compile(r"(?:blake3|sha256):[0-9a-f]{64}")


class TrainingOrder(msgspec.Struct, kw_only=True):
    """What a process is to train: the file that says so, and what only its supervisor knows."""

    contract_path: str
    resume: bool = False
    """Whether to go on from the latest checkpoint there is, or to complete at once where the end is there."""

    stores_files: bool = False
    """Whether checkpoints and samples are stored at the platform."""

    dataset_files: list[Asset] = []
    """What `inputs.dataset_parquet_refs` names; what lies behind a URL is here when the job begins."""

    resume_file: Asset | None = None
    """What `inputs.resume_checkpoint_ref` names."""


class TrainingEnd(msgspec.Struct, kw_only=True):
    """How a training came to its end."""

    step: int
    final_checkpoint: str | None = None
    final_checkpoint_ref: str = ""
    final_checkpoint_sha256: str = ""


def train_as_ordered(ctx: TrainingContext, order: TrainingOrder, base_model: str = "") -> TrainingEnd:
    """Train; raise `CanceledError` when asked to end, `FatalError` beginning with the category of what failed."""
    try:
        contract = read_subprocess_contract(order.contract_path)
        os.environ.update(contract.extra_env)
        spec = read_spec(contract.job_spec_path)
    except (SpecError, OSError, ValueError) as error:
        raise FatalError(f"startup: {error}") from error
    training = _Training(ctx, order, contract, spec)
    done = training.done_already()
    return training.run(base_model) if done is None else done


class _Training:
    def __init__(
        self, ctx: TrainingContext, order: TrainingOrder, contract: TrainerSubprocessContractV1, spec: TrainingSpec
    ) -> None:
        self._ctx = ctx
        self._order = order
        self._contract = contract
        self._spec = spec
        self._checkpoints = Path(contract.checkpoints_dir)
        self._events = EventFile(Path(contract.events_path), spec.request_id)
        self._reporter = EventReporter(ctx, self._events, spec.cancel_file_path)
        self._uploader = PlatformUploader(ctx, spec, self._checkpoints, stores_files=order.stores_files)

    def done_already(self) -> TrainingEnd | None:
        """Return the end of a training that had come to it, None where there is more to do."""
        final = read_final(self._checkpoints, self._spec.request_id, self._warn) if self._order.resume else None
        if final is None:
            return None
        if final.checkpoint is not None:
            try:
                self._uploader.upload_checkpoint(local_path=final.checkpoint, step=final.step)
            except (ArtifactTransferError, AuthError) as error:
                self._reporter.failed(step=final.step, error=f"upload: {told(error)}")
                raise self._failure(error) from error
        self._reporter.completed(step=final.step, final_checkpoint=final.checkpoint)
        return self._end(final.step, final.checkpoint)

    def run(self, base_model: str) -> TrainingEnd:
        """Train from the beginning, or from where a checkpoint is."""
        try:
            trainer = self._trainer()
            batches = self._batches()
            resume = self._resume()
        except Exception as error:
            category = "input" if isinstance(error, InputError | CheckpointError) else "startup"
            self._reporter.failed(step=0, error=f"{category}: {told(error)}")
            raise self._failure(error) from error
        self._reporter.resumed_from = resume.step if resume is not None else None
        try:
            step = self._loop(trainer, batches, resume, base_model)
        except TrainingCanceled as error:
            raise CanceledError(str(error)) from error
        except Exception as error:
            if classify(error).kind == "out_of_memory":
                raise  # another process may have more room
            raise self._failure(error) from error
        return self._end(step, self._reporter.final_checkpoint)

    def _loop(self, trainer: Any, batches: Iterable[Any], resume: Resume | None, base_model: str) -> int:
        spec = self._spec
        samples = SampleFolder(
            Path(self._contract.samples_dir), trainer, spec.prompts, spec.sample_seed, spec.request_id
        )
        return run_training_loop(
            job=spec.job,
            ctx=StepContext(
                spec.job,
                model_handles={"base_model": base_model} if base_model else {},
                dataset=batches,
                device=spec.device or device_of_process(),
                dtype=spec.dtype,
                is_canceled=self._reporter.is_canceled,
            ),
            trainer=trainer,
            batches=batches,
            reporter=self._reporter,
            artifact_writer=CheckpointFolder(self._checkpoints, spec.request_id, samples, keep=spec.keep_checkpoints),
            uploader=self._uploader,
            start_step=0 if resume is None else resume.step,
            resume_state_payload=None if resume is None else resume.payload,
            resume_checkpoint_path=None if resume is None else resume.checkpoint_dir,
            checkpoint_on_cancel=True,
        )

    def _trainer(self) -> Any:
        seed = self._spec.hyperparams.get("seed", DEFAULT_SEED)
        seed_everything(int(seed))
        return load_trainer_plugin(self._contract.trainer_plugin or self._spec.trainer)

    def _batches(self) -> Iterable[Any]:
        spec = self._spec
        dataset = spec.dataset or Dataset()
        if self._contract.arrow_ipc_path:
            return Rows([self._contract.arrow_ipc_path], "arrow", dataset)
        if paths := [*dataset.parquet_paths, *map(self._here, self._order.dataset_files)]:
            return Rows(paths, "parquet", dataset)
        if not spec.mock_batches:
            raise InputError("there is nothing to train on: the job spec has neither a `dataset` nor `mock_batches`")
        return Repeated(spec.mock_batches)

    def _resume(self) -> Resume | None:
        """Return what to go on from: a checkpoint of this training where that is wanted, else the one that is named."""
        own = latest(self._checkpoints, self._spec.request_id, self._warn) if self._order.resume else None
        if own is not None:
            return own
        named = self._spec.resume_checkpoint_path
        if not named and self._order.resume_file is not None:
            named = self._here(self._order.resume_file)
        if not named:
            return None
        path = Path(named)
        if is_archive(path):
            path = unpacked(path, self._checkpoints.parent / "inputs" / "checkpoint")
        return checkpoint_at(path, self._warn)

    def _here(self, asset: Asset) -> str:
        """Return where a file of the inputs is; a content of the platform is had from there now."""
        if asset.local_path:
            return asset.local_path
        if not _CONTENT.fullmatch(asset.ref):
            return asset.ref
        path = self._checkpoints.parent / "inputs" / asset.ref.replace(":", "-")
        platform = self._ctx._platform
        if not path.exists():
            if platform is None:
                raise InputError(f"`{asset.ref}` cannot be had: there is no platform to ask")
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(f".{path.name}.part")
            with part.open("w+b") as file:
                platform.call(Materialize(digest=asset.ref), file.fileno())
            publish(part, path)
        return str(path)

    def _failure(self, error: Exception) -> FatalError:
        text = self._reporter.error or told(error)
        return FatalError(text.replace("upload: AuthError", "auth: AuthError", 1))

    def _warn(self, text: str) -> None:
        self._ctx.log(text, "warning")

    def _end(self, step: int, checkpoint: str | None) -> TrainingEnd:
        stored = self._uploader.final
        sha256 = stored.get("sha256") or (
            digest_of(Path(checkpoint))["sha256"] if checkpoint and Path(checkpoint).is_file() else ""
        )
        return TrainingEnd(
            step=step,
            final_checkpoint=checkpoint,
            final_checkpoint_ref=str(stored.get("file_ref") or ""),
            final_checkpoint_sha256=str(sha256),
        )


def checkpoint_at(path: Path, complain: Callable[[str], None]) -> Resume:
    """Return the checkpoint that a path names: a step file, a folder of them, or a folder that a plugin wrote.

    Raises `CheckpointError`.
    """
    if not path.is_dir():
        return read_checkpoint(path)
    if (found := latest(path, "", complain)) is not None:
        return found
    if not any(path.iterdir()):
        raise CheckpointError(f"`{path}` has no checkpoint")
    return Resume(0, StatePayload({}), str(path), path)


def device_of_process() -> str:
    """Return the device of this process as trainers name it."""
    return "cpu" if os.environ.get("GEN_WORKER_LOCAL_DEVICE", "").startswith("cpu") else "cuda:0"


# --- who is told ------------------------------------------------------------------------------------------------------


class EventReporter:
    """Tells of a training in its events' file, where there is one, and to whoever asked for it."""

    def __init__(self, ctx: TrainingContext, events: EventFile | None = None, cancel_file: str = "") -> None:
        self._ctx = ctx
        self._events = events
        self._cancel_file = cancel_file
        self.resumed_from: int | None = None
        self.error = ""
        self.final_checkpoint: str | None = None

    def started(self, *, run_id: str) -> None:
        """The first batch is about to be taken."""
        resumed = {} if self.resumed_from is None else {"resumed_from": self.resumed_from}
        self._write("started", run_id=run_id, **resumed)
        if resumed:
            self._ctx.log(f"the training goes on from step {self.resumed_from}")

    def stepped(self, *, step: int, max_steps: int) -> None:
        """A step was taken."""
        self._ctx.progress(min(1.0, step / max(1, max_steps)), f"step {step}/{max_steps}")

    def metric(self, *, name: str, value: float, step: int) -> None:
        """A number, after a step; what is no finite number is written as text."""
        self._write("metric", name=name, value=value if isfinite(value) else str(value), step=step)

    def checkpoint(self, *, path: str, step: int) -> None:
        """A checkpoint is complete."""
        self._write("checkpoint", path=path, step=step)
        self._ctx.log(f"checkpoint after step {step}: `{path}`")

    def sample(self, *, path: str, step: int) -> None:
        """A sample is complete."""
        self._write("sample", path=path, step=step)

    def completed(self, *, step: int, final_checkpoint: str | None = None) -> None:
        """The training has come to its end."""
        self.final_checkpoint = final_checkpoint
        self._write("completed", step=step, final_checkpoint=final_checkpoint)

    def failed(self, *, step: int, error: str) -> None:
        """The training ended early; what its supervisor decides on is its supervisor's to tell."""
        self.error = error
        raised = sys.exc_info()[1]
        overdue = self._ctx.time_remaining() == 0
        if overdue or not isinstance(raised, Exception) or classify(raised).kind == "out_of_memory":
            return
        self._write("failed", step=step, error=error)

    def is_canceled(self) -> bool:
        """Whether the training shall end."""
        return self._ctx.cancelled or bool(self._cancel_file and asks_to_cancel(self._cancel_file))

    def _write(self, event: Any, **more: Any) -> None:
        if self._events is not None:
            self._events.write(event, **more)


class PlatformUploader:
    """Takes numbers and files to where the job spec says, through the job's context.

    Numbers, samples and checkpoints on the way are told of and passed over where they cannot be taken there; the final
    checkpoint must.
    """

    def __init__(self, ctx: TrainingContext, spec: TrainingSpec, checkpoints: Path, *, stores_files: bool) -> None:
        self._ctx = ctx
        self._spec = spec
        self._checkpoints = checkpoints
        self._stores_files = stores_files
        self._quiet_until = 0.0
        self.final: dict[str, Any] = {}
        """What is known of the final checkpoint where it went."""

    def upload_metrics(self, *, metrics: Mapping[str, float], step: int) -> None:
        """Post the numbers of a step."""
        self._ctx.log(f"step {step}: {', '.join(f'{name} {value:.6g}' for name, value in metrics.items())}")
        numbers = {name: value if isfinite(value) else str(value) for name, value in metrics.items()}
        self._try(lambda: self._post("metrics_url", {"step": step, "metrics": numbers}))

    def upload_checkpoint(self, *, local_path: str, step: int) -> None:
        """Store a checkpoint and post what it is."""
        final = (self._checkpoints / FINAL).exists()
        if not final:
            self._try(lambda: self._checkpoint(Path(local_path), step, final=False))
        elif not self.final:
            self.final = self._checkpoint(Path(local_path), step, final=True)

    def _checkpoint(self, path: Path, step: int, *, final: bool) -> dict[str, Any]:
        stored = self._stored(path, "checkpoints", f"{step:08d}" if not final else "final")
        size = path.stat().st_size if path.is_file() else 0
        document = {"step": step, "local_path": str(path), "size_bytes": size, "final": final, **stored}
        self._post("checkpoint_url", document)
        return document

    def upload_sample(self, *, local_path: str, step: int) -> None:
        """Store a sample and post what it is."""

        def upload() -> None:
            stored = self._stored(Path(local_path), "samples", f"{step:08d}")
            self._post("sample_url", {"step": step, "local_path": local_path, **stored})

        self._try(upload)

    def _stored(self, path: Path, category: str, slot: str) -> dict[str, Any]:
        if not self._stores_files or not path.exists():
            return {}
        owner = self._spec.owner or "local"
        folder = f"v1/{owner}/jobs/{self._spec.job_id or self._spec.request_id}/{category}"
        with as_one_file(path) as file:
            kept = self._ctx.save_file(f"{folder}/{slot}-{file.name}", file)
        return {"file_ref": kept.ref, "sha256": kept.sha256, "uploaded_size_bytes": kept.size_bytes}

    def _post(self, target: str, document: Mapping[str, Any]) -> None:
        if target not in self._spec.targets:
            return
        platform = self._ctx._platform
        if platform is None:
            return
        whose = {"request_id": self._spec.request_id, "kind": self._spec.kind}
        platform.call(PostJson(target=target, document={**whose, **document}))

    def _try(self, upload: Callable[[], object]) -> None:
        """Upload what may be missing: after one that failed, `QUIET_S` pass before the training waits for another."""
        if time.monotonic() < self._quiet_until:
            return
        try:
            upload()
        except ArtifactTransferError as error:
            self._quiet_until = time.monotonic() + QUIET_S
            self._ctx.log(f"not told: {error}; it is tried again after {QUIET_S:.0f} s", "warning")
