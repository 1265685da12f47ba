"""Valid repositories of diffusers and transformers, small and with random weights, made in place: no network."""

from pathlib import Path
from typing import Any, Literal, TypeAlias

Architecture: TypeAlias = Literal["sd15", "sdxl", "flux", "text"]
DType: TypeAlias = Literal["fp16", "bf16", "fp32"]

_LETTERS = 77  # what CLIP's tokenizers take at most


def make_tiny(
    architecture: Architecture,
    folder: Path,
    *,
    width: int = 32,
    dtype: DType = "bf16",
    variant: str = "",
    seed: int = 0,
    shards: int = 1,
) -> Path:
    """Write a repository that `from_pretrained` loads, and return its folder.

    Its images are 64 pixels wide, and mean nothing, as does the text of a `text`, a causal language model to whose
    tokenizer every byte is a token; the same arguments make the same weights. `width`, a multiple of 32, scales the
    part that denoises, or speaks: at 32 a repository has a few megabytes, at 640 in bf16 more than one gigabyte, a
    `text` much less. fp16 is slow on a CPU. `variant` goes into the names of the weights, as `fp16`; `shards` is the
    least number of files that hold the weights of that part. Needs torch and transformers, and diffusers for images.
    """
    if width <= 0 or width % 32:
        raise ValueError(f"`width` is a multiple of 32, got {width}")
    import torch

    dtypes = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if architecture == "text":
            _speaker(width).to(dtypes[dtype]).save_pretrained(
                folder, variant=variant or None, **_sharding(width, shards)
            )
            _byte_tokenizer().save_pretrained(folder)
            return folder
        pipeline = _MAKERS[architecture](width)
    for part in pipeline.components.values():
        if isinstance(part, torch.nn.Module):
            torch.nn.Module.to(part, dtypes[dtype])  # diffusers' own `to` logs a warning at each
    pipeline.save_pretrained(folder, safe_serialization=True, variant=variant or None)
    if shards > 1:
        _shard(pipeline, folder, shards, variant)
    return folder


def _shard(pipeline: Any, folder: Path, shards: int, variant: str) -> None:
    """Write the weights of the part that denoises anew, in several files."""
    name = "transformer" if hasattr(pipeline, "transformer") else "unet"
    for whole in (folder / name).glob("*.safetensors"):
        whole.unlink()
    part = getattr(pipeline, name)
    size = sum(each.numel() * each.element_size() for each in part.state_dict().values())
    largest = max(each.numel() * each.element_size() for each in part.state_dict().values())
    part.save_pretrained(folder / name, max_shard_size=max(largest, size // shards), variant=variant or None)


def _sharding(width: int, shards: int) -> dict[str, Any]:
    return {} if shards == 1 else {"max_shard_size": 64 * width * width // shards}


# --- the architectures ------------------------------------------------------------------------------------------------


def _sd15(width: int) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(projected=False),
        tokenizer=_clip_tokenizer(),
        unet=_unet(width),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl(width: int) -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    unet = _unet(
        width,
        cross_attention_dim=64,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=8 * 6 + 32,  # six sizes and the projected prompt
        transformer_layers_per_block=(1, 2),
        use_linear_projection=True,
    )
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(projected=False),
        text_encoder_2=_clip(projected=True),
        tokenizer=_clip_tokenizer(),
        tokenizer_2=_clip_tokenizer(),
        unet=unet,
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
    )


def _flux(width: int) -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=width // 16,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=_vae(shift_factor=0.0609, scaling_factor=0.3611, use_quant_conv=False, use_post_quant_conv=False),
        text_encoder=_clip(projected=False),
        tokenizer=_clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=_t5_tokenizer(),
        transformer=transformer,
    )


_MAKERS = {"sd15": _sd15, "sdxl": _sdxl, "flux": _flux}


def _speaker(width: int) -> Any:
    """Return a causal language model of two layers, which says letters and spaces and never ends by itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = _byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=2048,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config).eval()
    said = {tokenizer.convert_tokens_to_ids(letter) for letter in "abcdefghijklmnopqrstuvwxyzĠ"}  # Ġ writes a space
    model.generation_config.suppress_tokens = [each for each in range(len(tokenizer)) if each not in said]
    return model


# --- their parts ------------------------------------------------------------------------------------------------------


def _unet(width: int, **more: Any) -> Any:
    from diffusers import UNet2DConditionModel

    options: dict[str, Any] = {"cross_attention_dim": 32, "attention_head_dim": (2, 4), **more}
    return UNet2DConditionModel(
        sample_size=32,
        in_channels=4,
        out_channels=4,
        block_out_channels=(width, 2 * width),
        layers_per_block=2,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        **options,
    )


def _vae(**more: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        sample_size=64,
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        force_upcast=False,
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        **more,
    )


def _clip(*, projected: bool) -> Any:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    tokenizer = _clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=37,
        num_attention_heads=4,
        num_hidden_layers=3,
        max_position_embeddings=_LETTERS,
        projection_dim=32,
        hidden_act="gelu",
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval()


def _t5() -> Any:
    from transformers import T5Config, T5EncoderModel

    config = T5Config(
        vocab_size=len(_t5_tokenizer()),
        d_model=32,
        d_kv=8,
        d_ff=37,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
    )
    return T5EncoderModel(config).eval()


def _clip_tokenizer() -> Any:
    """Return a tokenizer to which every byte is a word."""
    from transformers import CLIPTokenizer

    letters = _byte_letters()
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=_LETTERS)


def _byte_tokenizer() -> Any:
    """Return a tokenizer to which every byte is a token."""
    from transformers import GPT2Tokenizer

    vocabulary = {word: number for number, word in enumerate([*_byte_letters(), "<|endoftext|>"])}
    return GPT2Tokenizer(vocab=vocabulary, merges=[], model_max_length=2048)


def _t5_tokenizer() -> Any:
    """Return a tokenizer of some words and all letters."""
    from transformers import T5Tokenizer

    words = ("", "a", "an", "the", "of", "in", "on", "with", "cat", "dog", "red", "blue", "painting", "photo")
    pieces = ["<pad>", "</s>", "<unk>", *(f"▁{word}" for word in words), *map(chr, range(33, 127))]
    return T5Tokenizer(vocab=[(piece, -float(at)) for at, piece in enumerate(pieces)], extra_ids=0)


def _byte_letters() -> list[str]:
    """Return the letters that byte-level tokenizers write the 256 bytes with, as GPT-2's `bytes_to_unicode` has it."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    return [chr(byte) for byte in shown] + [chr(256 + at) for at in range(256 - len(shown))]
