"""An experiment that goes on from a published model."""

from pathlib import Path

from transformer_jax.checkpoints import is_published, published_config, published_vocabulary, writing
from transformer_jax.models import ModelConfig
from transformer_jax.tokenize import FromFile, Vocabulary
from transformer_jax.training.experiment import Experiment
from transformer_jax.training.objective import SpecialTokens

MASKS = ("[MASK]", "<mask>")


def initialised(experiment: Experiment, folder: str | Path) -> Experiment:
    """The experiment with a published model in place of its own, its tokenizer, and its parameters to start from.

    Of the experiment's model stay how long examples are and, where the published head is of another kind, the head. The data decides on the number of classes:
    a classifier of as many keeps its parameters.

    Raises:
        ValueError: a model of another shape, data with a vocabulary of its own, an objective that lacks a special token, an experiment that starts from
            something else, a tokenizer that is larger than the model's vocabulary. FileNotFoundError: no model is there, or no tokenizer.json.
    """
    if experiment.run.start:
        raise ValueError(f"--init: expected a recipe that starts from nothing, received one that starts from {experiment.run.start}; leave one of them out")
    if Path(folder, "checkpoints").is_dir() and not is_published(folder):
        way_out = f"start from it by --run.start {folder}, or write it as a published model by scripts/convert.py"
        raise ValueError(f"--init: expected a folder with a published model, received {folder}, a run's; {way_out}")
    own = experiment.model
    model = _headed(published_config(folder), folder, own)
    if type(model) is not type(own):
        kinds = (type(config).__name__.removesuffix("Config") for config in (own, model))
        raise ValueError("--init: expected a model of the recipe's kind, {}, received one of another, {}; take a recipe for that".format(*kinds))
    if not hasattr(experiment.data, "tokenizer"):
        raise ValueError(f"--init: expected data that takes a tokenizer, received {type(experiment.data).__name__}, which has its own; give files by --data")
    assert model.vocab_size is not None  # a published model's is known
    vocabulary = published_vocabulary(folder, model.vocab_size)
    return experiment.replace(
        model=model,
        data=experiment.data.replace(tokenizer=FromFile(str(Path(folder, "tokenizer.json")))),
        objective=experiment.objective.published(_special(folder, vocabulary, model.vocab_size)),
        run=experiment.run.replace(start=str(folder), length=experiment.run.length or min(own.max_length, model.max_length)),
    )


def brought(experiment: Experiment, other: Experiment) -> Experiment:
    """The experiment with all that of another which a published model would take the place of."""
    if experiment.length != other.length or type(experiment.model.head) is not type(other.model.head):
        return experiment
    data = experiment.data
    if hasattr(data, "tokenizer") and hasattr(other.data, "tokenizer"):
        data = data.replace(tokenizer=other.data.tokenizer)
    return experiment.replace(model=other.model, data=data)


def _headed(model: ModelConfig, folder: str | Path, own: ModelConfig) -> ModelConfig:
    if type(model.head) is not type(own.head):
        return published_config(folder, head=own.head)
    return model.replace(head=model.head.replace(num_labels=None)) if hasattr(model.head, "num_labels") else model


def _special(folder: str | Path, vocabulary: Vocabulary, vocab_size: int) -> SpecialTokens:
    """Those that the model has: a config.json may name others, GPT-2's in a smaller vocabulary."""
    how = writing(folder)
    named = ([] if how.begin is None else [how.begin], how.stop, [i for mask in MASKS if (i := vocabulary.id_of(mask)) is not None])
    return SpecialTokens(*(next((token for token in tokens if token < vocab_size), None) for tokens in named))
