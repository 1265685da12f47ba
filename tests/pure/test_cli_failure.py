"""How a command says that it cannot go on."""

import pytest

from gen_worker.cli.failure import say_error


def test_an_error_that_names_a_huge_word_shows_where_it_begins_and_what_is_wrong_with_it(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say_error(f"`{'[' * 100_000}` is not JSON: it ends too early", "write JSON")
    error, hint = capsys.readouterr().err.splitlines()
    assert len(error) < 5_000
    assert error.startswith("error: `[[[")
    assert error.endswith("[[[` is not JSON: it ends too early")
    assert hint == "hint: write JSON"


def test_an_error_of_some_lines_is_shown_whole(capsys: pytest.CaptureFixture[str]) -> None:
    text = "which function? " + ", ".join(f"`function-{number}`" for number in range(200))
    say_error(text)
    assert capsys.readouterr().err == f"error: {text}\n"
