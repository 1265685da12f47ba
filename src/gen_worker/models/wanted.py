"""A model as somebody wants it: everything that decides which bytes that means. A value; fetches nothing."""

from collections.abc import Iterable
from fnmatch import fnmatchcase
from typing import Literal, TypeAlias

import msgspec

from gen_worker.secret import without

Provider: TypeAlias = Literal["hf", "tensorhub", "civitai", "modelscope"]


class SnapshotFile(msgspec.Struct, frozen=True):
    """One file of a snapshot that an orchestrator describes: where its bytes are had, and what they must be."""

    path: str
    size_bytes: int
    blake3: str
    url: str

    def __repr__(self) -> str:
        """Leave out the URL, which is signed."""
        return without(self, "url")


class Wanted(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model: its provider, its ref, and what narrows down the files of it that are needed."""

    provider: Provider
    repo: str
    """`owner/name`; for Civitai the model's id."""

    revision: str = ""
    """Of `hf` and `modelscope`: a branch, tag or commit; empty: the default branch."""

    tag: str = ""
    """Of `tensorhub`; empty stands for `prod`."""

    digest: str = ""
    """Of `tensorhub`: `blake3:<hex>` or `sha256:<hex>`, a snapshot that never changes."""

    flavor: str = ""
    """Of `tensorhub` and `hf`: the variant of the weights."""

    version: str = ""
    """Of `civitai`: the model version's id; empty: the latest."""

    dtype: str = ""
    """What the weights shall be on the device; empty: what they are stored as."""

    subfolder: str = ""
    files: tuple[str, ...] = ()
    """Globs; when there are any, exactly the files that match are fetched."""

    trust_remote_code: bool = False
    """Whether Python files of the repository may be fetched at all; nothing here ever runs them."""

    @property
    def ref(self) -> str:
        """How messages, the cache and people name this model; what narrows down its files is no part of it."""
        if self.provider == "tensorhub":
            at = f"@{self.digest}" if self.digest else f":{self.tag}" if self.tag not in ("", "prod") else ""
            return f"{self.repo}{at}{f'#{self.flavor}' if self.flavor else ''}"
        if self.provider == "civitai":
            return f"{self.repo}@{self.version}" if self.version else self.repo
        at = f"@{self.revision}" if self.revision else ""
        return f"{self.repo}{at}{f'#{self.flavor}' if self.flavor else ''}"

    @property
    def wire_ref(self) -> str:
        """How an orchestrator names this model.

        A pinned version of Civitai's or ModelScope's is no part of it, nor is the digest of what a tag stands for now.
        """
        if self.provider in ("civitai", "modelscope"):
            return self.repo
        return msgspec.structs.replace(self, digest="").ref if self.tag and self.digest else self.ref

    @property
    def plain(self) -> "Wanted":
        """The same model without what narrows down its files."""
        return msgspec.structs.replace(self, dtype="", subfolder="", files=(), trust_remote_code=False)

    def named_in(self, globs: Iterable[str]) -> bool:
        """Whether one of the globs means this model, by its ref or its repository's name."""
        return any(fnmatchcase(name, glob) for glob in globs for name in (self.ref, self.repo))

    @property
    def key(self) -> str:
        """What two wishes for the same files of the same model have in common; fit for a file's name."""
        import hashlib  # only who fetches needs it

        narrowed = msgspec.json.encode([self.dtype, self.subfolder, self.files, self.trust_remote_code])
        name = "".join(each if each.isalnum() or each in "._-" else "-" for each in self.ref)[:80]
        mark = hashlib.sha256(f"{self.provider} {self.ref} ".encode() + narrowed).hexdigest()[:16]
        return f"{self.provider}-{name}-{mark}"


class Slot(msgspec.Struct, frozen=True):
    """A place in an author's `setup()` or handler that takes a model, and the model that is bound to it."""

    name: str
    wanted: Wanted
    overrides: tuple[str, ...] = ()
    """Globs of the refs that a request may name instead."""


def overridden_instance(instance: str, slots: "list[Slot]", named: "list[Slot]") -> str:
    """Name the instance that has other models in some slots; it is `instance` itself when none differs."""
    own = {slot.name: slot.wanted for slot in slots}
    other = sorted((slot.name, slot.wanted.key) for slot in named if slot.wanted != own.get(slot.name))
    return "?".join((instance, "&".join(f"{name}={key}" for name, key in other))) if other else instance


def base_instance(instance: str) -> str:
    """Return the instance whose models an overridden one replaces; itself when it is none."""
    return instance.partition("?")[0]
