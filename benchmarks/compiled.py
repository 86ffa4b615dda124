"""What `torch.compile` costs and gives on a CPU: our kernels, torch's own operations, and those compiled whole.

Each network of `benchmarks/networks.py` has a process of its own, with inductor's caches off. The first compiled pass
counts apart, as it compiles; then the three take turns: seconds are medians. Compiled and plain logits are compared.

    OMP_NUM_THREADS=2 PYTHONPATH=bundle python benchmarks/compiled.py
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from networks import PAIRS, batch_of, step
from scripts.networks.speed import plain

NETWORKS = ("MedNeXt-S k3", "SwinUNETR 24", "UNETR++ (Synapse)", "UTNet")


def measure(name: str, kind: str, rounds: int) -> dict[str, float]:
    """Seconds of the compiling pass, and of later passes of each form; largest difference of the logits."""
    data, ours = batch_of(PAIRS[name]), PAIRS[name].ours()
    torchs = plain(copy.deepcopy(ours))
    forms = {"ours": ours, "plain": torchs, "compiled": torch.compile(copy.deepcopy(torchs), fullgraph=True)}
    with torch.no_grad():
        expected = torchs.eval()(data[0])
        begin = time.perf_counter()
        difference = (forms["compiled"].eval()(data[0]) - expected).abs().max() / expected.abs().max()
        first = time.perf_counter() - begin
    optimizers = {form: torch.optim.AdamW(network.parameters(), lr=1e-5) for form, network in forms.items()}
    if kind == "train":
        first = step(forms["compiled"], kind, data, optimizers["compiled"])
    turns = [{form: step(net, kind, data, optimizers[form]) for form, net in forms.items()} for _ in range(rounds + 1)]
    medians = {form: statistics.median(turn[form] for turn in turns[1:]) for form in forms}  # the first one warms up
    return {"first": first, "difference": float(difference)} | medians


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=PAIRS, default=NETWORKS)
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each form (default %(default)s)")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(measure(*args.one, args.rounds)))
        return
    print("| network | | compiling pass, s | ours, s | plain | compiled | worst difference |\n" + "|---" * 7 + "|")
    for name in args.networks:
        for kind in ("eval", "train"):
            command = [sys.executable, __file__, "--rounds", str(args.rounds), "--one", name, kind]
            environment = os.environ | {"TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"}
            result = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, text=True).stdout
            found = json.loads(result.splitlines()[-1])
            ratios = " | ".join(f"{found[form] / found['ours']:.2f}x" for form in ("plain", "compiled"))
            row = f"| {name} | {kind} | {found['first']:.0f} | {found['ours']:.2f} | {ratios} |"
            print(f"{row} {found['difference']:.0e} |", flush=True)


if __name__ == "__main__":
    main()
