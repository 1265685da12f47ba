"""Models on their way to a host without a network: all of them, or none and why."""

import io
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gen_worker.fetch.cache.store import Found, Store
from gen_worker.fetch.cache.transfer import MANIFEST, pack, unpack
from gen_worker.models.errors import ModelError
from gen_worker.models.wanted import Wanted
from tests.cached import FILES, TINY, content_of, files_below, present, put_and_leave, store_in

CIVITAI = Wanted("civitai", "4201", version="130072")
Member = tuple[tarfile.TarInfo, bytes]


def nobody(_bytes: int) -> None:
    """Nobody is told how far it is."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    store = store_in(tmp_path / "source")
    put_and_leave(store, CIVITAI, {"model.safetensors": b"civitai"}, digests=False)
    put_and_leave(store, Wanted("tensorhub", "acme/tiny", tag="prod"))
    put_and_leave(store, TINY)
    target = tmp_path / "models.tar"
    assert pack(store, store.listed(), target, nobody) == target.stat().st_size
    return target


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_in(tmp_path / "target")


def close(found: list[Found]) -> None:
    for each in found:
        os.close(each.lease)


def test_models_arrive_as_they_were(archive: Path, store: Store) -> None:
    found = {each.snapshot.wanted.provider: each for each in unpack(store, archive, nobody)}
    assert content_of(found["hf"]) == content_of(found["tensorhub"]) == FILES
    assert Path(found["civitai"].snapshot.path).read_bytes() == b"civitai"
    close(list(found.values()))
    assert present(store, TINY)
    assert (store.layout.repository("acme/tiny") / "refs" / "main").exists()
    assert len(os.listdir(store.layout.repository("acme/tiny") / "trees")) == 1


def test_bytes_that_models_share_travel_once_per_digest(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        names = opened.getnames()
    assert len(names) == len(set(names)) == 1 + 2 + 2 + 1


def test_a_second_import_changes_nothing(archive: Path, store: Store) -> None:
    close(unpack(store, archive, nobody))
    before = files_below(store.layout.root)
    close(unpack(store, archive, nobody))
    assert files_below(store.layout.root) == before


def test_an_import_that_was_cut_short_shows_nothing_and_can_be_begun_again(archive: Path, store: Store) -> None:
    whole = archive.read_bytes()
    for length in range(0, len(whole), 1024):
        archive.write_bytes(whole[:length])
        if _is_complete(archive):
            continue
        with pytest.raises(ModelError) as told:
            unpack(store, archive, nobody)
        assert told.value.kind == "bad_manifest"
        assert store.listed() == []
    archive.write_bytes(whole)
    close(unpack(store, archive, nobody))
    assert len(store.listed()) == 3


def _is_complete(archive: Path) -> bool:
    try:
        with tarfile.open(archive) as opened:
            return (
                all(each.offset_data + each.size <= archive.stat().st_size for each in opened.getmembers())
                and len(opened.getmembers()) == 6
            )
    except tarfile.TarError:
        return False


def members_of(archive: Path) -> list[Member]:
    with tarfile.open(archive) as opened:
        found = []
        for each in opened.getmembers():
            content = opened.extractfile(each)
            assert content is not None
            found.append((each, content.read()))
        return found


def write(archive: Path, members: list[Member]) -> None:
    with tarfile.open(archive, "w") as opened:
        for described, content in members:
            described.size = len(content)
            opened.addfile(described, io.BytesIO(content) if described.isreg() else None)


def of_document(change: Callable[[dict[str, Any]], None]) -> Callable[[list[Member]], list[Member]]:
    """Return a change of the members that changes the manifest."""

    def changed(members: list[Member]) -> list[Member]:
        document = json.loads(members[0][1])
        change(document)
        return [(members[0][0], json.dumps(document).encode()), *members[1:]]

    return changed


def set_path(path: str) -> Callable[[list[Member]], list[Member]]:
    return of_document(lambda document: document["models"][0]["files"][0].update(path=path))


def set_file(**values: Any) -> Callable[[list[Member]], list[Member]]:
    return of_document(lambda document: document["models"][0]["files"][0].update(values))


def set_member(**values: Any) -> Callable[[list[Member]], list[Member]]:
    return of_document(lambda document: document["models"][0]["members"][0].update(values))


def set_wish(**values: Any) -> Callable[[list[Member]], list[Member]]:
    return of_document(lambda document: document["models"][0]["wishes"][0].update(values))


def damaged(members: list[Member]) -> list[Member]:
    described, content = members[1]
    return [members[0], (described, content[::-1]), *members[2:]]


def longer(members: list[Member]) -> list[Member]:
    described, content = members[1]
    return [members[0], (described, content + b"more"), *members[2:]]


def renamed(name: str) -> Callable[[list[Member]], list[Member]]:
    def changed(members: list[Member]) -> list[Member]:
        members[1][0].name = name
        return members

    return changed


def linked(kind: bytes) -> Callable[[list[Member]], list[Member]]:
    def changed(members: list[Member]) -> list[Member]:
        link = tarfile.TarInfo(members[1][0].name)
        link.type, link.linkname = kind, "/etc/passwd"
        return [members[0], (link, b""), *members[2:]]

    return changed


def extra(members: list[Member]) -> list[Member]:
    return [*members, (tarfile.TarInfo("../../evil"), b"evil")]


def doubled(members: list[Member]) -> list[Member]:
    return [*members, members[-1]]


@pytest.mark.parametrize(
    "change",
    [
        set_path("../../evil"),
        set_path("/etc/evil"),
        set_path("a\0b"),
        set_path("MODEL.safetensors"),
        set_file(etag="../../evil"),
        set_file(size=7),
        set_file(size=-1),
        set_member(digest="../../evil", algorithm="sha256"),
        set_member(algorithm="", digest=""),
        set_member(size=-5),
        set_member(size=1 << 60),
        set_wish(repo="../../evil"),
        set_wish(revision="../../../evil"),
        set_wish(repo="a/b/c"),
        of_document(lambda document: document["models"][0].update(commit="../../evil")),
        of_document(lambda document: document["models"][0].update(wishes=[])),
        of_document(lambda document: document["models"][0].update(files=[])),
        of_document(lambda document: document.update(format=99)),
        of_document(lambda document: document.update(models=7)),
        damaged,
        longer,
        renamed("files/other"),
        renamed("../../evil"),
        linked(tarfile.SYMTYPE),
        linked(tarfile.LNKTYPE),
        linked(tarfile.FIFOTYPE),
        linked(tarfile.DIRTYPE),
        extra,
        doubled,
        lambda members: members[1:],
        lambda members: members[:-1],
        lambda members: [],
    ],
)
def test_a_hostile_or_damaged_file_is_refused_and_nothing_of_it_is_visible(
    archive: Path, store: Store, tmp_path: Path, change: Callable[[list[Member]], list[Member]]
) -> None:
    write(archive, change(members_of(archive)))
    before = set(tmp_path.iterdir()) | {store.layout.root}
    with pytest.raises(ModelError) as told:
        unpack(store, archive, nobody)
    assert told.value.kind in ("bad_manifest", "digest_mismatch", "insufficient_disk")
    assert store.listed() == []
    assert set(tmp_path.iterdir()) <= before
    assert not [name for name in files_below(tmp_path) if "evil" in name]


@pytest.mark.parametrize("content", [b"", b"\0" * 10240, b"no tar at all" * 100, os.urandom(4096)])
def test_what_is_no_tar_is_refused(tmp_path: Path, store: Store, content: bytes) -> None:
    file = tmp_path / "models.tar"
    file.write_bytes(content)
    with pytest.raises(ModelError) as told:
        unpack(store, file, nobody)
    assert told.value.kind == "bad_manifest"


def test_a_failed_export_leaves_the_older_file(archive: Path, tmp_path: Path) -> None:
    source = store_in(tmp_path / "source")
    listed = source.listed()
    before = archive.read_bytes()
    (Path(listed[0].path) / "config.json").unlink()
    with pytest.raises(OSError, match="No such file"):
        pack(source, listed, archive, nobody)
    assert archive.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models.tar", "source"]


def test_a_file_is_refused_that_would_pass_for_another_one(archive: Path, store: Store) -> None:
    def change(document: dict[str, Any]) -> None:
        model = next(each for each in document["models"] if each["wishes"][0]["provider"] == "hf")
        file = next(each for each in model["files"] if each["path"] == "model.safetensors")
        member = model["members"][model["files"].index(file)]
        evil = next(each for each in document["models"] if each is not model)["members"][0]
        file.update(algorithm="", digest="", size=evil["size"])
        member.update(evil)

    write(archive, of_document(change)(members_of(archive)))
    with pytest.raises(ModelError, match="two digests"):
        unpack(store, archive, nobody)
    assert files_below(store.layout.root) == []


def test_the_manifest_is_the_first_member(archive: Path) -> None:
    with tarfile.open(archive) as opened:
        assert opened.getnames()[0] == MANIFEST
