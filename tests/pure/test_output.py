"""What children print, cut into lines."""

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hypothesis import given
from hypothesis import strategies as st

from gen_worker_supervisor.processes.output import LINE_BYTES, OutputPipe


@contextmanager
def pipe() -> Iterator[tuple[OutputPipe, int, list[tuple[int, str]]]]:
    """A pipe, its write end and the lines that come out; both ends are the caller's to close."""
    lines: list[tuple[int, str]] = []
    read_end, write_end = os.pipe()
    yield OutputPipe(read_end, lambda job, line: lines.append((job, line))), write_end, lines


def printed(*pieces: bytes) -> list[tuple[int, str]]:
    """Return the lines that come of these writes, then the end."""
    with pipe() as (output, write_end, lines):
        for piece in pieces:
            os.write(write_end, piece)
            assert output.read()
        os.close(write_end)
        assert not output.read()
        output.close()
        return lines


def test_lines_are_attributed_by_their_marks() -> None:
    assert printed(b"\x1e12\x1fhello\nplain\n\x1e3\x1f\n") == [(12, "hello"), (0, "plain"), (3, "")]


def test_a_line_may_come_in_pieces_and_the_last_without_its_end() -> None:
    assert printed(b"\x1e1", b"2\x1fhel", b"lo\nrest") == [(12, "hello"), (0, "rest")]


def test_a_line_that_never_ends_is_cut() -> None:
    assert [len(line) for _, line in printed(*[b"x" * 1000] * 40)] == [LINE_BYTES, LINE_BYTES, 40_000 - 2 * LINE_BYTES]


def test_terminal_escapes_and_bytes_that_are_no_text_come_out_readable() -> None:
    assert printed(b"\x1b[31m\xff\n") == [(0, "\\x1b[31m\ufffd")]


@given(
    st.lists(st.binary(min_size=1, max_size=60) | st.sampled_from([b"\x1e", b"\x1f", b"\n", b"\x1e1\x1f"]), max_size=20)
)
def test_whatever_is_printed_comes_out_as_lines(pieces: list[bytes]) -> None:
    lines = printed(*pieces)
    assert all("\n" not in line and "\x1b" not in line for _, line in lines)
    assert all(job >= 0 for job, _ in lines)


def test_a_descendant_that_prints_for_ever_does_not_hold_whoever_closes_the_pipe() -> None:
    with pipe() as (output, write_end, lines):
        stop = threading.Event()

        def babble() -> None:
            while not stop.is_set():
                try:
                    os.write(write_end, b"more\n" * 2000)
                except BrokenPipeError:
                    return

        os.write(write_end, b"first\n")
        thread = threading.Thread(target=babble)
        thread.start()
        output.close()
        stop.set()
        thread.join(10)
        os.close(write_end)
        assert not thread.is_alive()
        assert lines[0] == (0, "first")
