"""How much of a network's peak memory are tensors? Live ones at the peak of a pass in eval mode, ours and the rival's.

Where a process of ours is larger although its tensors are not, the allocator has kept freed memory for the next tensor.
Counted by torch's own memory profiler, weights left out; the pairs are those of `networks.py`.

    PYTHONPATH=bundle python benchmarks/live_memory.py
"""

from __future__ import annotations

from itertools import accumulate

import torch
from networks import PAIRS, batch_of
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile


def live_mib(network: nn.Module, image: Tensor) -> float:
    """Largest sum of what a second pass has allocated and not yet freed, in MiB."""
    network.eval()
    with torch.no_grad():
        network(image)
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            network(image)
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    return max(accumulate(e.nbytes() for e in sorted(events, key=lambda e: e.start_ns()))) / 2**20


def main() -> None:
    """Measure and print the table."""
    print("| network | ours, MiB | the other, MiB | ratio |\n|---|---|---|---|")
    for name, pair in PAIRS.items():
        image = batch_of(pair)[0]
        ours, rival = live_mib(pair.ours(), image), live_mib(pair.rival(), image)
        print(f"| {name} | {ours:.0f} | {rival:.0f} | {ours / rival:.2f}x |", flush=True)


if __name__ == "__main__":
    main()
