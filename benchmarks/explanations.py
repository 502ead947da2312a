"""What ``infer.explain`` says of random pairs of programs, against what is true of them.

    python benchmarks/explanations.py             # 2,000 pairs, less than an hour on one core
    python benchmarks/explanations.py --num 100

The pairs are those of ``tests/random_programs.py``. Of each it is asked

- whether a pair that is wrong on purpose is refused, or explained as no bound, with a finding;
- whether the weights of ``IWAE`` are those of the pair's structure;
- whether a bound that is called a lower bound stays below the evidence, where that has a closed
  form: ``ELBO``, ``IWAE``, and Pyro's ``Trace_ELBO`` and ``RenyiELBO``. A mean of 30 calls
  exceeds it if it does by four standard errors, and a mean of 300 fresh calls does so too.

The counts are written to ``benchmarks/results/explanations.json``, with the seeds of what is
wrong.
"""

import argparse
import json
import sys
import warnings
from collections import Counter
from pathlib import Path

import pyro
import pyro.infer
import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tarspyro.infer import ELBO, IWAE, PairError, explain  # noqa: E402
from tests.program_judge import measure  # noqa: E402
from tests.program_truth import truth  # noqa: E402
from tests.random_programs import draw  # noqa: E402

OUT = ROOT / "benchmarks" / "results" / "explanations.json"
# How a text on the weights begins, for each structure of a pair.
WEIGHTS = {"local": "a weight for each", "shared": "one weight", "joint": "one weight"}
PARTICLES = 8
CALLS = 30


def bounds(nesting):
    """The bounds that are explained; Pyro's have to know how deep the plates are."""
    options = {"max_plate_nesting": nesting}
    return {
        "ELBO": ELBO(),
        "IWAE": IWAE(PARTICLES),
        "Pyro's Trace_ELBO": pyro.infer.Trace_ELBO(**options),
        "Pyro's RenyiELBO": pyro.infer.RenyiELBO(
            alpha=0, num_particles=PARTICLES, vectorize_particles=True, **options
        ),
    }


def explained(bound, programs):
    """The explanation; None for a pair that is refused."""
    try:
        return explain(bound, programs.model, programs.guide, *programs.args)
    except PairError:
        return None


def is_refused(bound, programs):
    """Whether the bound raises."""
    try:
        bound.loss(programs.model, programs.guide, *programs.args)
    except PairError:
        return True
    return False


def exceeds(bound, programs, evidence):
    """Whether the value lies above the evidence; None if the bound gives none."""

    def value():
        return -bound.loss(programs.model, programs.guide, *programs.args)

    try:
        for calls in (CALLS, 10 * CALLS):
            mean, error = measure(value, calls)
            if float(mean) <= evidence + 4 * float(error) + 2e-5 * (1 + abs(evidence)):
                return False
    except Exception:  # refused, or not what Pyro's bound can do
        return None
    return True


def judged(seed):
    """Words for what came out, and the wrong ones among them."""
    pair = draw(seed)
    torch.manual_seed(seed)
    pyro.clear_param_store()
    programs = pair.build()
    if pair.wrong:
        found = explained(IWAE(PARTICLES), programs)
        seen = found is None or not (found.is_lower_bound or not found.findings)
        return ["wrong pair: " + ("found" if seen else "MISSED")]
    known = truth(pair)
    programs.set(pair.later)  # the truth is that of these parameters
    words = []
    for name, bound in bounds(known.nesting).items():
        found = explained(bound, programs)
        if found is None:
            words.append(f"{name}: pair refused")
            continue
        if name == "IWAE" and ("refuses" in found.kind or "do not match" in found.kind):
            refused = is_refused(bound, programs)
            words.append("said to be refused: " + ("right" if refused else "WRONG"))
        elif name == "IWAE":
            right = found.weights.startswith(WEIGHTS.get(pair.structure, ""))
            words.append("weights: " + ("right" if right else "WRONG"))
        if known.evidence is None:
            continue
        above = exceeds(bound, programs, known.evidence)
        if above is None:
            words.append(f"{name}: no value")
        elif not above:
            called = "called a bound" if found.is_lower_bound else "not called a bound"
            words.append(f"{name}: below the evidence, {called}")
        else:
            called = "CALLED A BOUND" if found.is_lower_bound else "flagged"
            words.append(f"{name}: above the evidence, {called}")
    return words


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--num", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    counts = Counter()
    wrong = {}
    for seed in range(options.first, options.first + options.num):
        with pyro.validation_enabled(True):
            words = judged(seed)
        counts.update(words)
        for word in words:
            if word != word.lower() and word.split()[-1].isupper():
                wrong[seed] = word
                print(seed, word, flush=True)
    report = {
        "pairs": options.num,
        "torch": torch.__version__,
        "counts": dict(sorted(counts.items())),
        "wrong": wrong,
    }
    print(json.dumps(report, indent=1))
    options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
