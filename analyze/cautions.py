"""A sentence that a reader has to know before quoting a number."""

from typing import Any, NamedTuple


class Caution(NamedTuple):
    """One line of warnings.json."""

    id: str
    """Short and stable, for programs."""
    sae: str | None
    """The dictionary it is about; None when about all."""
    text: str
    numbers: dict[str, Any]
    """What the sentence says, as values."""

    @property
    def sentence(self) -> str:
        """For people."""
        return self.text if self.sae is None else f"{self.sae}: {self.text}"
