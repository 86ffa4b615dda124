"""Exported forms in the place of the network: what `inference_*.yaml` put into the inference workflow."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor, nn

__all__ = ["Autocast", "OnnxNetwork", "TensorRTNetwork", "TorchScriptNetwork"]


class _Exported(nn.Module):
    """Takes what `YNet` takes: an image `(B, C, *window)` and maybe clinical variables `(B, F)` or `(1, F)`."""

    suffix: str

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        if not self.path.name.endswith((self.suffix, f"{self.suffix}.part")):  # `nny verify` judges files by it
            raise ValueError(f"{self.path} is not named *{self.suffix}; give the file that `nny export` wrote.")
        if not self.path.is_file():
            raise FileNotFoundError(
                f"There is no {self.path}. Write it with `nny export`, or say where it is (--exported <file>)."
            )
        self.image: list[int] | None = None  # channels and window; None: not known
        self.clinical: int | None = None  # features; None: takes none

    def inputs(self, x: Tensor, clinical: Tensor | None) -> tuple[Tensor, ...]:
        """Check the inputs and bring them into the form of the exported graph: one row per window, NaN for unknown."""
        if self.image is not None and list(x.shape[1:]) != self.image:
            raise ValueError(
                f"{self.path} was exported for images of shape (batch, {', '.join(map(str, self.image))}), got "
                f"{tuple(x.shape)}. Use the patch_size of the export, or export again."
            )
        x = torch.as_tensor(x).as_subclass(Tensor)  # graphs know nothing of MONAI's MetaTensor
        if self.clinical is None:
            return (x,)
        if clinical is None:
            clinical = x.new_full((1, self.clinical), torch.nan)
        if clinical.ndim != 2 or clinical.shape[1] != self.clinical or clinical.shape[0] not in (1, len(x)):
            raise ValueError(
                f"{self.path} was exported for clinical variables of shape ({len(x)}, {self.clinical}), got "
                f"{tuple(clinical.shape)}. Use the clinical schema that the network was trained with."
            )
        return x, clinical.as_subclass(Tensor).to(x).expand(len(x), -1)


class TorchScriptNetwork(_Exported):
    """A network that `nny export --form torchscript` or MONAI's ``ckpt_export`` wrote.

    Args:
        path: the file, ``model.ts``.
        device: where it runs.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no TorchScript, or takes inputs that nothing is said about.
    """

    suffix = ".ts"

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        super().__init__(path)
        self.device = torch.device(device)
        carried = {"inputs.json": ""}
        try:
            self.network = torch.jit.load(str(self.path), map_location=device, _extra_files=carried).eval()
        except RuntimeError as error:
            raise ValueError(f"{self.path} is not TorchScript that this torch can read: {error}") from error
        if carried["inputs.json"]:
            shapes = json.loads(carried["inputs.json"])
            self.image, self.clinical = shapes["image"], shapes["clinical"]
        elif len(self.network.forward.schema.arguments) > 2:  # the module itself, the image, and more
            raise ValueError(
                f"{self.path} takes more than an image, but does not say what. Write it with `nny export`."
            )

    def forward(self, x: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Logits `(B, out_channels, *window)`."""
        return self.network(*(value.to(self.device) for value in self.inputs(x, clinical))).to(x.device)


class TensorRTNetwork(TorchScriptNetwork):
    """TorchScript with engines of TensorRT in it, which `nny export --form trt` or MONAI's ``trt_export`` wrote.

    Args:
        path: the file, ``model_trt.ts``.
        device: an NVIDIA GPU of the kind that the file was made on.

    Raises:
        ValueError: no GPU.
        RuntimeError: torch_tensorrt is not installed.
    """

    def __init__(self, path: str | Path, device: str | torch.device = "cuda") -> None:
        need_tensorrt(device)
        super().__init__(path, device)


class OnnxNetwork(_Exported):
    """A network that `nny export --form onnx` wrote, run by onnxruntime.

    Args:
        path: the file, ``model.onnx``.
        device: a GPU needs onnxruntime-gpu.

    Raises:
        FileNotFoundError: no such file.
        RuntimeError: onnxruntime is not installed.
        ValueError: it is no ONNX, or this onnxruntime cannot use the device.
    """

    suffix = ".onnx"

    def __init__(self, path: str | Path, device: str | torch.device = "cpu") -> None:
        super().__init__(path)
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise RuntimeError(f"{self.path} needs onnxruntime: pip install onnxruntime") from error
        provider = "CUDAExecutionProvider" if torch.device(device).type == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise ValueError(
                f"This onnxruntime cannot use {device}. Install onnxruntime-gpu, or run on the CPU: "
                """--device '$torch.device("cpu")'."""
            )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=[provider])
        except Exception as error:  # onnxruntime's own exceptions share no class
            raise ValueError(f"{self.path} is not ONNX that onnxruntime can run: {error}") from error
        shapes = {entry.name: entry.shape for entry in self.session.get_inputs()}
        self.image = list(shapes["image"][1:])
        self.clinical = shapes["clinical"][1] if "clinical" in shapes else None

    def forward(self, x: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Logits `(B, out_channels, *window)`."""
        arrays = [value.cpu().numpy() for value in self.inputs(x, clinical)]
        names = [entry.name for entry in self.session.get_inputs()]
        (logits,) = self.session.run(None, dict(zip(names, arrays, strict=True)))
        return torch.from_numpy(logits).to(x.device)


class Autocast(nn.Module):
    """A network computed in a 16-bit type where that is safe; its logits are float32.

    Args:
        network: the network.
        dtype: the type.
    """

    def __init__(self, network: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x: Tensor, clinical: Tensor | None = None) -> Tensor:
        """Logits `(B, out_channels, *window)`."""
        with torch.autocast(x.device.type, self.dtype):
            return self.network(x, clinical).float()


def need_tensorrt(device: str | torch.device = "cuda") -> None:
    """Refuse where TensorRT cannot run.

    Raises:
        ValueError: no NVIDIA GPU, or another device was asked for.
        RuntimeError: torch_tensorrt is not installed.
    """
    if torch.device(device).type != "cuda" or not torch.cuda.is_available():
        raise ValueError(
            "TensorRT needs an NVIDIA GPU, and torch sees none here. Use TorchScript or ONNX: they run everywhere."
        )
    try:
        import torch_tensorrt  # noqa: F401 - its import registers the engines
    except ModuleNotFoundError as error:
        raise RuntimeError("TensorRT needs torch_tensorrt: pip install torch-tensorrt") from error
