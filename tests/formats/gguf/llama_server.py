"""llama.cpp's server, as the package xllamacpp has it inside, by the name and the flags of the program `llama-server`."""

import argparse
import signal

import xllamacpp

parser = argparse.ArgumentParser(allow_abbrev=False)
for name in ("model", "host"):
    parser.add_argument(f"--{name}", required=True)
for name in ("port", "ctx-size", "parallel"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--lora")
parser.add_argument("--jinja", action="store_true")
given = parser.parse_args()
settings = xllamacpp.CommonParams()
settings.model.path = given.model
settings.hostnames, settings.port = [given.host], given.port
settings.n_ctx, settings.n_parallel, settings.use_jinja = given.ctx_size, given.parallel, given.jinja
settings.warmup = False
if given.lora is not None:
    adapter = xllamacpp.CommonAdapterLoraInfo()
    adapter.path, adapter.scale = given.lora, 1.0
    settings.lora_adapters = [adapter]
server = xllamacpp.Server(settings)
signal.pause()
