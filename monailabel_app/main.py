"""What MONAI Label starts: names the tasks of the app and gives them what the user configured."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# MONAI Label loads this file by its path, when neither the app nor the bundle need be importable
sys.path[:0] = [folder for folder in (str(ROOT), str(ROOT / "bundle")) if folder not in sys.path]

from fastapi import HTTPException  # noqa: E402
from monailabel.interfaces.app import MONAILabelApp  # noqa: E402
from monailabel.interfaces.tasks.infer_v2 import InferTask  # noqa: E402
from scripts.workflows import DEMO_RUN  # noqa: E402

from monailabel_app.lib.infers.bundle import BundleInfer  # noqa: E402

CONF = {
    "run": f"folder of the run whose network segments (default: {DEMO_RUN})",
    "clinical": "table, xlsx or csv, with the patients' clinical variables (default: nothing is known of them)",
}


class NNYApp(MONAILabelApp):
    """Segments the images of a study folder with the network of one run.

    Args:
        app_dir: folder of this file.
        studies: folder of NIfTI files.
        conf: ``--conf <key> <value>`` of the command line; `CONF` says which keys there are.

    Raises:
        ValueError: an unknown key, or a run or table that cannot be used.
        FileNotFoundError: no such run or table.
    """

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        unknown = sorted(set(conf) - set(CONF))
        if unknown:
            known = "; ".join(f"{key}: {meaning}" for key, meaning in CONF.items())
            raise ValueError(f"The app has no --conf {', '.join(unknown)}. There are {known}.")
        super().__init__(
            app_dir=app_dir,
            studies=studies,
            conf=conf,
            name="nny-net",
            description="Segmentation of scans with clinical data",
        )

    def init_infers(self) -> dict[str, InferTask]:
        """One task, named after the run's folder."""
        run = Path(self.conf.get("run") or DEMO_RUN).expanduser().resolve()
        return {run.name: BundleInfer(run=run, clinical=self.conf.get("clinical") or None)}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Segment an image of the studies, as MONAI Label does, but say which image is not there."""
        image = request["image"]
        if not Path(image).exists() and image not in (datastore or self.datastore()).list_images():
            raise HTTPException(404, f"There is no image {image!r} in {self.studies}.")
        return super().infer(request, datastore)
