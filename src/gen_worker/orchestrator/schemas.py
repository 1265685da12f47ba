"""What the functions of this host's projects take and give: asked of a short-lived process when their worker comes."""

import asyncio
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec

from gen_worker.discovery.project import import_paths, load_project_config
from gen_worker.environment import author_environment

NAMES = ("input_schema", "output_schema")


class Schemas:
    """The schemas of functions, as far as they are known. Use it on one loop."""

    def __init__(self, projects: Mapping[str, Path], environment: Mapping[str, str]) -> None:
        self._projects = projects
        self._environment = author_environment(environment)
        self._known: dict[str, dict[str, Any]] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}

    def of(self, function: str) -> dict[str, Any]:
        """Return what a function takes and gives as JSON schemas; None for what is not known."""
        known = self._known.get(function, {})
        return {name: known.get(name) for name in NAMES}

    def kind_of(self, function: str) -> str:
        """Return of which kind a function is; "" where that is not known."""
        return str(self._known.get(function, {}).get("kind", ""))

    def look(self, worker_id: str) -> None:
        """Learn what a worker's functions are where its project lies here; its code may have changed."""
        project = self._projects.get(worker_id)
        if project is None:
            return
        if (before := self._looking.get(worker_id)) is not None:
            before.cancel()
        self._looking[worker_id] = asyncio.create_task(self._look(project))

    async def close(self) -> None:
        """End what is being looked at."""
        for task in self._looking.values():
            task.cancel()
        await asyncio.gather(*self._looking.values(), return_exceptions=True)

    async def _look(self, project: Path) -> None:
        try:
            found = load_project_config(project)
        except (OSError, ValueError):  # its worker has said so
            return
        paths = [f"--path={path}" for path in import_paths(found.root)]
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-P", "-m", "gen_worker.discovery.probe", "--module", found.main, *paths),
            cwd=project,
            env=self._environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,  # a Ctrl-C on the terminal is for this process, which ends it
            stderr=asyncio.subprocess.DEVNULL,  # what importing prints, its worker has printed
        )
        try:
            printed, _ = await process.communicate()
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        if process.returncode == 0:
            for function in msgspec.json.decode(printed)["description"]["functions"]:
                self._known[function["name"]] = {name: function.get(name) for name in (*NAMES, "kind")}
