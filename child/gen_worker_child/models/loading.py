"""Make the object for a slot from a model on disk, with unmodified diffusers and transformers.

Every choice that the libraries would make by themselves is made here and passed explicitly: the dtype, the variant,
what may be absent, that nothing comes from the network, that no pickle and no foreign code is run.
"""

import inspect
import pickle
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from gen_worker.models.errors import ModelError
from gen_worker.models.out_of_memory import is_out_of_memory
from gen_worker.models.rungs import Sizes
from gen_worker.wire.messages import SlotModel
from gen_worker_child.models.classes import Target, library_class, target_of, with_article
from gen_worker_child.models.dtypes import TORCH_NAMES, Precision, dtype_named, precision
from gen_worker_child.models.footprint import planned_sizes, read_headers, stored_bytes
from gen_worker_child.models.repository import (
    Choice,
    Repository,
    choose_weights,
    incomplete,
    read_repository,
    refuse_code,
    remote_code,
)

SHOWN_CHARS = 240  # some list every class that they know
WITH_WEIGHTS = ("pipeline", "model", "transformers")
LOADER_ERRORS = (
    OSError,
    ValueError,
    RuntimeError,
    ImportError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    EOFError,
    pickle.UnpicklingError,
)
"""What Python has for a model that a library cannot load; safetensors raises one of its own."""


class Source(NamedTuple):
    """A slot's model, looked at but not loaded: everything that is known without importing torch."""

    slot: SlotModel
    target: Target
    repository: Repository
    weights: Choice
    precision: Precision
    sizes: Sizes | None

    @property
    def files(self) -> Sequence[Path]:
        """The files that will be read."""
        return (*self.weights.files, *self.weights.pickles)


def look_at(slot: SlotModel, asked: type) -> Source:
    """Find out what loading a model would take; raise `ModelError` for one that cannot, or must not, be loaded."""
    repository = read_repository(place_of(slot), slot.ref)
    target = target_of(asked, repository, slot=slot.slot, ref=slot.ref)
    if target.family == "foreign":
        asked_for = dtype_named(slot.dtype, slot.ref) if slot.dtype else "fp32"
        return Source(slot, target, repository, Choice("", (), ()), Precision(asked_for, 0.0), None)
    refuse_code(repository, slot.ref)
    if target.family not in WITH_WEIGHTS:
        return Source(slot, target, repository, Choice("", (), ()), Precision("fp32", 0.0), Sizes(0, 0, 0))
    wanted = dtype_named(slot.dtype, slot.ref) if slot.dtype else ""
    weights = choose_weights(repository, wanted, slot.ref)
    _refuse_pickles(weights, slot)
    headers = read_headers(weights.files, slot.ref)
    chosen = precision(stored_bytes(headers), wanted, slot.ref)
    sizes = None if weights.pickles else planned_sizes(headers, chosen.dtype)
    return Source(slot, target, repository, weights, chosen, sizes)


def place_of(slot: SlotModel) -> Path:
    """Return the folder or file of a slot's model; raise `ModelError` when it is not there."""
    path = Path(slot.path, slot.subfolder)
    if path.exists():
        return path
    if slot.subfolder and Path(slot.path).exists():
        hint = f"leave `subfolder=` of the binding of `{slot.slot}` out, or name one that is there"
        raise ModelError("load_failed", f"`{slot.ref}` has no folder `{slot.subfolder}`", hint, ref=slot.ref)
    raise ModelError("load_failed", f"`{slot.ref}`: there is nothing at {path}", ref=slot.ref, file=str(path))


def _refuse_pickles(weights: Choice, slot: SlotModel) -> None:
    if weights.pickles and not slot.pickle:
        file = weights.pickles[0]
        raise ModelError(
            "pickle_refused",
            f"`{slot.ref}`: the weights in `{file.name}` are a pickle, which can run any code where it is loaded",
            "use a model with safetensors, or name its ref in `GEN_WORKER_ALLOW_PICKLE` if you trust who made it",
            ref=slot.ref,
            file=str(file),
        )
    if not weights.files and not weights.pickles:
        raise ModelError(
            "no_weights",
            f"`{slot.ref}` holds no weights in safetensors",
            f"annotate `{slot.slot}` with `Path` and load what it holds in `setup()`",
            ref=slot.ref,
            file=slot.path,
        )


# --- loading ----------------------------------------------------------------------------------------------------------


def load(source: Source, configs: Sequence[Path] = (), warn: Callable[[str], None] = lambda text: None) -> Any:
    """Return the object for a slot, on the CPU; raise `ModelError` when its library cannot make it.

    `configs` are folders where a single file of weights, which says nothing of its parts, may find that. Running out of
    memory is raised as it comes.
    """
    make = {
        "pipeline": _pipeline,
        "model": _model,
        "transformers": _model,
        "tokenizer": _small,
        "processor": _small,
        "scheduler": _scheduler,
        "config": _small,
        "foreign": _foreign,
    }[source.target.family]
    if make is _foreign:
        return make(source, configs, warn)  # what the author's own class raises is the author's
    with _translated(source), quiet(), _default_dtype_kept():
        return make(source, configs, warn)


def _pipeline(source: Source, configs: Sequence[Path], warn: Callable[[str], None]) -> Any:
    if source.repository.checkpoint is not None:
        return _from_file(source, configs)
    absent = _absent_parts(source)
    return source.target.cls.from_pretrained(
        str(source.repository.path), **_weight_arguments(source), trust_remote_code=False, **absent
    )


def _absent_parts(source: Source) -> dict[str, Any]:
    """Return None for each part that the pipeline can do without and that was not fetched."""
    repository, slot = source.repository, source.slot
    absent = [name for name in repository.parts if not (repository.path / name).is_dir()]
    if not absent:
        return {}
    cls = source.target.cls
    if not hasattr(cls, "_optional_components") or cls.__name__ == "DiffusionPipeline":
        cls = library_class("diffusers", repository.declared)
    if needed := sorted(set(absent) - set(cls._optional_components)):
        raise incomplete(slot.ref, f"its part `{needed[0]}` is missing", needed[0])
    without: dict[str, Any] = dict.fromkeys(absent)
    if "safety_checker" in absent and "requires_safety_checker" in inspect.signature(cls.__init__).parameters:
        without["requires_safety_checker"] = False
    return without


def _model(source: Source, configs: Sequence[Path], warn: Callable[[str], None]) -> Any:
    cls = source.target.cls
    if source.repository.checkpoint is not None:
        return _from_file(source, configs)
    arguments = _weight_arguments(source)
    if cls.__module__ == "diffusers.models.auto_model":
        return cls.from_pretrained(str(source.repository.path), trust_remote_code=False, **arguments)
    if source.target.family == "transformers":
        arguments["trust_remote_code"] = False
    made, told = cls.from_pretrained(str(source.repository.path), output_loading_info=True, **arguments)
    if missing := sorted(told.get("missing_keys") or ()):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        warn(f"`{source.slot.ref}` has no weights for `{missing[0]}`{more} of `{type(made).__name__}`: they are random")
    return made


def _weight_arguments(source: Source) -> dict[str, Any]:
    arguments: dict[str, Any] = {
        "dtype": torch_dtype(source.precision),
        "use_safetensors": None if source.weights.pickles else True,
        "local_files_only": True,
    }
    if source.weights.variant:
        arguments["variant"] = source.weights.variant
    return arguments


def _from_file(source: Source, configs: Sequence[Path]) -> Any:
    """Load one file that holds everything; what it is made of is read from a folder that says so."""
    found = _configuration(source, configs)
    if found is None:
        raise ModelError(
            "load_failed",
            f"`{source.slot.ref}` is a single file of weights, and nothing says what its parts are",
            'bind its configuration to another slot: `HF("owner/name", files=("*.json", "*/*.json", "*/*.txt"))`',
            ref=source.slot.ref,
            file=str(source.repository.checkpoint),
        )
    return source.target.cls.from_single_file(
        str(source.repository.checkpoint), dtype=torch_dtype(source.precision), local_files_only=True, **found
    )


def _configuration(source: Source, configs: Sequence[Path]) -> dict[str, str] | None:
    """Find the configuration of a single file: beside it, or in the pipeline of another slot."""
    beside = source.repository.path
    if source.target.family == "pipeline":
        folders = (each for each in (beside, *configs) if (each / "model_index.json").is_file())
        return next(({"config": str(folder)} for folder in folders), None)
    if (beside / "config.json").is_file():
        return {"config": str(beside)}
    for folder in configs:
        for part in read_repository(folder, source.slot.ref).parts.values():
            if part.class_name == source.target.cls.__name__:
                return {"config": str(folder), "subfolder": part.name}
    return None


def _small(source: Source, configs: Sequence[Path], warn: Callable[[str], None]) -> Any:
    return source.target.cls.from_pretrained(
        str(source.repository.path), local_files_only=True, trust_remote_code=False
    )


def _scheduler(source: Source, configs: Sequence[Path], warn: Callable[[str], None]) -> Any:
    return source.target.cls.from_pretrained(str(source.repository.path), local_files_only=True)


def _foreign(source: Source, configs: Sequence[Path], warn: Callable[[str], None]) -> Any:
    """Load with a class of the author's or of another library, which is told only what it asks for."""
    takes = inspect.signature(source.target.cls.from_pretrained).parameters
    known = {"dtype", "torch_dtype"} & takes.keys() if source.slot.dtype else set()
    dtypes = {name: torch_dtype(source.precision) for name in known}
    return source.target.cls.from_pretrained(str(source.repository.checkpoint or source.repository.path), **dtypes)


def torch_dtype(chosen: Precision) -> Any:
    """Return torch's own name of a dtype."""
    import torch

    return getattr(torch, TORCH_NAMES[chosen.dtype])


# --- around the libraries ---------------------------------------------------------------------------------------------


@contextmanager
def _default_dtype_kept() -> Iterator[None]:
    """Put torch's default dtype back: diffusers changes it while it makes a model, and leaves it so when that fails."""
    import torch

    before = torch.get_default_dtype()
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _translated(source: Source) -> Iterator[None]:
    """Turn what the libraries raise into one `ModelError`; what is about the device, not the model, passes."""
    slot = source.slot
    try:
        yield
    except loader_errors() as error:
        text = " ".join(str(error).split())
        if _about_the_device(error, text):
            raise
        if "trust_remote_code" in text:
            raise remote_code(slot.ref, "`auto_map` in its configuration") from error
        raise ModelError(
            "load_failed",
            f"`{slot.ref}` cannot be made into {with_article(source.target.cls.__name__)}: {_shown(error, text)}",
            _remedy(error),
            ref=slot.ref,
            file=str(source.repository.checkpoint or source.repository.path),
        ) from error


def loader_errors() -> tuple[type[BaseException], ...]:
    """Return what the libraries raise for a model that they cannot load, or cannot save."""
    safetensors = sys.modules.get("safetensors")
    return LOADER_ERRORS if safetensors is None else (*LOADER_ERRORS, safetensors.SafetensorError)


def _about_the_device(error: BaseException, text: str) -> bool:
    return is_out_of_memory(error) or "CUDA error" in text


def _shown(error: BaseException, text: str) -> str:
    shown = (
        text if isinstance(error, OSError | ValueError | ImportError) and text else f"{type(error).__name__}: {text}"
    )
    return shown if len(shown) <= SHOWN_CHARS else f"{shown[:SHOWN_CHARS]} …"


def _remedy(error: BaseException) -> str:
    if isinstance(error, ImportError):
        return "install what it names beside torch"
    if isinstance(error, OSError):
        return "`gen-worker cache verify` tells whether its files are whole"
    return "annotate the slot with a class that fits, or with `Path` and load the model in `setup()`"


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars out of the log: how far a load is goes to whoever waits for it."""
    switches = []
    for library in ("diffusers", "transformers"):
        logging = getattr(sys.modules.get(f"{library}.utils"), "logging", None)
        if logging is not None and logging.is_progress_bar_enabled():
            logging.disable_progress_bar()
            switches.append(logging.enable_progress_bar)
    try:
        yield
    finally:
        for switch in switches:
            switch()
