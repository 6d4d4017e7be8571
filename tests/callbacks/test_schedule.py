"""The schedule: powers, multiples, named steps, the last step, and refusals."""

import pytest
from jsonargparse import ArgumentParser

from callbacks.schedule import Schedule


def test_default_is_step_zero_the_powers_of_two_and_the_last_step():
    schedule = Schedule()
    assert schedule.up_to(40) == [0, 1, 2, 4, 8, 16, 32, 40]
    assert schedule.up_to(32) == [0, 1, 2, 4, 8, 16, 32]


def test_union_is_sorted_and_free_of_duplicates():
    schedule = Schedule(base=2, every=4, steps=(8, 3, 3, 30))
    assert schedule.up_to(20) == [0, 1, 2, 3, 4, 8, 12, 16, 20]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"base": 3, "every": 7},
        {"base": None, "every": 10, "last": False},
        {"base": 0, "steps": (5, 17)},
        {"base": 10, "first": 3, "steps": (1, 50)},
        {"first": 90},
    ],
)
def test_the_list_holds_exactly_the_steps_that_are_due(options):
    schedule = Schedule(**options)
    for max_steps in (0, 1, 64, 100):
        assert schedule.up_to(max_steps) == [step for step in range(max_steps + 1) if schedule.due(step, max_steps)]


def test_membership_does_not_know_the_last_step_but_due_does():
    schedule = Schedule(base=2)
    assert 100 not in schedule
    assert schedule.due(100, 100)
    assert not schedule.due(100, None)
    assert not schedule.due(100, -1)
    assert not Schedule(base=2, last=False).due(100, 100)


def test_steps_before_the_first_are_left_out():
    schedule = Schedule(base=2, every=5, first=6)
    assert schedule.up_to(16) == [8, 10, 15, 16]
    assert 0 not in schedule
    assert 4 not in schedule


def test_large_steps_are_exact():
    schedule = Schedule(base=3)
    assert 3**40 in schedule
    assert 3**40 + 1 not in schedule
    assert -1 not in schedule
    assert "4" not in schedule


@pytest.mark.parametrize(
    ("options", "culprit"),
    [
        ({"base": 1}, "base is 1"),
        ({"base": 2.5}, "base is 2.5"),
        ({"base": -2}, "base is -2"),
        ({"every": -3}, "every is -3"),
        ({"every": 0.5}, "every is 0.5"),
        ({"first": -1}, "first is -1"),
        ({"steps": (3, -7)}, "steps holds -7"),
        ({"steps": (True,)}, "steps holds True"),
        ({"base": None, "last": False}, "no step is in it"),
    ],
)
def test_nonsense_is_refused_by_name(options, culprit):
    with pytest.raises(ValueError, match=culprit) as caught:
        Schedule(**options)
    assert "\n" not in str(caught.value)


def test_a_negative_end_is_refused():
    with pytest.raises(ValueError, match="max_steps is -1"):
        Schedule().up_to(-1)


def test_yaml_builds_a_schedule(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("schedule:\n  base: null\n  every: 100\n  first: 100\n  steps: [1, 7, 150]\n  last: false\n")
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(Schedule, "schedule")
    schedule = parser.instantiate(parser.parse_args(["--config", str(path)])).schedule
    assert schedule == Schedule(base=None, every=100, first=100, steps=(1, 7, 150), last=False)
    assert schedule.up_to(320) == [100, 150, 200, 300]
