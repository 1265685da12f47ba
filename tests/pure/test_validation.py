"""What speaks against an endpoint's folder, and against its lock."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gen_worker.discovery import validate_endpoint, validate_endpoint_lock

PROJECT = '[project]\nname = "mine"\n[tool.gen_worker]\nmain = "mine.main"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with everything it needs."""
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "Dockerfile").touch()
    (tmp_path / "uv.lock").touch()
    return tmp_path


def test_a_complete_project_is_valid(root: Path) -> None:
    found = validate_endpoint(root, require_uv_lock=True)
    assert (found.ok, found.errors, found.warnings) == (True, [], [])
    assert validate_endpoint(str(root)).ok


def test_a_missing_uv_lock_is_a_warning_unless_it_is_required(root: Path) -> None:
    (root / "uv.lock").unlink()
    found = validate_endpoint(root)
    assert (found.ok, found.errors, [warning.hint for warning in found.warnings]) == (
        True,
        [],
        ["`uv lock` in the base image writes it"],
    )
    strict = validate_endpoint(root, require_uv_lock=True)
    assert (strict.ok, strict.errors, strict.warnings) == (False, found.warnings, [])


@pytest.mark.parametrize("name", ["Dockerfile", "pyproject.toml"])
def test_a_missing_file_is_an_error(root: Path, name: str) -> None:
    (root / name).unlink()
    (error,) = validate_endpoint(root).errors
    assert error == f"no `{root / name}`" or error.startswith(f"no `{root / name}`;")


def test_requirements_beside_the_project_file_are_an_error(root: Path) -> None:
    (root / "requirements.txt").touch()
    (error,) = validate_endpoint(root).errors
    assert error == f"`{root / 'requirements.txt'}` is not read"
    assert "pyproject.toml" in error.hint


@pytest.mark.parametrize(
    ("project", "said"),
    [
        ('[project]\nname = "mine"\n', "does not name the main module"),
        ('[tool.gen_worker]\nmain = "mine"\n', "[project].name"),
        ('[project]\nname = "…"\n[tool.gen_worker]\nmain = "mine"\n', "leaves nothing to call the endpoint by"),
        ("[", "is not valid TOML"),
    ],
)
def test_a_project_file_that_says_too_little_is_an_error(root: Path, project: str, said: str) -> None:
    (root / "pyproject.toml").write_text(project)
    (error,) = validate_endpoint(root).errors
    assert said in error


def test_everything_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "requirements.txt").touch()
    assert len(validate_endpoint(tmp_path, require_uv_lock=True).errors) == 4


# --- the lock ---------------------------------------------------------------------------------------------------------


def entry(name: object, **more: object) -> dict[str, object]:
    return {"name": name, "kind": "inference", "module": "mine", "declared_module": "mine.main", **more}


def test_a_lock_of_good_entries_is_valid() -> None:
    lock = {"functions": [entry("a"), entry("b"), entry("a", class_name="A"), entry("a", declared_module="mine.b")]}
    found = validate_endpoint_lock(lock)
    assert (found.ok, found.errors, found.warnings) == (True, [], [])


def test_an_empty_lock_is_a_warning() -> None:
    found = validate_endpoint_lock({"functions": []})
    assert (found.ok, found.warnings) == (True, ["no function or class is marked with `@endpoint`"])


@pytest.mark.parametrize("lock", [{}, {"functions": {}}, {"functions": None}, [], None])
def test_a_lock_without_a_list_of_functions_is_an_error(lock: Any) -> None:
    assert validate_endpoint_lock(lock).errors == ["the lock has no list `functions`"]


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        (["a"], "entry 1 of `functions` is no table: 'a'"),
        ([entry("a"), entry("…")], "entry 2 of `functions`, `…`: the name '…' leaves nothing to route by"),
        ([entry(3)], "the name 3 leaves nothing"),
        ([{"name": "a"}], "the kind is one of inference, training, dataset, conversion, not None"),
        ([entry("a", kind="magic")], "not 'magic'"),
        ([entry("Make It"), entry("make_it")], "`Make It` and `make_it` of `mine.main` are both routed as `make-it`"),
        (
            [entry("a", class_name="A"), entry("a", class_name="A")],
            "`a` and `a` of `mine.main.A` are both routed",
        ),
    ],
)
def test_an_entry_that_cannot_be_routed_is_an_error(entries: list[Any], said: str) -> None:
    found = validate_endpoint_lock({"functions": entries})
    assert not found.ok
    assert said in found.errors[0]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
ENTRIES = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("name", "kind", "module", "declared_module", "class_name"), JSON)
)


@settings(deadline=None)  # the machine may be busy
@given(JSON | st.fixed_dictionaries({"functions": st.lists(ENTRIES | JSON, max_size=4)}))
def test_whatever_a_lock_holds_it_is_judged(lock: Any) -> None:
    found = validate_endpoint_lock(lock)
    assert found.ok == (not found.errors)
