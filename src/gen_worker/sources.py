"""The places where settings can be written down, and what is written there. What the texts mean is not known here."""

import errno
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

OURS = ("GEN_WORKER_", "WORKER_", "TENSORHUB_")  # how names in `.env` begin that can be meant for nobody else
ALIKE = 0.8  # a name so much like a setting's is probably it, misspelt; lower, their common beginnings are enough
PREFIX = "GEN_WORKER_"
ALIKE_BEYOND = 0.6
SAME = 0.9  # so much alike must a `WORKER_` name in the environment be, which may be any program's


class SettingsError(ValueError):
    """A setting has a value that cannot be meant, or a file of settings cannot be read; the text names where."""

    hint = ""


class Found(msgspec.Struct, frozen=True):
    """The text of a setting, and where it stands in words for a person."""

    text: str
    place: str


class Source(msgspec.Struct, frozen=True):
    """One place. `read` gives the text of a name, empty where there is none; `place` says where a name stands."""

    read: Callable[[str], str]
    place: Callable[[str], str]
    takes_names: bool = True
    takes_fields: bool = False
    suspects: Collection[str] = ()
    warnings: Sequence[str] = ()


def read_sources(given: Mapping[str, object], env: Mapping[str, str], folder: Path, root: Path) -> list[Source]:
    """Return the places, those that outrank others first; raise `SettingsError` for a file that cannot be read."""
    sources = [_arguments(given), _environment(env)]
    dotenv = folder / ".env"
    if not dotenv.is_dir() and (content := _bytes_of(dotenv)) is not None:  # virtual environments are called so too
        sources.append(_dotenv(f"{folder}/.env", content))
    if names := _names_in(secrets := root / "run/secrets"):
        sources.append(_secrets(secrets, names))
    for path, told in (
        (root / "etc/gen-worker/config.yaml", f"{root / 'etc/gen-worker/config.yaml'}"),
        (folder / "gen-worker.yaml", f"{folder}/gen-worker.yaml"),
    ):
        if (content := _bytes_of(path)) is not None:
            return [*sources, _yaml(told, content)]
    return sources


def find(sources: Iterable[Source], field: str, names: Sequence[str]) -> Found | None:
    """Return the text that counts for a field that is also set under these names; an empty one does not count."""
    for source in sources:
        for name in (*(names if source.takes_names else ()), *((field,) if source.takes_fields else ())):
            if text := source.read(name).strip():
                return Found(text, source.place(name))
    return None


def warnings(
    sources: Iterable[Source], names: Collection[str], fields: Collection[str], others: Collection[str]
) -> Iterator[str]:
    """Return a sentence for each name that looks like a setting and is none, unless it is one of `others`."""
    for source in sources:
        yield from source.warnings
        possible = {*names, *fields} if source.takes_fields else names
        for name in source.suspects:
            if name not in possible and name not in others:
                yield from _unknown(name, source, possible)


def _unknown(name: str, source: Source, possible: Collection[str]) -> Iterator[str]:
    from difflib import get_close_matches

    is_anybodys = name.startswith("WORKER_") and not source.takes_fields
    near = get_close_matches(name, sorted(possible), n=1, cutoff=SAME if is_anybodys else ALIKE)
    if near and _alike_beyond(PREFIX, name, near[0]):
        yield f"{source.place(name)} is no setting; did you mean `{near[0]}`?"
    elif not is_anybodys:
        yield f"{source.place(name)} is no setting"


def _alike_beyond(prefix: str, name: str, near: str) -> bool:
    """Whether two names are alike in more than the beginning that all of ours have."""
    from difflib import SequenceMatcher

    if not (name.startswith(prefix) and near.startswith(prefix)):
        return True
    return SequenceMatcher(None, name.removeprefix(prefix), near.removeprefix(prefix)).ratio() >= ALIKE_BEYOND


# --- arguments and environment ----------------------------------------------------------------------------------------


# What an orchestrator of containers adds by itself for a service that is called `gen-worker` or `worker`.
_OF_A_SERVICE = r"(GEN_)?WORKER_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_[0-9]+_(TCP|UDP)\w*)?)"


def _arguments(given: Mapping[str, object]) -> Source:
    texts = {field: _text(value) for field, value in given.items() if value is not None}
    return Source(lambda field: texts.get(field, ""), "`{}`".format, takes_names=False, takes_fields=True)


def _text(value: object) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _environment(env: Mapping[str, str]) -> Source:
    ours = sorted(name for name in env if name.startswith(("GEN_WORKER_", "WORKER_")))
    suspects = [name for name in ours if not re.fullmatch(_OF_A_SERVICE, name)]
    return Source(lambda name: env.get(name, ""), "`{}` in the environment".format, suspects=suspects)


# --- .env -------------------------------------------------------------------------------------------------------------


# Compiled when there is such a file: most commands find none, and start sooner for it.
_ASSIGNMENT = r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=(.*)"
_QUOTED = r"""\s*(['"])(.*?)\1\s*(?:#.*)?"""
_COMMENT = r"\s#"


class Line(msgspec.Struct, frozen=True):
    """A line of `.env` that sets something."""

    number: int
    text: str


def parse_dotenv(text: str) -> dict[str, Line]:
    """Return what each name is set to, by its last line; a line that sets nothing is skipped."""
    found = {}
    for number, line in enumerate(text.removeprefix("\ufeff").split("\n"), 1):
        if assignment := re.fullmatch(_ASSIGNMENT, line.rstrip()):
            found[assignment[1]] = Line(number, _unquoted(assignment[2]))
    return found


def _unquoted(text: str) -> str:
    quoted = re.fullmatch(_QUOTED, text)
    return quoted[2] if quoted else re.split(_COMMENT, text, maxsplit=1)[0].strip()


def _dotenv(path: str, content: bytes) -> Source:
    text = os.fsdecode(content)
    lines = parse_dotenv(text)
    unset = [
        f"line {number} of `{path}` sets nothing: write `NAME=value`"
        for number, line in enumerate(text.split("\n"), 1)
        if line.strip().startswith(OURS) and "=" not in line
    ]
    return Source(
        lambda name: lines[name].text if name in lines else "",
        lambda name: f"`{name}` in line {lines[name].number} of `{path}`",
        takes_fields=True,
        suspects=[name for name in lines if name.startswith(OURS)],
        warnings=unset,
    )


# --- /run/secrets -----------------------------------------------------------------------------------------------------


def _secrets(folder: Path, names: Collection[str]) -> Source:
    """Each file is a setting; one is read only when nothing outranks it."""

    def read(name: str) -> str:
        return os.fsdecode(_bytes_of(folder / name) or b"") if name in names else ""

    return Source(read, lambda name: f"`{folder / name}`")


# --- YAML -------------------------------------------------------------------------------------------------------------


def _yaml(path: str, content: bytes) -> Source:
    values = _yaml_mapping(path, content)

    def read(name: str) -> str:
        value = values.get(name)
        if isinstance(value, dict | list):
            kind = "mapping" if isinstance(value, dict) else "list"
            raise SettingsError(f"`{name}` in `{path}` must be a single value, not a {kind}")
        return "" if value is None else str(value)

    return Source(read, lambda name: f"`{name}` in `{path}`", takes_fields=True, suspects=list(values))


def _yaml_mapping(path: str, content: bytes) -> dict[str, object]:
    import yaml

    class Texts(yaml.BaseLoader):
        """Leaves values as they are written, `007` or `on`: what they mean depends on the setting."""

    null = "tag:yaml.org,2002:null"
    Texts.add_implicit_resolver(null, re.compile("~|null|Null|NULL"), ["~", "n", "N"])
    Texts.add_constructor(null, lambda _loader, _node: None)
    try:
        found = yaml.load(content, Loader=Texts)  # builds texts, lists and mappings only
    except yaml.YAMLError as error:
        raise SettingsError(f"`{path}` is no YAML{_told(error)}") from None
    except RecursionError:
        raise SettingsError(f"`{path}` is nested too deep") from None
    if found is None or found == "":
        return {}
    if not isinstance(found, dict):
        raise SettingsError(f"`{path}` must be a mapping of settings to values")
    return {str(name): value for name, value in found.items()}


def _told(error: Exception) -> str:
    """Return what a reader of YAML says, without the text around, which may be a secret."""
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f": see line {mark.line + 1}, column {mark.column + 1}"


# --- files ------------------------------------------------------------------------------------------------------------


_ABSENT = (errno.ENOENT, errno.ENOTDIR)


def _bytes_of(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise SettingsError(f"`{path}` cannot be read: {_reason(error)}") from None


def _names_in(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError as error:
        if error.errno in _ABSENT:
            return set()
        raise SettingsError(f"`{folder}` cannot be read: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


# --- the run directory ------------------------------------------------------------------------------------------------


def default_cache_dir(env: Mapping[str, str], root: Path = Path("/")) -> Path:
    """Return the folder of models where nothing sets it; it may not exist yet."""
    marks = (root / ".dockerenv", root / "run/.containerenv")
    home = _home()
    if home is None or "KUBERNETES_SERVICE_HOST" in env or any(mark.exists() for mark in marks):
        return Path("/tmp/model_cache")  # where images and volumes of workers have it
    if sys.platform == "darwin":
        return home / "Library/Caches/gen-worker"
    return Path(env.get("XDG_CACHE_HOME") or home / ".cache", "gen-worker")


def _home() -> Path | None:
    """Return the user's folder; None for a number that the system has no user of."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def default_run_dir(env: Mapping[str, str]) -> Path:
    """Return the folder of supervisors' traces where nothing sets it; it may not exist yet."""
    system = Path("/run/gen-worker")
    if os.access(system if system.exists() else system.parent, os.W_OK | os.X_OK):
        return system
    if runtime := env.get("XDG_RUNTIME_DIR"):
        return Path(runtime, "gen-worker")
    from tempfile import gettempdir

    user = os.getuid() if hasattr(os, "getuid") else "user"
    return Path(gettempdir(), f"gen-worker-{user}")
