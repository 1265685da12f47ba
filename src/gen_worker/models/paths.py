"""Which names from outside may become names on this disk. Pure; everything else is refused as `bad_manifest`."""

import re
import unicodedata
from collections.abc import Iterable

from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import Algorithm

COMPONENT_BYTES = 255  # what Linux file systems take for one name
PATH_BYTES = 1024  # of the 4096 of a whole path, so that the cache's own folders fit before it

_HEX_DIGITS: dict[Algorithm, int] = {"blake3": 64, "sha256": 64, "git-sha1": 40}


def check_path(path: str) -> str:
    """Return a relative path with `/` that stays below the folder it is put into; raise `ModelError` for others."""
    if reason := _fault(path):
        raise ModelError(
            "bad_manifest", f"the provider names a file {_shown(path)}, {reason}", _HINT, file=_shown(path)
        )
    return path


def check_paths(paths: Iterable[str]) -> tuple[str, ...]:
    """Return paths that can lie in one folder together, on any file system; raise `ModelError` for others."""
    checked = tuple(check_path(path) for path in paths)
    files: dict[str, str] = {}
    for path in checked:
        if (folded := _folded(path)) in files:
            raise _clash(path, f"beside {_shown(files[folded])}: one name on some disks")
        files[folded] = path
    for path in checked:
        folded = _folded(path)
        for end in (at for at, letter in enumerate(folded) if letter == "/"):
            if (other := files.get(folded[:end], "")) != "":
                raise _clash(path, f"below {_shown(other)}, which is a file")
    return checked


def check_digest(algorithm: Algorithm, digest: str) -> str:
    """Return a digest in lower case that is one of that algorithm; an empty one stays; raise `ModelError` for others.

    An algorithm's own prefix, as `blake3:`, is taken off.
    """
    digest = digest.strip().lower().removeprefix(f"{algorithm}:")
    if not digest:
        return ""
    digits = _HEX_DIGITS.get(algorithm, 0)
    if not re.fullmatch(f"[0-9a-f]{{{digits}}}", digest, re.ASCII):
        raise ModelError("bad_manifest", f"the provider gives a {algorithm or 'digest'} of {_shown(digest)}", _HINT)
    return digest


def check_commit(commit: str) -> str:
    """Return the name of something that never changes: hex digits or a decimal id; raise `ModelError` for others."""
    bare = commit.strip().lower()
    if not re.fullmatch(r"[0-9a-f]{1,64}", bare, re.ASCII):
        raise ModelError("bad_manifest", f"the provider names a commit {_shown(commit)}", _HINT)
    return bare


_HINT = "nothing was fetched; tell the owner of the repository, or take another"


def _fault(path: str) -> str:
    """Return why a path is refused; empty for a good one."""
    try:
        encoded = path.encode()
    except UnicodeEncodeError:
        return "which is not text"
    if not path or len(encoded) > PATH_BYTES:
        return f"which has {len(encoded)} bytes"
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in path):
        return "which has control characters"
    if "\\" in path or re.match("[A-Za-z]:", path):
        return "which is a path of Windows"
    if path.startswith("/"):
        return "which is absolute"
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts):
        return "which leads elsewhere"
    if any(len(part.encode()) > COMPONENT_BYTES for part in parts):
        return f"of which one part is longer than {COMPONENT_BYTES} bytes"
    return ""


def _clash(path: str, why: str) -> ModelError:
    return ModelError("bad_manifest", f"the provider names a file {_shown(path)} {why}", _HINT, file=_shown(path))


def _folded(path: str) -> str:
    """Return what is equal for names that a disk which ignores case or composition takes for one."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", path).casefold())


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else f"{text[:100]}…")
