"""States as files: what is plain as JSON, tensors beside it. No pickle: what is read back runs nothing.

Of dictionaries with other keys than texts, tuples, bytes, arrays and the like, JSON says what they are under a key that
begins with `$`.
"""

import base64
from collections.abc import Callable, Mapping
from typing import Any

_PLAIN = (bool, int, float, str)


def pack(value: Any, tensors: dict[str, Any], path: str = "state") -> Any:
    """Return a value as JSON can carry it; its tensors go into `tensors`, by the place where they were found.

    Raises `TypeError` naming the place of what cannot be kept.
    """
    if value is None or type(value) in _PLAIN:
        return value
    if isinstance(value, Mapping):
        return _pack_mapping(value, tensors, path)
    if isinstance(value, list):
        return [pack(each, tensors, f"{path}[{at}]") for at, each in enumerate(value)]
    if isinstance(value, tuple):
        return {"$tuple": [pack(each, tensors, f"{path}[{at}]") for at, each in enumerate(value)]}
    if isinstance(value, set | frozenset):
        return {"$set": [pack(each, tensors, path) for each in sorted(value, key=repr)]}
    if isinstance(value, bytes | bytearray):
        return {"$bytes": base64.b64encode(value).decode()}
    for plain in _PLAIN:
        if isinstance(value, plain):  # an enumeration's member
            return plain(value)
    return _pack_numeric(value, tensors, path)


def _pack_mapping(value: Mapping[Any, Any], tensors: dict[str, Any], path: str) -> Any:
    if all(type(key) is str and not key.startswith("$") for key in value):
        return {key: pack(each, tensors, f"{path}.{key}") for key, each in value.items()}
    return {"$map": [[pack(key, tensors, path), pack(each, tensors, f"{path}.{key}")] for key, each in value.items()]}


def _pack_numeric(value: Any, tensors: dict[str, Any], path: str) -> Any:
    home = type(value).__module__.partition(".")[0]
    if home == "torch" and hasattr(value, "detach"):
        name = path if path not in tensors else f"{path}#{len(tensors)}"  # as of `{"a.b": …, "a": {"b": …}}`
        tensors[name] = value
        return {"$tensor": name}
    if home == "torch" and type(value).__name__ in ("device", "dtype"):
        return {f"${type(value).__name__}": str(value).removeprefix("torch.")}
    if home == "numpy" and hasattr(value, "tobytes") and not value.dtype.hasobject:
        data = base64.b64encode(value.tobytes()).decode()
        return {"$array": {"dtype": value.dtype.str, "shape": list(value.shape), "data": data}}
    raise TypeError(f"`{path}` cannot be kept in a checkpoint: it is a `{type(value).__name__}`")


def unpack(value: Any, tensors: Mapping[str, Any]) -> Any:
    """Return what `pack` was given; raise `ValueError` for what it cannot have made."""
    if isinstance(value, list):
        return [unpack(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    if len(value) == 1 and (key := next(iter(value))).startswith("$"):
        try:
            return _UNPACK[key](value[key], tensors)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"`{key}` is none: {error}") from None
    return {key: unpack(each, tensors) for key, each in value.items()}


def _unpack_array(value: Any, _: Mapping[str, Any]) -> Any:
    import numpy

    data = base64.b64decode(value["data"])
    return numpy.frombuffer(data, numpy.dtype(value["dtype"])).reshape(value["shape"]).copy()


def _unpack_dtype(value: Any, _: Mapping[str, Any]) -> Any:
    import torch

    found = getattr(torch, value)
    if not isinstance(found, torch.dtype):
        raise TypeError(value)
    return found


def _unpack_device(value: Any, _: Mapping[str, Any]) -> Any:
    import torch

    return torch.device(value)


_UNPACK: Mapping[str, Callable[[Any, Mapping[str, Any]], Any]] = {
    "$tuple": lambda value, tensors: tuple(unpack(each, tensors) for each in value),
    "$set": lambda value, tensors: {unpack(each, tensors) for each in value},
    "$map": lambda value, tensors: {unpack(key, tensors): unpack(each, tensors) for key, each in value},
    "$bytes": lambda value, _: base64.b64decode(value),
    "$tensor": lambda value, tensors: tensors[value],
    "$array": _unpack_array,
    "$dtype": _unpack_dtype,
    "$device": _unpack_device,
}
