"""What a training is written with: a plugin of six hooks, and the loop that calls them.

A name is imported when it is first used; torch is loaded by what needs it.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gen_worker.trainer.contracts import (
        ArtifactUploader,
        ArtifactWriter,
        PreparedBatchT,
        RawBatchT,
        StateT,
        StepContext,
        StepControlHints,
        StepResult,
        TrainerAuthContext,
        TrainerPlugin,
        TrainingCanceled,
        TrainingJobSpec,
        TrainingReporter,
    )
    from gen_worker.trainer.handover import (
        TrainerSubprocessContractV1,
        read_subprocess_contract,
        write_subprocess_contract,
    )
    from gen_worker.trainer.loop import run_training_loop
    from gen_worker.trainer.modules import load_trainable_module_checkpoint, save_trainable_module_checkpoint
    from gen_worker.trainer.optimization import (
        OptimizerBundle,
        build_default_adamw_bundle,
        seed_everything,
        to_float_scalar,
    )
    from gen_worker.trainer.plugins import load_trainer_plugin
    from gen_worker.trainer.runtime import run_training_runtime

__all__ = [
    "ArtifactUploader",
    "ArtifactWriter",
    "OptimizerBundle",
    "PreparedBatchT",
    "RawBatchT",
    "StateT",
    "StepContext",
    "StepControlHints",
    "StepResult",
    "TrainerAuthContext",
    "TrainerPlugin",
    "TrainerSubprocessContractV1",
    "TrainingCanceled",
    "TrainingJobSpec",
    "TrainingReporter",
    "build_default_adamw_bundle",
    "load_trainable_module_checkpoint",
    "load_trainer_plugin",
    "read_subprocess_contract",
    "run_training_loop",
    "run_training_runtime",
    "save_trainable_module_checkpoint",
    "seed_everything",
    "to_float_scalar",
    "write_subprocess_contract",
]

_HOMES = {
    "OptimizerBundle": "optimization",
    "TrainerSubprocessContractV1": "handover",
    "build_default_adamw_bundle": "optimization",
    "load_trainable_module_checkpoint": "modules",
    "load_trainer_plugin": "plugins",
    "read_subprocess_contract": "handover",
    "run_training_loop": "loop",
    "run_training_runtime": "runtime",
    "save_trainable_module_checkpoint": "modules",
    "seed_everything": "optimization",
    "to_float_scalar": "optimization",
    "write_subprocess_contract": "handover",
}
"""Where names are that are not in `contracts`."""


if not TYPE_CHECKING:  # else a type checker takes every misspelt name for one that is there

    def __getattr__(name: str) -> Any:
        import importlib

        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(importlib.import_module(f"{__name__}.{_HOMES.get(name, 'contracts')}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
