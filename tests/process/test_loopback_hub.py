"""The hub that tests go by is one that the libraries take for the real one, and its faults are what they say."""

import http.client
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from gen_worker.testing import (
    BadRange,
    ChangingETag,
    Corrupt,
    Cut,
    ETag,
    Expire,
    LoopbackHub,
    Name,
    NoRange,
    NoSize,
    Oversize,
    Pointer,
    Slow,
    Stall,
    Status,
    Truncate,
)
from tests.served import until

pytestmark = pytest.mark.process

BIG = bytes(range(256)) * 64
FILES = {"config.json": b"{}", "unet/weights.safetensors": BIG}


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        yield hub


class Response:
    """What came of one request, followed nowhere."""

    def __init__(self, url: str, method: str = "GET", **headers: str) -> None:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(parts.netloc, timeout=20)
        try:
            connection.request(method, f"{parts.path}?{parts.query}", headers=headers)
            response = connection.getresponse()
            self.status, self.headers = response.status, response.headers
            try:
                self.body = response.read()
            except http.client.IncompleteRead as error:
                self.body = error.partial
        finally:
            connection.close()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def signed(hub: LoopbackHub, path: str = "unet/weights.safetensors") -> str:
    return str(Response(f"{hub.url}/acme/tiny/resolve/main/{path}").headers["Location"])


# --- the library of Hugging Face --------------------------------------------------------------------------------------


def in_fresh_process(hub: LoopbackHub, folder: Path, program: str, token: str = "") -> Any:
    """Run a program that prints JSON, with a Hugging Face home of its own."""
    env = {**os.environ, **hub.variables(), "HF_HOME": str(folder / "home"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    env |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-c", f"import json\n{program}"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_huggingface_hub_takes_a_snapshot_of_it_and_has_every_byte(hub: LoopbackHub, tmp_path: Path) -> None:
    commit = hub.add_repo("acme/tiny", FILES)
    found = in_fresh_process(
        hub,
        tmp_path,
        """
from huggingface_hub import snapshot_download, hf_hub_download, model_info
folder = snapshot_download("acme/tiny")
info = model_info("acme/tiny", files_metadata=True)
file = hf_hub_download("acme/tiny", "unet/weights.safetensors", revision="main", force_download=True)
print(json.dumps([folder, file, info.sha, {s.rfilename: s.size for s in info.siblings}]))
""",
    )
    folder, file, sha, sizes = found
    assert sha == commit
    assert folder.endswith(commit)
    assert sizes == {path: len(content) for path, content in FILES.items()}
    assert {path: Path(folder, path).read_bytes() for path in FILES} == FILES
    assert Path(file).read_bytes() == BIG
    assert hub.leaks == []


def test_huggingface_hub_reads_a_listing_of_many_pages(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("acme/many", {f"a/{number:04}.txt": b"x" for number in range(2100)})
    program = """
from huggingface_hub import HfApi
print(json.dumps(len([e for e in HfApi().list_repo_tree("acme/many", recursive=True) if hasattr(e, "blob_id")])))
"""
    assert in_fresh_process(hub, tmp_path, program) == 2100
    assert len([request for request in hub.requests if "/tree/" in request.path]) == 3


def test_huggingface_hub_names_each_refusal_as_it_is(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_repo("acme/tiny", FILES)
    hub.add_repo("acme/gated", FILES, gated=True)
    hub.add_repo("acme/private", FILES, private=True)
    hub.denied.add("hf_other")
    program = """
from huggingface_hub import hf_hub_download
def refusal(repo, file="config.json", revision=None, token=False):
    try:
        return "none" if hf_hub_download(repo, file, revision=revision, token=token) else ""
    except Exception as error:
        return type(error).__name__
print(json.dumps([
    refusal("acme/none"), refusal("acme/none", token="hf_loopback"),
    refusal("acme/gated"), refusal("acme/gated", token="hf_other"), refusal("acme/gated", token="hf_loopback"),
    refusal("acme/private"), refusal("acme/private", token="hf_other"), refusal("acme/private", token="hf_loopback"),
    refusal("acme/tiny", revision="v9"), refusal("acme/tiny", "none.json"), refusal("acme/tiny", token="hf_wrong"),
]))
"""
    assert in_fresh_process(hub, tmp_path, program) == [
        *("RepositoryNotFoundError", "RepositoryNotFoundError"),
        *("GatedRepoError", "GatedRepoError", "none"),
        *("RepositoryNotFoundError", "RepositoryNotFoundError", "none"),
        *("RevisionNotFoundError", "RemoteEntryNotFoundError", "HfHubHTTPError"),
    ]


@pytest.mark.needs("torch", "diffusers", "transformers")
@pytest.mark.parametrize("architecture", ["sd15", "sdxl", "flux"])
def test_diffusers_makes_a_pipeline_of_a_tiny_repository_from_the_hub(
    hub: LoopbackHub, tmp_path: Path, architecture: str
) -> None:
    program = f"""
from pathlib import Path
from gen_worker.testing import make_tiny
make_tiny({architecture!r}, Path({str(tmp_path / "made")!r}), dtype="bf16", variant="bf16", shards=2)
print(0)
"""
    in_fresh_process(hub, tmp_path, program)
    hub.add_repo("acme/tiny", tmp_path / "made")
    program = """
import torch
from diffusers import DiffusionPipeline
folder = DiffusionPipeline.download("acme/tiny", variant="bf16")
pipeline = DiffusionPipeline.from_pretrained("acme/tiny", dtype=torch.bfloat16, variant="bf16")
image = pipeline("a red cat", num_inference_steps=2, height=64, width=64).images[0]
print(json.dumps([folder, type(pipeline).__name__, image.size]))
"""
    _, name, size = in_fresh_process(hub, tmp_path, program)
    assert (
        name
        == {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "flux": "FluxPipeline"}[
            architecture
        ]
    )
    assert size == [64, 64]
    assert hub.wire_bytes("*.safetensors") == sum(
        each.stat().st_size for each in tmp_path.rglob("made/**/*.safetensors")
    )


# --- bytes ------------------------------------------------------------------------------------------------------------


def test_a_big_file_comes_from_another_origin_and_a_small_one_from_the_hub(hub: LoopbackHub) -> None:
    commit = hub.add_repo("acme/tiny", FILES)
    small = Response(f"{hub.url}/acme/tiny/resolve/{commit}/config.json")
    assert (small.status, small.body, small.headers["X-Repo-Commit"]) == (200, b"{}", commit)
    big = Response(f"{hub.url}/acme/tiny/resolve/main/unet/weights.safetensors", "HEAD")
    assert (big.status, big.headers["X-Linked-Size"]) == (302, str(len(BIG)))
    assert big.headers["Location"].startswith(hub.cdn_url)
    assert Response(big.headers["Location"]).body == BIG
    assert hub.wire_bytes() == 2 + len(BIG)
    assert [(each.origin, each.status, each.sent) for each in hub.requests] == [
        *(("hub", 200, 2), ("hub", 302, 0), ("cdn", 200, len(BIG)))
    ]


@pytest.mark.parametrize("kind", ["folder", "memory"])
def test_ranges_are_those_of_the_standard(hub: LoopbackHub, tmp_path: Path, kind: str) -> None:
    (tmp_path / "weights.bin").write_bytes(BIG)
    hub.add_repo("acme/tiny", tmp_path if kind == "folder" else {"weights.bin": BIG})
    url = signed(hub, "weights.bin")
    middle = Response(url, Range="bytes=10-19")
    assert (middle.status, middle.body, middle.headers["Content-Range"]) == (206, BIG[10:20], f"bytes 10-19/{len(BIG)}")
    assert Response(url, Range="bytes=-5").body == BIG[-5:]
    assert Response(url, Range=f"bytes={len(BIG) - 1}-").body == BIG[-1:]
    beyond = Response(url, Range=f"bytes={len(BIG)}-")
    assert (beyond.status, beyond.headers["Content-Range"]) == (416, f"bytes */{len(BIG)}")
    assert Response(url, **{"Range": "bytes=10-19", "If-Range": '"another"'}).status == 200
    assert hub.requests[1].range == "bytes=10-19"


def test_a_new_url_for_the_same_bytes_goes_on_where_the_old_one_ended(hub: LoopbackHub) -> None:
    first, second = (hub.signed_files("acme/tiny", {"weights": BIG})[0].url for _ in range(2))
    etag = Response(first).headers["ETag"]
    assert Response(second, **{"Range": "bytes=10-19", "If-Range": etag}).body == BIG[10:20]


def test_credentials_on_the_second_origin_are_leaks(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", FILES)
    url = signed(hub)
    Response(url)
    assert hub.leaks == []
    Response(url, **bearer(hub.token))
    assert [each.origin for each in hub.leaks] == ["cdn"]


def test_a_url_without_a_good_signature_is_refused(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", FILES)
    assert Response(signed(hub)[:-1] + "_").status == 403


def test_a_new_commit_leaves_the_old_one_as_it_was(hub: LoopbackHub) -> None:
    first = hub.add_repo("acme/tiny", {"config.json": b"1"})
    second = hub.add_repo("acme/tiny", {"config.json": b"2"})
    assert first != second
    for revision, content in ((first, b"1"), (second, b"2"), ("main", b"2")):
        assert Response(f"{hub.url}/acme/tiny/resolve/{revision}/config.json").body == content


def test_many_connections_at_once_are_served_and_none_is_left(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", FILES)
    url = signed(hub)
    bodies: list[bytes] = []
    before = set(threading.enumerate())
    threads = [threading.Thread(target=lambda: bodies.append(Response(url).body)) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert bodies == [BIG] * 16
    hub.close()
    assert {thread.name for thread in set(threading.enumerate()) - before} == set()


# --- other providers --------------------------------------------------------------------------------------------------


def test_civitai_lists_the_last_version_first_and_redirects_its_files(hub: LoopbackHub) -> None:
    hub.add_civitai("4201", {"old.safetensors": b"old"}, version="1")
    hub.add_civitai("4201", {"model.safetensors": BIG, "notes.txt": b"n"}, version="130072", gated=True)
    model = Response(f"{hub.url}/api/v1/models/4201").json
    assert [version["id"] for version in model["modelVersions"]] == [130072, 1]
    files = Response(f"{hub.url}/api/v1/model-versions/130072").json["files"]
    assert [(file["name"], file["primary"]) for file in files] == [("model.safetensors", True), ("notes.txt", False)]
    assert Response(files[0]["downloadUrl"]).status == 401
    redirect = Response(files[0]["downloadUrl"], **bearer(hub.token))
    assert Response(redirect.headers["Location"]).body == BIG


def test_modelscope_lists_3000_files_and_not_one_more(hub: LoopbackHub) -> None:
    hub.add_modelscope("acme/many", {f"{number:04}": b"x" for number in range(3100)} | {"z/weights": BIG})
    url = f"{hub.url}/api/v1/models/acme/many/repo"
    listed = Response(f"{url}/files?Revision=master&Recursive=True").json["Data"]["Files"]
    assert len(listed) == 3000
    below = Response(f"{url}/files?Revision=master&Recursive=True&Root=z").json["Data"]["Files"]
    assert [(file["Path"], file["Size"]) for file in below] == [("z/weights", len(BIG))]
    assert Response(Response(f"{url}?Revision=master&FilePath=z/weights").headers["Location"]).body == BIG
    assert Response(f"{url}/files?Revision=none").status == 404


def test_a_snapshot_of_the_hub_is_told_by_its_objects_with_signed_urls(hub: LoopbackHub) -> None:
    digest = hub.add_snapshot("acme/tiny", FILES, private=True)
    api = f"{hub.url}/api/v1"
    assert Response(f"{api}/repos/acme/tiny/resolve?tag=prod").status == 404
    token = bearer(hub.token)
    assert Response(f"{api}/repos/acme/tiny/resolve?tag=prod", **token).json == {"digest": digest}
    manifest = Response(f"{api}/repos/acme/tiny/snapshots/{digest}/manifest", **token).json
    assert [file["path"] for file in manifest["root_files"]] == ["config.json"]
    (file,) = Response(f"{api}/objects/{manifest['objects']['unet']}/manifest", **token).json["files"]
    assert (file["path"], file["size_bytes"]) == ("weights.safetensors", len(BIG))
    assert Response(file["url"]).body == BIG
    assert [file.path for file in hub.signed_files("acme/tiny", FILES)] == list(FILES)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_each_fault_of_a_file_is_what_it_says(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", FILES)
    url = signed(hub)
    part = {"Range": "bytes=100-199"}
    hub.fail("*/unet/*.safetensors", Status(503, {"Retry-After": "1"}), times=1)
    assert Response(url).headers["Retry-After"] == "1"
    assert Response(url).status == 200
    hub.fail("unet/*", Cut(after=1000), times=1)
    assert Response(url).body == BIG[:1000]
    assert hub.requests[-1].sent == 1000
    hub.fail("*", NoRange(), times=1)
    assert Response(url, **part).status == 200
    hub.fail("*", BadRange(), times=1)
    assert Response(url, **part).headers["Content-Range"].startswith("bytes 101-")
    hub.fail("*", Corrupt(at=150), times=2)
    assert Response(url, **part).body[50] == BIG[150] ^ 0xFF
    assert sum(one != other for one, other in zip(Response(url).body, BIG, strict=True)) == 1
    hub.fail("*", Truncate(to=10), times=1)
    assert Response(url).body == BIG[:10]
    hub.fail("*", Oversize(by=10), times=1)
    assert Response(url).body == BIG + bytes(10)
    hub.fail("*", ChangingETag(), times=2)
    assert Response(url).headers["ETag"] != Response(url).headers["ETag"]
    hub.fail("*", Pointer(), times=1)
    assert Response(url).body.startswith(b"version https://git-lfs")
    hub.fail("*", NoSize(), times=1)
    nobody_knows = Response(url)
    assert (nobody_knows.headers["Content-Length"], nobody_knows.body) == (None, BIG)
    assert Response(url).body == BIG


def test_a_stall_and_a_slow_file_end_at_once_when_the_hub_closes(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", FILES)
    url = signed(hub)
    hub.fail("*", Stall(after=10, seconds=1000), times=1)
    hub.fail("*", Slow(bytes_per_s=20), times=2)
    threads = [threading.Thread(target=lambda: Response(url)) for _ in range(2)]
    for thread in threads:
        thread.start()
    until(lambda: [request.status for request in hub.requests if request.origin == "cdn"] == [200, 200])
    hub.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def test_a_signed_url_that_expires_is_refused_and_a_new_one_is_good(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", FILES)
    hub.fail("*.safetensors", Expire(after=100), times=1)
    url = signed(hub)
    assert Response(url, Range="bytes=0-99").status == 206
    assert [Response(url, Range="bytes=100-199").status for _ in range(2)] == [403, 403]
    assert Response(signed(hub), Range="bytes=100-").body == BIG[100:]


def test_listings_lie_when_they_are_told_to(hub: LoopbackHub) -> None:
    commit = hub.add_repo("acme/tiny", FILES)
    hub.fail("config.json", Name("../../evil"))
    hub.fail("unet/*", NoSize())
    hub.fail("unet/*", ETag("../../../../evil"))
    tree = Response(f"{hub.url}/api/models/acme/tiny/tree/{commit}?recursive=true").json
    assert [(entry["path"], entry["size"]) for entry in tree] == [
        *(("../../evil", 2), ("unet", 0), ("unet/weights.safetensors", None))
    ]
    head = Response(f"{hub.url}/acme/tiny/resolve/{commit}/unet/weights.safetensors", "HEAD")
    assert head.headers["X-Linked-Etag"] == '"../../../../evil"'
    assert head.headers["X-Linked-Size"] is None
    hub.heal()
    assert Response(f"{hub.url}/api/models/acme/tiny").json["siblings"][0] == {"rfilename": "config.json"}


def test_metadata_and_redirects_fail_by_globs_of_their_own(hub: LoopbackHub) -> None:
    hub.add_repo("acme/tiny", FILES)
    hub.fail("api:*", Status(429), times=1)
    hub.fail("resolve:*", Status(500), times=1)
    assert Response(f"{hub.url}/acme/tiny/resolve/main/config.json").status == 200
    assert Response(f"{hub.url}/api/models/acme/tiny").status == 429
    assert Response(f"{hub.url}/api/models/acme/tiny").status == 200
    assert Response(f"{hub.url}/acme/tiny/resolve/main/unet/weights.safetensors").status == 500
    assert hub.wire_bytes("api:*") > 0
