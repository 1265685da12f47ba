"""`gen-worker orchestrator` says what is wrong with its options before it opens anything."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gen_worker.cli.orchestrator import command


def run(*arguments: str) -> Result:
    return CliRunner().invoke(command, arguments)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--listen", "127.0.0.1:20080", "--http", "127.0.0.1:20080"], "are both `127.0.0.1:20080`"),
        (["--url", "foo"], "`--url` takes a URL that begins with"),
        (["--devices", "cpu:1"], "`--devices` without `--worker`"),
        (["--worker", ".", "--devices", "cpu:0"], "takes 1 to 256 slots, not `0`"),
        (["--worker", ".", "--devices", "cpu:x"], "takes 1 to 256 slots, not `x`"),
    ],
)
def test_options_that_cannot_work_are_refused(arguments: list[str], said: str) -> None:
    result = run(*arguments)
    assert said in str(result.exception)


def test_files_that_are_no_certificate_are_named(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.pem"
    wrong.write_text("no certificate")
    result = run("--tls-cert", str(wrong), "--tls-key", str(wrong))
    assert str(wrong) in str(result.exception)
    assert "no certificate and its key" in str(result.exception)


def test_a_token_is_made_with_the_state_that_was_named_on_either_side(tmp_path: Path) -> None:
    for number, arguments in enumerate((["--state", "{}", "token"], ["token", "--state", "{}"])):
        state = tmp_path / str(number)
        state.mkdir()
        words = [word.format(state) for word in arguments]
        assert run(*words, "--worker-id", "a").exit_code == 0
        assert (state / "worker-tokens.pem").is_file()


def test_no_token_is_made_where_there_is_no_control_plane(tmp_path: Path) -> None:
    result = run("token", "--worker-id", "a", "--state", str(tmp_path / "nowhere"))
    assert "no control plane keeps its state in" in str(result.exception)
    assert not (tmp_path / "nowhere").exists()
