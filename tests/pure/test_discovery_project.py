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
    "text",
    [
        "",
        "[tool]\ngen_worker = 3",
        "[tool.gen_worker]\nmain = ''",
        "[tool.gen_worker]\nmain = 3",
        "[tool.gen_worker]\nmain = 'main:app'",
    ],
)
def test_a_project_without_a_main_module_is_shown_the_lines_to_add(root: Path, text: str) -> None:
    (root / "pyproject.toml").write_text(text)
    with pytest.raises(ValueError, match=r'add:\n\n\[tool.gen_worker\]\nmain = "myendpoint.main"'):
        load_project_config(root)


def test_a_broken_project_file_is_named(root: Path) -> None:
    (root / "pyproject.toml").write_text("main =")
    with pytest.raises(ValueError, match=r"pyproject.toml` is not valid TOML"):
        load_project_config(root)


def test_modules_are_looked_for_in_src_and_in_the_root(root: Path) -> None:
    assert import_paths(root) == [str(root)]
    (root / "src").mkdir()
    assert import_paths(root) == [str(root / "src"), str(root)]
