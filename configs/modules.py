"""From which of 20 packages of the standard library is a passage? An encoder learns the language from all passages first, then the answer from 20 of each.

    python scripts/train.py configs/modules.py --masked
    for seed in 0 1 2; do
        python scripts/train.py configs/modules.py --seed $seed --start runs/modules_masked
        python scripts/train.py configs/modules.py --seed $seed
    done
    python scripts/evaluate.py runs/modules_started

So far the first phase gains nothing: 36.3 % of the passages of files that were never seen, and 38.8 % without it (seed 0).
"""

from transformer_jax.data import Labelled, PythonPackages, Text
from transformer_jax.layers import (
    Attention,
    Dense,
    Embedding,
    Group,
    LayerNorm,
    MaskedLanguageModel,
    Mean,
    NoMask,
    Residual,
    Rope,
    SequenceClassifier,
    Stack,
)
from transformer_jax.models import EncoderOnlyConfig
from transformer_jax.tokenize import BytePairs, FromFile
from transformer_jax.training import AdamW, Experiment, MaskedTokens, Run, SequenceLabels, WarmupCosine


def config(
    *,
    data: tuple[str, ...] = (),
    masked: bool = False,
    start: str = "",
    labelled: int | None = None,
    d_model: int = 128,
    num_layers: int = 3,
    num_heads: int = 4,
    context: int = 128,
    seed: int = 0,
) -> Experiment:
    """An encoder with rotary positions, whose mean over the tokens says the class.

    Args:
        data: text files for `--masked`, otherwise files of JSON lines {"text": "...", "label": "..."}; the standard library's code unless given.
        masked: whether to learn the language, from tokens behind masks.
        start: the run in which that was done.
        labelled: passages of each package of the library to learn the answer from; 20 unless given.
        d_model: width of the residual stream.
        num_layers: pairs of attention and MLP.
        num_heads: of attention.
        context: tokens that the model sees at once.
        seed: of everything random.
    """
    if data and labelled is not None:
        raise ValueError(f"labelled: expected none with data of one's own, all of which is used, received {labelled}")
    attention = Residual(Attention(num_heads, mask=NoMask(), position=Rope()), pre=LayerNorm(), dropout=0.1)
    mlp = Residual(Dense(4 * d_model), pre=LayerNorm(), dropout=0.1)
    model = EncoderOnlyConfig(
        None,
        d_model=d_model,
        max_length=context,
        stack=Stack((Group(num_layers, (attention, mlp)),), final_norm=LayerNorm()),
        embedding=Embedding(norm=LayerNorm(), dropout=0.1),
        head=MaskedLanguageModel() if masked else SequenceClassifier(pool=Mean(), activation=None),
    )
    tokenizer = FromFile(f"{start}/tokenizer.json") if start else BytePairs(2048)
    if masked:
        return Experiment(
            model,
            data=Text(data, tokenizer=tokenizer) if data else PythonPackages(tokenizer=tokenizer),
            objective=MaskedTokens(),
            optimizer=AdamW(1e-3),
            schedule=WarmupCosine(100, final=0.05),
            run=Run("runs/modules_masked", steps=1500, batch=32, seed=seed, evaluate_every=500),
        )
    return Experiment(
        model,
        data=Labelled(data, tokenizer=tokenizer) if data else PythonPackages(tokenizer=tokenizer, labelled=20 if labelled is None else labelled),
        objective=SequenceLabels(),
        optimizer=AdamW(5e-4),
        schedule=WarmupCosine(20),
        run=Run("runs/modules_started" if start else "runs/modules", start=start, steps=200, batch=40, seed=seed, evaluate_every=100),
    )
