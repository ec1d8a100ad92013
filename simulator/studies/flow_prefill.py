"""FlowPrefill: prefills preempted between operators, by slack, against whole prompts and chunks in order of arrival."""

from simulator.studies.card import Card, Claim

CARD = Card(
    name="flow_prefill",
    paper="FlowPrefill (arXiv 2602.16603)",
    sentence="Operator-level preemption and slack-aware EDF carry up to 5.6 times the requests within mixed promises.",
    claims=(
        Claim("goodput, every class at 90 %, over whole prompts FCFS", 5.6, "x", "R", low=2.5),
        Claim("mean blocking", 4.5, "ms", "R", high=5.0, neutral=None),
        Claim("mean blocking of chunks of 512 over it", 3.85, "x", "R", low=3.0),
    ),
    study_pass="goodput (90 % per class) ratio >= 2.5 (paper <= 5.6); mean blocking <= one op (< 5 ms) vs chunk-512 "
    ">= 3x; sweep granularity; report per-class attainment",
    control="at 0.2 requests a second the attainment of all classes together, over whole prompts FCFS",
    control_margin=0.02,
    hidden_knob="granularity of preemption; goodput by every class or by all requests together",
)
