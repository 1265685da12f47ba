"""What the environment says about how to run, read once at the start of a command."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.rundir import run_dir
from gen_worker.wire.messages import REGION_LIMIT


class SettingsError(ValueError):
    """An environment variable has a value that cannot be meant; the text names both."""


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that environment variables decide. Whoever needs a value is handed it."""

    run_dir: Path
    """`GEN_WORKER_RUN_DIR`: where supervisors keep their control sockets; see `gen_worker.rundir`."""

    max_queued: int = 10_000
    """`GEN_WORKER_MAX_QUEUED`: jobs that may wait; one more ends `busy`."""

    max_input_bytes: int = 64 << 20
    """`WORKER_MAX_INPUT_BYTES`: the longest payload; 0: what travels at all, 1 GiB."""

    max_output_bytes: int = 64 << 20
    """`WORKER_MAX_OUTPUT_BYTES`: the longest output or item of a stream; 0: what travels at all, 1 GiB."""

    local_output_dir: Path = Path(".gen-worker-run/outputs")
    """`GEN_WORKER_LOCAL_OUTPUT_DIR`: where `run` and `serve` keep the files that jobs save."""

    local_device: str | None = None
    """`GEN_WORKER_LOCAL_DEVICE`: what `ctx.device` is in `run`, as `cpu`, `cuda` or `cuda:1`; unset: what there is."""

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Settings":
        """Read the settings; raise `SettingsError` for a value that cannot be meant. An empty value counts as unset."""
        given: dict[str, Any] = {}
        for field, (name, parse) in _VARIABLES.items():
            text = env.get(name, "").strip()
            if text:
                try:
                    given[field] = parse(text)
                except ValueError as error:
                    raise SettingsError(f"`{name}` must be {error}, not `{text}`") from None
        return cls(run_dir=run_dir(env), **given)


def _count(text: str) -> int:
    number = _whole(text)
    if number == 0:
        raise ValueError("above 0")
    return number


def _size(text: str) -> int:
    return min(_whole(text) or REGION_LIMIT, REGION_LIMIT)


def _whole(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 18:
        raise ValueError("a whole number")
    return int(text)


def _device(text: str) -> str:
    kind, colon, index = text.partition(":")
    if text == "cpu" or (kind == "cuda" and (index.isdigit() or not colon)):
        return text
    raise ValueError("`cpu`, `cuda` or `cuda:N`")


_VARIABLES: dict[str, tuple[str, Callable[[str], Any]]] = {
    "max_queued": ("GEN_WORKER_MAX_QUEUED", _count),
    "max_input_bytes": ("WORKER_MAX_INPUT_BYTES", _size),
    "max_output_bytes": ("WORKER_MAX_OUTPUT_BYTES", _size),
    "local_output_dir": ("GEN_WORKER_LOCAL_OUTPUT_DIR", Path),
    "local_device": ("GEN_WORKER_LOCAL_DEVICE", _device),
}
