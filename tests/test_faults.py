"""The fault harness is a long run of its own; here: that its points and mutants still fit the program."""

import inspect
import random
import subprocess
from importlib import import_module

import pytest

from app.extraction.texts import cut
from app.extraction.values import Chunking
from app.ingest.outcomes import Completed, Superseded
from tests.faults.endings import Endings
from tests.faults.inside.fail_points import POINTS, FailPoint, wrapped
from tests.faults.mutants import MUTANTS, make
from tests.faults.promises import Promises
from tests.faults.texts import fault_in
from tests.faults.update import Version
from tests.faults.uploads import WORDS


@pytest.mark.parametrize("point", POINTS.values(), ids=POINTS)
def test_every_fail_point_is_at_a_coroutine_function(point: FailPoint):
    _, _, function = wrapped(import_module(point.module), point)
    assert inspect.iscoroutinefunction(function)


@pytest.mark.parametrize(
    ("name", "arguments", "result", "is_met"),
    [
        ("taken_back", ["a connection"], 0, False),
        ("taken_back", ["a connection"], 2, True),
        ("epoch_noted", ["a connection", "an epoch"], False, False),
        ("withdrawn", ["a connection", []], None, False),
        ("withdrawn", ["a connection", ["a job"]], None, True),
        ("rung", ["resources", []], True, False),
        ("rung", ["resources", ["a hint"]], False, False),
        ("rung", ["resources", ["a hint"]], True, True),
        ("committed", ["processor", "a claim", Superseded()], None, False),
        ("committed", ["processor", "a claim", Completed(1, 1)], None, True),
    ],
)
def test_a_point_is_met_only_in_its_situation(name, arguments, result, is_met):
    assert POINTS[name].is_met(arguments, result) is is_met


@pytest.mark.parametrize(
    ("status", "stores", "is_fine"),
    [("completed", ["vs_1"], True), ("cancelled", [], True), ("cancelled", ["vs_1"], False), ("failed", [], False)],
)
def test_what_was_detached_is_cancelled_only_where_it_has_no_store_left(status, stores, is_fine):
    promises = Promises(detached={"ing_1"})
    promises.expect("vsfb_1", [{"id": "ing_1", "file_id": "file_1"}], stores=["vs_1"])
    ended = {"id": "ing_1", "file_id": "file_1", "status": status, "vector_store_ids": stores, "error": None}
    assert (promises.settle({"vsfb_1": {"data": [ended]}}, {}) == []) is is_fine


def test_what_nobody_withdrew_is_not_cancelled_even_without_a_store():
    promises = Promises()
    promises.expect("vsfb_1", [{"id": "ing_1", "file_id": "file_1"}], stores=["vs_1"])
    ended = {"id": "ing_1", "file_id": "file_1", "status": "cancelled", "vector_store_ids": [], "error": None}
    assert promises.settle({"vsfb_1": {"data": [ended]}}, {})


TEXT = "one two three\n\n four five six seven"


@pytest.mark.parametrize(
    ("chunks", "is_text"),
    [
        (["one two three", "four five", "six seven"], True),
        (["one two three", "three\n\n four five", "five six seven"], True),
        (["one two three", "six seven"], False),
        (["two three", "four five six seven"], False),
        (["one two three", "four five six"], False),
        (["one two three", "one two three", "four five six seven"], False),
        (["four five six seven", "one two three"], False),
        (["one two three", "four", "five siX seven"], False),
    ],
)
def test_chunks_are_a_text_from_beginning_to_end(chunks, is_text):
    assert (fault_in(TEXT, chunks) is None) is is_text


@pytest.mark.parametrize("chunking", [Chunking(), Chunking(200, 50), Chunking(100, 0)], ids=str)
def test_chunks_as_they_are_cut_are_the_text(chunking):
    text = " ".join(random.Random(1).choices(WORDS, k=6_000))
    chunks = cut(text, chunking)
    assert fault_in(text, chunks) is None
    assert fault_in(text, chunks[:-1]) is not None


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_finds_what_it_takes_out(name, tmp_path):
    assert (make(name, tmp_path) / MUTANTS[name].file).exists()


@pytest.mark.parametrize(("command", "told"), [("sleep 0.2", "did so after"), ("exit 3", "did so with status 3")])
def test_of_a_worker_that_ends_late_or_badly_one_hears_however_late_one_looks(command, told):
    endings = Endings(seconds=0.05)
    worker = subprocess.Popen(["sh", "-c", command])
    endings.expect(worker)
    worker.wait()
    assert [told in each for each in endings.wrong({worker})] == [True]
    assert not endings.wrong({worker})


def test_a_version_whose_processes_end_is_not_waited_for(tmp_path):
    version = Version(tmp_path, {}, tmp_path / "log")
    try:
        with pytest.raises(RuntimeError, match=r"ended: .*app\.cli.*/log"):
            version.start()
    finally:
        version.kill()
