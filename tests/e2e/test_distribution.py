"""The wheel works where the sources are not: built, installed in a clean environment, used."""

import importlib.metadata
import json
import os
import re
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {"gen_worker", "gen_worker_supervisor", "gen_worker_child"}
ENDPOINT = """
import msgspec
from gen_worker import RequestContext, endpoint

class Name(msgspec.Struct):
    name: str

class Greeting(msgspec.Struct):
    text: str

@endpoint
def greet(ctx: RequestContext, payload: Name) -> Greeting:
    return Greeting(f"hello {payload.name}")
"""


def run(*command: str | Path, cwd: Path) -> str:
    """Return what the command prints; it must succeed, and it must not see the sources."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def clean(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment that has the wheel, what the wheel says it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    run(folder / "bin" / "python", "-m", "pip", "install", "--no-index", "--no-deps", wheel, cwd=folder)
    (site,) = folder.glob("lib/python*/site-packages")
    for name in needed(wheel):
        borrow(name, site)
    return folder / "bin"


def needed(wheel: Path) -> list[str]:
    """The distributions that the wheel requires without an extra."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = archive.read(name).decode()
    required = re.findall(r"^Requires-Dist: ([A-Za-z0-9._-]+)(.*)$", metadata, re.MULTILINE)
    return [name for name, rest in required if "extra ==" not in rest]


def borrow(name: str, site: Path) -> None:
    """Give `site` the files of a distribution that is installed here: faster than a download, and works offline."""
    files = importlib.metadata.files(name)
    assert files is not None
    for top in {file.parts[0] for file in files} - {"..", "__pycache__"}:
        source = Path(str(importlib.metadata.distribution(name).locate_file(top)))
        (site / top).symlink_to(source)


def test_the_wheel_holds_the_three_packages_typed_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == PACKAGES
    assert {f"{package}/py.typed" for package in PACKAGES} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if "__pycache__" in name]


def test_the_sdist_holds_what_its_tests_need(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        inside = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "Makefile", "constraints.txt", "conftest.py"} <= inside
    assert {"tests/e2e/test_distribution.py", "benchmarks/bare_pair.py"} <= inside
    assert not [name for name in inside if name.startswith((".venv", ".git/"))]


def test_every_package_is_imported_from_the_installed_wheel(clean: Path, tmp_path: Path) -> None:
    for package in PACKAGES:
        script = (
            f"import importlib.resources as r, {package} as p; print(p.__file__, (r.files(p)/'py.typed').is_file())"
        )
        place, typed = run(clean / "python", "-c", script, cwd=tmp_path).split()
        assert Path(place).is_relative_to(clean.parent)
        assert typed == "True"


def test_the_command_says_its_version_and_helps(clean: Path, tmp_path: Path) -> None:
    assert importlib.metadata.version("gen-worker") in run(clean / "gen-worker", "--version", cwd=tmp_path)
    assert "serve" in run(clean / "gen-worker", "--help", cwd=tmp_path)


def test_a_function_runs_from_the_installed_wheel(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny.py").write_text(ENDPOINT)
    printed = run(clean / "gen-worker", "run", "--module", "tiny", "name=world", cwd=tmp_path)
    assert json.loads(printed) == {"event": "result", "value": {"text": "hello world"}}


def test_a_project_is_made_with_what_is_missing_here_said(clean: Path, tmp_path: Path) -> None:
    """Nothing but what gen-worker itself requires is there: neither pytest nor what `serve --reload` watches with."""
    told = run(clean / "gen-worker", "new", "my-endpoint", cwd=tmp_path)
    assert "  pip install watchfiles pytest    # for the next two\n  gen-worker serve --reload\n" in told
    assert "hello Ada" in run(clean / "gen-worker", "run", "--method", "greet", "Ada", cwd=tmp_path / "my-endpoint")


def test_a_users_project_is_type_checked_against_the_installed_wheel(clean: Path, tmp_path: Path) -> None:
    code = (ROOT / "tests" / "typing" / "authors.py").read_text()
    (tmp_path / "authors.py").write_text(code)
    (tmp_path / "pyproject.toml").write_text("[tool.mypy]\nstrict = true\ndisallow_any_decorated = true\n")
    command = (sys.executable, "-m", "mypy", "--python-executable", clean / "python", "authors.py")
    assert "no issues found in 1 source file" in run(*command, cwd=tmp_path)
