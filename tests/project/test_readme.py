"""The quick start of the README runs as it stands."""

import re
import warnings
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_quick_start(capsys):
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    names = {}
    torch.manual_seed(0)
    exec(code, names)
    printed = capsys.readouterr().out
    assert "p(x, z) = p(x | z) p(z)" in printed
    assert -28 < float(re.search(r"tensor\((-[\d.]+)\)", printed).group(1)) < -20
    assert names["figure"].axes


def test_edits_of_the_table_are_valid():
    import pyro.distributions as dist

    from tarspyro import Conditional
    from tarspyro.nn import MLP, ConvDecoder, ConvEncoder

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Conditional(dist.Normal, MLP(2, [256, 256]), 64, scale=0.1)
        Conditional(dist.Normal, ConvEncoder((1, 8, 8)), 2)(torch.zeros(3, 64))
        Conditional(dist.Bernoulli, ConvDecoder(2, (1, 8, 8)), 64)(torch.zeros(3, 2))


def test_commands_exist():
    from tarspyro.commands.parser import parse

    for line in re.findall(r"^    tarspyro (.*?)(?:  +#.*)?$", README, flags=re.MULTILINE):
        if line.endswith("--help"):
            with pytest.raises(SystemExit, match="^0$"):
                parse(line.split())
        else:
            assert parse(line.split()).command
