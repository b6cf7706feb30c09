#!/usr/bin/env python3
"""A reward rule in Python: a point for every word of the right answer that is said, and none for a long answer.

    unirl --plugin showo --optimizer grpo --reward cmd:examples/python-reward/reward.py
    unirl --plugin showo --optimizer grpo --reward "cmd:python3 examples/python-reward/reward.py"

A line of stdin is a batch of samples, a line of stdout their rewards, one each and in order: `{"score": 1, "max": 2}`, a
number from 0 to 1, or `null`, which abstains. The same samples must always get the same rewards. Exactly one line answers a
batch; whatever else there is to say goes to stderr.
"""

import json
import re
import sys


def reward(sample):
    """`sample` has the keys facts, prompt, question, truth and answer."""
    words = sample["truth"].lower().split()
    said = re.findall(r"\w+", sample["answer"].lower())
    if not words:
        return None
    hits = sum(word in said for word in words) if len(said) <= 2 * len(words) else 0
    return {"score": hits, "max": len(words), "why": f"{hits} of {len(words)} words"}


for line in sys.stdin:
    print(json.dumps({"rewards": [reward(sample) for sample in json.loads(line)["samples"]]}), flush=True)
