"""Files that payloads name by URLs, through a whole server: there while the job runs, gone afterwards."""

import os
import signal
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.scratch import PREFIX
from gen_worker.testing.contents import Content
from gen_worker.testing.faults import Faults, Stall
from gen_worker.testing.origin import Answer, Origin, Request
from gen_worker_supervisor.files.inputs import OF_ONE_ORIGIN
from tests.served import Serve, Server, until

pytestmark = pytest.mark.process

PNG = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 64, 48)
CAT = b"a cat"


class Site:
    """An origin of one text file, under any name, that can be held up."""

    def __init__(self) -> None:
        self._faults = Faults()
        self.origin = Origin("site", 0, self._faults, self._answer)

    def url(self, name: str = "cat.txt") -> str:
        return f"{self.origin.url}/{name}?signature=secret"

    def hold(self) -> None:
        """Have answers stop in the middle from now on."""
        self._faults.plan("*", Stall(1, 60.0), None)

    def let_go(self) -> None:
        """Have later answers come whole again."""
        self._faults.clear()

    def _answer(self, request: Request) -> Answer:
        known = request.path.endswith(".txt")
        return Answer(200 if known else 404, request.path[1:], {}, Content(CAT if known else b""))


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.origin.close()


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


@pytest.fixture
def server(serve: Serve, temporary: Path) -> Server:
    allowed = {"GEN_WORKER_ALLOW_PRIVATE_INPUTS": "1", "TMPDIR": str(temporary)}
    return serve("--no-stdin", module="contextual", variables=allowed)


def values(answer: dict[str, Any]) -> list[Any]:
    assert answer["ok"], answer
    return [event["value"] for event in answer["events"]]


def files(folder: Path) -> list[Path]:
    found = []
    for root in folder.glob(f"{PREFIX}*"):
        for place, folders, names in os.walk(root):  # bears it that a folder goes meanwhile
            found += [Path(place, name) for name in (*names, *(folders if Path(place) == root else ()))]
    return found


def until_gone(folder: Path) -> None:
    until(lambda: files(folder) == [], what="every input file going")


@pytest.mark.parametrize("function", ["look", "look-async", "look-twice", "look-twice-async"])
def test_every_shape_of_handler_reads_the_file(server: Server, site: Site, temporary: Path, function: str) -> None:
    found = [each for each in values(server.ask(function, image={"ref": site.url()})) if "text" in each]
    assert [each["text"] for each in found] == ["a cat"] * (2 if "twice" in function else 1)
    assert all(Path(each["path"]).name == "input-0.txt" for each in found)
    assert all(Path(each["path"]).is_relative_to(temporary) for each in found)
    until_gone(temporary)


def test_an_output_with_the_asset_names_no_file_that_is_gone(server: Server, site: Site) -> None:
    (asset,) = values(server.ask("give-back", image={"ref": site.url()}))
    assert asset == {"ref": site.url(), "mime_type": "text/plain", "size_bytes": len(CAT)}


def test_a_job_that_waits_for_its_file_holds_no_device(server: Server, site: Site, temporary: Path) -> None:
    site.hold()
    with server.connect() as connection:
        connection.send("look", "waits", image={"ref": site.url()})
        until(lambda: site.origin.requests, what="the download")
        assert values(server.ask("clamped", steps=99))[0]["steps"] == 50
        job = server.job("waits")
        assert job is not None
        assert (job.status, job.stage, job.gpu) == ("queued", "fetching its inputs", None)
        connection.cancel("waits")
        answer = connection.frame()
    assert answer["error"]["kind"] == "canceled"
    until_gone(temporary)


def test_an_origin_that_stops_answering_holds_up_no_file_of_another(server: Server, site: Site) -> None:
    site.hold()
    healthy = Site()
    with server.connect() as connection:
        for number in range(2 * OF_ONE_ORIGIN):
            connection.send("look", f"waits-{number}", image={"ref": site.url()})
        until(lambda: len(site.origin.requests) == OF_ONE_ORIGIN, what="as many downloads as one origin may have")
        try:
            assert values(server.ask("look", image={"ref": healthy.url()}))[0]["text"] == "a cat"
        finally:
            healthy.origin.close()
    assert len(site.origin.requests) == OF_ONE_ORIGIN


def test_the_deadline_ends_a_download(server: Server, site: Site, temporary: Path) -> None:
    site.hold()
    with server.connect() as connection:
        connection.line(
            {"function": "look", "request_id": "late", "timeout_ms": 300, "payload": {"image": {"ref": site.url()}}}
        )
        answer = connection.frame()
    assert answer["error"]["kind"] == "deadline", answer
    until_gone(temporary)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ({"ref": "none"}, "answers 404"),
        ({"ref": "cat.txt", "url_allowed_mime_types": ["image/*"]}, "is `text/plain`, allowed is `image/*`"),
        ({"ref": "cat.txt", "url_max_bytes": 3}, "has 5 bytes, the limit is 3"),
        ({"ref": "cat.txt", "url_max_pixels": 10**30}, "does not say how large it is as a picture"),
    ],
)
def test_a_file_that_may_not_be_had_is_the_callers_fault(
    server: Server, site: Site, temporary: Path, image: dict[str, Any], text: str
) -> None:
    answer = server.ask("look", image={**image, "ref": site.url(image["ref"])})
    assert answer["error"]["kind"] == "invalid", answer
    assert text in answer["error"]["message"]
    assert "secret" not in str(answer)
    assert "secret" not in server.log()
    until_gone(temporary)


def test_loopback_is_refused_where_nobody_allowed_it(serve: Serve, site: Site, temporary: Path) -> None:
    server = serve("--no-stdin", module="contextual", variables={"TMPDIR": str(temporary)})
    answer = server.ask("look", image={"ref": site.url()})
    assert answer["error"]["kind"] == "invalid", answer
    assert "its address is loopback" in answer["error"]["message"]
    assert site.origin.requests == []


def test_a_job_whose_child_dies_has_its_file_again(server: Server, site: Site, temporary: Path) -> None:
    with server.connect() as connection:
        connection.send("look", "dies", image={"ref": site.url()}, gate="go")
        server.until_running("dies")
        os.kill(server.homes("dies")[0], signal.SIGKILL)
        server.until_running("dies", times=2)
        server.open("go")
        answer = connection.frame()
    assert values(answer)[0]["text"] == "a cat"
    assert len(site.origin.requests) == 1
    until_gone(temporary)


def test_a_job_whose_child_has_moved_its_file_and_died_has_it_anew(server: Server, site: Site, temporary: Path) -> None:
    with server.connect() as connection:
        connection.send("look", "moves", image={"ref": site.url()}, gate="go")
        server.until_running("moves")
        (file,) = [path for path in files(temporary) if path.is_file()]
        file.unlink()
        os.kill(server.homes("moves")[0], signal.SIGKILL)
        server.until_running("moves", times=2)
        server.open("go")
        answer = connection.frame()
    assert values(answer)[0]["text"] == "a cat"
    assert len(site.origin.requests) == 2
    until_gone(temporary)


def test_a_download_survives_the_death_of_the_fetcher(server: Server, site: Site, temporary: Path) -> None:
    site.hold()
    with server.connect() as connection:
        connection.send("look", "patient", image={"ref": site.url()})
        until(lambda: site.origin.requests, what="the download")
        (fetcher,) = [
            pid for pid in server.processes() if b"gen_worker.fetch" in Path(f"/proc/{pid}/cmdline").read_bytes()
        ]
        site.let_go()
        os.kill(fetcher, signal.SIGKILL)
        answer = connection.frame()
    assert values(answer)[0]["text"] == "a cat"
    until_gone(temporary)


def test_the_folder_goes_with_the_server(server: Server, site: Site, temporary: Path) -> None:
    site.hold()
    with server.connect() as connection:
        connection.send("look", "left", image={"ref": site.url()})
        until(lambda: site.origin.requests, what="the download")
        server.close()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_server_left_goes_with_the_next_input(
    serve: Serve, site: Site, tmp_path: Path, temporary: Path
) -> None:
    allowed = {"GEN_WORKER_ALLOW_PRIVATE_INPUTS": "1", "TMPDIR": str(temporary)}
    abandoned = temporary / f"{PREFIX}gone"
    (abandoned / "r-1").mkdir(parents=True)
    (abandoned / "r-1" / "input-0.txt").write_bytes(CAT)
    server = serve("--no-stdin", module="contextual", variables=allowed)
    assert server.ask("look", image={"ref": site.url()})["ok"]
    until(lambda: not abandoned.exists(), what="the abandoned folder going")
