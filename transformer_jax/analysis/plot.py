"""The picture of what a model costs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformer_jax.analysis.costs import Complexity, crossings
from transformer_jax.analysis.parts import Part


def plot_flops(grows: Mapping[Part, Complexity], path: Path) -> None:
    """FLOPs per token of the forward pass against the length, by kind of part, with the `crossings` marked, as PNG. Those once to a sequence are left out."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    marks = crossings(grows)
    lengths = np.geomspace(16, 16 * max([256, *marks.values()]), 200)
    curves: dict[str, Any] = {}
    for part, grow in grows.items():
        for name, flops in ((part.label, grow.compute.linear + 0 * lengths), (f"{part.label}, T^2", grow.compute.square * lengths)):
            if flops.any():
                curves[name] = curves.get(name, 0) + flops
    squares = [(part.label, grow.compute.square) for part, grow in grows.items() if part.group and grow.compute.square]
    if len({label for label, _ in squares}) > 1:  # one alone has its curve
        curves["layers, T^2"] = sum(square for _, square in squares) * lengths
    curves["layers without T^2"] = sum(grow.compute.linear for part, grow in grows.items() if part.group) + 0 * lengths
    curves["total"] = sum(grow.compute.linear + grow.compute.square * lengths for grow in grows.values())
    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for name, flops in curves.items():
        color = {"total": "black", "layers, T^2": "darkgrey", "layers without T^2": "grey"}.get(name)
        axes.plot(lengths, flops, label=name, color=color)
    for (name, at), style in zip(marks.items(), (":", "--")):
        axes.axvline(at, color="grey", linestyle=style, label=f"T = {at:,.0f}: T^2 as much as {name}")
    axes.set(xscale="log", yscale="log", xlabel="length T (tokens)", ylabel="FLOPs per token, forward")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small")
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, dpi=120, format="png")
    aside.replace(path)
