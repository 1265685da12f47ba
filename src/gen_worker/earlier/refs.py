"""Ids of models as the earlier API writes them, `cozy:org/repo:tag` and `hf:org/repo@revision`, as bindings."""

from gen_worker.api.bindings import HF, Binding, Hub
from gen_worker.models.refs import RefError, parse_ref
from gen_worker.models.wanted import Wanted


def canonical(text: str) -> str:
    """Return the one spelling of a ref: with its provider, and with a tag or digest on the platform's hub.

    Raises ValueError for what is no ref of the hub or of Hugging Face.
    """
    wanted = _parsed(text)
    if wanted.provider == "hf":
        return f"hf:{wanted.ref}"
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


def _parsed(text: str) -> Wanted:
    wanted = parse_ref(text, tag="latest")
    if wanted.provider not in ("hf", "tensorhub"):
        raise RefError(f"`{text}` is no ref of the platform's hub or of Hugging Face")
    return wanted
