"""What an image says it serves: where that is looked for, in what form it may be, and what is wrong with it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gen_worker.discovery.image import (
    ImageError,
    Served,
    difference,
    parse_manifest,
    places,
    served_by_image,
    served_by_manifest,
)
from gen_worker.discovery.lock import to_toml


def entry(name: str = "echo", module: str = "shop", **more: Any) -> dict[str, Any]:
    return {"name": name, "module": module, "kind": "inference", **more}


def write(path: Path, *functions: Mapping[str, Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_toml({"functions": list(functions)}))
    return path


def served(root: Path, lock: str = "/app/.tensorhub/endpoint.lock", *modules: str) -> Served:
    """What an image serves whose root is in a test's folder, started in `/work` of it."""
    (root / "work").mkdir(exist_ok=True)
    return served_by_image(lock, modules, folder=root / "work", root=root)


def test_a_manifest_is_looked_for_where_it_is_set_then_in_the_app_then_in_the_current_folder() -> None:
    folder = Path("/here")
    assert places("/baked/lock", folder=folder) == [
        Path("/baked/lock"),
        Path("/app/.tensorhub/endpoint.lock"),
        Path("/app/.cozy/manifest.json"),
        Path("/here/.tensorhub/endpoint.lock"),
        Path("/here/.cozy/manifest.json"),
    ]
    assert places("/app/.tensorhub/endpoint.lock", folder=folder)[1] == Path("/app/.cozy/manifest.json")
    assert places("my.lock", folder=folder)[0] == Path("/here/my.lock")


def test_the_first_manifest_that_is_there_counts(tmp_path: Path) -> None:
    found = [
        write(path, entry(f"f{number}"))
        for number, path in enumerate(places("/baked/lock", folder=tmp_path / "work", root=tmp_path))
    ]
    for number, path in enumerate(found):
        assert served(tmp_path, "/baked/lock").functions == (f"f{number}",)
        assert served(tmp_path, "/baked/lock").manifest == path
        path.unlink()


@pytest.mark.parametrize("name", [".cozy/manifest.json", ".tensorhub/endpoint.lock"])
@pytest.mark.parametrize("form", ["toml", "json", "json with a mark"])
def test_a_manifest_is_what_it_holds_and_not_what_it_is_called(tmp_path: Path, name: str, form: str) -> None:
    document = {"functions": [entry()]}
    text = to_toml(document) if form == "toml" else f"\n {json.dumps(document)}"
    path = tmp_path / "app" / name
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="utf-8-sig" if "mark" in form else "utf-8")
    assert served(tmp_path).functions == ("echo",)


def test_modules_are_named_once_and_found_beside_the_manifest(tmp_path: Path) -> None:
    (tmp_path / "app" / "src").mkdir(parents=True)
    path = write(
        tmp_path / "app/.cozy/manifest.json", entry("a", "zoo"), entry("b", "shop"), entry("c_d", "zoo", class_name="Z")
    )
    app = tmp_path / "app"
    assert served(tmp_path) == Served(
        ("zoo", "shop"), [str(app / "src"), str(app), str(tmp_path / "work")], ("a", "b", "c-d"), path
    )


def test_without_a_manifest_the_modules_that_are_set_are_served(tmp_path: Path) -> None:
    assert served(tmp_path, "/x", "shop", "zoo.main", "shop").modules == ("shop", "zoo.main")


def test_modules_of_realtime_functions_are_served_as_well(tmp_path: Path) -> None:
    path = tmp_path / "app/.cozy/manifest.json"
    path.parent.mkdir(parents=True)
    for functions, modules in (([], ("talk",)), ([entry("a", "shop")], ("shop", "talk"))):
        path.write_text(json.dumps({"functions": functions, "realtime_modules": ["talk"]}))
        assert served(tmp_path).modules == modules
    path.write_text(json.dumps({"functions": [], "realtime_modules": "talk"}))
    with pytest.raises(ImageError, match="`realtime_modules` is no list of modules: 'talk'"):
        served(tmp_path)


def test_where_a_manifest_names_nothing_the_modules_that_are_set_are_served(tmp_path: Path) -> None:
    path = write(tmp_path / "app/.cozy/manifest.json")
    assert served(tmp_path, "/x", "shop").modules == ("shop",)
    with pytest.raises(ImageError, match="no function or class is marked"):
        served(tmp_path)
    assert path.is_file()


@pytest.mark.parametrize("file", ["functions.py", "functions/__init__.py", "src/functions.py"])
def test_without_those_a_module_called_functions_is(tmp_path: Path, file: str) -> None:
    (tmp_path / "work" / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "work" / file).touch()
    assert served(tmp_path).modules == ("functions",)


def test_an_image_that_says_nothing_is_refused_with_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no manifest says what is served") as caught:
        served(tmp_path)
    assert f"`{tmp_path}/app/.cozy/manifest.json`" in str(caught.value)
    assert "python -m gen_worker.discover > .cozy/manifest.json" in caught.value.hint


def test_everything_that_is_wrong_with_a_manifest_is_named_at_once(tmp_path: Path) -> None:
    path = write(
        tmp_path / "lock", entry("", "shop"), entry("b", "no-module"), {**entry("c"), "kind": "magic"}, {"name": "d"}
    )
    with pytest.raises(ImageError) as caught:
        served_by_manifest(path)
    text = str(caught.value)
    assert text.startswith(f"5 problems in `{path}`:")
    for part in ("entry 1 ", "entry 2 of `functions`, `b`: 'no-module' is no module's name", "'magic'", "None"):
        assert part in text


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("functions = 7", "the lock has no list `functions`"),
        ("functions = []", "no function or class is marked with `@endpoint`"),
        ("functions = [7]", "entry 1 of `functions` is no table: 7"),
        ("{", "neither JSON nor TOML"),
        ("functions = [", "neither JSON nor TOML"),
        ("{" * 100_000, "neither JSON nor TOML"),
        ("", "the lock has no list `functions`"),
    ],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "lock"
    path.write_text(text)
    with pytest.raises(ImageError, match=told.replace("`", ".")):
        served_by_manifest(path)


def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").write_bytes(b"\xff\xfe\x00")
    for path, reason in ((tmp_path / "lock", "it is no UTF-8"), (tmp_path, "is a directory")):
        with pytest.raises(ImageError, match=f"`{path}` cannot be read: {reason}"):
            served_by_manifest(path)


def test_a_list_is_no_manifest() -> None:
    with pytest.raises(ImageError, match="neither JSON nor TOML"):
        parse_manifest(Path("lock"), "[1, 2]")


@pytest.mark.parametrize(
    ("promised", "found", "told"),
    [
        (["a", "b"], ["b", "a"], ""),
        (["a", "b", "c"], ["b"], "the code does not declare `a`, `c`"),
        (["a"], ["a", "d"], "the manifest does not name `d`"),
        (["a"], ["b"], "the code does not declare `a` and the manifest does not name `b`"),
    ],
)
def test_a_manifest_and_its_code_are_compared_by_name(promised: list[str], found: list[str], told: str) -> None:
    assert difference(promised, found) == told
