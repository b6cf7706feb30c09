"""Alternates `rollouts.rs` and its Python peers, and prints their figures side by side: `./x race`.

    race.py BENCH [--rounds N] [--tiny]

unirl first checks that it scores what it samples. A figure is the median over rounds of the median of up to three runs.
The floor is the time of the arithmetic and of reading the weights, at the rates measured on the same GPU.
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

# For each family: the title of a row, the peer's rows (the first that exists is used), and unirl's row.
ROWS = {
    "janus": [
        ("generation: transformers' `generate`", ["transformers generate"], "generation"),
        ("generation: best Python", ["static cache, CUDA graph", "dynamic cache"], "generation"),
        ("log-probability", ["log-probability forward"], "log-probability forward"),
        ("log-probability and its gradient", ["log-probability and gradient"], "log-probability and gradient"),
        ("SigLIP", ["siglip"], "siglip"),
        ("VQ decode", ["vq decode"], "vq decode"),
    ],
    "showo": [
        ("generation", ["generation"], "generation"),
        ("answers of 16 tokens", ["answers"], "answers"),
        ("re-forward, straight-through, answer log-likelihood, reference, backward, AdamW", ["update"], "update"),
        ("full GRPO step", ["step"], "step"),
    ],
}
NOTES = """\
- image tokenizers: unirl uses f32, Python the data type of the model
- full step: unirl answers on the completed and on the generated images, Python only on the latter; unirl updates f32 master
  weights, Python the weights themselves
- TFLOP/s: each by its own count; unirl counts only layers and image rows, because text is computed once per image"""


def fail(message, hint):
    sys.exit(f"error: {message}\n\nhint: {hint}")


def run(command, file, environment):
    """The lines that a side has written, even if it failed, and whether it succeeded."""
    print(f"race: {' '.join(map(str, command))}", file=sys.stderr, flush=True)
    status = subprocess.run([*command, "--json", file], env=environment, stdout=sys.stderr, check=False).returncode
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()] if Path(file).exists() else []
    return lines, status == 0


def race(bench, rounds, tiny):
    """Rows by family, side and name, one per round; other lines by family and side; and whether every program succeeded."""
    rows, others, complete_run = defaultdict(list), {}, True
    # Threads slow tiny models down.
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
                        fail(f"`rollouts` failed for `{family}`, so nothing is compared", "see its message above")
                    complete_run &= done
                    for line in lines:
                        if "row" in line:
                            rows[family, side, line["row"]].append(line)
                    others[family, side] = [line for line in lines if "row" not in line]
    return rows, others, complete_run


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
        more.append(f"{1e3 * row['seconds'] / row['steps']:.3g} ms per token")
    if row["flop"] and gpu:
        more.append(f"{row['flop'] / row['seconds'] / 1e12:.0f} TFLOP/s")
    if row["peak"] and peak:
        more.append(f"peak {row['peak'] / 2**30:.1f} GiB")
    return time(row["seconds"]) + (f" ({', '.join(more)})" if more else "")


def floor(ours, rows, family):
    """The lower bound at the GPU's measured rates; `-` if the row has no count or the GPU was not measured."""
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
    """The lines of the table, and whether it is complete."""
    complete, lines = True, [["", "Python", "unirl", "speedup", "floor"]]
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
    parser.add_argument("bench", metavar="BENCH", help="the executable of `rollouts.rs`")
    parser.add_argument("--rounds", type=int, default=2, metavar="N", help="rounds, in each of which both sides run once (default: 2)")
    parser.add_argument("--tiny", action="store_true", help="tiny models on the CPU; the default without a GPU")
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error(f"argument --rounds: expected at least 1, got {args.rounds}")
    tiny = args.tiny or not (Path("/dev/nvidia0").exists() or shutil.which("nvidia-smi"))

    rows, others, complete_run = race(args.bench, args.rounds, tiny)
    lines, complete = table(rows, others)
    print("\n".join(lines), "", NOTES, sep="\n")
    for family in ROWS:
        for line in others[family, "ours"]:
            if "check" in line:
                error = f"error over {line['tokens']} tokens: mean {line['mean']:.1e}, maximum {line['max']:.1e}"
                print(f"- {family}, {line['check']}: scored as sampled; {error} (allowed: {line['tolerance']})")
            elif "count" in line:
                print(f"- {family}, {line['count']}: {line['operations']:.0f} libtorch operations in unirl")
    ours, peer = others["janus", "ours"][0], (others["janus", "python"] or [{}])[0]
    print(f"- rounds: {args.rounds}; card: {peer.get('card')}")
    print(f"- unirl: {ours['precision']}, libtorch {ours['libtorch']}, CUDA graphs: {ours['graphs']}")
    print(f"- Python: torch {peer.get('torch')}, transformers {peer.get('transformers')}")
    if tiny:
        print("- these are tiny models on a CPU: the figures show that everything runs, and nothing about real sizes on a GPU")
    if not (complete_run and complete):
        fail("some Python rows are missing", "see the messages of the Python programs above")


if __name__ == "__main__":
    main()
