"""A data set on the Hugging Face hub as a folder: from the local cache, or downloaded into it."""

from __future__ import annotations

import re
from pathlib import Path

from .reader import required

REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


def is_repo_id(where: str) -> bool:
    """Whether it may be the name of a data set on the hub, "owner/name"."""
    return REPO.fullmatch(where) is not None and ".." not in where and not where.startswith((".", "-", "/"))


def fetched(
    repo: str, revision: str = "main", cache_dir: Path | str | None = None, endpoint: str | None = None
) -> Path:
    """The folder of a data set, whose name is the commit that it was made from.

    A complete copy in the local cache is taken without a word to the hub. Otherwise what is missing is downloaded; a
    download that was interrupted goes on where it stopped.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit.
        cache_dir: of the hub's library; None: where that keeps it.
        endpoint: address of the hub; None: the public one, or HF_ENDPOINT.

    Raises:
        ValueError: there is no such data set, or the hub cannot be reached.
    """
    hub = required("huggingface_hub", f"the data set {repo!r} of the hub")
    options = {"repo_type": "dataset", "revision": revision, "cache_dir": cache_dir, "endpoint": endpoint}
    try:
        folder = hub.snapshot_download(repo, local_files_only=True, **options)
    except Exception:  # not there, or not whole; the library has a kind of error for each
        try:
            folder = hub.snapshot_download(repo, **options)
        except Exception as error:  # and many for what can go wrong on the way
            text = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{repo} is neither a path here nor a data set that the hub gives: {type(error).__name__}: {text}"
            ) from error
    return Path(folder)
