"""Random pairs of programs, whose every number is right or refused: the test of ``tests/``, at
length.

    python benchmarks/random_programs.py  # 2,000 pairs, less than an hour on one core
    python benchmarks/random_programs.py --num 100 --first 2000
    python -m tests.random_programs 17    # one pair in full: its text, its truth, what was found

Pairs are drawn by seed, ``tests/random_programs.py`` says how; ``tests/program_judge.py`` says
what is compared with what, and how often it is wrong itself. A run that was interrupted goes
on where it was, unless it is told ``--again``. The result holds how many pairs of each kind
came out how, the same for single quantities, and of each pair a letter for each quantity (=
right, < between the ELBO and the evidence, x refused, ? needlessly refused, . not compared, !
wrong) with what was wrong.
"""

import argparse
import json
import sys
import traceback
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tests.program_judge import (  # noqa: E402
    BOUND,
    FAILED,
    NEEDLESS,
    QUANTITIES,
    REFUSED,
    RIGHT,
    SKIPPED,
    judge,
)
from tests.random_programs import draw  # noqa: E402

LETTERS = {RIGHT: "=", BOUND: "<", REFUSED: "x", NEEDLESS: "?", SKIPPED: ".", FAILED: "!"}
BROKEN = "the test itself failed"


def found(seed):
    """The record of one pair: its kind, its outcome, a letter for each quantity, and
    what was wrong.
    """
    try:
        pair = draw(seed)
        verdict = judge(pair)
    except Exception:
        return {
            "kind": "?",
            "outcome": BROKEN,
            "letters": "",
            "failures": [traceback.format_exc(limit=-3)],
        }
    row = {
        "kind": pair.kind,
        "outcome": verdict.outcome,
        "letters": "".join(LETTERS[finding.verdict] for finding in verdict.findings),
    }
    if verdict.failures:
        row["features"] = ", ".join(pair.features)
        row["failures"] = [f"{f.quantity}: {f.verdict}: {f.detail}" for f in verdict.failures]
    elif verdict.outcome == NEEDLESS:
        row["features"] = ", ".join(pair.features)
        row["refusals"] = [
            f"{f.quantity}: {f.detail}" for f in verdict.findings if f.verdict == NEEDLESS
        ]
    return row


def summary(pairs):
    """Counts by kind and outcome, by quantity and verdict, and what to look at."""
    kinds: dict[str, Counter] = {}
    quantities: dict[str, Counter] = {quantity: Counter() for quantity in QUANTITIES}
    verdicts = {letter: verdict for verdict, letter in LETTERS.items()}
    for pair in pairs.values():
        kinds.setdefault(pair["kind"], Counter())[pair["outcome"]] += 1
        for quantity, letter in zip(QUANTITIES, pair["letters"], strict=False):
            quantities[quantity][verdicts[letter]] += 1
    return {
        "pairs": len(pairs),
        "by kind": {kind: dict(counts) for kind, counts in sorted(kinds.items())},
        "by quantity": {quantity: dict(counts) for quantity, counts in quantities.items()},
        "failing seeds": [int(seed) for seed, pair in pairs.items() if "failures" in pair],
        "needlessly refused seeds": [
            int(seed) for seed, pair in pairs.items() if "refusals" in pair
        ],
    }


def write(path, pairs):
    lines = [f"  {json.dumps(seed)}: {json.dumps(pair)}" for seed, pair in pairs.items()]
    head = json.dumps(summary(pairs), indent=1)[:-2]
    path.write_text(head + ',\n "each": {\n' + ",\n".join(lines) + "\n }\n}\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--again", action="store_true")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "benchmarks" / "results" / "random_programs.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = (
        json.loads(arguments.out.read_text())["each"]
        if arguments.out.exists() and not arguments.again
        else {}
    )
    for seed in range(arguments.first, arguments.first + arguments.num):
        if str(seed) not in kept:
            kept[str(seed)] = found(seed)
            for failure in kept[str(seed)].get("failures", [])[:1]:
                print(seed, kept[str(seed)]["kind"], failure[:150], flush=True)
        if seed % 50 == 49:
            write(arguments.out, kept)
    write(arguments.out, kept)
    print(json.dumps(summary(kept), indent=1))


if __name__ == "__main__":
    main()
