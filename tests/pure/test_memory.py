"""What the kernel's files say of the memory, and how often they are looked at."""

from pathlib import Path

import pytest

from gen_worker_supervisor.core.evidence import Room
from gen_worker_supervisor.memory.usage import (
    ended_together,
    families,
    family_bytes,
    oom_kills,
    own_bytes,
    rooms,
    tightest,
)
from gen_worker_supervisor.memory.watch import HURRIED_S, LASTING_S, LONGEST_S, SHORTEST_S, OomKills, Pace, pause

MIB, GIB = 1 << 20, 1 << 30


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write(tmp_path / "proc/meminfo", f"MemTotal: {64 << 20} kB\nMemFree: 1 kB\nMemAvailable: {40 << 20} kB")
    return tmp_path


def process(root: Path, pid: int, parent: int = 1, session: int = 1, *, anonymous: int = 0, shared: int = 0) -> None:
    write(root / f"proc/{pid}/stat", f"{pid} (a ) b) S {parent} {pid} {session} {'0 ' * 20}")
    rss = f"RssAnon:\t{anonymous // 1024} kB\nRssFile:\t900000 kB\nRssShmem:\t{shared // 1024} kB"
    write(root / f"proc/{pid}/status", f"Name:\tx\n{rss}")


# --- how much there is ------------------------------------------------------------------------------------------------


def test_without_a_cgroup_the_host_limits(root: Path) -> None:
    assert tightest(root) == Room("host", 64 * GIB, 24 * GIB)


def test_of_all_levels_of_both_versions_the_one_that_leaves_least_counts(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/old\n0::/pod/worker")
    write(root / "sys/fs/cgroup/pod/worker/memory.max", "max")
    write(root / "sys/fs/cgroup/pod/worker/memory.current", 5 * GIB)
    write(root / "sys/fs/cgroup/pod/memory.max", 8 * GIB)
    write(root / "sys/fs/cgroup/pod/memory.current", 6 * GIB)
    write(root / "sys/fs/cgroup/pod/memory.stat", f"anon 1\ninactive_file {GIB}\nactive_file {2 * GIB}")
    write(root / "sys/fs/cgroup/memory/old/memory.limit_in_bytes", 30 * GIB)
    write(root / "sys/fs/cgroup/memory/old/memory.usage_in_bytes", 3 * GIB)
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", 9223372036854771712)
    write(root / "sys/fs/cgroup/memory/memory.usage_in_bytes", 3 * GIB)
    assert [room.source for room in rooms(root)] == ["host", "cgroup v1", "cgroup v2"]
    assert tightest(root) == Room("cgroup v2", 8 * GIB, 4 * GIB)


def test_a_container_that_sees_its_own_cgroup_at_the_top_is_limited_by_it(root: Path) -> None:
    write(root / "proc/self/cgroup", "4:memory:/docker/0123")
    write(root / "sys/fs/cgroup/memory/memory.limit_in_bytes", GIB)
    write(root / "sys/fs/cgroup/memory/memory.usage_in_bytes", 900 * MIB)
    write(root / "sys/fs/cgroup/memory/memory.stat", f"inactive_file 1\ntotal_inactive_file {100 * MIB}")
    assert tightest(root) == Room("cgroup v1", GIB, 800 * MIB)


def test_a_system_that_tells_nothing_has_no_limit(tmp_path: Path) -> None:
    assert (rooms(tmp_path), tightest(tmp_path), oom_kills(tmp_path), ended_together(tmp_path)) == ([], None, None, [])


# --- what the kernel did, and would do --------------------------------------------------------------------------------


def test_the_kernels_kills_are_counted_in_the_own_cgroup_else_on_the_host(root: Path) -> None:
    write(root / "proc/vmstat", "nr_free_pages 1\noom_kill 7")
    assert oom_kills(root) == 7
    write(root / "proc/self/cgroup", "4:memory:/a\n0::/b")
    write(root / "sys/fs/cgroup/b/memory.events", "low 0\noom 3\noom_kill 2\noom_group_kill 0")
    assert oom_kills(root) == 2
    write(root / "sys/fs/cgroup/memory/a/memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 4")
    assert oom_kills(root) == 4


def test_a_cgroup_that_ends_as_a_whole_is_found_on_any_level(root: Path) -> None:
    write(root / "proc/self/cgroup", "0::/pod/worker")
    write(root / "sys/fs/cgroup/pod/worker/memory.oom.group", 0)
    write(root / "sys/fs/cgroup/pod/memory.oom.group", 1)
    assert ended_together(root) == [root / "sys/fs/cgroup/pod"]


def test_a_kill_of_the_kernels_is_claimed_once_and_forgotten_after_a_while() -> None:
    count = [3]
    kills = OomKills(lambda: count[0])
    assert kills.claim(100.0) == 0
    count[0] = 5
    kills.look(101.0)
    assert (kills.claim(102.0), kills.claim(103.0), kills.claim(103.0)) == (2, 1, 0)
    count[0] = 6
    kills.look(104.0)
    assert kills.claim(115.0) == 0
    assert kills.total == 6


def test_where_nobody_counts_nobody_is_taken_for_a_victim() -> None:
    kills = OomKills(lambda: None)
    assert (kills.claim(1.0), kills.total) == (0, None)


# --- who takes it -----------------------------------------------------------------------------------------------------


def test_a_process_has_its_anonymous_memory_and_what_it_shares_but_for_models_that_stay(root: Path) -> None:
    process(root, 10, anonymous=300 * MIB, shared=10 * MIB)
    assert own_bytes(10, root) == 310 * MIB
    process(root, 10, anonymous=300 * MIB, shared=1000 * MIB)
    write(
        root / "proc/10/maps",
        "10000000-20000000 r--s 00000000 00:01 5 /memfd:gen-worker acme/first unet/model.safetensors (deleted)\n"
        "20000000-24000000 rw-s 00000000 00:01 6 /memfd:gen-worker (deleted)\n"
        "30000000-40000000 rw-s 00000000 00:01 7 /dev/zero (deleted)",
    )
    assert own_bytes(10, root) == (300 + 1000 - 256) * MIB
    assert own_bytes(11, root) == 0  # it is gone


@pytest.mark.promise(4)
def test_a_process_may_call_itself_and_its_files_what_it_likes(root: Path) -> None:
    process(root, 10, anonymous=300 * MIB, shared=100 * MIB)
    status = root / "proc/10/status"
    status.write_bytes(b"Name:\ta\r\xff 1\rRssAnon: 7 \xff\n" + status.read_bytes())
    (root / "proc/10/stat").write_bytes(b"10 (a) \xff 1) S 1 10 10 " + b"0 " * 20)
    (root / "proc/10/maps").write_bytes(b"10-20 r--s 0 00:01 5 /tmp/a\rb-c r--s /memfd:gen-worker \xff\n")
    assert own_bytes(10, root) == 400 * MIB - 16
    assert families([10], root) == {10: []}
    write(root / "proc/self/cgroup", "")
    (root / "proc/self/cgroup").write_bytes(b"4:memory:/\xff\r:\n\n")
    assert oom_kills(root) is None


def test_a_childs_family_is_its_descendants_and_its_session(root: Path) -> None:
    process(root, 1, 0, 0)
    process(root, 10, 1, 10, anonymous=MIB)
    process(root, 11, 10, 10, anonymous=2 * MIB)
    process(root, 12, 11, 12, anonymous=4 * MIB)  # in a session of its own
    process(root, 13, 1, 10, anonymous=8 * MIB)  # its parent has ended
    process(root, 20, 1, 20)
    process(root, 21, 20, 10)  # of another child, whatever its session
    assert {head: sorted(found) for head, found in families([10, 20], root).items()} == {10: [11, 12, 13], 20: [21]}
    assert family_bytes(10, root) == 15 * MIB


def test_a_child_is_weighed_with_its_descendants_and_without_a_look_at_anybody_else(root: Path) -> None:
    for pid, parent, begun in ((10, 1, {10: "", 14: "11 12 "}), (11, 10, {11: "13"}), (12, 10, {12: ""})):
        process(root, pid, parent, 10, anonymous=MIB)
        for thread, children in begun.items():
            write(root / f"proc/{pid}/task/{thread}/children", children)
    process(root, 13, 11, 13, anonymous=4 * MIB)
    (root / "proc/99").mkdir()
    (root / "proc/99/stat").symlink_to("stat")  # whoever looks at it fails
    assert family_bytes(10, root) == 7 * MIB


# --- how often --------------------------------------------------------------------------------------------------------


def test_the_less_is_left_the_more_often_the_memory_is_looked_at() -> None:
    assert pause(16 * GIB, 0) == LONGEST_S
    assert pause(GIB, 0) == 0.25
    assert pause(0, 0) == pause(-GIB, 0) == SHORTEST_S


def test_memory_that_goes_fast_is_looked_at_in_time() -> None:
    assert pause(GIB, GIB) == 0.25
    assert pause(GIB // 4, GIB) == HURRIED_S
    assert pause(GIB // 4, -GIB) == 0.0625


def test_a_shortage_that_lasts_is_looked_at_with_patience() -> None:
    pace = Pace(GIB)
    assert pace.of(2 * GIB, 100.0) == (0.0, 0.0)
    assert pace.of(GIB // 2, 101.0) == (1.5 * GIB, 1.0)
    assert pace.of(GIB // 2, 101.5) == (0.0, 1.5)
    assert pause(-GIB // 2, *pace.of(GIB // 4, 101.6)) == LASTING_S
    assert pace.of(GIB, 102.0)[1] == 0.0
