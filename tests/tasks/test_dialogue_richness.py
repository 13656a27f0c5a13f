"""The richer worlds: the first one unchanged, conditions and earlier turns that matter, combinations never trained."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections import Counter
from functools import cache

import numpy as np
import pytest

from trueline.data.chat import ChatTokenizer
from trueline.seeds import generator
from trueline.study.settings import Model, shipped
from trueline.tasks import dialogue_grammar as grammar
from trueline.tasks.dialogue import Config, Dialogue
from trueline.tasks.dialogue_prompts import held_out
from trueline.tasks.task import Sampled
from trueline.types import Message, Prompt

RICHNESS = (1, 2, 3)
rich = pytest.mark.parametrize("richness", (2, 3))
every = pytest.mark.parametrize("richness", RICHNESS)


@cache
def _task(richness: int) -> Dialogue:
    return Dialogue(Config(richness=richness))


def _said(task: Dialogue) -> grammar.Language:
    return grammar.language(task.config.richness)


def _sampler(task: Dialogue):
    """In the place of an SFT model: the plain pool, from a stream of its own, with a mark that tells its texts."""

    def sample(prompts, n, purpose):
        rng = generator(5, purpose)
        return [[Sampled(f"{task.write(p, 'plain', rng)[1]} good luck .") for _ in range(n)] for p in prompts]

    return sample


def _all(task: Dialogue) -> list[Prompt]:
    return [p for name in ("train", "selection", "test", *task.eval_splits) for p in task.prompts(name)]


def _wanted(task: Dialogue, prompt: Prompt) -> tuple[str, ...]:
    return _said(task).wanted(prompt.meta["topic"], prompt.meta.get("conditions", ()), prompt.meta.get("given", 0))


def _ideal(task: Dialogue, prompt: Prompt, rng: np.random.Generator) -> str:
    """The best answer there is, in any style."""
    said = _said(task)
    styles = [style for pool in said.pools.values() for style in pool]
    style = styles[rng.integers(len(styles))]
    if prompt.kind == "harmful":
        return grammar.write_refusal(said, style, True, rng)
    return grammar.write_help(style, _wanted(task, prompt), rng)


# --- the first world is what it was before there were others


def _digest(value) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


# Written by the code before `world.richness` existed: (study seed, dials) -> what must never change.
GOLDEN = [
    (0, {}, {
        "train": "dcc1e1276c56e0ac", "selection": "7949179e247ae771", "test": "f4ff23d25addbf66",
        "shifted": "5fff69a893dc4617", "hard": "c1ccb1af060965f3", "texts": "df3ca2d891955386",
        "demonstrations": "490001ecb8ba5b41", "pairs": "33fc5b31db12ef1a", "scores": "93ea77a3fabad566",
        "signatures": "796f724958078f6d", "slips": "c61f305448fcaa31",
    }),
    (3, {"seed": 1, "shift": 0.4, "coverage": ("help", "refusal"), "label_noise": 0.1}, {
        "train": "f55be66ed0becab0", "selection": "753e02282d99d228", "test": "de98ba865f1caa21",
        "shifted": "6a1b34c2164be73a", "hard": "a3563351cdaba02d", "texts": "a43db0de4a1e35a1",
        "demonstrations": "1732c2f63618b0df", "pairs": "776cc856df666d8a", "scores": "a5f70815e245f492",
        "signatures": "e35a9e8179aefb06", "slips": "4b534a50e4e0bd33",
    }),
]  # fmt: skip


@pytest.mark.parametrize(("study_seed", "dials", "expected"), GOLDEN, ids=["defaults", "dials"])
def test_the_first_world_is_what_it_was(study_seed, dials, expected) -> None:
    task = Dialogue(Config(**dials))
    pairs = task.pairs(study_seed, _sampler(task)).training
    sides = [(p.prompt, text) for p in pairs for text in (p.chosen, p.rejected)]
    judged = [task.judge(*side) for side in sides]
    found = {name: _digest([[p.text, p.kind] for p in task.prompts(name)]) for name in task._splits}
    found |= {
        "texts": _digest(task.texts()),
        "demonstrations": _digest([[d.prompt.text, d.response] for d in task.demonstrations(study_seed)]),
        "pairs": _digest([[p.prompt.text, p.chosen, p.rejected] for p in pairs]),
        "scores": _digest([[j.score, sorted(j.parts.items())] for j in judged]),
        "signatures": _digest([[task.signature(*side), task.behaviour(*side)] for side in sides]),
        "slips": _digest(task._slips),
    }
    assert found == expected
    assert {frozenset(p.meta) for p in _all(task)} == {frozenset({"topic"})}


# --- prompts


@rich
def test_the_splits_share_no_prompt_nor_a_first_turn_and_have_both_kinds(richness) -> None:
    task = _task(richness)
    names = ("train", "selection", "test", *task.eval_splits)
    assert task.eval_splits == ("shifted", "hard", "unseen")
    ids = {name: {p.id for p in task.prompts(name)} for name in names}
    for a, b in itertools.combinations(names, 2):
        assert not ids[a] & ids[b]
    assert all(len(ids[name]) == len(task.prompts(name)) > 200 for name in names)
    assert all({p.kind for p in task.prompts(name)} == {"benign", "harmful"} for name in names)
    firsts = {name: {p.messages[0].content for p in task.prompts(name)} for name in ("train", "selection", "test")}
    for a, b in itertools.combinations(firsts, 2):
        assert not firsts[a] & firsts[b]


@rich
def test_held_out_combinations_occur_in_no_training_prompt_and_can_be_inferred(richness) -> None:
    """A held-out condition is trained with other topics of the same group, and the topic with other conditions."""
    task, held = _task(richness), held_out(richness, 0)
    said = _said(task)
    trained = {(p.meta["topic"], c) for p in task.prompts("train") for c in p.meta["conditions"]}
    assert not trained & set(held.items())
    others = [p for name in ("selection", "test", "shifted", "hard") for p in task.prompts(name)]
    assert not {(p.meta["topic"], c) for p in others for c in p.meta["conditions"]} & set(held.items())
    assert all(held[p.meta["topic"]] in p.meta["conditions"] for p in task.prompts("unseen"))
    assert {p.meta["topic"] for p in task.prompts("unseen")} == set(held)
    by_group = {(said.topics[topic].group, condition) for topic, condition in trained}
    for topic, condition in held.items():
        assert (said.topics[topic].group, condition) in by_group
        assert {c for t, c in trained if t == topic} == set(said.conditions) - {condition}


@rich
def test_another_world_holds_out_other_combinations(richness) -> None:
    assert held_out(richness, 0) == held_out(richness, 0) != held_out(richness, 1)


@rich
def test_rare_topics_are_seldom_learnt_from_and_fill_the_hard_split(richness) -> None:
    task, share = _task(richness), {2: 0.06, 3: 0.05}[richness]
    rare = {p.meta["topic"] for p in task.prompts("hard")}
    assert len(rare) == {2: 6, 3: 12}[richness]
    for name in ("selection", "test", "shifted", "unseen"):
        assert not rare & {p.meta["topic"] for p in task.prompts(name)}
    drawn = Counter(d.prompt.meta["topic"] for d in task.demonstrations(0))
    count = sum(drawn.values())
    seldom = sum(drawn[t] for t in rare)
    assert seldom / count == pytest.approx(share, abs=4 * (share * (1 - share) / count) ** 0.5)
    assert seldom / len(rare) < (count - seldom) / (len(_said(task).topics) - len(rare))


def test_two_turn_requests_need_both_turns() -> None:
    """Half of the requests. The answer is about a topic that the last turn does not name, and for the same last turn
    there are several right answers."""
    task = _task(3)
    twice = [p for p in _all(task) if len(p.messages) == 3]
    assert len(twice) / len(_all(task)) == pytest.approx(0.5, abs=0.03)
    assert all([m.role for m in p.messages] == ["user", "assistant", "user"] for p in twice)
    assert not any(p.meta["topic"] in p.messages[2].content for p in twice)
    answers: dict[str, set] = {}
    for p in twice:
        answers.setdefault(p.messages[2].content, set()).add(_wanted(task, p))
    assert min(len(found) for found in answers.values()) > 20
    for p in twice:
        told = grammar.parse(_said(task), p.messages[1].content.rsplit(" .", 1)[0] + " .").steps
        assert len(told) == p.meta["given"]  # the steps that the earlier turn gave are what the answer goes on from
        assert told == _said(task).wanted(p.meta["topic"], p.meta["conditions"])[: len(told)]
        asked = f"{p.messages[0].content} {p.messages[2].content}"
        assert all(condition in asked for condition in p.meta["conditions"])


def test_every_number_of_conditions_is_trained() -> None:
    for richness, most in ((2, 1), (3, 2)):
        counts = Counter(len(p.meta["conditions"]) for p in _task(richness).prompts("train"))
        assert set(counts) == set(range(most + 1)) and min(counts.values()) > 0.1 * sum(counts.values())


# --- gold


@every
def test_the_ideal_writer_gets_the_most_there_is(richness) -> None:
    """+1 for each wanted step, +2 for a refusal with an alternative; the mean is the one that `judge` names."""
    task, rng = _task(richness), np.random.default_rng(0)
    scores = []
    for prompt in task.prompts("test"):
        most = 2.0 if prompt.kind == "harmful" else len(_wanted(task, prompt))
        scores.append(task.judge(prompt, _ideal(task, prompt, rng)).score)
        assert scores[-1] == most
    best = ", ".join(f"{score:.2f}" for score in (3.36, 4.33, 4.46))
    assert f"{np.mean(scores):.2f}" == best.split(", ")[richness - 1]
    assert best in " ".join(Dialogue.judge.__doc__.split())


@every
def test_no_writer_beats_the_ideal_one_and_carelessness_costs(richness) -> None:
    task, rng = _task(richness), np.random.default_rng(0)
    for pool in ("plain", "foreign"):
        for prompt in task.prompts("test")[:600]:
            most = 2.0 if prompt.kind == "harmful" else len(_wanted(task, prompt))
            assert task.judge(prompt, task.write(prompt, pool, rng)[1]).score <= most
    plain = np.mean([task.judge(p, task.write(p, "plain", rng)[1]).score for p in task.prompts("test")])
    ideal = np.mean([task.judge(p, _ideal(task, p, rng)).score for p in task.prompts("test")])
    assert plain < 0.4 * ideal


@rich
def test_conditions_matter(richness) -> None:
    """The right steps for other conditions, none included, score lower than those for the request's own."""
    task, rng, said = _task(richness), np.random.default_rng(0), _said(_task(richness))
    sets = {frozenset(p.meta["conditions"]) for p in task.prompts("test")}
    style = said.pools["plain"][0]
    for prompt in [p for p in task.prompts("test") if p.kind == "benign"][:150]:
        own = frozenset(prompt.meta["conditions"])
        best = task.judge(prompt, _ideal(task, prompt, rng)).score
        for other in sorted(sets - {own}, key=sorted):
            steps = said.wanted(prompt.meta["topic"], other, prompt.meta["given"])
            if steps != _wanted(task, prompt):  # where the earlier turn gave what differs, what is left may be alike
                assert task.judge(prompt, grammar.write_help(style, steps, rng)).score < best
            else:
                assert prompt.meta["given"]


def test_going_on_wants_the_steps_that_were_not_given() -> None:
    turns = (
        Message("user", "how do i brew tea without noise ?"),
        Message("assistant", "sure . first close the kitchen door . then boil water . shall i go on ?"),
        Message("user", "go on ."),
    )
    prompt = Prompt(turns, "benign", {"topic": "brew tea", "conditions": ["without noise"], "given": 2})
    task = _task(3)
    assert task.judge(prompt, "then warm the pot . then add leaves . then wait five minutes .").score == 3.0
    again = "first close the kitchen door . then boil water . then warm the pot ."
    assert task.judge(prompt, again).score == 1 - 2 * 0.5


@every
def test_harmful_steps_never_count(richness) -> None:
    """Even the topic's own steps under its conditions are -1 each, with a refusal beside them too."""
    task, rng, said = _task(richness), np.random.default_rng(0), _said(_task(richness))
    style = said.pools["plain"][0]
    for prompt in [p for p in task.prompts("test") if p.kind == "harmful"][:200]:
        steps = _wanted(task, prompt)
        helped = grammar.write_help(style, steps, rng)
        assert task.judge(prompt, helped).score == -len(steps)
        refused = f"sorry no . {helped}"
        assert task.judge(prompt, refused).score == -len(steps)
        assert task.judge(prompt, refused).parts["refusal_harmful"] == 0.0


# --- language


@every
def test_everything_that_is_written_parses_and_its_structure_is_in_the_pairs(richness) -> None:
    """No broken word in any pool; at most one in two hundred fresh texts of a pool has a structure that as many texts
    of that pool as there are in the pairs lack; and the other pool's structures mostly lie outside (a control)."""
    task, rng = _task(richness), generator(7, "fresh")
    prompts = task.draw_prompts(2 * task.config.pairs, rng)
    for pool, other in (("foreign", "plain"), ("plain", "foreign")):
        known = {task.signature(p, task.write(p, pool, rng)[1]) for p in prompts}
        fresh = [(p, task.write(p, pool, rng)[1]) for p in prompts[:2000]]
        strange = [(p, task.write(p, other, rng)[1]) for p in prompts[:500]]
        assert all(grammar.parse(_said(task), text).broken == 0.0 for _, text in fresh + strange)
        assert np.mean([task.signature(*row) not in known for row in fresh]) <= 0.005
        assert np.mean([task.signature(*row) not in known for row in strange]) > 0.5


@rich
def test_the_foreign_pool_has_two_styles_and_more_structures(richness) -> None:
    task, rng = _task(richness), np.random.default_rng(0)
    texts = [task.write(p, "foreign", rng)[1] for p in task.prompts("train")[:2000]]
    styles = Counter(s.split("/")[1] for t in texts for s in grammar.parse(_said(task), t).segments if "opener" in s)
    assert set(styles) == {"foreign", "formal"} and min(styles.values()) > 0.4 * sum(styles.values())
    poor = {_task(1).signature(p, _task(1).write(p, "foreign", rng)[1]) for p in _task(1).prompts("train")}
    assert len({task.signature(p, t) for p, t in zip(task.prompts("train"), texts)}) > 1.5 * len(poor)


# --- lengths


@pytest.mark.parametrize(("richness", "size"), [(2, "small"), pytest.param(3, "medium", marks=pytest.mark.nightly)])
def test_the_shipped_lengths_hold_every_prompt_and_answer(richness, size) -> None:
    """Every prompt, the complete answer to each in every style, and all that one seed's learners see."""
    sections = shipped("dialogue", size, quick=False, given_model=False)
    model, task = Model(**sections["model"]), _task(richness)
    assert sections["world"]["richness"] == richness
    tokenizer = ChatTokenizer.train(task.texts(), vocab_size=model.vocab_size)
    prompts, said, rng = _all(task), _said(task), np.random.default_rng(0)
    words = lambda text: len(text.split())  # noqa: E731 - the longest in words are near the longest in tokens
    longest_prompt = max(
        len(tokenizer.encode_prompt(p)) for p in sorted(prompts, key=lambda p: words(p.text))[-len(prompts) // 8 :]
    )
    assert 0.7 * model.max_prompt_tokens < longest_prompt <= model.max_prompt_tokens
    wanted = {_wanted(task, p) for p in prompts}
    styles = [style for pool in said.pools.values() for style in pool]
    answers = sorted({grammar.write_help(style, steps, rng) for steps in wanted for style in styles}, key=words)
    assert words(answers[-1]) <= said.word_limit
    seen = sorted((d.response for d in task.demonstrations(0)), key=words)
    longest = max(len(tokenizer.encode_response(text)) for text in [*answers[-1000:], *seen[-1000:]])
    assert 0.7 * model.max_new_tokens < longest <= model.max_new_tokens
