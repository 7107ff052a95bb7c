"""The types of llama.cpp with a K, by llama.cpp itself: its program `llama-quantize`, or the package llama-cpp-py-sync.

The program is looked for in the folder that LLAMA_CPP names, then on the PATH; its releases and Homebrew have it. The package
is llama.cpp's own library, built, with its functions as Python sees them.
"""

import importlib.util
import os
import shutil
import subprocess
from pathlib import Path

from finetuning.errors import InputError, RunError
from finetuning.i18n import t

# Name -> llama.cpp's number of a file of this type (llama_ftype).
K_QUANTS = {"q6_k": 18, "q5_k_m": 17, "q4_k_m": 15}
PACKAGE = "llama_cpp_py_sync"
SHOWN_LINES = 5


def find_program(name: str) -> Path | None:
    """A program of llama.cpp: in the folder LLAMA_CPP or its `bin`, else on the PATH."""
    folder = os.environ.get("LLAMA_CPP")
    places = [Path(folder), Path(folder) / "bin"] if folder else []
    found = shutil.which(name, path=os.pathsep.join(map(str, places))) if places else None
    found = found or shutil.which(name)
    return Path(found) if found is not None else None


def require_quantizer(kind: str) -> None:
    """
    Raises:
        InputError: nothing here can quantize.
    """
    if find_program("llama-quantize") is None and importlib.util.find_spec(PACKAGE) is None:
        raise InputError(
            t(
                "--quantize {kind}: llama.cpp's own program makes this type, and llama-quantize is neither on the PATH nor in "
                "the folder LLAMA_CPP; install llama.cpp, or pip install llama-cpp-py-sync. Without it: f16, bf16, q8_0",
                kind=kind,
            )
        )


def quantize_file(file: Path, target: Path, kind: str) -> None:
    """Writes another GGUF file with the weights of `file` as `kind`.

    Raises:
        RunError: llama.cpp refused; with what it said.
    """
    program = find_program("llama-quantize")
    if program is not None:
        command = [str(program), str(file), str(target), kind]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
        if done.returncode != 0 or not target.is_file():
            lines = (done.stderr or done.stdout).strip().splitlines()[-SHOWN_LINES:]
            raise RunError(t("llama-quantize failed: {reason}", reason=" / ".join(lines)))
        return
    _quantize_by_package(file, target, kind)


def _quantize_by_package(file: Path, target: Path, kind: str) -> None:
    from llama_cpp_py_sync._cffi_bindings import get_ffi, get_lib

    ffi, library = get_ffi(), get_lib()
    settings = ffi.new("llama_model_quantize_params *", library.llama_model_quantize_default_params())
    settings.ftype = K_QUANTS[kind]
    code = library.llama_model_quantize(os.fsencode(file), os.fsencode(target), settings)
    if code != 0:
        raise RunError(t("llama-quantize failed: {reason}", reason=t("code {code}", code=code)))
