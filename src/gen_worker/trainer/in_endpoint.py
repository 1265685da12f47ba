"""The loop inside an endpoint of kind `training`: what the loop is given is made of the request's context."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gen_worker.api.errors import CanceledError
from gen_worker.api.producers import CHECKPOINT_FOLDER, TrainingContext
from gen_worker.api.types import Tensors
from gen_worker.outputs import safe_ref
from gen_worker.trainer.archives import as_one_file
from gen_worker.trainer.checkpoints import CheckpointFolder, SampleFolder, latest
from gen_worker.trainer.contracts import StepContext, TrainingCanceled, TrainingJobSpec
from gen_worker.trainer.events import EventFile
from gen_worker.trainer.loop import run_training_loop
from gen_worker.trainer.running import EventReporter, device_of_process


class Trained:
    """What a training inside an endpoint has come to."""

    def __init__(self, step: int, checkpoint: Path | None, tensors: Tensors | None) -> None:
        self.step = step
        self.checkpoint = checkpoint
        """Where the final checkpoint lies on this machine."""

        self.tensors = tensors
        """The same, kept where the request's files go: of several files one archive."""


def train_in_endpoint(
    ctx: TrainingContext,
    *,
    trainer: Any,
    batches: Iterable[Any],
    max_steps: int,
    hyperparams: Mapping[str, Any] | None = None,
    folder: Path | None = None,
    sample_prompts: Iterable[Mapping[str, Any]] = (),
    keep_checkpoints: int = 0,
    dtype: str = "bf16",
    **cadences: Any,
) -> Trained:
    """Train for a request, from its last checkpoint on where this machine has one; keep what was made as its file.

    Progress, events and a cancel go the way that the request's do. `cadences` are further fields of `TrainingJobSpec`,
    as `checkpoint_every` and `early_stop`. `folder` keeps the checkpoints; by default it is one for each request id
    below `.gen-worker-run/checkpoints`, so that a request that comes again goes on; of them so many of the latest stay
    as `keep_checkpoints` says, 0: all. Raises `CanceledError`, after one more checkpoint, when the request is canceled.
    """
    if keep_checkpoints < 0:
        raise ValueError(f"`keep_checkpoints` takes 0 or more, not {keep_checkpoints}")
    told = {"max_steps": max_steps, **(hyperparams or {})}
    job = TrainingJobSpec(ctx.request_id, max_steps, hyperparams=told, **cadences)
    place = (folder or Path(CHECKPOINT_FOLDER) / safe_ref(ctx.request_id)).absolute()
    reporter = EventReporter(ctx, EventFile(place / "events.jsonl", job.request_id))
    resume = latest(place, job.request_id, lambda text: ctx.log(text, "warning"))
    reporter.resumed_from = None if resume is None else resume.step
    samples = SampleFolder(place / "samples", trainer, [dict(each) for each in sample_prompts], 0, job.request_id)
    try:
        step = run_training_loop(
            job=job,
            ctx=StepContext(job, device=device_of_process(), dtype=dtype, is_canceled=reporter.is_canceled),
            trainer=trainer,
            batches=batches,
            reporter=reporter,
            artifact_writer=CheckpointFolder(place, job.request_id, samples, keep=keep_checkpoints),
            start_step=0 if resume is None else resume.step,
            resume_state_payload=None if resume is None else resume.payload,
            resume_checkpoint_path=None if resume is None else resume.checkpoint_dir,
            checkpoint_on_cancel=True,
        )
    except TrainingCanceled as error:
        raise CanceledError(str(error)) from error
    made = None if reporter.final_checkpoint is None else Path(reporter.final_checkpoint)
    return Trained(step, made, None if made is None else _kept(ctx, made, step))


def _kept(ctx: TrainingContext, made: Path, step: int) -> Tensors:
    """Keep all of what was made, under a name that no other request's has."""
    with as_one_file(made) as file:
        return ctx.save_checkpoint(f"checkpoints/{safe_ref(ctx.request_id)}/{file.name}", file, step_number=step)
