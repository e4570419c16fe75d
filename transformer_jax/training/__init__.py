"""Training: objectives, optimizers, steps, and the loop that scripts run."""

from transformer_jax.training.checkpoint import CheckpointError
from transformer_jax.training.experiment import Experiment, Run
from transformer_jax.training.loop import RunError, load_run, train
from transformer_jax.training.objective import NextToken, Objective
from transformer_jax.training.optimizer import SGD, AdamW, Constant, InverseSqrt, Lion, Optimizer, Schedule, WarmupCosine, decay_mask
from transformer_jax.training.step import TrainState, init_state, several_steps, train_step

__all__ = [
    "SGD", "AdamW", "CheckpointError", "Constant", "Experiment", "InverseSqrt", "Lion", "NextToken", "Objective", "Optimizer", "Run", "RunError",
    "Schedule", "TrainState", "WarmupCosine", "decay_mask", "init_state", "load_run", "several_steps", "train", "train_step",
]  # fmt: skip
