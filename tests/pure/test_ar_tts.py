"""What is known of models that speak."""

import pytest

from gen_worker.runtimes.ar_tts import ARTTSModelSpec, lookup


@pytest.mark.parametrize(
    ("name", "facts"),
    [
        ("chatterbox", ("LlamaChatterboxModel", 24000, 8192, True)),
        ("ChatterBox", ("LlamaChatterboxModel", 24000, 8192, True)),
        ("MusicGen", ("", 32000, 2048, False)),
    ],
)
def test_a_known_model_is_found_in_whatever_case(name: str, facts: tuple[str, int, int, bool]) -> None:
    spec = lookup(name)
    assert isinstance(spec, ARTTSModelSpec)
    assert (spec.vllm_arch, spec.sample_rate_hz, spec.audio_token_vocab_size, spec.supports_streaming) == facts


def test_an_unknown_model_is_none() -> None:
    assert lookup("parrot") is None
