#!/usr/bin/env python3
"""Sends the metrics of a run to Weights & Biases, or with WANDB_MODE=offline into a folder that `wandb sync` sends.

    pip install wandb
    examples/to_wandb.py runs/showo-grpo-001
"""

import json
import sys
import tomllib
from pathlib import Path

import wandb

if len(sys.argv) != 2 or not (Path(sys.argv[1]) / "metrics.jsonl").is_file():
    sys.exit("usage: examples/to_wandb.py RUN\n\nhint: RUN is the folder of a run, with `metrics.jsonl` in it")
folder = Path(sys.argv[1])
config = tomllib.loads((folder / "config.toml").read_text())
with wandb.init(project="unirl", name=folder.name, config=config) as run:
    for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        step = line.pop("step")
        run.log(line, step=step)
