"""The pytest plugin: `gen_worker_client`, a client of the endpoint whose tests these are.

pytest loads this in every project of an environment that has gen-worker, so it loads nothing until a test asks.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from gen_worker.testing.client import Client

_INI = "gen_worker_target"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini option that names the endpoint, where it is not the project around the test."""
    parser.addini(_INI, "the module, or the project's folder, that `gen_worker_client` calls", default="")


@pytest.fixture(scope="module")
def gen_worker_options() -> dict[str, Any]:
    """Return the arguments of `gen_worker_client`, as `{"models": {"pipe": fake_model(…)}}`; made to be replaced."""
    return {}


@pytest.fixture(scope="module")
def gen_worker_client(request: pytest.FixtureRequest, gen_worker_options: dict[str, Any]) -> "Iterator[Client]":
    """Give a `gen_worker.testing.Client` of the endpoint, for the tests of one module; its classes are set up once.

    The endpoint is the `target` of `gen_worker_options`, else what the ini option `gen_worker_target` names, else the
    project whose `pyproject.toml` with a `[tool.gen_worker]`, or a `[tool.cozy]`, is the nearest one above the test.
    """
    from gen_worker.testing.client import Client

    options = dict(gen_worker_options)
    target = options.pop("target", None) or _target(request)
    with Client(target, **options) as client:
        yield client


def _target(request: pytest.FixtureRequest) -> str | Path:
    named = str(request.config.getini(_INI))
    root = request.config.rootpath
    if named:
        return root / named if not all(part.isidentifier() for part in named.split(".")) else named
    if (project := project_above(request.path)) is not None:
        return project
    raise pytest.UsageError(
        f"no `pyproject.toml` with `[tool.gen_worker]` above `{request.path}`; name the endpoint with `{_INI} = …`"
    )


def project_above(test: Path) -> Path | None:
    """Return the folder of the project that a test lies in; functions of the earlier API have a `[tool.cozy]`."""
    for folder in test.parents:
        file = folder / "pyproject.toml"
        if file.is_file():
            text = file.read_text(encoding="utf-8")
            if "[tool.gen_worker]" in text or "[tool.cozy]" in text:
                return folder
    return None
