"""Presets have as many parameters as what was published."""

import math

import jax
import pytest

from transformer_jax import zoo
from transformer_jax.layers import NoHead
from transformer_jax.models import ModelConfig
from transformer_jax.models.base import variable_shapes


def transformer_of_2017(d_model: int, d_ff: int, tokens: int = 37000, layers: int = 6) -> int:
    """From the paper's shapes: four projections without biases, two products with biases, norms with scale and bias; the decoder has attention twice."""
    attention, mlp, norm = 4 * d_model**2, 2 * d_model * d_ff + d_ff + d_model, 2 * d_model
    return tokens * d_model + layers * (attention + norm + mlp + norm) + layers * (2 * (attention + norm) + mlp + norm)


# Parameters, tied ones counted once.
PUBLISHED = {
    # Table 3 of arXiv:1706.03762 says 65 and 213 million, with a vocabulary of about 37,000.
    "transformer-base": transformer_of_2017(512, 2048),
    "transformer-big": transformer_of_2017(1024, 4096),
    # github.com/keras-team/keras-hub, keras_hub/src/models/gpt2/gpt2_presets.py
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    # Llama 2: the tensors of huggingface.co/meta-llama's folders, as those who have read them say, less head_dim / 2 frequencies in each layer
    "llama-2-7b": 6_738_415_616,
    "llama-2-13b": 13_015_864_320,
    "llama-2-70b": 68_976_648_192,
    # keras_hub/src/models/llama3/llama3_presets.py; from the second on the tensors of huggingface.co/meta-llama's folders of 3.1, as those who have read
    # them say, and for 3.2 arXiv:2502.00706, table 4
    "llama-3-8b": 8_030_261_248,
    "llama-3-70b": 70_553_706_496,
    "llama-3.1-8b": 8_030_261_248,
    "llama-3.1-70b": 70_553_706_496,
    "llama-3.1-405b": 405_853_388_800,
    "llama-3.2-1b": 1_235_814_400,
    "llama-3.2-3b": 3_212_749_824,
    # keras_hub/src/models/mistral/mistral_presets.py
    "mistral-7b": 7_241_732_096,
    "mistral-7b-v0.3": 7_248_023_552,
    # arXiv:2502.00706, table 4, and keras_hub/src/models/qwen/qwen_presets.py; qwen2.5-7b is that of huggingface.co/Qwen/Qwen2.5-7B-Instruct's
    # tensors, qwen2.5-14b that of its GGUF files (general.parameter_count)
    "qwen2-0.5b": 494_032_768,
    "qwen2-1.5b": 1_543_714_304,
    "qwen2-7b": 7_615_616_512,
    "qwen2-72b": 72_706_203_648,
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    # keras_hub/src/models/qwen3/qwen3_presets.py
    "qwen3-0.6b": 596_049_920,
    "qwen3-1.7b": 1_720_574_976,
    "qwen3-4b": 4_022_468_096,
    "qwen3-8b": 8_190_735_360,
    "qwen3-14b": 14_768_307_200,
    "qwen3-32b": 32_762_123_264,
    # keras_hub/src/models/gemma/gemma_presets.py
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    # keras_hub/src/models/gemma3/gemma3_presets.py, which leaves out the table's 64 rows for pictures
    "gemma-3-270m": 268_098_176,
    "gemma-3-1b-pt": 999_885_952,
    "gemma-3-4b-text": 3_880_099_328 + 64 * 2560,
    "gemma-3-12b-text": 11_765_788_416 + 64 * 3840,
    "gemma-3-27b-text": 27_009_002_240 + 64 * 5376,
    # the tensors of huggingface.co/allenai's folders, as those who have read them say
    "olmo-2-0425-1b": 1_484_916_736,
    "olmo-2-1124-7b": 7_298_617_344,
    "olmo-2-1124-13b": 13_716_198_400,
    "olmo-2-0325-32b": 32_234_279_936,
    # keras_hub/src/models/phi3/phi3_presets.py; from phi-3.5-mini on the tensors of huggingface.co/microsoft's folders, as those who have read them say
    "phi-3-mini-4k": 3_821_079_552,
    "phi-3-mini-128k": 3_821_079_552,
    "phi-3.5-mini": 3_821_079_552,
    "phi-3-medium-4k": 13_960_238_080,
    "phi-4-mini": 3_836_021_760,
    # keras_hub/src/models/mixtral/mixtral_presets.py; the second is that of the tensors of huggingface.co/mistral-community/Mixtral-8x22B-v0.1
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    # keras_hub/src/models/qwen3_moe/qwen3_moe_presets.py
    "qwen3-30b-a3b": 30_532_122_624,
    "qwen3-235b-a22b": 235_093_634_560,
    # the tensors of huggingface.co/deepseek-ai's folders, as those who have read them say; that of V3 less its layer of further tokens
    # (with it and the scales of its 8 bits: 684,531,386,000)
    "deepseek-v2-lite": 15_706_484_224,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200,
    # the tensors of huggingface.co/openai's folders, as those who have read them say
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
    # safetensors.total of the repositories, less the table of 32 buckets for each head in the decoder's first layer that nothing reads.
    "t5-small": 60_506_880 - 32 * 8,
    "t5-base": 222_903_936 - 32 * 12,
    "t5-large": 737_668_608 - 32 * 16,
    "t5-3b": 2_851_599_360 - 32 * 32,
    "t5-11b": 11_307_321_344,  # a third party's table; the paper says 11B
    # KerasHub's presets (base, xl, xxl) and third parties' tables; with the head's own kernel.
    "t5-v1_1-small": 76_961_152,
    "t5-v1_1-base": 247_577_856,
    "t5-v1_1-large": 783_150_080,
    "t5-v1_1-xl": 2_849_757_184,
    "t5-v1_1-xxl": 11_135_332_352,
    "flan-t5-small": 76_961_152,
    "flan-t5-base": 247_577_856,
    "flan-t5-large": 783_150_080,
    "flan-t5-xl": 2_849_757_184,
    "flan-t5-xxl": 11_135_332_352,
    # KerasHub's presets, which leave out the two first rows of two tables of positions, and for -cnn sdpython/onnx-diagnostic, n_weights;
    # and for all of them the bias of the logits, which is no parameter there.
    "bart-base": 139_417_344 + 2 * 2 * 768 + 50265,
    "bart-large": 406_287_360 + 2 * 2 * 1024 + 50265,
    "bart-large-cnn": 406_290_432 + 50264,
    # Reports of runs, which count two tables of 512 sines and cosines and not the bias of the logits.
    "opus-mt-en-de": 74_410_496 - 2 * 512 * 512 + 58101,
    "opus-mt-en-fr": 75_133_952 - 2 * 512 * 512 + 59514,
    # keras_hub/src/models/bert/bert_presets.py, which counts the encoder and its pooler (compared below); here a head behind masks is in the pooler's place,
    # which has a norm and the bias of the logits beside a dense layer of the same size
    "bert-base": 109_482_240 + 2 * 768 + 30522,
    "bert-large": 335_141_888 + 2 * 1024 + 30522,
    "bert-base-cased": 108_310_272 + 2 * 768 + 28996,
    "bert-large-cased": 333_579_264 + 2 * 1024 + 28996,
    "bert-base-multilingual-cased": 177_853_440 + 2 * 768 + 119547,
    # the tensors of its folder, as those who have read them say, less 512 position ids
    "all-minilm-l6-v2": 22_713_728 - 512,
    # huggingface.co/docs/safetensors/metadata_parsing, less 514 position ids
    "roberta-base": 124_697_947 - 514,
    "roberta-large": 355_412_571 - 514,
    # the tensors of its folder, as those who have read them say, less its pooler
    "xlm-roberta-base": 278_885_778 - 768 * 769,
    # the tensors of huggingface.co/answerdotai's folders, as those who have read them say
    "modernbert-base": 149_655_232,
    "modernbert-large": 395_881_664,
    # the models' cards, huggingface.co/EleutherAI; pythia-14m is that of its tensors
    "pythia-14m": 14_067_712,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "gpt-neox-20b": 20_554_567_680,
    # the models' cards, huggingface.co/bigscience, and keras_hub/src/models/bloom/bloom_presets.py
    "bloom-560m": 559_214_592,
    "bloom-1b1": 1_065_314_304,
    "bloom-1b7": 1_722_408_960,
    "bloom-3b": 3_002_557_440,
    "bloom-7b1": 7_069_016_064,
    "bloom": 176_247_271_424,
    # the tensors of huggingface.co/tiiuae's folders, as those who have read them say, less the head's copy of the embeddings
    "falcon-7b": 7_217_189_760 - 65024 * 4544,
    "falcon-40b": 41_835_970_560 - 65024 * 8192,
    "falcon-180b": 179_522_565_120 - 65024 * 14848,
}


def test_the_transformer_of_2017_has_nearly_as_many_as_its_paper_says() -> None:
    assert [PUBLISHED["transformer-base"], PUBLISHED["transformer-big"]] == [63_045_632, 214_171_648]


FIRST = {next(iter(family.presets)) for family in zoo.FAMILIES}


@pytest.mark.parametrize("name", [pytest.param(name, marks=[] if name in FIRST else pytest.mark.slow) for name in zoo.names()])
def test_a_preset_has_the_published_number_of_parameters(name: str) -> None:
    assert count(zoo.config(name)) == PUBLISHED[name]


def count(config: ModelConfig) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(variable_shapes(config.make())))


def test_bert_s_encoder_with_its_pooler_has_the_published_number() -> None:
    published = {
        "bert-base": 109_482_240, "bert-large": 335_141_888, "bert-base-cased": 108_310_272, "bert-large-cased": 333_579_264,
        "bert-base-multilingual-cased": 177_853_440,
    }  # fmt: skip
    assert {name: count(zoo.config(name).replace(head=NoHead(), pooler=True)) for name in published} == published


def test_a_family_can_write_its_presets() -> None:
    for family in zoo.FAMILIES:
        for name in family.presets:
            assert family.write(zoo.config(name)) is not None, name


def test_an_unknown_name_is_refused_with_those_that_are_near() -> None:
    with pytest.raises(ValueError, match=r"expected a preset, received 'lama-3-8b' \(nearest: llama-3-8b"):
        zoo.config("lama-3-8b")
    with pytest.raises(ValueError, match=r"received 'google-bert/bert-base-uncased' \(nearest: bert-base,"):
        zoo.config("google-bert/bert-base-uncased")
    with pytest.raises(ValueError, match=r"expected a preset, received 'xyzzy'; zoo\.names\(\) lists all"):
        zoo.config("xyzzy")
    with pytest.raises(TypeError, match=r"name: expected that of a preset, such as 'gpt2', received \['gpt2'\]"):
        zoo.config(["gpt2"])  # type: ignore[arg-type]
