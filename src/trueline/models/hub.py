"""Model folders by name: a folder of this machine, or one that the Hugging Face hub has, fetched into its cache."""

from __future__ import annotations

import re
from pathlib import Path

from trueline.errors import InputError

__all__ = ["local_folder"]

_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]


def local_folder(name: str, revision: str = "main", *, where: str = "settings", field: str = "model.path") -> Path:
    """The folder of `name`: itself where it exists, else the hub's snapshot, without pickled weights and without code.

    Raises `InputError` where there is neither, or the hub cannot be reached and its cache has no copy.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if not _NAME.fullmatch(name):
        raise InputError(
            f"no such folder: {name}",
            where=where,
            field=field,
            remedy="give a Hugging Face model folder, or a name on the hub: ORG/NAME",
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=_FILES))
    except RepositoryNotFoundError:
        reason, remedy = (
            f"no folder here and no model on the hub: {name}",
            "check the name; gated models need `hf auth login`",
        )
    except RevisionNotFoundError:
        reason, remedy = f"{name} has no revision {revision!r}", "check model.revision"
    except (LocalEntryNotFoundError, OSError) as error:
        reason = f"no folder here, and the hub cannot be reached for {name} ({type(error).__name__})"
        remedy = "give a folder of this machine, or run where there is a network"
    raise InputError(reason, where=where, field=field, remedy=remedy)
