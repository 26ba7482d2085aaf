"""Starts drivers whose trials sleep, as processes that share a study, and reads what they noted."""

import os
import subprocess
import sys
import time
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.stores import environment


def start_sleeper(folder, seconds, *flags, text, uri, storage, variables=()):
    """A driver process on the study `mine`; its trials have two epochs of so many seconds."""
    (folder / "mine.yaml").write_text(text)
    words = [str(folder / "mine.yaml"), "--storage", storage, "--drivers", "shared", "--study", "mine", *flags]
    return subprocess.Popen(
        [
            sys.executable,
            str(ROOT / "tests" / "support" / "sleeping_driver.py"),
            str(folder),
            str(seconds),
            "--",
            *words,
        ],
        cwd=ROOT,
        env=environment(uri, "mine") | {"PYTHONPATH": str(ROOT), **dict(variables)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def noted(folder, kind):
    """What drivers noted of their trials: (process, what, number, role, settings, time)."""
    lines = [(file.stem, *line.split()) for file in folder.glob("*.txt") for line in file.read_text().splitlines()]
    return [line for line in lines if line[3] == kind]


def wait_for(condition, seconds=120):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, out + err
    return out


def with_programs(postgres):
    """PATH on which PostgreSQL's programs are."""
    return os.pathsep.join([str(Path(postgres.programs["pg_dump"]).parent), os.environ["PATH"]])
