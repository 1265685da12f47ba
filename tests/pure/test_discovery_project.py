"""The project file says which module declares the endpoints."""

from pathlib import Path

import pytest

from gen_worker.discovery import import_paths, load_project_config

PROJECT = '[project]\nname = "my-endpoint"\n[tool.gen_worker]\nmain = "my_endpoint.main"\n'


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    return tmp_path


def test_a_project_is_found_by_its_folder_its_file_or_the_current_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root)
    for path in (root, str(root), root / "pyproject.toml", "pyproject.toml", ".", None):
        config = load_project_config(path)
        assert config.root.resolve() == root.resolve()
        assert (config.name, config.main) == ("my-endpoint", "my_endpoint.main")


def test_the_name_of_the_project_is_not_needed(root: Path) -> None:
    (root / "pyproject.toml").write_text('[tool.gen_worker]\nmain = " main "\n')
    assert load_project_config(root) == (root, "", "main")


def test_a_folder_without_a_project_is_told_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"run from the root of the endpoint .* `--config PATH`"):
        load_project_config(tmp_path)


@pytest.mark.parametrize(
    ("path", "told"), [("a" * 5000, "file name too long"), ("/proc/self/mem", "input/output error")]
)
def test_a_project_that_cannot_be_read_is_told_in_a_sentence(path: str, told: str) -> None:
    with pytest.raises(ValueError, match=f"^`{path}` cannot be read: {told}$"):
        load_project_config(path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", r"does not name the main module; add:\n\n\[tool.gen_worker\]\nmain = \"myendpoint.main\""),
        ("[tool]\ngen_worker = 3", "says `tool.gen_worker = 3`, which is no table; write:\n"),
        ("[tool.gen_worker]\nmain = ''", "does not name the main module; write:\n"),
        ("[tool.gen_worker]\nmain = 5", "`main` is a number, it must be a text; write:\n"),
        ("[tool.gen_worker]\nmain = ['zoo']", "`main` is a list, it must be a text; write:\n"),
        ("[tool.gen_worker]\nmain = 'main:app'", "which is no dotted module name; write:\n"),
        ("[tool.gen_worker]\nmain = 'zoo.py'", "which is a file; write `zoo`$"),
        ("[tool.gen_worker]\nmain = 'src/zoo/main.py'", "which is a file; write `zoo.main`$"),
        ("[tool.genworker]\nmain = 'zoo'", "a table `tool.genworker`; it is called `tool.gen_worker`"),
        ("[tool.gen-worker]\nmain = 'zoo'", "a table `tool.gen-worker`; it is called `tool.gen_worker`"),
        ("[tool.gen_worker]\nmian = 'zoo'", "a key `mian` in .*; did you mean `main`\\?$"),
    ],
)
def test_a_project_file_that_names_no_main_module_is_told_what_to_write(root: Path, text: str, told: str) -> None:
    (root / "pyproject.toml").write_text(text)
    with pytest.raises(ValueError, match=told):
        load_project_config(root)


def test_a_broken_project_file_is_named(root: Path) -> None:
    (root / "pyproject.toml").write_text("main =")
    with pytest.raises(ValueError, match=r"pyproject.toml` is not valid TOML"):
        load_project_config(root)


def test_modules_are_looked_for_in_src_and_in_the_root(root: Path) -> None:
    assert import_paths(root) == [str(root)]
    (root / "src").mkdir()
    assert import_paths(root) == [str(root / "src"), str(root)]
