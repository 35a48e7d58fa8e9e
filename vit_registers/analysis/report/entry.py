"""A result with its question, its group and the published numbers beside it. No JAX."""

from typing import Any, NamedTuple

from vit_registers.analysis.file_names import file_names
from vit_registers.analysis.published.tables import published_tables
from vit_registers.analysis.report.result import Result, Table


class ReportEntry(NamedTuple):
    """A result with its question."""

    name: str
    question: str
    answers: str  # which figure or table of which paper
    result: Result
    group: str = "Experiments"
    is_comparable: bool = False  # whether the model and the images are like those of published numbers

    @property
    def published(self) -> list[Table]:
        """The papers' numbers, where there are numbers or pictures of ours to compare them with."""
        has_own = bool(self.result.tables or self.result.pictures)
        return published_tables().get(self.name, []) if has_own else []

    @property
    def picture_names(self) -> list[str]:
        """The names of the files of its pictures, without ending."""
        return file_names([picture.name for picture in self.result.pictures])

    @property
    def table_names(self) -> list[str]:
        """The names of the files of its tables, without ending."""
        return file_names([table.slug for table in self.result.tables])

    def numbers(self) -> dict[str, Any]:
        """All that was measured, and the published numbers, for a JSON file."""
        head = {"experiment": self.name, "question": self.question}
        published = [table.numbers() for table in self.published]
        return {**head, **self.result.numbers(), "published": published}
