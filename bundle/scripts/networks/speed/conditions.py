"""When a faster path may replace torch's own."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as global_hooks
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._python_dispatch import _get_current_dispatch_mode

HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def applies(*tensors: Tensor | None) -> bool:
    """Whether the faster paths may run on these tensors, here and now.

    They are for float32 on x86 CPUs, run eagerly. Whoever traces, compiles, exports, counts operations, casts
    automatically or transforms functions gets torch's own operations.

    Args:
        tensors: input and parameters; None where a module has none.

    Returns:
        True if so.
    """
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_autocast_enabled("cpu"):
        return False
    return (
        all(t is None or (t.is_cpu and t.dtype == torch.float32 and t.layout == torch.strided) for t in tensors)
        and _get_current_dispatch_mode() is None
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_mkldnn_enabled()
        and _machine_fits()
    )


@cache
def _machine_fits() -> bool:
    """Whether oneDNN has its depthwise kernels here: on x86 with vectors of 256 bits or more."""
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    return x86 and torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability().startswith("AVX")


def watched(module: nn.Module) -> bool:
    """Whether somebody hooked a module, or all of them, so that its forward pass may not be skipped."""
    return any(getattr(module, kind) or getattr(global_hooks, f"_global{kind}") for kind in HOOKS)


def call(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """Call a function of tensors as torch calls its own, so that MONAI's MetaTensor comes out as it went in."""
    tensors = [a for a in arguments if isinstance(a, Tensor)]
    if has_torch_function(tensors):
        return handle_torch_function(_without_subclasses(function), tensors, *arguments)
    return function(*arguments)


def _without_subclasses(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def wrapped(*arguments: Any) -> Tensor:
        return function(*(a.as_subclass(Tensor) if isinstance(a, Tensor) else a for a in arguments))

    return wrapped
