"""What a worker says of its start gives no secret away, however the line is written."""

import json

import pytest

from gen_worker.entrypoint import Told

SECRETS = ('pa"ss\\word', "tok\ten-abcdef", "wörd-abcdef")


@pytest.mark.parametrize("secret", SECRETS)
def test_a_secret_is_hidden_from_programs_as_from_people(secret: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = Told()
    told.hide(SECRETS)
    told.phase("manifest_loaded", "failed", error=f"no login with {secret}")
    told.fatal(RuntimeError(f"no login with {secret}"))
    lines = capsys.readouterr().err.splitlines()
    phase, fatal = (json.loads(line.partition(" ")[2]) for line in lines[:2])
    assert phase["error"] == fatal["exception_message"] == "no login with [secret]"
    assert fatal["traceback"] == "RuntimeError: no login with [secret]\n"
    assert lines[2:] == ["error: the worker failed: RuntimeError: no login with [secret]"]


def test_a_path_that_is_no_text_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    Told().phase("cache_preflight_started", "started", path="/a\udc80")
    assert json.loads(capsys.readouterr().err.partition(" ")[2])["path"] == "/a\\udc80"
