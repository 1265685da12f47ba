"""What is known of autoregressive models of speech and music: which engine runs them, and what their tokens become."""

from typing import NamedTuple

__all__ = ["ARTTSModelSpec", "lookup"]


class ARTTSModelSpec(NamedTuple):
    """One kind of model that speaks in tokens of a codec."""

    model_class: str
    vllm_arch: str = ""
    """The architecture under which vLLM knows it; empty: it does not."""

    sglang_runner: str = ""
    """What runs it in SGLang; empty: nothing does."""

    audio_codec_decoder: str = ""
    """What turns its tokens into samples."""

    sample_rate_hz: int = 24000
    audio_token_vocab_size: int = 0
    supports_streaming: bool = False
    notes: str = ""


_SPECS = {
    "chatterbox": ARTTSModelSpec(
        model_class="chatterbox",
        vllm_arch="LlamaChatterboxModel",
        audio_codec_decoder="s3gen",
        sample_rate_hz=24000,
        audio_token_vocab_size=8192,
        supports_streaming=True,
        notes="a Llama speaks the tokens, S3Gen makes sound of them",
    ),
    "musicgen": ARTTSModelSpec(
        model_class="musicgen",
        audio_codec_decoder="encodec",
        sample_rate_hz=32000,
        audio_token_vocab_size=2048,
        supports_streaming=False,
        notes="several codebooks at once, so sound comes when all of it is made",
    ),
}


def lookup(name: str) -> ARTTSModelSpec | None:
    """Return what is known of a model by its name, in whatever case; None for one that is not known."""
    return _SPECS.get(name.strip().lower())
