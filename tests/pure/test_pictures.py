"""The pictures of the documentation can be shown anywhere, and say nothing of where they were made."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
PICTURES = sorted((DOCS / "pictures").iterdir())


@pytest.mark.parametrize("picture", PICTURES, ids=lambda picture: picture.name)
def test_a_picture_fetches_nothing_and_names_no_folder_of_whoever_made_it(picture: Path) -> None:
    svg = picture.read_text()
    assert len(svg) < 150_000
    assert re.findall(r"@font-face|url\(https?:|href=", svg) == []
    assert re.findall(r"/(?:home|root|work|Users)/", svg) == []


def test_every_picture_is_shown_somewhere() -> None:
    pages = "".join(page.read_text() for page in DOCS.rglob("*.md"))
    assert [picture.name for picture in PICTURES if f"pictures/{picture.name}" not in pages] == []
