"""Learning curves of strategies: table, intervals and figure from one file for each strategy, seed and size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from scripts.files import replacing

BASELINES = ("random", "foreground_random")


def collect(folder: Path, names: Sequence[str], sizes: Sequence[int]) -> tuple[dict[str, dict[int, np.ndarray]], float]:
    """Finished curves, Dice ``(sizes, scans)`` by strategy and seed, and the mean Dice with all labels."""
    curves: dict[str, dict[int, np.ndarray]] = {}
    for name in names:
        for part_of in sorted(folder.glob(f"{name}/seed_*")):
            files = [part_of / f"{size:02d}.json" for size in sizes]
            if all(file.is_file() for file in files):
                rows = [json.loads(file.read_text())["dice"] for file in files]
                curves.setdefault(name, {})[int(part_of.name.removeprefix("seed_"))] = np.array(rows)
    full = [json.loads(file.read_text())["dice"] for file in sorted(folder.glob("full/seed_*/*.json"))]
    return curves, float(np.mean(full)) if full else float("nan")


def resampled(curves: dict[int, np.ndarray], seeds: list[int], draws: int = 2000) -> np.ndarray:
    """Mean curves ``(draws, sizes)`` over seeds and held-out scans drawn with replacement; equal draws for all."""
    rng = np.random.default_rng(0)
    values = np.stack([curves[seed] for seed in seeds])  # (seeds, sizes, scans)
    runs, _, scans = values.shape
    means = []
    for _ in range(draws):
        drawn = values[rng.integers(runs, size=runs)][..., rng.integers(scans, size=scans)]
        means.append(drawn.mean((0, 2)))
    return np.stack(means)


def area(curves: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Mean Dice under curves ``(..., sizes)``: the area divided by the range of labels."""
    return np.trapz(curves, sizes) / (sizes[-1] - sizes[0])


def labels_needed(curve: np.ndarray, sizes: Sequence[int], target: float) -> float:
    """Labels at which a mean curve first reaches the target, between two sizes by a line; infinite if it does not."""
    reached = np.flatnonzero(curve >= target)
    if not len(reached):
        return float("inf")
    i = reached[0]
    line = (curve[i - 1 : i + 1], sizes[i - 1 : i + 1])
    return float(sizes[0] if i == 0 else np.interp(target, *line))


def report(folder: Path, names: Sequence[str], sizes: Sequence[int]) -> None:
    """Print the table of what is there, write it as JSON, and draw the curves."""
    curves, full = collect(folder, names, sizes)
    target, rows = 0.95 * full, []
    for name, runs in curves.items():
        seeds = sorted(runs)
        mean = np.stack([runs[seed] for seed in seeds]).mean((0, 2))
        row = {"strategy": name, "seeds": len(seeds), "mean Dice under the curve": interval(area, mean, runs, sizes)}
        for other in BASELINES:
            common = [seed for seed in seeds if seed in curves.get(other, {})]
            gain = {seed: runs[seed] - curves[other][seed] for seed in common}
            difference = np.stack(list(gain.values())).mean((0, 2)) if gain else None
            same = name == other or difference is None
            row[f"less {other}"] = "" if same else interval(area, difference, gain, sizes)
        row |= {f"Dice, {size}": f"{value:.3f}" for size, value in zip(sizes, mean, strict=True)}
        needed = [labels_needed(m, sizes, target) for m in (mean, *(runs[seed].mean(1) for seed in seeds))]
        texts = [f"{value:.0f}" if np.isfinite(value) else f"> {sizes[-1]}" for value in needed]
        rows.append(row | {"labels for 95 %": f"{texts[0]} ({', '.join(texts[1:])})"})
    if not rows:
        raise SystemExit(f"No strategy has all of {sizes} labels in {folder} yet.")
    print(f"Dice with all labels: {full:.3f}; 95 % of it: {target:.3f}\n")
    print("| " + " | ".join(rows[0]) + " |\n" + "|---" * len(rows[0]) + "|")
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")
    content: dict[str, Any] = {"full": full, "target": target, "rows": rows}
    with replacing(folder / "table.json") as temporary:
        temporary.write_text(json.dumps(content, indent=1))
    draw(folder / "curves.png", curves, sizes, target)


def interval(
    measure: Callable[..., np.ndarray], mean: np.ndarray, runs: dict[int, np.ndarray], sizes: Sequence[int]
) -> str:
    """A measure of the mean curve with its 95 % bootstrap interval."""
    low, high = np.quantile(measure(resampled(runs, sorted(runs)), sizes), (0.025, 0.975))
    return f"{measure(mean, sizes):.3f} ({low:.3f} to {high:.3f})"


def draw(file: Path, curves: dict[str, dict[int, np.ndarray]], sizes: Sequence[int], target: float) -> None:
    """One panel a strategy: its mean curve, what seeds and scans leave open, and random for comparison."""
    figure = Figure(figsize=(12, 6), layout="constrained")
    panels = figure.subplots(2, 4, sharex=True, sharey=True).flat
    for panel, (name, runs) in zip(panels, curves.items(), strict=False):
        for shown, colour in ((curves.get("random", {}), "grey"), (runs, "tab:blue")):
            if shown:
                low, high = np.quantile(resampled(shown, sorted(shown)), (0.025, 0.975), axis=0)
                panel.fill_between(sizes, low, high, color=colour, alpha=0.2, linewidth=0)
                panel.plot(sizes, np.mean(list(shown.values()), axis=(0, 2)), color=colour, marker=".")
        panel.axhline(target, color="black", linewidth=0.8, linestyle=":")
        panel.set(title=f"{name} ({len(runs)} seeds)", xticks=sizes)
    figure.supxlabel("labelled scans (grey: random; dotted: 95 % of the Dice with all labels)")
    figure.supylabel("Dice on held-out scans")
    with replacing(file) as temporary:
        figure.savefig(temporary, dpi=120, format="png")
