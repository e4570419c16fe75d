import hashlib
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from transformer_jax.config import from_json, to_json
from transformer_jax.data import Labelled, TokenLabelled, batches
from transformer_jax.tokenize import BytePairs, Bytes, Characters

CONTEXT = 7


@pytest.fixture
def file(tmp_path: Path):
    """`file(lines)`: a path with these lines, each JSON of what is no string."""

    def write(lines: list, name: str = "some.jsonl") -> str:
        (tmp_path / name).write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines), encoding="utf-8")
        return str(tmp_path / name)

    return write


def kind_of(n: int) -> str:
    return ("odd", "even", "by five")[0 if n % 2 else 1 + (n % 5 == 0)]


def text_of(n: int) -> str:
    return f"{n:03}" * (1 + n % 3)  # 3, 6 or 9 characters


# In the texts of characters a digit is "odd" or "even".
WHOLE = [{"text": text_of(n), "label": kind_of(n)} for n in range(101)]
EACH = [{"text": text_of(n), "labels": [("even", "odd")[int(c) % 2] for c in text_of(n)]} for n in range(101)]


def examples(prepared, part) -> list[dict[str, np.ndarray]]:
    dataset = getattr(prepared, part)
    return [dataset[n] for n in range(len(dataset))]


def text(prepared, tokens) -> str:
    length = (tokens >= 0).sum()
    assert np.all(tokens[length:] == -1)
    return prepared.vocabulary.decode(tokens[:length])


@pytest.mark.parametrize("tokenizer", [Characters(), Bytes(), BytePairs(263)])
def test_examples_are_the_texts_with_their_labels(file, tokenizer):
    context = 9
    prepared = Labelled((file(WHOLE),), tokenizer=tokenizer).prepare(context)
    assert prepared.labels == ("by five", "even", "odd")
    both = examples(prepared, "train") + examples(prepared, "held_out")
    assert len(prepared.held_out) == 10
    for example in both:
        assert {name: (a.shape, a.dtype) for name, a in example.items()} == {"tokens": ((context,), np.int32), "label": ((), np.int32)}
    found = [{"text": text(prepared, example["tokens"]), "label": prepared.labels[example["label"]]} for example in both]
    assert sorted(found, key=str) == sorted(WHOLE, key=str)
    train, held_out = ({text(prepared, example["tokens"]) for example in examples(prepared, part)} for part in ("train", "held_out"))
    assert not train & held_out


def test_a_longer_text_is_cut_and_the_summary_counts_it(file):
    prepared = Labelled((file(WHOLE),)).prepare(CONTEXT)
    assert sum(len(line["text"]) == 9 for line in WHOLE) == 33
    assert prepared.summary == "101 texts (91 to train on, 10 held out), 33 of them cut at 7 tokens, 3 classes, vocabulary of 26"
    found = {text(prepared, example["tokens"]) for part in ("train", "held_out") for example in examples(prepared, part)}
    assert found == {line["text"][:CONTEXT] for line in WHOLE}


@pytest.mark.parametrize("context", [1, 3, 7, 9, 10])
def test_every_character_has_its_label_once_and_padding_has_none(file, context):
    prepared = TokenLabelled((file(EACH),)).prepare(context)
    assert prepared.labels == ("even", "odd")
    found = []
    for part in ("train", "held_out"):
        for example in examples(prepared, part):
            assert {name: (a.shape, a.dtype) for name, a in example.items()} == dict.fromkeys(("tokens", "labels"), ((context,), np.int32))
            np.testing.assert_array_equal(example["labels"] >= 0, example["tokens"] >= 0)
            characters = text(prepared, example["tokens"])
            assert [prepared.labels[n] for n in example["labels"][: len(characters)]] == [("even", "odd")[int(c) % 2] for c in characters]
            found.append(characters)
    assert sorted(found) == sorted(line["text"][n : n + context] for line in EACH for n in range(0, len(line["text"]), context))


def test_the_windows_of_a_text_follow_one_another_on_one_side(file):
    prepared = TokenLabelled((file(EACH),)).prepare(3)
    held_out = [text(prepared, example["tokens"]) for example in examples(prepared, "held_out")]
    train = [text(prepared, example["tokens"]) for example in examples(prepared, "train")]
    assert not set(held_out) & set(train)
    for windows in (held_out, train):
        assert windows == [text_of(int(number))[:3] for number in dict.fromkeys(windows) for _ in range(1 + int(number) % 3)]
    assert prepared.summary == "101 texts (91 to train on, 10 held out), 67 of them laid in windows of 3 tokens, 2 classes, vocabulary of 26"


@pytest.mark.parametrize(("config", "lines"), [(Labelled, WHOLE), (TokenLabelled, EACH)])
def test_classes_that_are_given_are_numbered_as_given(file, config, lines):
    names = sorted(config((file(lines),)).prepare(CONTEXT).labels, reverse=True)
    assert config((file(lines),), classes=tuple(names)).prepare(CONTEXT).labels == tuple(names)


def test_given_classes_number_the_labels(file):
    default = Labelled((file(WHOLE),)).prepare(CONTEXT)
    given = Labelled((file(WHOLE),), classes=("odd", "even", "by five")).prepare(CONTEXT)
    for a, b in zip(examples(default, "train"), examples(given, "train"), strict=True):
        assert default.labels[a["label"]] == given.labels[b["label"]]


@pytest.mark.parametrize(("config", "lines"), [(Labelled, WHOLE), (TokenLabelled, EACH)])
def test_they_make_batches_that_can_be_stacked(file, config, lines):
    prepared = config((file(lines),)).prepare(CONTEXT)
    batch = next(batches(prepared.train, batch=5, seed=0))
    assert {name: a.shape[0] for name, a in batch.items()} == dict.fromkeys(batch, 5)
    example = prepared.train[0]
    assert {name: a.shape for name, a in batch.items()} == {name: (5, *a.shape) for name, a in example.items()}
    empty = jax.tree.map(lambda a: np.full_like(a, -1), example)  # as the training loop fills a last batch
    assert jax.tree.map(lambda *a: np.stack(a).shape, example, empty) == {name: (2, *a.shape) for name, a in example.items()}
    with pytest.raises(ValueError, match="read-only"):
        example["tokens"][0] = 1


@pytest.mark.parametrize("config", [Labelled, TokenLabelled])
def test_configs_with_classes_survive_json(config):
    value = config(("a.jsonl",), tokenizer=Bytes(), held_out=0.2, classes=("a", "b"))
    assert from_json(to_json(value), config) == value


def test_fields_of_other_names_are_left_alone(file):
    more = [{**line, "id": n} for n, line in enumerate(WHOLE)]
    a, b = (Labelled((file(lines),)).prepare(CONTEXT) for lines in (WHOLE, more))
    assert [text(a, e["tokens"]) for e in examples(a, "held_out")] == [text(b, e["tokens"]) for e in examples(b, "held_out")]


WHOLE_FORM, EACH_FORM = r'expected \{"text": "\.\.\.", "label": "\.\.\."\}', r'expected \{"text": "\.\.\.", "labels": \["\.\.\.", \.\.\.\]\}'


@pytest.mark.parametrize(
    ("config", "line", "message"),
    [
        (Labelled, "{", f"{WHOLE_FORM}, received what is not JSON: Expecting property name"),
        (Labelled, "", f"{WHOLE_FORM}, received what is not JSON: Expecting value"),
        (Labelled, '["a", "b"]', rf"{WHOLE_FORM}, received \['a', 'b'\]"),
        (Labelled, {"label": "odd"}, f"{WHOLE_FORM}, received none of the name 'text'"),
        (Labelled, {"text": 7, "label": "odd"}, f"{WHOLE_FORM}, received text = 7"),
        (Labelled, {"text": "", "label": "odd"}, f"{WHOLE_FORM}, received text = ''"),
        (Labelled, {"text": "a"}, f"{WHOLE_FORM}, received none of the name 'label'"),
        (Labelled, {"text": "a", "label": 1}, f"{WHOLE_FORM}, received label = 1"),
        (Labelled, {"text": "a", "label": None}, f"{WHOLE_FORM}, received label = None"),
        (Labelled, r'{"text": "a\ud83e", "label": "odd"}', r"expected Unicode text, received the lone surrogate '\\ud83e' at index 1"),
        (TokenLabelled, {"text": "ab"}, f"{EACH_FORM}, received none of the name 'labels'"),
        (TokenLabelled, {"text": "ab", "labels": "xy"}, f"{EACH_FORM}, received labels = 'xy'"),
        (TokenLabelled, {"text": "ab", "labels": ["x", 2]}, rf"{EACH_FORM}, received labels = \['x', 2\]"),
        (TokenLabelled, {"text": "ab", "labels": ["x"]}, "expected a label for each character, received 1 for 2 characters"),
    ],
)
def test_a_bad_line_of_json_is_named(file, config, line, message):
    good = WHOLE if config is Labelled else EACH
    with pytest.raises(ValueError, match=rf"{config.__name__}\.files: .*some\.jsonl, line 38: {message}"):
        config((file([*good[:37], line, *good[37:]]),)).prepare(CONTEXT)


def test_a_label_that_only_held_out_lines_have_is_named(file):
    prepared = Labelled((file(WHOLE),)).prepare(9)
    first = text(prepared, prepared.held_out[0]["tokens"])
    number = [line["text"] for line in WHOLE].index(first)
    changed = [{**line, "label": "evan" if n == number else line["label"]} for n, line in enumerate(WHOLE)]
    message = (
        rf"some\.jsonl, line {number + 1}, which is held out: expected a label that a line to train on has, received 'evan' \(nearest: even\); "
        r"give more examples of it, or another Labelled\.held_out than 0\.1"
    )
    with pytest.raises(ValueError, match=message):
        Labelled((file(changed),)).prepare(9)
    with pytest.raises(ValueError, match=r"Labelled\.classes: expected classes of lines to train on, received 'evan', which none has; give more examples"):
        Labelled((file(changed),), classes=("even", "evan", "odd", "by five")).prepare(9)


def test_a_label_that_is_no_class_is_named(file):
    with pytest.raises(ValueError, match=r"line 1: expected a label out of Labelled\.classes = \('even', 'odd'\), received 'by five'"):
        Labelled((file(WHOLE),), classes=("even", "odd"), held_out=0.01).prepare(CONTEXT)
    with pytest.raises(ValueError, match=r"TokenLabelled\.classes = \('evening', 'odd'\), received 'even' \(nearest: evening\)"):
        TokenLabelled((file(EACH),), classes=("evening", "odd")).prepare(CONTEXT)


def test_a_class_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"Labelled\.classes: expected each class once, received \('a', 'b', 'a'\)"):
        Labelled(("a.jsonl",), classes=("a", "b", "a"))


ONE_EACH = r"expected a tokenizer that makes one token of each character, received"


@pytest.mark.parametrize(
    ("tokenizer", "word", "message"),
    [
        (Bytes(), "né", rf"{ONE_EACH} 3 tokens of 2 characters 'né'; Characters\(\) does so"),
        (BytePairs(263), "0" * 12, rf"{ONE_EACH} \d+ tokens of \d+ characters"),
    ],
)
def test_tokens_that_are_not_characters_are_refused_with_the_line(file, tokenizer, word, message):
    lines = [*EACH, {"text": word, "labels": ["odd"] * len(word)}]
    with pytest.raises(ValueError, match=rf"TokenLabelled\.files: .*some\.jsonl, line \d+: {message}"):
        TokenLabelled((file(lines),), tokenizer=tokenizer).prepare(CONTEXT)


def test_a_held_out_character_that_was_not_trained_on_is_refused_with_the_line(file):
    texts = sorted((line["text"] for line in EACH), key=lambda text: hashlib.sha256(text.encode()).digest())
    words = (f"{chr(code)}12" for code in range(0xE0, 0x17F))
    word = next(word for word in words if hashlib.sha256(word.encode()).digest() < hashlib.sha256(texts[0].encode()).digest())  # so it is held out
    lines = [*EACH[:53], {"text": word, "labels": ["odd", "odd", "even"]}, *EACH[53:]]
    with pytest.raises(ValueError, match=rf"line 54: {ONE_EACH} 6 tokens of 3 characters '{word}'; Characters\(\) does so for characters of the training"):
        TokenLabelled((file(lines),)).prepare(CONTEXT)


def test_one_class_alone_and_a_label_without_a_name_are_refused(file) -> None:
    lines = [{"text": str(n), "label": "a"} for n in range(20)]
    with pytest.raises(ValueError, match=r"Labelled\.files: expected lines of at least two classes, received 'a' alone"):
        Labelled((file(lines),)).prepare(CONTEXT)
    with pytest.raises(ValueError, match=r"line 21: expected .*, received label = ''"):
        Labelled((file([*lines, {"text": "x", "label": ""}]),)).prepare(CONTEXT)
