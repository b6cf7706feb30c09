#!/usr/bin/env python3
"""Measure where the gradients of the algorithms point: cosines in all trained weights, on the embedded models.

    ./x gradients                     # or: .findings-venv/bin/python examples/tiles/findings/gradients.py
    ./x gradients --drawings 1920 --family Show-o

Each estimator is one training step of `unirl` with learning rate 0 and `beta1 = 0`, whose first moment is the gradient. Two halves
with other seeds give the reliability of an estimator: the cosine between its own halves. A cosine between two estimators is taken
across halves and divided by the root of both reliabilities, so that 1 means the same direction, whatever the noise.

- `score`: the score function (REINFORCE) in the reveal steps, rewarded by the probability that the base model reads the right
  answer. This is what a better image means to a reader that does not change.
- `reader`: what `sft` teaches the weights as those of the reader alone: the gradient with `reader_gradient` minus that without, on
  the same images with the same noise.

Output: `gradients.md` next to this file.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
GROUP = 8
STEP = [
    "train.steps=1",
    "train.sample_every=0",
    "update.learning_rate=0",
    "update.beta1=0",
    "update.max_grad_norm=0",
    "update.weight_decay=0",
    "eval.prompts=0",
    "eval.every=0",
    "eval.samples_per_prompt=0",
    f"rollout.group_size={GROUP}",
    "rollout.micro_batch=240",
]
PAPER = ["replay=remask", "right_answer=reference", "image_beta=0", "beta=0", "reader_gradient=true"]
FROZEN = ["reader_gradient=false"]
REVEAL = ["replay=reveal", "reveal_steps=0", "scoring=guided", "right_answer=any"]
READER = ["reward.reader=reference"]
LIKELIHOOD = [*READER, "reward.kind=likelihood"]


def sft(*options):
    return ["--optimizer", "sft"], [f"optimizer.sft.{option}" for option in options]


def score(optimizer, replay, *reward):
    image = f'{{ coefficient = 1.0, replay = "{replay}", reveal_steps = 0, scoring = "guided", beta = 0.0 }}'
    options = ["weighting=advantage", "answer_weight=0", f"image={image}"]
    return ["--optimizer", optimizer], [f"optimizer.{optimizer}.{option}" for option in options] + list(reward)


def with_reader(estimator, *settings):
    arguments, options = estimator
    return arguments, options + list(settings)


# Family: plugin, and label and settings of each estimator. The first is the paper's, and the second the same with a reader that
# stays as it is: their difference is `reader`.
FAMILIES = {
    "Show-o": (
        "showo",
        {
            "`sft` of the paper": sft(*PAPER),
            "`sft`, re-masked, reader without gradient": with_reader(sft(*PAPER, *FROZEN), *READER),
            "`sft`, reveal steps, reader without gradient (default)": with_reader(
                sft("image_beta=0", "beta=0", *FROZEN, *REVEAL), *READER
            ),
            "score": score("grpo", "reveal", *LIKELIHOOD),
            "score, rewarded by rules": score("grpo", "reveal", "reward.kind=rules"),
            "score, re-masked": score("grpo", "remask", *LIKELIHOOD),
        },
    ),
    "Janus": (
        "janus",
        {
            "`sft` of the paper": sft(*PAPER),
            "`sft`, sampled again, reader without gradient": with_reader(sft(*PAPER, *FROZEN), *READER),
            "`sft`, tokens kept, reader without gradient (default)": with_reader(
                sft("image_beta=0", "beta=0", *FROZEN, *REVEAL), *READER
            ),
            "score": score("grpo-split", "reveal", *LIKELIHOOD),
            "score, rewarded by rules": score("grpo-split", "reveal", "reward.kind=rules"),
        },
    ),
}


def first_moment(checkpoint):
    """The first moments of a checkpoint as one vector."""
    import numpy

    data = (checkpoint / "training" / "state.safetensors").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    parts = []
    for name in sorted(name for name in header if name.startswith("mean/")):
        begin, end = header[name]["data_offsets"]
        if header[name]["dtype"] != "F32":
            sys.exit(f"error: `{name}`: expected F32, got {header[name]['dtype']}")
        parts.append(numpy.frombuffer(data, numpy.float32, offset=8 + length + begin, count=(end - begin) // 4))
    return numpy.concatenate(parts).astype(numpy.float64)


def gradient(program, plugin, estimator, prompts, seed):
    arguments, options = estimator
    with tempfile.TemporaryDirectory() as home:
        out = Path(home) / "run"
        command = [program, "--plugin", plugin, *arguments, "--device", "cpu", "--seed", str(seed), "--out", out]
        for setting in [*STEP, f"rollout.prompts_per_step={prompts}", *options]:
            command += ["--set", setting]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=os.environ)
        if done.returncode != 0:
            sys.exit(f"{' '.join(map(str, command))}\n{done.stderr}")
        return first_moment(out / "checkpoints" / "step-000001")


def cosine(one, other):
    return float(one @ other) / math.sqrt(float(one @ one) * float(other @ other))


def cosines(halves):
    """The table of a family: reliability, and the cosine with `score` and with `reader`."""
    reliability = {name: cosine(*pair) for name, pair in halves.items()}

    def corrected(one, other):
        if one == other:
            return 1.0
        (a, b), (c, d) = halves[one], halves[other]
        between = (cosine(a, d) + cosine(b, c)) / 2
        noise = reliability[one] * reliability[other]
        return between / math.sqrt(noise) if noise > 0 else float("nan")

    return [(name, reliability[name], corrected(name, "score"), corrected(name, "reader")) for name in halves]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--drawings", type=int, default=960, metavar="N", help="images of each half (960)")
    parser.add_argument("--family", choices=list(FAMILIES), nargs="+", default=list(FAMILIES))
    parser.add_argument("--unirl", type=Path, metavar="PROGRAM", default=ROOT / "target/release/unirl", help="path of the unirl program")
    options = parser.parse_args()
    prompts = max(6, options.drawings // GROUP)
    lines = [
        "<!-- written by gradients.py -->",
        "",
        f"Cosines between gradients in all trained weights, two halves of {prompts * GROUP} images each.",
        "",
    ]
    for family in options.family:
        plugin, estimators = FAMILIES[family]
        halves = {}
        for name, estimator in estimators.items():
            print(f"{family}: {name} ...", file=sys.stderr, flush=True)
            halves[name] = [gradient(options.unirl.resolve(), plugin, estimator, prompts, seed) for seed in (1, 2)]
        paper, frozen = list(halves.values())[:2]
        halves["reader"] = [whole - path for whole, path in zip(paper, frozen)]
        lines += [f"**{family}**", "", "| gradient | reliability | with `score` | with `reader` |", "|---|---|---|---|"]
        lines += [f"| {name} | {own:.2f} | {score:.2f} | {reader:.2f} |" for name, own, score, reader in cosines(halves)]
        lines.append("")
    (HERE / "gradients.md").write_text("\n".join(lines))
    print("\n".join(lines))


if __name__ == "__main__":
    main()
