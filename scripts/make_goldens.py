"""Makes the goldens of published families with Hugging Face's transformers and torch, which nothing else here needs.

    python scripts/make_goldens.py              makes all of tests/zoo/cases anew
    python scripts/make_goldens.py llama gpt2   makes some
    python scripts/make_goldens.py --check      loads what save_pretrained wrote from each golden in float32, bfloat16 and float16, and compares

A golden is a folder as transformers saves it, of a tiny model with random weights (in bfloat16, which float32 holds exactly), and expected.safetensors: tokens,
and what the model gives in float32 without padding, with padding on the left and on the right.
"""

import json
import sys
import tempfile
from pathlib import Path
from runpy import run_path
from types import SimpleNamespace
from typing import Any

import numpy as np
import safetensors.torch
import torch
import transformers
from safetensors.numpy import save_file
from transformers.modeling_outputs import Seq2SeqLMOutput

ROOT = Path(__file__).resolve().parents[1]
GOLDENS = ROOT / "tests" / "zoo" / "goldens"
PADDINGS = {"whole": (0, 0), "left": (3, 0), "right": (0, 4)}
BATCH, LENGTH = 2, 13


def cases() -> dict[str, dict[str, Any]]:
    """The config.json of each case, with `_`-fields for this script."""
    return {name: case for file in sorted((ROOT / "tests" / "zoo" / "cases").glob("*.py")) for name, case in run_path(str(file))["CASES"].items()}


class Transformer(torch.nn.Module):
    """torch.nn.Transformer's encoder and decoder between embeddings and logits as arXiv:1706.03762 has them; callers use it as a class of transformers."""

    def __init__(self, fields: dict[str, Any]) -> None:
        super().__init__()
        self.fields, self.config = fields, SimpleNamespace(is_encoder_decoder=True)
        width, heads, depth = fields["d_model"], fields["h"], fields["N"]
        layers = [layer(width, heads, fields["d_ff"], batch_first=True) for layer in (torch.nn.TransformerEncoderLayer, torch.nn.TransformerDecoderLayer)]
        for layer in layers:
            for name in {"self_attn", "multihead_attn"} & dict(layer.named_children()).keys():
                setattr(layer, name, torch.nn.MultiheadAttention(width, heads, bias=False, batch_first=True))
        self.embedding = torch.nn.Embedding(fields["vocab_size"], width)
        self.encoder = torch.nn.TransformerEncoder(layers[0], depth, enable_nested_tensor=False)
        self.decoder = torch.nn.TransformerDecoder(layers[1], depth)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, decoder_input_ids: torch.Tensor) -> Seq2SeqLMOutput:
        padding = attention_mask == 0
        source = self._embed(input_ids, (attention_mask.cumsum(-1) - 1).clamp(min=0))
        target = self._embed(decoder_input_ids, torch.arange(decoder_input_ids.shape[1])[None])
        encoded = self.encoder(source, src_key_padding_mask=padding)
        later = torch.ones(target.shape[1], target.shape[1], dtype=torch.bool).triu(1)
        hidden = self.decoder(target, encoded, tgt_mask=later, memory_key_padding_mask=padding)
        return Seq2SeqLMOutput(logits=hidden @ self.embedding.weight.T, encoder_last_hidden_state=encoded)

    def _embed(self, tokens: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        width = self.fields["d_model"]
        angles = positions[..., None].double() / 10000 ** (torch.arange(0, width, 2).double() / width)
        waves = torch.stack([angles.sin(), angles.cos()], -1).flatten(-2).float()
        return self.embedding(tokens) * width**0.5 + waves

    def save_pretrained(self, folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps({"architectures": ["Transformer"], **self.fields}, indent=2) + "\n", encoding="utf-8")
        safetensors.torch.save_file(self.state_dict(), folder / "model.safetensors")

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype, output_loading_info: bool = False) -> Any:
        model = cls(json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))).to(dtype)
        about = model.load_state_dict(safetensors.torch.load_file(Path(folder) / "model.safetensors"), strict=False)
        return (model, about._asdict()) if output_loading_info else model


def class_of(case: dict[str, Any]) -> Any:
    return Transformer if case["model_type"] == "transformer" else getattr(transformers, case["architectures"][0])


def model_of(name: str, case: dict[str, Any]) -> Any:
    """A model with random weights, none of them at its first value, all of them numbers of bfloat16."""
    fields = {key: value for key, value in case.items() if not key.startswith("_") and key != "architectures"}
    torch.manual_seed(sum(map(ord, name)))
    kind = class_of(case)
    model = kind(fields if kind is Transformer else transformers.AutoConfig.for_model(**fields)).eval()
    model.config._attn_implementation = "eager"
    for layer in case.get("_untied", ()):
        model.get_submodule(layer).weight = torch.nn.Parameter(model.get_submodule(layer).weight.clone())
    with torch.no_grad():
        for parameter_name, parameter in model.named_parameters():
            if not (parameter.is_floating_point() and parameter.requires_grad):
                continue
            spread = 0.3 if parameter.ndim < 2 else min(0.5, 1.5 * parameter.shape[-1] ** -0.5)
            if any(part in parameter_name for part in case.get("_small", ())):
                spread *= 0.25
            middle = 1.0 if parameter.ndim == 1 and parameter_name.endswith("weight") and not case.get("_scales_around_0") else 0.0
            parameter.copy_((middle + spread * torch.randn(parameter.shape)).bfloat16().float())
        for buffer_name, buffer in model.named_buffers():
            if any(part in buffer_name for part in case.get("_buffers", ())):
                buffer.copy_((0.3 * torch.randn(buffer.shape)).bfloat16().float())
    return model


def expected(name: str, case: dict[str, Any], model: Any) -> dict[str, np.ndarray]:
    """Inputs and outputs, for each kind of padding."""
    draw = np.random.default_rng(len(name))
    side = {"tokens": draw.integers(5, case["vocab_size"], (BATCH, LENGTH)).astype(np.int32)}
    if case.get("_token_types"):
        side["token_types"] = np.sort(draw.integers(0, case["_token_types"], (BATCH, LENGTH))).astype(np.int32)
    target = draw.integers(5, case["vocab_size"], (BATCH, LENGTH - 4)).astype(np.int32)
    out: dict[str, np.ndarray] = {}
    for kind in case.get("_paddings", PADDINGS):
        left, right = PADDINGS[kind]
        valid = np.ones((BATCH, LENGTH), np.int32)
        valid[0, :left] = 0
        valid[0, LENGTH - right :] = 0
        if case.get("_same_tokens"):
            last = LENGTH - 1 - valid[:, ::-1].argmax(-1)[:, None]
            target = np.where(np.arange(LENGTH) == last, model.config.eos_token_id, side["tokens"]).astype(np.int32)
            side = {**side, "tokens": target}
        made = run(case, model, side, valid, target)
        out |= {f"{kind}.{key}": np.ascontiguousarray(value) for key, value in {**side, "valid": valid.astype(np.int8), **made}.items()}
        if model.config.is_encoder_decoder:
            out[f"{kind}.target"] = target
    return out


def run(case: dict[str, Any], model: Any, side: dict[str, np.ndarray], valid: np.ndarray, target: np.ndarray) -> dict[str, np.ndarray]:
    """What a model gives: logits where it has a head, and the last hidden state (of the encoder where there are two)."""
    pad = case.get("pad_token_id", 0)
    tokens = np.where(valid, side["tokens"], pad if pad is not None else 0)
    inputs = {"input_ids": torch.tensor(tokens).long(), "attention_mask": torch.tensor(valid).long()}
    if "token_types" in side:
        inputs["token_type_ids"] = torch.tensor(side["token_types"]).long()
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = torch.tensor(target).long()
        if case.get("_same_tokens"):
            inputs["decoder_attention_mask"] = inputs["attention_mask"]
    elif case.get("_positions", "counted") == "counted":
        inputs["position_ids"] = torch.tensor(np.maximum(valid.cumsum(-1) - 1, 0)).long()
    with torch.no_grad():
        made = model(**inputs, output_hidden_states=True, use_cache=False) if not model.config.is_encoder_decoder else model(**inputs)
    found = {}
    if model.config.is_encoder_decoder:
        found["encoded"] = made.encoder_last_hidden_state.numpy()
        found["logits"] = made["logits" if "logits" in made else "last_hidden_state"].numpy()
    elif "logits" in made:
        found["logits"] = made.logits.numpy()
        if "last_hidden_state" in made or case.get("_hidden"):
            found["features"] = made.hidden_states[-1].numpy()
    else:
        found["features"] = made.last_hidden_state.numpy()
        if "pooler_output" in made:
            found["pooled"] = made.pooler_output.numpy()
    if case.get("_same_tokens"):
        found["target_valid"] = valid.astype(np.int8)
    if case.get("_positions") == "places":
        found["positions"] = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (BATCH, LENGTH))
    return found


def make(name: str, case: dict[str, Any]) -> None:
    model = model_of(name, case)
    outputs = expected(name, case, model)
    folder = GOLDENS / name
    folder.mkdir(parents=True, exist_ok=True)
    for file in folder.iterdir():
        file.unlink()
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)
    save_file(outputs, folder / "expected.safetensors")
    print(f"{name}: {sum(p.numel() for p in model.parameters()):,} parameters, {sum(f.stat().st_size for f in folder.iterdir()) / 1000:.0f} kB")


def check(name: str, case: dict[str, Any]) -> None:
    """Hugging Face's class reads what ours wrote: no key missing, none unexpected, the same outputs."""
    from transformer_jax import from_pretrained, save_pretrained
    from transformer_jax.precision import Precision

    reference = expected(name, case, class_of(case).from_pretrained(GOLDENS / name, dtype=torch.float32).eval())
    for dtype in ("float32", "bfloat16", "float16"):
        with tempfile.TemporaryDirectory() as folder:
            save_pretrained(folder, *from_pretrained(GOLDENS / name, precision=Precision(dtype)), family=case["model_type"])
            model, about = class_of(case).from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        problems = {key: value for key, value in about.items() if value}
        if "pad_token_id" in case:
            model.config.pad_token_id = case["pad_token_id"]  # not of the model, so that ours leaves it out; classifiers look for it
        outputs = expected(name, case, model.eval())
        worst = max(np.abs(outputs[key] - value).max() / np.abs(value).max() for key, value in reference.items() if value.dtype == np.float32)
        print(f"{name} {dtype}: {problems or 'all keys'}, largest difference {worst:.1e} of the largest output")


def main() -> None:
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    arguments = sys.argv[1:]
    known = cases()
    chosen = [argument for argument in arguments if argument != "--check"] or list(known)
    if unknown := set(chosen) - set(known):
        sys.exit(f"make_goldens.py: error: expected cases of tests/zoo/cases ({', '.join(known)}), received {', '.join(unknown)}")
    for name in chosen:
        (check if "--check" in arguments else make)(name, known[name])


if __name__ == "__main__":
    main()
