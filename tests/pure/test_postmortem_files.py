"""The files of post-mortems: what they are called, who reads them, how much room they take."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.postmortem import (
    ABANDONED_S,
    MOST_BYTES,
    Held,
    PostMortem,
    PostMortemError,
    folder_in,
    is_name,
    keep_within,
    names,
    read,
    write,
)


def told(name: str = "20261122-131502-cuda0-3f1c", when: float = 1.0, **known: object) -> PostMortem:
    return PostMortem(
        id=name,
        when=when,
        host="h",
        supervisor=1,
        version="1.0.0",
        device="cuda:0",
        generation=1,
        cause="SIGSEGV",
        **known,  # type: ignore[arg-type]
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder for post-mortems, which lies in a run directory."""
    made = folder_in(tmp_path)
    made.mkdir(mode=0o700)
    return made


def test_what_was_written_is_read_again(folder: Path) -> None:
    before = told(stack=["a"], printed=[("r1", "line"), (None, "x")], jobs=[Held("r1", "f", "started")])
    size = write(folder, before)
    assert read(folder, before.id) == before
    (file,) = folder.iterdir()
    assert (file.name, file.stat().st_size, file.stat().st_mode & 0o777) == (f"{before.id}.json", size, 0o600)


def test_names_come_in_the_order_of_time(folder: Path) -> None:
    for name in ("20261122-131502-cuda0-3f1c", "20251122-131502-cuda0-3f1c", "20261122-131459-cpu1-0000"):
        write(folder, told(name))
    assert names(folder) == ["20251122-131502-cuda0-3f1c", "20261122-131459-cpu1-0000", "20261122-131502-cuda0-3f1c"]


@pytest.mark.promise(37)
@pytest.mark.parametrize(
    "name",
    [
        "../20261122-131502-cuda0-3f1c",
        "20261122-131502-cuda0-3f1c/../x",
        "/etc/passwd",
        "",
        ".",
        "20261122-131502-cuda0-3f1c\n",
        "20261122-131502-cuda0-3f1c\0",
        "\uff120261122-131502-cuda0-3f1c",
        "20261122-131502-CUDA0-3f1c",
        "20261122-131502-../-3f1c",
    ],
)
def test_no_name_leads_out_of_the_folder(folder: Path, name: str) -> None:
    assert not is_name(name)
    with pytest.raises(PostMortemError):
        read(folder, name)
    with pytest.raises(ValueError, match=r".*"):
        write(folder, told(name))
    assert list(folder.iterdir()) == []


@given(st.text(max_size=60))
def test_a_name_is_made_of_harmless_letters_only(text: str) -> None:
    assert not is_name(text) or set(text) <= set("0123456789abcdefghijklmnopqrstuvwxyz-")


@pytest.mark.parametrize("when", [1e300, -1.0])
def test_a_time_that_is_none_is_damage(tmp_path: Path, when: float) -> None:
    write(tmp_path, told(when=when))
    with pytest.raises(PostMortemError, match="is damaged: `when` is"):
        read(tmp_path, told().id)


@given(st.binary(max_size=400))
def test_a_damaged_file_is_said_to_be_one(content: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as made:
        (Path(made) / "20261122-131502-cuda0-3f1c.json").write_bytes(content)
        with pytest.raises(PostMortemError, match="damaged"):
            read(Path(made), "20261122-131502-cuda0-3f1c")


def test_neither_links_nor_pipes_nor_giants_are_read(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    write(tmp_path, told())
    (tmp_path / f"{told().id}.json").rename(elsewhere)
    link, pipe, giant = ("20261122-131502-cuda0-000" + digit for digit in "123")
    (folder / f"{link}.json").symlink_to(elsewhere)
    os.mkfifo(folder / f"{pipe}.json")
    with (folder / f"{giant}.json").open("wb") as file:
        file.truncate(MOST_BYTES + 1)
    for name in (link, pipe, giant):
        with pytest.raises(PostMortemError):
            read(folder, name)


def test_a_folder_that_others_may_write_to_is_not_believed(folder: Path) -> None:
    folder.chmod(0o777)
    with pytest.raises(PostMortemError, match="not a folder of this user alone"):
        names(folder)


def test_a_folder_that_is_not_there_is_empty(tmp_path: Path) -> None:
    assert names(folder_in(tmp_path)) == []


def test_the_oldest_go_first_and_the_rest_keeps_to_the_limit(folder: Path) -> None:
    written = [f"202611{day:02d}-131502-cuda0-3f1c" for day in range(1, 21)]
    size = max(write(folder, told(name)) for name in written)
    assert keep_within(folder, 5 * size, now=0.0) <= 5 * size
    assert names(folder) == written[-5:]
    assert keep_within(folder, 0, now=0.0) == 0
    assert names(folder) == []


def test_what_a_killed_supervisor_began_to_write_is_removed_in_time_and_what_is_not_ours_stays(folder: Path) -> None:
    begun, ours = folder / f".{told().id}.77", folder / f".{told().id}.78"
    for file in (begun, ours, folder / "notes.txt"):
        file.write_text("x")
    os.utime(begun, (1000, 1000))
    os.utime(ours, (1000 + ABANDONED_S, 1000 + ABANDONED_S))
    keep_within(folder, 1 << 20, now=1000 + ABANDONED_S + 1)
    assert sorted(file.name for file in folder.iterdir()) == [ours.name, "notes.txt"]
    assert names(folder) == []
