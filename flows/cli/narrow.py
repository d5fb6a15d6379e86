"""Console for narrow terminals: a table that does not fit becomes a list for each row, and no word is cut."""

from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

_ANY_WIDTH = 10_000


class FittingConsole(Console):
    """A console that prints a table as lists if its words do not fit in one line."""

    def print(self, *objects: Any, **options: Any) -> None:
        for item in objects if objects else ("",):
            if isinstance(item, Table) and needed_width(self, item) > self.width:
                self._print_lists(item)
            else:
                super().print(item, **options)

    def _print_lists(self, table: Table) -> None:
        """Print the name of each row in bold, then a line for each other cell that is not empty."""
        if table.title:
            super().print(self._text(table.title, "bold"))
        columns = [list(column.cells) for column in table.columns]
        for row, cells in zip(table.rows, zip(*columns, strict=True), strict=True):
            super().print(self._text(cells[0], f"bold {row.style or ''}".strip()), soft_wrap=True)
            for column, cell in zip(table.columns[1:], cells[1:], strict=True):
                text = self._text(cell, str(row.style or ""))
                header = self._text(column.header, "dim") if table.show_header else Text()
                if text.plain.strip():
                    super().print(
                        Padding(Text.assemble(header, ": " if header.plain else "", text), (0, 0, 0, 2))
                    )

    def _text(self, item: Any, style: str) -> Text:
        text = item.copy() if isinstance(item, Text) else self.render_str(str(item))
        if style:
            text.stylize_before(style)
        return text


def needed_width(console: Console, table: Table) -> int:
    """Terminal columns that `table` needs so that no word is cut."""
    return Measurement.get(console, console.options.update(width=_ANY_WIDTH), table).minimum
