"""Chatter goes to the log, and nothing of the caller's logging is changed."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings

import pytest

from mlflow_degrade.core.progress import quiet_work


def test_chatter_goes_to_the_log_at_debug(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, logger="mlflow_degrade")
    with quiet_work("Working", progress=False):
        warnings.warn("a trace might not generalize", UserWarning, stacklevel=1)
        logging.getLogger("optimum.exporters").warning("validation differs")
        logging.warning("consider pre-processing")  # the root logger, as some libraries do
        logging.getLogger("somebody.else").warning("not the libraries'")
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
    debug = [r.getMessage() for r in caplog.records if r.levelno == logging.DEBUG]
    assert any("UserWarning: a trace might not generalize" in text for text in debug)
    assert any("validation differs" in text for text in debug)
    assert any("consider pre-processing" in text for text in debug)
    others = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert others == ["not the libraries'"]


def test_the_title_is_shown_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with quiet_work("Exporting the model"):
        pass
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Exporting the model" in captured.err


def test_the_log_is_written_when_the_work_fails(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="mlflow_degrade")
    with pytest.raises(ValueError, match="broken"), quiet_work("Working", progress=False):  # noqa: PT012
        logging.getLogger("torch.onnx").warning("this operator is the reason")
        raise ValueError("broken")
    assert "this operator is the reason" in caplog.text


def test_importing_the_quantizer_leaves_the_root_logger_alone() -> None:
    script = (
        "import logging\n"
        "from mlflow_degrade.core.progress import quiet_work\n"
        "with quiet_work('Importing', progress=False):\n"
        "    import onnxruntime.quantization.matmul_nbits_quantizer\n"
        "root = logging.getLogger()\n"
        "print(root.handlers, root.level)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120
    )
    assert done.stdout.strip() == "[] 30"
    assert done.stderr == ""
