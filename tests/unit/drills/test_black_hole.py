import pytest

from drills import black_hole


def test_without_the_right_to_make_networks_the_drill_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(black_hole.NotHereError, match="needs root"), black_hole.link():
        pass
