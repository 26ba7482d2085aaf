"""What a check found."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One line for a person; where something is to be done it ends with what."""

    state: Literal["ok", "look", "broken"]
    text: str

    def __str__(self) -> str:
        return f"{self.state:8} {self.text}"
