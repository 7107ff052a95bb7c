"""Text that becomes part of a job script: it must be shell, end where it seems to, and stay on its line."""

import os
import subprocess
import unicodedata

from finetuning.errors import InputError
from finetuning.i18n import t

CHECK_TIMEOUT_S = 10


def shell_problem(script: str) -> str | None:
    """What bash says against a script, which is not run; None: nothing.

    Raises:
        InputError: there is no bash here.
    """
    environment = {name: value for name, value in os.environ.items() if name != "BASH_ENV"}
    command = ["bash", "-n", "-O", "extglob"]  # a script may switch this on itself, which is not seen without running it
    try:
        result = subprocess.run(
            command,
            input=script.encode(errors="surrogateescape"),
            capture_output=True,
            check=False,
            env=environment,
            timeout=CHECK_TIMEOUT_S,
        )
    except FileNotFoundError:
        raise InputError(t("there is no bash on this machine, which checks job scripts")) from None
    said = " ".join(result.stderr.decode(errors="replace").split())  # a here-document without its end is only a warning
    if said or result.returncode != 0:
        return said.removeprefix("bash: ") or t("exit code {code}", code=result.returncode)
    if script.endswith("\\") and (len(script) - len(script.rstrip("\\"))) % 2:
        return t("it ends in a backslash, which would take the next line of the job script with it")
    return None


def is_shell(script: str) -> bool:
    """By its first line, as Slurm starts it."""
    first, _, _ = script.partition("\n")
    return first.startswith("#!") and any(word.rpartition("/")[2] in ("bash", "sh") for word in first[2:].split())


def is_one_line(text: str) -> bool:
    """Without line breaks and other control characters."""
    return not any(unicodedata.category(character) in ("Cc", "Zl", "Zp") for character in text)
