"""Forms of a trained network that run without this bundle's network code: TorchScript, ONNX, TensorRT."""

from .command import FORMS, export
from .graph import save_onnx
from .source import Source, example_inputs, read_source
from .torchscript import save_torchscript, to_torchscript

__all__ = [
    "FORMS",
    "Source",
    "example_inputs",
    "export",
    "read_source",
    "save_onnx",
    "save_torchscript",
    "to_torchscript",
]
