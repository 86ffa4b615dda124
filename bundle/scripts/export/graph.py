"""ONNX: the network as a graph for onnxruntime and others, of any batch size."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from scripts.files import replacing

if TYPE_CHECKING:
    import onnx

INPUTS = ("image", "clinical")
OUTPUT = "logits"
BATCH = "batch"


def save_onnx(network: nn.Module, examples: Sequence[Tensor], path: str | Path) -> None:
    """Write a network as an ONNX file that `onnx.checker` accepts.

    The batch is free (named ``batch``), the window is not. NaN in the clinical input is what is unknown.

    Args:
        network: any network; it is put in eval mode.
        examples: image `(B, C, *window)`, and clinical variables `(B, F)` where the network takes them; B >= 2.
        path: file to write, whole or not at all.
    """
    import onnx

    network.eval()
    batch = torch.export.Dim(BATCH)
    with torch.no_grad(), _quiet(), _plain_attention():
        # strict: checks of a batch that compare `len(x)` would otherwise fix the batch
        program = torch.export.export(
            network, tuple(examples), dynamic_shapes=tuple({0: batch} for _ in examples), strict=True
        )
        exported = torch.onnx.export(
            program,
            tuple(examples),
            input_names=list(INPUTS[: len(examples)]),
            output_names=[OUTPUT],
            dynamo=True,
            optimize=True,
            verbose=False,
        )
    model = _tidy(exported.model_proto)
    onnx.checker.check_model(model, full_check=True)
    with replacing(path) as part:
        onnx.save(model, part)


def _tidy(model: onnx.ModelProto) -> onnx.ModelProto:
    """Name the batch, and drop what is noted at each node: call stacks, which name folders of this machine."""
    graph = model.graph
    symbol = graph.input[0].type.tensor_type.shape.dim[0].dim_param
    for value in (*graph.input, *graph.output, *graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = dim.dim_param.replace(symbol, BATCH)
    for noted in (*graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer, graph):
        noted.ClearField("metadata_props")
    return model


@contextlib.contextmanager
def _plain_attention() -> Iterator[None]:
    """Keep torch's transformer layers from their fused operator, which ONNX lacks."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporters' progress messages off the terminal; errors are raised anyway."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
