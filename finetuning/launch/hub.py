"""Where the model is: a local folder, or a download from the Hugging Face hub.

The token comes from `--hf_token`, `HF_TOKEN` or the login that `hf auth login` left; it is used here, on the launching
machine, and nowhere else. Workers read the downloaded folder.
"""

import re
from pathlib import Path

from finetuning.errors import InputError
from finetuning.i18n import t

MODEL_ID = re.compile(r"[A-Za-z0-9][\w.\-]*(/[A-Za-z0-9][\w.\-]*)?")
DESCRIPTION_FILES = ["*.json", "*.jinja", "tokenizer.model", "LICENSE*", "USE_POLICY*"]
WEIGHT_FILES = ["*.safetensors"]
TOKEN = re.compile(r"[!-~]+")  # what can stand in an HTTP header
WEB_ADDRESS = re.compile(r"https?://[^/]+/")


def find_model(model_id: str, token: str | None, *, with_weights: bool) -> Path:
    """The local folder of the model, downloaded if need be; a present download is checked and reused.

    Args:
        model_id: a local folder or the name of a model on the hub.
        token: of the hub; None: the login of this machine, if any.
        with_weights: False downloads configuration and tokenizer only.

    Raises:
        InputError: there is no such folder or model, no access to it, or the hub cannot be reached.
    """
    folder = Path(model_id)
    if folder.is_dir():
        return folder.resolve()
    if folder.is_file() and folder.suffix == ".gguf":
        raise InputError(
            t(
                "--hf_model_id {path}: is a GGUF file; write it as a model folder first, by finetune export {path} FOLDER, and "
                "give that",
                path=model_id,
            )
        )
    if folder.is_file():
        raise InputError(t("--hf_model_id {path}: is a file; give the folder that holds config.json", path=model_id))
    if WEB_ADDRESS.match(model_id):
        name = "/".join(WEB_ADDRESS.sub("", model_id).split("/")[:2])
        raise InputError(
            t("--hf_model_id {path}: give the model's name instead of its address: {name}", path=model_id, name=name)
        )
    if not MODEL_ID.fullmatch(model_id) or ("/" in model_id and folder.parent.is_dir()):
        raise InputError(t("--hf_model_id {path}: there is no such folder", path=model_id))
    if token is not None and not TOKEN.fullmatch(token):
        raise InputError(
            t(
                "the Hugging Face token has blanks or letters that no token has; copy it again from "
                "https://huggingface.co/settings/tokens"
            )
        )
    return _download(model_id, token, with_weights)


def _download(model_id: str, token: str | None, with_weights: bool) -> Path:
    from huggingface_hub import get_token, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,  # of the HTTP library, which has changed its name
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
    )

    patterns = DESCRIPTION_FILES + (WEIGHT_FILES if with_weights else [])
    # Meta's repositories hold a second copy of the weights in original/.
    ignored = ["original/*", "*.pth", "consolidated*"]
    try:
        return Path(snapshot_download(model_id, token=token, allow_patterns=patterns, ignore_patterns=ignored))
    except HFValidationError as error:
        raise InputError(
            t("--hf_model_id {model}: not a model name of the hub: {error}", model=model_id, error=error)
        ) from None
    except GatedRepoError:
        raise InputError(_no_access(model_id, has_token=bool(token or get_token()))) from None
    except RepositoryNotFoundError:
        raise InputError(
            t(
                "--hf_model_id {model}: neither a local folder nor a model on the hub (or a private one: {ways})",
                model=model_id,
                ways=ways_to_give_a_token(),
            )
        ) from None
    except (HTTPError, LocalEntryNotFoundError, OSError) as error:
        # Without a download of its own to fall back on, huggingface_hub raises "not in the cache" from the hub's answer.
        cause = error if isinstance(error, HfHubHTTPError) else error.__cause__ or error
        if isinstance(cause, HfHubHTTPError) and cause.response.status_code == 401:
            raise InputError(
                t(
                    "--hf_model_id {model}: the hub does not know this token (expired, or not copied whole?); see "
                    "https://huggingface.co/settings/tokens",
                    model=model_id,
                )
            ) from None
        reason = reason_of(cause)
        if isinstance(cause, HfHubHTTPError):
            raise InputError(t("--hf_model_id {model}: the hub refused it: {reason}", model=model_id, reason=reason)) from None
        raise InputError(
            t(
                "--hf_model_id {model}: no local folder of this name, and the hub cannot be reached ({reason}); check the "
                "network, or give a local folder",
                model=model_id,
                reason=reason,
            )
        ) from None


def _no_access(model_id: str, has_token: bool) -> str:
    if has_token:
        return t(
            "--hf_model_id {model}: the token has no access to this model; ask for it at https://huggingface.co/{model} "
            "with the account the token belongs to. A local folder needs no token.",
            model=model_id,
        )
    return t(
        "--hf_model_id {model}: this model needs a Hugging Face token; ask for access at https://huggingface.co/{model}, "
        "then {ways}. A local folder needs no token.",
        model=model_id,
        ways=ways_to_give_a_token(),
    )


def reason_of(error: BaseException) -> str:
    """The first line of what an error says."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def ways_to_give_a_token() -> str:
    return t("give it by `hf auth login`, as the environment variable HF_TOKEN, or by --hf_token")
