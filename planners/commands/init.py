"""`plan init`: a commented plan.yaml to start from, and its schema for the editor."""

import json
from pathlib import Path

import click

from planners.answer import Answer
from planners.commands.envelope import give
from planners.commands.options import Name, json_flag

TEXT = """\
# yaml-language-server: $schema={schema}
# What to plan. `plan fleet` in this folder reads it; `plan fleet --set seed=1` changes a key for once.

# A file of requests: Azure, BurstGPT, Mooncake, or CSV or Parquet with arrival_s, input_tokens, output_tokens.
# null is the bundled sample.
trace: {trace}

# A name of `plan models`, or the path of a Hugging Face config.json.
model: {model}

# What is promised: time to first token, time per output token after it, or end to end; a percentile; a limit.
slo:
  - ttft:p99<=2s
  - tpot:p99<=80ms

# Devices to choose from, names of `plan devices`; ten common ones where nothing is said.
# devices: [h100-sxm, l40s]

# What you pay per device and hour, where it is not the cheapest listed offer of `plan prices`.
# prices:
#   h100-sxm: $2.10/h

# Limits on the whole fleet, any zone of which may fail; and the nodes there are, with the power they share.
# limits: {{usd_per_hour: 50, zones: 2}}
# racks: {{east-1: {{zone: east, power_w: 20000, nodes: {{h100-sxm: [8, 8, 8]}}}}}}

# In what engines may vary beside their cut: KV in fp8, ranks that share experts, drafts of 3 tokens taken at 70 %.
# engines: {{kv_dtypes: [bf16, fp8], dp: [1, 8], speculative: [none, "3:0.7"]}}
"""


@click.command()
@click.option("--trace", default="null", metavar="FILE", help="The trace to write down.")
@click.option("--model", default="llama-3.1-8b", type=Name("model"), metavar="NAME", help="The model to write down.")
@click.option("--overwrite", is_flag=True, help="Replace a plan.yaml that is there.")
@json_flag
def init(trace: str, model: str, overwrite: bool, as_json: bool) -> None:
    """Write plan.yaml and plan.schema.json to the working folder."""
    from planners import study

    file = Path(study.FILE)
    if file.exists() and not overwrite:
        raise ValueError(f"{file} is there already; --overwrite replaces it")
    file.write_text(TEXT.format(schema=study.SCHEMA_FILE, trace=trace, model=model), encoding="utf-8")
    Path(study.SCHEMA_FILE).write_text(json.dumps(study.schema(), indent=1) + "\n", encoding="utf-8")
    result = {"files": [study.FILE, study.SCHEMA_FILE]}
    give(Answer("init", {}, result), as_json, f"Written {study.FILE} and {study.SCHEMA_FILE}\nNext    plan fleet")
