"""Everything that a fetcher goes by: where things are, what it may do, what it shows to whom."""

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from gen_worker.models.selection import SelectionOptions
from gen_worker.settings import Secret, Settings

HUGGING_FACE = "https://huggingface.co"
_TOKENS = ("hf_token", "civitai_token", "modelscope_token", "cozy_hub_token")


class FetchConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that a fetcher goes by."""

    root: str
    """The cache: what is not in Hugging Face's layout lies here, and the ledger of all."""

    hf_cache: str
    """The folder in Hugging Face's layout, as `<HF_HOME>/hub`."""

    lower: tuple[str, ...] = ()
    """Roots of caches that are only read, looked into before anything is fetched."""

    debuggable: bool = False
    """Whether debuggers of the same user may look into the fetcher."""

    offline: bool = False
    hf_endpoint: str = HUGGING_FACE
    hf_token: str = ""
    civitai_endpoint: str = "https://civitai.com"
    civitai_token: str = ""
    modelscope_endpoint: str = "https://modelscope.cn"
    modelscope_token: str = ""
    cozy_hub_url: str = ""
    cozy_hub_token: str = ""
    ca_bundle: str = ""
    """A PEM file of further authorities."""

    proxies: Mapping[str, str] = {}
    """`http`, `https` and `no` as the environment has them."""

    models_at_once: int = 2
    files_at_once: int = 4
    stall_timeout_s: float = 180.0
    """A model without a byte for so long fails as `stalled`; 0: never."""

    max_seconds: float = 0.0
    """The longest that one model may take; 0: no limit."""

    input_tries: int = 3
    """How often a file that a payload names is tried."""

    input_cache: str = ""
    """Where files of a file API, which payloads name, are kept for later runs; none: nowhere."""

    input_cache_bytes: int = 0
    """How much of them is kept; 0: nothing."""

    cache_bytes: int = 0
    """What the cache may hold before the least recently used is evicted; 0: as much as the disk has room for."""

    free_bytes: int = 1 << 30
    """What a download leaves free on the disk."""

    max_upload_bytes: int = 0
    """The longest file that a job may store; 0: no limit."""

    selection: SelectionOptions = SelectionOptions()

    def __repr__(self) -> str:
        """Leave out what nobody may see: tokens, and what proxies are shown."""
        hidden = {name: Secret(getattr(self, name)) for name in _TOKENS}
        shown = {**msgspec.structs.asdict(self), **hidden, "proxies": sorted(self.proxies)}
        return f"FetchConfig({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    @classmethod
    def of(cls, settings: Settings, *, offline: bool = False, env: Mapping[str, str] = os.environ) -> "FetchConfig":
        """Return what the settings say."""
        return cls(
            root=str(settings.cache_dir),
            hf_cache=str(Path(settings.hf_home) / "hub" if settings.hf_home else settings.cache_dir / "hub"),
            lower=settings.lower_caches,
            offline=offline or settings.offline,
            hf_endpoint=settings.hf_endpoint,
            hf_token=str(settings.hf_token),
            civitai_endpoint=settings.civitai_endpoint,
            civitai_token=str(settings.civitai_token),
            modelscope_endpoint=settings.modelscope_endpoint,
            modelscope_token=str(settings.modelscope_token),
            cozy_hub_url=settings.cozy_hub_url,
            cozy_hub_token=str(settings.cozy_hub_token),
            ca_bundle=settings.ca_bundle,
            proxies={kind: proxy for kind in ("http", "https", "no") if (proxy := _proxy(kind, env))},
            models_at_once=settings.max_concurrent_downloads,
            stall_timeout_s=settings.download_stall_timeout_s,
            max_seconds=settings.download_max_seconds,
            input_tries=settings.input_tries,
            input_cache=str(settings.input_cache_dir or settings.runs_dir / "cache"),
            input_cache_bytes=settings.input_cache_bytes,
            cache_bytes=settings.cache_bytes,
            max_upload_bytes=settings.max_upload_bytes,
            debuggable=settings.debuggable,
            selection=SelectionOptions(
                components=settings.hf_components,
                optional_components=settings.hf_optional_components,
                precisions=settings.hf_weight_precisions,
                root_json=settings.hf_allow_root_json,
                full_repo=settings.hf_full_repo_download,
                allow_pickle=settings.allow_pickle,
                max_repo_bytes=max(0, settings.hf_max_repo_bytes),
            ),
        )


def _proxy(kind: str, env: Mapping[str, str]) -> str:
    return env.get(f"{kind}_proxy") or env.get(f"{kind.upper()}_PROXY") or ""
