"""Who has which rows of the picture table, and that a row never means two pictures."""

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from llava_grpc.engines.pseudo_tokens import FlushNeededError, Held, NoRoomError, PictureEmbedding, RangeTable


def put(table: RangeTable, key: bytes, count: int) -> range:
    """Reserve as the engine does: flush where that is asked for."""
    try:
        rows = table.reserve(key, count)
    except FlushNeededError:
        table.flushed()
        rows = table.reserve(key, count)
    table.describe(key, tuple(rows))
    return rows


def test_rows_are_given_in_sequence_and_found_again():
    table = RangeTable(10)
    assert put(table, b"a", 4) == range(4)
    assert put(table, b"b", 4) == range(4, 8)
    assert table.find(b"a") == Held(range(4), (0, 1, 2, 3))
    assert table.find(b"c") is None


def test_what_is_in_use_is_never_evicted():
    table = RangeTable(8)
    put(table, b"a", 4)
    put(table, b"b", 4)
    with pytest.raises(NoRoomError):
        table.reserve(b"c", 4)
    table.release(b"b")
    assert put(table, b"c", 4) == range(4, 8)
    assert table.find(b"b") is None
    assert table.find(b"a") is not None


def test_of_what_is_out_of_use_the_one_used_longest_ago_goes_first():
    table = RangeTable(12, eviction_share=0)
    for key in (b"a", b"b", b"c"):
        put(table, key, 4)
        table.release(key)
    table.find(b"a")
    table.release(b"a")
    put(table, b"d", 4)
    assert table.find(b"b") is None
    assert table.find(b"a") is not None
    assert table.find(b"c") is not None


def test_rows_are_not_given_again_before_the_pages_are_flushed():
    table = RangeTable(4)
    put(table, b"a", 4)
    table.release(b"a")
    for _ in range(2):
        with pytest.raises(FlushNeededError):
            table.reserve(b"b", 4)
    table.flushed()
    assert table.reserve(b"b", 4) == range(4)


def test_a_flush_makes_room_for_several_pictures():
    table = RangeTable(100, eviction_share=0.5)
    for number in range(10):
        put(table, bytes([number]), 10)
        table.release(bytes([number]))
    with pytest.raises(FlushNeededError):
        table.reserve(b"x", 10)
    table.flushed()
    for number in range(5):
        table.reserve(bytes([100 + number]), 10)


def test_holes_of_evicted_neighbours_join():
    table = RangeTable(12)
    for key in (b"a", b"b", b"c"):
        put(table, key, 4)
    table.release(b"a")
    table.release(b"b")
    assert put(table, b"d", 8) == range(8)


def test_a_discarded_reservation_is_free_at_once():
    table = RangeTable(4)
    table.reserve(b"a", 4)
    table.discard(b"a")
    assert table.reserve(b"b", 4) == range(4)


def test_what_is_only_reserved_is_not_found():
    table = RangeTable(4)
    rows = table.reserve(b"a", 2)
    assert table.find(b"a") is None
    table.describe(b"a", ())
    assert table.find(b"a") == Held(rows, ())


class Histories(RuleBasedStateMachine):
    """Random histories: a row that is in a KV page that can be matched always means the picture it meant there."""

    def __init__(self):
        super().__init__()
        self.table = RangeTable(20)
        self.uses: list[tuple[bytes, range]] = []  # of open requests, whose pages no flush drops
        self.pages: dict[int, bytes] = {}  # row -> picture whose features a matchable page holds for it

    @rule(key=st.sampled_from([bytes([number]) for number in range(8)]), count=st.integers(1, 9))
    def ask(self, key, count):
        held = self.table.find(key)
        if held is None:
            try:
                rows = self.table.reserve(key, count)
            except FlushNeededError:
                self.flush()
                rows = self.table.reserve(key, count)
            except NoRoomError:
                return
            self.table.describe(key, tuple(rows))
        else:
            rows = held.rows
        for row in rows:
            assert self.pages.get(row, key) == key
            self.pages[row] = key
        self.uses.append((key, rows))

    @precondition(lambda self: self.uses)
    @rule(data=st.data())
    def finish(self, data):
        use = data.draw(st.sampled_from(self.uses))
        self.uses.remove(use)
        self.table.release(use[0])

    @rule()
    def flush(self):
        used = {row for _, rows in self.uses for row in rows}
        self.pages = {row: key for row, key in self.pages.items() if row in used}
        self.table.flushed()

    @invariant()
    def used_pictures_are_held(self):
        for key, rows in set(self.uses):
            held = self.table.find(key)
            assert held is not None
            assert held.rows == rows
            self.table.release(key)


Histories.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


class Scaled(torch.nn.Module):
    """An embedding that scales inside, as some models' do."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Embedding(5, 3)

    def forward(self, ids):
        return self.inner(ids) * 7


def test_the_embedding_looks_pictures_up_and_leaves_words_to_the_model():
    words = Scaled()
    embedding = PictureEmbedding(words, vocabulary=5, rows=4, width=3)
    features = torch.arange(6.0).reshape(2, 3)
    embedding.write(range(1, 3), features)
    with torch.no_grad():
        got = embedding(torch.tensor([[4, 6, 0, 7]]))
    assert torch.equal(got[0, 1], features[0])
    assert torch.equal(got[0, 3], features[1])
    assert torch.equal(got[0, [0, 2]], words(torch.tensor([4, 0])))
    assert got.shape == (1, 4, 3)


def test_the_table_keeps_its_address():
    embedding = PictureEmbedding(Scaled(), vocabulary=5, rows=4, width=3)
    address = embedding.features.data_ptr()
    embedding.write(range(4), torch.ones(4, 3))
    assert embedding.features.data_ptr() == address
