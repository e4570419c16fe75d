"""Times things beside those of others, interleaved in one process: `python scripts/bench.py train`, `python scripts/bench.py attention`.

torch is optional: `pip install torch` first. Ratios are of medians; a machine's own speed cancels out. Results go to benchmarks/, under the device's name.
"""

import functools
import importlib.metadata
import importlib.util
import itertools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from pallas_kernels import attention, explain, masks, scores
from transformer_jax.layers import Attention, Causal, Dense, Embedding, GPT2Init, Group, LayerNorm, Learned, Residual, Stack
from transformer_jax.models import DecoderOnly, DecoderOnlyConfig
from transformer_jax.training import AdamW, NextToken, WarmupCosine, init_state, several_steps, train_step

TORCH = importlib.util.find_spec("torch") is not None

Call = Callable[[], Any]
# Seconds. torch's threads go on spinning after a call, and would take half of a short call of somebody else's.
SETTLING = 0.2


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


def ours(s: Shape) -> Call:
    attention = Residual(Attention(s.num_heads, mask=Causal()), pre=LayerNorm(bias=False))
    mlp = Residual(Dense(4 * s.d_model), pre=LayerNorm(bias=False))
    stack = Stack((Group(s.num_layers, (attention, mlp)),), final_norm=LayerNorm(bias=False))
    config = DecoderOnlyConfig(s.vocab_size, d_model=s.d_model, max_length=s.context, stack=stack, embedding=Embedding(Learned()), initialization=GPT2Init())
    model = DecoderOnly(config, training=True, unroll=s.num_layers)
    optimizer = functools.partial(AdamW().make, WarmupCosine().make(1e-3, 2000))
    tokens = jnp.asarray(_tokens(s, s.steps_per_call))
    state = [init_state(model, optimizer, jax.random.key(0), tokens[0, :, :-1])]
    steps = several_steps(train_step(model, NextToken(), optimizer))

    def call() -> None:
        state[0], metrics = steps(state[0], {"tokens": tokens}, jax.random.key(1))
        jax.block_until_ready(metrics)

    return call


def torchs(s: Shape) -> Call:
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


def interleaved(calls: dict[str, Call], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each call, by turns; a turn is three calls, after as many as it takes for the threads of whoever was before to come to rest."""
    ms: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()  # compiles
    for _ in range(rounds):
        for name, call in calls.items():
            turn = time.perf_counter()
            while time.perf_counter() - turn < SETTLING:
                call()
            for _ in range(3):
                start = time.perf_counter()
                call()
                ms[name].append(1e3 * (time.perf_counter() - start))
    return ms


def summary(ms: list[float]) -> dict[str, float]:
    return {"median_ms": statistics.median(ms), "least_ms": min(ms), "most_ms": max(ms)}


def in_words(summaries: dict[str, dict[str, float]]) -> str:
    return ", ".join(f"{who} {r['median_ms']:.1f} ({r['least_ms']:.1f} to {r['most_ms']:.1f})" for who, r in summaries.items())


def products(rounds: int) -> dict[str, float]:
    """GFLOP/s of `[2048, 384] x [384, 1536]` in float32, which no step of the same library can outrun."""
    a, b = np.ones((2048, 384), np.float32), np.ones((384, 1536), np.float32)
    times, matmul = 50, jax.jit(jnp.matmul)
    x, y = jnp.asarray(a), jnp.asarray(b)
    calls: dict[str, Call] = {"transformer_jax": lambda: [jax.block_until_ready(matmul(x, y)) for _ in range(times)]}
    if TORCH:
        import torch

        u, w = torch.from_numpy(a), torch.from_numpy(b)
        calls["torch"] = lambda: [u @ w for _ in range(times)]
    speeds = {who: times * 2e-6 * a.size * b.shape[1] / statistics.median(ms) for who, ms in interleaved(calls, rounds).items()}
    print("products: GFLOP/s: " + ", ".join(f"{who} {speed:.0f}" for who, speed in speeds.items()), flush=True)
    return speeds


def train(rounds: int) -> dict[str, Any]:
    results: dict[str, Any] = {"gflops_of_products": products(rounds)}
    for name, shape in SHAPES.items():
        calls = {"transformer_jax": ours(shape), **({"torch": torchs(shape)} if TORCH else {})}
        steps = {who: summary([t / shape.steps_per_call for t in ms]) for who, ms in interleaved(calls, rounds).items()}
        results[name], line = dict(steps), in_words(steps)
        if TORCH:
            results[name]["times_torch"] = steps["torch"]["median_ms"] / steps["transformer_jax"]["median_ms"]
            line += f"; {results[name]['times_torch']:.2f} times torch's speed"
        print(f"{name}: ms a step: {line}", flush=True)
    return results


class Sizes(NamedTuple):
    """Of attention: batch, heads, length, head dimension."""

    B: int
    H: int
    T: int
    D: int


def jax_attention(fn: Callable[..., Any], sizes: Sizes, dtype: str) -> Call:
    """Forward and backward of `fn(q, k, v)`, arrays `[B, T, H, D]`."""

    def both(q: Any, k: Any, v: Any, do: Any) -> Any:
        o, back = jax.vjp(fn, q, k, v)
        return o, back(do)

    rng = np.random.default_rng(0)
    q, k, v, do = (jnp.asarray(rng.normal(size=(sizes.B, sizes.T, sizes.H, sizes.D)), dtype) for _ in range(4))
    program = jax.jit(both)
    return lambda: jax.block_until_ready(program(q, k, v, do))


def torch_passes(sizes: Sizes, dtype: str, causal: bool = True) -> tuple[Call, Callable[[Any], Any], Call]:
    """Of torch's attention, arrays `[B, H, T, D]`, on the device that jax has: the forward pass, the backward pass from its result, and what waits."""
    import torch

    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    q, k, v, do = (torch.randn(sizes, dtype=getattr(torch, dtype), device=device) for _ in range(4))
    inputs = [a.requires_grad_() for a in (q, k, v)]
    forward = functools.partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, is_causal=causal)
    return forward, lambda o: torch.autograd.grad(o, inputs, do, retain_graph=True), torch.cuda.synchronize if device == "cuda" else lambda: None


def torch_attention(sizes: Sizes, dtype: str) -> Call:
    forward, backward, wait = torch_passes(sizes, dtype)
    return lambda: (backward(forward()), wait())


def attention_rows(dtype: str, shrink: int) -> Iterator[tuple[str, dict[str, Call]]]:
    """Each row's name and calls; the others' times are told as multiples of the first's."""

    def ours(sizes: Sizes, mask: Any, score: Any = None) -> Call:
        return jax_attention(functools.partial(attention, mask=mask, score=score), sizes, dtype)

    causal = masks.causal()
    for sizes in (Sizes(8, 6, 256 // shrink, 64), *(Sizes(1, 8, length // shrink, 64) for length in (1024, 4096, 8192))):
        calls = {"pallas_kernels": ours(sizes, causal)}
        if TORCH and jax.default_backend() != "tpu":
            calls["torch"] = torch_attention(sizes, dtype)
        if sizes.T * shrink < 8192:  # beyond, the array of scores takes gigabytes
            calls["jax.nn"] = jax_attention(functools.partial(jax.nn.dot_product_attention, is_causal=True), sizes, dtype)
        yield f"causal {list(sizes)}", calls

    sizes, window = Sizes(1, 8, 8192 // shrink, 64), 512 // shrink
    yield f"window {list(sizes)}", {"causal": ours(sizes, causal), f"window {window}": ours(sizes, masks.sliding_window(window - 1))}

    sizes = Sizes(1, 8, 2048 // shrink, 64)
    own = scores.from_function(lambda s, i: 30.0 * jnp.tanh(s / 30.0))
    capped = {"softcap": ours(sizes, causal, scores.softcap(30.0)), "softcap as a lambda": ours(sizes, causal, own)}
    yield f"cap {list(sizes)}", {"causal": ours(sizes, causal), **capped}


def temporary_bytes(sizes: Sizes, dtype: str) -> int:
    """What forward and backward with T5's table, its gradient too, need beside inputs and outputs."""

    def biased(q: Any, k: Any, v: Any, table: Any) -> Any:
        return attention(q, k, v, mask=masks.causal(), score=scores.relative_bias(table, bidirectional=False, max_distance=128))

    def both(q: Any, k: Any, v: Any, table: Any, do: Any) -> Any:
        o, back = jax.vjp(biased, q, k, v, table)
        return o, back(do)

    a, table = (jax.ShapeDtypeStruct(shape, kind) for shape, kind in (((sizes.B, sizes.T, sizes.H, sizes.D), dtype), ((sizes.H, 32), "float32")))
    return int(jax.jit(both).lower(a, a, a, table, a).compile().memory_analysis().temp_size_in_bytes)


def time_attention(rounds: int, dtype: str, shrink: int) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for name, calls in attention_rows(dtype, shrink):
        times = {who: summary(ms) for who, ms in interleaved(calls, rounds).items()}
        first, *others = times
        ratios = {who: times[who]["median_ms"] / times[first]["median_ms"] for who in others}
        results[name] = {**times, "times_the_first": ratios}
        line = ", ".join(f"{who} {ratio:.2f}" for who, ratio in ratios.items())
        print(f"{name}: ms: {in_words(times)}" + (f"; times {first}: {line}" if line else ""), flush=True)
    for length in (8192 // shrink, 16384 // shrink):
        sizes = Sizes(1, 4, length, 64)
        name = f"T5 table {list(sizes)}"
        results[name] = {"temporary_bytes": temporary_bytes(sizes, dtype)}
        print(f"{name}: {results[name]['temporary_bytes'] / 2**20:.1f} MiB of temporary memory", flush=True)
    return results


def device_rows(dtype: str, shrink: int) -> Iterator[tuple[str, Sizes, float, dict[str, Callable[..., Any]]]]:
    """Each row's name, sizes, share of the scores that counts as work, and functions of q, k and v: ours, and of peers where they can say the same.

    16,384 tokens, heads times head dimension 2,048, as in Shah et al., arXiv:2407.08608, section 4.1.
    """

    def mine(sizes: Sizes, **options: Any) -> dict[str, Callable[..., Any]]:
        a = jax.ShapeDtypeStruct((sizes.B, sizes.T, sizes.H, sizes.D), dtype)
        taken: list[str] = []
        jax.eval_shape(lambda q, k, v: taken.extend(name for name, reason in explain(q, k, v, **options).reasons if reason is None), a, a, a)
        return {name: functools.partial(attention, backend=name, **options) for name in taken if name != "reference"}

    for D, length, causal in itertools.product((64, 128, 256), (512, 2048, 8192, 16384), (False, True)):
        sizes = Sizes(16384 // length, 2048 // D, length // shrink, D)
        peers = {"cudnn": functools.partial(jax.nn.dot_product_attention, is_causal=causal, implementation="cudnn")}
        if importlib.util.find_spec("tokamax"):
            peers["tokamax"] = functools.partial(importlib.import_module("tokamax").dot_product_attention, is_causal=causal)
        yield f"{'causal' if causal else 'full'} {list(sizes)}", sizes, 0.5 if causal else 1.0, mine(sizes, mask=masks.causal() if causal else None) | peers

    sizes, rng, window = Sizes(2, 16, 8192 // shrink, 128), np.random.default_rng(0), 1024 // shrink
    cuts = rng.random((sizes.B, sizes.T)) < min(1.0, shrink / 1024)
    documents, table = np.cumsum(cuts, 1), jnp.asarray(rng.normal(size=(sizes.H, 32)), jnp.float32)
    together = np.square(np.unique(documents + sizes.T * np.arange(sizes.B)[:, None], return_counts=True)[1]).sum() / 2 / (sizes.B * sizes.T**2)
    for name, share, options in (
        (f"window {window}", window / sizes.T, {"mask": masks.sliding_window(window - 1)}),
        ("documents", float(together), {"mask": masks.causal() & masks.segments(documents)}),
        ("T5 table", 1.0, {"score": scores.relative_bias(table, bidirectional=True, max_distance=128)}),
        ("softcap", 0.5, {"mask": masks.causal(), "score": scores.softcap(50.0)}),
    ):
        yield f"{name} {list(sizes)}", sizes, share, mine(sizes, **options)


def on_device(fn: Callable[..., Any], sizes: Sizes, dtype: str, calls: int) -> dict[str, Call]:
    """Forward and backward of `fn`, each started `calls` times before anybody waits, so that the host's time does not count."""
    rng = np.random.default_rng(0)
    q, k, v, do = (jnp.asarray(rng.normal(size=(sizes.B, sizes.T, sizes.H, sizes.D)), dtype) for _ in range(4))
    forward, with_residuals = jax.jit(fn), jax.jit(lambda q, k, v: jax.vjp(fn, q, k, v)[1])
    back, backward = with_residuals(q, k, v), jax.jit(lambda back, do: back(do))
    runs = {"forward": lambda: forward(q, k, v), "backward": lambda: backward(back, do)}
    return {name: functools.partial(lambda run: jax.block_until_ready([run() for _ in range(calls)]), run) for name, run in runs.items()}


def torch_on_device(sizes: Sizes, dtype: str, calls: int, causal: bool) -> dict[str, Call]:
    forward, backward, wait = torch_passes(sizes, dtype, causal)
    runs = {"forward": forward, "backward": functools.partial(backward, forward())}
    return {name: functools.partial(lambda run: ([run() for _ in range(calls)], wait()), run) for name, run in runs.items()}


def time_on_device(rounds: int, dtype: str, shrink: int, calls: int) -> dict[str, Any]:
    """Milliseconds a call and TFLOP/s, forward (4 B T^2 H D, times the share of scores that counts) and backward (2.5 times as many)."""
    results: dict[str, Any] = {}
    for name, sizes, share, functions in device_rows(dtype, shrink):
        programs: dict[str, dict[str, Call]] = {"forward": {}, "backward": {}}
        row: dict[str, Any] = {}
        makers = {who: functools.partial(on_device, fn, sizes, dtype, calls) for who, fn in functions.items()}
        if TORCH and jax.default_backend() == "gpu" and name.startswith(("full", "causal")):
            makers["torch"] = functools.partial(torch_on_device, sizes, dtype, calls, name.startswith("causal"))
        for who, make in makers.items():
            try:
                for which, call in make().items():
                    call()
                    programs[which][who] = call
            except Exception as error:  # a peer may refuse, or have no memory: a row of the table
                row[who] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        for which, factor in (("forward", 1.0), ("backward", 2.5)):
            flops = factor * share * 4 * sizes.B * sizes.H * sizes.T**2 * sizes.D
            for who, ms in interleaved(programs[which], rounds).items():
                told = summary([t / calls for t in ms])
                row.setdefault(who, {})[which] = told | {"tflops": 1e-9 * flops / told["median_ms"]}
        results[name] = row
        speeds = {who: r if isinstance(r, str) else " / ".join(f"{told['tflops']:.3g}" for told in r.values()) for who, r in row.items()}
        print(f"{name}: TFLOP/s forward / backward: {', '.join(' '.join(x) for x in speeds.items())}", flush=True)
    return results


def machine() -> str:
    """The accelerator, or the processor and how many of its cores there are."""
    if (device := jax.devices()[0]).platform != "cpu":
        return device.device_kind
    cpus = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in cpus.read_text().splitlines() if line.startswith("model name")] if cpus.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def report(what: str, results: dict[str, Any], out: str) -> None:
    """Writes the results and how they came about."""
    versions = {name: importlib.metadata.version(name) for name in ("jax", "torch", "triton", "tokamax") if importlib.util.find_spec(name)}
    if (device := jax.devices()[0]).platform == "gpu":
        versions["driver"] = device.client.platform_version
    if out:
        Path(out).write_text(json.dumps({"command": " ".join(["python", *sys.argv]), "machine": machine(), **versions, what: results}, indent=2) + "\n")


def main_train(rounds: int = 7, out: str = "") -> None:
    """One step of training.

    Args:
        rounds: counted rounds.
        out: a JSON file for the results.
    """
    report("train", train(rounds), out)


def main_attention(
    rounds: int = 7, dtype: Literal["float32", "bfloat16", "float16"] = "float32", shrink: int = 1, device: bool = False, calls: int = 10, out: str = ""
) -> None:  # fmt: skip
    """Forward and backward of attention, by kinds and lengths, on jax's default device.

    Args:
        rounds: counted rounds.
        device: whether to time an accelerator at its own work: each backend beside cuDNN, tokamax and torch where they are, forward and backward apart.
        calls: with `device`, how many are started before anybody waits.
        dtype: of q, k and v.
        shrink: divides all lengths, to try the script out; at most 256.
        out: a JSON file for the results.
    """
    timed = time_on_device(rounds, dtype, shrink, calls) if device else time_attention(rounds, dtype, shrink)
    report("attention", {"dtype": dtype, **timed}, out)


if __name__ == "__main__":
    if not TORCH:
        print("torch is not installed: nothing of it to compare with", file=sys.stderr)
    tyro.extras.subcommand_cli_from_dict({"train": main_train, "attention": main_attention}, description=__doc__)
