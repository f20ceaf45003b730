"""What lies on the Hugging Face hub, as a folder: from the local cache, or downloaded into it; and the way there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .reader import required

REPO = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}", re.ASCII)


def is_repo_id(where: str) -> bool:
    """Whether it may be the name of a data set on the hub, "owner/name"."""
    return REPO.fullmatch(where) is not None and ".." not in where and not where.startswith((".", "-", "/"))


SCHEME = "hf://"
KINDS = {"dataset": "data set", "model": "policy"}  # of repositories on the hub


def address(where: str) -> tuple[str, str] | None:
    """Name and revision of "hf://owner/name@revision"; None where it is no such address.

    Raises:
        ValueError: it begins like one, and names nothing that the hub can have.
    """
    if not where.startswith(SCHEME):
        return None
    repo, _, revision = where.removeprefix(SCHEME).partition("@")
    if not is_repo_id(repo):
        raise ValueError(f"{where} is no address on the hub; expected hf://OWNER/NAME or hf://OWNER/NAME@REVISION")
    return repo, revision or "main"


def on_hub(where: str) -> bool:
    """Whether it may name something on the hub: "owner/name", with "@revision" after it or hf:// before it."""
    return address(where) is not None or is_repo_id(where.partition("@")[0])


def fetched(
    repo: str,
    revision: str = "main",
    cache_dir: Path | str | None = None,
    endpoint: str | None = None,
    kind: str = "dataset",
) -> Path:
    """The folder of what lies there, whose name is the commit that it was made from.

    A complete copy in the local cache is taken without a word to the hub. Otherwise what is missing is downloaded; a
    download that was interrupted goes on where it stopped.

    Args:
        repo: "owner/name".
        revision: branch, tag or commit.
        cache_dir: of the hub's library; None: where that keeps it.
        endpoint: address of the hub; None: the public one, or HF_ENDPOINT.
        kind: dataset | model.

    Raises:
        ValueError: there is no such repository, or the hub cannot be reached.
    """
    hub = required("huggingface_hub", f"the {KINDS[kind]} {repo!r} of the hub")
    options = {"repo_type": kind, "revision": revision, "cache_dir": cache_dir, "endpoint": endpoint}
    try:
        folder = hub.snapshot_download(repo, local_files_only=True, **options)
    except Exception:  # not there, or not whole; the library has a kind of error for each
        try:
            folder = hub.snapshot_download(repo, **options)
        except Exception as error:  # and many for what can go wrong on the way
            text = " ".join(str(error).split())[:200]
            raise ValueError(
                f"{repo} is neither a path here nor a {KINDS[kind]} that the hub gives: {type(error).__name__}: {text}"
            ) from error
    return Path(folder)


def pushed(
    folder: Path,
    repo: str,
    kind: str,
    files: Sequence[str],
    *,
    message: str,
    private: bool = True,
    tag: str = "",
    endpoint: str | None = None,
) -> str:
    """Uploads files as one commit; its id. Who may is said by the hub's own log-in (`hf auth login`, or HF_TOKEN).

    Args:
        folder: where the files lie.
        repo: "owner/name"; it is made where it is not there yet.
        kind: dataset | model.
        files: paths in the folder; what is on the hub under other names stays.
        message: of the commit.
        private: whether a repository that is made is for its owner alone.
        tag: that is moved to the commit; empty: none.
        endpoint: address of the hub; None: the public one, or HF_ENDPOINT.

    Raises:
        ValueError: the hub cannot be reached, or refuses.
    """
    hub = required("huggingface_hub", f"pushing to {repo!r} on the hub")
    api = hub.HfApi(endpoint=endpoint)
    added = [hub.CommitOperationAdd(name, str(folder / name)) for name in files]
    try:
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        commit = api.create_commit(repo, added, commit_message=message, repo_type=kind)
        if tag:
            if _has(api, repo, kind, tag):
                api.delete_tag(repo, tag=tag, repo_type=kind)
            api.create_tag(repo, tag=tag, revision=commit.oid, repo_type=kind)
    except Exception as error:  # the library has many kinds for what can go wrong on the way
        text = " ".join(str(error).split())[:200]
        raise ValueError(f"the hub does not take {repo}: {type(error).__name__}: {text}") from error
    return commit.oid


def _has(api: Any, repo: str, kind: str, tag: str) -> bool:
    return any(each.name == tag for each in api.list_repo_refs(repo, repo_type=kind).tags)
