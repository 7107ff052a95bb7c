"""Data sets on the Hugging Face hub: which files a commit has, which of them are a split, and their download.

What a data set's README says of its configurations (`configs:` in its header) decides; where it says nothing, the names of the
files do (`fetch_data`). Code of a data set is never run.
"""

import fnmatch
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from finetuning.errors import InputError
from finetuning.files.documents import as_schema, parse_yaml, read_text
from finetuning.i18n import t
from finetuning.launch.hub import reason_of, ways_to_give_a_token

PART = r"[A-Za-z0-9][\w.\-]*"
DATASET_NAME = re.compile(rf"(?P<name>{PART}/{PART})(:(?P<config>[\w.\-]+))?(@(?P<revision>[\w.\-/]+))?")
README = "README.md"
SPLIT_NAMES = {"train": "training", "validation": "validation", "valid": "validation", "dev": "validation", "test": "test"}


class _DataFiles(msgspec.Struct):
    path: str | list[str]
    split: str = "train"


class _Config(msgspec.Struct):
    config_name: str
    data_files: str | list[str | _DataFiles] | None = None
    data_dir: str | None = None
    default: bool = False


class _Header(msgspec.Struct):
    configs: list[_Config] = []


@dataclass(frozen=True)
class HubData:
    """One commit of a data set."""

    name: str
    commit: str
    files: list[str]
    configs: list[_Config]

    def chosen(self, config: str | None) -> _Config | None:
        """The configuration that is asked for, or the only one; None: the names of the files have to say it.

        Raises:
            InputError: there is no such configuration, or several and none is asked for.
        """
        names = [each.config_name for each in self.configs]
        if config is None:
            default = [each for each in self.configs if each.default or each.config_name == "default"]
            if len(default or self.configs) > 1:
                raise InputError(
                    t(
                        "{name}: has the configurations {names}; give one, as {name}:{first}",
                        name=self.name,
                        names=", ".join(names),
                        first=names[0],
                    )
                )
            return next(iter(default or self.configs), None)
        if config in names:
            return self.configs[names.index(config)]
        if any(file.startswith(f"{config}/") for file in self.files):
            return _Config(config, data_dir=config)
        folders = sorted({file.partition("/")[0] for file in self.files if "/" in file})
        raise InputError(
            t(
                "{name}: has no configuration {config}; there are: {names}",
                name=self.name,
                config=config,
                names=", ".join(names or folders) or t("none"),
            )
        )

    def files_of(self, config: str | None) -> dict[str, list[str]] | list[str]:
        """The files of each split; or a list, where nothing says which is which."""
        chosen = self.chosen(config)
        if chosen is None:
            return self.files
        folder = f"{chosen.data_dir.strip('/')}/" if chosen.data_dir else ""
        inside = [file for file in self.files if file.startswith(folder)]
        if chosen.data_files is None:
            return inside
        given = [chosen.data_files] if isinstance(chosen.data_files, str) else chosen.data_files
        splits: dict[str, list[str]] = {}
        for entry in given:
            split, patterns = ("train", [entry]) if isinstance(entry, str) else (entry.split, _listed(entry.path))
            found = [file for pattern in patterns for file in inside if _fits(file, folder + pattern)]
            splits.setdefault(SPLIT_NAMES.get(split, split), []).extend(found)
        return splits


def data_on_hub(name: str, revision: str | None, token: str | None) -> HubData:
    """What the hub, or without one its cache on this machine, has of a data set.

    Raises:
        InputError: there is none, no access to it, or nobody answers and nothing was fetched before.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    given = f"{name}@{revision}" if revision else name
    try:
        info = HfApi(token=token).dataset_info(name, revision=revision)
        assert info.sha is not None
        files = sorted(each.rfilename for each in info.siblings or ())
        # By the name of the branch, so that the cache knows its commit when there is no network.
        folder = Path(snapshot_download(name, repo_type="dataset", revision=revision, token=token, allow_patterns=[README]))
        return HubData(name, info.sha, files, _configs(folder / README))
    except RevisionNotFoundError:
        raise InputError(t("--dataset_path {given}: the data set has no such branch, tag or commit", given=given)) from None
    except GatedRepoError:
        raise InputError(
            t(
                "--dataset_path {given}: this data set asks for access; request it at https://huggingface.co/datasets/{name}, "
                "then {ways}",
                given=given,
                name=name,
                ways=ways_to_give_a_token(),
            )
        ) from None
    except RepositoryNotFoundError:
        raise InputError(
            t(
                "--dataset_path {given}: neither here nor a data set on the hub (or a private one: {ways})",
                given=given,
                ways=ways_to_give_a_token(),
            )
        ) from None
    except HfHubHTTPError as error:
        reason = reason_of(error)
        raise InputError(t("--dataset_path {given}: the hub refused it: {reason}", given=given, reason=reason)) from None
    except (HTTPError, OSError) as error:
        cached = _in_cache(name, revision)
        if cached is None:
            raise InputError(
                t(
                    "--dataset_path {given}: nothing of this name is here, and the hub cannot be reached ({reason}); check the "
                    "network, or give a local folder",
                    given=given,
                    reason=reason_of(error),
                )
            ) from None
        return cached


def download(data: HubData, files: Sequence[str], token: str | None) -> Path:
    """The folder of the hub's cache with these files of the commit."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HTTPError

    patterns = [_literal(file) for file in files]
    try:
        return Path(
            snapshot_download(data.name, repo_type="dataset", revision=data.commit, token=token, allow_patterns=patterns)
        )
    except (HTTPError, OSError) as error:
        raise InputError(
            t("--dataset_path {given}: the hub refused it: {reason}", given=data.name, reason=reason_of(error))
        ) from None


def _in_cache(name: str, revision: str | None) -> HubData | None:
    from huggingface_hub import snapshot_download

    try:
        # All files are asked for by nobody: what is not in the cache would be an error.
        folder = Path(
            snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=[README], local_files_only=True)
        )
    except OSError:  # LocalEntryNotFoundError is one
        return None
    files = sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())
    return HubData(name, folder.name, files, _configs(folder / README))


def _configs(readme: Path) -> list[_Config]:
    """Those of the header of a README; none where it has no header, or says nothing of data."""
    if not readme.is_file():
        return []
    _, mark, rest = read_text(readme).partition("---\n")
    header, end, _ = rest.partition("\n---")
    if not mark or not end:
        return []
    value: Any = parse_yaml(header, readme)
    return as_schema(value if isinstance(value, dict) else {}, _Header, readme).configs


def _listed(paths: str | list[str]) -> list[str]:
    return [paths] if isinstance(paths, str) else paths


def _fits(file: str, pattern: str) -> bool:
    """`data/*.jsonl`, or `data/**` for all below it."""
    return fnmatch.fnmatchcase(file, pattern.removeprefix("./"))


def _literal(file: str) -> str:
    """A file as a pattern."""
    return re.sub(r"([*?\[])", r"[\1]", file)
