"""Sums over the voxels of each class, which Dice, focal and cross-entropy loss are made of, from one softmax."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

IGNORED = -(2**31)  # what an ignored voxel holds in an index map (no label can be that, unlike -1)
CPU_CHUNK, GPU_CHUNK = 2**17, 2**24  # numbers worked on at a time: per thread, to stay in the cache; on a GPU


class ClassSums(torch.autograd.Function):
    """Sums over voxels, per class, that all three terms are made of; keeps no softmax between its passes.

    With p = softmax(logits), t the class of a voxel and q = p[t], the sums for class c are: p[c] over all voxels, and
    q, -log q and (1 - q)^gamma * -log q over the voxels with t = c.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, index: Tensor, gamma: float, masked: bool) -> tuple[Tensor, ...]:
        """Sum over the voxels of logits (B, C, N) with classes index (B, N): four tensors (B, C)."""
        ctx.save_for_backward(logits, index)
        ctx.gamma, ctx.masked = gamma, masked
        sums = logits.new_zeros((4, *logits.shape[:2]), dtype=compute_dtype(logits))
        for b, voxels in _chunks(logits):
            p, t, log_q, valid = _softmax(logits[b, :, voxels], index[b, voxels], masked)
            q = log_q.exp() if valid is None else log_q.exp() * valid
            sums[0, b] += p.sum(1)
            sums[1:, b] += _sum_by_class(torch.stack((q, -log_q, (1 - q).pow_(gamma).mul_(-log_q))), t, len(p))
        return tuple(sums)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        """Gradient with respect to the logits (B, C, N), in their dtype."""
        logits, index = ctx.saved_tensors
        gamma, grad = ctx.gamma, torch.empty_like(logits)
        volume, per_voxel = grads[0], torch.stack(grads[1:])  # (B, C), (3, B, C)
        for b, voxels in _chunks(logits):
            p, t, log_q, valid = _softmax(logits[b, :, voxels], index[b, voxels], ctx.masked)
            overlap, nll, focal = per_voxel[:, b].index_select(1, t)  # (n,) each
            q, rest = log_q.exp(), log_q.expm1().neg_().clamp_min_(1e-12)  # q and 1 - q
            slope = (rest.pow(gamma - 1) * gamma).mul_(q).mul_(log_q).sub_(rest.pow(gamma))
            d_log_q = overlap.mul_(q).sub_(nll).addcmul_(focal, slope)
            if valid is not None:
                d_log_q *= valid
            d_p = p * volume[b][:, None]  # (C, n)
            d = d_p.addcmul_(p, d_p.sum(0).add_(d_log_q), value=-1)
            grad[b, :, voxels] = d.scatter_add_(0, t[None], d_log_q[None])
        return grad, None, None, None


def _softmax(logits: Tensor, index: Tensor, masked: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Softmax p (C, n), classes t (n,) as int64, log p[t] (n,) and mask (n,); p and log p[t] are 0 where ignored."""
    t, valid = index.long(), None
    if masked:
        valid = t != IGNORED
        t = t.masked_fill(~valid, 0)
    top = logits.amax(0)
    z = logits.to(compute_dtype(logits)) - top  # (C, n), a copy
    log_q = z.gather(0, t[None])[0]
    p = z.exp_()
    total = p.sum(0)
    log_q -= total.log()
    p /= total
    if valid is not None:
        log_q *= valid
        p *= valid
    return p, t, log_q, valid


def _sum_by_class(values: Tensor, t: Tensor, classes: int) -> Tensor:
    """Sum values (K, n) over the voxels of each class t (n,): (K, C)."""
    if values.device.type == "cpu":
        sums = values.new_zeros(len(values), classes, dtype=torch.float64)  # one long sum in float32 would drift
        return sums.scatter_add_(1, t.expand_as(values), values.double())
    return torch.stack([(values * (t == c)).sum(1) for c in range(classes)], 1)  # no atomics: fast and deterministic


def _chunks(logits: Tensor) -> Iterator[tuple[int, slice]]:
    """Batch index and slice of voxels of each piece of logits (B, C, N) that is worked on at a time."""
    size = CPU_CHUNK * torch.get_num_threads() if logits.device.type == "cpu" else GPU_CHUNK
    size = max(1, size // logits.shape[1])
    for b in range(logits.shape[0]):
        for start in range(0, logits.shape[2], size):
            yield b, slice(start, start + size)


def compute_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64 input."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32
