"""How the console shows items: a line each on a terminal, a JSON object each in a pipe."""

import json
import unicodedata

from processor.items import Item


def line_of(item: Item, columns: int | None) -> str:
    """Return the item for a terminal of so many columns, or, with None, as JSON for a program."""
    if columns is None:
        return json.dumps(item, ensure_ascii=False)
    whose = f"@{item['Username']}" if item.get("Username") else str(item["Id"])
    # A tombstone has neither a Timestamp nor a Message.
    when = str(item.get("Timestamp") or item.get("DeletedAt", ""))[:19].replace("T", " ")
    return fit(f"{when}  {whose}  " + " ".join(str(item.get("Message", "")).split()), columns)


def fit(text: str, columns: int) -> str:
    """Shorten to the width of a terminal, on which Chinese, Japanese and Korean characters take two columns."""
    shown: list[str] = []
    used = 0
    for character in text:
        # A post may hold control and direction characters, which a terminal would obey.
        printable = character if character.isprintable() else " "
        width = 2 if unicodedata.east_asian_width(printable) in "WF" else 1
        if unicodedata.combining(printable):
            width = 0
        if used + width > columns - 1:
            return "".join(shown) + "…"
        shown.append(printable)
        used += width
    return "".join(shown)
