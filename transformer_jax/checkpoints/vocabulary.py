"""The tokens of a published model."""

from pathlib import Path

from transformer_jax.tokenize import Vocabulary, load


def published_vocabulary(folder: str | Path, vocab_size: int) -> Vocabulary:
    """What the tokenizer.json beside a published model says.

    Args:
        folder: the model's.
        vocab_size: of the model, which may have more tokens, to round up.

    Raises:
        FileNotFoundError: there is no tokenizer.json. ValueError: it is none, or has more tokens than the model.
    """
    file = Path(folder, "tokenizer.json")
    if not file.is_file():
        way_out = "transformers writes it: AutoTokenizer.from_pretrained(folder).save_pretrained(folder)"
        raise FileNotFoundError(f"{folder}: expected a tokenizer.json beside config.json, received a folder without; {way_out}")
    vocabulary = load(file)
    if vocabulary.vocab_size > vocab_size:
        way_out = "take the one that the model was published with"
        expected = f"expected a tokenizer of at most {vocab_size} tokens (the model's vocab_size)"
        raise ValueError(f"{file}: {expected}, received one of {vocabulary.vocab_size}; {way_out}")
    return vocabulary
