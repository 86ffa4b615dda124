"""One version of a network, read and loaded once, that segments images the way `nny infer` does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, SaveImaged
from scripts.clinical import ClinicalTable
from scripts.datalists import inference_cases
from scripts.networks import load_weights

from monailabel_app.lib.infers.uncertainty import Uncertaintyd, map_on_source
from monailabel_app.lib.models import Source, read_config, takes_clinical


@dataclass(frozen=True)
class Segmentation:
    """Label map ``(*spatial)``, uint8, on the grid of the image; uncertainty in [0, 1]; its map if asked for."""

    mask: MetaTensor
    uncertainty: float
    entropy: MetaTensor | None


class Segmenter:
    """Segments with one version of a network: every step is the object that its own configuration describes.

    Args:
        source: the network, with weights.
        version: its version.
        clinical: the clinical table, or None; a network without fusion does without.

    Raises:
        ValueError: there are no weights, or those of another network, or a table that is refused.
        FileNotFoundError: a file of the source is missing.
    """

    def __init__(self, source: Source, version: str, clinical: Path | None = None) -> None:
        if source.weights is None:
            raise ValueError(f"{source.name} has no weights yet: train it first.")
        config = read_config(source, clinical)
        self.version, self.config = version, config
        self.labels: list[str] = list(config.get_parsed_content("labels"))
        self.device: torch.device = config.get_parsed_content("device")
        self.network: torch.nn.Module = config.get_parsed_content("network")
        self.inferer = config.get_parsed_content("inferer")
        self.preprocessing: Compose = config.get_parsed_content("preprocessing")
        self.table: ClinicalTable | None = (
            config.get_parsed_content("clinical_table") if takes_clinical(config) else None
        )
        # the evaluator of inference.yaml, without what belongs to a batch of files
        self._evaluator = {key: config.get_parsed_content(key) for key in ("prepare_batch", "amp", "amp_kwargs")}
        steps = config.get_parsed_content("postprocessing").flatten().transforms
        kept = [step for step in steps if not isinstance(step, SaveImaged)]
        self._postprocessing = Compose([Uncertaintyd(), *kept])
        load_weights(self.network, source.weights)
        self.network.eval()

    def case(
        self, image: str | Path, patient_id: str | None = None, clinical: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What preprocessing starts from.

        Args:
            image: path of one image, or the folder of one DICOM series.
            patient_id: the patient's id in the clinical table; None: nothing is known.
            clinical: values by column, which replace the table's row as a whole.

        Raises:
            ValueError: several images there.
            FileNotFoundError: no image there.
        """
        cases = inference_cases(image)
        if len(cases) != 1:
            raise ValueError(f"{image} holds {len(cases)} images; ask for one image at a time.")
        case = {key: cases[0][key] for key in ("image", "case_id")}
        case |= {} if patient_id is None else {"patient_id": patient_id}
        return case if clinical is None else case | {"clinical": dict(clinical)}

    def preprocess(self, case: Mapping[str, Any]) -> dict[str, Any]:
        """Preprocess a case of `case`: ``image`` ``(C, *spatial)`` and, with fusion, ``clinical`` ``(F,)``."""
        return self.preprocessing(dict(case))

    def segment(self, case: Mapping[str, Any], entropy: bool = False) -> Segmentation:
        """Segment a case of `case`.

        Args:
            case: one case.
            entropy: also put the map of the entropy on the image's grid.
        """
        loader = DataLoader(Dataset([dict(case)], self.preprocessing), batch_size=1, num_workers=0)
        evaluator = SupervisedEvaluator(
            device=self.device,
            val_data_loader=loader,
            network=self.network,
            inferer=self.inferer,
            postprocessing=self._postprocessing,
            **self._evaluator,
        )
        evaluator.logger.setLevel("WARNING")
        evaluator.run()
        output = evaluator.state.output[0]
        found = map_on_source(output["entropy"], output["image"]) if entropy else None
        return Segmentation(output["pred"][0], float(output["uncertainty"]), found)
