"""Random pairs of programs, whose every number is right or refused: the test of ``tests/``, at length.

    python benchmarks/random_programs.py                      (2,000 pairs, less than an hour on one core)
    python benchmarks/random_programs.py --num 100 --first 2000
    python -m tests.random_programs 17                        (one pair in full: its text, its truth, what was found)

Pairs are drawn by seed, ``tests/random_programs.py`` says how; ``tests/program_judge.py`` says what is compared with
what, and how often it is wrong itself. A run that was interrupted goes on where it was, unless it is told ``--again``.
The result holds how many pairs of each kind came out how, the same for single quantities, and what failed.
"""

import argparse
import json
import sys
import time
import traceback
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.program_judge import FAILED, NEEDLESS, judge  # noqa: E402
from tests.random_programs import draw  # noqa: E402


def found(seed):
    """What is kept of one pair."""
    start = time.perf_counter()
    try:
        verdict = judge(draw(seed))
    except Exception:
        return {"kind": "?", "outcome": "the test itself failed", "failures": [traceback.format_exc(limit=-3)]}
    return {
        "kind": verdict.pair.kind,
        "features": verdict.pair.features,
        "outcome": verdict.outcome,
        "quantities": {finding.quantity: finding.verdict for finding in verdict.findings},
        "failures": [f"{f.quantity}: {f.verdict}: {f.detail}" for f in verdict.failures],
        "needless": [f"{f.quantity}: {f.detail}" for f in verdict.findings if f.verdict == NEEDLESS],
        "seconds": round(time.perf_counter() - start, 2),
    }


def summary(pairs):
    """Counts by kind and outcome, by quantity and verdict, and what to look at."""
    kinds: dict[str, Counter] = {}
    quantities: dict[str, Counter] = {}
    for pair in pairs.values():
        kinds.setdefault(pair["kind"], Counter())[pair["outcome"]] += 1
        for quantity, verdict in pair.get("quantities", {}).items():
            quantities.setdefault(quantity, Counter())[verdict] += 1
    wrong = {seed: pair for seed, pair in pairs.items() if pair["failures"]}
    needless = [int(seed) for seed, pair in pairs.items() if pair["outcome"] == NEEDLESS]
    return {
        "pairs": len(pairs),
        "by kind": {kind: dict(counts) for kind, counts in sorted(kinds.items())},
        "by quantity": {quantity: dict(counts) for quantity, counts in quantities.items()},
        "failing seeds": [int(seed) for seed in wrong],
        "needlessly refused seeds": needless,
        "failures": {seed: {k: pair.get(k) for k in ("kind", "features", "failures")} for seed, pair in wrong.items()},
        "seconds": round(sum(pair.get("seconds", 0) for pair in pairs.values())),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "random_programs.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(arguments.out.read_text())["each"] if arguments.out.exists() and not arguments.again else {}
    for seed in range(arguments.first, arguments.first + arguments.num):
        if str(seed) not in kept:
            kept[str(seed)] = found(seed)
            if kept[str(seed)]["outcome"] == FAILED:
                print(seed, kept[str(seed)]["kind"], kept[str(seed)]["failures"][0][:150], flush=True)
        if seed % 50 == 49:
            arguments.out.write_text(json.dumps({**summary(kept), "each": kept}, indent=1))
    arguments.out.write_text(json.dumps({**summary(kept), "each": kept}, indent=1))
    print(json.dumps({k: v for k, v in summary(kept).items() if k != "failures"}, indent=1))


if __name__ == "__main__":
    main()
