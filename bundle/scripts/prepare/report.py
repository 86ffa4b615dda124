"""The report of a ``prepare`` run: one self-contained HTML page with a thumbnail per case, to look the data over."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from scripts.files import replacing

_PALETTE = "4daf4a ff4b3e 35b8ff ffd23f c77cff ff9f40 00d5c0 f781bf a6d854 8da0cb e5c494 e41a1c 66c2a5 b3de69 fb8072"
COLOURS = {value: f"#{colour}" for value, colour in enumerate(_PALETTE.split(), 1)}
WINDOW = (-115.0, 235.0)  # HU: level 60, width 350
AIR = -300.0  # HU: below is nothing to show
CAPTION = (
    "Left: the axial slice with the largest tumour cross-section, as acquired. Right: the coronal slice through it, "
    "head up. Window 350, level 60 HU."
)


def thumbnail(
    image: np.ndarray,
    label: np.ndarray,
    spacing: Sequence[float],
    path: Path,
    *,
    focus: int | None = 2,
    width: float = 5.6,
    window: tuple[float, float] = WINDOW,
    air: float = AIR,
) -> None:
    """Draws the axial slice with the largest cross-section of a class beside the coronal one through its middle.

    Args:
        image: (X, Y, Z), as DICOM stores it: columns, rows, slices.
        label: (X, Y, Z), values as in ``COLOURS``.
        spacing: voxel size in mm.
        path: PNG to write.
        focus: the class to show; anything labelled where it is absent, or None.
        width: of the picture, in units of 100 pixels.
        window: values shown as black and as white.
        air: borders with nothing above this value are cut off.
    """
    target = label == focus if focus is not None and (label == focus).any() else label > 0
    k = int(target.sum(axis=(0, 1)).argmax())
    rows = np.nonzero(target[:, :, k])[1]
    j = int(np.median(rows)) if len(rows) else image.shape[1] // 2
    x, y = _trunk(image[:, :, k], air)
    views = [
        (image[x, y, k].T, label[x, y, k].T, spacing[1], spacing[0]),  # (rows, columns)
        (image[x, j, ::-1].T, label[x, j, ::-1].T, spacing[2], spacing[0]),  # (slices from the head, columns)
    ]
    tall = max(view.shape[0] * down / (view.shape[1] * across) for view, _, down, across in views)
    figure = Figure(figsize=(width, width / 2 * tall), dpi=100, facecolor="black")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, gridspec_kw={"wspace": 0.02})
    figure.subplots_adjust(0, 0, 1, 1)
    for ax, (view, mask, down, across) in zip(axes, views, strict=True):
        ax.imshow(view, cmap="gray", vmin=window[0], vmax=window[1], aspect=down / across, interpolation="bilinear")
        for value, colour in COLOURS.items():
            if min(mask.shape) > 1 and (mask == value).any():
                ax.contour(mask == value, levels=[0.5], colors=[colour], linewidths=0.8)
        ax.set_axis_off()
    with replacing(path) as part:
        figure.savefig(part, format="png", facecolor="black", metadata={"Software": None})


def _trunk(values: np.ndarray, air: float) -> tuple[slice, slice]:
    """The box of an axial slice (columns, rows) that holds more than air, with a margin."""
    body = values > air
    spans = []
    for axis in (1, 0):
        hits = np.flatnonzero(body.mean(axis=axis) > 0.02)
        low, high = (hits[0], hits[-1] + 1) if len(hits) else (0, body.shape[1 - axis])
        spans.append(slice(max(0, int(low) - 2), int(high) + 2))
    return spans[0], spans[1]


def write_report(
    path: Path,
    *,
    records: Sequence[dict[str, Any]],
    excluded: Sequence[str],
    labels: dict[int, str],
    status_folder: Path,
    title: str,
    notes: Sequence[str] = (),
    about: str = "Images in HU",
    caption: str = CAPTION,
) -> None:
    """Writes the page.

    Args:
        path: the HTML file.
        records: one per case, as ``prepare_case`` returns.
        excluded: patients dropped on purpose.
        labels: label value -> name.
        status_folder: where the thumbnails ``<case>.png`` are.
        title: name of the data.
        notes: sentences for the top.
        about: what the images are, for the line below the title.
        caption: what the thumbnails show.
    """
    done = [dict(r) for r in records if r["status"] == "done"]
    for record in done:
        record["thumbnail"] = base64.b64encode((status_folder / f"{record['case_id']}.png").read_bytes()).decode()
    names = [(value, name, COLOURS.get(value, "#888")) for value, name in labels.items() if value]
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(
        Path(__file__).with_name("report_template.html").read_text(encoding="utf-8")
    )
    html = template.render(
        title=title,
        about=about,
        caption=caption,
        notes=notes,
        excluded=excluded,
        done=done,
        names=names,
        ranges=_ranges(done, labels),
        broken=[r for r in records if r["status"] == "broken"],
        warned=sum(bool(r["warnings"]) for r in done),
    )
    with replacing(path) as part:
        part.write_text(html, encoding="utf-8")


def _ranges(done: Sequence[dict[str, Any]], labels: dict[int, str]) -> list[tuple[str, str]]:
    """Smallest, median and largest of what one wants to know of a cohort."""
    rows = [
        ("slices", [r["shape"][2] for r in done], "{:.0f}"),
        ("pixel size, mm", [r["spacing"][0] for r in done], "{:.3f}"),
        ("slice spacing, mm", [r["spacing"][2] for r in done], "{:.2f}"),
        *((f"{name}, ml", [r["volumes_ml"][name] for r in done], "{:.1f}") for value, name in labels.items() if value),
    ]
    return [
        (name, " / ".join(form.format(f(values)) for f in (np.min, np.median, np.max)))
        for name, values, form in rows
        if values
    ]
