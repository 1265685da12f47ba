"""Files of weights that belong together, by their names alone: shards, their index, and variants. Pure.

`unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors` is a shard of the stem `diffusion_pytorch_model` with the
tag `fp16`. What a set without a tag holds only its header tells.
"""

import re
from collections.abc import Callable, Iterable, Sequence

import msgspec

HALVES = ("bf16", "fp16")
"""The precisions that are taken without being asked for, the first wanted first."""

UNKNOWN = "unknown"
"""The precision of weights whose header cannot be had, as of pickles."""

_STEMS = ("diffusion_pytorch_model", "model", "pytorch_model", "adapter_model", "pytorch_lora_weights")  # loaders' own
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})(?=$|\.)")
_PRECISION = re.compile(
    r"[._-](bf16|fp16|fp32|fp8|int8|int4|bfloat16|float16|float32)(?:_e4m3fn|_e5m2|_scaled)?$", re.I
)
_QUANTIZED = re.compile(r"[._-]((?:I?Q\d|T?Q\d|MXFP)\w*|BF16|F16|F32)$", re.I)  # how gguf files are named
_SPELLINGS = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32", "f16": "fp16", "f32": "fp32"}


class WeightSet(msgspec.Struct, frozen=True):
    """Files that hold one model once."""

    stem: str
    tag: str
    """The variant, in lower case: a precision as `fp16`, or anything else as `non_ema`; empty: none."""

    files: tuple[str, ...]
    index: str = ""
    """The file that names the shards; they then count, whatever is in `files`."""

    shards: int = 0
    """How many there have to be, by their names; 0: one file."""


def precision_named(dtype: str) -> str:
    """Return the short name of a dtype: `fp16` for `float16` or `torch.float16`."""
    bare = dtype.strip().lower().removeprefix("torch.")
    return _SPELLINGS.get(bare, bare)


def weight_sets(names: Iterable[str], suffix: str) -> list[WeightSet]:
    """Return the sets among the names of one folder's files that end so (`.safetensors`)."""
    members: dict[tuple[str, str, int], list[str]] = {}
    indexes: dict[tuple[str, str], str] = {}
    named_index = re.compile(rf"(.+){re.escape(suffix)}\.index(?:\.([^.]+))?\.json")
    for name in sorted(names):
        if name.endswith(suffix):
            stem, tag, shards = _parsed(name.removesuffix(suffix), suffix)
            members.setdefault((stem, tag, shards), []).append(name)
        elif found := named_index.fullmatch(name):
            stem, tag, _ = _parsed(found[1] + (f".{found[2]}" if found[2] else ""), suffix)
            indexes[stem, tag] = name
    sets = {key: WeightSet(key[0], key[1], tuple(files), shards=key[2]) for key, files in members.items()}
    for (stem, tag), index in indexes.items():
        shards = max((key[2] for key in sets if key[:2] == (stem, tag)), default=0)
        files = sets[stem, tag, shards].files if shards else ()
        for key in [key for key in sets if key[:2] == (stem, tag)]:
            del sets[key]  # the index counts, not a single file beside it
        sets[stem, tag, shards] = WeightSet(stem, tag, files, index, shards)
    return list(sets.values())


def of_one_stem(sets: Sequence[WeightSet]) -> list[WeightSet]:
    """Return the sets of the stem that loaders look for, else of the only stem; empty when there are several."""
    stems = {each.stem for each in sets}
    stem = next((stem for stem in _STEMS if stem in stems), stems.pop() if len(stems) == 1 else None)
    return [each for each in sets if each.stem == stem]


def tags_in_order(folders: Iterable[Sequence[WeightSet]]) -> tuple[str, ...]:
    """Return `HALVES`, the one first that more folders have: loaders take one variant for a whole pipeline."""
    tags = [{each.tag for each in sets} for sets in folders]
    return tuple(sorted(HALVES, key=lambda tag: -sum(tag in each for each in tags)))


def choose(
    sets: Sequence[WeightSet],
    precision: Callable[[WeightSet], str],
    *,
    flavor: str = "",
    dtype: str = "",
    only: Sequence[str] = (),
    halves: Sequence[str] = HALVES,
) -> WeightSet | None:
    """Return the set to take, of sets of one stem; None when there is none that may be.

    `flavor` is a tag that wins; `only` are the precisions that may be taken, the first wanted first; without it what is
    `dtype` comes first, then tagged halves, then what has no tag, at last fp32. `precision` is asked for sets without a
    tag, and only where it decides.
    """
    tagged = {each.tag: each for each in sets if each.tag}
    plain = next((each for each in sets if not each.tag), None)
    if flavor and flavor in tagged:
        return tagged[flavor]
    asked = [each for each in (dtype,) if each and (not only or each in only)]
    for wish in (*asked, *only):
        if wish in tagged:
            return tagged[wish]
        if plain is not None and precision(plain) in (wish, UNKNOWN):
            return plain
    if only:
        return None
    for half in halves:
        if half in tagged:
            return tagged[half]
    if plain is not None and ("fp32" not in tagged or precision(plain) != "fp32"):
        return plain
    return tagged.get("fp32")


def preferred(
    sets: Sequence[WeightSet], dtype: str = "", precision: Callable[[WeightSet], str] = lambda _: UNKNOWN
) -> WeightSet | None:
    """Return the set that is loaded of those in a folder on disk; None when there is none."""
    alike = of_one_stem(sets) or sets[:1]
    return choose(alike, precision, dtype=precision_named(dtype)) or next(iter(alike), None)


def _parsed(base: str, suffix: str) -> tuple[str, str, int]:
    """Return stem, tag and number of shards of a name without its suffix."""
    shards = 0
    if found := _SHARD.search(base):
        shards = int(found[2])
        base = base[: found.start()] + base[found.end() :]
    pattern = _QUANTIZED if suffix == ".gguf" else _PRECISION
    if found := pattern.search(base):
        return base[: found.start()], precision_named(found[1]), shards
    for stem in _STEMS:
        if base.startswith(f"{stem}."):
            return stem, base[len(stem) + 1 :].lower(), shards
    return base, "", shards
