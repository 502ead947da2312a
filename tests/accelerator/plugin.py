"""A plugin of pytest that installs the pretended accelerator: ``-p tests.accelerator.plugin``."""

import os
import sys

import pytest

from tests.accelerator import pretended

_status = [1]


def pytest_configure(config):
    """Installs it before any test is collected; to import this module installs nothing."""
    pretended.install()


def pytest_sessionfinish(session, exitstatus):
    _status[0] = int(exitstatus)


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config):
    """Ends the process, whose ordinary end autograd's threads would abort."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(_status[0])
