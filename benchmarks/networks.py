"""Time and memory of our networks against MONAI's classes, or against the paper's arithmetic written plainly.

MedNeXt and SwinUNETR stand against MONAI's classes; UNETR++ and UTNet, which MONAI lacks, against tests/reference.
Both sides hold the same weights; first, outputs and the gradient of every parameter are compared. Then each side lives
in a process of its own and they take turns, so that a busy machine slows all of them; times are medians over rounds.
The other side runs twice: in a plain process, as its users have it ("as shipped"), and with our allocator setting
("same allocator"). A training step is forward, cross-entropy, backward and AdamW. Memory is the peak of each process
after its passes in eval mode and after its training steps (Linux only).

Run it with `make bench`, or alone:

    OMP_NUM_THREADS=2 PYTHONPATH=bundle python benchmarks/networks.py --rounds 5
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from monai.networks.nets import SwinUNETR
from monai.networks.nets.mednext import create_mednext
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))  # the plain networks
CLASSES = 3
SIDES = {"ours": True, "as shipped": False, "same allocator": True}  # name -> with our allocator setting
KINDS = ("eval", "train")
SYNAPSE = ((1, 1, 1), (2, 4, 4), (4, 8, 8), (8, 16, 16), (16, 32, 32))


@dataclass(frozen=True)
class Pair:
    """A network, its rival, and the size of its image."""

    ours: Callable[[], nn.Module]
    rival: Callable[[], nn.Module]
    size: tuple[int, ...]
    official: str | None = None  # class whose weights `authors.load` takes; None: both have the same keys
    batch: int = 1


def mednext(variant: str, kernel_size: int, size: tuple[int, ...]) -> Pair:
    """MedNeXt against MONAI's."""
    options = {"spatial_dims": 3, "in_channels": 1, "out_channels": CLASSES, "kernel_size": kernel_size}
    official = "monai.networks.nets.mednext.create_mednext"
    return Pair(
        lambda: _build(official, variant=variant, **options), lambda: create_mednext(variant, **options), size, official
    )


def swin_unetr(feature_size: int, size: tuple[int, ...]) -> Pair:
    """SwinUNETR against MONAI's."""
    options = {"in_channels": 1, "out_channels": CLASSES, "feature_size": feature_size}
    official = "monai.networks.nets.SwinUNETR"
    return Pair(lambda: _build(official, **options), lambda: SwinUNETR(**options), size, official)


def unetr_pp(size: tuple[int, ...]) -> Pair:
    """UNETR++, the Synapse network, against the plain one."""

    def ours() -> nn.Module:
        from scripts.networks import UNETRPPDecoder, UNETRPPEncoder, YNet

        options = {"img_size": size, "strides": SYNAPSE}
        return YNet(
            encoder=UNETRPPEncoder(in_channels=1, **options), decoder=UNETRPPDecoder(out_channels=CLASSES, **options)
        )

    def rival() -> nn.Module:
        from reference.unetr_pp import UNETRPP

        return UNETRPP(size, SYNAPSE[1], CLASSES)

    return Pair(ours, rival, size)


def utnet(size: tuple[int, ...], batch: int) -> Pair:
    """UTNet against the plain one."""

    def ours() -> nn.Module:
        from scripts.networks import UTNetDecoder, UTNetEncoder, YNet

        encoder = UTNetEncoder(in_channels=1)
        return YNet(encoder=encoder, decoder=UTNetDecoder(channels=encoder.channels, out_channels=CLASSES))

    def rival() -> nn.Module:
        from reference.utnet import UTNet

        return UTNet(CLASSES)

    return Pair(ours, rival, size, batch=batch)


PAIRS = {
    "MedNeXt-S k3": mednext("S", 3, (64, 64, 64)),
    "MedNeXt-S k5": mednext("S", 5, (64, 64, 64)),
    "MedNeXt-B k3": mednext("B", 3, (64, 64, 64)),
    "SwinUNETR 24": swin_unetr(24, (64, 64, 64)),
    "SwinUNETR 48": swin_unetr(48, (64, 64, 64)),
    "UNETR++ (Synapse)": unetr_pp((64, 128, 128)),
    "UTNet": utnet((256, 256), 1),
    "UTNet, batch 4": utnet((256, 256), 4),
}


def _build(official: str, **options: object) -> nn.Module:
    from scripts.networks import authors  # importing it sets the allocator, so a rival's process must not

    return authors.build(official, **options)


def load(network: nn.Module, state: dict[str, Tensor], official: str | None) -> None:
    """Put a rival's weights into our network."""
    if official is None:
        network.load_state_dict(state)
    else:
        from scripts.networks import authors

        authors.load(network, state, official)


def batch_of(pair: Pair) -> tuple[Tensor, Tensor]:
    """Image and labels, the same in every process."""
    torch.manual_seed(1)
    image = torch.randn(pair.batch, 1, *pair.size)
    return image, torch.randint(CLASSES, (pair.batch, *pair.size))


def answers(network: nn.Module, pair: Pair) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits in eval mode, and the state dict with the gradient of each parameter in its place."""
    image, label = batch_of(pair)
    network.eval()
    logits = network(image)
    cross_entropy(logits, label).backward()
    state = dict(network.state_dict())
    state |= {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in network.named_parameters()}
    network.zero_grad(set_to_none=True)
    return logits.detach(), state


def compare(pair: Pair, file: Path) -> dict[str, float]:
    """Load the rival's weights and hold our logits and gradients against its own.

    Returns:
        Largest difference of the logits, relative to their largest value; largest difference of a parameter's gradient
        in the Euclidean norm, relative to the norm of the whole gradient.
    """
    network, saved = pair.ours(), torch.load(file, weights_only=True)
    load(network, saved["weights"], pair.official)
    logits, gradients = answers(network, pair)
    expected = copy.deepcopy(network)
    load(expected, saved["gradients"], pair.official)
    names = [name for name, _ in network.named_parameters()]
    theirs = {name: p.detach() for name, p in expected.named_parameters()}
    total = torch.stack([theirs[name].norm() for name in names]).norm()
    worst = max((gradients[name] - theirs[name]).norm() for name in names) / total
    return {
        "output": float((logits - saved["logits"]).abs().max() / saved["logits"].abs().max()),
        "gradient": float(worst),
    }


def rival_network(pair: Pair) -> nn.Module:
    """The other side's network; the same in every process, and with attention that counts."""
    torch.manual_seed(0)
    network = pair.rival()
    for name, p in network.named_parameters():
        if name.endswith(("gamma", "pos_embed", "table")):  # small or zero at first
            nn.init.normal_(p, std=0.1)
    return network


def step(network: nn.Module, kind: str, data: tuple[Tensor, Tensor], optimizer: torch.optim.Optimizer) -> float:
    """Seconds of one pass in eval mode, or of one training step."""
    image, label = data
    network.train(kind == "train")
    begin = time.perf_counter()
    if kind == "eval":
        with torch.no_grad():
            network(image)
    else:
        cross_entropy(network(image), label).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return time.perf_counter() - begin


def worker(name: str, side: str) -> None:
    """Process of one side: answers each kind of step that it is asked for with its seconds and the peak memory so far.

    The peak is VmHWM, in MiB: that of `getrusage` survives `exec`, so a child would start with its parent's.
    """
    pair = PAIRS[name]
    network = pair.ours() if side == "ours" else rival_network(pair)
    data, optimizer = batch_of(pair), torch.optim.AdamW(network.parameters(), lr=1e-5)
    for line in sys.stdin:
        seconds = step(network, line.strip(), data, optimizer)
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(field.split()[1]) for field in status if field.startswith("VmHWM:"))
        print(seconds, peak / 1024, flush=True)


def save_rival(name: str, file: Path) -> None:
    """Write weights, logits and gradients of the rival."""
    pair = PAIRS[name]
    network = rival_network(pair)
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    logits, gradients = answers(network, pair)
    torch.save({"weights": weights, "logits": logits, "gradients": gradients}, file)


def start(side: str, *arguments: str) -> subprocess.Popen[str]:
    """Start this script as a process of one side."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MALLOC_")}
    if side == "same allocator":  # the values of `tune_allocator`, by glibc's environment variables
        trim, pad = str(2**62), str(2**26)
        environment |= {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": trim, "MALLOC_TOP_PAD_": pad}
    command = [sys.executable, __file__, "--side", side, *arguments]
    return subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def measure(name: str, rounds: int) -> dict[str, object]:
    """Differences, seconds and MiB of each side of a pair."""
    with tempfile.TemporaryDirectory() as folder:
        save_rival(name, Path(folder) / "rival.pt")
        checker = start("ours", "--pair", name, "--check", str(Path(folder) / "rival.pt"))
        differences = json.loads(checker.communicate()[0])
    processes = {side: start(side, "--pair", name) for side in SIDES}
    seconds: dict[str, dict[str, float]] = {}
    mib: dict[str, dict[str, float]] = {}
    for kind in KINDS:
        answers_of: dict[str, list[tuple[float, float]]] = {side: [] for side in SIDES}
        for _ in tqdm(range(rounds + 1), f"{name}, {kind}"):
            for side, process in processes.items():
                process.stdin.write(kind + "\n")
                process.stdin.flush()
                answers_of[side].append(tuple(map(float, process.stdout.readline().split())))
        # The first round warms up
        seconds[kind] = {side: statistics.median(time for time, _ in rows[1:]) for side, rows in answers_of.items()}
        mib[kind] = {side: rows[-1][1] for side, rows in answers_of.items()}
    for process in processes.values():
        process.communicate()
    return {"differences": differences, "seconds": seconds, "mib": mib}


def finished(output: Path, setting: dict[str, object]) -> dict[str, dict]:
    """Results of an earlier call with the same settings that did not come to its end."""
    earlier = json.loads(output.read_text()) if output.is_file() else {}
    partial = earlier.get("settings") == setting and earlier["results"].keys() < PAIRS.keys()
    return earlier["results"] if partial else {}


def as_table(results: dict[str, dict]) -> str:
    """Results as a Markdown table of ratios ours / the other side."""
    lines = [
        "| network | | ours, s | time, as shipped | time, same allocator | ours, MiB | memory, as shipped | "
        "memory, same allocator | worst difference, output / gradient |",
        "|---" * 9 + "|",
    ]
    for name, result in results.items():
        for kind in KINDS:
            cells = []
            for unit, digits in (("seconds", ".2f"), ("mib", ".0f")):
                ours = result[unit][kind]["ours"]
                cells += [f"{ours:{digits}}", *(f"{ours / result[unit][kind][side]:.2f}x" for side in list(SIDES)[1:])]
            worst = result["differences"]
            cells.append(f"{worst['output']:.0e} / {worst['gradient']:.0e}")
            lines.append(f"| {name} | {kind} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", nargs="+", choices=PAIRS, default=list(PAIRS))
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each side (default %(default)s)")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "networks.json")
    for internal in ("--side", "--pair", "--check"):
        parser.add_argument(internal, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.check:
        print(json.dumps(compare(PAIRS[args.pair], Path(args.check))))
        return
    if args.side:
        worker(args.pair, args.side)
        return
    setting = {"rounds": args.rounds, "threads": torch.get_num_threads(), "torch": torch.__version__}
    setting |= {"machine": platform.machine(), "system": platform.system()}
    results = finished(args.output, setting)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    for name in args.pairs:
        if name not in results:
            results[name] = measure(name, args.rounds)
            args.output.write_text(json.dumps({"settings": setting, "results": results}, indent=2) + "\n")
    print(as_table(results))
    print("\n" + ", ".join(f"{key} {value}" for key, value in setting.items()))


if __name__ == "__main__":
    main()
