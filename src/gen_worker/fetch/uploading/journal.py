"""How far an upload is, in memory that outlives this process: whoever takes over sends only what is not stored yet.

The memory is a memfd of the supervisor's, for one upload; nothing of it is ever on a disk. One line of JSON for each
step: the content's digests, the store's answer to the beginning, the id of a multipart upload, each part that is
stored. A line without its end was being written when its writer died, and does not count.
"""

import os
import threading

import msgspec

from gen_worker.fetch.uploading.source import Digests


class _Line(msgspec.Struct, omit_defaults=True):
    digests: Digests | None = None
    created: str = ""
    multipart: str = ""
    joined: str = ""
    part: int = 0
    etag: str = ""


class Journal:
    """The steps of one upload. Any thread may note one; without a descriptor they are only kept here."""

    def __init__(self, fd: int | None) -> None:
        self._fd = fd
        self._end = 0
        self._writing = threading.Lock()
        self.digests: Digests | None = None
        self.created = ""
        """What the store answered at the beginning, as it came."""
        self.multipart = ""
        """The id by which a bucket knows the upload."""
        self.joined = ""
        """The ETag of the object, once the bucket has made it of the parts."""
        self.etags: dict[int, str] = {}
        """The parts that are stored, from 1 on."""
        if fd is not None:
            self._read(os.pread(fd, os.fstat(fd).st_size, 0))

    def note_digests(self, digests: Digests) -> None:
        """The content was read."""
        self.digests = digests
        self._append(_Line(digests=digests))

    def note_created(self, answer: str) -> None:
        """The store knows of the upload."""
        self.created = answer
        self._append(_Line(created=answer))

    def note_multipart(self, name: str) -> None:
        """The bucket knows of the upload."""
        self.multipart = name
        self._append(_Line(multipart=name))

    def note_joined(self, etag: str) -> None:
        """The bucket has joined the parts."""
        self.joined = etag
        self._append(_Line(joined=etag))

    def note_part(self, number: int, etag: str) -> None:
        """A part is stored."""
        self.etags[number] = etag
        self._append(_Line(part=number, etag=etag))

    def begin_anew(self) -> None:
        """Forget everything but the digests: the store has, too."""
        self.created, self.multipart, self.joined, self.etags = "", "", "", {}
        with self._writing:
            self._end = 0
            if self._fd is not None:
                os.ftruncate(self._fd, 0)
        if self.digests is not None:
            self._append(_Line(digests=self.digests))

    def _append(self, line: _Line) -> None:
        if self._fd is None:
            return
        text = msgspec.json.encode(line) + b"\n"
        with self._writing:
            while text:
                written = os.pwrite(self._fd, text, self._end)
                self._end += written
                text = text[written:]

    def _read(self, content: bytes) -> None:
        whole = content[: content.rfind(b"\n") + 1]
        self._end = len(whole)
        for text in whole.splitlines():
            line = msgspec.json.decode(text, type=_Line)
            self.digests = line.digests or self.digests
            self.created = line.created or self.created
            self.multipart = line.multipart or self.multipart
            self.joined = line.joined or self.joined
            if line.part:
                self.etags[line.part] = line.etag
