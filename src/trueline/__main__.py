"""`python -m trueline` is the same program as `trueline`."""

from __future__ import annotations

from trueline.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main()
