"""A training before the training: the same configuration with a few ids changed, in a folder of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from monai.bundle import ConfigWorkflow

from scripts.files import replacing
from scripts.runs import running_config


def train_first(output_dir: str, **changes: Any) -> str:
    """Train what the calling workflow is configured to train, but for some ids; goes on where it was stopped.

    Args:
        output_dir: the earlier run's folder.
        **changes: id to content in that run.

    Returns:
        Path of its weights.
    """
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "stage.yaml"
    with replacing(file) as partial:
        partial.write_text(yaml.safe_dump(running_config() | changes | {"output_dir": output_dir}, sort_keys=False))
    workflow = ConfigWorkflow(config_file=str(file), logging_file=False, run_id="training", workflow_type="train")
    workflow.initialize()
    workflow.run()
    workflow.finalize()
    return str(folder / "model.pt")
