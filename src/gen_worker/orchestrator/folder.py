"""The folder in which a control plane keeps its state."""

from pathlib import Path


def make_state_folder(folder: Path) -> None:
    """Make the folder, for its owner alone, with nothing in it for version control; raise `OSError`."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    ignored = folder / ".gitignore"
    if not ignored.exists():
        ignored.write_text("*\n")
