"""Examples in docstrings give what they show."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import sys

import pytest

import logitstore

MODULES = [
    module.name
    for module in pkgutil.walk_packages(logitstore.__path__, "logitstore.")
    # Triton, which the kernels import, exists for Linux alone.
    if sys.platform == "linux" or not module.name.startswith("logitstore.kernels.")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert not failed


def test_there_are_examples():
    finder = doctest.DocTestFinder()
    examples = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(examples) > 10
