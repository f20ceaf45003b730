"""The wheel carries the packages, and they work outside the repository."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", folder, ROOT]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return next(folder.glob("flowhand-*.whl"))


def test_the_wheel_holds_the_packages_only(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert tops == {"flowhand", "policies", "envs", "conf"}
    assert not any("plugin" in name or "lerobot_policy" in name for name in names)
    for needed in (
        "policies/py.typed",
        "envs/py.typed",
        "flowhand/py.typed",
        "flowhand/pages/report.css",
        "conf/experiment/demo.yaml",
    ):
        assert needed in names


@pytest.mark.slow
def test_the_wheel_works_alone(wheel, tmp_path):
    program = (
        "import policies, envs, conf.verbs.control; assert 'site' in policies.__file__, policies.__file__"
    )
    site = tmp_path / "site"
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel], check=True
    )
    result = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(site)!r}); {program}"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
