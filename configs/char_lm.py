"""A language model of English, by character, on the text that every Python carries.

    python scripts/train.py configs/char_lm.py

1.280 nats a character of the tenth held out; 55 s on 2 cores.
"""

from transformer_jax.data import Text
from transformer_jax.layers import Attention, Causal, Dense, GPT2Init, Group, Residual, RMSNorm, Rope, Stack
from transformer_jax.models import DecoderOnlyConfig
from transformer_jax.training import AdamW, Experiment, Run, WarmupCosine


def config(
    *,
    data: tuple[str, ...] = (),
    d_model: int = 128,
    num_layers: int = 4,
    num_heads: int = 4,
    context: int = 64,
    batch: int = 12,
    steps: int = 2000,
    seed: int = 0,
) -> Experiment:
    """A small GPT: rotary positions, one key and value head, squared ReLU.

    Args:
        data: UTF-8 text files; Python's own help texts unless given.
        d_model: width of the residual stream.
        num_layers: pairs of attention and MLP.
        num_heads: of attention.
        context: characters that the model sees at once.
        batch: passages to a step.
        steps: of training.
        seed: of everything random.
    """
    attention = Residual(Attention(num_heads, num_kv_heads=1, mask=Causal(), position=Rope()), pre=RMSNorm())
    mlp = Residual(Dense(d_model, activation="squared_relu"), pre=RMSNorm())
    model = DecoderOnlyConfig(
        None,
        d_model=d_model,
        max_length=context,
        stack=Stack((Group(num_layers, (attention, mlp)),), final_norm=RMSNorm()),
        initialization=GPT2Init(),
    )
    return Experiment(
        model,
        data=Text(data),
        optimizer=AdamW(1e-3),
        schedule=WarmupCosine(100, final=0.1),
        run=Run("runs/char_lm", steps=steps, batch=batch, seed=seed, evaluate_every=500),
    )
