"""The command line, `gen-worker`: one module per command, imported when the command is used."""

from gen_worker.cli.program import execute, main

__all__ = ["execute", "main"]
