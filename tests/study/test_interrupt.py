"""An interrupted run leaves nothing behind: no worker, and no thread that writes to a closed pipe at exit."""

from __future__ import annotations

import threading

import pytest

from trueline.commands.resolve import resolve
from trueline.commands.run import design_of
from trueline.study.design import nodes_of_stage
from trueline.study.execute import Executor


@pytest.mark.integration
def test_an_interrupt_ends_the_thread_that_manages_the_workers(tmp_path) -> None:
    """The interpreter's exit writes to that thread's pipe: one that still lives then may have closed it."""
    settings = ["world.demonstrations=200", "sft.epochs=1"]
    _, sections, task = resolve("dialogue", settings, True)

    def report(key, progress) -> None:
        if progress.note != "queued":
            raise KeyboardInterrupt

    executor = Executor(tmp_path, task, sections, report)
    with pytest.raises(KeyboardInterrupt):
        executor.run(nodes_of_stage(design_of(task, sections), "sft", 0))
    assert [t.name for t in threading.enumerate() if "ExecutorManager" in type(t).__name__] == []
