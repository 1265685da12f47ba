"""Whether a model on disk is what a slot asks for. The classes are stand-ins with the libraries' names."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from gen_worker.models.errors import ModelError
from gen_worker_child.models.classes import Target, family_of, target_of
from gen_worker_child.models.repository import read_repository


def library(name: str, bases: tuple[type, ...] = (), library: str = "diffusers", **attributes: Any) -> type:
    """Return a class that says it is a library's."""
    return type(name, bases, {"__module__": f"{library}.stand_in", **attributes})


class Unet:
    __module__ = "diffusers.stand_in"


class Flow:
    __module__ = "diffusers.stand_in"


def takes_sd(self: Any, vae: Any, text_encoder: Any, unet: Unet, scheduler: Any, safety_checker: Any = None) -> None:
    pass


def takes_xl(self: Any, vae: Any, text_encoder: Any, text_encoder_2: Any, unet: Unet, scheduler: Any) -> None:
    pass


def takes_flow(self: Any, vae: Any, text_encoder: Any, unet: Flow, scheduler: Any) -> None:
    pass


DiffusionPipeline = library("DiffusionPipeline", from_pretrained=None)
Shared = library("SharedPipeline", (DiffusionPipeline,))
SD = library("SDPipeline", (Shared,), __init__=takes_sd, _optional_components=["safety_checker"])
SDImg2Img = library("SDImg2ImgPipeline", (DiffusionPipeline,), __init__=takes_sd, _optional_components=[])
SDInpaint = library("SDInpaintPipeline", (DiffusionPipeline,), __init__=takes_sd)
XL = library("XLPipeline", (DiffusionPipeline,), __init__=takes_xl, _optional_components=["text_encoder_2"])
FlowPipeline = library("FlowPipeline", (DiffusionPipeline,), __init__=takes_flow)
Auto = library("AutoPipelineForText2Image")
ModelMixin = library("ModelMixin")
UNetModel = library("UNetModel", (ModelMixin,))
VAEModel = library("AutoencoderModel", (ModelMixin,))
PreTrainedModel = library("PreTrainedModel", library="transformers")
BertBase = library("BertPreTrainedModel", (PreTrainedModel,), "transformers")
config_class = type("BertConfig", (), {"model_type": "bert"})
Bert = library("BertModel", (BertBase,), "transformers", config_class=config_class)
BertHead = library("BertForMaskedLM", (BertBase,), "transformers", config_class=config_class)
Clip = library("ClipModel", (PreTrainedModel,), "transformers", config_class=type("C", (), {"model_type": "clip"}))
AutoModel = library("AutoModel", (library("_BaseAutoModelClass", library="transformers"),), "transformers")
TokenizerBase = library("PreTrainedTokenizerBase", library="transformers")
BertTokenizer = library("BertTokenizer", (TokenizerBase,), "transformers")
BertTokenizerFast = library("BertTokenizerFast", (TokenizerBase,), "transformers")
ClipTokenizer = library("ClipTokenizer", (TokenizerBase,), "transformers")
AutoTokenizer = library("AutoTokenizer", library="transformers")
SchedulerMixin = library("SchedulerMixin")
Scheduler = library("EulerScheduler", (SchedulerMixin,))

KNOWN = {
    ("diffusers", each.__name__): each
    for each in (SD, SDImg2Img, SDInpaint, XL, FlowPipeline, UNetModel, VAEModel, Unet, Flow, Scheduler)
} | {
    ("transformers", each.__name__): each
    for each in (Bert, BertHead, Clip, BertTokenizer, ClipTokenizer, AutoTokenizer)
}


def lookup(library: str, name: str) -> Any:
    return KNOWN.get((library, name))


SD_PARTS: dict[str, Any] = {
    "vae": ["diffusers", "AutoencoderModel"],
    "text_encoder": ["transformers", "ClipModel"],
    "unet": ["diffusers", "Unet"],
    "scheduler": ["diffusers", "EulerScheduler"],
    "safety_checker": ["stable_diffusion", "SafetyChecker"],
}
XL_PARTS = {**SD_PARTS, "text_encoder_2": ["transformers", "ClipModel"]}
del XL_PARTS["safety_checker"]


def pipeline(folder: Path, name: str = "SDPipeline", parts: Mapping[str, Any] = SD_PARTS) -> Path:
    write(folder / "model_index.json", {"_class_name": name, "_diffusers_version": "0.42.1", **parts})
    return folder


def write(file: Path, value: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(value))


def target(asked: type, folder: Path) -> Target:
    return target_of(asked, read_repository(folder, "acme/it"), slot="model", ref="acme/it", lookup=lookup)


def refusal(asked: type, folder: Path) -> ModelError:
    with pytest.raises(ModelError) as raised:
        target(asked, folder)
    assert raised.value.kind == "load_failed"
    assert raised.value.ref == "acme/it"
    return raised.value


# --- pipelines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("asked", [SD, DiffusionPipeline, Auto])
def test_a_pipeline_of_the_class_it_says_or_any_is_loaded_with_what_is_asked_for(asked: type, tmp_path: Path) -> None:
    assert target(asked, pipeline(tmp_path)) == Target(asked, "pipeline")


def test_a_base_that_cannot_be_made_itself_stands_for_the_class_the_model_says_it_is(tmp_path: Path) -> None:
    assert target(Shared, pipeline(tmp_path)).cls is SD


def test_an_authors_own_subclass_is_made(tmp_path: Path) -> None:
    mine = type("Mine", (SD,), {"__module__": "my_endpoint"})
    assert target(mine, pipeline(tmp_path)) == Target(mine, "pipeline")


def test_another_pipeline_that_takes_the_same_parts_is_made(tmp_path: Path) -> None:
    assert target(SDImg2Img, pipeline(tmp_path)).cls is SDImg2Img


def test_another_family_is_refused_with_both_names(tmp_path: Path) -> None:
    error = refusal(SD, pipeline(tmp_path, "XLPipeline", XL_PARTS))
    assert str(error) == (
        "`acme/it` is a `XLPipeline`, the slot `model` asks for a `SDPipeline`: "
        "that has no place for its `text_encoder_2`"
    )
    assert error.hint == "annotate `model` with `XLPipeline`, or bind another model to it"


def test_a_part_that_a_pipeline_only_seems_to_do_without_is_missed(tmp_path: Path) -> None:
    assert str(refusal(XL, pipeline(tmp_path))).endswith("asks for a `XLPipeline`: it has no `text_encoder_2`")


def test_a_part_that_is_null_in_the_model_is_not_missed(tmp_path: Path) -> None:
    parts = {**XL_PARTS, "text_encoder_2": [None, None]}
    index = library("XLRefiner", (DiffusionPipeline,), __init__=takes_xl, _optional_components=["text_encoder_2"])
    KNOWN["diffusers", "XLRefiner"] = index
    assert target(XL, pipeline(tmp_path, "XLRefiner", parts)).cls is XL


def test_a_part_of_another_class_is_refused(tmp_path: Path) -> None:
    error = refusal(FlowPipeline, pipeline(tmp_path))
    assert str(error).endswith("asks for a `FlowPipeline`: that cannot use its `unet`, a `Unet`")


def test_weights_that_were_made_for_inpainting_are_not_given_to_another_pipeline(tmp_path: Path) -> None:
    folder = pipeline(tmp_path, "SDInpaintPipeline")
    write(folder / "unet" / "config.json", {"in_channels": 9, "out_channels": 4})
    assert "its `unet` takes 9 channels and gives 4" in str(refusal(SDImg2Img, folder))
    assert target(SDInpaint, folder).cls is SDInpaint
    write(folder / "unet" / "config.json", {"in_channels": 4, "out_channels": 4})
    assert target(SDImg2Img, folder).cls is SDImg2Img


def test_a_pipeline_that_the_library_does_not_know_is_told(tmp_path: Path) -> None:
    error = refusal(DiffusionPipeline, pipeline(tmp_path, "TomorrowsPipeline"))
    assert "is a `TomorrowsPipeline`, which this version of diffusers does not have" in str(error)


def test_a_part_is_found_in_the_pipeline_that_was_bound_whole(tmp_path: Path) -> None:
    parts = {**SD_PARTS, "unet": ["diffusers", "UNetModel"], "tokenizer": ["transformers", "ClipTokenizer"]}
    folder = pipeline(tmp_path, parts=parts)
    assert refusal(UNetModel, folder).hint == 'bind the part that it is with `subfolder="unet"`'
    assert refusal(ClipTokenizer, folder).hint == 'bind the part that it is with `subfolder="tokenizer"`'
    assert refusal(Clip, folder).hint == 'bind the part that it is with `subfolder="text_encoder"`'
    assert refusal(Scheduler, folder).hint == 'bind the part that it is with `subfolder="scheduler"`'


def test_a_pipeline_cannot_be_made_of_a_part_or_of_an_empty_folder(tmp_path: Path) -> None:
    assert "is a folder without `model_index.json` and `config.json`" in str(refusal(SD, tmp_path))
    write(tmp_path / "config.json", {"_class_name": "UNetModel"})
    assert str(refusal(SD, tmp_path)).startswith("`acme/it` is a `UNetModel` and no pipeline")


# --- models -----------------------------------------------------------------------------------------------------------


def test_a_model_of_diffusers_is_of_the_class_it_says(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"_class_name": "UNetModel"})
    assert target(UNetModel, tmp_path) == Target(UNetModel, "model")
    assert target(ModelMixin, tmp_path) == Target(UNetModel, "model")
    assert str(refusal(VAEModel, tmp_path)).startswith("`acme/it` is a `UNetModel`, the slot `model` asks for an `Auto")


@pytest.mark.parametrize(
    ("asked", "made"), [(Bert, Bert), (BertHead, BertHead), (BertBase, BertHead), (PreTrainedModel, BertHead)]
)
def test_a_model_of_transformers_is_of_its_family(asked: type, made: type, tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"architectures": ["BertForMaskedLM"], "model_type": "bert"})
    assert target(asked, tmp_path) == Target(made, "transformers")
    assert target(AutoModel, tmp_path) == Target(AutoModel, "transformers")


def test_a_model_of_another_family_of_transformers_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"architectures": ["BertForMaskedLM"], "model_type": "bert"})
    assert str(refusal(Clip, tmp_path)) == "`acme/it` is a `BertForMaskedLM`, the slot `model` asks for a `ClipModel`"


def test_a_model_with_a_part_of_the_family_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "config.json", {"model_type": "both", "text_config": {"model_type": "bert"}})
    assert target(Bert, tmp_path).cls is Bert


# --- what has no weights ----------------------------------------------------------------------------------------------


def test_a_tokenizer_is_of_the_class_its_folder_names(tmp_path: Path) -> None:
    write(tmp_path / "tokenizer_config.json", {"tokenizer_class": "BertTokenizer"})
    assert target(BertTokenizer, tmp_path) == Target(BertTokenizer, "tokenizer")
    assert target(BertTokenizerFast, tmp_path).cls is BertTokenizerFast
    assert target(AutoTokenizer, tmp_path).cls is AutoTokenizer
    assert target(TokenizerBase, tmp_path).cls is AutoTokenizer
    assert "has a `BertTokenizer`, the slot `model` asks for a `ClipTokenizer`" in str(refusal(ClipTokenizer, tmp_path))


def test_a_folder_without_a_tokenizer_is_told(tmp_path: Path) -> None:
    assert "has no file of a tokenizer in its folder" in str(refusal(BertTokenizer, tmp_path))


def test_any_scheduler_takes_anothers_settings(tmp_path: Path) -> None:
    write(tmp_path / "scheduler_config.json", {"_class_name": "OtherScheduler"})
    assert target(Scheduler, tmp_path) == Target(Scheduler, "scheduler")
    assert "has a `OtherScheduler`, which this version of diffusers does not have" in str(
        refusal(SchedulerMixin, tmp_path)
    )
    write(tmp_path / "scheduler_config.json", {"_class_name": "EulerScheduler"})
    assert target(SchedulerMixin, tmp_path).cls is Scheduler


def test_classes_of_other_libraries_are_not_judged(tmp_path: Path) -> None:
    foreign = type("Adapter", (), {"__module__": "peft", "from_pretrained": None})
    assert family_of(foreign) == "foreign"
    assert target(foreign, tmp_path) == Target(foreign, "foreign")
