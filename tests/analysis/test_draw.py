"""A model drawn as text."""

from dataclasses import dataclass

import flax.linen as nn
import pytest

from transformer_jax.analysis import brief, draw
from transformer_jax.layers import (
    Alibi,
    Attention,
    Branch,
    Build,
    Causal,
    Dense,
    Embedding,
    Experts,
    Gated,
    Group,
    LanguageModel,
    LayerNorm,
    Learned,
    Mixer,
    MixerModule,
    NoMask,
    Parallel,
    RelativeBias,
    Residual,
    RMSNorm,
    Rope,
    SigmoidRouter,
    SlidingWindow,
    Softcap,
    Stack,
)
from transformer_jax.models import DecoderOnlyConfig


@dataclass(frozen=True)
class Wave(Mixer):
    """A user's own."""

    length: int
    phase: float = 0.0

    def make(self, build: Build) -> nn.Module:
        return MixerModule(self, build)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (Rope(), "Rope"),
        (Rope(1e6), "Rope(theta=1000000.0)"),
        (LanguageModel(tied=False), "LanguageModel(tied=False)"),
        (Gated(23, activation="gelu"), "Gated(23, activation=gelu)"),
        (Attention(8, mask=Causal() & SlidingWindow(64)), "Attention(8, mask=Causal & SlidingWindow(64))"),
        (Attention(8, mask=Causal(), score=(Alibi(), Softcap(5.0))), "Attention(8, score=(Alibi, Softcap(5.0)), mask=Causal)"),
        (Attention(8, mask=~Causal() | NoMask()), "Attention(8, mask=(~Causal | NoMask))"),
        (Experts(Gated(23), num_experts=7, router=SigmoidRouter(2)), "Experts(Gated(23), num_experts=7, router=SigmoidRouter(2))"),
        (Wave(3), "Wave(3)"),
        (Wave(3, 0.5), "Wave(3, phase=0.5)"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_config_is_its_type_and_what_is_not_at_its_default(config: object, text: str) -> None:
    assert brief(config) == text


def test_norms_stand_where_they_are_applied_and_branches_join() -> None:
    heads = Attention(2, mask=Causal())
    branches = Parallel((Branch(heads, pre=RMSNorm()), Dense(9)))
    groups = (
        Group(3, (Residual(heads, pre=LayerNorm()), Residual(Wave(5), after=LayerNorm(bias=False)))),
        Group(1, (Residual(branches, post=RMSNorm(), dropout=0.1),), share=True, remat="everything"),
    )
    stack = Stack(groups, final_norm=RMSNorm(), score=(RelativeBias(),))
    assert draw(DecoderOnlyConfig(29, d_model=6, max_length=7, stack=stack, embedding=Embedding(Learned()))) == (
        """\
DecoderOnlyConfig: vocab_size=29, d_model=6, max_length=7
embedding: Embedding(position=Learned)
stack: RelativeBias in every self-attention
stack 0: 3 times
  0.0 ├→ LayerNorm → Attention(2, mask=Causal) ─┐
      +←────────────────────────────────────────┘
  0.1 ├→ Wave(5) ─┐
      +←──────────┘
      LayerNorm(bias=False) of the sum
stack 1: once, with the same parameters, all computed again
  1.0 ├→ RMSNorm → Attention(2, mask=Causal) ─┐
      ├→ Dense(9) ────────────────────────────┤
      +← dropout 0.1 ← RMSNorm ───────────────┘
stack: RMSNorm
head: LanguageModel
initialization: NormalInit"""
    )
