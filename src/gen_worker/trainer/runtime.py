"""A worker in trainer mode, from its job spec to its exit code."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gen_worker.settings import Settings

if TYPE_CHECKING:
    from gen_worker_supervisor.training import TrainingReport


def run_training_runtime(job_spec_path: str | os.PathLike[str] | None = None) -> int:
    """Run the training that a job spec describes, under supervision; return the exit code of the process.

    That is 0 for a training that is complete, 1 for one that failed, 130 and, after SIGTERM, 143 for one that was
    canceled. Without a path it is the file of `TRAINER_JOB_SPEC_PATH`. Raises `SpecError`, a `ValueError`, for a job
    spec that is none, and `StartError` where the training cannot begin.
    """
    return supervised(job_spec_path, Settings.load(), dict(os.environ)).code


def supervised(
    job_spec_path: str | os.PathLike[str] | None,
    settings: Settings,
    environment: Mapping[str, str],
    *,
    devices_option: str = "GEN_WORKER_DEVICES",
    paths: tuple[str, ...] = (),
) -> "TrainingReport":
    """Run a training under supervision; as `run_training_runtime`, with settings that were read."""
    import msgspec

    from gen_worker.fetch.config import FetchConfig
    from gen_worker.trainer.spec import DEFAULT_PATH, read_spec
    from gen_worker_supervisor.training import TrainingOptions, train

    spec = read_spec(job_spec_path or settings.trainer_job_spec_path or DEFAULT_PATH)
    fetching = msgspec.msgpack.encode(FetchConfig.of(settings, env=environment))
    options = TrainingOptions(spec, [*paths, os.getcwd()], fetching, devices_option)
    return train(options, settings, environment)
