"""Whether a model on disk is what a slot's annotation asks for, found out before anything heavy is read.

The loaders themselves do not look: `StableDiffusionPipeline.from_pretrained` of an SDXL model succeeds, and fails, or
paints noise, with the first request.
"""

import importlib
import inspect
import typing
from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple, NoReturn, TypeAlias

from gen_worker.api.slots import alternatives
from gen_worker.models.errors import ModelError
from gen_worker_child.models.repository import Part, Repository, read_json

Family: TypeAlias = Literal[
    "pipeline", "model", "transformers", "tokenizer", "processor", "scheduler", "config", "foreign"
]
Lookup: TypeAlias = Callable[[str, str], Any]
"""Finds a class by library and name; None where this version of the library has none."""

_FAMILIES: dict[str, Family] = {
    "DiffusionPipeline": "pipeline",
    "ModelMixin": "model",
    "SchedulerMixin": "scheduler",
    "_BaseAutoModelClass": "transformers",
    "PreTrainedModel": "transformers",
    "PreTrainedTokenizerBase": "tokenizer",
    "AutoTokenizer": "tokenizer",
    "ProcessorMixin": "processor",
    "ImageProcessingMixin": "processor",
    "FeatureExtractionMixin": "processor",
    "AutoProcessor": "processor",
    "AutoImageProcessor": "processor",
    "AutoVideoProcessor": "processor",
    "AutoFeatureExtractor": "processor",
    "PreTrainedConfig": "config",
    "PretrainedConfig": "config",
    "AutoConfig": "config",
}
_TOKENIZER_FILES = (
    "tokenizer_config.json",
    "tokenizer.json",
    "vocab.json",
    "vocab.txt",
    "spiece.model",
    "tokenizer.model",
)
_PROCESSOR_FILES = ("processor_config.json", "preprocessor_config.json", "image_processor_config.json")
_LEFT_OUT = frozenset(("safety_checker", "feature_extractor", "image_encoder"))  # pipelines do without these


class Target(NamedTuple):
    """What makes the object for a slot."""

    cls: Any
    family: Family


def library_class(library: str, name: str) -> Any:
    """Find a class of diffusers or transformers; None for other libraries and unknown names."""
    if library not in ("diffusers", "transformers"):
        return None
    return getattr(importlib.import_module(library), name, None)


def family_of(cls: type) -> Family:
    """Tell what a class with `from_pretrained` makes."""
    for base in cls.__mro__:
        library = base.__module__.partition(".")[0]
        if library not in ("diffusers", "transformers"):
            continue
        if base.__name__ in _FAMILIES:
            return _FAMILIES[base.__name__]
        if library == "diffusers" and base.__name__.startswith("AutoPipelineFor"):
            return "pipeline"
        if library == "diffusers" and base.__name__ == "AutoModel":
            return "model"
    return "foreign"


def target_of(asked: type, repository: Repository, *, slot: str, ref: str, lookup: Lookup = library_class) -> Target:
    """Return what to load with; raise `ModelError` naming both classes when the model is not what is asked for.

    The same class, a base or a subclass of it will do. So will another pipeline that takes the same parts, such as the
    image-to-image pipeline of the same family, unless the weights were made for one pipeline only.
    """
    family = family_of(asked)
    question = _Question(asked, repository, slot, ref, lookup)
    match family:
        case "pipeline":
            return Target(question.pipeline(), family)
        case "model":
            return Target(question.model(), family)
        case "transformers":
            return Target(question.transformers(), family)
        case "tokenizer":
            return Target(question.tokenizer(), family)
        case "processor":
            question.need_files("a processor", _PROCESSOR_FILES + _TOKENIZER_FILES)
        case "scheduler":
            return Target(question.scheduler(), family)
        case "config":
            question.need_files("a configuration", ("config.json",))
    return Target(asked, family)


class _Question(NamedTuple):
    """One class that is asked for, and the model that is there."""

    asked: Any
    repository: Repository
    slot: str
    ref: str
    lookup: Lookup

    def pipeline(self) -> Any:
        """Return the pipeline class to load with."""
        asked, repository = self.asked, self.repository
        if repository.kind == "file":
            return self._from_file()
        if repository.kind != "pipeline":
            self._refuse(f"is {_described(repository)} and no pipeline")
        declared = self.lookup("diffusers", repository.declared)
        if asked.__name__ == "DiffusionPipeline" or asked.__name__.startswith("AutoPipelineFor"):
            if declared is None:
                self._refuse(f"is {with_article(repository.declared)}, which this version of diffusers does not have")
            return asked
        if asked.__name__ == repository.declared:
            return asked
        if declared is not None and issubclass(declared, asked):
            return declared
        if declared is not None and issubclass(asked, declared):
            return asked
        if reason := misfit(asked, repository, self.lookup):
            self._refuse(f"is {with_article(repository.declared)}", reason)
        return asked

    def model(self) -> Any:
        """Return the model class of diffusers to load with."""
        asked, repository = self.asked, self.repository
        if repository.kind == "file":
            return self._from_file()
        if asked.__name__ == "AutoModel" and repository.kind in ("diffusers", "transformers"):
            return asked
        if repository.kind != "diffusers":
            self._refuse(f"is {_described(repository)}")
        declared = self.lookup("diffusers", repository.declared)
        if declared is not None and issubclass(declared, asked):
            return declared
        if asked.__name__ == repository.declared or (declared is not None and issubclass(asked, declared)):
            return asked
        return self._refuse(f"is {with_article(repository.declared)}")

    def transformers(self) -> Any:
        """Return the model class of transformers to load with."""
        asked, repository = self.asked, self.repository
        if repository.kind != "transformers":
            self._refuse(f"is {_described(repository)}")
        if any(base.__name__ == "_BaseAutoModelClass" for base in asked.__mro__):
            return asked
        for name in repository.architectures:
            declared = self.lookup("transformers", name)
            if declared is not None and issubclass(declared, asked):
                return declared
            if asked.__name__ == name or (declared is not None and issubclass(asked, declared)):
                return asked
        family = getattr(getattr(asked, "config_class", None), "model_type", None)
        if family in repository.model_types:
            return asked
        return self._refuse(f"is {_described(repository)}")

    def tokenizer(self) -> Any:
        """Return the tokenizer class to load with."""
        self.need_files("a tokenizer", _TOKENIZER_FILES)
        asked, name = self.asked, _tokenizer_class(self.repository)
        if asked.__name__ == "AutoTokenizer" or not name:
            return asked
        declared = self.lookup("transformers", name)
        if asked.__name__ == "PreTrainedTokenizerBase":
            return self.lookup("transformers", "AutoTokenizer")
        if _plain(asked.__name__) == _plain(name) or declared is None:
            return asked
        if issubclass(declared, asked) or issubclass(asked, declared):
            return asked
        return self._refuse(f"has {with_article(name)}")

    def scheduler(self) -> Any:
        """Return the scheduler class to load with: any takes another's settings."""
        self.need_files("a scheduler", ("scheduler_config.json",))
        if self.asked.__name__ != "SchedulerMixin":
            return self.asked
        named = read_json(self.repository.path / "scheduler_config.json", self.ref).get("_class_name")
        declared = self.lookup("diffusers", str(named))
        if declared is None:
            self._refuse(f"has a `{named}`, which this version of diffusers does not have")
        return declared

    def need_files(self, what: str, names: Iterable[str]) -> None:
        """Refuse a model that has none of the files."""
        if not self.repository.has(*names):
            self._refuse(f"has no file of {what} in its folder", file=next(iter(names)))

    def _from_file(self) -> Any:
        if not hasattr(self.asked, "from_single_file"):
            self._refuse("is a single file of weights, from which that class cannot be made")
        return self.asked

    def _refuse(self, what: str, reason: str = "", file: str = "") -> NoReturn:
        asks = f"the slot `{self.slot}` asks for {with_article(self.asked.__name__)}"
        raise ModelError(
            "load_failed",
            f"`{self.ref}` {what}, {asks}{f': {reason}' if reason else ''}",
            self._remedy(),
            ref=self.ref,
            file=file,
        )

    def _remedy(self) -> str:
        repository = self.repository
        if parts := [part.name for part in repository.parts.values() if self._is_made_of(part)]:
            return f'bind the part that it is with `subfolder="{parts[0]}"`'
        if repository.declared:
            return f"annotate `{self.slot}` with `{repository.declared}`, or bind another model to it"
        return f"bind another model to `{self.slot}`, or annotate it with `Path` and load it in `setup()`"

    def _is_made_of(self, part: Part) -> bool:
        """Whether the class that is asked for makes this part of a pipeline."""
        declared = self.lookup(part.library, part.class_name)
        if part.class_name == self.asked.__name__ or not isinstance(declared, type):
            return bool(part.class_name == self.asked.__name__)
        family = family_of(declared)
        small = family in ("tokenizer", "processor", "scheduler")
        return issubclass(declared, self.asked) or (small and family == family_of(self.asked))


def _described(repository: Repository) -> str:
    if repository.kind == "other":
        return "a folder without `model_index.json` and `config.json`"
    if repository.kind == "file":
        return "a single file of weights"
    named = repository.declared or next(iter(sorted(repository.model_types)), "")
    return with_article(named) if named else "a model of transformers"


def _tokenizer_class(repository: Repository) -> str:
    file = repository.path / "tokenizer_config.json"
    return str(read_json(file, "").get("tokenizer_class") or "") if file.is_file() else ""


def with_article(name: str) -> str:
    """Return the name of a class with its article."""
    return f"{'an' if name[:1].lower() in 'aeiou' and not name.startswith('U') else 'a'} `{name}`"


def _plain(name: str) -> str:
    return name.removesuffix("Fast")


# --- another pipeline with the same parts -----------------------------------------------------------------------------


def misfit(asked: Any, repository: Repository, lookup: Lookup) -> str:
    """Say why a pipeline cannot be made of another one's parts; empty when it can."""
    parameters = {
        name: each
        for name, each in inspect.signature(asked.__init__).parameters.items()
        if name != "self" and each.kind not in (each.VAR_POSITIONAL, each.VAR_KEYWORD)
    }
    optional = set(getattr(asked, "_optional_components", ()))
    needed = {name for name, each in parameters.items() if each.default is each.empty or name in optional} - _LEFT_OUT
    if missing := sorted(needed - repository.config.keys()):  # a part that is null there is none that it lacks
        return f"it has no `{missing[0]}`"
    if unplaced := sorted(repository.parts.keys() - parameters.keys() - _LEFT_OUT):
        return f"that has no place for its `{unplaced[0]}`"
    for part in repository.parts.values():
        if part.name in parameters and not _suits(part, _hints(asked).get(part.name), lookup):
            return f"that cannot use its `{part.name}`, {with_article(part.class_name)}"
    return _made_for_one(repository)


def _hints(asked: Any) -> dict[str, Any]:
    try:
        return typing.get_type_hints(asked.__init__)
    except (NameError, TypeError, AttributeError):  # an annotation that exists for type checkers only
        return {}


def _suits(part: Part, hint: object, lookup: Lookup) -> bool:
    """Whether a part is of the class that the pipeline's annotation names; where that is open, it is."""
    if any(word in part.name for word in ("scheduler", "tokenizer", "processor", "extractor")):
        return True  # these stand in for one another
    classes = [each for each in alternatives(hint) if isinstance(each, type) and each is not type(None)]
    declared = lookup(part.library, part.class_name)
    if not classes or typing.Any in classes or not isinstance(declared, type):
        return True
    return any(issubclass(declared, each) for each in classes)


def _made_for_one(repository: Repository) -> str:
    """Inpainting and editing models take more channels than they give, which no other pipeline passes them."""
    for name in ("unet", "transformer"):
        file = repository.path / name / "config.json"
        if name in repository.parts and file.is_file():
            config = read_json(file, "")
            taken, given = config.get("in_channels"), config.get("out_channels")
            if isinstance(taken, int) and isinstance(given, int) and taken > given:
                return f"its `{name}` takes {taken} channels and gives {given}: it is made for that pipeline only"
    return ""
