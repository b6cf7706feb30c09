#!/usr/bin/env python3
"""A reward in Python: one point per word of the reference answer that the answer contains, and none for long answers.

    unirl --plugin showo --optimizer grpo --reward cmd:examples/python-reward/reward.py
    unirl --plugin showo --optimizer grpo --reward "cmd:python3 examples/python-reward/reward.py"

Each line on stdin is a batch of samples. Reply with one line on stdout that lists their rewards in order: `{"score": 1, "max": 2}`,
a number from 0 to 1, or `null` to abstain. Equal samples must get equal rewards. Write all other output to stderr.
"""

import json
import re
import sys


def reward(sample):
    """`sample` has the keys `facts` (the spec), `prompt`, `question`, `truth` (the reference answer) and `answer`."""
    words = sample["truth"].lower().split()
    answer = re.findall(r"\w+", sample["answer"].lower())
    if not words:
        return None
    hits = sum(word in answer for word in words) if len(answer) <= 2 * len(words) else 0
    return {"score": hits, "max": len(words), "why": f"{hits} of {len(words)} words"}


for line in sys.stdin:
    print(json.dumps({"rewards": [reward(sample) for sample in json.loads(line)["samples"]]}), flush=True)
