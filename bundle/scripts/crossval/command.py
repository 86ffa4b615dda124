"""`nny crossval`: train and evaluate every fold, and put them together."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scripts import datalists, workflows
from scripts.crossval.gather import gather
from scripts.crossval.page import write_page
from scripts.crossval.running import Plan, run_folds
from scripts.shares import launched, own_share, share
from scripts.terms import keep_terms

TERMS = "terms.json"


def crossval(
    dataset: str,
    output: str = "work/crossval",
    overlays: str | Sequence[str] = (),
    folds: int | str | Sequence[int] | None = None,
    **overrides: Any,
) -> str:
    """Cross-validate a network: a run for each fold, every patient scored by a network that never saw him.

    Folds that are finished are kept, one that was begun goes on. When all are finished, the same command without
    --folds puts them together: scores of the whole cohort with intervals, how masks are cleaned best, and a page.
    Started by torchrun, each process takes its share of the folds.

    Args:
        dataset: the prepared dataset, whose dataset.json deals patients to folds.
        output: folder for fold0, fold1, …, evaluation/, summary.csv, folds.csv, postprocessing.yaml and index.html.
        overlays: as of `nny train`.
        folds: only these, as one job of an array does: --folds 0 or --folds 0,1.
        **overrides: any id of the configuration, the same for all folds: --epochs 100 --seed 3 …

    Returns:
        Path of the page, or what is still to be done.

    Raises:
        ValueError: unknown folds, or other terms than those that the folder was begun with.
        RuntimeError: a fold failed.
    """
    reserved = sorted({"fold", "output_dir", "dataset_dir"} & overrides.keys())
    if reserved:
        raise ValueError(f"{reserved[0]} is not for a cross-validation to set: use dataset, --output and --folds.")
    names = tuple(workflows.overlay_paths(overlays))
    folder, place = Path(output).expanduser().resolve(), str(Path(dataset).expanduser().resolve())
    plan = Plan(place, folder, names, overrides)
    known = sorted({int(case["fold"]) for case in datalists.read_datalist(place)})
    chosen = _chosen(folds, known)
    terms = {"dataset": place, "overlays": [Path(name).name for name in names], "settings": overrides}
    keep_terms(folder / TERMS, terms, "folds on different terms cannot be put together")
    try:
        run_folds(plan, share(chosen, own_share()))
    except RuntimeError as error:
        if not launched():
            raise
        print(error)  # a process that ends by an error makes torchrun stop the folds of the others
    missing = [fold for fold in known if not plan.finished(fold)]
    if folds is not None or launched() or missing:
        rest = f"still to do: {', '.join(map(str, missing))}" if missing else "all are finished"
        return f"{len(known) - len(missing)} of {len(known)} folds; {rest}. Without --folds they are put together."
    return write_page(plan, gather(plan, known))


def _chosen(folds: int | str | Sequence[int] | None, known: Sequence[int]) -> list[int]:
    """The folds to run."""
    if folds is None:
        return list(known)
    texts = folds.split(",") if isinstance(folds, str) else [folds] if isinstance(folds, int) else folds
    wanted = [int(text) for text in texts if str(text).strip().isdigit()]
    if not wanted or len(wanted) < len(list(texts)) or not set(wanted) <= set(known):
        raise ValueError(
            f"folds is {folds!r}; the dataset has the folds {list(known)}: give some, such as --folds 0,1."
        )
    return sorted(set(wanted))
