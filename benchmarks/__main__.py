"""All benchmarks, one table each: `python -m benchmarks [--rounds N] [--json]`."""

import argparse

from benchmarks import dispatch, footprint, payload, recover
from benchmarks.figures import report


def main() -> None:
    """Run every benchmark and print what it found as soon as it has it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="interleaved rounds of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one document instead of tables")
    options = parser.parse_args()
    document = []
    for benchmark in (dispatch, payload, recover, footprint):
        figures = benchmark.measure(options.rounds)
        if options.json:
            document += figures
            continue
        print(benchmark.__doc__, end="\n\n")
        report(figures, as_json=False)
        print()
    if options.json:
        report(document, as_json=True)


if __name__ == "__main__":
    main()
