"""``nny export``: one form of a trained network, written and compared with the network."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from scripts.clinical_schema import suggestion
from scripts.exported import OnnxNetwork, TensorRTNetwork, TorchScriptNetwork, need_tensorrt
from scripts.files import replacing

from .graph import save_onnx
from .source import Source, check_same, describe, example_inputs, read_source
from .torchscript import INPUTS, save_torchscript, to_torchscript


def export(source: str, output: str | None = None, form: str = "torchscript", **settings: Any) -> str:
    """Write a trained network in a form that runs without this repository, and check that it computes the same.

    Args:
        source: folder of a run or of a bundle.
        output: file to write; by default where `inference_<form>.yaml` looks for it: ``models/`` of a bundle, or the
            folder of a run.
        form: torchscript, onnx or trt.
        **settings: of the form; trt takes --precision fp16 (or fp32).

    Returns:
        The file.

    Raises:
        ValueError: an unknown form, or the exported form computes something else; nothing is then left behind.
    """
    if form not in FORMS:
        raise ValueError(f"There is no form {form!r}{suggestion(form, list(FORMS))}. Known: {', '.join(FORMS)}.")
    name, write, check = FORMS[form]
    if form == "trt":
        need_tensorrt()
    trained = read_source(source)
    models = trained.folder / "models" if (trained.folder / "models").is_dir() else trained.folder
    path = Path(output).expanduser().resolve() if output else models / name
    with replacing(path) as part:
        write(trained, part, **settings)
        difference = check(trained, part)
    print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB; largest difference to PyTorch {difference:.1e} of a logit")
    return str(path)


def _write_torchscript(trained: Source, path: Path) -> None:
    save_torchscript(trained.network, example_inputs(trained.network, trained.window), path, _metadata(trained))


def _metadata(trained: Source) -> dict[str, bytes]:
    """What MONAI's `load_net_with_metadata` reads."""
    file = trained.folder / "configs" / "metadata.json"
    return {"metadata.json": file.read_bytes()} if file.is_file() else {}


def _write_onnx(trained: Source, path: Path) -> None:
    save_onnx(trained.network, example_inputs(trained.network, trained.window), path)


def _write_trt(trained: Source, path: Path, precision: str = "fp16") -> None:
    """Compile the traced network for this GPU; batches of 1 to 16 windows."""
    import torch_tensorrt

    kinds = {"fp32": {torch.float32}, "fp16": {torch.float32, torch.float16}}
    if precision not in kinds:
        raise ValueError(f"There is no precision {precision!r}; expected {' or '.join(kinds)}.")
    examples = [x.cuda() for x in example_inputs(trained.network, trained.window)]
    shapes = [
        torch_tensorrt.Input(
            min_shape=(1, *x.shape[1:]), opt_shape=(1, *x.shape[1:]), max_shape=(16, *x.shape[1:]), dtype=x.dtype
        )
        for x in examples
    ]
    traced = to_torchscript(trained.network.cuda(), examples)
    engine = torch_tensorrt.compile(traced, inputs=shapes, enabled_precisions=kinds[precision], ir="torchscript")
    torch.jit.save(engine, str(path), _extra_files={INPUTS: describe(examples)})
    trained.network.cpu()


def _check(kind: type, tolerance: float = 1e-3) -> Callable[[Source, Path], float]:
    def check(trained: Source, path: Path) -> float:
        return check_same(path.name, kind(path), trained.network, trained.window, tolerance)

    return check


FORMS: dict[str, tuple[str, Callable[..., None], Callable[[Source, Path], float]]] = {
    "torchscript": ("model.ts", _write_torchscript, _check(TorchScriptNetwork)),
    "onnx": ("model.onnx", _write_onnx, _check(OnnxNetwork)),
    "trt": ("model_trt.ts", _write_trt, _check(TensorRTNetwork, 2e-2)),
}
