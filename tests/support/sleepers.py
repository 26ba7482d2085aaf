"""Drivers whose trials sleep: started as processes that share a study, and the log that they write."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.stores import environment


def start_sleeper(folder, seconds, *flags, text, uri, storage, variables=()):
    """Start a driver process on the study `mine`, whose trials have two epochs of so many seconds."""
    (folder / "mine.yaml").write_text(text)
    script = ROOT / "tests" / "support" / "sleeping_driver.py"
    search = [str(folder / "mine.yaml"), "--storage", storage, "--drivers", "shared", "--study", "mine", *flags]
    return subprocess.Popen(
        [sys.executable, str(script), str(folder), str(seconds), "--", *search],
        cwd=ROOT,
        env=environment(uri, "mine") | {"PYTHONPATH": str(ROOT), **dict(variables)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_log(folder, role):
    """Return what drivers logged of their jobs with a role: (process, event, number, role, settings, time)."""
    lines = [(file.stem, *line.split()) for file in folder.glob("*.txt") for line in file.read_text().splitlines()]
    return [line for line in lines if line[3] == role]


def wait_for(condition, seconds=120):
    """Wait until a condition holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def finish(process):
    """Wait for a process that must succeed, and return its output."""
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def with_programs(postgres):
    """Return a PATH with PostgreSQL's programs."""
    return os.pathsep.join([str(Path(postgres.programs["pg_dump"]).parent), os.environ["PATH"]])
