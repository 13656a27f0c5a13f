"""The comparisons of one seed as a stage: drawn once, written to `pairs.jsonl`, read by every learner of that seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from trueline.config import Section
from trueline.data.safety import sorts_of
from trueline.runs.cell import read_jsonl, write_jsonl
from trueline.seeds import uniforms
from trueline.tasks.code_pairs import distance_buckets
from trueline.tasks.task import PairSources, Sampled
from trueline.training.policies import load_policy
from trueline.training.stage import Stage
from trueline.types import Message, Pair, Prompt

__all__ = ["Config", "read_pairs", "train", "write_pairs"]

_PARTS = ("training", "selection", "gold", "elsewhere")

SECTION = False  # nothing for a user to set


class Config(Section):
    """No settings of its own: the pairs are the task's (`world.*`, `data.*`)."""


def objective(config: Config) -> str:
    """What this stage does in one line."""
    return "pairs: draw two responses per prompt from the task's sources and label them"


def train(config: Config, stage: Stage) -> None:
    """Write `pairs.jsonl`. Needs `inputs["sft"]`: a task may draw responses from the SFT policy."""
    policy = load_policy(stage, "sft")
    stage.begin({}, objective(config))

    def sample(prompts: Sequence[Prompt], n: int, purpose: str) -> list[list[Sampled]]:
        ids = [stage.prompt_ids(p) for p in prompts for _ in range(n)]
        limit = stage.limits.max_new_tokens
        draws = uniforms(stage.seed, purpose, 0, range(len(ids)), limit)
        rollout = stage.engine(policy).generate(ids, draws, max_new_tokens=limit, sampling=stage.sampling)
        stage.meter.sample(policy.parameter_count, sum(map(len, ids)), rollout.sampled_tokens)
        texts = map(stage.tokenizer.decode, rollout.responses())
        drawn = [Sampled(text, ended) for text, ended in zip(texts, rollout.ended.tolist())]
        return [drawn[i : i + n] for i in range(0, len(drawn), n)]

    sources = stage.task.pairs(stage.seed, sample)
    # What tests found out by running programs is no human label, and what people labelled took no execution.
    stage.meter.labels += len(sources.training) if sources.executions is None else 0
    stage.meter.reward_calls += sources.executions or 0
    write_pairs(stage.cell.directory, sources)
    facts = {"pairs": len(sources.training), "prompts": len({p.prompt.id for p in sources.training})}
    if stage.task.verified:
        facts["edit_distance"] = distance_buckets(sources.training)
    if any(pair.meta for pair in sources.training):
        facts["safety"] = sorts_of(sources.training)
    stage.finish(**facts)


def write_pairs(cell: Path, sources: PairSources) -> None:
    """`pairs.jsonl`, every part of it."""
    write_jsonl(cell / "pairs.jsonl", [_row(part, pair) for part in _PARTS for pair in getattr(sources, part)])


def read_pairs(cell: Path) -> PairSources:
    """The pairs that the stage in `cell` wrote."""
    parts: dict[str, list[Pair]] = {part: [] for part in _PARTS}
    for row in read_jsonl(cell / "pairs.jsonl"):
        messages = tuple(Message(m["role"], m["content"]) for m in row["prompt"])
        prompt = Prompt(messages, row["kind"], row["meta"])
        parts[row["part"]].append(Pair(prompt, row["chosen"], row["rejected"], row.get("labels", {})))
    return PairSources(**parts)


def _row(part: str, pair: Pair) -> dict:
    messages = [{"role": m.role, "content": m.content} for m in pair.prompt.messages]
    return {
        "part": part,
        "prompt": messages,
        "kind": pair.prompt.kind,
        "meta": dict(pair.prompt.meta),
        "chosen": pair.chosen,
        "rejected": pair.rejected,
    } | ({"labels": dict(pair.meta)} if pair.meta else {})
