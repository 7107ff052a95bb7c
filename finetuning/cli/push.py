"""`finetune push MODEL ORG/NAME`: a result to the Hugging Face hub, with a model card made from its run."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from finetuning.cli.common_flags import verb_parser
from finetuning.cli.export import export_with_progress
from finetuning.cli.model_argument import find_folder, open_given_model
from finetuning.errors import EXIT_FINISHED, InputError
from finetuning.formats.model_card import ADAPTER, GGUF, WHOLE, gather_card, write_card
from finetuning.formats.own import door as own
from finetuning.formats.peft.write import export_peft
from finetuning.formats.stored_model import StoredModel, open_model
from finetuning.i18n import t
from finetuning.launch.push import push_folder
from finetuning.terminal import open_console
from finetuning.training.metrics import read_metrics

REPOSITORY = re.compile(r"[\w.\-]+/[\w.\-]+", re.ASCII)


def main(argv: Sequence[str]) -> int:
    parser = verb_parser("push", t("Publishes a result on the Hugging Face hub, with a model card."))
    parser.add_argument("model", help=t("an experiment, a checkpoint, or a folder that finetune export has written"))
    parser.add_argument("repository", help=t("where to on the hub: ORGANIZATION/NAME; made if need be"))
    parser.add_argument("--private", action="store_true", help=t("a repository that only you and your organization see"))
    parser.add_argument("--base", help=t("the model that it was trained from; default: the one it names"))
    given = parser.parse_args(argv)
    if not REPOSITORY.fullmatch(given.repository):
        raise InputError(t("{repository}: not a name on the hub, which is ORGANIZATION/NAME", repository=given.repository))
    folder = find_folder(given.model)
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    model = open_model(files[0]) if files else open_given_model(given.model, given.base)
    kind = GGUF if files else ADAPTER if model.adapter is not None else WHOLE
    metrics = model.path.resolve().parent / "metrics.csv"
    if model.found.kind is own:
        metrics = model.path.resolve().parent.parent / "metrics.csv"
    card = write_card(gather_card(given.repository, kind, model, read_metrics(metrics)))
    console = open_console()
    with tempfile.TemporaryDirectory(prefix="finetune-push-", dir=model.path.resolve().parent) as scratch:
        source = folder if files else _exported(model, Path(scratch) / "export", given.base)
        address = push_folder(source, given.repository, card, private=given.private)
    console.print(t("published: {address}", address=address))
    return EXIT_FINISHED


def _exported(model: StoredModel, target: Path, base: str | None) -> Path:
    """The folder to publish; of a checkpoint, one that is written for it."""
    if model.found.kind is not own:
        return model.path
    if model.adapter is not None:
        export_peft(model, target, base or model.found.kind.named_base(model.path) or str(model.base_folder))
    else:
        export_with_progress(model, target, None, open_console())
    return target
