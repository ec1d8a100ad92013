"""Which tiles Triton's kernels for experts take."""

import numpy as np
import pytest

from models import device
from models.calibration import load
from models.calibration.predict import operator_s
from models.calibration.tiles import RULES, _tables, tiles_of

TRITON, OF_VLLM = "sglang_fused_moe_triton", "vllm_unquantizedfusedmoe_triton_tritonexperts"


def tiles(kernel=TRITON, dtype="bf16", version="0.5.14", name="h200-sxm", tokens=(64.0,), **layer):
    layer = {"k": 2048.0, "inter": 768.0, "experts": 128.0, "topk": 8.0, "tp": 1.0, "ep": 1.0, "uneven": 0.0} | layer
    shape = {column: np.full(len(tokens), value) for column, value in layer.items()}
    return tiles_of(kernel, dtype, version, name, shape | {"m": np.array(tokens)})


def test_a_layer_that_was_tuned_takes_its_tiles_by_tokens():
    # E=128,N=768,device_name=NVIDIA_H200.json
    assert tiles(tokens=(1.0, 4096.0))[:, :3].tolist() == [[16.0, 64.0, 64.0], [128.0, 256.0, 64.0]]


@pytest.mark.parametrize("changed", [{"name": "gb200"}, {"ep": 4.0}, {"tp": 64.0}], ids=str)
def test_a_layer_that_nobody_tuned_takes_small_tiles_for_fewer_tokens_than_experts(changed):
    few, many = tiles(tokens=(8.0, 4096.0), **changed)
    assert few[:3].tolist() == [16.0, 32.0, 64.0]
    assert many[:3].tolist() == [64.0, 64.0, 32.0]


def test_tiles_grow_with_tokens_where_vllm_has_tuned_nothing():
    found = tiles(OF_VLLM, tokens=(1.0, 33.0, 97.0, 513.0), inter=777.0)
    assert found[:, 0].tolist() == [16.0, 32.0, 64.0, 128.0]


@pytest.mark.parametrize("kernel", ["moe_torch_flow_cutlass", "", "sglang_flashinfer_trtllm_moe"])
def test_a_kernel_of_its_own_tells_no_tile(kernel):
    assert not tiles(kernel, ep=4.0).any()


def test_copies_stray_in_old_tables_and_for_layers_of_plain_routers():
    assert tiles(version="0.5.10", ep=4.0)[0, -1] == 1.0
    assert tiles(version="0.5.10", ep=1.0)[0, -1] == 0.0
    assert tiles(k=4096.0, inter=14336.0, experts=8.0, topk=2.0, ep=4.0)[0, -1] == 1.0
    assert tiles(ep=4.0)[0, -1] == 0.0


def test_a_server_lets_no_copies_stray():
    cut = {"experts": 128.0, "topk": 8.0, "tp": 1.0, "ep": 8.0, "uneven": 0.0, "matrices": 3.0}
    shape = {"m": 4096.0, "k": 2048.0, "inter": 768.0} | cut
    timed, served = (
        operator_s(load("a100-sxm-80gb", "sglang"), "moe", "bf16", shape, in_graph=in_graph)
        for in_graph in (False, True)
    )
    assert served < 0.5 * timed


def test_strayed_copies_choose_tiles_by_the_tokens_that_came():
    # An eighth of the tokens comes to 16 of 128 experts, no more than these are.
    assert tiles(version="0.5.10", ep=8.0, tokens=(32.0, 128.0), topk=1.0)[:, 0].tolist() == [16.0, 16.0]
    assert tiles(version="0.5.14", ep=8.0, tokens=(32.0, 128.0), topk=1.0)[:, 0].tolist() == [64.0, 64.0]


def test_every_table_names_a_device_of_the_catalogue_and_ends_with_all_tokens():
    for (engine, name, _, experts, width), steps in _tables().items():
        assert engine in {rule.engine for rule in RULES.values()}
        assert name in device.names()
        assert min(experts, width) > 0
        uptos = [upto for upto, _ in steps]
        assert uptos == sorted(uptos)
        assert uptos[-1] == np.inf
