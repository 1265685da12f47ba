"""`discovery`, `discover` and `probe`, as commands: one document on stdout, whatever the author's code does."""

import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gen_worker.discovery import validate_endpoint_lock
from gen_worker.wire.survey import Survey
from tests.served import until

MAIN = """
import msgspec
from gen_worker import RequestContext, Resources, endpoint

class Input(msgspec.Struct):
    text: str

class Output(msgspec.Struct):
    text: str

@endpoint(resources=Resources(gpu=True))
def say_it(ctx: RequestContext, payload: Input) -> Output:
    return Output(payload.text)
"""

NOISE = """
import atexit, os, subprocess, sys
print("printed")
os.write(1, b"native\\n")
subprocess.run([sys.executable, "-c", "print('a child of ours')"], check=True)
atexit.register(print, "at the end")
"""

THREAD = """
import threading
threading.Thread(target=threading.Event().wait).start()
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.gen_worker]\nmain = "mine.main"\n')
    (tmp_path / "src" / "mine").mkdir(parents=True)
    (tmp_path / "src" / "mine" / "__init__.py").touch()
    (tmp_path / "src" / "mine" / "main.py").write_text(MAIN)
    return tmp_path


def python(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], cwd=cwd, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def discover(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return python("-m", "gen_worker.discover", *arguments, cwd=cwd)


def probe(root: Path) -> subprocess.CompletedProcess[str]:
    paths = ["--path", str(root / "src"), "--path", str(root)]
    return python("-m", "gen_worker.discovery.probe", "--module", "mine.main", *paths, cwd=root.parent)


def prepend(root: Path, text: str) -> None:
    main = root / "src" / "mine" / "main.py"
    main.write_text(text + main.read_text())


SECRETS = dict.fromkeys(("HF_TOKEN", "WORKER_JWT", "GEN_WORKER_TOKEN", "AUTH_TOKEN"), "canary")
SPY = """
import os, sys
print("imported by a process that knows", sorted(set(os.environ.values()) & {"canary"}), file=sys.stderr)
"""


EARLY = """
import os, sys, threading
if "gen_worker.discovery.probe" in sys.orig_argv:
    open("begun", "w").close()
    threading.Event().wait()
"""


@pytest.mark.parametrize("command", ["gen_worker.discover", "gen_worker.discovery", "gen_worker.cli"])
def test_ctrl_c_while_the_code_is_looked_at_ends_it_without_a_word(root: Path, command: str) -> None:
    (root / "customized").mkdir()
    (root / "customized" / "sitecustomize.py").write_text(EARLY)
    words = [sys.executable, "-m", command, *(["validate"] if command == "gen_worker.cli" else [])]
    seen = os.environ | {"PYTHONPATH": str(root / "customized")}
    with subprocess.Popen(
        words, cwd=root, env=seen, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        until((root / "begun").exists, what="the process that looks")
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it: to all that stand in its foreground
        assert process.communicate(timeout=20) == ("", "")
    assert process.returncode == 130


def test_nobody_looks_at_code_for_a_process_that_is_gone(root: Path) -> None:
    done = python("-m", "gen_worker.discovery.probe", "--module", "mine.main", "--parent", "1", cwd=root)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")


@pytest.mark.parametrize(
    "command",
    [
        ("gen_worker.discover",),
        ("gen_worker.discovery",),
        ("gen_worker.cli", "run", "--list"),
        ("gen_worker.cli", "serve", "--list-functions"),
        ("gen_worker.cli", "validate"),
    ],
)
def test_an_import_sees_none_of_the_secrets_of_the_worker(
    root: Path, command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    prepend(root, SPY)
    assert "imported by a process that knows []" in python("-m", *command, cwd=root).stderr.splitlines()


# --- discover ---------------------------------------------------------------------------------------------------------


def test_discover_prints_the_manifest_of_the_current_project(root: Path) -> None:
    done = discover(cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    (function,) = json.loads(done.stdout)["functions"]
    assert (function["name"], function["python_name"], function["declared_module"]) == ("say-it", "say_it", "mine.main")
    assert done.stdout.startswith('{\n  "functions": [')


def test_discover_takes_a_project_or_a_module_from_elsewhere(root: Path) -> None:
    here = json.loads(discover(cwd=root).stdout)
    assert json.loads(discover("--config", str(root), cwd=root.parent).stdout) == here
    assert json.loads(discover("--config", str(root / "pyproject.toml"), cwd=root.parent).stdout) == here
    assert json.loads(discover("--module", "mine.main", cwd=root).stdout) == here


def test_what_the_author_prints_on_import_corrupts_nothing(root: Path) -> None:
    quiet = discover(cwd=root).stdout
    prepend(root, NOISE)
    noisy = discover(cwd=root)
    assert noisy.stdout == quiet
    assert sorted(noisy.stderr.splitlines()) == ["a child of ours", "native", "printed"]


def test_a_thread_that_the_author_left_running_does_not_keep_discover(root: Path) -> None:
    prepend(root, THREAD)
    assert discover(cwd=root).returncode == 0


@pytest.mark.parametrize(
    ("stdout", "told"),
    [
        (">/dev/full", "error: the manifest cannot be written: no space left on device\n"),
        (">&-", "error: the manifest cannot be written: stdout is closed\n"),
    ],
)
def test_a_manifest_that_cannot_be_written_is_an_error_in_a_sentence(root: Path, stdout: str, told: str) -> None:
    line = f"{sys.executable} -m gen_worker.discover {stdout}"
    done = subprocess.run(["sh", "-c", line], cwd=root, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, told)


def test_a_project_without_endpoints_is_a_warning(root: Path) -> None:
    (root / "src" / "mine" / "main.py").write_text("")
    done = discover(cwd=root)
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"functions": []}
    assert done.stderr == "warning: no function or class is marked with `@endpoint`\n"


def test_a_folder_without_a_project_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    done = discover(cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"error: no `{tmp_path / 'pyproject.toml'}`; run from the root of the endpoint")
    assert len(done.stderr.splitlines()) == 1


def test_a_failing_import_shows_the_authors_traceback_and_one_line_of_ours(root: Path) -> None:
    prepend(root, "import no_such_library\n")
    done = discover(cwd=root)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert "mine/main.py" in lines[1]
    assert lines[-2].startswith("error: `mine.main` does not import: ModuleNotFoundError")
    assert lines[-1] == "hint: install what provides `no_such_library`, or mend the import"
    assert "gen_worker/" not in done.stderr


# --- probe ------------------------------------------------------------------------------------------------------------


def test_the_probe_prints_a_survey(root: Path) -> None:
    done = probe(root)
    assert done.returncode == 0
    survey = msgspec.json.decode(done.stdout, type=Survey)
    assert (survey.module, survey.paths) == ("mine.main", [str(root / "src"), str(root)])
    (function,) = survey.functions
    assert (function.name, function.lane, function.gpu) == ("say-it", "device", True)
    assert msgspec.json.decode(survey.description)["functions"][0]["name"] == "say-it"


def test_the_probe_names_the_heavy_packages_that_the_author_imported(root: Path) -> None:
    (root / "src" / "accelerate.py").touch()
    prepend(root, "import accelerate\n")
    assert "accelerate" in msgspec.json.decode(probe(root).stdout, type=Survey).preload


def test_what_the_author_prints_does_not_reach_the_probes_document(root: Path) -> None:
    quiet = probe(root).stdout
    prepend(root, NOISE + THREAD)
    assert probe(root).stdout == quiet


def test_a_probe_that_fails_says_why_as_a_document(root: Path) -> None:
    prepend(root, "1 / 0\n")
    done = probe(root)
    assert done.returncode == 2
    told: dict[str, Any] = json.loads(done.stdout)
    assert told["error"] == "`mine.main` does not import: ZeroDivisionError: division by zero"
    assert told["stack"][-1] == "ZeroDivisionError: division by zero"
    assert (list(told), told["problems"]) == (["error", "hint", "stack", "problems"], [])


def test_discovery_works_where_linux_only_calls_are_missing(root: Path) -> None:
    hide = "import os, socket, sys\n" + "".join(
        f"vars({module}).pop('{name}', None)\n"
        for module, names in {
            "os": ("memfd_create", "pidfd_open", "fork", "getuid", "geteuid", "sched_getaffinity"),
            "socket": ("AF_UNIX", "SOCK_SEQPACKET", "send_fds", "recv_fds"),
        }.items()
        for name in names
    )
    discover = "import json\nfrom gen_worker.discovery import discover\nprint(json.dumps(discover()))"
    script = f"{hide}sys.modules['fcntl'] = None\n{discover}"
    done = python("-c", script, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["functions"][0]["name"] == "say-it"


# --- what an import costs ---------------------------------------------------------------------------------------------

HEAVY = {"torch", "numpy", "grpc", "huggingface_hub", "transformers", "diffusers", "safetensors", "PIL", "asyncio"}
USE_ALL = "import gen_worker\nfor name in gen_worker.__all__: getattr(gen_worker, name)\n"


def test_every_public_name_imports_and_loads_nothing_heavy(tmp_path: Path) -> None:
    script = (
        USE_ALL + "import sys, gen_worker.api.payload_constraints, gen_worker.capability, gen_worker.discovery.specs\n"
    )
    loaded = set(python("-c", script + "print(*sys.modules)", cwd=tmp_path).stdout.split())
    assert "gen_worker.api.context" in loaded
    assert not loaded & HEAVY
    assert not loaded & {"gen_worker.conversion", "gen_worker.clone"}


@pytest.mark.parametrize(
    "first", ["gen_worker.io", "gen_worker.api", "gen_worker.api.context", "gen_worker.api.errors"]
)
def test_any_module_may_be_imported_first(tmp_path: Path, first: str) -> None:
    done = python("-c", f"import {first}\nfrom gen_worker import io, endpoint", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


# --- the lock ---------------------------------------------------------------------------------------------------------

RICH = """
from collections.abc import Iterator
from typing import Annotated, Literal, Optional
import msgspec
from gen_worker import HF, Asset, ExpectedOutput, Hub, ImageAsset, RequestContext, Resources, endpoint
from gen_worker.api import NegativePrompt, PositivePrompt
from gen_worker.api.payload_constraints import Clamp

class Look(msgspec.Struct, frozen=True):
    tags: frozenset[str] = frozenset({"a", "b", "c", "d", "e"})

class Paint(msgspec.Struct):
    prompt: PositivePrompt
    negative: NegativePrompt | None = None
    count: Annotated[int, Clamp(1, 4)] = 1
    size: Literal[512, 1024, None] = None
    look: Look = Look()
    sources: list[ImageAsset] = []

class Painted(msgspec.Struct):
    images: Annotated[list[ImageAsset], ExpectedOutput(count="input.count", mime_type="image/webp")]
    log: Asset | None = None

@endpoint(
    models={"pipe": HF("m/base", dtype="bf16"), "vae": Hub("m/vae")},
    variants={"Fast": HF("m/fast"), "best": (HF("m/best"), Resources(vram_gb=24))},
    resources=Resources(gpu=True),
)
class Painter:
    def setup(self, pipe, vae): ...
    def paint(self, ctx: RequestContext, payload: Paint) -> Painted: ...
"""


def locked(cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gen_worker.discovery"]
    env = {**os.environ, **environment}
    return subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL
    )


def test_the_lock_is_the_same_bytes_whoever_writes_it(root: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (root / "src" / "mine" / "main.py").write_text(RICH)
    link = tmp_path_factory.mktemp("elsewhere") / "link"
    link.symlink_to(root)
    first = locked(root, PYTHONHASHSEED="1")
    assert (first.returncode, first.stderr) == (0, "")
    assert {locked(root, PYTHONHASHSEED=str(seed)).stdout for seed in (2, 3)} == {first.stdout}
    assert locked(link, PYTHONHASHSEED="4", PWD=str(link)).stdout == first.stdout
    assert first.stdout.endswith("\n")
    assert not first.stdout.endswith("\n\n")


@pytest.mark.parametrize("module", ["gen_worker.discovery", "gen_worker.discover"])
def test_a_manifest_is_the_same_bytes_however_its_project_was_written(
    tmp_path_factory: pytest.TempPathFactory, module: str
) -> None:
    files = {f"part_{name}.py": RICH.replace("paint(self", f"paint_{name}(self") for name in "abcde"}
    files = {
        name: text.replace('"Fast"', f'"Fast {name}"').replace('"best"', f'"{name}"') for name, text in files.items()
    }
    told = set()
    for seed, names in enumerate((sorted(files), sorted(files, reverse=True))):
        folder = tmp_path_factory.mktemp(f"written-{seed}")
        (folder / "pyproject.toml").write_text('[project]\nname = "mine"\n[tool.gen_worker]\nmain = "mine"\n')
        (folder / "mine").mkdir()
        for name in ("__init__.py", *names):
            (folder / "mine" / name).write_text(files.get(name, ""))
        variables = {"PYTHONHASHSEED": str(seed), "LC_ALL": "C" if seed else "C.UTF-8", "TZ": f"UTC+{seed}"}
        done = subprocess.run(
            [sys.executable, "-m", module], cwd=folder, env={**os.environ, **variables}, capture_output=True, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, b"")
        told.add(done.stdout)
    assert len(told) == 1
    assert told.pop().count(b"paint_") > 5


def test_the_lock_and_discover_tell_the_same(root: Path) -> None:
    (root / "src" / "mine" / "main.py").write_text(RICH)
    lock = tomllib.loads(locked(root).stdout)
    assert lock == json.loads(discover(cwd=root).stdout)
    assert validate_endpoint_lock(lock).ok
    best, fast, paint = sorted(lock["functions"], key=lambda entry: entry["name"])
    assert [entry["name"] for entry in (best, fast, paint)] == ["best", "fast", "paint"]
    assert {entry["python_name"] for entry in (best, fast, paint)} == {"paint"}
    assert (fast["bindings"]["pipe"]["ref"], fast["bindings"]["vae"]["tag"]) == ("m/fast", "prod")
    assert best["resources"] == {"gpu": True, "vram_gb": 24.0}
    assert paint["moderation"] == {
        "prompts": [{"field": "prompt", "role": "positive"}, {"field": "negative", "role": "negative"}],
        "media": [{"field": "sources[]", "kind": "image"}],
    }
    assert paint["expected_outputs"] == [
        {"field": "images", "type": "image", "count": "input.count", "mime_type": "image/webp"}
    ]
    schema = paint["input_schema"]["$defs"]["Paint"]["properties"]
    assert (schema["count"]["maximum"], schema["size"]["enum"]) == (4, [512, 1024])
    assert "default" not in schema["negative"]


def test_a_lock_without_endpoints_is_a_warning(root: Path) -> None:
    (root / "src" / "mine" / "main.py").write_text("")
    done = locked(root)
    assert (done.returncode, done.stdout) == (0, "functions = []\n")
    assert done.stderr == "warning: no function or class is marked with `@endpoint`\n"


def test_everything_that_is_wrong_is_told_at_once(root: Path) -> None:
    (root / "src" / "mine" / "broken.py").write_text("import no_such_library")
    (root / "src" / "mine" / "worse.py").write_text("1 / 0")
    prepend(root, "from gen_worker import endpoint\n@endpoint\ndef bad(ctx, payload): ...\n")
    for done in (locked(root), discover(cwd=root)):
        assert (done.returncode, done.stdout) == (1, "")
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert len(errors) == 3
        assert any("`mine.broken` does not import: ModuleNotFoundError" in line for line in errors)
        assert any("`mine.worse` does not import: ZeroDivisionError" in line for line in errors)
        assert any("the payload `payload` of `bad`" in line for line in errors)


def test_an_import_that_ends_the_process_is_an_error_and_not_an_empty_lock(root: Path) -> None:
    for how, fate in (
        ("import os; os._exit(0)", "exit code 0"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
    ):
        (root / "src" / "mine" / "main.py").write_text(how)
        done = locked(root)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.splitlines()[-1] == f"error: importing `mine.main` ended the process: {fate}"


def test_the_lock_takes_no_arguments(root: Path) -> None:
    done = python("-m", "gen_worker.discovery", "--config", ".", cwd=root)
    assert (done.returncode, done.stdout) == (2, "")


def test_a_module_made_in_memory_is_locked_by_the_program_that_made_it(root: Path) -> None:
    script = f"""
import sys, types
module = types.ModuleType("mine.main")
sys.modules["mine.main"] = module
exec({MAIN!r}, vars(module))
from gen_worker.discovery.__main__ import main
sys.exit(main([]))
"""
    (root / "src" / "mine" / "main.py").unlink()
    done = python("-c", script, cwd=root)
    assert (done.returncode, done.stderr) == (0, "")
    (function,) = tomllib.loads(done.stdout)["functions"]
    assert function["declared_module"] == "mine.main"
