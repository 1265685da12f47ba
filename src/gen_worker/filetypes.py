"""What kind of file some bytes are: by how they begin, else by the name they go by."""

_BEGINNINGS: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"BM", "image/bmp"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"fLaC", "audio/flac"),
    (b"OggS", "audio/ogg"),
    (b"ID3", "audio/mpeg"),
    (b"\xff\xfb", "audio/mpeg"),
    (b"\xff\xf3", "audio/mpeg"),
    (b"\x1aE\xdf\xa3", "video/webm"),
    (b"%PDF-", "application/pdf"),
    (b"PK\x03\x04", "application/zip"),
    (b"\x1f\x8b", "application/gzip"),
)
_IN_RIFF = {b"WEBP": "image/webp", b"WAVE": "audio/wav", b"AVI ": "video/x-msvideo"}
_IN_FTYP = {b"avif": "image/avif", b"heic": "image/heic", b"M4A ": "audio/mp4", b"qt  ": "video/quicktime"}
_EXTENSIONS = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/gif": ".gif",
    "image/bmp": ".bmp",
    "image/tiff": ".tiff",
    "image/webp": ".webp",
    "image/avif": ".avif",
    "image/heic": ".heic",
    "image/svg+xml": ".svg",
    "audio/wav": ".wav",
    "audio/flac": ".flac",
    "audio/ogg": ".ogg",
    "audio/mpeg": ".mp3",
    "audio/mp4": ".m4a",
    "video/mp4": ".mp4",
    "video/webm": ".webm",
    "video/quicktime": ".mov",
    "video/x-msvideo": ".avi",
    "application/pdf": ".pdf",
    "application/zip": ".zip",
    "application/gzip": ".gz",
    "application/json": ".json",
    "text/plain": ".txt",
}
_BY_EXTENSION = {extension: kind for kind, extension in _EXTENSIONS.items()} | {
    ".jpeg": "image/jpeg",
    ".tif": "image/tiff",
    ".mkv": "video/webm",
    ".oga": "audio/ogg",
    ".wave": "audio/wav",
}
HEAD_BYTES = 16  # of a file, that say what it is


def mime_type(head: bytes, name: str = "") -> str | None:
    """Return the MIME type of a file that begins so, or that has such a name; None when neither tells."""
    if head[:4] == b"RIFF" and (kind := _IN_RIFF.get(bytes(head[8:12]))):
        return kind
    if head[4:8] == b"ftyp":
        return _IN_FTYP.get(bytes(head[8:12]), "video/mp4")
    for beginning, kind in _BEGINNINGS:
        if head.startswith(beginning):
            return kind
    dot = name.rfind(".")
    return _BY_EXTENSION.get(name[dot:].lower()) if dot >= 0 else None


def extension(mime_type: str | None) -> str:
    """Return the usual ending of files of a MIME type, with its dot; `.bin` for one that is not known."""
    return _EXTENSIONS.get((mime_type or "").partition(";")[0].strip().lower(), ".bin")
