"""Time and memory of segmenting a case with the exported forms of the demo network, on CPU cores.

Every form segments the same volume: a phantom, preprocessed as the demo network's configuration says and repeated up
to the wanted size, by the bundle's own sliding window, with the patient's clinical variables. The forms take turns, so
that a busy machine slows all of them; seconds are medians over rounds, after one round to warm up that is not counted
(torch.compile compiles there). Memory is the peak resident memory of a fresh process that segments the volume once
(Linux only); it holds about 0.5 GB of torch and MONAI. Dice is between the masks of a form and of eager PyTorch, the
worst class.

Eager PyTorch is the network as `nny infer` runs it, with the bundle's own CPU kernels; "torch's own kernels" is the
same network without them. int8 is static quantisation by onnxruntime (QDQ, per channel), its activation ranges taken
from windows of another phantom.

Run it with `make bench`, or alone:

    OMP_NUM_THREADS=2 PYTHONPATH=bundle python benchmarks/export.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import monai
import numpy as np
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from scripts.export import Source, export, read_source
from scripts.exported import Autocast, OnnxNetwork, TorchScriptNetwork
from scripts.prepare.phantom import write_phantom_cohort
from scripts.workflows import DEMO_RUN
from torch import Tensor, nn

EAGER = "PyTorch eager (ours)"
FORMS: dict[str, Callable[[nn.Module, Path], nn.Module]] = {
    EAGER: lambda network, folder: network,
    "PyTorch eager, torch's own kernels": lambda network, folder: Plain(network),
    "torch.compile": lambda network, folder: torch.compile(network),
    "TorchScript": lambda network, folder: TorchScriptNetwork(folder / "model.ts"),
    "ONNX Runtime": lambda network, folder: OnnxNetwork(folder / "model.onnx"),
    "bf16 autocast": lambda network, folder: Autocast(network),
    "bf16 autocast, torch.compile": lambda network, folder: torch.compile(Autocast(network)),
    "ONNX Runtime int8": lambda network, folder: OnnxNetwork(folder / "int8.onnx"),
}


class Plain(nn.Module):
    """A network whose faster paths are switched off."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor, clinical: Tensor | None = None) -> Tensor:
        """As the network's."""
        with patch("scripts.networks.speed.conditions._machine_fits", lambda: False):
            return self.network(x, clinical)


class Windows(CalibrationDataReader):
    """Inputs of the network, one batch at a time."""

    def __init__(self, windows: list[tuple[Tensor, Tensor]]) -> None:
        self.windows: Iterator[tuple[Tensor, Tensor]] = iter(windows)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """The next batch, or None."""
        pair = next(self.windows, None)
        return pair and {"image": pair[0].numpy(), "clinical": pair[1].numpy()}


def prepare(folder: Path, shape: list[int]) -> None:
    """Write what all processes share: the exported forms, and the volume with its clinical row."""
    write_phantom_cohort(str(folder / "data"), cases=2, layout="msd", seed=7, workers=1, progress=False)
    export(str(DEMO_RUN), str(folder / "model.ts"), "torchscript")
    export(str(DEMO_RUN), str(folder / "model.onnx"), "onnx")
    config = read_source(DEMO_RUN).config
    config["dataset_dir"] = str(folder / "data" / "imagesTr")
    config["clinical_statistics"] = str(DEMO_RUN / "clinical.json")
    config["clinical_table_path"] = str(folder / "data" / "clinical.csv")
    cases = [
        (case["image"].as_tensor()[None], torch.as_tensor(case["clinical"])[None].float())
        for case in config.get_parsed_content("dataset")
    ]
    torch.save((enlarge(cases[0][0], shape), cases[0][1]), folder / "case.pt")
    quantise(folder, *cases[1])


def enlarge(image: Tensor, shape: list[int]) -> Tensor:
    """Repeat a volume (1, C, *spatial) periodically up to a size, or crop it."""
    for axis, size in enumerate(shape, start=2):
        repeats = -(-size // image.shape[axis])
        image = torch.cat([image] * repeats, dim=axis).narrow(axis, 0, size)
    return image


def quantise(folder: Path, image: Tensor, clinical: Tensor) -> None:
    """Write ``int8.onnx``, calibrated on every fourth window of a case."""
    trained = read_source(DEMO_RUN)
    windows: list[tuple[Tensor, Tensor]] = []

    def watched(x: Tensor, clinical: Tensor) -> Tensor:
        windows.append((x.clone(), clinical.clone()))
        return trained.network(x, clinical)

    segment(trained, watched, image, clinical)
    quant_pre_process(str(folder / "model.onnx"), str(folder / "prepared.onnx"), skip_symbolic_shape=True)
    files = str(folder / "prepared.onnx"), str(folder / "int8.onnx")
    quantize_static(*files, Windows(windows[::4]), op_types_to_quantize=["Conv", "MatMul", "Gemm"], per_channel=True)


def segment(trained: Source, network: Callable[..., Tensor], image: Tensor, clinical: Tensor) -> Tensor:
    """Label map (1, *spatial) of a volume, by the sliding window of the configuration."""
    inferer = trained.config.get_parsed_content("inferer")
    with torch.inference_mode():
        return inferer(image, network, clinical=clinical).argmax(1)


def worst_dice(a: Tensor, b: Tensor, classes: int) -> float:
    """Smallest Dice of a class between two label maps; classes that neither holds are left out."""
    sizes = [((a == k) & (b == k), (a == k).sum() + (b == k).sum()) for k in range(classes)]
    return min(2 * both.sum().item() / total.item() for both, total in sizes if total)


def time_all(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Median seconds of each form, taking turns, and its Dice to eager PyTorch."""
    trained, (image, clinical) = read_source(DEMO_RUN), torch.load(folder / "case.pt", weights_only=True)
    networks = {name: FORMS[name](trained.network, folder) for name in args.forms}
    masks, seconds = {}, {name: [] for name in networks}
    for _ in range(args.rounds + 1):
        for name, network in networks.items():
            start = time.perf_counter()
            masks[name] = segment(trained, network, image, clinical)
            seconds[name].append(time.perf_counter() - start)
    reference, classes = segment(trained, trained.network, image, clinical), trained.config.get_parsed_content("labels")
    return {
        name: {
            "seconds": statistics.median(times[1:]),  # the first is the warm-up
            "first_seconds": times[0],
            "dice": worst_dice(masks[name], reference, len(classes)),
        }
        for name, times in seconds.items()
    }


def peak_mib(name: str, folder: Path) -> float:
    """Peak resident MiB of this process after it has segmented the volume once."""
    trained, (image, clinical) = read_source(DEMO_RUN), torch.load(folder / "case.pt", weights_only=True)
    segment(trained, FORMS[name](trained.network, folder), image, clinical)
    lines = Path("/proc/self/status").read_text().splitlines()  # getrusage would count the process before exec too
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


def memory_of(name: str, folder: Path) -> float:
    """``peak_mib`` of one form in a fresh process."""
    command = [sys.executable, __file__, f"--memory-of={name}", f"--folder={folder}"]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def as_table(results: dict[str, dict[str, float]]) -> str:
    """Results as a Markdown table; in brackets how many times as long as the first form."""
    first = next(iter(results.values()))["seconds"]
    lines = [
        "| form | seconds per case | first case | peak memory, MiB | Dice to eager, worst class |",
        "|---|---|---|---|---|",
    ]
    for name, row in results.items():
        memory = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
        times = f"{row['seconds']:.2f} ({row['seconds'] / first:.1f}x) | {row['first_seconds']:.1f}"
        lines.append(f"| {name} | {times} | {memory} | {row['dice']:.4f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print the table and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=int, nargs=3, default=[128, 128, 64], help="voxels (default 128 128 64)")
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each form (default %(default)s)")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="default: all")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "export.json")
    parser.add_argument("--memory-of", choices=FORMS, help="only print the MiB of one form (used by the benchmark)")
    parser.add_argument("--folder", type=Path, help="where the exported forms are (used by the benchmark)")
    args = parser.parse_args()
    if min(args.shape + [args.rounds]) < 1:
        parser.error("expected at least 1 voxel along each axis and 1 round.")
    if args.memory_of:
        print(peak_mib(args.memory_of, args.folder))
        return
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), args.shape)
        results = time_all(args, Path(name))
        if platform.system() == "Linux":
            for form in results:
                results[form]["peak_mib"] = memory_of(form, Path(name))
    setting = {"shape": args.shape, "rounds": args.rounds, "threads": torch.get_num_threads()}
    setting |= {"torch": torch.__version__, "monai": monai.__version__, "onnxruntime": onnxruntime.__version__}
    setting |= {"machine": platform.machine(), "cpu": torch.backends.cpu.get_cpu_capability()}
    print(as_table(results))
    print("\n" + ", ".join(f"{key} {value}" for key, value in setting.items()))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps({"settings": setting, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
