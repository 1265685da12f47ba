"""What a model on disk says it is: its kind, its parts, its files of weights.

Reads names and small JSON files only, never a tensor, and imports nothing heavy.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from gen_worker.models.errors import ModelError
from gen_worker.models.weights import of_one_stem, weight_sets

Kind = Literal["pipeline", "diffusers", "transformers", "file", "other"]

PICKLES = (".ckpt", ".pt", ".pth", ".bin")
_JSON_LIMIT = 16 << 20


class Part(NamedTuple):
    """One part of a pipeline, as its `model_index.json` names it: a folder, and the class it is made from."""

    name: str
    library: str
    class_name: str


@dataclass(frozen=True)
class Repository:
    """A model on disk. `config` is its `model_index.json` or `config.json`."""

    path: Path
    kind: Kind
    config: Mapping[str, Any]
    parts: Mapping[str, Part]
    """Of a pipeline: those that are not null."""

    checkpoint: Path | None = None
    """Of the kind `file`: the one file that holds everything."""

    @property
    def declared(self) -> str:
        """The class that it says it is; empty when it does not say."""
        if self.kind in ("pipeline", "diffusers"):
            return str(self.config["_class_name"])
        return next(iter(self.architectures), "")

    @property
    def architectures(self) -> tuple[str, ...]:
        """The classes of transformers that the weights were saved from."""
        return tuple(map(str, self.config.get("architectures") or ()))

    @property
    def model_types(self) -> frozenset[str]:
        """The families of transformers that it belongs to, with those of its parts."""
        nested = [each for each in self.config.values() if isinstance(each, dict)]
        found = {each.get("model_type") for each in (self.config, *nested)}
        return frozenset(str(each) for each in found if each)

    @property
    def folders(self) -> list[Path]:
        """Where its weights lie: of a pipeline the folder of each part, else its own."""
        if self.kind == "pipeline":
            return [self.path / name for name in self.parts]
        return [self.path] if self.checkpoint is None else []

    @property
    def quantized(self) -> bool:
        """Whether weights of it come with a way of their own to be stored, which is left as it is."""
        files = [folder / "config.json" for folder in self.folders]
        return any("quantization_config" in read_json(file, "") for file in files if file.is_file())

    def has(self, *names: str) -> bool:
        """Tell whether one of these files lies in its folder."""
        return any((self.path / name).is_file() for name in names)


def read_repository(path: Path, ref: str) -> Repository:
    """Look at a model's folder or file; raise `ModelError` when what it says of itself cannot be read."""
    if path.is_file():
        return Repository(path.parent, "file", {}, {}, path)
    if not path.is_dir():
        raise ModelError("load_failed", f"`{ref}`: there is nothing at {path}", ref=ref)
    if (path / "model_index.json").is_file():
        index = read_json(path / "model_index.json", ref)
        if not isinstance(index.get("_class_name"), str):
            raise _foreign(index, ref)
        return Repository(path, "pipeline", index, _parts(index))
    if (path / "config.json").is_file():
        config = read_json(path / "config.json", ref)
        return Repository(
            path, "diffusers" if isinstance(config.get("_class_name"), str) else "transformers", config, {}
        )
    roots = sorted(path.glob("*.safetensors"))
    if len(roots) == 1:
        return Repository(path, "file", {}, {}, roots[0])
    return Repository(path, "other", {}, {})


def _parts(index: Mapping[str, Any]) -> dict[str, Part]:
    named = {name: value for name, value in index.items() if isinstance(value, list) and len(value) == 2}
    return {
        name: Part(name, str(value[0]), str(value[1]))
        for name, value in named.items()
        if name.isidentifier() and name[0] != "_" and isinstance(value[0], str) and isinstance(value[1], str)
    }


def _foreign(index: Mapping[str, Any], ref: str) -> ModelError:
    """Tell of a `model_index.json` that names no class, or one that comes with its own code."""
    named = index.get("_class_name")
    if isinstance(named, list):
        return remote_code(ref, f"{named[0]}.py")
    return ModelError("load_failed", f"`{ref}`: `model_index.json` names no class", ref=ref, file="model_index.json")


def read_json(file: Path, ref: str) -> dict[str, Any]:
    """Return the JSON object of a file; raise `ModelError` when it is none."""
    if file.stat().st_size > _JSON_LIMIT:
        raise ModelError("load_failed", f"`{ref}`: `{file.name}` has more than 16 MiB", ref=ref, file=file.name)
    try:
        value = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ModelError(
            "load_failed", f"`{ref}`: `{file.name}` is no JSON: {error}", ref=ref, file=file.name
        ) from error
    if not isinstance(value, dict):
        raise ModelError("load_failed", f"`{ref}`: `{file.name}` is no JSON object", ref=ref, file=file.name)
    return value


def remote_code(ref: str, file: str) -> ModelError:
    """Tell that a model brings code to run."""
    return ModelError(
        "remote_code_refused",
        f"`{ref}` brings its own code, which is never run: {file}",
        "use a model that diffusers or transformers knows; or bind it with `trust_remote_code=True`, and load it in "
        "`setup()` from a `Path`",
        ref=ref,
        file=file,
    )


def refuse_code(repository: Repository, ref: str) -> None:
    """Raise `ModelError` when Python files lie in the model: nothing of it is loaded then."""
    found = next(iter(sorted(repository.path.glob("*.py"))), None) or next(iter(repository.path.glob("*/*.py")), None)
    if found is not None and repository.checkpoint is None:
        raise remote_code(ref, str(found.relative_to(repository.path)))


# --- weights ----------------------------------------------------------------------------------------------------------


class Weights(NamedTuple):
    """The files of weights in one folder: of safetensors by variant, `""` for those without; else pickles."""

    variants: dict[str, tuple[Path, ...]]
    pickles: tuple[Path, ...]


def weights_in(folder: Path, ref: str) -> Weights:
    """Find the weights that a loader would take from a folder; raise `ModelError` when a shard is missing."""
    names = [file.name for file in folder.iterdir()] if folder.is_dir() else []
    sets = of_one_stem(weight_sets(names, ".safetensors"))
    pickles = () if sets else of_one_stem(weight_sets(names, ".bin"))
    for each in (*sets, *pickles):
        if len(each.files) < each.shards:
            what = f"`{folder.name}` has {len(each.files)} of {each.shards} shards of `{each.stem}`"
            raise incomplete(ref, what, f"{folder.name}/{each.index or each.files[0]}")
    return Weights(
        {each.tag: tuple(folder / name for name in each.files) for each in sets},
        tuple(folder / name for each in pickles for name in each.files),
    )


def incomplete(ref: str, what: str, file: str) -> ModelError:
    """Tell that files of a model are missing."""
    hint = "`gen-worker cache verify` finds what is missing, so that it is fetched again"
    return ModelError("load_failed", f"`{ref}` is not complete: {what}", hint, ref=ref, file=file)


class Choice(NamedTuple):
    """Which weights are loaded: what the loaders call `variant`, its files, and pickles where there is nothing else."""

    variant: str
    files: tuple[Path, ...]
    pickles: tuple[Path, ...]


def choose_weights(repository: Repository, wanted: str, ref: str) -> Choice:
    """Choose the variant that covers most folders; of several the one named as the wanted dtype, then the plain one."""
    if (file := repository.checkpoint) is not None:
        if file.suffix == ".safetensors":
            return Choice("", (file,), ())
        return Choice("", (), (file,) if file.suffix in PICKLES else ())
    found = [weights_in(folder, ref) for folder in repository.folders]
    tags = sorted({tag for each in found for tag in each.variants}, key=lambda tag: _rank(found, tag, wanted))
    variant = tags[0] if tags else ""
    files = [each.variants.get(variant) or each.variants.get("", ()) for each in found]
    pickles = [each.pickles for each in found if not each.variants]
    return Choice(
        variant, tuple(file for each in files for file in each), tuple(file for each in pickles for file in each)
    )


def _rank(found: list[Weights], tag: str, wanted: str) -> tuple[int, bool, bool, str]:
    """Order variants: those that leave the fewest folders without weights first."""
    without = sum(1 for each in found if each.variants and tag not in each.variants and "" not in each.variants)
    return without, tag != wanted, tag != "", tag
