"""Metrics to TensorBoard, Weights & Biases or trackio beside our own logs. None by default; none ever asks to log in.

What is sent is what a cell's `metrics.jsonl` holds, under the same names, by the same steps. A tracker that fails is
told once and left out: it is no reason to end a run.
"""

from __future__ import annotations

import importlib.util
import io
import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Literal, Protocol

from trueline.errors import InputError

__all__ = ["NAMES", "Trackers", "check_trackers"]

Name = Literal["tensorboard", "wandb", "trackio"]
NAMES: tuple[Name, ...] = ("tensorboard", "wandb", "trackio")
PROJECT = "trueline"


class _Tracker(Protocol):
    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def check_trackers(names: Sequence[str]) -> None:
    """Raise InputError for a tracker whose library is not there, before anything is trained."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise InputError(
                f"{name} is not installed",
                where="settings",
                field="train.report_to",
                remedy=f"pip install {name}, or leave it out",
            )


class Trackers:
    """The trackers of one cell. `folder` is the run directory, whose `trackers/` takes what they write."""

    def __init__(
        self,
        names: Sequence[str],
        folder: Path,
        run: str,
        settings: Mapping[str, Any],
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._tell, self._about = tell, (folder, run, settings)
        self._wanted, self._open = list(names), dict[str, _Tracker]()

    def _begin(self) -> None:
        """With the first step: cells that only measure have none, and no run of theirs stands empty in a list."""
        while self._wanted:
            name = self._wanted.pop(0)
            try:
                self._open[name] = _KINDS[name](*self._about)
            except Exception as error:  # a library outside our reach: any failure of it is told, none ends a run
                self._tell(f"{name} was left out: {type(error).__name__}: {error}")

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        """Finite numbers of a step; others have no place in a curve."""
        self._begin()
        finite = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float) and math.isfinite(v)}
        self._each(lambda tracker: tracker.log(finite, step))

    def close(self) -> None:
        """Flush and end them."""
        self._each(lambda tracker: tracker.close())
        self._open.clear()

    def _each(self, act: Callable[[_Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                act(tracker)
            except Exception as error:
                self._tell(f"{name} was left out: {type(error).__name__}: {error}")
                del self._open[name]


class _TensorBoard:
    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of its protocol buffers
            from torch.utils.tensorboard import SummaryWriter
        self._writer = SummaryWriter(str(_under(folder, "tensorboard") / run))
        self._writer.add_text("settings", "\n".join(f"    {key}: {value}" for key, value in settings.items()))

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        for key, value in metrics.items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class _Wandb:
    """Online only where a key or a mode was given; otherwise offline, to be sent with `wandb sync`."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if os.environ.get("WANDB_API_KEY") else "offline")
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT), group=folder.name, name=run,
            dir=str(_under(folder, "wandb").parent), mode=mode,
            config=dict(settings), reinit="create_new",
        )  # fmt: skip

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        self._run.finish()


class _Trackio:
    """Into a database in the run directory, or to the space that TRACKIO_SPACE_ID names."""

    def __init__(self, folder: Path, run: str, settings: Mapping[str, Any]) -> None:
        os.environ.setdefault("TRACKIO_DIR", str(_under(folder, "trackio")))
        with _unheard():
            import trackio

            self._run = trackio.init(
                project=PROJECT, name=f"{folder.name}/{run}", config=dict(settings), embed=False, resume="allow",
                space_id=os.environ.get("TRACKIO_SPACE_ID"),
            )  # fmt: skip
        self._finish = trackio.finish  # not the run's own, which would be finished again, aloud, when Python ends

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self) -> None:
        with _unheard():
            self._finish()


@contextmanager
def _unheard() -> Iterator[None]:
    """What a library prints is not part of our output."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _under(folder: Path, name: str) -> Path:
    path = folder / "trackers" / name
    path.mkdir(parents=True, exist_ok=True)
    return path


_KINDS: dict[str, Callable[[Path, str, Mapping[str, Any]], _Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _Wandb,
    "trackio": _Trackio,
}
