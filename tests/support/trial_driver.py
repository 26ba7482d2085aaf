"""A driver that starts trials on an executor and collects their events, for the tests of executors."""

import time

from pipeline.config.training import TrainingConfig
from pipeline.search.executors.base import Executor, TrialJob, TrialResult
from pipeline.tracking.tags import RunRef

TINY = TrainingConfig.build(
    {
        "dataset": "digits",
        "train_examples": 200,
        "filters": 8,
        "depth": 1,
        "kernel_size": 3,
        "epochs": 2,
        "batch_size": 50,
        "learning_rate": 0.02,
        "batch_norm_momentum": 0.5,
    }
)


class TrialDriver:
    """Starts trials on an executor and keeps the events that it returns."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor
        self.number = 0
        self.received = []

    def start(self, name, *, tracking_uri="", config=TINY, minutes=None):
        self.number += 1
        self.executor.start(TrialJob(self.number, config, RunRef(tracking_uri, name), "trial"), minutes=minutes)
        return self.number

    def wait_for(self, kind, number):
        """Return the trial's first event of this kind, as soon as it is there."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for event in self.executor.events(1):
                self.received.append(event)
            for event in self.received:
                if isinstance(event, kind) and event.number == number:
                    return event
        raise AssertionError(f"no {kind.__name__} of trial {number} in {self.received}")

    def result(self, number):
        return self.wait_for(TrialResult, number)

    def run(self, name, **options):
        return self.result(self.start(name, **options))
