"""All benchmarks, one table each: `python -m benchmarks`."""

from benchmarks import (
    batching,
    cli,
    crowd,
    dispatch,
    download,
    fetching,
    footprint,
    link,
    loading,
    payload,
    recover,
    top,
    training,
)
from benchmarks.figures import main

if __name__ == "__main__":
    main(
        {
            benchmark.SHOWS: benchmark.measure
            for benchmark in (
                dispatch,
                batching,
                link,
                payload,
                crowd,
                recover,
                cli,
                footprint,
                download,
                fetching,
                loading,
                training,
                top,
            )
        }
    )
