"""What a child has compiled, the next one does not compile again."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.served import Server, serving, until

pytestmark = [
    pytest.mark.process,
    pytest.mark.needs("torch"),
    pytest.mark.skipif(shutil.which("g++") is None, reason="torch compiles for the CPU with g++"),
]
CODE = (".so", ".cpp", ".o", ".h", ".main.cpp")


def code_in(folder: Path) -> set[Path]:
    return {each for each in folder.rglob("*") if each.suffix in CODE}


def test_a_child_in_anothers_place_compiles_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)  # torch sets it for a process that uses it
    cache = tmp_path / "cache"
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    def ran(server: Server) -> dict[str, Any]:
        value: dict[str, Any] = server.client.submit("run", {}).result(timeout_s=90)
        return value

    with serving(tmp_path / "one", module="compiling", variables={"TENSORHUB_CACHE_DIR": str(cache)}) as server:
        first = ran(server)
        (folder,) = (cache / "compiled").iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        made = code_in(folder)
        assert made
        os.kill(first["pid"], signal.SIGKILL)
        until(lambda: server.pids().get("cpu:0") not in (None, first["pid"]), what="another child")
        second = ran(server)
        assert code_in(folder) == made
    with serving(tmp_path / "two", module="compiling", variables={"TENSORHUB_CACHE_DIR": str(cache)}) as server:
        third = ran(server)
        assert code_in(folder) == made
    assert first["total"] == second["total"] == third["total"]
    assert first["misses"] > 0 < second["hits"]
    assert (second["misses"], third["misses"]) == (0, 0)
    with capsys.disabled():
        seconds = [round(each["seconds"], 2) for each in (first, second, third)]
        print(f"\nfirst call: {seconds[0]} s; in another child {seconds[1]} s; in another server {seconds[2]} s")
