"""`trueline plan`: what a study would take, arm by arm, before any of it is paid for."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from trueline.errors import InputError
from trueline.runs.cell import read_json, write_json
from trueline.study.planning import DEVICES, GIB, SHAPES, Device, Machine, Shape, Work, plan_arms, remedies

__all__ = ["Given", "plan"]

# What each arm needs, in order; best-of-n and the like take no training of their own.
NEEDS: Mapping[str, tuple[str, ...]] = {
    "sft": ("sft",), "reward": ("reward",), "dpo": ("dpo",), "dpo-iter": ("dpo-iter",), "ppo": ("ppo",),
    "dpo+ppo": ("dpo", "ppo"), "rloo": ("rloo",),
}  # fmt: skip
STAGES = ("sft", "reward", "dpo", "dpo-iter", "ppo", "rloo")


@dataclass(frozen=True)
class Given:
    """What the command line says of model, data and machine."""

    gpus: str
    model: str
    pairs: int
    demonstrations: int
    prompt_tokens: float
    response_tokens: float
    price: float | None
    rates: Path | None


def plan(name: str, sections: dict[str, Any], given: Given, out: Path | None, command: str, console: Console) -> dict:
    """Estimate every stage and arm, show them, write `out`; returns what is written."""
    shape, machine, work = _shape(given, sections), _machine(given), _work(given, sections)
    memory = {"micro_tokens": sections["train"].micro_tokens, "checkpointing": sections["train"].gradient_checkpointing}
    if given.rates is not None:
        memory |= {"base": _BASE, "packed": True}
    else:
        memory |= {"low": sections["train"].precision != "fp32", "served": sections["rollout"].engine != "native"}
    plans = {p.stage: p for p in plan_arms(shape, sections, work, machine, STAGES, **memory)}
    measured = _rates(given.rates) if given.rates is not None else {}
    price = machine.device.price if given.price is None else given.price
    rows = {}
    for stage, found in plans.items():
        row = found.row(machine, price)
        if measured:
            row |= _by_measurement(stage, row, measured, sections, price * machine.count)
        if not row["fits"]:
            rows_each = getattr(sections[stage.replace("-", "_")], "batch_size", 1)
            row["would_fit_with"] = remedies(
                shape, stage, machine, rows=-(-rows_each // machine.count),
                length=work.prompt_tokens + work.response_tokens, **memory,
            )  # fmt: skip
        rows[stage] = row
    arms = {arm: _sum(rows, needs) for arm, needs in NEEDS.items()}
    record = {
        "name": name, "command": command, "model": asdict(shape), "work": asdict(work),
        "machine": asdict(machine) | {"price_an_hour": price}, "stages": rows, "arms": arms,
        "seeds": len(sections["study"].seeds), "assumptions": _assumptions(machine, given),
    }  # fmt: skip
    if out is not None:
        write_json(out, record)
    _show(record, console)
    return record


_BASE = 300 * 2.0**20
"""Bytes of a worker on a CPU before it trains: torch, the task, its tokenizer; measured."""


def _shape(given: Given, sections: Mapping[str, Any]) -> Shape:
    if given.model in SHAPES:
        return SHAPES[given.model]
    folder = given.model or sections["model"].path
    if folder:
        return _of_folder(Path(folder))
    from trueline.models.tiny import sized

    model = sections["model"]
    config = sized(
        model.size, vocab_size=model.vocab_size, max_positions=model.max_prompt_tokens + model.max_new_tokens, pad_id=0,
        end_id=0, width=model.width,
    )  # fmt: skip
    return _of_config(f"made from nothing, {model.size}", asdict(config))


def _of_folder(folder: Path) -> Shape:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(
            "no model's folder with a config.json", where=str(folder), field="--model",
            remedy=f"give one, or a size: {', '.join(SHAPES)}",
        )  # fmt: skip
    raw = json.loads(path.read_text(encoding="utf-8"))
    try:
        heads = raw["num_attention_heads"]
        found = {
            "vocab_size": raw["vocab_size"], "hidden_size": raw["hidden_size"],
            "intermediate_size": raw["intermediate_size"], "num_layers": raw["num_hidden_layers"], "num_heads": heads,
            "num_kv_heads": raw.get("num_key_value_heads") or heads,
            "head_dim": raw.get("head_dim") or raw["hidden_size"] // heads,
            "tied": bool(raw.get("tie_word_embeddings", False)),
        }  # fmt: skip
    except (KeyError, TypeError):
        raise InputError("not a decoder's configuration", where=str(path), field="--model") from None
    return _of_config(folder.name, found)


def _of_config(name: str, c: Mapping[str, Any]) -> Shape:
    wide, key = c["num_heads"] * c["head_dim"], c["num_kv_heads"] * c["head_dim"]
    block = c["hidden_size"] * (2 * wide + 2 * key + 3 * c["intermediate_size"] + 2)
    heads = 1 if c.get("tied") else 2
    parameters = c["num_layers"] * block + heads * c["vocab_size"] * c["hidden_size"] + c["hidden_size"]
    return Shape(
        name, parameters, c["num_layers"], c["hidden_size"], c["intermediate_size"], c["num_heads"], c["num_kv_heads"],
        c["head_dim"], c["vocab_size"],
    )  # fmt: skip


def _machine(given: Given) -> Machine:
    if given.rates is not None:
        return Machine("this machine", Device(1e12, 1e11, 1e15, 0.0), 1)
    match = re.fullmatch(r"(?:(\d+)x)?([A-Za-z0-9-]+)", given.gpus)
    name = match[2].upper() if match else ""
    if not match or name not in DEVICES or int(match[1] or 1) < 1:
        raise InputError(
            f"{given.gpus!r} is no number and kind of device", where="command line", field="--gpus",
            remedy=f"for example 8xH100; known: {', '.join(DEVICES)}; or --rates RUN of a run on this machine",
        )  # fmt: skip
    return Machine(name, DEVICES[name], int(match[1] or 1))


def _work(given: Given, sections: Mapping[str, Any]) -> Work:
    world, model = sections.get("world"), sections["model"]
    pairs = given.pairs or getattr(world, "pairs", 0)
    demonstrations = given.demonstrations or getattr(world, "demonstrations", 0) or pairs
    if not pairs:
        raise InputError(
            "how many pairs there are is not known", where="command line", field="--pairs",
            remedy="give --pairs (and --demonstrations, --prompt-tokens, --response-tokens)",
        )  # fmt: skip
    return Work(
        demonstrations, pairs, given.prompt_tokens or model.max_prompt_tokens,
        given.response_tokens or model.max_new_tokens,
    )  # fmt: skip


def _rates(run: Path) -> dict[str, dict[str, float]]:
    """FLOPs, seconds and units of work of each stage of a finished run, summed over its cells."""
    found: dict[str, dict[str, float]] = {}
    for done in run.glob("cells/*/done.json"):
        cell = done.parent
        config = read_json(cell / "config.json")
        stage, settings = config.get("method"), config.get("config") or {}
        if stage not in STAGES or not (cell / "clock.json").exists():
            continue
        cost, clock = read_json(cell / "cost.json")["own"], read_json(cell / "clock.json")["own"]
        units = read_json(done)["steps"] * settings.get("batch_size", 1)
        row = found.setdefault(stage, dict.fromkeys(("flops", "seconds", "units"), 0.0))
        row["flops"] += cost["flops"]
        row["seconds"] += clock["seconds"]
        row["units"] += units
    if not found:
        raise InputError(
            "no finished stage in it", where=str(run), field="--rates",
            remedy="give the directory of a study or a stage that ran on this machine",
        )  # fmt: skip
    return found


def _by_measurement(
    stage: str, row: Mapping[str, Any], measured: Mapping[str, Mapping[str, float]], sections: Mapping[str, Any],
    price: float,
) -> dict[str, Any]:  # fmt: skip
    """FLOPs and seconds from what a unit of the same stage took (a response, a pair, a demonstration); of a stage that
    was not run, from the FLOP/s of all that were."""
    known = measured.get(stage)
    if known is not None:
        units = row["steps"] * getattr(sections[stage.replace("-", "_")], "batch_size", 1)
        flops = known["flops"] / known["units"] * units
        seconds = known["seconds"] / known["units"] * units
    else:
        flops = row["flops"]
        seconds = flops * sum(k["seconds"] for k in measured.values()) / sum(k["flops"] for k in measured.values())
    hours = seconds / 3600
    return {"flops": flops, "seconds": seconds, "hours": hours, "money": hours * price, "measured": known is not None}


def _sum(rows: Mapping[str, Mapping[str, Any]], needs: tuple[str, ...]) -> dict[str, Any]:
    """An arm with everything that it alone needs; SFT and the reward model are charged where they are used."""
    before = () if needs == ("sft",) else ("sft",)
    scored = ("reward",) if {"ppo", "dpo-iter", "rloo"} & set(needs) and needs != ("reward",) else ()
    charged = [*before, *scored, *needs]
    found = {key: sum(rows[stage][key] for stage in charged) for key in ("flops", "hours", "money")}
    memory = max(rows[stage]["memory"]["gib"] for stage in charged)
    return {"stages": charged, **found, "memory_gib": memory, "fits": all(rows[stage]["fits"] for stage in charged)}


def _assumptions(machine: Machine, given: Given) -> list[str]:
    if given.rates is not None:
        return [f"rates are those of {given.rates}: the same machine, a model and lengths alike"]
    return [
        f"{machine.name}: {machine.device.flops / 1e12:.0f} TFLOP/s dense bf16, {machine.device.bandwidth / 1e12:.2f} "
        f"TB/s, {machine.device.memory / 1e9:.0f} GB, by the maker; {100 * machine.training:.0f}% of the peak in "
        f"training, {100 * machine.scoring:.0f}% in scoring, {100 * machine.sampling:.0f}% of the bandwidth in "
        "sampling: stated, not measured",
        f"{100 * machine.efficiency:.0f}% of that with {machine.count} devices",
        "weights, gradients and moments in fp32, in equal parts; products in bf16; the policy samples in one piece, "
        "its matrices, keys and values in bf16",
        "mean lengths are the limits where none are given: an upper bound",
        "prices are what the cloud asks on demand, of the order; --price says yours",
    ]


def _show(record: Mapping[str, Any], console: Console) -> None:
    machine = record["machine"]
    console.print(
        f"{record['model']['name']}, {record['model']['parameters'] / 1e9:.3g}B parameters, on "
        f"{machine['count']} x {machine['name']}; one seed",
        markup=False,
    )
    table = Table(show_edge=False)
    for head in ("stage", "steps", "FLOP", "hours", "money", "GiB each", "fits"):
        table.add_column(head, justify="left" if head == "stage" else "right")
    for stage, row in record["stages"].items():
        table.add_row(
            stage, f"{row['steps']:,}", f"{row['flops']:.2g}", _hours(row["hours"]), f"{row['money']:,.0f}",
            f"{row['memory']['gib']:.1f}", "yes" if row["fits"] else "no",
        )  # fmt: skip
    table.add_section()
    for arm, row in record["arms"].items():
        table.add_row(
            f"arm {arm}", "", f"{row['flops']:.2g}", _hours(row["hours"]), f"{row['money']:,.0f}",
            f"{row['memory_gib']:.1f}", "yes" if row["fits"] else "no",
        )  # fmt: skip
    console.print(table)
    for stage, row in record["stages"].items():
        if not row["fits"]:
            room = f"{row['memory']['gib']:.0f} GiB of {machine['device']['memory'] / GIB:.0f}"
            fits = " or ".join(row["would_fit_with"]) or "none of the usual changes: a smaller model, or adapters"
            console.print(f"{stage} does not fit ({room}); it would with {fits}", markup=False)
    for line in record["assumptions"]:
        console.print(f"  assumed: {line}", markup=False)


def _hours(hours: float) -> str:
    return f"{hours:.1f}" if hours >= 1 else f"{60 * hours:.1f} min"
