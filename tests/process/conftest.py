"""Servers for the tests of this folder: one of the test's own, with as many children as its parameter says."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from tests.nvml.simulated import Simulated, World, gpus
from tests.served import Serve, Server, serving


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start servers with `serving`'s arguments; they end with the test."""
    with ExitStack() as stack:

        def start(*arguments: str, **options: Any) -> Server:
            return stack.enter_context(serving(tmp_path, *arguments, **options))

        yield start


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Make a host with so many GPUs."""
    with ExitStack() as stack:

        def make(count: int) -> Simulated:
            return stack.enter_context(gpus(tmp_path, count))

        yield make


@pytest.fixture(scope="session")
def grpc_awake() -> None:
    """Have gRPC open what it keeps open as long as a process lives, before a test's descriptors are counted."""
    from tests.scripted.orchestrator import rehearse

    rehearse()
