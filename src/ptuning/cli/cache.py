"""``ptuning cache``: shows or clears the cache on disk."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.cli.options import Parser
from ptuning.visible import visible


def parser() -> Parser:
    made = Parser(
        prog="ptuning cache",
        usage="[options]",
        description="Show the size of the cache on disk (token ids and stem outputs), or clear it. Its "
        "folder "
        "is ~/.cache/ptuning, or set by PTUNING_CACHE; PTUNING_CACHE=off switches it off.",
    )
    made.add_argument("--clear", action="store_true", help="delete all entries")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    from ptuning.cache import KINDS, Cache, root

    folder = root()
    if folder is None:
        print("the cache is off: PTUNING_CACHE is off, or there is no home folder")
        return
    found = {}
    for kind in KINDS:
        cache = Cache(kind, limit=0)  # a limit is for adding
        found[kind] = cache.clear() if given.clear else cache.usage()
    total = sum(size for _, size in found.values())
    place = visible(str(folder))
    print(f"freed {amount(total)} in {place}" if given.clear else f"{amount(total)} in {place}")
    for kind, (entries, size) in found.items():
        print(f"  {kind:<8}{entries:>6,} {'entry  ' if entries == 1 else 'entries'}{amount(size):>12}")


def amount(size: int) -> str:
    """A human-readable number of bytes: 3.4 MiB."""
    if size < 1024:
        return f"{size} B"
    scaled, units = size / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while scaled >= 1023.95 and len(units) > 1:
        scaled, units = scaled / 1024, units[1:]
    return f"{scaled:.1f} {units[0]}"
