"""The command line: ``python -m scripts <command>``, or ``nny <command>`` from any folder."""

from __future__ import annotations

import os
import sys

import fire


def main() -> None:
    """Run one command; bad input ends in a message instead of a traceback, which NNY_TRACE=1 shows."""
    from scripts import catalogue, clinical, imputation, workflows
    from scripts.compare import compare
    from scripts.crossval import crossval, score
    from scripts.download import download
    from scripts.export import export
    from scripts.networks import authors, upkern_checkpoint
    from scripts.plan.command import plan
    from scripts.prepare.commands import COMMANDS as PREPARE
    from scripts.prepare.phantom import write_phantom_cohort
    from scripts.release import release
    from scripts.report import report
    from scripts.tracking import track
    from scripts.verify import verify

    commands = {
        "demo": workflows.demo,
        "phantom": write_phantom_cohort,
        "prepare": PREPARE,
        "plan": plan,
        "clinical": {"check": clinical.check, "quality": imputation.quality},
        "train": workflows.train,
        "evaluate": workflows.evaluate,
        "infer": workflows.infer,
        "report": report,
        "crossval": crossval,
        "score": score,
        "compare": compare,
        "track": track,
        "release": release,
        "verify": verify,
        "export": export,
        "download": download,
        "networks": catalogue.write_page,
        "upkern": upkern_checkpoint,
        "import-weights": authors.import_weights,
    }
    try:
        fire.Fire(commands, name="nny")
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        if os.environ.get("NNY_TRACE"):
            raise
        sys.exit(f"nny: {error}")


if __name__ == "__main__":
    main()
