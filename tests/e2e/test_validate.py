"""`gen-worker validate`, as a command."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.served import GEN_WORKER

MAIN = """
import msgspec
from gen_worker import endpoint

class Text(msgspec.Struct):
    text: str

@endpoint
def say_it(ctx, payload: Text) -> Text: ...
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.gen_worker]\nmain = "mine.main"\n')
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "main.py").write_text(MAIN)
    (tmp_path / "Dockerfile").touch()
    (tmp_path / "uv.lock").touch()
    return tmp_path


def validate(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GEN_WORKER, "validate", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def test_a_valid_endpoint_gets_one_line(root: Path) -> None:
    here = validate(cwd=root)
    assert (here.returncode, here.stdout, here.stderr) == (0, "`mine` is valid: 1 function\n", "")
    for path in (str(root), str(root / "pyproject.toml"), root.name):
        assert validate(path, cwd=root.parent).stdout == here.stdout


def test_a_warning_leaves_an_endpoint_valid_unless_it_is_required(root: Path) -> None:
    (root / "uv.lock").unlink()
    done = validate(cwd=root)
    assert (done.returncode, done.stdout) == (0, "`mine` is valid: 1 function, 1 warning\n")
    assert done.stderr.splitlines() == [
        "warning: no `uv.lock`: each build may get other versions",
        "hint: `uv lock` in the base image writes it",
    ]
    assert validate("--require-uv-lock", cwd=root).returncode == 2


def test_the_files_and_the_code_are_judged_in_one_go(root: Path) -> None:
    (root / "Dockerfile").unlink()
    (root / "mine" / "broken.py").write_text("print('printed')\nimport no_such_library")
    (root / "mine" / "main.py").write_text(MAIN.replace("payload: Text", "payload"))
    done = validate(cwd=root)
    assert (done.returncode, done.stdout) == (2, "`mine` is not valid: 3 errors\n")
    lines = done.stderr.splitlines()
    assert "printed" in lines
    assert "error: no `Dockerfile`" in lines
    assert any("`mine.broken` does not import" in line for line in lines)
    assert any("`payload` of `say_it` must be annotated" in line for line in lines)
    assert "hint: install what provides `no_such_library`, or mend the import" in lines


def test_the_findings_are_a_document(root: Path) -> None:
    (root / "Dockerfile").unlink()
    done = validate("--json", cwd=root)
    assert (done.returncode, done.stderr) == (2, "")
    document = json.loads(done.stdout)
    assert document["errors"] == [
        {"message": "no `Dockerfile`", "hint": "the platform builds the image of the endpoint from it"}
    ]
    assert (document["ok"], document["warnings"], document["functions"]) == (False, [], ["say-it"])


def test_an_endpoint_without_functions_is_valid_with_a_warning(root: Path) -> None:
    (root / "mine" / "main.py").write_text("")
    done = validate(cwd=root)
    assert (done.returncode, done.stdout) == (0, "`mine` is valid: 1 warning\n")
    assert done.stderr == "warning: no function or class is marked with `@endpoint`\n"


def test_a_folder_without_a_project_is_told_once(tmp_path: Path) -> None:
    done = validate(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, f"`{tmp_path.name}` is not valid: 2 errors, 1 warning\n")
    assert len([line for line in done.stderr.splitlines() if "pyproject.toml" in line]) == 1


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    done = validate("missing", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: no such folder: `missing`" in done.stderr


@pytest.mark.parametrize("name", ["endpoint.lock", ".tensorhub/endpoint.lock"])
def test_a_lock_file_must_say_what_the_code_says(root: Path, name: str) -> None:
    lock = root / name
    lock.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "gen_worker.discovery"]
    lock.write_bytes(subprocess.run(command, cwd=root, capture_output=True, check=True, timeout=60).stdout)
    assert validate(cwd=root).stderr == ""
    (root / "mine" / "main.py").write_text(MAIN.replace("text: str", "text: str\n    more: int = 0"))
    stale = validate(cwd=root)
    assert (stale.returncode, stale.stderr.splitlines()) == (
        0,
        [
            f"warning: `{name}` is stale: the code says something else",
            f"hint: `python -m gen_worker.discovery > {name}`",
        ],
    )
    lock.write_text("functions = 3")
    assert f"error: `{name}`: the lock has no list `functions`" in validate(cwd=root).stderr
    lock.write_text("functions =")
    assert f"error: `{name}` is not valid TOML" in validate(cwd=root).stderr


def test_a_file_is_told_to_be_no_folder(root: Path) -> None:
    told = validate("mine/main.py", cwd=root)
    assert (told.returncode, told.stderr.splitlines()[0]) == (2, "error: `mine/main.py` is a file, not a folder")


def test_a_module_is_checked_without_a_project(root: Path) -> None:
    for name in ("pyproject.toml", "Dockerfile", "uv.lock"):
        (root / name).unlink()
    done = validate("--module", "mine.main", cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (0, "`mine.main` is valid: 1 function\n", "")
    assert validate("--module", "mine.none", cwd=root).returncode == 2
    done = validate("--module", "mine/main.py", cwd=root)
    assert (done.returncode, done.stderr.splitlines()[1]) == (2, "hint: write `mine.main`")
