"""Time and memory of DiceFocalCELoss against the sum of MONAI's losses.

Three rivals on the same random logits and labels: ours; MONAI's DiceLoss + FocalLoss + torch's cross-entropy, which
computes the very same number; and DiceFocalLoss + cross-entropy, which a MONAI user would most likely write (its focal
term works on sigmoids, so its number differs). They take turns, so that a busy machine slows all of them; times are
medians over rounds. Memory is how far one forward and backward pass in a fresh process raises its peak resident memory
above what it was with the input in place (Linux only); both include the gradient of the logits.

Run it with `make bench`, or alone:

    OMP_NUM_THREADS=1 PYTHONPATH=bundle python benchmarks/loss.py --rounds 15
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import monai
import torch
from monai.losses import DiceFocalLoss, DiceLoss, FocalLoss
from scripts.losses import DiceFocalCELoss
from torch import Tensor
from torch.nn.functional import cross_entropy

Loss = Callable[[Tensor, Tensor], Tensor]
RIVALS = ("DiceFocalCELoss (ours)", "DiceLoss + FocalLoss + CE", "DiceFocalLoss + CE")


def make_loss(name: str) -> Loss:
    """Loss of logits (B, C, *spatial) and class indices (B, 1, *spatial) by its name in the table."""
    if name == RIVALS[0]:
        return DiceFocalCELoss(to_onehot_y=True)
    if name == RIVALS[1]:
        dice, focal = DiceLoss(softmax=True, to_onehot_y=True), FocalLoss(use_softmax=True, to_onehot_y=True)
        return lambda x, y: dice(x, y) + focal(x, y) + cross_entropy(x, y[:, 0].long())
    both = DiceFocalLoss(softmax=True, to_onehot_y=True)
    return lambda x, y: both(x, y) + cross_entropy(x, y[:, 0].long())


def make_batch(args: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Random logits and float32 labels, as MONAI's transforms deliver them."""
    torch.manual_seed(0)
    shape = (args.size,) * 3
    logits = torch.randn(args.batch, args.classes, *shape, requires_grad=True)
    return logits, torch.randint(args.classes, (args.batch, 1, *shape)).float()


def step(loss: Loss, logits: Tensor, labels: Tensor, backward: bool) -> float:
    """Seconds of one pass."""
    start = time.perf_counter()
    value = loss(logits, labels)
    if backward:
        value.backward()
    seconds = time.perf_counter() - start
    logits.grad = None
    return seconds


def time_all(args: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Median seconds of each rival, forward and forward + backward, taking turns."""
    logits, labels = make_batch(args)
    rivals = {name: make_loss(name) for name in RIVALS}
    values = [rivals[name](logits, labels).item() for name in RIVALS[:2]]
    if abs(values[0] - values[1]) > 1e-5:
        raise RuntimeError(f"the losses differ: {values[0]} (ours), {values[1]} (MONAI).")
    seconds: dict[str, dict[str, list[float]]] = {n: {"forward": [], "forward_backward": []} for n in RIVALS}
    for _ in range(args.rounds + 1):
        for name, loss in rivals.items():
            for kind, times in seconds[name].items():
                times.append(step(loss, logits, labels, kind == "forward_backward"))
    return {n: {k: statistics.median(t[1:]) for k, t in kinds.items()} for n, kinds in seconds.items()}  # 1st: warm-up


def peak_mib(args: argparse.Namespace) -> float:
    """MiB by which one forward and backward pass of ``args.memory_of`` raises this process's peak memory."""
    loss = make_loss(args.memory_of)
    tiny = argparse.Namespace(batch=1, classes=args.classes, size=8)
    step(loss, *make_batch(tiny), backward=True)  # loads what the first pass loads
    logits, labels = make_batch(args)
    gc.collect()
    before = _memory_mib("VmRSS")
    step(loss, logits, labels, backward=True)
    return _memory_mib("VmHWM") - before


def _memory_mib(field: str) -> float:
    """Resident memory of this process now (VmRSS) or at its peak (VmHWM).

    Not ``getrusage``: its peak survives ``exec``, so that a child starts with the peak of the process it came from.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field + ":")) / 1024


def memory_of(name: str, args: argparse.Namespace) -> float:
    """``peak_mib`` of one rival in a fresh process."""
    sizes = [f"--{option}={getattr(args, option)}" for option in ("classes", "size", "batch")]
    command = [sys.executable, __file__, f"--memory-of={name}", *sizes]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def as_table(results: dict[str, dict[str, float]]) -> str:
    """Results as a Markdown table; in brackets how many times what ours needs."""
    columns = {"forward": ("forward, ms", 1e3), "forward_backward": ("forward + backward, ms", 1e3)}
    columns["peak_mib"] = ("peak memory, MiB", 1)
    columns = {key: column for key, column in columns.items() if key in results[RIVALS[0]]}
    lines = ["| loss | " + " | ".join(title for title, _ in columns.values()) + " |", "|---" * (len(columns) + 1) + "|"]
    for name, row in results.items():
        cells = [f"{row[k] * f:.0f} ({row[k] / results[RIVALS[0]][k]:.1f}x)" for k, (_, f) in columns.items()]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, default=5, help="classes, background included (default %(default)s)")
    parser.add_argument("--size", type=int, default=96, help="voxels along each axis (default %(default)s)")
    parser.add_argument("--batch", type=int, default=2, help="patches per batch (default %(default)s)")
    parser.add_argument("--rounds", type=int, default=15, help="timed turns of each loss (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "loss.json")
    parser.add_argument("--memory-of", choices=RIVALS, help="only print the MiB of one loss (used by the benchmark)")
    args = parser.parse_args()
    if min(args.classes - 1, args.size, args.batch, args.rounds) < 1:
        parser.error("expected at least 2 classes, 1 voxel, 1 patch and 1 round.")
    if args.memory_of:
        print(peak_mib(args))
        return
    results = time_all(args)
    if platform.system() == "Linux":
        for name in RIVALS:
            results[name]["peak_mib"] = memory_of(name, args)
    setting = {k: getattr(args, k) for k in ("classes", "size", "batch", "rounds")}
    setting |= {"threads": torch.get_num_threads(), "torch": torch.__version__, "monai": monai.__version__}
    setting |= {"machine": platform.machine(), "system": platform.system()}
    print(as_table(results))
    print("\n" + ", ".join(f"{key} {value}" for key, value in setting.items()))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"settings": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
