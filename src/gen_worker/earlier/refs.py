"""Ids of models as the earlier API writes them, `cozy:org/repo:tag` and `hf:org/repo@revision`, as bindings."""

from collections.abc import Collection, Mapping

from gen_worker.api.bindings import HF, Binding, Hub
from gen_worker.api.overrides import OverrideError
from gen_worker.models.refs import RefError, parse_ref
from gen_worker.models.wanted import Wanted


def canonical(text: str) -> str:
    """Return the one spelling of a ref: with its provider, and with a tag or digest on the platform's hub.

    Raises ValueError for what is no ref of the hub or of Hugging Face.
    """
    return _spelling(_parsed(text))


def _spelling(wanted: Wanted) -> str:
    if wanted.provider != "tensorhub":
        return f"{wanted.provider}:{wanted.ref}"
    at = f"@{wanted.digest}" if wanted.digest else f":{wanted.tag}"
    return f"cozy:{wanted.repo}{at}{f'#{wanted.flavor}' if wanted.flavor else ''}"


def spelt(text: str) -> str:
    """Return the canonical spelling of a ref, and any other id as it is."""
    try:
        return canonical(text)
    except ValueError:
        return text


def binding_of(model_id: str) -> Binding | None:
    """Return where the files of a model come from; None for an id that is no ref, whose files others know."""
    try:
        wanted = _parsed(model_id)
    except ValueError:
        return None
    if wanted.provider == "hf":
        return HF(wanted.repo, revision=wanted.revision)
    return Hub(wanted.repo, tag=wanted.tag, flavor=wanted.flavor, digest=wanted.digest)


def refuse_others(allowed: Collection[str], chosen: Mapping[str, "str | Binding"]) -> None:
    """Raise `OverrideError` where one of the models, by where they go, is none of a deployment's; without any, all are.

    A binding is meant by its id.
    """
    known = {spelt(each) for each in allowed}
    for place, model in chosen.items() if known else ():
        model_id = model if isinstance(model, str) else _spelling(model.wanted)
        if spelt(model_id) not in known:
            raise OverrideError(f"the model `{model_id}` for `{place}` is not one of this deployment's")


def _parsed(text: str) -> Wanted:
    wanted = parse_ref(text, tag="latest")
    if wanted.provider not in ("hf", "tensorhub"):
        raise RefError(f"`{text}` is no ref of the platform's hub or of Hugging Face")
    return wanted
