"""Device names, and the refusal to run somewhere else than asked."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest

from mlflow_degrade.errors import ModelError, ProviderUnavailableError, UnknownNameError
from mlflow_degrade.runtime import providers

HAS_CUDA = providers.CUDA in onnxruntime.get_available_providers()


def test_cpu_is_the_cpu_alone() -> None:
    assert providers.resolve_device("cpu") == (providers.CPU,)


def test_auto_never_fails() -> None:
    chosen = providers.resolve_device("auto")
    assert chosen[-1] == providers.CPU
    if not HAS_CUDA:
        assert chosen == (providers.CPU,)


@pytest.mark.skipif(HAS_CUDA, reason="this onnxruntime has the CUDA provider")
def test_cuda_without_the_provider_names_the_extra_and_what_there_is() -> None:
    with pytest.raises(ProviderUnavailableError) as caught:
        providers.resolve_device("cuda")
    assert "mlflow-degrade[gpu]" in str(caught.value)
    assert providers.CPU in str(caught.value)


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
