"""The table of a worker's life."""

import itertools

import pytest

from llava_grpc.core.states import TRANSITIONS, WorkerEvent, WorkerState, next_state


def test_what_the_table_does_not_name_is_refused():
    for state, event in itertools.product(WorkerState, WorkerEvent):
        if (state, event) in TRANSITIONS:
            assert next_state(state, event) is TRANSITIONS[state, event]
        else:
            with pytest.raises(ValueError, match=state.value):
                next_state(state, event)


def test_dead_is_for_ever():
    assert not any(state is WorkerState.DEAD for state, _ in TRANSITIONS)


def test_every_state_can_be_reached_from_joining():
    reached, frontier = {WorkerState.JOINING}, [WorkerState.JOINING]
    while frontier:
        here = frontier.pop()
        for (state, _), after in TRANSITIONS.items():
            if state is here and after not in reached:
                reached.add(after)
                frontier.append(after)
    assert reached == set(WorkerState)


def test_every_living_state_can_end():
    for state in set(WorkerState) - {WorkerState.DEAD}:
        for ending in (WorkerEvent.EXPIRED, WorkerEvent.LEFT, WorkerEvent.REPLACED):
            assert next_state(state, ending) is WorkerState.DEAD
