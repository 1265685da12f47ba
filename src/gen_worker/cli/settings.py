"""The settings as a command reads them, and the options that several commands have for them."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from gen_worker.cli.failure import Failure, say
from gen_worker.settings import Settings, SettingsError

if TYPE_CHECKING:  # what models are fetched by is imported where one is fetched
    from gen_worker.fetch.config import FetchConfig

Function = TypeVar("Function", bound=Callable[..., Any])

_OPTIONS = {"local_device": "--device", "max_line_bytes": "--max-line"}  # where the option has another name

log_format_option = click.option(
    "--log-format",
    "log_format",
    type=click.Choice(["auto", "text", "json"]),
    metavar="FORMAT",
    help="How progress and log lines look: `text`, `json`, or `auto`, which is text on a terminal, else JSON lines.",
)

http_option = click.option(
    "--http",
    metavar="[HOST:]PORT",
    help="Serve probes and metrics over HTTP there, on 127.0.0.1 unless a host is named; 0 takes any port.",
)


def read_settings(**given: object) -> Settings:
    """Read the settings, those `given` by options first; raise `Failure` for a value that cannot be meant.

    Names that look like settings and are none are said on stderr.
    """
    try:
        settings = Settings.load(given)
    except SettingsError as error:
        text = str(error)
        for field, value in given.items():
            if value is not None:
                option = _OPTIONS.get(field, f"--{field.replace('_', '-')}")
                text = text.replace(f"`{field}`", f"`{option}`")
        raise Failure(text) from None
    for warning in settings.warnings:
        say("warning", warning)
    return settings


def check_folders(config: "FetchConfig") -> None:
    """Raise `Failure` where models are to be kept in what is no folder, or in one that may not be looked into."""
    for name, path in (("TENSORHUB_CACHE_DIR", Path(config.root)), ("HF_HOME", Path(config.hf_cache))):
        there = next(each for each in (path, *path.parents) if os.path.lexists(each))
        if not there.is_dir():
            text = f"models cannot be kept in `{path}`: `{there}` is no folder"
            raise Failure(text, f"set `{name}` to a folder; it is made where there is none")
        for each in (there, path / "cas"):
            if os.path.lexists(each) and not os.access(each, os.R_OK | os.X_OK, effective_ids=True):
                text = f"models cannot be kept in `{path}`: `{each}` may not be read by user {os.geteuid()}"
                raise Failure(text, f"set `{name}` to a folder of yours")
