"""What the tests have megatron-core do, in processes of its own: `python megatron_script.py JOB.json`.

A job: {"do": "make" | "reshard" | "logits", "from": folder, "to": folder, "rank", "world_size", "tp", "pp", "shape": …}.
megatron-core expects CUDA; the three places where it needs it on this path are replaced.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch
import torch.distributed as dist
import torch.nn.functional as F
from megatron.core import dist_checkpointing, parallel_state, tensor_parallel
from megatron.core.dist_checkpointing.optimizer import (
    get_param_id_to_sharded_param_map,
    make_sharded_optimizer_tensor,
    optim_state_to_sharding_state,
)
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.enums import AttnBackend
from megatron.core.transformer.transformer_config import TransformerConfig


class _NoRandomState:
    def fork(self, *_args, **_named):
        return contextlib.nullcontext()


def build(job):
    shape = job["shape"]
    dtype = getattr(torch, job.get("dtype", "float32"))
    config = TransformerConfig(
        num_layers=shape["num_hidden_layers"], hidden_size=shape["hidden_size"],
        num_attention_heads=shape["num_attention_heads"], num_query_groups=shape["num_key_value_heads"],
        kv_channels=shape["head_dim"], ffn_hidden_size=shape["intermediate_size"], use_cpu_initialization=True,
        normalization="RMSNorm", gated_linear_unit=True, activation_func=F.silu, add_bias_linear=False, add_qkv_bias=False,
        hidden_dropout=0.0, attention_dropout=0.0, layernorm_epsilon=shape["rms_norm_eps"], bias_activation_fusion=False,
        bias_dropout_fusion=False, masked_softmax_fusion=False, apply_rope_fusion=False, gradient_accumulation_fusion=False,
        persist_layer_norm=False, params_dtype=dtype, pipeline_dtype=dtype, attention_softmax_in_fp32=True,
        bf16=dtype == torch.bfloat16, tensor_model_parallel_size=job["tp"], pipeline_model_parallel_size=job["pp"],
        hetereogenous_dist_checkpoint=job.get("layers_apart", False),
    )  # fmt: skip
    model = GPTModel(
        config, get_gpt_layer_local_spec(normalization="RMSNorm"), vocab_size=job.get("padded_vocab", shape["vocab_size"]),
        max_sequence_length=shape["max_position_embeddings"], position_embedding_type="rope", rotary_percent=1.0,
        rotary_base=shape["rope_theta"], rope_scaling=shape.get("rope_scaling") is not None,
        rope_scaling_factor=(shape.get("rope_scaling") or {}).get("factor", 8.0),
        share_embeddings_and_output_weights=shape["tie_word_embeddings"], parallel_output=False,
        pre_process=parallel_state.is_pipeline_first_stage(), post_process=parallel_state.is_pipeline_last_stage(),
    )  # fmt: skip
    return model.to(dtype).eval()


def arguments(job):
    """As Megatron-LM stores them: a namespace with objects of many kinds in it."""
    shape = job["shape"]
    return argparse.Namespace(
        num_layers=shape["num_hidden_layers"], hidden_size=shape["hidden_size"], ffn_hidden_size=shape["intermediate_size"],
        num_attention_heads=shape["num_attention_heads"], group_query_attention=True,
        num_query_groups=shape["num_key_value_heads"], kv_channels=shape["head_dim"], norm_epsilon=shape["rms_norm_eps"],
        rotary_base=shape["rope_theta"], rotary_percent=1.0, use_rope_scaling=shape.get("rope_scaling") is not None,
        rope_scaling_factor=(shape.get("rope_scaling") or {}).get("factor", 8.0),
        max_position_embeddings=shape["max_position_embeddings"], vocab_size=shape["vocab_size"],
        padded_vocab_size=job.get("padded_vocab", shape["vocab_size"]), swiglu=True, normalization="RMSNorm",
        untie_embeddings_and_output_weights=not shape["tie_word_embeddings"], position_embedding_type="rope",
        add_bias_linear=False, add_qkv_bias=False, params_dtype=getattr(torch, job.get("dtype", "float32")),
        tensor_model_parallel_size=job["tp"], pipeline_model_parallel_size=job["pp"],
        attention_backend=AttnBackend.auto, exit_signal=signal.SIGTERM, save=Path("/somewhere"), init_method=torch.nn.init.normal_,
    )  # fmt: skip


def save(model, job, folder):
    metadata = {"singleton_local_shards": True} if job.get("one_shard_each") else None
    state = model.sharded_state_dict(prefix=job.get("prefix", ""), metadata=metadata)
    if job.get("optimizer"):
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters)
        sum((p.float() ** 2).sum() for p in parameters).backward()
        optimizer.step()
        optimizer.param_groups[0]["step"] = 1
        by_id = get_param_id_to_sharded_param_map(state, iter(parameters))
        held = optimizer.state_dict()
        optim_state_to_sharding_state(held, by_id, exclude_keys="step")
        held["master"] = {i: make_sharded_optimizer_tensor(by_id[i], p.detach().float(), "optimizer.state.master")
                          for i, p in enumerate(parameters)}  # fmt: skip
        state["optimizer"] = held
    state |= {"checkpoint_version": 3.0, "iteration": 7}
    if job.get("with_arguments"):
        state["args"] = arguments(job)
    Path(folder).mkdir(parents=True, exist_ok=True)
    dist_checkpointing.save(state, str(folder))


def logits(model, job):
    tokens = torch.tensor(job["tokens"])[None]
    mask = torch.triu(torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool), 1)[None, None]
    with torch.no_grad():
        return model(tokens, torch.arange(tokens.shape[1])[None], mask)[0]


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    job |= {"rank": int(sys.argv[2]), "world_size": job["tp"] * job["pp"]}
    torch.set_num_threads(1)
    store = f"file://{sys.argv[1]}.store"
    dist.init_process_group("gloo", init_method=store, rank=job["rank"], world_size=job["world_size"])
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: torch.device("cpu")
    tensor_parallel.get_cuda_rng_tracker = _NoRandomState
    os.environ["LOCAL_RANK"] = str(job["rank"])
    parallel_state.initialize_model_parallel(job["tp"], job["pp"])
    tensor_parallel.random.model_parallel_cuda_manual_seed = lambda *_: None
    torch.manual_seed(0)
    model = build(job)
    if job["do"] == "make":
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.08) if parameter.dim() > 1 else parameter.data.uniform_(0.5, 1.5)
        save(model, job, job["to"])
    else:
        state = model.sharded_state_dict(prefix=job.get("loaded_prefix", job.get("prefix", "")))
        loaded = dist_checkpointing.load(state, job["from"], strict=dist_checkpointing.validation.StrictHandling.RAISE_ALL
                                         if job.get("strict") else "assume_ok_unexpected")  # fmt: skip
        names = {name.removeprefix(job.get("loaded_prefix", job.get("prefix", ""))): v for name, v in loaded.items()}
        model.load_state_dict({n: v for n, v in names.items() if n in model.state_dict()}, strict=False)
    if job["do"] == "reshard":
        save(model, job, job["to"])
    if job.get("logits"):
        torch.save(logits(model, job), job["logits"])
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":  # saving starts processes that import this file
    main()
