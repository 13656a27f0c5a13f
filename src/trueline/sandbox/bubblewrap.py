"""The outer wall: a bubblewrap command that leaves a bare interpreter alone in empty namespaces."""

from __future__ import annotations

import glob
import os
import shutil
import sys

__all__ = ["ENVIRONMENT", "bubblewrap_command"]

# Sets in the same order each time; the C library's functions found at the start, not in each run anew.
ENVIRONMENT = {"PYTHONHASHSEED": "0", "LD_BIND_NOW": "1"}

_HIDDEN = ("/usr/share", "/usr/src", "/usr/include", "/usr/local/share", "/usr/games", "/usr/sbin")


def bubblewrap_command(info: int) -> list[str]:
    """What goes before the interpreter's command: own user, process, network, host and message namespaces, no /proc, no
    /dev, a read-only root that holds the system's libraries and the interpreter, nobody's identity, no capabilities.

    `info` is the descriptor to which bubblewrap writes the worker's process id. Raises FileNotFoundError without bwrap.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bwrap is not installed")
    command = [program, "--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"]
    command += ["--unshare-cgroup-try", "--disable-userns", "--as-pid-1", "--cap-drop", "ALL", "--new-session"]
    command += ["--uid", "65534", "--gid", "65534", "--clearenv"]
    command += [part for name, value in ENVIRONMENT.items() for part in ("--setenv", name, value)]
    command += ["--info-fd", str(info), "--ro-bind", "/usr", "/usr"]
    for path in ("/lib", "/lib32", "/lib64"):
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            command += ["--ro-bind", path, path]
    if not sys.base_prefix.startswith("/usr"):
        command += ["--ro-bind", sys.base_prefix, sys.base_prefix]
    for path in [*filter(os.path.isdir, _HIDDEN), *_packages()]:
        command += ["--tmpfs", path]
    return [*command, "--remount-ro", "/", "--chdir", "/"]


def _packages() -> list[str]:
    """Folders of installed packages: a data set with answers may lie there."""
    roots = {"/usr", "/usr/local", sys.base_prefix}
    found = {path for root in roots for path in glob.glob(f"{glob.escape(root)}/lib*/python3*/*-packages")}
    return sorted(os.path.realpath(path) for path in found)
