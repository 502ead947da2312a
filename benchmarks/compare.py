"""How often the intervals of ``evaluate.compare`` cover the true difference of two pairs.

    python benchmarks/compare.py  # 400 data sets of 200 points, some minutes

The pairs are linear Gaussian, z ~ N(0, 1) and x | z ~ N(z, s^2) with s = 1 and s = 1.3, their
guides 1.2 times as wide as the posterior. The data come from the first pair, so that the true
mean difference is known. Intervals of 95 % should cover it in 93 to 97 of 100 data sets.
"""

import argparse
import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tarspyro import evaluate  # noqa: E402
from tests.evaluate.test_comparison import draw, pair, true_difference  # noqa: E402

OUT = Path(__file__).parent / "results" / "compare.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=400)
    parser.add_argument("--num", type=int, default=200, help="data points of a data set")
    parser.add_argument("--num-particles", type=int, default=100)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()

    true = true_difference(1.3, 1.0)
    pairs = {"s = 1": pair(1.0, 1.2), "s = 1.3": pair(1.3, 1.2)}
    gaps = []
    for seed in range(options.repeats):
        x = draw(options.num, 1000 + seed)
        found = evaluate.compare(pairs, x, num_particles=options.num_particles, seed=seed)
        gaps.append(found.difference("s = 1.3"))
    values = [gap.value for gap in gaps]
    mean = sum(values) / len(values)
    result = {
        "repeats": options.repeats,
        "data points": options.num,
        "particles": options.num_particles,
        "true difference, nats": true,
        "mean difference, nats": mean,
        "standard deviation of the differences": (
            sum((value - mean) ** 2 for value in values) / (len(values) - 1)
        )
        ** 0.5,
        "mean standard error": sum(gap.standard_error for gap in gaps) / len(gaps),
        "coverage of the 95 % intervals": sum(gap.low <= true <= gap.high for gap in gaps)
        / len(gaps),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(result)


if __name__ == "__main__":
    main()
