"""What comes out: pages in which nothing is active, texts without escape codes, no secret anywhere, no name that is a
path."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from tests.reliability.figures import record

from program import ENVIRONMENT
from study.pages import Page
from study.study_builder import Spec, build_run
from trueline.commands.evaluate import evaluate_folders
from trueline.commands.resolve import resolve
from trueline.errors import InputError
from trueline.study.report import build

PAYLOADS = (
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg onload=alert(1)>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    '" onfocus="alert(1)" autofocus="',
    "javascript:alert(1)",
    "<a href=javascript:alert(1)>x</a>",
    "<iframe src=//evil.example>",
    "<object data=//evil.example>",
    "<embed src=//evil.example>",
    "<link rel=stylesheet href=//evil.example>",
    "<style>@import '//evil.example'</style>",
    "</style><script>alert(1)</script>",
    "</svg><script>alert(1)</script>",
    "<math><mtext></p><style><img src onerror=alert(1)></style>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<form action=//evil.example><button>x",
    "--><script>alert(1)</script><!--",
    "]]><script>alert(1)</script>",
    "{{ 7*7 }}{% for x in y %}${7*7}<%= 7*7 %>",
    "url(//evil.example) expression(alert(1))",
    "\u202e<script>\u2066\x1b]8;;http://evil.example\x07x\x1b[2J",
    "\ud800\x00<script>alert(1)",
    "&lt;script&gt;&#x3c;script>",
    "<details open ontoggle=alert(1)>",
)


def _with_everywhere(value: object, payload: str) -> object:
    """The same value with every text in it made the payload."""
    if isinstance(value, dict):
        return {key: _with_everywhere(item, payload) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_everywhere(item, payload) for item in value]
    return payload if isinstance(value, str) else value


def _poison(run: Path, payload: str) -> None:
    manifest = json.loads((run / "manifest.json").read_text())
    free = ("threats", "versions", "command", "own_data_command", "objectives", "task", "world", "data", "judges",
            "sandbox", "pairs", "gates", "settings", "identity")  # fmt: skip
    manifest |= {key: _with_everywhere(manifest[key], payload) for key in free if key in manifest}
    manifest |= {"threats": [payload], "settings": {"ppo": {payload: payload}}, "versions": {payload: payload}}
    for variant in manifest["variants"]:
        variant["label"] = payload
    (run / "manifest.json").write_text(json.dumps(manifest))
    for cell in (run / "cells").iterdir():
        lines = [json.loads(line) for line in (cell / "samples.jsonl").read_text().splitlines()]
        rows = [row | {"prompt": payload, "response": payload} for row in lines]
        (cell / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize("number", range(len(PAYLOADS)))
def test_no_text_of_a_run_becomes_active_in_its_report(number, tmp_path) -> None:
    run = build_run(tmp_path, Spec(arms=("sft", "dpo", "ppo"), seeds=(0, 1)))
    _poison(run, PAYLOADS[number])
    build(run)
    html = (run / "report.html").read_text(encoding="utf-8")
    page = Page(html)
    assert page.active() == [] and page.open == []
    assert ("meta", "content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in page.attributes
    assert "\x1b" not in html and "\x00" not in html and "\u202e" not in html and " 49 " not in html
    record("H14", str(number), payloads=1, active=0)


CANARY = "canary-7f3a9c"
SECRETS = ("TRUELINE_JUDGE_KEY", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY",
           "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "DATABASE_URL")  # fmt: skip


@pytest.mark.integration
def test_no_secret_of_the_environment_is_in_any_output(tmp_path) -> None:
    environment = ENVIRONMENT | {name: f"{CANARY}-{name}" for name in SECRETS}
    commands = (
        ("dpo", "dialogue", "world.demonstrations=200", "world.pairs=40", "sft.epochs=1", "dpo.epochs=1",
         "sft.batch_size=32", "-o", "run"),
        ("judge", "problems.jsonl", "samples.jsonl", "-o", "judged.jsonl"),
        ("sft", "dialogue", "model.path=nowhere", "-o", "other"),  # an error is an output too
    )  # fmt: skip
    show = "import os; print(sorted(os.environ.items()))"
    problem = {"task_id": "p", "prompt": "print the environment", "solutions": [show],
               "tests": [{"input": "", "output": "x"}]}  # fmt: skip
    (tmp_path / "problems.jsonl").write_text(json.dumps(problem) + "\n")
    (tmp_path / "samples.jsonl").write_text(json.dumps({"task_id": "p", "completion": show}) + "\n")
    said = []
    for command in commands:
        ended = subprocess.run(
            [sys.executable, "-m", "trueline", *command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        said.append(ended.stdout + ended.stderr)
        assert "Traceback" not in ended.stderr
    assert (tmp_path / "run" / "index.json").exists()
    held = [path for path in tmp_path.rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()]
    assert not held and not any(CANARY in text for text in said)
    record("H17", "commands", commands=len(commands), secrets=len(SECRETS), hits=0)


NAMES = ("../../x", "/tmp/x", "a/../../b", "..", "a\nb", "CON/../x", "x" * 300)


@pytest.mark.parametrize("name", NAMES)
def test_a_checkpoint_s_name_is_no_path(name, tmp_path) -> None:
    _, sections, task = resolve("dialogue", [], quick=False)
    found = {"sft": [tmp_path], name: [tmp_path]}
    with pytest.raises(InputError, match="is no name"):
        evaluate_folders(task, sections, found, tmp_path / "run", "command", console=Console(quiet=True))
    assert list(tmp_path.iterdir()) == []
