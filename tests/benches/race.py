"""Runs `rollouts.rs` and its Python peers in turns, and prints their figures side by side: `./x race`.

    race.py BENCH [--rounds N] [--tiny]

Ours first checks that it scores what it samples. A figure is the median of the rounds' medians, of three or fewer times each.
The floor is what the arithmetic and the weights take at the rates that the card itself is measured at here.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

PEERS = Path(__file__).resolve().parent / "peers"

# Of each family: what a row is called, the peer's rows of which the first that is there counts, and ours.
ROWS = {
    "janus": [
        ("drawing: transformers' `generate`", ["transformers generate"], "drawing"),
        ("drawing: best Python", ["static cache, CUDA graph", "dynamic cache"], "drawing"),
        ("log-probability", ["log-probability forward"], "log-probability forward"),
        ("log-probability and its gradient", ["log-probability and gradient"], "log-probability and gradient"),
        ("SigLIP", ["siglip"], "siglip"),
        ("VQ decode", ["vq decode"], "vq decode"),
    ],
    "showo": [
        ("drawing", ["drawing"], "drawing"),
        ("answers of 16 tokens", ["answers"], "answers"),
        ("re-forward, straight-through, answer log-likelihood, reference, backward, AdamW", ["update"], "update"),
        ("whole GRPO step", ["step"], "step"),
    ],
}
NOTES = """\
- image tokenizers: ours are f32, Python's is of the type of the model
- whole step: ours asks about the completed drawings and about the drawings themselves, Python about the latter alone; ours
  updates f32 copies of the weights, Python the weights themselves
- TFLOP/s: each by its own count; that of ours has image rows and layers alone, as text is read once a drawing"""


def fail(message, hint):
    sys.exit(f"error: {message}\n\nhint: {hint}")


def run(command, file, environment):
    """The lines that a side has written, also where it ended early; and whether it did."""
    print(f"race: {' '.join(map(str, command))}", file=sys.stderr, flush=True)
    status = subprocess.run([*command, "--json", file], env=environment, stdout=sys.stderr, check=False).returncode
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()] if Path(file).exists() else []
    return lines, status == 0


def race(bench, rounds, tiny):
    """Rows by family, side and name, each with its medians by round; and the other lines by family and side."""
    rows, others, whole = defaultdict(list), {}, True
    # Small as they are, tiny models gain nothing from threads and wait for them.
    environment = os.environ | ({"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""} if tiny else {})
    size = ["--size", "tiny", "--device", "cpu"] if tiny else ["--size", "real", "--device", "cuda"]
    with tempfile.TemporaryDirectory() as folder:
        for at in range(rounds):
            for family in ROWS:
                sides = {
                    "ours": [bench, "--family", family, *size],
                    "python": [sys.executable, PEERS / f"{family}.py", *(["--tiny"] if tiny else [])],
                }
                for side, command in sides.items():
                    lines, done = run(command, f"{folder}/{family}-{side}-{at}.json", environment)
                    if side == "ours" and not done:
                        fail(f"`{family}` of ours ended early, and nothing is compared", "its own message is above")
                    whole &= done
                    for line in lines:
                        if "row" in line:
                            rows[family, side, line["row"]].append(line)
                    others[family, side] = [line for line in lines if "row" not in line]
    return rows, others, whole


def merged(lines):
    seconds = statistics.median(line["median"] for line in lines)
    return lines[0] | {"seconds": seconds, "peak": max(line["peak"] or 0 for line in lines)}


def time(seconds):
    return f"{seconds:.2f} s" if seconds >= 0.1 else f"{1e3 * seconds:.3g} ms"


def cell(row, gpu, peak=False):
    if row is None:
        return "failed"
    more = []
    if row["steps"]:
        more.append(f"{1e3 * row['seconds'] / row['steps']:.3g} ms a token step")
    if row["flop"] and gpu:
        more.append(f"{row['flop'] / row['seconds'] / 1e12:.0f} TFLOP/s")
    if row["peak"] and peak:
        more.append(f"peak {row['peak'] / 2**30:.1f} GiB")
    return time(row["seconds"]) + (f" ({', '.join(more)})" if more else "")


def floor(ours, rows, family):
    """At the rates of the card; none where a row has no count, or the card was not measured."""
    rates = {}
    for name, count in (("copy", "bytes"), ("product", "flop")):
        if lines := rows.get((family, "ours", name)):
            row = merged(lines)
            rates[count] = row[count] / row["seconds"]
    if len(rates) < 2 or not (ours["flop"] or ours["bytes"]):
        return "-"
    seconds = sum(ours[count] / rate for count, rate in rates.items())
    step = f" ({1e3 * seconds / ours['steps']:.3g} ms)" if ours["steps"] else ""
    rate = f" ({rates['flop'] / 1e12:.0f} TFLOP/s)" if ours["flop"] else ""
    return time(seconds) + step + rate


def table(rows, others):
    """The lines of the table, and whether no figure is missing."""
    complete, lines = True, [["", "Python", "ours", "times as fast", "floor"]]
    for family, wanted in ROWS.items():
        about = others[family, "ours"][0]
        gpu = about["gpu"]
        lines.append([f"**{about['about']}**", "", "", "", ""])
        for title, names, name in wanted:
            found = (rows[family, "python", peer] for peer in names if (family, "python", peer) in rows)
            peer, ours = next(map(merged, found), None), merged(rows[family, "ours", name])
            complete &= peer is not None
            ratio = f"{peer['seconds'] / ours['seconds']:.2f}" if peer else "-"
            peak = name == "step"
            lines.append([title, cell(peer, gpu, peak), cell(ours, gpu, peak), ratio, floor(ours, rows, family)])
    widths = [max(len(line[column]) for line in lines) for column in range(5)]
    lines.insert(1, ["-" * width for width in widths])
    return [f"| {' | '.join(map(str.ljust, line, widths))} |" for line in lines], complete


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bench", metavar="BENCH", help="the program that `rollouts.rs` is built to")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="how often each side has its turn (2)")
    parser.add_argument("--tiny", action="store_true", help="small models on the CPU, as where there is no GPU")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"argument --rounds: expected at least 1, got {args.rounds}")
    tiny = args.tiny or not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"))

    rows, others, whole = race(args.bench, args.rounds, tiny)
    lines, complete = table(rows, others)
    print("\n".join(lines), "", NOTES, sep="\n")
    for family in ROWS:
        for line in others[family, "ours"]:
            if "check" in line:
                off = f"{line['mean']:.1e} off in the mean of {line['tokens']} tokens, {line['max']:.1e} at most"
                print(f"- {family}, {line['check']}: scored as sampled, {off} (allowed: {line['tolerance']})")
            elif "count" in line:
                print(f"- {family}, {line['count']}: {line['operations']:.0f} operations of libtorch by ours")
    ours, peer = others["janus", "ours"][0], (others["janus", "python"] or [{}])[0]
    print(f"- rounds: {args.rounds}; card: {peer.get('card')}")
    print(f"- ours: {ours['precision']}, libtorch {ours['libtorch']}, CUDA graphs: {ours['graphs']}")
    print(f"- Python: torch {peer.get('torch')}, transformers {peer.get('transformers')}")
    if tiny:
        print("- these are tiny models on a CPU: the figures say that all of it runs, and nothing of real sizes on a GPU")
    if not (whole and complete):
        fail("some of Python's rows are missing", "the messages of its programs are above")


if __name__ == "__main__":
    main()
