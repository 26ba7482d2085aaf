"""Tests of what receivers get."""

import json
import math
from datetime import datetime

import numpy as np

from pipeline.notifications.events import Subject, make_event

SUBJECT = Subject("run", "0" * 32, "digits depth=6", "mine", "http://host/#/experiments/1/runs/0")


def test_event_is_json_with_a_line_for_people():
    event = make_event("finished", SUBJECT, "finished", metrics={"b": np.float32(0.5), "a": math.nan})
    assert event["text"] == "digits depth=6: finished"
    assert json.loads(json.dumps(event, allow_nan=False)) == event
    assert list(event["metrics"].items()) == [("a", None), ("b", 0.5)]
    assert datetime.fromisoformat(event["time"]).utcoffset().total_seconds() == 0
    assert event["id"] != make_event("finished", SUBJECT, "finished")["id"]


def test_event_holds_no_password_and_one_line():
    event = make_event("failed", SUBJECT, "failed:\npostgresql://me:Pl4nted@host", reason="token=Pl4nted")
    assert "Pl4nted" not in json.dumps(event) and "\n" not in event["text"]
