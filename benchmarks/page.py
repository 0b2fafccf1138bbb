"""Writes docs/benchmarks.md and its drawing from benchmarks/results: `python benchmarks/page.py`."""

from __future__ import annotations

import json
import os
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
DOCS = Path(os.environ.get("BENCH_DOCS", HERE.parent / "docs"))
WIDTH, LABEL, BAND, PLOT = 820, 250, 44, 150
INK, SOFT, OURS, PEER = "#7a8088", "#7a808855", "#2f81f7", "#d29922"
NAMES = {"trl": "TRL"}
WORK = {
    "sft-short": "training, short shared prompt",
    "sft-long": "training, long shared prompt",
    "sft-apart": "training, nothing shared",
    "sample-short-transformers": "sampling, short prompts",
    "sample-short-llama.cpp": "sampling, short prompts",
    "sample-long-transformers": "sampling, long shared prompt",
    "sample-long-llama.cpp": "sampling, long shared prompt",
}

ABOUT = """\
# Benchmarks

Ratios of one run on one machine, so that a slow minute hits both sides:
{machine}.
The same model ({model}), rows, adapter (rank 16 on all linear layers), rows a step and number of
steps. The peer runs in the fastest of its configurations (weights, padding, batch, allocator), each tried first; then
both take {turns} turns, one after the other, and the first turn of each is left out. Ranges are the
slowest turn of one side against the fastest of the other.

![Ratios to the peer, and loss curves of both](benchmarks.svg)

{table}

- **Wall** and **processor** are ratios of work done a second; above 1 tunesmith is ahead. **Memory** is our
  peak of resident memory over the peer's; below 1 we need less. **System** is the share of our
  processor time that the operating system took.
- **Loss** is the mean difference of both loss curves as a share of their mean, on the same rows in the
  same order from the same adapter.
- TRL is SFTTrainer with PEFT. transformers samples by `generate` in static batches; llama.cpp by its
  server, on the 4-bit file that the model is made of (its weights are read at a quarter of the bytes).

{oracle}Again on your machine, in about an hour: `make bench`; one line of the table:
`make bench CONTESTS=sft-long`. Every figure, every turn's range and every configuration tried is in
[benchmarks/results](../benchmarks/results).
"""

ORACLE = """\
In float32, {steps} steps on the same rows in the same order from the same adapter: the losses of
tunesmith and TRL differ by {mean} of their mean, {largest} nats at most, {first} in the first step
(`make oracle`).

"""


def page(results: dict[str, Any]) -> str:
    """The page, from what bench.py keeps."""
    head = (
        "| work | unit | tunesmith | peer | its fastest configuration | wall | processor | memory "
        "| system | loss |\n|---|---|---|---|---|---|---|---|---|---|"
    )
    lines = [head, *(_line(name, kept) for name, kept in results.items())]
    first = next(iter(results.values()))
    machine = first["machine"]
    told = (
        f"{machine['cores']} cores, {machine['processor']}"
        f"{' with AVX-512 bf16' if machine['bf16'] else ''}, torch {machine['torch']}"
    )
    return ABOUT.format(
        machine=told,
        model=first["model"],
        turns=first["turns"],
        table="\n".join(lines),
        oracle=_oracle(),
    )


def _oracle() -> str:
    path = HERE / "results/oracle.json"
    if not path.is_file():
        return ""
    kept = json.loads(path.read_text())
    return ORACLE.format(
        steps=kept["steps"],
        mean=f"{kept['mean difference']:.2%}",
        largest=f"{kept['largest difference']:.2g}",
        first=f"{kept['first step']:.2g}",
    )


def _line(name: str, kept: dict[str, Any]) -> str:
    peer = kept["peer"]
    ours, theirs = kept["tunesmith"], kept[peer]
    low, high = _range(kept)
    chosen = ", ".join(f"{key} {_word(value)}" for key, value in kept["configuration"].items())
    losses = kept["losses"]
    cells = [
        WORK[name],
        kept["unit"],
        f"{ours['per second']['median']:.3g}",
        f"{NAMES.get(peer, peer)} {theirs['per second']['median']:.3g}",
        chosen,
        f"**{kept['ratio']:.1f}** ({low:.1f} to {high:.1f})",
        f"{kept['ratio of cpu']:.1f}",
        f"{kept['memory']:.2f}",
        f"{ours['system time']:.0%}",
        f"{losses['mean difference']:.2%}" if losses else "",
    ]
    return "| " + " | ".join(cells) + " |"


def _word(value: object) -> str:
    return (
        {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )


def _range(kept: dict[str, Any]) -> tuple[float, float]:
    ours, theirs = (kept[who]["per second"]["range"] for who in ("tunesmith", kept["peer"]))
    return ours[0] / theirs[1], ours[1] / theirs[0]


def drawing(results: dict[str, Any]) -> str:
    """Ratios as bars with their ranges, and under them the loss curves."""
    most = max(_range(kept)[1] for kept in results.values())
    scale = (WIDTH - LABEL - 70) / most
    parts: list[str] = []
    for row, (name, kept) in enumerate(results.items()):
        y = 14 + row * BAND
        low, high = _range(kept)
        parts += [
            f'<text x="{LABEL - 12}" y="{y + 12}" text-anchor="end">{escape(WORK[name])}</text>',
            f'<text x="{LABEL - 12}" y="{y + 27}" text-anchor="end" class="soft">'
            f"against {escape(NAMES.get(kept['peer'], kept['peer']))}</text>",
            f'<rect x="{LABEL}" y="{y}" width="{kept["ratio"] * scale:.1f}" height="22" '
            f'fill="{OURS}"/>',
            f'<path d="M{LABEL + low * scale:.1f} {y + 11}H{LABEL + high * scale:.1f}" '
            f'stroke="{INK}" stroke-width="2"/>',
            f'<text x="{LABEL + max(high, kept["ratio"]) * scale + 8:.1f}" y="{y + 16}">'
            f"{kept['ratio']:.1f} x</text>",
        ]
    foot = 14 + len(results) * BAND
    one = LABEL + scale
    parts.append(
        f'<path d="M{one:.1f} 8V{foot - 8}" stroke="{INK}" stroke-dasharray="3 3"/>'
        f'<text x="{one:.1f}" y="{foot + 6}" text-anchor="middle" class="soft">as fast</text>'
    )
    curves = {name: kept for name, kept in results.items() if kept["losses"]}
    top = foot + 34
    width = (WIDTH - 20 * (len(curves) - 1)) / max(1, len(curves))
    for place, (name, kept) in enumerate(curves.items()):
        parts += _curves(WORK[name], kept, place * (width + 20), top, width)
    height = top + (PLOT + 50 if curves else 0)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" '
        f'font-family="system-ui, sans-serif" font-size="14" fill="{INK}">'
        "<style>.soft{font-size:12px}</style>" + "".join(parts) + "</svg>\n"
    )


def _curves(title: str, kept: dict[str, Any], x: float, y: float, width: float) -> list[str]:
    losses = kept["losses"]
    most = max(*losses["tunesmith"], *losses["peer"])
    parts = [
        f'<text x="{x:.1f}" y="{y}" class="soft">loss: {escape(title)}</text>',
        f'<path d="M{x:.1f} {y + 10}V{y + 10 + PLOT}H{x + width:.1f}" fill="none" '
        f'stroke="{SOFT}"/>',
    ]
    for who, colour, stroke in (("peer", PEER, 5), ("tunesmith", OURS, 2)):
        series = losses[who]
        step = width / max(1, len(series) - 1)
        points = " ".join(
            f"{x + place * step:.1f},{y + 10 + PLOT * (1 - loss / most):.1f}"
            for place, loss in enumerate(series)
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="{stroke}"/>'
        )
    parts.append(
        f'<text x="{x:.1f}" y="{y + PLOT + 28}" class="soft"><tspan fill="{OURS}">tunesmith</tspan> '
        f'over <tspan fill="{PEER}">{escape(NAMES.get(kept["peer"], kept["peer"]))}</tspan>, {len(losses["peer"])} steps</text>'
    )
    return parts


def main() -> None:
    """Read the results, write the page and its drawing."""
    found = {
        name: json.loads(path.read_text())
        for name in WORK
        if (path := HERE / "results" / f"{name}.json").is_file()
    }
    (DOCS / "benchmarks.md").write_text(page(found))
    (DOCS / "benchmarks.svg").write_text(drawing(found))


if __name__ == "__main__":
    main()
