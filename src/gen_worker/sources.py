"""Where settings are written down, and what is written there. What the texts mean is not known here."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple


class SettingsError(ValueError):
    """A setting has a value that cannot be meant, or a file of settings cannot be read; the text names where."""


class Found(NamedTuple):
    """The text of a setting, and where it stands in words for a person."""

    text: str
    place: str


class Source(NamedTuple):
    """What one place says: texts by name, with the words for where each stands."""

    texts: Mapping[str, str]
    places: str

    def place(self, name: str) -> str:
        """Return where a name stands, in words for a person."""
        return self.places.format(name=name)


def read_sources(given: Mapping[str, object], env: Mapping[str, str], folder: Path, root: Path) -> list[Source]:
    """Return what each place says, those that outrank others first."""
    arguments = {field: str(value) for field, value in given.items() if value is not None}
    return [Source(arguments, "`{name}`"), Source(env, "`{name}` in the environment")]


def find(sources: Sequence[Source], names: Sequence[str]) -> Found | None:
    """Return the text that counts for a setting of these names; an empty one does not."""
    for source in sources:
        for name in names:
            if text := source.texts.get(name, "").strip():
                return Found(text, source.place(name))
    return None


def unknown_names(sources: Sequence[Source], known: Mapping[str, object]) -> tuple[str, ...]:
    """Return a sentence for each name that is meant as a setting and is none."""
    return ()


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
