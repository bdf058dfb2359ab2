"""``ptuning push``: uploads an adapter to the Hub, in one commit."""

from __future__ import annotations

from collections.abc import Sequence

from ptuning.cli.options import Parser


def parser() -> Parser:
    made = Parser(
        prog="ptuning push",
        usage="FOLDER OWNER/NAME [options]",
        description="Upload an adapter to the Hugging Face Hub, in one commit, with a model card. The "
        "repository is created if it does not exist.",
        epilog="The access token is read from HF_TOKEN or from 'hf auth login'; there is no option for it, "
        "because it would stay in the shell history. Example: ptuning push support someone/support --private",
    )
    made.add_argument("folder", type=str, help="adapter folder")
    made.add_argument("repository", type=str, help="OWNER/NAME on the Hub, or NAME for a repository of yours")
    made.add_argument("--private", action="store_true", help="make a new repository private")
    made.add_argument("--revision", type=str, help="branch, created if it does not exist (default: main)")
    made.add_argument("--message", type=str, help="commit message (default: Upload ptuning adapter)")
    made.add_argument(
        "--create_pr", action="store_true", help="create a pull request, which needs no write permission"
    )
    made.add_argument(
        "--backbone", type=str, help="Hub id of the backbone, if it was trained from a local folder"
    )
    made.add_argument("--license", type=str, help="licence identifier of the Hub, such as apache-2.0")
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
