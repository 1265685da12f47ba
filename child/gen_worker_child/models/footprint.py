"""What a model will take of the device, from the headers of its files, before anything heavy is imported."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from gen_worker.models.dtypes import Dtype
from gen_worker.models.errors import ModelError
from gen_worker.models.headers import Header, read_header
from gen_worker.models.rungs import Sizes


def read_headers(files: Iterable[Path], ref: str) -> dict[Path, Header]:
    """Read the header of each file; raise `ModelError`, naming ref and file, for one that is cut off or no weights."""
    try:
        return {file: read_header(file) for file in files}
    except ModelError as error:
        raise ModelError(error.kind, f"`{ref}`: {error}", error.hint, ref=ref, file=error.file) from error


def stored_bytes(headers: Mapping[Path, Header]) -> Counter[str]:
    """Return the bytes of all tensors by the dtype that they are stored as."""
    counted: Counter[str] = Counter()
    for header in headers.values():
        for tensor in header.tensors.values():
            counted[tensor.dtype] += tensor.size
    return counted


def planned_sizes(headers: Mapping[Path, Header], dtype: Dtype) -> Sizes | None:
    """Return what the weights take once they are loaded as `dtype`; None where nobody can know.

    The files of one folder are one component, their largest tensor stands for their largest layer.
    """
    if not headers:
        return None
    components: Counter[Path] = Counter()
    for file, header in headers.items():
        components[file.parent] += header.resident_bytes(dtype)
    layers = (_largest_tensor(header, dtype) for header in headers.values())
    return Sizes(components.total(), max(components.values()), max(layers))


def _largest_tensor(header: Header, dtype: Dtype) -> int:
    return max((Header({"": each}, {}, 0).resident_bytes(dtype) for each in header.tensors.values()), default=0)
