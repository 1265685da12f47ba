"""What `ps` and `kill` print."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.cli import devices, kill, ps
from gen_worker.cli.table import duration, size, table
from gen_worker.wire.control import Killed
from gen_worker.wire.status import (
    DeviceStatus,
    DownloadStatus,
    FunctionStatus,
    HostModelStatus,
    JobStatus,
    MemoryStatus,
    ModelStatus,
    Status,
)

MIB = 1 << 20


def status(**changes: object) -> Status:
    fields = {"ts": 1.0, "host": "box", "version": "1", "pid": 77, "uptime_s": 190.0, "jobs_done": 5, "jobs_failed": 1}
    return Status(**{**fields, **changes})  # type: ignore[arg-type]


def test_devices_come_before_jobs_and_unavailable_functions_last() -> None:
    told = ps.describe(
        status(
            gpus=[
                DeviceStatus(
                    0, "GPU-1", "NVIDIA H100", 100, "busy", 40000 * MIB, 81559 * MIB, job="a", jobs=1, rss=900 * MIB
                ),
                DeviceStatus(None, None, "cpu:0", None, "backoff", restart_in_s=3.5, restarts=2, health="dirty"),
            ],
            jobs=[JobStatus("a", "generate", "running", stage="denoise", progress=0.5, elapsed_s=75.0, gpu="0")],
            functions=[
                FunctionStatus("generate", "available"),
                FunctionStatus("upscale", "unavailable", reason="its setup failed 3 times"),
            ],
        )
    )
    assert told.splitlines() == [
        "supervisor 77, up 3m10s: 5 jobs done, 1 failed",
        "",
        "DEVICE         STATE         PID  MEMORY         JOBS  RESTARTS  JOB",
        "0 NVIDIA H100  busy          100  39.1/79.6 GiB  1     0         a",
        "cpu:0          backoff 3.5s  -    -              0     2         -",
        "",
        "JOB  FUNCTION  STATUS   DEVICE  ELAPSED  LEFT  PROGRESS",
        "a    generate  running  0       1m15s    -     50% denoise",
        "",
        "device `cpu:0` is dirty",
        "",
        "`upscale` is unavailable: its setup failed 3 times",
    ]


def test_on_a_terminal_states_have_a_glyph_and_a_colour_and_never_the_colour_alone() -> None:
    devices = [
        DeviceStatus(None, None, "cpu:0", 7, "busy", job="a"),
        DeviceStatus(None, None, "cpu:1", None, "restart", restart_in_s=2.0),
    ]
    told = ps.describe(status(gpus=devices), ps.Look(glyphs=True)).splitlines()
    assert told[3:] == [
        "cpu:0   ● busy          7    -       0     0         a",
        "cpu:1   ↻ restart 2.0s  -    -       0     0         -",
    ]
    painted = ps.describe(status(gpus=devices), ps.Look(glyphs=True, colour=True)).splitlines()
    assert [re.sub(r"\x1b\[\d+m", "", line) for line in painted[3:]] == told[3:]
    assert "\x1b[32m● busy" in painted[3]
    assert painted[2].startswith("\x1b[1mDEVICE")
    words = ps.describe(status(gpus=devices), ps.Look(colour=True)).splitlines()
    assert "\x1b[32mbusy" in words[3]
    assert "\x1b[33mrestart 2.0s" in words[4]


names = st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=60)


@given(st.lists(st.builds(JobStatus, names, names, st.just("running"), stage=names, gpu=names), min_size=1, max_size=4))
def test_the_tables_fit_80_columns(jobs: list[JobStatus]) -> None:
    devices = [
        DeviceStatus(0, "GPU-1", job.function, 4194304, "loading", 40000 * MIB, 81559 * MIB, job=job.id, rss=MIB)
        for job in jobs
    ]
    told = ps.describe(status(gpus=devices, jobs=jobs))
    assert max(map(len, told.splitlines())) <= 80


def test_a_waiting_job_shows_its_place_and_when_it_starts() -> None:
    jobs = [
        JobStatus("a", "f", "running", gpu="cpu:0", elapsed_s=1.0),
        JobStatus("b", "f", "queued", position=1, starts_in_s=4.0, stage="loading"),
        JobStatus("c", "f", "queued", position=2),
    ]
    assert ps.describe(status(jobs=jobs)).splitlines()[-3:] == [
        "a    f         running  cpu:0   1.0s     -     -",
        "b    f         queued   -       0.0s     -     #1 in 4.0s loading",
        "c    f         queued   -       0.0s     -     #2",
    ]


def test_tenants_and_priorities_are_shown_where_there_are_any() -> None:
    jobs = [JobStatus("a", "f", "running", tenant="ada", priority=-3), JobStatus("b", "f", "running")]
    assert ps.describe(status(jobs=jobs)).splitlines()[-3:] == [
        "JOB  FUNCTION  TENANT  PRIORITY  STATUS   DEVICE  ELAPSED  LEFT  PROGRESS",
        "a    f         ada     -3        running  -       0.0s     -     -",
        "b    f         -       0         running  -       0.0s     -     -",
    ]


def test_of_a_long_queue_the_next_jobs_are_shown_and_the_others_counted() -> None:
    jobs = [JobStatus(f"r{each}", "f", "queued", position=each) for each in range(1, 101)]
    *_, last, more = ps.describe(status(jobs=jobs)).splitlines()
    assert last.startswith("r20")
    assert more == "80 more wait: `gen-worker ps --json` names them"


def test_a_wider_terminal_shows_more() -> None:
    job = JobStatus("a" * 60, "b" * 60, "running")
    assert "a" * 60 in ps.describe(status(jobs=[job]), ps.Look(200))
    assert "a" * 60 not in ps.describe(status(jobs=[job]))


@pytest.mark.parametrize(
    ("used_mib", "lines"),
    [
        (15000, []),
        (18050, ["memory is scarce: 1950 MiB of 19.5 GiB are left (cgroup v2); below 1000 MiB a child is ended"]),
        (19500, ["memory is short: 500 MiB of 19.5 GiB are left (cgroup v2); below 1000 MiB a child is ended"]),
    ],
)
def test_memory_is_told_of_when_it_is_scarce(used_mib: int, lines: list[str]) -> None:
    memory = MemoryStatus(used_mib * MIB, 20000 * MIB, 1000 * MIB, "cgroup v2")
    assert ps.describe(status(memory=memory)).splitlines()[1:-2] == lines


def test_a_draining_supervisor_says_so() -> None:
    assert ps.describe(status(draining=True)).startswith("supervisor 77, draining:")


@given(st.lists(st.tuples(names, names), max_size=5), st.integers(10, 60))
def test_a_table_cuts_its_widest_columns_only_as_far_as_needed(rows: list[tuple[str, str]], width: int) -> None:
    lines = table(("A", "B"), rows, elastic=("A", "B"), width=width).splitlines()
    assert len(lines) == len(rows) + 1
    assert all(len(line) <= width for line in lines)
    natural = max([len(a) for a, _ in rows] + [1]) + 2 + max([len(b) for _, b in rows] + [1])
    assert ("…" in "".join(lines)) == (natural > width)


def test_a_cell_can_neither_steer_a_terminal_nor_begin_a_line() -> None:
    assert table(("JOB",), [("r1\x1b[2J\r\n\x07",)], elastic=()) == "JOB\nr1\\x1b[2J\\x0d\\x0a\\x07"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0.0s"), (3.21, "3.2s"), (59.94, "59.9s"), (59.96, "1m00s"), (185, "3m05s"), (7380, "2h03m")],
)
def test_a_duration_is_said_as_a_person_would(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (None, "-"),
        (0, "0 MiB"),
        (6, "1 KiB"),
        (MIB - 1, "1023 KiB"),
        (MIB, "1 MiB"),
        (120 * MIB, "120 MiB"),
        (24 << 30, "24.0 GiB"),
    ],
)
def test_an_amount_of_memory_is_said_as_a_person_would(amount: int | None, text: str) -> None:
    assert size(amount) == text


@pytest.mark.parametrize(
    ("killed", "text"),
    [
        (
            Killed("a", "killed", rung=4, stack=['  File "main.py", line 3'], seconds=0.31),
            'killed `a` after 0.3s by rung 4, SIGTERM to its child\n  File "main.py", line 3',
        ),
        (Killed("a", "killed", seconds=1.0), "killed `a` after 1.0s"),
        (Killed("a", "finished", seconds=0.2), "`a` finished by itself after 0.2s"),
    ],
)
def test_kill_says_what_ended_the_request_and_where_it_was(killed: Killed, text: str) -> None:
    assert kill.describe("a", killed) == text


@pytest.mark.parametrize(
    ("request_id", "near"),
    [
        ("invoke-6f0c", "invoke-6f0c2a91"),
        ("invoke-6f0c2a92", "invoke-6f0c2a91"),
        ("invoke-11111111", None),
        ("invoke-", None),
    ],
)
def test_kill_takes_for_a_slip_only_what_is_one(request_id: str, near: str | None) -> None:
    assert kill.meant(request_id, ["invoke-6f0c2a91", "invoke-d5b3e870"]) == near


def test_ps_shows_where_each_model_is_and_what_comes_down() -> None:
    held = ModelStatus("acme/xl", 10 << 20, "RAM", "main:Painter", "model_offload")
    device = DeviceStatus(index=None, uuid=None, name="cpu:0", pid=7, state="idle", models=[held])
    known = [HostModelStatus("acme/xl", "RAM", 10 << 20), HostModelStatus("acme/next", "COLD")]
    coming = [DownloadStatus("acme/next", 5 << 20, 50 << 20, 2 << 20, "downloading", ["paint"], 2)]
    *_, models, download = ps.describe(status(gpus=[device], models=known, downloads=coming)).split("\n\n")
    assert [line.split() for line in models.splitlines()] == [
        ["MODEL", "STATE", "SIZE", "DEVICE"],
        ["acme/xl", "RAM", "10", "MiB", "cpu:0", "model_offload"],
        ["acme/next", "COLD", "-", "-"],
    ]
    assert download == "downloading `acme/next` for `paint`: 5 MiB of 50 MiB, 2 MiB/s, retried 2 times"


def test_a_hang_has_its_name_its_length_and_its_meaning() -> None:
    gpu = DeviceStatus(None, None, "cpu:0", 7, "hung", job="a", hang="python_stuck", silent_s=75.2)
    assert ps.describe(status(gpus=[gpu])).splitlines()[3:] == [
        "cpu:0   hung   7    -       0     0         a",
        "",
        "child 7 of `cpu:0`, at `a`: python_stuck, nothing new for 1m15s: its code waits for a lock",
        "`gen-worker kill JOB` ends one of these jobs, and nothing else",
    ]


def test_hangs_of_several_children_are_told_line_by_line_and_a_load_is_not_to_be_killed() -> None:
    loading = [DeviceStatus(None, None, f"cpu:{at}", 7 + at, "loading", hang="native_wait") for at in range(2)]
    assert ps.describe(status(gpus=loading)).splitlines()[6:] == [
        "child 7 of `cpu:0`: native_wait: it sleeps in a system call: for a pipe, a socket, a timer",
        "child 8 of `cpu:1`: native_wait: it sleeps in a system call: for a pipe, a socket, a timer",
    ]


def test_what_is_set_up_is_named_and_how_long_a_job_has_waited_for_it() -> None:
    device = DeviceStatus(
        None, None, "cpu:0", 7, "loading", loading="main:Painter", loading_bytes=5 * MIB, loading_total=50 * MIB
    )
    told = ps.describe(status(gpus=[device], jobs=[JobStatus("a", "f", "queued", position=1, queued_s=12.0)]))
    assert told.splitlines()[-3].split() == ["a", "f", "queued", "-", "12.0s", "-", "#1"]
    assert told.splitlines()[-1] == "child 7 of `cpu:0` sets up `main:Painter`: 5 MiB of 50 MiB"


def test_a_device_is_meant_by_its_name_its_index_or_the_number_of_its_slot() -> None:
    gpu = DeviceStatus(0, "GPU-1", "cuda:0", 1, "idle")
    slots = [DeviceStatus(None, None, f"cpu:{number}", 2, "idle") for number in range(2)]
    assert devices.named("1", slots) is slots[1]
    assert devices.named("0", [*slots, gpu]) is gpu
    assert devices.named("GPU-1", [*slots, gpu]) is gpu
    assert devices.named("2", slots) is None


def test_who_restarts_a_child_is_told_what_it_waits_for() -> None:
    jobs = [JobStatus(f"r{each}", "f", "running", hang="gil_held" if each == 0 else None) for each in range(5)]
    assert devices.described(jobs[:1]) == "`r0` (hangs: gil_held) ends"
    assert devices.described(jobs) == "`r0` (hangs: gil_held), `r1`, `r2` and 2 more end"


def test_a_name_turns_round_nothing_that_stands_beside_it() -> None:
    shown = table(["JOB", "STATUS"], [("\u202egnp\x1b[2J\u2066", "running")], elastic=())
    assert shown.endswith("\\u202egnp\\x1b[2J\\u2066  running")
