"""A dataset of the Hugging Face hub, or of a folder, as one local file: `hub:OWNER/NAME[/CONFIG][:SPLIT][@REVISION]`.

What is read afterwards is a file like any other, so places, checks and fingerprints are those of files. It is fetched
once for each revision and kept under the cache folder.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

from trueline.errors import InputError

__all__ = ["HUB", "HubName", "fetch", "parse"]

HUB = "hub:"
_NAME = re.compile(
    r"(?P<name>(?:\.{0,2}/|~)[^:@]*|[\w.-]+/[\w.-]+)(?:/(?P<config>[\w.-]+))?(?::(?P<split>[\w.-]+))?(?:@(?P<revision>[\w./-]+))?"
)


class HubName(NamedTuple):
    """The parts of a name; `config` and `split` may be empty where the dataset has only one."""

    name: str
    config: str
    split: str
    revision: str

    @property
    def is_folder(self) -> bool:
        return self.name.startswith((".", "/", "~"))


def parse(text: str) -> HubName:
    """The parts of "hub:OWNER/NAME[/CONFIG][:SPLIT][@REVISION]"; a folder takes no config. Raises `InputError`."""
    match = _NAME.fullmatch(text.removeprefix(HUB))
    if not match:
        raise InputError(
            "is not a name of a dataset",
            where=text,
            field="data.path",
            remedy="write hub:OWNER/NAME, with /CONFIG, :SPLIT, @REVISION where needed; or hub:./FOLDER",
        )
    return HubName(match["name"], match["config"] or "", match["split"] or "", match["revision"] or "main")


def fetch(text: str) -> Path:
    """The local Parquet file of that split. Raises `InputError` where it cannot be had, with what to choose from."""
    wanted = parse(text)
    try:
        import datasets
    except ImportError:
        raise InputError(
            "reading a dataset needs the datasets library",
            where=text,
            field="data.path",
            remedy="pip install 'trueline[data]'",
        ) from None
    revision = _folder_state(Path(wanted.name).expanduser(), text) if wanted.is_folder else _commit(wanted, text)
    kept = _cache() / f"{_slug(wanted)}-{revision[:12]}.parquet"
    if kept.exists():
        return kept
    datasets.disable_progress_bars()
    try:
        found = _load(datasets, wanted, text, None if wanted.is_folder else revision)
    except InputError:
        raise
    except Exception as error:  # the library raises whatever its many readers raise
        reason = f"cannot be loaded ({type(error).__name__}: {str(error).splitlines()[0][:160] if str(error) else ''})"
        raise InputError(
            reason, where=text, field="data.path", remedy="check the name, the network and the split"
        ) from None
    kept.parent.mkdir(parents=True, exist_ok=True)
    part = kept.with_suffix(f".{os.getpid()}.part")
    found.to_parquet(str(part))
    part.replace(kept)
    return kept


def _load(datasets: Any, wanted: HubName, text: str, revision: str | None) -> Any:
    name = str(Path(wanted.name).expanduser()) if wanted.is_folder else wanted.name
    if wanted.is_folder and (Path(name) / "dataset_info.json").is_file():  # of save_to_disk
        return datasets.load_from_disk(name)
    if wanted.is_folder and (Path(name) / "dataset_dict.json").is_file():
        splits = datasets.load_from_disk(name)
    else:
        configs = datasets.get_dataset_config_names(name, revision=revision)
        if not wanted.config and len(configs) > 1 and "default" not in configs:
            raise InputError(
                f"has several configurations: {', '.join(configs[:20])}",
                where=text,
                field="data.path",
                remedy=f"write hub:{wanted.name}/{configs[0]}",
            )
        splits = datasets.load_dataset(name, wanted.config or None, revision=revision)
    if wanted.split and wanted.split not in splits:
        known = ", ".join(splits)
        raise InputError(f"has no split {wanted.split!r}", where=text, field="data.path", remedy=f"its splits: {known}")
    if not wanted.split and len(splits) > 1:
        raise InputError(
            f"has several splits: {', '.join(splits)}",
            where=text,
            field="data.path",
            remedy=f"say which: hub:{wanted.name}:{next(iter(splits))}",
        )
    return splits[wanted.split or next(iter(splits))]


def _commit(wanted: HubName, text: str) -> str:
    """The commit that the revision means now; without network, the one that was fetched last."""
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(wanted.name, revision=wanted.revision, timeout=20).sha
    except Exception as error:
        kept = sorted(_cache().glob(f"{_slug(wanted)}-*.parquet"), key=lambda file: file.stat().st_mtime)
        if kept:
            return kept[-1].stem.rpartition("-")[2]
        reason = f"cannot be found on the hub ({type(error).__name__})"
        remedy = "check the name and the network; a local copy is read with hub:./FOLDER or as files"
        raise InputError(reason, where=text, field="data.path", remedy=remedy) from None


def _folder_state(folder: Path, text: str) -> str:
    if not folder.is_dir():
        raise InputError("folder not found", where=text, field="data.path", remedy="check data.path")
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    state = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(repr(state).encode()).hexdigest()


def _slug(wanted: HubName) -> str:
    parts = (wanted.name, wanted.config, wanted.split, "" if wanted.revision == "main" else wanted.revision)
    return "--".join(re.sub(r"[^\w.-]+", "_", part).strip("_") for part in parts if part)


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "trueline" / "datasets"
