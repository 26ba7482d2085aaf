"""What a trace of TensorFlow's profiler says that the device has spent its time on, in the format that it comes in."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

DEVICE, HOST = "/device:GPU:", "/host:CPU"
# lines of a GPU's plane that hold what ran there; the others hold the same again, by step or by module
STREAM = "Stream"
NUMBER = re.compile(r"([._]\d+)+$")  # fusion_12 and fusion_7 are both a fusion

Event = tuple[int, int, str]  # start and duration in picoseconds, name


def read_trace(folder: Path) -> Any:
    """Return the trace, an XSpace, that the profiler has written below a folder."""
    # the protocol's module comes with TensorFlow
    from tensorflow.tsl.profiler.protobuf.xplane_pb2 import XSpace

    [file] = folder.rglob("*.xplane.pb")
    return XSpace.FromString(file.read_bytes())


def top_operations(trace: Any, count: int) -> list[tuple[str, float, float]]:
    """Return name, milliseconds and share of the operations that took longest: on the GPU, or else on the CPU."""
    planes = [plane for plane in trace.planes if plane.name.startswith(DEVICE)]
    is_gpu = bool(planes)
    planes = planes or [plane for plane in trace.planes if plane.name.startswith(HOST)]
    totals: Counter[str] = Counter()
    for plane in planes:
        for line in plane.lines:
            if not is_gpu or line.name.startswith(STREAM):
                totals.update(_own_time(_events(plane, line)))
    everything = sum(totals.values())
    return [(name, time / 1e9, time / everything) for name, time in totals.most_common(count)]


def _events(plane: Any, line: Any) -> Iterator[Event]:
    for event in line.events:
        name = plane.event_metadata[event.metadata_id].name
        yield event.offset_ps, event.duration_ps, NUMBER.sub("", name)


def _own_time(events: Iterable[Event]) -> Counter[str]:
    """Return the picoseconds by name, without those of the events that lie within one."""
    totals: Counter[str] = Counter()
    around: list[tuple[int, str]] = []  # end and name of the events around the present one
    for start, duration, name in sorted(events, key=lambda event: (event[0], -event[1])):
        while around and around[-1][0] <= start:
            around.pop()
        if around:
            totals[around[-1][1]] -= duration
        totals[name] += duration
        around.append((start + duration, name))
    return totals
