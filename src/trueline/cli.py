"""The command line: `trueline COMMAND [TASK | CONFIG.yaml] [key=value ...] [-o DIR]`.

Heavy imports are in functions.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from trueline.distributed.started import is_leader, processes
from trueline.errors import InputError, TruelineError
from trueline.runs import stopping

__all__ = ["app", "main"]

app = typer.Typer(
    help="DPO or PPO for aligning this language model, or both? Measured on your model, data and budget, then trained.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(
    help="Look at files of preferences; audit files of problems.", no_args_is_help=True, rich_markup_mode=None
)
app.add_typer(data_app, name="data")
bench_app = typer.Typer(help="Measure parts of trueline on this machine.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(bench_app, name="bench")

console = Console(highlight=False, emoji=False, width=None if sys.stdout.isatty() else 110)
Target = Annotated[
    str, typer.Argument(metavar="TASK|CONFIG", help="dialogue, code, hh-rlhf, pairs, or a .yaml or .toml file")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="settings, for example ppo.kl_coef=0.05")
]
Out = Annotated[Path | None, typer.Option("-o", "--out", help="run directory (default: runs/TASK-COMMAND)")]
Quick = Annotated[bool, typer.Option("--quick", help="one seed, small settings: a minute, no verdict")]
Seeds = Annotated[str, typer.Option("--seeds", help="training seeds, for example 0,1,2")]
Resume = Annotated[bool, typer.Option("--resume", help="go on with what the directory holds (also without this flag)")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]
Problems = Annotated[
    str, typer.Argument(metavar="PROBLEMS", help="a file of problems (docs/code.md), or a quoted glob")
]
PairFormat = Annotated[str, typer.Option("--format", help="auto, pairs, messages, hh-rlhf, ... (docs/data.md)")]
ColumnNames = Annotated[str, typer.Option("--columns", help="role=column,...: prompt=question,chosen=good")]
ProblemFormat = Annotated[str, typer.Option("--format", help="of the problems: auto, humaneval, mbpp, apps, ...")]
OnBadRow = Annotated[str, typer.Option("--on-bad-row", help="error or drop")]
Workers = Annotated[int | None, typer.Option("--workers", help="default: one for each core")]
CpuSeconds = Annotated[float, typer.Option("--cpu-seconds", help="processor time of a test")]
WallSeconds = Annotated[float | None, typer.Option("--wall-seconds", help="default: three times the processor's")]
MemoryMb = Annotated[int, typer.Option("--memory-mb", help="address space of a program, in MiB")]
Patience = Annotated[float, typer.Option("--patience", help="times the problems' own time limits")]
Prelude = Annotated[Path | None, typer.Option("--prelude", help="trusted code that runs before every program")]
Tier = Annotated[str, typer.Option("--tier", help="of the sandbox (default: the strongest that works)")]
Record = Annotated[Path | None, typer.Option("-o", "--out", metavar="OUT.json", help="where the record goes")]
BenchSize = Annotated[str, typer.Option("--size", help="of the model: tiny, small, medium, 0.5b, 1.5b")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu or cuda")]
Unsafe = Annotated[bool, typer.Option("--unsafe", help="permit a tier that contains nothing")]

_STOPPED = "stopped; what ran is kept. Go on with the same command:\n  "


def main() -> None:
    """Run the program; errors of the user's input end in one line and exit code 2."""
    stopping.in_program(_kill_children)
    try:
        if processes() > 1:
            _check_together()
        code = app(standalone_mode=False)
    except TruelineError as error:
        _fail(str(error), error.exit_code)
    except stopping.Stopped as stop:
        _kill_children()
        _fail(_STOPPED + _command(), stop.exit_code)
    except KeyboardInterrupt:
        _fail(_STOPPED + _command(), 130)
    except Exception as error:  # typer's own usage errors carry their message and code
        if hasattr(error, "format_message"):
            _fail(error.format_message(), 2)
        if type(error).__name__ in ("Exit", "Abort"):
            sys.exit(getattr(error, "exit_code", 130))
        raise
    else:
        if isinstance(code, int):
            sys.exit(code)


def _kill_children() -> None:
    for process in _children():
        process.kill()


def _children() -> list:
    import multiprocessing

    return multiprocessing.active_children()


def _check_together() -> None:
    """Of what torchrun starts: a command that several processes can run, and one process that speaks."""
    console.quiet = not is_leader()
    known = ("study", "sft", "reward", "dpo", "dpo-iter", "ppo", "rloo", "cdpo", "ipo", "dpo-positive", "kto")
    if sys.argv[1:2] and sys.argv[1] not in known:
        remedy = f"start it without torchrun; together: {', '.join(known)}"
        raise InputError(f"{sys.argv[1]} runs in one process", where="command line", field="COMMAND", remedy=remedy)


def _fail(text: str, code: int) -> None:
    if is_leader():
        print(f"trueline: {text}", file=sys.stderr)
    sys.exit(code)


def _command() -> str:
    import shlex

    start = f"torchrun --nproc-per-node {processes()} -m trueline " if processes() > 1 else "trueline "
    return start + " ".join(shlex.quote(argument) for argument in sys.argv[1:])


@app.command()
def study(
    target: Target,
    overrides: Overrides = None,
    out: Out = None,
    quick: Quick = False,
    seeds: Seeds = "",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Train and compare SFT, DPO, DPO-Iter, PPO, both and the baselines; give a verdict and a report."""
    name, sections, task = _load(target, overrides, quick, seeds)
    from trueline.commands.run import run_study

    directory = out or Path("runs") / f"{name}-study{'-quick' if quick else ''}"
    report = run_study(
        task, sections, directory, _command(), console=Console(stderr=True, highlight=False) if as_json else console
    )
    if as_json and report:  # of several processes one has it
        print(json.dumps(report["verdict"] | {"report": str(directory / "report.html")}))


def _stage(stage: str, target: str, overrides: list[str] | None, out: Path | None, quick: bool, seeds: str) -> None:
    name, sections, task = _load(target, overrides, quick, seeds)
    from trueline.commands.run import run_stage

    run_stage(stage, task, sections, out or Path("runs") / f"{name}-{stage}", _command(), console=console)


def _add_stage(stage: str, text: str) -> None:
    def command(
        target: Target,
        overrides: Overrides = None,
        out: Out = None,
        quick: Quick = False,
        seeds: Seeds = "0",
        resume: Resume = False,
    ) -> None:
        _stage(stage, target, overrides, out, quick, seeds)

    command.__doc__ = text
    app.command(name=stage)(command)


_add_stage("sft", "Supervised fine-tuning on demonstrations.")
_add_stage("reward", "A Bradley-Terry reward model from the pairs (trains SFT first where it is not there).")
_add_stage("dpo", "Direct preference optimisation.")
_add_stage("dpo-iter", "Iterated DPO: sample, label, train, again.")
_add_stage("ppo", "Proximal policy optimisation with a critic.")
_add_stage("rloo", "Critic-free policy gradient: leave-one-out or group baseline.")
_add_stage("cdpo", "DPO for labels that are wrong at a known rate.")
_add_stage("ipo", "Identity preference optimisation: a squared loss on the margin.")
_add_stage("dpo-positive", "DPO with a penalty where the chosen side falls below the reference.")
_add_stage("ln-dpo", "DPO on log-probs per token.")
_add_stage("simpo", "Reference-free, on log-probs per token, with a target margin.")
_add_stage("kto", "Each side by itself: desirable or not, against a reference point.")


@app.command()
def plan(
    target: Target,
    overrides: Overrides = None,
    gpus: Annotated[str, typer.Option("--gpus", metavar="COUNTxKIND", help="for example 8xH100")] = "1xH100",
    model: Annotated[
        str, typer.Option("--model", help="0.5b, 1.5b, 7b, 13b, 34b, or a folder (default: the config's)")
    ] = "",
    pairs: Annotated[int, typer.Option("--pairs", help="comparisons (default: the world's)")] = 0,
    demonstrations: Annotated[int, typer.Option("--demonstrations", help="for SFT (default: as many as pairs)")] = 0,
    prompt_tokens: Annotated[float, typer.Option("--prompt-tokens", help="mean length (default: the limit)")] = 0,
    response_tokens: Annotated[float, typer.Option("--response-tokens", help="mean length (default: the limit)")] = 0,
    price: Annotated[float | None, typer.Option("--price", help="of a device's hour")] = None,
    rates: Annotated[Path | None, typer.Option("--rates", metavar="RUN", help="a finished run on this machine")] = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="PLAN.json", help="where the record goes")] = None,
    as_json: AsJson = False,
) -> None:
    """Memory, FLOPs, hours and money of every arm before any of it is paid for; what does not fit, and what would."""
    from trueline.commands.plan import Given
    from trueline.commands.plan import plan as run
    from trueline.commands.resolve import settings_of

    name, sections = settings_of(target, overrides or [])
    given = Given(
        gpus=gpus, model=model, pairs=pairs, demonstrations=demonstrations,
        prompt_tokens=prompt_tokens, response_tokens=response_tokens, price=price, rates=rates,
    )  # fmt: skip
    shown = Console(stderr=True, highlight=False) if as_json else console
    record = run(name, sections, given, out, _command(), shown)
    if as_json:
        print(json.dumps(record))


def _split(items: list[str] | None) -> tuple[list[str], list[str]]:
    """Names (designs, keys) apart from settings."""
    return [i for i in items or [] if "=" not in i], [i for i in items or [] if "=" in i]


@app.command()
def ablate(
    target: Target,
    items: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[DESIGN|KEY|KEY=VALUE]...",
            help="ladder, batch, norm, reference, value, dpo, beta, sync, feedback, overoptimisation; keys; settings",
        ),
    ] = None,
    out: Out = None,
    quick: Quick = False,
    seeds: Seeds = "",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Switch off one key at a time, add them one by one, or any key that you name: what each did, with intervals."""
    asked, settings = _split(items)
    name, sections, task = _load(target, settings, quick, seeds)
    from trueline.commands.ablate import ablate as run

    directory = out or Path("runs") / f"{name}-ablate{'-quick' if quick else ''}"
    shown = Console(stderr=True, highlight=False) if as_json else console
    record = run(asked, task, sections, directory, _command(), shown)
    if as_json:
        print(json.dumps(record))


@app.command()
def shift(
    target: Target,
    overrides: Overrides = None,
    out: Out = None,
    quick: Quick = False,
    seeds: Seeds = "",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """What distribution shift does to DPO and PPO, and what mends it: the paper's tables as rows, with intervals."""
    name, sections, task = _load(target, overrides, quick, seeds)
    from trueline.commands.shift import shift as run

    directory = out or Path("runs") / f"{name}-shift{'-quick' if quick else ''}"
    shown = Console(stderr=True, highlight=False) if as_json else console
    record = run(task, sections, directory, _command(), shown)
    if as_json:
        print(json.dumps(record))


@app.command(name="map")
def map_(
    target: Target,
    items: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=A,B,C]... [KEY=VALUE]...", help="two dials with their values; settings"),
    ] = None,
    out: Out = None,
    quick: Quick = False,
    seeds: Seeds = "",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Which method wins where: DPO, DPO-Iter, PPO and both over any two dials, as a picture."""
    listed = [item for item in items or [] if "," in item]
    name, sections, task = _load(target, [i for i in items or [] if i not in listed], quick, seeds)
    from trueline.commands.map import draw_map
    from trueline.experiments.worldmap import dials_of

    dials, settings = dials_of(sections, listed)
    if settings:  # lists that are values: read again with them
        name, sections, task = _load(target, [i for i in items or [] if i not in listed] + settings, quick, seeds)
        dials, _ = dials_of(sections, [item for item in listed if item not in settings])
    directory = out or Path("runs") / f"{name}-map{'-quick' if quick else ''}"
    shown = Console(stderr=True, highlight=False) if as_json else console
    record = draw_map(dials, task, sections, directory, _command(), shown)
    if as_json:
        print(json.dumps(record))


@app.command()
def theory(
    out: Out = None,
    quick: Annotated[bool, typer.Option("--quick", help="few seeds: some seconds")] = False,
    seeds: Annotated[int | None, typer.Option("--seeds", min=2, help="how many worlds of each kind")] = None,
    as_json: AsJson = False,
) -> None:
    """Exact tables: Theorem 4.1 and its limits, where gradient descent goes, the 8 x 8 study at matched KL."""
    from trueline.commands.theory import QUICK_SEEDS, SEEDS
    from trueline.commands.theory import theory as run

    shown = Console(stderr=True, highlight=False) if as_json else console
    count = seeds or (QUICK_SEEDS if quick else SEEDS)
    record = run(count, out or Path("runs") / "theory", _command(), shown)
    if as_json:
        print(json.dumps(record))


@app.command()
def findings(
    overrides: Overrides = None,
    out: Out = None,
    seeds: Seeds = "",
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """The paper's eight findings on the embedded worlds: reproduced, not reproduced, reversed or undecided."""
    from trueline.commands.findings import findings as run

    shown = Console(stderr=True, highlight=False) if as_json else console
    record = run(overrides or [], seeds, out or Path("runs") / "findings", _command(), shown)
    if as_json:
        print(json.dumps(record))


@app.command()
def train(
    report: Annotated[Path, typer.Argument(metavar="REPORT.json", help="of a study")],
    overrides: Overrides = None,
    out: Out = None,
    to: Annotated[str, typer.Option("--push", metavar="OWNER/NAME", help="a private copy on the hub")] = "",
) -> None:
    """Train what a study's report recommends and leave Hugging Face folders (arm=NAME to choose yourself)."""
    from trueline.commands.recommend import train_recommended

    train_recommended(report, overrides or [], out or Path("runs") / "recommended", _command(), console, to=to)


@app.command()
def evaluate(
    target: Target,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="NAME=FOLDER[,FOLDER...]...", help="checkpoints, one named sft; then settings as KEY=VALUE"
        ),
    ] = None,
    out: Out = None,
    resume: Resume = False,
    as_json: AsJson = False,
) -> None:
    """Measure and compare checkpoints trained anywhere: sft=FOLDER dpo=FOLDER ppo=FOLDER, a report as a study's.

    Several folders of one arm (comma) are its training seeds. reward=FOLDER is reported as the proxy, judge=FOLDER is
    taken for gold (one-label sequence classifiers).
    """
    given = [item for item in overrides or [] if "=" in item and "." not in item.partition("=")[0]]
    settings = [item for item in overrides or [] if item not in given]
    from trueline.commands.evaluate import evaluate_folders, limits_of

    name, sections, task = _load(target, [*limits_of(target, given), *settings], False, "")

    folders: dict[str, list[Path]] = {}
    for item in given:
        arm, _, value = item.partition("=")
        folders.setdefault(arm, []).extend(Path(part) for part in value.split(",") if part)
    shown = Console(stderr=True, highlight=False) if as_json else console
    report = evaluate_folders(
        task, sections, folders, out or Path("runs") / f"{name}-evaluate", _command(), console=shown
    )
    if as_json:
        print(json.dumps(report))


@app.command()
def sample(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="a Hugging Face folder, or a cell of a run")],
    prompt: Annotated[str, typer.Argument(help="what the user says")],
    n: Annotated[int, typer.Option("-n", help="how many responses")] = 3,
    seed: Annotated[int, typer.Option("--seed")] = 0,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens")] = 64,
    greedy: Annotated[bool, typer.Option("--greedy", help="the most likely token each time")] = False,
) -> None:
    """Sample responses from a checkpoint."""
    from trueline.commands.sample import sample_folder

    for text in sample_folder(folder, prompt, n=n, seed=seed, max_new_tokens=max_new_tokens, greedy=greedy):
        print(text)


@app.command()
def judge(
    problems: Problems,
    samples: Annotated[str, typer.Argument(metavar="SAMPLES", help="rows of task_id and completion (docs/code.md)")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="OUT.jsonl", help="a row a sample, in their order")],
    format: ProblemFormat = "auto",
    on_bad_row: OnBadRow = "error",
    stop: Annotated[bool, typer.Option("--stop/--no-stop", help="cut completions where the function ends")] = False,
    submit: Annotated[int, typer.Option("--submit", help="n of n@k")] = 10,
    cluster: Annotated[
        bool, typer.Option("--cluster", help="n@k with one submission a group that behaves alike")
    ] = False,
    workers: Workers = None,
    cpu_seconds: CpuSeconds = 2.0,
    wall_seconds: WallSeconds = None,
    memory_mb: MemoryMb = 512,
    patience: Patience = 1.0,
    prelude: Prelude = None,
    tier: Tier = "auto",
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Judge samples of programs in the sandbox: a row a sample, then pass@k. Goes on where it stopped."""
    from trueline.commands.judge import judge_files
    from trueline.commands.program_options import options_from

    options = options_from(
        cpu_seconds=cpu_seconds, wall_seconds=wall_seconds, memory_mb=memory_mb, patience=patience, prelude=prelude,
        workers=workers, tier=tier, unsafe=unsafe,
    )  # fmt: skip
    summary = judge_files(
        problems, samples, out, options, format=format, on_bad_row=on_bad_row, stop=stop, submit=submit,
        cluster=cluster, console=Console(stderr=True, highlight=False) if as_json else console,
    )  # fmt: skip
    if as_json:
        print(json.dumps(summary))
    if summary["infrastructure"]:
        sys.exit(1)


@app.command()
def report(directory: Annotated[Path, typer.Argument(metavar="DIR", help="the run directory of a study")]) -> None:
    """Judge a finished study again and rebuild report.json and report.html; no model is touched."""
    from trueline.study.report import build

    built = build(directory)
    console.print(built["verdict"]["text"], markup=False)
    console.print(f"report: {directory / 'report.html'}", markup=False)


@app.command()
def env() -> None:
    """Versions and the machine, for a bug report."""
    from trueline.study.identity import versions

    for key, value in versions().items():
        print(f"{key:14} {value}")
    import torch

    print(f"{'cores':14} {os.cpu_count()}")
    print(f"{'cuda':14} {torch.cuda.get_device_name(0) if torch.cuda.is_available() else 'none'}")


@bench_app.command("sandbox")
def bench_sandbox_command(out: Record = None, as_json: AsJson = False) -> None:
    """Programs that the sandbox judges a second, beside plain subprocesses."""
    from trueline.commands.bench import bench_sandbox, sandbox_record
    from trueline.commands.bench_compare import keep

    keep(out, None)
    found = bench_sandbox(console, as_json)
    if out is not None:
        keep(out, sandbox_record(found))
    if as_json:
        print(json.dumps(found))


def _add_bench(name: str, text: str) -> None:
    def command(
        against: Annotated[str, typer.Option("--against", help="trl (installed at the first use) or self")] = "trl",
        out: Record = None,
        size: BenchSize = "small",
        rounds: Annotated[
            int | None, typer.Option("--rounds", help="of each side; default 7, or 3 where it samples")
        ] = None,
        even: Annotated[
            bool, typer.Option("--even", help="every row 64+64 tokens (default: as long as those of HH-RLHF)")
        ] = False,
        device: Device = "auto",
        as_json: AsJson = False,
    ) -> None:
        from trueline.commands.bench_compare import bench_compare

        shown = Console(stderr=True, highlight=False, quiet=not sys.stderr.isatty()) if as_json else console
        record = bench_compare(
            name, shown, against=against, size=size, rounds=rounds, even=even, device=device, out=out
        )
        if as_json:
            print(json.dumps(record))

    command.__doc__ = text
    bench_app.command(name=name)(command)


_add_bench("sft", "An SFT step against the tuned peer, in turn.")
_add_bench("reward", "A step of the reward model against the tuned peer.")
_add_bench("dpo", "A DPO step against the tuned peer.")
_add_bench("ppo", "A PPO iteration against the tuned peer.")
_add_bench("grpo", "A GRPO iteration against the tuned peer.")
_add_bench("rloo", "An RLOO iteration against the tuned peer.")
_add_bench("rollout", "Sampling a batch against transformers' generate at its best setting.")


@bench_app.command("memory")
def bench_memory_command(
    out: Record = None, size: BenchSize = "medium", device: Device = "auto", as_json: AsJson = False
) -> None:
    """PPO's peak memory against the sum of its parts."""
    from trueline.commands.bench_compare import bench_memory

    record = bench_memory(Console(stderr=True, quiet=True) if as_json else console, size=size, device=device, out=out)
    if as_json:
        print(json.dumps(record))


@bench_app.command("statistics")
def bench_statistics_command(
    out: Record = None,
    studies: Annotated[int, typer.Option("--studies", min=50, help="simulated studies of each kind")] = 2500,
    as_json: AsJson = False,
) -> None:
    """Coverage, false positives and power of the study's statistics, over simulated studies with known truth."""
    from trueline.commands.bench_statistics import bench_statistics

    shown = Console(stderr=True, quiet=True) if as_json else console
    record = bench_statistics(shown, out, studies, _command())
    if as_json:
        print(json.dumps(record))


@bench_app.command("curves")
def bench_curves_command(
    out: Record = None,
    quick: Annotated[bool, typer.Option("--quick", help="a few small points")] = False,
    figure: Annotated[Path | None, typer.Option("--figure", metavar="OUT.png", help="draw them")] = None,
    as_json: AsJson = False,
) -> None:
    """Cost of a sample against batch, response length, model size and processes; ours alone."""
    from trueline.commands.bench_compare import bench_curves

    record = bench_curves(Console(stderr=True, quiet=True) if as_json else console, quick=quick, out=out, figure=figure)
    if as_json:
        print(json.dumps(record))


@data_app.command()
def check(
    file: Annotated[list[str], typer.Argument(metavar="FILE...", help="a path, a quoted glob, or several")],
    format: PairFormat = "auto",
    columns: ColumnNames = "",
    as_json: AsJson = False,
) -> None:
    """Rows, format, which column plays which role, quirks and bad rows of a preference file."""
    from trueline.data.check import check as run_check

    found = run_check(tuple(file), format=format, columns=columns.split(",") if columns else ())
    print(json.dumps(found.as_dict())) if as_json else _show_check(found)
    if found.counts.get("bad_rows"):
        sys.exit(2)


@data_app.command()
def show(
    file: Annotated[list[str], typer.Argument(metavar="FILE...")],
    n: Annotated[int, typer.Option("-n", min=1, help="how many pairs")] = 3,
    out: Annotated[Path | None, typer.Option("-o", "--out", metavar="PAGE.html", help="write a page of it")] = None,
    evaluation: Annotated[
        list[str] | None, typer.Option("--eval", metavar="FILE", help="must share no conversation with FILE")
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", metavar="FOLDER", help="whose tokenizer (default: one trained on FILE)")
    ] = None,
    template: Annotated[str, typer.Option("--chat-template", help="a Jinja template, or a file of one")] = "",
    max_prompt_tokens: Annotated[int, typer.Option(min=1, help="as model.max_prompt_tokens")] = 64,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="as model.max_new_tokens")] = 40,
    format: PairFormat = "auto",
    columns: ColumnNames = "",
) -> None:
    """Pairs as the model will see them, what is cut or dropped and why, repeats, contradictions, leaks, statistics."""
    from trueline.commands.show_data import collect, print_examples, write_page

    if out is not None and out.suffix != ".html":
        raise InputError("is no page", where=str(out), field="--out", remedy="write PAGE.html")
    shown = collect(
        file, format=format, columns=columns.split(",") if columns else (), evaluation=tuple(evaluation or ()),
        model=model, template=template, limits=(max_prompt_tokens, max_new_tokens), examples=n,
    )  # fmt: skip
    print_examples(shown, console)
    if out is not None:
        write_page(shown, out, f"trueline data show {' '.join(file)}")
        console.print(f"Written: {out}", markup=False)


@data_app.command()
def label(
    file: Annotated[list[str], typer.Argument(metavar="FILE...", help="pairs, in any form that is read")],
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PAIRS.jsonl", help="the pairs as the judge orders them")],
    judge_url: Annotated[str, typer.Option("--judge-url", metavar="URL", help="an OpenAI-compatible endpoint")],
    judge_model: Annotated[str, typer.Option("--judge-model", metavar="NAME", help="the model to ask there")],
    judge_prompt: Annotated[str, typer.Option("--judge-prompt", help="fenced, or paper (to the letter)")] = "fenced",
    judge_retries: Annotated[int, typer.Option("--judge-retries", min=0, help="in all")] = 1000,
    judge_key_env: Annotated[str, typer.Option(help="environment variable with its key")] = "TRUELINE_JUDGE_KEY",
    limit: Annotated[int | None, typer.Option(min=1, help="at most so many pairs")] = None,
    format: PairFormat = "auto",
    columns: ColumnNames = "",
    as_json: AsJson = False,
) -> None:
    """A judge orders the two sides of every pair, asked both ways round; ties and contradictions are left out."""
    from trueline.commands.label import label_file
    from trueline.rewards.endpoint import EndpointJudge

    if judge_prompt not in ("fenced", "paper"):
        raise InputError(f"unknown prompt {judge_prompt!r}", field="--judge-prompt", remedy="known: fenced, paper")
    cache = out.with_name(out.name + ".judge.jsonl")
    judge = EndpointJudge(
        judge_url, judge_model, cache=cache, key_env=judge_key_env, retries=judge_retries, form=judge_prompt
    )
    found = label_file(
        file, out, judge, format=format, columns=columns.split(",") if columns else (), limit=limit
    )  # fmt: skip
    if as_json:
        print(json.dumps(found))
        return
    console.print(f"{found['kept']} of {found['pairs']} pairs written to {out}", markup=False)
    console.print(
        f"  left out: {found['ties']} ties, {found['inconsistent']} that changed with the order", markup=False
    )
    if found["agrees_with_the_file"] is not None:
        console.print(
            f"  the judge agrees with the file's own labels in {found['agrees_with_the_file']:.0%}", markup=False
        )
    console.print(f"  asked: {', '.join(f'{k} {v}' for k, v in found['judge'].items())}", markup=False)


@data_app.command()
def audit(
    problems: Problems,
    out: Annotated[
        Path | None, typer.Option("-o", "--out", metavar="KEPT.jsonl", help="the fit problems' rows")
    ] = None,
    format: ProblemFormat = "auto",
    on_bad_row: OnBadRow = "error",
    times: Annotated[int, typer.Option("--times", help="runs of each solution")] = 3,
    solutions: Annotated[
        int | None, typer.Option("--solutions", help="of each problem, the first (default: all)")
    ] = None,
    need_solution: Annotated[bool, typer.Option("--need-solution", help="refuse problems without a solution")] = False,
    workers: Workers = None,
    cpu_seconds: CpuSeconds = 2.0,
    wall_seconds: WallSeconds = None,
    memory_mb: MemoryMb = 512,
    patience: Patience = 1.0,
    prelude: Prelude = None,
    tier: Tier = "auto",
    unsafe: Unsafe = False,
    as_json: AsJson = False,
) -> None:
    """Does each problem's own solution pass its tests, every time? Others are refused, or left out (-o)."""
    from trueline.commands.audit import audit_files, refusal
    from trueline.commands.program_options import options_from

    options = options_from(
        cpu_seconds=cpu_seconds, wall_seconds=wall_seconds, memory_mb=memory_mb, patience=patience, prelude=prelude,
        workers=workers, tier=tier, unsafe=unsafe,
    )  # fmt: skip
    found = audit_files(
        problems, out, options, format=format, on_bad_row=on_bad_row, times=times, solutions=solutions,
        need_solution=need_solution, console=Console(stderr=True, highlight=False) if as_json else console,
    )  # fmt: skip
    if as_json:
        print(json.dumps(found))
    if error := refusal(found):
        raise error


def _show_check(found: Any) -> None:
    console.print(f"{found.rows} rows, format {found.format}", markup=False)
    for role, column in found.mapping.items():
        console.print(f"  {role:10}<- {column}", markup=False)
    for name, count in found.counts.items():
        if count:
            console.print(f"  {name.replace('_', ' '):28}{count}", markup=False)
    for name, values in found.lengths.items():
        if values:
            console.print(f"  {name} length in characters: {values}", markup=False)
    for row in found.bad:
        console.print(f"  {row.where}: {row.field}: {row.reason}", markup=False)


def _load(target: str, overrides: list[str] | None, quick: bool, seeds: str) -> tuple[str, dict[str, Any], Any]:
    """Task name, resolved sections, task: every error of the input is found here, before any model is built."""
    from trueline.commands.resolve import resolve

    extra = list(overrides or [])
    if seeds:
        extra.append(f"study.seeds={seeds}")
    return resolve(target, extra, quick)
