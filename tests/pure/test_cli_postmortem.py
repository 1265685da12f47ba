"""What `gen-worker postmortem` makes of a post-mortem."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.cli.failure import NOT_FOUND, Failure
from gen_worker.cli.postmortem import describe, explained, listed, meant, sparkline, spread, suspect
from gen_worker.cli.quarantine import describe as describe_charges
from gen_worker.postmortem import Held, Memory, Model, Moment, write
from gen_worker.wire.control import Charged, Quarantined
from gen_worker.wire.messages import Climbed
from tests.pure.test_postmortem_files import told

RUNGS = [Climbed(1, "cooperate", 0.0), Climbed(4, "terminate", 5.3)]
FULL = told(
    when=1000.0,
    pid=8110,
    lived_s=61.0,
    ready=True,
    stack=['File "main.py", line 3 in f'],
    printed=[("r1", "half way"), (None, "\x1b[31mred")],
    jobs=[
        Held("r0", "f", "leased", became="queued"),
        Held(
            "r1",
            "f",
            "started",
            tenant="acme",
            ran_s=3.2,
            payload="0123456789abcdef",
            ended_for="deadline",
            rungs=RUNGS,
            became="fatal",
        ),
    ],
    models=[Model("hf:acme/tiny", "m:C", "VRAM", 5 << 30)],
    timeline=[Moment(float(20 - at), "busy", "r1", at / 20, "step", (100 + at) << 20, 7 << 30) for at in range(21)],
    memory=Memory(9 << 30, 16 << 30, "cgroup v2", 4 << 30),
    device_health="dirty",
    device_reason="512 MiB are missing",
    environment={"kernel": "6.1", "torch": "2.9"},
)


def test_everything_that_is_known_is_said() -> None:
    text = describe(FULL, 1090.0)
    for words in (
        "child 8110 of `cuda:0` died: SIGSEGV",
        "1m30s ago; it had lived 1m01s and ended 0 jobs well",
        "request r1 was being ended: its deadline had passed",
        "5.3s  rung 4, terminate",
        'File "main.py", line 3 in f',
        "[r1] half way",
        "\\x1b[31mred",
        "REQUEST  FUNCTION  TENANT  WAS",
        "0123456789ab",
        "hf:acme/tiny (VRAM, 5120 MiB) of `m:C`",
        "100 MiB to 120 MiB",
        "9216 MiB of 16.0 GiB in use before the death, 4096 MiB after it (cgroup v2)",
        "device `cuda:0` is dirty: 512 MiB are missing",
        "torch 2.9",
        FULL.id,
    ):
        assert words in text, words
    assert "\x1b" not in text


def test_what_nobody_knows_is_left_out() -> None:
    text = describe(told(), 1.0)
    assert all(words not in text for words in ("None", "REQUEST", "TIME", "where it was", "memory:"))


def test_a_list_names_the_job_that_probably_had_to_do_with_it() -> None:
    (job,) = [job for job in FULL.jobs if job is suspect(FULL)]
    assert job.request_id == "r1"
    line = listed([FULL], 1090.0).splitlines()[1]
    assert all(word in line for word in (FULL.id, "1m30s", "cuda:0", "f +1", "r1"))


def test_a_list_names_what_was_being_set_up_where_no_job_ran() -> None:
    assert "main:Painter" in listed([told(loading="main:Painter")], 1.0).splitlines()[1]


@pytest.mark.parametrize(
    ("cause", "known", "meaning"),
    [
        ("SIGSEGV", {}, "memory that is not its own"),
        ("SIGKILL", {"signal": "SIGKILL"}, "somebody killed it, or the kernel did"),
        ("SIGKILL", {"signal": "SIGKILL", "oom_kills": 1}, "out-of-memory killer"),
        ("exit code 7", {"exit_code": 7}, "ended the process"),
        ("host_oom", {"signal": "SIGKILL"}, "before the host ran out of memory"),
        ("SIGTERM", {"jobs": [Held("r", "f", "started", ended_for="kill")]}, "a request's ladder"),
        ("SIGTERM", {"jobs": [Held("r", "f", "started", ended_for="kill", rungs=RUNGS)]}, "rung 4 of a request's"),
        ("protocol: no frame", {}, "descriptor that is not its own"),
    ],
)
def test_a_cause_is_explained(cause: str, known: dict[str, object], meaning: str) -> None:
    death = told(**known)  # type: ignore[arg-type]
    death.cause = cause
    assert meaning in explained(death)


@pytest.mark.parametrize(
    ("job", "word"),
    [
        (Held("r", "f", "started", became="queued"), "runs again"),
        (Held("r", "f", "started", ended_for="kill", became="canceled"), "killed"),
        (Held("r", "f", "started", ended_for="cancel", became="canceled"), "canceled"),
        (Held("r", "f", "started", ended_for="kill", became="ok"), "ok"),
    ],
)
def test_what_became_of_a_job_is_told_in_the_words_of_its_error(job: Held, word: str) -> None:
    (line,) = [line for line in describe(told(jobs=[job]), 1.0).splitlines() if line.startswith("r ")]
    assert line.endswith(word)


def test_an_id_may_be_cut_as_long_as_it_means_one(tmp_path: Path) -> None:
    known = ["20261122-131502-cuda0-3f1c", "20261122-131502-cuda1-0001", "20261123-000000-cpu0-0002"]
    assert meant("20261123", known, tmp_path) == known[2]
    assert meant(known[0], known, tmp_path) == known[0]
    with pytest.raises(Failure, match="may mean 2 post-mortems"):
        meant("20261122-13", known, tmp_path)
    for name in ("2025", "../x", "latest\n"):
        with pytest.raises(Failure, match="no post-mortem") as refused:
            meant(name, known, tmp_path)
        assert refused.value.code == NOT_FOUND


def test_the_latest_is_that_of_the_last_moment_whatever_its_device(tmp_path: Path) -> None:
    names = ["20261122-131501-cuda3-ffff", "20261122-131502-cuda0-3f1c", "20261122-131502-cuda1-0001"]
    for name, when in zip(names, (9.0, 3.0, 2.0), strict=True):
        write(tmp_path, told(name, when))
    assert meant("latest", names, tmp_path) == names[1]
    damaged = "20261123-000000-cpu0-0002"
    (tmp_path / f"{damaged}.json").write_text("{")
    assert meant("latest", [*names, damaged], tmp_path) == names[1]
    assert meant("latest", [damaged], tmp_path) == damaged
    with pytest.raises(Failure, match="no post-mortem `latest`"):
        meant("latest", [], tmp_path)


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=100))
def test_a_sparkline_has_a_bar_for_each_value_the_highest_for_the_highest(values: list[int]) -> None:
    line = sparkline(values)
    assert len(line) == len(values)
    assert set(line) <= set("▁▂▃▄▅▆▇█")
    if max(values) > min(values):
        assert line[values.index(max(values))] == "█"
        assert line[values.index(min(values))] == "▁"


@given(st.integers(1, 100))
def test_what_is_shown_of_many_moments_begins_with_the_first_and_ends_with_the_last(number: int) -> None:
    moments = [Moment(float(at), "busy") for at in range(number)]
    shown = spread(moments, 8)
    assert len(shown) == min(8, number)
    assert (shown[0], shown[-1]) == (moments[0], moments[-1])


def test_the_quarantine_is_shown_with_what_is_stopped_and_where_it_was() -> None:
    found = Quarantined(
        [
            Charged("f", "ab" * 16, 2, True, 300.0, "SIGSEGV", ["line 1"], FULL.id),
            Charged("f", "cd" * 16, 1, False, 20.0, "SIGKILL"),
            Charged("g", "ef" * 16, 0, False, 20.0, "SIGKILL"),
        ],
        {"f": "5 different payloads"},
        7,
    )
    text = describe_charges(found)
    assert [line.split()[3] for line in text.splitlines()[1:4]] == ["refused", "charged", "suspected"]
    for words in ("and 7 more", "line 1", f"`gen-worker postmortem {FULL.id}`", "`f` is not served: 5 different"):
        assert words in text
    assert describe_charges(Quarantined([])) == "nothing is charged"
