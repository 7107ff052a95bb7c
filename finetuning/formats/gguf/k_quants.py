"""The types of llama.cpp with a K, by llama.cpp's own program `llama-quantize`.

It is looked for in the folder that LLAMA_CPP names, then on the PATH; llama.cpp's releases and Homebrew have it.
"""

import os
import shutil
import subprocess
from pathlib import Path

from finetuning.errors import InputError, RunError
from finetuning.i18n import t

# Name -> llama.cpp's number of a file of this type (llama_ftype).
K_QUANTS = {"q6_k": 18, "q5_k_m": 17, "q4_k_m": 15}
PROGRAM = "llama-quantize"
SHOWN_LINES = 5


def find_program(name: str) -> Path | None:
    """A program of llama.cpp: in the folder LLAMA_CPP or its `bin`, else on the PATH."""
    folder = os.environ.get("LLAMA_CPP")
    places = [Path(folder), Path(folder) / "bin"] if folder else []
    found = shutil.which(name, path=os.pathsep.join(map(str, places))) if places else None
    found = found or shutil.which(name)
    return Path(found) if found is not None else None


def require_quantizer(kind: str) -> Path:
    """The program.

    Raises:
        InputError: it is not here.
    """
    program = find_program(PROGRAM)
    if program is None:
        raise InputError(
            t(
                "--quantize {kind}: llama.cpp's own {program} makes this type, and it is neither on the PATH nor in the folder "
                "LLAMA_CPP; install llama.cpp. Without it: f16, bf16, q8_0",
                kind=kind,
                program=PROGRAM,
            )
        )
    return program


def quantize_file(file: Path, target: Path, kind: str) -> None:
    """Writes another GGUF file with the weights of `file` as `kind`.

    Raises:
        RunError: llama.cpp refused; with what it said.
    """
    command = [str(require_quantizer(kind)), str(file), str(target), kind]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode != 0 or not target.is_file():
        lines = (done.stderr or done.stdout).strip().splitlines()[-SHOWN_LINES:]
        raise RunError(t("{program} failed: {reason}", program=PROGRAM, reason=" / ".join(lines)))
