"""A finished run of the bundle as an inference task of MONAI Label."""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import Any

import nibabel as nib
from monai.bundle import ConfigParser
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, SaveImaged
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType
from monailabel.transform.writer import Writer
from scripts.datalists import NIFTI, inference_cases
from scripts.networks import load_weights


class BundleInfer(InferTask):
    """Segments an image as `nny infer` does: every step is the object that the run's own configuration describes.

    The configuration is read, and the weights are loaded, once; a request only runs them.

    Args:
        run: folder of a finished run: ``inference.yaml``, ``model.pt``, and ``clinical.json`` where the network takes
            clinical variables.
        clinical: table (xlsx or csv) with the patients' clinical variables; None: nothing is known of any patient.

    Raises:
        FileNotFoundError: the run is not finished, or there is no such table.
        ValueError: weights of another network, a table that is refused, or a table for a network without clinical data.
    """

    def __init__(self, *, run: str | Path, clinical: str | Path | None = None) -> None:
        folder = Path(run).expanduser().resolve()
        config = read_config(folder, clinical)
        labels = config.get_parsed_content("labels")
        super().__init__(
            type=InferType.SEGMENTATION,
            labels={name: value for value, name in enumerate(labels) if value > 0},
            dimension=config.get_parsed_content("spatial_dims"),
            description=f"Weights of the run {folder}",
        )
        self._weights = folder / "model.pt"
        self._preprocessing = config.get_parsed_content("preprocessing")
        self._evaluator = {  # the evaluator of inference.yaml, without what belongs to a batch of files
            key: config.get_parsed_content(key)
            for key in ("device", "network", "inferer", "prepare_batch", "amp", "amp_kwargs")
        }
        steps = config.get_parsed_content("postprocessing").flatten().transforms
        self._evaluator["postprocessing"] = Compose([step for step in steps if not isinstance(step, SaveImaged)])
        load_weights(self._evaluator["network"], self._weights)

    def is_valid(self) -> bool:
        """The weights fit, or there would be no task."""
        return True

    def get_path(self, validate: bool = True) -> str:
        """Path of the weights."""
        return str(self._weights)

    def __call__(self, request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Segment one image.

        Args:
            request: ``image``, the path of the image (its name without suffix is the patient's id); the client may ask
                for another file format and voxel type by ``result_extension`` and ``result_dtype``.

        Returns:
            Path of the mask, in the geometry of the image and by default as NIfTI of uint8, and what clients are told:
            ``label_names`` (name to value) and ``latencies`` (seconds).

        Raises:
            FileNotFoundError: no image there.
            ValueError: several images there.
        """
        begin = time.perf_counter()
        mask = self.segment(request["image"])
        wanted = {"result_extension": ".nii.gz", "result_dtype": "uint8"} | request
        if wanted["result_extension"] in NIFTI:
            file = write_nifti(mask, suffix=wanted["result_extension"], dtype=wanted["result_dtype"])
        else:
            file, _ = Writer(label="pred")(wanted | {"pred": mask})
        seconds = round(time.perf_counter() - begin, 2)
        return file, {"label_names": self.labels, "latencies": {"total": seconds}}

    def segment(self, image: str | Path) -> MetaTensor:
        """Segment one image in memory.

        Args:
            image: path of the image.

        Returns:
            Label map ``(*spatial)``, uint8, on the grid of the image.
        """
        cases = inference_cases(image)
        if len(cases) != 1:
            raise ValueError(f"{image} holds {len(cases)} images; ask for one image at a time.")
        loader = DataLoader(Dataset(cases, self._preprocessing), batch_size=1, num_workers=0)
        evaluator = SupervisedEvaluator(val_data_loader=loader, **self._evaluator)
        evaluator.run()
        return evaluator.state.output[0]["pred"][0]  # without the channel


def write_nifti(mask: MetaTensor, *, suffix: str, dtype: str) -> str:
    """Write a mask to a temporary file, with its affine as it is.

    MONAI Label's own writers change it: one resamples masks whose axes are permuted, the other straightens the slices
    of a tilted gantry.

    Args:
        mask: label map ``(*spatial)``.
        suffix: of the file, ``.nii`` or ``.nii.gz``.
        dtype: name of the voxels' type.

    Returns:
        Path of the file.
    """
    handle, file = tempfile.mkstemp(suffix=suffix)
    os.close(handle)
    nib.save(nib.Nifti1Image(mask.array.astype(dtype), mask.affine.numpy()), file)
    return file


def read_config(run: Path, clinical: str | Path | None = None) -> ConfigParser:
    """Read the configuration of a finished run, its paths pointing into the run.

    Args:
        run: the run's folder.
        clinical: the clinical table, or None.

    Returns:
        The configuration, of which nothing is instantiated yet.

    Raises:
        FileNotFoundError: the run is not finished, or there is no such table.
        ValueError: a table for a network that takes no clinical variables.
    """
    for name in ("inference.yaml", "model.pt"):
        if not (run / name).is_file():
            raise FileNotFoundError(f"{run} is not a finished run: it has no {name}. Train one with `nny train`.")
    config = ConfigParser()
    config.read_config(str(run / "inference.yaml"))
    config["checkpoint"] = str(run / "model.pt")
    config["clinical_statistics"] = str(run / "clinical.json")
    if clinical is not None:
        table = Path(clinical).expanduser().resolve()
        if not takes_clinical(config):
            raise ValueError(f"The network of {run} takes no clinical variables. Leave out the table {table}.")
        if not table.is_file():
            raise FileNotFoundError(f"There is no clinical table {table}.")
        config["clinical_table_path"] = str(table)
    return config


def takes_clinical(config: ConfigParser) -> bool:
    """Whether the network of a configuration takes clinical variables."""
    return config.get("clinical_schema") is not None
