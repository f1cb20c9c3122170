"""What simulated workers compute with keeps the law of exact resume, as the real engines do."""

from dataclasses import replace
from random import Random

import pytest

from llava_grpc.core.stream import Delta, FinishReason
from llava_grpc.engines.base import Ended
from llava_grpc.errors import SamplingInvalidError
from llava_grpc.testing.histories.engine import LONGEST, Sequence, undisturbed
from llava_grpc.testing.histories.load import draw_orders


def requests(count: int):
    orders = draw_orders(Random(1), ("m",), ("u",), count=count, begin=0.0, end=1.0)
    return [order.request.with_seed(7) for order in orders]


def test_an_answer_cut_anywhere_goes_on_as_if_nothing_had_been():
    ends = set()
    for request in requests(200):
        sequence, deltas = Sequence(request), []  # type: Sequence, list[Delta]
        while not sequence.over:
            deltas += [event for event in sequence.step() if isinstance(event, Delta)]
        whole = undisturbed(request)
        assert "".join(delta.text for delta in deltas) == whole.text
        ends.add((whole.end.reason, bool(whole.end.stop_sequence)))
        for cut in range(len(deltas) + 1):
            emitted = tuple(token for delta in deltas[:cut] for token in delta.token_ids)
            rest = undisturbed(replace(request, emitted_token_ids=emitted))
            assert rest.text == "".join(delta.text for delta in deltas[cut:])
            assert emitted + rest.token_ids == whole.token_ids
            assert rest.end == whole.end
    assert ends == {(FinishReason.STOP, False), (FinishReason.STOP, True), (FinishReason.LENGTH, False)}


def test_a_cancelled_answer_ends_with_the_next_step():
    sequence = Sequence(requests(1)[0])
    sequence.cancelled = True
    (end,) = sequence.step()
    assert isinstance(end, Ended)
    assert end.reason is FinishReason.CANCELLED
    assert sequence.over


def test_what_cannot_be_a_log_is_refused():
    request = requests(1)[0]
    with pytest.raises(SamplingInvalidError):
        Sequence(replace(request, emitted_token_ids=(1,) * (LONGEST + 1)))
