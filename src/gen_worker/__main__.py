"""`python -m gen_worker` is `gen-worker`."""

from gen_worker.cli import main

main()
