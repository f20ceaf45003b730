"""The commit is that of the package's own clone, and takes no git program to find."""

import subprocess
from pathlib import Path

import pytest

from flowhand.contracts import provenance

ROOT = Path(__file__).parents[2]


def git(folder, *words):
    identity = ("-c", "user.name=x", "-c", "user.email=x@y")
    return subprocess.run(["git", *identity, *words], cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.fixture
def clone(tmp_path):
    git(tmp_path, "init", "-q", "-b", "main", "clone")
    git(tmp_path / "clone", "commit", "-q", "--allow-empty", "-m", "one")
    return tmp_path / "clone"


def test_the_commit_is_what_git_says(clone, tmp_path):
    expected = git(clone, "rev-parse", "HEAD").strip()
    assert provenance.revision(clone) == expected
    git(clone, "worktree", "add", "-q", "-b", "other", tmp_path / "tree")
    git(tmp_path / "tree", "commit", "-q", "--allow-empty", "-m", "two")
    other = git(tmp_path / "tree", "rev-parse", "HEAD").strip()
    assert other != expected
    assert provenance.revision(tmp_path / "tree") == other
    git(clone, "pack-refs", "--all")
    assert provenance.revision(clone) == expected
    assert provenance.revision(tmp_path / "tree") == other
    git(clone, "checkout", "-q", "--detach")
    assert provenance.revision(clone) == expected


def test_the_commit_is_not_that_of_the_working_directory(clone, monkeypatch):
    expected = provenance.revision()
    monkeypatch.setenv("PATH", "")
    monkeypatch.chdir(clone)
    assert provenance.revision() == expected != provenance.revision(clone)


def test_a_package_that_lies_in_no_clone_has_no_commit(tmp_path, clone):
    (clone / "site-packages").mkdir()
    assert provenance.revision(clone / "site-packages") == ""
    (tmp_path / ".git").write_text("gitdir: /nowhere\n")
    assert provenance.revision(tmp_path) == ""
    (clone / ".git" / "HEAD").write_text("ref: refs/heads/../../../secret\n")
    (clone.parent / "secret").write_text("no commit")
    assert provenance.revision(clone) == ""
