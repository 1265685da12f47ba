"""The text of a real transformers model, tiny and with random weights."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import json, sys, threading
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from gen_worker import iter_transformers_text_deltas
from gen_worker.testing import make_tiny

folder = make_tiny("text", Path(sys.argv[1]), dtype="fp32")
model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
prompt = tokenizer("to be or not to be", return_tensors="pt")
told = {}


def generation(tokens=40, **options):
    return {**prompt, "max_new_tokens": tokens, "do_sample": True, **options}


def deltas(given, cancel_checker=None, **options):
    torch.manual_seed(0)
    return iter_transformers_text_deltas(
        model=model, tokenizer=tokenizer, generation_kwargs=given, cancel_checker=cancel_checker, timeout=5, **options
    )


def whole(given, **options):
    torch.manual_seed(0)
    made = model.generate(**given)[0]
    return tokenizer.decode(made[prompt["input_ids"].shape[1] :], **options)


told["letters"] = "".join(deltas(generation())) == whole(generation())
told["several"] = len(list(deltas(generation()))) > 1
any_bytes = generation(suppress_tokens=None)
shown = {"skip_special_tokens": True}
told["any bytes"] = "".join(deltas(any_bytes, decode_kwargs=shown)) == whole(any_bytes, **shown)
told["the prompt"] = "".join(deltas(generation(4), skip_prompt=False)).startswith("to be or not to be")

asked = 0
def cancelled():
    global asked
    asked += 1
    return asked >= 4
told["cancelled"] = len("".join(deltas(generation(200), cancelled))) <= 4 and asked == 4

stream = deltas(generation(2000))
next(stream)
stream.close()
told["left"] = not any(thread.name == "generate" for thread in threading.enumerate())

class Fails:
    def __call__(self, input_ids, scores, **options):
        if input_ids.shape[1] > prompt["input_ids"].shape[1] + 3:
            raise RuntimeError("out of words")
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)

text = ""
try:
    for piece in deltas(generation(stopping_criteria=[Fails()])):
        text += piece
except RuntimeError as error:
    told["fails aloud"] = str(error) == "out of words"
told["after the text"] = text != "" and whole(generation()).startswith(text)
print(json.dumps(told))
"""


@pytest.mark.process
@pytest.mark.needs("torch", "transformers")
def test_a_models_text_streams_stops_when_cancelled_and_fails_aloud(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert all(told.values()), told
    assert len(told) == 8, told
