"""`gen-worker new` makes a project that works as it is."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.served import GEN_WORKER, environment

pytestmark = pytest.mark.process
ROOT = Path(__file__).resolve().parents[2]
TEMPLATE = ROOT / "src" / "gen_worker" / "cli" / "templates" / "Dockerfile.txt"


def new(folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*GEN_WORKER, "new", *arguments], cwd=folder, capture_output=True, text=True, timeout=30)


def tool(folder: Path, *command: str) -> str:
    line = [sys.executable, "-m", *command]
    done = subprocess.run(
        line, cwd=folder, env=environment(folder.parent), capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("kind", ["plain", pytest.param("model", marks=pytest.mark.needs("torch", "diffusers", "PIL"))])
def test_a_made_project_is_valid_clean_typed_and_tested(tmp_path: Path, kind: str) -> None:
    made = new(tmp_path, "my-endpoint", "--kind", kind)
    assert made.returncode == 0, made.stderr
    project = tmp_path / "my-endpoint"
    assert "is valid" in tool(project, "gen_worker.cli", "validate")
    assert " passed" in tool(project, "pytest", "-p", "no:cacheprovider", "-q")
    tool(project, "ruff", "check", "--no-cache", ".")
    tool(project, "ruff", "format", "--no-cache", "--check", ".")
    if kind == "plain":  # the types of torch and diffusers take mypy forty seconds
        tool(project, "mypy", "--cache-dir", str(tmp_path / "mypy"))


def test_the_commands_of_a_made_readme_work(tmp_path: Path) -> None:
    new(tmp_path, "my-endpoint")
    project = tmp_path / "my-endpoint"
    (line,) = [line for line in (project / "README.md").read_text().splitlines() if "--method" in line]
    words = line.split()[1:]
    assert "hello hello Ada" in tool(project, "gen_worker.cli", *words)


@pytest.mark.needs("torch", "diffusers", "PIL")
@pytest.mark.timeout(300)  # two processes import torch
def test_a_made_model_runs_without_a_network_as_its_readme_says(tmp_path: Path) -> None:
    new(tmp_path, "my-painter", "--kind", "model")
    project = tmp_path / "my-painter"
    (line,) = [line for line in (project / "README.md").read_text().splitlines() if "testing.hub" in line]
    own = {"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "TENSORHUB_CACHE_DIR": str(tmp_path / "models")}
    env = environment(tmp_path) | own
    done = subprocess.run(line.strip(), shell=True, cwd=project, env=env, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    assert '"image/webp"' in done.stdout


def test_the_dockerfile_of_a_made_project_is_the_one_of_every_endpoint() -> None:
    def steps(text: str) -> str:
        return text[text.index("ARG BASE_IMAGE") :]

    assert steps(TEMPLATE.read_text()) == steps((ROOT / "docker" / "endpoint.Dockerfile").read_text())
    ignored = TEMPLATE.with_name("dockerignore.txt").read_text()
    assert ignored == (ROOT / "docker" / "endpoint.dockerignore").read_text()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("My_Endpoint", "call it `my-endpoint`"),
        ("json", "as `json-endpoint`"),
        ("class", "as `class-endpoint`"),
        ("msgspec", "as `msgspec-endpoint`"),
        ("gen-worker", "as `gen-worker-endpoint`"),
        ("2d", "begin with a letter"),
        ("---", "as `my-endpoint`"),
        ("full", "`full` is not empty"),
        ("file", "`file` is a file"),
    ],
)
def test_a_name_that_cannot_be_is_refused_with_one_that_can(tmp_path: Path, name: str, says: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").touch()
    (tmp_path / "file").touch()
    refused = new(tmp_path, "--", name)
    assert refused.returncode == 2
    assert says in refused.stderr
    assert "Traceback" not in refused.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "full"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    assert new(tmp_path / "here", ".").returncode == 0
    assert (tmp_path / "here" / "src" / "here" / "main.py").is_file()
