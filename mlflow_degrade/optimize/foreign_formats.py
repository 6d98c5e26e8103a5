"""What is no model by itself, or one for other frameworks: adapters, TensorFlow, Flax, pickles."""

from __future__ import annotations

from pathlib import Path

from ..errors import ModelError, UnsupportedModelError
from .onnx_files import GRAPH_FILE
from .packed_weights import named_base
from .weight_files import find_weights, listed, read_object

ADAPTER = "adapter_config.json"
"""Where peft describes an adapter."""

# What other frameworks and tools leave, and what helps: patterns, most telling first.
_OTHERS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (
        ("tf_model.h5", "tf_model*.h5", "*.ckpt.index", "model.ckpt*", "saved_model.pb", "*.keras"),
        "TensorFlow weights",
        "Convert them where TensorFlow and transformers 4 are installed: "
        "from_pretrained(DIR, from_tf=True), then save_pretrained.",
    ),
    (("model_index.json",), "a pipeline of diffusers", "Nothing here scores images."),
    (
        ("flax_model*.msgpack",),
        "Flax weights",
        "Convert them where Flax and transformers 4 are installed: "
        "from_pretrained(DIR, from_flax=True), then save_pretrained.",
    ),
    (
        ("consolidated*.pth", "consolidated*.safetensors", "params.json"),
        "weights in the original layout of their authors",
        "Convert them with the script of transformers for this model (convert_…_weights_to_hf.py), "
        "or take the repository in transformers' layout.",
    ),
    (
        ("global_step*", "zero_to_fp32.py", "*_optim_states.pt", "mp_rank_*", "pytorch_model_fsdp*",
         "*.distcp", "__0_0.distcp"),
        "a sharded training checkpoint (DeepSpeed, FSDP or Megatron)",
        "Put it together first (zero_to_fp32.py for DeepSpeed, 'accelerate merge-weights' for "
        "FSDP), then save_pretrained.",
    ),
    (
        ("openvino_model*.xml", "*.mlpackage", "*.mlmodel", "*.tflite", "*.engine", "*.plan",
         "rust_model.ot", "*.nemo", "*.llamafile"),
        "a model compiled or converted for another runtime",
        "It cannot be turned back: give the PyTorch model that it was made from.",
    ),
    (
        ("qmodel.pt",),
        "weights quantized by HQQ",
        "A scheme and its baseline start from float weights: give the model they were made from.",
    ),
    (
        ("weights*.npz", "*.npz"),
        "arrays of NumPy or MLX",
        "Convert them to a transformers directory first, or give the model they were made from.",
    ),
    (
        ("*.safetensors",),
        "weights under a name that transformers does not look for",
        "If its tensors are named as transformers names them, name the file itself as the model.",
    ),
    (
        ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle"),
        "a pickle, not a directory that save_pretrained wrote",
        "Load it where its code is and save the model with save_pretrained; if it is a state dict "
        "named as transformers names it, name the file itself as the model.",
    ),
)  # fmt: skip
# Pickles that a training leaves beside its model.
_NO_MODELS = {
    "optimizer.bin", "optimizer.pt", "rng_state.pth", "scaler.pt", "scheduler.bin", "scheduler.pt",
    "training_args.bin",
}  # fmt: skip
# Adapters that put learned tokens in front of a prompt, and change no weight.
_PROMPT_ADAPTERS = {
    "ADAPTION_PROMPT", "CPT", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING",
    "PROMPT_TUNING",
}  # fmt: skip


def refuse_adapter(folder: Path, name: str) -> None:
    """An adapter is no model: alone it lacks its base, beside one it is not said what is meant."""
    weights = sorted(p.name for p in folder.glob("adapter_model*"))
    if not (folder / ADAPTER).is_file():
        if weights and not find_weights(folder):
            raise ModelError(
                f"{name} holds an adapter ({listed(weights)}) without its {ADAPTER}: copy that as "
                "well, merge the adapter into its base, and give the result."
            )
        return
    stated = read_object(folder / ADAPTER)
    keys = ("base_model_name_or_path", "model_name")  # peft, adapters
    base = next((stated[key] for key in keys if stated.get(key)), None) or named_base(folder)
    kind = str(stated.get("peft_type") or "LORA").replace("LORA", "LoRA")
    merge = (
        "merge it: PeftModel.from_pretrained(base, "
        f"{str(folder)!r}).merge_and_unload().save_pretrained(OUT), the tokenizer beside it, and "
        "give OUT"
    )
    if find_weights(folder):
        raise ModelError(
            f"{name} holds a model ({find_weights(folder)[0].head.name}) and a {kind} adapter "
            f"({ADAPTER}, of {base or 'an unnamed base'}) in one directory, and does not say "
            f"whether the adapter belongs on top. If it does, {merge}; to take the model without "
            f"it, give {find_weights(folder)[0].head}."
        )
    whose = f"its base is {str(base)!r}" if base else f"{ADAPTER} does not name its base"
    if kind in _PROMPT_ADAPTERS:
        raise UnsupportedModelError(
            f"{name} is a {kind} adapter, not a model: {whose}. It puts learned vectors before the "
            "prompt, which cannot be merged into weights; nothing here reads it."
        )
    raise ModelError(f"{name} is a {kind} adapter, not a model: {whose}. Load the base, {merge}.")


def refuse_other_formats(folder: Path, name: str) -> None:
    """Name what lies in a folder without weights that are read, and how to convert it."""
    for patterns, what, remedy in _OTHERS:
        names = {p.name for pattern in patterns for p in folder.glob(pattern)} - _NO_MODELS
        if names:
            raise UnsupportedModelError(
                f"{name} holds {what} ({listed(names)}), and none that is read: "
                f"model.safetensors, pytorch_model.bin, their shards, or {GRAPH_FILE}. {remedy}"
            )
