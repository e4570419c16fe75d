"""Times a training step beside the same model in torch, interleaved in one process: `python scripts/bench.py train`.

torch is optional: `pip install torch` first. Ratios are of medians; a machine's own speed cancels out. Results go to benchmarks/, under the device's name.
"""

import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from transformer_jax.layers import Attention, Causal, Dense, Embedding, GPT2Init, Group, LayerNorm, Learned, Residual, Stack
from transformer_jax.models import DecoderOnly, DecoderOnlyConfig
from transformer_jax.training import AdamW, NextToken, WarmupCosine, init_state, several_steps, train_step


@dataclass(frozen=True)
class Shape:
    """Sizes of a GPT and its batch, and how many steps a call makes."""

    num_layers: int
    num_heads: int
    d_model: int
    context: int
    batch: int
    vocab_size: int
    steps_per_call: int


SHAPES = {
    "10m": Shape(6, 6, 384, 256, 8, 96, 4),
    "char_lm": Shape(4, 4, 128, 64, 12, 103, 10),
}


def ours(s: Shape) -> Callable[[], None]:
    attention = Residual(Attention(s.num_heads, mask=Causal()), pre=LayerNorm(bias=False))
    mlp = Residual(Dense(4 * s.d_model), pre=LayerNorm(bias=False))
    stack = Stack((Group(s.num_layers, (attention, mlp)),), final_norm=LayerNorm(bias=False))
    config = DecoderOnlyConfig(
        s.vocab_size, d_model=s.d_model, max_length=s.context, stack=stack, embedding=Embedding(Learned()), initialization=GPT2Init()
    )
    model = DecoderOnly(config, training=True, unroll=s.num_layers)
    optimizer = functools.partial(AdamW().make, WarmupCosine().make(1e-3, 2000))
    tokens = jnp.asarray(_tokens(s, s.steps_per_call))
    state = [init_state(model, optimizer, jax.random.key(0), tokens[0, :, :-1])]
    steps = several_steps(train_step(model, NextToken(), optimizer))

    def call() -> None:
        state[0], metrics = steps(state[0], {"tokens": tokens}, jax.random.key(1))
        jax.block_until_ready(metrics)

    return call


def torchs(s: Shape) -> Callable[[], None]:
    """The same model, loss and optimizer in torch eager, `steps_per_call` steps to a call."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    class Layer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(s.d_model, bias=False) for _ in range(2)])
            self.qkv = nn.Linear(s.d_model, 3 * s.d_model, bias=False)
            self.out = nn.Linear(s.d_model, s.d_model, bias=False)
            self.up = nn.Linear(s.d_model, 4 * s.d_model, bias=False)
            self.down = nn.Linear(4 * s.d_model, s.d_model, bias=False)

        def forward(self, x: Any) -> Any:
            B, T, D = x.shape
            q, k, v = (a.view(B, T, s.num_heads, -1).transpose(1, 2) for a in self.qkv(self.norms[0](x)).split(D, 2))
            a = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            x = x + self.out(a.transpose(1, 2).reshape(B, T, D))
            return x + self.down(F.gelu(self.up(self.norms[1](x))))

    class GPT(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(s.vocab_size, s.d_model)
            self.positions = nn.Embedding(s.context, s.d_model)
            self.layers = nn.ModuleList([Layer() for _ in range(s.num_layers)])
            self.norm = nn.LayerNorm(s.d_model, bias=False)

        def forward(self, tokens: Any) -> Any:
            x = self.tokens(tokens) + self.positions.weight
            for layer in self.layers:
                x = layer(x)
            return self.norm(x) @ self.tokens.weight.T

    model = GPT()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.1)
    batches = torch.tensor(_tokens(s, s.steps_per_call), dtype=torch.long)

    def call() -> None:
        for tokens in batches:
            loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    return call


def _tokens(s: Shape, steps: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, s.vocab_size, (steps, s.batch, s.context + 1), dtype=np.int32)


def interleaved(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each call, taken in turn; the first round, which compiles, is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if n:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def products(rounds: int) -> dict[str, float]:
    """GFLOP/s of `[2048, 384] x [384, 1536]` in float32, which no step of the same library can outrun."""
    a, b = np.ones((2048, 384), np.float32), np.ones((384, 1536), np.float32)
    times, matmul = 50, jax.jit(jnp.matmul)
    x, y = jnp.asarray(a), jnp.asarray(b)
    calls: dict[str, Callable[[], Any]] = {"transformer_jax": lambda: [jax.block_until_ready(matmul(x, y)) for _ in range(times)]}
    try:
        import torch

        u, w = torch.from_numpy(a), torch.from_numpy(b)
        calls["torch"] = lambda: [u @ w for _ in range(times)]
    except ImportError:
        pass
    speeds = {who: times * 2e-9 * a.size * b.shape[1] / statistics.median(s) for who, s in interleaved(calls, rounds).items()}
    print("products: GFLOP/s: " + ", ".join(f"{who} {speed:.0f}" for who, speed in speeds.items()), flush=True)
    return speeds


def train(rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {"gflops_of_products": products(rounds)}
    for name, shape in SHAPES.items():
        calls = {"transformer_jax": ours(shape)}
        try:
            calls["torch"] = torchs(shape)
        except ImportError:
            print("torch is not installed: nothing to compare with", file=sys.stderr)
        per_step = {who: [1e3 * t / shape.steps_per_call for t in times] for who, times in interleaved(calls, rounds).items()}
        results[name] = {who: {"median_ms": statistics.median(ms), "least_ms": min(ms), "most_ms": max(ms)} for who, ms in per_step.items()}
        line = ", ".join(f"{who} {r['median_ms']:.1f} ({r['least_ms']:.1f} to {r['most_ms']:.1f})" for who, r in results[name].items())
        if "torch" in per_step:
            results[name]["times_torch"] = statistics.median(per_step["torch"]) / statistics.median(per_step["transformer_jax"])
            line += f"; {results[name]['times_torch']:.2f} times torch's speed"
        print(f"{name}: ms a step: {line}", flush=True)
    return results


def machine() -> str:
    """The accelerator, or the processor and how many of its cores there are."""
    if (device := jax.devices()[0]).platform != "cpu":
        return device.device_kind
    cpus = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")] if cpus.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main(what: Literal["train"], /, rounds: int = 7, out: str = "") -> None:
    """Times something.

    Args:
        what: "train", one step of training.
        rounds: counted rounds.
        out: a JSON file for the results.
    """
    results = {"command": " ".join(["python", *sys.argv]), "machine": machine(), "jax": jax.__version__, what: train(rounds)}
    if out:
        Path(out).write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    tyro.cli(main)
