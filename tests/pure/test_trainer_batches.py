"""Where a training's batches come from: they go round, know where they are, and say which file is at fault."""

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from gen_worker.trainer.batches import InputError, Repeated, Rows, read_ahead
from gen_worker.trainer.spec import Dataset


def test_batches_of_a_list_go_round_from_where_they_are() -> None:
    batches = Repeated(["a", "b", "c"])
    batches.skip(7)
    assert list(islice(batches, 4)) == ["b", "c", "a", "b"]
    assert list(Repeated([])) == []


@pytest.mark.needs("pyarrow")
@pytest.mark.parametrize("form", ["parquet", "arrow"])
@pytest.mark.parametrize("readahead", [0, 2])
def test_rows_come_in_batches_by_columns_and_go_round(tmp_path: Path, form: str, readahead: int) -> None:
    import pyarrow
    import pyarrow.parquet

    paths = []
    for number, values in enumerate(([1, 2, 3], [4, 5])):
        path = tmp_path / f"{number}.{form}"
        table = pyarrow.table({"x": values, "y": [str(value) for value in values]})
        if form == "parquet":
            pyarrow.parquet.write_table(table, path)
        else:
            with pyarrow.ipc.new_file(path, table.schema) as file:
                file.write_table(table)
        paths.append(str(path))
    dataset = Dataset(batch_size=2, readahead=readahead, columns=("x",))
    rows = Rows(paths, form, dataset)
    assert list(islice(iter(rows), 4)) == [{"x": [1, 2]}, {"x": [3]}, {"x": [4, 5]}, {"x": [1, 2]}]
    rows.skip(2)
    assert next(iter(rows)) == {"x": [4, 5]}
    with pytest.raises(InputError, match=r"has no column `z`; it has `x`, `y`"):
        next(iter(Rows(paths, form, Dataset(columns=("z",)))))
    (tmp_path / "torn").write_bytes(Path(paths[0]).read_bytes()[:-9])
    for broken in (tmp_path / "torn", tmp_path / "none"):
        with pytest.raises(InputError, match=rf"`{broken}` cannot be read"):
            next(iter(Rows([str(broken)], form, dataset)))
    with pytest.raises(InputError, match="names no file"):
        Rows([], form, dataset)


def test_what_is_read_ahead_comes_in_order_and_its_thread_ends_with_who_takes_it() -> None:
    def numbers() -> Iterator[int]:
        yield from range(3)
        raise InputError("the fourth is torn")

    torn = read_ahead(numbers(), 2)
    assert list(islice(torn, 3)) == [0, 1, 2]
    with pytest.raises(InputError, match="fourth"):
        next(torn)
    ahead = read_ahead(iter(range(1000)), 2)
    next(ahead)
    assert any(each.name == "gen-worker-readahead" for each in threading.enumerate())
    ahead.close()  # type: ignore[attr-defined]
    assert not any(each.name == "gen-worker-readahead" for each in threading.enumerate())
