"""Of a repository only what the model needs is taken, and never what runs code where it is loaded."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gen_worker.models.errors import ModelError
from gen_worker.models.selection import PICKLES, Asks, Known, Selection, SelectionOptions, select
from gen_worker.models.wanted import Wanted

GB = 1_000_000_000
WANTED = Wanted("hf", "acme/model")
OPTIONS = SelectionOptions()


def index(**components: Any) -> dict[str, Any]:
    return {"_class_name": "Pipeline", "_diffusers_version": "0.30.0", **components}


def shards(stem: str, count: int, *, suffix: str = ".safetensors", gb: float = 5) -> dict[str, int]:
    return {f"{stem}-{n:05}-of-{count:05}{suffix}": int(gb * GB) for n in range(1, count + 1)}


def weight_map(paths: Iterable[str]) -> dict[str, Any]:
    return {"weight_map": {f"w{n}": path.rpartition("/")[2] for n, path in enumerate(paths)}}


def named(paths: str) -> dict[str, int]:
    """Return small files by names with spaces between them; `folder/{a,b}` stands for two."""
    found: dict[str, int] = {}
    for word in paths.split():
        start, brace, rest = word.partition("{")
        names = rest.removesuffix("}").split(",") if brace else [""]
        found |= {start + name: 1000 for name in names}
    return found


class Repo:
    """A repository: sizes by path, the documents in it, and the precision of untagged weights."""

    def __init__(
        self, files: Mapping[str, int | None], documents: Mapping[str, Any] = {}, precisions: Mapping[str, str] = {}
    ) -> None:
        self.files = dict(files) | dict.fromkeys(documents, 500)
        self.documents = {path: json.dumps(document).encode() for path, document in documents.items()}
        self.precisions = precisions

    def select(self, options: SelectionOptions = OPTIONS, **changes: Any) -> Selection:
        known = Known()
        self.asked: set[str] = set()
        wanted = msgspec.structs.replace(WANTED, **changes)
        for _ in range(10):
            answer = select(self.files, wanted, options, known)
            if isinstance(answer, Selection):
                return answer
            assert isinstance(answer, Asks)
            new = {*answer.documents, *answer.precisions}
            assert new
            assert not new & self.asked, "nothing is asked for twice"
            assert new <= set(self.files)
            self.asked |= new
            known = Known(
                {**known.documents, **{path: self.documents.get(path, b"{}") for path in answer.documents}},
                {**known.precisions, **{path: self.precisions[path] for path in answer.precisions}},
            )
        raise AssertionError("no answer after ten rounds")

    def refused(self, options: SelectionOptions = OPTIONS, **changes: Any) -> ModelError:
        with pytest.raises(ModelError) as caught:
            self.select(options, **changes)
        assert caught.value.ref.startswith("acme/model") or caught.value.kind == "bad_manifest"
        assert "acme/model" in str(caught.value) or caught.value.kind == "bad_manifest"
        return caught.value


# --- repositories as they are found -----------------------------------------------------------------------------------

SD15 = Repo(
    {
        **named(
            ".gitattributes README.md feature_extractor/preprocessor_config.json scheduler/scheduler_config.json "
            "tokenizer/{merges.txt,special_tokens_map.json,tokenizer_config.json,vocab.json} "
            "safety_checker/config.json text_encoder/config.json unet/config.json vae/config.json v1-inference.yaml"
        ),
        **dict.fromkeys(("v1-5-pruned-emaonly.ckpt", "v1-5-pruned-emaonly.safetensors"), 4 * GB),
        **{
            f"safety_checker/{name}": GB
            for name in ("model.fp16.safetensors", "model.safetensors", "pytorch_model.bin")
        },
        **{f"text_encoder/{name}": GB for name in ("model.fp16.safetensors", "model.safetensors", "pytorch_model.bin")},
        **{
            f"{folder}/diffusion_pytorch_model{tag}": GB
            for folder in ("unet", "vae")
            for tag in (".fp16.safetensors", ".safetensors", ".bin", ".fp16.bin")
        },
        "unet/diffusion_pytorch_model.non_ema.safetensors": 3 * GB,
        "unet/diffusion_pytorch_model.non_ema.bin": 3 * GB,
    },
    {
        "model_index.json": index(
            feature_extractor=["transformers", "CLIPImageProcessor"],
            safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"],
            requires_safety_checker=True,
            image_encoder=[None, None],
            scheduler=["diffusers", "PNDMScheduler"],
            text_encoder=["transformers", "CLIPTextModel"],
            tokenizer=["transformers", "CLIPTokenizer"],
            unet=["diffusers", "UNet2DConditionModel"],
            vae=["diffusers", "AutoencoderKL"],
        )
    },
)
SD15_FILES = {
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.fp16.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/special_tokens_map.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
}


def repo(of: Repo, more: Mapping[str, int | None] = {}, *, without: Iterable[str] = (), **changes: Any) -> Repo:
    """Return a repository like another, with more files and without some."""
    gone = set(without)
    files = {path: size for path, size in {**of.files, **more}.items() if path not in gone}
    documents = {path: json.loads(document) for path, document in of.documents.items() if path not in gone}
    documents |= changes.get("documents", {})
    return Repo(files, documents, {**of.precisions, **changes.get("precisions", {})})


def test_of_sd15_the_tagged_halves_of_its_components_are_taken() -> None:
    hub = repo(SD15)
    selection = hub.select()
    assert set(selection.files) == SD15_FILES
    assert selection.files == tuple(sorted(selection.files))
    assert selection.notes == ()
    assert hub.asked == {"model_index.json"}, "what has a tag needs no header"


def test_of_sd15_the_full_precision_is_taken_when_it_is_asked_for() -> None:
    folders = ("text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model")
    plain = {f"{name}.safetensors" for name in folders}
    hub = repo(SD15, precisions=dict.fromkeys(plain, "fp32"))
    selection = hub.select(dtype="fp32")
    assert plain <= set(selection.files)
    assert not any("fp16" in path for path in selection.files)
    assert selection.notes == (), "it was asked for"


def test_optional_components_come_when_they_are_asked_for() -> None:
    files = set(repo(SD15).select(SelectionOptions(optional_components=True)).files)
    assert files - SD15_FILES == {
        "feature_extractor/preprocessor_config.json",
        "safety_checker/config.json",
        "safety_checker/model.fp16.safetensors",
    }


def test_named_components_replace_those_of_the_pipeline() -> None:
    files = set(repo(SD15).select(SelectionOptions(components=("vae", "scheduler"))).files)
    assert files == {path for path in SD15_FILES if path.startswith(("vae/", "scheduler/", "model_index"))}
    error = repo(SD15).refused(SelectionOptions(components=("vea",)))
    assert (error.kind, "`vea`" in str(error)) == ("file_not_found", True)


def test_json_files_in_the_root_come_when_they_are_asked_for() -> None:
    hub = repo(SD15, {"extra.json": 10})
    assert set(hub.select(SelectionOptions(root_json=True)).files) - SD15_FILES == {"extra.json"}


def test_a_whole_repository_comes_only_when_it_is_asked_for_and_without_its_pickles() -> None:
    selection = repo(SD15).select(SelectionOptions(full_repo=True))
    assert set(selection.files) == {path for path in SD15.files if not path.endswith(PICKLES)}
    assert "without `" in selection.notes[0]


SDXL = Repo(
    {
        **named(
            "README.md scheduler/scheduler_config.json tokenizer/{vocab.json,merges.txt} "
            "tokenizer_2/{vocab.json,merges.txt} text_encoder/config.json text_encoder_2/config.json "
            "unet/config.json vae/config.json vae_1_0/config.json vae_decoder/config.json "
            "text_encoder/openvino_model.xml"
        ),
        **{
            f"{folder}/{name}": GB
            for folder in ("text_encoder", "text_encoder_2")
            for name in (
                "model.safetensors",
                "model.fp16.safetensors",
                "model.onnx",
                "openvino_model.bin",
                "flax_model.msgpack",
            )
        },
        **{
            f"{folder}/{name}.safetensors": 2 * GB
            for folder in ("unet", "vae")
            for name in ("diffusion_pytorch_model", "diffusion_pytorch_model.fp16")
        },
        "vae_1_0/diffusion_pytorch_model.safetensors": GB,
        "vae_decoder/model.onnx": GB,
        "sd_xl_base_1.0.safetensors": 7 * GB,
        "sd_xl_base_1.0_0.9vae.safetensors": 7 * GB,
        "sd_xl_offset_example-lora_1.0.safetensors": GB // 20,
    },
    {
        "model_index.json": index(
            force_zeros_for_empty_prompt=True,
            add_watermarker=None,
            scheduler=["diffusers", "EulerDiscreteScheduler"],
            text_encoder=["transformers", "CLIPTextModel"],
            text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
            tokenizer=["transformers", "CLIPTokenizer"],
            tokenizer_2=["transformers", "CLIPTokenizer"],
            unet=["diffusers", "UNet2DConditionModel"],
            vae=["diffusers", "AutoencoderKL"],
        )
    },
)


def test_of_sdxl_neither_exports_nor_single_files_nor_other_vaes_are_taken() -> None:
    files = repo(SDXL).select().files
    assert [path for path in files if path.endswith(".safetensors")] == [
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    assert not any(path.endswith((".onnx", ".xml", ".bin", ".msgpack", ".md")) for path in files)
    assert {"tokenizer_2/merges.txt", "model_index.json", "text_encoder_2/config.json"} <= set(files)


_TRANSFORMER = shards("transformer/diffusion_pytorch_model", 3, gb=8)
_T5 = shards("text_encoder_2/model", 2)
FLUX = Repo(
    {
        **named(
            "LICENSE.md dev_grid.jpg scheduler/scheduler_config.json text_encoder/config.json "
            "text_encoder_2/config.json tokenizer/vocab.json tokenizer_2/{spiece.model,tokenizer.json} "
            "transformer/config.json vae/config.json"
        ),
        "ae.safetensors": GB // 3,
        "flux1-dev.safetensors": 24 * GB,
        "text_encoder/model.safetensors": GB // 4,
        "vae/diffusion_pytorch_model.safetensors": GB // 6,
        **_TRANSFORMER,
        **_T5,
    },
    {
        "model_index.json": index(
            scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
            text_encoder=["transformers", "CLIPTextModel"],
            text_encoder_2=["transformers", "T5EncoderModel"],
            tokenizer=["transformers", "CLIPTokenizer"],
            tokenizer_2=["transformers", "T5TokenizerFast"],
            transformer=["diffusers", "FluxTransformer2DModel"],
            vae=["diffusers", "AutoencoderKL"],
        ),
        "transformer/diffusion_pytorch_model.safetensors.index.json": weight_map(_TRANSFORMER),
        "text_encoder_2/model.safetensors.index.json": weight_map(_T5),
    },
    dict.fromkeys(
        (
            "text_encoder/model.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
            "transformer/diffusion_pytorch_model-00001-of-00003.safetensors",
            "text_encoder_2/model-00001-of-00002.safetensors",
        ),
        "bf16",
    ),
)


def test_of_flux_the_untagged_shards_are_taken_with_their_indexes() -> None:
    hub = repo(FLUX)
    selection = hub.select()
    weights = {path for path in selection.files if path.endswith((".safetensors", ".index.json"))}
    assert weights == {
        *_TRANSFORMER,
        *_T5,
        "transformer/diffusion_pytorch_model.safetensors.index.json",
        "text_encoder_2/model.safetensors.index.json",
        "text_encoder/model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    }
    assert "tokenizer_2/spiece.model" in selection.files
    assert selection.notes == ()


def test_what_has_to_be_looked_into_is_asked_for_at_once() -> None:
    answer = select(FLUX.files, WANTED, OPTIONS, Known({"model_index.json": FLUX.documents["model_index.json"]}))
    assert isinstance(answer, Asks)
    assert set(answer.precisions) == set(FLUX.precisions)


def test_a_shard_that_is_missing_is_told_with_its_name() -> None:
    gone = "transformer/diffusion_pytorch_model-00002-of-00003.safetensors"
    error = repo(FLUX, without=[gone]).refused()
    assert (error.kind, error.file) == ("file_not_found", gone)
    assert "transformer/diffusion_pytorch_model.safetensors.index.json" in str(error)


def test_only_the_shards_that_the_index_names_are_taken() -> None:
    stray = "transformer/diffusion_pytorch_model-00001-of-00009.safetensors"
    hub = repo(FLUX, {stray: GB}, precisions={stray: "bf16"})
    assert hub.select().files == repo(FLUX).select().files


@pytest.mark.parametrize("shard", ["../../evil.safetensors", "/etc/passwd", "a\\b"])
def test_an_index_that_names_a_file_elsewhere_is_refused(shard: str) -> None:
    name = "transformer/diffusion_pytorch_model.safetensors.index.json"
    assert repo(FLUX, documents={name: {"weight_map": {"w": shard}}}).refused().kind == "bad_manifest"


@pytest.mark.parametrize("document", [{}, {"weight_map": {}}, {"weight_map": {"w": 1}}, {"weight_map": [1]}])
def test_an_index_without_shards_is_refused(document: Any) -> None:
    name = "transformer/diffusion_pytorch_model.safetensors.index.json"
    error = repo(FLUX, documents={name: document}).refused()
    assert (error.kind, error.file) == ("bad_manifest", name)


_SD3_T5 = shards("text_encoder_3/model", 2)
_SD3_T5_HALF = shards("text_encoder_3/model.fp16", 2, gb=2)
SD3 = Repo(
    {
        **named(
            "text_encoder/config.json text_encoder_2/config.json text_encoder_3/config.json transformer/config.json "
            "tokenizer_3/{spiece.model,tokenizer.json} scheduler/scheduler_config.json vae/config.json"
        ),
        **{
            f"{folder}/{name}.safetensors": GB
            for folder in ("text_encoder", "text_encoder_2")
            for name in ("model", "model.fp16")
        },
        "transformer/diffusion_pytorch_model.safetensors": 4 * GB,
        "vae/diffusion_pytorch_model.safetensors": GB,
        "sd3_medium.safetensors": 4 * GB,
        "sd3_medium_incl_clips_t5xxlfp8.safetensors": 10 * GB,
        "text_encoders/clip_g.safetensors": GB,
        **_SD3_T5,
        **_SD3_T5_HALF,
    },
    {
        "model_index.json": index(
            scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"],
            text_encoder=["transformers", "CLIPTextModelWithProjection"],
            text_encoder_2=["transformers", "CLIPTextModelWithProjection"],
            text_encoder_3=["transformers", "T5EncoderModel"],
            tokenizer_3=["transformers", "T5TokenizerFast"],
            transformer=["diffusers", "SD3Transformer2DModel"],
            vae=["diffusers", "AutoencoderKL"],
        ),
        "text_encoder_3/model.safetensors.index.json": weight_map(_SD3_T5),
        "text_encoder_3/model.safetensors.index.fp16.json": weight_map(_SD3_T5_HALF),
    },
    dict.fromkeys(
        ("transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"), "fp16"
    ),
)


def test_of_sd3_shards_of_a_variant_come_with_the_index_of_the_variant() -> None:
    files = repo(SD3).select().files
    assert {path for path in files if path.startswith("text_encoder_3/")} == {
        "text_encoder_3/config.json",
        "text_encoder_3/model.safetensors.index.fp16.json",
        *_SD3_T5_HALF,
    }
    assert "transformer/diffusion_pytorch_model.safetensors" in files
    assert not any(path.startswith(("sd3", "text_encoders/")) for path in files)


def test_older_shards_have_their_variant_behind_the_number() -> None:
    old = {f"unet/diffusion_pytorch_model-0000{n}-of-00002.fp16.safetensors": GB for n in (1, 2)}
    hub = Repo(
        {**named("unet/config.json"), **old},
        {
            "model_index.json": index(unet=["diffusers", "U"]),
            "unet/diffusion_pytorch_model.safetensors.index.fp16.json": weight_map(old),
        },
    )
    assert set(old) < set(hub.select().files)


_LLAMA = shards("model", 4)
LLAMA = Repo(
    {
        **named(
            ".gitattributes LICENSE README.md USE_POLICY.md config.json generation_config.json special_tokens_map.json "
            "tokenizer.json tokenizer_config.json original/{params.json,tokenizer.model}"
        ),
        "original/consolidated.00.pth": 16 * GB,
        **_LLAMA,
    },
    {"model.safetensors.index.json": weight_map(_LLAMA)},
    {"model-00001-of-00004.safetensors": "bf16"},
)


def test_of_llama_the_shards_and_what_is_no_weights_are_taken() -> None:
    selection = repo(LLAMA).select()
    assert set(selection.files) == {path for path in LLAMA.files if not path.startswith("original/")}
    assert selection.notes == ()


MINILM = Repo(
    {
        **named(
            "1_Pooling/config.json README.md config.json config_sentence_transformers.json modules.json "
            "sentence_bert_config.json tokenizer.json tokenizer_config.json vocab.txt train_script.py data_config.json "
            "onnx/{config.json,model.onnx} openvino/{openvino_model.bin,openvino_model.xml}"
        ),
        **dict.fromkeys(("model.safetensors", "pytorch_model.bin", "rust_model.ot", "tf_model.h5"), GB // 10),
        "2_Dense/config.json": 100,
        "2_Dense/model.safetensors": GB // 50,
        "2_Dense/pytorch_model.bin": GB // 50,
    },
    precisions={"model.safetensors": "fp32", "2_Dense/model.safetensors": "fp32"},
)


def test_of_sentence_transformers_all_modules_are_taken_and_no_exports() -> None:
    selection = repo(MINILM).select()
    assert set(selection.files) == {
        "1_Pooling/config.json",
        "2_Dense/config.json",
        "2_Dense/model.safetensors",
        "README.md",
        "config.json",
        "config_sentence_transformers.json",
        "data_config.json",
        "model.safetensors",
        "modules.json",
        "sentence_bert_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    }
    assert selection.notes == (
        "`acme/model` has nothing smaller than fp32 weights in its root, `2_Dense`: 0.1 GB are fetched; "
        "`COZY_HF_WEIGHT_PRECISIONS=bf16,fp16` forbids that",
    )


def test_of_older_sentence_transformers_the_model_lies_in_a_folder() -> None:
    files = {"modules.json": 1, "1_Pooling/config.json": 1, "0_Transformer/config.json": 1}
    hub = Repo({**files, "0_Transformer/model.safetensors": GB}, precisions={"0_Transformer/model.safetensors": "fp16"})
    assert set(hub.select().files) == {*files, "0_Transformer/model.safetensors"}


def test_of_whisper_the_untagged_halves_win_over_sharded_full_precision() -> None:
    full = shards("model.fp32", 2)
    hub = Repo(
        {"config.json": 1, "model.safetensors": 3 * GB, "flax_model.msgpack": GB, "pytorch_model.bin": GB, **full},
        {"model.safetensors.index.fp32.json": weight_map(full)},
        {"model.safetensors": "fp16"},
    )
    assert hub.select().files == ("config.json", "model.safetensors")
    assert set(hub.select(dtype="fp32").files) == {"config.json", "model.safetensors.index.fp32.json", *full}


GGUF = Repo(
    {
        "README.md": 1000,
        "config.json": 500,
        "Llama-3.2-1B-Q4_K_M.gguf": GB,
        "Llama-3.2-1B-Q8_0.gguf": GB,
        "Llama-3.2-1B-f16.gguf": 3 * GB,
    }
)


def test_of_several_gguf_models_one_has_to_be_named() -> None:
    error = repo(GGUF).refused()
    assert error.kind == "no_weights"
    assert "3 gguf models in its root: `Llama-3.2-1B-Q4_K_M.gguf`" in str(error)
    assert "files=" in error.hint
    assert repo(GGUF).select(files=("*Q4_K_M.gguf",)).files == ("Llama-3.2-1B-Q4_K_M.gguf",)
    assert "Llama-3.2-1B-Q8_0.gguf" in repo(GGUF).select(flavor="Q8_0").files
    alone = repo(GGUF, without=["Llama-3.2-1B-Q4_K_M.gguf", "Llama-3.2-1B-Q8_0.gguf"])
    assert alone.select().files == ("Llama-3.2-1B-f16.gguf", "README.md", "config.json")


# --- pickles and code -------------------------------------------------------------------------------------------------

PICKLED = Repo({**named("config.json tokenizer.json"), "pytorch_model.bin": GB, "training_args.bin": 5000})


@pytest.mark.promise(42)
def test_weights_that_are_pickles_are_refused_unless_their_repository_is_trusted() -> None:
    error = repo(PICKLED).refused()
    assert (error.kind, error.file) == ("pickle_refused", "pytorch_model.bin")
    assert "GEN_WORKER_ALLOW_PICKLE=acme/model" in error.hint
    for allowed in ("acme/model", "acme/*", "*"):
        files = repo(PICKLED).select(SelectionOptions(allow_pickle=(allowed,))).files
        assert files == ("config.json", "pytorch_model.bin", "tokenizer.json")
    assert repo(PICKLED).refused(SelectionOptions(allow_pickle=("acme/other",))).kind == "pickle_refused"


def test_safetensors_win_even_where_pickles_are_trusted() -> None:
    hub = repo(PICKLED, {"model.safetensors": GB}, precisions={"model.safetensors": "fp16"})
    files = hub.select(SelectionOptions(allow_pickle=("*",))).files
    assert files == ("config.json", "model.safetensors", "tokenizer.json")


def test_sharded_pickles_of_a_trusted_repository_come_with_their_index() -> None:
    bins = shards("pytorch_model", 2, suffix=".bin")
    hub = Repo({"config.json": 1, **bins}, {"pytorch_model.bin.index.json": weight_map(bins)})
    files = hub.select(SelectionOptions(allow_pickle=("*",))).files
    assert set(files) == {"config.json", "pytorch_model.bin.index.json", *bins}
    assert hub.refused().kind == "pickle_refused"


def test_one_component_with_only_a_pickle_refuses_the_pipeline() -> None:
    error = repo(SD15, without=[path for path in SD15.files if path.startswith("vae/") and "safe" in path]).refused()
    assert (error.kind, error.file) == ("pickle_refused", "vae/diffusion_pytorch_model.bin")


def test_a_pickle_that_is_named_is_refused_and_one_that_a_glob_meets_is_left_out() -> None:
    assert repo(SD15).refused(files=("unet/diffusion_pytorch_model.bin",)).kind == "pickle_refused"
    assert repo(SD15).refused(files=("*.bin",)).kind == "pickle_refused"
    selection = repo(SD15).select(files=("vae/*",))
    assert selection.files == (
        "vae/config.json",
        "vae/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    )
    assert "`vae/diffusion_pytorch_model.bin`" in selection.notes[0]


CODED = Repo(
    {**named("config.json modeling_acme.py tokenizer.json"), "model.safetensors": GB},
    {"config.json": {"auto_map": {"AutoModel": "modeling_acme.AcmeModel"}}},
    {"model.safetensors": "bf16"},
)


def test_a_model_that_needs_code_of_its_own_is_refused() -> None:
    error = repo(CODED).refused()
    assert (error.kind, error.file) == ("remote_code_refused", "config.json")
    files = repo(CODED).select(trust_remote_code=True).files
    assert files == ("config.json", "model.safetensors", "modeling_acme.py", "tokenizer.json")
    files = repo(CODED).select(files=("*.json", "*.safetensors")).files
    assert files == ("config.json", "model.safetensors", "tokenizer.json")
    assert repo(CODED).refused(files=("modeling_acme.py",)).kind == "remote_code_refused"


@pytest.mark.parametrize("code", ["my_unet.py", "unet/my_unet.py"])
def test_a_pipeline_with_a_component_of_its_own_is_refused(code: str) -> None:
    entries = json.loads(SD15.documents["model_index.json"]) | {"unet": ["my_unet", "MyUnet"]}
    hub = repo(SD15, {code: 1000}, documents={"model_index.json": entries})
    error = hub.refused()
    assert (error.kind, error.file) == ("remote_code_refused", code)
    assert code in repo(hub).select(trust_remote_code=True).files


def test_a_pipeline_class_of_its_own_is_refused() -> None:
    entries = json.loads(SD15.documents["model_index.json"]) | {"_class_name": ["pipeline", "Mine"]}
    hub = repo(SD15, {"pipeline.py": 1000}, documents={"model_index.json": entries})
    assert hub.refused().kind == "remote_code_refused"


def test_code_that_nothing_needs_is_left_where_it_is() -> None:
    assert set(repo(SD15, {"handler.py": 1000, "unet/train.py": 1000}).select().files) == SD15_FILES


# --- precisions -------------------------------------------------------------------------------------------------------


def unet(tags: str, plain: str = "") -> Repo:
    """Return a repository with one component in some precisions; `plain` is that of the weights without a tag."""
    names = [f".{tag}" for tag in tags.split()] + ([""] if plain else [])
    return Repo(
        {"config.json": 1, **{f"diffusion_pytorch_model{name}.safetensors": 2 * GB for name in names}},
        precisions={"diffusion_pytorch_model.safetensors": plain},
    )


def taken(tags: str, plain: str, **changes: Any) -> tuple[str, bool]:
    options = SelectionOptions(precisions=changes.pop("only", ()))
    selection = unet(tags, plain).select(options, **changes)
    names = [path.removeprefix("diffusion_pytorch_model").removesuffix(".safetensors") for path in selection.files[1:]]
    assert len(names) == 1
    return names[0].removeprefix("."), bool(selection.notes)


@pytest.mark.parametrize(
    ("tags", "plain", "dtype", "tag", "noted"),
    [
        ("bf16 fp16 fp32", "fp32", "", "bf16", False),
        ("fp16 fp32", "fp32", "", "fp16", False),
        ("fp32", "fp16", "", "", False),
        ("fp8", "bf16", "", "", False),
        ("fp8", "fp32", "", "", True),
        ("fp32", "fp32", "", "fp32", True),
        ("", "fp8", "", "", False),
        ("bf16 fp16", "fp32", "fp16", "fp16", False),
        ("bf16 fp16", "fp32", "torch.float16", "fp16", False),
        ("bf16", "fp16", "fp16", "", False),
        ("bf16", "fp32", "fp16", "bf16", False),
        ("bf16 fp16", "fp32", "fp32", "", False),
        ("bf16 fp32", "bf16", "float32", "fp32", False),
        ("bf16", "fp16", "fp32", "bf16", False),
        ("fp8 bf16", "fp32", "fp8", "fp8", False),
    ],
)
def test_the_precision_that_is_asked_for_comes_first_then_halves_then_the_rest(
    tags: str, plain: str, dtype: str, tag: str, noted: bool
) -> None:
    assert taken(tags, plain, dtype=dtype) == (tag, noted)


@pytest.mark.parametrize(
    ("only", "tags", "plain", "dtype", "tag"),
    [
        (("fp16", "bf16"), "bf16 fp16", "fp32", "", "fp16"),
        (("fp8",), "bf16 fp8", "", "", "fp8"),
        (("fp32",), "bf16", "fp32", "", ""),
        (("bf16", "fp16"), "fp8", "fp16", "", ""),
        (("bf16", "fp32"), "bf16", "fp32", "fp32", ""),
        (("bf16",), "bf16", "fp32", "fp32", "bf16"),
    ],
)
def test_precisions_that_the_operator_names_are_the_only_ones(
    only: tuple[str, ...], tags: str, plain: str, dtype: str, tag: str
) -> None:
    assert taken(tags, plain, dtype=dtype, only=only)[0] == tag


def test_a_precision_that_is_not_there_is_told_with_the_variables_that_matter() -> None:
    error = unet("fp8", "fp32").refused(SelectionOptions(precisions=("bf16", "fp16")))
    assert error.kind == "no_weights"
    assert "has no bf16 or fp16 weights in its root, but `fp8`, `fp32`" in str(error).replace(
        "`fp32`, `fp8`", "`fp8`, `fp32`"
    )
    assert "COZY_HF_WEIGHT_PRECISIONS" in error.hint
    assert "COZY_HF_FULL_REPO_DOWNLOAD=1" in error.hint
    assert "non_ema" in str(unet("non_ema").refused())


def test_a_flavor_is_a_variant_by_its_name() -> None:
    assert taken("bf16 fp8 non_ema", "fp32", flavor="fp8")[0] == "fp8"
    assert taken("bf16 non_ema", "fp32", flavor="non_ema")[0] == "non_ema"
    error = unet("bf16", "fp32").refused(flavor="nope")
    assert error.kind == "file_not_found"
    assert "has no weights of the flavor `nope`, but `bf16`" in str(error)
    assert "but weights without a flavor" in str(unet("", "fp32").refused(flavor="nope"))


def test_a_pipeline_is_taken_in_one_variant_where_that_is_possible() -> None:
    names = [f"{folder}/diffusion_pytorch_model.{tag}.safetensors" for folder, tag in (("a", "fp16"), ("b", "fp16"))]
    hub = Repo(
        {
            **named("a/config.json b/config.json"),
            **dict.fromkeys([*names, "b/diffusion_pytorch_model.bf16.safetensors"], GB),
        },
        {"model_index.json": index(a=["diffusers", "A"], b=["diffusers", "B"])},
    )
    assert [path for path in hub.select().files if "safe" in path] == names


# --- other shapes -----------------------------------------------------------------------------------------------------


def test_a_subfolder_is_taken_as_a_repository_of_its_own() -> None:
    files = repo(SD15).select(subfolder="vae").files
    assert files == ("vae/config.json", "vae/diffusion_pytorch_model.fp16.safetensors")
    inner = Repo(
        {f"pipe/{path}": size for path, size in SD15.files.items()},
        {"pipe/model_index.json": json.loads(SD15.documents["model_index.json"])},
    )
    assert set(inner.select(subfolder="pipe").files) == {f"pipe/{path}" for path in SD15_FILES}
    error = repo(SD15).refused(subfolder="vea")
    assert error.kind == "file_not_found"
    assert "`vae/`" in error.hint or "more" in error.hint
    assert repo(SD15).select(subfolder="vae/").files == files, "however it is written"
    error = repo(SD15).refused(subfolder="../x")
    assert (error.kind, error.hint) == ("file_not_found", "`subfolder=` is a path as `unet`")
    assert "`acme/model` has no folder '../x'" in str(error)


def test_globs_are_taken_as_they_are() -> None:
    files = repo(SD15).select(files=("v1-5-*.safetensors", "unet/config.json", "tokenizer/")).files
    assert files == (
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "v1-5-pruned-emaonly.safetensors",
    )
    error = repo(SD15).refused(files=("nope*",))
    assert (error.kind, "`nope*`" in str(error)) == ("file_not_found", True)


def test_a_pipeline_without_an_index_is_told_by_its_denoiser() -> None:
    hub = repo(SD15, without=["model_index.json", "README.md"])
    assert set(hub.select().files) == SD15_FILES - {"model_index.json"}


def test_weights_in_folders_that_nobody_knows_are_not_guessed() -> None:
    error = Repo({"README.md": 1, "stage1/model.safetensors": GB, "stage2/model.safetensors": GB}).refused()
    assert error.kind == "no_weights"
    assert "`stage1`, `stage2`" in str(error)
    assert "subfolder=" in error.hint


def test_several_models_in_the_root_are_not_guessed() -> None:
    error = Repo({"a.safetensors": GB, "b.safetensors": GB}).refused()
    assert error.kind == "no_weights"
    assert "several models in its root: `a.safetensors`, `b.safetensors`" in str(error)
    assert "files=" in error.hint


def test_the_files_that_loaders_look_for_win_over_single_files_beside_them() -> None:
    hub = Repo(
        {
            "config.json": 1,
            "diffusion_pytorch_model.safetensors": GB,
            "sdxl.vae.safetensors": GB,
            "sdxl_vae.safetensors": GB,
        },
        precisions={"diffusion_pytorch_model.safetensors": "fp16"},
    )
    assert hub.select().files == ("config.json", "diffusion_pytorch_model.safetensors")


def test_one_file_of_weights_is_enough() -> None:
    hub = Repo({"README.md": 1, "my_lora.safetensors": GB}, precisions={"my_lora.safetensors": "bf16"})
    assert hub.select().files == ("README.md", "my_lora.safetensors")


def test_a_repository_without_weights_is_taken_whole() -> None:
    assert Repo(named("tokenizer.json vocab.txt tokenize.py")).select().files == ("tokenizer.json", "vocab.txt")


def test_a_component_without_weights_is_told() -> None:
    gone = [path for path in SD15.files if path.startswith("vae/") and path != "vae/config.json"]
    error = repo(SD15, without=gone).refused()
    assert (error.kind, error.file) == ("no_weights", "vae")


def test_shards_without_an_index_have_to_be_all_there() -> None:
    complete = shards("model", 3)
    hub = Repo({"config.json": 1, **complete}, precisions={min(complete): "bf16"})
    assert set(hub.select().files) == {"config.json", *complete}
    error = repo(hub, without=["model-00002-of-00003.safetensors"]).refused()
    assert error.kind == "file_not_found"
    assert "2 of 3 shards" in str(error)


def test_only_exports_to_other_runtimes_are_no_weights() -> None:
    error = Repo({"config.json": 1, "model.onnx": GB, "tf_model.h5": GB}).refused()
    assert error.kind == "no_weights"
    assert "has no safetensors in its root, but `.h5`, `.onnx`" in str(error)


def test_an_empty_repository_has_nothing() -> None:
    assert Repo({}).refused().kind == "file_not_found"


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 9999])
def test_a_document_that_cannot_be_read_is_told_with_its_name(content: bytes) -> None:
    hub = repo(SD15)
    hub.documents["model_index.json"] = content
    error = hub.refused()
    assert (error.kind, error.file) == ("bad_manifest", "model_index.json")


# --- limits -----------------------------------------------------------------------------------------------------------


def test_more_than_the_operator_allows_is_refused_with_the_figures() -> None:
    error = repo(FLUX).refused(SelectionOptions(max_repo_bytes=30 * GB))
    assert error.kind == "too_large"
    assert "has 34.4 GB of files that are needed, the limit is 30.0 GB" in str(error)
    assert "COZY_HF_MAX_REPO_BYTES" in error.hint
    assert repo(FLUX).select(SelectionOptions(max_repo_bytes=0)).files
    assert repo(SDXL).select(SelectionOptions(max_repo_bytes=7 * GB)).files, "only what is taken counts"


def test_a_size_that_nobody_knows_counts_as_nothing() -> None:
    hub = Repo(dict.fromkeys(("config.json", "model.safetensors")), precisions={"model.safetensors": "fp16"})
    assert hub.select(SelectionOptions(max_repo_bytes=1)).files == ("config.json", "model.safetensors")


@pytest.mark.parametrize("path", ["../../evil", "/etc/passwd", "unet/..\\evil", "a\0b"])
def test_one_hostile_name_refuses_the_whole_repository(path: str) -> None:
    assert repo(SD15, {path: 1}).refused().kind == "bad_manifest"


def test_two_names_that_are_one_on_some_disks_are_refused_when_both_are_needed() -> None:
    assert repo(SD15, {"tokenizer/VOCAB.json": 1}).refused().kind == "bad_manifest"
    assert set(repo(SD15, {"readme.md": 1}).select().files) == SD15_FILES


_PARTS = st.sampled_from(
    (
        *("unet", "vae", "tokenizer", "1_Dense", "model.safetensors", "model.fp16.safetensors", "model.bin", "x.ckpt"),
        *("config.json", "x.py", "model_index.json", "model-00001-of-00002.safetensors", "a.gguf"),
        "model.safetensors.index.json",
    )
)


@given(st.lists(st.lists(_PARTS, min_size=1, max_size=3).map("/".join), max_size=12), st.booleans())
def test_whatever_is_listed_no_pickle_and_no_code_is_ever_taken(paths: list[str], full: bool) -> None:
    hub = Repo(dict.fromkeys(paths, 1), {}, dict.fromkeys(paths, "fp16"))
    try:
        files = hub.select(SelectionOptions(full_repo=full)).files
    except ModelError:
        return
    assert set(files) <= set(paths)
    assert not [path for path in files if path.endswith((*PICKLES, ".py"))]


_NAMES = ["unet", "vae", "transformer", "tokenizer", "_class_name", "auto_map", "weight_map", "", "../x", "a/b"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["diffusers", "x", "../x", "model.safetensors", ""]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=5),
    st.dictionaries(st.sampled_from(_NAMES), _JSON, max_size=3),
    st.sampled_from([SD15, FLUX, LLAMA, CODED]),
)
def test_whatever_the_documents_say_there_is_an_answer_or_a_typed_error(
    pipeline: dict[str, Any], shards_of: dict[str, Any], like: Repo
) -> None:
    documents = dict.fromkeys(("model_index.json", "config.json"), pipeline)
    indexes = dict.fromkeys((path for path in like.documents if ".index." in path), shards_of)
    hub = repo(like, documents={**documents, **indexes}, precisions=dict.fromkeys(like.files, "fp16"))
    try:
        files = hub.select().files
    except ModelError:
        return
    assert set(files) <= set(hub.files)
