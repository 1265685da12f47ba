"""Settings as commands and programs meet them: in files of the current folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gen_worker.client import Client, SupervisorUnreachable

GEN_WORKER = (sys.executable, "-m", "gen_worker.cli")

MAIN = """
import os
import msgspec
from gen_worker import RequestContext, endpoint

class In(msgspec.Struct):
    pass

class Out(msgspec.Struct):
    seen: dict[str, str]
    kept: str

@endpoint
def look(ctx: RequestContext, payload: In) -> Out:
    return Out(dict(os.environ), ctx.save_bytes("a.txt", b"kept").local_path)
"""


def gen_worker(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder, with none of our variables set."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GEN_WORKER_")}
    return subprocess.run(
        [*GEN_WORKER, *arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [("ps",), ("kill", "x")])
@pytest.mark.parametrize(("file", "text"), [(".env", "GEN_WORKER_RUN_DIR={}\n"), ("gen-worker.yaml", "run_dir: {}\n")])
def test_commands_look_for_supervisors_where_a_file_says(
    tmp_path: Path, arguments: tuple[str, ...], file: str, text: str
) -> None:
    (tmp_path / file).write_text(text.format(tmp_path / "elsewhere"))
    done = gen_worker(*arguments, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (4, "")
    assert f"error: no supervisor is alive in `{tmp_path / 'elsewhere'}`\n" in done.stderr


def test_a_program_looks_for_supervisors_where_a_file_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text(f"GEN_WORKER_RUN_DIR={tmp_path / 'elsewhere'}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("GEN_WORKER_RUN_DIR")
    with pytest.raises(SupervisorUnreachable, match=f"no supervisor is alive in `{tmp_path / 'elsewhere'}`"):
        Client()


def test_run_goes_by_files_and_shows_the_endpoint_its_device_but_no_secret(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MAIN)
    (tmp_path / ".env").write_text("GEN_WORKER_LOCAL_DEVICE=cpu\nHF_TOKEN=canary\nWORKER_JWT=canary\nACME_KEY=canary\n")
    (tmp_path / "gen-worker.yaml").write_text("local_output_dir: kept-here\ntoken: canary\n")
    done = gen_worker("run", "--module", "mine", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)["value"]
    assert value["seen"]["GEN_WORKER_LOCAL_DEVICE"] == "cpu"
    assert "canary" not in done.stdout + done.stderr
    assert Path(value["kept"]).is_relative_to(tmp_path / "kept-here")


@pytest.mark.parametrize(
    "arguments", [("ps",), ("kill", "x"), ("invoke", "f"), ("run", "--module", "mine"), ("serve",)]
)
def test_every_command_refuses_a_value_that_cannot_be_meant(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / ".env").write_text("\nGEN_WORKER_MAX_QUEUED=lots\n")
    done = gen_worker(*arguments, cwd=tmp_path)
    said = "error: `GEN_WORKER_MAX_QUEUED` in line 2 of `./.env` must be a whole number, not `lots`\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


@pytest.mark.parametrize(("arguments", "code"), [(("run", "--module", "mine"), 0), (("ps",), 4), (("kill", "x"), 4)])
def test_a_command_warns_of_a_name_that_is_nearly_a_setting_and_goes_on(
    tmp_path: Path, arguments: tuple[str, ...], code: int
) -> None:
    (tmp_path / "mine.py").write_text(MAIN)
    (tmp_path / "gen-worker.yaml").write_text(f"max_qued: 5\nrun_dir: {tmp_path / 'run'}\n")
    done = gen_worker(*arguments, cwd=tmp_path)
    said = "warning: `max_qued` in `./gen-worker.yaml` is no setting; did you mean `max_queued`?\n"
    assert (done.returncode, done.stderr[: len(said)], done.stderr.count("warning")) == (code, said, 1)
