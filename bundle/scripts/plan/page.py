"""The page of a plan: what was decided and why, and what the training cases are like."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from scripts.pages import write_page
from scripts.plan import figures
from scripts.plan.decide import Plan
from scripts.report_figures import colour

_TEMPLATE = "plan/page_template.html"


def write_plan_page(found: Plan, path: str | Path, command: str) -> str:
    """Write one self-contained HTML page; it opens offline and prints.

    Args:
        found: the plan.
        path: the file to write.
        command: trains with the plan.

    Returns:
        Its path.
    """
    return write_page(_TEMPLATE, _content(found, command), path)


def _content(found: Plan, command: str) -> dict[str, Any]:
    data, cost = found.data, found.meter.known[found.size]
    unit = "ml" if found.grid.known else "1000 voxels"
    return {
        "title": data.name,
        "scope": f"{len(data.records)} training cases; {data.held_out} of fold {data.fold} not opened",
        "modality": f"{found.modality.name}: {found.modality.reason}",
        "network": Path(found.network).stem,
        "command": command,
        "warnings": found.warnings,
        "size": str(found.size),
        "cost": f"{cost.gb:.2f} GB and {cost.seconds:.2f} s",
        "limits": str(found.limits),
        "choices": [(name, _value(choice.value), choice.reason) for name, choice in found.choices.items()],
        "grid": figures.grid_figure(found),
        "grey": figures.grey_figure(found),
        "classes": figures.class_figure(data, unit),
        "costs": figures.cost_figure(found),
        "class_rows": [_class_row(found, value) for value in range(1, len(data.labels))],
        "unit": unit,
        "pictures": figures.pictures(data, found.grid.known),
        "legend": [(name, colour(i)) for i, name in enumerate(data.labels[1:])],
        "rows": [_case_row(record) for record in data.records],
    }


def _value(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("...\n").strip()


def _class_row(found: Plan, value: int) -> dict[str, Any]:
    facts = found.data.of_class(value)
    return {
        "name": found.data.labels[value],
        "cases": len(facts),
        "ml": _three([fact["ml"] for fact in facts]),
        "components": _three([fact["components"] for fact in facts]),
        "largest": f"{min((fact['largest'] for fact in facts), default=float('nan')):.1%}",
    }


def _case_row(record: dict[str, Any]) -> dict[str, str]:
    grey = record["channels"][0]
    return {
        "name": record["case_id"],
        "shape": " × ".join(str(n) for n in record["shape"]),
        "spacing": " × ".join(f"{mm:g}" for mm in record["spacing"]),
        "range": f"{grey['levels'][0]:.4g} … {grey['levels'][-1]:.4g}",
        "classes": str(len(record["classes"])),
    }


def _three(values: Sequence[float]) -> str:
    """Smallest, median and largest."""
    return " / ".join(f"{f(values):.3g}" for f in (np.min, np.median, np.max)) if values else "absent"
