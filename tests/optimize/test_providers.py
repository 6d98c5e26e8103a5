"""Device names, and the refusal to run somewhere else than asked."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from mlflow_degrade.core.errors import ModelError, ProviderUnavailableError, UnknownNameError
from mlflow_degrade.engine import providers
from mlflow_degrade.engine.providers import tensorrt_options

HAS_CUDA = providers.CUDA in onnxruntime.get_available_providers()


def test_cpu_is_the_cpu_alone() -> None:
    assert providers.resolve_device("cpu") == (providers.CPU,)


def test_auto_never_fails() -> None:
    chosen = providers.resolve_device("auto")
    assert chosen[-1] == providers.CPU
    assert providers.TENSORRT not in chosen
    if not HAS_CUDA:
        assert chosen == (providers.CPU,)


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has the CUDA provider")
@pytest.mark.parametrize(
    ("device", "provider"), [("cuda", providers.CUDA), ("tensorrt", providers.TENSORRT)]
)
def test_without_the_provider_the_extra_is_named_and_what_there_is(
    device: str, provider: str
) -> None:
    with pytest.raises(ProviderUnavailableError) as caught:
        providers.resolve_device(device)
    assert f"device '{device}' was asked for" in str(caught.value)
    assert f"has no {provider}" in str(caught.value)
    assert "mlflow-degrade[gpu]" in str(caught.value)
    assert providers.CPU in str(caught.value)


def test_tensorrt_is_a_gpu_with_cuda_behind_it() -> None:
    chain = providers._CHAINS["tensorrt"]
    assert chain == (providers.TENSORRT, providers.CUDA, providers.CPU)
    for name, gpu in (("cpu", False), ("cuda", True), ("tensorrt", True)):
        found = providers._CHAINS[name]
        assert (providers.device_name(found), providers.on_gpu(found)) == (name, gpu)
        assert providers.memory_name(found) == ("cuda" if gpu else "cpu")


def test_which_provider_takes_nodes_is_known(tmp_path: Path) -> None:
    options = providers.session_options()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    model, chain = providers._one_node_model(), (providers.CPU,)
    session = providers.create_session(model, tmp_path, chain, options)
    assert providers.takes_nodes(session, providers.CPU)
    assert not providers.takes_nodes(session, providers.TENSORRT)


def test_engines_are_kept_apart_by_what_the_model_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Onnxruntime's own names for them would be equal: they leave weights out."""
    monkeypatch.setenv("MLFLOW_DEGRADE_CACHE", str(tmp_path / "cache"))
    folders = []
    for weights in (b"one", b"two"):
        folder = tmp_path / weights.decode()
        folder.mkdir()
        (folder / "model.onnx.data").write_bytes(weights)
        folders.append(folder)
    first, again = (tensorrt_options(b"graph", folders[0]) for _ in range(2))
    others = [tensorrt_options(b"graph", folders[1]), tensorrt_options(b"rewritten", folders[0])]
    assert first == again
    paths = {options["trt_engine_cache_path"] for options in (first, *others)}
    assert len(paths) == 3
    assert all(Path(path).parent == tmp_path / "cache" / "tensorrt" for path in paths)
    assert {options["trt_timing_cache_path"] for options in (first, *others)} == {
        str(tmp_path / "cache" / "tensorrt")
    }


def test_arithmetic_is_the_graphs(tmp_path: Path) -> None:
    """With any of these onnxruntime no longer builds a strongly typed network."""
    options = tensorrt_options(b"graph", tmp_path)
    assert options["trt_engine_cache_enable"]
    assert not {"trt_fp16_enable", "trt_bf16_enable", "trt_int8_enable"} & options.keys()


def test_unknown_device_suggests_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'cuda'"):
        providers.resolve_device("cuda0")


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has the CUDA provider")
def test_a_session_does_not_silently_move_to_the_cpu(tmp_path: Path) -> None:
    file = tmp_path / "add.onnx"
    file.write_bytes(providers._one_node_model())
    assert providers.open_session(file).get_providers() == [providers.CPU]
    with (
        pytest.warns(UserWarning, match="not in available"),
        pytest.raises(ProviderUnavailableError, match="CUDAExecutionProvider"),
    ):
        providers.open_session(file, (providers.CUDA, providers.CPU))


def test_a_missing_or_broken_file_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="incomplete"):
        providers.open_session(tmp_path / "absent.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not an onnx file")
    with pytest.raises(ModelError, match="cannot load"):
        providers.open_session(broken)


def test_threads_are_bounded_by_the_affinity_mask() -> None:
    assert providers.session_options().intra_op_num_threads == providers.cpu_count()
    assert providers.session_options(threads=1).intra_op_num_threads == 1
