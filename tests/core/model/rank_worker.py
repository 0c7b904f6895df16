"""One rank of a gloo group: `rank_worker.py RANK SIZE FOLDER RENDEZVOUS IDS`; prints its logits as JSON."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from octavo.model.parallel import Ranks

rank, size, folder, rendezvous, ids = int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:]
kit = runpy.run_path(str(Path(__file__).with_name("conftest.py")))
torch.set_num_threads(1)
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=size)
model = kit["load"](Path(folder), Ranks(rank, size))
print(json.dumps(kit["logits"](model, json.loads(ids)).tolist()))
dist.destroy_process_group()
