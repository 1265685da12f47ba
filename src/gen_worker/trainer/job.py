"""The function that a worker in trainer mode serves: one training, as its job spec describes it."""

from gen_worker.api.bindings import Hub
from gen_worker.api.decorator import endpoint
from gen_worker.api.producers import TrainingContext
from gen_worker.trainer.running import TrainingEnd, TrainingOrder, train_as_ordered

FUNCTION = "train"


@endpoint(kind="training", models={"base_model": Hub("gen-worker/base-model")})
def train(ctx: TrainingContext, payload: TrainingOrder, base_model: str = "") -> TrainingEnd:
    """Train. `base_model` is where the job spec's `inputs.base_model_ref` lies, whatever it names."""
    return train_as_ordered(ctx, payload, base_model)
