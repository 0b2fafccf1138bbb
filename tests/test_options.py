"""What the command line makes of its options."""

from __future__ import annotations

from tunesmith.options import recipe_of


def test_options_reach_the_recipe() -> None:
    recipe = recipe_of(
        ["a.jsonl", "b.csv"],
        model="m",
        form="alpaca",
        columns=["prompt=question"],
        settings=["train.epochs=2", "train.seed=1"],
        validation="0.25",
        test="held.jsonl",
        graders=["exact"],
        seed=7,
        limit=9,
    )
    assert recipe.data.files == ("a.jsonl", "b.csv")
    assert (recipe.model.name, recipe.data.format) == ("m", "alpaca")
    assert recipe.data.map == {"prompt": "question"}
    assert (recipe.data.validation, recipe.data.test, recipe.data.limit) == (0.25, "held.jsonl", 9)
    assert recipe.evaluate.graders == ("exact",)
    assert (recipe.train.epochs, recipe.train.seed) == (2, 7)
    assert recipe_of([], validation="40", test="auto").data.validation == 40


def test_documents_may_be_given_beside_a_setting_that_needs_them() -> None:
    found = recipe_of(["a"], docs=["pages"], settings=["evaluate.arms=[base,rag]"])
    assert (found.data.docs, found.arms) == (("pages",), ("base", "rag"))
