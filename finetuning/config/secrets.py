"""What a secret looks like: by the name of its variable or option, by its own shape, or as the password of an address.

Settings are written to `run.yaml`, to the job script and to logs, and stand in process lists, so a setting that holds a
secret is refused before anything else is looked at. What only names one (`$NAME`, `$(cat file)`) is none.
"""

import re
from collections.abc import Mapping
from typing import Any

from finetuning.errors import InputError
from finetuning.i18n import t

# Of a variable, an option or a parameter, with underscores. Not TOKENIZERS_PARALLELISM, SSH_AUTH_SOCK, PWD, HF_TOKEN_PATH.
SECRET_NAME = re.compile(
    r"^(?!.*_(?:PATH|FILE|DIR)$).*(?:"
    r"PASSWORD|PASSWD|PASSPHRASE|SECRET|CREDENTIAL|AUTHORIZATION|CONNECTION_STRING|COOKIE"
    r"|(?:API|ACCESS|PRIVATE|AUTH|LICENSE)_?KEY"
    r"|TOKEN\d*(?:_|$)|[A-Z0-9]_KEY\d*$|[A-Z0-9]_PWD$"
    r"|(?:^|_)(?:PASS|PGPASS|SSHPASS|PW|PAT|AUTH|JWT|BEARER|DSN|CREDS?|SAS|SK|WEBHOOK(?:_URL)?)\d*$)",
    re.IGNORECASE,
)
SECRET_VALUE = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"hf_[A-Za-z0-9]{20,}|sk-[\w-]{20,}|gh[opsur]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|nvapi-[\w-]{20,}"
    r"|xox[abprs]-[\w-]{10,}|(?:AKIA|ASIA)[0-9A-Z]{16}|AIza[\w-]{35}|npm_[A-Za-z0-9]{30,}|pypi-[\w-]{30,}|dckr_pat_[\w-]{20,}"
    r"|wandb_v\d+_\w{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----"
    r"|\bwandb\s+login\b[^\n]*\b[0-9a-f]{40}\b"
)
# user:password@ of an address; what follows a colon is no password where it is a port.
# A long user with digits and no password is a token.
ADDRESS_PASSWORD = re.compile(r"://(?:[^\s/@:\[]*:(?!\d{1,5}(?:[/?#\s]|$))(?!\$)[^\s@]+|(?=[^\s/@:$]*\d)[^\s/@:$]{16,})@")
LITERAL = r"""(?=["']?[^\s"'$;&|)])"""  # of a value that is one, not a way to it
ASSIGNMENT = re.compile(rf"""(?<![\w/$-])(?:-{{1,2}})?([A-Za-z_][\w.-]*)["']?\s?=\s?{LITERAL}""")
OPTION = re.compile(rf"(?<![\w-])--([A-Za-z][\w-]*)[ \t]+(?!-){LITERAL}")
HEADER = re.compile(
    r"(?i)\b(?:authorization|[\w-]*api-?key|[\w-]+-token)\s*:\s*(?:(?:bearer|basic|token)\s+)?(?!bearer|basic|token)" + LITERAL
)
# The user and password of `curl -u`, not of `docker run -u 1000:1000` or `chown`.
USER_OPTION = re.compile(r"""\b(?:curl|wget|http)\b[^\n;|&]*\s(?:-u|--user)[= ]?\s*["']?[^\s"':]+:(?!\$)[^\s"'$]+""")
# Passwords that commands take without saying so.
COMMAND = re.compile(
    r"\b(?:sshpass|(?:docker|podman|nerdctl|helm|skopeo|crane|az|oc|apptainer|singularity)\b[^\n;|&]*\blogin)\b"
    rf"[^\n;|&]*\s-p[= ]?\s*(?!-){LITERAL}"
    r"|\b(?:mysql|mysqldump|mariadb)\b[^\n;|&]*\s-p(?![$\s])\S"
    rf"|\baws\s+configure\s+set\s+\S*(?:secret|token)\S*\s+{LITERAL}"
    r"|\b(?:echo|printf)\s[^\n|;&$]+\|[^\n;&]*--password-stdin"
)
PROSE = ("system_prompt", "prompt_template")  # text to learn from, where `password: …` is a word like others


def find_secret(text: str, *, prose: bool = False) -> str | None:
    """What of a text is a secret, in words that do not show it; None where there is none.

    In `prose`, names such as `password=` say nothing; what has the shape of a token is one all the same.
    """
    if SECRET_VALUE.search(text):
        return t("what looks like a token or key")
    if ADDRESS_PASSWORD.search(text):
        return t("an address with a password")
    if prose:
        return None
    for pattern in (ASSIGNMENT, OPTION):
        for match in pattern.finditer(text):
            name = match[1].replace("-", "_").replace(".", "_")
            if SECRET_NAME.search(name):
                return t("a value of {name}", name=match[1])
    if USER_OPTION.search(text) or COMMAND.search(text):
        return t("a user with a password")
    return t("a header with a key") if HEADER.search(text) else None


def is_secret(name: str, value: str) -> bool:
    """Whether a variable of the environment holds a secret: a key, or the address of a proxy with a password."""
    return bool(SECRET_NAME.search(name) or SECRET_VALUE.search(value) or ADDRESS_PASSWORD.search(value))


def refuse_secrets(settings: Mapping[str, Any], token: str | None = None) -> None:
    """Looks at settings as they were given, or at those of a `RunConfig`.

    Raises:
        InputError: one holds the hub's `token` or another secret; with the way that works, without the secret.
    """
    problems = []
    for name, value in settings.items():
        texts = _texts(value)
        if token is not None and any(token in text for text in texts):
            problems.append(
                t("--{name} holds the Hugging Face token; it must not come into a file. Jobs need no token", name=name)
            )
            continue
        what = next(filter(None, (find_secret(text, prose=name in PROSE) for text in texts)), None)
        if what is not None:
            problems.append(refusal(f"--{name}", what, name))
    if problems:
        raise InputError(problems)


def refusal(given: str, what: str, setting: str) -> str:
    """That a setting holds a secret, and the way that works for it."""
    if setting == "mlflow_tracking_uri":
        way = t(
            "give the address without it, and set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or write them to "
            "~/.mlflow/credentials, which jobs can read too"
        )
    elif setting == "container_image":
        way = t(
            "give the image without it, and log in to the registry: ~/.config/enroot/.credentials or `apptainer registry login`"
        )
    elif setting in PROSE:
        way = t("write a placeholder instead; the model would learn it, too")
    else:
        way = t(
            "log in once with the tool that needs it (wandb login, hf auth login, ~/.netrc), or read it from a file of yours: "
            """--setup 'export NAME="$(cat ~/.name)"'"""
        )
    return t(
        "{given} holds {what}, which would stand in run.yaml, in job scripts and in process lists; {way}",
        given=given,
        what=what,
        way=way,
    )


def _texts(value: Any) -> list[str]:
    """What a setting holds as text, also one of the wrong type, which would be shown as it is."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, Mapping):
        return [f"{key}={item}" for key, item in value.items() if isinstance(item, str)]
    return [item for item in value if isinstance(item, str)] if isinstance(value, list | tuple) else []
