#!/usr/bin/env python3
"""Reproduce the findings of the paper on tiles: train each arm with seeds 1, 2 and 3, and write Tables 4, 5 and 6 with intervals.

    ./x findings                      # train all incomplete arms, then write tables and plots
    ./x findings --only grpo sft      # only these arms
    ./x findings --tables             # no training, only tables and plots of complete arms

Runs are written to `runs/findings/ARM-SEED`, two at a time with one thread each. Complete runs are reused, so an interrupted
command can be repeated. A figure is the mean over the seeds. Its 95 % interval is a percentile bootstrap over seeds and prompts;
the interval of a gain pairs each prompt before and after training. Output: `findings.md`, `showo.svg`, `showo.png`, `janus.svg`
and `janus.png` next to this file.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
RUNS = ROOT / "runs" / "findings"
SEEDS = (1, 2, 3)
RESAMPLINGS = 1000

SHOWO = ["--plugin", "showo"]
JANUS = ["--plugin", "janus"]


def settings(*pairs):
    return [word for pair in pairs for word in ("--set", pair)]


SHUFFLED = settings("train.shuffle_rewards=true")
GRPO = [*SHOWO, "--optimizer", "grpo"]
SFT = [*SHOWO, "--optimizer", "sft"]
# Family, label and arguments of each arm. The steps are chosen so that every arm of a family takes about as long; the table of
# costs has the seconds.
ARMS = {
    "sft": ("Show-o", "SFT", SFT),
    "sft-paper": ("Show-o", "SFT, preset `paper`", [*SFT, "--preset", "paper"]),
    "grpo": ("Show-o", "GRPO, end to end", GRPO),
    "grpo-paper": ("Show-o", "GRPO, end to end, preset `paper`", [*GRPO, "--preset", "paper"]),
    "grpo-split": ("Show-o", "GRPO, split", [*SHOWO, "--optimizer", "grpo-split"]),
    "grpo-rules": ("Show-o", "GRPO, `reward.kind = rules`", [*GRPO, *settings("reward.kind=rules")]),
    "grpo-current": ("Show-o", "GRPO, `reward.reader = current`", [*GRPO, *settings("reward.reader=current")]),
    "grpo-ema": ("Show-o", "GRPO, `reward.reader = ema`", [*GRPO, *settings("reward.reader=ema")]),
    "grpo-pixels": ("Show-o", "GRPO, `reward.view = pixels`", [*GRPO, *settings("reward.view=pixels")]),
    "grpo-questions": ("Show-o", "GRPO, `reward.questions = 3`", [*GRPO, *settings("reward.questions=3")]),
    "grpo-image": ("Show-o", "GRPO, image term only", [*GRPO, *settings("optimizer.grpo.answer_weight=0")]),
    "grpo-shuffled": ("Show-o", "GRPO, shuffled rewards", [*GRPO, *SHUFFLED]),
    "sft-shuffled": ("Show-o", "SFT, shuffled right answers", [*SFT, *SHUFFLED]),
    "split-shuffled": ("Show-o", "GRPO, split, shuffled rewards", [*SHOWO, "--optimizer", "grpo-split", *SHUFFLED]),
    "janus-split": ("Janus", "GRPO, split", [*JANUS, "--optimizer", "grpo-split"]),
    "janus-sft": ("Janus", "SFT", [*JANUS, "--optimizer", "sft"]),
    "janus-sft-paper": ("Janus", "SFT, preset `paper`", [*JANUS, "--optimizer", "sft", "--preset", "paper"]),
    "janus-shuffled": ("Janus", "GRPO, split, shuffled rewards", [*JANUS, "--optimizer", "grpo-split", *SHUFFLED]),
}
# Evaluation during training, for the curves.
MONITOR = ["--device", "cpu", *settings("eval.every=10", "eval.monitor_prompts=20", "eval.batch=120")]

CATEGORIES = ["single_object", "two_object", "counting", "colors", "position", "color_attr"]
HEADS = ["Single.", "Two.", "Count.", "Colors", "Posi.", "Attri."]

# Figures as functions of a verdict: success, or None if the prompt does not count.
FIGURES = {
    "T2I": lambda v: v["strict"],
    "MMU": lambda v: v["understood"],
    "T2I→MMU": lambda v: v["passed"] if v["strict"] else None,
    "MMU→T2I": lambda v: v["strict"] if v["understood"] else None,
    "precision": lambda v: v["strict"] if v["passed"] else None,
    "false positives": lambda v: None if v["strict"] else v["passed"],
}
# The Overall columns of the paper (Tables 4, 5 and 6): T2I and MMU are means of the categories, the others are pooled.
PAPER = {
    ("Show-o", None): {"T2I": 0.60, "MMU": 0.71, "T2I→MMU": 0.83, "MMU→T2I": 0.70},
    ("Show-o", "sft"): {"T2I": 0.77, "MMU": 0.67, "T2I→MMU": 0.81, "MMU→T2I": 0.80},
    ("Show-o", "grpo"): {"T2I": 0.71, "MMU": 0.79, "T2I→MMU": 0.93, "MMU→T2I": 0.81},
    ("Janus", None): {"T2I": 0.60, "MMU": 0.84, "T2I→MMU": 0.67, "MMU→T2I": 0.68},
    ("Janus", "janus-split"): {"T2I": 0.65, "MMU": 0.88, "T2I→MMU": 0.76, "MMU→T2I": 0.74},
}


# ---- training ----


def run_dir(arm, seed):
    return RUNS / f"{arm}-{seed}"


def complete(arm, seed):
    return (run_dir(arm, seed) / "report.json").exists()


def train(job):
    arm, seed, program = job
    out = run_dir(arm, seed)
    shutil.rmtree(out, ignore_errors=True)
    print(f"{arm}, seed {seed} ...", file=sys.stderr, flush=True)
    command = [program, *ARMS[arm][2], *MONITOR, "--seed", str(seed), "--out", out]
    done = subprocess.run(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if done.returncode != 0:
        sys.exit(f"{arm}, seed {seed}:\n{done.stderr}")
    seconds = json.loads((out / "report.json").read_text())["wall_seconds"]
    print(f"{arm}, seed {seed}: {seconds:.0f} s", file=sys.stderr, flush=True)


# ---- figures ----


def verdicts(arm, seed, what):
    """The verdicts of a receipt by category, in the order of the prompts."""
    receipt = json.loads((run_dir(arm, seed) / "eval" / f"{what}.json").read_text())
    by_category = {name: [] for name in CATEGORIES}
    for line in receipt["verdicts"]:
        by_category[line["task"]["category"]].append(line["verdict"])
    return by_category


def means(by_category, counts):
    """A figure by category, the mean of the categories, and the pooled value; None if no prompt counts."""
    values, hits, total = [], 0, 0
    for name in CATEGORIES:
        counted = [float(value) for value in map(counts, by_category[name]) if value is not None]
        values.append(sum(counted) / len(counted) if counted else None)
        hits, total = hits + sum(counted), total + len(counted)
    known = [value for value in values if value is not None]
    return [*values, sum(known) / len(known) if known else None, hits / total if total else None]


def average(rows):
    """The mean of each column, without missing values."""
    columns = [[value for value in column if value is not None] for column in zip(*rows)]
    return [sum(column) / len(column) if column else None for column in columns]


def interval(samples):
    samples = sorted(value for value in samples if value is not None)
    if not samples:
        return None
    at = lambda share: samples[round((len(samples) - 1) * share)]
    return at(0.025), at(0.975)


class Arm:
    """The verdicts of an arm before and after training for all seeds, and their figures with intervals."""

    def __init__(self, name):
        self.name = name
        self.base = [verdicts(name, seed, "base") for seed in SEEDS]
        self.trained = [verdicts(name, seed, "trained") for seed in SEEDS]
        self.before, self.after, self.gain = {}, {}, {}
        rng = random.Random(6)
        resampled = []
        for _ in range(RESAMPLINGS):
            seeds = [rng.randrange(len(SEEDS)) for _ in SEEDS]
            tasks = {c: [rng.randrange(len(self.base[0][c])) for _ in self.base[0][c]] for c in CATEGORIES}
            pick = lambda runs: [{c: [runs[seed][c][task] for task in tasks[c]] for c in CATEGORIES} for seed in seeds]
            resampled.append((pick(self.base), pick(self.trained)))
        for figure, counts in FIGURES.items():
            of = lambda runs: average([means(run, counts) for run in runs])
            before, after = of(self.base), of(self.trained)
            olds, news = [of(pair[0]) for pair in resampled], [of(pair[1]) for pair in resampled]
            self.before[figure] = list(zip(before, map(interval, zip(*olds))))
            self.after[figure] = list(zip(after, map(interval, zip(*news))))
            minus = lambda new, old: None if None in (new, old) else new - old
            gains = [[minus(n, o) for n, o in zip(new, old)] for new, old in zip(news, olds)]
            self.gain[figure] = list(zip(map(minus, after, before), map(interval, zip(*gains))))
        each = lambda runs, figure: [means(run, FIGURES[figure])[6] for run in runs]
        self.by_seed = {f: [n - o for n, o in zip(each(self.trained, f), each(self.base, f))] for f in ("T2I", "MMU")}


def cell(value, signed=False):
    number, ends = value
    if number is None:
        return "–"
    form = "{:+.2f}" if signed else "{:.2f}"
    return form.format(number) + (f" ({form.format(ends[0])}, {form.format(ends[1])})" if ends else "")


def table(title, figure, arms, pooled):
    lines = [f"**{title}**", "", "| | " + " | ".join(HEADS) + " | Overall | gain |", "|---" * 9 + "|"]
    overall = 7 if pooled else 6
    for family in dict.fromkeys(ARMS[arm.name][0] for arm in arms):
        of_family = [arm for arm in arms if ARMS[arm.name][0] == family]
        rows = [(family, of_family[0].before[figure], None)]
        rows += [(ARMS[arm.name][1], arm.after[figure], arm.gain[figure]) for arm in of_family]
        for name, values, gains in rows:
            numbers = ["–" if value[0] is None else f"{value[0]:.2f}" for value in values[:6]]
            gain = "" if gains is None else cell(gains[overall], signed=True)
            lines.append(f"| {name} | {' | '.join(numbers)} | {cell(values[overall])} | {gain} |")
    return lines + [""]


def verdict(gain):
    number, ends = gain
    if number is None or ends is None:
        return "–"
    return "rises" if ends[0] > 0 else "falls" if ends[1] < 0 else "no significant change"


def statements(arms):
    lines = ["| | figure | paper | unirl | unirl: change |", "|---|---|---|---|---|"]
    for arm in arms:
        family, name, _ = ARMS[arm.name]
        paper = PAPER.get((family, arm.name))
        for figure in ("T2I", "MMU", "T2I→MMU", "MMU→T2I"):
            at = 7 if "→" in figure else 6
            in_paper = f"{PAPER[family, None][figure]:.2f} → {paper[figure]:.2f}" if paper else "not reported"
            here = f"{arm.before[figure][at][0]:.2f} → {arm.after[figure][at][0]:.2f}"
            lines.append(f"| {family}, {name} | {figure} | {in_paper} | {here} | {verdict(arm.gain[figure][at])} |")
    return lines + [""]


def report(arms):
    lines = [
        "<!-- written by findings.py -->",
        "",
        "Seeds 1, 2 and 3 of each arm, 100 held-out prompts per category, 95 % intervals over seeds and prompts.",
        "As in the paper, T2I and MMU are means of the categories; T2I→MMU and MMU→T2I are pooled.",
        "",
    ]
    lines += table("Table 4 on tiles: generation (T2I)", "T2I", arms, False)
    lines += table("Table 5 on tiles: understanding (MMU)", "MMU", arms, False)
    lines += table("Table 6 on tiles: T2I→MMU", "T2I→MMU", arms, True)
    lines += table("Table 6 on tiles: MMU→T2I", "MMU→T2I", arms, True)
    lines += table("Precision of the self-reward: correct images among those whose answers pass", "precision", arms, True)
    lines += table("False positives: wrong images whose answers get full reward", "false positives", arms, True)
    lines += ["**Compared with the paper** (Overall, before → after)", "", *statements(arms)]
    lines += ["**Cost and effect**", "", "| | T2I | MMU | precision | seconds | last step | stopped |", "|---|---|---|---|---|---|---|"]
    for arm in arms:
        family, name, _ = ARMS[arm.name]
        runs = [json.loads((run_dir(arm.name, seed) / "report.json").read_text()) for seed in SEEDS]
        seconds = sum(run["wall_seconds"] for run in runs) / len(runs)
        steps = " ".join(str(run["steps"]) for run in runs)
        stopped = sum(run["stopped"] is not None for run in runs)
        gains = [cell(arm.gain[figure][at], signed=True) for figure, at in (("T2I", 6), ("MMU", 6), ("precision", 7))]
        lines.append(f"| {family}, {name} | {' | '.join(gains)} | {seconds:.0f} | {steps} | {stopped} of {len(runs)} |")
    lines.append("")
    lines += ["**By seed**", "", "| | T2I | MMU |", "|---|---|---|"]
    for arm in arms:
        family, name, _ = ARMS[arm.name]
        each = [" ".join(f"{gain:+.3f}" for gain in arm.by_seed[figure]) for figure in ("T2I", "MMU")]
        lines.append(f"| {family}, {name} | {each[0]} | {each[1]} |")
    (HERE / "findings.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


# ---- plots ----


def curve(arm, seed, name):
    """The steps and values of a metric."""
    lines = (run_dir(arm, seed) / "metrics.jsonl").read_text().splitlines()
    points = [(line["step"], line[name]) for line in map(json.loads, lines) if name in line]
    return [step for step, _ in points], [value for _, value in points]


def plot(family, arms):
    try:
        import matplotlib
    except ImportError:
        print("no plots: matplotlib is not installed; `./x findings` installs it", file=sys.stderr)
        return

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "unirl"
    from matplotlib import pyplot

    panels = {
        "reward": "reward/mean",
        "T2I": "eval/t2i",
        "MMU": "eval/mmu",
        "T2I→MMU": "eval/t2i_to_mmu",
        "MMU→T2I": "eval/mmu_to_t2i",
    }
    figure, axes = pyplot.subplots(1, len(panels), figsize=(15, 3.5), layout="constrained")
    for axis, (title, name) in zip(axes, panels.items()):
        for index, arm in enumerate(arms):
            curves = [curve(arm.name, seed, name) for seed in SEEDS]
            steps = curves[0][0]
            rows = [[values[at] for _, values in curves if at < len(values)] for at in range(len(steps))]
            middle = [sum(row) / len(row) for row in rows]
            axis.plot(steps, middle, color=f"C{index}", label=ARMS[arm.name][1])
            axis.fill_between(steps, list(map(min, rows)), list(map(max, rows)), color=f"C{index}", alpha=0.15, lw=0)
        axis.set(title=title, xlabel="step", ylim=(0, 1.02))
        axis.grid(alpha=0.3)
    handles, names = axes[0].get_legend_handles_labels()
    figure.legend(handles, names, fontsize="small", loc="outside lower center", ncols=len(names))
    figure.suptitle(f"{family}: mean and range over the seeds")
    for ending in ("svg", "png"):
        metadata = {"Date": None} if ending == "svg" else {"Software": None}
        figure.savefig(HERE / f"{family.lower().replace('-', '')}.{ending}", dpi=110, metadata=metadata)
    pyplot.close(figure)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="ARM", choices=list(ARMS), default=list(ARMS), help=", ".join(ARMS))
    parser.add_argument("--tables", action="store_true", help="write tables and plots of complete arms without training")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="number of parallel runs (2)")
    parser.add_argument("--unirl", type=Path, metavar="PROGRAM", default=ROOT / "target/release/unirl", help="path of the unirl program")
    options = parser.parse_args()
    if not options.tables:
        program = options.unirl.resolve()
        jobs = [(arm, seed, program) for seed in SEEDS for arm in options.only if not complete(arm, seed)]
        with ThreadPoolExecutor(max(1, options.jobs)) as pool:
            list(pool.map(train, jobs))
    done = [arm for arm in ARMS if all(complete(arm, seed) for seed in SEEDS)]
    if not done:
        sys.exit("error: no arm is complete for all seeds\n\nhint: `./x findings` trains them")
    arms = [Arm(arm) for arm in done]
    report(arms)
    for family in dict.fromkeys(ARMS[arm.name][0] for arm in arms):
        plot(family, [arm for arm in arms if ARMS[arm.name][0] == family])


if __name__ == "__main__":
    main()
