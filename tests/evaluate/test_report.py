from __future__ import annotations

import base64
import copy
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from tunesmith.evaluate import report as page

HOSTILE = (
    '<script>alert(1)</script>"></td></pre><img src=x onerror=alert(1)> javascript:alert(1) '
    "{{ 7*7 }} </style><a href='https://example.org'>\u202egnp.exe\x00\x1b[31m\ud800\x85"
)
ALLOWED = (
    "html head meta title style body header p code nav a main section h1 h2 h3 h4 h5 dl div dt dd "
    "b small strong ul li figure figcaption svg g text line circle polyline rect table caption "
    "thead tbody tr th td details summary pre article span footer"
)
PARTS = "verdict advice arms comparisons training ledger answers data more settings again"
UNMEASURED = "model data arms primary comparisons overfitting advice verdict cost timings noise"


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text: list[str] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def parse(html: str) -> Tags:
    tags = Tags()
    tags.feed(html)
    tags.close()
    assert tags.open == []
    return tags


def score(value: float) -> dict[str, Any]:
    return {"value": value, "low": value - 0.05, "high": value + 0.05, "n": 8}


def arm(name: str, value: float) -> dict[str, Any]:
    gone = {"value": None, "reason": "no price is known"}
    return {
        "name": name,
        "kind": name,
        "scores": {"exact": score(value), "macro_f1": score(value)},
        **{"tokens_in": 10, "tokens_out": 5, "latency_p50": 0.1, "latency_p95": 0.2},
        "usd_per_1000": gone,
    }


def a_report() -> dict[str, Any]:
    return {
        "schema": "tunesmith.report/1",
        "run": "run-1",
        "model": {"base": "tiny", "revision": "abc", "tuned": "ft:tiny:me:run:1"},
        "data": {
            **{"rows": 100, "used": 97, "rejected": 1, "duplicates": 2, "train": 80},
            **{"validation": 9, "test": 8, "trained_tokens": 4321, "masked_tokens": 9876},
            "truncated_rows": 0,
        },
        "arms": [arm("base", 0.25), arm("tuned", 0.75)],
        "primary": "exact",
        "comparisons": [
            {
                **{"a": "tuned", "b": "base", "metric": "exact", "n": 8},
                **{"difference": 0.5, "low": 0.1, "high": 0.8, "p": 0.004},
            }
        ],
        "forgetting": {"value": None, "reason": "forgetting was switched off"},
        "overfitting": {"best_step": 2, "train_loss": 1.0, "validation_loss": 1.2},
        "advice": {"approach": "fine-tuning", "reasons": ["it measured best"]},
        "verdict": {"ship": True, "sentence": "Ship it: 0.75 against 0.25."},
        "cost": {"usd": 0.5},
        "timings": {"train": 61.0, "report": 0.5},
    }


def rows(scores: list[float], prompt: str = "q", output: str = "a") -> list[dict[str, Any]]:
    return [
        {
            **{"id": f"test:{index}", "prompt": prompt, "reference": "r", "output": output},
            "scores": {"exact": value},
        }
        for index, value in enumerate(scores)
    ]


def inputs() -> dict[str, Any]:
    return {
        "samples": {"tuned": rows([1, 1, 0, 0]), "base": rows([1, 0, 1, 0])},
        "events": [
            {"type": "validation", "step": 0, "loss": 3.0},
            {"type": "step", "step": 1, "loss": 2.5},
            {"type": "step", "step": 2, "loss": float("nan")},
            {"type": "validation", "step": 2, "loss": 2.0},
            {"type": "stage", "name": "train", "state": "done", "seconds": 1},
        ],
        "findings": [
            {
                **{"check": "leak", "severity": "warning", "rows": list(range(11))},
                **{"message": "eleven rows leak", "remedy": "drop them"},
            },
            {
                **{"check": "keys", "severity": "error", "rows": [3]},
                **{"message": "a key", "remedy": "remove it"},
            },
        ],
        "recipe": "train:\n  seed: 7\n",
        "environment": {"versions": {"torch": "2"}, "seeds": {"split": 7}, "data_hashes": ["f00"]},
        "command": "tunesmith run data.jsonl --seed 7",
    }


def poisoned(value: Any, keep: frozenset[str] = frozenset({"severity", "kind", "type"})) -> Any:
    """The same structure with every text, names of metrics and arms too, made hostile."""
    if isinstance(value, str):
        return value + HOSTILE
    if isinstance(value, list):
        return [poisoned(item) for item in value]
    if isinstance(value, dict):
        return {k: v if k in keep else poisoned(v) for k, v in value.items()}
    return value


def test_the_page_has_its_parts_in_order() -> None:
    html = page.render(a_report(), **inputs())
    parse(html)
    parts = re.findall(r'<section id="(\w+)"', html)
    assert " ".join(parts) == PARTS
    for text in (
        "Ship it: 0.75",
        "9,876",
        "tuned is better",
        "1 min 01 s",
        "and 3 more",
        "--seed 7",
    ):
        assert text in html
    assert html.index("a key") < html.index("eleven rows leak")


def test_hostile_data_never_becomes_markup() -> None:
    report, given = poisoned(a_report()), poisoned(inputs())
    metric = report["primary"]
    for each in report["arms"]:
        each["scores"] = {metric: score(0.5), HOSTILE: {"value": None, "reason": HOSTILE}}
        each["variants"] = [{HOSTILE: HOSTILE}]
    given["samples"] = {
        name: [{**row, "scores": {metric: 1.0}} for row in sample]
        for name, sample in (*given["samples"].items(), (HOSTILE, given["samples"]["base"]))
    }
    html = page.render(report, **given)
    tags = parse(html)
    assert set(tags.names) <= set(ALLOWED.split())
    names = {name for name, _ in tags.attributes}
    assert not {name for name in names if name.startswith("on")} | (names & {"src", "style"})
    assert not re.search(r"[\x00-\x08\x0b-\x1f\u202a-\u202e\ud800-\udfff\x80-\x9f]", html)
    shown = "".join(tags.text)
    for text in (
        "<script>alert(1)</script>",
        "{{ 7*7 }}",
        "⟨U+202E⟩",
        "⟨U+0000⟩",
        "⟨U+001B⟩[31m",
        "⟨U+D800⟩",
    ):
        assert text in shown
    assert html.encode("utf-8")


def test_the_policy_allows_this_style_sheet_and_nothing_else() -> None:
    html = page.render(a_report(), **inputs())
    style = re.search(r"<style>(.*?)</style>", html, re.S)
    assert style
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"default-src 'none'; style-src 'sha256-{digest}'" in html
    assert html.count("<style") == 1
    assert "style=" not in html


def test_the_page_refers_to_nothing_outside_itself() -> None:
    html = page.render(a_report(), **inputs())
    tags = parse(html)
    links = [value for name, value in tags.attributes if name in {"href", "src", "xlink:href"}]
    assert links
    assert all(f'id="{(link or "")[1:]}"' in html for link in links)
    assert not re.search(r"https?:|url\(|@import", html)


@pytest.mark.parametrize("part", UNMEASURED.split())
def test_a_part_that_was_not_measured_shows_its_reason(part: str) -> None:
    report = {**a_report(), part: {"value": None, "reason": f"no {part} because of rain"}}
    html = page.render(report, **inputs())
    parse(html)
    assert f"no {part} because of rain" in html
    assert "forgetting was switched off" in html


def test_an_unmeasured_figure_of_an_arm_names_the_arm_and_the_reason() -> None:
    html = page.render(a_report(), **inputs())
    assert "usd per 1000 of base, tuned: not measured, no price is known" in html


def test_an_empty_run_still_gives_a_page() -> None:
    html = page.render(
        {}, samples={}, events=[], findings=[], recipe="", environment={}, command=""
    )
    parse(html)
    assert "No verdict" in html
    assert "No training steps are recorded" in html


def test_losses_wins_and_both_kinds_of_ties_are_all_picked() -> None:
    base, tuned = [0.0] * 90 + [1.0] * 10, [1.0] * 80 + [0.0] * 13 + [1.0] * 7
    picked = page.pick({"base": rows(base), "tuned": rows(tuned)}, "exact")
    counts = [sum(row.group == group for row in picked) for group in page.ORDER]
    assert counts == [3, 6, 6, 5]
    assert [row.group for row in picked[:3]] == ["worse"] * 3
    assert [answer.arm for answer in picked[0].answers] == ["base", "tuned"]
    assert [answer.score for answer in picked[0].answers] == [1.0, 0.0]


def test_one_loss_among_many_wins_is_never_hidden() -> None:
    base, tuned = [0.0] * 400 + [1.0], [1.0] * 400 + [0.0]
    picked = page.pick({"base": rows(base), "tuned": rows(tuned)}, "exact", count=1)
    assert [(row.group, row.id) for row in picked] == [("worse", "test:400")]


def test_picking_depends_on_the_rows_and_not_on_their_order() -> None:
    samples = {"base": rows([0.0] * 60), "tuned": rows([0.0, 1.0] * 30)}
    turned = {name: sample[::-1] for name, sample in samples.items()}
    assert page.pick(samples, "exact") == page.pick(turned, "exact")
    assert page.render(a_report(), **inputs()) == page.render(a_report(), **copy.deepcopy(inputs()))


def test_graded_scores_that_hardly_differ_count_as_the_same() -> None:
    samples = {"base": rows([10.0, 80.0, 20.0, 60.0]), "tuned": rows([12.0, 81.0, 70.0, 30.0])}
    groups = {row.id[-1]: row.group for row in page.pick(samples, "exact")}
    assert groups == {"0": "low", "1": "high", "2": "better", "3": "worse"}


def test_a_row_that_one_arm_did_not_answer_is_left_out() -> None:
    picked = page.pick({"base": rows([0.0, 1.0]), "tuned": rows([1.0])}, "exact")
    assert [row.id for row in picked] == ["test:0"]


def test_a_long_answer_is_cut_and_says_so() -> None:
    long = rows([0.0], output="<" * 100_000)
    html = page.render(a_report(), **{**inputs(), "samples": {"base": long, "tuned": long}})
    assert "[… 96,000 more characters]" in html
    assert len(html) < 100_000


def test_a_resumed_run_draws_each_step_once() -> None:
    events = [{"type": "step", "step": step, "loss": loss} for step, loss in ((1, 9.0), (2, 8.0))]
    again = [*events, {"type": "step", "step": 2, "loss": 7.0}]
    html = page.render(a_report(), **{**inputs(), "events": again})
    assert "train loss from 9.00 at step 1 to 7.00 at step 2" in html


def test_what_people_decide_by_has_its_own_table() -> None:
    report = a_report()
    told = {
        "edit_effort": {**score(0.25), "better": "lower"},
        "valid_format": {"value": None, "reason": "free text has no form to keep"},
        "edits_saved": {**score(0.5), "p": 0.01, "better": "higher"},
    }
    alone = {"p50": 0.75, "fastest": 0.5, "slowest": 1.5, "n": 6}
    for part in report["arms"]:
        part["practical"] = told
        part["latency"] = {"rows_at_once": 64, "alone": alone}
    text = " ".join(parse(page.render(report, **inputs())).text)
    assert "edit effort ↓" in text
    assert "edits saved ↑" in text
    assert "free text has no form to keep" in text
    assert "one row at a time" in text


@pytest.mark.parametrize(
    ("p", "said"), [(0.01, "tuned is better"), (0.06, "no difference shown: p, for as many")]
)
def test_a_difference_is_shown_by_its_interval_and_its_adjusted_p(p: float, said: str) -> None:
    report = a_report()
    part = report["comparisons"][0]
    part.update({"a": "tuned", "b": "base", "low": 0.1, "high": 0.3, "p": 0.01, "p_adjusted": p})
    assert said in " ".join(parse(page.render(report, **inputs())).text)


def test_rows_behind_wrong_answers_are_shown_escaped_and_only_where_there_are_any() -> None:
    near = {"row": "train.jsonl:12", "cosine": 0.93, "answer": HOSTILE, "carries": True}
    item = {
        **{"id": "test:1", "prompt": HOSTILE, "reference": "r", "output": HOSTILE},
        **{"sentence": "answered as train.jsonl:12 does", "by_prompt": [near], "by_answer": []},
    }
    shown = page.render({**a_report(), "behind": [item]}, **inputs())
    parse(shown)
    assert "answered as train.jsonl:12 does" in shown
    assert "<script>" not in shown
    for nothing in ([], {"value": None, "reason": "left out"}):
        assert "Behind wrong" not in page.render({**a_report(), "behind": nothing}, **inputs())
    assert "Behind wrong" not in page.render(a_report(), **inputs())
