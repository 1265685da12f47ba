"""The repository's own rules: what may be imported where, and what a test may leave behind."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = ("torch", "numpy", "diffusers", "transformers", "safetensors", "accelerate", "PIL", "grpc", "huggingface_hub")
OWN_PROCESSES = ("gen_worker.orchestrator.",)  # the control plane speaks gRPC
NETWORK = ("http.client", "urllib.request", "requests", "httpx")

IMPORT_ALL = """
import importlib, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith(".__main__") and not module.name.startswith(tuple(sys.argv[2:])):
        importlib.import_module(module.name)
print("\\n".join(sys.modules))
"""

LEAKS = """
import os, socket, subprocess, sys
from pathlib import Path

KEPT = []

def test_a_child_process():
    KEPT.append(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
    KEPT[-1].stdin.close()
    KEPT[-1].returncode = 0

def test_a_process_that_lost_its_parent():
    script = "import os, time\\nif os.fork() == 0:\\n os.setsid(); time.sleep(8)"
    subprocess.run([sys.executable, "-c", script], check=True)

def test_a_file():
    KEPT.append(open(__file__))

def test_shared_memory():
    Path("/dev/shm/gw-test-leak").touch()

def test_nothing():
    with socket.socket():
        Path("/dev/shm/gw-test-no-leak").touch()
        Path("/dev/shm/gw-test-no-leak").unlink()
"""


def run(*command: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of this interpreter in the checkout."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
        check=False,
    )


def loaded_by(package: str) -> set[str]:
    """What is in `sys.modules` of a fresh interpreter that has imported every module of the package.

    All but those that only a process of its own loads.
    """
    done = run("-c", IMPORT_ALL, package, *OWN_PROCESSES)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_every_import_contract_holds() -> None:
    done = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()", "--no-cache")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("package", ["gen_worker", "gen_worker_supervisor", "gen_worker_child"])
def test_no_package_of_ours_loads_a_heavy_library(package: str) -> None:
    assert not loaded_by(package) & set(HEAVY)


def test_reading_settings_loads_nothing_for_files_and_names_that_are_not_there(tmp_path: Path) -> None:
    read = f"import pathlib, sys; from gen_worker.settings import Settings; place = pathlib.Path({str(tmp_path)!r}); "
    read += "Settings.load(env={}, folder=place, root=place); print(*sys.modules)"
    loaded = set(run("-c", read).stdout.split())
    assert "gen_worker.sources" in loaded
    assert not loaded & {"yaml", "difflib", "socket", "asyncio", "gen_worker.wire.messages"}


def test_the_supervisor_loads_nothing_of_the_child() -> None:
    assert not [name for name in loaded_by("gen_worker_supervisor") if name.startswith("gen_worker_child")]


def test_the_child_loads_no_network_client_and_nothing_of_the_supervisor() -> None:
    loaded = loaded_by("gen_worker_child")
    assert not loaded & set(NETWORK)
    assert not [name for name in loaded if name.startswith("gen_worker_supervisor")]


def test_tests_refuse_a_package_from_outside_the_checkout(tmp_path: Path) -> None:
    foreign = tmp_path / "gen_worker"
    (foreign / "testing").mkdir(parents=True)
    for name in ("__init__.py", "testing/__init__.py", "testing/plugin.py"):  # pytest loads the plugin first
        (foreign / name).touch()
    done = run("-m", "pytest", "tests/pure", "-q", PYTHONPATH=str(tmp_path))
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert f"`gen_worker` resolves to {foreign}, outside this checkout" in done.stderr


@pytest.mark.quiet
def test_a_test_that_leaves_something_behind_fails_and_names_it(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(LEAKS)
    try:
        done = run("-m", "pytest", "-p", "conftest", "--rootdir", str(ROOT), "-v", str(tmp_path), PYTHONPATH=str(ROOT))
    finally:
        Path("/dev/shm/gw-test-leak").unlink(missing_ok=True)
    assert "ERROR at teardown of test_nothing" not in done.stdout
    for name, trace in (
        ("test_a_child_process", "nobody has waited for it"),
        ("test_a_process_that_lost_its_parent", "time.sleep(8)"),
        ("test_a_file", "test_leaks.py"),
        ("test_shared_memory", "/dev/shm/gw-test-leak"),
    ):
        said = done.stdout.partition(f"ERROR at teardown of {name} ")[2].partition("ERROR at teardown")[0]
        assert trace in said, done.stdout


def test_what_needs_an_absent_module_skips_with_the_reason_and_fails_where_all_is_needed(tmp_path: Path) -> None:
    test = tmp_path / "test_needy.py"
    test.write_text("import pytest\n\n@pytest.mark.needs('no_such_module')\ndef test_it(): pass\n")
    command = ("-m", "pytest", "-p", "conftest", "--rootdir", str(ROOT), "-rs", str(test))
    skipped = run(*command, PYTHONPATH=str(ROOT), GW_TESTS_NEED_ALL="0")
    assert skipped.returncode == 0
    assert "needs no_such_module" in skipped.stdout
    failed = run(*command, PYTHONPATH=str(ROOT), GW_TESTS_NEED_ALL="1")
    assert failed.returncode == 1
    assert "needs no_such_module: not installed" in failed.stdout


def test_help_names_every_command_of_the_makefile() -> None:
    done = subprocess.run(["make", "-C", str(ROOT)], capture_output=True, text=True, check=True, timeout=10)
    for command in ("help", "setup", "demo", "test", "test-repeat", "explore", "check", "bench"):
        assert f"\n  {command} " in done.stdout
