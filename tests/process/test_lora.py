"""LoRAs on a real pipeline of diffusers, tiny and with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, threading
from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import StableDiffusionPipeline
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors.torch import save_file

from gen_worker import CanceledError, ValidationError
from gen_worker.api import Tensors
from gen_worker.testing import make_tiny
from gen_worker.utils.lora import Lora, load_loras

torch.set_num_threads(1)
folder = Path(sys.argv[1])
made = make_tiny("sd15", folder / "sd15", dtype="fp32")
pipeline = StableDiffusionPipeline.from_pretrained(made, safety_checker=None)
pipeline.set_progress_bar_config(disable=True)
layers = [name for name, _ in pipeline.unet.named_modules() if name.endswith(("to_q", "to_v"))]
told = {}


def weights(seed=1, ranks=(4,)):
    torch.manual_seed(seed)
    made = {}
    for number, name in enumerate(layers):
        layer, rank = pipeline.unet.get_submodule(name), ranks[number % len(ranks)]
        made[f"unet.{name}.lora_A.weight"] = torch.randn(rank, layer.in_features)
        made[f"unet.{name}.lora_B.weight"] = torch.randn(layer.out_features, rank)
    return made


def kohya(given):
    made = {}
    for name, value in given.items():
        stem, _, side = name.removeprefix("unet.").removesuffix(".weight").rpartition(".lora_")
        made[f"lora_unet_{stem.replace('.', '_')}.lora_{'down' if side == 'A' else 'up'}.weight"] = value
    return made


def lora(name, given=None, weight=1.0, metadata=None, **more):
    path = folder / f"{name}.safetensors"
    if given is not None:
        save_file(given, path, metadata)
    return Lora(Tensors(f"local/{name}", local_path=str(path)), weight, **more)


def paint():
    generator = torch.Generator().manual_seed(0)
    return pipeline("cat", width=64, height=64, num_inference_steps=1, generator=generator, output_type="np").images


def painted(*loras):
    with load_loras(pipeline, loras) as names:
        return paint()


def same(one, other):
    return bool(abs(one - other).max() < 1e-5)


def adapted():
    return sum(isinstance(each, BaseTunerLayer) for each in pipeline.unet.modules())


plain = paint()
one = lora("one", weights())
with_one = painted(one)
told["differs"] = not same(plain, with_one)
told["equal after"] = same(plain, paint()) and adapted() == 0
told["weight 0 is none"] = same(plain, painted(lora("one", weight=0.0)))
told["twice as strong"] = same(
    painted(lora("one", weight=2.0)),
    painted(lora("two", weights(), metadata={"lora_adapter_metadata": '{"unet.r": 4, "unet.lora_alpha": 8}'})),
)
told["layouts agree"] = same(with_one, painted(lora("kohya", kohya(weights()))))

mixed = weights(ranks=(4, 8))
some = kohya(mixed)
first = next(name for name in some if name.endswith("lora_down.weight")).removesuffix(".lora_down.weight")
some[f"{first}.alpha"] = torch.tensor(4.0)
told["missing alpha is rank"] = same(painted(lora("mixed", mixed)), painted(lora("some", some)))

second = lora("second", weights(2), adapter_name="style")
with load_loras(pipeline, [one, second], "r1") as names:
    told["names"] = names
    both = paint()
with load_loras(pipeline, [lora("second", weights(2), adapter_name="lora_1"), one]) as names:
    told["names beside a usual one"] = names == ["lora_1", "lora_2"]
told["two add up"] = not same(both, with_one)

for name, error in (("canceled", CanceledError("canceled")), ("failed", ZeroDivisionError())):
    try:
        with load_loras(pipeline, [one]):
            raise error
    except type(error):
        told[f"equal after {name}"] = same(plain, paint()) and adapted() == 0

bad = folder / "bad.safetensors"
bad.write_bytes(b"nonsense")
wrong = {name: torch.zeros(3, 3) for name in weights()}
nowhere = {"unet.nowhere.lora_A.weight": torch.zeros(4, 4), "unet.nowhere.lora_B.weight": torch.zeros(4, 4)}
other = {name.replace("unet.", "transformer."): value for name, value in weights().items()}
half = {name: value for name, value in weights().items() if not name.endswith("lora_B.weight")}
flat = kohya(weights()) | {f"{first}.lora_down.weight": torch.zeros(())}
cases = {
    "half of a pair": [lora("half", half)],
    "no matrix": [lora("flat", flat)],
    "no alpha": [lora("alpha", kohya(weights()) | {f"{first}.alpha": torch.tensor(float("nan"))})],
    "damaged": [lora("bad")],
    "absent": [lora("absent")],
    "no lora": [lora("words", {"a": torch.zeros(1)})],
    "shapes": [one, lora("shapes", wrong)],
    "nowhere": [lora("nowhere", nowhere)],
    "another model's": [lora("other", other)],
    "metadata": [lora("metadata", weights(), metadata={"lora_adapter_metadata": "{"})],
    "one name twice": [lora("one", adapter_name="a"), lora("second", adapter_name="a")],
    "a strange name": [lora("one", adapter_name="a.b")],
    "no number": [lora("one", weight=float("nan"))],
    "a name that is taken": [lora("one", adapter_name="keys")],
}
told["refused"] = {}
for name, loras in cases.items():
    try:
        painted(*loras)
    except ValidationError as error:
        told["refused"][name] = str(error)
    told["refused"][name + ", after"] = adapted() == 0
told["equal after refusals"] = same(plain, paint())

pipeline.load_lora_weights(weights(3), adapter_name="own")
pipeline.set_adapters(["own"], [0.5])
own = paint()
told["own and another"] = not same(own, painted(one)) and not same(with_one, painted(one))
told["own after"] = same(own, paint()) and pipeline.get_active_adapters() == ["own"]
try:
    painted(lora("one", adapter_name="own"))
except ValidationError as error:
    told["own name"] = str(error)
told["own after a request for its name"] = same(own, paint())
pipeline.unload_lora_weights()
pipeline.load_lora_weights(weights(3), adapter_name="lora_0")
pipeline.set_adapters(["lora_0"], [0.5])
with load_loras(pipeline, [one]) as names, load_loras(pipeline, [second, one]) as more:
    told["names beside own"] = [names, more]
told["own of a usual name after"] = same(own, paint()) and pipeline.get_active_adapters() == ["lora_0"]
pipeline.unload_lora_weights()

entered, release = threading.Event(), threading.Event()
def hold():
    with load_loras(pipeline, [one]):
        entered.set()
        release.wait(20)
def take():
    with load_loras(pipeline, [second]):
        told["alone"] = pipeline.get_active_adapters() == ["style"]
threads = [threading.Thread(target=hold), threading.Thread(target=take)]
threads[0].start(); entered.wait(20); threads[1].start()
threads[1].join(0.05)
told["waits"] = threads[1].is_alive()
release.set()
[each.join(20) for each in threads]
told["none"] = painted() is not None
told["any spec"] = same(with_one, painted(SimpleNamespace(tensors=one.tensors)))
print(json.dumps(told))
"""


@pytest.mark.process
@pytest.mark.needs("torch", "diffusers", "transformers", "peft")
def test_loras_are_on_a_pipeline_for_one_request_and_leave_nothing(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    refused = told.pop("refused")
    assert told.pop("names") == ["lora_0", "style"]
    assert told.pop("own name") == "the `adapter_name` `own` is taken by a LoRA of the pipeline's own"
    assert told.pop("names beside own") == [["lora_1"], ["style", "lora_3"]]
    assert all(told.values()), told
    after = {name: is_clean for name, is_clean in refused.items() if name.endswith(", after")}
    assert all(after.values()), after
    sentences = {name: text for name, text in refused.items() if name not in after}
    assert sentences.keys() == {
        "half of a pair", "no matrix", "no alpha",
        "damaged", "absent", "no lora", "shapes", "nowhere", "another model's", "metadata",
        "one name twice", "a strange name", "no number", "a name that is taken",
    }  # fmt: skip
    assert sentences["absent"] == "`local/absent` has no file on this machine"
    assert sentences["shapes"].startswith("`local/shapes` does not fit this pipeline: size mismatch for ")
    assert "lora_A.weight`, and no `unet." in sentences["half of a pair"]
    assert sentences["no matrix"].endswith("lora_down.weight` has the shape (), which is no matrix's")
    assert sentences["no alpha"].endswith(".alpha` is nan")
    assert sentences["another model's"] == "`local/other` does not fit this pipeline: none of its parts is in there"
