"""What the tests have megatron-core do: `python megatron_script.py JOBS.json`, with megatron-core in PYTHONPATH.

Jobs run one after the other, each in as many processes as its layout has. {"do": "make" | "reshard" | "logits",
"from": folder, "to": folder, "tp": 2, "pp": 1, "shape": fields of LlamaConfig, …}: see the functions of the same names.
megatron-core expects CUDA; the places where it needs it on this path are replaced.
"""

import contextlib
import json
import multiprocessing
import os
import sys
import warnings
from pathlib import Path


def build(job):
    import torch
    import torch.nn.functional as F
    from megatron.core import parallel_state
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_layer_local_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    shape = job["shape"]
    dtype = getattr(torch, job.get("dtype", "float32"))
    config = TransformerConfig(
        num_layers=shape["num_hidden_layers"],
        hidden_size=shape["hidden_size"],
        num_attention_heads=shape["num_attention_heads"],
        num_query_groups=shape["num_key_value_heads"],
        kv_channels=shape["head_dim"],
        ffn_hidden_size=shape["intermediate_size"],
        use_cpu_initialization=True,
        normalization="RMSNorm",
        gated_linear_unit=True,
        activation_func=F.silu,
        add_bias_linear=False,
        add_qkv_bias=False,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        layernorm_epsilon=shape["rms_norm_eps"],
        bias_activation_fusion=False,
        bias_dropout_fusion=False,
        masked_softmax_fusion=False,
        apply_rope_fusion=False,
        gradient_accumulation_fusion=False,
        persist_layer_norm=False,
        params_dtype=dtype,
        pipeline_dtype=dtype,
        attention_softmax_in_fp32=True,
        bf16=dtype == torch.bfloat16,
        tensor_model_parallel_size=job["tp"],
        pipeline_model_parallel_size=job["pp"],
        hetereogenous_dist_checkpoint=job.get("layers_apart", False),
    )
    scaling = shape["rope_scaling"] or {}
    return (
        GPTModel(
            config,
            get_gpt_layer_local_spec(normalization="RMSNorm"),
            vocab_size=job.get("rows", shape["vocab_size"]),
            max_sequence_length=shape["max_position_embeddings"],
            position_embedding_type="rope",
            rotary_percent=1.0,
            rotary_base=shape["rope_theta"],
            rope_scaling=bool(scaling),
            rope_scaling_factor=scaling.get("factor", 8.0),
            share_embeddings_and_output_weights=shape["tie_word_embeddings"],
            parallel_output=False,
            pre_process=parallel_state.is_pipeline_first_stage(),
            post_process=parallel_state.is_pipeline_last_stage(),
        )
        .to(dtype)
        .eval()
    )


def arguments(job):
    """As Megatron-LM stores them: a namespace with objects of many kinds in it."""
    import argparse
    import signal

    import torch
    from megatron.core.transformer.enums import AttnBackend

    shape = job["shape"]
    scaling = shape["rope_scaling"] or {}
    return argparse.Namespace(
        num_layers=shape["num_hidden_layers"],
        hidden_size=shape["hidden_size"],
        ffn_hidden_size=shape["intermediate_size"],
        num_attention_heads=shape["num_attention_heads"],
        group_query_attention=True,
        num_query_groups=shape["num_key_value_heads"],
        kv_channels=shape["head_dim"],
        norm_epsilon=shape["rms_norm_eps"],
        rotary_base=shape["rope_theta"],
        rotary_percent=1.0,
        use_rope_scaling=bool(scaling),
        rope_scaling_factor=scaling.get("factor", 8.0),
        max_position_embeddings=shape["max_position_embeddings"],
        vocab_size=shape["vocab_size"],
        padded_vocab_size=job.get("rows", shape["vocab_size"]),
        swiglu=True,
        normalization="RMSNorm",
        untie_embeddings_and_output_weights=not shape["tie_word_embeddings"],
        position_embedding_type="rope",
        add_bias_linear=False,
        add_qkv_bias=False,
        params_dtype=getattr(torch, job.get("dtype", "float32")),
        tensor_model_parallel_size=job["tp"],
        pipeline_model_parallel_size=job["pp"],
        attention_backend=AttnBackend.auto,
        exit_signal=signal.SIGTERM,
        save=Path("/somewhere"),
        betas=(0.9, 0.95),
        extra={"x": {1, 2}},
    )


def optimizer_state(model, state):
    """Adam's moments after a step, and the float32 copies of mixed precision, sharded as Megatron does it."""
    import torch
    from megatron.core.dist_checkpointing.optimizer import (
        get_param_id_to_sharded_param_map,
        make_sharded_optimizer_tensor,
        optim_state_to_sharding_state,
    )

    parameters = list(model.parameters())
    optimizer = torch.optim.AdamW(parameters)
    sum((p.float() ** 2).sum() for p in parameters).backward()
    before = [p.detach().clone() for p in parameters]
    optimizer.step()
    for parameter, value in zip(parameters, before, strict=True):
        parameter.data.copy_(value)
    optimizer.param_groups[0]["step"] = 1
    by_id = get_param_id_to_sharded_param_map(state, iter(parameters))
    held = optimizer.state_dict()
    optim_state_to_sharding_state(held, by_id, exclude_keys="step")
    held["master"] = {
        i: make_sharded_optimizer_tensor(by_id[i], p.detach().float(), "optimizer.state.master")
        for i, p in enumerate(parameters)
    }
    return held


def save(model, job):
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.strategies import filesystem_async

    metadata = {"singleton_local_shards": True} if job.get("one_shard_each") else None
    state = model.sharded_state_dict(prefix=job.get("prefix", ""), metadata=metadata)
    if job.get("optimizer"):
        state["optimizer"] = optimizer_state(model, state)
    state |= {"checkpoint_version": 3.0, "iteration": 7}
    if job.get("with_arguments"):
        state["args"] = arguments(job)
    Path(job["to"]).mkdir(parents=True, exist_ok=True)
    filesystem_async._results_queue = multiprocessing.get_context("fork").Manager().Queue()
    dist_checkpointing.save(state, job["to"])


def load(model, job):
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.validation import StrictHandling

    prefix = job.get("prefix", "")
    state = {name: v for name, v in model.sharded_state_dict(prefix=prefix).items() if not name.endswith("_extra_state")}
    loaded = dist_checkpointing.load(state, job["from"], strict=StrictHandling.RAISE_UNEXPECTED)
    own = model.state_dict()
    model.load_state_dict({name: loaded[prefix + name] for name in own if prefix + name in loaded}, strict=False)


def write_logits(model, job):
    import torch

    tokens = torch.tensor(job["tokens"])[None]
    mask = torch.triu(torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool), 1)[None, None]
    with torch.no_grad():
        logits = model(tokens, torch.arange(tokens.shape[1])[None], mask)[0]
    torch.save(logits.float(), job["logits"])


def run(job, rank, store):
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state, tensor_parallel

    class NoRandomState:
        def fork(self, *_args, **_named):
            return contextlib.nullcontext()

    os.environ["LOCAL_RANK"] = str(rank)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=job["tp"] * job["pp"])
    torch.cuda.synchronize = lambda *_: None
    torch.cuda.current_device = lambda: torch.device("cpu")
    torch.Tensor.cuda = lambda tensor, *_args, **_named: tensor
    tensor_parallel.get_cuda_rng_tracker = NoRandomState
    parallel_state.initialize_model_parallel(job["tp"], job["pp"])
    torch.manual_seed(0)
    model = build(job)
    if job["do"] == "make":
        for parameter in model.parameters():
            parameter.data.normal_(0, 0.08) if parameter.dim() > 1 else parameter.data.uniform_(0.5, 1.5)
    else:
        load(model, job)
    if "to" in job:
        save(model, job)
    if "logits" in job:
        write_logits(model, job)
    dist.barrier()
    dist.destroy_process_group()


def main(jobs_file):
    import torch
    from megatron.core import dist_checkpointing  # noqa: F401 - loaded once, before the processes are forked

    torch.set_num_threads(1)
    context = multiprocessing.get_context("fork")
    for number, job in enumerate(json.loads(Path(jobs_file).read_text())):
        store = f"{jobs_file}.{number}"
        ranks = [context.Process(target=run, args=(job, rank, store)) for rank in range(job["tp"] * job["pp"])]
        for process in ranks:
            process.start()
        for process in ranks:
            process.join()
        if any(process.exitcode for process in ranks):
            sys.exit(f"job {number} failed: {job}")


if __name__ == "__main__":  # saving starts a process that imports this file
    warnings.filterwarnings("ignore")
    main(sys.argv[1])
