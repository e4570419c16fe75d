import re
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from transformer_jax.command_line import extract_imports, import_module, load
from transformer_jax.config import Config, from_json, to_json


class Norm(Config):
    """Open base."""


@dataclass(frozen=True)
class RMSNorm(Norm):
    eps: float = 1e-6


@dataclass(frozen=True)
class LayerNorm(Norm):
    eps: float = 1e-5
    bias: bool = True


class Layer(Config):
    """Open base."""


@dataclass(frozen=True)
class Gated(Layer):
    d_ff: int
    activation: Literal["silu", "gelu"] = "silu"


@dataclass(frozen=True)
class Experts(Layer):
    d_ff: int
    expert: Layer
    num_experts: int = 2


@dataclass(frozen=True)
class Attention(Layer):
    num_heads: int = 2
    window: int | None = None
    sizes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Wide(Layer):
    a: int = 1
    b: float = 0.5
    c: int | None = None
    d: Literal["x", "y"] = "x"
    e: bool = False


@dataclass(frozen=True)
class Group(Config):
    repeat: int
    layers: tuple[Layer, ...] = ()


@dataclass(frozen=True)
class Model(Config):
    d_model: int
    groups: tuple[Group, ...]
    final_norm: Norm = RMSNorm()
    embedding_norm: Norm | None = None


class Optimizer(Config):
    """Open base."""


@dataclass(frozen=True)
class AdamW(Optimizer):
    learning_rate: float = 1e-3
    b2: float = 0.999
    clip: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.b2 >= 1:
            raise ValueError(f"AdamW.b2: expected less than 1, received {self.b2}")


@dataclass(frozen=True)
class Lion(Optimizer):
    learning_rate: float
    momentum: float
    b2: float = 0.99


class Source(Config):
    """Open base."""


@dataclass(frozen=True)
class Random(Source):
    vocab_size: int = 5


@dataclass(frozen=True)
class Data(Source):
    path: str = "inside"
    held_out: float = 0.1


@dataclass(frozen=True)
class Experiment(Config):
    model: Model
    data: Source = Data()
    optimizer: Optimizer = AdamW()
    seed: int = 0


@dataclass(frozen=True)
class Options:
    """What the script itself takes.

    Args:
        resume: go on where the last run stopped
    """

    resume: bool = False


RECIPE = f"""
from {__name__} import *

def config(*, d_model: int = 12, data: str = "", seed: int = 3, rate: float = 3e-4) -> Experiment:
    \"\"\"A small recipe.

    Args:
        d_model: width of the residual stream
        data: a text file
    \"\"\"
    if d_model % 2:
        raise ValueError(f"d_model: expected an even number, received {{d_model}}")
    layers = (Attention(), Gated(d_ff=4 * d_model))
    model = Model(d_model=d_model, groups=(Group(repeat=2, layers=layers), Group(repeat=5)))
    return Experiment(model=model, data=Data(path=data), optimizer=AdamW(learning_rate=rate), seed=seed)
"""

Write = Callable[[str, str], str]


@pytest.fixture
def write(tmp_path: Path) -> Iterator[Write]:
    before = set(sys.modules)

    def to_file(name: str, text: str) -> str:
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return str(path)

    yield to_file
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.fixture
def recipe(write: Write) -> str:
    return write("recipe.py", RECIPE)


def parse(source: str, line: str) -> tuple[Any, Options]:
    return load(source, line.split(), expected=Experiment, options=Options, prog="train.py")


def message(capsys: pytest.CaptureFixture[str], call: Callable[[], object]) -> str:
    """What a wrong command line is answered with: words only, tyro's boxes removed."""
    with pytest.raises(SystemExit) as stop:
        call()
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == "" and err.count("\n") < 20
    return re.sub(r"[─-╿\s]+", " ", err)


def help_of(capsys: pytest.CaptureFixture[str], source: str, line: str = "") -> str:
    with pytest.raises(SystemExit) as stop:
        parse(source, line + " --help")
    assert stop.value.code == 0
    return re.sub(r"[─-╿\s]+", " ", capsys.readouterr().out)


def test_without_flags_the_file_alone_decides(recipe: str) -> None:
    config, options = parse(recipe, "")
    assert config == sys.modules["recipe"].config()
    assert options == Options(resume=False)


@pytest.mark.parametrize(
    ("line", "value", "expected"),
    [
        ("--d-model 14", lambda c: (c.model.d_model, c.model.groups[0].layers[1].d_ff), (14, 56)),
        ("--d_model=14", lambda c: c.model.d_model, 14),
        ("--rate 1e-2", lambda c: c.optimizer.learning_rate, 1e-2),
        ("--model.groups.1.repeat 7", lambda c: [g.repeat for g in c.model.groups], [2, 7]),
        ("--model.groups.0.layers.1.d-ff 7", lambda c: c.model.groups[0].layers[1], Gated(d_ff=7)),
        ("--model.groups.0.layers.1.activation gelu", lambda c: c.model.groups[0].layers[1].activation, "gelu"),
        ("--model.groups.0.layers.0.window 7", lambda c: c.model.groups[0].layers[0].window, 7),
        ("--model.groups.0.layers.0.window None", lambda c: c.model.groups[0].layers[0].window, None),
        ("--model.groups.0.layers.0.sizes 3 5", lambda c: c.model.groups[0].layers[0].sizes, (3, 5)),
        ("--optimizer.clip 0.5", lambda c: c.optimizer.clip, 0.5),
        ("--model.final-norm layer-norm --model.final-norm.no-bias", lambda c: c.model.final_norm, LayerNorm(bias=False)),
        ("--optimizer.learning_rate=-2e-1", lambda c: c.optimizer.learning_rate, -0.2),
    ],
)
def test_a_parameter_or_a_path_sets_a_value(recipe: str, line: str, value: Callable[[Any], object], expected: object) -> None:
    assert value(parse(recipe, line)[0]) == expected


@pytest.mark.parametrize("name", ["layer-norm", "LayerNorm", "layernorm", "layer_norm"])
def test_a_type_is_swapped_by_name_however_it_is_spelled(recipe: str, name: str) -> None:
    assert parse(recipe, f"--model.final-norm {name}")[0].model.final_norm == LayerNorm()


def test_a_swap_keeps_what_was_set_and_takes_the_new_types_defaults_for_the_rest(recipe: str) -> None:
    config, _ = parse(recipe, "--optimizer Lion --optimizer.momentum 0.5")
    assert config.optimizer == Lion(learning_rate=3e-4, momentum=0.5, b2=0.99)


def test_a_default_is_carried_over_where_the_new_type_has_none(recipe: str) -> None:
    config, _ = parse(recipe, "--rate 1e-3 --optimizer lion --optimizer.momentum 0.5")
    assert config.optimizer.learning_rate == AdamW().learning_rate == 1e-3


def test_a_field_that_does_not_fit_the_new_type_is_not_carried_over(write: Write) -> None:
    own = "\n@dataclass(frozen=True)\nclass Named(Norm):\n    eps: str = 'small'\n"
    source = write("other.py", RECIPE.replace("Group(repeat=5))", "Group(repeat=5)), final_norm=RMSNorm(eps=0.5)") + own)
    assert parse(source, "--model.final-norm layer-norm")[0].model.final_norm == LayerNorm(eps=0.5)
    assert parse(source, "--model.final-norm named")[0].model.final_norm.eps == "small"


def test_a_property_of_the_old_type_is_no_field(write: Write) -> None:
    own = "\n@dataclass(frozen=True)\nclass Scaled(Norm):\n    @property\n    def bias(self) -> bool:\n        return False\n"
    source = write("own.py", RECIPE.replace("Group(repeat=5))", "Group(repeat=5)), final_norm=Scaled()") + own)
    assert parse(source, "--model.final-norm layer-norm")[0].model.final_norm == LayerNorm(bias=True)


def test_each_place_of_a_tuple_has_its_own_base(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    fields = ("both: tuple[Norm, Layer] = (RMSNorm(), Attention())", "more: tuple[Norm, ...] | None = (RMSNorm(), RMSNorm())")
    own = "\n    ".join(["\n@dataclass(frozen=True)\nclass Pair(Optimizer):", *fields]) + "\n"
    source = write("pair.py", RECIPE + own)
    pair = parse(source, "--optimizer pair --optimizer.both.0 layer-norm --optimizer.both.1 wide --optimizer.more.1 layer-norm")[0].optimizer
    assert (pair.both, pair.more) == ((LayerNorm(), Wide()), (RMSNorm(), LayerNorm()))
    assert "expected one of layer-norm, rms-norm" in message(capsys, lambda: parse(source, "--optimizer pair --optimizer.both.0 wide"))


UNFINISHED = """
import abc

class Undecorated(Norm): ...

@dataclass(frozen=True)
class Abstract(Norm, abc.ABC):
    @abc.abstractmethod
    def make(self): ...
"""


def test_a_type_that_has_no_instances_is_not_offered(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    source = write("unfinished.py", RECIPE + UNFINISHED)
    assert "expected one of layer-norm, rms-norm; received 'abstract'" in message(capsys, lambda: parse(source, "--model.final-norm abstract"))


def test_a_number_where_a_config_could_be_is_set_by_its_path(write: Write) -> None:
    own = "\n@dataclass(frozen=True)\nclass Scheduled(Optimizer):\n    rate: float | Norm = 0.5\n"
    assert parse(write("own.py", RECIPE + own), "--optimizer scheduled --optimizer.rate 0.25")[0].optimizer.rate == 0.25


def test_a_swap_reaches_into_tuples_and_into_what_it_brought_along(recipe: str) -> None:
    path = "--model.groups.0.layers.1"
    config, _ = parse(recipe, f"{path}.expert.window 7 {path} experts {path}.expert attention {path}.num-experts 3")
    assert config.model.groups[0].layers[1] == Experts(d_ff=48, expert=Attention(window=7), num_experts=3)


@pytest.mark.parametrize(
    ("line", "layers"),
    [
        ("--model.groups.1.layers attention,Wide --model.groups.1.layers.0.window 7", (Attention(window=7), Wide())),
        ("--model.groups.0.layers attention", (Attention(),)),
        (
            "--model.groups.0.layers gated,experts --model.groups.0.layers.0.d-ff 4 --model.groups.0.layers.1.d-ff 8 --model.groups.0.layers.1.expert wide",
            (Gated(d_ff=4), Experts(d_ff=8, expert=Wide())),
        ),
        ("--model.groups.0.layers none", ()),
        ("--model.groups.0.layers attention,attention --model.groups.0.layers.1 wide", (Attention(), Wide())),
    ],
)
def test_a_tuple_is_set_by_the_names_of_its_types(recipe: str, line: str, layers: object) -> None:
    group = int(line[len("--model.groups.")])
    assert parse(recipe, line)[0].model.groups[group].layers == layers


@pytest.mark.parametrize("line", ["--files", "--files --seed 5"])
def test_a_flag_that_takes_several_values_takes_at_least_one(write: Write, capsys: pytest.CaptureFixture[str], line: str) -> None:
    source = write("own.py", RECIPE.replace('data: str = ""', 'data: str = "", files: tuple[str, ...] = ("a",)'))
    assert "--files: expected at least one value, received none" in message(capsys, lambda: parse(source, line))


def test_a_wrong_name_in_a_tuple_is_answered_with_the_nearest(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    said = message(capsys, lambda: parse(recipe, "--model.groups.1.layers attention,wode"))
    assert "--model.groups.1.layers.1: expected one of" in said and "received 'wode' (nearest: wide)" in said


def test_a_field_that_may_be_none_is_swapped_both_ways(recipe: str) -> None:
    swapped, _ = parse(recipe, "--model.embedding-norm rms-norm --model.embedding-norm.eps 0.5")
    assert swapped.model.embedding_norm == RMSNorm(eps=0.5)
    source = str(Path(recipe).with_name("config.json"))
    Path(source).write_text(to_json(swapped))
    assert parse(source, "--model.embedding-norm none")[0].model.embedding_norm is None


def test_parameters_come_before_swaps_and_swaps_before_paths_in_any_order(recipe: str) -> None:
    flags = ["--optimizer.learning-rate 5", "--optimizer.momentum 0.5", "--optimizer lion", "--rate 7", "--d-model 14"]
    config, _ = parse(recipe, " ".join(flags))
    assert parse(recipe, " ".join(reversed(flags)))[0] == config
    assert config.optimizer == Lion(learning_rate=5.0, momentum=0.5)
    assert parse(recipe, "--optimizer.momentum 0.5 --optimizer lion --rate 7")[0].optimizer.learning_rate == 7


def test_a_parameter_wins_over_the_field_of_its_name_and_leaves_the_fields_below(recipe: str) -> None:
    config, _ = parse(recipe, "--data text --data.held-out 0.2 --seed 11")
    assert (config.data, config.seed) == (Data(path="text", held_out=0.2), 11)


def test_a_config_is_checked_only_once_all_flags_are_in(write: Write) -> None:
    half = """
@dataclass(frozen=True)
class Even(Optimizer):
    a: int = 1
    b: int = 1

    def __post_init__(self) -> None:
        if self.a != self.b:
            raise ValueError("a and b differ")
"""
    source = write("half.py", RECIPE + half)
    assert parse(source, "--optimizer even --optimizer.a 2 --optimizer.b 2")[0].optimizer == sys.modules["half"].Even(a=2, b=2)


def test_options_of_the_script_come_back_apart(recipe: str) -> None:
    assert parse(recipe, "--optimizer.b2 0.5 --resume")[1] == Options(resume=True)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("--d-modle 3", "unknown flag --d-modle (nearest: --d-model)"),
        ("--resum", "unknown flag --resum (nearest: --resume)"),
        ("--optimizer.learning-rat=3", "unknown flag --optimizer.learning-rat (nearest: --optimizer.learning-rate)"),
        ("--optimizr lion", "unknown flag --optimizr (nearest: --optimizer)"),
        ("--model.groups.0.layers.2.d-ff 3", "unknown flag --model.groups.0.layers.2.d-ff (nearest: --model.groups.0.layers.1.d-ff)"),
        ("--qqq 3", "unknown flag --qqq "),
        ("stray", "unknown argument stray "),
        ("--optimizer lian", "--optimizer: expected one of adam-w, lion; received 'lian' (nearest: lion)"),
        ("--optimizer RMSNorm", "--optimizer: expected one of adam-w, lion; received 'RMSNorm'"),
        ("--model.final-norm RMSNrom", "--model.final-norm: expected one of layer-norm, rms-norm; received 'RMSNrom' (nearest: rms-norm)"),
        ("--optimizer lion", "--optimizer.momentum FLOAT (required)"),
        ("--model.groups.0.layers.1 experts", "--model.groups.0.layers.1.expert is required: attention, experts, gated, wide"),
        ("--model.groups.0.layers.0 gated", "--model.groups.0.layers.0.d-ff INT (required)"),
        ("--d-model many", "--d-model: invalid literal for int() with base 10: 'many'"),
        ("--optimizer.b2 x", "--optimizer.b2: could not convert string to float: 'x'"),
        (
            "--model.groups.0.layers.1.activation relu",
            "invalid choice 'relu' for argument '--model.groups.0.layers.1.activation'. Expected one of ('silu', 'gelu')",
        ),
        ("--model.groups.0.layers.0.window 1.5", "invalid literal for int() with base 10: '1.5'"),
        ("--optimizer.b2", "Missing value for argument '--optimizer.b2'"),
        ("--optimizer.b2 2", "train.py: error: AdamW.b2: expected less than 1, received 2.0"),
    ],
)
def test_a_wrong_flag_is_answered_with_the_way_out(recipe: str, capsys: pytest.CaptureFixture[str], line: str, expected: str) -> None:
    assert expected in message(capsys, lambda: parse(recipe, line))


def test_what_the_config_function_refuses_is_said_with_its_line(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = 1 + RECIPE.splitlines().index(next(text for text in RECIPE.splitlines() if "raise ValueError" in text))
    assert f"train.py: error: {recipe}:{line}: d_model: expected an even number, received 13" in message(capsys, lambda: parse(recipe, "--d-model 13"))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("nothing.py", "", "nothing.py: expected a function `config`, found none"),
        ("value.py", "config = 3", "value.py: expected a function `config`, found 3"),
        ("kind.py", "def config(): return 3", "kind.py: expected a config of type Experiment, received int"),
        ("part.py", f"from {__name__} import *\ndef config(): return Data()", "part.py: expected a config of type Experiment, received Data"),
        ("failing.py", "import no_such_thing", "failing.py:1: No module named 'no_such_thing'"),
        ("wrong.py", f"from {__name__} import *\nDATA = Data(held_out='')", "wrong.py:2: Data.held_out: expected float, received ''"),
        ("both.py", "def config(*, resume: bool = True): ...", "both.py: the parameter 'resume' is also an option of train.py"),
        ("nested.py", f"from {__name__} import *\ndef config(*, norm: Norm = RMSNorm()): ...", "nested.py: the parameter 'norm' is a config"),
        ("json.py", RECIPE, "a module 'json' is already imported from"),
        ("config.toml", "", "config.toml: expected a file that ends in .py or .json"),
        ("config.json", "{", "config.json: not JSON"),
        ("config.json", to_json(Data()), "config.json: expected a config of type Experiment, received Data"),
        ("config.json", '{"type": "elsewhere:Model"}', "--import FILE|MODULE"),
    ],
)
def test_a_wrong_file_is_answered_with_its_name(write: Write, capsys: pytest.CaptureFixture[str], name: str, text: str, expected: str) -> None:
    assert expected in message(capsys, lambda: parse(write(name, text), ""))


def test_a_missing_file_is_answered_with_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert "train.py: error: nowhere.py: no such file" in message(capsys, lambda: parse("nowhere.py", ""))
    assert "train.py: error: nowhere.json: no such file" in message(capsys, lambda: parse("nowhere.json", ""))


def test_json_is_a_source_like_another(recipe: str, write: Write) -> None:
    config, _ = parse(recipe, "--d-model 14")
    source = write("config.json", to_json(config))
    assert parse(source, "")[0] == config
    changed, _ = parse(source, "--model.d-model 16 --optimizer lion --optimizer.momentum 0.5 --seed 5")
    assert (changed.model.d_model, changed.optimizer, changed.seed) == (16, Lion(learning_rate=3e-4, momentum=0.5), 5)


def test_help_lists_options_parameters_and_paths_with_types_and_defaults(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, recipe, "--optimizer.b2 0.5 --rate 0.25")
    listed = [
        "--import FILE|MODULE",
        "--resume, --no-resume go on where the last run stopped (default: False)",
        "A small recipe.",
        "--d-model INT width of the residual stream (default: 12)",
        "--data STR a text file (default: '')",
        "--model.d-model INT (default: 12)",
        "--model.groups.0.repeat INT (default: 2)",
        "--model.groups.0.layers.0 {attention,experts,gated,wide} (default: attention)",
        "--model.groups.0.layers.0.window {None}|INT (default: None)",
        "--model.groups.0.layers.1.activation {silu,gelu} (default: silu)",
        "--model.groups.1.repeat INT (default: 5)",
        "--model.final-norm {layer-norm,rms-norm} (default: rms-norm)",
        "--model.embedding-norm {layer-norm,rms-norm,none} (default: none)",
        "--data.held-out FLOAT (default: 0.1)",
        "--optimizer {adam-w,lion} (default: adam-w)",
        "--optimizer.learning-rate FLOAT (default: 0.25)",
    ]
    places = [text.find(row) for row in listed]
    assert -1 not in places and places == sorted(places)
    assert text.count("--seed ") == 1 and "--data {" not in text  # the parameter's flag only
    assert "--model.groups.0 {" not in text  # of one type only


def test_help_shows_the_fields_of_the_type_swapped_in(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = help_of(capsys, recipe, "--optimizer lion")
    assert "--optimizer.momentum FLOAT (required)" in text and "--optimizer.clip" not in text


def test_a_required_parameter_is_asked_for_and_help_says_so(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    source = write("required.py", RECIPE.replace("d_model: int = 12", "d_model: int"))
    assert "--d-model INT" in message(capsys, lambda: parse(source, ""))
    assert parse(source, "--d-model 14")[0].model.d_model == 14
    assert "Give the required flags, and --help lists all others" in help_of(capsys, source)
    assert "--optimizer.b2 FLOAT" in help_of(capsys, source, "--d-model 14")


def test_help_for_150_flags_takes_a_second_at_most(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a processor; the better of two, for a loaded machine may run at half its speed for a while."""
    layers = "layers = tuple(Wide(a=n) for n in range(24))"
    source, seconds = write("wide.py", re.sub("layers = .*", layers, RECIPE)), []
    for _ in range(2):
        start = time.process_time()
        text = help_of(capsys, source)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 1
    assert text.count(" --") > 150 and "--model.groups.0.layers.23.a INT (default: 23)" in text


OWN = f"""
from {__name__} import *

@dataclass(frozen=True)
class Muon(Optimizer):
    steps: int = 5
"""


def test_an_imported_type_can_be_named_by_flags_and_by_json(recipe: str, write: Write) -> None:
    own = write("own.py", OWN)
    config, _ = parse(recipe, f"--optimizer muon --import {own} --optimizer.steps 7")
    assert config.optimizer == sys.modules["own"].Muon(steps=7)
    source = write("config.json", to_json(config))
    del sys.modules["own"], config
    again, _ = parse(source, f"--import={own}")
    assert again.optimizer == sys.modules["own"].Muon(steps=7)


def test_types_of_one_name_are_told_apart_by_their_module(recipe: str, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (write(name, OWN.replace("Muon", "Twin")) for name in ("first.py", "second.py"))
    imports = f"--import {first} --import {second}"
    assert parse(recipe, f"{imports} --optimizer second:Twin")[0].optimizer == sys.modules["second"].Twin()
    assert "first:Twin, lion, second:Twin; received 'twin'" in message(capsys, lambda: parse(recipe, f"{imports} --optimizer twin"))


def test_extract_imports_leaves_the_other_arguments(write: Write) -> None:
    own = write("own.py", OWN)
    assert extract_imports(["run.json", "--import", own, "--seed", "3", "--import=string", "--help"], prog="x.py") == ["run.json", "--seed", "3", "--help"]
    assert "own" in sys.modules


@pytest.mark.parametrize(("args", "expected"), [(["no.py"], "no such file: no.py"), (["no_module"], "No module named 'no_module'"), ([], "Missing value")])
def test_an_import_that_fails_is_named(capsys: pytest.CaptureFixture[str], args: list[str], expected: str) -> None:
    assert expected in message(capsys, lambda: extract_imports(["--import", *args], prog="x.py"))


def test_a_file_is_imported_once_under_its_stem(write: Write) -> None:
    own = write("own.py", OWN)
    module = import_module(own)
    assert import_module(own) is module is sys.modules["own"]
    assert from_json(to_json(module.Muon()), Optimizer) == module.Muon()
    with pytest.raises(ImportError, match=r"rename .*own.py: a module 'own' is already imported from"):
        import_module(write("elsewhere/own.py", OWN))


def test_a_file_that_fails_leaves_no_module_behind(write: Write) -> None:
    failing = write("failing.py", "1 / 0")
    with pytest.raises(ZeroDivisionError):
        import_module(failing)
    assert "failing" not in sys.modules


def test_annotations_may_be_strings(write: Write) -> None:
    source = write("strings.py", "from __future__ import annotations\n" + RECIPE)
    assert parse(source, "--d-model 14")[0].model.d_model == 14
