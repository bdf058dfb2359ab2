"""``ptuning push``: an adapter onto the Hub, in one commit."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.cli.options import Parser


def parser() -> Parser:
    made = Parser(
        prog="ptuning push",
        usage="FOLDER OWNER/NAME [options]",
        description="Put an adapter on the Hub, in one commit. The repository is made if it is missing; the "
        "model card is filled in for it.",
        epilog="The access token comes from HF_TOKEN or from 'hf auth login', never from an option, which "
        "would stay in the shell's history. Example: ptuning push support someone/support --private",
    )
    made.add_argument("folder", type=str, help="adapter folder")
    made.add_argument("repository", type=str, help="OWNER/NAME on the Hub, or NAME for one of your own")
    made.add_argument("--private", action="store_true", help="only for those you let in, if it is made now")
    made.add_argument("--revision", type=str, help="branch, made if it is missing; main if left out")
    made.add_argument("--message", type=str, help="the commit's message")
    made.add_argument(
        "--create_pr", action="store_true", help="propose it as a pull request, which needs no right to write"
    )
    made.add_argument(
        "--backbone", type=str, help="where others find the backbone, if it was a folder of yours"
    )
    made.add_argument("--license", type=str, help="identifier of the Hub's list, such as apache-2.0")
    return made


def main(argv: Sequence[str]) -> None:
    given = parser().parse_args(list(argv))
    from ptuning import adapters

    print(
        adapters.push(
            given.folder,
            given.repository,
            private=given.private or None,
            revision=given.revision,
            commit_message=given.message,
            create_pr=given.create_pr,
            license=given.license,
            backbone=given.backbone,
        )
    )
