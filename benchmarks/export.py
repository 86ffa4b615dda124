"""Time, memory and masks of the exported forms of two networks, on CPU cores.

- **demo**: the demo network as `nny release` packs it, on a whole phantom.
- **swin_next**: the repository's Swin-NeXt at windows of 96³, on a part of a phantom that two windows cover. Its
  weights are random, so that many voxels are near a tie: its Dice says less than the demo's.

Every form segments the same preprocessed volume by the bundle's own sliding window, with clinical variables. Each has a
process of its own: the first case (torch.compile compiles there) is counted apart, then seconds are the median of as
many cases as `--rounds`, or as fit into a minute. Memory is the peak resident memory of that process (Linux only),
compiling included; it holds about 0.5 GB of torch and MONAI. Dice is between the masks of a form and of eager PyTorch,
the worst class.

Eager PyTorch is the network as `nny infer` runs it, with the bundle's own CPU kernels; "torch's own kernels" is the
same network without them. int8 is static quantisation by onnxruntime (QDQ, per channel), its activation ranges taken
from windows of another phantom.

Every result is written as soon as it is there, and a second start goes on where the first one ended. On a quiet
machine, with `make bench`, or alone:

    PYTHONPATH=bundle python benchmarks/export.py
"""

from __future__ import annotations

import argparse
import json
import platform
import shutil
import statistics
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import monai
import numpy as np
import onnxruntime
import torch
import yaml
from monai.bundle import ConfigParser
from monai.inferers import Inferer
from onnxruntime.quantization import CalibrationDataReader, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from scripts import BUNDLE_ROOT
from scripts.export import export, read_source
from scripts.exported import Autocast, OnnxNetwork, TorchScriptNetwork
from scripts.files import replacing
from scripts.prepare.phantom import write_phantom_cohort
from scripts.release import release
from scripts.workflows import DEMO_RUN
from torch import Tensor, nn

EAGER = "PyTorch eager (ours)"
FORMS: dict[str, Callable[[Path], nn.Module]] = {
    EAGER: lambda folder: read_source(folder / "network").network,
    "PyTorch eager, torch's own kernels": lambda folder: Plain(read_source(folder / "network").network),
    "torch.compile": lambda folder: torch.compile(read_source(folder / "network").network),
    "TorchScript": lambda folder: TorchScriptNetwork(folder / "model.ts"),
    "ONNX Runtime": lambda folder: OnnxNetwork(folder / "model.onnx"),
    "bf16 autocast": lambda folder: Autocast(read_source(folder / "network").network),
    "bf16 autocast, torch.compile": lambda folder: torch.compile(Autocast(read_source(folder / "network").network)),
    "ONNX Runtime int8": lambda folder: OnnxNetwork(folder / "int8.onnx"),
}
ENOUGH = 60  # seconds of timed cases of a form
RESULTS = Path(__file__).parent / "results"
DOCS = BUNDLE_ROOT / "docs" / "export.md"
BEGIN, END = "<!-- benchmarks/export.py writes from here -->\n", "<!-- to here -->\n"


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


def demo(folder: Path) -> None:
    """The released bundle of the demo network."""
    with zipfile.ZipFile(release(str(DEMO_RUN), str(folder / "dist"), name="network")) as archive:
        archive.extractall(folder)


def swin_next(folder: Path) -> None:
    """The network of inference.yaml with random weights."""
    target = folder / "network"
    target.mkdir()
    config = ConfigParser.load_config_file(str(BUNDLE_ROOT / "configs" / "inference.yaml"))
    (target / "inference.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    torch.manual_seed(0)
    torch.save(ConfigParser(config).get_parsed_content("network_def").state_dict(), target / "model.pt")


NETWORKS: dict[str, tuple[Callable[[Path], None], list[int] | None]] = {  # and what part of a phantom they segment
    "demo": (demo, None),
    "swin_next": (swin_next, [144, 96, 96]),
}


def configuration(folder: Path) -> ConfigParser:
    """The inference configuration of the network in a folder."""
    found = [folder / "network" / name for name in ("configs/inference.yaml", "inference.yaml")]
    config = ConfigParser()
    config.read_config(str(next(path for path in found if path.is_file())))
    return config


def prepare(name: str, folder: Path) -> None:
    """Write what the forms share, as far as it is not there: network, exported forms, and two volumes."""
    make, part = NETWORKS[name]
    if not (folder / "cases.pt").is_file():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        make(folder)
        write_phantom_cohort(str(folder / "data"), cases=2, layout="msd", seed=7, workers=1, progress=False)
        config = configuration(folder)
        config["dataset_dir"] = str(folder / "data" / "imagesTr")
        config["clinical_table_path"] = str(folder / "data" / "clinical.csv")
        config["clinical_statistics"] = str(DEMO_RUN / "clinical.json")
        cases = [
            (middle(case["image"].as_tensor()[None], part), torch.as_tensor(case["clinical"])[None].float())
            for case in config.get_parsed_content("dataset")
        ]
        with replacing(folder / "cases.pt") as file:
            torch.save(cases, file)
    for file, form in (("model.ts", "torchscript"), ("model.onnx", "onnx")):
        if not (folder / file).is_file():
            export(str(folder / "network"), str(folder / file), form)
    if not (folder / "int8.onnx").is_file():
        with replacing(folder / "int8.onnx") as file:
            quantise(folder, file)


def middle(image: Tensor, shape: list[int] | None) -> Tensor:
    """The middle part of a volume (1, C, *spatial); all of it without a shape."""
    for axis, size in enumerate(shape or [], start=2):
        size = min(size, image.shape[axis])
        image = image.narrow(axis, (image.shape[axis] - size) // 2, size)
    return image.contiguous()


def quantise(folder: Path, target: Path) -> None:
    """Write the int8 form, calibrated on at most eight windows of the second phantom."""
    network, windows = read_source(folder / "network").network, []

    def watched(x: Tensor, clinical: Tensor) -> Tensor:
        windows.extend((x[i : i + 1].clone(), clinical[i : i + 1].clone()) for i in range(len(x)))
        return network(x, clinical)

    inferer = configuration(folder).get_parsed_content("inferer")
    segment(inferer, watched, *torch.load(folder / "cases.pt", weights_only=True)[1])
    prepared = folder / "prepared.onnx"
    quant_pre_process(str(folder / "model.onnx"), str(prepared), skip_symbolic_shape=True)
    reader = Windows(windows[:: -(-len(windows) // 8)])
    quantize_static(
        str(prepared), str(target), reader, op_types_to_quantize=["Conv", "MatMul", "Gemm"], per_channel=True
    )


def segment(inferer: Inferer, network: Callable[..., Tensor], image: Tensor, clinical: Tensor) -> Tensor:
    """Label map (1, *spatial) of a volume, by the sliding window of the configuration."""
    with torch.inference_mode():
        return inferer(image, network, clinical=clinical).argmax(1)


def worst_dice(a: Tensor, b: Tensor) -> float:
    """Smallest Dice of a class between two label maps."""
    classes = torch.cat([a.unique(), b.unique()]).unique()
    return min((2 * ((a == k) & (b == k)).sum() / ((a == k).sum() + (b == k).sum())).item() for k in classes)


def measure(form: str, folder: Path, rounds: int) -> dict[str, float]:
    """Seconds, memory and Dice of a form, in this process; eager PyTorch leaves its mask for the others."""
    case = torch.load(folder / "cases.pt", weights_only=True)[0]
    inferer = configuration(folder).get_parsed_content("inferer")
    network, seconds = FORMS[form](folder).eval(), []
    while len(seconds) <= rounds and (len(seconds) < 2 or sum(seconds[1:]) < ENOUGH):
        start = time.perf_counter()
        mask = segment(inferer, network, *case)
        seconds.append(time.perf_counter() - start)
    if form == EAGER:
        torch.save(mask, folder / "mask.pt")
    row = {"seconds": statistics.median(seconds[1:]), "cases": len(seconds) - 1, "first_seconds": seconds[0]}
    row["dice"] = worst_dice(mask, torch.load(folder / "mask.pt", weights_only=True))
    if platform.system() == "Linux":
        lines = Path("/proc/self/status").read_text().splitlines()  # getrusage would count the process before exec too
        row["peak_mib"] = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024
    return row


def in_process(form: str, name: str, args: argparse.Namespace) -> dict[str, float]:
    """``measure`` in a fresh process."""
    command = [sys.executable, __file__, f"--measure={form}", f"--networks={name}", f"--folder={args.folder}"]
    command += [f"--threads={args.threads}", f"--rounds={args.rounds}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{name}, {form}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def as_table(rows: dict[str, dict[str, float]]) -> str:
    """Results as a Markdown table; in brackets how many times as long as the first form."""
    lines = [
        "| form | seconds per case | first case | peak memory, MiB | Dice to eager, worst class |",
        "|---|---|---|---|---|",
    ]
    first = next(iter(rows.values()))["seconds"]
    for form, row in rows.items():
        memory = f"{row['peak_mib']:.0f}" if "peak_mib" in row else ""
        times = f"{row['seconds']:.2f} ({row['seconds'] / first:.1f}x) | {row['first_seconds']:.1f}"
        lines.append(f"| {form} | {times} | {memory} | {row['dice']:.4f} |")
    return "\n".join(lines) + "\n"


def write(output: Path, docs: Path | None, content: dict) -> None:
    """Write what is known so far as JSON, and as tables to the marked place of a page."""
    with replacing(output) as file:
        file.write_text(json.dumps(content, indent=2) + "\n")
    parts = [f"**{name}**\n\n{as_table(rows)}" for name, rows in content["results"].items() if EAGER in rows]
    text = "\n".join([*parts, ", ".join(f"{key} {value}" for key, value in content["settings"].items()) + ".\n"])
    print(text, flush=True)
    with replacing(output.with_suffix(".md")) as file:
        file.write_text(text)
    if docs:
        before, _, rest = docs.read_text().partition(BEGIN)
        after = rest.partition(END)[2]
        with replacing(docs) as file:
            file.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    """Measure what is not measured yet, and write JSON and tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), help="default: all")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS), help="default: all")
    parser.add_argument("--rounds", type=int, default=5, help="timed cases of each form (default %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="CPU threads (default %(default)s)")
    parser.add_argument(
        "--folder", type=Path, default=Path("work/export"), help="for networks, exported forms, volumes"
    )
    parser.add_argument("--output", type=Path, default=RESULTS / "export.json", help="results; a table beside them")
    parser.add_argument("--docs", type=Path, default=DOCS, help="page that gets the tables (default %(default)s)")
    parser.add_argument("--measure", choices=FORMS, help="only print one form's row (used by the benchmark)")
    args = parser.parse_args()
    if min(args.rounds, args.threads) < 1:
        parser.error("expected at least 1 round and 1 thread.")
    torch.set_num_threads(args.threads)
    if args.measure:
        print(json.dumps(measure(args.measure, args.folder / args.networks[0], args.rounds)))
        return
    settings = {"threads": args.threads, "torch": torch.__version__, "monai": monai.__version__}
    settings |= {"onnxruntime": onnxruntime.__version__, "machine": platform.machine()}
    settings |= {"cpu": torch.backends.cpu.get_cpu_capability()}
    known = json.loads(args.output.read_text()) if args.output.is_file() else {}
    results = known["results"] if known.get("settings") == settings else {}
    failed = []
    for name in args.networks:
        rows = results.setdefault(name, {})
        wanted = [form for form in (EAGER, *args.forms) if form not in rows]
        if wanted:
            prepare(name, args.folder / name)
        for form in dict.fromkeys(wanted):
            try:
                rows[form] = in_process(form, name, args)
            except RuntimeError as error:  # a machine without a compiler, for example: the other forms still count
                failed.append(str(error))
                continue
            results[name] = {form: rows[form] for form in FORMS if form in rows}
            rows = results[name]
            write(args.output, args.docs, {"settings": settings, "results": results})
    if failed:
        sys.exit("\n".join(failed))


if __name__ == "__main__":
    main()
