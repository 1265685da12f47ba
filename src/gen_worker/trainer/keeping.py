"""Everything of a training that decides how it goes on, found where plugins have it, to be put back bit for bit.

What is looked at: the models, the optimizer and the scheduler of the context, and what the plugin's state has as
attributes, or as keys where it is a dictionary. Of what has a state of its own that is kept; of optimizers all that
they optimize, too; of modules what is trained, the buffers, and what has changed since the beginning, as an average of
weights does. What is frozen is loaded again by the plugin.
"""

import random
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from gen_worker.trainer.contracts import StepContext


class UnfitCheckpointError(ValueError):
    """A checkpoint is of a training that is made otherwise."""


class Keeper:
    """Knows one training's parts from its first step on."""

    def __init__(self, ctx: StepContext, state: Any) -> None:
        self._ctx = ctx
        self._state = state
        self._versions = {id(tensor): _version(tensor) for _, tensor in self._tensors()}

    def keep(self) -> dict[str, Any]:
        """Return the states of all parts; tensors in it are those that the training goes on with."""
        states = {name: _state_of(part) for name, part in self._parts()}
        trained = self._optimized_ids()
        weights = {name: tensor for name, tensor in self._tensors() if self._is_kept(name, tensor, trained)}
        return {"parts": states, "weights": weights}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Put back what `keep` returned; raise `UnfitCheckpointError` where a part is missing or has another shape."""
        tensors, parts = dict(self._tensors()), dict(self._parts())
        for name, value in kept["weights"].items():
            _fill(name, tensors.get(name), value)
        for name, value in kept["parts"].items():
            if name not in parts:
                raise UnfitCheckpointError(
                    f"the checkpoint has `{name}`, this training has none: make it in `configure`"
                )
            _restore_part(parts[name], value)

    def put(self, weights: Mapping[str, Any]) -> tuple[str, int]:
        """Put weights into the one model that they are of; return its name, and how many that it trains are not there.

        Raises `UnfitCheckpointError` where they are of none, or of several.
        """
        modules = {name: each for name, each in _places(self._ctx, self._state) if _is_module(each)}
        states = {name: each.state_dict(keep_vars=True) for name, each in modules.items()}
        fitting = [name for name, state in states.items() if weights.keys() <= state.keys()]
        if len(fitting) != 1:
            raise UnfitCheckpointError(_unfit(weights, states, fitting))
        (name,) = fitting
        for key, value in weights.items():
            _fill(f"{name}/{key}", states[name][key], value)
        trained = {key for key, each in modules[name].named_parameters() if each.requires_grad}
        return name, len(trained - weights.keys())

    def _is_kept(self, name: str, tensor: Any, trained: set[int]) -> bool:
        if name.startswith(_OPTIMIZED) or "#" in name:
            return True
        if id(tensor) in trained:
            return False  # with its optimizer
        return bool(tensor.requires_grad) or self._versions.get(id(tensor)) != _version(tensor)

    def _parts(self) -> Iterator[tuple[str, Any]]:
        return ((name, each) for name, each in _places(self._ctx, self._state) if _has_state(each))

    def _optimized_ids(self) -> set[int]:
        return {id(tensor) for name, tensor in self._tensors() if name.startswith(_OPTIMIZED)}

    def _tensors(self) -> Iterator[tuple[str, Any]]:
        """Yield every tensor that may have to be kept: `optimized:` by its place, a module's buffers with a `#`."""
        for name, each in _places(self._ctx, self._state):
            if _is_optimizer(each):
                for at, group in enumerate(each.param_groups):
                    for index, param in enumerate(group["params"]):
                        yield f"{_OPTIMIZED}{name}/{at}/{index}", param
            elif _is_module(each):
                for param_name, param in each.named_parameters():
                    yield f"{name}/{param_name}", param
                for buffer_name, buffer in each.named_buffers():
                    yield f"{name}#{buffer_name}", buffer
            elif _is_trained_tensor(each):
                yield name, each


def _unfit(weights: Mapping[str, Any], states: Mapping[str, Mapping[str, Any]], fitting: list[str]) -> str:
    """Return why weights are not those of one model."""
    if fitting:
        return f"the weights fit several models: {', '.join(f'`{name}`' for name in fitting)}"
    if not states:
        return "there is no model for the weights: put it into `ctx.model_handles` in `configure`"
    nearest = max(states, key=lambda name: len(weights.keys() & states[name].keys()))
    odd = sorted(weights.keys() - states[nearest].keys())
    more = f", nor is what else they have, {len(odd) - 1} of it" if len(odd) > 1 else ""
    return f"the weights are of another model: `{odd[0]}` is not in `{nearest}`{more}"


_OPTIMIZED = "optimized:"


def _places(ctx: StepContext, state: Any) -> Iterator[tuple[str, Any]]:
    """Yield what may have a state by its name, each thing once."""
    seen: set[int] = set()
    for name, each in _named(ctx, state):
        if each is not None and id(each) not in seen:
            seen.add(id(each))
            yield name, each


def _named(ctx: StepContext, state: Any) -> Iterator[tuple[str, Any]]:
    yield "ctx.optimizer", ctx.optimizer
    yield "ctx.scheduler", ctx.scheduler
    for name, handle in ctx.model_handles.items():
        yield f"ctx.model_handles.{name}", handle
    if _has_state(state) or _is_module(state):
        yield "state", state
    elif isinstance(state, Mapping):
        yield from ((f"state.{key}", each) for key, each in state.items())
    elif hasattr(state, "__dict__"):
        yield from ((f"state.{key}", each) for key, each in vars(state).items())
    elif hasattr(type(state), "__slots__"):
        yield from ((f"state.{key}", getattr(state, key, None)) for key in type(state).__slots__)


def _torch() -> Any:
    return sys.modules.get("torch")


def _is_module(each: Any) -> bool:
    return _torch() is not None and isinstance(each, _torch().nn.Module)


def _is_trained_tensor(each: Any) -> bool:
    """Whether this is a parameter by itself; what else is a tensor may be kept by the plugin, or be of no use later."""
    return _torch() is not None and isinstance(each, _torch().Tensor) and each.requires_grad and each.is_leaf


def _is_optimizer(each: Any) -> bool:
    groups = getattr(each, "param_groups", None)
    return isinstance(groups, list) and all(isinstance(group, dict) and "params" in group for group in groups)


def _is_generator(each: Any) -> bool:
    torch = _torch()
    if torch is not None and isinstance(each, torch.Generator):
        return True
    return isinstance(each, random.Random) or hasattr(each, "bit_generator")


def _has_state(each: Any) -> bool:
    if isinstance(each, type) or _is_module(each):
        return False
    return _is_generator(each) or (
        callable(getattr(each, "state_dict", None)) and callable(getattr(each, "load_state_dict", None))
    )


def _state_of(part: Any) -> Any:
    if isinstance(part, random.Random):
        return part.getstate()
    if hasattr(part, "bit_generator"):
        return part.bit_generator.state
    return part.get_state() if _is_generator(part) else part.state_dict()


def _restore_part(part: Any, value: Any) -> None:
    if isinstance(part, random.Random):
        part.setstate(value)
    elif hasattr(part, "bit_generator"):
        part.bit_generator.state = value
    elif _is_generator(part):
        part.set_state(value)
    else:
        part.load_state_dict(value)


def _fill(name: str, tensor: Any, value: Any) -> None:
    shape = None if tensor is None else tuple(tensor.shape)
    if shape != tuple(value.shape):
        found = "this training has none" if shape is None else f"here it is {shape}"
        raise UnfitCheckpointError(f"the checkpoint has `{name}` of {tuple(value.shape)}, {found}")
    with _torch().no_grad():
        tensor.copy_(value)


def _version(tensor: Any) -> int:
    """Return how often a tensor was written to; of those that do not tell, always the same."""
    return -1 if tensor.is_inference() else int(tensor._version)
