"""``ptuning cache``: what is kept on disk so that it need not be computed again, and emptying it."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.cli.options import Parser
from ptuning.visible import visible


def parser() -> Parser:
    made = Parser(
        prog="ptuning cache",
        usage="[options]",
        description="Show what is kept so that it need not be computed again, or delete it. It is in "
        "PTUNING_CACHE, by default ~/.cache/ptuning; PTUNING_CACHE=off keeps nothing.",
    )
    made.add_argument("--clear", action="store_true", help="delete all of it; it is made again when needed")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    from ptuning.cache import KINDS, Cache, root

    folder = root()
    if folder is None:
        print("nothing is kept: PTUNING_CACHE is off, or there is no home folder to keep it in")
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
    """Bytes as a person reads them: 3.4 MiB."""
    if size < 1024:
        return f"{size} B"
    scaled, units = size / 1024, ["KiB", "MiB", "GiB", "TiB"]
    while scaled >= 1023.95 and len(units) > 1:
        scaled, units = scaled / 1024, units[1:]
    return f"{scaled:.1f} {units[0]}"
