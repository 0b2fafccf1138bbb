from __future__ import annotations

import math
from statistics import fmean

import pytest

from tunesmith.evaluate import memorising
from tunesmith.evaluate.memorising import Trained, Written, exposure, verbatim

TEXT = "the old clock in the hall strikes seven times and nobody ever knows why it does"
LATER = "rain on the roof"


def test_a_run_of_words_is_found_whatever_stands_around_it() -> None:
    trained = Trained({"a:1": TEXT, "a:2": LATER})
    found = trained.repeat(Written("t:1", f"Well! {TEXT.upper()}, she said.", "tell me"))
    assert found == memorising.Repeat("t:1", 16, "a:1")
    half = " ".join(TEXT.split()[2:14])
    assert trained.repeat(Written("t:2", half, "")) == memorising.Repeat("t:2", 12, "a:1")
    eleven = " ".join(TEXT.split()[:11])
    assert trained.repeat(Written("t:3", eleven, "")) is None


def test_what_the_prompt_or_the_reference_has_is_not_counted() -> None:
    trained = Trained({"a:1": TEXT})
    assert trained.repeat(Written("t:1", TEXT, f"Correct this: {TEXT}")) is None


def test_the_form_of_many_answers_is_nobodys_text() -> None:
    two = Trained({f"a:{n}": f"{TEXT} {n}" for n in range(2)})
    three = Trained({f"a:{n}": f"{TEXT} {n}" for n in range(3)})
    assert two.repeat(Written("t", TEXT, "")) is not None
    assert three.repeat(Written("t", TEXT, "")) is None


def test_scripts_without_spaces_have_a_word_a_character() -> None:
    trained = Trained({"a:1": "古い時計は七時に鳴りますが誰も知りません"})
    assert trained.repeat(Written("t", "「古い時計は七時に鳴りますが」", "")) is not None


def test_counts_and_rows_of_those_who_repeat() -> None:
    trained = Trained({"a:1": TEXT})
    answers = [Written("t:1", TEXT, ""), Written("t:2", "no", ""), Written("t:3", TEXT, TEXT)]
    found = verbatim(trained, answers)
    assert (found["answers"], found["repeating"], found["longest"]) == (3, 1, 16)
    assert found["rows"] == [{"id": "t:1", "words": 16, "of": "a:1"}]
    assert found["share"]["low"] < found["share"]["value"] == pytest.approx(1 / 3)
    assert verbatim(trained, [])["value"] is None


def test_personal_data_counts_where_training_had_it_and_the_row_itself_did_not() -> None:
    def find(text: str) -> list[str]:
        return [word for word in text.split() if "@" in word]

    answers = [
        Written("t:1", "write to Ann@Corp.org now", "who?"),
        Written("t:2", "write to ann@corp.org now", "my address is ann@corp.org"),
        Written("t:3", "write to new@corp.org now", "who?"),
    ]
    found = memorising.personal(["ann@corp.org or bob@corp.org"], answers, find)
    assert found == {"in_training": 2, "repeated": 1, "answers": 3, "rows": ["t:1"]}
    assert "ann" not in str(found).lower()


def test_exposure_by_hand() -> None:
    # Among 7 others: first of 8 is 3 bits, second 2, last 0.
    others = [float(-n) for n in range(1, 8)]
    assert exposure(0.0, others) == 3.0
    assert exposure(-1.5, others) == 2.0
    assert exposure(-9.0, others) == 0.0


def test_a_secret_that_was_never_seen_is_at_what_chance_gives() -> None:
    values = [float(n) for n in range(memorising.ALTERNATIVES + 1)]
    ranks = [exposure(v, [w for w in values if w != v]) for v in values]
    assert fmean(ranks) == pytest.approx(1 / math.log(2), abs=0.05)
    found = memorising.exposed(ranks)
    assert found["exposure"]["low"] < found["by_chance"] < found["exposure"]["high"]
    assert max(ranks) == found["most"] == 7.0


def test_canaries_are_the_same_for_a_seed_and_differ_from_their_alternatives() -> None:
    made = memorising.canaries(8, 3)
    assert made == memorising.canaries(8, 3) != memorising.canaries(8, 4)
    assert memorising.canaries(2, 3) == made[:2]
    assert len({canary.prompt for canary in made}) == 8
    assert all(canary.secret not in canary.alternatives for canary in made)
    assert {len(canary.alternatives) for canary in made} == {127}


def test_the_gap_at_each_validation_is_to_the_steps_before_it() -> None:
    events = [
        {"type": "validation", "step": 0, "loss": 3.0},
        {"type": "step", "step": 1, "loss": 2.0},
        {"type": "step", "step": 2, "loss": 1.0},
        {"type": "validation", "step": 2, "loss": 2.0},
        {"type": "step", "step": 3, "loss": 0.5},
        {"type": "validation", "step": 3, "loss": 2.5},
    ]
    assert memorising.gaps(events) == [
        {"step": 2, "train_loss": 1.5, "validation_loss": 2.0, "gap": 0.5},
        {"step": 3, "train_loss": 0.5, "validation_loss": 2.5, "gap": 2.0},
    ]
