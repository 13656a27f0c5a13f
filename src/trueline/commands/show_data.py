"""`trueline data show`: pairs as the model will see them, and what a set of pairs has in it besides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text as RichText

from trueline.data.chat import ChatTokenizer
from trueline.data.check import BadRow, DataCheck, scan
from trueline.data.loading import load_pairs
from trueline.data.masks import RenderedPair, Side, render_pair
from trueline.data.survey import Finding, Survey, survey
from trueline.errors import InputError
from trueline.seeds import generator
from trueline.study.document import Document, Excerpt, Fold, Section, Table, Text, save
from trueline.study.document import Figure as Picture
from trueline.study.drawing import SERIES, draw
from trueline.types import Pair

__all__ = ["Shown", "collect", "page", "print_examples", "write_page"]

NAMED = 12  # rows listed under each name
LOOKS = {"read": "dim", "trained": "black on pale_green1", "cut": "strike red"}
WHAT = {
    "duplicate": "Pairs that stand in the file more than once",
    "reversed": "Pairs that stand in the file both ways round",
    "contradiction": "Responses that are chosen in one pair of a prompt and rejected in another",
    "leak": "Conversations that stand in the evaluation file too",
}


@dataclass(frozen=True)
class Shown:
    """A file's check, its pairs (all of them), rows that were dropped with the name they are counted under, the survey,
    and the pairs as tokens: some examples whole, of all the counts."""

    check: DataCheck
    dropped: list[tuple[BadRow, str]]
    survey: Survey
    examples: list[RenderedPair]
    tokens: dict[str, list[int]]
    cut: dict[str, list[str]]
    tokenizer: str
    limits: tuple[int, int]
    evaluation: str


def collect(
    files: Sequence[str],
    *,
    format: str = "auto",
    columns: Sequence[str] = (),
    evaluation: Sequence[str] = (),
    model: Path | None = None,
    template: str = "",
    vocab_size: int = 2048,
    limits: tuple[int, int] = (64, 40),
    examples: int = 3,
) -> Shown:
    """Reads everything; with no `model` a tokenizer is trained on the pairs, as a study of the file would.

    `limits` are the longest prompt and the longest response in tokens. Examples are the first pair, then others drawn
    with a fixed seed, so that a sorted file does not show one kind alone. Raises `InputError` where no pair is left.
    """
    pairs: list[Pair] = []
    dropped: list[tuple[BadRow, str]] = []
    check = scan(
        files, pairs.append, format=format, columns=columns, on_drop=lambda row, name: dropped.append((row, name))
    )
    if not pairs:
        raise InputError(
            f"no usable row of {check.rows}", where=", ".join(check.files[:3]), remedy="trueline data check FILE"
        )
    held = load_pairs(evaluation, on_bad_row="drop").pairs if evaluation else []
    if model is not None:
        tokenizer = ChatTokenizer.load(model, template=template)
    else:
        texts = [text for p in pairs for text in (*(m.content for m in p.prompt.messages), p.chosen, p.rejected)]
        tokenizer = ChatTokenizer.train(texts, vocab_size=vocab_size)
    order = [0, *(1 + generator(0, "data/show").permutation(len(pairs) - 1))][:examples]
    tokens, cut = _measure(pairs, tokenizer, limits)
    return Shown(
        check,
        dropped,
        survey(pairs, held),
        [_render(pairs[i], tokenizer, limits) for i in sorted(order)],
        tokens,
        cut,
        str(model) if model else f"byte-level BPE of {tokenizer.vocab_size} tokens, trained on this file",
        limits,
        ", ".join(evaluation),
    )


def _render(pair: Pair, tokenizer: ChatTokenizer, limits: tuple[int, int]) -> RenderedPair:
    return render_pair(pair, tokenizer, max_prompt_tokens=limits[0], max_new_tokens=limits[1])


def _measure(
    pairs: Sequence[Pair], tokenizer: ChatTokenizer, limits: tuple[int, int]
) -> tuple[dict[str, list[int]], dict[str, list[str]]]:
    """Lengths in tokens, and the places of the pairs that cutting changes."""
    lengths: dict[str, list[int]] = {"prompt": [], "chosen": [], "rejected": []}
    cut: dict[str, list[str]] = {name: [] for name in ("prompt cut", "response cut", "no difference left")}
    for pair in pairs:
        ids = [tokenizer.encode_prompt(pair.prompt), *map(tokenizer.encode_response, (pair.chosen, pair.rejected))]
        for name, found in zip(lengths, ids):
            lengths[name].append(len(found))
        where = str(pair.prompt.meta["where"])
        if len(ids[0]) > limits[0]:
            cut["prompt cut"].append(where)
        if max(len(ids[1]), len(ids[2])) > limits[1]:
            cut["response cut"].append(where)
        if ids[1][: limits[1]] == ids[2][: limits[1]]:
            cut["no difference left"].append(where)
    return lengths, cut


# --- in the terminal ---------------------------------------------------------------------------------------------


def print_examples(shown: Shown, console: Console) -> None:
    """The examples with their loss mask in colour, then what was found, a line each."""
    console.print("Read by the model: dim. Trained on: marked. Cut off: struck through.", style="italic")
    for example in shown.examples:
        console.print()
        console.print(str(example.pair.prompt.meta["where"]), style="bold", markup=False)
        for name, side in (("chosen", example.chosen), ("rejected", example.rejected)):
            text = RichText(f"{name:9}", style="bold")
            for piece in side.pieces:
                text.append(_visible("".join(piece.tokens)), style=LOOKS[piece.kind])
            console.print(text)
            console.print(f"         {_count(side)}", style="dim", markup=False)
        if not example.differ:
            console.print("         chosen and rejected are the same after cutting", style="red")
    console.print()
    for line in summary(shown):
        console.print(line, markup=False)


def summary(shown: Shown) -> list[str]:
    """What was found, a line each, zeros left out."""
    found, (prompt, new) = shown.survey, shown.limits
    lines = [
        f"{found.pairs} pairs of {found.prompts} prompts, format {shown.check.format}; tokens of {shown.tokenizer}"
    ]
    counts = Counter(name for _, name in shown.dropped)
    lines += [f"{count} rows dropped: {name.replace('_', ' ')}" for name, count in counts.most_common()]
    reasons = {
        "prompt cut": f"prompts over {prompt} tokens lose their oldest part",
        "response cut": f"pairs with a response over {new} tokens lose its end, and the token that ends an answer",
        "no difference left": "pairs whose sides are the same after cutting",
    }
    lines += [f"{len(shown.cut[name])} {text}" for name, text in reasons.items() if shown.cut[name]]
    lines += [f"{len(found.of(kind))} {text[0].lower()}{text[1:]}" for kind, text in WHAT.items() if found.of(kind)]
    lines.append(f"chosen is the longer side in {100 * found.lengths.longer:.0f}% of pairs")
    scripts = ", ".join(f"{name} {100 * share:.1f}%" for name, share in found.scripts.items() if share >= 5e-4)
    return [
        *lines,
        f"letters: {scripts or 'none'}",
        *([f"{len(found.mixed)} pairs with sides in two scripts"] * bool(found.mixed)),
    ]


def _count(side: Side) -> str:
    end = "" if side.ends else "; the end of the answer is cut, so ending is not learnt here"
    return f"{side.trained} tokens trained, {side.read} read, {side.cut} cut{end}"


def _visible(text: str) -> Any:
    from trueline.study.page import visible

    return visible(text)


# --- as a page ---------------------------------------------------------------------------------------------------


def write_page(shown: Shown, path: Path, command: str) -> None:
    """Write the page whole or not at all; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save(page(shown, command), path)


def page(shown: Shown, command: str) -> Document:
    """Everything in one page: examples first, then what to mend, then statistics."""
    check, found = shown.check, shown.survey
    facts = (
        ("Rows", f"{check.rows:,}"),
        ("Pairs", f"{found.pairs:,}"),
        ("Prompts", f"{found.prompts:,}"),
        ("Format", check.format),
        ("Chosen is longer", f"{100 * found.lengths.longer:.0f}%"),
    )
    sections = [
        Section("As the model sees it", _examples(shown)),
        Section("Dropped and cut", _dropped(shown)),
        Section("Repeats, contradictions, leaks", _findings(shown)),
        Section("Lengths and writing systems", _statistics(shown)),
    ]
    names = ", ".join(Path(file).name for file in check.files)
    roles = "; ".join(f"{role} from {column}" for role, column in check.mapping.items())
    return Document(
        "data show", names, _title(shown), f"Read as {check.format}: {roles}.", sections, facts, command=command
    )


def _title(shown: Shown) -> str:
    kinds = {
        "cut to nothing that differs": len(shown.cut["no difference left"]),
        "contradicting": len(shown.survey.of("contradiction")) + len(shown.survey.of("reversed")),
        "in the evaluation file too": len(shown.survey.of("leak")),
    }
    worst = [f"{count:,} {name}" for name, count in kinds.items() if count]
    pairs, rows = shown.survey.pairs, shown.check.rows
    start = f"All {rows:,} rows give a pair" if pairs == rows else f"{rows:,} rows give {pairs:,} pairs"
    return f"{start}; {', '.join(worst)}" if worst else start


def _examples(shown: Shown) -> list[Text | Excerpt]:
    prompt, new = shown.limits
    parts: list[Text | Excerpt] = [
        Text(
            f"Tokens of {shown.tokenizer}. Prompts keep their last {prompt} tokens, responses their first {new}. "
            "Marked tokens are trained on, a line between each two; grey ones are read only; struck ones are cut off.",
            "note",
        )
    ]
    for example in shown.examples:
        for name, side in (("chosen", example.chosen), ("rejected", example.rejected)):
            spans = [
                (piece.kind, token)
                for piece in side.pieces
                for token in (piece.tokens if piece.kind == "trained" else ("".join(piece.tokens),))
            ]
            where = Path(str(example.pair.prompt.meta["where"])).name
            parts.append(Excerpt(spans, f"{where}, {name}: {_count(side)}"))
    return parts


def _dropped(shown: Shown) -> list[Text | Table | Fold]:
    parts: list[Text | Table | Fold] = []
    by_name: dict[str, list[BadRow]] = {}
    for row, name in shown.dropped:
        by_name.setdefault(name, []).append(row)
    rows = [
        (f"dropped: {name.replace('_', ' ')}", len(found), found[0].reason, _places([row.where for row in found]))
        for name, found in sorted(by_name.items(), key=lambda item: -len(item[1]))
    ]
    prompt, new = shown.limits
    why = {
        "prompt cut": f"over {prompt} tokens: the oldest part is lost",
        "response cut": f"over {new} tokens: the end is lost, and with it the token that ends an answer",
        "no difference left": "what differs was cut off: the pair says nothing",
    }
    rows += [(name, len(shown.cut[name]), why[name], _places(shown.cut[name])) for name in why if shown.cut[name]]
    if not rows:
        return [Text("Nothing was dropped, and nothing is longer than the limits.")]
    parts.append(Table(("What", ">Pairs or rows", "Why", "Where"), rows))
    return parts


def _findings(shown: Shown) -> list[Text | Table | Fold]:
    parts: list[Text | Table | Fold] = []
    for kind, title in WHAT.items():
        found = shown.survey.of(kind)
        if found:
            more = f", the first {NAMED}" if len(found) > NAMED else ""
            table = Table(("Text", "Where"), [_row(finding) for finding in found[:NAMED]])
            parts.append(Fold(f"{title}: {len(found):,}{more}", [table]))
    if not shown.evaluation:
        parts.append(Text("Leaks were not looked for: name the evaluation file with --eval.", "note"))
    elif shown.survey.of("leak"):
        text = f"Of the leaks, {shown.survey.leaked_prompts} are prompts equal to the letter; the others begin with "
        parts.append(Text(text + "the same words of the user, as a dialogue does that was cut at two turns.", "note"))
    missing = [
        title for kind, title in WHAT.items() if not shown.survey.of(kind) and (kind != "leak" or shown.evaluation)
    ]
    if missing:
        parts.append(Text("None: " + "; ".join(title[0].lower() + title[1:] for title in missing) + "."))
    return parts


def _row(finding: Finding) -> tuple[str, str]:
    text = " ".join(finding.text.split())
    return (text[:160] + ("…" if len(text) > 160 else ""), _places(finding.places))


def _places(places: Sequence[str]) -> str:
    split = [Path(place).name.rpartition(":") for place in places[:NAMED]]
    files = groupby(split, lambda parts: parts[0])
    shown = "; ".join(f"{file}: {', '.join(line for *_, line in group)}" for file, group in files)
    return shown + (f" and {len(places) - NAMED:,} more" if len(places) > NAMED else "")


def _statistics(shown: Shown) -> list[Text | Table | Picture]:
    found = shown.survey
    rows = []
    for name in ("prompt", "chosen", "rejected"):
        lengths = sorted(shown.tokens[name])
        rows.append((name, *(lengths[max(-(-p * len(lengths) // 100) - 1, 0)] for p in (0, 50, 90, 99, 100))))
    scripts = [(name, 100 * share) for name, share in found.scripts.items() if share >= 5e-5][:8]
    mixed = f"Sides in two scripts: {len(found.mixed):,} pairs ({_places(found.mixed)})." if found.mixed else ""
    return [
        Table(("Tokens", ">least", ">median", ">90%", ">99%", ">most"), rows),
        Picture(
            "Prompts",
            _histogram("prompt", shown),
            "Right of the dashed line the oldest tokens are cut. The longest are in the last bar.",
        ),
        Picture(
            "Responses",
            _histogram("response", shown),
            f"Chosen is longer in {100 * found.lengths.longer:.0f}% of pairs: a model may learn length from that. "
            "Right of the dashed line ends are cut.",
        ),
        Table(("Writing system", ">Letters, %"), scripts, note=mixed, digits=1),
    ]


def _histogram(name: str, shown: Shown) -> str:
    import numpy as np

    sides = ("prompt",) if name == "prompt" else ("chosen", "rejected")
    limit = shown.limits[0 if name == "prompt" else 1]
    everything = np.concatenate([shown.tokens[side] for side in sides])
    # a common scale up to the 99th percentile, so that one long text does not flatten all others
    top = max(float(np.percentile(everything, 99)), limit * 1.05, 8.0)
    edges = np.linspace(0, top, 41)

    def paint(axes: Any) -> None:
        for i, side in enumerate(sides):
            counts, _ = np.histogram(np.minimum(shown.tokens[side], top), edges)
            axes.stairs(counts, edges, color=SERIES[i], linewidth=2.0, label=side)
        axes.axvline(limit, color=SERIES[7], linestyle="--", linewidth=1.2)
        if len(sides) > 1:
            axes.legend(frameon=False)

    return draw(f"data-{name}", f"Lengths of each {name}", paint, xlabel="tokens", ylabel="pairs")
