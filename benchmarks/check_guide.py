"""Whether ``evaluate.check_guide`` finds planted faults, and leaves exact guides alone.

    python benchmarks/check_guide.py  # 40 exact pairs and 40 faults, some minutes on two cores

The pairs are those of ``tests/exact_pairs.py``: linear Gaussian, Gamma-Poisson, mixture,
hierarchical and sequential models whose posterior is known. The result holds a row for each
pair: the verdict, the smallest p-value, and the seconds that the check took.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from tarspyro.evaluate import check_guide  # noqa: E402
from tests.exact_pairs import FAMILIES, PLANTED, exact, planted  # noqa: E402

OUT = Path(__file__).parent / "results" / "check_guide.json"


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--settings", type=int, default=8, help="exact pairs of each family")
    parser.add_argument(
        "--faults", type=int, default=100, help="faults of each family at most"
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    rows = []
    for family in FAMILIES:
        for setting in range(options.settings):
            rows.append(row(family, "", setting, exact(family, setting)))
        for setting, fault in enumerate(PLANTED[family][: options.faults]):
            rows.append(row(family, fault, setting, planted(family, fault, setting)))

    exact_rows = [entry for entry in rows if not entry["fault"]]
    faults = [entry for entry in rows if entry["fault"]]
    result = {
        "exact pairs": len(exact_rows),
        "alarms on exact pairs": sum(entry["verdict"] != "calibrated" for entry in exact_rows),
        "planted faults": len(faults),
        "faults found": sum(entry["verdict"] != "calibrated" for entry in faults),
        "longest check, seconds": max(entry["seconds"] for entry in rows),
        "threads": options.threads,
        "torch": torch.__version__,
        "rows": rows,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print({name: value for name, value in result.items() if name != "rows"})


def row(family, fault, setting, pair):
    start = time.perf_counter()
    check = check_guide(pair.model, pair.guide, pair.data, seed=setting)
    units = [unit for site in check.sites.values() for unit in site.units]
    return {
        "family": family,
        "fault": fault,
        "setting": setting,
        "verdict": check.verdict,
        "sites": {name: site.verdict for name, site in check.sites.items()},
        "p-value": min(unit.p_value for unit in [*units, check.joint]),
        "seconds": round(time.perf_counter() - start, 1),
    }


if __name__ == "__main__":
    main()
