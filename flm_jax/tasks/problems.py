"""What was found wrong in the data, counted and with its places: nothing is dropped in silence."""

from dataclasses import asdict, dataclass, field
from typing import Any

KEPT = 20  # places of each kind; all are counted


class Problem(ValueError):
    """Why a record gives no document, in words, e.g. `Problem("field 'text' is missing")`.

    Attributes:
        records: about how many records are lost; more than one where a file breaks off.
    """

    def __init__(self, reason: str, records: int = 1) -> None:
        super().__init__(reason)
        self.records = records


@dataclass
class Tally:
    """How often something was found, and the first places, each with its reason.

    Attributes:
        count: of all.
        places: of the first 20, e.g. `["en.jsonl:7: field 'text' is missing"]`.
    """

    count: int = 0
    places: list[str] = field(default_factory=list)

    def add(self, place: str, reason: str) -> None:
        """One more."""
        self.count += 1
        if len(self.places) < KEPT:
            self.places.append(f"{place}: {reason}")

    def include(self, later: "Tally") -> None:
        """All of another, whose places come behind these."""
        self.count += later.count
        self.places += later.places[: KEPT - len(self.places)]

    def lines(self) -> list[str]:
        """The places, one a line, and how many more there are."""
        more = [f"  ... and {self.count - len(self.places):,} more"] if self.count > len(self.places) else []
        return [*(f"  {place}" for place in self.places), *more]


class Problems(Tally):
    """What could not be read (this tally itself), and what was noticed or removed, by kind.

    `count` is that of places.

    Attributes:
        records: about how many records are lost there; above `count` where files break off.
        noticed: kind to its tally: odd, and kept.
        removed: kind to its tally: what cleaning took out, because it was asked to.
        changed: kind to the number of documents that cleaning changed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.records = 0
        self.noticed: dict[str, Tally] = {}
        self.removed: dict[str, Tally] = {}
        self.changed: dict[str, int] = {}
        # What stopped the reading altogether. seqio runs a source inside TensorFlow, which replaces an exception by
        # one of its own: whoever ran it raises this one again.
        self.failure: BaseException | None = None

    def add(self, place: str, reason: str, records: int = 1) -> None:
        """One more place, where about so many records are lost."""
        super().add(place, reason)
        self.records += records

    def notice(self, kind: str, place: str, reason: str) -> None:
        """Records what is odd and kept."""
        self.noticed.setdefault(kind, Tally()).add(place, reason)

    def remove(self, kind: str, place: str, reason: str) -> None:
        """Records what cleaning took out."""
        self.removed.setdefault(kind, Tally()).add(place, reason)

    def change(self, kind: str) -> None:
        """Records a document that cleaning changed."""
        self.changed[kind] = self.changed.get(kind, 0) + 1

    def include(self, later: Tally) -> None:
        """All of another's."""
        super().include(later)
        self.records += later.records if isinstance(later, Problems) else later.count
        if isinstance(later, Problems):
            for mine, theirs in ((self.noticed, later.noticed), (self.removed, later.removed)):
                for kind, tally in theirs.items():
                    mine.setdefault(kind, Tally()).include(tally)
            for kind, count in later.changed.items():
                self.changed[kind] = self.changed.get(kind, 0) + count

    def report(self) -> str:
        """In words, one place a line; an empty string when there is nothing to say."""
        lines = []
        if self.count:
            was = "was" if self.records == 1 else "were"
            about = "" if self.records == self.count else "about "
            lines += [f"{about}{_number(self.records)} could not be read and {was} left out:", *self.lines()]
        for kind, tally in self.noticed.items():
            lines += [f"{_number(tally.count)} noticed, and kept ({kind}):", *tally.lines()]
        for kind, tally in self.removed.items():
            lines += [f"{_number(tally.count)} removed ({kind}):", *tally.lines()]
        lines += [f"{_number(count)} changed ({kind})" for kind, count in self.changed.items()]
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "count": self.count,
            "records": self.records,
            "places": self.places,
            "noticed": {kind: asdict(tally) for kind, tally in self.noticed.items()},
            "removed": {kind: asdict(tally) for kind, tally in self.removed.items()},
            "changed": self.changed,
        }

    @staticmethod
    def from_json(values: dict[str, Any]) -> "Problems":
        """The inverse of `to_json`."""
        problems = Problems()
        problems.count, problems.places = values["count"], list(values["places"])
        problems.records = values.get("records", problems.count)
        problems.noticed = {kind: Tally(**tally) for kind, tally in values.get("noticed", {}).items()}
        problems.removed = {kind: Tally(**tally) for kind, tally in values.get("removed", {}).items()}
        problems.changed = dict(values.get("changed", {}))
        return problems


def _number(count: int) -> str:
    return "1 document" if count == 1 else f"{count:,} documents"
