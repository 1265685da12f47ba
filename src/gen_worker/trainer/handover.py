"""What the process that trains is handed by the one that starts it: a file with paths."""

import os
from pathlib import Path
from typing import Any

import msgspec


class TrainerSubprocessContractV1(msgspec.Struct, kw_only=True):
    """Which training a process is to run, and where its files go. Raises `ValueError` without a `job_spec_path`."""

    contract_version: str = "v1"
    trainer_plugin: str = ""
    job_spec_path: str
    arrow_ipc_path: str = ""
    checkpoints_dir: str = "/tmp/training/checkpoints"
    samples_dir: str = "/tmp/training/samples"
    events_path: str = "/tmp/training/metrics/events.jsonl"
    extra_env: dict[str, str] = {}

    def __post_init__(self) -> None:
        if not self.job_spec_path:
            raise ValueError("`job_spec_path` is empty")
        if self.contract_version != "v1":
            raise ValueError(f"`contract_version` must be `v1`, not `{self.contract_version}`")


def read_subprocess_contract(path: str | os.PathLike[str]) -> TrainerSubprocessContractV1:
    """Return what a file says; raise `OSError` or `ValueError` where there is none, or it is none."""
    try:
        return msgspec.json.decode(Path(path).read_bytes(), type=TrainerSubprocessContractV1)
    except msgspec.DecodeError as error:
        raise ValueError(f"`{os.fspath(path)}` is no subprocess contract: {error}") from None


def write_subprocess_contract(contract: TrainerSubprocessContractV1, path: str | os.PathLike[str]) -> Path:
    """Write the file; a reader sees it whole or not at all."""
    from gen_worker.trainer.durable import write_file

    document: dict[str, Any] = msgspec.to_builtins(contract)
    return write_file(Path(path), msgspec.json.format(msgspec.json.encode(document)) + b"\n")
