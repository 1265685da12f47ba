"""What is dropped from the host's memory for something new, and how much of it models may take."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from gen_worker_supervisor.memory.host_memory import Cost, default_budget, dropped_for

GB = 1 << 30
PLENTY = 1000


def held(**sizes_gb: int) -> list[tuple[str, Cost, bool]]:
    return [(key, Cost(size * GB, 1), True) for key, size in sizes_gb.items()]


def test_what_fits_costs_nobody_anything() -> None:
    assert dropped_for(Cost(2 * GB, 1), held(a=3, b=3), Cost(8 * GB, PLENTY)) == []


def test_the_least_recently_used_go_first_and_no_more_than_must() -> None:
    assert dropped_for(Cost(3 * GB, 1), held(a=1, b=2, c=2), Cost(6 * GB, PLENTY)) == ["a", "b"]


def test_what_must_stay_is_passed_over() -> None:
    pinned = [("a", Cost(3 * GB, 1), False), *held(b=3)]
    assert dropped_for(Cost(3 * GB, 1), pinned, Cost(6 * GB, PLENTY)) == ["b"]


def test_what_can_never_fit_drops_nothing() -> None:
    assert dropped_for(Cost(7 * GB, 1), held(a=1, b=2), Cost(6 * GB, PLENTY)) is None


def test_descriptors_are_spent_as_memory_is() -> None:
    assert dropped_for(Cost(1, 300), [("a", Cost(1, 250), True)], Cost(GB, 500)) == ["a"]


SIZES = st.integers(0, 10)
COSTS = st.builds(Cost, SIZES, SIZES)


@given(COSTS, st.lists(st.tuples(COSTS, st.booleans()), max_size=6), st.builds(Cost, st.integers(0, 30), SIZES))
def test_what_is_kept_is_always_within_the_limit(cost: Cost, there: list[tuple[Cost, bool]], limit: Cost) -> None:
    everything = [(str(index), each, may_go) for index, (each, may_go) in enumerate(there)]
    going = dropped_for(cost, everything, limit)
    if going is None:
        staying = [each for _, each, may_go in everything if not may_go]
        assert not _all([cost, *staying]).within(limit)
    else:
        assert _all([cost, *(each for key, each, _ in everything if key not in going)]).within(limit)
        assert all(may_go for key, _, may_go in everything if key in going)


def _all(costs: list[Cost]) -> Cost:
    return Cost(sum(each.size_bytes for each in costs), sum(each.descriptors for each in costs))


# --- how much there is ------------------------------------------------------------------------------------------------


def host(root: Path, *, total_gb: int, free_gb: int, cgroup: str = "") -> None:
    (root / "proc/self").mkdir(parents=True)
    lines = f"MemTotal: {total_gb << 20} kB\nMemFree: 1 kB\nMemAvailable: {free_gb << 20} kB\n"
    (root / "proc/meminfo").write_text(lines)
    (root / "proc/self/cgroup").write_text(cgroup)


def cgroup(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def test_models_may_take_half_of_what_is_free(tmp_path: Path) -> None:
    host(tmp_path, total_gb=64, free_gb=40)
    assert default_budget(tmp_path) == 20 * GB


def test_a_fifth_of_the_host_stays_free(tmp_path: Path) -> None:
    host(tmp_path, total_gb=100, free_gb=30)
    assert default_budget(tmp_path) == 10 * GB


def test_a_small_host_keeps_2_gib(tmp_path: Path) -> None:
    host(tmp_path, total_gb=4, free_gb=3)
    assert default_budget(tmp_path) == 1 * GB


def test_a_host_without_memory_to_spare_holds_nothing(tmp_path: Path) -> None:
    host(tmp_path, total_gb=4, free_gb=1)
    assert default_budget(tmp_path) == 0


def test_a_cgroup_of_the_second_version_limits_even_from_above(tmp_path: Path) -> None:
    host(tmp_path, total_gb=64, free_gb=40, cgroup="0::/pod/worker\n")
    cgroup(tmp_path / "sys/fs/cgroup/pod/worker", memory__max="max", memory__current=GB)
    cgroup(tmp_path / "sys/fs/cgroup/pod", memory__max=16 * GB, memory__current=6 * GB)
    assert default_budget(tmp_path) == 5 * GB


def test_page_cache_in_a_cgroup_counts_as_free(tmp_path: Path) -> None:
    host(tmp_path, total_gb=64, free_gb=40, cgroup="0::/\n")
    stat = f"anon 5\ninactive_file {6 * GB}\nactive_file {4 * GB}"
    cgroup(tmp_path / "sys/fs/cgroup", memory__max=16 * GB, memory__current=12 * GB, memory__stat=stat)
    assert default_budget(tmp_path) == 6 * GB


def test_a_cgroup_of_the_first_version_limits_too(tmp_path: Path) -> None:
    host(tmp_path, total_gb=64, free_gb=40, cgroup="5:cpu,cpuacct:/a\n4:memory:/a\n0::/\n")
    folder = tmp_path / "sys/fs/cgroup/memory"
    cgroup(folder / "a", memory__limit_in_bytes=8 * GB, memory__usage_in_bytes=0)
    cgroup(folder, memory__limit_in_bytes=0x7FFFFFFFFFFFF000, memory__usage_in_bytes=40 * GB)
    assert default_budget(tmp_path) == 4 * GB


def test_without_proc_nothing_is_held(tmp_path: Path) -> None:
    assert default_budget(tmp_path) == 0
