"""A worker in trainer mode, from its job spec to its exit code."""

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from gen_worker.settings import Settings

if TYPE_CHECKING:
    from gen_worker.trainer.spec import TrainingSpec
    from gen_worker_supervisor.training import TrainingReport


def run_training_runtime(job_spec_path: str | os.PathLike[str] | None = None) -> int:
    """Run the training that a job spec describes, under supervision; return the exit code of the process.

    That is 0 for a training that is complete, 1 for one that failed, 130 and, after SIGTERM, 143 for one that was
    canceled. Without a path it is the file of `TRAINER_JOB_SPEC_PATH`. Raises `SpecError`, a `ValueError`, for a job
    spec that is none, and `StartError` where the training cannot begin.
    """
    settings = Settings.load()
    return supervised(spec_of(settings, job_spec_path), settings, dict(os.environ)).code


def spec_of(settings: Settings, job_spec_path: str | os.PathLike[str] | None = None) -> "TrainingSpec":
    """Return the training of a job spec, by default of the one that the settings name; raise `SpecError`."""
    from gen_worker.trainer.spec import DEFAULT_PATH, read_spec

    return read_spec(job_spec_path or settings.trainer_job_spec_path or DEFAULT_PATH)


def supervised(
    spec: "TrainingSpec",
    settings: Settings,
    environment: Mapping[str, str],
    *,
    devices_option: str = "GEN_WORKER_DEVICES",
    folder_option: str = "GEN_WORKER_TRAINING_DIR",
) -> "TrainingReport":
    """Run a training under supervision; raise `StartError` where it cannot begin."""
    import msgspec

    from gen_worker.fetch.config import FetchConfig
    from gen_worker_supervisor.training import TrainingOptions, train

    fetching = msgspec.msgpack.encode(FetchConfig.of(settings, env=environment))
    options = TrainingOptions(spec, [os.getcwd()], fetching, devices_option, folder_option)
    return train(options, settings, environment)
