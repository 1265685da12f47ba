"""What the doctor says of folders, settings, tokens, traces and addresses."""

import base64
import json
import os
import re
import socket
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.shell_completion import ShellComplete

from gen_worker.cli import doctor
from gen_worker.cli.program import commands
from gen_worker.doctor import configuration, leftovers, needs, network, storage
from gen_worker.doctor.examination import Check, examine
from gen_worker.doctor.finding import Finding, Status, ok, problem, size, warning
from gen_worker.doctor.gpu_probe import Gpu
from gen_worker.models.wanted import Slot, Wanted
from gen_worker.settings import Secret, Settings
from gen_worker.wire.survey import Survey, SurveyedFunction
from gen_worker_supervisor.processes.predecessors import here
from tests.pure.test_doctor_host import is_told
from tests.pure.test_predecessors import killed

NOW = 1_800_000_000.0


def settings(folder: Path, **given: object) -> Settings:
    return Settings(run_dir=folder, cache_dir=folder, **given)  # type: ignore[arg-type]


def jwt(**claims: object) -> Secret:
    return Secret(f"e30.{base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip('=')}.c2ln")


# --- folders ----------------------------------------------------------------------------------------------------------


def mounts(folder: Path, kind: str) -> Path:
    table = folder / "mountinfo"
    table.write_text(f"20 1 8:1 / / rw - ext4 /dev/sda rw\n21 20 0:5 / {folder} rw - {kind} none rw\n")
    return table


def test_a_cache_that_is_not_there_yet_is_judged_by_where_it_would_be(tmp_path: Path) -> None:
    found = storage.cache(tmp_path / "a/b", mounts=mounts(tmp_path, "xfs"))
    assert found.status is not Status.PROBLEM, found
    assert str(tmp_path / "a/b") in found.found
    assert "(xfs)" in found.found
    assert not (tmp_path / "a").exists()
    assert os.listdir(tmp_path) == ["mountinfo"]


def test_a_cache_in_memory_is_warned_of(tmp_path: Path) -> None:
    is_told(storage.cache(tmp_path, mounts=mounts(tmp_path, "tmpfs")), Status.WARNING, "gone after a restart")


def test_a_cache_that_cannot_be_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    is_told(storage.cache(tmp_path / "file/a"), Status.PROBLEM, "is no folder", "TENSORHUB_CACHE_DIR")
    is_told(storage.cache(Path("/proc/self/fd")), Status.PROBLEM, "nothing can be written")


def test_the_hubs_folder_counts_where_it_is_elsewhere(tmp_path: Path) -> None:
    is_told(storage.hub_cache(tmp_path / "hub", tmp_path), Status.SKIPPED)
    is_told(storage.hub_cache(Path("/proc/hub"), tmp_path), Status.PROBLEM, "HF_HOME")


def test_lower_caches_must_be_there(tmp_path: Path) -> None:
    is_told(storage.lower_caches(()), Status.SKIPPED)
    is_told(storage.lower_caches((str(tmp_path),)), Status.OK)
    is_told(storage.lower_caches((str(tmp_path / "gone"),)), Status.WARNING, "gone")


def test_a_run_dir_that_others_may_write_to_is_a_problem(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    is_told(storage.run_dir(folder), Status.OK, "made when it is needed")
    folder.mkdir(mode=0o700)
    is_told(storage.run_dir(folder), Status.OK)
    folder.chmod(0o777)
    is_told(storage.run_dir(folder), Status.PROBLEM, "chmod 700")
    folder.chmod(0o700)
    mine = folder.stat().st_uid
    expected = Status.OK if mine == 0 else Status.PROBLEM
    is_told(storage.run_dir(folder, user=mine + 1), expected)
    is_told(storage.run_dir(Path("/dev/null/run")), Status.PROBLEM, "is no folder")


def test_a_temporary_folder_that_takes_nothing_is_a_problem(tmp_path: Path) -> None:
    assert storage.temporary(tmp_path).status is not Status.PROBLEM
    is_told(storage.temporary(Path("/proc")), Status.PROBLEM, "TMPDIR")
    assert storage.temporary_in({"TMPDIR": "/full", "TMP": "/other"}) == Path("/full")
    assert storage.temporary_in({"TMPDIR": "", "TMP": "/other"}) == Path("/other")


# --- settings and tokens ----------------------------------------------------------------------------------------------


def test_settings_that_cannot_be_meant_are_a_problem_and_unknown_names_a_warning() -> None:
    (good,) = configuration.settings("", [])
    is_told(good, Status.OK)
    bad, odd = configuration.settings("`X` must be a number", ["`GEN_WORKER_Y` is no setting"])
    is_told(bad, Status.PROBLEM, "must be a number")
    is_told(odd, Status.WARNING, "GEN_WORKER_Y")


def test_tokens_are_named_and_never_shown(tmp_path: Path) -> None:
    is_told(configuration.tokens(settings(tmp_path))[0], Status.SKIPPED)
    known = settings(tmp_path, hf_token=Secret("hf_canary"), worker_jwt=jwt(exp=NOW + 86400 * 3, canary="canary"))
    found = configuration.tokens(known, NOW)
    is_told(found[0], Status.OK, "`HF_TOKEN`", "`AUTH_TOKEN`")
    is_told(found[1], Status.OK, "3 days")
    assert "canary" not in str(found)


@pytest.mark.parametrize(
    ("claims", "status", "word"),
    [
        ({"exp": NOW - 7200}, Status.PROBLEM, "expired 2 hours ago"),
        ({"exp": NOW + 600}, Status.WARNING, "10 minutes"),
        ({"iat": NOW + 3600 * 5, "exp": NOW + 86400}, Status.PROBLEM, "in 5 hours only"),
        ({"iat": NOW - 10, "exp": NOW + 86400 * 9}, Status.OK, "9 days"),
    ],
)
def test_a_token_that_is_not_good_now_is_told(
    tmp_path: Path, claims: dict[str, float], status: Status, word: str
) -> None:
    found = configuration.tokens(settings(tmp_path, worker_jwt=jwt(**claims)), NOW)
    is_told(found[1], status, word)


def test_a_token_that_says_nothing_of_its_end_is_only_named(tmp_path: Path) -> None:
    for token in (jwt(), jwt(exp="soon"), Secret("no.jwt.at-all"), Secret("opaque")):
        assert len(configuration.tokens(settings(tmp_path, worker_jwt=token), NOW)) == 1


# --- traces -----------------------------------------------------------------------------------------------------------


def test_folders_of_dead_supervisors_are_told_with_what_removes_them(tmp_path: Path) -> None:
    is_told(leftovers.leftovers(tmp_path / "nowhere"), Status.OK)
    for name in ("12", "postmortems"):  # of one that is about to be there, perhaps
        (tmp_path / name).mkdir()
    killed(tmp_path, 13, "a" * 32, "another host")
    is_told(leftovers.leftovers(tmp_path), Status.OK, "none")
    killed(tmp_path, 14, "b" * 32, here())
    is_told(leftovers.leftovers(tmp_path), Status.WARNING, f"rm -r {tmp_path / '14'}`")
    killed(tmp_path, 15, "c" * 32, here())
    is_told(leftovers.leftovers(tmp_path), Status.WARNING, "2 folders", f"rm -r {tmp_path}/{{14,15}}`")
    is_told(leftovers.supervisors(tmp_path), Status.OK, "none is alive")


# --- addresses --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("orchestrator:8080", "orchestrator", 8080),
        ("grpcs://o.example", "o.example", 443),
        ("http://o.example/", "o.example", 80),
        ("grpc://[::1]:90", "::1", 90),
        ("orchestrator", "orchestrator", None),
        ("orchestrator:99999", "orchestrator", None),
        ("a:b:c", "a:b:c", None),
    ],
)
def test_where_an_address_leads(address: str, host: str, port: int | None) -> None:
    assert network.host_and_port(address) == (host, port)


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        yield int(sock.getsockname()[1])


def test_an_orchestrator_that_takes_connections_is_enough(listening: int) -> None:
    is_told(network.orchestrator(()), Status.SKIPPED)
    is_told(network.orchestrator(("nowhere", f"127.0.0.1:{listening}")), Status.OK, str(listening))


def test_an_orchestrator_that_cannot_be_reached_is_a_problem() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
    found = network.orchestrator((f"127.0.0.1:{port}", "nowhere"))
    is_told(found, Status.PROBLEM, "connection refused", "`nowhere` has no port")


@pytest.mark.promise(39)
@pytest.mark.parametrize("address", ["https://user:p4ss@host:443/?token=abc", "user:p4ss@host:443", "host:1?token=abc"])
def test_what_an_address_holds_beside_its_host_is_not_shown(address: str) -> None:
    found = network.orchestrator((address,))
    is_told(found, Status.PROBLEM, "host…` is not written as `host:port`")
    assert not {"p4ss", "abc"} & set(re.findall(r"\w+", found.found))


def test_two_clocks_that_differ_are_warned_of() -> None:
    date = "Fri, 15 Jan 2027 08:00:00 GMT"  # NOW
    assert network.clocks(date, NOW + 5) == []
    assert network.clocks("yesterday", NOW) == []
    (found,) = network.clocks(date, NOW - 3600)
    is_told(found, Status.WARNING, "3600 s behind")


def test_authorities_that_are_not_there_are_a_problem(tmp_path: Path) -> None:
    is_told(network.authorities(""), Status.SKIPPED)
    is_told(network.authorities(str(tmp_path / "gone.pem")), Status.PROBLEM, "no such file")
    (tmp_path / "odd.pem").write_text("odd")
    is_told(network.authorities(str(tmp_path / "odd.pem")), Status.PROBLEM, "PEM")


# --- what an endpoint needs -------------------------------------------------------------------------------------------

BIG = Gpu(0, "GPU-1", "big", 80 << 30, 0, (9, 0))


def surveyed(name: str, **given: object) -> SurveyedFunction:
    plain = {"class_name": "", "instance": "", "shape": "sync", "lane": "device", "gpu": False, "vram_gb": None}
    return SurveyedFunction(name, name, **(plain | given))  # type: ignore[arg-type]


def survey(*functions: SurveyedFunction) -> Survey:
    return Survey("main", [], list(functions), b"{}", [])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("function", "gpus", "status", "word"),
    [
        (surveyed("f"), [], Status.OK, "`f`"),
        (surveyed("f", gpu=True), [], Status.WARNING, "there is none"),
        (surveyed("f", gpu=True, vram_gb=80.0), [BIG], Status.OK, "`f`"),
        (surveyed("f", gpu=True, vram_gb=81.0), [BIG], Status.PROBLEM, "81 GB"),
        (surveyed("f", gpu=True, compute_capability=9.0), [BIG], Status.OK, "`f`"),
        (surveyed("f", gpu=True, compute_capability=10.0), [BIG], Status.PROBLEM, "compute capability 10"),
        (surveyed("f", missing=["flash_attn"]), [BIG], Status.PROBLEM, "`flash_attn`"),
    ],
)
def test_a_function_that_finds_no_device_is_told(
    function: SurveyedFunction, gpus: list[Gpu], status: Status, word: str
) -> None:
    (found,) = needs.devices(survey(function), gpus)
    is_told(found, status, word)


def test_a_module_without_an_endpoint_is_a_problem() -> None:
    (found,) = needs.devices(survey(), [])
    is_told(found, Status.PROBLEM, "declares no endpoint")


def test_models_that_are_not_here_are_told() -> None:
    slots = [Slot(name, Wanted("hf", f"acme/{name}")) for name in ("a", "b")]
    bound = survey(surveyed("f", slots=slots))
    assert needs.models(survey(surveyed("f")), [], 0, offline=False) == []
    is_told(needs.models(bound, ["acme/a", "acme/b"], 0, offline=True)[0], Status.OK, "all 2")
    is_told(needs.models(bound, ["acme/a"], 5 << 30, offline=False)[0], Status.WARNING, "1 of 2", "acme/b", "5120 MiB")
    is_told(needs.models(bound, [], 0, offline=True)[0], Status.PROBLEM, "2 of 2", "prefetch")


# --- the examination, and what is printed -----------------------------------------------------------------------------


def test_findings_come_in_the_order_of_their_checks() -> None:
    checks = [Check("a", name, lambda name=name: ok(name, "fine")) for name in "xyz"]  # type: ignore[misc]
    assert [told.findings[0].name for told in examine(checks)] == ["x", "y", "z"]


def test_a_check_that_does_not_end_is_a_problem_and_holds_nobody_up() -> None:
    from threading import Event

    gate = Event()

    def hangs() -> Finding:
        gate.wait(20)
        return ok("disk", "at last")

    slow: list[str] = []
    hung, fine = examine([Check("a", "disk", hangs, 0.05), Check("a", "b", lambda: ok("b", "fine"))], slow.append)
    gate.set()
    is_told(hung.findings[0], Status.PROBLEM, "0.05 s")
    assert slow == ["disk"]
    assert fine.findings == [ok("b", "fine")]


def test_what_a_check_raises_is_raised_where_it_is_waited_for() -> None:
    def breaks() -> Finding:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        list(examine([Check("a", "b", breaks)]))


def test_a_check_that_may_not_look_is_a_problem_and_costs_no_other() -> None:
    def refused() -> Finding:
        raise PermissionError(13, "Permission denied", "/home/zoe/cache")

    first, second = examine([Check("a", "b", refused), Check("a", "c", lambda: ok("c", "fine"))])
    is_told(first.findings[0], Status.PROBLEM, "cannot be looked at: `/home/zoe/cache`: permission denied")
    assert second.findings == [ok("c", "fine")]


def test_a_finding_fits_its_width_and_has_its_remedy_below() -> None:
    found = warning("memory", "one two three four five six", "do this and do that")
    assert list(doctor.lines(found, doctor.Look(60))) == [
        "  warning  memory             one two three four five six",
        "                              hint: do this and do that",
    ]
    for width in (50, 80, 120):
        assert all(len(line) <= width for line in doctor.lines(found, doctor.Look(width)))


def test_a_word_says_what_colour_and_glyph_say() -> None:
    found = problem("x", "y", "z")
    assert next(doctor.lines(found, doctor.Look(80, glyphs=True))) == "  ✖ problem  x                  y"
    assert "\x1b[31m✖ problem\x1b[0m" in next(doctor.lines(found, doctor.Look(80, glyphs=True, colour=True)))


def test_what_steers_a_terminal_is_shown_and_not_sent() -> None:
    assert "\x1b" not in "".join(doctor.lines(problem("x", "a\x1b[2Jb", "c\x1b"), doctor.Look(80)))


@pytest.mark.parametrize(
    ("words", "begun", "names"),
    [
        (["doctor", "--only"], "over", ["overcommit"]),
        (["doctor", "--only"], "gpu", ["gpus"]),
        (["doctor", "--chaos", "--only"], "s", ["stop", "sleep-in-c", "send-garbage", "shrink-memory", "supervisor"]),
    ],
)
def test_names_of_checks_and_faults_are_completed(words: list[str], begun: str, names: list[str]) -> None:
    found = ShellComplete(commands, {}, "gen-worker", "").get_completions(words, begun)
    assert [each.value for each in found] == names


def test_a_summary_counts() -> None:
    counted = Counter({Status.OK: 3, Status.WARNING: 1, Status.PROBLEM: 2})
    assert doctor.summary(counted) == "3 ok, 1 warning, 2 problems"
    assert doctor.summary(Counter()) == "0 ok"


@pytest.mark.parametrize(
    ("amount", "told"), [(512, "0 KiB"), (3 << 20, "3 MiB"), (9 << 30, "9216 MiB"), (24 << 30, "24.0 GiB")]
)
def test_sizes_are_told_as_a_person_says_them(amount: int, told: str) -> None:
    assert size(amount) == told
