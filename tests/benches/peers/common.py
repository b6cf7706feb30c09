"""Shared by the peers: arguments, timing, and rows as JSON lines in the format of `rollouts.rs`."""

import argparse
import json
import statistics
import sys
import time

import torch
import transformers

CUDA = torch.cuda.is_available()
DEVICE = "cuda" if CUDA else "cpu"
KIND = torch.bfloat16 if CUDA else torch.float32


def arguments(description):
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="sizes that run on any machine")
    parser.add_argument("--json", metavar="FILE", type=argparse.FileType("w"), help="also write every row to FILE")
    return parser.parse_args()


def write(file, **line):
    if file:
        print(json.dumps(line), file=file, flush=True)


def about(file, work):
    card = torch.cuda.get_device_name() if CUDA else "cpu"
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(f"{work}; {KIND} on {card}; {versions}", flush=True)
    write(file, about=work, card=card, **versions)


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


def seconds(work, *arguments):
    synchronize()
    start = time.perf_counter()
    result = work(*arguments)
    synchronize()
    return time.perf_counter() - start, result


def reset_peak():
    if CUDA:
        torch.cuda.reset_peak_memory_stats()


def report(file, row, times, flop=0, steps=0):
    median = statistics.median(times)
    print(f"{row:<32} {median:9.4f} s   ({min(times):.4f} to {max(times):.4f})", flush=True)
    peak = torch.cuda.max_memory_allocated() if CUDA else None
    write(file, row=row, median=median, min=min(times), max=max(times), peak=peak, flop=flop, steps=steps)


def bench(file, row, work, times=3, warm=1, **known):
    try:
        for _ in range(warm):
            work()
        reset_peak()
        report(file, row, [seconds(work)[0] for _ in range(times)], **known)
    except Exception as error:  # not every version of transformers supports every row
        print(f"{row:<32} FAILED: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr, flush=True)
