"""How a line of the log looks: as text for a person, as JSON for a program; and what is never in it."""

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.log_files import Line
from gen_worker.wire.messages import Level
from gen_worker_supervisor.logs.log import HIDDEN, Format, Log, Look, format_of


def shown(look: Look, message: str, level: Level = "info", job: str | None = None) -> str:
    return look.line(Line(1.5, level, "cpu:0", message, job, "cpu:0"), marked=level != "info").decode()


def test_as_text_a_line_names_its_source_and_its_job() -> None:
    look = Look()
    assert shown(look, "hello") == "[cpu:0] hello\n"
    assert shown(look, "hello", job="r1") == "[cpu:0 job=r1] hello\n"
    assert shown(look, "careful", "warning") == "[cpu:0] warning: careful\n"
    assert look.line(Line(1.5, "info", "serve", "ready"), bare=True) == b"ready\n"


def test_as_json_a_line_is_one_object_without_what_is_not_known() -> None:
    look = Look("json")
    assert json.loads(shown(look, "a\nb", "warning", "r1")) == {
        "ts": 1.5,
        "level": "warning",
        "source": "cpu:0",
        "message": "a\nb",
        "job": "r1",
        "child": "cpu:0",
    }
    assert json.loads(look.line(Line(1.5, "info", "serve", "ready"), bare=True)) == {
        "ts": 1.5,
        "level": "info",
        "source": "serve",
        "message": "ready",
    }


def test_only_the_mark_of_a_warning_or_an_error_is_painted() -> None:
    look = Look(colour=True)
    assert shown(look, "careful", "warning") == "[cpu:0] \x1b[33mwarning:\x1b[0m careful\n"
    assert shown(look, "hello") == "[cpu:0] hello\n"


def test_what_could_steer_a_terminal_is_shown_and_a_line_feed_begins_no_line_of_its_own() -> None:
    assert shown(Look(), "\x1b[2Jgone\x07\n[serve] forged") == "[cpu:0] \\x1b[2Jgone\\x07\n  [serve] forged\n"


def test_a_request_id_can_neither_steer_a_terminal_nor_forge_a_line_nor_show_a_secret() -> None:
    request_id = "r1\x1b[2J\r\n\x9b[serve] ready hunter22"
    told = "r1\\x1b[2J\\x0d\\x0a\\x9b[serve] ready [secret]"
    assert shown(Look(secrets=["hunter22"]), "hello", job=request_id) == f"[cpu:0 job={told}] hello\n"
    line = shown(Look("json", secrets=["hunter22"]), "hello", job=request_id)
    assert line.count("\n") == 1
    assert json.loads(line)["job"] == request_id.replace("hunter22", HIDDEN)


def test_a_carriage_return_cannot_write_over_a_line() -> None:
    assert shown(Look(), "hidden\rshown") == "[cpu:0] hidden\\x0dshown\n"


def test_secret_values_are_hidden_the_longest_first_and_line_by_line() -> None:
    look = Look(secrets=["hunter22", "hunter22-and-more", "first line\nsecond line"])
    assert look.hide("with hunter22-and-more and hunter22") == f"with {HIDDEN} and {HIDDEN}"
    assert look.hide("the second line alone") == f"the {HIDDEN} alone"


@given(st.text(), st.sampled_from(["text", "json"]))
def test_any_text_is_one_line_of_utf_8_without_the_secret(text: str, form: Format) -> None:
    look = Look(form, secrets=["hunter22"])
    line = look.line(Line(1.5, "info", "serve", f"{text} hunter22 {text}"))
    assert line.endswith(b"\n")
    assert "hunter22" not in line.decode()
    if form == "json":
        assert line.count(b"\n") == 1
        json.loads(line)


@pytest.mark.parametrize(
    ("wanted", "pid", "terminal", "form"),
    [
        ("auto", 1, False, "json"),
        ("auto", 1, True, "text"),
        ("auto", 7, False, "text"),
        ("text", 1, False, "text"),
        ("json", 7, True, "json"),
    ],
)
def test_only_the_first_process_of_a_container_logs_json_by_itself(
    wanted: str, pid: int, terminal: bool, form: Format
) -> None:
    assert format_of(wanted, pid=pid, terminal=terminal) == form


def test_a_level_hides_what_is_below_it_from_the_log_and_nothing_from_ps() -> None:
    reader, writer = os.pipe()
    log = Log(Look(level="warning", secrets=["hunter22"]), fd=writer)
    log.say("ready")
    log.printed("cpu:0", None, "chatter")
    log.logged("cpu:0", "r1", "error", "it is hunter22")
    log.logged("cpu:0", "r1", "nonsense", "counts as info")
    log.event("info", "cpu:0", "knows hunter22")
    log.event("warning", "cpu:0", "broke", ("where",))
    log.close()
    os.close(writer)
    with open(reader) as text:
        assert text.read() == f"[cpu:0 job=r1] error: it is {HIDDEN}\n[cpu:0] warning: broke\n[cpu:0]   where\n"
    assert [event.message for event in log.events] == [f"knows {HIDDEN}", "broke"]
