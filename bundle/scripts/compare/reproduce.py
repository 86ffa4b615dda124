"""The page that says, for each table of the four papers, what to run, what it needs, and what the paper reports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scripts import BUNDLE_ROOT
from scripts.compare.papers import paper_tables
from scripts.files import replacing

PAGE = BUNDLE_ROOT / "docs" / "reproduce.md"
SPEED = 20.0  # TFLOP/s of useful arithmetic, an assumption
INTRODUCTION = """# Reproducing the papers' tables

Written from `scripts/compare/papers.yaml` by `python -m scripts.compare.reproduce`; do not edit it by hand. Nothing on
this page was measured here: the column *measured* is yours. The last command of each table fills it
(`against_paper.csv` and the page, with intervals and the difference).

- A number is printed only if it was read in the source named under the table. What could not be read is listed.
- **GPU hours** are the least that arithmetic allows: steps × batch × multiply-accumulates × 6 FLOP at an assumed
  {speed:.0f} TFLOP/s of useful work, for the largest network of the table. Loading, small kernels and validation come
  on top. To know, multiply your own `s/step` (a column of the leaderboard) by the steps.
- Data is not downloaded for you: each set has its own terms. [prepare.md](prepare.md) says how a download becomes a
  dataset.
- Paths such as `/data/acdc` stand for your folders. Every command goes on where it was stopped.
- A difference means something only on the paper's data, split and length of training; one fold or one seed is not the
  mean of five.
"""


def reproduce_page() -> str:
    """The page as Markdown."""
    parts = [INTRODUCTION.format(speed=SPEED)]
    paper = ""
    for table in paper_tables().values():
        if table["paper"] != paper:
            paper = table["paper"]
            parts.append(f"## {paper}\n\n*{table['title_of_paper']}*, arXiv {table['arxiv']}.\n")
        parts.append(_section(table))
    return "\n".join(parts)


def gpu_hours(table: dict[str, Any]) -> float | None:
    """The least GPU hours of one network of a table; None where nothing is trained or the length is not known."""
    if not all(table.get(key) for key in ("steps", "batch", "gmacs")):
        return None
    return table["steps"] * table["batch"] * table["gmacs"] * 6 / (SPEED * 1000) / 3600


def write_page(output: str | Path = PAGE) -> str:
    """Write the page.

    Args:
        output: Markdown file.

    Returns:
        Its path.
    """
    with replacing(output) as part:
        part.write_text(reproduce_page(), encoding="utf-8")
    return str(output)


def _section(table: dict[str, Any]) -> str:
    lines = [
        f"### {table['title']} (`{table['key']}`)\n",
        f"- Data: {table['data']}.",
        f"- Protocol: {table['protocol']}.",
    ]
    hours = gpu_hours(table)
    if hours is not None:
        lines.append(f"- Length: {table['steps']:,} steps a network, at least {_hours(hours)} GPU hours.")
    lines.append(f"- Source of the numbers: {table['source']}.")
    if table.get("missing"):
        lines.append(f"- Not transcribed, look it up in the source: {table['missing']}.")
    if table["commands"]:
        lines += ["", "```", *table["commands"], "```"]
    else:
        lines.append("- No command yet: this bundle has no protocol overlay that does it in one line.")
    if table["rows"]:
        lines += ["", "| network | number | paper | measured |", "|---|---|---|---|"]
        for row in table["rows"]:
            lines += [f"| {row['name']} | {column} | {value:g} | |" for column, value in row["values"].items()]
    return "\n".join(lines) + "\n"


def _hours(hours: float) -> str:
    return f"{hours:.0f}" if hours >= 10 else f"{hours:.1f}"


if __name__ == "__main__":
    print(write_page())
