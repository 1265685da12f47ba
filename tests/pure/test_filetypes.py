"""What kind of file some bytes are."""

import pytest

from gen_worker.filetypes import extension, mime_type


@pytest.mark.parametrize(
    ("head", "name", "kind"),
    [
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "", "image/png"),
        (b"\xff\xd8\xff\xe0", "cat.png", "image/jpeg"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "", "image/webp"),
        (b"RIFF\0\0\0\0WAVEfmt ", "", "audio/wav"),
        (b"\0\0\0\x20ftypisom", "", "video/mp4"),
        (b"\0\0\0\x20ftypavif", "", "image/avif"),
        (b"plain", "notes.TXT", "text/plain"),
        (b"", "a.b/cat.jpeg", "image/jpeg"),
        (b"plain", "notes", None),
        (b"", "", None),
    ],
)
def test_a_file_is_what_its_bytes_say_else_what_its_name_says(head: bytes, name: str, kind: str | None) -> None:
    assert mime_type(head, name) == kind


@pytest.mark.parametrize(
    ("kind", "ending"),
    [
        ("image/png", ".png"),
        ("IMAGE/JPEG", ".jpg"),
        ("text/plain; charset=utf-8", ".txt"),
        ("x/y", ".bin"),
        (None, ".bin"),
    ],
)
def test_every_kind_of_file_has_an_ending(kind: str | None, ending: str) -> None:
    assert extension(kind) == ending
