"""Refs of models as people and orchestrators write them. Pure; the provider is said beside the text or before it."""

import re
from typing import get_args

from gen_worker.models.wanted import Provider, Wanted

_NAME = r"[A-Za-z0-9][\w.-]*"
_REPO = rf"(?P<repo>{_NAME}/{_NAME})"
_REVISION = r"(@(?P<revision>[A-Za-z0-9][\w./-]*))?"
_FLAVOR = rf"(#(?P<flavor>{_NAME}))?"
_VERSION_ID = r"(?:versions/|(?:modelVersionId|model_version_id|version_id)=)"
_GRAMMARS: dict[Provider, tuple[str, str]] = {
    "hf": (_REPO + _REVISION + _FLAVOR, "`owner/name`, `owner/name@revision`, `owner/name#flavor`"),
    "tensorhub": (
        rf"{_REPO}(:(?P<tag>{_NAME}))?(@(?P<digest>(?:sha256|blake3):[0-9A-Fa-f]+))?{_FLAVOR}",
        "`owner/name`, `owner/name:tag`, `owner/name@blake3:<hex>` or `owner/name@sha256:<hex>`, each with `#flavor`",
    ),
    "civitai": (r"(?P<repo>[\w-]+|versions/[0-9]+)(@(?P<version>[0-9]+))?", "the id of a model, `id` or `id@version`"),
    "modelscope": (_REPO + _REVISION, "`owner/name` or `owner/name@revision`"),
}
PREFIXES: dict[str, Provider] = {"hf:": "hf", "cozy:": "tensorhub", "civitai:": "civitai", "modelscope:": "modelscope"}
_ALIASES = {"huggingface": "hf:", "tensorhub": "cozy:", "hub": "cozy:"}
_PAGES = r"(?P<site>huggingface\.co|hf\.co|modelscope\.(?:cn|com)/models)"


class RefError(ValueError):
    """A text is no ref; the message says what would be one."""


def parse_ref(text: str, provider: str = "", *, tag: str = "latest") -> Wanted:
    """Return the model that a text names; raise `RefError` for one that names none.

    A prefix, as in `hf:owner/name` or `cozy:owner/name`, says the provider, and wins over `provider`; with neither it
    is the platform's hub. `tag` is what a ref of that hub means that has no tag and no digest.
    """
    chosen, bare = _provider(text.strip(), provider.strip())
    if chosen == "tensorhub" and "#" in bare:
        bare = bare.partition("?")[0]
    grammar, like = _GRAMMARS[chosen]
    found = re.fullmatch(grammar, _of_civitai(bare) if chosen == "civitai" else bare, re.ASCII)
    if found is None or ".." in bare:
        raise RefError(f"{_fault(bare, chosen)}; write {like}")
    given = {name: value for name, value in found.groupdict().items() if value is not None}
    digest = given.get("digest", "").lower()
    return Wanted(
        chosen,
        given["repo"],
        revision=given.get("revision", ""),
        tag=given.get("tag", tag) if chosen == "tensorhub" and not digest else "",
        digest=digest,
        flavor=given.get("flavor", ""),
        version=given.get("version", ""),
    )


def valid_repo(wanted: Wanted) -> bool:
    """Whether the repository of a wish is one by its provider's grammar, so that it may become part of a URL."""
    pattern = r"[\w-]+|versions/[0-9]+" if wanted.provider == "civitai" else f"{_NAME}/{_NAME}"
    return ".." not in wanted.repo and re.fullmatch(pattern, wanted.repo, re.ASCII) is not None


def meant_by(text: str) -> str:
    """Return the ref, with its prefix, of what people paste: the address of a page, or `huggingface:owner/name`.

    Empty for anything else.
    """
    name, colon, rest = text.strip().partition(":")
    if colon and name.lower() in _ALIASES:
        return f"{_ALIASES[name.lower()]}{rest}"
    found = re.match(rf"(?:https?://)?(?:www\.)?{_PAGES}/{_REPO}(?:[/?#]|$)", text.strip(), re.ASCII)
    if found:
        return f"{'modelscope:' if 'modelscope' in found['site'] else 'hf:'}{found['repo']}"
    if re.match(r"(?:https?://)?(?:www\.)?civitai\.com/models/", text.strip()):
        return f"civitai:{_of_civitai('https://' + text.strip().rpartition('://')[2])}"
    return ""


def version_id(text: str) -> str:
    """Return the id of a Civitai model version from digits, `versions/<id>` or an address with `modelVersionId=<id>`.

    Empty when it names none.
    """
    found = re.fullmatch(r"([0-9]+)", text) or re.search(_VERSION_ID + r"([0-9]+)", text, re.ASCII)
    return found[1] if found else ""


def _provider(text: str, provider: str) -> tuple[Provider, str]:
    for prefix, named in PREFIXES.items():
        if text.startswith(prefix):
            while text.startswith(prefix):
                text = text[len(prefix) :].strip()
            return named, text
    for known in get_args(Provider):
        if provider in ("", known):
            return ("tensorhub" if not provider else known), text
    raise RefError(f"no provider `{provider}`; there is: {', '.join(f'`{each}`' for each in get_args(Provider))}")


def _of_civitai(text: str) -> str:
    """Return `id@version` or `versions/<id>` for what Civitai's pages have in their addresses."""
    if re.fullmatch(r"[\w@-]*", text, re.ASCII):
        return text
    model, version = re.search(r"models/([0-9]+)", text, re.ASCII), version_id(text)
    if version:
        return f"{model[1]}@{version}" if model else f"versions/{version}"
    return model[1] if model and text.startswith("https://") else text


def _fault(text: str, provider: Provider) -> str:
    shown = f"`{text[:200]}`"
    if not text:
        return "the ref is empty"
    if text.endswith("#"):
        return f"the flavor of {shown} is empty"
    if provider == "tensorhub" and "@" in text:
        return f"the digest of {shown} is not `sha256:` or `blake3:` with hex digits"
    if provider != "civitai" and "/" not in text:
        return f"{shown} has no owner"
    told = "the platform's hub" if provider == "tensorhub" else provider
    return f"{shown} is no ref of {told}"
