"""Names that come from outside: whichever of them becomes a file's, it never leads out of its folder."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.models.errors import ModelError
from gen_worker.models.paths import check_path, check_paths
from gen_worker.orchestrator.files import checked_name
from gen_worker.orchestrator.local_workers import names_of
from gen_worker.orchestrator.refusal import Refusal
from gen_worker.outputs import safe_ref
from gen_worker.postmortem import is_name

pytestmark = pytest.mark.promise(37)
FOLDER = "/the/folder"


def postmortem(name: str) -> str:
    """Return the file of a post-mortem that an operator asks for."""
    if not is_name(name):
        raise ValueError(name)
    return f"{name}.json"


def worker(name: str) -> str:
    """Return what a worker of a project in a folder of this name is called."""
    there_can_be = name.replace("\0", "").replace("/", "").encode("utf-8", "replace")[:255].decode("utf-8", "ignore")
    return names_of([Path(FOLDER, there_can_be or "x")])[0]


CHECKS: dict[str, Callable[[str], str]] = {
    "what a job saves": safe_ref,
    "a file of a model": check_path,
    "a file that is given to a control plane": checked_name,
    "a post-mortem": postmortem,
    "a worker of a project": worker,
}
HOSTILE = [
    "..",
    "..\\",
    "../x",
    "a/../../x",
    "/etc/passwd",
    "//etc/passwd",
    "a/\0/b",
    "a\0",
    "..\\x",
    "a\\..\\..\\x",
    "C:\\x",
    "./../x",
    "a/./../../x",
    " ../x",
    "../ x",
    "%2e%2e/x",
    "\u2024\u2024/x",
    "\uff0e\uff0e/x",
    "~/x",
    "x" * 256,
    "x/" * 600,
    "\ud800",
    "\u202e/x",
    "",
    ".",
    "/",
    "-rf",
    "con",
    "a\nb",
]


def stays(name: str) -> None:
    """The name leads to a file below the folder, on any system's disk."""
    place = os.path.normpath(os.path.join(FOLDER, name))
    assert place.startswith(f"{FOLDER}/"), name
    assert "\0" not in name
    assert all(len(part.encode()) <= 255 for part in name.split("/"))


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_a_hostile_name_is_refused_or_made_harmless(check: str, name: str) -> None:
    try:
        found = CHECKS[check](name)
    except (ValueError, ModelError, Refusal):
        return
    stays(found)


PIECES = st.sampled_from(["..", ".", "/", "\\", "\0", " ", "a", "e\u0301", "\ud800", "~", "x" * 200, "\n", "%2f"])


@given(st.sampled_from(sorted(CHECKS)), st.lists(PIECES | st.text(max_size=3), max_size=8).map("".join))
def test_no_name_leads_elsewhere(check: str, name: str) -> None:
    try:
        found = CHECKS[check](name)
    except (ValueError, ModelError, Refusal):
        return
    stays(found)


@pytest.mark.parametrize("other", ["straße/\u00c9.bin", "straße/E\u0301.bin", "STRASSE/e\u0301.bin"])
def test_names_that_some_disks_take_for_one_are_refused_together(other: str) -> None:
    with pytest.raises(ModelError):
        check_paths(["Straße/\u00e9.bin", other])
