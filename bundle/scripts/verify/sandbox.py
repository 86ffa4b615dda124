"""Starts the trial of a bundle in a process with little: time, memory, an empty home, no accelerator, no way out."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

TRIAL = Path(__file__).with_name("trial.py")
KEPT = ("PATH", "LANG", "LD_LIBRARY_PATH", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "SYSTEMROOT")
CHECKS = {
    "load": ("models/model.pt", "take model.pt and inference.yaml of the same run"),
    "compare": ("models/check.npz", "the weights or the stored case were changed; download the bundle again"),
    "metadata": ("configs/metadata.json", "release the bundle again"),
    "shapes": ("configs/metadata.json, network_data_format", "write down what the network takes and gives"),
    "inference": ("configs/inference.yaml", "release the bundle again"),
    "training": ("configs/train.yaml", "release the bundle again"),
}


def trial_problems(folder: Path, work: Path, schema: Path, *, memory_gb: float, seconds: float) -> Iterator[str]:
    """Try a bundle whose files were all judged.

    Args:
        folder: its private copy; nothing is written there.
        work: a folder for what libraries write, made here.
        schema: the schema of its metadata.
        memory_gb: address space of the process; what it asks for beyond fails.
        seconds: after which it is killed.

    Yields:
        One message for each check that fails, or that could not be done.
    """
    work.mkdir()
    job = {"folder": str(folder), "work": str(work), "bytes": int(memory_gb * 2**30)}
    job["schema"] = str(shutil.copy(schema, work / "schema.json"))
    environment = {name: os.environ[name] for name in KEPT if name in os.environ}
    environment |= {
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HOME": str(work),
        "TMPDIR": str(work),
        "MPLCONFIGDIR": str(work),
    }
    process = subprocess.Popen(
        [sys.executable, "-P", "-s", str(TRIAL), json.dumps(job)],
        cwd=work,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        text, _ = process.communicate(timeout=seconds)
        died = process.returncode
    except subprocess.TimeoutExpired:
        text, died = "", None
    finally:
        _kill(process)
    yield from _read(text, died, seconds, memory_gb)


def _read(text: str, died: int | None, seconds: float, memory_gb: float) -> Iterator[str]:
    results = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    for result in results:
        if result["problem"]:
            file, cure = CHECKS[result["check"]]
            yield f"{file}: {result['problem']}; {cure}"
    if died is None:
        yield f"configs/inference.yaml: the network was not done in {seconds:g} s; give more --seconds if you trust it"
    elif died != 0 or (len(results) < len(CHECKS) and not any(result["problem"] for result in results)):
        name = list(CHECKS)[min(len(results), len(CHECKS) - 1)]
        yield (
            f"{CHECKS[name][0]}: the process that tried it ended with {died}; with a large network give more than "
            f"--memory_gb {memory_gb:g}"
        )


def _kill(process: subprocess.Popen[str]) -> None:
    """End the process and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
