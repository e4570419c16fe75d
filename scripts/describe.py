"""Says what a model is made of and what it costs, before anything runs: `python scripts/describe.py configs/char_lm.py --d-model 256`.

usage: describe.py CONFIG|RUN|PRESET|FOLDER [flags]; a config is a file such as configs/char_lm.py, a run its folder or config.json, a preset a name of the
zoo such as llama-3.2-1b, a folder that of a published model
  --batch N        sequences; the run's batch, or 1, unless given
  --length N       tokens of each; the run's unless given, which is the model's max_length or less; of a preset or folder 2048 at most
  --vocab-size N   of a model that leaves it to the data; 256 unless given
  --plot FILE      where to draw FLOPs against the length, as PNG; for a run's folder describe.png in it unless given
All other flags are those of train.py, and CONFIG --help lists them; presets and published models take none.
"""

import sys
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import tyro

from transformer_jax import zoo
from transformer_jax.analysis import complexity, describe, plot_flops
from transformer_jax.checkpoints import is_published, published_config
from transformer_jax.command_line import load
from transformer_jax.layers import Head, MaskedLanguageModel, NoHead, SentenceEmbedding, SequenceClassifier, TokenClassifier
from transformer_jax.layers.base import check_positive
from transformer_jax.models import EncoderDecoderConfig, ModelConfig
from transformer_jax.training import Experiment, LossSums, MaskedTokens, NextToken, Objective, SequenceLabels, SourceToTarget, TokenLabels

ASSUMED_VOCABULARY = 256
ASSUMED_LABELS = 8


@dataclass(frozen=True)
class Options:
    """Of this script. They are taken before a recipe sees its own, which may have the same names."""

    batch: int | None = None
    length: int | None = None
    vocab_size: int | None = None
    plot: str | None = None

    def __post_init__(self) -> None:
        check_positive(self, "batch", "length", "vocab_size")


@dataclass(frozen=True)
class OutputSum(Objective):
    """The sum of what a model without logits makes of inputs with these names."""

    _: KW_ONLY
    inputs: tuple[str, ...] = ("tokens",)

    def __call__(self, model: Any, variables: Any, batch: Any, rngs: Any = None) -> LossSums:
        total = model.apply(variables, *(batch[name] for name in self.inputs), rngs=rngs).sum()
        return LossSums(total, total, jnp.zeros(()), jnp.ones(()), {})

    def example(self, batch: int, length: int) -> Any:
        return {name: jnp.zeros((batch, length), jnp.int32) for name in self.inputs}


def main() -> None:
    options, arguments = tyro.cli(Options, prog="describe.py", args=sys.argv[1:], add_help=False, return_unknown_args=True)
    usage = __doc__.partition("\n\n")[2].strip()
    if not arguments or arguments[0].startswith("-"):
        sys.exit(usage)
    if {"-h", "--help"} & set(arguments):
        print(usage, end="\n\n")
    try:
        show(arguments[0], arguments[1:], options)
    except (NotImplementedError, OSError, TypeError, ValueError) as error:
        sys.exit(f"describe.py: error: {error}")


def show(source: str, flags: list[str], options: Options) -> None:
    unknown = not Path(source).exists() and len(Path(source).parts) == 1 and Path(source).suffix not in (".py", ".json")
    if source in zoo.names() or is_published(source) or unknown:
        if flags:
            raise ValueError(f"{flags[0]}: expected no flags of a recipe for a published model, received one; leave it out")
        config = zoo.config(source) if source in zoo.names() or unknown else published_config(source)
        length = options.length or min(config.max_length, 2048)
        if options.vocab_size:
            config = config.replace(vocab_size=options.vocab_size)
        return tell(config, config.make(), objective_of(config), options.batch or 1, length, Path(options.plot) if options.plot else None)
    file = Path(source, "config.json") if Path(source).is_dir() else Path(source)
    experiment, _ = load(str(file), flags, expected=Experiment, prog="describe.py")
    config, run = experiment.model, experiment.run
    if options.vocab_size or config.vocab_size is None:
        asked = getattr(getattr(experiment.data, "tokenizer", None), "vocab_size", ASSUMED_VOCABULARY) + experiment.objective.extra_tokens
        config = config.replace(vocab_size=options.vocab_size or asked)
        print(f"vocabulary: {config.vocab_size}" + ("" if options.vocab_size else " is assumed, as the data decides; --vocab-size says otherwise"))
    if getattr(config.head, "num_labels", ASSUMED_LABELS) is None:
        config = config.filled_in(config.vocab_size, ASSUMED_LABELS)
        print(f"classes: {ASSUMED_LABELS} are assumed, as the data decides; --model.head.num-labels says otherwise")
    model = config.make(precision=run.precision, backend=run.backend, unroll=run.unroll)
    plot = Path(options.plot) if options.plot else file.with_name("describe.png") if file.name == "config.json" else None
    tell(config, model, experiment.objective, options.batch or run.batch, options.length or experiment.length, plot)


def objective_of(config: ModelConfig) -> Objective:
    """What a published model was trained for."""
    two = isinstance(config, EncoderDecoderConfig)
    if isinstance(config.head, NoHead | SentenceEmbedding):
        print(f"loss: the sum of what the model gives is assumed, as {type(config.head).__name__} has none")
        return OutputSum(inputs=("source", "target") if two else ("tokens",))
    if two:
        return SourceToTarget()
    heads: dict[type[Head], Objective] = {MaskedLanguageModel: MaskedTokens(), SequenceClassifier: SequenceLabels(), TokenClassifier: TokenLabels()}
    return heads.get(type(config.head), NextToken())


def tell(config: ModelConfig, model: Any, objective: Objective, batch: int, length: int, plot: Path | None) -> None:
    if length > config.max_length:
        raise ValueError(f"--length: expected at most {config.max_length} (the model's max_length), received {length}; raise --model.max-length too")
    grows = complexity(config, length=length, precision=model.precision)
    print(describe(model, grows, batch=batch, length=length, objective=objective), end="")
    if plot:
        plot_flops(grows, plot)
        print(f"\nFLOPs against the length: {plot}")


if __name__ == "__main__":
    main()
