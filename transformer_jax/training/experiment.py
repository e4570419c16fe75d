"""An experiment: everything that a training run depends on, as one config."""

from dataclasses import KW_ONLY, dataclass

from transformer_jax.config import Config
from transformer_jax.data import Data
from transformer_jax.layers.base import check_not_negative, check_positive
from transformer_jax.models import ModelConfig
from transformer_jax.precision import Precision
from transformer_jax.training.objective import NextToken, Objective
from transformer_jax.training.optimizer import AdamW, Optimizer, Schedule, WarmupCosine


@dataclass(frozen=True)
class Run(Config):
    """How long, how often, and where.

    Attributes:
        folder: where the run's files go.
        start: a run whose last parameters are the first of this one, where names and shapes are the same (a head for something else is new), or a folder with
            a published model.
        length: tokens of an example at most; the model's max_length unless given.
        steps: of training.
        batch: examples to a step.
        accumulate: a batch is taken in so many parts, whose gradients are summed.
        seed: of everything random.
        steps_per_call: steps in one compiled call, after which there is news; changes no result.
        evaluate_every, checkpoint_every: steps.
        keep: checkpoints kept.
        precision: dtypes of parameters and of compute.
        backend: of attention.
        unroll: layers to one turn of a group's loop; 0 for all of them, which compiles slower and runs faster.
        prompt: what the sample continues.
        sample_tokens: its length.
        temperature: its temperature.
    """

    folder: str
    _: KW_ONLY
    steps: int
    batch: int
    start: str = ""
    length: int | None = None
    accumulate: int = 1
    seed: int = 0
    steps_per_call: int = 10
    evaluate_every: int = 250
    checkpoint_every: int = 500
    keep: int = 2
    precision: Precision = Precision()
    backend: str = "auto"
    unroll: int = 0
    prompt: str = "\n"
    sample_tokens: int = 300
    temperature: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "steps", "batch", "accumulate", "steps_per_call", "evaluate_every", "checkpoint_every", "keep", "sample_tokens", "length")
        check_not_negative(self, "unroll", "temperature")
        if self.batch % self.accumulate:
            raise ValueError(f"Run.accumulate: expected a divisor of batch = {self.batch}, received {self.accumulate}")
        if not self.folder:
            raise ValueError("Run.folder: expected the name of a folder, received ''")
        if not self.prompt:
            raise ValueError("Run.prompt: expected a text of at least one character, received ''")
        if not 0 <= self.seed < 2**32:
            raise ValueError(f"Run.seed: expected an integer from 0 to 2**32 - 1, received {self.seed}")


@dataclass(frozen=True)
class Experiment(Config):
    """A model, data, and how the one is trained on the other."""

    model: ModelConfig
    _: KW_ONLY
    data: Data
    run: Run
    objective: Objective = NextToken()
    optimizer: Optimizer = AdamW()
    schedule: Schedule = WarmupCosine()

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length > self.model.max_length:
            raise ValueError(f"Run.length: expected at most the model's max_length = {self.model.max_length}, received {self.length}")

    @property
    def length(self) -> int:
        """Tokens of an example at most."""
        return self.run.length or self.model.max_length
