"""The import table is a test: which layer may import which, which third parties where, no cycles, a sorted `__all__`.

Every import statement counts, the ones inside functions and under `TYPE_CHECKING` too.
"""

from __future__ import annotations

import ast
import functools
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "src" / "trueline"

LAYERS = {
    "types": set(),
    "errors": set(),
    "seeds": {"errors"},
    "config": {"errors"},
    "algorithms": set(),
    "theory": {"algorithms"},
    "sandbox": {"types", "errors"},
    "data": {"types", "errors", "seeds"},
    "models": {"types", "errors", "algorithms"},
    "rollout": {"types", "errors", "config", "models", "algorithms"},
    "rewards": {"types", "errors", "data", "models", "sandbox"},
    "tasks": {"types", "errors", "seeds", "data", "rewards", "config"},
    "runs": {"types", "errors", "config"},
    "distributed": {"errors", "config"},
}
LAYERS["evaluation"] = set(LAYERS) - {"runs", "distributed"}
LAYERS["training"] = set(LAYERS)
LAYERS["study"] = {"types", "errors", "config", "seeds", "runs"}
LAYERS["experiments"] = LAYERS["study"] | {"study"}
# Benchmarks run whole pages, as users do; the command line shows them.
LAYERS["benchmarks"] = set(LAYERS)
# The command line: its parser, its entry point, and one page per command.
LAYERS["commands"] = set(LAYERS)
LAYERS["cli"] = set(LAYERS)
LAYERS["__main__"] = {"cli"}
LAYERS[""] = set()  # trueline/__init__.py

THIRD_PARTIES = {
    "seeds": {"numpy"},
    "config": {"pydantic", "pydantic_core", "yaml"},
    "algorithms": {"torch"},
    "theory": {"numpy", "torch"},
    "data": {"numpy", "tokenizers", "pyarrow", "datasets"},
    "models": {"numpy", "torch", "safetensors", "transformers", "peft", "huggingface_hub"},
    "rollout": {"numpy", "torch", "pydantic"},
    "rewards": {"torch", "openai"},
    "tasks": {"numpy", "pydantic"},
    "runs": set(),
    "distributed": {"torch", "ray", "pydantic"},
    "evaluation": {"torch", "numpy", "pydantic"},
    "training": {"torch", "numpy", "pydantic"},
    "study": {"numpy", "scipy", "matplotlib", "pydantic"},
    "experiments": {"numpy", "matplotlib"},
    "benchmarks": {"numpy", "torch", "tokenizers", "matplotlib"},
    "commands": {"typer", "rich", "numpy", "torch", "yaml"},
    "cli": {"typer", "rich", "click", "torch"},
}

# What runs a study's cells knows the pages and what they are made of.
RUNS_CELLS = {
    "trueline.training",
    "trueline.rollout",
    "trueline.evaluation",
    "trueline.tasks",
    "trueline.data",
    "trueline.models",
    "trueline.distributed",
    "torch",
}

# One file of a layer may do what the layer may not.
EXTRA = {
    # run by the interpreter of the peer's own environment; `wire` lies beside them there
    "benchmarks/peers/trl_trainer.py": {"trl", "transformers", "datasets", "wire"},
    "benchmarks/peers/trl_ppo.py": {"trl", "transformers", "datasets", "wire"},
    "benchmarks/peers/hf_generate.py": {"transformers", "wire"},
    "data/batches.py": {"torch"},
    "commands/export.py": {"huggingface_hub"},
    "data/hub_files.py": {"huggingface_hub"},
    "data/templates.py": {"jinja2"},
    "rewards/linear.py": {"safetensors"},
    "runs/checkpoint.py": {"torch", "safetensors", "trueline.distributed"},
    "runs/parts.py": {"torch", "trueline.distributed"},
    "runs/trackers.py": {"torch", "wandb", "trackio"},
    "study/execute.py": RUNS_CELLS,
    "study/job.py": RUNS_CELLS,
    "study/crew.py": {"torch"},
    "study/cluster_crew.py": {"trueline.distributed", "torch", "ray"},
    "training/elsewhere.py": {"ray"},
    "study/document.py": {"jinja2"},
    "study/page.py": {"jinja2"},
    "study/origins.py": {"trueline.data"},
    "study/identity.py": {"torch", "trueline.models"},
    "study/record.py": {"safetensors"},
    "study/settings.py": {"yaml"},
    "tasks/execution.py": {"trueline.sandbox"},
}

# These answer before the heavy parts are loaded, so they are imported inside functions.
LAZY = {
    "data": {"pyarrow", "datasets", "huggingface_hub"},
    "models": {"transformers", "peft", "huggingface_hub"},
    "rewards": {"openai"},
    "distributed": {"ray"},
    "training": {"ray"},
    "study": {"matplotlib", "scipy", "torch", "safetensors", "jinja2", "ray"},
    "experiments": {"matplotlib"},
    "cli": {"torch"},
    "benchmarks": {"tokenizers", "matplotlib"},
}

VAGUE = {"utils", "util", "common", "core", "base", "helpers", "misc"}


@dataclass(frozen=True)
class Import:
    """One imported module: its dotted name, and whether the statement runs when the file is imported."""

    name: str
    line: int
    at_import: bool


def modules() -> dict[str, Path]:
    """Dotted names and files of the package."""
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(("trueline", *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return found


@functools.cache
def imports_of(source: str, name: str = "trueline", is_package: bool = False) -> list[Import]:
    """Every import of a module's source, relative ones resolved; `from a import b` gives both a and a.b."""
    found: list[Import] = []

    def visit(node: ast.AST, at_import: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend(Import(alias.name, node.lineno, at_import) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = node.module or ""
            if node.level:
                kept = name.split(".")[: len(name.split(".")) - node.level + is_package]
                origin = ".".join([*kept, origin] if origin else kept)
            found.append(Import(origin, node.lineno, at_import))
            found.extend(Import(f"{origin}.{alias.name}", node.lineno, at_import) for alias in node.names)
        inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        typing_only = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for child in ast.iter_child_nodes(node):
            visit(child, at_import and not inside and not typing_only)

    visit(ast.parse(source), True)
    return found


def layer_of(name: str) -> str:
    return name.split(".")[1] if "." in name else ""


def violations(name: str, path: Path, source: str) -> list[str]:
    """What a module imports against the table."""
    layer, place = layer_of(name), path.relative_to(ROOT).as_posix()
    extra = EXTRA.get(place, set())
    bad = []
    for item in imports_of(source, name, path.name == "__init__.py"):
        top = item.name.split(".")[0]
        if top in sys.stdlib_module_names:
            continue
        if top == "trueline":
            other = layer_of(item.name)
            allowed = other in LAYERS[layer] | {layer} or f"trueline.{other}" in extra
            allowed = allowed or item.name in ("trueline", "trueline.__version__")
        else:
            allowed = top in THIRD_PARTIES.get(layer, set()) | extra
            if allowed and item.at_import and top in LAZY.get(layer, set()):
                bad.append(f"{place}:{item.line}: {top} must be imported inside the function that needs it")
        if not allowed:
            bad.append(f"{place}:{item.line}: {layer or 'trueline'} may not import {item.name}")
    return bad


MODULES = modules()


@pytest.mark.parametrize("name", MODULES)
def test_imports_follow_the_table(name) -> None:
    assert layer_of(name) in LAYERS, f"{name}: no such layer in the table"
    assert violations(name, MODULES[name], MODULES[name].read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("trueline.algorithms.ppo", "import numpy"),
        ("trueline.algorithms.ppo", "def f():\n    from trueline.models import decoder"),
        ("trueline.types", "from .errors import InputError"),
        ("trueline.study.report", "from ..training import dpo"),
        ("trueline.study.report", "if TYPE_CHECKING:\n    import torch"),
        ("trueline.runs.cell", "import torch"),
        ("trueline.data.check", "import jinja2"),
        ("trueline.models.decoder", "import transformers"),
        ("trueline.rollout.native", "from trueline import training"),
    ],
)
def test_the_table_refuses(name, source) -> None:
    path = ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py")
    assert len(violations(name, path, source)) >= 1


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("trueline.theory.bandits", "import numpy, torch\nfrom trueline.algorithms import dpo"),
        ("trueline.models.lora", "def f():\n    import peft"),
        ("trueline.study.execute", "from trueline.training import dpo"),
        ("trueline.data.batches", "import torch"),
        ("trueline.models.heads", "from .decoder import Decoder\nfrom ..errors import InputError\nimport json"),
    ],
)
def test_the_table_admits(name, source) -> None:
    assert violations(name, ROOT.joinpath(*name.split(".")[1:]).with_suffix(".py"), source) == []


def cycle_in(edges: dict[str, set[str]]) -> list[str]:
    """A cycle of a directed graph, or nothing."""
    done: set[str] = set()

    def walk(node: str, trail: list[str]) -> list[str]:
        if node in trail:
            return [*trail[trail.index(node) :], node]
        if node in done:
            return []
        for other in sorted(edges.get(node, ())):
            found = walk(other, [*trail, node])
            if found:
                return found
        done.add(node)
        return []

    return next((found for node in sorted(edges) if (found := walk(node, []))), [])


def test_there_is_no_import_cycle() -> None:
    """Between modules, imports inside functions included."""
    edges = {}
    for name, path in MODULES.items():
        found = imports_of(path.read_text(encoding="utf-8"), name, path.name == "__init__.py")
        edges[name] = ({item.name for item in found} & set(MODULES)) - {name}
    assert sum(map(len, edges.values())) > 50
    for name in edges:  # `from trueline.a import b` names the package a beside the module a.b
        edges[name] -= {other for other in edges[name] if any(more.startswith(f"{other}.") for more in edges[name])}
    assert cycle_in(edges) == []


def test_the_cycle_finder_finds() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
    assert cycle_in({"a": {"b", "c"}, "b": {"c"}, "c": set()}) == []


def test_the_layers_of_the_table_form_no_cycle() -> None:
    everything = {
        "training",
        "benchmarks",
        "commands",
        "cli",
    }  # these may import each layer below; nothing below may import them
    below = {layer: others for layer, others in LAYERS.items() if layer not in everything}
    assert cycle_in(below) == []
    assert not [layer for layer, others in below.items() if others & everything and layer != "__main__"]


def reached_at_import(start: str) -> set[str]:
    """Top-level names of what importing `start` loads, through our own modules, imports inside functions left out."""
    seen, loaded, todo = set(), set(), [start]
    while todo:
        name = todo.pop()
        if name in seen or name not in MODULES:
            continue
        seen.add(name)
        path = MODULES[name]
        for item in imports_of(path.read_text(encoding="utf-8"), name, path.name == "__init__.py"):
            if item.at_import:
                loaded.add(item.name.split(".")[0])
                parts = item.name.split(".")
                todo += [".".join(parts[: n + 1]) for n in range(len(parts))]
    return loaded


@pytest.mark.parametrize(
    "name", ["cli", "config", "study.report", "study.verdict", "study.matrix", "runs.cell", "runs.meter"]
)
def test_what_answers_at_once_loads_nothing_heavy(name) -> None:
    """A verdict is judged again without torch, and `--help` does not wait for it."""
    assert f"trueline.{name}" in MODULES
    assert not reached_at_import(f"trueline.{name}") & {"torch", "transformers", "matplotlib"}


def test_the_closure_sees_through_our_modules() -> None:
    assert "torch" in reached_at_import("trueline.rewards.learned")
    assert "safetensors" in reached_at_import("trueline.training.ppo")


def test_no_package_has_a_vague_name() -> None:
    assert not [path for path in ROOT.rglob("*") if path.stem in VAGUE]


def sort_key(name: str) -> tuple:
    """Constants, classes, the rest, digits by value: the order that the linter keeps `__all__` in."""
    kind = 0 if name.isupper() and len(name) > 1 else 1 if name[:1].isupper() else 2
    return kind, [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


@pytest.mark.parametrize("name", [n for n, path in MODULES.items() if path.name != "__init__.py"])
def test_all_is_sorted_and_its_names_exist(name) -> None:
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    exported, defined, future = None, set(), False
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {t.id for target in targets for t in ast.walk(target) if isinstance(t, ast.Name)}
            defined |= names
            if "__all__" in names:
                exported = ast.literal_eval(node.value)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            defined |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
            future |= isinstance(node, ast.ImportFrom) and node.module == "__future__" and "annotations" in defined
    assert future, "needs `from __future__ import annotations`"
    assert exported is not None, "needs `__all__`"
    assert exported == sorted(exported, key=sort_key)
    assert len(set(exported)) == len(exported)
    assert set(exported) <= defined
    assert not [n for n in exported if n.startswith("_")]
