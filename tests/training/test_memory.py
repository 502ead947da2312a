"""Memory that a step frees: the next step finds it."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import pyro.distributions as dist
import torch
from tarspyro import Conditional, evaluate, fit, guides, models
from tarspyro.distributions import default_prior
from tarspyro.nn import MLP

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def faults_of_a_step():
    before = faults()
    for _ in range(20):
        gradients = [torch.ones(2**22) for _ in range(2)]  # 16 MiB each
        del gradients
    return (faults() - before) / 20

before = faults_of_a_step()
p = models.VAE(default_prior(dist.Normal, 2), Conditional(dist.Bernoulli, MLP(2, [4]), 64))
q = guides.VAE(Conditional(dist.Normal, MLP(64, [4]), 2))
x = torch.zeros(8, 64)
if {fits}:
    fit(p, q, x, epochs=1, progress=False)
else:
    evaluate.log_likelihood(p, q, x, num_particles=2)
faults_of_a_step()  # the first one gets the memory
print(before, faults_of_a_step())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of the GNU C library")
@pytest.mark.parametrize("fits", [True, False])
def test_steps_do_not_get_their_memory_anew(fits):
    script = SCRIPT.format(fits=fits)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    before, after = map(float, done.stdout.split())
    assert before > 1000  # pages of 4 KiB, as without the library
    assert after < 50
