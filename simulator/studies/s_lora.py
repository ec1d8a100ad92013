"""S-LoRA: thousands of adapters beside KV in one pool, against a pool of their own and merged models."""

from simulator.studies.card import Card, Claim

CARD = Card(
    name="s_lora",
    paper="S-LoRA (MLSys'24)",
    sentence="Throughput stays flat from a few adapters to 2,000 on one device.",
    claims=(
        Claim("throughput lost from 5 to 2,000 adapters", 0.055, "fraction", "Q", high=0.08, neutral=None),
        Claim("knee with 200 adapters on an A10G", 1.8, "requests/s", "Q", 1.62, 1.98, neutral=None),
        Claim("without unified memory, 200 adapters over 1", -0.395, "fraction", "R", -0.45, -0.30, neutral=0.0),
        Claim("merged models that fit an A100 80GB", 5.0, "models", "R", 5.0, 5.0, neutral=None),
    ),
    study_pass="throughput flat: drop n=5 to 2000 <= 8 % (paper 5.5 %), knee at 1.8 +- 10 % req/s for A10G; "
    "non-unified -30 to -45 % at n=200; merged-model baseline out of memory at n >= floor(memory)",
    control="at 0.5 requests a second, throughput with unified memory over that without",
    control_margin=0.02,
    hidden_knob="adapters, 5 to 2,000",
)
