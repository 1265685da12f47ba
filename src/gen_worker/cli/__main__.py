"""`python -m gen_worker.cli` is `gen-worker`."""

from gen_worker.cli import main

main()
