"""A folder to the Hugging Face hub, as one commit. What the hub has already is not sent again, so a broken push goes on.

The token comes from HF_TOKEN or the login that `hf auth login` left; it stands in no file, no flag and no message.
"""

import json
from pathlib import Path
from typing import Any

from finetuning.errors import InputError, RunError
from finetuning.files.documents import read_json
from finetuning.formats.huggingface.companions import CONFIG_FILE, ORIGIN_FILE
from finetuning.formats.peft.files import ADAPTER_CONFIG_FILE
from finetuning.formats.serving import SERVE_FILE
from finetuning.i18n import t

CARD_FILE = "README.md"
OF_THIS_MACHINE = (SERVE_FILE, CARD_FILE)  # name paths of this machine, or are written anew
# Files with the base model's name, which may be a folder of this machine, and the keys that hold it.
NAME_BASES = {
    ORIGIN_FILE: "base_model",
    ADAPTER_CONFIG_FILE: "base_model_name_or_path",
    CONFIG_FILE: "_name_or_path",
}


def push_folder(folder: Path, repository: str, card: str, *, private: bool) -> str:
    """Makes the repository if need be; the address of what is there then.

    Raises:
        InputError: there is no token, or the hub refuses it or the name.
        RunError: the hub cannot be reached, or does not take the files.
    """
    from huggingface_hub import CommitOperationAdd, HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError

    if get_token() is None:
        raise InputError(t("no token of the hub: run `hf auth login`, or set HF_TOKEN; it needs the right to write"))
    files: list[tuple[str, Any]] = [(CARD_FILE, card.encode())]
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name not in OF_THIS_MACHINE and not any(part.startswith(".") for part in Path(name).parts):
            files.append((name, _without_paths(file) if name in NAME_BASES else str(file)))
    operations = [CommitOperationAdd(name, content) for name, content in files]
    hub = HfApi()
    try:
        hub.create_repo(repository, private=private or None, exist_ok=True)
        found = hub.create_commit(repository, operations, commit_message="Upload by finetune push")
    except HFValidationError as error:
        raise InputError(t("{repository}: not a name on the hub: {error}", repository=repository, error=error)) from None
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise InputError(
                t(
                    "{repository}: the token may not write there; it needs the right to write, and you that to {repository}",
                    repository=repository,
                )
            ) from None
        raise RunError(
            t("{repository}: the hub refused it: {reason}", repository=repository, reason=_first_line(error))
        ) from None
    except (HTTPError, OSError) as error:
        raise RunError(
            t(
                "{repository}: the hub cannot be reached ({reason}); run the same command again",
                repository=repository,
                reason=_first_line(error),
            )
        ) from None
    return str(found.commit_url)


def _without_paths(file: Path) -> bytes:
    """A file of NAME_BASES, where a folder of this machine is left with its own name alone."""
    settings = read_json(file, dict[str, Any])
    settings.pop("base_path", None)
    base = settings.get(key := NAME_BASES[file.name])
    if isinstance(base, str) and (Path(base).is_absolute() or Path(base).exists()):
        settings[key] = Path(base).name
    return (json.dumps(settings, indent=1, ensure_ascii=False) + "\n").encode()


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
