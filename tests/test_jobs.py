"""The Jobs of docs/jobs.md, as the installed client would send them, and examples/job.py, which keeps a run."""

import fnmatch
import inspect
import re
import runpy
import shlex
import shutil
import sys
import tomllib
from pathlib import Path
from typing import Any

import documented
import pytest
from click.testing import CliRunner, Result
from huggingface_hub import HfApi, JobHardware
from huggingface_hub.cli.hf import app
from huggingface_hub.utils._parsing import parse_duration
from packaging.requirements import Requirement
from training_runs import arguments

import biggan_hf
from biggan_hf.training import parse_arguments
from biggan_hf.training.logs import read_lines


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "jobs.md").read_text(encoding="utf-8")
JOB = ROOT / "examples" / "job.py"
LINES = "\n".join(block.text for block in documented.blocks("docs/jobs.md")).replace("\\\n", " ").splitlines()
JOBS = [shlex.split(line)[1:] for line in LINES if line.startswith("hf jobs uv run ")]

sys.path.append(str(ROOT / "benchmarks"))

import needs  # noqa: E402


pytestmark = pytest.mark.usefixtures("bars_as_before")

# The page


def client(*words: str) -> Result:
    return CliRunner().invoke(app, [*words])


def shown(result: Result) -> dict[str, list[str]]:
    """What a dry run says that it would send, by name."""
    assert result.exit_code == 0, result.output
    values: dict[str, list[str]] = {}
    for name, value in re.findall(r"^  (\w*) +(.+)$", result.output, re.MULTILINE):  # no name: another value
        values.setdefault(name or [*values][-1], []).append(value)
    return values


def test_jobs_of_the_page() -> None:
    assert len(JOBS) == 2  # test_documented.py tries the other commands


@pytest.mark.parametrize("words", JOBS, ids=" ".join)
def test_client_takes_a_job(words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("HF_TOKEN", "hf_dummy")
    job = shown(client(*words[:3], "--dry-run", *words[3:]))
    # An option that the client does not know, it would take for the script.
    assert job["script"] == ["examples/job.py"] and job["labels"][0].startswith("name=")
    assert job["flavor"][0].removesuffix(" (from script)") in set(JobHardware)
    assert job["secrets"] == ["HF_TOKEN=*** (from script)"] and "hf_dummy" not in str(job)
    assert job["volumes"][0] == "./dist:/wheels (from script)"

    bucket, *options = shlex.split(job["args"][0])
    assert bucket.startswith("hf://buckets/USER/runs/")
    options += ["--output_dir", str(tmp_path), "--resume_from_checkpoint", "latest"]
    _, data, training = parse_arguments(options)
    mounted = [volume.partition(":")[2] for volume in job["volumes"][1:]]
    assert [data.dataset_name] == (mounted or ["uoft-cs/cifar10"])
    limit = parse_duration(job["timeout"][0].removesuffix(" (from script)"))
    assert limit - 20 * 60 <= 60 * (training.max_train_minutes or 0) < limit - 10 * 60


def test_an_option_that_the_client_does_not_know_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    words = [word.replace("--detach", "--detached") for word in JOBS[0]]
    assert shown(client(*words[:3], "--dry-run", *words[3:]))["script"] != ["examples/job.py"]


def test_costs() -> None:
    price = re.search(r"\$(\d+\.\d\d) an hour", PAGE)
    assert price is not None
    assert "\n".join(needs.table_of_costs(float(price[1]))) in PAGE
    # By hand: 125,000 steps of 200 pictures at 8,535 a second take 2,929 s.
    assert needs.measured_trainings()[0].hours * 3_600 == pytest.approx(2_929, abs=1)


# The script


@pytest.fixture
def header() -> dict[str, Any]:
    lines = JOB.read_text(encoding="utf-8").partition("# ///\n")[0].splitlines()
    assert lines[0] == "# /// script"
    return tomllib.loads("\n".join(line.removeprefix("#").removeprefix(" ") for line in lines[1:]))


def test_header_is_that_of_the_package(header: dict[str, Any]) -> None:
    setup = documented.metadata()
    (package,) = map(Requirement, header["dependencies"])
    assert package.name == setup["name"] and package.extras == {"train"} <= setup["extras_require"].keys()
    assert header["requires-python"] == setup["python_requires"]
    # As `pip wheel` names it, in the folder that is mounted.
    assert package.url == f"file:///wheels/biggan_hf-{biggan_hf.__version__}-py3-none-any.whl"
    assert header["tool"]["hf-jobs"]["volumes"] == ["./dist:/wheels"]


class Buckets:
    """`sync_bucket` with folders below `place` for buckets."""

    def __init__(self, place: Path) -> None:
        self.place = place
        self.sent = 0
        self.fails = False

    def __call__(self, source: str, dest: str, **options: Any) -> None:
        inspect.signature(HfApi.sync_bucket).bind(None, source, dest, **options)  # what the client does not know
        if dest.startswith("hf://"):
            self.sent += 1
            if self.fails:
                raise OSError("the network is down")
        here, there = (Path(str(place).replace("hf://buckets", str(self.place))) for place in (source, dest))
        if options.get("delete"):
            shutil.rmtree(there, ignore_errors=True)
        exclude = options.get("exclude", [])
        for path in here.rglob("*") if here.exists() else ():
            name = path.relative_to(here)
            if path.is_file() and not any(fnmatch.fnmatchcase(name.as_posix(), pattern) for pattern in exclude):
                (there / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, there / name)


@pytest.fixture
def buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Buckets:
    buckets = Buckets(tmp_path / "buckets")
    monkeypatch.setattr("huggingface_hub.sync_bucket", buckets)
    return buckets


BUCKET = "hf://buckets/user/runs/mine"


def job(folder: Path, monkeypatch: pytest.MonkeyPatch, **changed: Any) -> Any:
    """The function of a Job that starts in this folder."""
    folder.mkdir()
    monkeypatch.chdir(folder)
    train = runpy.run_path(str(JOB))["train"]
    train.__globals__.update(changed)
    return train


def test_the_next_job_goes_on(
    buckets: Buckets, pictures: Path, tmp_path: Path, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    options = arguments(pictures, Path("elsewhere"), "--sample_steps", "0", steps=2)
    job(tmp_path / "first", monkeypatch)(BUCKET, *options)
    kept = buckets.place / "user" / "runs" / "mine"
    assert (kept / "checkpoint-2").is_dir() and not [*kept.rglob(".*")]  # and no lock of the machine that is gone
    assert [line["step"] for line in read_lines(kept / "log.jsonl")] == [1, 2]

    capsys.readouterr()
    job(tmp_path / "second", monkeypatch)(BUCKET, "--max_train_steps", "4", "--dry_run")  # the folder tells the rest
    assert re.search(r"weights +of step 2, checkpoint-2\n", capsys.readouterr().out)
    assert (kept / "checkpoint-2" / "training_state.pt").is_file()


def test_a_job_sends_while_it_trains_and_when_it_is_ended(
    buckets: Buckets, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    def main(options: list[str]) -> None:
        (Path("run") / "checkpoint").write_text("half")
        for buckets.fails in (True, False):
            before = buckets.sent
            while buckets.sent < before + 2:
                pass
        raise SystemExit(143)  # as after SIGTERM

    with pytest.raises(SystemExit, match="143"):
        job(tmp_path / "first", monkeypatch, main=main, SECONDS=0.001)(BUCKET)
    assert (buckets.place / "user" / "runs" / "mine" / "checkpoint").read_text() == "half"
    assert f"not sent to {BUCKET}: the network is down" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--preset", "demo"], ["hf://buckets/user/runs"], ["hf://buckets/user/runs/"]])
def test_a_job_needs_a_folder_of_a_bucket(
    words: list[str], buckets: Buckets, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match="the first argument must be hf://buckets/USER/BUCKET/FOLDER, got "):
        job(tmp_path / "first", monkeypatch)(*words)
    assert not [*(tmp_path / "first").iterdir()] and not buckets.sent
