"""Which models a run requires, and the wait until they are here. Pure."""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

import msgspec

from gen_worker.models.refs import RefError, parse_ref
from gen_worker.wire.earlier import DeploymentModelConfig
from gen_worker.wire.survey import SurveyedFunction
from gen_worker_supervisor.earlier_link.registration import model_id

ARTIFACTS = "WORKER_MODEL_ARTIFACTS_JSON"


class NotRequirableError(Exception):
    """A run requires what is no model, or none of its deployment's."""


class Missing(NamedTuple):
    """Why a required model cannot be had."""

    text: str
    retryable: bool


class Wish:
    """Models that somebody waits for; `then` is called once: when all are here, or with why one cannot be had."""

    def __init__(self, names: Collection[str], then: Callable[[Missing | None], None]) -> None:
        self.names = set(names)
        self.is_over = False
        self._then = then

    def came(self, name: str) -> None:
        """A model is here."""
        self.names.discard(name)
        if not self.names:
            self.end(None)

    def end(self, missing: Missing | None) -> None:
        """Tell who waits, unless that has given up."""
        if not self.is_over:
            self.is_over = True
            self._then(missing)

    def give_up(self) -> None:
        """Nobody waits any more."""
        self.is_over = True


def described_models(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the models whose files children find where the environment says that they are."""
    try:
        return frozenset(msgspec.json.decode(environment.get(ARTIFACTS) or "{}", type=dict[str, msgspec.Raw]))
    except msgspec.MsgspecError:  # children say what is wrong with it
        return frozenset()


def canonical(text: str) -> str:
    """Return the one spelling of a model's id, in which no tag is `latest`; raise `RefError` for what is none."""
    return model_id(parse_ref(text))


def required(
    names: Sequence[str], function: SurveyedFunction, config: DeploymentModelConfig, described: Collection[str]
) -> tuple[str, ...]:
    """Return the ids of the models that a run requires, which it names by keys or ids.

    Leaves out those that are `described` to the child, as their files lie where that says. Raises `NotRequirableError`.
    """
    keys = {**function.model_keys, **config.model_id_by_key}
    allowed = {_spelt(each) for each in config.supported_model_ids}
    found: dict[str, None] = {}
    for name in names:
        wanted = keys.get(name, name)
        if wanted in described:
            continue
        if allowed and _spelt(wanted) not in allowed:
            raise NotRequirableError(
                f"the run requires `{_shown(wanted)}`, which is not one of this deployment's models"
            )
        try:
            found[canonical(wanted)] = None
        except RefError as error:
            raise NotRequirableError(f"the run requires `{_shown(wanted)}`, which is no model: {error}") from None
    return tuple(found)


def _spelt(text: str) -> str:
    try:
        return canonical(text)
    except RefError:
        return text


def _shown(text: str) -> str:
    return text[:200]
