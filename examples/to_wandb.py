#!/usr/bin/env python3
"""Log the metrics of a run to Weights & Biases. With WANDB_MODE=offline, upload them later with `wandb sync`.

    pip install wandb
    examples/to_wandb.py runs/showo-grpo-001
"""

import json
import sys
import tomllib
from pathlib import Path

import wandb

if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "metrics.jsonl").is_file():
    sys.exit("usage: examples/to_wandb.py RUN\n\nhint: RUN is a run directory that contains `metrics.jsonl`")
folder = Path(sys.argv[1])
config = tomllib.loads((folder / "config.toml").read_text())
with wandb.init(project="unirl", name=folder.name, config=config) as run:
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        step = line.pop("step")
        run.log(line, step=step)
