#!/usr/bin/env python3
"""Does training on its own images help? Seeds 1, 2, 3 of each arm, the base beside the result, the spread printed.

    ./x setup && cargo build --release --workspace
    examples/tiles/study.py                  # every arm: as many times as long as one run
    examples/tiles/study.py tiles shuffled   # only these

Arms: `tiles` is GRPO end to end on Show-o as it is by default; `shuffled` is the same with the rewards permuted inside
each batch, and must gain nothing; `paper` is eq. 5 in its plain form. `janus` is split GRPO on Janus as it is by default,
`janus-shuffled` its control, and `janus-sft` what §4.4 says collapses. Runs go to `runs/study/ARM-SEED` and are reused where they are complete.
The evaluation sees held-out prompts and is the same for all runs.
"""

import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEEDS = (1, 2, 3)
SHUFFLED = ["--set", "train.shuffle_rewards=true"]
SHOWO = ["--plugin", "showo", "--optimizer", "grpo"]
JANUS = ["--plugin", "janus", "--optimizer", "grpo-split"]
ARMS = {
    "tiles": SHOWO,
    "shuffled": SHOWO + SHUFFLED,
    "paper": SHOWO + ["--preset", "paper"],
    "janus": JANUS,
    "janus-shuffled": JANUS + SHUFFLED,
    "janus-sft": ["--plugin", "janus", "--optimizer", "sft"],
}
# Means of the six categories, but of all wrong drawings for the last: in some categories few are wrong.
FIGURES = {
    "T2I": ("t2i", "macro"),
    "MMU": ("mmu", "macro"),
    "T2I->MMU": ("t2i_to_mmu", "macro"),
    "MMU->T2I": ("mmu_to_t2i", "macro"),
    "wrong passed": ("wrong_passed", "micro"),
}


def run(arm, seed):
    folder = ROOT / "runs" / "study" / f"{arm}-{seed}"
    report = folder / "report.json"
    if not report.exists():
        command = [ROOT / "target/release/unirl", *ARMS[arm], "--seed", str(seed), "--out", folder]
        print(f"{arm}, seed {seed} ...", file=sys.stderr, flush=True)
        subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
    return json.loads(report.read_text())


def row(arm, name, key, mean, reports):
    base = [report["base"][key][mean] for report in reports]
    trained = [report["trained"][key][mean] for report in reports]
    gains = [after - before for before, after in zip(base, trained)]
    each = " ".join(f"{gain:+.3f}" for gain in gains)
    spread = statistics.stdev(gains)
    return (
        f"{arm:<14} {name:<13} {statistics.mean(base):.3f} -> {statistics.mean(trained):.3f}"
        f"   {statistics.mean(gains):+.3f} ± {spread:.3f}   {each}"
    )


def main():
    arms = sys.argv[1:] or list(ARMS)
    for arm in arms:
        if arm not in ARMS:
            sys.exit(f"error: unknown arm `{arm}`\n\nhint: known: {', '.join(ARMS)}")
    print(f"{'arm':<14} {'figure':<13} {'base -> trained':<16} {'gain ± sd':<15}   by seed {SEEDS}")
    for arm in arms:
        reports = [run(arm, seed) for seed in SEEDS]
        for name, (key, mean) in FIGURES.items():
            print(row(arm, name, key, mean, reports), flush=True)
        print(f"{arm:<14} {'wall seconds':<13} {', '.join(str(round(r['wall_seconds'])) for r in reports)}")


if __name__ == "__main__":
    main()
