"""Models of the platform's hub in the folders of the earlier generation: `cozy/objects` and `cozy/snapshots`."""

import asyncio
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest

from gen_worker import CozyHubDownloader
from gen_worker.earlier.refs import binding_of
from gen_worker.earlier.snapshots import have_snapshot
from gen_worker.fetch.config import FetchConfig
from gen_worker.fetch.network.patience import Patience
from gen_worker.fetch.sources.tensorhub import blake3_tree_hash
from gen_worker.models.errors import ModelError
from gen_worker.models.manifest import ManifestFile
from gen_worker.testing import Corrupt, Cut, Expire, LoopbackHub, Name, NoRange, Status
from gen_worker.testing.faults import Fault
from tests.downloading import content_of

SIZE = 3_000_000
FILES = {
    "model_index.json": b'{"_class_name": "Tiny"}',
    "unet/config.json": b"{}",
    "unet/deep/w.safetensors": content_of(SIZE),
    "vae/config.json": b'{"a": 1}',
}
REF = "cozy:acme/tiny:v1"
SOON = Patience(tries=4, first_delay_s=0.001, longest_delay_s=0.01, quiet_s=2.0, connect_s=5.0)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    with LoopbackHub() as hub:
        hub.add_snapshot("acme/tiny", FILES, tag="v1")
        yield hub


def had(hub: LoopbackHub, below: Path, ref: str = REF, patience: Patience = SOON) -> Path:
    """Fetch a model with tries that follow soon."""
    config = FetchConfig(root="", hf_cache="", cozy_hub_url=hub.url)
    binding = binding_of(ref)
    assert binding is not None
    return have_snapshot(binding.wanted, below, config, patience)


def test_a_snapshot_lies_in_the_folders_of_the_earlier_generation(hub: LoopbackHub, tmp_path: Path) -> None:
    path = Path(asyncio.run(CozyHubDownloader(f"{hub.url}/").download(REF, tmp_path)))
    resolved = json.loads((path / ".cozy-resolved.json").read_bytes())
    digest = resolved["snapshot_digest"].removeprefix("blake3:")
    assert path == tmp_path / "cozy/snapshots" / digest
    assert {name: (path / name).read_bytes() for name in FILES} == FILES
    assert (resolved["repo"], resolved["tag"]) == ("acme/tiny", "v1")
    assert [file["path"] for file in resolved["files"]] == ["model_index.json"]
    for name, its in resolved["objects"].items():
        folder = tmp_path / "cozy/objects" / its.removeprefix("blake3:")
        described = json.loads((folder / ".cozy-object.json").read_bytes())
        assert (described["digest"], f"blake3:{described['tree']}") == (its, its)
        for file in described["files"]:
            assert (path / name / file["path"]).samefile(folder / file["path"])
    written = [each for each in tmp_path.rglob("*") if each.is_file()]
    assert not [each for each in written if each.suffix in (".part", ".map") or b"://" in each.read_bytes()]
    assert {each.name for each in (tmp_path / "cozy").iterdir()} == {"objects", "snapshots", ".locks"}


def test_one_file_of_a_model_is_asked_for_by_its_path(hub: LoopbackHub, tmp_path: Path) -> None:
    downloader = CozyHubDownloader(hub.url)
    path = asyncio.run(downloader.download(REF, tmp_path, "unet/config.json"))
    assert Path(path).read_bytes() == b"{}"
    for other in ("unet/other", "../../objects", "unet"):
        with pytest.raises(RuntimeError, match="has no file"):
            asyncio.run(downloader.download(REF, tmp_path, other))


def test_a_snapshot_that_is_pinned_and_there_is_had_without_the_hub(tmp_path: Path) -> None:
    with LoopbackHub() as hub:
        pinned = f"cozy:acme/tiny@{hub.add_snapshot('acme/tiny', FILES)}"
        path = had(hub, tmp_path, pinned)
    assert had(hub, tmp_path, pinned) == path


def test_objects_are_shared_by_snapshots_and_not_fetched_twice(hub: LoopbackHub, tmp_path: Path) -> None:
    first = had(hub, tmp_path)
    hub.add_snapshot("acme/tiny", {**FILES, "vae/config.json": b"other"}, tag="v2")
    hub.requests.clear()
    second = had(hub, tmp_path, "cozy:acme/tiny:v2")
    assert second != first
    assert hub.wire_bytes("unet/*") == 0
    assert (second / "unet/deep/w.safetensors").samefile(first / "unet/deep/w.safetensors")
    assert (second / "vae/config.json").read_bytes() == b"other"


@pytest.mark.parametrize(
    "fault",
    [Cut(after=100_000), Status(503), Corrupt(at=5), Expire(after=100_000)],
    ids=lambda fault: type(fault).__name__,
)
def test_what_passes_is_tried_again(hub: LoopbackHub, tmp_path: Path, fault: Fault) -> None:
    hub.fail("unet/deep/*", fault, times=2)
    assert (had(hub, tmp_path) / "unet/deep/w.safetensors").read_bytes() == FILES["unet/deep/w.safetensors"]


def test_after_four_failures_in_a_row_it_is_given_up(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail("vae/config.json", Status(503))
    with pytest.raises(ModelError, match=r"`config\.json` of `acme/tiny:v1`"):
        had(hub, tmp_path)
    assert len([each for each in hub.requests if each.target.endswith("vae/config.json")]) == 4


def left(hub: LoopbackHub, tmp_path: Path) -> Path:
    """Have a download fail in the middle, and return what is left of the file that came in part."""
    hub.fail("unet/deep/*", Cut(after=2_000_000))
    with pytest.raises(ModelError):
        had(hub, tmp_path, patience=msgspec.structs.replace(SOON, tries=1))
    hub.heal()
    hub.requests.clear()
    [part] = (tmp_path / "cozy/objects").glob("*.downloading/deep/w.safetensors.part")
    assert not list((tmp_path / "cozy").glob("snapshots/*"))
    return part


def test_what_came_before_a_failure_does_not_come_again(hub: LoopbackHub, tmp_path: Path) -> None:
    part = left(hub, tmp_path)
    path = had(hub, tmp_path)
    assert (path / "unet/deep/w.safetensors").read_bytes() == FILES["unet/deep/w.safetensors"]
    assert 0 < hub.wire_bytes("unet/deep/*") <= SIZE - 1_000_000
    assert not part.parent.exists()


def test_a_server_that_knows_no_ranges_is_asked_for_the_whole_file(hub: LoopbackHub, tmp_path: Path) -> None:
    left(hub, tmp_path)
    hub.fail("unet/deep/*", NoRange())
    path = had(hub, tmp_path)
    assert (path / "unet/deep/w.safetensors").read_bytes() == FILES["unet/deep/w.safetensors"]


def test_what_is_not_what_the_hub_promised_is_never_seen(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.fail("unet/config.json", Corrupt())
    with pytest.raises(ModelError) as told:
        had(hub, tmp_path)
    assert told.value.kind == "digest_mismatch"
    assert not list((tmp_path / "cozy/snapshots").glob("*"))
    assert not [each for each in (tmp_path / "cozy/objects").iterdir() if not each.name.endswith(".downloading")]


@pytest.mark.parametrize("name", ["../outside", "/etc/outside", ".cozy-object.json", "a/../../outside"])
def test_a_hostile_name_is_refused(hub: LoopbackHub, tmp_path: Path, name: str) -> None:
    hub.fail("vae/config.json", Name(f"vae/{name}" if not name.startswith("/") else name))
    with pytest.raises(ModelError) as told:
        had(hub, tmp_path / "models")
    assert told.value.kind == "bad_manifest"
    assert not list(tmp_path.rglob("outside*"))


def test_a_private_model_takes_the_token_which_the_files_servers_never_see(hub: LoopbackHub, tmp_path: Path) -> None:
    hub.add_snapshot("acme/own", FILES, tag="v1", private=True)
    with pytest.raises(RuntimeError, match="COZY_HUB_TOKEN"):
        asyncio.run(CozyHubDownloader(hub.url).download("cozy:acme/own:v1", tmp_path))
    path = asyncio.run(CozyHubDownloader(hub.url, hub.token).download("cozy:acme/own:v1", tmp_path))
    assert Path(path, "vae/config.json").exists()
    assert not hub.leaks
    asked = [request for request in hub.requests if request.origin == "hub"]
    assert asked[-1].headers["authorization"] == f"Bearer {hub.token}"


def test_what_cannot_be_had_says_why(hub: LoopbackHub, tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="`COZY_HUB_URL`"):
        asyncio.run(CozyHubDownloader("").download(REF, tmp_path))
    with pytest.raises(RuntimeError, match=r"`acme/none:latest` is not on http"):
        asyncio.run(CozyHubDownloader(hub.url).download("acme/none", tmp_path))
    with pytest.raises(ValueError, match="is no ref"):
        asyncio.run(CozyHubDownloader(hub.url).download("org/repo@tensorrt", tmp_path))
    (tmp_path / "file").touch()
    with pytest.raises(RuntimeError, match="cannot be kept"):
        asyncio.run(CozyHubDownloader(hub.url).download(REF, tmp_path / "file"))


def test_several_who_want_the_same_share_one_download(hub: LoopbackHub, tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as threads:
        paths = set(threads.map(lambda _: had(hub, tmp_path), range(4)))
    assert len(paths) == 1
    assert hub.wire_bytes("unet/deep/*") == SIZE


def test_a_model_of_hugging_face_comes_from_there(
    hub: LoopbackHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_repo("acme/words", {"words.txt": b"much"})
    for name, value in hub.variables().items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    path = asyncio.run(CozyHubDownloader("").download("hf:acme/words", tmp_path, "words.txt"))
    assert Path(path).read_bytes() == b"much"
    assert Path(path).is_relative_to(tmp_path)


def test_a_tree_is_hashed_line_by_line_in_the_order_of_the_paths_bytes() -> None:
    from blake3 import blake3

    files = [ManifestFile("b", 2, "blake3", "22"), ManifestFile("a/c", 1, "blake3", "11")]
    assert blake3_tree_hash(files) == blake3(b"a/c\t1\t11\nb\t2\t22\n").hexdigest() == blake3_tree_hash(files[::-1])
