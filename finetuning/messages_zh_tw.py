"""Traditional Chinese (Taiwan) for every message of `finetuning.i18n.t`: English template -> Chinese template."""

MESSAGES: dict[str, str] = {}
