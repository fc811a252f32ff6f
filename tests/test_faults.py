"""The fault harness is a long run of its own; here: that its points and mutants still fit the program."""

import inspect
from importlib import import_module

import pytest

from tests.faults.inside.fail_points import POINTS, FailPoint, wrapped
from tests.faults.mutants import MUTANTS, make


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_every_fail_point_is_at_a_coroutine_function(point: FailPoint):
    _, _, function = wrapped(import_module(point.module), point)
    assert inspect.iscoroutinefunction(function)


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_finds_what_it_takes_out(name, tmp_path):
    assert (make(name, tmp_path) / MUTANTS[name].file).exists()
