"""An encoder says of each character of Python code to which kind of token it belongs: keyword, name, string, comment, ...

    python scripts/train.py configs/token_types.py
    python scripts/evaluate.py runs/token_types

97.07 % of the characters of files that were never seen, macro F1 0.951; a table of trigrams gets 70.2 %. Four minutes on 2 cores.
"""

from transformer_jax.data import PythonTokens, TokenLabelled
from transformer_jax.layers import Attention, Gated, GPT2Init, Group, NoMask, Residual, RMSNorm, Rope, Stack, TokenClassifier
from transformer_jax.models import EncoderOnlyConfig
from transformer_jax.training import AdamW, Experiment, Run, TokenLabels, WarmupCosine


def config(
    *,
    data: tuple[str, ...] = (),
    d_model: int = 96,
    num_layers: int = 3,
    num_heads: int = 4,
    context: int = 384,
    batch: int = 8,
    steps: int = 1500,
    seed: int = 0,
) -> Experiment:
    """An encoder with rotary positions and a head for each token.

    Args:
        data: files of JSON lines {"text": "...", "labels": ["...", ...]}, a label for each character; the standard library's code unless given.
        d_model: width of the residual stream.
        num_layers: pairs of attention and MLP.
        num_heads: of attention.
        context: characters that the model sees at once.
        batch: passages to a step.
        steps: of training.
        seed: of everything random.
    """
    attention = Residual(Attention(num_heads, num_kv_heads=1, mask=NoMask(), position=Rope()), pre=RMSNorm())
    mlp = Residual(Gated(2 * d_model), pre=RMSNorm())
    model = EncoderOnlyConfig(
        None,
        d_model=d_model,
        max_length=context,
        stack=Stack((Group(num_layers, (attention, mlp)),), final_norm=RMSNorm()),
        head=TokenClassifier(),
        initialization=GPT2Init(),
    )
    return Experiment(
        model,
        data=TokenLabelled(data) if data else PythonTokens(),
        objective=TokenLabels(),
        optimizer=AdamW(2e-3),
        schedule=WarmupCosine(100, final=0.05),
        run=Run("runs/token_types", steps=steps, batch=batch, seed=seed, evaluate_every=500),
    )
