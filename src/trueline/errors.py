"""The error tree. Each error is one line: the place, the field, the reason, the remedy; and knows its exit code."""

from __future__ import annotations

__all__ = ["InputError", "NumericsError", "RunError", "TruelineError"]


class TruelineError(Exception):
    """A failure of our own machinery (exit code 1). Never scored as the model's failure."""

    exit_code = 1


class InputError(TruelineError):
    """Something the user gave cannot be used (exit code 2): raised before any model is built.

    `where` is a file with its line ("pairs.jsonl:2") or a setting's place ("run.yaml"), `field` the column or key,
    `reason` what is wrong with it, `remedy` what to do about it.
    """

    exit_code = 2

    def __init__(self, reason: str, *, where: str = "", field: str = "", remedy: str = "") -> None:
        self.where, self.field, self.reason, self.remedy = where, field, reason, remedy
        head = ": ".join(part for part in (where, field) if part)
        super().__init__(f"{head}: {reason}" if head else reason)

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}; {self.remedy}" if self.remedy else text

    def __reduce__(self):  # keyword arguments survive the trip between worker processes
        return _rebuild, (type(self), self.reason, self.where, self.field, self.remedy)


class RunError(TruelineError):
    """A run directory, checkpoint or cell is not what it should be (exit code 1)."""


class NumericsError(TruelineError):
    """A loss, gradient, reward or log-probability is not finite, or a start gate does not hold (exit code 1).

    `rows` names the rows of the batch that made it so, where it is known.
    """

    def __init__(self, reason: str, *, rows: tuple[str, ...] = ()) -> None:
        self.rows = rows
        super().__init__(reason)

    def __reduce__(self):
        return _rebuild_numerics, (str(self), self.rows)


def _rebuild_numerics(reason: str, rows: tuple[str, ...]) -> NumericsError:
    return NumericsError(reason, rows=rows)


def _rebuild(kind: type[InputError], reason: str, where: str, field: str, remedy: str) -> InputError:
    return kind(reason, where=where, field=field, remedy=remedy)
