"""Pictures of what an evaluation finds."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from transformer_jax.training.plot import save_whole

MOST_COUNTS = 20
MOST_TOKENS = 48
MOST_NAMES = 60


class Map(NamedTuple):
    """A row of pictures, one a head.

    Attributes:
        title: of the row.
        probabilities: `[N, T, S]`.
        queries, keys: names of the tokens, T and S of them.
    """

    title: str
    probabilities: np.ndarray
    queries: Sequence[str]
    keys: Sequence[str]


def draw_confusion(confusion: np.ndarray, names: Sequence[str], path: Path) -> None:
    """A confusion `[C, C]` as PNG: rows the right classes, colours shares of a row, the counts themselves in the cells where there is room for them."""
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    side = 2.4 + min(12.0, 0.45 * len(names))
    figure = _figure(side + 1.2, side)
    axes = figure.subplots()
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    _name(axes.xaxis, names, MOST_NAMES, rotation=90)
    _name(axes.yaxis, names, MOST_NAMES)
    axes.set(xlabel="made", ylabel="right")
    if len(names) <= MOST_COUNTS:
        for (right, made), count in np.ndenumerate(confusion):
            color = "white" if shares[right, made] > 0.5 else "black"
            axes.text(made, right, f"{count}", ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(image, label="share of the right class", shrink=0.8)
    save_whole(figure, path)


def draw_attention(maps: Sequence[Map], path: Path) -> None:
    """Attention's probabilities as PNG: a row of pictures for each layer, a column for each head; rows of a picture are queries, columns keys."""
    from matplotlib.colors import PowerNorm

    heads = max(len(row.probabilities) for row in maps)
    lengths = [max(row.probabilities.shape[1:]) for row in maps]
    sides = [1.4 + 0.13 * n if n <= MOST_TOKENS else 3.0 for n in lengths]  # inches
    figure = _figure(1.6 + heads * max(sides), 0.6 + sum(sides))
    grid = figure.subplots(len(maps), heads, squeeze=False, height_ratios=sides)
    for axes, row in zip(grid, maps):
        axes[0].set_ylabel(row.title)
        for n, ax in enumerate(axes):
            if n >= len(row.probabilities):
                ax.set_axis_off()
                continue
            image = ax.imshow(row.probabilities[n], cmap="viridis", norm=PowerNorm(0.5, 0, 1))
            ax.set_title(f"head {n}", fontsize=9)
            _name(ax.xaxis, row.keys, MOST_TOKENS, rotation=90 if max(map(len, row.keys)) > 2 else 0)
            _name(ax.yaxis, row.queries, MOST_TOKENS)
    figure.colorbar(image, ax=grid, label="probability", shrink=min(1.0, 3 / sum(sides)))
    save_whole(figure, path)


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _name(axis: Any, names: Sequence[str], most: int, **style: Any) -> None:
    if len(names) <= most:
        axis.set_ticks(range(len(names)), names, fontsize=8, parse_math=False, **style)
