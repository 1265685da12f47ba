"""`gen-worker run` has the files that a payload names by URLs, on the same terms as a server."""

import json
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gen_worker.testing.contents import Content
from gen_worker.testing.faults import Fault, Faults, Stall, Status
from gen_worker.testing.origin import Answer, Origin
from tests.served import ENDPOINTS, GEN_WORKER, environment, until


class Site:
    """An origin of one text file."""

    def __init__(self) -> None:
        self._faults = Faults()
        self.origin = Origin("site", 0, self._faults, lambda request: Answer(200, "cat.txt", {}, Content(b"a cat")))
        self.url = f"{self.origin.url}/cat.txt?signature=secret"

    def plan(self, fault: Fault) -> None:
        """Have a fault hit every answer."""
        self._faults.plan("*", fault, None)


@pytest.fixture
def site() -> Iterator[Site]:
    made = Site()
    yield made
    made.origin.close()


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path) -> Path:
    folder = tmp_path / "tmp"
    folder.mkdir()
    return folder


def run(folder: Path, *arguments: str, allowed: str = "1") -> "subprocess.Popen[str]":
    """Start `gen-worker run` with its temporary files in `folder / "tmp"`."""
    own = {"TMPDIR": str(folder / "tmp"), "GEN_WORKER_ALLOW_PRIVATE_INPUTS": allowed, "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        [*GEN_WORKER, "run", "--module", "contextual", *arguments],
        cwd=ENDPOINTS,
        env={**environment(folder), **own},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def look(site: Site, method: str = "look", **image: Any) -> list[str]:
    payload = {"image": {"ref": site.url, **image}}
    return ["--method", method, "--payload", json.dumps(payload)]


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    assert "secret" not in err
    return process.returncode, out, err


@pytest.mark.parametrize("method", ["look", "look-async"])
def test_the_handler_reads_the_file_and_nothing_stays(tmp_path: Path, temporary: Path, site: Site, method: str) -> None:
    code, out, err = ended(run(tmp_path, *look(site, method)))
    assert code == 0, err
    seen = json.loads(out)["value"]
    assert seen["text"] == "a cat"
    assert Path(seen["path"]).name == "input-0.txt"
    assert list(temporary.iterdir()) == []


def test_a_word_can_name_the_file(tmp_path: Path, site: Site) -> None:
    code, out, err = ended(run(tmp_path, "--method", "look", f"image.ref={site.url}"))
    assert code == 0, err
    assert json.loads(out)["value"]["text"] == "a cat"


@pytest.mark.parametrize(
    ("fault", "image", "code", "text"),
    [
        (Status(404), {}, 2, "does not give the file of the payload: it answers 404"),
        (Status(503), {}, 1, "answers 503, 3 times"),
        (None, {"url_allowed_mime_types": ["image/*"]}, 2, "is `text/plain`, allowed is `image/*`"),
        (None, {"url_max_bytes": 1}, 2, "has 5 bytes, the limit is 1"),
    ],
)
def test_a_file_that_cannot_be_had_is_an_error(
    tmp_path: Path, temporary: Path, site: Site, fault: Fault | None, image: dict[str, Any], code: int, text: str
) -> None:
    if fault is not None:
        site.plan(fault)
    found, out, err = ended(run(tmp_path, *look(site, **image)))
    assert (found, out) == (code, "")
    assert err.startswith("error: ")
    assert text in err
    assert list(temporary.iterdir()) == []


def test_loopback_is_refused_with_the_setting_that_allows_it(tmp_path: Path, site: Site) -> None:
    code, _, err = ended(run(tmp_path, *look(site), allowed="0"))
    assert code == 2
    assert "its address is loopback" in err
    assert "hint: with `GEN_WORKER_ALLOW_PRIVATE_INPUTS=1` every address may be asked" in err
    assert site.origin.requests == []


def test_a_download_that_takes_long_is_told_of_and_ctrl_c_ends_it(tmp_path: Path, temporary: Path, site: Site) -> None:
    site.plan(Stall(1, 60.0))
    process = run(tmp_path, *look(site))
    until(lambda: site.origin.requests, what="the download")
    assert process.stderr is not None
    assert process.stderr.readline() == "fetching the payload's files from `127.0.0.1`\n"
    process.send_signal(signal.SIGINT)
    code, _, err = ended(process)
    assert code == 130, err
    assert "canceled" in err
    assert list(temporary.iterdir()) == []
