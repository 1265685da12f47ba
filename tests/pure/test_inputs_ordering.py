"""The files that payloads name are ordered a few at a time, lie there while their jobs live, and go with them."""

import os
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from gen_worker.scratch import PREFIX
from gen_worker.wire.fetching import Abort, FetchInput, FetchOrder, InputFailed, InputFetched
from gen_worker.wire.messages import InputAsset, InputFile
from gen_worker_supervisor.core.happenings import Happening, InputsCame, InputsRefused
from gen_worker_supervisor.core.state import Job
from gen_worker_supervisor.files.input_folders import safe
from gen_worker_supervisor.files.inputs import AT_ONCE, FETCHERS, LIMIT_S, OF_ONE_JOB, OF_ONE_ORIGIN, Inputs
from tests.pure.host import Host
from tests.served import until


class Desk:
    """Where orders arrive and what they bring about is kept."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.orders: list[FetchOrder] = []
        self.happened: list[Happening] = []
        self.now = 100.0
        self.inputs = Inputs(lambda: self, self.happened.append, max_bytes=1000, clock=lambda: self.now)
        self._host = Host()

    def send(self, order: FetchOrder) -> None:
        self.orders.append(order)

    def job(self, files: int, request_id: str = "r", host: str = "") -> Job:
        """Have a job ask for so many files, of a host of its own unless one is named."""
        urls = [f"https://{host or request_id}/{number}" for number in range(files)]
        return self.asks(*urls, request_id=request_id)

    def asks(self, *urls: str, request_id: str = "r") -> Job:
        """Have a job ask for these files."""
        job = self._host.submit(request_id=request_id)
        self.inputs.order(job, [InputAsset(url) for url in urls])
        return job

    def names(self, since: int = 0) -> list[str]:
        """Return whose files were ordered, in order."""
        return [Path(order.path).parent.name.rpartition("-")[0] for order in self.wanted()[since:]]

    def wanted(self) -> list[FetchInput]:
        return [order for order in self.orders if isinstance(order, FetchInput)]

    def aborted(self) -> list[int]:
        return [order.number for order in self.orders if isinstance(order, Abort) and order.work == "input"]

    def comes(self, order: FetchInput) -> InputFile:
        """Have a file come."""
        path = Path(f"{order.path}.png")
        path.write_bytes(b"x")
        file = InputFile(str(path), 1, "image/png")
        self.inputs.on_report(InputFetched(order.number, file))
        return file

    def fails(self, order: FetchInput) -> None:
        """Have a file not come."""
        self.inputs.on_report(InputFailed(order.number, "invalid", "no", retryable=False))

    def files(self) -> list[Path]:
        walk = os.walk(self.folder)  # bears it that a folder goes meanwhile
        return [Path(folder, name) for folder, _, names in walk for name in names]

    def folders(self) -> list[str]:
        return [path.name for path in self.folder.glob(f"{PREFIX}*/*")]


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    made = Desk(tmp_path)
    yield made
    made.inputs.close()
    assert list(tmp_path.iterdir()) == []


def test_a_job_has_its_files_in_the_order_it_asked_for_them(desk: Desk) -> None:
    job = desk.job(3)
    first, second, third = desk.wanted()
    files = [desk.comes(order) for order in (third, first)]
    assert desk.happened == []
    last = desk.comes(second)
    assert desk.happened == [InputsCame(job, [files[1], last, files[0]])]


def test_an_order_says_what_is_allowed(desk: Desk) -> None:
    desk.inputs.trusted_origin = "https://files:8443"
    desk.job(1, "../Ä b")
    (order,) = desk.wanted()
    assert (order.max_bytes, order.trusted_origin, order.allow_private) == (1000, "https://files:8443", False)
    assert order.path.endswith("/_____b-1/input-0")
    assert os.stat(Path(order.path).parent).st_mode & 0o777 == 0o700


@pytest.mark.parametrize("request_id", ["", ".", "..", "a/b", "a" * 300, "nul\0", "Straße", "-rf"])
def test_no_request_leads_out_of_the_folder(request_id: str) -> None:
    name = f"{safe(request_id)}-1"
    assert name == os.path.basename(name)
    assert len(name) < 100
    assert "\0" not in name
    assert name.isascii()


def test_a_few_files_come_at_once_and_no_job_takes_all_the_room(desk: Desk) -> None:
    jobs = AT_ONCE // OF_ONE_JOB
    for number in range(jobs - 1):
        desk.job(20, f"big{number}")
    assert Counter(desk.names()) == {f"big{number}": OF_ONE_JOB for number in range(jobs - 1)}
    desk.job(2, "small")
    desk.job(20, "large")
    assert len(desk.wanted()) == AT_ONCE
    assert Counter(desk.names())["small"] == 2
    desk.comes(desk.wanted()[0])
    assert len(desk.wanted()) == AT_ONCE + 1


def test_an_origin_that_says_nothing_holds_up_nobody_who_asks_another(desk: Desk) -> None:
    for number in range(5):
        desk.job(OF_ONE_JOB, f"silent{number}", "silent")
    assert len(desk.wanted()) == OF_ONE_ORIGIN
    desk.job(1, "healthy")
    assert desk.names()[-1] == "healthy"
    desk.fails(desk.wanted()[0])
    assert desk.names()[OF_ONE_ORIGIN + 1 :] == ["silent2"]


def test_the_file_of_another_origin_goes_before_those_that_have_to_wait(desk: Desk) -> None:
    for number in range(2):
        desk.job(OF_ONE_JOB, f"silent{number}", "silent")
    desk.asks("https://silent/1", "https://[", "https://silent:8443/2")
    assert [order.asset.url for order in desk.wanted()[OF_ONE_ORIGIN:]] == ["https://[", "https://silent:8443/2"]


def test_room_goes_to_who_has_the_least_and_then_in_turn(desk: Desk) -> None:
    for number in range(AT_ONCE // OF_ONE_JOB):
        desk.job(32, f"big{number}")
    desk.job(2, "late")
    for number in (0, 1, 2):
        desk.comes(desk.wanted()[number])
    assert desk.names(AT_ONCE) == ["late", "late", "big0"]


def test_the_files_of_a_job_have_one_time_together(desk: Desk) -> None:
    desk.job(OF_ONE_JOB + 2)
    desk.now += 400.0
    desk.comes(desk.wanted()[0])
    desk.now += LIMIT_S
    desk.comes(desk.wanted()[1])
    assert [order.limit_s for order in desk.wanted()] == [LIMIT_S] * OF_ONE_JOB + [LIMIT_S - 400.0, 1.0]


def test_every_file_of_every_job_comes_in_the_end(desk: Desk) -> None:
    jobs = [desk.job(count, f"r{count}") for count in (1, 32, 7, 12)]
    done = 0
    while done < len(desk.wanted()):
        desk.comes(desk.wanted()[done])
        done += 1
    assert done == 52
    came = {each.job.number: len(each.files) for each in desk.happened if isinstance(each, InputsCame)}
    assert came == {job.number: count for job, count in zip(jobs, (1, 32, 7, 12), strict=True)}


def test_one_file_that_cannot_be_had_stops_the_others(desk: Desk) -> None:
    job = desk.job(6)
    first, *others = desk.wanted()
    desk.fails(first)
    assert desk.happened == [InputsRefused(job, "no", False, True)]
    assert desk.aborted() == [order.number for order in others]
    assert len(desk.wanted()) == OF_ONE_JOB
    for order in others:
        desk.fails(order)
    assert len(desk.happened) == 1


def test_the_files_go_with_their_job(desk: Desk) -> None:
    job, _ = desk.job(1, "a"), desk.job(1, "b")
    for order in desk.wanted():
        desk.comes(order)
    assert len(desk.files()) == 2
    desk.inputs.forget(job)
    until(lambda: len(desk.files()) == 1, what="the first job's files going")
    until(lambda: desk.folders() == ["b-2"], what="its folder going")


@pytest.mark.parametrize("how", ["moved", "changed"])
def test_a_job_whose_file_is_not_what_it_was_may_ask_again(desk: Desk, how: str) -> None:
    job = desk.job(2)
    files = [desk.comes(order) for order in desk.wanted()]
    assert desk.inputs.has(job)
    path = Path(files[1].local_path)
    path.unlink() if how == "moved" else path.write_bytes(b"longer")
    assert not desk.inputs.has(job)
    desk.inputs.order(job, [InputAsset("https://r/again")])
    desk.comes(desk.wanted()[-1])
    assert desk.inputs.has(job)
    until(lambda: len(desk.folders()) == 1, what="the first folder going")


def test_a_job_that_ends_has_its_downloads_stopped_and_its_folder_goes_after_the_last(desk: Desk) -> None:
    job = desk.job(2)
    first, second = desk.wanted()
    desk.inputs.forget(job)
    assert desk.aborted() == [first.number, second.number]
    desk.comes(first)  # it was complete before it read of that
    assert len(desk.folders()) == 1
    desk.fails(second)
    until(lambda: desk.folders() == [], what="the folder going")
    assert desk.happened == []


def test_a_job_that_ends_leaves_its_room_to_others(desk: Desk) -> None:
    jobs = [desk.job(OF_ONE_JOB, f"r{number}", "host") for number in range(3)]
    started = desk.wanted()
    desk.inputs.forget(jobs[2])
    assert len(desk.wanted()) == OF_ONE_ORIGIN
    desk.inputs.forget(jobs[0])
    for order in started[:OF_ONE_JOB]:
        desk.fails(order)
    assert len(desk.wanted()) == OF_ONE_ORIGIN  # the third one wanted nothing any more
    desk.job(1, "late", "host")
    assert len(desk.wanted()) == OF_ONE_ORIGIN + 1


def test_what_a_fetcher_died_with_is_ordered_again_a_few_times(desk: Desk) -> None:
    job = desk.job(2)
    desk.comes(desk.wanted()[0])
    for lost in range(1, FETCHERS):
        desk.inputs.on_lost()
        assert [order.asset.url for order in desk.wanted()[1 + lost :]] == ["https://r/1"]
    desk.inputs.on_lost()
    (refused,) = desk.happened
    assert refused == InputsRefused(
        job, "the files of the payload could not be fetched: the fetcher died 3 times", True
    )


def test_a_job_that_ended_with_its_fetcher_leaves_nothing(desk: Desk) -> None:
    job = desk.job(2)
    desk.inputs.forget(job)
    desk.inputs.on_lost()
    until(lambda: desk.folders() == [], what="the folder going")
    assert len(desk.wanted()) == 2
    assert desk.happened == []


def test_a_folder_that_cannot_be_made_is_not_the_callers_fault(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    job = desk.job(1)
    text = "the files of the payload cannot be written: no such file or directory"
    assert desk.happened == [InputsRefused(job, text, True)]
    desk.inputs.forget(job)
