"""The packages of the library. All else about the project is in ``pyproject.toml``."""

from setuptools import find_packages, setup

# models/ and guides/ stand at the top of the repository and install inside the library.
OUTSIDE = ["tarspyro.models", "tarspyro.guides"]

setup(
    packages=[
        *find_packages(include=["tarspyro", "tarspyro.*"], exclude=OUTSIDE),
        *OUTSIDE,
    ]
)
