"""One training, in the process that trains: from its job spec to its last file.

What leaves the machine leaves through the job's context: this process has no network and no token.
"""

import os
import re
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.api.errors import ArtifactTransferError, AuthError, CanceledError, FatalError, classify
from gen_worker.api.producers import TrainingContext
from gen_worker.api.types import Asset
from gen_worker.trainer.archives import is_archive, unpacked
from gen_worker.trainer.batches import InputError, Repeated, Rows
from gen_worker.trainer.checkpoints import (
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
from gen_worker.trainer.loop import failure_text, run_training_loop, told
from gen_worker.trainer.optimization import seed_everything
from gen_worker.trainer.plugins import load_trainer_plugin
from gen_worker.trainer.spec import Dataset, SpecError, TrainingSpec, asks_to_cancel, read_spec
from gen_worker.trainer.uploading import PlatformUploader
from gen_worker.trainer.weights import is_weights, weights_in
from gen_worker.wire.platform import Materialize

DEFAULT_SEED = 0
LOOK_S = 0.02  # how soon a cancel file is seen
_CONTENT = re.compile(r"(?:blake3|sha256):[0-9a-f]{64}")


class TrainingOrder(msgspec.Struct, kw_only=True):
    """What a process is to train: the file that says so, and what only its supervisor knows."""

    contract_path: str
    resume: bool = False
    """Whether to go on from the latest checkpoint there is, or to complete at once where the end is there."""

    stores_files: bool = False
    """Whether checkpoints and samples are stored at the platform."""

    cancel_path: str = ""
    """A file that asks for the end of the training like the job spec's own: then there is time to tell of it."""

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
    try:
        done = training.done_already()
        return training.run(base_model) if done is None else done
    finally:
        training.leave()


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
        self._reporter = EventReporter(ctx, self._events, (spec.cancel_file_path, order.cancel_path))
        self._uploader = PlatformUploader(
            ctx,
            spec,
            self._checkpoints,
            self._events.path,
            stores_files=order.stores_files,
            is_canceled=self._reporter.is_canceled,
        )

    def done_already(self) -> TrainingEnd | None:
        """Return the end of a training that had come to it, None where there is more to do."""
        final = read_final(self._checkpoints, self._spec.request_id, self._warn) if self._order.resume else None
        if final is None:
            return None
        self._ctx.log(_complete_already(final.step, self._spec.max_steps))
        if final.checkpoint is not None:
            try:
                self._uploader.upload_checkpoint(local_path=final.checkpoint, step=final.step)
            except TrainingCanceled as error:
                raise CanceledError(str(error)) from error
            except (ArtifactTransferError, AuthError) as error:
                self._reporter.failed(step=final.step, error=failure_text("upload", error))
                raise self._failure(error) from error
        self._reporter.completed(step=final.step, final_checkpoint=final.checkpoint)
        return self._end(final.step, final.checkpoint)

    def run(self, base_model: str) -> TrainingEnd:
        """Train from the beginning, or from where a checkpoint is."""
        try:
            trainer = self._trainer()
            batches = self._batches()
            resume = self._resume(loads=hasattr(trainer, "load_checkpoint"))
        except Exception as error:
            category = "input" if isinstance(error, InputError | CheckpointError) else "startup"
            self._reporter.failed(step=0, error=failure_text(category, error))
            raise self._failure(error) from error
        self._reporter.resumed_from = resume.step if resume is not None else None
        self._reporter.weights_from = str(resume.path) if resume is not None and resume.weights is not None else ""
        try:
            step = self._loop(trainer, batches, resume, base_model)
        except (TrainingCanceled, CanceledError) as error:
            raise CanceledError(str(error)) from error
        except Exception as error:
            if classify(error).kind == "out_of_memory":
                raise  # another process may have more room
            raise self._failure(error) from error
        return self._end(step, self._reporter.final_checkpoint)

    def leave(self) -> None:
        """Have told what there is time for."""
        self._uploader.leave()

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
            resume_state_payload=None if resume is None or resume.weights is not None else resume.payload,
            resume_checkpoint_path=None if resume is None else resume.checkpoint_dir,
            resume_weights=None if resume is None else resume.weights,
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

    def _resume(self, *, loads: bool) -> Resume | None:
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
        return checkpoint_at(path, self._warn, loads=loads)

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
        return FatalError(self._reporter.error or told(error))

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


def _complete_already(step: int, max_steps: int) -> str:
    text = f"the training was complete after step {step}: nothing is trained again"
    more = "; for more steps begin another one, with the last checkpoint as `resume_checkpoint_path`"
    return text + more if step < max_steps else text


def checkpoint_at(path: Path, complain: Callable[[str], None], *, loads: bool) -> Resume:
    """Return what a path has to go on from.

    That is a step file, or a folder of them: all of it; a folder that a plugin wrote, for one that `loads` it; else
    weights alone, a safetensors file or a folder of some, with which a training begins at step 0. Raises
    `CheckpointError`.
    """
    if not path.is_dir():
        return Resume(0, StatePayload({}), None, path, weights_in(path)) if is_weights(path) else read_checkpoint(path)
    if (found := latest(path, "", complain)) is not None:
        return found
    if not any(path.iterdir()):
        raise CheckpointError(f"`{path}` has no checkpoint")
    if loads:
        return Resume(0, StatePayload({}), str(path), path)
    if (weights := weights_in(path)) is not None:
        return Resume(0, StatePayload({}), None, path, weights)
    raise CheckpointError(
        f"`{path}` has no step file and no safetensors file, and the trainer has no `load_checkpoint`"
    )


def device_of_process() -> str:
    """Return the device of this process as trainers name it."""
    return "cpu" if os.environ.get("GEN_WORKER_LOCAL_DEVICE", "").startswith("cpu") else "cuda:0"


# --- who is told ------------------------------------------------------------------------------------------------------


class EventReporter:
    """Tells of a training in its events' file, where there is one, and to whoever asked for it."""

    def __init__(self, ctx: TrainingContext, events: EventFile | None = None, cancel_files: Sequence[str] = ()) -> None:
        self._ctx = ctx
        self._events = events
        self._cancel_files = [path for path in cancel_files if path]
        self._looked_at = -LOOK_S
        self._asked = False
        self.resumed_from: int | None = None
        self.weights_from = ""
        self.error = ""
        self.final_checkpoint: str | None = None

    def started(self, *, run_id: str) -> None:
        """The first batch is about to be taken."""
        resumed = {} if self.resumed_from is None else {"resumed_from": self.resumed_from}
        weights = {"weights_from": self.weights_from} if self.weights_from else {}
        self._write("started", run_id=run_id, **resumed, **weights)
        if resumed and not weights:
            self._ctx.log(f"the training goes on from step {self.resumed_from}")

    def began_with(self, *, model: str, count: int, lacking: int) -> None:
        """Weights were put in place."""
        text = f"`{model}` begins with {count} tensors of `{self.weights_from}`: step 0, with a fresh optimizer"
        self._ctx.log(f"{text}; {lacking} that it trains are not there" if lacking else text)

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
        try:
            self._write("failed", step=step, error=error)
        except OSError as full:  # the supervisor tells it, once there is room
            self._ctx.log(f"`failed` is not among the events: {full}", "warning")

    def is_canceled(self) -> bool:
        """Whether the training shall end."""
        if not self._asked and self._cancel_files and time.monotonic() - self._looked_at >= LOOK_S:
            self._looked_at = time.monotonic()
            self._asked = any(map(asks_to_cancel, self._cancel_files))
        return self._asked or self._ctx.cancelled

    def _write(self, event: Any, **more: Any) -> None:
        if self._events is not None:
            self._events.write(event, **more)
