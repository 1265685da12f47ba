"""The project file of the earlier generation, which files declare functions, and the manifest that is baked of them."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from gen_worker.discovery.image import served_by_image
from gen_worker.discovery.project import load_project_config
from gen_worker.earlier.project import is_deployment, read_table, scan, unlisted, validate_project

FUNCTION = """
import msgspec
from gen_worker import ActionContext, worker_function

class In(msgspec.Struct):
    text: str

class Out(msgspec.Struct):
    text: str

@worker_function()
def shout(ctx: ActionContext, payload: In) -> Out:
    return Out(payload.text.upper())
"""
TABLE = '[tool.cozy]\ndeployment = "my-app"\n[tool.cozy.models]\nsdxl = "hf:acme/sdxl"\n'
Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Give what writes files of a project: by their paths with `/` as `__`."""

    def put(**files: str) -> Path:
        for name, text in files.items():
            path = tmp_path / (name.replace("__", "/") + (".toml" if name in ("pyproject", "cozy") else ".py"))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return put


@pytest.mark.parametrize("name", ["abc", "a-b", "app2-x", "a" * 63])
def test_what_can_be_the_name_of_a_deployment(name: str) -> None:
    assert is_deployment(name)


@pytest.mark.parametrize("name", ["ab", "a" * 64, "2app", "App", "a--b", "a-", "a_b", "", 3, None])
def test_what_cannot_be_the_name_of_a_deployment(name: object) -> None:
    assert not is_deployment(name)


def test_what_is_of_a_wrong_kind_is_left_out_of_the_table() -> None:
    project = read_table(
        {
            "deployment": "No_Way",
            "models": {"a": " hf:x/y ", "b": 3},
            "build": {"gpu": "yes", "cuda": "12.6", "unknown": 1},
            "resources": {"vram_gb": True, "memory_gb": 16},
        }
    )
    assert (project.deployment, dict(project.models)) == ("", {"a": "hf:x/y"})
    assert (dict(project.build), dict(project.resources)) == ({"cuda": "12.6"}, {"memory_gb": 16})
    assert "No_Way" in project.warnings[0]
    assert read_table(None).wants_gpu is None
    assert read_table({"build": {"gpu": False}}).wants_gpu is False
    assert read_table({"resources": {"vram_gb": 8}}).wants_gpu is True


def test_every_file_that_uses_a_decorator_is_found_and_no_other(write: Write) -> None:
    root = write(
        functions=FUNCTION,
        src__pkg____init__="",
        src__pkg__inner="import gen_worker\n@gen_worker.worker_websocket()\nasync def a(ctx, sock): ...",
        talks="'it says worker_function'",
        venv__lib=FUNCTION,
        build__lib=FUNCTION,
        node_modules__x=FUNCTION,
        broken="@worker_function()\ndef f(:",
    )
    for folder in (".hidden", "env-with-another-name"):
        (root / folder).mkdir()
        (root / folder / "functions.py").write_text(FUNCTION)
    (root / "env-with-another-name/pyvenv.cfg").touch()
    (root / "odd-name.py").write_text(FUNCTION)
    modules, warnings = scan(root)
    assert modules == ["functions", "pkg.inner"]
    assert [warning.split("`")[1] for warning in warnings] == ["broken.py", "odd-name.py"]


def test_a_project_of_the_earlier_generation_names_its_modules_by_their_files(write: Write) -> None:
    root = write(pyproject=TABLE, functions=FUNCTION)
    assert load_project_config(root).main == "functions"
    write(pyproject=TABLE + '[tool.gen_worker]\nmain = "newer.main"\n')
    assert load_project_config(root).main == "newer.main,functions"
    (root / "functions.py").unlink()
    write(pyproject=TABLE)
    with pytest.raises(ValueError, match="no file of the project marks a function"):
        load_project_config(root)


def test_a_project_is_checked_by_the_rules_of_its_generation(write: Write) -> None:
    root = write(pyproject=TABLE, functions=FUNCTION)
    found = validate_project(root)
    assert (found.ok, found.errors, len(found.warnings)) == (True, [], 1)
    assert not validate_project(root, require_uv_lock=True).ok
    (root / "requirements.txt").touch()
    write(cozy="")
    assert len(validate_project(root).errors) == 2
    write(pyproject="[tool.other]\n")
    assert "[tool.cozy]" in validate_project(root).errors[0]
    write(pyproject="[")
    assert "not valid TOML" in validate_project(root).errors[0]
    assert "no `" in validate_project(root / "nowhere").errors[0]


def test_keys_that_the_project_does_not_have_are_told() -> None:
    assert unlisted(["b", "a", "b"], {"a": "hf:x/y"}) == ["b"]


def test_an_image_boots_from_the_manifest_that_discover_printed(write: Write) -> None:
    root = write(pyproject=TABLE, functions=FUNCTION.replace("ctx: ActionContext,", 'ctx: "ActionContext",'))
    command = [sys.executable, "-m", "gen_worker.discover"]
    printed = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=True)
    document = json.loads(printed.stdout)
    assert (document["deployment"], document["models"]) == ("my-app", {"sdxl": "hf:acme/sdxl"})
    assert [(entry["name"], entry["module"]) for entry in document["functions"]] == [("shout", "functions")]
    (root / ".cozy").mkdir()
    (root / ".cozy/manifest.json").write_text(printed.stdout)
    served = served_by_image("nowhere.lock", folder=root, root=root / "no-such-root")
    assert (served.modules, served.functions) == (("functions",), ("shout",))


def test_discover_ends_with_1_at_a_function_that_breaks_a_rule(write: Write) -> None:
    root = write(functions=FUNCTION.replace("ctx: ActionContext, ", ""))
    command = [sys.executable, "-m", "gen_worker.discover"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "`shout` takes `payload` first" in ended.stderr


STREAM = """
from collections.abc import Iterator
from typing import Annotated

import msgspec
from gen_worker import ActionContext, ModelArtifacts, ModelRef, ModelRefSource, RealtimeSocket
from gen_worker import ResourceRequirements, worker_function, worker_websocket

class In(msgspec.Struct):
    text: str

class Item(msgspec.Struct):
    text: str

@worker_function(ResourceRequirements(max_concurrency=2))
def letters(
    ctx: ActionContext,
    one: Annotated[ModelArtifacts, ModelRef(ModelRefSource.DEPLOYMENT, "sdxl")],
    payload: In,
    other: Annotated[ModelArtifacts, ModelRef(ModelRefSource.DEPLOYMENT, "flux")],
    third: Annotated[ModelArtifacts, ModelRef(ModelRefSource.PAYLOAD, "text")],
) -> Iterator[Item]:
    yield Item("a")

@worker_websocket()
async def speaks(ctx: ActionContext, sock: RealtimeSocket) -> None: ...
"""


REALTIME = """
from gen_worker import ActionContext, RealtimeSocket, worker_websocket

@worker_websocket()
async def speaks(ctx: ActionContext, sock: RealtimeSocket) -> None: ...
"""


def discovered(root: Path, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gen_worker.discover"]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_what_discover_leaves_out_and_what_it_doubts_are_warnings(write: Write) -> None:
    table = TABLE + "[tool.cozy.build]\ngpu = true\ncuda = 12\n[tool.cozy.resources]\nvram_gb = 8\n"
    root = write(
        pyproject=table, src__pkg____init__="", src__pkg__stream=STREAM, broken="import nothing_here\n" + FUNCTION
    )
    ended = discovered(root, COZY_FUNCTION_MODULES="functions")
    assert ended.returncode == 0, ended.stderr
    document = json.loads(ended.stdout)
    assert (document["build"], document["resources"]) == ({"gpu": True}, {"vram_gb": 8})
    assert document["realtime_modules"] == ["pkg.stream"]
    (entry,) = document["functions"]
    assert (entry["name"], entry["module"], entry["output_mode"]) == ("letters", "pkg.stream", "incremental")
    assert (entry["resources"], entry["required_models"]) == ({"max_concurrency": 2}, ["flux", "sdxl"])
    assert [each["param"] for each in entry["injection_json"]] == ["one", "other", "third"]
    assert entry["injection_json"][2]["model_ref"] == {"source": "payload", "key": "text"}
    assert (entry["delta_type"], entry["delta_output_schema"]) == ("pkg.stream.Item", entry["output_schema"])
    for said in ("`COZY_FUNCTION_MODULES` is deprecated", "`broken` does not import", "`flux`: no key of"):
        assert f"warning: {said}" in ended.stderr
    assert "sdxl" not in ended.stderr


def test_a_project_of_realtime_functions_alone_boots_from_its_manifest(write: Write) -> None:
    root = write(pyproject=TABLE, talk=REALTIME)
    ended = discovered(root)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["functions"] == []
    (root / ".cozy").mkdir()
    (root / ".cozy/manifest.json").write_text(ended.stdout)
    assert served_by_image("nowhere.lock", folder=root, root=root / "no-such-root").modules == ("talk",)


def test_discover_of_a_project_without_functions_is_a_warning(write: Write) -> None:
    ended = discovered(write(pyproject=TABLE, other="x = 1"))
    assert ended.returncode == 0
    assert json.loads(ended.stdout) == {"functions": [], "deployment": "my-app", "models": {"sdxl": "hf:acme/sdxl"}}
    assert "marks a function with `@worker_function()`" in ended.stderr


def test_discover_of_a_table_that_is_no_toml_names_the_file(write: Write) -> None:
    ended = discovered(write(pyproject="[tool.cozy", functions=FUNCTION))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "pyproject.toml` is not valid TOML" in ended.stderr
    assert "Traceback" not in ended.stderr
