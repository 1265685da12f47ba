"""`gen-worker cache`, as a command."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from gen_worker.fetch.cache.store import Store
from gen_worker.models.wanted import Wanted
from tests.cached import FILES, TINY, files_below, present, put, put_and_leave, store_in
from tests.served import GEN_WORKER
from tests.terminal import terminal

CIVITAI = Wanted("civitai", "4201", version="130072")
SIZE = sum(map(len, FILES.values()))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = store_in(tmp_path / "cache")
    put_and_leave(store, CIVITAI, {"model.safetensors": b"civita" * 500_000})
    put_and_leave(store, TINY)
    return store


def variables(store: Store) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TENSORHUB_", "WORKER_"))}
    return {**kept, "TENSORHUB_CACHE_DIR": str(store.layout.root)}


def cache(store: Store, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*GEN_WORKER, "cache", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        env={**variables(store), **env},
        cwd=store.layout.root,
        stdin=subprocess.DEVNULL,
        check=False,
    )


def document(done: subprocess.CompletedProcess[str]) -> Any:
    assert done.stderr == ""
    return json.loads(done.stdout)


def age(store: Store, wanted: Wanted, seconds: float) -> None:
    """Have a model be used last so long ago."""
    rows = json.loads(store.layout.ledger.read_text())
    rows[wanted.key]["last_used"] -= seconds
    store.layout.ledger.write_text(json.dumps(rows))


def damage(path: Path) -> None:
    """Turn the bytes of a file around: its size stays."""
    file = path.resolve()
    file.chmod(0o644)
    file.write_bytes(file.read_bytes()[::-1])


# --- ls, path ---------------------------------------------------------------------------------------------------------


def test_the_models_are_listed_the_last_used_first_with_their_total(store: Store) -> None:
    age(store, CIVITAI, 3 * 86400)
    done = cache(store, "ls")
    lines = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split()[0] for line in lines] == ["REF", "hf:acme/tiny", "civitai:4201@130072", "2"]
    assert "3d ago" in lines[2]
    assert lines[3].startswith("2 models, 3 MiB; ")
    assert lines[2].split()[-1] == str(
        store.layout.cas / "civitai" / "130072" / "model.safetensors"
    )  # nothing is cut where nobody looks


def test_an_empty_cache_is_no_error_and_stays_unmade(tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    store = store_in(tmp_path / "cache" / "none")
    done = cache(store_in(tmp_path / "cache"), "ls", TENSORHUB_CACHE_DIR=str(store.layout.root))
    assert (done.returncode, done.stdout.split(";")[0]) == (0, "0 models, 0 MiB")
    assert not store.layout.root.exists()


def test_a_cache_that_is_no_folder_is_told_by_its_setting(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for command in ("ls", "verify", "prune"):
        done = cache(store, command, TENSORHUB_CACHE_DIR=str(tmp_path / "file"))
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.splitlines()[1].startswith("hint: set `TENSORHUB_CACHE_DIR` to a folder")


def test_the_document_says_where_everything_is_and_who_uses_it(store: Store) -> None:
    found = put(store, TINY)
    listed = document(cache(store, "ls", "--json"))
    os.close(found.lease)
    assert listed["bytes"] == SIZE + 3_000_000
    used = next(model for model in listed["models"] if model["provider"] == "hf")
    assert used["path"] == found.snapshot.path
    assert (used["ref"], used["refs"], used["repo"]) == ("hf:acme/tiny", ["acme/tiny"], "acme/tiny")
    assert (used["bytes"], used["files"], used["in_use"], used["used_by"]) == (SIZE, 2, True, [os.getpid()])
    assert [model["in_use"] for model in listed["models"] if model is not used] == [False]


@pytest.mark.parametrize("ref", ["acme/tiny", "hf:acme/tiny"])
def test_a_model_is_named_with_its_provider_or_without(store: Store, ref: str) -> None:
    done = cache(store, "path", ref)
    folder = Path(done.stdout.strip())
    assert (folder / "config.json").read_bytes() == FILES["config.json"]


def test_a_model_that_is_not_here_exits_5_with_what_was_meant(store: Store) -> None:
    for command in ("path", "verify", "rm"):
        done = cache(store, command, "hf:acme/tinny")
        assert done.returncode == 5
        assert done.stderr.splitlines() == [
            "error: no model `hf:acme/tinny` on this machine",
            "hint: did you mean `hf:acme/tiny`?",
        ]


def test_the_lower_caches_are_listed_as_read_only(store: Store, tmp_path: Path) -> None:
    own = store_in(tmp_path / "own")
    own.layout.root.mkdir()
    done = cache(own, "ls", GEN_WORKER_LOWER_CACHES=str(store.layout.root))
    assert done.stdout.count("read-only") == 2
    done = cache(own, "rm", "acme/tiny", "--yes", GEN_WORKER_LOWER_CACHES=str(store.layout.root))
    assert done.returncode == 2
    assert "lies in a cache that is only read" in done.stderr
    assert present(store, TINY)


# --- rm, prune --------------------------------------------------------------------------------------------------------


def test_nothing_is_removed_where_nobody_can_be_asked(store: Store) -> None:
    done = cache(store, "rm", "acme/tiny")
    assert (done.returncode, done.stdout) == (2, "")
    assert "hint: `--yes` removes without asking" in done.stderr
    assert present(store, TINY)


def test_a_model_is_removed_with_its_bytes(store: Store) -> None:
    done = cache(store, "rm", "civitai:4201@130072", "--yes", "--json")
    assert document(done)["removed"] == [{"ref": "4201@130072", "bytes": 3_000_000}]
    assert not present(store, CIVITAI)
    assert present(store, TINY)
    assert not [name for name in files_below(store.layout.root) if "civitai" in name or "blake3" in name]


def test_a_person_is_asked_and_may_say_no(store: Store, tmp_path: Path) -> None:
    for answer, there in (("n", True), ("y", False)):
        with terminal([*GEN_WORKER, "cache", "rm", "acme/tiny"], tmp_path, variables(store)) as shown:
            shown.until("remove `hf:acme/tiny`, 4 KiB? [y/N]: ")
            shown.type(f"{answer}\n")
            shown.end()
            assert shown.code == (130 if there else 0)
        assert present(store, TINY) == there


def test_what_is_in_use_is_refused_naming_who_uses_it(store: Store) -> None:
    found = put(store, TINY)
    done = cache(store, "rm", "acme/tiny", "4201@130072", "--yes")
    os.close(found.lease)
    assert done.returncode == 2
    assert f"`hf:acme/tiny` is in use by process {os.getpid()} (`" in done.stderr
    assert present(store, TINY)
    assert present(store, CIVITAI)


def test_prune_removes_what_was_not_used_for_so_long(store: Store) -> None:
    age(store, CIVITAI, 8 * 86400)
    told = cache(store, "prune", "--older-than", "7d", "--dry-run")
    assert told.stdout.splitlines() == ["would remove `4201@130072`: 3 MiB", "would free 3 MiB"]
    assert present(store, CIVITAI)  # which uses it now
    age(store, CIVITAI, 8 * 86400)
    asked = cache(store, "prune", "--older-than", "7d")
    assert (asked.returncode, asked.stderr.splitlines()[1]) == (2, "hint: `--yes` removes without asking")
    done = cache(store, "prune", "--older-than", "7d", "--yes")
    assert done.stdout.splitlines() == ["removed `4201@130072`: 3 MiB", "freed 3 MiB"]
    assert not present(store, CIVITAI)
    assert present(store, TINY)
    assert cache(store, "prune", "--older-than", "7d").stdout == "nothing to remove\n"


def test_a_folder_of_hugging_face_that_is_used_no_more_counts_for_nothing(store: Store, tmp_path: Path) -> None:
    own = cache(store, "ls", HF_HOME=str(tmp_path / "hf"))
    assert own.stdout.splitlines()[-1].startswith("1 model, 3 MiB; ")
    done = cache(store, "prune", "--older-than", "0s", "--yes", HF_HOME=str(tmp_path / "hf"))
    assert done.stdout.splitlines() == ["removed `4201@130072`: 3 MiB", "freed 3 MiB"]
    assert present(store, TINY)


def test_selections_of_one_model_are_told_apart_and_removed_one_by_one(store: Store) -> None:
    part = Wanted("hf", TINY.repo, dtype="fp16", files=("config.json",))
    put_and_leave(store, part, {"config.json": FILES["config.json"]})
    key = put_and_leave(store, Wanted("hf", TINY.repo, subfolder="unet"), {"unet/config.json": b"{}"})
    heads, *lines = cache(store, "ls").stdout.splitlines()
    assert heads.split()[:2] == ["REF", "SELECTION"]
    assert sorted(line[len("civitai:4201@130072") :].split("  ")[1] for line in lines[:4]) == [
        "-",
        "-",
        "dtype=fp16 files=config.json",
        "subfolder=unet",
    ]
    done = cache(store, "rm", "acme/tiny", "--selection", "dtype=fp32", "--yes")
    assert done.stderr.splitlines() == [
        "error: no selection `dtype=fp32` of it on this machine",
        "hint: there is `-`, `dtype=fp16 files=config.json`, `subfolder=unet`",
    ]
    done = cache(store, "rm", "acme/tiny", "--selection", "dtype=fp16 files=config.json", "--yes")
    assert (done.returncode, done.stdout.splitlines()[0][:20]) == (0, "removed `acme/tiny`:")
    assert cache(store, "rm", key, "--yes").returncode == 0
    assert [each.record.wanted for each in store.listed() if each.record.provider == "hf"] == [TINY]


def test_prune_keeps_to_a_size_by_last_use(store: Store) -> None:
    age(store, TINY, 1000)
    assert document(cache(store, "prune", "--bytes", "3M", "--json"))["removed"] == []
    pruned = document(cache(store, "prune", "--bytes", "3000000", "--json", "--yes"))
    assert pruned["removed"] == [{"ref": "acme/tiny", "bytes": SIZE}]


def test_prune_alone_keeps_to_the_limit_of_the_settings(store: Store) -> None:
    assert document(cache(store, "prune", "--json"))["removed"] == []
    assert len(document(cache(store, "prune", "--json", "--yes", GEN_WORKER_CACHE_BYTES="1k"))["removed"]) == 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--bytes", "much"], "`--bytes` must be a size, as `50G`, not `much`"),
        (["--older-than", "7"], "`--older-than` must be a time, as `7d`, `12h` or `30m`, not `7`"),
        (["--bytes", "1G", "--older-than", "7d"], "`--bytes` and `--older-than` exclude each other"),
    ],
)
def test_what_prune_cannot_understand_removes_nothing(store: Store, arguments: list[str], told: str) -> None:
    done = cache(store, "prune", *arguments)
    assert (done.returncode, done.stderr) == (2, f"error: {told}\n")
    assert len(store.listed()) == 2


# --- verify -----------------------------------------------------------------------------------------------------------


def test_a_cache_without_damage_is_told_so(store: Store) -> None:
    done = cache(store, "verify")
    assert (done.returncode, done.stdout) == (0, "2 models are as they were: 3 MiB\n")
    assert document(cache(store, "verify", "acme/tiny", "--json")) == {
        "ok": True,
        "verified": ["hf:acme/tiny"],
        "damaged": [],
    }


def test_damaged_files_are_named_and_removed_and_their_model_is_fetched_again(store: Store) -> None:
    folder = next(Path(each.path) for each in store.listed() if each.record.provider == "hf")
    damage(folder / "model.safetensors")
    done = cache(store, "verify")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: `model.safetensors` of `acme/tiny` is damaged: its sha256 is ")
    assert done.stderr.endswith("hint: it was removed, and is fetched again when its model is used next\n")
    assert not present(store, TINY)
    assert present(store, CIVITAI)
    put_and_leave(store, TINY)
    assert cache(store, "verify").returncode == 0


def test_damage_is_a_document_too(store: Store) -> None:
    damage(next(Path(each.path) for each in store.listed() if each.record.provider == "civitai"))
    done = cache(store, "verify", "--json")
    assert done.returncode == 1
    found = document(done)
    assert (found["ok"], found["damaged"][0]["path"]) == (False, "model.safetensors")


def test_damage_in_a_cache_that_is_only_read_is_told_and_left(store: Store, tmp_path: Path) -> None:
    folder = next(Path(each.path) for each in store.listed() if each.record.provider == "hf")
    damage(folder / "config.json")
    own = store_in(tmp_path / "own")
    own.layout.root.mkdir()
    done = cache(own, "verify", "acme/tiny", GEN_WORKER_LOWER_CACHES=str(store.layout.root))
    assert done.returncode == 1
    assert done.stderr.splitlines()[1:] == [
        f"warning: it stays, as it lies in a cache that is only read: `{folder}`",
    ]
    assert (folder / "config.json").exists()


def test_models_of_hugging_face_lie_where_its_libraries_look(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "tiny.tar"
    cache(store, "export", "acme/tiny", "-o", str(file))
    own = store_in(tmp_path / "own")
    own.layout.root.mkdir()
    home = {"HF_HOME": str(tmp_path / "home")}
    assert cache(own, "import", str(file), **home).returncode == 0
    done = cache(own, "path", "acme/tiny", **home)
    assert done.stdout.startswith(f"{tmp_path}/home/hub/models--acme--tiny/snapshots/")


# --- export, import ---------------------------------------------------------------------------------------------------


def test_models_reach_a_host_without_a_network(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "models.tar"
    done = cache(store, "export", "acme/tiny", "civitai:4201@130072", "-o", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"wrote `hf:acme/tiny`, `civitai:4201@130072` to `{file}`: 3 MiB")
    there = store_in(tmp_path / "there")
    there.layout.root.mkdir()
    done = cache(there, "import", str(file))
    assert (done.returncode, done.stderr) == (0, "")
    assert [line.split(":", 2)[:2] for line in done.stdout.splitlines()] == [
        ["`hf", "acme/tiny`"],
        ["`civitai", "4201@130072`"],
    ]
    assert present(there, TINY)
    assert present(there, CIVITAI)
    assert cache(there, "verify").returncode == 0


def test_a_damaged_export_is_refused_by_its_name(store: Store, tmp_path: Path) -> None:
    file = tmp_path / "models.tar"
    cache(store, "export", "acme/tiny", "-o", str(file))
    content = file.read_bytes()
    file.write_bytes(content.replace(b"w" * 100, b"v" * 100))
    there = store_in(tmp_path / "there")
    there.layout.root.mkdir()
    done = cache(there, "import", str(file))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: `{file}`: `files/sha256-")
    assert done.stderr.endswith("hint: write it again with `gen-worker cache export`\n")
    assert there.listed() == []


def test_files_that_cannot_be_read_or_written_are_told(store: Store) -> None:
    done = cache(store, "import", "/nowhere/models.tar")
    assert (done.returncode, done.stderr) == (2, "error: no such file: `/nowhere/models.tar`\n")
    done = cache(store, "export", "acme/tiny", "-o", "/nowhere/models.tar")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: no such folder: `/nowhere`")
    for command in (("import", "."), ("export", "acme/tiny", "-o", ".")):
        assert cache(store, *command).stderr.splitlines()[0] == "error: `.` is a folder"
    done = cache(store, "export", "acme/tiny", "-o", "/dev/full")
    assert (done.returncode, done.stderr) == (2, "error: `/dev/full`: no space left on device\n")


def test_an_export_replaces_no_file_unasked_and_never_a_device(store: Store, tmp_path: Path) -> None:
    file, link = tmp_path / "models.tar", tmp_path / "link.tar"
    file.write_text("mine")
    link.symlink_to(file)
    for name in (file, link):
        done = cache(store, "export", "acme/tiny", "-o", str(name))
        assert (done.returncode, done.stderr) == (2, f"error: `{name}` exists already\nhint: `--force` replaces it\n")
    assert file.read_text() == "mine"
    assert cache(store, "export", "acme/tiny", "-o", str(link), "--force").returncode == 0
    assert link.is_symlink()
    piped = subprocess.run(
        [*GEN_WORKER, "cache", "export", "acme/tiny", "-o", "/dev/stdout"],
        capture_output=True,
        timeout=60,
        env=variables(store),
        check=True,
    )
    assert piped.stdout == file.read_bytes()
    assert piped.stderr.startswith(b"wrote `hf:acme/tiny` to `/dev/stdout`: ")


# --- the command ------------------------------------------------------------------------------------------------------


def test_wrong_words_are_met_with_what_was_meant(store: Store) -> None:
    done = cache(store, "list")
    assert (done.returncode, done.stderr.splitlines()[0]) == (2, "error: no command `cache list`")
    assert cache(store, "veryfy").stderr.splitlines()[1] == "hint: did you mean `gen-worker cache verify`?"
    assert cache(store).returncode == 2


@pytest.mark.parametrize("name", ["ls", "path", "rm", "prune", "verify", "export", "import"])
def test_every_command_of_the_cache_explains_itself(store: Store, name: str) -> None:
    done = cache(store, name, "--help")
    assert done.returncode == 0
    assert "Exit codes:" in done.stdout


@pytest.mark.parametrize(("begun", "model"), [("hf:", "hf:acme/tiny"), ("acme/ti", "acme/tiny")])
def test_a_shell_completes_the_models(store: Store, begun: str, model: str) -> None:
    words = {"_GEN_WORKER_COMPLETE": "bash_complete", "COMP_WORDS": f"gen-worker cache rm {begun}"}
    done = subprocess.run(
        GEN_WORKER, capture_output=True, text=True, timeout=30, env={**variables(store), **words}, check=False
    )
    assert done.stdout.splitlines() == [f"plain,{model}"]
