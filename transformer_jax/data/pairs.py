"""Pairs of texts, the second to be written given the first."""

from collections.abc import Sequence
from dataclasses import dataclass

from transformer_jax.data.base import Prepared, check_context
from transformer_jax.data.lines import Examples, Lines, Row, padded
from transformer_jax.tokenize import Vocabulary


@dataclass(frozen=True)
class Pairs(Lines):
    """Lines `source<TAB>target`, as examples `{"source": int32 [context], "target": int32 [context]}` without special tokens.

    One vocabulary serves both sides. A source has at most `context` tokens, and a target one less, for the begin or end that the objective adds. Pairs with
    the same source are all trained on or all held out.
    """

    def prepare(self, context: int) -> Prepared:
        check_context(context)
        train, held_out, digest = self.rows(_pair)
        vocabulary = self.tokenizer.train(side for row in train for side in (row.text, row.beside))
        return Prepared(
            vocabulary=vocabulary,
            train=_examples(train, vocabulary, context),
            held_out=_examples(held_out, vocabulary, context),
            summary=f"{len(train) + len(held_out):,} pairs ({len(train):,} to train on, {len(held_out):,} held out), vocabulary of {vocabulary.vocab_size:,}",
            digest=digest,
        )


def _pair(line: str) -> tuple[str, str]:
    sides = line.split("\t")
    if len(sides) != 2:
        raise ValueError(f"expected source<TAB>target, received {len(sides) - 1 or 'no'} tab{'s' * (len(sides) > 2)}")
    source, target = sides
    if not (source and target):
        raise ValueError(f"expected source<TAB>target, received an empty {'target' if source else 'source'}")
    return source, target


def _examples(rows: Sequence[Row], vocabulary: Vocabulary, context: int) -> Examples:
    sides = {"source": [vocabulary.encode_whole(row.text) for row in rows], "target": [vocabulary.encode(row.beside) for row in rows]}
    for side, most, reason in (("source", context, "the model's max_length"), ("target", context - 1, "the model's max_length less one for the end")):
        for row, ids in zip(rows, sides[side]):
            if len(ids) > most:
                raise ValueError(
                    f"{row.place}: expected a {side} of at most {most} tokens ({reason}), received {len(ids)}; shorten it, or give a larger max_length"
                )
    return Examples(**{side: padded(ids, context) for side, ids in sides.items()})
