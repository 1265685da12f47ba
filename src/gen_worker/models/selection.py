"""Which files of a repository a model needs. Pure: told what is in some small files, it says which others to look into.

A pipeline (`model_index.json`) is taken component by component, with one set of weights each; a repository with its
weights in the root, as `transformers` has them, with one set too. Weights are safetensors: a pickle can run any code
where it is loaded, so it is refused unless the operator allows that repository.
"""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from posixpath import dirname
from re import fullmatch
from typing import Any, NoReturn

import msgspec

from gen_worker.models.errors import ModelError, ModelErrorKind
from gen_worker.models.paths import check_path, check_paths
from gen_worker.models.wanted import Wanted
from gen_worker.models.weights import (
    HALVES,
    UNKNOWN,
    WeightSet,
    choose,
    of_one_stem,
    precision_named,
    tags_in_order,
    weight_sets,
)

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib")
WEIGHTS = (".safetensors", ".gguf", *PICKLES, ".onnx", ".onnx_data", ".msgpack", ".h5", ".ot", ".tflite", ".flashpack")
OPTIONAL_COMPONENTS = ("safety_checker", "feature_extractor")
INDEX = "model_index.json"

_OF_TRAINING = ("training_args.bin", "optimizer.bin", "optimizer.pt", "scheduler.pt", "scheduler.bin", "rng_state*.pth")
_SENTENCE_MODULE = r"\d+_\w+"  # `2_Dense`: where sentence-transformers keeps what follows the model


class Known(msgspec.Struct, frozen=True):
    """What was looked up so far, by path in the repository."""

    documents: Mapping[str, bytes] = {}
    precisions: Mapping[str, str] = {}
    """Of safetensors files, as `gen_worker.models.headers.Header.precision` says them."""


NOTHING = Known()


class SelectionOptions(msgspec.Struct, frozen=True):
    """What narrows or widens the files of a repository that are taken."""

    components: tuple[str, ...] = ()
    """Folders of a pipeline to take instead of those that its `model_index.json` names."""

    optional_components: bool = False
    """Also `safety_checker` and `feature_extractor`."""

    precisions: tuple[str, ...] = ()
    """Of the weights, the first wanted first: `bf16`, `fp16`, `fp8`, `fp32`; empty: bf16, fp16, untagged."""

    root_json: bool = False
    full_repo: bool = False
    allow_pickle: tuple[str, ...] = ()
    """Refs whose weights may be pickles."""

    max_repo_bytes: int = 60_000_000_000
    """0: no limit."""


class Asks(msgspec.Struct, frozen=True):
    """What has to be looked up before there is an answer: the content of small files, the precision of big ones."""

    documents: tuple[str, ...] = ()
    precisions: tuple[str, ...] = ()


class Selection(msgspec.Struct, frozen=True):
    """The paths to fetch, sorted, and what people should know of the choice."""

    files: tuple[str, ...]
    notes: tuple[str, ...] = ()


def select(
    listing: Mapping[str, int | None], wanted: Wanted, options: SelectionOptions, known: Known = NOTHING
) -> Selection | Asks:
    """Return the files of a repository to fetch, or what to look up first; call again with that.

    `listing` has the sizes by path. Raises `ModelError` when there is nothing that may be taken, a shard is missing, a
    name is hostile, or it is more than the operator allows.
    """
    for path in listing:
        check_path(path)
    choice = _Choice(listing, wanted, options, known)
    try:
        files = choice.files()
    except _NotKnownYet:
        files = []
    if choice.documents or choice.precisions:
        return Asks(tuple(sorted(choice.documents)), tuple(sorted(choice.precisions)))
    chosen = check_paths(sorted(set(files)))
    _check_size(sum(listing[path] or 0 for path in chosen), wanted, options)
    return Selection(chosen, choice.notes())


def _check_size(size: int, wanted: Wanted, options: SelectionOptions) -> None:
    if 0 < options.max_repo_bytes < size:
        raise ModelError(
            "too_large",
            f"`{wanted.ref}` has {_gb(size)} of files that are needed, the limit is {_gb(options.max_repo_bytes)}",
            "narrow it with `files=` or `subfolder=`, or set `COZY_HF_MAX_REPO_BYTES` (0: no limit)",
            ref=wanted.ref,
        )


def _prefix(wanted: Wanted) -> str:
    """Return how the paths begin that `subfolder=` leaves; raise `ModelError` where it leads out of the repository."""
    if not wanted.subfolder:
        return ""
    try:
        return f"{check_path(wanted.subfolder.rstrip('/'))}/"
    except ModelError as error:
        text = f"`{wanted.ref}` has no folder {wanted.subfolder[:100]!r}"
        raise ModelError("file_not_found", text, "`subfolder=` is a path as `unet`", ref=wanted.ref) from error


class _NotKnownYet(Exception):
    """Something was asked for that decides what comes next."""


class _Choice:
    """One call of `select`: what it knows, what it found missing, and what it wants to tell."""

    def __init__(
        self, listing: Mapping[str, int | None], wanted: Wanted, options: SelectionOptions, known: Known
    ) -> None:
        self._listing = listing
        self._wanted = wanted
        self._options = options
        self._known = known
        self._flavor = precision_named(wanted.flavor)
        self._prefix = _prefix(wanted)
        self._pickles = wanted.named_in(options.allow_pickle)
        self._halves: Sequence[str] = HALVES
        self._fp32: dict[str, int] = {}  # folder: bytes
        self._left_out: list[str] = []
        self.documents: set[str] = set()
        self.precisions: set[str] = set()

    def files(self) -> list[str]:
        """Return the paths to fetch; what could not be answered yet is then in `documents` and `precisions`."""
        if self._wanted.files:
            return self._matching()
        below = [path for path in self._listing if path.startswith(self._prefix)]
        if not below:
            self._refuse("file_not_found", f"has no folder `{self._wanted.subfolder}`", self._folders_hint())
        if self._options.full_repo:
            return self._allowed(below)
        if self._prefix + INDEX in self._listing:
            return self._pipeline()
        components = self._options.components or self._components_by_look()
        if components:
            return self._components(components)
        return self._root(below)

    def notes(self) -> tuple[str, ...]:
        """Return what people should know of the choice."""
        notes = []
        if self._fp32 and precision_named(self._wanted.dtype) != "fp32":
            where = ", ".join(f"`{folder}`" if folder else "its root" for folder in sorted(self._fp32))
            size = _gb(sum(self._fp32.values()))
            notes.append(
                f"`{self._wanted.ref}` has nothing smaller than fp32 weights in {where}: {size} are fetched; "
                "`COZY_HF_WEIGHT_PRECISIONS=bf16,fp16` forbids that"
            )
        if self._left_out:
            notes.append(
                f"`{self._wanted.ref}` was taken without {_listed(self._left_out)}: "
                "pickles and Python files are fetched only when they are allowed"
            )
        return tuple(notes)

    # --- what was asked for by name -----------------------------------------------------------------------------------

    def _matching(self) -> list[str]:
        globs = tuple(f"{glob}*" if glob.endswith("/") else glob for glob in self._wanted.files)
        matching = [path for path in self._listing if any(fnmatchcase(path, glob) for glob in globs)]
        if not matching:
            shown = ", ".join(f"`{glob}`" for glob in self._wanted.files)
            self._refuse("file_not_found", f"has no file like {shown}", self._folders_hint())
        for path in matching:
            if path in globs and self._is_refused_code(path):
                self._refuse_code(path)
            if path in globs and self._is_refused_pickle(path):
                self._refuse_pickle(path)
        return self._allowed(matching)

    def _allowed(self, paths: Sequence[str]) -> list[str]:
        """Return those that may be fetched; raise when all weights among them are pickles that may not."""
        allowed = [path for path in paths if not self._is_refused_code(path) and not self._is_refused_pickle(path)]
        pickles = [path for path in paths if self._is_refused_pickle(path) and not _of_training(path)]
        if pickles and not any(path.endswith(WEIGHTS) for path in allowed):
            self._refuse_pickle(pickles[0])
        self._left_out += [path for path in paths if path not in allowed and not _of_training(path)]
        return allowed

    # --- pipelines ----------------------------------------------------------------------------------------------------

    def _pipeline(self) -> list[str]:
        index = self._prefix + INDEX
        files = [index]
        if self._options.root_json:
            files += [path for path in self._within("") if path.endswith(".json")]
        if self._wanted.trust_remote_code:
            files += [path for path in self._within("") if path.endswith(".py")]
        entries = self._document(index)
        self._check_own_code(index, entries)
        skipped = () if self._options.optional_components else OPTIONAL_COMPONENTS
        named = [name for name, entry in entries.items() if _names_component(name, entry)]
        present = [name for name in named if name not in skipped and self._below(name)]
        return files + self._components(self._options.components or present)

    def _components_by_look(self) -> list[str]:
        """Return the components of what looks like a pipeline without an index: it has a denoiser's folder."""
        if not any(name.endswith(WEIGHTS) for folder in ("transformer", "unet") for name in self._within(folder)):
            return []
        folders = {path[len(self._prefix) :].partition("/")[0] for path in self._below("") if "/" in path}
        skipped = () if self._options.optional_components else OPTIONAL_COMPONENTS
        return [each for each in sorted(folders) if each not in skipped and _is_component(self._names(each))]

    def _components(self, components: Sequence[str]) -> list[str]:
        for name in components:
            if not self._below(name):
                hint = f"`COZY_HF_COMPONENTS` names it; {self._folders_hint()}"
                self._refuse("file_not_found", f"has no component `{name}`", hint)
        weighty = [name for name in components if any(path.endswith(WEIGHTS) for path in self._within(name))]
        self._halves = tags_in_order([weight_sets(self._names(name), ".safetensors") for name in weighty])
        self._check_flavor(weighty)
        files: list[str] = []
        for name in components:
            try:
                files += self._component(name, weighty=name in weighty)
            except _NotKnownYet:
                continue  # so that all is asked for at once
        return files

    def _component(self, folder: str, *, weighty: bool) -> list[str]:
        if weighty:
            own = [path for path in self._within(folder) if path.endswith(".json") and ".index." not in path]
            return own + self._code(self._within(folder)) + self._weights(folder)
        if f"{self._prefix}{folder}/config.json" in self._listing:  # what has none says so in a file of another name
            self._refuse("no_weights", f"has no weights in `{folder}`", _PRECISIONS_HINT, file=folder)
        below = self._below(folder)
        return [path for path in below if not path.endswith((".py", *WEIGHTS))] + self._code(below)

    # --- weights in the root ------------------------------------------------------------------------------------------

    def _root(self, below: Sequence[str]) -> list[str]:
        weights = [path for path in below if path.endswith(WEIGHTS) and not _of_training(path)]
        if f"{self._prefix}config.json" in self._listing:
            config = f"{self._prefix}config.json"
            self._check_own_code(config, self._document(config))
        folders = {dirname(path)[len(self._prefix) :] for path in weights}
        parts = sorted(folder for folder in folders if not folder or fullmatch(_SENTENCE_MODULE, folder))
        if weights and not parts:
            self._refuse("no_weights", f"keeps its weights in {_listed(sorted(folders))}", _NARROW_HINT)
        self._check_flavor(parts)
        foreign = tuple(f"{self._prefix}{folder}/" for folder in folders.difference(parts))
        files = [path for path in below if not path.startswith(foreign) and not _is_code_or_weights(path)]
        return files + self._code(below) + [path for part in parts for path in self._weights(part)]

    # --- one set of weights -------------------------------------------------------------------------------------------

    def _weights(self, folder: str) -> list[str]:
        """Return the paths of the weights to take of what lies in a folder."""
        names = [name for name in self._names(folder) if not _of_training(name)]
        safetensors, gguf = weight_sets(names, ".safetensors"), weight_sets(names, ".gguf")
        if safetensors and not any(self._flavor and each.tag == self._flavor for each in gguf):
            return self._taken(folder, safetensors)
        if gguf:
            return self._quantized(folder, gguf)
        pickles = [each for suffix in PICKLES for each in weight_sets(names, suffix)]
        if not pickles:
            found = sorted({f".{name.rpartition('.')[2]}" for name in names if name.endswith(WEIGHTS)})
            what = f"has no safetensors in {_place(folder)}, but {_listed(found)}"
            self._refuse("no_weights", what, _NARROW_HINT, file=folder)
        if not self._pickles:
            self._refuse_pickle(self._path(folder, (pickles[0].files or (pickles[0].index,))[0]))
        suffix = next(suffix for suffix in PICKLES if any(name.endswith(suffix) for name in names))
        return self._taken(folder, weight_sets(names, suffix))

    def _taken(self, folder: str, sets: Sequence[WeightSet]) -> list[str]:
        alike = of_one_stem(sets)
        if not alike:
            shown = _listed([file for each in sets for file in each.files])
            self._refuse("no_weights", f"has several models in {_place(folder)}: {shown}", _FILES_HINT, file=folder)

        def precision(each: WeightSet) -> str:
            return self._precision(folder, each)

        dtype, only = precision_named(self._wanted.dtype), self._options.precisions
        chosen = choose(alike, precision, flavor=self._flavor, dtype=dtype, only=only, halves=self._halves)
        if chosen is None:
            there = _listed([each.tag or precision(each) for each in alike])
            asked = " or ".join(only or HALVES)
            what = f"has no {asked} weights in {_place(folder)}, but {there}"
            self._refuse("no_weights", what, _PRECISIONS_HINT, file=folder)
        self._look_into(folder, chosen)
        paths = self._set(folder, chosen)
        if (chosen.tag or precision(chosen)) == "fp32":
            self._fp32[folder] = sum(self._listing[path] or 0 for path in paths)
        return paths

    def _quantized(self, folder: str, sets: Sequence[WeightSet]) -> list[str]:
        """Return the one gguf model there is, or the one whose quantization is the flavor."""
        fitting = [each for each in sets if self._flavor in ("", each.tag)]
        if len(fitting) != 1:
            shown = _listed([file for each in sets for file in each.files])
            what = f"has {len(sets)} gguf models in {_place(folder)}: {shown}"
            self._refuse("no_weights", what, _FILES_HINT, file=folder)
        return self._set(folder, fitting[0])

    def _set(self, folder: str, chosen: WeightSet) -> list[str]:
        """Return the paths of a set, its index first; raise when a shard is missing."""
        if not chosen.index:
            if chosen.shards and len(chosen.files) != chosen.shards:
                what = f"has {len(chosen.files)} of {chosen.shards} shards like `{chosen.files[0]}`"
                self._refuse("file_not_found", what, _INCOMPLETE_HINT, file=self._path(folder, chosen.files[0]))
            return [self._path(folder, name) for name in chosen.files]
        index = self._path(folder, chosen.index)
        shards = self._document(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(name, str) for name in shards.values()):
            self._refuse("bad_manifest", f"has an index without shards, `{index}`", _INCOMPLETE_HINT, file=index)
        paths = [self._path(folder, check_path(name)) for name in sorted(set(shards.values()))]
        for path in paths:
            if path not in self._listing:
                self._refuse("file_not_found", f"lacks `{path}`, which `{index}` names", _INCOMPLETE_HINT, file=path)
        return [index, *paths]

    def _precision(self, folder: str, weights: WeightSet) -> str:
        path = self._look_into(folder, weights)
        if path in self.precisions:
            raise _NotKnownYet
        return self._known.precisions.get(path, UNKNOWN)

    def _look_into(self, folder: str, weights: WeightSet) -> str:
        """Have it looked up what weights without a tag are; return the file that tells, empty when none does."""
        path = self._path(folder, weights.files[0]) if weights.files and not weights.tag else ""
        if not path.endswith(".safetensors"):
            return ""
        if path not in self._known.precisions:
            self.precisions.add(path)
        return path

    def _check_flavor(self, folders: Iterable[str]) -> None:
        """Refuse a flavor that no weights are tagged with."""
        if not self._flavor:
            return
        names = [name for folder in folders for name in self._names(folder)]
        tags = {each.tag for suffix in (".safetensors", ".gguf", *PICKLES) for each in weight_sets(names, suffix)}
        if self._flavor not in tags:
            there = _listed(sorted(tags - {""})) or "weights without a flavor"
            self._refuse("file_not_found", f"has no weights of the flavor `{self._wanted.flavor}`, but {there}", "")

    # --- code of the repository's own ---------------------------------------------------------------------------------

    def _check_own_code(self, path: str, document: Mapping[str, Any]) -> None:
        """Refuse a configuration that cannot be loaded without Python files of the repository."""
        if self._wanted.trust_remote_code:
            return
        if document.get("auto_map"):
            self._refuse_code(path)
        for name, entry in document.items():
            module = entry[0] if isinstance(entry, list) and entry else None
            if not isinstance(module, str) or not path.endswith(INDEX):
                continue
            own = [f"{self._prefix}{module}.py", f"{self._prefix}{name}/{module}.py"]
            if code := next((each for each in own if each in self._listing), ""):
                self._refuse_code(code)

    def _code(self, paths: Iterable[str]) -> list[str]:
        return [path for path in paths if path.endswith(".py") and self._wanted.trust_remote_code]

    def _is_refused_code(self, path: str) -> bool:
        return path.endswith(".py") and not self._wanted.trust_remote_code

    def _is_refused_pickle(self, path: str) -> bool:
        return path.endswith(PICKLES) and not self._pickles

    # --- what is there ------------------------------------------------------------------------------------------------

    def _path(self, folder: str, name: str) -> str:
        return f"{self._prefix}{folder}/{name}" if folder else f"{self._prefix}{name}"

    def _below(self, folder: str) -> list[str]:
        start = self._path(folder, "")
        return [path for path in self._listing if path.startswith(start)]

    def _within(self, folder: str) -> list[str]:
        return [self._path(folder, name) for name in self._names(folder)]

    def _names(self, folder: str) -> list[str]:
        """Return the names of the files that lie directly in a folder."""
        start = len(self._path(folder, ""))
        return [path[start:] for path in self._below(folder) if "/" not in path[start:]]

    def _document(self, path: str) -> dict[str, Any]:
        if path not in self._known.documents:
            self.documents.add(path)
            raise _NotKnownYet
        try:
            return msgspec.json.decode(self._known.documents[path], type=dict[str, Any])
        except (ValueError, RecursionError) as error:
            self._refuse("bad_manifest", f"has a `{path}` that cannot be read: {error}", _INCOMPLETE_HINT, file=path)

    # --- refusals -----------------------------------------------------------------------------------------------------

    def _refuse(self, kind: ModelErrorKind, what: str, hint: str, file: str = "") -> NoReturn:
        raise ModelError(kind, f"`{self._wanted.ref}` {what}", hint, ref=self._wanted.ref, file=file)

    def _refuse_pickle(self, path: str) -> NoReturn:
        self._refuse(
            "pickle_refused",
            f"has its weights as a pickle, `{path}`, which can run any code where it is loaded",
            f"take a repository with safetensors, or trust this one: `GEN_WORKER_ALLOW_PICKLE={self._wanted.repo}`",
            file=path,
        )

    def _refuse_code(self, path: str) -> NoReturn:
        self._refuse(
            "remote_code_refused",
            f"needs Python code of its own, as `{path}` says, and code is not fetched",
            "take another, or bind it with `trust_remote_code=True` and load it from a `Path` in `setup()`",
            file=path,
        )

    def _folders_hint(self) -> str:
        top = sorted({path.partition("/")[0] + ("/" if "/" in path else "") for path in self._listing})
        return f"there is: {_listed(top)}" if top else "it is empty"


_FILES_HINT = 'name the one that is meant, as in `files=("model.safetensors",)`'
_NARROW_HINT = (
    "name what is meant with `subfolder=` or `files=`, or fetch all of it with `COZY_HF_FULL_REPO_DOWNLOAD=1`"
)
_PRECISIONS_HINT = (
    "say what may be taken with `COZY_HF_WEIGHT_PRECISIONS` (some of bf16, fp16, fp8, fp32), or with `files=`, "
    "or fetch the whole repository with `COZY_HF_FULL_REPO_DOWNLOAD=1`"
)
_INCOMPLETE_HINT = "the repository is incomplete; take another revision, or tell its owner"


def _names_component(name: str, entry: Any) -> bool:
    """Whether an entry of a pipeline's index is a component, as `"unet": ["diffusers", "UNet2DConditionModel"]`."""
    return isinstance(entry, list) and any(entry) and bool(name) and not name.startswith("_") and "/" not in name


def _is_component(names: Sequence[str]) -> bool:
    configs = ("config.json", "tokenizer_config.json", "scheduler_config.json", "preprocessor_config.json")
    return any(name in configs or name.endswith(".safetensors") for name in names)


def _is_code_or_weights(path: str) -> bool:
    name = path.rpartition("/")[2]
    return path.endswith((".py", *WEIGHTS)) or ".safetensors.index." in name or ".bin.index." in name


def _of_training(path: str) -> bool:
    """Whether a file keeps the state of a training, which nobody loads to infer."""
    return any(fnmatchcase(path.rpartition("/")[2], name) for name in _OF_TRAINING)


def _place(folder: str) -> str:
    return f"`{folder}`" if folder else "its root"


def _listed(names: Iterable[str], limit: int = 6) -> str:
    shown = [f"`{name}`" for name in names]
    more = f" and {len(shown) - limit} more" if len(shown) > limit else ""
    return ", ".join(shown[:limit]) + more


def _gb(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 50_000_000 else f"{size / 1e6:.1f} MB"
