"""Where an endpoint's weights come from. A binding is a value: it names a model and fetches nothing."""

from collections.abc import Iterable, Mapping
from typing import ClassVar, Self, TypeAlias

import msgspec
from msgspec.structs import force_setattr

from gen_worker.models.dtypes import DTYPES, dtype_names
from gen_worker.models.wanted import Slot, Wanted


def _strip(binding: msgspec.Struct) -> None:
    """Strip every text of a new binding and make its globs a tuple."""
    for field in binding.__struct_fields__:
        value = getattr(binding, field)
        if field in ("files", "overrides"):
            force_setattr(binding, field, _globs(value))
            continue
        if field == "trust_remote_code":
            if not isinstance(value, bool):
                raise TypeError(f"`trust_remote_code=` takes True or False, got {value!r}")
            continue
        if not isinstance(value, str):
            raise TypeError(f"`{type(binding).__name__}({field}=)` takes a string, got {value!r}")
        force_setattr(binding, field, value.strip())


def _globs(globs: Iterable[str]) -> tuple[str, ...]:
    if isinstance(globs, str):
        raise TypeError(f"`files=` takes a tuple of globs, got the string {globs!r}; write `files=({globs!r},)`")
    return tuple(stripped for glob in globs if (stripped := glob.strip()))


class _Binding(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """What all bindings have in common."""

    overrides: tuple[str, ...] = ()  # globs of the refs that a request may name instead of this one

    @property
    def wanted(self) -> Wanted:
        """What decides which bytes this means."""
        raise NotImplementedError

    @property
    def wire_ref(self) -> str:
        """How an orchestrator names this model; a pinned version of Civitai's or ModelScope's is no part of it."""
        return self.wanted.wire_ref

    def allow_override(self, *refs: str) -> Self:
        """Return a copy that a request may replace by these refs, or by any of the provider's when none is given.

        A ref may hold `*`. A request names its models in the payload: `{"_models": {"slot": "owner/name"}}`.
        """
        for ref in refs:
            if not isinstance(ref, str) or not ref.strip():
                raise ValueError(f"`allow_override` takes refs like `owner/name` or `owner/*`, got {ref!r}")
        return msgspec.structs.replace(self, overrides=refs or ("*",))


class _WithCode(_Binding, frozen=True, kw_only=True):
    """A repository that may hold Python code."""

    trust_remote_code: bool = False
    """Whether its Python files are fetched, too. Nothing here runs them: a slot that is a `Path` gets the folder."""


class HF(_WithCode, frozen=True):
    """A repository on Hugging Face, `owner/name`."""

    provider: ClassVar[str] = "hf"

    ref: str
    revision: str = ""
    dtype: str = ""
    subfolder: str = ""
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _strip(self)
        _need_owner(self.ref, "HF")
        if self.dtype and self.dtype.lower() not in DTYPES:
            raise ValueError(f"`HF(dtype=)` takes one of {dtype_names()}, got `{self.dtype}`")

    @property
    def wanted(self) -> Wanted:
        """What decides which bytes this means."""
        return Wanted(
            "hf",
            self.ref,
            self.revision,
            dtype=self.dtype,
            subfolder=self.subfolder,
            files=self.files,
            trust_remote_code=self.trust_remote_code,
        )


class _Pinnable(_Binding, frozen=True, kw_only=True):
    """A repository of which one snapshot can be meant."""

    digest: str = ""
    """`blake3:<hex>` or `sha256:<hex>`: the snapshot that is meant, whatever the tag stands for."""


class Hub(_Pinnable, frozen=True):
    """A repository on the platform's own hub."""

    provider: ClassVar[str] = "tensorhub"

    ref: str
    tag: str = "prod"
    flavor: str = ""

    def __post_init__(self) -> None:
        _strip(self)
        _need_text(self.ref, "Hub")
        if not self.tag and not self.digest:
            force_setattr(self, "tag", "prod")

    @property
    def wanted(self) -> Wanted:
        """What decides which bytes this means."""
        tag = "" if self.digest else self.tag
        return Wanted("tensorhub", self.ref, tag=tag, digest=self.digest, flavor=self.flavor)


class Civitai(_Binding, frozen=True):
    """A model on Civitai: `ref` is the model's id, `version` one of its versions' ids."""

    provider: ClassVar[str] = "civitai"

    ref: str
    version: str = ""

    def __post_init__(self) -> None:
        _strip(self)
        _need_text(self.ref, "Civitai")

    @property
    def wanted(self) -> Wanted:
        """What decides which bytes this means."""
        return Wanted("civitai", self.ref, version=self.version)


class ModelScope(_Binding, frozen=True):
    """A repository on ModelScope, `owner/name`."""

    provider: ClassVar[str] = "modelscope"

    ref: str
    revision: str = ""
    files: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _strip(self)
        _need_owner(self.ref, "ModelScope")

    @property
    def wanted(self) -> Wanted:
        """What decides which bytes this means."""
        return Wanted("modelscope", self.ref, self.revision, files=self.files)


Binding: TypeAlias = HF | Hub | Civitai | ModelScope


def slots_of(bindings: Mapping[str, Binding]) -> list[Slot]:
    """Return what messages say of bindings by slot."""
    return [Slot(name, binding.wanted, binding.overrides) for name, binding in bindings.items()]


def _need_text(ref: str, binding: str) -> None:
    if not ref:
        raise ValueError(f"`{binding}` needs the id of a model, got an empty one")


def _need_owner(ref: str, binding: str) -> None:
    if not all(part.strip() for part in ref.partition("/")):
        raise ValueError(f"`{binding}` needs a ref like `owner/name`, got `{ref}`")
