"""What the doctor says of systems, limits and memory, each made up in a folder that stands for the root."""

import datetime
from pathlib import Path

import pytest

from gen_worker.doctor import kernel, limits, memory, system
from gen_worker.doctor.finding import Finding, Status
from gen_worker.doctor.program import Told

UNLIMITED = -1


def root_with(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def is_told(finding: Finding, status: Status, *words: str) -> None:
    """The finding has this status and says these words; whoever is warned is told what to do."""
    assert finding.status is status, finding
    for word in words:
        assert word in finding.found + finding.remedy, finding
    assert bool(finding.remedy) == (status in (Status.WARNING, Status.PROBLEM)), finding


# --- system -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "release", "status"),
    [
        ("Linux", "6.8.0-45-generic", Status.OK),
        ("Linux", "5.4.0", Status.OK),
        ("Linux", "4.19.0-cloud", Status.PROBLEM),
        ("Linux", "odd", Status.OK),
        ("Darwin", "24.1.0", Status.PROBLEM),
    ],
)
def test_a_system_that_no_supervisor_runs_on_is_a_problem(name: str, release: str, status: Status) -> None:
    seen = system.Platform(name, release, "x86_64", "cpython 3.12.1", 8)
    is_told(system.platform(seen), status, release, "8 processors")


def test_the_clock_is_behind_when_files_are_from_its_future() -> None:
    now = datetime.datetime(2026, 3, 1, 12, tzinfo=datetime.UTC).timestamp()
    is_told(system.clock(now, [now - 5000.0]), Status.OK, "2026-03-01 12:00:00 UTC")
    is_told(system.clock(now, []), Status.OK)
    is_told(system.clock(now, [now + 86400.0 * 3]), Status.PROBLEM, "3 days before")


@pytest.mark.parametrize(
    ("filesystem", "stdout", "status"),
    [("utf-8", "UTF-8", Status.OK), ("utf-8", "", Status.OK), ("ascii", "utf-8", Status.WARNING)],
)
def test_text_that_is_not_utf_8_is_warned_of(filesystem: str, stdout: str, status: Status) -> None:
    is_told(system.encoding(filesystem, stdout, "C"), status, "locale `C`")


@pytest.mark.parametrize(
    ("packaged", "command", "status", "word"),
    [
        ("1.0", system.Command("/venv/bin/gen-worker", "/venv/bin/python3"), Status.OK, "on `PATH`"),
        ("1.0", system.Command("/bin/gen-worker", ""), Status.OK, "on `PATH`"),
        ("1.0", system.Command("/usr/bin/gen-worker", "/usr/bin/python3"), Status.WARNING, "/usr/bin/gen-worker"),
        ("1.0", None, Status.WARNING, 'PATH="/venv/bin:$PATH"'),
        ("0.9", None, Status.PROBLEM, "the installed package 0.9"),
        (None, None, Status.PROBLEM, "pip install -e ."),
    ],
)
def test_a_command_of_another_installation_is_told(
    packaged: str | None, command: system.Command | None, status: Status, word: str
) -> None:
    is_told(system.installation("1.0", packaged, command, "/venv/bin/python"), status, word)


def test_code_that_is_not_compiled_is_warned_of(tmp_path: Path) -> None:
    sources = [tmp_path / f"{name}.py" for name in "abc"]
    is_told(system.bytecode(sources, [str(tmp_path)]), Status.WARNING, "0 of 3", f"compileall -q {tmp_path}")
    is_told(system.bytecode([], []), Status.SKIPPED)


# --- the kernel -------------------------------------------------------------------------------------------------------


def test_everything_that_a_kernel_does_is_one_finding() -> None:
    (found,) = kernel.judged(Told("".join(f"{name}\t\n" for name in kernel.NEEDED_FOR), "", 0))
    is_told(found, Status.OK, *kernel.NEEDED_FOR)


def test_what_a_kernel_refuses_is_told_with_what_it_is_for() -> None:
    lines = "".join(f"{name}\t{'not permitted' if name == 'subreaper' else ''}\n" for name in kernel.NEEDED_FOR)
    (found,) = kernel.judged(Told(lines, "", 0))
    assert found.name == "subreaper"
    is_told(found, Status.PROBLEM, "not permitted", "what a job leaves behind")


@pytest.mark.parametrize(
    ("out", "code", "name", "word"),
    [
        ("sealed-memory\t", -31, "sealed-memory", "SIGSYS"),
        ("sealed-memory\t\npassed-descriptors\t", None, "passed-descriptors", "did not end in time"),
        ("", 1, "sealed-memory", "no such file"),
        ("sealed-memory\t\n", -64, "passed-descriptors", "SIGRTMAX"),
    ],
)
def test_a_try_that_ends_its_process_is_told_by_its_name(out: str, code: int | None, name: str, word: str) -> None:
    (found,) = kernel.judged(Told(out, "python: no such file", code))
    assert found.name == name
    is_told(found, Status.PROBLEM, word)


# --- limits -----------------------------------------------------------------------------------------------------------


def test_few_descriptors_are_warned_of() -> None:
    is_told(limits.open_files(1024, 1_048_576), Status.OK, "1048576")
    is_told(limits.open_files(1024, UNLIMITED), Status.OK, "any number")
    is_told(limits.open_files(256, 1024), Status.WARNING, "1024", "ulimit -Hn")


@pytest.mark.parametrize(
    ("cgroup", "files", "status", "word"),
    [
        (
            "0::/pod/a\n",
            {"sys/fs/cgroup/pod/pids.max": "600", "sys/fs/cgroup/pod/pids.current": "300"},
            "warning",
            "300",
        ),
        ("0::/\n", {"sys/fs/cgroup/pids.max": "max"}, "ok", "any number"),
        ("7:pids:/\n", {"sys/fs/cgroup/pids/pids.max": "9000", "sys/fs/cgroup/pids/pids.current": "3"}, "ok", "9000"),
    ],
)
def test_few_processes_left_are_warned_of(
    tmp_path: Path, cgroup: str, files: dict[str, str], status: str, word: str
) -> None:
    root = root_with(tmp_path, {"proc/self/cgroup": cgroup, **files})
    is_told(limits.processes(UNLIMITED, root), Status(status), word)
    is_told(limits.processes(100, root), Status.WARNING, "100", "ulimit -u")


def test_core_files_are_warned_of() -> None:
    is_told(limits.core_files(0, "core"), Status.OK)
    is_told(limits.core_files(UNLIMITED, "core.%p"), Status.WARNING, "`core.%p`", "any size")
    is_told(limits.core_files(1 << 30, "|/usr/bin/dumper %p"), Status.WARNING, "`/usr/bin/dumper`", "1024 MiB")


def processes(zombies: int, extra: dict[str, str] | None = None) -> dict[str, str]:
    found = {"proc/1/comm": "sh\n", "proc/1/stat": "1 (sh) S 0 1 1", "proc/1/cmdline": "sh\0"}
    for pid in range(50, 50 + zombies):
        found[f"proc/{pid}/stat"] = f"{pid} (a) b) Z 1 1 1"
    return found | (extra or {})


def test_zombies_that_process_1_does_not_reap_are_warned_of(tmp_path: Path) -> None:
    is_told(limits.first_process(root_with(tmp_path / "few", processes(2))), Status.OK, "`sh`")
    is_told(limits.first_process(root_with(tmp_path / "many", processes(30))), Status.WARNING, "30 zombies", "--init")


def test_a_child_without_its_supervisor_is_a_problem(tmp_path: Path) -> None:
    child = {
        "proc/77/stat": "77 (python) S 1 77 77",
        "proc/77/cmdline": "python\0-m\0gen_worker_child.main\0--socket\0003",
        "proc/78/stat": "78 (python) S 60 78 78",
        "proc/78/cmdline": "python\0-m\0gen_worker_child.main\0",
    }
    is_told(limits.orphans(root_with(tmp_path / "orphan", processes(0, child))), Status.PROBLEM, "`kill -9 77`")
    first = child | {"proc/1/cmdline": "python\0-m\0gen_worker.entrypoint\0"}
    is_told(limits.orphans(root_with(tmp_path / "first", processes(0, first))), Status.OK)


def test_what_a_job_started_is_a_problem_once_its_supervisor_is_gone(tmp_path: Path) -> None:
    mark = "A=b\0GEN_WORKER_SUPERVISOR=0123\0"
    started = {
        "proc/77/stat": "77 (sh) S 1 77 77",
        "proc/77/cmdline": "sh\0",
        "proc/77/environ": mark,
        "proc/78/stat": "78 (sleep) S 77 77 77",
        "proc/78/cmdline": "sleep\0",
        "proc/78/environ": mark,
        "proc/79/stat": "79 (sleep) S 60 79 79",
        "proc/79/cmdline": "sleep\0",
        "proc/79/environ": mark,
        "proc/60/stat": "60 (python) S 1 60 60",
        "proc/60/cmdline": "python\0/bin/gen-worker\0serve\0",
        "proc/80/stat": "80 (sleep) S 1 80 80",
        "proc/80/environ": "A=b\0",
    }
    is_told(limits.orphans(root_with(tmp_path / "left", processes(0, started))), Status.PROBLEM, "`kill -9 77 78`")


def test_privileges_are_told(tmp_path: Path) -> None:
    status = "Name:\tpython\nUid:\t1000\t1000\t1000\t1000\nCapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\n"
    found = limits.privileges(root_with(tmp_path, {"proc/self/status": status}))
    assert found.found == "user 1000, 14 capabilities, a seccomp filter, no new privileges"


@pytest.mark.parametrize(("score", "status"), [("0", "ok"), ("-998", "ok"), ("700", "ok"), ("1000", "warning")])
def test_a_supervisor_that_would_go_with_its_children_is_warned_of(tmp_path: Path, score: str, status: str) -> None:
    root = root_with(tmp_path, {"proc/self/oom_score_adj": f"{score}\n"})
    is_told(limits.victims(root), Status(status), f"is {score}")
    is_told(limits.victims(tmp_path / "nowhere"), Status.SKIPPED)


# --- memory -----------------------------------------------------------------------------------------------------------


def host(folder: Path, free_gib: float, extra: dict[str, str] | None = None) -> Path:
    meminfo = f"MemTotal: {64 << 20} kB\nMemAvailable: {int(free_gib * (1 << 20))} kB\n"
    return root_with(folder, {"proc/meminfo": meminfo, "proc/self/cgroup": "0::/\n", **(extra or {})})


def test_little_memory_is_warned_of(tmp_path: Path) -> None:
    is_told(memory.memory(host(tmp_path / "a", 60)), Status.OK, "60.0 GiB free of 64.0 GiB (host)")
    is_told(memory.memory(host(tmp_path / "b", 1)), Status.WARNING, "1024 MiB")
    is_told(memory.memory(tmp_path / "nowhere"), Status.SKIPPED)


def test_the_tightest_limit_counts(tmp_path: Path) -> None:
    limited = {"sys/fs/cgroup/memory.max": str(8 << 30), "sys/fs/cgroup/memory.current": str(7 << 30)}
    is_told(memory.memory(host(tmp_path, 60, limited)), Status.WARNING, "cgroup v2", "8192 MiB")


def test_a_container_that_dies_as_a_whole_is_warned_of(tmp_path: Path) -> None:
    grouped = {
        "sys/fs/cgroup/memory.oom.group": "1\n",
        "sys/fs/cgroup/memory.events": "oom 3\noom_kill 3\n",
        "sys/fs/cgroup/memory.max": str(8 << 30),
        "sys/fs/cgroup/memory.current": "0",
    }
    root = host(tmp_path, 60, grouped)
    is_told(memory.killing(root, None), Status.WARNING, "memory.oom.group", "3 processes", "singleProcessOOMKill")
    is_told(memory.killing(root, 0), Status.WARNING, "unset `GEN_WORKER_MEMORY_RESERVE`")


def test_deaths_for_lack_of_memory_are_told(tmp_path: Path) -> None:
    killed = {"sys/fs/cgroup/memory.events": "oom_kill 1\n", "sys/fs/cgroup/memory.max": "max"}
    is_told(memory.killing(host(tmp_path / "killed", 60, killed), None), Status.WARNING, "1 process for lack")
    is_told(memory.killing(host(tmp_path / "calm", 60), None), Status.OK)
    is_told(memory.killing(host(tmp_path / "calm", 60), 0), Status.WARNING, "the kernel chooses")


def test_memory_that_is_on_disk_is_warned_of(tmp_path: Path) -> None:
    is_told(memory.swap(host(tmp_path / "none", 60)), Status.OK, "none")
    lines = "SwapTotal: 4194304 kB\nSwapFree: {} kB\n"
    is_told(memory.swap(root_with(tmp_path / "some", {"proc/meminfo": lines.format(4_000_000)})), Status.OK)
    is_told(memory.swap(root_with(tmp_path / "much", {"proc/meminfo": lines.format(1000)})), Status.WARNING, "4095 MiB")


@pytest.mark.parametrize(("mode", "status"), [("0", "ok"), ("1", "ok"), ("2", "warning")])
def test_address_space_that_counts_as_memory_is_warned_of(tmp_path: Path, mode: str, status: str) -> None:
    root = root_with(tmp_path, {"proc/sys/vm/overcommit_memory": f"{mode}\n"})
    is_told(memory.overcommit(root), Status(status), mode)


def test_a_small_dev_shm_does_not_matter() -> None:
    is_told(memory.shared_memory(64 << 20), Status.OK, "64 MiB", "whatever its size")
    is_told(memory.shared_memory(None), Status.OK, "none")
