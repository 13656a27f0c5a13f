"""Frames between the judge and a worker (length, then JSON, with open files beside it), and lines out of a run."""

from __future__ import annotations

import json
import os
import socket
import struct
from typing import Any

__all__ = ["Frames", "report", "send_frame"]

_HEADER = struct.Struct(">I")
MAX_FRAME = 1 << 28


def send_frame(sock: socket.socket, message: Any, files: list[int] | None = None) -> None:
    """Send one message; `files` travel with its first byte."""
    body = json.dumps(message).encode("ascii")
    data = memoryview(_HEADER.pack(len(body)) + body)
    sent = socket.send_fds(sock, [data], files) if files else 0
    sock.sendall(data[sent:])


class Frames:
    """The messages that arrive on a socket, put together from pieces."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock, self._data, self.files = sock, bytearray(), []

    def read(self) -> bool:
        """Take in what is there (waits where the socket does); False at the end of the stream."""
        data, files, _, _ = socket.recv_fds(self._sock, 1 << 16, 4)
        self.files += files
        self._data += data
        return bool(data)

    def next(self) -> Any:
        """The next whole message, or None. Raises ValueError on one that is too long."""
        if len(self._data) < _HEADER.size:
            return None
        (length,) = _HEADER.unpack_from(self._data)
        if length > MAX_FRAME:
            raise ValueError("frame too long")
        end = _HEADER.size + length
        if len(self._data) < end:
            return None
        message = json.loads(bytes(self._data[_HEADER.size : end]))
        del self._data[:end]
        return message


def report(kind: str, *parts: str, fd: int = 3, _write=os.write, _dumps=json.dumps) -> None:
    """One line of JSON from a run to its keeper. The functions are bound early: the candidate may replace them."""
    data = memoryview(_dumps([kind, *parts]).encode("ascii") + b"\n")
    while data:
        data = data[_write(fd, data) :]
