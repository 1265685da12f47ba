"""How busy the host is said to be, and of what."""

import asyncio
import os
import shutil
import threading
from pathlib import Path

from gen_worker_supervisor.logs.log import Log, Look
from gen_worker_supervisor.loop.rounds import Rounds
from gen_worker_supervisor.status.host_facts import Cores, Disk, HostWatch, Memory, Quota, tightest_quota
from tests.served import until


def write(path: Path, text: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def looked(cores: Cores) -> float | None:
    """Return what one more look says."""
    cores.look()
    return cores.percent


class Silent(Disk):
    """A disk that does not answer before it may."""

    def __init__(self) -> None:
        super().__init__(Path("/"))
        self.answers = threading.Event()

    def look(self) -> None:
        self.answers.wait(60)


# --- processors -------------------------------------------------------------------------------------------------------


def test_without_a_limit_no_cgroup_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "3:cpu,cpuacct:/old\n0::/pod")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "max 100000")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.stat", "usage_usec 1")
    write(tmp_path / "sys/fs/cgroup/cpu/old/cpu.cfs_quota_us", -1)
    write(tmp_path / "sys/fs/cgroup/cpu/old/cpu.cfs_period_us", 100_000)
    assert tightest_quota(tmp_path) is None


def test_of_all_cgroups_of_both_versions_the_one_that_allows_least_counts(tmp_path: Path) -> None:
    write(tmp_path / "proc/self/cgroup", "3:cpu,cpuacct:/old\n0::/pod/worker")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.max", "250000 100000")
    write(tmp_path / "sys/fs/cgroup/pod/cpu.stat", "usage_usec 3000000\nuser_usec 1")
    assert tightest_quota(tmp_path) == Quota(2.5, 3.0)
    write(tmp_path / "sys/fs/cgroup/cpu/old/cpu.cfs_quota_us", 150_000)
    write(tmp_path / "sys/fs/cgroup/cpu/old/cpu.cfs_period_us", 100_000)
    write(tmp_path / "sys/fs/cgroup/cpuacct/old/cpuacct.usage", 7_000_000_000)
    assert tightest_quota(tmp_path) == Quota(1.5, 7.0)


def test_where_a_cgroup_limits_the_share_is_that_of_what_it_allows(tmp_path: Path) -> None:
    usage = tmp_path / "sys/fs/cgroup/cpu.stat"
    write(tmp_path / "proc/self/cgroup", "0::/")
    write(tmp_path / "sys/fs/cgroup/cpu.max", "50000 100000")
    write(usage, "usage_usec 1000000")
    cores = Cores(tmp_path)
    assert looked(cores) is None
    assert cores.count == 0.5
    assert looked(cores) == 0.0
    write(usage, "usage_usec 900000000")
    assert looked(cores) == 100.0


def test_without_a_limit_it_is_the_share_of_the_cores_that_it_may_run_on(tmp_path: Path) -> None:
    cores = Cores(tmp_path)
    assert looked(cores) is None
    share = looked(cores)
    assert cores.count == len(os.sched_getaffinity(0))
    assert share is not None
    assert 0 <= share <= 100


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_the_memory_is_the_hosts_and_unknown_where_nothing_tells(tmp_path: Path) -> None:
    unknown, memory = Memory(tmp_path), Memory(tmp_path)
    unknown.look()
    assert unknown.use == (None, None)
    write(tmp_path / "proc/meminfo", "MemTotal: 4096 kB\nMemAvailable: 1024 kB")
    memory.look()
    assert memory.use == (3 << 20, 4 << 20)


def test_the_disk_is_that_of_the_folder_whether_or_not_it_is_there_yet(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "not" / "there")
    disk.look()
    used, total = disk.use
    assert used is not None
    assert total == shutil.disk_usage(tmp_path).total
    assert 0 < used <= total


def test_a_disk_that_does_not_answer_keeps_nobody_from_the_rest() -> None:
    loop, disk = asyncio.new_event_loop(), Silent()
    watch = HostWatch(disk, Rounds("host", "a look", loop, Log(Look())))
    watch.start()
    try:
        until(lambda: watch.facts.net_bps is not None, what="a second look")
        facts = watch.facts
        assert (facts.disk_used, facts.disk_total) == (None, None)
        assert None not in (facts.cpu_percent, facts.cpu_count, facts.ram_used, facts.ram_total)
    finally:
        watch.close()
        disk.answers.set()
        loop.close()
