"""Topologies by name."""

import os
from collections.abc import Iterator

import pytest

from flm_jax.pods import topology
from flm_jax.pods.topology import TopologyError, parse


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.parametrize(
    ("name", "devices"),
    [("v5p:4x8x8", 256), ("v5e:16x16", 256), ("2xv5e:16x16", 512), ("a800:24x8", 192), ("h100:1x8", 8)],
)
def test_names(name: str, devices: int) -> None:
    found = parse(name)
    assert (found.num_devices, found.name) == (devices, name)


@pytest.mark.parametrize(
    "name", ["v5p", "v5p:4x8", "v9:2x2", "a800:8", "2xa800:3x8", "v5e:0x4", "1xv5e:2x2", "v5p:4x8x8 "]
)
def test_what_is_none_is_refused(name: str) -> None:
    with pytest.raises(TopologyError, match="--topology"):
        parse(name)


def test_a_compiler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topology.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(TopologyError, match=r"libtpu is needed: pip install 'flm_jax\[tpu\]'"):
        parse("v5e:2x2").devices()
    with pytest.raises(TopologyError, match=r"xla_cuda12 is needed: pip install 'flm_jax\[cuda\]'"):
        parse("a800:1x8").devices()


def test_flags_of_the_user_stay() -> None:
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
    topology.prepare_environment()
    assert os.environ["XLA_FLAGS"].startswith("--xla_force_host_platform_device_count=8 --xla_gpu")
