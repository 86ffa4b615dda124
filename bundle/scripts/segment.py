"""Segmentation from Python: a trained network, loaded once, that takes images and patients and gives masks."""

from __future__ import annotations

import re
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.data import DataLoader, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, LoadImaged, SaveImaged
from monai.utils import SpaceKeys
from numpy.typing import ArrayLike

from scripts.clinical_schema import suggestion
from scripts.datalists import inference_cases
from scripts.networks import load_weights
from scripts.segmentation import Segmentation
from scripts.transforms import slabs_on_source, source_grid
from scripts.uncertainty import entropy_map, foreground_mean

__all__ = ["Segmentation", "Segmenter", "segment"]


class Segmenter:
    """A trained network that segments images one by one, exactly as `nny infer` does.

    Configuration and weights are read once. Calls from several threads are safe: each has its own state, and the
    network serves one after the other, so that its memory does not grow with the number of callers.

    Args:
        model: a run's folder, a released bundle's folder, or its zip. A released bundle is verified before anything in
            it is used, as by `nny verify`.
        device: ``cpu``, ``cuda``, ``cuda:1`` …; by default the GPU where there is one.
        **overrides: any id of the configuration, as for `nny infer`.

    Raises:
        FileNotFoundError: there is no finished run and no bundle there.
        ValueError: a bundle that fails its verification, weights of another network, or an unknown id.

    Example:
        >>> from scripts.segment import Segmenter
        >>> model = Segmenter("bundle/models/demo")
        >>> model("ct.nii.gz", clinical={"AFP": 400}).save("mask.nii.gz")
    """

    def __init__(self, model: str | Path, *, device: str | torch.device | None = None, **overrides: Any) -> None:
        with _folder(Path(model).expanduser().resolve()) as folder:
            if device is not None:
                overrides["device"] = torch.device(device)
            self._read(_config(folder, overrides))

    @classmethod
    def of(cls, config: ConfigParser) -> Segmenter:
        """Make one from an inference configuration whose paths point to the weights and the clinical statistics.

        Args:
            config: what ``inference.yaml`` and overlays on it say; ``checkpoint`` and ``clinical_statistics`` are set.

        Raises:
            FileNotFoundError: there are no weights.
            ValueError: weights of another network.
        """
        segmenter = cls.__new__(cls)
        segmenter._read(config)
        return segmenter

    def _read(self, config: ConfigParser) -> None:
        """Make everything that the configuration describes, and load the weights."""
        self._lock = threading.Lock()
        try:
            self._make(config)
        except RuntimeError as error:
            raise _cause(error) from None

    def _make(self, config: ConfigParser) -> None:
        get = config.get_parsed_content
        self.labels: dict[str, int] = {name: value for value, name in enumerate(get("labels")) if value}
        self._channels = get("in_channels")
        self._clinical = None if config.get("clinical_schema") is None else get("clinical_table")
        self._preprocessing: Compose = get("preprocessing").flatten()
        if not isinstance(self._preprocessing.transforms[0], LoadImaged):
            raise ValueError("The first step of `preprocessing` is not LoadImaged, which reads the image. Correct it.")
        # the evaluator of inference.yaml, without what belongs to a batch of files
        self._evaluator = {k: get(k) for k in ("device", "network", "inferer", "prepare_batch", "amp", "amp_kwargs")}
        load_weights(self._evaluator["network"], get("checkpoint"))
        self._evaluator["network"].eval()
        self.cleaning = {name: config.get(name) for name in ("keep_largest", "remove_small") if config.get(name)}
        self._postprocessing = {}
        for probabilities in (False, True):
            config["save_probabilities"] = probabilities
            steps = get("postprocessing").flatten().transforms
            self._postprocessing[probabilities] = Compose([s for s in steps if not isinstance(s, SaveImaged)])

    @property
    def clinical_columns(self) -> dict[str, str]:
        """Each clinical variable that the network takes, and what its value may be; empty for a network without."""
        return {} if self._clinical is None else {c.name: c.expected for c in self._clinical.schema.columns}

    def __call__(
        self,
        image: str | Path | ArrayLike,
        *,
        affine: ArrayLike | None = None,
        clinical: Mapping[str, Any] | None = None,
        probabilities: bool = False,
        uncertainty: bool = False,
    ) -> Segmentation:
        """Segment one image.

        Args:
            image: path of a NIfTI (or other ITK) file or of a folder with one DICOM series; or voxels
                ``(H, W, D)``, in the units of the training images (CT: HU), with the channels of a network that takes
                several along a last axis.
            affine: voxel to RAS+ world in mm ``(4, 4)``, with an array; a file has its own.
            clinical: what is known of the patient, name to value in the units of the schema (`clinical_columns`); what
                is left out is unknown, which the network accepts.
            probabilities: also give the probability of each class (2 bytes a class and voxel).
            uncertainty: also give the map of the uncertainty (4 bytes a voxel).

        Returns:
            The mask on the grid of the image, the score of its uncertainty, and what was asked for.

        Raises:
            FileNotFoundError: no image there.
            ValueError: an image with other axes or channels than the network's, NaN voxels, an affine that cannot be
                inverted, several images, or clinical values that the schema refuses.
            TypeError: an array without an affine, or a file with one.
        """
        known = {} if clinical is None else {"clinical": self._checked(clinical)}
        return self._segment(self._case(image, affine) | known, probabilities, uncertainty)

    def _segment(self, case: dict[str, Any], probabilities: bool = False, uncertainty: bool = False) -> Segmentation:
        """Segment a loaded case."""
        found = self._predict(case)
        score, entropy = self._score(found), _entropy_on_source(found) if uncertainty else None
        found = self._postprocessing[probabilities](found)
        return Segmentation(
            mask=found["pred"].as_tensor()[0].numpy(),
            affine=found["pred"].affine.numpy(),
            labels=dict(self.labels),
            uncertainty_score=score,
            probabilities=found["pred_probabilities"].as_tensor().numpy() if probabilities else None,
            uncertainty=entropy,
        )

    def _predict(self, case: dict[str, Any]) -> dict[str, Any]:
        """The loaded case, preprocessed, with its logits ``(classes, *spatial)`` under ``pred``."""
        loader = DataLoader([self._step(case, start=1)], batch_size=1, num_workers=0)
        with self._lock:
            evaluator = SupervisedEvaluator(val_data_loader=loader, **self._evaluator)
            evaluator.logger.setLevel("WARNING")  # else a server's log has four lines a request
            evaluator.run()
        return evaluator.state.output[0]

    def _score(self, found: Mapping[str, Any]) -> float:
        """Mean entropy of the foreground, on the network's grid."""
        seen = torch.as_tensor(found["pred"]).float().softmax(0)  # (classes, *spatial)
        return foreground_mean(entropy_map(seen), seen)

    def _case(self, image: Any, affine: ArrayLike | None) -> dict[str, Any]:
        """The image, loaded or wrapped, with its channels first."""
        if isinstance(image, str | Path):
            if affine is not None:
                raise TypeError(f"{image} has an affine of its own; leave out `affine`.")
            if len(cases := inference_cases(image)) != 1:
                raise ValueError(f"{image} holds {len(cases)} images; segment one at a time.")
            return self._loaded(cases[0])
        if affine is None:
            raise TypeError("An array needs its `affine`, voxel to world in mm, (4, 4): nib.load(file).affine, e.g.")
        voxels = np.asarray(image)
        if voxels.dtype.kind not in "biuf":
            raise TypeError(f"The array holds {voxels.dtype}; expected numbers, as in a file of the training images.")
        voxels = np.array(voxels, dtype=np.float32)  # a copy: transforms may write
        voxels = voxels[None] if self._channels == 1 else np.moveaxis(voxels, -1, 0)  # (C, H, W, D)
        matrix, name = np.array(affine, dtype=float), "the given array"
        _check(name, voxels.shape, matrix, self._channels)
        meta = {"original_affine": matrix, "spatial_shape": voxels.shape[1:], "filename_or_obj": name}
        return {"image": MetaTensor(voxels, affine=matrix, meta=meta | {"space": SpaceKeys.RAS})}

    def _loaded(self, case: dict[str, Any]) -> dict[str, Any]:
        """A case of `inference_cases` with its image read."""
        try:
            read = self._step(case, end=1)
        except Exception as error:  # whatever a damaged file makes the reader raise
            raise ValueError(f"{case['image']} cannot be read as an image: {error}") from error
        _check(str(case["image"]), tuple(read["image"].shape), np.asarray(read["image"].affine), self._channels)
        return read

    def _step(self, case: dict[str, Any], **part: int) -> dict[str, Any]:
        """Run a part of the preprocessing."""
        try:
            return self._preprocessing(case, **part)
        except RuntimeError as error:
            raise _cause(error) from None

    def _checked(self, clinical: Mapping[str, Any]) -> dict[str, Any]:
        """The clinical values, refused now and not after the image has been prepared."""
        if self._clinical is None:
            raise ValueError("This network takes images alone; leave out `clinical`.")
        if not isinstance(clinical, Mapping):
            raise TypeError(f"clinical is a {type(clinical).__name__}; expected a dict of name to value.")
        self._clinical.encode(clinical)
        return dict(clinical)


def segment(image: str | Path | ArrayLike, model: str | Path, **settings: Any) -> Segmentation:
    """Segment one image; for several make a `Segmenter`, which loads the network once.

    Args:
        image: as of `Segmenter.__call__`.
        model: as of `Segmenter`.
        **settings: ``affine``, ``clinical``, ``probabilities``, ``uncertainty``, as of `Segmenter.__call__`.

    Returns:
        The mask on the grid of the image, and what was asked for.
    """
    return Segmenter(model)(image, **settings)


def _entropy_on_source(found: Mapping[str, Any]) -> np.ndarray:
    """Entropy on the grid of the source, of logits on the network's grid, where the preprocessed image lies."""
    entropy = torch.empty(source_grid(found["image"])[1])
    for place, part in slabs_on_source(found["pred"], found["image"]):
        entropy[..., place] = entropy_map(part.softmax(0))
    return entropy.numpy()


def _check(name: str, shape: tuple[int, ...], affine: np.ndarray, channels: int) -> None:
    """Refuse an image that is no volume ``(channels, H, W, D)``, or that lies nowhere."""
    if len(shape) != 4 or shape[0] != channels or 0 in shape:
        found = shape[1:] if shape[0] == 1 else (*shape[1:], shape[0])
        expected = "(H, W, D)" if channels == 1 else f"(H, W, D, {channels})"
        raise ValueError(
            f"{name} has the shape {found}; this network takes one volume, {expected}. A single slice becomes a volume "
            "by array[..., None]; of several volumes segment one at a time."
        )
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not np.allclose(affine[3], [0, 0, 0, 1]):
        raise ValueError(f"The affine of {name} is {affine.tolist()}; expected finite (4, 4) with 0 0 0 1 as last row.")
    lengths = np.linalg.norm(affine[:3, :3], axis=0)  # mm
    if not lengths.all() or abs(np.linalg.det(affine[:3, :3] / lengths)) < 1e-4:
        raise ValueError(
            f"The affine of {name} cannot be inverted: its axes are {np.round(lengths, 6).tolist()} mm long, or two of "
            "them have the same direction. Give the true one, such as np.diag([dx, dy, dz, 1])."
        )


def _cause(error: BaseException) -> BaseException:
    """What happened, of MONAI's "applying transform" and "failed to instantiate component"."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _config(folder: Path, overrides: Mapping[str, Any]) -> ConfigParser:
    """The inference configuration of a run or of a released bundle, its paths pointing into that folder."""
    run = (folder / "inference.yaml").is_file()
    file, weights = ("inference.yaml", "model.pt") if run else ("configs/inference.yaml", "models/model.pt")
    for name in (file, weights):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} is neither a finished run (inference.yaml, model.pt) nor a released bundle "
                f"(configs/inference.yaml, models/model.pt): it has no {name}."
            )
    config = ConfigParser()
    config.read_config(str(folder / file))
    known = list(config.get())
    for name in overrides:
        top = re.split("::|#", name)[0]
        if top not in known:
            raise ValueError(f"The configuration of {folder} has no {name!r}{suggestion(top, known)}.")
    paths = {"checkpoint": folder / weights, "clinical_statistics": (folder / weights).with_name("clinical.json")}
    paths |= {} if run else {"bundle_root": folder}
    config.update({name: str(path) for name, path in paths.items()} | dict(overrides))
    return config


@contextmanager
def _folder(model: Path) -> Iterator[Path]:
    """The folder of a run; of a released bundle a verified copy, for as long as the block lasts."""
    if not model.is_dir() and not zipfile.is_zipfile(model):
        raise FileNotFoundError(f"{model} is no folder of a run or bundle, and no zip of a bundle.")
    verifier, released = find_spec("scripts.verify"), (model / "SHA256SUMS").is_file()
    if model.is_dir() and (verifier is None or not released):
        yield model
    elif verifier is not None:
        # by name, so that a released bundle does not carry the verifier: it could not vouch for itself
        with import_module("scripts.verify").verified(model) as folder:
            yield folder
    else:
        raise ValueError(f"{model} cannot be verified by a bundle's own scripts. Unpack it, and give the folder.")
