"""NeMo's checkpoints: where they are found, what is refused, and that nothing in them is run."""

import gzip
import io
import json
import os
import pickle
import pickletools
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from finetuning.config.llama import LlamaConfig, read_llama_config
from finetuning.errors import InputError
from finetuning.files import atomic
from finetuning.formats.huggingface.write import stored_dtypes
from finetuning.formats.nemo.checkpoint import NEMO_1, NEMO_2, describe_nemo, nemo_fingerprint, nemo_source, open_nemo
from finetuning.formats.nemo.write import export_nemo, megatron_pieces
from finetuning.formats.recognize import inspect
from finetuning.formats.stored_model import open_model
from finetuning.storage import tar
from finetuning.storage.file_parts import FilePart
from finetuning.storage.safe_pickle import read_pickle

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def exported(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model in NeMo 2's format; read only."""
    folder = tmp_path_factory.mktemp("exported") / "step=7"
    model = open_model(tiny_model)
    export_nemo(model, folder, stored_dtypes(model), lambda done, total: None, step=7)
    return folder


@pytest.fixture
def copy(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "copy"))


def read_all(folder: Path, config: LlamaConfig | None = None) -> dict[str, torch.Tensor]:
    source = nemo_source(open_nemo(folder, folder.parent / "scratch"), config)
    return {name: source.read(name) for name in source.shapes()}


def archive(target: Path, files: dict[str, bytes], mode: str = "w:") -> Path:
    with tarfile.open(target, mode) as out:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            out.addfile(entry, io.BytesIO(data))
    return target


@pytest.fixture(scope="module")
def old_files(tiny_model: Path, exported: Path) -> dict[str, bytes]:
    """What NeMo 1 puts into a .nemo archive: settings, and one state dict with layers one by one."""
    source = open_model(tiny_model).weights()
    whole: dict[str, torch.Tensor] = {}
    for key, size, offsets, piece in megatron_pieces(source, source.dtype):
        whole.setdefault(key, torch.empty(size))[tuple(slice(o, o + n) for o, n in zip(offsets, piece.shape, strict=True))] = (
            piece
        )
    state: dict[str, Any] = {}
    for key, tensor in whole.items():
        if key.startswith("decoder.layers."):
            inner = key.removeprefix("decoder.layers.")
            state |= {f"model.decoder.layers.{i}.{inner}": layer.clone() for i, layer in enumerate(tensor)}
        else:
            state[f"model.{key}"] = tensor
    state["model.decoder.layers.0.self_attention.linear_qkv._extra_state"] = None
    settings = yaml.safe_load((exported / "context" / "model.yaml").read_text())["config"]
    old = {
        "num_layers": settings["num_layers"],
        "hidden_size": settings["hidden_size"],
        "ffn_hidden_size": settings["ffn_hidden_size"],
        "num_attention_heads": settings["num_attention_heads"],
        "num_query_groups": settings["num_query_groups"],
        "kv_channels": None,
        "normalization": "rmsnorm",
        "activation": "fast-swiglu",
        "bias": False,
        "rotary_base": settings["rotary_base"],
        "rotary_percentage": 1.0,
        "encoder_seq_length": settings["seq_length"],
        "max_position_embeddings": settings["seq_length"],
        "share_embeddings_and_output_weights": False,
        "scale_positional_embedding": True,
        "layernorm_epsilon": 1e-5,
        "tensor_model_parallel_size": 1,
        "tokenizer": {"library": "huggingface"},
    }
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return {"./model_config.yaml": yaml.safe_dump(old).encode(), "./model_weights.ckpt": buffer.getvalue()}


def test_a_checkpoint_is_recognized_and_describes_itself(exported: Path, tiny_model: Path, tmp_path: Path) -> None:
    checkpoint = open_nemo(exported, tmp_path)
    assert (checkpoint.kind, checkpoint.step, checkpoint.prefix) == (NEMO_2, 7, "module.")
    assert checkpoint.own_config() == read_llama_config(tiny_model)
    folder = describe_nemo(checkpoint, tmp_path)
    assert read_llama_config(folder) == read_llama_config(tiny_model)
    assert (folder / "tokenizer.json").read_bytes() == (tiny_model / "tokenizer.json").read_bytes()


@pytest.mark.parametrize("given", ["itself", "weights", "parent", "checkpoints", "tracked", "tracked by state", "several"])
def test_the_checkpoint_is_found_from_where_it_may_be_named(given: str, exported: Path, tmp_path: Path) -> None:
    weights = exported / "weights"
    match given:
        case "itself":
            found = open_nemo(exported, tmp_path)
        case "weights":
            found = open_nemo(weights, tmp_path)
        case "parent":
            found = open_nemo(exported.parent, tmp_path)
        case "checkpoints":
            shutil.copytree(exported, tmp_path / "run" / "checkpoints" / "step=7")
            found = open_nemo(tmp_path / "run", tmp_path)
        case "tracked" | "tracked by state":
            for step in (3, 12):
                shutil.copytree(weights, tmp_path / "run" / f"iter_{step:07d}")
            if given == "tracked":
                (tmp_path / "run" / "latest_checkpointed_iteration.txt").write_text("12")
            else:
                torch.save({"step": torch.tensor(12, dtype=torch.int32)}, tmp_path / "run" / "latest_train_state.pt")
            found = open_nemo(tmp_path / "run", tmp_path)
            assert found.path.name == "iter_0000012"
        case "several":
            for name in ("a-step=1", "b-step=7-last"):
                shutil.copytree(exported, tmp_path / "run" / name)
            found = open_nemo(tmp_path / "run", tmp_path)
            assert found.path.name == "b-step=7-last"
            (tmp_path / "run" / "b-step=7-last").rename(tmp_path / "run" / "c-step=7")
            with pytest.raises(InputError, match="holds 2 checkpoints; give one of them: a-step=1, c-step=7"):
                open_nemo(tmp_path / "run", tmp_path)
    assert found.step == 7


def test_megatron_bridge_is_described_by_its_run_config(exported: Path, tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "iter_0000007"
    shutil.copytree(exported / "weights", folder)
    config = read_llama_config(tiny_model)
    model = {
        "_target_": "megatron.bridge.models.llama.llama_provider.Llama31ModelProvider",
        "num_layers": 2,
        "hidden_size": 64,
        "ffn_hidden_size": 96,
        "num_attention_heads": 4,
        "num_query_groups": 2,
        "kv_channels": None,
        "vocab_size": 512,
        "rotary_base": int(config.rope_theta),
        "rope_scaling": True,
        "rope_scaling_factor": 8.0,
        "seq_length": 131072,
        "layernorm_epsilon": 1e-5,
        "share_embeddings_and_output_weights": False,
        "tensor_model_parallel_size": 4,
        "activation_func": {"_target_": "torch.nn.functional.silu", "_call_": False},
    }
    (folder / "run_config.yaml").write_text(yaml.safe_dump({"model": model, "train": {}}))
    assert open_nemo(folder, tmp_path).own_config() == config
    found = inspect(folder)
    assert (found.format, found.step, found.layout) == ("Megatron-Bridge", 7, {"tensor": 4})


def test_io_json_is_read_where_there_is_no_yaml(copy: Path, tiny_model: Path, tmp_path: Path) -> None:
    config = yaml.safe_load((copy / "context" / "model.yaml").read_text())["config"]
    (copy / "context" / "model.yaml").unlink()
    items = [[f"Attr(name='{name}')", {"type": "leaf", "value": value}] for name, value in config.items() if name[0] != "_"]
    items.append(["Attr(name='activation_func')", {"type": "pyref", "module": "torch.nn.functional", "name": "silu"}])
    objects = {
        "config_1": {
            "type": {"type": "pyref", "module": "fiddle", "name": "Config"},
            "items": items,
            "metadata": {},
            "paths": ["<root>.model.config"],
        },
        "trainer_1": {"items": [], "paths": ["<root>.trainer"]},
    }
    (copy / "context" / "io.json").write_text(json.dumps({"root": {"type": "ref", "key": "x"}, "objects": objects}))
    assert open_nemo(copy, tmp_path).own_config() == read_llama_config(tiny_model)


@pytest.mark.parametrize("mode", ["w:", "w:gz"])
def test_an_old_archive_is_read_without_being_unpacked(
    mode: str, old_files: dict[str, bytes], tiny_model: Path, tmp_path: Path
) -> None:
    file = archive(tmp_path / "old.nemo", old_files, mode)
    scratch = tmp_path / "scratch"
    checkpoint = open_nemo(file, scratch)
    assert (checkpoint.kind, checkpoint.prefix) == (NEMO_1, "model.")
    assert checkpoint.own_config() == read_llama_config(tiny_model)
    source, expected = nemo_source(checkpoint, None), open_model(tiny_model).weights()
    assert all(torch.equal(source.read(name), expected.read(name)) for name in expected.shapes())
    assert [path.suffix for path in scratch.iterdir()] == ([".tar"] if mode == "w:gz" else []) if scratch.exists() else True
    assert open_nemo(checkpoint.readable, scratch).table.sizes == checkpoint.table.sizes


def test_a_decompressed_archive_is_on_the_disk_before_it_gets_its_name(
    old_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And two processes that decompress it at once do not write into one file."""
    scratch, synced = tmp_path / "scratch", []

    def sync(path: Path) -> None:
        synced.append((path.name, [file.name for file in scratch.iterdir()]))
        atomic.sync(path)

    monkeypatch.setattr(tar, "sync", sync)
    target = open_nemo(archive(tmp_path / "old.nemo", old_files, "w:gz"), scratch).readable
    temporary = f".incomplete-{target.name}-{os.getpid()}"
    assert synced == [(temporary, [temporary]), ("scratch", [target.name])]


def test_an_archive_with_distributed_weights_is_read(
    old_files: dict[str, bytes], exported: Path, tiny_model: Path, tmp_path: Path
) -> None:
    files = {"model_config.yaml": old_files["./model_config.yaml"]}
    files |= {f"model_weights/{file.name}": file.read_bytes() for file in (exported / "weights").iterdir()}
    found = read_all(archive(tmp_path / "old.nemo", files))
    expected = open_model(tiny_model).weights()
    assert all(torch.equal(found[name], expected.read(name)) for name in expected.shapes())


def header(name: str, kind: bytes, size: int) -> bytes:
    """A tar's 512 bytes before an entry."""
    entry = tarfile.TarInfo(name)
    entry.type, entry.size = kind, size
    return entry.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("leads outside", r"has a file that leads outside it \(\.\./\.\./evil\)"),
        ("absolute", "leads outside it"),
        ("link", "is no plain file"),
        ("cut", "ends in the middle of|cannot be read"),
        ("no settings", "no model_config.yaml"),
        ("no weights", "no model_weights.ckpt; found"),
        ("parts", "saved in 2 parts by model parallelism"),
        ("cut gzip", "cannot be decompressed"),
        ("gzip bomb", "which weights do not"),
        ("files without end", "it holds more than 16,384 files and folders"),
        ("folders without end", "it holds more than 16,384 files and folders"),
        ("name without end", "an entry takes more than 65,536 bytes before its content"),
        ("attributes without end", "an entry takes more than 65,536 bytes before its content"),
        ("holes without end", "an entry takes more than 65,536 bytes before its content"),
        ("not one", "not an archive of NeMo"),
    ],
)
def test_a_bad_archive_is_refused_and_leaves_nothing(
    damage: str, message: str, old_files: dict[str, bytes], tmp_path: Path
) -> None:
    file, scratch = tmp_path / "bad.nemo", tmp_path / "scratch"
    weights = old_files["./model_weights.ckpt"]
    match damage:
        case "leads outside":
            archive(file, {**old_files, "../../evil": b"x"})
        case "absolute":
            archive(file, {**old_files, str(tmp_path / "evil"): b"x"})
        case "link":
            archive(file, old_files)
            with tarfile.open(file, "a:") as out:
                entry = tarfile.TarInfo("link")
                entry.type, entry.linkname = tarfile.SYMTYPE, "/etc/passwd"
                out.addfile(entry)
        case "cut":
            archive(file, old_files)
            file.write_bytes(file.read_bytes()[: len(weights) // 2])
        case "no settings":
            archive(file, {"model_weights.ckpt": weights})
        case "no weights":
            archive(file, {"model_config.yaml": b"num_layers: 1\n"})
        case "parts":
            archive(
                file,
                {
                    "model_config.yaml": b"num_layers: 1\n",
                    "mp_rank_00/model_weights.ckpt": weights,
                    "mp_rank_01/model_weights.ckpt": weights,
                },
            )
        case "cut gzip":
            archive(file, old_files, "w:gz")
            file.write_bytes(file.read_bytes()[:-5000])
        case "gzip bomb":
            file.write_bytes(gzip.compress(bytes(70 * 2**20)))
        case "files without end":
            file.write_bytes(header("a", tarfile.REGTYPE, 0) * (2**14 + 1) + bytes(1024))
        case "folders without end":
            file.write_bytes(gzip.compress(header("a", tarfile.DIRTYPE, 0) * (2**14 + 1) + bytes(1024)))
        case "name without end":
            file.write_bytes(header("././@LongLink", tarfile.GNUTYPE_LONGNAME, 2**23) + b"a/" * 2**22 + bytes(1024))
        case "attributes without end":
            records = b"20 k0000000=vvvvvvvv\n" * 2**18
            file.write_bytes(header("pax", tarfile.XHDTYPE, len(records)) + records + bytes(-len(records) % 512 + 1024))
        case "holes without end":
            records = b"".join(b"%d GNU.sparse.%s\n" % (len(r) + 15, r) for r in (b"major=1", b"minor=0")).ljust(512, b"\0")
            size = len(records.rstrip(b"\0"))
            file.write_bytes(
                header("pax", tarfile.XHDTYPE, size)
                + records
                + header("a", tarfile.REGTYPE, 2**18)
                + b"9999999\n"
                + b"1\n" * 2**17
            )
        case "not one":
            file.write_bytes(b"hello")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(InputError, match=message):
        open_nemo(file, scratch)
    assert not scratch.exists() or not list(scratch.iterdir())
    assert sorted(path for path in tmp_path.iterdir() if path != scratch) == before


class RunsACommand:
    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.system, (f"touch {os.environ['EVIL_FILE']}",)


@pytest.mark.parametrize("where", [".metadata", "common.pt", "distcp", "ckpt"])
def test_a_pickle_that_would_run_something_is_refused_and_runs_nothing(
    where: str, copy: Path, old_files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    evil = tmp_path / "evil"
    monkeypatch.setenv("EVIL_FILE", str(evil))
    weights = copy / "weights"
    buffer = io.BytesIO()
    torch.save({"x": RunsACommand()}, buffer)
    path = copy
    match where:
        case ".metadata":
            (weights / ".metadata").write_bytes(pickle.dumps(RunsACommand()))
        case "common.pt":
            (weights / "common.pt").write_bytes(buffer.getvalue())
        case "distcp":
            metadata = pickle.loads((weights / ".metadata").read_bytes())
            index, place = next((i, p) for i, p in metadata.storage_data.items() if "final_layernorm" in i.fqn)  # a small one
            file = weights / place.relative_path
            place.offset, place.length = file.stat().st_size, len(buffer.getvalue())
            metadata.storage_data[index] = place
            with file.open("ab") as stream:
                stream.write(buffer.getvalue())
            (weights / ".metadata").write_bytes(pickle.dumps(metadata))
        case "ckpt":
            path = archive(tmp_path / "bad.nemo", {**old_files, "./model_weights.ckpt": buffer.getvalue()})
    with pytest.raises(InputError, match=r"wants to use \w+\.system, which no checkpoint needs; it was not opened"):
        read_all(path)
    assert not evil.exists()


@pytest.mark.parametrize(
    "raw",
    [
        b"cbuiltins\neval\n(V1\ntR.",
        b"cbuiltins\nexec\n(Vx=1\ntR.",
        b"csubprocess\nPopen\n(Vls\ntR.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        b"cbuiltins\ngetattr\n(cos\nsystem\nVx\ntR.",
        b"cruntime\nx\n.",
        b"\x80\x02\x82\x01.",
    ],
)
def test_names_that_no_checkpoint_needs_are_refused(raw: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(raw)
    with pytest.raises(InputError, match=r"wants to use|cannot be read"):
        read_pickle(FilePart(file, 0, len(raw)))


def test_names_of_known_libraries_do_nothing(tmp_path: Path) -> None:
    file = tmp_path / "x"
    raw = b"ctorch\nhub.load\n(Vhttp://example.com\ntR."
    file.write_bytes(raw)
    found = read_pickle(FilePart(file, 0, len(raw)))
    assert found.arguments == ("http://example.com",) and not callable(found)


@pytest.mark.parametrize(
    "raw",
    [
        b"\x80\x02]r" + struct.pack("<I", 0xFFFFFFF0) + b".",  # a note with a number for which 64 GiB would be made room
        b"\x80\x04\x8e" + struct.pack("<Q", 2**60) + b"x.",  # bytes that are not there
        b"\x80\x04\x8b" + struct.pack("<i", 2**30) + b"\1.",  # a number with a billion bytes
        b"",
        b"garbage",
        b"\x80\x05.",
    ],
)
def test_a_pickle_that_asks_for_memory_without_end_is_refused(raw: bytes, tmp_path: Path) -> None:
    file = tmp_path / "x"
    file.write_bytes(raw)
    with pytest.raises(InputError, match="cannot be read"):
        read_pickle(FilePart(file, 0, len(raw)))


def test_any_flipped_byte_of_the_table_of_contents_is_an_error_or_harmless(copy: Path, exported: Path) -> None:
    file = copy / "weights" / ".metadata"
    raw, expected = file.read_bytes(), read_all(exported)
    outcomes = {"refused": 0, "read": 0}
    for position in range(0, len(raw), 53):
        file.write_bytes(raw[:position] + bytes([raw[position] ^ 0x5A]) + raw[position + 1 :])
        try:
            found = read_all(copy)
        except InputError:
            outcomes["refused"] += 1
        else:
            outcomes["read"] += 1
            assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert outcomes["refused"] > outcomes["read"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("no metadata", "holds no .metadata, so it is no complete checkpoint"),
        ("missing file", "is missing, and holds a part of"),
        ("cut file", r"distcp: cut short: it has 100000 bytes, and module\.\S+ ends at \d+; copy or download it again"),
        ("zarr", "stored as 'zarr'; only 'torch_dist'"),
        ("missing piece", "is not complete"),
        ("outside", "names a file outside itself"),
        ("other model", "do not fit the model"),
        ("bias", "holds weights that a Llama does not have: module.decoder.layers.mlp.linear_fc2.bias"),
        ("wrong shape", r"linear_qkv.weight should be \[2, 128, 64\]"),
        ("adapters", "holds LoRA adapters only"),
        ("other kind", r"holds no embedding.word_embeddings.weight, so it is not a GPT model of Megatron; found module.other"),
        ("yaml", "not valid YAML"),
        ("python in yaml", "not valid YAML"),
        ("layernorm", "normalization is 'LayerNorm'"),
        ("empty", "no checkpoint of NeMo or Megatron"),
    ],
)
def test_what_is_damaged_or_no_llama_is_refused_with_the_reason(
    damage: str, message: str, copy: Path, tiny_model: Path
) -> None:
    weights, settings = copy / "weights", copy / "context" / "model.yaml"
    metadata = pickle.loads((weights / ".metadata").read_bytes())
    entries = metadata.state_dict_metadata
    fc2 = "module.decoder.layers.mlp.linear_fc2.weight"
    match damage:
        case "no metadata":
            (weights / ".metadata").unlink()
        case "missing file":
            (weights / "__0_0.distcp").unlink()
        case "cut file":
            os.truncate(weights / "__0_0.distcp", 100_000)
        case "zarr":
            (weights / "metadata.json").write_text('{"sharded_backend": "zarr"}')
        case "missing piece":
            entries[fc2].chunks.pop()
        case "outside":
            next(iter(metadata.storage_data.values())).relative_path = "../../../etc/passwd"
        case "other model":
            settings.write_text(settings.read_text().replace("num_layers: 2", "num_layers: 3"))
        case "bias":
            entries["module.decoder.layers.mlp.linear_fc2.bias"] = entries["module.decoder.final_layernorm.weight"]
        case "wrong shape":
            entry = entries["module.decoder.layers.self_attention.linear_qkv.weight"]
            entry.size = torch.Size([2, 160, 64])
        case "adapters":
            for name in list(entries):
                entries[name.replace("weight", "adapter.linear_in.weight")] = entries.pop(name)
        case "other kind":
            for name in list(entries):
                del entries[name]
            entries["module.other"] = pickle.loads((weights / ".metadata").read_bytes()).state_dict_metadata[fc2]
        case "yaml":
            settings.write_text("a: [1, 2")
        case "python in yaml":
            settings.write_text("config: !!python/object/apply:os.system ['touch /tmp/evil']")
        case "layernorm":
            settings.write_text(settings.read_text().replace("RMSNorm", "LayerNorm"))
        case "empty":
            shutil.rmtree(copy)
            copy.mkdir()
            (copy / "readme.txt").write_text("nothing")
    if weights.is_dir() and (weights / ".metadata").is_file():
        (weights / ".metadata").write_bytes(pickle.dumps(metadata))
    with pytest.raises(InputError, match=message):
        read_all(copy)


def test_a_configuration_that_differs_is_refused_with_what_differs(
    exported: Path, tiny_tied_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"tie_word_embeddings is False in the checkpoint and True in config\.json"):
        nemo_source(open_nemo(exported, tmp_path), read_llama_config(tiny_tied_model))


def test_the_fingerprint_is_that_of_the_weights(exported: Path, copy: Path, tmp_path: Path) -> None:
    first = nemo_fingerprint(open_nemo(exported, tmp_path))
    assert nemo_fingerprint(open_nemo(copy, tmp_path)) == first
    with (copy / "weights" / "__0_0.distcp").open("r+b") as file:
        file.seek(1000)
        file.write(b"other")
    assert nemo_fingerprint(open_nemo(copy, tmp_path)) != first


def test_nothing_is_half_written_when_an_export_fails(tiny_model: Path, tmp_path: Path) -> None:
    model = open_model(tiny_model)

    def fails(done: int, total: int) -> None:
        if done > total / 2:
            raise InputError("enough")

    with pytest.raises(InputError, match="enough"):
        export_nemo(model, tmp_path / "out", stored_dtypes(model), fails)
    assert not list(tmp_path.iterdir())


def test_honest_pickles_keep_few_notes() -> None:
    """What the check of a pickle's memory relies on."""
    raw = pickle.dumps([str(number) for number in range(1000)], protocol=2)
    notes = [argument for operation, argument, _ in pickletools.genops(raw) if "PUT" in operation.name]
    assert max(notes) < len(raw)


@pytest.mark.parametrize(
    ("name", "value", "sentence"),
    [
        ("num_layers", 10**6, "num_layers is 1000000, but must be a positive whole number"),
        ("num_query_groups", "four", "num_query_groups is 'four', but must be a positive whole number"),
        ("num_query_groups", 3, "4 attention heads of 16 do not fit 3 key/value heads and RoPE"),
        ("kv_channels", [16], "kv_channels is [16], but must be a positive whole number"),
        ("layernorm_epsilon", {}, "layernorm_epsilon is {}, but must be a positive number"),
        ("rotary_base", float("nan"), "rotary_base is nan, but must be a positive number"),
        ("seq_length", -1, "seq_length is -1, but must be a positive whole number"),
    ],
)
def test_a_wrong_value_in_the_settings_is_one_sentence(
    copy: Path, tmp_path: Path, name: str, value: Any, sentence: str
) -> None:
    file = copy / "context" / "model.yaml"
    settings = yaml.safe_load(file.read_text())
    settings["config"][name] = value
    file.write_text(yaml.safe_dump(settings))
    with pytest.raises(InputError) as caught:
        open_nemo(copy, tmp_path).own_config()
    assert caught.value.problems == [f"{file}: {sentence}"]
