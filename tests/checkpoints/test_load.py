"""Parameters from tensors: in the shares that devices want, within the memory of the weights."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from transformer_jax import from_pretrained
from transformer_jax.checkpoints.load import load
from transformer_jax.checkpoints.save import write_weights
from transformer_jax.checkpoints.weights import Weights
from transformer_jax.precision import Precision
from transformer_jax.zoo.tensors import Place, Tensor, linear, norm

L, D, N, H = 3, 5, 2, 7
MOST = 1.2  # times the weights' bytes


def fused() -> tuple[list[Tensor], dict[str, Any], dict[str, np.ndarray], dict[str, Any]]:
    """Layers whose queries and keys are in one tensor: tensors, shapes of ours, theirs, ours."""
    layer = Place(("layers",))
    tensors = [t for n in range(L) for t in linear(f"{n}.qk", layer[n] / "query", layer[n] / "key") if t.name.endswith("weight")]
    tensors += [t for n in range(L) for t in norm(f"{n}.norm", layer[n] / "norm") if t.name.endswith("weight")]
    numbers = np.random.default_rng(0).normal
    ours = {"layers": {"query": {"kernel": numbers(size=(L, D, N, H))}, "key": {"kernel": numbers(size=(L, D, 1, H))}, "norm": {"scale": numbers(size=(L, D))}}}
    ours = jax.tree.map(lambda a: a.astype(np.float32), ours)
    at = ours["layers"]
    theirs = {f"{n}.qk.weight": np.concatenate([at[name]["kernel"][n].reshape(D, -1) for name in ("query", "key")], 1).T for n in range(L)}
    theirs |= {f"{n}.norm.weight": at["norm"]["scale"][n] for n in range(L)}
    return tensors, jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), ours), theirs, ours


def test_a_tensor_of_several_arrays_is_read_once() -> None:
    tensors, wanted, theirs, ours = fused()
    reads: list[str] = []

    def read(name: str) -> np.ndarray:
        reads.append(name)
        return theirs[name]

    made = load(tensors, wanted, read)
    jax.tree.map(np.testing.assert_array_equal, made, ours)
    assert sorted(reads) == sorted(theirs)


def test_dtypes_are_those_wanted() -> None:
    tensors, wanted, theirs, ours = fused()
    wanted = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16), wanted)
    made = load(tensors, wanted, lambda name: theirs[name].astype(np.float64))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(np.asarray(a), b.astype(jnp.bfloat16)), made, ours)


def test_loaded_arrays_may_be_donated() -> None:
    tensors, wanted, theirs, ours = fused()
    made = load(tensors, wanted, theirs.__getitem__)
    doubled = jax.jit(lambda tree: jax.tree.map(lambda a: 2 * a, tree), donate_argnums=0)(made)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, 2 * b), doubled, ours)


def test_what_the_tensors_leave_open_or_hold_twice_is_refused() -> None:
    tensors, wanted, theirs, _ = fused()
    with pytest.raises(ValueError, match=rf"layers/norm/scale: expected tensors for its {L * D} numbers, received tensors for {(L - 1) * D}"):
        load(tensors[:-1], wanted, theirs.__getitem__)
    with pytest.raises(ValueError, match=r"layers/norm/scale\[2\]: expected one tensor that holds it, received two"):
        load([*tensors, tensors[-1]], wanted, theirs.__getitem__)


CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
}  # fmt: skip


def llama(folder: Path, dtype: Any, **changes: Any) -> int:
    """Writes a Llama of the same few random numbers over and over; the number of its parameters."""
    config = {**CONFIG, **changes}
    vocabulary, d_model, d_ff, layers, heads, kv_heads, head_dim = list(config.values())[2:9]
    few = np.random.default_rng(0).normal(size=99_991).astype(dtype)
    shapes = {"model.embed_tokens": (vocabulary, d_model), "lm_head": (vocabulary, d_model), "model.norm": (d_model,)}
    for n in range(layers):
        at = f"model.layers.{n}"
        shapes |= {f"{at}.{name}_layernorm": (d_model,) for name in ("input", "post_attention")}
        shapes |= {f"{at}.self_attn.{name}_proj": (count * head_dim, d_model) for name, count in (("q", heads), ("k", kv_heads), ("v", kv_heads))}
        shapes |= {f"{at}.self_attn.o_proj": (d_model, heads * head_dim), f"{at}.mlp.down_proj": (d_model, d_ff)}
        shapes |= {f"{at}.mlp.{name}_proj": (d_ff, d_model) for name in ("gate", "up")}

    def tensors() -> Iterator[tuple[str, np.ndarray]]:
        for n, (name, shape) in enumerate(shapes.items()):
            yield f"{name}.weight", np.resize(few[n:], shape)

    write_weights(folder, tensors(), max_shard_bytes=200_000_000, files={"config.json": json.dumps(config)})
    return sum(int(np.prod(shape)) for shape in shapes.values())


def in_a_process(*arguments: Any, devices: int = 1) -> Any:
    flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "JAX_PLATFORMS": "cpu"}
    environment = {**os.environ, **flags, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run([sys.executable, "-W", "error", __file__, *map(str, arguments)], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def cut(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("llama")
    llama(folder, np.float32)
    return in_a_process("shares", folder, devices=8)


def test_every_parameter_is_on_the_devices_that_were_asked_for(cut: Any) -> None:
    assert cut["arrays"] == 12
    assert cut["as asked"] and cut["equal"]


def test_shares_are_cut_along_layers_and_axes(cut: Any) -> None:
    assert cut["shares"]["stack/groups_0/layers/sublayers_1/layer/gate/kernel"] == [2, 16, 6]
    assert cut["shares"]["stack/groups_0/layers/sublayers_0/pre/scale"] == [2, 4]


def test_devices_with_the_same_share_have_the_same_memory(cut: Any) -> None:
    assert cut["copies"] == 1


def test_a_sharding_that_does_not_fit_is_refused(cut: Any) -> None:
    assert "sublayers_0/pre/scale: expected a sharding that cuts (4, 16) into equal parts, received" in cut["uneven"]


def test_a_host_reads_what_its_devices_have(tmp_path: Path) -> None:
    """Two processes, each with one of two devices and half of the layers."""
    llama(tmp_path, np.float32)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(lambda host: in_a_process("host", tmp_path, host, port), range(2))
    assert (first["layers"], second["layers"]) == ([0, 1], [2, 3])
    assert first["right"] and second["right"]


def test_one_sharding_is_for_all(tmp_path: Path) -> None:
    llama(tmp_path, np.float32)
    device = jax.devices()[0]
    _, variables = from_pretrained(tmp_path, sharding=SingleDeviceSharding(device))
    assert all(leaf.committed and leaf.devices() == {device} for leaf in jax.tree.leaves(variables))
    _, variables = from_pretrained(tmp_path)
    assert not any(leaf.committed for leaf in jax.tree.leaves(variables))


LARGE = {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 4, "head_dim": 128, "tie_word_embeddings": True}


@pytest.mark.parametrize(
    ("stored", "params", "layers", "vocabulary", "devices"),
    [
        ("bfloat16", "float32", 1, 12_000, 1),
        ("float32", "bfloat16", 3, 12_000, 1),
        pytest.param("bfloat16", "float32", 12, 64_000, 1, marks=pytest.mark.slow),
        pytest.param("float32", "bfloat16", 4, 64_000, 1, marks=pytest.mark.slow),
        pytest.param("float32", "float32", 4, 64_000, 8, marks=pytest.mark.slow),
    ],
)
def test_loading_takes_the_memory_of_the_weights(tmp_path: Path, stored: str, params: str, layers: int, vocabulary: int, devices: int) -> None:
    """The head is stored as a copy of the embeddings: it is compared with them, and not loaded."""
    llama(tmp_path, jnp.dtype(stored), **LARGE, num_hidden_layers=layers, vocab_size=vocabulary)
    measured = in_a_process("memory", tmp_path, params, devices=devices)
    assert measured["grown"] <= MOST * measured["weights"], measured


def shares(folder: Path) -> dict[str, Any]:
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), ("x", "y"))

    def sharding(path: tuple[str, ...], shape: tuple[int, ...]) -> NamedSharding:
        return NamedSharding(mesh, P("x" if shape[0] % 2 == 0 else None, *(None,) * (len(shape) - 2), "y" if shape[-1] % 4 == 0 and len(shape) > 1 else None))

    _, whole = from_pretrained(folder)
    _, parts = from_pretrained(folder, sharding=sharding)
    named = {"/".join(p.key for p in path): leaf for path, leaf in jax.tree.leaves_with_path(parts["params"])}
    expected = {"/".join(p.key for p in path): np.asarray(leaf) for path, leaf in jax.tree.leaves_with_path(whole["params"])}
    _, copies = from_pretrained(folder, sharding=NamedSharding(mesh, P()))
    pointers = [len({shard.data.unsafe_buffer_pointer() for shard in leaf.addressable_shards}) for leaf in jax.tree.leaves(copies)]
    return {
        "arrays": len(named),
        "as asked": all(leaf.sharding == sharding((), leaf.shape) for leaf in named.values()),
        "equal": all(np.array_equal(shard.data, expected[name][shard.index]) for name, leaf in named.items() for shard in leaf.addressable_shards),
        "shares": {name: leaf.addressable_shards[0].data.shape for name, leaf in named.items()},
        "copies": max(pointers),
        "uneven": uneven(folder),
    }


def uneven(folder: Path) -> str:
    mesh = Mesh(np.array(jax.devices()), ("x",))
    try:
        from_pretrained(folder, sharding=lambda path, shape: NamedSharding(mesh, P("x") if shape == (4, 16) else P()))
    except ValueError as error:
        return str(error)
    return ""


def host(folder: Path, number: str, port: str) -> dict[str, Any]:
    jax.distributed.initialize(f"localhost:{port}", 2, int(number))
    mesh = Mesh(np.array(jax.devices()), ("x",))
    names: list[str] = []
    read = Weights.read

    def noted(self: Weights, name: str) -> np.ndarray:
        names.append(name)
        return read(self, name)

    Weights.read = noted  # type: ignore[method-assign]
    _, variables = from_pretrained(folder, sharding=lambda path, shape: NamedSharding(mesh, P("x") if shape[0] == 4 else P()))
    layers = sorted({int(name.split(".")[2]) for name in names if ".layers." in name})
    _, whole = from_pretrained(folder)
    pairs = zip(jax.tree.leaves(variables), jax.tree.leaves(whole))
    return {"layers": layers, "right": all(np.array_equal(shard.data, a[shard.index]) for leaf, a in pairs for shard in leaf.addressable_shards)}


def memory(folder: Path, params: Any) -> dict[str, int]:
    """Bytes: of the weights, and by how much the process grew at most."""
    mesh = Mesh(np.array(jax.devices()), ("x",))
    sharding = None if len(jax.devices()) == 1 else lambda path, shape: NamedSharding(mesh, P(*(None,) * (len(shape) - 1), "x"))
    before = resident()["VmRSS"]
    _, variables = from_pretrained(folder, precision=Precision(params), sharding=sharding)
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    return {"weights": weights, "grown": resident()["VmHWM"] - before}


def resident() -> dict[str, int]:
    lines = Path("/proc/self/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))}


if __name__ == "__main__":
    what, where, *rest = sys.argv[1:]
    print(json.dumps({"shares": shares, "host": host, "memory": memory}[what](Path(where), *rest)))
