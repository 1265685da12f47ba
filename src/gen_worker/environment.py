"""Which of the worker's environment variables the author's code may see: all that are not the worker's own."""

_RESERVED = ("WORKER_", "HF_", "TENSORHUB_", "ORCHESTRATOR_", "TRAINER_", "RUNPOD_", "GEN_WORKER_", "COZY_", "CIVITAI_")
_SECRETS = frozenset(
    ("AUTH_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HUGGINGFACE_TOKEN", "HUGGINGFACEHUB_API_TOKEN", "SCHEDULER_JWKS_URL")
)
_ALLOWED = frozenset(("HF_HOME", "HF_HUB_OFFLINE", "GEN_WORKER_LOCAL_DEVICE"))


def passes(name: str) -> bool:
    """Whether a variable of the worker's environment reaches the author's code."""
    return name in _ALLOWED or not (name in _SECRETS or name.startswith(_RESERVED))
