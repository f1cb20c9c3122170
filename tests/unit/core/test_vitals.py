"""How long a stream may say nothing."""

from llava_grpc.core.vitals import (
    ASK_AFTER,
    ASK_FACTOR,
    FIRST_ASK_AFTER,
    FIRST_HUNG_AFTER,
    HUNG_AFTER,
    LOOK_EVERY,
    MOST_A_LOOK,
    Vitals,
    Watch,
)


def looks(vitals: Vitals, frames_at: list[float], until: float) -> float:
    """Look at a stream every LOOK_EVERY whose frames come at those times; the silence at the end."""
    due, silence, step = list(frames_at), 0.0, 0
    while (now := step * LOOK_EVERY) <= until + 1e-9:
        while due and due[0] <= now + 1e-9:
            vitals.frames += 1
            vitals.begun = vitals.frames > 1
            due.pop(0)
        silence = vitals.look(now)
        step += 1
    return silence


def asked_after(vitals: Vitals) -> float:
    """The least silence, in steps of 10 ms, that is worth a question."""
    return next(step / 100 for step in range(100_000) if vitals.worth_asking(step / 100))


def test_a_stream_that_speaks_often_is_asked_after_soon():
    vitals = Vitals()
    looks(vitals, [0.05 * step for step in range(40)], until=2.0)
    assert ASK_AFTER < asked_after(vitals) <= ASK_AFTER + 0.01


def test_a_slow_one_has_more_time_by_its_own_gaps():
    vitals = Vitals()
    silence = looks(vitals, [0.0, 1.0, 3.0, 4.0], until=5.0)
    assert abs(silence - 1.0) < 0.11
    assert ASK_FACTOR * (2.0 - 2 * LOOK_EVERY) <= asked_after(vitals) <= ASK_FACTOR * 2.0 + 0.01


def test_the_time_to_the_first_token_is_no_gap_of_the_answer():
    vitals = Vitals()
    looks(vitals, [0.0, 8.0, 8.1, 8.2], until=8.3)
    assert asked_after(vitals) <= ASK_AFTER + 0.01


def test_before_the_answer_the_first_sign_is_asked_for_after_a_while():
    assert FIRST_ASK_AFTER < asked_after(Vitals()) <= FIRST_ASK_AFTER + 0.01


def test_an_answer_excuses_twice_the_silence_and_a_frame_ends_the_excuse():
    vitals = Vitals()
    vitals.excuse(3.0)
    assert 6.0 < asked_after(vitals) <= 6.01
    vitals.frames = 1
    vitals.look(1.0)
    assert asked_after(vitals) <= FIRST_ASK_AFTER + 0.01


def test_silence_without_end_is_hung_though_the_worker_answers():
    vitals = Vitals()
    assert not vitals.is_hung(FIRST_HUNG_AFTER)
    assert vitals.is_hung(FIRST_HUNG_AFTER + 1)
    vitals.begun = True
    assert not vitals.is_hung(HUNG_AFTER)
    assert vitals.is_hung(HUNG_AFTER + 1)


def test_a_stall_of_the_watcher_is_nobodys_silence():
    watch, vitals = Watch(), Vitals()
    watch.look(100.0)
    vitals.look(watch.look(100.1))
    assert vitals.look(watch.look(160.0)) <= LOOK_EVERY + MOST_A_LOOK
