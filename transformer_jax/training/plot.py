"""The picture of a run."""

from pathlib import Path
from typing import Any


def plot_loss(rows: list[dict[str, Any]], path: Path) -> None:
    """Loss over steps, trained on (smoothed over a hundredth of the run) and held out, as PNG."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    steps, losses = np.array([r["step"] for r in rows]), np.array([r["loss"] for r in rows])
    held_out = [(r["step"], r["held_out_loss"]) for r in rows if "held_out_loss" in r]
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.plot(steps, losses, color="tab:blue", alpha=0.2, linewidth=0.8)
    width = max(1, len(steps) // 100)
    smooth = np.convolve(losses, np.ones(width) / width, "valid")
    axes.plot(steps[width - 1 :], smooth, color="tab:blue", label="training")
    if held_out:
        x, y = zip(*held_out)
        axes.plot(x, y, "o-", color="tab:orange", markersize=4, label=f"held out, {y[-1]:.3f} at the end")
        axes.set_ylim(bottom=0.95 * min(smooth.min(), *y), top=1.05 * max(smooth.max(), *y, 1e-6))
    axes.set(xlabel="step", ylabel="loss (nats per token)", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    save_whole(figure, path)


def save_whole(figure: Any, path: Path) -> None:
    """Writes a figure as PNG aside and renames it, so that nobody sees half of it."""
    aside = path.with_name(f".{path.name}")
    figure.savefig(aside, dpi=120, format="png")
    aside.replace(path)
