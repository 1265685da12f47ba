"""The text of a real transformers model, tiny and with random weights."""

import subprocess
import sys

import pytest

SCRIPT = """
import torch
from transformers import GPT2Config, GPT2LMHeadModel
from gen_worker import iter_transformers_text_deltas

class Tokenizer:
    def decode(self, ids, **options):
        return "".join(f"{int(each)} " for each in torch.as_tensor(ids).flatten())

torch.manual_seed(0)
config = GPT2Config(vocab_size=50, n_positions=64, n_embd=8, n_layer=1, n_head=1, bos_token_id=0, eos_token_id=None)
model = GPT2LMHeadModel(config).eval()
asked = 0

def deltas(new_tokens, cancel_checker=None):
    prompt = torch.zeros((1, 3), dtype=torch.long)
    generation = {"input_ids": prompt, "max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
    return iter_transformers_text_deltas(
        model=model, tokenizer=Tokenizer(), generation_kwargs=generation, cancel_checker=cancel_checker, timeout=5
    )

def cancelled():
    global asked
    asked += 1
    return asked >= 4

print(len("".join(deltas(20)).split()), len("".join(deltas(20, cancelled)).split()), asked)
try:
    list(deltas("many"))
except Exception as error:
    print("raised", type(error).__name__)
"""


@pytest.mark.process
@pytest.mark.needs("torch", "transformers")
def test_a_models_text_streams_stops_when_cancelled_and_fails_aloud() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=100)
    first, second = done.stdout.splitlines()
    assert first == "20 4 4"
    assert second.startswith("raised ")
