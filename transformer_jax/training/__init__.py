"""Training: objectives, optimizers, steps, and the loop that scripts run."""

from transformer_jax.training.checkpoint import CheckpointError
from transformer_jax.training.experiment import Experiment, Run
from transformer_jax.training.loop import RunError, load_run, train
from transformer_jax.training.objective import (
    CorruptedSpans,
    LossSums,
    MaskedTokens,
    NextToken,
    Objective,
    SequenceLabels,
    SourceToTarget,
    SpecialTokens,
    Task,
    TokenLabels,
)
from transformer_jax.training.optimizer import SGD, AdamW, Constant, InverseSqrt, Lion, Optimizer, Schedule, WarmupCosine, decay_mask
from transformer_jax.training.start import initialised
from transformer_jax.training.step import TrainState, init_state, several_steps, train_step

__all__ = [
    "SGD",
    "AdamW",
    "CheckpointError",
    "Constant",
    "CorruptedSpans",
    "Experiment",
    "InverseSqrt",
    "Lion",
    "LossSums",
    "MaskedTokens",
    "NextToken",
    "Objective",
    "Optimizer",
    "Run",
    "RunError",
    "Schedule",
    "SequenceLabels",
    "SourceToTarget",
    "SpecialTokens",
    "Task",
    "TokenLabels",
    "TrainState",
    "WarmupCosine",
    "decay_mask",
    "init_state",
    "initialised",
    "load_run",
    "several_steps",
    "train",
    "train_step",
]  # fmt: skip
