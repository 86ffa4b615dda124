"""The Y with every fusion in two processes, which get different kinds of clinical vectors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from scripts.networks import ynet

WORKER = """
import math, sys
import torch, torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
sys.path[:0] = sys.argv[3:]
from test_ynet import FUSIONS, build, image, vector

torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[2]}", rank=rank, world_size=2)
for fusion in FUSIONS:
    net = DistributedDataParallel(build(2, fusion, deep_supervision=True).train(), find_unused_parameters=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    cases = [vector(), None, torch.full((1, 5), math.nan)]
    for step in range(3):  # the ranks always get different kinds of clinical vectors
        loss = sum(y.square().mean() for y in net(image(), cases[(rank + step) % 3]))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    mine = torch.cat([p.detach().flatten() for p in net.parameters()])
    both = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(both, mine)
    assert torch.equal(both[0], both[1]) and mine.isfinite().all(), fusion
dist.destroy_process_group()
"""


def test_distributed_training(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    folders = [str(Path(ynet.__file__).parents[2]), str(Path(__file__).parent)]
    ranks = [
        subprocess.Popen(
            [sys.executable, str(tmp_path / "worker.py"), str(rank), str(tmp_path / "store"), *folders],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240)[0] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], "\n".join(outputs)
