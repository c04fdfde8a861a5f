"""What our programs set before torch is imported, and what they leave alone."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from biggan_hf.before_torch import SLEEP, idle_cores, quota, usable_cores


REPORT = "import json, os; print(json.dumps({k: v for k, v in os.environ.items() if k[:3] in ('OMP', 'GOM', 'KMP')}))"


def environment_after(tmp_path: Path, first_line: str, **given: str) -> dict[str, str]:
    """The switches of OpenMP in a program that begins with this line and imports the package."""
    script = tmp_path / "script.py"
    (tmp_path / "torch.py").write_text("raise ImportError")  # before it all is done, and torch takes seconds
    guarded = "try: import biggan_hf.before_torch\nexcept ImportError: pass"
    script.write_text(f"{first_line}\n{guarded}\n{REPORT}\n")
    environment = {name: value for name, value in os.environ.items() if name[:3] not in ("OMP", "GOM", "KMP")}
    printed = subprocess.check_output([sys.executable, str(script)], env=environment | given, text=True)
    return json.loads(printed.splitlines()[-1])


def test_our_programs_let_threads_sleep(tmp_path: Path) -> None:
    found = environment_after(tmp_path, '__program__ = "biggan_hf"')
    assert found.items() >= SLEEP.items() and int(found.get("OMP_NUM_THREADS", 1)) >= 1


def test_programs_of_others_are_left_alone(tmp_path: Path) -> None:
    assert environment_after(tmp_path, "") == {}


def test_what_the_user_set_stays(tmp_path: Path) -> None:
    given = {"OMP_WAIT_POLICY": "ACTIVE", "OMP_NUM_THREADS": "7"}
    assert environment_after(tmp_path, '__program__ = "biggan_hf"', **given) == given


def test_cores() -> None:
    bound = usable_cores()
    assert 1 <= bound <= (os.cpu_count() or 1) and usable_cores(idle=0.3) == 1
    assert usable_cores(idle=bound + 3) == bound
    assert 0 <= idle_cores(0.05) <= (os.cpu_count() or 1) + 0.1


@pytest.mark.parametrize(
    ("group", "files", "granted"),
    [
        ("0::/", {"cpu.max": "150000 100000"}, 1.5),
        ("0::/a/b", {"a/cpu.max": "100000 100000", "a/b/cpu.max": "max 100000"}, 1),  # the group above limits it
        ("0::/", {"unified/cpu.max": "200000 100000"}, 2),
        ("0::/", {"cpu.max": "max 100000"}, math.inf),
        (
            "4:cpu,cpuacct:/x",
            {"cpu,cpuacct/cpu.cfs_quota_us": "50000", "cpu,cpuacct/cpu.cfs_period_us": "100000"},
            0.5,
        ),
        ("4:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, math.inf),
        ("4:memory:/", {}, math.inf),
    ],
)
def test_quota_of_a_container(tmp_path: Path, group: str, files: dict[str, str], granted: float) -> None:
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{group}\n")
    for name, text in files.items():
        file = tmp_path / "sys/fs/cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{text}\n")
    assert quota(tmp_path) == granted
    assert usable_cores(tmp_path) == min(usable_cores(), math.ceil(min(granted, 2**10)))


def test_without_control_groups_there_is_no_quota(tmp_path: Path) -> None:
    assert quota(tmp_path) == math.inf
