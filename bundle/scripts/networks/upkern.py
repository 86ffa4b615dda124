"""UpKern: a network of large kernels starts from a trained one of small kernels.

Large kernels trained from random weights saturate on few images. So train with kernel 3, enlarge, and go on with 5:

    nny train <data> runs/k3 network_mednext_s
    nny upkern --source runs/k3/model.pt --target runs/k5_start.pt --kernel_size 5
    nny train <data> runs/k5 network_mednext_s --kernel_size 5 --initial_weights runs/k5_start.pt

The two ids of the last command can stand in an overlay of YAML as well, which then needs no command in between:

    kernel_size: 5
    upkern_source: /runs/k3/model.pt
    initial_weights: $scripts.networks.upkern_checkpoint(@upkern_source, @output_dir + '/start.pt', @kernel_size)
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoints import mismatches, read_state_dict, write_weights

logger = logging.getLogger(__name__)


def upkern(source: Mapping[str, Tensor], target: nn.Module) -> dict[str, Tensor]:
    """Weights for a network of larger depthwise kernels, from the same network with smaller ones.

    Depthwise kernels are interpolated (trilinear or bilinear); everything else is copied and must agree in name and
    shape.

    Args:
        source: weights of the trained network, by key.
        target: the network with larger kernels; it is not changed.

    Returns:
        Weights for `target.load_state_dict`, in the order of its keys; none shares memory with `source`.

    Raises:
        ValueError: if the networks differ in anything else, or a kernel would shrink, naming what.

    References:
        Roy et al., "MedNeXt: Transformer-driven Scaling of ConvNets for Medical Image Segmentation",
        arXiv:2303.09975, section 2.3, figure 1b.

    Example:
        >>> from scripts.networks import MedNeXtDecoder, upkern
        >>> small, large = (MedNeXtDecoder(channels=[4, 8], out_channels=2, kernel_size=k) for k in (3, 5))
        >>> large.load_state_dict(upkern(small.state_dict(), large))
        <All keys matched successfully>
    """
    state = target.state_dict()
    depthwise = {f"{name}.weight".lstrip(".") for name, module in target.named_modules() if _is_depthwise(module)}
    resized = {
        key: _interpolate(source[key], state[key].shape[2:])
        for key in depthwise & source.keys()
        if _grows(source[key].shape, state[key].shape)
    }
    result = {key: value.clone() for key, value in source.items()} | resized
    problems = mismatches(state, result)
    if problems:
        raise ValueError(
            "UpKern enlarges depthwise kernels (to the same dimensions, none smaller) and copies everything else; the "
            f"network and the weights in the file differ in more than that.\n{problems}"
        )
    return {key: result[key] for key in state}


def upkern_checkpoint(source: str, target: str, kernel_size: int = 5) -> str:
    """Write a checkpoint with larger kernels from a trained one of MedNeXt blocks; see `upkern`.

    No network is built: a MedNeXt block is known by its keys (conv1, norm, conv2, conv3) and their shapes, so whatever
    stands besides (another encoder, the fusion) is copied.

    Args:
        source: checkpoint with small kernels, as `read_state_dict` takes it, such as the `model.pt` of a run.
        target: file ``*.pt`` to write; its folder is made.
        kernel_size: odd side of the new kernels, at least that of the old ones.

    Returns:
        `target`, for `initial_weights`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file holds no MedNeXt block, `kernel_size` does not enlarge its kernels, or `target` is
            `source` or no ``*.pt``.
    """
    state = read_state_dict(source)
    kernels = [key for key in state if _is_mednext_kernel(key, state)]
    if not kernels:
        raise ValueError(f"{source} holds no MedNeXt block: no kernel is known to be depthwise there.")
    old = min(min(state[key].shape[2:]) for key in kernels)
    if kernel_size % 2 == 0 or kernel_size <= old:
        raise ValueError(f"kernel_size is {kernel_size}; expected an odd number above {old}, the kernels of {source}.")
    for key in kernels:  # a kernel that spans a long stride may be larger than the others, and large enough
        state[key] = _interpolate(state[key], [max(kernel_size, side) for side in state[key].shape[2:]])
    write_weights(state, target, source)
    logger.info("%s: %d kernels of %s enlarged from %d to %d.", target, len(kernels), source, old, kernel_size)
    return target


def _is_depthwise(module: nn.Module) -> bool:
    """Whether each channel has a kernel of its own, in a convolution of two or three axes."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.ndim not in (4, 5):
        return False
    groups, in_channels = getattr(module, "groups", None), getattr(module, "in_channels", None)
    return weight.shape[1] == 1 and weight.shape[0] == groups == in_channels


def _grows(small: torch.Size, large: torch.Size) -> bool:
    return (
        len(small) == len(large)
        and small != large
        and small[:2] == large[:2]
        and all(s <= n for s, n in zip(small[2:], large[2:], strict=True))
    )


def _interpolate(kernels: Tensor, size: Sequence[int]) -> Tensor:
    """Resize kernels `(C, 1, *sides)`; computed in single precision."""
    mode = {4: "bilinear", 5: "trilinear"}[kernels.ndim]
    return F.interpolate(kernels.float(), size=tuple(size), mode=mode, align_corners=False).to(kernels.dtype)


def _is_mednext_kernel(key: str, state: Mapping[str, Tensor]) -> bool:
    """Whether a key is the depthwise kernel of a MedNeXt block, judged by its neighbours."""
    block, _, leaf = key.rpartition("conv1.weight")
    names = [f"{block}{name}.weight" for name in ("norm", "conv2", "conv3")]
    if leaf or not all(name in state for name in names):
        return False
    kernel, (norm, expansion, compression) = state[key], (state[name] for name in names)
    return (
        kernel.ndim in (4, 5)
        and kernel.shape[1] == 1
        and norm.shape == kernel.shape[:1]
        and all(conv.ndim == kernel.ndim and set(conv.shape[2:]) == {1} for conv in (expansion, compression))
        and expansion.shape[1] == len(norm)
        and expansion.shape[0] == compression.shape[1]
    )
